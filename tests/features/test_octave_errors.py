"""Truths held here: octave errors put into the track of a real singer are found at their frames and mended to the
track as it was; the real track is left alone, and so is an octave that was really sung, however fast; the measure
behind it tells a pitch from its half on real voices."""

import dataclasses

import numpy as np
import pytest

from svclib.conversion import song as songs
from svclib.features import octave_errors
from svclib.features.extract import Features, FeatureSettings

SETTINGS = FeatureSettings(22050, 256, loudness_n_fft=1024)
RATE, HOP = 22050, 256


@pytest.fixture(scope="module")
def singer(data_dir):
    return songs.load_song(data_dir / "singing" / "vocadito_1" / "vocadito_1.wav", SETTINGS)


def runs(features, longest_gap=1):
    frames = np.flatnonzero(features.voiced)
    return np.split(frames, np.flatnonzero(np.diff(frames) > longest_gap) + 1)


def test_a_real_track_is_left_alone_although_it_leaps(singer):
    assert len(octave_errors._segments(singer.features)) >= 3  # so the spectrum had to decide
    assert octave_errors.find_octave_errors(singer.audio, singer.features) == []
    assert octave_errors.describe([]) == ""
    np.testing.assert_array_equal(octave_errors.repair(singer.features, []).f0_hz, singer.features.f0_hz)


@pytest.mark.parametrize("octave", [1, -1])
@pytest.mark.parametrize("place", ["inside", "start", "end"])
def test_errors_put_into_a_real_track_are_found_and_mended(singer, octave, place):
    true = singer.features
    long = [r for r in runs(true) if len(r) > 40][:6]
    cuts = {"inside": slice(12, 24), "start": slice(0, 12), "end": slice(-12, None)}
    segments = [r[cuts[place]] for r in long]
    f0 = true.f0_hz.copy()
    for segment in segments:
        f0[segment] *= 2.0**octave
    wrong = dataclasses.replace(true, f0_hz=f0)
    found = octave_errors.find_octave_errors(singer.audio, wrong)
    assert [(e.start, e.stop, e.octaves) for e in found] == [(s[0], s[-1] + 1, octave) for s in segments]
    assert found[0].start_s == pytest.approx(segments[0][0] * HOP / RATE)
    np.testing.assert_allclose(octave_errors.repair(wrong, found).f0_hz, true.f0_hz, rtol=1e-6)
    text = octave_errors.describe(found)
    assert f"at {len(found)} places" in text and ("too high" if octave > 0 else "too low") in text


def tone(f0_hz):
    """A voice-like sound whose pitch is exactly this, frame by frame, and its measurements."""
    f0 = np.repeat(f0_hz, HOP)
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    samples = sum(np.sin(k * phase) / k for k in range(1, 13)) * 0.1
    samples = samples + 0.002 * np.random.default_rng(0).standard_normal(len(samples))
    n = len(f0_hz)
    ones = np.ones(n, np.float32)
    track = np.asarray(f0_hz, np.float32)
    return samples, Features(SETTINGS, n * HOP, track, ones > 0, ones, -20 * ones)


@pytest.mark.parametrize("factor", [2.0, 0.5])
@pytest.mark.parametrize("n_frames", [10, 40])
def test_an_octave_that_was_sung_stays(factor, n_frames):
    """Without any glide, there and back, for 0.12 and 0.46 s."""
    samples, sung = tone(np.r_[np.full(50, 220.0), np.full(n_frames, 220.0 * factor), np.full(50, 220.0)])
    assert {d for *_, ds in octave_errors._segments(sung) for d in ds} == {1, -1}
    assert octave_errors.find_octave_errors(samples, sung) == []
    flat, _ = tone(np.full(100 + n_frames, 220.0))
    (error,) = octave_errors.find_octave_errors(flat, sung)  # the same track over a sound that did not leap
    assert (error.start, error.stop, error.octaves) == (50, 50 + n_frames, 1 if factor > 1 else -1)


def test_other_leaps_and_glides_are_no_matter_of_octaves():
    for track in (np.r_[np.full(50, 220.0), np.full(20, 330.0)], np.geomspace(220, 440, 30), np.full(1, 220.0)):
        samples, sung = tone(track)
        assert octave_errors._segments(sung) == [] and octave_errors.find_octave_errors(samples, sung) == []
    _, sung = tone(np.full(50, 220.0))
    silent = dataclasses.replace(sung, voiced=np.zeros(50, bool))
    assert octave_errors.find_octave_errors(np.zeros(50 * HOP), silent) == []


@pytest.mark.parametrize("name", ["singing/vocadito_1/vocadito_1.wav", "instruments/solo_trumpet_06.ogg"])
def test_the_measure_tells_a_pitch_from_its_half(data_dir, name):
    song = songs.load_song(data_dir / name, SETTINGS)
    true, half = [], []
    for run in runs(song.features):
        for k in range(0, len(run) - 12, 12):
            frames = run[k : k + 12]
            f0 = song.features.f0_hz[frames].astype(float)
            true.append(octave_errors.odd_db(song.audio, frames, f0, HOP, RATE))
            half.append(octave_errors.odd_db(song.audio, frames, f0 / 2, HOP, RATE))
    assert len(true) > 20 and min(true) > octave_errors.PRESENT_DB and max(half) < octave_errors.ABSENT_DB
