"""Truths about speaker similarity: a second LSTM written out in numpy, gain, pauses, real voices."""

import sys

import numpy as np
import pytest
import torch

from svclib.audio import io as audio
from svclib.conversion import evaluate, speaker_similarity
from svclib.utils.errors import ConversionError


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(mel, weights):
    """One slice through three LSTM layers (Hochreiter, Schmidhuber 1997; gates in torch's order i, f, g, o)."""
    seen = mel.astype(np.float64)
    for layer in range(3):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w, u, b, c = (weights[f"lstm.{name}_l{layer}"].double().numpy() for name in names)
        h, cell, out = np.zeros(256), np.zeros(256), []
        for x in seen:
            i, f, g, o = np.split(w @ x + b + u @ h + c, 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(cell)
            out.append(h)
        seen = np.array(out)
    raw = np.maximum(weights["linear.weight"].double().numpy() @ h + weights["linear.bias"].double().numpy(), 0)
    return raw / np.linalg.norm(raw)


def test_the_network_is_the_one_written_out():
    torch.manual_seed(3)
    model = speaker_similarity.SpeakerEncoder()
    mel = np.random.default_rng(0).random((20, 40), dtype=np.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(mel)[None])[0].numpy()
    np.testing.assert_allclose(found, by_hand(mel, model.state_dict()), atol=1e-6)


def test_pauses_are_shortened_and_nothing_else():
    t = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 200 * t).astype(np.float32)
    gap = np.zeros(16000, np.float32)
    kept = speaker_similarity.trim_pauses(np.concatenate([gap, tone, gap, tone, gap]))
    # Each of four edges keeps half a pause; between the tones lies one whole pause.
    assert len(kept) == pytest.approx(2 * 16000 + 4 * 0.1 * 16000, abs=320)
    assert speaker_similarity.trim_pauses(tone).tolist() == tone.tolist()
    assert len(speaker_similarity.trim_pauses(gap)) == 0


def test_windows_are_five_seconds_every_two_and_a_half():
    sound = np.random.default_rng(0).normal(0, 0.1, 16000 * 13).astype(np.float32)
    pieces = speaker_similarity.windows(sound)
    assert [len(p) for p in pieces] == [80000] * 4
    for i, piece in enumerate(pieces):
        assert np.array_equal(piece, sound[i * 40000 : i * 40000 + 80000])
    with pytest.raises(ConversionError, match="0.3 s of sound"):
        speaker_similarity.windows(sound[:4800])


@pytest.fixture(scope="module")
def voices(data_dir):
    def read(folder, count):
        found = audio.find(data_dir / folder)[0][:count]
        return [audio.read(p, sample_rate_hz=16000).samples for p in found]

    return {name: read(f"voices/{name}", 6) for name in ("kathleen_sung", "kerstin_sung")}


def test_a_voice_is_nearer_to_itself_than_to_another(voices):
    one, two = voices["kathleen_sung"], voices["kerstin_sung"]
    target = speaker_similarity.speaker_embedding(one[:3])
    same = speaker_similarity.similarity(np.concatenate(one[3:5]), target)
    other = speaker_similarity.similarity(np.concatenate(two[:2]), target)
    assert same > other + 0.05


def test_the_level_of_a_loud_enough_recording_is_made_equal(voices):
    quiet = voices["kathleen_sung"][0] * 0.01
    np.testing.assert_allclose(speaker_similarity.embed(quiet), speaker_similarity.embed(quiet * 0.5), atol=1e-5)


def test_the_package_of_the_weights_is_never_imported(voices):
    speaker_similarity.load()
    assert "resemblyzer" not in sys.modules


def test_without_the_weights_one_sentence(monkeypatch):
    monkeypatch.setattr(speaker_similarity.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match="pip install --no-deps resemblyzer"):
        speaker_similarity.weights_path()


def test_evaluate_reports_the_similarity_to_the_target(data_dir, tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    song = audio.find(data_dir / "voices/kathleen_sung")[0][0]
    (folder / song.name).write_bytes(song.read_bytes())
    row = evaluate.compare(song, song, target_voice=folder)["pairs"][0]
    assert row["speaker_similarity"] == row["speaker_similarity_of_reference"]
    # A sound's windows against the whole of it: near 1, or exactly 1 where there is one window.
    assert row["speaker_similarity"] > 0.9
    with pytest.raises(ConversionError, match="no recording in"):
        (tmp_path / "none").mkdir()
        evaluate.speaker_embedding(tmp_path / "none")
