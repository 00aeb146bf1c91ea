"""Training runs of the toy on a ``fakedrive.FakeDrive``, and comparisons of two runs."""

import json

import torch
import toy

from svclib.training import api as training

INTERVAL = 5


def run_of(drive):
    return drive.mount / "svclib" / "runs" / "voice"


def train(drive, steps=30, **options):
    return training.train(toy.ToyDataset(), run_of(drive), toy.preset(), steps=steps, **options)


def assert_same(run, whole):
    assert toy.losses(run) == toy.losses(whole)
    assert_same_state(run, whole)


def assert_same_state(run, whole):
    """Weights, running mean and optimiser; the log may lack lines that never reached the server."""
    assert toy.losses(run).items() <= toy.losses(whole).items()
    mine, theirs = toy.tensors(run), toy.tensors(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def resumed_at(result):
    said = [t for t in result.messages if t.startswith("Going on from step")]
    if not said and result.message.startswith("Nothing was trained"):  # it was complete
        return result.step
    return int(said[0].split()[4]) if said else 0


def committed(run):
    return sorted(c.step for c in training.checkpoints(run) if c.kind == "last" and c.problem is None)


def saves_of(drive):
    """Positions in the upload queue after which a checkpoint is committed."""
    return [i for i, (path, data) in enumerate(drive.queue) if "/ck-" in path and path.endswith(".ok.json") and data]


def other_machine(run, beat=1, **changes):
    """A lease as another machine writes it."""
    sign = {
        "machine": "colab-a",
        "boot": "x",
        "pid": 7,
        "since": "2026-11-21T13:40:00Z",
        "seen": "2026-11-21T13:52:00Z",
    }
    text = json.dumps({**sign, "beat": beat, "number": 1, **changes})
    run.mkdir(parents=True, exist_ok=True)
    (run / "lease-other.json").write_text(text)
