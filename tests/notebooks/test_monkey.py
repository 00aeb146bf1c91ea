"""A monkey at the panels: thousands of clicks and changes in an order from a seed, while work runs, is cancelled or
fails, and while files vanish, turn to rubbish and folders are renamed. After every burst the panel must be at rest,
every exception must have become words in the panel, and with whole files the main button must do its work again.

Long work is replaced by stand-ins that wait, fail or succeed as the monkey wills; panels, menus, jobs, listings and
file names are the real ones. 10,000 actions on each panel are slow tests, 300 are not.
"""

import functools
import html
import logging
import random
import shutil
import tempfile
import threading
import types
from pathlib import Path

import ipywidgets as W
import numpy as np
import pytest
from diffusion_files import make_instrument as make_diffusion
from panels import make_instrument, make_song, said, upload
from toy_diffusion import VOCODER, save_instrument
from traitlets import TraitError

from svclib.analysis import ablation, ddsp_inspection, lesson, plots, step_audio
from svclib.analysis import compare as comparison
from svclib.analysis.plots import ablation as views
from svclib.audio import io as audio
from svclib.conversion import ab_compare, key_suggestion, pipeline, recognition
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.data import dataset
from svclib.models import instrument
from svclib.notebooks import ablation as widgets_study
from svclib.notebooks import convert as widgets_convert
from svclib.notebooks import prepare, train, visualize
from svclib.notebooks import visualize as widgets_lesson
from svclib.notebooks.base import Uploader
from svclib.training import api as training
from svclib.utils import workspace
from svclib.utils.errors import Cancelled, raise_if_cancelled

pytestmark = pytest.mark.case("H10", "J9")

N_QUICK, N_SLOW, BURST = 300, 10000, 20
MOODS = ("fine",) * 4 + ("hold",) * 3 + ("mistake", "bug", "interrupt")


class World:
    """What surrounds a panel: its files, the mood of whatever works, what was raised and what was said."""

    def __init__(self, base, seed):
        self.base, self.rng = base, random.Random(seed)
        self.mood, self.go, self.raised, self.told = "fine", threading.Event(), [], []
        self.whole = {p: p.read_bytes() for p in sorted(base.root.rglob("*")) if p.is_file()}
        self.folders = [base.instruments, base.examples, base.output, base.runs]

    def work(self, cancelled=None, path=None):
        """What every stand-in does: fail, wait or return as the mood is."""
        if path is not None:
            path.stat()  # an OSError if it is gone
        mood, name = self.mood, f"monkey-{len(self.raised)}."
        if mood == "hold" and cancelled is not None:
            while not self.go.wait(0.0005):
                raise_if_cancelled(cancelled)
        elif mood in ("mistake", "bug", "interrupt"):
            error = {"mistake": ValueError, "bug": ZeroDivisionError, "interrupt": KeyboardInterrupt}[mood](name)
            self.raised.append(("Interrupted", error) if mood == "interrupt" else (name, error))
            raise error
        raise_if_cancelled(cancelled)

    def damage(self):
        """One thing happens to the files."""
        path = self.rng.choice(sorted(self.whole))
        folder = self.rng.choice(self.folders)
        away = folder.with_name(folder.name + " away")
        what = self.rng.choice(("vanish", "rubbish", "empty", "folder", "back", "rename"))
        if what == "rename" and folder.is_dir() and not away.exists():
            folder.rename(away)
        elif what == "back":
            self.mend()
        elif path.parent.is_dir():
            if what == "vanish" and path.is_file():
                path.unlink()
            elif what in ("rubbish", "empty"):
                self.clear(path)
                path.write_bytes(self.rng.randbytes(300) if what == "rubbish" else b"")
            elif what == "folder":
                self.clear(path)
                path.mkdir()

    @staticmethod
    def clear(path):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)

    def mend(self):
        """All files as in the beginning."""
        for folder in self.folders:
            away = folder.with_name(folder.name + " away")
            if away.exists():
                if folder.exists():
                    shutil.rmtree(folder)
                away.rename(folder)
        for path in self.whole.keys() | {p for f in self.folders for p in f.rglob("*") if p.is_file()}:
            if path in self.whole:
                if path.is_dir() or not path.is_file() or path.read_bytes() != self.whole[path]:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self.clear(path)
                    path.write_bytes(self.whole[path])
            else:
                path.unlink()


@functools.cache
def song_bytes():
    with tempfile.TemporaryDirectory() as folder:
        return make_song(Path(folder, "a.wav"), seconds=0.1).read_bytes()


def inside(widget):
    """Every widget of a panel."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def act(world, panel):
    """One thing a person, a browser or a disk may do."""
    rng = world.rng
    world.mood = rng.choice(MOODS)
    if rng.random() < 0.12:
        return world.damage()
    if rng.random() < 0.1:
        world.go.set()
        world.go = threading.Event()
        return None
    alive = [w for w in inside(panel) if isinstance(w, W.Button | Uploader | W.ValueWidget)]
    widget = rng.choice([w for w in alive if not isinstance(w, W.HTML | W.FloatProgress | W.Textarea)])
    try:
        if isinstance(widget, W.Button):  # disabled ones too: a second click is on its way before the first is seen
            for _ in range(rng.choice((1, 1, 2, 3))):
                widget.click()
        elif isinstance(widget, Uploader):
            data = rng.choice((rng.randbytes(60), song_bytes()))
            upload(widget, rng.choice(("a.wav", "../b.wav", "c.txt", "\N{MUSICAL NOTE}.wav", "")), data, 500)
        elif isinstance(widget, W.SelectMultiple):
            widget.index = sorted(rng.sample(range(len(widget.options)), rng.randint(0, len(widget.options))))
        elif isinstance(widget, W.Dropdown):
            widget.index = rng.randrange(len(widget.options)) if widget.options else None
        elif isinstance(widget, W.Checkbox):
            widget.value = not widget.value
        else:
            widget.value = rng.choice((widget.value, -3, 0, 1, 7, 500, 10**9))
    except TraitError:
        pass  # the browser cannot send such a value
    return None


def play(world, panel, n_actions, check, works, caplog, monkeypatch):
    """Bursts of actions; after each the panel is at rest, everything was said, and it works."""
    lost = []
    monkeypatch.setattr(threading, "excepthook", lambda args: lost.append(args.exc_value))
    for widget in inside(panel):
        if isinstance(widget, W.HTML):
            widget.observe(lambda change: world.told.append(change["new"]), "value")
    caplog.set_level(logging.WARNING)
    for n in range(0, n_actions, BURST):
        for _ in range(BURST):
            act(world, panel)
        world.mood = "fine"
        world.go.set()
        if hasattr(panel, "task"):
            panel.task.wait(30)
            assert not panel.task.busy, n
            assert panel.progress.widget.layout.display == "none", n
            assert panel.cancel_button.disabled, n
        check(panel)
        told = "\n".join(world.told)
        assert "Stopping" not in said(panel), n
        for name, error in world.raised:
            assert name in told, (n, error)
        for text in world.told:
            assert "<details" not in text or "monkey-" in text, (n, text)
            assert "[Errno" not in text, (n, text)
        assert not lost and not [r for r in caplog.records if r.name != "svclib"], n
        world.raised.clear()
        world.told.clear()
        caplog.clear()
        world.mend()
        world.go = threading.Event()
        world.go.set()
        works(panel)
        world.told.clear()
        world.go = threading.Event()


@pytest.fixture(params=[N_QUICK, pytest.param(N_SLOW, marks=pytest.mark.slow)])
def n_actions(request):
    return request.param


@pytest.fixture
def base(tmp_path, monkeypatch):
    songs._songs.clear()
    home = workspace.base_folder(base=tmp_path / "home")
    make_instrument(home.instruments)
    make_diffusion(home.instruments)
    save_instrument(home.instruments, "loud", VOCODER)
    make_song(home.examples / "a.wav")
    make_song(home.examples / "b & <b>.wav")
    for run in ("one", "two"):
        (home.runs / run / "checkpoints").mkdir(parents=True)
        (home.runs / run / "checkpoints" / "x").write_bytes(b"x")
    monkeypatch.setattr(plots, "png", lambda figure: b"png")
    monkeypatch.setattr(plots, "svg", lambda figure: b"svg")
    return home


@pytest.fixture
def world(base, monkeypatch):
    made = World(base, 6)

    def opened(path):
        made.work(path=path)
        return types.SimpleNamespace(
            name=path.stem, kind="diffusion", features=None, statistics=None, model=types.SimpleNamespace(features=None)
        )

    def cached_song(path, features, f0_method=None, progress=None, cancelled=None):
        made.work(cancelled, path)
        return types.SimpleNamespace(features=None, path=path)

    monkeypatch.setattr(instrument, "open", opened)
    monkeypatch.setattr(plots.LivePreview, "begin", lambda self, model, seconds, seed: self._show("<p>noise</p>"))
    monkeypatch.setattr(songs, "cached_song", cached_song)
    monkeypatch.setattr(widgets_convert.PitchLane, "show", lambda self, song: None)
    yield made
    made.go.set()


def press(button, wanted="svclib-done"):
    """The main button does its work when everything is whole."""

    def works(panel):
        panel.refresh_button.click()
        getattr(panel, button).click()
        panel.task.wait(30)
        assert wanted in said(panel), said(panel)

    return works


@pytest.mark.case("H3", "H6")
def test_convert(world, n_actions, monkeypatch, caplog):
    def convert(loaded, song, controls, *, progress, cancelled, **options):
        assert np.isfinite([v for v in vars(controls).values() if isinstance(v, float)]).all()
        progress(0.5, "singing")
        world.work(cancelled)

    def convert_songs(loaded, paths, done, chosen, *, progress, cancelled, **options):
        failed = {}
        for path in paths:
            try:
                song = songs.cached_song(path, None, None, progress, cancelled)
                assert isinstance(chosen(song), Controls)
                done(types.SimpleNamespace(song=song))
            except Cancelled:
                raise
            except (ValueError, OSError) as error:
                failed[path] = error
        return failed

    def suggest(*args):
        world.work()
        return key_suggestion.Suggestion(1, world.rng.choice((0, 2)), 12, "so")

    monkeypatch.setattr(pipeline, "convert", convert)
    monkeypatch.setattr(pipeline, "save", lambda result, folder, suffix: world.work() or folder / f"x.{suffix}")
    monkeypatch.setattr(key_suggestion, "suggest_shift", suggest)
    monkeypatch.setattr(pipeline, "convert_songs", convert_songs)
    monkeypatch.setattr(widgets_convert, "result_html", lambda *a: world.work() or "made")
    parts = lambda self, path, source: world.work(self.task.cancelled) or widgets_convert._Parts(path)  # noqa: E731
    monkeypatch.setattr(widgets_convert.ConvertPanel, "_parts", parts)

    def check(panel):
        able = panel.instrument.value is not None and panel.song.value is not None
        assert panel.transfer_button.disabled == panel.all_button.disabled == (not able)
        assert not panel.suggest_button.disabled and isinstance(panel.controls(), Controls)
        for result in list(panel.shown):
            panel._remove(result)

    def works(panel):
        panel.reset_button.click()  # no mix without a separator, no blend without a second instrument
        press("transfer_button")(panel)

    panel = widgets_convert.ConvertPanel(world.base)
    play(world, panel, n_actions, check, works, caplog, monkeypatch)


@pytest.mark.case("H3")
def test_compare(world, n_actions, monkeypatch, caplog):
    def compare(compared, song, start_s, seconds, settings, load, progress, cancelled):
        for variant in compared[:3]:
            load(variant.instrument)
            progress(0.5, "singing")
            songs.cached_song(song, None, None, progress, cancelled)
            yield ab_compare.Row(variant.label, problem="<i>no</i>")

    monkeypatch.setattr(ab_compare, "compare", compare)

    def check(panel):
        able = bool(panel.instruments.options) and panel.song.value is not None
        assert panel.compare_button.disabled == (not able) and "<i>" not in panel.table.value

    def works(panel):
        panel.refresh_button.click()
        for menu in (panel.instruments, panel.samplers, panel.steps, panel.starts, panel.vocoders):
            menu.index = (0,)
        press("compare_button")(panel)

    convert = widgets_convert.ConvertPanel(world.base)
    play(world, widgets_convert.ComparePanel(world.base, convert), n_actions, check, works, caplog, monkeypatch)


@pytest.mark.case("H3")
def test_lesson(world, n_actions, monkeypatch, caplog):
    def from_file(opened, path, options, progress, cancelled, note, callback, voice):
        progress(0.1, "sampling")
        world.work(cancelled, path)
        return "<p>page</p>", f"a lesson of {path.stem} by {opened.name}"

    monkeypatch.setattr(lesson, "from_file", from_file)

    def check(panel):
        able = panel.instrument.value is not None and panel.song.value is not None
        assert panel.run_button.disabled == (not able) and not panel.export_button.disabled

    def works(panel):
        press("run_button")(panel)
        song, name = panel.title.rsplit(" - ", 1)
        assert f"a lesson of {song} by {name}:" in html.unescape(said(panel))
        panel.export_button.click()
        assert "Written" in said(panel)

    play(world, widgets_lesson.LessonPanel(world.base), n_actions, check, works, caplog, monkeypatch)


@pytest.mark.case("H3")
def test_study(world, n_actions, monkeypatch, caplog):
    class Trace(list):
        info, n_calls, n_bytes, save = {"method": "ddim", "seed": 0, "notice": ""}, 4, 1000, None

    def run(model, excerpt, changes=(), options=None, label="", progress=None, cancelled=None, callback=None):
        progress(0.1, "sampling")
        world.work(cancelled)
        trace = Trace(range(world.rng.randint(2, 9)))
        result = object.__new__(ablation.RunResult)  # its arrays are not read here
        excerpt = types.SimpleNamespace(name="a", start_s=0.0, audio=None)
        for name, value in {"trace": trace, "excerpt": excerpt, "label": "as asked", "notice": ""}.items():
            object.__setattr__(result, name, value)
        return result

    def run_checkpoints(folder, training_steps, make_excerpt, options, **common):
        return [run(None, None, (), options, **common) for _ in training_steps]

    def render_audio(model, trace, positions, progress, cancelled):
        progress(0.1, "rendering")
        world.work(cancelled)
        audio = {len(trace): np.zeros(800)}
        return types.SimpleNamespace(audio=audio, sample_rate_hz=8000, attenuated_db={})

    def draw_view(name, request):
        assert request.a in request.runs, "the shown run is gone"
        assert 0 <= request.step <= len(request.runs[request.a].trace)
        world.work()
        return views.View(None, ["a"], [[1.0]], "about")

    def steps_of(run):
        world.work(path=run)
        return [train.CheckpointEntry(step, None, False) for step in (1, 2, 3)]

    monkeypatch.setattr(ablation, "run", run)
    monkeypatch.setattr(ablation, "run_checkpoints", run_checkpoints)
    monkeypatch.setattr(step_audio, "render_audio", render_audio)
    monkeypatch.setattr(ablation, "probed_steps", lambda n, *more: [n])
    monkeypatch.setattr(step_audio, "audio_metrics", lambda *a: world.work(a[5]) or [])
    monkeypatch.setattr(recognition, "WhisperRecognizer", lambda: None)
    monkeypatch.setattr(views, "draw_view", draw_view)
    monkeypatch.setattr(comparison, "save_file", lambda folder, name, end, write: world.work() or folder / (name + end))
    monkeypatch.setattr(ablation, "cut_excerpt", lambda *a: world.work())
    monkeypatch.setattr(ablation, "from_choice", lambda *a: [])
    monkeypatch.setattr(train, "checkpoint_steps", steps_of)
    monkeypatch.setattr(training, "load_model", lambda run, step: (world.work(path=run), {}))

    def check(panel):
        able = panel.instrument.value is not None and panel.song.value is not None
        assert panel.run_button.disabled == (not able)
        for button in (panel.render_button, panel.remove_button, *panel.viewer.keep_buttons):
            assert button.disabled == (not panel.viewer.cards)
        assert set(panel.viewer.rendered) <= set(panel.viewer.cards) and not panel.viewer.updating
        if panel.viewer.cards:
            assert [v for _, v in panel.viewer.a.options] == list(panel.viewer.cards)

    def works(panel):
        while panel.viewer.cards:
            panel.remove_button.click()
        panel.change.value, panel.steps.value, panel.samplers.index = "nothing", "8", (0,)
        press("run_button")(panel)
        assert len(panel.viewer.cards) == 1

    play(world, widgets_study.AblationPanel(world.base), n_actions, check, works, caplog, monkeypatch)


def test_chunk(world, n_actions, monkeypatch, caplog):
    data = object.__new__(dataset.Dataset)
    data.random_chunk = lambda seed, seconds: (seed, 0, 1)
    monkeypatch.setattr(prepare, "chunk_html", lambda *a: world.work() or f"<p>{a[1:]}</p>")

    def works(panel):
        before = panel.seed
        panel.another()
        assert panel.seed == before + 1 and said(panel) == ""

    play(world, prepare.ChunkPanel(data), n_actions, lambda panel: None, works, caplog, monkeypatch)


def test_checkpoint(world, n_actions, monkeypatch, caplog):
    song = world.base.examples / "a.wav"

    def read(path):
        world.work(path=path)
        return types.SimpleNamespace(samples=np.zeros(800), sample_rate_hz=8000)

    previews = [types.SimpleNamespace(original=song, path=song, number=1, step=step, score=1.0) for step in (1, 2)]
    entries = [train.CheckpointEntry(s, 1.0, s == 2) for s in range(3)]
    monkeypatch.setattr(train, "checkpoint_steps", lambda run: entries)
    monkeypatch.setattr(training, "previews", lambda run: previews)
    monkeypatch.setattr(audio, "read", read)

    def check(panel):
        if "svclib-error" in said(panel):
            assert panel.view.value == ""  # never the sound of another step

    def works(panel):
        for step in (0, 2):
            panel.menu.value = step
        assert "Step 2" in panel.view.value and said(panel) == "" and panel.value == 2

    play(world, train.CheckpointPanel(world.base.runs), n_actions, check, works, caplog, monkeypatch)


def test_moment(world, n_actions, monkeypatch, caplog):
    played = ddsp_inspection.SynthControls(
        0.01, np.full(50, 200.0), np.arange(50) % 2 == 0, np.ones(50), np.ones((50, 3)), np.ones((50, 4)), None
    )
    monkeypatch.setattr(plots, "spectrum_at", lambda *a: world.work())

    def works(panel):
        for time_s in (0.03, 0.05):
            panel.time_s.value = time_s
        assert said(panel) == ""

    play(world, visualize.MomentPanel(played, 8000), n_actions, lambda panel: None, works, caplog, monkeypatch)
