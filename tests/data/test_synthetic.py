"""Truths of the synthetic singers: what they claim to have sung is what an independent measurement finds.

F0 against the SwiftF0 tracker; harmonic amplitudes against a least-squares fit; formants against linear prediction;
loudness against an A-weighted spectrum computed here with librosa's weighting; seeds; the same score sung by both; no
clipping and no clicks.
"""

import dataclasses

import librosa
import numpy as np
import pytest
import scipy.linalg
import scipy.signal
from singer_truth import truth as truth_of

from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import singers
from svclib.data.singers import Note, Score
from svclib.utils.errors import DatasetError

RATE_HZ, HOP = 16000, 64
LONG_VOWELS = Score(tuple(Note(55, 1.2, v) for v in "aeiou"), "vowels")


def both(score, **arguments):
    return [singers.render(name, score, **arguments) for name in singers.SINGERS]


@pytest.fixture(scope="module")
def songs():
    return both(singers.demo_song())


def at_16k(sung):
    return librosa.resample(sung.audio, orig_sr=sung.sample_rate_hz, target_sr=RATE_HZ)


def measured_loudness_db(samples, n_fft=512):
    """A-weighted power in a periodic Hann window centred in each frame, written here without svclib."""
    n_frames = len(samples) // HOP
    padded = np.pad(samples, n_fft)
    start = n_fft + HOP // 2 - n_fft // 2
    frames = np.stack([padded[start + i * HOP : start + i * HOP + n_fft] for i in range(n_frames)])
    power = np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", n_fft), axis=1)) ** 2
    weights = 10 ** (librosa.A_weighting(np.maximum(np.fft.rfftfreq(n_fft, 1 / RATE_HZ), 1.0), min_db=None) / 10)
    return 10 * np.log10(np.maximum((power * weights).mean(axis=1), 1e-8))


def test_f0_is_what_an_independent_tracker_hears(songs):
    from swift_f0 import SwiftF0

    tracker = SwiftF0()
    for sung in songs:
        heard = tracker.detect(sung.audio, sung.sample_rate_hz)
        truth = truth_of(sung, 1000, 1)  # one frame per millisecond
        index = np.minimum((heard.timestamps * 1000).astype(int), len(truth.f0_hz) - 1)
        voiced = truth.voiced[index]
        error = np.abs(units.cents(heard.pitch_hz[voiced], truth.f0_hz[index][voiced]))
        assert np.median(error) < 5, sung.curves.singer.name
        assert np.mean(error < 25) > 0.98, sung.curves.singer.name
        assert np.mean((heard.confidence > 0.9) == voiced) > 0.95, sung.curves.singer.name


def test_loudness_is_closed_form_and_right_on_every_voiced_frame(songs):
    for sung in songs:
        truth = truth_of(sung, RATE_HZ, HOP)
        error = measured_loudness_db(at_16k(sung))[: len(truth.loudness_db)] - truth.loudness_db
        vowels = np.isin(truth.phones, singers.VOWELS)
        assert np.percentile(np.abs(error[vowels]), 99) < 0.3, sung.curves.singer.name
        # noise fluctuates in a 32 ms window, so only its average can be told in advance
        noises = np.isin(truth.phones, ["s", "h", "t", "k"])
        assert abs(np.mean(error[noises])) < 1.5, sung.curves.singer.name
        assert (truth.loudness_db[:20] == -80).all()  # silence before the first note


def test_truth_fits_any_grid(songs):
    sung = songs[0]
    coarse, fine = truth_of(sung, 44100, 512), truth_of(sung, 22050, 256)
    assert len(coarse.f0_hz) == len(sung.audio) // 512
    assert len(fine.f0_hz) == units.resampled_length(len(sung.audio), 44100, 22050) // 256
    n = min(len(coarse.f0_hz), len(fine.f0_hz))
    np.testing.assert_allclose(coarse.f0_hz[:n], fine.f0_hz[:n], rtol=1e-5)
    assert coarse.phones[:n] == fine.phones[:n]
    for i, (phone, voiced) in enumerate(zip(coarse.phones, coarse.voiced, strict=True)):
        center_s = (i + 0.5) * 512 / 44100
        assert phone == next(p.phone for p in sung.curves.phones if p.start_s <= center_s < p.end_s)
        assert voiced == (phone in "aeioumnl")


def test_a_vowel_has_the_level_that_was_asked_for():
    for level_db in (0.0, -6.0):
        for sung in both(Score((Note(60, 1.0, "o", level_db),))):
            middle = sung.audio[int(0.4 * 44100) : int(0.9 * 44100)]
            assert 10 * np.log10(np.mean(middle**2)) == pytest.approx(singers.MASTER_DB + level_db, abs=0.3)


def test_harmonics_have_the_amplitudes_of_the_formant_model():
    for singer in singers.SINGERS.values():
        sung = singers.render(dataclasses.replace(singer, breath_db=-150.0), Score((Note(60, 0.3, "a"),)))
        model = sung.curves
        rate = sung.sample_rate_hz
        start, n = int(0.25 * rate), 2048  # before the vibrato sets in
        f0_hz = model.f0_hz(np.array([(start + n / 2) / rate]))
        asked = model.harmonics(np.array([(start + n / 2) / rate]), f0_hz, rate / 2)[0]
        time = np.arange(start, start + n) / rate
        numbers = np.arange(1, 21)
        basis = np.exp(2j * np.pi * f0_hz[0] * numbers[:, None] * time).T
        basis = np.concatenate([basis.real, basis.imag], axis=1)
        weights = scipy.signal.get_window("hann", n)[:, None]
        fit = np.linalg.lstsq(basis * weights, sung.audio[start : start + n] * weights[:, 0], rcond=None)[0]
        found = np.hypot(fit[:20], fit[20:])
        strong = asked[:20] > 1e-3 * asked.max()
        assert strong.sum() >= 15
        np.testing.assert_allclose(20 * np.log10(found[strong] / asked[:20][strong]), 0, atol=0.05)


def test_formant_peaks_are_where_the_vowel_has_them():
    """Autocorrelation linear prediction of bruno's vowels at about 98 Hz, where harmonics are dense."""
    sung = singers.render("bruno", LONG_VOWELS)
    samples = librosa.resample(sung.audio, orig_sr=44100, target_sr=8000)
    for phone in (p for p in sung.curves.phones if p.phone != singers.PAUSE):
        piece = samples[int((phone.start_s + 0.1) * 8000) : int((phone.end_s - 0.1) * 8000)]
        piece = np.append(piece[0], piece[1:] - 0.9 * piece[:-1]) * np.hamming(len(piece))
        correlation = np.correlate(piece, piece, "full")[len(piece) - 1 : len(piece) + 12]
        lpc = np.concatenate([[1.0], -scipy.linalg.solve_toeplitz(correlation[:12], correlation[1:13])])
        poles = [p for p in np.roots(lpc) if p.imag > 0 and abs(p) > 0.9]
        found = np.angle(poles) * 8000 / 2 / np.pi
        for formant in sung.curves.singer.formants_hz[phone.phone][:2]:
            assert np.abs(found - formant).min() < 0.6 * 98, (phone.phone, formant, sorted(found))


def test_same_seed_same_samples_and_another_seed_other_ones():
    score = singers.random_score(3, 3.0)
    first, again, other = (singers.render("aria", score, seed=s).audio for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    hiss = slice(int(0.17 * 44100), int(0.2 * 44100))  # no vibrato there: only the noise can differ
    one, two = (singers.render("aria", Score((Note(60, 0.3, "sa"),)), seed=s).audio[hiss] for s in (1, 2))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.2
    assert singers.random_score(3) == singers.random_score(3) != singers.random_score(4)


def test_both_singers_sing_the_same_phones_at_the_same_times(songs):
    aria, bruno = songs
    assert aria.curves.phones == bruno.curves.phones
    assert len(aria.audio) == len(bruno.audio)
    one, two = truth_of(aria, RATE_HZ, HOP), truth_of(bruno, RATE_HZ, HOP)
    np.testing.assert_array_equal(one.voiced, two.voiced)
    interval = units.cents(one.f0_hz[one.voiced], two.f0_hz[two.voiced])
    assert abs(np.median(interval) - 1200) < 10  # an octave apart, but for vibrato and glides
    assert np.abs(one.formants_hz - two.formants_hz).mean() > 100  # and with another vocal tract
    shifted = truth_of(singers.render("aria", Score((Note(60, 0.5, "a"),)), octave=1), RATE_HZ, HOP)
    assert np.median(shifted.f0_hz[shifted.voiced]) == pytest.approx(523.25, rel=0.01)


def clicks(samples, sung):
    """The highest level within a millisecond above 15 kHz, away from noise consonants, where a voice has nothing."""
    high = scipy.signal.sosfilt(scipy.signal.butter(8, 15000, "high", fs=44100, output="sos"), samples)
    level = np.sqrt(np.convolve(high**2, np.ones(44) / 44, "same"))[22::44]
    truth = truth_of(sung, 44100, 44)
    near = np.convolve(np.isin(truth.phones, singers.NOISES), np.ones(61), "same") > 0
    n = min(len(level), len(near))
    return level[:n][~near[:n]].max()


def test_nothing_clips_or_clicks():
    for seed in range(2):
        for sung in both(singers.random_score(seed, 5.0)):
            assert np.abs(sung.audio).max() < 0.7
            assert clicks(sung.audio, sung) < 10 ** (-55 / 20), (seed, sung.curves.singer.name)
    torn = sung.audio.copy()
    vowel = next(p for p in sung.curves.phones if p.phone in singers.VOWELS and p.end_s - p.start_s > 0.3)
    torn[int((vowel.start_s + 0.2) * 44100) :] += 0.05  # the measure does find a step
    assert clicks(torn, sung) > 10 ** (-55 / 20)


def test_random_scores_are_pentatonic_and_in_range():
    for seed in range(20):
        score = singers.random_score(seed, 10.0, 57, 76)
        pitches = {n.midi for n in score.notes if n.lyric}
        assert 57 <= min(pitches) and max(pitches) <= 76
        assert len({p % 12 for p in pitches}) <= 5
        assert 10 <= sum(n.duration_s for n in score.notes) < 12


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (Note(60, 0.5, "xa"), "syllable 'xa'"),
        (Note(60, 0.5, "s"), "no vowel"),
        (Note(100, 0.5, "a"), "MIDI 100"),
        (Note(60, 0.0, "a"), "lasts 0"),
        (Note(60, 0.5, "-"), "holds a vowel"),
        (Note(60, 0.5, ""), "no note"),
    ],
)
def test_impossible_scores_are_refused_with_a_reason(note, words):
    with pytest.raises(DatasetError, match=words):
        singers.render("aria", Score((note,)))


def test_recordings_are_written_once(tmp_path):
    paths = singers.make_recordings("bruno", tmp_path, minutes=0.1, piece_s=3.0, seed=5)
    assert [p.name for p in paths] == ["bruno_05_000.wav", "bruno_05_001.wav"]
    before = [p.stat().st_mtime_ns for p in paths]
    assert singers.make_recordings("bruno", tmp_path, minutes=0.1, piece_s=3.0, seed=5) == paths
    assert [p.stat().st_mtime_ns for p in paths] == before and {*tmp_path.iterdir()} == {*paths}
    expected = singers.render("bruno", singers.random_score(5000, 3.0, 53, 76), seed=5000).audio
    np.testing.assert_allclose(audio.read(paths[0], 44100).samples, expected, atol=1e-4)
