"""The samples of a sound file block by block, whatever its header claims; the usable files of a folder.

Headers lie: a damaged MP3 header can claim 10^12 samples, a WAV cut in half opens without a word. So nothing is
allocated from a header, blocks are read until one comes short, and what was decoded is compared with what the header
and the size of the file promised; differences become warnings that name the time.
"""

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

from svclib.audio.containers import AudioInfo, clock, cut_warning, id3_bytes, is_protected, kind_of, why_not
from svclib.utils.errors import AudioError

BLOCK_SAMPLES = 65536
MAX_CHANNELS = 32
RATES_HZ = (2000, 768000)
_MP3_BYTES_PER_S = (1000.0, 40000.0)  # 8 and 320 kbit/s, the lowest and highest rate of the format
_FFMPEG_KINDS = {"mov": "AAC or ALAC in MP4", "aac": "AAC", "matroska": "WebM", "asf": "WMA"}
_IGNORED = {"desktop.ini", "thumbs.db", "__macosx"}


def probe(path: str | Path) -> AudioInfo:
    """What the header says, without decoding; the length is a claim, and an impossible one is warned about.

    Raises :class:`AudioError` if the file cannot be opened as sound.
    """
    with Decoder(path) as decoder:
        return decoder.info


def blocks(path: str | Path, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
    """Decode a file block by block; memory does not depend on its length.

    Args:
        path: A sound file, of whatever suffix.
        block_samples: Samples per channel of a block.

    Yields:
        float32 ``[block_samples, channels]`` of full scale 1, the last one as long as what is left; of a damaged
        file what comes before the fault.

    Raises:
        AudioError: if it cannot be opened, or holds NaN or infinity (with the time).
    """
    with Decoder(path, block_samples) as decoder:
        yield from decoder.blocks()


class Decoder:
    """An open sound file: ``info`` from its header, ``blocks()`` once through, then ``decoded_info()``."""

    def __init__(self, path: str | Path, block_samples: int = BLOCK_SAMPLES):
        self.path, self.block_samples = Path(path), block_samples
        self.position = 0  # samples per channel behind us
        self._ended, self._told, self._claim_holds = False, False, True
        self._warnings: list[str] = []
        kind = kind_of(self.path)
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
            raise AudioError(
                f"{name} says it has {rate} samples per second, which no recording has; its header is damaged. "
                "Export it again as WAV."
            )
        if not 1 <= source.channels <= MAX_CHANNELS:
            raise AudioError(
                f"{name} says it has {source.channels} channels, which is too many. Export it as mono WAV."
            )
        claimed = source.claimed_samples
        if source.format == "MP3":
            claimed = self._believable_mp3(claimed, size)
        cut = cut_warning(self.path, size)
        if cut:
            self._told = True
            self._warnings.append(cut)
        if rate < 16000:
            self._warnings.append(
                f"{name} has only {rate} samples per second: it holds nothing above {rate / 2000:g} kHz."
            )
        return AudioInfo(
            self.path, source.format, source.subtype, rate, source.channels, claimed, tuple(self._warnings)
        )

    def _believable_mp3(self, claimed: int, size: int) -> int:
        lowest, highest = _MP3_BYTES_PER_S
        payload, rate = size - id3_bytes(self.path), self._source.sample_rate_hz
        claimed_s = claimed / rate
        if claimed_s * lowest <= 1.2 * payload and payload <= 1.2 * highest * claimed_s + 8192:
            return claimed
        self._claim_holds = False
        self._warnings.append(
            f"{self.path.name}: the length in its header, {clock(claimed_s)}, cannot be true for {size} bytes. "
            "What could be read is used; export it again if something is missing."
        )
        return min(claimed, int(payload / lowest * rate))

    def skip(self, n_samples: int) -> None:
        """Move forward: by a seek where the format seeks exactly, else by decoding."""
        if self._source.seeks_exactly:
            self.position += self._source.seek(n_samples)
            return
        while n_samples > 0:
            n = len(self._source.read(min(n_samples, self.block_samples)))
            self.position += n
            n_samples -= n
            if n == 0:
                return

    def blocks(self) -> Iterator[np.ndarray]:
        """Float32 ``[n, channels]`` until the end; the last may be short."""
        limit, faulty = np.inf, False
        if self.info.format == "MP3":
            limit = self.path.stat().st_size / _MP3_BYTES_PER_S[0] * self.info.sample_rate_hz + self.block_samples
        while not faulty and self.position <= limit:
            try:
                block = self._source.read(self.block_samples)
            except _DecodeFault as fault:
                block, faulty = fault.before, True
                self._remember_fault(fault)
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
            raise AudioError(
                f"{self.path.name} contains invalid samples (NaN or infinity) at {clock(at_s)}. "
                "Export it again as 24-bit WAV."
            )

    def _remember_fault(self, fault: "_DecodeFault") -> None:
        n = self.position + len(fault.before)
        if n == 0:
            raise AudioError(f"{self.path.name} cannot be decoded ({fault}). Export it again as WAV or FLAC.") from None
        self._told = True
        self._warnings.append(
            f"{self.path.name} is damaged at {clock(n / self.info.sample_rate_hz)}; only the part before is used. "
            "Export it again if possible."
        )

    def decoded_info(self) -> AudioInfo:
        """``info`` with the decoded length, and a warning where it is shorter than the header's."""
        if not self._ended:
            return self.info
        warnings, claimed = list(self._warnings), self.info.n_samples
        if self._claim_holds and not self._told and self.position < 0.995 * claimed:
            rate = self.info.sample_rate_hz
            warnings.append(
                f"{self.path.name} is cut off: {clock(self.position / rate)} of {clock(claimed / rate)} could be read. "
                "Upload it again if there is more of it."
            )
        return dataclasses.replace(self.info, n_samples=self.position, warnings=tuple(warnings))


class _DecodeFault(Exception):
    """The decoder gave up in the middle; ``before`` is what it gave of this block."""

    def __init__(self, reason: str, before: np.ndarray):
        super().__init__(reason)
        self.before = before


class _Sndfile:
    """libsndfile by file descriptor: it sees content only, and any file name is safe."""

    def __init__(self, path: Path):
        import soundfile

        self._error = soundfile.LibsndfileError
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            self._file = soundfile.SoundFile(self._handle, closefd=False)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            os.close(self._handle)
            raise AudioError(why_not(path, error)) from None
        self.sample_rate_hz, self.channels = self._file.samplerate, self._file.channels
        self.format, self.subtype = self._file.format, self._file.subtype
        self.claimed_samples = max(0, self._file.frames)
        self.seeks_exactly = self.format in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
        if not self.claimed_samples:
            self.close()
            raise AudioError(f"{path.name} holds no sound (0 samples); it is probably cut off. Upload it again.")

    def read(self, n: int) -> np.ndarray:
        out = np.zeros((n, self.channels), np.float32)
        try:
            return self._file.read(out=out)
        except self._error as error:
            # what was decoded before the fault lies in the buffer, and nobody says how much of it
            filled = np.flatnonzero(np.any(out != 0, axis=1))
            before = out[: int(filled[-1]) + 1 if len(filled) else 0]
            raise _DecodeFault(str(error).strip(" .:") or "damaged data", before) from None

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
        if kind == "mov" and is_protected(path):
            raise AudioError(
                f"{path.name} is protected against copying, so nothing but its maker's player can decode it. Export it "
                "there as WAV or FLAC, or leave it out."
            )
        program = shutil.which("ffmpeg")
        if program is None:
            raise AudioError(
                f"{path.name} is {_FFMPEG_KINDS[kind]}, which needs ffmpeg. Install ffmpeg, or open the file in an "
                "audio editor (for example Audacity: File, Export) and save it as WAV."
            )
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
            raise AudioError(f"{path.name} cannot be decoded: protected, damaged or without sound. Export it as WAV.")
        offset, _, _, self.sample_rate_hz, self.channels = struct.unpack(">5I", header[4:])
        self._process.stdout.read(offset - 24)
        self.format, self.subtype, self.claimed_samples = kind.upper(), "FFMPEG", 0

    def read(self, n: int) -> np.ndarray:
        data = self._process.stdout.read(n * self.channels * 4)
        whole = len(data) // (4 * self.channels) * self.channels
        block = np.frombuffer(data, ">f4", whole).astype(np.float32).reshape(-1, self.channels)
        if len(block) < n and self._process.wait() != 0:
            raise _DecodeFault("ffmpeg could not read on", block)
        return block

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def find(folder: str | Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The sound files of a folder and its sub-folders.

    Files of the system (``.DS_Store``, ``._song.wav``, ``.ipynb_checkpoints``) are passed over silently. Content
    decides: a file is usable if it can be opened as sound, whatever its suffix.

    Args:
        folder: Links in it are followed. A path of one file is allowed.

    Returns:
        The usable files, and the files left out, each with the reason; both sorted by path.

    Raises:
        AudioError: if there is no such folder; names the nearest ones.
    """
    folder = Path(folder)
    if not folder.exists():
        near = difflib.get_close_matches(folder.name, _names(folder.parent), n=3, cutoff=0.5)
        hint = f" Near names there: {', '.join(near)}." if near else ""
        raise AudioError(f"There is no folder {folder}.{hint}")
    usable, skipped = [], []
    for path in [folder] if folder.is_file() else _walk(folder):
        try:
            probe(path)
            usable.append(path)
        except (AudioError, OSError) as error:
            skipped.append((path, str(error)))
    return sorted(usable), sorted(skipped)


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(at)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = [f for f in folders if not f.startswith(".") and f.lower() not in _IGNORED]
        yield from (Path(at) / f for f in files if not f.startswith(".") and f.lower() not in _IGNORED)


def _names(folder: Path) -> list[str]:
    try:
        return [p.name for p in folder.iterdir()]
    except OSError:
        return []
