"""The panels of notebook 01: where things lie, the doctor's report, preparing with progress, a chunk to look at."""

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import units
from svclib.data import dataset, quality, quality_report
from svclib.data.recordings import Recording
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run
from svclib.utils import workspace


def open_folder(base: str = "", base_model: bool = False) -> workspace.Base:
    """The person's folder, made if needed, with a line that names it.

    Without ``base``: ``svclib`` in Google Drive on Colab; elsewhere the environment variable ``SVCLIB_HOME``, else
    ``svclib_home`` beside the notebook. With ``base_model`` the shipped one is put where no diffusion instrument is.
    """
    opened = workspace.base_folder(base=base or None)
    where = " on your Google Drive" if opened.on_drive else ""
    display(HTML(page.paragraph(f"Your folder{where}: {opened.root}")))
    if base_model and (note := first_run.place_base_model(opened)):
        display(HTML(page.notice(note)))
    return opened


def recordings(base: workspace.Base, voice: str = "", source: str = "", minutes: float | int = first_run.MINUTES):
    """Choose the recordings, see ``start.recordings``, and say which: ``(name of the dataset, recordings)``."""
    bar = shown_progress()
    name, found, note = first_run.recordings(base, voice, source, minutes, progress=bar)
    bar.hide()
    display(HTML(page.notice(note)))
    return name, found


def shown_progress() -> widgets.ProgressBar:
    """A progress bar, displayed."""
    bar = widgets.ProgressBar()
    display(bar.widget)
    return bar


def examine(found: list[Recording]) -> HTML:
    """The doctor's report on recordings: what there is in total, what to do, a table and a picture."""
    bar = shown_progress()
    report = quality.examine([recording.path for recording in found], progress=bar)
    bar.hide()
    return HTML(report_html(report))


MARKS = {quality_report.PROBLEM: "error", quality_report.WARNING: "warning", quality_report.NOTE: "info"}
MAX_ROWS = 60


def report_html(report: quality_report.Report) -> str:
    """A ``diagnosis.Report`` as HTML: totals, what to do, a table of the files, a picture of them."""
    totals = report.totals
    parts = [
        page.heading(
            f"{totals['n_usable']} of {totals['n_files']} files usable, {units.duration_text(totals['duration_s'])}",
            f"{units.duration_text(totals['sounding_s'])} without silence",
        )
    ]
    if report.findings:
        rows = [[f.file or "all", quality_report.KINDS[f.kind], f.text] for f in report.findings[:MAX_ROWS]]
        parts.append(
            page.table(["file", "found", "what to do"], rows, [MARKS[f.severity] for f in report.findings[:MAX_ROWS]])
        )
    else:
        parts.append(page.notice("Nothing to complain about.", "done"))
    usable = [file for file in report.files if file.usable]
    columns = ["file", ">length (s)", ">pitch (Hz)", ">level (dB)", ">noise floor (dB)", ">silence", ">clipped"]
    parts.append(page.table(columns, [file_row(file) for file in usable[:MAX_ROWS]]))
    left = len(usable) - MAX_ROWS
    parts += [page.paragraph(f"and {left} more files")] if left > 0 else []
    if usable:
        picture = plots.png(plots.doctor_picture(report))
        parts.append(page.picture(picture, "length, pitch range and level of each file"))
    return "".join(parts)


def file_row(file: quality_report.FileReport) -> list[str]:
    """One row of the doctor's table; what could not be measured is a dash."""

    def text(value, form):
        return "–" if value is None else form.format(value)

    pitch = "–" if file.f0_low_hz is None else f"{file.f0_low_hz:.0f} to {file.f0_high_hz:.0f}"
    return [
        file.name,
        text(file.duration_s, "{:.1f}"),
        pitch,
        text(file.level_db, "{:.0f}"),
        text(file.noise_floor_db, "{:.0f}"),
        text(file.silence_share, "{:.0%}"),
        text(file.clipped_share, "{:.2%}"),
    ]


def prepare(found: list[Recording], out, settings) -> dataset.Dataset:
    """Measure the recordings once and store the result; does nothing where it is done already.

    Interrupting loses nothing: the next run goes on from the files that are finished.
    """
    bar = shown_progress()
    try:
        data = dataset.prepare(found, out, settings, progress=bar)
    finally:
        bar.hide()
    display(HTML(summary_html(data)))
    return data


def summary_html(data: dataset.Dataset) -> str:
    """Summary of a dataset in a few lines, and the messages of its preparation."""
    notes = [page.notice(message, "warning") for message in data.messages]
    return page.heading("Prepared") + page.notice(dataset.describe(data), "done") + "".join(notes)


def chunk_panel(data: dataset.Dataset, seconds: float | int = 5.0, seed: int = 0) -> "ChunkPanel":
    """A random excerpt of the dataset: spectrogram with F0, confidence, loudness, player; a button for another one."""
    panel = ChunkPanel(data, seconds, seed)
    widgets.only_one("chunk", panel)
    return panel


class ChunkPanel(widgets.Panel):
    """Shows excerpts of a dataset; ``seed`` makes the first one repeatable."""

    def __init__(self, data: dataset.Dataset, seconds: float, seed: int):
        self.data, self.seed = data, seed
        self.message, self.view = widgets.Message(), widgets.html(css_class="t-chunk")
        guard = widgets.guarded(self.message)
        self.seconds = widgets.control(
            W.FloatSlider,
            "Length (s)",
            "t-seconds",
            "length of the stretch",
            value=seconds,
            min=1.0,
            max=20.0,
            step=0.5,
            continuous_update=False,
        )
        self.seconds.layout.width = "min(360px, 98%)"
        another = widgets.button("Another one", guard(self.another), "t-another", "primary", icon="random")
        self.seconds.observe(guard(lambda _: self.another()), "value")
        super().__init__([widgets.row(another, self.seconds), self.message.widget, self.view])
        guard(self.another)()

    def another(self) -> None:
        """Show another random excerpt."""
        place = self.data.random_chunk(self.seed, self.seconds.value)
        self.seed += 1
        self.view.value = chunk_html(self.data, *place)
        self.message.show("")


def chunk_html(data: dataset.Dataset, index: int, start_frame: int, n_frames: int) -> str:
    """An excerpt of a recording: player, spectrogram with F0, confidence, loudness."""
    recording, hop, rate_hz = data.recordings[index], data.hop_samples, data.settings.sample_rate_hz
    samples = data.audio(index, start_frame * hop, n_frames * hop)
    start_s = start_frame * hop / rate_hz
    drawing = plots.png(plots.features_overview(samples, data.features(index, start_frame, n_frames), start_s))
    note = f"from {start_s:.1f} s, {recording['singer']}, {recording['split']}"
    return (
        page.heading(recording["name"], note)
        + page.player(samples, rate_hz)
        + page.picture(drawing, "spectrogram with F0, confidence of the pitch tracker, loudness")
    )
