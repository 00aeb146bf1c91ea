"""Truths held here: slopes of the spectra in dB per octave, levels of the mix, SI-SDR, all in closed form."""

import numpy as np
import pytest
import scipy.signal

from lib import noises
from svclib.utils.errors import ConversionError

RATE = 8000


@pytest.mark.parametrize(("kind", "slope_db"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_slopes(kind, slope_db):
    x = noises.make(kind, 60 * RATE, RATE, seed=3)
    hz, power = scipy.signal.welch(x, RATE, nperseg=8192)
    kept = (hz > 40) & (hz < 3900)
    slope, _ = np.polyfit(np.log2(hz[kept]), 10 * np.log10(power[kept]), 1)
    assert slope == pytest.approx(slope_db, abs=0.1)
    assert noises.rms(x) == pytest.approx(1, rel=1e-6) and x.dtype == np.float32
    if kind != "white":
        spectrum = np.abs(np.fft.rfft(x)) ** 2
        assert spectrum[: 19 * 60].sum() < 1e-6 * spectrum.sum()


@pytest.mark.parametrize("mains_hz", [50, 60])
def test_hum_is_the_mains_and_its_harmonics(mains_hz):
    x = noises.make("hum", RATE, RATE, seed=1, mains_hz=mains_hz)
    amplitude = np.abs(np.fft.rfft(x)) * 2 / RATE  # one second: bin k is k Hz
    lines = np.arange(mains_hz, RATE // 2, mains_hz)
    np.testing.assert_allclose(amplitude[lines] / amplitude[mains_hz], mains_hz / lines, rtol=1e-3)
    rest = np.delete(amplitude, lines)
    assert rest.max() < 1e-5
    drawn = {int(np.abs(np.fft.rfft(noises.make("hum", RATE, RATE, seed=s))).argmax()) for s in range(20)}
    assert drawn == {50, 60}


def test_babble_is_other_recordings_at_one_level():
    t = np.arange(RATE) / RATE
    voices = [level * np.sin(2 * np.pi * hz * t) for hz, level in zip(range(200, 2000, 200), range(1, 10), strict=True)]
    x = noises.make("babble", 3 * RATE, RATE, seed=0, voices=voices)
    amplitude = np.abs(np.fft.rfft(x)) * 2 / len(x)
    heard = amplitude[600::600][:9]  # three seconds: bin k is k / 3 Hz
    assert (heard > 0.1).sum() == 6
    np.testing.assert_allclose(heard[heard > 0.1], np.sqrt(2 / 6), rtol=1e-3)  # loud or soft before: alike now
    with pytest.raises(ConversionError, match="other recordings"):
        noises.make("babble", 100, RATE, voices=[np.zeros(50)])


def test_seeds():
    for kind in noises.KINDS:
        voices = list(np.random.default_rng(0).normal(size=(8, 500)))
        a, again, b = (noises.make(kind, 700, RATE, seed=s, voices=voices) for s in (1, 1, 2))
        assert np.array_equal(a, again) and not np.array_equal(a, b) and len(a) == 700


@pytest.mark.parametrize(("share", "snr_db"), [(0.1, 20.0), (0.3, 10.4576)])
def test_shares_are_levels(share, snr_db):
    rng = np.random.default_rng(0)
    signal = 0.07 * rng.normal(size=5000)
    noisy = noises.mix(signal, 3.0 * noises.make("pink", 5000, RATE), share)
    snr = 20 * np.log10(noises.rms(signal) / noises.rms(noisy - signal))
    assert snr == pytest.approx(snr_db, abs=1e-3)
    assert np.array_equal(noises.mix(signal, signal, 0.0), signal.astype(np.float32))


def test_si_sdr_in_closed_form():
    t = np.arange(RATE) / RATE
    s, d = np.sin(2 * np.pi * 100 * t), np.cos(2 * np.pi * 300 * t)  # orthogonal, of equal power
    for share, want in ((0.1, 20.0), (0.3, 10.4576), (1.0, 0.0)):
        for gain in (1.0, -0.2, 40.0):
            assert noises.si_sdr_db(s, gain * (s + share * d)) == pytest.approx(want, abs=1e-3)
    assert noises.si_sdr_db(s, 0.3 * s) > 250
    assert noises.si_sdr_db(s, d) < -250
    assert noises.si_sdr_db(s, 0 * s) == -np.inf
    noisy, cleaned = s + 0.3 * d, 2 * (s + 0.03 * d)
    assert noises.si_sdr_gain_db(s, noisy, cleaned) == pytest.approx(20.0, abs=1e-3)
    assert noises.si_sdr_gain_db(s, cleaned, noisy) == pytest.approx(-20.0, abs=1e-3)


def test_what_cannot_be_is_told():
    one = np.ones(5)
    for action, match in [
        (lambda: noises.make("green", 10, RATE), "'green'; choose one of white"),
        (lambda: noises.make("white", 1, RATE), "at least 2"),
        (lambda: noises.make("hum", 10, RATE, mains_hz=55), "50 or 60"),
        (lambda: noises.mix(one, np.ones(4), 0.1), "lengths have to be equal"),
        (lambda: noises.mix(one, one, -0.1), "0 or more"),
        (lambda: noises.mix(one, np.zeros(5), 0.1), "silent"),
        (lambda: noises.si_sdr_db(np.zeros(5), one), "sound to be in the reference"),
    ]:
        with pytest.raises(ConversionError, match=match):
            action()
