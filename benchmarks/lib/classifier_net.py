"""The network that names short clips: from a log-mel picture to 64 numbers, from these to its labels.

Its blocks are ResNeXt's (Xie et al. 2017, arXiv:1611.05431, Fig. 3c): 1x1, grouped 3x3, 1x1 convolutions beside a
shortcut, here over a log-mel picture of the clip.
"""

import dataclasses

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio.mel import MelConfig, log_mel
from svclib.utils.errors import ModelError

N_FEATURES = 64
QUIETEST = 5e-4  # RMS of a clip; what is fainter is not made louder


@dataclasses.dataclass(frozen=True)
class ClassifierSettings:
    """Definition of a classifier apart from its weights.

    Attributes:
        labels: What it can name, sorted.
        sample_rate_hz: Of its clips.
        duration_s: Of its clips: longer ones are cut, shorter ones followed by silence.
        groups: Of the grouped convolutions, a divisor of 32.
    """

    labels: tuple[str, ...]
    sample_rate_hz: int = 8000
    duration_s: float | int = 1.0
    groups: int = 8

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if not 2 <= len(self.labels) <= 1000 or list(self.labels) != sorted(set(self.labels)):
            raise ModelError(f"{len(self.labels)} labels were given; expected 2 to 1000 different ones, sorted.")
        if not 4000 <= self.sample_rate_hz <= 96000 or not 0.1 <= self.duration_s <= 20:
            raise ModelError(
                f"Clips of {self.duration_s} s at {self.sample_rate_hz} Hz cannot be classified; expected "
                "0.1 to 20 s at 4000 to 96000 Hz."
            )
        if self.groups < 1 or 32 % self.groups:
            raise ModelError(f"groups is {self.groups}; expected a divisor of 32.")

    @property
    def n_samples(self) -> int:
        """Length of a clip."""
        return round(self.duration_s * self.sample_rate_hz)

    @property
    def mel(self) -> MelConfig:
        """40 bands every 20 ms. The floor is high, so that faint noise in pauses does not count."""
        hop, n_fft = (2 * round(self.sample_rate_hz * s / 2) for s in (0.020, 0.032))
        return MelConfig(
            self.sample_rate_hz, n_fft, n_fft, hop, n_mels=40, fmin_hz=40.0, fmax_hz=self.sample_rate_hz / 2, floor=1e-2
        )


def _convolution(inward: int, outward: int, size: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inward, outward, size, stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outward),
    ]


class Block(nn.Module):
    """ResNeXt's block over ``[batch, channels, bands, frames]``."""

    def __init__(self, inward: int, outward: int, stride: int, groups: int):
        super().__init__()
        self.way = nn.Sequential(
            *_convolution(inward, outward),
            nn.ReLU(),
            *_convolution(outward, outward, 3, stride, groups),
            nn.ReLU(),
            *_convolution(outward, outward),
        )
        same = inward == outward and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inward, outward, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """The block's answer."""
        return F.relu(self.shortcut(x) + self.way(x))


class Classifier(nn.Module):
    """The classifier; ``classifier.classify`` asks it."""

    def __init__(self, settings: ClassifierSettings):
        super().__init__()
        self.settings, groups = settings, settings.groups
        self.level = nn.BatchNorm1d(settings.mel.n_mels, affine=False)
        self.blocks = nn.Sequential(
            *_convolution(1, 32, 3, 2),
            nn.ReLU(),
            Block(32, 64, 2, groups),
            Block(64, 64, 1, groups),
            Block(64, 64, 2, groups),
            Block(64, N_FEATURES, 1, groups),
        )
        self.last = nn.Linear(N_FEATURES, len(settings.labels))

    def features(self, sounds: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 64"]:
        """The numbers before the last layer, a mean over bands and frames; the level of a clip does not count."""
        level = sounds.square().mean(dim=1, keepdim=True).sqrt().clamp_min(QUIETEST)
        picture = self.level(log_mel(sounds / level, self.settings.mel).transpose(1, 2))
        return self.blocks(picture[:, None]).mean(dim=(2, 3))

    def forward(self, sounds: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch labels"]:
        """Logits of the labels."""
        return self.last(self.features(sounds))
