"""Train a model, and export it as an instrument.

Every random draw is a function of (seed, step). So a checkpoint needs no loader state, and a run that was killed and
resumed on the CPU ends with the same bits as one that never stopped.
"""

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svclib.data import statistics
from svclib.data.dataset import Dataset, local_copy
from svclib.data.recordings import only_held_out
from svclib.features.extract import ConditionInputs
from svclib.models import instrument
from svclib.models.diffusion.samplers import CHUNK_FRAMES
from svclib.training.checkpoints import CheckpointInfo, listing, load_model, now
from svclib.training.checkpoints import counting as counting
from svclib.training.resume import fits as fits
from svclib.training.resume import preset_of_session
from svclib.training.run_lock import RunLock
from svclib.training.run_log import LogReader as LogReader
from svclib.training.run_log import curves as curves
from svclib.training.run_log import previews as previews
from svclib.training.session import RunResult, SessionOptions, Status, StopRequest
from svclib.training.session import TrainingSettings as TrainingSettings
from svclib.training.session import device_summary as device_summary
from svclib.training.session import gpu as gpu
from svclib.training.trainer import Trainer
from svclib.utils import config, filesystem
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import check_statistics, from_dict, to_dict

_ENDED = {"minutes": "Time is up", "interrupted": "Interrupted", "cancelled": "Stopped"}


def train(
    dataset: Any,
    run: str | Path,
    preset: config.Preset,
    on_progress: Callable[[Status], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> RunResult:
    """Train a new run, or resume one from its last checkpoint; its folder ``run`` holds everything that it writes.

    One interrupt (Ctrl-C, the notebook's stop button, SIGTERM) finishes the step, saves and returns, as ``cancelled``
    does; a second one stops at once, and what was saved stays intact. TrainingError if it cannot start or resume,
    another machine trains this run, or the loss is not finite.

    ``dataset`` is a ``Dataset`` (or an object with its ``batch`` and ``validation_batches``), or its folder. Of the
    preset, ``features`` and ``model`` of a run never change, ``training`` may. ``on_progress`` is called about five
    times a second and with every message. ``options`` are fields of :class:`SessionOptions`.
    """
    options = SessionOptions(**options)
    dataset = _opened(dataset)
    preset = preset_of_session(preset, dataset, options.steps, options.seed)
    if preset.model.kind == "diffusion" and (lost := only_held_out(dataset.recordings)):
        raise TrainingError(
            f"All recordings of {', '.join(lost)} in the dataset are held out, so the model would not know this voice. "
            "Prepare it with another validation pattern, or with more recordings."
        )
    run, messages = Path(run), []
    filesystem.refuse_links(run, "checkpoints", "previews", "tensorboard", "metrics.jsonl", "run.json")
    check_statistics(dataset.statistics)
    _require_notes(dataset, preset, options, run)
    from_dict(type(preset.model), to_dict(preset.model), "model")  # it can be exported

    def log_message(text: str) -> None:
        messages.append(text)
        if on_progress:
            on_progress(Status(0, preset.training.steps, message=text))

    with RunLock(run, secrets.token_hex(3), options.take_over, log_message) as lock:
        trainer = Trainer(local_copy(dataset, log_message), run, preset, options, on_progress, lock.session_id)
        trainer.log.messages[:0], trainer.taken_over = messages, lock.taken_over
        conditions = {"elsewhere": lambda: bool(lock.lost or trainer.overtaken)}
        if options.minutes is not None:
            deadline = time.monotonic() + 60.0 * options.minutes  # preparation does not count
            conditions = {"minutes": lambda: time.monotonic() > deadline, **conditions}
        if cancelled is not None:
            conditions["cancelled"] = cancelled
        with trainer, StopRequest(trainer.log.announce, conditions) as stop:
            trainer.fit(stop)
        lost = lock.lost or trainer.overtaken
        return _result(trainer, "elsewhere" if trainer.overtaken else stop.why, lost)


def _opened(dataset: Any) -> Any:
    return Dataset.open(dataset) if isinstance(dataset, (str, Path)) else dataset


def _require_notes(dataset: Any, preset: config.Preset, options: SessionOptions, run: Path) -> None:
    """Refuse to begin an instrument that plays notes with a voice that has none, unless it was allowed."""
    lost = [name for name, found in dataset.statistics["singers"].items() if statistics.lacks_notes(found)]
    if preset.model.kind in ("ddsp", "diffusion") and lost and not options.allow_unpitched and not checkpoints(run):
        raise TrainingError(
            f"No notes were found in the recordings of {', '.join(lost)}: they are whispered, or outside the range of "
            "the pitch tracker, and an instrument made of them cannot sing a melody.",
            hint="Prepare with other recordings, or train anyway: --allow-unpitched, in Python allow_unpitched=True.",
        )


def _result(trainer: Trainer, reason: str, lost: str) -> RunResult:
    step, steps = trainer.step, trainer.settings.steps
    if not reason and step == trainer.first_step:
        message = f"Nothing was trained: '{trainer.run}' is at step {step} already, and {steps} were asked for. "
        message += f"To train on, give a number of steps above {step}."
    elif not reason:
        message = f"Finished: step {step} of {steps} in '{trainer.run}'."
    elif reason == "elsewhere":
        message = f"{lost} Saved at step {trainer.writer.saved_step or 0} of {steps}."
    else:
        message = f"{_ENDED[reason]}: saved at step {step} of {steps}. Run the same again to go on from there."
    if trainer.writer.fallback_reason:
        message += (
            f" But the run's folder cannot be written ({trainer.writer.fallback_reason}): the last checkpoints lie on "
            f"this machine only, in '{trainer.writer.local.parent}'. Run the same again when it can be: they are "
            "copied then."
        )
    trainer.log.announce(message)
    trainer.log.report(force=True)
    losses = (trainer.loss, trainer.validation_loss)
    return RunResult(trainer.run, step, steps, *losses, reason or "finished", message, trainer.log.messages)


def checkpoints(run: str | Path) -> list[CheckpointInfo]:
    """A run's checkpoints, oldest first."""
    return listing(Path(run) / "checkpoints")


def export(
    run: str | Path,
    out: str | Path,
    which: str | int = "best",
    name: str | None = None,
    vocoder: str | Path | None = None,
    overwrite: bool = False,
    dataset: Any = None,
    **info: str | None,
) -> Path:
    """Make an instrument of a run's checkpoint, with the settings and gin text of that checkpoint.

    Args:
        run: The run's folder.
        out: ``.../NAME.zip``, or a folder in which ``NAME.zip`` is made.
        which: ``best``, ``last`` or a step. TrainingError or ModelError if it is missing or cannot be an instrument.
        name: Display name; the file's or the run's name by default.
        vocoder: A ``harmonic`` instrument to embed in a diffusion instrument in place of the one trained with it.
        overwrite: Replace a file of that name; else ``NAME 2.zip`` is made if it is taken.
        dataset: The ``Dataset`` or its folder; adds the retrieval codebook of its content to a diffusion instrument.
        **info: Texts for people: ``licence``, ``consent`` of the person whose voice it is, ``created`` (a date).

    Returns:
        The file.
    """
    model, record = load_model(run, which)
    if vocoder is not None:
        _embed(model, vocoder)
    if dataset is not None and model.settings.kind == "diffusion":
        _add_codebook(model, _opened(dataset))
    out = Path(out)
    if out.suffix != ".zip":
        out = out / f"{filesystem.safe_name(name or Path(run).name)}.zip"
    return instrument.save(
        out,
        model,
        model.features,
        record["statistics"],
        created=info.pop("created", None) or now()[:10],
        name=name,
        trained_steps=record["step"],
        validation_loss=record["metrics"]["validation_loss"],
        singers=record["dataset"]["singers"],
        config_text=record["preset"]["text"],
        f0=record["f0"],
        overwrite=overwrite,
        **info,
    )


def _embed(model: Any, vocoder: str | Path) -> None:
    """Give a diffusion model the vocoder of another instrument trained on the same mel."""
    other = instrument.open(vocoder)
    if other.kind != "harmonic" or model.settings.kind != "diffusion":
        raise TrainingError(
            f"'{other.name}' is of kind '{other.kind}' and the run of kind '{model.settings.kind}'; only a vocoder of "
            "kind 'harmonic' can be embedded, and only in an instrument of kind 'diffusion'. Vocoders of other "
            "kinds stay files of their own: choose them when converting (--vocoder)."
        )
    other.features.mel.require(model.features.mel, f"the vocoder '{other.name}'", "this run")
    model.vocoder = other.model
    model.settings = dataclasses.replace(model.settings, vocoder=other.model.settings)


def _add_codebook(model: Any, dataset: Any) -> None:
    """Build a diffusion model's retrieval codebook from the training recordings of its singers."""
    content = {name: [] for name in model.singers}
    names = ["log_mel", "f0_hz", "voiced", "loudness_db"]
    names += ["content"] * ("content" in model.content.fields)  # the dataset's may be another encoder's
    for index in dataset.indices("train"):
        singer, measured = dataset.recordings[index]["singer"], dataset.features(index)
        if singer in content:
            inputs = ConditionInputs.from_arrays(*(getattr(measured, name) for name in names))
            vectors = model.content.encode(inputs, CHUNK_FRAMES)
            content[singer].append(vectors[0].numpy())
    if missing := [name for name, vectors in content.items() if not vectors]:
        raise TrainingError(f"The dataset has no recording of {', '.join(missing)}; give the one of this run.")
    model.add_codebook([np.concatenate(vectors) for vectors in content.values()])
