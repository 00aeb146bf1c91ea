"""Untrusted instrument zips: nothing is extracted, executed or taken on trust.

Names are from a list, every size has a cap, the zip's comment (the seal) holds the SHA-256 of all bytes before it, and
tensors are read only where they are those that are expected.
"""

import contextlib
import hashlib
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch

from svclib.utils import budget, unzip
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ModelError, StorageError, first_line, printable
from svclib.utils.serialization import strict_json

MEMBERS = ("instrument.json", "weights.safetensors", "config.gin")
MAX_BYTES = {"instrument.json": 32 << 20, "weights.safetensors": 1 << 30, "config.gin": 1 << 18}
MAX_DIRECTORY_BYTES, MAX_RATIO = 1 << 16, 200
MAX_LARGE_RATIO, LARGE_BYTES = 20, 64 << 20  # weights hardly pack; a small network may be untrained, of zeros
MAX_HEADER_BYTES = 1 << 20  # of weights.safetensors
SEAL = "svclib instrument sha256 "
_IGNORED = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|Thumbs\.db$|desktop\.ini$|\._[^/]*$)")
_PEERS = (
    ("a DDSP (TensorFlow) model", r"(^|/)(ckpt-\d+\.(index|data.*)|operative_config.*\.gin|dataset_statistics\.pkl)$"),
    ("an RVC model", r"\.index$"),
    ("a so-vits-svc model", r"(^|/)[GD]_\d+\.pth$"),
    ("a DiffSinger or Diff-SVC model", r"\.ckpt$"),
    ("a model in PyTorch's pickle format, such as RVC's", r"\.(pth?|bin)$"),
    ("an ONNX model", r"\.onnx$"),
)


@contextlib.contextmanager
def opened(path: Path):
    """Context of an :class:`Archive`; whatever a broken file raises in it becomes a ModelError that names the file."""
    try:
        if path.is_dir():
            raise ModelError("it is a folder; an instrument is one .zip file.")
        with path.open("rb") as file:
            yield Archive(file)
    except (ModelError, ConfigError, StorageError) as error:
        raise ModelError(f"'{path.name}' cannot be opened: {printable(error, 1000)}") from None
    except FileNotFoundError:
        raise ModelError(f"There is no instrument '{path}'.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeError) as error:
        raise ModelError(f"'{path.name}' is damaged ({str(error)[:100].strip()}); download it again.") from None
    except Exception as error:  # whatever else an untrusted file provokes
        why = first_line(error)
        raise ModelError(f"'{path.name}' cannot be read ({why}); download it again.") from None


def pack(members: dict[str, bytes]) -> bytes:
    """A sealed zip, stored, without dates or owners; ModelError for a member too large to be loaded again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if len(data) > MAX_BYTES[name]:
                limit = f"an instrument holds at most {MAX_BYTES[name] / 1e6:.0f} MB"
                raise ModelError(f"{name} has {len(data) / 1e6:.0f} MB; {limit}.")
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
        archive.comment = (SEAL + "0" * 64).encode()
    body = buffer.getvalue()[:-64]
    return body + hashlib.sha256(body[: -len(SEAL)]).hexdigest().encode()


class Archive:
    """An instrument's zip, opened for reading after everything but the contents was checked.

    ``sha256`` is that of the whole file, once :meth:`check_seal` has run.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, ""
        self.n_bytes, self.comment = _check_end(file)
        self.zip = zipfile.ZipFile(file)
        self.entries = _check_entries(self.zip.infolist())

    def size(self, name: str) -> int:
        """Unpacked bytes of a member by the directory."""
        return self.entries[name].file_size

    def read(self, name: str) -> bytes:
        """A member's bytes, streamed; never more than its directory entry announced."""
        return b"".join(unzip.entry_blocks(self.zip, self.entries[name]))

    def check_seal(self) -> None:
        """Compare the seal with the bytes and compute ``sha256``; a zip packed anew has no comment and no seal.

        ModelError if any byte differs, or the file is larger than its members explain.
        """
        explained = sum(e.compress_size for e in self.entries.values()) + 4 * MAX_DIRECTORY_BYTES
        if self.n_bytes > explained:
            raise ModelError(f"it has {self.n_bytes} bytes, more than its contents explain; download it again.")
        digest, left = hashlib.sha256(), self.n_bytes - len(self.comment)
        self.file.seek(0)
        while block := self.file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
        if self.comment and self.comment != (SEAL + digest.hexdigest()).encode():
            raise ModelError("it is damaged (its seal differs from its contents); download it again.")
        digest.update(self.comment)
        self.sha256 = digest.hexdigest()


def _check_end(file) -> tuple[int, bytes]:
    """Look at a zip's end record before zipfile reads a directory of any size: (file size, comment)."""
    size = file.seek(0, 2)
    if size == 0:
        raise ModelError("it is empty (0 bytes); download it again, or wait until the Drive has loaded it.")
    budget.require("instrument", "it", Cost(memory_bytes=size), error=ModelError)
    file.seek(max(0, size - 65557))
    tail = file.read()
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        raise ModelError("it is not a zip file, so not an instrument; was something else saved under this name?")
    at = len(tail) - 22 if tail[-22:-18] == b"PK\x05\x06" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise ModelError("it is cut off; download it again.")
    disk, first, here, entries, n_directory, _, n_comment = struct.unpack("<4H2IH", tail[at + 4 : at + 22])
    if at + 22 + n_comment != len(tail):
        raise ModelError("it has bytes after its end; download it again.")
    if disk or first or here != entries or tail[max(0, at - 20) : at][:4] == b"PK\x06\x07":
        raise ModelError("it is a zip of a kind no instrument has (several parts, or zip64).")
    if entries > budget.LIMITS["instrument"].values or n_directory > MAX_DIRECTORY_BYTES:
        raise ModelError(f"it holds {entries} files; an instrument holds {len(MEMBERS)}.")
    return size, tail[at + 22 :]


def _check_entries(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    names = [e.orig_filename for e in entries]
    if len(set(names)) != len(names):
        raise ModelError("it holds two files of one name; download it again.")
    kept = [e for e in entries if not _IGNORED.search(e.orig_filename) and not e.orig_filename.endswith("/")]
    folders = {e.orig_filename.rpartition("/")[0] for e in kept}
    level = folders.pop() + "/" if len(folders) == 1 and "" not in folders else ""
    level = level if re.fullmatch(r"[^/\\:\x00-\x1f]{1,120}/", level) and level not in ("./", "../") else ""
    found = {e.orig_filename[len(level) :]: e for e in kept}
    for name in [n for n in found if n not in MEMBERS]:
        for peer, pattern in _PEERS:
            if any(re.search(pattern, n) for n in names):
                raise ModelError(f"this is {peer}; it cannot be used here. Train an instrument of your own.")
        raise ModelError(f"it holds {name[:60]!r}, which no instrument has; it was refused unread.")
    missing = [m for m in MEMBERS if m not in found]
    if missing:
        raise ModelError(f"it holds no {missing[0]}, so it is not an instrument.")
    for name, entry in found.items():
        ratio = MAX_LARGE_RATIO if entry.file_size > LARGE_BYTES else MAX_RATIO
        if problem := unzip.entry_problem(entry, ratio, 100 * MAX_RATIO):
            raise ModelError(f"{name} {problem}; it was refused unread.")
        if entry.file_size > MAX_BYTES[name]:
            raise ModelError(f"{name} would unpack to {entry.file_size} bytes, more than an instrument needs.")
    return found


# Weights --------------------------------------------------------------------------------------------------------------


def check_size(expected: dict[str, torch.Tensor], n_bytes: int) -> None:
    """Refuse a weights file smaller than the expected tensors, or larger by more than ``MAX_HEADER_BYTES``."""
    wanted = sum(t.numel() * t.element_size() for t in expected.values())
    if not wanted <= n_bytes <= wanted + MAX_HEADER_BYTES:
        raise ModelError(
            f"weights.safetensors has {n_bytes} bytes where its settings need {wanted}: made for another model version."
        )


def require_shapes(shapes: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights whose names and shapes are not the expected ones."""
    if odd := sorted(set(shapes) ^ set(expected)):
        raise ModelError(f"the weights {odd[0][:80]!r} are missing or too many: made for another model version.")
    for name, shape in shapes.items():
        if shape != list(expected[name].shape):
            raise ModelError(
                f"the weights {name[:80]!r} have shape {str(shape)[:60]}, expected {list(expected[name].shape)}: made "
                "for another model version."
            )


def require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that hold NaN or infinity."""
    for name, tensor in tensors.items():
        if not math.isfinite(tensor.double().sum().item()) and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"the weights {name[:80]!r} are not all finite numbers.")


def weights(data: bytes, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a ``weights.safetensors``, on the CPU, after its header was compared with the architecture's.

    ``expected`` has the names, shapes and types (float32 or int64); a ModelError names what is not as expected.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ModelError("weights.safetensors has no valid header.")
    header = strict_json(data[8 : 8 + length], "weights.safetensors")
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise ModelError("weights.safetensors has no valid header.")
    require_shapes({name: entry.get("shape") for name, entry in header.items()}, expected)
    types = {torch.float32: "F32", torch.int64: "I64"}
    if wrong := [name for name, entry in header.items() if entry.get("dtype") != types.get(expected[name].dtype)]:
        raise ModelError(f"the weights {wrong[0][:80]!r} are not float32.")
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # SafetensorError is a bare Exception
        raise ModelError(f"weights.safetensors cannot be read ({str(error)[:120]}).") from None
    require_finite(tensors)
    return tensors
