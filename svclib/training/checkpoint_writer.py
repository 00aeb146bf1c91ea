"""Saves the checkpoints of a session: schedule, retries, and a local folder while the run's folder cannot be written.

A mounted Drive can be disconnected or full for hours: checkpoints and log lines go to a local folder and are copied to
the run's folder as soon as it is writable again, by this session or the next one.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svclib.training import checkpoints
from svclib.training.checkpoints import Checkpoint
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import TrainingError

RETRY_S = 30.0


def local_folder(run: str | Path) -> Path:
    """The local folder that stands in for a run's folder, by whatever link that is named; in this user's own folder."""
    key = hashlib.sha256(os.path.realpath(run).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return filesystem.state_folder("kept") / key


def newest(run: str | Path, run_id: str, step: int | None = None) -> Checkpoint | None:
    """The newest usable local checkpoint of this run, or None."""
    if not filesystem.is_own_folder(local_folder(run)):
        return None
    try:
        return checkpoints.newest(local_folder(run) / "checkpoints", run_id, step)[0]
    except TrainingError:
        return None


def sync_back(run: str | Path, run_id: str) -> list[str]:
    """Move the local checkpoints of a run into its folder, verifying each copy before the original is deleted.

    Returns the moved file names, oldest first; StorageError, with every local file intact, if it cannot be written.
    """
    if not filesystem.is_own_folder(local_folder(run)) or os.environ.get("RANK", "0") != "0":
        return []  # of several processes the first moves them for all
    moved = []
    for info in checkpoints.listing(local_folder(run) / "checkpoints"):
        if info.run_id != run_id or atomic_store.verify(info.marked):
            continue
        target = Path(run) / "checkpoints" / info.path.name
        if not filesystem.exists(atomic_store.marker_path(target)):
            data = filesystem.read_bytes(info.path)
            marker = {k: v for k, v in info.marked.info.items() if k not in ("bytes", "sha256")}
            atomic_store.put_marked(target, lambda part, data=data: atomic_store.write_bytes(part, [data]), marker)
        atomic_store.remove_marked(info.marked)
        moved.append(info.path.name)
    return moved


def remove_if_empty(run: str | Path) -> None:
    """Remove the local folder of a run unless it holds something."""
    if (kept := local_folder(run)).is_dir():
        atomic_store.remove_if_empty(kept / "checkpoints")
        atomic_store.remove_if_empty(kept)


class CheckpointWriter:
    """Saves the checkpoints of the session that begins at a ``ResumePoint``.

    ``saved_step`` and ``saved_at`` are the last committed step, or None, and its time in this session;
    ``fallback_reason`` is the reason why checkpoints go to the local disk at present, or is empty.
    """

    def __init__(self, run: Path, start: Any, session_id: str, settings: Any, log_message: Callable[[str], None]):
        self.run, self.run_id, self.session_id, self.settings = run, start.run_id, session_id, settings
        self.log_message, self.fallback_reason = log_message, ""
        self.folder, self.local = run / "checkpoints", local_folder(run) / "checkpoints"
        self.first_step, self.saved_step = start.step, None if start.checkpoint is None else start.step
        self.saved_at, self._saved_clock, self._tried_at = None, time.monotonic(), -math.inf

    def is_due(self, step: int) -> bool:
        """After so many steps or minutes; a failed save is retried after half a minute."""
        if self.saved_step == step:
            return False
        every, before = self.settings.save_every_steps, self.saved_step or self.first_step
        if time.monotonic() - self._tried_at < RETRY_S and step % every:
            return False
        waited_s = time.monotonic() - self._saved_clock
        return step // every > before // every or waited_s > 60.0 * self.settings.save_every_minutes

    def attempt(self, action: Callable[[], Any]) -> bool:
        """True if an action succeeds; any error of it is logged only, as training goes on."""
        try:
            action()
        except Exception as error:
            saved = "nothing yet" if self.saved_step is None else f"step {self.saved_step}"
            text = str(error) if type(error).__module__.startswith("svclib") else f"{type(error).__name__}: {error}."
            self.log_message(f"{text} Training goes on and tries again; saved so far: {saved}.")
            return False
        return True

    def identify(self, identity: dict) -> None:
        """Write the run's identity into ``run.json`` unless it is there."""
        found = checkpoints.run_identity(self.run)
        self._identity = {**identity, **({"first_saved": found["first_saved"]} if "first_saved" in found else {})}
        if found != self._identity:
            atomic_store.write_json(self.run / "run.json", self._identity)

    def save(self, checkpoint: Checkpoint) -> bool:
        """Commit a complete checkpoint to the run's folder, or else to the local disk; False if both fail.

        Also prunes, and commits the EMA weights if a step of the series 100, 200, 500, ... was passed since the last
        save.
        """
        self._tried_at = time.monotonic()
        if not self.attempt(lambda: self._save(checkpoint)):
            return False
        before, self.saved_step = self.saved_step or self.first_step, checkpoint.record["step"]
        self.saved_at, self._saved_clock = time.time(), time.monotonic()
        self.attempt(self.prune)
        if not self.fallback_reason:
            if checkpoints.history_due(before, self.saved_step):
                self.attempt(lambda: checkpoints.save(self.folder, checkpoint, "history", self.session_id))
            self.attempt(self._note_saved)
        return True

    def _note_saved(self) -> None:
        """Record in ``run.json`` that a checkpoint exists: if Drive lists none later, no new run begins."""
        if "first_saved" not in self._identity:
            identity = {**self._identity, "first_saved": [self.saved_step]}
            atomic_store.write_json(self.run / "run.json", identity)
            self._identity = identity

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Commit the best checkpoint so far, on the local disk while that is in use."""
        folder = self._made_local() if self.fallback_reason else self.folder
        checkpoints.save(folder, checkpoint, "best", self.session_id)

    def sync_back(self) -> None:
        """Move local checkpoints to the run's folder; raises StorageError if it cannot be written."""
        if moved := sync_back(self.run, self.run_id):
            self.log_message(f"'{self.run}' can be written again: {len(moved)} checkpoints were copied there.")
        self.fallback_reason = ""

    def prune(self) -> None:
        """Delete old checkpoints in the folder in use."""
        folder = self.local if self.fallback_reason else self.folder
        checkpoints.prune(folder, self.run_id, self.settings.keep_checkpoints)

    def _save(self, checkpoint: Checkpoint) -> None:
        try:
            self.sync_back()
            if not filesystem.exists(self.run / "run.json"):
                atomic_store.write_json(self.run / "run.json", self._identity)
                self.log_message(
                    f"'{self.run}' was renamed, moved or deleted while it was trained; training goes on into a new "
                    "folder of that name. What was saved before is where you moved it."
                )
            checkpoints.save(self.folder, checkpoint, "last", self.session_id)
        except OSError as error:
            try:
                checkpoints.save(self._made_local(), checkpoint, "last", self.session_id)
            except OSError:
                raise error from None
            self.fallback_reason = str(error)
            self.log_message(
                f"{error} Training goes on. Step {checkpoint.record['step']} is kept on this machine only, in "
                f"'{self.local.parent}', and copied as soon as '{self.run}' can be written again."
            )

    def _made_local(self) -> Path:
        filesystem.make_own_folder(self.local.parent)
        return self.local
