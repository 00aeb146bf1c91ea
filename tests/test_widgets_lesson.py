"""Truths about the lesson's panel: nothing runs before Run, progress is there within a second, Cancel stops within a
step, a mistake is a sentence, Export overwrites nothing."""

import threading
import time

import pytest
import toy
from test_diffusion_singing import FEATURES, SETTINGS, MelDataset
from test_widgets import make_instrument, make_song, said

from svclib import folders, lesson, training, widgets_lesson


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    home = folders.base_folder(base=tmp_path_factory.mktemp("lesson") / "home")
    preset = toy.preset(SETTINGS, FEATURES, steps=1, segment_s=0.5, validate_every_steps=1)
    training.train(MelDataset(), home.runs / "run", preset)
    training.export(home.runs / "run", home.instruments / "voice.zip", "last")
    make_instrument(home.instruments, "ddsp one")
    make_song(home.examples / "a song.wav")
    return home


def test_only_instruments_with_steps_are_offered_and_nothing_runs_by_itself(base, tmp_path):
    panel = widgets_lesson.lesson_panel(base)
    assert [label for label, _ in panel.instrument.options] == ["voice"] and not panel.job.busy
    empty = widgets_lesson.lesson_panel(folders.base_folder(base=tmp_path / "home"))
    assert "Train one in notebook 02" in said(empty)
    empty.run()
    assert "Choose an instrument" in said(empty)
    empty.export()
    assert "Run first" in said(empty)


def test_run_shows_the_lesson_and_export_writes_it(base):
    panel = widgets_lesson.lesson_panel(base, 0.0, 0.5)
    panel.steps.value = 8
    seen, began = [], time.monotonic()
    layout = panel.progress.widget.layout
    layout.observe(lambda change: seen.append((change["new"], time.monotonic() - began)), "display")
    panel.run()
    panel.job.wait(120)
    assert seen[0][0] == "" and seen[0][1] < 1.0  # progress is there within a second
    assert "lesson of eight pages" in said(panel), said(panel)
    assert panel.view.value.startswith("<iframe") and 'sandbox="allow-scripts"' in panel.view.value
    panel.export()
    panel.export()
    written = sorted(base.output.glob("*.html"))
    assert len(written) == 2 and written[0].read_text("utf-8") == panel.text == written[1].read_text("utf-8")


def test_cancel_stops_within_a_step_and_a_mistake_is_a_sentence(base, monkeypatch):
    panel = widgets_lesson.lesson_panel(base, 0.0, 0.5)
    begun, real = threading.Event(), lesson.study.sing

    def sing(*arguments, **options):
        begun.set()
        panel.job._cancel.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(lesson.study, "sing", sing)
    panel.run()
    assert begun.wait(60), said(panel)
    panel.cancel_button.click()
    panel.job.wait(60)
    assert "cancelled" in said(panel) and panel.view.value == "" and not panel.run_button.disabled
    panel.start.value = 500.0
    panel.run()
    panel.job.wait(60)
    assert "holds nothing" in said(panel)
