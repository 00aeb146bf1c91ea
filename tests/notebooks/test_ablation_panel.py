"""Truths about the study panel, without a browser: it runs, cancels, compares, renders, keeps; it overwrites nothing,
says what is missing, and shows names as text."""

import csv
import functools
import threading

import numpy as np
import pytest
from diffusion_files import make_instrument, make_song
from panels import NASTY, said

from svclib.analysis import ablation, plots, trace
from svclib.analysis.plots import ablation as views
from svclib.conversion import song
from svclib.models import instrument
from svclib.models.diffusion import samplers
from svclib.notebooks import ablation as widgets_study
from svclib.utils import workspace


@pytest.fixture
def empty(tmp_path):
    song._songs.clear()
    return workspace.base_folder(base=tmp_path / "home")


@pytest.fixture
def base(empty):
    make_instrument(empty.instruments)
    make_song(empty.examples / "b.wav", 330.0)
    make_song(empty.examples / "a.wav")  # the newest is chosen
    return empty


def panel_of(base, **choices):
    panel = widgets_study.AblationPanel(base)
    panel.seconds.value, panel.steps.value = 0.8, "4"
    for name, value in choices.items():
        getattr(panel, name).value = value
    return panel


def run(panel, **choices):
    for name, value in choices.items():
        getattr(panel, name).value = value
    panel.run_button.click()
    panel.task.wait(120)
    assert "svclib-error" not in said(panel), said(panel)


@pytest.mark.case("H1")
def test_nothing_is_computed_before_run_and_what_is_missing_is_said(empty, monkeypatch):
    monkeypatch.setattr(instrument, "open", lambda *a: pytest.fail("an instrument was opened"))
    panel = panel_of(empty)
    assert panel.run_button.disabled and "no diffusion instrument" in said(panel) and "diffusion_small" in said(panel)
    panel.run_button.click()
    make_instrument(empty.instruments)
    panel.refresh_button.click()
    assert "There is no song" in said(panel)
    make_song(empty.examples / "a.wav")
    panel.refresh_button.click()
    assert not panel.run_button.disabled and said(panel) == "" and panel.viewer.cards == {}
    assert [v for _, v in panel.singer.options] == ["ann", "bea"] and panel.other_singer.value == "bea"


def test_runs_views_sounds_and_files(base):
    panel = panel_of(base, probe=True)
    assert "+12 calls" in panel.probe.description
    run(panel)
    assert "svclib-done" in said(panel)  # one condition at a time is off, which the model knows
    assert list(panel.viewer.cards) == ["1: as asked, a"] and "Run 1" in said(panel)
    assert "<img" in panel.viewer.shown.value
    run(panel, change="melody transposed", semitones=7.0, probe=False)
    run(panel, change="the whole other song", other_song=base.examples / "b.wav")
    first, second, third = (card.result for card in panel.viewer.cards.values())
    assert (third.excerpt.name, second.label) == ("b", "melody +7 semitones")
    np.testing.assert_array_equal(first.trace.x_t[0], second.trace.x_t[0])
    ratio = second.trace.conditions["f0_hz"] / first.trace.conditions["f0_hz"]
    np.testing.assert_allclose(ratio, 2 ** (7 / 12), rtol=1e-5)
    panel.viewer.a.value, panel.viewer.b.value = list(panel.viewer.cards)[:2]
    pictures = set()
    for name in views.VIEWS:
        panel.viewer.look.value = name
        assert "<img" in panel.viewer.shown.value, (name, panel.viewer.shown.value)
        pictures.add(panel.viewer.shown.value)
    assert len(pictures) == len(views.VIEWS)
    panel.viewer.a.value = list(panel.viewer.cards)[2]
    panel.viewer.look.value = "influence at one step"
    assert "No influence was measured" in panel.viewer.shown.value and panel.viewer.view is None
    panel.viewer.a.value, panel.viewer.look.value = list(panel.viewer.cards)[0], "step matrix"
    for button in (*panel.viewer.keep_buttons, panel.viewer.keep_buttons[0]):
        button.click()
        assert "svclib-done" in said(panel)
    kept = sorted(p.name for p in base.output.iterdir())
    assert len(kept) == 5 and {p.rsplit(".", 1)[1] for p in kept} == {"csv", "png", "svg", "npz"}
    table = next(p for p in base.output.iterdir() if p.suffix == ".csv")
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    np.testing.assert_array_equal(
        [[float(x) for x in row[1:]] for row in rows[1:]], [row[1:] for row in panel.viewer.view.rows]
    )
    again = trace.load(next(p for p in base.output.iterdir() if p.suffix == ".npz"))
    np.testing.assert_array_equal(again.x0_hat, first.trace.x0_hat)
    panel.render_button.click()
    panel.task.wait(120)
    assert "5 sounds" in said(panel) and panel.viewer.players.value.count("<audio") == 3
    assert panel.viewer.look.value == "metrics per step" and "F0 correlation" in panel.viewer.shown.value
    panel.remove_button.click()
    assert len(panel.viewer.cards) == 2 and panel.viewer.players.value.count("<audio") == 1  # the next run's result


def test_pins_and_steps(base):
    panel = panel_of(base)
    run(panel)
    assert panel.viewer.step.max == 5
    for step in (5, 2, 2):
        panel.viewer.step.value = step
        panel.viewer.pin_button.click()
    assert panel.viewer.pinned == [1, 4] and len(panel.viewer.view.rows) == 2
    assert panel.viewer.view.rows[1][0] == "result" and float(panel.viewer.view.rows[0][1]) == 0
    panel.viewer.unpin_button.click()
    assert panel.viewer.pinned == [] and len(panel.viewer.view.rows) == 3


@pytest.mark.case("user 04.4", "user 04.6")
def test_several_samplers_and_steps_are_runs_named_by_what_differs_that_sound_at_once(base):
    panel = panel_of(base, steps="3, 4")
    panel.samplers.value = ("dpmpp", "ddim")
    run(panel)
    methods = [(card.result.trace.info["method"], len(card.result.trace)) for card in panel.viewer.cards.values()]
    assert sorted(methods) == [("ddim", 3), ("ddim", 4), ("dpmpp", 3), ("dpmpp", 4)]
    first, *others = panel.viewer.cards
    assert first == "1: as asked, a" and len({name.partition(": ")[2] for name in others}) == 3
    assert all("as asked" not in name and ", a" not in name for name in others)
    assert panel.viewer.players.value.count("<audio") == 1 and "4: " in panel.viewer.players.value
    noise = [card.result.trace.x_t[0] for card in panel.viewer.cards.values()]
    assert all(np.array_equal(noise[0], other) for other in noise[1:])
    panel.steps.value = "many"
    panel.run_button.click()
    assert "whole numbers" in said(panel) and len(panel.viewer.cards) == 4
    panel.clear_button.click()
    assert panel.viewer.cards == {} and panel.viewer.players.value == ""


@pytest.fixture
def slow(held):
    return held(samplers, "sample")


def test_cancel_keeps_what_was_there(base, slow):
    began, go = slow
    panel = panel_of(base)
    panel.run_button.click()
    assert began.wait(30) and panel.run_button.disabled and not panel.cancel_button.disabled
    assert panel.progress.widget.layout.display == "" and panel.progress.label.value  # at once
    panel.run_button.click()
    assert "Still working" in said(panel)
    panel.cancel_button.click()
    go.set()
    panel.task.wait(60)
    assert panel.viewer.cards == {} and "cancelled" in said(panel) and not panel.run_button.disabled
    run(panel)
    assert len(panel.viewer.cards) == 1


@pytest.mark.case("user 04.13")
def test_what_cannot_be_is_a_sentence(base, monkeypatch):
    panel = panel_of(base, start_s=50000.0)
    panel.run_button.click()
    panel.task.wait(60)
    assert "from 50000 s on holds nothing of it" in said(panel) and panel.viewer.cards == {}
    monkeypatch.setattr(widgets_study, "MAX_RUNS", 0)
    panel.run_button.click()
    assert "remove some" in said(panel)
    panel.change.value = "checkpoints of a training"
    panel.run_button.click()
    assert "Choose a training" in said(panel) or "remove some" in said(panel)
    monkeypatch.setattr(widgets_study, "MAX_RUNS", 8)
    monkeypatch.setattr(ablation, "run", lambda *a, **k: 1 / 0)
    panel.start_s.value, panel.change.value = 0.0, "nothing"
    panel.run_button.click()
    panel.task.wait(60)
    assert "ZeroDivisionError" in said(panel) and not panel.run_button.disabled


def test_a_model_that_never_saw_its_nulls_says_so(empty):
    make_instrument(empty.instruments, condition_dropout=0.0)
    make_song(empty.examples / "a.wav")
    panel = panel_of(empty)
    run(panel, change="timbre off")
    assert "Out of distribution" in said(panel) and len(panel.viewer.cards) == 1


def test_names_stay_text(empty):
    make_instrument(empty.instruments, name="x")
    make_song(empty.examples / "&lt;b&gt;b' onerror=alert(1).wav")
    panel = panel_of(empty)
    panel.viewer.look.value = "step matrix"
    run(panel)
    panel.render_button.click()
    panel.task.wait(60)
    everything = panel.viewer.shown.value + panel.viewer.listing.value + said(panel) + panel.viewer.players.value
    assert "&amp;lt;b&amp;gt;" in everything and "' onerror" not in everything and NASTY not in everything


def test_checkpoints_of_a_training(base, monkeypatch):
    from svclib.notebooks import train

    folder = base.runs / "mine" / "checkpoints"
    folder.mkdir(parents=True)
    loaded = [instrument.open(make_instrument(base.instruments, f"c{i}", i)) for i in (1, 1, 2)]
    by_step = dict(zip((10, 20, 30), loaded, strict=True))
    entries = [train.CheckpointEntry(step, None, step == 30) for step in by_step]
    monkeypatch.setattr(train, "checkpoint_steps", lambda run: entries)

    def load_model(run, step):
        return by_step[step].model, {"statistics": by_step[step].statistics}

    monkeypatch.setattr(widgets_study.training, "load_model", load_model)
    panel = panel_of(base)
    panel.change.value = "checkpoints of a training"
    assert panel.checkpoints.value == (10, 30) and panel.strength.layout.display == "none"
    assert panel.run.layout.display == ""
    run(panel, checkpoints=(10, 20, 30))
    panel.viewer.look.value = "all runs"
    values = [[float(x) for x in row[1:]] for row in panel.viewer.view.rows]
    assert values[0][1] == 0 and values[0][2] == values[2][0] > 0.1
    assert list(panel.viewer.cards) == ["1: training step 10, a", "2: training step 20", "3: training step 30"]


@pytest.mark.case("H1")
def test_buttons_that_need_a_run_say_so_and_a_failing_view_leaves_no_other_picture(base, monkeypatch):
    panel = panel_of(base)
    for button in (panel.render_button, panel.remove_button, *panel.viewer.keep_buttons):
        button.click()
        assert "press Run first" in said(panel)
        panel.message.show("")
    run(panel)
    assert panel.viewer.view is not None
    monkeypatch.setattr(views, "draw_view", lambda *a: 1 / 0)
    panel.viewer.look.value = "step matrix"
    assert "ZeroDivisionError" in said(panel) and panel.viewer.shown.value == "" and panel.viewer.view is None
    go = threading.Event()
    panel.task.start(lambda: go.wait(30))
    panel.remove_button.click()  # as by a second click before the button was seen to be off
    assert len(panel.viewer.cards) == 1 and "Still working" in said(panel)
    go.set()
    panel.task.wait(30)


@pytest.mark.case("L7")
def test_pictures_while_it_samples(base, monkeypatch):
    panel = panel_of(base, probe=True)
    monkeypatch.setattr(plots.LivePreview, "__init__", functools.partialmethod(plots.LivePreview.__init__, every_s=0.0))
    seen = []
    panel.live.observe(lambda change: seen.append(change["new"]), "value")
    run(panel)
    assert "begins with" in seen[0] and seen[0].count("<img") == 1 and "being read" in seen[0]
    assert [markup.count("<img") for markup in seen] == [1, 2, 2, 2, 2, 0] and "step 4 of 4" in seen[-2]
    assert seen[-1] == "" == panel.live.value
    seen.clear()
    monkeypatch.setattr(plots, "plain_levels", lambda *a: panel.task.cancel("Stopping.") or b"late")
    panel.run_button.click()
    panel.task.wait(60)
    assert seen == [] and panel.live.value == "" and "cancelled" in said(panel) and len(panel.viewer.cards) == 1
