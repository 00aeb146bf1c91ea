"""Samplers of the reverse diffusion process, and their registry.

``ddpm`` is ancestral sampling (Ho et al. 2020, Algorithm 2; with fewer steps, on the thinned chain), ``ddim`` its
deterministic version (Song et al. 2021, Eq. 12), ``plms`` a linear multistep method on top of it (Liu et al. 2022,
Eq. 12) and ``dpmpp`` is DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) with steps evenly spaced in log-SNR.
``consistency`` is multistep consistency sampling of distilled models (Song et al. 2023, Algorithm 1).

A sampler is a plain function ``(model, x, levels) -> x_0`` in the style of k-diffusion. ``levels`` are
:class:`NoiseLevel` from the noisiest to :data:`CLEAN`; ``model(x, level)`` returns ``(x0, eps)``, see
:class:`DenoiserCall`.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from svclib.models.diffusion.schedule import CLEAN, NoiseLevel, Schedule, eps_from_x0, x0_from_eps
from svclib.models.layers import PRECISIONS
from svclib.utils.errors import ModelError, raise_if_cancelled
from svclib.utils.serialization import Settings, control

MAX_SEED = 2**31 - 1
CHUNK_FRAMES = 2048  # of a long recording, computed at once
JUMPS_FROM = -1.5  # ln(alpha / sigma): where less is signal, jumps lead to the same
EpsModel = Callable[[Tensor, float], Tensor]


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Settings):
    """Options of one sampling run; None stands for the model's own setting (``DiffusionSettings``).

    ``shallow`` is shallow diffusion (Diff-SVC's ``k_step``), ``temperature`` a factor of all noise (Grad-TTS, Popov et
    al. 2021), ``eta`` the amount of fresh noise of ``ddim`` (0) and ``ddpm`` (1) (Song et al. 2021, Eq. 16). The result
    does not depend on ``chunk_frames`` and ``cache_bytes``, which bound the memory of long recordings.
    """

    sampler: str | None = control(None, choices=lambda: tuple(SAMPLERS), metavar="NAME", help="sampling algorithm")
    steps: int | float | None = control(
        None,
        1,
        100_000,
        metavar="N",
        suggestions=(1, 2, 4, 5, 10, 20, 50, 100, 200, 1000),
        help="sampling steps: more take longer and follow the model more closely",
    )
    shallow: int | float | None = control(
        None,
        1,
        100_000,
        metavar="N",
        label="Shallow start",
        suggestions=(50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900),
        help="start from the model's coarse mel, noised to this diffusion step of 1000, instead of from pure noise",
    )
    temperature: float | int | None = control(
        None,
        0.0,
        2.0,
        suggestions=(0.5, 0.7, 0.85, 1.0, 1.2),
        help="factor of the sampling noise: 0.7 smoother and steadier, 1 as varied as the recordings",
    )
    seed: int | float = control(0, 0, MAX_SEED, metavar="S", help="of all noise: the same number, the same sound")
    words_guidance: float | int = control(
        0.0, 0.0, 5.0, step=0.5, help="clearer words by classifier-free guidance: one more evaluation a step"
    )
    voice_guidance: float | int = control(
        0.0, 0.0, 5.0, step=0.5, help="more of the voice by classifier-free guidance: one more evaluation a step"
    )
    retrieval: float | int = control(
        0.0, 0.0, 1.0, step=0.1, help="share of the content taken from the nearest of the target's recordings"
    )
    content: str = control(
        "own",
        choices=("own", "whisper"),
        metavar="NAME",
        help="whisper measures the words by Whisper instead of words: clearer, needs the package faster-whisper",
    )
    precision: str = control(
        "auto", choices=PRECISIONS, metavar="NAME", help="auto: the fastest this machine computes well; fp32: exact"
    )
    eta: float | None = None
    chunk_frames: int = CHUNK_FRAMES
    cache_bytes: int = 10**9  # holds what is precomputed of 3 minutes for the full model

    def given(self) -> dict[str, str | int | float]:
        """The options that differ from their defaults, by name."""
        return {k: v for k, v in vars(self).items() if v != getattr(type(self), k)}


@dataclasses.dataclass(frozen=True)
class SamplerStep:
    """One evaluation of the denoiser. Tensors are the sampler's own: copy what you keep, never write into them.

    ``index`` counts from 0 to ``n_calls - 1`` (``plms`` makes one call more than its steps), ``t`` is the diffusion
    time, ``x0_hat`` is limited to ``clip`` where that was given, ``eps_hat`` is the denoiser's output, ``sigma`` and
    ``alpha`` are the factors of noise and signal in ``x_t``.
    """

    index: int
    n_calls: int
    t: float
    x_t: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    sigma: float
    alpha: float


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An entry of :data:`SAMPLERS`.

    ``function`` is ``(model, x, levels) -> x_0``, with the amount of fresh noise as fourth argument where its default
    ``eta`` is not None. With ``log_snr`` steps are evenly spaced in log-SNR instead of whole diffusion times; with
    ``jumps`` each one leads to the clean signal, so none is spent at time 0 nor, after the first, below an SNR of 0.05.
    ``n_calls`` gives the denoiser evaluations for a number of steps.
    """

    function: Callable[..., Tensor]
    label: str
    eta: float | int | None = None
    log_snr: bool = False
    jumps: bool = False
    n_calls: Callable[[int], int] = int


SAMPLERS: dict[str, Sampler] = {}


def register(name: str, label: str, **properties) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator: offer a sampler under a name; ``properties`` are the further fields of :class:`Sampler`."""

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        SAMPLERS[name] = Sampler(function, label, **properties)
        return function

    return add


@dataclasses.dataclass
class DenoiserCall:
    """The ``model`` argument of samplers: evaluates the denoiser, reports the step, limits the x0 prediction.

    The arguments are those of :func:`sample`; ``index`` counts the evaluations, of which the run makes ``n_calls``.
    """

    denoiser: EpsModel
    n_calls: int
    clip: int | float | None
    generator: torch.Generator | None
    temperature: int | float
    callback: Callable[[SamplerStep], None] | None
    cancelled: Callable[[], bool] | None
    index: int = 0

    def __call__(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """The limited x0 prediction at ``x``, and the noise that belongs to it."""
        return self.limited(x, self.eps(x, level), level)

    def eps(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """The denoiser's own noise estimate, which may imply an x0 beyond the limit."""
        raise_if_cancelled(self.cancelled)
        eps = self.denoiser(x, level.t)
        if self.callback is not None:
            x0, _ = self.limited(x, eps, level)
            self.callback(SamplerStep(self.index, self.n_calls, level.t, x, x0, eps, level.sigma, level.alpha))
        self.index += 1
        return eps

    def limited(self, x: Tensor, eps: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """A noise estimate as ``(x0, eps)`` with ``|x0| <= clip`` and ``x = alpha x0 + sigma eps``."""
        x0 = x0_from_eps(x, eps, level.alpha, level.sigma)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(-self.clip, self.clip)
        return x0, eps_from_x0(x, x0, level.alpha, level.sigma)

    def noise(self, x: Tensor, std: float) -> Tensor:
        """Fresh noise in the shape of ``x``, scaled by the temperature; that of a CPU generator is equal anywhere."""
        device = x.device if self.generator is None else self.generator.device
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x.device)
        return std * self.temperature * (noise * getattr(self.denoiser, "prior_std", 1.0))


def sampling_times(schedule: Schedule, sampler: str, steps: int, start_t: int | float | None = None) -> list[float]:
    """The ``steps`` diffusion times of a run, falling; after the last one comes the clean signal.

    With log-SNR spacing they are real times from ``start_t`` (by default the noisiest) to 0. Otherwise whole times
    evenly spaced from ``start_t``, rounded down ("trailing" spacing: the last one lies one spacing above clean).
    Raises ModelError for an unknown sampler, no steps, a start outside the schedule, or more steps than whole times.
    """
    start = schedule.n_steps - 1 if start_t is None else start_t
    if sampler not in SAMPLERS:
        raise ModelError(f"There is no sampler '{sampler}'; choose one of {', '.join(SAMPLERS)}.")
    if not 0 <= start <= schedule.n_steps - 1:
        raise ModelError(f"The start time is {start}; this model's times run from 0 to {schedule.n_steps - 1}.")
    if steps < 1:
        raise ModelError(f"A sampler needs at least 1 step; {steps} given.")
    if SAMPLERS[sampler].log_snr:
        first, last = schedule.half_log_snr_at(start), schedule.half_log_snr_at(0)
        if steps == 1 or first >= last:
            return [float(start)]
        jumps = SAMPLERS[sampler].jumps
        first, n = (max(first, JUMPS_FROM), steps) if jumps else (first, steps - 1)
        inner = [schedule.time_at(first + (last - first) * i / n) for i in range(1, n)]
        return [float(start), *inner] if jumps else [float(start), *inner, 0.0]
    whole = int(start) + 1
    if steps > whole:
        raise ModelError(
            f"{steps} steps of {sampler} from diffusion time {int(start)} are more than its {whole} whole times; "
            f"take at most {whole}, or dpmpp."
        )
    return [float(math.floor(whole - i * whole / steps + 0.5) - 1) for i in range(steps)]


@torch.no_grad()
def sample(
    denoiser: EpsModel,
    schedule: Schedule | Sequence[NoiseLevel],
    x_t: Tensor,
    options: SamplingOptions | None = None,
    clip: int | float | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Run a sampler from ``x_t`` to the clean signal, of the same shape and device.

    ``x_t`` is pure noise, or for a shallow start ``schedule.diffuse(coarse, shallow - 1, noise)``. Of the options
    sampler (``dpmpp``), steps (20), ``shallow``, ``eta`` and ``temperature`` (1) count; noise levels, the noisiest
    first, in place of the schedule replace the steps. ``clip`` limits the x0 prediction, for signals known to be
    bounded. The generator is that of the fresh noise, whose standard deviation is the denoiser's ``prior_std``, if it
    has one; two runs with equal generators are equal. ``callback`` is called with every :class:`SamplerStep` and does
    not affect the result; ``cancelled`` is polled before each evaluation.
    """
    o = options or SamplingOptions()
    name, temperature = o.sampler or "dpmpp", 1.0 if o.temperature is None else o.temperature
    levels = schedule
    if isinstance(schedule, Schedule):
        times = sampling_times(schedule, name, o.steps or 20, None if o.shallow is None else o.shallow - 1)
        levels = [schedule.level(t) for t in times]
    sampler, n_calls = SAMPLERS[name], SAMPLERS[name].n_calls(len(levels))
    if o.eta is not None and sampler.eta is None:
        raise ModelError(f"{name} is deterministic and takes no eta; leave it out or use ddim.")
    call = DenoiserCall(denoiser, n_calls, clip, generator, temperature, callback, cancelled)
    extra = () if sampler.eta is None else (sampler.eta if o.eta is None else o.eta,)
    return sampler.function(call, x_t, [*levels, CLEAN], *extra)


@register("ddim", "deterministic, first order", eta=0.0)
@register("ddpm", "ancestral, many steps", eta=1.0)
def sample_ddim(model: DenoiserCall, x: Tensor, levels: Sequence[NoiseLevel], eta: float) -> Tensor:
    """DDIM on any chain of levels; with ``eta = 1`` it is DDPM with the small posterior variance."""
    for level, following in itertools.pairwise(levels):
        x0, eps = model(x, level)
        if following.sigma == 0.0:
            return x0
        # Song et al. 2021, Eq. 16: standard deviation of the fresh noise
        std = eta * following.sigma / level.sigma * math.sqrt(1.0 - (level.alpha / following.alpha) ** 2)
        # Eq. 12: predicted x0 + direction pointing to x_t + fresh noise
        x = following.alpha * x0 + math.sqrt(max(following.sigma**2 - std**2, 0.0)) * eps
        if std:
            x = x + model.noise(x, std)
    return x


@register("plms", "linear multistep, as Diff-SVC", n_calls=lambda steps: steps + (steps > 1))
def sample_plms(model: DenoiserCall, x: Tensor, levels: Sequence[NoiseLevel]) -> Tensor:
    """PNDM's linear multistep (Liu et al. 2022): DDIM steps along a combination of the last four noise estimates.

    The first step has no history, so it is taken twice: a DDIM step, one evaluation at its end, and again with the
    mean of both estimates.
    """

    def transfer(x: Tensor, eps: Tensor, level: NoiseLevel, following: NoiseLevel) -> Tensor:
        # Eq. 11, the transfer part: a DDIM step along eps
        x0, eps = model.limited(x, eps, level)
        return following.alpha * x0 + following.sigma * eps

    past: list[Tensor] = []
    for level, following in itertools.pairwise(levels):
        eps = model.eps(x, level)
        past = [*past[-3:], eps]
        if len(levels) == 2:
            return model.limited(x, eps, level)[0]
        # Eq. 12, the gradient part: Adams-Bashforth of rising order
        if len(past) == 1:
            blend = (eps + model.eps(transfer(x, eps, level, following), following)) / 2
        elif len(past) == 2:
            blend = (3 * past[-1] - past[-2]) / 2
        elif len(past) == 3:
            blend = (23 * past[-1] - 16 * past[-2] + 5 * past[-3]) / 12
        else:
            blend = (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24
        x = transfer(x, blend, level, following)
    return x


@register("dpmpp", "second order, good in few steps", log_snr=True)
def sample_dpmpp(model: DenoiserCall, x: Tensor, levels: Sequence[NoiseLevel]) -> Tensor:
    """DPM-Solver++(2M) with data prediction (Lu et al. 2022, Algorithm 2)."""
    last_x0, last_h = None, 0.0
    for level, following in itertools.pairwise(levels):
        x0, _ = model(x, level)
        if following.sigma == 0.0:
            return x0
        h = following.half_log_snr - level.half_log_snr
        # D_i = (1 + 1 / (2 r)) x0_i - 1 / (2 r) x0_{i-1} with r = h_{i-1} / h_i: linear extrapolation over log-SNR
        guess = x0 if last_x0 is None else x0 + (x0 - last_x0) * (h / (2 * last_h))
        # x = sigma_i / sigma_{i-1} x - alpha_i (exp(-h) - 1) D_i
        x = (following.sigma / level.sigma) * x - (following.alpha * math.expm1(-h)) * guess
        last_x0, last_h = x0, h
    return x


@register("consistency", "for distilled instruments, 1 to 4 steps", log_snr=True, jumps=True)
def sample_consistency(model: DenoiserCall, x: Tensor, levels: Sequence[NoiseLevel]) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): jump to the clean signal, noise it less."""
    for level, following in itertools.pairwise(levels):
        x0, _ = model(x, level)
        if following.sigma == 0.0:
            return x0
        x = following.alpha * x0 + model.noise(x, following.sigma)
    return x
