"""Notebook 01: recordings, the doctor's report, a dataset, a chunk of it to look at.

Where a person's folder is still empty, synthetic singers make recordings and a song. Every function uses what is there,
makes only what is missing, and shows in a sentence which.
"""

from pathlib import Path

from IPython.display import HTML

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import dataset, quality, quality_report, singers
from svclib.data.recordings import Recording, find_recordings
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import Panel
from svclib.training import api as training
from svclib.training.resume import BASE_PATH
from svclib.utils import atomic_store, config, download, filesystem, workspace
from svclib.utils.errors import DatasetError

SINGER, OTHER_SINGER, MINUTES = "aria", "bruno", 2.0
MARKS = {quality_report.PROBLEM: "error", quality_report.WARNING: "warning", quality_report.NOTE: "info"}
MAX_ROWS = 60


def open_folder(base: str = "", base_model: bool = False) -> workspace.Base:
    """The person's folder, made if needed, with a line that names it.

    Without ``base``: ``svclib`` in Google Drive on Colab; elsewhere the environment variable ``SVCLIB_HOME``, else
    ``svclib_home`` beside the notebook. With ``base_model`` the shipped one is put where no diffusion instrument is.
    """
    opened = workspace.base_folder(base=base or None)
    widgets.show(page.paragraph(f"Your folder{' on your Google Drive' if opened.on_drive else ''}: {opened.root}"))
    there = [entry.kind for entry in instrument.list_folder(opened.instruments)]  # None: damaged
    if base_model and BASE_PATH.is_file() and "diffusion" not in there:
        atomic_store.copy_file(BASE_PATH, opened.instruments / BASE_PATH.name)
        widgets.show_note(
            f"There was no diffusion instrument in {opened.instruments}, so the base model was put there: it sings any "
            "song in the voices of three people who gave them away (CC0). Notebook 02 adapts it to yours in a quarter "
            "of an hour."
        )
    return opened


def preset(name: str) -> config.Preset:
    """A preset by name; overlays are added with ``+``: ``ddsp_small+tiny``."""
    return config.load([part.strip() for part in name.split("+")])


def voices(base: workspace.Base) -> list[str]:
    """Names of the folders in ``base.audio`` with at least one usable recording, the synthetic singers last."""
    folders = [p for p in base.audio.iterdir() if p.is_dir()]
    found = sorted(folders, key=lambda p: (p.name in (SINGER, OTHER_SINGER), p.name.lower()))
    return [folder.name for folder in found if audio.has_audio(folder)]


def recordings(
    base: workspace.Base, voice: str = "", source: str = "", minutes: float | int = MINUTES
) -> tuple[str, list[Recording]]:
    """The recordings to work with: ``(name of the dataset, recordings)``.

    ``voice`` is a folder in ``base.audio``, or several, joined by commas; empty: the first of :func:`voices`.
    ``source`` is a zip, a Google Drive link or another address to fetch them from, into that folder. Where there are
    none, ``minutes`` of a synthetic singer are made, and a quarter of it of another one. DatasetError if a voice is not
    there (names those that are), or ``voice`` and ``source`` contradict each other, before anything is fetched.
    """
    note = ""
    with widgets.shown_progress() as bar:
        if source:
            voice, note = _fetch(base, voice, source, bar)
        there = voices(base)
        if not there:
            for singer, share in ((SINGER, 1.0), (OTHER_SINGER, 0.25)):
                singers.make_recordings(singer, base.audio / singer, share * minutes, progress=bar)
            note = (
                f"{base.audio} was empty, so two synthetic singers sang for you: {SINGER} and {OTHER_SINGER}. For your "
                "own voice, put recordings into a folder of its own there, and write its name into VOICE. "
            )
            there = voices(base)
    wanted = _names(voice) or there[:1]
    for name in wanted:
        if name not in there:
            raise DatasetError(
                f"There are no recordings in '{base.audio / name}'. Voices there are: {', '.join(there)}. "
                "Put recordings there, or write another name into VOICE."
            )
    found = find_recordings([base.audio / name for name in wanted])
    others = "" if voice or note else _others(there, wanted)
    widgets.show_note(f"{note}Voice: {', '.join(wanted)}, {len(found)} files.{others}")
    return "+".join(wanted), found


def _fetch(base, voice, source, progress) -> tuple[str, str]:
    """Fetch recordings of a voice; its name, and a sentence if they are new."""
    if len(_names(voice)) > 1:
        raise DatasetError(
            f"SOURCE is fetched into one voice, but VOICE is '{voice}'. Write one name, or leave SOURCE empty."
        )
    target = base.audio / filesystem.safe_name(voice or "fetched")
    there = audio.find(target)[0] if target.is_dir() else []
    if not there or download.is_link(source) or Path(source).exists():
        own = download.place(source, target)
        if any(not path.is_relative_to(own) for path in there):
            raise DatasetError(
                f"'{target}' has recordings already, and they are not those of SOURCE. Leave SOURCE empty to use "
                "them, or write another name into VOICE for what is fetched."
            )
        download.fetch(source, target, progress=progress)  # does nothing where all of it is there
    return target.name, "" if there else f"Fetched recordings into {target}. "


def _names(voice: str) -> list[str]:
    return [name.strip() for name in voice.split(",") if name.strip()]


def _others(there: list[str], chosen: list[str]) -> str:
    others = [name for name in there if name not in chosen]
    return f" Write another name into VOICE for {' or '.join(others)}." if others else ""


def songs(base: workspace.Base) -> list[Path]:
    """Songs in ``base.examples``, the newest first; where there is none, one of a synthetic singer is made."""
    usable, _ = audio.find(base.examples)
    if usable:
        return widgets.newest_first(usable)
    song, comment = singers.render(OTHER_SINGER, singers.demo_song()), "synthetic voice (svclib singers)"
    path = audio.write(base.examples / "twinkle.wav", song.audio, song.sample_rate_hz, comment).path
    widgets.show_note(f"{base.examples} was empty, so {OTHER_SINGER}, a synthetic singer, sang a song into it.")
    return [path]


def examine(found: list[Recording]) -> HTML:
    """The doctor's report on recordings: what there is in total, what to do, a table and a picture."""
    with widgets.shown_progress() as bar:
        report = quality.examine([recording.path for recording in found], progress=bar)
    totals, findings = report.totals, report.findings[:MAX_ROWS]
    duration, sounding = (units.duration_text(totals[name]) for name in ("duration_s", "sounding_s"))
    title = f"{totals['n_usable']} of {totals['n_files']} files usable, {duration}"
    parts = [page.heading(title, f"{sounding} without silence")]
    if findings:
        rows = [[f.file or "all", quality_report.KINDS[f.kind], f.text] for f in findings]
        parts.append(page.table(["file", "found", "what to do"], rows, [MARKS[f.severity] for f in findings]))
    else:
        parts.append(page.notice("Nothing to complain about.", "done"))
    usable = [file for file in report.files if file.usable]
    columns = ["file", ">length (s)", ">pitch (Hz)", ">level (dB)", ">noise floor (dB)", ">silence", ">clipped"]
    parts.append(page.table(columns, [file_row(file) for file in usable[:MAX_ROWS]]))
    if len(usable) > MAX_ROWS:
        parts.append(page.paragraph(f"and {len(usable) - MAX_ROWS} more files"))
    if usable:
        parts.append(widgets.drawing(plots.doctor_picture(report), "length, pitch range and level of each file"))
    return HTML("".join(parts))


def file_row(file: quality_report.FileReport) -> list[str]:
    """One row of the doctor's table."""
    pitch = "–" if file.f0_low_hz is None else f"{file.f0_low_hz:.0f} to {file.f0_high_hz:.0f}"
    levels = [widgets.number(value, ".0f") for value in (file.level_db, file.noise_floor_db)]
    shares = [widgets.number(file.silence_share, ".0%"), widgets.number(file.clipped_share, ".2%")]
    return [file.name, widgets.number(file.duration_s, ".1f"), pitch, *levels, *shares]


def dataset_folder(base: workspace.Base, name: str, chosen: config.Preset) -> Path:
    """Folder of the dataset of a voice, measured as a preset needs it: ``datasets / NAME / RATE-HOP``."""
    return base.datasets / name / f"{chosen.features.sample_rate_hz}-{chosen.features.hop_samples}"


def prepare(found: list[Recording], out, settings) -> dataset.Dataset:
    """Measure the recordings once and store the result; does nothing where it is done already.

    Interrupting loses nothing: the next run goes on from the files that are finished.
    """
    with widgets.shown_progress() as bar:
        data = dataset.prepare(found, out, settings, progress=bar)
    _show_summary(data)
    return data


def open_dataset(base: workspace.Base, voice: str, preset_name: str, minutes: float | int = MINUTES) -> dataset.Dataset:
    """The dataset of a voice as notebook 01 left it; prepared now if it is not there or lacks what a preset needs.

    ``voice`` and ``minutes`` as in :func:`recordings`, but an empty voice without recordings is the first dataset.
    """
    chosen, there = preset(preset_name), [] if voice else voices(base)
    wanted = "+".join(_names(voice) or there[:1] or sorted(p.name for p in base.datasets.iterdir() if p.is_dir())[:1])
    folder = dataset_folder(base, wanted, chosen)
    if wanted and (folder / "manifest.json").is_file():
        data = dataset.Dataset.open(folder)
        if training.fits(data, chosen) is None:
            others = "" if voice else _others(there, _names(wanted))
            widgets.show_note(f"Dataset {wanted}, as it was prepared.{others}")
            _show_summary(data)
            return data
    name, found = recordings(base, voice, minutes=minutes)
    return prepare(found, dataset_folder(base, name, chosen), chosen.features)


def _show_summary(data: dataset.Dataset) -> None:
    notes = [page.notice(message, "warning") for message in data.messages]
    widgets.show(page.heading("Prepared") + page.notice(dataset.describe(data), "done") + "".join(notes))


class ChunkPanel(Panel):
    """A random excerpt of a dataset: spectrogram with F0, confidence, loudness, player; a button for another one."""

    def __init__(self, data: dataset.Dataset):
        super().__init__()
        self.data, self.seed, self.view = data, 0, widgets.html(css_class="t-chunk")
        size, hint = {"step": 0.5, "width": "min(360px, 98%)"}, "length of the excerpt"
        self.seconds = self.slider("Length (s)", "seconds", hint, 5.0, (1.0, 20.0), **size)
        another = self.button("Another one", self.another, "another", "primary", icon="random")
        self.on_change(self.another, self.seconds)
        self.lay_out(widgets.row(another, self.seconds), self.message.widget, self.view)
        another.click()

    def another(self) -> None:
        """Show another random excerpt."""
        place = self.data.random_chunk(self.seed, self.seconds.value)
        self.seed += 1
        self.view.value = chunk_html(self.data, *place)
        self.message.show("")


def chunk_html(data: dataset.Dataset, index: int, start_frame: int, n_frames: int) -> str:
    """An excerpt of a recording: player, spectrogram with F0, confidence, loudness."""
    recording, hop, rate_hz = data.recordings[index], data.hop_samples, data.settings.sample_rate_hz
    samples, start_s = data.audio(index, start_frame * hop, n_frames * hop), start_frame * hop / rate_hz
    figure = plots.features_overview(samples, data.features(index, start_frame, n_frames), start_s)
    return (
        page.heading(recording["name"], f"from {start_s:.1f} s, {recording['singer']}, {recording['split']}")
        + page.player(samples, rate_hz)
        + widgets.drawing(figure, "spectrogram with F0, confidence of the pitch tracker, loudness")
    )
