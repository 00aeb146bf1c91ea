"""Manifest of a dataset: its recordings, the location of their segments, and the settings of the extraction.

``manifest.json`` is committed last and alone defines the dataset. A recording is a list of references into shards, so a
part of a recording can be an entry of its own.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.audio import units
from svclib.data import shards, statistics
from svclib.data.recordings import Recording, hold_out, only_held_out
from svclib.features import content_features, extract
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConfigError, DatasetError, printable
from svclib.utils.serialization import check_statistics

NAME = "manifest.json"
KIND = "svclib dataset"
FORMAT = 2  # 2: carries a checksum of itself
EARLIER_F0_MAX_HZ = 1100.0
EXTRACTION_VERSION = 1  # part of the settings' key: increase it when the same settings give other features
HOLD_OUT_END_S = (20.0, 60.0)  # of a single recording, its end is held out: from this length on, at most this much
_DICTS, _LISTS = ("settings", "versions", "statistics"), ("singers", "labels", "skipped", "duplicates")
_FIELDS: dict[str, type] = {**dict.fromkeys(_DICTS, dict), **dict.fromkeys(_LISTS, list)}
_LIBRARIES = ("numpy", "scipy", "soxr", "soundfile", "swift-f0", "onnxruntime", "torch")


def settings_key(settings: extract.FeatureSettings) -> str:
    """Hash of everything the stored features depend on."""
    return _hash([settings.to_json(), EXTRACTION_VERSION])[:16]


def _hash(value) -> str:
    """SHA-256 of JSON, independent of its layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict:
    """The manifest of a dataset; DatasetError if there is none, or it is damaged or of a newer format."""
    path = Path(folder) / NAME
    again = "Delete it and prepare again; finished parts are used again."
    if not filesystem.exists(path):
        n = len(atomic_store.find_marked(folder, shards.PATTERN))
        state = f"an unfinished dataset ({n} finished parts)" if n else "no dataset"
        raise DatasetError(f"'{folder}' holds {state}. Prepare it first; finished parts are used again.")
    try:
        manifest = filesystem.read_json(path)
    except OSError as error:
        if error.errno is not None:  # the disk failed, the file may be well
            raise
        raise DatasetError(f"{error} {again}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise DatasetError(f"'{path}' is no manifest of a dataset. Choose another folder.")
    if not isinstance(version := manifest.get("format"), int) or version > FORMAT:
        raise DatasetError(f"'{folder}' was made by a newer svclib (format {str(version)[:20]}). Update svclib.")
    if version != 1 and manifest.pop("checksum", None) != _hash(manifest):
        raise DatasetError(f"'{path}' is damaged. {again}")
    if problem := _problem(manifest):
        raise DatasetError(f"'{path}' is damaged or not of svclib: {problem}. {again}", path=path)
    return manifest


def _problem(manifest: dict) -> str:
    """Fault of a manifest as the end of a sentence; empty if its names lead nowhere else and its numbers are numbers.

    Its checksum shows only that it is whole: whoever writes a manifest writes that, too.
    """
    files, recordings = manifest.get("shards"), manifest.get("recordings")
    if not isinstance(files, dict) or not isinstance(recordings, list):
        return "it lists no shards or no recordings"
    for name, file in files.items():
        if not re.fullmatch(r"shard-[0-9a-f]{16}\.safetensors", name):
            return f"'{printable(name, 80)}' is no name of a shard"
        if not isinstance(file, dict) or not (_is_count(file.get("bytes")) and _is_hex(file.get("sha256"), 64)):
            return f"size or checksum of {name} is missing"
    if not _is_hex(manifest.get("fingerprint"), 64) or not _is_hex(manifest.get("settings_key"), 16):
        return "its fingerprint is none"
    for key, kind in _FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            return f"'{key}' is missing"
    names = [*manifest["singers"], *manifest["labels"]]
    if not all(map(filesystem.is_name, names)) or not all(isinstance(e, dict) for e in recordings):
        return "it holds singers, labels or recordings that are none"
    for entry in recordings:
        counts = [entry.get("n_samples"), entry.get("n_frames")]
        whole = isinstance(entry.get("name"), str) and _is_hex(entry.get("sha256"), 64) and all(map(_is_count, counts))
        known = entry.get("singer") in manifest["singers"] and entry.get("label") in (None, *manifest["labels"])
        segments = entry.get("segments")
        placed = isinstance(segments, list) and all(
            isinstance(s, list)
            and len(s) == 5
            and isinstance(s[0], str)
            and s[0] in files
            and all(map(_is_count, s[1:]))
            for s in segments
        )
        notes = isinstance(entry.get("notes"), list) and all(isinstance(note, str) for note in entry["notes"])
        if not (whole and known and placed and notes and entry.get("split") in ("train", "validation")):
            return f"the entry of recording '{printable(entry.get('name'), 80)}' is none"
        if counts != [sum(s[2] for s in segments), sum(s[4] for s in segments)]:
            return f"the segments of recording '{printable(entry['name'], 80)}' do not make its length"
    try:
        check_statistics(manifest["statistics"])
    except ConfigError as error:
        return str(error).rstrip(".")
    return ""


def _is_hex(value: Any, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def write(folder: Path, manifest: dict) -> None:
    """Commit a manifest with a checksum of its contents."""
    atomic_store.write_json(Path(folder) / NAME, {**manifest, "checksum": _hash(manifest)})


def versions() -> dict[str, str]:
    """Versions of the libraries of the feature extraction."""
    found = {"svclib": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def entry_of(recording: Recording, digest: str, segments: list[shards.Segment], notes: list[str]) -> dict:
    """A recording's entry in the manifest, without ``split``."""
    return {
        "name": recording.name,
        "singer": recording.singer,
        "label": recording.label,
        "sha256": digest,
        "n_samples": sum(s.n_samples for s in segments),
        "n_frames": sum(s.n_frames for s in segments),
        "notes": notes,
        "segments": [list(s) for s in segments],
    }


def split_entries(entries: list[dict], validation: str | None, settings, messages: list[str]) -> list[dict]:
    """Set ``split``; of a single recording that is long enough, the end is held out."""
    rate, hop = settings.sample_rate_hz, settings.hop_samples
    if validation is None and len(entries) == 1:
        entry, n_frames = entries[0], entries[0]["n_frames"]
        seconds = entry["n_samples"] / rate
        if seconds < HOLD_OUT_END_S[0]:
            messages.append("There is only one short recording, so nothing is held out for validation.")
            return [{**entry, "split": "train"}]
        end = int(min(HOLD_OUT_END_S[1], 0.075 * seconds) * rate / hop)
        kept = units.duration_text(end * hop / rate)
        messages.append(f"There is only one recording; its last {kept} are kept for validation.")
        begin, rest = (part_of(entry, a, b, hop) for a, b in ((0, n_frames - end), (n_frames - end, n_frames)))
        return [{**begin, "split": "train"}, {**rest, "split": "validation", "name": f"{entry['name']} (end)"}]
    split = [{**e, "split": s} for e, s in zip(entries, hold_out(entries, validation), strict=True)]
    if lost := only_held_out(split):
        messages.append(
            f"All recordings of {', '.join(lost)} are held out for validation, so no model can learn this voice. Add "
            "recordings, or choose another validation pattern."
        )
    return split


def part_of(entry: dict, from_frame: int, to_frame: int, hop_samples: int) -> dict:
    """A range of frames of a recording, as an entry that refers to the same shards."""
    segments, start = [], 0
    for shard, s0, n_samples, f0, n_frames in entry["segments"]:
        a, b = max(from_frame - start, 0), min(to_frame - start, n_frames)
        if a < b:
            to_end = to_frame == entry["n_frames"] and b == n_frames  # with the samples after the last whole frame
            n = (n_samples if to_end else b * hop_samples) - a * hop_samples
            segments.append([shard, s0 + a * hop_samples, n, f0 + a, b - a])
        start += n_frames
    n_samples = sum(s[2] for s in segments)
    return {**entry, "segments": segments, "n_samples": n_samples, "n_frames": to_frame - from_frame}


def build(folder: Path, settings, entries: list[dict], skipped: list[dict], duplicates: list[dict], old) -> dict:
    """The manifest of these recordings; ``statistics`` is {} unless ``old``, the one so far, has the same contents."""
    key = settings_key(settings)  # the fingerprint hashes what a batch depends on
    fingerprint = _hash([key, [[e[k] for k in ("sha256", "singer", "label", "split", "n_samples")] for e in entries]])
    names = sorted({segment[0] for e in entries for segment in e["segments"]})
    markers = {name: filesystem.read_json(atomic_store.marker_path(folder / name)) for name in names}
    return {
        "kind": KIND,
        "format": FORMAT,
        "settings": settings.to_json(),
        "settings_key": key,
        "versions": versions(),
        "recordings": entries,
        "singers": sorted({e["singer"] for e in entries}),
        "labels": sorted({e["label"] for e in entries if e["label"] is not None}),
        "skipped": [
            {**s, "reason": filesystem.without_folders(s["reason"])} for s in sorted(skipped, key=lambda s: s["name"])
        ],
        "duplicates": sorted(duplicates, key=lambda d: d["name"]),
        "shards": {name: {k: marker[k] for k in ("bytes", "sha256")} for name, marker in markers.items()},
        "fingerprint": fingerprint,
        "statistics": old["statistics"] if old and old["fingerprint"] == fingerprint else {},
    }


def compute_statistics(folder: Path, manifest: dict, settings: extract.FeatureSettings) -> dict:
    """Statistics of the train split, read recording by recording."""
    train = [e for e in manifest["recordings"] if e["split"] == "train"]
    with contextlib.ExitStack() as stack:
        names = manifest["shards"]
        readers = {n: stack.enter_context(contextlib.closing(shards.Reader(folder / n))) for n in names}
        found = statistics.compute((e["singer"], read_features(readers, e, settings, large=False)) for e in train)
        if settings.mel:  # segment by segment: the mel of a long recording is large
            pieces = (readers[s[0]].read("log_mel", s[3], s[3] + s[4]) for e in train for s in e["segments"])
            found["log_mel"] = statistics.value_range(pieces)
        return found


def large_features(settings: extract.FeatureSettings) -> dict[str, int]:
    """Names and widths of the features with many values per frame."""
    mel, content = settings.mel, settings.units
    return {**({"log_mel": mel.n_mels} if mel else {}), **({"content": content.dims} if content else {})}


def pin_settings(folder: Path, settings: extract.FeatureSettings) -> extract.FeatureSettings:
    """The settings with what only the dataset in the folder, if there is one, decides.

    Its content encoder is known by its weights, or the one that is found; and where the tracker searched up to the
    default of earlier versions, 1100 Hz, it does so for recordings that are added.
    """
    wanted, old = settings.units, None
    with contextlib.suppress(ValueError):
        old = extract.FeatureSettings.from_json(read(folder)["settings"])
    if old and (old.f0_max_hz, settings.f0_max_hz) == (EARLIER_F0_MAX_HZ, extract.F0_MAX_HZ):
        settings = dataclasses.replace(settings, f0_max_hz=EARLIER_F0_MAX_HZ)
    if wanted is None or wanted.fingerprint:
        return settings
    content_features.allow(wanted)
    known = old.units if old else None
    content = known if wanted.same_but_for_fingerprint(known) else content_features.pinned(wanted)
    return dataclasses.replace(settings, units=content)


def read_features(
    readers: dict, entry: dict, settings, from_frame: int = 0, to_frame: int | None = None, large: bool = True
) -> extract.Features:
    """Features of a recording or a range of its frames; ``large``: also ``log_mel`` and ``content``."""
    part = part_of(entry, from_frame, entry["n_frames"] if to_frame is None else to_frame, settings.hop_samples)
    widths, arrays = large_features(settings) if large else {}, {}
    for stored, dtype in shards.DTYPES.items():
        name = shards.FEATURES.get(stored, stored)
        if stored != "audio" and (name in widths or stored not in ("log_mel", "units")):
            empty = np.zeros((0, widths[name]) if name in widths else 0, dtype)
            pieces = [readers[s[0]].read(stored, s[3], s[3] + s[4]) for s in part["segments"]]
            arrays[name] = np.concatenate(pieces or [empty])
    return extract.Features(settings, part["n_samples"], **{**arrays, "voiced": arrays["voiced"].astype(bool)})
