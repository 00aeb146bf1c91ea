"""Damaged and odd sound files from a seed: every file ``number`` of a series is the same each time."""

import functools
import io
import random
import struct
from pathlib import Path

import numpy as np
import soundfile

RATES_HZ = (8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 192000)
CODINGS = {
    "wav": ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"),
    "aiff": ("PCM_S8", "PCM_16", "PCM_24", "FLOAT"),
    "flac": ("PCM_S8", "PCM_16", "PCM_24"),
    "ogg": ("VORBIS", "OPUS"),
    "mp3": ("MPEG_LAYER_III",),
    "au": ("PCM_16", "FLOAT"),
    "caf": ("PCM_16", "ALAC_16"),
    "w64": ("PCM_16", "DOUBLE"),
    "rf64": ("PCM_16",),
}
SUFFIXES = ("wav", "mp3", "flac", "ogg", "m4a", "aiff", "opus", "bin", "WAV")
NOT_SOUND = (
    b"",
    b"R",
    b"RIFF",
    b"RIFF\0\0\0\0WAVE",
    b"fLaC",
    b"OggS",
    b"ID3\x03\0\0\x7f\x7f\x7f\x7f",
    b"\xff\xfb\x90\x64",
    b"FORM",
    b"<!DOCTYPE html><title>Quota exceeded</title>",
    b"not a sound\n" * 50,
    bytes(5000),
    b"\xff" * 5000,
    b"\0\0\0\x18ftypM4A \0\0\0\0",
    b"\x1aE\xdf\xa3" + bytes(100),
    b"0&\xb2u" + bytes(100),
    b"\xff\xf1" + b"\x50" * 400,
    b"#EXTM3U\nfile:///etc/passwd\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"PK\3\4" + bytes(100),
)


def content(kind: str, n: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Samples ``[n, channels]`` of some kind, mostly unpleasant ones."""
    x = 0.3 * np.sin(2 * np.pi * 0.02 * np.arange(n))[:, None] * np.ones(channels)
    if kind == "noise":
        return rng.normal(0, 0.2, (n, channels))
    if kind == "silence":
        return 0 * x
    if kind == "constant":
        return 0 * x + 0.5
    if kind == "one silent channel":
        x[:, -1] = 0
    elif kind == "opposite phase":
        x[:, 1::2] *= -1
    elif kind == "huge":
        x *= 1e30
    elif kind == "tiny":
        x *= 1e-40
    elif kind in ("NaN", "infinity") and n:
        x[rng.integers(n), rng.integers(channels)] = np.nan if kind == "NaN" else -np.inf
    return x


CONTENTS = (
    "tone",
    "tone",
    "noise",
    "silence",
    "constant",
    "one silent channel",
    "opposite phase",
    "huge",
    "tiny",
    "NaN",
    "infinity",
)


@functools.lru_cache(maxsize=400)
def whole(suffix: str, coding: str, rate: int, channels: int, kind: str, n: int) -> bytes | None:
    """A well-formed file as bytes; None where the format cannot hold it."""
    samples, buffer = content(kind, n, channels, np.random.default_rng(n)), io.BytesIO()
    if coding not in ("FLOAT", "DOUBLE"):  # LAME ends the whole program when it is given more than full scale
        samples = np.clip(np.nan_to_num(samples), -1, 1)
    if coding.startswith("ALAC") and (channels > 8 or not n):  # more than it can hold: a file is left in /tmp, then
        return None
    try:
        soundfile.write(buffer, samples, rate, coding, format=suffix.upper())
    except (soundfile.LibsndfileError, ValueError, AssertionError):  # the last: it wrote fewer samples
        return None
    return buffer.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, bytes changed in the header or anywhere, inserted, removed, blanked, doubled."""
    out, kind = bytearray(data), rng.randrange(8)
    at = rng.randrange(len(out))
    if kind == 0:
        return bytes(out[:at])
    if kind in (1, 2):
        for _ in range(rng.randrange(1, 12)):
            out[rng.randrange(min(len(out), 120 if kind == 1 else len(out)))] = rng.choice([0, 255, rng.randrange(256)])
    elif kind == 3:
        out[at:at] = rng.randbytes(rng.randrange(1, 3000))
    elif kind == 4:
        del out[at : at + rng.randrange(1, 3000)]
    elif kind == 5:
        out[at : at + 3000] = bytes(len(out[at : at + 3000]))
    elif kind == 6:
        out = out + out
    else:
        out = bytearray(rng.randbytes(rng.randrange(1, 40))) + out
    return bytes(out)


def lying(data: bytes, rng: random.Random) -> bytes:
    """A header that claims five hours, 10^12 samples, no channels, another width or another rate."""
    out = bytearray(data)
    many = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 5 * 3600 * 44100, 5 * 3600 * 44100 * 4])
    if out[:4] in (b"RIFF", b"RF64"):
        place, size = rng.choice([(4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)])
        out[place : place + size] = (many & (256**size - 1)).to_bytes(size, "little")
    elif out[:4] == b"fLaC":  # STREAMINFO: 20 bits rate, 3 channels, 5 width, 36 samples
        claim = rng.choice([2**36 - 1, 5 * 3600 * 44100, 0])
        packed = int.from_bytes(out[18:26], "big") >> 36 << 36 | claim
        if rng.random() < 0.3:
            packed = rng.getrandbits(28) << 36 | claim
        out[18:26] = packed.to_bytes(8, "big")
    elif out[:4] == b"OggS":
        last = out.rfind(b"OggS")
        out[last + 6 : last + 14] = struct.pack("<q", rng.choice([2**62, -1, 0, 5 * 3600 * 48000]))
    elif max(out.find(b"Xing"), out.find(b"Info")) > 0:
        at = max(out.find(b"Xing"), out.find(b"Info"))
        out[at + 8 : at + 12] = struct.pack(">I", many)
    else:
        at = rng.randrange(4, max(5, min(60, len(out) - 4)))
        out[at : at + 4] = struct.pack(">I", many)
    return bytes(out)


def write(folder: Path, number: int) -> Path:
    """File ``number`` of the series, in ``folder``."""
    rng = random.Random(number)
    suffix = rng.choice(list(CODINGS))
    data = None
    if rng.random() < 0.03:
        data = rng.choice(NOT_SOUND)
    while data is None:
        data = whole(
            suffix,
            rng.choice(CODINGS[suffix]),
            rng.choice(RATES_HZ),
            rng.choice([1, 1, 2, 2, 6, 12]),
            rng.choice(CONTENTS),
            rng.choice([0, 1, 2, 100, 4000, 9000]),
        )
    kind = rng.random()
    if data and kind < 0.45:
        data = damaged(data, rng)
    elif data and kind < 0.75:
        data = lying(data, rng)
        data = damaged(data, rng) if rng.random() < 0.2 else data
    path = folder / f"odd {number}.{suffix if rng.random() < 0.8 else rng.choice(SUFFIXES)}"
    path.write_bytes(data)
    return path
