"""A-weighted loudness of each frame, and detection of the frames in which a note sounds."""

import librosa
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FLOOR_DB = -80.0
BOX_FRAMES = 40  # of the note detector: 160 ms on the DDSP grid


def loudness_db(
    padded: Float[Tensor, "batch samples"], sample_rate_hz: int, hop_samples: int, n_fft: int
) -> Float[Tensor, "batch frames"]:
    """A-weighted level of each frame, dB, not below -80; above that, halving the signal lowers it by exactly 6.02 dB.

    10 log10 of the mean over FFT bins of A-weighted power (periodic Hann window), the loudness of magenta/ddsp from
    version 2 on. A full-scale sine at 1 kHz reads +19.8 dB with a window of 512; levels measured with different windows
    are not comparable.

    ``padded`` reaches from half a window before the first frame centre to half a window after the last.
    """
    transform = spectrum(padded, n_fft, n_fft, hop_samples)
    weights = 10.0 ** (a_weighting_db(np.fft.rfftfreq(n_fft, 1.0 / sample_rate_hz)) / 10.0) / (n_fft // 2 + 1)
    power = transform.real.square() + transform.imag.square()
    mean = torch.from_numpy(weights).to(padded) @ power
    return 10.0 * mean.clamp_min(10.0 ** (FLOOR_DB / 10.0)).log10()


def a_weighting_db(f_hz):
    """A-weighting of a frequency in dB (IEC 61672), 0 at 1 kHz, not below -80."""
    with np.errstate(divide="ignore"):  # at 0 Hz
        return librosa.A_weighting(np.asarray(f_hz, dtype=np.float64), min_db=-80.0)


def spectrum(padded: Tensor, n_fft: int, window_samples: int, hop_samples: int) -> Tensor:
    """Transforms ``[batch, bins, frames]`` of audio that holds what lies beyond its ends; periodic Hann window."""
    window = torch.hann_window(window_samples, dtype=padded.dtype, device=padded.device)
    return torch.stft(padded, n_fft, hop_samples, window_samples, window, center=False, return_complex=True)


def note_on_ratio(loudness_db: Float[np.ndarray, " frames"], confidence: Float[np.ndarray, " frames"]) -> np.ndarray:
    """Note-on ratio of each frame, float64 ``[frames]``; from 1 on a note sounds (magenta/ddsp's notes detector).

    Mean of the squared pitch confidence (0..1) over 40 frames, fewer at the ends, times the height of the loudness
    above the floor relative to 0.49 of its mean height; 0 throughout for a recording at the floor.
    """
    height, squared = np.asarray(loudness_db, np.float64) - FLOOR_DB, np.square(np.asarray(confidence, np.float64))
    n = len(height)
    if not height.sum() > 0:
        return np.zeros(n)
    sums, frames = np.concatenate([[0.0], np.cumsum(squared)]), np.arange(n)
    low, high = np.maximum(0, frames - (BOX_FRAMES - 1) // 2), np.minimum(n, frames + BOX_FRAMES // 2 + 1)
    return (sums[high] - sums[low]) / (high - low) * height / (0.49 * height.mean())


def note_mask(ratio: np.ndarray, threshold: float = 1.0) -> np.ndarray:
    """Frames in which a note sounds: ``ratio >= threshold``, bool."""
    return np.asarray(ratio) >= threshold
