"""Truths held here: mel corners against librosa; an untrained harmonic vocoder already obeys the mel (closed form);
the pitch asked is the pitch heard; frames without pitch hold no harmonics; pieces equal the whole; it learns; another
mel is refused by name."""

import dataclasses
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch

from svclib.audio import mel
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.vocoders import auto
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils import config
from svclib.utils.errors import Cancelled, ConfigError, ModelError

RATE, HOP = 16000, 256
CONTRACT = MelConfig(RATE, 1024, 1024, HOP, 64, 0.0, 7600.0)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, mel=CONTRACT)
SMALL = HarmonicSettings(n_harmonics=60, channels=48, n_layers=2, fft_sizes=(1024, 256, 64))
STATISTICS = {
    "n_recordings": 1,
    "duration_s": 9.0,
    "f0_midi": {},
    "loudness_db": {},
    "loudness_quantiles_db": [-30.0, -20.0],
    "singers": {},
    "log_mel": None,
}


PULSES = dataclasses.replace(SMALL, excitation="pulses")


def tone(f0_hz, n_harmonics=12):
    """Harmonics of amplitude 0.3 / k under a pitch per frame, 0 where it is 0; with a trace of noise everywhere."""
    f0 = np.repeat(np.asarray(f0_hz, dtype=np.float64), HOP)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    audio = sum(0.3 / k * np.sin(k * phase) * (k * f0 < 7000) for k in range(1, n_harmonics + 1)) * (f0 > 0)
    return (audio + 1e-3 * np.random.default_rng(0).standard_normal(len(f0))).astype(np.float32)


def batch_of(audio, f0_hz):
    audio, f0 = torch.from_numpy(np.atleast_2d(audio)), torch.from_numpy(np.atleast_2d(np.float32(f0_hz)))
    return {"audio": audio, "log_mel": mel.log_mel(audio, CONTRACT), "f0_hz": f0, "voiced": f0 > 0}


def busy(seed=0, settings=SMALL, features=FEATURES):
    """With random weights in the last layer, so that the network matters."""
    model = settings.build(features, None, seed).eval()
    torch.nn.init.normal_(model.network.last.weight, std=0.2, generator=torch.Generator().manual_seed(seed))
    return model


def peak_hz(audio, low, high, size=1 << 17):
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), size))
    f_hz = np.fft.rfftfreq(size, 1 / RATE)
    inside = (f_hz > low) & (f_hz < high)
    return f_hz[inside][np.argmax(spectrum[inside])]


@pytest.mark.parametrize(
    "contract", [MelConfig(), CONTRACT, MelConfig(22050, 1024, 1024, 256, 80, 0.0, 8000.0, scale="htk")]
)
def test_mel_corners_are_librosas(contract):
    want = librosa.mel_frequencies(
        contract.n_mels + 2, fmin=contract.fmin_hz, fmax=contract.fmax_hz, htk=contract.scale == "htk"
    )
    np.testing.assert_allclose(contract.edges_hz(), want, rtol=1e-9, atol=1e-6)


# What it sings without any training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("f0_hz", [110.0, 220.0, 440.0])
@pytest.mark.parametrize("change", [{}, {"norm": "none"}, {"log_base": "10"}, {"scale": "htk"}])
def test_untrained_amplitudes_are_the_tones(f0_hz, change):
    """Read from the mel of a known tone: amplitudes within 3 dB where a filter holds one harmonic or more."""
    contract = dataclasses.replace(CONTRACT, **change)
    model = SMALL.build(dataclasses.replace(FEATURES, mel=contract))
    f0 = np.full(40, f0_hz, dtype=np.float32)
    log_mel = mel.log_mel(torch.from_numpy(tone(f0))[None], contract)
    pitch = torch.from_numpy(f0)[None]
    amplitudes, _ = model.controls(log_mel, pitch, pitch > 0)
    k = np.arange(1, 13)[np.arange(1, 13) * f0_hz < 7000]
    error_db = 20 * np.log10(amplitudes[0, 20, : len(k)].detach().numpy() / (0.3 / k))
    assert np.abs(error_db).max() < 5.0 and abs(np.mean(error_db)) < 2.0


def test_untrained_noise_has_the_level_of_the_noise():
    """White noise of -20 dB, unvoiced: the noise filter is flat at the right height."""
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, 200 * HOP).astype(np.float32)
    batch = batch_of(noise, np.zeros(200))
    _, magnitudes = SMALL.build(FEATURES).controls(batch["log_mel"], batch["f0_hz"], batch["voiced"])
    level_db = 20 * torch.log10(magnitudes[0, :, 2:-4].log().mean(0).exp() / 0.1)
    assert float(level_db.detach().abs().max()) < 2.0
    made = SMALL.build(FEATURES).reconstruct(batch)[0].numpy()
    assert abs(20 * np.log10(made.std() / noise.std())) < 1.5


# Pitch and voicing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_hz", [147.0, 311.0, 523.0])
def test_the_pitch_asked_is_the_pitch_heard(asked_hz):
    """Also where the mel came from another pitch: the first three harmonics stand where they were asked, to 3 cents."""
    batch = batch_of(tone(np.full(120, 220.0)), np.full(120, asked_hz))
    made = busy().reconstruct(batch)[0].numpy()
    for k in (1, 2, 3):
        heard = peak_hz(made, k * asked_hz * 0.9, k * asked_hz * 1.1)
        assert abs(1200 * np.log2(heard / (k * asked_hz))) < 3


def test_unvoiced_frames_hold_no_harmonics():
    """A tone's mel sung with voicing off in the middle: harmonics exactly 0 there, and no periodicity in the noise."""
    f0 = np.full(200, 220.0)
    batch = batch_of(tone(f0), f0)
    voiced = np.ones(200, dtype=bool)
    voiced[60:160] = False
    model = busy()
    made = model.render(batch["log_mel"][0].numpy(), f0, voiced)
    off = slice(60 * HOP, 160 * HOP)
    assert np.abs(made.harmonic[off]).max() == 0 and np.abs(made.harmonic[: 59 * HOP]).max() > 0.01
    for f0_of_unvoiced in (0.0, 220.0):  # whatever pitch stands there
        sung = model.render(batch["log_mel"][0].numpy(), np.where(voiced, f0, f0_of_unvoiced), voiced)
        np.testing.assert_allclose(sung.audio, made.audio, atol=1e-6)

    def periodicity(x):
        lag = round(RATE / 220)
        return np.dot(x[:-lag], x[lag:]) / np.dot(x, x)

    assert periodicity(made.audio[: 55 * HOP]) > 0.9
    plain = SMALL.build(FEATURES).render(batch["log_mel"][0].numpy(), f0, np.zeros(200, bool))
    breath = SMALL.build(FEATURES)
    whisper = batch_of(np.random.default_rng(2).uniform(-0.1, 0.1, 200 * HOP).astype(np.float32), np.zeros(200))
    made = breath.render(whisper["log_mel"][0].numpy(), np.zeros(200), np.zeros(200, bool))
    assert abs(periodicity(made.audio)) < 0.05 and np.abs(plain.harmonic).max() == 0


def test_pitch_of_zero_is_unvoiced_whatever_is_said():
    batch = batch_of(tone(np.full(20, 220.0)), np.zeros(20))
    made = busy().render(batch["log_mel"][0].numpy(), np.zeros(20), np.ones(20, dtype=bool))
    assert np.abs(made.harmonic).max() == 0 and np.isfinite(made.audio).all()


# Long songs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_frames, settings", [(1, SMALL), (7, SMALL), (50, SMALL), (1, PULSES), (7, PULSES)])
def test_pieces_equal_the_whole(chunk_frames, settings):
    rng = np.random.default_rng(3)
    f0 = np.where(rng.random(93) < 0.8, 200 * 2 ** np.cumsum(0.02 * rng.standard_normal(93)), 0.0)
    batch = batch_of(tone(f0), f0)
    arrays = [batch[k][0].numpy() for k in ("log_mel", "f0_hz", "voiced")]
    model = busy(settings=settings)
    whole = model.render(*arrays, seed=5, chunk_frames=1000)
    made = model.render(*arrays, seed=5, chunk_frames=chunk_frames)
    for part in ("audio", "harmonic", "noise"):
        np.testing.assert_allclose(getattr(made, part), getattr(whole, part), atol=1e-5)
    assert len(whole.audio) == 93 * HOP
    at_once = model.resynthesize(batch, torch.Generator().manual_seed(5))
    np.testing.assert_allclose(whole.audio, at_once[0].detach().numpy(), atol=1e-4)  # as it was trained
    assert not np.array_equal(model.render(*arrays, seed=6).noise, whole.noise)


def test_it_can_be_cancelled_and_says_how_far_it_is():
    batch, told = batch_of(tone(np.full(60, 220.0)), np.full(60, 220.0)), []
    arrays = [batch[k][0].numpy() for k in ("log_mel", "f0_hz", "voiced")]
    busy().render(*arrays, chunk_frames=20, progress=lambda fraction, _: told.append(fraction))
    np.testing.assert_allclose(told, [1 / 3, 2 / 3, 1])
    with pytest.raises(Cancelled):
        busy().render(*arrays, cancelled=lambda: True)


# Pulses ---------------------------------------------------------------------------------------------------------------


def voice(f0_hz, shift=0.0, polarity=1.0):
    """Pulses of a pitch per frame through three resonances: sound, F0, and the place of the pulses in cycles."""
    f0 = np.repeat(np.asarray(f0_hz, np.float64), HOP)
    cycles = np.cumsum(f0) / RATE + shift
    audio = 0.0
    for k in range(1, 60):
        delay = np.exp(-2j * np.pi * k * f0 / RATE)
        poles = [0.97 * np.exp(2j * np.pi * f / RATE) for f in (600, 1500, 2800)]
        response = 1 / np.prod([(1 - p * delay) * (1 - p.conjugate() * delay) for p in poles], axis=0)
        audio = audio + 0.01 * (response * np.exp(2j * np.pi * k * cycles)).real * (k * f0 < 7000)
    return (polarity * audio + 1e-4 * np.random.default_rng(0).standard_normal(len(f0))).astype(np.float32), f0_hz


def test_pulses_without_training_have_the_phases_of_a_resonant_filter():
    """The mel of pulses through resonances, and no more than the place of one pulse: the waveform comes back."""
    audio, f0 = voice(np.full(60, 125.0), 0.0)
    batch = batch_of(audio, f0)
    similar = {}
    for name, settings in (("sines", SMALL), ("pulses", PULSES)):
        made = settings.build(FEATURES).render(*(batch[k][0].numpy() for k in ("log_mel", "f0_hz", "voiced"))).harmonic
        inside = slice(10 * HOP, 50 * HOP)
        similar[name] = max(np.corrcoef(np.roll(made, lag)[inside], audio[inside])[0, 1] for lag in range(128))
    assert similar["pulses"] > 0.95 > 0.8 > similar["sines"]


@pytest.mark.parametrize("shift, polarity", [(0.0, 1.0), (0.3, 1.0), (0.8, -1.0)])
def test_in_training_pulses_lie_where_the_recording_has_them(shift, polarity):
    """An F0 a third of a percent off, any place and polarity: locked, the untrained vocoder is in phase to the end."""
    f0 = 140 * 2 ** (0.1 * np.sin(np.arange(80) / 9))
    audio, _ = voice(f0, shift, polarity)
    model, batch = PULSES.build(FEATURES), batch_of(audio, f0 * 1.003)
    locked = model.locked(batch)
    assert np.allclose(locked["audio"][0], polarity * audio)
    with torch.no_grad():
        made = model.resynthesize(locked, torch.Generator())[0].numpy()
    for part in (slice(5 * HOP, 30 * HOP), slice(50 * HOP, 75 * HOP)):
        assert np.corrcoef(made[part], locked["audio"][0, part])[0, 1] > 0.9


def test_the_fundamental_keeps_its_phase():
    """Whatever the network says: a phase that moves with the mel would be another pitch."""
    audio, f0 = voice(np.full(40, 140.0))
    amplitudes, _ = busy(settings=PULSES).controls(*(batch_of(audio, f0)[k] for k in ("log_mel", "f0_hz", "voiced")))
    np.testing.assert_allclose(amplitudes[0, :, 0].angle().detach(), np.pi / 2, atol=1e-5)
    assert amplitudes[0, :, 1:20].angle().std(dim=0).min() > 0.05


def test_pulses_learn_phases_and_depths():
    """All five outputs get a gradient, and the default settings have the two they had."""
    audio, f0 = voice(140 * 2 ** (0.1 * np.sin(np.arange(40) / 9)))
    model, batch = busy(settings=PULSES), batch_of(audio, f0)
    model.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    slopes = model.network.last.weight.grad.abs().sum(dim=(1, 2)).view(5, -1).sum(dim=1)
    assert (slopes > 0).all()
    assert SMALL == dataclasses.replace(PULSES, excitation="sines") and SMALL == HarmonicSettings(
        n_harmonics=60, channels=48, n_layers=2, fft_sizes=(1024, 256, 64)
    )
    assert 5 * SMALL.build(FEATURES).network.last.out_channels == 2 * model.network.last.out_channels


def test_unvoiced_frames_of_pulses_have_steady_noise():
    f0 = np.full(60, 220.0)
    batch = batch_of(tone(f0), f0)
    _, noise = busy(settings=PULSES).controls(batch["log_mel"], batch["f0_hz"], torch.zeros_like(batch["voiced"]))
    assert noise[:, :, 1:].abs().max() == 0 and noise[:, :, 0].min() > 0
    _, noise = busy(settings=PULSES).controls(batch["log_mel"], batch["f0_hz"], batch["voiced"])
    depth = noise[:, :, 1:].square().sum(2).sqrt() / noise[:, :, 0]
    assert 0.1 < depth.max() < 1
    assert not torch.allclose(noise[:, :, 1], noise[:, :, 2], atol=0.01 * float(noise.max()))  # of any phase


# Training -------------------------------------------------------------------------------------------------------------


def test_it_learns_one_example():
    """A bright tone in noise: the loss falls by a third within 40 steps, to below what no training gives."""
    f0 = 220 * 2 ** (0.05 * np.sin(np.arange(60) / 6))
    f0[40:50] = 0
    batch = batch_of(tone(f0) + 0.02 * np.random.default_rng(4).standard_normal(60 * HOP).astype(np.float32), f0)
    model = SMALL.build(FEATURES)
    before = float(model.validation_loss(batch))
    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(40):
        loss, parts = model.loss(batch, torch.Generator().manual_seed(step))
        assert loss.item() == pytest.approx(float(parts["linear"] + parts["log"]), rel=1e-5)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert float(model.validation_loss(batch)) < 0.67 * before
    assert float(model.validation_loss(batch)) == float(model.validation_loss(batch))
    assert model.reconstruct(batch).shape == batch["audio"].shape


def test_equal_seeds_equal_weights():
    a, b, c = (SMALL.build(FEATURES, None, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("overlays, rate_hz", [(["harmonic"], 44100), (["harmonic", "tiny"], 44100)])
def test_presets_build(overlays, rate_hz):
    preset = config.load(overlays)
    model = preset.model.build(preset.features)
    assert model.sample_rate_hz == rate_hz and model.contract == MelConfig()
    n = sum(p.numel() for p in model.parameters())
    assert n < (1_500_000 if len(overlays) == 1 else 50_000)


# Instruments and refusals ---------------------------------------------------------------------------------------------


def test_an_instrument_of_this_kind_opens_and_sings_the_same(tmp_path):
    model = busy()
    path = instrument.save(tmp_path / "v.zip", model, FEATURES, STATISTICS, created="2026-11-21")
    opened = instrument.open(path)
    assert opened.kind == "harmonic" and opened.info["loss"]["fft_sizes"] == [1024, 256, 64]
    batch = batch_of(tone(np.full(30, 220.0)), np.full(30, 220.0))
    assert torch.equal(opened.model.reconstruct(batch, 3), model.reconstruct(batch, 3))


def test_another_mel_is_refused_naming_both_sides():
    batch = batch_of(tone(np.full(30, 220.0)), np.full(30, 220.0))
    model = busy()
    other = dataclasses.replace(CONTRACT, log_base="10", fmax_hz=8000.0)
    with pytest.raises(ModelError, match="'harmonic' and of my song differ: fmax_hz 7600.0 against 8000.0, log_base"):
        model.contract.require(other, "the vocoder 'harmonic'", "my song")
    vocoder = auto.LoadedVocoder("v", "harmonic", FEATURES, "", Path(), model)
    log_mel, f0_hz, voiced = (batch[name][0].numpy() for name in ("log_mel", "f0_hz", "voiced"))
    for wrong in ((log_mel[:, :40], f0_hz, voiced), (log_mel, f0_hz[:20], voiced[:20]), (log_mel, f0_hz, voiced[:20])):
        with pytest.raises(ModelError, match=r"do not fit; expected finite numbers, \[frames, 64\]"):
            vocoder.render(*wrong)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "ddsp"}, "harmonic"),
        ({"n_harmonics": 0}, "from 1 to 1000"),
        ({"n_layers": 21}, "whole number"),
        ({"fft_sizes": (100, 30)}, "multiples of 4"),
        ({"log_rule": "v3"}, "v1, v2"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SMALL, **change)
    with pytest.raises(ModelError, match="log-mel"):
        SMALL.build(FeatureSettings())
