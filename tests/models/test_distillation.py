"""Truths held here: of Gaussian data the consistency function is known in closed form, it is what the loss asks for and
what the sampler draws right from; a student is its teacher but for the denoiser, resumes to the bit with its teacher
only, comes nearer to the end of the teacher's flow, and its file converts."""

import dataclasses

import numpy as np
import pytest
import torch
import toy
from explaining import assert_explains
from toy_diffusion import FEATURES, SETTINGS, MelDataset, save_instrument, song

from svclib.__main__ import main
from svclib.conversion.pipeline import convert
from svclib.models import instrument
from svclib.models.diffusion import denoiser, samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.training import api as training
from svclib.utils import config
from svclib.utils.errors import ConfigError, ConversionError, TrainingError

SCHEDULE = Schedule()
STUDENT = dataclasses.replace(SETTINGS, prediction="consistency", sampler="consistency", sampler_steps=1)
COARSE, STD, TRUE_STD = 0.2, 0.1, 0.17  # the coarse mel, its expected error, and the standard deviation of the data


class Closed(denoiser.Denoiser):
    """An output in closed form of ``(y, angle)`` for data N(coarse, true std), whatever the network's time."""

    def __init__(self, of):
        super().__init__()
        self.of, self.weight = of, torch.nn.Parameter(torch.zeros(()))

    def precompute(self, condition):
        return (condition,)

    def forward(self, y, t, condition):
        alpha, sigma = SCHEDULE.alpha_sigma(t.double())
        return self.of(y, torch.atan2(sigma, alpha * STD).view(-1, 1, 1).to(y))


def spread(angle):
    """Standard deviation of ``y`` at an angle; its product with a constant is the flow."""
    return ((TRUE_STD / STD * angle.cos()) ** 2 + angle.sin() ** 2).sqrt()


def velocity(y, angle):
    return -y * (1 - (TRUE_STD / STD) ** 2) * angle.sin() * angle.cos() / spread(angle) ** 2


TEACHER = Closed(velocity)  # F = - dy/dphi
EXACT = Closed(lambda y, angle: y * (TRUE_STD / STD / spread(angle) - 1) / angle)  # its mean down to angle 0


def grid(n):
    return [SCHEDULE.level(t) for t in samplers.sampling_times(SCHEDULE, "consistency", n)]


def drawn(size=2000):
    generator = torch.Generator().manual_seed(0)
    residual, noise = (torch.randn(size, 1, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    std = torch.full_like(residual, STD)
    return residual * TRUE_STD / STD, noise, std


@pytest.mark.parametrize("n_levels", [12, 96])
def test_the_loss_asks_for_the_end_of_the_flow(n_levels):
    """The exact consistency function leaves the error of the teacher's steps only; others a multiple of it."""
    residual, noise, std = drawn()
    index = torch.arange(len(std)) % n_levels

    def loss(student):
        distillation = denoiser.Distillation(TEACHER, student, grid(n_levels))
        one_step = distillation.one_step_error(student, residual, noise, std, std)
        return float(distillation.loss(student, residual, noise, index, std, std)), float(one_step)

    (exact, exact_end), (wrong, wrong_end) = loss(EXACT), loss(TEACHER)
    assert exact < (0.01 if n_levels == 12 else 1e-4) and exact_end < (0.05 if n_levels == 12 else 0.002)
    assert wrong > 20 * exact and wrong_end > 5 * exact_end


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_sampler_draws_from_the_data_in_one_to_four_steps(steps):
    parameterization = denoiser.Parameterization(SCHEDULE, "consistency")
    x_t = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, std = torch.full_like(x_t, COARSE), torch.full_like(x_t, STD)

    def eps(x, t):
        return parameterization.eps(EXACT.double(), x, torch.full((len(x),), float(t)), (x,), mean, std)

    options, calls = SamplingOptions("consistency", steps), []
    generator = torch.Generator().manual_seed(2)
    got = samplers.sample(eps, SCHEDULE, x_t, options, generator=generator, callback=calls.append)
    assert len(calls) == steps
    assert float(got.mean()) == pytest.approx(COARSE, abs=0.003)
    assert float(got.std()) == pytest.approx(TRUE_STD, rel=0.02)
    if steps == 1:  # every start has its own end: the flow keeps the order
        assert float(torch.corrcoef(torch.stack([got.flatten(), x_t.flatten()]))[0, 1]) > 0.999


def test_without_noise_the_jump_stays_where_it_is():
    """Whatever the network puts out: the boundary condition."""
    parameterization = denoiser.Parameterization(Schedule(1000, 1e-9, 0.02), "consistency")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 2, 4)
    mean, std, anything = torch.zeros_like(x), torch.full_like(x, STD), Closed(lambda y, angle: 7 + 0 * y).double()
    eps = parameterization.eps(anything, x, torch.zeros(1), (x,), mean, std)
    alpha, sigma = parameterization.schedule.alpha_sigma(0)
    torch.testing.assert_close((x - sigma * eps) / alpha, x, atol=3e-4, rtol=0)


def test_times_of_few_steps_are_levels_of_the_grid():
    levels = samplers.sampling_times(SCHEDULE, "consistency", denoiser.DISTILLED_LEVELS)
    for steps in (1, 2, 3, 4):
        times = samplers.sampling_times(SCHEDULE, "consistency", steps)
        assert len(times) == steps and times[0] == 999
        assert all(min(abs(t - level) for level in levels) < 1e-9 for t in times)
    shallow = samplers.sampling_times(SCHEDULE, "consistency", 4, start_t=20)
    assert shallow[0] == 20 and len(shallow) == 4 and min(shallow) > 0


# A run ----------------------------------------------------------------------------------------------------------------


def preset(**changes):
    return toy.preset(
        STUDENT, FEATURES, **{"steps": 12, "segment_s": 0.5, "ema_decay": 0.9, "precision": "fp32", **changes}
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    home = tmp_path_factory.mktemp("teacher")
    training.train(
        MelDataset(), home / "run", toy.preset(SETTINGS, FEATURES, steps=60, segment_s=0.5, precision="fp32")
    )
    return training.export(home / "run", home / "teacher.zip", "last")


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    home, few = tmp_path_factory.mktemp("student"), {"steps": 120, "validate_every_steps": 120, "learning_rate": 1e-3}
    result = training.train(MelDataset(), home / "run", preset(**few), init=teacher)
    return instrument.open(training.export(home / "run", home / "student.zip", "last")), home / "run", result


def test_a_student_is_its_teacher_but_for_the_denoiser(teacher, student):
    before, after = instrument.open(teacher).model.state_dict(), student[0].model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("denoiser.")}
    assert student[0].model.settings == STUDENT and set(before) == set(after)


def test_it_comes_nearer_to_the_end_of_the_flow(teacher, student, tmp_path):
    """From where it begins: the teacher's own direction, taken to the end at once."""
    start = training.train(MelDataset(), tmp_path / "run", preset(steps=1, learning_rate=1e-8), init=teacher)
    assert student[2].validation_loss < 0.7 * start.validation_loss


def test_it_is_trained_around_the_temperature_that_it_samples_with(monkeypatch):
    """Noise and residual by one factor for each example, within half and one and a half times the setting."""
    drawn, batch = [], MelDataset().batch(0, 1, 64, 40)
    for temperature, tilt in ((1.0, 0.0), (0.4, 0.5)):
        settings = dataclasses.replace(STUDENT, temperature=temperature, temperature_tilt=tilt)
        model = settings.build(FEATURES, MelDataset.statistics, seed=0)
        model.distil(SETTINGS.build(FEATURES, MelDataset.statistics, seed=0), model)
        monkeypatch.setattr(model.distillation, "loss", lambda student, *rest: drawn.append(rest) or rest[0].sum())
        model.loss(batch, torch.Generator().manual_seed(0))
    (residual, noise, *_), (tilted_residual, tilted_noise, *_) = drawn
    factors = noise.std((1, 2))
    assert 0.5 <= float(factors.min()) < 0.7 and 1.3 < float(factors.max()) < 1.55
    bands = 0.4 * torch.linspace(1, 0.5, noise.shape[1])[:, None]
    torch.testing.assert_close(tilted_noise, bands * noise)
    torch.testing.assert_close(tilted_residual, bands * residual)


def test_its_file_converts_by_its_own_sampler(student):
    made = convert(student[0], song(), sampling=SamplingOptions(seed=1))
    assert made.sampling["sampler"] == "consistency" and made.sampling["steps"] == 1
    again = convert(student[0], song(), sampling=SamplingOptions(seed=1, steps=4))
    assert np.isfinite(made.audio).all() and not np.array_equal(made.audio, again.audio)
    with pytest.raises(ConversionError):  # other samplers integrate a flow, and its output is none
        convert(student[0], song(), sampling=SamplingOptions("dpmpp", 8))


def test_it_resumes_to_the_bit(teacher, tmp_path):
    for run, sessions in (("whole", (12,)), ("parts", (5, 12))):
        for steps in sessions:
            training.train(MelDataset(), tmp_path / run, preset(steps=steps), init=teacher)
    whole, parts = (toy.tensors(tmp_path / run) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert toy.losses(tmp_path / "whole") == toy.losses(tmp_path / "parts")


def test_what_cannot_be_a_teacher_is_refused(teacher, student, tmp_path):
    def refused(*named, run="run", **options):
        with pytest.raises(TrainingError) as raised:
            training.train(MelDataset(), tmp_path / run, preset(), **options)
        assert_explains(raised.value)
        assert all(name in str(raised.value) for name in named)

    refused("teacher", init=None)
    refused("teacher", init="base")  # another network
    refused("prediction", init=student[0].path)
    refused("prediction", init=save_instrument(tmp_path, "eps", dataclasses.replace(SETTINGS, prediction="eps")))
    refused("toy", init=save_instrument(tmp_path, "choir", SETTINGS))  # of ann and bea
    training.train(MelDataset(), tmp_path / "begun", preset(steps=2), init=teacher)
    other, model = tmp_path / "other.zip", instrument.open(teacher).model
    model.denoiser.last.bias += 1
    instrument.save(other, model, FEATURES, MelDataset.statistics, created="x", name="other")
    refused("other", "teacher", run="begun", init=other)
    with pytest.raises(TrainingError):  # nor does an ordinary run begin from a student
        training.train(MelDataset(), tmp_path / "plain", toy.preset(SETTINGS, FEATURES), init=student[0].path)


def test_the_command_goes_on_where_it_stopped(capsys, tmp_path, monkeypatch, teacher):
    seen = []
    monkeypatch.setattr(training, "_opened", lambda dataset: MelDataset())
    monkeypatch.setattr("svclib.load_preset", lambda files, overrides: seen.append(files) or preset())
    call = ["distill", "--instrument", teacher, "--dataset", "x", "--run", tmp_path / "run"]
    for steps in (3, 5):
        assert main([str(x) for x in [*call, "--steps", steps]]) == 0
        assert f"step {steps} of {steps}" in capsys.readouterr().out
    assert seen == [["diffusion_small", "distilled"]] * 2
    assert main([str(x) for x in ["distill", "--instrument", "none.zip", *call[3:]]]) == 2


def test_the_overlay_makes_a_student_of_the_preset():
    base, overlaid = config.load("diffusion_small"), config.load(["diffusion_small", "distilled"])
    own = {name: getattr(overlaid.model, name) for name in ("prediction", "sampler", "sampler_steps")}
    assert own["prediction"] == own["sampler"] == "consistency"
    assert dataclasses.replace(base.model, **own) == overlaid.model
    assert "distilled" not in config.preset_names()
    with pytest.raises(ConfigError):
        config.load(["diffusion_small"], ["prediction=unknown"])
