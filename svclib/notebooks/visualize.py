"""The panels of notebook 04: the lesson on diffusion, and what a DDSP instrument plays, over time and at one moment."""

from pathlib import Path

import ipywidgets as W
import librosa.core.convert  # noqa: F401  loads now what the first Run would wait a second for
from IPython.display import HTML

from svclib.analysis import ddsp_inspection, lesson, player, plots
from svclib.analysis import html as page
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import Panel, TaskPanel
from svclib.utils import filesystem, workspace

WORDS_HINT = "character error rate at some steps; needs faster-whisper, and seconds for each"


class ExamplePanel(Panel):
    """The lesson that comes with the package, below a button that writes it as a file, to hand out: into the ``output``
    of the workspace, which is opened only then; on Colab, where that would ask for Google Drive, on its own disk."""

    ASLEEP = "Run the notebook from its first cell to see the lesson, or open the file that its Save button wrote."

    def __init__(self, base: str | Path = ""):
        super().__init__()
        self.base, hint = base, "one HTML file, to hand out"
        self.save_button = self.button("Save this lesson as a file", self.save, "example-file", hint=hint)
        self.view = widgets.FramedPage(lesson.example())
        self.lay_out(widgets.row(self.save_button), self.message.widget, self.view)

    def save(self) -> None:
        """Write the file."""
        on_colab = workspace.on_colab()
        folder = workspace.COLAB_DISK if on_colab else workspace.base_folder(base=self.base or None).output
        path = player.export(self.view.text, folder / "lesson.html")
        self.written(path, f"Written: {path}. It opens in any browser, without a network.")


class WavesPanel(Panel):
    """Noise through a person's DiffWave instrument, where there is one; otherwise the bundled example."""

    def __init__(self, base: workspace.Base):
        super().__init__()
        listed = [entry for entry in instrument.list_folder(base.instruments) if entry.kind == "diffwave"]
        found = widgets.newest_first(entry.path for entry in listed if not entry.is_vocoder)
        if found:
            opened = instrument.open(found[0])
            note, shown = f"Your instrument {opened.name}.", lesson.demonstrate(opened, seed=0)
        else:
            note = "No DiffWave instrument in your folder sounds by itself: this is the example that comes with svclib."
            note += f" {listed[0].name} is a vocoder and needs a song: choose it in part 2." if listed else ""
            shown = lesson.example_diffwave()
        self.view = widgets.FramedPage(shown)
        self.message.show(note)
        self.lay_out(self.message.widget, self.view)


class LessonPanel(TaskPanel):
    """An instrument, a song, an excerpt, Run; the lesson appears below, Export writes it as a file."""

    PREFIX = "t-lesson-"
    WANTED = "diffusion or DiffWave instrument (preset diffusion_small)"
    KINDS = ("diffusion", "diffwave")

    def __init__(self, base: workspace.Base, start_s: float | int = 0.0, seconds: float | int = 5.0):
        for name, value in (("START_S", start_s), ("SECONDS", seconds)):
            widgets.require_number(name, value, 0, widgets.START_S[1], "seconds, 0 or more")
        super().__init__(base)
        self.title = ""
        narrow = {"width": "190px", "label_width": "80px"}
        self.start_s = self.number("Start (s)", "start", "where in the song", float(start_s), widgets.START_S, **narrow)
        self.seconds = self.number("Length (s)", "seconds", "how much of it", float(seconds), (0.5, 30.0), **narrow)
        hint = "of the main run; all are kept"
        self.steps = self.number("Steps", "steps", hint, lesson.STEPS, (8, 1000), **narrow)
        self.seed = self.control(W.IntText, "Seed", "seed", "of the noise all runs begin with", **narrow)
        self.singer = self.dropdown("Singer", "singer", "of the instrument", **narrow)
        self.words = self.checkbox("Words", "words", WORDS_HINT)
        self.on_change(self._instrument_chosen, self.instrument)
        self.run_button = self.button("Run", self.run, "run", "primary")
        hint = f"write the lesson as a file into {base.output}"
        self.export_button = self.button("Export", self.export, "export", hint=hint)
        self.work_buttons, self.view = (self.run_button,), widgets.FramedPage()
        self.lay_out(
            widgets.row(self.instrument, self.song, self.refresh_button),
            widgets.row(self.start_s, self.seconds, self.steps, self.seed, self.singer, self.words),
            widgets.row(self.run_button, self.cancel_button, self.export_button, self.progress.widget),
            self.message.widget,
            self.live,
            self.view,
        )
        self.refresh_button.click()

    def read_folders(self) -> None:
        """Fill the menus."""
        super().read_folders()
        self._instrument_chosen()

    def _instrument_chosen(self):
        entry = self.entries.get(self.instrument.value)
        names = list(entry.info.get("singers") or ()) if entry and entry.kind == "diffusion" else []
        widgets.fill(self.singer, [(name, name) for name in names])
        self.singer.layout.display = "" if len(names) > 1 else "none"

    def run(self) -> None:
        """Make the lesson; Cancel stops it within a step."""
        path, song, singer = self.instrument.value, self.song.value, self.singer.value
        start_s, seconds, steps, seed = (w.value for w in (self.start_s, self.seconds, self.steps, self.seed))
        options = lesson.LessonOptions(start_s, seconds, steps, seed, singer, self.words.value)
        voice = self.base.audio / singer if singer else None  # recordings of the voice, where they are here

        def work():
            opened, preview = self.open_instrument(path), plots.LivePreview(self.show_live)
            if opened.kind == "diffusion":
                preview.begin(opened.model, options.seconds, options.seed)
            report = (self.progress, self.task.cancelled, self.message.show, preview)
            text, about = lesson.from_file(opened, song, options, *report, voice)
            self.title = f"{song.stem} - {path.stem}"
            self.view.show(text)
            self.message.show(f"Here is {about}: {len(text.encode()) / 1e6:.1f} MB.", "done")

        self.start(work)

    def export(self) -> None:
        """Write the lesson that is shown as a file."""
        if not self.view.text:
            self.message.show("Run first: there is no lesson to write yet.", "warning")
            return
        path = player.export(self.view.text, self.base.output / f"{filesystem.safe_name(self.title, 'lesson')}.html")
        self.written(path, f"Written: {path}")


def players(result) -> HTML:
    """The conversion and its two parts, to listen to."""
    names = ("Result", "Harmonic part", "Noise part")
    sounds = zip(names, (result.audio, *result.stems), strict=True)
    title = page.heading(f"{result.song.name} by {result.instrument_name}")
    return HTML(title + page.flow(*(page.player(sound, result.sample_rate_hz, name) for name, sound in sounds)))


def harmonics(played: ddsp_inspection.SynthControls) -> HTML:
    """The level of every harmonic over time."""
    figure = plots.harmonics_over_time(played.amplitude, played.distribution, played.frame_s)
    return HTML(widgets.drawing(figure, "level of each harmonic over time"))


def noise(played: ddsp_inspection.SynthControls, sample_rate_hz: int) -> HTML:
    """The noise filter over time."""
    figure = plots.noise_over_time(played.noise_magnitudes, played.frame_s, sample_rate_hz)
    return HTML(widgets.drawing(figure, "gain of each noise band over time"))


def z(played: ddsp_inspection.SynthControls) -> HTML:
    """The z path of the song, or the sentence that there is none."""
    if played.z is None:
        return HTML(page.notice("This instrument has no z: it follows pitch and loudness only."))
    over_time = widgets.drawing(plots.z_over_time(played.z, played.frame_s), "z over time")
    path = plots.z_map({"this song": played.z}, "The same path on its two principal components")
    return HTML(over_time + widgets.drawing(path, "map of z", 760))


class MomentPanel(Panel):
    """One frame: its harmonics as stems, its noise filter as a curve; a slider moves through time."""

    def __init__(self, played: ddsp_inspection.SynthControls, sample_rate_hz: int):
        super().__init__()
        self.played, self.rate_hz, self.view = played, sample_rate_hz, widgets.html(css_class="t-moment-view")
        n, hint = len(played.f0_hz), "which moment; arrow keys move it by one frame"
        size = {"step": played.frame_s, "readout_format": ".3f", "width": "min(640px, 98%)"}
        limits = (0.0, (n - 1) * played.frame_s)
        self.time_s = self.slider("Time (s)", "moment", hint, n // 2 * played.frame_s, limits, **size)
        self.on_change(self.show, self.time_s)
        self.lay_out(self.time_s, self.message.widget, self.view)
        self.message.guard(self.show)()

    def show(self) -> None:
        """Draw the chosen frame."""
        p, i = self.played, round(self.time_s.value / self.played.frame_s)
        pitch = f"F0 {p.f0_hz[i]:.0f} Hz" if p.voiced[i] else "unvoiced: harmonics are silent"
        f0_hz, title = p.f0_hz[i] if p.voiced[i] else 0.0, f"{i * p.frame_s:.3f} s, {pitch}"
        frame = (p.amplitude[i], p.distribution[i], p.noise_magnitudes[i], f0_hz)
        figure = plots.spectrum_at(*frame, self.rate_hz, title)
        self.view.value = widgets.drawing(figure, "harmonics and noise filter of one frame")
        self.message.show("")
