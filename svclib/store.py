"""A person's folder, local or on Google Drive: atomic commits, checksums, retention. The only writer under it.

A file is committed by writing it beside its place, forcing it to the disk and renaming it; a *marked* file (checkpoint,
dataset shard) also gets a new unique name and, last of all, a marker ``<stem>.ok.json`` with its size and SHA-256. Where
a mounted Drive may lose, cut or delay any file, a payload whose marker is absent or does not fit was simply never
committed, and the one before it is used. Every primitive file operation goes through :data:`disk`, so that tests can
make the n-th one fail.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

DRIVE_MOUNT = Path("/content/drive")
DRIVE = DRIVE_MOUNT / "MyDrive"
MARKER_SUFFIX = ".ok.json"
PART_PREFIX = ".part-"
CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
DRIVE_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR, errno.ENOSYS, errno.EBADF, errno.EPERM)


class StoreError(OSError, ValueError):
    """A file that could not be kept or read; the message names it and says what to do. ``errno`` is the system's."""

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.errno = number


class Disk:
    """The few primitive operations everything below is made of."""

    def open(self, path: Path, mode: str):
        """Open a file in binary mode."""
        return open(path, mode)

    def write(self, file, data: bytes) -> None:
        """Append bytes to an open file."""
        file.write(data)

    def read(self, file, n_bytes: int) -> bytes:
        """Read at most ``n_bytes`` from an open file."""
        return file.read(n_bytes)

    def fsync(self, file) -> None:
        """Force an open file's contents to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def fsync_folder(self, folder: Path) -> None:
        """Force a folder's entries to the disk, where the system can do that."""
        if os.name == "nt":
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(handle)

    def replace(self, source: Path, target: Path) -> None:
        """Rename over whatever is there."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails if the name exists."""
        os.link(source, target)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        os.remove(path)


disk = Disk()


# Committing -----------------------------------------------------------------------------------------------------------


def commit_file(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Commit what ``write`` puts into the path it is given; the old file stays whole until the new one is.

    Args:
        path: The file to make or replace. Its folder is made if needed.
        write: Receives a path in the same folder with the same suffix and writes the whole file there.

    Raises:
        StoreError: if it cannot be written; what was at ``path`` is untouched.
    """
    path = Path(path)
    _on_drive_again(path, lambda: _commit(path, write, lambda part: disk.replace(part, path)))
    return path


def commit_bytes(path: str | Path, data: bytes) -> Path:
    """Commit bytes; see :func:`commit_file`."""
    return commit_file(path, lambda part: _put_bytes(part, data))


def commit_new(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Commit under a name that is not taken: ``name.wav``, else ``name 2.wav``, ``name 3.wav``, ... Never overwrites.

    Returns:
        The path that was used.
    """
    path = Path(path)
    used = []

    def place(part: Path) -> None:
        used[:] = [_place_new(part, path)]

    _on_drive_again(path, lambda: _commit(path, write, place))
    return used[0]


def copy_file(source: str | Path, target: str | Path) -> Path:
    """Commit a copy of a file; see :func:`commit_file`."""
    return commit_file(target, lambda part: shutil.copyfile(source, part))


def copy_tree(source: str | Path, target: str | Path) -> list[Path]:
    """Copy the files of a folder that are missing or differ in size in ``target``; returns the copies made."""
    source, target = Path(source), Path(target)
    copied = []
    for path in sorted(p for p in source.rglob("*") if p.is_file() and not p.name.startswith(PART_PREFIX)):
        twin = target / path.relative_to(source)
        if not twin.is_file() or twin.stat().st_size != path.stat().st_size:
            copied.append(copy_file(path, twin))
    return copied


def append_line(path: str | Path, record: dict) -> None:
    """Add one JSON object as a line to a log; a torn last line of an earlier crash is closed first."""
    path = Path(path)
    line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if disk.read(file, 1) == b"\n" else b"\n" + line
            disk.write(file, line + b"\n")


def read_lines(path: str | Path) -> list[dict]:
    """The objects of a log made by :func:`append_line`; torn lines are left out, a missing file is an empty log."""
    path = Path(path)
    if not path.is_file():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


def write_json(path: str | Path, value: Any) -> Path:
    """Commit a value as readable JSON with sorted keys; NaN and infinities are refused (ValueError)."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True)
    return commit_bytes(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        StoreError: if the file is missing, larger than 64 MB or not JSON.
    """
    path = Path(path)
    with _told(path, "read"):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise StoreError(f"'{path}' is larger than 64 MB: this is no JSON file of svclib's.")
        with disk.open(path, "rb") as file:
            data = disk.read(file, MAX_JSON_BYTES + 1)
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"'{path}' is not whole JSON ({error}); it was damaged or not written by svclib.") from None


def remove(path: str | Path) -> None:
    """Delete a file, emptying it first: on Drive a deleted file lies in the trash and counts against the quota."""
    path = Path(path)
    with _told(path, "delete"):
        if path.is_file() and not path.is_symlink():
            disk.open(path, "wb").close()
        with contextlib.suppress(FileNotFoundError):
            disk.remove(path)


def remove_parts(folder: str | Path) -> int:
    """Delete unfinished files of dead processes of this machine, and any older than a day; returns how many."""
    count = 0
    for part in Path(folder).glob(f"{PART_PREFIX}*"):
        host, _, rest = part.name[len(PART_PREFIX) :].partition("~")
        pid = rest.partition("~")[0]
        dead = host == _host() and pid.isdigit() and not _alive(int(pid))
        with contextlib.suppress(OSError):
            if dead or time.time() - part.stat().st_mtime > 86400:
                remove(part)
                count += 1
    return count


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's contents, hexadecimal, read by blocks."""
    digest = hashlib.sha256()
    with _told(Path(path), "read"), disk.open(Path(path), "rb") as file:
        while block := disk.read(file, CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def free_space_check(folder: str | Path, needed_bytes: int) -> None:
    """Make sure a folder's disk has room (advisory on Drive, where the number is the machine's).

    Raises:
        StoreError: with the megabytes needed and free.
    """
    free = shutil.disk_usage(_existing(Path(folder))).free
    if free < needed_bytes:
        raise StoreError(
            f"Not enough space in '{folder}': {needed_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. "
            f"{_space_advice(Path(folder))}",
            errno.ENOSPC,
        )


def safe_name(text: str, fallback: str = "untitled") -> str:
    """A file name (without suffix) made of what a person wrote: no separators, control characters or hidden names.

    Letters of every script, spaces and most signs stay; at most 120 bytes.
    """
    name = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', " ", text).strip(" .")
    name = name.encode("utf-8", "ignore")[:120].decode("utf-8", "ignore").strip(" .")
    return name or fallback


# Marked files ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Marked:
    """A payload with its commit marker.

    Attributes:
        path: The payload.
        info: What the marker says: ``bytes``, ``sha256`` and whatever was given to :func:`put_marked`; {} without one.
        problem: None if marker and size fit, else why the file does not count, as a sentence without full stop.
    """

    path: Path
    info: dict
    problem: str | None = None


def marker_path(path: str | Path) -> Path:
    """``<stem>.ok.json`` beside a payload."""
    return Path(path).with_suffix(MARKER_SUFFIX)


def put_marked(path: str | Path, write: Callable[[Path], Any], info: dict | None = None) -> Marked:
    """Commit a payload under a new unique name, read it back, then commit its marker. Until then it does not count.

    Raises:
        StoreError: if the name is already committed, or the payload cannot be written or reads back differently.
    """
    path = Path(path)
    if marker_path(path).exists():
        raise StoreError(f"'{path.name}' is already committed in '{path.parent}'; choose a new name.", errno.EEXIST)
    written: list[str] = []

    def write_and_hash(part: Path) -> None:
        write(part)
        written[:] = [sha256_file(part)]

    commit_file(path, write_and_hash)
    if sha256_file(path) != written[0]:
        raise StoreError(f"'{path}' reads back differently from what was written; the disk or the mount is not well.")
    marker = {**(info or {}), "bytes": path.stat().st_size, "sha256": written[0]}
    write_json(marker_path(path), marker)
    return Marked(path, marker)


def find_marked(folder: str | Path, pattern: str) -> list[Marked]:
    """Payloads in a folder matching a glob pattern, ordered by name with numbers as numbers: the newest comes last.

    Sizes are checked, contents are not (:func:`verify` does). Files without a fitting marker are listed with their
    ``problem``, never hidden: "nothing there" and "nothing usable" are different states.
    """
    folder = Path(folder)
    payloads = {p for p in folder.glob(pattern) if not p.name.startswith(".") and not p.name.endswith(MARKER_SUFFIX)}
    suffix = Path(pattern).suffix
    if suffix and "*" not in suffix:  # markers whose payload is gone
        markers = folder.glob(pattern[: -len(suffix)] + MARKER_SUFFIX)
        payloads |= {m.with_name(m.name[: -len(MARKER_SUFFIX)] + suffix) for m in markers if not m.name.startswith(".")}
    return [_look(path) for path in sorted(payloads, key=_natural)]


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


# The person's folder --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Base:
    """Where a person's things lie; every attribute is an existing folder.

    Attributes:
        root: All of it.
        audio: Recordings, one sub-folder per voice; svclib never writes there except what is fetched into it.
        examples: Songs to convert.
        output: Conversions, never overwritten.
        runs: Training runs, one sub-folder each.
        datasets: Prepared datasets, one sub-folder each.
        instruments: Instruments, ready to share.
        on_drive: True if it is on a mounted Google Drive.
    """

    root: Path
    audio: Path
    examples: Path
    output: Path
    runs: Path
    datasets: Path
    instruments: Path
    on_drive: bool = False


def on_colab() -> bool:
    """True inside Google Colab."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def base_folder(name: str = "svclib", base: str | Path | None = None) -> Base:
    """Make and return the person's folder.

    Args:
        name: Folder name on Drive (Colab only).
        base: An explicit folder. Without one: on Colab ``MyDrive/<name>`` (Drive is mounted if it is not yet), elsewhere
            the environment variable ``SVCLIB_HOME``, else ``svclib_home`` in the working folder.

    Raises:
        StoreError: if Drive is not mounted, or the folder cannot be written. Nothing is ever made under an absent mount.
    """
    if base is not None:
        root = Path(base).expanduser()
    elif on_colab():
        _mount_drive()
        root = DRIVE / name
    else:
        root = Path(os.environ.get("SVCLIB_HOME") or "svclib_home").expanduser()
    root = Path(os.path.abspath(root))
    on_drive = root.is_relative_to(DRIVE_MOUNT)
    if on_drive and not DRIVE.is_dir():
        raise StoreError(
            f"Google Drive is not mounted, so '{root}' cannot be used. Mount it (the folder symbol at the left, then "
            "'Mount Drive') and run this cell again, or choose a local folder such as /content/svclib."
        )
    parts = ("audio", "examples", "output", "runs", "datasets", "instruments")
    with _told(root):
        for part in parts:
            (root / part).mkdir(parents=True, exist_ok=True)
        probe = root / f"{PART_PREFIX}{_host()}~{os.getpid()}~probe"
        disk.open(probe, "wb").close()
        disk.remove(probe)
    return Base(root, *(root / part for part in parts), on_drive)


def _mount_drive() -> None:
    if DRIVE.is_dir():  # mount() would ask for permission again
        return
    try:
        from google.colab import drive

        drive.mount(str(DRIVE_MOUNT))
    except Exception as error:  # the person declined, or the service failed: both end in one sentence
        raise StoreError(
            f"Google Drive could not be mounted ({error}). Run the cell again and allow access, or use a local folder "
            "(its files vanish with the Colab machine)."
        ) from error
    if not DRIVE.is_dir():
        raise StoreError("Google Drive was not mounted. Run the cell again and allow access, or use a local folder.")


# Inside ---------------------------------------------------------------------------------------------------------------


def _commit(path: Path, write: Callable[[Path], Any], place: Callable[[Path], None]) -> None:
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unique = f"{PART_PREFIX}{_host()}~{os.getpid()}~{uuid.uuid4().hex[:8]}"
        part = path.parent / f"{unique}{path.suffix if len(path.suffix) < 32 else ''}"
        try:
            write(part)
            with disk.open(part, "rb+") as file:
                disk.fsync(file)
            place(part)
        except BaseException:
            with contextlib.suppress(OSError):
                remove(part)
            raise
        disk.fsync_folder(path.parent)


def _put_bytes(path: Path, data: bytes) -> None:
    with disk.open(path, "wb") as file:
        for start in range(0, len(data), CHUNK_BYTES):
            disk.write(file, data[start : start + CHUNK_BYTES])


def _place_new(part: Path, path: Path) -> Path:
    """Give the part the first free name; atomic where hard links exist, else by reserving an empty file."""
    for number in range(1, 100000):
        stem = path.stem
        if number > 1:
            room = 240 - len(path.suffix.encode()) - len(str(number))
            stem = f"{stem.encode()[:room].decode('utf-8', 'ignore')} {number}"
        target = path.with_name(stem + path.suffix)
        if target.exists():
            continue
        try:
            try:
                disk.link(part, target)
            except FileExistsError:
                raise
            except OSError:  # no hard links here (Drive, FAT)
                disk.open(target, "xb").close()
                try:
                    disk.replace(part, target)
                except BaseException:
                    disk.remove(target)
                    raise
            else:
                disk.remove(part)
            return target
        except FileExistsError:
            continue
    raise StoreError(f"There are too many files called '{path.name}' in '{path.parent}'; move some away.")


def _look(path: Path) -> Marked:
    marker = marker_path(path)
    if not marker.exists():
        return Marked(path, {}, "it has no marker: its writing was not finished, or it was copied here alone")
    try:
        info = read_json(marker)
    except StoreError:
        return Marked(path, {}, "its marker is damaged")
    if not isinstance(info, dict) or not isinstance(info.get("bytes"), int) or not isinstance(info.get("sha256"), str):
        return Marked(path, {}, "its marker is damaged")
    if not path.is_file():
        return Marked(path, info, "the file itself is missing")
    size = path.stat().st_size
    problem = None if size == info["bytes"] else f"it has {size} bytes instead of {info['bytes']}"
    return Marked(path, info, problem)


def _on_drive_again(path: Path, action: Callable[[], Any]) -> None:
    """Do it; on a mounted Drive, try again after a while when the error is of the passing kind."""
    for pause_s in DRIVE_PAUSES_S if Path(os.path.abspath(path)).is_relative_to(DRIVE_MOUNT) else ():
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause_s)
    return action()


@contextlib.contextmanager
def _told(path: Path, verb: str = "write"):
    """Turn the system's errors into a sentence that names the file and the remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            free = shutil.disk_usage(_existing(path.parent)).free
            text = f"No space left while writing '{path}' ({free / 1e6:.0f} MB are free). {_space_advice(path)}"
        elif error.errno == errno.ENOENT:
            text = f"There is no file '{path}'."
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            text = f"'{path}' may not be used to {verb} ({error.strerror}). Choose a folder of your own."
        elif error.errno in _TRANSIENT:
            text = (
                f"Could not {verb} '{path}' ({error.strerror}). The disk or the Drive connection failed; what was "
                "committed before is untouched. Try again; on Colab, restart the session if it stays."
            )
        else:
            text = f"Could not {verb} '{path}': {error.strerror or error}."
        raise StoreError(text, error.errno) from error


def _space_advice(path: Path) -> str:
    if Path(os.path.abspath(path)).is_relative_to(DRIVE_MOUNT):
        return "Empty the trash of Google Drive or delete files there, then go on; what was committed is untouched."
    return "Delete something on this disk, then go on; what was committed before is untouched."


def _existing(folder: Path) -> Path:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder if folder.is_dir() else Path(tempfile.gettempdir())


def _natural(path: Path) -> list:
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", path.name)]


def _no_constant(text: str):
    raise ValueError(f"{text} is not JSON")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())[:40] or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
