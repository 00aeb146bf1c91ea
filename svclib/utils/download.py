"""Recordings from wherever they are: a folder, a zip, a Google Drive link or any web address.

What was fetched is remembered by a small record beside it, so that a second call does nothing, and an interrupted one
starts again. Nothing that lies there already is overwritten.
"""

import dataclasses
import hashlib
import os
import re
import tempfile
import urllib.parse
import zipfile
from pathlib import Path, PurePosixPath

import platformdirs

from svclib.utils import atomic_store, filesystem, unzip
from svclib.utils.errors import StorageError
from svclib.utils.progress import ProgressCallback
from svclib.utils.unzip import RECORD_NAME

_CHUNK_BYTES = 1 << 20
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


def fetch(
    where: str | Path, into: str | Path, progress: ProgressCallback | None = None, sha256: str | None = None
) -> Path:
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
        StorageError: if there is nothing there, the download fails, the checksum differs or the zip is not safe.
    """
    text, into = str(where), Path(into)
    tell = progress or (lambda fraction, what: None)
    if is_link(text):
        return _download(text, into, tell, sha256)
    path = Path(where)
    if not path.exists():
        raise StorageError(
            f"There is no file or folder {path}. Check the name, or give a link that begins with https://."
        )
    if path.is_dir() or not zipfile.is_zipfile(path):
        if path.suffix.lower() == ".zip" and path.is_file():
            raise StorageError(f"{path.name} is not a readable zip; it may be cut off. Upload it again.")
        if path.is_file():
            unzip.require_sha256(path, sha256, path.name)
        return path
    return unzip.unpack(path, unzip.folder_for(path, into), tell, sha256)


def is_link(where: str | Path) -> bool:
    """True for what begins like a web address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(where)) is not None


def cache_folder() -> Path:
    """Where models that were fetched for the person are kept: ``SVCLIB_CACHE``, else the system's place for caches."""
    return Path(os.environ.get("SVCLIB_CACHE") or platformdirs.user_cache_dir("svclib", appauthor=False))


# Downloads ------------------------------------------------------------------------------------------------------------


def fetched(where: str | Path, into: str | Path) -> bool:
    """True if :func:`fetch` needs no network for this link, because it has been there before."""
    folder, key, _ = _folder_of(str(where), Path(into))
    return unzip.record(folder).get("sha256") == key


def place(where: str | Path, into: str | Path) -> Path:
    """The folder that :func:`fetch` gives what it unpacks or downloads; for anything else ``where`` itself."""
    if is_link(where):
        return _folder_of(str(where), Path(into))[0]
    return unzip.folder_for(where, into) if zipfile.is_zipfile(where) else Path(where)


def _folder_of(address: str, into: Path) -> tuple[Path, str, str]:
    """Where a link's things go, the key of its record, and a name for people."""
    parts = _link(address)
    label = filesystem.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).stem or parts.hostname)
    key = hashlib.sha256(address.encode()).hexdigest()
    on_drive = parts.hostname.lower() in _DRIVE_HOSTS
    return into / (f"drive {key[:8]}" if on_drive else f"{label} {key[:8]}"), key, label


def _download(address: str, into: Path, tell: ProgressCallback, sha256: str | None) -> Path:
    folder, key, label = _folder_of(address, into)
    parts = _link(address)
    on_drive = parts.hostname.lower() in _DRIVE_HOSTS
    wanted, noted = (sha256 or "").strip().lower(), unzip.record(folder)
    if wanted and noted and noted.get("download_sha256") != wanted:  # another file came from there once, and is kept
        folder = folder.with_name(f"{folder.name} {wanted[:8]}")
        noted = unzip.record(folder)
    if noted.get("sha256") == key:
        return folder
    tell(0.0, f"fetching {label}")
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        got = _from_drive(address, parts.path, at, tell) if on_drive else [_from_web(address, parts, at, tell)]
        if not got:
            raise StorageError(f"{address} gave no files. Check that the link is shared with everybody who has it.")
        digests = [unzip.require_sha256(path, sha256 if len(got) == 1 else None, address) for path in got]
        for path in got:
            _keep(path, at, folder, address, tell)
    record = {"sha256": key, "from": address, "n_files": len(got), "download_sha256": digests[0]}
    atomic_store.write_json(folder / RECORD_NAME, record)
    return folder


def fetch_file(address: str, into: str | Path, progress: ProgressCallback | None = None) -> Path:
    """One file from a link, kept as it is (a zip stays a zip); a second call does nothing.

    Args:
        address: A Google Drive share link of a file, or an http(s) address.
        into: Folder in which the file gets a folder of its own, named after the address.
        progress: Called with a fraction and a text.

    Returns:
        The file.

    Raises:
        StorageError: if the link gives nothing, a web page, or more than one file.
    """
    parts, tell = _link(address), progress or (lambda fraction, what: None)
    key = hashlib.sha256(f"file {address}".encode()).hexdigest()
    folder = Path(into) / f"{filesystem.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).stem)[:60]} {key[:8]}"
    noted = unzip.record(folder)
    if noted.get("sha256") == key:
        return folder / noted["name"]
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        on_drive = parts.hostname.lower() in _DRIVE_HOSTS
        got = _from_drive(address, parts.path, at, tell) if on_drive else [_from_web(address, parts, at, tell)]
        if len(got) != 1:
            raise StorageError(
                f"{address} gave {len(got)} files where one is wanted. Give the link of the file itself."
            )
        _refuse_page(got[0], address)
        path = atomic_store.copy_file(got[0], folder / unzip.safe_path((got[0].name,)))
    atomic_store.write_json(folder / RECORD_NAME, {"sha256": key, "from": address, "name": path.name})
    return path


def _link(address: str):
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageError(
            f"{address} is not a web address that can be fetched; it must begin with https:// or http://."
        )
    return parts


def _refuse_page(path: Path, address: str) -> None:
    with open(path, "rb") as file:
        head = file.read(256).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise StorageError(
            f"{address} gave a web page instead of a file. Share it with everybody who has the link; if many people "
            "have fetched it today, try again tomorrow or upload the file yourself."
        )


def _keep(path: Path, at: Path, folder: Path, address: str, tell: ProgressCallback) -> None:
    _refuse_page(path, address)
    if zipfile.is_zipfile(path):
        unzip.unpack(path, folder / filesystem.safe_name(path.stem), tell)
    else:
        atomic_store.copy_file(path, folder / unzip.safe_path(path.relative_to(at).parts))


@dataclasses.dataclass
class _Meter:
    """What pooch tells its progress to."""

    tell: ProgressCallback
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


def _from_web(address: str, parts, at: Path, tell: ProgressCallback) -> Path:
    import pooch
    import requests

    name = filesystem.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).name or "download")
    downloader = pooch.HTTPDownloader(progressbar=_Meter(tell, name), chunk_size=_CHUNK_BYTES, timeout=60)
    try:
        return Path(pooch.retrieve(address, known_hash=None, fname=name, path=at, downloader=downloader))
    except (requests.RequestException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f"{address} could not be fetched ({first[:200]}). Check address and connection.") from None


def _from_drive(address: str, path: str, at: Path, tell: ProgressCallback) -> list[Path]:
    import gdown

    try:
        if "/folders/" in path:
            gdown.download_folder(url=address, output=f"{at}/", quiet=True)
        else:
            gdown.download(id=_drive_id(address), output=f"{at}/", quiet=True)
    except Exception as error:  # gdown's errors have no common base over its versions
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise StorageError(
            f"Google Drive did not give {address} ({first[:200]}). Share it with everybody who has the link, or "
            "download it yourself and give the file."
        ) from None
    return sorted(p for p in at.rglob("*") if p.is_file())


def _drive_id(address: str) -> str:
    parts = urllib.parse.urlsplit(address)
    found = re.search(r"/d/([A-Za-z0-9_-]{10,})", parts.path)
    identity = found.group(1) if found else urllib.parse.parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[A-Za-z0-9_-]{10,}", identity):
        raise StorageError(f"{address} is not a share link of Google Drive. Use Share, Copy link.")
    return identity
