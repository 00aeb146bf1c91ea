"""Cost of safety: seconds of a save at every preset's size, and from a disconnect to the next training step.

    python benchmarks/resuming.py DATA OUT [--saves N]

Save: checkpoints of model, running mean and Adam's moments are committed to OUT (written, synced, read again and
compared), N times each, a training step between them; printed is the median, and its share of the five minutes
between two saves.

Restart: the three voices of ``voices_spoken`` are prepared and trained for two steps by ``diffusion_small``; then, as
notebooks 01 and 02 do after a disconnect, a new process prepares the folders again (every file is hashed, nothing
measured) and goes on with the training. Seconds from the start of that work to its first new step.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from svclib.data import dataset
from svclib.data.recordings import find_recordings
from svclib.training import api as training
from svclib.training.trainer import Trainer
from svclib.utils import config, filesystem

SAVED = ("ddsp_small", "diffusion_small", "ddsp", "diffusion", "diffwave")
RESTARTED = "diffusion_small"
VOICES = ("kathleen", "kerstin", "nathalie")
AGAIN = "--as-after-a-disconnect"


def saves(data: Path, out: Path, name: str, n: int) -> tuple[float, float]:
    """Median seconds of a save, and its size in MB."""
    preset = config.load([name])
    recordings = find_recordings(data / "voices" / "kathleen_sung")[:12]
    prepared = dataset.prepare(recordings, out / f"dataset {name}", preset.features)
    took = []
    with Trainer(prepared, out / f"run {name}", preset) as trainer:
        for _ in range(n + 1):
            trainer.train_step()
            began = time.perf_counter()
            if not trainer.save():
                sys.exit(trainer.log.message)
            took.append(time.perf_counter() - began)
    newest = max(training.checkpoints(out / f"run {name}"), key=lambda c: c.step).path
    return statistics.median(took[1:]), filesystem.size_of(newest) / 1e6


def trained(data: Path, out: Path, steps: int) -> None:
    """Prepare and train; prints when which step was taken."""
    began = time.perf_counter()
    preset = config.load([RESTARTED])
    recordings = find_recordings([data / "voices_spoken" / voice for voice in VOICES])
    prepared = dataset.prepare(recordings, out / "dataset", preset.features)
    minutes, ready = prepared.duration_s() / 60, time.perf_counter() - began
    first = []

    def seen(status):
        if status.loss is not None and not first:
            first.append(time.perf_counter() - began)

    result = training.train(prepared, out / "run", preset, steps=steps, on_progress=seen)
    print(
        f"{minutes:.0f} min of sound ready after {ready:.1f} s, first step after {first[0]:.1f} s, "
        f"step {result.step} saved",
        flush=True,
    )


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument(AGAIN, dest="again", action="store_true", help="internal: only the second half of the restart")
    arguments = parser.parse_args()
    if arguments.again:
        return trained(arguments.data, arguments.out, 3)
    for name in SAVED:
        seconds, mb = saves(arguments.data, arguments.out, name, arguments.saves)
        print(f"{name}: {mb:.0f} MB in {seconds:.2f} s, {seconds / 3:.2f} % of five minutes", flush=True)
    trained(arguments.data, arguments.out, 2)
    began = time.perf_counter()
    subprocess.run([sys.executable, __file__, arguments.data, arguments.out, AGAIN], check=True)
    print(f"the new process, from its start to its end: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
