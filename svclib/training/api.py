"""Training from the outside: the settings, the loop on one screen, the instrument at the end.

Every random draw is a function of (seed, step): the batch, the noise of the loss, nothing else. So a checkpoint needs
no loader state, and a run that was killed and taken up again on the CPU ends with the same bits as one that never
stopped.
"""

import dataclasses
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svclib.data.dataset import Dataset, nearby
from svclib.data.recordings import only_held_out
from svclib.models import instrument
from svclib.training import device as machine
from svclib.training.checkpoint_format import now
from svclib.training.checkpoints import CheckpointInfo, listing, load_model
from svclib.training.device import PRECISIONS, Status, StopRequest, device_sentence
from svclib.training.resume import fits, pinned
from svclib.training.run_lock import Lease
from svclib.training.run_log import curves, previews
from svclib.training.trainer import Trainer
from svclib.utils import atomic_store, config
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import Settings, setting

__all__ = [
    "Status",
    "TrainingSettings",
    "checkpoints",
    "curves",
    "device_sentence",
    "export",
    "fits",
    "load_model",
    "previews",
    "train",
]


@dataclasses.dataclass(frozen=True)
class TrainingSettings(Settings):
    """How a model is trained.

    Attributes:
        batch_size: Pieces per step, over all GPUs together.
        segment_s: Length of a piece in seconds.
        steps: Total steps of the run, however often it is taken up again.
        learning_rate, learning_rate_decay, decay_steps: Adam's rate is ``rate * decay ** (step / decay_steps)``.
        adam_eps: Adam's epsilon.
        clip_norm: Largest global norm of the gradient.
        ema_decay: Of the running mean of the weights, which is what is exported; early steps use (1 + n) / (10 + n).
        save_every_steps, save_every_minutes: A checkpoint is due when either has passed.
        validate_every_steps: Held-out loss and previews.
        keep_checkpoints: Newest checkpoints kept; at least 2.
        precision: ``auto``: bf16 where the GPU has it, fp16 with loss scaling on older GPUs, fp32 on the CPU.
        seed: Of everything random.
    """

    batch_size: int = setting(16, 1, 4096)
    segment_s: float = setting(4.0, 0.1, 60.0)
    steps: int = setting(40000, 1, 10_000_000)
    learning_rate: float = setting(3e-4, 1e-8, 0.1)
    learning_rate_decay: float = setting(0.98, 0.01, 1.0)
    decay_steps: int = setting(10000, 1, 10_000_000)
    adam_eps: float = setting(1e-7, 1e-12, 1e-2)
    clip_norm: float = setting(3.0, 1e-3, 1e4)
    ema_decay: float = setting(0.999, 0.0, 0.99999)
    save_every_steps: int = setting(500, 1, 1_000_000)
    save_every_minutes: float = setting(5.0, 0.01, 240.0)
    validate_every_steps: int = setting(500, 1, 1_000_000)
    keep_checkpoints: int = setting(3, 2, 100)
    precision: str = setting("auto", choices=PRECISIONS)
    seed: int = setting(0, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a call of :func:`train` ended.

    Attributes:
        run: The run's folder.
        step, steps: Reached, and asked for.
        loss: Of the last step, None if no step was made.
        validation_loss: The newest, None if there was none.
        reason: ``finished``, ``minutes``, ``interrupted``, ``cancelled`` or ``elsewhere`` (another machine took over).
        message: What that means and how to go on.
        told: Everything worth telling on the way, in order.
    """

    run: Path
    step: int
    steps: int
    loss: float | None
    validation_loss: float | None
    reason: str
    message: str
    told: list[str]


def train(
    dataset: Any,
    run: str | Path,
    preset: config.Preset,
    steps: int | None = None,
    minutes: float | int | None = None,
    seed: int | None = None,
    device: str = "auto",
    init: str | Path | None = None,
    from_step: int | None = None,
    on_progress: Callable[[Status], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    allow_changed_dataset: bool = False,
    take_over: bool = False,
) -> RunResult:
    """Train from scratch, or go on from the run's last checkpoint without asking.

    One interrupt (Ctrl-C, the notebook's stop button, SIGTERM) finishes the step, saves and returns; a second one stops
    at once, and what was saved stays whole.

    Args:
        dataset: A ``Dataset`` (or what has its ``batch`` and ``validation_batches``), or its folder.
        run: Folder of this run; everything it writes lies there.
        preset: What to train and how; ``features`` and ``model`` of a run never change, ``training`` may.
        steps: Total steps of the run instead of the preset's.
        minutes: Stop after so many minutes of this session, saved.
        seed: Instead of the preset's.
        device: ``auto``, ``cpu`` or ``cuda``.
        init: An instrument to start a new run from.
        from_step: Go on from this step's checkpoint; what came after it no longer counts.
        on_progress: Called about five times a second and after every event.
        cancelled: Asked before every step; True stops like an interrupt.
        allow_changed_dataset: Go on although the dataset's contents changed since the last session.
        take_over: Train although another machine is training this run; that one saves and stops.

    Returns:
        How far it came and why it ended: at its last step, by an interrupt, or because time was up.

    Raises:
        TrainingError: if it cannot start or go on, another machine trains this run, or the loss is no longer a finite
            number; names the step.
    """
    dataset = dataset if not isinstance(dataset, (str, Path)) else Dataset.open(dataset)
    changes = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, **changes))
    preset = pinned(preset, dataset.settings)
    if preset.model.kind == "diffusion" and (lost := only_held_out(dataset.recordings)):
        raise TrainingError(
            f"All recordings of {', '.join(lost)} in the dataset are held out, so the model would not know this voice. "
            "Prepare it with another validation pattern, or with more recordings."
        )
    run, said = Path(run), []

    def say(text: str) -> None:
        said.append(text)
        if on_progress:
            on_progress(Status(0, preset.training.steps, None, None, None, None, None, None, text))

    with Lease(run, secrets.token_hex(3), take_over, say) as lease:
        dataset = nearby(dataset, say)
        trainer = Trainer(
            dataset, run, preset, device, init, from_step, allow_changed_dataset, on_progress, lease.writer
        )
        trainer.told[:0] = said
        deadline = math.inf if minutes is None else time.monotonic() + 60.0 * minutes  # getting ready does not count
        with trainer, StopRequest(trainer.announce, deadline, cancelled, lambda: bool(lease.lost)) as stop:
            try:
                while trainer.step < preset.training.steps and not machine.agreed(stop.reason(), trainer.accelerator):
                    trainer.train_step()
                    if trainer.step % preset.training.validate_every_steps == 0:
                        trainer.validate()
                    if trainer.save_is_due():
                        trainer.save()
                    trainer.report()
            except OSError as error:
                trainer.rescue(error)
            trainer.finish(validate=not stop.why)
        return _result(trainer, stop.why, lease.lost)


def _result(trainer: Trainer, reason: str, lost: str) -> RunResult:
    step, steps = trainer.step, trainer.settings.steps
    message = {
        "": f"Finished: step {step} of {steps} in '{trainer.run}'.",
        "minutes": f"Time is up: saved at step {step} of {steps}. Run the same again to go on from there.",
        "interrupted": f"Interrupted: saved at step {step} of {steps}. Run the same again to go on from there.",
        "cancelled": f"Stopped: saved at step {step} of {steps}. Run the same again to go on from there.",
        "elsewhere": f"{lost} Saved at step {step} of {steps}.",
    }[reason]
    if trainer.keeper.away:
        message += (
            f" But the run's folder cannot be written ({trainer.keeper.away}): the last checkpoints lie on this "
            f"machine only, in '{trainer.keeper.shelter.parent}'. Run the same again when it can: they are copied then."
        )
    trainer.announce(message)
    trainer.report(force=True)
    return RunResult(
        trainer.run, step, steps, trainer.loss, trainer.validation_loss, reason or "finished", message, trainer.told
    )


def checkpoints(run: str | Path) -> list[CheckpointInfo]:
    """A run's checkpoints, oldest first; see ``checkpoints.CheckpointInfo``."""
    return listing(Path(run) / "checkpoints")


def export(
    run: str | Path,
    out: str | Path,
    which: str | int = "best",
    name: str | None = None,
    licence: str = instrument.LICENCE,
    consent: str = instrument.CONSENT,
    created: str | None = None,
    overwrite: bool = False,
    vocoder: str | Path | None = None,
) -> Path:
    """Make an instrument of a run's checkpoint, with the settings and gin text of that checkpoint.

    Args:
        run: The run's folder.
        out: ``.../NAME.zip``, or a folder in which ``NAME.zip`` is made.
        which: ``best``, ``last`` or a step.
        name: For people; the file's or the run's name where not given.
        licence: What others may do with it, a text for people.
        consent: What the person whose voice it is agreed to, a text for people.
        created: Date for people; today (UTC) where not given.
        overwrite: Replace a file of that name.
        vocoder: A ``harmonic`` instrument to embed in a diffusion instrument in place of the one trained with it.

    Returns:
        The file; ``NAME 2.zip`` where the name was taken and ``overwrite`` is False.

    Raises:
        TrainingError, ModelError: if there is no such checkpoint or it cannot be an instrument.
    """
    model, record = load_model(run, which)
    if vocoder is not None:
        _embed(model, vocoder)
    out = (
        Path(out) if Path(out).suffix == ".zip" else Path(out) / f"{atomic_store.safe_name(name or Path(run).name)}.zip"
    )
    return instrument.save(
        out,
        model,
        model.features,
        record["statistics"],
        created=created or now()[:10],
        name=name,
        trained_steps=record["step"],
        validation_loss=record["metrics"]["validation_loss"],
        singers=record["dataset"]["singers"],
        licence=licence,
        consent=consent,
        config_text=record["preset"]["text"],
        f0=record["f0"],
        overwrite=overwrite,
    )


def _embed(model: Any, vocoder: str | Path) -> None:
    """Give a diffusion model the vocoder of another instrument; both must have been trained on the same mel."""
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
