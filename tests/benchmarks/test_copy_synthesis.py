"""Truths held here: a vocoder that gives the recording back measures 0; noise is not periodic, a pulse train is; buzz
on sibilants is found, and the harmonic vocoder has none, on the synthetic singers whose sibilants are known."""

import functools
from pathlib import Path

import numpy as np
import pytest
import toy
from singer_truth import truth as truth_of

from lib import copysynthesis
from svclib.audio import io as audio
from svclib.audio.mel import MelConfig
from svclib.data import recordings, singers
from svclib.data.recordings import find_recordings
from svclib.features.extract import FeatureSettings
from svclib.models import instrument
from svclib.models.ddsp.model import Synthesis
from svclib.models.vocoders import auto as vocoding
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils.errors import TrainingError

RATE, HOP = 22050, 256
CONTRACT = MelConfig(RATE, 1024, 1024, HOP, 80, 0.0, 8000.0)
FEATURES = FeatureSettings(sample_rate_hz=RATE, hop_samples=HOP, loudness_n_fft=1024, mel=CONTRACT)


@functools.cache
def sung():
    notes = [singers.Note(60 + i, 0.5, lyric) for i, lyric in enumerate(("sa", "shi", "la", "so"))]
    return singers.render(next(iter(singers.SINGERS)), singers.Score(tuple(notes)), RATE)


class Double(vocoding.LoadedVocoder):
    """A vocoder made of a function of the recording's sound."""

    def __init__(self, make, kind="nsf_hifigan"):
        super().__init__("double", kind, FEATURES, "", Path("double"), None)
        object.__setattr__(self, "make", make)

    def resynthesize(self, measured, seed=0, **_):
        made = self.make(sung().audio[: measured.n_frames * HOP].copy(), measured).astype(np.float32)
        return Synthesis(made, made, np.zeros_like(made))


@pytest.fixture(scope="module")
def harmonic(tmp_path_factory):
    path = tmp_path_factory.mktemp("harmonic") / "fresh.zip"
    settings = HarmonicSettings(channels=16, n_layers=1, n_noise_bands=65)
    statistics = {**toy.STATISTICS, "log_mel": None}
    return vocoding.load_vocoder(instrument.save(path, settings.build(FEATURES), FEATURES, statistics, created="x"))


def test_periodicity_of_known_waves():
    t = np.arange(RATE)
    pulses, noise = (t % 100 == 0).astype(float), np.random.default_rng(0).standard_normal(RATE)
    centres = np.arange(2000, 20000, 500)
    assert copysynthesis.periodicity(pulses, centres, RATE).min() > 0.999
    assert copysynthesis.periodicity(np.sin(2 * np.pi * 300 * t / RATE), centres, RATE).min() > 0.99
    assert copysynthesis.periodicity(noise, centres, RATE).mean() < 0.25
    half = copysynthesis.periodicity(noise + pulses * 10, centres, RATE).mean()  # both of power 1: half is periodic
    assert 0.4 < half < 0.65
    assert np.isnan(copysynthesis.periodicity(np.zeros(RATE), centres, RATE)).all()


def test_the_recording_itself_measures_nothing():
    found = copysynthesis.measure(Double(lambda x, _: x), sung().audio)
    for name in ("log_mel_l1", "stft_distance", "f0_error_cents", "f0_rmse_cents", "buzz"):
        assert found[name] == pytest.approx(0, abs=1e-6), name
    assert found["voicing_f1"] == 1 and found["frames"] == len(sung().audio) // HOP
    assert np.isnan(found["harmonic_unvoiced_db"])  # it has no parts


def test_unvoiced_frames_are_the_sibilants():
    from svclib.features import extract

    measured = extract.extract(sung().audio, FEATURES)
    frames = copysynthesis.unvoiced_frames(measured)
    phones = np.array(truth_of(sung(), RATE, HOP).phones)[frames]
    assert len(frames) >= 10 and np.isin(phones, ("s", "sh", "pau")).all()


def test_buzz_on_sibilants_is_found():
    def buzzing(x, measured):
        voiced = np.repeat(measured.voiced, HOP)
        return x + 0.3 * (np.arange(len(x)) % 180 == 0) * ~voiced

    found = copysynthesis.measure(Double(buzzing), sung().audio)
    assert found["buzz"] > 0.2
    leaking = copysynthesis.measure(Double(buzzing, "harmonic"), sung().audio)
    assert leaking["harmonic_unvoiced_db"] > -30


def test_the_harmonic_vocoder_does_not_buzz(harmonic):
    found = copysynthesis.measure(harmonic, sung().audio)
    assert found["frames_unvoiced"] >= 10 and found["harmonic_unvoiced_db"] == -200  # no harmonic at all
    assert found["buzz"] < 0.05
    assert found["f0_error_cents"] < 10 and found["voicing_f1"] > 0.9
    assert found["log_mel_l1"] < 1.0  # untrained; silence measures several nepers
    silent = copysynthesis.measure(Double(lambda x, _: 0 * x), sung().audio)
    assert silent["log_mel_l1"] > 3 * found["log_mel_l1"] and np.isnan(silent["f0_error_cents"])


def test_recordings_summary_and_table(tmp_path, harmonic):
    audio.write(tmp_path / "a.wav", sung().audio, RATE)
    audio.write(tmp_path / "b.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    rows = [copysynthesis.measure(harmonic, x) for _, x in copysynthesis.recordings(tmp_path, harmonic)]
    mean = copysynthesis.summary(rows)
    assert mean["f0_error_cents"] == pytest.approx(rows[0]["f0_error_cents"])  # noise has none
    weights = [r["frames"] for r in rows]
    assert mean["log_mel_l1"] == pytest.approx(np.average([r["log_mel_l1"] for r in rows], weights=weights))
    mute = dict(rows[0], harmonic_unvoiced_db=-40.0, frames_unvoiced=0, buzz=float("nan"))  # no other part there
    assert copysynthesis.summary([mute])["harmonic_unvoiced_db"] == -40.0
    assert np.isnan(copysynthesis.summary([mute])["buzz"])
    text = copysynthesis.table({**mean, "f0_rmse_cents": float("nan")})
    words = copysynthesis.OPTIONAL  # are not measured here
    assert len(text.splitlines()) == len(copysynthesis.HEADINGS) - len(words) and "nothing to measure" in text


# Singers that are only held out -----------------------------------------------------------------------------------


def entries(**counts):
    return [
        {"name": f"{singer}{i}", "sha256": f"{singer}{i}", "n_samples": 100, "singer": singer}
        for singer, n in counts.items()
        for i in range(n)
    ]


def test_every_singer_keeps_something_to_learn_from():
    for seed in range(60):
        many = entries(**{f"a{seed}": 6, f"b{seed}": 1, f"c{seed}": 2, f"d{seed}": 1})
        split = recordings.hold_out(many)
        marked = [{**e, "split": s} for e, s in zip(many, split, strict=True)]
        held = [e for e in marked if e["split"] == "validation"]
        assert held and (not recordings.only_held_out(marked) or len(held) == 1)
    assert sorted(recordings.hold_out(entries(x=2))) == ["train", "validation"]


def test_a_singer_who_is_only_held_out_is_told(tmp_path):
    from svclib.data import dataset
    from svclib.training import api as training
    from svclib.utils import config

    for name, low in (("ann", 60), ("bea", 62)):
        for i in range(2):
            made = singers.render(next(iter(singers.SINGERS)), singers.Score((singers.Note(low + i, 0.8, "la"),)), RATE)
            audio.write(tmp_path / name / f"{name}_{i}.wav", made.audio, RATE)
    preset = config.load(["diffusion_small", "tiny"])
    found = find_recordings([tmp_path / "ann", tmp_path / "bea"])
    data = dataset.prepare(found, tmp_path / "data", preset.features, "ann_*")
    assert any("All recordings of ann are held out" in m and "no model can learn" in m for m in data.messages)
    with pytest.raises(TrainingError, match="All recordings of ann in the dataset are held out"):
        training.train(data, tmp_path / "run", preset)
