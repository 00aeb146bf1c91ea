"""Controls of a conversion, and the conditioning tracks that they make of a song's pitch and loudness. No model here.

The order of :func:`adjust`: note-on ratio and mask; loudness through the instrument's loudness distribution; dynamics;
attenuation between notes; loudness shift; autotune of voiced frames; F0 interpolated over unvoiced frames; pitch shift.
The *mask* (note-on ratio >= threshold) selects the frames on which loudness distribution and tuning are measured, and
frames outside it are attenuated. It never moves a pitch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from svclib.audio import loudness as level
from svclib.audio import units
from svclib.audio.synthesis import upsample_hann, upsample_linear
from svclib.conversion import autotune as tuning
from svclib.conversion import f0_edit
from svclib.conversion.f0_edit import F0Edit
from svclib.features.extract import Features
from svclib.features.f0 import fill_unvoiced
from svclib.utils.serialization import check, control, control_specs

LOUDNESS_FLOOR_DB = -80.0
F0_LIMITS_HZ = (20.0, float(units.midi_to_hz(110.0)))  # a shifted pitch is clipped to these; 110 is 4698.6 Hz
N_QUANTILES = 1000
_pitch = functools.partial(control, group="Pitch")
_loudness = functools.partial(control, group="Loudness")


@dataclasses.dataclass(frozen=True)
class Controls:
    """The controls of a conversion that every instrument has. Panels, command line and tables are made from the fields.

    ``singer`` is one of a diffusion instrument's singers, or weights by name; None: its first one. ``f0_edit`` changes
    the song's F0 by hand, after the repair of octave jumps and before everything else.
    """

    octave_shift: int | float = _pitch(
        0, -3, 3, step=1, label="Octave", flags=("--octave",), help="octaves up or down; the song stays in its key"
    )
    semitone_shift: float | int = _pitch(
        0.0, -36.0, 36.0, step=1, label="Semitones", flags=("--key",), metavar="N|auto", help="semitones on top"
    )
    autotune: float | int = _pitch(
        0.0, 0.0, 1.0, step=0.1, help="how far notes move to the nearest note of the key: 0 not at all, 1 all the way"
    )
    autotune_key: str = _pitch(
        "chromatic", choices=tuning.KEYS, metavar="KEY", help="a scale such as C major; auto finds the song's"
    )
    formant_shift: float | int = _pitch(
        0.0, -6.0, 6.0, step=0.5, label="Formants", flags=("--formant",), help="semitones of the timbre at the same F0"
    )
    repair_octaves: bool = _pitch(
        False, label="Repair octave jumps", help="where the F0 tracker is an octave off; a result lists the places"
    )
    use_loudness_statistics: bool = _loudness(
        True, label="Loudness statistics", flags=("--loudness-statistics",), help="give notes the recordings' loudness"
    )
    dynamics: float | int = _loudness(
        1.0, 0.0, 1.0, step=0.1, flags=("--dynamics", "--loudness-follow"), help="1 as in the song, 0 all notes level"
    )
    loudness_shift_db: float | int = _loudness(
        0.0, -30.0, 30.0, step=1, label="Loudness (dB)", metavar="DB", help="louder or softer; timbre follows"
    )
    mask_threshold: float | int = _loudness(
        1.0, 0.0, 2.0, step=0.1, help="note-on ratio from which a frame belongs to a note; 0 takes every frame"
    )
    attenuation_db: float | int = _loudness(
        20.0, 0.0, 50.0, step=1, metavar="DB", help="decibels off between notes; a diffusion instrument begins with 0"
    )
    breath: float | int = _loudness(
        1.0, 0.0, 1.0, step=0.1, help="share of the song's breaths and consonants; a diffusion instrument begins with 0"
    )
    loudness_lufs: float | int | None = _loudness(
        None,
        -60.0,
        -5.0,
        label="Result (LUFS)",
        flags=("--lufs",),
        metavar="LUFS",
        unset="as it comes",
        suggestions=(-14, -16, -18, -23),
        help="integrated loudness of the result by ITU-R BS.1770, as far as it does not clip",
    )
    singer: Mapping[str, float | int] | str | None = None
    f0_edit: F0Edit | None = None

    def __post_init__(self):
        object.__setattr__(self, "autotune_key", tuning.key_name(self.autotune_key))
        check(self, [spec.name for spec in control_specs(self)])

    @property
    def pitch_shift_semitones(self) -> float:
        """Octaves and semitones together."""
        return 12.0 * self.octave_shift + self.semitone_shift

    def changes(self, kind: str) -> str:
        """Differences from :func:`defaults` of this kind of instrument, for people; empty if nothing does."""
        usual, found = defaults(kind), []
        for spec in control_specs(self):
            value = getattr(self, spec.name)
            if value != getattr(usual, spec.name):
                shown = ("on" if value else "off") if isinstance(value, bool) else value
                if spec.low is not None:
                    shown = f"{value:+g}" if spec.low < 0 else f"{value:g}"
                found.append(f"{spec.label[0].lower()}{spec.label[1:]} {shown}")
        if self.singer:
            mix = {self.singer: ""} if isinstance(self.singer, str) else self.singer
            found.append(
                "singer " + " + ".join(f"{name} {weight:g}" if weight else name for name, weight in mix.items())
            )
        if self.f0_edit and self.f0_edit.edits:
            n = len(self.f0_edit.edits)
            found.append(f"F0 edited at {n} place{'' if n == 1 else 's'}")
        return ", ".join(found)


def defaults(kind: str) -> Controls:
    """The controls of a kind of instrument before anything is changed.

    Between notes, ``ddsp`` is attenuated, for it would make a tone of them, and has breaths and consonants of the song;
    diffusion renders its own.
    """
    return Controls(attenuation_db=0.0, breath=0.0) if kind == "diffusion" else Controls()


PRESETS: dict[str, dict] = {  # starting points for a menu: what differs from the defaults
    "Everyday": {},
    "As sung": {"use_loudness_statistics": False, "mask_threshold": 0.0, "attenuation_db": 0.0},
    "Quiet pauses": {"mask_threshold": 1.3, "attenuation_db": 40.0, "breath": 0.0},
    "Soft voice": {"loudness_shift_db": -10.0},
    "Gentle autotune": {"autotune": 0.5, "autotune_key": "auto"},
    "Hard autotune": {"autotune": 1.0},
    "Larger voice": {"formant_shift": -2.0},
    "Smaller voice": {"formant_shift": 2.0},
    "Octave up": {"octave_shift": 1},
    "Octave down": {"octave_shift": -1},
}


def preset(name: str, kind: str = "ddsp") -> Controls:
    """One of ``PRESETS`` for a kind of instrument."""
    return dataclasses.replace(defaults(kind), **PRESETS[name])


@dataclasses.dataclass(frozen=True, eq=False)
class ConditioningTracks:
    """Pitch and loudness that a conversion asks of the instrument, ``[frames]`` of the song.

    ``f0_hz`` is > 0 everywhere (interpolated where unvoiced), or 0 everywhere if nothing is voiced; harmonics sound
    only where it is ``voiced``. ``loudness_db`` is not below -80. ``mask`` marks notes. ``autotuned_midi`` is the pitch
    before the shift, NaN where unvoiced; ``key`` and ``tuning_semitones`` (-0.5..0.5 from 440 Hz) are autotune's. The
    mean pitches are those of the notes, before the shift; None where unknown. ``warnings`` are for the person.
    """

    f0_hz: np.ndarray
    voiced: np.ndarray
    loudness_db: np.ndarray
    mask: np.ndarray
    note_on_ratio: np.ndarray
    autotuned_midi: np.ndarray
    tuning_semitones: float
    key: str
    song_mean_midi: float | None
    instrument_mean_midi: float | None
    warnings: tuple[str, ...]


def loudness_quantiles(loudness_db: np.ndarray) -> np.ndarray:
    """Evenly spaced quantiles of loudness (one value or more), float64 ``[min(1000, values)]``."""
    return np.quantile(loudness_db, np.linspace(0.0, 1.0, min(N_QUANTILES, len(loudness_db))))


def quantile_transform(
    loudness_db: np.ndarray, source_quantiles: np.ndarray, target_quantiles: np.ndarray
) -> np.ndarray:
    """Move loudness from one distribution to another, rank by rank: a rising, continuous curve of level against level.

    Inside the source's range a value goes to the target's value of the same rank; where a level repeats, its rank is
    the mean of the lowest and the highest. Outside, the curve goes on: above with slope 1; below with slope 1 too, or
    steeper where that is needed to keep silence (-80 dB) silent. So quiet frames stay on one scale with the notes.

    Both distributions are from :func:`loudness_quantiles`. Returns float64 ``[frames]``; it may lie below the floor,
    which the caller applies.
    """
    source, target, x = source_quantiles, target_quantiles, loudness_db

    def inside(x):
        source_rank, target_rank = np.linspace(-0.5, 0.5, len(source)), np.linspace(-0.5, 0.5, len(target))
        rank = (np.interp(x, source, source_rank) - np.interp(-x, -source[::-1], -source_rank[::-1])) / 2
        return np.interp(rank, target_rank, target)

    low, high = inside(source[[0, -1]])
    slope = max(1.0, (low - LOUDNESS_FLOOR_DB) / max(source[0] - LOUDNESS_FLOOR_DB, 1e-3))
    moved = np.where(x < source[0], low - slope * (source[0] - x), inside(x))
    return np.where(x > source[-1], high + (x - source[-1]), moved)


def attenuation_db(note_on_ratio: np.ndarray, threshold: float, amount_db: float) -> np.ndarray:
    """Decibels (0 or more) to take away between notes: 0 from the threshold up, growing to ``amount_db`` at ratio 0."""
    ratio = note_on_ratio.astype(np.float64)
    return amount_db * np.clip(1.0 - ratio / threshold, 0.0, 1.0) if threshold > 0 else np.zeros_like(ratio)


def silence_gain(loudness_db: np.ndarray, n_samples: int, hop_samples: int) -> np.ndarray | None:
    """Gain ``[n_samples]`` that keeps silence silent: 0 in frames at the loudness floor, else 1; None if all are 1.

    A frame is at the floor when its whole window is silent, and the window is longer than the fade of one hop.
    """
    sounding = loudness_db > LOUDNESS_FLOOR_DB
    if sounding.all():
        return None
    return _per_sample(upsample_linear, sounding, hop_samples, n_samples)


def _per_sample(upsample: Callable, frames: np.ndarray, hop_samples: int, n_samples: int) -> np.ndarray:
    """Frames ``[frames, ...]`` at the rate of the samples, float32 ``[n_samples, ...]``; the end is held."""
    curve = upsample(torch.from_numpy(frames.astype(np.float32))[None], hop_samples)[0].numpy()
    missing = max(0, n_samples - len(curve))
    return np.pad(curve, [(0, missing)] + [(0, 0)] * (curve.ndim - 1), mode="edge")[:n_samples]


def with_breath(
    parts: Sequence[np.ndarray], source: np.ndarray, features: Features, tracks: ConditioningTracks, controls: Controls
) -> list[np.ndarray]:
    """Audio, harmonic and noise part with the ``breath`` control's share of the source in place of unvoiced frames.

    The source ``[samples]`` goes into the noise part, at the loudness that is asked for apart from the attenuation.
    """
    ratio, kept = tracks.note_on_ratio, np.where(tracks.voiced, 0.0, controls.breath)
    asked_db = tracks.loudness_db + attenuation_db(ratio, controls.mask_threshold, controls.attenuation_db)
    gain = units.db_to_amplitude(np.clip(asked_db - features.loudness_db, -40.0, 20.0))
    curves = np.stack([kept, kept * gain], axis=-1)
    kept, share = _per_sample(upsample_hann, curves, features.settings.hop_samples, len(parts[0])).T
    audio, harmonic, noise = parts
    quieter, other = harmonic * (1 - kept), noise * (1 - kept) + share * source
    return [audio + (quieter - harmonic) + (other - noise), quieter, other]


def adjust(features: Features, statistics: dict | None, controls: Controls) -> ConditioningTracks:
    """Turn a song's measurements into the pitch and loudness that are asked of the instrument.

    ``statistics`` are the instrument's, if it carries any. A song without pitch or notes gives a warning, not an error.
    """
    warnings = []
    if controls.f0_edit is not None:
        features = f0_edit.apply(features, controls.f0_edit)
    voiced = features.voiced & (features.f0_hz > 0)
    ratio = level.note_on_ratio(features.loudness_db, features.confidence)
    mask = ratio >= controls.mask_threshold
    if not voiced.any():
        warnings.append("No pitch was found in this song: the result has no harmonic part, only noise.")
    loudness = _adjust_loudness(features, statistics, controls, ratio, mask, warnings)

    midi = units.hz_to_midi(features.f0_hz.astype(np.float64))
    notes = mask & voiced
    offset = tuning.tuning_offset(midi[notes], features.confidence[notes])
    key = controls.autotune_key
    if key == "auto":
        key = tuning.suggest_key(midi[notes], features.confidence[notes], offset)
    tuned = tuning.autotune(midi, voiced, controls.autotune, offset, key) if controls.autotune > 0 else midi

    held_hz = fill_unvoiced(np.where(voiced, units.midi_to_hz(tuned), 0.0), voiced)
    f0_hz = held_hz * 2.0 ** (controls.pitch_shift_semitones / 12.0)
    low, high = F0_LIMITS_HZ
    beyond = voiced & ((f0_hz < low) | (f0_hz > high))
    if beyond.any():
        warnings.append(
            f"The pitch shift puts {100 * beyond.sum() / voiced.sum():.0f} % of the voiced frames outside {low:.0f} to "
            f"{high:.0f} Hz; they are held at the limit. Choose a smaller shift."
        )
    return ConditioningTracks(
        f0_hz=(np.clip(f0_hz, low, high) if voiced.any() else f0_hz).astype(np.float32),
        voiced=voiced,
        loudness_db=loudness.astype(np.float32),
        mask=mask,
        note_on_ratio=ratio.astype(np.float32),
        autotuned_midi=np.where(voiced, tuned, np.nan),
        tuning_semitones=offset,
        key=key,
        song_mean_midi=float(midi[notes].mean()) if notes.any() else None,
        instrument_mean_midi=statistic(statistics, "f0_midi", "mean_note"),
        warnings=tuple(warnings),
    )


def _adjust_loudness(features, statistics, controls, ratio, mask, warnings) -> np.ndarray:
    loudness = features.loudness_db.astype(np.float64)
    fitted = mask & (loudness > LOUDNESS_FLOOR_DB + 1.0)  # digital silence is no note, even at threshold 0
    target = (statistics or {}).get("loudness_quantiles_db")
    if not fitted.any():
        warnings.append(
            "No frame of this song counts as a note; its loudness stays as it is. Lower the mask threshold."
        )
    elif controls.use_loudness_statistics and not target:
        warnings.append("This instrument carries no loudness statistics; the song's loudness is used as it is.")
    elif controls.use_loudness_statistics:
        seconds = fitted.sum() * features.settings.hop_samples / features.settings.sample_rate_hz
        if seconds < 0.5 and fitted.mean() < 0.5:
            text = f"Only {seconds:.2f} s of this song count as notes, too little to measure its loudness by."
            warnings.append(f"{text} Lower the mask threshold.")
        source = _without_tails(loudness_quantiles(loudness[fitted]))
        loudness = quantile_transform(loudness, source, _without_tails(np.asarray(target)))
    if controls.dynamics < 1 and fitted.any():
        mean = statistic(statistics, "loudness_db", "mean_note") if target else None
        mean = float(loudness[fitted].mean()) if mean is None else mean
        notes = np.clip(ratio, 0.0, 1.0)  # between notes the change fades to nothing: silence stays silent
        loudness = loudness + (1.0 - controls.dynamics) * notes * (mean - loudness)
    loudness = loudness - attenuation_db(ratio, controls.mask_threshold, controls.attenuation_db)
    loudness = np.maximum(loudness + controls.loudness_shift_db, LOUDNESS_FLOOR_DB)
    loudest = statistic(statistics, "loudness_db", "max")
    if loudest is not None and loudness.max(initial=-np.inf) > loudest + 6.0:
        warnings.append(
            f"The loudness asked for reaches {loudness.max():.0f} dB, more than 6 dB above the loudest of the "
            f"instrument's recordings ({loudest:.0f} dB); it may sound strained."
        )
    return loudness


def _without_tails(quantiles: np.ndarray) -> np.ndarray:
    """Quantiles from 1 to 99 %: the rarest levels would make the curve so steep at its ends that notes jump there."""
    ranks = np.linspace(0.01, 0.99, N_QUANTILES)
    return np.interp(ranks, np.linspace(0.0, 1.0, len(quantiles)), quantiles)


def statistic(statistics: dict | None, group: str, name: str) -> float | None:
    """One number of an instrument's statistics; None where it carries none."""
    value = ((statistics or {}).get(group) or {}).get(name)
    return None if value is None else float(value)
