"""Truths about ablations: influence, decision times and the distance of two runs in closed form on a linear denoiser; a
factor scaled by 0 is one switched off, by 1 or swapped with itself nothing at all; probing changes no bit; metrics are
computed once per run; equal checkpoints are at distance 0; tables hold the arrays."""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_models import CONTRACT, FEATURES, STATISTICS, tiny, tune
from matplotlib.backends.backend_agg import FigureCanvasAgg

from svclib.analysis import ablation, compare, step_audio, trace
from svclib.analysis.ablation import Excerpt, Intervention, build_condition, cut_excerpt, dropout_warning
from svclib.analysis.plots import ablation as views
from svclib.analysis.recorder import Recorder
from svclib.conversion import metrics
from svclib.conversion.controls import Controls
from svclib.conversion.recognition import Transcript
from svclib.conversion.song import Song
from svclib.features.extract import Features
from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import GuidedDenoiser
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.utils.errors import Cancelled, ConversionError

SCHEDULE = Schedule()
SPREAD = 0.3
MEAN, OTHER = torch.linspace(-0.6, 0.4, 40)[:, None], torch.linspace(0.3, -0.2, 40)[:, None]
LOW, HIGH = np.full(40, -11.5), np.full(40, 1.5)
UNIT_DB = 13.0 / 2 * 20 / math.log(10)  # what 1 in a state scaled to -1 .. 1 is in dB


def linear(mean):
    """The best denoiser for frames drawn from N(mean, SPREAD^2)."""

    def eps(x_t, t):
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        return sigma * (x_t - alpha * mean) / (alpha**2 * SPREAD**2 + sigma**2)

    return eps


def sampled(mean, callback=None, steps=15, frames=12, seed=3):
    recorder = Recorder()
    noise = torch.randn((1, 40, frames), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def watch(step):
        recorder(step)
        if callback:
            callback(step)

    result = samplers.sample(linear(mean), SCHEDULE, noise, SamplingOptions("ddim", steps), callback=watch)
    return recorder.trace(result, low=LOW, high=HIGH, mel=CONTRACT.to_json(), seed=seed)


def of_levels(levels_db, **features):
    """A trace whose guesses are given in dB; the last of them is the result."""
    states = (np.asarray(levels_db) / (20 / math.log(10)) - LOW[:, None]) / (HIGH - LOW)[:, None] * 2 - 1
    n = len(states)
    alpha = np.linspace(0.1, 0.9, n)
    return trace.Trace(
        "mel",
        states.astype(np.float16),
        states.astype(np.float16),
        states[-1].astype(np.float16),
        np.linspace(900, 0, n),
        alpha,
        np.sqrt(1 - alpha**2),
        np.arange(n),
        n,
        {k: np.asarray(v, np.float32) for k, v in features.items()},
        {},
        LOW,
        HIGH,
        {"mel": CONTRACT.to_json()},
    )


# Influence ------------------------------------------------------------------------------------------------------------


def test_local_influence_in_closed_form():
    sizes = []
    probe = ablation.Probe({"other": linear(OTHER), "same": linear(MEAN)}, clip=None)

    def watch(step):
        sizes.append(float(step.eps_hat.norm()))
        probe(step)

    made = sampled(MEAN, watch)
    found = probe.influence(made)
    total = made.alpha**2 * SPREAD**2 + made.sigma**2
    moved = made.sigma * made.alpha / total * math.sqrt(12) * float((MEAN - OTHER).norm())  # of eps, over 12 frames
    np.testing.assert_allclose(found.share["other"], moved / np.array(sizes), rtol=1e-5)
    guess = made.sigma**2 / total  # of x0_hat, in units of the means
    want = guess * UNIT_DB * float((MEAN - OTHER).abs().mean())
    np.testing.assert_allclose(found.mean_db("other"), want, rtol=2e-3)
    want = (guess[:, None] * ((OTHER - MEAN)[:, 0].numpy() * UNIT_DB))[:, :, None] + np.zeros(12)
    np.testing.assert_allclose(found.bins_db["other"], want, rtol=3e-3, atol=0.02)  # with its sign
    assert (found.share["same"] == 0).all() and (found.bins_db["same"] == 0).all()
    assert found.index.tolist() == list(range(15))


def test_global_influence_in_closed_form():
    a, b = sampled(MEAN), sampled(OTHER)
    difference, want = 0.0, []  # of the two x_t, in units of OTHER - MEAN: both runs are linear
    for i in range(15):
        want.append(difference)
        total = a.alpha[i] ** 2 * SPREAD**2 + a.sigma[i] ** 2
        eps = a.sigma[i] * (difference - a.alpha[i]) / total
        x0 = (difference - a.sigma[i] * eps) / a.alpha[i]
        alpha, sigma = (a.alpha[i + 1], a.sigma[i + 1]) if i < 14 else (1.0, 0.0)
        difference = alpha * x0 + sigma * eps
    size = np.sqrt(np.square(a.x_t.astype(float)).sum(axis=(1, 2)))
    found = compare.run_distance(a, b)
    length = math.sqrt(12) * float((OTHER - MEAN).norm())
    np.testing.assert_allclose(found.state_share, np.array(want) * length / size, atol=1e-3)
    assert found.state_share[0] == 0  # the same noise
    want_db = difference * (OTHER - MEAN).numpy() * UNIT_DB
    np.testing.assert_allclose(compare.level_of(b) - compare.level_of(a), want_db + np.zeros(12), atol=0.06)
    same = compare.run_distance(a, a)
    assert same.bins_db.max() == same.spectrum_db.max() == same.state_share.max() == 0
    np.testing.assert_array_equal(compare.run_distance(b, a).bins_db, found.bins_db)


def test_metrics_of_a_run_are_computed_once_however_often_the_step_changes(monkeypatch):
    calls, measure = [], metrics.mcd_db
    monkeypatch.setattr(metrics, "mcd_db", lambda *a, **o: calls.append(o) or measure(*a, **o))
    result = ablation.RunResult("a", sampled(MEAN, steps=5), asked_of(12))
    shown = [views.draw_view("metrics per step", views.ViewRequest({"a": result}, "a", step=i)) for i in (0, 3, 5)]
    assert sum(o.get("warped", False) for o in calls) == 5  # time warping, once for each step
    assert shown[0].rows == shown[1].rows == shown[2].rows and shown[0].figure is not shown[1].figure


def test_probing_costs_what_is_stated_and_changes_no_bit():
    calls = []
    probe = ablation.Probe({n: lambda x, t: calls.append(t) or 0 * x for n in "abc"}, keep=24)
    plain, made = sampled(MEAN, steps=100), sampled(MEAN, probe, steps=100)
    np.testing.assert_array_equal(made.result, plain.result)
    assert len(calls) == 3 * len(ablation.probed_steps(100)) == 72 and len(probe.rows) == 24
    assert probe.rows[0]["index"] == 0 and probe.rows[-1]["index"] == 99
    assert len(ablation.probed_steps(20)) == 20
    assert probe.rows[5]["share"]["a"] == pytest.approx(1)  # it names no noise at all


# Runs of a model ------------------------------------------------------------------------------------------------------


def asked_of(n_frames=90, seed=5, name="tune"):
    log_mel, f0_hz = tune(n_frames, seed)
    voiced = np.ones(n_frames, bool)
    return Excerpt(name, 0.0, log_mel, f0_hz, voiced, f0_hz, voiced, np.full(n_frames, -20, np.float32), np.zeros(9))


@pytest.fixture(scope="module")
def model():
    return tiny()


OPTIONS = ablation.RunOptions(SamplingOptions(sampler="ddim", steps=4, seed=7, precision="fp32"))


@pytest.fixture(scope="module")
def plain(model):
    return ablation.run(model, asked_of(), (), OPTIONS)


@pytest.mark.parametrize("factor", ["content", "melody", "timbre", "loudness"])
def test_scaled_by_0_is_off_and_by_1_is_as_asked(model, plain, factor):
    off = ablation.run(model, asked_of(), [Intervention(factor)], OPTIONS)
    none = ablation.run(model, asked_of(), [Intervention(factor, "scale", 0)], OPTIONS)
    full = ablation.run(model, asked_of(), [Intervention(factor, "scale", 1)], OPTIONS)
    np.testing.assert_array_equal(none.trace.result, off.trace.result)
    np.testing.assert_array_equal(full.trace.result, plain.trace.result)
    assert np.abs(off.trace.result - plain.trace.result).max() > 0.01
    np.testing.assert_array_equal(off.trace.x_t[0], plain.trace.x_t[0])  # the same noise
    twice = ablation.run(model, asked_of(), [Intervention(factor, "scale", 2)], OPTIONS).trace
    prepared = [
        model.prepare(build_condition(model, asked_of(), c), SamplingOptions(precision="fp32"))
        for c in ([], [Intervention(factor)])
    ]
    x, t = torch.randn(1, 40, 90, generator=torch.Generator().manual_seed(0)), 400.0
    on, null = (p(x, t) for p in prepared)
    torch.testing.assert_close(GuidedDenoiser(prepared[0], [(1.0, prepared[1])])(x, t), null + 2 * (on - null))
    assert np.abs(twice.result - plain.trace.result).max() > 0.01


def test_swapped_with_itself_nothing_changes_and_with_another_only_that(model, plain):
    own, other = asked_of(), asked_of(100, 6, "other")
    base = build_condition(model, own)
    for factor in ("content", "melody", "loudness"):
        assert torch.equal(build_condition(model, own, [Intervention(factor, "swap", other=own)]), base)
    assert torch.equal(build_condition(model, own, [Intervention("timbre", "swap", singer="ann")]), base)
    assert torch.equal(build_condition(model, own, [Intervention("melody", "swap", 0)]), base)
    mixed = dataclasses.replace(own, f0_hz=other.f0_hz[:90])
    swapped = build_condition(model, own, [Intervention("melody", "swap", other=other)])
    assert torch.equal(swapped, build_condition(model, mixed)) and not torch.equal(swapped, base)
    mixed = dataclasses.replace(own, log_mel=other.log_mel[:90], source_f0_hz=other.source_f0_hz[:90])
    assert torch.equal(
        build_condition(model, own, [Intervention("content", "swap", other=other)]), build_condition(model, mixed)
    )
    higher = build_condition(model, own, [Intervention("melody", "swap", 12)])
    torch.testing.assert_close(higher, build_condition(model, dataclasses.replace(own, f0_hz=2 * own.f0_hz)))
    sung = ablation.run(model, own, [Intervention("melody", "swap", 12)], OPTIONS)
    np.testing.assert_allclose(sung.trace.conditions["f0_hz"], 2 * own.f0_hz)  # what is drawn is what was asked
    np.testing.assert_array_equal(sung.trace.x_t[0], plain.trace.x_t[0])
    with pytest.raises(ConversionError, match="at least as long"):
        build_condition(model, other, [Intervention("content", "swap", other=own)])


def test_a_probe_in_a_real_run_changes_no_bit_and_no_feature(model, plain):
    probes = [
        Intervention("content"),
        Intervention("timbre", "swap", singer="bea"),
        Intervention("timbre", "swap", singer="ann"),
    ]
    seen = []
    made = ablation.run(
        model,
        asked_of(),
        (),
        dataclasses.replace(OPTIONS, probe=probes),
        progress=lambda f, text: seen.append(f),
    )
    np.testing.assert_array_equal(made.trace.result, plain.trace.result)
    for tap, rows in plain.trace.features.items():
        np.testing.assert_array_equal(made.trace.features[tap], rows)
    assert (made.influence.share["timbre of ann"] == 0).all() and made.notice == ""
    assert (made.influence.share["timbre of bea"] > 0).all() and (made.influence.share["content off"] > 0).all()
    assert seen == sorted(seen) and seen[-1] == 1 and made.influence.bins_db["content off"].shape == (4, 40, 90)
    layers = {f"{kind} {i}" for kind in ("noise", "condition") for i in (1, 2, 3, 4)}
    assert set(made.trace.features) == {"step", *layers}


def test_a_run_can_be_stopped_and_bad_wishes_are_sentences(model):
    seen = []
    with pytest.raises(Cancelled):
        ablation.run(
            model, asked_of(), (), OPTIONS, progress=lambda *a: seen.append(a), cancelled=lambda: len(seen) > 2
        )
    assert len(seen) == 3  # nothing after it
    for words, bad in (
        ("Unknown intervention", lambda: Intervention("vibrato")),
        ("Unknown intervention", lambda: Intervention("content", "melt")),
        ("another singer", lambda: Intervention("timbre", "swap")),
        ("another excerpt", lambda: Intervention("content", "swap")),
        ("number from", lambda: Intervention("content", "scale", math.nan)),
        ("no singer 'cid'", lambda: ablation.run(model, asked_of(), [Intervention("timbre", "swap", singer="cid")])),
    ):
        with pytest.raises(ValueError, match=words):
            bad()


def test_what_the_model_never_saw_is_said(model):
    settings = model.settings
    assert (
        dropout_warning(settings, [Intervention("content")])
        == ""
        == dropout_warning(settings, [Intervention("melody", "swap", 2)])
    )
    assert "0.81%" in dropout_warning(
        settings, [Intervention("content"), Intervention("melody", "scale", 2)]
    )  # 0.1^2 0.9^2
    never = dataclasses.replace(settings, condition_dropout=0.0)
    assert (
        "Out of distribution" in dropout_warning(never, [Intervention("timbre")]) and dropout_warning(never, []) == ""
    )


def test_equal_checkpoints_are_at_distance_0(model, monkeypatch):
    record = {"statistics": STATISTICS}
    other = tiny(seed=1)
    models = {1: model, 5: model, 50: other}
    monkeypatch.setattr(ablation.training, "load_model", lambda run, step: (models[step], record))
    asked = []
    runs = ablation.run_checkpoints("run", [1, 5, 50], lambda m, s: asked.append((m, s)) or asked_of(), OPTIONS)
    assert [m for m, _ in asked] == [model, model, other] and runs[2].label == "training step 50"
    matrix = compare.run_matrix([run.trace for run in runs])
    assert matrix[0, 1] == 0 and matrix[0, 2] == matrix[2, 0] == matrix[1, 2] > 0 and (np.diag(matrix) == 0).all()
    two = [compare.level_of(runs[i].trace, None).astype(float) for i in (0, 2)]
    assert matrix[0, 2] == pytest.approx(np.abs(two[0] - two[1]).mean(), rel=1e-6)
    assert compare.run_distance(runs[0].trace, runs[1].trace).bins_db.max() == 0


# Excerpts -------------------------------------------------------------------------------------------------------------


def test_an_excerpt_is_a_cut_of_the_song():
    n = 400
    log_mel, f0_hz = tune(n)
    loudness = np.linspace(-30, -10, n).astype(np.float32)
    measured = Features(FEATURES, n * 256, f0_hz, np.ones(n, bool), np.full(n, 0.9, np.float32), loudness, log_mel)

    song = Song(Path("s.wav"), "s", 16000, n * 256, np.arange(n * 256, dtype=np.float32), measured)
    made = cut_excerpt(song, None, 1.6, 2.0, Controls(use_loudness_statistics=False, semitone_shift=12.0))
    assert made.start_s == pytest.approx(1.6) and len(made) == 125 and made.audio[0] == 100 * 256
    np.testing.assert_array_equal(made.log_mel, log_mel[100:225])
    np.testing.assert_allclose(made.f0_hz, 2 * f0_hz[100:225], rtol=1e-4)
    np.testing.assert_array_equal(made.source_f0_hz, f0_hz[100:225])
    assert len(cut_excerpt(song, None, 6.0, 2.0, Controls(use_loudness_statistics=False))) == 25
    with pytest.raises(ConversionError, match="holds nothing"):
        cut_excerpt(song, None, 7.0, 2.0, Controls())


# Steps compared -------------------------------------------------------------------------------------------------------


@pytest.mark.case("user 04.3")
def test_no_text_of_a_picture_covers_another_or_is_cut(model):
    """Long names of runs, as of files: titles, labels and legends have their own places in every view."""
    name = "1: the melody of another song, a recording with a long name, dpmpp, 20 steps"
    probe = [Intervention("content"), Intervention("timbre", "swap", singer="bea")]
    probed = ablation.run(model, asked_of(), (), dataclasses.replace(OPTIONS, probe=probe))
    runs = {name: probed, name.replace("1", "2", 1): probed}
    request = views.ViewRequest(runs, *runs)
    for view in views.VIEWS:
        figure = views.draw_view(view, request).figure
        FigureCanvasAgg(figure).draw()
        texts = [figure._suptitle, figure._supxlabel] + [
            text for axis in figure.axes if axis.axison for text in (axis.title, axis.xaxis.label, axis.yaxis.label)
        ]
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t is not None and t.get_text()]
        legends = [*figure.legends, *filter(None, (axis.get_legend() for axis in figure.axes))]
        boxes += [(f"legend {i}", legend.get_window_extent()) for i, legend in enumerate(legends)]
        for i, (a, box) in enumerate(boxes):
            assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, f"{view}: {a} is cut"
            for b, other in boxes[i + 1 :]:
                assert not box.padded(-1).overlaps(other.padded(-1)), f"{view}: {a} over {b}"


def test_the_step_matrix_in_closed_form():
    levels = np.zeros((4, 40, 6)) - 40
    levels[1] += 6.0
    levels[2, :20] -= 3.0
    made = compare.step_matrix(of_levels(levels))
    want = [[0, 6, 1.5, 0], [6, 0, 7.5, 6], [1.5, 7.5, 0, 1.5], [0, 6, 1.5, 0]]
    np.testing.assert_allclose(made, want, atol=0.03)
    np.testing.assert_array_equal(made, made.T)
    assert (np.diag(made) == 0).all()


def test_decision_times_in_closed_form():
    rate = np.array([1.0, 2.0, 4.0])[:, None]  # the error is 24 dB * 2^(-rate i): below 3 dB after 3 / rate steps
    error = 24.0 * 2.0 ** (-np.arange(8)[:, None, None] * rate)
    error[-1] = 0
    levels = np.full((8, 40, 5), -40.0)
    hz = of_levels(levels).contract.centers_hz()
    rows = [np.flatnonzero(x) for x in (hz < 500, (hz >= 500) & (hz < 3000), hz >= 3000)]
    for k, band in enumerate(rows):
        levels[:, band] += error[:, k : k + 1]
    times, shares = compare.decision(of_levels(levels), 3.1)
    for band, first in zip(rows, (3, 2, 1), strict=True):
        assert (times[band] == first).all()
    settled = list(shares.values())
    assert [s.tolist().index(1.0) for s in settled] == [3, 2, 1] and all((np.diff(s) >= 0).all() for s in settled)
    levels[5, 0, 0] += 9.0  # it moved away again
    assert compare.decision(of_levels(levels), 3.1)[0][0, 0] == 6


def test_layer_maps_in_closed_form():
    tap = np.zeros((3, 8))
    tap[0, :4], tap[1, :4], tap[2, :4] = 3.0, 3.0, -3.0  # means of four channels; their spread over time is 0
    taps = {"noise 2": tap, "noise 10": 2 * tap, "condition 2": tap, "step": tap}
    made = of_levels(np.zeros((3, 40, 4)) - 40, **taps)
    names, level = compare.layer_map(made, "noise", "level")
    assert names == ["noise 2", "noise 10"]
    np.testing.assert_allclose(level, [[3, 3, 3], [6, 6, 6]])
    np.testing.assert_allclose(compare.layer_map(made, "condition")[1], [[0, 0, 2]])
    with pytest.raises(ConversionError, match="no 'noise' features"):
        compare.layer_map(of_levels(np.zeros((3, 40, 4))))


# Metrics and files ----------------------------------------------------------------------------------------------------


def test_pitch_metrics_of_a_transposed_step():
    """Steps that sound as asked, 100 cents too high, and not at all."""
    n, hop, rate = 120, 256, 16000
    f0_hz = np.full(n, 220.0, np.float32) * 2 ** (np.sin(np.arange(n) / 9) / 12)
    made = of_levels(np.zeros((3, 40, n)) - 40)
    made.conditions.update(
        f0_hz=f0_hz.astype(np.float32),
        voiced=np.ones(n, bool),
        loudness_db=np.linspace(-30, -10, n).astype(np.float32),
    )

    def sung(cents):
        held = np.repeat(f0_hz, hop) * 2 ** (cents / 1200)
        phase = 2 * np.pi * np.cumsum(held) / rate
        gain = 10 ** (np.repeat(np.linspace(-30, -10, n), hop) / 20)
        return (gain * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)

    sounds = {0: np.zeros(n * hop, np.float32), 1: sung(100), 2: sung(0)}
    found = {m.name: m for m in step_audio.audio_metrics(made, sounds, FEATURES)}
    error, centred = found["F0 RMSE"], found["F0 RMSE, offset removed"]
    assert np.isnan(error.values[0]) and error.frames[0] == 0
    assert error.values[1] == pytest.approx(100, abs=6) and error.values[2] < 12
    assert centred.values[1] < 12 and error.frames[1] > 90 and error.unit == "cents"
    assert found["F0 correlation"].values[1] > 0.98 and found["loudness correlation"].values[2] > 0.98
    assert found["voicing F1"].values[0] == 0 and found["voicing F1"].values[2] > 0.9
    assert "speaker similarity" not in found
    assert all(m.unit and m.meaning and m.reference and len(m.values) == len(m.frames) for m in found.values())


def test_the_error_rate_of_words_is_a_curve_on_request():
    class Scripted:
        name = "scripted"
        texts = iter(["red fox", "red fox", "red xof", "---"])

        def transcribe(self, samples, language=None):
            return Transcript(next(self.texts), "en")

    n, hop = 60, 256
    made = of_levels(np.zeros((3, 40, n)) - 40)
    made.conditions.update(
        f0_hz=np.full(n, 220.0, np.float32), voiced=np.ones(n, bool), loudness_db=np.full(n, -20.0, np.float32)
    )
    sound = np.random.default_rng(0).normal(0, 0.1, n * hop).astype(np.float32)
    sounds = {position: sound for position in (0, 1, 2)}
    found = {m.name: m for m in step_audio.audio_metrics(made, sounds, FEATURES, sound, recognizer=Scripted())}
    curve = found["character error rate"]
    np.testing.assert_allclose(curve.values, [0, 1 / 3, 1])  # two of six letters; none left
    assert curve.positions.tolist() == [0, 1, 2]
    assert "character error rate" not in {m.name for m in step_audio.audio_metrics(made, sounds, FEATURES)}


def test_mel_metrics_and_their_table(tmp_path):
    made = sampled(MEAN, steps=6)
    found = compare.mel_metrics(made, made.level_db(made.result) + 6.0)
    by_name = {m.name: m for m in found}
    assert by_name["distance to the source"].values[-1] == pytest.approx(6, abs=0.05)
    assert by_name["MCD to the result, time-warped"].values[-1] == pytest.approx(0, abs=1e-2)
    assert (by_name["MCD to the result, time-warped"].values <= by_name["MCD to the result"].values + 1e-9).all()
    assert all((m.frames == 12).all() for m in found)
    head, rows = compare.metric_table(made, found)
    path = compare.save_csv(tmp_path, '=a/../b "c"', head, rows)
    again = compare.save_csv(tmp_path, '=a/../b "c"', head, rows)
    assert path.parent == again.parent == tmp_path and path != again and path.suffix == ".csv"
    with path.open(encoding="utf-8", newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == head and len(read) == 7
    for column, metric in zip(range(3, len(head), 2), found, strict=True):
        np.testing.assert_array_equal([float(row[column]) for row in read[1:]], metric.values)
    np.testing.assert_array_equal([float(row[1]) for row in read[1:]], made.t)
    matrix = compare.step_matrix(made)
    path = compare.save_csv(tmp_path, "matrix", *compare.matrix_table(list("abcdef"), matrix))
    with path.open(newline="") as file:
        np.testing.assert_array_equal([list(map(float, row[1:])) for row in list(csv.reader(file))[1:]], matrix)
    kept = [compare.save_file(tmp_path, "run", ".npz", made.save) for _ in range(2)]
    assert [p.name for p in kept] == ["run.npz", "run 2.npz"]
    np.testing.assert_array_equal(trace.load(kept[1]).x0_hat, made.x0_hat)
