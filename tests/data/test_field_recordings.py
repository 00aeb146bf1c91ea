"""Folders of recordings as people have them: names of any kind, copies in other formats, voices beyond a tracker's
range, manifests of others, two preparations at once.
"""

import dataclasses
import json
import os
import shutil
import threading
import unicodedata

import numpy as np
import pytest
import soundfile
import untrusted
from cheap_features import RATE, SETTINGS, make_files, tone
from explaining import assert_explains

from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import pipeline
from svclib.conversion import song as songs
from svclib.data import dataset, manifest, preprocess, quality, quality_report
from svclib.data import recordings as recordings_of
from svclib.data.recordings import find_recordings
from svclib.features import extract
from svclib.models import instrument
from svclib.training import api as training
from svclib.utils import config, filesystem
from svclib.utils.errors import DatasetError


def put(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "wb") as file:
            soundfile.write(file, samples, rate, format=path.suffix[1:].upper())
    except OSError:
        pytest.skip("this file system does not take such a name")
    return path


# Names ----------------------------------------------------------------------------------------------------------------

NAMES = [
    "👩\u200d🎤",
    "می\u200cخواهم",
    "gr\udcfcn",
    "x" * 250,
    "発表",
    "e\u0301tude",
    "a\nb",
    "\x1b]0;owned\x07",
    "a\u202eb",
]


@pytest.mark.case("red 24", "red 37", "B5")
@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_a_singer_prepares(tmp_path, measured, name):
    put(tmp_path / name / f"{name[:240]}.wav", tone(1))
    put(tmp_path / name / "b.wav", tone(2))
    found = find_recordings(tmp_path / name)
    data = dataset.prepare(found, tmp_path / "out", SETTINGS)
    [singer] = data.singers
    assert filesystem.is_name(singer) and all(map(filesystem.is_name, (r["name"] for r in data.recordings)))
    assert singer == unicodedata.normalize("NFC", singer) and len(data.recordings) == 2
    assert dataset.Dataset.open(tmp_path / "out").statistics["singers"].keys() == {singer}
    json.dumps([data.recordings, data.messages], ensure_ascii=False).encode()


@pytest.mark.case("red 40")
def test_recordings_whose_names_become_one_are_two(tmp_path, measured):
    for i, name in enumerate(("é.wav", "e\u0301.wav", "gr\udcfcn.wav", "grün.wav")):
        put(tmp_path / "voice" / name, tone(i))
    if len(os.listdir(tmp_path / "voice")) < 4:
        pytest.skip("this file system knows one of them only")
    found = find_recordings(tmp_path / "voice")
    assert sorted(r.name for r in found) == ["grün 2.wav", "grün.wav", "é 2.wav", "é.wav"]
    assert len(dataset.prepare(found, tmp_path / "out", SETTINGS).recordings) == 4


def test_a_singer_of_no_name_is_refused(tmp_path):
    put(tmp_path / "a.wav", tone(1))
    for name in ("", "a\nb", "\x1b[31m", "x" * 256):
        with pytest.raises(DatasetError) as error:
            find_recordings([tmp_path], singers=[name])
        assert_explains(error.value, remedy="name")


@pytest.mark.case("user 01.11")
def test_natural_order_and_files_left_out(tmp_path, measured):
    for i in (1, 2, 10):
        put(tmp_path / f"Take {i}.wav", tone(i))
    found = find_recordings(tmp_path)
    assert [r.name for r in found] == ["Take 1.wav", "Take 2.wav", "Take 10.wav"]
    found = recordings_of.leave_out(found, {tmp_path / "Take 2.wav"})
    data = dataset.prepare(found, tmp_path / "out", SETTINGS)
    assert {r["name"] for r in data.recordings} == {"Take 1.wav", "Take 10.wav"}
    assert any("Take 2.wav" in message and "by choice" in message for message in data.messages)


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.case("user 01.7", "B7")
def test_a_copy_in_another_format_is_left_out_of_both_sides(tmp_path, measured):
    """As the doctor says; first and last in order, prepared at once or added later."""
    for i in range(6):
        put(tmp_path / "a" / f"{i} take.wav", tone(i, 5.0 + 0.4 * i))
    samples, _ = soundfile.read(tmp_path / "a" / "3 take.wav")
    audio.write(tmp_path / "a" / "0 memo.mp3", samples * 0.7, RATE)
    report = quality.examine(tmp_path / "a")
    [finding] = [f for f in report.findings if f.kind == "duplicate"]
    assert (finding.file, finding.severity) == ("3 take.wav", quality_report.PROBLEM)
    assert report.totals["n_usable"] == 6
    data = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert [(d["name"], d["same_as"]) for d in data.duplicates] == [("3 take.wav", "0 memo.mp3")]
    assert len(data.recordings) == 6 and "3 take.wav" not in {r["name"] for r in data.recordings}
    before = dataset.Dataset.open(tmp_path / "out").fingerprint
    again = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert again.fingerprint == before and preprocess.UNCHANGED in again.messages
    audio.write(tmp_path / "a" / "zz.mp3", soundfile.read(tmp_path / "a" / "1 take.wav")[0], RATE)
    later = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert later.fingerprint == before and {d["name"] for d in later.duplicates} == {"3 take.wav", "zz.mp3"}
    assert any("'zz.mp3' is the same audio as '1 take.wav'" in m for m in later.messages)


# The doctor -----------------------------------------------------------------------------------------------------------


@pytest.mark.case("user 01.6")
def test_red_is_what_preparing_leaves_out(tmp_path):
    clean = tone(1, 6.0)
    put(tmp_path / "clipped.wav", np.clip(8 * clean, -0.9, 0.9))
    put(tmp_path / "clean.wav", tone(2, 6.0))
    put(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(6 * RATE))
    put(tmp_path / "silent.wav", np.zeros(RATE))
    shutil.copy(tmp_path / "clean.wav", tmp_path / "copy.wav")
    (tmp_path / "text.wav").write_text("la la " * 100)
    report = quality.examine(tmp_path)
    red = {f.file for f in report.findings if f.severity == quality_report.PROBLEM}
    data = dataset.prepare(find_recordings(tmp_path), tmp_path / "out", SETTINGS)
    left_out = {s["name"] for s in data.skipped} | {d["name"] for d in data.duplicates}
    assert red == left_out == {"silent.wav", "copy.wav", "text.wav"}
    assert {f.name for f in report.flagged()} >= {"clipped.wav", "noise.wav"}


@pytest.mark.case("user 01.9", "user 01.12")
def test_ranges_are_notes_and_leave_octave_errors_out(tmp_path, measured):
    put(tmp_path / "a.wav", tone(1, 3.0))
    data = dataset.prepare(find_recordings(tmp_path), tmp_path / "out", SETTINGS)
    edges = [n - 0.5 for n in range(24, 110)]
    seconds = np.zeros(len(edges) - 1)
    seconds[57 - 24 : 75 - 24] = 2.0  # A3 to D5
    seconds[35 - 24], seconds[100 - 24] = 0.05, 0.03  # single frames: the tracker's errors
    pitch = {"mean_note": 65.0, "min_note": 35.0, "max_note": 100.2}
    data.statistics["f0_midi"] = {**pitch, "histogram": {"edges_midi": edges, "seconds": seconds.tolist()}}
    text = dataset.describe(data)
    assert "A3 to D5 (220 to 587 Hz)" in text and "F4 on average" in text
    report = quality.examine(tmp_path)
    assert units.note_name(69) in units.range_text(440, 440)
    assert "Hz)" in report.table() and "noise floor" not in report.table()  # a column without any value


# Voices beyond the tracker --------------------------------------------------------------------------------------------


def vowel(f_hz, seconds=2.0, rate=RATE):
    t = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(f_hz * 2 ** (0.3 * np.sin(2 * np.pi * 5.5 * t) / 12)) / rate
    return (0.25 * sum(np.sin(k * phase) / k**1.2 for k in range(1, max(2, int(7000 / f_hz) + 1)))).astype(np.float32)


@pytest.mark.case("field F1")
@pytest.mark.parametrize("f_hz", [880, 1047, 1397, 1568, 1976])
def test_high_notes_are_voiced_by_default(f_hz):
    found, voiced, _ = extract.track_f0(vowel(f_hz), RATE, SETTINGS)
    assert voiced.mean() > 0.9 and abs(units.cents(np.median(found[voiced]), f_hz)) < 30


@pytest.mark.case("field F1")
def test_an_older_instrument_hears_high_notes_of_a_song(tmp_path):
    older = dataclasses.replace(SETTINGS, f0_max_hz=1100.0)
    song = songs.load_song(put(tmp_path / "aria.wav", vowel(1319)), older)
    assert song.features.voiced.mean() > 0.9 and abs(units.cents(np.median(song.features.f0_hz), 1319)) < 30


@pytest.mark.case("field F1")
def test_a_dataset_of_an_earlier_version_is_not_measured_again_and_tells_its_limit(tmp_path):
    older = dataclasses.replace(SETTINGS, f0_max_hz=manifest.EARLIER_F0_MAX_HZ)
    put(tmp_path / "a" / "low.wav", vowel(300))
    before = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", older)
    again = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert again.fingerprint == before.fingerprint and preprocess.UNCHANGED in again.messages
    for f_hz in (1066, 1072, 1078):  # one of them may be held out
        put(tmp_path / "a" / f"{f_hz}.wav", vowel(f_hz))
    later = dataset.prepare(find_recordings(tmp_path / "a"), tmp_path / "out", SETTINGS)
    assert later.settings == older and any("1100 Hz" in message for message in later.messages)


@pytest.mark.case("field F1")
def test_the_doctor_says_when_notes_touch_the_limits(tmp_path):
    report = quality.examine(put(tmp_path / "whistle.wav", vowel(2060, 4.0)))
    assert "limit" in {f.kind for f in report.findings}
    report = quality.examine(put(tmp_path / "c6.wav", vowel(1047, 4.0)))
    assert "limit" not in {f.kind for f in report.findings}


@pytest.mark.case("field F8")
def test_recordings_without_notes_are_said(tmp_path):
    """A whistle above every tracker, and a whisper: noise with the envelope of phrases."""
    t = np.arange(4 * RATE) / RATE
    whistle = 0.2 * np.sin(2 * np.pi * 3200 * t)
    whisper = 0.1 * np.random.default_rng(0).standard_normal(len(t)) * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t))
    for name, samples in (("whistle", whistle), ("whisper", whisper)):
        put(tmp_path / name / "a.wav", samples)
        report = quality.examine(tmp_path / name)
        assert "pitch" in {f.kind for f in report.flagged()[0].findings}
    put(tmp_path / "voice" / "b.wav", vowel(300, 4.0))
    data = dataset.prepare(
        find_recordings([tmp_path / n for n in ("whistle", "whisper", "voice")]), tmp_path / "out", SETTINGS
    )
    [message] = [m for m in data.messages if m.startswith("No notes")]
    assert "whisper" in message and "voice:" not in message


# Manifests of others --------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path, measured):
    dataset.prepare(make_files(tmp_path / "a", 3), tmp_path / "out", SETTINGS)
    return tmp_path / "out"


def changed(folder, change):
    """The dataset with a change in its manifest, whose checksum is right."""
    found = manifest.read(folder)
    change(found)
    manifest.write(folder, found)


def rename_shard(name):
    def change(found):
        [old] = found["shards"]
        found["shards"] = {name: found["shards"][old]}
        for entry in found["recordings"]:
            entry["segments"] = [[name, *rest] for _, *rest in entry["segments"]]

    return change


HOSTILE = {
    "a shard outside": rename_shard("../../victim/.bashrc"),
    "an absolute shard": rename_shard("/etc/passwd"),
    "a shard of another kind": rename_shard("shard-0123456789abcdef.safetensors/../x"),
    "fingerprint": untrusted.put("fingerprint", "/../../autorun/x"),
    "settings key": untrusted.put("settings_key", "../x"),
    "no recordings": untrusted.put("recordings", None),
    "a recording of text": untrusted.put("recordings", 0, "x"),
    "negative length": untrusted.put("recordings", 0, "n_samples", -5),
    "another length": untrusted.put("recordings", 0, "n_frames", 10**9),
    "segments of text": untrusted.put("recordings", 0, "segments", [["a"]]),
    "huge segment": untrusted.put("recordings", 0, "segments", 0, 1, 1 << 60),
    "split": untrusted.put("recordings", 0, "split", "test"),
    "singer": untrusted.put("recordings", 0, "singer", "somebody"),
    "label": untrusted.put("recordings", 0, "label", 7),
    "singers": untrusted.put("singers", ["\x1b[31m"]),
    "skipped": untrusted.put("skipped", "x"),
    "statistics": untrusted.put("statistics", 5),
    "bytes": lambda found: next(iter(found["shards"].values())).update(bytes="many"),
}


@pytest.mark.case("red 02")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_manifest_of_others_names_nothing_outside_and_ends_in_a_sentence(prepared, what):
    changed(prepared, HOSTILE[what])
    with pytest.raises(DatasetError) as error:
        dataset.Dataset.open(prepared)
    assert_explains(error.value, path=prepared / manifest.NAME, remedy="prepare again")


@pytest.mark.case("red 02")
def test_every_value_of_a_manifest_may_be_wrong(prepared):
    """Each one in turn becomes something else: it opens, or is refused in a sentence."""
    good = manifest.read(prepared)
    paths = [path for path in untrusted.places(good) if path and path[0] not in ("statistics", "versions")]
    paths = [path for path in paths if all(key < 3 for key in path if isinstance(key, int))]
    assert len(paths) > 60
    for path in paths:
        for wrong in (None, "x", -1, [[1]]):
            bad = json.loads(json.dumps(good))
            untrusted.put(*path, wrong)(bad)
            manifest.write(prepared, bad)
            try:
                dataset.Dataset.open(prepared).batch(0, 1, 2, 50)
            except (ValueError, OSError) as error:
                assert type(error).__module__.startswith("svclib"), (path, wrong, error)


# Two at once ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("red 15")
def test_one_preparation_at_a_time(tmp_path, measured, monkeypatch):
    ours, theirs = make_files(tmp_path / "a", 2), make_files(tmp_path / "b", 2, first=5)
    begun, go, real = threading.Event(), threading.Event(), preprocess.DatasetBuilder.find_stored

    def waiting(self, wanted):
        begun.set()
        go.wait(30)
        return real(self, wanted)

    monkeypatch.setattr(preprocess.DatasetBuilder, "find_stored", waiting)
    first = threading.Thread(target=dataset.prepare, args=(ours, tmp_path / "out", SETTINGS))
    first.start()
    begun.wait(30)
    monkeypatch.setattr(preprocess.DatasetBuilder, "find_stored", real)
    with pytest.raises(DatasetError) as error:
        dataset.prepare(theirs, tmp_path / "out", SETTINGS)
    assert_explains(error.value, path=tmp_path / "out", remedy="another folder")
    go.set()
    first.join()
    data = dataset.prepare(ours, tmp_path / "out", SETTINGS)  # and after it anybody may
    assert len(data.recordings) == 2 and not (tmp_path / "out" / preprocess.LOCK_NAME).exists()


# From the folder to a song


@pytest.mark.case("red 24", "red 37")
@pytest.mark.parametrize("name", ["👩\u200d🎤", "gr\udcfcn", "x" * 250])
def test_every_name_trains_saves_exports_and_converts(tmp_path, name):
    for i in range(2):
        put(tmp_path / name / f"{i}{name[:200]}.wav", vowel(200 + 40 * i, 1.5))
    preset = config.load(["ddsp_small", "tiny"])
    data = dataset.prepare(find_recordings(tmp_path / name), tmp_path / "data", preset.features)
    training.train(data, tmp_path / "run", preset, steps=2, device="cpu")
    path = training.export(tmp_path / "run", tmp_path)
    made = instrument.open(path)
    assert list(made.statistics["singers"]) == data.singers and "voice of" in instrument.describe(made)
    song = songs.load_song(put(tmp_path / f"{name[:200]} song.wav", vowel(250, 1.0)), made.features)
    saved = pipeline.save(pipeline.convert(made, song), tmp_path / "out")
    assert audio.read(saved).duration_s > 0.9 and filesystem.is_name(saved.name)
    json.dumps([song.name, made.info], ensure_ascii=False).encode()
