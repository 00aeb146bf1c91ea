"""Content encoder ``words``: a pretrained network shipped with the package, frozen in every training.

A pitch-free spectral envelope, normalised over the recording, goes through dilated convolutions to 64 numbers a frame.
The network is a student of Whisper's encoder (Radford et al. 2022): trained by cross-entropy on clusters of its frames
(soft units, van Niekerk et al. 2022, arXiv:2111.02392) from augmented envelopes of many speakers. ``WORDS.md`` beside
this file is its model card; ``tools/base`` trains it.
"""

import copy
import functools
import math
from importlib import resources
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.content import bottleneck
from svclib.models.content.base import ContentEncoder, register
from svclib.models.layers import Content, Frames, LogMels, at_positions, interpolate, run_in_chunks

WEIGHTS = "words.safetensors"
N_CEPSTRA, CODE_DIMS = 30, 64
CHANNELS, DILATIONS = 256, (1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 4, 8, 16, 32)
HALO = 2 * sum(DILATIONS) + 6  # input frames on either side that one code frame depends on; even
MEL = MelConfig(
    sample_rate_hz=22050, n_fft=1024, window_samples=1024, hop_samples=256, n_mels=80, fmin_hz=0.0, fmax_hz=8000.0
)


class WordsNetwork(nn.Module):
    """Normalised cepstra and level -> code; one code frame for every two input frames of 11.6 ms."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(N_CEPSTRA + 1, CHANNELS, 6, stride=2, padding=2)
        self.norms = nn.ModuleList(nn.BatchNorm1d(CHANNELS) for _ in range(len(DILATIONS) + 1))
        self.convs = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=d, dilation=d) for d in DILATIONS)
        self.last = nn.Conv1d(CHANNELS, CODE_DIMS, 1)

    def forward(self, x: Float[Tensor, "batch inputs frames"]) -> Float[Tensor, "batch code half"]:
        """The code of an even number of frames; every code frame has mean 0 and variance 1 over its 64 numbers."""
        y = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            y = y + conv(F.relu(norm(y)))
        y = self.last(F.relu(self.norms[-1](y)))
        return F.layer_norm(y.transpose(1, 2), (CODE_DIMS,)).transpose(1, 2)


@functools.lru_cache(maxsize=2)
def pretrained(device: str = "cpu") -> WordsNetwork:
    """The shipped network in eval mode, float32."""
    if device != "cpu":
        return copy.deepcopy(pretrained()).to(device)
    network = WordsNetwork()
    data = resources.files("svclib.models.content").joinpath(WEIGHTS).read_bytes()
    network.load_state_dict({name: value.float() for name, value in safetensors.torch.load(data).items()})
    return network.eval().requires_grad_(False)


def normalised(cepstra: Float[Tensor, "batch frames cepstra"], level: Frames) -> Float[Tensor, "batch inputs frames"]:
    """Network input: ``bottleneck.normalised`` cepstra and level of a recording."""
    level = level[..., None]
    return bottleneck.normalised(torch.cat([cepstra, level], -1), level, math.log(MEL.floor)).transpose(1, 2)


def at_harmonics(log_envelope: LogMels, f0_hz: Frames, centers_hz: Float[Tensor, " mels"]) -> LogMels:
    """The envelope as measured at another pitch: known at the harmonics of ``f0_hz``, straight lines between."""
    f0 = f0_hz[..., None]
    number = (centers_hz / f0).clamp_min(1)
    low = number.floor()
    at_low, at_high = (interpolate(log_envelope, centers_hz, (low + k) * f0) for k in (0, 1))
    return at_low + (number - low) * (at_high - at_low)


@register("words")
class Words(ContentEncoder):
    """The pretrained encoder; its network is the package's, so it adds no weights to a model.

    It reads log-mels of ``contract``, interpolated where bands and frames are not its own. In training the code (of
    standard deviation 1) gets ``code_noise``; :meth:`variants` scales the frequency axis by up to ``warp_range`` and
    adds a drifting equaliser of ``equaliser_db``.
    """

    fields = ("log_mel", "f0_hz")

    def __init__(self, contract: MelConfig, code_noise: float, warp_range: float, equaliser_db: float):
        super().__init__()
        self.dims, self.code_noise = CODE_DIMS, code_noise
        self.warp_range, self.equaliser_db = warp_range, equaliser_db
        self.to_nepers = contract.nepers_per_unit
        own_s, other_s = (c.hop_samples / c.sample_rate_hz for c in (MEL, contract))
        self.rate = other_s / own_s  # frames of its own for every frame of the contract
        centers_hz, bands_hz = (torch.from_numpy(c.centers_hz()).float() for c in (contract, MEL))
        self.register_buffer("centers_hz", centers_hz, persistent=False)
        self.register_buffer("bands_hz", bands_hz, persistent=False)
        self.register_buffer("basis", bottleneck.cepstrum_basis(MEL.n_mels, N_CEPSTRA), persistent=False)

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "Words":
        """The encoder that ``DiffusionSettings`` describe."""
        return cls(features.mel, settings.code_noise, settings.warp_range, settings.equaliser_db)

    def forward(self, inputs: ConditionInputs, generator: torch.Generator | None = None) -> Content:
        """The code of whole recordings; a ``generator`` adds noise."""
        return self.noisy(self.encode(inputs, len(inputs)), generator)

    @torch.no_grad()
    def encode(self, inputs: ConditionInputs, chunk_frames: int) -> Content:
        """The code of a recording of any length, or ``inputs.content`` where it was encoded before.

        Windows of a recording need that: their own statistics are not the recording's.
        """
        if inputs.content is not None:
            return inputs.content.to(inputs.log_mel)
        with torch.autocast(inputs.log_mel.device.type, enabled=False):  # the same bits whatever the model runs in
            return self._code(self._envelope(inputs, chunk_frames), len(inputs), chunk_frames)

    @torch.no_grad()
    def variants(self, inputs: ConditionInputs, n: int, seed: int) -> Float[Tensor, "n frames code"]:
        """The code of one recording, then codes of ``n - 1`` augmentations: other vocal tract, pitch, equaliser, noise.

        With the recording's own mel as the target, a decoder learns that all of them are the same words.
        """
        generator, n_frames = torch.Generator().manual_seed(seed), len(inputs)
        plain = self._envelope(inputs, n_frames)
        codes = [self._code(plain, n_frames, n_frames)]

        def uniform(*shape):
            return torch.rand(shape, generator=generator).to(plain)

        for i in range(1, n):
            factor = ((2 * uniform(1) - 1) * math.log1p(self.warp_range)).exp()
            envelope = bottleneck.warp(plain, factor, self.bands_hz)
            if i % 2:
                drift = uniform(1, 1) * torch.linspace(-0.25, 0.25, plain.shape[1], device=plain.device)
                f0_hz = 110 * 2 ** (2.5 * uniform(1, 1) + drift)
                envelope = at_harmonics(envelope, f0_hz, self.bands_hz)
            equaliser = bottleneck.drifting_equaliser(
                1, *plain.shape[1:], strength_db=self.equaliser_db, generator=generator
            ).to(plain)
            noise_db = -25 - 50 * uniform(1) + 3 * torch.randn(plain.shape, generator=generator).to(plain)
            noise = plain.amax() + noise_db * (math.log(10) / 20)
            codes.append(self._code(torch.logaddexp(envelope + equaliser, noise), n_frames, n_frames))
        return torch.cat(codes)

    def _envelope(self, inputs: ConditionInputs, chunk_frames: int) -> Float[Tensor, "batch own_frames bands"]:
        """The pitch-free log envelope at the encoder's own bands and frames."""

        def measure(start, stop):
            nepers = inputs.log_mel[:, start:stop].float() * self.to_nepers
            found = bottleneck.spectral_envelope(nepers, inputs.f0_hz[:, start:stop].float(), self.centers_hz)
            if not torch.equal(self.centers_hz, self.bands_hz):
                found = interpolate(found, self.centers_hz, self.bands_hz.expand(*found.shape[:2], -1))
            return (found.transpose(1, 2),)

        envelope = run_in_chunks(measure, len(inputs), chunk_frames, 0)[0].transpose(1, 2)
        if self.rate == 1.0:
            return envelope
        n = max(1, round(envelope.shape[1] * self.rate))
        return at_positions(envelope, (torch.arange(n, device=envelope.device) + 0.5) / self.rate - 0.5)

    def _code(self, envelope: Tensor, n_frames: int, chunk_frames: int) -> Content:
        """Normalise over the recording, run the network in chunks, interpolate to the contract's frames."""
        x = normalised(envelope @ self.basis, envelope.mean(-1))
        x, network = F.pad(x, (0, x.shape[-1] % 2)), pretrained(str(envelope.device))
        size = max(1, chunk_frames // 2)  # of code frames, each of two input frames
        (code,) = run_in_chunks(
            lambda low, high: (network(x[..., 2 * low : 2 * high]),), x.shape[-1] // 2, size, HALO // 2
        )
        code = code.transpose(1, 2)
        return at_positions(code, ((torch.arange(n_frames, device=code.device) + 0.5) * self.rate - 1.0) / 2)
