"""Widgets and helpers that the panels of all notebooks share.

One source for ipywidgets 7.7.1 (Colab) and 8. Panels show HTML widgets only: unlike an Output widget they can be set
from a background thread (not on Colab, see ``panel.BackgroundTask``) and look the same everywhere.
"""

import base64
import contextlib
import functools
import json
import logging
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import ipywidgets as W
import traitlets
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import units
from svclib.models import instrument
from svclib.utils import budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import Cancelled, ConfigError, StorageError, printable

V8 = int(W.__version__.split(".")[0]) >= 8
NONE = (("(none yet)", None),)  # of a menu that waits for its options
START_S = (0.0, 1e9)  # of an excerpt: beyond the end of any song, so that the refusal names what was typed
_UPLOAD_FILES = ("upload.js", "microphone.js", "upload.html")
_DOT = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="  # one transparent pixel
_FIT = "calc(100% - 4px)"  # ipywidgets adds a margin of 2 px at both sides, and a scroll bar to what is wider
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


def require_number(name: str, value: Any, low: float | int, high: float | int, text: str) -> None:
    """ConfigError if a choice in a notebook is no number from ``low`` to ``high``, which ``text`` names."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; expected are {text}.")


def show_widget(widget: W.Widget) -> Callable[[str], None]:
    """Display a widget; the function that is returned puts HTML in its place, which a saved notebook keeps."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    bundle = {"application/vnd.jupyter.widget-view+json": view, "text/plain": ""}
    handle = display(bundle, raw=True, display_id=True)  # None where no notebook is
    return lambda markup: handle and handle.update(HTML(markup))


def show_note(sentence: str, kind: str = "info") -> None:
    """Display a sentence below the cell."""
    show(page.notice(sentence, kind))


def html(content: str = "", css_class: str = "") -> W.HTML:
    """An HTML widget; ``content`` must have been made by ``page`` (escaped)."""
    widget = W.HTML(content, layout=W.Layout(width=_FIT))
    if css_class:
        widget.add_class(css_class)
    return widget


def row(*children: W.Widget, align: str = "center") -> W.HBox:
    """Widgets beside each other that wrap on a narrow screen."""
    return W.HBox(children, layout=W.Layout(flex_flow="row wrap", align_items=align, width=_FIT))


def column(title: str, *children: W.Widget) -> W.VBox:
    """A titled group of controls; groups wrap below each other on a narrow screen."""
    layout = W.Layout(flex="1 1 300px", min_width="280px", max_width="460px", margin="0 16px 0 0")
    return W.VBox([html(page.heading(title)), *children], layout=layout)


def tip(widget: W.Widget, text: str) -> W.Widget:
    """Set the text shown while the pointer rests on a widget; returns the widget."""
    setattr(widget, "tooltip" if widget.has_trait("tooltip") else "description_tooltip", text)
    return widget


def control(
    kind, label: str, css_class: str, hint: str, width: str = "98%", label_width: str = "116px", **settings
) -> W.Widget:
    """A labelled control with a hint, as wide as its group; tests and styles find it by its class.

    The hint is in the description: of many widgets ipywidgets 8 shows no tooltip beside one. Label and hint may come
    from an instrument, and are escaped.
    """
    style, layout, text = {"description_width": label_width}, W.Layout(width=width), page.text(printable(label))
    settings["description"] = f'<span title="{page.text(hint)}">{text}</span>' if hint else text
    if "description_allow_html" in kind.class_trait_names():  # ipywidgets 7 takes every description for HTML
        settings["description_allow_html"] = True
    widget = kind(layout=layout, style=style, **settings)
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


class Inbox(W.Textarea):
    """A text area that the browser writes into; what it sends is not sent back."""

    value = traitlets.Unicode("").tag(sync=True, echo_update=False)  # ipywidgets 8 would send every slice back


class FramedPage(W.VBox):
    """A page of up to 10 MB in a frame, of which nothing stays in a saved notebook or the saved state of its widgets.

    The page goes to the browser through a hidden HTML widget, with the cell's first message, so that it appears while
    later cells run. The browser moves it into its place and reports that through a hidden text area; the widget is
    emptied then. A browser that shows it anew asks for it; where no kernel runs, a sentence stands in its place.
    """

    ASLEEP = "A page stands here while its kernel runs. To see it, run the notebook from its first cell."

    def __init__(self, text: str = ""):
        hidden = {"layout": W.Layout(display="none")}
        self._place, self._area, self._mailbox = html(), Inbox(**hidden), W.HTML(**hidden)
        super().__init__([self._place, self._area, self._mailbox], layout=W.Layout(margin="0"))
        self.add_class("svclib-page")
        self._area.observe(self._received, "value")
        self.text = text
        if text:
            self.show(text)

    def show(self, text: str) -> None:
        """Show a page."""
        self.text = text
        self._place.value = f'<div class="svclib-page-place">{page.notice(self.ASLEEP, "warning")}</div>'
        self._post(page.frame(text))

    def _post(self, frame: str = "") -> None:
        script = page.text(Path(__file__).with_name("framed_page.js").read_text("utf-8"))
        self._mailbox.value = f'{frame}<img alt="" src="{_DOT}" onload="{script}">'

    def _received(self, change) -> None:
        sent, self._area.value = change["new"], ""
        if sent:
            self._post(page.frame(self.text) if sent.startswith("wanted") else "")


class Uploader(W.VBox):
    """A button, and a place to drop, for files of any size; with ``microphone`` one that records too.

    The browser sends slices of 500 kB through a hidden text area, each after the answer to the one before: Colab takes
    messages of 1 MB, Jupyter of 10 MB. A recording comes as 16-bit WAV at 24 kHz; browsers give their microphone only
    to pages from localhost or https.

    ``keep`` stores one complete file, which is in a temporary folder under its safe name; ``done`` makes the sentence
    to show from what ``keep`` returned so far. ``face`` are the button's ``label`` and ``hint``, and the suffixes that
    the browser offers, ``accept``.
    """

    def __init__(self, message: "Message", keep: Callable, done: Callable, face: dict[str, str], microphone=False):
        upload, recorder, template = (Path(__file__).with_name(name).read_text("utf-8") for name in _UPLOAD_FILES)
        texts = {"accept": "", **face, "upload": upload, "record": recorder if microphone else ""}
        hidden = {"layout": W.Layout(display="none")}
        self._area, self._answer = Inbox(**hidden), W.HTML(**hidden)
        self._answer.add_class("svclib-upload-answer")
        shown = W.HTML(page.TEMPLATES.from_string(template).render(texts))
        super().__init__([shown, self._area, self._answer], layout=W.Layout(margin="0"))
        self.add_class("svclib-upload")
        self._message, self._keep, self._done = message, keep, done
        self._batch, self._id, self._at, self._kept, self._problems = "", "", 0, [], []
        self._folder: tempfile.TemporaryDirectory | None = None
        self._area.observe(message.guard(self._received), "value")

    def _received(self, change):
        text, self._area.value = change["new"], ""  # nothing of the file stays in the widget
        if not text:
            return
        sent, verdict = json.loads(text), "no"
        try:
            try:
                self._take(sent)
                verdict = "ok"
            except (ValueError, OSError) as error:
                name, why = printable(sent["name"], 80), filesystem.error_text(error)
                self._problems.append(why if why.startswith(name) else f"{name}: {why}")
                self._close()
            if self._folder is None:
                lines = [self._done(self._kept)] if self._kept else []
                kind = "error" if not lines else "warning" if self._problems else "done"
                self._message.show("\n".join([*lines, *self._problems]), kind)
        finally:
            self._answer.value = page.text(f"{sent['id']} {sent['at']} {verdict}")

    def _take(self, sent: dict) -> None:
        if sent["batch"] != self._batch:
            self._batch, self._kept, self._problems = sent["batch"], [], []
        data = base64.b64decode(sent["data"])
        if sent["at"] == 0:
            self._close()
            self._folder, self._id, self._at = tempfile.TemporaryDirectory(prefix="svclib-upload-"), sent["id"], 0
            budget.require("upload", str(sent["name"]), Cost(disk_bytes=sent["size"]), self._folder.name)
        if self._folder is None or (sent["id"], sent["at"]) != (self._id, self._at):
            raise StorageError("The upload was interrupted.", hint="Choose the file again.")
        name = PurePosixPath(sent["name"].replace("\\", "/")).name or "file"
        part = Path(self._folder.name, filesystem.safe_path((name,)))
        with open(part, "ab") as file:
            file.write(data)
        self._at += len(data)
        if self._at >= sent["size"]:
            self._kept.append(self._keep(part))
            self._close()

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None


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
            details = f'<pre style="overflow-x:auto;font-size:12px">{page.text(lines)}</pre>'
            self.widget.value += page.fold("details", details)

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
    replace = show_widget(bar.widget)
    try:
        yield bar
    finally:
        bar.hide()
        replace("")
