"""Truths about the lesson's panel: only what has steps is offered, nothing runs by itself, a missing choice is said."""

import pytest
import toy
from test_diffusion_singing import FEATURES, SETTINGS, MelDataset
from test_widgets import make_instrument, make_song, said

from svclib import folders, training, widgets_lesson


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
