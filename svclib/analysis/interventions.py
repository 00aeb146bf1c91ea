"""Excerpts of songs as model inputs, and interventions that change one factor of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from svclib.audio import units
from svclib.conversion import key_suggestion
from svclib.conversion.controls import adjust, defaults
from svclib.conversion.song import Song
from svclib.features.condition_inputs import ConditionInputs
from svclib.utils.errors import ConversionError

FACTORS = {"content": "content", "melody": "f0", "timbre": "singer", "loudness": "loudness"}  # -> model condition
KINDS = ("null", "swap", "scale")
_TRACKS = {  # fields of an excerpt that a swap takes from another one
    "content": ("log_mel", "source_f0_hz", "source_voiced", "content"),
    "melody": ("f0_hz", "voiced"),
    "loudness": ("loudness_db",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
    """An excerpt of a song, from ``start_s`` on, with the target curves of its conversion.

    Of the source: ``log_mel [frames, mels]``, ``source_f0_hz`` and ``source_voiced [frames]``, ``audio [samples]``,
    and ``content [frames, dims]``, cached features that some instruments use. Other curves ``[frames]`` are targets.
    """

    name: str
    start_s: float
    log_mel: np.ndarray
    source_f0_hz: np.ndarray
    source_voiced: np.ndarray
    f0_hz: np.ndarray
    voiced: np.ndarray
    loudness_db: np.ndarray
    audio: np.ndarray
    content: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.f0_hz)


def cut_excerpt(song: Song, statistics: dict | None, start_s=0.0, seconds=5.0, controls=None) -> Excerpt:
    """Cut an excerpt out of a song, on whole frames, and adjust it for an instrument as a conversion does.

    The song was measured with the features of the instrument, ``statistics`` are the instrument's. The excerpt has at
    least two frames and ends with the song. ``controls`` are those of the conversion; by default the suggested pitch
    shift alone. ConversionError if the song ends before ``start_s`` or has no log-mel.
    """
    measured = song.features
    if measured.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel; use the features of a diffusion model.")
    hop, rate_hz = measured.settings.hop_samples, measured.settings.sample_rate_hz
    first, length = (units.frame_of_time(max(float(x), 0.0), hop, rate_hz) for x in (start_s, seconds))
    last = min(measured.n_frames, first + max(2, length))
    if start_s < 0 or last - first < 2:
        raise ConversionError(
            f"'{song.name}' has {song.duration_s:.1f} s; an excerpt from {start_s:g} s on holds nothing of it."
        )
    if controls is None:
        shift = key_suggestion.suggest_shift(measured, statistics, "diffusion")
        semitones = float(shift.shift_semitones - 12 * shift.octaves)
        controls = dataclasses.replace(defaults("diffusion"), octave_shift=shift.octaves, semitone_shift=semitones)
    target, cut = adjust(measured, statistics, controls), slice(first, last)
    source = (measured.log_mel[cut], measured.f0_hz[cut], measured.voiced[cut])
    curves = (np.array(x) for x in (*source, target.f0_hz[cut], target.voiced[cut], target.loudness_db[cut]))
    content = None if measured.content is None else np.array(measured.content[cut])
    return Excerpt(song.name, first * hop / rate_hz, *curves, song.audio[first * hop : last * hop], content)


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One factor of ``FACTORS`` changed, everything else as it was; ``timbre`` is the singer.

    Attributes:
        kind: ``null``: replaced by its learned null embedding. ``swap``: taken from elsewhere. ``scale``: guidance with
            ``noise(off) + amount (noise(on) - noise(off))``; 0 equals ``null``, 1 changes nothing.
        amount: For ``scale``; for a ``swap`` of the melody without ``other``, semitones to transpose by.
        other: For ``swap``: source of content, melody or loudness, at least as long.
        singer: For ``swap`` of the timbre: a singer of the model, or names with weights.
    """

    factor: str
    kind: str = "null"
    amount: float | int = 0.0
    other: Excerpt | None = dataclasses.field(default=None, compare=False)
    singer: Mapping[str, int | float] | str | None = None

    def __post_init__(self):
        if self.factor not in FACTORS or self.kind not in KINDS:
            raise ConversionError(
                f"Unknown intervention '{self.kind}' of '{self.factor}'; choose one of {', '.join(KINDS)}, of "
                f"{', '.join(FACTORS)}."
            )
        if not np.isfinite(self.amount) or abs(self.amount) > 100:
            raise ConversionError(f"The amount is {self.amount}; it must be a number from -100 to 100.")
        needed = {"timbre": self.singer, "melody": self.amount, "content": self.other, "loudness": self.other}
        if self.kind == "swap" and needed[self.factor] is None:
            what = "another singer of the instrument" if self.factor == "timbre" else "another excerpt to take it from"
            raise ConversionError(f"Swapping {self.factor} needs {what}.")

    @property
    def text(self) -> str:
        """The intervention as a label."""
        if self.kind == "null":
            return f"{self.factor} off"
        if self.kind == "scale":
            return f"{self.factor} x {self.amount:g}"
        if self.factor == "timbre":
            weights = self.singer if isinstance(self.singer, Mapping) else {self.singer: 1}
            return "timbre of " + " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in weights.items())
        if self.other is None:
            return f"melody {self.amount:+g} semitones"
        return f"{self.factor} of {self.other.name}"


CHOICES = {
    "nothing": None,
    **{f"{factor} off": (factor, "null") for factor in FACTORS},
    **{f"{factor} of the other song": (factor, "swap") for factor in _TRACKS},
    "melody transposed": ("melody", "swap"),
    "timbre of the other singer": ("timbre", "swap"),
    **{f"{factor} by strength": (factor, "scale") for factor in ("content", "melody", "timbre")},
}


def from_choice(choice: str, other=None, semitones=0, strength=1, singer=None) -> list[Intervention]:
    """The intervention for a menu entry of ``CHOICES``; each uses the arguments that it needs."""
    if CHOICES[choice] is None:
        return []
    factor, kind = CHOICES[choice]
    amount = strength if kind == "scale" else semitones if choice == "melody transposed" else 0.0
    return [Intervention(factor, kind, amount, other if "song" in choice else None, singer if kind == "swap" else None)]


def dropout_warning(settings: Any, interventions: Sequence[Intervention]) -> str:
    """Warning if the model rarely or never saw these conditions dropped in training; "" if all is well.

    ``settings`` are the ``DiffusionSettings`` of the model; ``scale`` drops a condition too.
    """
    off = {change.factor for change in interventions if change.kind in ("null", "scale")}
    p = settings.condition_dropout
    if off and p == 0:
        return "Out of distribution: this model was trained without condition dropout; its nulls mean nothing."
    if len(off) > 1:
        share = p ** len(off) * (1 - p) ** (len(FACTORS) - len(off))
        return f"{len(off)} conditions are dropped at once, as in {share:.2%} of the training examples: take care."
    return ""


def swapped(excerpt: Excerpt, interventions: Sequence[Intervention]) -> Excerpt:
    """The excerpt with the tracks that swaps take from other excerpts, or transposed.

    ConversionError if another excerpt is shorter or has other mels.
    """
    n = len(excerpt)
    for change in interventions:
        if change.kind != "swap" or change.factor == "timbre":
            continue
        other = change.other
        if other is None:
            excerpt = dataclasses.replace(excerpt, f0_hz=excerpt.f0_hz * np.float32(2 ** (change.amount / 12)))
            continue
        if len(other) < n or other.log_mel.shape[1] != excerpt.log_mel.shape[1]:
            raise ConversionError(
                f"The excerpt of '{other.name}' has {len(other)} frames of {other.log_mel.shape[1]} mels, that of "
                f"'{excerpt.name}' {n} of {excerpt.log_mel.shape[1]}; choose one that is at least as long."
            )
        tracks = {name: getattr(other, name) for name in _TRACKS[change.factor]}
        excerpt = dataclasses.replace(excerpt, **{k: None if v is None else v[:n] for k, v in tracks.items()})
    return excerpt


def build_condition(model, excerpt: Excerpt, interventions: Sequence[Intervention] = (), singer=None) -> Tensor:
    """The condition ``[1, dims, frames]`` of a diffusion model for an excerpt with interventions.

    ``scale`` does not affect it. ``singer`` is a singer of the model, or names with weights, by default the first one;
    a swap of the timbre wins. ConversionError as :func:`swapped`, and if content features are missing.
    """
    parts = swapped(excerpt, interventions)
    content = parts.content if model.features.units is not None else None
    if model.features.units is not None and content is None:
        sources = [excerpt, *(c.other for c in interventions if c.factor == "content" and c.other is not None)]
        raise ConversionError(f"'{sources[-1].name}' has no content features for this instrument. Load it again.")
    source, target = (
        ConditionInputs.from_arrays(parts.log_mel, f0_hz, voiced, parts.loudness_db, content, model.device)
        for f0_hz, voiced in ((parts.source_f0_hz, parts.source_voiced), (parts.f0_hz, parts.voiced))
    )
    for change in interventions:
        if change.kind == "swap" and change.factor == "timbre":
            singer = change.singer
    off = [FACTORS[change.factor] for change in interventions if change.kind == "null"]
    return model.condition(source, target, model.singer_weights(singer), off)
