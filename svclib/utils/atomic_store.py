"""Atomic commits, checksums and retention of files, local or on Google Drive.

A file is committed by writing it beside its place, forcing it to the disk and renaming it. A *marked* file (checkpoint,
dataset shard) also has a new unique name and, last of all, gets a marker ``<stem>.ok.json`` with its size and SHA-256.
A mounted Drive may lose, cut or delay any file: a payload whose marker is absent or does not fit was never committed,
and the one before it is used.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from svclib.utils import filesystem
from svclib.utils.errors import StorageError
from svclib.utils.filesystem import CHUNK_BYTES, PART_PREFIX, exists, sha256_file, translate_os_errors

MARKER_SUFFIX = ".ok.json"


def commit_file(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Commit the file that ``write`` writes to a path in the same folder with the same suffix; returns ``path``.

    The folder is made if needed. An earlier file stays whole until the new one is, also where StorageError is raised.
    """
    target = Path(path)

    def place(part: Path) -> Path:
        with contextlib.suppress(OSError):  # the permissions of the earlier file, if there is one
            shutil.copymode(target, part)
        filesystem.active.replace(part, target)
        return target

    return filesystem.retry(target, lambda: _commit(target, write, place))


def commit_new(path: str | Path, write: Callable[[Path], Any], describe: Callable[[Path], bytes] | None = None) -> Path:
    """Commit under the first free name of ``name.wav``, ``name 2.wav``, ``name 3.wav``, ...; returns that path.

    ``describe`` makes the contents of ``<file>.json`` from the written file. Both are committed under one number, that
    of a name which neither has, or neither.
    """
    path = Path(path)
    with contextlib.suppress(OSError):
        remove_parts(path.parent)

    def place(part: Path) -> Path:
        if describe is None:
            return _place_new(part, path)
        write_description = lambda beside: write_bytes(beside, [describe(part)])  # noqa: E731
        return _commit(settings_path(path), write_description, lambda beside: _place_new(part, path, beside))

    return filesystem.retry(path, lambda: _commit(path, write, place))


def settings_path(path: Path) -> Path:
    """``<file>.json`` beside a file."""
    return path.with_name(f"{path.name}.json")


def numbered(path: Path) -> Iterator[Path]:
    """``name.wav``, ``name 2.wav``, ``name 3.wav``, ..., within 240 bytes."""
    yield path
    for number in range(2, 100_000):
        room = 240 - len(path.suffix.encode()) - len(str(number))
        stem = path.stem.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore")
        yield path.with_name(f"{stem} {number}{path.suffix}")


def commit_bytes(path: str | Path, *data: bytes | memoryview) -> Path:
    """Commit bytes, in one or more pieces; see :func:`commit_file`."""
    return commit_file(path, lambda part: write_bytes(part, data))


def write_bytes(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write bytes without committing them, for the ``write`` of other functions; returns their SHA-256."""
    digest = hashlib.sha256()
    with filesystem.active.open(path, "wb") as file:
        for block in _blocks(pieces):
            digest.update(block)
            filesystem.active.write(file, block)
    return digest.hexdigest()


def _blocks(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """The pieces, small ones joined to blocks of 1 MiB or more."""
    block: list[bytes | memoryview] = []
    for piece in pieces:
        block.append(piece)
        if sum(map(len, block)) >= CHUNK_BYTES:
            yield b"".join(block)
            block = []
    yield b"".join(block)


def _commit(path: Path, write: Callable[[Path], Any], place: Callable[[Path], Path]) -> Path:
    with translate_os_errors(path):
        filesystem.make_folder(path.parent)
        part = filesystem.part_path(path.parent, path.suffix if len(path.suffix) < 32 else "")
        try:
            write(part)
            with filesystem.active.open(part, "rb+") as file:
                filesystem.active.fsync(file)
            placed = place(part)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(part)
            raise
        filesystem.active.fsync_folder(path.parent)
    return placed


def _place_new(part: Path, path: Path, description: Path | None = None) -> Path:
    """Give the part, and first its description, the first free name; see :func:`commit_new`."""
    for target in numbered(path):
        beside = settings_path(target)
        if target.exists() or (description and beside.exists()):
            continue
        with contextlib.suppress(FileExistsError):
            if description:
                _place_as(description, beside)
            try:
                _place_as(part, target)
            except BaseException:
                if description:
                    filesystem.active.replace(beside, description)  # for the next number
                raise
            return target
    raise StorageError(f"There are too many files called '{path.name}' in '{path.parent}'; move some away.")


def _place_as(part: Path, target: Path) -> None:
    """Rename, FileExistsError for a taken name; atomic where hard links exist, else by reserving an empty file."""
    try:
        filesystem.active.link(part, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (Drive, FAT)
        filesystem.active.open(target, "xb").close()
        try:
            filesystem.active.replace(part, target)
        except BaseException:
            filesystem.active.remove(target)
            raise
    else:
        try:
            filesystem.active.remove(part)
        except OSError:
            pass  # the file is in place; a second name left over does no harm
        except BaseException:
            filesystem.active.remove(target)
            raise


def copy_file(source: str | Path, target: str | Path) -> Path:
    """Commit a copy of a file; see :func:`commit_file`."""

    def copy(part: Path) -> None:
        with filesystem.active.open(Path(source), "rb") as reader, filesystem.active.open(part, "wb") as writer:
            while block := filesystem.active.read(reader, CHUNK_BYTES):
                filesystem.active.write(writer, block)

    return commit_file(target, copy)


def copy_tree(source: str | Path, target: str | Path, rename: Callable[[str], str] = str) -> list[Path]:
    """Copy the files of a folder that are missing, older or of another size in ``target``; returns the copies.

    ``rename`` makes the names, relative to ``target``, of the relative names in ``source``.
    """
    copied = []
    for path in sorted(p for p in Path(source).rglob("*") if p.is_file() and not p.name.startswith(PART_PREFIX)):
        twin, own = Path(target) / rename(str(path.relative_to(source))), filesystem.active.stat(path)
        found = filesystem.active.stat(twin) if exists(twin) else None
        if not found or found.st_size != own.st_size or found.st_mtime_ns < own.st_mtime_ns:
            copied.append(copy_file(path, twin))
    return copied


def append_lines(path: str | Path, records: Iterable[dict]) -> None:
    """Add JSON objects as lines to a log; a torn last line of an earlier crash is closed first.

    A log with a second name (a copy of its folder by hard links) is copied before, so that the other one stays.
    """
    path = Path(path)
    text = "".join(filesystem.json_text(record) + "\n" for record in records).encode()
    with translate_os_errors(path):
        filesystem.make_folder(path.parent)
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            copy_file(path, path)
        with filesystem.active.open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                text = text if filesystem.active.read(file, 1) == b"\n" else b"\n" + text
            filesystem.active.write(file, text)


def write_json(path: str | Path, value: Any) -> Path:
    """Commit a value as readable JSON with sorted keys; NaN and infinities are refused (ValueError)."""
    return commit_bytes(path, (filesystem.json_text(value, indent=1, sort_keys=True) + "\n").encode())


def remove(path: str | Path) -> None:
    """Delete a file, emptying it first: on Drive a deleted file lies in the trash and counts against the quota."""
    path = Path(path)
    with translate_os_errors(path, "delete"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:  # a second name keeps the contents
            filesystem.active.open(path, "wb").close()
        with contextlib.suppress(FileNotFoundError):
            filesystem.active.remove(path)


def remove_if_empty(folder: str | Path) -> None:
    """Delete a folder that holds nothing; any other stays."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def remove_parts(folder: str | Path) -> int:
    """Delete unfinished files of dead processes, and any older than a day; returns how many."""
    count = 0
    for part in [Path(folder) / name for name in filesystem.names(folder) if name.startswith(PART_PREFIX)]:
        scope, pid, *_ = *part.name[len(PART_PREFIX) :].split("~"), ""
        dead = scope == filesystem.process_scope() and pid.isdecimal() and not filesystem.process_alive(int(pid))
        with contextlib.suppress(OSError):
            if dead or time.time() - part.stat().st_mtime > 86400:
                remove(part)
                count += 1
    return count


# Marked files ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Marked:
    """A payload with its commit marker."""

    path: Path
    info: dict  # of the marker: ``bytes``, ``sha256`` and the ``info`` of :func:`put_marked`; {} without one
    problem: str | None = None  # why the file does not count, as a sentence without full stop


def marker_path(path: str | Path) -> Path:
    """``<stem>.ok.json`` beside a payload."""
    return Path(path).with_suffix(MARKER_SUFFIX)


def put_marked(path: str | Path, write: Callable[[Path], Any], info: dict | None = None) -> Marked:
    """Commit a payload under a new unique name, read it back, then commit its marker. Until then it does not count.

    ``write``, as for :func:`commit_file`, may return the SHA-256 of the file, which is read to find it otherwise;
    ``info`` are plain values for the marker. StorageError if the name is already committed, or the payload cannot be
    written or reads back differently.
    """
    path, digest = Path(path), ""
    if exists(marker_path(path)):
        raise StorageError(f"'{path.name}' is already committed in '{path.parent}'; choose a new name.", errno.EEXIST)

    def write_and_hash(part: Path) -> None:
        nonlocal digest
        digest = write(part)
        digest = digest if isinstance(digest, str) else sha256_file(part)

    commit_file(path, write_and_hash)
    if sha256_file(path) != digest:
        text = f"'{path}' reads back differently from what was written."
        raise StorageError(text, path=path, hint="The disk or the mount is faulty.")
    marker = {**(info or {}), "bytes": filesystem.size_of(path), "sha256": digest}
    write_json(marker_path(path), marker)
    return Marked(path, marker)


def find_marked(folder: str | Path, pattern: str) -> list[Marked]:
    """Payloads in a folder matching a glob pattern, ordered by name with numbers as numbers: the newest comes last.

    Sizes are checked, contents are not (:func:`verify` does). Files without a fitting marker are listed with their
    ``problem``, never hidden: "nothing there" and "nothing usable" are different states.
    """

    suffix = Path(pattern).suffix
    listed = [name for name in filesystem.names(folder) if not name.startswith(".")]
    payloads = {n for n in listed if fnmatch.fnmatchcase(n, pattern) and not n.endswith(MARKER_SUFFIX)}
    if suffix and "*" not in suffix:  # markers whose payload is gone
        markers = fnmatch.filter(listed, pattern.removesuffix(suffix) + MARKER_SUFFIX)
        payloads |= {name.removesuffix(MARKER_SUFFIX) + suffix for name in markers}
    return [_look(Path(folder) / name) for name in sorted(payloads, key=filesystem.natural_key)]


def _look(path: Path) -> Marked:
    marker = marker_path(path)
    try:
        if not exists(marker):
            return Marked(path, {}, "it has no marker: its writing was not finished, or it was copied here alone")
        info, size = filesystem.read_json(marker), filesystem.size_of(path)
    except StorageError as error:
        return Marked(path, {}, "its marker is damaged" if error.errno is None else f"its marker: {error}")
    if not isinstance(info, dict) or not isinstance(info.get("bytes"), int) or not isinstance(info.get("sha256"), str):
        return Marked(path, {}, "its marker is damaged")
    if size is None:
        return Marked(path, info, "the file itself is missing")
    return Marked(path, info, None if size == info["bytes"] else f"it has {size} bytes instead of {info['bytes']}")


def verify(marked: Marked) -> str | None:
    """None if a payload's whole contents fit its marker, else the reason why not."""
    if marked.problem:
        return marked.problem
    try:
        return None if sha256_file(marked.path) == marked.info["sha256"] else "its contents do not fit their checksum"
    except OSError as error:
        return f"it cannot be read ({error})"


def remove_marked(marked: Marked) -> None:
    """Delete marker, then payload: a crash in between leaves a payload that does not count."""
    remove(marker_path(marked.path))
    remove(marked.path)
