"""A small singing network and a dataset made of formulas: a whole training in a second, for the tests of training.

python tests/helpers/toy.py RUN STEPS                         train
python tests/helpers/toy.py RUN STEPS KILLS SEED moment       train, killed KILLS times at random moments
python tests/helpers/toy.py RUN STEPS KILLS SEED operation    the same, dying in the middle of random file operations
"""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import faults
import numpy as np
import torch

from svclib.features.extract import FeatureSettings
from svclib.models.ddsp import model as ddsp
from svclib.training import api as training
from svclib.training.checkpoints import newest, run_identity
from svclib.utils import config

FEATURES = FeatureSettings(sample_rate_hz=8000, hop_samples=64)
MODEL = ddsp.DdspSettings(
    n_harmonics=6, n_noise_bands=5, rnn_channels=8, mlp_channels=8, layers_per_stack=1, fft_sizes=(256, 64)
)
STATISTICS = {
    "n_recordings": 2,
    "duration_s": 20.0,
    "f0_midi": {
        "mean_note": 60.0,
        "std_note": 2.0,
        "min_note": 55.0,
        "max_note": 65.0,
        "histogram": {"edges_midi": [54.5, 60.5, 66.5], "seconds": [5.0, 5.0]},
    },
    "loudness_db": {"mean_note": -20.0, "std_note": 3.0, "min": -80.0, "max": -10.0, "mean": -25.0},
    "loudness_quantiles_db": [-30.0, -20.0, -10.0],
    "singers": {},
    "log_mel": None,
}


class ToyDataset:
    """Tones with vibrato, drawn from (seed, step) alone, in the form of ``dataset.Dataset``."""

    settings, statistics, singers, labels, fingerprint = FEATURES, STATISTICS, ["toy"], [], "toy-1"
    recordings = [{"name": "a.wav", "sha256": "aa" * 32}, {"name": "b.wav", "sha256": "bb" * 32}]
    spoiled_step = None  # a batch of this step holds a NaN
    pause_s = 0.0

    def batch(self, seed, step, batch_size, n_frames, split="train", device="cpu"):
        rng = np.random.default_rng([seed, step, split == "train"])
        time.sleep(self.pause_s)
        hop, rate = self.settings.hop_samples, self.settings.sample_rate_hz
        f0 = rng.uniform(150, 400, (batch_size, 1)) * (1 + 0.01 * np.sin(np.arange(n_frames) / 9))
        phase = 2 * np.pi * np.cumsum(np.repeat(f0, hop, axis=1), axis=1) / rate
        level = rng.uniform(0.05, 0.3, (batch_size, 1))
        audio = level * (np.sin(phase) + 0.5 * np.sin(2 * phase))
        if step == self.spoiled_step:
            audio[0, 5] = np.nan
        loudness = np.broadcast_to(20 * np.log10(level), f0.shape)
        arrays = {"audio": audio, "f0_hz": f0, "loudness_db": loudness, "confidence": np.ones(f0.shape)}
        out = {k: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)).to(device) for k, v in arrays.items()}
        return {**out, "voiced": torch.ones(f0.shape, dtype=torch.bool, device=device)}

    def validation_batches(self, batch_size, n_frames):
        return [self.batch(0, i, 2, n_frames, "validation") for i in range(2)]


def preset(model=MODEL, features=FEATURES, **changes):
    """A preset for the toy; ``changes`` are fields of TrainingSettings."""
    fields = {"batch_size": 2, "segment_s": 0.256, "steps": 40, "save_every_steps": 5, "validate_every_steps": 10}
    settings = training.TrainingSettings(**{**fields, "learning_rate": 1e-2, **changes})
    return config.Preset("toy", features, model, settings, "# the gin text of the toy")


def tensors(run):
    """The tensors of a run's newest checkpoint, by name."""
    return newest(Path(run) / "checkpoints", run_identity(run).get("run_id"))[0].tensors


def losses(run):
    """A run's losses as hexadecimal floats, by step."""
    curves = training.curves(run)
    return {int(s): float(v).hex() for s, v in zip(curves["step"], curves["loss"], strict=True)}


def train_killed(run: str, steps: int, kills: int, seed: int, where: str) -> None:
    """Train in child processes, each of which dies, until all deaths are done and one comes to the end."""
    import accelerate  # noqa: F401  (what training loads lazily: once, not in every child)
    import torch._dynamo  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    rng, done = random.Random(seed), 0
    while True:
        ready, begun = os.pipe()
        at = rng.randrange(1, 120) if where == "operation" and done < kills else None
        after = rng.random() < 0.5
        child = os.fork()
        if child == 0:
            if at:
                faults.install(at, "exit", after=after)
            slow = ToyDataset()
            slow.pause_s, slow.thread_safe = 0.005, rng.random() < 0.5
            training.train(slow, run, preset(), steps=steps, on_progress=lambda _, out=begun: os.write(out, b"."))
            os._exit(0)
        os.close(begun)
        select.select([ready], [], [])
        if where == "moment" and done < kills:
            time.sleep(rng.uniform(0.0, 0.4))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(ready)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == faults.EXIT_STATUS:
            done += 1
        elif os.WEXITSTATUS(status):
            sys.exit(os.WEXITSTATUS(status))
        else:
            print(f"{done} deaths")
            return


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        train_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        print(training.train(ToyDataset(), sys.argv[1], preset(), steps=int(sys.argv[2])).message, flush=True)
