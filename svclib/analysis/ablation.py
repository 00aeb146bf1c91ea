"""Ablation of a diffusion model: sampling runs from the same noise with one factor changed, and its influence.

An ``Intervention`` replaces one factor of an excerpt by its learned null embedding, by that of another recording, or by
another strength (classifier-free guidance, Ho and Salimans 2022, Eq. 6, for one factor). Two effects are measured.
*Global*: the result of a whole run without the factor. *Local*: the change of the noise estimate at the same ``x_t``,
measured by a :class:`Probe` during the run.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.analysis import step_metrics
from svclib.analysis.interventions import Excerpt, Intervention, build_condition, dropout_warning, target_f0
from svclib.analysis.recorder import CaptureOptions, capture, select_steps
from svclib.analysis.step_audio import StepAudio, common_gain
from svclib.analysis.trace import Trace
from svclib.audio.mel import griffin_lim
from svclib.models.diffusion.samplers import SamplerStep
from svclib.models.diffusion.schedule import x0_from_eps
from svclib.training import api as training
from svclib.utils.errors import ConversionError, ProgressCallback, raise_if_cancelled

PROBE_STEPS = 24


class GuidedDenoiser:
    """Two denoisers as one: ``noise(off) + scale (noise(on) - noise(off))``, exact at 0 and at 1."""

    def __init__(self, on, off, scale: float | int):
        self.on, self.off, self.scale = on, off, float(scale)
        self.denoiser, self.chunks, self.precision = on.denoiser, on.chunks, on.precision

    def __call__(self, x_t: Tensor, t: float | int) -> Tensor:
        """The noise estimate."""
        return torch.lerp(self.off(x_t, t), self.on(x_t, t), self.scale)


class Probe:
    """Sampler callback that evaluates other denoisers at the same ``x_t``; it does not affect the sampling run.

    ``others`` are ``name -> (x_t, t) -> eps`` under other conditions, ``keep`` the most steps to probe, ``clip`` the
    limit of ``|x0_hat|``, the same as of the sampler. ``rows`` holds the measurements of each probed step.
    """

    def __init__(self, others: Mapping[str, Callable], keep: int = PROBE_STEPS, clip: float | int | None = 1.0):
        self.others, self.keep, self.clip = dict(others), keep, clip
        self.steps: set[int] | None = None
        self.rows: list[dict] = []

    def __call__(self, step: SamplerStep) -> None:
        """Probe one step, if it is selected."""
        if self.steps is None:
            self.steps = {int(i) for i in probed_steps(step.n_calls, self.keep)}
        if step.index not in self.steps:
            return
        row = {"index": step.index, "share": {}, "moved": {}}
        size = float(torch.linalg.vector_norm(step.eps_hat.double()))
        for name, denoiser in self.others.items():
            eps = denoiser(step.x_t, step.t)
            row["share"][name] = float(torch.linalg.vector_norm((eps - step.eps_hat).double())) / max(size, 1e-30)
            x0 = x0_from_eps(step.x_t, eps, step.alpha, step.sigma)
            x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
            row["moved"][name] = (x0 - step.x0_hat)[0].to(torch.float16).cpu().numpy()
        self.rows.append(row)


def probed_steps(n_calls: int, keep: int = PROBE_STEPS) -> np.ndarray:
    """Indices of the denoiser calls that a :class:`Probe` evaluates: all, or ``keep`` of them, evenly spaced."""
    if n_calls <= max(keep, 2):
        return np.arange(n_calls)
    return select_steps(np.arange(n_calls)[:, None], max(keep, 2))


def probe_calls(n_calls: int, n_factors: int, keep: int = PROBE_STEPS) -> int:
    """Number of additional denoiser calls: one per factor and probed step."""
    return n_factors * len(probed_steps(n_calls, keep))


@dataclasses.dataclass(frozen=True, eq=False)
class Influence:
    """Local influence of each factor at each probed step, at the same ``x_t``.

    Attributes:
        index: Probed denoiser calls, ``[P]``.
        share: ``|eps with the factor replaced - eps| / |eps|`` by factor, ``[P]``.
        bins_db: Signed change of the x0 prediction by factor in dB, float16 ``[P, mels, frames]``.
    """

    index: np.ndarray
    share: dict[str, np.ndarray]
    bins_db: dict[str, np.ndarray]

    def mean_db(self, name: str) -> np.ndarray:
        """Mean absolute change of the x0 prediction in dB, ``[P]``."""
        return np.abs(self.bins_db[name].astype(np.float32)).mean(axis=(1, 2))


def influence(probe: Probe, trace: Trace) -> Influence:
    """The measurements of a probe, in dB of the mels of the trace."""
    index = np.array([row["index"] for row in probe.rows], np.int64)
    share = {name: np.array([row["share"][name] for row in probe.rows]) for name in probe.others}
    unit_db = (trace.level_db(np.ones_like(trace.result)) - trace.level_db(np.zeros_like(trace.result)))[:, :1]
    moved = {name: [(row["moved"][name] * unit_db).astype(np.float16) for row in probe.rows] for name in probe.others}
    return Influence(index, share, {name: np.stack(rows) for name, rows in moved.items()})


@dataclasses.dataclass(frozen=True)
class RunOptions(CaptureOptions):
    """Options of an ablation run.

    Attributes:
        singer: A singer of the model, or names with weights; the first one if None.
        probe: Interventions whose local influence is measured; see :func:`probe_calls` for the cost.
        probe_steps: Most steps to probe.
    """

    singer: Mapping[str, int | float] | str | None = None
    probe: Sequence[Intervention] = ()
    probe_steps: int = PROBE_STEPS


DEFAULTS = RunOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """One run.

    Attributes:
        label: Its name.
        trace: The recorded sampling run.
        excerpt: The input before interventions.
        interventions: What was changed.
        influence: Of the probed factors, or None.
        notice: A warning, or "".
    """

    label: str
    trace: Trace
    excerpt: Excerpt
    interventions: tuple[Intervention, ...] = ()
    influence: Influence | None = None
    notice: str = ""

    @functools.cached_property
    def mel_metrics(self) -> list["step_metrics.Metric"]:
        """Metrics of every step against the result and the source, computed once (time warping is slow)."""
        trace = self.trace
        state = 2 * (self.excerpt.log_mel.T - trace.low[:, None]) / (trace.high - trace.low)[:, None] - 1
        return step_metrics.mel_metrics(trace, trace.level_db(state))


def run(
    model: Any,
    excerpt: Excerpt,
    interventions: Sequence[Intervention] = (),
    options: RunOptions = DEFAULTS,
    label: str = "",
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    callback: Callable[[Any, SamplerStep], None] | None = None,
) -> RunResult:
    """Sample an excerpt with a diffusion model and record the run.

    Runs with equal seed, length, sampler and steps start from the same noise, whatever the interventions.

    Args:
        model: A ``diffusion.DiffusionModel``.
        excerpt: From ``interventions.cut_excerpt``.
        interventions: At most one ``scale``, which doubles the denoiser calls and excludes hidden features.
        options: Of sampler, recorder and probe.
        label: Name of the run; the text of the interventions by default.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; checked at each call of the denoiser.
        callback: Called with the model and each step, after the probe.

    Returns:
        The run, with its influence if factors were probed.
    """
    report = progress or (lambda fraction, text: None)
    report(0.0, "conditions")
    scaled = [change for change in interventions if change.kind == "scale"]
    if len(scaled) > 1 or any(change.kind == "scale" for change in options.probe):
        raise ConversionError("One factor can be scaled in a run, and none in a probe.")
    raise_if_cancelled(cancelled)

    def condition(*more: Intervention) -> Tensor:
        return build_condition(model, excerpt, [*interventions, *more], options.singer)

    def prepare(condition: Tensor):
        return model.prepare(condition, options.sampling.precision, cancelled=cancelled)

    plain = condition()
    denoiser = prepare(plain)
    if scaled:
        denoiser = GuidedDenoiser(denoiser, prepare(condition(Intervention(scaled[0].factor))), scaled[0].amount)
    probe = Probe({change.text: prepare(condition(change)) for change in options.probe}, options.probe_steps)

    def on_step(step: SamplerStep) -> None:
        probe(step)
        if callback is not None:
            callback(model, step)
        report((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    dropped = [[*interventions, *more] for more in ([], *([change] for change in options.probe))]
    notice = " ".join(dict.fromkeys(filter(None, (dropout_warning(model.settings, changes) for changes in dropped))))
    label = label or ", ".join(change.text for change in interventions) or "as asked"
    f0_hz, voiced = target_f0(excerpt, interventions)
    trace = capture(
        model,
        plain,
        dataclasses.replace(options, features=options.features and not scaled, blocks="all"),
        {"f0_hz": f0_hz, "voiced": voiced, "loudness_db": excerpt.loudness_db},
        label,
        denoiser,
        on_step,
        cancelled,
    )
    found = influence(probe, trace) if options.probe else None
    return RunResult(label, trace, excerpt, tuple(interventions), found, notice)


def run_checkpoints(
    folder: str | Path,
    training_steps: Sequence[int],
    make_excerpt: Callable[[Any, dict], Excerpt],
    options: RunOptions = DEFAULTS,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    callback: Callable[[Any, SamplerStep], None] | None = None,
) -> list[RunResult]:
    """The same excerpt from the same noise by several checkpoints of a training run.

    ``make_excerpt`` is ``(model, statistics) -> Excerpt``; the remaining arguments are those of :func:`run`.
    ConversionError if the training run in ``folder`` has no diffusion model.
    """
    report, runs = progress or (lambda fraction, text: None), []
    for i, step in enumerate(training_steps):
        name = f"training step {step}"
        report(i / len(training_steps), f"loading {name}")
        model, record = training.load_model(folder, step)
        if model.settings.kind != "diffusion":
            raise ConversionError(
                f"'{Path(folder).name}' trains a '{model.settings.kind}' model; only diffusion has steps.", path=folder
            )

        def share(fraction: float, text: str, i=i, name=name) -> None:
            report((i + fraction) / len(training_steps), f"{name}: {text}")

        excerpt = make_excerpt(model, record["statistics"])
        runs.append(run(model, excerpt, (), options, name, share, cancelled, callback))
    return runs


def render_audio(
    model: Any,
    result: RunResult,
    positions: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> StepAudio:
    """Render the x0 predictions of steps by the vocoder of the model, or by Griffin-Lim if it has none.

    ``positions`` are kept steps, all by default; the result, at position ``len(trace)``, is always rendered. One gain
    for all, see ``step_audio.common_gain``. ``seed`` is that of the vocoder's noise or of the initial phases.
    """
    trace = result.trace
    f0_hz, voiced = (np.asarray(trace.conditions[name]) for name in ("f0_hz", "voiced"))
    steps = sorted({int(i) for i in (range(len(trace)) if positions is None else positions)} | {len(trace)})
    rendered = {}
    for n, i in enumerate(steps):
        raise_if_cancelled(cancelled)
        mel = trace.log_mel(trace.result if i == len(trace) else trace.x0_hat[i]).T
        if model.vocoder is not None:
            rendered[i] = model.vocoder.render(mel, f0_hz, voiced, seed).audio
        else:
            rows = torch.from_numpy(np.ascontiguousarray(mel))[None]
            rendered[i] = griffin_lim(rows, model.contract, seed=seed)[0].numpy()
        if progress:
            progress((n + 1) / len(steps), f"audio {n + 1} of {len(steps)}")
    audio, attenuated_db = common_gain(rendered, rendered[len(trace)])
    return StepAudio(audio, trace.sample_rate_hz, attenuated_db=attenuated_db)
