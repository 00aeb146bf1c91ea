"""The GPU measurement runs as a whole on a CPU with a toy network."""

import json
import sys

import pytest

import gpu


@pytest.mark.slow
def test_a_killed_run_goes_on_and_both_precisions_reach_the_same_loss(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(data_dir), str(tmp_path), "--tiny"])
    assert gpu.main() == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    one, other = report["rows"]
    for row in (one, other):
        assert gpu.TINY_EVERY <= row["resumed_from_step"] < row["last_step"] == gpu.TINY_STEPS
        assert row["steps_per_s"] > 0
    assert other["loss"] == pytest.approx(one["loss"], rel=0.01)
    assert other["held_out_loss"] == pytest.approx(one["held_out_loss"], rel=0.01)
