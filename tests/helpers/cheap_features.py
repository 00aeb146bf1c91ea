"""Recordings made of formulas and a cheap feature extraction, for tests of datasets."""

import hashlib
from pathlib import Path

import numpy as np
import soundfile

from svclib.data.recordings import Recording, find_recordings
from svclib.features import extract

SETTINGS = extract.FeatureSettings()
RATE, HOP = SETTINGS.sample_rate_hz, SETTINGS.hop_samples


def cheap_extract(samples, settings, progress=None):
    """Level and a pitch that moves with it: local to each frame, so cutting anywhere gives the same."""
    hop = settings.hop_samples
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    level = np.sqrt((frames.astype(np.float64) ** 2).mean(axis=1))
    voiced = level > 0.01
    mel = None
    if settings.mel:
        mel = np.repeat(np.log(np.maximum(level, 1e-5))[:, None], settings.mel.n_mels, 1).astype(np.float32)
    return extract.Features(
        settings,
        len(samples),
        np.where(voiced, 200 + 400 * level, 0).astype(np.float32),
        voiced,
        np.clip(level * 2, 0, 1).astype(np.float32),
        np.maximum(20 * np.log10(level + 1e-9), -80).astype(np.float32),
        mel,
    )


def tone(seed: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    envelope = 0.05 + 0.6 * np.abs(np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * t + rng.uniform(0, 6)))
    return (envelope * np.sin(2 * np.pi * rng.uniform(150, 400) * t) + 0.001 * rng.standard_normal(len(t))) * 0.9


def make_files(folder: Path, n: int, seconds: float = 1.0, first: int = 0) -> list[Recording]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        soundfile.write(folder / f"take {i:02d}.wav", tone(i, seconds + 0.013 * i), RATE, subtype="PCM_16")
    return find_recordings(folder)


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}
