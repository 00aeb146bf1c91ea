"""The content encoder interface and its registry.

A module of its own because every encoder and the diffusion model import it.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.utils.errors import ModelError


class ContentEncoder(nn.Module):
    """Frame-wise inputs -> one content vector per frame.

    A subclass sets ``fields`` and ``dims`` and implements :meth:`from_settings` and :meth:`forward`; one whose result
    depends on the whole recording (by normalisation, for instance) overrides :meth:`encode` too, so that long
    recordings are encoded in bounded memory.

    Attributes:
        fields: Which fields of ``ConditionInputs`` it reads.
        dims: Size of the content vector.
    """

    fields: tuple[str, ...]
    dims: int

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "ContentEncoder":
        """The encoder that ``DiffusionSettings`` describe, with fresh weights where it has any."""
        raise NotImplementedError

    def forward(
        self, inputs: ConditionInputs, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frames dims"]:
        """Content vectors of whole recordings, or with a ``generator`` of perturbed training excerpts.

        Args:
            inputs: Of the source recording, before any key shift.
            generator: Source of the perturbation; without it the result is deterministic.

        Returns:
            The content vectors.
        """
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, inputs: ConditionInputs, chunk_frames: int) -> Float[Tensor, "batch frames dims"]:
        """:meth:`forward` of a recording of any length; ``chunk_frames`` bounds the memory, not the result."""
        return self(inputs)


CONTENT_ENCODERS: dict[str, type[ContentEncoder]] = {}


def register(name: str) -> Callable[[type[ContentEncoder]], type[ContentEncoder]]:
    """Class decorator: offer a content encoder under a name, the value of ``DiffusionSettings.content``."""

    def add(encoder: type[ContentEncoder]) -> type[ContentEncoder]:
        CONTENT_ENCODERS[name] = encoder
        return encoder

    return add


def build(settings: Any, features: FeatureSettings) -> ContentEncoder:
    """The content encoder named by ``settings.content``.

    Raises ModelError if it reads content features that ``features`` do not measure.
    """
    encoder = CONTENT_ENCODERS[settings.content]
    if "content" in encoder.fields and features.units is None:
        raise ModelError(
            f"The content encoder '{settings.content}' reads cached content features; bind FeatureSettings.units too."
        )
    return encoder.from_settings(settings, features)
