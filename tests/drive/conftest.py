"""A Google Drive that misbehaves, and a run that nothing disturbed."""

import tempfile

import pytest
import toy
from fakedrive import FakeDrive

from svclib.training import api as training
from svclib.training import run_lock
from svclib.utils import filesystem, workspace


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 30 steps on a disk that is well."""
    run = tmp_path_factory.mktemp("whole")
    training.train(toy.ToyDataset(), run, toy.preset(), steps=30)
    return run


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A mounted Drive; the machine's own temporary files lie elsewhere."""
    mount = tmp_path / "drive"
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "local" / "own"))
    monkeypatch.setattr(filesystem, "DRIVE_MOUNT", mount)
    monkeypatch.setattr(workspace, "DRIVE", mount / "MyDrive")
    monkeypatch.setattr(filesystem, "DRIVE_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr("svclib.training.checkpoint_writer.RETRY_S", 0.0)
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 1e6)  # so that operations can be counted
    made = FakeDrive(mount / "MyDrive")
    monkeypatch.setattr(filesystem, "active", made)
    return made
