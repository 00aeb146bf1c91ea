"""Quality check of recordings: clipping, noise, silence, level, pitch, accompaniment, duplicates.

Files are read by blocks, in constant memory; the pitch of files longer than two minutes is measured on twelve excerpts
of ten seconds. Thresholds were set on real recordings and mixtures of them: see ``tests/data/test_quality.py``.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.audio.io import silence_warning
from svclib.data.quality_report import NOTE, PROBLEM, WARNING, FileReport, Finding, Report, about, about_all, totals_of
from svclib.features import extract
from svclib.utils.errors import AudioError

FRAME_S = 0.05
COMPARED_S = 60.0
WHOLE_S, N_EXCERPTS, EXCERPT_S = 120.0, 12, 10.0
RATE_HZ, HOP, WINDOW = 16000, 256, 2048  # of the pitch measurements
_SETTINGS = extract.FeatureSettings(sample_rate_hz=RATE_HZ, hop_samples=HOP)
_INHARMONIC_SHARE = 0.01  # of the energy, -20 dB: from here on another pitch counts as present
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 2500.0


def examine(paths: Sequence[str | Path] | str | Path, progress: Callable[[float, str], None] | None = None) -> Report:
    """Check recordings. No file is changed.

    Args:
        paths: Files or folders; files in folders that are no audio are only counted.
        progress: Called with a fraction and a text before each file, and at the end.

    Returns:
        Reports of all files, in the order given and sorted within a folder; totals; findings, the most serious first.

    Raises:
        AudioError: if a folder or file does not exist.
    """
    found = []
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]:
        if path.is_dir():
            usable, skipped = audio.find(path)
            entries = [(Path(p), None) for p in usable] + [(Path(p), reason) for p, reason in skipped]
            found += [(p, p.relative_to(path).as_posix(), reason) for p, reason in sorted(entries, key=lambda e: e[0])]
        elif path.exists():
            found.append((path, path.name, None))
        else:
            raise AudioError(f"There is no file or folder '{path}'.")
    files, fingerprints = [], []
    for n, (path, name, problem) in enumerate(found):
        if progress:
            progress(n / len(found), f"checking {name} ({n + 1} of {len(found)})")
        report, fingerprint = _measure(path, name, problem)
        files.append(report)
        fingerprints.append(fingerprint)
    files = _with_duplicates(files, fingerprints)
    totals = totals_of(files)
    everything = [f for report in files for f in report.findings if f.kind != "other"] + about_all(files, totals)
    order = {PROBLEM: 0, WARNING: 1, NOTE: 2}
    if progress:
        progress(1.0, f"{len(files)} files examined")
    return Report(files, totals, sorted(everything, key=lambda f: order[f.severity]))


# One file -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fingerprint:
    """Features for comparing files: hash of the 16-bit audio, levels every 50 ms, the waveform at about 1 kHz."""

    digest: str
    levels_db: np.ndarray
    wave: np.ndarray


class _Scan:
    """One pass over a file: histograms of samples and of flat tops, levels, and excerpts for the pitch tracker."""

    BINS = 2000

    def __init__(self, found: audio.Survey):
        self.found, self.rate = found, found.info.sample_rate_hz
        self.n_frame = max(1, round(FRAME_S * self.rate))
        self.counts, self.flat = np.zeros(self.BINS, np.int64), np.zeros(self.BINS, np.int64)
        self.rest, self.levels, self.wave, self.position = np.zeros(0, np.float32), [], [], 0
        self.digest = hashlib.sha256(str(self.rate).encode())
        n = found.info.n_samples
        if n <= WHOLE_S * self.rate:
            self.spans = [(0, n)]
        else:
            length = round(EXCERPT_S * self.rate)
            starts = np.linspace(0.02 * n, 0.98 * n - length, N_EXCERPTS).astype(int)
            self.spans = [(int(s), int(s) + length) for s in starts]
        self.excerpts = [[] for _ in self.spans]

    def add(self, block: np.ndarray) -> None:
        size = np.minimum(np.abs(block), 1.25) * (self.BINS / 1.25)  # 1.25 times full scale, 2 dB over it, and beyond
        size = np.minimum(size.astype(np.int64), self.BINS - 1)
        self.counts += np.bincount(size.ravel(), minlength=self.BINS)
        for channel in range(block.shape[1]):
            x = block[:, channel]
            same = (x[1:] == x[:-1]) & (np.abs(x[1:]) > 0.02)
            inner = np.flatnonzero(same[1:] & same[:-1])  # the middle of three equal samples
            self.flat += np.bincount(size[inner + 1, channel], minlength=self.BINS)
        mono = self.found.mono(block)
        self.digest.update(np.clip(np.rint(mono * 32767), -32768, 32767).astype("<i2").tobytes())
        joined = np.concatenate([self.rest, mono])
        whole = len(joined) // self.n_frame * self.n_frame
        frames = joined[:whole].reshape(-1, self.n_frame).astype(np.float64)
        self.levels.append(np.sqrt((frames**2).mean(axis=1)))
        if sum(map(len, self.wave)) < COMPARED_S / FRAME_S:
            points = min(50, self.n_frame)
            length = self.n_frame // points
            self.wave.append(frames[:, : points * length].reshape(len(frames), points, length).mean(axis=2))
        self.rest = joined[whole:]
        for (start, stop), parts in zip(self.spans, self.excerpts, strict=True):
            a, b = max(start - self.position, 0), min(stop - self.position, len(mono))
            if a < b:
                parts.append(mono[a:b].copy())
        self.position += len(mono)

    def levels_db(self) -> np.ndarray:
        levels = np.concatenate(self.levels) if self.levels else np.zeros(0)
        if not len(levels) and len(self.rest):
            levels = np.array([np.sqrt((self.rest.astype(np.float64) ** 2).mean())])
        return units.amplitude_to_db(levels, -120.0) * np.ones(len(levels))

    def fingerprint(self, levels_db: np.ndarray) -> _Fingerprint:
        wave = np.concatenate(self.wave).ravel() if self.wave else np.zeros(0)
        return _Fingerprint(self.digest.hexdigest(), levels_db, wave)

    def clipped(self) -> tuple[float, float]:
        """Share of samples on flat tops within 3 % of the highest sample, and that sample."""
        filled = np.flatnonzero(self.counts)
        if not len(filled):
            return 0.0, 0.0
        top, total = int(filled[-1]), int(self.counts.sum())
        near = int(0.97 * top)
        flat = int(self.flat[near:].sum())
        if flat < 1e-4 * total:
            flat = self._pile(top)
        share = flat / total
        return share, (top + 0.5) * 1.25 / self.BINS

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
            raise AudioError(problem)
        found = audio.survey(path)
        scan = _Scan(found)
        for block in audio.blocks(path):
            scan.add(block)
    except (ValueError, OSError) as error:
        if path.suffix.lower() not in audio.SUFFIXES:
            return FileReport(name, path, findings=(Finding(name, "other", NOTE, str(error)),)), None
        text = f"{error} It will be left out."
        return FileReport(name, path, findings=(Finding(name, "unusable", PROBLEM, text),)), None
    info, levels = found.info, scan.levels_db()
    clipped, peak = scan.clipped()
    values = {
        "duration_s": info.n_samples / info.sample_rate_hz,
        "sample_rate_hz": info.sample_rate_hz,
        "channels": info.channels,
        "format": str(getattr(info, "format", "")),
        "peak_db": float(units.amplitude_to_db(peak)),
        "clipped_share": clipped,
        **_levels(levels),
    }
    if values["level_db"] > -80:
        excerpts = [np.concatenate(parts) for parts in scan.excerpts if parts]
        values |= measure_pitch(excerpts, info.sample_rate_hz, values["level_db"])
    report = FileReport(name, path, **values)
    findings = [Finding(name, "reading", WARNING, w) for w in info.warnings if w != silence_warning(path.name)]
    findings += about(report)
    return dataclasses.replace(report, findings=tuple(findings)), scan.fingerprint(levels)


def _levels(levels_db: np.ndarray) -> dict:
    if not len(levels_db):
        return {"level_db": -120.0}
    level = float(np.percentile(levels_db, 90))
    silent = levels_db < max(-60.0, level - 45.0)
    edges = np.flatnonzero(np.diff(np.r_[0, silent.astype(int), 0]))
    longest = float((edges[1::2] - edges[::2]).max() * FRAME_S) if len(edges) else 0.0
    n = len(levels_db) // 8 * 8
    blocks = 10 * np.log10((10 ** (levels_db[:n] / 10)).reshape(-1, 8).mean(axis=1)) if n else np.zeros(0)
    blocks = blocks[blocks > level - 35]
    spread = float(np.percentile(blocks, 95) - np.percentile(blocks, 10)) if len(blocks) >= 10 else None
    return {
        "level_db": level,
        "silence_share": float(silent.mean()),
        "longest_silence_s": longest,
        "level_spread_db": spread,
    }


# All files ------------------------------------------------------------------------------------------------------------


def _with_duplicates(files: list[FileReport], fingerprints: list[_Fingerprint | None]) -> list[FileReport]:
    """Add a finding to every file that repeats an earlier one."""
    out, names, digests = [], [], {}
    shapes, kept = np.zeros((len(files), 3)), []
    for report, fingerprint in zip(files, fingerprints, strict=True):
        twin = None
        if fingerprint:
            shape = _shape(fingerprint)
            near = np.abs(shapes[: len(kept)] - shape) <= (2, *[2 + 0.02 * len(fingerprint.levels_db)] * 2)
            candidates = [digests.get(fingerprint.digest), *np.flatnonzero(near.all(axis=1))]
            same = (i for i in candidates if i is not None and _same(fingerprint, kept[i]))
            twin = next((names[i] for i in same), None)
        if twin:
            text = f"It is the same recording as {twin}. Keep one of them; svclib uses the same audio once."
            finding = Finding(report.name, "duplicate", WARNING, text)
            report = dataclasses.replace(report, findings=(*report.findings, finding))
        elif fingerprint and report.usable:
            digests[fingerprint.digest], shapes[len(kept)] = len(kept), shape
            names.append(report.name)
            kept.append(fingerprint)
        out.append(report)
    return out


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
    if abs(len(a.levels_db) - len(b.levels_db)) > 2 or min(len(a.levels_db), len(b.levels_db)) < 60:
        return False
    n = min(len(a.levels_db), len(b.levels_db))
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
    ``levels_db`` and ``voiced`` are per frame of 16 ms; a pause may begin at every frame.
    """
    n = 19
    if len(levels_db) < n:
        return np.zeros(0)
    levels = np.lib.stride_tricks.sliding_window_view(levels_db, n)
    pitched = np.lib.stride_tricks.sliding_window_view(voiced, n).any(axis=1)
    quiet = (levels.max(axis=1) < level_db - 12) & (levels.min(axis=1) > -100)
    return levels[(np.ptp(levels, axis=1) < 8) & quiet & ~pitched].mean(axis=1)


def count_octave_jumps(f0_hz: np.ndarray, voiced: np.ndarray) -> int:
    """Jumps by an octave (within a semitone) between voiced frames at most three frames (48 ms) apart."""
    known = np.flatnonzero(voiced)
    if len(known) < 2:
        return 0
    semitones = np.abs(12 * np.diff(np.log2(f0_hz[known])))
    return int(((np.diff(known) <= 3) & (np.abs(semitones - 12) < 1)).sum())


def inharmonic_shares(samples: np.ndarray, f0_hz: np.ndarray, voiced: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Share of the energy in tones that are not harmonics of the pitch, in each steady note.

    In windows of 128 ms whose pitch changes by less than 0.6 semitones, it sums the spectral peaks that lie more than
    0.22 F0 from every harmonic and 15 dB above their surroundings. Side tones of the voice itself (vibrato, beats) lie
    nearer to the harmonics, and noise makes no such peaks. Audio is at 16 kHz, frames have 256 samples.
    """
    window = np.hanning(WINDOW + 1)[:WINDOW]
    freqs_hz = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    band = (freqs_hz >= _LOWEST_HZ) & (freqs_hz <= _HIGHEST_HZ)
    per_window = WINDOW // HOP
    shares = []
    for frame in range(0, len(f0_hz) - per_window + 1, 3):
        around = slice(frame, frame + per_window)
        if not voiced[around].all() or confidence[around].min() < 0.6:
            continue
        lowest, highest = f0_hz[around].min(), f0_hz[around].max()
        spread = np.log(highest / lowest)
        if spread > np.log(2) * 0.6 / 12:
            continue
        f0 = float(np.median(f0_hz[around]))
        power = np.abs(np.fft.rfft(samples[frame * HOP : frame * HOP + WINDOW] * window)) ** 2
        nearest = np.maximum(np.round(freqs_hz / f0), 1) * f0
        width = np.maximum(0.22 * f0, 2.6 * RATE_HZ / WINDOW + nearest * (0.5 * spread + 0.004))
        usable = band & (2 * width < 0.7 * f0)
        between = usable & (np.abs(freqs_hz - nearest) > width)
        if usable.sum() < 10 or between.sum() < 8 or power[usable].sum() <= 0:
            continue
        peaks = np.zeros(len(power), bool)
        peaks[1:-1] = (power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:])
        energy, total = 0.0, power[usable].sum()
        for k in np.flatnonzero(peaks & between & (power > 1e-4 * total)):
            near = slice(max(0, k - 24), k + 25)
            if power[k] > 30 * np.median(power[near][between[near]]):
                energy += power[k - 2 : k + 3].sum()
        shares.append(min(1.0, energy / total))
    return np.array(shares)
