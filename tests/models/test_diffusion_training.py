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
from toy_diffusion import CONTRACT, FEATURES, HOP, RATE, SETTINGS, STATISTICS, VOCODER, MelDataset, alone, song

from svclib.__main__ import main
from svclib.cli.commands import singer_mix
from svclib.conversion import pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import convert
from svclib.features.extract import extract
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.training import api as training
from svclib.training import resume
from svclib.utils import config
from svclib.utils.errors import Cancelled, ConfigError, ConversionError, ModelError, TrainingError

PARTS = ("content", "conditions", "denoiser", "coarse", "vocoder")
PLAIN = Controls(use_loudness_statistics=False, mask_threshold=0.0, attenuation_db=0.0, breath=0.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The instrument of a run of 12 steps, and the run."""
    home = tmp_path_factory.mktemp("joint")
    preset = toy.preset(SETTINGS, FEATURES, steps=12, segment_s=0.5, validate_every_steps=12, learning_rate=2e-3)
    training.train(MelDataset(), home / "run", preset)
    return instrument.open(training.export(home / "run", home / "voice.zip", "last")), home / "run"


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
    frozen = dataclasses.replace(SETTINGS, vocoder_weight=0.0).build(FEATURES, MelDataset.statistics)
    loss, parts = frozen.loss(batch, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == plain.item() and "vocoder" not in parts
    assert all(p.grad is None for p in frozen.vocoder.parameters())


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
    one = convert(opened, s, PLAIN, sampling=SamplingOptions(seed=3))
    assert np.array_equal(one.audio, convert(opened, s, PLAIN, sampling=SamplingOptions(seed=3)).audio)
    assert np.array_equal(one.audio, convert(opened, s, PLAIN, SamplingOptions("dpmpp", 4, seed=3)).audio)
    chosen = {"sampler": "ddim", "steps": 6, "shallow": 200, "temperature": 0.5}
    for change in ({"seed": 4}, *({k: v} for k, v in chosen.items())):
        assert not np.allclose(
            convert(opened, s, PLAIN, SamplingOptions(**{"seed": 3, **change})).audio, one.audio, atol=1e-7
        ), change
    sung_by = dataclasses.replace(PLAIN, singer="toy")
    made = convert(opened, s, sung_by, SamplingOptions(**chosen, precision="fp32"))
    assert made.settings()["sampling"] == {**chosen, "precision": "fp32"}
    assert made.settings()["controls"]["singer"] == "toy"
    own = one.settings()["sampling"]  # what the instrument chose is told, so that the same can be asked for
    assert own == {"sampler": "dpmpp", "steps": 4, "temperature": 1.0, "precision": own["precision"]}
    assert own["precision"] in ("fp32", "bf16") and ", sampler dpmpp, steps 4, temperature 1.0" in one.settings_text
    assert np.array_equal(convert(opened, s, PLAIN, SamplingOptions(seed=3, **own)).audio, one.audio)


def test_progress_reaches_one_and_it_can_be_cancelled(exported):
    opened, _ = exported
    told = []
    convert(opened, song(), PLAIN, progress=lambda fraction, _: told.append(fraction))
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 5
    for after in (2, 4):  # within the sampling run, and before the sound
        asked = iter([False] * after + [True] * 99)
        with pytest.raises(Cancelled):
            convert(opened, song(), PLAIN, cancelled=lambda asked=asked: next(asked))


def test_what_cannot_be_is_refused_in_a_sentence(exported):
    opened, _ = exported
    s = song()
    for options in ({"sampler": "euler"}, {"temperature": -1}, {"steps": 0}, {"precision": "int8"}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is .*; expected"):
            SamplingOptions(**options)
    with pytest.raises(ConversionError, match="'voice': .*from 1 to 1000"):
        convert(opened, s, PLAIN, SamplingOptions(shallow=5000))
    with pytest.raises(ConversionError, match="'voice': .*no singer 'nobody'"):
        convert(opened, s, dataclasses.replace(PLAIN, singer="nobody"))
    with pytest.raises(ConversionError, match="without a log-mel"):
        convert(opened, song(settings=dataclasses.replace(FEATURES, mel=None)), PLAIN)
    other = dataclasses.replace(FEATURES, mel=dataclasses.replace(CONTRACT, log_base="10"))
    with pytest.raises(ModelError, match="'voice' and of 'a song' differ: log_base e against 10"):
        convert(opened, song(settings=other), PLAIN)
    ddsp = types.SimpleNamespace(name="plain", kind="ddsp", features=FEATURES)
    with pytest.raises(ConversionError, match="steps can be chosen for diffusion instruments only; 'plain'"):
        convert(ddsp, s, PLAIN, SamplingOptions(steps=3))
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
    with pytest.raises(ModelError, match="the vocoder 'w' and of this run differ: fmax_hz 8000.0 against 7600.0"):
        training.export(run, tmp_path / "out.zip", "last", vocoder=path)
    with pytest.raises(TrainingError, match="'out' is of kind 'diffusion'"):
        training.export(run, tmp_path / "no.zip", "last", vocoder=tmp_path / "out.zip")


def test_the_command_line_reaches_all_of_it(exported, tmp_path, capsys):
    _, run = exported
    alone = instrument.save(tmp_path / "v.zip", VOCODER.build(FEATURES, None, 7), FEATURES, toy.STATISTICS, created="x")
    voice, sung = tmp_path / "voice.zip", tmp_path / "sung.wav"
    arguments = ["export", "--run", run, "--out", voice, "--checkpoint", "last", "--vocoder", alone]
    assert main([str(x) for x in arguments]) == 0
    soundfile.write(tmp_path / "a song.wav", song().audio, RATE)
    choice = ["--sampler", "ddim", "--steps", "3", "--shallow", "100", "--singer", "toy"]
    assert (
        main(
            [
                *(str(x) for x in ("convert", "--instrument", voice, "--input", tmp_path / "a song.wav")),
                "--out",
                str(sung),
                *choice,
            ]
        )
        == 0
    )
    said = json.loads((tmp_path / "sung.wav.json").read_text())
    assert said["sampling"].items() >= {"sampler": "ddim", "steps": 3, "shallow": 100}.items()
    assert said["controls"]["singer"] == "toy"
    assert soundfile.info(sung).frames == 16100


@pytest.mark.parametrize("name, rate", [("diffusion", 44100), ("diffusion_small", 22050)])
def test_presets_bring_their_vocoder(name, rate):
    preset = config.load([name])
    assert preset.model.vocoder.kind == "harmonic" and preset.features.sample_rate_hz == rate
    tiny = config.load([name, "tiny"])
    assert tiny.model.vocoder.channels == 16
    assert pipeline.FORMATS and tiny.model.build(tiny.features).vocoder.sample_rate_hz == rate


def test_digital_silence_stays_silent(exported):
    """Even of an instrument that hums: below -80 dBFS from half a window after the sound to half a window before it."""
    opened, _ = exported
    s = song(3 * RATE)
    audio = s.audio.copy()
    audio[RATE : 2 * RATE] = 0
    window = FEATURES.loudness_n_fft // 2 + 2 * HOP
    silent = slice(RATE + window, 2 * RATE - window)
    s = dataclasses.replace(s, audio=audio, features=extract(audio, FEATURES))
    made = convert(opened, s, PLAIN)
    assert np.abs(made.audio[silent]).max() < 1e-4
    loud = made.audio[: RATE - HOP]
    assert 20 * np.log10(np.sqrt(np.mean(loud**2))) > -60
    open_gate = dataclasses.replace(s.features, loudness_db=np.maximum(s.features.loudness_db, -79.0))
    hums = convert(opened, dataclasses.replace(s, features=open_gate), PLAIN).audio
    assert np.abs(hums[silent]).max() > 1e-4  # so that the silence is the conversion's doing
    np.testing.assert_allclose(hums[: RATE - HOP], loud, atol=2e-3)  # and sound before it is not faded


def test_breaths_keep_their_energy_and_are_not_voiced(exported, monkeypatch):
    """A sampling run that ends at the song's own mel: the rest of a burst of noise is the pipeline's alone."""
    opened, _ = exported
    fresh = VOCODER.build(FEATURES, None, 0).eval()  # untrained, it inverts the mel
    model = SETTINGS.build(FEATURES, MelDataset.statistics).eval()
    model.vocoder = fresh
    rng = np.random.default_rng(0)
    audio = song(3 * RATE).audio.copy()
    audio[RATE : 2 * RATE] = 0.03 * rng.standard_normal(RATE)
    features_ = extract(audio, FEATURES)
    s = dataclasses.replace(song(3 * RATE), audio=audio, features=features_)
    burst = slice(RATE // HOP + 4, 2 * RATE // HOP - 4)
    assert not features_.voiced[burst].any()
    frames = -(-len(audio) // HOP)
    mel_ = np.pad(features_.log_mel, ((0, frames - len(features_.log_mel)), (0, 0)), mode="edge")
    monkeypatch.setattr(type(model), "sample", lambda *a, **k: torch.from_numpy(mel_)[None])
    made = convert(dataclasses.replace(opened, model=model), s)  # with the kind's own controls
    inside = slice(burst.start * HOP, burst.stop * HOP)

    def level(x):
        return 20 * np.log10(np.sqrt(np.mean(x**2)))

    assert np.abs(made.harmonic[inside]).max() == 0
    assert abs(level(made.audio[inside]) - made.gain_db - level(audio[inside])) < 3
    asked, sung = made.tracks.loudness_db, features_.loudness_db
    note = slice(4, RATE // HOP - 4)
    change = (asked - sung)[burst].mean() - (asked - sung)[note].mean()
    assert abs(change) < 12  # the loudness curve bends, but no breath is taken away


@pytest.mark.parametrize("n_samples", [16001, 25599, 300])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_length_and_alignment_of_odd_songs_at_their_own_rate(exported, tmp_path, n_samples, rate):
    opened, _ = exported
    n = round(n_samples * rate / RATE)
    sound = 0.2 * np.sin(2 * np.pi * 220 / rate * np.arange(n)) * (np.arange(n) > n // 2)
    soundfile.write(tmp_path / "odd.wav", sound, rate)
    s = songs.load_song(tmp_path / "odd.wav", FEATURES)
    for keep_rate in (False, True):
        made = convert(opened, s, PLAIN, keep_rate=keep_rate)
        wanted = n if keep_rate else round(n * RATE / rate)
        assert len(made.audio) == wanted and made.sample_rate_hz == (rate if keep_rate else RATE)
        if n_samples > 1000:  # it begins where the song begins
            first = np.flatnonzero(np.abs(made.audio) > 0.1 * np.abs(made.audio).max())[0]
            assert first / made.sample_rate_hz == pytest.approx(n / 2 / rate, abs=0.04)


def test_octave_errors_are_told_and_repaired_only_if_asked(exported):
    opened, _ = exported
    s = song(RATE)
    f0 = s.features.f0_hz.copy()
    f0[20:30] *= 2
    wrong = dataclasses.replace(s, features=dataclasses.replace(s.features, f0_hz=f0))
    buzz = sum(np.sin(2 * np.pi * 220 * k / RATE * np.arange(RATE)) / k for k in range(1, 9))
    wrong = dataclasses.replace(wrong, audio=(0.1 * buzz).astype(np.float32))
    told = convert(opened, wrong, PLAIN)
    assert told.tracks.f0_hz[25] == pytest.approx(440)
    assert "one place: 0:00.3 (an octave too high)" in told.warnings[0]
    mended = convert(opened, wrong, dataclasses.replace(PLAIN, repair_octaves=True))
    np.testing.assert_allclose(mended.tracks.f0_hz, 220, rtol=1e-5)
    assert "This was repaired." in mended.warnings[0]
    assert mended.settings()["octave_errors"] == [[0.32, 0.48, 1]] and mended.settings()["controls"]["repair_octaves"]


def test_a_model_of_several_singers_is_a_start_for_one(exported, tmp_path):
    """Whom it knows is taken by name; who is new begins in the middle of them; all other weights are the same."""
    three = SETTINGS.build(FEATURES, {**STATISTICS, "singers": {"ann": alone, "toy": alone, "zoe": alone}}, seed=1)
    rows = three.conditions.singer.detach()
    for name, expected in (("toy", rows[1]), ("new", rows.mean(0))):
        mine = SETTINGS.build(FEATURES, {**STATISTICS, "singers": {name: alone}}, seed=2)
        resume.init_from(mine, three)
        torch.testing.assert_close(mine.conditions.singer[0], expected)
        theirs = {k: v for k, v in three.state_dict().items() if k != "conditions.singer"}
        assert all(torch.equal(v, mine.state_dict()[k]) for k, v in theirs.items())
    path = instrument.save(
        tmp_path / "three.zip",
        three,
        FEATURES,
        {**MelDataset.statistics, "singers": {"ann": alone, "toy": alone, "zoe": alone}},
        created="2026-11-21",
        name="three",
    )
    preset = toy.preset(SETTINGS, FEATURES, steps=1, segment_s=0.5)
    assert training.train(MelDataset(), tmp_path / "run", preset, init=path).step == 1


@pytest.mark.parametrize("theirs, mine", [("sines", "pulses"), ("pulses", "sines")])
def test_a_vocoder_of_another_excitation_is_a_start_too(theirs, mine, tmp_path):
    """What both have is taken over; phases and depths that the other lacks begin at zero."""
    settings = {
        name: dataclasses.replace(SETTINGS, vocoder=dataclasses.replace(SETTINGS.vocoder, excitation=name))
        for name in (theirs, mine)
    }
    statistics = {**STATISTICS, "singers": {"toy": alone}}
    start, model = (settings[name].build(FEATURES, statistics, seed=seed) for seed, name in ((1, theirs), (2, mine)))
    torch.nn.init.normal_(start.vocoder.network.last.weight)
    other = instrument.Instrument("it", "diffusion", start, FEATURES, statistics, {}, "", tmp_path)
    assert resume.architecture_differences(other, toy.preset(settings[mine], FEATURES)) == ""
    resume.init_from(model, start)
    weights, had = model.vocoder.network.last.weight, start.vocoder.network.last.weight
    n = min(len(weights), len(had))
    assert torch.equal(weights[:n], had[:n]) and not weights[n:].any()
    assert torch.equal(model.vocoder.network.first.weight, start.vocoder.network.first.weight)


def test_a_run_begun_with_sines_goes_on_with_them_where_the_preset_has_pulses(tmp_path):
    """Stopped after two steps and resumed by the preset of today: the weights of a run that never stopped."""
    sines, pulses = (
        toy.preset(dataclasses.replace(SETTINGS, vocoder=dataclasses.replace(SETTINGS.vocoder, excitation=name)),
                   FEATURES, steps=4, segment_s=0.5)
        for name in ("sines", "pulses")
    )  # fmt: skip
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    training.train(MelDataset(), whole, sines, init=None)
    training.train(MelDataset(), parted, sines, steps=2, init=None)
    result = training.train(MelDataset(), parted, pulses)
    assert result.step == 4 and any("keeps them" in text for text in result.messages)
    one, other = (instrument.open(training.export(run, tmp_path / f"{run.name}.zip")) for run in (whole, parted))
    assert other.model.settings.vocoder.excitation == "sines"
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name


def test_singers_are_mixed_on_the_command_line(tmp_path):
    for given, wanted in (
        (None, None),
        (["ann"], "ann"),
        (["ann=0.3", "bea=0.7"], {"ann": 0.3, "bea": 0.7}),
        (["ann", "a=b=2"], {"ann": 1.0, "a=b": 2.0}),
    ):
        assert singer_mix(given) == wanted
    for bad, words in ((["ann=x"], "'ann=x'"), (["ann=-1"], "0 or more"), (["ann", "ann=1"], "once")):
        with pytest.raises(ConfigError, match=words):
            singer_mix(bad)
    model = SETTINGS.build(FEATURES, {**STATISTICS, "singers": {"ann": {}, "bea": {}}})
    assert model.singer_weights({"ann": 1, "bea": 3})[0].tolist() == [0.25, 0.75]


def test_a_folder_of_songs_goes_on_past_one_that_fails(exported, tmp_path, capsys):
    voice = exported[1].parent / "voice.zip"
    folder = tmp_path / "songs"
    folder.mkdir()
    for name in ("a", "c"):
        soundfile.write(folder / f"{name}.wav", song(8000).audio, RATE)
    soundfile.write(folder / "b.wav", np.zeros(20), RATE)
    arguments = ["convert", "--instrument", voice, "--input", folder, "--out", tmp_path / "out", "--key", "auto"]
    assert main([str(x) for x in arguments]) == 2
    assert sorted(p.name for p in (tmp_path / "out").glob("*.wav")) == ["a - voice.wav", "c - voice.wav"]
    told = capsys.readouterr().err
    assert "2 of 3 songs were converted" in told and "b.wav: " in told and "less than one frame" in told


def test_export_with_its_dataset_adds_the_retrieval_codebook(exported, tmp_path):
    opened, run = exported
    data = types.SimpleNamespace(
        indices=lambda split: [0],
        recordings=[{"singer": opened.model.singers[0]}],
        features=lambda index: song().features,
    )
    path = training.export(run, tmp_path / "with.zip", "last", dataset=data)
    found = instrument.open(path)
    assert found.model.codebook.vectors.shape[:2] == (1, 512)
    preset = toy.preset(SETTINGS, FEATURES, steps=1, segment_s=0.5)
    assert training.train(MelDataset(), tmp_path / "run", preset, init=path).step == 1
    plain = convert(found, song(), PLAIN, SamplingOptions(seed=3)).audio
    assert np.array_equal(plain, convert(opened, song(), PLAIN, SamplingOptions(seed=3)).audio)
    made = convert(found, song(), PLAIN, SamplingOptions(seed=3, retrieval=1.0, words_guidance=0.5))
    assert made.settings()["sampling"]["retrieval"] == 1.0 and not np.allclose(made.audio, plain)
    with pytest.raises(ConversionError, match="codebook"):
        convert(opened, song(), PLAIN, SamplingOptions(retrieval=0.5))


def test_a_run_goes_on_where_only_the_defaults_of_sampling_are_others(tmp_path):
    """They are no part of training: bit by bit the weights of a run that never stopped."""
    before = toy.preset(SETTINGS, FEATURES, steps=4, segment_s=0.5)
    changed = dataclasses.replace(SETTINGS, temperature=0.6, temperature_tilt=1.0, sampler_steps=3)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    training.train(MelDataset(), whole, before, init=None)
    training.train(MelDataset(), parted, before, steps=2, init=None)
    result = training.train(MelDataset(), parted, toy.preset(changed, FEATURES, steps=4, segment_s=0.5))
    assert any("temperature 1.0 there, 0.6 here" in text for text in result.messages)
    one, other = (instrument.open(training.export(run, tmp_path / f"{run.name}.zip")) for run in (whole, parted))
    assert other.model.settings == changed and one.model.settings == SETTINGS
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    with pytest.raises(TrainingError):
        training.train(MelDataset(), parted, toy.preset(dataclasses.replace(SETTINGS, channels=8), FEATURES, steps=5))
