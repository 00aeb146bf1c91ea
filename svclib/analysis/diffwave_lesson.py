"""Pages of DiffWave: its sampling steps as audio, denoising of a recording, interpolation between two recordings."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from svclib.analysis import interventions, player, step_audio
from svclib.analysis.player import Run
from svclib.analysis.recorder import Recorder
from svclib.conversion.controls import Controls
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffwave import inference
from svclib.utils.errors import ConversionError, reporter

KEEP = 12
MAX_S = 5.0


def record(model, sample: Callable, label: str, seed: int = 0) -> Run:
    """Record ``sample(callback)``, a call of ``diffwave.inference``, as a run with audio of states and predictions."""
    recorder = Recorder(KEEP)
    result = torch.from_numpy(np.asarray(sample(recorder), np.float32).reshape(1, -1))
    rate_hz = model.features.sample_rate_hz
    return _run(recorder.trace(result, "wave", sample_rate_hz=rate_hz, label=label, method="DiffWave", seed=seed))


def _run(trace) -> Run:
    audio, noisy_audio = step_audio.waveform_audio(trace)
    return Run(trace, trace.info["label"], audio, noisy_audio=noisy_audio)


def fast_and_full(
    model, n_samples: int, label=None, excerpt=None, seed=0, every_step=True, progress=None, cancelled=None
) -> list[Run]:
    """One sound by the fast schedule of the model (six steps in the paper), if it has one, and by all trained steps.

    A vocoder needs the ``excerpt``, other models ``n_samples`` and, if class-conditional, a ``label``. Without
    ``every_step`` the slow run is made only if there is no fast one. Each run keeps at most ``KEEP`` steps.
    """
    n_fast, options, report = len(model.settings.fast_etas), SamplingOptions(seed=seed), reporter(progress, cancelled)
    runs, schedules = [], [True] * bool(n_fast) + [False] * (every_step or not n_fast)
    for k, fast in enumerate(schedules):

        def sample(callback, fast=fast, k=k):
            def watch(step: SamplerStep) -> None:
                callback(step)
                done = (step.index + 1) / step.n_calls
                report((k + done) / len(schedules), f"step {step.index + 1} of {step.n_calls}")

            if model.settings.condition == "mel":
                mel, f0_hz, voiced = excerpt.log_mel, excerpt.source_f0_hz, excerpt.source_voiced
                return inference.vocode(model, mel, f0_hz, voiced, options, fast, watch, cancelled)
            return inference.generate(model, n_samples, 1, label, options, fast, watch, cancelled)

        runs.append(record(model, sample, f"{n_fast if fast else model.settings.n_steps} steps", seed))
    return runs


def truncated(run: Run, n_samples: int) -> Run:
    """The first samples of a run, so that runs of different lengths can be shown side by side."""
    cut = {name: getattr(run.trace, name)[..., :n_samples] for name in ("x_t", "x0_hat", "result")}
    return _run(dataclasses.replace(run.trace, **cut))


def denoised(model, audio: np.ndarray, t: int, label: str | None = None, seed: int = 0) -> Run:
    """Denoising of a recording: sampling from step ``t``, with the recording as the state there."""

    def sample(callback):
        return inference.denoise(model, audio, t, label=label, options=SamplingOptions(seed=seed), callback=callback)

    return record(model, sample, f"noise taken out, from step {t}", seed)


def interpolated(model, first, second, share: float | int, t: int, label: str | None = None, seed: int = 0) -> Run:
    """Interpolation between two recordings, mixed after both are noised to step ``t``."""

    def sample(callback):
        mix, options = inference.Mix((share,), t, label=label), SamplingOptions(seed=seed)
        return inference.interpolate(model, first, second, mix, options, callback)

    return record(model, sample, f"{100 * share:.0f} % of the second sound, from step {t}", seed)


def demonstrate(instrument, seconds: float | int = 1.0, seed: int = 0) -> str:
    """The page of an instrument without mel: :func:`four_examples` on two of its own sounds."""
    model = instrument.model
    if model.settings.condition == "mel":
        raise ConversionError(f"'{instrument.name}' is a vocoder: it needs a mel. Show it with a song instead.")
    labels = model.settings.labels or (None, None)
    n = int(seconds * instrument.features.sample_rate_hz) // 64 * 64
    first, second = (
        inference.generate(model, n, 1, label, SamplingOptions(seed=seed + k))[0]
        for k, label in enumerate((labels[0], labels[-1]))
    )
    return player.document(four_examples(model, first, second, labels[0], seed), f"{instrument.name} at work")


def four_examples(model, first: np.ndarray, second: np.ndarray, label: str | None, seed: int = 0) -> list[Run]:
    """Generation; denoising of the first recording; interpolation with 0 and 50 % of the second."""
    level = max(float(np.sqrt(np.square(first, dtype=np.float64).mean())), 1e-4)
    noise = np.random.default_rng(seed).standard_normal(len(first)).astype(np.float32)
    quarter, half = max(2, model.settings.n_steps // 8), max(2, model.settings.n_steps // 4)
    runs = [
        fast_and_full(model, len(first), label, seed=seed, every_step=False)[0],
        denoised(model, first + np.float32(0.5 * level) * noise, quarter, label, seed),
        *(interpolated(model, first, second, share, half, label, seed) for share in (0.0, 0.5)),
    ]
    n = min(len(run.trace.result) for run in runs) // 64 * 64
    return [truncated(run, n) for run in runs]


def document(instrument, song=None, start_s=0.0, seconds=2.0, seed=0, progress=None, cancelled=None) -> str:
    """The page of a DiffWave instrument as HTML: a vocoder resynthesises an excerpt of a song, others generate a sound.

    The length is at most 5 s; of the labels of a class-conditional model the first is used.
    """
    model, excerpt = instrument.model, None
    if not 0 < seconds <= MAX_S:
        raise ConversionError(f"The length is {seconds:g} s; a page of DiffWave's steps holds up to {MAX_S:g} s.")
    if model.settings.condition == "mel":
        if song is None:
            raise ConversionError(f"'{instrument.name}' is a vocoder: it needs a song.")
        excerpt = interventions.cut_excerpt(song, None, start_s, seconds, Controls())
    label = model.settings.labels[0] if model.settings.condition == "label" else None
    n_samples = int(seconds * instrument.features.sample_rate_hz)
    runs = fast_and_full(model, n_samples, label, excerpt, seed, progress=progress, cancelled=cancelled)
    what = f"sings {excerpt.name} again" if excerpt else f"says '{label}'" if label else "makes a sound"
    return player.document(runs, f"{instrument.name}: {what}, out of noise")
