"""A Google Drive that misbehaves as people report it: the test double of ``svclib.utils.filesystem`` under a mount.

The mount is a real folder, as DriveFS has one; beside it lies what has reached the server. Everything written is queued
for upload and only :meth:`FakeDrive.new_machine` decides what arrived: as after a Colab disconnect, the mount then
shows what the server has. Hard links do not exist, deleted files lie in the trash with the size they had, and any
operation can fail, once or for a while, or the whole mount drop.
"""

import errno
import os
import random
import shutil
import time
from pathlib import Path

from svclib.utils import filesystem


class FakeDrive(filesystem.Disk):
    """Faults are attributes; a test sets them and takes them back.

    Attributes:
        mount: The folder ``MyDrive``.
        dropped: Every operation under the mount fails with errno 107.
        gone: The mount is away altogether, as after ``flush_and_unmount``.
        quota: Bytes, trash included; a write beyond it fails with errno 122.
        failing: ``{operation name: [errno, how many times]}``.
        hidden: Names that no listing shows and no look finds, though they are there.
        slow_s: Seconds each operation takes.
        at: ``{number of operation: function}``: something happens in the middle.
        cloud: What has reached the server, ``{relative path: bytes}``.
        queue: What waits for upload: ``(relative path, bytes or None)``.
        trash_bytes: Size of deleted files when they were deleted.
    """

    def __init__(self, mount: Path):
        self.mount = Path(mount)
        self.mount.mkdir(parents=True)
        self.dropped, self.quota, self.slow_s, self.hidden = False, None, 0.0, lambda path: False
        self.failing, self.at, self.count = {}, {}, 0
        self.cloud, self.queue, self.trash_bytes = {}, [], 0

    def under(self, path) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.mount.parent)

    def used_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.mount.rglob("*") if p.is_file()) + self.trash_bytes

    def _enter(self, name, path):
        self.count += 1
        if self.count in self.at:
            self.at.pop(self.count)()
        if not self.under(path):
            return
        if self.slow_s:
            time.sleep(self.slow_s)
        if self.dropped:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))
        if self.failing.get(name, [0, 0])[1] > 0:
            self.failing[name][1] -= 1
            raise OSError(self.failing[name][0], os.strerror(self.failing[name][0]), str(path))
        if name in ("stat", "open-rb") and self.hidden(Path(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def _upload(self, path, data):
        path = Path(os.path.abspath(path))
        if self.under(path) and not path.name.startswith(filesystem.PART_PREFIX):
            self.queue.append((str(path.relative_to(self.mount)), data))

    # Operations ---------------------------------------------------------------------------------------------------

    def open(self, path, mode):
        self._enter("open-rb" if mode == "rb" else "open", path)
        file = super().open(path, mode)
        if mode in ("wb", "xb"):
            self._upload(path, b"")
        return file

    def write(self, file, data):
        self._enter("write", file.name)
        if self.under(file.name) and self.quota is not None and self.used_bytes() + len(data) > self.quota:
            super().write(file, data[: len(data) // 2])  # half a file stays behind
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(file.name))
        super().write(file, data)
        if not Path(file.name).name.startswith(filesystem.PART_PREFIX):
            file.flush()
            self._upload(file.name, Path(file.name).read_bytes())

    def read(self, file, n_bytes):
        self._enter("read", file.name)
        return super().read(file, n_bytes)

    def names(self, folder):
        self._enter("names", folder)
        return [n for n in super().names(folder) if not (self.under(folder) and self.hidden(Path(folder) / n))]

    def stat(self, path):
        self._enter("stat", path)
        return super().stat(path)

    def make_folder(self, folder):
        self._enter("make_folder", folder)
        super().make_folder(folder)

    def fsync(self, file):
        self._enter("fsync", file.name)

    def fsync_folder(self, folder):
        self._enter("fsync_folder", folder)

    def replace(self, source, target):
        self._enter("replace", target)
        super().replace(source, target)
        self._upload(target, Path(target).read_bytes() if self.under(target) else None)

    def link(self, source, target):
        self._enter("link", target)
        if self.under(target):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(target))
        super().link(source, target)

    def remove(self, path):
        self._enter("remove", path)
        if self.under(path) and Path(path).is_file():
            self.trash_bytes += Path(path).stat().st_size
        super().remove(path)
        self._upload(path, None)

    # Disconnects --------------------------------------------------------------------------------------------------

    def new_machine(self, lost: int = 0, half: bool = False, keep=None) -> None:
        """The machine is lost and another one mounts: of what waited, the last ``lost`` never arrived.

        Args:
            half: Of the newest file that arrived, only the first half did.
            keep: A function of the position in the queue: whether it arrived. Instead of ``lost``.
        """
        arrived = [e for i, e in enumerate(self.queue[: len(self.queue) - lost]) if keep is None or keep(i)]
        if half and arrived and arrived[-1][1]:
            arrived[-1] = (arrived[-1][0], arrived[-1][1][: len(arrived[-1][1]) // 2])
        for path, data in arrived:
            if data is None:
                self.cloud.pop(path, None)
            else:
                self.cloud[path] = data
        self.queue = []
        shutil.rmtree(self.mount)
        self.mount.mkdir()
        for path, data in self.cloud.items():
            (self.mount / path).parent.mkdir(parents=True, exist_ok=True)
            (self.mount / path).write_bytes(data)


def random_loss(rng: random.Random, share: float):
    """For ``keep``: uploads arrive in no order, and a share of them not at all."""
    return lambda position: rng.random() >= share
