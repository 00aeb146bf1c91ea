"""Distance of a set of made sounds from a set of real ones: the measures of DiffWave's digits.

After Kong et al. 2021 (https://arxiv.org/abs/2009.09761, appendix D). All of them hang on the classifier
(``classifier``): values of another one, the paper's tables among them, do not compare. Most hang on the number of clips
too, so real and made sets have equal size, the size stands beside every value, and two disjoint sets of real clips show
what the best obtainable value of that size is.

    judge, _ = classifier.load("digits.safetensors")
    real = classifier.classify(judge, classifier.clips("digits", "validation").audio, 8000)
    print(generation.table({"model": generation.measure(real, classifier.classify(judge, sounds, 8000))}))
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from lib.classifier import Outputs, accuracy
from svclib.utils.errors import ConversionError, ModelError

N_BINS, SIGNIFICANT_Z = 50, 1.959964  # two-sided 0.05
LEAST_OF_CLASS = 200
COLUMNS = {
    "clips": "clips",
    "accuracy": "accuracy",
    "fid": "FID",
    "fid_class": "FID of classes",
    "is": "IS",
    "mis": "mIS",
    "am": "AM",
    "ndb_share": "NDB/K",
}
Probabilities = Float[np.ndarray, "_ labels"]


# Measures of classifications ------------------------------------------------------------------------------------------


def frechet_distance(a: Float[np.ndarray, "_ _"], b: Float[np.ndarray, "_ _"]) -> float:
    """Frechet distance of the Gaussians with the means and covariances of two sets (Dowson and Landau 1982).

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``; on a network's features it is FID (Heusel et al. 2017).

    It has the square of the features' unit, and means nothing without the name of the features. It is biased: two sets
    from one source differ by the more the smaller they are, so compare only values of equally many examples.

    Args:
        a: ``[examples, features]``, at least two examples; computed in float64, covariances divided by n - 1.
        b: The other set; it may have another number of examples.

    Returns:
        The distance, 0 or more.

    Raises:
        ModelError: if the sets have other numbers of features, too few examples, or values that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ModelError(
            f"sets of shape {a.shape} and {b.shape} have no Frechet distance; give at least two examples each of "
            "equally many finite numbers."
        )
    # S = R'R, so that the eigenvalues of (S_a S_b)^(1/2) are the singular values of R_a R_b'
    roots: list[np.ndarray] = [np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r") for x in (a, b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    return max(0.0, float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2.0 * shared))


def inception_score(p: Probabilities) -> float:
    """IS (Salimans et al. 2016): ``exp E_x KL(p(x) || E p)``.

    1 where every clip is classified alike, the number of labels where each clip is one label for certain and all are
    equally frequent. Every clip of a label may be the same: see :func:`modified_inception_score`.
    """
    p = _checked(p)
    return float(np.exp(_entropy(p.mean(axis=0)) - _entropy(p).mean()))


def modified_inception_score(p: Probabilities) -> float:
    """mIS (Gurumurthy et al. 2017): ``exp E_{x, x'} KL(p(x) || p(x'))`` over all n^2 ordered pairs of clips.

    It also rewards different certainty within a label. Infinite where a clip excludes with certainty what another is.
    """
    p = _checked(p)
    with np.errstate(divide="ignore"):
        mean_log = np.log(p).mean(axis=0)
    mean = p.mean(axis=0)
    cross = -np.sum(mean[mean > 0] * mean_log[mean > 0])
    with np.errstate(over="ignore"):
        return float(np.exp(cross - _entropy(p).mean()))


def am_score(real: Probabilities, made: Probabilities) -> float:
    """AM (Zhou et al. 2018): ``KL(E_real p || E_made p) + E_made H(p)`` in nats; 0 is best.

    The first part is the balance of the labels against the real ones, the second how unsure the classifier is.
    """
    real, made = _checked(real), _checked(made)
    a, b = real.mean(axis=0), made.mean(axis=0)
    with np.errstate(divide="ignore"):
        balance = np.sum(a[a > 0] * (np.log(a[a > 0]) - np.log(b[a > 0])))
    return float(balance + _entropy(made).mean())


def different_bins(
    real: Float[np.ndarray, "_ dims"], made: Float[np.ndarray, "_ dims"], n_bins: int = N_BINS, seed: int = 0
) -> int:
    """NDB (Richardson and Weiss 2018): in how many bins real and made clips differ in number; 0 is best.

    Bins are the cells of k-means over the real features, started at ``n_bins`` of them drawn by ``seed``. A bin differs
    where a two-proportion z-test with pooled variance finds so at 0.05, which happens by chance in about 5 % of them.

    Args:
        real: Features of real clips.
        made: Features of made clips, by the same classifier.
        n_bins: From 2 to the number of real clips.
        seed: Draws the starts of the bins.

    Returns:
        A number from 0 to ``n_bins``.

    Raises:
        ConversionError: for fewer real clips than bins, fewer than 2 bins, or no made clip.
    """
    from scipy.cluster.vq import kmeans2, vq

    real, made = np.asarray(real, np.float64), np.asarray(made, np.float64)
    if not 2 <= n_bins <= len(real) or not len(made):
        raise ConversionError(
            f"{len(real)} real and {len(made)} made clips cannot be counted in {n_bins} bins; take "
            "more clips or fewer bins, at least 2."
        )
    start = real[np.random.default_rng(seed).choice(len(real), n_bins, replace=False)]
    centres, _ = kmeans2(real, start, iter=100, minit="matrix")
    counts = [np.bincount(vq(x, centres)[0], minlength=n_bins) for x in (real, made)]
    return int(np.sum(np.abs(two_proportions_z(counts[0], len(real), counts[1], len(made))) > SIGNIFICANT_Z))


def two_proportions_z(count_a: np.ndarray, n_a: int, count_b: np.ndarray, n_b: int) -> np.ndarray:
    """z of the difference of two shares, ``count_a / n_a`` and ``count_b / n_b``, with pooled variance; 0 where both
    counts are 0 or both are all.
    """
    pooled = (count_a + count_b) / (n_a + n_b)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / n_a + 1 / n_b))
    difference = count_a / n_a - count_b / n_b
    return np.divide(difference, deviation, out=np.zeros_like(difference), where=deviation > 0)


def fid_of_classes(
    real: Outputs, real_labels: Sequence[str], made: Outputs, made_labels: Sequence[str]
) -> dict[str, float]:
    """Frechet distance of the features of each label: made clips asked for it against real clips of it.

    Args:
        real: From ``classifier.classify``.
        real_labels: What each real clip is.
        made: By the same classifier.
        made_labels: What each made clip was asked for.

    Returns:
        The distances by label, sorted; labels that no made clip was asked for are left out.

    Raises:
        ConversionError: for a label of fewer than 200 clips on either side, or of unequal numbers of them.
    """
    real_of, made_of = (
        {k: [i for i, x in enumerate(labels) if x == k] for k in set(labels)} for labels in (real_labels, made_labels)
    )
    found = {}
    for label in sorted(made_of):
        a, b = real_of.get(label, []), made_of[label]
        if len(a) != len(b) or len(a) < LEAST_OF_CLASS:
            raise ConversionError(
                f"The label '{label}' has {len(a)} real and {len(b)} made clips; the FID of a class needs equally "
                f"many, at least {LEAST_OF_CLASS}, since with fewer it measures their number."
            )
        found[label] = frechet_distance(real.features[a], made.features[b])
    return found


# All of them ----------------------------------------------------------------------------------------------------------


def measure(
    real: Outputs,
    made: Outputs,
    asked: Sequence[str] | None = None,
    real_labels: Sequence[str] | None = None,
    n_bins: int = N_BINS,
    seed: int = 0,
) -> dict:
    """All measures of made clips against equally many real ones.

    Args:
        real: From ``classifier.classify``.
        made: By the same classifier.
        asked: The label that each made clip was asked for.
        real_labels: What each real clip is: with ``asked``, and 200 clips of every label, also the FID of classes.
        n_bins: Of NDB, see :func:`different_bins`.
        seed: Of its bins.

    Returns:
        ``clips`` (in each set), ``fid``, ``is``, ``mis``, ``am``, ``ndb``, ``bins``, ``ndb_share``; ``accuracy`` with
        ``asked``, else None; ``fid_class`` (mean), ``fid_class_std`` and ``fid_classes``, or None where there are too
        few clips of a label.

    Raises:
        ConversionError: if the sets differ in size or in the classifier's labels.
    """
    if len(real) != len(made) or real.names != made.names:
        raise ConversionError(
            f"{len(real)} real and {len(made)} made clips, classified with {len(real.names)} and "
            f"{len(made.names)} labels, do not compare; take equally many (generation.balanced), and one classifier."
        )
    classes = None
    if asked is not None and real_labels is not None:
        counts = [list(x).count(label) for x in (asked, real_labels) for label in set(asked)]
        if min(counts) == max(counts) >= LEAST_OF_CLASS:
            classes = fid_of_classes(real, real_labels, made, asked)
    ndb = different_bins(real.features, made.features, n_bins, seed)
    return {
        "clips": len(made),
        "accuracy": None if asked is None else accuracy(made, asked),
        "fid": frechet_distance(real.features, made.features),
        "fid_class": None if classes is None else float(np.mean(list(classes.values()))),
        "fid_class_std": None if classes is None else float(np.std(list(classes.values()))),
        "fid_classes": classes,
        "is": inception_score(made.probabilities),
        "mis": modified_inception_score(made.probabilities),
        "am": am_score(real.probabilities, made.probabilities),
        "ndb": ndb,
        "bins": n_bins,
        "ndb_share": ndb / n_bins,
    }


def balanced(labels: Sequence[str], per_label: int, parts: int = 1, seed: int = 0) -> list[np.ndarray]:
    """Draw equally many clips of each label, several times over without using one twice.

    Args:
        labels: What each clip is.
        per_label: Clips of each label in each part, at least 1.
        parts: How many disjoint sets to draw.
        seed: Of the draw.

    Returns:
        Rising positions in ``labels``, one array for each part.

    Raises:
        ConversionError: if a label has too few clips, or none are asked for.
    """
    generator = np.random.default_rng(seed)
    found: list[list[int]] = [[] for _ in range(parts)]
    for label in sorted(set(labels)):
        of_label = generator.permutation([i for i, x in enumerate(labels) if x == label])
        if per_label < 1 or len(of_label) < per_label * parts:
            raise ConversionError(
                f"The label '{label}' has {len(of_label)} clips; {parts} x {per_label} of it were "
                "asked for. Ask for at least one, and no more than there are."
            )
        for part in range(parts):
            found[part] += of_label[part * per_label : (part + 1) * per_label].tolist()
    return [np.array(sorted(part)) for part in found]


def table(rows: Mapping[str, Mapping]) -> str:
    """Named results of :func:`measure` as a Markdown table, one row each, a dash where nothing was measured."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = [str(row["clips"]), *(_cell(name, row) for name in list(COLUMNS)[1:])]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, row: Mapping) -> str:
    value = row[name]
    if value is None:
        return "-"
    if name == "accuracy":
        return f"{100 * value:.1f} %"
    if name == "ndb_share":
        return f"{value:.2f} (K = {row['bins']})"
    return f"{value:.3g} ± {row['fid_class_std']:.2g}" if name == "fid_class" else f"{value:.4g}"


def _entropy(p: np.ndarray) -> np.ndarray | np.floating:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1)


def _checked(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, np.float64)
    if not len(p) or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-6):
        raise ConversionError(
            f"Probabilities of shape {p.shape} were given; expected at least one row, each of "
            "numbers from 0 that sum to 1."
        )
    return p
