"""The live panel of notebook 03: a DDSP instrument follows the microphone."""

import base64
import functools
import gc
import json
from pathlib import Path

import ipywidgets as W
import numpy as np
import soxr

from svclib.analysis import html as page
from svclib.conversion.controls import Controls
from svclib.conversion.live import LiveVoice
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import Panel
from svclib.utils import workspace

_HINT = (
    "Wear headphones, or the microphone hears the instrument. It works in a Jupyter of this computer; over a network "
    "the sound comes later."
)


class LivePanel(Panel):
    """The microphone through an instrument of kind ``ddsp``, block by block.

    The browser sends blocks through two hidden text areas and plays what the kernel answers. ``voice`` is the running
    ``LiveVoice``; a new one begins with Start and with every change of the controls.
    """

    PREFIX = "t-live-"

    def __init__(self, base: workspace.Base):
        super().__init__()
        self.base, self._session = base, ""
        self.voice: LiveVoice | None = None
        size = {"width": "min(430px, 98%)", "label_width": "100px"}
        hint = f"ddsp instruments in {base.instruments}"
        self.instrument = self.dropdown("Instrument", "instrument", hint, **size)
        self.octave = self.slider("Octave", "octave", "octaves up or down", 0, (-2, 2), **size)
        self.loudness = self.slider("Loudness (dB)", "loudness", "louder or softer", 0.0, (-20.0, 20.0), **size)
        hidden = {"layout": W.Layout(display="none")}
        self._inboxes, self._answers = [tuple(kind(**hidden) for _ in range(2)) for kind in (widgets.Inbox, W.HTML)]
        for inbox, answer in zip(self._inboxes, self._answers, strict=True):
            answer.add_class("svclib-live-answer")
            inbox.observe(self.message.guard(functools.partial(self._received, answer)), "value")
        script = page.text(Path(__file__).with_name("live.js").read_text("utf-8"))
        face = 'type="button" class="t-live-start jupyter-button widget-button"'
        button = f'<button {face} onclick="{script}">● Start</button>'
        self._start = widgets.html(f'{button} <span class="svclib-live-state" style="{page.FONT}"></span>')
        self._latency = widgets.html(css_class="t-live-latency")
        self.on_change(self._restart, self.instrument, self.octave, self.loudness)
        controls = widgets.row(self.instrument, self.octave, self.loudness)
        self.lay_out(controls, self._start, self._latency, *self._inboxes, *self._answers, self.message.widget)
        self.add_class("svclib-live")
        self.refresh()

    def refresh(self) -> None:
        """Read the folder of instruments."""
        listed = [entry.path for entry in instrument.list_folder(self.base.instruments) if entry.kind == "ddsp"]
        widgets.fill_files(self.instrument, self.base.instruments, widgets.newest_first(listed))
        missing = f"There is no instrument of kind ddsp in {self.base.instruments}. Train one in notebook 02."
        self.message.show(_HINT if listed else missing, "info" if listed else "warning")

    def _restart(self) -> None:
        self._session = ""

    def _begin(self, session: str, rate_hz: int) -> None:
        if self.instrument.value is None:
            raise ValueError("There is no instrument of kind ddsp; train one in notebook 02.")
        controls = Controls(octave_shift=self.octave.value, loudness_shift_db=self.loudness.value)
        voice = LiveVoice(widgets.open_instrument(self.instrument.value), controls)
        self.voice, self._session = voice, session
        gc.unfreeze()  # a full collection over some 300,000 objects would stop the sound for a fifth of a second:
        gc.collect()  # it is done now, and what is alive is not looked at again
        gc.freeze()
        self._down = soxr.ResampleStream(rate_hz, voice.rate, 1, dtype="float32", quality="LQ")
        self._up = soxr.ResampleStream(voice.rate, rate_hz, 1, dtype="float32", quality="LQ")
        latency_ms = round(1000 * voice.latency_samples / voice.rate)
        self._latency.value = f'<span data-latency="{latency_ms}"></span>'

    def _received(self, place: W.HTML, change) -> None:
        sent, answer = json.loads(change["new"]), "stop"
        try:
            if sent["id"] != self._session:
                self._begin(sent["id"], int(sent["rate"]))
            block = np.frombuffer(base64.b64decode(sent["data"]), "<i2").astype(np.float32) / 32768
            assert self.voice is not None
            made = self._up.resample_chunk(self.voice.process(self._down.resample_chunk(block)))
            made = (32767 * np.clip(made, -1, 1)).astype("<i2")
            answer = base64.b64encode(made.tobytes()).decode()
        finally:
            place.value = page.text(f"{sent['id']} {sent['n']} {answer}")
