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
from svclib.conversion.controls import Controls, defaults
from svclib.conversion.key_suggestion import suggest_shift
from svclib.conversion.song import Song, cached_song, excerpt
from svclib.features import extract
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils.errors import Cancelled, ProgressCallback, reporter

PURE_NOISE = -1  # as ``shallow``: start from pure noise, whatever else is set
# Columns of numbers: figure of :class:`Row`, heading, format, heading in a file.
_COLUMNS = (
    ("seconds", ">seconds", "{:.2f}", "seconds"),
    ("real_time_factor", ">real-time factor", "{:.3f}", "real-time factor"),
    ("rmse", ">F0 RMSE", "{:.0f} cents", "F0 RMSE (cents)"),
    ("correlation", ">F0 corr.", "{:.3f}", "F0 correlation"),
    ("voicing_f1", ">voicing F1", "{:.3f}", "voicing F1"),
    ("loudness_l1_db", ">loudness", "{:.1f} dB", "loudness (dB)"),
)
HEADINGS = ("variant", "listen", *(heading for _, heading, *_ in _COLUMNS))


@dataclasses.dataclass(frozen=True)
class Variant:
    """One setting to compare; None stands for the instrument's own, or for that of :class:`Settings`.

    ``sampler``, ``steps`` and ``shallow`` are those of ``SamplingOptions``; :data:`PURE_NOISE` is no shallow start.
    """

    instrument: Path
    sampler: str | None = None
    steps: int | None = None
    shallow: int | None = None
    vocoder: Path | str | None = None

    @property
    def label(self) -> str:
        """For people."""
        start = "from pure noise" if self.shallow == PURE_NOISE else f"shallow start at {self.shallow}"
        words = [self.instrument.stem, self.sampler, self.steps and f"{self.steps} steps", self.shallow and start]
        words.append(self.vocoder and f"vocoder {Path(self.vocoder).stem}")
        return ", ".join(filter(None, words))

    def sampling(self, shared: SamplingOptions) -> SamplingOptions:
        """The shared options with the variant's own."""
        own = {name: value for name in ("sampler", "steps", "shallow") if (value := getattr(self, name)) is not None}
        return dataclasses.replace(shared, **own | ({"shallow": None} if self.shallow == PURE_NOISE else {}))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all variants of an instrument share; see ``pipeline.convert``.

    With ``suggested_key`` octave and semitones are those of ``suggest_shift`` for the whole song.
    """

    controls: Controls | None = None
    sampling: SamplingOptions = SamplingOptions()
    vocoder: Path | str | None = None
    suggested_key: bool = False

    def text(self, kind: str) -> str:
        """The settings that are not an instrument's own, for people; empty if there are none."""
        controls = self.controls or defaults(kind)
        if self.suggested_key:
            controls = dataclasses.replace(controls, octave_shift=0, semitone_shift=0.0)
        words = ["suggested key" if self.suggested_key else "", controls.changes(kind)]
        words += [f"{name} {value}" for name, value in self.sampling.given().items()]
        return ", ".join(filter(None, [*words, self.vocoder and f"vocoder {Path(self.vocoder).stem}"]))


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A variant (or the song itself) and its sound, or the problem why it failed.

    ``figures`` are ``seconds`` that the conversion took, ``real_time_factor``, these over the seconds of sound, and
    those of :func:`track_metrics`.
    """

    label: str
    audio: np.ndarray | None = None
    sample_rate_hz: int = 0
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    problem: str = ""

    def cells(self) -> list[str]:
        """The numbers as text, in the order of ``HEADINGS`` from the third on; a dash where there is none."""
        numbers = [(self.figures.get(name, math.nan), form) for name, _, form, _ in _COLUMNS]
        return ["\N{EN DASH}" if math.isnan(value) else form.format(value) for value, form in numbers]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list]]:
    """Headings and rows of the numbers in full precision, with units; without those that failed."""
    names, measured = [name for name, *_ in _COLUMNS], [row for row in rows if row.figures]
    cells = [[row.label, *(row.figures.get(name, math.nan) for name in names)] for row in measured]
    return ["variant", *(heading for *_, heading in _COLUMNS)], cells


def variants(
    listings: Sequence[instrument.InstrumentEntry],
    samplers: Sequence[str | None] = (None,),
    steps: Sequence[int | str | None] = (None,),
    shallow: Sequence[int | str | None] = (None,),
    vocoders: Sequence[Path | str | None] = (None,),
) -> list[Variant]:
    """Every combination for every diffusion instrument, and one of a ``ddsp`` one; None or "": the instrument's own."""
    found = []
    for listing in listings:
        diffusion = listing.kind == "diffusion"
        choices = itertools.product(samplers, steps, shallow, vocoders) if diffusion else [(None,) * 4]
        found += [Variant(listing.path, *(value or None for value in choice)) for choice in choices]
    return list(dict.fromkeys(found))


def compare(
    compared: Sequence[Variant],
    song: Path,
    start_s: float | int = 0.0,
    seconds: float | int = 10.0,
    settings: Mapping[Path, Settings] | None = None,
    load: Callable[[Path], instrument.Instrument] = instrument.open,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Row]:
    """Convert an excerpt of a song file with every variant and measure the results, with ``settings`` by instrument.

    Yields the excerpt itself, then a row for each variant once it is measured, or with the reason why it failed.
    """
    clips, progress = dict[FeatureSettings, tuple[Song, Song]](), reporter(progress)
    for i, variant in enumerate(compared):

        def report(begin, share, i=i, variant=variant):
            return lambda f, text="": progress((i + begin + share * f) / len(compared), f"{variant.label}: {text}")

        shared = (settings or {}).get(variant.instrument, Settings())
        try:
            voice = load(variant.instrument)
            if voice.features not in clips:
                whole = cached_song(song, voice.features, progress=report(0.0, 0.3), cancelled=cancelled)
                clips[voice.features] = whole, excerpt(whole, start_s, seconds)
                if len(clips) == 1:
                    yield Row("The song itself", clips[voice.features][1].audio, voice.features.sample_rate_hz)
            (whole, clip), controls = clips[voice.features], shared.controls
            if shared.suggested_key:
                controls = suggest_shift(whole.features, voice.statistics, voice.kind).applied(controls)
            sampling, vocoder = variant.sampling(shared.sampling), variant.vocoder or shared.vocoder
            watch = {"progress": report(0.3, 0.6), "cancelled": cancelled}
            made = pipeline.convert(voice, clip, controls, sampling, vocoder, **watch)
            report(0.9, 0.1)(0.0, "measuring")
            row = measure(variant.label, made)
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            row = Row(variant.label, problem=str(error))
        yield row


def track_metrics(made: pipeline.Conversion) -> dict[str, float]:
    """``metrics`` of F0, voicing and loudness of a conversion at the instrument's rate against its target tracks."""
    measured, target = extract.extract(made.audio, made.features.settings), made.tracks
    tracks = target.f0_hz, target.voiced, measured.f0_hz, measured.voiced
    loudness = metrics.loudness_l1_db(target.loudness_db + np.float32(made.gain_db), measured.loudness_db)
    return {**metrics.f0_accuracy(*tracks), **metrics.f0_error_cents(*tracks), "loudness_l1_db": loudness}


def measure(label: str, made: pipeline.Conversion) -> Row:
    """A conversion at the instrument's rate as a row of the table."""
    time = {"seconds": made.seconds, "real_time_factor": made.seconds * made.sample_rate_hz / len(made.audio)}
    return Row(label, made.audio, made.sample_rate_hz, {**time, **track_metrics(made)})
