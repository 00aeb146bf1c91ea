"""Truths held here: every vocoder kind opens by file, folder, zip, link and name, and sings what its own module sings;
an instrument sings through any vocoder of its mel and says which; another mel is refused by name; resynthesis keeps
length and pitch."""

import dataclasses
import functools
import http.server
import json
import threading
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from vocoder_models import DIFFUSION, HARMONIC, STATISTICS, busy

from svclib.__main__ import main
from svclib.audio import mel
from svclib.audio.mel import MelConfig
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import convert, save, vocode
from svclib.features.extract import ConditionInputs, Features, FeatureSettings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.models.vocoders import auto as vocoding
from svclib.models.vocoders import nsf_hifigan
from svclib.models.vocoders.harmonic import Vocoder
from svclib.utils.errors import ConversionError, ModelError

RATE, HOP = 16000, 256
CONTRACT = MelConfig(RATE, 1024, 1024, HOP, 40, 0.0, 7600.0)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, mel=CONTRACT)
DIFFWAVE = DiffWaveSettings(channels=8, n_layers=3, condition_dims=8)
NSF = {
    "resblock": "1",
    "sampling_rate": RATE,
    "hop_size": HOP,
    "num_mels": 40,
    "n_fft": 1024,
    "win_size": 1024,
    "fmin": 0,
    "fmax": 7600,
    "upsample_rates": [8, 8, 4],
    "upsample_kernel_sizes": [16, 16, 8],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
    "mini_nsf": True,
    "noise_sigma": 0.0,
}
PLAIN = Controls(use_loudness_statistics=False, mask_threshold=0.0, attenuation_db=0.0, breath=0.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with an instrument file of every kind that has to do with mels, and a checkpoint."""
    folder = tmp_path_factory.mktemp("vocoders")
    for name, settings in (("harmonic", HARMONIC), ("wave", DIFFWAVE), ("voice", DIFFUSION)):
        model = busy(settings.build(FEATURES, STATISTICS, 0))
        instrument.save(folder / f"{name}.zip", model, FEATURES, STATISTICS, created="2026-11-21")
    (folder / "nsf").mkdir()
    model = busy(nsf_hifigan.NsfHifigan(nsf_hifigan.NsfSettings.from_json(NSF)))
    torch.save({"generator": model.state_dict()}, folder / "nsf" / "model.ckpt")
    (folder / "nsf" / "config.json").write_text(json.dumps(NSF))
    with zipfile.ZipFile(folder / "release.zip", "w") as file:
        for path in (folder / "nsf").iterdir():
            file.write(path, f"pc_nsf/{path.name}")
        file.writestr("pc_nsf/NOTICE.txt", "not for sale")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SVCLIB_CACHE", str(tmp_path_factory.mktemp("cache")))


@functools.cache
def song(n_samples=12100, contract=CONTRACT, f0_hz=220.0):
    """A tone, measured, the last third called unvoiced."""
    audio = (0.2 * np.sin(2 * np.pi * f0_hz / RATE * np.arange(n_samples))).astype(np.float32)
    frames = n_samples // HOP
    voiced = np.arange(frames) < 2 * frames // 3
    measured = Features(
        dataclasses.replace(FEATURES, mel=contract),
        n_samples,
        np.where(voiced, f0_hz, 0.0).astype(np.float32),
        voiced,
        voiced.astype(np.float32),
        np.full(frames, -20.0, np.float32),
        mel.log_mel(torch.from_numpy(audio)[None], contract)[0].numpy(),
    )
    return songs.Song(songs.Path("a song.wav"), "a song", RATE, n_samples, audio, measured)


def arrays(measured):
    return measured.log_mel, measured.f0_hz, measured.voiced


def test_every_kind_sings_what_its_own_module_sings(home):
    measured = song().features
    opened = {name: vocoding.load_vocoder(home / name) for name in ("harmonic.zip", "wave.zip", "voice.zip", "nsf")}
    assert [v.kind for v in opened.values()] == ["harmonic", "diffwave", "harmonic", "nsf_hifigan"]
    want = {
        "harmonic.zip": instrument.open(home / "harmonic.zip").model.render(*arrays(measured), seed=3).audio,
        "voice.zip": instrument.open(home / "voice.zip").model.vocoder.render(*arrays(measured), seed=3).audio,
        "wave.zip": diffwave_uses.vocode(
            instrument.open(home / "wave.zip").model, measured.log_mel, options=SamplingOptions(seed=3)
        ),
        "nsf": nsf_hifigan.load(home / "nsf" / "model.ckpt").render(*arrays(measured), seed=3).audio,
    }
    for name, vocoder in opened.items():
        assert isinstance(vocoder, Vocoder) and vocoder.contract == CONTRACT and vocoder.sample_rate_hz == RATE
        made = vocoder.render(*arrays(measured), seed=3)
        assert np.array_equal(made.audio, want[name]) and np.abs(made.audio).max() > 0
        if vocoder.kind == "harmonic":
            assert np.abs(made.harmonic[33 * HOP :]).max() == 0  # frames without pitch
        else:
            assert np.array_equal(made.harmonic, made.audio) and not made.noise.any()


def test_a_checkpoint_opens_by_file_folder_zip_and_name(home):
    measured = song().features
    want = vocoding.load_vocoder(home / "nsf" / "model.ckpt")
    for where in (home / "nsf", home / "release.zip"):
        got = vocoding.load_vocoder(where)
        assert got.record() == want.record() == {"name": "model", "kind": "nsf_hifigan", "sha256": want.sha256}
        assert np.array_equal(got.render(*arrays(measured)).audio, want.render(*arrays(measured)).audio)
    assert vocoding.load_vocoder("harmonic", near=home).path == home / "harmonic.zip"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_links_to_each_kind_of_file(home):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(home)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    local = {"wave.zip": "wave.zip", "release.zip": "nsf", "nsf/model.ckpt": "nsf"}
    try:
        for link, path in local.items():
            assert vocoding.load_vocoder(f"{address}/{link}").sha256 == vocoding.load_vocoder(home / path).sha256
    finally:
        server.shutdown()
    for link in local:  # fetched once, kept
        assert vocoding.load_vocoder(f"{address}/{link}").contract == CONTRACT


def test_diffwave_by_its_fast_schedule_or_every_step(home):
    told = []
    quick, every = (vocoding.load_vocoder(home / "wave.zip", fast=fast) for fast in (True, False))
    quick.render(*arrays(song().features), progress=lambda fraction, text: told.append(text))
    assert told[-1] == "step 6 of 6"
    every.render(*arrays(song().features), progress=lambda fraction, text: told.append(text))
    assert told[-1] == "step 50 of 50"
    assert every.record()["steps"] == "all" and "steps" not in quick.record()


def test_what_is_no_vocoder_is_refused_in_a_sentence(home, tmp_path):
    with pytest.raises(ModelError, match="There is no vocoder 'nobody'. Give an instrument file"):
        vocoding.load_vocoder("nobody", near=home)
    from svclib.models.ddsp.model import DdspSettings

    plain = FeatureSettings()
    small = DdspSettings(n_harmonics=8, n_noise_bands=9, rnn_channels=8, mlp_channels=8, layers_per_stack=1)
    free = dataclasses.replace(DIFFWAVE, condition="none")
    mute = dataclasses.replace(DIFFUSION, vocoder=None)
    for name, settings, features, words in (
        ("ddsp", small, plain, "'ddsp' is of kind 'ddsp'"),
        ("free", free, plain, "'free' is trained without mels"),
        ("mute", mute, FEATURES, "'mute' is trained without a vocoder"),
    ):
        path = tmp_path / f"{name}.zip"
        instrument.save(path, settings.build(features, STATISTICS, 0), features, STATISTICS, created="x")
        with pytest.raises(ModelError, match=words):
            vocoding.load_vocoder(path)
    broken = tmp_path / "broken.zip"
    broken.write_bytes((home / "wave.zip").read_bytes()[:-2000])
    with pytest.raises(ModelError, match="broken"):
        vocoding.load_vocoder(broken)
    (tmp_path / "two").mkdir()
    for name in ("a.ckpt", "b.ckpt", "config.json"):
        (tmp_path / "two" / name).write_text("{}")
    with pytest.raises(ModelError, match="holds 2 checkpoints"):
        vocoding.load_vocoder(tmp_path / "two")
    with pytest.raises(ModelError, match=r"'wave' and of these features differ: n_mels 40 against 41"):
        other = song(contract=dataclasses.replace(CONTRACT, n_mels=41)).features
        vocoding.load_vocoder(home / "wave.zip").resynthesize(other)


# In conversion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["harmonic.zip", "wave.zip", "nsf", "release.zip"])
def test_an_instrument_sings_through_any_vocoder_of_its_mel(home, tmp_path, name):
    voice, vocoder, heard = instrument.open(home / "voice.zip"), vocoding.load_vocoder(home / name), []
    own = convert(voice, song(), PLAIN, sampling=SamplingOptions(seed=5))
    made = convert(voice, song(), PLAIN, sampling=SamplingOptions(seed=5), vocoder=vocoder)
    assert len(made.audio) == len(own.audio) == 12100 and not np.allclose(made.audio, own.audio, atol=1e-4)
    assert np.array_equal(
        made.audio, convert(voice, song(), PLAIN, sampling=SamplingOptions(seed=5), vocoder=home / name).audio
    )
    assert made.settings()["vocoder"] == vocoder.record() and "vocoder" not in own.settings()
    # what the vocoder is given is the very mel that the instrument's own vocoder is given
    spy = dataclasses.replace(vocoder)
    object.__setattr__(spy, "render", lambda *a, **o: heard.append((a, o["seed"])) or vocoder.render(*a, **o))
    convert(voice, song(), PLAIN, sampling=SamplingOptions(seed=5), vocoder=spy)
    (tracks, seed), *_ = heard
    again = voice.model.vocoder.render(*tracks, seed).audio[:12100]
    assert np.allclose(again * 10 ** (own.gain_db / 20), own.audio, atol=1e-6)
    said = json.loads(save(made, tmp_path).with_suffix(".wav.json").read_text())
    assert said["vocoder"]["sha256"] == vocoder.sha256


def test_a_vocoder_of_another_mel_is_refused_naming_both(home, tmp_path):
    other = dataclasses.replace(FEATURES, mel=dataclasses.replace(CONTRACT, log_base="10"))
    path = instrument.save(tmp_path / "old.zip", HARMONIC.build(other), other, STATISTICS, created="x")
    voice = instrument.open(home / "voice.zip")
    with pytest.raises(ModelError, match="the vocoder 'old' and of 'voice' differ: log_base 10 against e"):
        convert(voice, song(), PLAIN, vocoder=path)
    with pytest.raises(ModelError, match="the vocoder 'old' and of this instrument differ"):
        f = song().features
        given = ConditionInputs.from_arrays(f.log_mel, f.f0_hz, f.voiced, f.loudness_db)
        voice.model.render(given, vocoder=vocoding.load_vocoder(path))


def test_one_menu_holds_them_all_and_what_cannot_sing_says_so(home):
    listed = {entry.name: entry for entry in instrument.list_folder(home)}
    assert {n: (e.kind, e.converts) for n, e in listed.items() if e.problem is None} == {
        "harmonic": ("harmonic", False),
        "wave": ("diffwave", False),
        "voice": ("diffusion", True),
    }
    assert listed["release"].problem  # a checkpoint's zip is no instrument, and the menu says so
    for name in ("harmonic", "wave"):
        with pytest.raises(ConversionError, match=f"'{name}' is a .*Choose a diffusion instrument of the same mel"):
            convert(instrument.open(home / f"{name}.zip"), song(), PLAIN)


# Resynthesis ----------------------------------------------------------------------------------------------------------


def test_resynthesis_keeps_length_and_pitch(tmp_path):
    path = tmp_path / "fresh.zip"  # untrained it is already right in pitch
    instrument.save(path, HARMONIC.build(FEATURES), FEATURES, STATISTICS, created="x")
    vocoder = vocoding.load_vocoder(path)
    made = vocode(vocoder, song(), seed=1)
    assert len(made) == 12100
    spectrum = np.abs(np.fft.rfft(made[: 30 * HOP] * np.hanning(30 * HOP), 1 << 16))
    peak = np.fft.rfftfreq(1 << 16, 1 / RATE)[np.argmax(spectrum)]
    assert abs(1200 * np.log2(peak / 220)) < 5
    other = song(contract=dataclasses.replace(CONTRACT, fmax_hz=8000.0))
    with pytest.raises(ModelError, match="fmax_hz 7600.0 against 8000.0"):
        vocode(vocoder, other)


def test_the_command_vocodes_and_never_overwrites(home, tmp_path, capsys):
    source, out = tmp_path / "a song.wav", tmp_path / "again.wav"
    soundfile.write(source, song().audio, RATE)
    asked = ["vocode", "--vocoder", str(home / "nsf"), "--input", str(source), "--out", str(out)]
    assert main(asked) == 0 and soundfile.info(out).frames == 12100
    before = out.read_bytes()
    assert main(asked) == 0 and out.read_bytes() == before
    said = capsys.readouterr()
    assert "again 2.wav" in said.out and "never overwritten" in said.err
    assert "synthetic voice" in soundfile.SoundFile(out).comment
    assert main([*asked[:-1], str(tmp_path / "x.txt")]) == 2
    assert "wav, flac, mp3" in capsys.readouterr().err


def test_the_command_converts_through_a_vocoder_beside_the_instrument(home, tmp_path):
    source, out = tmp_path / "a song.wav", tmp_path / "sung.wav"
    soundfile.write(source, song().audio, RATE)
    asked = ["convert", "--instrument", str(home / "voice.zip"), "--input", str(source), "--out", str(out)]
    assert main([*asked, "--vocoder", "wave"]) == 0
    said = json.loads((tmp_path / "sung.wav.json").read_text())
    assert said["vocoder"] == vocoding.load_vocoder(home / "wave.zip").record()
