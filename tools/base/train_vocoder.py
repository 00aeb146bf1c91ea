"""Train the base's ``harmonic`` vocoder on its own: it needs mels and pitch only.

    python tools/base/train_vocoder.py DATA OUT [--steps N] [--minutes M]

Takes ``OUT/vocoder_checkpoint.pt`` up again; writes ``OUT/vocoder.pt``, which ``train_base.py`` begins with.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from train_base import MODEL, SEED, load
from train_base import batch as base_batch

from svclib.utils import rng as draws


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, windows = time.time(), load(arguments.data)
    singers = sorted({w["singer"] for w in windows})
    for w in windows:
        w["code"] = np.zeros((4, len(w["f0_hz"]), 1), np.float16)
    chance = np.ones(len(windows)) / len(windows)
    from prepare import SETTINGS

    model = MODEL.vocoder.build(SETTINGS, None, SEED)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0, fused=True)
    step, checkpoint = 0, arguments.out / "vocoder_checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]

    def save():
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, checkpoint)
        torch.save(model.state_dict(), arguments.out / "vocoder.pt")

    told, tick = [], time.time()
    while step < arguments.steps and time.time() - began < 60 * arguments.minutes:
        data = {k: v[:4] for k, v in base_batch(windows, chance, singers, step).items()}
        generator = torch.Generator().manual_seed(draws.seed_of(SEED, step))
        done = step / arguments.steps
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * done)))
        loss, _ = model.loss(data, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        told.append(float(loss))
        if step % 100 == 0:
            print(step, round(float(np.mean(told)), 3), f"{(time.time() - tick) / len(told):.2f} s/step", flush=True)
            told, tick = [], time.time()
            save()
    save()


if __name__ == "__main__":
    main()
