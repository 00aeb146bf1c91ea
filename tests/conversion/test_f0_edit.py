"""Truths: notes moved by an interval by hand, lines between points, frames outside that stay; a file is read as it was
written, one edit a line; damaged and foreign files are refused with the place."""

import dataclasses
import json

import numpy as np
import panels
import pytest

from svclib.__main__ import main
from svclib.audio import units
from svclib.conversion import f0_edit, pipeline, song
from svclib.conversion.controls import Controls, adjust
from svclib.conversion.f0_edit import Edit, F0Edit
from svclib.features.extract import Features, FeatureSettings
from svclib.models import instrument
from svclib.utils.errors import ConfigError, ConversionError

SETTINGS = FeatureSettings(f0_method="swift")
FRAMES_PER_S = SETTINGS.sample_rate_hz / SETTINGS.hop_samples  # 250
EXAMPLE = F0Edit((Edit(0.2, 0.4, -150.0), Edit(0.6, 0.8, curve=((0.6, 6000.0), (0.7, 6200.5), (0.8, 6000.0)))), "a.wav")


def features(midi):
    """Features of the given pitch, frame by frame; 0 is unvoiced."""
    midi = np.asarray(midi, dtype=float)
    f0_hz = np.where(midi > 0, units.midi_to_hz(midi), 0).astype(np.float32)
    level = np.full(len(midi), -20.0, np.float32)
    return Features(SETTINGS, len(midi) * 64, f0_hz, midi > 0, (midi > 0).astype(np.float32), level)


def cents(found):
    return 100 * units.hz_to_midi(found.f0_hz.astype(float))


def test_a_note_is_shifted_and_a_curve_is_drawn():
    midi = np.where(np.arange(250) % 50 < 5, 0, 57.25)
    made = cents(f0_edit.apply(features(midi), EXAMPLE))
    voiced, time_s = midi > 0, (np.arange(250) + 0.5) / FRAMES_PER_S
    moved, drawn = voiced & (time_s > 0.2) & (time_s < 0.4), voiced & (time_s > 0.6) & (time_s < 0.8)
    np.testing.assert_allclose(made[moved], 5725 - 150, atol=0.01)
    np.testing.assert_allclose(made[drawn], 6000 + 2005 * (0.1 - np.abs(time_s[drawn] - 0.7)), atol=0.01)
    rest = voiced & ~moved & ~drawn
    np.testing.assert_allclose(made[rest], 5725, atol=0.01)
    assert (made[~voiced] == 0).all()  # what is unvoiced stays so


def test_edits_follow_one_another_and_precede_the_controls():
    twice = F0Edit((Edit(0, 1, 100.0), Edit(0, 0.5, 100.0)))
    made = adjust(features(np.full(250, 60.4)), None, Controls(f0_edit=twice, octave_shift=1, autotune=1.0))
    midi = units.hz_to_midi(made.f0_hz.astype(float)) - made.tuning_semitones
    np.testing.assert_allclose(midi, np.where(np.arange(250) < 125, 74, 73), atol=1e-3)
    assert "F0 edited at 2 places" in Controls(f0_edit=twice).changes("ddsp")


def test_an_edit_beyond_the_end_is_refused():
    with pytest.raises(ConversionError, match="3 to 4 s.*'long.wav'.*1.0 s long"):
        f0_edit.apply(features(np.full(250, 60)), F0Edit((Edit(3, 4, 100.0),), "long.wav"))


def test_a_file_is_read_as_it_was_written_one_edit_a_line(tmp_path):
    path = f0_edit.beside(tmp_path / "a.wav")
    assert path.name == "a.wav.f0.json"
    f0_edit.write(path, EXAMPLE)
    assert f0_edit.read(path) == EXAMPLE
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and lines[1] == '  {"start_s": 0.2, "stop_s": 0.4, "shift_cents": -150.0},'
    f0_edit.write(path, F0Edit(song="a.wav"))
    assert f0_edit.read(path) == F0Edit(song="a.wav") and json.loads(path.read_text())["edits"] == []


def test_the_example_of_the_documentation_is_read():
    text = "{" + f0_edit.__doc__.split("::")[1].split("{", 1)[1]
    assert [len(one.curve) for one in f0_edit.parse(text.encode(), "doc").edits] == [0, 3]


@pytest.mark.parametrize(
    "edits",
    [
        [{"start_s": 1, "stop_s": 1, "shift_cents": 1}],
        [{"start_s": -1, "stop_s": 1, "shift_cents": 1}],
        [{"start_s": 0, "stop_s": 1, "shift_cents": 1e5}],
        [{"start_s": 0, "stop_s": 1, "shift_cents": True}],
        [{"start_s": 0, "stop_s": 1}],
        [{"start_s": 0, "stop_s": 1, "shift_cents": 1, "more": 2}],
        [{"curve": [[0, 6000]]}],
        [{"curve": [[0, 6000], [0, 6100]]}],
        [{"curve": [[0, 6000], [1, "x"]]}],
        [{"curve": [[0, 6000], [1, 20000]]}],
        [{"curve": [[0, 6000], [1]]}],
        [{"curve": {}}],
        [7],
        {},
    ],
)
def test_wrong_edits_are_refused(edits):
    text = json.dumps({"format": f0_edit.FORMAT, "format_version": 1, "song": "", "edits": edits})
    with pytest.raises(ConfigError, match="x.json"):
        f0_edit.parse(text.encode(), "x.json")


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": "other"}', b"\xff", b'{"a": NaN}'])
def test_other_files_are_refused(data, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        f0_edit.read(path)


def test_notes_are_found_and_vibrato_is_one():
    """Two notes in one breath, a pause, and a note with a vibrato of 0.5 semitones."""
    t = np.arange(250) / FRAMES_PER_S
    vibrato = 64 + 0.5 * np.sin(2 * np.pi * 5.5 * t)
    midi = np.concatenate([np.full(100, 60), np.full(100, 62), np.zeros(50), vibrato])
    rng = np.random.default_rng(0)
    found = f0_edit.notes(features(np.where(midi > 0, midi + rng.normal(0, 0.05, 500), 0)))
    np.testing.assert_allclose(found, [(0, 100), (100, 200), (250, 500)], atol=3)
    assert f0_edit.notes(features(np.zeros(100))) == []
    filled = dataclasses.replace(features(np.full(100, 60.0)), voiced=np.arange(100) < 50)  # F0 over unvoiced frames
    assert f0_edit.notes(filled) == [(0, 50)]


@pytest.mark.parametrize(
    ("midi", "expected"),
    [  # 80 ms are 20 frames
        ([0] * 50 + [60] * 100 + [62] * 100, [(50, 150), (150, 250)]),
        ([60] * 100 + [62] * 100 + [59] * 100, [(0, 100), (100, 200), (200, 300)]),
        ([60] * 50 + [61] * 19 + [60] + [61] * 19 + [60] * 50, [(0, 139)]),  # it comes back, twice
        ([60] * 50 + [61] * 20 + [60] * 50, [(0, 50), (50, 70), (70, 120)]),
        ([60] * 100 + [60.5] * 100, [(0, 200)]),
        ([60] * 10 + [0] * 5 + [60] * 9, [(0, 10)]),  # half of the shortest is a note, less is none
    ],
)
def test_a_note_ends_where_the_pitch_stays_elsewhere_for_80_ms(midi, expected):
    assert f0_edit.notes(features(np.array(midi, dtype=float))) == expected


def test_on_the_command_line(tmp_path, capsys):
    voice = panels.make_instrument(tmp_path)
    sound = panels.make_song(tmp_path / "song.wav")
    f0_edit.write(tmp_path / "up.json", F0Edit((Edit(0.0, 5.0, 700.0),), "song.wav"))
    flags = ["convert", "--instrument", str(voice), "--input", str(sound), "--f0", "swift"]
    assert main([*flags, "--out", str(tmp_path / "made.wav"), "--f0-edit", str(tmp_path / "up.json")]) == 0
    assert "F0 edited at 1 place" in capsys.readouterr().out
    written = json.loads((tmp_path / "made.wav.json").read_text())["controls"]["f0_edit"]
    assert written["edits"][0]["shift_cents"] == 700
    opened = instrument.open(voice)
    loaded = song.load_song(sound, dataclasses.replace(opened.features, f0_method="swift"))
    plain, edited = (
        pipeline.convert(opened, loaded, Controls(f0_edit=edit)).tracks
        for edit in (None, f0_edit.read(tmp_path / "up.json"))
    )
    interval = units.cents(edited.f0_hz[edited.voiced], plain.f0_hz[plain.voiced])
    np.testing.assert_allclose(interval, 700, atol=0.1)
    assert main([*flags, "--input", str(sound), "--out", str(tmp_path), "--f0-edit", str(tmp_path / "up.json")]) != 0
    assert "--f0-edit" in capsys.readouterr().err
