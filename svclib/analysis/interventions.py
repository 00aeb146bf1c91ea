"""What a model is asked to sing in a study: a stretch of a song, and changes of one factor of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.audio import units
from svclib.conversion import key_suggestion
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls, adjust, defaults
from svclib.features.f0 import fill_unvoiced
from svclib.utils.errors import ConversionError

FACTORS = {"content": "content", "melody": "f0", "timbre": "singer", "loudness": "loudness"}  # -> its condition
HOWS = ("null", "swap", "scale")
CONTENT = ("log_mel", "source_f0_hz", "source_voiced", "content")  # what of a stretch tells what is sung


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
    """What a model is asked to sing.

    Attributes:
        name: Of the song.
        start_s: Where the stretch begins in it.
        log_mel: ``[frames, mels]`` of the source, by the model's contract.
        source_f0_hz, source_voiced: ``[frames]`` of the source.
        f0_hz, voiced, loudness_db: ``[frames]``, what is to be sung.
        audio: float32 ``[samples]`` of the source, to listen to.
        content: ``[frames, dims]``, cached content features where the instrument reads them, else None.
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
    """Cut a stretch out of a measured song, adjusted for an instrument as a conversion would be.

    Args:
        song: From ``conversion.load_song`` with the features of the instrument.
        statistics: Of the instrument.
        start_s: Where the stretch begins in the song, in seconds, 0 or more.
        seconds: Its length, at least two frames; where the song ends before, it is shorter.
        controls: As in a conversion; the suggested shift and nothing else if None.

    Returns:
        The stretch, on whole frames.

    Raises:
        ConversionError: if nothing of the song is left, or it has no log-mel.
    """
    measured = song.features
    if measured.log_mel is None:
        raise ConversionError(
            f"'{song.name}' was measured without a log-mel; only a diffusion instrument can be studied."
        )
    hop, rate_hz = measured.settings.hop_samples, measured.settings.sample_rate_hz
    first = units.frame_of_time(float(max(start_s, 0)), hop, rate_hz)
    last = min(len(measured.f0_hz), first + max(2, units.frame_of_time(float(seconds), hop, rate_hz)))
    if start_s < 0 or last - first < 2:
        raise ConversionError(
            f"'{song.name}' has {song.duration_s:.1f} s; a stretch that begins at {start_s:g} s holds nothing of it."
        )
    if controls is None:
        shift = key_suggestion.suggest_shift(measured, statistics, "diffusion")
        controls = dataclasses.replace(
            defaults("diffusion"),
            octave_shift=shift.octaves,
            semitone_shift=float(shift.shift_semitones - 12 * shift.octaves),
        )
    asked, cut = adjust(measured, statistics, controls), slice(first, last)
    return Excerpt(
        song.name,
        first * hop / rate_hz,
        np.array(measured.log_mel[cut], np.float32),
        np.array(measured.f0_hz[cut], np.float32),
        np.array(measured.voiced[cut], bool),
        np.array(asked.f0_hz[cut], np.float32),
        np.array(asked.voiced[cut], bool),
        np.array(asked.loudness_db[cut], np.float32),
        song.audio[first * hop : last * hop],
        None if measured.content is None else np.array(measured.content[cut]),
    )


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One factor asked for differently, everything else as it was.

    Attributes:
        factor: A key of ``FACTORS``: ``content``, ``melody``, ``timbre`` (the singer), ``loudness``.
        how: ``null``: switched off, its learned null in its place. ``swap``: taken from elsewhere. ``scale``: followed
            ``amount`` times as strongly: noise(off) + amount (noise(on) - noise(off)); 0 is ``null``, 1
            changes nothing.
        amount: For ``scale``; for a ``swap`` of the melody without ``other``, semitones to transpose by.
        other: For ``swap``: whose content, melody or loudness, from its beginning; at least as long.
        singer: For ``swap`` of the timbre: a singer of the model, or names with weights.
    """

    factor: str
    how: str = "null"
    amount: float | int = 0.0
    other: Excerpt | None = dataclasses.field(default=None, compare=False)
    singer: Mapping[str, int | float] | str | None = None

    def __post_init__(self):
        if self.factor not in FACTORS:
            raise ConversionError(f"There is no factor '{self.factor}'; there are {', '.join(FACTORS)}.")
        if self.how not in HOWS:
            raise ConversionError(f"A factor cannot be changed by '{self.how}'; choose {', '.join(HOWS)}.")
        if not np.isfinite(self.amount) or abs(self.amount) > 100:
            raise ConversionError(f"The amount is {self.amount}; it must be a number from -100 to 100.")
        if self.how == "swap":
            if self.factor == "timbre" and self.singer is None:
                raise ConversionError("Swapping the timbre needs another singer of the instrument.")
            if self.factor in ("content", "loudness") and self.other is None:
                raise ConversionError(f"Swapping {self.factor} needs another stretch to take it from.")

    @property
    def text(self) -> str:
        """The change in words."""
        if self.how == "null":
            return f"{self.factor} off"
        if self.how == "scale":
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
    """The change that a choice of ``CHOICES`` stands for, taking what it needs of the rest."""
    if choice not in CHOICES:
        raise ConversionError(f"There is no choice '{choice}'; there are {', '.join(CHOICES)}.")
    if CHOICES[choice] is None:
        return []
    factor, how = CHOICES[choice]
    if how == "scale":
        return [Intervention(factor, how, strength)]
    if choice == "melody transposed":
        return [Intervention(factor, how, semitones)]
    return [
        Intervention(factor, how, other=other if "song" in choice else None, singer=singer if how == "swap" else None)
    ]


def dropout_warning(settings: Any, changes: Sequence[Intervention]) -> str:
    """What a picture with conditions switched off is worth.

    Args:
        settings: ``DiffusionSettings`` of the model.
        changes: Of the run; ``scale`` counts as switching off.

    Returns:
        A sentence; empty where nothing needs saying.
    """
    off = {change.factor for change in changes if change.how in ("null", "scale")}
    share = settings.condition_dropout
    if off and share == 0:
        return "Out of distribution: this model was trained without leaving conditions out, its nulls mean nothing."
    if len(off) > 1:
        seen = share ** len(off) * (1 - share) ** (len(FACTORS) - len(off))
        return f"{len(off)} conditions are off at once, as in {seen:.2%} of what the model was trained on: take care."
    return ""


def build_condition(
    model: Any,
    asked: Excerpt,
    changes: Sequence[Intervention] = (),
    singer: Mapping[str, int | float] | str | None = None,
) -> Tensor:
    """The condition of a stretch with its changes.

    Args:
        model: A ``diffusion.DiffusionModel``.
        asked: From :func:`stretch`.
        changes: What to ask for differently; ``scale`` is not a matter of the condition and is passed over.
        singer: One of the model's singers, or names with weights, unless the timbre is swapped; None: the first one.

    Returns:
        ``[1, dims, frames]`` on the model's device.

    Raises:
        ConversionError: if what is taken from elsewhere is shorter or of other mels; if the model reads content
            features and the excerpt was measured without them.
    """
    n, parts = len(asked), {f.name: getattr(asked, f.name) for f in dataclasses.fields(asked)}
    for change in changes:
        if change.how != "swap":
            continue
        if change.factor == "timbre":
            singer = change.singer
        elif change.other is None:
            parts["f0_hz"] = parts["f0_hz"] * np.float32(2 ** (change.amount / 12))
        else:
            _require_fits(asked, change.other)
            names = {"content": CONTENT, "melody": ("f0_hz", "voiced")}
            for name in names.get(change.factor, ("loudness_db",)):
                value = getattr(change.other, name)
                parts[name] = None if value is None else value[:n]
    place = model.mel_low.device
    source = fill_unvoiced(parts["source_f0_hz"], parts["source_voiced"])
    wanted = fill_unvoiced(parts["f0_hz"], parts["voiced"])
    mel, source, wanted, loudness = (
        torch.as_tensor(np.asarray(x, np.float32), device=place)[None]
        for x in (parts["log_mel"], source, wanted, parts["loudness_db"])
    )
    sounding = torch.as_tensor(np.asarray(parts["voiced"], bool), device=place)[None]
    off, content = [FACTORS[change.factor] for change in changes if change.how == "null"], None
    if model.features.units is not None:
        if parts["content"] is None:
            names = [asked.name, *(c.other.name for c in changes if c.factor == "content" and c.other is not None)]
            raise ConversionError(f"'{names[-1]}' has no content features for this instrument. Load it again.")
        content = torch.as_tensor(np.asarray(parts["content"]), device=place)[None]
    return model.condition(mel, source, wanted, sounding, loudness, model.singer_weights(singer), off, content=content)


def _require_fits(asked: Excerpt, other: Excerpt) -> None:
    if len(other) < len(asked) or other.log_mel.shape[1] != asked.log_mel.shape[1]:
        raise ConversionError(
            f"The stretch of '{other.name}' has {len(other)} frames of {other.log_mel.shape[1]} mels, that of "
            f"'{asked.name}' {len(asked)} of {asked.log_mel.shape[1]}; choose a stretch that is at least as long."
        )


def target_f0(asked: Excerpt, changes: Sequence[Intervention]) -> tuple[np.ndarray, np.ndarray]:
    """The pitch and voicing ``[frames]`` that a stretch with its changes asks for."""
    f0_hz, voiced = asked.f0_hz, asked.voiced
    for change in changes:
        if change.factor == "melody" and change.how == "swap":
            if change.other is None:
                f0_hz = f0_hz * np.float32(2 ** (change.amount / 12))
            else:
                f0_hz, voiced = change.other.f0_hz[: len(asked)], change.other.voiced[: len(asked)]
    return f0_hz, voiced
