"""What watching a walk costs: capture, memory, map, page size, and the page in a headless Chromium.

    python benchmarks/watching.py [--no-browser]

One thread; process time where Python is measured, the browser's own clock where the page is.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import browsing
from test_player import sharpening

from svclib import capture, player, projection, selection
from svclib.diffusion import DiffusionSettings
from svclib.features import FeatureSettings, MelContract

CONTRACT = MelContract(22050, 1024, 1024, 256, 80, 0.0, 8000.0)


def overhead(repeats: int = 8) -> None:
    """Extra process time of capturing 20 ddim steps of 5 s, network of 10 x 128 channels, paired runs, median."""
    torch.set_num_threads(1)
    features = FeatureSettings(sample_rate_hz=22050, hop_samples=256, mel=CONTRACT)
    settings = DiffusionSettings(channels=128, n_layers=10, condition_dims=64, coarse_channels=64, content_channels=64)
    model = settings.build(features).eval()
    condition = torch.randn(1, 64, 430, generator=torch.Generator().manual_seed(0))
    prepared = model.prepare(condition, "fp32")

    def run(listen):
        recorder = None if listen is None else capture.Recorder(prepared=prepared if listen else None)
        begun = time.process_time()
        if recorder is None:
            model.sample(condition, "ddim", 20, prepared=prepared)
        else:
            with recorder.listening():
                model.sample(condition, "ddim", 20, prepared=prepared, callback=recorder)
        return time.process_time() - begun

    run(True)
    rounds = np.array([[run(None), run(False), run(True)] for _ in range(repeats)])
    share = 100 * (rounds[:, 1:] / rounds[:, :1] - 1)
    best = 100 * (rounds.min(axis=0)[1:] / rounds.min(axis=0)[0] - 1)
    for name, m, b in zip(("states", "states and 7 taps"), np.median(share, axis=0), best, strict=True):
        print(f"capture, {name}: {m:+.1f} % process time (median of {repeats} pairs), {b:+.1f} % (best against best)")


def arithmetic() -> None:
    """Memory, map and selection."""
    frames = 10 * 44100 // 512
    print(f"states of 10 s x 100 steps x 128 mels: {2 * 100 * 128 * frames * 2 / 1e6:.1f} MB")
    runs = [np.random.default_rng(i).standard_normal((1000, 1024)) for i in range(4)]
    for name, call in (
        ("joint map of 4 x 1000 x 1024", lambda: projection.joint_map(runs)),
        ("selection of 100 from 1000 x 512", lambda: selection.select_steps(runs[0][:, :512], 100)),
    ):
        seconds = []
        for _ in range(3):
            begun = time.process_time()
            call()
            seconds.append(time.process_time() - begun)
        print(f"{name}: {min(seconds) * 1000:.0f} ms process time")


def page(browser: bool) -> None:
    """A page of 5 s x 50 steps, every step with its sound."""
    trace = sharpening(50, seconds=5.0)
    rng = np.random.default_rng(0)
    heard = player.sounds(trace, lambda mel: 0.1 * rng.standard_normal(len(mel) * 256).cumsum().astype(np.float32) % 1)
    run = player.Run(trace, "50 steps", heard)
    predicted, text = player.predicted_bytes([run]), player.document([run])
    print(f"page of 5 s x 50 steps, 80 mels, 50 sounds: {len(text) / 1e6:.1f} MB, predicted {predicted / 1e6:.1f} MB")
    if not browser:
        return
    with tempfile.TemporaryDirectory() as folder, browsing.browser(1280, 1400) as tab:
        path = player.export(text, Path(folder, "page.html"))
        tab.goto(path.as_uri())
        while not tab.evaluate("Boolean(window.player && window.player.ready)"):
            tab.wait_for_timeout(20)
        whole = tab.evaluate("performance.timing.domInteractive - performance.timing.navigationStart")
        ready = tab.evaluate("window.player.ready")
        tab.evaluate("for (let i = 0; i < 300; i++) window.player.set({step: i * 7 % 50});")
        costs = np.array(tab.evaluate("window.player.costs"))
        print(f"open: {whole:.0f} ms until the page is read, {ready:.0f} ms more until all can be scrubbed")
        print(f"scrub: median {np.median(costs):.2f}, p95 {np.percentile(costs, 95):.2f}, max {costs.max():.1f} ms")
        tab.keyboard.press(" ")
        switches = []
        for step in (3, 9, 15, 21, 27, 33, 39, 45):
            tab.evaluate(f"window.player.switched = 0; window.player.set({{step: {step}}})")
            while not tab.evaluate("Boolean(window.player.switched)"):
                tab.wait_for_timeout(10)
            switches.append(tab.evaluate("window.player.switched"))
        print(f"sound of a step not yet decoded: median {np.median(switches):.0f}, max {max(switches):.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    overhead()
    arithmetic()
    page(not options.no_browser)
