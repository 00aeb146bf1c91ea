"""Shards: the few large files of a dataset, each with the 16-bit audio and the features of many segments.

A shard is one safetensors file with one long tensor per feature; a segment is a range of rows of all of them. Its
marker lists its segments, so a committed shard can be reused without the manifest. Its name is a hash of its contents.
Files are read with seek and read: a memory map would crash the process when the disk or the Drive fails.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from svclib.utils import atomic_store, budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import StorageError

PATTERN = "shard-*.safetensors"
KIND = "svclib shard"
CAP_BYTES = 64 << 20
DTYPES = {"audio": "<i2", "f0_hz": "<f4", "confidence": "<f4", "loudness_db": "<f4", "voiced": "|u1"}
DTYPES |= {"log_mel": "<f4", "units": "<f2"}
FEATURES = {"units": "content"}  # stored names that differ from those of the features
_NAMES = {"I16": "<i2", "F32": "<f4", "F16": "<f2", "U8": "|u1"}
MAX_HEADER_BYTES = 1 << 20
FULL_SCALE = 32767.0  # of the stored 16-bit audio


class Segment(NamedTuple):
    """Location of a segment: file name, range of the audio tensor, range of every feature tensor."""

    shard: str
    sample_start: int
    n_samples: int
    frame_start: int
    n_frames: int


@dataclasses.dataclass(frozen=True)
class Item:
    """A marker's entry: segment ``index`` of ``count`` of the recording with this SHA-256."""

    sha256: str
    index: int
    count: int
    n_samples: int
    n_frames: int
    notes: Sequence[str] = ()  # messages about the recording, of its first segment


Stored = dict[tuple[str, int], tuple[Item, Segment]]  # by hash of the recording and index


class Writer:
    """Collects segments and commits a shard before it would exceed the cap; deterministic, byte for byte.

    ``stored`` are the committed segments. Only shards with the same hash of the feature settings can be reused.
    """

    def __init__(self, folder: Path, settings_key: str):
        self.folder, self.settings_key = Path(folder), settings_key
        self.stored: Stored = {}
        self._waiting, self._bytes = list[tuple[Item, dict[str, np.ndarray]]](), 0

    def add(self, item: Item, arrays: dict[str, np.ndarray]) -> None:
        """Add one segment: ``audio`` int16 ``[samples]`` and the feature arrays ``[frames]``, ``[frames, mels]``."""
        arrays = {name: np.ascontiguousarray(value, dtype=DTYPES[name]) for name, value in arrays.items()}
        size = sum(a.nbytes for a in arrays.values())
        if self._bytes + size > CAP_BYTES:
            self.flush()
        self._waiting.append((item, arrays))
        self._bytes += size

    def flush(self) -> None:
        """Commit the collected segments, if any."""
        if not self._waiting:
            return
        items, arrays = zip(*self._waiting, strict=True)
        rows = [{k: v for k, v in dataclasses.asdict(i).items() if v or k in ("index", "n_frames")} for i in items]
        digest = hashlib.sha256(json.dumps([self.settings_key, rows], sort_keys=True).encode()).hexdigest()
        path = self.folder / f"shard-{digest[:16]}.safetensors"
        budget.require("shard of a dataset", path.name, Cost(disk_bytes=2 * self._bytes), self.folder)
        tensors = {name: np.concatenate([a[name] for a in arrays]) for name in arrays[0]}
        if filesystem.exists(atomic_store.marker_path(path)):  # broken, else its segments would be reused
            atomic_store.remove_marked(atomic_store.Marked(path, {}))
        info = {"kind": KIND, "settings": self.settings_key, "items": rows}
        atomic_store.put_marked(path, lambda part: save_file(tensors, part), info)
        self.stored |= _segments(path.name, items)
        self._waiting, self._bytes = [], 0


def committed(folder: Path, settings_key: str) -> list[tuple[atomic_store.Marked, Stored]]:
    """The intact shards of a folder with these settings, verified by their SHA-256."""
    found, known = [], {field.name for field in dataclasses.fields(Item)}  # earlier versions wrote more
    for marked in atomic_store.find_marked(folder, PATTERN):
        ours = (marked.info.get("kind"), marked.info.get("settings")) == (KIND, settings_key)
        if ours and atomic_store.verify(marked) is None:
            items = [Item(**{k: v for k, v in row.items() if k in known}) for row in marked.info["items"]]
            found.append((marked, _segments(marked.path.name, items)))
    return found


def _segments(shard: str, items: Sequence[Item]) -> Stored:
    stored, sample, frame = {}, 0, 0
    for item in items:
        stored[item.sha256, item.index] = item, Segment(shard, sample, item.n_samples, frame, item.n_frames)
        sample, frame = sample + item.n_samples, frame + item.n_frames
    return stored


class Reader:
    """Random access to one shard, thread-safe; StorageError if the file is missing, damaged or cannot be read.

    ``tensors`` are its dtypes, shapes and offsets in the file, by name.
    """

    def __init__(self, path: Path):
        self.path, self._lock, self._file = Path(path), threading.Lock(), None
        try:
            self._file = open(self.path, "rb", buffering=0)
            size = int.from_bytes(self._file.read(8), "little")
            if not 2 <= size <= MAX_HEADER_BYTES:
                raise ValueError("header")
            header = json.loads(self._file.read(size))
            header.pop("__metadata__", None)
            self.tensors = {
                name: (_NAMES[t["dtype"]], tuple(t["shape"]), 8 + size + t["data_offsets"][0])
                for name, t in header.items()
            }
        except FileNotFoundError:
            raise StorageError(f"'{self.path}' is missing; prepare the dataset again.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            raise StorageError(f"'{self.path}' is no whole shard ({error}); prepare the dataset again.") from error

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` of a tensor, as a new array."""
        dtype, shape, offset = self.tensors[name]
        if not 0 <= start <= stop <= shape[0]:
            raise IndexError(f"rows {start} to {stop} of {shape[0]} in '{self.path.name}'")
        row = int(np.prod(shape[1:], dtype=np.int64))
        out = np.empty((stop - start, *shape[1:]), dtype)
        view, done = memoryview(out.reshape(-1).view(np.uint8).data), 0
        try:
            with self._lock:
                self._file.seek(offset + start * row * out.itemsize)
                while done < len(view) and (n := self._file.readinto(view[done:])):
                    done += n
        except OSError as error:
            raise StorageError(f"'{self.path}' could not be read ({error}); is the Drive still connected?") from error
        if done < len(view):
            raise StorageError(f"'{self.path}' has become shorter; prepare the dataset again.")
        return out

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
