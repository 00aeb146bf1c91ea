"""Interrupted or failing in the middle of any file operation, and damaged afterwards: nothing lost, nothing believed.

Truths: an undisturbed run, bit by bit; an audit of Python's own file events (``sys.addaudithook``), which sees every
writer whatever module it hides in; single flipped bits.
"""

import ast
import errno
import os
import random
import sys
from pathlib import Path

import cheap_features
import pytest
import toy
import traces
from explaining import assert_explains
from faults import FaultyDisk, failing

import svclib
from svclib.analysis import trace
from svclib.data import dataset, shards
from svclib.training import api as training
from svclib.training import run_lock
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ConversionError, DatasetError, StorageError, TrainingError

PACKAGE = Path(svclib.__file__).parent
WRITERS = {str(PACKAGE / "utils" / name) for name in ("atomic_store.py", "filesystem.py")}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.move")
_audited: dict = {"under": None, "seen": [], "foreign": []}


@pytest.fixture(autouse=True)
def no_heartbeats(monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 1e6)  # so that operations can be counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    training.train(toy.ToyDataset(), run, toy.preset(), steps=15)
    return run


def assert_same(run, whole):
    mine, theirs = toy.tensors(run), toy.tensors(whole)
    assert toy.losses(run) == toy.losses(whole)
    assert all(bool((mine[k] == theirs[k]).all()) for k in theirs)


# Who writes -----------------------------------------------------------------------------------------------------------


def _hook(event, arguments):
    base = _audited["under"]
    if base is None or not (event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
        return
    if not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    if not path.startswith(base):
        return
    frame, files = sys._getframe(1), set()
    while frame is not None:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    _audited["seen"].append(event)
    if not files & WRITERS:
        _audited["foreign"].append(f"{event} {path}")


@pytest.mark.case("J1")
def test_everything_under_the_base_is_written_by_the_store(tmp_path, monkeypatch):
    """Prepare, train with TensorBoard and previews, export, save a trace, under an audit."""
    monkeypatch.setattr(
        "svclib.features.extract.extract", lambda s, settings, progress=None: cheap_features.cheap_extract(s, settings)
    )
    sources = cheap_features.make_files(tmp_path / "audio", 2)
    base = tmp_path / "base"
    base.mkdir()
    sys.addaudithook(_hook)
    _audited.update(under=str(base), seen=[], foreign=[])
    try:
        dataset.prepare(sources, base / "datasets" / "a", cheap_features.SETTINGS)
        training.train(toy.ToyDataset(), base / "runs" / "a", toy.preset(), steps=10)
        training.export(base / "runs" / "a", base / "instruments" / "a.zip")
        traces.recorded()[0].save(base / "output" / "a.npz")
    finally:
        _audited["under"] = None
    lock = base / "datasets" / "a" / ".preparing.lock"  # empty; filelock makes and removes it, with its folder
    known = {f"os.mkdir {lock.parent}", f"open {lock.parent}", f"open {lock}", f"os.remove {lock}"}
    foreign = [one for one in _audited["foreign"] if one not in known]
    assert len(_audited["seen"]) > 100 and not foreign
    assert list((base / "runs" / "a" / "tensorboard").iterdir()) and list((base / "output").iterdir())


@pytest.mark.case("J1")
def test_no_other_module_opens_a_file_of_its_own_choice_for_writing():
    """Whatever else writes does so into a path it was handed by the store (by custom named ``part``), or outside."""
    allowed = {"utils/filesystem.py", "utils/atomic_store.py", "utils/workspace.py"}
    files = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).as_posix() not in allowed]
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            said = ast.unparse(node)
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            writes = called in ("write_bytes", "write_text", "unlink", "rename", "mkdir", "rmtree", "copyfile", "touch")
            writes |= called == "open" and any(m in ("w", "wb", "a", "ab", "x", "xb", "rb+") for m in modes)
            assert not writes or "part" in said or "self.local." in said, f"{path.name}, line {node.lineno}: {said}"


# In the middle of anything --------------------------------------------------------------------------------------------


def interrupted_at(tmp_path, monkeypatch, whole, numbers):
    for n in numbers:
        run, faulty = tmp_path / f"run-{n}", FaultyDisk(n, "interrupt")
        monkeypatch.setattr(filesystem, "active", faulty)
        with pytest.raises(KeyboardInterrupt):
            training.train(toy.ToyDataset(), run, toy.preset(), steps=15)
        monkeypatch.setattr(filesystem, "active", filesystem.Disk())
        training.train(toy.ToyDataset(), run, toy.preset(), steps=15)
        assert_same(run, whole)
        assert not list(run.glob("lease-*"))


def operations_of_a_run(tmp_path, monkeypatch):
    counting = FaultyDisk()
    monkeypatch.setattr(filesystem, "active", counting)
    training.train(toy.ToyDataset(), tmp_path / "counted", toy.preset(), steps=15)
    return counting


@pytest.mark.case("E3")
def test_interrupts_in_the_middle_of_some_operations(tmp_path, monkeypatch, whole):
    log = operations_of_a_run(tmp_path, monkeypatch).log
    writes = [i for i, name in enumerate(log, 1) if name == "write"]
    last = max(i for i, name in enumerate(log, 1) if name == "remove")  # of the lease, which was emptied before
    interrupted_at(tmp_path, monkeypatch, whole, [*random.Random(2).sample(writes, 2), last])


@pytest.mark.case("E3")
@pytest.mark.slow
def test_interrupts_in_the_middle_of_every_operation(tmp_path, monkeypatch, whole):
    total = operations_of_a_run(tmp_path, monkeypatch).count
    interrupted_at(tmp_path, monkeypatch, whole, range(1, total + 1))


@pytest.mark.case("F5")
@pytest.mark.parametrize("how", [errno.EIO, errno.ENOSPC, "interrupt"])
def test_every_operation_of_an_export_fails_once(tmp_path, whole, how):
    """A sentence or an interrupt, and whatever lies under a real name afterwards is a whole instrument."""
    with failing() as counter:
        good = training.export(whole, tmp_path / "count" / "a.zip").read_bytes()
    for n in range(1, counter.count + 1):
        folder = tmp_path / str(n)
        with failing(n, how):
            try:
                training.export(whole, folder / "a.zip")
            except (StorageError, TrainingError) as error:
                assert str(tmp_path) in str(error) or str(whole) in str(error), n
            except KeyboardInterrupt:
                pass
        for path in folder.glob("*.zip") if folder.is_dir() else ():
            assert path.read_bytes() == good, n
        assert training.export(whole, folder / "b.zip").read_bytes()[:2] == b"PK"


# Flipped bits ---------------------------------------------------------------------------------------------------------


def flips(path, count, seed=0):
    """The file with one bit flipped, count times; whole again at the end."""
    data, rng = path.read_bytes(), random.Random(seed)
    for bit in rng.sample(range(8 * len(data)), min(count, 8 * len(data))):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        yield bit
    path.write_bytes(data)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        cheap = cheap_features.cheap_extract
        patch.setattr("svclib.features.extract.extract", lambda s, settings, progress=None: cheap(s, settings))
        folder = tmp_path_factory.mktemp("data")
        sources = cheap_features.make_files(folder / "audio", 2)
        return dataset.prepare(sources, folder / "set", cheap_features.SETTINGS).path


@pytest.mark.case("J2")
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_dataset_is_noticed(prepared, count):
    """Of the manifest when the dataset is opened, of a shard when it is verified."""
    for bit in flips(prepared / "manifest.json", count):
        try:
            opened = dataset.Dataset.open(prepared)
        except (DatasetError, StorageError):
            continue
        pytest.fail(f"bit {bit} of the manifest changed to {opened.fingerprint}")
    shard = next(prepared.glob(shards.PATTERN))
    marked = next(m for m in atomic_store.find_marked(prepared, shards.PATTERN) if m.path == shard)
    assert all(atomic_store.verify(marked) for _ in flips(shard, count))
    assert dataset.Dataset.open(prepared).verify() == []


@pytest.mark.case("J2")
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_checkpoint_is_noticed(whole, count):
    newest = [c for c in training.checkpoints(whole) if c.kind == "last"][-1]
    assert all(atomic_store.verify(newest.marked) for _ in flips(newest.path, count))
    for _ in flips(atomic_store.marker_path(newest.path), count):  # a marker that still fits tells of the same state
        model, record = training.load_model(whole, "last")
        assert record["step"] in (10, 15)
    assert training.load_model(whole, "last")[1]["step"] == 15


@pytest.mark.case("J2")
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_a_trace(tmp_path, count):
    """Refused, or every array as it was: what a zip does not check (dates of its members) is not used."""
    path = traces.recorded(steps=3, frames=4)[0].save(tmp_path / "a.npz")
    good = trace.load(path)
    for bit in flips(path, count):
        try:
            found = trace.load(path)
        except ConversionError:
            continue
        assert found.info == good.info and found.n_calls == good.n_calls, bit
        for name in ("x_t", "x0_hat", "result", "t", "alpha", "sigma", "index", "low", "high"):
            assert (getattr(found, name) == getattr(good, name)).all(), (bit, name)


@pytest.mark.case("E6")
def test_a_run_json_that_is_damaged_never_begins_anew(tmp_path, whole):
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=5)
    (tmp_path / "run.json").write_bytes(b'{"run_id": ')
    (tmp_path / "checkpoints").rename(tmp_path / "late")
    (tmp_path / "metrics.jsonl").rename(tmp_path / "late.jsonl")
    with pytest.raises(TrainingError) as error:
        training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=15)
    assert_explains(error.value, path="run.json")
    (tmp_path / "late").rename(tmp_path / "checkpoints")
    (tmp_path / "late.jsonl").rename(tmp_path / "metrics.jsonl")
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=15)
    assert_same(tmp_path, whole)
