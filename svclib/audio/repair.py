"""The sound of WAV and MP3 files behind a right header, where theirs gives a wrong length or none, or is preceded or
interrupted by something else."""

import bisect
import io
import itertools
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_MP3_KBITS = {  # by version (MPEG-1, others), of bitrate indices 1 to 14
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")
_FIRST_FRAME_BYTES = 1 << 20  # in which an MP3 begins, behind its tags
UPLOAD = "Upload it again if there is more of it."


def clock(seconds: float) -> str:
    """A time in a recording: ``1:02.50``."""
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:05.2f}"


Piece = bytes | tuple[int, int]  # or a range ``(start, stop)`` of the file


def joined(file: IO[bytes], pieces: list[Piece]) -> io.BufferedReader:
    """Pieces of an unbuffered file, one after the other as a file of their own."""
    return io.BufferedReader(_Pieces(file, pieces), 1 << 16)


class _Pieces(io.RawIOBase):
    def __init__(self, file: IO[bytes], pieces: list[Piece]):
        self._file, self._pieces, self._at = file, pieces, 0
        lengths = (len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in pieces)
        self._ends = list(itertools.accumulate(lengths))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._ends[-1])[whence])
        return self._at

    def readinto(self, buffer) -> int:
        i = bisect.bisect_right(self._ends, self._at)
        if i == len(self._pieces):
            return 0
        piece, left = self._pieces[i], self._ends[i] - self._at
        if isinstance(piece, bytes):
            data = piece[len(piece) - left :][: len(buffer)]
        else:
            self._file.seek(piece[1] - left)
            data = self._file.read(min(left, len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def wav_pieces(path: Path, warn: Callable[[str], None]) -> list[Piece] | None:
    """Format and sound of a WAV whose header libsndfile would misread; None for any other file.

    Its length was not written (the recorder was killed, or wrote to a pipe), or sound lies behind the length written;
    it is a BW64 (EBU Tech 3306), or a chunk of odd length is not padded.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head, at, format, length = file.read(12), 12, b"", 0
        odd = head[:4] == b"BW64"
        if head[:4] not in (b"RIFF", b"RF64", b"BW64") or head[8:] != b"WAVE":
            return None
        while at + 8 <= size:
            file.seek(at)
            name, n = struct.unpack("<4sI", file.read(8))
            body, stop = at + 8, at + 8 + n
            if name == b"ds64":
                length = int.from_bytes(file.read(16)[8:], "little")
            elif name == b"fmt ":
                format = file.read(min(n, 4096))
            elif name == b"data":
                stop = body + length if n == 0xFFFFFFFF and head[:4] != b"RIFF" else stop
                file.seek(min(stop + (stop & 1), size))
                behind = file.read(4)
                open_end = stop == body or (len(behind) == 4 and not behind.isascii())
                if behind == b"RIFF":
                    warn(": another WAV stands behind it in the same file; only the first one is used.")
                    odd = True
                if not format or not (odd or open_end) or size <= body:
                    return None
                if open_end:
                    stop = size
                    warn(": its header gives no length, or a wrong one; the sound up to the end of the file is used.")
                start = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<I", len(format))
                return [start + format + b"data\xff\xff\xff\xff", (body, min(stop, size))]
            at = stop
            if n & 1:
                file.seek(at)
                padded = file.read(1) == b"\0"
                at, odd = at + padded, odd or not padded
    return None


def mp3_pieces(path: Path, warn: Callable[[str], None], unopened: bool = False) -> list[Piece] | None:
    """The frames of an MP3 behind a header with their true number; None if there are none, or the file is so already.

    What is not a frame (tags, junk in front, damage) is left out. ``unopened``: libsndfile cannot open the file itself.
    """
    with open(path, "rb") as file:
        tag = file.read(10)
        begin = 10 + sum((byte & 0x7F) << s for byte, s in zip(tag[6:], (21, 14, 7, 0), strict=False))  # ID3v2's end
        begin = begin if tag[:3] == b"ID3" else 0
        if not begin and not _MP3_SYNC.match(tag) and path.suffix.lower() != ".mp3":
            return None
        spans, cut = _mp3_spans(file, 0, begin + _FIRST_FRAME_BYTES)  # the tag's size may be wrong
        if not spans:
            return None
        file.seek(spans[0][0])
        first = file.read(4096)
    bits = int.from_bytes(first[:4], "big")
    n_bytes, kind = _mp3_frame(bits)
    first, count = first[:n_bytes], sum(n for *_, n in spans)
    offset, claimed = max(first[:64].find(b"Xing"), first[:64].find(b"Info")), 0
    if offset > 0:
        claimed = int.from_bytes(first[offset + 8 : offset + 12], "big") if first[offset + 7] & 1 else 0
    elif first[36:40] == b"VBRI":
        claimed = int.from_bytes(first[50:54], "big")
    if offset > 0 or first[36:40] == b"VBRI":  # the frame that holds the number is no sound
        count, spans[0] = count - 1, (spans[0][0] + n_bytes, spans[0][1], spans[0][2] - 1)
    if len(spans) == 1 and not unopened and claimed and abs(claimed - count) <= 1:
        return None
    mpeg1, mono = kind >> 19 & 3 == 3, bits >> 6 & 3 == 3
    frame_s = 1152 / _mp3_rate_hz(bits) / (1 if mpeg1 else 2)
    whole, there = clock(claimed * frame_s), clock(count * frame_s)
    if len(spans) > 1:
        n_more = len(spans) - 2
        more = f" and at {n_more} more place{'' if n_more == 1 else 's'}" if n_more else ""
        warn(f" is damaged at {clock(spans[0][2] * frame_s)}{more}; what could be read before and after is joined.")
    elif claimed > 10 * count:
        warn(f": the length in its header, {whole}, is impossible; the {there} that are there are used.")
    elif claimed > count + 1:
        warn(f" is cut off: {there} of {whole} could be read. {UPLOAD}")
    elif claimed and claimed < count - 1:
        warn(f": the length in its header, {whole}, is wrong; all {there} are used.")
    elif cut:
        warn(f" is cut off: its end is missing. {UPLOAD}")
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    if claimed and offset > 0 and first[offset + 7] & 2:
        n_bytes = len(first) + sum(stop - start for start, stop, _ in spans)
        header = first[: offset + 8] + struct.pack(">II", count, n_bytes) + first[offset + 16 :]
    else:
        bits = bits & ~0xF200 | 0x1E000  # without padding and checksum, of the highest bitrate
        header = bits.to_bytes(4, "big") + bytes(side) + b"Xing" + struct.pack(">II", 1, count)
        header = header.ljust(_mp3_frame(bits)[0], b"\0")
    return [header, *itertools.chain(*(_mp3_span(path, *spans[i][:2], side if i else 0) for i in range(len(spans))))]


def _mp3_span(path: Path, start: int, stop: int, side: int) -> Iterator[Piece]:
    """Frames as pieces; the first ones without their ``side`` information, silent: they refer to 511 bytes before."""
    with open(path, "rb") as file:
        held = 0
        while start < stop and side and held < 511:
            file.seek(start)
            n_bytes = max(_mp3_frame(int.from_bytes(file.read(4), "big"))[0], 4 + side)
            yield from ((start, start + 4), b"\xff\x80".ljust(side, b"\0"), (start + 4 + side, start + n_bytes))
            start, held = start + n_bytes, held + n_bytes - 4 - side
    if start < stop:
        yield start, stop


def _mp3_spans(file: IO[bytes], at: int, limit: int) -> tuple[list[tuple[int, int, int]], bool]:
    """Ranges ``(start, stop, frames)`` of an MP3 in which one frame follows the other, and whether the last one is cut.

    A range begins, the first one before ``limit``, where three frames of the file's kind follow each other. The last
    frame before damage is left out.
    """
    size, kind, spans, last = file.seek(0, 2), 0, list[tuple[int, int, int]](), 0

    def frame(start: int) -> tuple[int, int]:
        file.seek(start)
        n_bytes, its_kind = _mp3_frame(int.from_bytes(file.read(4), "big"))
        return (n_bytes, its_kind) if its_kind == (kind or its_kind) else (0, 0)

    def begins(start: int) -> bool:
        for _ in range(3):
            n_bytes, its_kind = frame(start)
            if not n_bytes or its_kind != frame(at)[1]:
                return start >= size - 4
            start += n_bytes
        return True

    while at + 4 <= size and (spans or at < limit):
        n_bytes, its_kind = frame(at)
        joined = bool(spans) and spans[-1][1] == at
        if n_bytes and (joined or begins(at)):
            if at + n_bytes > size:
                return spans, True
            if spans and not joined:
                spans[-1] = (spans[-1][0], last, spans[-1][2] - 1)
            begin, _, n = spans.pop() if joined else (at, at, 0)
            spans.append((begin, at + n_bytes, n + 1))
            kind, last, at = its_kind, at, at + n_bytes
            continue
        file.seek(at + 1)
        block = file.read(1 << 16)
        sync = _MP3_SYNC.search(block)
        at += 1 + sync.start() if sync else len(block)
    return spans, False


def _mp3_frame(bits: int) -> tuple[int, int]:
    """Length in bytes and kind (version and sample rate) of a frame of layer III by its header; zeros if it is none."""
    version, bitrate, rate = bits >> 19 & 3, bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or bits >> 17 & 3 != 1 or bitrate in (0, 15) or rate == 3:
        return 0, 0
    bits_per_frame = (144000 if version == 3 else 72000) * _MP3_KBITS[version == 3][bitrate - 1]
    return bits_per_frame // _mp3_rate_hz(bits) + (bits >> 9 & 1), bits & 0x180C00 | 1


def _mp3_rate_hz(bits: int) -> int:
    return (44100, 48000, 32000)[bits >> 10 & 3] >> {3: 0, 2: 1, 0: 2}[bits >> 19 & 3]
