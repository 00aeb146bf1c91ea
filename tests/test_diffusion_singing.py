"""Truths held here: one training of a diffusion preset trains content, denoiser, coarse head and vocoder, and one
export holds them all; a conversion sings the pitch that was asked, as long as the song, the same for the same seed,
by the sampler, steps and start that were chosen; what cannot be is refused in a sentence."""

import dataclasses
import json
import types

import numpy as np
import pytest
import soundfile
import torch
import toy

from svclib import config, conversion, instrument, mel, songs, training
from svclib.__main__ import main
from svclib.conversion import Cancelled, Controls, ConversionError, convert
from svclib.diffusion import DiffusionSettings
from svclib.features import FeatureError, Features, FeatureSettings, MelContract
from svclib.vocoders import HarmonicSettings

RATE, HOP = 16000, 256
CONTRACT = MelContract(RATE, 1024, 1024, HOP, 40, 0.0, 7600.0)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, mel=CONTRACT)
VOCODER = HarmonicSettings(n_harmonics=40, n_noise_bands=17, channels=16, n_layers=1, fft_sizes=(512, 128))
SETTINGS = DiffusionSettings(
    channels=16, n_layers=2, condition_dims=16, coarse_channels=16, coarse_layers=1, content_channels=16,
    content_layers=1, code_dims=8, sampler_steps=4, vocoder=VOCODER,
)  # fmt: skip
PARTS = ("content", "conditions", "denoiser", "coarse", "vocoder")
PLAIN = Controls(use_loudness_statistics=False, mask_threshold=0.0, attenuation_db=0.0)


class MelDataset(toy.ToyDataset):
    """The toy's tones with their mels."""

    settings = FEATURES
    alone = {k: v for k, v in toy.STATISTICS.items() if k not in ("singers", "log_mel")}
    statistics = {**alone, "log_mel": {"min": -11.6, "max": 2.0}, "singers": {"toy": alone}}

    def batch(self, *arguments, **options):
        batch = super().batch(*arguments, **options)
        singer = torch.zeros(len(batch["audio"]), dtype=torch.long)
        return {**batch, "log_mel": mel.log_mel(batch["audio"], CONTRACT), "singer": singer}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The instrument of a run of 12 steps, and the run."""
    home = tmp_path_factory.mktemp("joint")
    preset = toy.preset(SETTINGS, FEATURES, steps=12, segment_s=0.5, validate_every_steps=12, learning_rate=2e-3)
    training.train(MelDataset(), home / "run", preset)
    return instrument.open(training.export(home / "run", home / "voice.zip", "last")), home / "run"


def song(n_samples=16100, voiced=True, settings=FEATURES):
    """A tone of 220 Hz, measured."""
    audio = (0.2 * np.sin(2 * np.pi * 220 / RATE * np.arange(n_samples))).astype(np.float32)
    frames = n_samples // HOP
    voiced = np.broadcast_to(voiced, frames).astype(bool)
    log_mel = mel.log_mel(torch.from_numpy(audio)[None], CONTRACT)[0].numpy() if settings.mel else None
    measured = Features(
        settings, n_samples, np.where(voiced, 220.0, 0.0).astype(np.float32), voiced, voiced.astype(np.float32),
        np.full(frames, -20.0, np.float32), log_mel,
    )  # fmt: skip
    return songs.Song(songs.Path("a song.wav"), "a song", RATE, n_samples, audio, measured)


def test_one_training_trains_all_and_one_export_holds_all(exported):
    opened, run = exported
    assert opened.kind == "diffusion" and opened.model.settings == SETTINGS
    fresh = SETTINGS.build(FEATURES, MelDataset.statistics, 0).state_dict()
    moved = {name for name, value in opened.model.state_dict().items() if not torch.equal(value, fresh[name])}
    for part in PARTS:
        assert any(name.startswith(part + ".") for name in moved), f"{part} was not trained"
    previews = training.previews(run)
    assert previews
    text = (run / "metrics.jsonl").read_text()
    assert all(f'"{part}"' in text for part in ("noise", "coarse", "spread", "vocoder"))


def test_vocoder_learns_from_recordings_alone():
    """Its gradient reaches no other part, and theirs does not reach it: the loss is a plain sum."""
    model = SETTINGS.build(FEATURES, MelDataset.statistics)
    batch = MelDataset().batch(0, 1, 3, 20)
    loss, parts = model.loss(batch, torch.Generator().manual_seed(0))
    without = dataclasses.replace(SETTINGS, vocoder=None).build(FEATURES, MelDataset.statistics)
    plain, _ = without.loss(batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(plain.item() + 0.1 * float(parts["vocoder"]), rel=1e-5)
    grad = torch.autograd.grad(loss, [p for p in model.parameters()], allow_unused=True)
    theirs = dict(zip((n for n, _ in model.named_parameters()), grad, strict=True))
    plain_grad = torch.autograd.grad(plain, [p for p in without.parameters()], allow_unused=True)
    for (name, _), want in zip(without.named_parameters(), plain_grad, strict=True):
        if want is not None:
            torch.testing.assert_close(theirs[name], want)
    assert float(theirs["vocoder.network.last.weight"].abs().max()) > 0


def test_the_pitch_asked_is_sung_in_the_length_of_the_song(exported):
    opened, _ = exported
    voiced = np.arange(62) < 40
    made = convert(opened, song(voiced=voiced), dataclasses.replace(PLAIN, semitone_shift=4.0))
    assert len(made.audio) == 16100 and made.kind == "diffusion"
    spectrum = np.abs(np.fft.rfft(made.harmonic[: 39 * HOP] * np.hanning(39 * HOP), 1 << 17))
    f_hz = np.fft.rfftfreq(1 << 17, 1 / RATE)
    asked = 220 * 2 ** (4 / 12)
    near = np.abs(f_hz / asked - 1) < 0.2
    assert abs(1200 * np.log2(f_hz[near][np.argmax(spectrum[near])] / asked)) < 5
    assert np.abs(made.harmonic[40 * HOP :]).max() == 0  # unvoiced frames are not voiced
    np.testing.assert_allclose(made.harmonic + made.noise, made.audio, atol=1e-6)


def test_seed_sampler_steps_and_start_are_what_was_chosen(exported):
    opened, _ = exported
    s = song()
    one = convert(opened, s, PLAIN, seed=3)
    assert np.array_equal(one.audio, convert(opened, s, PLAIN, seed=3).audio)
    assert np.array_equal(one.audio, convert(opened, s, PLAIN, seed=3, sampler="dpmpp", steps=4).audio)
    chosen = {"sampler": "ddim", "steps": 6, "shallow": 200}
    for change in ({"seed": 4}, *({k: v} for k, v in chosen.items())):
        assert not np.allclose(convert(opened, s, PLAIN, **{"seed": 3, **change}).audio, one.audio, atol=1e-7), change
    made = convert(opened, s, PLAIN, **chosen, singer="toy")
    assert made.settings()["sampling"] == {**chosen, "singer": "toy"} and "sampling" not in one.settings()


def test_progress_reaches_one_and_it_can_be_cancelled(exported):
    opened, _ = exported
    told = []
    convert(opened, song(), PLAIN, progress=lambda fraction, _: told.append(fraction))
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 5
    for after in (2, 4):  # within the walk, and before the sound
        asked = iter([False] * after + [True] * 99)
        with pytest.raises(Cancelled):
            convert(opened, song(), PLAIN, cancelled=lambda asked=asked: next(asked))


def test_what_cannot_be_is_refused_in_a_sentence(exported):
    opened, _ = exported
    s = song()
    for options, words in (
        ({"sampler": "euler"}, "no sampler 'euler'"),
        ({"shallow": 5000}, "from 1 to 1000"),
        ({"singer": "nobody"}, "no singer 'nobody'"),
    ):
        with pytest.raises(ConversionError, match=f"'voice': .*{words}"):
            convert(opened, s, PLAIN, **options)
    with pytest.raises(ConversionError, match="without a log-mel"):
        convert(opened, song(settings=dataclasses.replace(FEATURES, mel=None)), PLAIN)
    other = dataclasses.replace(FEATURES, mel=dataclasses.replace(CONTRACT, log_base="10"))
    with pytest.raises(FeatureError, match="'voice' and of 'a song' differ: log_base e against 10"):
        convert(opened, song(settings=other), PLAIN)
    ddsp = types.SimpleNamespace(name="plain", kind="ddsp", features=FEATURES)
    with pytest.raises(ConversionError, match="steps can be chosen for diffusion instruments only; 'plain'"):
        convert(ddsp, s, PLAIN, steps=3)
    with pytest.raises(ConversionError, match="'plain' is a vocoder"):
        convert(types.SimpleNamespace(name="plain", kind="harmonic", features=FEATURES), s, PLAIN)
    mute = dataclasses.replace(SETTINGS, vocoder=None).build(FEATURES, MelDataset.statistics).eval()
    with pytest.raises(ConversionError, match="trained without a vocoder"):
        convert(dataclasses.replace(opened, model=mute), s, PLAIN)


def test_another_vocoder_can_be_embedded_if_its_mel_is_the_same(exported, tmp_path):
    opened, run = exported
    alone = dataclasses.replace(VOCODER, n_noise_bands=33).build(FEATURES, None, 7)
    path = instrument.save(tmp_path / "v.zip", alone, FEATURES, toy.STATISTICS, created="2026-11-21")
    made = instrument.open(training.export(run, tmp_path / "out.zip", "last", vocoder=path)).model
    assert made.settings == dataclasses.replace(SETTINGS, vocoder=alone.settings)
    mine, theirs, before = made.state_dict(), alone.state_dict(), opened.model.state_dict()
    assert all(torch.equal(mine[f"vocoder.{k}"], v) for k, v in theirs.items())
    assert all(torch.equal(v, before[k]) for k, v in mine.items() if not k.startswith("vocoder."))
    other = dataclasses.replace(FEATURES, mel=dataclasses.replace(CONTRACT, fmax_hz=8000.0))
    path = instrument.save(tmp_path / "w.zip", VOCODER.build(other), other, toy.STATISTICS, created="2026-11-21")
    with pytest.raises(FeatureError, match="the vocoder 'w' and of this run differ: fmax_hz 8000.0 against 7600.0"):
        training.export(run, tmp_path / "out.zip", "last", vocoder=path)
    with pytest.raises(training.TrainingError, match="'out' is of kind 'diffusion'"):
        training.export(run, tmp_path / "no.zip", "last", vocoder=tmp_path / "out.zip")


def test_the_command_line_reaches_all_of_it(exported, tmp_path, capsys):
    _, run = exported
    alone = instrument.save(tmp_path / "v.zip", VOCODER.build(FEATURES, None, 7), FEATURES, toy.STATISTICS, created="x")
    voice, sung = tmp_path / "voice.zip", tmp_path / "sung.wav"
    arguments = ["export", "--run", run, "--out", voice, "--checkpoint", "last", "--vocoder", alone]
    assert main([str(x) for x in arguments]) == 0
    soundfile.write(tmp_path / "a song.wav", song().audio, RATE)
    choice = ["--sampler", "ddim", "--steps", "3", "--shallow", "100", "--singer", "toy"]
    assert main([*(str(x) for x in ("convert", "--instrument", voice, "--input", tmp_path / "a song.wav")),
                 "--out", str(sung), *choice]) == 0  # fmt: skip
    said = json.loads((tmp_path / "sung.wav.json").read_text())
    assert said["sampling"] == {"sampler": "ddim", "steps": 3, "shallow": 100, "singer": "toy"}
    assert soundfile.info(sung).frames == 16100


@pytest.mark.parametrize("name, rate", [("diffusion", 44100), ("diffusion_small", 22050)])
def test_presets_bring_their_vocoder(name, rate):
    preset = config.load([name])
    assert preset.model.vocoder.kind == "harmonic" and preset.features.sample_rate_hz == rate
    tiny = config.load([name, "tiny"])
    assert tiny.model.vocoder.channels == 16
    assert conversion.FORMATS and tiny.model.build(tiny.features).vocoder.sample_rate_hz == rate
