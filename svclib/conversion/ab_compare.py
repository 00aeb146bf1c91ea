"""One clip sung in several ways, beside each other: which sampler, how many steps, which vocoder, which instrument?

Every way gets the same clip, controls and seed, and is measured against what it was asked to sing.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svclib.conversion import metrics, pipeline
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import Conversion
from svclib.conversion.song import cached_song, excerpt
from svclib.features import extract as features_
from svclib.models import instrument
from svclib.utils.errors import Cancelled
from svclib.utils.progress import ProgressCallback

PURE_NOISE = -1  # as ``shallow``: no rough start, whatever else is set
_CHOICES = ("sampler", "steps", "shallow", "vocoder")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to sing; None stands for the instrument's own choice, or what ``options`` of :func:`compare` say.

    Attributes:
        instrument: The instrument's file.
        sampler, steps, shallow: Of a diffusion instrument, see ``conversion.convert``; ``PURE_NOISE``: no rough start.
        vocoder: A vocoder's file, or its name in ``vocoding.NAMED``.
    """

    instrument: Path
    sampler: str | None = None
    steps: int | None = None
    shallow: int | None = None
    vocoder: Path | str | None = None

    @property
    def label(self) -> str:
        """For people."""
        words = [self.instrument.stem]
        words += [self.sampler] if self.sampler else []
        words += [f"{self.steps} steps"] if self.steps else []
        if self.shallow:
            words += ["from pure noise" if self.shallow == PURE_NOISE else f"from a rough guess at {self.shallow}"]
        words += [f"vocoder {Path(self.vocoder).stem}"] if self.vocoder else []
        return ", ".join(words)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One way and how it did.

    Attributes:
        label: The way for people, or "The song itself".
        audio, sample_rate_hz: What was sung; None where it failed.
        seconds: How long singing took.
        seconds_per_second: The same per second of sound.
        f0_rmse_cents, f0_correlation: Measured pitch of the result against the pitch asked for, over frames voiced in
            both.
        voicing_f1: Of measured against asked voicing, 0..1.
        loudness_l1_db: Mean absolute difference of measured and asked loudness over frames asked to be above -60 dB.
        problem: Why it could not be sung; empty otherwise.
    """

    label: str
    audio: np.ndarray | None = None
    sample_rate_hz: int = 0
    seconds: float = math.nan
    seconds_per_second: float = math.nan
    f0_rmse_cents: float = math.nan
    f0_correlation: float = math.nan
    voicing_f1: float = math.nan
    loudness_l1_db: float = math.nan
    problem: str = ""


HEADINGS = ("sung by", "listen", ">seconds", ">s per s", ">F0 RMSE", ">F0 corr.", ">voicing F1", ">loudness")


def variants(
    listings: Sequence[instrument.Listing],
    samplers: Sequence[str | None] = (None,),
    steps: Sequence[int | str | None] = (None,),
    shallow: Sequence[int | str | None] = (None,),
    vocoders: Sequence[Path | str | None] = (None,),
) -> list[Variant]:
    """Every combination for every diffusion instrument; a ``ddsp`` instrument has one way only.

    None or an empty choice stands for the instrument's own.
    """
    found = []
    for listing in listings:
        diffusion = listing.kind == "diffusion"
        choices = itertools.product(samplers, steps, shallow, vocoders) if diffusion else [(None,) * 4]
        found += [Variant(listing.path, *(value or None for value in choice)) for choice in choices]
    return list(dict.fromkeys(found))


def compare(
    asked: Sequence[Variant],
    song: str | Path,
    controls: Controls | None = None,
    start_s: float | int = 0.0,
    seconds: float | int = 10.0,
    seed: int = 0,
    opened: Callable[[Path], instrument.Instrument] = instrument.open,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    options: Mapping[Path, Mapping[str, Any]] | None = None,
) -> Iterator[Row]:
    """Sing a clip in several ways and measure each.

    A way that fails gives a row that says why; the others go on. ``Cancelled`` ends the rest.

    Args:
        asked: From :func:`variants`.
        song: The song's file.
        controls: The same for all; each instrument's own defaults if None.
        start_s: Where the clip begins in the song, in seconds.
        seconds: Its length; where the song ends before, it is shorter.
        seed: The same for all.
        opened: How to open an instrument (a cache).
        progress: Called with a fraction and a text.
        cancelled: Asked now and then.
        options: By instrument, what else ``conversion.convert`` is given, such as ``singer`` and ``precision``; a way's
            own choices come before a ``sampler``, ``steps``, ``shallow`` or ``vocoder`` among them.

    Yields:
        The clip itself, before the first way that gets so far, and a row for each way as soon as it is measured.
    """
    tell = progress or (lambda fraction, text: None)
    shown_song = False
    for i, way in enumerate(asked):

        def report(fraction, text="", i=i, way=way):
            tell((i + fraction) / len(asked), f"{way.label}: {text}")

        try:
            singer = opened(way.instrument)
            whole = cached_song(song, singer.features, progress=lambda f, t: report(0.3 * f, t), cancelled=cancelled)
            clip = excerpt(whole, start_s, seconds)
            if not shown_song:
                shown_song = True
                yield Row("The song itself", clip.audio, singer.features.sample_rate_hz)
            own = {name: value for name in _CHOICES if (value := getattr(way, name)) is not None}
            if way.shallow == PURE_NOISE:
                own["shallow"] = None
            made = pipeline.convert(
                singer,
                clip,
                controls,
                progress=lambda f, t: report(0.3 + 0.6 * f, t),
                cancelled=cancelled,
                **{"seed": seed, **(options or {}).get(way.instrument, {}), **own},
            )
            report(0.9, "measuring")
            row = measure(way.label, made)
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            row = Row(way.label, problem=str(error))
        yield row


def measure(label: str, made: Conversion) -> Row:
    """A conversion at the instrument's rate, against what was asked of it."""
    heard = features_.extract(made.audio, made.features.settings)
    asked = made.tracks
    pitch = metrics.f0_error_cents(asked.f0_hz, asked.voiced, heard.f0_hz, heard.voiced)
    return Row(
        label,
        made.audio,
        made.sample_rate_hz,
        made.seconds,
        made.seconds * made.sample_rate_hz / len(made.audio),
        pitch["rmse"],
        pitch["correlation"],
        metrics.f0_accuracy(asked.f0_hz, asked.voiced, heard.f0_hz, heard.voiced)["voicing_f1"],
        metrics.loudness_l1_db(asked.loudness_db + made.gain_db, heard.loudness_db),
    )


def describe_settings(controls: Controls | None, options: Mapping[Path, Mapping[str, Any]]) -> str:
    """What :func:`compare` was given besides the ways, as a sentence; empty if everything is the instruments' own."""
    if controls is None:
        return ""
    kinds = [pipeline.defaults(kind) for kind in ("diffusion", "ddsp")]
    found = {k: v for k, v in dataclasses.asdict(controls).items() if not any(v == getattr(d, k) for d in kinds)}
    for given in options.values():
        found |= {k: v for k, v in given.items() if v not in (None, "")}
    words = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in found.items()]
    return f"Set in the panel: {', '.join(words) or 'nothing but what it begins with'}."


def _plain(value) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{name} {share:g}" for name, share in value.items())
    return f"{value:g}" if isinstance(value, float) else value.stem if isinstance(value, Path) else str(value)


def cells(row: Row) -> list[str]:
    """The numbers of a row as text, in the order of ``HEADINGS`` from the third on; a dash where there is none."""
    numbers = (
        (row.seconds, "{:.2f}"),
        (row.seconds_per_second, "{:.3f}"),
        (row.f0_rmse_cents, "{:.0f} cents"),
        (row.f0_correlation, "{:.3f}"),
        (row.voicing_f1, "{:.3f}"),
        (row.loudness_l1_db, "{:.1f} dB"),
    )
    return ["\N{EN DASH}" if math.isnan(value) else form.format(value) for value, form in numbers]
