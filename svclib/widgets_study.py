"""The panel of a study: choose, change one thing, run on the same noise, look, listen, keep."""

import dataclasses
from pathlib import Path
from typing import Any

import librosa.core.convert  # noqa: F401  loads now what the first Run would wait a second for

from svclib import (
    audio,
    comparison,
    conversion,
    instrument,
    live,
    page,
    plots,
    samplers,
    start,
    step_metrics,
    store,
    stretches,
    study,
    study_views,
    training,
    widgets,
)
from svclib import widgets_study_parts as parts
from svclib.progress import Cancelled

MAX_RUNS = 8
PROBES = (stretches.Change("content"), stretches.Change("melody"), stretches.Change("timbre"))


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A run with what it was made with."""

    sung: study.Sung
    model: Any
    text: str


def study_panel(base) -> "StudyPanel":
    """The study panel for a person's folder; a panel made earlier in this kernel is closed."""
    panel = StudyPanel(base)
    widgets.only_one("study", panel)
    return panel


class StudyPanel(widgets.Panel):
    """Runs of a diffusion instrument side by side. Nothing is computed before a button is pressed."""

    def __init__(self, base):
        self.base, self.cards, self.heard, self.view = base, {}, {}, None
        self.pinned, self.n_runs, self.updating = [], 0, False
        self.message, self.progress = widgets.Message(), widgets.Progress()
        self.job = widgets.Job(self.message, self._busy)
        self.models, self._guard = widgets.Cache(2), widgets.guarded(self.message)
        self._make_choices()
        self._make_looking()
        self.shown, self.players = widgets.html(css_class="t-study-view"), widgets.html(css_class="t-study-players")
        self.listing, self.live = widgets.html(css_class="t-study-runs"), widgets.html(css_class="t-study-live")
        groups = widgets.row(
            widgets.column("Sing", self.instrument, self.song, self.start_s, self.seconds, self.singer),
            widgets.column("How", self.sampler, self.steps, self.seed, self.probe),
            widgets.column("Change one thing", self.change, self.other_song, self.other_singer, self.semitones,
                           self.strength, self.run, self.checkpoints),
        )  # fmt: skip
        groups.layout.align_items = "flex-start"
        super().__init__([
            groups, widgets.row(self.run_button, self.cancel_button, self.refresh_button, self.progress.widget),
            self.message.widget, self.live, self.listing,
            widgets.row(self.look, self.a, self.b, self.state),
            widgets.row(self.step, self.pin_button, self.unpin_button, self.tolerance),
            self.shown, self.players,
            widgets.row(self.hear_button, self.remove_button, *self.keep_buttons),
        ])  # fmt: skip
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

    def _make_looking(self):
        for name, widget in parts.looking().items():
            setattr(self, name, widget)
        button, draw = widgets.button, self._guard(lambda _: self.draw())
        for widget in (self.look, self.b, self.state, self.step, self.tolerance):
            widget.observe(draw, "value")
        self.a.observe(self._guard(lambda _: self._run_chosen()), "value")
        self.pin_button = button("Pin step", self._guard(self.pin), "t-study-pin", hint="keep it to see side by side")
        self.unpin_button = button("Unpin all", self._guard(self.unpin), "t-study-unpin")
        self.hear_button = button("Hear and measure", self._guard(self.hear), "t-study-hear",
                                  hint="makes steps audible; adds pitch, voicing, loudness to the metrics")  # fmt: skip
        self.remove_button = button("Remove run", self._guard(self.remove), "t-study-remove", hint="frees its memory")
        kinds = {"CSV": "the numbers", "PNG": "the picture", "SVG": "the picture, scalable", "npz": "the whole run"}
        self.keep_buttons = [
            button(f"Save {kind}", self._guard(lambda kind=kind: self.keep(kind)), f"t-study-{kind.lower()}",
                   hint=f"{text}, into {self.base.output}") for kind, text in kinds.items()
        ]  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- choices

    def refresh(self) -> None:
        """Read the folders again; keeps the choices that still exist."""
        entries = [e for e in instrument.list_folder(self.base.instruments) if not e.problem and e.kind == "diffusion"]
        self.singers = {e.path: list(e.info.get("singers") or ()) for e in entries}
        songs = [(str(Path(p).relative_to(self.base.examples)), Path(p)) for p in audio.find(self.base.examples)[0]]
        runs = [(p.name, p) for p in sorted(self.base.runs.iterdir()) if (p / "checkpoints").is_dir()]
        self._fill(self.instrument, [(e.path.name, e.path) for e in entries])
        self._fill(self.song, songs)
        self._fill(self.other_song, songs)
        self._fill(self.run, runs)
        self._instrument_chosen()
        self._show_what_counts()
        self.message.say(self._missing(), "warning")
        self.job.show()

    @staticmethod
    def _fill(menu, options):
        wanted = menu.value
        menu.options = options or [("(none yet)", None)]
        values = [value for _, value in menu.options]
        menu.value = wanted if wanted in values else values[0]

    def _instrument_chosen(self):
        names = [(name, name) for name in self.singers.get(self.instrument.value, ())]
        self._fill(self.singer, names)
        self._fill(self.other_singer, names[1:] + names[:1])

    def _training_chosen(self):
        self.checkpoints.options = ()  # also if the next line fails
        entries = [] if self.run.value is None else start.checkpoint_steps(self.run.value)
        self.checkpoints.options = [(f"step {e.step}" + (", best" if e.best else ""), e.step) for e in entries]
        self.checkpoints.value = tuple(e.step for e in (entries[:1] + entries[-1:] if len(entries) > 1 else entries))

    def _show_what_counts(self):
        choice = self.change.value
        for widget, words in (
            (self.other_song, "other song"), (self.other_singer, "other singer"), (self.semitones, "transposed"),
            (self.strength, "strength"), (self.run, "checkpoints"), (self.checkpoints, "checkpoints"),
        ):  # fmt: skip
            widget.layout.display = "" if words in choice else "none"
        calls = samplers.METHODS[self.sampler.value].n_calls(self.steps.value)
        more = study.probe_calls(calls, len(PROBES))
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
        for button in (self.hear_button, self.remove_button, *self.keep_buttons):
            button.disabled = busy or not self.cards
        if not busy:
            self.progress.hide()

    def _cancel(self):
        self.job.cancel("Stopping; what was sung before stays.")

    def _start(self, task) -> None:
        def work():
            self.progress(0.0, "beginning")
            try:
                task()
            except Cancelled:
                self.message.say("Cancelled; nothing unfinished is kept.", "warning")
            finally:
                self.live.value = ""

        self.job.start(work)

    def sing(self) -> None:
        """Sing the stretch with the chosen change in the background and keep the run."""
        missing = self._missing()
        checkpoints = list(self.checkpoints.value) if self.change.value == parts.CHECKPOINTS else [None]
        if not missing and len(self.cards) + len(checkpoints) > MAX_RUNS:
            missing = f"At most {MAX_RUNS} runs are kept; choose one and press Remove run."
        if not missing and (not checkpoints or (checkpoints[0] is not None and self.run.value is None)):
            missing = f"Choose a training from {self.base.runs} and one or more of its steps."
        if missing:
            self.message.say(missing, "warning")
            return
        wish = {
            "change": self.change.value, "path": self.instrument.value, "song": self.song.value,
            "other": self.other_song.value, "start_s": self.start_s.value, "seconds": self.seconds.value,
            "semitones": self.semitones.value, "strength": self.strength.value,
            "other_singer": self.other_singer.value, "run": self.run.value, "checkpoints": checkpoints,
        }  # fmt: skip
        options = {
            "method": self.sampler.value, "steps": self.steps.value, "seed": self.seed.value,
            "probe": PROBES if self.probe.value else (), "singer": self.singer.value,
        }  # fmt: skip
        self.message.say("")
        self._start(lambda: self._sing(wish, options))

    def _stretch(self, path, wish, features, statistics):
        song = conversion.cached_song(path, features, progress=self.progress, cancelled=self.job.cancelled)
        return stretches.stretch(song, statistics, wish["start_s"], wish["seconds"])

    def _sing(self, wish, options):
        watch = live.Live(self._show_live)
        common = {"progress": self.progress, "cancelled": self.job.cancelled, "watch": watch, **options}
        if wish["change"] == parts.CHECKPOINTS:

            def song_of(model, statistics):
                watch.begin(model, wish["seconds"], options["seed"])
                return self._stretch(wish["song"], wish, model.features, statistics)

            common["singer"] = None  # a training may know other singers
            runs = study.sing_checkpoints(wish["run"], wish["checkpoints"], song_of, **common)
            for step, sung in zip(wish["checkpoints"], runs, strict=True):
                self._add(sung, training.load_model(wish["run"], step)[0], wish["run"].name)
            return
        loaded = self.models.get(wish["path"], lambda: instrument.open(wish["path"]))
        watch.begin(loaded.model, wish["seconds"], options["seed"])
        song = wish["other"] if wish["change"] == parts.OTHER_SONG else wish["song"]
        asked, changes = self._stretch(song, wish, loaded.features, loaded.statistics), []
        if wish["change"] != parts.OTHER_SONG:
            other = None
            if "other song" in wish["change"]:
                other = self._stretch(wish["other"], wish, loaded.features, loaded.statistics)
            changes = stretches.chosen(wish["change"], other, wish["semitones"], wish["strength"], wish["other_singer"])
        self._add(study.sing(loaded.model, asked, changes, **common), loaded.model, loaded.name)

    def _show_live(self, markup: str) -> None:
        if not self.job.cancelled():
            self.live.value = markup

    def _add(self, sung, model, name):
        self.progress(1.0, "drawing")
        self.n_runs += 1
        label = f"{self.n_runs}: {sung.label}, {sung.asked.name}"
        about, calls = sung.trace.info, sung.trace.n_calls
        text = f"{name}; from {sung.asked.start_s:.1f} s; {about['method']}, {calls} calls, seed {about['seed']}"
        self.cards = {**self.cards, label: Card(sung, model, text)}  # anew: it may be looked at in another thread
        self._runs_changed(label)
        said = " ".join(filter(None, (f"Run {self.n_runs} is below.", sung.notice, about["notice"])))
        self.message.say(said, "warning" if sung.notice or about["notice"] else "done")

    def _runs_changed(self, wanted=None):
        rows = [[label, card.text, f"{card.sung.trace.n_bytes / 1e6:.1f} MB"] for label, card in self.cards.items()]
        self.listing.value = page.table(["run", "made with", ">memory"], rows) if rows else ""
        self.updating = True
        try:
            for menu in (self.a, self.b):
                self._fill(menu, [(label, label) for label in self.cards])
            if wanted is not None:
                self.a.value = wanted
        finally:
            self.updating = False
        self._run_chosen()

    def remove(self) -> None:
        """Forget the chosen run."""
        if self.job.busy:
            self._start(lambda: None)  # says that it is busy
            return
        gone = self._chosen()
        self.cards = {label: card for label, card in self.cards.items() if label != gone}
        self.heard = {label: heard for label, heard in self.heard.items() if label != gone}
        self._runs_changed()
        self.job.show()

    def _chosen(self) -> str:
        if self.a.value not in self.cards:
            raise store.StoreError("There is no run yet; press Run first.")
        return self.a.value

    def hear(self) -> None:
        """Make the steps of the chosen run audible, measure them, and show players of the pinned ones."""
        label, steps = self._chosen(), self.pinned or None

        def task():
            card = self.cards[label]
            positions = study.probed_steps(len(card.sung.trace))
            sounds = study.hear(card.model, card.sung, positions, progress=lambda f, text: self.progress(0.6 * f, text),
                                cancelled=self.job.cancelled)  # fmt: skip
            found = step_metrics.heard_metrics(
                card.sung.trace, sounds.audio, card.model.features, card.sung.asked.audio,
                lambda f, text: self.progress(0.6 + 0.4 * f, text), self.job.cancelled,
            )  # fmt: skip
            self.heard = {**self.heard, label: (sounds, found)}
            self._show_players(label, steps)
            if self.look.value == "metrics per step":
                self.draw()
            self.look.value = "metrics per step"  # which draws it
            self.message.say(f"{len(sounds.audio)} sounds of run {label} were made and measured.", "done")

        self.message.say("")
        self._start(task)

    # -------------------------------------------------------------------------------------------------------- looking

    def _run_chosen(self):
        if self.updating:
            return
        card = self.cards.get(self.a.value)
        if card is not None:
            self.updating = True
            try:
                self.step.max = len(card.sung.trace) + 1
                self.step.value = min(self.step.value, self.step.max)
            finally:
                self.updating = False
        self._show_players(self.a.value, self.pinned or None)
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
        if self.updating or not self.cards:
            if not self.cards:
                self.shown.value, self.view = "", None
            return
        wish = study_views.Wish(
            {label: card.sung for label, card in self.cards.items()}, self.a.value, self.b.value, self.step.value - 1,
            self.pinned, self.state.value, self.tolerance.value,
            {label: found for label, (_, found) in self.heard.items()},
        )  # fmt: skip
        try:
            self.view = study_views.look(self.look.value, wish)
        except ValueError as error:
            self.view, self.shown.value = None, page.notice(str(error), "warning")
            return
        except BaseException:
            self.view, self.shown.value = None, ""  # never another view's picture under this name
            raise
        drawing = page.picture(plots.png(self.view.figure), f"{self.look.value} of run {self.a.value}", 1000)
        self.shown.value = drawing + page.paragraph(self.view.about)

    def _show_players(self, label, steps):
        if label not in self.heard:
            self.players.value = ""
            return
        sounds, n = self.heard[label][0], len(self.cards[label].sung.trace)
        wanted = [s for s in (steps or (0, n // 2, n)) if s in sounds.audio] or [n]
        names = {s: "result" if s == n else f"step {s + 1}" for s in wanted}
        notes = {s: f"{sounds.quieter_db[s]:g} dB quieter than it was" for s in wanted if s in sounds.quieter_db}
        self.players.value = page.flow(
            *(page.player(sounds.audio[s], sounds.sample_rate_hz, names[s], notes.get(s, "")) for s in wanted)
        )

    def keep(self, kind: str) -> None:
        """Save what is shown (CSV, PNG, SVG), or the chosen run (npz), under a name that is not taken."""
        card = self.cards[self._chosen()]
        name, folder = f"study {self.a.value} - {self.look.value}", self.base.output
        if kind == "npz":
            path = comparison.save_trace(folder, f"study {self.a.value}", card.sung.trace)
        elif self.view is None:
            raise store.StoreError("Nothing is shown that could be saved; choose another view.")
        elif kind == "CSV":
            path = comparison.save_csv(folder, name, self.view.head, self.view.rows)
        else:
            draw = plots.png if kind == "PNG" else plots.svg
            path = comparison.save_bytes(folder, name, f".{kind.lower()}", draw(self.view.figure))
        self.message.say(f"Saved as {path}.", "done")
