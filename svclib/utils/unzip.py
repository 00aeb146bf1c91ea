"""Zips of recordings: unpacked entry by entry, and over nothing that lies there already.

No entry can name a place outside the folder, no link is followed, no size is believed. A small record beside the
recordings says which zip they came from, so that a second call does nothing, and an interrupted one goes on.
"""

import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import StorageError

ProgressCallback = Callable[[float, str], None]

RECORD_NAME = ".source.json"
MAX_ENTRIES = 50_000
MAX_UNPACKED_BYTES = 100 << 30
MAX_RATIO, SMALL_BYTES = 100, 16 << 20  # no recording packs better; a small one may be silence
_CHUNK_BYTES = 1 << 20
_IGNORED = ("__macosx", "desktop.ini", "thumbs.db")
# what zipfile lets through on damaged zips
_BROKEN = (RuntimeError, ValueError, EOFError, LookupError, struct.error)
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, *_BROKEN)


def unpack(
    archive: str | Path, into: str | Path, progress: ProgressCallback | None = None, sha256: str | None = None
) -> Path:
    """Unpack a zip of recordings into a folder; does nothing if that very zip was unpacked there before.

    Args:
        archive: The zip.
        into: The folder, made if needed; what was left of this very zip by an interruption may lie in it.
        progress: Called after each entry with the share of the bytes and a text.
        sha256: Expected of the zip, hexadecimal; None expects nothing.

    Returns:
        ``into``.

    Raises:
        StorageError: if an entry points outside the folder, is a link, is encrypted or damaged, if the checksum is
            another one, if the folder holds anything that did not come from this zip, or if it cannot be written.
    """
    archive, into = Path(archive), Path(into)
    tell = progress or (lambda fraction, what: None)
    digest = require_sha256(archive, sha256, archive.name)
    found = record(into)
    if found.get("sha256") == digest and not found.get("unfinished"):
        return into
    if found.get("sha256") != digest and into.is_dir() and any(into.iterdir()):
        raise StorageError(
            f"{archive.name} is not unpacked over what lies in {into}: that is not from it. Give the zip another name, "
            "or move that folder away."
        )
    try:
        _require_few_entries(archive)
        with zipfile.ZipFile(archive) as file:
            entries = _safe_entries(file, archive.name)
            total = sum(entry.file_size for entry, _ in entries)
            filesystem.free_space_check(into, total)
            atomic_store.write_json(into / RECORD_NAME, {"sha256": digest, "from": archive.name, "unfinished": True})
            done = 0
            for entry, relative in entries:
                done = _unpack_entry(file, entry, into / relative, archive.name, done)
                tell(min(1.0, done / max(1, total)), f"unpacking {relative.name}")
    except (*_DAMAGED, OSError) as error:
        if into.is_dir() and [path.name for path in into.iterdir()] == [RECORD_NAME]:  # of it there is nothing
            atomic_store.remove(into / RECORD_NAME)
        if isinstance(error, StorageError):
            raise
        why = _shown(str(error)) or type(error).__name__
        raise StorageError(f"{archive.name} cannot be unpacked ({why}). Make it again, without a password.") from None
    atomic_store.write_json(into / RECORD_NAME, {"sha256": digest, "from": archive.name, "n_files": len(entries)})
    return into


def folder_for(archive: str | Path, into: str | Path) -> Path:
    """Where a zip goes inside a folder: under its own name; where that is taken, with eight digits of its SHA-256."""
    archive = Path(archive)
    digest, folder = filesystem.sha256_file(archive), Path(into) / filesystem.safe_name(archive.stem)
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    return (
        folder.with_name(f"{folder.name} {digest[:8]}") if taken and record(folder).get("sha256") != digest else folder
    )


def record(folder: Path) -> dict:
    """What is noted of where the things in a folder came from; empty where nothing readable is."""
    try:
        found = filesystem.read_json(folder / RECORD_NAME)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_sha256(path: Path, sha256: str | None, name: str) -> str:
    """The SHA-256 of a file, hexadecimal; if ``sha256`` is another one, StorageError tells of the file ``name``."""
    digest = filesystem.sha256_file(path)
    if sha256 and digest != sha256.strip().lower():
        raise StorageError(
            f"{name} has the checksum {digest}, expected {sha256}: damaged, or another file. Fetch it again."
        )
    return digest


def _shown(text: str) -> str:
    """A stranger's text for a message: short, one line, nothing that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:80])


def _require_few_entries(archive: Path) -> None:
    """Count a zip's entries before zipfile makes objects of them; its own count may lie."""
    with open(archive, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65557))
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        n_directory = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
        n_directory = min(n_directory, size)  # all ones: a zip64 says it elsewhere, and it is counted from the end
        if n_directory <= MAX_ENTRIES * 46:
            return
        found, before = 0, b""
        file.seek(max(0, size - len(tail) + at - n_directory))
        while found <= MAX_ENTRIES and (block := file.read(1 << 20)):
            found += (before + block).count(b"PK\1\2")
            before = block[-3:]
    if found > MAX_ENTRIES:
        raise StorageError(f"{archive.name} holds more than {MAX_ENTRIES} files. Put the recordings into several zips.")


def _safe_entries(file: zipfile.ZipFile, name: str) -> list[tuple[zipfile.ZipInfo, Path]]:
    found, taken = [], set()
    for entry in file.infolist():
        written, shown = entry.orig_filename.replace("\\", "/"), _shown(entry.orig_filename)
        parts = PurePosixPath(written).parts
        if entry.is_dir() or not parts:
            continue
        if written.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", written) or "\0" in written:
            raise StorageError(f"{name} is refused: its entry '{shown}' points outside the folder.")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise StorageError(f"{name} is refused: its entry '{shown}' is a link or a device, not a file.")
        if entry.flag_bits & 1:
            raise StorageError(f"{name} is protected by a password. Make the zip again without one.")
        if entry.file_size > SMALL_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
            raise StorageError(
                f"{name} is refused: its entry '{shown}' would unpack to {entry.file_size / 1e6:.0f} MB from next to "
                "nothing, which no recording does."
            )
        if any(p.startswith(".") or p.lower() in _IGNORED for p in parts):
            continue
        relative = safe_path(parts)
        while str(relative).lower() in taken:  # names that differ in case or in forbidden letters only
            relative = relative.with_name(f"{relative.stem} again{relative.suffix}")
        taken.add(str(relative).lower())
        found.append((entry, relative))
    if not found:
        raise StorageError(f"{name} holds no files. Put the recordings into it.")
    return found


def safe_path(parts: tuple[str, ...]) -> Path:
    """A relative path whose names every system takes."""
    last = Path(parts[-1])
    return Path(
        *(filesystem.safe_name(p) for p in parts[:-1]),
        filesystem.safe_name(last.stem) + re.sub(r"[^.\w]", "", last.suffix[:12]),
    )


def _unpack_entry(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, name: str, done: int) -> int:
    written = 0

    def put(part: Path) -> None:
        nonlocal written
        with file.open(entry) as source, open(part, "wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                if written > entry.file_size or done + written > MAX_UNPACKED_BYTES:
                    raise StorageError(
                        f"{name} is refused: its entry '{_shown(entry.filename)}' is larger than it says."
                    )
                sink.write(chunk)

    atomic_store.commit_file(target, put)
    return done + written
