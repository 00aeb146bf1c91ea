"""Windows of ``prepare.py`` as training material for ``words``: envelopes, teacher features, augmentation."""

import math
from pathlib import Path

import numpy as np
import torch
from prepare import MEL
from torch import Tensor

from svclib.features.f0 import fill_unvoiced
from svclib.models.content import bottleneck, words
from svclib.models.layers import at_positions

FLOOR = math.log(MEL.floor)
FRAME_S = MEL.hop_samples / MEL.sample_rate_hz


def load(folder: Path) -> list[dict]:
    """Every window: ``speaker``, ``envelope`` [frames, mels], ``level``, ``teacher``; names in sorted order."""
    found, centers_hz = [], torch.from_numpy(words.MEL.centers_hz()).float()
    for path in sorted(folder.glob("*/[0-9]*.npz")):
        if path.name.endswith(".part.npz"):
            continue
        with np.load(path) as z:
            f0 = fill_unvoiced(z["f0_hz"], z["voiced"])
            mel = torch.from_numpy(z["log_mel"].astype(np.float32))
            envelope = bottleneck.spectral_envelope(mel[None], torch.from_numpy(f0)[None], centers_hz)[0]
            found.append({
                "speaker": path.parent.name, "path": path, "envelope": envelope,
                "teacher": torch.from_numpy(z["teacher"].astype(np.float32)), "loudness_db": z["loudness_db"],
            })  # fmt: skip
    return found


def normalise_teacher(windows: list[dict]) -> torch.Tensor:
    """Per speaker: subtract the mean, divide by the deviation; takes the reader out and leaves the words.

    Returns the deviation over all speech.
    """
    speech = [w["teacher"][sounding_teacher(w)] for w in windows]
    overall = torch.cat(speech).std(0)
    for speaker in {w["speaker"] for w in windows}:
        own = torch.cat([s for w, s in zip(windows, speech, strict=True) if w["speaker"] == speaker])
        mean, deviation = own.mean(0), own.std(0)
        for w in windows:
            if w["speaker"] == speaker:
                w["teacher"] = (w["teacher"] - mean) / (deviation + 0.2 * overall)
    return overall


def sounding_teacher(window: dict, threshold_db: float = -60.0) -> Tensor:
    """Teacher frames in which there is sound."""
    frame = ((torch.arange(len(window["teacher"])) + 0.5) * 0.02 / FRAME_S).long()
    return torch.from_numpy(window["loudness_db"])[frame.clamp_max(len(window["loudness_db"]) - 1)] > threshold_db


class Augment:
    """Other speakers, pitches, tempos, rooms and microphones, on log envelopes of a batch."""

    def __init__(self, warp: float = 0.25, equaliser_db: float = 6.0):
        self.centers = torch.from_numpy(words.MEL.centers_hz()).float()
        self.warp, self.equaliser_db = warp, equaliser_db

    def __call__(self, envelope: Tensor, rng: torch.Generator) -> Tensor:
        """Augmented log envelopes ``[batch, frames, mels]``."""
        b, frames, mels = envelope.shape

        def uniform(*shape):
            return torch.rand(shape, generator=rng)

        # Another vocal tract: the frequency axis scaled.
        factor = ((2 * uniform(b) - 1) * math.log1p(self.warp)).exp()
        x = bottleneck.warp(envelope, factor, self.centers)
        # Sung higher or lower: only the envelope at the harmonics is known, straight lines between.
        high = uniform(b) < 0.6
        f0 = (math.log(90) + uniform(b) * math.log(700 / 90)).exp()
        drift = (uniform(b, 2) - 0.5) * 0.8
        line = torch.linspace(0, 1, frames)
        f0 = f0[:, None] * (drift[:, :1] * (1 - line) + drift[:, 1:] * line).exp()
        combed = words.at_harmonics(x, f0, self.centers)
        x = torch.where(high[:, None, None], combed, x)
        # Another microphone: a smooth equaliser that drifts.
        x = x + bottleneck.drifting_equaliser(b, frames, mels, self.equaliser_db, rng)
        # A room: the power of each band decays over 0.1 to 0.6 s (60 dB).
        wet = uniform(b) < 0.3
        if wet.any():
            k = torch.arange(24) * FRAME_S
            t60 = 0.1 + 0.5 * uniform(b)
            kernel = torch.exp(-13.8 * k / t60[:, None]) * (0.05 + 0.25 * uniform(b))[:, None]
            kernel[:, 0] = 1.0
            power = (2 * x).exp().transpose(1, 2)  # [b, mels, frames]
            tail = torch.zeros_like(power)
            for i in range(24):
                tail[..., i:] += kernel[:, i, None, None] * power[..., : frames - i]
            x = torch.where(wet[:, None, None], tail.transpose(1, 2).clamp_min(1e-12).log() / 2, x)
        # Noise under it, and telephone bands.
        loud = x.amax((1, 2), keepdim=True)
        noise = loud - (20 + 50 * uniform(b, 1, 1)) * math.log(10) / 20 + torch.randn((b, 1, mels), generator=rng) * 0.5
        noise = torch.where(uniform(b, 1, 1) < 0.5, noise, torch.full_like(noise, FLOOR))
        x = torch.logaddexp(x, noise + 0.3 * torch.randn((b, frames, mels), generator=rng))
        top = torch.where(uniform(b) < 0.15, 3300 + 2000 * uniform(b), torch.full((b,), 1e5))
        x = torch.where(self.centers > top[:, None, None], x - 6.0, x)
        return x.clamp_min(FLOOR)


def crop(windows: list[dict], picks: np.ndarray, frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Envelopes ``[batch, frames, mels]`` of random places, slower or faster, and each frame's place in the teacher."""
    rows, places = [], []
    for i in picks:
        w = windows[int(i)]
        rate = math.exp(rng.uniform(math.log(0.45), math.log(1.25)))  # below 1: longer, as in singing
        n = len(w["envelope"])
        rate = min(rate, max(0.2, (n - 2) / frames))
        start = rng.uniform(0, max(0.0, n - 1 - rate * frames))
        position = torch.arange(frames) * rate + start
        rows.append(at_positions(w["envelope"][None], position)[0])
        places.append((position + 0.5) * FRAME_S / 0.02 - 0.5)
    return torch.stack(rows), torch.stack(places)
