"""DiffWave's two walks from noise to sound: every trained step, or a few steps aligned with the trained ones.

After Kong et al., *DiffWave* (ICLR 2021, https://arxiv.org/abs/2009.09761): the reverse process of Algorithm 1 and the
fast sampling of appendix B. A user's schedule ``eta_1 .. eta_S`` makes its own noise levels; before each step the
network is asked at the trained diffusion time with that level, a real number between two trained steps. Diffusion time
counts from 0 here, as everywhere in the project: the paper's step 25 is 24.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from svclib.models.diffusion.samplers import EpsModel, SamplerStep
from svclib.models.diffusion.schedule import Schedule, x0_from_eps
from svclib.utils.errors import ModelError
from svclib.utils.progress import raise_if_cancelled

FAST = {
    "base": (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.5),
    "large": (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.7),
}  # the paper's six-step schedules


def paper_schedule(n_steps: int = 50) -> Schedule:
    """The schedule the paper trains ``n_steps`` with: up to beta 0.05 for 20, 40 or 50 steps, 0.02 for 200.

    For a number of steps the paper does not use it raises ModelError.
    """
    last = {20: 0.05, 40: 0.05, 50: 0.05, 200: 0.02}.get(n_steps)
    if last is None:
        raise ModelError(f"The paper trains 20, 40, 50 or 200 steps, not {n_steps}; write a Schedule of your own.")
    return Schedule(n_steps, 1e-4, last)


def align(schedule: Schedule, etas: Sequence[int | float]) -> list[float]:
    """The trained diffusion times with the noise levels of a user's schedule (appendix B), rising.

    ``t_s = t + (sqrt(abar_t) - sqrt(gbar_s)) / (sqrt(abar_t) - sqrt(abar_{t+1}))`` where ``sqrt(gbar_s)`` lies between
    ``sqrt(abar_{t+1})`` and ``sqrt(abar_t)``.

    Args:
        schedule: What the network was trained with.
        etas: Noise variance added at each step, least first.

    Returns:
        A real time from 0 to ``n_steps - 1`` for each eta.

    Raises:
        ModelError: if there is no eta, or one is no share of 0 to 1, is below the one before, or leads to a noise
            level no trained step has; names the eta.
    """
    trained, level, times = np.sqrt(schedule.alpha_bar), 1.0, []
    if not len(etas):
        raise ModelError("The list of etas is empty; a schedule needs at least one step.")
    for i, eta in enumerate(etas):
        where = f"eta {i + 1} of {len(etas)} ({eta:g})"
        if not 0 < eta < 1:
            raise ModelError(f"{where} has to lie between 0 and 1.")
        if i and eta < etas[i - 1]:
            raise ModelError(f"{where} is below the one before it ({etas[i - 1]:g}); give the least noise first.")
        level *= 1.0 - eta
        root = math.sqrt(level)
        slack = 1e-12
        if root > trained[0] + slack or root < trained[-1] - slack:
            side = "less" if root > trained[0] else "more"
            low, high = schedule.alpha_bar[-1], schedule.alpha_bar[0]
            raise ModelError(
                f"{where} leads to {side} noise than any trained step has: signal power {level:.4f}, where this model "
                f"knows {low:.4f} to {high:.4f}. Choose a {'larger' if side == 'less' else 'smaller'} value there."
            )
        t = int(np.clip(np.searchsorted(-trained, -root, side="right") - 1, 0, schedule.n_steps - 2))
        times.append(float(np.clip(t + (trained[t] - root) / (trained[t] - trained[t + 1]), 0, schedule.n_steps - 1)))
    return times


def sample(
    denoiser: EpsModel,
    schedule: Schedule,
    x_t: Tensor,
    etas: Sequence[int | float] | None = None,
    start_t: int | None = None,
    clamp: bool = False,
    generator: torch.Generator | None = None,
    shared: bool = False,
    spread: Tensor | None = None,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Walk from ``x_t`` to sound: ``x <- (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) + sigma z`` (Algorithm 1).

    Args:
        denoiser: ``(x_t, t) -> eps``.
        schedule: What the network was trained with.
        x_t: Pure noise, or a signal at the noise level of ``start_t``.
        etas: A fast schedule; every trained step where not given.
        start_t: Diffusion time of ``x_t``, counted from 0; the noisiest where not given.
        clamp: Limit ``x`` to -1 .. 1 after every step, as one public implementation does and the paper does not: it
            costs level where the signal is loud.
        generator: Source of the fresh noise ``z``.
        shared: One fresh noise for the whole batch.
        spread: Standard deviation of the fresh noise at every sample, where the prior is not the standard one; ``x_t``
            has to have it already.
        callback: Sees every step; changes no bit of the result.
        cancelled: Asked before each step.

    Returns:
        The sound, shape and device of ``x_t``.

    Raises:
        ModelError: as :func:`align`; for a start outside the schedule, or one together with ``etas``.
        Cancelled: when ``cancelled()`` returns True.
    """
    if etas is not None and start_t is not None:
        raise ModelError("A start in the middle takes every trained step from there; leave the etas out.")
    first = schedule.n_steps - 1 if start_t is None else start_t
    if not 0 <= first < schedule.n_steps:
        raise ModelError(f"The start step is {first}; this model's times run from 0 to {schedule.n_steps - 1}.")
    betas = schedule.betas[: first + 1] if etas is None else np.asarray(etas, dtype=np.float64)
    times = [float(t) for t in range(first + 1)] if etas is None else align(schedule, etas)
    power = np.cumprod(1.0 - betas)
    x = x_t
    with torch.no_grad():
        for index, i in enumerate(reversed(range(len(betas)))):
            raise_if_cancelled(cancelled)
            beta, alpha, sigma = float(betas[i]), math.sqrt(power[i]), math.sqrt(1.0 - power[i])
            eps = denoiser(x, times[i])
            if callback is not None:
                x0 = x0_from_eps(x, eps, alpha, sigma)
                callback(SamplerStep(index, len(betas), times[i], x, x0, eps, sigma, alpha))
            x = (x - (beta / sigma) * eps) * (1.0 / math.sqrt(1.0 - beta))
            if i:
                fresh = math.sqrt((1.0 - power[i - 1]) / (1.0 - power[i]) * beta)
                device = x.device if generator is None else generator.device
                shape = (1, *x.shape[1:]) if shared else x.shape
                z = torch.randn(shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
                x = x + fresh * (z if spread is None else z * spread)
            x = x.clamp(-1.0, 1.0) if clamp else x
    return x
