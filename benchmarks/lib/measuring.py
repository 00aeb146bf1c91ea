"""Measures of one conversion: words, pitch, likeness to the target; the references are measured once."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib import clips, controls
from svclib.audio import io
from svclib.conversion import metrics, pipeline, recognition, speaker_similarity
from svclib.conversion.controls import defaults
from svclib.conversion.key_suggestion import suggest_shift
from svclib.conversion.song import Song, cached_song
from svclib.features import extract
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders import auto


def at_16k(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """The same sound at the rate of the recognizers and of the speaker encoder."""
    return io.resample(np.asarray(samples, np.float32), rate_hz, recognition.SAMPLE_RATE_HZ)


def remembered(folder: Path, what: str, samples: np.ndarray, compute: Callable[[np.ndarray], Any]) -> Any:
    """A JSON value computed of a sound, kept in a folder by their hash: a repeated run costs nothing."""
    samples = np.ascontiguousarray(samples, np.float32)
    path = folder / f"{hashlib.sha256(what.encode() + samples.tobytes()).hexdigest()[:32]}.json"
    if not path.exists():
        value = json.dumps(compute(samples))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(value, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


class CachedRecognizer:
    """A recognizer whose transcripts are :func:`remembered` in a folder."""

    def __init__(self, recognizer: recognition.SpeechRecognizer, folder: Path):
        self.recognizer, self.name, self.folder = recognizer, recognizer.name, folder

    def transcribe(self, samples: np.ndarray, language: str | None = None) -> recognition.Transcript:
        """As the recognizer's own."""

        def computed(x: np.ndarray) -> dict:
            return dataclasses.asdict(self.recognizer.transcribe(x, language))

        return recognition.Transcript(**remembered(self.folder, f"{self.name} {language}", samples, computed))


class Target:
    """The voice that a result should have: its voice print, its own held-out windows, its long-term spectrum.

    Args:
        data: The test recordings.
        cache: Where embeddings are :func:`remembered`.
    """

    def __init__(self, data: Path, cache: Path):
        self.cache, held, trained = cache, [], []
        for path in sorted(Path(p) for p in io.find(data / clips.TARGET)[0]):
            samples = io.read(path, sample_rate_hz=speaker_similarity.SAMPLE_RATE_HZ).samples
            (held if path.stem in clips.TARGET_HELD_OUT else trained).append(samples)
        mean = np.mean([self.embedded(phrase, windows=False)[0] for phrase in trained], axis=0)
        self.voice_print = mean / np.linalg.norm(mean)  # as speaker_similarity.speaker_embedding
        self.windows = self.embedded(np.concatenate(held))
        self.magnitude = controls.long_term_magnitude(np.concatenate(trained))
        between = self.windows @ self.windows.T
        self.held_out = {
            "windows": float((self.windows @ self.voice_print).mean()),
            "pairwise": float(between[~np.eye(len(between), dtype=bool)].mean()),
        }

    def embedded(self, samples: np.ndarray, windows: bool = True) -> np.ndarray:
        """Speaker embeddings of the windows of a sound, or of the whole without pauses, ``[windows, 256]``."""

        def computed(x: np.ndarray) -> list:
            parts = speaker_similarity.windows(x) if windows else [speaker_similarity.trim_pauses(x)]
            return [speaker_similarity.embed(part).tolist() for part in parts]

        return np.array(remembered(self.cache, f"GE2E {windows}", samples, computed))

    def likeness(self, samples_16k: np.ndarray) -> dict[str, float]:
        """Mean cosine of the 5 s windows to the voice print, and to the target's held-out windows, pair by pair."""
        found = self.embedded(samples_16k)
        return {"windows": float((found @ self.voice_print).mean()), "pairwise": float((found @ self.windows.T).mean())}


@dataclasses.dataclass
class Bench:
    """One instrument on clips of the test recordings.

    Attributes:
        data: The test recordings.
        out: Where clips, transcripts and results are kept.
        voice: The instrument.
        recognizers: What transcribes; the first one's figures lead.
        sampling: Options of every conversion, unless others are given.
    """

    data: Path
    out: Path
    voice: instrument.Instrument
    recognizers: Sequence[recognition.SpeechRecognizer]
    sampling: Mapping = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def target(self) -> Target:
        """The target voice, measured when first needed."""
        return Target(self.data, self.out / "embeddings")

    def song(self, clip: clips.Clip, condition: str = "clean", second: clips.Clip | None = None) -> Song:
        """The clip under a condition, measured for the instrument."""
        path = clips.render(self.data, clip, self.out / "clips")
        if condition != "clean":
            clean = io.read(path).samples
            other = io.read(clips.render(self.data, second or clip, self.out / "clips")).samples
            path = self.out / "clips" / f"{clip.name} {condition}.wav"
            if not path.exists():
                io.write(path, clips.degraded(clean, condition, other), clips.RATE_HZ)
        return cached_song(path, self.voice.features)

    def key(self, clip: clips.Clip) -> int:
        """The clip's own shift in semitones, or the one that a user gets for its clean version by default."""
        if clip.key is not None:
            return clip.key
        return suggest_shift(self.song(clip).features, self.voice.statistics, self.voice.kind).shift_semitones

    def convert(self, measured: Song, key: int, seed: int = 0, **sampling):
        """The conversion by so many semitones."""
        octaves = int(key / 12)
        shift = {"octave_shift": octaves, "semitone_shift": key - 12 * octaves}
        wanted = dataclasses.replace(defaults(self.voice.kind), **shift)
        options = SamplingOptions(**{**self.sampling, **sampling, "seed": seed})
        return pipeline.convert(self.voice, measured, wanted, options)

    def vocoded(self, measured: Song) -> np.ndarray:
        """Analysis and resynthesis by the instrument's vocoder, at its rate."""
        vocoder = auto.load_vocoder(self.voice.path)
        return vocoder.resynthesize(measured.features).audio

    def words(self, clip: clips.Clip, samples_16k: np.ndarray) -> dict[str, recognition.Intelligibility]:
        """By recognizer; the reference is the transcript of the clean clip."""
        clean = self.song(clip)
        reference = at_16k(clean.audio, self.voice.features.sample_rate_hz)
        return {r.name: recognition.intelligibility(r, samples_16k, reference, clip.language) for r in self.recognizers}

    def pitch(self, clip: clips.Clip, key: int, samples: np.ndarray) -> dict[str, float]:
        """F0 of a result at the instrument's rate against the clean clip's, shifted by the key."""
        wanted = self.song(clip).features
        found = extract.extract(samples, dataclasses.replace(self.voice.features, mel=None, units=None))
        n = min(wanted.n_frames, found.n_frames)
        f0_hz = (wanted.f0_hz[:n] * 2 ** (key / 12)).astype(wanted.f0_hz.dtype)
        error = metrics.f0_error_cents(f0_hz, wanted.voiced[:n], found.f0_hz[:n], found.voiced[:n])
        accuracy = metrics.f0_accuracy(f0_hz, wanted.voiced[:n], found.f0_hz[:n], found.voiced[:n])
        return {
            "f0_rmse_cents": error["rmse"],
            "f0_median_cents": error["median_absolute"],
            "f0_correlation": error["correlation"],
            "voicing_f1": accuracy["voicing_f1"],
        }

    def measure(self, clip: clips.Clip, condition: str = "clean", second: clips.Clip | None = None, seed: int = 0):
        """Everything about the conversion of one clip under one condition, as plain values."""
        measured, key, rate = self.song(clip, condition, second), self.key(clip), self.voice.features.sample_rate_hz
        made = self.convert(measured, key, seed)
        result, source = at_16k(made.audio, made.sample_rate_hz), at_16k(measured.audio, rate)
        shifted = controls.shifted(source, recognition.SAMPLE_RATE_HZ, key)
        sounds = {"result": result, "shifted": shifted, "control": controls.equalized(shifted, self.target.magnitude)}
        likeness = {name: self.target.likeness(sound) for name, sound in sounds.items()}
        row = {
            "clip": clip.name,
            "group": clip.group,
            "condition": condition,
            "key": key,
            "words": {name: dataclasses.asdict(w) for name, w in self.words(clip, result).items()},
            **self.pitch(clip, key, made.audio),
            "likeness": likeness,
            "relative_similarity": self.relative_similarity(likeness, "result"),
            "relative_similarity_of_control": self.relative_similarity(likeness, "control"),
            "real_time_factor": made.seconds / measured.duration_s,
            "stft_distance": None,
        }
        if condition != "clean":
            row["words_of_source"] = {name: w.cer for name, w in self.words(clip, source).items()}
        if key == 0 and clip.group != "others":  # the recording itself is what should come out
            n = min(len(measured.audio), len(made.audio))
            found = metrics.spectral_distance(measured.audio[:n], made.audio[:n], rate)
            row["stft_distance"] = found["stft_distance"]
        return row

    def relative_similarity(self, likeness: Mapping[str, Mapping[str, float]], name: str) -> float:
        """Distance that a sound came from the shifted song (0) to the target's own held-out windows (1)."""
        start, end = likeness["shifted"]["windows"], self.target.held_out["windows"]
        return (likeness[name]["windows"] - start) / (end - start)
