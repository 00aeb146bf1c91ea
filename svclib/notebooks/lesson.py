"""The lesson in notebook 04: the bundled one, one's own, and DiffWave's."""

from pathlib import Path

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loads now what the first Run would wait a second for
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.analysis import lesson, player, plots
from svclib.audio import io as audio
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run
from svclib.utils import filesystem, workspace

KINDS = ("diffusion", "diffwave")


def example(base: workspace.Base | None = None) -> HTML:
    """The lesson that comes with the package; with a person's folder, below a button that saves it there as a file."""
    if base is not None:
        display(example_file(base))
    return HTML(f"<div>{page.frame(lesson.example())}</div>")  # IPython warns of a frame that stands alone


def example_file(base: workspace.Base) -> widgets.Panel:
    """A button that writes the lesson that comes with the package into ``base.output``, to hand out."""
    message = widgets.Message()

    def write():
        path = player.export(lesson.example(), base.output / "lesson.html")
        message.show(f"Written: {path}. It opens in any browser, without a network.", "done")

    hint = f"one HTML file in {base.output}, to hand out"
    save = widgets.button("Save this lesson as a file", widgets.guarded(message)(write), "t-example-file", hint=hint)
    return widgets.Panel([widgets.row(save), message.widget])


def waves(base: workspace.Base, seed: int = 0) -> HTML:
    """Noise through a person's DiffWave instrument, where there is one; otherwise the bundled example."""
    listed = _instruments(base, ("diffwave",))
    found = [entry for entry in listed if not entry.is_vocoder]
    if not found:
        note = "No DiffWave instrument in your folder sounds by itself, so this is the example that comes with svclib."
        if listed:
            note += f" {listed[0].name} is a vocoder and needs a song: choose it in part 2."
        return HTML(page.notice(note) + page.frame(lesson.example_diffwave()))
    opened = instrument.open(first_run.newest_first(entry.path for entry in found)[0])
    made = lesson.demonstrate(opened, seed=seed)
    return HTML(page.notice(f"Your instrument {opened.name}.") + page.frame(made))


def lesson_panel(base: workspace.Base, start_s: float | int = 0.0, seconds: float | int = 5.0) -> "LessonPanel":
    """The panel for one's own lesson; a panel made earlier in this kernel is closed."""
    panel = LessonPanel(base, start_s, seconds)
    widgets.only_one("lesson", panel)
    return panel


class LessonPanel(widgets.Panel):
    """An instrument, a song, an excerpt, Run; the lesson appears below, Export writes it as a file."""

    def __init__(self, base: workspace.Base, start_s: float | int = 0.0, seconds: float | int = 5.0):
        self.base, self.text, self.title = base, "", ""
        self.message, self.progress = widgets.Message(), widgets.ProgressBar()
        self.task, guard = widgets.BackgroundTask(self.message, self._busy), widgets.guarded(self.message)
        self.instrument = widgets.control(
            W.Dropdown, "Instrument", "t-lesson-instrument", f"diffusion and DiffWave files in {base.instruments}"
        )
        self.song = widgets.control(W.Dropdown, "Song", "t-lesson-song", f"recordings in {base.examples}")
        for choice in (self.instrument, self.song):
            choice.layout.width, choice.style.description_width = "min(430px, 98%)", "80px"
        self.start = widgets.control(
            W.BoundedFloatText, "Start (s)", "t-lesson-start", "where in the song", min=0.0, max=36000.0, value=start_s
        )
        self.seconds = widgets.control(
            W.BoundedFloatText, "Length (s)", "t-lesson-seconds", "how much of it", min=0.5, max=30.0, value=seconds
        )
        self.steps = widgets.control(
            W.BoundedIntText,
            "Steps",
            "t-lesson-steps",
            "of the main run; all are kept",
            min=8,
            max=1000,
            value=lesson.STEPS,
        )
        self.seed = widgets.control(W.IntText, "Seed", "t-lesson-seed", "of the noise all runs begin with", value=0)
        for number in (self.start, self.seconds, self.steps, self.seed):
            number.layout.width, number.style.description_width = "190px", "80px"
        self.run_button = widgets.button("Run", guard(self.run), "t-lesson-run", "primary")
        self.cancel_button = widgets.button("Cancel", guard(self.task.cancel), "t-lesson-cancel")
        self.export_button = widgets.button(
            "Export", guard(self.export), "t-lesson-export", hint=f"write the lesson as a file into {base.output}"
        )
        self.refresh_button = widgets.button("Look again", guard(self.refresh), "t-lesson-refresh")
        self.view, self.live = widgets.html(css_class="t-lesson-view"), widgets.html(css_class="t-lesson-live")
        super().__init__(
            [
                widgets.row(self.instrument, self.song, self.refresh_button),
                widgets.row(self.start, self.seconds, self.steps, self.seed),
                widgets.row(self.run_button, self.cancel_button, self.export_button, self.progress.widget),
                self.message.widget,
                self.live,
                self.view,
            ]
        )
        self._busy(False)
        guard(self.refresh)()

    def refresh(self) -> None:
        """Read the folders of instruments and songs again; keeps the choices that still exist."""
        found = _instruments(self.base, KINDS)
        songs, _ = audio.find(self.base.examples)
        first = [path for kind in KINDS for path in first_run.newest_first(e.path for e in found if e.kind == kind)]
        widgets.fill(self.instrument, [(entry.path.stem, entry.path) for entry in found], first=first)
        named = [(Path(path).name, Path(path)) for path in songs]
        widgets.fill(self.song, named, first=first_run.newest_first(songs))
        missing = (
            "There is no diffusion or DiffWave instrument in your folder yet. Train one in notebook 02 with the "
            "preset diffusion_small; the example above shows what you will get."
        )
        self.message.show("" if found else missing)

    def run(self) -> None:
        """Make the lesson; Cancel stops it within a step."""
        if self.instrument.value is None or self.song.value is None:
            what = "instrument" if self.instrument.value is None else "song"
            self.message.show(f"Choose an {what} first." if what == "instrument" else "Choose a song first.", "warning")
            return
        path, song = self.instrument.value, self.song.value
        options = lesson.LessonOptions(self.start.value, self.seconds.value, self.steps.value, self.seed.value)
        self.task.start(lambda: self._make(path, song, options))

    def _make(self, path: Path, song: Path, options: lesson.LessonOptions) -> None:
        self.progress(0.0, "opening the instrument")
        opened, preview = instrument.open(path), plots.LivePreview(self._show_live)
        if opened.kind == "diffusion":
            preview.begin(opened.model, options.seconds, options.seed)
        try:
            text, about = lesson.from_file(
                opened, song, options, self.progress, self.task.cancelled, self.message.show, preview
            )
        finally:
            self.live.value = ""
        self.text, self.title = text, f"{song.stem} - {path.stem}"
        self.view.value = page.frame(text)
        self.message.show(f"Here is {about}: {len(text.encode()) / 1e6:.1f} MB.", "done")

    def _show_live(self, markup: str) -> None:
        if not self.task.cancelled():
            self.live.value = markup

    def export(self) -> None:
        """Write the lesson that is shown as a file."""
        if not self.text:
            self.message.show("Run first: there is no lesson to write yet.", "warning")
            return
        path = player.export(self.text, self.base.output / f"{filesystem.safe_name(self.title, 'lesson')}.html")
        self.message.show(f"Written: {path}", "done")

    def _busy(self, busy: bool) -> None:
        self.run_button.disabled, self.cancel_button.disabled = busy, not busy
        if not busy:
            self.progress.hide()


def _instruments(base: workspace.Base, kinds) -> list[instrument.InstrumentEntry]:
    listed = instrument.list_folder(base.instruments)
    return [entry for entry in listed if entry.problem is None and entry.kind in kinds]
