"""Conversion of a song with an instrument: ``load_song`` -> :func:`convert` -> :class:`Conversion` -> :func:`save`.

The result has exactly ``round(n_samples_of_the_song * rate_out / rate_in)`` samples and is in time with the song.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion.controls import ConditioningTracks, Controls, adjust, defaults, silence_gain
from svclib.conversion.song import Song, fit_length
from svclib.features import content_features, whisper_features
from svclib.features import octave_errors as octaves
from svclib.features.extract import ConditionInputs, Features
from svclib.features.octave_errors import OctaveError
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders import auto as vocoders
from svclib.models.vocoders.auto import LoadedVocoder
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError, ModelError, ProgressCallback, reporter

FORMATS = ("wav", "flac", "mp3")
PEAK_LIMIT = 0.99  # 0.09 dB below full scale
_NO_VOICE = {
    "harmonic": "'{name}' is a vocoder and has no voice.",
    "diffwave": "'{name}' is a DiffWave and follows no song by itself.",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A converted song, with everything that determines it.

    Attributes:
        audio: float32 ``[samples]`` at ``sample_rate_hz``, within -1..1.
        harmonic, noise: Its two parts, under the same gain: where the instrument has no reverb their sum is ``audio``.
            All of it is ``harmonic`` where the vocoder does not separate them.
        sample_rate_hz: The instrument's rate, or the song's.
        song: The source.
        tracks: Pitch and loudness asked of the instrument.
        controls: The controls they were made with.
        instrument_name, instrument_sha256, kind: Of the instrument.
        seed: Of the noise.
        sampling: Of a diffusion instrument: ``sampler``, ``steps``, ``temperature``, ``precision``, and ``shallow``
            where it was given.
        vocoder: Name, kind and SHA-256 of the vocoder, where another one than the instrument's own was chosen.
        octave_errors: Places where the pitch tracker is an octave off; repaired if the controls say so.
        gain_db: Applied to keep the peak below full scale; 0 or negative.
        warnings: Sentences for the person.
        seconds: Duration of the conversion.
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
    octave_errors: tuple[OctaveError, ...] = ()

    @property
    def features(self) -> Features:
        """The song's measurements, before any adjustment."""
        return self.song.features

    @property
    def stems(self) -> tuple[np.ndarray, np.ndarray]:
        """Harmonic and noise part to play: turned down together where one of them exceeds full scale."""
        gain = _limiter_gain(self.harmonic, self.noise)
        return self.harmonic * gain, self.noise * gain

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
            "controls": {k: v for k, v in dataclasses.asdict(self.controls).items() if v is not None},
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
        changed = self.controls.changes(self.kind) or "controls as they begin"
        key = f", key {self.tracks.key}" if self.controls.autotune and self.controls.autotune_key == "auto" else ""
        sampling = "".join(f", {name} {value}" for name, value in self.sampling.items())
        return (
            f"{self.song.name} by {self.instrument_name} ({self.sample_rate_hz} Hz, seed {self.seed})\n"
            f"{changed}{key}{sampling}"
        )


def convert(
    instrument: Any,
    song: Song,
    controls: Controls | None = None,
    sampling: SamplingOptions | None = None,
    vocoder: LoadedVocoder | str | Path | None = None,
    keep_rate: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Conversion:
    """Convert a song. Memory does not grow with the song beyond its features; nothing is written (:func:`save`).

    Args:
        instrument: From ``load_instrument``.
        song: From ``load_song`` with the instrument's feature settings.
        controls: :func:`defaults` of the instrument's kind if None.
        sampling: Of a diffusion instrument; its ``seed`` is that of any instrument's noise. Equal seeds give equal
            sounds, bit by bit on one machine.
        vocoder: For the mel of a diffusion instrument: loaded, or what ``load_vocoder`` takes; its own if None.
        keep_rate: Give the result the song's sample rate instead of the instrument's.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; asked at every step and piece.

    Returns:
        The sound, exactly as long as the song, and everything that determines it.

    Raises:
        ConversionError: if song, instrument and options do not fit together, or the model's output is not finite.
        ModelError: if instrument and vocoder have different mels; names both sides.
        Cancelled: after ``cancelled()`` returned True.
    """
    began = time.perf_counter()
    report = reporter(progress, cancelled)
    controls, sampling = controls or defaults(instrument.kind), sampling or SamplingOptions()
    # 1. Refuse what does not fit together.
    render = _renderer(instrument)
    _check_options(instrument, controls, sampling, vocoder)
    _check_frame_grid(instrument, song)
    if isinstance(vocoder, str | Path):
        vocoder = vocoders.load_vocoder(vocoder, near=instrument.path.parent)
    if vocoder is not None:
        vocoder.contract.require(instrument.features.mel, f"the vocoder '{vocoder.name}'", f"'{instrument.name}'")
    # 2. Pitch and loudness for the instrument.
    report(0.0, "adjusting pitch and loudness")
    errors, source = octaves.find_octave_errors(song.audio, song.features), song
    if errors and controls.repair_octaves:
        source = dataclasses.replace(song, features=octaves.repair(song.features, errors))
    tracks = adjust(source.features, instrument.statistics, controls)
    # 3. The model renders audio, harmonic part and noise part.
    request = _Request(instrument, source, tracks, controls, sampling, vocoder)
    parts = render(request, lambda fraction, text: report(0.05 + 0.85 * fraction, text), cancelled)
    if not all(np.isfinite(part).all() for part in parts):
        raise ConversionError(
            f"Model '{instrument.name}' produced NaN or infinity: its weights are damaged or its training failed. "
            "Export it again from an earlier checkpoint."
        )
    # 4. Sample rate and length of the song, peak below full scale.
    rate_hz, n_samples = instrument.features.sample_rate_hz, len(song.audio)
    if keep_rate and song.sample_rate_hz != rate_hz:
        report(0.9, f"resampling to {song.sample_rate_hz} Hz")
        for i, part in enumerate(parts):  # one by one: a long song's parts are large
            parts[i] = audio.resample(part, rate_hz, song.sample_rate_hz)
        rate_hz, n_samples = song.sample_rate_hz, song.n_samples
    parts = [fit_length(part, n_samples) for part in parts]
    gain = _limiter_gain(parts[0])
    if gain < 1.0:
        parts = [part * gain for part in parts]
    report(1.0, "done")
    return Conversion(
        *parts,
        sample_rate_hz=rate_hz,
        song=song,
        tracks=tracks,
        controls=controls,
        instrument_name=instrument.name,
        instrument_sha256=instrument.sha256,
        kind=instrument.kind,
        seed=sampling.seed,
        gain_db=20.0 * math.log10(gain),
        warnings=(*song.warnings, *tracks.warnings, *_warnings(errors, controls, gain)),
        seconds=time.perf_counter() - began,
        sampling=_resolved(instrument, sampling),
        vocoder=vocoder.record() if vocoder else {},
        octave_errors=tuple(errors),
    )


def vocode(
    vocoder: LoadedVocoder,
    song: Song,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Analysis and resynthesis of a song by a vocoder (copy synthesis).

    Args:
        vocoder: From ``load_vocoder``.
        song: From ``load_song`` with ``vocoder.features``.
        seed: Of all noise.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``.

    Returns:
        float32 ``[samples]``, as long as ``song.audio``, full scale 1, not limited.

    Raises:
        ModelError: if the song was measured without a mel, or with another mel configuration.
    """
    measured, hop = song.features, vocoder.contract.hop_samples
    arrays = {f.name: getattr(measured, f.name) for f in dataclasses.fields(measured)}
    padded = {k: _pad_frames(x, len(song.audio), hop) for k, x in arrays.items() if isinstance(x, np.ndarray)}
    whole = dataclasses.replace(measured, n_samples=len(padded["voiced"]) * hop, **padded)
    return fit_length(vocoder.resynthesize(whole, seed, progress, cancelled).audio, len(song.audio))


def save(conversion: Conversion, folder: str | Path, format: str = "wav", name: str | None = None) -> Path:
    """Write a conversion as ``<song> - <instrument>.<format>`` (or ``<name>.<format>``), and its settings beside it.

    Nothing is ever overwritten: a name that is taken gets a number. The file carries the tag "synthetic voice" and its
    settings; the same settings are written beside it as ``<file>.json``.

    Args:
        conversion: The conversion.
        folder: Made if it is not there.
        format: One of :data:`FORMATS`.
        name: Of the file without suffix; characters that no file name has are replaced.

    Returns:
        The audio file.

    Raises:
        ConversionError: for an unknown format.
        StorageError, AudioError: if it cannot be written; nothing half-written stays.
    """
    suffix = format.lower().lstrip(".")
    if suffix not in FORMATS:
        raise ConversionError(f"'{format}' is not a format of results; choose {', '.join(FORMATS)}.")
    stem = filesystem.safe_name(name or f"{conversion.song.name} - {conversion.instrument_name}", "conversion")
    target = Path(folder) / f"{stem}.{suffix}"
    return write_with_settings(target, conversion.audio, conversion.sample_rate_hz, conversion.settings())


def write_with_settings(target: Path, samples: np.ndarray, sample_rate_hz: int, settings: dict[str, Any]) -> Path:
    """Write a sound under a name that is not taken, its settings in its tags and beside it as ``<file>.json``."""
    comment = f"{audio.SYNTHETIC_TAG}; {json.dumps(settings, ensure_ascii=False)}"
    path = audio.write(target, samples, sample_rate_hz, comment).path
    text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
    atomic_store.commit_new(path.with_name(path.name + ".json"), lambda part: part.write_text(text, encoding="utf-8"))
    return path


# Checks ---------------------------------------------------------------------------------------------------------------


def _check_options(instrument, controls: Controls, sampling: SamplingOptions, vocoder) -> None:
    given = [name for name in sampling.given() if name != "seed"]
    given += [name for name, value in (("singer", controls.singer), ("vocoder", vocoder)) if value is not None]
    if given and instrument.kind != "diffusion":
        raise ConversionError(
            f"{', '.join(given)} can be chosen for diffusion instruments only; '{instrument.name}' is of kind "
            f"'{instrument.kind}'. Leave it out."
        )


def _check_frame_grid(instrument, song: Song) -> None:
    theirs, ours = instrument.features, song.features.settings
    for name, unit in (("sample_rate_hz", "Hz"), ("hop_samples", "samples per frame"), ("loudness_n_fft", "samples")):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConversionError(
                f"The song was measured with {name} {getattr(ours, name)} ({unit}), but '{instrument.name}' needs "
                f"{getattr(theirs, name)}. Load the song again with this instrument's feature settings."
            )


def _warnings(errors: list, controls: Controls, gain: np.float32) -> list[str]:
    found = []
    if errors:
        remedy = "If you hear it, tick Repair octave jumps (on the command line: --repair-octaves)."
        repaired = "This was repaired." if controls.repair_octaves else remedy
        found.append(f"{octaves.describe(errors)} {repaired}")
    if gain < 1.0:
        found.append(
            f"The result was too loud by {-20.0 * math.log10(gain):.1f} dB and was turned down by as much, without "
            "clipping."
        )
    return found


def _limiter_gain(*signals: np.ndarray) -> np.float32:
    """The largest gain, at most 1, that keeps all signals below ``PEAK_LIMIT``."""
    peak = max(max(float(x.max(initial=0.0)), -float(x.min(initial=0.0))) for x in signals)
    return np.float32(min(1.0, PEAK_LIMIT / max(peak, 1e-9)))


def _resolved(instrument, sampling: SamplingOptions) -> dict[str, Any]:
    if instrument.kind != "diffusion":
        return {}
    resolved = instrument.model.resolve_sampling(sampling)
    used = {name: getattr(resolved, name) for name in ("sampler", "steps", "temperature", "precision")}
    return {**{name: value for name, value in sampling.given().items() if name != "seed"}, **used}


# Rendering by the kind of instrument ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Request:
    """Everything that a renderer needs, checked."""

    instrument: Any
    song: Song
    tracks: ConditioningTracks
    controls: Controls
    sampling: SamplingOptions
    vocoder: LoadedVocoder | None

    def pad(self, x: np.ndarray) -> np.ndarray:
        """``[frames, ...]`` for all of the song, see :func:`_pad_frames`."""
        return _pad_frames(x, len(self.song.audio), self.instrument.features.hop_samples)


def _pad_frames(x: np.ndarray, n_samples: int, hop_samples: int) -> np.ndarray:
    """``[frames, ...]`` with the last frame repeated for an incomplete frame at the end of the song."""
    missing = -(-n_samples // hop_samples) - len(x)
    return np.pad(x, ((0, missing), *[(0, 0)] * (x.ndim - 1)), mode="edge")


def _renderer(instrument: Any) -> Callable[..., list[np.ndarray]]:
    """The renderer of a kind of instrument: gives audio, harmonic and noise part, float32 ``[samples]`` each."""
    if instrument.kind in _NO_VOICE:
        hint = "Choose a diffusion instrument of the same mel, and this as its vocoder if it was trained on mels."
        raise ConversionError(_NO_VOICE[instrument.kind].format(name=instrument.name), hint=hint)
    if instrument.kind not in _RENDERERS:
        raise ConversionError(
            f"'{instrument.name}' is an instrument of kind '{instrument.kind}', unknown to this version of svclib "
            f"({', '.join(_RENDERERS)}). Update svclib."
        )
    return _RENDERERS[instrument.kind]


def _render_ddsp(request: _Request, progress, cancelled) -> list[np.ndarray]:
    model, tracks, song = request.instrument.model, request.tracks, request.song
    f0_hz = request.pad(tracks.f0_hz)
    source = fit_length(song.audio, len(f0_hz) * request.instrument.features.hop_samples)
    made = model.render(
        f0_hz,
        request.pad(tracks.voiced),
        request.pad(tracks.loudness_db),
        audio=source if model.settings.z_dims else None,
        seed=request.sampling.seed,
        progress=progress,
        cancelled=cancelled,
    )
    return [np.asarray(part, dtype=np.float32).reshape(-1) for part in (made.audio, made.harmonic, made.noise)]


def _render_diffusion(request: _Request, progress, cancelled) -> list[np.ndarray]:
    """Content, source F0 and mel are the song's; target F0 and loudness those of the tracks."""
    instrument, song, pad = request.instrument, request.song, request.pad
    features, own = song.features, instrument.features
    if features.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel. Load it for '{instrument.name}' again.")
    own.mel.require(features.settings.mel, f"'{instrument.name}'", f"'{song.name}'")
    if own.units is not None and own.units != features.settings.units:
        raise ConversionError(f"'{song.name}' has no content features of '{instrument.name}'. Load it again.")
    content = None if own.units is None else pad(features.content)
    if request.sampling.content == "whisper" and own.units is None:
        if instrument.model.settings.content != "words":
            raise ConversionError(
                f"'{instrument.name}' was not trained on the code of 'words', so it cannot read Whisper."
            )
        content = pad(_whisper_code(song))
    log_mel, *measured = (pad(getattr(features, name)) for name in ("log_mel", "f0_hz", "voiced", "loudness_db"))
    wanted = (pad(getattr(request.tracks, name)) for name in ("f0_hz", "voiced", "loudness_db"))
    source, target = (
        ConditionInputs.from_arrays(log_mel, *tracks, content=content, device=instrument.model.device)
        for tracks in (measured, wanted)
    )
    singer, options = request.controls.singer, request.sampling
    try:
        made = instrument.model.render(source, target, singer, options, request.vocoder, progress, cancelled)
    except ModelError as error:
        raise ConversionError(f"'{instrument.name}': {error}") from None
    parts = [np.asarray(part, dtype=np.float32) for part in (made.audio, made.harmonic, made.noise)]
    gain = silence_gain(features.loudness_db, len(parts[0]), own.hop_samples)
    return parts if gain is None else [part * gain for part in parts]


@functools.lru_cache(maxsize=4)
def _whisper_code(song: Song) -> np.ndarray:
    """Whisper's features of a song in the code space of ``words``, measured once."""
    grid = song.features.settings
    return content_features.extract(song.audio, grid.sample_rate_hz, grid.hop_samples, whisper_features.SETTINGS)


_RENDERERS: dict[str, Callable[..., list[np.ndarray]]] = {"ddsp": _render_ddsp, "diffusion": _render_diffusion}
