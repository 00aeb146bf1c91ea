"""Multi-scale spectral loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from svclib.utils.errors import ConfigError

FFT_SIZES = (2048, 1024, 512, 256, 128, 64)
LOG_RULES = ("v1", "v2")
LOG_FLOOR = 1e-5
TINY = 1e-15  # magnitudes below count as zero and have no slope


def check_fft_sizes(fft_sizes: tuple[int, ...]) -> None:
    """Refuse scales that :func:`spectral_loss` cannot use; raises ConfigError."""
    if not fft_sizes or any(size < 16 or size % 4 for size in fft_sizes):
        raise ConfigError(f"fft_sizes is {fft_sizes!r}; expected multiples of 4, from 16 up.")


def spectral_loss(
    audio: Float[Tensor, "batch samples"],
    target: Float[Tensor, "batch samples"],
    fft_sizes: tuple[int, ...] = FFT_SIZES,
    log_rule: str = "v1",
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Multi-scale spectral distance (Engel et al. 2020, section 4.2.1): its linear and its logarithmic part.

    Per scale the mean of ``|difference of magnitudes|`` and of ``|difference of natural log magnitudes|``, summed over
    the scales; the loss is the sum of both. Values compare only between equal ``fft_sizes`` (windows, samples) and
    ``log_rule``: by ``v1`` magnitudes below 1e-5 count as 1e-5, by ``v2`` only zeros do, which makes silence expensive.
    The gradient goes to ``audio`` alone.
    """
    if audio.shape != target.shape or log_rule not in LOG_RULES:
        shapes = f"{tuple(audio.shape)} with {tuple(target.shape)}"
        raise ValueError(f"Cannot compare {shapes} by the log rule '{log_rule}'.")
    parts = [_ScaleDistance.apply(audio, target.detach(), size, log_rule) for size in fft_sizes]
    linear, logarithmic = (torch.stack(part).sum() for part in zip(*parts, strict=True))
    return linear, logarithmic


def spectrum_frames(audio: Float[Tensor, "batch samples"], fft_size: int) -> Tensor:
    """Complex STFT ``[batch, frames, bins]``: periodic Hann, hop = size / 4, frames start at ``i * hop``, end padded.

    ``ceil(samples / hop)`` frames, unscaled.
    """
    hop = fft_size // 4
    frames = -(-audio.shape[-1] // hop)
    audio = F.pad(audio, (0, (frames - 1) * hop + fft_size - audio.shape[-1]))
    return torch.fft.rfft(audio.unfold(-1, fft_size, hop) * _window(audio, fft_size))


def _window(like: Tensor, fft_size: int) -> Tensor:
    return torch.hann_window(fft_size, dtype=like.dtype, device=like.device)


class _ScaleDistance(torch.autograd.Function):
    """One scale of the loss. The slope of both means is a real factor per bin of the spectrum, kept from the forward
    pass: half the time of the same arithmetic left to autograd, on a CPU."""

    @staticmethod
    def forward(ctx, audio, target, fft_size, log_rule):
        made = spectrum_frames(audio, fft_size)
        magnitude, log = _magnitudes(made, log_rule)
        magnitude_target, log_target = _magnitudes(spectrum_frames(target, fft_size), log_rule)
        difference, log_difference = magnitude - magnitude_target, log.sub_(log_target)
        linear, logarithmic = difference.abs().mean(), log_difference.abs().mean()
        if ctx.needs_input_grad[0]:
            # d|X| = Re(conj(X) dX) / |X| and d log|X| = Re(conj(X) dX) / |X|^2
            nonzero, above_floor = magnitude > TINY, magnitude > (LOG_FLOOR if log_rule == "v1" else TINY)
            inverse = magnitude.clamp_min_(TINY).reciprocal_()
            slope = difference.sign_().mul_(inverse).mul_(nonzero)
            log_slope = log_difference.sign_().mul_(inverse).mul_(inverse).mul_(above_floor)
            ctx.save_for_backward(made, slope, log_slope)
            ctx.n_samples, ctx.fft_size = audio.shape[-1], fft_size
        return linear, logarithmic

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_linear, grad_logarithmic):
        made, slope, log_slope = ctx.saved_tensors
        hop, n = ctx.fft_size // 4, slope.numel()
        gradient = made * (slope * (grad_linear / n) + log_slope * (grad_logarithmic / n))
        gradient[..., 1:-1] *= 0.5  # irfft counts these bins twice, the loss once
        frames = torch.fft.irfft(gradient, n=ctx.fft_size, norm="forward") * _window(slope, ctx.fft_size)
        batch, count, _ = frames.shape
        quarters = frames.view(batch, count, 4, hop)
        out = frames.new_zeros(batch, count + 3, hop)
        for quarter in range(4):
            out[:, quarter : quarter + count] += quarters[:, :, quarter]
        return out.view(batch, -1)[:, : ctx.n_samples], None, None, None


def _magnitudes(spectrum: Tensor, log_rule: str) -> tuple[Tensor, Tensor]:
    """Magnitude and its natural log by the rule."""
    parts = torch.view_as_real(spectrum)
    magnitude = (parts[..., 0].square() + parts[..., 1].square()).sqrt_()
    if log_rule == "v1":
        return magnitude, magnitude.clamp_min(LOG_FLOOR).log_()
    return magnitude, torch.where(magnitude > TINY, magnitude, torch.full_like(magnitude, LOG_FLOOR)).log_()
