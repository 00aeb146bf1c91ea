"""HTML elements shared by notebooks, panels and exported pages: players, pictures, notices, tables (jinja2 templates).

Self-contained (data URIs, inline styles, no script, no network), for light and dark pages and phones. Autoescape is on:
text from outside, such as a file name, is shown and never interpreted.
"""

import base64
import html
import io
import mimetypes
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
from markupsafe import Markup

FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:14px;line-height:1.5"
LINK_LIMIT_BYTES = 20_000_000
_COLOURS = {"info": "#3b6ea5", "done": "#2e8b57", "warning": "#c77d0a", "error": "#c0392b"}
_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}  # of the filter tojson
TEMPLATES.globals |= {"font": FONT, "colours": _COLOURS}
_ELEMENTS: Any = TEMPLATES.get_template("elements.html").module  # its macros are attributes


def text(value) -> str:
    """A value as escaped HTML text."""
    return html.escape(str(value), quote=True)


def encode(samples: np.ndarray, sample_rate_hz: int, small: bool = False) -> tuple[bytes, str]:
    """Encode a mono signal ``[samples]``, clipped to +-1, for embedding: ``(bytes, MIME type)``.

    MP3 at its own rates, a sixth of the size of WAV (``small``: a tenth); 16-bit WAV at other rates.
    """
    samples = np.clip(np.nan_to_num(np.asarray(samples, dtype=np.float32)), -1.0, 1.0)
    kind, mime = ("MP3", "audio/mpeg") if sample_rate_hz in _MP3_RATES_HZ and samples.size else ("WAV", "audio/wav")
    buffer = io.BytesIO()
    quality = {"compression_level": 0.7, "bitrate_mode": "VARIABLE"} if small and kind == "MP3" else {}
    soundfile.write(buffer, samples, int(sample_rate_hz), format=kind, **quality)
    return buffer.getvalue(), mime


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a ``data:`` URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def player(samples: np.ndarray, sample_rate_hz: int, label: str = "", note: str = "") -> str:
    """An audio element with a label above and a note in small print below."""
    return str(_ELEMENTS.player(data_uri(*encode(samples, sample_rate_hz)), label, note))


def small_player(samples: np.ndarray, sample_rate_hz: int, label: str) -> Markup:
    """An audio element for a table cell."""
    return _ELEMENTS.small_player(data_uri(*encode(samples, sample_rate_hz)), label)


def picture(png: bytes, alt: str, width_px: int = 900, height_px: int | None = None) -> str:
    """A PNG that shrinks with the page; with ``height_px`` its pixels are scaled to that height without smoothing."""
    height = "auto" if height_px is None else f"{height_px}px;image-rendering:pixelated"
    return str(_ELEMENTS.picture(data_uri(png, "image/png"), alt, width_px, height))


def notice(message: str, kind: str = "info") -> str:
    """A message in a coloured frame; line breaks are kept. ``kind``: info, done, warning or error."""
    return str(_ELEMENTS.notice(str(message), kind))


def flow(*parts: str) -> str:
    """HTML elements side by side, or below each other on a phone."""
    return str(_ELEMENTS.flow(parts))


def heading(title: str, note: str = "") -> str:
    """A small heading with an optional note after it."""
    return str(_ELEMENTS.heading(title, note))


def paragraph(message: str) -> str:
    """A paragraph of plain text."""
    return str(_ELEMENTS.paragraph(message))


def table(columns: list[str], rows: list[list], marks: list[str] | None = None) -> str:
    """A table that scrolls sideways if it is wider than the page; cells are escaped unless they are ``Markup``.

    A leading ``>`` of a heading right-aligns the column. ``marks`` are the coloured edges of the rows: info, done,
    warning, error or "" for none.
    """
    return str(_ELEMENTS.table(columns, rows, marks or [""] * len(rows)))


def frame(document: str, title: str, height_px: int) -> str:
    """A page in an isolated iframe that may run only its own script.

    It takes the height of the page, on a phone at most that of the screen; ``height_px`` where scripts do not run.
    """
    return str(_ELEMENTS.frame(document, title, height_px))


def download_link(path: Path, label: str = "Download") -> str:
    """A link that saves a file from inside the page; for files above 20 MB the path instead. OSError if unreadable."""
    path = Path(path)
    size = path.stat().st_size
    if size > LINK_LIMIT_BYTES:
        return paragraph(f"{path.name} has {size / 1e6:.0f} MB, too much for a link in this page. It is at {path}.")
    source = data_uri(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")
    return str(_ELEMENTS.download_link(source, path.name, label, f"{size / 1e6:.1f}"))
