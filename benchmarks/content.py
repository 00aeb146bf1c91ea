"""Does the content code keep the words and leave the reader behind? Synthetic readers converted to a voice, measured.

    python benchmarks/content.py DATA OUT [--steps N] [--temperature X] [--shallow T] [--set NAME=VALUE ...]
        [--voice FOLDER ...] [--pretrained OTHER_OUT] [--design vq | adversary]

Trains the same diffusion preset twice on ``voices_spoken/kathleen``, to the same number of steps: with information
perturbation as the preset has it, and without (``UNPERTURBED`` all 0). ``--set`` holds for both, so another design is
``--set diffusion.DiffusionSettings.warp_range=0.35``. A training that stopped before is taken up again. Two speech
synthesisers (espeak-ng, and flite's voice rms; both must be installed) read the texts of ``voices/kathleen_spoken``,
sentences the training did not hold. Each reading is converted by both models in key 0, with the controls as they begin
for such an instrument, and compared with the voice's own reading of the text. Beside the two readers stands ``own``:
the voice's own reading converted, what model and vocoder lose of a reading that they know. ``--temperature`` and
``--shallow`` are the walk's; ``--shallow 1`` leaves it out, and what is heard is the coarse mel. Both reread what was
trained, so they cost no training. ``--voice`` may be given several times: one model learns all of them and sings
with the first by name. ``--pretrained`` begins with the two models of another OUT. ``--design``: see
``content_designs.py``.

Figure: mel-cepstral distance in dB, orders 1 to 24, 5 ms frames, mean over the path of dynamic time warping, silence
trimmed (``metrics.mel_cepstral_distance_db``). Printed and written to OUT/content.json
(OUT/content_shallow_T.json and so on) for each reader:
``unconverted``, ``without``, ``with``, and ``gain``, by what share ``with`` is nearer than ``without``; a bootstrap
over sentences gives the 90 % range of the gain.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import content_designs
import librosa
import numpy as np
import torch

from svclib.audio import io as audio
from svclib.audio.mel import MelConfig, log_mel
from svclib.conversion import metrics, pipeline
from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.models import instrument
from svclib.training import api as training
from svclib.utils import atomic_store, config

RATE_HZ = 16000
MEL = MelConfig(
    sample_rate_hz=RATE_HZ, n_fft=1024, window_samples=400, hop_samples=80, n_mels=80, fmin_hz=0.0, fmax_hz=8000.0
)
VOICE = "voices_spoken/kathleen"
READERS = {
    "espeak": ["espeak-ng", "-v", "en-us", "-w", "{out}", "{text}"],
    "flite": ["flite", "-voice", "rms", "-t", "{text}", "-o", "{out}"],
}
UNPERTURBED = ("warp_range", "equaliser_db", "code_noise")


def trimmed_log_mel(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Natural-log mel of 5 ms frames, silence at both ends left out."""
    samples = audio.resample(np.asarray(samples, np.float32), rate_hz, RATE_HZ)
    trimmed, _ = librosa.effects.trim(samples, top_db=40, frame_length=400, hop_length=80)
    return log_mel(torch.from_numpy(np.ascontiguousarray(trimmed))[None], MEL)[0].numpy()


def read_aloud(reader: str, text: str, path: Path) -> Path:
    """A sentence read by a synthesiser, kept."""
    if not path.exists():
        command = READERS[reader]
        if shutil.which(command[0]) is None:
            sys.exit(f"{command[0]} is not installed; on Debian: apt-get install espeak-ng flite.")
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([part.format(out=path, text=text) for part in command], check=True)
    return path


def trained(arguments, name: str, changes: list[str]) -> instrument.Instrument:
    """The instrument of one of the two trainings; made where it is missing."""
    preset = config.load([arguments.preset], [*arguments.set, *changes])
    recordings = find_recordings([arguments.data / voice for voice in arguments.voice or [VOICE]])
    data = dataset.prepare(recordings, arguments.out / "dataset", preset.features)
    start = arguments.pretrained and arguments.pretrained / f"{name}.zip"
    result = training.train(data, arguments.out / name, preset, steps=arguments.steps, init=start)
    if result.step < arguments.steps:
        sys.exit(f"The training '{name}' stopped at step {result.step} of {arguments.steps}; run this again to go on.")
    return instrument.open(training.export(arguments.out / name, arguments.out, "last", name=name, overwrite=True))


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--preset", default="diffusion_small")
    parser.add_argument("--voice", action="append", help=f"may be given several times; {VOICE} by default")
    parser.add_argument("--pretrained", type=Path, metavar="OTHER_OUT")
    parser.add_argument("--design", choices=content_designs.DESIGNS)
    parser.add_argument("--only", choices=("with", "without"), help="train this one of the two, and stop")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--shallow", type=int)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    changes = {"with": [], "without": [f"diffusion.DiffusionSettings.{n}=0.0" for n in UNPERTURBED]}
    names = [arguments.only] if arguments.only else list(changes)
    with content_designs.used(arguments.design):
        models = {name: trained(arguments, name, changes[name]) for name in names}
    if arguments.only:
        return 0
    own = {
        path: trimmed_log_mel(audio.read(path, sample_rate_hz=RATE_HZ).samples, RATE_HZ)
        for path in sorted((arguments.data / "voices" / "kathleen_spoken").glob("*.flac"))[: arguments.sentences]
    }
    walk = {"shallow": arguments.shallow, "temperature": arguments.temperature}
    report = {"steps": {n: m.info["trained_steps"] for n, m in models.items()}, "sentences": len(own), "readers": {}}
    for reader in ("own", *READERS):
        rows = []
        for path, reference in own.items():
            text = path.with_suffix(".txt").read_text().strip()
            kept = arguments.out / "readings" / f"{reader}_{path.stem}.wav"
            spoken = path if reader == "own" else read_aloud(reader, text, kept)
            song = pipeline.load_song(spoken, models["with"].features)
            heard = {"unconverted": (song.audio, models["with"].features.sample_rate_hz)}
            for name, model in models.items():
                made = pipeline.convert(model, song, None, arguments.seed, **walk)
                heard[name] = (made.audio, made.sample_rate_hz)
            rows.append(
                {
                    name: metrics.mel_cepstral_distance_db(reference, trimmed_log_mel(*sound), 24, warped=True)
                    for name, sound in heard.items()
                }
            )
            print(reader, path.stem, {k: round(v, 2) for k, v in rows[-1].items()}, flush=True)
        table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        draws = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
        gains = 1 - table["with"][draws].mean(axis=1) / table["without"][draws].mean(axis=1)
        report["readers"][reader] = {
            **{name: float(values.mean()) for name, values in table.items()},
            "gain": float(1 - table["with"].mean() / table["without"].mean()),
            "gain_90": [float(x) for x in np.quantile(gains, [0.05, 0.95])],
        }
    asked = "".join(f"_{name}_{value:g}" for name, value in walk.items() if value is not None)
    atomic_store.write_json(arguments.out / f"content{asked}.json", report)
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
