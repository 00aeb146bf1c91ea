"""A disk on which the n-th operation fails: the test double of ``svclib.utils.filesystem``.

Use it in one process (``with faults.failing(n): ...``) or, to die in the middle, in a child process whose code calls
``faults.install(n, "exit")`` before it works.
"""

import contextlib
import errno
import os

from svclib.utils import filesystem

EXIT_STATUS = 77


class FaultyDisk(filesystem.Disk):
    """Counts operations; number ``at`` (from 1) raises an OSError, or ends the process at once.

    Args:
        at: The operation that fails; None only counts.
        how: An errno, ``"exit"``, or ``"interrupt"``: a second Ctrl-C in the middle of the operation.
        only: Count only operations of this name, e.g. ``"write"``.
        after: With ``"exit"``: die after doing the operation instead of before (or half-way through a write).
        stays: With an errno: every later operation fails too, as on a full disk.
    """

    def __init__(self, at=None, how=errno.EIO, only=None, after=False, stays=False):
        self.at, self.how, self.only, self.after, self.stays, self.count = at, how, only, after, stays, 0
        self.log = []

    def _run(self, name, *arguments):
        plain = getattr(super(), name)
        self.log.append(name)
        if self.only and name != self.only:
            return plain(*arguments)
        self.count += 1
        if self.at is None or self.count < self.at or (self.count > self.at and not self.stays):
            return plain(*arguments)
        if name == "write":  # a torn write: half of it arrives
            file, data = arguments
            plain(file, data[: len(data) // 2])
            file.flush()
        if self.how == "exit":
            try:
                if self.after and name != "write":
                    plain(*arguments)
            finally:  # also where looking for a file that is not there raises
                os._exit(EXIT_STATUS)
        if self.how == "interrupt":
            raise KeyboardInterrupt
        raise OSError(self.how, os.strerror(self.how))


_NAMES = ("open", "write", "read", "fsync", "fsync_folder", "replace", "link", "remove", "names", "stat", "make_folder")
for _name in _NAMES:

    def _method(self, *arguments, _name=_name):
        return self._run(_name, *arguments)

    setattr(FaultyDisk, _name, _method)


def install(*arguments, **options) -> FaultyDisk:
    """Put a faulty disk in place for the rest of this process."""
    filesystem.active = FaultyDisk(*arguments, **options)
    return filesystem.active


@contextlib.contextmanager
def failing(*arguments, **options):
    """A faulty disk for the length of a block; yields it."""
    before = filesystem.active
    try:
        yield install(*arguments, **options)
    finally:
        filesystem.active = before


def refuse(number: int):
    """An operation that always fails, such as ``link`` where there are no hard links."""

    def operation(*given):
        raise OSError(number, os.strerror(number))

    return operation
