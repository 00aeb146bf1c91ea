"""Noise levels of DiffWave for ``diffusion.samplers``: the trained steps, or a fast schedule aligned with them.

After Kong et al., *DiffWave* (ICLR 2021, https://arxiv.org/abs/2009.09761): the reverse process of Algorithm 1 is the
sampler ``ddpm``; appendix B evaluates the network at real diffusion times whose noise levels are those of a shorter
schedule ``eta_1 .. eta_S``. Diffusion time counts from 0 here: the paper's step 25 is 24.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from svclib.models.diffusion.samplers import (
    SAMPLERS,
    DenoiserCall,
    EpsModel,
    SamplerStep,
    SamplingOptions,
    seeded_noise,
    solve,
)
from svclib.models.diffusion.schedule import NoiseLevel, Schedule
from svclib.utils.errors import ModelError

FAST = {
    "base": (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.5),
    "large": (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.7),
}  # the paper's six-step schedules


def align(schedule: Schedule, etas: Sequence[int | float]) -> list[float]:
    """The trained diffusion times with the noise levels of a fast schedule (appendix B), rising.

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


def fast_levels(schedule: Schedule, etas: Sequence[int | float]) -> list[NoiseLevel]:
    """The noise levels of a fast schedule at their aligned times, the noisiest first."""
    power = np.cumprod(1.0 - np.asarray(etas, dtype=np.float64))
    half_log_snr = 0.5 * (np.log(power) - np.log1p(-power))
    rows = zip(align(schedule, etas), np.sqrt(power), np.sqrt(1.0 - power), half_log_snr, strict=True)
    return [NoiseLevel(*map(float, row)) for row in rows][::-1]


def trained_levels(schedule: Schedule, start_t: int | None = None) -> list[NoiseLevel]:
    """The noise levels of every trained step from ``start_t`` (by default the noisiest) down."""
    first = schedule.n_steps - 1 if start_t is None else start_t
    if not 0 <= first < schedule.n_steps:
        raise ModelError(f"The start time is {first}; this model's times run from 0 to {schedule.n_steps - 1}.")
    return [schedule.level(t) for t in range(first, -1, -1)]


def draw_noise(
    generator: torch.Generator | None, shared: bool = False, std: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Fresh noise for samplers: one for the whole batch if ``shared``; of the prior's ``std`` at every sample."""
    plain = seeded_noise(generator)

    def draw(x: Tensor) -> Tensor:
        noise = plain(x[:1] if shared else x)
        return noise if std is None else noise * std

    return draw


def sample(
    denoiser: EpsModel,
    x_t: Tensor,
    levels: Sequence[NoiseLevel],
    draw: Callable[[Tensor], Tensor],
    options: SamplingOptions | None = None,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Run a sampler, by default ``ddpm``, from ``x_t`` at the first of the levels to audio, which is not limited."""
    o = options or SamplingOptions()
    name, temperature = o.sampler or "ddpm", 1.0 if o.temperature is None else o.temperature
    n_calls = SAMPLERS[name].n_calls(len(levels))
    return solve(
        DenoiserCall(denoiser, n_calls, None, draw, temperature, callback, cancelled), x_t, levels, name, o.eta
    )
