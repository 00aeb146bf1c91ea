"""Key suggestion: the shift that brings a song into the training range of an instrument, from pitch histograms."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from svclib.audio import units
from svclib.audio.loudness import note_on_ratio
from svclib.conversion.controls import Controls, defaults, statistic
from svclib.features.extract import Features

OCTAVE_IS_ENOUGH = 0.6  # share of the best overlap from which an octave is preferred to another key


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A pitch shift that brings a song into the range of a kind of instrument.

    Attributes:
        octaves: The nearest octave: keeps the song's key.
        semitones: More, to sit in the middle of the range: changes the key.
        shift_semitones: The shift that is applied by default (``--key auto``), octaves included.
        text: The same for people, with the reasons.
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
    """The octave, the transposition, and which of them to take, within three octaves and with the reasons.

    The octave is the nearest one by the mean pitch of the notes, unless the pitch histograms of song and instrument
    (its ``statistics``) overlap clearly better (by a fifth) at another one. The transposition is where they overlap
    most. 0 where there are no notes or no statistics.

    Taken is the octave, because the song then stays in its key and fits its accompaniment. Not so where a diffusion
    instrument's histogram overlaps with it by less than 0.6 of the best overlap: such an instrument has learned each
    pitch's sound from recordings and is poor outside their range; ``ddsp`` computes its harmonics at any pitch.
    """
    notes = note_on_ratio(features.loudness_db, features.confidence) >= 1.0
    notes = notes & features.voiced & (features.f0_hz > 0)
    mean = statistic(statistics, "f0_midi", "mean_note")
    if mean is None or not notes.any():
        reason = "no notes were found in the song" if mean is not None else "the instrument carries no pitch statistics"
        return Suggestion(0, 0, 0, f"No shift is suggested: {reason}.", kind)
    midi = units.hz_to_midi(features.f0_hz[notes].astype(np.float64))
    difference = mean - midi.mean()
    overlap = _overlaps(midi, statistics, range(-36, 37))
    octaves = max(-3, min(3, _nearest(difference / 12.0)))
    by_overlap = max(range(-3, 4), key=lambda k: (overlap[12 * k], -abs(k - difference / 12.0)))
    if overlap[12 * by_overlap] > 1.2 * overlap[12 * octaves]:
        octaves = by_overlap
    near = range(max(-36, 12 * octaves - 11), min(36, 12 * octaves + 11) + 1)
    best = max(near, key=lambda s: (overlap[s], -abs(s - difference)))
    if not any(overlap.values()):
        best = max(-36, min(36, _nearest(difference)))
    shift = 12 * octaves
    common = {s: f" ({100 * x:.0f} % of the pitch histograms overlap)" if x else "" for s, x in overlap.items()}
    text = (
        f"The song's notes centre on {units.note_name(midi.mean())}, the instrument's on {units.note_name(mean)} "
        f"({difference:+.0f} semitones). Nearest octave: {octaves:+d}, in the song's own key{common[shift]}."
    )
    extra = best - shift
    if extra:
        text += f" Best fit: {extra:+d} semitones more, in another key{common[best]}."
    if extra and kind == "diffusion":
        if overlap[shift] < OCTAVE_IS_ENOUGH * overlap[best]:
            shift = best
            text += f" The octave alone reaches too little of the range, so {best:+d} semitones are suggested."
        else:
            text += " The octave reaches nearly as much of the range and keeps the key, so it is suggested."
    return Suggestion(octaves, extra, shift, text, kind)


def _overlaps(midi: np.ndarray, statistics: dict, shifts: Sequence[int]) -> dict[int, float]:
    """By shift: the share (0..1) that the histograms of shifted song and instrument have in common, smoothed."""
    histogram = (statistics.get("f0_midi") or {}).get("histogram") or {}
    edges, seconds = histogram.get("edges_midi") or [], np.asarray(histogram.get("seconds") or [], dtype=np.float64)
    if len(edges) != len(seconds) + 1 or seconds.sum() <= 0:
        return dict.fromkeys(shifts, 0.0)
    grid = np.arange(-40.0, 180.0, 0.25)
    kernel = np.exp(-0.5 * np.arange(-4.0, 4.25, 0.25) ** 2)  # a semitone

    def smooth(values, weights=None):
        counts = np.convolve(np.histogram(values, bins=grid, weights=weights)[0], kernel, mode="same")
        return counts / max(counts.sum(), 1e-12)

    theirs, ours = smooth((np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2, seconds), smooth(midi)
    return {s: float(np.minimum(theirs, np.roll(ours, 4 * s)).sum()) for s in shifts}


def _nearest(x: float) -> int:
    """The nearest whole number; halves towards 0."""
    return int(math.copysign(math.ceil(abs(x) - 0.5), x))
