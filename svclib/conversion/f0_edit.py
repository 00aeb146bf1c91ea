"""Edits of a song's F0 by hand: a small JSON file beside the song, applied in a conversion before the controls.

``SONG.f0.json`` beside the file ``SONG`` is UTF-8 JSON with one edit on each line. Edits follow one another; they move
voiced frames only, whose centres lie from ``start_s`` to before ``stop_s``, or from the first to the last point of a
``curve``. A curve joins points by straight lines: times in seconds, rising, and pitches in cents above MIDI note 0 (A4,
440 Hz, is 6900)::

    {"format": "svclib F0 edit", "format_version": 1, "song": "song.wav", "edits": [
      {"start_s": 1.2, "stop_s": 1.85, "shift_cents": -100},
      {"curve": [[2.0, 5700], [2.31, 5790.5], [2.5, 5810]]}
    ]}
"""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from svclib.audio import units
from svclib.features.extract import Features
from svclib.utils import atomic_store, budget
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ConversionError
from svclib.utils.serialization import Settings, check_fields, from_dict, setting, strict_json

FORMAT, FORMAT_VERSION = "svclib F0 edit", 1
MAX_S, MAX_CENTS = 1e6, 12_700
NOTE_SEMITONES, NOTE_S = 0.6, 0.08  # a note ends where the pitch leaves it so far for so long


@dataclasses.dataclass(frozen=True)
class Edit(Settings):
    """``shift_cents`` from ``start_s`` to ``stop_s``, or ``curve`` with its points ``(seconds, cents)``."""

    start_s: float | int = setting(0.0, 0, MAX_S)
    stop_s: float | int = setting(0.0, 0, MAX_S)
    shift_cents: float | int = setting(0.0, -MAX_CENTS, MAX_CENTS)
    curve: tuple[tuple[float, ...], ...] = setting((), 0, MAX_S, optional=True)

    def __post_init__(self):
        super().__post_init__()
        points = all(len(point) == 2 and point[1] <= MAX_CENTS for point in self.curve)
        if not points or any(a[0] >= b[0] for a, b in itertools.pairwise(self.curve)):
            raise ConfigError(f"a curve has points [seconds, cents (0 to {MAX_CENTS})] whose times rise.")
        if self.stop_s <= self.start_s:
            raise ConfigError(f"it stops at {self.stop_s:g} s, but starts at {self.start_s:g} s.")

    def to_json(self) -> dict[str, Any]:
        """The edit as it is written."""
        names = ("curve",) if self.curve else ("start_s", "stop_s", "shift_cents")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class F0Edit:
    """The edits of a song, in their order; ``song`` is its file's name."""

    edits: tuple[Edit, ...] = ()
    song: str = ""


def beside(song: Path) -> Path:
    """The file of a song's edits."""
    return song.with_name(f"{song.name}.f0.json")


def of_song(song: Path) -> F0Edit | None:
    """The edits beside a song; None where there is no file of them."""
    return read(beside(song)) if beside(song).exists() else None


def read(path: Path) -> F0Edit:
    """Read a file of edits; ConfigError names what in it is wrong."""
    budget.require("F0 edit", f"'{path.name}'", Cost(memory_bytes=path.stat().st_size), error=ConfigError)
    return parse(path.read_bytes(), path.name)


def parse(data: bytes, where: str) -> F0Edit:
    """The edits of a file's content; see the module for its format."""
    raw = strict_json(data, where)
    check_fields(raw, {"format": str, "format_version": int, "song": str, "edits": list}, where)
    if (raw["format"], raw["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise ConfigError(f"{where} is no '{FORMAT}' of version {FORMAT_VERSION}. Write it with this svclib.")
    return F0Edit(tuple(_edit(one, f"{where}: edit {i}") for i, one in enumerate(raw["edits"], 1)), raw["song"][:300])


def _edit(raw: Any, where: str) -> Edit:
    if isinstance(raw, dict) and "curve" in raw:
        check_fields(raw, {"curve": list}, where)
        times = [point[0] for point in raw["curve"] if isinstance(point, list) and point] or [0]
        raw = {"start_s": times[0], "stop_s": times[-1], "shift_cents": 0, **raw}
    return from_dict(Edit, raw, where, complete=True)


def write(path: Path, edit: F0Edit) -> None:
    """Write a file of edits in one step, one edit on each line, in place of an older one."""
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "song": edit.song}
    lines = ",\n".join("  " + json.dumps(one.to_json(), allow_nan=False) for one in edit.edits)
    text = f'{json.dumps(head, ensure_ascii=False)[:-1]}, "edits": [\n{lines}\n]}}\n'
    atomic_store.commit_bytes(path, text.encode())


def apply(features: Features, edit: F0Edit) -> Features:
    """The features with edited F0; ConversionError for edits beyond the end of the song."""
    hop, rate = features.settings.hop_samples, features.settings.sample_rate_hz
    time_s = units.frame_centers_s(features.n_frames, hop, rate)
    voiced = features.voiced & (features.f0_hz > 0)
    cents = 100.0 * units.hz_to_midi(features.f0_hz.astype(np.float64))
    for one in edit.edits:
        if one.start_s * rate >= features.n_samples:
            text = f"The F0 edit changes {one.start_s:g} to {one.stop_s:g} s of '{edit.song}', but this song is"
            hint = "Choose the song that it was made for."
            raise ConversionError(f"{text} {features.n_samples / rate:.1f} s long.", hint=hint)
        inside = voiced & (time_s >= one.start_s) & (time_s < one.stop_s)
        if one.curve:
            at_s, drawn_cents = np.array(one.curve).T
            cents[inside] = np.interp(time_s[inside], at_s, drawn_cents)
        else:
            cents[inside] += one.shift_cents
    f0_hz = np.where(voiced, units.midi_to_hz(cents / 100.0), features.f0_hz).astype(np.float32)
    return dataclasses.replace(features, f0_hz=f0_hz)


def notes(features: Features) -> list[tuple[int, int]]:
    """Notes as frames ``start, stop``: voiced pieces of F0, parted where the pitch settles elsewhere.

    A pitch that leaves the mean of its note by 0.6 semitones for 80 ms begins the next one; a vibrato comes back.
    """
    rate = features.settings.sample_rate_hz / features.settings.hop_samples
    voiced = features.voiced & (features.f0_hz > 0)
    edges = np.flatnonzero(np.diff(np.r_[False, voiced, False].astype(int))).reshape(-1, 2)
    shortest, found = max(1, math.ceil(NOTE_S * rate)), []
    for start, stop in edges.tolist():
        midi = units.hz_to_midi(features.f0_hz[start:stop].astype(np.float64))
        total, begin, away = np.r_[0.0, midi.cumsum()], 0, 0
        for i in range(1, len(midi)):
            known = max(begin + 1, i - away)  # frames of the note so far
            away = away + 1 if abs(midi[i] - (total[known] - total[begin]) / (known - begin)) > NOTE_SEMITONES else 0
            if away >= shortest and len(midi) - i > 1:
                found.append((start + begin, start + i - away + 1))
                begin, away = i - away + 1, 0
        found.append((start + begin, stop))
    return [(start, stop) for start, stop in found if stop - start >= shortest / 2]
