"""The ablation study panel: change one thing, run on the same noise, compare views and sounds, save."""

import dataclasses
import functools
import itertools
import types
from typing import Any, NamedTuple

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loaded now: the first Run would wait a second for it

from svclib.analysis import ablation, compare, plots, step_audio
from svclib.analysis import html as page
from svclib.analysis.plots import ablation as views
from svclib.conversion import recognition
from svclib.conversion import song as songs
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.notebooks import base as widgets
from svclib.notebooks import train, visualize
from svclib.notebooks.panel import TaskPanel
from svclib.training import api as training
from svclib.utils import workspace
from svclib.utils.errors import ConversionError, StorageError

MAX_RUNS = 24
PROBES = tuple(ablation.Intervention(factor) for factor in ("content", "melody", "timbre"))
CHANGES = (*ablation.CHOICES, "the whole other song", "checkpoints of a training")
OTHER_SONG, CHECKPOINTS = CHANGES[-2:]
# The part of a change's name with which a control is shown.
NEEDED = {
    "other_song": "other song",
    "other_singer": "other singer",
    "semitones": "transposed",
    "strength": "strength",
    "run": "checkpoints",
    "checkpoints": "checkpoints",
}
FILES = {"CSV": "the numbers", "PNG": "the picture", "SVG": "the picture, scalable", "npz": "the whole run"}


class AblationPanel(TaskPanel):
    """Runs of a diffusion instrument side by side. Nothing is computed before a button is pressed."""

    PREFIX = "t-study-"
    WANTED = "diffusion instrument (preset diffusion_small or diffusion)"
    KINDS = ("diffusion",)
    STOPPING = "Stopping; finished runs stay."
    SIZE = {}

    def __init__(self, base: workspace.Base):
        super().__init__(base)
        self.n_runs, self.viewer = 0, RunViewer(self)
        self._make_controls()
        song = (self.instrument, self.song, self.start_s, self.seconds, self.singer)
        change = (self.other_song, self.other_singer, self.semitones, self.strength, self.run, self.checkpoints)
        self.lay_out(
            widgets.row(
                widgets.column("Song", *song),
                widgets.column("Sampling", self.samplers, self.steps, self.seed, self.probe),
                widgets.column("Change one thing", self.change, *change),
                align="flex-start",
            ),
            widgets.row(self.run_button, self.cancel_button, self.refresh_button, self.progress.widget),
            self.message.widget,
            self.live,
            *self.viewer.rows,
            widgets.row(self.render_button, self.words, *self.remove_buttons, *self.viewer.keep_buttons),
        )
        self.add_class("svclib-study")
        self.refresh_button.click()

    def _make_controls(self):
        self.start_s = self.number("From (s)", "start", "start of the excerpt", 0.0, widgets.START_S, step=0.5)
        self.seconds = self.number("Length (s)", "seconds", "of the excerpt", 4.0, (0.0, 60.0), step=0.5)
        self.singer = self.dropdown("Singer", "singer", "of the instrument")
        names = [(name, name) for name in reversed(samplers.SAMPLERS)]
        self.samplers = self.several("Samplers", "sampler", "a run for each; several with Ctrl", names, rows=4)
        self.samplers.value = ("dpmpp",)
        hint = "numbers of sampling steps, a run for each: 20, or 4, 10, 50"
        self.steps = self.control(W.Text, "Steps", "steps", hint, value="20")
        self.seed = self.number("Seed", "seed", "equal seeds begin with equal noise", 0, (0, 2**31 - 1))
        hint = "content, melody, timbre: extra denoiser calls at the same noisy mels"
        self.probe = self.checkbox("", "probe", hint)
        self.change = self.dropdown("Change", "change", "everything else stays as it is", CHANGES)
        self.other_song = self.dropdown("Other song", "other", "source of what is replaced")
        self.other_singer = self.dropdown("Other singer", "other-singer", "of this instrument")
        self.semitones = self.number("Semitones", "semitones", "of the melody", 5.0, (-24.0, 24.0))
        hint = "0 off, 1 unchanged, 2 twice; twice the time"
        self.strength = self.number("Strength", "strength", hint, 2.0, (-5.0, 10.0), step=0.25)
        self.run = self.dropdown("Training", "training", f"runs in {self.base.runs}")
        self.checkpoints = self.several("Steps of it", "checkpoints", "several with Ctrl", [], rows=4)
        self.words = self.checkbox("Words", "words", visualize.WORDS_HINT)
        self.on_change(self._instrument_chosen, self.instrument)
        self.on_change(self._training_chosen, self.run)
        self.on_change(self._show_relevant, self.change, self.steps, self.samplers)
        self.run_button = self.button("Run", self.start_run, "run", "primary", "sample and keep every step")
        hint = "makes steps audible; adds pitch, voicing, loudness to the metrics"
        self.render_button = self.button("Hear and measure", self.render, "hear", hint=hint)
        self.remove_button = self.button("Remove run", self.remove, "remove", hint="frees its memory")
        self.clear_button = self.button("Remove all", self.clear, "clear", hint="frees their memory")
        self.work_buttons, self.remove_buttons = (self.run_button,), (self.remove_button, self.clear_button)

    def read_folders(self) -> None:
        """Fill the menus."""
        super().read_folders()
        runs = [path for path in self.base.runs.iterdir() if (path / "checkpoints").is_dir()]
        widgets.fill(self.other_song, list(self.song.options))
        widgets.fill_files(self.run, self.base.runs, widgets.newest_first(runs))
        self._instrument_chosen()
        self._show_relevant()

    def _instrument_chosen(self):
        entry = self.entries.get(self.instrument.value)
        names = [(name, name) for name in entry.info.get("singers") or ()] if entry else []
        widgets.fill(self.singer, names)
        widgets.fill(self.other_singer, names[1:] + names[:1])

    def _training_chosen(self):
        self.checkpoints.options = ()  # also if the next line fails
        entries = [] if self.run.value is None else train.checkpoint_steps(self.run.value)
        self.checkpoints.options = [(f"step {e.step}" + (", best" if e.best else ""), e.step) for e in entries]
        self.checkpoints.value = tuple(dict.fromkeys(e.step for e in entries[:1] + entries[-1:]))

    def _show_relevant(self):
        for name, words in NEEDED.items():
            getattr(self, name).layout.display = "" if words in self.change.value else "none"
        runs = [samplers.SAMPLERS[name].n_calls(steps) for name, steps in self._sampling()]
        calls = sum(len(PROBES) * len(ablation.probed_steps(n)) for n in runs)
        self.probe.description = f"Influence of factors: +{calls} calls"

    def _sampling(self) -> list[tuple[str, int]]:
        """Samplers and numbers of steps, a pair for each run; ConversionError for a number that is none."""
        try:
            steps = [int(text) for text in self.steps.value.replace(",", " ").split()]
        except ValueError:
            steps = []
        if not steps or not all(2 <= n <= 1000 for n in steps):
            hint = "give whole numbers from 2 to 1000, such as 4, 10, 50."
            raise ConversionError(f"Steps are '{self.steps.value}'; {hint}")
        return list(itertools.product(self.samplers.value, dict.fromkeys(steps)))

    def show_busy(self, busy: bool) -> None:
        """Turn the buttons on and off."""
        super().show_busy(busy)
        for button in (self.render_button, *self.remove_buttons, *self.viewer.keep_buttons):
            button.disabled = busy or not self.viewer.cards

    def start_run(self) -> None:
        """Run on the excerpt with the chosen change in the background and keep the result."""
        names = ("change", "instrument", "song", "other_song", "start_s", "seconds", "semitones", "strength")
        names += ("other_singer", "run", "checkpoints")
        request = types.SimpleNamespace(**{name: getattr(self, name).value for name in names})
        pairs, problem = self._sampling(), ""
        n_runs = len(request.checkpoints) if request.change == CHECKPOINTS else 1
        n_asked = n_runs * len(pairs)
        if not pairs:
            problem = "Choose at least one sampler."
        elif len(self.viewer.cards) + n_asked > MAX_RUNS:
            problem = f"At most {MAX_RUNS} runs are kept, and {n_asked} more are asked for; remove some first."
        elif request.change == CHECKPOINTS and (not n_runs or request.run is None):
            problem = f"Choose a training from {self.base.runs} and one or more of its steps."
        probe, seed, singer = PROBES if self.probe.value else (), self.seed.value, self.singer.value

        def work():
            for i, (sampler, steps) in enumerate(pairs):
                options = ablation.RunOptions(SamplingOptions(sampler, steps, seed=seed), singer=singer, probe=probe)
                name = f"{sampler}, {steps} steps: " if len(pairs) > 1 else ""

                def part(fraction, text="", i=i, name=name):
                    self.progress((i + fraction) / len(pairs), name + text)

                self._run(request, options, part)

        self.start(work, self.missing() or problem)

    def _run(self, request, options, progress):
        preview, n_steps = plots.LivePreview(self.show_live), options.sampling.steps
        common = {"progress": progress, "cancelled": self.task.cancelled, "callback": preview}

        def cut(model, statistics, path=request.song):
            preview.begin(model, request.seconds, options.sampling.seed)
            song = songs.cached_song(path, model.features, **self.callbacks)
            return ablation.cut_excerpt(song, statistics, request.start_s, request.seconds)

        if request.change == CHECKPOINTS:
            options = dataclasses.replace(options, singer=None)  # a training run may have other singers
            runs = ablation.run_checkpoints(request.run, request.checkpoints, cut, options, **common)
            for step, result in zip(request.checkpoints, runs, strict=True):
                self._add(result, training.load_model(request.run, step)[0], request.run.name, n_steps)
            return
        voice = self.open_instrument(request.instrument)
        found = (voice.model, voice.statistics)
        other = cut(*found, request.other_song) if "other song" in request.change else None
        if request.change == OTHER_SONG:
            excerpt, changes = other, []
        else:
            amounts = (request.semitones, request.strength, request.other_singer)
            excerpt, changes = cut(*found), ablation.from_choice(request.change, other, *amounts)
        result = ablation.run(voice.model, excerpt, changes, options, **common)
        self._add(result, voice.model, voice.name, n_steps)

    def _add(self, result, model, name, steps):
        self.progress(1.0, "drawing and vocoding")
        self.n_runs += 1
        trace, start = result.trace, f"from {result.excerpt.start_s:.1f} s"
        made = (start, trace.info["method"], f"{steps} steps", f"seed {trace.info['seed']}", name)
        parts = (result.label, result.excerpt.name, *made)
        first = next((card.parts for card in self.viewer.cards.values()), (None, None, *made))
        differs = [text for text, other in zip(parts, first, strict=True) if text != other]
        label = f"{self.n_runs}: {', '.join(differs) or 'the same again'}"
        text = f"{name}; {start}; {trace.info['method']}, {trace.n_calls} calls (NFE), seed {trace.info['seed']}"
        self.viewer.add(label, Card(result, model, text, parts))
        self.viewer.show_audio(label, step_audio.render_audio(model, trace, (), **self.callbacks), [])
        warnings = [text for text in (result.notice, trace.info["notice"]) if text]
        self.message.show(" ".join([f"Run {self.n_runs} is below.", *warnings]), "warning" if warnings else "done")

    def remove(self) -> None:
        """Forget the chosen run."""
        if self.task.busy:
            self.task.start(lambda: None)  # reports that it is busy
            return
        self.viewer.forget(self.viewer.chosen())
        self.task.show()

    def clear(self) -> None:
        """Forget all runs."""
        while self.viewer.cards and not self.task.busy:
            self.remove()
        if not self.task.busy:
            self.message.show("")

    def render(self) -> None:
        """Make the steps of the chosen run audible, measure them, and show players of the pinned ones."""
        label, words = self.viewer.chosen(), self.words.value

        def work():
            self.progress(0.0, "beginning")
            result, model = self.viewer.cards[label].result, self.viewer.cards[label].model
            recognizer = recognition.WhisperRecognizer() if words else None
            positions, cancelled = ablation.probed_steps(len(result.trace)), self.task.cancelled
            watch = {"progress": lambda f, text: self.progress(0.6 * f, text), "cancelled": cancelled}
            sounds = step_audio.render_audio(model, result.trace, positions, **watch)
            measured = (result.trace, sounds.audio, model.features, result.excerpt.audio)
            then = (lambda f, text: self.progress(0.6 + 0.4 * f, text), cancelled)
            found = step_audio.audio_metrics(*measured, *then, recognizer)
            self.viewer.show_audio(label, sounds, found)
            self.message.show(f"{len(sounds.audio)} sounds of run {label} were made and measured.", "done")

        self.start(work, "")


class Card(NamedTuple):
    """A run, its model, and its settings as text and one by one."""

    result: ablation.RunResult
    model: Any
    text: str
    parts: tuple[str, ...]


class RunViewer:
    """The lower half of the ablation panel: views, players and files of finished runs.

    It holds the runs as ``cards`` by label; ``rendered``, sounds of the steps and their metrics, of those that were
    made audible; ``pinned`` steps to see side by side (none: the first, the middle and the result); ``view``, or None.
    """

    def __init__(self, panel: TaskPanel):
        self.cards: dict[str, Card] = {}
        self.rendered: dict[str, tuple] = {}
        self.pinned: list[int] = []
        self.view: views.View | None = None
        self.folder, self.updating, self._written = panel.base.output, False, panel.written
        size = {"width": "min(290px, 98%)", "label_width": "84px"}
        states = [(text, name) for name, text in compare.STATES.items()]
        self.look = panel.dropdown("View", "look", "what to look at", list(views.VIEWS), **size)
        self.a = panel.dropdown("Run", "a", "the run in question", **size)
        self.b = panel.dropdown("against", "b", "the run it is compared with", **size)
        self.state = panel.dropdown("Show", "state", "of every step", states, **size)
        size_of_step = {**size, "width": "min(420px, 98%)"}
        self.step = panel.slider("Step", "step", "arrow keys move it by one", 1, (1, 2), **size_of_step)
        hint = "when a bin counts as settled"
        self.tolerance = panel.number("Within (dB)", "tolerance", hint, 3.0, (0.1, 40.0), step=0.5, **size)
        panel.on_change(self.draw, self.look, self.b, self.state, self.step, self.tolerance)
        panel.on_change(self._run_chosen, self.a)
        self.pin_button = panel.button("Pin step", self.pin, "pin", hint="keep it to see side by side")
        self.unpin_button = panel.button("Unpin all", self.unpin, "unpin")
        self.keep_buttons = []
        for kind, text in FILES.items():
            keep, hint = functools.partial(self.keep, kind), f"{text}, into {self.folder}"
            self.keep_buttons.append(panel.button(f"Save {kind}", keep, kind.lower(), hint=hint))
        names = ("runs", "view", "players")
        self.listing, self.shown, self.players = (widgets.html(css_class=f"t-study-{name}") for name in names)
        self.rows = (
            self.listing,
            widgets.row(self.look, self.a, self.b, self.state),
            widgets.row(self.step, self.pin_button, self.unpin_button, self.tolerance),
            self.shown,
            self.players,
        )

    def add(self, label: str, card: Card) -> None:
        """Show another run, which becomes the chosen one."""
        self.cards = {**self.cards, label: card}  # anew: another thread may be drawing it
        self._runs_changed(label)

    def forget(self, label: str) -> None:
        """Remove a run."""
        self.cards = {name: card for name, card in self.cards.items() if name != label}
        self.rendered = {name: found for name, found in self.rendered.items() if name != label}
        self._runs_changed()

    def show_audio(self, label: str, sounds, metrics: list) -> None:
        """Show players for a run that was made audible (``step_audio.StepAudio``), and its metrics if there are any."""
        self.rendered = {**self.rendered, label: (sounds, metrics)}
        self._show_players()
        if metrics and self.look.value != "metrics per step":
            self.look.value = "metrics per step"  # draws it
        elif metrics:
            self.draw()

    def chosen(self) -> str:
        """Label of the chosen run; StorageError if there is none yet."""
        if self.a.value not in self.cards:
            raise StorageError("There is no run yet; press Run first.")
        return self.a.value

    def _runs_changed(self, wanted=None):
        rows = [[label, card.text, f"{card.result.trace.n_bytes / 1e6:.1f} MB"] for label, card in self.cards.items()]
        self.listing.value = page.table(["run", "made with", ">memory"], rows) if rows else ""
        self.updating = True  # draws once, at the end
        try:
            for menu in (self.a, self.b):
                widgets.fill(menu, [(label, label) for label in self.cards])
            self.a.value = wanted or self.a.value
        finally:
            self.updating = False
        self._run_chosen()

    def _run_chosen(self):
        if not self.updating:
            if self.a.value in self.cards:
                self.step.max = len(self.cards[self.a.value].result.trace) + 1
            self._show_players()
            self.draw()

    def pin(self) -> None:
        """Put the step of the slider among those side by side."""
        self.pinned = sorted({*self.pinned, self.step.value - 1})[-6:]
        self.draw()

    def unpin(self) -> None:
        """No pinned steps: the first, the middle and the result are shown."""
        self.pinned = []
        self.draw()

    def draw(self) -> None:
        """Draw the chosen view."""
        if self.updating:
            return
        self.view, shown = None, ""
        if self.look.value == "metrics per step":  # computed at the first look
            self.shown.value = page.paragraph("Measuring and drawing ...")
        runs = {label: card.result for label, card in self.cards.items()}
        metrics = {label: found for label, (_, found) in self.rendered.items()}
        choices = (self.a.value, self.b.value, self.step.value - 1, self.pinned, self.state.value, self.tolerance.value)
        try:
            if runs:
                self.view = views.draw_view(self.look.value, views.ViewRequest(runs, *choices, metrics))
                shown = widgets.drawing(self.view.figure, f"{self.look.value} of run {self.a.value}", 1000)
                shown += page.paragraph(self.view.about)
        except ValueError as error:
            shown = page.notice(str(error), "warning")
        finally:
            self.shown.value = shown  # never another view's picture under this name

    def _show_players(self):
        players, label = [], self.a.value
        if label in self.rendered:
            sounds, n = self.rendered[label][0], len(self.cards[label].result.trace)
            for step in [s for s in (self.pinned or (0, n // 2, n)) if s in sounds.audio] or [n]:
                name = f"{label}: result" if step == n else f"step {step + 1}"
                quieter_db = sounds.attenuated_db.get(step)
                note = "" if quieter_db is None else f"{quieter_db:g} dB quieter than it was"
                players.append(page.player(sounds.audio[step], sounds.sample_rate_hz, name, note))
        self.players.value = page.flow(*players) if players else ""

    def keep(self, kind: str) -> None:
        """Save what is shown (CSV, PNG, SVG), or the chosen run (npz), under a name that is not taken."""
        card, run, view = self.cards[self.chosen()], f"study {self.a.value}", self.view
        name = f"{run} - {self.look.value}"
        if kind == "npz":
            path = compare.save_file(self.folder, run, ".npz", card.result.trace.save)
        elif view is None:
            raise StorageError("Nothing is shown that could be saved; choose another view.")
        elif kind == "CSV":
            path = compare.save_csv(self.folder, name, view.head, view.rows)
        else:
            data = plots.png(view.figure) if kind == "PNG" else plots.svg(view.figure)
            path = compare.save_file(self.folder, name, f".{kind.lower()}", lambda part: part.write_bytes(data))
        self._written(path, f"Saved as {path}.")
