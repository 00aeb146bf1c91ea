"""Truths about the metrics: mir_eval's definitions, closed forms on made-up errors; wrong grids are refused."""

import mir_eval
import numpy as np
import pytest

from svclib.conversion import metrics
from svclib.utils.errors import ModelError


def melody(n=4000, seed=0):
    """A truth and an estimate with every kind of error: small, large, octave, voicing both ways, no estimate."""
    rng = np.random.default_rng(seed)
    truth_hz = 220 * 2 ** (np.cumsum(rng.normal(0, 0.01, n)))
    truth = np.repeat(rng.random(n // 40) < 0.7, 40)
    estimate_hz = truth_hz * 2 ** (rng.normal(0, 30, n) / 1200)
    estimate_hz[rng.random(n) < 0.05] *= 2
    estimate_hz[rng.random(n) < 0.03] *= 0.5
    estimate_hz[rng.random(n) < 0.03] *= 1.3
    estimate_hz[rng.random(n) < 0.04] = 0
    called = truth ^ (rng.random(n) < 0.1)
    return truth_hz, truth, estimate_hz, called


def test_f0_accuracy_is_mir_evals():
    truth_hz, truth, estimate_hz, called = melody()
    ours = metrics.f0_accuracy(truth_hz, truth, estimate_hz, called)
    times = np.arange(len(truth_hz)) * 0.01
    signed = np.where(called, estimate_hz, -estimate_hz)
    theirs = mir_eval.melody.evaluate(times, np.where(truth, truth_hz, 0.0), times, signed)
    assert ours["raw_pitch_accuracy"] == pytest.approx(theirs["Raw Pitch Accuracy"], abs=1e-12)
    assert ours["raw_chroma_accuracy"] == pytest.approx(theirs["Raw Chroma Accuracy"], abs=1e-12)
    assert ours["overall_accuracy"] == pytest.approx(theirs["Overall Accuracy"], abs=1e-12)
    assert ours["voicing_recall"] == pytest.approx(theirs["Voicing Recall"], abs=1e-12)
    false_alarms = theirs["Voicing False Alarm"] * (~truth).sum()
    hits = theirs["Voicing Recall"] * truth.sum()
    precision = hits / (hits + false_alarms)
    assert ours["voicing_precision"] == pytest.approx(precision, abs=1e-12)
    f1 = 2 * precision * ours["voicing_recall"] / (precision + ours["voicing_recall"])
    assert ours["voicing_f1"] == pytest.approx(f1, abs=1e-12)
    assert 0.05 < ours["octave_error_rate"] < 0.1


def test_octave_errors_are_counted_as_such():
    f0_hz, on = np.full(100, 200.0), np.ones(100, bool)
    heard = f0_hz.copy()
    heard[:10] *= 2
    heard[10:15] /= 4
    heard[15:20] *= 1.5
    found = metrics.f0_accuracy(f0_hz, on, heard, on)
    assert found["octave_error_rate"] == 0.15
    assert found["raw_pitch_accuracy"] == 0.80
    assert found["raw_chroma_accuracy"] == 0.95


def test_nothing_voiced_gives_nan_not_a_crash():
    zeros, off = np.zeros(10), np.zeros(10, bool)
    found = metrics.f0_accuracy(zeros, off, zeros, off)
    assert np.isnan(found["raw_pitch_accuracy"]) and found["overall_accuracy"] == 1.0
    assert np.isnan(metrics.f0_error_cents(zeros, off, zeros, off)["rmse"])
    assert np.isnan(metrics.loudness_l1_db(np.full(5, -80.0), np.full(5, -80.0)))


def test_a_detuned_copy():
    truth_hz, truth, _, _ = melody()
    found = metrics.f0_error_cents(truth_hz, truth, truth_hz * 2 ** (25 / 1200), truth)
    for name in ("median_absolute", "rmse", "median"):
        assert found[name] == pytest.approx(25.0)
    assert found["correlation"] == pytest.approx(1.0)


def test_loudness_counts_loud_reference_frames_only():
    reference, measured = np.array([-70.0, -50.0, -20.0]), np.array([0.0, -48.0, -24.0])
    assert metrics.loudness_l1_db(reference, measured) == 3.0
    assert metrics.loudness_l1_db(reference, measured, above_db=-30.0) == 4.0


def test_spectral_distance_of_a_quieter_copy():
    x = np.random.default_rng(0).normal(0, 0.1, 24000)
    found = metrics.spectral_distance(x, 0.5 * x)
    assert found["stft_convergence"] == pytest.approx(0.5, abs=1e-6)
    assert found["stft_log_magnitude"] == pytest.approx(np.log(2), abs=1e-3)
    assert metrics.spectral_distance(x, x)["stft_distance"] == 0.0
    assert metrics.spectral_distance(x, -x)["stft_distance"] == pytest.approx(0.0, abs=1e-12)


def test_spectral_distance_agrees_with_plain_numpy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 0.1, 24000), rng.normal(0, 0.1, 24000)
    convergence, logs = [], []
    for n_fft, hop, window in ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200)):
        hann = np.zeros(n_fft)
        left = (n_fft - window) // 2
        hann[left : left + window] = np.hanning(window + 1)[:-1]
        padded = [np.pad(x, n_fft // 2, mode="reflect") for x in (a, b)]
        frames = [np.lib.stride_tricks.sliding_window_view(x, n_fft)[::hop] * hann for x in padded]
        p, q = (np.sqrt(np.maximum(np.abs(np.fft.rfft(x)) ** 2, 1e-8)) for x in frames)
        convergence.append(np.linalg.norm(p - q) / np.linalg.norm(p))
        logs.append(np.abs(np.log(p) - np.log(q)).mean())
    found = metrics.spectral_distance(a, b, 24000)
    assert found["stft_convergence"] == pytest.approx(np.mean(convergence), rel=1e-6)
    assert found["stft_log_magnitude"] == pytest.approx(np.mean(logs), rel=1e-6)


def test_mcd_is_the_rms_difference_in_db_without_the_level():
    mel = np.random.default_rng(1).normal(-3, 1, (50, 80))
    assert metrics.mcd_db(mel, mel + 1.7) == pytest.approx(0.0, abs=1e-9)
    ripple = np.cos(np.pi * (np.arange(80) + 0.5) * 3 / 80)  # one cepstral coefficient, c_3
    expected = np.sqrt(np.mean(np.square(20 * np.log10(np.exp(0.2 * ripple)))))
    assert metrics.mcd_db(mel, mel + 0.2 * ripple) == pytest.approx(expected, rel=1e-9)


def test_different_grids_are_refused():
    on = np.ones(10, bool)
    with pytest.raises(ModelError, match="lengths"):
        metrics.f0_accuracy(np.ones(10), on, np.ones(9), on[:9])
    with pytest.raises(ModelError, match="lengths"):
        metrics.loudness_l1_db(np.ones(10), np.ones(11))


def test_mel_cepstral_distance_along_a_warped_path():
    rng = np.random.default_rng(5)
    mel = np.cumsum(rng.normal(0, 0.3, (40, 80)), axis=0)
    slower = np.repeat(mel, 2, axis=0)  # every frame held twice: warping undoes it exactly
    assert metrics.mcd_db(mel, slower, 24, warped=True) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ModelError, match="lengths"):
        metrics.mcd_db(mel, slower, 24)
    # A change of one cepstrum by d everywhere: 10 / ln 10 * sqrt(2) * d, warped or not.
    curve = np.cos(np.pi * 3 * (np.arange(80) + 0.5) / 80) * 0.1
    for warped in (False, True):
        found = metrics.mcd_db(mel, mel + curve, 24, warped)
        assert found == pytest.approx(10 / np.log(10) * np.sqrt(2) * 0.1, rel=1e-6)
    # The path found by warping is never longer in sum than any other, such as the diagonal.
    other = mel + rng.normal(0, 0.2, mel.shape)
    assert metrics.mcd_db(mel, other, 24, warped=True) <= 1.0001 * (metrics.mcd_db(mel, other, 24))
