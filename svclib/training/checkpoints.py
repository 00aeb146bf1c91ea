"""Checkpoints of a run: file format, saving, retention, and loading of the newest usable one.

A checkpoint is one safetensors file of model, EMA and optimiser; its metadata hold the record (run, step, settings,
versions) as JSON and the SHA-256 of record and tensors. ``RUN/checkpoints`` holds three kinds, each committed by a
marker (``atomic_store.put_marked``):

    ck-STEP-WRITER.safetensors       complete training state: training resumes from it
    best-STEP-WRITER.safetensors     EMA weights of the best validation: lowest loss or highest score
    history-STEP-WRITER.safetensors  EMA weights of steps 100, 200, 500, 1000, 2000, ...

Names are never reused, and an older file is deleted only after newer ones are committed. If there are files but none is
usable, loading fails: a run never restarts silently.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import math
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from svclib import __version__
from svclib.features.extract import FeatureSettings
from svclib.models import instrument, instrument_archive
from svclib.utils import atomic_store, budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ModelError, StorageError, TrainingError
from svclib.utils.filesystem import is_name
from svclib.utils.serialization import check_fields, check_statistics, from_dict, strict_json, to_dict

FORMAT, FORMAT_VERSION = "svclib checkpoint", 1
MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors library when it reads
MAX_RECORD_KEYS = 4_000_000  # recordings, for the most part
PREFIXES = {"last": "ck", "best": "best", "history": "history"}
UPLOAD_LAG_S = 1800.0
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}
_DTYPES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8"}
_OWN_NAME = re.compile(r"(ck|best|history)-\d{8}-[0-9a-f]{6,12}\.safetensors")


@dataclasses.dataclass
class Checkpoint:
    """Contents of a file: ``record`` is plain JSON, ``tensors`` are named ``model.*``, ``ema.*``, ``optimizer.*``."""

    record: dict
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, without it."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(prefix + ".")}

    @property
    def order(self) -> tuple[int, int]:
        """Newer checkpoints compare greater."""
        return self.record["generation"], self.record["step"]


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint file of a run."""

    step: int
    path: Path
    kind: str  # a key of ``PREFIXES``
    validation_loss: float | int | None
    problem: str | None  # why it cannot be used; contents are verified when it is loaded
    run_id: str
    generation: int  # how often the run was resumed from an earlier step
    marked: atomic_store.Marked = dataclasses.field(repr=False, compare=False)
    lineage: list[list[int]] | None = None  # ``[generation, step]`` it goes on from; None in files of earlier versions

    @property
    def order(self) -> tuple[int, int]:
        """Newer checkpoints compare greater."""
        return self.generation, self.step


# The file -------------------------------------------------------------------------------------------------------------


def pack(checkpoint: Checkpoint) -> list[bytes | memoryview]:
    """A checkpoint as the pieces of a safetensors file, with record and checksum in its metadata; weights on the CPU
    are not copied.
    """
    text = filesystem.json_text(checkpoint.record, sort_keys=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"record": text, "sha256": _digest(text, tensors)}}
    pieces, end = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):  # aligned
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        pieces.append(memoryview(_bytes_of(tensor)))
    head = filesystem.json_text(header).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER_BYTES:
        raise TrainingError(
            f"The checkpoint's record takes {len(head) / 1e6:.0f} MB; a safetensors header holds at most 100 MB.",
            hint="Train on fewer recordings or singers.",
        )
    return [len(head).to_bytes(8, "little"), head, *pieces]


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def unpack(path: Path) -> Checkpoint:
    """Read a checkpoint and verify its own checksum; TrainingError if it cannot be used, the reason is a clause."""
    try:
        size = filesystem.size_of(path) or 0
        budget.require("checkpoint", path.name, Cost(memory_bytes=2 * size))
        data = filesystem.read_bytes(path)  # a memory map would crash the process when retention truncates the file
        head = data[8 : 8 + min(int.from_bytes(data[:8], "little"), MAX_HEADER_BYTES)]
        metadata = strict_json(head, "its header", MAX_RECORD_KEYS)["__metadata__"]
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
        record = strict_json(metadata["record"].encode(), "its record", MAX_RECORD_KEYS)
        foreign = record["format"] != FORMAT
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise TrainingError(f"it cannot be read ({str(error)[:160]})") from None
    except (KeyError, TypeError, AttributeError):
        foreign = True
    if foreign or type(version := record.get("format_version", 0)) is not int:
        raise TrainingError("it was not written by svclib's training")
    if version > FORMAT_VERSION:
        raise TrainingError("it was written by a newer svclib; update svclib")
    if _digest(metadata["record"], tensors) != metadata.get("sha256"):
        raise TrainingError("its contents do not match their checksum")
    return Checkpoint(record, tensors)


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


_NUMBER = (int, float)
_RECORD = {
    "run_id": str,
    "generation": int,
    "step": int,
    "device": str,
    "preset": {"name": str, "kind": str, "text": str} | dict.fromkeys(("features", "model", "training"), dict),
    "statistics": dict,
    "dataset": {"fingerprint": str, "singers": list, "recordings": dict},
    "f0": dict,
    "versions": dict,
    "metrics": {"loss": (*_NUMBER, type(None)), "validation_loss": (*_NUMBER, type(None)), "best": (list, type(None))},
}


def check_record(record: dict) -> None:
    """Refuse the record of a checkpoint that training could not have written (ConfigError)."""
    check_fields(record, _RECORD, "its record", others=True)
    best, dataset = record["metrics"]["best"], record["dataset"]
    usable = min(record["step"], record["generation"]) >= 0 and record["preset"]["kind"] in instrument.KINDS
    usable &= best is None or (2 <= len(best) <= 3 and all(type(x) in _NUMBER for x in best[:2]))
    usable &= _is_lineage(record.get("lineage"))
    texts = [*dataset["recordings"].values(), record.get("kind", "")]
    if not usable or not all(map(is_name, dataset["singers"])) or not all(isinstance(x, str) for x in texts):
        raise ConfigError("its record holds values out of range.")


# The record -----------------------------------------------------------------------------------------------------------


def new_record(run_id: str, generation: int, preset: Any, dataset: Any, lineage: Sequence = ()) -> dict:
    """The part of a record that stays constant over a session."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "generation": generation,
        "lineage": list(lineage),
        "preset": describe_preset(preset),
        "statistics": dataset.statistics,
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "singers": list(dataset.singers),
            "recordings": recording_hashes(dataset),
        },
        "f0": instrument.f0_definition(preset.features),
        "versions": {"svclib": __version__, "torch": torch.__version__},
    }


def recording_hashes(dataset: Any) -> dict[str, str]:
    """Start of the SHA-256 of each recording of a dataset, by name."""
    return {r["name"]: str(r.get("sha256", ""))[:16] for r in dataset.recordings}


def describe_preset(preset: Any) -> dict:
    """A ``config.Preset`` as plain JSON."""
    settings = {name: to_dict(getattr(preset, name)) for name in ("features", "model", "training")}
    return {"name": preset.name, "kind": preset.model.kind, **settings, "text": preset.text}


def now() -> str:
    """The current time for people and logs, UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """An optimiser's state as named tensors and plain JSON: ``({"0.exp_avg": ...}, param_groups)``."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": torch.as_tensor(v) for i, values in state["state"].items() for k, v in values.items()}
    return tensors, [{k: to_dict(v) for k, v in group.items()} for group in state["param_groups"]]


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict]) -> None:
    """The reverse of :func:`optimizer_tensors`."""
    state: dict[int, dict] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# Saving ---------------------------------------------------------------------------------------------------------------


def save(folder: Path, checkpoint: Checkpoint, kind: str = "last", writer: str = "") -> CheckpointInfo:
    """Commit a checkpoint under a new name; StorageError, with every earlier file untouched, if that fails.

    ``kind`` is a key of ``PREFIXES``: ``last`` keeps everything, ``best`` and ``history`` the EMA weights only.
    """
    record, tensors = {**checkpoint.record, "kind": kind, "saved": now()}, checkpoint.tensors
    if kind != "last":
        record = {k: v for k, v in record.items() if k not in ("optimizer", "scaler")}
        tensors = {k: v for k, v in tensors.items() if k.startswith("ema.")}
    data = pack(Checkpoint(record, tensors))
    path = folder / f"{PREFIXES[kind]}-{record['step']:08d}-{writer}{secrets.token_hex(3)}.safetensors"
    budget.require("checkpoint", path.name, Cost(disk_bytes=sum(map(len, data)) + (16 << 20)), folder)
    marker = {k: record.get(k) for k in ("step", "run_id", "generation", "lineage", "kind", "saved")}
    marker["validation_loss"] = record["metrics"]["validation_loss"]
    return _info(atomic_store.put_marked(path, lambda part: atomic_store.write_bytes(part, data), marker), kind)


def prune(folder: Path, run_id: str, keep: int) -> None:
    """Delete checkpoints of a run that are older than ``keep`` committed ones, and all but the newest best.

    Never files of other runs or names. On Drive, which uploads later, those of the last half hour stay, up to three
    times as many.
    """
    found, on_drive = listing(folder), filesystem.on_drive(folder)
    for kind, count in (("last", keep), ("best", 1)):
        own = [c for c in found if c.kind == kind and c.run_id in (run_id, "")]
        good = [c for c in own if c.problem is None]
        if len(good) < count:
            continue
        oldest = good[-count]
        older = [c for c in own if c.run_id and c.order < oldest.order]
        older += [c for c in own if not c.run_id and c.step < oldest.step and _OWN_NAME.fullmatch(c.path.name)]
        recent = sorted((c for c in older if on_drive and _age_s(c.path) < UPLOAD_LAG_S), key=lambda c: c.order)
        for old in older:
            if old not in recent[-2 * count :]:
                atomic_store.remove_marked(old.marked)
    atomic_store.remove_parts(folder)


def history_due(before: int, step: int) -> bool:
    """True if a step of the series 100, 200, 500, 1000, 2000, 5000, ... lies in ``(before, step]``."""
    return any(before < m * 10**e <= step for e in range(2, 9) for m in (1, 2, 5))


def _age_s(path: Path) -> float:
    """Seconds since a file was written; 0 if unknown."""
    with contextlib.suppress(OSError):
        return time.time() - filesystem.active.stat(path).st_mtime
    return 0.0


# Loading --------------------------------------------------------------------------------------------------------------


def listing(folder: str | Path) -> list[CheckpointInfo]:
    """Every checkpoint of a folder, oldest first; unusable ones carry their ``problem``."""
    files = (
        (m, k) for k, prefix in PREFIXES.items() for m in atomic_store.find_marked(folder, f"{prefix}-*.safetensors")
    )
    return sorted((_info(marked, kind) for marked, kind in files), key=lambda c: (c.order, c.path.name))


def counting(run: str | Path, listed: list[CheckpointInfo] | None = None) -> list[CheckpointInfo]:
    """The usable checkpoints of a run, oldest first, without those after a step from which it was resumed anew."""
    run_id, listed = run_identity(run).get("run_id"), listed or listing(Path(run) / "checkpoints")
    found = [c for c in listed if c.problem is None and c.run_id == (run_id or c.run_id)]
    if not found:
        return []
    generation, lineage = found[-1].generation, found[-1].lineage
    if lineage is None:
        first = min(c.step for c in found if c.generation == generation)
        lineage = [[earlier, first] for earlier in range(generation)]
    last_steps = {generation: math.inf, **dict(lineage)}
    return [c for c in found if c.step <= last_steps.get(c.generation, -1)]


def newest(folder: Path, run_id: str | None, step: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest usable checkpoint of a run (None takes the only one), or that of a step, with its weights at least.

    Committed files come first, newest first. A file without its marker is used only if nothing else is left and it
    matches its own checksum. Also returns ``name: reason`` of each file not used; (None, []) only if the folder lists
    no checkpoint. TrainingError if there are files and none can be used.
    """
    if not (every := listing(folder)):
        return None, []
    ids = {c.run_id for c in every if c.run_id}
    if run_id is None and len(ids) > 1:
        raise TrainingError(f"'{folder}' holds checkpoints of {len(ids)} runs and no run.json names one of them.")
    run_id = run_id or next(iter(ids), None)
    found = [c for c in every if step is None or c.step == step]
    if not found:
        raise TrainingError(f"There is no checkpoint of step {step}; there are: {_steps(every)}.")
    if step is None:
        found = [c for c in found if c.kind == "last"] or found
    unused = []
    for info in sorted(found, key=lambda c: (bool(c.marked.info), c.kind == "last", c.order), reverse=True):
        checkpoint, problem = _load(info, run_id)
        if checkpoint is None:
            unused.append(f"{info.path.name}: {problem}")
        elif info.marked.info:
            later = [c for c in found if not c.marked.info and c.step > info.step]
            return checkpoint, unused + [f"{c.path.name}: {c.problem}" for c in later]
        else:
            return checkpoint, [*unused, f"{info.path.name}: {info.problem}; it matches its own checksum and is used"]
    more = f"; {len(unused) - 3} more" if len(unused) > 3 else ""
    raise TrainingError(
        f"'{folder}' holds {len(found)} checkpoint files, but none can be used: {'; '.join(unused[:3])}{more}.",
        path=folder,
        hint="Nothing was changed. Put back a backup of this folder, or train in another folder.",
    )


def load_model(run: str | Path, which: str | int = "best") -> tuple[nn.Module, dict]:
    """A run's model with its EMA weights, in eval mode on the CPU, and the checkpoint's record.

    ``which``: ``best`` by validation of those that count (the last if there is none), ``last``, or a step. The record
    holds step, preset (with ``text``), statistics, metrics, dataset, ... TrainingError if no such one can be used.
    """
    if not (found := listing(Path(run) / "checkpoints")):
        raise TrainingError(f"'{run}' has no checkpoints; train it first.")
    if which in ("best", "last"):
        usable = counting(run, found) or found
        counted = [c for c in found if c.problem or c in usable]  # what cannot be read is said, not passed over
        choice = [c for c in counted if c.kind == which] or [c for c in usable if c.kind == "last"]
    elif str(which).isdecimal():
        choice = [c for c in found if c.step == int(which)]
    else:
        raise TrainingError(f"Unknown checkpoint '{which}'; expected best, last or a step.")
    problems = []
    for info in reversed(choice):
        checkpoint, problem = _load(info, run_identity(run).get("run_id"))
        if checkpoint is not None:
            try:
                return _rebuild(checkpoint), checkpoint.record
            except (ConfigError, ModelError) as error:
                raise TrainingError(f"'{info.path.name}' makes no model: {error}", path=info.path) from None
        problems.append(f"{info.path.name}: {problem}")
    why = f"none can be used ({'; '.join(problems)})" if problems else "there is none"
    raise TrainingError(f"Checkpoint '{which}' of '{run}': {why}. There are steps {_steps(found)}; choose another one.")


def run_identity(run: str | Path) -> dict:
    """Contents of ``run.json``: ``run_id``, ``preset``, ``loss``, ...; {} without one, ``damaged`` if unreadable."""
    path = Path(run) / "run.json"
    try:
        found = filesystem.read_json(path) if filesystem.exists(path) else {}
    except StorageError as error:
        if error.errno is not None:  # the disk failed; the file may be intact
            raise
        found = None
    saved = found.get("first_saved", []) if isinstance(found, dict) else None
    whole = isinstance(saved, list) and all(type(n) is int for n in saved) and isinstance(found.get("run_id", ""), str)
    return found if whole else {"damaged": True}


def _rebuild(checkpoint: Checkpoint) -> nn.Module:
    preset = checkpoint.record["preset"]
    features = from_dict(FeatureSettings, preset["features"], "features")
    settings = from_dict(instrument.KINDS[preset["kind"]], preset["model"], "model")
    statistics, weights = checkpoint.record["statistics"], checkpoint.part("ema")
    check_statistics(statistics)
    expected = instrument.architecture(settings, features, statistics)
    instrument_archive.require_shapes({name: list(value.shape) for name, value in weights.items()}, expected)
    model = instrument.build_model(settings, features, statistics)
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


def _load(info: CheckpointInfo, run_id: str | None) -> tuple[Checkpoint | None, str]:
    """Verify and read one file: (checkpoint, "") or (None, reason)."""
    marked, foreign = info.marked, "it belongs to another run"
    if info.run_id and run_id and info.run_id != run_id:
        return None, foreign
    if marked.info and (problem := atomic_store.verify(marked)):
        return None, problem
    try:
        checkpoint = unpack(info.path)
        check_record(checkpoint.record)
    except (TrainingError, ConfigError) as error:
        return None, str(error) if marked.info else f"{info.problem}, and {error}"
    if marked.info and info.order != checkpoint.order:
        return None, "its marker belongs to another checkpoint"
    return (None, foreign) if run_id and checkpoint.record["run_id"] != run_id else (checkpoint, "")


def _info(marked: atomic_store.Marked, kind: str) -> CheckpointInfo:
    marker, digits = marked.info, marked.path.name.split("-")[1]
    step, generation = marker.get("step", int(digits) if digits.isdecimal() else 0), marker.get("generation", 0)
    loss, run_id, lineage = marker.get("validation_loss"), marker.get("run_id", ""), marker.get("lineage")
    valid = type(step) is type(generation) is int and min(step, generation) >= 0 and isinstance(run_id, str)
    valid &= "generation" in marker and (loss is None or type(loss) in _NUMBER) and _is_lineage(lineage)
    problem = marked.problem or (None if valid else "its marker was not written by svclib's training")
    if not valid:
        step, generation, loss, run_id, lineage = (step if type(step) is int else 0), 0, None, str(run_id), None
    return CheckpointInfo(step, marked.path, kind, loss, problem, run_id, generation, marked, lineage)


def _is_lineage(value: Any) -> bool:
    pairs = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(p, list) and [type(n) for n in p] == [int, int] for p in pairs)


def _steps(found: list[CheckpointInfo]) -> str:
    return ", ".join(str(s) for s in sorted({c.step for c in found}))
