"""Findings of the quality check with advice (``findings.toml``), and the report as a table and as JSON.

A problem is a file that preparing leaves out, a warning one worth a look, a note anything else.
"""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path

from svclib.audio import io as audio
from svclib.audio import units

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
NOTHING_FOUND = "No problems found."
LEFT_OUT = ("unusable", "other", "duplicate")  # kinds of findings
LIMITS_HZ = (53.0, 2000.0)  # the default search range of the tracker, less a semitone
MIXTURE_NOTE, MIXTURE_WARNING = 0.06, 0.25
ENOUGH_S, GOOD_S = 300.0, 600.0
_TEXTS = tomllib.loads(Path(__file__).with_name("findings.toml").read_text(encoding="utf-8"))
KINDS = {kind: texts["label"] for kind, texts in _TEXTS.items()}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding of one of the ``KINDS`` about a file (all if it is empty): problem, warning or note; with advice."""

    file: str
    kind: str
    severity: str
    text: str


@dataclasses.dataclass(frozen=True)
class FileReport:
    """Measurements of one file; None if there is nothing to measure."""

    name: str
    path: Path
    duration_s: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    format: str = ""
    level_db: float | None = None  # of its loud parts (90th percentile of 50 ms RMS), dB of full scale
    peak_db: float | None = None
    silence_share: float | None = None  # of the time, below -60 dB or 45 dB below the loud parts
    longest_silence_s: float | None = None
    clipped_share: float | None = None  # of the samples, on flat peaks
    noise_floor_db: float | None = None  # level of the steady pauses between phrases
    level_spread_db: float | None = None  # 10th to 95th percentile of the notes' 0.4 s levels, pauses left out
    f0_low_hz: float | None = None  # 2nd percentile
    f0_high_hz: float | None = None  # 98th percentile
    voiced_share: float | None = None  # of the time that is not silent
    octave_jumps_per_min: float | None = None  # per voiced minute
    mixture_share: float | None = None  # of the steady notes, with another pitch present
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """True if it can be used for training, and is not the second of two."""
        return not any(f.kind in LEFT_OUT for f in self.findings)

    @property
    def row(self) -> list[str]:
        """The texts of its line in :meth:`Report.table_of`."""
        pitch = "" if self.f0_low_hz is None else units.range_text(self.f0_low_hz, self.f0_high_hz)
        return [
            self.name,
            units.duration_text(self.duration_s) if self.duration_s else "",
            pitch,
            _text(self.level_db, "{:.0f} dB"),
            _text(self.noise_floor_db, "{:.0f} dB"),
            _text(self.silence_share, "{:.0f} %", 100),
            _text(self.clipped_share or None, "{:.2g} %", 100),
            _text(self.voiced_share, "{:.0f} %", 100),
        ]


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of the quality check; findings about files and about the whole, the most serious first.

    ``totals``: ``n_files``, ``n_usable``, ``duration_s``, ``sounding_s`` (without silence), ``f0_low_hz``,
    ``f0_high_hz``, ``level_db`` {min, max} of the loud parts.
    """

    files: list[FileReport]
    totals: dict
    findings: list[Finding]

    @staticmethod
    def table_of(files: Sequence[FileReport]) -> tuple[list[str], list[list[str]]]:
        """Column titles and rows about files; columns without any value are left out."""
        titles = ["file", "length", "pitch", "level", "noise floor", "silent", "clipped", "voiced"]
        rows = [f.row for f in files]
        filled = [i for i in range(len(titles)) if i == 0 or any(row[i] for row in rows)]
        return [titles[i] for i in filled], [[row[i] or "–" for i in filled] for row in rows]

    def flagged(self) -> list[FileReport]:
        """The usable files with a warning, to listen to before one leaves them out (``recordings.leave_out``)."""
        return [f for f in self.files if f.usable and any(x.severity == WARNING for x in f.findings)]

    def to_json(self) -> dict:
        """Everything as plain JSON values."""
        files = [{**dataclasses.asdict(f), "path": str(f.path)} for f in self.files]
        return {"totals": self.totals, "findings": [dataclasses.asdict(f) for f in self.findings], "files": files}

    def table(self) -> str:
        """A table and the findings, as plain text."""
        listed = [f for f in self.files if f.usable or any(x.kind != "other" for x in f.findings)]
        titles, rows = self.table_of(listed)
        kinds = [", ".join(dict.fromkeys(KINDS[x.kind] for x in f.findings)) or "good" for f in listed]
        rows = [[*titles, "findings"], *([*row, kind] for row, kind in zip(rows, kinds, strict=True))]
        rows = [[row[0] if len(row[0]) <= 40 else f"...{row[0][-37:]}", *row[1:]] for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        t = self.totals
        pitch = f", notes from {units.range_text(t['f0_low_hz'], t['f0_high_hz'])}" if t["f0_low_hz"] else ""
        length = units.duration_text(t["duration_s"])
        lines += ["", f"{t['n_usable']} of {len(rows) - 1} recordings are usable: {length}{pitch}."]
        for finding in self.findings:
            named = not finding.file or finding.text.startswith(Path(finding.file).name)
            lines.append(f"{finding.severity}: {'' if named else finding.file + ': '}{finding.text}")
        return "\n".join(lines if self.findings else [*lines, NOTHING_FOUND])


def _text(value: float | None, form: str, factor: float | int = 1) -> str:
    return "" if value is None else form.format(factor * value)


def make_finding(file: str, kind: str, severity: str, text: str = "text", **values) -> Finding:
    """A finding with one of the texts of its kind, filled with values."""
    return Finding(file, kind, severity, _TEXTS[kind][text].format(**values))


def about(r: FileReport) -> list[Finding]:
    """Findings about one file."""
    out, measured = [], dataclasses.asdict(r)

    def add(kind: str, severity: str, text: str = "text", **values) -> None:
        out.append(make_finding(r.name, kind, severity, text, **measured, **values))

    if r.level_db is None or r.level_db <= -80:
        add("unusable", PROBLEM, "silent")
        return out
    if r.duration_s < 0.1:
        add("unusable", PROBLEM, "short", ms=1000 * r.duration_s)
        return out
    if r.duration_s < 1.0:
        add("short", NOTE)
    if r.clipped_share > 1e-4:
        add("clipping", WARNING, percent=100 * r.clipped_share)
    if r.silence_share > 0.5:
        add("silence", NOTE, percent=100 * r.silence_share)
    elif r.longest_silence_s > 10:
        add("silence", NOTE, "pause")
    if r.noise_floor_db is not None and (gap := r.level_db - r.noise_floor_db) < 30:
        add("noise", WARNING if gap < 24 else NOTE, gap=gap)
    if r.level_db < -40:
        add("quiet", WARNING)
    if r.level_spread_db is not None and r.level_spread_db > 26:
        add("level", NOTE)
    if r.voiced_share is not None and r.voiced_share < 0.2:
        add("pitch", WARNING, percent=100 * r.voiced_share)
    elif r.f0_low_hz is not None and not LIMITS_HZ[0] < r.f0_low_hz <= r.f0_high_hz < LIMITS_HZ[1]:
        add("limit", WARNING, notes=units.range_text(r.f0_low_hz, r.f0_high_hz))
    if r.octave_jumps_per_min is not None and r.octave_jumps_per_min > 12:
        add("octaves", NOTE)
    if r.mixture_share is not None and r.mixture_share >= MIXTURE_NOTE:
        severity, text = (WARNING, "loud") if r.mixture_share >= MIXTURE_WARNING else (NOTE, "soft")
        add("mixture", severity, text, percent=100 * r.mixture_share)
    if r.sample_rate_hz < 16000:
        add("rate", WARNING, khz=r.sample_rate_hz // 2000)
    return out


def totals_of(files: list[FileReport]) -> dict:
    """Totals over all files; see :class:`Report`."""
    good = [f for f in files if f.usable]
    levels = [f.level_db for f in good]
    return {
        "n_files": len(files),
        "n_usable": len(good),
        "duration_s": sum(f.duration_s for f in good),
        "sounding_s": sum(f.duration_s * (1 - (f.silence_share or 0)) for f in good),
        "f0_low_hz": min((f.f0_low_hz for f in good if f.f0_low_hz), default=None),
        "f0_high_hz": max((f.f0_high_hz for f in good if f.f0_high_hz), default=None),
        "level_db": {"min": min(levels), "max": max(levels)} if levels else None,
    }


def about_all(files: list[FileReport], totals: dict) -> list[Finding]:
    """Findings about all files together."""
    out = []
    if others := [f.name for f in files if any(x.kind == "other" for x in f.findings)]:
        names = ", ".join(others[:5]) + (" and so on" if len(others) > 5 else "")
        out.append(make_finding("", "other", NOTE, "text" if len(others) > 1 else "one", n=len(others), names=names))
    if not totals["n_usable"]:
        types = ", ".join(sorted(s.lstrip(".") for s in audio.SUFFIXES))
        return [*out, make_finding("", "unusable", PROBLEM, "none", types=types)]
    sounding, level = totals["sounding_s"], totals["level_db"]
    if sounding < GOOD_S:
        severity = WARNING if sounding < ENOUGH_S else NOTE
        out.append(make_finding("", "short", severity, "total", total=units.duration_text(sounding)))
    if (spread := level["max"] - level["min"]) > 15:
        softest = min((f for f in files if f.usable), key=lambda f: f.level_db).name
        out.append(make_finding("", "level", NOTE, "files", spread_db=spread, softest=softest))
    low, high = totals["f0_low_hz"], totals["f0_high_hz"]
    if low and high / low < 2**0.75 and sounding > 60:
        out.append(make_finding("", "range", NOTE, notes=units.range_text(low, high)))
    return out
