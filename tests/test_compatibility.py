"""Files of an earlier version open, sound the same and resume.

Everything in ``fixtures/before_folders`` was made by the version that had all modules in one folder; ``make.py`` there
says how. The truth is what that version made of the same files: audio, weights after resuming, batches, a trace. Audio
is compared at equal level, because a limiter may act on it.
"""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from svclib import __main__
from svclib.analysis import trace
from svclib.data import dataset
from svclib.training import api as training
from svclib.utils import config

OLD = Path(__file__).parent / "fixtures" / "before_folders"
SONG = OLD / "audio" / "ann" / "2.flac"
EXPECTED = np.load(OLD / "expected.npz")
DIFFUSION = ["--precision", "fp32", "--loudness-shift", "-15"]
CONVERSIONS = {  # name of the result: instrument, arguments
    "ddsp": ("ddsp", ["--loudness-shift", "12"]),
    "ddsp_z": ("ddsp_z", ["--loudness-shift", "12"]),
    "diffusion": ("diffusion", [*DIFFUSION, "--singer", "ann=0.7", "--singer", "bea=0.3"]),
    "plms": (
        "diffusion",
        [*DIFFUSION, *"--sampler plms --steps 6 --shallow 400 --temperature 1 --singer bea".split()],
    ),
    "harmonic_in_diffusion": (
        "diffusion",
        [*DIFFUSION, "--singer", "ann", "--vocoder", str(OLD / "harmonic.zip")],
    ),
}


def command(*arguments):
    assert __main__.main([str(a) for a in arguments]) == 0


def assert_audio(path, name):
    sound = soundfile.read(path, dtype="float32")[0]
    sound, expected = sound[len(sound) // 3 :][:400], EXPECTED[f"audio {name}"]
    level = np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(
        sound * level / np.sqrt(np.mean(sound**2)), expected, atol=0.02 * level + 2**-15, err_msg=name
    )


@pytest.mark.parametrize("name", CONVERSIONS)
def test_an_instrument_converts_to_the_same_audio(tmp_path, name):
    instrument, arguments = CONVERSIONS[name]
    command("convert", "--instrument", OLD / f"{instrument}.zip", "--input", SONG, "--out", tmp_path / "out.wav",
            "--seed", 3, "--key", 2, "--attenuation", 0, "--breath", 0, *arguments)  # fmt: skip
    assert_audio(tmp_path / "out.wav", name)


@pytest.mark.parametrize("name", ["harmonic", "diffwave", "diffwave_plain"])
def test_a_vocoder_makes_the_same_audio(tmp_path, name):
    out = tmp_path / "out.wav"
    command("vocode", "--vocoder", OLD / f"{name}.zip", "--input", SONG, "--out", out, "--seed", 3)
    assert_audio(out, name)


def test_a_diffwave_generates_the_same_audio(tmp_path):
    command("generate", "--model", OLD / "digits.zip", "--label", 7, "--out", tmp_path / "digits", "--seed", 3)
    assert_audio(next((tmp_path / "digits").glob("*.wav")), "7_000_seed3")


def test_a_dataset_gives_the_same_batches_and_is_not_measured_again(tmp_path):
    batch = dataset.Dataset.open(OLD / "dataset").batch(0, 2, 1, 8)
    for name in (key.removeprefix("dataset ") for key in EXPECTED if key.startswith("dataset ")):
        np.testing.assert_allclose(batch[name].numpy(), EXPECTED[f"dataset {name}"], atol=1e-6, err_msg=name)
    copy = shutil.copytree(OLD / "dataset", tmp_path / "dataset")
    before = {path.name: path.stat().st_mtime_ns for path in copy.glob("shard-*")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        command("prepare", "--audio", OLD / "audio" / "ann", "--singer", "ann", "--audio", OLD / "audio" / "bea",
                "--singer", "bea", "--out", copy, "--config", OLD / "voice.gin", "--validation", "2*")  # fmt: skip
    assert {path.name: path.stat().st_mtime_ns for path in copy.glob("shard-*")} == before


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_resumes_to_the_same_weights(tmp_path):
    run = shutil.copytree(OLD / "run", tmp_path / "run")
    command("train", "--dataset", OLD / "dataset", "--run", run, "--config", OLD / "voice.gin", "--steps", 6,
            "--device", "cpu")  # fmt: skip
    np.testing.assert_allclose(training.curves(run)["loss"], EXPECTED["resumed losses"], rtol=1e-4)
    model, _ = training.load_model(run, "last")
    weights = model.state_dict()
    names = {key.removeprefix("resumed ") for key in EXPECTED if key.startswith("resumed ") and "loss" not in key}
    assert set(weights) == names
    for name in names:
        flat = weights[name].double().flatten()
        picked = flat[torch.linspace(0, len(flat) - 1, 16).long()] if len(flat) else flat
        np.testing.assert_allclose(picked, EXPECTED[f"resumed {name}"], atol=2e-5, err_msg=name)


def test_a_trace_opens():
    opened = trace.load(OLD / "trace.npz")
    np.testing.assert_allclose(opened.log_mel(opened.result), EXPECTED["trace result"], atol=1e-5)
    np.testing.assert_allclose(opened.log_mel(opened.x0_hat[2]), EXPECTED["trace x0"], atol=1e-5)
    np.testing.assert_allclose(opened.log_snr, EXPECTED["trace log_snr"], atol=1e-9)


@pytest.mark.parametrize(
    ("overlay", "value", "new"),
    [
        ("channels", lambda preset: preset.model.channels == 24, "from svclib.models import diffusion"),
        ("mel", lambda preset: preset.features.mel.fmax_hz == 7900.0, "MelConfig"),
        ("contentvec", lambda preset: preset.features.units.layer == 9, "from svclib.features import"),
    ],
)
def test_an_overlay_with_old_spellings_loads_with_one_warning(overlay, value, new):
    with pytest.warns(FutureWarning) as caught:
        preset = config.load(OLD / "overlays" / f"{overlay}.gin")
    assert value(preset)
    (warning,) = [w for w in caught if issubclass(w.category, FutureWarning)]
    assert f"{overlay}.gin" in str(warning.message) and new in str(warning.message)
