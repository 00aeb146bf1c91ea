"""Recordings for a dataset: search, singers and labels from file names, held-out split."""

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from svclib.audio import io as audio
from svclib.utils import filesystem
from svclib.utils.errors import DatasetError

VALIDATION_SHARE = 0.075
LARGEST_VALIDATION_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Recording:
    """One file of a singer's voice, with a class (a digit, a vowel, ...) or None, a display name (the path inside the
    given folder, of legal names), and the problem why it is not used, or None.
    """

    path: Path
    singer: str = "singer"
    label: str | None = None
    name: str = ""
    problem: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "name", self.name or filesystem.as_name(self.path.name))


def find_recordings(
    folders: Sequence[str | Path] | str | Path, singers: Sequence[str] | None = None, labels: str | None = None
) -> list[Recording]:
    """The audio files in folders (or single files), by singer and name; unusable files carry a ``problem``.

    Each folder is one voice, one that holds only folders is several; ``singers`` are names for each instead of the
    folders' own. ``labels`` is a pattern of file names without suffix, e.g. ``{label}_{singer}_{take}``: ``label`` and
    ``singer`` are used, other names are placeholders. Names of singers, labels and recordings are legal
    (``filesystem.is_name``) whatever the files are called. DatasetError if a folder is missing, the numbers do not fit,
    a singer's name is none, or a file name does not follow ``labels``.
    """
    given = [Path(folders)] if isinstance(folders, (str, Path)) else [Path(f) for f in folders]
    if singers is not None and len(singers) != len(given):
        raise DatasetError(f"{len(singers)} singers were named for {len(given)} folders; give one for each.")
    if bad := [name for name in singers or () if not filesystem.is_name(name)]:
        text = f"The singer's name {ascii(bad[0])[:80]} is empty, too long or holds control characters."
        raise DatasetError(text, hint=f"Write a name of 1 to {filesystem.MAX_NAME} characters.")
    pattern, found = _name_pattern(labels) if labels else None, []
    for position, folder in enumerate(given):
        if not folder.exists():
            near = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            hint = f"There are: {', '.join(near[:8])}." if near else ""
            raise DatasetError(f"There is no file or folder '{folder}'.", path=folder, hint=hint)
        usable, skipped = audio.find(folder)
        root = folder.parent if folder.is_file() else folder
        nested = bool(usable) and all(p.parent != root for p in usable)
        for path, problem in [(p, None) for p in usable] + skipped:
            inside = path.relative_to(root)
            singer = inside.parts[0] if nested and len(inside.parts) > 1 else root.resolve().name
            singer, name = filesystem.as_name(singer) or "singer", "/".join(map(filesystem.as_name, inside.parts))
            found.append(Recording(path, singers[position] if singers else singer, None, name, problem))
    if pattern:
        found = [_labelled(r, pattern, labels, singers is not None) for r in found]
    found.sort(key=lambda r: (r.singer, filesystem.natural_key(r.name), str(r.path)))
    return _with_own_names(found)


def _with_own_names(recordings: list[Recording]) -> list[Recording]:
    """A number for the names of a singer's recordings that became one: of another normal form or encoding only."""
    own, taken = [], set()
    for recording in recordings:
        name, number, path = recording.name, 1, Path(recording.name)
        while (recording.singer, name, recording.path.parent) in taken:
            number += 1
            name = path.with_name(f"{path.stem} {number}{path.suffix}").as_posix()
        taken.add((recording.singer, name, recording.path.parent))
        own.append(dataclasses.replace(recording, name=name))
    return own


def leave_out(recordings: Sequence[Recording], paths: Collection[Path]) -> list[Recording]:
    """The recordings, those of these files marked as left out; preparing skips them with a message."""
    why = "it was left out by choice"
    return [dataclasses.replace(r, problem=r.problem or why) if r.path in paths else r for r in recordings]


def _name_pattern(labels: str) -> re.Pattern:
    pieces = re.split(r"\{(\w+)\}", labels)  # every second one is a name
    names = pieces[1::2]
    if not {"label", "singer"} & set(names) or len(set(names)) != len(names):
        raise DatasetError(
            f"'{labels}' has neither {{label}} nor {{singer}}, or a name twice; "
            "write for example {label}_{singer}_{take}."
        )
    return re.compile("".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces)))


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
    """The split ("train" or "validation") of each entry (``name``, ``sha256``, ``n_samples``, ``singer``).

    ``pattern`` is one of file names such as ``*_[0-4].wav``; DatasetError if it fits no recording, or all. Without one
    the choice depends only on each recording's contents (about 7.5 % of them), so adding one moves no other.
    Exceptions: at least one for validation if there are two or more, at least one for training, one of every singer if
    that leaves any for validation, and none longer than a quarter of the whole if there is another.
    """
    every = range(len(entries))
    if pattern:
        names = [e["name"] for e in entries]
        chosen = {i for i in every if any(fnmatch.fnmatch(n, pattern) for n in (names[i], Path(names[i]).name))}
        if len(chosen) in (0, len(entries)):
            what = "all recordings fit" if chosen else "no recording fits"
            raise DatasetError(
                f"The validation pattern '{pattern}': {what}, for example '{entries[0]['name']}'. "
                "Some must be left for training and some for validation."
            )
        return ["validation" if i in chosen else "train" for i in every]
    total = sum(e["n_samples"] for e in entries)
    draws = [int(hashlib.sha256(f"split {e['sha256']}".encode()).hexdigest()[:12], 16) / 16**12 for e in entries]
    small = [i for i in every if entries[i]["n_samples"] <= LARGEST_VALIDATION_SHARE * total]
    chosen = {i for i in small if draws[i] < VALIDATION_SHARE}
    if not chosen and len(entries) > 1:
        smallest = min(every, key=lambda i: (entries[i]["n_samples"], draws[i]))
        chosen = {min(small, key=lambda i: draws[i]) if small else smallest}
    if chosen and len(chosen) == len(entries):
        chosen -= {max(chosen, key=lambda i: draws[i])}
    for singer in {e.get("singer") for e in entries}:
        theirs = {i for i in every if entries[i].get("singer") == singer}
        if theirs <= chosen and len(chosen) > 1:
            chosen -= {max(theirs, key=lambda i: draws[i])}
    return ["validation" if i in chosen else "train" for i in every]
