"""svclib generate, denoise and interpolate: names, settings beside, nothing overwritten or half-written, one sentence
for each thing that cannot be. The models are tiny and untrained: what they sound like is not the point here."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import soundfile
import torch
import toy

from svclib.__main__ import main
from svclib.audio import io as audio
from svclib.audio.mel import MelConfig
from svclib.conversion import diffwave_files
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.utils.errors import Cancelled

RATE = 8000
PLAIN = FeatureSettings(sample_rate_hz=RATE, hop_samples=64)
MEL = MelConfig(RATE, 256, 256, 64, 12, 0.0, 4000.0)
TINY = DiffWaveSettings(
    condition="label",
    labels=("3", "7"),
    channels=8,
    n_layers=3,
    dilation_cycle=3,
    squeeze=8,
    peak=0.9,
    sound_s=0.051,
    n_steps=4,
    fast_etas=(1e-4, 1e-2),
)


def saved(path, settings=TINY, features=PLAIN):
    model = settings.build(features)
    torch.nn.init.normal_(model.net.output.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return instrument.save(path, model, features, toy.STATISTICS, created="2026-11-21")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "digits.zip")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    settings = dataclasses.replace(TINY, condition="none", labels=())
    return saved(tmp_path_factory.mktemp("models") / "plain.zip", settings)


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    """Two recordings of another rate in one folder."""
    folder = tmp_path_factory.mktemp("takes")
    for name, hz in (("one.wav", 300), ("two.wav", 500)):
        soundfile.write(folder / name, 0.4 * np.sin(2 * np.pi * hz * np.arange(1600) / 16000), 16000)
    return folder


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_generate(digits, tmp_path, capsys):
    arguments = ["generate", "--model", str(digits), "--out", str(tmp_path / "out"), "--count", "2", "--seed", "11"]
    assert main([*arguments, "--label", "7", "--label", "3"]) == 0
    names = ["7_000_seed11.wav", "7_001_seed12.wav", "3_000_seed11.wav", "3_001_seed12.wav"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / n) for n in names]
    sounds = [read(tmp_path / "out" / n) for n in names]
    assert {len(s) for s in sounds} == {408} and soundfile.info(tmp_path / "out" / names[0]).samplerate == RATE
    for a in range(4):
        assert not any(np.allclose(sounds[a], sounds[b], atol=1e-3) for b in range(a))
    beside = json.loads((tmp_path / "out" / (names[1] + ".json")).read_text())
    assert beside["seed"] == 12 and beside["label"] == "7" and beside["instrument"]["name"] == "digits"
    # what one file says makes that sound again, alone
    model = instrument.open(digits).model
    again = diffwave_uses.generate(model, 408, 1, beside["label"], SamplingOptions(seed=beside["seed"]))[0]
    np.testing.assert_allclose(sounds[1], again * min(1, 0.99 / np.abs(again).max()), atol=1e-6)
    before = contents(tmp_path / "out")
    assert main([*arguments, "--label", "7"]) == 0  # the very same sounds: made once
    assert contents(tmp_path / "out") == before
    assert main([*arguments, "--label", "7", "--fast", "--count", "1"]) == 0  # another sound of that name
    after = contents(tmp_path / "out")
    assert set(after) - set(before) == {"7_000_seed11 2.wav", "7_000_seed11 2.wav.json"}
    assert {n: after[n] for n in before} == before


@pytest.mark.case("red 18")
def test_settings_never_lie_beside_another_sound(digits, tmp_path):
    """A sound deleted and its settings left, or another sound in its place: what is written anew belongs together."""
    arguments = ["generate", "--model", str(digits), "--out", str(tmp_path), "--label", "7"]
    assert main(arguments) == 0
    first = tmp_path / "7_000_seed0.wav"
    good = first.read_bytes()
    first.unlink()  # its settings stay
    assert main([*arguments, "--seconds", "0.2"]) == 0
    for path in tmp_path.glob("*.wav"):
        beside = json.loads(path.with_name(f"{path.name}.json").read_text())
        assert len(read(path)) == round(beside["seconds"] * RATE)
        assert beside["sound_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    names = set(contents(tmp_path))
    assert main([*arguments, "--seconds", "0.2"]) == 0 and set(contents(tmp_path)) == names  # beside a taken name
    soundfile.write(first, np.zeros(100), RATE)  # of somebody else
    assert main(arguments) == 0
    made = (set(contents(tmp_path)) - names - {first.name}).pop().removesuffix(".json")
    assert (tmp_path / made).read_bytes() == good and len(read(first)) == 100


def test_generate_longer_and_without_labels(plain, tmp_path):
    arguments = ["generate", "--model", str(plain), "--out", str(tmp_path), "--seconds", "0.1"]
    assert main(arguments) == 0
    assert len(read(tmp_path / "000_seed0.wav")) == 800


def test_what_is_finished_stays_when_it_is_stopped(digits, tmp_path, monkeypatch, capsys):
    opened = diffwave_files.load_model(digits)
    told = []
    with pytest.raises(Cancelled):
        diffwave_files.generate(
            opened,
            tmp_path,
            diffwave_files.Generation(3, labels=("7",)),
            progress=lambda f, text: told.append(f),
            cancelled=lambda: len(told) > 7,
        )
    assert sorted(contents(tmp_path)) == ["7_000_seed0.wav", "7_000_seed0.wav.json"]
    assert told == sorted(told) and told[-1] < 0.7
    real = diffwave_uses.generate

    def interrupted(model, n, count, label, options, *rest, **watch):
        if options.seed == 2:
            raise KeyboardInterrupt
        return real(model, n, count, label, options, *rest, **watch)

    monkeypatch.setattr(diffwave_uses, "generate", interrupted)
    arguments = ["generate", "--model", str(digits), "--out", str(tmp_path), "--count", "3", "--label", "7"]
    assert main(arguments) == 130 and "goes on from there" in capsys.readouterr().err
    first = contents(tmp_path)
    assert sorted(n for n in first if n.endswith(".wav")) == ["7_000_seed0.wav", "7_001_seed1.wav"]
    monkeypatch.setattr(diffwave_uses, "generate", real)
    assert main(arguments) == 0
    assert {n: b for n, b in contents(tmp_path).items() if n in first} == first and len(contents(tmp_path)) == 6


def test_denoise(digits, takes, tmp_path):
    base = ["denoise", "--model", str(digits), "--step", "3", "--label", "7"]
    assert main([*base, "--input", str(takes / "one.wav"), "--out", str(tmp_path / "clean.flac")]) == 0
    made = read(tmp_path / "clean.flac")
    assert len(made) == 800  # at the model's rate
    assert main([*base, "--input", str(takes / "one.wav"), "--out", str(tmp_path / "shouted.FLAC")]) == 0
    np.testing.assert_array_equal(read(tmp_path / "shouted.FLAC"), made)
    out = ["--input", str(takes), "--out", str(tmp_path / "all")]
    assert main([*base, *out]) == 0
    assert {n for n in contents(tmp_path / "all") if n[-1] == "v"} == {"one denoised.wav", "two denoised.wav"}
    np.testing.assert_allclose(read(tmp_path / "all" / "one denoised.wav"), made, atol=1e-6)
    assert main([*base, *out, "--reading", "scaled"]) == 0
    beside = json.loads((tmp_path / "all" / "one denoised 2.wav.json").read_text())
    assert beside["reading"] == "scaled" and beside["input"]["name"] == "one.wav"
    assert not np.allclose(read(tmp_path / "all" / "one denoised 2.wav"), made, atol=1e-3)


@pytest.mark.parametrize("options", [[], ["--independent-noise"]])
def test_interpolate(plain, takes, tmp_path, options):
    ends = ["--input", str(takes / "one.wav"), "--input", str(takes / "two.wav")]
    base = ["interpolate", "--model", str(plain), "--out", str(tmp_path), "--step", "2"]
    assert main([*base, *ends, "--count", "3", *options]) == 0
    names = [f"one to two {i} of 3.wav" for i in (1, 2, 3)]
    assert sorted(n for n in contents(tmp_path) if n.endswith("wav")) == names
    model = instrument.open(plain).model
    ends = tuple(audio.read(takes / f"{n}.wav", RATE).samples for n in ("one", "two"))
    for name, share in zip(names, (0.0, 0.5, 1.0), strict=True):
        sound = diffwave_uses.interpolate(model, ends, share, 2, shared_noise=not options)
        np.testing.assert_allclose(read(tmp_path / name), sound * min(1, 0.99 / np.abs(sound).max()), atol=1e-5)


def test_each_mistake_is_one_sentence_and_leaves_nothing(digits, plain, takes, tmp_path, capsys):
    mel = FeatureSettings(sample_rate_hz=RATE, hop_samples=64, mel=MEL)
    steered = DiffWaveSettings(channels=8, n_layers=2, n_steps=4, fast_etas=())
    vocoder = saved(tmp_path / "vocoder.zip", steered, mel)
    one, two = str(takes / "one.wav"), str(takes / "two.wav")
    out = ["--out", str(tmp_path / "out")]

    def model(path):
        return ["--model", str(path), *out]

    for arguments, match in [
        (["generate", *model(digits), "--label", "8"], "label '8'; it knows 3, 7"),
        (["generate", *model(digits), "--label", "7", "--label", "x"], "label 'x'"),
        (["generate", *model(digits)], "needs a label: one of 3, 7"),
        (["generate", *model(plain), "--label", "7"], "takes no label"),
        (["generate", *model(plain), "--count", "0"], "1 or more"),
        (["generate", *model(vocoder)], "svclib vocode"),
        (["generate", *model(tmp_path / "none.zip")], "none.zip"),
        (["denoise", *model(plain), "--input", one, "--step", "5"], "1 to 4"),
        (["denoise", *model(digits), "--input", one, "--step", "2"], "needs a label"),
        (["denoise", *model(plain), "--input", str(tmp_path / "no.wav"), "--step", "2"], "no.wav"),
        (["denoise", "--model", str(plain), "--out", "x.wav", "--input", str(takes)], "give a folder"),
        (["denoise", "--model", str(plain), "--out", "x.txt", "--input", one], "written as"),
        (["interpolate", *model(plain), "--input", one], "give it twice"),
        (["interpolate", *model(plain), "--input", one, "--input", two, "--step", "9"], "1 to 4"),
        (["interpolate", *model(plain), "--input", one, "--input", two, "--step", "2", "--count", "1"], "2 or more"),
    ]:
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert match in error and error.count("\n") == 0 and "Traceback" not in error, error
        assert not (tmp_path / "out").exists(), arguments
    # settings that were changed after training: weights of another architecture
    opened = instrument.open(digits)
    opened.model.settings = dataclasses.replace(opened.model.settings, squeeze=4)
    other = instrument.save(tmp_path / "other.zip", opened.model, PLAIN, toy.STATISTICS, created="2026-11-21")
    assert main(["generate", *model(other), "--label", "7"]) == 2
    assert "made for another model version" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.case("red 29")
def test_long_names_keep_their_suffix_and_what_is_added(plain, takes, tmp_path):
    ends = [tmp_path / f"{letter * 200}.wav" for letter in "ab"]
    for end, take in zip(ends, ("one.wav", "two.wav"), strict=True):
        end.write_bytes((takes / take).read_bytes())
    opened = diffwave_files.load_model(plain)
    (denoised,) = diffwave_files.denoise(opened, ends[:1], tmp_path / "out", options=diffwave_files.Denoising(step=2))
    mixed = diffwave_files.interpolate(
        opened, tuple(ends), tmp_path / "out", diffwave_files.Interpolation(step=2, count=2)
    )
    assert denoised.name.endswith("a denoised.wav")
    assert [p.name[-10:] for p in mixed] == ["1 of 2.wav", "2 of 2.wav"] and "b" in mixed[0].name
