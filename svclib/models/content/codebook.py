"""Retrieval: a codebook of the target's own content vectors, which conversions may draw on.

The source's content vectors are moved towards their nearest neighbours among vectors of the target's recordings (as
kNN-VC, Baas et al. 2023, https://arxiv.org/abs/2305.18975, does with WavLM frames, and RVC with its index). The closer,
the less of the source's speaker and pronunciation is left.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

NEIGHBOURS = 4
MAX_VECTORS = 20_000  # of one singer, for k-means


class ContentCodebook(nn.Module):
    """``size`` content vectors of every singer, ``[singers, size, dims]``."""

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
    def nearest(
        self, content: Float[Tensor, "batch frames dims"], singer: Float[Tensor, "batch singers"], chunk: int = 4096
    ) -> Float[Tensor, "batch frames dims"]:
        """Mean of the four nearest vectors (Euclidean) of the singer; with several singers their weighted mean."""
        result = torch.zeros_like(content)
        for i in singer.sum(dim=0).nonzero()[:, 0].tolist():
            book = self.vectors[i].to(content)
            for start in range(0, content.shape[1], chunk):
                part = content[:, start : start + chunk]
                closest = torch.cdist(part, book).topk(min(NEIGHBOURS, len(book)), dim=-1, largest=False).indices
                result[:, start : start + chunk] += singer[:, i, None, None].to(part) * book[closest].mean(dim=-2)
        return result
