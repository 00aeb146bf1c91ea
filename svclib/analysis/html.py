"""Pieces of HTML that notebooks, panels and exported pages share: players, pictures, notices, tables.

Everything is self-contained (data URIs, inline styles, no script, no network), readable on light and dark pages and on
a phone. Every text that comes from outside, such as a file name, goes through :func:`text`.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
import soundfile

FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:14px;line-height:1.5"
_KINDS = {"info": "#3b6ea5", "done": "#2e8b57", "warning": "#c77d0a", "error": "#c0392b"}
_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_MIME = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".zip": "application/zip",
}
LINK_LIMIT_BYTES = 20_000_000


def text(value) -> str:
    """A value as HTML text: markup in it is shown, never interpreted."""
    return html.escape(str(value), quote=True)


class Markup(str):
    """HTML that this module made: :func:`table` shows it as it is."""


def encode(samples: np.ndarray, sample_rate_hz: int, small: bool = False) -> tuple[bytes, str]:
    """A mono signal ``[samples]`` as small embeddable audio: ``(bytes, MIME type)``.

    mp3 at its own rates, a sixth of wav's size (``small``: a tenth) and playable everywhere; 16-bit wav at any other
    rate. Values outside +-1 are clipped.
    """
    samples = np.clip(np.nan_to_num(np.asarray(samples, dtype=np.float32)), -1.0, 1.0)
    kind, mime = ("MP3", "audio/mpeg") if sample_rate_hz in _MP3_RATES_HZ and samples.size else ("WAV", "audio/wav")
    buffer = io.BytesIO()
    quality = {"compression_level": 0.7, "bitrate_mode": "VARIABLE"} if small and kind == "MP3" else {}
    soundfile.write(buffer, samples, int(sample_rate_hz), format=kind, **quality)
    return buffer.getvalue(), mime


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a ``data:`` address."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def player(samples: np.ndarray, sample_rate_hz: int, label: str = "", note: str = "") -> str:
    """An audio element with its label above it and, in small print, a note below it."""
    caption = f'<div style="font-weight:600;margin-bottom:2px">{text(label)}</div>' if label else ""
    below = f'<div style="opacity:.7;font-size:12px">{text(note)}</div>' if note else ""
    source = data_uri(*encode(samples, sample_rate_hz))
    return (
        f'<div style="{FONT};flex:1 1 200px;min-width:200px;max-width:400px;margin:4px 0">{caption}'
        f'<audio controls preload="metadata" aria-label="{text(label)}" src="{source}" style="width:100%;height:36px">'
        f"</audio>{below}</div>"
    )


def small_player(samples: np.ndarray, sample_rate_hz: int, label: str) -> Markup:
    """An audio element for a table's cell."""
    source = data_uri(*encode(samples, sample_rate_hz))
    return Markup(
        f'<audio controls preload="metadata" aria-label="{text(label)}" src="{source}" '
        'style="width:220px;height:32px;vertical-align:middle"></audio>'
    )


def picture(png: bytes, alt: str, width_px: int = 900, height_px: int | None = None) -> str:
    """A PNG that shrinks with the page; ``alt`` says in words what it shows. With a height its pixels are stretched."""
    height = "auto" if height_px is None else f"{height_px}px;image-rendering:pixelated"
    return (
        f'<img alt="{text(alt)}" src="{data_uri(png, "image/png")}" '
        f'style="width:100%;max-width:{width_px}px;height:{height};border-radius:6px;display:block;margin:4px 0">'
    )


def notice(message: str, kind: str = "info") -> str:
    """A sentence in a coloured frame, escaped; line breaks stay. ``kind``: info, done, warning or error."""
    colour = _KINDS[kind]
    role = "alert" if kind == "error" else "status"
    body = text(message).replace("\n", "<br>")
    return (
        f'<div role="{role}" class="svclib-{kind}" style="{FONT};border-left:4px solid {colour};background:{colour}1a;'
        f'padding:6px 12px;margin:6px 0;border-radius:0 6px 6px 0;overflow-wrap:anywhere">{body}</div>'
    )


def flow(*parts: str) -> str:
    """Pieces beside each other where there is room, below each other on a phone."""
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 12px;align-items:flex-start">{"".join(parts)}</div>'


def heading(title: str, note: str = "") -> str:
    """A small heading with an optional note behind it."""
    small = f' <span style="opacity:.7;font-weight:400;font-size:13px">{text(note)}</span>' if note else ""
    style = f"{FONT};font-size:16px;font-weight:600;margin:10px 0 2px;overflow-wrap:anywhere"
    return f'<div style="{style}">{text(title)}{small}</div>'


def paragraph(message: str) -> str:
    """Plain running text, escaped."""
    return f'<div style="{FONT};max-width:900px;margin:4px 0;overflow-wrap:anywhere">{text(message)}</div>'


def table(columns: list[str], rows: list[list], marks: list[str] | None = None) -> str:
    """A table that scrolls sideways when it is wider than the page; cells are escaped.

    Args:
        columns: Headings; one that starts with ``>`` is a column of numbers, set to the right.
        rows: Cells, any type; escaped unless :class:`Markup`.
        marks: One of ``""``, info, done, warning, error per row, shown as a coloured edge; None: no row has one.

    Returns:
        HTML.
    """
    right = [c.startswith(">") for c in columns]
    head, body = "", ""
    for column, number in zip(columns, right, strict=True):
        style = f"{_cell(number)};white-space:nowrap;border-bottom:1px solid #8886"
        head += f'<th style="{style}">{text(column.lstrip(">"))}</th>'
    for row, mark in zip(rows, marks or [""] * len(rows), strict=True):
        edge = f";border-left:4px solid {_KINDS[mark] if mark else 'transparent'}"
        cells = ""
        for place, (value, number) in enumerate(zip(row, right, strict=True)):
            shown = value if isinstance(value, Markup) else text(value)
            cells += f'<td style="{_cell(number)}{"" if place else edge}">{shown}</td>'
        body += f'<tr style="background:transparent">{cells}</tr>'
    style = f"{FONT};font-size:13px;border-collapse:collapse;margin:4px 0;font-variant-numeric:tabular-nums"
    return (
        f'<div style="overflow-x:auto;max-width:100%"><table style="{style}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(number: bool) -> str:
    align = "text-align:right;white-space:nowrap" if number else "text-align:left"
    return f"padding:3px 14px 3px 8px;vertical-align:top;{align}"


def download_link(path: Path, label: str = "Download") -> str:
    """A link that saves a file from inside the page; over 20 MB, where it lies. OSError if it cannot be read."""
    path = Path(path)
    size = path.stat().st_size
    if size > LINK_LIMIT_BYTES:
        return paragraph(f"{path.name} has {size / 1e6:.0f} MB, too much for a link in this page; it lies at {path}.")
    mime = _MIME.get(path.suffix.lower(), "application/octet-stream")
    return (
        f'<a download="{text(path.name)}" href="{data_uri(path.read_bytes(), mime)}" style="{FONT}">'
        f"{text(label)} {text(path.name)}</a> "
        f'<span style="{FONT};font-size:12px;opacity:.7">{size / 1e6:.1f} MB</span>'
    )
