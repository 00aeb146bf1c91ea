"""Sing a song with an instrument: measure the song, adjust it (``controls``), let the model sing, save what comes out.

``load_song`` -> ``Song`` -> ``convert`` -> ``Conversion`` -> ``save``. The result has exactly
``round(n_samples_of_the_song * rate_out / rate_in)`` samples and runs in time with the song.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion import renderers
from svclib.conversion.autotune import KEYS, autotune, suggest_key, tuning_offset
from svclib.conversion.controls import (
    PRESETS,
    RANGES,
    ConditioningTracks,
    Controls,
    adjust,
    defaults,
    loudness_quantiles,
    quantile_transform,
)
from svclib.conversion.key_suggestion import Suggestion, suggest_shift
from svclib.conversion.song import (
    Song,
    cached_song,
    clear_song_cache,
    find_songs,
    fit_length,
    load_song,
)
from svclib.features import octave_errors as octaves
from svclib.features.extract import Features
from svclib.models.vocoders import auto as vocoding
from svclib.models.vocoders.auto import AnyVocoder
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError
from svclib.utils.progress import ProgressCallback, reporter

FORMATS = ("wav", "flac", "mp3")
_REMEDY = "If you hear it, tick Repair octave jumps (on the command line: --repair-octaves)."
PEAK_LIMIT = 0.99  # 0.09 dB below full scale

# Everything about a conversion can be had from this module.
__all__ = ["FORMATS", "PEAK_LIMIT", "Conversion", "convert", "save"]
__all__ += ["PRESETS", "RANGES", "ConditioningTracks", "Controls", "Suggestion", "adjust", "suggest_shift"]
__all__ += ["defaults"]
__all__ += ["Song", "cached_song", "find_songs", "clear_song_cache", "load_song"]
__all__ += ["KEYS", "autotune", "loudness_quantiles", "quantile_transform", "suggest_key", "tuning_offset"]


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A song as sung by an instrument, with everything that made it so.

    Attributes:
        audio: float32 ``[samples]`` at ``sample_rate_hz``, within -1..1.
        harmonic, noise: Its two parts, under the same gain: where the instrument has no reverb their sum is ``audio``.
            A vocoder that knows no parts gives all of it as ``harmonic``.
        sample_rate_hz: The instrument's rate, or the song's.
        song: What was sung.
        tracks: What the instrument was asked for.
        controls: The knobs.
        instrument_name, instrument_sha256, kind: Who sang.
        seed: Of the noise.
        sampling: How a diffusion instrument walked: ``sampler``, ``steps``, ``temperature``, ``precision``, and
            ``shallow`` and ``singer`` where they were asked for.
        vocoder: Name, kind and SHA-256 of the vocoder, where another one than the instrument's own was chosen.
        octave_errors: Where the pitch tracker jumped an octave; repaired if the controls say so.
        gain_db: Applied to keep the peak below full scale; 0 or negative.
        warnings: Sentences for the person.
        seconds: How long the conversion took.
    """

    audio: np.ndarray
    harmonic: np.ndarray
    noise: np.ndarray
    sample_rate_hz: int
    song: Song
    tracks: ConditioningTracks
    controls: Controls
    instrument_name: str
    instrument_sha256: str
    kind: str
    seed: int
    gain_db: float
    warnings: tuple[str, ...]
    seconds: float
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
    vocoder: dict[str, str] = dataclasses.field(default_factory=dict)
    octave_errors: tuple[octaves.OctaveError, ...] = ()

    @property
    def features(self) -> Features:
        """The song's measurements, before any adjustment."""
        return self.song.features

    def settings(self) -> dict[str, Any]:
        """Everything needed to make the same sound again, as plain JSON values."""
        return {
            "tag": audio.SYNTHETIC_TAG,
            "svclib": __version__,
            "song": {
                "name": self.song.path.name,
                "sample_rate_hz": self.song.sample_rate_hz,
                "n_samples": self.song.n_samples,
            },
            "instrument": {"name": self.instrument_name, "kind": self.kind, "sha256": self.instrument_sha256},
            "controls": dataclasses.asdict(self.controls),
            "key": self.tracks.key,
            "tuning_semitones": self.tracks.tuning_semitones,
            "f0_method": self.features.settings.f0_method,
            "octave_errors": [[round(e.start_s, 3), round(e.stop_s, 3), e.octaves] for e in self.octave_errors],
            "seed": self.seed,
            **({"sampling": self.sampling} if self.sampling else {}),
            **({"vocoder": self.vocoder} if self.vocoder else {}),
            "sample_rate_hz": self.sample_rate_hz,
            "gain_db": round(self.gain_db, 3),
            "warnings": list(self.warnings),
        }

    @property
    def settings_text(self) -> str:
        """The settings in two lines for people."""
        c = self.controls
        level = "instrument's loudness" if c.use_loudness_statistics else "song's own loudness"
        tuned = f"autotune {c.autotune:g} ({self.tracks.key})" if c.autotune else "no autotune"
        return (
            f"{self.song.name} sung by {self.instrument_name} ({self.sample_rate_hz} Hz, seed {self.seed})\n"
            f"{level} {c.loudness_shift_db:+g} dB, mask threshold {c.mask_threshold:g}, "
            f"attenuation {c.attenuation_db:g} dB, octave {c.octave_shift:+d}, semitones {c.semitone_shift:+g}, {tuned}"
            f"{'' if c.loudness_follow == 1 else f', follows the dynamics by {c.loudness_follow:g}'}"
            f"{', octave errors repaired' if c.repair_octaves and self.octave_errors else ''}{self._sampling_text()}"
        )

    def _sampling_text(self) -> str:
        words = {k: v for k, v in self.sampling.items() if k != "singer"}
        mix = self.sampling.get("singer")
        if mix is not None:
            words["singer"] = mix if isinstance(mix, str) else " + ".join(f"{n} {w:g}" for n, w in mix.items())
        return "".join(f", {name} {value}" for name, value in words.items())


# Converting -----------------------------------------------------------------------------------------------------------


def convert(
    instrument: Any,
    song: Song,
    controls: Controls | None = None,
    seed: int = 0,
    keep_rate: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    sampler: str | None = None,
    steps: int | None = None,
    shallow: int | None = None,
    singer: dict[str, float | int] | str | None = None,
    vocoder: AnyVocoder | str | Path | None = None,
    precision: str | None = None,
    temperature: float | int | None = None,
) -> Conversion:
    """Let an instrument sing a song.

    The model sings in pieces whose memory does not grow with the song. Nothing is written; see :func:`save`.

    Args:
        instrument: From ``instrument.open``.
        song: From :func:`load_song` with the instrument's feature settings.
        controls: The knobs; :func:`defaults` of the instrument's kind if None.
        seed: The same seed gives the same sound, bit by bit on one machine.
        keep_rate: Give the result the song's sample rate instead of the instrument's.
        progress: Called with a fraction 0..1 and a text.
        cancelled: Asked between pieces; True ends the conversion.
        sampler: How a diffusion instrument walks, one of ``samplers.METHODS``; its own choice if None.
        steps: Steps of this walk; its own choice if None.
        shallow: Diffusion step at which its walk starts, from the coarse mel; from pure noise if None.
        singer: Name of one of its singers, or names with weights; its first one if None.
        vocoder: What makes sound of the mel of a diffusion instrument: opened, or what ``vocoding.open`` takes; its own
            if None.
        precision: One of ``denoiser.PRECISIONS``; ``auto`` if None.
        temperature: Factor of the noise of the walk, 0 to 2; below 1 smoother; the instrument's own if None.

    Returns:
        The sound, exactly as long as the song, and everything that made it so.

    Raises:
        ConversionError: if song and instrument do not fit, or the instrument sings no numbers.
        ModelError: if instrument and vocoder have different mels; names both sides.
        Cancelled: if ``cancelled`` says so.
    """
    began = time.perf_counter()
    controls = controls or defaults(instrument.kind)
    render = renderers.renderer(instrument)
    asked = {
        "sampler": sampler,
        "steps": steps,
        "shallow": shallow,
        "singer": singer,
        "precision": precision,
        "temperature": temperature,
    }
    sampling = {name: value for name, value in asked.items() if value is not None}
    if (sampling or vocoder is not None) and instrument.kind != "diffusion":
        raise ConversionError(
            f"{', '.join(sampling or ['vocoder'])} can be chosen for diffusion instruments only; '{instrument.name}' "
            f"is of kind '{instrument.kind}'. Leave it out."
        )
    renderers.require_same_grid(instrument, song)
    if isinstance(vocoder, str | Path):
        vocoder = vocoding.open(vocoder, near=instrument.path.parent)
    if vocoder is not None:
        vocoder.contract.require(instrument.features.mel, f"the vocoder '{vocoder.name}'", f"'{instrument.name}'")
    report = reporter(progress, cancelled)
    report(0.0, "adjusting pitch and loudness")
    errors = octaves.find(song.audio, song.features)
    if errors and controls.repair_octaves:
        repaired = dataclasses.replace(song, features=octaves.repaired(song.features, errors))
    else:
        repaired = song
    adjusted = adjust(repaired.features, instrument.statistics, controls)
    parts = render(
        instrument,
        repaired,
        adjusted,
        seed,
        progress=lambda fraction, text: report(0.05 + 0.85 * fraction, text),
        cancelled=cancelled,
        **({"vocoder": vocoder} if vocoder else {}),
        **sampling,
    )
    if not all(np.isfinite(part).all() for part in parts):
        raise ConversionError(
            f"'{instrument.name}' sang values that are no numbers: its weights are damaged or its training failed. "
            "Export it again from an earlier checkpoint."
        )
    rate_hz, n_samples = instrument.features.sample_rate_hz, len(song.audio)
    if keep_rate and song.sample_rate_hz != rate_hz:
        report(0.9, f"resampling to {song.sample_rate_hz} Hz")
        for i, part in enumerate(parts):  # one by one: a long song's parts are large
            parts[i] = audio.resample(part, rate_hz, song.sample_rate_hz)
        rate_hz, n_samples = song.sample_rate_hz, song.n_samples
    parts = [fit_length(part, n_samples) for part in parts]
    warnings = [*song.warnings, *adjusted.warnings]
    if errors:
        remedy = "This was repaired." if controls.repair_octaves else _REMEDY
        warnings.append(f"{octaves.describe(errors)} {remedy}")
    peak = max(max(float(part.max()), -float(part.min())) for part in parts)
    gain = min(1.0, PEAK_LIMIT / max(peak, 1e-9))
    gain_db = 20.0 * math.log10(gain)
    if gain < 1.0:
        parts = [part * np.float32(gain) for part in parts]
        warnings.append(
            f"The result was too loud by {-gain_db:.1f} dB and was turned down by as much, without clipping."
        )
    report(1.0, "done")
    if instrument.kind == "diffusion":
        sampling = instrument.model.walked(sampling)
    return Conversion(
        audio=parts[0],
        harmonic=parts[1],
        noise=parts[2],
        sample_rate_hz=rate_hz,
        song=song,
        tracks=adjusted,
        controls=controls,
        instrument_name=instrument.name,
        instrument_sha256=instrument.sha256,
        kind=instrument.kind,
        seed=seed,
        gain_db=gain_db,
        warnings=tuple(warnings),
        seconds=time.perf_counter() - began,
        sampling=sampling,
        vocoder=vocoder.record() if vocoder else {},
        octave_errors=tuple(errors),
    )


def save(conversion: Conversion, folder: str | Path, format: str = "wav", name: str | None = None) -> Path:
    """Write a conversion as ``<song> - <instrument>.<format>`` (or ``<name>.<format>``), and its settings beside it.

    Nothing is ever overwritten: a name that is taken gets a number. The file carries the tag "synthetic voice" and its
    settings; the same settings lie beside it as ``<file>.json``.

    Args:
        conversion: What is written.
        folder: Where; made if it is not there.
        format: One of :data:`FORMATS`.
        name: What to call it instead, without suffix; characters that no file name has are replaced.

    Returns:
        The audio file.

    Raises:
        ConversionError: for an unknown format.
        StorageError, AudioError: if it cannot be written; nothing half-written stays.
    """
    suffix = format.lower().lstrip(".")
    if suffix not in FORMATS:
        raise ConversionError(f"'{format}' is no format to save in; choose {', '.join(FORMATS)}.")
    stem = filesystem.safe_name(name or f"{conversion.song.name} - {conversion.instrument_name}", "conversion")
    settings = conversion.settings()
    tags = {"comment": f"{audio.SYNTHETIC_TAG}; {json.dumps(settings, ensure_ascii=False)}"}
    target = Path(folder) / f"{stem}.{suffix}"
    path = audio.write(target, conversion.audio, conversion.sample_rate_hz, tags, new_name=True).path
    text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
    atomic_store.commit_new(path.with_name(path.name + ".json"), lambda part: part.write_text(text, encoding="utf-8"))
    return path
