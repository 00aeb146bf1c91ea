"""Octave errors of a pitch tracker: detection by leaps of the track that the spectrum contradicts, and repair.

A tracker that takes the second harmonic for the first reports twice the pitch; one that sees every other period
differ, half of it. Such an error begins or ends with a leap of an octave from one frame to the next, but so does a
yodel. The spectrum decides: a voice at ``f`` has harmonics at ``f, 3f, 5f, ...``, a voice at ``2f`` has none there.
"""

import dataclasses

import numpy as np

from svclib.audio import units
from svclib.features.extract import Features

LEAP_SEMITONES = (10.5, 13.5)
GLIDE_SEMITONES_PER_S = 200.0  # faster is a leap; a sung glide of an octave takes 60 ms or more
LEAP_S = 0.035  # in which a leap is over
GAP_S = 0.06  # a leap over a shorter unvoiced gap counts too
N_MEASURED = 24  # frames of a segment whose spectrum is measured
# Odd multiples of the lower pitch against even ones, dB. True pitches of real recordings stay on the right side of both
# (above -8 and below -14.9 in tests/features/test_octave_errors.py); segments in between are not changed.
PRESENT_DB, ABSENT_DB = -10.0, -15.0


@dataclasses.dataclass(frozen=True)
class OctaveError:
    """A segment of the track with an octave error."""

    start: int  # frames ``start:stop``
    stop: int
    start_s: float  # the same in seconds
    stop_s: float
    octaves: int  # error of the tracker: 1 (an octave too high) or -1
    odd_db: float  # energy at the odd multiples of the lower of the two pitches relative to the even ones


def find_octave_errors(samples: np.ndarray, features: Features) -> list[OctaveError]:
    """Segments beside an octave leap of the track where the spectrum belongs to the octave on the other side.

    ``samples`` are at the features' rate. A song that is an octave off from beginning to end has no leap and is not
    found.
    """
    hop, rate = features.settings.hop_samples, features.settings.sample_rate_hz
    found = []
    for start, stop, neighbours in _segments(features):
        frames = np.flatnonzero(features.voiced[start:stop]) + start
        for direction in sorted(neighbours):
            f0 = features.f0_hz[frames].astype(np.float64)
            odd = odd_db(samples, frames, f0 / 2 if direction > 0 else f0, hop, rate)
            if odd > PRESENT_DB if direction > 0 else odd < ABSENT_DB:
                found.append(OctaveError(start, stop, start * hop / rate, stop * hop / rate, direction, odd))
                break
    return found


def repair(features: Features, errors: list[OctaveError]) -> Features:
    """The features with every error moved by its octave; voicing and everything else stay."""
    f0_hz = features.f0_hz.copy()
    for error in errors:
        f0_hz[error.start : error.stop] *= np.float32(2.0**-error.octaves)
    return dataclasses.replace(features, f0_hz=f0_hz)


def describe(errors: list[OctaveError], most: int = 5) -> str:
    """Count and times, as a sentence; empty if there are none."""
    if not errors:
        return ""
    sides = ["high" if e.octaves > 0 else "low" for e in errors[:most]]
    times = [f"{int(e.start_s) // 60}:{e.start_s % 60:04.1f}" for e in errors[:most]]
    listed = ", ".join(f"{time} (an octave too {side})" for time, side in zip(times, sides, strict=True))
    more = f" and {len(errors) - most} more" if len(errors) > most else ""
    places = "one place" if len(errors) == 1 else f"{len(errors)} places"
    return f"The pitch tracker seems to have jumped an octave at {places}: {listed}{more}."


def odd_db(samples: np.ndarray, frames: np.ndarray, low_hz: np.ndarray, hop: int, rate: int) -> float:
    """Energy at 1, 3, 5, 7 times ``low_hz`` relative to 2, 4, 6, 8 times, in dB; the median over the frames.

    Each frame is measured through a Hann window of six periods, wide enough to separate harmonics. Multiples above a
    quarter of the sample rate are left out.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, N_MEASURED).round().astype(int)) if len(frames) else ()
    ratios = []
    for i in chosen:
        reach = max(8, round(3 * rate / low_hz[i]))
        centre = frames[i] * hop + hop // 2
        low, high = max(0, centre - reach), min(len(samples), centre + reach)
        seen = np.asarray(samples[low:high], np.float64) * np.hanning(2 * reach)[low - centre + reach :][: high - low]
        multiples = np.arange(1, 9)[np.arange(1, 9) * low_hz[i] < rate / 4]
        if len(multiples) < 2:
            continue
        angles = 2j * np.pi / rate * low_hz[i] * np.outer(multiples, np.arange(low, high) - centre)
        energy = np.abs(np.exp(angles) @ seen) ** 2
        odd, even = energy[multiples % 2 == 1].sum(), energy[multiples % 2 == 0].sum()
        ratios.append(10 * np.log10((odd + 1e-12) / (even + 1e-12)))
    return float(np.median(ratios)) if ratios else float("nan")


def _segments(features: Features) -> list[tuple[int, int, set[int]]]:
    """Segments ``start, stop`` of the track that touch an octave leap, each with the directions (1: it lies an octave
    above its neighbour, -1: below)."""
    hop, rate = features.settings.hop_samples, features.settings.sample_rate_hz
    frames = np.flatnonzero(features.voiced & (features.f0_hz > 0))
    midi = units.hz_to_midi(features.f0_hz[frames].astype(np.float64))
    gap, step = np.diff(frames), np.diff(midi)
    fast = np.abs(step) > np.maximum(GLIDE_SEMITONES_PER_S * hop / rate * gap, 1.0)
    fast |= (gap > 1) & (np.abs(step) > 7)
    edges, leaps, i = [0], [0], 0  # a leap between segments: +1, -1, or 0 for anything else
    while i < len(step):
        if not fast[i] and gap[i] * hop / rate <= GAP_S:
            i += 1
            continue
        last = i  # steps of one direction in a row are one leap
        while last + 1 < len(step) and fast[last + 1] and step[last + 1] * step[i] > 0 and gap[last + 1] == 1:
            last += 1
        total, seconds = midi[last + 1] - midi[i], (frames[last + 1] - frames[i]) * hop / rate
        is_leap = LEAP_SEMITONES[0] <= abs(total) <= LEAP_SEMITONES[1] and seconds <= max(LEAP_S, GAP_S * (gap[i] > 1))
        edges.append(i + 1 + int(np.argmax(np.abs(step[i : last + 1]))))
        leaps.append(int(np.sign(total)) if is_leap else 0)
        i = last + 1
    edges, leaps = [*edges, len(frames)], [*leaps, 0]
    found = []
    for k in range(len(edges) - 1):
        directions = {d for d in (leaps[k], -leaps[k + 1]) if d}
        if directions and edges[k + 1] > edges[k]:
            found.append((int(frames[edges[k]]), int(frames[edges[k + 1] - 1]) + 1, directions))
    return found
