"""A Google Drive with several faults in a row, in an order from a seed, under the real trainer.

Each sequence is some sessions of one run. Between them the machine may be lost with its last uploads, and in them the
mount drops and comes back, the quota runs out, operations fail, names hide, another machine's stale lease lies there,
or a second Ctrl-C hits in the middle of a file operation. Every session goes on from a state at most two save intervals
older than the newest there was, or says in a sentence why not; none ever begins anew. In the end, all faults gone, the
run has the bits of an undisturbed one.
"""

import errno
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import toy
from drive_runs import INTERVAL, assert_same_state, other_machine, resumed_at, run_of, saves_of
from fakedrive import FakeDrive

from svclib.training import api as training
from svclib.training import checkpoint_writer, checkpoints, run_lock
from svclib.utils import atomic_store
from svclib.utils.errors import StorageError, TrainingError

STEPS, SESSIONS = 30, 5
OPERATIONS = ("open", "write", "read", "replace", "names", "stat", "make_folder", "remove", "fsync")


class Sequence:
    """One run, its Drive and what happens to both."""

    def __init__(self, drive: FakeDrive, seed: int):
        self.drive, self.run, self.rng, self.log = drive, run_of(drive), random.Random(seed), []

    def well(self) -> None:
        """All faults gone."""
        d = self.drive
        d.dropped, d.quota, d.hidden, d.failing, d.at = False, None, lambda path: False, {}, {}

    def newest(self, *folders: Path) -> int:
        """The newest step that lies whole in the run's folder or on this machine; 0 if there is none."""
        self.well()
        steps = [0]
        for folder in folders or (self.run, checkpoint_writer.local_folder(self.run)):
            for info in checkpoints.listing(folder / "checkpoints"):
                if info.kind == "last" and not info.problem and not atomic_store.verify(info.marked):
                    steps.append(info.step)
        return max(steps)

    def lose_the_machine(self) -> None:
        """Another machine: what was kept only here is gone, and so are uploads since the save before the last."""
        at_home = self.newest(self.run)
        saves = saves_of(self.drive)
        most = len(self.drive.queue) - (saves[-2] + 1 if len(saves) > 1 else len(self.drive.queue))
        lost, half = self.rng.randint(0, most), self.rng.random() < 0.3
        self.log.append(f"new machine, {lost} uploads lost{', one half' if half else ''}")
        half = half and lost < most  # else it might be the marker of the save that is to stay
        self.drive.new_machine(lost, half)
        shutil.rmtree(Path(tempfile.gettempdir()))
        Path(tempfile.gettempdir()).mkdir()
        assert self.newest() >= at_home - 2 * INTERVAL, self.log

    def fault(self) -> None:
        """One more thing that happens at a random operation from now on, and ends at a later one."""
        d, rng = self.drive, self.rng
        begin = d.count + rng.choice((1, rng.randint(1, 60), rng.randint(1, 400)))
        end = begin + rng.randint(1, 300)
        what = rng.choice(("drop", "quota", "errors", "hide", "hide newest", "lease", "interrupt"))
        self.log.append(f"{what} at {begin - d.count} to {end - d.count}")

        def drop():
            d.dropped = True

        def full():
            d.quota = d.used_bytes() + rng.choice((0, 500, 5000))

        def errors():
            code = rng.choice((errno.EIO, errno.ENOTCONN, errno.ECONNABORTED, errno.ENOSPC))
            d.failing[rng.choice(OPERATIONS)] = [code, rng.choice((1, 2, 7))]

        def hide():
            parts = rng.choice((("checkpoints",), ("checkpoints", "metrics.jsonl"), ("metrics.jsonl",), ("run.json",)))
            d.hidden = lambda path: bool(set(parts) & set(path.parts))

        def hide_newest():
            newest = {f"{c.step:08d}" for c in checkpoints.listing(self.run / "checkpoints")[-1:]}
            d.hidden = lambda path: path.name[3:11] in newest

        def interrupt():
            raise KeyboardInterrupt

        def over():
            d.dropped, d.quota, d.hidden = False, None, lambda path: False

        def stale():
            other_machine(self.run, machine="gone")

        if what == "lease":
            return stale()
        happens = {"drop": drop, "quota": full, "errors": errors, "hide": hide, "hide newest": hide_newest}
        d.at[begin] = {**happens, "interrupt": interrupt}[what]
        d.at[end] = over

    def session(self, steps: int) -> None:
        """Train to a step, or be told; what it went on from is at most two intervals old."""
        before = self.newest()
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            self.fault()
        try:
            result = training.train(toy.ToyDataset(), self.run, toy.preset(), steps=steps)
        except (TrainingError, StorageError) as error:
            said = str(error)
            assert 20 < len(said) < 1500 and said.rstrip().endswith((".", "?")), (said, self.log)
            self.log.append(f"to {steps} from {before}: {said[:150]}")
        except KeyboardInterrupt:
            self.log.append(f"to {steps} from {before}: interrupted")
        else:
            self.log.append(f"to {steps} from {before}: went on from {resumed_at(result)}, {result.reason}")
            assert resumed_at(result) >= max(before - 2 * INTERVAL, min(before, 1)), self.log
            assert result.step >= min(steps, before), self.log
        assert self.newest() >= before - INTERVAL, self.log


@pytest.mark.case("J5")
@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 53), marks=pytest.mark.slow)])
def test_any_sequence_of_faults_ends_in_recovery_or_a_sentence(drive, whole, monkeypatch, seeds):
    monkeypatch.setattr(run_lock, "WATCH_S", 0.02)
    monkeypatch.setattr(run_lock, "POLL_S", 0.01)
    monkeypatch.setattr("svclib.training.trainer.time.sleep", lambda s: None)
    for seed in seeds:
        drive.new_machine(len(drive.queue))
        drive.cloud.clear()
        shutil.rmtree(drive.mount)
        drive.mount.mkdir()
        sequence = Sequence(drive, seed)
        for number in range(SESSIONS):
            sequence.session(min(STEPS, 8 + 6 * number))
            if sequence.rng.random() < 0.4:
                sequence.lose_the_machine()
        sequence.well()
        before = sequence.newest()
        result = training.train(toy.ToyDataset(), sequence.run, toy.preset(), steps=STEPS)
        assert (result.step, resumed_at(result)) == (STEPS, before), sequence.log
        assert_same_state(sequence.run, whole)
