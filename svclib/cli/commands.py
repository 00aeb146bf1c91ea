"""The commands of ``svclib``: the calls of the notebooks, with progress on the terminal.

Results go to standard output; progress, warnings and errors to standard error. Heavy modules are imported where they
are needed, so that ``svclib --help`` stays quick.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

from svclib.cli.arguments import given
from svclib.cli.terminal import ProgressPrinter, TrainingProgress, log
from svclib.utils.errors import ConfigError


def user_message(error: Exception) -> str | None:
    """The message of an error that the user can correct, or None for a fault of the program."""
    if isinstance(error, ValueError) and type(error).__module__.startswith("svclib"):
        return str(error)
    if isinstance(error, OSError):
        text = str(error) if type(error).__module__.startswith("svclib") else error.strerror or str(error)
        named = f"'{error.filename}': " if error.filename and str(error.filename) not in text else ""
        return f"{named}{text}".rstrip(".") + "."
    if isinstance(error, MemoryError):
        return "The memory of this machine is not enough; close other programs, or use shorter files."
    return None


def _preset(arguments):
    from svclib.utils import config

    return config.load(arguments.config, arguments.set)


def _report(value: dict, where: str | None) -> None:
    """Write a report as JSON where it was asked for."""
    from svclib.utils import atomic_store

    if where == "-":
        print(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True))
    elif where:
        atomic_store.write_json(Path(where), value)
        print(f"Report: {where}")


# Prepare --------------------------------------------------------------------------------------------------------------


def demo(a) -> int:
    """``svclib demo``."""
    from svclib.cli import demo as demo_run

    if bool(a.audio) != bool(a.song):
        raise ConfigError("Give both --audio and --song for a demo on your own recordings, or neither.")
    options = demo_run.Options(seed=a.seed, **({"minutes": a.minutes} if a.minutes else {}))
    with ProgressPrinter("demo") as progress:
        result = demo_run.run(a.out, a.audio, a.song, options, progress, progress.note)
    print(result.text)
    return 0


def doctor(a) -> int:
    """``svclib doctor``."""
    from svclib.data import quality as examiner

    with ProgressPrinter("examining") as progress:
        report = examiner.examine([Path(p) for p in a.audio], progress=progress)
    if a.json != "-":
        print(report.table())
    _report(report.to_json(), a.json)
    return 0


def prepare(a) -> int:
    """``svclib prepare``."""
    from svclib.data import dataset
    from svclib.data.recordings import find_recordings

    preset = _preset(a)
    with ProgressPrinter("preparing") as progress:
        folders = [_fetched(where, Path(a.out), progress) for where in a.audio]
        names = a.singer
        if names is None and any(Path(w) != f for w, f in zip(a.audio, folders, strict=True)):
            names = [f.name for f in folders] if len(folders) > 1 else None
        found = find_recordings(folders, names, a.labels)
        made = dataset.prepare(found, a.out, preset.features, a.validation, progress, executor=a.executor)
    for message in made.messages:
        log(message)
    print(f"{a.out}\n{dataset.describe(made)}")
    return 0


def _fetched(where: str, out: Path, progress) -> Path:
    """A folder of recordings; a zip or a link is unpacked beside the dataset first."""
    from svclib.utils import download

    return Path(download.fetch(where, out.parent / f"{out.name}_sources", progress=progress))


# Train ----------------------------------------------------------------------------------------------------------------


def train(a) -> int:
    """``svclib train``."""
    from svclib.training import api as training

    preset, score = _preset(a), None
    if a.songs:
        from svclib.conversion import validation_songs

        score = validation_songs.for_training(a.dataset, a.songs, a.words or None)
    if os.environ.get("RANK", "0") == "0":
        log(training.device_summary())
    shown = TrainingProgress(a.minutes)
    try:
        result = training.train(
            a.dataset,
            a.run,
            preset,
            shown,
            steps=a.steps,
            minutes=a.minutes,
            seed=a.seed,
            device=a.device,
            init=None if a.init == "none" else a.init,
            from_step=a.from_step,
            take_over=a.take_over,
            score=score,
        )
    finally:
        shown.close()
    if os.environ.get("RANK", "0") != "0":  # one process of several speaks
        return 130 if result.reason == "interrupted" else 0
    loss = "" if result.loss is None else f", loss {result.loss:.3f}"
    held = "" if result.validation_loss is None else f", held-out loss {result.validation_loss:.3f}"
    print(f"{result.run}: step {result.step} of {result.steps}{loss}{held}")
    print(f"Make an instrument of it: svclib export --run '{result.run}' --out NAME.zip")
    return 130 if result.reason == "interrupted" else 0


def sweep(a) -> int:
    """``svclib sweep``."""
    from svclib.training import sweep as sweeping

    grid = sweeping.parse_grid(a.grid)
    shown = TrainingProgress(a.minutes)
    try:
        cells = sweeping.run(
            a.dataset,
            a.runs,
            a.config,
            grid,
            a.set,
            on_progress=lambda name, status: shown(status, f"{name}: "),
            steps=a.steps,
            minutes=a.minutes,
            seed=a.seed,
            device=a.device,
        )
    finally:
        shown.close()
    print(sweeping.table(cells))
    unfinished = [c.name for c in cells if c.step < c.steps and not c.problem]
    if unfinished:
        log(f"{len(unfinished)} of {len(cells)} cells are not finished; the same command goes on with them.")
    return 130 if unfinished and a.minutes is None else 0


def export(a) -> int:
    """``svclib export``."""
    from svclib.models import instrument
    from svclib.training import api as training

    out = Path(a.out)
    if out.suffix.lower() != ".zip":
        raise ConfigError(f"--out is '{a.out}'; an instrument's name ends in .zip.")
    named = {"licence": a.licence, "consent": a.consent, "vocoder": a.vocoder, "dataset": a.dataset}
    more = {k: v for k, v in named.items() if v}
    path = training.export(a.run, out, a.checkpoint, **more)
    warn_renamed(out, path)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n{instrument.describe(instrument.open(path))}")
    return 0


def warn_renamed(asked: Path, got: Path) -> None:
    """Say that a result got another name because the one asked for was taken."""
    if asked.name != got.name:
        log(f"'{asked}' exists and is never overwritten; the new one is '{got.name}'.")


def info(a) -> int:
    """``svclib info``."""
    path = Path(a.path)
    if not path.exists():
        raise ConfigError(f"There is nothing at '{path}'; give an instrument (.zip), a run's or a dataset's folder.")
    about = _about_instrument if path.is_file() else _about_run if (path / "run.json").exists() else _about_dataset
    text, value = about(path)
    if a.json != "-":
        print(text)
    _report(value, a.json)
    return 0


def _about_instrument(path: Path) -> tuple[str, dict]:
    from svclib.models import instrument
    from svclib.utils.serialization import to_dict

    made = instrument.open(path)
    value = {
        "what": "instrument",
        "name": made.name,
        "kind": made.kind,
        "sha256": made.sha256,
        "info": made.info,
        "features": to_dict(made.features),
        "model": to_dict(made.model.settings),
        "statistics": made.statistics,
    }
    return instrument.describe(made), value


def _about_run(path: Path) -> tuple[str, dict]:
    from svclib.training import api as training
    from svclib.utils import filesystem

    found = training.checkpoints(path)
    lines = [f"{path}: a run with {len(found)} checkpoints"]
    for c in found:
        held = "" if c.validation_loss is None else f", held-out loss {c.validation_loss:.4f}"
        lines.append(f"step {c.step} ({c.kind}){held}" + (f": cannot be used, {c.problem}" if c.problem else ""))
    kept = ("step", "kind", "validation_loss", "problem")
    value = {"what": "run", "run": filesystem.read_json(path / "run.json")}
    value["checkpoints"] = [{**{k: getattr(c, k) for k in kept}, "file": c.path.name} for c in found]
    try:
        lines.append(f"last loss {training.curves(path)['last']:.4f}")
    except ValueError:
        lines.append("nothing was logged yet")
    return "\n".join(lines), value


def _about_dataset(path: Path) -> tuple[str, dict]:
    from svclib.data import dataset

    made = dataset.Dataset.open(path)
    value = {
        "what": "dataset",
        "features": made.settings.to_json(),
        "recordings": made.recordings,
        "singers": made.singers,
        "labels": made.labels,
        "statistics": made.statistics,
        "fingerprint": made.fingerprint,
        "skipped": made.skipped,
        "duplicates": made.duplicates,
    }
    return f"{path}: a dataset\n{dataset.describe(made)}", value


# Convert --------------------------------------------------------------------------------------------------------------


def convert(a) -> int:
    """``svclib convert``."""
    from svclib.conversion import batch
    from svclib.conversion.pipeline import FORMATS
    from svclib.models import instrument
    from svclib.models.diffusion.samplers import SamplingOptions
    from svclib.models.vocoders import auto as vocoders

    songs = _audio_files(a.input)
    folder, name = _target(Path(a.out), FORMATS, len(songs))
    singer, sampling = singer_mix(a.singer), SamplingOptions(**given(a, SamplingOptions))
    voice = instrument.open(a.instrument)
    vocoder = vocoders.load_vocoder(a.vocoder, near=Path(a.instrument).parent) if a.vocoder else None
    form = "wav" if name is None else Path(name).suffix[1:]
    output = batch.Output(folder, form, None if name is None else Path(name).stem, a.keep_rate)
    outcomes = []
    with ProgressPrinter(songs[0].name if len(songs) == 1 else f"{len(songs)} songs") as progress:
        for outcome in batch.convert_songs(
            voice,
            songs,
            output,
            lambda song: _controls(a, song, voice, singer),
            a.f0,
            progress,
            sampling=sampling,
            vocoder=vocoder,
        ):
            if outcome.error is not None and len(songs) == 1:
                raise outcome.error
            if progress.bar is not None:
                progress.bar.clear()
            outcomes.append(dataclasses.replace(outcome, conversion=None))
            if outcome.saved is not None:
                if name is not None:
                    warn_renamed(Path(a.out), outcome.saved)
                for warning in outcome.conversion.warnings:
                    log(f"{outcome.path.stem}: {warning}")
                print(f"{outcome.saved}\n{outcome.conversion.settings_text}")
    if any(o.error is not None for o in outcomes):
        raise ConfigError(batch.describe(outcomes))
    return 0


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
    """The values of ``--singer``, each ``NAME`` or ``NAME=WEIGHT``, as ``Controls.singer``.

    Args:
        flags: Each ``--singer`` as it was written; a name without weight counts 1. None or empty: there was none.

    Returns:
        None for the instrument's own choice, one name, or weights by name.

    Raises:
        ConfigError: if a weight is not a number of 0 or more, or a name comes twice.
    """
    if not flags:
        return None
    if len(flags) == 1 and "=" not in flags[0]:
        return flags[0]
    mix = {}
    for text in flags:
        name, weight = text.rsplit("=", 1) if "=" in text else (text, "1")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise ConfigError(f"--singer is '{text}'; give NAME, or NAME=WEIGHT with a weight of 0 or more.")
        if name in mix:
            raise ConfigError(f"--singer names '{name}' twice; give each singer once.")
        mix[name] = value
    return mix


def _controls(a, song, voice, singer):
    from svclib.conversion.controls import Controls, defaults
    from svclib.conversion.key_suggestion import suggest_shift

    chosen = given(a, Controls)
    if chosen.get("semitone_shift") == "auto":
        suggestion = suggest_shift(song.features, voice.statistics, voice.kind)
        log(f"{song.name}: {suggestion.text}")
        chosen["octave_shift"] = chosen.get("octave_shift", 0) + suggestion.octaves
        chosen["semitone_shift"] = suggestion.extra_semitones
    return dataclasses.replace(defaults(voice.kind), **chosen, singer=singer)


def vocode(a) -> int:
    """``svclib vocode``."""
    from svclib.audio import io as audio
    from svclib.conversion.pipeline import FORMATS
    from svclib.conversion.pipeline import vocode as resynthesize
    from svclib.conversion.song import load_song
    from svclib.models.vocoders import auto as vocoders

    out = Path(a.out)
    if out.suffix.lower().lstrip(".") not in FORMATS:
        raise ConfigError(f"--out is '{out}'; results are written as {', '.join(FORMATS)}.")
    with ProgressPrinter(Path(a.input).name) as progress:
        vocoder = vocoders.load_vocoder(a.vocoder, fast=not a.every_step, progress=progress)
        song = load_song(a.input, vocoder.features, a.f0, lambda f, text="": progress(0.5 * f, text))
        samples = resynthesize(vocoder, song, a.seed, lambda f, text="": progress(0.5 + 0.5 * f, text))
    comment = f"{audio.SYNTHETIC_TAG}; vocoder {vocoder.name}, {vocoder.sha256}, seed {a.seed}"
    written = audio.write(out, samples, vocoder.sample_rate_hz, comment)
    warn_renamed(out, written.path)
    print(
        f"{written.path}\n{song.name} resynthesized by the {vocoder.kind} vocoder '{vocoder.name}' "
        f"({vocoder.sample_rate_hz} Hz, seed {a.seed})"
    )
    return 0


# DiffWave -------------------------------------------------------------------------------------------------------------


def generate(a) -> int:
    """``svclib generate``."""
    from svclib.conversion import diffwave_files as files

    options = files.Generation(**given(a, files.Generation), labels=tuple(a.label or (None,)))
    model = files.load_model(a.model)
    with ProgressPrinter("generating") as progress:
        return _print_paths(files.generate(model, a.out, options, progress))


def denoise(a) -> int:
    """``svclib denoise``."""
    from svclib.audio import io as audio
    from svclib.conversion import diffwave_files as files

    inputs = _audio_files(a.input)
    folder, name = _target(Path(a.out), audio.WRITABLE, len(inputs))
    options, model = files.Denoising(**given(a, files.Denoising)), files.load_model(a.model)
    with ProgressPrinter("denoising") as progress:
        made = files.denoise(model, inputs, folder, options, name, progress)
    if name is not None:
        warn_renamed(Path(a.out), made[0])
    return _print_paths(made)


def interpolate(a) -> int:
    """``svclib interpolate``."""
    from svclib.conversion import diffwave_files as files

    if len(a.input) != 2:
        raise ConfigError(f"--input was given {len(a.input)} times; give it twice: the two ends.")
    options, model = files.Interpolation(**given(a, files.Interpolation)), files.load_model(a.model)
    with ProgressPrinter("interpolating") as progress:
        return _print_paths(files.interpolate(model, tuple(a.input), a.out, options, progress))


def _print_paths(paths: list[Path]) -> int:
    for path in paths:
        print(path)
    return 0


# Look inside, compare -------------------------------------------------------------------------------------------------


def trace(a) -> int:
    """``svclib trace``."""
    from svclib.analysis import lesson, player
    from svclib.models import instrument

    out = Path(a.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is '{out}'; a lesson is a page, so give a name that ends in .html.")
    if a.example:
        text, about = lesson.example(), "The lesson that comes with svclib"
    elif a.input is None:
        raise ConfigError("--input is missing: the song that the lesson converts.")
    else:
        voice, steps = instrument.open(a.instrument), a.steps or lesson.STEPS
        with ProgressPrinter(f"{voice.name}: lesson") as progress:
            options = lesson.LessonOptions(a.start, a.seconds, steps, a.seed)
            text, about = lesson.from_file(voice, a.input, options, progress, note=progress.note)
    path = player.export(text, out.with_suffix(".html"))
    warn_renamed(out, path)
    print(f"{path}\n{about} ({len(text.encode()) / 1e6:.1f} MB); open it in any browser, no network is needed")
    return 0


def evaluate(a) -> int:
    """``svclib evaluate``."""
    from svclib.conversion import evaluate as evaluation
    from svclib.conversion import recognition

    recognizer = None if a.words is None else recognition.WhisperRecognizer(a.words or None, a.download)
    with ProgressPrinter("comparing") as progress:
        report = evaluation.compare(a.reference, a.converted, progress, a.target_voice, recognizer, a.language)
    if a.json != "-":
        print(evaluation.table(report))
    _report(report, a.json)
    return 0


_COMMANDS = (demo, doctor, prepare, train, sweep, export, info, convert, vocode)
_COMMANDS += (generate, denoise, interpolate, trace, evaluate)
HANDLERS = {f.__name__: f for f in _COMMANDS}
