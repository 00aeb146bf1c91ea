"""Layers shared by the models, chunked inference, interpolation, precision, names of tensor shapes.

A gated stack is DiffWave's (Kong et al. 2021, Fig. 2): non-causal dilated convolutions conditioned on the diffusion
time and on a condition, whose addition to every gate is made once per song (:meth:`GatedStack.project`).
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.utils.errors import ModelError

# Tensors by the shapes that the models exchange.
Frames: TypeAlias = Float[Tensor, "batch frames"]
Voiced: TypeAlias = Bool[Tensor, "batch frames"]
Samples: TypeAlias = Float[Tensor, "batch samples"]
LogMels: TypeAlias = Float[Tensor, "batch frames mels"]
Mels: TypeAlias = Float[Tensor, "batch mels frames"]  # scaled to -1 .. 1
Hidden: TypeAlias = Float[Tensor, "batch channels frames"]
Condition: TypeAlias = Float[Tensor, "batch dims frames"]
Content: TypeAlias = Float[Tensor, "batch frames code"]
Times: TypeAlias = Float[Tensor, " batch"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def resolve_precision(device: torch.device | str, precision: str = "auto") -> str:
    """The precision that is used: ``precision`` itself, or what ``auto`` means on a device.

    ``auto`` is bf16 where the hardware computes in it (GPUs of compute capability 8, CPUs with AVX512-BF16), else fp16
    on a GPU and fp32 on a CPU.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"There is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def step_embedding(t: Times, dims: int, first: float = 1.0, last: float = 1e-4) -> Float[Tensor, "batch dims"]:
    """Sines, then cosines, of any real diffusion time at ``dims / 2`` geometrically spaced angular frequencies.

    From ``first`` to ``last`` radians per step: 1 and 1e-4 is Vaswani et al. 2017 as Diff-SVC uses it, 1 and 1e4
    DiffWave (section 3.1). Angles are float64: at ``t = 1000`` and frequency 10^4 float32 would be off by 0.7.
    """
    half = dims // 2
    place = "cpu" if t.device.type == "mps" else t.device  # which has no float64
    exponents = torch.arange(half, dtype=torch.float64, device=place) / (half - 1)
    angles = t.to(place, torch.float64)[:, None] * first * (last / first) ** exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(t.device, torch.float32)


class StepEmbedding(nn.Module):
    """Diffusion time -> vector: sinusoids up to frequency ``last`` (:func:`step_embedding`), then two linear layers.

    With ``activate_last`` the non-linearity follows the second layer too (DiffWave).
    """

    def __init__(
        self,
        sinusoids: int,
        hidden: int,
        out: int,
        last: float = 1e-4,
        activation: type[nn.Module] = nn.Mish,
        activate_last: bool = False,
    ):
        super().__init__()
        self.sinusoids, self.last = sinusoids, last
        self.layers = nn.Sequential(nn.Linear(sinusoids, hidden), activation(), nn.Linear(hidden, out))
        if activate_last:
            self.layers.append(activation())

    def forward(self, t: Times) -> Float[Tensor, "batch out"]:
        """Embed diffusion times."""
        embedded = step_embedding(t, self.sinusoids, last=self.last)
        return self.layers(embedded.to(self.layers[0].weight.dtype))


class Gate(nn.Module):
    """Gated activation ``sigmoid(a) * tanh(b)`` (Kong et al. 2021, Fig. 2) of two halves of the channels."""

    def forward(self, y: Float[Tensor, "batch gates frames"]) -> Hidden:
        """The gated signal."""
        gate, signal = y.chunk(2, dim=1)
        if torch.is_grad_enabled() or y.dtype != torch.float32:
            return torch.sigmoid(gate) * torch.tanh(signal)
        # tanh(s) = 2 sigmoid(2 s) - 1, in place: a quarter of the time on a CPU, equal to 1e-7
        return torch.sigmoid(gate).mul_(torch.sigmoid(2 * signal).mul_(2).sub_(1))


class GatedResidualBlock(nn.Module):
    """One residual block: add the step, dilated convolution, add the condition, gate, 1x1 to residual and skip."""

    def __init__(self, channels: int, step_dims: int, dilation: int, kernel_size: int = 3):
        super().__init__()
        self.step = nn.Linear(step_dims, channels)
        padding = dilation * (kernel_size - 1) // 2
        self.dilated = nn.Conv1d(channels, 2 * channels, kernel_size, padding=padding, dilation=dilation)
        self.gate = Gate()
        self.out = nn.Conv1d(channels, 2 * channels, 1)
        self.halo = padding
        for conv in (self.dilated, self.out):
            nn.init.kaiming_normal_(conv.weight)

    def forward(
        self,
        x: Hidden,
        step: Float[Tensor, "batch step_dims"],
        condition: Float[Tensor, "batch gates frames"] | Float[Tensor, "batch gates 1"] | None = None,
    ) -> tuple[Hidden, Hidden]:
        """The next residual signal, of unchanged variance, and this block's contribution to the output."""
        y = self.dilated(x + self.step(step)[:, :, None])
        if condition is not None:
            y = y.add_(condition)
        residual, skip = self.out(self.gate(y)).chunk(2, dim=1)
        return (x + residual).mul_(math.sqrt(0.5)), skip


class GatedStack(nn.Module):
    """Gated blocks in a row, dilations ``1, 2, 4, ...`` in cycles; the output is the sum of skips / sqrt(layers).

    One output frame depends on ``halo`` frames on either side; ``condition_dims`` 0 makes an unconditional stack.
    """

    def __init__(self, channels: int, n_layers: int, dilation_cycle: int, step_dims: int, condition_dims: int = 0):
        super().__init__()
        self.blocks = nn.ModuleList(
            GatedResidualBlock(channels, step_dims, 2 ** (i % dilation_cycle)) for i in range(n_layers)
        )
        self.halo = sum(block.halo for block in self.blocks)
        # One 1x1 convolution for all layers: a single large product instead of n_layers small ones.
        self.conditions = nn.Conv1d(condition_dims, n_layers * 2 * channels, 1) if condition_dims else None
        if condition_dims:
            nn.init.kaiming_normal_(self.conditions.weight)

    def project(self, condition: Float[Tensor, "batch condition_dims frames"]) -> tuple[Tensor, ...]:
        """The condition's addition to every block's gates, ``n_layers`` tensors ``[batch, 2 channels, frames]``."""
        return self.conditions(condition).chunk(len(self.blocks), dim=1)

    def forward(self, x: Hidden, step: Float[Tensor, "batch step_dims"], projected: Iterable) -> Hidden:
        """Run the blocks; ``projected`` is what is added to each one's gates: from :meth:`project`, or None."""
        total: Any = 0.0
        for block, condition in zip(self.blocks, projected, strict=True):
            x, skip = block(x, step, condition)
            total = total + skip
        return total * (1.0 / math.sqrt(len(self.blocks)))


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, frame by frame: no frame sees another, so chunks equal the whole."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Hidden) -> Hidden:
        """Normalise every frame over its channels."""
        # Contiguous on both sides: strided activations cost a third of the time of a training step on a CPU.
        return self.norm(x.transpose(1, 2).contiguous()).transpose(1, 2).contiguous()


class ConvStack(nn.Module):
    """Plain residual convolutions at frame rate: ``n_layers`` of (norm, GELU, conv) between two 1x1."""

    def __init__(self, dims_in: int, channels: int, dims_out: int, n_layers: int, kernel_size: int = 5):
        super().__init__()
        self.first = nn.Conv1d(dims_in, channels, 1)
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in range(n_layers + 1))
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in range(n_layers)
        )
        self.last = nn.Conv1d(channels, dims_out, 1)
        self.halo = n_layers * (kernel_size // 2)

    def forward(self, x: Float[Tensor, "batch dims_in frames"]) -> Float[Tensor, "batch dims_out frames"]:
        """One output frame sees ``halo`` frames on either side."""
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.gelu(norm(x)))
        return self.last(F.gelu(self.norms[-1](x)))


class Upsampler(nn.Module):
    """Frames -> samples by transposed convolutions over time and frequency (DiffWave, section 4.1 and appendix C).

    Every stage multiplies the length by one of the even ``factors``, whose product is the hop (16 and 16 in DiffWave:
    194 parameters), with a filter of ``2 * factor`` samples by 3 bands. It is centred: a frame's value lands in the
    middle of the samples the frame covers. A leaky ReLU of ``slope`` follows.
    """

    def __init__(self, factors: Sequence[int] = (16, 16), slope: float = 0.4):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ConvTranspose2d(1, 1, (3, 2 * f), stride=(1, f), padding=(1, f // 2)) for f in factors
        )
        self.slope = slope

    def forward(self, x: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch bands samples"]:
        """Upsample to exactly ``frames * product(factors)`` samples."""
        x = x[:, None]
        for stage in self.stages:
            x = F.leaky_relu(stage(x), self.slope)
        return x[:, 0]


def chunks(n_frames: int, chunk_frames: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    """``(start, stop, low, high)``: frames ``start:stop`` are a chunk's result, ``low:high`` with its halo.

    At the ends of the signal there is no halo, so zero padding happens exactly where the whole signal has it.
    """
    for start in range(0, n_frames, chunk_frames):
        stop = min(start + chunk_frames, n_frames)
        yield start, stop, max(0, start - halo), min(n_frames, stop + halo)


def run_in_chunks(
    compute: Callable[[int, int], tuple[Tensor, ...]], n_frames: int, chunk_frames: int, halo: int
) -> tuple[Tensor, ...]:
    """``compute(0, n_frames)``, tensors whose last axis is frames, with the memory of one chunk and its halo."""
    parts = []
    for start, stop, low, high in chunks(n_frames, chunk_frames, halo):
        parts.append([x[..., start - low : stop - low] for x in compute(low, high)])
    return tuple(torch.cat(same, dim=-1) for same in zip(*parts, strict=True))


def brackets(
    grid: Float[Tensor, " n"], at: Float[Tensor, "*shape"]
) -> tuple[Int[Tensor, "*shape"], Int[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The points of a rising grid left and right of values, and where between them (0 .. 1) a value lies."""
    right = torch.searchsorted(grid, at.contiguous()).clamp(1, len(grid) - 1)
    low, high = grid[right - 1], grid[right]
    return right - 1, right, ((at - low) / (high - low)).clamp(0, 1)


def interpolate(
    values: Float[Tensor, "*batch n"], grid: Float[Tensor, " n"], at: Float[Tensor, "*batch m"]
) -> Float[Tensor, "*batch m"]:
    """Values known at a rising grid, on straight lines between, ends held."""
    left, right, share = brackets(grid, at)
    return torch.lerp(values.gather(-1, left), values.gather(-1, right), share)


def at_positions(x: Content, position: Float[Tensor, " n"]) -> Float[Tensor, "batch n dims"]:
    """Frames at fractional positions, on straight lines between, ends held."""
    position = position.clamp(0, x.shape[1] - 1)
    left = position.floor().long()
    right = (left + 1).clamp_max(x.shape[1] - 1)
    return torch.lerp(x[:, left], x[:, right], (position - left)[:, None].to(x))


class MelScaled(nn.Module):
    """A model of log-mels scaled to about -1 .. 1 by the range of its training data."""

    mel_low: Tensor
    mel_high: Tensor

    def set_mel_range(self, mel: MelConfig, statistics: Mapping | None) -> None:
        """Register the range of the dataset's ``log_mel`` per band, or floor .. 2 nepers where it is not known."""
        known = (statistics or {}).get("log_mel") or {"min": mel.log_floor, "max": 2.0 / mel.nepers_per_unit}
        # By numpy: on the meta device torch would load its compiler for this, which takes seconds.
        low, high = (np.full(mel.n_mels, known[k], dtype=np.float32) for k in ("min", "max"))
        self.register_buffer("mel_low", torch.tensor(low))
        # A constant band still needs a scale.
        self.register_buffer("mel_high", torch.tensor(np.maximum(high, low + np.float32(1.0 / mel.nepers_per_unit))))

    def scale(self, log_mel: LogMels) -> Mels:
        """Log-mel -> -1 .. 1, channels first."""
        return (2 * (log_mel - self.mel_low) / (self.mel_high - self.mel_low) - 1).transpose(1, 2)

    def unscale(self, x0: Mels) -> LogMels:
        """The inverse of :meth:`scale`."""
        return (x0.transpose(1, 2) + 1) / 2 * (self.mel_high - self.mel_low) + self.mel_low

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device


def registrar(registry: dict[str, Any]) -> Callable[[str], Callable[[Any], Any]]:
    """A function ``register(name)``: a decorator that offers a class or function under a name."""

    def register(name: str) -> Callable[[Any], Any]:
        def add(entry: Any) -> Any:
            registry[name] = entry
            return entry

        return add

    return register


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context with torch's CPU generator seeded, and restored afterwards; ``torch.manual_seed`` reseeds CUDA too."""
    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


class skip_init(torch.overrides.TorchFunctionMode):  # noqa: N801  (used like a function: ``with skip_init():``)
    """Context without random initialisation: on the meta device it would load torch's compiler, which takes seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
