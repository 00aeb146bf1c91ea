"""Truths held here: a perfect denoiser gives the clean signal back through every sampler; Gaussian and mixture data
have their probability-flow map in closed form (orders of convergence, and the error of 20 steps); diffusers'
schedulers are a second implementation; watching changes nothing."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import norm

from svclib.models.diffusion import samplers, schedule
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils.errors import Cancelled, ConfigError, ModelError

MEL = schedule.Schedule()
DETERMINISTIC = ("ddim", "plms", "dpmpp")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The schedule ---------------------------------------------------------------------------------------------------------


def test_schedule_known_values():
    assert MEL.alpha_bar[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    for steps, last, want in ((20, 0.05, 0.600619), (40, 0.05, 0.360828), (50, 0.05, 0.279673), (200, 0.02, 0.132183)):
        assert schedule.Schedule(steps, 1e-4, last).alpha_bar[-1] == pytest.approx(want, abs=1e-6)
    wave = schedule.Schedule(200, 1e-4, 0.02)
    assert wave.alpha_sigma(24)[1] == pytest.approx(0.178898, abs=1e-6)
    assert wave.alpha_sigma(49)[1] == pytest.approx(0.346260, abs=1e-6)


def test_schedule_between_steps():
    for t in (0, 1, 500, 999):
        alpha, sigma = MEL.alpha_sigma(t)
        assert alpha**2 == pytest.approx(MEL.alpha_bar[t], rel=1e-12)
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)
    for t in (0.25, 3.5, 998.9):
        assert MEL.time_at(MEL.half_log_snr_at(t)) == pytest.approx(t, abs=1e-9)
    t = torch.tensor([0.0, 0.25, 500.0, 999.0])
    half = torch.tensor([MEL.half_log_snr_at(float(x)) for x in t], dtype=torch.float64)
    alpha, sigma = MEL.alpha_sigma(t)
    torch.testing.assert_close((alpha / sigma).log(), half, rtol=1e-9, atol=1e-9)
    for i, x in enumerate(t):
        level = MEL.level(float(x))
        assert (level.t, level.alpha, level.sigma) == (float(x), float(alpha[i]), float(sigma[i]))
    like = torch.zeros(4, 2, 3)
    assert (
        schedule.expand_like(alpha, like).shape == (4, 1, 1) and schedule.expand_like(alpha, like).dtype == like.dtype
    )


def test_forward_process_moments():
    x0 = torch.full((200_000, 1), 0.7, dtype=torch.float64)
    for t in (0, 300, 999):
        x_t = MEL.diffuse(x0, torch.full((200_000,), t), normal(200_000, 1))
        assert float(x_t.mean()) == pytest.approx(0.7 * np.sqrt(MEL.alpha_bar[t]), abs=0.008)
        assert float(x_t.std()) == pytest.approx(np.sqrt(1 - MEL.alpha_bar[t]), rel=0.01)


def test_one_leap_equals_many_small_steps():
    x0, rng = np.full(100_000, 0.7), np.random.default_rng(0)
    x = x0.copy()
    for beta in MEL.betas[:300]:
        x = np.sqrt(1 - beta) * x + np.sqrt(beta) * rng.standard_normal(len(x))
    assert x.mean() == pytest.approx(0.7 * np.sqrt(MEL.alpha_bar[299]), abs=0.01)
    assert x.std() == pytest.approx(np.sqrt(1 - MEL.alpha_bar[299]), rel=0.01)


def test_conversions_agree():
    x0, eps = normal(5, 3), normal(5, 3, seed=1)
    for t in (0, 400, 999):
        alpha, sigma = MEL.alpha_sigma(t)
        x_t = alpha * x0 + sigma * eps
        torch.testing.assert_close(schedule.x0_from_eps(x_t, eps, alpha, sigma), x0, atol=1e-10, rtol=0)
        torch.testing.assert_close(schedule.eps_from_x0(x_t, x0, alpha, sigma), eps, atol=1e-10, rtol=0)


def test_impossible_schedules_are_refused():
    for bad in ((1, 1e-4, 0.02), (100, 0.0, 0.02), (100, 0.02, 1e-4), (100, 1e-4, 1.0)):
        with pytest.raises(ValueError, match="impossible"):
            schedule.Schedule(*bad)


# Oracles --------------------------------------------------------------------------------------------------------------


def gaussian(mean, std, plan=MEL):
    """The exact noise of data N(mean, std^2), and the exact map of the probability flow between two levels."""

    def eps(x, t):
        alpha, sigma = plan.alpha_sigma(t)
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    def flow(x, t, to=None):
        alpha, sigma = plan.alpha_sigma(t)
        alpha_to, sigma_to = (1.0, 0.0) if to is None else plan.alpha_sigma(to)
        spread, spread_to = np.sqrt(alpha**2 * std**2 + sigma**2), np.sqrt(alpha_to**2 * std**2 + sigma_to**2)
        return alpha_to * mean + spread_to / spread * (x - alpha * mean)

    return eps, flow


WEIGHTS, MEANS, STDS = np.array([0.35, 0.40, 0.25]), np.array([-0.75, -0.2, 0.35]), np.array([0.05, 0.10, 0.08])


def mixture_eps(x, t):
    alpha, sigma = MEL.alpha_sigma(t)
    variance = alpha**2 * STDS**2 + sigma**2
    away = x.numpy()[..., None] - alpha * MEANS
    log = np.log(WEIGHTS) - away**2 / (2 * variance) - np.log(variance) / 2
    share = np.exp(log - log.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return torch.from_numpy(sigma * (share * away / variance).sum(-1))


def mixture_flow(x):
    """In one dimension the probability flow keeps every quantile: invert the data's distribution function."""
    alpha, sigma = MEL.alpha_sigma(999)
    quantile = (WEIGHTS * norm.cdf((x[:, None] - alpha * MEANS) / np.sqrt(alpha**2 * STDS**2 + sigma**2))).sum(1)
    low, high = np.full(len(x), -3.0), np.full(len(x), 3.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = (WEIGHTS * norm.cdf((middle[:, None] - MEANS) / STDS)).sum(1) < quantile
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return low


@pytest.mark.parametrize("method", samplers.SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 1000])
def test_perfect_denoiser_gives_the_clean_signal(method, steps):
    if steps == 1000 and method == "plms":
        steps = 999  # other than a divisor of the schedule
    x0 = normal(2, 3, 5, seed=3).clamp(-1, 1)
    knows = lambda x, t: schedule.eps_from_x0(x, x0, *MEL.alpha_sigma(t))  # noqa: E731
    got = samplers.sample(
        knows, MEL, normal(2, 3, 5), SamplingOptions(method, steps), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(got, x0, atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", samplers.SAMPLERS)
def test_perfect_denoiser_from_a_shallow_start(method):
    x0 = normal(1, 4, 6, seed=3)
    x_t = MEL.diffuse(x0 + 0.3, torch.tensor([199]), normal(1, 4, 6))
    asked = []

    def knows(x, t):
        asked.append(t)
        return schedule.eps_from_x0(x, x0, *MEL.alpha_sigma(t))

    got = samplers.sample(
        knows, MEL, x_t, SamplingOptions(method, 10, shallow=200), generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(got, x0, atol=1e-8, rtol=0)
    assert max(asked) == asked[0] == 199


def order(method, counts, start_t=700):
    """Observed order: slope of log error against log steps where the flow reaches the last diffusion time."""
    eps, flow = gaussian(0.2, 0.4)
    x = normal(500)
    errors = []
    for steps in counts:
        last = []
        samplers.sample(eps, MEL, x, SamplingOptions(method, steps, shallow=start_t + 1), callback=last.append)
        exact = flow(x, start_t, last[-1].t)
        errors.append(float((last[-1].x_t - exact).abs().mean()))
    return np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def test_orders_of_convergence_on_gaussian_data():
    assert order("ddim", (25, 50, 100, 175))[0] == pytest.approx(-1, abs=0.15)
    slope, errors = order("dpmpp", (10, 20, 40, 80))
    assert slope == pytest.approx(-2, abs=0.25)
    assert order("plms", (25, 50, 100, 175))[0] < -1.7


def test_twenty_steps_on_the_mixture():
    x = normal(2000)
    exact = mixture_flow(x.numpy())
    error = {
        (m, n): float(np.abs(samplers.sample(mixture_eps, MEL, x, SamplingOptions(m, n)).numpy() - exact).mean())
        for m, n in (("dpmpp", 10), ("dpmpp", 20), ("dpmpp", 50), ("ddim", 20), ("plms", 100))
    }
    assert error["dpmpp", 20] <= 0.006
    assert error["dpmpp", 10] <= 0.025
    assert error["dpmpp", 50] <= 0.001
    assert 0.04 < error["ddim", 20] < 0.055  # as published: .0465
    assert error["plms", 100] <= 0.004


def test_uniform_spacing_would_be_worse(monkeypatch):
    x = normal(2000)
    exact = mixture_flow(x.numpy())
    even = [999 - i * 999 / 20 for i in range(20)]
    monkeypatch.setattr(samplers, "sampling_times", lambda *a: even)
    error = float(np.abs(samplers.sample(mixture_eps, MEL, x, SamplingOptions("dpmpp", 20)).numpy() - exact).mean())
    assert error > 0.025


def test_ddpm_draws_from_the_data():
    eps, _ = gaussian(0.3, 0.3)
    generator = torch.Generator().manual_seed(0)
    got = samplers.sample(eps, MEL, normal(20_000), SamplingOptions("ddpm", 1000), generator=generator)
    assert float(got.mean()) == pytest.approx(0.3, abs=0.01)
    assert float(got.std()) == pytest.approx(0.3, abs=0.01)


# A second implementation ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
    return diffusers


def run_scheduler(scheduler, steps, x, **options):
    scheduler.set_timesteps(steps)
    x = x.clone()
    for t in scheduler.timesteps:
        x = scheduler.step(mixture_eps(x.flatten(), int(t)).view(x.shape).to(x), t, x, **options).prev_sample
    return x


COMMON = {"beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_ddim_is_diffusers(diffusers, steps):
    x = normal(50)
    theirs = run_scheduler(diffusers.DDIMScheduler(**COMMON, clip_sample=False), steps, x)
    torch.testing.assert_close(
        samplers.sample(mixture_eps, MEL, x, SamplingOptions("ddim", steps)), theirs, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("steps", [5, 20, 100])
def test_plms_is_diffusers(diffusers, steps):
    x = normal(50)
    theirs = run_scheduler(diffusers.PNDMScheduler(**COMMON, skip_prk_steps=True, set_alpha_to_one=True), steps, x)
    torch.testing.assert_close(
        samplers.sample(mixture_eps, MEL, x, SamplingOptions("plms", steps)), theirs, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("steps", [50, 1000])
def test_ddpm_is_diffusers(diffusers, steps):
    x = normal(50, 1).float()
    scheduler = diffusers.DDPMScheduler(**COMMON, variance_type="fixed_small", clip_sample=False)
    theirs = run_scheduler(scheduler, steps, x, generator=torch.Generator().manual_seed(7))
    float_eps = lambda x, t: mixture_eps(x[:, 0], t).float()[:, None]  # noqa: E731
    ours = samplers.sample(
        float_eps, MEL, x, SamplingOptions("ddpm", steps), generator=torch.Generator().manual_seed(7)
    )
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    assert float((ours - theirs).abs().median()) < 1e-4


def test_a_limited_prediction_brings_its_own_noise(diffusers):
    """Where x0 is limited, the noise estimate is that of the limited x0: the rule of diffusers' clip_sample."""
    x, limit = normal(50), 0.3  # the data reach beyond, on the way too
    scheduler = diffusers.DDIMScheduler(**COMMON, clip_sample=True, clip_sample_range=limit)
    theirs = run_scheduler(scheduler, 20, x, use_clipped_model_output=True)
    ours = samplers.sample(mixture_eps, MEL, x, SamplingOptions("ddim", 20), clip=limit)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert float((samplers.sample(mixture_eps, MEL, x, SamplingOptions("ddim", 20)) - ours).abs().mean()) > 0.05
    x, limits = normal(50, 1).float(), {"clip_sample": True, "clip_sample_range": limit}
    scheduler = diffusers.DDPMScheduler(**COMMON, variance_type="fixed_small", **limits)
    theirs = run_scheduler(scheduler, 50, x, generator=torch.Generator().manual_seed(7))
    float_eps = lambda x, t: mixture_eps(x[:, 0], t).float()[:, None]  # noqa: E731
    generator = torch.Generator().manual_seed(7)
    ours = samplers.sample(float_eps, MEL, x, SamplingOptions("ddpm", 50), clip=limit, generator=generator)
    assert float((ours - theirs).abs().median()) < 1e-4


@pytest.mark.parametrize("steps", [10, 20])
def test_dpmpp_is_diffusers(diffusers, steps, monkeypatch):
    """At their whole-number times; ours, unrounded, end nearer to the exact flow."""
    x = normal(2000)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_lu_lambdas=True,
        final_sigmas_type="zero",
    )
    theirs = run_scheduler(scheduler, steps, x)
    unrounded = samplers.sample(mixture_eps, MEL, x, SamplingOptions("dpmpp", steps))
    assert float((unrounded - theirs).abs().mean()) < 0.004
    # Their sigmas are not rounded with their times, so the levels are ours and only the question is rounded.
    ours = samplers.sampling_times(MEL, "dpmpp", steps)
    levels = {round(t, 6): int(s) for t, s in zip(ours, scheduler.timesteps, strict=True)}
    rounded = samplers.sample(lambda x, t: mixture_eps(x, levels[round(t, 6)]), MEL, x, SamplingOptions("dpmpp", steps))
    assert float((rounded - theirs).abs().mean()) < 5e-4


# Behaviour ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", samplers.SAMPLERS)
def test_watching_changes_nothing(method):
    x = normal(2, 3, 4)
    seen = []

    def run(callback=None):
        generator = torch.Generator().manual_seed(5)
        return samplers.sample(
            mixture_eps, MEL, x, SamplingOptions(method, 12), clip=1.0, generator=generator, callback=callback
        )

    alone, watched = run(), run(lambda s: seen.append(s))
    assert torch.equal(alone, watched)
    assert [s.index for s in seen] == list(range(12 + (method == "plms")))
    assert {s.n_calls for s in seen} == {len(seen)}
    for s in seen:
        assert (s.alpha, s.sigma) == MEL.alpha_sigma(s.t)
        torch.testing.assert_close(s.eps_hat, mixture_eps(s.x_t, s.t), atol=0, rtol=0)
        want = schedule.x0_from_eps(s.x_t, s.eps_hat, *MEL.alpha_sigma(s.t)).clamp(-1, 1)
        torch.testing.assert_close(s.x0_hat, want, atol=1e-12, rtol=0)
    assert torch.equal(seen[0].x_t, x)
    if method != "plms":
        torch.testing.assert_close(seen[-1].x0_hat, watched, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", samplers.SAMPLERS)
def test_clip_bounds_the_result_and_keeps_a_perfect_one(method):
    wild = samplers.sample(lambda x, t: -3 * x, MEL, normal(4, 8), SamplingOptions(method, 10), clip=1.0)
    assert float(wild.abs().max()) <= 1
    x0 = normal(40).clamp(-1, 1)
    knows = lambda x, t: schedule.eps_from_x0(x, x0, *MEL.alpha_sigma(t))  # noqa: E731
    torch.testing.assert_close(
        samplers.sample(knows, MEL, normal(40), SamplingOptions(method, 10), clip=1.0), x0, atol=1e-8, rtol=0
    )


def test_seed_decides_the_random_steps():
    def run(seed, method="ddpm", eta=None):
        generator = torch.Generator().manual_seed(seed)
        return samplers.sample(mixture_eps, MEL, normal(30), SamplingOptions(method, 20, eta=eta), generator=generator)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1, "ddim"), run(2, "ddim"))
    assert torch.equal(run(1, "ddim", eta=1.0), run(1))


def test_times_of_each_method():
    for method in ("ddpm", "ddim", "plms"):
        assert samplers.sampling_times(MEL, method, 4) == [999, 749, 499, 249]
        assert samplers.sampling_times(MEL, method, 1000) == list(range(999, -1, -1))
        assert samplers.sampling_times(MEL, method, 3, start_t=99) == [99, 66, 32]
    ts = samplers.sampling_times(MEL, "dpmpp", 20)
    assert (ts[0], ts[-1], len(ts)) == (999, 0, 20)
    steps = np.diff([MEL.half_log_snr_at(t) for t in ts])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_refusals_say_what_is_possible():
    x = normal(3)
    for kwargs, words in (
        ({"shallow": 1001}, "0 to 999"),
        ({"sampler": "ddim", "steps": 200, "shallow": 100}, "at most 100"),
        ({"sampler": "plms", "eta": 0.5}, "eta"),
    ):
        with pytest.raises(ModelError, match=words):
            samplers.sample(mixture_eps, MEL, x, SamplingOptions(**kwargs))
    for bad in ({"sampler": "euler"}, {"steps": 0}, {"temperature": 2.5}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            SamplingOptions(**bad)
    with pytest.raises(ModelError, match="ddpm, ddim, plms, dpmpp"):
        samplers.sampling_times(MEL, "euler", 4)
    with pytest.raises(ModelError, match="at least 1"):
        samplers.sampling_times(MEL, "ddim", 0)
    with pytest.raises(Cancelled):
        samplers.sample(mixture_eps, MEL, x, cancelled=lambda: True)
