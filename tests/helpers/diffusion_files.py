"""A small diffusion instrument and a song as files."""

import numpy as np
import soundfile
import torch
from diffusion_models import TINY
from panels import STATISTICS

from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.vocoders.harmonic import HarmonicSettings

FEATURES = FeatureSettings(
    sample_rate_hz=16000, hop_samples=256, f0_method="swift", mel=MelConfig(16000, 1024, 1024, 256, 40, 0.0, 8000.0)
)
VOCODER = HarmonicSettings(n_harmonics=12, n_noise_bands=9, channels=8, n_layers=1, fft_sizes=(256, 64))


def make_instrument(folder, name="dif", seed=0, **changes):
    import dataclasses

    settings = dataclasses.replace(TINY, channels=16, vocoder=VOCODER, sampler_steps=4, **changes)
    common = {**STATISTICS, "log_mel": {"min": [-11.6] * 40, "max": [1.5] * 40}}
    one = {name: value for name, value in common.items() if name != "singers"}
    statistics = {**common, "singers": {"ann": one, "bea": one}}
    model = instrument.build_model(settings, FEATURES, statistics, seed)
    torch.nn.init.normal_(model.denoiser.last.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return instrument.save(
        folder / f"{name}.zip", model, FEATURES, statistics, created="2026-11-21", name=name, singers=["ann", "bea"]
    )


def make_song(path, f0_hz=220.0, seconds=1.5):
    t = np.arange(int(16000 * seconds)) / 16000
    phase = 2 * np.pi * (f0_hz * t + 0.5 * np.sin(4 * t))
    soundfile.write(path, 0.2 * sum(np.sin(k * phase) / k for k in range(1, 9)), 16000)
