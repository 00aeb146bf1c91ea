"""Denoisers of mel spectrograms: interface and registry, preconditioning, conditioning module, cached inference.

:class:`Denoiser` is the exchangeable network, :class:`WaveNetDenoiser` Diff-SVC's. :class:`Parameterization` turns a
network's output into noise, :class:`Conditions` makes the condition, and :class:`CachedDenoiser` binds a network to
one song for the samplers.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.models import layers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import CLEAN, NoiseLevel, Schedule, expand_like
from svclib.models.layers import Condition, Content, Frames, LogMels, Mels, Times, Voiced, registrar
from svclib.utils.errors import raise_if_cancelled

CONDITIONS = ("content", "f0", "loudness", "singer")
DISTILLED_LEVELS = 12  # divisible by 1 to 4: the times of so many steps are levels of the grid
PREDICTIONS = ("residual", "eps", "consistency")

Precomputed = tuple[Tensor, ...]  # of a condition: tensors whose last axis is frames


class Tap(NamedTuple):
    """A hidden feature: the first input or the output of a module."""

    module: nn.Module
    side: Literal["input", "output"]


class Denoiser(nn.Module):
    """Interface of the exchangeable network: noisy mel, diffusion time and condition -> network output.

    A subclass is registered by :func:`register`, implements :meth:`from_settings` and :meth:`forward`, and sets
    ``halo``: frames on either side that one output frame depends on.
    """

    halo: int

    @classmethod
    def from_settings(cls, settings: Any, n_mels: int) -> "Denoiser":
        """The network that ``DiffusionSettings`` describe, with fresh weights; it should output 0 at first."""
        raise NotImplementedError

    def precompute(self, condition: Condition) -> Precomputed:
        """The part that depends on the condition alone; computed once per song and passed to :meth:`forward`."""
        return (condition,)

    def forward(self, x_t: Mels, t: Times, condition: Precomputed) -> Mels:
        """The network's output for preconditioned ``x_t``; ``condition`` comes from :meth:`precompute`."""
        raise NotImplementedError

    def named_taps(self) -> dict[str, Tap]:
        """Hidden features worth recording, by name."""
        return {}


DENOISERS: dict[str, type[Denoiser]] = {}
register = registrar(DENOISERS)  # the value of ``DiffusionSettings.denoiser``


@register("wavenet")
class WaveNetDenoiser(Denoiser):
    """Diff-SVC's network: DiffWave's gated stack over mel frames.

    20 layers of 384 channels (dilations start again at 1 after each cycle), 128 mels and a condition of 256: 31,956,224
    parameters.
    """

    def __init__(self, n_mels: int, channels: int, n_layers: int, dilation_cycle: int, condition_dims: int):
        super().__init__()
        self.first = nn.Conv1d(n_mels, channels, 1)
        self.step = layers.StepEmbedding(channels, 4 * channels, channels)
        self.stack = layers.GatedStack(channels, n_layers, dilation_cycle, channels, condition_dims)
        self.halo = self.stack.halo
        self.skip = nn.Conv1d(channels, channels, 1)
        self.last = nn.Conv1d(channels, n_mels, 1)
        for conv in (self.first, self.skip):
            nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @classmethod
    def from_settings(cls, settings: Any, n_mels: int) -> "WaveNetDenoiser":
        """The network that ``DiffusionSettings`` describe."""
        s = settings
        return cls(n_mels, s.channels, s.n_layers, s.dilation_cycle, s.condition_dims)

    def precompute(self, condition: Condition) -> Precomputed:
        """The condition's projection onto the gates of every block."""
        return self.stack.project(condition)

    def forward(self, x_t: Mels, t: Times, condition: Precomputed) -> Mels:
        """The output for preconditioned ``x_t``."""
        hidden = self.stack(F.relu(self.first(x_t)), self.step(t), condition)
        return self.last(F.relu(self.skip(hidden)))

    def named_taps(self) -> dict[str, Tap]:
        """The step embedding; of each block the signal with the step added, and the gates with the condition added."""
        taps = {"step": Tap(self.step, "output")}
        for i, block in enumerate(self.stack.blocks, 1):
            taps[f"noise {i}"], taps[f"condition {i}"] = Tap(block.dilated, "input"), Tap(block.gate, "input")
        return taps


@dataclasses.dataclass(frozen=True)
class Parameterization:
    """Between a network's output ``F`` and the noise in ``x_t``.

    ``eps``: the output is the noise (Ho et al. 2020). ``residual``: the preconditioning of Karras et al. 2022 (Table 1,
    Eq. 7) around a known mean instead of 0: if the mel were normally distributed around the coarse mel ``m`` with
    standard deviation ``s``, the best noise estimate would be linear in ``x_t``; the network learns the rest, scaled
    to unit variance at every time. An untrained network (``F = 0``) then predicts the coarse mel.

    ``consistency`` is for students of ``residual`` (:class:`Distillation`). With ``y = (x_t - alpha m) / c_out`` and
    the angle ``phi = atan(sigma / (alpha s))`` the probability flow of the teacher is ``dy/dphi = -F`` (TrigFlow, Lu
    and Song 2024, around the mean m); the student's output is the mean of ``F`` from ``phi`` to 0, so that one call
    gives the end of the flow, ``m + s (y + phi F)``. At ``phi = 0`` that is ``x_t`` itself (Song et al. 2023, Eq. 5).
    """

    schedule: Schedule
    prediction: str

    def _output(self, network: Denoiser, x_t, t, condition, mean, std, alpha, sigma) -> tuple[Tensor, Tensor]:
        """``F`` in the precision of ``x_t``, and the variance of ``x_t`` given the coarse mel."""
        # Var[x_t | m] = alpha^2 s^2 + sigma^2; c_in = 1 / sqrt(Var) (Karras et al. 2022, Eq. 117 around the mean m)
        variance = (alpha * std) ** 2 + sigma**2
        scaled = x_t if self.prediction == "eps" else (x_t - alpha * mean) / variance.sqrt()
        dtype = next(network.parameters()).dtype
        return network(scaled.to(dtype), t, condition).to(x_t.dtype), variance

    def eps(self, network: Denoiser, x_t: Mels, t: Times, condition: Precomputed, mean: Mels, std: Mels) -> Mels:
        """The predicted noise; ``mean`` is the coarse mel and ``std`` its expected error in every bin."""
        alpha, sigma = (expand_like(x, x_t) for x in self.schedule.alpha_sigma(t))
        out, variance = self._output(network, x_t, t, condition, mean, std, alpha, sigma)
        if self.prediction == "eps":
            return out
        if self.prediction == "consistency":
            y = (x_t - alpha * mean) / variance.sqrt()
            return (x_t - alpha * (mean + std * (y + torch.atan2(sigma, alpha * std) * out))) / sigma
        # E[eps | x_t, m] = sigma / Var (x_t - alpha m) takes the part of c_skip, alpha s / sqrt(Var) that of c_out
        return sigma / variance * (x_t - alpha * mean) - alpha * std / variance.sqrt() * out

    def loss(
        self, network: Denoiser, x0: Mels, t: Times, noise: Mels, condition: Precomputed, mean: Mels, std: Mels
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean square error of the network's output, to train on, and of the noise (Ho et al. 2020, Eq. 14).

        For ``eps`` they are equal. For ``residual`` the first is relative to what the coarse mel leaves open, so it
        grows as the coarse mel gets surer; only the second compares training steps.
        """
        alpha, sigma = (expand_like(x, x0) for x in self.schedule.alpha_sigma(t))
        # x_t = alpha x_0 + sigma eps (Ho et al. 2020, Eq. 4)
        out, variance = self._output(network, alpha * x0 + sigma * noise, t, condition, mean, std, alpha, sigma)
        if self.prediction == "eps":
            error = (out - noise).square().mean()
            return error, error
        # The output for which eps() returns the true noise (Karras et al. 2022, Eq. 8)
        target = (sigma / std * (x0 - mean) - alpha * std * noise) / variance.sqrt()
        error = out - target
        return error.square().mean(), (alpha * std / variance.sqrt() * error).square().mean()


class Distillation:
    """Consistency distillation (Song et al. 2023, Algorithm 2) of a ``residual`` teacher over a grid of noise levels.

    ``teacher`` is fixed and ``average`` the moving average of the student; ``levels`` begin with the noisiest and end
    before the clean signal. States are ``y`` of :class:`Parameterization`, with ``residual = (x_0 - m) / s``. A step of
    the teacher along the angle is exact where the mel is normally distributed around the coarse mel.
    """

    def __init__(self, teacher: Denoiser, average: Denoiser, levels: Sequence[NoiseLevel]):
        self.teacher, self.average, self.n_levels = teacher, average, len(levels)
        self.levels = torch.tensor([*levels, CLEAN])

    def _level(self, index: Tensor, std: Mels) -> tuple[Times, Mels]:
        """Times and angles of levels ``[batch]``."""
        t, alpha, sigma, _ = self.levels.to(std.device)[index].unbind(-1)
        return t.clamp_min(0), torch.atan2(expand_like(sigma, std), expand_like(alpha, std) * std)

    def loss(
        self, student: Denoiser, residual: Mels, noise: Mels, index: Tensor, condition: Condition, std: Mels
    ) -> Float[Tensor, ""]:
        """Mean square of jumps from levels ``[batch]`` against a step of the teacher and the average's jump from there.

        Clean mels are in units of their expected error ``std``.
        """
        (t, angle), (t_after, angle_after) = (self._level(i, std) for i in (index, index + 1))
        y = angle.cos() * residual + angle.sin() * noise
        with torch.no_grad():
            step = (angle - angle_after) * self.teacher(y, t, self.teacher.precompute(condition))
            jump = angle_after * self.average(y + step, t_after, self.average.precompute(condition))
        return (angle * student(y, t, student.precompute(condition)) - step - jump).square().mean()

    def one_step_error(
        self, student: Denoiser, residual: Mels, noise: Mels, condition: Condition, std: Mels
    ) -> Float[Tensor, ""]:
        """Mean square distance of the jump from the noisiest level to the end of the teacher's flow from there."""
        t, angle = self._level(torch.zeros(len(std), dtype=torch.long, device=std.device), std)
        y = angle.cos() * residual + angle.sin() * noise
        jump, projected = y + angle * student(y, t, student.precompute(condition)), self.teacher.precompute(condition)
        for i in range(self.n_levels):
            (t, angle), (_, after) = (self._level(torch.full_like(t, k).long(), std) for k in (i, i + 1))
            y = y + (angle - after) * self.teacher(y, t, projected)
        return (jump - y).square().mean()


class Conditions(nn.Module):
    """Content, F0 with voicing, loudness, singer -> one condition per frame, each replaceable by a learned null."""

    def __init__(self, mel: MelConfig, code_dims: int, n_singers: int, dims: int):
        super().__init__()
        centers_hz = torch.from_numpy(mel.centers_hz()).float()
        self.register_buffer("centers_hz", centers_hz, persistent=False)
        self.register_buffer("spacing_hz", torch.gradient(centers_hz)[0], persistent=False)
        self.content = nn.Linear(code_dims, dims)
        self.f0 = nn.Sequential(nn.Linear(2, dims), nn.GELU(), nn.Linear(dims, dims))
        # The comb goes in linearly: products of it that only fit the F0 of the training data would not generalise.
        self.harmonics = nn.Linear(mel.n_mels, dims, bias=False)
        self.loudness = nn.Sequential(nn.Linear(1, dims), nn.GELU(), nn.Linear(dims, dims))
        self.singer = nn.Parameter(nn.init.normal_(torch.empty(n_singers, dims), std=1 / math.sqrt(dims)))
        self.null = nn.Parameter(nn.init.normal_(torch.empty(len(CONDITIONS), dims), std=1 / math.sqrt(dims)))
        self.mix = layers.ConvStack(dims, dims, dims, n_layers=1)
        self.halo = self.mix.halo
        self.norm = layers.ChannelNorm(dims)  # so that the condition influences the gates at initialisation

    def comb(self, f0_hz: Frames, voiced: Voiced) -> LogMels:
        """Harmonic positions: ``cos(2 pi f / F0)`` through the mel filters, 1 on a harmonic, 0 in unvoiced frames."""
        cycles = self.centers_hz / f0_hz.clamp_min(1.0)[..., None]
        # A triangular filter of half width w averages cos(2 pi f / F0) by sinc^2(w / F0).
        response = torch.sinc(self.spacing_hz / f0_hz.clamp_min(1.0)[..., None]).square()
        return torch.cos(2 * math.pi * cycles) * response * voiced[..., None]

    def forward(
        self,
        code: Content,
        f0_hz: Frames,
        voiced: Voiced,
        loudness_db: Frames,
        singer: Float[Tensor, "batch singers"],
        dropped: Bool[Tensor, "batch 4"] | None = None,
    ) -> Condition:
        """The condition of every frame, channels first, normalised over its channels.

        ``f0_hz`` is read only where ``voiced``, ``loudness_db`` is A-weighted (-80 .. 0), the rows of ``singer`` are
        weights that add to 1, and ``dropped`` marks which of ``CONDITIONS`` to replace by their null.
        """
        on = voiced.float()
        octaves = torch.log2(f0_hz.clamp_min(1.0) / 220.0) * on
        pitch = self.f0(torch.stack([octaves, on], dim=-1)) + self.harmonics(self.comb(f0_hz, voiced))
        level = (loudness_db[..., None] + 40.0) / 20.0
        parts = [self.content(code), pitch, self.loudness(level), (singer @ self.singer)[:, None]]
        if dropped is not None:
            parts = [torch.where(dropped[:, i, None, None], self.null[i], part) for i, part in enumerate(parts)]
        hidden = sum(parts).transpose(1, 2)
        return self.norm(hidden + self.mix(hidden))


class CachedDenoiser:
    """A denoiser bound to one song: ``(x_t, t) -> eps``, evaluated in chunks with a halo, so that memory is bounded.

    ``coarse`` is the coarse mel and its expected error. Of the options ``precision``, ``chunk_frames`` and
    ``cache_bytes`` count: what :meth:`Denoiser.precompute` gives is kept (full model: 61 kB a frame in fp32) as long as
    it fits, otherwise each chunk computes its own part at every call. Input and output stay float32 in any precision;
    one evaluation in bf16 differs from fp32 by below 1 % of the noise. ``prior_std`` is the standard deviation of a
    sampling run's noise in each mel band; ``cancelled`` is polled before every chunk.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        parameterization: Parameterization,
        condition: Condition,
        coarse: tuple[Mels, Mels],
        options: SamplingOptions,
        prior_std: Float[Tensor, "mels 1"] | float = 1.0,
        cancelled: Callable[[], bool] | None = None,
    ):
        self.prior_std = prior_std
        self.precision = layers.resolve_precision(condition.device, options.precision)
        dtype = layers.DTYPES[self.precision]
        self.denoiser = denoiser if dtype == torch.float32 else copy.deepcopy(denoiser).to(dtype)
        self.parameterization, self.condition, self.cancelled = parameterization, condition.to(dtype), cancelled
        (self.coarse, self.coarse_std), n_frames = coarse, condition.shape[-1]
        self.chunk_frames, self.kept = options.chunk_frames, {}
        # A recorder cuts their halo off too.
        self.chunks = list(layers.chunks(n_frames, self.chunk_frames, denoiser.halo))
        per_frame = sum(x[..., 0].numel() * x.element_size() for x in self._precompute(0, 1))
        self.cached = per_frame * sum(high - low for _, _, low, high in self.chunks) <= options.cache_bytes
        if self.cached:
            self.kept = {(low, high): self._precompute(low, high) for _, _, low, high in self.chunks}

    @torch.inference_mode()
    def _precompute(self, low: int, high: int) -> Precomputed:
        return tuple(x.contiguous() for x in self.denoiser.precompute(self.condition[:, :, low:high]))

    @torch.no_grad()
    def __call__(self, x_t: Mels, t: int | float) -> Mels:
        """The predicted noise in ``x_t`` at a real diffusion time."""
        times = torch.full((x_t.shape[0],), float(t), device=x_t.device)

        def chunk(low: int, high: int) -> tuple[Tensor]:
            raise_if_cancelled(self.cancelled)
            condition = self.kept.get((low, high)) or self._precompute(low, high)
            coarse = (x[:, :, low:high] for x in (self.coarse, self.coarse_std))
            return (self.parameterization.eps(self.denoiser, x_t[:, :, low:high], times, condition, *coarse),)

        return layers.run_in_chunks(chunk, x_t.shape[-1], self.chunk_frames, self.denoiser.halo)[0]


class GuidedDenoiser:
    """Classifier-free guidance (Ho and Salimans 2022, Eq. 6) by several conditions: ``eps + sum_i w_i (eps - eps_i)``.

    ``eps_i`` is predicted without condition i: one more evaluation per condition and step. ``without`` holds each
    weight and the denoiser without that condition.
    """

    def __init__(self, full: CachedDenoiser, without: Sequence[tuple[float, CachedDenoiser]]):
        self.full, self.without = full, without
        self.coarse, self.precision, self.prior_std = full.coarse, full.precision, full.prior_std

    def __call__(self, x_t: Mels, t: int | float) -> Mels:
        """The guided noise in ``x_t`` at a real diffusion time."""
        eps = self.full(x_t, t)
        return eps + sum(weight * (eps - denoiser(x_t, t)) for weight, denoiser in self.without)
