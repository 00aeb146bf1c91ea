"""The panels of notebook 02: presets that fit, the live view of a training, checkpoints to listen to and export, runs
compared."""

import dataclasses
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import ipywidgets as W
import torch
from IPython.display import HTML

from svclib.analysis import ddsp_inspection, plots
from svclib.analysis import html as page
from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import evaluate
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks import prepare
from svclib.notebooks.panel import Panel
from svclib.training import api as training
from svclib.utils import atomic_store, config, filesystem, workspace
from svclib.utils.errors import ConfigError, TrainingError

PATIENCE_HOURS = 6.0
PROGRESS = "progress.html"  # in a run's folder
_LAST_STEP = "Finishing this step"  # of a message that is over when the training is


def instruments(
    base, preset: str, minutes: float | int, singer_minutes: float | int = prepare.MINUTES, kind: str = ""
) -> list[Path]:
    """Usable instruments of a kind (empty: of any), the newest first; where there is none, one is trained shortly.

    That takes ``minutes`` with the preset, on ``singer_minutes`` of a synthetic singer if there are no recordings.
    """
    listed = [entry for entry in instrument.list_folder(base.instruments) if entry.problem is None and entry.converts]
    usable = [entry.path for entry in listed if kind in ("", entry.kind)]
    if usable:
        return widgets.newest_first(usable)
    data = prepare.open_dataset(base, "", preset, singer_minutes)
    run, voice = run_folder(base, data, preset), data.path.parent.name
    made = f"the run {run.name} was exported at its best step."
    if not checkpoint_steps(run):
        with TrainingView(None, minutes) as view:
            training.train(data, run, prepare.preset(preset), minutes=minutes, on_progress=view)
        made = f"one of {voice} was trained for {minutes:g} min: enough to hear that it sings, no more. "
        made += "Notebook 02 trains a better one."
    path = training.export(run, base.instruments / f"{run.name}.zip")
    widgets.show_note(f"{base.instruments} held no {f'{kind} ' if kind else ''}instrument, so {made}")
    return [path]


def run_folder(base, data, preset: str) -> Path:
    """The folder of the run that trains a dataset with a preset."""
    return base.runs / filesystem.safe_name(f"{data.path.parent.name}-{preset}")


class PresetPanel(Panel):
    """A menu of the presets that fit a dataset, with what they are for and cost; ``wanted`` is chosen if it fits."""

    def __init__(self, data, wanted: str):
        super().__init__()
        problems = {}
        for name in dict.fromkeys([*config.preset_names(), wanted]):
            try:
                problems[name] = training.fits(data, prepare.preset(name))
            except ConfigError as error:
                problems[name] = str(error)
        fitting = [name for name, problem in problems.items() if not problem]
        self.about = widgets.html(css_class="t-about")
        size = {"width": "min(360px, 98%)", "label_width": "80px"}
        chosen = wanted if wanted in fitting else None
        self.menu = self.dropdown("Preset", "preset", "what to train", fitting, value=chosen, **size)
        self.on_change(self._describe, self.menu)
        self.lay_out(self.menu, self.about, self.message.widget)
        self._describe()
        if problems[wanted]:
            self.message.show(f"{problems[wanted]} Choose one of the menu.", "warning")

    def _describe(self):
        self.message.show("")
        name = self.menu.value
        text = "\n".join(config.describe(part) for part in name.split("+")) if name else ""
        self.about.value = page.notice(text) if text else ""

    @property
    def value(self) -> str:
        """The chosen preset; ValueError if none is chosen."""
        if self.menu.value is None:
            raise ValueError("Choose a preset in the menu above, then run this cell again.")
        return self.menu.value


def device() -> HTML:
    """The GPU and what it means for the time, in one sentence."""
    return HTML(page.notice(training.device_summary()))


class TrainingView:
    """The live view of a training, for ``on_progress``: numbers, messages, bar and curve, shown inside its ``with``.

    ``run`` is the folder whose curve is drawn, None draws none; ``minutes`` is the limit of the training. The same is
    in the run's :data:`PROGRESS`, to open where the notebook's page was reloaded; that one follows until the training
    ends. In the end plain HTML, which a saved notebook keeps, takes the place of the widgets.
    """

    DRAW_EVERY_S = 15.0

    def __init__(self, run: Path | None = None, minutes: float | int | None = None):
        widgets.require_number("MINUTES", minutes or 0, 0, float("inf"), "minutes, 0 for no limit")
        self.run, self.minutes = run, minutes
        self._began_s = self._log = self._status = None
        self._reload = f"<meta http-equiv=refresh content={self.DRAW_EVERY_S:g}>"
        self._drawn_s, self._messages = 0.0, list[str]()
        self.bar = W.FloatProgress(min=0.0, max=1.0, layout=W.Layout(width="min(480px, 98%)", height="18px"))
        self.numbers, self.messages_html = widgets.html(css_class="t-status"), widgets.html(css_class="t-told")
        self.curve, self.message = widgets.html(css_class="t-curve"), widgets.Message()
        self.widget = W.VBox([self.bar, self.numbers, self.messages_html, self.curve, self.message.widget])

    def __enter__(self):
        self.numbers.value = page.paragraph("Loading the dataset and the model ...")
        self._replace = widgets.show_widget(self.widget)
        return self

    def __exit__(self, *_):
        if self._status is not None:  # no time is left, nothing is being finished
            self._messages = [text for text in self._messages if _LAST_STEP not in text]
            self.numbers.value, self._reload = status_html(self._status, None, ended=True), ""
            if self.run:
                self.draw()
        self.messages_html.value = "".join(self._messages[-4:])
        self._replace(self._html())

    def __call__(self, status) -> None:
        """Show a ``training.Status``."""
        now = time.monotonic()
        self._began_s = self._began_s or now
        elapsed_s = now - self._began_s
        self.bar.value, left_s = progress_summary(status, self.minutes, elapsed_s)
        limit = f"{min(elapsed_s / 60, self.minutes):.1f} of {self.minutes:g} min" if self.minutes else ""
        self.numbers.value = status_html(status, left_s, limit)
        if status.message and (self._status is None or status.message != self._status.message):
            self._messages.append(page.paragraph(f"{time.strftime('%H:%M')} {status.message}"))
            self.messages_html.value = "".join(self._messages[-4:])
        self._status = status
        if self.run and now - self._drawn_s > self.DRAW_EVERY_S:
            self.draw()

    def _html(self) -> str:
        shown = (self.numbers, self.messages_html, self.curve, self.message.widget)
        return f'<div class="svclib-training">{"".join(widget.value for widget in shown)}</div>'

    def draw(self) -> None:
        """Draw the curve of what is logged so far; a failure is shown and stops no training, an interrupt does."""
        self._drawn_s = time.monotonic()
        try:
            self._draw()
        except Exception as error:  # a picture is no reason to lose a training
            self.message.show_error(error)

    def _draw(self):
        try:
            self._log = self._log or training.LogReader(self.run)  # parses only what is new since the last drawing
            curves = self._log.update().curves(max_points=2000)
        except ValueError:
            return  # nothing logged yet
        figure = plots.loss_curves(curves, self.run.name)
        self.curve.value = widgets.drawing(figure, "training and held-out loss over steps")
        self.message.show("")
        head = f"<!doctype html><meta charset=utf-8>{self._reload}<title>{page.text(self.run.name)}</title>"
        atomic_store.commit_bytes(self.run / PROGRESS, (head + self._html()).encode())


def progress_summary(status, minutes: float | int | None, elapsed_s: float) -> tuple[float, float | None]:
    """Share done (0..1) and seconds left of a session that ends at the last step or after so many minutes."""
    share, left_s = status.step / max(status.steps, 1), status.remaining_s
    if minutes:
        until_s = max(0.0, 60.0 * minutes - elapsed_s)
        share = min(1.0, max(share, elapsed_s / (60.0 * minutes)))
        left_s = until_s if left_s is None else min(left_s, until_s)
    return share, left_s


def status_html(status, left_s: float | None, limit: str = "", ended: bool = False) -> str:
    """A ``training.Status``, the time left and how much of its limit is used as a row of figures."""
    saved = "not yet" if status.last_saved_step is None else f"step {status.last_saved_step}"
    if status.last_saved_age_s is not None and not ended:
        saved += f", {units.duration_text(status.last_saved_age_s)} ago"
    left = "–" if left_s is None else units.duration_text(left_s)
    cells = {">step": f"{status.step} of {status.steps}", ">loss": widgets.number(status.loss)}
    cells |= {">held-out loss": widgets.number(status.validation_loss)}
    cells |= {">steps per second": widgets.number(status.steps_per_s or None, ".2f"), ">time left": left}
    cells |= {">saved": saved, **({">time limit": limit} if limit else {})}
    return page.table(list(cells), [list(cells.values())])


def train(
    data, base, preset: str, minutes=None, steps=None, on_cpu=False, init="base", allow_changed_dataset=False
) -> Path:
    """Train, or go on where the run stopped, with a live view; interrupting the cell saves. Returns the run's folder.

    It ends after ``minutes`` or at ``steps`` in total (0 or None: the preset's). Without GPU and ``minutes``, one of
    more than six hours raises TrainingError, once that is known and saved, unless ``on_cpu``. The songs in
    ``base.examples`` decide which step is the best. A new run starts from ``init``: ``base``, the shipped base model
    where the preset is its; ``none``, fresh weights; or the path of an instrument. With ``allow_changed_dataset`` a run
    goes on although recordings were added or removed.
    """
    run, too_long_s = run_folder(base, data, preset), []
    patient = on_cpu or minutes or training.gpu()

    def on_progress(status):
        if not patient and status.step >= 5 and (status.remaining_s or 0) > PATIENCE_HOURS * 3600:
            too_long_s.append(status.remaining_s)
        view(status)

    with TrainingView(run, minutes) as view:
        result = training.train(
            data,
            run,
            prepare.preset(preset),
            steps=steps or None,
            minutes=minutes or None,
            on_progress=on_progress,
            cancelled=lambda: bool(too_long_s),
            score=evaluate.for_training(data, base.examples),
            init=None if init == "none" else init,
            allow_changed_dataset=allow_changed_dataset,
        )
    if too_long_s and result.reason == "cancelled":
        raise TrainingError(
            f"There is no GPU here, and '{preset}' would need about {units.duration_text(too_long_s[-1])} on this "
            "CPU. Choose a GPU runtime or the preset ddsp_small, give MINUTES, or write ON_CPU = True to go on anyway."
        )
    widgets.show_note(result.message, kind="done" if result.reason in ("finished", "minutes") else "warning")
    return run


def tensorboard(run: Path, wanted: bool = True) -> None:
    """Show TensorBoard for a run, if it is wanted."""
    if wanted:
        from tensorboard import notebook

        own = Path(sys.executable).with_name("tensorboard")  # PATH may lack the folder of this Python
        if own.is_file():
            os.environ.setdefault("TENSORBOARD_BINARY", str(own))
        notebook.start(f'--logdir "{Path(run) / "tensorboard"}"')
    else:
        widgets.show(page.paragraph("TensorBoard is off; set TENSORBOARD = True in the first cell to see it here."))


def reconstruction(run: Path, data) -> HTML:
    """A held-out excerpt and its reconstruction side by side: spectrograms, players, loss."""
    model, record = training.load_model(run, "best")
    made = ddsp_inspection.reconstruct(model, data)
    rate_hz = made.features.settings.sample_rate_hz
    sounds = {"Original": made.original, "Reconstruction": made.reconstructed}
    figure = plots.compare_spectrograms([(name, sound, rate_hz, made.features) for name, sound in sounds.items()])
    return HTML(
        page.heading(f"The beginning of {made.name}", f"loss {made.loss:.3f} at step {record['step']}")
        + widgets.drawing(figure, "spectrograms of original and reconstruction")
        + page.flow(*(page.player(sound, rate_hz, name) for name, sound in sounds.items()))
    )


@dataclasses.dataclass(frozen=True)
class CheckpointEntry:
    """A step that can be exported: its held-out loss, and whether it is the best."""

    step: int
    validation_loss: float | None
    best: bool


def checkpoint_steps(run: str | Path) -> list[CheckpointEntry]:
    """The checkpoints of a run that count, one entry for each step, in order."""
    found = training.counting(run)
    best = next((info.step for info in reversed(found) if info.kind == "best"), None)
    losses = {info.step: info.validation_loss for info in sorted(found, key=lambda i: i.validation_loss is not None)}
    return [CheckpointEntry(step, losses[step], step == best) for step in sorted(losses)]


class CheckpointPanel(Panel):
    """Choose a checkpoint of a run by listening: held-out previews of each, with their scores; the best is chosen."""

    def __init__(self, run: Path):
        super().__init__()
        self.run, self.previews, entries = run, training.previews(run), checkpoint_steps(run)
        options, best = [], entries[-1].step if entries else None
        for entry in entries:
            loss = "" if entry.validation_loss is None else f", held-out loss {entry.validation_loss:.3f}"
            options.append((f"step {entry.step}{loss}{', the best' if entry.best else ''}", entry.step))
            best = entry.step if entry.best else best
        size = {"width": "min(430px, 98%)", "label_width": "90px"}
        self.menu = self.dropdown("Checkpoint", "checkpoint", "which one to export", options, value=best, **size)
        self.view = widgets.html(css_class="t-previews")
        self.on_change(self._show, self.menu)
        self.lay_out(self.menu, self.message.widget, self.view)
        self.message.guard(self._show)()

    @property
    def value(self) -> int | str:
        """The chosen step."""
        return self.menu.value if self.menu.value is not None else "best"

    def _show(self):
        self.view.value = ""  # if something fails, no sound of another step stays
        previews = [preview for preview in self.previews if preview.step == self.menu.value]
        if self.menu.value is None:
            self.message.show("There is no usable checkpoint yet; train first.", "warning")
        elif previews:
            self.message.show("")
            self.view.value = "".join(map(_preview_html, previews))
        elif self.previews:
            self.message.show("No previews were made at this step; choose another one to listen.")
        else:
            text = "No previews yet: the training was stopped before it looked at the held-out recordings. "
            self.message.show(f"{text}Run its cell again; until then play the reconstruction above.")


def _preview_html(preview) -> str:
    original, made = audio.read(preview.original), audio.read(preview.path)
    return page.flow(
        page.player(original.samples, original.sample_rate_hz, f"Held-out piece {preview.number}"),
        page.player(made.samples, made.sample_rate_hz, f"Step {preview.step}", f"loss {preview.score:.3f}"),
    )


class ExportPanel(Panel):
    """Writes the chosen checkpoint as an instrument into ``base.instruments``, with what people have to know of it.

    ``name`` is that of the instrument and its file, the run's if empty. With its dataset ``data``, a diffusion
    instrument keeps the content for retrieval.
    """

    def __init__(self, checkpoint: CheckpointPanel, base: workspace.Base, name: str = "", data: Any = None):
        super().__init__()
        self.checkpoint, self.base, self.data, self.path = checkpoint, base, data, None
        size = {"width": "min(640px, 98%)", "label_width": "80px"}
        name, hint = filesystem.safe_name(name or checkpoint.run.name), "of the instrument and its file"
        self.name = self.control(W.Text, "Name", "name", hint, value=name, **size)
        hint = "the singer, and what they agreed to"
        self.consent = self.control(W.Text, "Consent", "consent", hint, placeholder=instrument.CONSENT, **size)
        hint = "what others may do with it, such as CC0 or CC BY 4.0"
        self.licence = self.control(W.Text, "Licence", "licence", hint, placeholder=instrument.LICENCE, **size)
        hint = f"into {base.instruments}"
        self.export_button = self.button("Export this one", self.export, "export", "primary", hint)
        self.download_button = self.button("Download", self.download, "download-instrument", hint="to your computer")
        buttons = widgets.row(self.export_button, self.download_button)
        self.lay_out(self.name, self.consent, self.licence, buttons, self.message.widget)
        self.message.show("Nothing is exported before you press Export this one; then notebook 03 has it in its menu.")

    def export(self) -> None:
        """Write the instrument, unless this very one is there already."""
        run, listed = self.checkpoint.run, instrument.list_folder(self.base.instruments)
        model, record = training.load_model(run, self.checkpoint.value)
        texts = {"consent": self.consent.value.strip(), "licence": self.licence.value.strip()}
        texts = {name: text or getattr(instrument, name.upper()) for name, text in texts.items()}
        wanted = {"trained_steps": record["step"], "validation_loss": record["metrics"]["validation_loss"], **texts}
        name = filesystem.safe_name(self.name.value or run.name)
        taken = {entry.name: entry for entry in listed} | {entry.path.stem: entry for entry in listed}
        for number in itertools.count(1):
            own = name if number == 1 else f"{name} {number}"  # in the file too, so that results are named apart
            if own not in taken:
                path, text = self.base.instruments / f"{own}.zip", "The instrument, from step {}, is {}"
                self.path = training.export(run, path, self.checkpoint.value, own, dataset=self.data, **texts)
                break
            if wanted.items() <= taken[own].info.items() and _same_weights(model, taken[own].path):
                self.path, text = taken[own].path, "This instrument, step {}, was exported before: {}"
                break
        self.message.show(text.format(record["step"], self.path), "done")

    def download(self) -> None:
        """Give the exported file to the browser."""
        self.offer(*[self.path] if self.path else [])


def _same_weights(model, path: Path) -> bool:
    """True if an instrument has these weights; it may have a codebook beside them."""
    theirs = instrument.open(path).model.state_dict()
    return all(name in theirs and torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def compare_runs(base) -> HTML:
    """Curves of all runs, one picture for each kind of loss, and the values at the last step."""
    groups, problems = ddsp_inspection.runs_by_loss(base.runs)
    parts = [] if groups else [page.notice(f"No run in {base.runs} has curves yet.")]
    columns = ["run", ">last step", ">training loss there", ">held-out loss", ">at step"]
    for loss, runs in groups.items():
        rows = []
        for name, curves in runs.items():
            losses = list(zip(curves["validation_loss"], curves["validation_step"], strict=True)) or [(None, "–")]
            last = [curves["step"][-1], widgets.number(curves["last"])]
            rows.append([name, *last, widgets.number(losses[-1][0]), losses[-1][1]])
        measured = any(row[-1] != "–" for row in rows)
        key, title = ("validation_loss", "Held-out recordings") if measured else ("loss", "Training")
        figure = plots.compare_runs(runs, key, title, "loss")
        parts += [page.heading(loss), widgets.drawing(figure, f"{title}: curves of {', '.join(runs)}")]
        parts.append(page.table(columns, rows))
    return HTML("".join([*parts, *map(page.paragraph, problems)]))


def z_map(run: Path, data) -> HTML:
    """A map of z paths for models that have z; for others a sentence."""
    model, _ = training.load_model(run, "best")
    paths = ddsp_inspection.z_paths(model, data)
    if not paths:
        note = "This model has no z, so there is no map to draw. The presets ddsp_small and ddsp_z have it."
        return HTML(page.notice(note))
    figure = plots.z_map(paths, "Recordings in the space of z")
    return HTML(page.fold("Show the map", widgets.drawing(figure, "two-dimensional map of z paths", 760)))
