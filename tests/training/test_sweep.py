"""A sweep trains every combination once: the losses are those of the single runs, finished cells stay untouched."""

import json
import math
import types

import pytest
import toy
from explaining import assert_explains

from svclib.training import api as training
from svclib.training import sweep
from svclib.utils.errors import TrainingError

GIN = """\
from __gin__ import dynamic_registration
from svclib import config
from svclib import ddsp
from svclib import features
from svclib import training

config.preset.features = @features.FeatureSettings()
config.preset.model = @ddsp.DdspSettings()
config.preset.training = @training.TrainingSettings()
features.FeatureSettings.sample_rate_hz = 8000
ddsp.DdspSettings.rnn_channels = 8
ddsp.DdspSettings.mlp_channels = 8
ddsp.DdspSettings.layers_per_stack = 1
ddsp.DdspSettings.fft_sizes = (256, 64)
training.TrainingSettings.batch_size = 2
training.TrainingSettings.segment_s = 0.256
training.TrainingSettings.steps = 6
training.TrainingSettings.validate_every_steps = 3
training.TrainingSettings.learning_rate = 0.01
"""
GRID = {"n_harmonics": [4, 8], "n_noise_bands": [3, 5]}


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gin") / "toy_sweep.gin"
    path.write_text(GIN)
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory, gin_file):
    runs, seen = tmp_path_factory.mktemp("runs"), []
    cells = sweep.run(toy.ToyDataset(), runs, gin_file, GRID, on_progress=lambda name, s: seen.append((name, s.step)))
    return runs, cells, seen


def test_every_combination_once_and_sorted(swept):
    runs, cells, seen = swept
    assert {(c.values["n_harmonics"], c.values["n_noise_bands"]) for c in cells} == {
        ("4", "3"),
        ("4", "5"),
        ("8", "3"),
        ("8", "5"),
    }
    assert sorted(p.name for p in runs.iterdir()) == [
        "n_harmonics-4_n_noise_bands-3",
        "n_harmonics-4_n_noise_bands-5",
        "n_harmonics-8_n_noise_bands-3",
        "n_harmonics-8_n_noise_bands-5",
        "sweep.json",
    ]
    assert [c.validation_loss for c in cells] == sorted(c.validation_loss for c in cells)
    assert {name for name, _ in seen} == {c.name for c in cells}
    for cell in cells:  # the value at the last step, and the network the cell's name says
        curves = training.curves(cell.run)
        assert cell.step == cell.steps == curves["step"][-1] == 6
        assert (cell.loss, cell.validation_loss) == (curves["loss"][-1], curves["validation_loss"][-1])
        model, _ = training.load_model(cell.run, "last")
        assert str(model.settings.n_harmonics) == cell.values["n_harmonics"]
    written = json.loads((runs / "sweep.json").read_text())
    assert [row["run"] for row in written] == [c.name for c in cells]


def test_a_cell_equals_a_single_run(swept, tmp_path, gin_file):
    from svclib.utils import config

    preset = config.load(gin_file, ["n_harmonics=8", "n_noise_bands=3"])
    training.train(toy.ToyDataset(), tmp_path, preset)
    assert toy.losses(tmp_path) == toy.losses(swept[0] / "n_harmonics-8_n_noise_bands-3")


def test_finished_cells_are_skipped_and_unfinished_go_on(swept, gin_file, monkeypatch):
    runs, cells, _ = swept
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file() and p.name != "sweep.json"}
    monkeypatch.setattr(training, "train", None)  # nothing may be trained
    again = sweep.run(toy.ToyDataset(), runs, gin_file, GRID)
    assert again == cells and before == {p: p.stat().st_mtime_ns for p in before}


def test_time_and_target_may_grow(gin_file, tmp_path):
    grid = {"n_harmonics": [4, 8]}
    none = sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, minutes=0.0)
    assert [c.step for c in none] == [0, 0] and "not started" in sweep.table(none)
    first = sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, steps=3)
    longer = sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, steps=5)
    assert [c.step for c in first] == [3, 3] and [c.step for c in longer] == [5, 5]
    assert len(toy.losses(longer[0].run)) == 5


def test_minutes_are_those_of_all_cells_together(gin_file, tmp_path, monkeypatch):
    clock, given = [1000.0], []

    def train(dataset, folder, preset, report, cancelled, minutes, **options):
        given.append(minutes)
        clock[0] += 60 * 4
        return types.SimpleNamespace(reason="minutes")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(sweep.time, "monotonic", lambda: clock[0])
    grid = {"n_harmonics": [2, 4, 6, 8]}
    sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, minutes=10)
    assert given == [10, 6, 2]  # the fourth has none left
    given.clear()
    sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, minutes=8)
    assert given == [8, 4]  # nor a third one of 8
    given.clear()
    sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid)
    assert given == [math.inf] * 4


@pytest.mark.parametrize("reason", ["interrupted", "cancelled"])
def test_a_sweep_that_is_stopped_begins_no_other_cell(gin_file, tmp_path, monkeypatch, reason):
    begun = []
    result = types.SimpleNamespace(reason=reason)
    monkeypatch.setattr(training, "train", lambda dataset, folder, *more, **options: begun.append(folder) or result)
    cells = sweep.run(toy.ToyDataset(), tmp_path, gin_file, {"n_harmonics": [2, 4]})
    assert len(begun) == 1 and [c.step for c in cells] == [0, 0]


def test_a_cell_that_fails_leaves_the_others_alone(gin_file, tmp_path):
    data = toy.ToyDataset()
    data.spoiled_step = 4
    cells = sweep.run(data, tmp_path, gin_file, {"n_harmonics": [4, 8]})
    assert all("step 4 is not a finite number" in c.problem for c in cells)
    assert "step 4" in sweep.table(cells)


@pytest.mark.case("red 16")
def test_other_settings_in_the_same_folder_are_refused(swept, gin_file):
    """Of the network, of training, of the seed, or another dataset: no cell shows another training's losses."""
    changed = toy.ToyDataset()
    changed.fingerprint = "toy-2"
    before = {p: p.read_bytes() for p in swept[0].rglob("*") if p.is_file()}
    for data, overrides, options in (
        (toy.ToyDataset(), ["rnn_channels=9"], {}),
        (toy.ToyDataset(), ["learning_rate=0.02"], {}),
        (toy.ToyDataset(), [], {"seed": 7}),
        (changed, [], {}),
        (changed, [], {"steps": 8, "allow_changed_dataset": True}),
    ):
        with pytest.raises(TrainingError) as caught:
            sweep.run(data, swept[0], gin_file, GRID, overrides=overrides, **options)
        assert_explains(caught.value, path=swept[0], remedy="another folder")
    assert {p: p.read_bytes() for p in swept[0].rglob("*") if p.is_file()} == before


@pytest.mark.case("red 16")
def test_an_unfinished_cell_goes_on_with_its_own_settings_only(gin_file, tmp_path):
    grid = {"n_harmonics": [4]}
    sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, steps=2)
    with pytest.raises(TrainingError) as caught:
        sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, overrides=["learning_rate=0.02"], steps=4)
    assert_explains(caught.value, remedy="another folder")
    assert sweep.run(toy.ToyDataset(), tmp_path, gin_file, grid, steps=4)[0].step == 4


@pytest.mark.case("red 16")
def test_cells_whose_names_are_cut_are_two_runs():
    """Values that differ beyond what a file name holds, or in characters that it cannot hold."""
    long = [{"learning_rate": f"0.{'0' * 150}{i}"} for i in (1, 2)]
    odd = [{"f0_method": text} for text in ("a/b", "a:b", "a b")]
    names = [sweep._folder_name(values) for values in long + odd]
    assert len(set(names)) == 5 and all(len(name.encode()) < 150 for name in names)
    assert sweep._folder_name({"n_harmonics": "4", "n_noise_bands": "3"}) == "n_harmonics-4_n_noise_bands-3"


def test_table(swept):
    lines = sweep.table(swept[1]).splitlines()
    assert lines[0] == "Loss at the last step (kind ddsp, fft_sizes [256, 64], log_rule v1):"
    assert lines[1].split() == ["n_harmonics", "n_noise_bands", "step", "loss", "held-out", "loss"]
    best = swept[1][0]
    assert lines[2].split() == [
        best.values["n_harmonics"],
        best.values["n_noise_bands"],
        "6/6",
        f"{best.loss:.4f}",
        f"{best.validation_loss:.4f}",
    ]


@pytest.mark.case("P18")
def test_losses_of_different_meaning_stand_apart(gin_file, tmp_path):
    cells = sweep.run(toy.ToyDataset(), tmp_path, gin_file, {"log_rule": ["v1", "v2"]}, steps=1)
    assert sweep.table(cells).count("Loss at the last step") == 2


@pytest.mark.parametrize("texts", [[], ["n_harmonics"], ["n_harmonics="], ["=1,2"], ["a=1,1"], ["a=1", "a=2"]])
def test_grids_that_cannot_be(texts):
    with pytest.raises(TrainingError):
        sweep.parse_grid(texts)


def test_grid():
    grid = sweep.parse_grid(["a=1, 2", "b=x"])
    assert grid == {"a": ["1", "2"], "b": ["x"]}
