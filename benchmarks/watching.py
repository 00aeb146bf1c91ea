"""Cost of watching a sampling run: capture, memory, map, page size, and the page in a headless Chromium.

    python benchmarks/watching.py [--no-browser] [--only overhead|study|arithmetic|page|lessons]

One thread; CPU time where Python is measured, so that other programs on the machine count little; the browser's own
clock where the page is.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import browsing
from traces import sharpening

from svclib.analysis import ablation, compare, lesson, player, plots, step_audio
from svclib.analysis.plots import ablation as views
from svclib.analysis.recorder import Recorder, select_steps
from svclib.audio.mel import MelConfig
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.features import extract
from svclib.features.extract import FeatureSettings
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.vocoders.harmonic import HarmonicSettings

CONTRACT = MelConfig(22050, 1024, 1024, 256, 80, 0.0, 8000.0)


def small_model(n_layers: int = 10, channels: int = 128):
    """A fresh network of 10 x 128 channels on 22.05 kHz mels, with a vocoder as in diffusion_small; one thread."""
    torch.set_num_threads(1)
    measured = FeatureSettings(sample_rate_hz=22050, hop_samples=256, loudness_n_fft=1024, mel=CONTRACT)
    vocoder = HarmonicSettings(n_harmonics=160, n_noise_bands=65, channels=128)
    settings = DiffusionSettings(
        channels=channels,
        n_layers=n_layers,
        condition_dims=128,
        coarse_channels=128,
        coarse_layers=3,
        content_channels=128,
        vocoder=vocoder,
    )
    return settings.build(measured).eval()


def overhead(repeats: int = 12, steps: int = 6) -> None:
    """Cost of capturing, in CPU time of this thread, twice: by the clock inside of what capture does, and as the
    median over rounds of neighbouring short runs with and without it (ddim, 5 s, 10 x 128 channels)."""
    model = small_model()
    condition = torch.randn(1, 128, 430, generator=torch.Generator().manual_seed(0))
    prepared = model.prepare(condition, SamplingOptions(precision="fp32"))
    inside, own = [0.0], 0.0

    def timed(call):
        def wrapped(*args, **kwargs):
            begun = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                inside[0] += time.thread_time() - begun - own

        return wrapped

    nothing, costs = timed(lambda: None), []
    for _ in range(300):  # reading the clock itself takes time
        inside[0] = 0.0
        nothing()
        costs.append(inside[0])
    own = float(np.median(costs))

    def run(listen, clock=False):
        recorder = None if listen is None else Recorder(denoiser=prepared if listen else None)
        watch = recorder
        if clock:
            watch = timed(recorder)
            if listen:
                recorder.taps._pool = timed(recorder.taps._pool)
        inside[0] = 0.0
        begun = time.thread_time()
        if recorder is None:
            model.sample(condition, SamplingOptions("ddim", steps), denoiser=prepared)
        else:
            with recorder.hooked():
                model.sample(condition, SamplingOptions("ddim", steps), denoiser=prepared, callback=watch)
        whole = time.thread_time() - begun
        return 100 * inside[0] / (whole - inside[0]) if clock else whole

    run(True)
    rounds, clocks = [], []
    for i in range(repeats):
        order = [None, False, True][i % 3 :] + [None, False, True][: i % 3]
        found = {listen: run(listen) for listen in order}
        rounds.append([found[None], found[False], found[True]])
        clocks.append([run(False, clock=True), run(True, clock=True)])
    rounds, clocks = np.array(rounds), np.array(clocks)
    share = 100 * (rounds[:, 1:] / rounds[:, :1] - 1)
    print(f"one step of 5 s, 10 x 128 channels: {1000 * np.median(rounds[:, 0]) / steps:.0f} ms CPU")
    for k, name in enumerate(("states", "states and 7 taps")):
        print(
            f"capture, {name}: {np.median(clocks[:, k]):.1f} % by the clock inside "
            f"({clocks[:, k].min():.1f} to {clocks[:, k].max():.1f}), {np.median(share[:, k]):+.1f} % as the median of "
            f"{repeats} neighbouring runs (quartiles {np.percentile(share[:, k], 25):+.1f}, "
            f"{np.percentile(share[:, k], 75):+.1f})"
        )


def a_study() -> None:
    """A study as the panel makes it, 5 s, 20 steps, 7 x 192 channels (diffusion_small): CPU time of this process."""
    model = small_model(7, 192)
    rate, n = 22050, 22050 * 5
    f0_hz = 220 * 2 ** (np.sin(np.arange(n) / 9000) / 6)
    phase = 2 * np.pi * np.cumsum(f0_hz) / rate
    sound = (0.1 * sum(np.sin(k * phase) / k for k in range(1, 12))).astype(np.float32)
    marks = [("", time.process_time())]

    def mark(name):
        marks.append((name, time.process_time()))
        print(f"{name}: {marks[-1][1] - marks[-2][1]:.1f} s CPU")

    measured = extract.extract(sound, model.features)
    song = songs.Song(Path("song.wav"), "song", rate, n, sound, measured)
    asked = ablation.cut_excerpt(song, None, 0, 5, Controls(use_loudness_statistics=False))
    mark("measuring 5 s")
    factors = [ablation.Intervention(name) for name in ("content", "melody", "timbre")]
    options = ablation.RunOptions(SamplingOptions(steps=20))
    plain = ablation.run(model, asked, (), options)
    mark("20 steps with all layers kept")
    ablation.run(model, asked, (), dataclasses.replace(options, probe=factors, features=False))
    mark(f"the same with +{3 * len(ablation.probed_steps(20))} calls for the influence of three factors")
    runs = {"as asked": plain} | {c.text: ablation.run(model, asked, [c], options) for c in factors}
    mark("three ablations")
    sounds = step_audio.render_audio(model, plain.trace, range(19))
    mark("20 sounds of 5 s through the harmonic vocoder")
    found = step_audio.audio_metrics(plain.trace, sounds.audio, model.features, sound)
    mark("pitch, voicing, loudness and speaker of 20 sounds")
    request = views.ViewRequest(runs, "as asked", "content off", audio_metrics={"as asked": found})
    for name in views.VIEWS:
        if name != "influence at one step":
            plots.png(views.draw_view(name, request).figure)
    mark("all views drawn")
    print(f"the whole study: {marks[-1][1] - marks[0][1]:.0f} s CPU (target: 180 s on two cores)")
    many = ablation.run(
        model, asked, (), ablation.RunOptions(SamplingOptions(sampler="ddim", steps=48), features=False)
    )
    begun = time.process_time()
    step_audio.render_audio(model, many.trace, range(48))
    print(f"48 steps x 5 s made audible: {time.process_time() - begun:.1f} s CPU (target: 30 s on two cores)")
    print(f"24 probed steps, 3 factors: +{3 * len(ablation.probed_steps(48))} calls of the network")


def arithmetic() -> None:
    """Memory, map and selection."""
    frames = 10 * 44100 // 512
    print(f"states of 10 s x 100 steps x 128 mels: {2 * 100 * 128 * frames * 2 / 1e6:.1f} MB")
    runs = [np.random.default_rng(i).standard_normal((1000, 1024)) for i in range(4)]
    for name, call in (
        ("joint map of 4 x 1000 x 1024", lambda: compare.joint_map(runs)),
        ("selection of 100 from 1000 x 512", lambda: select_steps(runs[0][:, :512], 100)),
    ):
        seconds = []
        for _ in range(3):
            begun = time.process_time()
            call()
            seconds.append(time.process_time() - begun)
        print(f"{name}: {min(seconds) * 1000:.0f} ms process time")


def lessons(browser: bool) -> None:
    """The bundled lesson and DiffWave's page: size, time to open, scrubbing, sound of a step not yet decoded."""
    print(f"bundled lesson: {lesson.EXAMPLE.stat().st_size / 1e6:.2f} MB in the package")
    for name, text in (("lesson", lesson.example()), ("DiffWave's page", lesson.example_diffwave())):
        print(f"{name}: {len(text.encode()) / 1e6:.2f} MB as a page")
        if browser:
            measured(text, name)


def page(browser: bool) -> None:
    """A page of 5 s x 50 steps, every step with its sound."""
    trace = sharpening(50, seconds=5.0)
    rng = np.random.default_rng(0)
    rendered = step_audio.render_steps(
        trace, lambda mel: 0.1 * rng.standard_normal(len(mel) * 256).cumsum().astype(np.float32) % 1
    )
    run = player.Run(trace, "50 steps", rendered)
    text = player.document([run])
    print(f"page of 5 s x 50 steps, 80 mels, 50 sounds: {len(text) / 1e6:.1f} MB")
    if browser:
        measured(text, "player")


def measured(text: str, name: str) -> None:
    """Open a page from a file in a headless Chromium and time it."""
    with tempfile.TemporaryDirectory() as folder, browsing.browser(1280, 1400) as tab:
        path = player.export(text, Path(folder, "page.html"))
        seen = browsing.watch(tab, path.as_uri())
        tab.goto(path.as_uri())
        while not tab.evaluate("Boolean(window.player && window.player.ready)"):
            tab.wait_for_timeout(20)
        whole = tab.evaluate("performance.timing.domInteractive - performance.timing.navigationStart")
        ready = tab.evaluate("window.player.ready")
        if tab.evaluate("Boolean(window.lesson)"):
            tab.evaluate("window.lesson.show(3)")  # the page with every picture
        n = tab.evaluate("window.player.run.t.length")
        tab.evaluate("window.player.costs.length = 0")
        tab.evaluate(f"for (let i = 0; i < 300; i++) window.player.set({{step: i * 7 % {n}}})")
        costs = np.array(tab.evaluate("window.player.costs"))
        print(f"{name}: {whole:.0f} ms until the page is read, {ready:.0f} ms more until all can be scrubbed")
        middle, high = np.percentile(costs, [50, 95])
        print(f"{name}, scrub: median {middle:.2f}, p95 {high:.2f}, max {costs.max():.1f} ms")
        tab.evaluate("window.player.set({step: 0})")
        tab.keyboard.press(" ")
        switches = []
        for step in range(3, n, max(1, n // 8)):
            tab.evaluate(f"window.player.switched = 0; window.player.set({{step: {step}}})")
            for _ in range(200):
                if tab.evaluate("Boolean(window.player.switched)"):
                    break
                tab.wait_for_timeout(10)
            switches.append(tab.evaluate("window.player.switched"))
        print(f"{name}, sound of a new step: median {np.median(switches):.0f}, max {max(switches):.0f} ms")
        print(f"{name}: {len(seen['errors'])} errors, {len(seen['outside'])} requests to anywhere else")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--only", choices=("overhead", "study", "arithmetic", "page", "lessons"))
    options = parser.parse_args()
    parts = {"overhead": overhead, "study": a_study, "arithmetic": arithmetic}
    parts["page"] = lambda: page(not options.no_browser)
    parts["lessons"] = lambda: lessons(not options.no_browser)
    for name, part in parts.items():
        if options.only in (None, name):
            part()
