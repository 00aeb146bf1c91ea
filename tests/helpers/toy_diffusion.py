"""A diffusion preset that trains in a second, its dataset made of formulas, and a song."""

import numpy as np
import torch
import toy

from svclib.audio import mel
from svclib.audio.mel import MelConfig
from svclib.conversion import song as songs
from svclib.features.extract import Features, FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.vocoders.harmonic import HarmonicSettings

RATE, HOP = 16000, 256
CONTRACT = MelConfig(RATE, 1024, 1024, HOP, 40, 0.0, 7600.0)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, mel=CONTRACT)
VOCODER = HarmonicSettings(n_harmonics=40, n_noise_bands=17, channels=16, n_layers=1, fft_sizes=(512, 128))
SETTINGS = DiffusionSettings(
    channels=16,
    n_layers=2,
    condition_dims=16,
    coarse_channels=16,
    coarse_layers=1,
    content_channels=16,
    content_layers=1,
    code_dims=8,
    sampler_steps=4,
    vocoder=VOCODER,
)
alone = {k: v for k, v in toy.STATISTICS.items() if k not in ("singers", "log_mel")}
STATISTICS = {**alone, "log_mel": {"min": -11.6, "max": 2.0}, "singers": {"ann": alone, "bea": alone}}


class MelDataset(toy.ToyDataset):
    """The toy's tones with their mels."""

    settings = FEATURES
    statistics = {**alone, "log_mel": {"min": -11.6, "max": 2.0}, "singers": {"toy": alone}}

    def batch(self, *arguments, **options):
        batch = super().batch(*arguments, **options)
        singer = torch.zeros(len(batch["audio"]), dtype=torch.long)
        return {**batch, "log_mel": mel.log_mel(batch["audio"], CONTRACT), "singer": singer}


def song(n_samples=16100, voiced=True, settings=FEATURES):
    """A tone of 220 Hz, measured."""
    audio = (0.2 * np.sin(2 * np.pi * 220 / RATE * np.arange(n_samples))).astype(np.float32)
    frames = n_samples // HOP
    voiced = np.broadcast_to(voiced, frames).astype(bool)
    log_mel = mel.log_mel(torch.from_numpy(audio)[None], CONTRACT)[0].numpy() if settings.mel else None
    measured = Features(
        settings,
        n_samples,
        np.where(voiced, 220.0, 0.0).astype(np.float32),
        voiced,
        voiced.astype(np.float32),
        np.full(frames, -20.0, np.float32),
        log_mel,
    )
    return songs.Song(songs.Path("a song.wav"), "a song", RATE, n_samples, audio, measured)


def save_instrument(folder, name, settings, grid=FEATURES, singers=(), seed=0):
    """An instrument file of an untrained model."""
    model = instrument.build_model(settings, grid, STATISTICS, seed)
    return instrument.save(folder / f"{name}.zip", model, grid, STATISTICS, created="x", name=name, singers=singers)
