"""``svclib demo``: recordings, dataset, training, instrument, conversion, and a page with sounds and pictures of all.

A diffusion preset starts from the base model, whose voice converts the song before anything is trained. Without
arguments one synthetic singer (``aria``) gives the recordings and the other (``bruno``) the song, so that the result
can be compared with a known truth. Whatever an earlier run finished is used again.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import svclib
from svclib.analysis import html
from svclib.audio import io as audio
from svclib.conversion import ab_compare
from svclib.data import dataset, preprocess, singers
from svclib.training import api as training
from svclib.training.resume import BASE_PATH
from svclib.utils import atomic_store, filesystem, workspace
from svclib.utils.errors import DatasetError, reporter

VOICE, OTHER_VOICE = "aria", "bruno"
SONG_NAME = f"{OTHER_VOICE}_twinkle.wav"
STATE = "demo.json"
PAGE_VERSION = f"4 ({svclib.__version__})"  # another one makes the page anew


@dataclasses.dataclass(frozen=True)
class Options:
    """Minutes of training, the seed of everything random, presets, and minutes of the synthetic singer's recordings."""

    minutes: float | int = 1.5
    seed: int = 0
    preset: tuple[str, ...] = ("diffusion_small",)
    corpus_minutes: float | int = 2.5


@dataclasses.dataclass(frozen=True)
class Result:
    """Paths of the page to open in a browser and of other products, seconds by stage, and all of it as text."""

    page: Path
    instrument: Path
    converted: Path
    seconds: dict[str, float]
    text: str


def run(
    out: str | Path,
    audio_folder: str | Path | None = None,
    song: str | Path | None = None,
    options: Options | None = None,
    progress: Callable[[float, str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Result:
    """Go from recordings to a converted song and a page about it, or find them finished.

    Everything is in ``out``; nothing of yours in it is overwritten. ``audio_folder`` holds recordings of one voice and
    needs a ``song``; without it the synthetic singers give both. ``log`` gets a line about every stage. Raises what the
    stage that failed raises; finished stages are used next time.
    """
    if audio_folder is not None and song is None:
        raise ValueError(f"The recordings in '{audio_folder}' need a song to convert. Give one.")
    demo = DemoRun(Path(out), options or Options(), progress, log)
    recordings, song_path = demo.stage("recordings", demo.find_recordings, audio_folder, song)
    at_once = None
    if demo.preset.model.kind == "diffusion":
        at_once = demo.stage("the base model's voice", demo.convert_at_once, song_path)
    data = demo.stage("dataset", demo.prepare, recordings)
    run_folder = demo.stage("training", demo.train, data)
    voice = demo.stage("instrument", demo.export, run_folder, recordings[0].singer, audio_folder is None)
    path, converted = demo.stage("conversion and page", demo.convert, run_folder, voice, song_path, at_once)
    rows = {"base model's song": at_once} if at_once else {}
    rows |= {"dataset": data.path, "training": run_folder, "instrument": voice, "converted song": converted}
    rows["listen and look"] = path
    head = f"Made in {sum(demo.seconds.values()):.0f} s:" if demo.made_anew else "Everything was there already:"
    lines = [head, *(f"  {name:<17} {where}" for name, where in rows.items()), "Open the last one in a browser."]
    return Result(path, voice, converted, demo.seconds, "\n".join(lines))


class DemoRun:
    """The stages of a demo in one folder, with a record of what earlier runs finished there.

    Each returns its result, a description, and whether that of an earlier run is used.
    """

    def __init__(self, out: Path, options: Options, progress, log):
        self.base, self.options = workspace.base_folder(base=out), options
        self.progress, self.log = reporter(progress), log or (lambda line: None)
        self.preset = svclib.load_preset(list(options.preset))
        self.seconds: dict[str, float] = {}
        self.made_anew = False
        path = self.base.root / STATE
        self.state = filesystem.read_json(path) if path.is_file() else {}

    def stage(self, name: str, work: Callable[..., tuple[Any, str, bool]], *arguments) -> Any:
        """Run a stage, time it and log its line."""
        started = time.monotonic()
        self.progress(0.0, name)
        result, text, reused = work(*arguments)
        self.seconds[name] = time.monotonic() - started
        self.made_anew |= not reused
        self.log(f"{len(self.seconds)}. {name}: {text}{' (as before)' * reused}, {self.seconds[name]:.1f} s")
        return result

    def finished(self, name: str, key: dict) -> dict | None:
        """The record of an earlier run under this name, if it has the same key and its files are still there."""
        record = self.state.get(name) or {}
        there = all((self.base.root / p).exists() for p in record.get("paths", []))
        return record if record and there and record.get("key") == _digest(key) else None

    def remember(self, name: str, key: dict, text: str, *paths: Path) -> None:
        """Record what was made, and from what."""
        inside = [p.relative_to(self.base.root).as_posix() for p in paths]
        self.state[name] = {"key": _digest(key), "paths": inside, "text": text}
        atomic_store.write_json(self.base.root / STATE, self.state)

    def find_recordings(self, audio_folder, song) -> tuple[tuple[list, Path], str, bool]:
        """The recordings of one voice, and the song."""
        if audio_folder is not None:
            found = svclib.find_recordings([audio_folder])
            voices = ", ".join(sorted({r.singer for r in found}))
            return (found, Path(song)), f"{len(found)} files of {voices}, and {Path(song).name}", False
        folder, o = self.base.audio / VOICE, self.options
        before = set(folder.glob("*.wav"))
        paths = singers.make_recordings(VOICE, folder, o.corpus_minutes, o.seed, progress=self.progress)
        song_path = self.base.examples / SONG_NAME
        if not song_path.is_file():
            made = singers.render(OTHER_VOICE, singers.demo_song(), seed=o.seed)
            audio.write(song_path, made.audio, made.sample_rate_hz)
        text = f"{len(paths)} melodies of {VOICE}, a song of {OTHER_VOICE}"
        return (svclib.find_recordings([folder]), song_path), text, set(paths) <= before

    def convert_at_once(self, song_path: Path) -> tuple[Path, str, bool]:
        """The song in the first voice of the base model, with nothing trained."""
        key: dict = {"base": filesystem.sha256_file(BASE_PATH), "song": filesystem.sha256_file(song_path)}
        key |= {"seed": self.options.seed}
        if record := self.finished("base", key):
            return self.base.root / record["paths"][0], record["text"], True
        path = self._convert(BASE_PATH, song_path)[0]
        text = f"{path.name}, nothing trained"
        self.remember("base", key, text, path)
        return path, text, False

    def _convert(self, instrument_path: Path, song_path: Path) -> tuple[Path, Any, Any, Any]:
        """Convert the song in the suggested key and save it: the file, the instrument, the conversion, the shift."""
        voice = svclib.load_instrument(instrument_path)
        song = svclib.load_song(song_path, voice.features, progress=self.progress)
        shift = svclib.suggest_shift(song.features, voice.statistics, voice.kind)
        sampling = svclib.SamplingOptions(seed=self.options.seed)
        made = svclib.convert(voice, song, shift.applied(), sampling)
        return svclib.save(made, self.base.output), voice, made, shift

    def prepare(self, recordings: list) -> tuple[dataset.Dataset, str, bool]:
        """The dataset of the recordings."""
        folder = self.base.datasets / filesystem.safe_name(recordings[0].singer)
        data = dataset.prepare(recordings, folder, self.preset.features, progress=self.progress)
        text = f"{len(data.recordings)} recordings, {data.duration_s() / 60:.1f} min measured"
        return data, text, preprocess.UNCHANGED in data.messages

    def train(self, data: dataset.Dataset) -> tuple[Path, str, bool]:
        """The folder of the run."""
        o, folder = self.options, self.base.runs / f"{data.path.name}-{self.preset.name}"
        key = {"fingerprint": data.fingerprint, "preset": self.preset.text, "minutes": o.minutes, "seed": o.seed}
        if record := self.finished("training", key):
            return folder, record["text"], True
        started = time.monotonic()

        def report(status):
            share = min((time.monotonic() - started) / (60 * o.minutes), 1.0)
            loss = "" if status.loss is None else f", loss {status.loss:.2f}"
            self.progress(max(share, status.step / status.steps), f"training, step {status.step}{loss}")

        limits = {"minutes": float(o.minutes), "seed": o.seed, "allow_changed_dataset": True}
        result = svclib.train(data, folder, self.preset, report, **limits)
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        held_out = "" if result.validation_loss is None else f", held-out loss {result.validation_loss:.2f}"
        text = f"{result.step} steps{held_out}"
        self.remember("training", key, text, folder)
        return folder, text, False

    def export(self, run_folder: Path, voice: str, synthetic: bool) -> tuple[Path, str, bool]:
        """The instrument file."""
        checkpoints = sorted(c.path.name for c in training.checkpoints(run_folder))
        key = {"run": run_folder.name, "checkpoints": checkpoints}
        if record := self.finished("instrument", key):
            path = self.base.root / record["paths"][0]
        else:
            consent = {"consent": "A synthetic singer of svclib: nobody's voice."} if synthetic else {}
            path = self.base.instruments / f"{filesystem.safe_name(voice)}.zip"
            path = svclib.export_instrument(run_folder, path, **consent)
            self.remember("instrument", key, path.name, path)
        return path, f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", bool(record)

    def convert(
        self, run_folder: Path, instrument_path: Path, song_path: Path, at_once: Path | None
    ) -> tuple[tuple[Path, ...], str, bool]:
        """The page and the converted song."""
        files = {"instrument": instrument_path, "song": song_path}
        key: dict = {name: filesystem.sha256_file(path) for name, path in files.items()}
        key |= {"seed": self.options.seed, "page": PAGE_VERSION}
        if record := self.finished("conversion", key):
            return tuple(self.base.root / p for p in record["paths"]), record["text"], True
        converted, voice, made, shift = self._convert(instrument_path, song_path)
        truth = None
        if song_path.name == SONG_NAME:  # the target singer's own rendition of the song
            octave, melody = singers.SINGERS[OTHER_VOICE].octave + shift.octaves, singers.demo_song()
            notes = (dataclasses.replace(note, midi=note.midi + shift.extra_semitones) for note in melody.notes)
            score = dataclasses.replace(melody, notes=tuple(notes))
            with contextlib.suppress(DatasetError):  # a note that the singer does not reach
                truth = singers.render(VOICE, score, seed=self.options.seed, octave=octave)
        text = self.page(voice, made, run_folder, shift.text, truth, at_once)
        path = atomic_store.commit_bytes(self.base.root / "index.html", text.encode())
        text = f"{converted.name} and {path.name}"
        self.remember("conversion", key, text, path, converted)
        return (path, converted), text, False

    def page(self, voice, made, run_folder: Path, shift: str, truth: Any, at_once: Path | None) -> str:
        """HTML with all sounds and pictures in it, without script or link; ``truth`` is the target's own rendition."""
        from svclib.analysis import plots  # matplotlib takes its time

        song, curves, previews = made.song, training.curves(run_folder), training.previews(run_folder)
        pictures = [("original", song.audio, song.features.settings.sample_rate_hz, song.features)]
        pictures.append(("result", made.audio, made.sample_rate_hz, None))
        if truth is not None:
            own = audio.resample(truth.audio, truth.sample_rate_hz, made.sample_rate_hz)
            truth = dataclasses.replace(truth, audio=own, sample_rate_hz=made.sample_rate_hz)
            pictures.append(("what it should sound like", own, made.sample_rate_hz, None))
        last = [p for p in previews if p.step == previews[-1].step and p.original.is_file()][:2]
        template = html.TEMPLATES.from_string(Path(__file__).with_name("demo.html").read_text(encoding="utf-8"))
        return template.render(
            page=html,
            title=f"{song.name}, converted to {voice.name}",
            voice=voice,
            made=made,
            truth=truth,
            at_once=audio.read(at_once) if at_once else None,
            shift=shift,
            spectrograms=plots.png(plots.compare_spectrograms(pictures, columns=1)),
            figures=ab_compare.track_metrics(made),
            tracks=plots.png(plots.conversion_plots(song.features, made.tracks, made.controls)),
            loss=plots.png(plots.loss_curves(curves)),
            held_out=next(iter(curves["validation_loss"][-1:]), None),
            previews=[{**vars(p), "original": audio.read(p.original), "imitation": audio.read(p.path)} for p in last],
            seconds=[[name, f"{s:.1f}"] for name, s in self.seconds.items()],
            version=svclib.__version__,
        )


def _digest(key: dict) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
