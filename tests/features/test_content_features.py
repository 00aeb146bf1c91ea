"""Truths held here: units are transformers' own output read between its centres; pieces stay near the whole; other
weights, no network and no package are told in a sentence; from recordings to a conversion with the weights outside."""

import dataclasses
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from explaining import assert_explains
from untrusted import measured

from svclib.analysis import ablation
from svclib.audio import io as audio
from svclib.audio.mel import MelConfig
from svclib.conversion import pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.data import dataset, singers
from svclib.data.recordings import find_recordings
from svclib.features import content_features, extract
from svclib.features.content_features import UnitSettings
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument
from svclib.models.content.base import CONTENT_ENCODERS
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.training import api as training
from svclib.training import resume
from svclib.utils import atomic_store, config, download
from svclib.utils.errors import ConfigError, ConversionError, ModelError

DIMS, LAYER = 24, 2


def hubert(seed=0, **changes):
    """A small HuBERT with random weights and the published convolutions: 320 samples hop, 400 reach."""
    torch.manual_seed(seed)
    small = transformers.HubertConfig(
        hidden_size=DIMS,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        **changes,
    )
    return transformers.HubertModel(small).eval()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hubert")
    for seed in (0, 1):
        hubert(seed).save_pretrained(folder / str(seed))
    return folder


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    monkeypatch.delenv(content_features.WHERE, raising=False)
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "cache"))
    content_features._loaded.cache_clear()
    yield
    content_features._loaded.cache_clear()


def settings(home, seed=0, **changes):
    return UnitSettings(str(home / str(seed)), LAYER, DIMS, **changes)


def sweep(seconds, rate):
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (120 * t + 40 * t**2)) * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)


# Units ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate, hop", [(16000, 256), (44100, 512), (22050, 256)])
def test_units_are_transformers_own_between_their_centres(home, rate, hop):
    samples = sweep(2.03, rate)
    got = content_features.extract(samples, rate, hop, settings(home))
    heard = torch.from_numpy(audio.resample(samples, rate, 16000))[None]
    model = transformers.HubertModel.from_pretrained(home / "0").eval()
    with torch.no_grad():
        hidden = model(heard, output_hidden_states=True).hidden_states[LAYER][0].numpy()
    # A unit hears samples 320 j .. 320 j + 399, so its centre lies 200 samples after its beginning.
    at = (320 * np.arange(len(hidden)) + 200) / 16000
    frames = (np.arange(len(samples) // hop) + 0.5) * hop / rate
    want = np.stack([np.interp(frames, at, column) for column in hidden.T], axis=1)
    assert got.dtype == np.float16 and got.shape == want.shape
    np.testing.assert_allclose(got.astype(np.float32), want, atol=2e-3)
    assert want.std(axis=0).min() > 0.02  # so that a shift of a frame would show
    assert np.abs(got[1:] - want[:-1]).max() > 0.05


def test_pieces_stay_near_the_whole(home, monkeypatch):
    samples = np.tile(sweep(1.37, 16000), 20)
    monkeypatch.setattr(content_features, "CHUNK_S", 60)
    whole = content_features.extract(samples, 16000, 256, settings(home))
    monkeypatch.setattr(content_features, "CHUNK_S", 5)
    pieces = content_features.extract(samples, 16000, 256, settings(home))
    assert whole.shape == pieces.shape
    whole, pieces = whole.astype(float), pieces.astype(float)
    error, shifted = (np.abs(a - b).mean() / whole.std() for a, b in ((whole, pieces), (whole[1:], pieces[:-1])))
    assert 0 < error < 0.1 and shifted > 3 * error
    assert content_features.extract(samples[:100], 16000, 256, settings(home)).shape == (0, DIMS)
    assert np.isfinite(content_features.extract(samples[:300], 16000, 256, settings(home))).all()  # less than one unit


def test_units_belong_to_the_features(home):
    wanted = FeatureSettings(16000, 256, units=settings(home))
    samples = sweep(1.0, 16000)
    measured = extract.extract(samples, wanted)
    assert np.array_equal(measured.content, content_features.extract(samples, 16000, 256, wanted.units))
    assert FeatureSettings.from_json(wanted.to_json()) == wanted
    assert "units" not in FeatureSettings().to_json()  # what was stored before units existed keeps its key
    with pytest.raises(ConfigError, match="FeatureSettings.units: 'layer' is missing"):
        FeatureSettings.from_json({**FeatureSettings().to_json(), "units": {"source": "somewhere"}})
    with pytest.raises(ConfigError, match="layer is 0"):
        UnitSettings(layer=0)


# Weights --------------------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_weights_and_others_are_refused(home, tmp_path, monkeypatch):
    known = content_features.pinned(settings(home))
    assert len(known.fingerprint) == 16
    torch.save(hubert(0).state_dict(), tmp_path / "pytorch_model.bin")  # the same in the older format
    (tmp_path / "config.json").write_text((home / "0" / "config.json").read_text())
    monkeypatch.setenv(content_features.WHERE, str(tmp_path))
    assert content_features.load(known).fingerprint == known.fingerprint
    monkeypatch.setenv(content_features.WHERE, str(home / "1"))
    with pytest.raises(ModelError, match=f"{known.fingerprint} was trained with.*{content_features.WHERE}"):
        content_features.extract(sweep(0.5, 16000), 16000, 256, known)


def test_a_zip_by_link_is_an_encoder(home, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "encoder.zip", "w") as file:
        for path in (home / "0").iterdir():
            file.write(path, f"published/{path.name}")

    def from_web(address, at, report):
        return atomic_store.copy_file(tmp_path / "encoder.zip", at / "encoder.zip")

    monkeypatch.setattr(download, "_from_web", from_web)
    linked = UnitSettings("https://example.org/encoder.zip", LAYER, DIMS)
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "cache"))
    content_features.allow(linked)
    with pytest.raises(ModelError, match=content_features.WHERE):  # a preset may come from anybody
        content_features.load(linked)
    monkeypatch.setenv(content_features.WHERE, linked.source)
    found = content_features.load(linked).fingerprint
    monkeypatch.delenv(content_features.WHERE)
    assert found == content_features.load(settings(home)).fingerprint


@pytest.mark.case("J4", "red 10")
@pytest.mark.parametrize("source", ["somebody/hubert-of-theirs", "https://example.org/theirs.zip"])
def test_what_others_name_is_not_fetched_unasked(source, home, tmp_path, monkeypatch):
    """An untrusted instrument names an encoder: it takes a word of the person before the network is touched."""
    import transformers

    reached = []

    def from_hub(cls, where, local_files_only=False, **more):
        if not local_files_only:
            reached.append(where)
        raise OSError("not here")

    monkeypatch.setattr(transformers.HubertConfig, "from_pretrained", classmethod(from_hub))
    monkeypatch.setattr(download, "_from_web", lambda address, *_: reached.append(address) or home / "absent")
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(content_features, "_allowed", set())
    theirs = FeatureSettings(16000, 256, units=UnitSettings(source, fingerprint="0" * 16))
    with pytest.raises(ModelError, match=f"'{source}' is unknown to svclib.*set the environment.*CONTENTVEC"):
        extract.extract(sweep(0.5, 16000), theirs)
    assert reached == [] and list(tmp_path.iterdir()) == []
    content_features.allow(theirs.units)  # as preparing does with a preset of one's own
    with pytest.raises((ModelError, OSError)):
        content_features.load(theirs.units)
    assert reached == ([] if source.startswith("https") else [source])
    reached.clear()
    content_features._allowed.clear()
    monkeypatch.setenv(content_features.WHERE, source)
    with pytest.raises((ModelError, OSError)):
        content_features.load(theirs.units)
    assert reached == [source]


@pytest.mark.case("red 11")
@pytest.mark.parametrize("change", [{"num_hidden_layers": 3000}, {"hidden_size": 4096, "intermediate_size": 16384}])
def test_a_network_larger_than_its_files_is_not_built(home, tmp_path, change):
    shutil.copytree(home / "0", tmp_path / "larger")
    path = tmp_path / "larger" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with measured() as cost, pytest.raises(ModelError, match="asks for"):
        content_features.load(UnitSettings(str(tmp_path / "larger"), LAYER, DIMS))
    assert cost.megabytes < 100, cost


@pytest.mark.case("red 22")
def test_the_place_of_an_encoders_folder_is_known_on_this_machine_alone(home, tmp_path, monkeypatch):
    """What a dataset, a run and an instrument keep names the folder; here it is found again by the fingerprint."""
    known = content_features.pinned(settings(home))
    assert str(home) not in json.dumps(known.to_json()) and known.source == "0"
    assert settings(home).same_but_for_fingerprint(known) and not settings(home, 1).same_but_for_fingerprint(known)
    assert content_features.load(known).fingerprint == known.fingerprint
    monkeypatch.chdir(home / "0")
    assert content_features.pinned(dataclasses.replace(settings(home), source=".")) == known
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelError, match=content_features.WHERE):
        content_features.load(known)


def test_what_cannot_be_loaded_is_told_with_what_to_do(home, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'nobody/no-such' could not be loaded .* name a folder .*SVCLIB_CONTENTVEC"):
        content_features.pinned(UnitSettings("nobody/no-such"))
    with pytest.raises(ModelError, match="has 3 layers of 24 numbers, not layer 12 of 768"):
        content_features.load(UnitSettings(str(home / "0")))
    tensors = hubert(0).state_dict()
    tensors.pop("encoder.layers.1.attention.k_proj.weight")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((home / "0" / "config.json").read_text())
    with pytest.raises(ModelError, match="encoder.layers.1.attention.k_proj.weight is missing"):
        content_features.load(UnitSettings(str(tmp_path), LAYER, DIMS))
    monkeypatch.setitem(sys.modules, "transformers", None)
    content_features._loaded.cache_clear()
    with pytest.raises(ModelError) as missing:
        content_features.load(settings(home))
    assert_explains(missing.value, remedy="pip install transformers")


# From recordings to a song ----------------------------------------------------------------------------------------


def test_the_preset_asks_for_it():
    preset = config.load(["diffusion_contentvec"])
    assert preset.model.content == "contentvec" in CONTENT_ENCODERS and preset.features.units == UnitSettings()
    with pytest.raises(ModelError, match="bind FeatureSettings.units"):
        preset.model.build(dataclasses.replace(preset.features, units=None))


def test_prepare_train_export_and_convert(home, tmp_path, monkeypatch):
    """The weights stay outside: the files made carry their fingerprint, and refuse others."""
    voice = tmp_path / "voice"
    voice.mkdir()
    for i in range(2):
        notes = (singers.Note(60 + i, 1.0, "la"), singers.Note(64, 1.0, "si"))
        sung = singers.render(next(iter(singers.SINGERS)), singers.Score(notes), 22050, seed=i)
        audio.write(voice / f"{i}.wav", sung.audio, 22050)
    base = config.load(["diffusion_small", "tiny"])
    preset = dataclasses.replace(
        base,
        features=dataclasses.replace(base.features, units=settings(home)),
        model=dataclasses.replace(base.model, content="contentvec"),
        training=dataclasses.replace(base.training, steps=4),
    )
    data = dataset.prepare(find_recordings([voice]), tmp_path / "data", preset.features)
    known = content_features.pinned(settings(home))
    assert data.settings.units == known
    batch = data.batch(0, 1, 2, 30)
    assert batch["content"].shape == (2, 30, DIMS) and batch["content"].dtype == torch.float32
    whole = content_features.extract(data.audio(0), 22050, 256, known)
    np.testing.assert_allclose(data.features(0).content, whole, atol=2e-2)  # measured from the same 16-bit audio
    # Without the weights, an unchanged dataset opens and stays, and training goes on.
    monkeypatch.setattr(content_features, "_loaded", lambda _: pytest.fail("the encoder was loaded"))
    again = dataset.prepare(find_recordings([voice]), tmp_path / "data", preset.features)
    assert again.fingerprint == data.fingerprint and resume.fits(again, preset) is None
    training.train(again, tmp_path / "run", preset)
    training.train(tmp_path / "data", tmp_path / "run", preset, steps=6)
    path = training.export(tmp_path / "run", tmp_path / "voice.zip", "last")
    opened = instrument.open(path)
    monkeypatch.undo()
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path / "cache"))
    assert opened.features.units == known and not any("hubert" in n for n in opened.model.state_dict())
    # A song is measured with the same encoder, and its words reach the result.
    plain = Controls(use_loudness_statistics=False, mask_threshold=0.0, attenuation_db=0.0)
    song = songs.load_song(voice / "0.wav", opened.features)
    made = pipeline.convert(opened, song, plain, sampling=SamplingOptions(seed=1))
    assert len(made.audio) == len(song.audio) and np.abs(made.audio).max() > 0
    other = dataclasses.replace(song.features, content=song.features.content[::-1].copy())
    changed = pipeline.convert(
        opened, dataclasses.replace(song, features=other), plain, sampling=SamplingOptions(seed=1)
    )
    assert not np.allclose(changed.audio, made.audio)
    wordless = dataclasses.replace(
        song.features, content=None, settings=dataclasses.replace(opened.features, units=None)
    )
    with pytest.raises(ConversionError, match="has no content features of 'voice'. Load it again"):
        pipeline.convert(opened, dataclasses.replace(song, features=wordless), plain)
    with pytest.raises(ModelError, match=r"Content features of shape \(1, 5, 24\) are needed; none arrived"):
        silent = torch.zeros(1, 5)
        opened.model.content(ConditionInputs(torch.zeros(1, 5, 80), silent, silent > 0, silent))
    monkeypatch.setenv(content_features.WHERE, str(home / "1"))
    content_features._loaded.cache_clear()
    with pytest.raises(ModelError, match="was trained with"):
        songs.load_song(voice / "0.wav", opened.features)


@pytest.mark.case("L9")
def test_a_study_uses_the_units_of_its_excerpt(home):
    """The conditions of an excerpt are those of a conversion; swapping content swaps the units."""
    measured = FeatureSettings(
        sample_rate_hz=16000,
        hop_samples=256,
        mel=MelConfig(16000, 1024, 1024, 256, 40, 0.0, 8000.0),
        units=content_features.pinned(settings(home)),
    )
    tiny = DiffusionSettings(
        content="contentvec", channels=16, n_layers=2, condition_dims=16, coarse_channels=16, coarse_layers=1
    )
    model = tiny.build(measured, {"log_mel": {"min": -11.6, "max": 1.5}, "singers": {"ann": {}}}).eval()
    songs_ = []
    for name, samples in (("a", sweep(1.5, 16000)), ("b", sweep(1.5, 16000)[::-1].copy())):
        found = extract.extract(samples, measured)
        songs_.append(songs.Song(Path(f"{name}.wav"), name, 16000, len(samples), samples, found))
    plain = Controls(use_loudness_statistics=False, attenuation_db=0.0)
    asked, other = (ablation.cut_excerpt(song, None, 0.4, 0.8, plain) for song in songs_)
    first, n = 25, len(asked)  # frame 25 is centred at 0.408 s
    np.testing.assert_array_equal(asked.content, songs_[0].features.content[first : first + n])
    f0_hz = fill_unvoiced(asked.f0_hz, asked.voiced)
    given = ConditionInputs.from_arrays(asked.log_mel, f0_hz, asked.voiced, asked.loudness_db, asked.content)
    base = ablation.build_condition(model, asked)
    assert torch.equal(base, model.condition(given))
    swap = ablation.Intervention("content", "swap", other=other)
    swapped = ablation.build_condition(model, asked, [swap])
    assert torch.equal(
        swapped, model.condition(dataclasses.replace(given, content=torch.from_numpy(other.content)[None]))
    )
    assert not torch.equal(swapped, base)
    off = ablation.build_condition(model, asked, [ablation.Intervention("content")])
    assert torch.equal(
        off,
        ablation.build_condition(
            model, dataclasses.replace(asked, content=other.content), [ablation.Intervention("content")]
        ),
    )
    made = ablation.run(model, asked, (), ablation.RunOptions(SamplingOptions(steps=3), features=False))
    assert np.isfinite(made.trace.result).all()
    deaf = ablation.Intervention("content", "swap", other=dataclasses.replace(other, content=None))
    with pytest.raises(ConversionError, match="'b' has no content features for this instrument"):
        ablation.build_condition(model, asked, [deaf])
