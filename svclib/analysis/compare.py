"""Steps and runs compared, as arrays: matrices, signed differences, when bins settle, what layers do; tables as files.

Levels are dB of log-mels on one fixed scale, so that a difference of 6 dB is one everywhere.
"""

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


def step_matrix(trace: Trace, state: str = "x0_hat") -> np.ndarray:
    """How far apart the steps of a run are; F0 is no part of it.

    Args:
        trace: A ``mel`` trace of ``S`` kept steps.
        state: ``x0_hat`` (the guesses) or ``x_t`` (the noisy mels).

    Returns:
        Mean absolute difference of their log-mels in dB, float64 ``[S, S]``: symmetric, zero on the diagonal.
    """
    levels = trace.level_db(getattr(trace, _known(state)))
    found = np.zeros((len(levels), len(levels)))
    for i in range(1, len(levels)):
        found[i, :i] = np.abs(levels[:i] - levels[i]).mean(axis=(1, 2), dtype=np.float64)
    return found + found.T


def _known(state: str) -> str:
    if state not in STATES:
        raise ConversionError(f"There is no state '{state}'; choose {' or '.join(STATES)}.")
    return state


def level_of(trace: Trace, step: int | None, state: str = "x0_hat") -> np.ndarray:
    """Log-mel ``[mels, frames]`` of one kept step in dB; of the result with None."""
    return trace.level_db(trace.result if step is None else getattr(trace, _known(state))[step])


def difference_db(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``b - a`` of two log-mels in dB, float32, with its sign: positive where ``b`` is louder.

    Raises :class:`ConversionError` if their shapes differ.
    """
    if a.shape != b.shape:
        raise ConversionError(
            f"Mels and frames {a.shape} and {b.shape} have no difference bin by bin; compare stretches of one length."
        )
    return np.asarray(b, np.float32) - np.asarray(a, np.float32)


@dataclasses.dataclass(frozen=True)
class Decision:
    """When every bin settles.

    Attributes:
        step: Position of the first step from which on the guess stays within the tolerance of the result, ``[mels,
            frames]``; the number of steps where it never does.
        settled: Share of the bins of each band that have settled by each step, name -> ``[S]``; never falls.
        tolerance_db: The tolerance.
    """

    step: np.ndarray
    settled: dict[str, np.ndarray]
    tolerance_db: float


def decision(trace: Trace, tolerance_db: float | int = 3.0) -> Decision:
    """The decision-time map of a run, and how much of each band has settled by each step."""
    if not tolerance_db > 0:
        raise ConversionError(f"The tolerance is {tolerance_db} dB; it must be above 0.")
    step, hz = projection.decision_times(trace, tolerance_db), trace.contract.centers_hz()
    settled = {}
    for name, (low, high) in BANDS_HZ.items():
        rows = step[(hz >= low) & (hz < high)]
        if rows.size:
            settled[name] = np.array([(rows <= i).mean() for i in range(len(trace))])
    return Decision(step, settled, float(tolerance_db))


def layer_map(trace: Trace, kind: str = "noise", value: str = "change") -> tuple[list[str], np.ndarray]:
    """Layers by steps, from pooled hidden features.

    Args:
        trace: A trace that kept hidden features at its ``S`` steps.
        kind: ``noise`` (a block's input + step) or ``condition`` (its gates with the condition).
        value: ``level``: root mean square over channels and time. ``change``: ``|F_i - F_(i-1)| / |F_i|`` of mean and
            spread over time, how much of what a layer says is new at a step; 0 at the first.

    Returns:
        ``(names of the taps, float64 [layers, S])``, the layers in their order in the network.

    Raises:
        ConversionError: if the run kept no such features, or there is no such value.
    """
    taps = sorted((t for t in trace.features if t.startswith(f"{kind} ")), key=lambda t: int(t.split()[-1]))
    if not taps or value not in ("level", "change"):
        raise ConversionError(f"This run kept no features of kind '{kind}' and value '{value}'; sing it with features.")
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
    """How two runs move apart.

    Attributes:
        spectrum_db: Distance of the guesses' mean log-mels over time, step by step, dB ``[S]``; defined for any songs.
        bins_db: Mean absolute difference of the guesses bin by bin, dB ``[S]``; None where the lengths differ.
        state_share: ``|x_t of b - x_t of a| / |x_t of a|``, ``[S]``; None where the lengths differ.
        result_db: ``b - a`` of the results, dB ``[mels, frames]``, or None.
    """

    spectrum_db: np.ndarray
    bins_db: np.ndarray | None
    state_share: np.ndarray | None
    result_db: np.ndarray | None


def run_distance(a: Trace, b: Trace) -> RunDistance:
    """Compare two runs step by step: the *global* influence of whatever differs between them.

    Args:
        a: The run to compare with, a ``mel`` trace.
        b: The other run; differences are ``b - a``.

    Returns:
        The distances of the ``S`` steps; bin by bin only where the songs have one length.

    Raises:
        ConversionError: if their steps are not at the same diffusion times, or their mels differ.
    """
    if len(a) != len(b) or not np.array_equal(a.t, b.t) or a.contract != b.contract:
        raise ConversionError(
            "The two runs walk through other diffusion times or have other mels; sing both with the same sampler, "
            "number of steps and kind of instrument."
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
    """Mean absolute difference of the runs' results in dB, ``[R, R]``, symmetric; NaN where lengths or mels differ."""
    found = np.zeros((len(traces), len(traces)))
    for i, a in enumerate(traces):
        for j, b in enumerate(traces[:i]):
            same = a.result.shape == b.result.shape and a.contract == b.contract
            found[i, j] = found[j, i] = (
                np.abs(level_of(a, None) - level_of(b, None)).mean(dtype=np.float64) if same else np.nan
            )
    return found


# Files ----------------------------------------------------------------------------------------------------------------


def curve_table(trace: Trace, curves: Mapping[str, Any]) -> tuple[list[str], list[list]]:
    """Headings and rows of curves over all steps of a run: call, diffusion time, log-SNR, then each curve."""
    rows = [
        [int(trace.index[i]), float(trace.t[i]), float(trace.log_snr[i]), *(float(c[i]) for c in curves.values())]
        for i in range(len(trace))
    ]
    return ["call", "diffusion time", "log-SNR", *curves], rows


def matrix_table(names: Sequence[str], matrix: np.ndarray) -> tuple[list[str], list[list]]:
    """A square matrix with its names as headings and as first column."""
    return ["", *names], [[name, *map(float, row)] for name, row in zip(names, matrix, strict=True)]


def save_csv(folder: str | Path, name: str, head: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Write a table as ``<name>.csv`` (UTF-8, comma, full precision), beside whatever has that name already.

    Args:
        folder: Where it goes; made if needed.
        name: File name without suffix, as a person wrote it; made safe by ``store.safe_name``.
        head: Headings of the columns.
        rows: Their cells, row by row.

    Returns:
        The path used: ``<name> 2.csv`` where the name was taken.

    Raises:
        StorageError: if it cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return save_bytes(folder, name, ".csv", text.getvalue().encode())


def save_bytes(folder: str | Path, name: str, suffix: str, data: bytes) -> Path:
    """Write a file under a safe name that is not taken."""
    target = Path(folder) / f"{filesystem.safe_name(name, 'study')}{suffix}"
    return atomic_store.commit_new(target, lambda part: atomic_store.commit_bytes(part, data))


def save_trace(folder: str | Path, name: str, trace: Trace) -> Path:
    """Write a trace as ``<name>.npz``, beside whatever has that name already; ``trace.load`` reads it."""
    return atomic_store.commit_new(Path(folder) / f"{filesystem.safe_name(name, 'study')}.npz", trace.save)
