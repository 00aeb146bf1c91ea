"""The commands of ``svclib``: the calls of the notebooks, with progress on the terminal.

Results go to standard output; progress, warnings and errors to standard error. A command's docstring is its help. Heavy
modules are imported where they are needed, so that ``svclib --help`` stays quick.
"""

import dataclasses
import json
import math
import os
from functools import partial
from pathlib import Path

import svclib
from svclib.cli.arguments import command, given, number, option
from svclib.cli.terminal import ProgressPrinter, TrainingProgress, log, say
from svclib.utils.errors import ConfigError

required, repeated = partial(option, required=True), partial(option, action="append")
COUNT, POSITIVE = number(0), number(0.001)
JSON = option("--json FILE", "write the report as JSON; - for standard output")
CONFIG = (
    repeated("--config FILE", "preset or file; later ones win", required=True),
    repeated("--set NAME=VALUE", "change a setting; repeat for more", default=[]),
)
LIMITS = (
    option("--steps N", "train until this step", type=COUNT),
    option("--minutes M", "stop after this time, or at the last step", type=POSITIVE),
    option("--seed S", type=int),
    option("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto"),
)
SEED = option("--seed S", type=int, default=0)
F0 = option("--f0 NAME", "swift, crepe, crepe_tiny or pyin (default: the instrument's)")
AUDIO_FILE = "wav, flac or mp3; nothing is ever overwritten"
DIFFWAVE = required("--model NAME.zip", "a DiffWave trained without a mel")


def user_message(error: Exception) -> str | None:
    """The message of an error that the user can correct, or None for a fault of the program."""
    from svclib.utils import filesystem

    ours = isinstance(error, ValueError) and type(error).__module__.startswith("svclib")
    if ours or isinstance(error, OSError):
        return filesystem.error_text(error)
    if isinstance(error, MemoryError):
        return "The memory of this machine is not enough; close other programs, or use shorter files."
    return None


def _report(text: str, value: dict, where: str | None) -> None:
    """Print a report, and write it as JSON where it was asked for."""
    from svclib.utils import atomic_store

    say(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) if where == "-" else text)
    if where and where != "-":
        atomic_store.write_json(Path(where), value)
        say(f"Report: {where}")


def _warn_renamed(asked: Path, got: Path) -> None:
    """Report that a result got another name because the one asked for was taken."""
    if asked.name != got.name:
        why = f"'{asked}' exists and is never overwritten" if asked.exists() else f"'{asked.name}' is no portable name"
        log(f"{why}; the new one is '{got.name}'.")


@command(
    option("--out DIR", "folder for everything (default: %(default)s)", default="svclib_demo"),
    option("--audio DIR", "recordings of one voice, instead of a synthetic singer"),
    option("--song FILE", "the song to convert; with --audio"),
    option("--minutes M", "how long to train (default: %(default)s)", type=POSITIVE, default=1.5),
    SEED,
)
def demo(a) -> None:
    """Everything in one go on two synthetic singers, or on your own files."""
    from svclib.cli import demo as demo_run

    with ProgressPrinter("demo") as progress:
        options = {"minutes": a.minutes, "seed": a.seed, "progress": progress, "log": progress.note}
        say(demo_run.Demo(Path(a.out), a.audio, a.song, **options).run().text)


@command(repeated("--audio DIR", "folder or file; repeat for more", required=True), JSON)
def doctor(a) -> None:
    """Report on recordings; changes nothing."""
    from svclib.data import quality

    with ProgressPrinter("examining") as progress:
        report = quality.examine([Path(p) for p in a.audio], progress=progress)
    _report(report.table(), report.to_json(), a.json)


@command(
    repeated("--audio DIR|ZIP|URL", "repeat for more voices", required=True),
    repeated("--singer NAME", "the singer of each --audio, in the same order"),
    option("--labels PATTERN", "of file names, such as {label}_{singer}_{take}"),
    option("--validation PATTERN", "recordings to hold out, by name, such as 'song_0*'"),
    required("--out DATASET", "the dataset's folder; a second run adds to it"),
    option("--executor dask://HOST:PORT", "measure on a dask cluster (default: this machine)"),
    *CONFIG,
)
def prepare(a) -> None:
    """Measure recordings once and keep them as a dataset."""
    from svclib.data import dataset
    from svclib.utils import download

    preset, out = svclib.load_preset(a.config, a.set), Path(a.out)
    with ProgressPrinter("preparing") as progress:
        unpacked = out.parent / f"{out.name}_sources"  # of a zip or a link
        folders = [Path(download.fetch(where, unpacked, progress=progress)) for where in a.audio]
        names = a.singer
        if names is None and len(folders) > 1 and [Path(where) for where in a.audio] != folders:
            names = [folder.name for folder in folders]
        found = svclib.find_recordings(folders, names, a.labels)
        made = dataset.prepare(found, a.out, preset.features, a.validation, progress, executor=a.executor)
    for message in made.messages:
        log(message)
    say(f"{a.out}\n{dataset.describe(made)}")


@command(
    required("--dataset DATASET"),
    required("--run RUN", "folder of checkpoints and logs"),
    *CONFIG,
    *LIMITS,
    option("--init NAME.zip|base|none", "weights to start from (default: base, if the preset fits it)", default="base"),
    option("--from STEP", "go back to a kept checkpoint", dest="from_step", type=COUNT),
    option("--songs DIR", "songs to convert at every validation; the best step is chosen by them"),
    option("--words", "judge them by their words too (extra 'words')", action="store_true"),
    option("--take-over", "although another machine trains it: that one stops", action="store_true"),
    option("--allow-changed-dataset", "resume although recordings were added or removed", action="store_true"),
    option("--allow-unpitched", "although a singer's recordings have no notes", action="store_true"),
)
def train(a) -> int:
    """Train a model; continues from the last checkpoint where there is one."""
    from svclib.training import api as training

    preset, score = svclib.load_preset(a.config, a.set), None
    speaks = os.environ.get("RANK", "0") == "0"  # one process of several
    if getattr(a, "songs", None):
        from svclib.conversion import evaluate

        score = evaluate.for_training(a.dataset, a.songs, a.words or None)
    if speaks:
        log(training.device_summary())
    names = ("steps", "minutes", "seed", "device", "from_step", "take_over", "allow_changed_dataset", "allow_unpitched")
    options = {name: getattr(a, name) for name in names if hasattr(a, name)}
    options |= {"init": None if a.init == "none" else a.init, "score": score}
    with TrainingProgress(a.minutes) as shown:
        result = training.train(a.dataset, a.run, preset, shown, **options)
    if speaks:
        loss = "" if result.loss is None else f", loss {result.loss:.3f}"
        held = "" if result.validation_loss is None else f", held-out loss {result.validation_loss:.3f}"
        of = f" of {result.steps}" if result.step <= result.steps else ""
        say(f"{result.run}: step {result.step}{of}{loss}{held}")
        say(f"Make an instrument of it: svclib export --run '{result.run}' --out NAME.zip")
    return 130 if result.reason == "interrupted" else 0


@command(
    required("--instrument NAME.zip|base", "the teacher; give the same one to go on"),
    required("--dataset DATASET", "of the teacher's singers"),
    required("--run RUN", "folder of checkpoints and logs"),
    repeated("--config FILE", "the teacher's preset, then distilled (default: those of diffusion_small)"),
    CONFIG[1],
    *LIMITS,
)
def distill(a) -> int:
    """Train a student of a diffusion instrument that samples in one to four steps; goes on where it stopped."""
    a.config, a.init = a.config or ["diffusion_small", "distilled"], a.instrument
    return train(a)


@command(
    required("--dataset DATASET"),
    required("--runs DIR", "folder of one run per cell"),
    *CONFIG,
    repeated("--grid NAME=V1,V2,...", "repeat for more axes", required=True),
    *LIMITS,
)
def sweep(a) -> int:
    """Train one run per cell of a grid of settings; skips finished cells. --minutes counts for all cells together."""
    from svclib.training import sweep as sweeping

    grid = sweeping.parse_grid(a.grid)
    options = {name: getattr(a, name) for name in ("steps", "minutes", "seed", "device")}
    with TrainingProgress(a.minutes) as shown:
        options["on_progress"] = lambda name, status: shown(status, f"{name}: ")
        cells = sweeping.run(a.dataset, a.runs, a.config, grid, a.set, **options)
    say(sweeping.table(cells))
    unfinished = [c.name for c in cells if c.step < c.steps and not c.problem]
    if unfinished:
        log(f"{len(unfinished)} of {len(cells)} cells are not finished; the same command goes on with them.")
    return 130 if unfinished and a.minutes is None else 0


@command(
    required("--run RUN"),
    required("--out NAME.zip"),
    option("--checkpoint best|last|STEP", default="best", type=number(0, words=("best", "last"))),
    option("--licence TEXT", "terms of use; stored in the file"),
    option("--vocoder NAME.zip", "embed this vocoder (preset harmonic) in place of the run's"),
    option("--consent TEXT", "the singer and what they agreed to; stored in the file"),
    option("--dataset DATASET", "of the run: stores what --retrieval of convert draws on"),
)
def export(a) -> None:
    """Make an instrument file of a run."""
    from svclib.models import instrument

    out = Path(a.out)
    if out.suffix.lower() != ".zip":
        raise ConfigError(f"--out is '{a.out}'; an instrument's name ends in .zip.")
    more = {name: value for name in ("licence", "consent", "vocoder", "dataset") if (value := getattr(a, name))}
    path = svclib.export_instrument(a.run, out, a.checkpoint, **more)
    _warn_renamed(out, path)
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n{instrument.describe(instrument.open(path))}")


@command(option("path NAME.zip | RUN | DATASET"), JSON)
def info(a) -> None:
    """Describe an instrument, a run or a dataset."""
    path = Path(a.path)
    if not path.exists():
        raise ConfigError(f"There is nothing at '{path}'; give an instrument (.zip), a run's or a dataset's folder.")
    about = _about_instrument if path.is_file() else _about_run if (path / "run.json").exists() else _about_dataset
    _report(*about(path), a.json)


def _about_instrument(path: Path) -> tuple[str, dict]:
    from svclib.models import instrument
    from svclib.utils.serialization import to_dict

    made = instrument.open(path)
    value = {name: getattr(made, name) for name in ("name", "kind", "sha256", "info", "statistics")}
    value |= {"what": "instrument", "features": to_dict(made.features), "model": to_dict(made.model.settings)}
    return instrument.describe(made), value


def _about_run(path: Path) -> tuple[str, dict]:
    from svclib.training import api as training
    from svclib.utils import filesystem

    lines, rows = [], []
    for c in training.checkpoints(path):
        held = "" if c.validation_loss is None else f", held-out loss {c.validation_loss:.4f}"
        lines.append(f"step {c.step} ({c.kind}){held}" + (f": cannot be used, {c.problem}" if c.problem else ""))
        kept = {name: getattr(c, name) for name in ("step", "kind", "validation_loss", "problem")}
        rows.append({**kept, "file": c.path.name})
    try:
        last = f"last loss {training.curves(path)['last']:.4f}"
    except ValueError:
        last = "nothing was logged yet"
    text = "\n".join([f"{path}: a run with {len(rows)} checkpoints", *lines, last])
    return text, {"what": "run", "run": filesystem.read_json(path / "run.json"), "checkpoints": rows}


def _about_dataset(path: Path) -> tuple[str, dict]:
    from svclib.data import dataset

    made = dataset.Dataset.open(path)
    names = ("recordings", "singers", "labels", "statistics", "fingerprint", "skipped", "duplicates")
    value = {"what": "dataset", "features": made.settings.to_json(), **{name: getattr(made, name) for name in names}}
    return f"{path}: a dataset\n{dataset.describe(made)}", value


@command(
    repeated("--instrument NAME.zip[=SHARE]", "repeat to blend several of the same base", required=True),
    repeated("--input SONG", "repeat for more songs", required=True),
    required("--out FILE|DIR", AUDIO_FILE),
    F0,
    option("--keep-rate", "write at the song's sample rate", action="store_true"),
    repeated("--singer NAME[=WEIGHT]", "one of a diffusion instrument's singers; repeat for a mix"),
    option("--vocoder NAME|ZIP|PATH|URL", "a vocoder of the same mel, instead of a diffusion instrument's own"),
    option("--f0-edit FILE", "edits of the song's F0, as the pitch lane of notebook 03 keeps them (SONG.f0.json)"),
    option("--mix", "the inputs are finished songs: convert the voice, keep the accompaniment", action="store_true"),
    option("--separator NAME|DIR", "the Demucs model of --mix", default="htdemucs"),
    option("--download", "fetch the weights of --separator where they are missing", action="store_true"),
    option("--accompaniment FILE", "of the song, whose voice is --input: mix the result with it"),
    option("--voice-db DB", "level of the voice in the mix", default=0.0, type=number(-60.0, 60.0)),
    controls={"controls": "conversion.controls:Controls", "diffusion": "models.diffusion.samplers:SamplingOptions"},
)
def convert(a) -> None:
    """Convert songs with an instrument."""
    from svclib.conversion import cover, f0_edit, pipeline
    from svclib.models import instrument

    songs = _audio_files(a.input)
    if a.f0_edit and len(songs) > 1:
        raise ConfigError(f"--f0-edit is of one song, but there are {len(songs)}; convert that song alone.")
    edit = f0_edit.read(Path(a.f0_edit)) if a.f0_edit else None
    folder, name = _target(Path(a.out), pipeline.FORMATS, len(songs))
    singer, sampling = singer_mix(a.singer), svclib.SamplingOptions(**given(a, svclib.SamplingOptions))
    shares = weights(a.instrument, "--instrument")
    voices = [(svclib.load_instrument(path), share) for path, share in shares.items()]
    voice = voices[0][0] if len(voices) == 1 else instrument.blend(voices)
    vocoder = svclib.load_vocoder(a.vocoder, near=voice.path.parent) if a.vocoder else None
    kind = {} if name is None else {"format": Path(name).suffix[1:], "name": Path(name).stem}
    options = {"sampling": sampling, "vocoder": vocoder, "keep_rate": a.keep_rate}
    with ProgressPrinter(songs[0].name if len(songs) == 1 else f"{len(songs)} songs") as progress:
        accompaniments = _accompaniments(a, songs, folder, progress)
        songs = list(accompaniments) or songs

        def done(made):
            saved = pipeline.save(made, folder, **kind)
            if rest := accompaniments.get(made.song.path):
                stems = cover.open_stems(made.song.path, rest)
                mixed, warnings = cover.save_mix(made, stems, folder, saved.suffix[1:], a.voice_db)
                progress.note(str(mixed))
                for warning in warnings:
                    log(f"{mixed.name}: {warning}")
            progress.note(f"{saved}\n{made.settings_text}")  # clears the bar for the lines that follow
            if name is not None:
                _warn_renamed(Path(a.out), saved)
            for warning in made.warnings:
                log(f"{made.song.name}: {warning}")

        controls = partial(_controls, a, voice, {"singer": singer, "f0_edit": edit})
        failed = pipeline.convert_songs(voice, songs, done, controls, a.f0, progress, **options)
    if failed:
        error = next(iter(failed.values()))
        raise error if len(songs) == 1 else ConfigError(pipeline.describe(len(songs), failed))


def _accompaniments(a, songs: list[Path], folder: Path, progress) -> dict[Path, Path]:
    """By voice to convert, the accompaniment to mix it with; of ``--mix`` both are separated and kept in ``folder``."""
    from svclib.conversion import cover

    if a.accompaniment and (a.mix or len(songs) > 1):
        raise ConfigError("--accompaniment is of one --input, and not with --mix, which makes both of a finished song.")
    if a.accompaniment:
        return {songs[0]: Path(a.accompaniment)}
    found, separator = {}, cover.DemucsSeparator(a.separator, a.download) if a.mix else None
    for song in songs if a.mix else []:
        stems = cover.separate(song, separator, progress)
        voice, rest = cover.save_stems(stems, folder, song.stem)
        found[voice] = rest
        progress.note(f"{voice}\n{rest}")
        if warning := cover.harmony_warning(voice):
            log(f"{song.stem}: {warning}")
    return found


@command(
    required("--instrument NAME.zip"),
    required("--input SONG"),
    required("--out FILE", AUDIO_FILE),
    option("--block MS", "length of a block", default=64.0, type=number(1.0, 2000.0)),
    option("--lookahead MS", "sound after a frame that is waited for", default=64.0, type=number(20.0, 1000.0)),
    option("--octave N", "octaves up or down", default=0, type=number(-3, 3)),
    option("--semitones N", "semitones besides", default=0.0, type=number(-12.0, 12.0)),
    option("--seed S", "of the noise", default=0, type=number(0)),
)
def live(a) -> None:
    """Convert a recording block by block, as from a microphone, and measure latency and time (ddsp instruments)."""
    from svclib.audio import io
    from svclib.conversion import live, pipeline

    voice = svclib.load_instrument(a.instrument)
    controls = svclib.Controls(octave_shift=a.octave, semitone_shift=a.semitones)
    following = live.LiveVoice(voice, controls, a.lookahead / 1000, a.seed)
    samples = io.read(a.input, following.rate).samples
    with ProgressPrinter(Path(a.input).name) as progress:
        made, report = live.stream(following, samples, round(a.block / 1000 * following.rate), progress)
    gain = pipeline.limiter_gain(made)
    settings = {"live": dataclasses.asdict(report), "instrument": {"name": voice.name, "sha256": voice.sha256}}
    written = pipeline.write_with_settings(Path(a.out), made * gain, following.rate, settings)
    _warn_renamed(Path(a.out), written)
    say(f"{written}\n{report.text}")


def _audio_files(inputs: list[str]) -> list[Path]:
    """The given files, and those of the given folders."""
    from svclib.conversion.song import find_songs

    return [path for where in inputs for path in (find_songs(where) if Path(where).is_dir() else [Path(where)])]


def _target(out: Path, formats, n_inputs: int) -> tuple[Path, str | None]:
    """``--out`` as a folder and the name of the only file in it, None where files are named after their inputs."""
    as_file = out.suffix.lower().lstrip(".") in [x.lstrip(".") for x in formats] and not out.is_dir()
    if as_file and n_inputs > 1:
        raise ConfigError(f"--out is the file '{out}', but there are {n_inputs} inputs; give a folder.")
    if out.suffix and not as_file and not out.is_dir():
        raise ConfigError(f"--out is '{out}'; results are written as {', '.join(formats)}, or into a folder.")
    return (out.parent, out.name) if as_file else (out, None)


def singer_mix(flags: list[str] | None) -> dict[str, float] | str | None:
    """``--singer`` as ``Controls.singer``: None, one name, or weights by name."""
    return flags[0] if flags and len(flags) == 1 and "=" not in flags[0] else weights(flags or [], "--singer") or None


def weights(texts: list[str], flag: str) -> dict[str, float]:
    """The values ``NAME`` or ``NAME=WEIGHT`` of a repeated flag as weights by name, 1 where none is given."""
    mix: dict[str, float] = {}
    for text in texts:
        name, weight = text.rsplit("=", 1) if "=" in text and not Path(text).exists() else (text, "1")
        try:
            mix_weight = float(weight)
        except ValueError:
            mix_weight = math.nan
        if not name or name in mix or not 0 <= mix_weight < math.inf:
            raise ConfigError(f"{flag} is '{text}'; give each one once: NAME, or NAME=WEIGHT of 0 or more.")
        mix[name] = mix_weight
    return mix


def _controls(a, voice, others, song):
    from svclib.conversion.controls import defaults

    chosen = given(a, svclib.Controls)
    if chosen.get("semitone_shift") == "auto":
        suggestion = svclib.suggest_shift(song.features, voice.statistics, voice.kind)
        log(f"{song.name}: {suggestion.text}")
        chosen["octave_shift"] = chosen.get("octave_shift", 0) + suggestion.octaves
        chosen["semitone_shift"] = suggestion.extra_semitones
    return dataclasses.replace(defaults(voice.kind), **chosen, **others)


@command(
    required("--vocoder NAME.zip", "or an NSF-HiFiGAN checkpoint, or a link"),
    required("--input SONG"),
    required("--out FILE", AUDIO_FILE),
    SEED,
    F0,
    option("--every-step", "diffwave: every trained step, not its fast schedule", action="store_true"),
)
def vocode(a) -> None:
    """Analysis and resynthesis of a song by a vocoder, from its mel and F0."""
    from svclib.audio import io as audio
    from svclib.conversion.pipeline import FORMATS

    out = Path(a.out)
    if out.suffix.lower().lstrip(".") not in FORMATS:
        raise ConfigError(f"--out is '{out}'; results are written as {', '.join(FORMATS)}.")
    with ProgressPrinter(Path(a.input).name) as progress:
        vocoder = svclib.load_vocoder(a.vocoder, fast=not a.every_step, progress=progress)
        song = svclib.load_song(a.input, vocoder.features, a.f0, lambda f, text="": progress(0.5 * f, text))
        samples = svclib.vocode(vocoder, song, a.seed, lambda f, text="": progress(0.5 + 0.5 * f, text))
    comment = f"{audio.SYNTHETIC_TAG}; vocoder {vocoder.name}, {vocoder.sha256}, seed {a.seed}"
    path = audio.write(out, samples, vocoder.sample_rate_hz, comment)
    _warn_renamed(out, path)
    about = f"the {vocoder.kind} vocoder '{vocoder.name}' ({vocoder.sample_rate_hz} Hz, seed {a.seed})"
    say(f"{path}\n{song.name} resynthesized by {about}")


def _make_sounds(a, *inputs, **more) -> list[Path]:
    """Call the function of ``diffwave_files`` that has the command's name, and print the files; ``more`` options."""
    from svclib.conversion import diffwave_files as files

    options = files.OPTIONS[a.command](**given(a, files.OPTIONS[a.command]), **more)
    model = files.load_model(a.model)
    with ProgressPrinter(a.command) as progress:
        made = getattr(files, a.command)(model, *inputs, options=options, progress=progress)
    say("\n".join(map(str, made)))
    return made


@command(
    DIFFWAVE,
    required("--out DIR", "folder of LABEL_NUMBER_seedSEED.wav; what is already there is not made twice"),
    repeated("--label L", "repeat for more"),
    controls={"sounds": "conversion.diffwave_files:Generation"},
)
def generate(a) -> None:
    """Generate sounds with a DiffWave, by label where it was trained with labels."""
    _make_sounds(a, a.out, labels=tuple(a.label or (None,)))


@command(
    DIFFWAVE,
    required("--out FILE|DIR", "a file, or a folder for several"),
    repeated("--input FILE|DIR", "repeat for more", required=True),
    controls={"denoising": "conversion.diffwave_files:Denoising"},
)
def denoise(a) -> None:
    """Take noise out of recordings with a DiffWave that was trained on clean ones."""
    from svclib.audio.io import WRITABLE

    inputs = _audio_files(a.input)
    folder, name = _target(Path(a.out), WRITABLE, len(inputs))
    made = _make_sounds(a, inputs, folder, name)
    if name is not None:
        _warn_renamed(Path(a.out), made[0])


@command(
    DIFFWAVE,
    required("--out DIR", "folder of 'A to B 1 of N.wav'"),
    repeated("--input FILE", "twice: the two ends", required=True),
    controls={"mixing": "conversion.diffwave_files:Interpolation"},
)
def interpolate(a) -> None:
    """Sounds between two recordings, by a DiffWave."""
    if len(a.input) != 2:
        raise ConfigError(f"--input was given {len(a.input)} times; give it twice: the two ends.")
    _make_sounds(a, tuple(a.input), a.out)


@command(
    option("--instrument NAME.zip"),
    option("--example", "write the lesson that comes with svclib, instead of one of --instrument", action="store_true"),
    option("--input SONG", "the song to convert"),
    required("--out LESSON.html", "nothing is ever overwritten"),
    option("--start S", "start of the excerpt, seconds", type=float, default=0.0),
    option("--seconds S", "its length (default: %(default)s)", type=POSITIVE, default=5.0),
    option("--steps N", "steps of the main run (default: 50)", type=COUNT),
    option("--words", "character error rate of eight steps, by Whisper (extra 'words')", action="store_true"),
    option("--student NAME.zip", "made of --instrument by distill; adds the page about one step"),
    SEED,
)
def trace(a) -> None:
    """Make a lesson of a diffusion or DiffWave instrument: one page, from noise to song."""
    from svclib.analysis import lesson, player

    out = Path(a.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is '{out}'; a lesson is a page, so give a name that ends in .html.")
    if bool(a.example) == bool(a.instrument):
        raise ConfigError("Give either --instrument or --example.")
    if a.example:
        text, about = lesson.example(), "The lesson that comes with svclib"
    elif a.input is None:
        raise ConfigError("--input is missing: the song that the lesson converts.")
    else:
        voice = svclib.load_instrument(a.instrument)
        options = lesson.LessonOptions(a.start, a.seconds, a.steps or lesson.STEPS, a.seed, words=a.words)
        if a.student:
            options = dataclasses.replace(options, student=svclib.load_instrument(a.student))
        with ProgressPrinter(f"{voice.name}: lesson") as progress:
            text, about = lesson.from_file(voice, a.input, options, progress, note=progress.note)
    path = player.export(text, out.with_suffix(".html"))
    _warn_renamed(out, path)
    say(f"{path}\n{about} ({len(text.encode()) / 1e6:.1f} MB); open it in any browser, no network is needed")


@command(
    required("--reference FILE|DIR"),
    required("--converted FILE|DIR", "files of a folder are matched by name"),
    option("--target-voice DIR", "recordings of the target voice: adds speaker similarity"),
    option("--words MODEL", "character error rate by Whisper: folder, name, or what is here", nargs="?", const=""),
    option("--download", "fetch the recognizer from the Hugging Face hub if missing", action="store_true"),
    option("--language CODE", "of the words, for example en; detected otherwise"),
    JSON,
)
def evaluate(a) -> None:
    """Compare converted songs with their references: pitch, loudness, spectrum, words."""
    from svclib.conversion import evaluate as evaluation

    recognizer = None if a.words is None else evaluation.WhisperRecognizer(a.words or None, a.download)
    with ProgressPrinter("comparing") as progress:
        report = evaluation.compare(a.reference, a.converted, progress, a.target_voice, recognizer, a.language)
    _report(evaluation.table(report), report, a.json)
