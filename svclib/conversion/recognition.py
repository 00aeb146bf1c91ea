"""Intelligibility: automatic speech recognition of a source and its conversion, and the character error rate.

The source's own transcript is the reference, so that most errors of the recognizer cancel. The recognizer is optional:
Whisper (Radford et al. 2022, arXiv:2212.04356) through ``faster-whisper``, or any other :class:`SpeechRecognizer`.
"""

import dataclasses
import re
import unicodedata
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from svclib.features import content_features, whisper_features

SAMPLE_RATE_HZ = content_features.SAMPLE_RATE_HZ
# Recognizers write them either way.
_DIGITS = {w: str(i) for i, w in enumerate("zero one two three four five six seven eight nine".split())}


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Recognized text and its language (ISO 639-1; empty where the recognizer has no notion of it)."""

    text: str
    language: str = ""


@runtime_checkable
class SpeechRecognizer(Protocol):
    """Anything that transcribes speech or singing."""

    name: str

    def transcribe(self, samples: Float[np.ndarray, " _"], language: str | None = None) -> Transcript:
        """The transcript of a mono signal at 16 kHz; without a language it is detected."""


class WhisperRecognizer:
    """Whisper of ``whisper_features.open_whisper``; ModelError if it is missing.

    Temperature 0, beam of 5, no six tokens twice: on unclear sound Whisper may repeat a phrase until the window ends.
    """

    def __init__(self, model: str | Path | None = None, download: bool = False):
        self._model, folder = whisper_features.open_whisper(model, download, torch.get_num_threads())
        self.name = f"whisper {Path(model or folder).name}"

    def transcribe(self, samples: Float[np.ndarray, " _"], language: str | None = None) -> Transcript:
        """See :class:`SpeechRecognizer`."""
        options = {"beam_size": 5, "temperature": 0.0, "condition_on_previous_text": False, "no_repeat_ngram_size": 6}
        found, about = self._model.transcribe(np.asarray(samples, np.float32), language=language, **options)
        return Transcript("".join(segment.text for segment in found).strip(), about.language)


def normalize_text(text: str) -> str:
    """Compatibility composition (NFKC), lower case, English digits as numerals, letters and digits only."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return "".join(_DIGITS.get(word, word) for word in words)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the least number of insertions, deletions and substitutions from ``a`` to ``b``."""
    letters, places = np.array(list(b)), np.arange(len(b) + 1)
    row = places
    for i, letter in enumerate(a, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))  # deletion; match or substitution
        # insertions: row[j] = min over k <= j of best[k] + j - k
        row = np.minimum.accumulate(np.concatenate([[i], best]) - places) + places
    return int(row[-1])


def character_error_rate(reference: str, hypothesis: str) -> float:
    """Edit distance of two normalized texts over the length of the reference; NaN without a reference.

    It is at most 1, for recognizers repeat themselves on noise, and that must not dominate a mean.
    """
    a, b = normalize_text(reference), normalize_text(hypothesis)
    return min(1.0, edit_distance(a, b) / len(a)) if a else float("nan")


@dataclasses.dataclass(frozen=True)
class Intelligibility:
    """Transcripts in one language, their :func:`character_error_rate`, and the length of the normalized reference."""

    reference: str
    converted: str
    language: str
    n_characters: int
    cer: float


def intelligibility(
    recognizer: SpeechRecognizer,
    converted: Float[np.ndarray, " _"],
    reference: np.ndarray | Transcript,
    language: str | None = None,
) -> Intelligibility:
    """Transcribe a conversion (mono, 16 kHz) and compare it with its source, or with the source's transcript.

    ``language`` is forced for both; None takes the one detected in the source.
    """
    if not isinstance(reference, Transcript):
        reference = recognizer.transcribe(reference, language)
    found = recognizer.transcribe(converted, reference.language or None)
    n, cer = len(normalize_text(reference.text)), character_error_rate(reference.text, found.text)
    return Intelligibility(reference.text, found.text, reference.language, n, cer)
