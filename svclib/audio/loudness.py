"""A-weighted loudness of each frame, detection of the frames in which a note sounds, LUFS of a whole recording."""

import math

import librosa
import numpy as np
import scipy.signal
import torch
from jaxtyping import Float
from torch import Tensor

FLOOR_DB = -80.0
# K-weighting of BS.1770 as its tables list it for 48 kHz: b0 b1 b2 a0 a1 a2 of the high shelf and of the high-pass.
K_WEIGHTING_48K = (
    (1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585),
    (1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621),
)
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


def integrated_lufs(samples: Float[np.ndarray, " samples"], sample_rate_hz: float | int) -> float:
    """Integrated loudness of a mono signal by ITU-R BS.1770-4: a full-scale sine at 997 Hz has -3.01 LUFS.

    The mean power behind the K-weighting, over the blocks of 400 ms (overlapping by 75 %, of a shorter signal one) that
    pass both gates: -70 LUFS, and 10 LU below the mean of those. Minus infinity where no block passes.
    """
    hop, state, powers = round(0.1 * sample_rate_hz), np.zeros((2, 2)), [np.zeros(0)]
    for start in range(0, len(samples), 300 * hop):  # pieces of 30 s: memory does not grow with the recording
        piece = samples[start : start + 300 * hop]
        weighted, state = scipy.signal.sosfilt(_k_weighting(sample_rate_hz), piece, zi=state)
        powers.append(np.add.reduceat(weighted**2, np.arange(0, len(weighted), hop)))
    power, n_whole = np.concatenate(powers), len(samples) // hop
    if n_whole >= 4:
        blocks = np.convolve(power[:n_whole], np.full(4, 0.25 / hop), "valid")
    else:
        blocks = power.sum(keepdims=True) / max(len(samples), 1)
    loudness = 10.0 * np.log10(np.maximum(blocks, 1e-20)) - 0.691
    blocks = blocks[loudness > -70.0]
    blocks = blocks[blocks > blocks.mean() / 10.0] if len(blocks) else blocks
    return float(10.0 * np.log10(blocks.mean()) - 0.691) if len(blocks) else -math.inf


def _k_weighting(sample_rate_hz: float | int) -> np.ndarray:
    """Second-order sections of the K-weighting at a sample rate: of the same analogue filters (bilinear transform)."""
    c, d = 1 - sample_rate_hz / 48000, 1 + sample_rate_hz / 48000  # 1/z at 48 kHz is (c + d/z) / (d + c/z) here
    move = np.array([[d * d, c * d, c * c], [2 * c * d, c * c + d * d, 2 * c * d], [c * c, c * d, d * d]])
    moved = np.reshape(K_WEIGHTING_48K, (2, 2, 3)) @ move.T
    return (moved / moved[:, 1:, :1]).reshape(2, 6)
