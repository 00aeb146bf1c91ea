"""The checkpoints of a run: kept, found, pruned; a broken one means the one before it.

``RUN/checkpoints`` holds three kinds of files, each committed by a marker with its SHA-256 (``store.put_marked``):

    ck-STEP-WRITER.safetensors       model, EMA, optimiser, loss scaler, settings, metrics: training goes on from it
    best-STEP-WRITER.safetensors     EMA weights of the lowest held-out loss
    history-STEP-WRITER.safetensors  EMA weights of steps 100, 200, 500, 1000, 2000, ...: to hear how a voice came to be

Names are never used twice, and an older file is deleted only after newer ones are committed. Files of which none is
usable stop everything: a run never starts over silently.
"""

import contextlib
import dataclasses
import re
import secrets
import time
from pathlib import Path

from torch import nn

from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.training.checkpoint_format import Checkpoint, now, pack, unpack
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import StorageError, TrainingError
from svclib.utils.serialization import from_dict

PREFIXES = {"last": "ck", "best": "best", "history": "history"}
UPLOAD_LAG_S = 1800.0
_OWN_NAME = re.compile(r"(ck|best|history)-\d{8}-[0-9a-f]{6,12}\.safetensors")


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """One file of a run.

    Attributes:
        step: Optimiser steps done.
        path: The file.
        kind: ``last`` (training can go on from it), ``best`` or ``history`` (weights only).
        validation_loss: Held-out loss at that step, if it was measured.
        problem: None, or why it cannot be used. Contents are verified when it is loaded.
        run_id, generation: Which run it belongs to, and how often that run was taken up again from an earlier step.
    """

    step: int
    path: Path
    kind: str
    validation_loss: float | None
    problem: str | None
    run_id: str
    generation: int
    marked: atomic_store.Marked = dataclasses.field(repr=False, compare=False)

    @property
    def order(self) -> tuple[int, int]:
        """Newer checkpoints compare greater."""
        return self.generation, self.step


# Writing --------------------------------------------------------------------------------------------------------------


def save(folder: Path, checkpoint: Checkpoint, kind: str = "last", writer: str = "") -> CheckpointInfo:
    """Commit a checkpoint under a name that was never used.

    Args:
        folder: ``checkpoints`` of the run; made if needed.
        checkpoint: All of the training's state; it stays as it is.
        kind: A key of ``PREFIXES``: ``last`` keeps everything, ``best`` and ``history`` the EMA weights only.
        writer: Name of the session, hexadecimal; stands before the six random digits in the file's name.

    Returns:
        The committed file, as :func:`listing` gives it.

    Raises:
        StorageError: if it cannot be kept; every earlier file is untouched.
    """
    if kind != "last":
        record = {k: v for k, v in checkpoint.record.items() if k not in ("optimizer", "scaler")}
        tensors = {k: v for k, v in checkpoint.tensors.items() if k.startswith("ema.")}
        checkpoint = Checkpoint(record, tensors)
    record = {**checkpoint.record, "kind": kind, "saved": now()}
    pieces = pack(Checkpoint(record, checkpoint.tensors))
    atomic_store.free_space_check(folder, sum(map(len, pieces)) + (16 << 20))
    name = f"{PREFIXES[kind]}-{record['step']:08d}-{writer}{secrets.token_hex(3)}.safetensors"
    info = {k: record[k] for k in ("step", "run_id", "generation", "kind", "saved")}
    info["validation_loss"] = record["metrics"]["validation_loss"]
    marked = atomic_store.put_marked(folder / name, lambda part: atomic_store.commit_bytes(part, *pieces), info)
    return _info(marked, kind)


def prune(folder: Path, run_id: str, keep: int) -> list[str]:
    """Delete what is no longer needed of this run: all but the ``keep`` newest checkpoints, all but the newest best.

    Only files older than ``keep`` committed ones go, and only those that svclib named; files of other runs are never
    touched. On Drive, where what was written is uploaded later, the last half hour stays, up to three times as many.
    Returns what went.
    """
    found, on_drive = listing(folder), filesystem.on_drive(folder)
    removed = []
    for kind, count in (("last", keep), ("best", 1)):
        own = [c for c in found if c.kind == kind and c.run_id in (run_id, "")]
        good = [c for c in own if c.problem is None]
        if len(good) < count:
            continue
        kept = good[-count:]
        older = [c for c in own if c.order < kept[0].order if c.run_id]
        older += [c for c in own if not c.run_id and c.step < kept[0].step and _OWN_NAME.fullmatch(c.path.name)]
        spared = sorted((c for c in older if on_drive and _age_s(c.path) < UPLOAD_LAG_S), key=lambda c: c.order)
        for old in older:
            if old not in spared[-2 * count :]:
                atomic_store.remove_marked(old.marked)
                removed.append(old.path.name)
    atomic_store.remove_parts(folder)
    return removed


def history_due(before: int, step: int) -> bool:
    """Whether a step of the series 100, 200, 500, 1000, 2000, 5000, ... lies in ``(before, step]``."""
    marks = [m * 10**e for e in range(2, 9) for m in (1, 2, 5)]
    return any(before < m <= step for m in marks)


# Reading --------------------------------------------------------------------------------------------------------------


def listing(folder: str | Path) -> list[CheckpointInfo]:
    """Every checkpoint of a folder, oldest first; unusable ones carry their ``problem``."""
    found = []
    for kind, prefix in PREFIXES.items():
        found += [_info(m, kind) for m in atomic_store.find_marked(folder, f"{prefix}-*.safetensors")]
    return sorted(found, key=lambda c: (c.order, c.path.name))


def newest(folder: Path, run_id: str | None, step: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest usable checkpoint of a run, and what had to be passed over and why.

    Committed files come first, newest first. A file that only lost its marker counts when nothing else is left and it
    fits the checksum inside it.

    Args:
        folder: ``checkpoints`` of the run.
        run_id: Files of another run are passed over; None takes the run that the files agree on.
        step: Take the checkpoint of this step instead of the newest; weights-only files count too, then.

    Returns:
        The checkpoint, and ``name: reason`` of each file passed over, or used without its marker; (None, []) only where
        the folder shows no file of any checkpoint.

    Raises:
        TrainingError: if there are files and none can be used.
    """
    every = listing(folder)
    found = [c for c in every if step is None or c.step == step]
    if not every:
        return None, []
    ids = {c.run_id for c in every if c.run_id}
    if run_id is None and len(ids) > 1:
        raise TrainingError(f"'{folder}' holds checkpoints of {len(ids)} runs and no run.json says which is meant.")
    run_id = run_id or (ids.pop() if ids else None)
    if not found:
        have = ", ".join(str(s) for s in sorted({c.step for c in every}))
        raise TrainingError(f"There is no checkpoint of step {step}; there are: {have}.")
    if step is None and any(c.kind == "last" for c in found):
        found = [c for c in found if c.kind == "last"]
    passed_over = []
    for info in sorted(found, key=lambda c: (bool(c.marked.info), c.kind == "last", c.order), reverse=True):
        checkpoint, problem = _attempt(info, run_id)
        if checkpoint is None:
            passed_over.append(f"{info.path.name}: {problem}")
        elif info.marked.info:
            unmarked = [c for c in found if not c.marked.info and c.step > info.step]
            return checkpoint, passed_over + [f"{c.path.name}: {c.problem}" for c in unmarked]
        else:
            return checkpoint, [*passed_over, f"{info.path.name}: {info.problem}; it fits its own checksum and is used"]
    more = f"; {len(passed_over) - 3} more" if len(passed_over) > 3 else ""
    raise TrainingError(
        f"'{folder}' holds {len(found)} checkpoint files, but none can be used: {'; '.join(passed_over[:3])}{more}. "
        "Nothing was changed. Put back a backup of this folder, or start anew by giving the run another folder."
    )


def load_model(run: str | Path, which: str | int = "best") -> tuple[nn.Module, dict]:
    """A run's model with its EMA weights, in eval mode on the CPU, and its record.

    Args:
        run: The run's folder, with ``checkpoints`` in it.
        which: ``best`` by held-out loss (the last where none was measured), ``last``, or a step.

    Returns:
        The model, and the checkpoint's record: step, preset (with ``text``), statistics, metrics, dataset, ...

    Raises:
        TrainingError: if there is no such checkpoint, or none that can be used.
    """
    found = listing(Path(run) / "checkpoints")
    if not found:
        raise TrainingError(f"'{run}' has no checkpoints; train it first.")
    if which in ("best", "last"):
        kinds = [k for k in (which, "last") if any(c.kind == k for c in found)]
        choice = [c for c in found if kinds and c.kind == kinds[0]]
    elif str(which).isdigit():
        choice = [c for c in found if c.step == int(which)]
    else:
        raise TrainingError(f"'{which}' is no checkpoint; say best, last or a step.")
    problems = []
    for info in reversed(choice):
        checkpoint, problem = _attempt(info, run_identity(run).get("run_id"))
        if checkpoint is not None:
            return rebuild(checkpoint), checkpoint.record
        problems.append(f"{info.path.name}: {problem}")
    have = ", ".join(str(s) for s in sorted({c.step for c in found}))
    why = f"none can be used ({'; '.join(problems)})" if problems else "there is none"
    raise TrainingError(f"Checkpoint '{which}' of '{run}': {why}. There are steps {have}; choose another one.")


def run_identity(run: str | Path) -> dict:
    """What ``run.json`` says: ``run_id``, ``preset``, ``loss``, ...; {} where there is none, ``damaged`` if it is."""
    path = Path(run) / "run.json"
    try:
        found = atomic_store.read_json(path) if atomic_store.exists(path) else {}
    except StorageError as error:
        if error.errno is not None:  # the disk failed, the file may be well
            raise
        found = None
    return found if isinstance(found, dict) else {"damaged": True}


def rebuild(checkpoint: Checkpoint) -> nn.Module:
    """The model a checkpoint describes, with its EMA weights, in eval mode."""
    preset = checkpoint.record["preset"]
    features = from_dict(FeatureSettings, preset["features"], "features")
    settings = from_dict(instrument.KINDS[preset["kind"]], preset["model"], "model")
    model = instrument.build_model(settings, features, checkpoint.record["statistics"])
    model.load_state_dict(checkpoint.part("ema"), strict=True)
    return model.eval().requires_grad_(False)


# Inside ---------------------------------------------------------------------------------------------------------------


def _attempt(info: CheckpointInfo, run_id: str | None) -> tuple[Checkpoint | None, str]:
    """Verify and read one file: (checkpoint, "") or (None, why not)."""
    foreign = "it belongs to another run"
    if info.run_id and run_id and info.run_id != run_id:
        return None, foreign
    if info.marked.info and (problem := atomic_store.verify(info.marked)):
        return None, problem
    try:
        checkpoint = unpack(info.path)
    except TrainingError as error:
        return None, str(error) if info.marked.info else f"{info.problem}, and {error}"
    if info.marked.info and (info.step, info.generation) != tuple(checkpoint.record[k] for k in ("step", "generation")):
        return None, "its marker tells of another checkpoint"
    return (None, foreign) if run_id and checkpoint.record["run_id"] != run_id else (checkpoint, "")


def _age_s(path: Path) -> float:
    """Seconds since a file was written; 0 where that cannot be said."""
    with contextlib.suppress(OSError):
        return time.time() - filesystem.active.stat(path).st_mtime
    return 0.0


def _info(marked: atomic_store.Marked, kind: str) -> CheckpointInfo:
    said = marked.info
    digits = marked.path.name.split("-")[1]
    step = said.get("step", int(digits) if digits.isdigit() else 0)
    fine = isinstance(step, int) and isinstance(said.get("run_id", ""), str) and "generation" in said
    problem = marked.problem or (None if fine else "its marker was not written by svclib's training")
    generation = said.get("generation", 0) if isinstance(said.get("generation", 0), int) else 0
    return CheckpointInfo(
        step if isinstance(step, int) else 0,
        marked.path,
        kind,
        said.get("validation_loss"),
        problem,
        str(said.get("run_id", "")),
        generation,
        marked,
    )
