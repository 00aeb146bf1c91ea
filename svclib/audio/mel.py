"""Log-mel spectrograms: their definition, their computation as in the community's 44.1 kHz vocoders, and the sound of
one without a network (Griffin-Lim), for previews and as a baseline for vocoders."""

import dataclasses
import functools
import math
from typing import Any

import librosa
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from svclib.audio import units
from svclib.audio.loudness import spectrum
from svclib.utils.errors import ConfigError, ModelError
from svclib.utils.serialization import Settings, setting

DECIBELS_PER_NEPER = 20.0 / math.log(10.0)


@dataclasses.dataclass(frozen=True)
class MelConfig(Settings):
    """Definition of a log-mel spectrogram. The defaults are NSF-HiFiGAN's at 44.1 kHz.

    Two mels are interchangeable only if every field is equal; datasets, checkpoints, instruments and vocoders carry
    theirs and refuse another (:meth:`require`).
    """

    sample_rate_hz: int = setting(44100, 2000, 384000)
    n_fft: int = setting(2048, 16, 65536)  # of the transform, samples
    window_samples: int = setting(2048, 16, 65536)  # periodic Hann
    hop_samples: int = setting(512, 2, 65536)  # per frame; padded by reflection with (n_fft - hop) / 2 on each side
    n_mels: int = setting(128, 1, 1024)
    fmin_hz: float = setting(40.0, 0, 192000)  # range of the filters
    fmax_hz: float = setting(16000.0, 1, 192000)
    scale: str = setting("slaney", choices=("slaney", "htk"))
    norm: str = setting("slaney", choices=("slaney", "none"))  # slaney: filters of equal area
    log_base: str = setting("e", choices=("e", "10"))
    floor: float = setting(1e-5, 1e-12, 1.0)  # smallest magnitude before the logarithm

    def __post_init__(self):
        super().__post_init__()
        if self.hop_samples % 2 or self.n_fft % 2 or not self.hop_samples <= self.window_samples <= self.n_fft:
            sizes = f"hop_samples {self.hop_samples}, window_samples {self.window_samples} and n_fft {self.n_fft}"
            raise ConfigError(f"{sizes}; a mel needs an even hop and FFT with hop <= window <= FFT.")
        units.check_budget(self.sample_rate_hz, self.hop_samples, self.n_fft, self.n_mels)
        if not self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            text = f"do not fit below {self.sample_rate_hz / 2:g} Hz, half the sample rate."
            raise ConfigError(f"Mel filters from {self.fmin_hz:g} to {self.fmax_hz:g} Hz {text}")

    @property
    def nepers_per_unit(self) -> float:
        """Natural logarithm of the log base: 1 for ``e``, 2.303 for ``10``."""
        return math.log(10.0) if self.log_base == "10" else 1.0

    @property
    def log_floor(self) -> float:
        """The lowest value of a log-mel, in its own logarithm."""
        return math.log(self.floor) / self.nepers_per_unit

    def to_nepers(self, log_mel):
        """A log-mel in natural logarithms of magnitude."""
        return log_mel * self.nepers_per_unit

    def to_db(self, log_mel):
        """A log-mel in dB."""
        return log_mel * (self.nepers_per_unit * DECIBELS_PER_NEPER)

    def edges_hz(self) -> np.ndarray:
        """Edges of the triangular filters: filter ``m`` rises from edge ``m`` to ``m + 1`` and falls to ``m + 2``."""
        return librosa.mel_frequencies(n_mels=self.n_mels + 2, **self._range())

    def _range(self) -> dict:
        return {"fmin": self.fmin_hz, "fmax": self.fmax_hz, "htk": self.scale == "htk"}

    def centers_hz(self) -> np.ndarray:
        """Centre frequencies of the filters."""
        return self.edges_hz()[1:-1]

    def filters(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Filter weights ``[mels, bins]``."""
        return _filters(self, dtype, torch.device(device))

    def require(self, other: "MelConfig", mine: str = "this", theirs: str = "the other") -> None:
        """Refuse another definition: a ModelError names both owners and every field that differs."""
        names = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        if names:
            fields = ", ".join(f"{n} {getattr(self, n)} against {getattr(other, n)}" for n in names)
            hint = "Prepare or train one of them with the other's settings."
            raise ModelError(f"The mel of {mine} and of {theirs} differ: {fields}.", hint=hint)


@functools.lru_cache(maxsize=16)
def _filters(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    size: dict[str, Any] = {"sr": config.sample_rate_hz, "n_fft": config.n_fft, "n_mels": config.n_mels}
    size["norm"] = "slaney" if config.norm == "slaney" else None
    filters = librosa.filters.mel(**size, **config._range(), dtype=np.float64)
    return torch.from_numpy(filters).to(device, dtype)


def log_mel(samples: Float[Tensor, "batch samples"], config: MelConfig) -> Float[Tensor, "batch frames mels"]:
    """Log-mel spectrogram of ``samples // hop`` frames as NSF-HiFiGAN defines it, differentiable.

    Reflected padding of (n_fft - hop) / 2 samples on each side, periodic Hann window, magnitude
    sqrt(re^2 + im^2 + 1e-9), mel filters, log of max(x, floor).
    """
    n, hop = samples.shape[1], config.hop_samples
    n_frames = units.frame_count(n, hop)
    if n_frames == 0:
        return samples.new_zeros(samples.shape[0], 0, config.n_mels)
    pad = (config.n_fft - hop) // 2
    if n > pad:
        padded = functional.pad(samples, (pad, pad), mode="reflect")
    else:
        padded = samples[:, torch.from_numpy(reflected(np.arange(-pad, n + pad), n)).to(samples.device)]
    return log_mel_of_padded(padded[:, : (n_frames - 1) * hop + config.n_fft], config)


def log_mel_of_padded(padded: Tensor, config: MelConfig) -> Tensor:
    """:func:`log_mel` of audio that is already padded at its ends."""
    transform = spectrum(padded, config.n_fft, config.window_samples, config.hop_samples)
    magnitude = (transform.real.square() + transform.imag.square() + 1e-9).sqrt()
    mel = config.filters(padded.dtype, padded.device) @ magnitude
    return (mel.clamp_min(config.floor).log() / config.nepers_per_unit).transpose(1, 2)


def reflected(index: np.ndarray, n: int) -> np.ndarray:
    """Positions in a signal of ``n`` samples mirrored at its ends as often as needed; the end samples come once."""
    if n == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * (n - 1))
    return np.where(index < n, index, 2 * (n - 1) - index)


# Griffin-Lim ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def griffin_lim(
    log_mel: Float[Tensor, "batch frames mels"], config: MelConfig, seed: int = 0, steps: int = 32
) -> Float[Tensor, "batch samples"]:
    """Audio of ``frames * hop_samples`` samples from random phases.

    Fast Griffin-Lim (Perraudin et al. 2013, Algorithm 2, momentum 0.99) with the mel's window, hop and padding.
    """
    size, hop, n_frames = config.n_fft, config.hop_samples, log_mel.shape[1]
    n_samples, margin = n_frames * hop, (size - hop) // 2
    left = (size - config.window_samples) // 2
    window = functional.pad(torch.hann_window(config.window_samples), (left, size - config.window_samples - left))
    window = window.to(log_mel)

    def overlap_add(frames: Tensor) -> Tensor:
        n = n_samples + 2 * margin
        return functional.fold(frames, (1, n), (1, size), stride=(1, hop))[:, 0, 0]

    norm = overlap_add(window.square()[None, :, None].repeat(1, 1, n_frames)).clamp_min(1e-3)

    def synthesise(spectrum: Tensor) -> Tensor:
        return overlap_add(torch.fft.irfft(spectrum, size, dim=1) * window[:, None]) / norm

    magnitude = _magnitude(log_mel, config)
    generator = torch.Generator().manual_seed(seed)
    phase = torch.exp(2j * math.pi * torch.rand(magnitude.shape, generator=generator)).to(log_mel.device)
    before = torch.zeros_like(phase)
    for _ in range(steps):
        now = spectrum(synthesise(magnitude * phase), size, config.window_samples, hop)
        ahead = now + 0.99 * (now - before)
        phase, before = ahead / ahead.abs().clamp_min(1e-12), now
    return synthesise(magnitude * phase)[:, margin : margin + n_samples]


def _magnitude(log_mel: Tensor, config: MelConfig) -> Float[Tensor, "batch bins frames"]:
    """STFT magnitudes of a mel: the filters' transpose, corrected by ten steps of non-negative matrix factorisation
    (Lee and Seung 2001, Theorem 1)."""
    basis = config.filters(log_mel.dtype, log_mel.device)
    mel = config.to_nepers(log_mel).exp().transpose(1, 2)
    spread = basis.T / basis.T.sum(1, keepdim=True).clamp_min(1e-8)  # each bin: the mean of its filters
    bins = (spread @ (mel / basis.sum(1)[:, None].clamp_min(1e-8))).clamp_min(0)
    for _ in range(10):
        bins = bins * (basis.T @ mel) / (basis.T @ (basis @ bins)).clamp_min(1e-10)
    return bins
