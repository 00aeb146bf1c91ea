"""A/B comparison: one clip converted with several instruments, samplers, step counts, starts and vocoders.

Every variant gets the same clip, controls and seed, and is measured against the pitch and loudness asked of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from svclib.conversion import metrics, pipeline
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import Conversion
from svclib.conversion.song import cached_song, excerpt
from svclib.features import extract
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils.errors import Cancelled, ProgressCallback

PURE_NOISE = -1  # as ``shallow``: start from pure noise, whatever else is set


@dataclasses.dataclass(frozen=True)
class Variant:
    """One setting to compare; None stands for the instrument's own, or for that of :class:`Settings`.

    Attributes:
        instrument: The instrument's file.
        sampler, steps, shallow: See ``SamplingOptions``; :data:`PURE_NOISE` is no shallow start.
        vocoder: A vocoder's file, or its registered name.
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
            words += ["from pure noise" if self.shallow == PURE_NOISE else f"shallow start at {self.shallow}"]
        words += [f"vocoder {Path(self.vocoder).stem}"] if self.vocoder else []
        return ", ".join(words)

    def sampling(self, shared: SamplingOptions) -> SamplingOptions:
        """The shared options with the variant's own."""
        own = {name: getattr(self, name) for name in ("sampler", "steps", "shallow") if getattr(self, name) is not None}
        return dataclasses.replace(shared, **own | ({"shallow": None} if self.shallow == PURE_NOISE else {}))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all variants of an instrument share; see ``pipeline.convert``."""

    controls: Controls | None = None
    sampling: SamplingOptions = SamplingOptions()
    vocoder: Path | str | None = None

    def text(self, kind: str) -> str:
        """The settings that are not an instrument's own, for people; empty if there are none."""
        words = [self.controls.changes(kind)] if self.controls else []
        words += [f"{name} {value}" for name, value in self.sampling.given().items()]
        words += [f"vocoder {Path(self.vocoder).stem}"] if self.vocoder else []
        return ", ".join(filter(None, words))


@dataclasses.dataclass(frozen=True)
class Clip:
    """An excerpt of a song file; shorter where the song ends before."""

    song: Path
    start_s: float | int = 0.0
    seconds: float | int = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A variant and its measurements.

    Attributes:
        label: The variant for people, or "The song itself".
        audio, sample_rate_hz: The result; None where it failed.
        seconds: Duration of the conversion.
        seconds_per_second: The same per second of sound.
        f0_rmse_cents, f0_correlation: F0 of the result against the target F0, over frames voiced in both.
        voicing_f1: Of measured against target voicing, 0..1.
        loudness_l1_db: Mean absolute difference of measured and target loudness over frames with a target above -60 dB.
        problem: Why it failed; empty otherwise.
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

    def cells(self) -> list[str]:
        """The numbers as text, in the order of ``HEADINGS`` from the third on; a dash where there is none."""
        numbers = (
            (self.seconds, "{:.2f}"),
            (self.seconds_per_second, "{:.3f}"),
            (self.f0_rmse_cents, "{:.0f} cents"),
            (self.f0_correlation, "{:.3f}"),
            (self.voicing_f1, "{:.3f}"),
            (self.loudness_l1_db, "{:.1f} dB"),
        )
        return ["\N{EN DASH}" if math.isnan(value) else form.format(value) for value, form in numbers]


HEADINGS = ("variant", "listen", ">seconds", ">s per s", ">F0 RMSE", ">F0 corr.", ">voicing F1", ">loudness")


def variants(
    listings: Sequence[instrument.InstrumentEntry],
    samplers: Sequence[str | None] = (None,),
    steps: Sequence[int | str | None] = (None,),
    shallow: Sequence[int | str | None] = (None,),
    vocoders: Sequence[Path | str | None] = (None,),
) -> list[Variant]:
    """Every combination for every diffusion instrument; a ``ddsp`` instrument has one variant only.

    None or an empty choice stands for the instrument's own.
    """
    found = []
    for listing in listings:
        diffusion = listing.kind == "diffusion"
        choices = itertools.product(samplers, steps, shallow, vocoders) if diffusion else [(None,) * 4]
        found += [Variant(listing.path, *(value or None for value in choice)) for choice in choices]
    return list(dict.fromkeys(found))


def compare(
    compared: Sequence[Variant],
    clip: Clip,
    settings: Mapping[Path, Settings] | None = None,
    load: Callable[[Path], instrument.Instrument] = instrument.open,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Row]:
    """Convert a clip with every variant and measure the results.

    A variant that fails gives a row with the reason; the others go on. ``Cancelled`` ends the rest.

    Args:
        compared: From :func:`variants`.
        clip: What is converted.
        settings: By instrument; an instrument's own where there are none.
        load: Loads an instrument (a cache).
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``.

    Yields:
        The clip itself, before the first variant that gets so far, and a row for each variant once it is measured.
    """
    shown_song = False
    for i, variant in enumerate(compared):

        def report(fraction, text="", i=i, variant=variant):
            if progress is not None:
                progress((i + fraction) / len(compared), f"{variant.label}: {text}")

        shared = (settings or {}).get(variant.instrument, Settings())
        try:
            voice = load(variant.instrument)
            whole = cached_song(
                clip.song, voice.features, progress=lambda f, t: report(0.3 * f, t), cancelled=cancelled
            )
            source = excerpt(whole, clip.start_s, clip.seconds)
            if not shown_song:
                shown_song = True
                yield Row("The song itself", source.audio, voice.features.sample_rate_hz)
            made = pipeline.convert(
                voice,
                source,
                shared.controls,
                variant.sampling(shared.sampling),
                variant.vocoder or shared.vocoder,
                progress=lambda f, t: report(0.3 + 0.6 * f, t),
                cancelled=cancelled,
            )
            report(0.9, "measuring")
            row = measure(variant.label, made)
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            row = Row(variant.label, problem=str(error))
        yield row


def track_metrics(made: Conversion) -> dict[str, float]:
    """F0, voicing and loudness of a conversion at the instrument's rate against its target tracks.

    The figures of ``metrics.f0_accuracy`` and ``metrics.f0_error_cents``, and ``loudness_l1_db``.
    """
    measured, target = extract.extract(made.audio, made.features.settings), made.tracks
    tracks = target.f0_hz, target.voiced, measured.f0_hz, measured.voiced
    loudness = metrics.loudness_l1_db(target.loudness_db + np.float32(made.gain_db), measured.loudness_db)
    return {**metrics.f0_accuracy(*tracks), **metrics.f0_error_cents(*tracks), "loudness_l1_db": loudness}


def measure(label: str, made: Conversion) -> Row:
    """A conversion at the instrument's rate as a row of the table."""
    found = track_metrics(made)
    return Row(
        label,
        made.audio,
        made.sample_rate_hz,
        made.seconds,
        made.seconds * made.sample_rate_hz / len(made.audio),
        found["rmse"],
        found["correlation"],
        found["voicing_f1"],
        found["loudness_l1_db"],
    )
