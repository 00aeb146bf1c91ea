"""Truths: the parts add up to the song; a voice that is put back unchanged gives the song again, at any level, rate and
place between the speakers; a click stays at its time; Demucs loads its own networks and no other class."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch

from svclib.audio import io as audio
from svclib.conversion import cover, pipeline, song
from svclib.conversion.controls import Controls
from svclib.features.extract import FeatureSettings
from svclib.models.ddsp.model import DdspSettings
from svclib.utils import budget
from svclib.utils.errors import ConversionError, ModelError

RATE = 44100
TINY = DdspSettings(n_harmonics=8, n_noise_bands=9, rnn_channels=8, mlp_channels=8, layers_per_stack=1)


@pytest.fixture(scope="module")
def conversion(tmp_path_factory):
    """Any conversion; the tests put their own sound into it."""
    path = tmp_path_factory.mktemp("song") / "song.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * np.arange(16000) / 16000), 16000)
    settings = FeatureSettings(f0_method="swift")
    model = TINY.build(settings, None, seed=0)
    voice = dataclasses.make_dataclass("Voice", "name kind model features statistics info sha256".split())(
        "anna", "ddsp", model.eval(), settings, {}, {}, "0" * 64
    )
    controls = Controls(use_loudness_statistics=False)
    return pipeline.convert(voice, song.load_song(path, settings), controls)


def with_sound(conversion, samples, rate_hz=RATE, **controls):
    """The conversion with other samples and controls."""
    changed = dataclasses.replace(conversion.controls, **controls)
    return dataclasses.replace(conversion, audio=samples.astype(np.float32), sample_rate_hz=rate_hz, controls=changed)


def panned(left=0.4, right=0.2, seconds=1.0):
    """A voice between the speakers in front of noise."""
    rng, n = np.random.default_rng(0), round(seconds * RATE)
    voice = np.sin(2 * np.pi * 330 * np.arange(n) / RATE) * np.hanning(n)
    stems = [np.outer(voice, [left, right]), 0.1 * rng.standard_normal((n, 2))]
    return voice, cover.Stems(*(x.astype(np.float32) for x in stems), RATE)


@pytest.mark.parametrize("level", [0.01, 1.0, 5.0])
def test_the_same_voice_put_back_gives_the_song_at_any_level(conversion, level):
    voice, stems = panned()
    mixed, warnings = cover.mix(with_sound(conversion, level * voice), stems)
    np.testing.assert_allclose(mixed, stems.voice + stems.accompaniment, atol=1e-5)
    assert warnings == ()


def test_voice_db_is_added_to_the_voice_alone(conversion):
    voice, stems = panned()
    mixed, _ = cover.mix(with_sound(conversion, voice), stems, voice_db=-6.0)
    np.testing.assert_allclose(mixed - stems.accompaniment, stems.voice * 10 ** (-6 / 20), atol=1e-5)


def test_a_click_of_another_rate_stays_at_its_time(conversion):
    _, stems = panned()
    click = np.zeros(22050)
    click[11025] = 1.0  # 0.5 s
    mixed, _ = cover.mix(with_sound(conversion, click, 22050), stems)
    made = (mixed - stems.accompaniment).sum(axis=1)
    assert np.abs(made).argmax() == RATE // 2
    assert len(mixed) == len(stems.voice)


def test_what_would_clip_is_turned_down_as_a_whole_and_told(conversion):
    voice, stems = panned(1.2, 1.2)
    mixed, warnings = cover.mix(with_sound(conversion, voice), stems)
    whole = stems.voice + stems.accompaniment
    np.testing.assert_allclose(mixed / mixed.max(), whole / whole.max(), atol=1e-4)
    assert np.abs(mixed).max() <= pipeline.PEAK_LIMIT + 1e-6
    assert len(warnings) == 1


def test_a_shift_that_is_no_octave_is_warned_of(conversion):
    voice, stems = panned()
    for semitones, expected in ((0, 0), (5, 1)):
        moved = with_sound(conversion, voice, octave_shift=1, semitone_shift=semitones)
        assert len(cover.mix(moved, stems)[1]) == expected


def test_silence_in_place_of_the_voice_leaves_the_accompaniment(conversion):
    _, stems = panned()
    mixed, _ = cover.mix(with_sound(conversion, np.zeros(RATE)), stems)
    np.testing.assert_array_equal(mixed, stems.accompaniment)


@pytest.mark.parametrize(("old_level", "new_level"), [(1e-5, 0.4), (0.4, 1e-5)])
def test_no_level_is_taken_from_or_given_to_silence(conversion, old_level, new_level):
    voice, stems = panned(old_level, old_level)  # a part below -80 dB is no voice to be matched
    mixed, _ = cover.mix(with_sound(conversion, new_level * voice), stems)
    both_sides = np.repeat(new_level * voice[:, None], 2, axis=1)
    np.testing.assert_allclose(mixed - stems.accompaniment, both_sides, atol=1e-5)


class Halves:
    """A separator that takes half of everything for the voice."""

    name, sample_rate_hz = "halves", 22050

    def __call__(self, samples, progress):
        for fraction in (0.5, 1.0):
            progress(fraction, "halving")
        return 0.5 * samples


def test_the_parts_add_up_to_the_song_and_are_read_again(tmp_path):
    rng = np.random.default_rng(1)
    soundfile.write(tmp_path / "song.wav", 0.2 * rng.standard_normal((RATE, 2)), RATE, "FLOAT")
    shares = []
    stems = cover.separate(tmp_path / "song.wav", Halves(), lambda fraction, text: shares.append(fraction))
    assert shares == pytest.approx([0, 0.5, 0.98])
    expected = audio.resample(soundfile.read(tmp_path / "song.wav", dtype="float32")[0], RATE, 22050)
    np.testing.assert_allclose(stems.voice + stems.accompaniment, expected, atol=1e-6)
    found = cover.open_stems(*cover.save_stems(stems, tmp_path, "song"))
    np.testing.assert_allclose(found.voice, stems.voice, atol=2**-22)
    assert found.sample_rate_hz == 22050
    # Nothing is overwritten, and both carry one number.
    (tmp_path / "song - accompaniment.wav").unlink()
    again = cover.save_stems(stems, tmp_path, "song")
    assert [path.name for path in again] == ["song - voice 2.wav", "song - accompaniment 2.wav"]


def test_parts_that_would_clip_are_turned_down_by_as_much(tmp_path):
    rng = np.random.default_rng(2)
    voice, rest = (x * rng.uniform(-1, 1, (2000, 2)).astype(np.float32) for x in (2.0, 0.5))
    found = cover.open_stems(*cover.save_stems(cover.Stems(voice, rest, 8000), tmp_path, "loud"))
    gain = found.voice[5, 0] / voice[5, 0]
    assert gain < 0.51
    np.testing.assert_allclose(found.voice, gain * voice, atol=1e-6)
    np.testing.assert_allclose(found.accompaniment, gain * rest, atol=1e-6)


def test_a_song_of_more_than_two_hours_is_refused_before_it_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros((8000, 2)), 8000)
    monkeypatch.setitem(budget.LIMITS, "song", budget.Cost(memory_bytes=1e9, seconds=0.5))
    monkeypatch.setattr(audio, "blocks", None)
    with pytest.raises(ConversionError):
        cover.separate(tmp_path / "a.wav", Halves())


def test_stems_of_two_songs_are_refused(tmp_path):
    for name, n in (("a", 8000), ("b", 16000)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(n, 0.1), 8000)
    with pytest.raises(ConversionError):
        cover.open_stems(tmp_path / "a.wav", tmp_path / "b.wav")


def test_the_mix_is_written_with_its_settings(conversion, tmp_path):
    voice, stems = panned()
    path, warnings = cover.save_mix(with_sound(conversion, voice), stems, tmp_path, voice_db=0.0)
    assert warnings == ()
    assert path.name == "song - anna (mix).wav"
    settings = json.loads(path.with_name(path.name + ".json").read_text())
    assert settings["mix"] == {"voice_db": 0.0, "warnings": []}
    found, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(found, stems.voice + stems.accompaniment, atol=2e-5)


def test_two_voices_in_thirds_are_noticed_and_one_is_not(data_dir, tmp_path):
    one, rate = soundfile.read(data_dir / "singing/vocadito_1/vocadito_1.wav", frames=10 * 44100)
    assert cover.harmony_warning(data_dir / "singing/vocadito_1/vocadito_1.wav") == ""
    third = np.interp(np.arange(0, len(one), 2 ** (4 / 12)), np.arange(len(one)), one)  # 4 semitones higher
    n = len(third)
    soundfile.write(tmp_path / "choir.wav", 0.5 * (one[:n] + third), rate)
    assert cover.harmony_warning(tmp_path / "choir.wav")


def demucs_folder(folder, klass="demucs.hdemucs.HDemucs"):
    """A small network of Demucs with fresh weights, in the files of its hub."""
    pretrained = pytest.importorskip("demucs.pretrained")
    torch.manual_seed(0)
    network = pretrained.demucs_unittest()
    arguments = {"channels": 4, "sources": pretrained.SOURCES}
    metadata = {"klass": klass, "args": "[]", "kwargs": json.dumps(arguments)}
    state = {k: v.contiguous() for k, v in network.state_dict().items()}
    safetensors.torch.save_file(state, folder / "abc.safetensors", metadata)
    (folder / "toy.yaml").write_text("models: ['abc']\n")
    return network


def test_demucs_separates_with_its_own_network_the_same_each_time(tmp_path):
    network = demucs_folder(tmp_path).eval()
    separator = cover.DemucsSeparator(tmp_path)
    samples = np.random.default_rng(2).standard_normal((RATE, 2)).astype(np.float32)
    voice = separator(samples, lambda fraction, text: None)
    assert voice.shape == samples.shape
    np.testing.assert_array_equal(voice, separator(samples, lambda fraction, text: None))
    # A piece shorter than a segment is one call of the network on the normalised mix.
    mix = torch.from_numpy(samples.T.copy())
    with torch.no_grad():
        plain = network(((mix - mix.mean()) / mix.std())[None])[0][network.sources.index("vocals")]
    expected = (plain * mix.std() + mix.mean()).T.numpy()
    assert np.abs(voice - expected).mean() < 0.05 * np.abs(expected).mean()


def test_a_file_that_names_another_class_is_not_loaded(tmp_path):
    demucs_folder(tmp_path, klass="subprocess.Popen")
    with pytest.raises(ModelError):
        cover.DemucsSeparator(tmp_path)


def test_missing_weights_are_not_fetched_unasked(tmp_path, monkeypatch):
    pytest.importorskip("demucs")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        cover.DemucsSeparator("htdemucs")
    assert "--download" in str(caught.value)
