"""Layers shared by the models (step embedding, gated blocks, conv stack, upsampler), chunked inference, precision.

Tensors are ``[batch, channels, frames]``. A gated stack is DiffWave's (Kong et al. 2021, Fig. 2): non-causal dilated
convolutions conditioned on the diffusion time and on a condition. What the condition adds to every gate does not depend
on the noisy signal, so it is a separate call (:meth:`GatedStack.project`) made once per song.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.utils.errors import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def resolve_precision(
    device: torch.device | str, purpose: Literal["training", "inference"], precision: str = "auto"
) -> str:
    """The precision that is used: ``precision`` itself, or what ``auto`` means on a device.

    On a GPU ``auto`` is bf16 where the hardware computes in it (compute capability 8), else fp16. On a CPU it is fp32,
    but bf16 for inference with AVX512-BF16: training there needs fp32 to stay bit-exact over restarts.
    """
    if precision not in PRECISIONS:
        raise ModelError(f"There is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    fast_bf16 = torch.device(device).type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast_bf16 and purpose == "inference" else "fp32"


def step_embedding(
    t: Float[Tensor, " batch"], dims: int, first: float = 1.0, last: float = 1e-4
) -> Float[Tensor, "batch dims"]:
    """Sines and cosines of the diffusion time at ``dims / 2`` geometrically spaced angular frequencies.

    Any real time is allowed. Angles are computed in float64: at ``t = 1000`` and frequency 10^4 float32 would be off
    by 0.7.

    Args:
        t: Diffusion times.
        dims: Even size of the embedding, at least 4.
        first: Frequency of the first sine and the first cosine, radians per diffusion step.
        last: Frequency of the last ones. 1 and 1e-4 is Vaswani et al. 2017 as Diff-SVC uses it; 1 and 1e4 is DiffWave
            (section 3.1).

    Returns:
        float32, all sines before all cosines.
    """
    half = dims // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / (half - 1)
    angles = t.double()[:, None] * first * (last / first) ** exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class StepEmbedding(nn.Module):
    """Diffusion time -> vector: sinusoids, then two linear layers.

    Args:
        sinusoids: Size of the sinusoidal embedding.
        hidden: Size of the vector between the two layers.
        out: Size of the vector that comes out.
        last: Highest-index frequency, see :func:`step_embedding`.
        activation: Class of the non-linearity between the layers.
        activate_last: Whether the non-linearity follows the second layer too (DiffWave).
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
        layers = [nn.Linear(sinusoids, hidden), activation(), nn.Linear(hidden, out)]
        self.layers = nn.Sequential(*layers, *([activation()] if activate_last else []))

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch out"]:
        """Embed diffusion times."""
        embedded = step_embedding(t, self.sinusoids, last=self.last)
        return self.layers(embedded.to(self.layers[0].weight.dtype))


class Gate(nn.Module):
    """Gated activation ``sigmoid(a) * tanh(b)`` (Kong et al. 2021, Fig. 2) of two halves of the channels."""

    def forward(self, y: Float[Tensor, "batch gates frames"]) -> Float[Tensor, "batch channels frames"]:
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
        x: Float[Tensor, "batch channels frames"],
        step: Float[Tensor, "batch step_dims"],
        condition: Float[Tensor, "batch gates frames"] | Float[Tensor, "batch gates 1"] | None = None,
    ) -> tuple[Float[Tensor, "batch channels frames"], Float[Tensor, "batch channels frames"]]:
        """The next residual signal, of unchanged variance, and this block's contribution to the output."""
        y = self.dilated(x + self.step(step)[:, :, None])
        if condition is not None:
            y = y.add_(condition)
        residual, skip = self.out(self.gate(y)).chunk(2, dim=1)
        return (x + residual).mul_(math.sqrt(0.5)), skip


class GatedStack(nn.Module):
    """Gated blocks in a row, dilations ``1, 2, 4, ...`` in cycles; the output is the sum of skips / sqrt(layers).

    Args:
        channels: Width of the residual signal.
        n_layers: Number of blocks.
        dilation_cycle: Blocks after which the dilation starts again at 1.
        step_dims: Size of the step vector.
        condition_dims: Channels of the condition; 0 for an unconditional stack.

    Attributes:
        halo: Frames on either side that one output frame depends on.
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

    def forward(
        self,
        x: Float[Tensor, "batch channels frames"],
        step: Float[Tensor, "batch step_dims"],
        projected: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "batch channels frames"]:
        """Run the blocks; ``projected`` comes from :meth:`project`."""
        total = None
        for i, block in enumerate(self.blocks):
            x, skip = block(x, step, None if projected is None else projected[i])
            total = skip if total is None else total + skip
        return total * (1.0 / math.sqrt(len(self.blocks)))


class ChannelNorm(nn.Module):
    """Layer normalisation over channels, frame by frame: no frame sees another, so chunks equal the whole."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
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
        """Map ``dims_in`` to ``dims_out`` channels; one output frame sees ``halo`` frames on either side."""
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.gelu(norm(x)))
        return self.last(F.gelu(self.norms[-1](x)))


class Upsampler(nn.Module):
    """Frames -> samples by transposed convolutions over time and frequency (DiffWave, section 4.1 and appendix C).

    Every stage multiplies the length by one even factor with a filter of ``2 * factor`` samples by 3 bands and is
    centred: a frame's value lands in the middle of the samples the frame covers.

    Args:
        factors: Even factors; their product is the hop. (16, 16) is DiffWave's, 194 parameters.
        slope: Negative slope of the leaky ReLU after each stage.
    """

    def __init__(self, factors: Sequence[int] = (16, 16), slope: float = 0.4):
        super().__init__()
        if any(f < 2 or f % 2 for f in factors):
            raise ValueError(f"Upsampling factors {tuple(factors)} must all be even, so that a frame has a middle.")
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
    """Split a long signal into chunks that are computed with a halo and then trimmed.

    Yields ``(start, stop, low, high)``: frames ``start:stop`` are this chunk's result, ``low:high`` its receptive
    field. At the ends of the signal there is no halo, so zero padding happens exactly where the whole signal has it.
    """
    for start in range(0, n_frames, chunk_frames):
        stop = min(start + chunk_frames, n_frames)
        yield start, stop, max(0, start - halo), min(n_frames, stop + halo)


def run_in_chunks(
    compute: Callable[[int, int], tuple[Tensor, ...]], n_frames: int, chunk_frames: int, halo: int
) -> tuple[Tensor, ...]:
    """Compute something long with the memory of one chunk: with a halo, trimmed, concatenated.

    Args:
        compute: Frames ``low:high`` -> tensors whose last axis is those frames.
        n_frames: Number of frames of the whole.
        chunk_frames: Frames of a chunk without its halo; the last one may have fewer.
        halo: Frames on either side that one frame depends on.

    Returns:
        The same as ``compute(0, n_frames)``.
    """
    parts = []
    for start, stop, low, high in chunks(n_frames, chunk_frames, halo):
        parts.append([x[..., start - low : stop - low] for x in compute(low, high)])
    return tuple(torch.cat(same, dim=-1) for same in zip(*parts, strict=True))


def mel_range(mel: MelConfig, statistics: Mapping | None) -> tuple[Float[Tensor, " mels"], Float[Tensor, " mels"]]:
    """Lowest and highest log-mel per band: the dataset's, or floor .. 2 nepers where there are no statistics."""
    known = (statistics or {}).get("log_mel") or {"min": mel.log_floor, "max": 2.0 / mel.nepers_per_unit}
    # By numpy: on the meta device torch would load its compiler for this, which takes seconds.
    low, high = (np.full(mel.n_mels, known[k], dtype=np.float32) for k in ("min", "max"))
    # A constant band still needs a scale.
    return torch.tensor(low), torch.tensor(np.maximum(high, low + np.float32(1.0 / mel.nepers_per_unit)))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context with torch's CPU generator seeded, and restored afterwards; CUDA generators are untouched.

    ``torch.manual_seed`` would reseed every CUDA device too, which ``fork_rng(devices=[])`` does not restore.
    """
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
