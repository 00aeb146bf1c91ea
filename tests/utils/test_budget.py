"""Truths: what costs more than its limit, or than the machine has free, is refused at once and by name; less is not."""

import time
from pathlib import Path

import psutil
import pytest
from explaining import assert_explains

from svclib.conversion import song
from svclib.utils import budget
from svclib.utils.budget import LIMITS, Cost
from svclib.utils.errors import ConversionError, ModelError, StorageError


@pytest.mark.parametrize(("kind", "field"), [(k, f) for k in LIMITS for f in Cost._fields if getattr(LIMITS[k], f)])
def test_what_costs_more_than_its_limit_is_refused(kind, field, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "free_memory_bytes", lambda: 1 << 50)
    most = getattr(LIMITS[kind], field)
    budget.require(kind, "a.x", Cost(**{field: most}))
    with pytest.raises(ModelError) as error:
        budget.require(kind, "a.x", Cost(**{field: 1.01 * most + 1e6}), hint="Cut it.", error=ModelError)
    assert_explains(error.value, remedy="Cut it")
    assert "a.x" in str(error.value) and kind in str(error.value)


def test_a_cost_that_a_kind_does_not_have_is_never_free():
    """A limit of 0 is no licence: what is not foreseen is refused."""
    with pytest.raises(StorageError):
        budget.require("preset", "a.gin", Cost(disk_bytes=1))


@pytest.mark.case("red 07")
def test_a_song_that_the_free_memory_does_not_hold_is_refused_before_it_is_read(monkeypatch, data_dir):
    path = data_dir / "singing/vocadito_1/vocadito_1.wav"
    settings = song.FeatureSettings(f0_method="swift")
    monkeypatch.setattr(budget, "free_memory_bytes", lambda: 20_000_000)
    monkeypatch.setattr(song.audio, "read", None)
    began = time.monotonic()
    with pytest.raises(ConversionError) as error:
        song.load_song(path, settings)
    assert_explains(error.value, path=path, remedy="Cut it into parts")
    assert "20 MB are free" in str(error.value) and time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8e9),
        ({"max": "max", "current": "5", "stat": "inactive_file 1"}, 8e9),
        ({"max": "3000000000", "current": "2500000000", "stat": "anon 7\ninactive_file 400000000"}, 0.9e9),
        ({"max": "90000000000", "current": "0", "stat": "inactive_file 0"}, 8e9),
        ({"max": "nonsense", "current": "0", "stat": ""}, 8e9),
    ],
)
def test_free_memory_is_that_of_the_container_where_it_has_less(monkeypatch, files, expected):
    def read(path):
        name = path.name.removeprefix("memory.")
        if str(path.parent) != "/sys/fs/cgroup" or name not in files:
            raise FileNotFoundError(path)
        return files[name] + "\n"

    memory = psutil.virtual_memory()._replace(available=8_000_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(Path, "read_text", read)
    assert budget.free_memory_bytes() == expected
