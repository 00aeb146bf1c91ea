"""Excerpts of songs as model inputs, and interventions that change one factor of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from svclib.audio import units
from svclib.conversion import key_suggestion
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls, adjust, defaults
from svclib.features.extract import ConditionInputs
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
    """An excerpt of a song with the target curves of its conversion.

    Attributes:
        name: Of the song.
        start_s: Start of the excerpt in the song.
        log_mel: ``[frames, mels]`` of the source.
        source_f0_hz, source_voiced: ``[frames]`` of the source.
        f0_hz, voiced, loudness_db: Target curves ``[frames]``.
        audio: float32 ``[samples]`` of the source.
        content: ``[frames, dims]``, cached content features of the source; None if the instrument uses none.
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


def cut_excerpt(
    song: songs.Song,
    statistics: dict | None,
    start_s: float | int = 0.0,
    seconds: float | int = 5.0,
    controls: Controls | None = None,
) -> Excerpt:
    """Cut an excerpt out of a song and adjust it for an instrument as a conversion does.

    Args:
        song: Measured with the features of the instrument.
        statistics: Of the instrument.
        start_s: Start in the song, 0 or more.
        seconds: Length, at least two frames; shorter at the end of the song.
        controls: Of the conversion; the suggested pitch shift alone if None.

    Returns:
        The excerpt, on whole frames; ConversionError if the song ends before ``start_s`` or has no log-mel.
    """
    measured = song.features
    if measured.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel; use the features of a diffusion model.")
    hop, rate_hz = measured.settings.hop_samples, measured.settings.sample_rate_hz
    first = units.frame_of_time(float(max(start_s, 0)), hop, rate_hz)
    last = min(len(measured.f0_hz), first + max(2, units.frame_of_time(float(seconds), hop, rate_hz)))
    if start_s < 0 or last - first < 2:
        raise ConversionError(
            f"'{song.name}' has {song.duration_s:.1f} s; an excerpt from {start_s:g} s on holds nothing of it."
        )
    if controls is None:
        shift = key_suggestion.suggest_shift(measured, statistics, "diffusion")
        controls = dataclasses.replace(
            defaults("diffusion"),
            octave_shift=shift.octaves,
            semitone_shift=float(shift.shift_semitones - 12 * shift.octaves),
        )
    target, cut = adjust(measured, statistics, controls), slice(first, last)
    return Excerpt(
        song.name,
        first * hop / rate_hz,
        np.array(measured.log_mel[cut], np.float32),
        np.array(measured.f0_hz[cut], np.float32),
        np.array(measured.voiced[cut], bool),
        np.array(target.f0_hz[cut], np.float32),
        np.array(target.voiced[cut], bool),
        np.array(target.loudness_db[cut], np.float32),
        song.audio[first * hop : last * hop],
        None if measured.content is None else np.array(measured.content[cut]),
    )


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One factor changed, everything else as it was.

    Attributes:
        factor: A key of ``FACTORS``; ``timbre`` is the singer.
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
        if self.factor not in FACTORS:
            raise ConversionError(f"Unknown factor '{self.factor}'; choose one of {', '.join(FACTORS)}.")
        if self.kind not in KINDS:
            raise ConversionError(f"Unknown kind of intervention '{self.kind}'; choose one of {', '.join(KINDS)}.")
        if not np.isfinite(self.amount) or abs(self.amount) > 100:
            raise ConversionError(f"The amount is {self.amount}; it must be a number from -100 to 100.")
        if self.kind == "swap":
            if self.factor == "timbre" and self.singer is None:
                raise ConversionError("Swapping the timbre needs another singer of the instrument.")
            if self.factor in ("content", "loudness") and self.other is None:
                raise ConversionError(f"Swapping {self.factor} needs another excerpt to take it from.")

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
    "content off": ("content", "null"),
    "melody off": ("melody", "null"),
    "timbre off": ("timbre", "null"),
    "loudness off": ("loudness", "null"),
    "content of the other song": ("content", "swap"),
    "melody of the other song": ("melody", "swap"),
    "loudness of the other song": ("loudness", "swap"),
    "melody transposed": ("melody", "swap"),
    "timbre of the other singer": ("timbre", "swap"),
    "content by strength": ("content", "scale"),
    "melody by strength": ("melody", "scale"),
    "timbre by strength": ("timbre", "scale"),
}


def from_choice(
    choice: str,
    other: Excerpt | None = None,
    semitones: float | int = 0,
    strength: float | int = 1,
    singer: Mapping[str, int | float] | str | None = None,
) -> list[Intervention]:
    """The intervention for a menu entry of ``CHOICES``; each uses the arguments that it needs."""
    if choice not in CHOICES:
        raise ConversionError(f"Unknown choice '{choice}'; choose one of {', '.join(CHOICES)}.")
    if CHOICES[choice] is None:
        return []
    factor, kind = CHOICES[choice]
    amount = strength if kind == "scale" else semitones if choice == "melody transposed" else 0.0
    other, singer = other if "song" in choice else None, singer if kind == "swap" else None
    return [Intervention(factor, kind, amount, other, singer)]


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


def build_condition(
    model: Any,
    excerpt: Excerpt,
    interventions: Sequence[Intervention] = (),
    singer: Mapping[str, int | float] | str | None = None,
) -> Tensor:
    """The condition ``[1, dims, frames]`` of a diffusion model for an excerpt with interventions.

    ``scale`` does not affect it. ``singer`` is a singer of the model, or names with weights, by default the first one;
    a swap of the timbre wins. ConversionError if another excerpt is shorter, has other mels or no content features.
    """
    n, parts = len(excerpt), {f.name: getattr(excerpt, f.name) for f in dataclasses.fields(excerpt)}
    for change in interventions:
        if change.kind != "swap":
            continue
        if change.factor == "timbre":
            singer = change.singer
        elif change.other is None:
            parts["f0_hz"] = _transposed(parts["f0_hz"], change.amount)
        else:
            _require_fits(excerpt, change.other)
            for name in _TRACKS[change.factor]:
                value = getattr(change.other, name)
                parts[name] = None if value is None else value[:n]
    content = None
    if model.features.units is not None:
        content = parts["content"]
        if content is None:
            sources = [excerpt, *(c.other for c in interventions if c.factor == "content" and c.other is not None)]
            raise ConversionError(f"'{sources[-1].name}' has no content features for this instrument. Load it again.")
    source, target = (
        ConditionInputs.from_arrays(parts["log_mel"], f0_hz, voiced, parts["loudness_db"], content, model.device)
        for f0_hz, voiced in ((parts["source_f0_hz"], parts["source_voiced"]), (parts["f0_hz"], parts["voiced"]))
    )
    off = [FACTORS[change.factor] for change in interventions if change.kind == "null"]
    return model.condition(source, target, model.singer_weights(singer), off)


def _transposed(f0_hz: np.ndarray, semitones: float | int) -> np.ndarray:
    return f0_hz * np.float32(2 ** (semitones / 12))


def _require_fits(excerpt: Excerpt, other: Excerpt) -> None:
    if len(other) < len(excerpt) or other.log_mel.shape[1] != excerpt.log_mel.shape[1]:
        raise ConversionError(
            f"The excerpt of '{other.name}' has {len(other)} frames of {other.log_mel.shape[1]} mels, that of "
            f"'{excerpt.name}' {len(excerpt)} of {excerpt.log_mel.shape[1]}; choose one that is at least as long."
        )


def target_f0(excerpt: Excerpt, interventions: Sequence[Intervention]) -> tuple[np.ndarray, np.ndarray]:
    """Target F0 and voicing ``[frames]`` of an excerpt with interventions."""
    f0_hz, voiced = excerpt.f0_hz, excerpt.voiced
    for change in interventions:
        if change.factor == "melody" and change.kind == "swap":
            if change.other is None:
                f0_hz = _transposed(f0_hz, change.amount)
            else:
                f0_hz, voiced = change.other.f0_hz[: len(excerpt)], change.other.voiced[: len(excerpt)]
    return f0_hz, voiced
