"""Truths: the mean of weights by hand; a blend with itself, or with a share of 0, sounds as the instrument alone;
instruments that have no mean are refused, each with its reason."""

import dataclasses
import json

import diffusion_files
import numpy as np
import panels
import pytest
import torch
from explaining import assert_explains
from panels import STATISTICS

from svclib.__main__ import main
from svclib.conversion import pipeline, song
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.utils.errors import ModelError


def relative(folder, name, seed, base, high=70.0, **changes):
    """An instrument whose weights are those of the base and a little noise, as after a training from it."""
    model = instrument.build_model(dataclasses.replace(base.model.settings, **changes), base.features, base.statistics)
    if not changes:
        generator = torch.Generator().manual_seed(seed)
        state = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in base.model.state_dict().items()}
        model.load_state_dict(state)
    statistics = {**base.statistics, "f0_midi": {**base.statistics["f0_midi"], "mean_note": high}}
    path = folder / f"{name}.zip"
    terms = {"licence": f"licence of {name}", "singers": [name]}
    return instrument.open(instrument.save(path, model, base.features, statistics, created="2026-11-30", **terms))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base, and two instruments made of it."""
    folder = tmp_path_factory.mktemp("family")
    base = instrument.open(panels.make_instrument(folder, "base"))
    return folder, base, relative(folder, "ann", 1, base), relative(folder, "bea", 2, base, 50.0)


def test_weights_and_statistics_are_the_mean_by_share(family):
    _, _, ann, bea = family
    made = instrument.blend([(ann, 3), (bea, 1.0)])
    for key, value in made.model.state_dict().items():
        wanted = 0.75 * ann.model.state_dict()[key] + 0.25 * bea.model.state_dict()[key]
        torch.testing.assert_close(value, wanted, atol=1e-6, rtol=0)
    assert made.statistics["f0_midi"]["mean_note"] == pytest.approx(65.0)
    assert made.statistics["loudness_quantiles_db"] == pytest.approx(STATISTICS["loudness_quantiles_db"])
    assert (made.name, made.kind) == ("ann 0.75 + bea 0.25", "ddsp")
    assert made.sha256 == f"{ann.sha256} 0.75 + {bea.sha256} 0.25"
    assert made.info["licence"].splitlines() == ["licence of ann", "licence of bea"]
    assert not made.model.training and not any(p.requires_grad for p in made.model.parameters())


def test_a_blend_of_one_voice_sounds_as_it_does_alone(family):
    folder, _, ann, bea = family
    loaded = song.load_song(panels.make_song(folder / "song.wav"), FeatureSettings(f0_method="swift"))

    def sound(voice):
        return pipeline.convert(voice, loaded).audio

    alone = sound(ann)
    np.testing.assert_allclose(sound(instrument.blend([(ann, 0.5), (ann, 0.5)])), alone, atol=1e-5)
    np.testing.assert_allclose(sound(instrument.blend([(ann, 1), (bea, 0)])), alone, atol=1e-5)
    half = sound(instrument.blend([(ann, 1), (bea, 1)]))
    assert 0 < np.abs(half - alone).max() and 0 < np.abs(half - sound(bea)).max()


def test_a_diffusion_blend_drops_the_codebook_and_samples_by_the_first(tmp_path):
    base = instrument.open(diffusion_files.make_instrument(tmp_path))
    one, other = (relative(tmp_path, name, seed, base) for seed, name in enumerate(("one", "two")))
    one.model.add_codebook([np.random.default_rng(0).normal(size=(50, one.model.content.dims))] * 2, 8)
    other.model.settings = dataclasses.replace(other.model.settings, temperature=0.3)
    made = instrument.blend([(one, 0.6), (other, 0.4)])
    assert made.model.codebook is None and made.model.settings.temperature == base.model.settings.temperature
    assert made.model.singers == base.model.singers


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"n_harmonics": 7}, ("n_harmonics", "7", "6")), ({"rnn_channels": 9}, ("rnn_channels", "9", "8"))],
)
def test_other_architectures_are_refused(family, changes, words):
    folder, base, ann, _ = family
    other = relative(folder, "other", 3, base, **changes)
    with pytest.raises(ModelError) as caught:
        instrument.blend([(ann, 1), (other, 1)])
    assert_explains(caught.value, remedy="one architecture")
    assert all(word in str(caught.value) for word in ("'other'", *words))


def test_other_bases_and_shares_of_nothing_are_refused(family, tmp_path):
    _, _, ann, bea = family
    foreign = instrument.open(panels.make_instrument(tmp_path, "alone", seed=5))
    with pytest.raises(ModelError) as caught:
        instrument.blend([(ann, 1), (foreign, 1)])
    assert_explains(caught.value, remedy="--init")
    for shares in ((0, 0), (1, -1), (float("nan"), 1), (float("inf"), 1)):
        with pytest.raises(ModelError):
            instrument.blend(list(zip((ann, bea), shares, strict=True)))


def test_on_the_command_line(family, tmp_path, capsys):
    folder, *_ = family
    panels.make_song(tmp_path / "song.wav")
    flags = ["--instrument", f"{folder / 'ann.zip'}=0.6", "--instrument", f"{folder / 'bea.zip'}=0.4"]
    flags += ["--input", str(tmp_path / "song.wav"), "--f0", "swift"]
    assert main(["convert", *flags, "--out", str(tmp_path / "made.wav")]) == 0
    written = json.loads((tmp_path / "made.wav.json").read_text())
    assert written["instrument"]["name"] == "ann 0.6 + bea 0.4" and " 0.4" in written["instrument"]["sha256"]
    assert main(["convert", *flags[:3], f"{folder / 'bea.zip'}=x", *flags[4:], "--out", str(tmp_path / "b.wav")]) != 0
    assert "--instrument" in capsys.readouterr().err


def test_means_of_statistics_are_of_what_all_have():
    """Numbers are averaged by their shares, text is the first one's, entries that one lacks are left out."""
    made = instrument._mean([{"a": [1.0, 0.0], "name": "x", "b": 2.0}, {"a": [3.0, 4.0], "name": "y"}], [0.25, 0.75])
    assert made == {"a": [2.5, 3.0], "name": "x"}
