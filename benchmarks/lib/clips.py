"""The clips that conversions are measured on: fixed lists of recordings, readings by synthesizers, and degradations.

The target is ``voices/kathleen_sung``. ``DEVELOPMENT`` is for choosing settings; ``KEPT_ASIDE`` is measured once at the
end and nothing is tuned on it. No training of the project reads a clip of the groups ``own`` and ``others``.
"""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from svclib.audio import io

TARGET = "voices/kathleen_sung"
# Held out of every training on the target by the default split of a dataset.
TARGET_HELD_OUT = tuple(f"arctic_a{n:04d}" for n in (3, 13, 60, 68, 69, 84, 86, 92, 108))
RATE_HZ = 44100
LONGEST_S, PAUSE_S = 28.0, 0.3  # one window of Whisper's encoder is 30 s
SECOND_VOICE_DB, REVERB_S = -6.0, 0.8
CONDITIONS = ("clean", "second_voice", "reverb")
SENTENCES = tuple(f"voices/kathleen_spoken/arctic_a05{n:02d}.txt" for n in range(20))
READERS = {
    "flite": ["flite", "-voice", "{voice}", "-t", "{text}", "-o", "{out}"],
    "espeak-ng": ["espeak-ng", "-v", "{voice}", "-w", "{out}", "{text}"],
}


@dataclasses.dataclass(frozen=True)
class Clip:
    """One excerpt to convert.

    Attributes:
        name: Unique.
        group: ``training`` (phrases the target's model is trained on), ``own`` (other phrases of the target) or
            ``others`` (other people).
        language: ISO 639-1, forced in recognition; None where it is to be detected.
        paths: Recordings below the data folder, joined with pauses; of a reading, the text files.
        reader: Synthesizer and voice that read the texts.
        key: Shift in semitones; None takes the suggested one.
    """

    name: str
    group: str
    language: str | None
    paths: tuple[str, ...]
    reader: tuple[str, str] | None = None
    key: int | None = None


def _phrases(*numbers: int, folder: str = TARGET) -> tuple[str, ...]:
    return tuple(f"{folder}/arctic_a{n:04d}.flac" for n in numbers)


def _last(folder: str, first: int, last: int | None = None) -> tuple[str, ...]:
    """A glob of the last recordings of a folder by name, resolved when the data folder is known."""
    return (f"{folder}/*[{first}:{'' if last is None else last}]",)


DEVELOPMENT = (
    Clip("target_training", "training", "en", _phrases(1, 2, 4, 5), key=0),
    Clip("target_sung", "own", "en", _phrases(3, 13, 60, 68), key=0),
    Clip("target_spoken", "own", "en", _phrases(*range(500, 507), folder="voices/kathleen_spoken")),
    Clip("vocadito_1", "others", "tl", ("singing/vocadito_1/vocadito_1.wav",)),
    Clip("kerstin_sung", "others", "de", _last("voices/kerstin_sung", -5, -2)),
    Clip("nathalie", "others", "nl", _last("voices_spoken/nathalie", -8)),
    Clip("george", "others", "en", tuple(f"digits/{d}_george_0.wav" for d in range(10))),
    Clip("flite_rms", "others", "en", SENTENCES[:6], ("flite", "rms")),
    Clip("espeak_en", "others", "en", SENTENCES[6:12], ("espeak-ng", "en-us")),
)
KEPT_ASIDE = (
    Clip("target_training", "training", "en", _phrases(33, 34, 35, 36), key=0),
    Clip("target_sung", "own", "en", _phrases(69, 84, 86, 92), key=0),
    Clip("target_spoken", "own", "en", _phrases(*range(510, 517), folder="voices/kathleen_spoken")),
    Clip("nitech_f001_004", "others", "ja", ("singing/nitech_f001_004/nitech_jp_song070_f001_004.wav",)),
    Clip("kerstin_sung_2", "others", "de", _last("voices/kerstin_sung", -2)),
    Clip("flemishguy", "others", "nl", _last("voices_spoken/flemishguy", -8)),
    Clip("kerstin", "others", "de", _last("voices_spoken/kerstin", -6)),
    Clip("theo", "others", "en", tuple(f"digits/{d}_theo_0.wav" for d in range(10))),
    Clip("flite_slt", "others", "en", SENTENCES[12:18], ("flite", "slt")),
    Clip("espeak_gb", "others", "en", SENTENCES[:6], ("espeak-ng", "en-gb+f3")),
)
SETS = {"development": DEVELOPMENT, "kept_aside": KEPT_ASIDE}


def recordings(data: Path, clip: Clip) -> list[Path]:
    """The clip's files; a path that ends in ``*[a:b]`` is that slice of the folder's recordings, sorted by name."""
    found = []
    for path in clip.paths:
        if not path.endswith("]"):
            found.append(data / path)
            continue
        folder, _, part = path.rpartition("/*[")
        first, last = part[:-1].split(":")
        found += sorted(Path(p) for p in io.find(data / folder)[0])[int(first) : int(last) if last else None]
    return found


def render(data: Path, clip: Clip, out: Path) -> Path:
    """The clip as one WAV file below ``out``, made where it is missing: at most 28 s of its recordings."""
    target = out / f"{clip.name}.wav"
    if target.exists():
        return target
    parts = []
    for path in recordings(data, clip):
        if clip.reader:
            path = read_aloud(*clip.reader, path.read_text(encoding="utf-8").strip(), out / "readings")
        parts += [io.read(path, sample_rate_hz=RATE_HZ).samples, np.zeros(round(PAUSE_S * RATE_HZ), np.float32)]
    target.parent.mkdir(parents=True, exist_ok=True)
    io.write(target, np.concatenate(parts)[: round(LONGEST_S * RATE_HZ)], RATE_HZ)
    return target


def read_aloud(reader: str, voice: str, text: str, out: Path) -> Path:
    """A sentence read by a synthesizer, kept below ``out``."""
    command = READERS[reader]
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} is not installed; on Debian: apt-get install espeak-ng flite.")
    name = "".join(c if c.isalnum() else "_" for c in text)[:80]
    path = out / f"{reader}_{voice.replace('+', '_')}_{name}.wav"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run([part.format(voice=voice, text=text, out=path) for part in command], check=True)
    return path


def degraded(samples: np.ndarray, condition: str, second: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A clip under one of ``CONDITIONS``, of the same length.

    Args:
        samples: The clean clip.
        condition: ``second_voice`` adds another clip, its RMS 6 dB below; ``reverb`` convolves with exponentially
            decaying noise of 0.8 s reverberation time, as loud as the direct sound 3 m from a speaker in a hall (a
            direct-to-reverberant ratio of 3 dB).
        second: The other voice, repeated as often as needed.
        rate_hz: Of both.

    Returns:
        float32, turned down where it would clip.
    """
    if condition == "clean":
        return samples
    if condition == "second_voice":
        other = np.resize(second, len(samples))
        added = other * (_rms(samples) / _rms(other) * 10 ** (SECOND_VOICE_DB / 20))
    else:
        from scipy.signal import fftconvolve

        time_s = np.arange(round(1.5 * REVERB_S * rate_hz)) / rate_hz
        tail = np.random.default_rng(0).standard_normal(len(time_s)) * 10 ** (-3 * time_s / REVERB_S)
        tail[: round(0.005 * rate_hz)] = 0  # before the first reflection
        added = fftconvolve(samples, tail)[: len(samples)]
        added *= _rms(samples) / _rms(added) * 10 ** (-3.0 / 20)
    mixed = samples + added
    return (mixed * min(1.0, 0.99 / np.abs(mixed).max())).astype(np.float32)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
