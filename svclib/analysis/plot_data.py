"""What pictures show, computed: log-frequency spectrograms, sorted curves, running means, principal axes."""

from collections.abc import Mapping

import numpy as np
from scipy import signal

from svclib.audio import units

FLOOR_DB = -80.0


def log_spectrogram(samples: np.ndarray, sample_rate_hz: float | int, n_rows: int = 240, fmin_hz: float | int = 60.0):
    """Level of a signal over time and over a logarithmic frequency axis.

    Args:
        samples: Mono ``[samples]``; a full-scale sine reads 0 dB.
        sample_rate_hz: Its rate.
        n_rows: Rows of the result, equally spaced in log frequency from ``fmin_hz`` to the Nyquist frequency.
        fmin_hz: Lowest frequency.

    Returns:
        ``(level_db [rows, columns], frequency_hz [rows], time_s [columns])``, level not below -80 dB. Where several FFT
        bins fall into one row, the loudest is shown; at most about 1200 columns, whatever the length.
    """
    samples = np.asarray(samples, dtype=np.float32).ravel()
    n_fft = 1 << max(6, int(np.ceil(np.log2(0.064 * sample_rate_hz))))
    hop = max(n_fft // 8, samples.size // 1200)
    starts = np.arange(0, samples.size + hop, hop)  # column c is centred on sample c * hop
    samples = np.pad(samples, (n_fft // 2, n_fft // 2 + 2 * hop))
    window = signal.get_window("hann", n_fft)
    frequency_hz = np.geomspace(fmin_hz, sample_rate_hz / 2, n_rows)
    bin_position = frequency_hz * n_fft / sample_rate_hz
    half_row = np.sqrt(frequency_hz[1] / frequency_hz[0])
    low = np.floor(bin_position / half_row).astype(int) + 1
    high = np.minimum(np.floor(bin_position * half_row).astype(int) + 1, n_fft // 2 + 1)
    level_db = np.empty((n_rows, starts.size), dtype=np.float32)
    for first in range(0, starts.size, 64):  # by blocks: the memory does not grow with the length
        frames = samples[starts[first : first + 64, None] + np.arange(n_fft)] * window
        magnitude = np.abs(np.fft.rfft(frames, axis=1)) * (2.0 / window.sum())
        block_db = 20.0 * np.log10(np.maximum(magnitude, 10.0 ** (FLOOR_DB / 20.0))).T
        for row in range(n_rows):
            if high[row] > low[row]:
                level_db[row, first : first + 64] = block_db[low[row] : high[row]].max(axis=0)
            else:  # several rows share one bin: between two bins, interpolate
                left = min(int(bin_position[row]), n_fft // 2 - 1)
                share = bin_position[row] - left
                level_db[row, first : first + 64] = (1 - share) * block_db[left] + share * block_db[left + 1]
    return level_db, frequency_hz, starts / sample_rate_hz


def sorted_curve(curves: Mapping, key: str) -> tuple[np.ndarray, np.ndarray]:
    """One curve of a run where it is finite, sorted by step; empty if it was not recorded.

    Args:
        curves: From ``runlog.curves``: ``step`` for the training's curves, ``validation_step`` for the validation's.
        key: ``loss``, ``validation_loss``, ...

    Returns:
        Steps and values, float64 of one length.
    """
    step = np.asarray(curves.get("validation_step" if key.startswith("validation") else "step", []), float)
    value = np.asarray(curves.get(key, []), float)
    order = np.argsort(step, kind="stable")
    step, value = step[order], value[order]
    keep = np.isfinite(value)
    return step[keep], value[keep]


def running_mean(value: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` neighbours, same length; the ends repeat the outermost value."""
    if width < 2 or value.size < width:
        return value
    padded = np.pad(value, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")


def notes_midi(f0_hz, voiced) -> np.ndarray:
    """MIDI pitch with NaN where nothing is sung, so that lines break there."""
    f0_hz = np.asarray(f0_hz, float)
    return np.where(np.asarray(voiced, bool) & (f0_hz > 0), units.hz_to_midi(f0_hz), np.nan)


def principal_axes(z: np.ndarray, n_axes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The directions in which points vary most.

    Args:
        z: ``[points, dims]``.
        n_axes: At most this many, the strongest first.

    Returns:
        ``(mean [dims], axes [n_axes, dims] orthonormal, share [n_axes] of the variance)``; points on the map are
        ``(z - mean) @ axes.T``. An axis's sign is fixed by its largest entry being positive.
    """
    z = np.asarray(z, float)
    mean = z.mean(axis=0)
    _, scale, axes = np.linalg.svd(z - mean, full_matrices=False)
    axes = axes[:n_axes]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return mean, axes, (scale**2 / max(float((scale**2).sum()), 1e-12))[:n_axes]
