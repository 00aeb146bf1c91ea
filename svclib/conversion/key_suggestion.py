"""Key suggestion: the shift that brings a song into the training range of an instrument, from pitch histograms."""

import dataclasses
import math

import numpy as np

from svclib.audio import units
from svclib.audio.loudness import note_mask, note_on_ratio
from svclib.conversion import autotune
from svclib.conversion.controls import Controls, defaults, statistic
from svclib.features.extract import Features

OCTAVE_IS_ENOUGH = 0.6  # share of the best overlap from which an octave is preferred to another key


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A pitch shift that brings a song into an instrument's range.

    Attributes:
        octaves: The nearest octave: keeps the song's key.
        semitones: What to add to the octaves to sit in the middle of the range: changes the key.
        shift_semitones: The shift that is applied by default (``--key auto``), octaves included.
        text: The same for people, with the reasons.
        kind: Of the instrument.
    """

    octaves: int
    semitones: int
    shift_semitones: int
    text: str
    kind: str = "ddsp"

    @property
    def extra_semitones(self) -> int:
        """Semitones on top of the octaves: 0 or ``semitones``."""
        return self.shift_semitones - 12 * self.octaves

    def applied(self, controls: Controls | None = None) -> Controls:
        """The controls (the defaults of the kind of instrument if None) with the shift that is taken."""
        controls = controls or defaults(self.kind)
        return dataclasses.replace(controls, octave_shift=self.octaves, semitone_shift=self.extra_semitones)

    def reminder(self, controls: Controls) -> str:
        """A sentence where the controls are half an octave or more away from the shift that is taken; else empty."""
        if abs(controls.pitch_shift_semitones - self.shift_semitones) < 6:
            return ""
        more = f" and semitones {self.extra_semitones:+d}" if self.extra_semitones else ""
        return f"This instrument sings the song best at octave {self.octaves:+d}{more}: press Suggest key."


def suggest_shift(features: Features, statistics: dict | None, kind: str = "ddsp") -> Suggestion:
    """The octave, the transposition, and which of them to take.

    The octave is the nearest one by the mean pitch of the notes, unless the pitch histograms of song and instrument
    overlap clearly better (by a fifth) at another one. The transposition is where the histograms overlap most.

    Taken is the octave, because the song then stays in its key and fits its accompaniment. Not so where a diffusion
    instrument's histogram overlaps with it by less than 0.6 of the best overlap: such an instrument has learned each
    pitch's sound from recordings and is poor outside their range, while a ``ddsp`` instrument computes its harmonics at
    any pitch.

    Args:
        features: Of the song.
        statistics: Of the instrument's recordings; None if it carries none.
        kind: Of the instrument.

    Returns:
        Shifts within three octaves, with the reasons; 0 where the song has no notes or the instrument no mean pitch.
    """
    notes = note_mask(note_on_ratio(features.loudness_db, features.confidence), 1.0)
    notes = notes & features.voiced & (features.f0_hz > 0)
    mean = statistic(statistics, "f0_midi", "mean_note")
    if mean is None or not notes.any():
        reason = "no notes were found in the song" if mean is not None else "the instrument carries no pitch statistics"
        return Suggestion(0, 0, 0, f"No shift is suggested: {reason}.", kind)
    midi = units.hz_to_midi(features.f0_hz[notes].astype(np.float64))
    difference = mean - midi.mean()
    octaves = _nearest(difference / 12.0)
    shifts = np.arange(-36, 37)
    overlap = dict(zip(shifts.tolist(), _overlaps(midi, statistics, shifts), strict=True))
    by_overlap = max(range(-3, 4), key=lambda k: (overlap[12 * k], -abs(k - octaves)))
    octaves = max(-3, min(3, octaves))
    if overlap[12 * by_overlap] > 1.2 * overlap[12 * octaves]:
        octaves = by_overlap
    near = range(max(-36, 12 * octaves - 11), min(36, 12 * octaves + 11) + 1)
    best = max(near, key=lambda s: (overlap[s], -abs(s - difference)))
    if max(overlap.values()) == 0:
        best = max(-36, min(36, _nearest(difference)))
    common = {
        s: f" ({100 * share:.0f} % of the pitch histograms overlap)" if share else "" for s, share in overlap.items()
    }
    text = (
        f"The song's notes centre on {autotune.note_name(midi.mean())}, the instrument's on {autotune.note_name(mean)} "
        f"({difference:+.0f} semitones). Nearest octave: {octaves:+d}, in the song's own key{common[12 * octaves]}."
    )
    if best != 12 * octaves:
        text += f" Best fit: {best - 12 * octaves:+d} semitones more, in another key{common[best]}."
    shift = 12 * octaves
    if kind == "diffusion" and best != shift:
        if overlap[shift] < OCTAVE_IS_ENOUGH * overlap[best]:
            shift = best
            text += f" The octave alone reaches too little of the range, so {best:+d} semitones are suggested."
        else:
            text += " The octave reaches nearly as much of the range and keeps the key, so it is suggested."
    return Suggestion(octaves, best - 12 * octaves, shift, text, kind)


def _overlaps(midi: np.ndarray, statistics: dict, shifts: np.ndarray) -> list[float]:
    """Share (0..1) that the histograms of shifted song and instrument have in common, smoothed by a semitone."""
    histogram = (statistics.get("f0_midi") or {}).get("histogram") or {}
    edges, seconds = histogram.get("edges_midi") or [], np.asarray(histogram.get("seconds") or [], dtype=np.float64)
    if len(edges) != len(seconds) + 1 or seconds.sum() <= 0:
        return [0.0] * len(shifts)
    grid = np.arange(-40.0, 180.0, 0.25)
    kernel = np.exp(-0.5 * np.arange(-4.0, 4.25, 0.25) ** 2)
    centres = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2

    def smooth(values, weights):
        counts = np.histogram(values, bins=grid, weights=weights)[0]
        counts = np.convolve(counts, kernel, mode="same")
        return counts / max(counts.sum(), 1e-12)

    theirs = smooth(centres, seconds)
    ours = smooth(midi, np.ones(len(midi)))
    return [float(np.minimum(theirs, np.roll(ours, 4 * s)).sum()) for s in shifts.tolist()]


def _nearest(x: float) -> int:
    """The nearest whole number; halves towards 0."""
    return int(math.copysign(math.ceil(abs(x) - 0.5), x)) if abs(x) > 0.5 else 0
