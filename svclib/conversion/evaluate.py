"""Evaluation of conversions: sound files against their references, and songs converted while a model is trained.

A diffusion model's held-out loss predicts little of how it converts other people's singing. :class:`ValidationSongs` is
given to ``training.train`` as ``score``; the best checkpoint is then the one with the highest ``score``.
"""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from svclib.audio import io as audio
from svclib.audio.mel import MelConfig, log_mel
from svclib.conversion import metrics, pipeline, speaker_similarity
from svclib.conversion.key_suggestion import suggest_shift
from svclib.conversion.recognition import SpeechRecognizer, Transcript, WhisperRecognizer, intelligibility
from svclib.conversion.song import Song, excerpt, load_song
from svclib.data.dataset import Dataset
from svclib.features import extract
from svclib.models.instrument import Instrument
from svclib.utils.errors import ConversionError, ModelError, ProgressCallback, reporter

SETTINGS = extract.FeatureSettings()
MEL = MelConfig(16000, n_fft=1024, window_samples=1024, hop_samples=256, n_mels=80, fmin_hz=40.0, fmax_hz=8000.0)
MAX_SONGS, EXCERPT_S = 3, 8.0  # of a validation
SPEAKER_RATE_HZ = speaker_similarity.SAMPLE_RATE_HZ
TARGET_S = 60.0  # of the target's recordings, training and held-out each


def pairs(reference: str | Path, converted: str | Path) -> list[tuple[Path, Path]]:
    """Pairs of files to compare: two files whatever their names, or the usable audio files of folders by name.

    A converted file belongs to the reference of the same name (suffix aside), or to the one whose name it begins with,
    followed by a space, ``-`` or ``_`` (``song - voice.wav`` belongs to ``song.wav``); the longest name wins. Folders
    inside the two have to be the same, or one of the files lies in none. Files without a reference are left out;
    ConversionError if nothing fits together, or one file to several.
    """
    reference, converted = Path(reference), Path(converted)
    for path in (reference, converted):
        if not path.exists():
            raise ConversionError(f"There is nothing at '{path}'.")
    if reference.is_file() and converted.is_file():
        return [(reference, converted)]
    ours, theirs = (
        [(path, *_place(path, folder)) for path in ([folder] if folder.is_file() else audio.find(folder)[0])]
        for folder in (reference, converted)
    )
    found = []
    for path, place, name in theirs:
        fits = [r for r in ours if name == r[2] or name.startswith(tuple(r[2] + s for s in " -_"))]
        fits = [r for r in fits if r[1] == place] or [r for r in fits if not r[1] or not place]
        fits = [r[0] for r in fits if len(r[2]) == max(len(other[2]) for other in fits)]
        if len(fits) > 1:
            raise ConversionError(
                f"'{path}' could belong to {', '.join(map(str, fits))}. Name the references apart, or put the "
                "converted files into folders of the same names."
            )
        found += [(fits[0], path)] if fits else []
    if not found:
        raise ConversionError(
            f"No file in '{converted}' is named like one in '{reference}'; name them alike, or give two files."
        )
    return found


def _place(path: Path, folder: Path) -> tuple[str, str]:
    """A file's folder inside another one, and its name without suffix; equal for equal names in any normal form."""
    inside = "" if path == folder else path.relative_to(folder).parent.as_posix().removeprefix(".")
    return unicodedata.normalize("NFC", inside), unicodedata.normalize("NFC", path.stem)


def compare(
    reference: str | Path,
    converted: str | Path,
    progress: ProgressCallback | None = None,
    target_voice: str | Path | None = None,
    recognizer: SpeechRecognizer | None = None,
    language: str | None = None,
) -> dict:
    """Measure converted songs (a file or folder) against their references, matched by :func:`pairs`.

    Where their lengths differ, the common part counts. ``target_voice``, a folder with recordings, adds
    ``speaker_similarity`` of the converted file and ``speaker_similarity_of_reference``; ``recognizer`` adds ``cer``,
    the character error rate against the reference's own transcript, and ``words``: both transcripts, their ``language``
    (ISO 639-1; detected in the reference if None) and the number of characters.

    Returns ``pairs``: a list of dicts with the names ``reference`` and ``converted``, ``difference_s`` (of the lengths)
    and the figures of :func:`measure`; ``mean``: the mean of every figure over the pairs that have it.
    """
    wanted, rows, report = pairs(reference, converted), [], reporter(progress)
    target = None if target_voice is None else speaker_embedding(target_voice)
    for i, (one, two) in enumerate(wanted):
        report(i / len(wanted), two.name)
        a, b = (audio.read(path, SETTINGS.sample_rate_hz).samples for path in (one, two))
        row: dict[str, Any] = {"reference": _inside(one, Path(reference)), "converted": _inside(two, Path(converted))}
        row["difference_s"] = round((len(b) - len(a)) / SETTINGS.sample_rate_hz, 4)
        figures = measure(a, b)
        if target is not None:
            for name, sound in (("speaker_similarity", b), ("speaker_similarity_of_reference", a)):
                figures[name] = speaker_similarity.similarity(sound, target)
        if recognizer is not None:
            row["words"] = dataclasses.asdict(intelligibility(recognizer, b, a, language))
            cer = row["words"].pop("cer")
            figures["cer"] = cer if np.isfinite(cer) else None
        rows.append({**row, **figures})
    known = {name: [row[name] for row in rows if row[name] is not None] for name in figures}
    return {"pairs": rows, "mean": {name: float(np.mean(v)) if v else None for name, v in known.items()}}


def _inside(path: Path, given: Path) -> str:
    """A file's name inside the given folder, or of the given file: a report may be shared."""
    return path.name if path == given else path.relative_to(given).as_posix()


def speaker_embedding(folder: str | Path) -> np.ndarray:
    """``speaker_similarity.speaker_embedding`` of all recordings in a folder."""
    found = audio.find(folder)[0]
    if not found:
        raise ConversionError(f"There is no recording in '{folder}'; give the folder of the wanted voice.")
    return speaker_similarity.speaker_embedding([audio.read(path, SPEAKER_RATE_HZ).samples for path in found])


def measure(reference: np.ndarray, converted: np.ndarray) -> dict[str, float | None]:
    """Figures of one pair at ``SETTINGS.sample_rate_hz``; see ``metrics`` for their definitions and units."""
    n = min(len(reference), len(converted))
    if n < SETTINGS.sample_rate_hz // 10:
        raise ConversionError(f"{n} samples are in common; a comparison needs at least a tenth of a second.")
    sounds = [np.ascontiguousarray(x[:n], np.float32) for x in (reference, converted)]
    a, b = (extract.extract(sound, SETTINGS) for sound in sounds)
    mels = log_mel(torch.from_numpy(np.stack(sounds)), MEL).numpy()
    tracks = a.f0_hz, a.voiced, b.f0_hz, b.voiced
    error = metrics.f0_error_cents(*tracks)
    found = {
        **metrics.f0_accuracy(*tracks),
        "f0_error_cents": error["median_absolute"],
        "f0_rmse_cents": error["rmse"],
        "f0_correlation": error["correlation"],
        "frames": len(a.f0_hz),
        "frames_voiced_in_both": (a.voiced & b.voiced).sum(),
        "loudness_l1_db": metrics.loudness_l1_db(a.loudness_db, b.loudness_db),
        **metrics.spectral_distance(*sounds, sample_rate_hz=SETTINGS.sample_rate_hz),
        "log_mel_l1": np.abs(mels[0] - mels[1]).mean(),
        "mcd_db": metrics.mcd_db(*mels),
    }
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
        rate = f"CER {cer} of {words['n_characters']} characters ({words['language']})"
        lines.append(f"{Path(row['converted']).name}: {rate}")
        lines += [f"  {name:<9}  {words[name]}" for name in ("reference", "converted")]
    return "\n".join(lines)


@dataclasses.dataclass
class ValidationSongs:
    """Converts excerpts of songs with a model in training; called with the model, returns figures by name.

    ``voice`` is how far the speaker embedding moved from the songs (0) to the target's held-out recordings (1), limited
    to that range; ``words`` is 1 minus the character error rate; ``score`` is the mean of those that can be measured
    here. ``dataset`` is the model's; of the ``songs``, audio files of other singers, the first three count, of each the
    8 s with the most voiced frames.
    """

    dataset: Any
    songs: Sequence[Path]
    recognizer: SpeechRecognizer | None = None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``voice``, ``words`` and ``score`` of a diffusion model in eval mode; empty for other kinds."""
        if model.settings.kind != "diffusion" or not self.songs:
            return {}
        data, made, figures = self.dataset, [], {}
        about = {"info": {}, "sha256": "0" * 64, "path": Path("validation")}
        shell = Instrument("validation", "diffusion", model, data.settings, data.statistics, **about)
        songs, words, voice = self._reference
        for song in songs:
            suggested = suggest_shift(song.features, data.statistics, "diffusion")
            converted = pipeline.convert(shell, song, suggested.applied())
            made.append(audio.resample(converted.audio, converted.sample_rate_hz, SPEAKER_RATE_HZ))
        result = np.concatenate(made)
        if voice is not None:
            figures["voice"] = voice(result)
        if words is not None:
            cer = intelligibility(self.recognizer, result, words).cer
            figures |= {"words": 1.0 - cer} if np.isfinite(cer) else {}
        return figures | ({"score": float(np.mean(list(figures.values())))} if figures else {})

    @functools.cached_property
    def _reference(self) -> tuple[list[Song], Transcript | None, Callable[[np.ndarray], float] | None]:
        """The songs, the transcript of all, and ``voice`` of a sound; None where it cannot be measured."""
        data, rate_hz = self.dataset, self.dataset.settings.sample_rate_hz
        songs = [_most_voiced(load_song(path, data.settings)) for path in self.songs[:MAX_SONGS]]
        source = np.concatenate([audio.resample(song.audio, rate_hz, SPEAKER_RATE_HZ) for song in songs])
        words = None if self.recognizer is None else self.recognizer.transcribe(source)
        try:
            target = speaker_similarity.speaker_embedding(_recordings(data, "train"))
            held_out = np.concatenate(_recordings(data, "validation") or _recordings(data, "train"))
            start, end = (speaker_similarity.similarity(sound, target) for sound in (source, held_out))
        except ConversionError:  # no weights of the speaker encoder here, or no voice
            return songs, words, None

        def voice(sound: np.ndarray) -> float:
            moved = (speaker_similarity.similarity(sound, target) - start) / max(end - start, 1e-3)
            return float(np.clip(moved, 0.0, 1.0))

        return songs, words, voice


def for_training(dataset: Any, folder: str | Path, words: bool | None = None) -> ValidationSongs | None:
    """The songs of a folder for ``training.train(..., score=...)``; None if there is none.

    ``words``: whether to transcribe them; None does so where Whisper is installed, True raises where it is not.
    """
    found = audio.find(folder)[0]
    if not found:
        return None
    recognizer = None
    try:
        recognizer = None if words is False else WhisperRecognizer()
    except ModelError:
        if words:
            raise
    dataset = Dataset.open(dataset) if isinstance(dataset, (str, Path)) else dataset
    return ValidationSongs(dataset, found, recognizer)


def _most_voiced(song: Song) -> Song:
    """The 8 s of a song with the most voiced frames."""
    settings = song.features.settings
    length = round(EXCERPT_S * settings.sample_rate_hz / settings.hop_samples)
    total = np.concatenate([[0], np.cumsum(song.features.voiced)])
    counts = total[length:] - total[:-length] if len(total) > length else np.zeros(1)
    return excerpt(song, int(np.argmax(counts)) * settings.hop_samples / settings.sample_rate_hz, EXCERPT_S)


def _recordings(dataset: Any, split: str) -> list[np.ndarray]:
    """Recordings of a split at 16 kHz, about a minute in all."""
    found, seconds = [], 0.0
    for index in dataset.indices(split):
        if seconds > TARGET_S:
            break
        found.append(audio.resample(dataset.audio(index), dataset.settings.sample_rate_hz, SPEAKER_RATE_HZ))
        seconds += len(found[-1]) / SPEAKER_RATE_HZ
    return found
