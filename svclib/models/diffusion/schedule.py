"""Noise schedule: variance-preserving forward process and the algebra between noise and clean signal.

``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t^2 + sigma_t^2 = 1`` (Ho et al. 2020, Eq. 4; there
``alpha_t = sqrt(alpha_bar_t)``). Diffusion time counts from 0, the least noise, to ``n_steps - 1``; -1 is the clean
signal. Between whole steps the log-SNR is interpolated linearly, so that samplers may evaluate at any real time.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from svclib.audio import units
from svclib.models.layers import Times
from svclib.utils.errors import ModelError


class NoiseLevel(NamedTuple):
    """One point of a noise schedule: a diffusion time with the factors of the clean signal and of the noise.

    ``half_log_snr`` is ``ln(alpha / sigma)``, the lambda of Lu et al. 2022.
    """

    t: float
    alpha: float
    sigma: float
    half_log_snr: float


CLEAN = NoiseLevel(-1.0, 1.0, 0.0, math.inf)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A linear noise schedule: ``beta`` rises from ``beta_first`` to ``beta_last`` over ``n_steps``.

    The default is the project's mel diffusion; DiffWave uses 50 steps up to 0.05 or 200 up to 0.02.
    """

    n_steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self):
        if self.n_steps < 2 or not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(
                f"A noise schedule of {self.n_steps} steps from beta {self.beta_first} to {self.beta_last} is "
                "impossible: it needs at least 2 steps and 0 < beta_first <= beta_last < 1."
            )

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """Noise variance added at each step, float64 ``[n_steps]``."""
        return np.linspace(self.beta_first, self.beta_last, self.n_steps)

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """Remaining signal power at each step, float64 ``[n_steps]``, falling."""
        return np.cumprod(1.0 - self.betas)

    @functools.cached_property
    def half_log_snr(self) -> np.ndarray:
        """``ln(alpha_t / sigma_t)`` at each step, float64 ``[n_steps]``, falling."""
        return 0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))

    def half_log_snr_at(self, t: int | float) -> float:
        """``ln(alpha / sigma)`` at a real time in ``0 .. n_steps - 1``."""
        return float(np.interp(t, np.arange(self.n_steps), self.half_log_snr))

    def time_at(self, half_log_snr: int | float) -> float:
        """The real time at which ``ln(alpha / sigma)`` has this value."""
        return float(np.interp(-half_log_snr, -self.half_log_snr, np.arange(self.n_steps)))

    def alpha_sigma(self, t):
        """Factors of signal and noise at real times: float64 tensors in the shape of ``t``, or numbers for a number."""
        if not isinstance(t, Tensor):
            alpha, sigma = self.alpha_sigma(torch.tensor(float(t), dtype=torch.float64, device="cpu"))
            return float(alpha), float(sigma)
        table = _table(self, t.device)
        low = t.long().clamp(0, self.n_steps - 2)
        half = table[low] + (units.double(t) - low) * (table[low + 1] - table[low])
        # alpha^2 = sigmoid(log SNR), sigma^2 = sigmoid(-log SNR): Kingma et al. 2021, Eq. 3.
        return torch.sigmoid(2 * half).sqrt(), torch.sigmoid(-2 * half).sqrt()

    def level(self, t: int | float) -> NoiseLevel:
        """The noise level at a real time."""
        alpha, sigma = self.alpha_sigma(t)
        return NoiseLevel(float(t), alpha, sigma, self.half_log_snr_at(t))

    def aligned_levels(self, etas: Sequence[int | float]) -> list[NoiseLevel]:
        """The noise levels of a shorter schedule at the real times where this one has them, the noisiest first.

        ``etas`` are the noise variances added at each step, least first. ``t_s = t + (sqrt(abar_t) - sqrt(gbar_s)) /
        (sqrt(abar_t) - sqrt(abar_{t+1}))`` where ``sqrt(gbar_s)`` lies between ``sqrt(abar_{t+1})`` and
        ``sqrt(abar_t)`` (DiffWave, Kong et al. 2021, appendix B). A ModelError names an eta that is no share of 0 to 1,
        is below the one before, or leads to a noise level that this schedule does not have.
        """
        if not len(etas):
            raise ModelError("The list of etas is empty; a schedule needs at least one step.")
        power, before = np.cumprod(1.0 - np.asarray(etas, dtype=np.float64)), 0.0
        low, high = self.alpha_bar[-1] - 1e-12, self.alpha_bar[0] + 1e-12
        for i, (eta, left) in enumerate(zip(etas, power, strict=True), 1):
            where = f"eta {i} of {len(etas)} ({eta:g})"
            if not 0 < eta < 1:
                raise ModelError(f"{where} has to lie between 0 and 1.")
            if eta < before:
                raise ModelError(f"{where} is below the one before it ({before:g}); give the least noise first.")
            if not low <= left <= high:
                raise ModelError(
                    f"{where} leads to {'less' if left > high else 'more'} noise than any trained step has: signal "
                    f"power {left:.4f}, where this model knows {low:.4f} to {high:.4f}."
                )
            before = eta
        times = np.interp(-np.sqrt(power), -np.sqrt(self.alpha_bar), np.arange(self.n_steps))
        half_log_snr = 0.5 * (np.log(power) - np.log1p(-power))
        rows = zip(times, np.sqrt(power), np.sqrt(1.0 - power), half_log_snr, strict=True)
        return [NoiseLevel(*map(float, row)) for row in rows][::-1]

    def levels_from(self, start_t: int) -> list[NoiseLevel]:
        """The noise levels of every step from a time down."""
        return [self.level(t) for t in range(start_t, -1, -1)]

    def diffuse(
        self, x0: Float[Tensor, "batch *rest"], t: Tensor, noise: Float[Tensor, "batch *rest"]
    ) -> Float[Tensor, "batch *rest"]:
        """The forward process (Ho et al. 2020, Eq. 4) at times ``[batch]``."""
        alpha, sigma = (expand_like(x, x0) for x in self.alpha_sigma(t))
        return alpha * x0 + sigma * noise


@functools.lru_cache(maxsize=32)
def _table(schedule: Schedule, device: torch.device) -> Tensor:
    """The half log-SNR on a device: copying it there at every call would hold up a GPU."""
    return units.double(torch.from_numpy(schedule.half_log_snr), device)


def expand_like(x: Times, like: Tensor) -> Tensor:
    """``x`` shaped and typed to multiply ``like`` ``[batch, ...]``."""
    return x.view((-1,) + (1,) * (like.ndim - 1)).to(like.dtype)


def x0_from_eps(x_t, eps, alpha, sigma):
    """Clean signal implied by a noise estimate: ``(x_t - sigma eps) / alpha``."""
    return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t, x0, alpha, sigma):
    """Noise implied by a clean signal: ``(x_t - alpha x_0) / sigma``."""
    return (x_t - alpha * x0) / sigma
