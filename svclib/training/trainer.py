"""The training loop: gradient steps, moving average of the weights, validation, checkpoints."""

import contextlib
import copy
import math
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from svclib.audio import units
from svclib.data.dataset import BatchLoader, ContentCache, Dataset
from svclib.models import instrument
from svclib.training import checkpoint_writer, resume, run_log, session
from svclib.training.checkpoints import Checkpoint, listing, new_record, now, optimizer_tensors
from svclib.training.session import SessionOptions, Status, StopRequest
from svclib.utils import rng
from svclib.utils.errors import TrainingError, first_line

SYNC_STEPS = 10  # steps between host synchronisations on a GPU; on the CPU there is nothing to wait for
VALIDATION_BATCH, MAX_VALIDATION_BATCHES = 8, 8
N_PREVIEWS = 3
MIN_PREVIEW_PEAK = 0.01  # segments below are silence


class Trainer:
    """One session of a run; see :func:`svclib.training.api.train` for its arguments.

    ``session_id`` is hexadecimal and part of the file names of this session's checkpoints.
    """

    def __init__(self, dataset: Any, run: Path, preset: Any, options=None, on_progress=None, session_id: str = ""):
        if problem := resume.fits(dataset, preset):
            raise TrainingError(problem)
        self.options = options = options or SessionOptions()
        self.dataset, self.run, self.settings = dataset, run, preset.training
        self.accelerator = session.make_accelerator(options.device, self.settings.precision)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.n_processes, self.micro_batch = self.accelerator.num_processes, self.settings.batch_size
        if self.n_processes > self.micro_batch:
            raise TrainingError(
                f"There are {self.n_processes} processes for a batch of {self.micro_batch}; every process needs a part "
                "of it. Start fewer, or raise batch_size."
            )
        self.sync_steps = SYNC_STEPS if self.device.type == "cuda" else 1
        with self.accelerator.main_process_first():  # it moves checkpoints that are kept on this machine
            start = resume.find_checkpoint(run, preset, dataset, self.device.type, options)
        self.preset = preset = start.preset
        self.record = new_record(start.run_id, start.generation, preset, dataset, start.lineage)
        self.began, self.overtaken = now(), ""
        self.taken_over: set[str] = set()  # other sessions, which may save once more
        self.step = self.first_step = start.step
        self.validated_step = None
        self.held_out: list[dict] | None = None
        local_log = checkpoint_writer.local_folder(run) / "metrics.jsonl"
        self.log = run_log.SessionLog(run, local_log, self.status, on_progress, self.main, self.is_overtaken)
        session_id = session_id or secrets.token_hex(3)
        self.writer = checkpoint_writer.CheckpointWriter(run, start, session_id, self.settings, self.log.add_message)
        self._build(start, options.init)
        self.rate_hz = preset.features.sample_rate_hz
        self.n_frames = round(self.settings.segment_s * self.rate_hz / preset.features.hop_samples)
        encoder = getattr(self.model, "content", None)
        cached = hasattr(encoder, "variants") and isinstance(dataset, Dataset)
        self.content = ContentCache(dataset, encoder, self.settings.seed) if cached else None
        self.batches = BatchLoader(dataset, self.settings.seed, self.micro_batch, self.n_frames, self.device)
        self.unread: list[tuple[int, list[str], torch.Tensor, torch.Tensor]] = []  # losses still on the device
        if self.main:
            self._begin(start)

    def _build(self, start: resume.ResumePoint, init: str | Path | None) -> None:
        """Model, EMA and optimiser, from the checkpoint, an instrument, or the seed."""
        settings, preset = self.settings, self.preset
        self.model = instrument.build_model(preset.model, preset.features, self.dataset.statistics, settings.seed)
        found = start.checkpoint
        self.record["init"] = None if found is None else found.record.get("init")
        student, other = getattr(preset.model, "prediction", None) == "consistency", None  # to be distilled from other
        if found is None or student:
            other, message = resume.initial_instrument(init, preset)
            start.messages.extend([message] if found is None else [])
        if student:
            resume.require_teacher(other, self.model.singers, self.record["init"])
        if found is None and other is not None:
            resume.init_from(self.model, other.model)
            self.record["init"] = {"name": other.name, "sha256": other.sha256}
        self.model.to(self.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        if student:
            for model in (self.model, self.ema):
                model.distil(other.model.to(self.device), self.ema)
        self.adam = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate, eps=settings.adam_eps)
        self.network, self.optimizer = self.accelerator.prepare(_LossModule(self.model), self.adam)
        self.scaler = self.accelerator.scaler
        pairs = list(zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True))
        self.averaged = [p for p in pairs if p[0].is_floating_point()]
        self.copied = [p for p in pairs if not p[0].is_floating_point()]
        metrics = {"loss": None, "validation_loss": None, "best": None}
        if found is not None:
            try:
                start.messages.extend(resume.restore(found, self.model, self.ema, self.adam, self.scaler))
            except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                why = first_line(error)
                raise TrainingError(
                    f"The checkpoint of step {start.step} in '{self.run}' does not fit this model ({why}).",
                    path=self.run,
                    hint="Go back to another step, or train in another folder.",
                ) from None
            metrics = found.record["metrics"]
        self.loss, self.validation_loss, self.best = metrics["loss"], metrics["validation_loss"], metrics["best"]

    def _begin(self, start: resume.ResumePoint) -> None:
        """Write the run's identity and the first lines of the log."""
        loss = instrument.loss_definition(self.preset.model)
        self.writer.identify({"run_id": start.run_id, "preset": self.preset.name, "loss": loss})
        messages = self.log.begin(self.step, "start" if start.checkpoint is None else "resume")
        if self.n_processes > 1:
            messages.append(f"{self.n_processes} processes train together, each on part of every batch.")
        messages += start.messages
        if start.checkpoint is not None and self.step < self.settings.steps:
            messages.append(f"Going on from step {self.step} of {self.settings.steps}.")
        for message in messages:
            self.log.add_message(message)
        self.writer.attempt(self.log.flush)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.batches.close()
        self.log.close()
        checkpoint_writer.remove_if_empty(self.run)

    # The loop ---------------------------------------------------------------------------------------------------------

    def fit(self, stop: StopRequest) -> None:
        """Train until the last step or a reason to stop, then save; TrainingError if either fails."""
        try:
            while self.step < self.settings.steps and not self._stopped(stop):
                self.train_step()
                if self.step % self.settings.validate_every_steps == 0:
                    self.validate()
                if self.writer.is_due(self.step):
                    self.save()
                self.log.report()
        except OSError as error:  # of the dataset or the disk: save what is trained
            if self.step > (self.writer.saved_step or 0):
                self.save()
            raise TrainingError(
                f"{error} Training stopped after step {self.step}; saved so far: step {self.writer.saved_step or 0}. "
                "Run the same again to resume from there."
            ) from error
        self.finish(validate_last=stop.why in ("", "minutes"))

    def _stopped(self, stop: StopRequest) -> bool:
        if self.n_processes == 1:
            return bool(stop.reason())
        if self.step % self.sync_steps:
            return False
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([stop.reason()])[0])  # the first process's: all end after the same step

    def train_step(self) -> None:
        """One optimiser step; TrainingError if loss or gradient is not finite.

        On a GPU that is noticed at the next synchronisation, and nothing is saved in between.
        """
        step, settings = self.step + 1, self.settings
        batch = self.batches.batch(step, settings.steps)
        batch = self.content.fill(batch, step) if self.content else batch
        for group in self.optimizer.param_groups:
            group["eps"] = settings.adam_eps
            group["lr"] = settings.learning_rate * settings.learning_rate_decay ** (self.step / settings.decay_steps)
        names, losses = self._backward(batch, step)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.unread.append((step, names, losses, norm))
        if step % self.sync_steps == 0:
            self._read_losses()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_ema(step)
        self.step = step
        self.log.count(step)

    def _backward(self, batch: dict, step: int) -> tuple[list[str], torch.Tensor]:
        """Accumulate the gradient of a batch; names and values of the parts of the loss, the total first.

        If the GPU's memory is too small, smaller micro-batches are used from then on.
        """
        seed = rng.seed_of(self.settings.seed, step)
        while True:
            names, values = [], units.double(torch.zeros(()), self.device)
            try:
                for piece, rows, share in session.micro_batches(batch, self.accelerator, self.micro_batch):
                    generator = rng.for_rows(seed, rows, len(batch["audio"]), self.device)
                    loss, parts = self.network(piece, generator)
                    self.accelerator.backward(loss * share)
                    names = ["loss", *parts]
                    values = values + share * units.double(torch.stack([loss, *parts.values()]).detach())
                return names, values
            except torch.OutOfMemoryError:
                if self.micro_batch <= 1 or self.n_processes > 1:
                    raise
                self.micro_batch = (self.micro_batch + 1) // 2
                self.optimizer.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                self.log.add_message(
                    f"The GPU's memory is too small for the batch; it is computed {self.micro_batch} at a time."
                )

    def _update_ema(self, step: int) -> None:
        """Short averages at first; from an instrument the running mean of its weights, counted often, and all steps."""
        known = self.settings.init_average_steps
        warmup = (1 + step) / (10 + step) if self.record["init"] is None else 1 - 1 / (known + step)
        averages, values = zip(*self.averaged, strict=True)
        get_ema_multi_avg_fn(min(self.settings.ema_decay, warmup))(averages, values, None)
        for target, value in self.copied:
            target.copy_(value)

    def _read_losses(self) -> None:
        """Copy the losses of the last steps to the host (one synchronisation), check and log them.

        A collective operation: every process calls it after the same step.
        """
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        losses = torch.stack([losses for _, _, losses, _ in unread])
        if self.n_processes > 1:
            losses = self.accelerator.reduce(losses, "mean")
        norms = torch.stack([norm.to(losses) for *_, norm in unread])
        rows = torch.cat([losses, norms[:, None]], 1).tolist()
        for (step, names, *_), (*values, norm) in zip(unread, rows, strict=True):
            # With loss scaling an infinite gradient only skips a step and lowers the scale.
            if not math.isfinite(values[0]) or (self.scaler is None and not math.isfinite(norm)):
                self._stop_at_nan(step, "loss" if not math.isfinite(values[0]) else "gradient")
            self.loss = values[0]
            self.log.write_step(step, self.loss, dict(zip(names[1:], values[1:], strict=True)))

    def _stop_at_nan(self, step: int, what: str) -> None:
        self.writer.attempt(self.log.flush)
        last = self.writer.saved_step
        saved = f"the checkpoint of step {last} is sound" if last else "nothing was saved yet"
        raise TrainingError(
            f"The {what} of step {step} is not a finite number, so training stopped; {saved}. Resume with a smaller "
            f"learning_rate (now {self.settings.learning_rate:g}), or from an earlier step.",
            code="diverged",
        )

    # Validation -------------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Held-out loss of the EMA weights, previews, and the best checkpoint if it improved."""
        self._read_losses()
        self.validated_step = self.step
        if not self.main or self.is_overtaken() or not (batches := self._held_out()):
            return
        with torch.no_grad():
            losses = [(float(self.ema.validation_loss(b)), len(b["audio"])) for b in batches]
        loss = sum(v * n for v, n in losses) / sum(n for _, n in losses)
        if not math.isfinite(loss):
            return self.log.add_message(f"The held-out loss of step {self.step} is not a finite number.")
        self.validation_loss = loss
        figures = {}
        try:
            figures = self.options.score(self.ema) if self.options.score else {}
        except (ValueError, OSError) as error:
            self.log.add_message(f"The validation songs could not be measured at step {self.step}: {error}")
        self.log.write_validation(self.step, loss, figures)
        self.writer.attempt(lambda: self._previews(batches))
        if self._improved(loss, figures.get("score")):
            self.best = [self.step, loss] if "score" not in figures else [self.step, figures["score"], "score"]
            self.writer.attempt(lambda: self.writer.save_best(self._checkpoint()))

    def _improved(self, loss: float, score: float | None) -> bool:
        """True if this validation is the best: by score if there is one, else by loss."""
        best_by_score = self.best is not None and len(self.best) == 3
        if score is not None:
            return not best_by_score or score > self.best[1]
        if best_by_score:
            return self.options.score is None  # the songs are gone for good, not only at this step
        return self.best is None or loss < self.best[1]

    def _held_out(self) -> list[dict]:
        """A fixed selection of held-out segments, spread over all."""
        if self.held_out is None:
            every = self.dataset.validation_batches(VALIDATION_BATCH, self.n_frames)
            spread = np.linspace(0, len(every) - 1, min(len(every), MAX_VALIDATION_BATCHES)).round().astype(int)
            self.held_out = [{k: v.to(self.device) for k, v in every[i].items()} for i in spread]
            if self.content:
                self.held_out = [self.content.fill(batch) for batch in self.held_out]
            if not self.held_out:
                self.log.add_message("No recording is held out, so there is no validation loss and no best checkpoint.")
        return self.held_out

    @torch.no_grad()
    def _previews(self, batches: list[dict]) -> None:
        """Save the reconstructions of a few segments that are not silent, always the same."""
        rows = [(b, i) for b in batches for i in range(len(b["audio"])) if b["audio"][i].abs().max() > MIN_PREVIEW_PEAK]
        picked = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), N_PREVIEWS)).astype(int))]
        segments = [{k: v[i : i + 1] for k, v in b.items()} for b, i in picked]
        originals = [s["audio"][0].float().cpu().numpy() for s in segments]
        made = [self.ema.reconstruct(s, seed=0)[0].float().cpu().numpy() for s in segments]
        scores = [float(self.ema.validation_loss(s)) for s in segments]
        run_log.save_previews(self.run, self.step, originals, made, scores, self.rate_hz)
        for number, (original, audio) in enumerate(zip(originals, made, strict=True), start=1):
            self.log.tensorboard.preview(self.step, number, original, audio, self.rate_hz)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def save(self) -> bool:
        """Commit a checkpoint. A failure is logged, and training goes on. True if committed."""
        if self.n_processes == 1:  # several read them at the same steps only
            self._read_losses()
        if not self.main or self.is_overtaken():
            return True
        checkpoint, attempt = self._checkpoint(), self.writer.attempt
        if not all(map(session.all_finite, checkpoint.tensors.values())):
            self._stop_at_nan(self.step, "state")
        attempt(self.log.flush)
        if not self.writer.save(checkpoint):
            return False
        self.log.write({"event": "saved", "step": self.step, "time": now()})
        if self.writer.fallback_reason:
            attempt(self.log.flush_locally)
        else:
            attempt(self.log.tensorboard.copy)
            attempt(self.log.flush)
        self.log.report(force=True)
        return True

    def is_overtaken(self) -> bool:
        """True if another session has saved this step or a later one since this one began; nothing is saved then.

        It may do so while this process is suspended and its lock goes stale. ``overtaken`` is the message about it.
        """
        own = (self.record["generation"], self.step)
        found = []
        with contextlib.suppress(OSError):  # a folder that cannot be read shows nobody else
            found = [] if self.overtaken else listing(self.writer.folder)
        for other in found:
            same = (other.kind, other.run_id) == ("last", self.writer.run_id)
            known = (self.writer.session_id, *self.taken_over)
            foreign = same and not any(f"-{session}" in other.path.name for session in known)
            if foreign and other.order >= own and str(other.marked.info.get("saved", "")) > self.began:
                self.overtaken = (
                    f"Another session trained '{self.run}' to step {other.step} meanwhile: this machine was suspended, "
                    f"or its lock was not seen. Training stopped here after step {self.step}."
                )
        return bool(self.overtaken)

    def finish(self, validate_last: bool) -> None:
        """Save the last state unless it is saved, after a validation if asked for; TrainingError if saving fails."""
        self._read_losses()
        if validate_last and self.step > self.first_step and self.validated_step != self.step:
            self.validate()
            if self.main and not self.overtaken:
                self.writer.attempt(self.writer.prune)
        if self.step != (self.writer.saved_step or 0):
            for pause_s in (0.0, 0.5, 2.0):
                time.sleep(pause_s)
                if self.save():
                    break
            else:
                last = self.writer.saved_step or self.writer.first_step
                raise TrainingError(
                    f"Step {self.step} was reached but could not be saved ({self.log.message}). The last checkpoint is "
                    f"of step {last}; make room, then train again: it goes on from there."
                )
        if self.main and self.writer.fallback_reason and self.writer.attempt(self.writer.sync_back):
            self.writer.attempt(self.log.flush)

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

    def status(self) -> Status:
        """Progress of this session."""
        rate = self.log.steps_per_s()
        left_s = max(0, self.settings.steps - self.step) / rate if rate else None
        losses, saved = (self.loss, self.validation_loss), (self.writer.saved_step, self.writer.saved_at)
        return Status(self.step, self.settings.steps, *losses, rate, left_s, *saved, self.log.message)


class _LossModule(nn.Module):
    """A model's loss as a forward pass, so that accelerate can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict, generator: torch.Generator):
        """The loss and its parts."""
        return self.model.loss(batch, generator)
