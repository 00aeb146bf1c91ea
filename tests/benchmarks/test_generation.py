"""Truths about measures of generated sets: closed forms, scipy; and about the classifier under them."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import soundfile
import torch
import toy

from lib import classifier, generation
from lib.classifier import Clips, Outputs
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled, ConversionError, ModelError

RATE_HZ = 8000


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one_hot(labels, n=10):
    return np.eye(n)[labels]


# Frechet distance -----------------------------------------------------------------------------------------------------


def exactly(mean, covariance, n, seed=0):
    """A set whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = x - x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_in_closed_form():
    a_std, b_std = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 0.1, 1.0])
    a_mean, b_mean = np.zeros(4), np.array([1.0, -2.0, 0.0, 0.5])
    a, b = exactly(a_mean, np.diag(a_std**2), 50), exactly(b_mean, np.diag(b_std**2), 90, seed=1)
    expected = np.sum((a_mean - b_mean) ** 2) + np.sum((a_std - b_std) ** 2)  # variances along common axes
    assert generation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert generation.frechet_distance(a, a + 3.0) == pytest.approx(4 * 9.0, rel=1e-10)
    assert generation.frechet_distance(a, 2.5 * a) == pytest.approx(1.5**2 * np.sum(a_std**2), rel=1e-10)
    assert generation.frechet_distance(a, a[::-1]) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_is_scipys_matrix_root():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(300, 20)) @ rng.normal(size=(20, 20)) + rng.normal(size=20)
    b = rng.normal(size=(200, 20)) @ rng.normal(size=(20, 20))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t) - 2 * np.trace(scipy.linalg.sqrtm(s @ t)).real
    assert generation.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert generation.frechet_distance(a, b) == pytest.approx(generation.frechet_distance(b, a), rel=1e-12)


def test_frechet_distance_of_fewer_examples_than_features():
    flat = np.random.default_rng(0).normal(size=(8, 30))  # covariances of rank 7: no square root by iteration
    assert generation.frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-12)
    dead = np.zeros((8, 30))
    assert generation.frechet_distance(flat, dead) == pytest.approx(
        np.sum(flat.mean(0) ** 2) + flat.var(axis=0, ddof=1).sum(), rel=1e-12
    )
    for bad in (flat[:1], flat[:, :9], np.full((8, 30), np.nan)):
        with pytest.raises(ModelError, match="no Frechet distance; give at least two"):
            generation.frechet_distance(flat, bad)


# Scores of probabilities ----------------------------------------------------------------------------------------------


def test_scores_of_certain_and_of_clueless_classifiers():
    certain, clueless = one_hot(np.arange(100) % 10), np.full((100, 10), 0.1)
    assert generation.inception_score(certain) == pytest.approx(10.0, rel=1e-12)
    assert generation.inception_score(clueless) == pytest.approx(1.0, rel=1e-12)
    assert generation.inception_score(one_hot(np.zeros(50, int))) == pytest.approx(1.0, rel=1e-12)
    assert generation.inception_score(one_hot(np.arange(60) % 3)) == pytest.approx(3.0, rel=1e-12)
    assert generation.modified_inception_score(clueless) == pytest.approx(1.0, rel=1e-12)
    assert generation.modified_inception_score(certain) == np.inf
    assert generation.am_score(certain, certain) == pytest.approx(0.0, abs=1e-12)
    assert generation.am_score(certain, clueless) == pytest.approx(np.log(10), rel=1e-12)
    assert generation.am_score(certain, one_hot(np.arange(60) % 5)) == np.inf  # five labels never come
    half = one_hot(np.repeat(np.arange(10), [5, 15] * 5))  # certain, but every second label too rare
    shares = np.tile([0.05, 0.15], 5)
    assert generation.am_score(certain, half) == pytest.approx(np.sum(0.1 * np.log(0.1 / shares)), rel=1e-12)


def test_scores_of_a_classifier_of_one_sureness():
    """Each clip: probability q for its label, the rest shared: everything follows from q."""
    q, k = 0.91, 10
    p = np.full((200, k), (1 - q) / (k - 1))
    p[np.arange(200), np.arange(200) % k] = q
    rest = (1 - q) / (k - 1)
    entropy = -q * np.log(q) - (k - 1) * rest * np.log(rest)
    assert generation.inception_score(p) == pytest.approx(k * np.exp(-entropy), rel=1e-12)
    pair = (q - rest) * np.log(q / rest)  # KL of clips of two labels; 0 within one; 9 of 10 pairs differ in label
    assert generation.modified_inception_score(p) == pytest.approx(np.exp(0.9 * pair), rel=1e-12)
    assert generation.am_score(p, p) == pytest.approx(entropy, rel=1e-12)


def test_scores_are_the_definitions_pair_by_pair():
    rng = np.random.default_rng(0)
    real, made = softmax(2 * rng.normal(size=(30, 6))), softmax(2 * rng.normal(size=(40, 6)) + np.arange(6) / 3)
    kl = scipy.stats.entropy
    assert generation.inception_score(made) == pytest.approx(np.exp(np.mean([kl(p, made.mean(0)) for p in made])))
    pairs = np.mean([kl(p, q) for p in made for q in made])
    assert generation.modified_inception_score(made) == pytest.approx(np.exp(pairs), rel=1e-12)
    expected = kl(real.mean(0), made.mean(0)) + np.mean([kl(p) for p in made])
    assert generation.am_score(real, made) == pytest.approx(expected, rel=1e-12)
    for bad in (2 * made, -made, made[:0]):
        with pytest.raises(ConversionError, match="sum to 1"):
            generation.inception_score(bad)


# Bins -----------------------------------------------------------------------------------------------------------------


def test_two_proportions_agree_with_the_chi_square_test():
    """Pooled z squared is Pearson's chi-square of the 2 x 2 table without correction."""
    for a, b in ((30, 12), (5, 6), (100, 140)):
        table = [[a, 300 - a], [b, 250 - b]]
        z = generation.two_proportions_z(np.array([a]), 300, np.array([b]), 250)[0]
        assert z**2 == pytest.approx(scipy.stats.chi2_contingency(table, correction=False).statistic, rel=1e-12)
        assert np.sign(z) == np.sign(a / 300 - b / 250)
    assert generation.two_proportions_z(np.array([0, 9]), 9, np.array([0, 5]), 5).tolist() == [0.0, 0.0]
    assert scipy.stats.norm.cdf(generation.SIGNIFICANT_Z) == pytest.approx(0.975, abs=1e-7)


def islands(counts, seed=0):
    """Tight islands far from each other, so many points on each."""
    rng = np.random.default_rng(seed)
    places = 100.0 * np.stack([np.arange(len(counts)), np.arange(len(counts)) ** 2], axis=1)
    return np.repeat(places, counts, axis=0) + 0.01 * rng.normal(size=(sum(counts), 2))


def test_bins_that_differ_are_counted():
    real = islands([100, 100, 100, 100])
    # two bins, each of whole islands whatever the seed draws: the one with islands 3 and 4 or only 4 has lost clips
    for made, expected in (([100, 100, 100, 100], 0), ([104, 98, 101, 97], 0), ([400, 0, 0, 0], 2)):
        assert generation.different_bins(real, islands(made, seed=1), 2) == expected
    # one bin of an island each is found when every island starts as a centre: 4 real clips, one on each
    few = islands([1, 1, 1, 1])
    assert generation.different_bins(few, islands([50, 50, 50, 50], 1), 4) == 0
    many = np.concatenate([few] * 50)
    start = next(s for s in range(99) if len({i % 4 for i in np.random.default_rng(s).choice(200, 4, False)}) == 4)
    assert generation.different_bins(many, islands([50, 50, 50, 50], 1), 4, start) == 0
    assert generation.different_bins(many, islands([70, 30, 50, 50], 1), 4, start) == 2
    assert generation.different_bins(many, islands([200, 0, 0, 0], 1), 4, start) == 4
    with pytest.raises(ConversionError, match="3 real .* 4 bins"):
        generation.different_bins(few[:3], few, 4)


def test_by_chance_one_bin_in_twenty_differs():
    rng = np.random.default_rng(0)
    shares = [
        generation.different_bins(*rng.normal(size=(2, 1000, 3)), n_bins=20, seed=s) / 20 for s in range(30)
    ]  # a thousand clips from one source on either side; cells fitted to one side add a little
    assert 0.02 < np.mean(shares) < 0.09
    moved = generation.different_bins(rng.normal(size=(1000, 3)), rng.normal(size=(1000, 3)) + 2.0, 20)
    assert moved > 15


# All of them ----------------------------------------------------------------------------------------------------------


def heard(labels, seed=0, sureness=6.0):
    """Made-up features around a place for each label, and probabilities that fit."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    features = 4 * one_hot(labels, 64) + rng.normal(size=(len(labels), 64))
    return Outputs(features, softmax(sureness * one_hot(labels, 2)), ("no", "yes"))


def test_measure_puts_the_single_measures_together():
    numbers = np.arange(60) % 2
    real, made = heard(numbers), heard(numbers, seed=1, sureness=4.0)
    names = [("no", "yes")[i] for i in numbers]
    asked = names[:45] + ["no"] * 15
    found = generation.measure(real, made, asked, names, n_bins=5)
    assert found["clips"] == 60 and found["bins"] == 5 and found["ndb_share"] == found["ndb"] / 5
    assert found["accuracy"] == np.mean([a == b for a, b in zip(names, asked, strict=True)])
    assert found["fid"] == generation.frechet_distance(real.features, made.features)
    assert found["is"] == generation.inception_score(made.probabilities)
    assert found["mis"] == generation.modified_inception_score(made.probabilities)
    assert found["am"] == generation.am_score(real.probabilities, made.probabilities)
    assert found["fid_class"] is None  # 30 clips of each
    assert generation.measure(real, real, n_bins=5)["ndb"] == 0 and generation.measure(real, real)["accuracy"] is None
    with pytest.raises(ConversionError, match="60 real and 59 made"):
        generation.measure(real, made[:59])
    with pytest.raises(ConversionError, match="3 labels"):
        generation.measure(real, dataclasses.replace(made, names=("a", "b", "c")))
    lines = generation.table({"model": found}).splitlines()
    assert lines[2].startswith("| model | 60 | 86.7 % | ") and "| - |" in lines[2] and "(K = 5)" in lines[2]


def test_fid_of_a_class_needs_two_hundred_clips():
    numbers = np.arange(400) % 2
    names = [("no", "yes")[i] for i in numbers]
    real, made = heard(numbers), heard(numbers, seed=1)
    made.features[numbers == 1] += 1.0  # one label is off by 64, the other by chance only
    found = generation.measure(real, made, names, names)["fid_classes"]
    assert found["no"] == generation.frechet_distance(real.features[::2], made.features[::2])
    assert found["yes"] - found["no"] == pytest.approx(64, rel=0.2)
    whole = generation.measure(real, made, names, names)
    assert whole["fid_class"] == pytest.approx((found["yes"] + found["no"]) / 2)
    assert whole["fid_class_std"] == pytest.approx(abs(found["yes"] - found["no"]) / 2)
    assert f"{whole['fid_class']:.3g} ±" in generation.table({"model": whole})
    with pytest.raises(ConversionError, match="'no' has 199 real and 199 made clips.*at least 200"):
        generation.fid_of_classes(real[:399][1:], names[1:399], made[1:399], names[1:399])


def test_balanced_draws_are_disjoint_and_balanced():
    labels = ["a"] * 7 + ["b"] * 9 + ["c"] * 6
    first, second = generation.balanced(labels, 3, parts=2, seed=4)
    assert not set(first) & set(second)
    for part in (first, second):
        assert sorted(labels[i] for i in part) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert np.array_equal(first, generation.balanced(labels, 3, parts=2, seed=4)[0])
    assert not np.array_equal(first, generation.balanced(labels, 3, parts=2, seed=5)[0])
    with pytest.raises(ConversionError, match="'a' has 7 clips; 2 x 4"):
        generation.balanced(labels, 4, parts=2)


# The classifier -------------------------------------------------------------------------------------------------------


def tones(n, seed=0):
    """Low, middle and high tones of a fifth of a second with a little noise."""
    rng = np.random.default_rng(seed)
    kinds = [("high", 2500.0), ("low", 300.0), ("middle", 900.0)]
    t = np.arange(1600) / RATE_HZ
    sounds = [
        rng.uniform(0.05, 0.5) * np.sin(2 * np.pi * kinds[i % 3][1] * rng.uniform(0.8, 1.25) * t)
        + 0.001 * rng.normal(size=1600)
        for i in range(n)
    ]
    names = tuple(kinds[i % 3][0] for i in range(n))
    return Clips(np.array(sounds, np.float32), names, tuple(map(str, range(n))), RATE_HZ)


@pytest.fixture(scope="module")
def model():
    return classifier.train(tones(48), epochs=10, batch_size=8)


def test_a_classifier_learns_and_the_same_seed_gives_the_same(model):
    other = tones(30, seed=9)
    found = classifier.classify(model, other.audio, RATE_HZ)
    assert classifier.accuracy(found, other.labels) == 1.0
    assert found.features.shape == (30, 64) and found.features.dtype == np.float64
    logits = found.features @ model.last.weight.double().numpy().T + model.last.bias.double().numpy()
    np.testing.assert_allclose(found.probabilities, softmax(logits), atol=1e-6)
    before = torch.get_rng_state()
    few = [classifier.train(tones(12), seed=s, epochs=1, batch_size=4).state_dict() for s in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(few[0][k], few[1][k]) for k in few[0])
    assert not torch.equal(few[0]["last.weight"], few[2]["last.weight"])


def test_level_and_company_of_a_clip_do_not_count(model):
    sounds = tones(6, seed=3).audio
    together = classifier.classify(model, sounds, RATE_HZ)
    softer = classifier.classify(model, 0.1 * sounds, RATE_HZ)
    np.testing.assert_allclose(softer.features, together.features, atol=1e-4)
    alone = classifier.classify(model, sounds[2:3], RATE_HZ)
    np.testing.assert_allclose(alone.features, together.features[2:3], atol=1e-5)
    ragged = [sounds[0], np.concatenate([sounds[1], sounds[0]]), sounds[2][:800]]
    whole = classifier.classify(model, np.stack([classifier.fit(x, 1600) for x in ragged]), RATE_HZ)
    np.testing.assert_array_equal(classifier.classify(model, ragged, RATE_HZ).features, whole.features)
    assert np.isfinite(classifier.classify(model, np.zeros((1, 1600), np.float32), RATE_HZ).features).all()


def test_variations_stay_inside_what_is_said():
    click = torch.zeros(200, 4000)
    click[:, 2000] = 1.0
    generator = torch.Generator().manual_seed(0)
    moved = classifier.varied(click, RATE_HZ, generator)
    place_s = (moved.abs().argmax(dim=1) - 2000) / RATE_HZ
    assert -0.03 <= float(place_s.min()) < -0.02 and 0.09 < float(place_s.max()) <= 0.1
    moved[torch.arange(200), moved.abs().argmax(dim=1)] = 0.0
    noise_db = 20 * torch.log10(moved.std(dim=1) / click[0].square().mean().sqrt())
    assert -61 < float(noise_db.min()) < -58 and -17 < float(noise_db.max()) < -14


def test_a_classifier_travels_and_a_damaged_file_is_refused(model, tmp_path):
    path = classifier.save(tmp_path / "ear.safetensors", model, {"accuracy": 1.0})
    opened, info = classifier.load(path)
    sounds = tones(5, seed=5).audio
    a, b = (classifier.classify(m, sounds, RATE_HZ) for m in (model, opened))
    assert np.array_equal(a.probabilities, b.probabilities) and b.names == ("high", "low", "middle")
    assert info == {"accuracy": 1.0} and opened.settings == model.settings
    assert classifier.save(path, model).name == "ear 2.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("bad", "text", "absent"):
        with pytest.raises(ModelError, match=f"'{name}.safetensors' cannot be used: .*Train a new one"):
            classifier.load(tmp_path / f"{name}.safetensors")
    other = classifier.Classifier(classifier.ClassifierSettings(("a", "b"), RATE_HZ, 0.2))
    other.settings = model.settings
    with pytest.raises(ModelError, match="another network"):
        classifier.load(classifier.save(tmp_path / "other.safetensors", other))


def test_what_cannot_be_classified_is_refused_in_a_sentence(model):
    with pytest.raises(ModelError, match="at 16000 Hz, .* trained at 8000 Hz"):
        classifier.classify(model, np.zeros((1, 9)), 16000)
    for sounds in (np.zeros((0, 9)), np.zeros((2, 9, 2)), np.full((1, 9), np.nan)):
        with pytest.raises(ModelError, match="one channel of finite samples"):
            classifier.classify(model, sounds, RATE_HZ)
    with pytest.raises(ModelError, match="2 labels were given for 1 clips"):
        classifier.accuracy(classifier.classify(model, np.zeros((1, 9)), RATE_HZ), ["low", "low"])
    with pytest.raises(ModelError, match="2 to 1000 different"):
        classifier.train(Clips(np.zeros((2, 4000), np.float32), ("a", "a"), ("x", "y"), RATE_HZ))
    with pytest.raises(Cancelled):
        classifier.train(tones(12), cancelled=lambda: True)


def test_digits_come_with_labels_and_their_own_split(data_dir):
    held = classifier.clips(data_dir / "digits", "validation")
    assert len(held) == 300 and held.audio.shape == (300, 8000)
    assert {name.split("_")[-1] for name in held.names} == {f"{take}.wav" for take in range(5)}
    assert all(name.startswith(label) for name, label in zip(held.names, held.labels, strict=True))
    with pytest.raises(ModelError, match="no split 'test'"):
        classifier.clips(data_dir / "digits", "test")
    every = classifier.clips(data_dir / "digits", validation="")  # nothing is held out where all are wanted
    assert set(held.names) < set(every.names)


@pytest.mark.slow
def test_the_digits_classifier_knows_the_held_out_takes(data_dir):
    model = classifier.train(data_dir / "digits")
    held = classifier.clips(data_dir / "digits", "validation")
    assert classifier.accuracy(classifier.classify(model, held.audio, RATE_HZ), held.labels) >= 0.97


# The benchmark --------------------------------------------------------------------------------------------------------


def test_the_benchmark_goes_on_where_it_was_and_tells_the_same(tmp_path, capsys):
    import digits

    for label, kind in (("3", 0), ("7", 1)):
        for take in (0, 1, 5, 6, 7, 8):
            sound = tones(3, seed=take).audio[kind]
            soundfile.write(_made(tmp_path / "digits") / f"{label}_anna_{take}.wav", sound, RATE_HZ)
    settings = DiffWaveSettings(
        condition="label", labels=("3", "7"), channels=4, n_layers=2, n_steps=3, beta_last=0.5, fast_etas=()
    )
    model = settings.build(toy.FEATURES)
    path = instrument.save(tmp_path / "voice.zip", model, toy.FEATURES, toy.STATISTICS, created="2026-11-21")
    out = tmp_path / "out"
    command = [str(tmp_path), str(path), str(out), "--per-label", "2", "--batch", "2", "--epochs", "1"]
    assert digits.main([*command, "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "of 4 test clips" in told and "clips: 3 2, 7 2" in told and "2 clips of each label" in told
    report = filesystem.read_json(out / "digits.json")
    assert list(report["tables"]) == ["2"] and report["per_label"]["7"]["clips"] == 2
    assert set(report["tables"]["2"]) == {"model", "other training clips", "test set"}
    assert report["classifier"]["train_clips"] == 8 and {r["clips"] for r in report["tables"]["2"].values()} == {4}
    assert (out / "digits.png").read_bytes()[:4] == b"\x89PNG"
    made = sorted(out.glob("made-*/[37]_*.wav"))
    assert [p.name for p in made] == ["3_0000.wav", "3_0001.wav", "7_0000.wav", "7_0001.wav"]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in made}
    expected = diffwave_uses.generate(model.eval(), RATE_HZ, 2, "7", SamplingOptions(seed=10**4))[1]
    heard = soundfile.read(made[3])[0]
    np.testing.assert_allclose(heard, expected * min(1.0, 0.999 / np.abs(expected).max()), atol=1e-6)
    made[3].unlink()
    (out / "digits.json").unlink()
    assert digits.main([*command, "--device", "cpu"]) == 0
    assert filesystem.read_json(out / "digits.json") == report
    assert made[3].read_bytes() == before[made[3]][0]
    assert all(p.stat().st_mtime_ns == before[p][1] for p in made[:3])
    with pytest.raises(SystemExit):
        digits.main([*command[:3], "--per-label", "1"])
    assert "at least two clips" in capsys.readouterr().err


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder
