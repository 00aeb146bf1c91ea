"""The panel that all panels of the notebooks are made from, and the one that works in the background.

No exception is lost: every handler goes through ``Message.guard``, which shows it in the panel.
"""

import ast
import functools
import re
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as W
from IPython.display import display

from svclib.analysis import html as page
from svclib.audio import io as audio
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.utils import workspace
from svclib.utils.errors import StorageError


class BackgroundTask:
    """One background task at a time for one panel, so that its Cancel button works while it runs.

    It is ``busy`` while a task runs, which may ask ``cancelled()``. ``on_busy(True|False)`` is called when one begins
    and ends, never from two threads at once. Colab shows nothing that a thread changes in a widget (colabtools #3373):
    there a task runs in the callback that starts it, and an interrupt of the kernel stops it.
    """

    def __init__(self, message: widgets.Message, on_busy: Callable[[bool], None]):
        self._message, self._on_busy = message, on_busy
        self._lock, self._cancel = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._passing, self._before = None, ""
        self.busy, self.cancelled = False, self._cancel.is_set

    def cancel(self, text: str) -> None:
        """Ask the running task to stop at its next opportunity, and report so; nothing happens while none runs."""
        with self._lock:
            if self.busy:
                self._cancel.set()
                self._show_meanwhile(text)

    def show(self) -> None:
        """Call ``on_busy`` with how it stands, after choices have changed."""
        with self._lock:
            self._on_busy(self.busy)

    def start(self, task: Callable[[], None]) -> bool:
        """Run ``task()`` in a thread (on Colab at once); False, and a word in the panel, while another one runs."""
        with self._lock:
            if self.busy:
                self._show_meanwhile("Still working on the one before; press Cancel to stop it.")
                return False
            self.busy, self._passing = True, None
            self._cancel.clear()
            try:
                self._on_busy(True)
                if workspace.on_colab():
                    self._run(task)
                else:
                    self._thread = threading.Thread(target=self._run, args=(task,), daemon=True, name="svclib-panel")
                    self._thread.start()
            except BaseException:
                self._end()
                raise
        return True

    def _show_meanwhile(self, text: str) -> None:
        if self._message.widget.value != self._passing:
            self._before = self._message.widget.value
        self._message.show(text, "warning")
        self._passing = self._message.widget.value

    def _run(self, task) -> None:
        try:
            self._message.guard(task)()
        finally:
            self._end()

    def _end(self) -> None:
        with self._lock:
            self.busy = False
            if self._message.widget.value == self._passing:  # the task's last word came before it
                self._message.widget.value = self._before
            self._message.guard(self._on_busy)(False)

    def wait(self, timeout_s: float | int | None = None) -> None:
        """Wait until the running task is over (tests and scripts)."""
        if self._thread is not None:
            self._thread.join(timeout_s)


class Panel(W.VBox):
    """A panel of a notebook; an older one of its class is closed, so that running a cell twice leaves one.

    In a copy saved with its outputs, where no kernel runs, a line stands in its place, which the living panel hides.
    Its ``message`` is the line that reports; tests and styles find the controls by classes that begin with ``PREFIX``.
    """

    ASLEEP = "A panel stands here while its kernel runs. To see it, run the notebook from its first cell."
    PREFIX = "t-"
    _living: dict[type, "Panel"] = {}

    def __init__(self):
        super().__init__()
        self.message = widgets.Message()
        if (older := self._living.pop(type(self), None)) is not None:
            close(older)
        self._living[type(self)] = self

    def lay_out(self, *rows: W.Widget) -> None:
        """Show these widgets below each other."""
        self.children = (*rows, W.HTML(f"<style>#svclib-asleep-{self.model_id} {{ display: none }}</style>"))

    def __repr__(self):
        return self.ASLEEP

    def _ipython_display_(self, **kwargs):
        widgets.show(f'<div id="svclib-asleep-{self.model_id}">{page.notice(self.ASLEEP, "warning")}</div>')
        if widgets.V8:
            display(self._repr_mimebundle_(), raw=True)
        else:
            super()._ipython_display_(**kwargs)

    def control(self, kind, label: str, name: str, hint: str, **settings) -> W.Widget:
        """A labelled control with a hint, see ``base.control``."""
        return widgets.control(kind, label, self.PREFIX + name, hint, **settings)

    def dropdown(self, label: str, name: str, hint: str, options=widgets.NONE, **settings) -> W.Dropdown:
        """A menu of ``(label, value)``."""
        return self.control(W.Dropdown, label, name, hint, options=options, **settings)

    def several(self, label: str, name: str, hint: str, options: list, rows: int = 5) -> W.SelectMultiple:
        """A menu of ``(label, value)`` of which several can be chosen, the first one until then."""
        index = (0,) if options else ()
        return self.control(W.SelectMultiple, label, name, hint, options=options, index=index, rows=rows)

    def checkbox(self, label: str, name: str, hint: str, value: bool = False, **settings) -> W.Checkbox:
        """A checkbox."""
        return self.control(W.Checkbox, label, name, hint, value=value, indent=False, **settings)

    def number(self, label: str, name: str, hint: str, value, limits: tuple, **settings) -> W.Widget:
        """A number box for values in ``limits``, for whole numbers if ``value`` is one."""
        kind = W.BoundedIntText if isinstance(value, int) else W.BoundedFloatText
        return self.control(kind, label, name, hint, value=value, min=limits[0], max=limits[1], **settings)

    def slider(self, label: str, name: str, hint: str, value, limits: tuple, **settings) -> W.Widget:
        """A slider for values in ``limits``, for whole numbers if ``value`` is one."""
        kind = W.IntSlider if isinstance(value, int) else W.FloatSlider
        settings |= {"min": limits[0], "max": limits[1], "continuous_update": False}
        return self.control(kind, label, name, hint, value=value, **settings)

    def button(self, label: str, action: Callable, name: str, style: str = "", hint: str = "", icon: str = ""):
        """A button that calls ``action()``."""
        layout = W.Layout(width="auto", min_width="90px")
        widget = W.Button(description=label, button_style=style, icon=icon, layout=layout)
        widget.add_class(self.PREFIX + name)
        widget.on_click(self.message.guard(lambda _: action()))
        return widgets.tip(widget, hint) if hint else widget

    def offer(self, *paths: Path) -> None:
        """Give files to the browser, several as one zip: on Colab at once, elsewhere by a link in the message."""
        if not paths:
            raise StorageError("There is nothing to download yet.")
        path = paths[0]
        if len(paths) > 1:
            path = Path(tempfile.mkdtemp(prefix="svclib-"), "results.zip")
            with zipfile.ZipFile(path, "w") as archive:
                for one in paths:
                    archive.write(one, one.name)
        if workspace.on_colab():
            from google.colab import files

            files.download(str(path))
        else:
            self.written(path, f"Press the link to save {path.name} on your computer.")

    def written(self, path: Path, text: str) -> None:
        """Report a file that was written, with a link that saves it from the page."""
        self.message.show(text, "done")
        self.message.widget.value += page.download_link(path)

    def on_change(self, action: Callable, *controls: W.Widget) -> None:
        """Call ``action()`` whenever one of the widgets has another value."""
        for widget in controls:
            widget.observe(self.message.guard(lambda _: action()), "value")


class Form(Panel):
    """The choices of a notebook's first cell as controls, outside Colab, which makes such a form itself.

    ``fields`` are made from the lines ``NAME = value  # @param ...`` and the ``# @markdown`` lines above each. A choice
    is written into ``variables``, the notebook's global ones, and stays when the cells are run again, until somebody
    writes another value into the cell.
    """

    PREFIX = "t-choice-"
    KINDS = {"boolean": W.Checkbox, "integer": W.IntText, "number": W.FloatText}
    _chosen: dict[str, tuple[Any, Any]] = {}  # by name: what stood in the cell, and what was chosen instead

    def __init__(self, variables: dict[str, Any]):
        super().__init__()
        self.variables, self.fields, self._written, help_lines, rows = variables, {}, {}, [], []
        cells = [text for text in variables.get("In", ()) if "# @param" in text]
        beside = {"flex": "1 1 300px", "min_width": "200px", "margin": "2px 2px 2px 10px"}
        for line in cells[-1].splitlines() if cells else ():
            if line.startswith("# @markdown "):
                help_lines.append(line.removeprefix("# @markdown ").replace("`", ""))
            if found := re.match(r"(\w+) = .*# @param (?:(\[.*?\])|.*?type: ?\"(\w+)\")", line):
                explained = W.HTML(page.paragraph(" ".join(help_lines)), layout=W.Layout(**beside))
                rows.append(widgets.row(self._field(*found.groups()), explained))
                rows[-1].layout.margin = "0 0 8px"  # on a narrow page the help is below its field
                help_lines = []
        self.lay_out(widgets.html(page.heading("Your choices")), *rows, self.message.widget)

    def _field(self, name: str, options: str | None, kind: str | None) -> W.Widget:
        self._written[name] = value = self.variables[name]
        written, chosen = self._chosen.get(name, (None, None))
        if name in self._chosen and written == value:
            value = self.variables[name] = chosen
        label = name.replace("_", " ").capitalize().replace("cpu", "CPU").replace("Tensorboard", "TensorBoard")
        kind_of, settings = self.KINDS.get(kind or "", W.Text), {"continuous_update": False}
        if name == "VOICE":  # a new one can be typed, or several
            kind_of, settings["options"] = W.Combobox, self._voices()
            settings["placeholder"] = "(the one changed last)"
        elif options:
            kind_of, settings = W.Dropdown, {"options": list(dict.fromkeys([*ast.literal_eval(options), value]))}
        elif kind_of is W.Checkbox:
            settings = {"indent": False}
        settings |= {"value": value, "width": "min(400px, 98%)", "label_width": "120px"}
        field = self.fields[name] = self.control(kind_of, label, name.lower().replace("_", "-"), "", **settings)
        self.on_change(functools.partial(self._choose, name), field)
        return field

    def _choose(self, name: str) -> None:
        value = self.fields[name].value
        self.variables[name], self._chosen[name] = value, (self._written[name], value)
        if name == "BASE" and "VOICE" in self.fields:
            self.fields["VOICE"].options = self._voices()
        self.message.show("Now run the cells below (menu Run, Run Selected Cell and All Below), or Run All.")

    def _voices(self) -> list[str]:
        """The voices in the folder that is chosen."""
        folder = workspace.root_folder(self.variables.get("BASE")) / "audio"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def close(widget: W.Widget) -> None:
    """Close a widget and all in it."""
    for child in getattr(widget, "children", ()):
        close(child)
    widget.close()


class TaskPanel(Panel):
    """A panel that works in the background, mostly on one of the instruments and songs of a person's folder.

    It has menus of both, a progress bar, Cancel, Refresh and a live preview. Its ``work_buttons`` are off while it
    works or something is missing; their actions call :meth:`start`. ``WANTED`` and ``KINDS`` are the instruments of the
    menu, in words and by kind (all but vocoders if empty), the preferred kind first. ``BRING`` is how a song gets
    there, ``STOPPING`` the sentence after Cancel, ``SIZE`` that of the menus, ``entries`` the instruments by path.
    """

    WANTED, KINDS = "instrument", ()
    BRING, STOPPING = "Put a recording there,", "Stopping; nothing unfinished is kept."
    SIZE = {"width": "min(430px, 98%)", "label_width": "80px"}
    work_buttons: tuple[W.Button, ...] = ()

    def __init__(self, base: workspace.Base):
        super().__init__()
        self.base, self.entries, self._unusable = base, {}, []
        self.instrument = self.dropdown("Instrument", "instrument", f"files in {base.instruments}", **self.SIZE)
        self.song = self.dropdown("Song", "song", f"recordings in {base.examples}", **self.SIZE)
        self.progress, self.task = widgets.ProgressBar(), BackgroundTask(self.message, self.show_busy)
        self.callbacks = {"progress": self.progress, "cancelled": self.task.cancelled}
        self.live = widgets.html(css_class=f"{self.PREFIX}live")
        hint = "stop the running work"
        self.cancel_button = self.button("Cancel", lambda: self.task.cancel(self.STOPPING), "cancel", hint=hint)
        if workspace.on_colab():  # a click would wait until the work has ended
            self.cancel_button.description = "To stop: Runtime, Interrupt execution"
        hint = "read the folders of instruments and songs again"
        self.refresh_button = self.button("Refresh", self.refresh, "refresh", hint=hint)

    def read_folders(self) -> None:
        """Fill the menus; choices that still exist are kept."""
        songs, unusable = audio.find(self.base.examples)
        listed = instrument.list_folder(self.base.instruments)
        self.entries = {entry.path: entry for entry in listed}
        self._unusable = [f"{path.name}: {reason}" for path, reason in unusable]
        self._unusable += [f"{entry.path.name}: {entry.problem}" for entry in listed if entry.problem]
        kinds = self.KINDS or {entry.kind for entry in listed}.difference(instrument.VOCODERS)
        whole = {path: entry for path, entry in self.entries.items() if entry.problem is None and entry.kind in kinds}
        offered = widgets.newest_first(whole)
        if self.KINDS:  # in their order
            offered.sort(key=lambda path: self.KINDS.index(self.entries[path].kind))
        widgets.fill_files(self.instrument, self.base.instruments, offered)
        widgets.fill_files(self.song, self.base.examples, widgets.newest_first(songs))

    def missing(self) -> str:
        """Text that names what has to be there before work can begin; empty if all is."""
        lines, again = [], "and press Refresh."
        if self.instrument.value is None:
            remedy = f"Make one with notebook 02, or put its zip file there, {again}"
            lines.append(f"There is no {self.WANTED} in {self.base.instruments}. {remedy}")
        if self.song.value is None:
            lines.append(f"There is no song in {self.base.examples}. {self.BRING} {again}")
        return "\n".join(lines)

    def refresh(self) -> None:
        """Read the folders again; reports what is missing, or the files that cannot be used."""
        try:
            self.read_folders()
        finally:
            self.task.show()  # also where a folder is gone: the buttons fit the menus
        for other in list(self._living.values()):  # one look at the folders is enough for all panels
            if other is not self and isinstance(other, TaskPanel) and other.base == self.base:
                other.read_folders()
                other.task.show()
        unusable = ["These files cannot be used:", *self._unusable] if self._unusable else []
        self.message.show("\n".join([self.missing(), *unusable]).strip(), "warning")

    def open_instrument(self, path: Path):
        """``base.open_instrument`` with progress."""
        self.progress(0.0, f"opening {path.name}")
        return widgets.open_instrument(path)

    def start(self, work: Callable[[], None], missing: str | None = None) -> None:
        """Run ``work()`` in the background, or show what is missing (by default :meth:`missing`)."""
        if missing := self.missing() if missing is None else missing:
            self.message.show(missing, "warning")
            return

        def task():
            self.message.show("")
            try:
                work()
            finally:
                self.live.value = ""

        self.task.start(task)

    def show_live(self, markup: str) -> None:
        """Show a live preview until the work ends."""
        if not self.task.cancelled():
            self.live.value = markup

    def show_busy(self, busy: bool) -> None:
        """Turn the buttons on and off."""
        self.cancel_button.disabled = not busy
        for button in self.work_buttons:
            button.disabled = busy or bool(self.missing())
        if not busy:
            self.progress.hide()
