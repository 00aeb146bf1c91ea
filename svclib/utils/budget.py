"""Cost of the work on one file, asked before it begins: bytes on disk, bytes in memory, seconds, values.

A file of somebody else, or a damaged one of one's own, shall not fill the disk or the memory, nor keep a machine busy
for hours. What else a format allows (ratios of compression, names, shapes) is checked where it is read.
"""

from pathlib import Path
from typing import NamedTuple

import psutil

from svclib.utils import filesystem
from svclib.utils.errors import StorageError, printable

SPARE_BYTES = 1 << 29  # stay free on a disk that is filled from outside


class Cost(NamedTuple):
    """Resources that some work takes; 0: nothing that grows with it."""

    disk_bytes: float = 0
    memory_bytes: float = 0
    seconds: float = 0  # of sound
    values: float = 0  # entries of a zip, weights of a network, numbers of a preset


# What -> the most that it may cost.
LIMITS = {
    "zip of recordings": Cost(disk_bytes=100 << 30, values=50_000),
    "download": Cost(disk_bytes=100 << 30),
    "upload": Cost(disk_bytes=100 << 30),
    "recording": Cost(seconds=12 * 3600),  # some kilobytes can unpack to more
    "song": Cost(memory_bytes=8 << 30, seconds=2 * 3600),
    "preset": Cost(values=100_000),
    "network": Cost(values=250_000_000),
    "instrument": Cost(memory_bytes=(1 << 30) + (64 << 20), values=40),
    "content encoder": Cost(memory_bytes=4 << 30),
    "checkpoint": Cost(disk_bytes=16 << 30, memory_bytes=16 << 30),
    "shard of a dataset": Cost(disk_bytes=16 << 30),
    "copy of a dataset": Cost(disk_bytes=1 << 40),
    "trace": Cost(memory_bytes=1 << 30, values=500),
    "F0 edit": Cost(memory_bytes=2_000_000),
}
SONG_BYTES_PER_S = 1e6  # of memory: the sound, its features, and the parts of the result
_UNITS = {"disk_bytes": "MB on disk", "memory_bytes": "MB of memory", "seconds": "seconds", "values": "values"}


def require(
    kind: str, name: str, cost: Cost, folder: str | Path | None = None, hint: str = "", error: type = StorageError
) -> None:
    """Refuse work of a kind in :data:`LIMITS` that costs more than they allow, or than this machine has free.

    The bytes on disk go to ``folder``, which need not exist. The message, raised as ``error``, names what is needed
    and the limit.
    """
    for field, wanted, most in zip(Cost._fields, cost, LIMITS[kind], strict=True):
        if wanted > most:
            amounts = [f"{x / 1e6:,.0f}" if field.endswith("bytes") else f"{x:,.0f}" for x in (wanted, most)]
            needs = f"{printable(name, 200)} would take {amounts[0]} {_UNITS[field]}; a {kind} takes at most "
            raise error(f"{needs}{amounts[1]}.", hint=hint)
    if cost.disk_bytes and folder is not None:
        filesystem.free_space_check(folder, int(cost.disk_bytes))
    if cost.memory_bytes and cost.memory_bytes > (free := free_memory_bytes()):
        needs = f"{printable(name, 200)} takes {cost.memory_bytes / 1e6:,.0f} MB of memory;"
        text = f"{needs} {free / 1e6:,.0f} MB are free."
        raise error(text, hint=hint or "Close other programs and notebooks, then try again.")


def free_memory_bytes() -> int:
    """Memory that a process can still take: of the machine, or of its container where that has less."""
    free = psutil.virtual_memory().available
    try:  # https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
        limit, used, stat = (Path(f"/sys/fs/cgroup/memory.{x}").read_text().strip() for x in ("max", "current", "stat"))
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]  # given back when it is needed
        return min(free, int(limit) - int(used) + int(cached)) if limit != "max" else free
    except (OSError, ValueError, KeyError):
        return free
