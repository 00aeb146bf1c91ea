"""Files and actions for the tests of panels."""

import base64
import html
import json
import threading
import uuid

import ipywidgets as W
import numpy as np
import soundfile
from toy import MODEL, STATISTICS

from svclib.features.extract import FeatureSettings
from svclib.models import instrument

NASTY = "<img src=x onerror=alert(1)> & 'so\N{MUSICAL NOTE}ng'"


def make_instrument(folder, name="small", seed=0):
    features = FeatureSettings()
    model = instrument.build_model(MODEL, features, None, seed)
    return instrument.save(folder / f"{name}.zip", model, features, STATISTICS, created="2026-11-21", name=name)


def make_song(path, f0_hz=220.0, seconds=1.2):
    t = np.arange(int(16000 * seconds)) / 16000
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * sum(np.sin(2 * np.pi * k * f0_hz * t) / k for k in range(1, 9)), 16000)
    return path


def said(panel) -> str:
    return panel.message.widget.value


def upload(uploader, name, data, slice_bytes=500_000):
    """What the page does with a chosen file: slice after slice, each after the answer to the one before."""
    identity, at = uuid.uuid4().hex, 0
    while True:
        piece = data[at : at + slice_bytes]
        sent = {"batch": identity, "id": identity, "name": name, "size": len(data), "at": at}
        uploader._area.value = json.dumps({**sent, "data": base64.b64encode(piece).decode()})
        verdict = html.unescape(uploader._answer.value).removeprefix(f"{identity} {at} ")
        at += slice_bytes
        if verdict != "ok" or at >= len(data):
            return verdict


class ColabPage:
    """The values of widgets as a page on Colab shows them: nothing from a thread (googlecolab/colabtools #3373)."""

    def __init__(self, monkeypatch):
        self.values = {}

        def send(widget, msg, buffers=None):
            if msg["method"] == "update" and threading.current_thread() is threading.main_thread():
                self.values.setdefault(widget.model_id, {}).update(msg["state"])

        monkeypatch.setattr(W.Widget, "_send", send)
        if W.__version__ < "8":  # it sends nothing where there is no kernel
            monkeypatch.setattr("ipykernel.comm.Comm.kernel", object())

    def shows(self, widget, name="value"):
        """A value of a widget as the page has it, None if it never came."""
        return self.values.get(widget.model_id, {}).get(name)
