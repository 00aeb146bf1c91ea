"""Principal component maps of hidden features, and curves over the steps of a trace."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from svclib.analysis.trace import Trace
from svclib.conversion import metrics
from svclib.utils.errors import ConversionError

_DECIBELS_PER_NEPER = 20 / np.log(10)


@dataclasses.dataclass(frozen=True)
class Map:
    """Trajectories in one common plane.

    Attributes:
        paths: ``[S, n]`` of each run, float64.
        explained: Share of the variance along each axis, ``[n]``.
        axes: Unit vectors ``[n, dims]``.
        center: The mean, ``[dims]``.
    """

    paths: tuple[np.ndarray, ...]
    explained: np.ndarray
    axes: np.ndarray
    center: np.ndarray


def joint_map(runs: Sequence[np.ndarray], n: int = 2) -> Map:
    """Principal component analysis of all rows of all runs together; deterministic, including the signs.

    Args:
        runs: Features ``[S, dims]`` of each run, of the same tap.
        n: Number of axes; those beyond the rank of the data are zero.

    Returns:
        The axes, in order of their variance, each with its largest component positive, and the projected runs.

    Raises:
        ConversionError: if there are no rows, dimensions differ, or values are not finite.
    """
    from sklearn.decomposition import PCA

    arrays = [np.asarray(run, dtype=np.float64) for run in runs]
    if not arrays or any(a.ndim != 2 or not len(a) for a in arrays) or len({a.shape[1] for a in arrays}) > 1:
        shapes = ", ".join(str(a.shape) for a in arrays) or "none"
        raise ConversionError(f"Features of shapes {shapes} have no common map; expected [steps, dims] of one tap.")
    rows = np.concatenate(arrays)
    if not np.isfinite(rows).all():
        raise ConversionError("The features hold values that are not finite; they have no map.")
    axes, explained = np.zeros((n, rows.shape[1])), np.zeros(n)
    center = rows.mean(axis=0)
    if np.ptp(rows, axis=0).any():
        solver = "covariance_eigh" if len(rows) > rows.shape[1] else "full"
        pca = PCA(min(n, *rows.shape), svd_solver=solver).fit(rows - center)
        found = pca.explained_variance_ratio_ > 1e-10  # beyond the rank of the data there is only rounding
        axes[: len(found)][found] = pca.components_[found]
        explained[: len(found)][found] = pca.explained_variance_ratio_[found]
    cuts = np.cumsum([len(a) for a in arrays])[:-1]
    return Map(tuple(np.split((rows - center) @ axes.T, cuts)), explained, axes, center)


def map_features(trace: Trace, tap: str = "guess") -> np.ndarray:
    """Features of a trace for a map, float64 ``[S, dims]``: a tap, or ``guess``, the mean over time of ``x0_hat``."""
    if tap == "guess" and trace.kind == "mel":
        return trace.x0_hat.astype(np.float64).mean(axis=2)
    if tap not in trace.features:
        known = ", ".join(trace.features) or "none"
        raise ConversionError(f"This trace has no features of '{tap}'; it has {known}.")
    return trace.features[tap].astype(np.float64)


def curves(
    trace: Trace, reference_db: np.ndarray | None = None, levels: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, dict]:
    """Distances of each x0 prediction to the result, and the signal-to-noise ratio.

    ``reference_db`` ``[mels, frames]`` is compared with too. ``levels`` are x0 predictions ``[S, mels, frames]`` and
    result ``[mels, frames]`` in dB, by default those of the trace. Returns ``{"unit", "meaning", "values"}`` by name.
    """
    guesses, end = levels or (trace.level_db(trace.x0_hat), trace.level_db(trace.result))
    if reference_db is not None and reference_db.shape != end.shape:
        raise ConversionError(f"The reference has shape {reference_db.shape}; the result has {end.shape}.")
    frames = f"{end.shape[1]} frames"

    def curve(values, meaning: str) -> dict:
        return {"unit": "dB", "values": np.asarray(values), "meaning": meaning}

    def distance(other: np.ndarray) -> dict:
        values = np.abs(guesses - other).mean(axis=(1, 2))
        return curve(values, f"mean absolute difference of log-mels, {frames}, all mels")

    def nepers(level_db: np.ndarray) -> np.ndarray:
        return level_db.T * (1 / _DECIBELS_PER_NEPER)

    cepstral = [metrics.mcd_db(nepers(end), nepers(guess)) for guess in guesses]
    found = {
        "distance to the result": distance(end),
        "timbre distance to the result": curve(
            cepstral, f"mel-cepstral distance without level, 13 cepstra, no time warping, {frames}"
        ),
        "signal to noise": curve(
            10 / np.log(10) * np.clip(trace.log_snr, -60, 60), "alpha squared over sigma squared, from the schedule"
        ),
    }
    return found if reference_db is None else found | {"distance to the reference": distance(reference_db)}


def decision_times(trace: Trace, tolerance_db: float | int = 3.0) -> np.ndarray:
    """For each bin ``[mels, frames]`` the first step from which on the x0 prediction stays near the result.

    The number of steps for a bin that is not within the tolerance at the last step.
    """
    far = np.abs(trace.level_db(trace.x0_hat) - trace.level_db(trace.result)) >= tolerance_db
    last_far = len(far) - 1 - far[::-1].argmax(axis=0)
    return np.where(far.any(axis=0), last_far + 1, 0)
