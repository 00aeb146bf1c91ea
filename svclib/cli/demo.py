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
from typing import Any, NamedTuple

import svclib
from svclib.analysis import html
from svclib.audio import io as audio
from svclib.conversion import ab_compare
from svclib.data import dataset, preprocess, singers
from svclib.training import api as training
from svclib.training.resume import BASE_PATH
from svclib.utils import atomic_store, filesystem, workspace
from svclib.utils.errors import ConfigError, DatasetError, reporter

VOICE, OTHER_VOICE = "aria", "bruno"
SONG_NAME = f"{OTHER_VOICE}_twinkle.wav"
STATE = "demo.json"
PAGE_VERSION = f"4 ({svclib.__version__})"  # another one makes the page anew
Files = tuple[list[Path], str, bool]  # what a stage made, a description, and whether an earlier run made it


class Result(NamedTuple):
    """Paths of the page to open in a browser and of other products, seconds by stage, and all of it as text."""

    page: Path
    instrument: Path
    converted: Path
    seconds: dict[str, float]
    text: str


@dataclasses.dataclass
class Demo:
    """A demo in the folder ``out``, where nothing of yours is overwritten.

    ``audio_folder`` holds recordings of one voice and needs a ``song``. Where both are None, the synthetic singers give
    them, with ``corpus_minutes`` of recordings. ``minutes`` are those of training; ``log`` gets a line for each stage.
    """

    out: Path
    audio_folder: str | Path | None = None
    song: str | Path | None = None
    minutes: float | int = 1.5
    seed: int = 0
    preset: tuple[str, ...] = ("diffusion_small",)
    corpus_minutes: float | int = 2.5
    progress: Callable[[float, str], None] | None = None
    log: Callable[[str], None] = lambda line: None

    def __post_init__(self):
        if bool(self.audio_folder) != bool(self.song):
            raise ConfigError("Give both --audio and --song for a demo on your own recordings, or neither.")
        self.base, self.settings = workspace.base_folder(base=self.out), svclib.load_preset(list(self.preset))
        self.report, self.made_anew = reporter(self.progress), False
        self.seconds: dict[str, float] = {}

    def run(self) -> Result:
        """Go from recordings to a converted song and a page about it, or find them finished."""
        recordings, song_path = self.stage("recordings", self.find_recordings)
        rows: dict[str, Path] = {}
        if self.settings.model.kind == "diffusion":
            (rows["base model's song"],) = self.stage("the base model's voice", self.convert_at_once, song_path)
        at_once = rows.get("base model's song")
        data = self.stage("dataset", self.prepare, recordings)
        (run_folder,) = self.stage("training", self.train, data)
        (voice,) = self.stage("instrument", self.export, run_folder, recordings[0].singer)
        page, converted = self.stage("conversion and page", self.convert, run_folder, voice, song_path, at_once)
        rows |= {"dataset": data.path, "training": run_folder, "instrument": voice, "converted song": converted}
        rows["listen and look"] = page
        head = f"Made in {sum(self.seconds.values()):.0f} s:" if self.made_anew else "Everything was there already:"
        lines = [head, *(f"  {name:<17} {where}" for name, where in rows.items()), "Open the last one in a browser."]
        return Result(page, voice, converted, self.seconds, "\n".join(lines))

    def stage(self, name: str, work: Callable[..., tuple[Any, str, bool]], *arguments) -> Any:
        """Run a stage (it returns its result, a description, and if an earlier run made it), time it and log a line."""
        started = time.monotonic()
        self.report(0.0, name)
        result, text, reused = work(*arguments)
        self.seconds[name] = time.monotonic() - started
        self.made_anew |= not reused
        self.log(f"{len(self.seconds)}. {name}: {text}{' (as before)' * reused}, {self.seconds[name]:.1f} s")
        return result

    def once(self, name: str, key: dict, make: Callable[[], tuple[str, list[Path]]]) -> Files:
        """Files of an earlier run with the same key, if they are still there; else they are made and recorded."""
        root, digest = self.base.root, hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        state = filesystem.read_json(root / STATE) if (root / STATE).is_file() else {}
        record = state.get(name, {})
        paths = [root / path for path in record.get("paths", [])]
        if record.get("key") == digest and all(path.exists() for path in paths):
            return paths, record["text"], True
        text, paths = make()
        state[name] = {"key": digest, "paths": [path.relative_to(root).as_posix() for path in paths], "text": text}
        atomic_store.write_json(root / STATE, state)
        return paths, text, False

    def find_recordings(self) -> tuple[tuple[list, Path], str, bool]:
        """The recordings of one voice, and the song."""
        if self.audio_folder is not None:
            found, song_path = svclib.find_recordings([self.audio_folder]), Path(self.song)
            voices = ", ".join(sorted({r.singer for r in found}))
            return (found, song_path), f"{len(found)} files of {voices}, and {song_path.name}", False
        folder, song_path = self.base.audio / VOICE, self.base.examples / SONG_NAME
        before = set(folder.glob("*.wav"))
        paths = singers.make_recordings(VOICE, folder, self.corpus_minutes, self.seed, progress=self.report)
        if not song_path.is_file():
            made = singers.render(OTHER_VOICE, singers.demo_song(), seed=self.seed)
            audio.write(song_path, made.audio, made.sample_rate_hz)
        text = f"{len(paths)} melodies of {VOICE}, a song of {OTHER_VOICE}"
        return (svclib.find_recordings([folder]), song_path), text, set(paths) <= before

    def convert_at_once(self, song_path: Path) -> Files:
        """The song in the first voice of the base model, with nothing trained."""

        def make():
            path = self.convert_song(BASE_PATH, song_path)[0]
            return f"{path.name}, nothing trained", [path]

        key = {"base": filesystem.sha256_file(BASE_PATH), "song": filesystem.sha256_file(song_path)}
        return self.once("base", {**key, "seed": self.seed}, make)

    def convert_song(self, instrument_path: Path, song_path: Path) -> tuple[Path, Any, Any, Any]:
        """Convert the song in the suggested key and save it: the file, the instrument, the conversion, the shift."""
        voice = svclib.load_instrument(instrument_path)
        song = svclib.load_song(song_path, voice.features, progress=self.report)
        shift = svclib.suggest_shift(song.features, voice.statistics, voice.kind)
        made = svclib.convert(voice, song, shift.applied(), svclib.SamplingOptions(seed=self.seed))
        return svclib.save(made, self.base.output), voice, made, shift

    def prepare(self, recordings: list) -> tuple[dataset.Dataset, str, bool]:
        """The dataset of the recordings."""
        folder = self.base.datasets / filesystem.safe_name(recordings[0].singer)
        data = dataset.prepare(recordings, folder, self.settings.features, progress=self.report)
        text = f"{len(data.recordings)} recordings, {data.duration_s() / 60:.1f} min measured"
        return data, text, preprocess.UNCHANGED in data.messages

    def train(self, data: dataset.Dataset) -> Files:
        """The folder of the run."""
        folder, started = self.base.runs / f"{data.path.name}-{self.settings.name}", time.monotonic()

        def report(status):
            share = min((time.monotonic() - started) / (60 * self.minutes), 1.0)
            loss = "" if status.loss is None else f", loss {status.loss:.2f}"
            self.report(max(share, status.step / status.steps), f"training, step {status.step}{loss}")

        def make():
            limits = {"minutes": float(self.minutes), "seed": self.seed, "allow_changed_dataset": True}
            result = svclib.train(data, folder, self.settings, report, **limits)
            if result.reason == "interrupted":
                raise KeyboardInterrupt
            held_out = "" if result.validation_loss is None else f", held-out loss {result.validation_loss:.2f}"
            return f"{result.step} steps{held_out}", [folder]

        key = {"fingerprint": data.fingerprint, "preset": self.settings.text}
        return self.once("training", {**key, "minutes": self.minutes, "seed": self.seed}, make)

    def export(self, run_folder: Path, voice: str) -> Files:
        """The instrument file."""

        def make():
            consent = {} if self.audio_folder else {"consent": "A synthetic singer of svclib: nobody's voice."}
            path = self.base.instruments / f"{filesystem.safe_name(voice)}.zip"
            path = svclib.export_instrument(run_folder, path, **consent)
            return f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", [path]

        checkpoints = sorted(c.path.name for c in training.checkpoints(run_folder))
        return self.once("instrument", {"run": run_folder.name, "checkpoints": checkpoints}, make)

    def convert(self, run_folder: Path, instrument_path: Path, song_path: Path, at_once: Path | None) -> Files:
        """The page and the converted song."""

        def make():
            converted, voice, made, shift = self.convert_song(instrument_path, song_path)
            truth = None
            if self.song is None:  # the target singer's own rendition of the song
                octave, melody = singers.SINGERS[OTHER_VOICE].octave + shift.octaves, singers.demo_song()
                notes = (dataclasses.replace(note, midi=note.midi + shift.extra_semitones) for note in melody.notes)
                score = dataclasses.replace(melody, notes=tuple(notes))
                with contextlib.suppress(DatasetError):  # a note that the singer does not reach
                    truth = singers.render(VOICE, score, seed=self.seed, octave=octave)
            text = self.page(voice, made, run_folder, shift.text, truth, at_once)
            path = atomic_store.commit_bytes(self.base.root / "index.html", text.encode())
            return f"{converted.name} and {path.name}", [path, converted]

        files = {"instrument": instrument_path, "song": song_path}
        key: dict = {name: filesystem.sha256_file(path) for name, path in files.items()}
        return self.once("conversion", {**key, "seed": self.seed, "page": PAGE_VERSION}, make)

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
