"""Files and actions for the tests of panels."""

import datetime

import numpy as np
import soundfile

from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.ddsp import model as ddsp
from svclib.notebooks import base as widgets

NASTY = "<img src=x onerror=alert(1)> & 'so\N{MUSICAL NOTE}ng'"
MODEL = ddsp.DdspSettings(
    n_harmonics=6, n_noise_bands=5, rnn_channels=8, mlp_channels=8, layers_per_stack=1, fft_sizes=(256, 64)
)
STATISTICS = {
    "n_recordings": 2,
    "duration_s": 20.0,
    "f0_midi": {
        "mean_note": 60.0,
        "std_note": 2.0,
        "min_note": 55.0,
        "max_note": 65.0,
        "histogram": {"edges_midi": [54.5, 60.5, 66.5], "seconds": [5.0, 5.0]},
    },
    "loudness_db": {"mean_note": -20.0, "std_note": 3.0, "min": -80.0, "max": -10.0, "mean": -25.0},
    "loudness_quantiles_db": [-30.0, -20.0, -10.0],
    "singers": {},
    "log_mel": None,
}


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


def upload(widget, name, data):
    """What the browser does when a file is uploaded."""
    if widgets.V8:
        now = datetime.datetime.now(datetime.UTC)
        item = {"name": name, "type": "audio/wav", "size": len(data), "content": memoryview(data), "last_modified": now}
        widget.set_trait("value", (item,))
    else:
        meta = {"name": name, "type": "audio/wav", "size": len(data), "lastModified": 0}
        widget.set_trait("value", {name: {"metadata": meta, "content": data}})
