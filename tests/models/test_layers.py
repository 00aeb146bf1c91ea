"""Truths held here: the sinusoidal embeddings of the two papers in closed form, the published sizes of the networks,
DiffWave's gated stack against a plain numpy forward pass, the reach of a stack measured by perturbation, and an
upsampler that is linear interpolation between frame centres when its filter is a triangle."""

import numpy as np
import pytest
import torch

from svclib.models import layers
from svclib.utils.errors import ModelError


def test_step_embedding_diffwave():
    t = torch.tensor([0.0, 0.8941, 49.0, 199.0])
    got = layers.step_embedding(t, 128, last=1e4).numpy()
    k = np.arange(64)
    angles = t.double().numpy()[:, None] * 10.0 ** (4 * k / 63)
    np.testing.assert_allclose(got, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6)


def test_step_embedding_transformer():
    t = torch.tensor([0.0, 1.0, 999.0])
    got = layers.step_embedding(t, 384).numpy()
    frequency = np.exp(-np.log(10000.0) * np.arange(192) / 191)
    angles = t.double().numpy()[:, None] * frequency
    np.testing.assert_allclose(got[:, :192], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(got[:, 192:], np.cos(angles), atol=1e-6)


def numpy_conv(x, weight, bias, dilation):
    """Same-length convolution over time, written out."""
    n_out, n_in, size = weight.shape
    reach = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (reach, reach)))
    out = np.zeros((n_out, x.shape[1])) + bias[:, None]
    for k in range(size):
        out += weight[:, :, k] @ padded[:, k * dilation : k * dilation + x.shape[1]]
    return out


def numpy_stack(stack, x, step, condition):
    p = {k: v.detach().double().numpy() for k, v in stack.state_dict().items()}
    channels, n = x.shape[0], len(stack.blocks)
    gates = p["conditions.weight"][:, :, 0] @ condition + p["conditions.bias"][:, None]
    total = 0
    for i in range(n):
        b = f"blocks.{i}."
        shifted = x + (p[b + "step.weight"] @ step + p[b + "step.bias"])[:, None]
        y = numpy_conv(shifted, p[b + "dilated.weight"], p[b + "dilated.bias"], stack.blocks[i].dilated.dilation[0])
        y += gates[2 * channels * i : 2 * channels * (i + 1)]
        z = np.tanh(y[channels:]) / (1 + np.exp(-y[:channels]))
        out = p[b + "out.weight"][:, :, 0] @ z + p[b + "out.bias"][:, None]
        x = (x + out[:channels]) / np.sqrt(2)
        total = total + out[channels:]
    return total / np.sqrt(n)


@pytest.mark.parametrize("grad", [True, False])
def test_gated_stack_is_diffwaves(grad):
    torch.manual_seed(0)
    stack = layers.GatedStack(6, 5, 3, step_dims=4, condition_dims=3)
    x, step, condition = torch.randn(2, 6, 40), torch.randn(2, 4), torch.randn(2, 3, 40)
    with torch.set_grad_enabled(grad):
        got = stack(x, step, stack.project(condition))
    for b in range(2):
        want = numpy_stack(stack, *(v[b].double().numpy() for v in (x, step, condition)))
        np.testing.assert_allclose(got[b].detach().numpy(), want, atol=2e-5)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(1)
    stack = layers.GatedStack(2, 2, 2, step_dims=2, condition_dims=1).double()
    inputs = [torch.randn(s, dtype=torch.double, requires_grad=True) for s in ((1, 2, 5), (1, 2), (1, 1, 5))]
    assert torch.autograd.gradcheck(lambda x, s, c: stack(x, s, stack.project(c)), inputs, fast_mode=True)


def test_reach_of_a_stack():
    torch.manual_seed(0)
    stack = layers.GatedStack(8, 20, 4, step_dims=4)
    assert stack.halo == 5 * (1 + 2 + 4 + 8)
    x = torch.randn(1, 8, 301, dtype=torch.double, requires_grad=True)
    stack.double()(x, torch.randn(1, 4, dtype=torch.double), [None] * 20).select(-1, 150).sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()[:, 0]
    assert (int(seen.min()), int(seen.max())) == (150 - 75, 150 + 75)


def test_conv_stack_frames_are_local():
    torch.manual_seed(0)
    stack = layers.ConvStack(3, 8, 2, n_layers=2)
    x = torch.randn(1, 3, 60)
    whole = stack(x)
    for start, stop, low, high in layers.chunks(60, 13, stack.halo):
        piece = stack(x[:, :, low:high])[:, :, start - low : stop - low]
        torch.testing.assert_close(piece, whole[:, :, start:stop], atol=1e-5, rtol=0)


def test_pieces_cover_once_and_keep_the_ends():
    cut = list(layers.chunks(100, 30, 7))
    assert [c[:2] for c in cut] == [(0, 30), (30, 60), (60, 90), (90, 100)]
    assert [c[2:] for c in cut] == [(0, 37), (23, 67), (53, 97), (83, 100)]


def test_upsampler_size_and_centres():
    up = layers.Upsampler((16, 16), slope=1.0)  # slope 1: linear
    assert sum(p.numel() for p in up.parameters()) == 194
    with torch.no_grad():
        for stage in up.stages:  # a triangle over time, only the band itself
            n = torch.arange(32) + 0.5
            stage.weight.zero_()
            stage.weight[0, 0, 1] = 1 - (n - 16).abs() / 16
            stage.bias.zero_()
    x = torch.from_numpy(np.cumsum(np.random.default_rng(0).normal(size=(1, 4, 12)), axis=2)).float()
    got = up(x).detach().numpy()
    assert got.shape == (1, 4, 12 * 256)
    # Two linear stages: first to the 16-sample grid, then to samples, both between centres.
    coarse, fine = (np.arange(12 * 16) + 0.5) / 16 - 0.5, (np.arange(12 * 256) + 0.5) / 16 - 0.5
    inner = slice(2 * 256, 10 * 256)
    for band in range(4):
        first = np.interp(coarse, np.arange(12), x[0, band].numpy())
        want = np.interp(fine, np.arange(12 * 16), first)
        np.testing.assert_allclose(got[0, band, inner], want[inner], atol=1e-5)


def test_automatic_precision_is_what_the_hardware_computes_in(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert layers.resolve_precision("cpu") == precision
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert layers.resolve_precision("cuda") == "fp16"
    assert layers.resolve_precision("cpu", "fp32") == "fp32"
    with pytest.raises(ModelError, match="auto, fp32, bf16, fp16"):
        layers.resolve_precision("cpu", "int8")
