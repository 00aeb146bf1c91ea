"""Training itself: the published schedule, and what a run leaves behind.

Truths: a plain torch loop written out here ends with the same weights; the learning rate and the running mean follow
their formulas; the held-out loss is the mean of its pieces; TensorBoard's own reader finds the numbers; the sounds read
back with scipy are the model's; a spoiled batch stops the run at its step; what was asked to stop, stops.
"""

import copy
import dataclasses
import io
import math
import time
import types

import numpy as np
import pytest
import scipy.io.wavfile
import torch
import toy

from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument
from svclib.models.ddsp import model as ddsp
from svclib.models.layers import resolve_precision
from svclib.training import api as training
from svclib.training import checkpoint_writer, checkpoints, run_log, session, trainer
from svclib.training.api import SessionOptions, TrainingSettings
from svclib.utils import atomic_store, config, filesystem
from svclib.utils.errors import ConfigError, ConversionError, StorageError, TrainingError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 30 steps, with everything its progress callback saw."""
    folder, seen = tmp_path_factory.mktemp("run"), []
    result = training.train(toy.ToyDataset(), folder, toy.preset(), steps=30, on_progress=seen.append)
    return folder, result, seen


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.case("D3")
@pytest.mark.parametrize(
    "change, said",
    [
        ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1 to 4096"),
        ({"learning_rate": 1e9}, "learning_rate is 1000000000.0; expected a number from 1e-08 to 0.1"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"batch_size": True}, "batch_size is True"),
        ({"keep_checkpoints": 1}, "keep_checkpoints is 1; expected a whole number from 2"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected one of auto"),
    ],
)
def test_settings_out_of_range(change, said):
    with pytest.raises(ConfigError) as caught:
        TrainingSettings(**change)
    assert said in str(caught.value)


def test_published_defaults():
    s = TrainingSettings()
    assert (s.learning_rate, s.learning_rate_decay, s.decay_steps, s.clip_norm, s.adam_eps) == (
        3e-4,
        0.98,
        10000,
        3,
        1e-7,
    )


# The step -------------------------------------------------------------------------------------------------------------


def test_equals_a_plain_loop(tmp_path):
    """Adam with continuous exponential decay, clipping and running mean, written out once more."""
    changes = {"learning_rate_decay": 0.5, "decay_steps": 4, "clip_norm": 0.5, "ema_decay": 0.5, "precision": "fp32"}
    preset, data = toy.preset(**changes), toy.ToyDataset()
    training.train(data, tmp_path, preset, steps=6)
    model = preset.model.build(toy.FEATURES, toy.STATISTICS, seed=0)
    mean = copy.deepcopy(model.state_dict())
    adam = torch.optim.Adam(model.parameters(), lr=1.0, eps=1e-7)
    for step in range(1, 7):
        entropy = np.random.SeedSequence([0, step, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        adam.param_groups[0]["lr"] = 1e-2 * 0.5 ** ((step - 1) / 4)
        adam.zero_grad()
        loss, _ = model.loss(data.batch(0, step, 2, 32), torch.Generator().manual_seed(int(entropy)))
        loss.backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
        for p in model.parameters():
            p.grad *= min(1.0, 0.5 / (float(norm) + 1e-6))
        adam.step()
        decay = min(0.5, (1 + step) / (10 + step))
        mean = {k: decay * mean[k] + (1 - decay) * v for k, v in model.state_dict().items()}
    found = toy.tensors(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[f"model.{name}"], value, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found[f"ema.{name}"], mean[name], atol=2e-5, rtol=1e-4)


def test_seeds_and_sessions_are_independent_of_global_state(tmp_path):
    torch.manual_seed(1)
    training.train(toy.ToyDataset(), tmp_path / "a", toy.preset(), steps=3)
    torch.manual_seed(2)
    expected = torch.rand(2)
    torch.manual_seed(2)
    training.train(toy.ToyDataset(), tmp_path / "b", toy.preset(), steps=3)
    assert torch.equal(torch.rand(2), expected)
    training.train(toy.ToyDataset(), tmp_path / "c", toy.preset(), steps=3, seed=1)
    a, b, c = (toy.losses(tmp_path / n) for n in "abc")
    assert a == b and a != c


def test_loss_falls(run):
    curves = training.curves(run[0])
    assert curves["loss"][-5:].mean() < 0.7 * curves["loss"][:5].mean()
    assert curves["validation_loss"][-1] < curves["validation_loss"][0]


def test_a_batch_in_pieces_has_the_same_gradient():
    model = toy.MODEL.build(toy.FEATURES, None)
    batch = toy.ToyDataset().batch(0, 1, 5, 32)
    accelerator = session.make_accelerator("cpu", "auto")
    grads = []
    for size in (5, 2):
        model.zero_grad()
        pieces = list(session.micro_batches(batch, accelerator, size))
        assert [len(p["audio"]) for p, _, _ in pieces] == ([5] if size == 5 else [2, 2, 1])
        for piece, _, share in pieces:
            (_silent_noise(model, piece) * share).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def _silent_noise(model, batch):
    """The amplitude the model asks for, averaged: a loss without random numbers."""
    return model.controls(batch["f0_hz"], batch["voiced"], batch["loudness_db"]).amplitude.mean()


@pytest.mark.case("G4")
def test_a_gpu_that_is_too_small_gets_smaller_pieces(tmp_path, monkeypatch):
    whole = ddsp.DdspModel.loss

    def small_memory(self, batch, generator):
        if len(batch["audio"]) > 2:
            raise torch.OutOfMemoryError("no room")
        return whole(self, batch, generator)

    monkeypatch.setattr(ddsp.DdspModel, "loss", small_memory)
    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(batch_size=5), steps=2)
    assert (
        result.step == 2
        and any("3 at a time" in t for t in result.messages)
        and any("2 at a time" in t for t in result.messages)
    )


# Stopping -------------------------------------------------------------------------------------------------------------


@pytest.mark.case("P16", "E12")
def test_nan_stops_at_its_step_and_is_never_saved(tmp_path):
    data = toy.ToyDataset()
    data.spoiled_step = 8
    with pytest.raises(TrainingError, match="loss of step 8 is not a finite number.*step 5 is sound.*learning_rate"):
        training.train(data, tmp_path, toy.preset())
    kept = training.checkpoints(tmp_path)
    assert [c.step for c in kept] == [5] and not any(torch.isnan(t).any() for t in toy.tensors(tmp_path).values())
    assert max(toy.losses(tmp_path)) == 7
    data.spoiled_step = None
    assert training.train(data, tmp_path, toy.preset(), steps=9).step == 9


@pytest.mark.parametrize("spoiled_step", [None, 6, 9])
def test_losses_read_every_few_steps_are_the_same(run, tmp_path, monkeypatch, spoiled_step):
    """As on a GPU: one host synchronisation in four steps changes no loss, and no NaN is saved or logged."""
    build = trainer.Trainer._build

    def built(self, *args):
        build(self, *args)
        self.sync_steps = 4

    monkeypatch.setattr(trainer.Trainer, "_build", built)
    data = toy.ToyDataset()
    data.spoiled_step = spoiled_step
    if spoiled_step is None:
        training.train(data, tmp_path, toy.preset(), steps=11)
        assert toy.losses(tmp_path) == {s: v for s, v in toy.losses(run[0]).items() if s <= 11}
        return
    with pytest.raises(TrainingError, match=f"of step {spoiled_step} is not a finite number") as caught:
        training.train(data, tmp_path, toy.preset())
    assert caught.value.code == "diverged"
    assert [c.step for c in training.checkpoints(tmp_path)] == [5] and max(toy.losses(tmp_path)) == spoiled_step - 1


def test_minutes(tmp_path):
    data = toy.ToyDataset()
    data.pause_s = 0.02
    result = training.train(data, tmp_path, toy.preset(), steps=10**6, minutes=0.5 / 60)
    assert result.reason == "minutes" and 1 <= result.step < 200 and "go on" in result.message
    assert training.checkpoints(tmp_path)[-1].step == result.step


def test_cancel(tmp_path):
    seen = []
    result = training.train(
        toy.ToyDataset(), tmp_path, toy.preset(), on_progress=seen.append, cancelled=lambda: any(s.step for s in seen)
    )
    assert result.reason == "cancelled" and result.step < 40
    assert training.checkpoints(tmp_path)[-1].step == result.step


def test_checkpoints_by_time(tmp_path):
    data = toy.ToyDataset()
    data.pause_s = 0.1
    preset = toy.preset(save_every_steps=1000, save_every_minutes=0.01, validate_every_steps=1000)
    training.train(data, tmp_path, preset, steps=12)
    assert len(training.checkpoints(tmp_path)) >= 2


# What it leaves -------------------------------------------------------------------------------------------------------


@pytest.mark.case("P16")
def test_status(run):
    _, result, seen = run
    last = seen[-1]
    assert (last.step, last.steps, last.loss, last.validation_loss) == (30, 30, result.loss, result.validation_loss)
    assert last.last_saved_step == 30 and 0 <= last.last_saved_age_s < 600 and last.steps_per_s > 0.1
    assert last.remaining_s == 0.0 and "Finished" in last.message and result.reason == "finished"
    assert [s.step for s in seen] == sorted(s.step for s in seen)


def test_curves(run):
    curves = training.curves(run[0])
    assert list(curves["step"]) == list(range(1, 31)) and list(curves["validation_step"]) == [10, 20, 30]
    assert curves["last"] == curves["loss"][-1] == run[1].loss
    assert curves["loss_definition"] == {"kind": "ddsp", "fft_sizes": [256, 64], "log_rule": "v1"}
    np.testing.assert_allclose(curves["parts"]["linear"] + curves["parts"]["log"], curves["loss"], rtol=1e-6)
    with pytest.raises(ValueError, match="no metrics.jsonl"):
        training.curves(run[0] / "previews")


@pytest.mark.case("P16")
def test_held_out_loss_and_best(run):
    model, record = training.load_model(run[0], "last")
    losses = [float(model.validation_loss(b)) for b in toy.ToyDataset().validation_batches(8, 32)]
    assert record["metrics"]["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    best, record = training.load_model(run[0], "best")
    curves = training.curves(run[0])
    at = curves["validation_loss"].argmin()
    assert record["step"] == curves["validation_step"][at]
    assert record["metrics"]["best"] == [record["step"], curves["validation_loss"][at]]
    assert not best.training and not any(p.requires_grad for p in best.parameters())
    assert training.load_model(run[0], 25)[1]["step"] == 25
    with pytest.raises(TrainingError, match="there is none. There are steps 20, 25, 30"):
        training.load_model(run[0], 7)
    with pytest.raises(TrainingError, match="expected best, last or a step"):
        training.load_model(run[0], "newest")
    with pytest.raises(TrainingError, match="no checkpoints; train it first"):
        training.load_model(run[0] / "previews")


def test_a_score_chooses_the_best_and_changes_no_weight(run, tmp_path):
    scores = {10: 0.2, 20: 0.9, 30: 0.4}
    seen = []

    def score(model):
        seen.append(sum(p.double().sum() for p in model.parameters()))
        step = 10 * len(seen)
        if step == 30:
            raise ConversionError("no song")
        return {"voice": 0.5, "score": scores[step]}

    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=30, score=score)
    assert result.loss == run[1].loss and len(seen) == 3
    best, record = training.load_model(tmp_path, "best")
    assert record["step"] == 20 and record["metrics"]["best"] == [20, 0.9, "score"]
    figures = training.curves(tmp_path)["figures"]
    np.testing.assert_array_equal(figures["score"], [0.2, 0.9, np.nan])
    np.testing.assert_array_equal(figures["voice"], [0.5, 0.5, np.nan])
    assert any("no song" in message for message in result.messages)


def test_previews(run):
    found = training.previews(run[0])
    assert [(p.step, p.number) for p in found] == [(s, n) for s in (10, 20, 30) for n in (1, 2, 3)]
    last = found[-3]
    rate, samples = scipy.io.wavfile.read(last.path)
    assert (rate, samples.dtype) == (8000, np.int16)
    model, _ = training.load_model(run[0], "last")
    piece = {k: v[:1] for k, v in toy.ToyDataset().validation_batches(8, 32)[0].items()}
    np.testing.assert_allclose(samples / 32767.0, np.clip(model.reconstruct(piece, 0)[0], -1, 1), atol=1e-4)
    original = scipy.io.wavfile.read(last.original)[1] / 32767.0
    np.testing.assert_allclose(original, piece["audio"][0], atol=1e-4)
    assert last.score == pytest.approx(float(model.validation_loss(piece)), rel=1e-4)
    assert found[-1].score < found[0].score + 1.0


def test_loud_previews_are_limited_not_wrapped():
    _, samples = scipy.io.wavfile.read(io.BytesIO(run_log.wav_bytes(np.array([1.5, -1.5, 0.5]), 8000)))
    assert list(samples) == [32767, -32768, 16384]


def test_spectrogram_image_shows_a_tone_where_it_is():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    image = run_log.spectrogram_image(tone)
    assert image.dtype == np.uint8 and image.shape[0] == 513
    assert 512 - image[:, 20].argmax() == pytest.approx(1000 / 16000 * 1024, abs=1)
    assert not run_log.spectrogram_image(np.zeros(2000)).any()


def test_tensorboard_reads_it(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run[0] / "tensorboard"), size_guidance={"scalars": 0, "audio": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {"loss/total", "loss/validation", "steps_per_s"}
    curves = training.curves(run[0])
    assert [s.step for s in events.Scalars("loss/total")] == [10, 20, 30]
    np.testing.assert_allclose(
        [s.value for s in events.Scalars("loss/validation")], curves["validation_loss"], rtol=1e-6
    )
    assert {f"{kind}/{n}" for kind in ("original", "reconstruction") for n in (1, 2, 3)} == set(tags["audio"])
    assert len(tags["images"]) == 3


def test_no_held_out_recordings(tmp_path):
    data = toy.ToyDataset()
    data.validation_batches = lambda *_: []
    result = training.train(data, tmp_path, toy.preset(), steps=12)
    assert result.validation_loss is None and "No recording is held out" in " ".join(result.messages)
    assert training.load_model(tmp_path, "best")[1]["step"] == 12


# Beginnings -----------------------------------------------------------------------------------------------------------


def test_a_dataset_that_does_not_fit(tmp_path):
    preset = toy.preset(features=dataclasses.replace(toy.FEATURES, f0_method="pyin"))
    with pytest.raises(TrainingError, match="f0_method swift there, pyin here. Prepare it"):
        training.train(toy.ToyDataset(), tmp_path, preset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_bad_number_anywhere_is_seen(value, dtype):
    """As ``isfinite`` of every element; whole numbers and nothing at all are fine."""
    for shape, place in (((1,), 0), ((7, 5, 3), 52), ((7, 5, 3), 104), ((70_001,), 69_999)):
        tensor = torch.full(shape, torch.finfo(dtype).max, dtype=dtype)
        assert session.all_finite(tensor)
        tensor.view(-1)[place] = value
        assert not session.all_finite(tensor) and not bool(torch.isfinite(tensor).all())
    assert session.all_finite(torch.zeros(0)) and session.all_finite(torch.tensor([2**62]))


@pytest.mark.case("P4", "I1")
def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "No GPU" in training.device_summary() and "Colab" in training.device_summary()
    with pytest.raises(TrainingError, match="cuda is not available"):
        session.make_accelerator("cuda", "auto")
    with pytest.raises(TrainingError, match="device is 'tpu'"):
        SessionOptions(device="tpu")
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        session.make_accelerator("cpu", "fp16")
    for capability, precision in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, c=capability: c)
        assert resolve_precision("cuda") == precision
    card = types.SimpleNamespace(name="Some Card", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert session.gpu() == "cuda" and "Some Card with 24 GB, computing in bf16" in training.device_summary()


def test_a_gpu_of_apple_is_found_and_nothing_there_needs_float64(monkeypatch, tmp_path):
    """No such machine is here: ``mps`` is made believe, and what it cannot hold, float64, is refused in a training."""
    import accelerate
    import toy_diffusion
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from svclib.audio import units
    from svclib.models import layers

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert session.gpu() == "mps" and "Apple" in training.device_summary()
    assert resolve_precision("mps") == "fp32"
    asked = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **given: asked.append(given))
    for device, on_cpu in (("auto", False), ("mps", False), ("cpu", True)):
        session.make_accelerator(device, "auto")
        assert (asked[-1]["cpu"], asked[-1]["mixed_precision"]) == (on_cpu, "no")
    for device, precision in (("cuda", "auto"), ("mps", "fp16")):
        with pytest.raises(TrainingError):
            session.make_accelerator(device, precision)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="mps is not available"):
        session.make_accelerator("mps", "auto")

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for x in tree_leaves(made) if func is not torch.ops.aten.lift_fresh.default else ():  # numpy's, on the CPU
                if isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128):
                    raise TypeError(f"{func} made float64")
            return made

    monkeypatch.setattr(units, "double", lambda x, device=None: x.float())
    monkeypatch.setattr(layers, "step_embedding", lambda t, dims, **_: t[:, None].expand(-1, dims) / 1000)  # on the CPU
    from svclib.models.diffusion import schedule

    schedule._table.cache_clear()
    for data, preset in (
        (toy.ToyDataset(), toy.preset()),
        (toy_diffusion.MelDataset(), toy.preset(toy_diffusion.SETTINGS, toy_diffusion.FEATURES)),
    ):
        model = instrument.build_model(preset.model, preset.features, data.statistics)
        batch = data.batch(0, 0, 2, 40)
        with NoFloat64():
            loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
            loss.backward()
        assert torch.isfinite(loss) and all(torch.isfinite(x) for x in parts.values())
        schedule._table.cache_clear()
    with pytest.raises(TypeError), NoFloat64():
        torch.zeros(3).double()


@pytest.mark.case("P20")
def test_export_and_a_new_run_from_it(run, tmp_path):
    path = training.export(run[0], tmp_path / "Mia.zip", which=20, created="2026-11-21", licence="CC0")
    opened = instrument.open(path)
    assert (opened.name, opened.info["trained_steps"], opened.info["licence"]) == ("Mia", 20, "CC0")
    expected, _ = training.load_model(run[0], 20)
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in opened.model.state_dict().items())
    folder = training.export(run[0], tmp_path / "folder", name="a/Grün")
    assert folder.name == "a Grün.zip" and instrument.open(folder).name == "a/Grün"
    result = training.train(toy.ToyDataset(), tmp_path / "tuned", toy.preset(), steps=1, init=path)
    untuned = training.train(toy.ToyDataset(), tmp_path / "new", toy.preset(), steps=1)
    assert result.loss < 0.8 * untuned.loss
    wider = toy.preset(model=dataclasses.replace(toy.MODEL, n_noise_bands=9))
    with pytest.raises(TrainingError, match="n_noise_bands 5 there, 9 here"):
        training.train(toy.ToyDataset(), tmp_path / "wider", wider, steps=1, init=path)


def test_average_from_an_instrument_is_the_running_mean_of_all_weights(run, tmp_path):
    """Initial weights counted three times, then every step once, over sessions too; see init_average_steps."""
    path = training.export(run[0], tmp_path / "Mia.zip", which=20)
    preset, weights = toy.preset(init_average_steps=3), [instrument.open(path).model.state_dict()] * 3
    for steps in (1, 2, 3, 4):  # the sessions after the first resume, so what they start from comes from the checkpoint
        training.train(toy.ToyDataset(), tmp_path / "run", preset, steps=steps, init=path if steps == 1 else None)
        found = toy.tensors(tmp_path / "run")
        weights.append({name: found[f"model.{name}"] for name in weights[0]})
    for name in weights[0]:
        mean = torch.stack([w[name].double() for w in weights]).mean(0)
        torch.testing.assert_close(found[f"ema.{name}"].double(), mean, atol=1e-6, rtol=1e-5)


def test_history_steps():
    due = [s for s in range(0, 6000, 10) if checkpoints.history_due(s - 10, s)]
    assert due == [100, 200, 500, 1000, 2000, 5000]


def test_log_forgets_what_was_done_again(tmp_path):
    records = [
        {"event": "start", "step": 0},
        *({"step": s, "loss": 1.0} for s in range(1, 9)),
        {"event": "resume", "step": 5},
        {"step": 6, "loss": 2.0},
        {"step": 7, "loss": 2.0},
    ]
    atomic_store.append_lines(tmp_path / "metrics.jsonl", records)
    curves = run_log.curves(tmp_path)
    assert list(curves["step"]) == [1, 2, 3, 4, 5, 6, 7] and list(curves["loss"]) == [1.0] * 5 + [2.0] * 2


def test_the_log_is_read_incrementally(tmp_path, monkeypatch):
    """Each update reads only what was appended since; a resumed run, a torn line and a replaced file are respected."""
    path, sizes = tmp_path / "metrics.jsonl", []

    class Counting(filesystem.Disk):
        def read(self, file, n_bytes):
            sizes.append(n_bytes)
            return super().read(file, n_bytes)

    def write(*records):
        atomic_store.append_lines(path, records)

    write({"event": "start", "step": 0}, *({"step": n, "loss": 1.0, "parts": {"a": n}} for n in range(1, 2001)))
    reader = run_log.LogReader(tmp_path)
    assert [r["step"] for r in reader.steps] == list(range(1, 2001))
    monkeypatch.setattr(filesystem, "active", Counting())
    write({"step": 2001, "loss": 2.0, "parts": {"a": 0}}, {"step": 2001, "validation_loss": 3.0})
    sizes.clear()
    curves = reader.update().curves()
    assert sum(sizes) < 200 and curves["last"] == 2.0 and list(curves["validation_step"]) == [2001]
    write({"event": "resume", "step": 1000}, {"step": 1001, "loss": 4.0, "parts": {"a": 1}})
    with open(path, "ab") as file:
        file.write(b'{"step": 1002, "lo')
    assert [r["step"] for r in reader.update().steps] == list(range(1, 1002)) and not reader.validations
    write({"step": 1003, "loss": 5.0, "parts": {"a": 2}})
    curves = reader.update().curves()
    assert list(curves["step"][-2:]) == [1001, 1003] and list(curves["parts"]["a"][-2:]) == [1, 2]
    few = reader.curves(max_points=100)
    assert 90 <= len(few["step"]) <= 100 and few["step"][-1] == 1003
    path.unlink()
    write({"event": "start", "step": 0}, {"step": 1, "loss": 6.0})
    assert [r["loss"] for r in reader.update().steps] == [6.0]


def test_a_failing_save_is_told_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "RETRY_S", 0.0)
    real, failures = checkpoints.save, []

    def save(folder, checkpoint, kind, writer):
        if checkpoint.record["step"] in (5, 6) and kind == "last":
            failures.append(checkpoint.record["step"])  # at home, then beside it on this machine
            raise StorageError("No space left while writing 'x' (0 MB are free).")
        return real(folder, checkpoint, kind, writer)

    monkeypatch.setattr(checkpoints, "save", save)
    result = training.train(toy.ToyDataset(), tmp_path, toy.preset(), steps=8)
    assert sorted(set(failures)) == [5, 6] and result.step == 8
    assert (
        result.messages[1:]  # after what it starts from
        == [
            "No space left while writing 'x' (0 MB are free). Training goes on and tries again; "
            "saved so far: nothing yet."
        ]
        * 2
    )
    assert [c.step for c in training.checkpoints(tmp_path) if c.kind == "last"] == [7, 8]


# With everything real -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddsp_small", "ddsp_z"])
def test_presets_train_on_a_real_recording(data_dir, tmp_path, name):
    """Prepared, trained two steps with the test overlay, exported, opened, sung."""
    preset = config.load([name, "tiny"])
    found = find_recordings([data_dir / "voices" / "kathleen_sung"])[:3]
    data = dataset.prepare(found, tmp_path / "data", preset.features)
    started = time.monotonic()
    result = training.train(tmp_path / "data", tmp_path / "run", preset, steps=2)
    assert result.step == 2 and math.isfinite(result.loss) and time.monotonic() - started < 120
    opened = instrument.open(training.export(tmp_path / "run", tmp_path))
    assert opened.statistics == data.statistics and opened.info["singers"] == data.singers
    piece = data.features(0, 0, 200)
    filled = fill_unvoiced(piece.f0_hz, piece.voiced)
    sung = opened.model.render(filled, piece.voiced, piece.loudness_db, audio=data.audio(0)[: 200 * 64])
    assert sung.audio.shape == (200 * preset.features.hop_samples,) and np.isfinite(sung.audio).all()
