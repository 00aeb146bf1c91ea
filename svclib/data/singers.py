"""Synthetic singers for demo, lessons and tests: a source-filter voice (Fant 1960) that renders a score.

Harmonics of a glottal source are shaped by the formants of each vowel; noise makes breath and consonants. Every control
is a closed function of time, and all singers render a score with the same phones at the same times.
"""

import dataclasses
import math
import re
import tomllib
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import synthesis, units
from svclib.utils.errors import DatasetError, ProgressCallback

VOWELS = ("a", "e", "i", "o", "u")
VOICED_CONSONANTS = ("m", "n", "l")
NOISES = ("s", "sh", "f", "h", "t", "k")
PAUSE = "pau"
MASTER_DB = -17.0  # mean square re full scale of a steady vowel at a note level of 0 dB

_LEAD_S, _TAIL_S = 0.15, 0.25
_LENGTHS_S = {"s": 0.11, "sh": 0.11, "f": 0.09, "h": 0.07, "t": 0.08, "k": 0.08, "m": 0.08, "n": 0.07, "l": 0.07}
_POWER_LIMIT_HZ = 8000.0
_CONSONANT_SHARE = 0.4
_CLOSURE_SHARE = 0.6  # of t and k: the silence before the burst
_EDGE_S, _SOFT_EDGE_S, _FORMANT_S = 0.024, 0.07, 0.07
_VIBRATO_DELAY_S, _VIBRATO_GROWTH_S = 0.3, 0.3
_BANDWIDTHS_HZ = np.array([80.0, 90.0, 120.0, 150.0, 200.0])
_NOISE_SHAPES = {"s": (6200.0, 0.45), "sh": (3100.0, 0.5), "f": (6500.0, 1.5), "t": (4200.0, 0.7), "k": (1900.0, 0.4)}
_NOISE_LEVELS_DB = {"s": -12.0, "sh": -10.0, "f": -20.0, "h": -20.0, "t": -10.0, "k": -10.0}
_CONTROL_HZ = 344.53125  # control points per second; 128 samples at 44.1 kHz
_N_BANDS = 129
_WHITE_POWER = 1.0 / 3.0  # synthesis.filtered_noise starts from noise that is uniform in -1..1


@dataclasses.dataclass(frozen=True)
class Note:
    """One note: written pitch, 0.05 to 60 seconds, and a level relative to the singer's usual one.

    ``lyric`` is phones run together (``"sha"``, ``"tin"``), ``"-"`` to hold the last vowel, or ``""`` for a rest.
    """

    midi: float | int
    duration_s: float | int
    lyric: str = "a"
    level_db: float | int = 0.0


@dataclasses.dataclass(frozen=True)
class Score:
    """A melody with syllables."""

    notes: tuple[Note, ...]
    name: str = "score"


@dataclasses.dataclass(frozen=True)
class Phone:
    """A sounding phone, or ``PAUSE``, from ``start_s`` to ``end_s``."""

    phone: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class Singer:
    """Parameters of a voice."""

    name: str
    octave: int  # added to the written pitch
    low_midi: float | int  # sounding range
    high_midi: float | int
    rolloff_db: float  # fall of the source spectrum per octave, radiation included
    vibrato_hz: float
    vibrato_cents: float
    glide_s: float
    breath_db: float  # level of the breath noise against the harmonics
    consonant_ratio: float  # factor on the frequencies of the noise consonants
    formants_hz: dict[str, list[float | int]]  # five per vowel and voiced consonant; F1 follows F0 where F0 is above it


_PARAMETERS = tomllib.loads(Path(__file__).with_name("singers.toml").read_text(encoding="utf-8"))
SINGERS = {name: Singer(name, **fields) for name, fields in _PARAMETERS.items()}


@dataclasses.dataclass(frozen=True)
class SyntheticRecording:
    """A rendered score: audio float32 ``[samples]`` within -1..1, and the control curves with its phones."""

    curves: "VoiceCurves"
    audio: np.ndarray
    sample_rate_hz: int


def render(
    singer: str | Singer, score: Score, sample_rate_hz: int = 44100, seed: int = 0, octave: int | None = None
) -> SyntheticRecording:
    """Render a score with the voice of a singer (a name in :data:`SINGERS`, or parameters).

    0.15 s of silence are added before and 0.25 s after; ``seed`` is that of the noise and of the phase of the vibrato;
    ``octave`` is added to the written pitch instead of the singer's own. DatasetError for a note out of the singer's
    range, an unknown phone or an impossible duration.
    """
    import torch

    if isinstance(singer, str):
        if singer not in SINGERS:
            raise DatasetError(f"There is no singer '{singer}'; the singers are {' and '.join(SINGERS)}.")
        singer = SINGERS[singer]
    octave = singer.octave if octave is None else octave
    curves, limit_hz = VoiceCurves(singer, score, octave, seed), sample_rate_hz / 2
    n_samples = round(curves.phones[-1].end_s * sample_rate_hz)
    hop = 2 * max(1, round(sample_rate_hz / _CONTROL_HZ / 2))
    t = units.frame_centers_s(-(-n_samples // hop), hop, sample_rate_hz)
    f0_hz = curves.f0_hz(t)
    partials = curves.harmonics(t, f0_hz, limit_hz)
    total = partials.sum(axis=1)
    shares = partials / np.maximum(total, 1e-12)[:, None]
    bands_hz = np.linspace(0, limit_hz, _N_BANDS)
    magnitudes = np.sqrt(curves.noise_power(t, bands_hz, limit_hz) / _WHITE_POWER * sample_rate_hz / 2)
    f0_hz, total, shares, magnitudes = (
        torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[None] for x in (f0_hz, total, shares, magnitudes)
    )
    with torch.no_grad():
        harmonic = synthesis.harmonic_synthesis(f0_hz, total, shares, sample_rate_hz, hop)
        noise = synthesis.filtered_noise(magnitudes, hop, torch.Generator().manual_seed(seed))
    return SyntheticRecording(curves, (harmonic + noise)[0, :n_samples].numpy(), sample_rate_hz)


def phones_of(lyric: str) -> tuple[str, ...]:
    """Split a syllable into phones: ``"sha"`` -> ``("sh", "a")``; DatasetError for other sounds, or without a vowel."""
    known = sorted((*VOWELS, *VOICED_CONSONANTS, *NOISES), key=len, reverse=True)
    found = re.findall("|".join(known), lyric)
    if "".join(found) != lyric:
        raise DatasetError(f"The syllable '{lyric}' is not made of the phones {' '.join(sorted(known))}.")
    if not any(p in VOWELS for p in found):
        raise DatasetError(f"The syllable '{lyric}' has no vowel.")
    return tuple(found)


# Control curves -------------------------------------------------------------------------------------------------------


class VoiceCurves:
    """The control curves of one rendered score, as functions of time."""

    def __init__(self, singer: Singer, score: Score, octave: int, seed: int):
        self.singer = singer
        self.vibrato_phase = float(np.random.default_rng(seed).uniform(0, 2 * np.pi))
        self._read_score(score, octave)
        self._plan()

    def _read_score(self, score: Score, octave: int) -> None:
        """Turn notes into ``phones`` with times, and ``notes`` (start_s, end_s, sounding midi, level_db)."""
        if not any(n.lyric for n in score.notes):
            raise DatasetError(f"The score '{score.name}' has no note.")
        time, phones, vowel, self.notes = _LEAD_S, [Phone(PAUSE, 0.0, _LEAD_S)], None, []
        for i, note in enumerate(score.notes):
            where = f"Note {i + 1} of '{score.name}'"
            if not 0.05 <= note.duration_s < 60:
                raise DatasetError(f"{where} lasts {note.duration_s} s; a note lasts 0.05 to 60 s.")
            end = time + note.duration_s
            if not note.lyric:
                phones.append(Phone(PAUSE, time, end))
                time, vowel = end, None
                continue
            midi, low, high = note.midi + 12 * octave, self.singer.low_midi, self.singer.high_midi
            if not low <= midi <= high:
                raise DatasetError(
                    f"{where} is MIDI {midi:g} for {self.singer.name}, whose range is {low:g} to {high:g}; transpose "
                    "it or change the octave."
                )
            if note.lyric == "-" and vowel is None:
                raise DatasetError(f"{where} holds a vowel, but no note precedes it.")
            names = (vowel,) if note.lyric == "-" else phones_of(note.lyric)
            vowel = next(p for p in reversed(names) if p in VOWELS)
            wanted = sum(_LENGTHS_S.get(p, 0.0) for p in names)
            squeeze = min(1.0, _CONSONANT_SHARE * note.duration_s / wanted) if wanted else 1.0
            vowel_s = (note.duration_s - squeeze * wanted) / sum(p in VOWELS for p in names)
            self.notes.append((time, end, midi, note.level_db))
            for p in names:
                length = vowel_s if p in VOWELS else squeeze * _LENGTHS_S[p]
                phones.append(Phone(p, time, time + length))
                time += length
            time = end
        self.phones = (*phones, Phone(PAUSE, time, time + _TAIL_S))

    def _plan(self) -> None:
        """Boundaries and the value of every control between them."""
        pieces = []  # (start_s, what sounds): t and k are a silence and a burst
        for p in self.phones:
            if p.phone in ("t", "k"):
                pieces += [(p.start_s, "closure"), (p.start_s + _CLOSURE_SHARE * (p.end_s - p.start_s), p.phone)]
            else:
                pieces.append((p.start_s, p.phone))
        self.times_s = [start for start, _ in pieces[1:]]
        names, known = [name for _, name in pieces], self.singer.formants_hz
        self.widths_s = [_SOFT_EDGE_S if PAUSE in pair else _EDGE_S for pair in zip(names[:-1], names[1:], strict=True)]
        # a phone without formants takes those of the next one, the last ones those before
        shaped = [n if n in known else None for n in names]
        for i in reversed(range(len(shaped) - 1)):
            shaped[i] = shaped[i] or shaped[i + 1]
        last = next(n for n in reversed(shaped) if n)
        self.formant_values = np.log([known[n or last] for n in shaped])
        self.harmonic_gains = np.array([(n in known) * (1.0 if n in VOWELS else 0.35) for n in names])
        self.noise_gains = {
            kind: np.array([units.db_to_amplitude(level) * (n == kind) for n in names])
            for kind, level in _NOISE_LEVELS_DB.items()
        }

    def f0_hz(self, t: np.ndarray) -> np.ndarray:
        """Sounding pitch at times ``t``; held over rests and consonants."""
        midi = _steps(t, [n[0] for n in self.notes[1:]], [n[2] for n in self.notes], self.singer.glide_s)
        times, widths = [], []
        for start, end, *_ in self.notes:
            grown = start + _VIBRATO_DELAY_S + _VIBRATO_GROWTH_S / 2
            if end - 0.05 > grown:
                times += [grown, end - 0.05]
                widths += [_VIBRATO_GROWTH_S, 0.1]
        depth = _steps(t, times, [i % 2 for i in range(len(times) + 1)], widths) * self.singer.vibrato_cents / 100
        return units.midi_to_hz(midi + depth * np.sin(2 * np.pi * self.singer.vibrato_hz * t + self.vibrato_phase))

    def formants_hz(self, t: np.ndarray, f0_hz: np.ndarray) -> np.ndarray:
        """Resonances ``[times, 5]``; the first is never below F0."""
        formants = np.exp(_steps(t, self.times_s, self.formant_values, _FORMANT_S))
        formants[:, 0] = np.maximum(formants[:, 0], f0_hz)
        return formants

    def level(self, t: np.ndarray) -> np.ndarray:
        """Amplitude factor of the notes' dynamics."""
        gains = units.db_to_amplitude(np.array([MASTER_DB + n[3] for n in self.notes]))
        return _steps(t, [n[0] for n in self.notes[1:]], gains, 0.1)

    def harmonics(self, t: np.ndarray, f0_hz: np.ndarray, limit_hz: float) -> np.ndarray:
        """Peak amplitude of every harmonic ``[times, harmonics]``, 0 from ``limit_hz`` on."""
        numbers = np.arange(1, 1 + int(max(limit_hz, _POWER_LIMIT_HZ) / f0_hz.min()))
        f_hz = f0_hz[:, None] * numbers
        response = np.sqrt(_tract_power(f_hz, self.formants_hz(t, f0_hz), _BANDWIDTHS_HZ))
        partials = numbers ** (-self.singer.rolloff_db / (20 * math.log10(2))) * response
        # the same mean square for every vowel and pitch, whatever the rate
        power = 0.5 * np.sum(partials**2 * (f_hz < _POWER_LIMIT_HZ), axis=1)
        gate = _steps(t, self.times_s, self.harmonic_gains, self.widths_s)
        return partials * (f_hz < limit_hz) * (gate * self.level(t) / np.sqrt(power))[:, None]

    def noise_power(self, t: np.ndarray, f_hz: np.ndarray, limit_hz: float) -> np.ndarray:
        """One-sided power density of breath and consonants ``[times, frequencies]``, per Hz, 0 above ``limit_hz``."""
        grid = np.linspace(0, 16000.0, 513)  # shapes are scaled to power 1 below 16 kHz
        level = self.level(t)
        density = np.zeros((len(t), len(f_hz)))
        for kind, (center_hz, octaves) in _NOISE_SHAPES.items():
            gain = _steps(t, self.times_s, self.noise_gains[kind], _EDGE_S if kind not in "tk" else 0.012) * level
            shape = [_bump(x, center_hz * self.singer.consonant_ratio, octaves) ** 2 for x in (f_hz, grid)]
            density += gain[:, None] ** 2 * shape[0] / (shape[1].mean() * grid[-1])
        breath = _steps(t, self.times_s, self.harmonic_gains, self.widths_s)
        breath = breath * units.db_to_amplitude(self.singer.breath_db)
        breath = (breath + _steps(t, self.times_s, self.noise_gains["h"], self.widths_s)) * level
        formants, widths = self.formants_hz(t, self.f0_hz(t)), _BANDWIDTHS_HZ + 250
        shape = [_bump(x, 4000.0, 1.3) ** 2 * _tract_power(x[None], formants, widths) for x in (f_hz, grid[::16])]
        density += breath[:, None] ** 2 * shape[0] / (shape[1].mean(axis=1, keepdims=True) * grid[-1])
        return density * (f_hz <= limit_hz)


def _steps(t: np.ndarray, times_s, values, widths_s) -> np.ndarray:
    """``values[0]``, then from each of ``times_s`` on the next value, with half a cosine ``widths_s`` wide between."""
    values = np.asarray(values, dtype=float)
    result = np.broadcast_to(values[0], (len(t), *values.shape[1:])).copy()
    widths_s, changes = np.broadcast_to(widths_s, len(times_s)), np.diff(values, axis=0)
    for time, width, change in zip(times_s, widths_s, changes, strict=True):
        if np.any(change):
            first, last = np.searchsorted(t, (time - width / 2, time + width / 2))
            rise = 0.5 + 0.5 * np.sin(np.pi * np.clip((t[first:last] - time) / width, -0.5, 0.5))
            result[first:last] += rise.reshape(-1, *[1] * change.ndim) * change
            result[last:] += change
    return result


def _tract_power(f_hz: np.ndarray, formants_hz: np.ndarray, bandwidths_hz: np.ndarray) -> np.ndarray:
    """Power gain of a cascade of resonances ``[times, frequencies]``, each 1 at 0 Hz."""
    squared_hz = np.square(f_hz)
    loss = np.ones((len(formants_hz), f_hz.shape[1]))
    for i, bandwidth in enumerate(bandwidths_hz):
        inverse = 1.0 / np.square(formants_hz[:, i, None])
        x = squared_hz * inverse
        loss *= (x + (bandwidth**2 * inverse - 2.0)) * x + 1.0  # (1 - x)^2 + (bandwidth f / center^2)^2
    # resonances above the fifth, which the cascade leaves out, raise the top end
    top = x * (1.0 / 1.69) + 1.0
    return np.square(np.square(np.square(top))) / loss


def _bump(f_hz: np.ndarray, center_hz: float, octaves: float) -> np.ndarray:
    """A bell over log-frequency, ``octaves`` wide (standard deviation)."""
    return np.exp(-0.5 * (np.log2(np.maximum(f_hz, 1.0) / center_hz) / octaves) ** 2)


# Scores and recordings ------------------------------------------------------------------------------------------------


def random_score(
    seed: int, duration_s: float | int = 15, low_midi: float | int = 57, high_midi: float | int = 76
) -> Score:
    """A pentatonic melody with random syllables and a breath every few notes; written pitches stay in the range."""
    rng = np.random.default_rng(seed)
    key = int(rng.integers(12))
    scale = [m for m in range(math.ceil(low_midi), math.floor(high_midi) + 1) if (m - key) % 12 in (0, 2, 4, 7, 9)]
    degree, beat_s = int(rng.integers(len(scale))), float(rng.uniform(0.45, 0.7))
    notes, elapsed_s, until_rest = [], 0.0, int(rng.integers(5, 9))
    while elapsed_s < duration_s:
        if until_rest == 0:
            notes.append(Note(0, 0.6 * beat_s, ""))
            until_rest = int(rng.integers(5, 9))
        else:
            degree += int(rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]))
            degree = -degree if degree < 0 else 2 * (len(scale) - 1) - degree if degree >= len(scale) else degree
            length_s = beat_s * float(rng.choice([0.5, 1.0, 1.0, 1.0, 1.5, 2.0]))
            onset = str(rng.choice(["", "l", "m", "n", "l", "n", "s", "sh", "f", "h", "t", "k"]))
            coda = str(rng.choice(["", "", "", "", "n", "m", "s"]))
            syllable = onset + str(rng.choice(VOWELS)) + coda
            notes.append(Note(scale[degree], length_s, syllable, float(rng.uniform(-9.0, 0.0))))
            until_rest -= 1
        elapsed_s += notes[-1].duration_s
    return Score(tuple(notes), f"random {seed}")


def demo_song() -> Score:
    """The first two lines of "Twinkle, twinkle, little star" (melody: "Ah! vous dirai-je, maman", 18th century)."""
    pitches = (60, 60, 67, 67, 69, 69, 67, 65, 65, 64, 64, 62, 62, 60)
    lyrics = ("tin", "kel", "tin", "kel", "li", "tel", "sta", "hau", "ai", "on", "te", "ha", "tiu", "a")
    lengths_s = (*[0.52] * 6, 1.0) * 2
    notes = [Note(p, d, s, -1.0) for p, d, s in zip(pitches, lengths_s, lyrics, strict=True)]
    return Score((*notes[:7], Note(0, 0.2, ""), *notes[7:]), "twinkle")


def make_recordings(
    singer: str,
    out_folder: str | Path,
    minutes: float | int = 2.5,
    seed: int = 0,
    sample_rate_hz: int = 44100,
    piece_s: float | int = 15,
    progress: ProgressCallback | None = None,
) -> list[Path]:
    """Write at least ``minutes`` of recordings of a singer, each of about ``piece_s`` seconds, and return the files.

    Existing files are kept: the same arguments would give the same samples.
    """
    voice, n_pieces = SINGERS[singer], max(1, math.ceil(minutes * 60 / piece_s))
    low, high = max(voice.low_midi - 12 * voice.octave, 53), min(voice.high_midi - 12 * voice.octave, 76)
    paths = [Path(out_folder) / f"{singer}_{seed:02d}_{i:03d}.wav" for i in range(n_pieces)]
    for i, path in enumerate(paths):
        if not path.is_file():
            score = random_score(1000 * seed + i, piece_s, low, high)
            made = render(singer, score, sample_rate_hz, seed=1000 * seed + i)
            audio.write(path, made.audio, sample_rate_hz, "synthetic voice (svclib singers)")
        if progress:
            progress((i + 1) / n_pieces, f"rendering {path.name}")
    return paths
