"""DiffWave on one CPU thread: this project's computation beside the public package's, in one run.

    pip install --no-deps --target FOLDER diffwave==0.1.7
    OMP_NUM_THREADS=1 python benchmarks/diffwave_speed.py FOLDER [--seconds 1] [--repeats 5] [--training]

Only the package's model is used; its weights are random, converted where both have to agree. Every variant is timed in
turn, ``repeats`` times over, by the thread's own clock (other processes count little), and the best is printed.
"""

import argparse
import sys
import time

import torch

from lib import diffwave_weights
from svclib.models.diffwave.cached_inference import CachedDenoiser
from svclib.models.diffwave.network import DiffWaveNet

RATE_HZ, HOP, MELS, T = 22050, 256, 80, 10.4518


def public_model(folder: str):
    """The package's network with random weights."""
    sys.path.insert(0, folder)
    from diffwave.model import DiffWave
    from diffwave.params import AttrDict, params

    model = DiffWave(AttrDict(params)).eval()
    torch.nn.init.normal_(model.output_projection.weight, std=0.1)
    return model


def clocked(variants: dict, repeats: int) -> dict[str, float]:
    """Best thread time of each variant in seconds, all of them in turn."""
    best = {}
    for round_ in range(repeats + 1):  # the first round warms up
        for name, action in variants.items():
            start = time.thread_time()
            action()
            spent = time.thread_time() - start
            if round_:
                best[name] = min(best.get(name, spent), spent)
    return best


def table(title: str, best: dict[str, float], seconds: float) -> None:
    """Print times, real-time factors and speed-ups over the first row."""
    first = next(iter(best.values()))
    print(f"\n| {title} | s | s per second of audio | speed-up |\n|---|---|---|---|")
    for name, spent in best.items():
        print(f"| {name} | {spent:.3f} | {spent / seconds:.3f} | {first / spent:.2f} |")


def steps(public, frames: int, repeats: int) -> None:
    """One step of a sampling run, and what has to be prepared for it."""
    x, mel, t = torch.randn(1, frames * HOP), torch.rand(1, MELS, frames), torch.tensor([T])
    converted, own = diffwave_weights.convert(public.state_dict()), DiffWaveNet(64, 30, 10, MELS).eval()
    torch.nn.init.normal_(own.output.weight, std=0.1)
    ready = {
        "converted weights": CachedDenoiser(converted, mel),
        "own BASE": CachedDenoiser(own, mel),
        "own BASE, bf16": CachedDenoiser(own, mel, precision="bf16"),
    }
    with torch.inference_mode():
        want = public(x, mel, t)[:, 0]
        off = float((ready["converted weights"](x, T) - want).abs().max() / want.abs().max())
        half = ready["own BASE"](x, T)
        rough = float((ready["own BASE, bf16"](x, T) - half).abs().max() / half.abs().max())
        variants = {"diffwave 0.1.7": lambda: public(x, mel, t)}
        variants.update({name: (lambda p=p: p(x, T)) for name, p in ready.items()})
        best = clocked(variants, repeats)
    table("one step", best, frames * HOP / RATE_HZ)
    once = {"converted weights": lambda: CachedDenoiser(converted, mel), "own BASE": lambda: CachedDenoiser(own, mel)}
    table("prepared once", clocked(once, 2), frames * HOP / RATE_HZ)
    print(f"\nof the maximum: converted weights differ from the package by {off:.1e}, bf16 from fp32 by {rough:.1e}")


def training(public, repeats: int, batch: int = 2, frames: int = 62) -> None:
    """Forward, backward and Adam on two pieces."""
    x, mel = torch.randn(batch, frames * HOP), torch.rand(batch, MELS, frames)
    noise, whole = torch.randn(batch, frames * HOP), torch.tensor([3, 40])
    own = DiffWaveNet(64, 30, 10, MELS)
    adams = [torch.optim.Adam(m.parameters(), 2e-4) for m in (public, own)]

    def step(adam, named):
        (named() - noise).abs().mean().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)

    variants = {
        "diffwave 0.1.7": lambda: step(adams[0], lambda: public(x, mel, whole)[:, 0]),
        "own BASE": lambda: step(adams[1], lambda: own(x, whole.float(), mel)),
    }
    table(f"training step, {batch} x {frames} frames", clocked(variants, repeats), batch * frames * HOP / RATE_HZ)


def main() -> None:
    """Run and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the public package was installed")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="also training steps, which take longer")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    public = public_model(chosen.folder)
    steps(public, max(1, round(chosen.seconds * RATE_HZ / HOP)), chosen.repeats)
    if chosen.training:
        training(public, max(1, chosen.repeats // 2))


if __name__ == "__main__":
    main()
