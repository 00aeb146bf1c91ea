"""The README's section "Extend": its five examples as they stand there, in a file outside the package.

Truths: the closed-form solution of the probability flow of Gaussian data (Song et al. 2021), a sine of known pitch.
"""

import dataclasses
import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusion_models import FEATURES, TINY, tune
from diffusion_models import STATISTICS as MEL_STATISTICS
from explaining import assert_explains
from vocoder_models import DIFFUSION, STATISTICS, busy

from svclib.__main__ import main
from svclib.audio.mel import MelConfig
from svclib.conversion import ab_compare
from svclib.features import extract, f0
from svclib.features.extract import ConditionInputs
from svclib.models import instrument
from svclib.models.content.base import CONTENT_ENCODERS
from svclib.models.diffusion import samplers, schedule
from svclib.models.diffusion.denoiser import DENOISERS
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders import auto as vocoding
from svclib.notebooks.controls import SamplingControls
from svclib.utils.errors import ConfigError

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The README's examples as a module of somebody's own; what it registers is gone after the test."""
    section = README.read_text(encoding="utf-8").split("\n## Extend")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(blocks) == 5
    (tmp_path / "own_parts.py").write_text("\n".join(blocks), encoding="utf-8")
    for registry in (samplers.SAMPLERS, CONTENT_ENCODERS, DENOISERS, f0.F0_METHODS, vocoding.VOCODERS):
        for name in ("heun", "cepstrum", "convnext", "autocorrelation", "flute"):
            assert name not in registry
            monkeypatch.setitem(registry, name, None)  # so that it is taken out again
            del registry[name]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_parts", raising=False)
    return importlib.import_module("own_parts")


@pytest.mark.case("K5")
def test_a_sampler_of_ones_own(mine):
    """Data N(0, 0.5^2): the best denoiser is linear, and the flow keeps x / its standard deviation."""
    chain, std = schedule.Schedule(1000), 0.5

    def denoiser(x, t):
        alpha, sigma = chain.alpha_sigma(t)
        return sigma * x / (alpha**2 * std**2 + sigma**2)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    alpha, sigma = chain.alpha_sigma(999.0)
    exact = x * std / math.sqrt(alpha**2 * std**2 + sigma**2)
    seen, error = [], {}
    for method in ("ddim", "heun"):
        made = samplers.sample(
            denoiser, chain, x, SamplingOptions(method, 40), callback=seen.append if method == "heun" else None
        )
        error[method] = float((made - exact).abs().max())
    assert error["heun"] < 0.25 * error["ddim"]
    assert len(seen) == seen[-1].n_calls == 79
    wild = samplers.sample(lambda x, t: -3 * x, chain, x, SamplingOptions("heun", 10), clip=1.0)
    assert float(wild.abs().max()) <= 1
    with pytest.raises(ConfigError) as error:
        SamplingOptions("huen", 4)
    assert_explains(error.value, remedy="heun")


@pytest.mark.case("K5")
def test_an_f0_method_of_ones_own(mine):
    rate, hz = 44100, 220.0
    sound = (0.3 * np.sin(2 * np.pi * hz * np.arange(rate) / rate)).astype(np.float32)
    sound[rate // 2 :] = 0
    settings = extract.FeatureSettings(rate, 512, f0_method="autocorrelation")
    f0_hz, voiced, _ = extract.track_f0(sound, rate, settings)
    inside = slice(5, 38)
    assert voiced[inside].all() and not voiced[50:].any()
    assert np.abs(1200 * np.log2(f0_hz[inside] / hz)).max() < 25  # its lags are whole samples
    assert extract.FeatureSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(("content", "denoiser"), [("cepstrum", "wavenet"), ("bottleneck", "convnext")])
def test_networks_of_ones_own(mine, content, denoiser):
    """They train, and a recording in chunks gives what it gives whole."""
    settings = dataclasses.replace(TINY, content=content, denoiser=denoiser, channels=16)
    model = settings.build(FEATURES, MEL_STATISTICS, 0).eval()
    log_mel, f0_hz = tune(300)
    voiced, loudness_db = np.ones(300, bool), np.full(300, -20.0, np.float32)
    condition = model.condition(ConditionInputs.from_arrays(log_mel, f0_hz, voiced, loudness_db))
    whole = SamplingOptions("dpmpp", 3, precision="fp32")
    torch.nn.init.normal_(model.denoiser.last.weight, std=0.1)
    made = model.sample(condition, whole)
    chunked = model.sample(condition, dataclasses.replace(whole, chunk_frames=64))
    torch.testing.assert_close(chunked, made, rtol=1e-5, atol=1e-4)
    batch = {"log_mel": log_mel, "f0_hz": f0_hz, "voiced": voiced, "loudness_db": loudness_db}
    batch = {name: torch.from_numpy(value)[None] for name, value in batch.items()}
    loss, _ = model.loss({**batch, "singer": torch.zeros(1, dtype=torch.long)}, torch.Generator().manual_seed(0))
    loss.backward()
    for part in (model.content, model.denoiser):
        assert all(weight.grad is not None for weight in part.parameters())


@pytest.mark.case("K5")
def test_all_three_in_one_conversion_by_the_command(mine, tmp_path):
    contract = MelConfig()
    measured = extract.FeatureSettings(44100, 512, loudness_n_fft=2048, mel=contract)
    model = busy(DIFFUSION.build(measured, STATISTICS, 0))
    instrument.save(tmp_path / "voice.zip", model, measured, STATISTICS, created="2026-11-21")
    t = np.arange(22050) / 44100
    soundfile.write(tmp_path / "song.wav", 0.3 * np.sin(2 * np.pi * 220 * t), 44100)
    arguments = ["convert", "--instrument", tmp_path / "voice.zip", "--input", tmp_path / "song.wav"]
    arguments += ["--out", tmp_path / "rendered.wav", "--f0", "autocorrelation", "--sampler", "heun", "--steps", "3"]
    assert main([*map(str, arguments), "--vocoder", "flute"]) == 0
    rendered, rate = soundfile.read(tmp_path / "rendered.wav")
    spectrum = np.abs(np.fft.rfft(rendered * np.hanning(len(rendered))))
    assert abs(spectrum.argmax() * rate / len(rendered) - 220) < 5
    record = json.loads((tmp_path / "rendered.wav.json").read_text())
    assert record["f0_method"] == "autocorrelation" and record["vocoder"]["name"] == "flute"
    assert record["sampling"]["sampler"] == "heun"


def test_they_are_in_the_menus_of_panels_made_afterwards(mine):
    controls = SamplingControls()
    controls.show(instrument.InstrumentEntry(Path("voice.zip"), "voice", "diffusion", {}, None))
    assert ("heun: second order, two evaluations a step", "heun") in controls.widgets["sampler"].options
    controls.widgets["sampler"].value, controls.vocoder.value = "heun", "flute"
    assert controls.options().sampler == "heun" and controls.chosen_vocoder() == "flute"
    assert ab_compare.Variant(Path("voice.zip"), "heun", vocoder="flute").label == "voice, heun, vocoder flute"


@pytest.mark.parametrize(("flag", "name"), [("--f0", "autocorelation"), ("--sampler", "huen"), ("--vocoder", "flut")])
def test_a_misspelt_one_is_refused_with_the_names_there_are(mine, tmp_path, capsys, flag, name):
    test_all_three_in_one_conversion_by_the_command(mine, tmp_path)
    capsys.readouterr()
    arguments = ["convert", "--instrument", tmp_path / "voice.zip", "--input", tmp_path / "song.wav"]
    assert main([*map(str, arguments), "--out", str(tmp_path / "new.wav"), flag, name]) == 2
    said = capsys.readouterr().err
    assert name in said and not (tmp_path / "new.wav").exists()
    assert {"--f0": "swift", "--sampler": "dpmpp", "--vocoder": "these names: flute"}[flag] in said
