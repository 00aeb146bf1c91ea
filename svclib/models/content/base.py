"""The content encoder interface, its registry, the encoder of cached features, and the retrieval codebook."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models.layers import Content, registrar
from svclib.utils import rng
from svclib.utils.errors import ModelError

NEIGHBOURS = 4
MAX_VECTORS = 20_000  # of one singer, for k-means


class ContentEncoder(nn.Module):
    """Frame-wise inputs -> one content vector per frame.

    A subclass sets ``fields`` (of ``ConditionInputs`` that it reads) and ``dims`` and implements :meth:`from_settings`
    and :meth:`forward`; one whose result depends on the whole recording (by normalisation, for instance) overrides
    :meth:`encode` too, so that long recordings are encoded in bounded memory.
    """

    fields: tuple[str, ...]
    dims: int
    code_noise = 0.0  # standard deviation of the noise on the code in training

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "ContentEncoder":
        """The encoder that ``DiffusionSettings`` describe, with fresh weights where it has any."""
        raise NotImplementedError

    def forward(self, inputs: ConditionInputs, generator: torch.Generator | None = None) -> Content:
        """Content vectors of whole recordings, or with a ``generator`` of perturbed training excerpts."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, inputs: ConditionInputs, chunk_frames: int) -> Content:
        """:meth:`forward` of a recording of any length; ``chunk_frames`` bounds the memory, not the result."""
        return self(inputs)

    def noisy(self, code: Content, generator: torch.Generator | None) -> Content:
        """The code with ``code_noise`` of a generator, where there is one."""
        if generator is None or not self.code_noise:
            return code
        return code + self.code_noise * rng.normal(tuple(code.shape), generator).to(code)


CONTENT_ENCODERS: dict[str, type[ContentEncoder]] = {}
register = registrar(CONTENT_ENCODERS)  # the value of ``DiffusionSettings.content``


def build(settings: Any, features: FeatureSettings) -> ContentEncoder:
    """The encoder named by ``settings.content``; ModelError if it reads content that ``features`` do not measure."""
    encoder = CONTENT_ENCODERS[settings.content]
    if "content" in encoder.fields and features.units is None:
        raise ModelError(
            f"The content encoder '{settings.content}' reads cached content features; bind FeatureSettings.units too."
        )
    return encoder.from_settings(settings, features)


@register("contentvec")
class CachedContent(ContentEncoder):
    """Features of a pretrained network as they were cached by ``features.content_features``: no weights here."""

    fields = ("content",)

    def __init__(self, dims: int, code_noise: float = 0.0):
        super().__init__()
        self.dims, self.code_noise = dims, code_noise

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "CachedContent":
        """The encoder for the features' content settings."""
        return cls(features.units.dims)

    def forward(self, inputs: ConditionInputs, generator: torch.Generator | None = None) -> Content:
        """The cached vectors in the precision of the mel; ModelError if there is not one for every frame."""
        expected = (*inputs.log_mel.shape[:2], self.dims)
        if inputs.content is None or tuple(inputs.content.shape) != expected:
            got = "none" if inputs.content is None else f"shape {tuple(inputs.content.shape)}"
            raise ModelError(f"Content features of shape {expected} are needed; {got} arrived. Measure them.")
        return self.noisy(inputs.content.to(inputs.log_mel), generator)


@register("whisper")
class WhisperContent(CachedContent):
    """Whisper's features in the code space of ``words``, which approximates them: models trained on either read both.

    In training the code (of standard deviation 1) gets noise of ``code_noise``.
    """

    @classmethod
    def from_settings(cls, settings: Any, features: FeatureSettings) -> "WhisperContent":
        """The encoder for the features' content settings."""
        return cls(features.units.dims, settings.code_noise)


class ContentCodebook(nn.Module):
    """Retrieval: ``size`` content vectors of every singer, ``[singers, size, dims]``.

    The source's content is moved towards its nearest neighbours among the target's (kNN-VC, Baas et al. 2023,
    https://arxiv.org/abs/2305.18975, and RVC's index): the closer, the less of the source's speaker is left.
    """

    def __init__(self, n_singers: int, size: int, dims: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n_singers, size, dims))

    @torch.no_grad()
    def fit(self, content: Sequence[Float[np.ndarray, "_ dims"]]) -> None:
        """Set the vectors to the k-means centres of each singer's content vectors (repeated where there are fewer)."""
        from sklearn.cluster import KMeans

        size = self.vectors.shape[1]
        for i, vectors in enumerate(content):
            kept = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_VECTORS)).astype(int)]
            n = min(size, len(np.unique(kept, axis=0)))
            centres = KMeans(n, init="random", n_init=1, max_iter=30, random_state=0).fit(kept).cluster_centers_
            self.vectors[i] = torch.from_numpy(np.resize(centres, (size, centres.shape[1]))).to(self.vectors)

    @torch.no_grad()
    def nearest(self, content: Content, singer: Float[Tensor, "batch singers"], chunk: int = 4096) -> Content:
        """Mean of the four nearest vectors (Euclidean) of the singer; with several singers their weighted mean."""
        result = torch.zeros_like(content)
        for i in singer.sum(dim=0).nonzero()[:, 0].tolist():
            book = self.vectors[i].to(content)
            for start in range(0, content.shape[1], chunk):
                part = content[:, start : start + chunk]
                closest = torch.cdist(part, book).topk(min(NEIGHBOURS, len(book)), dim=-1, largest=False).indices
                result[:, start : start + chunk] += singer[:, i, None, None].to(part) * book[closest].mean(dim=-2)
        return result
