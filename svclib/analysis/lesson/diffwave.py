"""DiffWave watched: its few audible steps, noise taken out of a recording, sounds between two recordings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from svclib.analysis import interventions, player
from svclib.analysis import recorder as capture
from svclib.analysis.player import Run
from svclib.conversion.controls import Controls
from svclib.models.diffwave import inference as diffwave_uses
from svclib.utils.errors import ConversionError
from svclib.utils.progress import ProgressCallback, raise_if_cancelled

KEEP = 12
MAX_S = 5.0


def watch(model: Any, walk: Callable, label: str, keep: int = KEEP, seed: int = 0, pitch: str = "") -> Run:
    """Let ``walk(callback)`` make one sound and keep its steps, each with the sound of the signal and of the guess.

    Args:
        model: A ``diffwave.DiffWaveModel``; only its sample rate is read.
        walk: A call of ``diffwave_uses`` that returns ``[samples]`` or ``[1, samples]``.
        label: Name of the run.
        keep: Most steps to keep, at least 2.
        seed: Of the walk, to be named on the page.
        pitch: F0 method by which the pitch of each guess is measured; none if empty.

    Returns:
        A run of a ``wave`` trace, whose result is what ``walk`` returned.
    """
    recorder = capture.Recorder(keep)
    made = np.asarray(walk(recorder), np.float32).reshape(1, -1)
    trace = recorder.trace(
        torch.from_numpy(made),
        "wave",
        sample_rate_hz=model.features.sample_rate_hz,
        label=label,
        method="DiffWave",
        seed=seed,
    )
    guess, noisy = player.waveform_audio(trace)
    sung = player.measure_f0(trace, guess, pitch) if pitch else {}
    return Run(trace, label, guess, sung, noisy=noisy)


def six_steps(
    model: Any,
    n_samples: int,
    label: str | None = None,
    asked: Any = None,
    seed: int = 0,
    every_step: bool = True,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Run]:
    """One sound by the model's fast schedule (six steps in the paper), where it has one, and by all its steps too.

    Args:
        model: Of any condition.
        n_samples: Length, where the model follows no mel.
        label: Where it takes one.
        asked: A ``stretches.Excerpt``, where it follows a mel.
        seed: Of the noise.
        every_step: Whether the run of all trained steps is wanted too.
        progress: Called with a fraction and a text.
        cancelled: Asked before each step; True raises ``Cancelled``.

    Returns:
        The fast run, then that of all steps where it is wanted or the only one; each keeps at most ``KEEP`` steps.
    """
    fast = bool(model.settings.fast_etas)
    runs, ways = [], [True] * fast + [False] * (every_step or not fast)
    for k, fast in enumerate(ways):
        n = len(model.settings.fast_etas) if fast else model.settings.n_steps
        report = (lambda f, text, k=k: progress((k + f) / len(ways), text)) if progress else None
        raise_if_cancelled(cancelled)
        common = {"seed": seed, "fast": fast, "progress": report, "cancelled": cancelled}

        def walk(callback, common=common):
            if model.settings.condition == "mel":
                return diffwave_uses.vocode(
                    model,
                    asked.log_mel,
                    model.contract,
                    callback=callback,
                    f0_hz=asked.source_f0_hz,
                    voiced=asked.source_voiced,
                    **common,
                )
            return diffwave_uses.generate(model, n_samples, 1, label, callback=callback, **common)

        runs.append(watch(model, walk, f"{n} steps", seed=seed))
    return runs


def shortened(run: Run, n_samples: int) -> Run:
    """A run of the first samples only, so that runs of different lengths stand beside each other."""
    trace = run.trace
    cut = dataclasses.replace(
        trace, x_t=trace.x_t[:, :n_samples], x0_hat=trace.x0_hat[:, :n_samples], result=trace.result[:n_samples]
    )
    guess, noisy = player.waveform_audio(cut)
    return dataclasses.replace(run, trace=cut, sounds=guess, noisy=noisy, sung={})


def denoised(model, audio: np.ndarray, t: int, label: str | None = None, seed: int = 0) -> Run:
    """A noisy recording, walked back from step ``t`` as if it were the signal there."""
    walk = lambda callback: diffwave_uses.denoise(model, audio, t, label=label, seed=seed, callback=callback)  # noqa: E731
    return watch(model, walk, f"noise taken out, from step {t}", seed=seed)


def between(
    model, first: np.ndarray, second: np.ndarray, share: float | int, t: int, label: str | None = None, seed: int = 0
) -> Run:
    """A sound between two recordings, mixed where both are noise up to step ``t``."""

    def walk(callback):
        return diffwave_uses.interpolate(model, first, second, [share], t, label=label, seed=seed, callback=callback)

    return watch(model, walk, f"{share:.0%} of the second sound, from step {t}".replace("%", " %"), seed=seed)


def demonstrate(instrument, seconds: float | int = 1.0, seed: int = 0) -> str:
    """The page of what an instrument without mel does: a sound, noise taken out of it, sounds between it and another.

    The recordings it works on are its own: generated by every step of the walk.
    """
    model = instrument.model
    if model.settings.condition == "mel":
        raise ConversionError(f"'{instrument.name}' is a vocoder: it follows a mel. Show it with a song instead.")
    labels = model.settings.labels or (None, None)
    n = int(seconds * instrument.features.sample_rate_hz) // 64 * 64
    first, second = (
        diffwave_uses.generate(model, n, 1, label, seed + k)[0] for k, label in enumerate((labels[0], labels[-1]))
    )
    return player.document(four_examples(model, first, second, labels[0], seed), f"{instrument.name} at work")


def four_examples(model, first: np.ndarray, second: np.ndarray, label: str | None, seed: int = 0) -> list[Run]:
    """A sound; noise taken out of the first recording; all of the first, half of both recordings."""
    level = max(float(np.sqrt(np.square(first, dtype=np.float64).mean())), 1e-4)
    noise = np.random.default_rng(seed).standard_normal(len(first)).astype(np.float32)
    quarter, half = max(2, model.settings.n_steps // 8), max(2, model.settings.n_steps // 4)
    runs = [
        six_steps(model, len(first), label, seed=seed, every_step=False)[0],
        denoised(model, first + np.float32(0.5 * level) * noise, quarter, label, seed),
        *(between(model, first, second, share, half, label, seed) for share in (0.0, 0.5)),
    ]
    n = min(len(run.trace.result) for run in runs) // 64 * 64
    return [shortened(run, n) for run in runs]


def document(
    instrument: Any,
    song: Any = None,
    start_s: float | int = 0.0,
    seconds: float | int = 2.0,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> str:
    """The page of a DiffWave instrument: a vocoder sings the stretch of a song again, others make a sound of their own.

    Args:
        instrument: An opened ``instrument.Instrument`` of this kind; of its labels the first is taken.
        song: A ``conversion.Song`` measured as the instrument says, for a vocoder; others leave it unread.
        start_s: Where the stretch begins in the song.
        seconds: Length of the stretch or of the sound, above 0 and up to 5.
        seed: Of all noise.
        progress: Called with a fraction and a text.
        cancelled: Asked before each step.

    Returns:
        HTML of one self-contained page.

    Raises:
        ConversionError: if nothing of the song is left, or for other lengths than these.
        Cancelled: if ``cancelled`` says so.
    """
    model = instrument.model
    if not 0 < seconds <= MAX_S:
        raise ConversionError(f"{seconds:g} s are asked for; a page of DiffWave's steps holds up to {MAX_S:g} s.")
    asked = None
    if model.settings.condition == "mel":
        if song is None:
            raise ConversionError(f"'{instrument.name}' is a vocoder: it sings a song again. Give one.")
        asked = interventions.cut_excerpt(song, None, start_s, seconds, Controls())
    label = model.settings.labels[0] if model.settings.condition == "label" else None
    n_samples = int(seconds * instrument.features.sample_rate_hz)
    runs = six_steps(model, n_samples, label, asked, seed, progress=progress, cancelled=cancelled)
    what = f"sings {asked.name} again" if asked else f"says '{label}'" if label else "makes a sound"
    return player.document(runs, f"{instrument.name}: {what}, out of noise")
