"""Singing made of the spoken windows by WORLD: voiced parts longer, notes, glides, vibrato.

    python tools/base/sung.py WINDOWS OUT [--share 0.5]

WINDOWS is the folder ``windows`` of ``prepare.py``. Every window of speech, in a fixed random order, is sung once into
``OUT/SPEAKER/NNN.npz`` until the share of each speaker is reached, with the spoken window's teacher features moved
to the new times. Resumable.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import pyworld
from prepare import RATE_HZ, SETTINGS

from svclib.features import extract

FRAME_S = 0.010
PENTATONIC = np.array([0, 2, 4, 7, 9])
BAND_LIMITED = ("jackson", "nicolas", "yweweler", "lucas", "george", "theo")  # 8 kHz recordings are no targets


def melody(f0_hz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another F0 for a track at 10 ms: a pentatonic walk with glides of 70 ms and vibrato."""
    n, voiced = len(f0_hz), f0_hz > 0
    if not voiced.any():
        return f0_hz
    middle = np.log2(np.median(f0_hz[voiced])) + rng.uniform(0.0, 1.1)
    middle = np.clip(middle, np.log2(130), np.log2(440))
    notes, degree, i = np.zeros(n), int(rng.integers(-2, 3)), 0
    while i < n:
        length = int(rng.uniform(0.3, 0.9) / FRAME_S)
        octave, step = divmod(degree, 5)
        notes[i : i + length] = middle + (12 * octave + PENTATONIC[step]) / 12
        i, degree = i + length, int(np.clip(degree + rng.integers(-2, 3), -4, 5))
    kernel = np.hanning(9)
    glided = np.convolve(np.pad(notes, 4, mode="edge"), kernel / kernel.sum(), mode="valid")
    depth = np.minimum(1.0, np.arange(n) % 80 / 40) * rng.uniform(15, 50) / 1200
    vibrato = depth * np.sin(2 * np.pi * rng.uniform(4.8, 6.2) * np.arange(n) * FRAME_S)
    return np.where(voiced, 2 ** (glided + vibrato), 0.0)


def time_map(voiced: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place in the spoken window, in frames of 10 ms, of every such frame of the sung one: voiced parts last longer."""
    duration = np.where(voiced, rng.uniform(1.4, 2.0), 1.05)
    ends = np.cumsum(duration)
    return np.interp(np.arange(int(ends[-1])), ends - duration / 2, np.arange(len(voiced)))


def teacher_at(teacher: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The spoken window's features, every 20 ms, at the times of the sung one."""
    middle_s = (np.arange(len(position) // 2) + 0.5) * 0.02
    place = np.interp(middle_s / FRAME_S, np.arange(len(position)), position) * FRAME_S / 0.02 - 0.5
    place = place.clip(0, len(teacher) - 1)
    left, share = place.astype(int), (place % 1)[:, None]
    right = np.minimum(left + 1, len(teacher) - 1)
    return (teacher[left] * (1 - share) + teacher[right] * share).astype(np.float16)


def sing(samples: np.ndarray, f0_hz: np.ndarray, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Samples at 22.05 kHz sung; ``f0_hz`` at 10 ms, ``position`` from :func:`time_map`."""
    times = np.arange(len(f0_hz)) * FRAME_S
    envelope = pyworld.cheaptrick(samples, f0_hz, times, RATE_HZ)
    aperiodicity = pyworld.d4c(samples, f0_hz, times, RATE_HZ)
    left = np.minimum(position.astype(int), len(f0_hz) - 1)
    right, share = np.minimum(left + 1, len(f0_hz) - 1), (position - position.astype(int))[:, None]
    envelope = np.exp(np.log(envelope[left]) * (1 - share) + np.log(envelope[right]) * share)
    aperiodicity = aperiodicity[left] * (1 - share) + aperiodicity[right] * share
    sung = melody(f0_hz[np.round(position).astype(int).clip(0, len(f0_hz) - 1)], rng)
    return pyworld.synthesize(sung, np.ascontiguousarray(envelope), np.ascontiguousarray(aperiodicity), RATE_HZ, 10.0)


def main() -> None:
    """Sing what is not sung yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    arguments = parser.parse_args()
    paths = [
        p for folder in arguments.windows.iterdir()
        if not folder.name.startswith("eval_") and not folder.name.endswith("_sung") and folder.name not in BAND_LIMITED
        for p in folder.glob("[0-9]*.npz") if ".part." not in p.name
    ]  # fmt: skip
    wanted = {}
    for p in paths:
        wanted.setdefault(p.parent.name, []).append(p)
    chosen = [p for own in wanted.values() for p in sorted(own)[: max(1, round(len(own) * arguments.share))]]
    for path in sorted(chosen, key=lambda p: zlib.crc32(f"{p.parent.name}{p.name}".encode())):
        target = arguments.out / path.parent.name / path.name
        if target.exists():
            continue
        rng = np.random.default_rng(zlib.crc32(f"{path.parent.name}{path.name}".encode()))
        with np.load(path) as z:
            samples, f0_hz, voiced, teacher = z["audio"] / 32768.0, z["f0_hz"], z["voiced"], z["teacher"]
        at = np.arange(0, len(samples) / RATE_HZ - FRAME_S, FRAME_S)
        frame = np.clip(np.round(at * RATE_HZ / 256 - 0.5).astype(int), 0, len(f0_hz) - 1)
        f0_hz = np.where(voiced, f0_hz, 0.0).astype(np.float64)[frame]
        position = time_map(f0_hz > 0, rng)
        sung = sing(samples, f0_hz, position, rng).astype(np.float32)
        sung *= 0.5 / max(1e-3, float(np.abs(sung).max()))
        measured = extract.extract(sung, SETTINGS)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part.npz")
        np.savez(
            part, audio=(sung * 32767).astype(np.int16), log_mel=measured.log_mel.astype(np.float16),
            f0_hz=measured.f0_hz.astype(np.float32), voiced=measured.voiced,
            loudness_db=measured.loudness_db.astype(np.float32),
            teacher=teacher_at(teacher.astype(np.float32), position),
        )  # fmt: skip
        part.rename(target)
        print(target, flush=True)


if __name__ == "__main__":
    main()
