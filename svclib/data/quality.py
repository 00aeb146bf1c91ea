"""What is wrong with a recording, and what to do about it. It advises; it never changes a file.

Each file is read by blocks, so a long one costs no more memory than a short one; the pitch of files longer than two
minutes is judged on twelve stretches of ten seconds spread over them. The limits were set on real recordings (two
re-sung voices, two real singers, a trumpet) and on mixtures of them: see ``tests/data/test_quality.py``.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import voice_measures
from svclib.data.quality_report import NOTE, PROBLEM, WARNING, FileReport, Finding, Report, about, about_all, totals_of
from svclib.utils.errors import AudioError

__all__ = ["FileReport", "Finding", "Report", "examine"]

FRAME_S = 0.05
COMPARED_S = 60.0
WHOLE_S, STRETCHES, STRETCH_S = 120.0, 12, 10.0


def examine(paths: Sequence[str | Path] | str | Path, progress: Callable[[float, str], None] | None = None) -> Report:
    """Look at recordings: files, or folders of them.

    Args:
        paths: What to look at. Folders are searched; files in them that are no audio are only counted.
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
    files, prints = [], []
    for n, (path, name, problem) in enumerate(found):
        if progress:
            progress(n / len(found), f"listening to {name} ({n + 1} of {len(found)})")
        report, fingerprint = _look(path, name, problem)
        files.append(report)
        prints.append(fingerprint)
    files = _with_duplicates(files, prints)
    totals = totals_of(files)
    everything = [f for report in files for f in report.findings if f.kind != "other"] + about_all(files, totals)
    order = {PROBLEM: 0, WARNING: 1, NOTE: 2}
    if progress:
        progress(1.0, f"{len(files)} files examined")
    return Report(files, totals, sorted(everything, key=lambda f: order[f.severity]))


# One file -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Print:
    """What two files are compared by: the hash of their 16-bit sound, levels every 50 ms, the wave at about 1 kHz."""

    digest: str
    levels_db: np.ndarray
    wave: np.ndarray


class _Scan:
    """One pass over a file: histogram of samples, flat tops, levels, stretches to listen to."""

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
            length = round(STRETCH_S * self.rate)
            starts = np.linspace(0.02 * n, 0.98 * n - length, STRETCHES).astype(int)
            self.spans = [(int(s), int(s) + length) for s in starts]
        self.stretches = [[] for _ in self.spans]

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
        for (start, stop), parts in zip(self.spans, self.stretches, strict=True):
            a, b = max(start - self.position, 0), min(stop - self.position, len(mono))
            if a < b:
                parts.append(mono[a:b].copy())
        self.position += len(mono)

    def levels_db(self) -> np.ndarray:
        levels = np.concatenate(self.levels) if self.levels else np.zeros(0)
        if not len(levels) and len(self.rest):
            levels = np.array([np.sqrt((self.rest.astype(np.float64) ** 2).mean())])
        return units.amplitude_to_db(levels, -120.0) * np.ones(len(levels))

    def print_of(self, levels_db: np.ndarray) -> _Print:
        wave = np.concatenate(self.wave).ravel() if self.wave else np.zeros(0)
        return _Print(self.digest.hexdigest(), levels_db, wave)

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
        """Samples piled up near the highest ones; a lossy codec blurs the flat tops of clipping, but the pile stays."""
        coarse = np.histogram(np.arange(top + 1), 100, weights=self.counts[: top + 1])[0]
        for b in range(97, 59, -1):
            pile, below, above = coarse[b - 3 : b + 4].sum(), coarse[b - 25 : b - 15].mean(), coarse[b + 4 :].sum()
            if pile > 35 * below and pile > 2e-3 * coarse.sum() and above < 0.5 * pile:  # 22 for a sine
                return int(pile + above)
        return 0


def _look(path: Path, name: str, problem: str | None) -> tuple[FileReport, _Print | None]:
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
        stretches = [np.concatenate(parts) for parts in scan.stretches if parts]
        values |= voice_measures.pitch_of(stretches, info.sample_rate_hz, values["level_db"])
    report = FileReport(name, path, **values)
    findings = [Finding(name, "reading", WARNING, w) for w in info.warnings if "is silent." not in w]
    findings += about(report)
    return dataclasses.replace(report, findings=tuple(findings)), scan.print_of(levels)


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


def _with_duplicates(files: list[FileReport], prints: list[_Print | None]) -> list[FileReport]:
    out, seen = [], []
    for report, fingerprint in zip(files, prints, strict=True):
        twin = next((name for name, other in seen if fingerprint and _same(fingerprint, other)), None)
        if twin:
            text = f"It is the same recording as {twin}. Keep one of them; svclib uses the same audio once."
            finding = Finding(report.name, "duplicate", WARNING, text)
            report = dataclasses.replace(report, findings=(*report.findings, finding))
        elif fingerprint and report.usable:
            seen.append((report.name, fingerprint))
        out.append(report)
    return out


def _same(a: _Print, b: _Print) -> bool:
    """The same samples, or the same wave within a tenth of a second (another format of one recording)."""
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
