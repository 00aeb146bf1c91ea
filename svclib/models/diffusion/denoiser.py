"""The network that names the noise in a mel, what it is told about the song, and how it runs over a long one.

:class:`Conditions` turns content, F0 with voicing, loudness and singer into one vector per frame; :class:`Denoiser` is
Diff-SVC's network (DiffWave's gated stack over mel frames); :class:`Prepared` binds it to one song with everything
computed ahead that does not depend on the noisy mel.
"""

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig
from svclib.models import layers
from svclib.models.diffusion.schedule import Schedule
from svclib.utils import progress
from svclib.utils.errors import ModelError

CONDITIONS = ("content", "f0", "loudness", "singer")
PREDICTIONS = ("residual", "eps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PIECE_FRAMES = 2048  # of a long song, computed at once
CACHE_BYTES = 10**9  # of what is computed ahead of a walk


class Denoiser(nn.Module):
    """Noisy mel, time and condition -> the noise in it.

    20 layers of 384 channels, 128 mels and a condition of 256: 31,956,224 parameters.

    With ``prediction="eps"`` the network's output is the noise itself, as Diff-SVC's. With ``"residual"`` it is what
    remains of the noise once a guess of the clean mel is taken into account: if the mel were normally distributed
    around the guess with standard deviation ``spread``, the best noise estimate would be linear in ``x_t``; the
    network learns the rest, scaled to unit size at every time (the preconditioning of Karras et al. 2022, Table 1,
    around a known mean).
    A network that knows nothing then returns the guess, and no error is divided by 0.006 where all is noise.

    Args:
        n_mels: Bands of the mel.
        channels: Width of the residual signal.
        n_layers: Number of residual blocks.
        dilation_cycle: Blocks after which the dilation starts again at 1.
        condition_dims: Channels of the condition.
        schedule: Says how much signal and noise there is at each time.
        prediction: One of ``PREDICTIONS``.
    """

    def __init__(
        self,
        n_mels: int,
        channels: int,
        n_layers: int,
        dilation_cycle: int,
        condition_dims: int,
        schedule: Schedule,
        prediction: str = "residual",
    ):
        super().__init__()
        self.schedule, self.prediction = schedule, prediction
        self.first = nn.Conv1d(n_mels, channels, 1)
        self.step = layers.StepEmbedding(channels, 4 * channels, channels)
        self.stack = layers.GatedStack(channels, n_layers, dilation_cycle, channels, condition_dims)
        self.skip = nn.Conv1d(channels, channels, 1)
        self.last = nn.Conv1d(channels, n_mels, 1)
        for conv in (self.first, self.skip):
            nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def network(
        self, x: Float[Tensor, "batch mels frames"], t: Float[Tensor, " batch"], projected: Sequence[Tensor]
    ) -> Float[Tensor, "batch mels frames"]:
        """The layers alone; ``projected`` is ``stack.project(condition)``."""
        hidden = self.stack(F.relu(self.first(x)), self.step(t), projected)
        return self.last(F.relu(self.skip(hidden)))

    def _output(self, x_t, t, projected, guess, spread, alpha, sigma):
        """The network's own output in the precision of ``x_t``, and the variance it is scaled by."""
        total = (alpha * spread) ** 2 + sigma**2
        seen = x_t if self.prediction == "eps" else (x_t - alpha * guess) / total.sqrt()
        return self.network(seen.to(self.first.weight.dtype), t, projected).to(x_t.dtype), total

    def eps(
        self,
        x_t: Float[Tensor, "batch mels frames"],
        t: Float[Tensor, " batch"],
        projected: Sequence[Tensor],
        guess: Float[Tensor, "batch mels frames"],
        spread: Float[Tensor, "batch mels frames"],
    ) -> Float[Tensor, "batch mels frames"]:
        """The noise in ``x_t``, in its precision; ``guess`` is a clean mel and ``spread`` how far it may be off."""
        alpha, sigma = self.schedule.factors(t, x_t)
        out, total = self._output(x_t, t, projected, guess, spread, alpha, sigma)
        if self.prediction == "eps":
            return out
        return sigma / total * (x_t - alpha * guess) - alpha * spread / total.sqrt() * out

    def loss(
        self,
        x0: Float[Tensor, "batch mels frames"],
        t: Float[Tensor, " batch"],
        noise: Float[Tensor, "batch mels frames"],
        projected: Sequence[Tensor],
        guess: Float[Tensor, "batch mels frames"],
        spread: Float[Tensor, "batch mels frames"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean square error of the network's own output, to learn by, and of the noise, Ho et al. 2020, Eq. 14.

        For ``eps`` they are the same. For ``residual`` the first is measured against what the guess leaves open: where
        the guess grows surer it grows too, however good the result becomes; only the second compares steps.
        """
        alpha, sigma = self.schedule.factors(t, x0)
        out, total = self._output(alpha * x0 + sigma * noise, t, projected, guess, spread, alpha, sigma)
        residual = (sigma / spread * (x0 - guess) - alpha * spread * noise) / total.sqrt()
        error = out - (noise if self.prediction == "eps" else residual)
        of_noise = error if self.prediction == "eps" else alpha * spread / total.sqrt() * error
        return error.square().mean(), of_noise.square().mean()


class Conditions(nn.Module):
    """Content, F0 with voicing, loudness, singer -> one condition per frame, each replaceable by a learned null."""

    def __init__(self, contract: MelConfig, code_dims: int, n_singers: int, dims: int):
        super().__init__()
        centers_hz = torch.from_numpy(contract.centers_hz()).float()
        self.register_buffer("centers_hz", centers_hz, persistent=False)
        self.register_buffer("spacing_hz", torch.gradient(centers_hz)[0], persistent=False)
        self.content = nn.Linear(code_dims, dims)
        self.f0 = nn.Sequential(nn.Linear(2, dims), nn.GELU(), nn.Linear(dims, dims))
        # The comb goes in linearly: a product of it that only fits the pitches of the training would not carry over.
        self.harmonics = nn.Linear(contract.n_mels, dims, bias=False)
        self.loudness = nn.Sequential(nn.Linear(1, dims), nn.GELU(), nn.Linear(dims, dims))
        self.singer = nn.Parameter(nn.init.normal_(torch.empty(n_singers, dims), std=1 / math.sqrt(dims)))
        self.null = nn.Parameter(nn.init.normal_(torch.empty(len(CONDITIONS), dims), std=1 / math.sqrt(dims)))
        self.mix = layers.ConvStack(dims, dims, dims, n_layers=1)
        self.halo = self.mix.halo
        self.norm = layers.ChannelNorm(dims)  # so that the gates feel the condition from the first step on

    def comb(
        self, f0_hz: Float[Tensor, "batch frames"], voiced: Bool[Tensor, "batch frames"]
    ) -> Float[Tensor, "batch frames mels"]:
        """Where harmonics fall: ``cos(2 pi f / F0)`` as a mel filter sees it, 1 on a harmonic, 0 in unvoiced frames."""
        cycles = self.centers_hz / f0_hz.clamp_min(1.0)[..., None]
        seen = torch.sinc(self.spacing_hz / f0_hz.clamp_min(1.0)[..., None]).square()  # response of a triangle
        return torch.cos(2 * math.pi * cycles) * seen * voiced[..., None]

    def forward(
        self,
        code: Float[Tensor, "batch frames code"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
        loudness_db: Float[Tensor, "batch frames"],
        singer: Float[Tensor, "batch singers"],
        dropped: Bool[Tensor, "batch 4"] | None = None,
    ) -> Float[Tensor, "batch dims frames"]:
        """What all conditions together say in every frame.

        Args:
            code: From the content encoder.
            f0_hz: Pitch to be sung; read only where voiced.
            voiced: Whether a pitch is sung.
            loudness_db: A-weighted, -80 .. 0.
            singer: Weights of the singers, rows adding to 1.
            dropped: Which of ``CONDITIONS`` to replace by its null, by batch entry; none if None.

        Returns:
            The condition, channels first; every frame is normalised over its channels.
        """
        sounding = voiced.float()
        octaves = torch.log2(f0_hz.clamp_min(1.0) / 220.0) * sounding
        pitch = self.f0(torch.stack([octaves, sounding], dim=-1)) + self.harmonics(self.comb(f0_hz, voiced))
        level = (loudness_db[..., None] + 40.0) / 20.0
        parts = [self.content(code), pitch, self.loudness(level), (singer @ self.singer)[:, None]]
        if dropped is not None:
            parts = [torch.where(dropped[:, i, None, None], self.null[i], part) for i, part in enumerate(parts)]
        hidden = sum(parts).transpose(1, 2)
        return self.norm(hidden + self.mix(hidden))


def best_precision(device: torch.device) -> str:
    """``bf16`` where the hardware computes in it, ``fp16`` on older GPUs, else ``fp32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


class Prepared:
    """A denoiser bound to one song: ``(x_t, t) -> eps``, run in pieces with a halo, so that memory is bounded.

    The projections of the condition are computed once and kept (in the full model 20 x 768 numbers a frame: 61 kB in
    fp32) as long as they fit into ``cache_bytes``; beyond that each piece projects its own stretch again at every call.

    Args:
        denoiser: The network; a copy in ``precision`` is made where that is not fp32.
        condition: What the song asks for.
        guess: A clean mel near the result, scaled to -1 .. 1: the coarse mel.
        spread: How far off the guess may be in every bin, above 0, in the same scale.
        precision: One of ``PRECISIONS``; ``auto`` is :func:`best_precision`. Input and output stay float32. One call in
            bf16 differs from fp32 by somewhat below 1 % of the noise.
        piece_frames: Frames computed at once, besides the halo.
        cache_bytes: Most bytes of projections to keep; 1 GB holds 3 minutes of the full model in fp32. Beyond it a
            piece's projections (135 MB in the full model) live only while that piece is computed.
        cancelled: Asked before every piece; True raises ``Cancelled``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Float[Tensor, "batch dims frames"],
        guess: Float[Tensor, "batch mels frames"],
        spread: Float[Tensor, "batch mels frames"],
        precision: str = "auto",
        piece_frames: int = PIECE_FRAMES,
        cache_bytes: int = CACHE_BYTES,
        cancelled: Callable[[], bool] | None = None,
    ):
        if precision not in PRECISIONS:
            raise ModelError(f"There is no precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
        self.precision = best_precision(condition.device) if precision == "auto" else precision
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        self.denoiser = denoiser if self.dtype == torch.float32 else copy.deepcopy(denoiser).to(self.dtype)
        self.condition, self.guess, self.spread = condition.to(self.dtype), guess, spread
        self.cancelled = cancelled
        batch, _, self.n_frames = condition.shape
        gates = self.denoiser.stack.conditions.out_channels
        self.pieces = list(layers.pieces(self.n_frames, piece_frames, self.denoiser.stack.halo))
        kept_frames = sum(high - low for _, _, low, high in self.pieces)
        self.cached = batch * kept_frames * gates * self.condition.element_size() <= cache_bytes
        with torch.inference_mode():
            self.kept = [self._project(low, high) for _, _, low, high in self.pieces] if self.cached else None

    def _project(self, low: int, high: int) -> tuple[Tensor, ...]:
        return tuple(p.contiguous() for p in self.denoiser.stack.project(self.condition[:, :, low:high]))

    def __call__(self, x_t: Float[Tensor, "batch mels frames"], t: int | float) -> Float[Tensor, "batch mels frames"]:
        """The noise in ``x_t`` at a real diffusion time."""
        eps = torch.empty_like(x_t)  # outside: an ordinary tensor, whatever is done with it later
        with torch.inference_mode():
            times = torch.full((x_t.shape[0],), float(t), device=x_t.device)
            for i, (start, stop, low, high) in enumerate(self.pieces):
                progress.raise_if_cancelled(self.cancelled)
                projected = self.kept[i] if self.kept is not None else self._project(low, high)
                piece = self.denoiser.eps(
                    x_t[:, :, low:high], times, projected, self.guess[:, :, low:high], self.spread[:, :, low:high]
                )
                eps[:, :, start:stop] = piece[:, :, start - low : stop - low]
        return eps
