"""The panels of notebook 02: presets that fit, the live view of a training, checkpoints to listen to, runs compared."""

from pathlib import Path
from typing import Any

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import ddsp_inspection, plots
from svclib.analysis import html as page
from svclib.audio import units
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run
from svclib.notebooks.prepare import open_folder, shown_progress, summary_html
from svclib.training import api as training
from svclib.utils import config
from svclib.utils.errors import ConfigError

__all__ = [
    "CheckpointPanel",
    "PresetPanel",
    "TrainingView",
    "choose_checkpoint",
    "choose_preset",
    "compare_runs",
    "device",
    "export",
    "open_dataset",
    "open_folder",
    "reconstruction",
    "tensorboard",
    "train",
    "z_map",
]


def open_dataset(base, voice: str, preset: str, minutes: float | int = first_run.MINUTES):
    """The dataset of a voice as the preset needs it, prepared first where it is not, with a note."""
    bar = shown_progress()
    try:
        data, note = first_run.prepared(base, voice, first_run.preset(preset), minutes, progress=bar)
    finally:
        bar.hide()
    display(HTML(page.notice(note) + summary_html(data)))
    return data


# ------------------------------------------------------------------------------------------------------------- preset


class PresetPanel(widgets.Panel):
    """A menu of the presets that fit a dataset, with what they are for and cost; ``value`` is the chosen one."""

    def __init__(self, data, wanted: str):
        self.unfit = {}
        fitting = []
        for name in dict.fromkeys([*config.preset_names(), wanted]):
            try:
                problem = training.fits(data.settings, first_run.preset(name))
            except ConfigError as error:
                problem = str(error)
            if problem is None:
                fitting.append(name)
            else:
                self.unfit[name] = problem
        self.message, self.about = widgets.Message(), widgets.html(css_class="t-about")
        self.menu = widgets.control(
            W.Dropdown,
            "Preset",
            "t-preset",
            "what to train",
            options=fitting,
            value=wanted if wanted in fitting else None,
        )
        self.menu.layout.width, self.menu.style.description_width = "min(360px, 98%)", "80px"
        self.menu.observe(widgets.guarded(self.message)(lambda _: self._changed()), "value")
        super().__init__([self.menu, self.about, self.message.widget])
        if wanted in self.unfit:
            self.message.show(f"{self.unfit[wanted]} Choose one of the menu.", "warning")
        self._describe()

    def _changed(self):
        self.message.show("")
        self._describe()

    def _describe(self):
        name = self.menu.value
        text = "\n".join(config.describe(part) for part in name.split("+")) if name else ""
        self.about.value = page.notice(text) if text else ""

    @property
    def value(self) -> str:
        """The chosen preset.

        Raises:
            ValueError: if none is chosen.
        """
        if self.menu.value is None:
            raise ValueError("Choose a preset in the menu above, then run this cell again.")
        return self.menu.value


def choose_preset(data, wanted: str) -> PresetPanel:
    """The preset menu for a dataset, with ``wanted`` chosen if it fits."""
    panel = PresetPanel(data, wanted)
    widgets.only_one("preset", panel)
    return panel


def device() -> HTML:
    """The GPU and what it means for the time, in one sentence."""
    return HTML(page.notice(training.device_summary()))


# ----------------------------------------------------------------------------------------------------------- training


class TrainingView:
    """The live view of a training, up to ``minutes`` of it: numbers, bar and curve; called with ``training.Status``."""

    def __init__(self, run: Path | None, curve_every_s: float | int = 15.0, minutes: float | int | None = None):
        self.run, self._every_s, self._drawn_at = run, curve_every_s, 0.0
        self._log: training.LogReader | None = None
        self.minutes = minutes
        self._began_s: float | None = None
        self.bar = W.FloatProgress(min=0.0, max=1.0, layout=W.Layout(width="min(480px, 98%)", height="18px"))
        self.numbers, self.messages_html = widgets.html(css_class="t-status"), widgets.html(css_class="t-told")
        self.curve, self.message = widgets.html(css_class="t-curve"), widgets.Message()
        self.widget = W.VBox([self.bar, self.numbers, self.messages_html, self.curve, self.message.widget])
        self._messages = []

    def __call__(self, status) -> None:
        """Show a ``training.Status``."""
        self._began_s = self._began_s or first_run.elapsed_s()
        self.bar.value, left_s = first_run.progress_summary(status, self.minutes, first_run.elapsed_s() - self._began_s)
        self.numbers.value = status_html(status, left_s)
        if status.message and status.message not in self._messages[-1:]:
            self._messages.append(status.message)
            self.messages_html.value = "".join(page.paragraph(message) for message in self._messages[-4:])
        if self.run and first_run.elapsed_s() - self._drawn_at > self._every_s:
            self.draw()

    def finish(self, message: str) -> None:
        """Draw the whole curve; ``message`` is shown elsewhere and leaves the list."""
        self.messages_html.value = "".join(page.paragraph(text) for text in self._messages[-4:] if text != message)
        self.draw()

    def draw(self) -> None:
        """Draw the curve of what is logged so far; a failure is shown and stops no training."""
        self._drawn_at = first_run.elapsed_s()
        try:
            self._draw()
        except Exception as error:  # a picture is not worth a night of training
            self.message.show_error(error)

    def _draw(self):
        try:
            self._log = self._log or training.LogReader(self.run)  # parses only what is new since the last drawing
            curves = self._log.update().curves(max_points=2000)
        except ValueError:
            return  # nothing logged yet
        picture = plots.png(plots.loss_curves(curves, self.run.name))
        self.curve.value = page.picture(picture, "training and validation loss over steps")
        self.message.show("")


class LazyView:
    """A training view without curve that appears with the first status."""

    def __init__(self, minutes: float | int | None = None):
        self._minutes = minutes
        self._view: TrainingView | None = None

    def __call__(self, status) -> None:
        """Show a ``training.Status``."""
        if self._view is None:
            self._view = TrainingView(None, minutes=self._minutes)
            display(self._view.widget)
        self._view(status)


def status_html(status, left_s: float | None) -> str:
    """A ``training.Status`` and the time left as a row of figures."""
    figures = [
        ("step", f"{status.step} of {status.steps}"),
        ("loss", "–" if status.loss is None else f"{status.loss:.3f}"),
        ("held-out loss", "–" if status.validation_loss is None else f"{status.validation_loss:.3f}"),
        ("steps per second", "–" if not status.steps_per_s else f"{status.steps_per_s:.2f}"),
        ("time left", "–" if left_s is None else units.duration_text(left_s)),
        ("saved", _saved(status)),
    ]
    cell = '<div style="min-width:96px"><div style="opacity:.7;font-size:12px">{}</div><b>{}</b></div>'
    cells = "".join(cell.format(page.text(name), page.text(value)) for name, value in figures)
    style = f"{page.FONT};display:flex;flex-wrap:wrap;gap:4px 22px;margin:4px 0;font-variant-numeric:tabular-nums"
    return f'<div style="{style}">{cells}</div>'


def _saved(status) -> str:
    if status.last_saved_step is None:
        return "not yet"
    age_s = status.last_saved_age_s
    return f"step {status.last_saved_step}" + ("" if age_s is None else f", {units.duration_text(age_s)} ago")


def train(
    data: Any,
    base: Any,
    preset: str,
    minutes: float | int | None = None,
    steps: int | None = None,
    on_cpu: bool = False,
    init: str = "base",
) -> Path:
    """Train, or go on where the run stopped, with a live view; interrupting the cell saves.

    Args:
        data: The dataset, from :func:`open_dataset`.
        base: ``folders.Base``; the run lies in ``base.runs / "<dataset>-<preset>"``.
        preset: Name of a preset.
        minutes: Stop after so many minutes; 0 or None: at the preset's last step.
        steps: Total steps instead of the preset's; 0 or None: the preset's.
        on_cpu: Go on although no GPU is there and it would take many hours.
        init: What a new run starts from: ``base``, the shipped base model where the preset is its; ``none``, fresh
            weights; or the path of an instrument.

    Returns:
        The run's folder.
    """
    run = first_run.run_folder(base, data, preset)
    view = TrainingView(run, minutes=minutes)
    display(view.widget)
    start = None if init == "none" else init
    result = first_run.train(data, run, preset, minutes or None, steps or None, on_cpu, view, base.examples, start)
    view.finish(result.message)
    display(HTML(page.notice(result.message, "done" if result.reason in ("finished", "minutes") else "warning")))
    return run


def tensorboard(run: Path, wanted: bool = True) -> None:
    """Show TensorBoard for a run, if it is wanted."""
    if wanted:
        from tensorboard import notebook

        notebook.start(f'--logdir "{Path(run) / "tensorboard"}"')
    else:
        display(HTML(page.paragraph("TensorBoard is off; set TENSORBOARD = True in the first cell to see it here.")))


# --------------------------------------------------------------------------------------------------- after a training


def reconstruction(run: Path, data, which="best", number: int = 0) -> HTML:
    """A held-out excerpt and its reconstruction side by side: spectrograms, players, loss."""
    model, record = training.load_model(run, which)
    made = ddsp_inspection.reconstruct(model, data, number=number)
    rate_hz = made.features.settings.sample_rate_hz
    items = [
        ("Original", made.original, rate_hz, made.features),
        ("Reconstruction", made.reconstructed, rate_hz, made.features),
    ]
    return HTML(
        page.heading(f"{made.name}, from {made.start_s:.1f} s", f"loss {made.loss:.3f} at step {record['step']}")
        + page.picture(plots.png(plots.compare_spectrograms(items)), "spectrograms of original and reconstruction")
        + page.flow(
            page.player(made.original, rate_hz, "Original"), page.player(made.reconstructed, rate_hz, "Reconstruction")
        )
    )


class CheckpointPanel(widgets.Panel):
    """Choose a checkpoint by listening: held-out previews of each, with their scores; ``value`` is a step."""

    def __init__(self, run: Path):
        self.run, self.message = run, widgets.Message()
        self.entries = first_run.checkpoint_steps(run)
        options = [(f"step {e.step}{_score(e)}{', the best' if e.best else ''}", e.step) for e in self.entries]
        best = next((e.step for e in self.entries if e.best), None)
        self.menu = widgets.control(
            W.Dropdown,
            "Checkpoint",
            "t-checkpoint",
            "which one to export",
            options=options,
            value=best if best is not None else (options[-1][1] if options else None),
        )
        self.menu.layout.width, self.menu.style.description_width = "min(430px, 98%)", "90px"
        self.view = widgets.html(css_class="t-previews")
        self.menu.observe(widgets.guarded(self.message)(lambda _: self._show()), "value")
        super().__init__([self.menu, self.message.widget, self.view])
        widgets.guarded(self.message)(self._show)()

    @property
    def value(self) -> int | str:
        """The chosen step."""
        return self.menu.value if self.menu.value is not None else "best"

    def _show(self):
        self.view.value = ""  # if something fails, no sound of another step stays
        entry = next((e for e in self.entries if e.step == self.menu.value), None)
        if entry is None:
            self.message.show("There is no usable checkpoint yet; train first.", "warning")
            return
        if not entry.previews:
            some = any(e.previews for e in self.entries)
            self.message.show(
                "No previews were made at this step; choose another one to listen."
                if some
                else "No previews yet: the training stopped before its first validation. Train longer; until then "
                "play the reconstruction above."
            )
            return
        self.message.show("")
        rows = ""
        for preview in entry.previews:
            original, rate_hz = first_run.read_preview(preview.original)
            made, _ = first_run.read_preview(preview.path)
            rows += page.flow(
                page.player(original, rate_hz, f"Held-out piece {preview.number}"),
                page.player(made, rate_hz, f"Step {entry.step}", f"loss {preview.score:.3f}"),
            )
        self.view.value = rows


def _score(entry) -> str:
    return "" if entry.validation_loss is None else f", held-out loss {entry.validation_loss:.3f}"


def choose_checkpoint(run: Path) -> CheckpointPanel:
    """The checkpoint menu of a run, the best one chosen."""
    panel = CheckpointPanel(run)
    widgets.only_one("checkpoint", panel)
    return panel


def export(run: Path, base, which="best", name: str = "", data=None) -> Path:
    """Write the instrument into ``base.instruments``, where nothing is overwritten; shows the path and a link."""
    path, note = first_run.export(run, base, which, name, data)
    display(HTML(page.notice(note, "done") + page.download_link(path)))
    return path


def compare_runs(base) -> HTML:
    """Curves of all runs, one picture for each kind of loss, and the values at the last step."""
    groups, problems = ddsp_inspection.runs_by_loss(base.runs)
    parts = [page.notice(f"No run in {base.runs} has curves yet.")] if not groups else []
    for loss, runs in groups.items():
        parts.append(page.heading(loss))
        key, title = ("validation_loss", "Held-out recordings") if _measured(runs) else ("loss", "Training")
        drawing = plots.png(plots.compare_runs(runs, key, title, "loss"))
        parts.append(page.picture(drawing, f"{title}: curves of {', '.join(runs)}"))
        rows = [
            [name, int(curves["step"][-1]), f"{curves['last']:.3f}", *_last_validation(curves)]
            for name, curves in runs.items()
        ]
        parts.append(page.table(["run", ">last step", ">training loss there", ">held-out loss", ">at step"], rows))
    parts += [page.paragraph(problem) for problem in problems]
    return HTML("".join(parts))


def _measured(runs: dict) -> bool:
    return any(len(curves["validation_step"]) for curves in runs.values())


def _last_validation(curves: dict) -> list:
    if not len(curves["validation_step"]):
        return ["–", "–"]
    return [f"{curves['validation_loss'][-1]:.3f}", int(curves["validation_step"][-1])]


def z_map(run: Path, data, which="best") -> HTML:
    """A map of z paths for models that have z; for others a sentence."""
    model, _ = training.load_model(run, which)
    paths = ddsp_inspection.z_paths(model, data)
    if not paths:
        return HTML(
            page.notice("This model has no z, so there is no map to draw. The presets ddsp_small and ddsp_z have it.")
        )
    drawing = plots.png(plots.z_map(paths, "Paths of recordings through z"))
    return HTML(page.picture(drawing, "two-dimensional map of z paths", 760))
