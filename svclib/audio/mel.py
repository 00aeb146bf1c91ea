"""Log-mel spectrograms: their definition and their computation as in the community's 44.1 kHz vocoders."""

import dataclasses
import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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

    Attributes:
        sample_rate_hz: Rate of the audio.
        n_fft, window_samples: Transform and periodic Hann window, samples.
        hop_samples: Samples per frame; the audio is padded by reflection with (n_fft - hop) / 2 on each side.
        n_mels, fmin_hz, fmax_hz: Number and range of the filters.
        scale: ``slaney`` or ``htk``, the mel scale.
        norm: ``slaney`` (filters of equal area) or ``none``.
        log_base: ``e`` or ``10``.
        floor: Smallest magnitude before the logarithm.
    """

    sample_rate_hz: int = setting(44100, 2000, 384000)
    n_fft: int = setting(2048, 16, 65536)
    window_samples: int = setting(2048, 16, 65536)
    hop_samples: int = setting(512, 2, 65536)
    n_mels: int = setting(128, 1, 1024)
    fmin_hz: float = setting(40.0, 0, 192000)
    fmax_hz: float = setting(16000.0, 1, 192000)
    scale: str = setting("slaney", choices=("slaney", "htk"))
    norm: str = setting("slaney", choices=("slaney", "none"))
    log_base: str = setting("e", choices=("e", "10"))
    floor: float = setting(1e-5, 1e-12, 1.0)

    def __post_init__(self):
        super().__post_init__()
        if self.hop_samples % 2 or self.n_fft % 2 or not self.hop_samples <= self.window_samples <= self.n_fft:
            raise ConfigError(
                f"hop_samples {self.hop_samples}, window_samples {self.window_samples} and n_fft {self.n_fft}; a mel "
                "needs an even hop and FFT with hop <= window <= FFT."
            )
        if not self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ConfigError(
                f"Mel filters from {self.fmin_hz:g} to {self.fmax_hz:g} Hz do not fit below "
                f"{self.sample_rate_hz / 2:g} Hz, half the sample rate."
            )

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
        import librosa

        return librosa.mel_frequencies(
            n_mels=self.n_mels + 2, fmin=self.fmin_hz, fmax=self.fmax_hz, htk=self.scale == "htk"
        )

    def centers_hz(self) -> np.ndarray:
        """Centre frequencies of the filters."""
        return self.edges_hz()[1:-1]

    def filters(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Filter weights ``[mels, bins]``."""
        return _filters(self, dtype, torch.device(device))

    def require(self, other: "MelConfig", mine: str = "this", theirs: str = "the other") -> None:
        """Refuse another definition.

        Args:
            other: The definition that must be equal.
            mine: Owner of this definition, for the message.
            theirs: Owner of the other.

        Raises:
            ModelError: naming both owners and every field that differs.
        """
        if self == other:
            return
        names = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        fields = ", ".join(f"{n} {getattr(self, n)} against {getattr(other, n)}" for n in names)
        raise ModelError(
            f"The mel of {mine} and of {theirs} differ: {fields}.",
            hint="Prepare or train one of them with the other's settings.",
        )


@functools.lru_cache(maxsize=16)
def _filters(config: MelConfig, dtype: torch.dtype, device: torch.device) -> Tensor:
    import librosa

    filters = librosa.filters.mel(
        sr=config.sample_rate_hz,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        htk=config.scale == "htk",
        norm="slaney" if config.norm == "slaney" else None,
        dtype=np.float64,
    )
    return torch.from_numpy(filters).to(device, dtype)


def log_mel(samples: Float[Tensor, "batch samples"], config: MelConfig) -> Float[Tensor, "batch frames mels"]:
    """Log-mel spectrogram as NSF-HiFiGAN defines it, differentiable.

    Reflected padding of (n_fft - hop) / 2 samples on each side, periodic Hann window, magnitude
    sqrt(re^2 + im^2 + 1e-9), mel filters, log of max(x, floor).

    Args:
        samples: Audio at ``config.sample_rate_hz``, full scale 1.
        config: The definition.

    Returns:
        ``samples // hop`` frames in the definition's logarithm, in the samples' type and on their device.
    """
    n, hop = samples.shape[1], config.hop_samples
    n_frames = units.frame_count(n, hop)
    if n_frames == 0:
        return samples.new_zeros(samples.shape[0], 0, config.n_mels)
    pad = (config.n_fft - hop) // 2
    if n > pad:
        padded = torch.nn.functional.pad(samples, (pad, pad), mode="reflect")
    else:
        index = reflected(np.arange(-pad, n + pad), n)
        padded = samples[:, torch.from_numpy(index).to(samples.device)]
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
