"""The ablation study panel: change one thing, run on the same noise, compare views and sounds, save."""

import dataclasses
import itertools
import types

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loaded now: the first Run would wait a second for it

from svclib.analysis import ablation, plots, step_audio
from svclib.conversion import recognition
from svclib.conversion import song as songs
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.notebooks import base as widgets
from svclib.notebooks import train, visualize
from svclib.notebooks.ablation_viewer import Card, RunViewer
from svclib.notebooks.panel import TaskPanel
from svclib.training import api as training
from svclib.utils import workspace
from svclib.utils.errors import ConversionError

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
