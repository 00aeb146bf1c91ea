"""A dataset is what its recordings are, whatever interrupted its making.

Truths: audio and features read back equal those computed on the whole file by audio and features; an interrupted or
killed preparation continued gives the same bytes as an unbroken one; one changed file is measured alone, a touched one
not at all; batches are a pure function of (seed, step); windows are uniform over time (chi-square); statistics against
numpy on constructed data. Storage mechanics use a cheap measure in place of the real one, which has its own tests.
"""

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import faults
import numpy as np
import pytest
import soundfile
from cheap_features import HOP, RATE, SETTINGS, cheap_extract, contents, make_files, tone

from svclib.audio import io as audio
from svclib.audio import units
from svclib.audio.mel import MelConfig
from svclib.data import dataset, preprocess, recordings, segments, shards, statistics
from svclib.data.recordings import find_recordings
from svclib.features import extract
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import Cancelled, DatasetError, StorageError


def test_reads_back_what_was_measured(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_S", 0.7)
    monkeypatch.setattr(segments, "CONTEXT_S", 0.1)
    monkeypatch.setattr(shards, "CAP_BYTES", 100_000)
    sources = make_files(tmp_path / "a", 3, 3.0)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert len(list((tmp_path / "out").glob("shard-*.safetensors"))) > 3, "recordings must cross shards"
    for i, source in enumerate(sources):
        whole, _ = soundfile.read(source.path, dtype="float32")
        n = len(whole)
        assert data.recordings[i]["n_samples"] == n and data.recordings[i]["n_frames"] == n // HOP
        assert np.abs(data.audio(i) - whole).max() < 1.01 / 32767
        expected = cheap_extract(data.audio(i), SETTINGS)
        stored = data.features(i)
        for name in ("f0_hz", "voiced", "confidence", "loudness_db"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))
            np.testing.assert_array_equal(getattr(data.features(i, 101, 77), name), getattr(expected, name)[101:178])
        for start, length in ((0, 1), (11_000, 5000), (n - 3, 3), (n, 0)):
            np.testing.assert_array_equal(data.audio(i, start, length), data.audio(i)[start : start + length])
        assert len(data.features(i, 5, 0).f0_hz) == 0
    for bad in ((-1, 5), (0, n + 1), (n, 1)):
        with pytest.raises(IndexError):
            data.audio(2, *bad)
    with pytest.raises(IndexError):
        data.features(0, 0, 10**6)


@pytest.mark.case("P14")
@pytest.mark.parametrize("method", ["swift", pytest.param("pyin", marks=pytest.mark.slow)])
def test_measuring_in_segments_gives_what_measuring_the_whole_gives(data_dir, tmp_path, monkeypatch, method):
    """The real measure on a real singer, cut every 6 seconds."""
    monkeypatch.setattr(segments, "SEGMENT_S", 6.0)
    source = next((data_dir / "singing" / "vocadito_1").glob("*.wav"))
    samples = audio.read(source, RATE).samples[: 15 * RATE]
    soundfile.write(tmp_path / "clip.wav", samples, RATE, subtype="PCM_16")
    mel = MelConfig(RATE, 1024, 1024, HOP, 80, 40.0, 8000.0)
    settings = extract.FeatureSettings(f0_method=method, mel=mel)
    data = dataset.prepare(find_recordings(tmp_path / "clip.wav"), tmp_path / "out", settings, validation=None)
    assert len(data._entries[0]["segments"]) >= 2
    whole = extract.extract(data.audio(0), settings)
    stored = data.features(0)
    np.testing.assert_allclose(stored.loudness_db, whole.loudness_db, atol=1e-3)
    np.testing.assert_allclose(stored.log_mel, whole.log_mel, atol=1e-3)
    same = stored.voiced == whole.voiced
    assert same.mean() > (0.999 if method == "swift" else 0.99)
    both = stored.voiced & whole.voiced
    assert both.sum() > 1000
    assert np.quantile(np.abs(units.cents(stored.f0_hz[both], whole.f0_hz[both])), 0.995) < 1.0
    assert 80 < units.midi_to_hz(data.statistics["f0_midi"]["mean_note"]) < 700


@pytest.mark.case("P11")
@pytest.mark.parametrize(("rate", "hop"), [(16000, 64), (44100, 512), (22050, 256), (48000, 480), (11025, 64)])
def test_cuts_cover_everything_once_on_the_grid(rate, hop):
    settings = extract.FeatureSettings(sample_rate_hz=rate, hop_samples=hop)
    for seconds in (0.3, 160, 161.5, 400, 3 * 3600):
        n = round(seconds * rate) + 5
        cut = segments.cuts(n, settings)
        assert cut[0][0] == 0 and cut[-1][1] == n
        assert all(a[1] == b[0] for a, b in zip(cut, cut[1:], strict=False))
        for start, stop, before, after in cut:
            assert start % hop == 0 and before % hop == 0 and (stop == n or stop % hop == 0)
            assert before <= start < stop <= after
            assert start == 0 or start - before >= 2 * rate, "at least two seconds of context"
            assert (after - before) / rate < 180, "memory"
            assert before * 1000 % (16 * rate) == 0 and before * 100 % rate == 0, "on the steps of the trackers"


def test_second_run_does_nothing_and_touch_changes_nothing(tmp_path, measured):
    sources = make_files(tmp_path / "a", 4)
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    before, stamps = contents(tmp_path / "out"), {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    measured.clear()
    os.utime(sources[0].path, (1, 1))
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert measured == [] and data.messages == ["Nothing changed."]
    assert contents(tmp_path / "out") == before
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == stamps


def test_one_changed_added_or_removed_file_is_measured_alone(tmp_path, measured):
    sources = make_files(tmp_path / "a", 5)
    first = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    samples, _ = soundfile.read(sources[2].path, dtype="int16")
    samples[7000] ^= 1
    soundfile.write(sources[2].path, samples, RATE, subtype="PCM_16")
    measured.clear()
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert len(measured) == 1 and measured[0] == pytest.approx(len(samples) / RATE)
    assert data.fingerprint != first.fingerprint
    assert "1 recordings are new or changed, 1 gone, 4 as before." in data.messages
    np.testing.assert_allclose(data.audio(2)[7000] * 32767, samples[7000], atol=1)

    measured.clear()
    sources = make_files(tmp_path / "a", 1, first=5)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert len(measured) == 1 and len(data.recordings) == 6

    measured.clear()
    sources[0].path.unlink()
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert measured == [] and len(data.recordings) == 5
    for i, source in enumerate(find_recordings(tmp_path / "a")):
        np.testing.assert_allclose(data.audio(i), soundfile.read(source.path)[0], atol=1.01 / 32767)


def test_a_renamed_file_is_not_measured_again(tmp_path, measured):
    sources = make_files(tmp_path / "a", 3)
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    sources[1].path.rename(tmp_path / "a" / "another name (live) 🎵.wav")
    measured.clear()
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert measured == [] and "another name (live) 🎵.wav" in [r["name"] for r in data.recordings]


def test_other_settings_measure_everything_again_and_say_so(tmp_path, measured):
    sources = make_files(tmp_path / "a", 3)
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    measured.clear()
    data = dataset.prepare(sources, tmp_path / "out", extract.FeatureSettings(f0_max_hz=900.0))
    assert len(measured) == 3 and data.settings.f0_max_hz == 900.0
    assert any("f0_max_hz changed" in m for m in data.messages)
    assert len(list((tmp_path / "out").glob("shard-*.safetensors"))) == 1, "the old shards are gone"


def prepare_in_child(sources, out: Path, n: int | None) -> tuple[int, int]:
    """Prepare in a forked process that dies at its n-th file operation; its status and how many operations it did."""
    counted = out.with_name("count")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            disk = faults.install(n, "exit", after=n is not None and n % 2 == 0)
            preprocess.run(sources, out, SETTINGS)
            counted.write_text(str(disk.count))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, int(counted.read_text()) if status == 0 else 0


@pytest.mark.case("P7", "J7")
def test_killed_anywhere_then_continued_gives_the_same_bytes(tmp_path, measured, monkeypatch):
    """The process dies at one file operation after the other; the next run continues to exactly the same files."""
    monkeypatch.setattr(segments, "SEGMENT_S", 0.9)
    monkeypatch.setattr(segments, "CONTEXT_S", 0.1)
    monkeypatch.setattr(shards, "CAP_BYTES", 60_000)
    sources = make_files(tmp_path / "a", 3, 1.5)
    status, total = prepare_in_child(sources, tmp_path / "whole", None)
    expected = contents(tmp_path / "whole")
    assert status == 0 and len([n for n in expected if n.endswith(".safetensors")]) >= 3
    for n in range(4, total + 1, 5):
        out = tmp_path / f"out{n}"
        assert prepare_in_child(sources, out, n)[0] == faults.EXIT_STATUS
        if not (out / "manifest.json").exists():
            with pytest.raises(DatasetError, match="unfinished|no dataset"):
                dataset.Dataset.open(out)
        assert prepare_in_child(sources, out, None)[0] == 0
        assert contents(out) == expected, n
        shutil.rmtree(out)


@pytest.mark.case("G5")
def test_short_memory_measures_one_at_a_time_and_keeps_what_is_finished(tmp_path, measured, monkeypatch):
    """Memory that holds one segment but not two: the same bytes, slower. Memory that holds none: a sentence."""
    monkeypatch.setattr(segments, "SEGMENT_S", 0.9)
    monkeypatch.setattr(segments, "CONTEXT_S", 0.1)
    monkeypatch.setattr(shards, "CAP_BYTES", 60_000)
    sources = make_files(tmp_path / "a", 4, 1.5)
    dataset.prepare(sources, tmp_path / "whole", SETTINGS)
    lock, real, refused, room = threading.Lock(), segments.measure, [], [1]

    def measure(samples, cut, settings):
        with lock:
            if room[0] < 1:
                refused.append(cut)
                raise MemoryError
            room[0] -= 1
        try:
            time.sleep(0.02)
            return real(samples, cut, settings)
        finally:
            with lock:
                room[0] += 1

    monkeypatch.setattr(segments, "measure", measure)
    dataset.prepare(sources, tmp_path / "tight", SETTINGS)
    assert refused and contents(tmp_path / "tight") == contents(tmp_path / "whole")

    def stop(fraction, text):
        if "take 02" in text and "measured" in text:
            room[0] = -9

    with pytest.raises(OSError, match=r"too little memory to measure a segment of \d seconds.*finished is kept"):
        dataset.prepare(sources, tmp_path / "out", SETTINGS, progress=stop)
    room[0] = 1
    measured.clear()
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and len(measured) < 8


def test_an_interrupted_run_goes_on_without_measuring_finished_shards(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(shards, "CAP_BYTES", 60_000)
    sources = make_files(tmp_path / "a", 6)
    dataset.prepare(sources, tmp_path / "whole", SETTINGS)
    measured.clear()

    def stop(fraction, text):
        if "take 04" in text and "measured" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.prepare(sources, tmp_path / "out", SETTINGS, progress=stop)
    with pytest.raises(DatasetError, match="unfinished dataset"):
        dataset.Dataset.open(tmp_path / "out")
    measured.clear()
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert 1 <= len(measured) <= 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_cancel_leaves_a_state_that_goes_on(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(shards, "CAP_BYTES", 60_000)
    sources = make_files(tmp_path / "a", 4)
    calls = iter([False] * 8 + [True] * 100)
    with pytest.raises(Cancelled, match="goes on"):
        dataset.prepare(sources, tmp_path / "out", SETTINGS, cancelled=lambda: next(calls))
    assert len(dataset.prepare(sources, tmp_path / "out", SETTINGS).recordings) == 4


@pytest.mark.case("F5")
@pytest.mark.parametrize(("number", "fault"), [(errno.ENOSPC, {"only": "write", "stays": True}), (errno.EIO, {})])
def test_every_failing_file_operation_keeps_the_old_dataset(tmp_path, measured, number, fault):
    """The n-th operation of an update fails, for every n: the old or the new dataset opens, whole."""
    sources = make_files(tmp_path / "a", 2)
    dataset.prepare(sources, tmp_path / "old", SETTINGS)
    sources = make_files(tmp_path / "a", 1, first=2)
    with faults.failing(only=fault.get("only")) as counter:
        shutil.copytree(tmp_path / "old", tmp_path / "count")
        new = dataset.prepare(sources, tmp_path / "count", SETTINGS)
    for n in range(1, counter.count + 1):
        out = tmp_path / f"out{n}"
        shutil.copytree(tmp_path / "old", out)
        with faults.failing(n, number, **fault):
            try:
                done = dataset.prepare(sources, out, SETTINGS)
            except StorageError as error:
                assert number == error.errno
            else:
                assert done.fingerprint == new.fingerprint, "a passing read error is tried again"
        data = dataset.Dataset.open(out)
        assert len(data.recordings) in (2, 3) and data.verify() == []
        again = dataset.prepare(sources, out, SETTINGS)
        assert again.fingerprint == new.fingerprint and again.verify() == []
        shutil.rmtree(out)


def test_damage_is_seen_told_and_mended(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(shards, "CAP_BYTES", 60_000)
    sources = make_files(tmp_path / "a", 4)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    before = contents(tmp_path / "out")
    paths = sorted((tmp_path / "out").glob("*.safetensors"))
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match="bytes instead of"):
        dataset.Dataset.open(tmp_path / "out")
    paths[0].unlink()
    with pytest.raises(DatasetError, match="is missing"):
        dataset.Dataset.open(tmp_path / "out")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    paths[0].write_bytes(flipped)
    assert "checksum" in dataset.Dataset.open(tmp_path / "out").verify()[0]
    measured.clear()
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert len(measured) == 1 and data.verify() == [] and contents(tmp_path / "out") == before
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(DatasetError, match="Delete it and prepare again"):
        dataset.Dataset.open(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert contents(tmp_path / "out") == before


def test_a_shard_cut_short_while_open_raises_instead_of_crashing(tmp_path, measured):
    data = dataset.prepare(make_files(tmp_path / "a", 2), tmp_path / "out", SETTINGS)
    next((tmp_path / "out").glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(StorageError, match="shorter"):
        data.audio(0)


def test_shards_mostly_dead_or_many_small_ones_are_copied_together(tmp_path, measured):
    sources = make_files(tmp_path / "a", 6)
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    for source in sources[:4]:
        source.path.unlink()
    measured.clear()
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert measured == []
    shard = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shard) == 1 and shard[0].stat().st_size < 2.5 * RATE * 2 * 1.3, "the dead part is gone"
    np.testing.assert_allclose(data.audio(0), soundfile.read(sources[4].path)[0], atol=1.01 / 32767)

    for i in range(6, 26):
        sources = make_files(tmp_path / "a", 1, 0.2, first=i)
        data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) <= preprocess.SMALL_SHARDS + 1
    assert len(measured) == 20
    for i, source in enumerate(sources):
        np.testing.assert_allclose(data.audio(i), soundfile.read(source.path)[0], atol=1.01 / 32767)


@pytest.mark.case("A13")
def test_broken_files_are_skipped_and_told(tmp_path, measured):
    make_files(tmp_path / "a", 2)
    (tmp_path / "a" / "empty.wav").write_bytes(b"")
    (tmp_path / "a" / "page.mp3").write_text("<html>quota exceeded</html>")
    (tmp_path / "a" / "notes.xyz").write_text("x")
    soundfile.write(tmp_path / "a" / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "a" / "short.flac", tone(9, 0.05), RATE)
    soundfile.write(tmp_path / "a" / "nan.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert [r["name"] for r in data.recordings] == ["take 00.wav", "take 01.wav"]
    reasons = {s["name"]: s["reason"] for s in data.skipped}
    assert {"empty.wav", "page.mp3", "silent.wav", "short.flac", "nan.wav"} <= set(reasons)
    assert "silent" in reasons["silent.wav"] and "too short" in reasons["short.flac"]
    for name in reasons:
        assert any(name in m for m in data.messages)


def test_what_holds_for_many_recordings_is_told_once(tmp_path, measured):
    (tmp_path / "a").mkdir()
    for i in range(7):
        name = f"{i}.wav" if i < 6 else "e\u0301.wav"  # as a Mac spells it
        soundfile.write(tmp_path / "a" / name, tone(i, rate=8000), 8000)
    found = find_recordings(tmp_path / "a")
    told = dataset.prepare(found, tmp_path / "wide", SETTINGS).messages
    assert [m for m in told if "8000" in m] == [
        "0.wav has only 8000 samples per second: it holds nothing above 4 kHz. The same goes for 6 more recordings."
    ]
    narrow = extract.FeatureSettings(sample_rate_hz=8000)  # which loses nothing
    assert not [m for m in dataset.prepare(found, tmp_path / "narrow", narrow).messages if "8000" in m]


@pytest.mark.case("P13", "B2")
def test_nothing_usable_names_the_accepted_types(tmp_path, measured):
    (tmp_path / "a").mkdir()
    for sources in ([], find_recordings(tmp_path / "a")):
        with pytest.raises(DatasetError, match="no usable recording.*flac.*wav"):
            dataset.prepare(sources, tmp_path / "out", SETTINGS)
    soundfile.write(tmp_path / "a" / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(DatasetError, match="'silent.wav': it is silent.*wav"):
        dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    make_files(tmp_path / "b", 1)
    with pytest.raises(DatasetError, match="choose another"):
        dataset.prepare(find_recordings(tmp_path / "b"), tmp_path / "b", SETTINGS)
    with pytest.raises(DatasetError, match="There are: a, b"):
        find_recordings(tmp_path / "c")


@pytest.mark.case("B7")
def test_the_same_audio_twice_is_used_once_and_told(tmp_path, measured):
    make_files(tmp_path / "a", 3)
    shutil.copy(tmp_path / "a" / "take 01.wav", tmp_path / "a" / "zz copy.wav")
    samples, _ = soundfile.read(tmp_path / "a" / "take 02.wav", dtype="int16")
    soundfile.write(tmp_path / "a" / "zzz.flac", samples, RATE, subtype="PCM_16")  # same sound in another container
    sources = find_recordings(tmp_path / "a")
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert len(data.recordings) == 3
    assert {(d["name"], d["same_as"]) for d in data.duplicates} == {
        ("zz copy.wav", "take 01.wav"),
        ("zzz.flac", "take 02.wav"),
    }
    assert sum("used once" in m for m in data.messages) == 2
    before = contents(tmp_path / "out")
    measured.clear()
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert measured == [] and contents(tmp_path / "out") == before
    (tmp_path / "a" / "take 02.wav").unlink()  # now the other container is needed
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert [r["name"] for r in data.recordings] == ["take 00.wav", "take 01.wav", "zzz.flac"]


def test_equal_beginnings_and_lengths_are_no_duplicates(tmp_path, measured, monkeypatch):
    """Two takes that differ only in their last sample are two recordings, also across segments."""
    monkeypatch.setattr(segments, "SEGMENT_S", 0.5)
    monkeypatch.setattr(segments, "CONTEXT_S", 0.1)
    (tmp_path / "a").mkdir()
    samples = (tone(1, 2.0) * 20000).astype(np.int16)
    for name in ("a", "b"):
        soundfile.write(tmp_path / "a" / f"{name}.wav", samples, RATE)
        samples[-1] += 50
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert len(data.recordings) == 2 and data.duplicates == []
    np.testing.assert_array_equal(data.audio(0)[:-1], data.audio(1)[:-1])


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 44100), (16000, 16000)])
def test_a_stream_is_the_whole_resampled(rates):
    """Taking overlapping pieces of a stream gives what resampling the whole at once gives."""
    rate_in, rate_out = rates
    samples = (tone(3, 3.0, rate_in) * 30000).astype(np.float32)
    n = units.resampled_length(len(samples), rate_in, rate_out)
    blocks = lambda: (samples[i : i + 7001] for i in range(0, len(samples), 7001))  # noqa: E731
    sound = segments.ResampledStream(n, rate_in, rate_out, blocks(), [])
    whole = audio.resample(samples, rate_in, rate_out)
    for start, stop in ((0, 5000), (4000, 9000), (9000, 9001), (8999 + 2, n)):
        piece = sound.take(start, stop)
        assert len(piece) == stop - start and np.abs(piece - whole[start:stop]).max() < 1.5
    short = segments.ResampledStream(n + rate_out, rate_in, rate_out, blocks(), [])
    with pytest.raises(DatasetError, match="changed while it was read"):
        short.take(0, n + rate_out)


def test_singers_and_labels_from_folders_and_names(tmp_path):
    for name in ("alice/1.wav", "bob/deep/2.WAV", "bob/3.flac"):
        path = tmp_path / "voices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(1), RATE, format="FLAC" if name.endswith("flac") else "WAV")
    found = find_recordings(tmp_path / "voices")
    assert [(r.singer, r.name) for r in found] == [
        ("alice", "alice/1.wav"),
        ("bob", "bob/3.flac"),
        ("bob", "bob/deep/2.WAV"),
    ]
    found = find_recordings([tmp_path / "voices" / "bob", tmp_path / "voices" / "alice" / "1.wav"])
    assert [(r.singer, r.name) for r in found] == [("alice", "1.wav"), ("bob", "3.flac"), ("bob", "deep/2.WAV")]
    found = find_recordings([tmp_path / "voices" / "bob"], singers=["Robert"])
    assert {r.singer for r in found} == {"Robert"}
    with pytest.raises(DatasetError, match="2 singers were named for 1"):
        find_recordings([tmp_path], singers=["a", "b"])

    (tmp_path / "d").mkdir()
    for name in ("7_jackson_12", "0_theo_3", "long label_x_y_1"):
        soundfile.write(tmp_path / "d" / f"{name}.wav", tone(1), RATE)
    found = find_recordings(tmp_path / "d", labels="{label}_{singer}_{take}")
    assert {(r.label, r.singer) for r in found} == {("7", "jackson"), ("0", "theo"), ("long label", "x")}
    (tmp_path / "d" / "odd.wav").write_bytes((tmp_path / "d" / "0_theo_3.wav").read_bytes())
    with pytest.raises(DatasetError, match="'odd.wav' does not follow"):
        find_recordings(tmp_path / "d", labels="{label}_{singer}_{take}")
    for bad in ("{take}", "{label}_{label}", "plain"):
        with pytest.raises(DatasetError, match="write for example"):
            find_recordings(tmp_path / "d", labels=bad)


def entries(n: int, seconds=None) -> list[dict]:
    seconds = seconds or [10] * n
    return [
        {"name": f"{i}.wav", "sha256": hashlib.sha256(bytes([i % 256, i // 256])).hexdigest(), "n_samples": s}
        for i, s in zip(range(n), seconds, strict=True)
    ]


@pytest.mark.case("P10")
def test_the_validation_split_hangs_on_contents_only():
    split = recordings.hold_out(entries(1000))
    assert 0.05 < np.mean([s == "validation" for s in split]) < 0.1
    assert recordings.hold_out(entries(1000)) == split
    assert recordings.hold_out(entries(900)) == split[:900], "adding recordings moves no other"
    for n in range(2, 40):
        kinds = recordings.hold_out(entries(n))
        assert "validation" in kinds and "train" in kinds
    assert recordings.hold_out(entries(1)) == ["train"]
    assert recordings.hold_out(entries(3, [1000, 10, 1000]))[1] == "validation", "never the long ones"
    assert recordings.hold_out(entries(2, [500, 400])) == ["train", "validation"]
    assert recordings.hold_out(entries(4), "[01].wav") == ["validation"] * 2 + ["train"] * 2
    for pattern in ("*", "nothing*"):
        with pytest.raises(DatasetError, match="validation pattern"):
            recordings.hold_out(entries(4), pattern)


def test_a_lone_recording_gives_its_end_to_validation(tmp_path, measured, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_S", 7.0)
    sources = make_files(tmp_path / "a", 1, 30.01)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert [r["split"] for r in data.recordings] == ["train", "validation"]
    assert data.recordings[1]["n_frames"] == int(0.075 * 30.01 * RATE / HOP)
    whole, _ = soundfile.read(sources[0].path, dtype="float32")
    both = np.concatenate([data.audio(0), data.audio(1)])
    np.testing.assert_allclose(both, whole, atol=1.01 / 32767)
    joined = np.concatenate([data.features(0).loudness_db, data.features(1).loudness_db])
    np.testing.assert_array_equal(joined, cheap_extract(both, SETTINGS).loudness_db)
    assert any("only one recording" in m for m in data.messages)
    assert dataset.describe(data).startswith("1 recording, 30 s (2.2 s held out for validation)")
    measured.clear()
    dataset.prepare(sources, tmp_path / "out", SETTINGS)
    assert measured == []
    short = dataset.prepare(make_files(tmp_path / "b", 1, 3.0), tmp_path / "out2", SETTINGS)
    assert len(short.recordings) == 1 and len(short.validation_batches(2, 50)) == 0
    assert dataset.describe(short).startswith("1 recording, 3.0 s (nothing held out for validation)")
    with pytest.raises(DatasetError, match="no recordings for validation"):
        short.batch(0, 0, 2, 50, split="validation")


def test_batches_are_a_pure_function_of_seed_and_step(tmp_path, measured):
    sources = make_files(tmp_path / "a", 5, 2.0)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS)
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    other = dataset.Dataset.open(tmp_path / "copy")
    other.batch(0, 99, 3, 50)  # another history
    for step in (0, 7, 10**6):
        a, b = data.batch(3, step, 4, 60), other.batch(3, step, 4, 60)
        assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)
    a, b, c = data.batch(3, 7, 4, 60), data.batch(3, 8, 4, 60), data.batch(4, 7, 4, 60)
    assert not (a["audio"] == b["audio"]).all() and not (a["audio"] == c["audio"]).all()
    assert a["audio"].shape == (4, 60 * HOP) and a["f0_hz"].shape == (4, 60)
    expected = cheap_extract(a["audio"].numpy().reshape(-1), SETTINGS).loudness_db.reshape(4, 60)
    np.testing.assert_array_equal(a["loudness_db"], expected)  # audio and features of a window belong together


@pytest.mark.case("P10")
def test_windows_are_uniform_over_the_time_of_the_train_split(tmp_path, measured):
    folder = tmp_path / "a"
    folder.mkdir()
    for i, seconds in enumerate((1.0, 4.0, 8.0, 2.0)):
        soundfile.write(folder / f"{i}.wav", tone(i, seconds), RATE)
    data = dataset.prepare(find_recordings(folder), tmp_path / "out", SETTINGS, validation="3.wav")
    rng = np.random.default_rng(0)
    draws = [data._splits["train"].draw(rng, 25) for _ in range(13000)]
    counts = np.bincount([i for i, _ in draws], minlength=4)
    assert counts[3] == 0
    expected = np.array([1, 4, 8]) * 1000
    assert (((counts[:3] - expected) ** 2) / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001
    starts = np.array([s for i, s in draws if i == 2])
    last = 8 * RATE // HOP - 25
    assert starts.min() >= 0 and starts.max() <= last
    bins = np.bincount(starts * 10 // (last + 1), minlength=10)
    assert ((bins - len(starts) / 10) ** 2 / (len(starts) / 10)).sum() < 27.9  # 9 degrees, p = 0.001


def test_short_recordings_end_in_silence_and_gaps_of_pitch_are_filled(tmp_path, measured):
    folder = tmp_path / "a"
    folder.mkdir()
    gap = tone(1, 1.0)
    gap[6400:9600] = 0
    soundfile.write(folder / "0_x.wav", gap, RATE)
    soundfile.write(folder / "1_y.wav", tone(2, 0.5), RATE)
    mel = MelConfig(RATE, 1024, 1024, HOP, 20, 40.0, 8000.0)
    settings = extract.FeatureSettings(mel=mel)
    sources = find_recordings(folder, labels="{label}_{singer}")
    data = dataset.prepare(sources, tmp_path / "out", settings, validation="1_y.wav")
    batch = data.batch(0, 0, 2, 400)
    n = data.recordings[0]["n_frames"]
    assert n == 250 and batch["log_mel"].shape == (2, 400, 20)
    assert (batch["loudness_db"][:, n:] == -80).all() and not batch["voiced"][:, n:].any()
    assert (batch["confidence"][:, n:] == 0).all() and (batch["audio"][:, n * HOP :] == 0).all()
    np.testing.assert_allclose(batch["log_mel"][:, n:], np.log(1e-5), rtol=1e-6)
    inside = batch["f0_hz"][0, 100:150].numpy()
    assert not batch["voiced"][0, 105:145].any() and (inside > 150).all()
    assert (batch["f0_hz"] > 0).all()
    assert batch["singer"].tolist() == [0, 0] and batch["label"].tolist() == [0, 0]
    assert data.singers == ["x", "y"] and data.labels == ["0", "1"]
    expected = data.features(0).log_mel
    assert data.statistics["log_mel"] == {"min": float(expected.min()), "max": float(expected.max())}
    held = data.validation_batches(3, 100)
    assert len(held) == 1 and held[0]["audio"].shape == (2, 100 * HOP) and held[0]["label"].tolist() == [1, 1]


def test_validation_batches_cover_the_split_without_padding(tmp_path, measured):
    data = dataset.prepare(make_files(tmp_path / "a", 4, 2.0), tmp_path / "out", SETTINGS, validation="take 0[12].wav")
    batches = data.validation_batches(3, 64)
    windows = [batch["audio"][row].numpy() for batch in batches for row in range(len(batch["audio"]))]
    position = 0
    for i in data.indices("validation"):
        n_frames = data.recordings[i]["n_frames"]
        assert n_frames % 64, "the recordings of this test must not fit a whole number of windows"
        whole, n = data.audio(i), -(-n_frames // 64)
        for k in range(n - 1):
            np.testing.assert_array_equal(windows[position + k], whole[k * 64 * HOP : (k + 1) * 64 * HOP])
        np.testing.assert_array_equal(windows[position + n - 1], whole[(n_frames - 64) * HOP : n_frames * HOP])
        position += n
    assert position == len(windows) and len(batches) == -(-len(windows) // 3)
    assert all((a["audio"] == b["audio"]).all() for a, b in zip(batches, data.validation_batches(3, 64), strict=True))
    assert (batches[-1]["audio"] == batches[len(batches) - 1]["audio"]).all()


def test_a_held_out_recording_shorter_than_a_window_ends_in_silence(tmp_path, measured):
    data = dataset.prepare(make_files(tmp_path / "a", 2, 2.0), tmp_path / "out", SETTINGS, validation="take 01.wav")
    (i,) = data.indices("validation")
    n_frames = data.recordings[i]["n_frames"]
    (batch,) = data.validation_batches(1, n_frames + 10)
    np.testing.assert_array_equal(batch["audio"][0, : n_frames * HOP], data.audio(i)[: n_frames * HOP])
    assert (batch["audio"][0, n_frames * HOP :] == 0).all() and not batch["voiced"][0, n_frames:].any()


def constructed(f0_hz, loudness_db, confidence=None, mel=None) -> extract.Features:
    n = len(f0_hz)
    f0_hz = np.asarray(f0_hz, np.float32)
    return extract.Features(
        SETTINGS,
        n * HOP,
        f0_hz,
        f0_hz > 0,
        np.ones(n, np.float32) if confidence is None else np.asarray(confidence, np.float32),
        np.asarray(loudness_db, np.float32),
        mel,
    )


def test_statistics_against_numpy(measured):
    rng = np.random.default_rng(0)
    midi = rng.uniform(48, 72, 2000)
    f0 = units.midi_to_hz(midi)
    f0[::10] = 0
    loud = rng.uniform(-31, -29, 2000)  # nearly constant, confidence 1: every frame is a note
    found = statistics.compute([("a", constructed(f0[:900], loud[:900])), ("b", constructed(f0[900:], loud[900:]))])
    voiced = f0 > 0
    assert found["n_recordings"] == 2 and found["duration_s"] == pytest.approx(2000 * HOP / RATE)
    f = found["f0_midi"]
    assert f["mean_note"] == pytest.approx(midi[voiced].mean(), abs=1e-4)
    assert f["std_note"] == pytest.approx(midi[voiced].std(), abs=1e-4)
    assert (f["min_note"], f["max_note"]) == pytest.approx((midi[voiced].min(), midi[voiced].max()), abs=1e-4)
    edges = f["histogram"]["edges_midi"]
    assert len(edges) == len(f["histogram"]["seconds"]) + 1
    expected = np.histogram(units.hz_to_midi(f0[voiced].astype(np.float32)), edges)[0] * HOP / RATE
    np.testing.assert_allclose(f["histogram"]["seconds"], expected, atol=1e-6)
    assert sum(f["histogram"]["seconds"]) == pytest.approx(voiced.sum() * HOP / RATE)
    l = found["loudness_db"]
    assert (l["mean_note"], l["std_note"]) == pytest.approx((loud.mean(), loud.std()), abs=1e-4)
    assert (l["min"], l["max"], l["mean"]) == pytest.approx((loud.min(), loud.max(), loud.mean()), abs=1e-4)
    np.testing.assert_allclose(found["loudness_quantiles_db"], np.quantile(loud, np.linspace(0, 1, 1000)), atol=1e-3)
    assert set(found["singers"]) == {"a", "b"} and found["log_mel"] is None
    assert found["singers"]["a"]["loudness_db"]["mean"] == pytest.approx(loud[:900].mean(), abs=1e-4)
    json.dumps(found, allow_nan=False)


@pytest.mark.case("P34")
def test_statistics_use_note_frames_only():
    """Half loud and sure, half silent and unsure: the notes are the first half."""
    loud = np.r_[np.full(1000, -20.0), np.full(1000, -75.0)]
    found = statistics.compute([("a", constructed(np.full(2000, 440.0), loud, np.r_[np.ones(1000), np.zeros(1000)]))])
    assert found["loudness_db"]["mean"] == pytest.approx(-47.5, abs=1e-3)
    assert found["loudness_db"]["mean_note"] > -22 and found["f0_midi"]["mean_note"] == pytest.approx(69.0, abs=1e-4)
    assert sum(found["f0_midi"]["histogram"]["seconds"]) == pytest.approx(1000 * HOP / RATE, rel=0.05)


def test_statistics_of_nothing_are_defined():
    mel = np.full((0, 4), -3, np.float32)
    for found in (statistics.compute([]), statistics.compute([("a", constructed([], [], mel=mel))])):
        assert found["f0_midi"]["mean_note"] is None and found["loudness_quantiles_db"] == []
        assert found["loudness_db"]["min"] is None and found["log_mel"] is None
        json.dumps(found, allow_nan=False)
    silent = statistics.compute([("a", constructed(np.zeros(100), np.full(100, -80.0), np.zeros(100)))])
    assert silent["f0_midi"]["mean_note"] is None and silent["loudness_db"]["mean"] == -80


@pytest.mark.case("P8")
def test_statistics_are_of_the_train_split_and_kept_up_to_date(tmp_path, measured):
    sources = make_files(tmp_path / "a", 3, 2.0)
    data = dataset.prepare(sources, tmp_path / "out", SETTINGS, validation="take 01.wav")
    expected = statistics.compute((data.recordings[i]["singer"], data.features(i)) for i in data.indices("train"))
    assert data.statistics == expected and data.statistics["n_recordings"] == 2
    other = dataset.prepare(sources, tmp_path / "out", SETTINGS, validation="take 02.wav")
    assert other.statistics != data.statistics and other.fingerprint != data.fingerprint
    assert dataset.Dataset.open(tmp_path / "out").statistics == other.statistics
    text = dataset.describe(other)
    assert "3 recordings" in text and "Hz" in text


def test_progress_grows_to_one(tmp_path, measured):
    seen = []

    def progress(fraction, text):
        seen.append((fraction, text))
        time.sleep(0.4)

    dataset.prepare(make_files(tmp_path / "a", 4), tmp_path / "out", SETTINGS, progress=progress)
    fractions = [f for f, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] == 1.0
    assert any("measured" in t for _, t in seen)
    assert not any(t.endswith(" left") for _, t in seen)  # the bar has an estimate of its own


def test_a_newer_or_foreign_manifest_is_refused(tmp_path, measured):
    dataset.prepare(make_files(tmp_path / "a", 2), tmp_path / "out", SETTINGS)
    path = tmp_path / "out" / "manifest.json"
    contents = filesystem.read_json(path)
    atomic_store.write_json(path, {**contents, "format": 99})
    with pytest.raises(DatasetError, match="newer svclib"):
        dataset.Dataset.open(tmp_path / "out")
    atomic_store.write_json(path, {"kind": "other"})
    with pytest.raises(DatasetError, match="no manifest of a dataset"):
        dataset.Dataset.open(tmp_path / "out")
    with pytest.raises(DatasetError, match="no dataset"):
        dataset.Dataset.open(tmp_path / "nowhere")


def test_a_batch_costs_no_pass_over_all_recordings(tmp_path, measured, monkeypatch):
    """Draws equal those of the definition (uniform over time), and the lengths are summed once per dataset."""
    data = dataset.prepare(make_files(tmp_path / "a", 6, 2.0), tmp_path / "out", SETTINGS, validation="take 01.wav")
    monkeypatch.setattr(np, "cumsum", lambda *_: pytest.fail("summed again"))
    batch = data.batch(3, 5, 4, 25)
    monkeypatch.undo()
    rng, indices = np.random.default_rng([3, 5, 0]), data.indices("train")
    lengths = [data.recordings[i]["n_frames"] for i in indices]
    for row in range(4):
        position = int(np.searchsorted(np.cumsum(lengths), rng.integers(sum(lengths)), side="right"))
        start = int(rng.integers(max(0, lengths[position] - 25) + 1))
        expected = data.audio(indices[position], start * HOP, 25 * HOP)
        np.testing.assert_array_equal(batch["audio"][row].numpy(), expected)
