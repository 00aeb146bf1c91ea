"""The spectral loss held to stated values on a stated signal, to scipy's frames, and to finite differences."""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from svclib.audio import spectral_loss as losses
from svclib.audio.spectral_loss import spectral_loss

RATE = 16000


def stated_signal():
    n = np.arange(64000, dtype=np.float64)
    v = 43758.5453 * np.sin(12.9898 * n)
    x = 2 * (v - np.floor(v)) - 1
    assert x[0] == -1 and abs(x[1] - 0.84338078) < 1e-8 and abs(np.sqrt(np.mean(x**2)) - 0.5758) < 1e-6
    return torch.from_numpy(x)[None]


def test_loss_of_the_stated_signal():
    x = stated_signal()
    linear, log = spectral_loss(x, x)
    assert linear == 0 and log == 0
    linear, log = spectral_loss(x, 0.5 * x)
    assert linear.item() == pytest.approx(21.004619, abs=1e-6)
    assert log.item() == pytest.approx(6 * math.log(2), abs=1e-9)
    assert (linear + log).item() == pytest.approx(25.163503, abs=1e-6)
    linear, log = spectral_loss(x, 0.5 * x, (4096, *losses.FFT_SIZES))
    assert (linear + log).item() == pytest.approx(35.590880, abs=1e-6)
    for rule in losses.LOG_RULES:
        linear, log = spectral_loss(x, 0 * x, log_rule=rule)
        assert linear.item() == pytest.approx(42.009239, abs=1e-6)
        assert log.item() == pytest.approx(78.698286, abs=1e-6)


def test_loss_per_scale():
    x = stated_signal()
    expected = {4096: 9.73423, 2048: 7.00251, 1024: 4.97306, 512: 3.52632, 256: 2.49468, 128: 1.7629, 64: 1.24515}
    for size, value in expected.items():
        assert spectral_loss(x, 0.5 * x, (size,))[0].item() == pytest.approx(value, abs=6e-6)


def test_what_the_log_rule_changes():
    x = stated_signal()
    assert spectral_loss(0 * x, 1e-7 * x)[1] == 0
    assert spectral_loss(0 * x, 1e-7 * x, log_rule="v2")[1].item() == pytest.approx(18.010288, abs=1e-5)
    sine = torch.sin(2 * torch.pi * 440 * torch.arange(64000, dtype=torch.float64) / RATE)[None]
    linear, log = spectral_loss(sine, 0.5 * sine)
    # the stated values leave the phase of the sine open, which moves the last digits
    assert linear.item() == pytest.approx(3.083723, abs=2e-3) and log.item() == pytest.approx(2.439131, abs=2e-3)
    assert spectral_loss(sine, 0.5 * sine, log_rule="v2")[1].item() == pytest.approx(4.158883, abs=1e-3)


@pytest.mark.parametrize(("size", "frames"), [(4096, 63), (2048, 125), (1024, 250), (512, 500), (64, 4000)])
def test_frames_of_the_loss_against_scipy(size, frames):
    x = stated_signal()
    spectrum = losses.spectrum_frames(x, size)
    assert spectrum.shape == (1, frames, size // 2 + 1)
    padded = np.pad(x[0].numpy(), (0, size))
    window = scipy.signal.get_window("hann", size)
    for i in (0, frames // 2, frames - 1):
        segment = padded[i * size // 4 :][:size] * window
        np.testing.assert_allclose(spectrum[0, i], np.fft.rfft(segment), atol=1e-9)


@pytest.mark.parametrize("rule", losses.LOG_RULES)
def test_loss_gradient_is_finite_in_silence_and_for_short_clips(rule):
    for n in (1, 64, 3000):
        audio = torch.zeros(1, n, requires_grad=True)
        sum(spectral_loss(audio, torch.rand(1, n), log_rule=rule)).backward()
        assert torch.isfinite(audio.grad).all()


@pytest.mark.parametrize("rule", losses.LOG_RULES)
@pytest.mark.parametrize("n", [30, 100])
def test_gradient_against_finite_differences(rule, n):
    generator = torch.Generator().manual_seed(n)
    audio, target = (torch.randn(2, n, dtype=torch.float64, generator=generator) for _ in range(2))
    audio.requires_grad_()
    for part in (0, 1):
        assert torch.autograd.gradcheck(lambda a, p=part: spectral_loss(a, target, (32, 16), rule)[p], audio, atol=1e-6)


def test_gradient_equals_autograds_own():
    """The same arithmetic left to autograd, in float32, with magnitudes below the floor among the bins."""
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(2, 4000, generator=generator) * torch.logspace(-9, 0, 4000)
    target = torch.randn(2, 4000, generator=generator) * torch.logspace(0, -9, 4000)
    ours, plain = audio.clone().requires_grad_(), audio.clone().requires_grad_()
    sum(spectral_loss(ours, target)).backward()
    for size in losses.FFT_SIZES:
        a, b = (losses.spectrum_frames(x, size).abs() for x in (plain, target))
        distance = (a - b).abs().mean() + (a.clamp_min(1e-5).log() - b.clamp_min(1e-5).log()).abs().mean()
        distance.backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-3 * plain.grad.abs().mean().item())


def test_loss_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="log rule 'v3'"):
        spectral_loss(torch.zeros(1, 64), torch.zeros(1, 64), log_rule="v3")
