"""Untrusted zips: checks of their entries, and unpacking recordings into a folder of their own.

No entry can name a place outside the folder, no link is followed, no declared size is trusted, and no file is
overwritten. A record beside the recordings names the zip they came from, so that a second call does nothing and an
interrupted one goes on.
"""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from svclib.utils import atomic_store, budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import ProgressCallback, StorageError, first_line, printable, reporter
from svclib.utils.filesystem import CHUNK_BYTES

RECORD_NAME = ".source.json"
MAX_RATIO, SMALL_BYTES = 100, 16 << 20  # no recordings pack better; a small one may be silence
_UTF_8_FLAG = 0x800
# Raised by zipfile on damaged zips.
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, LookupError)


def entry_problem(entry: zipfile.ZipInfo, max_ratio: int, small_bytes: int) -> str | None:
    """The reason against unpacking an entry, as the end of a sentence, or None; only Deflate is unpacked.

    Where more than ``small_bytes`` are unpacked, each packed byte may give at most ``max_ratio``.
    """
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if entry.flag_bits & 1:
        return "is protected by a password"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        known = getattr(zipfile, "compressor_names", {}).get(entry.compress_type, f"method {entry.compress_type}")
        return f"is packed by {known}, not by Deflate, the ordinary method of zips"
    if entry.file_size > small_bytes and entry.file_size > max_ratio * max(entry.compress_size, 1):
        return f"would unpack to {entry.file_size / 1e6:.0f} MB from {entry.compress_size / 1e6:.3f} MB"
    return None


def entry_blocks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """An entry's bytes by blocks; StorageError where they are more than its directory entry declares."""
    total = 0
    with archive.open(entry) as source:
        while block := source.read(CHUNK_BYTES):
            total += len(block)
            if total > entry.file_size:
                raise StorageError(f"'{printable(entry.filename, 80)}' is larger than declared.")
            yield block


def unpack(archive: str | Path, into: str | Path, progress: ProgressCallback | None = None) -> Path:
    """Unpack a zip of recordings into a folder of its own, which is returned; does nothing if that is done already.

    StorageError if an entry points outside the folder, is a link, is encrypted or damaged, if the folder holds anything
    that did not come from this zip (the files of an interrupted call may be there), or if it cannot be written.
    """
    archive, into, report = Path(archive), Path(into), reporter(progress)
    source, found = {"sha256": filesystem.sha256_file(archive), "from": archive.name}, record(into)
    if found.get("sha256") != source["sha256"] and into.is_dir() and any(into.iterdir()):
        text = f"{archive.name} is not unpacked into {into}, which holds other files."
        raise StorageError(text, path=archive, hint="Give the zip another name, or move that folder away.")
    if found and not found.get("unfinished"):
        return into
    try:
        _require_few_entries(archive)
        with zipfile.ZipFile(archive) as file:
            entries = _safe_entries(file, archive.name)
            total, done = sum(entry.file_size for entry, _ in entries), 0
            if SMALL_BYTES < total > MAX_RATIO * archive.stat().st_size:
                raise StorageError(f"{archive.name} would unpack to {total / 1e9:.0f} GB.", path=archive)
            budget.require("zip of recordings", archive.name, Cost(disk_bytes=total, values=len(entries)), into)
            atomic_store.write_json(into / RECORD_NAME, {**source, "unfinished": True})
            for entry, relative in entries:
                atomic_store.commit_file(into / relative, partial(_write_entry, file, entry))
                done += entry.file_size
                report(done / max(1, total), f"unpacking {relative.name}")
    except (*_DAMAGED, ValueError, OSError) as error:
        if into.is_dir() and [path.name for path in into.iterdir()] == [RECORD_NAME]:
            atomic_store.remove(into / RECORD_NAME)
        if isinstance(error, StorageError):
            raise
        text = f"{archive.name} cannot be unpacked ({first_line(error, 80)})."
        raise StorageError(text, path=archive, hint="Make it again.") from None
    atomic_store.write_json(into / RECORD_NAME, {**source, "n_files": len(entries)})
    return into


def _write_entry(file: zipfile.ZipFile, entry: zipfile.ZipInfo, part: Path) -> None:
    with open(part, "wb") as sink:
        sink.writelines(entry_blocks(file, entry))


def folder_for(archive: str | Path, into: str | Path) -> Path:
    """Folder of a zip inside ``into``: under its own name; where that is taken, with eight digits of its SHA-256."""
    digest, folder = filesystem.sha256_file(archive), Path(into) / filesystem.safe_name(Path(archive).stem)
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    other = taken and record(folder).get("sha256") != digest
    return folder.with_name(f"{folder.name} {digest[:8]}") if other else folder


def record(folder: Path) -> dict:
    """The record of where the files in a folder came from; empty where there is no readable one."""
    try:
        found = filesystem.read_json(folder / RECORD_NAME)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _require_few_entries(archive: Path) -> None:
    """Count a zip's entries before zipfile makes objects of them; the zip's own count may be wrong."""
    with open(archive, "rb") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - 65557))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at >= 0 and tail[at + 4 : at + 6] not in (b"\0\0", b"\xff\xff"):
            hint = "Join the parts with the program that made them, or make one zip."
            raise StorageError(f"{archive.name} is one part of a zip in several.", path=archive, hint=hint)
        n_directory = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
        n_directory = min(n_directory, size)  # all ones in a zip64, whose directory is then counted from the end
        most = int(budget.LIMITS["zip of recordings"].values)
        if n_directory <= most * 46:
            return
        found, before = 0, b""
        file.seek(max(0, start + at - n_directory))
        while found <= most and (block := file.read(CHUNK_BYTES)):
            found += (before + block).count(b"PK\1\2")
            before = block[-3:]
    hint = "Put the recordings into several zips."
    budget.require("zip of recordings", archive.name, Cost(values=found), hint=hint)


def _safe_entries(file: zipfile.ZipFile, name: str) -> list[tuple[zipfile.ZipInfo, Path]]:
    """The entries to unpack, with the relative path of each; names that would collide get a number."""
    found, taken, numbers = [], set(), dict[str, int]()
    for entry, text in _named(file):
        written, shown = text.replace("\\", "/"), printable(text, 80)
        parts = PurePosixPath(written).parts
        if entry.is_dir() or written.endswith("/") or not parts:
            continue
        if written.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", written) or "\0" in written:
            raise StorageError(f"{name} is refused: its entry '{shown}' points outside the folder.")
        if problem := entry_problem(entry, MAX_RATIO, SMALL_BYTES):
            hint = "Make the zip again, with ordinary compression and without a password."
            raise StorageError(f"{name} is refused: its entry '{shown}' {problem}.", hint=hint)
        if any(map(filesystem.is_system_file, parts)):
            continue
        first = relative = filesystem.safe_path(parts)
        key = filesystem.name_key(str(first))
        while filesystem.name_key(str(relative)) in taken:
            numbers[key] = numbers.get(key, 1) + 1
            relative = first.with_name(f"{first.stem} {numbers[key]}{first.suffix}")
        taken.add(filesystem.name_key(str(relative)))
        found.append((entry, relative))
    if not found:
        raise StorageError(f"{name} holds no files.", hint="Put the recordings into it.")
    return found


def _named(file: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """The entries with their names as text; those that are not marked as UTF-8 are decoded together, before separators
    are looked for: the second byte of a Japanese letter may be that of a backslash.
    """
    entries = file.infolist()
    raw = {i: e.orig_filename.encode("cp437") for i, e in enumerate(entries) if not e.flag_bits & _UTF_8_FLAG}
    unknown = [i for i, name in raw.items() if not name.isascii() and b"\n" not in name]
    texts = filesystem.legacy_text(b"\n".join(raw[i] for i in unknown)).split("\n")
    known = dict(zip(unknown, texts, strict=False))
    for i, entry in enumerate(entries):
        yield entry, known.get(i, entry.orig_filename)
