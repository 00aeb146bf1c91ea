"""Truths about log-mel and loudness: an independent numpy version, closed forms, exact frame counts, chunks = whole."""

import dataclasses
import json

import librosa
import numpy as np
import pytest
import torch

from svclib.audio import units
from svclib.audio.loudness import a_weighting_db, loudness_db, note_on_ratio
from svclib.audio.mel import MelConfig, log_mel
from svclib.features import extract, f0
from svclib.features.extract import Features, FeatureSettings
from svclib.features.f0 import fill_unvoiced
from svclib.utils.errors import AudioError, ConfigError, ModelError

SMALL = MelConfig(22050, 1024, 1024, 256, 80, 0.0, 8000.0)
GRIDS = [FeatureSettings(), FeatureSettings(44100, 512, mel=MelConfig()), FeatureSettings(22050, 256, mel=SMALL)]


def voice(seconds, rate, f0=196.0, seed=0):
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(f0 * 2 ** (0.5 / 12 * np.sin(2 * np.pi * 5 * t))) / rate
    noise = np.random.default_rng(seed).normal(0, 0.003, len(t))
    return (sum(np.sin(k * phase) / k for k in range(1, 12)) * 0.15 + noise).astype(np.float32)


def plain_log_mel(x, c):
    """The definition, written with numpy and librosa alone, in float64."""
    pad = (c.n_fft - c.hop_samples) // 2
    padded = np.pad(x.astype(np.float64), pad, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(c.window_samples) / c.window_samples)
    frames = np.lib.stride_tricks.sliding_window_view(padded, c.n_fft)[:: c.hop_samples] * window
    transform = np.fft.rfft(frames, axis=1)
    magnitude = np.sqrt(transform.real**2 + transform.imag**2 + 1e-9)
    filters = librosa.filters.mel(
        sr=c.sample_rate_hz, n_fft=c.n_fft, n_mels=c.n_mels, fmin=c.fmin_hz, fmax=c.fmax_hz, dtype=np.float64
    )
    return np.log(np.maximum(magnitude @ filters.T, 1e-5))


# Log-mel --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contract", [MelConfig(), SMALL], ids=["44k", "22k"])
@pytest.mark.parametrize("n", [44100, 30001, 1024, 769, 600])
def test_log_mel_is_nsf_hifigans(contract, n):
    x = voice(1, 44100)[:n]
    found = log_mel(torch.from_numpy(x)[None], contract)[0].numpy()
    expected = plain_log_mel(x, contract)
    assert len(found) == n // contract.hop_samples
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-4)


@pytest.mark.parametrize("norm", ["slaney", "none"])
def test_silence_reads_the_floor(norm):
    """Silence has sqrt(1e-9) in every bin; filters of height 1 see that, filters of area 1 stay below the floor."""
    found = log_mel(torch.zeros(1, 4096), dataclasses.replace(MelConfig(), norm=norm))
    filters = librosa.filters.mel(
        sr=44100, n_fft=2048, n_mels=128, fmin=40, fmax=16000, norm=None if norm == "none" else norm
    )
    expected = np.log(np.maximum(filters.sum(axis=1) * np.sqrt(1e-9), 1e-5))
    np.testing.assert_allclose(found[0, 3], expected, atol=1e-4)
    assert (expected.max() > -11.5) == (norm == "none")


def test_log_base_ten_is_the_natural_one_scaled():
    x = torch.from_numpy(voice(0.5, 44100))[None]
    natural = log_mel(x, MelConfig())
    ten = log_mel(x, dataclasses.replace(MelConfig(), log_base="10"))
    np.testing.assert_allclose(natural, 2.30259 * ten, atol=2e-5)


def test_log_mel_has_gradients():
    x = torch.from_numpy(voice(0.1, 44100)[:3000]).double()[None].requires_grad_()
    contract = dataclasses.replace(MelConfig(), n_mels=8)
    weights = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (log_mel(x, contract) * weights).sum().backward()
    for i in (0, 1, 1500, 2559):
        step = torch.zeros_like(x)
        step[0, i] = 1e-6
        high, low = ((log_mel(x.detach() + s, contract) * weights).sum() for s in (step, -step))
        assert x.grad[0, i] == pytest.approx((high - low).item() / 2e-6, rel=1e-4, abs=1e-4)


# Loudness -------------------------------------------------------------------------------------------------------------


def loudness(x, rate=16000, hop=64, n_fft=512):
    start, n = n_fft // 2 + hop // 2, (len(x) // hop - 1) * hop + n_fft
    padded = np.pad(np.asarray(x), n_fft)[start : start + n]
    return loudness_db(torch.from_numpy(padded)[None], rate, hop, n_fft)[0].numpy()


def test_loudness_of_the_noise_example():
    x = np.random.default_rng(0).uniform(-1, 1, 64000)
    assert loudness(x)[500] == pytest.approx(18.3465, abs=1e-3)
    assert loudness(x.astype(np.float32))[500] == pytest.approx(18.3465, abs=1e-3)


@pytest.mark.parametrize(("f_hz", "amplitude", "expected"), [(1000, 1, 19.805), (440, 1, 15.711), (440, 0.75, 13.212)])
def test_loudness_of_sines(f_hz, amplitude, expected):
    x = amplitude * np.sin(2 * np.pi * f_hz * np.arange(64000) / 16000)
    assert loudness(x)[500] == pytest.approx(expected, abs=2e-3)


def test_a_thousand_hertz_sine_is_the_closed_form():
    """Power of a sine under a Hann window: 128^2 + 2 * 64^2 over 257 bins; A-weighting is 0 there."""
    x = np.sin(2 * np.pi * 1000 * np.arange(64000) / 16000)
    assert loudness(x)[500] == pytest.approx(10 * np.log10((128**2 + 2 * 64**2) / 257), abs=2e-3)


@pytest.mark.parametrize("gain", [0.5, 0.1, 0.01])
def test_loudness_follows_gain_exactly(gain):
    x = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    difference = loudness(x * np.float32(gain)) - loudness(x)
    np.testing.assert_allclose(difference, 20 * np.log10(gain), atol=1e-4)
    if gain == 0.5:
        np.testing.assert_allclose(difference, -6.0206, atol=1e-4)


def test_silence_is_at_the_floor_and_nothing_is_below():
    assert set(loudness(np.zeros(6400, np.float32))) == {-80.0}
    assert loudness(1e-9 * np.ones(6400)).min() == -80.0


def test_ends_see_zeros():
    """A frame at the end of a loud tone sees half a window of zeros less the frame's own half: lower, never louder."""
    x = np.sin(2 * np.pi * 1000 * np.arange(64000) / 16000)
    found = loudness(x)
    padded = loudness(np.concatenate([np.zeros(6400), x, np.zeros(6400)]))[100:-100]
    np.testing.assert_allclose(found, padded, atol=1e-9)
    assert 1.5 < found[500] - found[0] < 3.07


def test_windows_are_centred_in_the_frame():
    """A click in the middle of frame 50 is read highest there and equally in the frames around."""
    for rate, hop, n_fft in ((16000, 64, 512), (44100, 512, 2048)):
        x = np.zeros(hop * 100)
        x[50 * hop + hop // 2] = 1.0
        found = loudness(x, rate, hop, n_fft=n_fft)
        assert found.argmax() == 50
        assert found[49] == pytest.approx(found[51], abs=1e-9)


def test_a_weighting_is_librosas():
    f_hz = np.array([20, 50, 100, 440, 1000, 4000, 8000, 16000])
    np.testing.assert_allclose(a_weighting_db(f_hz), librosa.A_weighting(f_hz), atol=1e-3)
    np.testing.assert_allclose(
        a_weighting_db([100, 440, 1000, 4000, 8000]), [-19.142, -4.095, 0.0, 0.964, -1.147], atol=1e-3
    )
    assert a_weighting_db(0.0) == -80.0


# Frames and chunks ----------------------------------------------------------------------------------------------------


@pytest.mark.case("P9")
@pytest.mark.parametrize("settings", GRIDS, ids=["16k", "44k", "22k"])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("hops", [0, 1, 3])
def test_every_extractor_gives_exactly_the_frames_there_are(settings, offset, hops):
    n = max(0, hops * settings.hop_samples + offset)
    found = extract.extract(voice(0.5, settings.sample_rate_hz)[:n], settings)
    assert found.n_frames == n // settings.hop_samples
    arrays = [found.f0_hz, found.voiced, found.confidence, found.loudness_db]
    arrays += [found.log_mel] if settings.mel else []
    assert {len(a) for a in arrays} == {found.n_frames}
    assert [a.dtype for a in arrays[:4]] == [np.float32, bool, np.float32, np.float32]
    assert all(np.isfinite(a).all() for a in arrays)


@pytest.mark.parametrize("settings", GRIDS, ids=["16k", "44k", "22k"])
def test_chunks_make_no_difference(settings, monkeypatch):
    x = voice(6.7, settings.sample_rate_hz)
    whole = extract.extract(x, settings)
    monkeypatch.setattr(f0, "CHUNK_S", 2)
    chunked = extract.extract(x, settings)
    np.testing.assert_array_equal(whole.voiced, chunked.voiced)
    np.testing.assert_allclose(whole.f0_hz, chunked.f0_hz, rtol=1e-5)
    np.testing.assert_allclose(whole.confidence, chunked.confidence, atol=1e-4)
    np.testing.assert_allclose(whole.loudness_db, chunked.loudness_db, atol=1e-4)
    direct = loudness(x, settings.sample_rate_hz, settings.hop_samples, n_fft=settings.loudness_n_fft)
    np.testing.assert_allclose(whole.loudness_db, direct, atol=1e-4)
    if settings.mel:
        np.testing.assert_allclose(whole.log_mel, chunked.log_mel, atol=1e-4)
        np.testing.assert_allclose(whole.log_mel, plain_log_mel(x, settings.mel)[: whole.n_frames], atol=2e-4)


def test_sixteen_bit_samples_are_the_same_sound():
    x = np.rint(voice(2, 16000) * 32768).astype(np.int16)
    a, b = extract.extract(x, GRIDS[0]), extract.extract(x.astype(np.float32) / 32768, GRIDS[0])
    np.testing.assert_array_equal(a.f0_hz, b.f0_hz)
    np.testing.assert_array_equal(a.loudness_db, b.loudness_db)


def test_progress_rises_to_one(monkeypatch):
    told = []
    monkeypatch.setattr(f0, "CHUNK_S", 2)
    extract.extract(voice(5, 16000), GRIDS[0], lambda fraction, text: told.append(fraction))
    assert told == sorted(told) and told[-1] == pytest.approx(1.0) and len(told) > 4


@pytest.mark.parametrize("bad", [np.zeros((2, 100), np.float32), np.array([0.1, np.nan], np.float32), np.arange(5)])
def test_extract_refuses_what_is_not_one_finite_channel(bad):
    with pytest.raises(AudioError):
        extract.extract(bad, GRIDS[0])


# Notes ----------------------------------------------------------------------------------------------------------------


def test_fill_unvoiced_is_a_straight_line_in_log_frequency():
    f0_hz = np.array([500, 100, 0, 999, 0, 400, 7], np.float32)
    voiced = np.array([0, 1, 0, 0, 1, 1, 0], bool)
    filled = fill_unvoiced(f0_hz, voiced)
    np.testing.assert_allclose(filled, [100, 100, 100 * 4**0.25, 200, 100 * 4**0.75, 400, 400], rtol=1e-6)
    assert filled.dtype == np.float32
    assert filled[1] == f0_hz[1]


def test_fill_unvoiced_without_voice_is_zero():
    np.testing.assert_array_equal(fill_unvoiced(np.full(4, 100.0), np.zeros(4, bool)), np.zeros(4))
    assert len(fill_unvoiced(np.zeros(0), np.zeros(0, bool))) == 0


def test_note_on_ratio_of_a_steady_sure_tone():
    ratio = note_on_ratio(np.full(300, -20.0), np.ones(300))
    np.testing.assert_allclose(ratio, 2.040816, atol=1e-6)
    np.testing.assert_allclose(note_on_ratio(np.full(300, -20.0), np.full(300, 0.7)), 1.0, atol=1e-12)


def test_note_on_ratio_is_the_box_times_the_height():
    rng = np.random.default_rng(0)
    loudness_db, confidence = rng.uniform(-80, 10, 200), rng.random(200)
    height = (loudness_db + 80) / ((loudness_db.mean() + 80) * 0.49)
    box = [np.mean(confidence[max(0, i - 19) : i + 21] ** 2) for i in range(200)]
    np.testing.assert_allclose(note_on_ratio(loudness_db, confidence), box * height, atol=1e-9)


def test_silence_has_no_notes():
    assert not (note_on_ratio(np.full(50, -80.0), np.ones(50)) >= 1.0).any()
    assert len(note_on_ratio(np.zeros(0), np.zeros(0))) == 0


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [*GRIDS, MelConfig(), SMALL])
def test_settings_survive_json(settings):
    again = type(settings).from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings and hash(again) == hash(settings)


BAD = [
    (MelConfig(), {"n_mels": "128"}),
    (MelConfig(), {"n_mels": True}),
    (MelConfig(), {"n_mels": 10**9}),
    (MelConfig(), {"hop_samples": 511}),
    (MelConfig(), {"hop_samples": 4096}),
    (MelConfig(), {"fmax_hz": 30000.0}),
    (MelConfig(), {"fmin_hz": float("nan")}),
    (MelConfig(), {"scale": "bark"}),
    (MelConfig(), {"floor": 0.0}),
    (MelConfig(), {"secret": 1}),
    (FeatureSettings(), {"f0_method": "guess"}),
    (FeatureSettings(), {"hop_samples": 63}),
    (FeatureSettings(), {"hop_samples": 64.5}),
    (FeatureSettings(), {"f0_max_hz": 60.0}),
    (FeatureSettings(), {"voicing_threshold": 1.5}),
    (FeatureSettings(), {"mel": MelConfig().to_json()}),
    (FeatureSettings(), {"mel": [1]}),
]


@pytest.mark.parametrize(("settings", "change"), BAD)
def test_settings_refuse_nonsense_in_a_sentence(settings, change):
    with pytest.raises(ConfigError):
        type(settings).from_json(settings.to_json() | change)


def test_a_missing_field_is_named():
    record = FeatureSettings().to_json()
    del record["hop_samples"]
    with pytest.raises(ConfigError, match="hop_samples"):
        FeatureSettings.from_json(record)


def test_another_mel_is_refused_with_both_sides_named():
    MelConfig().require(MelConfig())
    with pytest.raises(ModelError, match=r"the song and of the vocoder 'x' differ: .*n_mels 128 against 80"):
        MelConfig().require(dataclasses.replace(MelConfig(), n_mels=80), "the song", "the vocoder 'x'")


def test_features_of_different_lengths_are_refused():
    zeros = np.zeros(10, np.float32)
    with pytest.raises(ModelError, match="confidence has 9 frames"):
        Features(FeatureSettings(), 640, zeros, zeros > 1, zeros[:9], zeros)


@pytest.mark.case("P12")
def test_frame_centres_are_where_units_says():
    """A tone that starts in the middle of the recording: loudness is half way up at the frame whose centre is there."""
    x = np.zeros(64000)
    x[32000:] = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000)
    power = 10 ** (loudness(x) / 10)
    centers_s = units.frame_centers_s(len(power), 64, 16000)
    assert np.interp(0.25, np.sqrt(power / power[900])[480:520] ** 2, centers_s[480:520]) == pytest.approx(
        2.0, abs=0.004
    )
