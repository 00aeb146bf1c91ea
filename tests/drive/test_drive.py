"""A training on a Google Drive that misbehaves ends with the bits of an undisturbed one, or with a sentence.

The Drive is ``fakedrive.FakeDrive``; trainer and exporter are the real ones. After every fault: the run goes on from a
state at most two save intervals old (losses and weights then equal those of an undisturbed run bit by bit), or says
what is the matter and has changed nothing. A run never begins anew where there was one.
"""

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from drive_runs import (
    INTERVAL,
    assert_same,
    assert_same_state,
    committed,
    other_machine,
    resumed_at,
    run_of,
    saves_of,
    train,
)
from explaining import assert_explains
from fakedrive import random_loss

from svclib.models import instrument
from svclib.training import api as training
from svclib.training import checkpoint_writer, checkpoints, resume, run_lock
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import StorageError, TrainingError


class Happening(toy.ToyDataset):
    """Calls functions while the batches of given steps are read."""

    def __init__(self, events):
        self.events = events

    def batch(self, seed, step, *args, **kwargs):
        self.events.get(step, lambda: None)()
        return super().batch(seed, step, *args, **kwargs)


# Uploads that never arrive --------------------------------------------------------------------------------------------


@pytest.mark.case("F7")
@pytest.mark.parametrize("n_saves, half", [(0, True), (1, False), (1, True)])
def test_the_last_uploads_never_arrive(drive, whole, n_saves, half):
    """A disconnect while the newest checkpoints were on their way: whole, cut in half, or not there at all."""
    train(drive, 20)
    lost = len(drive.queue) - (saves_of(drive)[-1 - n_saves] + 1 if n_saves else len(drive.queue))
    drive.new_machine(lost, half)
    result = train(drive)
    assert resumed_at(result) >= 20 - 2 * INTERVAL, result.messages
    assert_same(run_of(drive), whole)


@pytest.mark.case("F7")
@pytest.mark.slow
def test_every_number_of_lost_uploads(drive, whole, tmp_path):
    """The machine is lost after each single upload of three save intervals, with the last one whole or in half."""
    train(drive, 20)
    cloud, queue, saves = dict(drive.cloud), list(drive.queue), saves_of(drive)
    for arrived in range(saves[1], len(queue) + 1):  # one is whole by then; before that a sentence says so
        for half in (False, True):
            drive.cloud, drive.queue = dict(cloud), list(queue)
            drive.new_machine(len(queue) - arrived, half)
            result = train(drive)
            reached = INTERVAL * sum(s < arrived for s in saves)
            assert resumed_at(result) >= reached - 2 * INTERVAL, (arrived, half, result.messages)
            assert_same_state(run_of(drive), whole)


@pytest.mark.case("F7")
def test_uploads_in_no_order(drive, whole):
    train(drive, 20)
    drive.new_machine(keep=random_loss(random.Random(5), 0.3))
    try:
        result = train(drive)
    except TrainingError as error:
        assert "checkpoint" in str(error)
    else:
        assert resumed_at(result) > 0
        assert_same_state(run_of(drive), whole)


# Files that show themselves late --------------------------------------------------------------------------------------


@pytest.mark.case("F6")
def test_a_listing_that_comes_late_never_begins_anew(drive, whole):
    """Nothing of the checkpoints shows; then not even the log; then only the newest two are missing."""
    train(drive, 20)
    drive.new_machine()
    for hidden in ("checkpoints",), ("checkpoints", "metrics.jsonl"):
        drive.hidden = lambda path, hidden=hidden: bool(set(hidden) & set(path.parts))
        with pytest.raises(TrainingError) as error:
            train(drive)
        assert_explains(error.value, path=run_of(drive) / "checkpoints", remedy="wait")
    drive.hidden = lambda path: path.name.startswith(("ck-00000020", "ck-00000015"))
    result = train(drive, 12)
    assert resumed_at(result) == 10
    drive.hidden = lambda path: False
    result = train(drive)  # the newest are there again and newer than what was made meanwhile
    assert resumed_at(result) == 20
    assert_same_state(run_of(drive), whole)


def test_a_new_run_on_drive_says_so(drive):
    assert "A new run begins" in " ".join(train(drive, 1).messages)


# A mount that drops ---------------------------------------------------------------------------------------------------


@pytest.mark.case("F2", "F4")
@pytest.mark.parametrize("error", [errno.ENOTCONN, errno.EDQUOT])
def test_away_for_a_while(drive, whole, error):
    """The mount drops, or the quota is used up, for two saves: training says so, goes on, and catches up."""

    def away():
        drive.dropped = error == errno.ENOTCONN
        drive.quota = None if drive.dropped else drive.used_bytes()

    def back():
        drive.dropped, drive.quota = False, None

    result = training.train(Happening({12: away, 23: back}), run_of(drive), toy.preset(), steps=30)
    said = " ".join(result.messages)
    assert "Training goes on. Step 15 is kept on this machine only" in said and "can be written again" in said
    assert ("MB are free" in said and "trash" in said) == (error == errno.EDQUOT)
    assert result.reason == "finished" and "machine only" not in result.message
    assert_same(run_of(drive), whole)
    assert committed(run_of(drive))[-1] == 30
    assert not checkpoint_writer.local_folder(run_of(drive)).exists()
    curves = training.curves(run_of(drive))
    assert list(curves["step"]) == list(range(1, 31))


@pytest.mark.case("F2")
def test_away_to_the_end_and_home_with_the_next_session(drive, whole):
    def away():
        drive.dropped = True

    result = training.train(Happening({12: away}), run_of(drive), toy.preset(), steps=25)
    assert result.step == 25 and "on this machine only" in result.message and "Run the same again" in result.message
    with pytest.raises((TrainingError, StorageError)) as error:
        train(drive)
    assert_explains(error.value, remedy="Drive connection")
    drive.dropped = False
    result = train(drive)
    assert resumed_at(result) == 25 and "were copied to" in " ".join(result.messages)
    assert_same(run_of(drive), whole)
    assert len(toy.losses(run_of(drive))) == 30


@pytest.mark.case("F4")
def test_kept_here_counts_although_home_is_still_full(drive, whole):
    """The next session finds Drive still full: it goes on from what lies on this machine."""

    def full():
        drive.quota = drive.used_bytes()

    training.train(Happening({12: full}), run_of(drive), toy.preset(), steps=20)
    drive.quota = drive.used_bytes() + 4000  # room for a lease, not for a checkpoint
    result = train(drive, 25)
    assert resumed_at(result) == 20 and "lies on this machine only" in " ".join(result.messages)
    drive.quota = None
    train(drive)
    assert_same_state(run_of(drive), whole)


def test_an_earlier_step_that_lies_on_this_machine_only(drive, whole):
    """Drive shows nothing of the run's checkpoints; going on from the kept step is asked for by its number."""

    def full():
        drive.quota = drive.used_bytes()

    training.train(Happening({12: full}), run_of(drive), toy.preset(), steps=20)
    for found in training.checkpoints(run_of(drive)):
        found.path.unlink()
        atomic_store.marker_path(found.path).unlink()
    drive.quota = drive.used_bytes() + 4000
    result = training.train(toy.ToyDataset(), run_of(drive), toy.preset(), steps=25, from_step=20)
    assert resumed_at(result) == 20 and "lies on this machine only" in " ".join(result.messages)
    drive.quota = None
    train(drive)
    assert_same_state(run_of(drive), whole)


@pytest.mark.case("F1")
def test_an_unmounted_drive_is_not_written_into(drive, whole):
    """The mount is gone, not only silent: nothing is made under its path, or it could not be mounted again."""
    elsewhere = drive.mount.parent.with_name("server")

    def unmount():
        drive.mount.rename(elsewhere)
        drive.mount.parent.rmdir()

    result = training.train(Happening({12: unmount}), run_of(drive), toy.preset(), steps=20)
    assert "machine only" in result.message and not drive.mount.parent.exists()
    with pytest.raises((TrainingError, StorageError)) as error:
        train(drive)
    assert_explains(error.value, remedy="Drive")
    assert not drive.mount.parent.exists()
    drive.mount.parent.mkdir()
    elsewhere.rename(drive.mount)
    assert resumed_at(train(drive)) == 20
    assert_same(run_of(drive), whole)


@pytest.mark.case("F3")
@pytest.mark.parametrize("name", ["write", "replace", "names", "read", "stat"])
def test_passing_errors_are_not_even_told(drive, whole, name):
    def failing():
        drive.failing[name] = [errno.EIO, 1]

    result = training.train(Happening({9: failing, 14: failing}), run_of(drive), toy.preset(), steps=15)
    assert committed(run_of(drive)) == [5, 10, 15]
    assert result.reason == "finished"


def test_errors_that_outlast_every_retry_do_not_send_a_run_back(drive, whole, monkeypatch):
    """Nine reads in a row fail when the run is taken up again; a second look finds the newest checkpoint after all."""
    train(drive, 20)
    waited, found = [], checkpoints.newest

    def newest(*args):
        if not waited:
            drive.failing["read"] = [errno.ENOTCONN, 3 * (1 + len(filesystem.DRIVE_PAUSES_S))]
        return found(*args)

    monkeypatch.setattr("svclib.training.resume.newest", newest)
    monkeypatch.setattr("svclib.training.resume.time.sleep", waited.append)
    result = train(drive)
    assert resumed_at(result) == 20 and resume.RETRY_AFTER_S in waited, result.messages
    assert_same(run_of(drive), whole)


def test_a_second_look_that_fails_takes_nothing_away(drive, whole, monkeypatch):
    """The newest file is damaged and Drive drops before the second look: the run goes on from the one before."""
    train(drive, 20)
    newest_file = [c for c in training.checkpoints(run_of(drive)) if c.kind == "last"][-1].path
    newest_file.write_bytes(newest_file.read_bytes()[:-1] + b"?")
    looks, found = [], checkpoints.newest

    def newest(*args):
        looks.append(args)
        if len(looks) == 2:
            raise TrainingError("none can be used")
        return found(*args)

    monkeypatch.setattr("svclib.training.resume.newest", newest)
    assert resumed_at(train(drive)) == 15 and len(looks) == 2
    assert_same(run_of(drive), whole)


# Quota and trash ------------------------------------------------------------------------------------------------------


@pytest.mark.case("F10")
def test_what_retention_deletes_weighs_nothing_in_the_trash(drive, monkeypatch):
    monkeypatch.setattr(checkpoints, "UPLOAD_LAG_S", 0.0)
    small = toy.preset(save_every_steps=1, validate_every_steps=1000, batch_size=1, segment_s=0.128)
    training.train(toy.ToyDataset(), run_of(drive), small, steps=25)
    size = max(p.stat().st_size for p in run_of(drive).rglob("ck-*.safetensors"))
    assert committed(run_of(drive)) == [23, 24, 25]
    assert drive.trash_bytes < 0.1 * size
    checkpoint_bytes = sum(p.stat().st_size for p in run_of(drive).rglob("*.safetensors"))
    assert checkpoint_bytes + drive.trash_bytes <= (3 + 2) * size


@pytest.mark.case("F10")
def test_what_may_not_be_uploaded_yet_stays(drive):
    """Half an hour of checkpoints stays on Drive, up to three times as many as elsewhere: 3 kept + 6 spared."""
    small = toy.preset(save_every_steps=1, validate_every_steps=1000, batch_size=1, segment_s=0.128)
    training.train(toy.ToyDataset(), run_of(drive), small, steps=12)
    assert committed(run_of(drive)) == list(range(4, 13))


@pytest.mark.case("J8")
def test_retention_touches_only_what_svclib_named(drive, monkeypatch):
    monkeypatch.setattr(checkpoints, "UPLOAD_LAG_S", 0.0)
    train(drive, 5)
    folder = run_of(drive) / "checkpoints"
    mine = folder / "ck-00000001-before the concert.safetensors"
    mine.write_bytes(b"a copy somebody made")
    torn = folder / "ck-00000002-abcdef.safetensors"
    torn.write_bytes(b"half a checkpoint")
    train(drive, 25)
    assert mine.read_bytes() == b"a copy somebody made" and not torn.exists()


# The instrument -------------------------------------------------------------------------------------------------------


@pytest.mark.case("F4")
def test_export_on_a_drive_that_fails(drive, whole, monkeypatch):
    """Each operation of an export fails for good once: a sentence and no half instrument; then it is whole."""
    train(drive, 10)
    out = drive.mount / "svclib" / "instruments" / "voice.zip"
    before = drive.count
    path = training.export(run_of(drive), out)
    n_operations = drive.count - before
    good = path.read_bytes()
    path.unlink()

    def drop():
        drive.dropped = True

    for n in random.Random(0).sample(range(1, n_operations + 1), 6):
        drive.at = {drive.count + n: drop}
        try:
            training.export(run_of(drive), out)
        except (TrainingError, StorageError) as error:
            assert "Drive connection" in str(error) or "cannot be read" in str(error)
        drive.dropped, drive.at = False, {}
        for found in out.parent.glob("*.zip") if out.parent.is_dir() else ():
            if found.stat().st_size:  # else only the name was taken when the mount dropped
                instrument.open(found)
            found.unlink()
    drive.quota = drive.used_bytes() + 1000
    with pytest.raises(StorageError) as error:
        training.export(run_of(drive), out)
    assert error.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert_explains(error.value, remedy="trash")
    assert not list(out.parent.glob("*.zip"))
    drive.quota = None
    assert training.export(run_of(drive), out).read_bytes() == good


# Two machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.case("G1", "G6")
@pytest.mark.parametrize("seen", ["2026-11-21T13:52:00Z", "1999-01-01T00:00:00Z", "2199-01-01T00:00:00Z"])
def test_a_machine_that_lives_is_noticed_whatever_its_clock_says(drive, monkeypatch, seen):
    monkeypatch.setattr(run_lock, "POLL_S", 0.01)
    beats = iter(range(2, 100))
    monkeypatch.setattr(run_lock.time, "sleep", lambda s: other_machine(run_of(drive), next(beats), seen=seen))
    other_machine(run_of(drive), seen=seen)
    before = {p.name for p in run_of(drive).iterdir()}
    with pytest.raises(TrainingError) as error:
        train(drive)
    assert "colab-a (process 7) since 2026-11-21 13:40:00 UTC" in str(error.value)
    assert_explains(error.value, remedy="take over")
    assert {p.name for p in run_of(drive).iterdir()} == before, "nothing was written"


@pytest.mark.case("G1")
@pytest.mark.parametrize("seen", ["2026-11-21T13:52:00Z", "2199-01-01T00:00:00Z"])
def test_a_machine_that_is_gone_keeps_nobody_out(drive, monkeypatch, seen):
    monkeypatch.setattr(run_lock, "WATCH_S", 0.05)
    monkeypatch.setattr(run_lock, "POLL_S", 0.01)
    other_machine(run_of(drive), seen=seen)
    result = train(drive, 3)
    assert result.step == 3 and "whether it is still alive" in " ".join(result.messages)
    assert not list(run_of(drive).glob("lease-*"))


@pytest.mark.case("G3")
def test_a_dead_process_of_this_machine_is_not_waited_for(drive, monkeypatch):
    monkeypatch.setattr(run_lock.RunLock, "_watch", lambda *_: pytest.fail("waited"))
    other_machine(run_of(drive), boot=filesystem.process_scope(), pid=2**22 + 1)
    (run_of(drive) / "lease-torn.json").write_text('{"beat": 1')
    assert train(drive, 1).step == 1


@pytest.mark.case("G1")
def test_who_is_taken_over_saves_and_stops(tmp_path, monkeypatch, whole):
    """Two real sessions: the second takes over while the first trains; nothing is overwritten, nothing lost."""
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.05)
    told, second = [], {}

    class First(toy.ToyDataset):
        pause_s = 0.02

        def batch(self, seed, step, *args, **kwargs):
            if step == 8:
                second["lease"] = run_lock.RunLock(tmp_path, "second", True, told.append).__enter__()
            return super().batch(seed, step, *args, **kwargs)

    result = training.train(First(), tmp_path, toy.preset(steps=2000))
    assert result.reason == "elsewhere" and "took over" in result.message
    assert 8 <= result.step < 2000 and committed(tmp_path)[-1] == result.step
    assert "It is taken over here" in told[0] and second["lease"].lost == "" and len(second["lease"].taken_over) == 1
    second["lease"].__exit__()
    assert not list(tmp_path.glob("lease-*"))


FIRST = """
import sys, toy
from svclib.training import api as training
from svclib.training import run_lock
run_lock.HEARTBEAT_S = 0.2
slow = toy.ToyDataset()
slow.pause_s = 0.05
told = training.train(slow, sys.argv[1], toy.preset(), steps=10**6, on_progress=lambda s: print(s.step, flush=True))
print(told.reason, told.step, told.message)
"""


@pytest.mark.case("G1")
def test_two_real_processes_and_one_run(tmp_path, monkeypatch):
    """A process trains; this one is refused and changes nothing, then takes over: the other saves and stops. What both
    made together has the bits of a run that was never disturbed.
    """
    monkeypatch.setattr(run_lock, "POLL_S", 0.05)
    monkeypatch.setattr(run_lock, "HEARTBEAT_S", 0.2)
    run, end = tmp_path / "run", time.monotonic() + 300.0
    training.train(toy.ToyDataset(), tmp_path / "first use", toy.preset(), steps=1)  # imports take seconds
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(toy.__file__).parent), *sys.path])}
    command = [sys.executable, "-c", FIRST, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        while int(first.stdout.readline()) < 6:  # a checkpoint of step 5 lies there
            assert time.monotonic() < end
        with pytest.raises(TrainingError) as error:
            training.train(toy.ToyDataset(), run, toy.preset(), steps=10**6)
        assert f"(process {first.pid})" in str(error.value)
        assert_explains(error.value, remedy="take over")
        assert len(list(run.glob("lease-*"))) == 1 and len({p.stem.split("-")[2] for p in run.rglob("ck-*.json")}) == 1
        slow = toy.ToyDataset()
        slow.pause_s = 0.05
        second = training.train(
            slow,
            run,
            toy.preset(),
            steps=10**6,
            take_over=True,
            cancelled=lambda: first.poll() is not None or time.monotonic() > end,
        )
        said = first.stdout.read().splitlines()[-1]
    assert first.returncode == 0 and said.startswith("elsewhere ") and f"(process {os.getpid()})" in said
    assert second.reason == "cancelled" and resumed_at(second) >= 5 and "taken over here" in " ".join(second.messages)
    assert not list(run.glob("lease-*"))
    steps = max(int(said.split()[1]), second.step) + 3
    assert committed(run)[-1] == steps - 3
    training.train(toy.ToyDataset(), run, toy.preset(), steps=steps)
    training.train(toy.ToyDataset(), tmp_path / "whole", toy.preset(), steps=steps)
    assert_same(run, tmp_path / "whole")
