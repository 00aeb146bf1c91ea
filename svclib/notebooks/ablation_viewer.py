"""Views, players and saved files of the runs of the ablation panel."""

import dataclasses
from pathlib import Path
from typing import Any

import ipywidgets as W

from svclib.analysis import ablation, compare, plots
from svclib.analysis import html as page
from svclib.analysis.plots import ablation as views
from svclib.notebooks import base as widgets
from svclib.utils.errors import StorageError


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A run, its model, and its settings as text."""

    result: ablation.RunResult
    model: Any
    text: str


class RunViewer:
    """The lower half of the ablation panel: views, players and files of finished runs.

    Args:
        message: For errors and the paths of saved files.
        folder: For saved files.

    Attributes:
        cards: The runs by label.
        rendered: Sounds of the steps and their metrics, of the runs that were made audible.
        pinned: Steps to see side by side; none stands for the first, the middle and the result.
        view: What is drawn, or None.
        rows, keep_buttons: To lay out.
    """

    def __init__(self, message: widgets.Message, folder: Path):
        self.cards: dict[str, Card] = {}
        self.rendered: dict[str, tuple] = {}
        self.pinned: list[int] = []
        self.view: views.View | None = None
        self.folder, self.updating, self._message = folder, False, message
        guard, button = widgets.guarded(message), widgets.button
        self._make_controls()
        draw = guard(lambda _: self.draw())
        for widget in (self.look, self.b, self.state, self.step, self.tolerance):
            widget.observe(draw, "value")
        self.a.observe(guard(lambda _: self._run_chosen()), "value")
        self.pin_button = button("Pin step", guard(self.pin), "t-study-pin", hint="keep it to see side by side")
        self.unpin_button = button("Unpin all", guard(self.unpin), "t-study-unpin")
        kinds = {"CSV": "the numbers", "PNG": "the picture", "SVG": "the picture, scalable", "npz": "the whole run"}
        self.keep_buttons = [
            button(
                f"Save {kind}",
                guard(lambda kind=kind: self.keep(kind)),
                f"t-study-{kind.lower()}",
                hint=f"{text}, into {folder}",
            )
            for kind, text in kinds.items()
        ]
        self.listing, self.shown = widgets.html(css_class="t-study-runs"), widgets.html(css_class="t-study-view")
        self.players = widgets.html(css_class="t-study-players")
        self.rows = (
            self.listing,
            widgets.row(self.look, self.a, self.b, self.state),
            widgets.row(self.step, self.pin_button, self.unpin_button, self.tolerance),
            self.shown,
            self.players,
        )

    def _make_controls(self):
        control = widgets.control
        states = [(text, name) for name, text in compare.STATES.items()]
        self.look = control(W.Dropdown, "View", "t-study-look", "what to look at", options=list(views.VIEWS))
        self.a = control(W.Dropdown, "Run", "t-study-a", "the run in question", options=[("", None)])
        self.b = control(W.Dropdown, "against", "t-study-b", "the run it is compared with", options=[("", None)])
        self.state = control(W.Dropdown, "Show", "t-study-state", "of every step", options=states)
        self.step = control(
            W.IntSlider,
            "Step",
            "t-study-step",
            "arrow keys move it by one",
            min=1,
            max=2,
            value=1,
            continuous_update=False,
        )
        self.tolerance = control(
            W.BoundedFloatText,
            "Within (dB)",
            "t-study-tolerance",
            "when a bin counts as settled",
            min=0.1,
            max=40.0,
            value=3.0,
            step=0.5,
        )
        for widget in (self.look, self.a, self.b, self.state, self.step, self.tolerance):
            widget.layout.width, widget.style.description_width = "min(290px, 98%)", "84px"
        self.step.layout.width = "min(420px, 98%)"

    def add(self, label: str, card: Card) -> None:
        """Show another run, which becomes the chosen one."""
        self.cards = {**self.cards, label: card}  # anew: another thread may be drawing it
        self._runs_changed(label)

    def forget(self, label: str) -> None:
        """Remove a run."""
        self.cards = {name: card for name, card in self.cards.items() if name != label}
        self.rendered = {name: found for name, found in self.rendered.items() if name != label}
        self._runs_changed()

    def show_audio(self, label: str, sounds, metrics: list, steps: list[int] | None) -> None:
        """Show players for steps of a run that was made audible (``player.StepAudio``), and its metrics."""
        self.rendered = {**self.rendered, label: (sounds, metrics)}
        self._show_players(label, steps)
        if self.look.value == "metrics per step":
            self.draw()
        self.look.value = "metrics per step"  # draws it

    def chosen(self) -> str:
        """Label of the chosen run; StorageError if there is none yet."""
        if self.a.value not in self.cards:
            raise StorageError("There is no run yet; press Run first.")
        return self.a.value

    def _runs_changed(self, wanted=None):
        rows = [[label, card.text, f"{card.result.trace.n_bytes / 1e6:.1f} MB"] for label, card in self.cards.items()]
        self.listing.value = page.table(["run", "made with", ">memory"], rows) if rows else ""
        self.updating = True
        try:
            for menu in (self.a, self.b):
                widgets.fill(menu, [(label, label) for label in self.cards])
            if wanted is not None:
                self.a.value = wanted
        finally:
            self.updating = False
        self._run_chosen()

    def _run_chosen(self):
        if self.updating:
            return
        card = self.cards.get(self.a.value)
        if card is not None:
            self.updating = True
            try:
                self.step.max = len(card.result.trace) + 1
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
        request = views.ViewRequest(
            {label: card.result for label, card in self.cards.items()},
            self.a.value,
            self.b.value,
            self.step.value - 1,
            self.pinned,
            self.state.value,
            self.tolerance.value,
            {label: found for label, (_, found) in self.rendered.items()},
        )
        try:
            self.view = views.draw_view(self.look.value, request)
        except ValueError as error:
            self.view, self.shown.value = None, page.notice(str(error), "warning")
            return
        except BaseException:
            self.view, self.shown.value = None, ""  # never another view's picture under this name
            raise
        drawing = page.picture(plots.png(self.view.figure), f"{self.look.value} of run {self.a.value}", 1000)
        self.shown.value = drawing + page.paragraph(self.view.about)

    def _show_players(self, label, steps):
        if label not in self.rendered:
            self.players.value = ""
            return
        sounds, n = self.rendered[label][0], len(self.cards[label].result.trace)
        wanted = [s for s in (steps or (0, n // 2, n)) if s in sounds.audio] or [n]
        names = {s: "result" if s == n else f"step {s + 1}" for s in wanted}
        notes = {s: f"{sounds.attenuated_db[s]:g} dB quieter than it was" for s in wanted if s in sounds.attenuated_db}
        self.players.value = page.flow(
            *(page.player(sounds.audio[s], sounds.sample_rate_hz, names[s], notes.get(s, "")) for s in wanted)
        )

    def keep(self, kind: str) -> None:
        """Save what is shown (CSV, PNG, SVG), or the chosen run (npz), under a name that is not taken."""
        card = self.cards[self.chosen()]
        name, folder = f"study {self.a.value} - {self.look.value}", self.folder
        if kind == "npz":
            path = compare.save_file(folder, f"study {self.a.value}", ".npz", card.result.trace.save)
        elif self.view is None:
            raise StorageError("Nothing is shown that could be saved; choose another view.")
        elif kind == "CSV":
            path = compare.save_csv(folder, name, self.view.head, self.view.rows)
        else:
            data = (plots.png if kind == "PNG" else plots.svg)(self.view.figure)
            path = compare.save_file(folder, name, f".{kind.lower()}", lambda part: part.write_bytes(data))
        self._message.show(f"Saved as {path}.", "done")
