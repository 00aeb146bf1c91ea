"""First run: synthetic singers, a song and a first instrument where a person's folder is still empty.

Every function uses what is there and makes only what is missing, and reports which in a sentence.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import evaluate
from svclib.data import dataset, singers
from svclib.data.recordings import Recording, find_recordings
from svclib.models import instrument
from svclib.training import api as training
from svclib.training.resume import BASE_PATH
from svclib.training.session import BASE
from svclib.utils import atomic_store, config, download, filesystem, workspace
from svclib.utils.errors import DatasetError, ProgressCallback, TrainingError

SINGER, MINUTES = "aria", 2.0
OTHER_SINGER = "bruno"


def preset(name: str, overrides: list[str] | tuple[str, ...] = ()) -> config.Preset:
    """A preset by name; overlays are added with ``+``: ``ddsp_small+tiny``."""
    return config.load([part.strip() for part in name.split("+")], overrides)


def voices(base: workspace.Base) -> list[str]:
    """Names of the folders in ``base.audio`` with at least one usable recording, the synthetic singers last."""
    folders = [p for p in base.audio.iterdir() if p.is_dir()]
    found = sorted(folders, key=lambda p: (p.name in (SINGER, OTHER_SINGER), p.name.lower()))
    return [folder.name for folder in found if audio.has_audio(folder)]


def recordings(
    base: workspace.Base,
    voice: str = "",
    source: str = "",
    minutes: float | int = MINUTES,
    progress: ProgressCallback | None = None,
) -> tuple[str, list[Recording], str]:
    """The recordings to work with.

    Args:
        base: The person's folder.
        voice: Name of a folder in ``base.audio``; several, joined by commas, are one dataset together. Empty: the
            first of :func:`voices`.
        source: A zip, a Google Drive link or another address to fetch recordings from, into ``base.audio / voice``.
        minutes: Minutes of the first synthetic singer, if nothing is there; the other one gets a quarter of it.
        progress: Called with (fraction, text).

    Returns:
        ``(name of the dataset, recordings, a sentence with what was used)``.

    Raises:
        DatasetError: if a voice is not there (names those that are), or ``voice`` and ``source`` contradict
            each other, before anything is fetched.
    """
    note = ""
    if source:
        if len(names(voice)) > 1:
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
            note = "" if there else f"Fetched recordings into {target}. "
        voice = target.name
    there = voices(base)
    if not there:
        for singer, share in ((SINGER, 1.0), (OTHER_SINGER, 0.25)):
            singers.make_recordings(singer, base.audio / singer, share * minutes, progress=progress)
        there = voices(base)
        note = (
            f"{base.audio} was empty, so two synthetic singers sang for you: {SINGER} and {OTHER_SINGER}. For your own "
            "voice, put recordings into a folder of its own there, and write its name into VOICE. "
        )
    wanted = names(voice) or there[:1]
    missing = [name for name in wanted if name not in there]
    if missing:
        raise DatasetError(
            f"There are no recordings in '{base.audio / missing[0]}'. Voices there are: {', '.join(there)}. "
            "Put recordings there, or write another name into VOICE."
        )
    found = find_recordings([base.audio / name for name in wanted])
    others = "" if voice or note else _others(there, wanted)
    return "+".join(wanted), found, f"{note}Voice: {', '.join(wanted)}, {len(found)} files.{others}"


def prepared(
    base: workspace.Base,
    voice: str,
    chosen: config.Preset,
    minutes: float | int = MINUTES,
    progress: ProgressCallback | None = None,
) -> tuple[dataset.Dataset, str]:
    """The dataset of a voice as notebook 01 left it; prepared now if it is not there or lacks what a preset needs.

    Args:
        base: The person's folder.
        voice: As in :func:`recordings`; empty, and without recordings: the first dataset that is there.
        chosen: The preset.
        minutes: As in :func:`recordings`.
        progress: Called with (fraction, text).

    Returns:
        ``(dataset.Dataset, sentence)``.
    """
    there = [] if voice else voices(base)
    wanted = "+".join(names(voice) or there[:1] or _first(base.datasets))
    folder = dataset_folder(base, wanted, chosen)
    if wanted and (folder / "manifest.json").is_file():
        data = dataset.Dataset.open(folder)
        problem = training.fits(data.settings, chosen)
        if problem is None:
            others = "" if voice else _others(there, names(wanted))
            return data, f"Dataset {wanted}, as it was prepared.{others}"
    name, found, note = recordings(base, voice, minutes=minutes, progress=progress)
    data = dataset.prepare(found, dataset_folder(base, name, chosen), chosen.features, progress=progress)
    return data, note


def dataset_folder(base: workspace.Base, name: str, chosen: config.Preset) -> Path:
    """Folder of the dataset of a voice, measured as a preset needs it: ``datasets / NAME / RATE-HOP``."""
    return base.datasets / name / f"{chosen.features.sample_rate_hz}-{chosen.features.hop_samples}"


def voice_of(data: dataset.Dataset) -> str:
    """The name of the voice (or voices) of a dataset in its place."""
    return data.path.parent.name


def names(voice: str) -> list[str]:
    """The names in a list joined by commas."""
    return [name.strip() for name in voice.split(",") if name.strip()]


def _others(there: list[str], chosen: list[str]) -> str:
    others = [name for name in there if name not in chosen]
    return f" Write another name into VOICE for {' or '.join(others)}." if others else ""


def _first(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir())[:1]


def newest_first(paths) -> list[Path]:
    """Files by when they were written, what is gone last: what a person just made or brought is what is meant."""
    written = {path: path.stat().st_mtime if path.exists() else 0.0 for path in map(Path, paths)}
    return sorted(written, key=written.get, reverse=True)


def songs(base: workspace.Base) -> tuple[list[Path], str]:
    """Songs in ``base.examples``, the newest first; where there is none, one of a synthetic singer is made."""
    usable, _ = audio.find(base.examples)
    if usable:
        return newest_first(usable), ""
    recording = singers.render(OTHER_SINGER, singers.demo_song())
    comment = "synthetic voice (svclib singers)"
    path = audio.write(base.examples / "twinkle.wav", recording.audio, recording.sample_rate_hz, comment).path
    return [path], f"{base.examples} was empty, so {OTHER_SINGER}, a synthetic singer, sang a song into it."


def instruments(
    base: workspace.Base,
    preset_name: str = "ddsp_small",
    minutes: float | int = 1.0,
    singer_minutes: float | int = MINUTES,
    on_progress: Callable[[Any], None] | None = None,
    kind: str = "",
) -> tuple[list[Path], str]:
    """Usable instruments in ``base.instruments``, the newest first; where there is none, one is trained shortly.

    Args:
        base: The person's folder.
        preset_name: What is trained then, as :func:`preset` takes it.
        minutes: How long it is trained.
        singer_minutes: Minutes of the synthetic singer for it, if there are no recordings.
        on_progress: Called with a ``training.Status``.
        kind: Only instruments of this kind; empty: of any.

    Returns:
        ``(paths, sentence)``; the sentence is empty where there were instruments.
    """
    listed = [entry for entry in instrument.list_folder(base.instruments) if entry.problem is None and entry.converts]
    usable = [entry.path for entry in listed if kind in ("", entry.kind)]
    if usable:
        return newest_first(usable), ""
    chosen = preset(preset_name)
    data, _ = prepared(base, "", chosen, singer_minutes)
    run = run_folder(base, data, preset_name)
    training.train(data, run, chosen, minutes=minutes, on_progress=on_progress)
    path = training.export(run, base.instruments / f"{voice_of(data)}.zip")
    note = (
        f"{base.instruments} held no {f'{kind} ' if kind else ''}instrument, so one of {voice_of(data)} was trained "
        f"for {minutes:g} min: enough to hear that it sings, not enough to sound well. Notebook 02 trains a better one."
    )
    return [path], note


def place_base_model(base: workspace.Base) -> str:
    """Copy the shipped base model into ``base.instruments`` unless a diffusion instrument is there; reports it."""
    listed = instrument.list_folder(base.instruments)
    if not BASE_PATH.is_file() or any(entry.kind == "diffusion" and entry.problem is None for entry in listed):
        return ""
    atomic_store.copy_file(BASE_PATH, base.instruments / BASE_PATH.name)
    return (
        f"There was no diffusion instrument in {base.instruments}, so the base model was put there: it sings any song "
        "in the voices of three people who gave them away (CC0). Notebook 02 adapts it to yours in 15 to 20 minutes."
    )


# ------------------------------------------------------------------------------------------------------------ training

PATIENCE_HOURS = 6.0


def elapsed_s() -> float:
    """Seconds on a clock that only goes forward."""
    return time.monotonic()


def run_folder(base: workspace.Base, data: dataset.Dataset, preset_name: str) -> Path:
    """The folder of the run that trains a dataset with a preset."""
    return base.runs / filesystem.safe_name(f"{voice_of(data)}-{preset_name}")


def train(
    data: Any,
    run: Path,
    preset_name: str,
    minutes: float | int | None = None,
    steps: int | None = None,
    on_cpu: bool = False,
    on_progress: Callable[[Any], None] | None = None,
    songs: Path | None = None,
    init: str | None = BASE,
) -> training.RunResult:
    """``training.train``; without a GPU and without a limit in minutes, hours of it need a clear yes.

    Raises TrainingError if it would take more than six hours on the CPU and ``on_cpu`` is False. What was trained until
    that was known is saved. ``songs``: a folder of songs of others that decide which step is the best. ``init``: as in
    ``training.SessionOptions``.
    """
    state = {"long": None}

    def watch(status):
        if status.step >= 5 and status.remaining_s and status.remaining_s > PATIENCE_HOURS * 3600:
            state["long"] = status.remaining_s
        if on_progress:
            on_progress(status)

    import torch

    asked = not (on_cpu or minutes or torch.cuda.is_available())
    result = training.train(
        data,
        run,
        preset(preset_name),
        steps=steps,
        minutes=minutes,
        on_progress=watch,
        cancelled=(lambda: state["long"] is not None) if asked else None,
        score=evaluate.for_training(data, songs) if songs else None,
        init=init,
    )
    if asked and state["long"] is not None and result.reason == "cancelled":
        raise TrainingError(
            f"There is no GPU here, and '{preset_name}' would need about {units.duration_text(state['long'])} on this "
            "CPU. Choose a GPU runtime or the preset ddsp_small, give MINUTES, or write ON_CPU = True to go on anyway."
        )
    return result


def progress_summary(status, minutes: float | int | None, elapsed_s: float) -> tuple[float, float | None]:
    """Share done (0..1) and seconds left of a session that ends at the last step or after so many minutes."""
    share, left_s = status.step / max(status.steps, 1), status.remaining_s
    if minutes:
        share = min(1.0, max(share, elapsed_s / (60.0 * minutes)))
        until_s = max(0.0, 60.0 * minutes - elapsed_s)
        left_s = until_s if left_s is None else min(left_s, until_s)
    return share, left_s


def export(
    run: Path, base: workspace.Base, which: str | int = "best", name: str = "", data: Any = None
) -> tuple[Path, str]:
    """``training.export`` into ``base.instruments``, unless the very same instrument is there already.

    Args:
        run: The run's folder.
        base: The person's folder.
        which: ``best``, ``last`` or a step.
        name: Of the instrument and its file; the run's if empty.
        data: The run's dataset, whose content a diffusion instrument keeps for retrieval; none if None.

    Returns:
        ``(path, sentence)``.
    """
    name = filesystem.safe_name(name or run.name)
    _, record = training.load_model(run, which)
    wanted = (name, record["step"], record["metrics"]["validation_loss"])
    for entry in instrument.list_folder(base.instruments):
        if (entry.name, entry.info.get("trained_steps"), entry.info.get("validation_loss")) == wanted:
            return entry.path, f"This instrument, step {record['step']}, was exported before: {entry.path}"
    path = training.export(run, base.instruments / f"{name}.zip", which, name, dataset=data)
    return path, f"The instrument, from step {record['step']}, is {path}"


@dataclasses.dataclass(frozen=True)
class CheckpointEntry:
    """A step that can be exported: its held-out loss, whether it is the best, its previews."""

    step: int
    validation_loss: float | None
    best: bool
    previews: list


def checkpoint_steps(run: str | Path) -> list[CheckpointEntry]:
    """The usable checkpoints of a run, one entry for each step, in order."""
    found = [info for info in training.checkpoints(run) if info.problem is None]
    best = max((info.step for info in found if info.kind == "best"), default=None)
    previews = training.previews(run)
    entries = {}
    for info in found:
        known = entries.get(info.step)
        loss = info.validation_loss if info.validation_loss is not None else (known.validation_loss if known else None)
        own = [p for p in previews if p.step == info.step]
        entries[info.step] = CheckpointEntry(info.step, loss, info.step == best, own)
    return [entries[step] for step in sorted(entries)]


def read_preview(path: Path):
    """A preview's samples and rate."""
    sound = audio.read(path)
    return sound.samples, sound.sample_rate_hz
