"""Comparison of steps and runs as arrays, and tables written as files. Levels are dB of log-mels on one fixed scale."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svclib.analysis import projection
from svclib.analysis.trace import Trace
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError

STATES = {"x0_hat": "the guess", "x_t": "the noisy mel"}
BANDS_HZ = {
    "low (below 500 Hz)": (0.0, 500.0),
    "middle (500 to 3000 Hz)": (500.0, 3000.0),
    "high (above 3000 Hz)": (3000.0, np.inf),
}


# Steps ----------------------------------------------------------------------------------------------------------------


def level_of(trace: Trace, step: int | None, state: str = "x0_hat") -> np.ndarray:
    """Log-mel ``[mels, frames]`` of one kept step in dB; of the result if ``step`` is None."""
    return trace.level_db(trace.result if step is None else _states(trace, state)[step])


def _states(trace: Trace, state: str) -> np.ndarray:
    if state not in STATES:
        raise ConversionError(f"Unknown state '{state}'; choose {' or '.join(STATES)}.")
    return getattr(trace, state)


def step_matrix(trace: Trace, state: str = "x0_hat") -> np.ndarray:
    """Mean absolute difference in dB between the log-mels of all pairs of steps, float64 ``[S, S]``."""
    levels = trace.level_db(_states(trace, state))
    found = np.zeros((len(levels), len(levels)))
    for i in range(1, len(levels)):
        found[i, :i] = np.abs(levels[:i] - levels[i]).mean(axis=(1, 2), dtype=np.float64)
    return found + found.T


def difference_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed difference ``b - a`` of two log-mels in dB, float32; ConversionError if their shapes differ."""
    if a.shape != b.shape:
        raise ConversionError(f"Log-mels of shapes {a.shape} and {b.shape} cannot be subtracted bin by bin.")
    return np.asarray(b, np.float32) - np.asarray(a, np.float32)


@dataclasses.dataclass(frozen=True)
class Decision:
    """When each time-frequency bin settles.

    Attributes:
        step: See ``projection.decision_times``, ``[mels, frames]``.
        settled: Share of the bins of each band that have settled by each step, name -> ``[S]``.
        tolerance_db: The tolerance.
    """

    step: np.ndarray
    settled: dict[str, np.ndarray]
    tolerance_db: float


def decision(trace: Trace, tolerance_db: float | int = 3.0) -> Decision:
    """Decision times of all bins, and the share that has settled by each step in each band."""
    if not tolerance_db > 0:
        raise ConversionError(f"The tolerance is {tolerance_db} dB; it must be above 0.")
    step, hz = projection.decision_times(trace, tolerance_db), trace.contract.centers_hz()
    bands = {name: step[(hz >= low) & (hz < high)] for name, (low, high) in BANDS_HZ.items()}
    steps = range(len(trace))
    settled = {name: np.array([(rows <= i).mean() for i in steps]) for name, rows in bands.items() if rows.size}
    return Decision(step, settled, float(tolerance_db))


def layer_map(trace: Trace, kind: str = "noise", value: str = "change") -> tuple[list[str], np.ndarray]:
    """Hidden features of each layer at each step: ``(names of the taps, float64 [layers, S])``.

    ``kind`` is ``noise`` (input of the block + step) or ``condition`` (its gates with the condition). ``value`` is
    ``level``: RMS over channels and time, or ``change``: ``|F_i - F_(i-1)| / |F_i|`` of mean and spread over time.
    """
    taps = sorted((t for t in trace.features if t.startswith(f"{kind} ")), key=lambda t: int(t.split()[-1]))
    if not taps or value not in ("level", "change"):
        raise ConversionError(f"This run has no '{kind}' features with value '{value}'; run with features=True.")
    rows = []
    for tap in taps:
        f = trace.features[tap].astype(np.float64)
        size = np.linalg.norm(f, axis=1)
        moved = np.linalg.norm(np.diff(f, axis=0, prepend=f[:1]), axis=1)
        rows.append(size / np.sqrt(f.shape[1] / 2) if value == "level" else moved / np.maximum(size, 1e-30))
    return taps, np.stack(rows)


# Runs -----------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RunDistance:
    """Distance of two runs at each step.

    Attributes:
        spectrum_db: Distance of the x0 predictions' mean spectra, dB ``[S]``; defined for any two songs.
        bins_db: Mean absolute difference of the x0 predictions bin by bin, dB ``[S]``; None if the lengths differ.
        state_share: ``|x_t of b - x_t of a| / |x_t of a|``, ``[S]``; None if the lengths differ.
        result_db: ``b - a`` of the results, dB ``[mels, frames]``, or None.
    """

    spectrum_db: np.ndarray
    bins_db: np.ndarray | None
    state_share: np.ndarray | None
    result_db: np.ndarray | None


def run_distance(a: Trace, b: Trace) -> RunDistance:
    """Distance of two ``mel`` traces step by step: the *global* influence of the difference between the runs.

    ConversionError if their diffusion times or mel settings differ.
    """
    if len(a) != len(b) or not np.array_equal(a.t, b.t) or a.contract != b.contract:
        raise ConversionError(
            "The two runs have other diffusion times or mel settings.",
            hint="Make both with the same sampler, number of steps and kind of instrument.",
        )
    one, two = a.level_db(a.x0_hat), b.level_db(b.x0_hat)
    spectrum = np.abs(one.mean(axis=2) - two.mean(axis=2)).mean(axis=1, dtype=np.float64)
    if a.result.shape != b.result.shape:
        return RunDistance(spectrum, None, None, None)
    bins = np.abs(one - two).mean(axis=(1, 2), dtype=np.float64)
    x, y = a.x_t.astype(np.float64), b.x_t.astype(np.float64)
    share = np.sqrt(np.square(y - x).sum(axis=(1, 2)) / np.maximum(np.square(x).sum(axis=(1, 2)), 1e-30))
    return RunDistance(spectrum, bins, share, difference_db(level_of(a, None), level_of(b, None)))


def run_matrix(traces: Sequence[Trace]) -> np.ndarray:
    """Mean absolute difference of all pairs of results in dB, ``[R, R]``; NaN where lengths or mel settings differ."""
    found = np.zeros((len(traces), len(traces)))
    for i, a in enumerate(traces):
        for j, b in enumerate(traces[:i]):
            same = a.result.shape == b.result.shape and a.contract == b.contract
            distance = np.abs(level_of(a, None) - level_of(b, None)).mean(dtype=np.float64) if same else np.nan
            found[i, j] = found[j, i] = distance
    return found


# Files ----------------------------------------------------------------------------------------------------------------


def curve_table(trace: Trace, curves: Mapping[str, Any]) -> tuple[list[str], list[list]]:
    """Headings and rows of curves over all steps: call, diffusion time, log-SNR, then each curve."""
    columns = [x.tolist() for x in (trace.index, trace.t, trace.log_snr)] + [[*map(float, c)] for c in curves.values()]
    return ["call", "diffusion time", "log-SNR", *curves], [list(row) for row in zip(*columns, strict=True)]


def matrix_table(names: Sequence[str], matrix: np.ndarray) -> tuple[list[str], list[list]]:
    """A square matrix with its names as headings and as first column."""
    return ["", *names], [[name, *map(float, row)] for name, row in zip(names, matrix, strict=True)]


def save_csv(folder: str | Path, name: str, head: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Write a table as a CSV file (UTF-8, full precision) under a free name; see :func:`save_bytes`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return save_bytes(folder, name, ".csv", text.getvalue().encode())


def save_bytes(folder: str | Path, name: str, suffix: str, data: bytes) -> Path:
    """Write a file under a safe and free name, such as ``name 2.csv``; returns the path. StorageError on failure."""
    return _commit(folder, name, suffix, lambda part: atomic_store.commit_bytes(part, data))


def save_trace(folder: str | Path, name: str, trace: Trace) -> Path:
    """Write a trace as ``.npz`` under a safe and free name; ``trace.load`` reads it."""
    return _commit(folder, name, ".npz", trace.save)


def _commit(folder, name, suffix, write) -> Path:
    return atomic_store.commit_new(Path(folder) / f"{filesystem.safe_name(name, 'study')}{suffix}", write)
