"""Notes, keys and tuning: what autotune needs. Pitches are fractional MIDI note numbers (69 = 440 Hz)."""

import numpy as np

from svclib.audio.units import NOTE_NAMES
from svclib.utils.errors import ConfigError

KEYS = ("chromatic", "auto", *(f"{n} major" for n in NOTE_NAMES), *(f"{n} minor" for n in NOTE_NAMES))
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_FLATS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#"}
# Probe-tone profiles. Source: Krumhansl and Kessler 1982, figure 2.
_PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


def key_name(text: str) -> str:
    """A key as ``KEYS`` writes it: "Bb minor" becomes "A# minor"; ConfigError if it is none."""
    tonic, _, mode = str(text).partition(" ")
    name = f"{_FLATS.get(tonic, tonic)} {mode}".strip()
    if name not in KEYS:
        raise ConfigError(f"'{text}' is no key. Write 'chromatic', 'auto', or a scale such as 'C major' or 'Bb minor'.")
    return name


def tuning_offset(midi: np.ndarray, confidence: np.ndarray) -> float:
    """Tuning offset of a performance against concert pitch: semitones from -0.50 to 0.50 in steps of 0.01.

    Of 101 candidates the one that leaves the least distance to the nearest notes and the fewest note changes; 0 where
    all ``confidence`` (the weight of each frame) is 0 or there are no frames.
    """
    weight = confidence.astype(np.float64)
    if weight.sum() <= 0:
        return 0.0
    candidates = np.round(np.linspace(-0.5, 0.5, 101), 2)
    changes, distance = np.zeros(101), np.zeros(101)
    for i, t in enumerate(candidates):
        note = np.ceil(midi - t - 0.5)
        changes[i] = np.sum(weight[:-1] * (note[1:] != note[:-1])) / len(midi)
        distance[i] = np.sum(weight * np.abs(midi - t - note)) / len(midi)
    return float(candidates[np.argmin(_zscore(changes) + _zscore(distance))])


def autotune(
    f0_midi: np.ndarray, voiced: np.ndarray, amount: float, tuning_semitones: float = 0.0, key: str = "chromatic"
) -> np.ndarray:
    """Move voiced pitch towards the nearest note of a key (of ``KEYS``, not "auto"), float64 ``[frames]``.

    With ``amount`` 1 every voiced pitch is a note of the key plus ``tuning_semitones`` (:func:`tuning_offset`), so the
    key is tuned like the performance.
    """
    x, notes = f0_midi - tuning_semitones, scale_notes(key)
    above = np.clip(np.searchsorted(notes, x), 1, len(notes) - 1)
    low, high = notes[above - 1], notes[above]
    nearest = np.where(high - x < x - low, high, low) + tuning_semitones
    return np.where(voiced, (1.0 - amount) * f0_midi + amount * nearest, f0_midi)


def suggest_key(f0_midi: np.ndarray, weight: np.ndarray, tuning_semitones: float = 0.0) -> str:
    """The major or minor key whose probe-tone profile fits the pitches best; "chromatic" without any pitch.

    Source: Krumhansl and Schmuckler's key finding, with the profiles of Krumhansl and Kessler 1982.
    """
    if weight.sum() <= 0:
        return "chromatic"
    notes = np.round(f0_midi - tuning_semitones).astype(int) % 12
    profile_of_song = _zscore(np.bincount(notes, weights=weight, minlength=12))
    fit = {
        f"{NOTE_NAMES[k]} {mode}": profile_of_song @ np.roll(_zscore(profile), k)
        for mode, profile in _PROFILES.items()
        for k in range(12)
    }
    return max(fit, key=fit.get)


def scale_notes(key: str) -> np.ndarray:
    """MIDI notes of a key, ascending, beyond both ends of the audible range."""
    tonic, _, mode = key.partition(" ")
    notes = np.arange(-24.0, 180.0)
    return notes if key == "chromatic" else notes[np.isin((notes - NOTE_NAMES.index(tonic)) % 12, _SCALES[mode])]


def _zscore(x) -> np.ndarray:
    """Standard score; all 0 where nothing varies."""
    x = np.asarray(x, dtype=np.float64)
    spread = x.std()
    return (x - x.mean()) / spread if spread > 1e-12 else np.zeros_like(x)
