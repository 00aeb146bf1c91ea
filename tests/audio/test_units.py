"""Truths about pitch, level and the frame rule: closed forms, librosa, and that numpy and torch agree."""

import librosa
import numpy as np
import pytest
import torch

from svclib.audio import units


def test_midi_of_known_pitches():
    assert units.hz_to_midi(440.0) == 69.0
    assert units.hz_to_midi(880.0) == 81.0
    assert units.hz_to_midi(0.0) == 0.0
    np.testing.assert_allclose(units.hz_to_midi(440.0) / 127, 0.543307, atol=1e-6)
    np.testing.assert_allclose(units.hz_to_midi(80.0) / 127, 0.310920, atol=1e-6)


def test_midi_agrees_with_librosa_and_comes_back():
    hz = np.geomspace(20, 8000, 500)
    np.testing.assert_allclose(units.hz_to_midi(hz), librosa.hz_to_midi(hz), atol=1e-9)
    np.testing.assert_allclose(units.midi_to_hz(units.hz_to_midi(hz)), hz, rtol=1e-12)


@pytest.mark.parametrize("function", [units.hz_to_midi, units.midi_to_hz, units.amplitude_to_db, units.db_to_amplitude])
def test_torch_and_numpy_agree(function):
    x = np.array([0.0, 1e-9, 0.3, 1.0, 55.0, 440.0, 1000.0])[: 4 if function is units.db_to_amplitude else 7]
    np.testing.assert_allclose(function(torch.from_numpy(x)).numpy(), function(x), rtol=1e-12)


def test_gradient_of_midi_is_finite_where_there_is_no_pitch():
    f0_hz = torch.tensor([0.0, 440.0], requires_grad=True)
    units.hz_to_midi(f0_hz).sum().backward()
    assert f0_hz.grad[0] == 0
    np.testing.assert_allclose(f0_hz.grad[1], 12 / (440 * np.log(2)), rtol=1e-6)


def test_cents():
    assert units.cents(880, 440) == 1200
    np.testing.assert_allclose(units.cents(440 * 2 ** (1 / 12), 440), 100)


def test_decibels():
    assert units.amplitude_to_db(1.0) == 0.0
    np.testing.assert_allclose(units.amplitude_to_db(0.5), -6.0206, atol=1e-4)
    assert units.amplitude_to_db(0.0) == -120.0
    np.testing.assert_allclose(units.db_to_amplitude(units.amplitude_to_db(0.123)), 0.123)


GRID = [(0, 64, 0), (63, 64, 0), (64, 64, 1), (65, 64, 1), (441000, 512, 861)]


@pytest.mark.parametrize(("n", "hop", "frames"), GRID)
def test_frames_of_a_signal(n, hop, frames):
    assert units.frame_count(n, hop) == frames


def test_frame_centers_lie_in_the_middle_of_their_frames():
    centers_s = units.frame_centers_s(100, 64, 16000)
    assert centers_s[0] == 32 / 16000
    assert [units.frame_of_time(t, 64, 16000) for t in centers_s] == list(range(100))


@pytest.mark.parametrize(
    ("n", "rate_in", "rate_out", "expected"),
    [(44100, 44100, 16000, 16000), (1, 48000, 16000, 0), (3, 48000, 24000, 2), (132300, 44100, 44100, 132300)],
)
def test_resampled_length_rounds_half_up(n, rate_in, rate_out, expected):
    assert units.resampled_length(n, rate_in, rate_out) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.3, "0.3 s"), (12.4, "12 s"), (185, "3 min 05 s"), (59.6, "60 s"), (7620, "2 h 07 min"), (-1, "0.0 s")],
)
def test_durations_for_people(seconds, text):
    assert units.duration_text(seconds) == text
