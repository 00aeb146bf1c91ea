"""The live panel without a browser: what the page sends, and what it is answered."""

import base64
import json

import numpy as np
import pytest
import torch
import toy

from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.ddsp.model import DdspSettings
from svclib.notebooks.live import LivePanel
from svclib.utils import workspace

RATE = 48000


@pytest.fixture
def base(tmp_path):
    """A home with one ddsp instrument: a loud random one."""
    base = workspace.base_folder(base=tmp_path)
    settings = FeatureSettings()
    model = DdspSettings(n_harmonics=1, n_noise_bands=5, rnn_channels=8, mlp_channels=8).build(settings, None, seed=0)
    with torch.no_grad():
        model.decoder.out.bias[0] = 3.0
        model.decoder.out.bias[2:] = -20.0  # no noise
    instrument.save(base.instruments / "loud.zip", model, settings, toy.STATISTICS, created="2026-01-01")
    return base


def send(panel, n, samples, session="a"):
    """One block as the page sends it; the answer's words and samples."""
    data = base64.b64encode((32767 * samples).astype("<i2").tobytes()).decode()
    panel._inbox.value = json.dumps({"id": session, "n": n, "rate": RATE, "data": data})
    assert panel._inbox.value == ""
    *words, made = panel._answer.value.split(" ") if panel._answer.value.count(" ") == 2 else (panel._answer.value, "")
    return words, made if made == "stop" else np.frombuffer(base64.b64decode(made), "<i2") / 32767


def test_a_tone_comes_back_an_octave_higher_and_in_time(base):
    panel = LivePanel(base)
    panel.octave.value = 1
    tone = 0.3 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)
    answers = [send(panel, n, block) for n, block in enumerate(np.split(tone, 40))]
    assert [words for words, _ in answers] == [["a", str(n)] for n in range(40)]
    made = np.concatenate([samples for _, samples in answers])
    late = len(tone) - len(made)
    assert 0 <= late < 0.05 * RATE  # of the two resamplers
    steady = made[RATE:]
    spectrum = np.abs(np.fft.rfft(steady * np.hanning(len(steady))))
    assert spectrum.argmax() * RATE / len(steady) == pytest.approx(440, rel=0.01)
    assert np.abs(steady).max() > 0.05


def test_another_octave_begins_anew_and_another_session_too(base):
    panel = LivePanel(base)
    silence = np.zeros(2400)
    send(panel, 0, silence)
    first = panel.voice
    send(panel, 1, silence)
    assert panel.voice is first
    panel.octave.value = -1
    send(panel, 2, silence)
    assert panel.voice is not first and panel.voice.controls.octave_shift == -1
    second = panel.voice
    send(panel, 0, silence, session="b")
    assert panel.voice is not second


def test_without_an_instrument_the_page_is_told_to_stop(tmp_path):
    base = workspace.base_folder(base=tmp_path)
    panel = LivePanel(base)
    assert "There is no instrument" in panel.message.widget.value
    assert send(panel, 0, np.zeros(100))[1] == "stop"
