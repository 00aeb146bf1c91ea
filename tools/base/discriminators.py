"""Discriminators of reduced width for the last phase of ``train_vocoder.py``."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from svclib.audio import spectral_loss

PERIODS = (2, 3, 5, 7, 11)
FFT_SIZES = (2048, 512, 256)


class _Stack(nn.Module):
    """2-D convolutions of given widths and strides, then one of a single channel; every activation is a feature."""

    def __init__(self, kernels: list[tuple[int, int]], strides: list[tuple[int, int]], widths: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, kernel, stride, padding=(kernel[0] // 2, kernel[1] // 2)))
            for before, after, kernel, stride in zip([1, *widths], [*widths, 1], kernels, strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of every layer; the last is the score."""
        features = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = F.leaky_relu(x, 0.1) if i + 1 < len(self.layers) else x
            features.append(x)
        return features


class Discriminators(nn.Module):
    """Multi-period (Kong et al. 2020, https://arxiv.org/abs/2010.05646) and multi-resolution (Jang et al. 2021,
    https://arxiv.org/abs/2106.07889): the waveform folded by a prime period, and log magnitudes of several STFTs."""

    def __init__(self, width: int = 16):
        super().__init__()
        kernels, strides = [(5, 1)] * 4 + [(3, 1)], [(3, 1)] * 3 + [(1, 1)] * 2
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.by_period = nn.ModuleList(_Stack(kernels, strides, widths) for _ in PERIODS)
        kernels, strides = [(3, 7), (3, 5), (3, 5), (3, 3), (3, 3)], [(1, 2), (1, 2), (1, 2), (1, 1), (1, 1)]
        self.by_size = nn.ModuleList(_Stack(kernels, strides, [width] * 4) for _ in FFT_SIZES)

    def forward(self, audio: Tensor) -> list[list[Tensor]]:
        """Features of audio ``[batch, samples]`` by every discriminator."""
        found = []
        for period, stack in zip(PERIODS, self.by_period, strict=True):
            padded = F.pad(audio, (0, -audio.shape[1] % period))
            found.append(stack(padded.view(len(audio), 1, -1, period)))
        for size, stack in zip(FFT_SIZES, self.by_size, strict=True):
            spectrum = torch.view_as_real(spectral_loss.spectrum_frames(audio, size))
            magnitude = (spectrum.square().sum(-1) + 1e-9).sqrt()
            found.append(stack(magnitude.clamp_min(1e-4).log()[:, None]))
        return found


def discriminator_loss(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """Least squares (Mao et al. 2017): ``sum (D(x) - 1)^2 + D(G)^2``."""
    return sum((r[-1] - 1).square().mean() + m[-1].square().mean() for r, m in zip(real, made, strict=True))


def generator_losses(real: list[list[Tensor]], made: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """``sum (D(G) - 1)^2``, and feature matching: mean ``|difference|`` of the features, summed over layers."""
    adversarial = sum((m[-1] - 1).square().mean() for m in made)
    matching = sum(
        F.l1_loss(b, a.detach()) for r, m in zip(real, made, strict=True) for a, b in zip(r[:-1], m[:-1], strict=True)
    )
    return adversarial, matching
