"""Records of a run for people: metrics and their curves, messages, previews, TensorBoard.

``RUN/metrics.jsonl`` gets one line per step and is only appended to. A session that resumes from step 500 logs that as
an event, and reading drops the steps after 500 logged before it.
"""

import bisect
import collections
import contextlib
import dataclasses
import io
import json
import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile

from svclib.training.checkpoints import now, run_identity
from svclib.utils import atomic_store, filesystem

FLUSH_S = 10.0


class SessionLog:
    """Log, messages (all, and the one shown at present) and progress of one session.

    ``local`` is a file for log lines while the run's folder cannot be written; ``on_progress`` receives a ``Status``,
    at most five times a second, and with every message. Only the first, ``main``, process writes and reports. Where
    another session has written into the log and ``is_overtaken()``, nothing more is written.
    """

    def __init__(self, run: Path, local: Path, status: Callable, on_progress, main: bool, is_overtaken: Callable):
        self.run, self.main, self.path, self.local = run, main, run / "metrics.jsonl", local
        self.status, self.on_progress = status, on_progress if main else None
        self._is_overtaken, self._size = is_overtaken, None
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
        if self._size not in (None, filesystem.size_of(self.path)) and self._is_overtaken():
            return self._waiting.clear()
        if filesystem.is_own_folder(self.local.parent) and (earlier := filesystem.read_lines(self.local)):
            atomic_store.append_lines(self.path, earlier)
            atomic_store.remove(self.local)
        self._append(self.path)
        self._size = filesystem.size_of(self.path)

    def flush_locally(self) -> None:
        """Write the buffered lines to the local file, so that they survive this process."""
        self._append(self.local)

    def _append(self, path: Path) -> None:
        if self._waiting:
            atomic_store.append_lines(path, self._waiting)
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
        """Show a message, and keep it in the result and, without the places of files, in the log."""
        self.messages.append(message)
        self.message, kept = message, filesystem.without_folders(message)
        self.write({"event": "told", "step": self.status().step, "message": kept, "time": now()})
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


# Reading --------------------------------------------------------------------------------------------------------------


class LogReader:
    """Reads the log of a run incrementally: :meth:`update` parses only the lines added since the last call.

    ``events`` (``start``, ``resume``, ``saved``, ...) are in order; ``steps`` and ``validations``, the records of the
    trained steps and validations that count, are sorted by step.
    """

    def __init__(self, run: str | Path):
        self.run, self.path = Path(run), Path(run) / "metrics.jsonl"
        self._clear()
        self.update()

    def _clear(self) -> None:
        self._offset, self.events, self.steps, self.validations = 0, [], [], []

    def update(self) -> "LogReader":
        """Read what was appended; raises StorageError if there is a log and it cannot be read."""
        size = filesystem.size_of(self.path) or 0
        if size < self._offset:  # another file
            self._clear()
        if size == self._offset:
            return self
        with filesystem.translate_os_errors(self.path, "read"), filesystem.active.open(self.path, "rb") as file:
            file.seek(self._offset)
            data = filesystem.active.read(file, size - self._offset)
        end = data.rfind(b"\n") + 1  # an incomplete last line is read later
        self._offset += end
        for line in data[:end].splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # torn by a crash
                record = json.loads(line)
                if isinstance(record, dict):
                    self._add(record)
        return self

    def _add(self, record: dict) -> None:
        """Add a line; one that no session wrote is left out, as a torn one is."""
        step, event = record.get("step"), record.get("event")
        if type(step) is not int or step < 0:
            return
        if isinstance(event, str) and isinstance(record.get("message", ""), str):
            self.events.append(record)
            if event in ("start", "resume"):
                _drop(self.steps, step + 1)
                _drop(self.validations, step + 1)
        elif _are_numbers({"loss": record.get("loss"), "rate": record.get("steps_per_s", 0)}, record.get("parts", {})):
            _drop(self.steps, step)
            _drop(self.validations, step)
            self.steps.append(record)
        elif _are_numbers({"loss": record.get("validation_loss")}, record.get("figures", {})):
            _drop(self.validations, step)
            self.validations.append(record)

    def curves(self, max_points: int | None = None) -> dict[str, Any]:
        """See :func:`curves`. ``max_points`` keeps every n-th step only, at most about so many, and the last one."""
        if not self.steps:
            raise ValueError(f"'{self.run}' has no metrics.jsonl with losses; is it the folder of a run?")
        stride = 1 if max_points is None else -(-len(self.steps) // max_points)
        rows = self.steps[(len(self.steps) - 1) % stride :: stride]
        ends = self.steps[:1] + self.steps[-1:]
        figures = [r.get("figures", {}) for r in self.validations]
        return {
            "step": np.array([r["step"] for r in rows]),
            "loss": np.array([r["loss"] for r in rows]),
            "steps_per_s": np.array([r.get("steps_per_s", np.nan) for r in rows]),
            "time": [r.get("time") for r in rows],
            "parts": _columns([r.get("parts", {}) for r in rows], [r.get("parts", {}) for r in ends]),
            "validation_step": np.array([r["step"] for r in self.validations], dtype=int),
            "validation_loss": np.array([r["validation_loss"] for r in self.validations], dtype=float),
            "figures": _columns(figures, figures),
            "last": self.steps[-1]["loss"],
            "loss_definition": run_identity(self.run).get("loss"),
        }


def curves(run: str | Path) -> dict[str, Any]:
    """A run's curves, sorted by step; ValueError if nothing was logged there.

    They are ``step``, ``loss``, ``steps_per_s``, ``time`` (UTC) and ``parts`` of the loss (name -> array);
    ``validation_step``, ``validation_loss`` and ``figures`` of the validation songs (name -> array); ``last`` (loss at
    the last step), and ``loss_definition`` (only curves with the same one are comparable; None if unknown).
    """
    return LogReader(run).curves()


def _are_numbers(*tables: Any) -> bool:
    """True for dictionaries of numbers."""
    return all(isinstance(t, dict) and all(type(x) in (int, float) for x in t.values()) for t in tables)


def _drop(records: list[dict], step: int) -> None:
    """Remove the records from a step on."""
    del records[bisect.bisect_left(records, step, key=lambda r: r["step"]) :]


def _columns(rows: list[dict], named: list[dict]) -> dict[str, np.ndarray]:
    """Numbers by name as arrays, NaN where a row has none; the names are those of ``named``."""
    return {n: np.array([r.get(n, np.nan) for r in rows]) for n in sorted({n for row in named for n in row})}


# Previews -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preview:
    """One held-out segment at one step: audio file, score (loss of this segment) and the original's file."""

    step: int
    number: int
    path: Path
    score: float
    original: Path


def save_previews(run: Path, step: int, originals: list, made: list, scores: list[float], rate_hz: int) -> None:
    """Write the reconstructions (audio ``[samples]``) of one validation and their scores to ``RUN/previews``."""
    folder = run / "previews"
    for number, (original, audio) in enumerate(zip(originals, made, strict=True), start=1):
        if not (folder / f"original-{number}.wav").is_file():
            atomic_store.commit_bytes(folder / f"original-{number}.wav", wav_bytes(original, rate_hz))
        atomic_store.commit_bytes(folder / f"step-{step:06d}-{number}.wav", wav_bytes(audio, rate_hz))
    rounded = [round(score, 6) for score in scores]
    atomic_store.write_json(folder / f"step-{step:06d}.json", {"step": step, "scores": rounded})


def previews(run: str | Path) -> list[Preview]:
    """The previews of a run, sorted by step and number."""
    folder, found = Path(run) / "previews", []
    for path in folder.glob("step-*.json"):
        if not path.stem[5:].isdecimal():
            continue
        saved, step = filesystem.read_json(path), int(path.stem[5:])
        scores = saved.get("scores") if isinstance(saved, dict) else None
        for number, score in enumerate(scores if isinstance(scores, list) else (), start=1):
            audio = folder / f"step-{step:06d}-{number}.wav"
            if audio.is_file() and type(score) in (int, float):
                found.append(Preview(step, number, audio, float(score), folder / f"original-{number}.wav"))
    return sorted(found, key=lambda p: (p.step, p.number))


def wav_bytes(audio: np.ndarray, sample_rate_hz: int) -> bytes:
    """Mono float audio ``[samples]`` as a 16-bit WAV file, clipped at full scale."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def spectrogram_image(audio: np.ndarray, n_fft: int = 1024) -> np.ndarray:
    """Log-magnitude spectrogram as grey values over 80 dB, uint8 ``[bins, frames]``, low frequencies at the bottom."""
    audio = np.pad(np.asarray(audio, dtype=np.float64), (0, max(0, n_fft - len(audio))))
    bins = scipy.signal.stft(audio, nperseg=n_fft, noverlap=n_fft * 3 // 4)[2]
    level_db = 20.0 * np.log10(np.maximum(np.abs(bins), 1e-6))
    return np.round(np.clip((level_db + 100.0) / 80.0, 0.0, 1.0)[::-1] * 255.0).astype(np.uint8)


class TensorBoardWriter:
    """Writes TensorBoard events to the local disk and copies them to ``RUN/tensorboard`` with each checkpoint.

    Resuming drops later events. Without the tensorboard package nothing is written, and ``problem`` names the cause.
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
        for name, value in values.items() if self.local else ():
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
            host = f".{socket.gethostname()}."  # part of the names that TensorBoard gives
            atomic_store.copy_tree(self.local.path, self.target, lambda name: name.replace(host, ".host."))

    def close(self) -> None:
        """Stop writing and delete the local files."""
        if self.local:
            self.writer.close()
            self.local.close()
            self.local = None
