"""The doctor finds what was put into a recording, and finds nothing in good ones.

Truths: defects built into synthetic and real audio (clipping, noise at a known level, silence, octave leaps, a chord
or a second voice at a known level, copies in other formats) are found with the right kind, file and figure; real solo
recordings are clean; no file changes.
"""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import soundfile

from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import quality
from svclib.utils.errors import DatasetError

RATE = 16000


def voice(seconds=8.0, seed=0, rate=RATE, pauses=True, f0_of=None):
    """A clean sung tone: ten harmonics, vibrato, a glide, and pauses that are almost silent."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    f0 = rng.uniform(180, 300) * 2 ** ((np.sin(2 * np.pi * 0.2 * t) * 5 + 0.4 * np.sin(2 * np.pi * 5.5 * t)) / 12)
    if f0_of is not None:
        f0 = f0_of(t)
    phase = 2 * np.pi * np.cumsum(f0) / rate
    sound = sum(np.sin(k * phase) / k for k in range(1, 11))
    if pauses:
        sound = sound * np.clip(3 * np.sin(2 * np.pi * t / 2.5) + 1, 0, 1)
    return (0.25 * sound + 2e-5 * rng.standard_normal(len(t))).astype(np.float32)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def chord(n, rate=RATE):
    t = np.arange(n) / rate
    tones = sum(np.sin(2 * np.pi * units.midi_to_hz(m) * k * t) / k for m in (48, 52, 55, 60) for k in range(1, 6))
    return tones * np.exp(-2 * (t % 1.0))


def look(tmp_path, samples, rate=RATE, name="take.wav", **options):
    soundfile.write(tmp_path / name, samples, rate, **options)
    report = quality.examine(tmp_path / name)
    return report.files[0], {f.kind: f for f in report.files[0].findings}


def test_a_clean_voice_is_clean(tmp_path):
    report, found = look(tmp_path, voice())
    assert found == {}
    assert report.duration_s == pytest.approx(8.0) and report.channels == 1 and report.sample_rate_hz == RATE
    assert report.level_db == pytest.approx(
        20 * np.log10(0.25 * np.sqrt(0.5 * sum(k**-2.0 for k in range(1, 11)))), abs=1
    )
    assert report.octave_jumps_per_min == 0 and report.clipped_share == 0 and report.mixture_share < 0.03


def test_real_solo_recordings_are_clean(data_dir):
    folder = data_dir / "voices" / "kathleen_sung"
    report = quality.examine(sorted(folder.glob("*.flac"))[:20])
    assert [f for f in report.findings if f.file] == []
    clips = [next((data_dir / "singing" / n).glob("*.wav")) for n in ("vocadito_1", "nitech_f001_004")]
    report = quality.examine(clips)
    assert [f for f in report.findings if f.file] == []
    low, high = report.files[0].f0_low_hz, report.files[0].f0_high_hz
    truth = np.loadtxt(data_dir / "singing" / "vocadito_1" / "vocadito_1_f0.csv", delimiter=",")[:, 1]
    truth = truth[truth > 0]
    assert abs(units.cents(low, np.percentile(truth, 2))) < 60 and abs(units.cents(high, np.percentile(truth, 98))) < 60


def test_a_trumpet_in_a_room_is_at_most_a_note(data_dir):
    report = quality.examine(next((data_dir / "instruments").glob("*.ogg")))
    assert all(f.severity == quality.NOTE for f in report.findings if f.file)
    assert report.files[0].voiced_share > 0.8


@pytest.mark.case("A21")
@pytest.mark.parametrize("level_db", [-6, -12])
def test_a_chord_or_a_second_voice_is_accompaniment(tmp_path, data_dir, level_db):
    gain = 10 ** (level_db / 20)
    solo = audio.read(next((data_dir / "singing" / "vocadito_1").glob("*.wav")), RATE).samples[: 15 * RATE]
    other = audio.read(next((data_dir / "singing" / "nitech_f001_004").glob("*.wav")), RATE).samples[: 15 * RATE]
    for second in (chord(len(solo)), other):
        _, found = look(tmp_path, solo + second * (gain * rms(solo) / rms(second)))
        assert found["mixture"].severity == quality.WARNING and "Separate the voice" in found["mixture"].text
    _, found = look(tmp_path, solo + np.random.default_rng(0).standard_normal(len(solo)) * rms(solo) * gain / 2)
    assert "mixture" not in found, "noise is no accompaniment"


def test_foreign_tones_are_measured():
    """A harmonic tone, and the same with one foreign partial of a known share of the energy."""
    t = np.arange(2 * RATE) / RATE
    tone = sum(np.sin(2 * np.pi * 200 * k * t) for k in range(1, 9))
    n = len(t) // quality.HOP
    grid = (np.full(n, 200.0), np.ones(n, bool), np.ones(n))
    assert quality.inharmonic_shares(tone, *grid).max() < 1e-4
    for share in (0.02, 0.1):
        amplitude = np.sqrt(8 * share / (1 - share))
        found = quality.inharmonic_shares(tone + amplitude * np.sin(2 * np.pi * 500 * t), *grid)
        assert np.median(found) == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("gain", [1.5, 4.0])
@pytest.mark.parametrize("form", ["wav", "ogg"])
def test_clipping(tmp_path, gain, form):
    clean = voice() / np.abs(voice()).max()
    over = np.clip(gain * clean, -0.8, 0.8)  # turned down after it was clipped
    expected = np.mean(np.abs(over) >= 0.8 - 1e-6)
    report, found = look(tmp_path, over, name=f"x.{form}")
    assert "clipping" in found and "Record again" in found["clipping"].text
    assert report.clipped_share == pytest.approx(expected, rel=0.3 if form == "wav" else 0.9)
    assert found["clipping"].severity == quality.WARNING  # it is used all the same
    _, found = look(tmp_path, clean, name=f"y.{form}")
    assert "clipping" not in found


def test_a_pure_tone_at_full_scale_is_not_clipped(tmp_path):
    t = np.arange(5 * 44100) / 44100
    for f_hz in (82.4, 440.0):
        _, found = look(tmp_path, 0.999 * np.sin(2 * np.pi * f_hz * t), 44100, name=f"{f_hz}.wav")
        assert "clipping" not in found


@pytest.mark.case("A8")
def test_silence_and_pauses(tmp_path):
    report, found = look(tmp_path, np.r_[voice(), np.zeros(12 * RATE, np.float32)])
    assert report.silence_share == pytest.approx(1 - 0.61 * 8 / 20, abs=0.03) and "silence" in found
    assert report.longest_silence_s == pytest.approx(12, abs=1)
    _, found = look(tmp_path, np.r_[voice(20, pauses=False), np.zeros(11 * RATE, np.float32)], name="b.wav")
    assert "pause of 1" in found["silence"].text
    report, found = look(tmp_path, np.zeros(RATE), name="c.wav")
    assert found["unusable"].severity == quality.PROBLEM and not report.usable


@pytest.mark.parametrize("snr_db", [15, 20, 28, 40])
def test_noise_floor(tmp_path, snr_db):
    samples = voice(12.0)
    noise = np.random.default_rng(1).standard_normal(len(samples)) * 0.25 * 10 ** (-snr_db / 20)
    report, found = look(tmp_path, samples + noise)
    assert report.noise_floor_db == pytest.approx(20 * np.log10(0.25) - snr_db, abs=1.5)
    assert ("noise" in found) == (snr_db < 30)
    if snr_db <= 20:
        assert found["noise"].severity == quality.WARNING and "quieter room" in found["noise"].text


def test_octave_leaps_are_counted(tmp_path):
    leaps = voice(10.0, pauses=False, f0_of=lambda t: np.where(t % 1.0 < 0.5, 220.0, 440.0))
    report, found = look(tmp_path, leaps)
    assert report.octave_jumps_per_min == pytest.approx(19 * 6, rel=0.25) and "octaves" in found
    f0 = np.r_[np.full(5, 200.0), np.full(5, 400.0), np.full(5, 0), np.full(5, 800.0), np.full(5, 600.0)]
    assert quality.count_octave_jumps(f0, f0 > 0) == 1
    assert quality.count_octave_jumps(np.zeros(3), np.zeros(3, bool)) == 0


@pytest.mark.case("A13")
def test_level_spread_quiet_short_and_rate(tmp_path):
    t = np.arange(12 * RATE) / RATE
    gain = np.where(t % 4 < 2, 1.0, 0.03)
    report, found = look(tmp_path, voice(12, pauses=False) * gain)
    assert report.level_spread_db == pytest.approx(30.5, abs=2) and "level" in found
    _, found = look(tmp_path, voice() * 0.005, subtype="PCM_24", name="q.wav")
    assert "quiet" in found
    _, found = look(tmp_path, voice(0.5, pauses=False), name="s.wav")
    assert "short" in found
    report, found = look(tmp_path, voice(rate=8000), 8000, name="r.wav")
    assert "above 4 kHz is missing" in found["rate"].text


@pytest.mark.case("A21")
def test_noise_alone_has_no_pitch(tmp_path):
    report, found = look(tmp_path, 0.1 * np.random.default_rng(0).standard_normal(6 * RATE))
    assert report.voiced_share < 0.1 and found["pitch"].severity == quality.WARNING


@pytest.mark.case("B7")
def test_duplicates_also_in_other_formats(tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", voice(6, seed=i, rate=44100), 44100)
    shutil.copy(tmp_path / "0.wav", tmp_path / "3 copy.wav")
    samples, _ = soundfile.read(tmp_path / "1.wav", dtype="int16")
    soundfile.write(tmp_path / "4.flac", samples, 44100)
    soundfile.write(tmp_path / "5.mp3", samples, 44100)
    soundfile.write(tmp_path / "6.wav", samples // 2, 44100)
    report = quality.examine(tmp_path)
    twins = {f.file: f.text for f in report.findings if f.kind == "duplicate"}
    assert set(twins) == {"3 copy.wav", "4.flac", "5.mp3", "6.wav"}
    assert "0.wav" in twins["3 copy.wav"] and "1.wav" in twins["5.mp3"]


def test_finding_duplicates_compares_few_pairs(monkeypatch):
    """Among 300 recordings of equal length, copies at another gain and with noise are found by a few comparisons."""
    rng = np.random.default_rng(0)

    def fingerprint(seed, digest):
        levels = np.cumsum(np.random.default_rng(seed).standard_normal(200)) * 3 - 30
        wave = np.repeat(10 ** (levels / 20), 50) * np.random.default_rng(seed).standard_normal(10_000)
        return quality._Fingerprint(digest, levels, wave)

    prints = [fingerprint(i, str(i)) for i in range(300)]
    for i in range(10):
        wave = prints[7 * i].wave * 0.5
        wave = wave + 0.01 * wave.std() * rng.standard_normal(len(wave))
        prints.append(quality._Fingerprint(f"copy {i}", prints[7 * i].levels_db - 6.02, wave))
    prints.append(prints[299])
    compared, same = [], quality._same
    monkeypatch.setattr(quality, "_same", lambda a, b: compared.append(1) or same(a, b))
    assert quality.twins(prints) == [None] * 300 + [7 * i for i in range(10)] + [299]
    assert len(compared) < 0.1 * len(prints) ** 2 / 2


def test_one_sample_beyond_all_measure(tmp_path):
    """Scaled to full scale by that one sample, what is left is silent; the arithmetic says nothing of its own."""
    sound = voice().astype(np.float32)
    sound[5000] = 3e38
    soundfile.write(tmp_path / "huge.wav", sound, RATE, subtype="FLOAT")
    with np.errstate(over="raise", invalid="raise"):
        report = quality.examine(tmp_path)
    told = {f.kind: f.text for f in report.findings if f.file}
    assert "peaks of 3e+38" in told["reading"] and told["unusable"].startswith("It is silent")


def test_nothing_is_changed_and_broken_files_are_named(tmp_path):
    soundfile.write(tmp_path / "good.wav", voice(), RATE)
    (tmp_path / "cut.wav").write_bytes(b"RIFF\x00\x00")
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "page.mp3").write_text("<html>")
    (tmp_path / "words.txt").write_text("la la")
    before = {p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    seen = []
    report = quality.examine(tmp_path, progress=lambda f, t: seen.append(f))
    assert before == {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()
    }
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert {f.file for f in report.findings if f.kind == "unusable"} == {"cut.wav", "empty.flac", "page.mp3"}
    assert report.totals["n_usable"] == 1 and report.totals["duration_s"] == pytest.approx(8)
    order = [("problem", "warning", "note").index(f.severity) for f in report.findings]
    assert order == sorted(order)
    table = report.table()
    one_by_one = quality.examine(sorted(tmp_path.iterdir()))
    assert [f.text for f in one_by_one.findings] == [f.text for f in report.findings]
    for words in ("good.wav", "empty.flac", "cannot be used", "1 of 4 recordings are usable", "words.txt"):
        assert words in table
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["totals"]["n_usable"] == 1


def test_totals(tmp_path):
    soundfile.write(tmp_path / "a.wav", voice(), RATE)
    soundfile.write(tmp_path / "b.wav", voice(seed=1) * 0.1, RATE)
    report = quality.examine(tmp_path)
    about_all = {f.kind: f for f in report.findings if not f.file}
    assert "b.wav is the softest" in about_all["level"].text and about_all["short"].severity == quality.WARNING
    os.mkdir(tmp_path / "none")
    assert "Accepted types" in quality.examine(tmp_path / "none").findings[0].text
    with pytest.raises(DatasetError, match="There is no file"):
        quality.examine(tmp_path / "absent")


def test_a_long_file_is_examined_in_segments(tmp_path, monkeypatch):
    """Ten minutes: pitch is tracked on two of them at most; clipping anywhere is still seen."""
    seconds = []
    plain = quality.extract.track_f0

    def counted(samples, *rest):
        seconds.append(len(samples) / RATE)
        return plain(samples, *rest)

    monkeypatch.setattr(quality.extract, "track_f0", counted)
    samples = np.tile(voice(20), 30)
    samples[200 * RATE : 210 * RATE] = np.clip(4 * samples[200 * RATE : 210 * RATE], -0.9, 0.9)
    report, found = look(tmp_path, samples)
    assert sum(seconds) == pytest.approx(120, abs=1) and report.duration_s == pytest.approx(600)
    assert "clipping" in found
