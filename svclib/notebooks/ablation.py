"""The panel of a study: choose, change one thing, run on the same noise, look, listen, keep."""

import dataclasses
from pathlib import Path

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loads now what the first Run would wait a second for

from svclib.analysis import ablation, interventions, live_preview, step_metrics
from svclib.audio import io as audio
from svclib.conversion import recognition
from svclib.conversion import song as songs
from svclib.models import instrument
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.notebooks import ablation_controls as parts
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run
from svclib.notebooks.ablation_viewer import Card, RunViewer
from svclib.training import api as training
from svclib.utils.errors import Cancelled

MAX_RUNS = 8
PROBES = (
    interventions.Intervention("content"),
    interventions.Intervention("melody"),
    interventions.Intervention("timbre"),
)


def ablation_panel(base) -> "AblationPanel":
    """The study panel for a person's folder; a panel made earlier in this kernel is closed."""
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
            widgets.column("Sing", self.instrument, self.song, self.start_s, self.seconds, self.singer),
            widgets.column("How", self.sampler, self.steps, self.seed, self.probe),
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
                widgets.row(self.hear_button, self.words, self.remove_button, *self.viewer.keep_buttons),
            ]
        )
        self.add_class("svclib-study")
        self.refresh()

    # ------------------------------------------------------------------------------------------------ building blocks

    def _make_choices(self):
        for name, widget in parts.singing(self.base).items():
            setattr(self, name, widget)
        self.instrument.observe(self._guard(lambda _: self._instrument_chosen()), "value")
        self.run.observe(self._guard(lambda _: self._training_chosen()), "value")
        for choice in (self.change, self.steps, self.sampler):
            choice.observe(self._guard(lambda _: self._show_what_counts()), "value")
        button = widgets.button
        self.run_button = button("Run", self._guard(self.sing), "t-study-run", "primary", "sing and keep what happens")
        self.cancel_button = button("Cancel", self._guard(self._cancel), "t-study-cancel", hint="stop the running work")
        self.refresh_button = button("Look again", self._guard(self.refresh), "t-study-refresh")
        self.cancel_button.disabled = True
        self.hear_button = button(
            "Hear and measure",
            self._guard(self.hear),
            "t-study-hear",
            hint="makes steps audible; adds pitch, voicing, loudness to the metrics",
        )
        self.words = widgets.control(
            W.Checkbox,
            "Words",
            "t-study-words",
            "adds the character error rate; needs faster-whisper and a few seconds for every step",
            value=False,
            indent=False,
        )
        self.remove_button = button("Remove run", self._guard(self.remove), "t-study-remove", hint="frees its memory")

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
        self._show_what_counts()
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

    def _show_what_counts(self):
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
        more = ablation.probe_calls(calls, len(PROBES))
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
        for button in (self.hear_button, self.remove_button, *self.viewer.keep_buttons):
            button.disabled = busy or not self.viewer.cards
        if not busy:
            self.progress.hide()

    def _cancel(self):
        self.task.cancel("Stopping; what was sung before stays.")

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

    def sing(self) -> None:
        """Sing the stretch with the chosen change in the background and keep the run."""
        missing = self._missing()
        checkpoints = list(self.checkpoints.value) if self.change.value == parts.CHECKPOINTS else [None]
        if not missing and len(self.viewer.cards) + len(checkpoints) > MAX_RUNS:
            missing = f"At most {MAX_RUNS} runs are kept; choose one and press Remove run."
        if not missing and (not checkpoints or (checkpoints[0] is not None and self.run.value is None)):
            missing = f"Choose a training from {self.base.runs} and one or more of its steps."
        if missing:
            self.message.show(missing, "warning")
            return
        wish = {
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
        self._start(lambda: self._sing(wish, options))

    def _excerpt(self, path, wish, features, statistics):
        song = songs.cached_song(path, features, progress=self.progress, cancelled=self.task.cancelled)
        return interventions.cut_excerpt(song, statistics, wish["start_s"], wish["seconds"])

    def _sing(self, wish, options):
        preview = live_preview.LivePreview(self._show_live)
        common = {"progress": self.progress, "cancelled": self.task.cancelled, "callback": preview}
        if wish["change"] == parts.CHECKPOINTS:

            def make_excerpt(model, statistics):
                preview.begin(model, wish["seconds"], options.sampling.seed)
                return self._excerpt(wish["song"], wish, model.features, statistics)

            options = dataclasses.replace(options, singer=None)  # a training run may have other singers
            runs = ablation.run_checkpoints(wish["run"], wish["checkpoints"], make_excerpt, options, **common)
            for step, result in zip(wish["checkpoints"], runs, strict=True):
                self._add(result, training.load_model(wish["run"], step)[0], wish["run"].name)
            return
        loaded = self.models.get(wish["path"], lambda: instrument.open(wish["path"]))
        preview.begin(loaded.model, wish["seconds"], options.sampling.seed)
        song = wish["other"] if wish["change"] == parts.OTHER_SONG else wish["song"]
        excerpt, changes = self._excerpt(song, wish, loaded.features, loaded.statistics), []
        if wish["change"] != parts.OTHER_SONG:
            other = None
            if "other song" in wish["change"]:
                other = self._excerpt(wish["other"], wish, loaded.features, loaded.statistics)
            changes = interventions.from_choice(
                wish["change"], other, wish["semitones"], wish["strength"], wish["other_singer"]
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
        said = " ".join(filter(None, (f"Run {self.n_runs} is below.", result.notice, about["notice"])))
        self.message.show(said, "warning" if result.notice or about["notice"] else "done")

    def remove(self) -> None:
        """Forget the chosen run."""
        if self.task.busy:
            self._start(lambda: None)  # says that it is busy
            return
        self.viewer.forget(self.viewer.chosen())
        self.task.show()

    def hear(self) -> None:
        """Make the steps of the chosen run audible, measure them, and show players of the pinned ones."""
        label, steps = self.viewer.chosen(), self.viewer.pinned or None
        words = self.words.value

        def task():
            recognizer = recognition.WhisperRecognizer() if words else None
            card = self.viewer.cards[label]
            positions = ablation.probed_steps(len(card.result.trace))
            sounds = ablation.render_audio(
                card.model,
                card.result,
                positions,
                progress=lambda f, text: self.progress(0.6 * f, text),
                cancelled=self.task.cancelled,
            )
            found = step_metrics.audio_metrics(
                card.result.trace,
                sounds.audio,
                card.model.features,
                card.result.excerpt.audio,
                lambda f, text: self.progress(0.6 + 0.4 * f, text),
                self.task.cancelled,
                recognizer,
            )
            self.viewer.listen(label, sounds, found, steps)
            self.message.show(f"{len(sounds.audio)} sounds of run {label} were made and measured.", "done")

        self.message.show("")
        self._start(task)
