"""The pitch lane. Without a browser: edits that the page sends are kept beside the song and used. In one, in a page of
the HTML that ipywidgets gets: notes are dragged, drawn, snapped and taken back, and the file follows."""

import html
import json
import re

import browsing
import numpy as np
import panels
import pytest
import soundfile

from svclib.audio import units
from svclib.conversion import f0_edit
from svclib.conversion import song as songs
from svclib.conversion.f0_edit import Edit, F0Edit
from svclib.notebooks.convert import ConvertPanel
from svclib.utils import workspace

MIDI = (57.0, 60.3, 64.0)  # one second each; the middle one is 30 cents sharp


@pytest.fixture
def base(tmp_path):
    songs._songs.clear()
    made = workspace.base_folder(base=tmp_path / "home")
    panels.make_instrument(made.instruments)
    t = np.arange(16000) / 16000
    notes = [sum(np.sin(2 * np.pi * k * units.midi_to_hz(m) * t) / k for k in range(1, 9)) for m in MIDI]
    fade = np.clip(np.minimum(t, 1 - t) / 0.05, 0, 1)
    soundfile.write(made.examples / "song.wav", np.concatenate([0.2 * fade * note for note in notes]), 16000)
    return made


def send(panel, edits, song="song.wav"):
    """A message as the page sends it."""
    message = {"format": f0_edit.FORMAT, "format_version": 1, "song": song, "edits": edits}
    panel.lane._inbox.value = json.dumps(message)


def opened(base):
    panel = ConvertPanel(base)
    panel.edit_pitch()
    panel.task.wait(60)
    return panel


def lane_data(panel):
    return json.loads(html.unescape(re.search(r'data-lane="(.*?)"', panel.lane._face.value)[1]))


def result(panel, base):
    panel.full_output.value = False
    panel.transfer()
    panel.task.wait(60)
    newest = max(base.output.glob("*.wav.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())["controls"]


def test_the_page_gets_pitch_notes_and_keys(base):
    data = lane_data(opened(base))
    assert (data["name"], data["edits"], data["seconds"]) == ("song.wav", [], 3.0)
    assert len(data["keys"]["C major"]) == 7 and len(data["keys"]) == 25 and data["key"] in data["keys"]
    times = data["first_s"] + data["step_s"] * np.arange(len(data["cents"]))
    for (start, stop), midi in zip(data["notes"], MIDI, strict=True):
        inside = np.array([c for c, t in zip(data["cents"], times, strict=True) if start <= t < stop])
        assert np.median(inside) == pytest.approx(100 * midi, abs=8)


def test_edits_are_kept_beside_the_song_and_sung(base):
    panel = opened(base)
    send(panel, [{"start_s": 1.0, "stop_s": 2.0, "shift_cents": -30}])
    path = base.examples / "song.wav.f0.json"
    assert f0_edit.read(path) == F0Edit((Edit(1.0, 2.0, -30.0),), "song.wav") and path.name in panels.said(panel)
    assert result(panel, base)["f0_edit"]["edits"][0]["shift_cents"] == -30
    panel.edited.value = False
    assert "f0_edit" not in result(panel, base)
    again = opened(base)  # a new kernel finds them; the file is no song that cannot be used
    assert lane_data(again)["edits"] == [{"start_s": 1.0, "stop_s": 2.0, "shift_cents": -30.0}]
    assert "cannot be used" not in panels.said(ConvertPanel(base))
    send(again, [])
    assert f0_edit.read(path).edits == ()


def test_what_was_ticked_when_transfer_was_pressed_is_sung(base, monkeypatch):
    panel, cached = opened(base), songs.cached_song
    send(panel, [{"start_s": 1.0, "stop_s": 2.0, "shift_cents": -30}])
    assert "(1 edit)" in panels.said(panel)

    def slow(*given, **more):
        panel.edited.value = False
        return cached(*given, **more)

    monkeypatch.setattr(songs, "cached_song", slow)
    assert "f0_edit" in result(panel, base)


def test_nothing_is_written_for_another_song_or_from_nonsense_and_a_damaged_file_stays(base):
    panel = opened(base)
    path = base.examples / "song.wav.f0.json"
    send(panel, [{"start_s": 0, "stop_s": 1, "shift_cents": 1}], song="other.wav")
    send(panel, [{"start_s": 5}])
    panel.lane._inbox.value = "{"
    assert not path.exists() and "svclib-error" in panels.said(panel)
    panel.lane.hide()
    send(panel, [{"start_s": 0, "stop_s": 1, "shift_cents": 1}])
    assert not path.exists()
    path.write_text("mine")
    panel = opened(base)
    assert "song.wav.f0.json" in panels.said(panel) and panel.lane._face.value == ""
    assert path.read_text() == "mine"


@pytest.mark.browser
def test_notes_are_dragged_drawn_snapped_and_taken_back(base, tmp_path):
    browsing.require_chromium()
    panel, path = opened(base), base.examples / "song.wav.f0.json"
    with browsing.browser(1000, 600) as page:
        seen = browsing.watch(page, "about:blank")
        frame = '<div class="svclib-lane"><div></div><textarea hidden></textarea></div>'
        page.evaluate("html => { document.body.innerHTML = html }", frame)
        page.evaluate("html => { document.querySelector('.svclib-lane div').innerHTML = html }", panel.lane._face.value)
        page.wait_for_selector("[data-ready=yes]")
        box = page.locator("canvas").bounding_box()
        low, high = 5700 - 900, 6400 + 900  # as pitch_lane.js: the song's range and 9 semitones

        def at(seconds, cents):
            return box["x"] + seconds / 3 * box["width"], box["y"] + (high - cents) / (high - low) * box["height"]

        def drag(*points):
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=8)
            page.mouse.up()

        def edits():
            panel.lane._inbox.value = page.locator("textarea").input_value()
            assert "svclib-done" in panels.said(panel)
            return f0_edit.read(path).edits

        drag(at(0.5, 5700), at(0.5, 5900))
        (moved,) = edits()
        assert moved.shift_cents == pytest.approx(200, abs=20) and moved.start_s < 0.15 and 0.85 < moved.stop_s <= 1.1
        page.locator(".t-lane-key").select_option("chromatic")
        drag(at(1.05, 7000), at(1.98, 7000))  # marks the second note
        page.locator(".t-lane-snap").click()
        snapped = edits()[1]
        assert snapped.shift_cents == pytest.approx(-30, abs=8) and 0.9 < snapped.start_s < 1.2
        page.locator(".t-lane-tool").select_option("draw")
        drag(at(2.2, 6400), at(2.5, 6600), at(2.8, 6400))
        drawn = edits()[2]
        assert len(drawn.curve) > 5 and max(c for _, c in drawn.curve) == pytest.approx(6600, abs=25)
        page.screenshot(path=str(tmp_path / "lane.png"))
        page.locator(".t-lane-undo").click()
        assert edits() == (moved, snapped)
        page.locator(".t-lane-tool").select_option("move")
        page.mouse.click(*at(0.5, 5900))
        page.keyboard.press("ArrowDown")
        assert edits()[2].shift_cents == -100
        assert "3 edits" in page.locator(".t-lane-state").inner_text()
        assert seen == {"errors": [], "outside": []}
    assert len(result(panel, base)["f0_edit"]["edits"]) == 3


@pytest.mark.case("user playhead")
@pytest.mark.browser
def test_the_place_in_a_sound_that_plays_is_a_line_in_the_lane(base):
    browsing.require_chromium()
    panel = opened(base)
    panel.listen()
    lane = '<div class="svclib-lane"><div></div><textarea></textarea></div>'
    frame = f'<div class="svclib-convert"><div id="sound"></div>{lane}</div>'
    white = """at => { const c = document.querySelector('canvas'), x = Math.round(at / 3 * c.width);
        const data = c.getContext('2d').getImageData(x, 0, 3, c.height).data;
        return data.filter((v, i) => i % 4 === 0 && Math.min(v, data[i + 1], data[i + 2]) > 250).length / c.height; }"""
    with browsing.browser(1000, 600) as page:
        page.evaluate("html => { document.body.innerHTML = html }", frame)
        page.evaluate("html => { document.querySelector('#sound').innerHTML = html }", panel.player.value)
        page.evaluate("html => { document.querySelector('.svclib-lane div').innerHTML = html }", panel.lane._face.value)
        page.wait_for_selector("[data-ready=yes]")
        assert page.evaluate(white, 1.5) < 0.5
        page.evaluate("document.querySelector('audio').currentTime = 1.5")
        page.wait_for_function(f"({white})(1.5) > 0.9")
        page.evaluate("document.querySelector('audio').currentTime = 2.5")
        page.wait_for_function(f"({white})(2.5) > 0.9 && ({white})(1.5) < 0.5")
