"""Content features of a pretrained network, measured once per recording and cached; they have no weights here.

A module of its own so that each family of encoders has one file. What measures them is
``features.content_features``; this is how the diffusion model reads them.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.content.base import ContentEncoder, register
from svclib.utils.errors import ModelError


@register("contentvec")
class CachedContent(ContentEncoder):
    """Cached content features as they are.

    Args:
        dims: Size of the feature vectors.
    """

    fields = ("content",)

    def __init__(self, dims: int):
        super().__init__()
        self.dims = dims

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "CachedContent":
        """The encoder for the features' content settings."""
        return cls(features.units.dims)

    def forward(
        self, inputs: ConditionInputs, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frames dims"]:
        """The cached vectors in the precision of the mel; ModelError if there is not one for every frame."""
        expected = (*inputs.log_mel.shape[:2], self.dims)
        if inputs.content is None or tuple(inputs.content.shape) != expected:
            got = "none" if inputs.content is None else f"shape {tuple(inputs.content.shape)}"
            raise ModelError(f"Content features of shape {expected} are needed; {got} arrived. Measure them.")
        return inputs.content.to(inputs.log_mel)
