"""Validation by conversion: an unchanged song keeps words and voice; a recording of the target is the other end."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch

from svclib.audio import io
from svclib.conversion import evaluate
from svclib.conversion.key_suggestion import suggest_shift
from svclib.conversion.recognition import Transcript
from svclib.features.extract import FeatureSettings

SETTINGS = FeatureSettings()
RATE_HZ = SETTINGS.sample_rate_hz


class Recordings:
    """Four recordings of the target in the form of a dataset, the last two held out."""

    settings, statistics = SETTINGS, {}

    def __init__(self, folder: Path):
        self.sounds = [io.read(p, sample_rate_hz=RATE_HZ).samples for p in sorted(folder.glob("*.flac"))[:4]]

    def indices(self, split):
        return [0, 1] if split == "train" else [2, 3]

    def audio(self, index):
        return self.sounds[index]


class Model(torch.nn.Module):
    def __init__(self, kind="diffusion"):
        super().__init__()
        self.settings = types.SimpleNamespace(kind=kind)


class Repeating:
    name = "repeating"

    def __init__(self):
        self.texts = ["words of the song", "words of a song"]

    def transcribe(self, samples, language=None):
        return Transcript(self.texts.pop(0), "en")


@pytest.fixture
def validated(data_dir, monkeypatch):
    """``validated(sound)``: figures of a model whose conversions are that sound, or the song if None."""
    data = Recordings(data_dir / "voices" / "kathleen_spoken")
    songs = sorted((data_dir / "singing").glob("*/*.wav"))[:1]
    model = Model()

    def measure(sound, recognizer=None):
        def convert(shell, song, controls):
            made = song.audio if sound is None else data.sounds[sound]
            return types.SimpleNamespace(audio=made, sample_rate_hz=RATE_HZ)

        monkeypatch.setattr(evaluate.pipeline, "convert", convert)
        return evaluate.ValidationSongs(data, songs, recognizer)(model)

    return measure


def test_an_unchanged_song_has_moved_nowhere(validated):
    figures = validated(None, Repeating())
    assert figures["voice"] == pytest.approx(0, abs=1e-6)
    assert figures["words"] == pytest.approx(1 - 3 / 14)  # "the" -> "a"
    assert figures["score"] == pytest.approx(np.mean([figures["voice"], figures["words"]]))


def test_the_targets_own_recording_is_the_other_end(validated):
    figures = validated(2)
    assert figures["voice"] > 0.8 and set(figures) == {"voice", "score"}


def test_songs_are_converted_in_the_key_that_a_person_would_be_given(data_dir, monkeypatch):
    """The suggestion decides whether semitones are added to the octave."""
    data, asked = Recordings(data_dir / "voices" / "kathleen_spoken"), []
    data.statistics = {
        "f0_midi": {
            "mean_note": 69.0,
            "histogram": {"edges_midi": [67.5, 68.5, 69.5, 70.5], "seconds": [1.0, 9.0, 1.0]},
        }
    }
    song = sorted((data_dir / "singing").glob("*/*.wav"))[0]

    def convert(shell, song, controls):
        asked.append((controls, suggest_shift(song.features, data.statistics, "diffusion")))
        return types.SimpleNamespace(audio=song.audio, sample_rate_hz=RATE_HZ)

    monkeypatch.setattr(evaluate.pipeline, "convert", convert)
    evaluate.ValidationSongs(data, [song])(Model())
    ((controls, suggestion),) = asked
    assert controls == suggestion.applied() and controls.attenuation_db == 0.0
    assert controls.pitch_shift_semitones == suggestion.shift_semitones


def test_other_kinds_of_models_have_no_score():
    assert evaluate.ValidationSongs(None, [Path("a.wav")])(Model("ddsp")) == {}


def test_excerpts_have_the_most_voiced_frames():
    from svclib.conversion.song import Song
    from svclib.features.extract import extract

    t = np.arange(24 * RATE_HZ) / RATE_HZ
    sound = np.where(t > 14, 0.3 * np.sin(2 * np.pi * 220 * t), 0).astype(np.float32)
    song = Song(Path("a.wav"), "a", RATE_HZ, len(sound), sound, extract(sound, SETTINGS))
    cut = evaluate._most_voiced(song)
    assert cut.duration_s == pytest.approx(evaluate.EXCERPT_S, abs=0.01)
    n, voiced = cut.features.n_frames, song.features.voiced
    assert cut.features.voiced.sum() == max(voiced[i : i + n].sum() for i in range(len(voiced) - n + 1))
    assert cut.features.voiced.mean() > 0.7  # of the whole song at most 0.42


def test_a_folder_without_songs_gives_none(tmp_path):
    assert evaluate.for_training(None, tmp_path, words=False) is None
