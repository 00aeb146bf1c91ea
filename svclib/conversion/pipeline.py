"""Conversion of songs with an instrument: ``load_song`` -> :func:`convert` -> :class:`Conversion` -> :func:`save`.

A result has exactly ``round(n_samples_of_the_song * rate_out / rate_in)`` samples and is in time with the song.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.audio import loudness, synthesis
from svclib.conversion.controls import ConditioningTracks, Controls, adjust, defaults, silence_gain, with_breath
from svclib.conversion.song import Song, fit_length, load_song, map_tracks
from svclib.features import content_features, whisper_features
from svclib.features import octave_errors as octaves
from svclib.features.extract import ConditionInputs, Features
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders import auto as vocoders
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled, ConversionError, ModelError, ProgressCallback, reporter

FORMATS = ("wav", "flac", "mp3")
PEAK_LIMIT = 0.99  # 0.09 dB below full scale
_NO_VOICE = {"harmonic": "is a vocoder and has no voice.", "diffwave": "is a DiffWave and follows no song by itself."}


@dataclasses.dataclass(frozen=True, eq=False)
class Conversion:
    """A converted song, with everything that determines it."""

    audio: np.ndarray  # float32 ``[samples]`` at ``sample_rate_hz``, within -1..1
    harmonic: np.ndarray  # its two parts (without reverb they add up to it); all is harmonic if it is not separated
    noise: np.ndarray
    sample_rate_hz: int
    song: Song
    tracks: ConditioningTracks  # pitch and loudness asked of the instrument, made with ``controls``
    controls: Controls
    instrument_name: str
    instrument_sha256: str
    kind: str
    seed: int
    gain_db: float  # applied to reach the loudness asked for and to keep the peak below full scale
    warnings: tuple[str, ...]
    seconds: float  # duration of the conversion
    sampling: dict[str, Any]  # of a diffusion instrument: what was given; sampler, steps, temperature, precision used
    vocoder: dict[str, str]  # name, kind and SHA-256 where another one than the instrument's own was chosen
    octave_errors: tuple[octaves.OctaveError, ...]  # of the F0 tracker; repaired if the controls say so

    @property
    def features(self) -> Features:
        """The song's measurements, before any adjustment."""
        return self.song.features

    @property
    def stems(self) -> tuple[np.ndarray, np.ndarray]:
        """Harmonic and noise part to play: turned down together where one of them exceeds full scale."""
        gain = limiter_gain(self.harmonic, self.noise)
        return self.harmonic * gain, self.noise * gain

    def settings(self) -> dict[str, Any]:
        """Everything needed to make the same sound again, as plain JSON values."""
        song = self.song
        return {
            "tag": audio.SYNTHETIC_TAG,
            "svclib": __version__,
            "song": {"name": song.path.name, "sample_rate_hz": song.sample_rate_hz, "n_samples": song.n_samples},
            "instrument": {"name": self.instrument_name, "kind": self.kind, "sha256": self.instrument_sha256},
            "controls": {k: v for k, v in dataclasses.asdict(self.controls).items() if v is not None},
            "key": self.tracks.key,
            "tuning_semitones": self.tracks.tuning_semitones,
            "f0_method": self.features.settings.f0_method,
            "octave_errors": [[round(e.start_s, 3), round(e.stop_s, 3), e.octaves] for e in self.octave_errors],
            "seed": self.seed,
            **{name: value for name in ("sampling", "vocoder") if (value := getattr(self, name))},
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
        made = f"{self.song.name} by {self.instrument_name} ({self.sample_rate_hz} Hz, seed {self.seed})"
        return f"{made}\n{changed}{key}{sampling}"


def convert(
    instrument: Any,
    song: Song,
    controls: Controls | None = None,
    sampling: SamplingOptions | None = None,
    vocoder: vocoders.LoadedVocoder | str | Path | None = None,
    keep_rate: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Conversion:
    """Convert a song; nothing is written (:func:`save`), and memory does not grow with the song beyond its features.

    Args:
        instrument: From ``load_instrument``.
        song: From ``load_song`` with the instrument's feature settings.
        controls: :func:`defaults` of the instrument's kind if None.
        sampling: Of a diffusion instrument; its ``seed`` is that of any instrument's noise (equal sounds bit by bit).
        vocoder: For the mel of a diffusion instrument: loaded, or what ``load_vocoder`` takes; its own if None.
        keep_rate: Give the result the song's sample rate instead of the instrument's.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; asked at every step and chunk.

    Returns:
        The sound, exactly as long as the song, and everything that determines it. ConversionError or ModelError where
        the arguments do not fit together, or the model's output is not finite.
    """
    began, report = time.perf_counter(), reporter(progress, cancelled)
    controls, sampling = controls or defaults(instrument.kind), sampling or SamplingOptions()
    _check(instrument, song, controls, sampling, vocoder)
    if isinstance(vocoder, str | Path):
        vocoder = vocoders.load_vocoder(vocoder, near=instrument.path.parent)
    if vocoder is not None:
        vocoder.contract.require(instrument.features.mel, f"the vocoder '{vocoder.name}'", f"'{instrument.name}'")
    # 1. Pitch and loudness for the instrument.
    report(0.0, "adjusting pitch and loudness")
    errors, source = octaves.find_octave_errors(song.audio, song.features), song
    if errors and controls.repair_octaves:
        source = dataclasses.replace(song, features=octaves.repair(song.features, errors))
    tracks = adjust(source.features, instrument.statistics, controls)
    # 2. The model renders audio, harmonic part and noise part.
    watch = {"progress": lambda f, text: report(0.05 + 0.85 * f, text), "cancelled": cancelled}
    made = _RENDERERS[instrument.kind](instrument, source, tracks, controls.singer, sampling, vocoder, **watch)
    parts = [np.asarray(part, dtype=np.float32).reshape(-1) for part in made]
    if not all(np.isfinite(part).all() for part in parts):
        raise ConversionError(
            f"Model '{instrument.name}' produced NaN or infinity: its weights are damaged or its training failed. "
            "Export it again from an earlier checkpoint."
        )
    # 3. Formants; breaths and consonants of the song; sample rate and length of the song; level, peak below full scale.
    rate_hz, hop = instrument.features.sample_rate_hz, instrument.features.hop_samples
    if controls.formant_shift:
        report(0.9, "moving the formants")
        parts = synthesis.shift_formants(parts, tracks.f0_hz, rate_hz, hop, controls.formant_shift)
    parts = [fit_length(part, len(song.audio)) for part in parts]
    if controls.breath:
        parts = with_breath(parts, song.audio, source.features, tracks, controls)
    if keep_rate and song.sample_rate_hz != rate_hz:
        report(0.9, f"resampling to {song.sample_rate_hz} Hz")
        for i, part in enumerate(parts):  # one by one: a long song's parts are large
            parts[i] = fit_length(audio.resample(part, rate_hz, song.sample_rate_hz), song.n_samples)
        rate_hz = song.sample_rate_hz
    wanted, gain, warnings = controls.loudness_lufs, limiter_gain(parts[0]), [*song.warnings, *tracks.warnings]
    if errors:
        remedy = "If you hear it, tick Repair octave jumps (on the command line: --repair-octaves)."
        warnings.append(f"{octaves.describe(errors)} {'This was repaired.' if controls.repair_octaves else remedy}")
    if wanted is not None and math.isfinite(lufs := loudness.integrated_lufs(parts[0], rate_hz)):
        asked = 10.0 ** ((wanted - lufs) / 20.0)
        gain = np.float32(asked * limiter_gain(parts[0] * asked))
        if gain < 0.99 * asked:
            reached = lufs + 20.0 * math.log10(gain)
            warnings.append(f"The result has {reached:.1f} LUFS, not {wanted:g}: it would clip if it were louder.")
    elif gain < 1.0:
        down_db = -20.0 * math.log10(gain)
        warnings.append(
            f"The result was too loud by {down_db:.1f} dB and was turned down by as much, without clipping."
        )
    if gain != 1.0:
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
        warnings=tuple(warnings),
        seconds=time.perf_counter() - began,
        sampling=_resolved(instrument, sampling),
        vocoder=vocoder.record() if vocoder else {},
        octave_errors=tuple(errors),
    )


def vocode(vocoder: vocoders.LoadedVocoder, song: Song, seed: int = 0, progress=None) -> np.ndarray:
    """Analysis and resynthesis (copy synthesis) of a song that was loaded with ``vocoder.features``.

    Returns float32 ``[samples]``, as long as ``song.audio``, full scale 1, not limited.
    """
    return fit_length(vocoder.resynthesize(_whole_frames(song), seed, progress).audio, len(song.audio))


def save(conversion: Conversion, folder: str | Path, format: str = "wav", name: str | None = None) -> Path:
    """Write a conversion as ``<song> - <instrument>.<format>`` (or ``<name>.<format>``); returns the audio file.

    ``format`` is one of :data:`FORMATS`. Nothing is ever overwritten: a name that is taken gets a number. The file
    carries the tag "synthetic voice" and its settings, which are also beside it as ``<file>.json``.
    """
    suffix = format.lstrip(".")
    if suffix.lower() not in FORMATS:
        raise ConversionError(f"'{format}' is not a format of results; choose {', '.join(FORMATS)}.")
    stem = filesystem.safe_name(name or f"{conversion.song.name} - {conversion.instrument_name}", "conversion")
    target = Path(folder) / f"{stem}.{suffix}"
    return write_with_settings(target, conversion.audio, conversion.sample_rate_hz, conversion.settings())


def write_with_settings(target: Path, samples: np.ndarray, sample_rate_hz: int, settings: dict[str, Any]) -> Path:
    """Write a sound under a name that is not taken, its settings in its tags and beside it as ``<file>.json``.

    The settings beside it hold the ``sound_sha256`` of the file, too.
    """
    comment = f"{audio.SYNTHETIC_TAG}; {filesystem.json_text(settings)}"

    def describe(sound: Path) -> bytes:
        known = {**settings, "sound_sha256": filesystem.sha256_file(sound)}
        return (filesystem.json_text(known, indent=1) + "\n").encode()

    return audio.write(target, samples, sample_rate_hz, comment, describe)


def limiter_gain(*signals: np.ndarray) -> np.float32:
    """The largest gain, at most 1, that keeps all signals below ``PEAK_LIMIT``."""
    peak = max(max(float(x.max(initial=0.0)), -float(x.min(initial=0.0))) for x in signals)
    return np.float32(min(1.0, PEAK_LIMIT / max(peak, 1e-9)))


def convert_songs(
    instrument: Any,
    paths: Sequence[str | Path],
    done: Callable[[Conversion], None],
    controls: Controls | Callable[[Song], Controls] | None = None,
    f0_method: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> dict[Path, Exception]:
    """Convert one song after the other and call ``done`` with each result, to save and show it.

    ``controls`` may be a function of the loaded song (a key that fits each); ``options`` are further ones of
    :func:`convert`. Returns the songs that failed: a ValueError or OSError does not stop the others.
    """
    report, failed = reporter(progress), dict[Path, Exception]()
    for i, path in enumerate(map(Path, paths)):

        def part(begin, share, i=i, path=path):
            return lambda f, text="": report((i + begin + share * f) / len(paths), f"{path.name}: {text}")

        try:
            song = load_song(path, instrument.features, f0_method, part(0.0, 0.4), cancelled)
            chosen = controls(song) if callable(controls) else controls
            done(convert(instrument, song, chosen, progress=part(0.4, 0.6), cancelled=cancelled, **options))
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            failed[path] = error
    return failed


def describe(n_songs: int, failed: Mapping[Path, Exception]) -> str:
    """Summary of a batch: the number of converted songs, and each failure with its reason."""
    lines = [f"{path.name}: {' '.join(filesystem.error_text(error).split())}" for path, error in failed.items()]
    text = f"{n_songs - len(failed)} of {n_songs} songs were converted."
    return "\n".join([text + " These were not:" * bool(failed), *lines])


def _check(instrument, song: Song, controls: Controls, sampling: SamplingOptions, vocoder) -> None:
    """Refuse what does not fit together."""
    name, kind, own, measured = instrument.name, instrument.kind, instrument.features, song.features.settings
    if kind in _NO_VOICE:
        hint = "Choose a diffusion instrument of the same mel, and this as its vocoder if it was trained on mels."
        raise ConversionError(f"'{name}' {_NO_VOICE[kind]}", hint=hint)
    if kind not in _RENDERERS:
        text = f"'{name}' is an instrument of kind '{kind}', unknown to this version of svclib"
        raise ConversionError(f"{text} ({', '.join(_RENDERERS)}).", hint="Update svclib.")
    for setting in ("sample_rate_hz", "hop_samples", "loudness_n_fft"):
        theirs, ours = getattr(own, setting), getattr(measured, setting)
        if theirs != ours:
            text = f"The song was measured with {setting} {ours}, but '{name}' needs {theirs}."
            raise ConversionError(text, hint="Load the song again with this instrument's feature settings.")
    if kind != "diffusion":
        given = [option for option in sampling.given() if option != "seed"]
        given += [option for option, value in (("singer", controls.singer), ("vocoder", vocoder)) if value is not None]
        if given:
            text = f"{', '.join(given)} can be chosen for diffusion instruments only; '{name}' is of kind '{kind}'."
            raise ConversionError(text, hint="Leave it out.")
        return
    if song.features.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel. Load it for '{name}' again.")
    own.mel.require(measured.mel, f"'{name}'", f"'{song.name}'")
    if own.units not in (None, measured.units):
        raise ConversionError(f"'{song.name}' has no content features of '{name}'. Load it again.")
    if sampling.content == "whisper" and own.units is None and instrument.model.settings.content != "words":
        raise ConversionError(f"'{name}' was not trained on the code of 'words'; it cannot read Whisper.")


def _resolved(instrument, sampling: SamplingOptions) -> dict[str, Any]:
    if instrument.kind != "diffusion":
        return {}
    resolved = instrument.model.resolve_sampling(sampling)
    used = {name: getattr(resolved, name) for name in ("sampler", "steps", "temperature", "precision")}
    return {**{name: value for name, value in sampling.given().items() if name != "seed"}, **used}


def _pad_frames(x: np.ndarray, n_frames: int) -> np.ndarray:
    """``[frames, ...]`` with the last frame repeated."""
    return np.pad(x, ((0, n_frames - len(x)), *[(0, 0)] * (x.ndim - 1)), mode="edge")


def _whole_frames(song: Song) -> Features:
    """The song's measurements, with the last frame repeated for an incomplete one at its end."""
    hop = song.features.settings.hop_samples
    n_frames = -(-len(song.audio) // hop)
    return map_tracks(song.features, lambda x: _pad_frames(x, n_frames), n_frames * hop)


def _target(tracks: ConditioningTracks, n_frames: int) -> list[np.ndarray]:
    """F0, voicing and loudness asked of the instrument."""
    return [_pad_frames(x, n_frames) for x in (tracks.f0_hz, tracks.voiced, tracks.loudness_db)]


def _render_ddsp(instrument, song, tracks, singer, sampling, vocoder, **watch) -> tuple:
    """Audio, harmonic and noise part, ``[samples]`` each."""
    measured = _whole_frames(song)
    source = fit_length(song.audio, measured.n_samples) if instrument.model.settings.z_dims else None
    target = _target(tracks, measured.n_frames)
    made = instrument.model.render(*target, audio=source, seed=sampling.seed, **watch)
    return made.audio, made.harmonic, made.noise


def _render_diffusion(instrument, song, tracks, singer, sampling, vocoder, progress, cancelled) -> tuple:
    """The same; content, source F0 and mel are the song's, target F0 and loudness those of the tracks."""
    measured, units = _whole_frames(song), instrument.features.units
    content = None if units is None else measured.content
    if sampling.content == "whisper" and units is None:
        report, progress = progress, lambda f, text: report(0.3 + 0.7 * f, text)
        content = _pad_frames(_whisper_code(song, lambda f, text: report(0.3 * f, text)), measured.n_frames)
    source, target = (
        ConditionInputs.from_arrays(measured.log_mel, *given, content=content, device=instrument.model.device)
        for given in ((measured.f0_hz, measured.voiced, measured.loudness_db), _target(tracks, measured.n_frames))
    )
    try:
        made = instrument.model.render(source, target, singer, sampling, vocoder, progress, cancelled)
    except ModelError as error:
        raise ConversionError(f"'{instrument.name}': {error}") from None
    parts = made.audio, made.harmonic, made.noise
    gain = silence_gain(song.features.loudness_db, len(made.audio), instrument.features.hop_samples)
    return parts if gain is None else tuple(part * gain for part in parts)


def _whisper_code(song: Song, progress: ProgressCallback) -> np.ndarray:
    """Whisper's features of a song in the code space of ``words``, measured once and kept with the song."""
    if "whisper" not in song.codes:
        grid = song.features.settings
        given = (song.audio, grid.sample_rate_hz, grid.hop_samples, whisper_features.SETTINGS)
        song.codes["whisper"] = content_features.extract(*given, progress=progress)
    return song.codes["whisper"]


_RENDERERS: dict[str, Callable[..., tuple]] = {"ddsp": _render_ddsp, "diffusion": _render_diffusion}
