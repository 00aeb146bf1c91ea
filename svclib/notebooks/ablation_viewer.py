"""Views, players and saved files of the runs of the ablation panel."""

import functools
from typing import Any, NamedTuple

from svclib.analysis import ablation, compare, plots
from svclib.analysis import html as page
from svclib.analysis.plots import ablation as views
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import TaskPanel
from svclib.utils.errors import StorageError

FILES = {"CSV": "the numbers", "PNG": "the picture", "SVG": "the picture, scalable", "npz": "the whole run"}


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
