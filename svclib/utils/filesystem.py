"""Primitive file operations, reading, and translation of the system's errors into sentences.

A file that is absent and a file that cannot be reached are different states: a mount that dropped shows nothing, and
work taken for absent would be begun anew. Everything below raises where the disk or the Drive does not answer. Tests
put another :class:`Disk` into :data:`active` to make the n-th operation fail.
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import unicodedata
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from svclib.utils.errors import StorageError

DRIVE_MOUNT = Path("/content/drive")
DRIVE_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
PART_PREFIX = ".part-"
CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
MAX_NAME = 255  # characters: no file system has longer names
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_CODE_PAGES = ["cp932", "gb18030", "big5", "cp949", "cp866", "cp1251", "cp1252", "cp850"]
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR, errno.ENOSYS, errno.EBADF, errno.EPERM)


def _open_regular(path: str, flags: int) -> int:
    """An opener of regular files only: others may have left a link to write through, or a pipe to wait at for ever."""
    flags |= getattr(os, "O_NONBLOCK", 0)
    if flags & (os.O_WRONLY | os.O_RDWR):
        flags |= getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(kind := os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, "it is not a regular file", str(path))
    return handle


class Disk:
    """The primitive operations that everything below is made of; files are opened in binary modes."""

    open: Callable[..., Any] = staticmethod(functools.partial(open, opener=_open_regular))
    names = staticmethod(os.listdir)
    stat = staticmethod(os.stat)
    make_folder = staticmethod(functools.partial(os.makedirs, exist_ok=True))
    read = staticmethod(lambda file, n_bytes: file.read(n_bytes))
    write = staticmethod(lambda file, data: file.write(data))
    replace = staticmethod(os.replace)
    link = staticmethod(os.link)
    remove = staticmethod(os.remove)

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


active = Disk()


@contextlib.contextmanager
def translate_os_errors(path: Path, verb: str = "write"):
    """Turn OSError into a :class:`StorageError` that names the file and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).name.startswith(PART_PREFIX):
            path = Path(error.filename)
        reason, hint = error.strerror or error, ""
        text = f"Could not {verb} '{path}': {reason}."
        if error.errno in _NO_SPACE:
            free_mb = _free_bytes(path.parent) / 1e6
            text, hint = f"No space left while writing '{path}' ({free_mb:.0f} MB are free).", _space_hint(path)
        elif error.errno == errno.ENOENT:
            text = f"There is no file '{path}'."
        elif error.errno == errno.ELOOP:
            text, hint = f"'{path}' is a link, and nothing is written through links.", "Put the file itself there."
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            text, hint = f"No permission to {verb} '{path}' ({reason}).", "Choose a folder of your own."
        elif error.errno in _TRANSIENT:
            text = f"Could not {verb} '{path}' ({reason}): the disk or the Drive connection failed."
            hint = "What was committed before is untouched. Try again; on Colab, restart the session if it stays."
        raise StorageError(text, error.errno, path=path, hint=hint) from error


def retry(path: Path, action: Callable[[], Any]) -> Any:
    """Call ``action``; on a mounted Drive, again after pauses while the error is a transient one."""
    for pause_s in DRIVE_PAUSES_S if on_drive(path) else ():
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause_s)
    return action()


def error_text(error: Exception) -> str:
    """The text of an error as a sentence; the system's own texts begin with a number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        why = error.strerror.lower()
        return f"'{error.filename}' could not be used: {why}. If it was moved or deleted, put it back, then try again."
    return str(error)


def free_space_check(folder: str | Path, needed_bytes: int) -> None:
    """Raise StorageError if a folder's disk lacks room (advisory on Drive, where the number is the machine's)."""
    folder = Path(folder)
    needed_mb, free_mb = needed_bytes / 1e6, _free_bytes(folder) / 1e6
    if free_mb < needed_mb:
        text = f"Not enough space in '{folder}': {needed_mb:.0f} MB are needed, {free_mb:.0f} MB are free."
        raise StorageError(text, errno.ENOSPC, path=folder, hint=_space_hint(folder))


def _space_hint(path: Path) -> str:
    what = "Empty the trash of Google Drive or delete files there" if on_drive(path) else "Delete files on this disk"
    return f"{what}, then go on; what was committed before is untouched."


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist."""
    there = next((f for f in (folder, *folder.parents) if os.path.isdir(f)), tempfile.gettempdir())
    return shutil.disk_usage(there).free


def on_drive(path: str | Path) -> bool:
    """True for a path under the mount of Google Drive."""
    return Path(os.path.abspath(path)).is_relative_to(DRIVE_MOUNT)


def make_folder(folder: Path) -> None:
    """Make a folder, but never under a mount that is gone: files there would keep Drive from being mounted again."""
    if on_drive(folder):
        top = Path(os.path.abspath(folder)).relative_to(DRIVE_MOUNT).parts[:1]
        try:
            active.stat(DRIVE_MOUNT.joinpath(*top))
        except FileNotFoundError:
            raise OSError(errno.ENOTCONN, "Google Drive is not mounted", str(folder)) from None
    active.make_folder(folder)


def size_of(path: str | Path) -> int | None:
    """Size of a file in bytes, None where there is none; StorageError if the disk or the Drive does not answer."""
    path = Path(path)
    with translate_os_errors(path, "read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return retry(path, lambda: active.stat(path)).st_size
    return None


def exists(path: str | Path) -> bool:
    """True if a path is there; see :func:`size_of`."""
    return size_of(path) is not None


def names(folder: str | Path) -> list[str]:
    """Names in a folder, sorted; [] where there is no folder. Raises as :func:`size_of` does."""
    folder = Path(folder)
    with translate_os_errors(folder, "read"), contextlib.suppress(FileNotFoundError):
        return sorted(retry(folder, lambda: active.names(folder)))
    return []


def read_bytes(path: str | Path) -> bytes:
    """The contents of a file."""
    path = Path(path)
    with translate_os_errors(path, "read"):
        size = active.stat(path).st_size
        with active.open(path, "rb") as file:
            return active.read(file, size + 1)  # one more: a file that grew fails its checksum


def read_json(path: str | Path) -> Any:
    """The value in a JSON file; StorageError if it is missing, larger than 64 MB or not JSON (NaN is not)."""
    path = Path(path)
    if (size_of(path) or 0) > MAX_JSON_BYTES:
        raise StorageError(f"'{path}' is larger than 64 MB: not a JSON file of svclib.", path=path)
    data = read_bytes(path)
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = f"'{path}' is not whole JSON ({error}); it is damaged or not a file of svclib."
        raise StorageError(text, path=path) from None


def _refuse_constant(text: str):
    raise ValueError(f"{text} is not JSON")


def json_text(value: Any, **layout: Any) -> str:
    """JSON that can be stored as UTF-8, with letters of every script as they are; NaN and infinities are a ValueError.

    ``layout`` are options of ``json.dumps``. Bytes of a file name that are no UTF-8 (lone surrogates) are escaped.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def read_lines(path: str | Path) -> list[dict]:
    """The objects of a log of ``atomic_store.append_lines``; torn lines are left out, no file is an empty log."""
    records = []
    for line in read_bytes(path).split(b"\n") if exists(path) else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's contents, hexadecimal, read by blocks."""
    digest = hashlib.sha256()
    with translate_os_errors(Path(path), "read"), active.open(Path(path), "rb") as file:
        while block := active.read(file, CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_name(text: Any) -> bool:
    """True for a text that may name a singer, a label, a recording, a run or an instrument: the one rule for names.

    1 to 255 characters of any script, spaces, joiners (U+200C, U+200D) and emoji; no control characters, line breaks,
    changes of the writing direction, or lone surrogates (bytes of a file name that are not UTF-8). Names in files of
    others are checked with it; those of files and folders become legal by :func:`as_name` when they are collected.
    """
    return isinstance(text, str) and 0 < len(text) <= MAX_NAME and not _NOT_IN_NAMES.search(text)


def as_name(text: str) -> str:
    """A legal name (:func:`is_name`) for a file's or folder's name: composed characters (NFC), bytes that are not UTF-8
    decoded by :func:`legacy_text`, spaces for characters that no name may hold, at most 255 characters.
    """
    if re.search("[\udc80-\udcff]", text):
        with contextlib.suppress(UnicodeEncodeError):
            text = legacy_text(text.encode("utf-8", "surrogateescape"))
    return _NOT_IN_NAMES.sub(" ", unicodedata.normalize("NFC", text))[:MAX_NAME]


def name_key(text: str) -> str:
    """Equal for names that some file system takes for one: they differ in case or in the normal form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sort key of a name with its numbers as numbers: ``Take 2`` comes before ``Take 10``."""
    return [(int(t), "") if t.isdecimal() else (-1, t.casefold()) for t in re.split(r"(\d+)", text, flags=re.ASCII)]


def legacy_text(data: bytes) -> str:
    """Text of bytes in an unknown encoding: UTF-8, else the code page of Windows or DOS that fits best.

    A guess, and a better one the more text there is: give all names of a zip in one call.
    """
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode("utf-8")
    words = b"".join(word for word in re.findall(rb"[\x40-\xff]+", data) if not word.isascii())
    high = [byte for byte in words if byte > 127]
    if len(high) < 0.4 * len(words):  # accents among plain letters: below 0xA6 in DOS, above in Windows
        return data.decode("cp850" if sum(byte < 0xA6 for byte in high) > len(high) / 2 else "cp1252", "replace")
    from charset_normalizer import from_bytes

    best = from_bytes(data, cp_isolation=_CODE_PAGES, threshold=0.5).best()
    return str(best) if best else data.decode("cp1252", "replace")


def safe_name(text: str, fallback: str = "untitled", n_bytes: int = 120) -> str:
    """A file name (without suffix) of at most ``n_bytes``: no separators, control characters or hidden names."""
    name = re.sub(r'[/\\:*?"<>|]+', " ", as_name(text)).strip(" .")
    name = name.encode("utf-8", "ignore")[:n_bytes].decode("utf-8", "ignore").strip(" .")
    return name or fallback


def safe_path(parts: tuple[str, ...]) -> Path:
    """A relative path of names that every system accepts: no part can lead outside the folder that it is joined to."""
    *folders, last = parts
    stem, suffix = Path(last).stem, Path(last).suffix
    return Path(*map(safe_name, folders), safe_name(stem) + re.sub(r"[^.\w]", "", suffix[:12]))


def is_system_file(name: str) -> bool:
    """True for the names of hidden files and those that Windows and macOS leave in folders and zips."""
    return name.startswith(".") or name.lower() in ("__macosx", "desktop.ini", "thumbs.db")


def part_path(folder: Path, suffix: str = "") -> Path:
    """A new name for a file that this process has not finished writing; ``atomic_store.remove_parts`` knows it."""
    return folder / f"{PART_PREFIX}{process_scope()}~{os.getpid()}~{uuid.uuid4().hex[:8]}{suffix}"


def host_name() -> str:
    """A name for this machine that does not disclose its own: files in shared folders hold it."""
    return f"machine-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]}"


def without_folders(text: str) -> str:
    """A text for a file that may be shared: of every absolute path only the last name is left."""
    text = re.sub(r"'(?:[A-Za-z]:)?[/\\](?:[^'\n]*[/\\])?([^'/\\\n]+)[/\\]?'", r"'\1'", text)
    return re.sub(r"(?<![\w.:/'])/(?:[^\s/']+/)+([^\s/']+)", r"\1", text).replace(os.path.expanduser("~"), "~")


def process_scope() -> str:
    """Within which a process id has one meaning: a digest of machine, boot and PID namespace (that of a container)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def process_alive(pid: int) -> bool:
    """True if a process of this :func:`process_scope` is still there."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as error:
        return not isinstance(error, ProcessLookupError)
    return True


def is_own_folder(folder: Path) -> bool:
    """True for a folder, no link, of this user that no other may write into: on a shared machine they may make one."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return stat.S_ISDIR(found.st_mode) and own


def refuse_links(folder: str | Path, *names: str) -> None:
    """Raise StorageError if a name in a folder that svclib would write to leads elsewhere: archives may hold links."""
    for path in (Path(folder) / name for name in names):
        if path.is_symlink():
            hint = "Put what it points to there, or take another folder."
            raise StorageError(f"'{path}' is a link, which svclib does not write through.", path=path, hint=hint)


def cache_folder() -> Path:
    """Folder of downloaded models: ``SVCLIB_CACHE``, else the system's place for this user's caches."""
    return Path(os.environ.get("SVCLIB_CACHE") or platformdirs.user_cache_dir("svclib", appauthor=False))


def state_folder(name: str) -> Path:
    """Folder for files of this user that outlive the process and cannot be fetched again; it need not exist."""
    home = os.environ.get("SVCLIB_CACHE") or platformdirs.user_state_dir("svclib", appauthor=False)
    return Path(home) / name


def make_own_folder(folder: Path) -> Path:
    """Make a folder that is readable by its owner only; StorageError if it is there and others may write into it."""
    with translate_os_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own_folder(folder):
        hint = "Delete it, or name another place in the environment variable SVCLIB_CACHE."
        raise StorageError(f"'{folder}' belongs to another user, or others may write into it.", path=folder, hint=hint)
    return folder


class ScratchDir:
    """A folder on this machine's own disk, removed by :meth:`close` or when the process ends.

    Its owner holds the lock ``owner.lock`` in it while it lives. A killed process leaves its folder behind; the next
    one that makes a folder with this prefix removes those whose lock is free.
    """

    def __init__(self, prefix: str):
        for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            lock = folder / "owner.lock"
            if is_own_folder(folder) and lock.is_file() and (folder / "files").is_dir():
                with contextlib.suppress(OSError, Timeout), FileLock(lock).acquire(blocking=False):
                    shutil.rmtree(folder, ignore_errors=True)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix)
        home = Path(self._folder.name)
        self.path = home / "files"
        self._lock = FileLock(home / "owner.lock")
        self._lock.acquire()
        self.path.mkdir()

    def close(self) -> None:
        """Remove the folder."""
        self._lock.release()
        self._folder.cleanup()
