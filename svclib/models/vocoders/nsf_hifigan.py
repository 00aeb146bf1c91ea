"""The community's NSF-HiFiGAN vocoders, read from weights that a person brings along.

Generators of 2022.12, 2024.02 (``mini_nsf`` false) and PC-NSF-HiFiGAN of 2025.02 (``mini_nsf`` true): HiFi-GAN (Kong et
al. 2020, section 2.2) whose upsampling stages also receive an excitation made from the F0 (neural source-filter, Wang
et al. 2019, section III-A). A checkpoint is ``{'generator': tensors}`` with ``config.json`` beside it. It is read as
tensors only; nothing in it can run. The published weights are for non-commercial use and are not part of svclib.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.features.f0 import fill_unvoiced
from svclib.models import layers
from svclib.models.vocoders.harmonic import check_shapes
from svclib.utils.errors import ModelError, raise_if_cancelled

SLOPE = 0.1  # of the leaky ReLUs, but 0.01 before the last layer
N_SINES, SINE, VOICED_NOISE, UNVOICED_NOISE = 9, 0.1, 0.003, 0.1 / 3


@dataclasses.dataclass(frozen=True)
class NsfSettings:
    """The fields of ``config.json``, under its own names.

    Attributes:
        sampling_rate, hop_size, num_mels, n_fft, win_size, fmin, fmax: The mel; always natural log, floor 1e-5.
        upsample_rates, upsample_kernel_sizes, upsample_initial_channel: The upsampling stages; rates multiply to the
            hop, channels halve from stage to stage.
        resblock_kernel_sizes, resblock_dilation_sizes: The residual blocks behind every stage.
        mini_nsf: True: one sine at the rate of the second stage and for it alone, voiced or not. False: nine
            harmonics with noise at the sample rate, for every stage.
        noise_sigma: Noise added behind the first layer.
    """

    sampling_rate: int = 44100
    hop_size: int = 512
    num_mels: int = 128
    n_fft: int = 2048
    win_size: int = 2048
    fmin: float | int = 40.0
    fmax: float | int = 16000.0
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 4, 4, 4)
    upsample_initial_channel: int = 512
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    mini_nsf: bool = False
    noise_sigma: float | int = 0.0

    def __post_init__(self):
        rates, kernels, first = self.upsample_rates, self.upsample_kernel_sizes, self.upsample_initial_channel
        if math.prod(rates) != self.hop_size or len(rates) < 2 or min(rates) < 1:
            raise ModelError(f"upsample_rates {rates} do not multiply to hop_size {self.hop_size}.")
        if len(kernels) != len(rates) or any(k < r or (k - r) % 2 for k, r in zip(kernels, rates, strict=False)):
            raise ModelError(f"upsample_kernel_sizes {kernels} do not fit upsample_rates {rates}.")
        if not 1 <= first <= 4096 or first % 2 ** len(rates):
            raise ModelError(f"upsample_initial_channel is {first}; it has to halve {len(rates)} times.")
        sizes = self.resblock_kernel_sizes
        if not sizes or len(sizes) != len(self.resblock_dilation_sizes) or any(k < 1 or k % 2 == 0 for k in sizes):
            raise ModelError(f"resblock_kernel_sizes {sizes} must be odd, with dilations for each.")
        if not 0 <= self.noise_sigma <= 1:
            raise ModelError(f"noise_sigma is {self.noise_sigma}; expected 0 to 1.")

    @property
    def contract(self) -> MelConfig:
        """The mel it was trained on."""
        return MelConfig(
            self.sampling_rate,
            self.n_fft,
            self.win_size,
            self.hop_size,
            self.num_mels,
            float(self.fmin),
            float(self.fmax),
        )

    @classmethod
    def from_json(cls, record: Any) -> "NsfSettings":
        """The settings of a ``config.json``; its other entries are about training.

        Raises ModelError, naming the field that is missing or does not fit.
        """
        if not isinstance(record, dict):
            raise ModelError("its config.json is no JSON object.")
        if str(record.get("resblock", "1")) != "1":
            raise ModelError(f"its blocks are of type {str(record['resblock'])[:20]!r}; only type '1' is known.")
        values = {}
        for field in dataclasses.fields(cls):
            if field.name not in record:
                if field.name in ("mini_nsf", "noise_sigma"):  # older than these
                    continue
                raise ModelError(f"its config.json has no '{field.name}'.")
            values[field.name] = _checked(field.name, record[field.name], field.default)
        return cls(**values)


def _checked(name: str, value, like):
    """A JSON value in the type of ``like``: lists become tuples, every number a number of the right kind."""
    if isinstance(like, tuple):
        if isinstance(value, list) and 0 < len(value) <= 8:
            return tuple(_checked(name, v, like[0]) for v in value)
    elif isinstance(like, bool):
        if isinstance(value, bool):
            return value
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6:
        if isinstance(like, float) or value == int(value):
            return type(like)(value)
    raise ModelError(f"its config.json says {name} = {repr(value)[:60]}; expected something like {like}.")


class ResBlock(nn.Module):
    """Three times: leaky ReLU, dilated convolution, leaky ReLU, convolution, added to what came in."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)
        self.reach = sum((d + 1) * (kernel - 1) // 2 for d in dilations)

    def forward(self, x: Float[Tensor, "batch channels n"]) -> Float[Tensor, "batch channels n"]:
        """The next signal, of the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class NsfHifigan(nn.Module):
    """The generator, by the ``Vocoder`` protocol. ``nsf_checkpoint.load`` makes one of a checkpoint.

    Names of its tensors are the published ones, without weight normalisation.

    Args:
        settings: From its ``config.json``.
        name: For people and messages.

    Attributes:
        halo: Frames on either side that one frame of sound depends on.
    """

    def __init__(self, settings: NsfSettings, name: str = "nsf_hifigan"):
        super().__init__()
        s, self.settings, self.name, self.contract = settings, settings, name, settings.contract
        self.sample_rate_hz = s.sampling_rate
        channels = [s.upsample_initial_channel // 2**i for i in range(len(s.upsample_rates) + 1)]
        self.conv_pre = nn.Conv1d(s.num_mels, channels[0], 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        reach, rate = 3.0, 1
        for c_in, c_out, r, k in zip(channels, channels[1:], s.upsample_rates, s.upsample_kernel_sizes, strict=False):
            self.ups.append(nn.ConvTranspose1d(c_in, c_out, k, r, padding=(k - r) // 2))
            blocks = [ResBlock(c_out, *b) for b in zip(s.resblock_kernel_sizes, s.resblock_dilation_sizes, strict=True)]
            self.resblocks.extend(blocks)
            reach, rate = reach + k / (r * rate), rate * r
            reach += max(b.reach for b in blocks) / rate
        self.conv_post = nn.Conv1d(channels[-1], 1, 7, padding=3)
        self.halo = math.ceil(reach + 4 / rate) + 2
        if s.mini_nsf:
            self.source_conv = nn.Conv1d(1, channels[2], 1)
        else:
            self.m_source = nn.ModuleDict({"l_linear": nn.Linear(N_SINES, 1)})
            strides = [math.prod(s.upsample_rates[i + 1 :]) for i in range(len(self.ups))]
            self.noise_convs = nn.ModuleList(
                nn.Conv1d(1, c, 2 * n, n, padding=n // 2) if n > 1 else nn.Conv1d(1, c, 1)
                for c, n in zip(channels[1:], strides, strict=True)
            )

    @property
    def source_hop(self) -> int:
        """Samples of the source per frame: the hop, or the product of the first two rates."""
        return math.prod(self.settings.upsample_rates[:2]) if self.settings.mini_nsf else self.settings.hop_size

    def frame_phase(self, f0_hz: Float[Tensor, "batch frames"]) -> Float[Tensor, "batch frames"]:
        """Cycles (float64) that the pitch has run before each frame begins.

        A frame's pitch holds for the frame; with ``mini_nsf`` it moves in a straight line to the next frame's.
        """
        step = f0_hz.double() * self.settings.hop_size / self.sample_rate_hz
        if self.settings.mini_nsf:
            n = self.source_hop
            step = step + (_next(step) - step) / 2 * (n - 1) / n
        return F.pad(step.cumsum(1)[:, :-1], (1, 0)) % 1.0

    def source(
        self,
        f0_hz: Float[Tensor, "batch frames"],
        following_hz: Float[Tensor, "batch frames"],
        phase: Float[Tensor, "batch frames"],
        initial: Float[Tensor, " sines"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch 1 n"]:
        """The excitation signal.

        With ``mini_nsf`` one sine of amplitude 1. Otherwise ``tanh(w . s + b)`` of nine harmonics ``s`` of amplitude
        0.1 with noise of 0.003, which in frames without pitch is noise of 0.1 / 3 alone.

        Args:
            f0_hz: Pitch of every frame; 0 where there is none.
            following_hz: The same of the frame after it; only ``mini_nsf`` moves towards it.
            phase: From :meth:`frame_phase`.
            initial: Cycles at which each of nine harmonics begins; the fundamental's is 0. All 0 if None.
            generator: Of the noise; none is added without.

        Returns:
            ``frames * source_hop`` samples.
        """
        n, like = self.source_hop, self.conv_pre.weight
        count = torch.arange(1, n + 1, dtype=torch.float64, device=f0_hz.device)
        step = f0_hz.double()[..., None] * (self.settings.hop_size / (self.sample_rate_hz * n))
        cycles = phase[..., None] + step * count
        if self.settings.mini_nsf:
            slope = (following_hz - f0_hz).double()[..., None] * (self.settings.hop_size / (self.sample_rate_hz * n))
            cycles = cycles + 0.5 * slope * count * (count - 1) / n
            return torch.sin(2 * math.pi * cycles).flatten(1)[:, None].to(like)
        number = torch.arange(1, N_SINES + 1, dtype=torch.float64, device=f0_hz.device)
        cycles = cycles[..., None] * number
        if initial is not None:
            cycles = cycles + initial.to(cycles)
        voiced = (f0_hz > 0).to(like)[..., None, None]
        sines = SINE * torch.sin(2 * math.pi * (cycles % 1.0)).to(like) * voiced
        if generator is not None:
            noise = torch.randn(sines.shape, generator=generator).to(like)
            sines = sines + noise * (voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE)
        return torch.tanh(self.m_source["l_linear"](sines.flatten(1, 2))).transpose(1, 2)

    def generate(
        self,
        log_mel: Float[Tensor, "batch frames mels"],
        source: Float[Tensor, "batch 1 n"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """The network alone: ``frames * hop`` samples within -1 .. 1."""
        x = self.conv_pre(log_mel.transpose(1, 2))
        if self.settings.noise_sigma and generator is not None:
            x = x + self.settings.noise_sigma * torch.randn(x.shape, generator=generator).to(x)
        n = len(self.settings.resblock_kernel_sizes)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            if not self.settings.mini_nsf:
                x = x + self.noise_convs[i](source)
            elif i == 1:
                x = x + self.source_conv(source)
            total = self.resblocks[i * n](x)
            for block in self.resblocks[i * n + 1 : (i + 1) * n]:
                total = total + block(x)
            x = total / n
        return torch.tanh(self.conv_post(F.leaky_relu(x, 0.01)))[:, 0]

    @torch.no_grad()
    def forward(
        self,
        log_mel: Float[Tensor, "batch frames mels"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
        seed: int = 0,
        chunk_frames: int = 172,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """The vocoder protocol: songs of any length, in pieces with a halo, under one source.

        Frames without pitch get noise for a source; ``mini_nsf``, which knows no voicing, gets the F0 around them
        and takes voicing from the mel.

        Args:
            log_mel: Natural logarithm, by the contract.
            f0_hz: Pitch; what it is in unvoiced frames does not count.
            voiced: Whether the frame has a pitch.
            seed: Of all noise and of where the harmonics of the source begin.
            chunk_frames: Frames per piece; 2 s at 44.1 kHz are also the fastest on a CPU.
            progress: Called after every piece with the share that is done and a text.
            cancelled: See ``utils.errors``.

        Returns:
            ``frames * hop`` samples within -1 .. 1.
        """
        check_shapes(log_mel, f0_hz, voiced, self.contract)
        pitch = f0_hz * voiced
        if self.settings.mini_nsf:
            pitch = torch.from_numpy(fill_unvoiced(pitch.cpu().numpy(), voiced.cpu().numpy())).to(f0_hz)
        following, phase = _next(pitch), self.frame_phase(pitch)
        generator = torch.Generator().manual_seed(seed)
        initial = torch.rand(N_SINES, generator=generator)
        initial[0] = 0.0
        n_frames, hop, made, pieces = f0_hz.shape[1], self.source_hop, 0, []
        known = log_mel.new_zeros(len(f0_hz), 1, 0)  # the source of the last frames, up to frame `made`
        for start, stop, low, high in layers.chunks(n_frames, max(1, chunk_frames), self.halo):
            raise_if_cancelled(cancelled)
            new = slice(made, high)
            if high > made:
                more = self.source(pitch[:, new], following[:, new], phase[:, new], initial, generator)
                known, made = torch.cat([known, more], dim=2), high
            known = known[:, :, -(high - low) * hop :]
            sound = self.generate(log_mel[:, low:high], known, generator)
            out = self.settings.hop_size
            pieces.append(sound[:, (start - low) * out : (stop - low) * out])
            if progress is not None:
                progress(stop / n_frames, "vocoder")
        return torch.cat(pieces, dim=1)


def _next(x: Tensor) -> Tensor:
    """Every frame's successor; the last one's is itself."""
    return torch.cat([x[:, 1:], x[:, -1:]], dim=1)
