"""Steps and runs compared in dB of log-mels: distances, metrics, decision times, maps, and tables of them as files."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svclib.analysis.trace import Trace
from svclib.audio.mel import DECIBELS_PER_NEPER
from svclib.conversion import metrics
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError

STATES = {"x0_hat": "x0 prediction", "x_t": "noisy mel x_t"}
BANDS_HZ = {"low (below 500 Hz)": (0, 500), "middle (500 to 3000 Hz)": (500, 3000), "high (above 3000 Hz)": (3000, 1e9)}


class Metric(NamedTuple):
    """One curve over the steps, with its definition (``meaning``) and what it is measured against (``reference``).

    ``positions [P]`` of kept steps, where the number of steps stands for the result; ``values [P]``, NaN where
    undefined; ``frames [P]``, the number of frames behind each.
    """

    name: str
    unit: str
    meaning: str
    reference: str
    positions: np.ndarray
    values: np.ndarray
    frames: np.ndarray


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray | float:
    """Mean absolute difference over ``[..., mels, frames]``, float64 ``[...]``."""
    return np.abs(a - b).mean(axis=(-2, -1), dtype=np.float64)


def mel_metrics(trace: Trace, source_db: np.ndarray | None = None, warped: bool = True) -> list[Metric]:
    """Log-mel and mel-cepstral distances of every x0 prediction to the result, also along the path of time warping
    (``warped``, slow), its distance to ``source_db [mels, frames]`` if given, and the signal-to-noise ratio."""
    guesses, end = trace.level_db(trace.x0_hat), trace.level_db(trace.result)
    n, frames = len(trace), f"{end.shape[1]} frames"

    def metric(name: str, meaning: str, reference: str, values) -> Metric:
        return Metric(name, "dB", meaning, reference, np.arange(n), np.asarray(values), np.full(n, end.shape[1]))

    def cepstral(**options) -> list[float]:
        a, *others = (level_db.T / DECIBELS_PER_NEPER for level_db in (end, *guesses))
        return [metrics.mcd_db(a, b, **options) for b in others]

    own, timbre = "this run's result", "mel-cepstral distortion (timbre) without level, 13 cepstra"
    apart = f"mean absolute difference of log-mels, {frames}, all mels"
    snr, snr_db = "SNR, alpha squared over sigma squared", 10 / np.log(10) * np.clip(trace.log_snr, -60, 60)
    found = [
        metric("distance to the result", apart, own, distance(guesses, end)),
        metric("MCD to the result", f"{timbre}, no time warping, {frames}", own, cepstral()),
        metric("signal to noise", f"{snr}, of the noise schedule", "none: analytic", snr_db),
    ]
    if source_db is not None:
        found.append(metric("distance to the source", apart, "the source", distance(guesses, source_db)))
    if warped:
        meaning = f"{timbre}, along the path of time warping, {frames}"
        found.append(metric("MCD to the result, time-warped", meaning, own, cepstral(warped=True)))
    return found


def level_of(trace: Trace, step: int | None = None, state: str = "x0_hat") -> np.ndarray:
    """Log-mel ``[mels, frames]`` of one kept step in dB, a state of ``STATES``; of the result for None and beyond."""
    return trace.level_db(trace.result if step is None or step >= len(trace) else getattr(trace, state)[step])


def step_matrix(trace: Trace, state: str = "x0_hat") -> np.ndarray:
    """Distances in dB between the log-mels of all pairs of steps, float64 ``[S, S]``."""
    levels = trace.level_db(getattr(trace, state))
    return np.stack([distance(levels, level) for level in levels])


def decision(trace: Trace, tolerance_db: float | int = 3.0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """For each bin ``[mels, frames]`` the first step from which on the x0 prediction stays near the result.

    ``S`` if it never does. Also the share of the bins of each band that have settled by each step, name -> ``[S]``.
    """
    far = np.abs(trace.level_db(trace.x0_hat) - trace.level_db(trace.result)) >= tolerance_db
    step = np.where(far.any(axis=0), len(far) - far[::-1].argmax(axis=0), 0)
    steps, hz = np.arange(len(trace))[:, None, None], trace.contract.centers_hz()
    bands = {name: step[(hz >= low) & (hz < high)] for name, (low, high) in BANDS_HZ.items()}
    return step, {name: (rows <= steps).mean(axis=(1, 2)) for name, rows in bands.items() if rows.size}


def layer_map(trace: Trace, kind: str = "noise", value: str = "change") -> tuple[list[str], np.ndarray]:
    """Hidden features of each layer at each step: ``(names of the taps, float64 [layers, S])``.

    ``kind``: ``noise``, the input of the block + step, or ``condition``, its gates with the condition. ``value``:
    ``level``, the RMS over channels and time, or ``change``: ``|F_i - F_(i-1)| / |F_i|`` of mean and spread over time.
    """
    taps = sorted((t for t in trace.features if t.startswith(f"{kind} ")), key=lambda t: int(t.split()[-1]))
    if not taps:
        raise ConversionError(f"This run has no '{kind}' features; run with features=True.")
    f = np.stack([trace.features[tap] for tap in taps]).astype(np.float64)
    size = np.linalg.norm(f, axis=2)
    if value == "level":
        return taps, size / np.sqrt(f.shape[2] / 2)
    return taps, np.linalg.norm(np.diff(f, axis=1, prepend=f[:, :1]), axis=2) / np.maximum(size, 1e-30)


class RunDistance(NamedTuple):
    """Distance of two runs at each step ``[S]``: of the x0 predictions' mean spectra, defined for any two songs.

    Where the lengths are equal also of the x0 predictions bin by bin, and ``|x_t of b - x_t of a| / |x_t of a|``.
    """

    spectrum_db: np.ndarray
    bins_db: np.ndarray | None = None
    state_share: np.ndarray | None = None


def run_distance(a: Trace, b: Trace) -> RunDistance:
    """Distance of two ``mel`` traces step by step: the *global* influence of the difference between the runs."""
    if not np.array_equal(a.t, b.t) or a.contract != b.contract:
        raise ConversionError(
            "The two runs have other diffusion times or mel settings.",
            hint="Make both with the same sampler, number of steps and kind of instrument.",
        )
    one, two = a.level_db(a.x0_hat), b.level_db(b.x0_hat)
    spectrum = distance(one.mean(axis=2, keepdims=True), two.mean(axis=2, keepdims=True))
    if a.result.shape != b.result.shape:
        return RunDistance(spectrum)
    x, y = (trace.x_t.astype(np.float64).reshape(len(trace), -1) for trace in (a, b))
    share = np.linalg.norm(y - x, axis=1) / np.maximum(np.linalg.norm(x, axis=1), 1e-15)
    return RunDistance(spectrum, distance(one, two), share)


def run_matrix(traces: Sequence[Trace]) -> np.ndarray:
    """Distances of all pairs of results in dB, ``[R, R]``; NaN where lengths or mel settings differ."""
    ends = [(trace.contract, level_of(trace)) for trace in traces]
    rows = [[distance(x, y) if (a, x.shape) == (b, y.shape) else np.nan for b, y in ends] for a, x in ends]
    return np.array(rows, float)


def joint_map(runs: Sequence[np.ndarray], n: int = 2) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Principal component analysis of all rows of all runs together: paths of the runs, variances, axes.

    ``runs`` are features ``[S, dims]``, paths ``[S, n]``. The axes ``[n, dims]`` are in order of their share of the
    variance, each with its largest component positive; those beyond the rank of the data are zero.
    """
    from sklearn.decomposition import PCA

    rows = np.concatenate(runs).astype(np.float64)
    axes, explained = np.zeros((n, rows.shape[1])), np.zeros(n)
    moving = np.ptp(rows, axis=0).any()
    rows -= rows.mean(axis=0)
    if moving:
        solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
        pca = PCA(min(n, *rows.shape), svd_solver=solver).fit(rows)
        found = np.flatnonzero(pca.explained_variance_ratio_ > 1e-10)  # beyond the rank there is only rounding
        axes[found], explained[found] = pca.components_[found], pca.explained_variance_ratio_[found]
    return np.split(rows @ axes.T, np.cumsum([len(run) for run in runs])[:-1]), explained, axes


def map_features(trace: Trace) -> np.ndarray:
    """Features of a trace for a map, float64 ``[S, mels]``: the level of each x0 prediction, mean over time."""
    return trace.level_db(trace.x0_hat).mean(axis=2, dtype=np.float64)


def metric_table(trace: Trace, found: Sequence[Metric]) -> tuple[list[str], list[list]]:
    """Headings and rows of a table: position, diffusion time, log-SNR, then each metric and its number of frames."""
    positions = sorted({int(p) for metric in found for p in metric.positions})
    columns = {"diffusion time": [*trace.t.tolist(), "result"], "log-SNR": [*trace.log_snr.tolist(), ""]}
    columns = {name: [values[i] for i in positions] for name, values in columns.items()}
    for metric in found:
        title = f"{metric.name} ({metric.unit}; against {metric.reference})"
        for name, values in ((title, metric.values), (f"{metric.name}: frames", metric.frames)):
            measured = dict(zip(metric.positions.tolist(), values.tolist(), strict=True))
            columns[name] = [measured.get(i, "") for i in positions]
    return ["position", *columns], [list(row) for row in zip(positions, *columns.values(), strict=True)]


def curve_table(trace: Trace, curves: Mapping[str, Sequence | np.ndarray]) -> tuple[list[str], list[list]]:
    """Headings and rows of curves over all steps: call, diffusion time, log-SNR, then each curve."""
    columns = [np.asarray(x).tolist() for x in (trace.index, trace.t, trace.log_snr, *curves.values())]
    return ["call", "diffusion time", "log-SNR", *curves], [list(row) for row in zip(*columns, strict=True)]


def matrix_table(names: Sequence[str], matrix: np.ndarray) -> tuple[list[str], list[list]]:
    """A square matrix with its names as headings and as first column."""
    return ["", *names], [[name, *map(float, row)] for name, row in zip(names, matrix, strict=True)]


def save_csv(folder: str | Path, name: str, head: Sequence[str], rows: Sequence[Sequence]) -> Path:
    """Write a table as a CSV file (UTF-8, full precision); see :func:`save_file`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return save_file(folder, name, ".csv", lambda part: part.write_bytes(text.getvalue().encode()))


def save_file(folder: str | Path, name: str, suffix: str, write: Callable[[Path], Any]) -> Path:
    """Commit what ``write`` writes under a safe and free name, such as ``name 2.csv``; StorageError on failure."""
    return atomic_store.commit_new(Path(folder) / f"{filesystem.safe_name(name, 'study')}{suffix}", write)
