"""Sound files as arrays: finding, reading as one channel, resampling, and writing without wrap-around.

Every repair (silent channel left out, offset removed) is a sentence in ``info.warnings``. Resampled audio has
``units.resampled_length`` samples and no delay.
"""

import dataclasses
import difflib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from svclib.audio import units
from svclib.audio.decode import BLOCK_SAMPLES, AudioInfo, Decoder
from svclib.audio.decode import SUFFIXES as SUFFIXES
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import AudioError, ProgressCallback

SYNTHETIC_TAG = "synthetic voice"
WRITABLE = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3", ".ogg": "OGG", ".opus": "OGG"}
_WRONG_SCALE = 4.0  # a float file with higher peaks was not written with full scale 1
_SILENT_RATIO = 1e-6  # energy below the loudest channel's, -60 dB
_CANCELLED_SHARE = 0.05  # a mix with less of the louder channel's energy cancels itself


def find(folder: str | Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The usable sound files of a folder (or of one file), and those left out, each with the reason; sorted by path.

    A file is usable if it can be opened as sound, whatever its suffix. Links are followed inside the folder only, and
    system files are passed over. An AudioError names the nearest folders if there is none.
    """
    folder = Path(folder)
    if not folder.exists():
        names = os.listdir(folder.parent) if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)
        hint = f"Near names there: {', '.join(near)}." if near else ""
        raise AudioError(f"There is no folder {folder}.", path=folder, hint=hint)
    found = [(folder, _problem(folder))] if folder.is_file() else list(_files(folder))
    return sorted(path for path, why in found if not why), sorted((path, why) for path, why in found if why)


def has_audio(folder: str | Path) -> bool:
    """True if a folder or its sub-folders hold a usable sound file; opens files only until one is found."""
    return not all(why for _, why in _files(Path(folder)))


def _problem(path: Path) -> str:
    """The reason why a file is not usable; "" if it can be opened as sound."""
    try:
        probe(path)
    except (AudioError, OSError) as error:
        return str(error)
    return ""


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder and its sub-folders, and the links out of it, each with its :func:`_problem`."""
    seen, root = set(), folder.resolve()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add((here.st_dev, here.st_ino))
        for name in [*folders, *files]:
            path = Path(at) / name
            outside = path.is_symlink() and path.exists() and not path.resolve().is_relative_to(root)
            if (outside or filesystem.is_system_file(name)) and name in folders:
                folders.remove(name)
            if filesystem.is_system_file(name) or name.endswith(".f0.json"):  # the edits of a song, beside it
                continue
            if outside:
                text = "is a link to a place outside the folder. Put the file itself there, or give that place."
                yield path, f"{filesystem.as_name(name)} {text}"
            elif name not in folders:
                yield path, _problem(path)


# Reading --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Audio:
    """Sound in memory."""

    samples: np.ndarray  # float32 ``[n]``
    sample_rate_hz: int
    info: AudioInfo

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate_hz


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of one pass through a file; its mono mix is ``gain * (block @ weights - offset)``."""

    info: AudioInfo  # with the decoded length and all warnings
    weights: np.ndarray  # share of each channel, sum 1, float32
    offset: float  # constant part of the mix that is removed; 0 where it is small
    gain: float  # 1, or the factor that brings a file of wrong scale to full scale
    peak: float  # largest possible absolute value of the mix, after the gain

    def mono(self, block: np.ndarray) -> np.ndarray:
        """Mix a block ``[n, channels]`` to float32 ``[n]``."""
        mixed = block[:, 0] if block.shape[1] == 1 else block @ self.weights
        if self.offset:
            mixed = mixed - np.float32(self.offset)
        return mixed if self.gain == 1.0 else mixed * np.float32(self.gain)


def probe(path: str | Path) -> AudioInfo:
    """Format and length by the header, without decoding; AudioError if the file cannot be opened as sound."""
    with Decoder(path) as decoder:
        return decoder.info


def blocks(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a file, or its part before a fault, block by block: float32 ``[n, channels]`` of full scale 1."""
    with Decoder(path) as decoder:
        yield from decoder.blocks()


def read(path: str | Path, sample_rate_hz: int | None = None, surveyed: Survey | None = None) -> Audio:
    """Read a file as one channel of full scale 1, decoded and resampled block by block, in memory of the result.

    It is the mean of the channels that are not silent, or the first where they cancel out, at the file's rate if
    ``sample_rate_hz`` is None; ``surveyed``, from :func:`survey`, saves a pass. AudioError if the file cannot be read,
    holds NaN, infinity or no sound, or changes meanwhile.
    """
    found = surveyed or survey(path)
    n, file_rate_hz = found.info.n_samples, found.info.sample_rate_hz
    rate_hz = sample_rate_hz or file_rate_hz
    out = np.zeros(units.resampled_length(n, file_rate_hz, rate_hz), np.float32)
    stream = soxr.ResampleStream(file_rate_hz, rate_hz, 1, dtype="float32") if rate_hz != file_rate_hz else None
    decoded = filled = 0
    for block in blocks(path):
        decoded += len(block)
        if decoded > n:
            break
        piece = np.ascontiguousarray(found.mono(block), np.float32)
        piece = piece if stream is None else stream.resample_chunk(piece, last=decoded == n)
        piece = piece[: len(out) - filled]
        out[filled : filled + len(piece)] = piece
        filled += len(piece)
    if decoded != n:
        raise AudioError(f"{found.info.name} changed while it was read. Wait until it is complete, then try again.")
    return Audio(out, rate_hz, found.info)


def beginning(path: str | Path, seconds: float) -> tuple[np.ndarray, int]:
    """The first seconds of a file, the mean of its channels, and its sample rate; no more is decoded. For players."""
    with Decoder(path) as decoder:
        rate_hz, taken = decoder.info.sample_rate_hz, []
        for block in decoder.blocks():
            taken.append(block.mean(axis=1))
            if sum(map(len, taken)) >= seconds * rate_hz:
                break
    return np.concatenate(taken or [np.zeros(0, np.float32)])[: round(seconds * rate_hz)], rate_hz


def survey(path: str | Path, progress: ProgressCallback | None = None) -> Survey:
    """Decode a whole file once: its true length, its warnings, its mix to mono. Memory does not depend on its length.

    ``progress`` is not called where the header gives no length. Raises AudioError if the file cannot be read, holds no
    sound, or holds NaN or infinity.
    """
    with Decoder(path) as decoder:
        channels, whole = decoder.info.channels, decoder.info.n_samples
        n, total, products = 0, np.zeros(channels), np.zeros((channels, channels))
        low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
        for block in decoder.blocks():
            n += len(block)
            wide = block.astype(np.float64)
            total += wide.sum(axis=0)
            products += np.einsum("nc,nd->cd", wide, wide)  # not by BLAS: its threads would hinder the workers'
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
            if progress and whole:
                progress(min(1.0, n / whole), f"reading {decoder.name}")
        info = decoder.decoded_info()
    if n == 0:
        text = f"{info.name} holds no sound (0 samples); it is cut off."
        raise AudioError(text, path=info.path, hint="Upload it again.")
    mean = total / n
    return _mix(info, mean, products / n - np.outer(mean, mean), np.maximum(np.abs(low), np.abs(high)))


def silence_warning(name: str) -> str:
    """The warning about a silent file."""
    return f"{name} is silent."


def _mix(info: AudioInfo, mean: np.ndarray, covariance: np.ndarray, peaks: np.ndarray) -> Survey:
    """The mix to mono, from the mean, covariance and peaks of the channels."""
    name, channels, warnings = info.name, info.channels, list(info.warnings)
    energy = np.maximum(np.diag(covariance), 0.0)
    weights, offset, gain, peak = np.full(channels, 1 / channels), 0.0, 1.0, 0.0
    if peaks.max() == 0.0:
        warnings.append(silence_warning(name))
    else:
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
            weights = np.eye(channels)[np.argmax(active)]
            warnings.append(f"{name}: its channels are in opposite phase and cancel out; only the left one is used.")
        offset = float(weights @ mean)
        offset = offset if abs(offset) > 0.02 * max(1.0, float(peaks.max())) else 0.0
        if offset:
            fault = f"a constant offset of {offset:+.2f} (a fault of the sound card)"
            warnings.append(f"{name} has {fault}; it is removed.")
        peak = float(weights @ peaks) + abs(offset)
        if peak > _WRONG_SCALE:
            gain = 1.0 / peak
            text = f"has peaks of {peak:.3g} where 1 is full scale: clipping or wrong scale; scaled to 1."
            warnings.append(f"{name} {text}")
    info = dataclasses.replace(info, warnings=tuple(warnings))
    return Survey(info, weights.astype(np.float32), offset, gain, peak * gain)


def resample(samples: np.ndarray, rate_in_hz: int, rate_out_hz: int) -> np.ndarray:
    """Band-limited resampling (soxr), float32 ``[units.resampled_length(n)]`` or with channels last; no delay."""
    samples = np.asarray(samples, np.float32)
    if rate_in_hz == rate_out_hz:
        return samples
    n_out = units.resampled_length(len(samples), rate_in_hz, rate_out_hz)
    out = soxr.resample(samples, rate_in_hz, rate_out_hz)[:n_out] if len(samples) and n_out else samples[:0]
    return np.pad(out, [(0, n_out - len(out))] + [(0, 0)] * (samples.ndim - 1))


def as_float(samples: np.ndarray) -> np.ndarray:
    """Float32 of samples that may be int16 with full scale 32768."""
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    return np.ascontiguousarray(samples, np.float32)


# Writing --------------------------------------------------------------------------------------------------------------


def write(
    path: str | Path,
    samples: np.ndarray,
    sample_rate_hz: int,
    comment: str = SYNTHETIC_TAG,
    describe: Callable[[Path], bytes] | None = None,
) -> Path:
    """Write sound in the format of the suffix (wav and flac with 24 bits, mp3, ogg, opus), atomically.

    Where the name is taken, it is ``name 2.wav`` and so on. Peaks above full scale turn the whole file down.
    ``samples`` are ``[n]`` or ``[n, channels]``, float or int16, ``comment`` becomes a tag, ``describe`` is that of
    ``atomic_store.commit_new``. AudioError if the format is unknown or refuses this rate, or samples are not finite.
    """
    path, samples = Path(path), as_float(np.asarray(samples))
    suffix = path.suffix.lower()
    form = WRITABLE.get(suffix)
    if form is None:
        raise AudioError(f"{path.name}: sound is written as {', '.join(WRITABLE)}; choose one of these endings.")
    if samples.ndim not in (1, 2) or not np.isfinite(samples).all():
        text = f"expected finite samples [n] or [n, channels]; these have shape {samples.shape} or hold NaN."
        raise AudioError(f"{path.name}: {text}")
    subtype = {".wav": "PCM_24", ".flac": "PCM_24", ".opus": "OPUS"}.get(suffix)
    peak, limit = float(np.abs(samples).max(initial=0.0)), 0.98 if form in ("MP3", "OGG") else 0.999
    gain = limit / peak if peak > 1.0 else 1.0
    channels = 1 if samples.ndim == 1 else samples.shape[1]

    def put(part: Path) -> None:
        try:
            with soundfile.SoundFile(os.fspath(part), "w", sample_rate_hz, channels, subtype, format=form) as file:
                file.comment = comment
                for start in range(0, len(samples), BLOCK_SAMPLES):
                    file.write(samples[start : start + BLOCK_SAMPLES] * np.float32(gain))
        except (soundfile.LibsndfileError, ValueError) as error:
            with open(part, "ab") as rest:  # libsndfile hides the system's reason, such as a full disk
                rest.write(bytes(1 << 16))
            detail = str(getattr(error, "error_string", error)).strip(" .")
            text = f"{form} at {sample_rate_hz} Hz with {channels} channels cannot be written ({detail})."
            raise AudioError(text, hint="Write WAV instead.") from None

    return atomic_store.commit_new(path, put, describe)
