"""Findings of the quality check with advice, and the report as a table and as JSON."""

import dataclasses
from pathlib import Path

from svclib.audio import io as audio
from svclib.audio import units

PROBLEM, WARNING, NOTE = "problem", "warning", "note"
MIXTURE_NOTE, MIXTURE_WARNING = 0.06, 0.25
ENOUGH_S, GOOD_S = 300.0, 600.0
KINDS = {
    "unusable": "cannot be used",
    "other": "no recording",
    "reading": "noticed while reading",
    "short": "too short",
    "silence": "silence",
    "clipping": "clipping",
    "noise": "noise",
    "quiet": "recorded quietly",
    "level": "level spread",
    "pitch": "little or no pitch",
    "octaves": "octave jumps",
    "mixture": "accompaniment or harmony",
    "duplicate": "duplicate",
    "rate": "low sample rate",
    "range": "narrow range",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding about one file, or about all of them if ``file`` is empty.

    Attributes:
        file: Name of the file.
        kind: A key of ``KINDS``.
        severity: "problem" (leave it out or record again), "warning" (better fixed), "note".
        text: The finding and the advice, in plain language.
    """

    file: str
    kind: str
    severity: str
    text: str


@dataclasses.dataclass(frozen=True)
class FileReport:
    """Measurements of one file; None if there is nothing to measure.

    Attributes:
        name, path: The file.
        duration_s, sample_rate_hz, channels, format: Of the file.
        level_db: Level of its loud parts (90th percentile of 50 ms RMS), dB of full scale.
        peak_db: Highest sample.
        silence_share, longest_silence_s: Fraction of the time below -60 dB or 45 dB below the loud parts.
        clipped_share: Fraction of the samples on flat peaks.
        noise_floor_db: Level of the steady pauses between phrases, if there are any.
        level_spread_db: Between loud and soft notes (95th and 10th percentile of 0.4 s levels, pauses left out).
        f0_low_hz, f0_high_hz: 2nd and 98th percentile of F0.
        voiced_share: Voiced fraction of the time that is not silent.
        octave_jumps_per_min: Jumps by an octave per voiced minute.
        mixture_share: Fraction of the steady notes with another pitch present.
        findings: About this file.
    """

    name: str
    path: Path
    duration_s: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    format: str = ""
    level_db: float | None = None
    peak_db: float | None = None
    silence_share: float | None = None
    longest_silence_s: float | None = None
    clipped_share: float | None = None
    noise_floor_db: float | None = None
    level_spread_db: float | None = None
    f0_low_hz: float | None = None
    f0_high_hz: float | None = None
    voiced_share: float | None = None
    octave_jumps_per_min: float | None = None
    mixture_share: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        """True if it can be used for training."""
        return not any(f.kind in ("unusable", "other") for f in self.findings)


@dataclasses.dataclass(frozen=True)
class Report:
    """Result of the quality check.

    Attributes:
        files: One report per file, in order.
        totals: ``n_files``, ``n_usable``, ``duration_s``, ``sounding_s`` (without silence), ``f0_low_hz``,
            ``f0_high_hz``, ``level_db`` {min, max} of the loud parts.
        findings: About files and about the whole, the most serious first.
    """

    files: list[FileReport]
    totals: dict
    findings: list[Finding]

    def to_json(self) -> dict:
        """Everything as plain JSON values."""
        files = [{**dataclasses.asdict(f), "path": str(f.path)} for f in self.files]
        return {"totals": self.totals, "findings": [dataclasses.asdict(f) for f in self.findings], "files": files}

    def table(self) -> str:
        """A table and the findings, as plain text."""
        return table_of(self)


def about(r: FileReport) -> list[Finding]:
    """Findings about one file."""
    out = []

    def add(kind: str, severity: str, text: str) -> None:
        out.append(Finding(r.name, kind, severity, text))

    if r.level_db is None or r.level_db <= -80:
        add("unusable", PROBLEM, "It is silent. Check the microphone and export it again; it will be left out.")
        return out
    if r.duration_s < 0.1:
        add("unusable", PROBLEM, f"It lasts only {1000 * r.duration_s:.0f} ms and will be left out.")
        return out
    if r.duration_s < 1.0:
        add("short", NOTE, f"It lasts only {r.duration_s:.1f} s. Phrases of 3 s or more teach more than snippets.")
    if r.clipped_share > 1e-4:
        percent = 100 * r.clipped_share
        text = f"{percent:.2g} % of its samples are clipped: the peaks are cut off and sound harsh. "
        severity = PROBLEM if r.clipped_share > 0.01 else WARNING
        add("clipping", severity, text + "Record again with less gain; turning it down afterwards does not help.")
    if r.silence_share > 0.5:
        text = f"{100 * r.silence_share:.0f} % of it is silence. Nothing is learned from that: cut long pauses out."
        add("silence", NOTE, text)
    elif r.longest_silence_s > 10:
        add("silence", NOTE, f"It holds a pause of {r.longest_silence_s:.0f} s. Cut it out to save time.")
    if r.noise_floor_db is not None and r.level_db - r.noise_floor_db < 30:
        gap = r.level_db - r.noise_floor_db
        text = f"Its pauses are only {gap:.0f} dB softer than the voice: there is noise, hum or reverberation. "
        advice = "Record closer to the microphone in a quieter room, or remove the noise first."
        add("noise", WARNING if gap < 24 else NOTE, text + advice)
    if r.level_db < -40:
        text = f"It is recorded very quietly ({r.level_db:.0f} dB). Raise it with an editor, if its noise allows."
        add("quiet", WARNING, text)
    if r.level_spread_db is not None and r.level_spread_db > 26:
        text = f"Loud and soft notes are {r.level_spread_db:.0f} dB apart. Keep the same distance to the microphone."
        add("level", NOTE, text)
    if r.voiced_share is not None and r.voiced_share < 0.2:
        text = f"Only {100 * r.voiced_share:.0f} % of it has a pitch. Whispering, drums or noise make no instrument: "
        add("pitch", PROBLEM if r.voiced_share < 0.1 else WARNING, text + "leave it out unless you meant it.")
    if r.octave_jumps_per_min is not None and r.octave_jumps_per_min > 12:
        text = f"Its pitch leaps by an octave {r.octave_jumps_per_min:.0f} times a minute: a creaky voice, or a pitch "
        add("octaves", NOTE, text + "that is hard to find. Listen to it, and leave out what is not sung.")
    if r.mixture_share is not None and r.mixture_share >= MIXTURE_NOTE:
        percent = f"{100 * r.mixture_share:.0f} % of its notes"
        if r.mixture_share >= MIXTURE_WARNING:
            text = f"Beside {percent} another pitch sounds: accompaniment, harmony or several singers. "
            add("mixture", WARNING, text + "Separate the voice first, or use a solo recording.")
        else:
            text = f"Beside {percent} another pitch sounds softly: reverberation, or a second voice or instrument. "
            add("mixture", NOTE, text + "Listen to it; a dry solo recording is best.")
    if r.sample_rate_hz < 16000:
        text = f"Its sample rate is {r.sample_rate_hz} Hz: everything above {r.sample_rate_hz // 2000} kHz is missing. "
        add("rate", WARNING, text + "Use the original recording if there is one.")
    return out


def totals_of(files: list[FileReport]) -> dict:
    """Totals over all files; see :class:`Report`."""
    good = [f for f in files if f.usable]
    lows = [f.f0_low_hz for f in good if f.f0_low_hz]
    highs = [f.f0_high_hz for f in good if f.f0_high_hz]
    levels = [f.level_db for f in good]
    return {
        "n_files": len(files),
        "n_usable": len(good),
        "duration_s": sum(f.duration_s for f in good),
        "sounding_s": sum(f.duration_s * (1 - (f.silence_share or 0)) for f in good),
        "f0_low_hz": min(lows) if lows else None,
        "f0_high_hz": max(highs) if highs else None,
        "level_db": {"min": min(levels), "max": max(levels)} if levels else None,
    }


def about_all(files: list[FileReport], totals: dict) -> list[Finding]:
    """Findings about all files together."""
    out = []
    others = [f.name for f in files if any(x.kind == "other" for x in f.findings)]
    if others:
        more = " and so on" if len(others) > 5 else ""
        text = f"{len(others)} files are no recordings and are left out: {', '.join(others[:5])}{more}."
        out.append(Finding("", "other", NOTE, text))
    if not totals["n_usable"]:
        kinds = ", ".join(sorted(s.lstrip(".") for s in audio.SUFFIXES))
        return [*out, Finding("", "unusable", PROBLEM, f"There is no usable recording. Accepted types: {kinds}.")]
    sounding = totals["sounding_s"]
    if sounding < GOOD_S:
        severity = WARNING if sounding < ENOUGH_S else NOTE
        text = f"There are {units.duration_text(sounding)} of sound in all. 10 to 20 minutes of one voice make a good "
        out.append(Finding("", "short", severity, text + "instrument; with less it works, but knows fewer sounds."))
    level = totals["level_db"]
    if level["max"] - level["min"] > 15:
        soft = min((f for f in files if f.usable), key=lambda f: f.level_db).name
        text = f"The files differ by {level['max'] - level['min']:.0f} dB in level ({soft} is the softest). "
        out.append(Finding("", "level", NOTE, text + "Bring recordings of one voice to a similar level."))
    if totals["f0_low_hz"] and totals["f0_high_hz"] / totals["f0_low_hz"] < 2**0.75 and sounding > 60:
        low, high = totals["f0_low_hz"], totals["f0_high_hz"]
        text = f"All notes lie between {low:.0f} and {high:.0f} Hz. The instrument will know only these: "
        out.append(Finding("", "range", NOTE, text + "sing higher and lower, too, if you want it to."))
    return out


def table_of(report: Report) -> str:
    """A report as plain text."""
    head = ["file", "length", "level", "silent", "clipped", "floor", "pitch", "voiced", "findings"]
    rows = []
    for f in (f for f in report.files if f.usable or any(x.kind != "other" for x in f.findings)):
        rows.append(
            [
                f.name if len(f.name) <= 40 else f"...{f.name[-37:]}",
                units.duration_text(f.duration_s) if f.duration_s else "-",
                "-" if f.level_db is None else f"{f.level_db:.0f} dB",
                "-" if f.silence_share is None else f"{100 * f.silence_share:.0f} %",
                "-" if f.clipped_share is None else f"{100 * f.clipped_share:.2g} %",
                "-" if f.noise_floor_db is None else f"{f.noise_floor_db:.0f} dB",
                "-" if f.f0_low_hz is None else f"{f.f0_low_hz:.0f}-{f.f0_high_hz:.0f} Hz",
                "-" if f.voiced_share is None else f"{100 * f.voiced_share:.0f} %",
                ", ".join(dict.fromkeys(KINDS[x.kind] for x in f.findings)) or "good",
            ]
        )
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    t = report.totals
    pitch = f", pitch {t['f0_low_hz']:.0f} to {t['f0_high_hz']:.0f} Hz" if t["f0_low_hz"] else ""
    length = units.duration_text(t["duration_s"])
    lines += ["", f"{t['n_usable']} of {len(rows)} recordings are usable: {length}{pitch}."]
    for finding in report.findings:
        named = not finding.file or finding.text.startswith(Path(finding.file).name)
        lines.append(f"{finding.severity}: {'' if named else finding.file + ': '}{finding.text}")
    if not report.findings:
        lines.append("Nothing to complain about.")
    return "\n".join(lines)
