"""The full diffusion preset on a GPU in bf16 and fp16: speed, memory, resume after a kill, and what it converts.

    python benchmarks/gpu.py DATA OUT [--minutes 6] [--tiny]

DATA holds the test recordings; the voice is ``voices/kathleen_sung``, measured once into OUT. For each precision a
first session in a process of its own is killed (SIGKILL) after its first checkpoint, and a second one goes on until the
precision's share of the minutes is over. Printed, and written to ``OUT/gpu.json``: the step of the kill and the step
resumed from, steps per second of the second session, the most memory that it held, the loss of its last 20 steps and
the held-out loss; and of a reading by flite (rms), converted: character error rate and likeness to the voice
(``lib/measuring``), with the real-time factor. ``--tiny`` is the same with a toy network in seconds, in fp32 and bf16
where there is no GPU. ``diffusion`` starts from fresh weights, for the base model that comes with svclib is of another
size.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lib import clips, measuring
from svclib.conversion import recognition
from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.models import instrument
from svclib.training import api
from svclib.utils import config

PRESET, CLIP = "diffusion", "flite_rms"
TINY_STEPS, TINY_EVERY = 24, 4
EVERY_STEPS = 50  # between checkpoints, so that a kill loses little


def command(a: argparse.Namespace, precision: str) -> tuple[list[str], list[str]]:
    """Presets and changes of one run."""
    every = TINY_EVERY if a.tiny else EVERY_STEPS
    changes = [f"training.TrainingSettings.precision='{precision}'"]
    changes += [f"training.TrainingSettings.{name}={every}" for name in ("save_every_steps", "validate_every_steps")]
    return ([PRESET, "tiny"] if a.tiny else [PRESET]), changes


def killed_session(run: Path, data: Path, names: list[str], changes: list[str]) -> int:
    """Train in another process until the first checkpoint, then kill it; the step of the last line of its log."""
    args = [sys.executable, "-P", "-m", "svclib", "train", "--dataset", str(data), "--run", str(run)]
    args += [part for name in names for part in ("--config", name)] + [p for c in changes for p in ("--set", c)]
    with subprocess.Popen([*args, "--steps", "1000000"], stdout=subprocess.DEVNULL) as process:
        while not api.checkpoints(run):
            if process.poll() is not None:
                sys.exit(f"The first session ended with {process.returncode} before it saved anything.")
            time.sleep(0.2)
        process.kill()
    steps = api.LogReader(run).steps
    return steps[-1]["step"] if steps else api.checkpoints(run)[-1].step


def measure(a: argparse.Namespace, precision: str, data: Path, minutes: float) -> dict:
    """One precision: a killed session, a resumed one, an export, a conversion."""
    names, changes = command(a, precision)
    run, on_gpu = a.out / f"run {precision}", torch.cuda.is_available()
    killed = killed_session(run, data, names, changes)
    resumed = api.checkpoints(run)[-1].step
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    ends = {"steps": TINY_STEPS} if a.tiny else {"minutes": minutes}
    began = time.perf_counter()
    result = api.train(data, run, config.load(names, changes), **ends)
    seconds = time.perf_counter() - began
    losses = [record["loss"] for record in api.LogReader(run).steps[-20:]]
    voice = instrument.open(api.export(run, a.out / f"kathleen {precision}.zip", "last", overwrite=True))
    row = {
        "precision": precision,
        "killed_at_step": killed,
        "resumed_from_step": resumed,
        "last_step": result.step,
        "steps_per_s": (result.step - resumed) / seconds,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "loss": float(np.mean(losses)),
        "held_out_loss": result.validation_loss,
    }
    return row if a.tiny else {**row, **converted(a, voice)}


def converted(a: argparse.Namespace, voice: instrument.Instrument) -> dict:
    """Words and likeness of one clip."""
    recognizer = measuring.CachedRecognizer(recognition.WhisperRecognizer(), a.out / "transcripts")
    bench = measuring.Bench(a.data, a.out, voice, [recognizer])
    clip = next(c for c in clips.DEVELOPMENT if c.name == CLIP)
    found = bench.measure(clip)
    return {
        "cer": found["words"][recognizer.name]["cer"],
        "likeness": found["likeness"]["result"]["windows"],
        "likeness_of_held_out": bench.target.held_out["windows"],
        "real_time_factor": found["real_time_factor"],
    }


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="of resumed training, shared by the precisions")
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    if not torch.cuda.is_available() and not a.tiny:
        sys.exit("There is no CUDA GPU here; --tiny runs the same on a CPU with a toy network.")
    folder, features = a.out / "dataset", config.load(PRESET).features
    recordings = find_recordings(a.data / clips.TARGET)
    dataset.prepare(recordings[:4] if a.tiny else recordings, folder, features)
    precisions = ["bf16", "fp16"] if torch.cuda.is_available() else ["fp32", "bf16"]
    rows = []
    for precision in precisions:
        rows.append(measure(a, precision, folder, a.minutes / len(precisions)))
        print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    report = {"device": device, "preset": PRESET, "tiny": a.tiny, "rows": rows}
    (a.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
