"""How noise grows with diffusion time, and the algebra between noise, clean signal and velocity.

One variance-preserving process: ``x_t = alpha_t x_0 + sigma_t eps`` with ``alpha_t^2 + sigma_t^2 = 1`` (Ho et al. 2020,
Eq. 4; there ``alpha_t = sqrt(alpha_bar_t)``). Diffusion time counts from 0, the least noise, to ``n_steps - 1``.
Between whole steps the log-SNR is interpolated linearly, so that samplers may stop at any real time.
"""

import dataclasses
import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


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
        """Share of the signal's power left at each step, float64 ``[n_steps]``, falling."""
        return np.cumprod(1.0 - self.betas)

    @functools.cached_property
    def half_log_snr(self) -> np.ndarray:
        """``ln(alpha_t / sigma_t)`` at each step, float64 ``[n_steps]``, falling."""
        return 0.5 * (np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))

    def log_snr_at(self, t: int | float) -> float:
        """``ln(alpha / sigma)`` at a real time in ``0 .. n_steps - 1``."""
        return float(np.interp(t, np.arange(self.n_steps), self.half_log_snr))

    def time_at(self, half_log_snr: int | float) -> float:
        """The real time at which ``ln(alpha / sigma)`` has this value."""
        return float(np.interp(-half_log_snr, -self.half_log_snr, np.arange(self.n_steps)))

    def alpha_sigma(self, t: int | float) -> tuple[float, float]:
        """Factors of signal and noise at a real time."""
        twice = 2.0 * self.log_snr_at(t)
        return math.sqrt(1.0 / (1.0 + math.exp(-twice))), math.sqrt(1.0 / (1.0 + math.exp(twice)))

    def factors(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha`` and ``sigma`` for real times ``[batch]``, shaped to multiply ``like`` ``[batch, ...]``."""
        table = torch.as_tensor(self.half_log_snr, device=t.device)
        low = t.long().clamp(0, self.n_steps - 2)
        half = table[low] + (t.double() - low) * (table[low + 1] - table[low])
        half = half.view((-1,) + (1,) * (like.ndim - 1))
        return torch.sigmoid(2 * half).sqrt().to(like.dtype), torch.sigmoid(-2 * half).sqrt().to(like.dtype)

    def diffuse(
        self, x0: Float[Tensor, "batch *rest"], t: Tensor, noise: Float[Tensor, "batch *rest"]
    ) -> Float[Tensor, "batch *rest"]:
        """The forward process in one leap: ``alpha_t x_0 + sigma_t noise`` for times ``[batch]``."""
        alpha, sigma = self.factors(t, x0)
        return alpha * x0 + sigma * noise


def x0_from_eps(x_t, eps, alpha, sigma):
    """Clean signal implied by a noise estimate: ``(x_t - sigma eps) / alpha``."""
    return (x_t - sigma * eps) / alpha


def eps_from_x0(x_t, x0, alpha, sigma):
    """Noise implied by a clean signal: ``(x_t - alpha x_0) / sigma``."""
    return (x_t - alpha * x0) / sigma


def v_from_eps(x_t, eps, alpha, sigma):
    """Velocity ``alpha eps - sigma x_0`` (Salimans and Ho 2022, appendix D) implied by a noise estimate."""
    return (eps - sigma * x_t) / alpha


def eps_from_v(x_t, v, alpha, sigma):
    """Noise implied by a velocity: ``sigma x_t + alpha v``."""
    return sigma * x_t + alpha * v


def x0_from_v(x_t, v, alpha, sigma):
    """Clean signal implied by a velocity: ``alpha x_t - sigma v``."""
    return alpha * x_t - sigma * v
