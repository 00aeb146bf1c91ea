"""Decoding of sound files block by block, by content and not by header.

A damaged MP3 header can claim 10^12 samples, and a WAV cut in half opens without an error. So nothing is allocated from
a header, blocks are read until one comes short, and the decoded length is compared with the claims of the header and
the size of the file; differences become warnings that name the time.
"""

import dataclasses
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

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
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
_EXPORT = "Export it again as WAV or FLAC."
_UPLOAD = "Upload it again if there is more of it."


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """Format and length of a sound file."""

    path: Path
    format: str  # container by content, such as ``WAV``, ``MP3``, ``OGG``
    subtype: str  # coding, such as ``PCM_24``, ``OPUS``
    sample_rate_hz: int
    channels: int
    n_samples: int  # per channel: by the header (0 if it makes no claim) until the whole file is decoded
    warnings: tuple[str, ...] = ()  # sentences on faults of the file that did not prevent reading it

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate_hz


def clock(seconds: float) -> str:
    """A time in a recording: ``1:02.50``."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:05.2f}"


def low_rate_warning(name: str, sample_rate_hz: int) -> str:
    """The warning about a file below 16 kHz."""
    return f"{name} has only {sample_rate_hz} samples per second: it holds nothing above {sample_rate_hz / 2000:g} kHz."


class Decoder:
    """An open sound file: ``info`` from its header, ``blocks()`` once through, then ``decoded_info()``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.position = 0  # samples per channel decoded so far
        self._ended = False
        self._shortness_explained = False  # by a warning, or by an impossible claim
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
        source, rate = self._source, self._source.sample_rate_hz
        if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
            raise _error(self.path, f"has the implausible sample rate {rate} Hz in its header.", _EXPORT)
        if not 1 <= source.channels <= MAX_CHANNELS:
            raise _error(self.path, f"has {source.channels} channels.", "Export it as mono WAV.")
        claimed = source.claimed_samples
        if source.format == "MP3":
            claimed = self._plausible_mp3_length(claimed, size)
        if cut := _cut_warning(self.path, size):
            self._warn(cut)
        if rate < 16000:
            self._warnings.append(low_rate_warning(self.path.name, rate))
        warnings = tuple(self._warnings)
        return AudioInfo(self.path, source.format, source.subtype, rate, source.channels, claimed, warnings)

    def _plausible_mp3_length(self, claimed: int, size: int) -> int:
        lowest, highest = _MP3_BYTES_PER_S
        payload, rate = size - _id3_bytes(self.path), self._source.sample_rate_hz
        claimed_s = claimed / rate
        if claimed_s * lowest <= 1.2 * payload and payload <= 1.2 * highest * claimed_s + 8192:
            return claimed
        self._warn(
            f"{self.path.name}: the length in its header, {clock(claimed_s)}, is impossible for {size} bytes. "
            "The part that could be read is used; export it again if something is missing."
        )
        return min(claimed, int(payload / lowest * rate))

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._shortness_explained = True

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 ``[n, channels]`` until the end or a fault; an AudioError names the time of NaN or infinity."""
        limit, fault, rate = np.inf, None, self.info.sample_rate_hz
        if self.info.format == "MP3":
            limit = self.path.stat().st_size / _MP3_BYTES_PER_S[0] * rate + BLOCK_SAMPLES
        while not fault and self.position <= limit:
            block, fault = self._source.read(BLOCK_SAMPLES)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                at = clock((self.position + int(np.argmin(finite))) / rate)
                raise _error(self.path, f"contains invalid samples (NaN or infinity) at {at}.", _EXPORT)
            self.position += len(block)
            if fault and not self.position:
                raise _error(self.path, f"cannot be decoded ({fault}).", _EXPORT)
            if fault:
                at = clock(self.position / rate)
                text = "only the part before is used. Export it again if possible."
                self._warn(f"{self.path.name} is damaged at {at}; {text}")
            if len(block):
                yield block
            if len(block) < BLOCK_SAMPLES:
                break
        self._ended = True

    def decoded_info(self) -> AudioInfo:
        """``info`` with the decoded length, and a warning where it is shorter than the header's."""
        if not self._ended:
            return self.info
        rate, claimed = self.info.sample_rate_hz, self.info.n_samples
        if not self._shortness_explained and self.position < 0.995 * claimed:
            read, whole = clock(self.position / rate), clock(claimed / rate)
            self._warn(f"{self.path.name} is cut off: {read} of {whole} could be read. {_UPLOAD}")
        return dataclasses.replace(self.info, n_samples=self.position, warnings=tuple(self._warnings))


class _Sndfile:
    """libsndfile on a file descriptor: it sees content only, and any file name is safe."""

    def __init__(self, path: Path):
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self._file = soundfile.SoundFile(self._handle, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            os.close(self._handle)
            raise _unreadable(path, error) from None
        self.sample_rate_hz, self.channels = self._file.samplerate, self._file.channels
        self.format, self.subtype = self._file.format, self._file.subtype
        self.claimed_samples = max(0, self._file.frames)
        if not self.claimed_samples:
            self.close()
            raise _error(path, "holds no sound (0 samples); it is cut off.", _UPLOAD)

    def read(self, n: int) -> tuple[np.ndarray, str | None]:
        """Up to ``n`` samples, and the reason if decoding failed after them."""
        out = np.zeros((n, self.channels), np.float32)
        try:
            return self._file.read(out=out), None
        except soundfile.LibsndfileError as error:
            # libsndfile does not report how many samples it wrote into the buffer before the fault
            filled = np.flatnonzero(np.any(out != 0, axis=1))
            return out[: int(filled[-1]) + 1 if len(filled) else 0], str(error).strip(" .:") or "damaged data"

    def close(self) -> None:
        self._file.close()
        os.close(self._handle)


class _Ffmpeg:
    """Formats that libsndfile does not know, through a local ffmpeg that writes float AU to a pipe."""

    def __init__(self, path: Path, kind: str):
        if kind == "mov" and _is_encrypted(path):
            raise _error(path, "is copy-protected.", "Export it as WAV or FLAC in its own player, or leave it out.")
        program = shutil.which("ffmpeg")
        if program is None:
            hint = "Install ffmpeg, or open the file in an audio editor (for example Audacity) and save it as WAV."
            raise _error(path, f"is {_FFMPEG_KINDS[kind]}, which needs ffmpeg.", hint)
        self._stderr = tempfile.TemporaryFile()
        source = ["-protocol_whitelist", "file,pipe", "-f", kind, "-i", f"file:{path.absolute()}"]
        command = [program, "-nostdin", "-v", "error", *source, *"-map 0:a:0 -c:a pcm_f32be -f au pipe:1".split()]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._stderr)
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
    """``sndfile`` for libsndfile, else ffmpeg's reader, by the first bytes: ``mov``, ``aac``, ``matroska``, ``asf``."""
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
    return "sndfile"


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
    if path.suffix.lower() not in SUFFIXES:
        return _error(path, "is not a known audio file.", "If it is a recording, export it as WAV or FLAC.")
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
        head, declared = file.read(36), 0
        if head[:4] in (b"RIFF", b"FORM"):
            declared = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
            declared = 0 if declared == 0xFFFFFFFF else declared  # 0 and -1: written to a stream, length unknown
        elif head[:4] == b"RF64" and head[12:16] == b"ds64" and len(head) >= 28:
            declared = int.from_bytes(head[20:28], "little")
        elif head[:4] == b"OggS":
            file.seek(max(0, size - 131072))
            tail = file.read()
            last = tail.rfind(b"OggS")
            if 0 <= last < len(tail) - 5 and not tail[last + 5] & 4:  # flag of the last page of a stream
                return f"{path.name} is cut off: its end is missing. {_UPLOAD}"
    if declared and declared + 8 > size + 1:
        return f"{path.name} is cut off: {size} of {declared + 8} bytes are there. {_UPLOAD}"
    return None
