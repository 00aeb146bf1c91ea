"""Small vocoders and a diffusion model with one, all with random weights."""

import torch
import toy

from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.vocoders.harmonic import HarmonicSettings

HARMONIC = HarmonicSettings(n_harmonics=40, n_noise_bands=17, channels=16, n_layers=1, fft_sizes=(512, 128))
DIFFUSION = DiffusionSettings(
    channels=16,
    n_layers=2,
    condition_dims=16,
    coarse_channels=16,
    coarse_layers=1,
    content_channels=16,
    content_layers=1,
    code_dims=8,
    sampler_steps=2,
    vocoder=HARMONIC,
)
STATISTICS = {**toy.STATISTICS, "log_mel": {"min": -11.6, "max": 2.0}}


def busy(model, seed=1):
    """Every weight random, so that nothing is silent or the identity."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return model
