"""Truths held here: the network's published size, its preconditioning in closed form, long songs in pieces equal to
the whole, conditions that can be left out and mixed, and a small model that learns synthetic singing and sings it
back."""

import dataclasses
import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from diffusion_models import CONTRACT, FEATURES, STATISTICS, TINY, batch_of, condition_of, tiny, tune

from svclib.audio.mel import MelConfig, griffin_lim
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion import denoiser
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.models.vocoders import auto
from svclib.utils.errors import Cancelled, ModelError

DATASET = {
    **{name: {"min": -60.0, "max": -10.0} for name in ("f0_midi", "loudness_db")},
    "loudness_quantiles_db": [-60.0, -10.0],
    "log_mel": {"min": -11.6, "max": 1.5},
}
DATASET["singers"] = {name: dict(DATASET) for name in ("ann", "bea")}
FULL = FeatureSettings(sample_rate_hz=44100, hop_samples=512, mel=MelConfig())


@pytest.fixture(scope="module")
def song():
    return batch_of([tune(150, seed=5)])


# Sizes and scales -----------------------------------------------------------------------------------------------------


def test_full_denoiser_is_diff_svcs_size():
    net = denoiser.WaveNetDenoiser(128, 384, 20, 4, 256)
    c = 384
    layer = (3 * c * 2 * c + 2 * c) + (c * c + c) + (256 * 2 * c + 2 * c) + (c * 2 * c + 2 * c)
    want = (128 * c + c) + (c * 4 * c + 4 * c + 4 * c * c + c) + 20 * layer + (c * c + c) + (128 * c + 128)
    assert sum(p.numel() for p in net.parameters()) == want == 31_956_224
    assert net.halo == 75


def test_scale_is_minus_one_to_one_and_back():
    model = tiny()
    ends = torch.tensor([[[-11.6] * 40, [1.5] * 40, [-5.05] * 40]])
    torch.testing.assert_close(model.scale(ends)[0, 0], torch.tensor([-1.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.unscale(model.scale(ends)), ends)
    by_mel = {"log_mel": {"min": [-11.5] * 40, "max": np.linspace(-11.5, 2, 40).tolist()}}
    scaled = tiny(statistics=by_mel).scale(torch.full((1, 1, 40), -11.5))
    assert bool(scaled.isfinite().all())  # also in the band that never moves


def test_equal_seeds_equal_weights_and_torchs_generator_is_left_alone():
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    a, b, c = (TINY.build(FEATURES, STATISTICS, s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), want)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_building_draws_from_no_gpu_generator(monkeypatch):
    """torch.manual_seed reseeds every GPU, and forking the CPU's generator does not restore those."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    TINY.build(FEATURES, STATISTICS, 0)
    assert seeds == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "ddsp"}, "diffusion"),
        ({"content": "hubert"}, "bottleneck"),
        ({"channels": 0}, "expected a whole number from 1 to 4096"),
        ({"condition_dropout": 1.0}, "from 0 to 0.99"),
        ({"code_noise": -1.0}, "expected a number from 0 to 100"),
        ({"prediction": "x"}, "residual, eps"),
        ({"sampler": "euler"}, "dpmpp"),
        ({"beta_last": 2.0}, "impossible"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **change)


def test_features_without_mels_are_refused():
    with pytest.raises(ModelError, match="no mel"):
        TINY.build(FeatureSettings())


# The denoiser ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.5, 30.0, 400.0, 999.0])
def test_an_ignorant_network_is_the_best_linear_estimate(t):
    """For mels normally distributed around the guess, the untrained network's noise is the exact posterior mean."""
    net, noise_of = denoiser.WaveNetDenoiser(4, 8, 2, 2, 3), denoiser.Parameterization(Schedule(), "residual")
    guess, x_t = torch.randn(1, 4, 50), torch.randn(1, 4, 50)
    spread = torch.full_like(guess, 0.3)
    condition = net.precompute(torch.zeros(1, 3, 50))
    alpha, sigma = Schedule().alpha_sigma(t)
    x0 = guess + alpha * 0.09 / (alpha**2 * 0.09 + sigma**2) * (x_t - alpha * guess)
    got = noise_of.eps(net, x_t, torch.tensor([t]), condition, guess, spread)
    torch.testing.assert_close(got, (x_t - alpha * x0) / sigma, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "residual"])  # a student has another loss
def test_loss_and_noise_are_the_same_network(prediction):
    """The noise error is the loss times the square of the output's share in the noise; the target has unit size."""
    torch.manual_seed(0)
    net, between = denoiser.WaveNetDenoiser(4, 8, 2, 2, 3), denoiser.Parameterization(Schedule(), prediction)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    guess, noise = torch.randn(1, 4, 4000), torch.randn(1, 4, 4000)
    spread = torch.full_like(guess, 0.3)
    x0 = guess + 0.3 * torch.randn(1, 4, 4000)
    condition = net.precompute(torch.zeros(1, 3, 4000))
    for t in (5.0, 300.0, 900.0):
        alpha, sigma = Schedule().alpha_sigma(t)
        time = torch.tensor([t])
        eps = between.eps(net, alpha * x0 + sigma * noise, time, condition, guess, spread)
        share = 1.0 if prediction == "eps" else alpha * 0.3 / np.sqrt(alpha**2 * 0.09 + sigma**2)
        own, of_noise = (float(x.detach()) for x in between.loss(net, x0, time, noise, condition, guess, spread))
        assert float((eps - noise).square().mean().detach()) == pytest.approx(own * share**2, rel=1e-3)
        assert of_noise == pytest.approx(own * share**2, rel=1e-3)
        with torch.no_grad():
            kept = net.last.weight.clone()
            net.last.weight.zero_()
            fresh, _ = between.loss(net, x0, time, noise, condition, guess, spread)
            assert float(fresh) == pytest.approx(1.0, abs=0.05)
            net.last.weight.copy_(kept)


def coarse_mel(model, condition):
    return model.unscale(model.prepare(condition).coarse.clamp(-1, 1)).detach()


@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_a_long_song_in_pieces_is_the_whole(cache_bytes, monkeypatch):
    model = tiny()
    batch = batch_of([tune(700, seed=2)])
    condition = condition_of(model, batch)
    whole = model.prepare(condition, SamplingOptions(precision="fp32", chunk_frames=10_000))
    parts = model.prepare(condition, SamplingOptions(precision="fp32", chunk_frames=64, cache_bytes=cache_bytes))
    assert parts.cached == bool(cache_bytes)
    x = torch.randn(1, 40, 700, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(parts(x, 400.5), whole(x, 400.5), atol=1e-5, rtol=0)
    sung = [model.sample(condition, SamplingOptions("dpmpp", 8), denoiser=p) for p in (whole, parts)]
    torch.testing.assert_close(sung[0], sung[1], atol=1e-4, rtol=0)
    # The seams are not quieter than the rest: without a halo the pieces differ by far more.
    monkeypatch.setattr(model.denoiser, "halo", 0)
    bare = model.prepare(condition, SamplingOptions(precision="fp32", chunk_frames=64))
    assert float((bare(x, 400.5) - whole(x, 400.5)).abs().max()) > 1e-3


def test_bf16_is_near(song):
    model = tiny()
    condition = condition_of(model, song)
    x = torch.randn(1, 40, 150, generator=torch.Generator().manual_seed(0))
    exact, rough = (model.prepare(condition, SamplingOptions(precision=p))(x, 300.0) for p in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    error = float((exact - rough).norm() / exact.norm())
    assert 0 < error < 0.02
    assert next(model.denoiser.parameters()).dtype == torch.float32


class PlainConvolution(denoiser.Denoiser):
    """A denoiser of its own: one convolution over mel and condition."""

    halo = 2

    def __init__(self, n_mels, condition_dims):
        super().__init__()
        self.last = torch.nn.Conv1d(n_mels + condition_dims, n_mels, 5, padding=2)

    @classmethod
    def from_settings(cls, settings, n_mels):
        return cls(n_mels, settings.condition_dims)

    def forward(self, x_t, t, condition):
        return self.last(torch.cat([x_t, condition[0]], dim=1))


def test_another_denoiser_is_one_class_and_one_line(song, tmp_path, monkeypatch):
    monkeypatch.setitem(denoiser.DENOISERS, "plain", PlainConvolution)
    model = dataclasses.replace(TINY, denoiser="plain").build(FEATURES, STATISTICS)
    model.loss(song, torch.Generator().manual_seed(0))[0].backward()
    assert float(model.denoiser.last.weight.grad.abs().sum()) > 0
    condition = condition_of(model.eval(), song)
    made = [model.sample(condition, SamplingOptions(steps=4, chunk_frames=n, precision="fp32")) for n in (1000, 40)]
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=0)
    path = instrument.save(tmp_path / "a.zip", model, FEATURES, DATASET, created="x")
    assert isinstance(instrument.open(path).model.denoiser, PlainConvolution)


def test_taps_of_the_wavenet_are_what_its_gates_see(song):
    """``noise`` is the block's input with the step added, ``condition`` the gates with the condition added."""
    net = tiny().denoiser
    seen, handles = {}, []
    for name, tap in net.named_taps().items():
        if tap.side == "output":
            handles.append(tap.module.register_forward_hook(lambda m, a, out, n=name: seen.update({n: out.clone()})))
        else:
            handles.append(tap.module.register_forward_pre_hook(lambda m, a, n=name: seen.update({n: a[0].clone()})))
    assert len(handles) == 1 + 2 * 4
    x, condition = torch.randn(1, 40, 20), net.precompute(torch.randn(1, 48, 20))
    with torch.no_grad():
        net(x, torch.tensor([300.0]), condition)
        step = net.step(torch.tensor([300.0]))
        block, first = net.stack.blocks[0], torch.relu(net.first(x))
        want = first + block.step(step)[:, :, None]
        torch.testing.assert_close(seen["step"], step)
        torch.testing.assert_close(seen["noise 1"], want)
        torch.testing.assert_close(seen["condition 1"], block.dilated(want) + condition[0])


# Conditions -----------------------------------------------------------------------------------------------------------


def test_comb_is_one_on_the_harmonics_and_silent_without_voice():
    conditions = tiny().conditions
    centers = conditions.centers_hz.double().numpy()
    f0 = float(centers[10]) / 2  # the eleventh filter sits on the second harmonic
    comb = conditions.comb(torch.tensor([[f0, f0]]), torch.tensor([[True, False]]))[0]
    assert float(comb[0, 10]) == pytest.approx(np.sinc(conditions.spacing_hz[10].item() / f0) ** 2, rel=1e-4)
    assert float(comb[1].abs().max()) == 0
    # sinc^2 is what a triangular filter leaves of a cosine: integrate it.
    f = np.linspace(-1, 1, 20001)
    for width in (0.2, 0.7):
        seen = np.trapezoid((1 - np.abs(f)) * np.cos(2 * np.pi * f * width), f)
        assert seen == pytest.approx(np.sinc(width) ** 2, abs=1e-6)


def test_unvoiced_frames_do_not_know_the_pitch(song):
    model = tiny()
    source = ConditionInputs.from_batch(song)
    unvoiced = dataclasses.replace(source, voiced=torch.zeros_like(song["voiced"]))
    a, b = (model.condition(source, dataclasses.replace(unvoiced, f0_hz=k * source.f0_hz)) for k in (1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, model.condition(source))


@pytest.mark.parametrize("name", denoiser.CONDITIONS)
def test_a_condition_switched_off_has_no_say(name, song):
    model = tiny()
    other = dict(song)
    if name == "content":
        other["log_mel"] = song["log_mel"].flip(1)
    elif name == "f0":
        other["f0_hz"] = song["f0_hz"] * 1.5
    elif name == "loudness":
        other["loudness_db"] = song["loudness_db"] - 15

    def args(b, s):
        source = b if name == "content" else song
        return ConditionInputs.from_batch(source), ConditionInputs.from_batch(b), model.singer_weights(s)

    def pair(**o):
        return (
            model.condition(*args(song, "ann"), **o),
            model.condition(*args(other, "bea" if name == "singer" else "ann"), **o),
        )

    with_it, without = pair(), pair(without=[name])
    assert not torch.equal(*with_it)
    assert torch.equal(*without)


def test_singers_mix(song):
    model = tiny()
    rows = [model.singer_weights(w) for w in ("ann", "bea", {"ann": 1, "bea": 3})]
    torch.testing.assert_close(rows[2], 0.25 * rows[0] + 0.75 * rows[1])
    conditions = [condition_of(model, song, singer=r) for r in rows]
    assert not torch.equal(conditions[0], conditions[1])
    assert not torch.equal(conditions[0], conditions[2])
    for wrong, words in (("cleo", "ann, bea"), ({"ann": 0.0}, "not all 0"), ({"ann": -1.0, "bea": 2.0}, "0 or more")):
        with pytest.raises(ModelError, match=words):
            model.singer_weights(wrong)
    with pytest.raises(ModelError, match="content, f0"):
        condition_of(model, song, without=["pitch"])


def test_each_condition_is_left_out_on_its_own(monkeypatch):
    model = tiny()
    seen = []
    plain = model.conditions.forward
    monkeypatch.setattr(model.conditions, "forward", lambda *a: (seen.append(a[-1]), plain(*a))[1])
    batch = batch_of([tune(8, seed=1)] * 64)
    for seed in range(12):
        with torch.no_grad():
            model.loss(batch, torch.Generator().manual_seed(seed))
    dropped = torch.cat(seen).float()
    np.testing.assert_allclose(dropped.mean(0).numpy(), 0.1, atol=0.035)
    pairs = np.corrcoef(dropped.T.numpy())[np.triu_indices(4, 1)]
    assert np.abs(pairs).max() < 0.12


# Training and singing -------------------------------------------------------------------------------------------------


def test_every_part_learns_from_one_loss():
    model = tiny().train()
    loss, parts = model.loss(batch_of([tune(40, s) for s in range(4)]), torch.Generator().manual_seed(0))
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert idle == []
    assert set(parts) == {"noise", "coarse", "spread"}
    assert float(loss.detach()) == pytest.approx(float(parts["noise"] + 0.5 * parts["coarse"]), rel=1e-5)


def test_the_value_tells_the_noise_and_the_gradient_what_is_to_be_learnt(monkeypatch):
    gradients, values, batch = [], [], batch_of([tune(40, s) for s in range(2)])
    measured = denoiser.Parameterization.loss
    for change in (lambda own, noise: (own, noise), lambda own, noise: (own, 3 * noise.detach())):
        monkeypatch.setattr(denoiser.Parameterization, "loss", lambda *a, change=change: change(*measured(*a)))
        model = tiny().train()
        loss, _ = model.loss(batch, torch.Generator().manual_seed(0))
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        values.append(float(loss.detach()))
    assert torch.equal(*gradients) and values[1] > values[0]


def test_loss_is_a_function_of_the_generator(song):
    model = tiny()
    values = [float(model.loss(song, torch.Generator().manual_seed(s))[0]) for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert float(model.validation_loss(song)) == float(model.validation_loss(song))
    assert isinstance(float(model.validation_loss(song)), float)


@pytest.fixture(scope="module")
def trained():
    """A tiny model after 240 steps on gliding tones, and a tune it has not heard."""
    model = tiny(busy=False, statistics={**STATISTICS, "singers": {"ann": {}}}).train()
    tunes = [tune(400, seed=s) for s in range(10, 18)]
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for step in range(240):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, step / 20) * (1 - step / 240)
        starts = [(tunes[rng.integers(8)], rng.integers(400 - 48)) for _ in range(8)]
        loss, _ = model.loss(batch_of([(m[a : a + 48], f[a : a + 48]) for (m, f), a in starts]), generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimiser.step()
    return model.eval(), batch_of([tune(200, seed=99)])


def test_it_learns_to_sing_what_it_has_not_heard(trained):
    model, unheard = trained
    truth = unheard["log_mel"]
    spread = float((truth - truth.mean(1, keepdim=True)).abs().mean())
    condition = condition_of(model, unheard)
    errors = {
        (method, n, k): float(
            (model.sample(condition, SamplingOptions(method, n, shallow=k, precision="fp32")) - truth).abs().mean()
        )
        for method, n, k in (
            ("dpmpp", 20, None),
            ("dpmpp", 20, 100),
            ("ddim", 50, None),
            ("plms", 20, None),
            ("ddpm", 100, None),
        )
    }
    coarse = float((coarse_mel(model, condition) - truth).abs().mean())
    print(f"spread {spread:.3f} coarse {coarse:.3f}", {k: round(v, 3) for k, v in errors.items()})
    assert coarse < 0.5 * spread
    # The noise it has not learned to take away yet is still in them, so single mels are further off than the guess.
    assert all(e < 0.8 * spread for e in errors.values())
    # What it was told matters: another pitch gives another mel.
    source = ConditionInputs.from_batch(unheard)
    other = model.condition(source, dataclasses.replace(source, f0_hz=source.f0_hz * 1.3))
    assert float((coarse_mel(model, other) - truth).abs().mean()) > 1.5 * coarse
    assert (
        float((model.sample(other, SamplingOptions(precision="fp32")) - truth).abs().mean())
        > 1.1 * errors["dpmpp", 20, None]
    )
    blind = condition_of(model, unheard, without=["f0"])
    assert float((coarse_mel(model, blind) - truth).abs().mean()) > 1.3 * coarse


def test_watching_and_seed(trained):
    model, unheard = trained
    condition = condition_of(model, unheard)
    seen = []
    runs = [
        model.sample(condition, SamplingOptions(steps=6, seed=s), callback=c)
        for s, c in ((1, None), (1, seen.append), (2, None))
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert len(seen) == 6 and seen[0].x_t.shape == (1, 40, 200)
    torch.testing.assert_close(model.unscale(seen[-1].x0_hat), runs[1])
    low, high = model.mel_low.min(), model.mel_high.max()
    assert float(runs[0].min()) >= low - 1e-4 and float(runs[0].max()) <= high + 1e-4


def test_temperature_is_the_factor_of_all_noise(trained):
    model, unheard = trained
    condition = condition_of(model, unheard)
    for method in ("dpmpp", "ddpm"):
        first, spreads = {}, []
        for temperature in (0.0, 0.5, 1.0):
            seen = []
            options = [SamplingOptions(method, 6, seed=seed, temperature=temperature) for seed in (1, 2)]
            runs = [model.sample(condition, o, callback=seen.append) for o in options]
            first[temperature] = seen[0].x_t
            spreads.append(float((runs[0] - runs[1]).abs().mean()))
        assert torch.equal(first[0.5], 0.5 * first[1.0])
        assert spreads[0] == 0 < spreads[1] < 0.8 * spreads[2]  # without noise there is one answer
    assert torch.equal(
        model.sample(condition, SamplingOptions(steps=3)),
        model.sample(condition, SamplingOptions(steps=3, temperature=1.0)),
    )


@pytest.mark.parametrize("sampler, guidance", [("dpmpp", 0.0), ("ddpm", 0.0), ("ddpm", 1.0)])
def test_with_a_tilt_the_noise_falls_from_band_to_band_to_none(sampler, guidance):
    """A silent network keeps bands apart, so the highest band is the same for every seed and the lowest is not."""
    model = tiny(settings=dataclasses.replace(TINY, temperature_tilt=1.0))
    torch.nn.init.zeros_(model.denoiser.last.weight)
    noise, flat = model.initial_noise(2000, 1, 0.5), tiny().initial_noise(2000, 1, 0.5)
    torch.testing.assert_close(noise, torch.linspace(1, 0, 40)[:, None] * flat)
    song = batch_of([tune(60, seed=5)])
    options = [SamplingOptions(sampler, 6, seed=seed, words_guidance=guidance, temperature=1.0) for seed in (1, 2)]
    runs = []
    for o in options:
        condition, denoiser = model.guided(ConditionInputs.from_batch(song), None, model.singer_weights(), o)
        runs.append(model.scale(model.sample(condition, o, denoiser)))
    differences = (runs[0] - runs[1]).abs().mean(2)[0]
    assert float(differences[-1]) < 1e-6 < 0.01 < float(differences[0])


def test_shallow_start_begins_at_the_coarse_mel(trained):
    model, unheard = trained
    condition = condition_of(model, unheard)
    coarse = coarse_mel(model, condition)
    near = float((model.sample(condition, SamplingOptions("dpmpp", 5, shallow=3)) - coarse).abs().mean())
    far = float((model.sample(condition, SamplingOptions("dpmpp", 20, shallow=500)) - coarse).abs().mean())
    assert near < 0.1 < far
    with pytest.raises(ModelError, match="1 to 1000"):
        model.sample(condition, SamplingOptions(shallow=1001))
    with pytest.raises(Cancelled):
        model.sample(condition, cancelled=lambda: True)


@pytest.mark.parametrize("shallow", [1, 2, 500, 1000])
def test_shallow_start_is_noised_to_exactly_its_step(song, shallow):
    """Diff-SVC's k_step counts from 1: step k has the noise of time k - 1, and sampling begins there."""
    model = tiny()
    condition, seen = condition_of(model, song), []
    denoiser = model.prepare(condition)
    model.sample(condition, SamplingOptions("ddim", 1, shallow=shallow, seed=3), denoiser, seen.append)
    alpha, sigma = model.schedule.alpha_sigma(shallow - 1)
    noise = model.initial_noise(condition.shape[-1], 3)
    assert seen[0].t == shallow - 1
    torch.testing.assert_close(seen[0].x_t, alpha * denoiser.coarse.clamp(-1, 1) + sigma * noise)


def test_preview_is_audible_and_in_tune(trained):
    model, unheard = trained
    audio = model.reconstruct(unheard, seed=0)
    assert audio.shape == (1, 200 * 256)
    f0, _, _ = librosa.pyin(audio[0].numpy(), sr=16000, fmin=120, fmax=600, hop_length=256, center=True)
    want = unheard["f0_hz"][0].numpy()
    n = min(len(f0), len(want))
    cents = 1200 * np.log2(f0[:n] / want[:n])
    assert np.nanmedian(np.abs(cents)) < 50


def test_phase_reconstruction_keeps_the_mel():
    log_mel = torch.from_numpy(tune(120, seed=4)[0])[None]
    audio = griffin_lim(log_mel, CONTRACT)[0].numpy()
    padded = np.pad(audio, (1024 - 256) // 2, mode="reflect")
    mel = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=40, fmin=0, fmax=8000)
    again = np.log(np.maximum(mel @ np.abs(librosa.stft(padded, n_fft=1024, hop_length=256, center=False)), 1e-5)).T
    assert np.abs(again[4:116] - log_mel[0, 4:116].numpy()).mean() < 0.35


def test_trainer_kinds_know_diffusion():
    assert instrument.KINDS["diffusion"] is DiffusionSettings


def test_a_level_never_heard_is_the_nearest_one_and_gain():
    """A song whose quiet frames lie far below the recordings' once came out 20 dB too loud there."""
    model = tiny(statistics={**STATISTICS, "loudness_db": {"min": -40.0, "max": 10.0}})
    n = 12
    mel = torch.randn(1, n, model.contract.n_mels, generator=torch.Generator().manual_seed(0)) - 4
    f0_hz, asked = torch.full((1, n), 220.0), torch.linspace(-80, 30, n)[None]
    inside = asked.clamp(-40, 10)
    a, b = (ConditionInputs(mel, f0_hz, f0_hz > 0, level) for level in (asked, inside))
    assert torch.equal(model.condition(a), model.condition(b))
    received = []

    def render(log_mel, f0_hz, voiced, seed, progress=None, cancelled=None):
        received.append(torch.from_numpy(log_mel))
        return np.zeros(len(f0_hz) * 256, np.float32)

    vocoder = auto.LoadedVocoder("none", "none", FEATURES, sha256="", path=Path(), model=render)
    for inputs in (a, b):
        model.render(a, inputs, options=SamplingOptions(steps=2), vocoder=vocoder)
    loud, plain = received
    floor = model.contract.log_floor
    want = (plain + (asked - inside).T / 20 * math.log(10)).clamp_min(floor)
    torch.testing.assert_close(loud[plain > floor + 1], want[plain > floor + 1])
    assert float((loud - plain).abs().max()) > 2
    # 20 dB are a factor of ten in magnitude, ln 10 in a natural-log mel.
    torch.testing.assert_close(model.loudness_excess(asked), (asked - inside) / 20 * math.log(10))
