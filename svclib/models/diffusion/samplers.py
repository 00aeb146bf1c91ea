"""From noise to signal: four ways to walk a trained denoiser back through diffusion time.

``ddpm`` is the ancestral random walk (Ho et al. 2020, Algorithm 2; with fewer steps, on the thinned chain), ``ddim``
its noiseless version (Song et al. 2021, Eq. 12), ``plms`` a four-step memory on top of it (Liu et al. 2022, Eq. 12)
and ``dpmpp`` is DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) with its steps spaced evenly in log-SNR, which is what
makes 20 of them enough.

A denoiser is any function ``(x_t, t) -> eps`` of a tensor and a real diffusion time.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from svclib.models.diffusion.schedule import Schedule, eps_from_x0, x0_from_eps
from svclib.utils.errors import ModelError
from svclib.utils.progress import raise_if_cancelled

Denoiser = Callable[[Tensor, float], Tensor]


@dataclasses.dataclass(frozen=True)
class SamplerStep:
    """One call of the denoiser. Tensors are the sampler's own: look, copy what you keep, never write into them.

    Attributes:
        index: 0 for the first call.
        n_calls: Calls of the whole run; ``plms`` makes one more than its steps.
        t: Diffusion time the denoiser was asked at.
        x_t: The noisy signal it saw.
        x0_hat: The clean signal it guessed (limited to ``clip``, where that was given).
        eps_hat: The noise it named: its output.
        noise_level: ``sigma_t``, the share of noise in ``x_t``, 0..1.
        signal_level: ``alpha_t``.
    """

    index: int
    n_calls: int
    t: float
    x_t: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    noise_level: float
    signal_level: float


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to walk; an entry of :data:`METHODS` is all that a new one needs.

    Attributes:
        walk: ``(walk, x_t, times, eta, generator) -> x_0``. ``walk(x, t)`` calls the denoiser, reports the step and
            gives ``(eps, x0)``; ``walk.levels(times, i)`` are the signal and noise level of step ``i``.
        words: For menus.
        eta: Its usual share of fresh noise, or None if it draws none.
        log_snr: Times evenly spaced in log-SNR instead of whole ones.
        n_calls: How often it calls the denoiser in so many steps.
    """

    walk: Callable[..., Tensor]
    words: str
    eta: float | int | None = None
    log_snr: bool = False
    n_calls: Callable[[int], int] = int


def times(schedule: Schedule, method: str, steps: int, start_t: int | float | None = None) -> list[float]:
    """The diffusion times of a run, falling; after the last one comes the clean signal.

    ``dpmpp`` takes real times, evenly spaced in log-SNR from ``start_t`` to 0. The others take whole times evenly
    spaced from ``start_t``, rounded down ("trailing" spacing: that is the first, the last is one spacing above the
    clean signal).

    Args:
        schedule: What the denoiser was trained with.
        method: A key of ``METHODS``.
        steps: How many times; but for ``dpmpp`` no more than there are whole ones.
        start_t: Where to start, from 0 to ``n_steps - 1``; None: the noisiest.

    Returns:
        ``steps`` times; ``dpmpp`` has one from ``start_t`` 0.

    Raises:
        ModelError: for an unknown method, no steps, a start outside the schedule, or more steps than whole times.
    """
    start = schedule.n_steps - 1 if start_t is None else start_t
    if method not in METHODS:
        raise ModelError(f"There is no sampler '{method}'; choose one of {', '.join(METHODS)}.")
    if not 0 <= start <= schedule.n_steps - 1:
        raise ModelError(f"The start step is {start}; this model's times run from 0 to {schedule.n_steps - 1}.")
    if steps < 1:
        raise ModelError(f"{steps} steps were asked for; a sampler needs at least 1.")
    if METHODS[method].log_snr:
        first, last = schedule.log_snr_at(start), schedule.log_snr_at(0)
        if steps == 1 or first >= last:
            return [float(start)]
        inner = [schedule.time_at(first + (last - first) * i / (steps - 1)) for i in range(1, steps - 1)]
        return [float(start), *inner, 0.0]
    whole = int(start) + 1
    if steps > whole:
        raise ModelError(
            f"{steps} steps of {method} from diffusion time {int(start)} are more than its {whole} whole times; "
            f"take at most {whole}, or dpmpp."
        )
    return [float(math.floor(whole - i * whole / steps + 0.5) - 1) for i in range(steps)]


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    x_t: Tensor,
    method: str = "dpmpp",
    steps: int = 20,
    start_t: int | float | None = None,
    eta: int | float | None = None,
    clip: int | float | None = None,
    generator: torch.Generator | None = None,
    temperature: int | float = 1.0,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Walk from ``x_t`` at time ``start_t`` to the clean signal.

    Args:
        denoiser: ``(x_t, t) -> eps``.
        schedule: The noise schedule the denoiser was trained with.
        x_t: Where to start: pure noise, or for a shallow start ``schedule.diffuse(guess, start_t, noise)``.
        method: One of ``METHODS``.
        steps: Number of steps; the denoiser is called as often (``plms`` from 2 steps on: once more).
        start_t: Diffusion time of ``x_t``; the whole schedule by default.
        eta: Share of fresh noise of ``ddim`` (0, default) and ``ddpm`` (1, default); other methods have none.
        clip: Limit of ``|x0_hat|``, for signals known to be bounded.
        generator: Source of the fresh noise; two runs with equal generators are equal.
        temperature: Factor of the fresh noise; the caller scales the noise in ``x_t`` by the same.
        callback: Sees every :class:`SamplerStep`; changes no bit of the result.
        cancelled: Asked before each call of the denoiser.

    Returns:
        The clean signal, shape and device of ``x_t``.

    Raises:
        ModelError: as :func:`times`, or for an ``eta`` the method has no use for.
        Cancelled: when ``cancelled()`` returns True.
    """
    ts = times(schedule, method, steps, start_t)
    chosen = METHODS[method]
    if eta is not None and chosen.eta is None:
        raise ModelError(f"{method} draws no fresh noise, so eta has no meaning for it; leave it out or take ddim.")
    walk = _Walk(denoiser, schedule, clip, callback, cancelled, chosen.n_calls(len(ts)), temperature)
    with torch.no_grad():
        return chosen.walk(walk, x_t, ts, chosen.eta if eta is None else eta, generator)


class _Walk:
    """Calls the denoiser and reports; the methods below do the arithmetic."""

    def __init__(self, denoiser, schedule, clip, callback, cancelled, n_calls, temperature):
        self.denoiser, self.schedule, self.clip = denoiser, schedule, clip
        self.callback, self.cancelled, self.n_calls = callback, cancelled, n_calls
        self.index, self.temperature = 0, temperature

    def levels(self, ts: list[float], i: int) -> tuple[float, float]:
        """Signal and noise level of step ``i``; after the last step the signal is clean."""
        return self.schedule.alpha_sigma(ts[i]) if i < len(ts) else (1.0, 0.0)

    def __call__(self, x: Tensor, t: int | float) -> tuple[Tensor, Tensor]:
        """The denoiser's noise and the clean signal it implies."""
        raise_if_cancelled(self.cancelled)
        alpha, sigma = self.schedule.alpha_sigma(t)
        eps = self.denoiser(x, t)
        x0 = self.limit(x0_from_eps(x, eps, alpha, sigma))
        if self.callback is not None:
            self.callback(SamplerStep(self.index, self.n_calls, t, x, x0, eps, sigma, alpha))
        self.index += 1
        return eps, x0

    def limit(self, x0: Tensor) -> Tensor:
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


def _ancestral(walk: _Walk, x: Tensor, ts: list[float], eta: float, generator) -> Tensor:
    """DDIM (Eq. 12 and 16) on any chain of times; with ``eta = 1`` it is DDPM with the small posterior variance."""
    for i, t in enumerate(ts):
        (alpha, sigma), (alpha_next, sigma_next) = walk.levels(ts, i), walk.levels(ts, i + 1)
        eps, x0 = walk(x, t)
        if walk.clip is not None:
            eps = eps_from_x0(x, x0, alpha, sigma)
        if sigma_next == 0.0:
            return x0
        fresh = eta * sigma_next / sigma * math.sqrt(1.0 - (alpha / alpha_next) ** 2)
        x = alpha_next * x0 + math.sqrt(max(sigma_next**2 - fresh**2, 0.0)) * eps
        if fresh:
            device = x.device if generator is None else generator.device
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device)
            x = x + fresh * walk.temperature * noise.to(x.device)
    raise AssertionError("unreachable: the last step returns")


def _plms(walk: _Walk, x: Tensor, ts: list[float], eta=None, generator=None) -> Tensor:
    """PNDM's linear multistep (Liu et al. 2022, Eq. 12): DDIM steps along a blend of the last four noises.

    The first step has no past, so it is taken twice: a DDIM step, one call at its end, and again with the mean of
    both noises.
    """

    def move(x, eps, i):
        (alpha, sigma), (alpha_next, sigma_next) = walk.levels(ts, i), walk.levels(ts, i + 1)
        x0 = walk.limit(x0_from_eps(x, eps, alpha, sigma))
        return alpha_next * x0 + sigma_next * (eps if walk.clip is None else eps_from_x0(x, x0, alpha, sigma))

    past: list[Tensor] = []
    for i, t in enumerate(ts):
        eps, x0 = walk(x, t)
        past = [*past[-3:], eps]
        if len(ts) == 1:
            return x0
        if len(past) == 1:
            ahead, _ = walk(move(x, eps, 0), ts[1])
            blend = (eps + ahead) / 2
        elif len(past) == 2:
            blend = (3 * past[-1] - past[-2]) / 2
        elif len(past) == 3:
            blend = (23 * past[-1] - 16 * past[-2] + 5 * past[-3]) / 12
        else:
            blend = (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24
        x = move(x, blend, i)
    return x


def _dpmpp(walk: _Walk, x: Tensor, ts: list[float], eta=None, generator=None) -> Tensor:
    """DPM-Solver++(2M), data prediction: a straight line through the last two clean guesses, over log-SNR."""
    last_x0, last_h = None, 0.0
    for i, t in enumerate(ts):
        _, x0 = walk(x, t)
        if i + 1 == len(ts):
            return x0
        (_, sigma), (alpha_next, sigma_next) = walk.levels(ts, i), walk.levels(ts, i + 1)
        h = walk.schedule.log_snr_at(ts[i + 1]) - walk.schedule.log_snr_at(t)
        guess = x0 if last_x0 is None else x0 + (x0 - last_x0) * (h / (2 * last_h))
        x = (sigma_next / sigma) * x - (alpha_next * math.expm1(-h)) * guess
        last_x0, last_h = x0, h
    raise AssertionError("unreachable: the last step returns")


METHODS = {
    "ddpm": Method(_ancestral, "a random walk, many steps", eta=1.0),
    "ddim": Method(_ancestral, "plain, straight", eta=0.0),
    "plms": Method(_plms, "as in Diff-SVC", n_calls=lambda steps: steps + (steps > 1)),
    "dpmpp": Method(_dpmpp, "good in few steps", log_snr=True),
}
