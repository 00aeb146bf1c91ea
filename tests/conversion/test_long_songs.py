"""Truths held here: a song of any length is one trajectory: conditions, states and sound in pieces equal the whole
within 1e-4 everywhere, with the projections kept or computed again, by every sampler; without halos or with statistics
of the piece they would not; cancelling works between pieces; memory stays inside what is stated."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from svclib.audio.mel import MelConfig
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models import layers
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils import config
from svclib.utils.errors import Cancelled

CONTRACT = MelConfig(16000, 1024, 1024, 256, 40, 0.0, 8000.0)
FEATURES = FeatureSettings(sample_rate_hz=16000, hop_samples=256, mel=CONTRACT)
SETTINGS = DiffusionSettings(
    channels=32,
    n_layers=4,
    dilation_cycle=4,
    condition_dims=24,
    coarse_channels=24,
    coarse_layers=2,
    content_channels=24,
    content_layers=2,
    code_dims=8,
    vocoder=HarmonicSettings(n_harmonics=30, n_noise_bands=17, channels=16, n_layers=2, fft_sizes=(512,)),
)
STATISTICS = {"log_mel": {"min": -11.6, "max": 1.5}, "singers": {"ann": {}, "bea": {}}}
N_FRAMES = 331


@pytest.fixture(scope="module")
def model():
    """Untrained, with weights in every layer: each part has something to say."""
    made = SETTINGS.build(FEATURES, STATISTICS, 0).eval()
    generator = torch.Generator().manual_seed(1)
    for last in (made.denoiser.last, made.vocoder.network.last):
        torch.nn.init.normal_(last.weight, std=0.1, generator=generator)
    return made


def song(n_frames=N_FRAMES, seed=0):
    """A bright first half and a dark second one, with pauses and a gliding pitch: source and target of ``render``."""
    rng = np.random.default_rng(seed)
    f0 = (220 * 2 ** (np.sin(np.arange(n_frames) / 40) / 2)).astype(np.float32)
    voiced = np.sin(np.arange(n_frames) / 13) > -0.8
    tilt = np.where(np.arange(n_frames) < n_frames / 2, 0.02, 0.1)[:, None] * np.arange(40)
    log_mel = (-4 - tilt + 0.5 * rng.standard_normal((n_frames, 40))).astype(np.float32)
    loudness = (-30 + 10 * np.sin(np.arange(n_frames) / 29)).astype(np.float32)
    asked = (f0 * 1.25).astype(np.float32)
    f0 = np.where(voiced, f0, 0).astype(np.float32)
    return tuple(ConditionInputs.from_arrays(log_mel, x, voiced, loudness) for x in (f0, asked))


def heard(model, monkeypatch, **options):
    """The log-mel that reached the vocoder, and the sound."""
    mels, render = [], model.vocoder.render

    def watch(log_mel, *args, **kwargs):
        mels.append(log_mel)
        return render(log_mel, *args, chunk_frames=options.get("chunk_frames", 1000), **kwargs)

    monkeypatch.setattr(model.vocoder, "render", watch)
    sung = model.render(*song(), {"ann": 1, "bea": 2}, SamplingOptions(seed=3, precision="fp32", **options))
    monkeypatch.undo()
    return mels[0], sung.audio


WAYS = [("dpmpp", 5, None), ("ddpm", 4, 300), ("ddim", 4, None), ("plms", 4, 300)]


@pytest.mark.parametrize("method, steps, shallow", WAYS)
def test_in_pieces_mel_and_sound_are_those_of_the_whole(model, monkeypatch, method, steps, shallow):
    way = {"sampler": method, "steps": steps, "shallow": shallow}
    mel, audio = heard(model, monkeypatch, **way, chunk_frames=10**6)
    assert len(audio) == N_FRAMES * 256 and audio.std() > 1e-3
    for options in ({"chunk_frames": 37}, {"chunk_frames": 100, "cache_bytes": 0}):
        mel_in_pieces, audio_in_pieces = heard(model, monkeypatch, **way, **options)
        assert np.abs(mel_in_pieces - mel).max() < 1e-4
        assert np.abs(audio_in_pieces - audio).max() < 1e-4


def test_without_halos_or_the_songs_statistics_the_seams_would_be_heard(model, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        whole, _ = heard(model, patch, sampler="ddim", steps=3)
    for part in (model.denoiser.stack, model.conditions, model.coarse, model.content.convs):
        monkeypatch.setattr(part, "halo", 0)
    with pytest.MonkeyPatch.context() as patch:
        seams, _ = heard(model, patch, sampler="ddim", steps=3, chunk_frames=37)
    monkeypatch.undo()
    assert np.abs(seams - whole).max() > 1e-2
    given, half = song()[0], N_FRAMES // 2
    alone = model.content.encode(given.frames(0, half), 37)
    within = model.content.encode(given, 37)[:, :half]
    assert (alone - within).abs().max() > 0.05
    assert torch.allclose(within, model.content(given)[:, :half], atol=1e-5)


def test_cancelling_is_asked_between_the_pieces_of_one_step(model):
    condition = torch.zeros(1, SETTINGS.condition_dims, N_FRAMES)
    asked = []

    def cancelled():
        asked.append(True)
        return len(asked) == 5

    with pytest.raises(Cancelled):
        model.sample(condition, SamplingOptions(steps=2, precision="fp32", chunk_frames=50), cancelled=cancelled)
    assert len(asked) == 5  # once before the step, then before each piece: the fifth lies inside the first step


def test_the_cap_counts_what_is_kept(model):
    condition = torch.zeros(1, SETTINGS.condition_dims, 200)
    gates = 2 * SETTINGS.channels * SETTINGS.n_layers
    kept = sum(high - low for _, _, low, high in layers.chunks(200, 50, model.denoiser.stack.halo)) * gates * 4
    options = {"precision": "fp32", "chunk_frames": 50}
    assert model.prepare(condition, SamplingOptions(**options, cache_bytes=kept)).cached
    over = model.prepare(condition, SamplingOptions(**options, cache_bytes=kept - 1))
    assert not over.cached and not over.kept


@pytest.mark.slow
@pytest.mark.parametrize("preset, limit_mb", [("diffusion_small", 1300), ("diffusion", 1300)])
def test_five_minutes_need_bounded_memory(preset, limit_mb):
    """The published networks, untrained; memory does not depend on the weights. The cache's cap is 1000 MB of it."""
    code = f"import test_long_songs as t; t.measure({preset!r}, 300)"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here)
    before, peak = (float(x) for x in done.stdout.split())
    assert peak - before < limit_mb, done.stdout


def measure(preset: str, seconds: int) -> None:
    """Print the process's memory in MB before and at the peak of singing noise for some seconds."""
    chosen = config.load([preset])
    model = chosen.model.build(chosen.features, None, 0).eval()
    contract = chosen.features.mel
    n = seconds * contract.sample_rate_hz // contract.hop_samples
    rng = np.random.default_rng(0)
    log_mel = (rng.standard_normal((n, contract.n_mels)) - 5).astype(np.float32)
    f0, voiced, loudness = np.full(n, 220, np.float32), np.ones(n, bool), np.full(n, -30, np.float32)
    # A short run first: what is loaded lazily is loaded now.
    given = ConditionInputs.from_arrays(log_mel, f0, voiced, loudness)
    model.render(given.frames(0, 300), options=SamplingOptions(steps=1))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    model.render(given, options=SamplingOptions(steps=2))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
