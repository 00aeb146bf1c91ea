"""Truths about looking at a trained model: every kind of preset can be heard again on what it never saw, as notebook 02
does it, with the loss that its validation gives."""

import numpy as np
import pytest
from explaining import assert_explains
from panels import make_instrument, make_song

import svclib
from svclib.analysis import ddsp_inspection
from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.models import instrument
from svclib.notebooks import prepare
from svclib.utils.errors import ConversionError

PRESETS = ("diffusion_small", "diffwave_small")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspected")
    (folder / "ann").mkdir()
    for i in range(4):
        make_song(folder / "ann" / f"{i}.wav", 200.0 + 20 * i, 1.5)
    chosen = prepare.preset(f"{PRESETS[0]}+tiny")
    return dataset.prepare(find_recordings([folder / "ann"]), folder / "data", chosen.features)


@pytest.mark.parametrize("name", PRESETS)
def test_every_kind_of_model_is_reconstructed_in_notebook_02(data, name):
    chosen = prepare.preset(f"{name}+tiny")
    model = instrument.build_model(chosen.model, data.settings, data.statistics, 0)
    made = ddsp_inspection.reconstruct(model, data, seconds=0.6)
    index = data.indices("validation")[0]
    assert made.name == data.recordings[index]["name"]
    np.testing.assert_array_equal(made.original, data.audio(index, 0, len(made.original)))
    assert len(made.reconstructed) == len(made.original) and np.isfinite(made.reconstructed).all()
    n_frames = len(made.original) // data.hop_samples
    window = data.validation_batches(1, n_frames)[0]
    assert made.loss == pytest.approx(float(model.validation_loss(window).detach()), rel=1e-5)
    assert ddsp_inspection.z_paths(model, data) == {}


@pytest.mark.case("user 04.13")
def test_what_an_instrument_plays_is_refused_beyond_the_end_of_the_song(tmp_path):
    make_instrument(tmp_path, "voice")
    make_song(tmp_path / "a.wav", 220.0, 1.0)
    voice = svclib.load_instrument(tmp_path / "voice.zip")
    result = svclib.convert(voice, svclib.load_song(tmp_path / "a.wav", voice.features))
    assert len(ddsp_inspection.synth_controls(voice, result, 0.5, 9.0).f0_hz) == pytest.approx(0.5 * 16000 / 64, abs=2)
    with pytest.raises(ConversionError) as found:
        ddsp_inspection.synth_controls(voice, result, 7.0, 1.0)
    assert_explains(found.value, remedy="1.0 s long")
