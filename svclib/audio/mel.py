"""Log-mel spectrograms as the community's 44.1 kHz vocoders define them, for any contract."""

import functools
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from svclib.audio import units
from svclib.audio.loudness import spectrum


def log_mel(samples: Float[Tensor, "batch samples"], contract: Any) -> Float[Tensor, "batch frames mels"]:
    """Log-mel spectrogram as NSF-HiFiGAN defines it, differentiable.

    Reflected padding of (n_fft - hop) / 2 samples on each side, periodic Hann window, magnitude
    sqrt(re^2 + im^2 + 1e-9), mel filters, log of max(x, floor).

    Args:
        samples: Audio at ``contract.sample_rate_hz``, full scale 1.
        contract: The definition, a ``features.MelContract``.

    Returns:
        ``samples // hop`` frames in the contract's logarithm, in the samples' type and on their device.
    """
    n, hop = samples.shape[1], contract.hop_samples
    n_frames = units.frame_count(n, hop)
    if n_frames == 0:
        return samples.new_zeros(samples.shape[0], 0, contract.n_mels)
    pad = (contract.n_fft - hop) // 2
    if n > pad:
        padded = torch.nn.functional.pad(samples, (pad, pad), mode="reflect")
    else:
        index = reflected(np.arange(-pad, n + pad), n)
        padded = samples[:, torch.from_numpy(index).to(samples.device)]
    return log_mel_of_padded(padded[:, : (n_frames - 1) * hop + contract.n_fft], contract)


def log_mel_of_padded(padded: Tensor, contract) -> Tensor:
    """:func:`log_mel` of audio that already has what lies beyond its ends."""
    transform = spectrum(padded, contract.n_fft, contract.window_samples, contract.hop_samples)
    magnitude = (transform.real.square() + transform.imag.square() + 1e-9).sqrt()
    mel = _mel_filters(contract, padded.dtype, padded.device) @ magnitude
    log = mel.clamp_min(contract.floor).log()
    return (log if contract.log_base == "e" else log / math.log(10.0)).transpose(1, 2)


@functools.lru_cache(maxsize=16)
def _mel_filters(contract, dtype: torch.dtype, device: torch.device) -> Tensor:
    import librosa

    filters = librosa.filters.mel(
        sr=contract.sample_rate_hz,
        n_fft=contract.n_fft,
        n_mels=contract.n_mels,
        fmin=contract.fmin_hz,
        fmax=contract.fmax_hz,
        htk=contract.scale == "htk",
        norm="slaney" if contract.norm == "slaney" else None,
        dtype=np.float64,
    )
    return torch.from_numpy(filters).to(device, dtype)


def reflected(index: np.ndarray, n: int) -> np.ndarray:
    """Positions in a signal of ``n`` samples mirrored at its ends as often as needed; the end samples come once."""
    if n == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * (n - 1))
    return np.where(index < n, index, 2 * (n - 1) - index)
