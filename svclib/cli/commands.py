"""What each command of ``svclib`` does: the calls of the notebooks, with progress and plain sentences.

Results go to standard output; progress, warnings and errors to standard error. Heavy modules are imported where they
are needed, so that ``svclib --help`` stays quick.
"""

import json
import os
import sys
import time
from pathlib import Path

from svclib.utils import filesystem
from svclib.utils.errors import ConfigError

_LINE_EVERY_S = 10.0


def mistake(error: Exception) -> str | None:
    """The sentence for an error that the person can mend, or None for a fault of the program."""
    if isinstance(error, ValueError) and type(error).__module__.startswith("svclib"):
        return str(error)
    if isinstance(error, OSError):
        text = str(error) if type(error).__module__.startswith("svclib") else error.strerror or str(error)
        named = f"'{error.filename}': " if error.filename and str(error.filename) not in text else ""
        return f"{named}{text}".rstrip(".") + "."
    if isinstance(error, MemoryError):
        return "The memory of this machine is not enough; close other programs, or use shorter files."
    return None


class ProgressPrinter:
    """Progress on stderr: a bar with the remaining time on a terminal, else a line about every ten seconds."""

    def __init__(self, title: str):
        self.title, self.bar = title, None
        self.started = self.said = time.monotonic()

    def __enter__(self):
        if sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc} {percentage:3.0f} %|{bar:20}| {elapsed}<{remaining}{postfix}"
            self.bar = tqdm(total=100.0, desc=self.title, bar_format=layout, leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()

    def __call__(self, fraction: float, text: str = "") -> None:
        """Show how far it is (0 to 1) and what is being done; 0 starts the clock anew."""
        if fraction == 0:
            self.started = time.monotonic()
            if self.bar is not None:
                self.bar.reset()
        if self.bar is not None:
            self.bar.n = max(0.0, min(100.0, 100.0 * fraction))
            self.bar.set_postfix_str(text[:60], refresh=False)
            self.bar.refresh()
            return
        now = time.monotonic()
        if now - self.said >= _LINE_EVERY_S:
            self.said, passed = now, now - self.started
            left = f", about {_duration(passed / fraction - passed)} left" if 0.02 < fraction < 1 else ""
            say(f"{self.title}: {100 * fraction:.0f} %{left}. {text}".rstrip())

    def note(self, line: str) -> None:
        """Print a line that stays, on standard output."""
        if self.bar is not None:
            self.bar.clear()
        print(line, flush=True)


class TrainingProgress:
    """One line that follows a training: step, loss, speed, remaining time, last saved; messages get their own lines."""

    def __init__(self, minutes: float | None = None):
        self.deadline = None if minutes is None else time.monotonic() + 60.0 * minutes
        self.said, self.message, self.width, self.live = 0.0, "", 0, sys.stderr.isatty()

    def __call__(self, status, before: str = "") -> None:
        """Show a ``training.Status``, with some words before it."""
        if status.message and status.message != self.message:
            self.message = status.message
            self._line(before + status.message, keep=True)
        now = time.monotonic()
        if now - self.said >= (0.3 if self.live else _LINE_EVERY_S) and status.loss is not None:
            self.said = now
            self._line(before + self.text(status), keep=not self.live)

    def text(self, status) -> str:
        """``step 120/2000, loss 6.310 (held out 6.502), 3.2 steps/s, 10 min left, saved 20 s ago``."""
        held = "" if status.validation_loss is None else f" (held out {status.validation_loss:.3f})"
        parts = [f"step {status.step}/{status.steps}, loss {status.loss:.3f}{held}"]
        if status.steps_per_s:
            parts.append(f"{status.steps_per_s:.2f} steps/s")
        left = status.remaining_s
        if self.deadline is not None:
            until = max(0.0, self.deadline - time.monotonic())
            left = until if left is None else min(left, until)
        if left is not None:
            parts.append(f"{_duration(left)} left")
        age = status.last_saved_age_s
        parts.append("not saved yet" if age is None else f"saved {_duration(age)} ago")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the line."""
        if self.live and self.width:
            self._line("", keep=False)

    def _line(self, text: str, keep: bool) -> None:
        if self.live:
            print(f"\r{text:<{self.width}}", end="\n" if keep else "", file=sys.stderr, flush=True)
            self.width = 0 if keep else len(text)
        else:
            say(text)


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    from svclib.audio import units

    return units.duration_text(seconds)


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
    from svclib.cli import demo as journey

    if bool(a.audio) != bool(a.song):
        raise ConfigError("Give both --audio and --song for a demo on your own recordings, or neither.")
    with ProgressPrinter("demo") as progress:
        result = journey.run(a.out, a.audio, a.song, a.minutes, a.seed, progress=progress, say=progress.note)
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
        say(message)
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
        say(training.device_summary())
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
        say(f"{len(unfinished)} of {len(cells)} cells are not finished; the same command goes on with them.")
    return 130 if unfinished and a.minutes is None else 0


def export(a) -> int:
    """``svclib export``."""
    from svclib.models import instrument
    from svclib.training import api as training

    out = Path(a.out)
    if out.suffix.lower() != ".zip":
        raise ConfigError(f"--out is '{a.out}'; an instrument's name ends in .zip.")
    said = {k: v for k, v in (("licence", a.licence), ("consent", a.consent), ("vocoder", a.vocoder)) if v}
    path = training.export(a.run, out, a.checkpoint, **said)
    warn_renamed(out, path)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)\n{instrument.describe(instrument.open(path))}")
    return 0


def warn_renamed(asked: Path, got: Path) -> None:
    """Say that a result got another name because the one asked for was taken."""
    if asked.name != got.name:
        say(f"'{asked}' exists and is never overwritten; the new one is '{got.name}'.")


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


# Compare --------------------------------------------------------------------------------------------------------------


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


HANDLERS = {f.__name__: f for f in (demo, doctor, prepare, train, sweep, export, info, evaluate)}
