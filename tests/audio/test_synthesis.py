"""Synthesis held to closed forms, scipy and finite differences.

Truths: the published curve of exp_sigmoid; upsampling's closed form; analytic sines over seconds; harmonic counts; the
noise filter's effective response computed by hand; scipy's convolution.
Sound made in pieces equals the whole, nothing is NaN, and gradients agree with finite differences.
"""

import math

import numpy as np
import pytest
import scipy.signal
import torch

from svclib.audio import synthesis
from svclib.audio.synthesis import (
    exp_sigmoid,
    fft_convolve,
    filtered_noise,
    frame_phase,
    harmonic_synthesis,
    noise_impulse,
    normalize_harmonics,
    upsample_gate,
    upsample_hann,
    upsample_linear,
)
from svclib.utils.errors import AudioError

RATE, HOP = 16000, 64


def steady(f0_hz, n_frames, n_harmonics=1, number=1, dtype=torch.float32):
    """Controls of one steady harmonic of amplitude 1."""
    distribution = torch.zeros(1, n_frames, n_harmonics, dtype=dtype)
    distribution[..., number - 1] = 1
    return torch.full((1, n_frames), float(f0_hz), dtype=dtype), torch.ones(1, n_frames, dtype=dtype), distribution


def glide(n_frames, seed=0, low=150.0, high=700.0, n_harmonics=40, dtype=torch.float32):
    """A wandering voice: smooth f0 with vibrato, unvoiced gaps and frames of 0 Hz, random amplitudes."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_frames) * HOP / RATE
    f0 = low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * t / 3)) + 5 * np.sin(2 * np.pi * 6 * t)
    voiced = np.sin(2 * np.pi * t / 0.7 + rng.uniform()) > -0.7
    f0 = np.where(np.arange(n_frames) % 97 == 50, 0, f0)
    amplitude = rng.uniform(0.1, 1, n_frames)
    distribution = rng.uniform(0, 1, (n_frames, n_harmonics))
    f0, amplitude, distribution = (torch.as_tensor(x, dtype=dtype)[None] for x in (f0, amplitude, distribution))
    return f0, torch.as_tensor(voiced)[None], amplitude, normalize_harmonics(distribution, f0, RATE)


# ---- amplitudes ----


def test_exp_sigmoid_published_values():
    x = torch.tensor([-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20], dtype=torch.float64)
    expected = [1e-7, 1.00199979e-7, 1.97931254e-5, 0.01493155, 0.0972229411, 0.405399233]
    expected += [0.972228511, 1.4931451, 1.96931264, 1.99979104, 2.00000009]
    np.testing.assert_allclose(exp_sigmoid(x).numpy(), expected, rtol=1e-7)


def test_exp_sigmoid_is_finite_with_its_gradient_at_extremes():
    x = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    y = exp_sigmoid(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    assert y[0].item() == pytest.approx(1e-7) and y[-1].item() == pytest.approx(2.0)


# ---- upsampling ----


@pytest.mark.parametrize("upsample", [upsample_linear, upsample_hann])
@pytest.mark.parametrize("hop", [2, 5, 64])
def test_upsampling_meets_every_frame_centre_and_holds_the_ends(upsample, hop):
    x = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = upsample(x, hop)
    assert y.shape == (2, 9 * hop)
    torch.testing.assert_close(y[:, hop // 2 :: hop], x, rtol=0, atol=1e-15)
    assert (y[:, : hop // 2] == x[:, :1]).all() and (y[:, 8 * hop + hop // 2 :] == x[:, -1:]).all()
    between = y[:, hop // 2 : 8 * hop + hop // 2].view(2, 8, hop)
    low, high = torch.minimum(x[:, :-1], x[:, 1:])[..., None], torch.maximum(x[:, :-1], x[:, 1:])[..., None]
    assert (between >= low - 1e-15).all() and (between <= high + 1e-15).all()  # no overshoot
    rising = (x[:, 1:] > x[:, :-1])[..., None]
    assert (torch.where(rising, between.diff(dim=-1), -between.diff(dim=-1)) >= -1e-15).all()  # monotone


def test_upsampling_shapes_in_between():
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    j = torch.arange(HOP, dtype=torch.float64)
    torch.testing.assert_close(upsample_linear(x, HOP)[0, 32:96], j / HOP)
    torch.testing.assert_close(upsample_hann(x, HOP)[0, 32:96], (1 - torch.cos(torch.pi * j / HOP)) / 2)


def test_hann_upsampling_equals_overlapping_windows():
    x = torch.rand(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    window = scipy.signal.get_window("hann", 2 * HOP)
    held = np.concatenate([x[0, :1], x[0], x[0, -1:]])
    overlap = np.zeros((len(held) + 1) * HOP)
    for i, value in enumerate(held):
        overlap[i * HOP : (i + 2) * HOP] += value * window
    # the window of frame i peaks at its centre: sample i * HOP + HOP // 2
    np.testing.assert_allclose(upsample_hann(x, HOP)[0], overlap[HOP + HOP // 2 :][: 12 * HOP], atol=1e-14)


def test_upsampling_of_a_ramp_is_exact_and_multidimensional():
    ramp = torch.arange(10, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = upsample_linear(ramp, 8)
    n = (torch.arange(80, dtype=torch.float64) - 4) / 8
    expected = n.clamp(0, 9)[None, :, None] * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(y, expected)


def test_upsampling_refuses_no_frames():
    with pytest.raises(AudioError, match="at least one frame"):
        upsample_linear(torch.zeros(1, 0), 4)


def test_gate_is_zero_in_every_off_frame_and_never_jumps():
    on = torch.tensor([[False, True, True, True, False, False, True, False, True]])
    gate = upsample_gate(on, HOP)[0]
    frames = gate.view(9, HOP)
    assert (frames[~on[0]] == 0).all()
    assert (frames[2] == 1).all() and (gate[HOP + HOP // 2 : 3 * HOP + HOP // 2] == 1).all()
    assert gate.diff().abs().max() < 1.01 * math.pi / 2 / (HOP // 2)  # slope of a raised cosine over half a hop
    assert upsample_gate(torch.ones(1, 3, dtype=torch.bool), HOP).min() == 1


# ---- oscillators ----


@pytest.mark.case("P42")
@pytest.mark.parametrize(("f0_hz", "number", "tolerance"), [(440, 1, 1e-5), (440, 18, 1e-5), (79, 100, 1e-4)])
def test_sine_accuracy_over_four_seconds(f0_hz, number, tolerance):
    audio = harmonic_synthesis(*steady(f0_hz, 1000, number, number), RATE, HOP)
    n = np.arange(1, 64001, dtype=np.float64)
    assert audio.shape == (1, 64000)
    np.testing.assert_allclose(audio[0], np.sin(2 * np.pi * number * f0_hz * n / RATE), atol=tolerance)


def test_phase_is_exact_after_ten_minutes():
    f0 = torch.full((1, 150_000), 440.1, dtype=torch.float64)
    last = frame_phase(f0, RATE, HOP)[0, -1].item()
    assert last == pytest.approx(440.1 * (150_000 * HOP - HOP // 2) / RATE, abs=1e-6)


def test_frame_phase_is_the_running_sum_of_the_upsampled_frequency():
    f0, _, _, _ = glide(200, dtype=torch.float64)
    f0 = synthesis.hold_f0(f0)
    centres = frame_phase(f0, RATE, HOP)
    total = (upsample_linear(f0, HOP) / RATE).cumsum(dim=1)
    torch.testing.assert_close(centres[0], total[0, HOP // 2 - 1 :: HOP], rtol=0, atol=1e-9)


def test_bank_equals_a_plain_sum_of_sines():
    """Against a direct float64 sum with running-sum phase, Hann amplitudes and masks per frame and per sample."""
    f0, voiced, amplitude, distribution = glide(120, low=900, high=2500, n_harmonics=12, dtype=torch.float64)
    audio = harmonic_synthesis(f0, amplitude, distribution, RATE, HOP, voiced)
    frequency = upsample_linear(synthesis.hold_f0(f0), HOP)
    phase = 2 * torch.pi * (frequency / RATE).cumsum(dim=1)
    a = upsample_hann(amplitude[..., None] * distribution, HOP)
    k = torch.arange(1, 13)
    a = torch.where(frequency[..., None] * k < RATE / 2, a, torch.zeros_like(a))
    expected = (a * torch.sin(phase[..., None] * k)).sum(dim=-1) * upsample_gate(voiced & (f0 > 0), HOP, torch.float64)
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-9)
    assert audio.abs().max() > 0.2


@pytest.mark.parametrize(("f0_hz", "active"), [(440, 18), (80, 99), (880, 9), (7999, 1), (8000, 0), (9000, 0), (0, 0)])
def test_number_of_harmonics(f0_hz, active):
    f0 = torch.full((1, 30), float(f0_hz))
    shares = normalize_harmonics(torch.ones(1, 30, 100), f0, RATE)
    assert ((shares > 0).sum(dim=-1) == active).all()
    if active:
        torch.testing.assert_close(shares.sum(dim=-1), torch.ones(1, 30))
    audio = harmonic_synthesis(f0, torch.ones(1, 30), shares, RATE, HOP)
    if not active:
        assert (audio == 0).all()
    elif f0_hz < 7999:  # as many lines in the spectrum; 80 Hz needs the long window to tell them apart
        f0 = torch.full((1, 500), float(f0_hz))
        shares = normalize_harmonics(torch.ones(1, 500, 100), f0, RATE)
        audio = harmonic_synthesis(f0, torch.ones(1, 500), shares, RATE, HOP)[0].numpy()
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) / len(audio) * 4
        assert len(scipy.signal.find_peaks(spectrum, height=0.5 / active)[0]) == active


def test_amplitude_is_kept_by_renormalisation():
    rng = torch.Generator().manual_seed(0)
    f0 = torch.rand(1, 50, generator=rng) * 6000 + 50
    shares = normalize_harmonics(exp_sigmoid(torch.randn(1, 50, 100, generator=rng)), f0, RATE)
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 50))


@pytest.mark.parametrize("rate", [4000, 16000, 44100])
def test_silent_above_nyquist(rate):
    f0, amplitude, distribution = steady(rate / 2 + 1, 40, 5)
    assert (harmonic_synthesis(f0, amplitude, torch.ones_like(distribution), rate, HOP) == 0).all()


def test_a_harmonic_that_glides_over_nyquist_does_not_fold_back():
    """Masking per sample: a glide of harmonic 2 from 7 to 9 kHz leaves nothing below 6.5 kHz."""
    f0 = torch.linspace(3500, 4500, 250, dtype=torch.float64)[None]
    distribution = torch.zeros(1, 250, 2, dtype=torch.float64)
    distribution[..., 1] = 1
    kept = distribution * (2 * f0[..., None] < 8000)
    audio = harmonic_synthesis(f0, torch.ones_like(f0), kept, RATE, HOP)
    edge = int((f0[0] * 2 < 8000).sum()) * HOP + HOP // 2
    assert (audio[0, edge:] == 0).all() and audio[0, : edge - 2 * HOP].abs().max() > 0.99


@pytest.mark.case("P45")
def test_unvoiced_and_zero_pitch_are_silent_and_do_not_click():
    f0, amplitude, distribution = steady(300, 60)
    voiced = torch.ones(1, 60, dtype=torch.bool)
    voiced[0, 20:30] = False
    f0[0, 40:45] = 0  # a tracker's "no pitch": upstream holds a constant here
    audio = harmonic_synthesis(f0, amplitude, distribution, RATE, HOP, voiced)
    frames = audio.view(60, HOP)
    assert (frames[20:30] == 0).all() and (frames[40:45] == 0).all()
    assert audio.diff().abs().max() < 1.4 * 2 * math.pi * 300 / RATE  # hardly steeper than the sine itself
    untouched = harmonic_synthesis(torch.full((1, 60), 300.0), amplitude, distribution, RATE, HOP)
    torch.testing.assert_close(audio[0, : 19 * HOP], untouched[0, : 19 * HOP])  # no sweep, no earlier effect
    torch.testing.assert_close(audio[0, 46 * HOP :], untouched[0, 46 * HOP :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("f0_hz", [0.0, 1e-3, 8000.0, 20000.0])
def test_no_nan_forward_or_backward(f0_hz):
    f0 = torch.full((2, 3), f0_hz)
    logits = torch.zeros(2, 3, 100, requires_grad=True)
    amplitude = torch.zeros(2, 3, requires_grad=True)
    shares = normalize_harmonics(exp_sigmoid(logits), f0, RATE)
    audio = harmonic_synthesis(f0, exp_sigmoid(amplitude), shares, RATE, HOP)
    audio.square().sum().backward()
    for x in (audio, logits.grad, amplitude.grad):
        assert torch.isfinite(x).all()


def test_a_clip_of_one_frame():
    audio = harmonic_synthesis(*steady(440, 1), RATE, HOP)
    np.testing.assert_allclose(audio[0], np.sin(2 * np.pi * 440 * np.arange(1, 65) / RATE), atol=1e-6)


def test_oscillators_go_on_from_the_phase_before():
    f0, amplitude, distribution = steady(333.3, 100, 5, 3)
    whole = harmonic_synthesis(f0, amplitude, distribution, RATE, HOP)
    first = harmonic_synthesis(f0[:, :37], amplitude[:, :37], distribution[:, :37], RATE, HOP)
    phase = f0[:, 0].double() * (37 * HOP / RATE)
    rest = harmonic_synthesis(f0[:, 37:], amplitude[:, 37:], distribution[:, 37:], RATE, HOP, None, phase)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=0, atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    controls = glide(150)
    f0, voiced, amplitude, distribution = controls
    amplitude.requires_grad_()
    one = harmonic_synthesis(f0, amplitude, distribution, RATE, HOP, voiced)
    (gradient,) = torch.autograd.grad(one.square().sum(), amplitude)
    monkeypatch.setattr(synthesis, "BLOCK_ELEMENTS", {"cpu": 5000, "other": 5000})
    many = harmonic_synthesis(f0, amplitude, distribution, RATE, HOP, voiced)
    (again,) = torch.autograd.grad(many.square().sum(), amplitude)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, again, rtol=1e-4, atol=1e-5)


# ---- gradients against finite differences ----


def random64(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_gradients_of_the_oscillators():
    f0 = (200 + 300 * random64(2, 4).detach()).requires_grad_()
    voiced = torch.tensor([[True, True, True, True], [True, False, True, True]])
    make = lambda f, a, d: harmonic_synthesis(f, a, d, RATE, 8, voiced)  # noqa: E731
    assert torch.autograd.gradcheck(make, (f0, random64(2, 4, seed=1), random64(2, 4, 5, seed=2)), atol=1e-6)


def test_gradients_of_everything_else():
    logits = random64(2, 3, 5)
    f0 = torch.tensor([[300.0, 2500.0, 0.0]] * 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(exp_sigmoid, logits)
    assert torch.autograd.gradcheck(lambda x: normalize_harmonics(exp_sigmoid(x), f0, RATE), logits)
    assert torch.autograd.gradcheck(lambda x: upsample_hann(x, 6), logits)
    assert torch.autograd.gradcheck(lambda x: upsample_linear(x, 6), logits)
    noise = random64(2, 24, seed=3).detach() - 0.5
    assert torch.autograd.gradcheck(lambda m: filtered(m, noise), random64(2, 3, 5))
    assert torch.autograd.gradcheck(fft_convolve, (random64(2, 24), random64(2, 3, 7)))
    assert torch.autograd.gradcheck(synthesis.reverb, (random64(2, 24), random64(9)))


# ---- noise ----


def filtered(magnitudes, noise):
    """This noise through the filters, as ``filtered_noise`` does with its own."""
    return fft_convolve(noise, noise_impulse(magnitudes), delay=magnitudes.shape[-1] - 1)


@pytest.mark.case("P44")
@pytest.mark.parametrize("bands", [10, 35, 65])
def test_noise_filter_response_without_residual_delay(bands):
    magnitudes = random64(1, 1, bands).detach()
    impulse = torch.zeros(1, 4 * bands, dtype=torch.float64)
    impulse[0, 2 * bands] = 1
    out = filtered(magnitudes, impulse)
    taps = 2 * (bands - 1)
    around = torch.roll(out[0], -2 * bands)  # the response, its centre at 0
    response = torch.fft.fft(torch.cat([around[: taps // 2], around[-taps // 2 :]]))
    assert response.imag.abs().max() < 1e-12  # zero phase: no delay at all
    m = magnitudes[0, 0]
    even = torch.cat([m[1:2], m, m[-2:-1]])
    torch.testing.assert_close(response.real[:bands], 0.25 * even[:-2] + 0.5 * m + 0.25 * even[2:], rtol=0, atol=1e-12)


def test_noise_of_flat_magnitudes_is_the_noise_itself():
    generator = torch.Generator().manual_seed(0)
    noise = synthesis.uniform_noise((1, 64000), generator, torch.zeros(1))
    out = filtered(torch.ones(1, 1000, 65), noise)
    torch.testing.assert_close(out, noise, rtol=0, atol=1e-6)
    assert out.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(3), abs=2e-3)
    assert out.abs().max() <= 1.0 + 1e-6


def test_noise_impulse_length_and_peak():
    impulse = noise_impulse(torch.ones(2, 3, 65))
    assert impulse.shape == (2, 3, 128) and (impulse.argmax(-1) == 64).all() and (impulse[..., 0] == 0).all()


def test_noise_is_the_generators_and_in_pieces_the_same():
    magnitudes = torch.rand(1, 50, 65, generator=torch.Generator().manual_seed(5))
    a = filtered_noise(magnitudes, HOP, torch.Generator().manual_seed(1))
    assert torch.equal(a, filtered_noise(magnitudes, HOP, torch.Generator().manual_seed(1)))
    assert not torch.equal(a, filtered_noise(magnitudes, HOP, torch.Generator().manual_seed(2)))
    generator = torch.Generator().manual_seed(1)
    summed = torch.zeros(50 * HOP + 127)
    for first in range(0, 50, 7):
        piece = filtered_noise(magnitudes[:, first : first + 7], HOP, generator, full=True)[0]
        summed[first * HOP : first * HOP + len(piece)] += piece
    torch.testing.assert_close(summed[64 : 64 + 50 * HOP], a[0], rtol=0, atol=1e-6)


def test_a_switch_of_the_noise_filter_does_not_click():
    """From loud low noise to silence: nothing appears above the filter's band at the switch."""
    magnitudes = torch.full((1, 100, 65), 1e-9, dtype=torch.float64)
    magnitudes[:, :50, :9] = 1.0  # up to 1 kHz
    noise = synthesis.uniform_noise((1, 6400), torch.Generator().manual_seed(0), magnitudes)
    out = filtered(magnitudes, noise)
    high = scipy.signal.sosfilt(scipy.signal.butter(8, 3000, "high", fs=RATE, output="sos"), out[0].numpy())
    assert np.abs(high[3000:3600]).max() < 1e-4 * out.abs().max()


# ---- convolution and reverb ----


@pytest.mark.parametrize(("n", "taps", "frames"), [(64, 9, 1), (64, 200, 1), (64, 1, 4), (60, 33, 5)])
def test_convolution_against_scipy(n, taps, frames):
    audio, impulse = random64(2, n).detach(), random64(2, frames, taps, seed=1).detach()
    full = np.zeros((2, n + taps - 1))
    hop = n // frames
    for b in range(2):
        for i in range(frames):
            piece = scipy.signal.convolve(audio[b, i * hop : (i + 1) * hop].numpy(), impulse[b, i].numpy())
            full[b, i * hop : i * hop + len(piece)] += piece
    np.testing.assert_allclose(fft_convolve(audio, impulse, full=True), full, atol=1e-12)
    np.testing.assert_allclose(fft_convolve(audio, impulse), full[:, :n], atol=1e-12)
    padded = np.pad(full, ((0, 0), (0, n)))
    np.testing.assert_allclose(fft_convolve(audio, impulse, delay=taps // 2), padded[:, taps // 2 :][:, :n], atol=1e-12)


def test_convolution_says_what_does_not_fit():
    with pytest.raises(AudioError, match="do not divide into 3 frames"):
        fft_convolve(torch.zeros(1, 10), torch.zeros(1, 3, 4))
    with pytest.raises(AudioError, match="2 signals cannot be filtered with 1"):
        fft_convolve(torch.zeros(2, 9), torch.zeros(1, 3, 4))


def test_reverb_of_a_delayed_click_is_a_delayed_copy():
    dry = random64(2, 500).detach()
    impulse = torch.zeros(100, dtype=torch.float64)
    impulse[0], impulse[40] = 5.0, 0.5  # tap 0 is the dry sound and is left out
    wet = synthesis.reverb(dry, impulse)
    torch.testing.assert_close(wet[:, 40:], 0.5 * dry[:, :-40], rtol=0, atol=1e-12)
    assert wet[:, :40].abs().max() < 1e-12
    assert synthesis.reverb(dry, torch.zeros(100, dtype=torch.float64)).abs().max() == 0


# Phases and noise within the pitch period -----------------------------------------------------------------------------


def test_the_minimum_phase_of_an_all_pole_filter_is_its_own():
    """Resonances of 80 to 200 Hz bandwidth: the phase of ``1 / A(e^iw)`` from its magnitude alone, to 0.001 radian."""
    poles = [r * np.exp(1j * w) for r, w in ((0.98, 0.2), (0.97, 0.7), (0.95, 1.6))]
    delay = np.exp(-1j * np.linspace(0, np.pi, 513))
    response = 1 / np.prod([(1 - p * delay) * (1 - p.conj() * delay) for p in poles], axis=0)
    found = synthesis.minimum_phase(torch.from_numpy(np.log(np.abs(response)))).numpy()
    np.testing.assert_allclose(np.exp(1j * found), response / np.abs(response), atol=1e-3)
    louder = synthesis.minimum_phase(torch.from_numpy(np.log(np.abs(response)) + 3)).numpy()
    np.testing.assert_allclose(louder, found, atol=1e-9)


def test_complex_harmonics_are_ahead_by_their_angle():
    """``sum_k a_k sin(k p + t_k)`` in closed form; real amplitudes are the angle 0, to the bit."""
    f0, level = torch.full((1, 20), 150.0, dtype=torch.float64), torch.ones(1, 20, dtype=torch.float64)
    a, t = np.array([0.5, 0.3, 0.2]), np.array([0.4, -2.0, 3.0])
    shares = torch.from_numpy(a * np.exp(1j * t)).expand(1, 20, 3)
    made = harmonic_synthesis(f0, level, shares, RATE, HOP)[0].numpy()
    phase = 2 * np.pi * 150 / RATE * np.arange(1, 20 * HOP + 1)
    want = sum(x * np.sin(k * phase + y) for k, (x, y) in enumerate(zip(a, t, strict=True), 1))
    np.testing.assert_allclose(made, want, atol=1e-9)
    real = torch.from_numpy(a).expand(1, 20, 3)
    plain, turned = (harmonic_synthesis(f0, level, x, RATE, HOP) for x in (real, real + 0j))
    assert torch.equal(plain, turned)


@pytest.mark.parametrize("depth, angle", [(0.8, 0.0), (0.5, 2.0)])
def test_noise_follows_the_period_as_deep_as_asked(depth, angle):
    """Mean square over many periods, by phase: ``(1 + d cos(p - t))^2 / 3``; at depth 0 the noise is what it was."""
    frames, f0_hz = 3000, 105.0
    f0 = torch.full((1, frames), f0_hz, dtype=torch.float64)
    flat = torch.ones(1, frames, 33, dtype=torch.float64)
    parts = torch.stack([flat, flat * depth * math.cos(angle), flat * depth * math.sin(angle)], dim=2)
    centres = synthesis.frame_phase(f0, RATE, HOP)
    period = (centres, f0 / RATE)
    made = filtered_noise(parts, HOP, torch.Generator().manual_seed(0), period=period)[0].numpy()
    phase = (np.arange(1, len(made) + 1) * f0_hz / RATE) % 1
    bins = (phase * 16).astype(int)
    power = np.bincount(bins, made**2) / np.bincount(bins) * 3
    want = np.bincount(bins, (1 + depth * np.cos(2 * np.pi * phase - angle)) ** 2) / np.bincount(bins)
    # the filter is the Hann window's: flat magnitudes give an impulse at its middle, nothing is smeared
    np.testing.assert_allclose(power, want, atol=0.05)
    still = torch.stack([flat, 0 * flat, 0 * flat], dim=2)
    steady = filtered_noise(flat, HOP, torch.Generator().manual_seed(0))
    assert torch.equal(filtered_noise(still, HOP, torch.Generator().manual_seed(0), period=period), steady)
