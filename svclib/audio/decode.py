"""Decoding of sound files block by block, by content and not by header.

A damaged MP3 header can claim 10^12 samples, and a WAV cut in half opens without an error. So nothing is allocated from
a header, blocks are read until one comes short, and the decoded length is compared with the claims of the header and
the size of the file; differences become warnings that name the time.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from svclib.audio.repair import UPLOAD, Piece, clock, joined, mp3_pieces, wav_pieces
from svclib.utils import budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import AudioError

SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".w64", ".rf64", ".caf", ".au"),
    *(".m4a", ".aac", ".mp4", ".webm", ".wma"),
)
BLOCK_SAMPLES = 65536
MAX_CHANNELS = 32
RATES_HZ = (2000, 768000)
_FFMPEG_KINDS = {"mov": "AAC or ALAC in MP4", "aac": "AAC", "matroska": "WebM", "asf": "WMA"}
# What ffmpeg may read where libsndfile cannot, by its first bytes; none of these refers to other files.
_FFMPEG_FORMATS = "aac,ac3,aiff,amr,ape,au,avi,caf,dts,eac3,flac,flv,mp3,mpc,mpc8,mpeg,mpegts,ogg,tta,w64,wav,wv"
_FFMPEG_HEAD = re.compile(
    rb"ID3|OggS|fLaC|caff|wvpk|RIFF|RF64|BW64|riff|FORM|\.snd|\x0bw|\x7f\xfe\x80\x01|\xff[\xe0-\xff]|TTA|MAC |"
    rb"MPCK|MP\+|#!AMR|FLV|\0\0\x01\xba|G(?s:.{187})G"
)
_ENCRYPTED = rb"stsd.{12}(enca|drms)"  # a sample entry of an MP4 (ISO/IEC 23001-7 or FairPlay)
# A page of an Ogg file within a stream, then the first page of another: a recording of a radio, or joined files.
_CHAINED = (rb"OggS\0[\0\x01\x04\x05]", rb"OggS\0[\x02\x06]")
_PACKED = {b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"PK\3\4": "zip", b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zX": "xz"}
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")
_UNKNOWN_LENGTH = 1 << 60  # libsndfile's number of samples of a stream whose header does not give it
_FFMPEG_HINT = "Install ffmpeg, or open the file in an audio editor (for example Audacity) and save it as WAV."
_EXPORT = "Export it again as WAV or FLAC."


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
    def name(self) -> str:
        """Name of the file as text for messages."""
        return filesystem.as_name(self.path.name)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate_hz


def low_rate_warning(name: str, sample_rate_hz: int) -> str:
    """The warning about a file below 16 kHz."""
    return f"{name} has only {sample_rate_hz} samples per second: it holds nothing above {sample_rate_hz / 2000:g} kHz."


class Decoder:
    """An open sound file: ``info`` from its header, ``blocks()`` once through, then ``decoded_info()``."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = filesystem.as_name(self.path.name)
        self.position = 0  # samples per channel decoded so far
        self._ended = False
        self._shortness_explained = False  # by a warning, or by an impossible claim
        self._warnings: list[str] = []
        self._source = _opened(self.path, self._warn)
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
        if not self._warnings and (cut := _cut_warning(self.path, size)):
            self._warn(cut)
        if rate < 16000:
            self._warnings.append(low_rate_warning(self.name, rate))
        claimed, warnings = source.claimed_samples, tuple(self._warnings)
        return AudioInfo(self.path, source.format, source.subtype, rate, source.channels, claimed, warnings)

    def _warn(self, text: str) -> None:
        self._warnings.append(f"{self.name}{text}")
        self._shortness_explained = True

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 ``[n, channels]`` until the end or a fault; an AudioError names the time of NaN or infinity."""
        fault, rate = None, self.info.sample_rate_hz
        while not fault:
            cost, hint = Cost(seconds=self.position / rate), "Cut it into shorter files."
            budget.require("recording", f"'{self.name}'", cost, hint=hint, error=AudioError)
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
                self._warn(f" is damaged at {at}; only the part before is used. Export it again if possible.")
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
            self._warn(f" is cut off: {read} of {whole} could be read. {UPLOAD}")
        return dataclasses.replace(self.info, n_samples=self.position, warnings=tuple(self._warnings))


def _opened(path: Path, warn: Callable[[str], None]) -> "_Sndfile | _Ffmpeg":
    """The decoder of a file by its content; ``warn`` receives the ends of sentences that begin with the file's name."""
    size, head = _head_of(path)
    if kind := _ffmpeg_kind(path, size, head):
        return _Ffmpeg(path, kind)
    if head[:4] == b"OggS" and _holds(path, *_CHAINED):  # libsndfile reads the first stream only
        if shutil.which("ffmpeg"):
            return _Ffmpeg(path, "ogg")
        warn(" holds several recordings in a chain; only the first one is used. With ffmpeg all are.")
    try:
        return _Sndfile(path, open(path, "rb", buffering=0), wav_pieces(path, warn) or mp3_pieces(path, warn))
    except AudioError:
        if pieces := mp3_pieces(path, warn, unopened=True):
            return _Sndfile(path, open(path, "rb", buffering=0), pieces)
        if shutil.which("ffmpeg") and _FFMPEG_HEAD.match(head):
            with contextlib.suppress(AudioError):
                return _Ffmpeg(path)
        raise


class _Sndfile:
    """libsndfile on an open file, or on pieces of it: it sees content only, and any file name is safe."""

    def __init__(self, path: Path, file: IO[bytes], pieces: list[Piece] | None = None):
        self._bytes = file
        source = file.fileno() if pieces is None else joined(file, pieces)
        try:
            self._file = soundfile.SoundFile(source, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            self._bytes.close()
            raise _unreadable(path, error) from None
        self.sample_rate_hz, self.channels = self._file.samplerate, self._file.channels
        self.format, self.subtype = self._file.format, self._file.subtype
        self.claimed_samples = self._file.frames if 0 < self._file.frames < _UNKNOWN_LENGTH else 0
        if self._file.frames <= 0:
            self.close()
            raise _error(path, "holds no sound (0 samples); it is cut off.", UPLOAD)

    def read(self, n: int) -> tuple[np.ndarray, str | None]:
        """Up to ``n`` samples, and the reason if decoding failed after them."""
        out = np.zeros((n, self.channels), np.float32)
        try:
            return self._file.read(out=out), None
        except soundfile.LibsndfileError as error:
            # libsndfile does not report how many samples it wrote into the buffer before the fault
            filled = np.flatnonzero(np.any(out != 0, axis=1))
            ended = not self.claimed_samples and not self._bytes.read(1)  # a FLAC without a length, whole
            fault = None if ended else str(error).strip(" .:") or "damaged data"
            return out[: int(filled[-1]) + 1 if len(filled) else 0], fault

    def close(self) -> None:
        self._file.close()
        self._bytes.close()


class _Ffmpeg(_Sndfile):
    """Formats that libsndfile does not know, through a local ffmpeg that writes float AU to a pipe."""

    def __init__(self, path: Path, kind: str = ""):
        if kind == "mov" and _holds(path, _ENCRYPTED):
            raise _error(path, "is copy-protected.", "Export it as WAV or FLAC in its own player, or leave it out.")
        program = shutil.which("ffmpeg")
        if program is None:
            raise _error(path, f"is {_FFMPEG_KINDS[kind]}, which needs ffmpeg.", _FFMPEG_HINT)
        by = ["-f", kind] if kind else ["-format_whitelist", _FFMPEG_FORMATS]
        source = ["-protocol_whitelist", "file,pipe", *by, "-i", f"file:{path.absolute()}"]
        command = [program, "-nostdin", "-v", "error", *source, *"-map 0:a:0 -c:a pcm_f32be -f au pipe:1".split()]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null)
        try:
            super().__init__(path, self._process.stdout)
        except AudioError:
            self._process.kill()
            self._process.wait()
            raise _error(path, "cannot be decoded: protected, damaged or without sound.", _EXPORT) from None
        self.format, self.subtype, self.claimed_samples = kind.upper() or "FFMPEG", "FFMPEG", 0

    def read(self, n: int) -> tuple[np.ndarray, str | None]:
        block, fault = super().read(n)
        if not fault and len(block) < n and self._process.wait() != 0:
            fault = "ffmpeg could not read on"
        return block, fault

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        super().close()


def _error(path: Path, text: str, hint: str = "") -> AudioError:
    return AudioError(f"{filesystem.as_name(path.name)} {text}", path=path, hint=hint)


# Containers -----------------------------------------------------------------------------------------------------------


def _ffmpeg_kind(path: Path, size: int, head: bytes) -> str:
    """ffmpeg's reader of a format that libsndfile does not know, by the first bytes; empty for any other."""
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
    return "aac" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else ""


def _head_of(path: Path) -> tuple[int, bytes]:
    """Size in bytes and first 512 bytes of a file; AudioError for a folder, or if it cannot be opened."""
    try:
        if path.exists() and not path.is_file():
            raise _error(path, f"is {'a folder' if path.is_dir() else 'a pipe or a device'}, not a sound file.")
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
    if packed := next((name for start, name in _PACKED.items() if head.startswith(start)), ""):
        hint = "Unpack it first, and give the folder."
        return _error(path, f"is not a sound file but packed files ({packed}).", hint)
    if _FFMPEG_HEAD.match(head) and not shutil.which("ffmpeg"):
        return _error(path, "is not among the formats that are read without ffmpeg.", _FFMPEG_HINT)
    if path.suffix.lower() not in SUFFIXES:
        return _error(path, "is not a known audio file.", "If it is a recording, export it as WAV or FLAC.")
    detail = str(getattr(error, "error_string", "") or "unknown format").strip(" .")
    return _error(path, f"cannot be read as audio ({detail}).", _EXPORT)


def _holds(path: Path, *patterns: bytes) -> bool:
    """True if a file holds these patterns, of at most 20 bytes each, one somewhere behind the other."""
    with open(path, "rb") as file:
        before, wanted = b"", list(patterns)
        while block := file.read(filesystem.CHUNK_BYTES):
            before += block
            while wanted and (found := re.search(wanted[0], before, re.DOTALL)):
                before = before[found.end() :]
                del wanted[0]
            if not wanted:
                return True
            before = before[-19:]
    return False


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
                return f" is cut off: its end is missing. {UPLOAD}"
    if declared and declared + 8 > size + 1:
        return f" is cut off: {size} of {declared + 8} bytes are there. {UPLOAD}"
    return None
