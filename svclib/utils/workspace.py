"""The folder of a person's recordings, songs, runs and instruments: on Google Drive in Colab, local elsewhere."""

import dataclasses
import os
import sys
from pathlib import Path

from svclib.utils import filesystem
from svclib.utils.errors import StorageError

DRIVE = filesystem.DRIVE_MOUNT / "MyDrive"


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


def on_colab() -> bool:
    """True inside Google Colab."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def base_folder(name: str = "svclib", base: str | Path | None = None) -> Base:
    """Make the workspace where there is none, and test that it can be written.

    It is ``base`` if given; on Colab ``MyDrive/<name>`` (Drive is mounted if it is not yet); elsewhere the environment
    variable ``SVCLIB_HOME``, else ``svclib_home`` in the working folder. Raises StorageError if Drive is not mounted or
    the folder cannot be written; nothing is made under an absent mount.
    """
    if base is None and on_colab():
        _mount_drive()
        base = DRIVE / name
    root = Path(os.path.abspath(Path(base or os.environ.get("SVCLIB_HOME") or "svclib_home").expanduser()))
    on_drive = root.is_relative_to(filesystem.DRIVE_MOUNT)
    if on_drive and not DRIVE.is_dir():
        hint = "Mount it (the folder symbol at the left, then 'Mount Drive') and run this cell again"
        hint = f"{hint}, or choose a local folder such as /content/svclib."
        raise StorageError(f"Google Drive is not mounted, so '{root}' cannot be used.", path=root, hint=hint)
    folders = {f.name: root / f.name for f in dataclasses.fields(Base) if f.name not in ("root", "on_drive")}
    with filesystem.translate_os_errors(root):
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        probe = filesystem.part_path(root)
        filesystem.active.open(probe, "wb").close()
        filesystem.active.remove(probe)
    return Base(root, on_drive=on_drive, **folders)


def _mount_drive() -> None:
    if DRIVE.is_dir():  # mount() would ask for permission again
        return
    try:
        from google.colab import drive

        drive.mount(str(filesystem.DRIVE_MOUNT))
    except Exception as error:  # the person declined, or the service failed
        hint = "Run the cell again and allow access, or use a local folder (its files vanish with the Colab machine)."
        raise StorageError(f"Google Drive could not be mounted ({error}).", hint=hint) from error
    if not DRIVE.is_dir():
        raise StorageError("Google Drive was not mounted. Run the cell again, or use a local folder.")
