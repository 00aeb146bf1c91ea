"""Data behind pictures: spectrograms, curves, frequency axes; waveform traces as spectrograms and outlines."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy import signal

from svclib.analysis.trace import Trace
from svclib.audio import units
from svclib.audio.mel import MelConfig, log_mel

FLOOR_DB = -80.0
N_COLUMNS = 600
_N_MELS, _HOP_S = 64, 0.008


def log_spectrogram(samples: np.ndarray, sample_rate_hz: float | int, n_rows: int = 240, fmin_hz: float | int = 60.0):
    """Spectrogram with a logarithmic frequency axis: ``(level_db [rows, columns], frequency_hz, time_s)``.

    A full-scale sine is at 0 dB, the floor at -80 dB. Rows are equally spaced in log frequency up to the Nyquist
    frequency and hold the maximum of their FFT bins; there are at most about 1200 columns, whatever the length.
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
    for first in range(0, starts.size, 64):  # in blocks, for constant memory
        frames = samples[starts[first : first + 64, None] + np.arange(n_fft)] * window
        magnitude = np.abs(np.fft.rfft(frames, axis=1)) * (2.0 / window.sum())
        block_db = 20.0 * np.log10(np.maximum(magnitude, 10.0 ** (FLOOR_DB / 20.0))).T
        for row in range(n_rows):
            if high[row] > low[row]:
                level_db[row, first : first + 64] = block_db[low[row] : high[row]].max(axis=0)
            else:  # several rows share one bin: interpolate between bins
                left = min(int(bin_position[row]), n_fft // 2 - 1)
                share = bin_position[row] - left
                level_db[row, first : first + 64] = (1 - share) * block_db[left] + share * block_db[left + 1]
    return level_db, frequency_hz, starts / sample_rate_hz


def sorted_curve(curves: Mapping, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one curve of ``run_log.curves``, sorted by step, float64; empty if there is none."""
    step = np.asarray(curves.get("validation_step" if key.startswith("validation") else "step", []), float)
    value = np.asarray(curves.get(key, []), float)
    order = np.argsort(step, kind="stable")
    step, value = step[order], value[order]
    keep = np.isfinite(value)
    return step[keep], value[keep]


def running_mean(value: np.ndarray, width: int) -> np.ndarray:
    """Mean over ``width`` neighbours, of the same length; the ends repeat the outermost value."""
    if width < 2 or value.size < width:
        return value
    padded = np.pad(value, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1.0 / width), mode="valid")


def notes_midi(f0_hz, voiced) -> np.ndarray:
    """MIDI pitch with NaN in unvoiced frames, where lines break."""
    f0_hz = np.asarray(f0_hz, float)
    return np.where(np.asarray(voiced, bool) & (f0_hz > 0), units.hz_to_midi(f0_hz), np.nan)


def frequency_ticks(hz: np.ndarray, distance: float) -> list[tuple[float, str]]:
    """Round frequencies on an axis of mel bands with centres ``hz``: ``(position from 0 to 1, label)``.

    Ticks nearer than ``distance`` to the one below are left out.
    """
    ticks: list[tuple[float, str]] = []
    for f in (250, 500, 1000, 2000, 4000, 8000, 16000):
        place = (np.interp(f, hz, np.arange(len(hz))) + 0.5) / len(hz)
        if hz[0] < f < hz[-1] and (not ticks or place - ticks[-1][0] > distance):
            ticks.append((float(place), f"{f // 1000} k" if f >= 1000 else str(f)))
    return ticks


# Traces: a ``mel`` trace as it is, a ``wave`` trace by its spectrograms -----------------------------------------------


def contract(trace: Trace) -> MelConfig:
    """Mel settings of the pictures of a trace: its own for ``mel``.

    For ``wave``: 64 mels up to the Nyquist frequency, hops of about 8 ms (longer above 800 frames), windows of 4 hops.
    """
    if trace.kind == "mel":
        return trace.contract
    rate = trace.sample_rate_hz
    hop = 1 << max(4, round(np.log2(max(rate * _HOP_S, len(trace.result) / 800))))
    return MelConfig(rate, 4 * hop, 4 * hop, hop, _N_MELS, 0.0, rate / 2)


def levels_db(trace: Trace, states: np.ndarray) -> np.ndarray:
    """States as mel levels ``[..., mels, frames]`` in dB with the settings of :func:`contract`."""
    if trace.kind == "mel":
        return trace.level_db(states)
    rows = torch.from_numpy(np.asarray(states, np.float32).reshape(-1, states.shape[-1]))
    level = contract(trace).to_db(log_mel(rows, contract(trace)).transpose(1, 2).numpy())
    return level.reshape(*states.shape[:-1], *level.shape[1:])


def n_frames(trace: Trace) -> int:
    """Number of frames of the pictures of a trace."""
    size = trace.result.shape[-1]
    return size if trace.kind == "mel" else size // contract(trace).hop_samples


def outline(states: np.ndarray, limit: float | int, columns: int = N_COLUMNS) -> np.ndarray:
    """Minimum and maximum of the samples in each column, int8 ``[states, 2, columns]``; +-127 stands for +-limit."""
    n = states.shape[-1]
    columns = min(columns, n)
    starts = np.arange(columns) * n // columns
    values = np.asarray(states, np.float32)
    ends = np.stack([np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)], 1)
    return np.clip(np.rint(ends / limit * 127), -127, 127).astype(np.int8)
