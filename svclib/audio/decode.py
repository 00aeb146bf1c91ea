"""Decoding of sound files block by block, by content and not by header; the usable files of a folder.

A damaged MP3 header can claim 10^12 samples, and a WAV cut in half opens without an error. So nothing is allocated from
a header, blocks are read until one comes short, and the decoded length is compared with the claims of the header and
the size of the file; differences become warnings that name the time.
"""

import contextlib
import dataclasses
import difflib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from svclib.utils.errors import AudioError

SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".w64", ".rf64", ".caf", ".au"),
    *(".m4a", ".aac", ".mp4", ".webm", ".wma"),
)
BLOCK_SAMPLES = 65536
MAX_CHANNELS = 32
RATES_HZ = (2000, 768000)
_MP3_BYTES_PER_S = (1000.0, 40000.0)  # 8 and 320 kbit/s, the lowest and highest rate of the format
_FFMPEG_KINDS = {"mov": "AAC or ALAC in MP4", "aac": "AAC", "matroska": "WebM", "asf": "WMA"}
_IGNORED = {"desktop.ini", "thumbs.db", "__macosx"}
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
_EXPORT = "Export it again as WAV or FLAC."
_UPLOAD = "Upload it again if there is more of it."


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """Format and length of a sound file.

    Attributes:
        path: The file.
        format: Container by content, such as ``WAV``, ``MP3``, ``OGG``.
        subtype: Coding, such as ``PCM_24``, ``OPUS``.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        n_samples: Samples per channel. From :func:`probe` the header's claim (0 if it makes none), from a function that
            reads the whole file the decoded length.
        warnings: Sentences on faults of the file that did not prevent reading it.
    """

    path: Path
    format: str
    subtype: str
    sample_rate_hz: int
    channels: int
    n_samples: int
    warnings: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate_hz


def probe(path: str | Path) -> AudioInfo:
    """Format and length by the header, without decoding; an impossible length is warned about.

    Raises :class:`AudioError` if the file cannot be opened as sound.
    """
    with Decoder(path) as decoder:
        return decoder.info


def blocks(path: str | Path, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
    """Decode a file block by block, float32 ``[block_samples, channels]`` of full scale 1, the last block shorter.

    Of a damaged file the part before the fault is decoded. An AudioError is raised if it cannot be opened, or holds NaN
    or infinity (with the time).
    """
    with Decoder(path, block_samples) as decoder:
        yield from decoder.blocks()


def clock(seconds: float) -> str:
    """A time in a recording: ``1:02.50``."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:05.2f}"


def low_rate_warning(name: str, sample_rate_hz: int) -> str:
    """The warning about a file below 16 kHz."""
    return f"{name} has only {sample_rate_hz} samples per second: it holds nothing above {sample_rate_hz / 2000:g} kHz."


class Decoder:
    """An open sound file: ``info`` from its header, ``blocks()`` once through, then ``decoded_info()``."""

    def __init__(self, path: str | Path, block_samples: int = BLOCK_SAMPLES):
        self.path, self.block_samples = Path(path), block_samples
        self.position = 0  # samples per channel decoded so far
        self._ended, self._fault_reported, self._claim_is_plausible = False, False, True
        self._warnings: list[str] = []
        kind = _kind_of(self.path)
        self._source = _Sndfile(self.path) if kind == "sndfile" else _Ffmpeg(self.path, kind)
        try:
            self.info = self._header_info(self.path.stat().st_size)
        except BaseException:
            self._source.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._source.close()

    def _header_info(self, size: int) -> AudioInfo:
        source, name, rate = self._source, self.path.name, self._source.sample_rate_hz
        if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
            raise _error(self.path, f"has the implausible sample rate {rate} Hz in its header.", _EXPORT)
        if not 1 <= source.channels <= MAX_CHANNELS:
            raise _error(
                self.path, f"has {source.channels} channels, more than {MAX_CHANNELS}.", "Export it as mono WAV."
            )
        claimed = source.claimed_samples
        if source.format == "MP3":
            claimed = self._plausible_mp3_length(claimed, size)
        if cut := _cut_warning(self.path, size):
            self._fault_reported = True
            self._warnings.append(cut)
        if rate < 16000:
            self._warnings.append(low_rate_warning(name, rate))
        return AudioInfo(
            self.path, source.format, source.subtype, rate, source.channels, claimed, tuple(self._warnings)
        )

    def _plausible_mp3_length(self, claimed: int, size: int) -> int:
        lowest, highest = _MP3_BYTES_PER_S
        payload, rate = size - _id3_bytes(self.path), self._source.sample_rate_hz
        claimed_s = claimed / rate
        if claimed_s * lowest <= 1.2 * payload and payload <= 1.2 * highest * claimed_s + 8192:
            return claimed
        self._claim_is_plausible = False
        self._warnings.append(
            f"{self.path.name}: the length in its header, {clock(claimed_s)}, is impossible for {size} bytes. "
            "The part that could be read is used; export it again if something is missing."
        )
        return min(claimed, int(payload / lowest * rate))

    def skip(self, n_samples: int) -> None:
        """Move forward: by a seek where the format seeks exactly, else by decoding."""
        if self._source.seeks_exactly:
            self.position += self._source.seek(n_samples)
            return
        while n_samples > 0:
            n = len(self._source.read(min(n_samples, self.block_samples))[0])
            self.position += n
            n_samples -= n
            if n == 0:
                return

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 ``[n, channels]`` until the end; the last may be short."""
        limit, fault = np.inf, None
        if self.info.format == "MP3":
            limit = self.path.stat().st_size / _MP3_BYTES_PER_S[0] * self.info.sample_rate_hz + self.block_samples
        while not fault and self.position <= limit:
            block, fault = self._source.read(self.block_samples)
            if fault:
                self._report_fault(self.position + len(block), fault)
            if len(block):
                self._refuse_invalid(block)
                self.position += len(block)
                yield block
            if len(block) < self.block_samples:
                break
        self._ended = True

    def _refuse_invalid(self, block: np.ndarray) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            at_s = (self.position + int(np.flatnonzero(~finite.all(axis=1))[0])) / self.info.sample_rate_hz
            raise _error(self.path, f"contains invalid samples (NaN or infinity) at {clock(at_s)}.", _EXPORT)

    def _report_fault(self, n_decoded: int, reason: str) -> None:
        if n_decoded == 0:
            raise _error(self.path, f"cannot be decoded ({reason}).", _EXPORT)
        self._fault_reported = True
        self._warnings.append(
            f"{self.path.name} is damaged at {clock(n_decoded / self.info.sample_rate_hz)}; only the part before is "
            "used. Export it again if possible."
        )

    def decoded_info(self) -> AudioInfo:
        """``info`` with the decoded length, and a warning where it is shorter than the header's."""
        if not self._ended:
            return self.info
        warnings, claimed = list(self._warnings), self.info.n_samples
        if self._claim_is_plausible and not self._fault_reported and self.position < 0.995 * claimed:
            rate = self.info.sample_rate_hz
            warnings.append(
                f"{self.path.name} is cut off: {clock(self.position / rate)} of {clock(claimed / rate)} could be read. "
                f"{_UPLOAD}"
            )
        return dataclasses.replace(self.info, n_samples=self.position, warnings=tuple(warnings))


class _Sndfile:
    """libsndfile on a file descriptor: it sees content only, and any file name is safe."""

    def __init__(self, path: Path):
        import soundfile

        self._error = soundfile.LibsndfileError
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self._file = soundfile.SoundFile(self._handle, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            os.close(self._handle)
            raise _unreadable(path, error) from None
        self.sample_rate_hz, self.channels = self._file.samplerate, self._file.channels
        self.format, self.subtype = self._file.format, self._file.subtype
        self.claimed_samples = max(0, self._file.frames)
        self.seeks_exactly = self.format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
        if not self.claimed_samples:
            self.close()
            raise _error(path, "holds no sound (0 samples); it is cut off.", _UPLOAD)

    def read(self, n: int) -> tuple[np.ndarray, str | None]:
        """Up to ``n`` samples, and the reason if decoding failed after them."""
        out = np.zeros((n, self.channels), np.float32)
        try:
            return self._file.read(out=out), None
        except self._error as error:
            # libsndfile does not report how many samples it wrote into the buffer before the fault
            filled = np.flatnonzero(np.any(out != 0, axis=1))
            return out[: int(filled[-1]) + 1 if len(filled) else 0], str(error).strip(" .:") or "damaged data"

    def seek(self, n: int) -> int:
        start = self._file.tell()
        return self._file.seek(min(start + n, self._file.frames)) - start

    def close(self) -> None:
        self._file.close()
        os.close(self._handle)


class _Ffmpeg:
    """Formats that libsndfile does not know, through a local ffmpeg that writes float AU to a pipe."""

    seeks_exactly = False

    def __init__(self, path: Path, kind: str):
        if kind == "mov" and _is_encrypted(path):
            raise _error(path, "is copy-protected.", "Export it as WAV or FLAC in its own player, or leave it out.")
        program = shutil.which("ffmpeg")
        if program is None:
            hint = "Install ffmpeg, or open the file in an audio editor (for example Audacity) and save it as WAV."
            raise _error(path, f"is {_FFMPEG_KINDS[kind]}, which needs ffmpeg.", hint)
        self._stderr = tempfile.TemporaryFile()
        source = ["-protocol_whitelist", "file,pipe", "-f", kind, "-i", f"file:{path.absolute()}"]
        target = ["-map", "0:a:0", "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]
        self._process = subprocess.Popen(
            [program, "-nostdin", "-v", "error", *source, *target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        header = self._process.stdout.read(24)
        if len(header) < 24 or header[:4] != b".snd":
            self.close()
            raise _error(path, "cannot be decoded: protected, damaged or without sound.", _EXPORT)
        offset, _, _, self.sample_rate_hz, self.channels = struct.unpack(">5I", header[4:])
        self._process.stdout.read(offset - 24)
        self.format, self.subtype, self.claimed_samples = kind.upper(), "FFMPEG", 0

    def read(self, n: int) -> tuple[np.ndarray, str | None]:
        """As :meth:`_Sndfile.read`."""
        data = self._process.stdout.read(n * self.channels * 4)
        whole = len(data) // (4 * self.channels) * self.channels
        block = np.frombuffer(data, ">f4", whole).astype(np.float32).reshape(-1, self.channels)
        failed = len(block) < n and self._process.wait() != 0
        return block, "ffmpeg could not read on" if failed else None

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def _error(path: Path, text: str, hint: str = "") -> AudioError:
    return AudioError(f"{path.name} {text}", path=path, hint=hint)


# Containers -----------------------------------------------------------------------------------------------------------


def _kind_of(path: Path) -> str:
    """``"sndfile"`` for libsndfile, else ffmpeg's reader: ``mov``, ``aac``, ``matroska``, ``asf``.

    Raises AudioError if the first bytes are not sound. The suffix decides only where they are not known, as in an MP3
    without a tag.
    """
    size, head = _head_of(path)
    if size == 0:
        raise _error(path, "is empty (0 bytes).", "Upload it again; a Drive may still be syncing.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE):
        raise _error(path, "is not audio but a web page, as a failed download leaves.", "Fetch it again.")
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"0&\xb2u":
        return "asf"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    is_sound = (
        head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"riff")
        or head[:3] == b"ID3"
        or (head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE")
        or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"))
    )
    if is_sound or path.suffix.lower() in SUFFIXES:
        return "sndfile"
    raise _error(path, "is not a known audio file.", "If it is a recording, export it as WAV or FLAC.")


def _head_of(path: Path) -> tuple[int, bytes]:
    """Size in bytes and first 512 bytes of a file; AudioError for a folder, or if it cannot be opened."""
    try:
        if path.is_dir():
            raise _error(path, "is a folder, not a sound file.")
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(512)
    except FileNotFoundError:
        raise AudioError(f"There is no file {path}.", path=path, hint="Check the name and the folder.") from None
    except OSError as error:
        raise _error(path, f"cannot be opened ({error.strerror or error}).") from None


def _unreadable(path: Path, error: Exception) -> AudioError:
    """The error for a file that libsndfile could not open; its own text misleads."""
    size, head = _head_of(path)
    if head[:4] in (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS") and size < 1000:
        return _error(path, f"is cut off: only {size} bytes are there.", "Upload it again.")
    if sum(32 <= b < 127 or b in (9, 10, 13) for b in head) > 0.95 * len(head):
        return _error(path, "is not audio: it holds text.", "Choose a recording instead.")
    detail = str(getattr(error, "error_string", "") or "unknown format").strip(" .")
    return _error(path, f"cannot be read as audio ({detail}).", _EXPORT)


def _is_encrypted(path: Path) -> bool:
    """True for an MP4 or M4A with encrypted sound: a sample entry ``enca`` (ISO/IEC 23001-7) or ``drms`` (FairPlay)."""
    with open(path, "rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind, read = int.from_bytes(head[:4], "big"), head[4:], 8
            if size == 1:
                size, read = int.from_bytes(file.read(8), "big"), 16
            if kind == b"moov":
                tables = file.read(min(size - read, 64 << 20) if size else 64 << 20).split(b"stsd")[1:]
                return any(table[12:16] in (b"enca", b"drms") for table in tables)
            if size < read:
                break
            file.seek(size - read, 1)
    return False


def _id3_bytes(path: Path) -> int:
    """Size of an ID3v2 tag in front of an MP3, which may hold pictures."""
    head = _head_of(path)[1][:10]
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _cut_warning(path: Path, size: int) -> str | None:
    """Compare the length that RIFF, AIFF and Ogg declare with the bytes that are there; libsndfile does not."""
    with open(path, "rb") as file:
        head = file.read(12)
        declared = None
        if head[:4] in (b"RIFF", b"FORM"):
            n = struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[4:8])[0]
            declared = n + 8 if 0 < n < 0xFFFFFFFF else None  # 0 and -1: written to a stream, length unknown
        elif head[:4] == b"RF64":
            ds64 = file.read(24)
            declared = struct.unpack("<Q", ds64[8:16])[0] + 8 if ds64[:4] == b"ds64" and len(ds64) == 24 else None
        elif head[:4] == b"OggS":
            file.seek(max(0, size - 131072))
            tail = file.read()
            last = tail.rfind(b"OggS")
            if 0 <= last < len(tail) - 5 and not tail[last + 5] & 4:  # flag of the last page of a stream
                return f"{path.name} is cut off: its end is missing. {_UPLOAD}"
    if declared and declared > size + 1:
        return f"{path.name} is cut off: {size} of {declared} bytes are there. {_UPLOAD}"
    return None


# Folders --------------------------------------------------------------------------------------------------------------


def find(folder: str | Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The sound files of a folder and its sub-folders.

    A file is usable if it can be opened as sound, whatever its suffix; system files (``.DS_Store``, ``._song.wav``,
    ``.ipynb_checkpoints``) are passed over.

    Args:
        folder: Links in it are followed. A path of one file is allowed.

    Returns:
        The usable files, and the files left out, each with the reason; both sorted by path.

    Raises:
        AudioError: if there is no such folder; names the nearest ones.
    """
    folder = Path(folder)
    if not folder.exists():
        names = os.listdir(folder.parent) if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)
        hint = f"Near names there: {', '.join(near)}." if near else ""
        raise AudioError(f"There is no folder {folder}.", path=folder, hint=hint)
    usable, skipped = [], []
    for path in [folder] if folder.is_file() else _files(folder):
        try:
            probe(path)
            usable.append(path)
        except (AudioError, OSError) as error:
            skipped.append((path, str(error)))
    return sorted(usable), sorted(skipped)


def has_audio(folder: str | Path) -> bool:
    """True if a folder or its sub-folders hold a usable sound file; opens files only until one is found."""
    for path in _files(Path(folder)):
        with contextlib.suppress(AudioError, OSError):
            probe(path)
            return True
    return False


def _files(folder: Path) -> Iterator[Path]:
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = [f for f in folders if not f.startswith(".") and f.lower() not in _IGNORED]
        yield from (Path(at) / f for f in files if not f.startswith(".") and f.lower() not in _IGNORED)
