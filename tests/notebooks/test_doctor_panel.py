"""Notebook 01: beside every usable file that is worth a look stand a player and a tick to leave it out."""

import numpy as np
import pytest
import soundfile

from svclib.data.recordings import find_recordings
from svclib.notebooks import base as widgets
from svclib.notebooks import prepare

RATE = 16000


@pytest.mark.case("user 01.6", "user 01.11")
def test_what_is_worth_a_look_can_be_heard_and_left_out(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "show", shown.append)
    t = np.arange(4 * RATE) / RATE
    clean = 0.3 * np.sin(2 * np.pi * np.cumsum(300 + 20 * np.sin(5 * t)) / RATE)
    soundfile.write(tmp_path / "Take 2.wav", clean, RATE)
    soundfile.write(tmp_path / "Take 10.wav", np.clip(9 * clean, -0.8, 0.8), RATE)
    (tmp_path / "empty.wav").write_bytes(b"")
    found = find_recordings(tmp_path)
    panel = prepare.DoctorPanel(found)
    assert any("Take 2.wav" in markup and "empty.wav" in markup for markup in shown)  # the report
    [(path, tick)] = panel.ticks.items()
    assert path.name == "Take 10.wav" and panel.recordings == found  # untouched, all are used
    players = [child for row in panel.children for child in getattr(row, "children", ())]
    assert any("<audio" in str(getattr(child, "value", "")) for child in players)
    tick.value = True
    left = {r.path.name: r.problem for r in panel.recordings}
    assert left["Take 2.wav"] is None and "by choice" in left["Take 10.wav"] and "empty" in left["empty.wav"]
