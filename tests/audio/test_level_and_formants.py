"""Truths: the tables of ITU-R BS.1770 and the signals of EBU Tech 3341; LUFS of a recording as ffmpeg's ``ebur128`` and
pyloudnorm read it; the closed form of a vowel whose envelope is moved, harmonic by harmonic."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from svclib.audio import loudness, synthesis

RATE, HOP = 22050, 256


def sine(level_db, f_hz, seconds, rate=48000):
    return 10 ** (level_db / 20) * np.sin(2 * np.pi * f_hz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000, 96000])
def test_lufs_of_the_calibration_tone_of_the_standard(rate):
    """BS.1770: 997 Hz at full scale in one channel reads -3.01 LKFS."""
    assert loudness.integrated_lufs(sine(0, 997, 3, rate), rate) == pytest.approx(-3.01, abs=0.03)


def test_lufs_of_the_gating_signals_of_ebu_tech_3341():
    """Tests 3 and 4, for one channel 3.01 LU lower: the quiet ends fall to the relative, then the absolute gate."""
    three = np.concatenate([sine(-36, 1000, 10), sine(-23, 1000, 60), sine(-36, 1000, 10)])
    four = np.concatenate([sine(-72, 1000, 10), three, sine(-72, 1000, 10)])
    for signal in (three, four):
        assert loudness.integrated_lufs(signal, 48000) == pytest.approx(-23 - 3.01, abs=0.1)
    assert loudness.integrated_lufs(sine(-36, 1000, 5), 48000) == pytest.approx(-36 - 3.01, abs=0.05)


def test_lufs_of_a_recording_as_other_programs_measure_it():
    """-19.2 by ffmpeg 5.1 (ebur128), -19.21 and -19.33 by the two filters of pyloudnorm 0.2."""
    path = Path(__file__).parents[1] / "fixtures" / "before_folders" / "audio" / "ann" / "2.flac"
    samples, rate = soundfile.read(path)
    assert loudness.integrated_lufs(samples, rate) == pytest.approx(-19.25, abs=0.1)
    assert loudness.integrated_lufs(samples / 2, rate) == pytest.approx(-19.25 - 6.02, abs=0.1)


def test_lufs_of_little_and_of_nothing():
    assert loudness.integrated_lufs(sine(0, 997, 0.15), 48000) == pytest.approx(-3.01, abs=0.3)
    assert loudness.integrated_lufs(np.zeros(48000), 48000) == loudness.integrated_lufs(np.zeros(0), 48000) == -np.inf


def envelope(f_hz):
    """Two formants."""
    return 0.02 + np.exp(-0.5 * ((f_hz - 900) / 250) ** 2) + 0.3 * np.exp(-0.5 * ((f_hz - 3000) / 400) ** 2)


@pytest.mark.parametrize("semitones", [-6.0, -2.5, 0.0, 3.0, 6.0])
def test_a_vowel_keeps_its_pitch_and_gets_the_moved_envelope(semitones):
    t = np.arange(2 * RATE) / RATE
    f0 = 210 * 2 ** (0.02 * np.sin(2 * np.pi * 5 * t))
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    vowel = sum(0.1 * envelope(k * f0) * np.sin(k * phase + k * k) for k in range(1, 45)).astype(np.float32)
    frames = f0[np.arange(len(t) // HOP) * HOP + HOP // 2]
    (moved,) = synthesis.shift_formants([vowel], frames, RATE, HOP, semitones, chunk_frames=50)
    assert moved.shape == vowel.shape and moved.dtype == np.float32
    middle, window = slice(RATE // 2, RATE // 2 + RATE), np.hanning(RATE)
    error_db = []
    for k in range(1, 29):  # a harmonic of the same F0, demodulated by its phase
        level = 2 * abs(np.sum(moved[middle] * window * np.exp(-1j * k * phase[middle]))) / window.sum()
        wanted = 0.1 * np.mean(envelope(k * f0[middle] / 2 ** (semitones / 12)))
        error_db.append(20 * np.log10(level / wanted))
    assert np.abs(error_db).mean() < 0.5 and np.abs(error_db).max() < 2.5
    if semitones == 0:
        np.testing.assert_allclose(moved, vowel, atol=1e-6)


def test_formants_of_parts_and_of_noise():
    """The parts still add up, noise without pitch moves too, and silence stays silent."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(RATE).astype(np.float32) * 0.1
    spectrum = np.fft.rfft(noise) * envelope(np.fft.rfftfreq(RATE, 1 / RATE))
    breath = np.fft.irfft(spectrum, RATE).astype(np.float32)
    silence = np.zeros(RATE, np.float32)
    whole, part, rest, nothing = synthesis.shift_formants(
        [breath, 0.25 * breath, 0.75 * breath, silence], np.zeros(80), RATE, HOP, 4
    )
    np.testing.assert_allclose(part + rest, whole, atol=1e-6)
    assert not nothing.any()
    power = np.abs(np.fft.rfft(whole)[:2100]) ** 2  # of the first formant, by Hz
    assert power @ np.arange(2100) / power.sum() == pytest.approx(900 * 2 ** (4 / 12), rel=0.05)
