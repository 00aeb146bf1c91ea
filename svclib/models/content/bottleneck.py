"""Content encoder ``bottleneck``: pitch-free mel envelope through a narrow, noisy code, trained with the model.

Three things keep speaker identity out of the code: the envelope's cepstra are normalised over the recording, the
envelope is perturbed in training (warped frequency axis: another vocal tract; drifting equaliser: another microphone),
and the code is narrow and noisy. Pitch stays out because the envelope is smoothed over one F0.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from svclib.audio import units
from svclib.audio.mel import MelConfig
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.content.base import ContentEncoder, register
from svclib.models.layers import Content, ConvStack, Frames, LogMels, interpolate, run_in_chunks
from svclib.utils import rng

UNPITCHED_SMOOTHING_HZ = 200.0


def spectral_envelope(log_mel: LogMels, f0_hz: Frames, centers_hz: Float[Tensor, " mels"]) -> LogMels:
    """The spectrum as the vocal tract shapes it, without the comb of the harmonics; natural logarithms.

    The magnitude is averaged over one F0 around every harmonic (a window of exactly one F0 holds one harmonic
    wherever it lies, as in CheapTrick, Morise 2015) and the logarithms are joined by straight lines over frequency.
    Below the first harmonic its own value stands. Where ``f0_hz`` (filled over unvoiced frames) is 0, the smoothing is
    200 Hz wide.
    """
    f0 = units.double(torch.where(f0_hz > 0, f0_hz, torch.full_like(f0_hz, UNPITCHED_SMOOTHING_HZ)))[..., None]
    centers = units.double(centers_hz)
    # Area under the magnitude up to each mel centre; beyond the first and the last centre the magnitude goes on level.
    magnitude = units.double(log_mel).exp()
    steps = (magnitude[..., 1:] + magnitude[..., :-1]) / 2 * centers.diff()
    area = torch.cat([torch.zeros_like(magnitude[..., :1]), steps.cumsum(-1)], dim=-1)

    def area_up_to(f_hz: Tensor) -> Tensor:
        right = torch.searchsorted(centers, f_hz.contiguous()).clamp(1, len(centers) - 1)
        left = right - 1
        slope = steps.gather(-1, left) / centers.diff()[left]
        inside = area.gather(-1, left) + slope * (f_hz - centers[left])
        below = magnitude[..., :1] * (f_hz - centers[0])
        above = area[..., -1:] + magnitude[..., -1:] * (f_hz - centers[-1])
        return torch.where(f_hz < centers[0], below, torch.where(f_hz > centers[-1], above, inside))

    number = (centers / f0).clamp_min(1.0)  # harmonic number of every mel centre
    low = number.floor()
    edges = [area_up_to((low + offset) * f0) for offset in (-0.5, 0.5, 1.5)]
    at_low = ((edges[1] - edges[0]) / f0).clamp_min(1e-12).log()
    at_high = ((edges[2] - edges[1]) / f0).clamp_min(1e-12).log()
    return (at_low + (number - low) * (at_high - at_low)).to(log_mel.dtype)


def cepstrum_basis(n_mels: int, n_cepstra: int) -> Float[Tensor, "mels cepstra"]:
    """Orthonormal DCT-II of orders 1 .. ``n_cepstra``; order 0, the level, is left out."""
    m = np.arange(n_mels)[:, None] + 0.5
    k = np.arange(1, n_cepstra + 1)
    return torch.tensor((math.sqrt(2.0 / n_mels) * np.cos(math.pi * m * k / n_mels)).astype(np.float32))


def warp(envelope: LogMels, factor: Float[Tensor, " batch"], centers_hz: Float[Tensor, " mels"]) -> LogMels:
    """Warp the frequency axis: what was at ``f`` comes to ``f * factor``, as from a shorter vocal tract."""
    wanted = (centers_hz / factor[:, None])[:, None].expand(envelope.shape)
    return interpolate(envelope, centers_hz, wanted)


def drifting_equaliser(
    batch: int, n_frames: int, n_mels: int, strength_db: float, generator: torch.Generator, bends: int = 6
) -> LogMels:
    """Smooth random equalisers that change into another over the piece, in nepers, RMS ``strength_db`` over frequency.

    A constant one would vanish in the normalisation over time; one that drifts does not.
    """
    ends = rng.normal((2, batch, bends), generator, dim=1)
    # Each basis curve has mean square 1 / n_mels over the mels.
    curves = ends @ cepstrum_basis(n_mels, bends).T.to(ends.device) * math.sqrt(n_mels / bends)
    blend = torch.linspace(0, 1, n_frames, device=ends.device)[:, None]
    drift = curves[0][:, None] * (1 - blend) + curves[1][:, None] * blend
    return drift * (strength_db * math.log(10) / 20)


def normalised(
    x: Float[Tensor, "batch frames orders"], level: Float[Tensor, "batch frames 1"], floor: float
) -> Float[Tensor, "batch frames orders"]:
    """Mean 0 and variance about 1 of every order over time, each recording by itself; loud frames count more.

    Orders that hardly move are lifted less than to 1: at high pitch they are mostly residue of the harmonics. The
    weight of a frame is the square of its level above the floor (nepers), so silence has none.
    """
    weight = (level - floor).clamp_min(0).square()
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-8)
    centred = x - (weight * x).sum(1, keepdim=True)
    spread = (weight * centred.square()).sum(1, keepdim=True)
    return centred / (spread + 0.2).sqrt()


@register("bottleneck")
class Bottleneck(ContentEncoder):
    """Pitch-free envelope -> cepstra, normalised over the recording -> small convolutions -> a narrow code in -1 .. 1.

    It reads log-mels of ``contract``. Convolutions are over 5 frames: a code sees ``2 * n_layers`` frames on either
    side. In training the frequency axis is warped by up to the share ``warp_range``, down or up, an equaliser of
    ``equaliser_db`` drifts, and the code gets noise of the standard deviation ``code_noise``.
    """

    fields = ("log_mel", "f0_hz")

    def __init__(
        self,
        contract: MelConfig,
        code_dims: int = 16,
        n_cepstra: int = 20,
        channels: int = 192,
        n_layers: int = 3,
        warp_range: float = 0.2,
        equaliser_db: float = 6.0,
        code_noise: float = 0.25,
    ):
        super().__init__()
        self.dims = code_dims
        self.warp_range, self.equaliser_db, self.code_noise = warp_range, equaliser_db, code_noise
        self.to_nepers = contract.nepers_per_unit
        self.floor = math.log(contract.floor)
        self.register_buffer("centers_hz", torch.from_numpy(contract.centers_hz()).float(), persistent=False)
        self.register_buffer("basis", cepstrum_basis(contract.n_mels, n_cepstra), persistent=False)
        self.convs = ConvStack(n_cepstra, channels, code_dims, n_layers)

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "Bottleneck":
        """The encoder that ``DiffusionSettings`` describe."""
        s = settings
        return cls(
            features.mel,
            s.code_dims,
            channels=s.content_channels,
            n_layers=s.content_layers,
            warp_range=s.warp_range,
            equaliser_db=s.equaliser_db,
            code_noise=s.code_noise,
        )

    def forward(self, inputs: ConditionInputs, generator: torch.Generator | None = None) -> Content:
        """Content vectors within -1 .. 1; with a ``generator`` of the perturbed envelope, plus noise."""
        cepstra, level = self.measured(inputs.log_mel, inputs.f0_hz, generator)
        code = torch.tanh(self.convs(normalised(cepstra, level, self.floor).transpose(1, 2)).transpose(1, 2))
        return self.noisy(code, generator)

    @torch.no_grad()
    def measured(
        self, log_mel: LogMels, f0_hz: Frames, generator=None
    ) -> tuple[Float[Tensor, "batch frames cepstra"], Float[Tensor, "batch frames 1"]]:
        """Cepstra of the envelope and mean log-mel in nepers, frame by frame: no frame sees another."""
        with torch.autocast(log_mel.device.type, enabled=False):  # full precision whatever the training runs in
            nepers = log_mel.float() * self.to_nepers
            envelope = spectral_envelope(nepers, f0_hz.float(), self.centers_hz)
            if generator is not None:
                envelope = self._perturbed(envelope, generator)
            return envelope @ self.basis, nepers.mean(-1, keepdim=True)

    @torch.no_grad()
    def encode(self, inputs: ConditionInputs, chunk_frames: int) -> Content:
        """:meth:`forward` of a recording of any length, measured and encoded in chunks, normalised over the whole."""
        n, f0_hz, log_mel = len(inputs), inputs.f0_hz, inputs.log_mel

        def measure(low, high):
            return tuple(x.transpose(1, 2) for x in self.measured(log_mel[:, low:high], f0_hz[:, low:high]))

        cepstra, level = (x.transpose(1, 2) for x in run_in_chunks(measure, n, chunk_frames, 0))
        seen = normalised(cepstra, level, self.floor).transpose(1, 2)
        (code,) = run_in_chunks(lambda low, high: (self.convs(seen[..., low:high]),), n, chunk_frames, self.convs.halo)
        return torch.tanh(code.transpose(1, 2))

    def _perturbed(self, envelope: Tensor, generator: torch.Generator) -> Tensor:
        if self.warp_range:
            reach = math.log1p(self.warp_range)
            draw = rng.uniform((envelope.shape[0],), generator)
            envelope = warp(envelope, ((2 * draw - 1) * reach).exp().to(envelope), self.centers_hz)
        if self.equaliser_db:
            drift = drifting_equaliser(*envelope.shape, strength_db=self.equaliser_db, generator=generator)
            envelope = envelope + drift.to(envelope)
        return envelope
