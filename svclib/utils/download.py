"""Recordings and models from a folder, a zip, a Google Drive link or any web address.

A record beside the files names their source, so that a second call does nothing and an interrupted one starts again. No
file is overwritten.
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
from svclib.utils.errors import ProgressCallback, StorageError, reporter
from svclib.utils.unzip import RECORD_NAME

_CHUNK_BYTES = 1 << 20
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_SHARE = "Share it with everybody who has the link, or download it yourself and give the file."


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
        StorageError: if there is nothing, the download fails, the checksum differs or the zip is not safe.
    """
    into, report = Path(into), reporter(progress)
    if is_link(where):
        return _download(str(where), into, report, sha256)
    path = Path(where)
    if not path.exists():
        raise StorageError(
            f"There is no file or folder {path}.",
            path=path,
            hint="Check the name, or give a link that begins with https://.",
        )
    if path.is_file() and zipfile.is_zipfile(path):
        return unzip.unpack(path, unzip.folder_for(path, into), report, sha256)
    if path.is_file():
        if path.suffix.lower() == ".zip":
            raise StorageError(f"{path.name} is not a readable zip.", path=path, hint="Is it cut off? Upload it again.")
        unzip.require_sha256(path, sha256, path.name)
    return path


def is_link(where: str | Path) -> bool:
    """True for a text that begins like a web address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(where)) is not None


def cache_folder() -> Path:
    """Folder of downloaded models: ``SVCLIB_CACHE``, else the system's place for caches."""
    return Path(os.environ.get("SVCLIB_CACHE") or platformdirs.user_cache_dir("svclib", appauthor=False))


def fetched(where: str | Path, into: str | Path) -> bool:
    """True if :func:`fetch` needs no network for this link, because of an earlier download."""
    folder, key, _ = _folder_of(str(where), Path(into))
    return unzip.record(folder).get("sha256") == key


def place(where: str | Path, into: str | Path) -> Path:
    """The folder into which :func:`fetch` unpacks or downloads; for anything else ``where`` itself."""
    if is_link(where):
        return _folder_of(str(where), Path(into))[0]
    return unzip.folder_for(where, into) if zipfile.is_zipfile(where) else Path(where)


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
    key = hashlib.sha256(f"file {address}".encode()).hexdigest()
    folder = Path(into) / f"{filesystem.safe_name(_name_in(_link(address)))[:60]} {key[:8]}"
    noted = unzip.record(folder)
    if noted.get("sha256") == key:
        return folder / noted["name"]
    with tempfile.TemporaryDirectory() as temporary:
        got = _retrieve(address, Path(temporary), reporter(progress))
        if len(got) != 1:
            raise StorageError(f"{address} gave {len(got)} files instead of one.", hint="Give the link of the file.")
        path = atomic_store.copy_file(got[0], folder / unzip.safe_path((got[0].name,)))
    atomic_store.write_json(folder / RECORD_NAME, {"sha256": key, "from": address, "name": path.name})
    return path


# Downloads ------------------------------------------------------------------------------------------------------------


def _download(address: str, into: Path, report: ProgressCallback, sha256: str | None) -> Path:
    folder, key, label = _folder_of(address, into)
    wanted, noted = (sha256 or "").strip().lower(), unzip.record(folder)
    if wanted and noted and noted.get("download_sha256") != wanted:  # an earlier file of that address is kept
        folder = folder.with_name(f"{folder.name} {wanted[:8]}")
        noted = unzip.record(folder)
    if noted.get("sha256") == key:
        return folder
    report(0.0, f"fetching {label}")
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(temporary)
        got = _retrieve(address, at, report)
        if not got:
            raise StorageError(f"{address} gave no files.", hint=_SHARE)
        digests = [unzip.require_sha256(path, sha256 if len(got) == 1 else None, address) for path in got]
        for path in got:
            if zipfile.is_zipfile(path):
                unzip.unpack(path, folder / filesystem.safe_name(path.stem), report)
            else:
                atomic_store.copy_file(path, folder / unzip.safe_path(path.relative_to(at).parts))
    record = {"sha256": key, "from": address, "n_files": len(got), "download_sha256": digests[0]}
    atomic_store.write_json(folder / RECORD_NAME, record)
    return folder


def _folder_of(address: str, into: Path) -> tuple[Path, str, str]:
    """Folder of what a link gives, the key of its record, and a name for people."""
    parts = _link(address)
    label = filesystem.safe_name(_name_in(parts) or parts.hostname)
    key = hashlib.sha256(address.encode()).hexdigest()
    return into / f"{'drive' if parts.hostname.lower() in _DRIVE_HOSTS else label} {key[:8]}", key, label


def _link(address: str):
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageError(f"{address} is not a web address that can be fetched; use https:// or http://.")
    return parts


def _name_in(parts) -> str:
    return PurePosixPath(urllib.parse.unquote(parts.path)).stem


def _retrieve(address: str, at: Path, report: ProgressCallback) -> list[Path]:
    """Download into an empty folder; the files, none of them a web page."""
    parts = _link(address)
    on_drive = parts.hostname.lower() in _DRIVE_HOSTS
    got = _from_drive(address, parts, at) if on_drive else [_from_web(address, parts, at, report)]
    for path in got:
        with open(path, "rb") as file:
            head = file.read(256).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html")):
            raise StorageError(
                f"{address} gave a web page instead of a file.",
                hint="Share it with everybody who has the link; if many people have fetched it today, try again "
                "tomorrow or upload the file yourself.",
            )
    return got


@dataclasses.dataclass
class _Meter:
    """The progress bar that pooch expects."""

    report: ProgressCallback
    label: str
    total: int = 0
    done: int = 0

    def update(self, n: int) -> None:
        self.done += n
        self.report(min(1.0, self.done / self.total) if self.total else 0.0, f"fetching {self.label}")

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _from_web(address: str, parts, at: Path, report: ProgressCallback) -> Path:
    import pooch
    import requests

    name = filesystem.safe_name(PurePosixPath(urllib.parse.unquote(parts.path)).name or "download")
    downloader = pooch.HTTPDownloader(progressbar=_Meter(report, name), chunk_size=_CHUNK_BYTES, timeout=60)
    try:
        return Path(pooch.retrieve(address, known_hash=None, fname=name, path=at, downloader=downloader))
    except (requests.RequestException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(
            f"{address} could not be fetched ({first[:200]}).", hint="Check address and connection."
        ) from None


def _from_drive(address: str, parts, at: Path) -> list[Path]:
    import gdown

    try:
        if "/folders/" in parts.path:
            gdown.download_folder(url=address, output=f"{at}/", quiet=True)
        else:
            gdown.download(id=_drive_id(address, parts), output=f"{at}/", quiet=True)
    except StorageError:
        raise
    except Exception as error:  # gdown's errors have no common base over its versions
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise StorageError(f"Google Drive did not give {address} ({first[:200]}).", hint=_SHARE) from None
    return sorted(p for p in at.rglob("*") if p.is_file())


def _drive_id(address: str, parts) -> str:
    found = re.search(r"/d/([A-Za-z0-9_-]{10,})", parts.path)
    identity = found.group(1) if found else urllib.parse.parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[A-Za-z0-9_-]{10,}", identity):
        raise StorageError(f"{address} is not a share link of Google Drive.", hint="Use Share, Copy link.")
    return identity
