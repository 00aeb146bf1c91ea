"""Comparing sound files: converted songs against their references, pair by pair."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from svclib import audio, features, metrics

SETTINGS = features.FeatureSettings()
MEL = features.MelContract(
    sample_rate_hz=16000, n_fft=1024, window_samples=1024, hop_samples=256, n_mels=80, fmin_hz=40.0, fmax_hz=8000.0
)


class EvaluationError(ValueError):
    """Files that cannot be compared; the message names them and what to do."""


def pairs(reference: str | Path, converted: str | Path) -> list[tuple[Path, Path]]:
    """Which file is compared with which: two files, or the files of two folders by name.

    A converted file belongs to the reference of the same name (suffix aside), or to the one whose name it begins with,
    followed by a space, ``-`` or ``_`` (``song - voice.wav`` belongs to ``song.wav``); the longest name wins.

    Raises:
        EvaluationError: if nothing fits together.
    """
    reference, converted = Path(reference), Path(converted)
    for path in (reference, converted):
        if not path.exists():
            raise EvaluationError(f"There is nothing at '{path}'.")
    if reference.is_file() and converted.is_file():
        return [(reference, converted)]
    ours = [reference] if reference.is_file() else audio.find(reference)[0]
    theirs = [converted] if converted.is_file() else audio.find(converted)[0]
    found = []
    for path in theirs:
        fits = [r for r in ours if path.stem == r.stem or path.stem.startswith(tuple(r.stem + s for s in " -_"))]
        if fits:
            found.append((max(fits, key=lambda r: len(r.stem)), path))
    if not found:
        raise EvaluationError(
            f"No file in '{converted}' is named like one in '{reference}'; name them alike, or give two files."
        )
    return found


def compare(reference: str | Path, converted: str | Path, progress: Callable[[float, str], None] | None = None) -> dict:
    """Measure converted songs against their references.

    Both are measured alike on one grid (16 kHz, 4 ms); where their lengths differ, the common part counts.

    Returns:
        ``pairs``: a list of dicts with ``reference``, ``converted``, ``difference_s`` (of the lengths) and the figures
        of :func:`measure`; ``mean``: the mean of every figure over the pairs that have it.
    """
    wanted, rows = pairs(reference, converted), []
    for i, (one, two) in enumerate(wanted):
        if progress:
            progress(i / len(wanted), two.name)
        a, b = (audio.read(p, sample_rate_hz=SETTINGS.sample_rate_hz).samples for p in (one, two))
        row = {"reference": str(one), "converted": str(two)}
        row["difference_s"] = round((len(b) - len(a)) / SETTINGS.sample_rate_hz, 4)
        rows.append({**row, **measure(a, b)})
    names = [k for k in rows[0] if k not in ("reference", "converted", "difference_s")]
    mean = {k: [r[k] for r in rows if r[k] is not None] for k in names}
    return {"pairs": rows, "mean": {k: float(np.mean(v)) if v else None for k, v in mean.items()}}


def measure(reference: np.ndarray, converted: np.ndarray) -> dict[str, float | None]:
    """Figures of one pair at ``SETTINGS.sample_rate_hz``; see ``metrics`` for their definitions and units."""
    n = min(len(reference), len(converted))
    if n < SETTINGS.sample_rate_hz // 10:
        raise EvaluationError(f"{n} samples are in common; a comparison needs at least a tenth of a second.")
    a, b = (features.extract(np.ascontiguousarray(x[:n]), SETTINGS) for x in (reference, converted))
    found = dict(metrics.f0_accuracy(a.f0_hz, a.voiced, b.f0_hz, b.voiced))
    found["f0_error_cents"] = metrics.f0_error_cents(a.f0_hz, a.voiced, b.f0_hz, b.voiced)["median_absolute"]
    found["loudness_l1_db"] = metrics.loudness_l1_db(a.loudness_db, b.loudness_db)
    found |= metrics.spectral_distance(reference[:n], converted[:n], SETTINGS.sample_rate_hz)
    found["log_mel_l1"] = metrics.log_mel_l1(reference[:n], converted[:n], MEL)
    return {k: float(v) if np.isfinite(v) else None for k, v in found.items()}


def table(report: dict) -> str:
    """A report as plain text: one line per figure, the mean over all pairs."""
    lines = [f"{len(report['pairs'])} pairs compared; mean over them:"]
    width = max(len(k) for k in report["mean"])
    lines += [f"  {k:<{width}}  {'nothing to measure' if v is None else f'{v:.4f}'}" for k, v in report["mean"].items()]
    for row in report["pairs"]:
        if abs(row["difference_s"]) > 0.05:
            name = Path(row["converted"]).name
            lines.append(f"{name} is {row['difference_s']:+.2f} s longer than its reference: the common part counts.")
    return "\n".join(lines)
