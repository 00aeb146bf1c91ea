"""Recordings from wherever they are: a folder, a zip, a Google Drive link or any web address.

A zip is unpacked entry by entry: none can name a place outside its folder, no link is followed, no size is believed.
What was fetched is remembered by a small record beside it, so that a second call does nothing, and an interrupted one
starts again.
"""

import dataclasses
import hashlib
import lzma
import os
import re
import stat
import struct
import tempfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from svclib import store
from svclib.containers import AudioError

Progress = Callable[[float, str], None]

RECORD_NAME = ".source.json"
MAX_ENTRIES = 50_000
MAX_UNPACKED_BYTES = 100 << 30
MAX_RATIO, SMALL_BYTES = 100, 16 << 20  # no recording packs better; a small one may be silence
_CHUNK_BYTES = 1 << 20
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_IGNORED = ("__macosx", "desktop.ini", "thumbs.db")
# what zipfile lets through on damaged zips
_BROKEN = (RuntimeError, ValueError, EOFError, LookupError, struct.error)
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, *_BROKEN)


def fetch(where: str | Path, into: str | Path, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Make recordings available as a local path.

    Args:
        where: A folder or sound file (used where it is), a zip, a Google Drive share link, or an http(s) address of a
            zip or a sound file.
        into: Folder in which something unpacked or downloaded gets a folder of its own.
        progress: Called with a fraction and a text.
        sha256: Checksum that a zip or download must have, hexadecimal.

    Returns:
        The folder with the recordings (or the sound file itself).

    Raises:
        AudioError: if there is nothing there, the download fails, the checksum differs or the zip is not safe.
    """
    text, into = str(where), Path(into)
    tell = progress or (lambda fraction, what: None)
    if is_link(text):
        return _download(text, into, tell, sha256)
    path = Path(where)
    if not path.exists():
        raise AudioError(
            f"There is no file or folder {path}. Check the name, or give a link that begins with https://."
        )
    if path.is_dir() or not zipfile.is_zipfile(path):
        if path.suffix.lower() == ".zip" and path.is_file():
            raise AudioError(f"{path.name} is not a readable zip; it may be cut off. Upload it again.")
        if path.is_file():
            _require_sha256(path, sha256, path.name)
        return path
    return unpack(path, into / store.safe_name(path.stem), tell, sha256)


def is_link(where: str | Path) -> bool:
    """True for what begins like a web address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(where)) is not None


def cache_folder() -> Path:
    """Where models that were fetched for the person are kept: ``SVCLIB_CACHE``, else ``~/.cache/svclib``."""
    return Path(os.environ.get("SVCLIB_CACHE") or Path.home() / ".cache" / "svclib")


# Zips -----------------------------------------------------------------------------------------------------------------


def unpack(archive: str | Path, into: str | Path, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Unpack a zip of recordings into a folder; does nothing if that very zip was unpacked there before.

    Raises:
        AudioError: if an entry points outside the folder, is a link, is encrypted or damaged, or there is no room.
    """
    archive, into = Path(archive), Path(into)
    tell = progress or (lambda fraction, what: None)
    digest = _require_sha256(archive, sha256, archive.name)
    if _has_record(into, digest):
        return into
    try:
        _require_few_entries(archive)
        with zipfile.ZipFile(archive) as file:
            entries = _safe_entries(file, archive.name)
            total = sum(entry.file_size for entry, _ in entries)
            store.free_space_check(into, total)
            done = 0
            for entry, relative in entries:
                done = _unpack_entry(file, entry, into / relative, archive.name, done)
                tell(min(1.0, done / max(1, total)), f"unpacking {relative.name}")
    except (AudioError, store.StoreError):
        raise
    except (*_DAMAGED, OSError) as error:
        why = _shown(str(error)) or type(error).__name__
        raise AudioError(f"{archive.name} cannot be unpacked ({why}). Make it again, without a password.") from None
    store.write_json(into / RECORD_NAME, {"sha256": digest, "from": archive.name, "n_files": len(entries)})
    return into


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
        raise AudioError(f"{archive.name} holds more than {MAX_ENTRIES} files. Put the recordings into several zips.")


def _safe_entries(file: zipfile.ZipFile, name: str) -> list[tuple[zipfile.ZipInfo, Path]]:
    found, taken = [], set()
    for entry in file.infolist():
        written, shown = entry.orig_filename.replace("\\", "/"), _shown(entry.orig_filename)
        parts = PurePosixPath(written).parts
        if entry.is_dir() or not parts:
            continue
        if written.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", written) or "\0" in written:
            raise AudioError(f"{name} is refused: its entry '{shown}' points outside the folder.")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise AudioError(f"{name} is refused: its entry '{shown}' is a link or a device, not a file.")
        if entry.flag_bits & 1:
            raise AudioError(f"{name} is protected by a password. Make the zip again without one.")
        if entry.file_size > SMALL_BYTES and entry.file_size > MAX_RATIO * entry.compress_size:
            raise AudioError(
                f"{name} is refused: its entry '{shown}' would unpack to {entry.file_size / 1e6:.0f} MB from next to "
                "nothing, which no recording does."
            )
        if any(p.startswith(".") or p.lower() in _IGNORED for p in parts):
            continue
        relative = _safe_path(parts)
        while str(relative).lower() in taken:  # names that differ in case or in forbidden letters only
            relative = relative.with_name(f"{relative.stem} again{relative.suffix}")
        taken.add(str(relative).lower())
        found.append((entry, relative))
    if not found:
        raise AudioError(f"{name} holds no files. Put the recordings into it.")
    return found


def _safe_path(parts: tuple[str, ...]) -> Path:
    last = Path(parts[-1])
    return Path(
        *(store.safe_name(p) for p in parts[:-1]), store.safe_name(last.stem) + re.sub(r"[^.\w]", "", last.suffix[:12])
    )


def _unpack_entry(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, name: str, done: int) -> int:
    written = 0

    def put(part: Path) -> None:
        nonlocal written
        with file.open(entry) as source, open(part, "wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                if written > entry.file_size or done + written > MAX_UNPACKED_BYTES:
                    raise AudioError(f"{name} is refused: its entry '{_shown(entry.filename)}' is larger than it says.")
                sink.write(chunk)

    store.commit_file(target, put)
    return done + written


# Downloads ------------------------------------------------------------------------------------------------------------


def _download(address: str, into: Path, tell: Progress, sha256: str | None) -> Path:
    parts = _link(address)
    on_drive = parts.hostname.lower() in _DRIVE_HOSTS
    label = store.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).stem or parts.hostname)
    key = hashlib.sha256(address.encode()).hexdigest()
    folder = into / (f"drive {key[:8]}" if on_drive else f"{label} {key[:8]}")
    if _has_record(folder, key, sha256):
        return folder
    tell(0.0, f"fetching {label}")
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        got = _from_drive(address, parts.path, at, tell) if on_drive else [_from_web(address, parts, at, tell)]
        if not got:
            raise AudioError(f"{address} gave no files. Check that the link is shared with everybody who has it.")
        digests = [_require_sha256(path, sha256 if len(got) == 1 else None, address) for path in got]
        for path in got:
            _keep(path, at, folder, address, tell)
    record = {"sha256": key, "from": address, "n_files": len(got), "download_sha256": digests[0]}
    store.write_json(folder / RECORD_NAME, record)
    return folder


def fetch_file(address: str, into: str | Path, progress: Progress | None = None) -> Path:
    """One file from a link, kept as it is (a zip stays a zip) in a folder of its own; a second call does nothing.

    Raises:
        AudioError: if the link gives nothing, a web page, or more than one file.
    """
    parts, tell = _link(address), progress or (lambda fraction, what: None)
    key = hashlib.sha256(f"file {address}".encode()).hexdigest()
    folder = Path(into) / f"{store.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).stem)[:60]} {key[:8]}"
    if _has_record(folder, key):
        return folder / store.read_json(folder / RECORD_NAME)["name"]
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        on_drive = parts.hostname.lower() in _DRIVE_HOSTS
        got = _from_drive(address, parts.path, at, tell) if on_drive else [_from_web(address, parts, at, tell)]
        if len(got) != 1:
            raise AudioError(f"{address} gave {len(got)} files where one is wanted. Give the link of the file itself.")
        _refuse_page(got[0], address)
        path = store.copy_file(got[0], folder / _safe_path((got[0].name,)))
    store.write_json(folder / RECORD_NAME, {"sha256": key, "from": address, "name": path.name})
    return path


def _link(address: str):
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AudioError(f"{address} is not a web address that can be fetched; it must begin with https:// or http://.")
    return parts


def _refuse_page(path: Path, address: str) -> None:
    with open(path, "rb") as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise AudioError(
            f"{address} gave a web page instead of a file. Share it with everybody who has the link; if many people "
            "have fetched it today, try again tomorrow or upload the file yourself."
        )


def _keep(path: Path, at: Path, folder: Path, address: str, tell: Progress) -> None:
    _refuse_page(path, address)
    if zipfile.is_zipfile(path):
        unpack(path, folder / store.safe_name(path.stem), tell)
    else:
        store.copy_file(path, folder / _safe_path(path.relative_to(at).parts))


@dataclasses.dataclass
class _Meter:
    """What pooch tells its progress to."""

    tell: Progress
    label: str
    total: int = 0
    done: int = 0

    def update(self, n: int) -> None:
        self.done += n
        self.tell(min(1.0, self.done / self.total) if self.total else 0.0, f"fetching {self.label}")

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _from_web(address: str, parts, at: Path, tell: Progress) -> Path:
    import pooch
    import requests

    name = store.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).name or "download")
    downloader = pooch.HTTPDownloader(progressbar=_Meter(tell, name), chunk_size=_CHUNK_BYTES, timeout=60)
    try:
        return Path(pooch.retrieve(address, known_hash=None, fname=name, path=at, downloader=downloader))
    except (requests.RequestException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AudioError(f"{address} could not be fetched ({first[:200]}). Check address and connection.") from None


def _from_drive(address: str, path: str, at: Path, tell: Progress) -> list[Path]:
    import gdown

    try:
        if "/folders/" in path:
            gdown.download_folder(url=address, output=f"{at}/", quiet=True)
        else:
            gdown.download(id=_drive_id(address), output=f"{at}/", quiet=True)
    except Exception as error:  # gdown's errors have no common base over its versions
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise AudioError(
            f"Google Drive did not give {address} ({first[:200]}). Share it with everybody who has the link, or "
            "download it yourself and give the file."
        ) from None
    return sorted(p for p in at.rglob("*") if p.is_file())


def _drive_id(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    found = re.search(r"/d/([A-Za-z0-9_-]{10,})", parts.path)
    identity = found.group(1) if found else urllib.parse.parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[A-Za-z0-9_-]{10,}", identity):
        raise AudioError(f"{address} is not a share link of Google Drive. Use Share, Copy link.")
    return identity


# Records --------------------------------------------------------------------------------------------------------------


def _require_sha256(path: Path, sha256: str | None, name: str) -> str:
    digest = store.sha256_file(path)
    if sha256 and digest != sha256.strip().lower():
        raise AudioError(
            f"{name} has the checksum {digest}, expected {sha256}: damaged, or another file. Fetch it again."
        )
    return digest


def _has_record(folder: Path, key: str, sha256: str | None = None) -> bool:
    try:
        record = store.read_json(folder / RECORD_NAME)
    except (OSError, ValueError):
        return False
    fits = isinstance(record, dict) and record.get("sha256") == key
    return fits and (sha256 is None or record.get("download_sha256") == sha256.strip().lower())
