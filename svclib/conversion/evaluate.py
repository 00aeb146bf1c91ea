"""Comparing sound files: converted songs against their references, pair by pair."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from svclib.audio import io as audio
from svclib.audio.mel import MelConfig, log_mel
from svclib.conversion import metrics, speaker_similarity
from svclib.conversion.recognition import SpeechRecognizer, intelligibility
from svclib.features import extract
from svclib.utils.errors import ConversionError

SETTINGS = extract.FeatureSettings()
MEL = MelConfig(
    sample_rate_hz=16000, n_fft=1024, window_samples=1024, hop_samples=256, n_mels=80, fmin_hz=40.0, fmax_hz=8000.0
)


def pairs(reference: str | Path, converted: str | Path) -> list[tuple[Path, Path]]:
    """Pairs of files to compare: two files, or the files of two folders by name.

    A converted file belongs to the reference of the same name (suffix aside), or to the one whose name it begins with,
    followed by a space, ``-`` or ``_`` (``song - voice.wav`` belongs to ``song.wav``); the longest name wins.

    Args:
        reference: A file, or a folder whose usable audio files are taken.
        converted: The same of what is to be compared. Two files are a pair whatever their names.

    Returns:
        (reference, converted) for every converted file that belongs to a reference; the others are left out.

    Raises:
        ConversionError: if nothing fits together.
    """
    reference, converted = Path(reference), Path(converted)
    for path in (reference, converted):
        if not path.exists():
            raise ConversionError(f"There is nothing at '{path}'.")
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
        raise ConversionError(
            f"No file in '{converted}' is named like one in '{reference}'; name them alike, or give two files."
        )
    return found


def compare(
    reference: str | Path,
    converted: str | Path,
    progress: Callable[[float, str], None] | None = None,
    target_voice: str | Path | None = None,
    recognizer: SpeechRecognizer | None = None,
    language: str | None = None,
) -> dict:
    """Measure converted songs against their references.

    Both are measured alike on one grid (16 kHz, 4 ms); where their lengths differ, the common part counts.

    Args:
        reference: The truth, file or folder; see :func:`pairs`.
        converted: What is measured against it, file or folder.
        progress: Called with a fraction and the name of the converted file.
        target_voice: Folder with recordings of the target voice: adds ``speaker_similarity`` of the
            converted file and ``speaker_similarity_of_reference``, both to that voice.
        recognizer: Adds ``cer``, the character error rate against the reference's own transcript, and ``words``: both
            transcripts, their language and the number of characters.
        language: Of the words (ISO 639-1); detected in each reference if None.

    Returns:
        ``pairs``: a list of dicts with ``reference``, ``converted``, ``difference_s`` (of the lengths) and the figures
        of :func:`measure`; ``mean``: the mean of every figure over the pairs that have it.
    """
    wanted, rows = pairs(reference, converted), []
    target = None if target_voice is None else speaker_embedding(target_voice)
    for i, (one, two) in enumerate(wanted):
        if progress:
            progress(i / len(wanted), two.name)
        a, b = (audio.read(p, sample_rate_hz=SETTINGS.sample_rate_hz).samples for p in (one, two))
        row = {"reference": str(one), "converted": str(two)}
        row["difference_s"] = round((len(b) - len(a)) / SETTINGS.sample_rate_hz, 4)
        rows.append({**row, **measure(a, b)})
        if target is not None:
            rows[-1]["speaker_similarity"] = speaker_similarity.similarity(b, target)["speaker_similarity"]
            rows[-1]["speaker_similarity_of_reference"] = speaker_similarity.similarity(a, target)["speaker_similarity"]
        if recognizer is not None:
            words = dataclasses.asdict(intelligibility(recognizer, b, a, language))
            cer = words.pop("cer")
            rows[-1] |= {"cer": cer if np.isfinite(cer) else None, "words": words}
    names = [k for k in rows[0] if k not in ("reference", "converted", "difference_s", "words")]
    mean = {k: [r[k] for r in rows if r[k] is not None] for k in names}
    return {"pairs": rows, "mean": {k: float(np.mean(v)) if v else None for k, v in mean.items()}}


def speaker_embedding(folder: str | Path) -> np.ndarray:
    """``speaker.speaker_embedding`` of all recordings in a folder."""
    found = audio.find(folder)[0]
    if not found:
        raise ConversionError(f"There is no recording in '{folder}'; give the folder of the wanted voice.")
    return speaker_similarity.speaker_embedding(
        [audio.read(p, sample_rate_hz=speaker_similarity.SAMPLE_RATE_HZ).samples for p in found]
    )


def measure(reference: np.ndarray, converted: np.ndarray) -> dict[str, float | None]:
    """Figures of one pair at ``SETTINGS.sample_rate_hz``; see ``metrics`` for their definitions and units."""
    n = min(len(reference), len(converted))
    if n < SETTINGS.sample_rate_hz // 10:
        raise ConversionError(f"{n} samples are in common; a comparison needs at least a tenth of a second.")
    a, b = (extract.extract(np.ascontiguousarray(x[:n]), SETTINGS) for x in (reference, converted))
    found = dict(metrics.f0_accuracy(a.f0_hz, a.voiced, b.f0_hz, b.voiced))
    error = metrics.f0_error_cents(a.f0_hz, a.voiced, b.f0_hz, b.voiced)
    found |= {"f0_error_cents": error["median_absolute"], "f0_rmse_cents": error["rmse"]}
    found |= {"f0_correlation": error["correlation"], "frames": float(len(a.f0_hz))}
    found["frames_voiced_in_both"] = float((a.voiced & b.voiced).sum())
    found["loudness_l1_db"] = metrics.loudness_l1_db(a.loudness_db, b.loudness_db)
    found |= metrics.spectral_distance(reference[:n], converted[:n], SETTINGS.sample_rate_hz)
    mels = log_mel(torch.from_numpy(np.stack([reference[:n], converted[:n]]).astype(np.float32)), MEL).numpy()
    found["log_mel_l1"] = float(np.abs(mels[0] - mels[1]).mean())
    found["mcd_db"] = metrics.mcd_db(mels[0], mels[1])
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
    for row in (row for row in report["pairs"] if "words" in row):
        words, cer = row["words"], "none" if row["cer"] is None else f"{row['cer']:.2f}"
        lines.append(
            f"{Path(row['converted']).name}: CER {cer} of {words['n_characters']} characters ({words['language']})"
        )
        lines += [f"  {name:<9}  {words[name]}" for name in ("reference", "converted")]
    return "\n".join(lines)
