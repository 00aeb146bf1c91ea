"""Widgets and helpers that the panels of all notebooks share.

One source for ipywidgets 7.7.1 (Colab) and 8. Everything a panel shows is an HTML widget: unlike an Output widget it
can be set from a background thread and looks the same in JupyterLab, classic Notebook and Colab. No exception is lost:
every handler goes through :func:`guarded`, which shows it in the panel.
"""

import collections
import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.audio import units
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled

V8 = int(W.__version__.split(".")[0]) >= 8
log = logging.getLogger("svclib")
_live: dict[str, W.Widget] = {}


# ------------------------------------------------------------------------------------------- two versions, one source


def uploads(widget) -> list[tuple[str, bytes]]:
    """Uploaded files as ``(name, bytes)``: ``value`` is a dict of dicts in ipywidgets 7 and a tuple of dicts in 8."""
    if V8:
        items = widget.value
    else:
        items = [dict(item["metadata"], content=item["content"]) for item in widget.value.values()]
    return [(item["name"], bytes(item["content"])) for item in items]


def clear_uploads(widget: W.FileUpload) -> None:
    """Forget uploaded files, so that the same file can be uploaded again."""
    if V8:
        widget.value = ()
    else:
        widget.value.clear()
        widget._counter = 0


def tip(widget: W.Widget, text: str) -> W.Widget:
    """Set the text shown while the pointer rests on a widget; returns the widget."""
    for trait in ("tooltip", "description_tooltip"):
        if widget.has_trait(trait):
            setattr(widget, trait, text)
            break
    return widget


def only_one(name: str, widget: W.Widget) -> None:
    """Register a panel; an older one of the same name is closed, so that running a cell twice leaves one."""
    older = _live.pop(name, None)
    if older is not None:
        _close(older)
    _live[name] = widget


def _close(widget: W.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()


class Panel(W.VBox):
    """A panel of a notebook. In a copy saved with its outputs, where no kernel runs, a line stands in its place.

    Above the panel a line is shown that the living panel hides; what cannot show widgets at all has the line as text.
    """

    ASLEEP = "A panel stands here while its kernel runs. To see it, run the notebook from its first cell."

    def __init__(self, children=(), **settings):
        awake = W.HTML()
        super().__init__([*children, awake], **settings)
        self._line = f"svclib-asleep-{self.model_id}"
        awake.value = f"<style>#{self._line} {{ display: none }}</style>"

    def __repr__(self):
        return self.ASLEEP

    def _ipython_display_(self, **kwargs):
        display(HTML(f'<div id="{self._line}">{page.notice(self.ASLEEP, "warning")}</div>'))
        if V8:
            display(self._repr_mimebundle_(), raw=True)
        else:
            super()._ipython_display_(**kwargs)


# ---------------------------------------------------------------------------------------------------- small elements


def html(content: str = "", css_class: str = "") -> W.HTML:
    """An HTML widget; ``content`` must have been made by ``page`` (escaped)."""
    widget = W.HTML(content)
    widget.layout.width = "100%"
    if css_class:
        widget.add_class(css_class)
    return widget


def button(label: str, action, css_class: str, style: str = "", hint: str = "", icon: str = "") -> W.Button:
    """A button that calls ``action()``; tests and styles find it by its class."""
    widget = W.Button(description=label, button_style=style, icon=icon, layout=W.Layout(width="auto", min_width="90px"))
    widget.add_class(css_class)
    widget.on_click(lambda _: action())
    return tip(widget, hint) if hint else widget


def row(*children: W.Widget) -> W.HBox:
    """Widgets beside each other that wrap on a narrow screen."""
    return W.HBox(children, layout=W.Layout(flex_flow="row wrap", align_items="center", width="100%"))


def column(title: str, *children: W.Widget) -> W.VBox:
    """A titled group of controls; groups wrap below each other on a narrow screen."""
    layout = W.Layout(flex="1 1 300px", min_width="280px", max_width="460px", margin="0 16px 0 0")
    return W.VBox([html(page.heading(title)), *children], layout=layout)


def described(kind, label: str) -> str:
    """A label, such as a singer's name from an instrument, as a widget's description: ipywidgets 7 takes it for HTML,
    8 for text unless allowed."""
    return label if "description_allow_html" in kind.class_trait_names() else page.text(label)


def control(kind, label: str, css_class: str, hint: str, **settings) -> W.Widget:
    """A labelled control as wide as its group, with a hint."""
    style, layout = {"description_width": "116px"}, W.Layout(width="98%")
    widget = kind(description=described(kind, label), layout=layout, style=style, **settings)
    widget.add_class(css_class)
    return tip(widget, hint)


def fill(menu: W.Dropdown, options: list[tuple[str, object]], wanted=None, first=()) -> None:
    """Give a menu new options ``(label, value)``; it shows ``wanted``, else what it showed, else the first of ``first``
    or, where that is empty, of the options."""
    wanted = wanted or menu.value
    menu.options = options or [("(none yet)", None)]
    values = [value for _, value in menu.options]
    # by index: a menu without a choice stays so by value
    menu.index = values.index(wanted if wanted in values else [*first, *values][0])


class Cache:
    """Opened files by path, kept while they are unchanged on disk, the last few only. A failed load leaves nothing."""

    def __init__(self, n_kept: int = 4):
        self._n_kept, self._kept = n_kept, collections.OrderedDict()

    def get(self, path: Path, load: Callable, *more):
        """``load()``, or what it gave last time for this file (same size and time) and these further keys.

        Args:
            path: The file.
            load: Opens it; called without arguments.
            *more: What else the result depends on, hashable.

        Returns:
            What ``load`` gave: the same object as last time, if it is still kept.

        Raises:
            OSError: if the file is gone; whatever ``load`` raises.
        """
        stat = Path(path).stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, *more)
        if key not in self._kept:
            self._kept[key] = load()
        self._kept.move_to_end(key)
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        return self._kept[key]


class Message:
    """The line of a panel that speaks: what to do next, what was done, what went wrong."""

    def __init__(self):
        self.widget = html(css_class="svclib-message")

    def show(self, text: str, kind: str = "info") -> None:
        """Show one message (escaped) in place of the last one; an empty text clears the line."""
        self.widget.value = page.notice(text, kind) if text else ""

    def show_error(self, error: BaseException) -> None:
        """Show an exception: a user's mistake as its sentence, anything else with its details folded below it."""
        if isinstance(error, Cancelled):
            self.show(str(error), "warning")
            return
        if isinstance(error, (ValueError, OSError)) and str(error):
            self.show(filesystem.error_text(error), "error")
            log.info("told in the panel: %s", error)
            return
        lines = "".join(traceback.format_exception(error))
        log.error("in a panel: %s", lines)
        sentence = f"Something unexpected happened ({type(error).__name__}: {error}). Please report the details below."
        self.widget.value = page.notice(sentence, "error") + (
            f'<details style="{page.FONT}"><summary>details</summary><pre style="overflow-x:auto;font-size:12px">'
            f"{page.text(lines)}</pre></details>"
        )


def guarded(message: Message):
    """Decorator for handlers: an exception is shown by ``message`` and the handler returns None."""

    def decorate(handler):
        @functools.wraps(handler)
        def safe(*args, **kwargs):
            try:
                return handler(*args, **kwargs)
            except KeyboardInterrupt:
                message.show("Interrupted. What was finished before is kept.", "warning")
            except Exception as error:  # the one place where everything is caught: nothing may vanish in a callback
                message.show_error(error)
            return None

        return safe

    return decorate


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


class BackgroundTask:
    """One background task at a time for one panel, so that its Cancel button works while it runs.

    The task receives nothing and may ask :meth:`cancelled`. ``on_busy(True|False)`` is called when it begins and ends,
    never at the same time from two threads, so that what it enables fits what runs.
    """

    def __init__(self, message: Message, on_busy):
        self._message, self._on_busy = message, on_busy
        self._lock, self._cancel = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._running, self._passing, self._before = False, None, ""

    @property
    def busy(self) -> bool:
        """True while a task runs."""
        return self._running

    def cancelled(self) -> bool:
        """True once :meth:`cancel` was called for the running task."""
        return self._cancel.is_set()

    def cancel(self, text: str = "Stopping; nothing unfinished is kept.") -> None:
        """Ask the running task to stop at its next opportunity, and say so; nothing happens while none runs."""
        with self._lock:
            if self.busy:
                self._cancel.set()
                self._say_meanwhile(text)

    def show(self) -> None:
        """Call ``on_busy`` with how it stands, after choices have changed."""
        with self._lock:
            self._on_busy(self.busy)

    def start(self, task) -> bool:
        """Run ``task()`` in a thread; False, and a word in the panel, while another one runs."""
        with self._lock:
            if self.busy:
                self._say_meanwhile("Still working on the one before; press Cancel to stop it.")
                return False
            self._running, self._passing = True, None
            self._cancel.clear()
            try:
                self._on_busy(True)
                self._thread = threading.Thread(target=self._run, args=(task,), daemon=True, name="svclib-panel")
                self._thread.start()
            except BaseException:
                self._end()
                raise
        return True

    def _say_meanwhile(self, text: str) -> None:
        if self._message.widget.value != self._passing:
            self._before = self._message.widget.value
        self._message.show(text, "warning")
        self._passing = self._message.widget.value

    def _run(self, task) -> None:
        try:
            guarded(self._message)(task)()
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._running = False
            if self._message.widget.value == self._passing:  # the task's last word came before it
                self._message.widget.value = self._before
            guarded(self._message)(self._on_busy)(False)

    def wait(self, timeout_s: float | int | None = None) -> None:
        """Wait until the running task is over (tests and scripts)."""
        if self._thread is not None:
            self._thread.join(timeout_s)
