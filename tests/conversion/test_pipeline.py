"""Truths: exact lengths, time alignment by cross-correlation, what a decoder really receives, sums of parts, hashes of
repeated and fresh runs, files that stay, and sentences for everything a person can do wrong."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import faults
import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls, adjust
from svclib.conversion.pipeline import convert
from svclib.data import statistics
from svclib.features import extract
from svclib.features.extract import Features, FeatureSettings
from svclib.models import instrument as files
from svclib.models.ddsp.model import DdspSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils import filesystem
from svclib.utils.errors import AudioError, Cancelled, ConversionError, ModelError, StorageError

SETTINGS = FeatureSettings()
PLAIN = Controls(use_loudness_statistics=False, mask_threshold=0.0, attenuation_db=0.0)
TINY = DdspSettings(n_harmonics=8, n_noise_bands=9, rnn_channels=8, mlp_channels=8, layers_per_stack=1)
STATISTICS = {
    "f0_midi": {"mean_note": 67.0},
    "loudness_db": {"mean_note": -30.0, "max": -10.0},
    "loudness_quantiles_db": np.linspace(-45.0, -15.0, 1000).tolist(),
}


def instrument(model, name="voice", known=STATISTICS, settings=SETTINGS, kind="ddsp"):
    return types.SimpleNamespace(
        name=name, kind=kind, model=model.eval(), features=settings, statistics=known, info={}, sha256="0" * 64
    )


def tiny(seed=1, **changes):
    """A random small instrument, loud enough to hear."""
    model = dataclasses.replace(TINY, **changes).build(SETTINGS, None, seed=seed)
    with torch.no_grad():
        model.decoder.out.weight.mul_(4)
    return instrument(model)


class HandSet(nn.Module):
    """A decoder with amplitude 10^(loudness / 20) on the first harmonic alone; it notes what it receives."""

    def __init__(self, model, gain=1.0):
        super().__init__()
        self.out, self.gain, self.received = model.decoder.out, gain, []

    def forward(self, inputs, state=None):
        self.received.append({k: v.detach().clone() for k, v in inputs.items()})
        loudness = (inputs["loudness"] - 1) * 80
        amplitude = (self.gain * 10 ** (loudness / 20)).clamp(1e-6, 1.999)
        share = ((amplitude - 1e-7) / 2) ** (1 / np.log(10))
        rest = torch.full((*loudness.shape[:2], 7 + 9), -30.0)
        return torch.cat([torch.log(share / (1 - share)), torch.zeros_like(loudness), rest], dim=-1), torch.zeros(1)

    def all(self, name):
        return torch.cat([r[name] for r in self.received], dim=1)[0, :, 0].numpy()


def follower(gain=1.0):
    model = TINY.build(SETTINGS, None)
    model.decoder = HandSet(model, gain)
    return instrument(model)


def song(n_samples=16000, rate=16000, midi=60.0, loudness_db=-20.0, voiced=True, sound=None, seed=0):
    """A measured song, made up."""
    n = units.resampled_length(n_samples, rate, 16000)
    frames = n // 64
    sound = np.random.default_rng(seed).uniform(-0.1, 0.1, n).astype(np.float32) if sound is None else sound
    voiced = np.broadcast_to(voiced, frames).astype(bool)
    midi = np.broadcast_to(midi, frames).astype(float)
    measured = Features(
        SETTINGS,
        n,
        f0_hz=np.where(voiced, units.midi_to_hz(midi), 0).astype(np.float32),
        voiced=voiced,
        confidence=voiced.astype(np.float32),
        loudness_db=np.broadcast_to(loudness_db, frames).astype(np.float32),
    )
    return songs.Song(songs.Path("my song.wav"), "my song", rate, n_samples, sound, measured)


def tones(path, rate, duration_s=2.5):
    """A rich tone of 220 Hz whose level rises quickly and falls slowly at irregular times, written to a file."""
    t = np.arange(int(duration_s * rate)) / rate
    level_db = np.full(len(t), -30.0)
    for at in (0.35, 0.71, 1.07, 1.33, 1.79, 2.03):
        rise, fall = np.clip((t - at) / 0.03, 0, 1), np.clip((at + 0.2 - t) / 0.15, 0, 1)
        level_db += 15 * np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2
    wave = sum(np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 9))
    soundfile.write(path, 10 ** (level_db / 20) * wave, rate, subtype="FLOAT")
    return path


def delay_s(a, b, rate):
    """How much later b is than a: the peak of the cross-correlation of their envelopes, interpolated."""
    from scipy.ndimage import gaussian_filter1d

    a, b = (gaussian_filter1d(np.abs(x.astype(np.float64)), 0.005 * rate) for x in (a, b))
    n = 2 * len(a)
    both = np.fft.irfft(np.conj(np.fft.rfft(a - a.mean(), n)) * np.fft.rfft(b - b.mean(), n))
    k = int(np.argmax(both))
    left, top, right = both[k - 1], both[k], both[(k + 1) % n]
    k = k - n if k > n // 2 else k
    return (k + 0.5 * (left - right) / (left - 2 * top + right)) / rate


# The chain ------------------------------------------------------------------------------------------------------------


def test_the_original_of_a_song_and_of_an_excerpt(tmp_path):
    """The file at its own rate; of an excerpt that very part."""
    path = tones(tmp_path / "tones.wav", 44100)
    whole = songs.load_song(path, SETTINGS)
    np.testing.assert_array_equal(whole.original(), soundfile.read(path, dtype="float32")[0])
    piece = songs.excerpt(whole, 0.5, 1.0)
    np.testing.assert_array_equal(piece.original(), whole.audio[8000:24000])


def test_octave_errors_are_mended_before_the_pitch_is_used_unless_it_is_not_wanted():
    t = np.arange(32000) / 16000
    tone = sum(np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 9)).astype(np.float32)
    wrong = song(32000, midi=np.where((np.arange(500) >= 200) & (np.arange(500) < 240), 69.0, 57.0), sound=0.1 * tone)
    mended = convert(tiny(), wrong, Controls(repair_octaves=True))
    assert (mended.octave_errors[0].start, mended.octave_errors[0].stop) == (200, 240)
    np.testing.assert_allclose(mended.tracks.f0_hz, 220.0, rtol=1e-6)
    left = convert(tiny(), wrong, Controls(repair_octaves=False))
    np.testing.assert_allclose(left.tracks.f0_hz[200:240], 440.0, rtol=1e-6)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("n_samples", [12345, 9999, 16384])
def test_exact_length(rate, n_samples):
    s, voice = song(n_samples, rate), tiny()
    result = convert(voice, s)
    expected = int(np.floor(n_samples * 16000 / rate + 0.5))
    assert len(result.audio) == len(result.harmonic) == len(result.noise) == expected
    assert result.sample_rate_hz == 16000
    kept = convert(voice, s, keep_rate=True)
    assert len(kept.audio) == len(kept.harmonic) == len(kept.noise) == n_samples and kept.sample_rate_hz == rate
    assert np.abs(result.audio[-40:]).max() > 0  # the samples after the last whole frame sound too


@pytest.mark.parametrize("rate", [16000, 22050, 48000])
@pytest.mark.parametrize("keep_rate", [False, True])
def test_output_is_in_time_with_the_input(tmp_path, rate, keep_rate):
    s = songs.load_song(tones(tmp_path / "tones.wav", rate), SETTINGS)
    result = convert(follower(gain=0.1), s, PLAIN, keep_rate=keep_rate)
    source = audio.resample(s.original(), rate, result.sample_rate_hz)
    assert len(source) == len(result.audio)
    assert np.abs(result.audio).max() > 0.1
    assert abs(delay_s(source, result.audio, result.sample_rate_hz)) < 0.001


@pytest.mark.case("P43")
def test_the_decoder_receives_the_edited_loudness_and_pitch():
    level = -30 + 10 * np.sin(np.linspace(0, 20, 500))
    s = song(32000, loudness_db=level, midi=np.linspace(55, 65, 500))
    voice = follower()
    knobs = Controls(loudness_shift_db=-7, octave_shift=1, semitone_shift=2, autotune=1.0)
    result = convert(voice, s, knobs)
    got = voice.model.decoder.all("loudness") * 80 - 80
    np.testing.assert_allclose(got, result.tracks.loudness_db, atol=1e-4)
    assert np.abs(got - (level - 7)).mean() > 1  # the statistics did something too
    midi = voice.model.decoder.all("f0") * 127
    np.testing.assert_allclose(midi, units.hz_to_midi(result.tracks.f0_hz), atol=1e-3)
    tuned = midi - result.tracks.tuning_semitones
    np.testing.assert_allclose(tuned, np.round(tuned), atol=1e-3)
    assert np.abs(midi - 14 - np.linspace(55, 65, 500)).max() <= 0.51


def test_loudness_is_heard():
    """6 dB more asked for are 6 dB more in the sound of an instrument that follows loudness."""
    s = song(loudness_db=-30.0)
    quiet, loud = (convert(follower(), s, dataclasses.replace(PLAIN, loudness_shift_db=x)).audio for x in (0.0, 6.0))
    ratio = np.sqrt(np.mean(loud**2) / np.mean(quiet**2))
    assert 20 * np.log10(ratio) == pytest.approx(6.0, abs=0.01)
    assert np.sqrt(2 * np.mean(quiet**2)) == pytest.approx(10 ** (-30 / 20), rel=0.01)


def test_pitch_is_heard():
    result = convert(follower(), song(48000, midi=57.0), dataclasses.replace(PLAIN, semitone_shift=7))
    spectrum = np.abs(np.fft.rfft(result.audio[: 16000 * 2] * np.hanning(32000)))
    assert np.argmax(spectrum) / 2 == pytest.approx(220 * 2 ** (7 / 12), abs=0.5)


def test_unvoiced_frames_have_no_harmonic_part():
    voiced = np.arange(250) < 125
    result = convert(follower(), song(voiced=voiced), PLAIN)
    assert np.abs(result.harmonic[: 120 * 64]).max() > 0.05
    assert np.abs(result.harmonic[130 * 64 :]).max() == 0.0
    assert np.abs(result.noise[130 * 64 :]).max() > 0.0


def test_the_parts_add_up_and_the_peak_is_turned_down_never_cut():
    s, voice = song(midi=48.0, loudness_db=np.linspace(-40, 6, 250)), follower(gain=1.0)
    result = convert(voice, s, PLAIN)
    assert np.abs(result.audio).max() == pytest.approx(0.99, abs=0.001) and result.gain_db < -5
    assert any("turned down" in w and f"{-result.gain_db:.1f} dB" in w for w in result.warnings)
    np.testing.assert_allclose(result.harmonic + result.noise, result.audio, atol=1e-6)
    softer = convert(follower(gain=0.25), s, PLAIN)
    assert softer.gain_db == 0 and not any("turned down" in w for w in softer.warnings)
    np.testing.assert_allclose(softer.harmonic + softer.noise, softer.audio, atol=1e-6)
    scale = 4 * 10 ** (result.gain_db / 20)
    np.testing.assert_allclose(result.harmonic, scale * softer.harmonic, atol=1e-3)  # the same wave: nothing was cut
    kept = convert(voice, song(48000, 48000, midi=48.0, loudness_db=np.linspace(-40, 6, 250)), PLAIN, keep_rate=True)
    assert np.abs(kept.audio).max() <= 0.99 + 1e-6
    np.testing.assert_allclose(kept.harmonic + kept.noise, kept.audio, atol=1e-5)


def test_same_seed_same_sound_and_another_seed_another_noise():
    s, voice = song(midi=np.linspace(50, 60, 250)), tiny()
    one, two, other = (
        convert(voice, s, sampling=SamplingOptions(seed=3)),
        convert(voice, s, sampling=SamplingOptions(seed=3)),
        convert(voice, s, sampling=SamplingOptions(seed=4)),
    )
    np.testing.assert_array_equal(one.audio, two.audio)
    np.testing.assert_array_equal(one.noise, two.noise)
    np.testing.assert_array_equal(one.harmonic, other.harmonic)
    assert np.abs(one.noise - other.noise).max() > 0


FRESH = """
import hashlib, sys
sys.path[:0] = [{tests!r}, {tests!r}.replace("conversion", "helpers")]
import test_pipeline as t
made = t.convert(t.files.open({path!r}), t.song(), sampling=t.SamplingOptions(seed=5))
print(hashlib.sha256(made.audio.tobytes()).hexdigest())
"""


@pytest.mark.case("P24", "P27")
def test_instruments_opened_one_after_the_other_sound_like_fresh_ones(tmp_path):
    """Nothing of one instrument stays behind for the next, and none needs what another left."""
    known = statistics.compute([("eva", song(64000, loudness_db=np.linspace(-50, -10, 1000)).features)])
    for name, voice in (("a", tiny(1)), ("b", tiny(2, n_harmonics=5)), ("z", tiny(3, z_dims=4, z_rnn_channels=8))):
        files.save(tmp_path / f"{name}.zip", voice.model, SETTINGS, known, created="2026-11-21")
    heard = {}
    for name in "abzab":
        sound = convert(files.open(tmp_path / f"{name}.zip"), song(), sampling=SamplingOptions(seed=5)).audio
        assert np.array_equal(heard.setdefault(name, sound), sound)
    assert np.abs(heard["a"] - heard["b"]).max() > 0
    code = FRESH.format(tests=str(songs.Path(__file__).parent), path=str(tmp_path / "b.zip"))
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert fresh.stdout.strip() == hashlib.sha256(heard["b"].tobytes()).hexdigest(), fresh.stderr
    (tmp_path / "b.zip").write_bytes(b"broken")  # a failed opening leaves nothing of the one before
    with pytest.raises(ModelError):
        files.open(tmp_path / "b.zip")
    assert np.array_equal(
        convert(files.open(tmp_path / "a.zip"), song(), sampling=SamplingOptions(seed=5)).audio, heard["a"]
    )


def test_z_comes_from_the_source_audio():
    voice = tiny(z_dims=4, z_rnn_channels=8)
    plain = convert(voice, song(seed=0))
    t = np.arange(16000) / 16000
    vowel = (0.2 * np.sign(np.sin(2 * np.pi * 200 * t))).astype(np.float32)
    other = convert(voice, song(sound=vowel))
    assert len(plain.audio) == len(other.audio) == 16000
    assert np.abs(plain.audio - other.audio).max() > 1e-4
    np.testing.assert_array_equal(plain.audio, convert(voice, song(seed=0)).audio)
    odd = convert(voice, song(16037))
    assert len(odd.audio) == 16037


def test_a_song_without_pitch_is_sung_with_noise_only_and_a_warning():
    result = convert(tiny(), song(voiced=False))
    assert np.abs(result.harmonic).max() == 0 and np.abs(result.noise).max() > 0
    assert any("No pitch" in w for w in result.warnings)


def test_progress_rises_to_one_and_cancelling_ends_the_work():
    s, voice, seen = song(16000 * 30), tiny(), []
    convert(voice, s, progress=lambda fraction, text: seen.append((fraction, text)))
    fractions = [f for f, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1 and len(fractions) > 5
    assert max(np.diff(fractions)) < 0.5  # rendering is most of the work, and of the bar
    assert all(text for _, text in seen)
    for allowed in (0, 1, 3, 5):
        asked = []

        def cancelled(asked=asked, allowed=allowed):
            asked.append(1)
            return len(asked) > allowed

        with pytest.raises(Cancelled, match="nothing was written"):
            convert(voice, s, cancelled=cancelled)
        assert len(asked) == allowed + 1
    with pytest.raises(Cancelled):
        convert(tiny(z_dims=4, z_rnn_channels=8), s, cancelled=lambda: True)


def test_song_and_instrument_that_do_not_fit_are_refused():
    with pytest.raises(ConversionError, match="hop_samples 64.*needs 128"):
        convert(instrument(tiny().model, settings=FeatureSettings(hop_samples=128)), song())
    with pytest.raises(ConversionError, match="kind 'theremin'.*ddsp"):
        convert(instrument(tiny().model, kind="theremin"), song())
    broken = tiny()
    with torch.no_grad():
        broken.model.decoder.out.bias[0] = float("nan")
    with pytest.raises(ConversionError, match="NaN"):
        convert(broken, song())


def test_settings_hold_what_made_the_sound():
    knobs = Controls(autotune=0.5, autotune_key="D minor", octave_shift=-1, loudness_shift_db=3)
    result = convert(tiny(), song(), knobs, sampling=SamplingOptions(seed=9))
    said = json.loads(json.dumps(result.settings(), allow_nan=False))
    assert Controls(**said["controls"]) == knobs
    assert (said["tag"], said["seed"], said["key"]) == ("synthetic voice", 9, "D minor")
    assert said["song"]["name"] == "my song.wav" and said["instrument"]["name"] == "voice"
    for words in ("my song", "voice", "seed 9", "octave -1", "loudness (dB) +3", "D minor"):
        assert words in result.settings_text


# Songs ----------------------------------------------------------------------------------------------------------------


def test_a_real_song_is_measured_on_the_grid(data_dir):
    path = next((data_dir / "singing" / "vocadito_1").glob("*.wav"), None) or next(
        p for p in (data_dir / "singing" / "vocadito_1").iterdir() if p.suffix.lower() in audio.SUFFIXES
    )
    s = songs.load_song(path, SETTINGS)
    info = soundfile.info(path)
    assert (s.n_samples, s.sample_rate_hz) == (info.frames, info.samplerate)
    assert len(s.audio) == units.resampled_length(info.frames, info.samplerate, 16000)
    assert len(s.features.f0_hz) == len(s.audio) // 64 and len(s.original()) == s.n_samples
    result = convert(follower(gain=0.3), s, PLAIN)
    assert len(result.audio) == len(s.audio)
    # inside notes the result's loudness follows the song's, and best with a lag of less than 1 ms
    got = extract.extract(result.audio, SETTINGS).loudness_db
    inside = np.flatnonzero(np.convolve(~s.features.voiced, np.ones(25), mode="same") == 0)
    lags = np.arange(-3, 4)
    spread = np.array([np.std(s.features.loudness_db[inside] - got[inside + k]) for k in lags])
    assert np.argmin(spread) == 3
    assert abs(np.polynomial.Polynomial.fit(lags, spread**2, 2).deriv().roots()[0].real * 4) < 1.0
    suggestion = key_suggestion.suggest_shift(s.features, {"f0_midi": {"mean_note": 71.0}})
    mean = adjust(s.features, None, Controls()).song_mean_midi
    assert suggestion.octaves == round((71 - mean) / 12)


@pytest.mark.parametrize(("n_samples", "ms"), [(1, 0.1), (63, 3.9)])
def test_a_song_shorter_than_a_frame_is_a_sentence(tmp_path, n_samples, ms):
    path = tmp_path / "blip.wav"
    soundfile.write(path, 0.1 * np.cos(np.arange(n_samples)), 16000)
    with pytest.raises(ConversionError, match=f"blip.wav' holds {ms} ms .*less than one frame .4.0 ms.*longer song"):
        songs.load_song(path, SETTINGS)


@pytest.mark.parametrize("n_samples", [64, 700])
def test_a_very_short_song_is_sung(tmp_path, n_samples):
    path = tmp_path / "short.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(n_samples) / 6), 16000)
    result = convert(tiny(), songs.load_song(path, SETTINGS))
    assert len(result.audio) == n_samples and np.isfinite(result.audio).all()


@pytest.mark.parametrize(("n_high", "wide"), [(0, False), (2, False), (3, True), (100, True)])
def test_notes_above_the_range_of_an_earlier_version_are_measured(tmp_path, monkeypatch, n_high, wide):
    """Where they are more than 1 % of the frames: fewer are errors of the tracker."""
    calls = []

    def track(samples, rate_hz, settings, progress=None):
        calls.append(settings.f0_max_hz)
        f0_hz = np.full(len(samples) // settings.hop_samples, 400.0, np.float32)
        f0_hz[:n_high] = min(1100.0, settings.f0_max_hz)
        return f0_hz, np.ones(len(f0_hz), bool), np.ones_like(f0_hz)

    monkeypatch.setattr(extract, "track_f0", track)
    path = tones(tmp_path / "high.wav", 16000, duration_s=0.8)  # 200 frames
    narrow = dataclasses.replace(SETTINGS, f0_max_hz=1000.0)
    found = songs.load_song(path, narrow).features
    assert calls == [1000, 2100] and found.settings.f0_max_hz == (2100 if wide else 1000)
    assert found.f0_hz.max() == pytest.approx(1100 if wide else 1000 if n_high else 400)
    songs.load_song(path, SETTINGS)
    assert calls[2:] == [2100]  # an instrument of today is measured once


def test_a_silent_song_is_sung_with_warnings(tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    result = convert(tiny(), songs.load_song(path, SETTINGS))
    assert np.isfinite(result.audio).all() and any("No pitch" in w for w in result.warnings)


@pytest.mark.case("P26")
def test_a_song_is_measured_once_and_again_only_when_something_changed(tmp_path, monkeypatch):
    songs._songs.clear()
    calls = []

    def counted(samples, settings, progress=None):
        calls.append(settings)
        if fail:
            raise RuntimeError("no")
        progress(0.5, "half")
        zeros = np.zeros(len(samples) // settings.hop_samples, np.float32)
        return Features(settings, len(samples), zeros, zeros > 0, zeros, zeros - 80)

    monkeypatch.setattr(extract, "extract", counted)
    path = tones(tmp_path / "a.wav", 16000, duration_s=0.8)  # the tone itself does not matter here
    fail = True
    with pytest.raises(RuntimeError):
        songs.cached_song(path, SETTINGS)
    fail = False
    first = songs.cached_song(path, SETTINGS)  # a failure was not remembered
    assert len(calls) == 2
    assert songs.cached_song(path, FeatureSettings()) is first  # another instrument with the same settings
    assert songs.cached_song(path, SETTINGS, f0_method="swift") is first and len(calls) == 2
    other = songs.cached_song(path, dataclasses.replace(SETTINGS, hop_samples=128))
    assert len(calls) == 3 and len(other.features.f0_hz) == len(other.audio) // 128
    assert len(first.audio) == 12800
    songs.cached_song(path, SETTINGS, f0_method="pyin")
    assert len(calls) == 4 and calls[-1].f0_method == "pyin"
    tones(path, 16000, duration_s=0.9)
    assert songs.cached_song(path, SETTINGS).duration_s == pytest.approx(0.9) and len(calls) == 5
    os.utime(path, ns=(1, 1))  # written anew at the same size
    songs.cached_song(path, SETTINGS)
    assert len(calls) == 6
    with pytest.raises(Cancelled):
        songs.cached_song(tones(tmp_path / "b.wav", 16000), SETTINGS, cancelled=lambda: True)
    for i in range(songs.CACHED_SONGS):
        songs.cached_song(tones(tmp_path / f"{i}.wav", 16000, duration_s=0.5 + i / 10), SETTINGS)
    n = len(calls)
    songs.cached_song(path, SETTINGS)
    assert len(calls) == n + 1  # only the last few are kept
    with pytest.raises(AudioError):
        songs.cached_song(tmp_path / "gone.wav", SETTINGS)
    songs._songs.clear()


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(ConversionError, match="no song.*WAV"):
        songs.find_songs(tmp_path)
    (tmp_path / "notes.xyz").write_text("x")
    tones(tmp_path / "b (é) 'x'.WAV", 16000)
    tones(tmp_path / "a.wav", 16000)
    assert [p.name for p in songs.find_songs(tmp_path)] == ["a.wav", "b (é) 'x'.WAV"]


def test_songs_are_converted_one_after_the_other_and_a_bad_one_stops_no_other(tmp_path):
    names = ["a.wav", "bad.wav", "c.wav"]
    for name in names:
        tones(tmp_path / name, 16000, duration_s=1.0)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    made, asked, seen = [], [], []

    def controls(song):
        asked.append(song.name)
        return dataclasses.replace(PLAIN, octave_shift=len(asked))

    paths = [tmp_path / name for name in names]
    failed = pipeline.convert_songs(
        tiny(), paths, made.append, controls, progress=lambda f, text: seen.append((f, text))
    )
    assert list(failed) == [paths[1]] and isinstance(failed[paths[1]], AudioError)
    assert [(x.song.name, x.controls.octave_shift) for x in made] == [("a", 1), ("c", 2)] and asked == ["a", "c"]
    assert [f for f, _ in seen] == sorted(f for f, _ in seen) and seen[-1][0] == pytest.approx(1)
    for i in (0, 2):  # of a song's share 0.4 for measuring it, the rest for the conversion
        own = [f for f, text in seen if text.startswith(f"{names[i]}: ")]
        assert own[0] == pytest.approx(i / 3) and own[-1] == pytest.approx((i + 1) / 3)
        assert any(f == pytest.approx((i + 0.4) / 3) for f in own) and max(np.diff(own)) < 0.2
    text = pipeline.describe(3, failed)
    assert text.startswith("2 of 3 songs were converted. These were not:\nbad.wav: ") and len(text.splitlines()) == 2
    assert pipeline.describe(3, {}) == "3 of 3 songs were converted."


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return convert(tiny(), song())


@pytest.mark.case("P38")
@pytest.mark.parametrize("form", ["wav", "flac", "mp3"])
def test_saved_files_carry_sound_tag_and_settings_and_are_never_overwritten(tmp_path, result, form):
    path = pipeline.save(result, tmp_path / "output", form)
    assert path.name == f"my song - voice.{form}"
    before = path.read_bytes()
    again = pipeline.save(convert(tiny(3), song()), tmp_path / "output", form)
    assert again.name == f"my song - voice 2.{form}" and path.read_bytes() == before
    with soundfile.SoundFile(path) as file:
        assert file.samplerate == 16000 and file.comment.startswith("synthetic voice")
        read = file.read(dtype="float32")
    if form == "mp3":
        assert abs(len(read) - 16000) <= 1 and np.corrcoef(read[:15999], result.audio[:15999])[0, 1] > 0.9
    else:
        np.testing.assert_allclose(read, result.audio, atol=1e-6)
    for p in (path, again):
        said = filesystem.read_json(p.with_name(p.name + ".json"))
        assert said["tag"] == "synthetic voice" and Controls(**said["controls"]) == Controls()
    assert len(list((tmp_path / "output").iterdir())) == 4


def belongs_together(folder):
    """Every sound has its own settings, and no settings lie alone or beside another sound."""
    names = [p for p in folder.iterdir() if not p.name.startswith(filesystem.PART_PREFIX)]
    sounds = sorted(p for p in names if p.suffix != ".json")
    assert sorted(p for p in names if p.suffix == ".json") == sorted(p.with_name(f"{p.name}.json") for p in sounds)
    for path in sounds:
        beside = filesystem.read_json(path.with_name(f"{path.name}.json"))
        assert beside["sound_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with soundfile.SoundFile(path) as file:
            assert json.loads(file.comment.partition("; ")[2])["seed"] == beside["seed"]
    return [p.name for p in sounds]


@pytest.mark.case("red 18")
def test_a_sound_and_its_settings_take_one_free_name(tmp_path, result):
    """Where the settings of a deleted sound were left behind, neither is that name taken nor that file changed."""
    stale = tmp_path / "my song - voice.wav.json"
    stale.write_text('{"seed": 1}')
    other = dataclasses.replace(result, seed=2)
    assert pipeline.save(other, tmp_path).name == "my song - voice 2.wav"
    assert stale.read_text() == '{"seed": 1}'
    stale.unlink()
    assert pipeline.save(result, tmp_path).name == "my song - voice.wav"
    assert belongs_together(tmp_path) == ["my song - voice 2.wav", "my song - voice.wav"]


@pytest.mark.case("red 18")
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("what", ["sound", "settings"])
def test_somebody_takes_the_name_in_between(tmp_path, result, monkeypatch, links, what):
    """Between the look for a free name and the placing of either file: theirs stays, ours gets the next number."""
    taken, real = tmp_path / ("my song - voice.wav" + ".json" * (what == "settings")), os.link

    def link(source, target):
        if target == taken and not taken.exists():
            taken.write_bytes(b"theirs")
        if not links:
            raise OSError(95, "no links here")
        real(source, target)

    monkeypatch.setattr(filesystem.active, "link", link)
    assert pipeline.save(result, tmp_path).name == "my song - voice 2.wav"
    assert taken.read_bytes() == b"theirs"
    taken.unlink()
    assert belongs_together(tmp_path) == ["my song - voice 2.wav"]


@pytest.mark.case("red 20")
@pytest.mark.parametrize("how", [28, "interrupt"])
def test_every_operation_of_saving_fails_once(tmp_path, result, how):
    """Both files or neither, whatever fails and whatever is said about it."""
    with faults.failing() as counter:
        pipeline.save(result, tmp_path / "count")
    assert counter.count > 8
    for n in range(1, counter.count + 1):
        folder = tmp_path / str(n)
        with faults.failing(n, how):
            try:
                path = pipeline.save(result, folder)
            except (StorageError, OSError, KeyboardInterrupt):
                path = None
        if folder.is_dir():
            found = belongs_together(folder)
            assert path is None or path.name in found, counter.log[n - 1]
        assert pipeline.save(result, folder).is_file() and belongs_together(folder)


def test_saving_under_a_name_and_strange_names(tmp_path, result):
    assert pipeline.save(result, tmp_path, "WAV", name="take one").name == "take one.WAV"
    strange = dataclasses.replace(result, instrument_name='../../évil: "x"\n')
    path = pipeline.save(strange, tmp_path)
    assert path.parent == tmp_path and path.is_file() and "évil" in path.name
    with pytest.raises(ConversionError, match="'aiff'.*wav, flac, mp3"):
        pipeline.save(result, tmp_path, "aiff")


def test_a_failed_save_leaves_nothing(tmp_path, result, monkeypatch):
    def fails(part, *args, **more):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile, "SoundFile", fails)
    with pytest.raises((StorageError, OSError)):
        pipeline.save(result, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.stat().st_size]


def test_the_limiter_measures_the_mix_and_not_its_parts(monkeypatch):
    """Parts that cancel each other are not a reason to turn the result down; played alone they are limited together."""
    wave = np.sin(np.arange(16000) * 0.05).astype(np.float32)
    monkeypatch.setitem(pipeline._RENDERERS, "ddsp", lambda *a, **watch: [0.2 * wave, 1.2 * wave, -1.0 * wave])
    result = convert(tiny(), song())
    assert result.gain_db == 0 and not any("too loud" in w for w in result.warnings)
    np.testing.assert_array_equal(result.audio, 0.2 * wave)
    harmonic, noise = result.stems
    assert np.abs(harmonic).max() == pytest.approx(0.99, abs=1e-3)
    np.testing.assert_allclose(harmonic, -1.2 * noise, atol=1e-6)


# Formants, breath, level ----------------------------------------------------------------------------------------------


def breathing(seconds=4.0):
    """A song of notes with breaths of white noise at -40 dB between them, measured; which samples are breath."""
    rng, n = np.random.default_rng(0), int(16000 * seconds)
    t = np.arange(n) / 16000
    breath = (t % 1.0) > 0.6
    tone = 0.1 * sum(np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 9))
    sound = np.where(breath, 0.01 * rng.standard_normal(n), tone).astype(np.float32)
    settings = dataclasses.replace(SETTINGS, f0_method="swift")
    return songs.Song(songs.Path("b.wav"), "b", 16000, n, sound, extract.extract(sound, settings)), breath


def level_db(x):
    return 10 * np.log10(np.mean(np.square(x, dtype=np.float64)))


@pytest.mark.case("field F6")
def test_breaths_of_the_song_stay_within_6_db_by_default():
    """The rendering alone is quieter: it is attenuated between notes, and its noise is another one."""
    s, breath = breathing()
    inside = np.convolve(breath, np.ones(2000), "same") >= 1999
    notes = s.features.loudness_db[s.features.voiced]
    known = {**STATISTICS, "loudness_quantiles_db": np.quantile(notes, np.linspace(0, 1, 100)).tolist()}
    voice = tiny()
    voice.statistics = known
    made = convert(voice, s)
    assert abs(level_db(made.audio[inside]) - made.gain_db - level_db(s.audio[inside])) < 6
    assert np.corrcoef(made.audio[inside], s.audio[inside])[0, 1] > 0.9  # it is the song's own
    without = convert(voice, s, Controls(breath=0.0))
    assert level_db(without.audio[inside]) - without.gain_db - level_db(s.audio[inside]) < -6
    tone = np.convolve(~breath, np.ones(3000), "same") >= 2999
    gain = 10 ** ((made.gain_db - without.gain_db) / 20)
    np.testing.assert_allclose(made.audio[tone], gain * without.audio[tone], atol=1e-5)  # notes are left alone
    np.testing.assert_allclose(made.harmonic + made.noise, made.audio, atol=1e-6)
    half = convert(voice, s, Controls(breath=0.5))
    assert level_db(half.audio[inside]) - half.gain_db == pytest.approx(
        level_db(made.audio[inside]) - made.gain_db - 6, abs=1
    )


def test_the_level_of_a_result_is_that_asked_for_unless_it_would_clip():
    from svclib.audio.loudness import integrated_lufs

    s = song(48000, midi=57.0, loudness_db=-30.0)
    for lufs in (-23.0, -14.0):
        made = convert(follower(), s, dataclasses.replace(PLAIN, loudness_lufs=lufs))
        assert integrated_lufs(made.audio, 16000) == pytest.approx(lufs, abs=0.05)
        assert made.settings()["controls"]["loudness_lufs"] == lufs and f"{lufs:g}" in made.settings_text
        np.testing.assert_allclose(made.harmonic + made.noise, made.audio, atol=1e-6)
    s = breathing()[0]
    peaky = dataclasses.replace(s, audio=np.zeros_like(s.audio))
    loud = convert(follower(), peaky, dataclasses.replace(PLAIN, loudness_lufs=-5.0, breath=0.0))
    assert np.abs(loud.audio).max() <= 0.99 + 1e-6
    assert any(f"{integrated_lufs(loud.audio, 16000):.1f} LUFS" in w for w in loud.warnings)
    silent = convert(follower(), song(voiced=False, loudness_db=-80.0, sound=np.zeros(16000, np.float32)), PLAIN)
    assert np.isfinite(silent.audio).all()


def test_formants_move_and_the_pitch_stays():
    s, voice = song(48000, midi=57.0, loudness_db=-20.0), tiny()
    centroids = []
    for shift in (-4.0, 0.0, 4.0):
        made = convert(voice, s, dataclasses.replace(PLAIN, formant_shift=shift))
        spectrum = np.abs(np.fft.rfft(made.harmonic * np.hanning(len(made.harmonic)))) ** 2
        f_hz = np.fft.rfftfreq(len(made.harmonic), 1 / 16000)
        multiples = f_hz[spectrum > 0.01 * spectrum.max()] / 220
        np.testing.assert_allclose(multiples, np.round(multiples), atol=0.02)
        centroids.append(spectrum @ f_hz / spectrum.sum())
        assert len(made.audio) == 48000 and (shift == 0 or "formants" in made.settings_text)
    assert centroids[0] < 0.97 * centroids[1] < 0.95 * centroids[2]
