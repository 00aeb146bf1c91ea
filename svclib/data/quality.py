"""Quality check of recordings: clipping, noise, silence, level, pitch, accompaniment, duplicates.

Files are read by blocks, in constant memory; the pitch of files longer than two minutes is measured on twelve excerpts
of ten seconds. Thresholds were set on real recordings and mixtures of them: see ``tests/data/test_quality.py``.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import quality_report
from svclib.data.quality_report import NOTE, PROBLEM, WARNING, FileReport, Finding, Report, make_finding
from svclib.data.recordings import Recording, find_recordings
from svclib.features import extract
from svclib.utils.errors import DatasetError, reporter

FRAME_S = 0.05
COMPARED_S = 60.0
WHOLE_S, N_EXCERPTS, EXCERPT_S = 120.0, 12, 10.0
RATE_HZ, HOP, WINDOW = 16000, 256, 2048  # of the pitch measurements
_SETTINGS = extract.FeatureSettings(sample_rate_hz=RATE_HZ, hop_samples=HOP)
_INHARMONIC_SHARE = 0.01  # of the energy, -20 dB: from here on another pitch counts as present
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 2500.0
_PAUSE_FRAMES = 19  # 0.3 s


def examine(
    paths: Sequence[str | Path | Recording] | str | Path, progress: Callable[[float, str], None] | None = None
) -> Report:
    """Check files, folders or recordings; files in folders that are no audio are only counted, and none is changed.

    Reports are in the order given, in natural order within a folder. DatasetError if a path does not exist.
    """
    given = [paths] if isinstance(paths, (str, Path)) else paths
    found = [r for path in given for r in ([path] if isinstance(path, Recording) else find_recordings(path))]
    report, files, prints = reporter(progress), list[FileReport](), []
    for n, recording in enumerate(found):
        report(n / len(found), f"checking {recording.name} ({n + 1} of {len(found)})")
        one, fingerprint = _measure(recording.path, recording.name, recording.problem)
        files.append(one)
        prints.append(fingerprint if one.usable else None)
    for n, twin in enumerate(twins(prints)):
        if twin is not None:
            repeated = make_finding(files[n].name, "duplicate", PROBLEM, twin=files[twin].name)
            files[n] = dataclasses.replace(files[n], findings=(*files[n].findings, repeated))
    totals = quality_report.totals_of(files)
    everything = [f for one in files for f in one.findings if f.kind != "other"]
    everything += quality_report.about_all(files, totals)
    report(1.0, f"{len(files)} files examined")
    return Report(files, totals, sorted(everything, key=lambda f: (PROBLEM, WARNING, NOTE).index(f.severity)))


# One file -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fingerprint:
    """Features for comparing files: hash of the 16-bit audio, levels every 50 ms, the waveform at about 1 kHz."""

    digest: str
    levels_db: np.ndarray
    wave: np.ndarray


class _Trace:
    """Levels every 50 ms and the waveform of the first minute, of sound given block by block."""

    def __init__(self, sample_rate_hz: int):
        self.n_frame = max(1, round(FRAME_S * sample_rate_hz))
        self.rest, self.levels, self.wave = np.zeros(0, np.float32), list[np.ndarray](), list[np.ndarray]()
        self.digest = hashlib.sha256(str(sample_rate_hz).encode())

    def add(self, mono: np.ndarray) -> None:
        self.digest.update(np.clip(np.rint(mono * 32767), -32768, 32767).astype("<i2").tobytes())
        joined = np.concatenate([self.rest, mono])
        whole = len(joined) // self.n_frame * self.n_frame
        frames, self.rest = joined[:whole].reshape(-1, self.n_frame).astype(np.float64), joined[whole:]
        self.levels.append(_rms(frames))
        if sum(map(len, self.wave)) < COMPARED_S / FRAME_S:
            points = min(50, self.n_frame)
            length = self.n_frame // points
            self.wave.append(frames[:, : points * length].reshape(len(frames), points, length).mean(axis=2))

    def fingerprint(self) -> _Fingerprint:
        levels = np.concatenate([np.zeros(0), *self.levels])
        if not len(levels) and len(self.rest):
            levels = _rms(self.rest[None].astype(np.float64))
        wave = np.concatenate([np.zeros(0), *self.wave], axis=None)
        return _Fingerprint(self.digest.hexdigest(), units.amplitude_to_db(levels), wave)


def _rms(frames: np.ndarray) -> np.ndarray:
    return np.sqrt((frames**2).mean(axis=1))


class _Scan:
    """One pass over a file: histograms of samples and of flat tops, levels, and excerpts for the pitch tracker."""

    BINS, TOP = 2000, 1.25  # the last bin is 1.25 times full scale, 2 dB over it, and beyond

    def __init__(self, found: audio.Survey):
        self.found, self.rate, n = found, found.info.sample_rate_hz, found.info.n_samples
        self.trace = _Trace(self.rate)
        self.counts, self.flat = np.zeros(self.BINS, np.int64), np.zeros(self.BINS, np.int64)
        self.position = 0
        self.spans, length = [(0, n)], round(EXCERPT_S * self.rate)
        if n > WHOLE_S * self.rate:
            starts = np.linspace(0.02 * n, 0.98 * n - length, N_EXCERPTS).astype(int)
            self.spans = [(int(s), int(s) + length) for s in starts]
        self.excerpts = [list[np.ndarray]() for _ in self.spans]

    def add(self, block: np.ndarray) -> None:
        size = np.minimum(np.abs(block), self.TOP) * (self.BINS / self.TOP)
        size = np.minimum(size.astype(np.int64), self.BINS - 1)
        self.counts += np.bincount(size.ravel(), minlength=self.BINS)
        same = (block[1:] == block[:-1]) & (np.abs(block[1:]) > 0.02)
        self.flat += np.bincount(size[1:-1][same[1:] & same[:-1]], minlength=self.BINS)  # middles of three equal ones
        mono = self.found.mono(block)
        self.trace.add(mono)
        for (start, stop), parts in zip(self.spans, self.excerpts, strict=True):
            a, b = max(start - self.position, 0), min(stop - self.position, len(mono))
            if a < b:
                parts.append(mono[a:b].copy())
        self.position += len(mono)

    def clipped(self) -> tuple[float, float]:
        """Share of samples on flat tops within 3 % of the highest sample, and that sample."""
        filled = np.flatnonzero(self.counts)
        if not len(filled):
            return 0.0, 0.0
        top, total = int(filled[-1]), int(self.counts.sum())
        if top == self.BINS - 1:  # a float file above full scale: nothing was cut off
            return 0.0, self.found.peak / self.found.gain
        flat = int(self.flat[int(0.97 * top) :].sum())
        return (flat if flat >= 1e-4 * total else self._pile(top)) / total, (top + 0.5) * self.TOP / self.BINS

    def _pile(self, top: int) -> int:
        """Samples in a peak of the histogram near its top: what a lossy codec leaves of clipping."""
        coarse = np.histogram(np.arange(top + 1), 100, weights=self.counts[: top + 1])[0]
        for b in range(97, 59, -1):
            pile, below, above = coarse[b - 3 : b + 4].sum(), coarse[b - 25 : b - 15].mean(), coarse[b + 4 :].sum()
            if pile > 35 * below and pile > 2e-3 * coarse.sum() and above < 0.5 * pile:  # 22 for a sine
                return int(pile + above)
        return 0


def _measure(path: Path, name: str, problem: str | None) -> tuple[FileReport, _Fingerprint | None]:
    try:
        if problem:
            raise DatasetError(problem)
        found = audio.survey(path)
        scan = _Scan(found)
        for block in audio.blocks(path):
            scan.add(block)
    except (ValueError, OSError) as error:
        unusable = make_finding(name, "unusable", PROBLEM, "error", error=error)
        other = Finding(name, "other", NOTE, str(error))
        return FileReport(name, path, findings=(unusable if path.suffix.lower() in audio.SUFFIXES else other,)), None
    info, fingerprint = found.info, scan.trace.fingerprint()
    clipped, peak = scan.clipped()
    values = {
        "duration_s": info.n_samples / info.sample_rate_hz,
        "sample_rate_hz": info.sample_rate_hz,
        "channels": info.channels,
        "format": info.format,
        "peak_db": float(units.amplitude_to_db(peak)),
        "clipped_share": clipped,
        **_levels(fingerprint.levels_db),
    }
    if values["level_db"] > -80:
        excerpts = [np.concatenate(parts) for parts in scan.excerpts if parts]
        values |= measure_pitch(excerpts, info.sample_rate_hz, values["level_db"])
    report = FileReport(name, path, **values)
    reading = [Finding(name, "reading", WARNING, w) for w in info.warnings if w != audio.silence_warning(info.name)]
    report = dataclasses.replace(report, findings=(*reading, *quality_report.about(report)))
    return report, fingerprint


def _levels(levels_db: np.ndarray) -> dict:
    if not len(levels_db):
        return {"level_db": -120.0}
    level = float(np.percentile(levels_db, 90))
    silent = levels_db < max(-60.0, level - 45.0)
    edges = np.flatnonzero(np.diff(np.r_[0, silent.astype(int), 0]))
    n = len(levels_db) // 8 * 8
    blocks = 10 * np.log10((10 ** (levels_db[:n] / 10)).reshape(-1, 8).mean(axis=1)) if n else np.zeros(0)
    blocks = blocks[blocks > level - 35]
    return {
        "level_db": level,
        "silence_share": float(silent.mean()),
        "longest_silence_s": float((edges[1::2] - edges[::2]).max() * FRAME_S) if len(edges) else 0.0,
        "level_spread_db": float(np.ptp(np.percentile(blocks, [10, 95]))) if len(blocks) >= 10 else None,
    }


# Duplicates -----------------------------------------------------------------------------------------------------------


def fingerprint(blocks: Iterable[np.ndarray], sample_rate_hz: int) -> _Fingerprint:
    """Features for :func:`twins`, of mono sound given block by block."""
    trace = _Trace(sample_rate_hz)
    for block in blocks:
        trace.add(block)
    return trace.fingerprint()


def twins(prints: Sequence[_Fingerprint | None]) -> list[int | None]:
    """For each recording the position of the first one of the same sound, also in another format or level, or None."""
    found, digests, shapes, kept = [], dict[str, int](), np.zeros((len(prints), 3)), list[int]()
    for position, one in enumerate(prints):
        twin = None
        if one:
            shape = _shape(one)
            near = np.abs(shapes[: len(kept)] - shape) <= (2, *[2 + 0.02 * len(one.levels_db)] * 2)
            candidates = [digests.get(one.digest), *(kept[i] for i in np.flatnonzero(near.all(axis=1)))]
            twin = next((i for i in candidates if i is not None and _same(one, prints[i])), None)
            if twin is None:
                digests[one.digest], shapes[len(kept)] = position, shape
                kept.append(position)
        found.append(twin)
    return found


def _shape(fingerprint: _Fingerprint) -> np.ndarray:
    """Length, centroid and spread of the energy over time, in frames; nearly equal in copies of any format and gain."""
    energy, frames = 10 ** (fingerprint.levels_db / 10), np.arange(len(fingerprint.levels_db))
    if not energy.sum() > 0:
        return np.zeros(3)
    centroid = np.average(frames, weights=energy)
    return np.array([len(frames), centroid, np.sqrt(np.average((frames - centroid) ** 2, weights=energy))])


def _same(a: _Fingerprint, b: _Fingerprint) -> bool:
    """The same samples, or the same waveform within a tenth of a second (another format of one recording)."""
    if a.digest == b.digest:
        return True
    n = min(len(a.levels_db), len(b.levels_db))
    if abs(len(a.levels_db) - len(b.levels_db)) > 2 or n < 60:
        return False
    x, y = np.maximum(a.levels_db[:n], -50), np.maximum(b.levels_db[:n], -50)
    if min(x.std(), y.std()) < 1 or np.corrcoef(x, y)[0, 1] < 0.9:
        return False
    n = min(len(a.wave), len(b.wave))
    size = 1 << (2 * n - 1).bit_length()
    across = np.fft.irfft(np.fft.rfft(a.wave[:n], size) * np.fft.rfft(b.wave[:n], size).conj(), size)
    energy = float(np.sqrt((a.wave[:n] ** 2).sum() * (b.wave[:n] ** 2).sum()))
    return bool(energy > 0 and max(across[:100].max(), across[-100:].max()) > 0.9 * energy)


# Pitch ----------------------------------------------------------------------------------------------------------------


def measure_pitch(excerpts: Sequence[np.ndarray], sample_rate_hz: int, level_db: float) -> dict:
    """Fields of a ``FileReport`` about pitch, from mono excerpts; None where there are too few frames.

    ``level_db`` is the level of the loud parts; 40 dB below counts as silence.
    """
    pitches, inharmonic, pauses, n_sounding, n_voiced, jumps = [], [], [], 0, 0, 0
    for excerpt in excerpts:
        samples = audio.resample(excerpt, sample_rate_hz, RATE_HZ)
        if len(samples) < WINDOW:
            continue
        samples = samples / max(1.0, float(np.abs(samples).max()))
        f0_hz, voiced, confidence = extract.track_f0(samples, RATE_HZ, _SETTINGS)
        frames = samples[: len(f0_hz) * HOP].reshape(-1, HOP)
        levels_db = 10 * np.log10((frames.astype(np.float64) ** 2).mean(axis=1) + 1e-12)
        sounding = levels_db > level_db - 40
        pauses.append(pause_levels_db(levels_db, voiced, level_db))
        n_sounding += int(sounding.sum())
        n_voiced += int((voiced & sounding).sum())
        pitches.append(f0_hz[voiced])
        jumps += count_octave_jumps(f0_hz, voiced)
        inharmonic.append(inharmonic_shares(samples, f0_hz, voiced, confidence))
    f0_hz, inharmonic, pauses = (np.concatenate(x) if x else np.zeros(0) for x in (pitches, inharmonic, pauses))
    voiced_min = len(f0_hz) * HOP / RATE_HZ / 60
    return {
        "noise_floor_db": float(np.percentile(pauses, 10)) if len(pauses) >= 4 else None,
        "f0_low_hz": float(np.percentile(f0_hz, 2)) if len(f0_hz) >= 10 else None,
        "f0_high_hz": float(np.percentile(f0_hz, 98)) if len(f0_hz) >= 10 else None,
        "voiced_share": n_voiced / n_sounding if n_sounding else None,
        "octave_jumps_per_min": jumps / voiced_min if voiced_min > 0.03 else None,
        "mixture_share": float((inharmonic > _INHARMONIC_SHARE).mean()) if len(inharmonic) >= 20 else None,
    }


def pause_levels_db(levels_db: np.ndarray, voiced: np.ndarray, level_db: float) -> np.ndarray:
    """Levels of pauses: 0.3 s without pitch, 12 dB below the loud parts, constant within 8 dB.

    Consonants change faster than room noise, and soft notes have a pitch. Digital silence (an edited pause) is ignored.
    """
    if len(levels_db) < _PAUSE_FRAMES:
        return np.zeros(0)
    levels = sliding_window_view(levels_db, _PAUSE_FRAMES)
    pitched = sliding_window_view(voiced, _PAUSE_FRAMES).any(axis=1)
    quiet = (levels.max(axis=1) < level_db - 12) & (levels.min(axis=1) > -100)
    return levels[(np.ptp(levels, axis=1) < 8) & quiet & ~pitched].mean(axis=1)


def count_octave_jumps(f0_hz: np.ndarray, voiced: np.ndarray) -> int:
    """Jumps by an octave (within a semitone) between voiced frames at most three frames (48 ms) apart."""
    known = np.flatnonzero(voiced)
    semitones = np.abs(12 * np.diff(np.log2(f0_hz[known])))
    return int(((np.diff(known) <= 3) & (np.abs(semitones - 12) < 1)).sum())


def inharmonic_shares(samples: np.ndarray, f0_hz: np.ndarray, voiced: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Share of the energy in tones that are not harmonics of the pitch, in each steady note.

    Windows of 128 ms whose pitch changes by less than 0.6 semitones; spectral peaks more than 0.22 F0 from every
    harmonic and 15 dB above their surroundings. Side tones of the voice itself (vibrato, beats) lie nearer to the
    harmonics, and noise makes no such peaks.
    """
    window = np.hanning(WINDOW + 1)[:WINDOW]
    freqs_hz = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    band = (freqs_hz >= _LOWEST_HZ) & (freqs_hz <= _HIGHEST_HZ)
    shares = []
    for frame in range(0, len(f0_hz) - WINDOW // HOP + 1, 3):
        around = slice(frame, frame + WINDOW // HOP)
        if not voiced[around].all() or confidence[around].min() < 0.6:
            continue
        spread = np.log(f0_hz[around].max() / f0_hz[around].min())
        if spread > np.log(2) * 0.6 / 12:
            continue
        f0 = float(np.median(f0_hz[around]))
        power = np.abs(np.fft.rfft(samples[frame * HOP : frame * HOP + WINDOW] * window)) ** 2
        nearest = np.maximum(np.round(freqs_hz / f0), 1) * f0
        width = np.maximum(0.22 * f0, 2.6 * RATE_HZ / WINDOW + nearest * (0.5 * spread + 0.004))
        usable = band & (2 * width < 0.7 * f0)
        between = usable & (np.abs(freqs_hz - nearest) > width)
        energy, total = 0.0, power[usable].sum()
        if usable.sum() < 10 or between.sum() < 8 or total <= 0:
            continue
        peaks = np.zeros(len(power), bool)
        peaks[1:-1] = (power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:])
        for k in np.flatnonzero(peaks & between & (power > 1e-4 * total)):
            near = slice(max(0, k - 24), k + 25)
            if power[k] > 30 * np.median(power[near][between[near]]):
                energy += power[k - 2 : k + 3].sum()
        shares.append(min(1.0, energy / total))
    return np.array(shares)
