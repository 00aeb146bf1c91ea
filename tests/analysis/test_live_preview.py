"""Truths about pictures of a sampling run while it goes on: they show its states, in one colour scale, in time."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from diffusion_files import make_instrument
from matplotlib import colormaps, image

from svclib.analysis import plots
from svclib.models import instrument
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions


@pytest.fixture
def model(tmp_path):
    return instrument.open(make_instrument(tmp_path, temperature=0.8)).model


def pictures(markup):
    found = re.findall(r"data:image/png;base64,([^\"]+)", markup)
    return [image.imread(io.BytesIO(base64.b64decode(text)))[::-1] for text in found]  # low bands first


def sampled(model, watch=None, steps=12, seed=3, n_frames=50):
    condition = torch.randn(1, model.settings.condition_dims, n_frames, generator=torch.Generator().manual_seed(0))
    seen = []

    def callback(step):
        seen.append(step.x_t.clone())
        if watch is not None:
            watch(model, step)

    return model.sample(condition, SamplingOptions("dpmpp", steps, seed=seed), callback=callback), seen


def test_the_first_picture_is_the_noise_that_the_run_begins_with(model):
    _, seen = sampled(model)
    torch.testing.assert_close(model.initial_noise(50, 3), seen[0], rtol=0, atol=0)
    shown = []
    plots.LivePreview(shown.append).begin(model, 50 * 256 / 16000, 3)
    (drawn,) = pictures(shown[0])
    low, high = map(float, re.search(r"from (-?\d+) dB \(dark\) to (-?\d+) dB", shown[0]).groups())
    assert high % 10 == 0 and high - 10 < 20 * np.log10(np.exp(1.5)) <= high and high - low == 80
    level_db = 20 * np.log10(np.exp(model.unscale(seen[0])[0].T.numpy()))
    share = np.clip((level_db - low) / (high - low), 0, 1)
    assert drawn.shape == (40, 50, 4)
    np.testing.assert_allclose(drawn, colormaps["magma"](share), atol=1.5 / 255)


def test_one_level_has_one_colour_at_every_step():
    one, other = (plots.plain_levels(np.array([[level, -40.0]]), -60.0, 20.0) for level in (0.0, -70.0))
    assert np.array_equal(*(image.imread(io.BytesIO(png))[0, 1] for png in (one, other)))


@pytest.mark.parametrize(("step_s", "wanted"), [(0.1, [0, 3, 6, 9, 11]), (0.5, list(range(12))), (0.0, [0, 11])])
def test_pictures_come_in_time_and_change_no_bit(model, step_s, wanted):
    now, shown = [0.0], []
    watch = plots.LivePreview(shown.append, 0.3, lambda: now[0])
    numbers = []

    def watched(model, step):
        before = len(shown)
        watch(model, step)
        numbers.extend([step.index] * (len(shown) - before))
        now[0] += step_s + 1e-9

    plain, _ = sampled(model)
    result, _ = sampled(model, watched)
    assert torch.equal(plain, result)
    assert numbers == wanted
    assert f"step 1 of {samplers.SAMPLERS['dpmpp'].n_calls(12)}" in shown[0] and "noise 1.00" in shown[0]
    assert all(len(pictures(markup)) == 2 for markup in shown)
