"""Resuming is exact and nothing committed is lost.

The truth is an uninterrupted run of the same training: losses are compared as hexadecimal floats, final weights,
running mean and optimiser bit by bit. Faults come from outside: SIGKILL at random moments, signals, a disk whose
n-th operation fails, a full disk, flipped bits, cut, empty, missing and foreign files.
"""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors
import torch
import toy
from explaining import assert_explains
from faults import FaultyDisk

from svclib.models import instrument
from svclib.training import api as training
from svclib.training import checkpoints, run_lock
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import StorageError, TrainingError

SCRIPT = str(Path(__file__).parents[1] / "helpers" / "toy.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def no_heartbeats(monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 1e6)  # so that operations can be counted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 40 steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    training.train(toy.ToyDataset(), run, toy.preset())
    return run


def assert_same(run, whole):
    assert toy.losses(run) == toy.losses(whole)
    mine, theirs = toy.tensors(run), toy.tensors(whole)
    assert mine.keys() == theirs.keys()
    assert {k.split(".")[0] for k in mine} == {"model", "ema", "optimizer"}
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def committed(run):
    return sorted(c.step for c in training.checkpoints(run) if c.kind == "last" and c.problem is None)


def newest_file(run):
    return [c for c in training.checkpoints(run) if c.kind == "last"][-1].path


# Stopping and going on ------------------------------------------------------------------------------------------------


@pytest.mark.case("P15", "E7", "G3")
def test_many_short_sessions_equal_one_long(tmp_path, whole):
    for steps in (1, 4, 5, 13, 27, 40):
        assert training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=steps).step == steps
    assert_same(tmp_path, whole)
    again = training.train(toy.ToyDataset(), tmp_path, toy.preset())
    assert (again.step, again.reason) == (40, "finished") and len(toy.losses(tmp_path)) == 40


class Prefetched(toy.ToyDataset):
    """The toy, whose batches may be read in another thread."""

    thread_safe = True


def test_prefetched_batches_change_no_bit(tmp_path, whole):
    for steps in (1, 13, 40):
        assert training.train(Prefetched(), tmp_path, toy.preset(), steps=steps).step == steps
    assert_same(tmp_path, whole)
    assert not [t for t in threading.enumerate() if t.name.startswith("svclib-batches")]


def test_an_error_while_prefetching_stops_at_its_step(tmp_path, whole):
    class Failing(Prefetched):
        def batch(self, seed, step, *args, **kwargs):
            if step == 13:
                raise StorageError("The shard could not be read.")
            return super().batch(seed, step, *args, **kwargs)

    with pytest.raises(TrainingError, match="could not be read. Training stopped after step 12"):
        training.train(Failing(), tmp_path, toy.preset())
    assert committed(tmp_path)[-1] == 12
    training.train(Prefetched(), tmp_path, toy.preset())
    assert_same(tmp_path, whole)


LONG = [pytest.param("moment", 100, marks=pytest.mark.slow), pytest.param("operation", 60, marks=pytest.mark.slow)]


@pytest.mark.case("E1", "E2")
@pytest.mark.parametrize("where, kills", [("moment", 3), ("operation", 4), *LONG])
def test_killed_at_random(tmp_path, whole, where, kills):
    """SIGKILL at random moments, and death before, after and half-way through random file operations.

    A run that comes to its end before it died so often is followed by another one.
    """
    deaths, runs = 0, 0
    while deaths < kills and not (where == "operation" and runs):
        run, seed, runs = tmp_path / str(runs), random.randrange(10**6), runs + 1
        command = [sys.executable, SCRIPT, str(run), "40", str(kills - deaths), str(seed), where]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0 and " deaths" in done.stdout, f"seed {seed}: {done.stdout}{done.stderr}"
        assert int(done.stdout.split()[0]) > 0, "nothing died"
        deaths += int(done.stdout.split()[0])
        assert_same(run, whole)
        assert committed(run)[-1] == 40
        assert not list((run / "checkpoints").glob(f"{filesystem.PART_PREFIX}*"))


class Interrupting(toy.ToyDataset):
    """Sends this process signals while the batch of a step is read."""

    def __init__(self, step, *signals):
        self.at, self.signals = step, signals

    def batch(self, seed, step, *args, **kwargs):
        if step == self.at:
            for number in self.signals:
                os.kill(os.getpid(), number)
                time.sleep(0.001)
        return super().batch(seed, step, *args, **kwargs)


@pytest.mark.case("E3", "E4")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_finishes_the_step_and_saves(tmp_path, whole, number):
    before = signal.getsignal(number)
    result = training.train(Interrupting(13, number), tmp_path, toy.preset())
    assert (result.step, result.reason) == (13, "interrupted") and "go on" in result.message
    assert committed(tmp_path)[-1] == 13 and signal.getsignal(number) == before
    training.train(toy.ToyDataset(), tmp_path, toy.preset())
    assert_same(tmp_path, whole)


@pytest.mark.case("E3")
@pytest.mark.parametrize("times", [2, 20])
def test_a_second_interrupt_stops_at_once(tmp_path, whole, times):
    with pytest.raises(KeyboardInterrupt):
        training.train(Interrupting(13, *[signal.SIGINT] * times), tmp_path, toy.preset())
    assert committed(tmp_path)[-1] == 10
    training.train(toy.ToyDataset(), tmp_path, toy.preset())
    assert_same(tmp_path, whole)


def test_retention(tmp_path):
    settings = toy.preset(save_every_steps=35, validate_every_steps=50, batch_size=1, segment_s=0.128)
    training.train(toy.ToyDataset(), tmp_path, settings, steps=210)
    kinds = {}
    for c in training.checkpoints(tmp_path):
        kinds.setdefault(c.kind, []).append(c.step)
    assert kinds["last"] == [140, 175, 210] and kinds["history"] == [105, 210] and len(kinds["best"]) == 1
    curves = training.curves(tmp_path)
    best = curves["validation_step"][curves["validation_loss"].argmin()]
    assert kinds["best"] == [best]
    light, full = sorted(
        (c for c in training.checkpoints(tmp_path) if c.step == 210 and c.kind != "best"), key=lambda c: c.kind
    )
    assert {full.kind, light.kind} == {"last", "history"}
    sizes = {c.kind: c.path.stat().st_size for c in (full, light)}
    assert sizes["history"] < 0.5 * sizes["last"]  # no optimiser


@pytest.mark.case("E7")
def test_what_a_resumed_run_saves_stays(tmp_path):
    """Two disconnects in a row: work done after the first is there after the second (retention by step, not by age)."""
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=30)
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=36)
    assert committed(tmp_path) == [30, 35, 36]
    assert training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=37).step == 37


def test_from_an_earlier_step(tmp_path, whole):
    """Going on from an earlier checkpoint makes everything after it forgotten, also for the next session."""
    training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=30)
    training.train(toy.ToyDataset(), tmp_path, toy.preset(learning_rate=1e-3), steps=25, from_step=20)
    assert len(toy.losses(tmp_path)) == 25 and toy.losses(tmp_path)[22] != toy.losses(whole)[22]
    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(learning_rate=1e-3), steps=27)
    assert "step 25" in " ".join(result.messages) and result.step == 27
    with pytest.raises(TrainingError, match="no checkpoint of step 3; there are"):
        training.train(toy.ToyDataset(), tmp_path, toy.preset(), from_step=3)


@pytest.mark.case("E9")
def test_without_the_optimiser_it_starts_afresh_and_says_so(run_20):
    """Weights alone are left. The first step of a fresh Adam moves each weight by the learning rate (Kingma 2014)."""
    for found in training.checkpoints(run_20):
        if found.kind == "last":
            found.path.unlink()
            atomic_store.marker_path(found.path).unlink()
    best = next(c for c in training.checkpoints(run_20) if c.kind == "best")
    before = checkpoints.unpack(best.path).tensors
    result = training.train(toy.ToyDataset(), run_20, toy.preset(), steps=best.step + 1)
    assert "weights only: the optimiser starts afresh" in " ".join(result.messages) and result.step == best.step + 1
    after, rate = toy.tensors(run_20), toy.preset().training.learning_rate
    moved = torch.cat([(after[k.replace("ema.", "model.", 1)] - v).abs().flatten() for k, v in before.items()])
    assert moved.max() < 1.01 * rate and (moved > 0.9 * rate).float().mean() > 0.8
    assert {float(v) for k, v in after.items() if k.endswith(".step")} == {1.0}


# A disk that fails ----------------------------------------------------------------------------------------------------


def operations_of_a_run(tmp_path, monkeypatch):
    counting = FaultyDisk()
    monkeypatch.setattr(filesystem, "active", counting)
    training.train(toy.ToyDataset(), tmp_path / "counted", toy.preset(), steps=15)
    return counting.count


def fail_once(tmp_path, monkeypatch, whole, numbers):
    for n in numbers:
        run, failing = tmp_path / f"run-{n}", FaultyDisk(n)
        monkeypatch.setattr(filesystem, "active", failing)
        try:
            result = training.train(toy.ToyDataset(), run, toy.preset(), steps=15)
            assert result.step == 15
            quiet = ("remove", "open", "read", "stat")  # tidying up, or a marker looked at: nothing is lost by these
            assert result.messages or failing.log[n - 1] in quiet, failing.log[n - 1]
        except (TrainingError, OSError) as error:
            assert failing.count < 60 and str(run) in str(error), f"operation {n} ({failing.log[n - 1]}): {error}"
        monkeypatch.setattr(filesystem, "active", filesystem.Disk())
        training.train(toy.ToyDataset(), run, toy.preset())
        assert_same(run, whole)


def test_some_operations_fail_once(tmp_path, monkeypatch, whole):
    monkeypatch.setattr("svclib.training.checkpoint_writer.RETRY_S", 0.0)
    total = operations_of_a_run(tmp_path, monkeypatch)
    fail_once(tmp_path, monkeypatch, whole, random.Random(1).sample(range(1, total + 1), 4))


@pytest.mark.case("F5")
@pytest.mark.slow
def test_every_operation_fails_once(tmp_path, monkeypatch, whole):
    monkeypatch.setattr("svclib.training.checkpoint_writer.RETRY_S", 0.0)
    total = operations_of_a_run(tmp_path, monkeypatch)
    fail_once(tmp_path, monkeypatch, whole, range(1, total + 1))


@pytest.mark.case("F5")
@pytest.mark.parametrize("share", [0.6, pytest.param(0.8, marks=pytest.mark.slow)])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, whole, share):
    at = round(operations_of_a_run(tmp_path, monkeypatch) * share)
    monkeypatch.setattr(filesystem, "active", FaultyDisk(at, how=errno.ENOSPC, stays=True))
    said = []
    with pytest.raises(TrainingError, match=r"Step 15 was reached but could not be saved \(No space left"):
        training.train(toy.ToyDataset(), tmp_path / "run", toy.preset(), steps=15, on_progress=said.append)
    assert any("MB are free" in s.message and "Training goes on" in s.message for s in said)
    monkeypatch.setattr(filesystem, "active", filesystem.Disk())
    kept = committed(tmp_path / "run")
    assert kept and kept[-1] in (5, 10)
    result = training.train(toy.ToyDataset(), tmp_path / "run", toy.preset())
    assert f"from step {kept[-1]}" in " ".join(result.messages)
    assert_same(tmp_path / "run", whole)


# Broken files ---------------------------------------------------------------------------------------------------------


def flip_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


BREAK = {
    "cut": lambda p: os.truncate(p, p.stat().st_size // 2),
    "empty": lambda p: os.truncate(p, 0),
    "flipped bit": lambda p: flip_bit(p, random.Random(0)),
    "marker gone": lambda p: atomic_store.marker_path(p).unlink(),
    "file gone": lambda p: p.unlink(),
    "marker cut": lambda p: os.truncate(atomic_store.marker_path(p), 20),
}


@pytest.fixture(scope="module")
def run20(tmp_path_factory):
    run = tmp_path_factory.mktemp("run20")
    training.train(toy.ToyDataset(), run, toy.preset(), steps=20)
    return run


@pytest.fixture
def run_20(run20, tmp_path):
    return Path(shutil.copytree(run20, tmp_path / "copy"))


@pytest.mark.case("E5")
@pytest.mark.parametrize("how", BREAK)
def test_a_broken_newest_checkpoint_means_the_one_before(run_20, whole, how):
    path = newest_file(run_20)
    BREAK[how](path)
    result = training.train(toy.ToyDataset(), run_20, toy.preset())
    said = " ".join(result.messages)
    assert path.name in said and "from step 15" in said
    assert_same(run_20, whole)


def test_flipped_bits_anywhere_lose_nothing(run_20, tmp_path, whole):
    """One bit in every file of a run: previews, log, markers, checkpoints other than one; the end is the same."""
    rng = random.Random(3)
    keep = newest_file(run_20).stem
    for path in sorted(p for p in run_20.rglob("*") if p.is_file()):
        if not path.name.startswith(keep) and path.name not in ("run.json", "metrics.jsonl"):
            flip_bit(path, rng)
    training.train(toy.ToyDataset(), run_20, toy.preset())
    assert_same(run_20, whole)


@pytest.mark.case("E6")
def test_nothing_usable_stops_and_deletes_nothing(run_20):
    for c in training.checkpoints(run_20):
        os.truncate(c.path, 100)
    before = {p: p.read_bytes() for p in run_20.rglob("*") if p.is_file()}
    with pytest.raises(TrainingError, match="none can be used.*Nothing was changed.*another folder"):
        training.train(toy.ToyDataset(), run_20, toy.preset())
    assert before == {p: p.read_bytes() for p in run_20.rglob("*") if p.is_file()}


@pytest.mark.case("F6")
def test_a_listing_that_is_empty_for_a_while_never_starts_over(run_20, whole):
    shutil.move(run_20 / "checkpoints", run_20 / "elsewhere")
    with pytest.raises(TrainingError, match="its log says that step 20 was saved"):
        training.train(toy.ToyDataset(), run_20, toy.preset())
    shutil.move(run_20 / "elsewhere", run_20 / "checkpoints")
    training.train(toy.ToyDataset(), run_20, toy.preset())
    assert_same(run_20, whole)


def test_only_unmarked_files_left(run_20, whole):
    """Killed between a first checkpoint and its marker: the file's own checksum vouches for it."""
    for c in training.checkpoints(run_20):
        atomic_store.marker_path(c.path).unlink()
    result = training.train(toy.ToyDataset(), run_20, toy.preset())
    assert "matches its own checksum" in " ".join(result.messages)
    assert_same(run_20, whole)


def test_an_unmarked_file_whose_weights_changed_is_not_used(run_20, whole):
    """Nothing but the file's own checksum can notice it: the header and the sizes are as they were."""
    for c in training.checkpoints(run_20):
        atomic_store.marker_path(c.path).unlink()
    newest = newest_file(run_20)
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    result = training.train(toy.ToyDataset(), run_20, toy.preset())
    assert f"{newest.name}" in " ".join(result.messages) and "checksum" in " ".join(result.messages)
    assert_same(run_20, whole)


@pytest.mark.case("E5", "E11", "F8")
def test_a_foreign_checkpoint_is_passed_over(run_20, tmp_path, whole):
    training.train(toy.ToyDataset(), tmp_path / "other", toy.preset(seed=5), steps=35)
    foreign = newest_file(tmp_path / "other")
    for path in (foreign, atomic_store.marker_path(foreign)):
        shutil.copy(path, run_20 / "checkpoints")
    shutil.copy(newest_file(run_20), run_20 / "checkpoints" / "ck-00000099-x (1).safetensors")
    result = training.train(toy.ToyDataset(), run_20, toy.preset())
    assert f"{foreign.name}: it belongs to another run" in " ".join(result.messages)
    assert_same(run_20, whole)
    assert (run_20 / "checkpoints" / foreign.name).stat().st_size > 0


def test_run_json_may_be_lost(run_20, whole):
    (run_20 / "run.json").unlink()
    training.train(toy.ToyDataset(), run_20, toy.preset())
    assert_same(run_20, whole)


def test_a_torn_log_line_does_no_harm(run_20, whole):
    with open(run_20 / "metrics.jsonl", "ab") as log:
        log.write(b'{"step": 21, "lo')
    training.train(toy.ToyDataset(), run_20, toy.preset())
    assert_same(run_20, whole)


# Other settings, other data -------------------------------------------------------------------------------------------


@pytest.mark.case("D4")
def test_another_architecture_is_refused(run_20):
    import dataclasses

    other = toy.preset(model=dataclasses.replace(toy.MODEL, n_harmonics=9))
    with pytest.raises(TrainingError, match="n_harmonics 6 there, 9 here.*another folder"):
        training.train(toy.ToyDataset(), run_20, other)
    assert committed(run_20) == [10, 15, 20]


@pytest.mark.case("D4", "E8")
def test_other_training_settings_are_told(run_20):
    result = training.train(toy.ToyDataset(), run_20, toy.preset(save_every_steps=7), steps=22)
    assert "save_every_steps 5 there, 7 here" in " ".join(result.messages)
    assert result.step == 22


@pytest.mark.case("E8")
def test_what_a_gpu_in_half_precision_saved_goes_on_without_one(run_20, whole):
    """Its file names another device and carries a loss scaler's state; weights and optimiser are numbers like any."""
    newest, _ = checkpoints.newest(run_20 / "checkpoints", None)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict()
    record = {**newest.record, "device": "cuda", "scaler": scaler}
    for found in training.checkpoints(run_20):
        atomic_store.remove_marked(found.marked)
    checkpoints.save(run_20 / "checkpoints", checkpoints.Checkpoint(record, newest.tensors))
    result = training.train(toy.ToyDataset(), run_20, toy.preset())
    assert [t for t in result.messages if "device" in t] == [
        "Another device or version than last time: the result is as good, but not bit-identical."
    ]
    assert_same(run_20, whole)  # the arithmetic was this machine's before and after
    again, _ = checkpoints.newest(run_20 / "checkpoints", None)
    assert (again.record["device"], again.record["scaler"]) == ("cpu", None)


@pytest.mark.case("field F12")
@pytest.mark.parametrize("steps", [12, 20])
def test_a_run_that_is_beyond_the_steps_asked_for_says_so(run_20, steps):
    before = {p.name for p in (run_20 / "checkpoints").iterdir()}
    result = training.train(toy.ToyDataset(), run_20, toy.preset(), steps=steps)
    assert result.step == 20 and {p.name for p in (run_20 / "checkpoints").iterdir()} == before
    assert "Nothing was trained" in result.message and "above 20" in result.message
    assert not any("Going on" in text or "Finished" in text for text in result.messages)


@pytest.mark.case("field F8")
def test_a_voice_without_notes_is_asked_about(tmp_path):
    """Whispered, or beyond the tracker's range: no instrument is begun unasked."""
    data = toy.ToyDataset()
    nothing = {**toy.STATISTICS, "f0_midi": dict.fromkeys(("mean_note", "std_note", "min_note", "max_note"))}
    data.statistics = {**toy.STATISTICS, "singers": {"loud": toy.STATISTICS, "whisper": nothing}}
    with pytest.raises(TrainingError, match="whisper") as error:
        training.train(data, tmp_path / "run", toy.preset(), steps=2)
    assert_explains(error.value, remedy="--allow-unpitched")
    assert not (tmp_path / "run").exists()
    assert training.train(data, tmp_path / "run", toy.preset(), steps=2, allow_unpitched=True).step == 2
    assert training.train(data, tmp_path / "run", toy.preset(), steps=3).step == 3  # it was asked once


@pytest.mark.case("field F1")
def test_another_search_range_of_the_tracker_is_no_other_model(run_20, whole):
    """The default was 1100 Hz once: such a run goes on, on its own dataset and on one measured anew."""
    preset, data = toy.preset(), toy.ToyDataset()
    older = dataclasses.replace(preset.features, f0_max_hz=1100.0)
    data.settings = older
    result = training.train(data, run_20, dataclasses.replace(preset, features=older))
    assert result.step == 40
    assert_same(run_20, whole)


@pytest.mark.case("E10", "field F9")
def test_a_changed_dataset_needs_a_decision(run_20):
    data = toy.ToyDataset()
    data.fingerprint = "toy-2"
    data.recordings = [{"name": "a.wav", "sha256": "cc" * 32}, {"name": "c.wav", "sha256": "dd" * 32}]
    with pytest.raises(TrainingError, match="1 recordings added, 1 removed, 1 changed") as error:
        training.train(data, run_20, toy.preset())
    assert_explains(error.value, path=run_20, remedy="--allow-changed-dataset")
    assert f"{run_20.name} 2" in str(error.value)
    result = training.train(data, run_20, toy.preset(), steps=22, allow_changed_dataset=True)
    assert result.step == 22 and "as asked" in " ".join(result.messages)
    assert training.train(data, run_20, toy.preset(), steps=23).step == 23


def test_a_checkpoint_survives_packing(run20):
    found, told = checkpoints.newest(run20 / "checkpoints", None)
    assert told == [] and found.record["step"] == 20
    assert found.record["preset"]["text"] == "# the gin text of the toy"
    assert found.record["preset"]["model"]["n_harmonics"] == 6 and found.record["preset"]["training"]["seed"] == 0
    assert found.record["statistics"] == toy.STATISTICS
    steps = found.part("optimizer")["0.step"]
    assert float(steps) == 20.0


def test_the_file_is_what_safetensors_reads(tmp_path):
    """Every kind of number, no dimension, nothing, parts of others."""
    generator = torch.Generator().manual_seed(0)
    dtypes = "float64 float32 bfloat16 float16 int64 int32 uint8 bool".split()
    tensors = {
        f"{name}.{i}": torch.randint(0, 2, shape, generator=generator).to(getattr(torch, name))
        for i, shape in enumerate([(), (0, 3), (5,), (3, 1_000, 700)])
        for name in dtypes
    }
    tensors["turned"] = torch.randn(4, 6, generator=generator).T[1:, ::2]
    record = {"format": checkpoints.FORMAT, "format_version": 1, "who": "ü \u2028 <b>"}
    data = checkpoints.pack(checkpoints.Checkpoint(record, tensors))
    path = atomic_store.commit_bytes(tmp_path / "x.safetensors", *data)
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["record"]) == record and set(file.keys()) == set(tensors)
        for name, wanted in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == wanted.dtype and found.shape == wanted.shape and torch.equal(found, wanted), name
    back = checkpoints.unpack(path)
    assert back.record == record and all(torch.equal(back.tensors[name], wanted) for name, wanted in tensors.items())


def test_a_checkpoint_is_read_back_once(run20, tmp_path, monkeypatch):
    """Its hash is that of the bytes in memory; only what the disk holds is read."""
    found, _ = checkpoints.newest(run20 / "checkpoints", None)
    n_bytes = []

    class Counting(filesystem.Disk):
        def read(self, file, n):
            n_bytes.append(len(data := super().read(file, n)))
            return data

    monkeypatch.setattr(filesystem, "active", Counting())
    saved = checkpoints.save(tmp_path, found)
    assert sum(n_bytes) == saved.path.stat().st_size == saved.marked.info["bytes"]
    assert checkpoints.newest(tmp_path, None)[0].record["step"] == 20


# Large datasets -------------------------------------------------------------------------------------------------------


class LargeDataset(toy.ToyDataset):
    """The toy with the names of 25,000 recordings and the statistics of 420 singers."""

    recordings = [{"name": f"digits/{i:05d}.wav", "sha256": f"{i:064x}"} for i in range(25_000)]
    singers = [f"singer {i:03d}" for i in range(420)]
    one_singer = {k: v for k, v in toy.STATISTICS.items() if k not in ("singers", "log_mel")}
    one_singer = {**one_singer, "loudness_quantiles_db": [round(-80 + 0.0789 * i, 4) for i in range(1000)]}
    statistics = {**toy.STATISTICS, "singers": dict.fromkeys(singers, one_singer)}


def test_checkpoints_of_large_datasets_can_be_read(tmp_path):
    """More keys and values than an untrusted file may have: the run resumes and exports."""
    training.train(LargeDataset(), tmp_path, toy.preset(), steps=5)
    assert training.train(LargeDataset(), tmp_path, toy.preset(), steps=6).step == 6
    model, record = checkpoints.load_model(tmp_path, "last")
    assert len(record["dataset"]["recordings"]) == 25_000 and record["statistics"] == LargeDataset.statistics
    made = instrument.open(training.export(tmp_path, tmp_path / "large.zip", which="last"))
    assert made.statistics == LargeDataset.statistics
    assert all(torch.equal(v, made.model.state_dict()[k]) for k, v in model.state_dict().items())
