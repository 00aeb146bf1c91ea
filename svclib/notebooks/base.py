"""Widgets and helpers that the panels of all notebooks share.

One source for ipywidgets 7.7.1 (Colab) and 8. Panels show HTML widgets only: unlike an Output widget they can be set
from a background thread and look the same in JupyterLab, classic Notebook and Colab.
"""

import base64
import contextlib
import functools
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import units
from svclib.models import instrument
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled, printable

V8 = int(W.__version__.split(".")[0]) >= 8
NONE = (("(none yet)", None),)  # of a menu that waits for its options
log = logging.getLogger("svclib")


def show(markup: str) -> None:
    """Display HTML below the cell."""
    display(HTML(markup))


def drawing(figure, alt: str, width_px: int = 900) -> str:
    """A figure as an HTML picture."""
    return page.picture(plots.png(figure), alt, width_px)


def number(value: float | None, form: str = ".3f") -> str:
    """A number as text; what was not measured is a dash."""
    return "–" if value is None else format(value, form)


def show_note(sentence: str, kind: str = "info") -> None:
    """Display a sentence below the cell."""
    show(page.notice(sentence, kind))


def html(content: str = "", css_class: str = "") -> W.HTML:
    """An HTML widget; ``content`` must have been made by ``page`` (escaped)."""
    widget = W.HTML(content, layout=W.Layout(width="100%"))
    if css_class:
        widget.add_class(css_class)
    return widget


def row(*children: W.Widget, align: str = "center") -> W.HBox:
    """Widgets beside each other that wrap on a narrow screen."""
    return W.HBox(children, layout=W.Layout(flex_flow="row wrap", align_items=align, width="100%"))


def column(title: str, *children: W.Widget) -> W.VBox:
    """A titled group of controls; groups wrap below each other on a narrow screen."""
    layout = W.Layout(flex="1 1 300px", min_width="280px", max_width="460px", margin="0 16px 0 0")
    return W.VBox([html(page.heading(title)), *children], layout=layout)


def tip(widget: W.Widget, text: str) -> W.Widget:
    """Set the text shown while the pointer rests on a widget; returns the widget."""
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", text)
    return widget


def described(kind, label: str) -> str:
    """A label, such as a singer's name from an instrument, as a widget's description: ipywidgets 7 takes it for HTML,
    8 for text unless allowed."""
    return printable(label) if "description_allow_html" in kind.class_trait_names() else page.text(label)


def control(
    kind, label: str, css_class: str, hint: str, width: str = "98%", label_width: str = "116px", **settings
) -> W.Widget:
    """A labelled control with a hint, as wide as its group; tests and styles find it by its class."""
    style, layout = {"description_width": label_width}, W.Layout(width=width)
    widget = kind(description=described(kind, label), layout=layout, style=style, **settings)
    widget.add_class(css_class)
    return tip(widget, hint)


def fill(menu: W.Dropdown, options: list[tuple[str, object]], first=()) -> None:
    """Give a menu new options ``(label, value)``; it shows what it showed, or the first of ``first``, or of them."""
    shown = menu.value
    menu.options = options or NONE
    values = [value for _, value in menu.options]
    # by index: a menu without a choice stays so by value
    menu.index = values.index(shown if shown in values else [*first, *values][0])


def newest_first(paths) -> list[Path]:
    """Files by when they were written, what is gone last: what a person just made or brought is what is meant."""
    written = {path: path.stat().st_mtime if path.exists() else 0.0 for path in paths}
    return sorted(written, key=written.get, reverse=True)


def fill_files(menu: W.Dropdown, folder: Path, paths: list[Path]) -> None:
    """:func:`fill` a menu with files of a folder, by name; ``paths`` begin with what is shown where nothing was."""
    options = [(str(path.relative_to(folder)), path) for path in paths]
    fill(menu, sorted(options, key=lambda option: option[0].lower()), paths)


@functools.lru_cache(4)
def _opened(path, size, mtime_ns):
    return instrument.open(path)


def open_instrument(path: Path):
    """An instrument; the last few are kept for all panels while their files are unchanged."""
    stat = path.stat()
    return _opened(path, stat.st_size, stat.st_mtime_ns)


def take_uploads(widget) -> list[tuple[str, bytes]]:
    """Uploaded files as ``(name, bytes)``; they are forgotten, so that the same file can be uploaded again.

    The value is a dict of dicts in ipywidgets 7 and a tuple of dicts in 8.
    """
    if V8:
        items, widget.value = widget.value, ()
    else:
        items = [dict(item["metadata"], content=item["content"]) for item in widget.value.values()]
        widget.value.clear()
        widget._counter = 0
    return [(item["name"], bytes(item["content"])) for item in items]


def recorder(message: "Message", receive: Callable[[bytes], None]) -> W.VBox:
    """A Record button; ``receive(wav_bytes)`` is called with each recording, failures are shown in ``message``.

    The browser records, decodes to samples and sends a 16-bit wav at 24 kHz through a hidden text widget: no ffmpeg is
    needed. It gives its microphone only to pages from localhost or https, after asking.
    """
    area = W.Textarea(continuous_update=True, layout=W.Layout(display="none"))
    code = Path(__file__).with_name("microphone.js").read_text("utf-8")
    face = W.HTML(
        '<button type="button" class="svclib-record-button jupyter-button widget-button" style="width:auto" '
        f'title="record up to 60 s with the microphone" onclick="{page.text(code)}">● Record</button> '
        f'<span class="svclib-record-state" style="{page.FONT}"></span>'
    )

    def changed(change):
        text, area.value = change["new"], ""  # the sound is not kept in the widget
        if text.startswith("error:"):
            message.show(
                f"The microphone gave no recording ({text.split(':')[-1].strip()}). Allow it in the browser and press "
                "Record again, or record with another program and use Upload.",
                "warning",
            )
        elif text:
            try:
                wav = base64.b64decode(text.partition(",")[2], validate=True)
            except ValueError:
                wav = b""
            if wav[:4] != b"RIFF" or len(wav) <= 44:
                raise ValueError("The browser sent an empty or damaged recording. Press Record again, or use Upload.")
            receive(wav)

    area.observe(message.guard(changed), "value")
    box = W.VBox([face, area])
    box.add_class("svclib-record")
    return box


class Message:
    """The line of a panel that reports: what to do next, what was done, what went wrong."""

    def __init__(self):
        self.widget = html(css_class="svclib-message")

    def show(self, text: str, kind: str = "info") -> None:
        """Show one message (escaped) in place of the last one; an empty text clears the line."""
        self.widget.value = page.notice(text, kind) if text else ""

    def show_error(self, error: BaseException) -> None:
        """Show an exception: a user's mistake as its sentence, anything else with its details folded below it."""
        if isinstance(error, Cancelled):
            self.show(str(error), "warning")
        elif isinstance(error, (ValueError, OSError)) and str(error):
            self.show(filesystem.error_text(error), "error")
            log.info("shown in the panel: %s", error)
        else:
            lines = "".join(traceback.format_exception(error))
            log.error("in a panel: %s", lines)
            name = f"{type(error).__name__}: {error}"
            self.show(f"Something unexpected happened ({name}). Please report the details below.", "error")
            self.widget.value += (
                f'<details style="{page.FONT}"><summary>details</summary><pre style="overflow-x:auto;font-size:12px">'
                f"{page.text(lines)}</pre></details>"
            )

    def guard(self, handler: Callable) -> Callable:
        """The handler, with an exception shown here in place of raised; it returns None then."""

        @functools.wraps(handler)
        def safe(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except KeyboardInterrupt:
                self.show("Interrupted. What was finished before is kept.", "warning")
            except Exception as error:  # the one place where everything is caught: nothing may vanish in a callback
                self.show_error(error)
            return None

        return safe


class ProgressBar:
    """A bar with a text and the remaining time; shown from the first call to :meth:`hide`."""

    def __init__(self):
        self.bar = W.FloatProgress(min=0.0, max=1.0, layout=W.Layout(width="240px", height="18px"))
        self.label = html(css_class="svclib-progress")
        self.label.layout.width = "auto"
        self.widget = row(self.bar, self.label)
        self._began = self._shown = 0.0
        self.hide()

    def __call__(self, fraction: float | int, text: str = "") -> None:
        """Show how far a task is, 0..1, and what it does; at most five updates a second."""
        now = time.monotonic()
        if self.widget.layout.display == "none":
            self._began, self._shown = now, 0.0
            self.widget.layout.display = ""
        if now - self._shown < 0.2 and fraction < 1.0:
            return
        self._shown, elapsed_s = now, now - self._began
        self.bar.value = min(max(float(fraction), 0.0), 1.0)
        rest = ""
        if elapsed_s > 2.0 and 0.02 < fraction < 1.0:
            rest = f", about {units.duration_text(elapsed_s * (1.0 - fraction) / fraction)} left"
        self.label.value = page.paragraph(f"{text}{rest}")

    def hide(self) -> None:
        """Take the bar away until the next call."""
        self.widget.layout.display = "none"


@contextlib.contextmanager
def shown_progress():
    """``with shown_progress() as bar``: a progress bar below the cell while a task runs."""
    bar = ProgressBar()
    display(bar.widget)
    try:
        yield bar
    finally:
        bar.hide()
