"""Train on a real voice, convert two real songs with it, and measure how far the result is from what was asked.

    python benchmarks/singing.py DATA OUT [--preset ddsp_small] [--minutes 15] [--voice voices/kathleen_sung]

DATA holds the test recordings (voices/, singing/). Everything is made below OUT and used again by a second run. Printed
and written to OUT/singing.json:

- spectral loss (six scales, v1 log rule) of the best checkpoint on held-out phrases: the mean over their windows of one
  training segment, and the mean over whole phrases;
- for each song, asked against obtained: loudness L1 in dB on frames asked above -60 dB, raw pitch accuracy at 50 cents
  of the pitch tracked in the result against the pitch that was asked for.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from svclib.audio import io as audio
from svclib.conversion import key_suggestion, metrics, pipeline
from svclib.conversion import song as songs
from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.features import extract
from svclib.features.f0 import fill_unvoiced
from svclib.models import instrument
from svclib.training import api as training
from svclib.utils import atomic_store, config

SONGS = ("singing/vocadito_1", "singing/nitech_f001_004")


def obtained(voice: instrument.Instrument, result: pipeline.Conversion) -> dict[str, float]:
    """Asked against obtained, measured with the instrument's own analysis. ``gain_db`` of the limiter is undone."""
    measured = extract.extract(result.audio, voice.features)
    asked = result.tracks
    pitch = metrics.f0_accuracy(asked.f0_hz, asked.voiced, measured.f0_hz, measured.voiced)
    loudness = metrics.loudness_l1_db(asked.loudness_db, measured.loudness_db - result.gain_db)
    return {"loudness_l1_db": loudness, **{name: pitch[name] for name in ("raw_pitch_accuracy", "voicing_f1")}}


def phrase_loss(voice: instrument.Instrument, data: dataset.Dataset) -> float:
    """Mean spectral loss over the held-out recordings, each rendered whole from its own pitch and loudness."""
    losses = []
    for index in data.indices("validation"):
        measured = data.features(index)
        whole = {
            "audio": data.audio(index)[: measured.n_frames * voice.features.hop_samples],
            "f0_hz": fill_unvoiced(measured.f0_hz, measured.voiced).astype("float32"),
            "voiced": measured.voiced,
            "loudness_db": measured.loudness_db,
        }
        batch = {name: torch.from_numpy(value.copy())[None] for name, value in whole.items()}
        losses.append(float(voice.model.validation_loss(batch)))
    return sum(losses) / len(losses)


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="ddsp_small")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--voice", default="voices/kathleen_sung")
    arguments = parser.parse_args()

    preset = config.load(arguments.preset)
    recordings = find_recordings([arguments.data / arguments.voice])
    data = dataset.prepare(recordings, arguments.out / "dataset", preset.features)
    ended = training.train(data, arguments.out / "run", preset, minutes=arguments.minutes)
    path = training.export(ended.run, arguments.out, name="benchmark", overwrite=True)
    voice = instrument.open(path)
    best = next(c for c in training.checkpoints(ended.run) if c.step == voice.info["trained_steps"])
    report = {
        "preset": arguments.preset,
        "minutes": arguments.minutes,
        "threads": torch.get_num_threads(),
        "steps": ended.step,
        "best_step": best.step,
        "held_out_loss_of_windows": best.validation_loss,
        "held_out_loss_of_phrases": phrase_loss(voice, data),
        "songs": {},
    }
    for folder in SONGS:
        found, _ = audio.find(arguments.data / folder)
        song = songs.load_song(found[0], voice.features)
        suggestion = key_suggestion.suggest_shift(song.features, voice.statistics, voice.kind)
        result = pipeline.convert(voice, song, suggestion.applied())
        pipeline.save(result, arguments.out / "output")
        report["songs"][Path(folder).name] = {"shift_semitones": suggestion.shift_semitones, **obtained(voice, result)}
    atomic_store.write_json(arguments.out / "singing.json", report)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
