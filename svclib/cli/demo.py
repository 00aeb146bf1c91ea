"""``svclib demo``: recordings, dataset, training, instrument, conversion, and a page with sounds and pictures of all.

Without arguments one synthetic singer (``aria``) gives the recordings and the other (``bruno``) the song, so that the
result can be compared with a known truth. Whatever an earlier run finished is used again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.analysis import html as page
from svclib.audio import io as audio
from svclib.conversion import ab_compare, key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.data import dataset, preprocess, singers
from svclib.data.recordings import find_recordings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.training import api as training
from svclib.utils import atomic_store, config, filesystem, workspace

VOICE, OTHER_VOICE = "aria", "bruno"
STATE = "demo.json"
PAGE_VERSION = f"2 ({__version__})"  # another one makes the page anew


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a demo.

    Attributes:
        minutes: Of training.
        seed: Of everything random.
        preset: Names of gin presets, later ones win.
        corpus_minutes: Of the synthetic singer's recordings.
    """

    minutes: float | int = 1.5
    seed: int = 0
    preset: tuple[str, ...] = ("ddsp_small", "demo")
    corpus_minutes: float | int = 2.5


@dataclasses.dataclass(frozen=True)
class Result:
    """The products of a demo.

    Attributes:
        page: The page to open in a browser.
        dataset, run: Folders.
        instrument: The file to share.
        converted: The converted song.
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
    options: Options | None = None,
    progress: Callable[[float, str], None] | None = None,
    log: Callable[[str], None] | None = None,
    on_training: Callable[[training.Status], None] | None = None,
) -> Result:
    """Go from recordings to a converted song and a page about it.

    Args:
        out: Folder for everything; nothing of yours in it is overwritten.
        audio_folder: Recordings of one voice; None: a synthetic singer.
        song: The song to convert, needed with ``audio_folder``; without it the other singer's song.
        options: The defaults if None.
        progress: See ``utils.errors``; called inside the stages that take long.
        log: Called with a line about every stage.
        on_training: Called with the training's status instead of ``progress``.

    Returns:
        The paths of what was made, or found finished, and the seconds of every stage.

    Raises:
        ValueError, OSError: of the stage that failed; finished stages are used next time.
    """
    if audio_folder is not None and song is None:
        raise ValueError(f"The recordings in '{audio_folder}' need a song to convert. Give one.")
    demo = DemoRun(Path(out), options or Options(), progress, log)
    with demo.stage("recordings") as stage:
        recordings, song_path = demo.find_recordings(stage, audio_folder, song)
    with demo.stage("dataset") as stage:
        data = demo.prepare(stage, recordings)
    with demo.stage("training") as stage:
        run_folder = demo.train(stage, data, on_training)
    with demo.stage("instrument") as stage:
        voice = demo.export(stage, run_folder, recordings[0].singer, audio_folder is None)
    with demo.stage("conversion and page") as stage:
        path, converted = demo.convert(stage, run_folder, voice, song_path)
    rows = {"dataset": data.path, "training": run_folder, "instrument": voice, "converted song": converted}
    rows["listen and look"] = path
    head = f"Made in {sum(demo.seconds.values()):.0f} s:" if demo.made_anew else "Everything was there already:"
    lines = [head, *(f"  {name:<16} {where}" for name, where in rows.items()), "Open the last one in a browser."]
    return Result(path, data.path, run_folder, voice, converted, demo.seconds, "\n".join(lines))


@dataclasses.dataclass
class _Stage:
    """One line of the log: whether an earlier result is used, and a description."""

    reused: bool = False
    text: str = ""


class DemoRun:
    """The stages of a demo in one folder, with a record of what earlier runs finished there."""

    def __init__(self, out: Path, options: Options, progress, log):
        self.base, self.options = workspace.base_folder(base=out), options
        self.progress, self.log = progress or (lambda fraction, text="": None), log or (lambda line: None)
        self.preset = config.load(list(options.preset))
        self.seconds: dict[str, float] = {}
        self.made_anew = False
        path = self.base.root / STATE
        self.state = filesystem.read_json(path) if path.is_file() else {}

    @contextmanager
    def stage(self, name: str):
        """Time a stage and log its line."""
        started, stage = time.monotonic(), _Stage()
        self.progress(0.0, name)
        yield stage
        self.seconds[name] = time.monotonic() - started
        again = " (as before)" if stage.reused else ""
        self.made_anew |= not stage.reused
        self.log(f"{len(self.seconds)}. {name}: {stage.text}{again}, {self.seconds[name]:.1f} s")

    def finished(self, name: str, key: dict) -> dict | None:
        """The record of an earlier run under this name, if it has the same key and its files are still there."""
        record = self.state.get(name) or {}
        there = all((self.base.root / p).exists() for p in record.get("paths", []))
        return record if record and there and record.get("key") == _digest(key) else None

    def remember(self, name: str, key: dict, paths: list[Path], **more) -> None:
        """Record what was made, and from what."""
        inside = [p.relative_to(self.base.root).as_posix() for p in paths]
        self.state[name] = {"key": _digest(key), "paths": inside, **more}
        atomic_store.write_json(self.base.root / STATE, self.state)

    def find_recordings(self, stage: _Stage, audio_folder, song) -> tuple[list, Path]:
        """The recordings of one voice, and the song."""
        if audio_folder is not None:
            found = find_recordings([audio_folder])
            voices = sorted({r.singer for r in found})
            stage.text = f"{len(found)} files of {', '.join(voices)}, and {Path(song).name}"
            return found, Path(song)
        folder, o = self.base.audio / VOICE, self.options
        before = set(folder.glob("*.wav"))
        paths = singers.make_recordings(VOICE, folder, o.corpus_minutes, o.seed, progress=self.progress)
        song_path = self.base.examples / f"{OTHER_VOICE}_twinkle.wav"
        if not song_path.is_file():
            made = singers.render(OTHER_VOICE, singers.demo_song(), seed=o.seed)
            audio.write(song_path, made.audio, made.sample_rate_hz)
        stage.reused = set(paths) <= before
        stage.text = f"{len(paths)} melodies of {VOICE}, a song of {OTHER_VOICE}"
        return find_recordings([folder]), song_path

    def prepare(self, stage: _Stage, recordings: list) -> dataset.Dataset:
        """The dataset of the recordings."""
        folder = self.base.datasets / filesystem.safe_name(recordings[0].singer)
        data = dataset.prepare(recordings, folder, self.preset.features, progress=self.progress)
        stage.reused = preprocess.UNCHANGED in data.messages
        stage.text = f"{len(data.recordings)} recordings, {data.duration_s() / 60:.1f} min measured"
        return data

    def train(self, stage: _Stage, data: dataset.Dataset, on_training) -> Path:
        """The folder of the run."""
        o, folder = self.options, self.base.runs / f"{data.path.name}-{self.preset.name}"
        key = {"fingerprint": data.fingerprint, "preset": self.preset.text, "minutes": o.minutes, "seed": o.seed}
        if record := self.finished("training", key):
            stage.reused, stage.text = True, record["text"]
            return folder
        started = time.monotonic()

        def report(status):
            if on_training:
                return on_training(status)
            share = min((time.monotonic() - started) / (60 * o.minutes), 1.0)
            loss = "" if status.loss is None else f", loss {status.loss:.2f}"
            return self.progress(max(share, status.step / status.steps), f"training, step {status.step}{loss}")

        limits = {"minutes": float(o.minutes), "seed": o.seed, "allow_changed_dataset": True}
        result = training.train(data, folder, self.preset, report, **limits)
        if result.reason == "interrupted":
            raise KeyboardInterrupt
        stage.text = f"{result.step} steps"
        if result.validation_loss is not None:
            stage.text += f", held-out loss {result.validation_loss:.2f}"
        self.remember("training", key, [folder], text=stage.text, step=result.step)
        return folder

    def export(self, stage: _Stage, run_folder: Path, voice: str, synthetic: bool) -> Path:
        """The instrument file."""
        checkpoints = sorted(c.path.name for c in training.checkpoints(run_folder))
        key = {"run": run_folder.name, "checkpoints": checkpoints}
        record = self.finished("instrument", key)
        if record:
            path = self.base.root / record["paths"][0]
        else:
            consent = {"consent": "A synthetic singer of svclib: nobody's voice."} if synthetic else {}
            path = self.base.instruments / f"{filesystem.safe_name(voice)}.zip"
            path = training.export(run_folder, path, **consent)
            self.remember("instrument", key, [path])
        stage.reused, stage.text = bool(record), f"{path.name}, {path.stat().st_size / 1e6:.1f} MB"
        return path

    def convert(self, stage: _Stage, run_folder: Path, instrument_path: Path, song_path: Path) -> tuple[Path, Path]:
        """The page and the converted song."""
        key: dict = {
            name: filesystem.sha256_file(p) for name, p in (("instrument", instrument_path), ("song", song_path))
        }
        key |= {"seed": self.options.seed, "page": PAGE_VERSION}
        if record := self.finished("conversion", key):
            stage.reused, stage.text = True, record["text"]
            return tuple(self.base.root / p for p in record["paths"])
        voice = instrument.open(instrument_path)
        song = songs.load_song(song_path, voice.features, progress=self.progress)
        shift = key_suggestion.suggest_shift(song.features, voice.statistics)
        controls, sampling = Controls(octave_shift=shift.octaves), SamplingOptions(seed=self.options.seed)
        made = pipeline.convert(voice, song, controls, sampling)
        converted = pipeline.save(made, self.base.output)
        truth = None
        if song_path.name == f"{OTHER_VOICE}_twinkle.wav":  # the target singer's own rendition of the song
            octave = singers.SINGERS[OTHER_VOICE].octave + shift.octaves
            truth = singers.render(VOICE, singers.demo_song(), seed=self.options.seed, octave=octave)
        text = report_html(voice, made, run_folder, shift.text, self.seconds, truth)
        path = atomic_store.commit_bytes(self.base.root / "index.html", text.encode())
        stage.text = f"{converted.name} and {path.name}"
        self.remember("conversion", key, [path, converted], text=stage.text)
        return path, converted


def _digest(key: dict) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


# The page -------------------------------------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; }
body { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; max-width: 960px; margin: 24px auto;
       padding: 0 16px; line-height: 1.5; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 28px 0 4px; } p { margin: 6px 0; }
</style></head>
<body><h1>{{ title }}</h1>{{ consent|safe }}
<h2>Listen</h2>{{ players|safe }}<p>{{ shift }}</p>
<h2>Look</h2>{{ spectrograms|safe }}
<h2>How close it is to its target</h2>{{ figures|safe }}{{ tracks|safe }}
<h2>How it learned</h2>{{ loss|safe }}<p>{{ learning }}</p>{{ previews|safe }}
<h2>What took how long</h2>{{ seconds|safe }}{{ warnings|safe }}
<p style="opacity:.7">{% for line in settings %}{{ line }}<br>{% endfor %}svclib {{ version }}</p></body></html>
"""


def report_html(
    voice: Any, made: pipeline.Conversion, run_folder: Path, shift_text: str, seconds: dict, truth: Any = None
) -> str:
    """A page about a conversion with all sounds and pictures in it.

    Args:
        voice: The instrument.
        made: The conversion.
        run_folder: Of the training, for its curves and previews.
        shift_text: Reasons for the octave.
        seconds: Time of every stage by its name.
        truth: The target singer's own rendition (``singers.SyntheticRecording``), if there is one.

    Returns:
        HTML without script or link.
    """
    from svclib.analysis import plots  # matplotlib takes its time

    song, rate = made.song, made.sample_rate_hz
    curves, (harmonic, noise) = training.curves(run_folder), made.stems
    players = [
        page.player(song.audio, song.features.settings.sample_rate_hz, "Original", song.path.name),
        page.player(made.audio, rate, "Result", f"{voice.name}, {rate} Hz"),
        page.player(harmonic, rate, "Harmonic part", "the oscillators: vowels, melody"),
        page.player(noise, rate, "Noise part", "breath and consonants"),
    ]
    pictures = [("original", song.audio, song.features.settings.sample_rate_hz, song.features)]
    pictures.append(("result", made.audio, rate, None))
    if truth is not None:
        own = audio.resample(truth.audio, truth.sample_rate_hz, rate)
        players.append(page.player(own, rate, "What it should sound like", f"{truth.singer.name}'s own rendition"))
        pictures.append(("what it should sound like", own, rate, None))
    spectrograms = plots.png(plots.compare_spectrograms(pictures, columns=1))
    tracks = plots.png(plots.conversion_plots(song.features, made.tracks, made.controls))
    held_out = curves["validation_loss"]
    ended = f" It ended at {held_out[-1]:.2f} on recordings that were held out." if len(held_out) else ""
    consent = f"{voice.info['consent']} The result is a synthetic voice: say so where you play it."
    return page.TEMPLATES.from_string(_PAGE).render(
        title=f"{song.name}, converted to {voice.name}",
        consent=page.notice(consent),
        players=page.flow(*players),
        shift=shift_text,
        spectrograms=page.picture(spectrograms, "spectrograms with the fundamental frequency of the original"),
        figures=_figures(ab_compare.track_metrics(made)),
        tracks=page.picture(tracks, "loudness, pitch, confidence and note-on ratio of the song and of the target"),
        loss=page.picture(plots.png(plots.loss_curves(curves)), "loss over training steps"),
        learning=(
            "The loss is the distance between the spectrogram of a recording and of its imitation, summed over coarse "
            f"and fine time scales; 0 would be a perfect copy.{ended} As a rule of thumb for this loss, above 6 there "
            "is room to improve, and well below 5 the model begins to learn its recordings by heart. A demo trains for "
            "a minute; a good instrument takes longer."
        ),
        previews=_previews(run_folder),
        seconds=page.table(["stage", ">seconds"], [[k, f"{v:.1f}"] for k, v in seconds.items()]),
        warnings="".join(page.notice(w, "warning") for w in made.warnings),
        settings=made.settings_text.splitlines(),
        version=__version__,
    )


def _figures(metrics: dict[str, float]) -> str:
    rows = [
        (
            "Right notes",
            f"{100 * metrics['raw_pitch_accuracy']:.1f} %",
            "share of voiced frames whose pitch in the result is within a quarter tone of the target; 95 % is good",
        ),
        (
            "Pitch error",
            f"{metrics['median_absolute']:.1f} cents",
            "median distance; 100 cents are a semitone, below about 5 nobody hears it",
        ),
        ("Voicing", f"{100 * metrics['voicing_f1']:.1f} %", "agreement (F1) on where there is a pitch at all"),
        (
            "Loudness error",
            f"{metrics['loudness_l1_db']:.1f} dB",
            "mean distance between the target loudness and the one that came out; below 3 dB is good",
        ),
    ]
    shown = [[name, "nothing to measure" if value.startswith("nan") else value, text] for name, value, text in rows]
    return page.table(["", ">value", "meaning"], shown)


def _previews(run_folder: Path) -> str:
    """Players of the last two held-out recordings and their imitations."""
    found = training.previews(run_folder)
    last = [p for p in found if p.step == found[-1].step and p.original.is_file()][:2]
    players = []
    for preview in last:
        for path, label, note in (
            (preview.original, "Held-out recording", ""),
            (preview.path, f"Imitation, step {preview.step}", f"loss {preview.score:.2f}"),
        ):
            sound = audio.read(path)
            players.append(page.player(np.asarray(sound.samples), sound.sample_rate_hz, label, note))
    return page.flow(*players)
