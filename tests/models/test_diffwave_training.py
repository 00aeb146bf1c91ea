"""DiffWave through the foundation's training on real recordings: presets, resuming, instruments, what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave.network import DiffWaveNet
from svclib.training import api as training
from svclib.utils import config
from svclib.utils.errors import ModelError

FEW = ["steps=3", "save_every_steps=2", "validate_every_steps=3", "segment_s=0.2"]


def recordings(folder, names, data, into, pattern=None):
    into.mkdir()
    for name in names:
        (into / name).write_bytes((data / folder / name).read_bytes())
    return find_recordings([into], labels=pattern)


@pytest.fixture(scope="module")
def digits(data_dir, tmp_path_factory):
    """Eight real digits of one speaker, prepared as diffwave_digits says."""
    home = tmp_path_factory.mktemp("digits")
    names = [f"{digit}_jackson_{take}.wav" for digit in (3, 7) for take in (0, 5, 6, 7)]
    found = recordings("digits", names, data_dir, home / "audio", "{label}_{singer}_{take}")
    return dataset.prepare(found, home / "data", config.load("diffwave_digits").features, validation="*_[0-4].wav")


@pytest.fixture(scope="module")
def voice(data_dir, tmp_path_factory):
    """Three real phrases, prepared as diffwave says."""
    home = tmp_path_factory.mktemp("voice")
    names = sorted(p.name for p in (data_dir / "voices" / "kathleen_sung").glob("*.flac"))[:3]
    found = recordings("voices/kathleen_sung", names, data_dir, home / "audio")
    return dataset.prepare(found, home / "data", config.load("diffwave").features)


def test_presets_have_the_published_sizes():
    base, digits = config.load("diffwave"), config.load("diffwave_digits")
    model = base.model.build(base.features)
    assert isinstance(model.net, DiffWaveNet)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == 2_855_425
    assert base.training.learning_rate == 2e-4 and base.training.batch_size == 16
    # one output sample sees a digit from end to end
    for preset in (digits, config.load("diffwave_digits_full")):
        model = preset.model
        halo = sum(2 ** (i % model.dilation_cycle) for i in range(model.n_layers))
        samples = preset.training.segment_s * preset.features.sample_rate_hz
        assert (2 * halo + 1) * model.squeeze > samples == round(model.sound_s * preset.features.sample_rate_hz)
    assert (model.channels, model.n_layers, model.dilation_cycle, model.squeeze) == (256, 36, 12, 1)


def test_a_vocoder_trains_resumes_and_travels(voice, tmp_path):
    preset = config.load(["diffwave", "tiny"], FEW)
    whole = training.train(voice, tmp_path / "whole", preset, device="cpu")
    assert whole.step == 3 and np.isfinite(whole.validation_loss)
    training.train(voice, tmp_path / "parts", preset, steps=2, device="cpu")
    training.train(voice, tmp_path / "parts", preset, device="cpu")
    a, b = (training.load_model(tmp_path / name, "last")[0] for name in ("whole", "parts"))
    torch.testing.assert_close(a.state_dict(), b.state_dict(), atol=0, rtol=0)
    path = training.export(tmp_path / "whole", tmp_path / "vocoder.zip", which="last")
    opened = instrument.open(path)
    assert opened.kind == "diffwave" and opened.info["loss"]["prediction"].startswith("noise, l2, 50 steps")
    torch.testing.assert_close(opened.model.state_dict(), a.state_dict(), atol=0, rtol=0)
    mel = voice.features(0, 10, 12).log_mel
    sounds = [diffwave_uses.vocode(m, mel, options=SamplingOptions(seed=4)) for m in (a, opened.model)]
    assert sounds[0].shape == (12 * 256,) and np.array_equal(*sounds)
    opened.model.settings = dataclasses.replace(opened.model.settings, channels=9)  # weights of another architecture
    other = instrument.save(
        tmp_path / "other.zip", opened.model, opened.features, opened.statistics, created="2026-11-21"
    )
    with pytest.raises(ModelError, match="made for another model version"):
        instrument.open(other)


def test_digits_train_with_their_labels(digits, tmp_path):
    assert digits.labels == ["3", "7"] and digits.singers == ["jackson"]
    assert sorted({r["name"][-5] for r in digits.recordings if r["split"] == "validation"}) == ["0"]
    preset = config.load(["diffwave_digits", "tiny"], [*FEW, "labels=('3', '7')"])
    training.train(digits, tmp_path / "run", preset, device="cpu")
    opened = instrument.open(training.export(tmp_path / "run", tmp_path / "digits.zip", which="last"))
    assert opened.model.settings.labels == ("3", "7")
    made = [diffwave_uses.generate(opened.model, 800, 1, label, fast=True) for label in ("3", "7")]
    assert not np.array_equal(*made) and np.isfinite(made).all()
    with pytest.raises(ModelError, match="'8'; it knows 3, 7"):
        diffwave_uses.generate(opened.model, 800, 1, "8")
