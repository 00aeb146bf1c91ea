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
from typing import NamedTuple

import numpy as np
import torch

from svclib.analysis import compare
from svclib.analysis.interventions import Excerpt, Intervention, build_condition, dropout_warning, swapped
from svclib.analysis.recorder import capture, select_steps
from svclib.analysis.trace import Trace
from svclib.models.diffusion.denoiser import GuidedDenoiser
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffusion.schedule import x0_from_eps
from svclib.training import api as training
from svclib.utils.errors import ConversionError, reporter

PROBE_STEPS = 24


class Probe:
    """Sampler callback that evaluates other denoisers at the same ``x_t``; it does not affect the sampling run.

    ``others`` are ``name -> (x_t, t) -> eps`` under other conditions, ``keep`` the most steps to probe, ``clip`` the
    limit of ``|x0_hat|``, the same as of the sampler. ``rows`` holds the measurements of each probed step.
    """

    def __init__(self, others: Mapping[str, Callable], keep: int = PROBE_STEPS, clip: float | int | None = 1.0):
        self.others, self.keep, self.clip = dict(others), keep, clip
        self.rows: list[dict] = []

    def __call__(self, step: SamplerStep) -> None:
        """Probe one step, if it is selected."""
        if step.index not in probed_steps(step.n_calls, self.keep):
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
    return select_steps(np.arange(n_calls)[:, None], min(max(keep, 2), n_calls))


def probe_calls(n_calls: int, n_factors: int, keep: int = PROBE_STEPS) -> int:
    """Number of additional denoiser calls: one per factor and probed step."""
    return n_factors * len(probed_steps(n_calls, keep))


class Influence(NamedTuple):
    """Local influence of each factor at the probed denoiser calls ``index [P]``, at the same ``x_t``.

    By factor: ``share [P]``, ``|eps with the factor replaced - eps| / |eps|``, and ``bins_db [P, mels, frames]``, the
    signed change of the x0 prediction in dB, float16.
    """

    index: np.ndarray
    share: dict[str, np.ndarray]
    bins_db: dict[str, np.ndarray]

    def mean_db(self, name: str) -> np.ndarray:
        """Mean absolute change of the x0 prediction in dB, ``[P]``."""
        return np.abs(self.bins_db[name].astype(np.float32)).mean(axis=(1, 2))


def influence(probe: Probe, trace: Trace) -> Influence:
    """The measurements of a probe, in dB of the mels of the trace."""
    unit_db = trace.contract.to_db(trace.high - trace.low)[:, None] / 2
    share = {name: np.array([row["share"][name] for row in probe.rows]) for name in probe.others}
    moved = {name: np.stack([row["moved"][name] for row in probe.rows]) for name in probe.others}
    bins_db = {name: (rows * unit_db).astype(np.float16) for name, rows in moved.items()}
    return Influence(np.array([row["index"] for row in probe.rows]), share, bins_db)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of an ablation run.

    ``features`` records hidden features. ``singer`` is one of the model, or names with weights; the first one if None.
    ``probe`` are interventions whose local influence is measured, none of them ``scale``; see :func:`probe_calls`.
    """

    sampling: SamplingOptions = SamplingOptions()
    features: bool = True
    singer: Mapping[str, int | float] | str | None = None
    probe: Sequence[Intervention] = ()


DEFAULTS = RunOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """One recorded run of an excerpt with interventions.

    ``excerpt`` is as before them, ``influence`` that of the probed factors, or None, ``notice`` a warning, or "".
    """

    label: str
    trace: Trace
    excerpt: Excerpt
    interventions: tuple[Intervention, ...] = ()
    influence: Influence | None = None
    notice: str = ""

    @functools.cached_property
    def mel_metrics(self) -> list[compare.Metric]:
        """Metrics of every step against the result and the source, computed once (time warping is slow)."""
        return compare.mel_metrics(self.trace, self.trace.contract.to_db(self.excerpt.log_mel.T))


def run(
    model, excerpt: Excerpt, interventions=(), options=DEFAULTS, label="", progress=None, cancelled=None, callback=None
) -> RunResult:
    """Sample an excerpt with a diffusion model and record the run.

    Runs with equal seed, length, sampler and steps start from the same noise, whatever the interventions. Each
    ``scale`` among them adds a denoiser call to every step and excludes hidden features. ``label`` is the name of the
    run, by default the text of its interventions. ``callback`` is called with the model and each step, after the probe.
    """
    report = reporter(progress, cancelled)
    report(0.0, "conditions")
    label = label or ", ".join(change.text for change in interventions) or "as asked"
    asked = tuple(interventions)
    changes = [dataclasses.replace(c, kind="null") if (c.kind, c.amount) == ("scale", 0) else c for c in asked]

    def prepare(*more: Intervention):
        condition = build_condition(model, excerpt, [*changes, *more], options.singer)
        return condition, model.prepare(condition, options.sampling.precision, cancelled=cancelled)

    condition, denoiser = prepare()
    scaled = [(float(c.amount) - 1, prepare(Intervention(c.factor))[1]) for c in changes if c.kind == "scale"]
    probe = Probe({change.text: prepare(change)[1] for change in options.probe})

    def on_step(step: SamplerStep) -> None:
        probe(step)
        if callback is not None:
            callback(model, step)
        report((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    target = swapped(excerpt, asked)
    trace = capture(
        model,
        condition,
        options.sampling,
        {"f0_hz": target.f0_hz, "voiced": target.voiced, "loudness_db": target.loudness_db},
        label,
        GuidedDenoiser(denoiser, scaled) if scaled else denoiser,
        on_step,
        options.features and not scaled,
    )
    warnings = (dropout_warning(model.settings, [*asked, *more]) for more in ([], *([c] for c in options.probe)))
    notice = " ".join(dict.fromkeys(filter(None, warnings)))
    return RunResult(label, trace, excerpt, asked, influence(probe, trace) if options.probe else None, notice)


def run_checkpoints(
    folder, training_steps, make_excerpt: Callable, options=DEFAULTS, progress=None, cancelled=None, callback=None
) -> list[RunResult]:
    """The same excerpt from the same noise by several checkpoints of a training run.

    ``make_excerpt`` is ``(model, statistics) -> Excerpt``; the remaining arguments are those of :func:`run`.
    ConversionError if the training run in ``folder`` has no diffusion model.
    """
    report, runs = reporter(progress), []
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
