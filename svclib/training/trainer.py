"""One session of a training run: a step, a look at what was learnt, and keeping it."""

import collections
import copy
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from svclib.models import instrument
from svclib.models.instrument import loss_definition
from svclib.training import device as machine
from svclib.training import local_fallback, resume, run_log
from svclib.training import validate as validation
from svclib.training.checkpoint_format import Checkpoint, new_record, now, optimizer_tensors
from svclib.training.checkpoints import history_due, save
from svclib.training.device import Status
from svclib.utils import rng
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import to_dict

RETRY_S = 30.0


class Trainer:
    """The state of one session of a run: model, running mean, optimiser, log; and the steps that change it."""

    def __init__(
        self,
        dataset: Any,
        run: Path,
        preset: Any,
        device: str = "auto",
        init: str | Path | None = None,
        from_step: int | None = None,
        allow_changed_dataset: bool = False,
        on_progress: Callable[[Status], None] | None = None,
        writer: str | None = None,
    ):
        if problem := resume.fits(dataset.settings, preset):
            raise TrainingError(problem)
        self.dataset, self.run, self.preset, self.settings = dataset, run, preset, preset.training
        self.folder, self.log = run / "checkpoints", run_log.Log(run, local_fallback.log_of(run))
        self.board: run_log.Board | None = None
        self.writer = writer or secrets.token_hex(3)
        self.on_progress, self.told, self.message = on_progress, [], ""
        self.n_frames = round(self.settings.segment_s * preset.features.sample_rate_hz / preset.features.hop_samples)
        self.accelerator = machine.accelerator(device, self.settings.precision)
        self.main = self.accelerator.is_main_process
        if self.accelerator.num_processes > self.settings.batch_size:
            raise TrainingError(
                f"There are {self.accelerator.num_processes} processes for a batch of {self.settings.batch_size}; "
                "every process needs a part of it. Start fewer, or raise batch_size."
            )
        start = resume.find(run, preset, dataset, self.device.type, from_step, allow_changed_dataset)
        self.record = new_record(start.run_id, start.generation, preset, dataset)
        self.keeper = local_fallback.Keeper(run, start.run_id, self.writer, self.settings.keep_checkpoints, self.tell)
        self.model = instrument.build_model(preset.model, preset.features, dataset.statistics, self.settings.seed)
        if init is not None and start.checkpoint is None:
            self._start_from(init)
        self.model.to(self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        rate, eps = self.settings.learning_rate, self.settings.adam_eps
        adam = torch.optim.Adam(self.model.parameters(), lr=rate, eps=eps)
        self.network, self.optimizer = self.accelerator.prepare(machine.LossOf(self.model), adam)
        self.adam, self.scaler = adam, self.accelerator.scaler
        metrics = {"loss": None, "validation_loss": None, "best": None}
        if start.checkpoint is not None:
            start.told.extend(resume.restore(start.checkpoint, self.model, self.ema, adam, self.scaler))
            metrics = start.checkpoint.record["metrics"]
        self.loss, self.validation_loss, self.best = (metrics[k] for k in ("loss", "validation_loss", "best"))
        self.step = self.first_step = start.step
        self.saved_step = None if start.checkpoint is None else start.step
        self.saved_at, self.saved_clock, self.tried_at = None, time.monotonic(), -math.inf
        self.validated_step, self.held_out, self.micro_batch = None, None, self.settings.batch_size
        self.marks, self.reported = collections.deque(maxlen=40), -math.inf
        if self.main:
            self._begin(start)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.board:
            self.board.close()
        local_fallback.tidy(self.run)

    # One step -----------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """Batch, loss, gradient, Adam, running mean.

        Raises:
            TrainingError: if loss or gradient is not a finite number; the weights are those of the step before.
        """
        step, settings = self.step + 1, self.settings
        batch = self.dataset.batch(settings.seed, step, settings.batch_size, self.n_frames, device=self.device)
        for group in self.optimizer.param_groups:
            group["eps"] = settings.adam_eps
            group["lr"] = settings.learning_rate * settings.learning_rate_decay ** (self.step / settings.decay_steps)
        loss, parts = self._gradient(batch, step)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        # With loss scaling an infinite gradient only skips a step and lowers the scale.
        if not math.isfinite(loss) or (self.scaler is None and not bool(torch.isfinite(norm))):
            self._stop_at_nan(step, "loss" if not math.isfinite(loss) else "gradient")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema(min(settings.ema_decay, (1 + step) / (10 + step)))
        self.step, self.loss = step, loss
        self.marks.append((time.monotonic(), step))
        self._record(parts)

    def _gradient(self, batch: dict, step: int) -> tuple[float, dict[str, float]]:
        """Accumulate the batch's gradient; when the GPU's memory is too small, in smaller pieces from then on."""
        seed = rng.seed_of(self.settings.seed, step)
        while True:
            total, parts = 0.0, collections.Counter()
            try:
                for piece, rows, share in machine.pieces(batch, self.accelerator, self.micro_batch):
                    generator = rng.for_rows(seed, rows, len(batch["audio"]), self.device)
                    loss, named = self.network(piece, generator)
                    self.accelerator.backward(loss * share)
                    total += float(loss.detach()) * share
                    parts.update({k: float(v) * share for k, v in named.items()})
                loss, *values = machine.mean_of([total, *parts.values()], self.accelerator)
                return loss, dict(zip(parts, values, strict=True))
            except torch.OutOfMemoryError:
                if self.micro_batch <= 1 or self.accelerator.num_processes > 1:
                    raise
                self.micro_batch = (self.micro_batch + 1) // 2
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                self.tell(f"The GPU's memory is too small for the batch; it is computed {self.micro_batch} at a time.")

    @torch.no_grad()
    def _update_ema(self, decay: float) -> None:
        for mean, value in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1.0 - decay)
            else:
                mean.copy_(value)

    def _stop_at_nan(self, step: int, what: str) -> None:
        self._try(self.log.flush)
        saved = "nothing was saved yet" if not self.saved_step else f"the checkpoint of step {self.saved_step} is sound"
        raise TrainingError(
            f"The {what} of step {step} is not a finite number, so training stopped; {saved}. Go on with a smaller "
            f"learning_rate (now {self.settings.learning_rate:g}), or from an earlier step."
        )

    # Looking at it ------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Held-out loss of the running mean, previews to listen to, and the best checkpoint if it is one."""
        self.validated_step = self.step
        if not self.main or not (batches := self._held_out()):
            return
        mean = validation.loss(self.ema, batches)
        if not math.isfinite(mean):
            return self.tell(f"The held-out loss of step {self.step} is not a finite number.")
        self.validation_loss = mean
        self._log({"step": self.step, "validation_loss": mean})
        self.board.scalars(self.step, {"loss/validation": self.validation_loss})
        self._try(lambda: self._previews(batches))
        if self.best is None or mean < self.best[1]:
            self.best = [self.step, mean]
            self._try(lambda: self.keeper.keep_best(self._checkpoint()))

    def _held_out(self) -> list[dict]:
        if self.held_out is None:
            self.held_out = validation.held_out(self.dataset, self.n_frames, self.device)
            if not self.held_out:
                self.tell("No recording is held out, so there is no validation loss and no best checkpoint.")
        return self.held_out

    def _previews(self, batches: list[dict]) -> None:
        originals, made, scores = validation.previews(self.ema, batches)
        rate_hz = self.preset.features.sample_rate_hz
        run_log.save_previews(self.run, self.step, originals, made, scores, rate_hz)
        for number, (original, audio) in enumerate(zip(originals, made, strict=True), start=1):
            self.board.preview(self.step, number, original, audio, rate_hz)

    def _record(self, parts: dict[str, float]) -> None:
        if not self.main:
            return
        rate = {"steps_per_s": round(r, 4)} if (r := self.steps_per_s()) else {}
        self._log({"step": self.step, "loss": self.loss, "parts": parts, "time": now(), **rate})
        if self.step % 10 == 0:
            self.board.scalars(self.step, {"loss/total": self.loss, **rate})

    def _log(self, record: dict) -> None:
        try:
            self.log.write(record)
        except OSError as error:  # the lines wait; the next flush tries again
            self.announce(str(error))

    def steps_per_s(self) -> float | None:
        """Over the last steps of this session, validations and saves included."""
        if len(self.marks) < 2:
            return None
        (t0, first), (t1, last) = self.marks[0], self.marks[-1]
        return (last - first) / max(t1 - t0, 1e-9)

    def tell(self, message: str) -> None:
        """Say something to whoever watches; it is also kept in the result and in the log."""
        self.told.append(message)
        self.message = message
        self._log({"event": "told", "step": self.step, "message": message, "time": now()})
        self.report(force=True)

    def announce(self, message: str) -> None:
        """Set the message a screen shows; safe to call from a signal handler."""
        self.message = message

    def report(self, force: bool = False) -> None:
        """Call ``on_progress``, at most five times a second unless forced."""
        if self.on_progress and self.main and (force or time.monotonic() - self.reported > 0.2):
            self.reported = time.monotonic()
            self.on_progress(self.status())

    def status(self) -> Status:
        """Where this training stands."""
        rate = self.steps_per_s()
        left = None if not rate else max(0, self.settings.steps - self.step) / rate
        return Status(
            self.step,
            self.settings.steps,
            self.loss,
            self.validation_loss,
            rate,
            left,
            self.saved_step,
            self.saved_at,
            self.message,
        )

    # Keeping it ---------------------------------------------------------------------------------------------------

    def save_is_due(self) -> bool:
        """After so many steps or minutes; a save that failed is tried again after half a minute."""
        if self.saved_step == self.step:
            return False
        if time.monotonic() - self.tried_at < RETRY_S and self.step % self.settings.save_every_steps:
            return False
        every, before = self.settings.save_every_steps, self.saved_step or self.first_step
        waited_s = time.monotonic() - self.saved_clock
        return self.step // every > before // every or waited_s > 60.0 * self.settings.save_every_minutes

    def save(self) -> bool:
        """Commit a checkpoint, then tidy up. What fails is told, and training goes on. True if it was committed."""
        if not self.main:
            return True
        self.tried_at, before = time.monotonic(), self.saved_step or self.first_step
        checkpoint = self._checkpoint()
        if not all(map(machine.is_finite, checkpoint.tensors.values())):
            self._stop_at_nan(self.step, "state")
        self._try(self.log.flush)
        if not self._try(lambda: self.keeper.keep(checkpoint)):
            return False
        self.saved_step, self.saved_at, self.saved_clock = self.step, time.time(), time.monotonic()
        self._log({"event": "saved", "step": self.step, "time": now()})
        self._try(self.keeper.prune)
        if self.keeper.away:
            self._try(self.log.park)
        else:
            if history_due(before, self.step):
                self._try(lambda: save(self.folder, checkpoint, "history", self.writer))
            self._try(lambda: self.keeper.note_saved(self.step))
            self._try(self.board.copy)
            self._try(self.log.flush)
        self.report(force=True)
        return True

    def finish(self, validate: bool) -> None:
        """Save the last state if it is not; with ``validate`` (a step reached as planned) it is validated first.

        Raises TrainingError if saving fails again and again.
        """
        if self.step == (self.saved_step or 0):
            return self._last_try_to_come_home()
        if validate and self.validated_step != self.step:
            self.validate()
        for pause_s in (0.0, 0.5, 2.0):
            time.sleep(pause_s)
            if self.save():
                return self._last_try_to_come_home()
        raise TrainingError(
            f"Step {self.step} was reached but could not be saved ({self.message}). The last checkpoint is of step "
            f"{self.saved_step or self.first_step}; make room, then train again: it goes on from there."
        )

    def _last_try_to_come_home(self) -> None:
        if self.main and self.keeper.away and self._try(self.keeper.come_home):
            self._try(self.log.flush)

    def rescue(self, error: OSError) -> None:
        """The dataset could not be read or the disk failed: save what there is, then say so in a TrainingError."""
        if self.step > (self.saved_step or 0):
            self.save()
        raise TrainingError(
            f"{error} Training stopped after step {self.step}; saved so far: step {self.saved_step or 0}. Run the same "
            "again to go on from there."
        ) from error

    def _try(self, action: Callable[[], Any]) -> bool:
        try:
            action()
            return True
        except OSError as error:
            saved = "nothing yet" if self.saved_step is None else f"step {self.saved_step}"
            self.tell(f"{error} Training goes on and tries again; saved so far: {saved}.")
            return False

    def _checkpoint(self) -> Checkpoint:
        state, groups = optimizer_tensors(self.adam)
        named = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": state}
        record = {
            **self.record,
            "step": self.step,
            "metrics": {"loss": self.loss, "validation_loss": self.validation_loss, "best": self.best},
            "optimizer": groups,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "device": self.device.type,
        }
        return Checkpoint(record, {f"{part}.{k}": v for part, values in named.items() for k, v in values.items()})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    # Beginning ----------------------------------------------------------------------------------------------------

    def _start_from(self, init: str | Path) -> None:
        """Take the first weights from an instrument of the same architecture."""
        start = instrument.open(init)
        for mine, theirs in ((self.preset.model, start.model.settings), (self.preset.features, start.features)):
            if differ := resume.differences(to_dict(theirs), to_dict(mine)):
                raise TrainingError(f"'{start.name}' cannot be a start for this preset: {differ}.")
        resume.take_weights(self.model, start.model)

    def _begin(self, start: resume.Start) -> None:
        """Write what a session begins with, and say where it stands."""
        identity = {"run_id": start.run_id, "preset": self.preset.name, "loss": loss_definition(self.preset.model)}
        self.keeper.identify(identity)
        self.board = run_log.Board(self.run, self.step)
        event = "start" if start.checkpoint is None else "resume"
        self.log.write({"event": event, "step": self.step, "time": now()})
        if self.accelerator.num_processes > 1:
            self.tell(f"{self.accelerator.num_processes} processes train together, each on its part of every batch.")
        for message in start.told:
            self.tell(message)
        if self.board.problem:
            self.tell(self.board.problem)
        if start.checkpoint is not None:
            self.tell(f"Going on from step {self.step} of {self.settings.steps}.")
        self._try(self.log.flush)
