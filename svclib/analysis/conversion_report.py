"""A conversion as a piece of a page: what was asked, players, pictures, where the file lies."""

import dataclasses
from pathlib import Path

from svclib.analysis import html as page
from svclib.analysis.plots import base as plots
from svclib.conversion.pipeline import Conversion


def result_html(result: Conversion, path: Path, number: int, full: bool = True) -> str:
    """One result as HTML: what was asked, players, spectrograms, the four plots, where the file lies."""
    rate_hz, song = result.sample_rate_hz, result.song
    first, *settings = result.settings_text.splitlines()
    parts = [
        '<hr style="opacity:.3">',
        page.heading(f"{number}. {first}"),
        *(page.paragraph(line) for line in settings),
        *(page.notice(warning, "warning") for warning in result.warnings),
    ]
    players = [page.player(result.audio, rate_hz, "Result")]
    if full:
        players = [
            page.player(song.original(), song.sample_rate_hz, "Original"),
            *players,
            page.player(result.harmonic, rate_hz, "Harmonic part"),
            page.player(result.noise, rate_hz, "Noise part"),
        ]
    parts.append(page.flow(*players))
    if full:
        measured = song.features
        asked = dataclasses.replace(measured, f0_hz=result.tracks.f0_hz, voiced=result.tracks.voiced)
        items = [
            ("Original", song.audio, measured.settings.sample_rate_hz, measured),
            ("Result, with the F0 it was asked for", result.audio, rate_hz, asked),
        ]
        drawing = plots.png(plots.compare_spectrograms(items))
        parts.append(page.picture(drawing, "spectrograms of the original and the result with their F0"))
        drawing = plots.png(plots.conversion_plots(measured, result.tracks, result.controls))
        parts.append(page.picture(drawing, "loudness, pitch, confidence and note-on ratio before and after"))
    parts += [page.paragraph(f"Saved as {path}"), page.download_link(path)]
    return "".join(parts)
