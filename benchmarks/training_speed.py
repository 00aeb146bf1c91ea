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


def measure(case: str, prepared: Path, run: Path, steps: int) -> None:
    """In a child process: train, print seconds per step as JSON."""
    import torch

    from svclib.data import dataset, manifest
    from svclib.training.trainer import Trainer
    from svclib.utils import config

    torch.set_num_threads(1)
    names, overrides = CASES[case]
    preset = config.load(names, overrides)
    preset = dataclasses.replace(preset, training=dataclasses.replace(preset.training, steps=10**6))
    if "20,000" in case:
        contents = manifest.read(prepared)
        entries = [e for e in contents["recordings"] if e["split"] == "train"]
        data = dataset.Dataset(prepared, {**contents, "recordings": (entries * 20_000)[:20_000]})
    else:
        data = dataset.Dataset.open(prepared)
    with Trainer(data, run, preset) as trainer:
        for _ in range(WARM_UP):
            trainer.train_step()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            trainer.train_step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall_s": wall / steps, "cpu_s": cpu / steps, "loss": trainer.loss}))


def main() -> None:
    """Run it; see the module's docstring."""
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--code", type=Path, action="append", help="a checkout of svclib; may be repeated")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        case, prepared, run = a.measure
        return measure(case, Path(prepared), Path(run), a.steps)
    versions = a.code or [here]
    found: dict[tuple[str, Path], list[dict]] = {}
    for case, (names, overrides) in CASES.items():
        from svclib.data import dataset
        from svclib.data.recordings import find_recordings
        from svclib.utils import config

        settings = config.load(names, overrides).features
        prepared = a.out / ("dataset " + names[0])
        dataset.prepare(find_recordings(a.data / "voices" / "kathleen_sung")[:12], prepared, settings)
        for round_ in range(a.rounds):
            for n, code in enumerate(versions):
                run = a.out / f"run {names[0]} {len(overrides)} {round_} {n}"
                command = [sys.executable, __file__, str(a.data), str(a.out), "--steps", str(a.steps)]
                command += ["--measure", case, str(prepared), str(run)]
                environment = {**os.environ, "PYTHONPATH": str(code.resolve())}
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                found.setdefault((case, code), []).append(json.loads(done.stdout.splitlines()[-1]))
        for code in versions:
            rows = found[case, code]
            wall, cpu = (statistics.median(r[k] for r in rows) for k in ("wall_s", "cpu_s"))
            losses = sorted({float(r["loss"]).hex() for r in rows})
            print(
                f"{case}: {code}: {1 / wall:.3f} steps/s, {1000 * cpu:.1f} ms CPU per step, loss {losses}", flush=True
            )


if __name__ == "__main__":
    main()
