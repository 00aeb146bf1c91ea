"""The whole journey on one page: recordings, dataset, training, instrument, conversion, and a page to listen and look.

Without arguments one synthetic singer (``aria``) gives the recordings and the other (``bruno``) sings the song, so that
everything that comes out can be compared with a known truth. Whatever a run finds finished is used again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion import key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.data import dataset, preprocess
from svclib.data.recordings import find_recordings
from svclib.data.synthetic import singers
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.training import api as training
from svclib.utils import atomic_store, config, filesystem, workspace

VOICE, OTHER_VOICE = "aria", "bruno"
CORPUS_MINUTES = 2.5
TRAIN_MINUTES = 1.5
PRESET = ("ddsp_small", "demo")
STATE = "demo.json"
PAGE_VERSION = f"1 ({__version__})"  # another one makes the page anew


@dataclasses.dataclass(frozen=True)
class Result:
    """What a demo made and where.

    Attributes:
        page: The page to open in a browser.
        dataset, run: Folders.
        instrument: The file to share.
        converted: The song, sung by the instrument.
        seconds: Time of every stage.
        text: All of this for people.
    """

    page: Path
    dataset: Path
    run: Path
    instrument: Path
    converted: Path
    seconds: dict[str, float]
    text: str


def run(
    out: str | Path,
    audio_folder: str | Path | None = None,
    song: str | Path | None = None,
    minutes: float | int | None = None,
    seed: int = 0,
    preset: tuple[str, ...] = PRESET,
    corpus_minutes: float | int = CORPUS_MINUTES,
    progress: Callable[[float, str], None] | None = None,
    say: Callable[[str], None] | None = None,
    on_training: Callable[[training.Status], None] | None = None,
) -> Result:
    """Go from recordings to a converted song and a page about it.

    Args:
        out: Folder for everything; nothing of yours in it is overwritten.
        audio_folder: Recordings of one voice; None: a synthetic singer.
        song: What to convert: needed with ``audio_folder``, not read without it; then the other singer sings one.
        minutes: How long to train; 1.5 if None.
        seed: Of everything random.
        preset: Names of gin presets, later ones win.
        corpus_minutes: How much the synthetic singer sings.
        progress: Called with (fraction, text) inside the stages that take long.
        say: Called with a line about every stage.
        on_training: Called with the training's status instead of ``progress``.

    Returns:
        The paths of what was made, or found finished, and the seconds that every stage took.

    Raises:
        ValueError, OSError: of the part that failed, with a sentence; what was finished is used next time.
    """
    if audio_folder is not None and song is None:
        raise ValueError(f"The recordings in '{audio_folder}' need a song to convert. Give one.")
    minutes = float(TRAIN_MINUTES if minutes is None else minutes)
    chosen = config.load(list(preset))
    journey = DemoRun(Path(out), progress or (lambda fraction, text="": None), say or (lambda line: None))
    with journey.stage("recordings") as stage:
        found, song_path = _recordings(journey, stage, audio_folder, song, corpus_minutes, seed)
    with journey.stage("dataset") as stage:
        voice = found[0].singer
        folder = journey.base.datasets / filesystem.safe_name(voice)
        data = dataset.prepare(found, folder, chosen.features, progress=journey.progress)
        stage.reused = preprocess.UNCHANGED in data.messages
        stage.text = f"{len(data.recordings)} recordings, {data.duration_s() / 60:.1f} min measured"
    with journey.stage("training") as stage:
        run_folder = _train(journey, stage, data, chosen, minutes, seed, on_training)
    with journey.stage("instrument") as stage:
        instrument_path = _export(journey, stage, run_folder, voice, audio_folder is None)
    with journey.stage("conversion and page") as stage:
        page, converted = _convert(journey, stage, data, run_folder, instrument_path, song_path, seed)
    return _result(journey, page, data.path, run_folder, instrument_path, converted)


class _Stage:
    """One line of what happened."""

    def __init__(self):
        self.reused, self.text = False, ""


class DemoRun:
    """The folder, what earlier runs left in it, and the clock."""

    def __init__(self, out: Path, progress, say):
        self.base = workspace.base_folder(base=out)
        self.progress, self.say = progress, say
        self.seconds: dict[str, float] = {}
        self.news = False
        path = self.base.root / STATE
        self.state = filesystem.read_json(path) if path.is_file() else {}

    @contextmanager
    def stage(self, name: str):
        started, stage = time.monotonic(), _Stage()
        self.progress(0.0, name)
        yield stage
        self.seconds[name] = time.monotonic() - started
        again = " (as before)" if stage.reused else ""
        self.news |= not stage.reused
        self.say(f"{len(self.seconds)}. {name}: {stage.text}{again}, {self.seconds[name]:.1f} s")

    def done(self, name: str, key: dict, *paths: Path | None) -> dict | None:
        """What an earlier run noted under this name, if it was made from the same things and is still there."""
        noted = self.state.get(name) or {}
        there = all((self.base.root / p).exists() for p in noted.get("paths", []))
        return noted if noted and there and noted.get("key") == _digest(key) else None

    def note(self, name: str, key: dict, paths: list[Path], **more) -> None:
        """Remember what was made, from what."""
        inside = [p.relative_to(self.base.root).as_posix() for p in paths]
        self.state[name] = {"key": _digest(key), "paths": inside, **more}
        atomic_store.write_json(self.base.root / STATE, self.state)


def _digest(key: dict) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _recordings(journey, stage, audio_folder, song, corpus_minutes, seed):
    """The recordings of one voice, and the song."""
    if audio_folder is not None:
        found = find_recordings([audio_folder])
        voices = sorted({r.singer for r in found})
        stage.text = f"{len(found)} files of {', '.join(voices)}, and {Path(song).name}"
        return found, Path(song)
    folder = journey.base.audio / VOICE
    before = set(folder.glob("*.wav"))
    paths = singers.make_recordings(VOICE, folder, corpus_minutes, seed, progress=journey.progress)
    song_path = journey.base.examples / f"{OTHER_VOICE}_twinkle.wav"
    if not song_path.is_file():
        sung = singers.render(OTHER_VOICE, singers.demo_song(), seed=seed)
        audio.write(song_path, sung.audio, sung.sample_rate_hz)
    stage.reused = set(paths) <= before
    stage.text = f"{VOICE} sings {len(paths)} melodies, {OTHER_VOICE} sings a song"
    return find_recordings([folder]), song_path


def _train(journey, stage, data, chosen, minutes, seed, on_training) -> Path:
    run_folder = journey.base.runs / f"{data.path.name}-{chosen.name}"
    key = {"fingerprint": data.fingerprint, "preset": chosen.text, "minutes": minutes, "seed": seed}
    noted = journey.done("training", key, run_folder)
    if noted:
        stage.reused, stage.text = True, noted["text"]
        return run_folder
    started = time.monotonic()

    def shown(status):
        if on_training:
            return on_training(status)
        part = min((time.monotonic() - started) / (60 * minutes), 1.0)
        loss = "" if status.loss is None else f", loss {status.loss:.2f}"
        return journey.progress(max(part, status.step / status.steps), f"training, step {status.step}{loss}")

    result = training.train(
        data, run_folder, chosen, minutes=minutes, seed=seed, on_progress=shown, allow_changed_dataset=True
    )
    if result.reason == "interrupted":
        raise KeyboardInterrupt
    stage.text = f"{result.step} steps"
    if result.validation_loss is not None:
        stage.text += f", held-out loss {result.validation_loss:.2f}"
    journey.note("training", key, [run_folder], text=stage.text, step=result.step)
    return run_folder


def _export(journey, stage, run_folder, voice, synthetic) -> Path:
    found = training.checkpoints(run_folder)
    key = {"run": run_folder.name, "checkpoints": sorted(c.path.name for c in found)}
    noted = journey.done("instrument", key)
    if noted:
        path = journey.base.root / noted["paths"][0]
    else:
        consent = {"consent": "A synthetic singer of svclib: nobody's voice."} if synthetic else {}
        path = training.export(run_folder, journey.base.instruments / f"{filesystem.safe_name(voice)}.zip", **consent)
        journey.note("instrument", key, [path])
    stage.reused, stage.text = bool(noted), f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"
    return path


def _convert(journey, stage, data, run_folder, instrument_path, song_path, seed) -> tuple[Path, Path]:
    key = {
        "instrument": filesystem.sha256_file(instrument_path),
        "song": filesystem.sha256_file(song_path),
        "seed": seed,
    }
    noted = journey.done("conversion", {**key, "page": PAGE_VERSION})
    if noted:
        stage.reused, stage.text = True, noted["text"]
        page, converted = (journey.base.root / p for p in noted["paths"])
        return page, converted
    from svclib.cli import demo_report  # matplotlib takes its time

    opened = instrument.open(instrument_path)
    song = songs.load_song(song_path, opened.features, progress=journey.progress)
    shift = key_suggestion.suggest_shift(song.features, opened.statistics)
    made = pipeline.convert(opened, song, Controls(octave_shift=shift.octaves), SamplingOptions(seed=seed))
    converted = pipeline.save(made, journey.base.output)
    html = demo_report.build(
        opened, made, run_folder, shift.text, journey.seconds, _truth(song_path, shift.octaves, seed)
    )
    page = atomic_store.commit_bytes(journey.base.root / "index.html", html.encode())
    stage.text = f"{converted.name} and {page.name}"
    journey.note("conversion", {**key, "page": PAGE_VERSION}, [page, converted], text=stage.text)
    return page, converted


def _truth(song_path: Path, octaves: int, seed: int) -> singers.SyntheticRecording | None:
    """How the target singer herself sings the demo song: what the conversion is after."""
    if song_path.name != f"{OTHER_VOICE}_twinkle.wav":
        return None
    octave = singers.SINGERS[OTHER_VOICE].octave + octaves
    return singers.render(VOICE, singers.demo_song(), seed=seed, octave=octave)


def _result(journey, page, data, run_folder, instrument_path, converted) -> Result:
    total = sum(journey.seconds.values())
    rows = [
        ("dataset", data),
        ("training", run_folder),
        ("instrument", instrument_path),
        ("converted song", converted),
        ("listen and look", page),
    ]
    lines = [
        f"Made in {total:.0f} s:" if journey.news else "Everything was there already:",
        *(f"  {name:<16} {path}" for name, path in rows),
    ]
    lines += ["Open the last one in a browser."]
    return Result(page, data, run_folder, instrument_path, converted, dict(journey.seconds), "\n".join(lines))
