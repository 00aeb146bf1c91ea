"""Whisper's features in the code space of ``words``: measured with the recording, with noise in training.

A file of its own, as every content encoder has; ``features.whisper_features`` measures them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.content.base import register
from svclib.models.content.cached import CachedContent
from svclib.utils import rng


@register("whisper")
class WhisperContent(CachedContent):
    """The cached code, which ``words`` approximates: models trained on either read both.

    Args:
        dims: Size of the code.
        code_noise: Standard deviation of the noise on the code in training; the code's own is 1.
    """

    def __init__(self, dims: int, code_noise: float):
        super().__init__(dims)
        self.code_noise = code_noise

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "WhisperContent":
        """The encoder for the features' content settings."""
        return cls(features.units.dims, settings.code_noise)

    def forward(
        self, inputs: ConditionInputs, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frames dims"]:
        """The cached code; a ``generator`` adds noise."""
        code = super().forward(inputs)
        if generator is None or not self.code_noise:
            return code
        return code + self.code_noise * rng.normal(tuple(code.shape), generator).to(code)
