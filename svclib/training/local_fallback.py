"""Where the checkpoints of a session go: the run's folder, or this machine's own disk while that cannot be written.

A mounted Drive drops, or is full, for minutes or hours. Training goes on: its checkpoints and log lines are kept in a
folder of this machine, and copied as soon as the run's folder can be written again, by this session or the next one.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from svclib.training import checkpoints
from svclib.training.checkpoint_format import Checkpoint
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import StorageError, TrainingError


def folder_of(run: str | Path) -> Path:
    """The folder of this machine that stands in for a run's folder; for its owner only, made when it is needed."""
    key = hashlib.sha256(os.path.abspath(run).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"svclib-kept-{key}"


def log_of(run: str | Path) -> Path:
    """Where log lines wait meanwhile."""
    return folder_of(run) / "metrics.jsonl"


def newest(run: str | Path, run_id: str, step: int | None = None) -> Checkpoint | None:
    """The newest usable checkpoint of this run that is kept on this machine, or None."""
    if not filesystem.is_ours(folder_of(run)):
        return None
    try:
        return checkpoints.newest(folder_of(run) / "checkpoints", run_id, step)[0]
    except TrainingError:
        return None


def come_home(run: str | Path, run_id: str) -> list[str]:
    """Copy what is kept on this machine into the run's folder, verify it there and delete it here.

    Args:
        run: The run's folder.
        run_id: Which run it is; checkpoints of any other that once had this folder stay where they are.

    Returns:
        File names of the checkpoints that were brought, oldest first.

    Raises:
        StorageError: if the run's folder cannot be written; everything is where it was, then.
    """
    if not filesystem.is_ours(folder_of(run)):
        return []
    brought = []
    for info in checkpoints.listing(folder_of(run) / "checkpoints"):
        if info.run_id != run_id or atomic_store.verify(info.marked):
            continue
        target = Path(run) / "checkpoints" / info.path.name
        if not atomic_store.exists(atomic_store.marker_path(target)):
            said = {k: v for k, v in info.marked.info.items() if k not in ("bytes", "sha256")}
            data = atomic_store.read_bytes(info.path)
            placed = atomic_store.put_marked(
                target, lambda part, data=data: atomic_store.commit_bytes(part, data), said
            )
            if placed.info["sha256"] != info.marked.info["sha256"]:
                raise StorageError(f"'{target}' reads back differently from '{info.path}'.")
        atomic_store.remove_marked(info.marked)
        brought.append(info.path.name)
    return brought


def tidy(run: str | Path) -> None:
    """Remove the folder of this machine if nothing is kept in it."""
    atomic_store.remove_if_empty(folder_of(run) / "checkpoints")
    atomic_store.remove_if_empty(folder_of(run))


class Keeper:
    """Keeps the checkpoints of one session.

    Args:
        run: The run's folder.
        run_id: Which run it is.
        writer: Stands for this session in the names of its checkpoints.
        keep: How many of the newest checkpoints :meth:`prune` leaves.
        tell: Called with a sentence when checkpoints go to this machine's disk, and when they were brought back.

    Attributes:
        away: Why checkpoints are kept on this machine at the moment; empty while they lie in the run's folder.
    """

    def __init__(self, run: Path, run_id: str, writer: str, keep: int, tell: Callable[[str], None]):
        self.run, self.run_id, self.writer, self.n_kept, self.tell = run, run_id, writer, keep, tell
        self.home, self.shelter, self.away = run / "checkpoints", folder_of(run) / "checkpoints", ""

    def identify(self, identity: dict) -> None:
        """Write into ``run.json`` which run this is, if it does not say so already."""
        self._identity = checkpoints.run_identity(self.run)
        first_saved = {k: v for k, v in self._identity.items() if k == "first_saved"}
        if self._identity != {**identity, **first_saved}:
            self._identity = {**identity, **first_saved}
            atomic_store.write_json(self.run / "run.json", self._identity)

    def note_saved(self, step: int) -> None:
        """``run.json`` remembers that there was a checkpoint: where a Drive shows none later, nothing begins anew."""
        if "first_saved" not in self._identity:
            atomic_store.write_json(self.run / "run.json", {**self._identity, "first_saved": [step]})
            self._identity["first_saved"] = [step]

    def keep(self, checkpoint: Checkpoint) -> None:
        """Commit a checkpoint to go on from, wherever that is possible.

        If it is possible nowhere, a StorageError says why the run's folder cannot be written.
        """
        try:
            self.come_home()
            checkpoints.save(self.home, checkpoint, "last", self.writer)
        except OSError as error:
            self._stay_here(checkpoint, error)

    def keep_best(self, checkpoint: Checkpoint) -> None:
        """Commit the best so far; while the run's folder is away, on this machine without trying it again."""
        if not self.away:
            checkpoints.save(self.home, checkpoint, "best", self.writer)
        else:
            checkpoints.save(_made(self.shelter), checkpoint, "best", self.writer)

    def come_home(self) -> None:
        """Copy what is kept on this machine to the run's folder, if that can be written again; raises if not."""
        brought = come_home(self.run, self.run_id)
        if brought:
            self.tell(f"'{self.run}' can be written again: {len(brought)} checkpoints were copied there.")
        self.away = ""

    def prune(self) -> None:
        """Delete what is no longer needed, where checkpoints go at the moment."""
        checkpoints.prune(self.shelter if self.away else self.home, self.run_id, self.n_kept)

    def _stay_here(self, checkpoint: Checkpoint, error: OSError) -> None:
        try:
            checkpoints.save(_made(self.shelter), checkpoint, "last", self.writer)
        except OSError:
            raise error from None
        self.away = str(error)
        self.tell(
            f"{error} Training goes on. Step {checkpoint.record['step']} is kept on this machine only, in "
            f"'{self.shelter.parent}', and copied as soon as '{self.run}' can be written again."
        )


def _made(shelter: Path) -> Path:
    """The folder, made for this user alone."""
    shelter.parent.mkdir(mode=0o700, exist_ok=True)
    if not filesystem.is_ours(shelter.parent):
        raise StorageError(f"'{shelter.parent}' belongs to somebody else; delete it or set TMPDIR to another folder.")
    return shelter
