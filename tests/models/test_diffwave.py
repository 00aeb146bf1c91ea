"""Truths held here: the published sizes; the whole network against a forward pass written in numpy; the computation in
tiles and in pieces against the network itself; the golden aligned steps; Gaussian data, for which the perfect denoiser
and the level after sampling are known in closed form, through vocoding, generation, denoising and interpolation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import untrusted

from lib.diffwave_weights import convert, load
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.models.diffwave import cached_inference
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave.cached_inference import CachedDenoiser
from svclib.models.diffwave.model import FAST_ETAS, DiffWaveSettings
from svclib.models.diffwave.network import DiffWaveNet, strides, table_embedding
from svclib.models.layers import step_embedding
from svclib.models.vocoders import auto
from svclib.utils.errors import Cancelled, ConfigError, ModelError

MEL = MelConfig(
    sample_rate_hz=8000, n_fft=256, window_samples=256, hop_samples=64, n_mels=12, fmin_hz=0.0, fmax_hz=4000.0
)
VOICE = FeatureSettings(sample_rate_hz=8000, hop_samples=64, mel=MEL)
PLAIN = FeatureSettings(sample_rate_hz=8000, hop_samples=64)
FAST = {"base": FAST_ETAS, "large": (*FAST_ETAS[:5], 0.7)}
SMALL = DiffWaveSettings(channels=8, n_layers=4, dilation_cycle=3, condition_dims=6)
DIGITS = dataclasses.replace(SMALL, condition="label", labels=("one", "two"))


def random_net(channels=8, n_layers=6, dilation_cycle=3, seed=0, **options):
    """A network all of whose weights matter."""
    torch.manual_seed(seed)
    net = DiffWaveNet(channels, n_layers, dilation_cycle, **options)
    torch.nn.init.normal_(net.output.weight, std=0.3)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


# The network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"channels": 64, "n_layers": 30, "n_mels": 80}, 2_619_971),  # BASE
        ({"channels": 128, "n_layers": 30, "n_mels": 80}, 6_885_315),  # LARGE
        ({"channels": 256, "n_layers": 36}, 24_034_305),  # unconditional SC09
        ({"channels": 64, "n_layers": 30, "n_labels": 10}, 2_619_971 - 194 - 30 * 81 * 128 + 10 * 128 + 30 * 129 * 128),
    ],
)
def test_parameter_counts(sizes, count):
    net = DiffWaveNet(**{"conditioner": "samples", **sizes}, dilation_cycle=12)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.halo == sum(2 ** (i % 12) for i in range(sizes["n_layers"]))


def test_factors_of_the_hop():
    assert [strides(h) for h in (256, 512, 320, 300, 882, 2)] == [(16, 16), (16, 32), (16, 20), (10, 30), (882,), (2,)]
    with pytest.raises(ModelError, match="even"):
        strides(255)


def public_weights(n_mels=5, channels=6, n_layers=4, seed=0):
    """Random weights under the names and in the shapes of the public package."""
    rng, c = np.random.default_rng(seed), channels
    shapes = {
        "input_projection": (c, 1, 1),
        "diffusion_embedding.projection1": (512, 128),
        "diffusion_embedding.projection2": (512, 512),
        "skip_projection": (c, c, 1),
        "output_projection": (1, c, 1),
        "spectrogram_upsampler.conv1": (1, 1, 3, 32),
        "spectrogram_upsampler.conv2": (1, 1, 3, 32),
    }
    for i in range(n_layers):
        layer = {
            "dilated_conv": (2 * c, c, 3),
            "diffusion_projection": (c, 512),
            "conditioner_projection": (2 * c, n_mels, 1),
            "output_projection": (2 * c, c, 1),
        }
        shapes.update({f"residual_layers.{i}.{k}": v for k, v in layer.items()})
    made = {}
    for name, shape in shapes.items():
        fan = np.prod(shape[1:]) if "conv1" not in name and "conv2" not in name else 6
        made[f"{name}.weight"] = torch.from_numpy(rng.normal(size=shape) / np.sqrt(fan)).float()
        made[f"{name}.bias"] = torch.from_numpy(rng.normal(size=shape[0]) * 0.2).float()
    return made


def numpy_forward(w, x, mel, t, n_steps=50, cycle=10):
    """DiffWave as its figure 2 says, one signal, float64, written out; the step by an interpolated float32 table."""
    w = {k: v.double().numpy() for k, v in w.items()}

    def conv(name, value, dilation=1):
        weight, bias = w[name + ".weight"], w[name + ".bias"]
        reach = dilation * (weight.shape[2] - 1) // 2
        padded, n = np.pad(value, ((0, 0), (reach, reach))), value.shape[1]
        taps = [weight[:, :, k] @ padded[:, k * dilation : k * dilation + n] for k in range(weight.shape[2])]
        return sum(taps) + bias[:, None]

    def dense(name, value):
        value = w[name + ".weight"] @ value + w[name + ".bias"]
        return value / (1 + np.exp(-value)) if "embedding" in name else value

    def up(name, value):  # bands x frames; out[b + i - 1, 16 f + j - 8] += weight[i, j] value[b, f]
        bands, frames = value.shape
        out = np.zeros((bands + 2, frames * 16 + 16))
        for i in range(3):
            for f in range(frames):
                out[i : i + bands, 16 * f : 16 * f + 32] += value[:, f, None] * w[name + ".weight"][0, 0, i]
        out = out[1:-1, 8:-8] + w[name + ".bias"]
        return np.where(out > 0, out, 0.4 * out)

    frequencies = (10.0 ** (torch.arange(64) * 4.0 / 63.0)).numpy()
    angles = (np.arange(n_steps, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    low = int(t)
    embedded = table[low] + (table[min(low + 1, n_steps - 1)] - table[low]) * (t - low)
    step = dense("diffusion_embedding.projection2", dense("diffusion_embedding.projection1", embedded))
    mel = up("spectrogram_upsampler.conv2", up("spectrogram_upsampler.conv1", mel))
    h, total, n = np.maximum(conv("input_projection", x[None]), 0), 0, sum("dilated_conv.bias" in k for k in w)
    for i in range(n):
        name = f"residual_layers.{i}."
        y = h + dense(name + "diffusion_projection", step)[:, None]
        y = conv(name + "dilated_conv", y, 2 ** (i % cycle)) + conv(name + "conditioner_projection", mel)
        gate, signal = np.split(y, 2)
        out = conv(name + "output_projection", np.tanh(signal) / (1 + np.exp(-gate)))
        h, total = (h + out[: len(h)]) / np.sqrt(2), total + out[len(h) :]
    return conv("output_projection", np.maximum(conv("skip_projection", total / np.sqrt(n)), 0))[0]


@pytest.mark.parametrize("t", [0.0, 31.0, 10.4518])
def test_converted_weights_equal_the_public_formula(t):
    weights, rng = public_weights(), np.random.default_rng(1)
    x, mel = rng.normal(size=256 * 3), rng.uniform(size=(5, 3))
    net = convert(weights, dilation_cycle=3)
    want = numpy_forward(weights, x, mel, t, cycle=3)
    signal, spectrogram = torch.from_numpy(x).float()[None], torch.from_numpy(mel).float()[None]
    with torch.no_grad():
        plain = net(signal, torch.tensor([t]), spectrogram)[0]
    scale = np.abs(want).max()
    np.testing.assert_allclose(plain / scale, want / scale, atol=1e-5)
    np.testing.assert_allclose(CachedDenoiser(net, spectrogram)(signal, t)[0] / scale, want / scale, atol=1e-5)


def test_the_rules_for_steps_agree_where_steps_are_whole_and_only_there():
    whole, between = torch.tensor([0.0, 1.0, 7.0]), torch.tensor(aligned(paper_schedule(50), FAST["base"])[1:])
    torch.testing.assert_close(table_embedding(whole, 50), step_embedding(whole, 128, last=1e4), atol=0.005, rtol=0)
    apart = (table_embedding(between, 50) - step_embedding(between, 128, last=1e4)).abs().mean(dim=1)
    np.testing.assert_allclose(apart, [0.640, 0.655, 0.682, 0.457, 0.658], atol=0.002)
    worst = (table_embedding(torch.arange(50.0), 50) - step_embedding(torch.arange(50.0), 128, last=1e4)).abs().max()
    assert float(worst) == pytest.approx(0.0234, abs=0.001)


def test_weights_that_are_none_are_refused_by_name(tmp_path):
    weights = public_weights()
    for changed, match in [
        ({"optimizer.step": torch.zeros(1)}, "optimizer.step"),
        ({"skip_projection.weight": torch.zeros(3, 3, 1)}, "skip.weight"),
        ({"residual_layers.2.conditioner_projection.bias": None}, "conditioner"),
        ({"residual_layers.1.dilated_conv.weight": None}, "missing"),
        ({"input_projection.weight": None}, "no input"),
    ]:
        given = {k: v for k, v in {**weights, **changed}.items() if v is not None}
        with pytest.raises(ModelError, match=match):
            convert(given)
    (tmp_path / "no.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="no safetensors"):
        load(tmp_path / "no.safetensors")


def test_the_file_of_converted_weights_opens(tmp_path):
    import safetensors.torch

    weights = public_weights()
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    torch.testing.assert_close(load(tmp_path / "w.safetensors").state_dict(), convert(weights).state_dict())


@pytest.mark.case("red 04")
def test_a_network_that_the_weights_of_a_file_do_not_fill_is_not_built(tmp_path):
    """Of 80 kB: 20,000 channels, for which the first layer alone would take 10 GB."""
    import safetensors.torch

    few = {"input_projection.weight": torch.zeros(20_000, 1, 1), "input_projection.bias": torch.zeros(20_000)}
    few["residual_layers.0.dilated_conv.weight"] = torch.zeros(0)
    safetensors.torch.save_file(few, tmp_path / "w.safetensors")
    with untrusted.measured() as cost, pytest.raises(ModelError):
        load(tmp_path / "w.safetensors")
    assert cost.seconds < 1 and cost.megabytes < 100, cost


# CachedDenoiser: tiles and pieces -------------------------------------------------------------------------------------

NETS = {
    "samples": {"n_mels": 5, "hop_samples": 12, "conditioner": "samples"},
    "frames": {"n_mels": 5, "hop_samples": 12},
    "none": {},
    "label": {"n_labels": 4},
    "squeezed": {"n_labels": 4, "squeeze": 3},
    "squeezed frames": {"n_mels": 5, "hop_samples": 12, "squeeze": 4},
    "sourced": {"n_mels": 5, "hop_samples": 12, "squeeze": 2, "sourced": True},
}


def test_a_prepared_network_works_in_units():
    net = random_net(**NETS["frames"])
    generator = torch.Generator().manual_seed(1)
    mel, x = torch.randn(2, 5, 40, generator=generator), torch.randn(2, 480, generator=generator)
    t = torch.tensor([2.0, 9.0])
    unit = 0.1 + torch.rand(2, 480, generator=generator)
    with torch.no_grad():
        want = unit * net(x / unit, t, mel)
    made = CachedDenoiser(net, mel, unit=unit)(x, t)
    torch.testing.assert_close(made, want, atol=1e-5 * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("options", [{}, {"chunk_samples": 100}])
def test_prepared_equals_the_network(name, options, monkeypatch):
    monkeypatch.setattr(cached_inference, "TILE_ELEMENTS", 8 * 50)  # several tiles, the last one shorter
    net = random_net(**NETS[name])
    generator = torch.Generator().manual_seed(1)
    mel = torch.randn(2, 5, 40, generator=generator) if net.n_mels else None
    label = torch.tensor([3, 0]) if net.n_labels else None
    x, t = torch.randn(2, 480, generator=generator), torch.tensor([0.25, 7.5])  # a batch at fractional steps
    source = torch.randn(2, 480, generator=generator) if net.sourced else None
    with torch.no_grad():
        want = net(x, t, mel, label, source)
        single = net(x, torch.tensor([3.0, 3.0]), mel, label, source)
    prepared = CachedDenoiser(net, mel, label, source, **options)
    torch.testing.assert_close(prepared(x, t), want, atol=1e-5 * float(want.abs().max()), rtol=0)
    torch.testing.assert_close(prepared(x, 3), single, atol=1e-5 * float(want.abs().max()), rtol=0)
    half = CachedDenoiser(net, mel, label, source, precision="bf16", **options)(x, t)
    assert half.dtype == torch.float32
    assert float((half - want).abs().max()) < 0.04 * float(want.abs().max())


def test_squeezing_is_a_network_on_blocks_of_samples():
    net = random_net(**NETS["squeezed"])  # position p of channel k is sample 3 p + k
    x = torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    t, label = torch.tensor([4.0]), torch.tensor([2])
    h = net.input(x.reshape(1, 20, 3).transpose(1, 2)).relu()
    rows = list(net.label_gates(label).unbind(1))
    made = net.output(net.skip(net.stack(h, net.step(t), rows)).relu())
    torch.testing.assert_close(net(x, t, label=label)[0], torch.stack([made[0, k] for k in range(3)], 1).flatten())
    for action, match in [
        (lambda: DiffWaveNet(8, 2, 2, 5, hop_samples=12, squeeze=5), "divide the hop of 12"),
        (lambda: DiffWaveNet(8, 2, 2, 5, hop_samples=12, squeeze=4, conditioner="samples"), "'samples'"),
        (lambda: dataclasses.replace(DIGITS, squeeze=5).build(PLAIN), "divide the hop of 64"),
    ]:
        with pytest.raises(ModelError, match=match):
            action()


def test_frame_conditions_lie_between_frame_centres():
    net = random_net(n_mels=3, hop_samples=10)
    encoded = torch.randn(1, net.stack.conditions.in_channels, 7, generator=torch.Generator().manual_seed(0))
    gates = net.stack.conditions(encoded)[0, 2 * 16 : 3 * 16].detach().numpy()
    got = net.layer_condition(2, encoded)[0].detach().numpy()
    want = [np.interp((np.arange(70) + 0.5) / 10 - 0.5, np.arange(7), row) for row in gates]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_memory_does_not_grow_with_the_sound(monkeypatch):
    net, longest = random_net(), []
    run = net.run

    def watched(x, *rest):
        longest.append(x.shape[2])
        return run(x, *rest)

    monkeypatch.setattr(net, "run", watched)
    CachedDenoiser(net, chunk_samples=1000)(torch.zeros(1, 5000), 0)
    assert max(longest) == 1000 + 2 * net.halo and len(longest) == 5


def test_an_unknown_precision_is_told():
    with pytest.raises(ModelError, match="int8"):
        CachedDenoiser(random_net(**NETS["frames"]), torch.zeros(1, 5, 4), precision="int8")


# The process ----------------------------------------------------------------------------------------------------------


def test_golden_aligned_steps():
    for steps, name, want in [
        (50, "base", [0, 0.8941, 4.0867, 10.4518, 22.9925, 42.9186]),
        (200, "large", [0, 3.2007, 13.4303, 33.8203, 73.9825, 170.6051]),
        (200, "base", [0, 3.2007, 13.4303, 33.8203, 73.9825, 138.0839]),
    ]:
        np.testing.assert_allclose(aligned(paper_schedule(steps), FAST[name]), want, atol=1e-4)
    own = paper_schedule(50)
    np.testing.assert_allclose(aligned(own, own.betas.tolist()), np.arange(50), atol=1e-9)


@pytest.mark.parametrize(
    ("etas", "match"),
    [
        (FAST["large"], r"eta 6 of 6 \(0\.7\).*more noise"),
        ((1e-5, 0.1), r"eta 1 of 2 \(1e-05\).*less noise"),
        ((1e-4, 0.1, 0.05), r"eta 3 of 3 \(0\.05\).*below"),
        ((1e-4, 1.0), r"eta 2 of 2 \(1\).*between 0 and 1"),
        ((), "empty"),
    ],
)
def test_a_schedule_that_cannot_be_aligned_names_its_eta(etas, match):
    with pytest.raises(ModelError, match=match):
        paper_schedule(50).aligned_levels(etas)


def aligned(schedule, etas):
    """The times of the levels, rising."""
    return [level.t for level in schedule.aligned_levels(etas)][::-1]


def solved(denoiser, x, levels, generator=None, **watch):
    """A run of ``ddpm`` over these levels."""
    ddpm = SamplingOptions("ddpm")
    return samplers.sample(denoiser, levels, x, ddpm, generator=generator, **watch)


def paper_schedule(n_steps):
    """The schedules of the paper: up to beta 0.05 for 20 and 50 steps, 0.02 for 200."""
    return Schedule(n_steps, 1e-4, 0.02 if n_steps == 200 else 0.05)


def gaussian(schedule, s):
    """The perfect denoiser of samples drawn from N(0, s^2), at any real time of the schedule."""
    roots = np.sqrt(schedule.alpha_bar)

    def eps(x, t):
        power = np.interp(t, np.arange(schedule.n_steps), roots) ** 2
        return x * (np.sqrt(1 - power) / (power * s * s + 1 - power))

    return eps


def after_sampling(schedule, s, etas=None, start=None):
    """The paper's sampling run of x: slope of the result over x, and std of what it adds, by arithmetic."""
    betas = schedule.betas[: None if start is None else start + 1] if etas is None else np.array(etas)
    power, slope, variance = np.cumprod(1 - betas), 1.0, 0.0
    for i in reversed(range(len(betas))):
        a = (1 - betas[i] / (power[i] * s * s + 1 - power[i])) / np.sqrt(1 - betas[i])
        slope, variance = slope * a, variance * a * a
        variance += (1 - power[i - 1]) / (1 - power[i]) * betas[i] if i else 0
    return slope, np.sqrt(variance)


@pytest.mark.parametrize(
    ("steps", "etas", "golden"),
    [
        (50, None, {0.05: 0.0372, 0.1: 0.0840, 0.3: 0.2805}),
        (50, FAST["base"], {0.05: 0.0310, 0.1: 0.0649, 0.3: 0.2123}),
        (200, None, {0.05: 0.0442, 0.1: 0.0935, 0.3: 0.2928}),
    ],
)
def test_level_after_sampling_with_perfect_noise(steps, etas, golden):
    schedule = paper_schedule(steps)
    for s, want in golden.items():
        slope, spread = after_sampling(schedule, s, etas)
        assert np.hypot(slope, spread) == pytest.approx(want, abs=0.002)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 20_000, generator=generator, dtype=torch.float64)
    levels = schedule.aligned_levels(etas) if etas else schedule.levels_from(steps - 1)
    got = solved(gaussian(schedule, 0.3), x, levels, generator)
    assert float(got.std()) == pytest.approx(np.hypot(*after_sampling(schedule, 0.3, etas)), rel=0.02)


def test_all_steps_are_ddpm_sampling():
    schedule, generator = paper_schedule(20), torch.Generator().manual_seed(0)
    x, denoiser = torch.randn(2, 30, dtype=torch.float64, generator=generator), gaussian(schedule, 0.2)
    ours, theirs = [], []
    for start, x_t in ((None, x), (7, x)):
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        steps = 20 if start is None else start + 1
        got = solved(denoiser, x_t, schedule.levels_from(steps - 1), generators[0], callback=ours.append)
        want = samplers.sample(
            denoiser,
            schedule,
            x_t,
            SamplingOptions("ddpm", steps, shallow=None if start is None else start + 1),
            generator=generators[1],
            callback=theirs.append,
        )
        torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.index, a.n_calls, a.t) == (b.index, b.n_calls, b.t)
        torch.testing.assert_close(a.x0_hat, b.x0_hat, atol=1e-9, rtol=0)
        assert a.sigma == pytest.approx(b.sigma, abs=1e-12)


def test_a_perfect_guess_comes_back_through_the_fast_walk():
    schedule, target = paper_schedule(50), torch.linspace(-1, 1, 50, dtype=torch.float64)[None]
    roots, seen = np.sqrt(schedule.alpha_bar), []

    def denoiser(x, t):
        alpha = np.interp(t, np.arange(50), roots)
        return (x - alpha * target) / np.sqrt(1 - alpha**2)

    x = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = solved(denoiser, x, schedule.aligned_levels(FAST["base"]), callback=seen.append)
    torch.testing.assert_close(got, target, atol=1e-9, rtol=0)
    np.testing.assert_allclose([s.t for s in seen], aligned(schedule, FAST["base"])[::-1])
    gbar = [0.3757862, 0.7515724, 0.9394655, 0.9889111, 0.9989001, 0.9999]
    np.testing.assert_allclose([s.alpha**2 for s in seen], gbar, atol=1e-7)


def test_runs_are_cancelled():
    schedule = paper_schedule(20)
    with pytest.raises(Cancelled):
        solved(gaussian(schedule, 1.0), torch.zeros(1, 4), schedule.levels_from(19), cancelled=lambda: True)


# Settings, training protocol ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "ddsp"}, "kind"),
        ({"channels": 0}, "channels"),
        ({"channels": True}, "whole"),
        ({"n_layers": 10**6}, "n_layers"),
        ({"channels": 1024, "n_layers": 128}, "at most"),
        ({"beta_last": 1.0}, "beta_last"),
        ({"beta_first": 0.06}, "beta_first"),
        ({"condition": "speaker"}, "condition"),
        ({"loss": "l3"}, "loss"),
        ({"labels": ("a",)}, "labels"),
        ({"condition": "label"}, "labels"),
        ({"condition": "label", "labels": ("b", "a")}, "sorted"),
        ({"fast_etas": FAST["large"]}, r"eta 6 of 6 \(0\.7\)"),
        ({"fast_etas": (0.1,) * 65}, "at most 64"),
    ],
)
def test_settings_out_of_range_say_so(changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(SMALL, **changes)


def batch_of(n=4, frames=20):
    rng = np.random.default_rng(0)
    audio = torch.from_numpy(0.1 * rng.standard_normal((n, frames * 64))).float()
    mel = torch.from_numpy(rng.uniform(-10, 1, (n, frames, 12))).float()
    return {"audio": audio, "log_mel": mel, "label": torch.tensor([0, 1] * (n // 2))}


@pytest.mark.parametrize("settings", [SMALL, DIGITS, dataclasses.replace(SMALL, condition="none")])
def test_loss_learns_and_repeats(settings):
    features = VOICE if settings.condition == "mel" else PLAIN
    model = settings.build(features, seed=3)
    again = settings.build(features, seed=3)
    torch.testing.assert_close(model.state_dict(), again.state_dict(), atol=0, rtol=0)
    batch = batch_of(2, 8)
    loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.15)  # the last layer begins with zeros
    assert set(parts) == {"little_noise", "much_noise"}
    optimizer, before = torch.optim.Adam(model.parameters(), 2e-3), float(model.validation_loss(batch))
    for _ in range(25):  # the very noise that validation draws
        loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    value = float(model.validation_loss(batch))
    assert value < 0.9 * before and value == float(model.validation_loss(batch))
    made = model.eval().reconstruct(batch, seed=1)
    assert made.shape == batch["audio"].shape and torch.isfinite(made).all()
    assert torch.equal(made, model.reconstruct(batch, seed=1)) and not torch.equal(made, model.reconstruct(batch, 2))


def test_the_loss_is_that_of_the_paper():
    model = SMALL.build(VOICE)
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x, t, mel):
            seen.update(x=x, t=t, mel=mel)
            return torch.full_like(x, 0.5)

    model.net, batch = Spy(), batch_of(n=200, frames=2)
    loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
    assert sorted(set(seen["t"].tolist())) == list(range(50))  # every trained step, counted from 0
    root = torch.tensor(np.sqrt(model.schedule.alpha_bar)).float()[seen["t"].long()][:, None]
    noise = (seen["x"] - root * batch["audio"]) / (1 - root**2).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float(loss) == pytest.approx(float((noise - 0.5).square().mean()), rel=1e-3)
    low, high = np.log(1e-5), 2.0
    torch.testing.assert_close(seen["mel"], (2 * (batch["log_mel"] - low) / (high - low) - 1).transpose(1, 2))


def test_recordings_without_a_known_label_are_told():
    model, batch = DIGITS.build(PLAIN), batch_of()
    for label, match in [([-1, 0, 0, 0], "without label"), ([0, 2, 0, 0], "label number 2")]:
        with pytest.raises(ModelError, match=match):
            model.loss({**batch, "label": torch.tensor(label)}, torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match="mel contract"):
        SMALL.build(PLAIN)


def test_a_model_of_one_level_hears_quiet_and_loud_alike():
    model = dataclasses.replace(DIGITS, peak=0.9).build(PLAIN)
    torch.nn.init.normal_(model.net.output.weight, std=0.2)
    loud = batch_of()
    loud["label"] = torch.zeros(4, dtype=torch.long)
    quiet = {**loud, "audio": 0.01 * loud["audio"]}
    assert float(model.validation_loss(loud)) == pytest.approx(float(model.validation_loss(quiet)), rel=1e-5)
    torch.testing.assert_close((loud["audio"] * model.gain(loud["audio"])).abs().amax(dim=1), torch.full((4,), 0.9))
    assert float(model.gain(torch.zeros(1, 50))) == pytest.approx(900)  # silence stays silent
    audio = loud["audio"][0].numpy()
    made = [diffwave_uses.denoise(model, level * audio, t=3, label="one") for level in (1.0, 0.01)]
    np.testing.assert_allclose(0.01 * made[0], made[1], atol=1e-5 * np.abs(made[1]).max())
    ends = [diffwave_uses.interpolate(model, (audio, 0.1 * audio), share, 3, label="one") for share in (0, 1)]
    np.testing.assert_allclose(0.1 * ends[0], ends[1], atol=1e-5)
    for changes, match in [({"condition": "mel", "labels": ()}, "determines the level"), ({"peak": 1.5}, "0 to 1")]:
        with pytest.raises(ConfigError, match=match):
            dataclasses.replace(DIGITS, **{"peak": 0.9, **changes})


def test_a_prior_that_follows_the_energy():
    """PriorGrad in closed form: data as loud as its prior, whose perfect denoiser names sqrt(1 - abar) x."""
    settings = dataclasses.replace(SMALL, prior="energy")
    top = {"log_mel": {"min": np.log(1e-5), "max": 2.0}}
    model, mels = settings.build(VOICE, top), torch.full((1, 600, 12), 2.0)
    mels[:, 200:400] += 2 * np.log(0.5)  # a quarter of the amplitude: half the spread
    mels[:, 400:] = np.log(1e-5)
    spread = model.prior_std(model.scale(mels))[0]
    want = np.repeat([1.0, 0.5, 0.1], 200 * 64)
    np.testing.assert_allclose(spread, want, rtol=1e-4)

    def ideal(x, t):
        power = np.interp(t, np.arange(50), np.sqrt(model.schedule.alpha_bar)) ** 2
        return x * np.sqrt(1 - power)

    ideal.prior_std = model.prepare(mel=model.scale(mels)).prior_std
    for fast, etas in ((True, FAST["base"]), (False, None)):
        made = model.sample(ideal, (1, len(want)), SamplingOptions(seed=3), fast)[0].numpy()
        level = np.hypot(*after_sampling(model.schedule, 1.0, etas))
        for part in np.split(made / want, 3):
            assert part.std() == pytest.approx(level, rel=0.03)

    class Ideal(torch.nn.Module):
        def forward(self, x, t, mel):
            return x * torch.as_tensor(np.sqrt(1 - model.schedule.alpha_bar)).float()[t.long()][:, None]

    # E |named - noise|^2 in standard deviations is abar: the same for loud and quiet, averaged over all times
    generator = torch.Generator().manual_seed(0)
    batch = {"log_mel": mels.repeat(50, 1, 1), "audio": spread * torch.randn(50, len(want), generator=generator)}
    model.net = Ideal()
    loss, _ = model.loss(batch, generator)
    assert float(loss) == pytest.approx(float(model.schedule.alpha_bar.mean()), rel=0.01)
    assert SMALL.build(VOICE).prior_std(mels) is None and "prior" in settings.prediction
    with pytest.raises(ConfigError, match="prior"):
        dataclasses.replace(DIGITS, prior="energy")


# The four uses, on Gaussian data --------------------------------------------------------------------------------------


def perfect(condition, s, steps=200, **changes):
    """A model whose network is the perfect denoiser of N(0, s^2)."""
    model = dataclasses.replace(
        SMALL, condition=condition, n_steps=steps, beta_last={50: 0.05, 200: 0.02}[steps], **changes
    ).build(VOICE if condition == "mel" else PLAIN)
    model.prepare = lambda precision="fp32", **_: gaussian(model.schedule, s)
    return model


def test_vocode():
    model = perfect("mel", 0.3, steps=50)
    mel = np.zeros((400, 12), np.float32)
    for fast, etas in ((True, FAST["base"]), (False, None)):
        made = diffwave_uses.vocode(model, mel, options=SamplingOptions(seed=1), fast=fast)
        assert made.shape == (400 * 64,) and made.dtype == np.float32
        assert made.std() == pytest.approx(np.hypot(*after_sampling(model.schedule, 0.3, etas)), rel=0.02)
    assert np.array_equal(made, diffwave_uses.vocode(model, mel, options=SamplingOptions(seed=1), fast=False))
    vocoder = auto.LoadedVocoder("v", "diffwave", VOICE, "", Path(), model)
    for bad in (np.zeros((5, 11)), np.full((5, 12), np.nan), np.zeros((0, 12))):
        with pytest.raises(ModelError, match=r"finite numbers, \[frames, 12\]"):
            vocoder.render(bad, np.zeros(len(bad)), np.zeros(len(bad), bool))


def test_generate():
    told = []
    for model, label in ((perfect("none", 0.3), None), (perfect("label", 0.3, labels=("one", "two")), "two")):
        watch = diffwave_uses.step_progress(lambda f, text: told.append(f))
        made = diffwave_uses.generate(model, 6000, 3, label, SamplingOptions(seed=2), callback=watch)
        assert made.shape == (3, 6000)
        assert made.std() == pytest.approx(0.2928, rel=0.02)
        assert np.abs(np.corrcoef(made) - np.eye(3)).max() < 0.05  # three different sounds
    assert told[199] == 1.0 and len(told) == 400
    for action, match in [
        (lambda: diffwave_uses.generate(model, 10, label="three"), "'three'; it knows one, two"),
        (lambda: diffwave_uses.generate(model, 10), "needs a label"),
        (lambda: diffwave_uses.generate(perfect("none", 1.0), 10, label="one"), "takes no label"),
        (lambda: diffwave_uses.generate(perfect("mel", 1.0), 10), "vocoder"),
        (lambda: diffwave_uses.generate(model, 0, label="one"), "at least one"),
    ]:
        with pytest.raises(ModelError, match=match):
            action()


def fit(made, x):
    """Slope of the result over the input, and std of the rest."""
    slope = float(made @ x / (x @ x))
    return slope, float((made - slope * x).std())


def test_denoise():
    model, audio = perfect("none", 0.3), np.random.default_rng(0).normal(size=40_000) * 0.3
    slope, spread = after_sampling(model.schedule, 0.3, start=24)
    alpha = np.sqrt(0.967996)  # step 25 of 200, counted from 1
    got = fit(diffwave_uses.denoise(model, audio, reading="as_is"), audio)
    np.testing.assert_allclose(got, (slope, spread), rtol=0.02)
    got = fit(diffwave_uses.denoise(model, audio, reading="scaled"), audio)
    np.testing.assert_allclose(got, (slope * alpha, np.hypot(spread, slope * 0.178898)), rtol=0.02)
    for options, match in [
        ({"t": 0}, "1 to 200"),
        ({"t": 201}, "1 to 200"),
        ({"t": True}, "whole"),
        ({"reading": "both"}, "as_is, scaled"),
    ]:
        with pytest.raises(ModelError, match=match):
            diffwave_uses.denoise(model, audio, **options)
    for bad in (np.zeros((2, 5)), np.zeros(0), np.full(5, np.nan)):
        with pytest.raises(ModelError, match="The recording"):
            diffwave_uses.denoise(model, bad)


@pytest.mark.parametrize(("shared", "noise"), [(True, 0.346260), (False, 0.244843)])
def test_interpolate(shared, noise):
    model, rng = perfect("none", 0.3), np.random.default_rng(0)
    first, second = rng.normal(size=40_000) * 0.3, rng.normal(size=39_000) * 0.3
    shares = (0.0, 0.25, 0.5)
    made = [diffwave_uses.interpolate(model, (first, second), share, shared_noise=shared) for share in shares]
    slope, spread = after_sampling(model.schedule, 0.3, start=49)
    alpha = np.sqrt(0.880104)  # step 50 of 200, counted from 1
    second = np.pad(second, (0, 1000))
    for share, row in zip(shares, made, strict=True):
        (a, b), *_ = np.linalg.lstsq(np.stack([first, second], axis=1), row, rcond=None)
        assert a == pytest.approx(slope * alpha * (1 - share), abs=0.01)
        assert b == pytest.approx(slope * alpha * share, abs=0.01)
    # what is left in the middle is the mixed noise and the sampler's own
    rest = float((made[2] - a * first - b * second).std())
    assert rest == pytest.approx(np.hypot(spread, slope * noise), rel=0.02)
    for options, match in [({"share": 1.5}, "0 to 1"), ({"share": -0.1}, "0 to 1"), ({"t": 0}, "1 to")]:
        with pytest.raises(ModelError, match=match):
            diffwave_uses.interpolate(model, (first, second), **options)


def test_the_uses_run_the_real_network_too():
    plain = dataclasses.replace(SMALL, condition="none", n_steps=4, fast_etas=()).build(PLAIN)
    torch.nn.init.normal_(plain.net.output.weight, std=0.2)
    assert diffwave_uses.generate(plain, 300, 2).shape == (2, 300)
    assert diffwave_uses.denoise(plain, np.zeros(300), t=2).shape == (300,)
    assert diffwave_uses.interpolate(plain, (np.zeros(300), np.zeros(200)), 0.5, 2).shape == (300,)
    digits = dataclasses.replace(DIGITS, n_steps=4, fast_etas=()).build(PLAIN)
    torch.nn.init.normal_(digits.net.output.weight, std=0.2)
    one, two = (diffwave_uses.generate(digits, 300, label=name) for name in ("one", "two"))
    assert not np.array_equal(one, two)
    voice = dataclasses.replace(SMALL, n_steps=4, fast_etas=()).build(VOICE)
    torch.nn.init.normal_(voice.net.output.weight, std=0.2)
    mels = np.random.default_rng(0).normal(size=(2, 6, 12)).astype(np.float32)
    assert not np.array_equal(*(diffwave_uses.vocode(voice, mel) for mel in mels))


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_serves_diffwave(name):
    """A perfect denoiser of one known signal gives it back, by few steps of each sampler and by the fast schedule."""
    model, target = perfect("none", 0.3, steps=50), torch.linspace(-0.9, 0.9, 50)[None]

    def denoiser(x, t):
        alpha, sigma = model.schedule.alpha_sigma(t)
        return (x - alpha * target) / sigma

    made = model.sample(denoiser, (1, 50), SamplingOptions(name, 8, seed=3))
    torch.testing.assert_close(made, target, atol=1e-4, rtol=0)
