"""One run has one trainer, one log and one best: nothing is trained twice unnoticed, nothing of another made wrong.

Truths: an undisturbed run, bit by bit; bytes of copies before and after; the steps a run's own log lists; weights of
the checkpoints that remain.
"""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
from explaining import assert_explains

from svclib.training import api as training
from svclib.training import checkpoints, run_lock
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import TrainingError

SLEEPER = """
import sys, toy
from svclib.training import api as training
from svclib.training import run_lock, run_log
run_lock.HEARTBEAT_S = run_log.FLUSH_S = 0.2
slow = toy.ToyDataset()
slow.pause_s = 0.05
told = training.train(slow, sys.argv[1], toy.preset(), steps=40, on_progress=lambda s: print(s.step, flush=True))
print(told.reason, told.step, told.message)
"""


class At(toy.ToyDataset):
    """The toy; calls a function while the batch of a step is read."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def batch(self, seed, step, *args, **kwargs):
        if step == self.step:
            self.function()
        return super().batch(seed, step, *args, **kwargs)


# Two sessions, one run ------------------------------------------------------------------------------------------------


@pytest.mark.case("red 41")
@pytest.mark.skipif(os.name == "nt", reason="no SIGSTOP there")
def test_a_sleeper_that_wakes_trains_nothing_twice(tmp_path, monkeypatch):
    """A stopped process; another session takes its run to the end meanwhile, and nothing of it changes afterwards."""
    monkeypatch.setattr(run_lock, "WATCH_S", 0.5)
    monkeypatch.setattr(run_lock, "POLL_S", 0.05)
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    ) as sleeper:
        while int(sleeper.stdout.readline()) < 7:
            pass
        os.kill(sleeper.pid, signal.SIGSTOP)
        time.sleep(1.1)  # times of saving have whole seconds
        assert training.train(toy.ToyDataset(), run, toy.preset(), steps=40).reason == "finished"
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "lease" not in p.name}
        os.kill(sleeper.pid, signal.SIGCONT)
        said = sleeper.stdout.read().splitlines()[-1]
    assert said.startswith("elsewhere ") and "Another session" in said and int(said.split()[1]) < 12
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert {p: after[p] for p in before} == before and not list(run.glob("lease-*"))
    training.train(toy.ToyDataset(), tmp_path / "whole", toy.preset(), steps=40)
    assert toy.losses(run) == toy.losses(tmp_path / "whole")


def test_a_session_that_was_overtaken_keeps_no_best_and_no_previews(tmp_path):
    """It validates before it would save: nothing of that goes into a run that another session has ended."""
    training.train(toy.ToyDataset(), tmp_path / "whole", toy.preset(), steps=40)
    ended, _ = checkpoints.newest(tmp_path / "whole" / "checkpoints", None)
    run = tmp_path / "run"

    def save_elsewhere():
        time.sleep(1.1)  # times of saving have whole seconds
        record = {**ended.record, "run_id": checkpoints.run_identity(run)["run_id"]}
        checkpoints.save(run / "checkpoints", checkpoints.Checkpoint(record, ended.tensors), "last", "abcdef")

    result = training.train(At(8, save_elsewhere), run, toy.preset(save_every_steps=50), steps=40)
    assert (result.reason, result.step) == ("elsewhere", 10) and "Saved at step 0 of 40" in result.message
    assert [(c.kind, c.step) for c in training.checkpoints(run)] == [("last", 40)] and not training.previews(run)


@pytest.mark.case("red 14")
def test_a_process_of_another_container_is_not_taken_for_dead(tmp_path, monkeypatch):
    """Containers of one host share its name and boot, but not their process ids."""
    real, here = os.readlink, filesystem.process_scope()
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", lambda path, *a: "pid:[1]" if "ns/pid" in str(path) else real(path, *a))
        lock = run_lock.RunLock(tmp_path, "other")
        part = filesystem.part_path(tmp_path)
        assert filesystem.process_scope() != here
    lock._lock |= {"pid": 2**22 + 1, "seen": "x", "number": 1}
    atomic_store.write_json(lock.path, lock._lock)
    part = part.with_name(part.name.replace(f"~{os.getpid()}~", f"~{2**22 + 1}~"))
    part.write_bytes(b"half")
    assert not run_lock._dead("other", lock._lock)
    assert atomic_store.remove_parts(tmp_path) == 0 and part.read_bytes() == b"half"
    with run_lock.RunLock(tmp_path, "takes over", take_over=True) as taking:
        assert taking.taken_over == {"other"}
    monkeypatch.setattr(run_lock.RunLock, "_watch", lambda *_: None)  # no sign of life
    with run_lock.RunLock(tmp_path, "mine") as mine:
        assert mine.taken_over == set() and not lock.path.exists()
    assert run_lock._dead("mine", {**mine._lock, "pid": 2**22 + 1})
    for elsewhere in ("", "~"):  # sorted before and after this machine's
        assert not run_lock._dead("mine", {**mine._lock, "pid": 2**22 + 1, "boot": elsewhere})


# A run that changes its name -----------------------------------------------------------------------------------------


@pytest.mark.case("red 13")
def test_a_run_renamed_while_it_trains_is_noticed(tmp_path):
    run, renamed = tmp_path / "run", tmp_path / "better name"
    result = training.train(At(12, lambda: run.rename(renamed)), run, toy.preset(), steps=20)
    assert result.step == 20 and any("renamed, moved or deleted" in text for text in result.messages)
    identity = checkpoints.run_identity(run)
    assert identity["run_id"] == checkpoints.run_identity(renamed)["run_id"]  # both are runs
    assert [c.step for c in training.counting(renamed) if c.kind == "last"] == [5, 10]
    again = training.train(toy.ToyDataset(), run, toy.preset(), steps=25)
    assert "Going on from step 20" in " ".join(again.messages)


# Files of others, permissions, parts ----------------------------------------------------------------------------------


@pytest.mark.case("red 21")
def test_a_file_committed_anew_keeps_its_permissions(tmp_path):
    path = atomic_store.write_json(tmp_path / "run.json", 1)
    for mode in (0o600, 0o640):
        path.chmod(mode)
        atomic_store.write_json(path, mode)
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.case("red 21")
def test_parts_of_killed_exports_and_conversions_go_with_the_next_result(tmp_path):
    dead = tmp_path / filesystem.part_path(tmp_path, ".wav").name.replace(f"~{os.getpid()}~", f"~{2**22 + 1}~")
    living = filesystem.part_path(tmp_path, ".wav")
    for path in (dead, living):
        path.write_bytes(b"half a file")
    atomic_store.commit_new(tmp_path / "a.wav", lambda part: part.write_bytes(b"whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([living.name, "a.wav"])


def test_retention_deletes_no_file_of_another_run(tmp_path):
    """Two runs in one folder, as a copy by hand makes them: each prunes its own, also where its own are newer."""
    other = tmp_path / "other"
    training.train(toy.ToyDataset(), other, toy.preset(seed=5), steps=5)
    training.train(toy.ToyDataset(), tmp_path / "run", toy.preset(), steps=5)
    for path in (other / "checkpoints").iterdir():
        shutil.copy(path, tmp_path / "run" / "checkpoints")
    foreign = {p.name: p.read_bytes() for p in (other / "checkpoints").iterdir()}
    training.train(toy.ToyDataset(), tmp_path / "run", toy.preset(), steps=40)
    found = {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert {name: found.get(name) for name in foreign} == foreign
    assert [c.step for c in training.counting(tmp_path / "run") if c.kind == "last"] == [30, 35, 40]


def without_marker(run, **changes):
    """The newest checkpoint alone in its folder, without its marker, its record changed and sealed again."""
    newest, _ = checkpoints.newest(run / "checkpoints", None)
    for info in training.checkpoints(run):
        atomic_store.remove_marked(info.marked)
    saved = checkpoints.save(run / "checkpoints", checkpoints.Checkpoint({**newest.record, **changes}, newest.tensors))
    atomic_store.marker_path(saved.path).unlink()
    return saved.path


def test_an_unmarked_file_of_another_run_is_not_used(tmp_path):
    """Its own record names the run that it belongs to, where no marker does."""
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=5)
    without_marker(tmp_path, run_id="another")
    with pytest.raises(TrainingError) as caught:
        training.train(toy.ToyDataset(), tmp_path, toy.preset())
    assert_explains(caught.value, path=tmp_path / "checkpoints", remedy="another folder")
    assert "belongs to another run" in str(caught.value)


def test_an_unmarked_file_with_other_weights_is_not_used(tmp_path):
    """Its own checksum covers the weights, not only the record."""
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=5)
    path = without_marker(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainingError) as caught:
        training.train(toy.ToyDataset(), tmp_path, toy.preset())
    assert "do not match their checksum" in str(caught.value)


# What a run counts ----------------------------------------------------------------------------------------------------


@pytest.mark.case("red 32")
def test_the_best_of_an_abandoned_branch_does_not_count(tmp_path):
    """Held-out losses that always fall: the best of the first branch is its last step, which --from left behind."""
    settings = toy.preset(save_every_steps=5, validate_every_steps=5, keep_checkpoints=6)
    training.train(toy.ToyDataset(), tmp_path, settings, steps=30)
    abandoned = checkpoints.load_model(tmp_path, "best")[1]["step"]
    assert abandoned > 15  # the truth of this test
    training.train(toy.ToyDataset(), tmp_path, settings, steps=17, from_step=15)
    assert {c.step for c in training.counting(tmp_path)} <= {5, 10, 15, 17}
    record = checkpoints.load_model(tmp_path, "best")[1]
    assert (record["generation"], record["step"]) == (1, 17)
    training.train(toy.ToyDataset(), tmp_path, settings, steps=20)
    record = checkpoints.load_model(tmp_path, "best")[1]
    assert (record["generation"], record["step"]) == (1, record["metrics"]["best"][0]) and record["step"] in (17, 20)


@pytest.mark.case("red 32")
def test_a_best_before_the_branch_still_counts(tmp_path):
    scores = iter([0.9] + [0.1] * 20)
    settings = toy.preset(validate_every_steps=5)
    score = {"score": lambda model: {"score": next(scores)}}
    training.train(toy.ToyDataset(), tmp_path, settings, steps=20, **score)
    for from_step in (15, 16):  # the second branch goes on from the first
        training.train(toy.ToyDataset(), tmp_path, settings, steps=from_step + 1, from_step=from_step, **score)
        assert checkpoints.load_model(tmp_path, "best")[1]["step"] == 5


def test_branches_of_earlier_versions_are_read(tmp_path):
    """Markers without lineage: what was abandoned is what lies after the newer branch's first file."""
    settings = toy.preset(validate_every_steps=5, keep_checkpoints=6)
    training.train(toy.ToyDataset(), tmp_path, settings, steps=30)
    training.train(toy.ToyDataset(), tmp_path, settings, steps=17, from_step=15)
    for info in training.checkpoints(tmp_path):
        marker = {k: v for k, v in info.marked.info.items() if k != "lineage"}
        atomic_store.write_json(atomic_store.marker_path(info.path), marker)
    assert {15, 17} <= {c.step for c in training.counting(tmp_path)} <= {5, 10, 15, 17}
    assert training.train(toy.ToyDataset(), tmp_path, settings, steps=18).step == 18


@pytest.mark.parametrize("lineage", [3, "x", [3], [[1]], [["a", 1]], {"0": 1}])
def test_a_lineage_that_cannot_be_is_a_problem_of_that_file(tmp_path, lineage):
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=10)
    info = training.checkpoints(tmp_path)[-1]
    atomic_store.write_json(atomic_store.marker_path(info.path), {**info.marked.info, "lineage": lineage})
    assert training.checkpoints(tmp_path)[-1].problem and training.counting(tmp_path)[-1].path != info.path


# Names, not positions -------------------------------------------------------------------------------------------------


@pytest.mark.case("red 25")
def test_labels_of_preset_and_dataset_have_to_be_the_same(tmp_path):
    """Digits 3 and 7 are no part of a preset for 0 to 9: they would be trained as its first two."""
    from svclib.models.diffwave.model import DiffWaveSettings

    net = {"channels": 4, "n_layers": 2, "dilation_cycle": 2, "n_steps": 4, "fast_etas": (1e-2,)}
    model = DiffWaveSettings(condition="label", labels=tuple("0123456789"), **net)
    data = toy.ToyDataset()
    for labels in ([], ["3", "7"], list("123456789")):
        data.labels = labels
        with pytest.raises(TrainingError) as caught:
            training.train(data, tmp_path / "run", toy.preset(model=model), steps=1)
        assert_explains(caught.value, remedy="Prepare")
        assert all(label in str(caught.value) for label in labels) and not (tmp_path / "run").exists()
    real = toy.ToyDataset.batch
    data.labels = ["3", "7"]
    data.batch = lambda *a, **k: {**real(data, *a, **k), "label": torch.tensor([0, 1])}
    data.validation_batches = lambda *a: []
    fitting = dataclasses.replace(model, labels=("3", "7"))
    assert training.train(data, tmp_path / "run", toy.preset(model=fitting), steps=1).step == 1


@pytest.mark.case("red 19")
def test_a_renamed_singer_does_not_get_anothers_row(tmp_path):
    """Also where a changed dataset is allowed: rows of the singer table go by position."""
    import toy_diffusion

    preset = toy.preset(model=toy_diffusion.SETTINGS, features=toy_diffusion.FEATURES, segment_s=0.512)
    data = toy_diffusion.MelDataset()
    alone = data.statistics["singers"]["toy"]
    data.singers, data.statistics = ["ann", "zoe"], {**data.statistics, "singers": {"ann": alone, "zoe": alone}}
    training.train(data, tmp_path, preset, steps=1)
    data.singers, data.statistics = ["zoe", "zz"], {**data.statistics, "singers": {"zoe": alone, "zz": alone}}
    data.fingerprint = "toy-2"
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(TrainingError) as caught:
        training.train(data, tmp_path, preset, steps=2, allow_changed_dataset=True)
    assert_explains(caught.value, path=tmp_path, remedy="--init")
    assert "ann, zoe" in str(caught.value) and "zoe, zz" in str(caught.value)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
