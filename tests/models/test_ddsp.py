"""The DDSP network held to published parameter counts, librosa's and scipy's MFCCs, and its own promises.

Promises: pieces equal the whole; equal seeds give equal sound; memory does not grow with the song; nothing is NaN for
silence, unvoiced, very high or very short input; what is asked (pitch, loudness, words) is what the decoder receives.
"""

import dataclasses
import json
import subprocess
import sys

import librosa
import numpy as np
import pytest
import scipy.fft
import torch

from svclib.features.extract import FeatureSettings
from svclib.features.f0 import fill_unvoiced
from svclib.models.ddsp.model import DdspSettings
from svclib.utils.errors import Cancelled, ConfigError, ModelError

RATE, HOP = 16000, 64
FEATURES = FeatureSettings()
SMALL = DdspSettings(n_harmonics=30, n_noise_bands=17, rnn_channels=24, mlp_channels=20, layers_per_stack=2)
SMALL_Z = dataclasses.replace(SMALL, z_dims=4, z_rnn_channels=8, reverb_samples=500)


def song(n_frames=400, seed=0):
    """f0, voicing, loudness and audio of a song-like kind, with unvoiced gaps."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_frames) * HOP / RATE
    f0 = (250 + 100 * np.sin(2 * np.pi * t / 1.3)).astype(np.float32)
    voiced = np.sin(2 * np.pi * t / 0.37) > -0.8
    loudness = (-20 + 15 * np.sin(2 * np.pi * t / 0.9)).astype(np.float32)
    audio = 0.3 * np.sin(np.cumsum(np.repeat(f0, HOP)) * 2 * np.pi / RATE) + 0.03 * rng.standard_normal(n_frames * HOP)
    return f0, voiced, loudness, audio.astype(np.float32)


def as_batch(n_frames=100, batch=2):
    pieces = [song(n_frames, seed) for seed in range(batch)]
    names = ("f0_hz", "voiced", "loudness_db", "audio")
    return {name: torch.from_numpy(np.stack([p[i] for p in pieces])) for i, name in enumerate(names)}


def parameters(settings):
    return sum(p.numel() for p in settings.build(FEATURES).parameters())


# ---- settings and network ----


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 4_821_670),
        ({"z_dims": 16}, 7_251_186),
        ({"n_harmonics": 20, "n_noise_bands": 10}, 4_752_415),
        ({"n_harmonics": 60, "n_noise_bands": 35}, 4_785_760),
        ({"n_harmonics": 60, "reverb_samples": 48000}, 4_849_150),
        ({"n_harmonics": 60, "rnn_channels": 256, "layers_per_stack": 0}, 232_314),
        ({"n_harmonics": 60, "rnn_channels": 256, "layers_per_stack": 0, "reverb_samples": 48000}, 280_314),
    ],
)
def test_parameter_counts_of_the_published_networks(changes, count):
    assert parameters(DdspSettings(**changes)) == count


def test_instruments_fit_their_size():
    assert 4 * parameters(DdspSettings()) < 20e6 and 4 * parameters(DdspSettings(z_dims=16)) < 30e6


def test_settings_survive_json():
    for settings in (SMALL_Z, DdspSettings(fft_sizes=(4096, 2048), log_rule="v2")):
        assert DdspSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kind": "diffusion"}, "kind is 'diffusion'; expected one of ddsp"),
        ({"n_harmonics": 0}, "n_harmonics is 0; expected a whole number from 1 to 1000"),
        ({"rnn_channels": -5}, "rnn_channels is -5"),
        ({"z_dims": True}, "z_dims is True"),
        ({"z_hop_samples": 500}, "z_hop_samples is 500; expected one of"),
        ({"fft_sizes": ()}, "fft_sizes"),
        ({"fft_sizes": (2048, 30)}, "fft_sizes"),
        ({"log_rule": "v3"}, "log_rule is 'v3'; expected one of v1, v2"),
    ],
)
def test_settings_say_what_is_wrong(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        DdspSettings(**changes)


def test_build_refuses_a_rate_that_does_not_suit():
    with pytest.raises(ModelError, match="use at least 16000, or z_dims=0"):
        SMALL_Z.build(FeatureSettings(sample_rate_hz=8000))


def test_layers_and_initial_values():
    model = DdspSettings(
        n_harmonics=20, rnn_channels=64, mlp_channels=128, z_dims=4, z_rnn_channels=64, reverb_samples=100
    ).build(FEATURES)
    for module in model.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            assert module.negative_slope == 0.2
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.eps == 1e-3 and (module.weight == 1).all()
        elif isinstance(module, torch.nn.Linear):
            bound = (6 / (module.in_features + module.out_features)) ** 0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound
            own = module is not model.decoder.out  # which starts near a voice: test_an_untrained_network_sings_softly
            assert not own or (module.bias == 0).all()
        elif isinstance(module, torch.nn.GRU):
            columns = module.weight_hh_l0
            torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]), rtol=0, atol=1e-5)
            bound = (6 / (module.input_size + 3 * module.hidden_size)) ** 0.5
            assert 0.8 * bound < module.weight_ih_l0.abs().max() <= bound
            assert (module.bias_ih_l0 == 0).all() and (module.bias_hh_l0 == 0).all()
    assert 0 < model.room.abs().max() < 1e-5


def test_equal_seeds_build_equal_weights_and_leave_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = SMALL_Z.build(FEATURES, seed=1), SMALL_Z.build(FEATURES, seed=1), SMALL_Z.build(FEATURES, seed=2)
    assert torch.equal(torch.rand(3), expected)  # torch's global generator was not touched
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True) if p.ndim > 1]
    assert all(same) and not any(other)


def test_the_decoder_receives_what_is_asked():
    """Pitch as MIDI / 127 and loudness as dB / 80 + 1, exactly as given: nothing is measured again behind the knobs."""
    model = SMALL.build(FEATURES)
    seen = {}
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.update(arguments[0]))
    f0 = torch.tensor([[440.0, 80.0, 0.0]])
    loudness = torch.tensor([[-80.0, -40.0, 12.0]])
    model.controls(f0, f0 > 0, loudness, audio=torch.randn(1, 3 * HOP))
    np.testing.assert_allclose(seen["f0"][0, :, 0], [0.543307, 0.310920, 0.0], atol=1e-6)
    np.testing.assert_allclose(seen["loudness"][0, :, 0], [0.0, 0.5, 1.15], atol=1e-6)


def test_an_untrained_network_sings_softly_and_harmonics_fall_as_one_over_their_number():
    model = DdspSettings(n_harmonics=30, rnn_channels=32, mlp_channels=32).build(FEATURES)
    torch.nn.init.zeros_(model.decoder.out.weight)  # what the bias alone says
    f0_hz = torch.full((1, 10), 200.0)
    c = model.controls(f0_hz, torch.ones(1, 10, dtype=torch.bool), torch.full((1, 10), -20.0))
    shares = 1.0 / torch.arange(1, 31)
    torch.testing.assert_close(c.distribution[0, 0], shares / shares.sum(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(c.amplitude[0, 0], torch.tensor(0.0398), rtol=0.01, atol=0)
    assert (c.noise_magnitudes < 1e-4).all()


def test_untrained_controls():
    model = SMALL.build(FEATURES)
    batch = as_batch()
    c = model.controls(batch["f0_hz"], batch["voiced"], batch["loudness_db"])
    torch.testing.assert_close(c.distribution.sum(-1), torch.ones(2, 100))
    assert c.noise_magnitudes.max() < 0.01  # nearly no noise before training
    assert c.distribution.shape == (2, 100, 30) and c.noise_magnitudes.shape == (2, 100, 17)


# ---- z ----


def test_mfcc_against_scipy():
    encoder = DdspSettings(z_dims=4).build(FEATURES).z_encoder
    audio = song(200)[3]
    mfcc = encoder.mfcc(torch.from_numpy(audio)[None])[0].numpy()
    assert mfcc.shape == (25, 30)
    padded = np.pad(audio, 256)
    mel = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=128, fmin=20, fmax=8000, htk=True, norm=None)
    for i in (0, 10, 24):
        spectrum = np.abs(np.fft.rfft(padded[i * 512 :][:1024] * scipy.signal.get_window("hann", 1024)))
        log = np.log(np.maximum(mel @ spectrum, 1e-5))
        expected = scipy.fft.dct(log, type=2)[:30] / np.sqrt(2 * 128)
        np.testing.assert_allclose(mfcc[i], expected, atol=2e-3)


@pytest.mark.parametrize(("z_hop", "frames"), [(1024, 63), (512, 125), (256, 250), (128, 500), (64, 1000)])
def test_z_frames_of_four_seconds(z_hop, frames):
    settings = dataclasses.replace(SMALL, z_dims=4, z_hop_samples=z_hop)
    assert settings.build(FEATURES).z_encoder(torch.randn(1, 64000)).shape == (1, frames, 4)


def test_z_ignores_the_level_and_follows_the_words():
    model = SMALL_Z.build(FEATURES)
    audio = torch.from_numpy(song()[3])[None]
    z = model.z_encoder(audio)
    torch.testing.assert_close(model.z_encoder(0.25 * audio), z, rtol=0, atol=2e-3)
    assert (model.z_encoder(audio.flip(1)) - z).abs().max() > 0.05


def test_z_is_read_at_frame_centres():
    encoder = SMALL_Z.build(FEATURES).z_encoder
    z = torch.arange(10.0)[None, :, None]
    at = encoder.at_frames(z, 0, 80, HOP)[0, :, 0]
    centre = (torch.arange(80) + 0.5) * HOP
    torch.testing.assert_close(at, ((centre - 256) / 512).clamp(0, 9))
    torch.testing.assert_close(encoder.at_frames(z, 33, 5, HOP)[0, :, 0], at[33:38])


def test_z_of_a_long_recording_is_measured_in_pieces():
    model = SMALL_Z.build(FEATURES)
    audio = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    whole = model.z_encoder(torch.from_numpy(audio)[None])
    torch.testing.assert_close(model.encode_z(audio, block_frames=7), whole.detach(), rtol=0, atol=1e-5)


def test_z_models_ask_for_the_source():
    model = SMALL_Z.build(FEATURES)
    f0, voiced, loudness, audio = song(50)
    with pytest.raises(ModelError, match="give the source audio"):
        model.render(f0, voiced, loudness)
    other = np.random.default_rng(1).standard_normal(len(audio)).astype(np.float32)
    a, b = model.render(f0, voiced, loudness, audio), model.render(f0, voiced, loudness, other)
    assert np.abs(a.harmonic - b.harmonic).max() > 1e-3


# ---- rendering ----


@pytest.mark.case("P37")
@pytest.mark.parametrize("settings", [SMALL, SMALL_Z], ids=["plain", "z and room"])
@pytest.mark.parametrize("chunk_frames", [1, 61, 1000])
def test_pieces_equal_the_whole(settings, chunk_frames):
    """Phase, GRU state, noise, room and z go on from piece to piece; ten seconds."""
    n_frames = 2500 if chunk_frames > 1 else 150
    model = settings.build(FEATURES, seed=3)
    if model.room is not None:
        model.room.data = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 0.05
    f0, voiced, loudness, audio = song(n_frames)
    pieces = model.render(f0, voiced, loudness, audio, seed=7, chunk_frames=chunk_frames)
    whole = model.render(f0, voiced, loudness, audio, seed=7, chunk_frames=n_frames)
    with torch.no_grad():
        asked = [torch.from_numpy(x)[None] for x in (fill_unvoiced(f0, voiced), voiced, loudness, audio)]
        direct = model.synthesize(model.controls(*asked), torch.Generator().manual_seed(7))
    assert np.abs(whole.harmonic).max() > 0.01
    for part in ("audio", "harmonic", "noise"):
        np.testing.assert_allclose(getattr(pieces, part), getattr(whole, part), atol=1e-5)
        np.testing.assert_allclose(getattr(whole, part), getattr(direct, part)[0], atol=1e-5)
    assert pieces.audio.dtype == np.float32 and pieces.audio.shape == (n_frames * HOP,)


def test_harmonics_only_where_voiced_and_noise_by_the_seed():
    model = SMALL.build(FEATURES)
    f0, voiced, loudness, _ = song()
    made, again, other = (model.render(f0, voiced, loudness, seed=s) for s in (1, 1, 2))
    frames = made.harmonic.reshape(-1, HOP)
    assert (frames[~voiced] == 0).all() and (np.abs(frames[voiced]).max(axis=1) > 0).all()
    assert np.array_equal(made.audio, again.audio) and np.array_equal(made.harmonic, other.harmonic)
    assert np.abs(made.noise - other.noise).max() > 0
    np.testing.assert_allclose(made.audio, made.harmonic + made.noise, atol=1e-7)


def test_pitch_of_unvoiced_frames_is_not_heard_and_zero_does_not_upset_the_network():
    """0 Hz in a gap and a filled gap are the same song."""
    model = SMALL.build(FEATURES)
    f0, voiced, loudness, _ = song()
    zeroed = np.where(voiced, f0, 0).astype(np.float32)
    wild = np.where(voiced, f0, 3000).astype(np.float32)
    a, b = model.render(zeroed, voiced, loudness), model.render(wild, voiced, loudness)
    assert np.array_equal(a.audio, b.audio)


@pytest.mark.parametrize("settings", [SMALL, SMALL_Z], ids=["plain", "z and room"])
@pytest.mark.parametrize("f0_hz", [0.0, 30.0, 8000.0, 30000.0])
@pytest.mark.parametrize("n_frames", [1, 40])
def test_no_nan(settings, f0_hz, n_frames):
    model = settings.build(FEATURES)
    f0, silence = np.full(n_frames, f0_hz, np.float32), np.zeros(n_frames * HOP, np.float32)
    for voiced in (np.ones(n_frames, bool), np.zeros(n_frames, bool)):
        made = model.render(f0, voiced, np.full(n_frames, -80, np.float32), silence)
        assert np.isfinite(made.audio).all() and len(made.audio) == n_frames * HOP
        if f0_hz in (0.0, 8000.0, 30000.0) or not voiced.any():
            assert (made.harmonic == 0).all()
    batch = {"f0_hz": f0, "voiced": f0 > 0, "loudness_db": np.full(n_frames, -80, np.float32), "audio": silence}
    batch = {name: torch.from_numpy(x)[None] for name, x in batch.items()}
    loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_render_refuses_unequal_lengths():
    f0, voiced, loudness, _ = song(10)
    with pytest.raises(ModelError, match="10, 9 and 10 frames"):
        SMALL.build(FEATURES).render(f0, voiced[:9], loudness)
    with pytest.raises(ModelError, match="at least one"):
        SMALL.build(FEATURES).render(f0[:0], voiced[:0], loudness[:0])


def test_progress_and_cancel():
    model, heard = SMALL.build(FEATURES), []
    f0, voiced, loudness, _ = song(250)
    model.render(f0, voiced, loudness, chunk_frames=100, progress=lambda fraction, text: heard.append(fraction))
    assert heard == [0.4, 0.8, 1.0]
    with pytest.raises(Cancelled):
        model.render(f0, voiced, loudness, chunk_frames=100, cancelled=lambda: len(heard) > 0)


LONG_SONG = """
import resource, sys
import numpy as np, torch
from svclib.models.ddsp import DdspSettings
from svclib.features import FeatureSettings
torch.set_num_threads(1)
model = DdspSettings(n_harmonics=250, rnn_channels=16, mlp_channels=16, layers_per_stack=1).build(FeatureSettings())
def peak(minutes):
    n = int(minutes * 60 * 250)
    model.render(np.full(n, {f0}, np.float32), np.arange(n) % 250 < 200, np.full(n, -20, np.float32))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(peak({short}), peak({long}))
"""


def peaks(f0_hz, short, long):
    code = LONG_SONG.replace("{f0}", str(f0_hz)).replace("{short}", str(short)).replace("{long}", str(long))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [float(x) for x in run.stdout.split()]


@pytest.mark.case("P37")
@pytest.mark.parametrize(("f0_hz", "short", "long"), [(200, 0.2, 2), pytest.param(31, 0.5, 10, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_song(f0_hz, short, long):
    """250 harmonics; beyond the returned samples and the two parts they are made of, a long song costs nothing."""
    small, large = peaks(f0_hz, short, long)
    returned = (long - short) * 60 * RATE * 4 * 3 / 2**20
    assert large - small < 1.6 * returned + 30, (
        f"{small:.0f} MiB became {large:.0f} MiB; {returned:.0f} MiB are returned"
    )


# ---- training protocol ----


@pytest.mark.parametrize("settings", [SMALL, SMALL_Z], ids=["plain", "z and room"])
def test_loss_protocol(settings):
    model = settings.build(FEATURES)
    batch = as_batch()
    loss, parts = model.loss(batch, torch.Generator().manual_seed(1))
    assert loss.shape == () and set(parts) == {"linear", "log"}
    assert loss.item() == pytest.approx(sum(float(p) for p in parts.values()), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert any(p.grad.abs().max() > 0 for p in model.decoder.stacks.parameters())
    again, _ = model.loss(batch, torch.Generator().manual_seed(1))
    other, _ = model.loss(batch, torch.Generator().manual_seed(2))
    assert torch.equal(loss, again) and not torch.equal(loss, other)
    assert torch.equal(model.validation_loss(batch), model.validation_loss(batch))
    assert not model.validation_loss(batch).requires_grad
    sound = model.reconstruct(batch, seed=3)
    assert sound.shape == batch["audio"].shape and torch.equal(sound, model.reconstruct(batch, seed=3))
    assert "6 scales" in model.loss_name and "v1" in model.loss_name


def test_loss_in_mixed_precision_is_nearly_the_same():
    model, batch = SMALL.build(FEATURES), as_batch()
    exact, _ = model.loss(batch, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = model.loss(batch, torch.Generator().manual_seed(1))
    assert mixed.dtype == torch.float32 and mixed.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_small_network_learns_one_example():
    """Trained to sound like another network of its kind: the loss falls by half in 40 steps."""
    teacher, model = SMALL.build(FEATURES, seed=11), SMALL.build(FEATURES, seed=12)
    for p in teacher.decoder.out.parameters():
        p.data *= 3
    batch = as_batch(60)
    batch["audio"] = teacher.reconstruct(batch, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-7)
    before = model.validation_loss(batch).item()
    for step in range(40):
        loss, _ = model.loss(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
    after = model.validation_loss(batch).item()
    assert after < 0.5 * before, f"{before:.2f} became {after:.2f}"
