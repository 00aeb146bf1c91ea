"""The definition of a mel: filters, centres and logarithms against librosa, and a waveform from every definition."""

import dataclasses
import math

import librosa
import numpy as np
import pytest
import torch

from svclib.audio.mel import MelConfig, griffin_lim, log_mel

SMALL = MelConfig(16000, 512, 512, 128, 40, 60.0, 7600.0)


@pytest.mark.parametrize("norm", ["slaney", "none"])
@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_griffin_lim_gives_back_the_mel_of_a_tone(scale, norm):
    config = dataclasses.replace(SMALL, scale=scale, norm=norm)
    tone = 0.3 * torch.sin(2 * math.pi * 440 * torch.arange(16000) / 16000)[None]
    mel = log_mel(tone, config)
    audio = griffin_lim(mel, config)
    assert audio.shape == tone.shape and bool(torch.isfinite(audio).all())
    loud = mel > mel.max() - 3
    assert (log_mel(audio, config) - mel)[loud].abs().mean() < 0.3


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_centres_are_the_peaks_of_the_filters(scale):
    config = dataclasses.replace(MelConfig(), scale=scale)
    edges = config.edges_hz()
    assert len(edges) == config.n_mels + 2 and edges[0] == pytest.approx(40) and edges[-1] == pytest.approx(16000)
    np.testing.assert_array_equal(config.centers_hz(), edges[1:-1])
    wide = config.filters()[64:]
    bins_hz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate_hz)
    np.testing.assert_allclose(bins_hz[wide.argmax(dim=1)], config.centers_hz()[64:], atol=bins_hz[1])
    want = librosa.filters.mel(sr=44100, n_fft=2048, n_mels=128, fmin=40, fmax=16000, htk=scale == "htk")
    np.testing.assert_allclose(config.filters().numpy(), want, atol=1e-7)


@pytest.mark.parametrize(("base", "log"), [("e", np.log), ("10", np.log10)])
def test_logarithms(base, log):
    config = dataclasses.replace(MelConfig(), log_base=base)
    magnitude = np.array([1e-5, 0.1, 1.0, 3.0])
    assert config.log_floor == pytest.approx(log(1e-5))
    np.testing.assert_allclose(config.to_nepers(log(magnitude)), np.log(magnitude), atol=1e-12)
    np.testing.assert_allclose(config.to_db(log(magnitude)), 20 * np.log10(magnitude), atol=1e-12)
