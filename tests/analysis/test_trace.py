"""Truths about traces: capturing changes no bit; what is kept is what the sampler saw; pooled features are those of the
network written out by hand, in pieces as in one; thinning follows the selection rule; files round-trip and untrusted
files are refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusion_models import CONTRACT, batch_of, condition_of, tiny, tune
from traces import SCHEDULE, gaussian, recorded

from svclib.analysis import trace
from svclib.analysis.recorder import Recorder, capture, select_steps
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import expand_like
from svclib.utils.errors import ConversionError


@pytest.fixture(scope="module")
def song():
    model = tiny()
    batch = batch_of([tune(150)])
    return model, batch, condition_of(model, batch)


@pytest.mark.parametrize("method", samplers.SAMPLERS)
def test_what_is_kept_is_what_the_sampler_saw(method):
    made, seen, result = recorded(method=method)
    assert len(made) == made.n_calls == len(seen) == 20 + (method == "plms")
    for i, (t, x_t, x0, eps) in enumerate(seen):
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        assert (made.t[i], made.alpha[i], made.sigma[i], made.index[i]) == (t, alpha, sigma, i)
        np.testing.assert_allclose(made.x_t[i], x_t[0], rtol=5e-4, atol=1e-6)
        np.testing.assert_allclose(made.x0_hat[i], x0[0], rtol=5e-4, atol=1e-6)
        named = (made.x_t[i].astype(np.float32) - alpha * made.x0_hat[i].astype(np.float32)) / sigma
        np.testing.assert_allclose(named, eps[0], atol=2.2e-3 / sigma)
    np.testing.assert_allclose(made.result, result[0], rtol=5e-4, atol=1e-6)
    np.testing.assert_allclose(made.log_snr[0], np.log(SCHEDULE.alpha_bar[-1] / (1 - SCHEDULE.alpha_bar[-1])))


@pytest.mark.parametrize("method", samplers.SAMPLERS)
def test_capturing_changes_no_bit(song, method):
    model, _, condition = song
    plain = model.sample(condition, SamplingOptions(method, 6, seed=5))
    made = capture(model, condition, SamplingOptions(sampler=method, steps=6, seed=5))
    assert torch.equal(model.sample(condition, SamplingOptions(method, 6, seed=5)), plain)
    np.testing.assert_allclose(made.log_mel(made.result).T, plain[0], atol=6e-3)
    steps_seen = []
    prepared = model.prepare(condition)
    recorder = Recorder(denoiser=prepared)
    with recorder.hooked():
        watched = model.sample(condition, SamplingOptions(method, 6, seed=5), callback=recorder, denoiser=prepared)
    assert torch.equal(watched, plain)
    model.sample(condition, SamplingOptions(method, 6, seed=5), denoiser=prepared, callback=steps_seen.append)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "a hook stayed"


def test_features_are_the_networks_own(song):
    model, _, condition = song
    made = capture(model, condition, SamplingOptions(sampler="ddim", steps=4, seed=5, precision="fp32"))
    net = model.denoiser
    with torch.no_grad():
        guess, spread = model.coarse_and_std(condition)
        t = torch.tensor([made.t[2]])
        states = []
        model.sample(
            condition,
            SamplingOptions("ddim", 4, seed=5, precision="fp32"),
            callback=lambda s: states.append(s.x_t.clone()),
        )
        alpha, sigma = (expand_like(x, states[2]) for x in SCHEDULE.alpha_sigma(t))
        total = ((alpha * spread) ** 2 + sigma**2).sqrt()
        x = torch.relu(net.first((states[2] - alpha * guess) / total))
        step, projected = net.step(t), net.stack.project(condition)
        for i, block in enumerate(net.stack.blocks):
            noisy = x + block.step(step)[:, :, None]
            gates = block.dilated(noisy) + projected[i]
            for tap, hidden in (("noise", noisy[0]), ("condition", gates[0])):
                row = torch.cat([hidden.mean(1), hidden.std(1, correction=0)])
                np.testing.assert_allclose(made.features[f"{tap} {i + 1}"][2], row, atol=2e-4)
            gate, signal = gates.chunk(2, dim=1)
            residual, _ = block.out(torch.sigmoid(gate) * torch.tanh(signal)).chunk(2, dim=1)
            x = (x + residual) / 2**0.5
    np.testing.assert_allclose(made.features["step"][2], step[0].detach(), atol=1e-6)
    assert set(made.features) == {"step", *(f"{tap} {i}" for tap in ("noise", "condition") for i in (1, 2, 3, 4))}


def test_features_in_pieces_are_those_of_the_whole(song):
    model, _, condition = song
    pieces = model.prepare(condition, SamplingOptions(precision="fp32", chunk_frames=37))
    whole = capture(model, condition, SamplingOptions(sampler="ddim", steps=3, seed=5, precision="fp32"))
    parts = capture(model, condition, SamplingOptions(sampler="ddim", steps=3, seed=5), denoiser=pieces)
    for tap, rows in whole.features.items():
        np.testing.assert_allclose(parts.features[tap], rows, atol=1e-4, err_msg=tap)


@pytest.mark.parametrize(("steps", "keep"), [(100, 10), (97, 13), (50, 49), (20, 2)])
def test_thinning_follows_the_selection_rule(steps, keep):
    whole, _, _ = recorded(steps=steps)
    few, _, _ = recorded(steps=steps, keep=keep)
    rows = whole.x0_hat.astype(np.float32).mean(axis=2)
    chosen = select_steps(rows, keep)
    assert few.index.tolist() == chosen.tolist() and few.n_calls == steps and few.info["notice"] == ""
    np.testing.assert_array_equal(few.x_t, whole.steps(chosen).x_t)


def test_memory_is_bounded_with_a_notice():
    one = 4 * 40 * 12  # bytes of one kept step
    recorder = Recorder(max_bytes=30 * one)
    most = 0

    def watch(step):
        nonlocal most
        recorder(step)
        most = max(most, len(recorder.rows) + len(recorder.pending))

    samplers.sample(gaussian, SCHEDULE, torch.randn(1, 40, 12), SamplingOptions("ddim", 100), callback=watch)
    made = recorder.trace(torch.zeros(1, 40, 12), low=[-1] * 40, high=[1] * 40, mel=CONTRACT.to_json())
    assert most <= 30 and 20 <= len(made) < 30 and made.index[0] == 0 and made.index[-1] == 99
    assert made.info["notice"].startswith(f"{len(made)} of 100 steps were kept")
    with pytest.raises(ConversionError, match="shorter excerpt"):
        recorded(max_bytes=3 * one)
    with pytest.raises(ConversionError, match="at least 2"):
        Recorder(keep=1)
    with pytest.raises(ConversionError, match="batch of one"):
        samplers.sample(gaussian, SCHEDULE, torch.randn(2, 40, 12), SamplingOptions("ddim", 3), callback=Recorder())


def test_five_seconds_of_128_mels_stay_within_the_target():
    states = Recorder()
    frames = 10 * 44100 // 512
    assert 2 * 100 * 128 * frames * 2 <= 45e6 and states.max_bytes == 256 << 20


def test_levels_are_the_models_own(song):
    model, batch, condition = song
    conditions = {"f0_hz": batch["f0_hz"][0], "voiced": batch["voiced"][0]}
    made = capture(model, condition, SamplingOptions(sampler="ddim", steps=3), conditions, "x", features=False)
    x0 = torch.from_numpy(made.x0_hat[1].astype(np.float32))[None]
    np.testing.assert_allclose(made.log_mel(made.x0_hat[1]).T, model.unscale(x0)[0], atol=1e-5)
    level = made.level_db(made.x0_hat)[1]
    np.testing.assert_allclose(10 ** (level / 20), np.exp(made.log_mel(made.x0_hat[1])), rtol=1e-4)
    assert made.features == {} and made.conditions["voiced"].dtype == bool and made.sample_rate_hz == 16000


def test_a_waveform_trace(tmp_path):
    recorder = Recorder(keep=5)
    result = samplers.sample(
        lambda x, t: 0.9 * x, SCHEDULE, torch.randn(1, 4000), SamplingOptions("dpmpp", 12), clip=1.0, callback=recorder
    )
    made = recorder.trace(result, kind="wave", sample_rate_hz=22050)
    assert made.x_t.shape == (5, 4000) and made.sample_rate_hz == 22050
    again = trace.load(made.save(tmp_path / "wave"))
    np.testing.assert_array_equal(again.x0_hat, made.x0_hat)
    with pytest.raises(ConversionError, match="waveforms"):
        made.log_mel(made.x_t)


def test_files_round_trip_and_hold_no_pickle(tmp_path, song):
    model, batch, condition = song
    made = capture(
        model,
        condition,
        SamplingOptions(sampler="dpmpp", steps=5),
        {"f0_hz": batch["f0_hz"][0]},
        '<b>"ä"</b>',
    )
    path = made.save(tmp_path / "a.npz")
    again = trace.load(path)
    for field in dataclasses.fields(trace.Trace):
        a, b = getattr(made, field.name), getattr(again, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        elif field.name in ("features", "conditions"):
            assert list(a) == list(b) and all((a[k] == b[k]).all() and a[k].dtype == b[k].dtype for k in a)
        else:
            assert a == b


def changed(tmp_path, path, name="b.npz", **arrays):
    with np.load(path) as found:
        content = {key: found[key] for key in found.files} | arrays
    np.savez(tmp_path / name, **{k: v for k, v in content.items() if v is not None})
    return tmp_path / name


def head(**fields):
    start = {"schema": 1, "kind": "mel", "n_calls": 20, "info": {"mel": CONTRACT.to_json()}}
    return np.frombuffer(json.dumps({**start, **fields}).encode(), np.uint8)


def test_untrusted_files_are_refused(tmp_path):
    made, _, _ = recorded()
    path = made.save(tmp_path / "a.npz")
    assert len(trace.load(changed(tmp_path, path, head=head()))) == 20
    spoiled = made.x_t.copy()
    spoiled[3, 2, 1] = np.nan
    cases = {
        "version 2": {"head": head(schema=2)},
        "not finite": {"x_t": spoiled},
        "float32": {"x_t": made.x_t.astype(np.float32)},
        "missing": {"x0_hat": None},
        "unknown array .other": {"other": np.zeros(3)},
        "does not fit": {"x_t": made.x_t[:5]},
        "in order": {"index": made.index[::-1].copy()},
        "is not 1": {"alpha": made.alpha * 1.1},
        "low is not below high": {"low": made.high, "high": made.low},
        "goes beyond": {"high": np.full_like(made.high, 1e30)},
        "mel settings": {"head": head(info={"mel": {"n_mels": 40}})},
        "JSON": {"head": np.frombuffer(b"{", np.uint8)},
        "'head' is missing": {"head": None},
        "damaged": {"x_t": np.array([{"a": 1}], dtype=object)},  # numpy refuses to unpickle it
        "frames": {"condition f0_hz": np.zeros(3)},
        "row for each": {"feature step": np.zeros((3, 4), np.float32)},
        "has kind|its kind": {"head": head(kind="film")},
    }
    for sentence, arrays in cases.items():
        with pytest.raises(ConversionError, match=f"b.npz.*({sentence})"):
            trace.load(changed(tmp_path, path, **arrays))
    (tmp_path / "c.npz").write_bytes(path.read_bytes()[:5000])
    (tmp_path / "d.npz").write_bytes(b"hello")
    for name in ("c.npz", "d.npz", "."):
        with pytest.raises(ConversionError):
            trace.load(tmp_path / name)
    with pytest.raises(ConversionError, match="There is no trace"):
        trace.load(tmp_path / "none.npz")
