"""Pages of DiffWave: its sampling steps as audio, denoising of a recording, interpolation between two recordings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from svclib.analysis import interventions, player, step_audio
from svclib.analysis.player import Run
from svclib.analysis.recorder import Recorder
from svclib.conversion.controls import Controls
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffwave import inference
from svclib.utils.errors import ConversionError, ProgressCallback, raise_if_cancelled

KEEP = 12
MAX_S = 5.0


def record(model: Any, sample: Callable, label: str, keep: int = KEEP, seed: int = 0) -> Run:
    """Record ``sample(callback)``, a call of ``diffwave.inference``, as a run with audio of states and predictions."""
    recorder = Recorder(keep)
    result = np.asarray(sample(recorder), np.float32).reshape(1, -1)
    rate_hz = model.features.sample_rate_hz
    trace = recorder.trace(
        torch.from_numpy(result), "wave", sample_rate_hz=rate_hz, label=label, method="DiffWave", seed=seed
    )
    return _with_audio(trace, label)


def _with_audio(trace, label: str) -> Run:
    audio, noisy_audio = step_audio.waveform_audio(trace)
    return Run(trace, label, audio, noisy_audio=noisy_audio)


def fast_and_full(
    model: Any,
    n_samples: int,
    label: str | None = None,
    excerpt: Any = None,
    seed: int = 0,
    every_step: bool = True,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Run]:
    """One sound by the fast schedule of the model (six steps in the paper), if it has one, and by all trained steps.

    A vocoder needs the ``excerpt``, other models ``n_samples`` and, if class-conditional, a ``label``. Without
    ``every_step`` the slow run is made only if there is no fast one. Each run keeps at most ``KEEP`` steps.
    """
    has_fast = bool(model.settings.fast_etas)
    runs, schedules = [], [True] * has_fast + [False] * (every_step or not has_fast)
    for k, fast in enumerate(schedules):
        n = len(model.settings.fast_etas) if fast else model.settings.n_steps
        report = (lambda f, text, k=k: progress((k + f) / len(schedules), text)) if progress else None
        raise_if_cancelled(cancelled)
        watch = inference.step_progress(report)

        def sample(callback, fast=fast, watch=watch):
            def both(step: SamplerStep) -> None:
                callback(step)
                if watch is not None:
                    watch(step)

            common = (SamplingOptions(seed=seed), fast, both, cancelled)
            if model.settings.condition == "mel":
                return inference.vocode(model, excerpt.log_mel, excerpt.source_f0_hz, excerpt.source_voiced, *common)
            return inference.generate(model, n_samples, 1, label, *common)

        runs.append(record(model, sample, f"{n} steps", seed=seed))
    return runs


def truncated(run: Run, n_samples: int) -> Run:
    """The first samples of a run, so that runs of different lengths can be shown side by side."""
    x_t, x0_hat, result = (x[..., :n_samples] for x in (run.trace.x_t, run.trace.x0_hat, run.trace.result))
    return _with_audio(dataclasses.replace(run.trace, x_t=x_t, x0_hat=x0_hat, result=result), run.label)


def denoised(model, audio: np.ndarray, t: int, label: str | None = None, seed: int = 0) -> Run:
    """Denoising of a recording: sampling from step ``t``, with the recording as the state there."""

    def sample(callback):
        return inference.denoise(model, audio, t, label=label, options=SamplingOptions(seed=seed), callback=callback)

    return record(model, sample, f"noise taken out, from step {t}", seed=seed)


def interpolated(
    model, first: np.ndarray, second: np.ndarray, share: float | int, t: int, label: str | None = None, seed: int = 0
) -> Run:
    """Interpolation between two recordings, mixed after both are noised to step ``t``."""

    def sample(callback):
        mix, options = inference.Mix((share,), t, label=label), SamplingOptions(seed=seed)
        return inference.interpolate(model, first, second, mix, options, callback)

    return record(model, sample, f"{100 * share:.0f} % of the second sound, from step {t}", seed=seed)


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


def document(
    instrument: Any,
    song: Any = None,
    start_s: float | int = 0.0,
    seconds: float | int = 2.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> str:
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
