"""Makes the lesson that comes with the package, from the synthetic singers alone: no recording of a person is in it.

    python benchmarks/example_lesson.py FOLDER [--steps 900] [--wave-steps 1800] [--keep-wave]

Trains a small diffusion model on aria and bruno (5 minutes of singing), distills a student of it, and trains a small
DiffWave on their sung vowels, on one CPU thread (about 180, 60 and 230 s here), then writes
``svclib/analysis/lesson_example.json.gz``. A stage whose result is in FOLDER is not repeated.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import torch

from svclib.analysis import lesson, player
from svclib.audio import io as audio
from svclib.conversion import song as songs
from svclib.data import dataset, singers
from svclib.data.recordings import find_recordings
from svclib.data.singers import Note, Score
from svclib.models import instrument
from svclib.training import api as training
from svclib.utils import atomic_store, config

SMALL = (
    "diffusion.DiffusionSettings.channels = 96",
    "diffusion.DiffusionSettings.n_layers = 6",
    "diffusion.DiffusionSettings.condition_dims = 96",
    "diffusion.DiffusionSettings.content_channels = 64",
    "diffusion.DiffusionSettings.content_layers = 2",
    "diffusion.DiffusionSettings.coarse_channels = 96",
    "diffusion.DiffusionSettings.vocoder_rows = 1",
    "vocoders.HarmonicSettings.channels = 64",
    "training.TrainingSettings.batch_size = 8",
)
SMALL_WAVE = (
    "diffwave.DiffWaveSettings.labels = ('a', 'e', 'i', 'o', 'u')",
    "diffwave.DiffWaveSettings.channels = 48",
    "diffwave.DiffWaveSettings.n_layers = 10",
    "diffwave.DiffWaveSettings.dilation_cycle = 10",
    "diffwave.DiffWaveSettings.squeeze = 4",
    "training.TrainingSettings.segment_s = 0.256",
    "training.TrainingSettings.learning_rate = 2e-3",
    "training.TrainingSettings.batch_size = 8",
    "training.TrainingSettings.learning_rate_decay = 0.3",
    "training.TrainingSettings.decay_steps = 1000",
)
PITCHES = (62,)


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def train(recordings, preset, folder: Path, name: str, steps: int, teacher: Path | None = None) -> Path:
    """Dataset, run and instrument of one model; what is there already is used."""
    made = folder / f"{name}.zip"
    if made.exists():
        return made
    data = dataset.prepare(recordings, folder / f"{teacher.stem if teacher else name}_data", preset.features)
    told = {"at": -50}

    def watch(status):
        if status.step >= told["at"] + 50:
            told["at"] = status.step
            say(f"{name}: step {status.step}, loss {status.loss}, held out {status.validation_loss}")

    training.train(data, folder / f"{name}_run", preset, steps=steps, on_progress=watch, init=teacher)
    return training.export(folder / f"{name}_run", made, "last")


def diffusion(folder: Path, steps: int, student_steps: int) -> tuple[Path, Path]:
    """The mel model: both singers, 2.5 minutes each; and its student."""
    for singer in ("aria", "bruno"):
        singers.make_recordings(singer, folder / "songs" / singer, minutes=2.5)
    found = find_recordings([folder / "songs" / singer for singer in ("aria", "bruno")])
    teacher = train(found, config.load(["diffusion_small"], SMALL), folder, "diffusion", steps)
    preset = config.load(["diffusion_small", "distilled"], SMALL)
    return teacher, train(found, preset, folder, "student", student_steps, teacher)


def wave(folder: Path, steps: int) -> Path:
    """The waveform model: one second of a vowel on one note, its label in the name."""
    place = folder / "vowels"
    for singer in ("aria", "bruno"):
        for vowel in "aeiou":
            for take, note in enumerate(PITCHES):
                path = place / f"{vowel}_{singer}_{take}.wav"
                if not path.exists():
                    sung = singers.render(singer, Score((Note(note, 1.0, vowel, -1.0),), vowel), 8000, seed=take)
                    audio.write(path, sung.audio[1200:9600], 8000)
    found = find_recordings([place], labels="{label}_{singer}_{take}")
    return train(found, config.load(["diffwave_digits"], SMALL_WAVE), folder, "vowels", steps)


WAVE_TEXT = (
    "The model behind this page is small and was trained for about four minutes on sung vowels of the two synthetic "
    "singers, all on one note. It was asked for an 'a'. In six steps a hum comes out of the storm and some of the "
    "storm stays; with every step it trained on, more of it would go. Look at how the steps differ."
)


def wave_pages(model, text: str) -> tuple[dict, dict, dict]:
    """Page 8 (six steps of one vowel, and ``text`` about them) and the page about denoising and interpolation."""
    place = {"a": 0, "o": 1}
    sounds = {
        v: singers.render("aria", Score((Note(PITCHES[0], 1.0, v, -1.0),), v), 8000, seed=77).audio for v in place
    }
    a, o = (sounds[v][1200:9600] for v in "ao")
    fast = lesson.fast_and_full(model, 8192, "a", every_step=False)[0]
    runs = lesson.four_examples(model, a, o, "a")
    facts = {"wave_steps": len(fast.trace), "wave_text": text}
    return (
        player.group([fast]),
        facts,
        {"title": "DiffWave: a sound, a sound without noise, sounds between sounds", "group": player.group(runs)},
    )


def main(options) -> None:
    """All stages."""
    folder = options.folder
    begun = time.monotonic()
    mel_zip, student_zip = diffusion(folder, options.steps, options.student_steps)
    if options.keep_wave:
        stored = lesson.example_data()
        group, facts, diffwave = stored["groups"][3], stored["facts"], stored["diffwave"]
    else:
        model = instrument.open(wave(folder, options.wave_steps)).model
        group, facts, diffwave = wave_pages(model, options.wave_text)
    say(f"trained after {time.monotonic() - begun:.0f} s")
    voice = instrument.open(mel_zip)
    path = folder / "twinkle.wav"
    if not path.exists():
        audio.write(path, singers.render("bruno", singers.demo_song()).audio, 44100)
    target = singers.render("aria", singers.random_score(5, 3.0), 22050, seed=5)
    song = songs.load_song(path, voice.features)
    made = lesson.make(
        voice,
        song,
        lesson.LessonOptions(0.1, 4.2, 36, singer="aria", student=instrument.open(student_zip)),
        target=("aria sings something else", target.audio, 22050),
        wave=(group, facts),
        progress=lambda fraction, text: say(f"{fraction:.0%} {text}"),
    )
    stored = {**lesson.data(made), "diffwave": diffwave}
    text = json.dumps(stored, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True).encode()
    atomic_store.commit_file(lesson.EXAMPLE, lambda part: part.write_bytes(gzip.compress(text, 9, mtime=0)))
    say(f"{lesson.EXAMPLE.name}: {lesson.EXAMPLE.stat().st_size / 1e6:.2f} MB after {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--wave-steps", type=int, default=1800)
    parser.add_argument("--wave-text", default=WAVE_TEXT, help="what page 8 says of its model")
    parser.add_argument("--student-steps", type=int, default=400)
    parser.add_argument("--keep-wave", action="store_true", help="leave the pages about DiffWave as they are")
    torch.set_num_threads(1)
    main(parser.parse_args())
