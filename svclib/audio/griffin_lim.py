"""Waveform of a log-mel without a network, for previews and as a baseline for vocoders.

Fast Griffin-Lim (Perraudin et al. 2013, Algorithm 2) on STFT magnitudes estimated from the mel, with the window, hop
and padding of the mel's definition.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from svclib.audio.mel import MelConfig

_STEPS, _MOMENTUM = 32, 0.99


def magnitudes(log_mel: Float[Tensor, "batch frames mels"], contract: MelConfig) -> Float[Tensor, "batch bins frames"]:
    """STFT magnitudes of a mel: the filters' transpose, corrected by ten multiplicative steps.

    The steps are those of non-negative matrix factorisation (Lee and Seung 2001, Theorem 1).
    """
    basis = contract.filters(log_mel.dtype, log_mel.device)
    mel = contract.to_nepers(log_mel).exp().transpose(1, 2)
    spread = basis.T / basis.T.sum(1, keepdim=True).clamp_min(1e-8)  # each bin: the mean of its filters
    bins = (spread @ (mel / basis.sum(1)[:, None].clamp_min(1e-8))).clamp_min(0)
    for _ in range(10):
        bins = bins * (basis.T @ mel) / (basis.T @ (basis @ bins)).clamp_min(1e-10)
    return bins


@torch.no_grad()
def griffin_lim(
    log_mel: Float[Tensor, "batch frames mels"], contract: MelConfig, seed: int = 0, steps: int = _STEPS
) -> Float[Tensor, "batch samples"]:
    """Audio of ``frames * hop_samples`` samples; ``steps`` iterations from random phases."""
    size, hop, window = contract.n_fft, contract.hop_samples, torch.hann_window(contract.window_samples)
    window = window.to(log_mel)
    wanted = magnitudes(log_mel, contract)
    n_samples, margin = log_mel.shape[1] * hop, (size - hop) // 2

    def analyse(x: Tensor) -> Tensor:
        return torch.stft(x, size, hop, contract.window_samples, window, center=False, return_complex=True)

    norm = torch.zeros(n_samples + 2 * margin).to(log_mel)
    padded = torch.nn.functional.pad(window, ((size - len(window)) // 2,) * 2)
    for i in range(log_mel.shape[1]):
        norm[i * hop : i * hop + size] += padded.square()

    def synthesise(spectrum: Tensor) -> Tensor:
        frames = torch.fft.irfft(spectrum, size, dim=1) * padded[:, None]
        total = torch.nn.functional.fold(frames, (1, len(norm)), (1, size), stride=(1, hop))[:, 0, 0]
        return total / norm.clamp_min(1e-3)

    generator = torch.Generator().manual_seed(seed)
    phase = torch.exp(2j * math.pi * torch.rand(wanted.shape, generator=generator)).to(log_mel.device)
    before = torch.zeros_like(phase)
    for _ in range(steps):
        now = analyse(synthesise(wanted * phase))
        ahead = now + _MOMENTUM * (now - before)
        phase, before = ahead / ahead.abs().clamp_min(1e-12), now
    return synthesise(wanted * phase)[:, margin : margin + n_samples]
