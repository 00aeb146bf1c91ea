"""A-weighted loudness of each frame, and detection of the frames in which a note sounds."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from svclib.audio import units

FLOOR_DB = -80.0


def loudness_db(
    samples: Float[Tensor, "batch samples"], sample_rate_hz: int, hop_samples: int, n_fft: int = 512
) -> Float[Tensor, "batch frames"]:
    """A-weighted level of each frame; above the floor, halving the signal lowers it by exactly 6.02 dB.

    10 log10 of the mean over FFT bins of A-weighted power (periodic Hann window, zeros beyond the ends), the loudness
    of magenta/ddsp from version 2 on. A full-scale sine at 1 kHz reads +19.8 dB with the default window.

    Args:
        samples: Audio, full scale 1.
        sample_rate_hz: Of the audio.
        hop_samples: Samples per frame.
        n_fft: Window, samples; levels measured with different windows are not comparable.

    Returns:
        dB, not below -80, of ``samples // hop_samples`` frames.
    """
    n, n_frames = samples.shape[1], units.frame_count(samples.shape[1], hop_samples)
    if n_frames == 0:
        return samples.new_zeros(samples.shape[0], 0)
    left = n_fft // 2 - hop_samples // 2
    right = (n_frames - 1) * hop_samples + n_fft - left - n
    return loudness_of_padded(torch.nn.functional.pad(samples, (left, right)), sample_rate_hz, hop_samples, n_fft)


def loudness_of_padded(padded: Tensor, sample_rate_hz: int, hop_samples: int, n_fft: int) -> Tensor:
    """:func:`loudness_db` of audio that begins half a window before the first frame centre: no padding is added."""
    transform = spectrum(padded, n_fft, n_fft, hop_samples)
    weights = 10.0 ** (a_weighting_db(np.fft.rfftfreq(n_fft, 1.0 / sample_rate_hz)) / 10.0) / (n_fft // 2 + 1)
    power = transform.real.square() + transform.imag.square()
    mean = torch.from_numpy(weights).to(padded) @ power
    return 10.0 * mean.clamp_min(10.0 ** (FLOOR_DB / 10.0)).log10()


def a_weighting_db(f_hz):
    """A-weighting of a frequency in dB (IEC 61672), 0 at 1 kHz, not below -80."""
    import librosa

    with np.errstate(divide="ignore"):  # at 0 Hz
        return librosa.A_weighting(np.asarray(f_hz, dtype=np.float64), min_db=-80.0)


def spectrum(padded: Tensor, n_fft: int, window_samples: int, hop_samples: int) -> Tensor:
    """Transforms ``[batch, bins, frames]`` of audio that holds what lies beyond its ends; periodic Hann window."""
    window = torch.hann_window(window_samples, dtype=padded.dtype, device=padded.device)
    return torch.stft(padded, n_fft, hop_samples, window_samples, window, center=False, return_complex=True)


def note_on_ratio(
    loudness_db: np.ndarray, confidence: np.ndarray, floor_db: float = FLOOR_DB, box_frames: int = 40
) -> np.ndarray:
    """Note-on ratio of each frame; from 1 on a note sounds (magenta/ddsp's notes detector).

    Mean of confidence^2 over ``box_frames`` frames (fewer at the ends) times the height of the loudness above the
    floor, relative to 0.49 of its mean height.

    Args:
        loudness_db: ``[frames]``.
        confidence: ``[frames]``, 0..1.
        floor_db: The loudness of silence.
        box_frames: Length of the mean; 40 frames are 160 ms on the DDSP grid.

    Returns:
        float64 ``[frames]``; 0 throughout for a recording at the floor.
    """
    loudness, squared = np.asarray(loudness_db, np.float64), np.square(np.asarray(confidence, np.float64))
    n = len(loudness)
    mean_height = loudness.mean() - floor_db if n else 0.0
    if mean_height <= 0:
        return np.zeros(n)
    sums = np.concatenate([[0.0], np.cumsum(squared)])
    frames = np.arange(n)
    low, high = np.maximum(0, frames - (box_frames - 1) // 2), np.minimum(n, frames + box_frames // 2 + 1)
    box = (sums[high] - sums[low]) / (high - low)
    return box * (loudness - floor_db) / (0.49 * mean_height)


def note_mask(ratio: np.ndarray, threshold: float = 1.0) -> np.ndarray:
    """Frames in which a note sounds: ``ratio >= threshold``, bool."""
    return np.asarray(ratio) >= threshold
