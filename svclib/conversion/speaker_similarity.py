"""Speaker similarity: cosine between the embeddings of a speaker encoder.

The network is the GE2E speaker encoder (Wan et al. 2018, arXiv:1710.10467). Its weights (17 MB) are read from an
installed ``resemblyzer`` package (Apache 2.0), which itself is never imported. It was trained on speech: figures of
singing compare with each other, not with those of speech.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from svclib.utils.errors import ConversionError

SAMPLE_RATE_HZ = 16000
HOP_SAMPLES, N_FFT, N_MELS = 160, 400, 40
SLICE_FRAMES, SLICE_HOP_FRAMES = 160, 80  # what the network hears at once: 1.6 s, every 0.8 s
WINDOW_S, WINDOW_HOP_S = 5.0, 2.5
LEVEL_DBFS = -30.0  # quieter sound is lifted to this
SILENCE_DB, PAUSE_S = -40.0, 0.2  # this far below the loudest is silence; of longer silences a pause is left


class SpeakerEncoder(nn.Module):
    """Three LSTM layers over mel powers every 10 ms -> a direction in 256 dimensions; near for one speaker."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel_power: Float[Tensor, "batch frames 40"]) -> Float[Tensor, "batch 256"]:
        """Vectors of length 1 without negative entries."""
        _, (state, _) = self.lstm(mel_power)
        return nn.functional.normalize(torch.relu(self.linear(state[-1])), dim=1)


def weights_path() -> Path:
    """The weights in an installed resemblyzer package, which is not imported; ConversionError without it."""
    spec = importlib.util.find_spec("resemblyzer")
    path = Path(spec.submodule_search_locations[0]) / "pretrained.pt" if spec else None
    if path is None or not path.is_file():
        raise ConversionError("Speaker similarity needs the weights: run `pip install --no-deps resemblyzer`.")
    return path


@functools.lru_cache(maxsize=1)
def load() -> SpeakerEncoder:
    """The network with its published weights, ready to use; loaded once."""
    stored = torch.load(weights_path(), map_location="cpu", weights_only=True)["model_state"]
    model = SpeakerEncoder()
    model.load_state_dict({name: value for name, value in stored.items() if name.startswith(("lstm.", "linear."))})
    return model.eval().requires_grad_(False)


def mel_power(samples: Float[np.ndarray, " _"]) -> Float[np.ndarray, "frames 40"]:
    """Slaney mel powers of 25 ms Hann windows every 10 ms at 16 kHz, float32; no logarithm."""
    import librosa

    sizes: dict[str, Any] = {"n_fft": N_FFT, "hop_length": HOP_SAMPLES, "n_mels": N_MELS}
    return librosa.feature.melspectrogram(y=np.asarray(samples, np.float32), sr=SAMPLE_RATE_HZ, **sizes).T


def trim_pauses(samples: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    """The same sound with silences shortened to ``PAUSE_S``; silence is 40 dB below the loudest 10 ms."""
    n = len(samples) // HOP_SAMPLES
    frames = np.square(samples[: n * HOP_SAMPLES].astype(np.float64)).reshape(n, HOP_SAMPLES).mean(axis=1)
    if not n or not frames.max():
        return samples[:0]
    sounding = frames > frames.max() * 10 ** (SILENCE_DB / 10)
    reach = round(PAUSE_S * SAMPLE_RATE_HZ / HOP_SAMPLES / 2)
    kept = np.convolve(sounding, np.ones(2 * reach + 1), mode="same") > 0
    return samples[: n * HOP_SAMPLES][np.repeat(kept, HOP_SAMPLES)]


def embed(samples: Float[np.ndarray, " _"]) -> Float[np.ndarray, "256"]:
    """Embedding of an excerpt at 16 kHz: the mean over slices of 1.6 s every 0.8 s, of length 1."""
    level = 10 * np.log10(max(float(np.square(samples.astype(np.float64)).mean()), 1e-20))
    mel = mel_power(samples * 10 ** (max(0.0, LEVEL_DBFS - level) / 20))
    mel = np.pad(mel, ((0, max(0, SLICE_FRAMES - len(mel))), (0, 0)))
    starts = range(0, len(mel) - SLICE_FRAMES + 1, SLICE_HOP_FRAMES)
    with torch.inference_mode():
        found = load()(torch.from_numpy(np.stack([mel[s : s + SLICE_FRAMES] for s in starts])))
    mean = found.numpy().astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean)


def windows(samples: Float[np.ndarray, " _"]) -> list[np.ndarray]:
    """Pieces of 5 s every 2.5 s of a sound at 16 kHz whose pauses are cut out; a shorter sound is one piece."""
    samples = trim_pauses(samples)
    size, hop = round(WINDOW_S * SAMPLE_RATE_HZ), round(WINDOW_HOP_S * SAMPLE_RATE_HZ)
    if len(samples) < SLICE_FRAMES * HOP_SAMPLES // 2:
        raise ConversionError(f"There are {len(samples) / SAMPLE_RATE_HZ:.1f} s of sound in it; a speaker needs 0.8 s.")
    return [samples[s : s + size] for s in range(0, max(1, len(samples) - size + 1), hop)]


def speaker_embedding(phrases: Sequence[np.ndarray]) -> Float[np.ndarray, "256"]:
    """The normalised mean of the directions of a voice's phrases, each at 16 kHz."""
    if not phrases:
        raise ConversionError("There is no phrase of the target voice; give at least one recording.")
    mean = np.mean([embed(trim_pauses(phrase)) for phrase in phrases], axis=0)
    return mean / np.linalg.norm(mean)


def similarity(samples: Float[np.ndarray, " _"], target: Float[np.ndarray, "256"]) -> float:
    """Mean cosine (0 to 1) of the :func:`windows` of a sound at 16 kHz to a :func:`speaker_embedding`."""
    return float(np.mean([embed(piece) @ target for piece in windows(samples)]))
