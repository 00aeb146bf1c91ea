"""Recordings and models from a folder, a zip, a Google Drive link or any web address.

A record beside the files names their source, so that a second call does nothing and an interrupted one starts again. No
file is overwritten.
"""

import hashlib
import ipaddress
import re
import socket
import tempfile
import time
import urllib.parse
import zipfile
from pathlib import Path, PurePosixPath

from svclib.utils import atomic_store, budget, filesystem, unzip
from svclib.utils.budget import Cost
from svclib.utils.errors import Cancelled, ProgressCallback, StorageError, first_line, printable, reporter

_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
MAX_REDIRECTS, PATIENCE_S, LEAST_BYTES_PER_S = 8, 60.0, 1000
_SHARE = "Share it with everybody who has the link, or download it yourself and give the file."


def fetch(where: str | Path, into: str | Path, progress: ProgressCallback | None = None) -> Path:
    """Make recordings available: the folder that holds them (or the sound file itself).

    ``where`` is a folder or sound file (used where it is), a zip, a Google Drive share link, or an http(s) address of a
    zip or a sound file. In ``into`` something unpacked or downloaded gets a folder of its own. StorageError if there is
    nothing, the download fails or the zip is not safe.
    """
    if is_link(where):
        folder, key = _folder_of(str(where), Path(into))
        _fetch_once(str(where), folder, key, reporter(progress))
        return folder
    path = Path(where)
    if not path.exists():
        hint = "Check the name, or give a link that begins with https://."
        raise StorageError(f"There is no file or folder {path}.", path=path, hint=hint)
    if path.is_file() and zipfile.is_zipfile(path):
        return unzip.unpack(path, unzip.folder_for(path, into), progress)
    if path.is_file() and path.suffix.lower() == ".zip":
        text = f"{path.name} is not a readable zip: it does not end with the list of its files."
        raise StorageError(text, path=path, hint="Is it cut off, or padded? Upload it, or make it again.")
    return path


def is_link(where: str | Path) -> bool:
    """True for a text that begins like a web address."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(where)) is not None


def fetched(where: str | Path, into: str | Path) -> bool:
    """True if :func:`fetch` needs no network for this link, because of an earlier download."""
    folder, key = _folder_of(str(where), Path(into))
    return unzip.record(folder).get("sha256") == key


def place(where: str | Path, into: str | Path) -> Path:
    """The folder into which :func:`fetch` unpacks or downloads; for anything else ``where`` itself."""
    if is_link(where):
        return _folder_of(str(where), Path(into))[0]
    return unzip.folder_for(where, into) if zipfile.is_zipfile(where) else Path(where)


def fetch_file(address: str, into: str | Path, progress: ProgressCallback | None = None) -> Path:
    """One file from a link, kept as it is (a zip stays a zip), in a folder of its own; a second call does nothing.

    Raises StorageError if the link gives nothing, a web page, or more than one file.
    """
    folder, key = _folder_of(address, Path(into), "file ")
    return folder / _fetch_once(address, folder, key, reporter(progress), keep_zip=True)["name"]


def _fetch_once(address: str, folder: Path, key: str, report: ProgressCallback, keep_zip: bool = False) -> dict:
    """The record of a download, which is made if there is none with this key."""
    noted = unzip.record(folder)
    if noted.get("sha256") == key:
        return noted
    report(0.0, f"fetching {folder.name.rpartition(' ')[0]}")
    with tempfile.TemporaryDirectory() as temporary:
        got = _retrieve(address, Path(temporary), report)
        if keep_zip and len(got) != 1:
            text = f"{_shown(address)} gave {len(got)} files instead of one."
            raise StorageError(text, hint="Give the link of the file.")
        targets = [folder / filesystem.safe_path(path.relative_to(temporary).parts) for path in got]
        for path, target in zip(got, targets, strict=True):
            if zipfile.is_zipfile(path) and not keep_zip:
                unzip.unpack(path, folder / filesystem.safe_name(path.stem), report)
            else:
                atomic_store.copy_file(path, target)
    noted = {"sha256": key, "from": _shown(address), "n_files": len(got), "name": targets[0].name}
    atomic_store.write_json(folder / unzip.RECORD_NAME, noted)
    return noted


def _folder_of(address: str, into: Path, kind: str = "") -> tuple[Path, str]:
    """Folder of what a link gives, and the key of its record."""
    host, key = _split(address).hostname.lower(), hashlib.sha256(f"{kind}{address}".encode()).hexdigest()
    label = "drive" if host in _DRIVE_HOSTS else filesystem.safe_name(_path_of(address).stem or host)
    return into / f"{label} {key[:8]}", key


def _split(address: str) -> urllib.parse.SplitResult:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageError(f"{_shown(address)} is not a web address that can be fetched; use https:// or http://.")
    return parts


def _shown(address: str) -> str:
    """An address without user, password and what follows ``?``, which may be secret."""
    parts = urllib.parse.urlsplit(address)
    return printable(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl(), 200)


def _path_of(address: str) -> PurePosixPath:
    return PurePosixPath(urllib.parse.unquote(_split(address).path))


def _retrieve(address: str, at: Path, report: ProgressCallback) -> list[Path]:
    """Download into an empty folder; the files, none of them a web page."""
    if _split(address).hostname.lower() in _DRIVE_HOSTS:
        _from_drive(address, at)
    else:
        _from_web(address, at, report)
    got = sorted(path for path in at.rglob("*") if path.is_file())
    if not got:
        raise StorageError(f"{_shown(address)} gave no files.", hint=_SHARE)
    for path in got:
        with open(path, "rb") as file:
            head = file.read(256).lstrip().lower()
        if head.startswith((b"<!doctype", b"<html")):
            hint = f"{_SHARE} If many people have fetched it today, try again tomorrow."
            raise StorageError(f"{_shown(address)} gave a web page instead of a file.", hint=hint)
    return got


def _from_web(address: str, at: Path, report: ProgressCallback) -> None:
    import requests
    import urllib3

    name, done = filesystem.safe_name(_path_of(address).name, "download"), 0
    part = at / name
    try:
        with _response(address) as response, open(part, "wb") as sink:
            response.raise_for_status()
            total, began = int(response.headers.get("content-length", 0)), time.monotonic()
            read = getattr(response.raw, "read1", response.raw.read)  # what has arrived
            while block := read(filesystem.CHUNK_BYTES):
                done += len(block)
                least = LEAST_BYTES_PER_S * (time.monotonic() - began - PATIENCE_S)
                hint = "Fetch it in another way and give the file."
                if done < least:
                    raise StorageError(f"{_shown(address)} is slower than 1 kB/s.", hint=hint)
                budget.require("download", _shown(address), Cost(disk_bytes=max(done, total)), hint=hint)
                filesystem.free_space_check(at, max(0, total - done) + budget.SPARE_BYTES)
                sink.write(block)
                report(done / total if total else 0.0, f"fetching {name}")
            if done < total:
                raise OSError(f"it ended after {done} of {total} bytes")
    except (StorageError, Cancelled):
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        text = f"{_shown(address)} could not be fetched ({_why(error, address)})."
        raise StorageError(text, hint="Check address and connection.") from None


def _response(address: str):
    """The answer to a request, after redirections; one to this machine or its network is not followed from outside."""
    import requests

    local, headers = _is_local(address), {"Accept-Encoding": "identity"}  # bytes as they are: nothing unpacks
    for _ in range(MAX_REDIRECTS):
        response = requests.get(address, stream=True, timeout=60, allow_redirects=False, headers=headers)
        if not response.is_redirect:
            return response
        response.close()
        address = urllib.parse.urljoin(address, response.headers["location"])
        if not local and _is_local(address):
            raise StorageError(f"It was redirected to {_shown(address)}, an address of this machine or its network.")
    raise StorageError(f"It was redirected more than {MAX_REDIRECTS} times, at last to {_shown(address)}.")


def _is_local(address: str) -> bool:
    """True for an address that only this machine or its network has."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(_split(address).hostname, None)}
    except OSError:
        return False
    return not all(ipaddress.ip_address(str(ip).partition("%")[0]).is_global for ip in found)


def _from_drive(address: str, at: Path) -> None:
    import gdown

    parts = _split(address)
    found = re.search(r"/d/([A-Za-z0-9_-]{10,})", parts.path)
    identity = found.group(1) if found else urllib.parse.parse_qs(parts.query).get("id", [""])[0]
    is_folder = "/folders/" in parts.path
    if not is_folder and not re.fullmatch(r"[A-Za-z0-9_-]{10,}", identity):
        raise StorageError(f"{_shown(address)} is not a share link of Google Drive.", hint="Use Share, Copy link.")
    try:
        if is_folder:
            gdown.download_folder(url=address, output=f"{at}/", quiet=True, use_cookies=False)
        else:
            gdown.download(id=identity, output=f"{at}/", quiet=True, use_cookies=False)
    except Exception as error:  # gdown's errors have no common base over its versions
        # gdown's own text repeats the link, and gives advice of its own
        text = f"Google Drive did not give {_shown(address)} ({type(error).__name__})."
        raise StorageError(text, hint=_SHARE) from None


def _why(error: Exception, address: str) -> str:
    """The first line of an error, without the secret parts of the address."""
    parts = urllib.parse.urlsplit(address)
    text = str(error).replace(address, _shown(address))
    for secret in filter(None, (parts.query, parts.netloc.rpartition("@")[0])):
        text = text.replace(secret, "...")
    return first_line(text.strip() or type(error).__name__)
