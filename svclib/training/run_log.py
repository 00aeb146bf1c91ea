"""What a training writes down beside its checkpoints: curves, previews to listen to, TensorBoard.

``RUN/metrics.jsonl`` gets one line per step and is only ever appended to. A run that was taken up again from step 500
says so in a line of its own, and reading the log forgets what came after 500 before: curves are sorted by step, without
gaps or doubles, even after a hard kill.
"""

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io.wavfile
import scipy.signal

from svclib.utils import atomic_store, filesystem

FLUSH_S = 10.0


class Log:
    """The append-only log of one run. Lines wait in memory for at most ``FLUSH_S``; flush before every checkpoint.

    Args:
        run: Folder of the run.
        spare: A file on this machine for lines while the run's folder cannot be written; they go first, then.
    """

    def __init__(self, run: Path, spare: Path | None = None):
        self.path, self.spare = run / "metrics.jsonl", spare
        self._waiting: list[dict] = []
        self._flushed = time.monotonic()

    def write(self, record: dict) -> None:
        """Add a line; anything a float cannot say in JSON has to be kept out by the caller."""
        self._waiting.append(record)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Append what waits.

        Raises:
            StorageError: if it cannot be written; the lines keep waiting.
        """
        self._flushed = time.monotonic()
        if self.spare is not None and (parked := atomic_store.read_lines(self.spare)):
            atomic_store.append_lines(self.path, parked)
            atomic_store.remove(self.spare)
        if self._waiting:
            atomic_store.append_lines(self.path, self._waiting)
            self._waiting.clear()

    def park(self) -> None:
        """Write what waits into the spare file, so that it outlives this process."""
        if self.spare is not None and self._waiting:
            atomic_store.append_lines(self.spare, self._waiting)
            self._waiting.clear()


def read(run: str | Path) -> tuple[dict[int, dict], list[dict]]:
    """A run's log as it counts: ({step: {"loss", ..., "validation_loss"}} sorted by step, events in order)."""
    steps: dict[int, dict] = {}
    events = []
    for record in atomic_store.read_lines(Path(run) / "metrics.jsonl"):
        step = record.get("step")
        if "event" in record:
            events.append(record)
            if record["event"] in ("start", "resume") and isinstance(step, int):
                steps = {s: r for s, r in steps.items() if s <= step}
        elif isinstance(step, int):
            steps.setdefault(step, {}).update(record)
    return dict(sorted(steps.items())), events


def curves(run: str | Path) -> dict[str, Any]:
    """A run's curves, sorted by step.

    Args:
        run: The run's folder.

    Returns:
        ``step``, ``loss``, ``steps_per_s``, ``time`` (UTC) and, for each part of the loss, ``parts``
        name -> array; ``validation_step``, ``validation_loss``; ``last`` (loss at the last step),
        ``loss_definition`` (what the values mean: curves with different definitions are not comparable; None if not
        known).

    Raises:
        ValueError: if nothing was logged there.
    """
    steps, _ = read(run)
    trained = [r for r in steps.values() if "loss" in r]
    checked = [r for r in steps.values() if "validation_loss" in r]
    if not trained:
        raise ValueError(f"'{run}' has no metrics.jsonl with losses; is it the folder of a run?")
    identity = Path(run) / "run.json"
    parts = sorted({name for r in trained for name in r.get("parts", {})})
    return {
        "step": np.array([r["step"] for r in trained]),
        "loss": np.array([r["loss"] for r in trained]),
        "steps_per_s": np.array([r.get("steps_per_s", np.nan) for r in trained]),
        "time": [r.get("time") for r in trained],
        "parts": {n: np.array([r.get("parts", {}).get(n, np.nan) for r in trained]) for n in parts},
        "validation_step": np.array([r["step"] for r in checked], dtype=int),
        "validation_loss": np.array([r["validation_loss"] for r in checked]),
        "last": trained[-1]["loss"],
        "loss_definition": atomic_store.read_json(identity).get("loss") if identity.is_file() else None,
    }


# Previews -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preview:
    """One held-out piece at one step: the sound file, its score (loss of this piece) and the original's file."""

    step: int
    number: int
    path: Path
    score: float
    original: Path


def wav_bytes(audio: np.ndarray, sample_rate_hz: int) -> bytes:
    """Mono float audio ``[samples]`` as a 16-bit WAV file; louder than full scale is limited, never wrapped."""
    buffer = io.BytesIO()
    samples = np.round(np.clip(np.asarray(audio, dtype=np.float64), -1.0, 1.0) * 32767.0).astype(np.int16)
    scipy.io.wavfile.write(buffer, sample_rate_hz, samples)
    return buffer.getvalue()


def save_previews(
    run: Path, step: int, originals: list[np.ndarray], made: list[np.ndarray], scores: list[float], rate_hz: int
) -> None:
    """Write the reconstructions of one validation to ``RUN/previews`` and their scores beside them."""
    folder = Path(run) / "previews"
    for number, (original, audio) in enumerate(zip(originals, made, strict=True), start=1):
        if not (folder / f"original-{number}.wav").is_file():
            atomic_store.commit_bytes(folder / f"original-{number}.wav", wav_bytes(original, rate_hz))
        atomic_store.commit_bytes(folder / f"step-{step:06d}-{number}.wav", wav_bytes(audio, rate_hz))
    atomic_store.write_json(
        folder / f"step-{step:06d}.json", {"step": step, "scores": [round(float(s), 6) for s in scores]}
    )


def previews(run: str | Path) -> list[Preview]:
    """The previews of a run, sorted by step and number."""
    folder, found = Path(run) / "previews", []
    for path in sorted(folder.glob("step-*.json")):
        said = atomic_store.read_json(path)
        for number, score in enumerate(said["scores"], start=1):
            audio = folder / f"step-{said['step']:06d}-{number}.wav"
            if audio.is_file():
                found.append(Preview(said["step"], number, audio, score, folder / f"original-{number}.wav"))
    return sorted(found, key=lambda p: (p.step, p.number))


def spectrogram_image(audio: np.ndarray, n_fft: int = 1024) -> np.ndarray:
    """Log-magnitude spectrogram as grey values over 80 dB, uint8 ``[bins, frames]``, low frequencies below."""
    audio = np.asarray(audio, dtype=np.float64)
    audio = np.pad(audio, (0, max(0, n_fft - len(audio))))
    _, _, bins = scipy.signal.stft(audio, nperseg=n_fft, noverlap=n_fft * 3 // 4)
    level_db = 20.0 * np.log10(np.maximum(np.abs(bins), 1e-6))
    return np.round(np.clip((level_db + 100.0) / 80.0, 0.0, 1.0)[::-1] * 255.0).astype(np.uint8)


# TensorBoard ----------------------------------------------------------------------------------------------------------


class Board:
    """TensorBoard events, written on the machine's own disk and copied to ``RUN/tensorboard`` with each checkpoint.

    A session that takes a run up again tells TensorBoard to drop what an interrupted one had shown beyond that step.
    Without the tensorboard package nothing is written, and ``problem`` says so.
    """

    def __init__(self, run: Path, step: int):
        self.target = Path(run) / "tensorboard"
        self.local: filesystem.Scratch | None = None
        self.problem: str | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            self.problem = f"TensorBoard is not there ({error}); the curves are in metrics.jsonl all the same."
            return
        self.local = filesystem.Scratch("svclib-tensorboard-")
        self.writer = SummaryWriter(str(self.local.path), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add numbers: ``{"loss/total": 5.2, ...}``."""
        if self.local:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def preview(self, step: int, number: int, original: np.ndarray, made: np.ndarray, rate_hz: int) -> None:
        """Add a pair of sounds and one picture: the original's spectrogram above the reconstruction's."""
        if not self.local:
            return
        for name, audio in (("original", original), ("reconstruction", made)):
            self.writer.add_audio(f"{name}/{number}", np.clip(audio, -1.0, 1.0)[:, None], step, rate_hz)
        pictures = [spectrogram_image(a) for a in (original, made)]
        image = np.concatenate([pictures[0], np.full((4, pictures[0].shape[1]), 255, np.uint8), pictures[1]])
        self.writer.add_image(f"spectrogram/{number}", image, step, dataformats="HW")

    def copy(self) -> None:
        """Bring the run's copy up to date.

        Raises:
            StorageError: if it cannot be written.
        """
        if self.local:
            self.writer.flush()
            atomic_store.copy_tree(self.local.path, self.target)

    def close(self) -> None:
        """Stop writing and drop the local files; copy first what is to stay."""
        if self.local:
            self.writer.close()
            self.local.close()
            self.local = None
