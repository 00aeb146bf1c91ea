"""Small diffusion models with random weights, and songs as log-mels for them."""

import librosa
import numpy as np
import torch

from svclib.audio.mel import MelConfig
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.diffusion.model import DiffusionSettings

CONTRACT = MelConfig(16000, 1024, 1024, 256, 40, 0.0, 8000.0)
FEATURES = FeatureSettings(sample_rate_hz=16000, hop_samples=256, mel=CONTRACT)
TINY = DiffusionSettings(
    channels=96,
    n_layers=4,
    dilation_cycle=4,
    condition_dims=48,
    coarse_channels=32,
    coarse_layers=2,
    content_channels=32,
    content_layers=2,
    code_dims=8,
)
STATISTICS = {"log_mel": {"min": -11.6, "max": 1.5}, "singers": {"ann": {}, "bea": {}}}


def tiny(seed=0, settings=TINY, statistics=STATISTICS, busy=True):
    model = settings.build(FEATURES, statistics, seed).eval()
    if busy:  # an untrained network puts out nothing; let it
        torch.nn.init.normal_(model.denoiser.last.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def tune(n_frames, seed=0):
    """Harmonics under a gliding pitch and a gliding brightness: log-mel (librosa) and F0."""
    rng, hop, rate = np.random.default_rng(seed), 256, 16000
    n = n_frames * hop
    knots = rng.uniform(np.log2(180), np.log2(400), n // 4000 + 2)
    f0 = 2 ** np.interp(np.arange(n) / 4000, np.arange(len(knots)), knots)
    bright = np.interp(np.arange(n) / 3000, np.arange(n // 3000 + 2), rng.uniform(0, 1, n // 3000 + 2))
    phase, audio = 2 * np.pi * np.cumsum(f0) / rate, 1e-5 * rng.standard_normal(n)
    for k in range(1, 20):
        audio += 0.3 * (k * f0 < 7800) * k ** -(2.2 - 1.5 * bright) * np.cos(k * phase)
    padded = np.pad(audio, (1024 - hop) // 2, mode="reflect")
    mel = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=40, fmin=0, fmax=8000)
    log_mel = np.log(np.maximum(mel @ np.abs(librosa.stft(padded, n_fft=1024, hop_length=hop, center=False)), 1e-5)).T
    return log_mel[:n_frames].astype(np.float32), f0[hop // 2 :: hop][:n_frames].astype(np.float32)


def batch_of(pieces, singer=0):
    log_mel, f0 = (torch.from_numpy(np.stack(x)) for x in zip(*pieces, strict=True))
    return {
        "log_mel": log_mel,
        "f0_hz": f0,
        "voiced": torch.ones_like(f0, dtype=torch.bool),
        "loudness_db": torch.full_like(f0, -20.0),
        "singer": torch.full((len(f0),), singer),
    }


def condition_of(model, batch, **options):
    return model.condition(ConditionInputs.from_batch(batch), **options)
