"""The ablation study panel: change one thing, run on the same noise, compare views and sounds, save."""

import dataclasses
from pathlib import Path

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loaded now: the first Run would wait a second for it

from svclib.analysis import ablation, plots, step_audio
from svclib.audio import io as audio
from svclib.conversion import recognition
from svclib.conversion import song as songs
from svclib.models import instrument
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run
from svclib.notebooks.ablation_viewer import Card, RunViewer
from svclib.training import api as training
from svclib.utils.errors import Cancelled

MAX_RUNS = 8
PROBES = (
    ablation.Intervention("content"),
    ablation.Intervention("melody"),
    ablation.Intervention("timbre"),
)

CHANGES = (*ablation.CHOICES, "the whole other song", "checkpoints of a training")
OTHER_SONG, CHECKPOINTS = CHANGES[-2:]
_OFF = {"value": False, "indent": False}
_STRENGTH = {"min": -5.0, "max": 10.0, "value": 2.0, "step": 0.25}
_CLASSES = {"start_s": "start", "other_song": "other", "other_singer": "other-singer", "run": "training"}


def ablation_panel(base) -> "AblationPanel":
    """The ablation panel for a folder; a panel made earlier in this kernel is closed."""
    panel = AblationPanel(base)
    widgets.only_one("study", panel)
    return panel


class AblationPanel(widgets.Panel):
    """Runs of a diffusion instrument side by side. Nothing is computed before a button is pressed."""

    def __init__(self, base):
        self.base, self.n_runs = base, 0
        self.message, self.progress = widgets.Message(), widgets.ProgressBar()
        self.viewer, self.live = RunViewer(self.message, base.output), widgets.html(css_class="t-study-live")
        self.task = widgets.BackgroundTask(self.message, self._busy)
        self.models, self._guard = widgets.Cache(2), widgets.guarded(self.message)
        self._make_choices()
        groups = widgets.row(
            widgets.column("Song", self.instrument, self.song, self.start_s, self.seconds, self.singer),
            widgets.column("Sampling", self.sampler, self.steps, self.seed, self.probe),
            widgets.column(
                "Change one thing",
                self.change,
                self.other_song,
                self.other_singer,
                self.semitones,
                self.strength,
                self.run,
                self.checkpoints,
            ),
        )
        groups.layout.align_items = "flex-start"
        super().__init__(
            [
                groups,
                widgets.row(self.run_button, self.cancel_button, self.refresh_button, self.progress.widget),
                self.message.widget,
                self.live,
                *self.viewer.rows,
                widgets.row(self.render_button, self.words, self.remove_button, *self.viewer.keep_buttons),
            ]
        )
        self.add_class("svclib-study")
        self.refresh()

    # ------------------------------------------------------------------------------------------------ building blocks

    def _make_choices(self):
        none, seconds = {"options": [("(none yet)", None)]}, {"max": 36000.0, "step": 0.5}
        for name, kind, label, hint, settings in (
            ("instrument", W.Dropdown, "Instrument", "diffusion instruments", none),
            ("song", W.Dropdown, "Song", f"recordings in {self.base.examples}", none),
            ("start_s", W.BoundedFloatText, "From (s)", "start of the excerpt", seconds),
            ("seconds", W.BoundedFloatText, "Length (s)", "of the excerpt", {**seconds, "max": 60.0, "value": 4.0}),
            ("singer", W.Dropdown, "Singer", "of the instrument", none),
            ("sampler", W.Dropdown, "Sampler", "sampling algorithm", {"options": list(samplers.SAMPLERS)}),
            ("steps", W.BoundedIntText, "Steps", "sampling steps", {"min": 2, "max": 1000, "value": 20}),
            ("seed", W.BoundedIntText, "Seed", "equal seeds begin with equal noise", {"max": 2**31 - 1}),
            ("probe", W.Checkbox, "", "content, melody, timbre: extra denoiser calls at the same noisy mels", _OFF),
            ("change", W.Dropdown, "Change", "everything else stays as it is", {"options": CHANGES}),
            ("other_song", W.Dropdown, "Other song", "source of what is replaced", none),
            ("other_singer", W.Dropdown, "Other singer", "of this instrument", none),
            ("semitones", W.BoundedFloatText, "Semitones", "of the melody", {"min": -24.0, "max": 24.0, "value": 5.0}),
            ("strength", W.BoundedFloatText, "Strength", "0 off, 1 unchanged, 2 twice; twice the time", _STRENGTH),
            ("run", W.Dropdown, "Training", f"runs in {self.base.runs}", none),
            ("checkpoints", W.SelectMultiple, "Steps of it", "several with Ctrl", {"options": [], "rows": 4}),
            ("words", W.Checkbox, "Words", "character error rate; needs faster-whisper, seconds for every step", _OFF),
        ):
            setattr(self, name, widgets.control(kind, label, f"t-study-{_CLASSES.get(name, name)}", hint, **settings))
        self.sampler.value = "dpmpp"
        self.instrument.observe(self._guard(lambda _: self._instrument_chosen()), "value")
        self.run.observe(self._guard(lambda _: self._training_chosen()), "value")
        for choice in (self.change, self.steps, self.sampler):
            choice.observe(self._guard(lambda _: self._show_relevant()), "value")
        button, guard = widgets.button, self._guard
        self.run_button = button("Run", guard(self.start_run), "t-study-run", "primary", "sample and keep every step")
        self.cancel_button = button("Cancel", guard(self._cancel), "t-study-cancel", hint="stop the running work")
        self.refresh_button = button("Look again", guard(self.refresh), "t-study-refresh")
        self.cancel_button.disabled = True
        hint = "makes steps audible; adds pitch, voicing, loudness to the metrics"
        self.render_button = button("Hear and measure", guard(self.render), "t-study-hear", hint=hint)
        self.remove_button = button("Remove run", guard(self.remove), "t-study-remove", hint="frees its memory")

    # -------------------------------------------------------------------------------------------------------- choices

    def refresh(self) -> None:
        """Read the folders again; keeps the choices that still exist."""
        entries = [e for e in instrument.list_folder(self.base.instruments) if not e.problem and e.kind == "diffusion"]
        self.singers = {e.path: list(e.info.get("singers") or ()) for e in entries}
        songs = [(str(Path(p).relative_to(self.base.examples)), Path(p)) for p in audio.find(self.base.examples)[0]]
        runs = [(p.name, p) for p in sorted(self.base.runs.iterdir()) if (p / "checkpoints").is_dir()]
        widgets.fill(self.instrument, [(e.path.name, e.path) for e in entries])
        widgets.fill(self.song, songs)
        widgets.fill(self.other_song, songs)
        widgets.fill(self.run, runs)
        self._instrument_chosen()
        self._show_relevant()
        self.message.show(self._missing(), "warning")
        self.task.show()

    def _instrument_chosen(self):
        names = [(name, name) for name in self.singers.get(self.instrument.value, ())]
        widgets.fill(self.singer, names)
        widgets.fill(self.other_singer, names[1:] + names[:1])

    def _training_chosen(self):
        self.checkpoints.options = ()  # also if the next line fails
        entries = [] if self.run.value is None else first_run.checkpoint_steps(self.run.value)
        self.checkpoints.options = [(f"step {e.step}" + (", best" if e.best else ""), e.step) for e in entries]
        self.checkpoints.value = tuple(e.step for e in (entries[:1] + entries[-1:] if len(entries) > 1 else entries))

    def _show_relevant(self):
        choice = self.change.value
        for widget, words in (
            (self.other_song, "other song"),
            (self.other_singer, "other singer"),
            (self.semitones, "transposed"),
            (self.strength, "strength"),
            (self.run, "checkpoints"),
            (self.checkpoints, "checkpoints"),
        ):
            widget.layout.display = "" if words in choice else "none"
        calls = samplers.SAMPLERS[self.sampler.value].n_calls(self.steps.value)
        more = len(PROBES) * len(ablation.probed_steps(calls))
        self.probe.description = f"Influence of factors: +{more} calls"

    def _missing(self) -> str:
        if self.instrument.value is None:
            return (
                f"There is no diffusion instrument in {self.base.instruments}. Train one with notebook 02 and the "
                "preset diffusion_small or diffusion, then press Look again."
            )
        if self.song.value is None:
            return f"There is no song in {self.base.examples}. Put a recording there, then press Look again."
        return ""

    # -------------------------------------------------------------------------------------------------------- working

    def _busy(self, busy: bool) -> None:
        self.cancel_button.disabled = not busy
        self.run_button.disabled = busy or bool(self._missing())
        for button in (self.render_button, self.remove_button, *self.viewer.keep_buttons):
            button.disabled = busy or not self.viewer.cards
        if not busy:
            self.progress.hide()

    def _cancel(self):
        self.task.cancel("Stopping; finished runs stay.")

    def _start(self, task) -> None:
        def work():
            self.progress(0.0, "beginning")
            try:
                task()
            except Cancelled:
                self.message.show("Cancelled; nothing unfinished is kept.", "warning")
            finally:
                self.live.value = ""

        self.task.start(work)

    def start_run(self) -> None:
        """Run on the excerpt with the chosen change in the background and keep the result."""
        missing = self._missing()
        checkpoints = list(self.checkpoints.value) if self.change.value == CHECKPOINTS else [None]
        if not missing and len(self.viewer.cards) + len(checkpoints) > MAX_RUNS:
            missing = f"At most {MAX_RUNS} runs are kept; choose one and press Remove run."
        if not missing and (not checkpoints or (checkpoints[0] is not None and self.run.value is None)):
            missing = f"Choose a training from {self.base.runs} and one or more of its steps."
        if missing:
            self.message.show(missing, "warning")
            return
        request = {
            "change": self.change.value,
            "path": self.instrument.value,
            "song": self.song.value,
            "other": self.other_song.value,
            "start_s": self.start_s.value,
            "seconds": self.seconds.value,
            "semitones": self.semitones.value,
            "strength": self.strength.value,
            "other_singer": self.other_singer.value,
            "run": self.run.value,
            "checkpoints": checkpoints,
        }
        sampling = SamplingOptions(sampler=self.sampler.value, steps=self.steps.value, seed=self.seed.value)
        probe = PROBES if self.probe.value else ()
        options = ablation.RunOptions(sampling, singer=self.singer.value, probe=probe)
        self.message.show("")
        self._start(lambda: self._run(request, options))

    def _excerpt(self, path, request, features, statistics):
        song = songs.cached_song(path, features, progress=self.progress, cancelled=self.task.cancelled)
        return ablation.cut_excerpt(song, statistics, request["start_s"], request["seconds"])

    def _run(self, request, options):
        preview = plots.LivePreview(self._show_live)
        common = {"progress": self.progress, "cancelled": self.task.cancelled, "callback": preview}
        if request["change"] == CHECKPOINTS:

            def make_excerpt(model, statistics):
                preview.begin(model, request["seconds"], options.sampling.seed)
                return self._excerpt(request["song"], request, model.features, statistics)

            options = dataclasses.replace(options, singer=None)  # a training run may have other singers
            runs = ablation.run_checkpoints(request["run"], request["checkpoints"], make_excerpt, options, **common)
            for step, result in zip(request["checkpoints"], runs, strict=True):
                self._add(result, training.load_model(request["run"], step)[0], request["run"].name)
            return
        loaded = self.models.get(request["path"], lambda: instrument.open(request["path"]))
        preview.begin(loaded.model, request["seconds"], options.sampling.seed)
        song = request["other"] if request["change"] == OTHER_SONG else request["song"]
        excerpt, changes = self._excerpt(song, request, loaded.features, loaded.statistics), []
        if request["change"] != OTHER_SONG:
            other = None
            if "other song" in request["change"]:
                other = self._excerpt(request["other"], request, loaded.features, loaded.statistics)
            changes = ablation.from_choice(
                request["change"], other, request["semitones"], request["strength"], request["other_singer"]
            )
        self._add(ablation.run(loaded.model, excerpt, changes, options, **common), loaded.model, loaded.name)

    def _show_live(self, markup: str) -> None:
        if not self.task.cancelled():
            self.live.value = markup

    def _add(self, result, model, name):
        self.progress(1.0, "drawing")
        self.n_runs += 1
        label = f"{self.n_runs}: {result.label}, {result.excerpt.name}"
        about, calls = result.trace.info, result.trace.n_calls
        text = f"{name}; from {result.excerpt.start_s:.1f} s; {about['method']}, {calls} calls, seed {about['seed']}"
        self.viewer.add(label, Card(result, model, text))
        text = " ".join(filter(None, (f"Run {self.n_runs} is below.", result.notice, about["notice"])))
        self.message.show(text, "warning" if result.notice or about["notice"] else "done")

    def remove(self) -> None:
        """Forget the chosen run."""
        if self.task.busy:
            self._start(lambda: None)  # reports that it is busy
            return
        self.viewer.forget(self.viewer.chosen())
        self.task.show()

    def render(self) -> None:
        """Make the steps of the chosen run audible, measure them, and show players of the pinned ones."""
        label, steps = self.viewer.chosen(), self.viewer.pinned or None
        words = self.words.value

        def task():
            recognizer = recognition.WhisperRecognizer() if words else None
            card = self.viewer.cards[label]
            positions = ablation.probed_steps(len(card.result.trace))
            sounds = step_audio.render_audio(
                card.model,
                card.result.trace,
                positions,
                progress=lambda f, text: self.progress(0.6 * f, text),
                cancelled=self.task.cancelled,
            )
            found = step_audio.audio_metrics(
                card.result.trace,
                sounds.audio,
                card.model.features,
                card.result.excerpt.audio,
                lambda f, text: self.progress(0.6 + 0.4 * f, text),
                self.task.cancelled,
                recognizer,
            )
            self.viewer.show_audio(label, sounds, found, steps)
            self.message.show(f"{len(sounds.audio)} sounds of run {label} were made and measured.", "done")

        self.message.show("")
        self._start(task)
