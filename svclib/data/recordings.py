"""Recordings for a dataset: search, singers and labels from file names, held-out split."""

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from svclib.audio import io as audio
from svclib.utils.errors import DatasetError

VALIDATION_SHARE = 0.075
LARGEST_VALIDATION_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Recording:
    """One file of a voice.

    Attributes:
        path: The file.
        singer: Name of the voice.
        label: A class (a digit, a vowel, ...) or None.
        name: Display name: the path inside the given folder.
        problem: Why it cannot be used, or None.
    """

    path: Path
    singer: str = "singer"
    label: str | None = None
    name: str = ""
    problem: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "name", self.name or self.path.name)


def find_recordings(
    folders: Sequence[str | Path] | str | Path, singers: Sequence[str] | None = None, labels: str | None = None
) -> list[Recording]:
    """The audio files in folders (or single files); unusable files carry a ``problem``.

    Args:
        folders: Each folder is one voice; a folder that holds only folders is several, one in each.
        singers: One name for each of ``folders``, instead of the folders' own names.
        labels: Pattern of file names without suffix, e.g. ``{label}_{singer}_{take}``: ``label`` and ``singer`` are
            used, other names are placeholders.

    Returns:
        One recording per file, by singer and then by name.

    Raises:
        DatasetError: if a folder is missing, the numbers do not fit, or a file name does not follow ``labels``.
    """
    given = [Path(folders)] if isinstance(folders, (str, Path)) else [Path(f) for f in folders]
    if singers is not None and len(singers) != len(given):
        raise DatasetError(f"{len(singers)} singers were named for {len(given)} folders; give one for each.")
    pattern = _name_pattern(labels) if labels else None
    found = []
    for position, folder in enumerate(given):
        if not folder.exists():
            near = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            there = f" There are: {', '.join(near[:8])}." if near else ""
            raise DatasetError(f"There is no folder '{folder}'.{there}")
        usable, skipped = ([folder], []) if folder.is_file() else audio.find(folder)
        root = folder.parent if folder.is_file() else folder
        nested = bool(usable) and all(Path(p).parent != root for p in usable)
        for path, problem in [(p, None) for p in usable] + [(p, reason) for p, reason in skipped]:
            inside = Path(path).relative_to(root)
            singer = inside.parts[0] if nested and len(inside.parts) > 1 else root.resolve().name
            found.append(Recording(path, singers[position] if singers else singer, None, inside.as_posix(), problem))
    if pattern:
        found = [_labelled(r, pattern, labels, singers is not None) for r in found]
    return sorted(found, key=_order)


def _order(recording: Recording) -> tuple:
    return recording.singer, recording.name, str(recording.path)


def _name_pattern(labels: str) -> re.Pattern:
    names = re.findall(r"\{(\w+)\}", labels)
    if not {"label", "singer"} & set(names) or len(set(names)) != len(names):
        raise DatasetError(
            f"'{labels}' has neither {{label}} nor {{singer}}, or a name twice; "
            "write for example {label}_{singer}_{take}."
        )
    pieces = re.split(r"\{(\w+)\}", labels)
    text = "".join(re.escape(p) if i % 2 == 0 else f"(?P<{p}>.+?)" for i, p in enumerate(pieces))
    return re.compile(text)


def _labelled(recording: Recording, pattern: re.Pattern, labels: str, singers_given: bool) -> Recording:
    match = pattern.fullmatch(Path(recording.name).stem)
    if not match:
        if recording.problem:
            return recording
        raise DatasetError(
            f"The name '{recording.name}' does not follow the pattern '{labels}'. "
            "Rename the file, move it away, or change the pattern."
        )
    parts = match.groupdict()
    singer = recording.singer if singers_given else parts.get("singer", recording.singer)
    return dataclasses.replace(recording, singer=singer, label=parts.get("label"))


def only_held_out(entries: list[dict]) -> list[str]:
    """Singers without any recording in the train split."""
    trained = {e["singer"] for e in entries if e.get("split") == "train"}
    return sorted({e["singer"] for e in entries if e.get("split") == "validation"} - trained)


def hold_out(entries: list[dict], pattern: str | None = None) -> list[str]:
    """Split into train and validation.

    Without a pattern the choice depends only on each recording's contents (about 7.5 % of them), so adding one moves no
    other. Exceptions: at least one for validation if there are two or more, at least one for training, one of every
    singer if that leaves any for validation, and none longer than a quarter of the whole if there is another.

    Args:
        entries: ``name``, ``sha256``, ``n_samples`` and, where there are several, ``singer`` of each recording.
        pattern: File name pattern such as ``*_[0-4].wav``, for the path inside the folder or the bare name.

    Returns:
        "train" or "validation" for each entry, in their order.

    Raises:
        DatasetError: if the pattern fits no recording, or all.
    """
    if pattern:
        chosen = [
            fnmatch.fnmatch(e["name"], pattern) or fnmatch.fnmatch(Path(e["name"]).name, pattern) for e in entries
        ]
        if not any(chosen) or all(chosen):
            what = "all recordings fit" if any(chosen) else "no recording fits"
            raise DatasetError(
                f"The validation pattern '{pattern}': {what}, for example '{entries[0]['name']}'. "
                "Some must be left for training and some for validation."
            )
        return ["validation" if c else "train" for c in chosen]
    total = sum(e["n_samples"] for e in entries)
    draws = [int(hashlib.sha256(f"split {e['sha256']}".encode()).hexdigest()[:12], 16) / 16**12 for e in entries]
    small = [i for i, e in enumerate(entries) if e["n_samples"] <= LARGEST_VALIDATION_SHARE * total]
    chosen = {i for i in small if draws[i] < VALIDATION_SHARE}
    if not chosen and len(entries) > 1:
        by_size = sorted(range(len(entries)), key=lambda i: (entries[i]["n_samples"], draws[i]))
        chosen = {min(small, key=lambda i: draws[i]) if small else by_size[0]}
    if len(chosen) == len(entries):
        chosen -= {max(chosen, key=lambda i: draws[i])} if chosen else set()
    for singer in {e.get("singer") for e in entries}:
        theirs = {i for i, e in enumerate(entries) if e.get("singer") == singer}
        if theirs <= chosen and len(chosen) > 1:
            chosen -= {max(theirs, key=lambda i: draws[i])}
    return ["validation" if i in chosen else "train" for i in range(len(entries))]
