"""Truths about the panels, without a browser: what every click does, that no mistake and no exception vanishes, that
nothing is computed twice or lost, and that names of files are shown and never interpreted.
"""

import base64
import html.parser
import io as io_
import json
import re
import shutil
import sys
import threading
import types
import zipfile

import ipywidgets as W
import numpy as np
import pytest
import soundfile
import torch
import toy
from panels import NASTY, ColabPage, make_instrument, make_song, said, upload

from svclib.audio import io
from svclib.conversion import cover, key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import PRESETS, Controls, preset
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks import controls, convert, prepare, train
from svclib.notebooks import panel as panels
from svclib.training import api as training
from svclib.utils import atomic_store, workspace
from svclib.utils.errors import Cancelled, StorageError


@pytest.fixture
def empty(tmp_path):
    songs._songs.clear()
    return workspace.base_folder(base=tmp_path / "home")


@pytest.fixture
def base(empty):
    make_instrument(empty.instruments)
    make_song(empty.examples / "a song.wav")
    return empty


def shown(panel) -> list[str]:
    """The results as HTML, from the top."""
    return [result.children[0].value for result in panel.results.children]


def outputs(base) -> list[str]:
    return sorted(p.name for p in base.output.iterdir() if p.suffix != ".json")


# ------------------------------------------------------------------------------------------------------- conversion


def test_ranges_are_those_of_the_controls(base):
    panel = convert.ConvertPanel(base)
    ranges = {name: (s.min, s.max) for name, s in panel.sliders.widgets.items() if hasattr(s, "min")}
    assert ranges["mask_threshold"] == (0, 2) and ranges["attenuation_db"] == (0, 50) and ranges["autotune"] == (0, 1)
    assert ranges["octave_shift"] == (-3, 3) and ranges["loudness_shift_db"] == (-30, 30)
    assert panel.controls() == Controls() and panel.full_output.value


@pytest.mark.case("P40")
def test_nothing_is_computed_before_a_button_is_pressed(base, monkeypatch):
    monkeypatch.setattr(songs, "cached_song", lambda *a, **k: pytest.fail("a song was measured"))
    monkeypatch.setattr(instrument, "open", lambda *a: pytest.fail("an instrument was opened"))
    panel = convert.ConvertPanel(base)
    panel.song.value = panel.song.options[0][1]
    assert not panel.task.busy


def test_transfer_appends_results_with_their_settings_and_never_overwrites(base):
    panel = convert.ConvertPanel(base)
    panel.transfer_button.click()
    panel.task.wait(60)
    panel.sliders.widgets["octave_shift"].value = 1
    panel.full_output.value = False
    panel.transfer_button.click()
    panel.task.wait(60)
    second, first = shown(panel)  # the newest on top
    assert first.count("<audio") == 4 and first.count("<img") == 2 and "octave +" not in first
    assert second.count("<audio") == 1 and second.count("<img") == 0 and "octave +1" in second
    assert outputs(base) == ["a song - small 2.wav", "a song - small.wav"]
    assert soundfile.info(base.output / outputs(base)[0]).frames == 19200
    assert "svclib-done" in said(panel) and not panel.transfer_button.disabled and panel.cancel_button.disabled
    assert "Harmonic part" in first and "Noise part" in first


def test_changing_one_choice_does_not_recompute_the_other(base, monkeypatch):
    make_instrument(base.instruments, "other", 1)
    opened, measured = [], []
    open_, load = instrument.open, songs.load_song
    monkeypatch.setattr(instrument, "open", lambda path: opened.append(path.name) or open_(path))
    monkeypatch.setattr(songs, "load_song", lambda path, *a, **k: measured.append(path.name) or load(path, *a, **k))
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    for choice in (0, 1, 0):
        panel.instrument.value = panel.instrument.options[choice][1]
        panel.transfer_button.click()
        panel.task.wait(60)
    assert opened == ["other.zip", "small.zip"] and measured == ["a song.wav"]
    assert len(panel.results.children) == 3


@pytest.mark.case("P28", "H1")
def test_empty_folders_and_transfer_before_a_choice_say_what_to_do(empty):
    panel = convert.ConvertPanel(empty)
    assert panel.transfer_button.disabled
    for press in (panel.transfer_button, panel.suggest_button):
        press.click()
        assert "There is no instrument" in said(panel) and "There is no song" in said(panel)
    assert str(empty.examples) in said(panel) and not panel.task.busy
    make_instrument(empty.instruments)
    make_song(empty.examples / "new.wav")
    panel.refresh_button.click()
    assert said(panel) == "" and not panel.transfer_button.disabled


@pytest.mark.case("P26", "H5")
def test_a_broken_instrument_is_named_and_loads_once_it_is_mended(base):
    path = base.instruments / "small.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000] + bytes(2000))
    panel = convert.ConvertPanel(base)
    assert "small.zip: " in said(panel) and "cut off" in said(panel) and panel.transfer_button.disabled
    path.write_bytes(whole)
    panel.refresh_button.click()
    panel.transfer_button.click()
    panel.task.wait(60)
    assert outputs(base) == ["a song - small.wav"]


def test_a_song_that_vanished_is_named(base):
    panel = convert.ConvertPanel(base)
    (base.examples / "a song.wav").unlink()
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "svclib-error" in said(panel) and "a song.wav" in said(panel)


@pytest.fixture
def slow(held):
    return held(pipeline, "convert")


@pytest.mark.case("H2", "H3")
def test_many_clicks_are_one_conversion(base, slow):
    began, go = slow
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    panel.transfer_button.click()
    assert began.wait(30) and panel.transfer_button.disabled and not panel.cancel_button.disabled
    for _ in range(20):
        panel.transfer_button.click()
    assert "Still working" in said(panel)
    go.set()
    panel.task.wait(60)
    assert len(panel.results.children) == 1 and len(outputs(base)) == 1


@pytest.mark.case("P40", "H6")
def test_cancel_stops_and_leaves_no_file(base, slow):
    began, go = slow
    panel = convert.ConvertPanel(base)
    panel.transfer_button.click()
    assert began.wait(30)
    panel.cancel_button.click()
    go.set()
    panel.task.wait(60)
    assert list(base.output.iterdir()) == [] and "cancelled" in said(panel) and panel.results.children == ()
    assert not panel.transfer_button.disabled


@pytest.mark.case("H4")
def test_a_result_is_labelled_with_what_it_used_although_the_choice_changed(base, slow):
    began, go = slow
    make_instrument(base.instruments, "other", 1)
    panel = convert.ConvertPanel(base)
    panel.instrument.value = base.instruments / "small.zip"
    panel.transfer_button.click()
    assert began.wait(30)
    panel.instrument.value = base.instruments / "other.zip"
    panel.sliders.widgets["octave_shift"].value = 3
    go.set()
    panel.task.wait(60)
    result = shown(panel)[0]
    assert "by small" in result and "octave +3" not in result and outputs(base) == ["a song - small.wav"]


def test_presets_and_reset_move_every_control(base):
    panel = convert.ConvertPanel(base)
    assert panel.transfer_button.tooltip == "sing the song with the instrument"
    for name in PRESETS:
        panel.sliders.preset.value = name
        assert panel.controls() == preset(name)
    output = (panel.full_output, panel.keep_rate, panel.format, panel.f0_method, panel.edited)
    before = [control.value for control in output]
    for control, value in zip(output, (False, True, "flac", "pyin", False), strict=True):
        control.value = value
    panel.reset_button.click()
    assert panel.controls() == Controls() and panel.sliders.preset.value is None and panel.auto_key.value
    assert [control.value for control in output] == before


@pytest.fixture
def stems(base):
    """A quiet voice and noise of a band beside it, as another program separates them."""
    voice, band = make_song(base.examples / "voice.wav", 330.0), base.examples / "band.wav"
    soundfile.write(voice, 0.1 * soundfile.read(voice)[0], 16000)
    soundfile.write(band, 0.01 * np.random.default_rng(0).standard_normal((19200, 2)), 16000, "FLOAT")
    return voice, band


def transferred(panel):
    """The sound of what Transfer wrote last, and the sentence about it."""
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "svclib-done" in said(panel), said(panel)
    return soundfile.read(next(iter(panel.shown[panel.results.children[0]])), dtype="float32")[0], said(panel)


@pytest.mark.case("user mix")
def test_the_voice_of_a_mix_is_replaced_at_its_level_and_its_warnings_are_shown(base, stems):
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    assert panel.mix_row.layout.display == "none"
    panel.is_mix.value, panel.song.value, panel.accompaniment.value = True, *stems
    assert panel.mix_row.layout.display == ""
    mixed, _ = transferred(panel)
    assert outputs(base) == ["voice - small (mix).wav", "voice - small.wav"]
    made, band, voice = (soundfile.read(path)[0] for path in (base.output / "voice - small.wav", stems[1], stems[0]))
    rest = (mixed - band).mean(axis=1)
    assert np.corrcoef(rest, made)[0, 1] > 0.999
    assert 20 * np.log10(rest.std() / voice.std()) == pytest.approx(0.0, abs=1.5)
    assert "svclib-warning" not in shown(panel)[0] and shown(panel)[0].count("<audio") == 2
    panel.sliders.widgets["semitone_shift"].value = 3
    transferred(panel)
    assert "different keys" in shown(panel)[0]
    panel.all_button.click()
    assert "one song" in said(panel) and len(outputs(base)) == 4
    panel.reset_button.click()
    assert panel.mix_row.layout.display == "none"


@pytest.mark.case("user mix")
def test_a_finished_song_is_taken_apart_once_or_told_how_and_keeps_its_key(base, monkeypatch):
    suggested = key_suggestion.Suggestion(-1, 4, -8, "")
    monkeypatch.setattr(key_suggestion, "suggest_shift", lambda *_: suggested)
    panel = convert.ConvertPanel(base)
    panel.is_mix.value, panel.full_output.value = True, False
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "demucs", None)
        panel.transfer_button.click()
        panel.task.wait(60)
    assert "pip install" in said(panel) and "Accompaniment" in said(panel) and outputs(base) == []
    asked = []
    monkeypatch.setattr(cover, "DemucsSeparator", lambda download: asked.append(download) or _Half())
    transferred(panel)
    assert (panel.controls().octave_shift, panel.controls().semitone_shift) == (-1, 0)  # as the accompaniment
    transferred(panel)
    assert asked == [False] and [name for name in outputs(base) if "accompaniment" in name] == [
        "a song - accompaniment.wav"
    ]
    panel.is_mix.value = False
    transferred(panel)
    assert panel.controls().semitone_shift == 4
    panel.is_mix.value = True
    panel.all_button.click()
    panel.task.wait(60)
    assert "1 of 1 songs" in said(panel) and sum("(mix)" in name for name in outputs(base)) == 3


@pytest.mark.case("user mix")
def test_a_finished_song_that_is_taken_for_a_voice_is_noticed(base):
    t = np.arange(4 * 16000) / 16000
    parts = [sum(np.sin(2 * np.pi * k * f_hz * t) / k for k in range(1, 9)) for f_hz in (220.0, 277.2)]
    soundfile.write(base.examples / "band.wav", 0.1 * sum(parts), 16000)
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    for name, noticed in (("band.wav", True), ("a song.wav", False)):
        panel.song.value = base.examples / name
        panel.transfer_button.click()
        panel.task.wait(60)
        assert "is below" in said(panel) and ("tick This is a mix" in said(panel)) == noticed, said(panel)


class _Half:
    """A separator that takes half of everything for the voice."""

    name, sample_rate_hz = "half", 22050

    def __call__(self, samples, progress):
        return 0.5 * samples


def test_two_instruments_of_one_base_are_blended_by_their_share(base):
    small = instrument.open(base.instruments / "small.zip")
    near = instrument.build_model(small.model.settings, small.features, None, 0)
    with torch.no_grad():
        near.decoder.out.bias += 0.3
    instrument.save(base.instruments / "near.zip", near, small.features, small.statistics, created="2026-11-21")
    make_instrument(base.instruments, "foreign", 1)
    panel = convert.ConvertPanel(base)
    panel.full_output.value, panel.instrument.value = False, base.instruments / "small.zip"
    assert panel.blend_row.layout.display == "none"
    panel.is_blend.value, panel.share.value = True, 0.25
    assert (
        panel.blend_row.layout.display == ""
        and base.instruments / "small.zip" not in dict(panel.second.options).values()
    )
    panel.second.value = base.instruments / "near.zip"
    sound, text = transferred(panel)
    assert "small 0.75 + near 0.25" in text
    blended = instrument.blend([(small, 0.75), (instrument.open(base.instruments / "near.zip"), 0.25)])
    song = songs.load_song(base.examples / "a song.wav", blended.features)
    np.testing.assert_allclose(sound, pipeline.convert(blended, song, panel.controls()).audio, atol=1e-4)
    panel.second.value = base.instruments / "foreign.zip"
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "same base" in said(panel) and len(panel.results.children) == 1
    panel.instrument.value = base.instruments / "foreign.zip"
    for path in ("small.zip", "near.zip"):
        (base.instruments / path).unlink()
    panel.refresh_button.click()
    panel.transfer_button.click()
    assert "no second instrument" in said(panel)


@pytest.mark.case("user 03.4")
def test_a_preset_leaves_the_key_as_it_is(base):
    panel = convert.ConvertPanel(base)
    panel.sliders.widgets["octave_shift"].value, panel.sliders.widgets["semitone_shift"].value = 2, -1
    panel.sliders.preset.value = "Gentle autotune"
    controls = panel.controls()
    assert (controls.octave_shift, controls.semitone_shift, controls.autotune) == (2, -1, 0.5)
    panel.sliders.preset.value = "Octave up"  # which is about the octave
    assert panel.controls().octave_shift == 1


def test_suggestion_says_why_and_is_taken_by_a_button(base):
    make_song(base.examples / "low.wav", 65.4)  # C2, two octaves below the instrument's mean
    panel = convert.ConvertPanel(base)
    panel.song.value = base.examples / "low.wav"
    panel.suggest_button.click()
    panel.task.wait(60)
    assert panel.sliders.widgets["octave_shift"].value == 0 and "octave" in panel.sliders.suggestion.value
    octave = panel.sliders.take_buttons.children[0]
    assert octave.description == "Take octave +2" and octave.button_style == "success"
    octave.click()
    assert panel.sliders.widgets["octave_shift"].value == 2 and panel.sliders.widgets["semitone_shift"].value == 0
    panel.song.value = base.examples / "a song.wav"
    assert panel.sliders.take_buttons.children == () and panel.sliders.suggestion.value == ""


def test_a_transfer_far_from_the_suggested_shift_says_so(base):
    make_song(base.examples / "low.wav", 65.4)  # C2, two octaves below the instrument's mean
    panel = convert.ConvertPanel(base)
    assert panel.song.value == base.examples / "low.wav"  # the newest
    panel.full_output.value = False
    panel.auto_key.value = False
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "Result 1 is below" in said(panel) and "sings the song best at octave +2: press Suggest key" in said(panel)
    panel.sliders.widgets["octave_shift"].value = 2
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "Result 2 is below" in said(panel) and "Suggest key" not in said(panel)


@pytest.mark.case("user 03.3")
def test_a_transfer_takes_the_suggested_key_unless_a_slider_was_moved(base):
    make_song(base.examples / "low.wav", 65.4)  # C2, two octaves below the instrument's mean
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "octave +2" in shown(panel)[0] and panel.sliders.widgets["octave_shift"].value == 2
    assert panel.auto_key.value and "Suggest key" not in said(panel)
    panel.song.value = base.examples / "a song.wav"  # A3: near the mean
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "octave +" not in shown(panel)[0] and panel.sliders.widgets["octave_shift"].value == 0
    panel.sliders.widgets["octave_shift"].value = -1
    assert not panel.auto_key.value
    panel.transfer_button.click()
    panel.task.wait(60)
    assert "octave -1" in shown(panel)[0]


@pytest.mark.case("user 03.7")
def test_results_are_downloaded_and_taken_away_and_their_files_stay(base):
    panel = convert.ConvertPanel(base)
    panel.full_output.value = False
    panel.listen_button.click()
    assert panel.player.value.count("<audio") == 1
    for octave in (0, 1):
        panel.sliders.widgets["octave_shift"].value = octave
        panel.transfer_button.click()
        panel.task.wait(60)
    assert "data:audio/x-wav" not in "".join(shown(panel)) and panel.download_button.layout.display == ""
    panel.download_button.click()
    data = re.search(r'download="results.zip" href="data:[^,]*,([^"]+)"', said(panel))[1]
    with zipfile.ZipFile(io_.BytesIO(base64.b64decode(data))) as archive:
        assert sorted(archive.namelist()) == outputs(base)
        assert all(archive.read(name) == (base.output / name).read_bytes() for name in outputs(base))
    newest = panel.results.children[0]
    keep, remove = newest.children[1].children
    keep.click()
    assert 'download="a song - small 2.wav"' in said(panel)
    for _ in range(2):
        remove.click()
    assert "svclib-error" not in said(panel) and len(panel.results.children) == 1 and "octave +1" not in shown(panel)[0]
    assert len(outputs(base)) == 2 and panel.download_button.layout.display == "none"
    panel.song.value = None
    assert panel.player.value == ""


@pytest.mark.case("H5")
def test_a_damaged_instrument_is_named_and_not_offered(base):
    (base.instruments / "bad.zip").write_bytes(b"PK nothing of a zip")
    panel = convert.ConvertPanel(base)
    assert [label for label, _ in panel.instrument.options] == ["small.zip"]
    assert "bad.zip" in said(panel)


def test_another_tracker_measures_the_song(base):
    panel = convert.ConvertPanel(base)
    panel.full_output.value, panel.f0_method.value = False, "pyin"
    panel.transfer_button.click()
    panel.task.wait(60)
    settings = json.loads(next(base.output.glob("*.json")).read_text())
    assert settings["f0_method"] == "pyin"


@pytest.mark.case("H7")
def test_every_control_out_of_range_is_held_inside(base):
    panel = convert.ConvertPanel(base)
    for slider in (widget for widget in panel.sliders.widgets.values() if hasattr(widget, "max")):
        slider.value = 1000
        assert slider.value == slider.max
    panel.controls()  # still valid


@pytest.mark.case("H7")
def test_nan_in_a_slider_reaches_no_model(base, monkeypatch):
    monkeypatch.setattr(pipeline, "convert", lambda *a, **k: pytest.fail("NaN came through"))
    panel = convert.ConvertPanel(base)
    panel.sliders.widgets["autotune"].value = float("nan")
    panel.transfer_button.click()
    panel.task.wait(30)
    assert "from 0 to 1" in said(panel) and "svclib-error" in said(panel) and outputs(base) == []


BUTTONS = ("transfer_button", "all_button", "suggest_button", "refresh_button", "reset_button", "cancel_button")


@pytest.mark.case("P39", "H10")
@pytest.mark.parametrize("press", BUTTONS)
def test_an_exception_in_any_handler_is_shown_in_the_panel(base, monkeypatch, press):
    panel = convert.ConvertPanel(base)

    def bad(*args, **kwargs):
        raise ZeroDivisionError("a <b>bug</b>")

    monkeypatch.setattr(type(panel.task), "busy", property(bad), raising=False)
    parts = [(controls, "Controls"), (controls, "defaults"), (controls, "SamplingOptions")]
    for owner, name in ((instrument, "open"), (instrument, "list_folder"), *parts):
        monkeypatch.setattr(owner, name, bad)
    getattr(panel, press).click()
    panel.task.wait(30)
    assert "ZeroDivisionError" in said(panel) and "&lt;b&gt;bug" in said(panel) and "<b>bug" not in said(panel)


@pytest.mark.case("H9")
def test_a_copy_saved_with_its_outputs_says_what_the_panel_needs(base, monkeypatch):
    """GitHub, mail and a notebook without a kernel show the line; the living panel carries the style that hides it."""
    shown = []
    for module in (widgets, panels):
        monkeypatch.setattr(module, "display", lambda *things, **options: shown.extend(things))
    monkeypatch.setattr("ipywidgets.widgets.widget.display", widgets.display, raising=False)
    panel = convert.ConvertPanel(base)
    for _ in range(2):
        panel._ipython_display_()
    line, bundle = shown[0].data, shown[1]
    assert "run the notebook from its first cell" in line and "first cell" in bundle["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    styles = [c.value for c in panel.children if isinstance(c, W.HTML) and "<style>" in c.value]
    assert styles == [f"<style>#svclib-asleep-{panel.model_id} {{ display: none }}</style>"]
    assert f'id="svclib-asleep-{panel.model_id}"' in line


@pytest.mark.case("H8")
def test_running_the_cell_twice_leaves_one_living_panel(base):
    older = convert.ConvertPanel(base)
    newer = convert.ConvertPanel(base)
    assert older.comm is None and newer.comm is not None
    assert all(child.comm is None for child in older.children)


def test_uploads_are_stored_under_a_free_name_chosen_and_shown_escaped(base):
    panel = convert.ConvertPanel(base)
    data = make_song(base.root / "x.wav").read_bytes()
    for _ in range(2):
        upload(panel.upload, f"../{NASTY}.wav", data)
    stored = sorted(p.name for p in base.examples.iterdir())
    assert len(stored) == 3 and panel.song.value.parent == base.examples and panel.song.value.name in stored
    assert not (base.root / "x.wav").samefile(panel.song.value)
    assert "<img" not in said(panel)
    panel.full_output.value = True
    panel.transfer_button.click()
    panel.task.wait(60)
    result = shown(panel)[0]
    assert "onerror=alert(1)>" not in result and "<img src=x" not in result


@pytest.mark.case("user 03.2")
def test_an_upload_that_is_no_sound_is_not_stored_and_says_why(base):
    panel = convert.ConvertPanel(base)
    before = sorted(base.examples.iterdir())
    upload(panel.upload, "lyrics.wav", b"There is a house in New Orleans, they call the rising sun.\n" * 9)
    assert "lyrics.wav" in said(panel) and "text" in said(panel) and "svclib-error" in said(panel)
    assert sorted(base.examples.iterdir()) == before and panel.song.value == base.examples / "a song.wav"


@pytest.mark.case("user 03.1")
def test_a_song_of_any_size_arrives_in_slices_that_colab_and_jupyter_take(base):
    panel = convert.ConvertPanel(base)
    path, sent = make_song(base.root / "long.wav", seconds=120.0), []
    panel.upload._area.observe(lambda change: sent.append(len(change["new"])), "value")
    assert upload(panel.upload, "long.wav", path.read_bytes()) == "ok"
    assert (base.examples / "long.wav").read_bytes() == path.read_bytes()
    assert panel.song.value == base.examples / "long.wav" and panel.upload._area.value == ""
    assert max(sent) < 1_000_000 and sum(size > 600_000 for size in sent) == path.stat().st_size // 500_000


@pytest.mark.case("user 03.6")
def test_a_friends_instrument_is_uploaded_or_fetched_by_its_link_and_chosen(base, monkeypatch, tmp_path):
    panel = convert.ConvertPanel(base)
    friend = make_instrument(tmp_path, "friend", 1)
    assert upload(panel.upload, "friend.zip", friend.read_bytes()) == "ok"
    assert panel.instrument.value == base.instruments / "friend.zip" and "Press Transfer" in said(panel)
    assert upload(panel.upload, "holiday.zip", b"PK pictures of the sea") == "no"
    assert not (base.instruments / "holiday.zip").exists() and "holiday.zip" in said(panel)
    panel.fetch_button.click()
    assert "Paste a link" in said(panel)
    fetched = make_instrument(tmp_path, "from far", 2)
    monkeypatch.setattr(convert.download, "fetch_file", lambda link, into, progress: fetched)
    panel.link.value = "https://example.org/from_far.zip"
    panel.fetch_button.click()
    panel.task.wait(30)
    assert panel.instrument.value == base.instruments / "from far.zip"
    assert (base.instruments / "from far.zip").read_bytes() == fetched.read_bytes()


def test_an_upload_with_a_gap_is_refused_and_the_next_one_works(base):
    panel = convert.ConvertPanel(base)
    sent = {"batch": "1", "id": "1", "name": "a.wav", "size": 9, "at": 3, "data": "AAAA"}
    panel.upload._area.value = json.dumps(sent)
    assert "interrupted" in said(panel) and panel.upload._answer.value == "1 3 no"
    upload(panel.upload, "b.wav", make_song(base.root / "b.wav").read_bytes())
    assert "svclib-done" in said(panel) and panel.song.value.name == "b.wav"


def test_of_several_files_the_good_ones_are_kept_and_the_bad_one_is_named(base):
    kept, message = [], widgets.Message()

    def keep(path):
        if path.read_bytes() == b"bad":
            raise StorageError("It is bad.")
        return path.name

    face = {"label": "<b>Upload</b>", "hint": "of things"}
    uploader = widgets.Uploader(message, keep, lambda names: kept.append(names[:]) or ", ".join(names), face)
    for name, data in (("a", b"1"), ("b", b"bad"), ("c", b"")):
        text = base64.b64encode(data).decode()
        sent = {"batch": "x", "id": name, "name": name, "size": len(data), "at": 0, "data": text}
        uploader._area.value = json.dumps(sent)
    assert kept[-1] == ["a", "c"] and "a, c" in message.widget.value and "b: It is bad." in message.widget.value
    assert "svclib-warning" in message.widget.value and "<b>Upload" not in uploader.children[0].value


@pytest.mark.case("user colab")
def test_on_colab_a_panel_works_in_its_callback_and_the_page_sees_all_of_it(base, monkeypatch):
    page = ColabPage(monkeypatch)
    threaded = convert.ConvertPanel(base)
    threaded.transfer_button.click()
    threaded.task.wait(60)
    assert "svclib-done" in said(threaded) and page.shows(threaded.message.widget) != said(
        threaded
    )  # is not seen there
    monkeypatch.setattr(workspace, "on_colab", lambda: True)
    panel, texts = convert.ConvertPanel(base), []
    panel.progress.label.observe(lambda change: texts.append(page.shows(panel.progress.label)), "value")
    panel.transfer_button.click()
    assert page.shows(panel.message.widget) == said(panel) and "svclib-done" in said(panel)
    assert len(page.shows(panel.results, "children")) == 1 and len(texts) > 1
    assert page.shows(panel.transfer_button, "disabled") is False
    monkeypatch.setattr(pipeline, "convert", interrupted)
    panel.transfer_button.click()
    assert "Interrupted" in page.shows(panel.message.widget) and not panel.task.busy
    assert page.shows(panel.transfer_button, "disabled") is False and "Runtime" in panel.cancel_button.description


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_recording_is_a_file_like_any_other_and_can_be_made_where_it_was_asked_for(base):
    assert "onclick" in convert.ConvertPanel(base).upload.children[0].value.split("svclib-record-button")[1]
    face = {"label": "a", "hint": "b"}
    assert "svclib-record-button" not in widgets.Uploader(widgets.Message(), print, str, face).children[0].value


def test_the_handlers_of_the_page_cannot_end_their_own_attributes(base):
    class Found(html.parser.HTMLParser):
        attributes = {}

        def handle_starttag(self, tag, attrs):
            self.attributes.update({(tag, name): value for name, value in attrs if name.startswith("on")})

    Found().feed(convert.ConvertPanel(base).upload.children[0].value)
    for key in (("input", "onchange"), ("button", "onclick")):
        assert Found.attributes[key].rstrip().endswith(")(this)") and "=>" in Found.attributes[key]


# ------------------------------------------------------------------------------------------------- what panels share


def test_a_users_mistake_is_its_sentence_and_a_bug_keeps_its_details():
    message = widgets.Message()
    message.guard(lambda: int("x"))()
    assert "invalid literal" in message.widget.value and "<details" not in message.widget.value
    message.guard(lambda: {}["k"])()
    assert "KeyError" in message.widget.value and "<details" in message.widget.value


@pytest.mark.case("H6")
def test_an_interrupt_in_a_handler_is_said():
    message = widgets.Message()

    def interrupted():
        raise KeyboardInterrupt

    assert message.guard(interrupted)() is None
    assert "Interrupted" in message.widget.value


def test_progress_shows_fraction_text_and_hides():
    bar = widgets.ProgressBar()
    assert bar.widget.layout.display == "none"
    bar(0.0, "<i>reading</i>")
    assert bar.widget.layout.display == "" and "&lt;i&gt;reading" in bar.label.value
    bar(1.0, "done")
    assert bar.bar.value == 1.0 and "done" in bar.label.value


def test_a_job_that_fails_frees_the_panel():
    message, states = widgets.Message(), []
    job = panels.BackgroundTask(message, states.append)

    def bad():
        raise ValueError("no good")

    assert job.start(bad)
    job.wait(10)
    assert states == [True, False] and not job.busy and "no good" in message.widget.value
    assert job.start(lambda: None)
    job.wait(10)


@pytest.mark.case("J10")
def test_work_that_cannot_begin_leaves_the_panel_usable(monkeypatch):
    states = []
    job = panels.BackgroundTask(widgets.Message(), states.append)

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as m:
        m.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError):
            job.start(lambda: None)
    assert states == [True, False] and not job.busy
    assert job.start(lambda: None)
    job.wait(10)
    assert states[2:] == [True, False]


@pytest.mark.case("J10")
def test_buttons_show_what_is_true_at_that_moment():
    message, seen = widgets.Message(), []
    job = panels.BackgroundTask(message, lambda busy: seen.append((busy, job.busy)))
    job.start(job.show)  # folders are read again while it works
    job.wait(10)
    job.show()
    assert seen == [(True, True), (True, True), (False, False), (False, False)]


@pytest.mark.case("H6")
def test_a_cancel_that_comes_too_late_does_not_hide_the_last_word():
    message = widgets.Message()
    job = panels.BackgroundTask(message, lambda busy: None)

    def task():
        message.show("Result 1 is below.", "done")
        job.start(lambda: None)
        job.cancel("Stopping.")
        assert "Stopping." in message.widget.value

    job.start(task)
    job.wait(10)
    assert "Result 1 is below." in message.widget.value
    job.cancel("Stopping.")
    assert "Stopping" not in message.widget.value  # nothing runs


def test_what_a_person_stopped_is_no_error_and_the_system_speaks_in_sentences(tmp_path):
    message = widgets.Message()
    message.show_error(Cancelled())
    assert "svclib-warning" in message.widget.value
    message.guard((tmp_path / "gone.wav").read_bytes)()
    assert "gone.wav" in message.widget.value and "no such file" in message.widget.value
    assert "[Errno" not in message.widget.value and "put it back" in message.widget.value


@pytest.mark.case("H5")
def test_an_upload_that_could_not_be_kept_can_be_tried_again(base, monkeypatch):
    panel, data = convert.ConvertPanel(base), make_song(base.root / "b.wav").read_bytes()

    def full(*args):
        raise StorageError("The disk is full.")

    with monkeypatch.context() as m:
        m.setattr(atomic_store, "commit_new", full)
        upload(panel.upload, "b.wav", data)
    assert "The disk is full" in said(panel)
    upload(panel.upload, "b.wav", data)
    assert panel.song.value == base.examples / "b.wav"


@pytest.mark.case("red 17")
def test_an_instrument_is_the_same_only_with_the_same_weights(base, tmp_path):
    """A run trained anew in the same folder: name, step and held-out loss (none) are those of the old instrument."""
    data, paths, run = toy.ToyDataset(), [], tmp_path / "run"
    data.validation_batches = lambda *_: []
    for seed in (0, 1):
        training.train(data, run, toy.preset(seed=seed), steps=3)
        panel = train.ExportPanel(train.CheckpointPanel(run), base, "the same")
        for _ in range(2):
            panel.export_button.click()
            paths.append(panel.path)
        expected = training.load_model(run)[0].state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in instrument.open(paths[-1]).model.state_dict().items())
        shutil.rmtree(run)
    assert [p.name for p in paths] == ["the same.zip", "the same.zip", "the same 2.zip", "the same 2.zip"]


@pytest.mark.case("red 32")
def test_the_menu_of_checkpoints_leaves_out_an_abandoned_branch(tmp_path):
    preset = toy.preset(validate_every_steps=5)
    training.train(toy.ToyDataset(), tmp_path, preset, steps=30)
    training.train(toy.ToyDataset(), tmp_path, preset, steps=21, from_step=20)
    entries = train.checkpoint_steps(tmp_path)
    assert (
        entries[-1].step == 21
        and {e.step for e in entries} <= {5, 10, 15, 20, 21}
        and sum(e.best for e in entries) == 1
    )


@pytest.mark.case("J11")
def test_a_picture_that_fails_stops_no_training(tmp_path, monkeypatch):
    view = train.TrainingView(tmp_path)

    def bad(*args):
        raise ZeroDivisionError("no picture")

    with monkeypatch.context() as m:
        m.setattr(training, "LogReader", bad)
        view.draw()
    assert "no picture" in view.message.widget.value


@pytest.mark.case("G2")
def test_a_live_curve_reads_only_what_was_logged_since_it_was_drawn(tmp_path, monkeypatch):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(1, 3001)))
    view = train.TrainingView(tmp_path)
    view.draw()
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text, **k: parsed.append(text) or loads(text, **k))
    with log.open("a") as file:
        file.writelines(json.dumps({"step": i, "loss": 0.5}) + "\n" for i in range(3001, 3011))
    view.draw()
    assert len(parsed) == 10 and "<img" in view.curve.value


def test_finding_the_recordings_opens_few_files_of_other_voices(empty, monkeypatch):
    for voice in ("anna", "bert", "carl"):
        for i in range(6):
            make_song(empty.audio / voice / f"{i}.wav")
    opened, probe = [], io.probe
    monkeypatch.setattr(io, "probe", lambda path: opened.append(path) or probe(path))
    name, found = prepare.recordings(empty)
    assert name == "carl" and len(found) == 6  # what was changed last
    assert len(opened) <= 3 + 6  # one of each voice, and those of the chosen one


def test_a_view_whose_browser_is_gone_stops_nothing_and_a_new_one_shows_all(tmp_path, monkeypatch):
    """The widgets' channels close in the middle of a training; a new view draws the same picture from the log alone."""
    monkeypatch.setattr(train.TrainingView, "DRAW_EVERY_S", 0.0)
    view = train.TrainingView(tmp_path)

    def watched(status):
        if status.step >= 10:
            for widget in (view.bar, view.numbers, view.messages_html, view.curve, view.message.widget):
                widget.close()
        view(status)

    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=20, on_progress=watched)
    assert (result.step, view.bar.value) == (20, 1.0)
    view.draw()
    again = train.TrainingView(tmp_path)
    again.draw()
    assert list(training.curves(tmp_path)["step"])[-1] == 20
    assert "data:image/png" in again.curve.value and again.curve.value == view.curve.value


def test_a_training_with_a_limit_shows_how_far_it_is_towards_that():
    status = types.SimpleNamespace(step=50, steps=1000, remaining_s=950.0)
    assert train.progress_summary(status, None, 50.0) == (0.05, 950.0)
    assert train.progress_summary(status, 1.0, 45.0) == (0.75, 15.0)
    assert train.progress_summary(status, 1.0, 70.0) == (1.0, 0.0)
    assert train.progress_summary(status, 60.0, 50.0) == (0.05, 950.0)  # the last step comes first
    assert train.progress_summary(types.SimpleNamespace(step=0, steps=10, remaining_s=None), 2.0, 30.0) == (
        0.25,
        90.0,
    )
    view = train.TrainingView(None, minutes=1.0)
    for step in (1, 31):
        shown = {"loss": 9.0, "validation_loss": None, "steps_per_s": 1.0, "last_saved_step": None, "message": ""}
        view(types.SimpleNamespace(step=step, steps=8000, remaining_s=8000.0 - step, last_saved_age_s=None, **shown))
        view._began_s -= 20.0
    assert view.bar.value == pytest.approx(1 / 3, abs=0.01) and ">40 s<" in view.numbers.value


@pytest.mark.case("user 02.3")
def test_a_training_is_seen_at_once_and_ends_as_html_that_a_saved_notebook_keeps(tmp_path, monkeypatch):
    """Messages come with their time, also when they return; a reloaded page has the run's own page; nothing is left
    that speaks of work that is over."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(1, 30)))
    put = []
    monkeypatch.setattr(widgets, "show_widget", lambda widget: put.append(widget) or put.append)
    monkeypatch.setattr(train.TrainingView, "DRAW_EVERY_S", 0.0)
    numbers = {"loss": 9.0, "validation_loss": None, "steps_per_s": 1.0, "last_saved_step": None}
    with train.TrainingView(tmp_path, minutes=1.0) as view:
        assert put == [view.widget] and "Loading" in view.numbers.value
        for message in (
            "Drive is full.",
            "Saved again.",
            "Saved again.",
            "Drive is full.",
            "Finishing this step, then",
        ):
            status = types.SimpleNamespace(step=5, steps=80, remaining_s=9.0, last_saved_age_s=None, message=message)
            vars(status).update(numbers)
            view(status)
        assert view.messages_html.value.count("Drive is full.") == 2 and "Finishing" in view.messages_html.value
        assert "of 1 min" in view.numbers.value
        assert "data:image/png" in (text := (tmp_path / train.PROGRESS).read_text("utf-8")) and "http-equiv" in text
    assert "http-equiv" not in (tmp_path / train.PROGRESS).read_text("utf-8")  # it is over
    kept = put[1]
    assert "<img" in kept and "5 of 80" in kept and "Finishing" not in kept and "Saved again." in kept


def test_a_second_interrupt_while_a_picture_is_drawn_stops_the_training(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "LogReader", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.TrainingView(tmp_path).draw()


@pytest.mark.case("user 02.2")
def test_a_short_training_ends_with_a_look_at_the_held_out_recordings(tmp_path):
    preset = toy.preset(validate_every_steps=10**6)
    result = training.train(toy.ToyDataset(), tmp_path / "run", preset, steps=10**6, minutes=0.3 / 60)
    assert result.reason == "minutes" and result.validation_loss is not None
    panel = train.CheckpointPanel(tmp_path / "run")
    assert panel.value == result.step and panel.view.value.count("<audio") >= 2


@pytest.mark.case("user 02.1", "user 02.4", "user 02.5")
def test_an_instrument_is_exported_on_request_with_its_texts_and_a_name_of_its_own(base, tmp_path, monkeypatch):
    run = tmp_path / "mine"
    training.train(toy.ToyDataset(), run, toy.preset(validate_every_steps=5), steps=10)
    before = set(base.instruments.iterdir())
    panel = train.ExportPanel(train.CheckpointPanel(run), base, "", toy.ToyDataset())
    assert set(base.instruments.iterdir()) == before and "Nothing is exported" in said(panel)
    panel.consent.value, panel.licence.value = "Ann agreed on 1 May.", "CC0"
    with monkeypatch.context() as m:
        m.setattr(training, "export", interrupted)
        panel.export_button.click()
    panel.download_button.click()
    assert "nothing to download" in said(panel)
    for wanted in ("mine.zip", "mine.zip"):  # the same again is not written again
        panel.export_button.click()
        assert wanted in said(panel) and "svclib-done" in said(panel)
    panel.licence.value = "ask me"
    panel.export_button.click()
    made = {path.name: instrument.open(path) for path in set(base.instruments.iterdir()) - before}
    assert {name: opened.name for name, opened in made.items()} == {"mine.zip": "mine", "mine 2.zip": "mine 2"}
    texts = [(o.info["consent"], o.info["licence"]) for o in (made["mine.zip"], made["mine 2.zip"])]
    assert texts == [("Ann agreed on 1 May.", "CC0"), ("Ann agreed on 1 May.", "ask me")]
    assert "base64" not in said(panel)
    panel.download_button.click()
    assert 'download="mine 2.zip"' in said(panel)


def test_a_run_too_short_for_previews_says_so(tmp_path):
    calls = iter([False] * 3 + [True] * 99)
    preset = toy.preset(validate_every_steps=50)
    training.train(toy.ToyDataset(), tmp_path / "run", preset, cancelled=lambda: next(calls))
    panel = train.CheckpointPanel(tmp_path / "run")
    assert "No previews yet" in said(panel) and "choose another" not in said(panel)


def test_messages_go_when_what_they_speak_of_is_over(monkeypatch):
    fit = types.SimpleNamespace(settings=None)
    monkeypatch.setattr(training, "fits", lambda settings, preset: None)
    panel = train.PresetPanel(fit, "no_such_preset")
    assert "no_such_preset" in said(panel)
    panel.menu.value = "ddsp"
    assert said(panel) == "" and "100 harmonics" in panel.about.value


def test_hints_reach_sliders_in_both_versions():
    slider = widgets.tip(W.IntSlider(), "text")
    assert "text" in (getattr(slider, "tooltip", None), getattr(slider, "description_tooltip", None))
