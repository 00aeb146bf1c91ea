"""Mixing of the channels of a recording to one, with warnings: silent, opposed, offset, out of scale."""

import dataclasses

import numpy as np

from svclib.audio.decode import BLOCK_SAMPLES, AudioInfo
from svclib.utils.errors import AudioError

_WRONG_SCALE = 4.0  # a float file with higher peaks was not written with full scale 1
_SILENT_RATIO = 1e-6  # energy below the loudest channel's, -60 dB
_CANCELLED_SHARE = 0.05  # a mix with less of the louder channel's energy cancels itself


def silence_warning(name: str) -> str:
    """The warning about a silent file."""
    return f"{name} is silent."


@dataclasses.dataclass(frozen=True)
class Survey:
    """Result of one pass through a file: how it is mixed to mono.

    Mono is ``gain * (block @ weights - offset)``.

    Attributes:
        info: With the decoded length and all warnings.
        weights: Share of each channel, sum 1, float32.
        offset: Constant part of the mix that is taken away; 0 where it is small.
        gain: 1, or what brings a file of wrong scale to full scale.
        peak: Highest absolute value of the mix that can occur, after the gain.
    """

    info: AudioInfo
    weights: np.ndarray
    offset: float
    gain: float
    peak: float

    @property
    def silent(self) -> bool:
        """True if every sample is zero."""
        return self.peak == 0.0

    def mono(self, block: np.ndarray) -> np.ndarray:
        """Mix a block ``[n, channels]`` to float32 ``[n]``."""
        mixed = block[:, 0] if block.shape[1] == 1 else block @ self.weights
        if self.offset:
            mixed = mixed - np.float32(self.offset)
        return mixed if self.gain == 1.0 else mixed * np.float32(self.gain)


class ChannelStats:
    """Sums over blocks from which the energy of any mix of the channels follows."""

    def __init__(self, channels: int):
        self.n = 0
        self.total = np.zeros(channels)
        self.products = np.zeros((channels, channels))
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, block: np.ndarray) -> None:
        """Add a block ``[n, channels]``."""
        if not len(block):
            return
        self.n += len(block)
        self.total += block.sum(axis=0, dtype=np.float64)
        for start in range(0, len(block), BLOCK_SAMPLES):
            wide = block[start : start + BLOCK_SAMPLES].astype(np.float64)
            self.products += np.einsum("nc,nd->cd", wide, wide)  # not by BLAS: its threads would hinder the workers'
        self.low, self.high = np.minimum(self.low, block.min(axis=0)), np.maximum(self.high, block.max(axis=0))

    def finish(self, info: AudioInfo) -> Survey:
        """The mix of the channels added so far, with its warnings.

        Raises AudioError if there was nothing.
        """
        if self.n == 0:
            raise AudioError(
                f"{info.path.name} holds no sound (0 samples); it is cut off.", path=info.path, hint="Upload it again."
            )
        name, channels, warnings = info.path.name, len(self.total), list(info.warnings)
        mean = self.total / self.n
        covariance = self.products / self.n - np.outer(mean, mean)
        energy = np.maximum(np.diag(covariance), 0.0)
        peaks = np.maximum(np.abs(self.low), np.abs(self.high))
        if peaks.max() == 0.0:
            warnings.append(silence_warning(name))
            return Survey(_with(info, warnings), np.full(channels, 1 / channels, np.float32), 0.0, 1.0, 0.0)
        active = energy > _SILENT_RATIO * energy.max() if energy.max() > 0 else np.ones(channels, bool)
        if channels > 2:
            warnings.append(
                f"{name} has {channels} channels, mixed to one. Export the voice alone if others sound too."
            )
        if not active.all():
            silent = ", ".join(str(i + 1) for i in np.flatnonzero(~active))
            warnings.append(f"{name}: channel {silent} is silent and left out of the mix.")
        weights = active / active.sum()
        if active.sum() > 1 and weights @ covariance @ weights < _CANCELLED_SHARE * energy.max():
            weights = np.zeros(channels)
            weights[np.flatnonzero(active)[0]] = 1.0
            warnings.append(f"{name}: its channels are in opposite phase and cancel out; only the left one is used.")
        offset = float(weights @ mean)
        if abs(offset) > 0.02 * max(1.0, float(peaks.max())):
            warnings.append(
                f"{name} has a constant offset of {offset:+.2f} (a fault of the sound card); it is removed."
            )
        else:
            offset = 0.0
        peak = float(weights @ peaks) + abs(offset)
        gain = 1.0
        if peak > _WRONG_SCALE:
            gain = 1.0 / peak
            warnings.append(
                f"{name} has peaks of {peak:.3g} where 1 is full scale: clipping or wrong scale; scaled to 1."
            )
        return Survey(_with(info, warnings), weights.astype(np.float32), offset, gain, peak * gain)


def _with(info: AudioInfo, warnings: list[str]) -> AudioInfo:
    return dataclasses.replace(info, warnings=tuple(warnings))
