"""Sing real songs with a diffusion instrument and measure pitch, voicing and whose voice is heard.

    python benchmarks/converting.py DATA OUT [--instrument NAME.zip | --minutes M [--set NAME=VALUE ...]]

DATA holds the test recordings (voices/, singing/). Without an instrument one is trained on ``--voice`` first;
everything is made below OUT and used again by a second run. Printed and written to OUT/converting.json, for each song,
sung in the key that is suggested for it:

- ``f0_rmse_cents``, ``f0_correlation``, ``voicing_f1`` of the pitch tracked in the result against the pitch asked for;
- ``against_hand``: the same error against the hand-corrected track of the song, where there is one, shifted by the key;
- ``speaker_similarity`` (see ``speaker.similarity``; the voice print is of the target's training phrases) of the
  result, and of two sounds made without a model: ``shifted``, the song moved to the same key by resampling and time
  stretching, and ``control``, that through an equaliser that gives it the target's long-term spectrum;
- ``log_mel_l1``: what the vocoder (``--vocoder``) adds: how far the log-mel of the sound is from the one that the walk
  painted, mean absolute, nepers;
- ``way``: how far the result came from ``shifted`` (0) to the target's own held-out phrases (1); ``way_of_control``.
"""

import argparse
import json
import sys
from pathlib import Path

import librosa
import numpy as np
import torch

from svclib.audio import io as audio
from svclib.audio.mel import log_mel as compute_log_mel
from svclib.conversion import metrics, pipeline, speaker_similarity
from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.features import extract
from svclib.models import instrument
from svclib.models.vocoders import auto as vocoding
from svclib.training import api as training
from svclib.utils import atomic_store, config

SONGS = ("singing/vocadito_1", "singing/nitech_f001_004", "voices/kerstin_sung")
N_FFT = 2048
SONG_S = 60.0  # a folder of many phrases is sung as one song of at most this length


def at_16k(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """The same sound at the speaker network's rate."""
    return audio.resample(np.asarray(samples, np.float32), rate_hz, speaker_similarity.SAMPLE_RATE_HZ)


def long_term_magnitude(samples: np.ndarray) -> np.ndarray:
    """Root mean square over time of the STFT magnitude, where there is sound, smoothed over a third of an octave."""
    power = np.square(np.abs(librosa.stft(samples.astype(np.float32), n_fft=N_FFT)))
    level = power.sum(axis=0)
    mean = power[:, level > 1e-4 * level.max()].mean(axis=1)
    bins = np.arange(len(mean))
    low, high = np.floor(bins * 2 ** (-1 / 6)).astype(int), np.ceil(bins * 2 ** (1 / 6)).astype(int) + 1
    area = np.concatenate([[0.0], np.cumsum(mean)])
    high = np.minimum(high, len(mean))
    return np.sqrt((area[high] - area[low]) / (high - low)) + 1e-9


def equalised(samples: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The sound through a fixed filter that gives it the long-term spectrum ``wanted``, by at most 30 dB."""
    gain = wanted / long_term_magnitude(samples)
    gain = np.clip(gain / np.median(gain), 10 ** (-30 / 20), 10 ** (30 / 20))
    spectrum = librosa.stft(samples.astype(np.float32), n_fft=N_FFT) * gain[:, None]
    return librosa.istft(spectrum, n_fft=N_FFT, length=len(samples))


class Overheard:
    """A vocoder, and how far the log-mel of the sound it made is from the one it was given: ``log_mel_l1``, nepers."""

    def __init__(self, vocoder: vocoding.AnyVocoder):
        self.vocoder, self.contract, self.name, self.record = vocoder, vocoder.contract, vocoder.name, vocoder.record

    def render(self, log_mel: np.ndarray, *arguments, **watch):
        """As the vocoder's own."""
        made = self.vocoder.render(log_mel, *arguments, **watch)
        heard = compute_log_mel(torch.from_numpy(made.audio)[None], self.contract)[0].numpy()
        self.log_mel_l1 = float(np.abs(heard - log_mel).mean())
        return made


def song_of(folder: Path, out: Path) -> Path:
    """The song of a folder: its one recording, or its phrases one after another, written below OUT."""
    found, _ = audio.find(folder)
    if len(found) == 1:
        return found[0]
    path = out / f"{folder.name}.wav"
    if not path.exists():
        parts, rate_hz = [], audio.read(found[0]).sample_rate_hz
        for recording in found:
            parts += [audio.read(recording, sample_rate_hz=rate_hz).samples, np.zeros(rate_hz // 4, np.float32)]
            if sum(map(len, parts)) > SONG_S * rate_hz:
                break
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, np.concatenate(parts)[: int(SONG_S * rate_hz)], rate_hz)
    return path


def against_hand(folder: Path, sung: extract.Features, shift: int) -> dict | None:
    """F0 error against the hand-corrected track of a song in its folder, shifted by the key; None where there is none.

    The track says time and F0 (0: unvoiced), comma-separated; the value nearest to the middle of a frame counts.
    """
    found = sorted(folder.glob("*_f0.csv"))
    if not found:
        return None
    times_s, f0_hz = np.loadtxt(found[0], delimiter=",").T
    settings = sung.settings
    middles_s = (np.arange(sung.n_frames) + 0.5) * settings.hop_samples / settings.sample_rate_hz
    near = f0_hz[np.searchsorted((times_s[1:] + times_s[:-1]) / 2, middles_s)]
    error = metrics.f0_error_cents(near * 2 ** (shift / 12), near > 0, sung.f0_hz, sung.voiced)
    return {"rmse": error["rmse"], "median": error["median_absolute"], "correlation": error["correlation"]}


def trained(arguments) -> tuple[instrument.Instrument, dataset.Dataset]:
    """The instrument and the dataset of its voice; made where they are missing."""
    preset = config.load([arguments.preset], arguments.set)
    recordings = find_recordings([arguments.data / arguments.voice])
    data = dataset.prepare(recordings, arguments.out / "dataset", preset.features)
    path = arguments.instrument
    if path is None:
        run = arguments.out / "run"
        training.train(data, run, preset, minutes=arguments.minutes)
        path = training.export(run, arguments.out, name=arguments.out.name, which="last", overwrite=True)
    return instrument.open(path), data


def phrases(data: dataset.Dataset, split: str) -> list[np.ndarray]:
    """A dataset's recordings at 16 kHz."""
    return [at_16k(data.audio(i), data.settings.sample_rate_hz) for i in data.indices(split)]


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--instrument", type=Path)
    parser.add_argument("--preset", default="diffusion_small")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--voice", default="voices/kathleen_sung")
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--shallow", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocoder", help="another one than the instrument's own")
    parser.add_argument("--every-step", action="store_true", help="of a diffwave vocoder")
    arguments = parser.parse_args()

    voice, data = trained(arguments)
    training_phrases = phrases(data, "train")
    target = speaker_similarity.speaker_embedding(training_phrases)
    wanted = long_term_magnitude(np.concatenate(training_phrases))
    held_out = speaker_similarity.similarity(np.concatenate(phrases(data, "validation")), target)
    asked = {k: getattr(arguments, k) for k in ("sampler", "steps", "shallow", "temperature")}
    sampling = {k: v for k, v in asked.items() if v is not None}
    report = {
        "instrument": voice.name,
        "sha256": voice.sha256,
        "trained_steps": voice.info["trained_steps"],
        "sampling": sampling,
        "held_out": held_out,
        "songs": {},
    }
    vocoder = Overheard(vocoding.open(arguments.vocoder or voice.path, fast=not arguments.every_step))
    report["vocoder"] = vocoder.record()
    for folder in SONGS:
        song = pipeline.load_song(song_of(arguments.data / folder, arguments.out / "songs"), voice.features)
        suggested = pipeline.suggest_shift(song.features, voice.statistics)
        shift = 12 * suggested.octaves + suggested.semitones
        controls = pipeline.Controls(octave_shift=suggested.octaves, semitone_shift=suggested.semitones)
        made = pipeline.convert(voice, song, controls, arguments.seed, vocoder=vocoder, **sampling)
        pipeline.save(made, arguments.out / "output")
        sung = extract.extract(made.audio, voice.features)
        asked = made.tracks
        error = metrics.f0_error_cents(asked.f0_hz, asked.voiced, sung.f0_hz, sung.voiced)
        accuracy = metrics.f0_accuracy(asked.f0_hz, asked.voiced, sung.f0_hz, sung.voiced)
        plain = at_16k(song.audio, voice.features.sample_rate_hz)
        shifted = (
            librosa.effects.pitch_shift(plain, sr=speaker_similarity.SAMPLE_RATE_HZ, n_steps=shift) if shift else plain
        )
        sounds = {"result": at_16k(made.audio, made.sample_rate_hz), "source": plain, "shifted": shifted}
        sounds["control"] = equalised(shifted, wanted)
        near = {name: speaker_similarity.similarity(x, target)["speaker_similarity"] for name, x in sounds.items()}
        ways = {
            name: (near[key] - near["shifted"]) / (held_out["speaker_similarity"] - near["shifted"])
            for name, key in (("way", "result"), ("way_of_control", "control"))
        }
        report["songs"][Path(folder).name] = {
            "shift_semitones": shift,
            "log_mel_l1": vocoder.log_mel_l1,
            "against_hand": against_hand(arguments.data / folder, sung, shift),
            "f0_rmse_cents": error["rmse"],
            "f0_median_cents": error["median_absolute"],
            "f0_correlation": error["correlation"],
            "raw_pitch_accuracy": accuracy["raw_pitch_accuracy"],
            "octave_error_rate": accuracy["octave_error_rate"],
            "voicing_f1": accuracy["voicing_f1"],
            "speaker_similarity": near,
            **ways,
            "seconds": made.seconds,
            "seconds_of_song": len(song.audio) / voice.features.sample_rate_hz,
        }
        print(json.dumps({folder: report["songs"][Path(folder).name]}, indent=1), flush=True)
    atomic_store.write_json(arguments.out / "converting.json", report)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
