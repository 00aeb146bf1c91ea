"""Guidance and retrieval in a sampling run: closed form, off means unchanged, and what they do to the conditions."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusion_models import TINY, batch_of, tiny, tune

from svclib.features.extract import ConditionInputs
from svclib.models.diffusion.denoiser import GuidedDenoiser
from svclib.models.diffusion.model import DiffusionModel
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils.errors import ModelError

FAST = SamplingOptions(sampler="ddim", steps=3, precision="fp32", temperature=1.0)


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def song():
    return ConditionInputs.from_batch(batch_of([tune(90, seed=3)]))


def sampled(model, song, **options) -> torch.Tensor:
    options = dataclasses.replace(FAST, **options)
    condition, denoiser = model.guided(song, None, model.singer_weights("bea"), options)
    return model.sample(condition, options, denoiser)


def test_guidance_is_the_weighted_difference(model, song):
    """Ho and Salimans 2022, Eq. 6, for two conditions."""
    full, no_content, no_singer = (
        model.prepare(model.condition(song, without=names), SamplingOptions(precision="fp32"))
        for names in ((), ("content",), ("singer",))
    )
    x_t = torch.randn((1, 40, 90), generator=torch.Generator().manual_seed(0))
    eps, a, b = (denoiser(x_t, 500) for denoiser in (full, no_content, no_singer))
    found = GuidedDenoiser(full, [(0.5, no_content), (2.0, no_singer)])(x_t, 500)
    torch.testing.assert_close(found, eps + 0.5 * (eps - a) + 2.0 * (eps - b))
    assert (eps - a).abs().max() > 1e-3 and (eps - b).abs().max() > 1e-3


def test_without_weights_the_result_is_the_plain_one_bit_by_bit(model, song):
    plain = model.sample(model.condition(song, singer=model.singer_weights("bea")), FAST)
    assert torch.equal(sampled(model, song), plain)
    for options in ({"words_guidance": 1.0}, {"voice_guidance": 1.0}):
        assert not torch.equal(sampled(model, song, **options), plain)


def test_a_shallow_start_works_with_guidance(model, song):
    found = sampled(model, song, words_guidance=1.0, shallow=100)
    assert found.shape == (1, 90, 40) and torch.isfinite(found).all()


def test_retrieval_replaces_the_content(song):
    model = tiny()
    with pytest.raises(ModelError, match="codebook"):
        model.condition(song, retrieval=0.5)
    content = model.content.encode(song, 64)[0].numpy()
    model.add_codebook([content, content[:1]], size=16)
    assert model.settings.retrieval_size == 16 and model.codebook.vectors.shape == (2, 16, TINY.code_dims)
    only = model.singer_weights("bea")  # whose codebook is a single vector
    whole = model.condition(song, singer=only, retrieval=1.0)
    other = dataclasses.replace(song, log_mel=song.log_mel.flip(1))
    np.testing.assert_array_equal(whole.numpy(), model.condition(other, singer=only, retrieval=1.0).numpy())
    assert not torch.equal(whole, model.condition(song, singer=only))


def test_the_codebook_is_part_of_the_weights(song):
    model = tiny()
    model.add_codebook([np.eye(8, dtype=np.float32)] * 2, size=8)
    again = DiffusionModel(model.settings, model.features, {"log_mel": None, "singers": {"ann": {}, "bea": {}}})
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again.codebook.vectors, model.codebook.vectors)
