"""Which steps of a walk to show, when all are too many: interval clustering center sampling, for any number of steps.

SingVisio (Xue et al. 2024) cuts the diffusion steps into equal intervals, takes the k-means centre of each interval's
hidden features with one cluster, which is their mean, and shows the step nearest to it: a step that is out of the
ordinary does not get chosen. Here the intervals are exact for every number of steps, the first and the last step are
there unless one asks otherwise, and the intervals may also be equal in log-SNR or in how far the features move.
"""

import numpy as np

from svclib.utils.errors import ConversionError

SPACINGS = ("index", "logsnr", "change")


def intervals(features: np.ndarray, k: int, spacing: str = "index", log_snr: np.ndarray | None = None) -> np.ndarray:
    """Cut ``N`` rows into intervals.

    Args:
        features: ``[N, dims]``, one row per step.
        k: Intervals wanted, ``1 .. N``.
        spacing: ``index``: equal numbers of rows (``edge_i = i N // k``, integers only). ``logsnr``: equal widths of
            ``log_snr``. ``change``: equal shares of the path ``sum |F[j + 1] - F[j]|``. With the last two an
            interval without a row is merged with the next, so there may be fewer than ``k``.
        log_snr: ``[N]``, strictly rising or falling; needed for ``logsnr``.

    Returns:
        Whole numbers from 0 to ``N``, one more than intervals: interval ``i`` is ``edges[i]:edges[i + 1]``.
    """
    features = _checked(features, k, spacing)
    n = len(features)
    if spacing == "index" or n == 1:
        return np.arange(k + 1) * n // k
    if spacing == "logsnr":
        place = _monotone(log_snr, n)
    else:
        moved = np.linalg.norm(np.diff(features, axis=0), axis=1)
        place = np.concatenate([[0.0], np.cumsum(moved)])
        if place[-1] == 0:  # nothing moves: all shares are equal
            place = np.arange(n, dtype=float)
    share = (place - place[0]) / (place[-1] - place[0]) * k
    owner = np.minimum(np.floor(share * (1 + 1e-12)), k - 1)  # the interval of every row, not falling
    return np.concatenate([[0], np.flatnonzero(np.diff(owner)) + 1, [n]]).astype(int)


def select_steps(
    features: np.ndarray, k: int, ends: bool = True, spacing: str = "index", log_snr: np.ndarray | None = None
) -> np.ndarray:
    """Choose at most ``k`` of ``N`` steps, one per interval: the row nearest to the interval's mean.

    Args:
        features: ``[N, dims]``, one row per step; pooling over time is the caller's. For two runs shown side by side
            ``concatenate([a, b], axis=1)``: the choice then serves both.
        k: Steps wanted, ``1 .. N``.
        ends: The first and the last interval give the first and the last step instead.
        spacing: One of ``SPACINGS``, see :func:`intervals`.
        log_snr: ``[N]``, for ``logsnr``.

    Returns:
        Rising unique indices: ``k`` of them with ``index``, else ``k`` or fewer. Ties go to the lower index.

    Raises:
        ConversionError: for ``k`` outside ``1 .. N``, ``ends`` with one step of several, values that are not finite, or
            features of another shape.
    """
    features = _checked(features, k, spacing)
    n = len(features)
    if ends and k == 1 and n > 1:
        raise ConversionError("One step cannot be both the first and the last; take ends=False, or at least 2 steps.")
    edges = intervals(features, k, spacing, log_snr)
    if ends and len(edges) == 2 and n > 1:
        return np.array([0, n - 1])
    centred = features - features.mean(axis=0)  # far from the origin squares would lose digits
    chosen = np.empty(len(edges) - 1, dtype=int)
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        rows = centred[low:high]
        if high - low < 3:  # of two rows both are equally far from their mean, whatever rounding says
            chosen[i] = low
            continue
        away = rows - rows.mean(axis=0)
        chosen[i] = low + int(np.argmin(np.einsum("nd,nd->n", away, away)))
    if ends:
        chosen[0], chosen[-1] = 0, n - 1
    return chosen


def _checked(features, k, spacing) -> np.ndarray:
    features = np.asarray(features)
    if features.ndim != 2 or not len(features):
        raise ConversionError(
            f"Features of shape {features.shape} arrived; one row per step is expected, [N, dims]: pool them first."
        )
    if spacing not in SPACINGS:
        raise ConversionError(f"There is no spacing '{spacing}'; choose one of {', '.join(SPACINGS)}.")
    if not 1 <= k <= len(features):
        raise ConversionError(f"{k} of {len(features)} steps were asked for; it must be 1 to {len(features)}.")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ConversionError("The features hold values that are not finite (NaN or infinity); nothing can be chosen.")
    return features


def _monotone(log_snr, n: int) -> np.ndarray:
    if log_snr is None:
        raise ConversionError("Spacing by log-SNR needs log_snr, one value per step.")
    place = np.asarray(log_snr, dtype=np.float64)
    if place.shape != (n,):
        raise ConversionError(f"log_snr has shape {place.shape}; one value for each of the {n} steps is expected.")
    moves = np.diff(place)
    if not ((moves > 0).all() or (moves < 0).all()):
        raise ConversionError("log_snr must rise, or fall, at every step.")
    return place if moves[0] > 0 else -place
