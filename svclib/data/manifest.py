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
from svclib.utils.serialization import check_fields, check_statistics

NAME = "manifest.json"
KIND = "svclib dataset"
FORMAT = 2  # 2: carries a checksum of itself
EARLIER_F0_MAX_HZ = 1100.0
EXTRACTION_VERSION = 1  # part of the settings' key: increase it when the same settings give other features
HOLD_OUT_END_S = (20.0, 60.0)  # of a single recording, its end is held out: from this length on, at most this much
_FIELDS: dict[str, type] = {"fingerprint": str, "settings_key": str}
_FIELDS |= dict.fromkeys(("settings", "versions", "statistics", "shards"), dict)
_FIELDS |= dict.fromkeys(("recordings", "singers", "labels", "skipped", "duplicates"), list)
_RECORDING = {"name": str, "sha256": str, "n_samples": int, "n_frames": int, "segments": list, "notes": list}
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
    try:
        _check(manifest)
    except ConfigError as error:
        raise DatasetError(f"'{path}' is damaged or not of svclib: {error} {again}", path=path) from None
    return manifest


def _check(manifest: dict) -> None:
    """Refuse (ConfigError) a manifest whose names lead elsewhere or whose numbers are none.

    Its checksum shows only that it is whole: whoever writes a manifest writes that, too.
    """
    check_fields(manifest, _FIELDS, "the manifest", others=True)
    check_statistics(manifest["statistics"])
    files, singers, labels = manifest["shards"], manifest["singers"], manifest["labels"]
    hashes = _is_hash(manifest["fingerprint"]) and _is_hash(manifest["settings_key"], 16)
    if not hashes or not all(map(filesystem.is_name, [*singers, *labels])):
        raise ConfigError("its fingerprint, settings key, singers or labels are none.")
    for name, file in files.items():
        check_fields(file, {"bytes": int, "sha256": str}, "a shard", others=True)
        if not re.fullmatch(r"shard-[0-9a-f]{16}\.safetensors", name) or not _is_hash(file["sha256"]):
            raise ConfigError(f"'{printable(name, 80)}' is no shard.")
    for entry in manifest["recordings"]:
        check_fields(entry, _RECORDING, "a recording", others=True)
        segments, known = entry["segments"], entry.get("split") in ("train", "validation")
        known &= entry.get("singer") in singers and entry.get("label") in (None, *labels)
        whole = _is_hash(entry["sha256"]) and all(isinstance(note, str) for note in entry["notes"])
        if not known or not whole or not all(_is_segment(s, files) for s in segments):
            raise ConfigError(f"the entry of recording '{printable(entry['name'], 80)}' is none.")
        if [entry["n_samples"], entry["n_frames"]] != [sum(s[2] for s in segments), sum(s[4] for s in segments)]:
            raise ConfigError(f"the segments of '{printable(entry['name'], 80)}' do not make its length.")


def _is_hash(value: str, digits: int = 64) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _is_segment(value: Any, files: dict) -> bool:
    counts = value[1:] if isinstance(value, list) and len(value) == 5 and isinstance(value[0], str) else [None]
    return all(type(n) is int and 0 <= n < 1 << 53 for n in counts) and value[0] in files


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


def entry_of(recording: Recording, digest: str, stored: list[tuple[shards.Item, shards.Segment]]) -> dict:
    """A recording's entry in the manifest, without ``split``."""
    return {
        "name": recording.name,
        "singer": recording.singer,
        "label": recording.label,
        "sha256": digest,
        "n_samples": sum(s.n_samples for _, s in stored),
        "n_frames": sum(s.n_frames for _, s in stored),
        "notes": list(stored[0][0].notes),
        "segments": [list(s) for _, s in stored],
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
    widths, arrays = large_features(settings), {}
    for stored, dtype in shards.DTYPES.items():
        name = shards.FEATURES.get(stored, stored)
        if name in ("f0_hz", "confidence", "loudness_db", "voiced") or (large and name in widths):
            empty = np.zeros((0, widths[name]) if name in widths else 0, dtype)
            pieces = [readers[s[0]].read(stored, s[3], s[3] + s[4]) for s in part["segments"]]
            arrays[name] = np.concatenate(pieces or [empty])
    return extract.Features(settings, part["n_samples"], **{**arrays, "voiced": arrays["voiced"].astype(bool)})
