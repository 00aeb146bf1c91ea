"""What kind of sound file lies at a path: its first bytes and what its container promises.

The suffix decides one thing: a file whose first bytes are not known (an MP3 without a tag) is tried as sound.
"""

import dataclasses
import os
import struct
from pathlib import Path

from svclib.utils.errors import AudioError

SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".w64", ".rf64", ".caf", ".au"),
    *(".m4a", ".aac", ".mp4", ".webm", ".wma"),
)
_WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a sound file is.

    Attributes:
        path: The file.
        format: Container by content, such as ``WAV``, ``MP3``, ``OGG``.
        subtype: Coding, such as ``PCM_24``, ``OPUS``.
        sample_rate_hz: Samples per second.
        channels: Number of channels.
        n_samples: Samples per channel. From ``probe`` the header's claim (0 if it makes none), from a function that
            reads the whole file what was decoded.
        warnings: Sentences on what is wrong with the file though it could be read.
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


def kind_of(path: str | Path) -> str:
    """``"sndfile"`` for what libsndfile may decode, else ffmpeg's reader: ``mov``, ``aac``, ``matroska``, ``asf``.

    Raises AudioError if it is not sound, with the reason as a sentence.
    """
    path = Path(path)
    size, head = head_of(path)
    if size == 0:
        raise AudioError(f"{path.name} is empty (0 bytes). Upload it again; a Drive may still be syncing.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE):
        raise AudioError(
            f"{path.name} is not audio: it looks like a web page, as a failed download leaves. Download it again."
        )
    if head[4:8] == b"ftyp":
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"0&\xb2u":
        return "asf"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if _is_sound_magic(head) or path.suffix.lower() in SUFFIXES:
        return "sndfile"
    raise AudioError(f"{path.name} is not a known audio file; if it is a recording, export it as WAV or FLAC.")


def _is_sound_magic(head: bytes) -> bool:
    """Magic numbers of containers that hold sound and nothing else."""
    return (
        head[:4] in (b"fLaC", b"OggS", b"caff", b".snd", b"riff")
        or head[:3] == b"ID3"
        or (head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE")
        or (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"))
    )


def head_of(path: Path) -> tuple[int, bytes]:
    """Size in bytes and first 512 bytes of a file; raises AudioError for a folder, or if it cannot be opened."""
    try:
        if path.is_dir():
            raise AudioError(f"{path.name} is a folder, not a sound file.")
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(512)
    except FileNotFoundError:
        raise AudioError(f"There is no file {path}. Check the name and the folder.") from None
    except OSError as error:
        raise AudioError(f"{path.name} cannot be opened ({error.strerror or error}).") from None


def why_not(path: Path, error: Exception) -> str:
    """A sentence on why libsndfile could not open a file; its own text misleads."""
    size, head = head_of(path)
    if head[:4] in (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS") and size < 1000:
        return f"{path.name} is cut off: only {size} bytes are there. Upload it again."
    if sum(32 <= b < 127 or b in (9, 10, 13) for b in head) > 0.95 * len(head):
        return f"{path.name} is not audio: it holds text. Choose a recording instead."
    detail = str(getattr(error, "error_string", "") or "unknown format").strip(" .")
    return f"{path.name} cannot be read as audio ({detail}). Export it again as WAV or FLAC."


def is_protected(path: Path) -> bool:
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


def id3_bytes(path: Path) -> int:
    """Size of an ID3v2 tag in front of an MP3: pictures there are no sound."""
    head = head_of(path)[1][:10]
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def cut_warning(path: Path, size: int) -> str | None:
    """Compare what RIFF, AIFF and Ogg promise with the bytes that are there; libsndfile keeps silent on it."""
    with open(path, "rb") as file:
        head = file.read(12)
        promised = None
        if head[:4] in (b"RIFF", b"FORM"):
            n = struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[4:8])[0]
            promised = n + 8 if 0 < n < 0xFFFFFFFF else None  # 0 and -1: written to a stream, length unknown
        elif head[:4] == b"RF64":
            ds64 = file.read(24)
            promised = struct.unpack("<Q", ds64[8:16])[0] + 8 if ds64[:4] == b"ds64" and len(ds64) == 24 else None
        elif head[:4] == b"OggS":
            file.seek(max(0, size - 131072))
            tail = file.read()
            last = tail.rfind(b"OggS")
            if 0 <= last < len(tail) - 5 and not tail[last + 5] & 4:  # the last page of a stream says so
                return f"{path.name} is cut off: the end of it is missing. Upload it again if there is more of it."
    if promised and promised > size + 1:
        return f"{path.name} is cut off: {size} of {promised} bytes are there. Upload it again if there is more of it."
    return None


def clock(seconds: float) -> str:
    """A time in a recording for people: ``1:02.50``."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:05.2f}"
