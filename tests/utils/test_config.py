"""Presets: every gin file builds what it says and takes a training step; a gin file can do nothing but set parameters.

Truths: the published settings of the singing presets. Refused, each with a sentence: foreign imports and includes,
calls, scopes, values out of range. A file of the same name in the working folder changes nothing, nor does loading.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gin
from svclib.utils import config
from svclib.utils.errors import ConfigError

HEAD = "from __gin__ import dynamic_registration\nfrom svclib import config\nfrom svclib import ddsp\n"
DDSP_PRESETS = [name for name in config.preset_names() if name.startswith("ddsp")]


def write(folder: Path, text: str, name="mine.gin", head=HEAD) -> Path:
    path = folder / name
    path.write_text(head + text + "\n", encoding="utf-8")
    return path


# ---- the presets ----


@pytest.mark.case("P3")
def test_presets_that_are_offered():
    assert {"ddsp", "ddsp_z", "ddsp_small"} <= set(config.preset_names())
    assert not {"base", "tiny"} & set(config.preset_names())


@pytest.mark.case("P17")
def test_the_full_preset_is_the_published_one():
    preset = config.load("ddsp")
    model, training, features = preset.model, preset.training, preset.features
    assert (features.sample_rate_hz, features.hop_samples) == (16000, 64)
    assert (model.n_harmonics, model.n_noise_bands, model.z_dims, model.reverb_samples) == (100, 65, 0, 0)
    assert (training.batch_size, training.segment_s, training.steps, training.learning_rate) == (32, 4.0, 40000, 3e-4)
    assert (training.learning_rate_decay, training.decay_steps, training.clip_norm) == (0.98, 10000, 3.0)
    assert training.adam_eps == 1e-7
    z = config.load("ddsp_z").model
    assert dataclasses.replace(z, z_dims=0) == model and z.z_dims == 16
    assert 64000 // z.z_hop_samples == 125


@pytest.mark.case("P18")
@pytest.mark.parametrize("name", DDSP_PRESETS)
def test_all_ddsp_presets_have_one_comparable_loss(name):
    settings = config.load(name).model
    assert settings.fft_sizes == (2048, 1024, 512, 256, 128, 64) and settings.log_rule == "v1"


@pytest.mark.parametrize("name", config.preset_names())
def test_every_preset_builds_and_says_what_it_is_for(name):
    preset = config.load(name)
    assert preset.name == name
    assert len(config.describe(name).splitlines()) >= 3
    json.dumps(dataclasses.asdict(preset.model))
    frames = preset.training.segment_s * preset.features.sample_rate_hz / preset.features.hop_samples
    assert abs(frames - round(frames)) < 1e-6


@pytest.mark.parametrize("name", DDSP_PRESETS)
def test_every_preset_takes_a_step_under_tiny(name):
    preset = config.load([name, "tiny"])
    assert preset.training.steps <= 50 and preset.training.segment_s <= 0.5
    model = preset.model.build(preset.features)
    assert sum(p.numel() for p in model.parameters()) < 30_000
    hop = preset.features.hop_samples
    frames = int(preset.training.segment_s * preset.features.sample_rate_hz) // hop
    shape = (preset.training.batch_size, frames)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "audio": torch.rand(shape[0], frames * hop, generator=generator) - 0.5,
        "f0_hz": torch.full(shape, 220.0),
        "voiced": torch.rand(shape, generator=generator) > 0.2,
        "loudness_db": torch.full(shape, -20.0),
    }
    loss, _ = model.loss(batch, generator)
    loss.backward()
    slopes = [p.grad for p in model.parameters()]
    assert torch.isfinite(loss) and all(torch.isfinite(slope).all() for slope in slopes)
    assert np.mean([(slope != 0).any().item() for slope in slopes]) > 0.9  # a step moves nearly every tensor


def test_overlay_and_overrides_win_in_order(tmp_path):
    mine = write(tmp_path, "ddsp.DdspSettings.n_harmonics = 33")
    assert config.load(["ddsp", mine]).model.n_harmonics == 33
    assert config.load(["ddsp", mine, "tiny"]).model.n_harmonics == 20
    preset = config.load(["ddsp", mine], ["n_harmonics=44", "ddsp.DdspSettings.z_dims=2", "f0_method=pyin"])
    assert (preset.model.n_harmonics, preset.model.z_dims, preset.features.f0_method) == (44, 2, "pyin")
    assert preset.name == "ddsp+mine"


def test_a_macro_serves_several_places_and_the_command_line(tmp_path):
    lines = "WIDTH = 48\nddsp.DdspSettings.rnn_channels = %WIDTH\nddsp.DdspSettings.mlp_channels = %WIDTH"
    mine = write(tmp_path, lines)
    assert config.load(["ddsp", mine]).model.rnn_channels == 48
    model = config.load(["ddsp", mine], ["WIDTH=24"]).model
    assert (model.rnn_channels, model.mlp_channels) == (24, 24)


def test_the_record_builds_the_same_preset_again(tmp_path):
    preset = config.load(["ddsp_z", "tiny"], ["n_harmonics=7"])
    again = config.load(write(tmp_path, preset.text, "record.gin", head=""))
    assert (again.features, again.model, again.training) == (preset.features, preset.model, preset.training)


@pytest.mark.case("D5")
def test_own_preset_may_include_a_preset(tmp_path):
    mine = write(tmp_path, "ddsp.DdspSettings.n_harmonics = 12", head="include 'ddsp.gin'\n" + HEAD)
    preset = config.load(mine)
    assert (preset.model.n_harmonics, preset.model.n_noise_bands) == (12, 65)


# ---- no state ----


@pytest.mark.case("P24", "P27")
def test_loading_leaves_no_state():
    first = config.load("ddsp")
    config.load(["ddsp_small", "tiny"], ["n_harmonics=5", "SIZE=3"])
    with pytest.raises(ConfigError):
        config.load(["ddsp"], ["n_harmonics=0"])
    again = config.load("ddsp")
    assert (first.model, first.training, first.features, first.text) == (
        again.model,
        again.training,
        again.features,
        again.text,
    )
    assert gin.config_str() == "" or "Settings" not in gin.config_str()
    from svclib.models.ddsp.model import DdspSettings

    assert DdspSettings() == DdspSettings(n_harmonics=100)  # the class itself is as before
    assert gin.config._LOCATION_PREFIXES == [""]


@pytest.mark.case("D5")
def test_files_in_the_working_folder_are_not_mistaken_for_presets(tmp_path, monkeypatch):
    expected = config.load("ddsp_z")
    for name in ("base.gin", "ddsp.gin"):
        write(tmp_path, "ddsp.DdspSettings.n_harmonics = 3\nimport antigravity", name)
    monkeypatch.chdir(tmp_path)
    assert config.load("ddsp_z").model == expected.model


# ---- refusals ----


@pytest.mark.case("D1", "D2")
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("import os", r"line 4: imports 'os'; a preset may import only svclib's settings"),
        ("from os import path", "imports 'os.path'"),
        ("from svclib.config import gin", "imports 'svclib.config.gin'"),
        ("from svclib import nothing", "only svclib's settings"),
        ("include '/etc/passwd'", "includes '/etc/passwd'; a preset may include only the project's presets"),
        ("include '../gin/base.gin'", "a preset may include only"),
        ("include 'nothing.gin'", "includes 'nothing.gin'"),
        ("os.system.command = 'true'", "'os.system' is not a settings class"),
        ("ddsp.DdspSettings.n_harmonics = @os.getpid()", "'os.getpid' is not a settings class"),
        ("ddsp.DdspSettings.fft_sizes = (64, [{1: @os.getpid()}])", "'os.getpid' is not a settings class"),
        ("config.preset.model = @ddsp.DdspModel()", "'ddsp.DdspModel' is not a settings class"),
        ("config.load.files = 'x'", "'config.load' is not a settings class"),
        ("os.system:\n  command = 'true'", "'os.system' is not a settings class"),
        ("WHAT = @os.getpid()", "'os.getpid' is not a settings class"),
        ("a/ddsp.DdspSettings.n_harmonics = 3", "'a/' is a scope; presets are flat"),
        ("ddsp.DdspSettings.n_harmonics = ", "line 4: this is not gin syntax"),
        ("ddsp.DdspSettings.fft_sizes = (64,", "this is not gin syntax"),
        ("ddsp.DdspSettings.n_harmonics = __import__('os')", "this is not gin syntax"),
        ("ddsp.DdspSettings.n_harmonic = 3", "has no 'n_harmonic'. Did you mean 'n_harmonics'"),
        ("ddsp.DdspSettings.n_harmonics = 0", "DdspSettings.n_harmonics is 0; expected a whole number from 1 to 1000"),
        ("ddsp.DdspSettings.n_harmonics = %NOPE", "is used that no line gives a value"),
    ],
)
def test_a_preset_can_only_set_parameters(tmp_path, line, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        config.load(["ddsp", write(tmp_path, line)])
    assert "mine.gin" in str(error.value)


@pytest.mark.case("D2")
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("n_harmonic=3", "There is no setting 'n_harmonic'. Did you mean 'n_harmonics'"),
        ("zzzzzz=3", "Known names: .*n_harmonics"),
        ("n_harmonics", "is not NAME=VALUE"),
        ("=3", "is not NAME=VALUE"),
        ("n_harmonics=-1", "n_harmonics is -1"),
        ("n_harmonics=3\nimport os", "import"),
        ("ddsp.DdspSettings.n_harmonics=@os.getpid()", "'os.getpid' is not a settings class"),
        ("os.system.command='true'", "'os.system' is not a settings class|may import only"),
    ],
)
def test_an_override_can_only_set_parameters(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config.load("ddsp", [override])


def test_unknown_presets_are_named_with_the_nearest():
    with pytest.raises(ConfigError, match="There is no preset 'ddsp_smal'. Did you mean 'ddsp_small'"):
        config.load("ddsp_smal")
    with pytest.raises(ConfigError, match="There is no preset '/nowhere/x.gin'"):
        config.load("/nowhere/x.gin")
    with pytest.raises(ConfigError, match="No preset was given"):
        config.load([])


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "sound.gin"
    path.write_bytes(b"\xff\xfe\x00\x01RIFF")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        config.load(["ddsp", path])


# ---- overrides of nested settings, and the caller's own gin ----


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("n_mels=100", ("features", "mel", "n_mels")),
        ("n_layers=2", ("model", "n_layers")),
        ("n_noise_bands=20", ("model", "vocoder", "n_noise_bands")),
        ("n_harmonics=20", ("model", "vocoder", "n_harmonics")),
        ("features.MelContract.n_mels=20", ("features", "mel", "n_mels")),
        ("hop_samples=256", ("features", "hop_samples")),  # of the outer settings where both have the name
    ],
)
def test_a_field_of_nested_settings_can_be_overridden_by_its_name(override, path):
    value = config.load("diffusion_small", [override])
    for name in path:
        value = getattr(value, name)
    assert value == int(override.split("=")[1])


def test_loading_leaves_the_callers_own_gin_bindings(tmp_path):
    @gin.configurable(module="tests.foreign")
    def foreign(a=1, b=2):
        return a, b

    try:
        gin.parse_config("foreign.a = 10\nscope/foreign.b = 20\nmine = 3\n")
        before = foreign(), gin.config_str()
        config.load("ddsp_small", ["n_harmonics=20"])
        with pytest.raises(ConfigError):
            config.load(write(tmp_path, "import os"))
        assert (foreign(), gin.config_str()) == before and foreign() == (10, 2)
        gin.finalize()
        config.load("ddsp_small")
        assert gin.config_is_locked() and foreign() == (10, 2)
    finally:
        gin.clear_config()


def test_the_former_name_of_a_settings_class_loads_with_one_warning(tmp_path):
    text = (config.preset_folder() / "diffusion_small.gin").read_text().replace("MelConfig", "MelContract")
    (tmp_path / "mine.gin").write_text(text.replace("from svclib.models import", "from svclib import"))
    words = r"mine.gin has spellings of an earlier version; write: MelConfig \(not MelContract\); from svclib.models"
    with pytest.warns(FutureWarning, match=words) as caught:
        preset = config.load(tmp_path / "mine.gin")
    assert len(caught) == 1 and preset.features == config.load("diffusion_small").features
