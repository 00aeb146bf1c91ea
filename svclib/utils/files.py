"""Looking at files: whether one is there, what it holds, its checksum, a name for a new one.

"There is none" and "it cannot be looked at" are different things here. A mount that dropped shows nothing, and what is
taken for nothing would be begun anew, so everything below raises where the disk or the Drive does not answer.
"""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from svclib.utils import filesystem
from svclib.utils.errors import StorageError
from svclib.utils.filesystem import again, told

CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20


def read_bytes(path: str | Path) -> bytes:
    """The contents of a file."""
    path = Path(path)
    with told(path, "read"):
        size = filesystem.active.stat(path).st_size
        with filesystem.active.open(path, "rb") as file:
            return filesystem.active.read(file, size + 1)  # one more: a file that grew is then no whole file of ours


def size_of(path: str | Path) -> int | None:
    """Size of a file in bytes, None where there is none; StorageError if the disk or the Drive does not answer."""
    path = Path(path)
    with told(path, "read"):
        try:
            return again(path, lambda: filesystem.active.stat(path)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return None


def exists(path: str | Path) -> bool:
    """Whether a path is there; see :func:`size_of`."""
    return size_of(path) is not None


def names(folder: str | Path) -> list[str]:
    """What a folder lists, sorted; [] where there is no folder. Raises as :func:`size_of` does."""
    folder = Path(folder)
    with told(folder, "read"):
        try:
            return sorted(again(folder, lambda: filesystem.active.names(folder)))
        except FileNotFoundError:
            return []


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; StorageError if it is missing, larger than 64 MB or not JSON (NaN is not)."""
    path = Path(path)
    if (size_of(path) or 0) > MAX_JSON_BYTES:
        raise StorageError(f"'{path}' is larger than 64 MB: this is no JSON file of svclib's.")
    data = read_bytes(path)
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"'{path}' is not whole JSON ({error}); it was damaged or not written by svclib.") from None


def read_lines(path: str | Path) -> list[dict]:
    """The objects of a log made by ``store.append_lines``; torn lines are left out, a missing file is an empty log.

    Raises :class:`StorageError` if there is a log and it cannot be read.
    """
    path = Path(path)
    if not exists(path):
        return []
    records = []
    for line in read_bytes(path).split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's contents, hexadecimal, read by blocks."""
    digest = hashlib.sha256()
    with told(Path(path), "read"), filesystem.active.open(Path(path), "rb") as file:
        while block := filesystem.active.read(file, CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file name (without suffix) made of what a person wrote: no separators, control characters or hidden names.

    Letters of every script, spaces and most signs stay; at most 120 bytes.
    """
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', " ", text).strip(" .")
    name = name.encode("utf-8", "ignore")[:120].decode("utf-8", "ignore").strip(" .")
    return name or fallback


def _no_constant(text: str):
    raise ValueError(f"{text} is not JSON")
