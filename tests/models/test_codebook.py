"""Retrieval codebook: k-means and nearest neighbours against their definitions."""

import numpy as np
import pytest
import torch

from svclib.models.content.base import ContentCodebook


def test_fit_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 10, (8, 5))
    content = np.concatenate([c + rng.normal(0, 0.01, (50, 5)) for c in centres]).astype(np.float32)
    book = ContentCodebook(1, 400, 5)
    book.fit([content])  # as many vectors as there are: each its own centre
    found = np.unique(book.vectors[0].numpy().round(3), axis=0)
    assert np.abs(np.sort(found, axis=0) - np.sort(content.round(3), axis=0)).max() < 2e-3
    again = ContentCodebook(1, 400, 5)
    again.fit([content])
    assert torch.equal(book.vectors, again.vectors)


def test_nearest_is_the_mean_of_the_four_nearest_of_each_singer():
    rng = np.random.default_rng(1)
    book = ContentCodebook(2, 30, 6)
    book.vectors.copy_(torch.from_numpy(rng.normal(size=(2, 30, 6)).astype(np.float32)))
    content = torch.from_numpy(rng.normal(size=(3, 40, 6)).astype(np.float32))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    found = book.nearest(content, weights, chunk=7)

    def of(singer, x):
        distances = [np.linalg.norm(x - v) for v in book.vectors[singer].numpy()]
        return book.vectors[singer].numpy()[np.argsort(distances)[:4]].mean(axis=0)

    for row, (a, b) in enumerate(weights.numpy()):
        for frame in (0, 13, 39):
            x = content[row, frame].numpy()
            np.testing.assert_allclose(found[row, frame].numpy(), a * of(0, x) + b * of(1, x), atol=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_fewer_vectors_than_the_codebook_holds(n):
    content = np.arange(n * 2, dtype=np.float32).reshape(n, 2)
    book = ContentCodebook(1, 16, 2)
    book.fit([content])
    assert set(map(tuple, book.vectors[0].tolist())) == set(map(tuple, content.tolist()))
