"""Validation by conversion: a few songs converted at every validation of a training, judged by voice and words.

A diffusion model's held-out loss predicts little of how it converts other people's singing. :class:`ValidationSongs` is
given to ``training.train`` as ``score``; the best checkpoint is then the one with the highest ``score``.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from svclib.audio import io
from svclib.conversion import pipeline, speaker_similarity
from svclib.conversion.controls import Controls
from svclib.conversion.key_suggestion import suggest_shift
from svclib.conversion.recognition import SpeechRecognizer, Transcript, WhisperRecognizer, intelligibility
from svclib.conversion.song import Song, excerpt, load_song
from svclib.data.dataset import Dataset
from svclib.models.instrument import Instrument
from svclib.utils.errors import ConversionError

MAX_SONGS, EXCERPT_S = 3, 8.0
TARGET_S = 60.0  # of the target's recordings, training and held-out each


@dataclasses.dataclass
class ValidationSongs:
    """Converts excerpts of songs with a model in training; called with the model, returns figures by name.

    ``voice`` is how far the speaker embedding moved from the songs (0) to the target's held-out recordings (1), limited
    to that range; ``words`` is 1 minus the character error rate; ``score`` is the mean of those that can be measured
    here, and there is none where neither can. Everything that does not depend on the model is measured once.

    Attributes:
        dataset: What the model is trained on.
        songs: Audio files of other singers; the first three count, of each the 8 s with the most voiced frames.
        recognizer: For ``words``; None leaves them out.
    """

    dataset: Any
    songs: Sequence[Path]
    recognizer: SpeechRecognizer | None = None

    def __post_init__(self):
        self._reference: _Reference | None = None

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``voice``, ``words`` and ``score`` of a diffusion model in eval mode; empty for other kinds."""
        if model.settings.kind != "diffusion" or not self.songs:
            return {}
        if self._reference is None:
            self._reference = _Reference(self)
        return self._reference.measure(model)


def for_training(dataset: Any, folder: str | Path, words: bool | None = None) -> ValidationSongs | None:
    """The songs of a folder for ``training.train(..., score=...)``; None if there is none.

    Args:
        dataset: A ``Dataset`` or its folder.
        folder: Songs of other singers.
        words: Whether to transcribe them by Whisper; None does so where it is installed.

    Returns:
        The ``score``, or None.

    Raises:
        ConversionError: if ``words`` are wanted and there is no recognizer.
    """
    found = io.find(folder)[0]
    if not found:
        return None
    try:
        recognizer = None if words is False else WhisperRecognizer()
    except ConversionError:
        if words:
            raise
        recognizer = None
    dataset = Dataset.open(dataset) if isinstance(dataset, (str, Path)) else dataset
    return ValidationSongs(dataset, [Path(path) for path in found], recognizer)


class _Reference:
    """The songs and the target voice, measured."""

    def __init__(self, settings: ValidationSongs):
        self.settings, data = settings, settings.dataset
        self.songs = [_most_voiced(load_song(p, data.settings)) for p in list(settings.songs)[:MAX_SONGS]]
        rate = data.settings.sample_rate_hz
        source = np.concatenate([_at_16k(song.audio, rate) for song in self.songs])
        self.words: Transcript | None = None
        if settings.recognizer is not None:
            self.words = settings.recognizer.transcribe(source)
        self.target: np.ndarray | None = None
        try:
            self.target = speaker_similarity.speaker_embedding(_recordings(data, "train"))
            held = _recordings(data, "validation") or _recordings(data, "train")
            self.start, self.end = (self.likeness(sound) for sound in (source, np.concatenate(held)))
        except ConversionError:  # no weights of the speaker encoder here, or no voice
            self.target = None

    def likeness(self, samples_16k: np.ndarray) -> float:
        return speaker_similarity.similarity(samples_16k, self.target)["speaker_similarity"]

    def measure(self, model: nn.Module) -> dict[str, float]:
        data = self.settings.dataset
        shell = Instrument(
            "validation", model.settings.kind, model, data.settings, data.statistics, {}, "0" * 64, Path("validation")
        )
        made = []
        for song in self.songs:
            found = suggest_shift(song.features, data.statistics, "diffusion")
            controls = Controls(octave_shift=found.octaves, semitone_shift=found.semitones)
            converted = pipeline.convert(shell, song, controls)
            made.append(_at_16k(converted.audio, converted.sample_rate_hz))
        result, figures = np.concatenate(made), {}
        if self.target is not None:
            moved = (self.likeness(result) - self.start) / max(self.end - self.start, 1e-3)
            figures["voice"] = float(np.clip(moved, 0.0, 1.0))
        if self.words is not None:
            cer = intelligibility(self.settings.recognizer, result, self.words).cer
            if np.isfinite(cer):
                figures["words"] = 1.0 - cer
        return figures | ({"score": float(np.mean(list(figures.values())))} if figures else {})


def _most_voiced(song: Song) -> Song:
    """The 8 s of a song with the most voiced frames."""
    settings = song.features.settings
    length = round(EXCERPT_S * settings.sample_rate_hz / settings.hop_samples)
    total = np.concatenate([[0], np.cumsum(song.features.voiced)])
    counts = total[length:] - total[:-length] if len(total) > length else np.zeros(1)
    return excerpt(song, int(np.argmax(counts)) * settings.hop_samples / settings.sample_rate_hz, EXCERPT_S)


def _recordings(dataset: Any, split: str) -> list[np.ndarray]:
    """Recordings of a split at 16 kHz, about a minute in all."""
    found, total = [], 0.0
    for index in dataset.indices(split):
        if total > TARGET_S:
            break
        samples = dataset.audio(index)
        total += len(samples) / dataset.settings.sample_rate_hz
        found.append(_at_16k(samples, dataset.settings.sample_rate_hz))
    return found


def _at_16k(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    return io.resample(np.asarray(samples, np.float32), rate_hz, speaker_similarity.SAMPLE_RATE_HZ).astype(np.float32)
