"""Held-out loss and previews: reconstructions of a few held-out segments, saved as audio with each validation."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile
import scipy.signal
import torch
from torch import nn

from svclib.utils import atomic_store, filesystem

N_PREVIEWS = 3
MAX_BATCHES, BATCH_SIZE = 8, 8
MIN_PREVIEW_PEAK = 0.01


def held_out_batches(dataset: Any, n_frames: int, device: torch.device) -> list[dict]:
    """A fixed selection of held-out segments of ``n_frames``, spread over all; empty if nothing is held out."""
    every = dataset.validation_batches(BATCH_SIZE, n_frames)
    spread = np.linspace(0, len(every) - 1, min(len(every), MAX_BATCHES)).round().astype(int)
    return [{k: v.to(device) for k, v in every[i].items()} for i in spread]


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[dict]) -> float:
    """Mean of the model's validation loss over all segments."""
    losses = [(float(model.validation_loss(b)), len(b["audio"])) for b in batches]
    return sum(v * n for v, n in losses) / sum(n for _, n in losses)


# Previews -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preview:
    """One held-out segment at one step: audio file, score (loss of this segment) and the original's file."""

    step: int
    number: int
    path: Path
    score: float
    original: Path


@torch.no_grad()
def reconstructions(model: nn.Module, batches: list[dict]) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Up to ``N_PREVIEWS`` segments that are not silent, always the same ones, and the model's reconstructions.

    Args:
        model: Has ``reconstruct`` and ``validation_loss``.
        batches: From :func:`held_out_batches`.

    Returns:
        ``(originals, made, scores)``: audio ``[samples]``, and the loss of each segment.
    """
    rows = [
        (b, i) for b in batches for i in range(len(b["audio"])) if float(b["audio"][i].abs().max()) > MIN_PREVIEW_PEAK
    ]
    picked = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), N_PREVIEWS)).astype(int))]
    segments = [{k: v[i : i + 1] for k, v in b.items()} for b, i in picked]
    originals = [s["audio"][0].float().cpu().numpy() for s in segments]
    made = [model.reconstruct(s, seed=0)[0].float().cpu().numpy() for s in segments]
    return originals, made, [float(model.validation_loss(s)) for s in segments]


def save_previews(
    run: Path, step: int, originals: list[np.ndarray], made: list[np.ndarray], scores: list[float], rate_hz: int
) -> None:
    """Write the reconstructions of one validation and their scores to ``RUN/previews``."""
    folder = Path(run) / "previews"
    for number, (original, audio) in enumerate(zip(originals, made, strict=True), start=1):
        if not (folder / f"original-{number}.wav").is_file():
            atomic_store.commit_bytes(folder / f"original-{number}.wav", wav_bytes(original, rate_hz))
        atomic_store.commit_bytes(folder / f"step-{step:06d}-{number}.wav", wav_bytes(audio, rate_hz))
    scores = [round(float(s), 6) for s in scores]
    atomic_store.write_json(folder / f"step-{step:06d}.json", {"step": step, "scores": scores})


def previews(run: str | Path) -> list[Preview]:
    """The previews of a run, sorted by step and number."""
    folder, found = Path(run) / "previews", []
    for path in sorted(folder.glob("step-*.json")):
        saved = filesystem.read_json(path)
        for number, score in enumerate(saved["scores"], start=1):
            audio = folder / f"step-{saved['step']:06d}-{number}.wav"
            if audio.is_file():
                found.append(Preview(saved["step"], number, audio, score, folder / f"original-{number}.wav"))
    return sorted(found, key=lambda p: (p.step, p.number))


def wav_bytes(audio: np.ndarray, sample_rate_hz: int) -> bytes:
    """Mono float audio ``[samples]`` as a 16-bit WAV file, clipped at full scale."""
    buffer = io.BytesIO()
    samples = np.round(np.clip(np.asarray(audio, dtype=np.float64), -1.0, 1.0) * 32767.0).astype(np.int16)
    scipy.io.wavfile.write(buffer, sample_rate_hz, samples)
    return buffer.getvalue()


def spectrogram_image(audio: np.ndarray, n_fft: int = 1024) -> np.ndarray:
    """Log-magnitude spectrogram as grey values over 80 dB, uint8 ``[bins, frames]``, low frequencies at the bottom."""
    audio = np.asarray(audio, dtype=np.float64)
    audio = np.pad(audio, (0, max(0, n_fft - len(audio))))
    _, _, bins = scipy.signal.stft(audio, nperseg=n_fft, noverlap=n_fft * 3 // 4)
    level_db = 20.0 * np.log10(np.maximum(np.abs(bins), 1e-6))
    return np.round(np.clip((level_db + 100.0) / 80.0, 0.0, 1.0)[::-1] * 255.0).astype(np.uint8)
