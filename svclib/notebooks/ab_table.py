"""The A/B table of notebook 03: one clip in several variants, each to listen to and measured."""

from pathlib import Path
from typing import Any

import ipywidgets as W

from svclib.analysis import html as page
from svclib.audio import io as audio
from svclib.conversion import ab_compare
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks.controls import OWN, sampling_menu, vocoder_menu

_AS_SET = "As set in the panel above"

_LEGEND = (
    "seconds: of the conversion alone, and per second of sound. F0 RMSE, F0 corr.: measured against target F0, where "
    "both are voiced; below 20 cents hardly anybody hears it. Voicing F1: tone where tone was the target, breath where "
    "breath; 1 is all right. Loudness: mean distance from the target."
)


def compare_panel(base: Any, convert: Any = None) -> "ComparePanel":
    """Make the table for a person's folder; one made earlier in this kernel is closed.

    Args:
        base: ``folders.Base``: instruments and examples are used; nothing is written.
        convert: The panel of notebook 03, whose song, knobs and diffusion settings are taken; None takes every
            instrument's own.

    Returns:
        The panel, which a cell shows.
    """
    panel = ComparePanel(base, convert)
    widgets.only_one("compare", panel)
    return panel


class ComparePanel(widgets.Panel):
    """Choose variants, press Compare; a row appears whenever one is converted and measured."""

    def __init__(self, base, convert=None):
        self.base, self.convert = base, convert
        self.message, self.progress = widgets.Message(), widgets.ProgressBar()
        self.task, self.opened = widgets.BackgroundTask(self.message, self._busy), widgets.Cache()
        self.rows: list[ab_compare.Row] = []
        self._shown: list[list] = []
        self._set = ""
        guard = widgets.guarded(self.message)
        self.instruments = self._several("Instruments", "t-ab-instruments", "several with Ctrl or Shift")
        starts = [OWN, ("pure noise", ab_compare.PURE_NOISE), *sampling_menu("shallow")[1:]]
        self.samplers = self._several("Samplers", "t-ab-samplers", "of diffusion instruments", sampling_menu("sampler"))
        self.steps = self._several("Steps", "t-ab-steps", "of diffusion instruments", sampling_menu("steps"))
        self.starts = self._several("Shallow start", "t-ab-shallow", "of diffusion instruments", starts)
        self.vocoders = self._several("Vocoders", "t-ab-vocoders", "of diffusion instruments")
        self.song = widgets.control(W.Dropdown, "Song", "t-ab-song", "the clip comes from it", options=[("", None)])
        self.start = widgets.control(
            W.BoundedFloatText, "Start (s)", "t-ab-start", "where the clip begins", min=0.0, max=36000.0, value=0.0
        )
        self.seconds = widgets.control(
            W.BoundedFloatText, "Length (s)", "t-ab-seconds", "of the clip", min=0.5, max=60.0, value=6.0
        )
        self.as_set = widgets.control(
            W.Checkbox,
            _AS_SET,
            "t-ab-as-set",
            "key, loudness, singers, seed and whatever is not chosen here as the panel has it; otherwise every "
            "instrument's own",
            value=convert is not None,
            indent=False,
        )
        self.as_set.layout.display = "none" if convert is None else ""
        self.compare_button = widgets.button(
            "Compare", guard(self.compare), "t-compare", "primary", "convert the clip in every chosen combination"
        )
        self.cancel_button = widgets.button("Cancel", guard(self._cancel), "t-ab-cancel", hint="rows so far stay")
        self.refresh_button = widgets.button("Look again", guard(self.refresh), "t-ab-refresh", hint="read the folders")
        self.cancel_button.disabled = True
        self.table = widgets.html(css_class="t-ab-table")
        choices = widgets.row(
            widgets.column("Voice", self.instruments, self.vocoders),
            widgets.column("Sampling", self.samplers, self.steps, self.starts),
            widgets.column("Clip", self.song, self.start, self.seconds, self.as_set),
        )
        choices.layout.align_items = "flex-start"
        buttons = (self.compare_button, self.cancel_button, self.refresh_button, self.progress.widget)
        super().__init__([choices, widgets.row(*buttons), self.message.widget, self.table])
        self.add_class("svclib-compare")
        self.refresh()

    @staticmethod
    def _several(label, css_class, hint, options=(OWN,)):
        return widgets.control(W.SelectMultiple, label, css_class, hint, options=list(options), index=(0,), rows=5)

    def refresh(self) -> None:
        """Read the folders again; keeps the choices that still exist."""
        songs = [(path.name, path) for path in map(Path, audio.find(self.base.examples)[0])]
        listed = [entry for entry in instrument.list_folder(self.base.instruments) if entry.kind]
        voices = [entry for entry in listed if entry.converts]
        self._fill(self.instruments, [(entry.path.stem, entry) for entry in voices])
        self._fill(self.vocoders, vocoder_menu(listed))
        widgets.fill(self.song, songs, self.song.value or (self.convert and self.convert.song.value))
        missing = not voices or not songs
        self.task.show()
        self.message.show(
            "An instrument and a song are needed; the cells above make them." if missing else "", "warning"
        )

    @staticmethod
    def _fill(menu, options):
        chosen = [label for label, value in menu.options if value in menu.value]
        menu.options = options
        kept = [i for i, (label, _) in enumerate(options) if label in chosen]
        menu.index = tuple(kept) or ((0,) if options else ())

    def _busy(self, busy: bool) -> None:
        missing = not self.instruments.options or self.song.value is None
        self.compare_button.disabled, self.cancel_button.disabled = busy or missing, not busy
        if not busy:
            self.progress.hide()

    def _cancel(self):
        self.task.cancel("Stopping; the rows so far stay.")

    def compare(self) -> None:
        """Convert the clip in every chosen combination, in the background."""
        chosen = ab_compare.variants(
            self.instruments.value, self.samplers.value, self.steps.value, self.starts.value, self.vocoders.value
        )
        if self.song.value is None:
            self.message.show("There is no song yet; put one into your folder and press Look again.", "warning")
            return
        if not chosen:
            self.message.show("Choose at least one instrument, sampler, number of steps, start and vocoder.", "warning")
            return
        clip, settings = (self.song.value, self.start.value, self.seconds.value), self._settings()

        def task():
            self.message.show("")
            self.rows, self._shown, self._set = [], [], self._settings_text(settings)
            for row in ab_compare.compare(chosen, *clip, settings, self._open, self.progress, self.task.cancelled):
                self.rows.append(row)
                self._append(row)
            count = "One variant was" if len(chosen) == 1 else f"{len(chosen)} variants were"
            self.message.show(f"{count} compared.", "done")

        self.task.start(task)

    def _settings(self) -> dict[Path, ab_compare.Settings]:
        """Settings by instrument, as the panel above has them."""
        if self.convert is None or not self.as_set.value:
            return {}
        return self.convert.settings_of([entry.path for entry in self.instruments.value])

    def _settings_text(self, settings: dict[Path, ab_compare.Settings]) -> str:
        """The settings of the panel above as a sentence; empty where every instrument has its own."""
        if not settings:
            return ""
        kinds = {entry.path: entry.kind for _, entry in self.instruments.options}
        texts = dict.fromkeys(text for path, value in settings.items() if (text := value.text(kinds[path])))
        return f"Set in the panel: {'; '.join(texts) or 'only the defaults'}."

    def _open(self, path):
        return self.opened.get(path, lambda: instrument.open(path))

    def _append(self, row) -> None:
        listen = row.problem if row.audio is None else page.small_player(row.audio, row.sample_rate_hz, row.label)
        self._shown.append([row.label, listen, *row.cells()])
        marks = ["error" if r.problem else "" for r in self.rows]
        table = page.table(list(ab_compare.HEADINGS), self._shown, marks)
        self.table.value = table + page.paragraph(f"{self._set} {_LEGEND}".strip())
