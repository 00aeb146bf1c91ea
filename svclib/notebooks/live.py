"""The live panel of notebook 03: a DDSP instrument follows the microphone."""

import asyncio
import base64
import contextlib
import functools
import gc
import json
import secrets
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import ipywidgets as W
import numpy as np
import soxr
import tornado.httpserver
import tornado.netutil
import tornado.web
import tornado.websocket

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


class _Socket(tornado.websocket.WebSocketHandler):
    """Blocks of 16 bit samples in and out; the first message is JSON: ``id`` of the session, ``rate`` in Hz."""

    def initialize(self, answer):
        self.answer, self.session = answer, {}

    def check_origin(self, origin: str) -> bool:
        """Whoever knows the token of the address is the page of this panel."""
        return True

    def open(self):
        self.set_nodelay(True)

    def on_message(self, message: str | bytes) -> None:
        """Answer a block by as many samples, or by the text ``stop``."""
        if isinstance(message, str):
            self.session = json.loads(message)
            return
        answer = self.answer()
        made = answer and answer(self.session["id"], self.session["rate"], message)
        with contextlib.suppress(tornado.websocket.WebSocketClosedError):
            self.write_message("stop" if made is None else made, binary=made is not None)


@functools.cache
def _application() -> tuple[tornado.web.Application, str]:
    """Server at a port of this computer, in a thread, and its address; one for all panels of a kernel."""
    (listening,) = tornado.netutil.bind_sockets(0, "127.0.0.1")
    application = tornado.web.Application(websocket_max_message_size=1 << 20)

    async def serve() -> None:
        tornado.httpserver.HTTPServer(application).add_socket(listening)
        await asyncio.Event().wait()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True, name="live panels").start()
    return application, f"ws://127.0.0.1:{listening.getsockname()[1]}"


def _address(answer: Callable[[str, int, bytes], bytes | None]) -> str:
    """Address that nobody can guess, where :class:`_Socket` gives blocks to the method ``answer`` of a panel."""
    (application, address), token = _application(), secrets.token_urlsafe(32)
    application.add_handlers(".*", [(f"/{token}", _Socket, {"answer": weakref.WeakMethod(answer)})])
    return f"{address}/{token}"


class LivePanel(Panel):
    """The microphone through an instrument of kind ``ddsp``, block by block.

    The browser sends blocks and plays what it is answered: through a socket of this computer, which a thread of the
    kernel serves, or where that cannot be reached (a kernel elsewhere) through two hidden text areas. ``voice`` is the
    running ``LiveVoice``; a new one begins with Start and with every change of the controls.
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
        button = f'<button {face} data-socket="{_address(self._answer)}" onclick="{script}">● Start</button>'
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

    def _answer(self, session: str, rate_hz: int, block: bytes) -> bytes | None:
        return self.message.guard(self._convert)(session, rate_hz, block)

    def _convert(self, session: str, rate_hz: int, block: bytes) -> bytes:
        """A block of 16 bit samples at the page's rate through the voice."""
        if session != self._session:
            self._begin(session, rate_hz)
        samples = np.frombuffer(block, "<i2").astype(np.float32) / 32768
        assert self.voice is not None
        made = self._up.resample_chunk(self.voice.process(self._down.resample_chunk(samples)))
        return (32767 * np.clip(made, -1, 1)).astype("<i2").tobytes()

    def _received(self, place: W.HTML, change) -> None:
        sent, answer = json.loads(change["new"]), "stop"
        try:
            made = self._convert(sent["id"], int(sent["rate"]), base64.b64decode(sent["data"]))
            answer = base64.b64encode(made).decode()
        finally:
            place.value = page.text(f"{sent['id']} {sent['n']} {answer}")
