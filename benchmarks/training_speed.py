"""Training steps per second of one or more versions of svclib, measured alternately in one run.

    python benchmarks/training_speed.py DATA OUT [--code FOLDER ...] [--steps N] [--rounds N]

Each preset is prepared once from DATA/voices/kathleen_sung. In every round each version (a checkout of svclib; this one
by default) trains N steps in a process of its own, after three steps that do not count; reported are the medians over
the rounds of wall-clock and CPU seconds per step. ``20,000 recordings`` repeats the entries of the dataset in memory.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "ddsp_small, tiny": (["ddsp_small", "tiny"], []),
    "ddsp_small, tiny, 20,000 recordings": (["ddsp_small", "tiny"], ["batch_size=16"]),
    "diffusion_small, batches of 4 x 1 s": (["diffusion_small"], ["batch_size=4", "segment_s=1.0"]),
}
WARM_UP = 3


def measure(out: Path, run: Path, steps: int) -> None:
    """In a child process: train each case, print the results as JSON."""
    import torch

    from svclib.data import dataset, manifest
    from svclib.training.trainer import Trainer
    from svclib.utils import config

    torch.set_num_threads(1)
    found = {}
    for case, (names, overrides) in CASES.items():
        preset = config.load(names, overrides)
        preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, steps=10**6))
        data = dataset.Dataset.open(out / f"dataset {names[0]}")
        if "20,000" in case:
            contents = manifest.read(data.path)
            entries = [e for e in contents["recordings"] if e["split"] == "train"]
            data = dataset.Dataset(data.path, {**contents, "recordings": (entries * 20_000)[:20_000]})
        with Trainer(data, run / case, preset) as trainer:
            for _ in range(WARM_UP):
                trainer.train_step()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                trainer.train_step()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found[case] = {"wall_s": wall / steps, "cpu_s": cpu / steps, "loss": float(trainer.loss).hex()}
    print(json.dumps(found))


def main() -> None:
    """Run it; see the module's docstring."""
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--code", type=Path, action="append", help="a checkout of svclib; may be repeated")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        return measure(a.out, a.measure, a.steps)
    prepare(a.data, a.out)
    versions = a.code or [here]
    found: dict[Path, list[dict]] = {code: [] for code in versions}
    for n in range(a.rounds):
        for position, code in enumerate(versions):
            command = [sys.executable, __file__, str(a.data), str(a.out), "--steps", str(a.steps)]
            command += ["--measure", str(a.out / f"run {n} {position}")]
            environment = {**os.environ, "PYTHONPATH": str(code.resolve())}
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[code].append(json.loads(done.stdout.splitlines()[-1]))
            print(n, code, done.stdout.splitlines()[-1], flush=True)
    for case in CASES:
        for code in versions:
            rows = [row[case] for row in found[code]]
            wall, cpu = (statistics.median(row[k] for row in rows) for k in ("wall_s", "cpu_s"))
            losses = ", ".join(sorted({row["loss"] for row in rows}))
            print(f"{case}: {code}: {1 / wall:.2f} steps/s, {1000 * cpu:.1f} ms of CPU per step, loss {losses}")


def prepare(data: Path, out: Path) -> None:
    """Prepare the dataset of every preset."""
    from svclib.data import dataset
    from svclib.data.recordings import find_recordings
    from svclib.utils import config

    recordings = find_recordings(data / "voices" / "kathleen_sung")[:12]
    for names, overrides in CASES.values():
        dataset.prepare(recordings, out / f"dataset {names[0]}", config.load(names, overrides).features)


if __name__ == "__main__":
    main()
