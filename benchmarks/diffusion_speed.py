"""Seconds of a diffusion conversion: one denoiser call, and ten seconds of song in all its parts.

    python benchmarks/diffusion_speed.py [--seconds 10] [--repeats 5] [--sampler consistency --steps 1]

One thread; CPU seconds of this thread, the median of calls made in turn, so that other programs disturb all alike.
Fresh weights: the time does not depend on what they are.

- a call of the full preset's denoiser (20 x 384, 44.1 kHz) in fp32 and bf16, as share of the same network with nothing
  computed ahead (fp32: its condition projected in every call), and how far bf16 is off;
- both presets on a song: features (log-mel, loudness, F0), conditions, sampling (20 steps of dpmpp, or as asked),
  vocoder; share of real time.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch

from svclib.data import singers
from svclib.features import extract
from svclib.features.extract import ConditionInputs
from svclib.models import instrument
from svclib.models.diffusion import model as diffusion
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.utils import config


def clocked(action) -> tuple[float, object]:
    """CPU seconds of this thread that a call takes, and what it returns."""
    began = time.thread_time()
    value = action()
    return time.thread_time() - began, value


def model_of(name: str) -> diffusion.DiffusionModel:
    """A preset's model; its last layer set to something, because a fresh one puts out nothing."""
    preset = config.load(name)
    model = instrument.build_model(preset.model, preset.features, None).eval()
    torch.nn.init.normal_(model.denoiser.last.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    return model


def denoiser_calls(seconds: float, repeats: int) -> dict:
    """Shares of the full denoiser's calls."""
    model, generator = model_of("diffusion"), torch.Generator().manual_seed(0)
    n = round(seconds * 44100 / 512)
    condition = torch.randn(1, model.settings.condition_dims, n, generator=generator)
    x_t = torch.randn(1, model.contract.n_mels, n, generator=generator)
    ahead = {p: model.prepare(condition, SamplingOptions(precision=p)) for p in ("fp32", "bf16")}
    plain = ahead["fp32"]

    def nothing_ahead():
        with torch.inference_mode():
            projected = model.denoiser.precompute(condition)
            time, coarse = torch.tensor([500.0]), (plain.coarse, plain.coarse_std)
            return model.parameterization.eps(model.denoiser, x_t, time, projected, *coarse)

    calls = {"nothing ahead": nothing_ahead, **{p: lambda p=p: ahead[p](x_t, 500.0) for p in ahead}}
    times, values = {name: [] for name in calls}, {}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            spent, values[name] = clocked(call)
            times[name] += [spent] if turn else []  # the first turn warms up
    median = {name: statistics.median(spent) for name, spent in times.items()}
    reference = values["nothing ahead"]
    return {
        "cpu_s_per_call": median,
        "share": {p: median[p] / median["nothing ahead"] for p in ahead},
        "relative_error": {p: float((values[p] - reference).norm() / reference.norm()) for p in ahead},
        "cpu_s_of_20_calls": {p: 20 * median[p] for p in ahead},
    }


def song(name: str, seconds: float, repeats: int, sampling: SamplingOptions) -> dict:
    """CPU seconds of the parts of a conversion."""
    model = model_of(name)
    rate_hz = model.features.sample_rate_hz
    rendered = singers.render("aria", singers.demo_song(), sample_rate_hz=rate_hz).audio
    audio = np.resize(rendered, round(seconds * rate_hz))
    rows = []
    for _ in range(repeats):
        measuring, measured = clocked(lambda: extract.extract(np.asarray(audio, np.float32), model.features))
        names = ("log_mel", "f0_hz", "voiced", "loudness_db")
        source = ConditionInputs.from_arrays(*(getattr(measured, name) for name in names))
        conditioning, condition = clocked(lambda: model.condition(source))  # noqa: B023
        stepping, mel = clocked(lambda: model.sample(condition, sampling))  # noqa: B023
        mel = mel[0].numpy()
        vocoding, _ = clocked(lambda: model.vocoder.render(mel, measured.f0_hz, measured.voiced))  # noqa: B023
        rows.append({"features": measuring, "conditions": conditioning, "sampling": stepping, "vocoder": vocoding})
    spent = {part: statistics.median(row[part] for row in rows) for part in rows[0]}
    whole = sum(spent.values())
    return {
        "cpu_s": {**spent, "all": whole},
        "real_time_factor": {k: v / seconds for k, v in {**spent, "all": whole}.items()},
    }


def main() -> int:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sampler", default="dpmpp")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = {"denoiser": denoiser_calls(arguments.seconds, arguments.repeats)}
    sampling = SamplingOptions(arguments.sampler, arguments.steps)
    for name in ("diffusion_small", "diffusion"):
        report[name] = song(name, arguments.seconds, min(3, arguments.repeats), sampling)
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
