"""Truths about training on several processes or in several pieces: the same noise, the same losses as on the whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import toy

from svclib.__main__ import main
from svclib.training import api as training
from svclib.training import session
from svclib.utils import rng as draws
from svclib.utils.errors import TrainingError

STEPS = 20


@pytest.mark.parametrize(("kind", "shape", "dim"), [("normal", (5, 3, 4), 0), ("uniform", (2, 5, 6), 1)])
def test_rows_of_a_draw_are_those_of_the_whole(kind, shape, dim):
    draw = getattr(draws, kind)
    whole = draw(shape, draws.for_rows(7, range(5), 5), dim)
    assert torch.equal(whole, draw(shape, torch.Generator().manual_seed(7), dim))
    for rows in ([0, 2, 4], [1, 3]):
        mine = draw((*shape[:dim], len(rows), *shape[dim + 1 :]), draws.for_rows(7, rows, 5), dim)
        assert torch.equal(mine, whole.index_select(dim, torch.tensor(rows)))


def test_spread_has_one_number_in_every_part():
    whole = draws.stratified_uniform(8, draws.for_rows(3, range(8), 8))
    assert (whole * 8).floor().sort().values.tolist() == list(range(8))
    assert torch.equal(draws.stratified_uniform(2, draws.for_rows(3, [1, 5], 8)), whole[[1, 5]])


@pytest.mark.parametrize(
    "division", [[[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1, 2, 3, 4, 5, 6], [7]], [[3], [0, 1, 2, 4, 5, 6, 7]]]
)
def test_a_mean_over_the_first_rows_survives_any_division(division):
    x, wanted = torch.arange(1.0, 9.0), 3
    total = 0.0
    for rows in division:
        generator = draws.for_rows(0, rows, 8)
        count, factor = draws.first_rows(generator, len(rows), wanted)
        total += len(rows) / 8 * factor * float(x[rows][:count].mean())
    assert total == pytest.approx(float(x[:wanted].mean()))


def test_a_batch_in_pieces_learns_what_the_whole_batch_teaches(tmp_path, monkeypatch):
    """Where a GPU's memory is too small the batch is computed in pieces; the losses stay the same."""

    def losses(name):
        preset = toy.preset(steps=6, batch_size=4, precision="fp32")
        training.train(toy.ToyDataset(), tmp_path / name, preset)
        return [json.loads(line)["loss"] for line in open(tmp_path / name / "metrics.jsonl") if '"loss"' in line]

    whole = losses("whole")
    pieces = session.micro_batches
    monkeypatch.setattr(session, "micro_batches", lambda batch, accelerator, size: pieces(batch, accelerator, 3))
    np.testing.assert_allclose(losses("micro_batches"), whole, rtol=1e-5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight short tones as a dataset for a diffusion instrument."""
    home = tmp_path_factory.mktemp("processes")
    (home / "audio").mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        t = np.arange(22050 * 2) / 22050
        f0_hz = 200 * 2 ** (i / 8) * (1 + 0.01 * np.sin(2 * np.pi * 5 * t))
        phase = 2 * np.pi * np.cumsum(f0_hz) / 22050
        tone = sum(np.sin(k * phase) / k for k in range(1, 9))
        soundfile.write(home / "audio" / f"{i}.wav", 0.1 * tone + 1e-3 * rng.standard_normal(len(t)), 22050)
    arguments = ["--audio", home / "audio", "--out", home / "data", "--config", "diffusion_small", "--config", "tiny"]
    assert main(["prepare", *map(str, arguments)]) == 0
    return home


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_learn_as_one(dataset):
    """Every process computes its rows of the same batch with the same noise; the gradients are meaned."""
    common = [
        "train",
        "--dataset",
        dataset / "data",
        "--config",
        "diffusion_small",
        "--config",
        "tiny",
        "--steps",
        STEPS,
        "--device",
        "cpu",
        "--set",
        "training.TrainingSettings.batch_size=4",
        "--set",
        "training.TrainingSettings.validate_every_steps=1000",
        "--set",
        "training.TrainingSettings.learning_rate=2e-4",
        "--set",
        "training.TrainingSettings.precision=fp32",
    ]
    alone = [sys.executable, "-m", "svclib", *common, "--run", dataset / "one"]
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29611]
    together += ["-m", "--", "svclib", *common, "--run", dataset / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (alone, together):
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes train together" in done.stderr
    one, two = losses(dataset / "one"), losses(dataset / "two")
    assert len(one) == len(two) == STEPS
    assert one[0] != one[-1]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert [c.step for c in training.checkpoints(dataset / "two")][-1] == STEPS


def test_more_processes_than_rows_are_refused(monkeypatch, tmp_path):
    class Crowd:
        num_processes, process_index, is_main_process, device = 3, 0, True, torch.device("cpu")

    monkeypatch.setattr(session, "make_accelerator", lambda device, precision: Crowd())
    with pytest.raises(TrainingError, match="3 processes for a batch of 2"):
        training.train(toy.ToyDataset(), tmp_path, toy.preset(steps=1, batch_size=2))
