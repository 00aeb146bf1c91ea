"""Log of a run: metrics (``metrics.jsonl``) and their curves, messages, progress, TensorBoard.

``RUN/metrics.jsonl`` gets one line per step and is only appended to. A session that resumes from step 500 logs that as
an event, and reading drops the steps after 500 logged before it: curves are sorted by step, without gaps or duplicates,
even after a crash.
"""

import array
import bisect
import collections
import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svclib.training.checkpoints import now
from svclib.training.validate import spectrogram_image
from svclib.utils import atomic_store, filesystem

FLUSH_S = 10.0


class SessionLog:
    """Log, messages and progress of one session.

    Args:
        run: Folder of the run.
        local: A local file for log lines while the run's folder cannot be written.
        status: Returns the current ``Status``.
        on_progress: Receives a ``Status``, at most five times a second, and with every message.
        main: False in every process but the first, which alone writes and reports.

    Attributes:
        messages, message: All messages, and the one shown at present.
    """

    def __init__(self, run: Path, local: Path, status: Callable, on_progress: Callable | None, main: bool):
        self.run, self.main, self.path, self.local = run, main, run / "metrics.jsonl", local
        self.status, self.on_progress = status, on_progress if main else None
        self.messages, self.message = [], ""
        self.tensorboard: TensorBoardWriter | None = None
        self._waiting, self._flushed = [], time.monotonic()
        self._marks, self._reported = collections.deque(maxlen=40), -math.inf

    def begin(self, step: int, event: str) -> list[str]:
        """Write the first line and open TensorBoard; returns messages."""
        self.tensorboard = TensorBoardWriter(self.run, step)
        self._waiting.append({"event": event, "step": step, "time": now()})
        return [self.tensorboard.problem] if self.tensorboard.problem else []

    def write(self, record: dict) -> None:
        """Add a line to the log; lines are buffered for ``FLUSH_S``, or longer while they cannot be written."""
        if not self.main:
            return
        self._waiting.append(record)
        if time.monotonic() - self._flushed > FLUSH_S:
            try:
                self.flush()
            except OSError as error:
                self.message = str(error)

    def flush(self) -> None:
        """Append the buffered lines; raises StorageError, and keeps them, if they cannot be written."""
        self._flushed = time.monotonic()
        if earlier := filesystem.read_lines(self.local):
            atomic_store.append_lines(self.path, earlier)
            atomic_store.remove(self.local)
        if self._waiting:
            atomic_store.append_lines(self.path, self._waiting)
            self._waiting.clear()

    def flush_locally(self) -> None:
        """Write the buffered lines to the local file, so that they survive this process."""
        if self._waiting:
            atomic_store.append_lines(self.local, self._waiting)
            self._waiting.clear()

    def write_step(self, step: int, loss: float, parts: dict[str, float]) -> None:
        """Log the loss of a step and its parts."""
        if not self.main:
            return
        rate = {"steps_per_s": round(r, 4)} if (r := self.steps_per_s()) else {}
        self.write({"step": step, "loss": loss, "parts": parts, "time": now(), **rate})
        if step % 10 == 0:
            self.tensorboard.scalars(step, {"loss/total": loss, **rate})

    def write_validation(self, step: int, loss: float, figures: dict[str, float]) -> None:
        """Log the held-out loss of a step and the figures of the validation songs."""
        self.write({"step": step, "validation_loss": loss, **({"figures": figures} if figures else {})})
        named = {f"validation/{name}": value for name, value in figures.items()}
        self.tensorboard.scalars(step, {"loss/validation": loss, **named})

    def add_message(self, message: str) -> None:
        """Show a message, and keep it in the result and in the log."""
        self.messages.append(message)
        self.message = message
        self.write({"event": "told", "step": self.status().step, "message": message, "time": now()})
        self.report(force=True)

    def announce(self, message: str) -> None:
        """Show a message only; safe to call from a signal handler."""
        self.message = message

    def report(self, force: bool = False) -> None:
        """Call ``on_progress``, at most five times a second unless forced."""
        if self.on_progress and (force or time.monotonic() - self._reported > 0.2):
            self._reported = time.monotonic()
            self.on_progress(self.status())

    def count(self, step: int) -> None:
        """Note the time of a step, for the rate."""
        self._marks.append((time.monotonic(), step))

    def steps_per_s(self) -> float | None:
        """Over the last steps of this session, validations and saves included."""
        if len(self._marks) < 2:
            return None
        (t0, first), (t1, last) = self._marks[0], self._marks[-1]
        return (last - first) / max(t1 - t0, 1e-9)

    def close(self) -> None:
        """Close TensorBoard."""
        if self.tensorboard:
            self.tensorboard.close()


class LogReader:
    """Reads the log of a run incrementally: :meth:`update` parses only the lines added since the last call.

    Args:
        run: Folder of the run.

    Attributes:
        events: Records of events (``start``, ``resume``, ``saved``, ...) in order.
        step, loss: Sorted, of every trained step that counts.
        validation_step, validation_loss: The same for the held-out loss.
        figures: Of each validation, what ``SessionOptions.score`` returned.
    """

    def __init__(self, run: str | Path):
        self.run, self.path = Path(run), Path(run) / "metrics.jsonl"
        self._reset()
        self.update()

    def _reset(self) -> None:
        self._offset, self.events = 0, []
        self.step, self.loss = array.array("q"), array.array("d")
        self._rate, self._time, self._parts = array.array("d"), [], []
        self.validation_step, self.validation_loss = array.array("q"), array.array("d")
        self.figures: list[dict[str, float]] = []

    def update(self) -> "LogReader":
        """Read what was appended; raises StorageError if there is a log and it cannot be read."""
        size = filesystem.size_of(self.path) or 0
        if size < self._offset:  # another file
            self._reset()
        if size == self._offset:
            return self
        with filesystem.translate_os_errors(self.path, "read"), filesystem.active.open(self.path, "rb") as file:
            file.seek(self._offset)
            data = filesystem.active.read(file, size - self._offset)
        end = data.rfind(b"\n") + 1  # an incomplete last line is read later
        self._offset += end
        for line in data[:end].splitlines():
            with contextlib.suppress(ValueError):  # torn by a crash
                record = json.loads(line)
                if isinstance(record, dict):
                    self._add(record)
        return self

    def _add(self, record: dict) -> None:
        step = record.get("step")
        if "event" in record:
            self.events.append(record)
            if record["event"] in ("start", "resume") and isinstance(step, int):
                self._truncate(step + 1)
        elif isinstance(step, int) and "loss" in record:
            self._truncate(step)
            self.step.append(step)
            self.loss.append(record["loss"])
            self._rate.append(record.get("steps_per_s", np.nan))
            self._time.append(record.get("time"))
            self._parts.append(record.get("parts", {}))
        elif isinstance(step, int) and "validation_loss" in record:
            del self.validation_loss[bisect.bisect_left(self.validation_step, step) :]
            del self.validation_step[len(self.validation_loss) :], self.figures[len(self.validation_loss) :]
            self.figures.append(record.get("figures", {}))
            self.validation_step.append(step)
            self.validation_loss.append(record["validation_loss"])

    def _truncate(self, step: int) -> None:
        """Drop everything from a step on."""
        n = bisect.bisect_left(self.step, step)
        for column in (self.step, self.loss, self._rate, self._time, self._parts):
            del column[n:]
        n = bisect.bisect_left(self.validation_step, step)
        del self.validation_step[n:], self.validation_loss[n:], self.figures[n:]

    def curves(self, max_points: int | None = None) -> dict[str, Any]:
        """Curves sorted by step; see :func:`curves`.

        ``max_points``: keep every n-th step only, so that at most about so many remain; the last one stays.
        """
        if not self.step:
            raise ValueError(f"'{self.run}' has no metrics.jsonl with losses; is it the folder of a run?")
        stride = 1 if max_points is None else -(-len(self.step) // max_points)
        chosen = range((len(self.step) - 1) % stride, len(self.step), stride)
        identity = self.run / "run.json"
        names = sorted({name for parts in self._parts[:1] + self._parts[-1:] for name in parts})
        return {
            "step": np.array([self.step[i] for i in chosen]),
            "loss": np.array([self.loss[i] for i in chosen]),
            "steps_per_s": np.array([self._rate[i] for i in chosen]),
            "time": [self._time[i] for i in chosen],
            "parts": {n: np.array([self._parts[i].get(n, np.nan) for i in chosen]) for n in names},
            "validation_step": np.array(self.validation_step, dtype=int),
            "validation_loss": np.array(self.validation_loss, dtype=float),
            "figures": {
                name: np.array([row.get(name, np.nan) for row in self.figures])
                for name in sorted({name for row in self.figures for name in row})
            },
            "last": self.loss[-1],
            "loss_definition": filesystem.read_json(identity).get("loss") if identity.is_file() else None,
        }


def curves(run: str | Path) -> dict[str, Any]:
    """A run's curves, sorted by step; ValueError if nothing was logged there.

    They are ``step``, ``loss``, ``steps_per_s``, ``time`` (UTC) and, for each part of the loss, ``parts`` name ->
    array; ``validation_step``, ``validation_loss`` and, of the validation songs, ``figures`` name -> array; ``last``
    (loss at the last step), and ``loss_definition`` (curves with different definitions are not comparable; None if
    unknown).
    """
    return LogReader(run).curves()


class TensorBoardWriter:
    """Writes TensorBoard events to the local disk and copies them to ``RUN/tensorboard`` with each checkpoint.

    A session that resumes drops the events an interrupted one wrote beyond that step. Without the tensorboard package
    nothing is written, and ``problem`` names the cause.
    """

    def __init__(self, run: Path, step: int):
        self.target = Path(run) / "tensorboard"
        self.local: filesystem.ScratchDir | None = None
        self.problem: str | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self.problem = f"TensorBoard is not installed ({error}); the curves are in metrics.jsonl all the same."
            return
        self.local = filesystem.ScratchDir("svclib-tensorboard-")
        self.writer = SummaryWriter(str(self.local.path), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add numbers: ``{"loss/total": 5.2, ...}``."""
        if self.local:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def preview(self, step: int, number: int, original: np.ndarray, made: np.ndarray, rate_hz: int) -> None:
        """Add original and reconstruction as audio, and their spectrograms as one image."""
        if not self.local:
            return
        for name, audio in (("original", original), ("reconstruction", made)):
            self.writer.add_audio(f"{name}/{number}", np.clip(audio, -1.0, 1.0)[:, None], step, rate_hz)
        above, below = spectrogram_image(original), spectrogram_image(made)
        image = np.concatenate([above, np.full((4, above.shape[1]), 255, np.uint8), below])
        self.writer.add_image(f"spectrogram/{number}", image, step, dataformats="HW")

    def copy(self) -> None:
        """Update the run's copy; raises StorageError if it cannot be written."""
        if self.local:
            self.writer.flush()
            atomic_store.copy_tree(self.local.path, self.target)

    def close(self) -> None:
        """Stop writing and delete the local files."""
        if self.local:
            self.writer.close()
            self.local.close()
            self.local = None
