"""HTML elements shared by notebooks, panels and exported pages: players, pictures, notices, tables.

They are the jinja2 macros of ``elements.html``, where their arguments are explained: self-contained (data URIs, inline
styles, no network), for light and dark pages and phones. Text from outside, such as a file name, is escaped.
"""

import base64
import html
import io
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile

from svclib.utils.errors import printable

FONT = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:14px;line-height:1.5"
LINK_LIMIT_BYTES = 100_000_000
_COLOURS = {"info": "#3b6ea5", "done": "#2e8b57", "warning": "#c77d0a", "error": "#c0392b"}
_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def text(value) -> str:
    """A value as escaped HTML text."""
    return html.escape(printable(value, lines=True), quote=True)


def encode(samples: np.ndarray, sample_rate_hz: int, small: bool = False) -> tuple[bytes, str]:
    """Encode a signal ``[samples]`` or ``[samples, channels]``, clipped to +-1, for embedding: ``(bytes, MIME type)``.

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


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
)
TEMPLATES.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}  # of the filter tojson
TEMPLATES.globals |= {"font": FONT, "colours": _COLOURS, "encode": encode, "data_uri": data_uri}
_ELEMENTS: Any = TEMPLATES.get_template("elements.html").module  # its macros are attributes


def _element(name: str) -> Callable[..., str]:
    return lambda *args, **options: str(getattr(_ELEMENTS, name)(*args, **options))


_NAMES = ("player", "picture", "notice", "flow", "heading", "paragraph", "fold", "table", "frame")
player, picture, notice, flow, heading, paragraph, fold, table, frame = map(_element, _NAMES)
small_player = _ELEMENTS.small_player  # markup, which a table does not escape


def download_link(path: Path, label: str = "Download") -> str:
    """A link that saves a file from inside the page; for files above 100 MB the path instead. OSError if unreadable."""
    path = Path(path)
    size = path.stat().st_size
    if size > LINK_LIMIT_BYTES:
        return paragraph(f"{path.name} has {size / 1e6:.0f} MB, too much for a link in this page. It is at {path}.")
    source = data_uri(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream")
    shown = f"{size / 1e6:.1f} MB" if size > 1e5 else f"{size / 1e3:.1f} kB"
    return str(_ELEMENTS.download_link(source, path.name, label, shown))
