"""The folder of a person's recordings, songs, runs and instruments: on Google Drive in Colab, local elsewhere."""

import dataclasses
import os
import sys
from pathlib import Path

from svclib.utils import filesystem
from svclib.utils.errors import StorageError

DRIVE, COLAB_DISK = filesystem.DRIVE_MOUNT / "MyDrive", Path("/content")


@dataclasses.dataclass(frozen=True)
class Base:
    """The folders of a workspace; every one exists."""

    root: Path
    audio: Path  # recordings, one sub-folder per voice; svclib never writes there except what is fetched into it
    examples: Path  # songs to convert
    output: Path  # conversions, never overwritten
    runs: Path  # training runs, one sub-folder each
    datasets: Path  # prepared datasets, one sub-folder each
    instruments: Path  # ready to share
    on_drive: bool = False  # a mounted Google Drive
    notice: str = ""  # a sentence for the person, where the folder is not the one that was meant


def on_colab() -> bool:
    """True inside Google Colab."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def root_folder(base: str | Path | None = None) -> Path:
    """The folder of a workspace on this machine: ``base``, else ``SVCLIB_HOME``, else ``svclib_home`` beside it."""
    return Path(os.path.abspath(Path(base or os.environ.get("SVCLIB_HOME") or "svclib_home").expanduser()))


def base_folder(base: str | Path | None = None) -> Base:
    """Make the workspace where there is none, and test that it can be written.

    It is ``base`` if given; on Colab ``MyDrive/svclib`` (Drive is mounted if it is not yet; who declines gets a folder
    on Colab's own disk, and a ``notice``); elsewhere the environment variable ``SVCLIB_HOME``, else ``svclib_home`` in
    the working folder. StorageError if it cannot be made or written, and with code ``foreign`` if ``base`` holds other
    things than a workspace: nothing is made there, nor under an absent mount.
    """
    given, notice = base, ""
    if base is None and on_colab():
        base = DRIVE / "svclib"
        try:
            _mount_drive()
        except StorageError as error:
            base = COLAB_DISK / "svclib"
            notice = f"{error} So your files are in {base}: they vanish with this Colab machine."
    root = root_folder(base)
    on_drive = root.is_relative_to(filesystem.DRIVE_MOUNT)
    if on_drive and on_colab():
        _mount_drive()
    if on_drive and not DRIVE.is_dir():
        hint = "Mount it (the folder symbol at the left, then 'Mount Drive') and run this cell again"
        hint = f"{hint}, or choose a local folder such as {COLAB_DISK / 'svclib'}."
        raise StorageError(f"Google Drive is not mounted, so '{root}' cannot be used.", path=root, hint=hint)
    _require_folder(root, given is not None)
    folders = {f.name: root / f.name for f in dataclasses.fields(Base) if f.type is Path and f.name != "root"}
    with filesystem.translate_os_errors(root):
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        probe = filesystem.part_path(root)
        filesystem.active.open(probe, "wb").close()
        filesystem.active.remove(probe)
    return Base(root, on_drive=on_drive, notice=notice, **folders)


def _require_folder(root: Path, given: bool) -> None:
    """Refuse files, places where no folder can be made, and folders with other things in them that were ``given``."""
    if root.is_file():
        hint = "Give a folder here, and a zip or a sound file as SOURCE in notebook 01."
        raise StorageError(f"'{root}' is a file, not a folder.", path=root, hint=hint)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"No folder can be made at '{root}'.", path=root, hint="Choose another place.") from None
    except OSError:
        return  # explained by the caller
    names = {name for name in filesystem.names(root) if not filesystem.is_system_file(name)}
    others = sorted(names.difference(f.name for f in dataclasses.fields(Base)))
    if given and others and "audio" not in names:
        hint = f"Choose a new or an empty one, for example '{root / 'svclib'}'."
        text = f"'{root}' holds other things, such as '{others[0]}', so svclib makes no folders in it."
        raise StorageError(text, path=root, hint=hint, code="foreign")


def _mount_drive() -> None:
    if DRIVE.is_dir():  # mount() would ask for permission again
        return
    hint = "To use it, run the cell again and allow access."
    try:
        from google.colab import drive

        drive.mount(str(filesystem.DRIVE_MOUNT))
    except Exception as error:  # the person declined, or the service failed
        raise StorageError(f"Google Drive could not be mounted ({error}).", hint=hint) from error
    if not DRIVE.is_dir():
        raise StorageError("Google Drive was not mounted.", hint=hint)
