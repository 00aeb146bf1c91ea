"""The few primitive file operations everything is written with, and the sentences for what can go wrong in them.

Tests put another :class:`Disk` into :data:`active` to make the n-th operation fail.
"""

import contextlib
import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svclib.utils.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DRIVE_MOUNT = Path("/content/drive")
DRIVE_PAUSES_S = (1.0, 2.0, 4.0, 8.0)
PART_PREFIX = ".part-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TRANSIENT = (errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EISDIR, errno.ENOSYS, errno.EBADF, errno.EPERM)


class Disk:
    """The few primitive operations everything below is made of."""

    def open(self, path: Path, mode: str):
        """Open a file in binary mode."""
        return open(path, mode)

    def names(self, folder: Path) -> list[str]:
        """What a folder lists."""
        return os.listdir(folder)

    def stat(self, path: Path) -> os.stat_result:
        """Size and times of a file."""
        return os.stat(path)

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, file, data: bytes | memoryview) -> None:
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


active = Disk()


def free_space_check(folder: str | Path, needed_bytes: int) -> None:
    """Make sure a folder's disk has room (advisory on Drive, where the number is the machine's).

    The folder need not exist yet. Without room a :class:`StorageError` tells the megabytes needed and free.
    """
    free = shutil.disk_usage(_existing(Path(folder))).free
    if free < needed_bytes:
        raise StorageError(
            f"Not enough space in '{folder}': {needed_bytes / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. "
            f"{_space_advice(Path(folder))}",
            errno.ENOSPC,
        )


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


def again(path: Path, action: Callable[[], Any]) -> Any:
    """Do it; on a mounted Drive, try again after a while when the error is of the passing kind."""
    for pause_s in DRIVE_PAUSES_S if on_drive(path) else ():
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT:
                raise
            time.sleep(pause_s)
    return action()


@contextlib.contextmanager
def told(path: Path, verb: str = "write"):
    """Turn the system's errors into a sentence that names the file and the remedy."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).name.startswith(PART_PREFIX):
            path = Path(error.filename)
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
        raise StorageError(text, error.errno) from error


def sentence(error: Exception) -> str:
    """The words of an error; those of the system, which begin with a number, made a sentence."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return (
            f"'{error.filename}' could not be used: {error.strerror.lower()}. If it was moved or deleted, put it back, "
            "then try again."
        )
    return str(error)


def _space_advice(path: Path) -> str:
    if on_drive(path):
        return "Empty the trash of Google Drive or delete files there, then go on; what was committed is untouched."
    return "Delete something on this disk, then go on; what was committed before is untouched."


def _existing(folder: Path) -> Path:
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return folder if os.path.isdir(folder) else Path(tempfile.gettempdir())


def host_name() -> str:
    """This machine's name as it may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())[:40] or "host"


def process_alive(pid: int) -> bool:
    """Whether a process of this machine is still there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


class Scratch:
    """A folder on this machine's own disk, removed by :meth:`close` or when the process ends.

    A killed process leaves its folder behind, and the next one that makes such a folder removes it: the owner holds a
    lock on a file in it for as long as it lives, so a lock that can be had means that the owner is gone. Windows has
    no such locks; there nothing of others is removed.

    Args:
        prefix: How the folder's name begins, ``svclib-...``; only folders of this beginning are looked at.
    """

    def __init__(self, prefix: str):
        _remove_left_behind(prefix)
        self._folder, self._lock = tempfile.TemporaryDirectory(prefix=prefix), None
        home = Path(self._folder.name)
        self.path = home / "files"
        self.path.mkdir()
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: nobody will remove it, then
                self._lock = open(home / "owner.part", "wb")  # noqa: SIM115  (open while the process lives)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.replace(home / "owner.part", home / "owner")  # under this name it is always locked

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()
        if self._lock is not None:
            self._lock.close()


def is_ours(folder: Path) -> bool:
    """A folder of this user: on a shared machine anybody may make one of any name in the temporary folder."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


def _remove_left_behind(prefix: str) -> None:
    """Remove this user's scratch folders whose owner is no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*") if fcntl is not None else ():
        with contextlib.suppress(OSError):  # BlockingIOError: its owner lives
            if is_ours(folder):
                with open(folder / "owner", "rb+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
