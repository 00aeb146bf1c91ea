"""A waveform trace (DiffWave) as pictures: each state's spectrogram by one contract, and its outline."""

import numpy as np
import torch

from svclib.analysis.trace import Trace
from svclib.audio import mel
from svclib.audio.mel import MelConfig

N_COLUMNS = 600
_N_MELS, _HOP_S = 64, 0.008


def contract(trace: Trace) -> MelConfig:
    """The mel contract that spectrograms of a trace's states are made by; its own for a ``mel`` trace.

    For waveforms: frames of about 8 ms (longer where there would be more than 800), windows of four frames, 64 Slaney
    mels up to half the sample rate, log magnitude with a floor of 1e-5.
    """
    if trace.kind == "mel":
        return trace.contract
    rate = trace.sample_rate_hz
    hop = 1 << max(4, round(np.log2(max(rate * _HOP_S, len(trace.result) / 800))))
    return MelConfig(rate, 4 * hop, 4 * hop, hop, _N_MELS, 0.0, rate / 2)


def levels_db(trace: Trace, states: np.ndarray) -> np.ndarray:
    """States as levels ``[..., mels, frames]`` in dB by :func:`contract`; 20 log10 of the mel magnitude."""
    if trace.kind == "mel":
        return trace.level_db(states)
    rows = torch.from_numpy(np.asarray(states, np.float32).reshape(-1, states.shape[-1]))
    level = mel.log_mel(rows, contract(trace)).transpose(1, 2).numpy() * np.float32(20 / np.log(10))
    return level.reshape(*states.shape[:-1], *level.shape[1:])


def n_frames(trace: Trace) -> int:
    """Frames of the pictures."""
    size = trace.result.shape[-1]
    return size if trace.kind == "mel" else size // contract(trace).hop_samples


def outline(states: np.ndarray, limit: float | int, columns: int = N_COLUMNS) -> np.ndarray:
    """Lowest and highest sample in each of many columns, int8 ``[states, 2, columns]``; +-127 stands for +-limit."""
    n = states.shape[-1]
    columns = min(columns, n)
    starts = np.arange(columns) * n // columns
    values = np.asarray(states, np.float32)
    ends = np.stack([np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)], 1)
    return np.clip(np.rint(ends / limit * 127), -127, 127).astype(np.int8)
