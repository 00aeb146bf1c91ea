"""Truths held here: sines whose pitch and phase are known in closed form; a signal locked to itself is itself;
the level of white noise; what is ten times quieter is sung the same, ten times quieter."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import toy

from svclib.audio.mel import MelConfig, log_mel
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave import model as diffwave
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.models.vocoders import auto as vocoding
from svclib.models.vocoders.harmonic import HarmonicSource
from svclib.utils.errors import ConfigError

RATE, HOP, FRAMES = 8000, 64, 60
MEL = MelConfig(
    sample_rate_hz=RATE, n_fft=256, window_samples=256, hop_samples=HOP, n_mels=24, fmin_hz=0.0, fmax_hz=4000.0
)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, mel=MEL)
STATISTICS = {**toy.STATISTICS, "log_mel": {"min": -11.6, "max": 2.0}}
SINGS = DiffWaveSettings(channels=8, n_layers=4, dilation_cycle=3, condition_dims=6, source="harmonic")


def vibrato(phase: float, levels=(0.3, 0.1, 0.05)):
    """Harmonics of 200 Hz with a vibrato of 1 %, 5 Hz, from a phase on: samples and pitch of every frame's middle."""
    t = np.arange(FRAMES * HOP) / RATE
    cycles = 200 * t - 200 * 0.01 / (2 * math.pi * 5) * np.cos(2 * math.pi * 5 * t)
    angle = 2 * math.pi * cycles + phase
    sound = sum(a * np.sin((k + 1) * angle) for k, a in enumerate(levels))
    middles = (np.arange(FRAMES) * HOP + HOP // 2) / RATE
    return sound, 200 * (1 + 0.01 * np.sin(2 * math.pi * 5 * middles)), np.sin(angle)


def told(sound, f0_hz, voiced=None):
    """One recording as a batch: audio, log-mel, pitch, voicing."""
    audio = torch.tensor(sound[None], dtype=torch.float32)
    on = torch.ones(1, FRAMES, dtype=torch.bool) if voiced is None else voiced
    return audio, log_mel(audio, MEL), torch.tensor(f0_hz[None], dtype=torch.float32), on


def fundamental(signal):
    """The part of a signal between 150 and 250 Hz."""
    spectrum = np.fft.rfft(np.asarray(signal, float))
    f_hz = np.fft.rfftfreq(len(signal), 1 / RATE)
    return np.fft.irfft(spectrum * ((f_hz > 150) & (f_hz < 250)), len(signal))


def likeness(a, b):
    """Cosine between two signals, the ends left out."""
    a, b = (np.asarray(x)[400:-400] for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("phase", [0.0, 1.3, -2.9])
def test_the_fundamental_is_locked_to_the_recording(phase):
    sound, f0_hz, sine = vibrato(phase)
    source = HarmonicSource(FEATURES)
    batch = told(sound, f0_hz)
    locked = source.locked(*batch)[0].numpy()
    assert likeness(fundamental(locked), fundamental(sine)) > 0.999
    assert likeness(locked, sound) > 0.97  # harmonics keep their order; their levels are read from 24 mels
    free = source.songs(*batch[1:])[0].numpy()
    if phase:
        assert likeness(fundamental(free), fundamental(sine)) < 0.8  # by the pitch alone it starts at phase 0
    assert np.isclose(np.std(locked), np.std(free), rtol=0.05)


def test_locked_to_itself_it_is_itself_and_silent_without_pitch():
    _, f0_hz, _ = vibrato(0.0)
    voiced = torch.ones(1, FRAMES, dtype=torch.bool)
    voiced[:, 20:30] = False
    source = HarmonicSource(FEATURES)
    _, mel, pitch, on = told(vibrato(0.0)[0], f0_hz, voiced)
    own = source.songs(mel, pitch, on)[0].numpy()
    locked = source.locked(torch.from_numpy(own)[None], mel, pitch, on)[0].numpy()
    assert likeness(locked[: 19 * HOP], own[: 19 * HOP]) > 0.9999
    for signal in (own, locked):
        assert np.abs(signal[20 * HOP : 30 * HOP]).max() == 0 < np.abs(signal[:1000]).max()


def test_rows_do_not_see_each_other():
    rows = [told(*vibrato(p)[:2]) for p in (0.2, 2.0)]
    source = HarmonicSource(FEATURES)
    both = source.locked(*(torch.cat(x) for x in zip(*rows, strict=True)))
    for i, row in enumerate(rows):
        torch.testing.assert_close(both[i], source.locked(*row)[0], atol=1e-6, rtol=0)


def test_the_level_that_a_mel_tells():
    """White noise of any level, by the weights of ``power_shares``; a sine by the same, within 3 dB."""
    model = dataclasses.replace(SINGS, prior="level").build(FEATURES)
    noise = torch.randn(4, 400 * HOP, generator=torch.Generator().manual_seed(0))
    for level in (1.0, 0.03):
        spread = model.prior_std(model.scale(log_mel(level * noise, MEL)))
        assert float(spread.mean()) * diffwave.LEVEL == pytest.approx(level, rel=0.06)
    sine = torch.tensor(vibrato(0.0, (0.3,))[0][None], dtype=torch.float32)
    told_rms = float(model.prior_std(model.scale(log_mel(sine, MEL))).mean()) * diffwave.LEVEL
    assert 2**-0.5 < told_rms / (0.3 / 2**0.5) < 2**0.5
    silence = model.prior_std(model.scale(log_mel(torch.zeros(1, 640), MEL)))
    assert torch.all(silence == silence.new_tensor(diffwave.LEAST_LEVEL / diffwave.LEVEL))


def test_with_the_prior_level_a_tenth_of_the_sound_is_sung_as_the_same_at_a_tenth():
    model = dataclasses.replace(SINGS, prior="level").build(FEATURES)
    torch.nn.init.normal_(model.net.output.weight, std=0.3)
    torch.nn.init.zeros_(model.net.context.weight)  # but for the level, this network does not read the mel
    sound, f0_hz, _ = vibrato(0.0)
    pitch, voiced = f0_hz.astype(np.float32), np.ones(FRAMES, bool)
    mels = [log_mel(torch.tensor(a * sound[None], dtype=torch.float32), MEL)[0].numpy() for a in (1.0, 0.1)]
    loud, quiet = (diffwave_uses.vocode(model, m, pitch, voiced, SamplingOptions(seed=5)) for m in mels)
    np.testing.assert_allclose(quiet, 0.1 * loud, atol=2e-3 * np.abs(quiet).max())
    rows = [told(a * sound, f0_hz) for a in (1.0, 0.1)]
    batches = [dict(zip(("audio", "log_mel", "f0_hz", "voiced"), row, strict=True)) for row in rows]
    loud, quiet = (float(model.loss(b, torch.Generator().manual_seed(3))[0].detach()) for b in batches)
    assert quiet == pytest.approx(loud, rel=1e-3)


def test_behind_the_one_door_the_pitch_arrives(tmp_path):
    sound, f0_hz, _ = vibrato(0.0)
    _, mel, _, on = told(sound, f0_hz)
    model = SINGS.build(FEATURES)
    torch.nn.init.normal_(model.net.output.weight, std=0.3)  # fresh networks are silent
    path = instrument.save(tmp_path / "v.zip", model, FEATURES, STATISTICS, created="2026-11-21")
    opened = vocoding.load_vocoder(path)
    sung = [opened.render(mel[0].numpy(), f, on[0].numpy(), seed=1).audio for f in (f0_hz, 1.5 * f0_hz)]
    direct = diffwave_uses.vocode(
        model, mel[0].numpy(), f0_hz.astype(np.float32), on[0].numpy(), SamplingOptions(seed=1)
    )
    np.testing.assert_allclose(sung[0], direct, atol=1e-6)
    assert not np.allclose(*sung)


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="source are for a vocoder"):
        DiffWaveSettings(condition="none", source="harmonic")
    with pytest.raises(ConfigError, match="source"):
        DiffWaveSettings(source="sine")
