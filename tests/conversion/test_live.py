"""Truths: a stream equals the same frames rendered at once, whatever the blocks; nothing comes before its time; what is
measured live is what the whole recording shows; and the latency is what it says."""

import dataclasses
import types

import numpy as np
import pytest
import torch

from svclib.audio import io as audio
from svclib.conversion import live
from svclib.conversion.controls import Controls
from svclib.features import extract
from svclib.features.extract import FeatureSettings
from svclib.models.ddsp.model import DdspSettings, render_controls
from svclib.models.ddsp.networks import INSTANCE_NORM_EPS
from svclib.utils.errors import ConversionError

SETTINGS = FeatureSettings()
TINY = DdspSettings(n_harmonics=12, n_noise_bands=9, rnn_channels=16, mlp_channels=16, layers_per_stack=1)
RATE = SETTINGS.sample_rate_hz


def instrument(room=0, z_dims=0):
    """A small random instrument, perhaps in a room or with z."""
    model = dataclasses.replace(TINY, reverb_samples=room, z_dims=z_dims).build(SETTINGS, None, seed=3)
    if room:
        model.room.data = 0.1 * torch.exp(-torch.arange(room) / 500) * torch.randn(room)
    return types.SimpleNamespace(name="v", kind="ddsp", model=model.eval(), features=SETTINGS, statistics=None)


@pytest.fixture(scope="module")
def song(data_dir):
    path = data_dir / "singing/vocadito_1/vocadito_1.wav"
    return audio.read(path, RATE).samples[: 6 * RATE]


@pytest.mark.parametrize("block, room, z_dims", [(160, 0, 0), (1000, 3000, 4), (4096, 3000, 0)])
def test_a_stream_equals_its_frames_rendered_at_once(song, block, room, z_dims):
    song = song[RATE : 3 * RATE]
    voice = live.LiveVoice(instrument(room, z_dims), Controls(octave_shift=1))
    made, _ = live.stream(voice, song, block)
    f0, voiced, loudness = (
        torch.from_numpy(np.concatenate(x))[None] for x in (voice.f0_hz, voice.voiced, voice.loudness_db)
    )
    z = torch.from_numpy(np.concatenate(voice.z))[None] if z_dims else None
    with torch.no_grad():
        controls, _ = voice.model._controls(f0, voiced, loudness, z, None)
        whole = render_controls([controls], f0, RATE, SETTINGS.hop_samples).audio
    if room:
        whole = whole + np.convolve(whole, voice.model.reflections())[: len(whole)]
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(made[: len(whole)], whole, atol=1e-4)


def test_what_is_measured_live_is_what_the_whole_recording_shows(song):
    voice = live.LiveVoice(instrument())
    live.stream(voice, song, 1024)
    found, n = extract.extract(song, SETTINGS), len(np.concatenate(voice.f0_hz))
    f0_hz, voiced = np.concatenate(voice.f0_hz), np.concatenate(voice.voiced)
    both = voiced & found.voiced[:n]
    cents = np.abs(1200 * np.log2(f0_hz[both] / found.f0_hz[:n][both]))
    assert np.mean(voiced == found.voiced[:n]) > 0.97
    assert np.median(cents) < 3 and np.mean(cents < 50) > 0.98
    np.testing.assert_allclose(np.concatenate(voice.loudness_db), found.loudness_db[:n], atol=0.01)


def test_z_of_a_stream_is_that_of_the_recording_once_enough_was_received(song):
    """Its mean and spread converge to the whole recording's, so in the last third the two differ little."""
    voice = live.LiveVoice(instrument(z_dims=4))
    live.stream(voice, song, 1024)
    found = np.concatenate(voice.z)
    n = len(found)
    whole = voice.model.z_encoder.at_frames(voice.model.encode_z(song), 0, n, SETTINGS.hop_samples)[0].detach().numpy()
    late = slice(2 * n // 3, n - 40)
    assert np.abs(found - whole)[late].mean() < 0.25 * whole.std()
    assert np.abs(found - whole)[: n // 12].mean() > np.abs(found - whole)[late].mean()


def test_z_of_a_stream_is_normalised_by_all_frames_up_to_each(song):
    """Mean and variance of the first n cepstra, by cumulative sums; between z frames lines, the last one known held."""
    voice, block = live.LiveVoice(instrument(z_dims=4)), 1024
    encoder, hop = voice.model.z_encoder, SETTINGS.hop_samples
    torch.manual_seed(0)
    with torch.no_grad():
        encoder.scale.uniform_(0.5, 2.0)
        encoder.shift.normal_()
        cepstra = encoder.mfcc(torch.from_numpy(song)[None])[0].double()
        n = torch.arange(1, len(cepstra) + 1)[:, None]
        mean = cepstra.cumsum(0) / n
        variance = cepstra.square().cumsum(0) / n - mean.square()
        deviation = (variance + INSTANCE_NORM_EPS).clamp_min(INSTANCE_NORM_EPS).sqrt()
        normal = (cepstra - mean) / deviation * encoder.scale + encoder.shift
        z = encoder.out(encoder.gru(normal.float()[None])[0])[0].numpy()
    live.stream(voice, song, block)
    found, centres = np.concatenate(voice.z), np.arange(len(z)) * encoder.hop_samples + encoder.hop_samples / 2
    received = np.arange(block, len(song), block)  # with the block in which a frame is made, so many samples are known
    frames = np.arange((received[-1] - voice.lookahead) // hop)
    when = received[np.searchsorted((received - voice.lookahead) // hop, frames, side="right")]
    n_known = np.searchsorted(centres, when - encoder.n_fft // 2, side="right")
    at = np.minimum(np.maximum((frames + 0.5) * hop, centres[0]), centres[np.maximum(n_known, 1) - 1])
    expected = np.stack([np.interp(at, centres, z[:, k]) for k in range(z.shape[1])], axis=1)
    np.testing.assert_allclose(found[frames], expected, atol=2e-3)


def test_the_output_comes_late_by_the_latency_and_not_earlier():
    """A tone that begins at 0.5 s: nothing before 0.5 s and the latency, with the sound soon after."""
    t = np.arange(RATE) / RATE
    tone = np.where(t > 0.5, 0.5 * np.sin(2 * np.pi * 330 * t), 0).astype(np.float32)
    voice = live.LiveVoice(instrument())
    made = np.concatenate([voice.process(block) for block in np.split(tone, 25)])
    begins = np.argmax(np.abs(made) > 0.005) / RATE
    assert 0.5 < begins < 0.5 + voice.latency_samples / RATE + 0.1
    assert voice.latency_samples / RATE < 0.1
    assert not made[: voice.latency_samples].any()


def test_the_result_is_as_long_as_the_recording_and_on_time(song):
    """Onsets of the result agree with the song's: the envelopes match best without a shift."""
    made, report = live.stream(live.LiveVoice(instrument()), song, 1024)
    assert len(made) == len(song)
    assert report.n_blocks == -(-len(song) // 1024)
    assert report.latency_s == pytest.approx(0.064 + live.LiveVoice(instrument()).latency_samples / RATE)
    hop = 160
    envelopes = [np.square(x[: len(song) // hop * hop]).reshape(-1, hop).mean(1) for x in (song, made)]
    a, b = (np.log(e + 1e-7) - np.log(e + 1e-7).mean() for e in envelopes)
    lags = np.arange(-20, 21)
    best = lags[np.argmax([np.dot(a[20:-20], np.roll(b, lag)[20:-20]) for lag in lags])]
    assert abs(best) <= 2  # 20 ms


def test_blocks_are_computed_on_one_core_and_nothing_else_is(monkeypatch):
    voice, measure, seen, before = live.LiveVoice(instrument()), extract.extract, [], torch.get_num_threads()

    def measured(*arguments):
        seen.append(torch.get_num_threads())
        return measure(*arguments)

    monkeypatch.setattr(extract, "extract", measured)
    try:
        torch.set_num_threads(2)
        voice.process(np.zeros(RATE // 4, np.float32))
        assert torch.get_num_threads() == 2
        voice.finish()
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_line_of_figures_is_in_milliseconds():
    figures = live.StreamReport(0.02, 0.25, 0.015, 0.4, 1, 9).text
    assert figures.startswith("Blocks of 20 ms, latency 250 ms (block included); real-time factor 0.40, ")
    assert figures.endswith("slowest block 15 ms, 1 of 9 late.")


def test_others_than_ddsp_are_refused():
    other = instrument()
    other.kind = "diffusion"
    with pytest.raises(ConversionError):
        live.LiveVoice(other)
