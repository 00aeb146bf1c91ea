"""Notebook 01: recordings, the doctor's report, a dataset, a chunk of it to look at.

Where a person's folder is still empty, synthetic singers make recordings and a song. Every function uses what is there,
makes only what is missing, and shows in a sentence which.
"""

import dataclasses
import functools
import os
import shutil
import zipfile
from pathlib import Path

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import dataset, quality, quality_report, singers
from svclib.data.recordings import Recording, find_recordings, leave_out
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import Panel
from svclib.training import api as training
from svclib.training.resume import BASE_PATH
from svclib.utils import atomic_store, config, download, filesystem, unzip, workspace
from svclib.utils.errors import DatasetError, StorageError

SINGER, OTHER_SINGER, MINUTES = "aria", "bruno", 2.0
MARKS = {quality_report.PROBLEM: "error", quality_report.WARNING: "warning", quality_report.NOTE: "info"}
MAX_ROWS, MAX_FLAGGED = 60, 12
PLAYED_S = 8.0  # of a file that is worth a look


def open_folder(base: str = "", base_model: bool = False) -> workspace.Base:
    """The person's folder, made if needed, with a line that names it.

    Without ``base``: ``svclib`` in Google Drive on Colab; elsewhere the environment variable ``SVCLIB_HOME``, else
    ``svclib_home`` beside the notebook. A ``base`` of recordings is used as a voice, and nothing is made in it. With
    ``base_model`` the shipped one is put where no diffusion instrument is.
    """
    try:
        opened, note = workspace.base_folder(base=base.strip() or None), ""
    except StorageError as error:
        if error.code != "foreign" or error.path is None or not audio.has_audio(error.path):
            raise
        opened = workspace.base_folder()
        voice = _use_in_place(opened, "", error.path)
        note = f"'{error.path}' holds recordings: they are used as the voice {voice}, and nothing is written there. "
    widgets.show(page.paragraph(f"Your folder{' on your Google Drive' if opened.on_drive else ''}: {opened.root}"))
    if note := note + opened.notice:
        widgets.show_note(note, "warning" if opened.notice else "info")
    wanted = base_model and BASE_PATH.is_file()
    if wanted and not any(entry.kind == "diffusion" for entry in instrument.list_folder(opened.instruments)):
        made = atomic_store.copy_file(BASE_PATH, opened.instruments / BASE_PATH.name)
        os.utime(made, (0, 0))  # one's own instruments are newer
        note = f"There was no diffusion instrument in {opened.instruments}, so the base model was put there: it sings "
        note += "any song in the voices of three people who gave them away (CC0). Notebook 02 adapts it to yours in a "
        widgets.show_note(f"{note}quarter of an hour.")
    return opened


def preset(name: str) -> config.Preset:
    """A preset by name; overlays are added with ``+``: ``ddsp_small+tiny``."""
    return config.load([part.strip() for part in name.split("+")])


def voices(base: workspace.Base) -> list[str]:
    """Names of the folders in ``base.audio`` with at least one usable recording: what was changed last comes first, the
    synthetic singers come last."""
    folders = widgets.newest_first(path for path in base.audio.iterdir() if path.is_dir())
    found = sorted(folders, key=lambda path: path.name * (path.name in (SINGER, OTHER_SINGER)))
    return [folder.name for folder in found if any(map(audio.has_audio, _places(base, folder.name)))]


def recordings(
    base: workspace.Base, voice: str = "", source: str = "", minutes: float | int = MINUTES
) -> tuple[str, list[Recording]]:
    """The recordings to work with: ``(name of the dataset, recordings)``.

    ``voice`` is a folder in ``base.audio``, or several, joined by commas; empty: the first of :func:`voices`.
    ``source`` is a folder or sound file anywhere, which is used where it is, or a zip, a Google Drive link or another
    address, fetched into the voice's folder; a ``voice`` that is a path is taken for a source. Sound files that lie in
    ``base`` itself are a voice where there is no other. Where there is nothing and nothing was named, ``minutes`` of a
    synthetic singer are made, and a quarter of it of another one. DatasetError, before anything is fetched or made, if
    a voice is not there, or ``voice`` and ``source`` contradict each other.
    """
    note, source, path = "", source.strip().strip("\"'"), Path(voice.strip()).expanduser()
    elsewhere = path.is_absolute() or bool(voice.strip()) and path.is_dir() and not (base.audio / voice).is_dir()
    voice, source = ("", voice) if elsewhere and not source else (voice, source)
    with widgets.shown_progress() as bar:
        if source:
            voice, note = _fetch(base, voice, source, bar)
        there = voices(base)
        if not voice and not set(there).difference((SINGER, OTHER_SINGER)) and _loose(base.root):
            voice = _use_in_place(base, "my voice", base.root)
            note, there = f"These recordings are used where they are, in {base.root}. ", voices(base)
        if not there and not voice:
            widgets.require_number("SINGER_MINUTES", minutes, 0.01, 60, "minutes, more than 0 and at most 60")
            for singer, share in ((SINGER, 1.0), (OTHER_SINGER, 0.25)):
                singers.make_recordings(singer, base.audio / singer, share * minutes, progress=bar)
            note = f"You have no recordings yet, so two synthetic singers stand in: {SINGER} and {OTHER_SINGER}. "
            note += "For your own voice, upload recordings above, or write their folder into SOURCE. "
            there = voices(base)
    wanted = _names(voice) or there[:1]
    if absent := [name for name in wanted if name not in there]:
        known = f" Voices there are: {', '.join(there)}." if there else ""
        hint = "Upload recordings, write their folder or zip into SOURCE, or another name into VOICE."
        raise DatasetError(f"There are no recordings in '{base.audio / absent[0]}'.{known}", hint=hint)
    found = [recording for name in wanted for recording in _recordings_of(base, name)]
    others = "" if voice or note else _others(there, wanted)
    widgets.show_note(f"{note}Voice: {', '.join(wanted)}, {_count(len(found), 'file')}.{others}")
    return "+".join(wanted), found


def _recordings_of(base, name) -> list[Recording]:
    """The recordings of a voice; several singers only where several folders hold them, otherwise it is its name's."""
    found = []
    for place in _places(base, name):
        while place.is_dir() and len(inside := _visible(place)) == 1 and inside[0].is_dir():
            place = inside[0]  # as in a zip of a folder
        found += find_recordings(_loose(place) if place == base.root else [place])
    if len({recording.singer for recording in found}) == 1 or any(place == base.root for place in _places(base, name)):
        found = [dataclasses.replace(recording, singer=name) for recording in found]
    return found


def _places(base, name) -> list[Path]:
    """The places of a voice's recordings: its folder, and the folder or file elsewhere that is noted in it."""
    folder = base.audio / name
    noted = unzip.record(folder).get("in_place")
    return [folder, *([Path(noted)] if noted and Path(noted).exists() else [])]


def _use_in_place(base, voice: str, path: Path) -> str:
    """Note that recordings of a voice (empty: named as they are) are elsewhere; its name."""
    name = filesystem.safe_name(voice or (path.stem if path.is_file() else path.name))
    folder = base.audio / name
    if audio.has_audio(folder) or unzip.record(folder).get("in_place", str(path)) != str(path):
        raise DatasetError(
            f"'{folder}' has recordings already, and they are not those in '{path}'.",
            hint="Leave SOURCE empty to use them, or write another name into VOICE for the others.",
        )
    atomic_store.write_json(folder / unzip.RECORD_NAME, {"in_place": str(path)})
    return name


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not filesystem.is_system_file(path.name))


def _loose(folder: Path) -> list[Path]:
    """Sound files that lie in a folder itself."""
    return [path for path in _visible(folder) if path.is_file() and path.suffix.lower() in audio.SUFFIXES]


def _fetch(base, voice, source, progress) -> tuple[str, str]:
    """Fetch recordings of a voice, or note where they are; its name, and a sentence if they are new."""
    if len(_names(voice)) > 1:
        raise DatasetError(f"SOURCE is one voice, but VOICE is '{voice}'.", hint="Write one name, or empty SOURCE.")
    path, is_link = Path(source).expanduser().absolute(), download.is_link(source)
    if not is_link and path.exists() and not zipfile.is_zipfile(path) and path.suffix.lower() != ".zip":
        if path.parent == base.audio:
            return path.name, ""
        if not (path.is_dir() and audio.has_audio(path)) and path.suffix.lower() not in audio.SUFFIXES:
            raise DatasetError(f"There are no recordings in '{path}'.", hint="Write another folder or zip into SOURCE.")
        return _use_in_place(base, voice.strip(), path), f"The recordings are used where they are, in {path}. "
    target, where = base.audio / filesystem.safe_name(voice or "fetched"), source if is_link else path
    there = audio.find(target)[0] if target.is_dir() else []
    if not there or is_link or path.exists():
        own = download.place(where, target)
        if any(not path.is_relative_to(own) for path in there):
            hint = "Leave SOURCE empty to use them, or write another name into VOICE for what is fetched."
            raise DatasetError(f"'{target}' has recordings already, and they are not those of SOURCE.", hint=hint)
        download.fetch(where, target, progress=progress)  # does nothing where all of it is there
    return target.name, "" if there else f"Fetched recordings into {target}. "


def _names(voice: str) -> list[str]:
    """The voices that a text names; that of a path is the name of its folder."""
    if Path(voice.strip()).expanduser().is_absolute():
        return [filesystem.safe_name(Path(voice.strip()).name)]
    return [name.strip() for name in voice.split(",") if name.strip()]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _others(there: list[str], chosen: list[str]) -> str:
    others = [name for name in there if name not in chosen]
    return f" Write another name into VOICE for {' or '.join(others)}." if others else ""


class UploadPanel(Panel):
    """Recordings, or a zip of them, from the browser into the folder of a voice."""

    def __init__(self, base: workspace.Base, voice: str = ""):
        super().__init__()
        self.folder = base.audio / filesystem.safe_name((_names(voice) or ["my voice"])[0])
        face = {"label": "Upload recordings, or a zip of them", "hint": f"they are stored in {self.folder}"}
        face["accept"] = ",".join(sorted({*audio.SUFFIXES, ".zip"}))
        self.upload = widgets.Uploader(self.message, self._keep, self._kept, face, microphone=True)
        self.lay_out(self.upload, self.message.widget)

    def _keep(self, path: Path) -> Path:
        if zipfile.is_zipfile(path):
            unpacked = unzip.unpack(path, path.parent / "unpacked")
            if not audio.has_audio(unpacked):
                raise DatasetError("It holds no recordings.")
            return download.fetch(path, self.folder)
        audio.probe(path)
        return atomic_store.commit_new(self.folder / path.name, functools.partial(shutil.copyfile, path))

    def _kept(self, paths: list[Path]) -> str:
        stored = _count(len(audio.find(self.folder)[0]), "recording")
        return f"{stored} of the voice {self.folder.name} in {self.folder}. Now run the next cell and those below it."


def songs(base: workspace.Base) -> list[Path]:
    """Songs in ``base.examples``, the newest first; where there is none, one of a synthetic singer is made."""
    usable, _ = audio.find(base.examples)
    if usable:
        return widgets.newest_first(usable)
    song, comment = singers.render(OTHER_SINGER, singers.demo_song()), "synthetic voice (svclib singers)"
    path = audio.write(base.examples / "twinkle.wav", song.audio, song.sample_rate_hz, comment)
    widgets.show_note(f"{base.examples} was empty, so {OTHER_SINGER}, a synthetic singer, sang a song into it.")
    return [path]


def _report_html(report: quality_report.Report) -> str:
    """The doctor's report: what there is in total, what to do, a table and a picture."""
    totals, findings = report.totals, report.findings[:MAX_ROWS]
    duration, sounding = (units.duration_text(totals[name]) for name in ("duration_s", "sounding_s"))
    title = f"{totals['n_usable']} of {totals['n_files']} files usable, {duration}"
    parts = [page.heading(title, f"{sounding} without silence")]
    if findings:
        rows = [[f.file or "all", quality_report.KINDS[f.kind], f.text] for f in findings]
        parts.append(page.table(["file", "found", "what to do"], rows, [MARKS[f.severity] for f in findings]))
    else:
        parts.append(page.notice(quality_report.NOTHING_FOUND, "done"))
    usable = [file for file in report.files if file.usable]
    (first, *others), rows = report.table_of(usable[:MAX_ROWS])
    parts.append(page.table([first, *(f">{title}" for title in others)], rows))
    if len(usable) > MAX_ROWS:
        parts.append(page.paragraph(f"and {len(usable) - MAX_ROWS} more files"))
    if usable:
        parts.append(widgets.drawing(plots.doctor_picture(report), "length, notes and level of each file"))
    return "".join(parts)


class DoctorPanel(Panel):
    """Shows the doctor's report; for each usable file that is worth a look a player and a tick to leave it out."""

    def __init__(self, found: list[Recording]):
        super().__init__()
        with widgets.shown_progress() as bar:
            report = quality.examine(found, progress=bar)
        widgets.show(_report_html(report))  # not in the panel: it stays in a saved notebook
        self.found, self.ticks, flagged, rows = found, {}, report.flagged(), []
        for number, file in enumerate(flagged[:MAX_FLAGGED]):
            kinds = ", ".join(dict.fromkeys(quality_report.KINDS[f.kind] for f in file.findings))
            tick = self.ticks[file.path] = self.checkbox("Leave out", f"leave-{number}", f"do not use {file.name}")
            sound = page.player(*audio.beginning(file.path, PLAYED_S))
            rows.append(widgets.row(tick, widgets.html(page.paragraph(f"{file.name}: {kinds}") + sound)))
        if flagged:
            of = f" The first {len(rows)} of {len(flagged)} are here." if len(flagged) > len(rows) else ""
            text = f"Listen to what is worth a look, and tick what shall be left out.{of} Then run the next cell."
            rows.insert(0, widgets.html(page.heading("Worth a look") + page.paragraph(text)))
        self.lay_out(*rows, self.message.widget)

    @property
    def recordings(self) -> list[Recording]:
        """The recordings, those with a tick marked as left out."""
        return leave_out(self.found, {path for path, tick in self.ticks.items() if tick.value})


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
    title = page.heading(recording["name"], f"from {start_s:.1f} s, {recording['singer']}, {recording['split']}")
    drawn = widgets.drawing(figure, "spectrogram with F0, confidence of the pitch tracker, loudness")
    return title + page.player(samples, rate_hz) + drawn
