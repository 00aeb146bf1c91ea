"""Truths about the lesson's panel: only what has steps is offered, nothing runs before Run, progress is there within a
second, Cancel stops within a step, a mistake is a sentence, Export overwrites nothing."""

import json
import os
import threading
import time

import panels
import pytest
from diffusion_files import make_instrument, make_song
from panels import said

from svclib.analysis import lesson
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffwave import model as diffwave
from svclib.notebooks import visualize as widgets_lesson
from svclib.utils import workspace

pytestmark = pytest.mark.case("L6")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = workspace.base_folder(base=tmp_path_factory.mktemp("lesson") / "home")
    make_instrument(home.instruments, "voice")
    panels.make_instrument(home.instruments, "ddsp one")
    make_song(home.examples / "a song.wav")
    return home


def panel_of(base):
    panel = widgets_lesson.LessonPanel(base, 0.0, 0.5)
    panel.steps.value = 8
    return panel


@pytest.mark.case("H1")
def test_only_instruments_with_steps_are_offered_and_nothing_runs_by_itself(base, tmp_path):
    panel = widgets_lesson.LessonPanel(base)
    assert [label for label, _ in panel.instrument.options] == ["voice.zip"] and not panel.task.busy
    assert (panel.instrument.value, panel.song.value) == (base.instruments / "voice.zip", base.examples / "a song.wav")
    make_song(base.examples / "later.wav", 330.0)
    panel.song.value = base.examples / "a song.wav"
    panel.refresh_button.click()
    assert len(panel.song.options) == 2 and panel.song.value == base.examples / "a song.wav"
    empty = widgets_lesson.LessonPanel(workspace.base_folder(base=tmp_path / "home"))
    assert "Make one with notebook 02" in said(empty)
    empty.run()
    assert "Make one with notebook 02" in said(empty)
    empty.export()
    assert "Run first" in said(empty)


@pytest.mark.case("user 04.14")
def test_nothing_of_a_page_stays_in_a_notebook_and_a_browser_gets_it_again(monkeypatch, capsys):
    """What the cell puts out and, after the browser's word that it has the page, what is saved of the widgets."""
    shows = panels.ColabPage(monkeypatch).shows
    panel = widgets_lesson.ExamplePanel()
    view, mailbox = panel.view, panel.view._mailbox
    frame = widgets_lesson.page.frame(lesson.example())

    def saved_bytes():
        return len(json.dumps([shows(widget) for widget in (view._place, view._area, mailbox)]))

    assert mailbox.value.startswith(frame)  # with the first message: it waits for no cell
    panel._ipython_display_()
    assert "open the file" in capsys.readouterr().out and len(json.dumps(panel._repr_mimebundle_())) < 1000
    for said_by_page, sent in (("taken 1", ""), ("wanted 2", frame), ("taken 3", "")):
        view._area.value = said_by_page
        assert shows(mailbox).partition("<img")[0] == sent and view._area.value == ""
    assert saved_bytes() < 5000


@pytest.mark.case("user 04.1")
@pytest.mark.parametrize("on_colab", [False, True])
def test_the_example_is_written_by_a_button_and_needs_no_folder_before_and_no_drive(tmp_path, monkeypatch, on_colab):
    monkeypatch.setattr(workspace, "on_colab", lambda: on_colab)
    monkeypatch.setattr(workspace, "COLAB_DISK", tmp_path / "content")
    monkeypatch.setattr(workspace, "_mount_drive", lambda: pytest.fail("Drive was asked for"))
    (tmp_path / "content").mkdir()
    panel = widgets_lesson.ExamplePanel(tmp_path / "home")
    assert [path.name for path in tmp_path.iterdir()] == ["content"]
    panel.save_button.click()
    path = tmp_path / ("content/lesson.html" if on_colab else "home/output/lesson.html")
    assert path.read_text("utf-8") == lesson.example() and "lesson.html" in said(panel)


def test_a_vocoder_of_waves_in_the_folder_leaves_the_example_in_place(tmp_path):
    home = workspace.base_folder(base=tmp_path / "home")
    alone = diffwave.DiffWaveSettings(channels=8, n_layers=2, condition="none", n_steps=4, fast_etas=())
    vocoder = diffwave.DiffWaveSettings(channels=8, n_layers=2, condition_dims=6, n_steps=4, fast_etas=())
    mel = FeatureSettings(8000, 64, mel=MelConfig(8000, 256, 256, 64, 12, 0.0, 4000.0))
    save_wave(home.instruments / "a vocoder.zip", vocoder, mel)
    panel = widgets_lesson.WavesPanel(home)
    assert "a vocoder is a vocoder and needs a song" in said(panel) and panel.view.text == lesson.example_diffwave()
    save_wave(home.instruments / "sea.zip", alone, FeatureSettings(8000, 64))
    panel = widgets_lesson.WavesPanel(home)
    assert "Your instrument sea." in said(panel) and "sea at work" in panel.view.text
    listed = {entry.name: entry.is_vocoder for entry in instrument.list_folder(home.instruments)}
    assert listed == {"a vocoder": True, "sea": False}
    assert widgets_lesson.LessonPanel(home).instrument.value.name == "sea.zip"  # the newest
    os.utime(make_instrument(home.instruments, "voice"), (1e9, 1e9))
    assert widgets_lesson.LessonPanel(home).instrument.value.name == "voice.zip"  # a diffusion instrument comes first


def save_wave(path, settings, features):
    model = instrument.build_model(settings, features, None, 0)
    instrument.save(path, model, features, panels.STATISTICS, created="2026-11-21")


def test_run_shows_progress_within_a_second_and_ends_in_a_lesson_that_export_writes(base):
    panel = panel_of(base)
    seen, began = [], time.monotonic()
    panel.progress.label.observe(lambda change: seen.append((change["new"], time.monotonic() - began)), "value")
    panel.run_button.click()
    panel.task.wait(120)
    assert "lesson of eight pages" in said(panel), said(panel)
    assert seen[0][1] < 1.0 and "opening" in seen[0][0] and len(seen) > 2
    assert panel.progress.widget.layout.display == "none" and not panel.run_button.disabled
    assert panel.view._mailbox.value.startswith("<iframe") and 'sandbox="allow-scripts"' in panel.view._mailbox.value
    panel.export_button.click()
    panel.export_button.click()
    written = sorted(base.output.glob("*.html"))
    assert len(written) == 2 and written[0].read_text("utf-8") == panel.view.text == written[1].read_text("utf-8")


@pytest.mark.case("user 04.7", "user 04.8")
def test_singer_voice_and_words_reach_the_lesson_and_its_file_has_a_link(base, monkeypatch):
    asked = []

    def from_file(opened, path, options, *more):
        asked.append((options, more[-1]))
        return "<p>page</p>", "a lesson"

    monkeypatch.setattr(lesson, "from_file", from_file)
    panel = panel_of(base)
    assert [name for name, _ in panel.singer.options] == ["ann", "bea"]
    panel.song.value, panel.singer.value, panel.words.value = base.examples / "a song.wav", "bea", True
    panel.run_button.click()
    panel.task.wait(30)
    ((options, voice),) = asked
    assert (options.singer, options.words, options.steps, voice) == ("bea", True, 8, base.audio / "bea")
    panel.export_button.click()
    assert 'download="a song - voice' in said(panel)


def test_a_recording_of_the_voice_can_be_listened_to(base, monkeypatch):
    taken = []
    monkeypatch.setattr(lesson, "make", lambda voice, song, options, target, **watch: taken.append(target) or 1 / 0)
    folder = base.audio / "ann"
    panels.make_song(folder / "take.wav", 330.0, seconds=2.0)
    opened = instrument.open(base.instruments / "voice.zip")
    for voice in (folder, base.audio / "nobody", None):
        with pytest.raises(ZeroDivisionError):
            lesson.from_file(opened, base.examples / "a song.wav", lesson.LessonOptions(0.0, 0.5, 8), voice=voice)
    name, samples, rate_hz = taken[0]
    assert "ann" in name and len(samples) == 0.5 * rate_hz and taken[1:] == [None, None]


def test_cancel_stops_within_a_step_and_a_mistake_is_a_sentence(base, monkeypatch):
    panel = panel_of(base)
    begun, real = threading.Event(), lesson.ablation.run

    def sing(*arguments, **options):
        begun.set()
        panel.task._cancel.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(lesson.ablation, "run", sing)
    panel.run_button.click()
    assert begun.wait(60), said(panel)
    panel.cancel_button.click()
    panel.task.wait(60)
    assert "cancelled" in said(panel), said(panel)
    assert panel.view.text == "" and not panel.run_button.disabled
    panel.start_s.value = 50000.0
    panel.run_button.click()
    panel.task.wait(60)
    assert "holds nothing" in said(panel) and "50000 s" in said(panel)  # as it was typed


@pytest.mark.case("H4")
def test_a_lesson_is_named_after_what_it_shows_although_the_choice_changed(base, monkeypatch):
    began, go = threading.Event(), threading.Event()

    def from_file(opened, path, *more):
        began.set()
        go.wait(30)
        return "<p>page</p>", f"a lesson of {path.stem}"

    monkeypatch.setattr(lesson, "from_file", from_file)
    make_song(base.examples / "zz other.wav")
    panel = widgets_lesson.LessonPanel(base)
    panel.song.value = base.examples / "zz other.wav"
    panel.refresh_button.click()
    assert panel.song.value == base.examples / "zz other.wav"  # reading the folders keeps the choice
    panel.run_button.click()
    assert began.wait(30) and not panel.cancel_button.disabled
    panel.song.value = base.examples / "a song.wav"
    panel.cancel_button.click()
    assert "Stopping" in said(panel)
    go.set()
    panel.task.wait(30)
    assert panel.title == "zz other - voice" and "a lesson of zz other" in said(panel)
    assert panel.progress.widget.layout.display == "none"
