"""Hidden features on a map: one principal component analysis over all runs shown together, and curves per step.

Fitted jointly, so that places in the map mean the same for every run; deterministic, with the sign fixed, so that the
same features give the same map.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from svclib.analysis.trace import Trace
from svclib.conversion import metrics
from svclib.utils.errors import ConversionError


@dataclasses.dataclass(frozen=True)
class Map:
    """Trajectories of one or more runs through one plane.

    Attributes:
        paths: One ``[S, n]`` per run, float64, in the order of its steps.
        explained: Share of the variance along each axis, ``[n]``.
        axes: Unit vectors ``[n, dims]``.
        center: What was subtracted, ``[dims]``.
    """

    paths: tuple[np.ndarray, ...]
    explained: np.ndarray
    axes: np.ndarray
    center: np.ndarray


def joint_map(runs: Sequence[np.ndarray], n: int = 2) -> Map:
    """Principal components of all rows of all runs together.

    The sign of each axis is such that its component of largest size is positive (the first of equals).

    Args:
        runs: Features ``[S, dims]`` of each run, the same tap for all.
        n: Axes wanted; those beyond the rank of the data are zero.

    Returns:
        The axes, the most telling first, and the paths of the runs in their order.

    Raises:
        ConversionError: for runs of different dimensions, no rows or values that are not finite.
    """
    arrays = [np.asarray(run, dtype=np.float64) for run in runs]
    if not arrays or any(a.ndim != 2 or not len(a) for a in arrays) or len({a.shape[1] for a in arrays}) > 1:
        shapes = ", ".join(str(a.shape) for a in arrays) or "none"
        raise ConversionError(
            f"Features of shapes {shapes} have no common map; they need [steps, dims] of the same tap."
        )
    rows = np.concatenate(arrays)
    if not np.isfinite(rows).all():
        raise ConversionError("The features hold values that are not finite; they have no map.")
    center = rows.mean(axis=0)
    centred = rows - center
    if centred.shape[1] > len(centred):  # the smaller of the two symmetric matrices has the same spectrum
        values, left = _largest(centred @ centred.T, n)
        vectors = (centred.T @ left) / np.sqrt(np.maximum(values, 1e-300))
    else:
        values, vectors = _largest(centred.T @ centred, n)
    order = np.argsort(values)[::-1][:n]
    total, top = max(float(np.square(centred).sum()), 1e-300), max(float(values.max()), 0.0)
    axes = np.zeros((n, rows.shape[1]))
    explained = np.zeros(n)
    for i, k in enumerate(order):
        if values[k] > 1e-10 * top and top > 0:
            axis = vectors[:, k] / np.linalg.norm(vectors[:, k])
            axes[i] = axis * np.sign(axis[np.argmax(np.abs(axis) > np.abs(axis).max() * (1 - 1e-9))])
            explained[i] = values[k] / total
    placed = centred @ axes.T
    cuts = np.cumsum([len(a) for a in arrays])[:-1]
    return Map(tuple(np.split(placed, cuts)), explained, axes, center)


def _largest(symmetric: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``n`` largest eigenvalues and their vectors, rising."""
    size = len(symmetric)
    return scipy.linalg.eigh(symmetric, subset_by_index=[max(0, size - n), size - 1])


def map_features(trace: Trace, tap: str = "guess") -> np.ndarray:
    """What to put on a map.

    Args:
        trace: Of a run.
        tap: A name in ``trace.features``; ``guess`` takes the time mean of ``x0_hat``, where that is a mel.

    Returns:
        float64 ``[S, dims]``, a row for each kept step.

    Raises:
        ConversionError: if the trace has no such tap.
    """
    if tap == "guess" and trace.kind == "mel":
        return trace.x0_hat.astype(np.float64).mean(axis=2)
    if tap not in trace.features:
        known = ", ".join(trace.features) or "none"
        raise ConversionError(f"This trace has no features of '{tap}'; it has {known}.")
    return trace.features[tap].astype(np.float64)


def curves(
    trace: Trace, reference_db: np.ndarray | None = None, levels: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, dict]:
    """How each step's clean guess compares with the end, and how noisy the step was; all cheap and defined.

    Args:
        trace: A ``mel`` trace, or any with ``levels``.
        reference_db: ``[mels, frames]`` to compare with as well, such as the singer's own reading, in dB.
        levels: Guesses ``[S, mels, frames]`` and result ``[mels, frames]`` in dB, where they are no mels of the trace
            itself.

    Returns:
        ``{"unit", "meaning", "values": [S]}`` by name.
    """
    guesses, end = levels or (trace.level_db(trace.x0_hat), trace.level_db(trace.result))
    neper = np.log(10) / 20
    frames = f"{end.shape[1]} frames"

    def cepstral(other):
        pairs = [(other.T * neper, guess.T * neper) for guess in guesses]
        return [metrics.mel_cepstral_distance_db(*pair) for pair in pairs]

    found = {
        "distance to the result": {
            "unit": "dB",
            "values": np.abs(guesses - end).mean(axis=(1, 2)),
            "meaning": f"mean absolute difference of log-mels, {frames}, all mels",
        },
        "timbre distance to the result": {
            "unit": "dB",
            "values": np.array(cepstral(end)),
            "meaning": f"mel-cepstral distance without level, 13 cepstra, no time warping, {frames}",
        },
        "signal to noise": {
            "unit": "dB",
            "values": 10 / np.log(10) * np.clip(trace.log_snr, -60, 60),
            "meaning": "alpha squared over sigma squared, from the schedule",
        },
    }
    if reference_db is not None:
        if reference_db.shape != end.shape:
            raise ConversionError(f"The reference has shape {reference_db.shape}; the result has {end.shape}.")
        found["distance to the reference"] = {
            "unit": "dB",
            "values": np.abs(guesses - reference_db).mean(axis=(1, 2)),
            "meaning": f"mean absolute difference of log-mels, {frames}, all mels",
        }
    return found


def decision_times(trace: Trace, tolerance_db: float | int = 3.0) -> np.ndarray:
    """For each bin ``[mels, frames]`` the position of the first step from which on the guess stays this near the end.

    A bin that is never near before the end has the number of steps.
    """
    far = np.abs(trace.level_db(trace.x0_hat) - trace.level_db(trace.result)) >= tolerance_db
    last_far = len(far) - 1 - far[::-1].argmax(axis=0)
    return np.where(far.any(axis=0), last_far + 1, 0)
