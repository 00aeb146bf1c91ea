"""Sound files as arrays: reading, mixing to mono, resampling, and writing without wrap-around.

Every repair (silent channel left out, offset removed) is a sentence in ``info.warnings``. Resampled audio has
``units.resampled_length`` samples and no delay.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from svclib.audio import units
from svclib.audio.decode import BLOCK_SAMPLES, SUFFIXES, AudioInfo, Decoder, blocks, find, has_audio, probe
from svclib.utils import atomic_store
from svclib.utils.errors import AudioError, ProgressCallback

__all__ = [
    "SUFFIXES",
    "SYNTHETIC_TAG",
    "Audio",
    "AudioInfo",
    "Survey",
    "Written",
    "blocks",
    "find",
    "has_audio",
    "probe",
    "read",
    "read_resampled",
    "resample",
    "survey",
    "write",
]

SYNTHETIC_TAG = "synthetic voice"
WRITABLE = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG", ".opus": "OGG"}
_TAGS = ("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
_WRONG_SCALE = 4.0  # a float file with higher peaks was not written with full scale 1
_SILENT_RATIO = 1e-6  # energy below the loudest channel's, -60 dB
_CANCELLED_SHARE = 0.05  # a mix with less of the louder channel's energy cancels itself


@dataclasses.dataclass(frozen=True)
class Audio:
    """Sound in memory: ``samples`` float32 ``[n]``, or ``[n, channels]`` where asked for; ``info`` of its file."""

    samples: np.ndarray
    sample_rate_hz: int
    info: AudioInfo

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


# Mixing to mono -------------------------------------------------------------------------------------------------------


def silence_warning(name: str) -> str:
    """The warning about a silent file."""
    return f"{name} is silent."


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of one pass through a file; its mono mix is ``gain * (block @ weights - offset)``.

    Attributes:
        info: With the decoded length and all warnings.
        weights: Share of each channel, sum 1, float32.
        offset: Constant part of the mix that is removed; 0 where it is small.
        gain: 1, or the factor that brings a file of wrong scale to full scale.
        peak: Largest possible absolute value of the mix, after the gain.
    """

    info: AudioInfo
    weights: np.ndarray
    offset: float
    gain: float
    peak: float

    @property
    def silent(self) -> bool:
        """True if every sample is zero."""
        return self.peak == 0.0

    def mono(self, block: np.ndarray) -> np.ndarray:
        """Mix a block ``[n, channels]`` to float32 ``[n]``."""
        mixed = block[:, 0] if block.shape[1] == 1 else block @ self.weights
        if self.offset:
            mixed = mixed - np.float32(self.offset)
        return mixed if self.gain == 1.0 else mixed * np.float32(self.gain)


class ChannelStats:
    """Sums over blocks, from which the energy of any mix of the channels follows."""

    def __init__(self, channels: int):
        self.n = 0
        self.total = np.zeros(channels)
        self.products = np.zeros((channels, channels))
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, block: np.ndarray) -> None:
        """Add a block ``[n, channels]``."""
        if not len(block):
            return
        self.n += len(block)
        self.total += block.sum(axis=0, dtype=np.float64)
        for start in range(0, len(block), BLOCK_SAMPLES):
            wide = block[start : start + BLOCK_SAMPLES].astype(np.float64)
            self.products += np.einsum("nc,nd->cd", wide, wide)  # not by BLAS: its threads would hinder the workers'
        self.low, self.high = np.minimum(self.low, block.min(axis=0)), np.maximum(self.high, block.max(axis=0))

    def finish(self, info: AudioInfo) -> Survey:
        """The mix of the channels added so far, with its warnings.

        Raises AudioError if there was nothing.
        """
        if self.n == 0:
            raise AudioError(
                f"{info.path.name} holds no sound (0 samples); it is cut off.", path=info.path, hint="Upload it again."
            )
        name, channels, warnings = info.path.name, len(self.total), list(info.warnings)
        mean = self.total / self.n
        covariance = self.products / self.n - np.outer(mean, mean)
        energy = np.maximum(np.diag(covariance), 0.0)
        peaks = np.maximum(np.abs(self.low), np.abs(self.high))
        if peaks.max() == 0.0:
            warnings.append(silence_warning(name))
            return Survey(_with(info, warnings), np.full(channels, 1 / channels, np.float32), 0.0, 1.0, 0.0)
        active = energy > _SILENT_RATIO * energy.max() if energy.max() > 0 else np.ones(channels, bool)
        if channels > 2:
            warnings.append(
                f"{name} has {channels} channels, mixed to one. Export the voice alone if others sound too."
            )
        if not active.all():
            silent = ", ".join(str(i + 1) for i in np.flatnonzero(~active))
            warnings.append(f"{name}: channel {silent} is silent and left out of the mix.")
        weights = active / active.sum()
        if active.sum() > 1 and weights @ covariance @ weights < _CANCELLED_SHARE * energy.max():
            weights = np.zeros(channels)
            weights[np.flatnonzero(active)[0]] = 1.0
            warnings.append(f"{name}: its channels are in opposite phase and cancel out; only the left one is used.")
        offset = float(weights @ mean)
        if abs(offset) > 0.02 * max(1.0, float(peaks.max())):
            warnings.append(
                f"{name} has a constant offset of {offset:+.2f} (a fault of the sound card); it is removed."
            )
        else:
            offset = 0.0
        peak = float(weights @ peaks) + abs(offset)
        gain = 1.0
        if peak > _WRONG_SCALE:
            gain = 1.0 / peak
            warnings.append(
                f"{name} has peaks of {peak:.3g} where 1 is full scale: clipping or wrong scale; scaled to 1."
            )
        return Survey(_with(info, warnings), weights.astype(np.float32), offset, gain, peak * gain)


def _with(info: AudioInfo, warnings: list[str]) -> AudioInfo:
    return dataclasses.replace(info, warnings=tuple(warnings))


# Reading --------------------------------------------------------------------------------------------------------------


def read(
    path: str | Path,
    sample_rate_hz: int | None = None,
    mono: bool = True,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> Audio:
    """Read a file, or a part of it, into memory.

    Args:
        path: The file; its content decides the format.
        sample_rate_hz: Rate of the result; None keeps the file's.
        mono: Mix to ``[n]``: the mean of the channels that are not silent, the first one where they cancel out; decided
            on the part that is read.
        start_s: Where the part to read begins, in seconds.
        duration_s: Its length in seconds, less where the file ends before; None reads to the end.

    Returns:
        float32 ``[n]``, or ``[n, channels]`` without ``mono``, full scale 1. Its ``info`` has the warnings, but
        the header's length where reading stopped before the end.

    Raises:
        AudioError: if the file cannot be read, holds NaN or infinity, or has no sound from ``start_s`` on.
    """
    with Decoder(path) as decoder:
        rate = decoder.info.sample_rate_hz
        if start_s > 0:
            decoder.skip(round(start_s * rate))
        wanted = None if duration_s is None else max(0, round(duration_s * rate))
        parts, n = [], 0
        for block in decoder.blocks():
            parts.append(block)
            n += len(block)
            if wanted is not None and n >= wanted:
                break
        info = decoder.decoded_info()
    if not n:
        raise AudioError(f"{Path(path).name} holds no sound from {start_s:g} s on; it is {info.duration_s:.2f} s long.")
    samples = np.concatenate(parts)[:wanted]
    if mono:
        counter = ChannelStats(info.channels)
        counter.add(samples)
        found = counter.finish(info)
        samples, info = found.mono(samples), found.info
    if sample_rate_hz is not None and sample_rate_hz != rate:
        samples, rate = resample(samples, rate, sample_rate_hz), sample_rate_hz
    return Audio(np.ascontiguousarray(samples, np.float32), rate, info)


def survey(path: str | Path, progress: ProgressCallback | None = None) -> Survey:
    """Decode a whole file once: its true length, its warnings, its mix to mono. Memory does not depend on its length.

    The result saves :func:`read_resampled` a pass. ``progress`` is not called where the header gives no length. Raises
    AudioError if the file cannot be read, holds no sound, or holds NaN or infinity.
    """
    with Decoder(path) as decoder:
        counter = ChannelStats(decoder.info.channels)
        for block in decoder.blocks():
            counter.add(block)
            if progress and decoder.info.n_samples:
                progress(min(1.0, counter.n / decoder.info.n_samples), f"reading {decoder.path.name}")
        return counter.finish(decoder.decoded_info())


def read_resampled(
    path: str | Path,
    sample_rate_hz: int,
    dtype: Any = np.int16,
    surveyed: Survey | None = None,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """Mono audio at another rate, decoded and resampled block by block, in memory of the result.

    Args:
        path: The file.
        sample_rate_hz: Rate of the result.
        dtype: int16 (full scale 32768; a mix that would not fit is scaled down, see the survey's peak) or float32.
        surveyed: The result of :func:`survey`, to save a pass; it also holds the warnings.
        progress: Called with a fraction 0..1 and a text; with ``surveyed`` it begins at 0.5.

    Returns:
        ``[units.resampled_length(n)]`` samples, without delay.

    Raises:
        AudioError: as :func:`survey`; for another dtype; or if the file changes meanwhile.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
        raise AudioError(f"read_resampled gives int16 or float32, not {dtype}.")
    found = surveyed or survey(path, (lambda f, text: progress(f / 2, text)) if progress else None)
    n_out = units.resampled_length(found.info.n_samples, found.info.sample_rate_hz, sample_rate_hz)
    out, filled = np.zeros(n_out, dtype), 0
    scale = 32768.0 / max(1.0, found.peak) if dtype == np.int16 else 1.0
    for piece in _resampled_blocks(path, found, sample_rate_hz, progress):
        piece = piece[: n_out - filled]
        if dtype == np.int16:
            piece = np.clip(np.rint(piece * scale), -32768, 32767)
        out[filled : filled + len(piece)] = piece
        filled += len(piece)
    return out


def _resampled_blocks(path, found: Survey, sample_rate_hz: int, progress) -> Iterator[np.ndarray]:
    import soxr

    rate = found.info.sample_rate_hz
    stream = soxr.ResampleStream(rate, sample_rate_hz, 1, dtype="float32") if rate != sample_rate_hz else None
    n = 0
    for block in blocks(path):
        n += len(block)
        mixed = np.ascontiguousarray(found.mono(block), np.float32)
        yield mixed if stream is None else stream.resample_chunk(mixed)
        if progress:
            progress(0.5 + 0.5 * min(1.0, n / max(1, found.info.n_samples)), f"resampling {Path(path).name}")
    if n != found.info.n_samples:
        raise AudioError(f"{Path(path).name} changed while it was read. Wait until it is complete, then try again.")
    if stream is not None:
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def resample(samples: np.ndarray, rate_in_hz: int, rate_out_hz: int) -> np.ndarray:
    """Band-limited resampling (soxr), float32 ``[units.resampled_length(n)]`` or with channels last; no delay."""
    samples = np.asarray(samples, np.float32)
    n_out = units.resampled_length(len(samples), rate_in_hz, rate_out_hz)
    if rate_in_hz == rate_out_hz:
        return samples
    if len(samples) == 0 or n_out == 0:
        return np.zeros((n_out, *samples.shape[1:]), np.float32)
    import soxr

    out = soxr.resample(samples, rate_in_hz, rate_out_hz)[:n_out]
    missing = n_out - len(out)
    return out if missing == 0 else np.concatenate([out, np.zeros((missing, *out.shape[1:]), np.float32)])


# Writing --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Written:
    """Path of a file, and the dB by which it was turned down (0 or negative) so that nothing clips."""

    path: Path
    gain_db: float

    @property
    def text(self) -> str:
        """A sentence for people."""
        note = f"; turned down by {-self.gain_db:.1f} dB so that nothing clips" if self.gain_db < 0 else ""
        return f"saved {self.path.name}{note}"


def write(
    path: str | Path,
    samples: np.ndarray,
    sample_rate_hz: int,
    tags: dict[str, str] | None = None,
    subtype: str | None = None,
    new_name: bool = False,
) -> Written:
    """Write sound in the format of the suffix (wav, flac, mp3, ogg, opus), atomically.

    Peaks above full scale are prevented by turning the whole file down, never by cutting or wrapping.

    Args:
        path: The file to make.
        samples: Float ``[n]`` or ``[n, channels]``, full scale 1; or int16.
        sample_rate_hz: Its rate; mp3 takes 8 to 48 kHz, opus 8, 12, 16, 24 or 48 kHz.
        tags: ``title``, ``artist``, ``comment``, ...; by default the comment ``synthetic voice``.
        subtype: ``PCM_24`` (default of wav and flac), ``PCM_16``, ``FLOAT`` (wav; keeps peaks as they are).
        new_name: If the name is taken, use ``name 2.wav`` and so on instead of refusing.

    Returns:
        The path that was used, and the gain in dB.

    Raises:
        AudioError: if the name is taken, the format is not known, or the samples are not finite.
    """
    path, tags = Path(path), {"comment": SYNTHETIC_TAG} if tags is None else tags
    form = WRITABLE.get(path.suffix.lower())
    if form is None:
        raise AudioError(f"{path.name}: sound is written as {', '.join(WRITABLE)}; choose one of these endings.")
    if path.exists() and not new_name:
        raise AudioError(f"{path} exists and is never overwritten.", path=path, hint="Choose another name.")
    unknown = sorted(set(tags) - set(_TAGS))
    if unknown:
        raise AudioError(f"{path.name}: there is no tag '{unknown[0]}'; tags are {', '.join(_TAGS)}.")
    samples = np.asarray(samples)
    samples = (
        samples.astype(np.float32) / 32768 if samples.dtype == np.int16 else samples.astype(np.float32, copy=False)
    )
    if samples.ndim not in (1, 2) or not np.isfinite(samples).all():
        raise AudioError(
            f"{path.name}: expected finite samples [n] or [n, channels]; these have shape {samples.shape} or hold NaN."
        )
    if path.suffix.lower() in (".wav", ".flac"):
        subtype = subtype or "PCM_24"
    elif path.suffix.lower() == ".opus":
        subtype = "OPUS"
    gain = 1.0 if subtype == "FLOAT" else _gain(samples, 0.98 if form in ("MP3", "OGG") else 0.999)

    def put(part: Path) -> None:
        _write_file(part, samples, gain, sample_rate_hz, form, subtype, tags)

    used = atomic_store.commit_new(path, put) if new_name else atomic_store.commit_file(path, put)
    return Written(Path(used), 20 * float(np.log10(gain)))


def _gain(samples: np.ndarray, limit: float) -> float:
    """1, or what brings the highest peak to ``limit`` where it is above full scale."""
    peak = float(np.abs(samples).max()) if samples.size else 0.0
    return limit / peak if peak > 1.0 else 1.0


def _write_file(part: Path, samples, gain: float, sample_rate_hz: int, form: str, subtype, tags: dict) -> None:
    import soundfile

    channels = 1 if samples.ndim == 1 else samples.shape[1]
    try:
        with soundfile.SoundFile(os.fspath(part), "w", sample_rate_hz, channels, subtype, format=form) as file:
            for name, value in tags.items():
                setattr(file, name, str(value))
            for start in range(0, len(samples), BLOCK_SAMPLES):
                block = samples[start : start + BLOCK_SAMPLES]
                file.write(block * np.float32(gain) if gain != 1.0 else block)
    except (soundfile.LibsndfileError, ValueError) as error:
        detail = str(getattr(error, "error_string", error)).strip(" .")
        raise AudioError(
            f"{form} at {sample_rate_hz} Hz with {channels} channels cannot be written ({detail}). Write WAV instead."
        ) from None
