"""One checkpoint as one file: all that a run needs to go on exactly, with a checksum inside.

A safetensors file. Its tensors are model, EMA and optimiser; its metadata hold the record (what the run is, how far it
came, with which settings and versions) as plain JSON, and the SHA-256 of record and tensors.
"""

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from svclib import __version__
from svclib.models import instrument
from svclib.utils import atomic_store
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import to_dict

FORMAT, FORMAT_VERSION = "svclib checkpoint", 1
MAX_HEADER_BYTES = 100_000_000  # what the safetensors library reads
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclasses.dataclass
class Checkpoint:
    """What a file holds: ``record`` is plain JSON, ``tensors`` are named ``model.*``, ``ema.*``, ``optimizer.*``."""

    record: dict
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors under a prefix, without it."""
        return {k[len(prefix) + 1 :]: v for k, v in self.tensors.items() if k.startswith(prefix + ".")}


def pack(checkpoint: Checkpoint) -> list[bytes | memoryview]:
    """A checkpoint as the pieces of a safetensors file; its metadata hold the record and a checksum of everything.

    The tensors are not copied (a checkpoint may be large), so write the pieces before the next step changes them.
    """
    text = json.dumps(checkpoint.record, ensure_ascii=False, allow_nan=False, sort_keys=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    header: dict[str, dict] = {"__metadata__": {"record": text, "sha256": _digest(text, tensors)}}
    at = 0
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all lie aligned
    for name in ordered:
        shape, end = list(tensors[name].shape), at + tensors[name].nbytes
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > MAX_HEADER_BYTES:
        raise TrainingError(
            f"The checkpoint's record takes {len(head) / 1e6:.0f} MB; a safetensors header holds at most 100 MB. Train "
            "on fewer recordings or singers."
        )
    return [len(head).to_bytes(8, "little"), head, *(memoryview(_bytes_of(tensors[name])) for name in ordered)]


def unpack(path: Path) -> Checkpoint:
    """Read a checkpoint and check it against its own checksum.

    The tensors are copies: a memory map would end the process when retention empties the file it looks at. Raises
    TrainingError if it cannot be used; why, as a sentence without full stop.
    """
    try:
        data = atomic_store.read_bytes(path)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header["__metadata__"]
        tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load(data).items()}
        record = json.loads(metadata["record"])
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise TrainingError(f"it cannot be read ({str(error)[:160]})") from None
    except (KeyError, TypeError, AttributeError):
        raise TrainingError("it was not written by svclib's training") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise TrainingError("it was not written by svclib's training")
    if record.get("format_version", 0) > FORMAT_VERSION:
        raise TrainingError("it was written by a newer svclib; update svclib")
    if _digest(metadata["record"], tensors) != metadata.get("sha256"):
        raise TrainingError("its contents do not fit their checksum")
    return Checkpoint(record, tensors)


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


# The record -----------------------------------------------------------------------------------------------------------


def new_record(run_id: str, generation: int, preset: Any, dataset: Any) -> dict:
    """The part of a record that stays the same while a run goes on."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "generation": generation,
        "preset": describe_preset(preset),
        "statistics": dataset.statistics,
        "dataset": {
            "fingerprint": dataset.fingerprint,
            "singers": list(dataset.singers),
            "recordings": {r["name"]: str(r.get("sha256", ""))[:16] for r in dataset.recordings},
        },
        "f0": instrument.f0_definition(preset.features),
        "versions": {"svclib": __version__, "torch": torch.__version__},
    }


def describe_preset(preset: Any) -> dict:
    """A ``config.Preset`` as plain JSON."""
    settings = {name: to_dict(getattr(preset, name)) for name in ("features", "model", "training")}
    return {"name": preset.name, "kind": preset.model.kind, **settings, "text": preset.text}


def now() -> str:
    """This moment for people and logs, UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The optimiser --------------------------------------------------------------------------------------------------------


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
