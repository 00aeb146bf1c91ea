"""A study of one's own model: a stretch of a song sung as asked, or with one thing changed, always from the same noise.

A ``stretches.Change`` replaces one factor of what is asked: by its learned null, by another recording's, or by another
strength (classifier-free guidance, Ho and Salimans 2022, Eq. 6, for one factor). :func:`run` runs the sampler and
keeps everything. Two questions are answered apart. *Global*: how does the song end if the whole walk goes without a
factor? That is a second run. *Local*: what would the network say otherwise, here, at the same noisy mel? That is a
:class:`Probe`, asked while the walk goes on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.analysis import player, recorder
from svclib.analysis.interventions import Excerpt, Intervention, build_condition, dropout_warning, target_f0
from svclib.analysis.step_selection import select_steps
from svclib.analysis.trace import Trace
from svclib.audio import griffin_lim
from svclib.models.diffusion.samplers import SamplerStep
from svclib.models.diffusion.schedule import x0_from_eps
from svclib.training import api as training
from svclib.utils.errors import ConversionError
from svclib.utils.progress import ProgressCallback, raise_if_cancelled

PROBE_STEPS = 24


class Scaled:
    """Two prepared denoisers as one: ``noise(off) + amount (noise(on) - noise(off))``, exact at 0 and at 1."""

    def __init__(self, on, off, amount: float | int):
        self.on, self.off, self.amount = on, off, float(amount)
        self.denoiser, self.pieces, self.precision = on.denoiser, on.pieces, on.precision

    def __call__(self, x_t: Tensor, t: float | int) -> Tensor:
        """The noise."""
        return torch.lerp(self.off(x_t, t), self.on(x_t, t), self.amount)


class Probe:
    """Callback that asks at chosen steps what the network would say to the same ``x_t`` under other conditions.

    One more call of the network for each probed step and other condition; the walk itself is not touched.

    Args:
        others: ``name -> (x_t, t) -> eps`` under the other condition.
        keep: Most steps to probe: one from the middle of each of equally many intervals, and the first and the last.
        clip: Limit of ``|x0_hat|``, as the sampler's.
        keep_bins: Whether to keep how far every bin of the guess moves, too.

    Attributes:
        rows: One dict for each probed step.
    """

    def __init__(
        self,
        others: Mapping[str, Callable],
        keep: int = PROBE_STEPS,
        clip: float | int | None = 1.0,
        keep_bins: bool = True,
    ):
        self.others, self.keep, self.clip, self.keep_bins = dict(others), keep, clip, keep_bins
        self.wanted: set[int] | None = None
        self.rows: list[dict] = []

    def __call__(self, step: SamplerStep) -> None:
        """Probe one step, if it is one of those."""
        if self.wanted is None:
            self.wanted = {int(i) for i in probed_steps(step.n_calls, self.keep)}
        if step.index not in self.wanted:
            return
        row = {"index": step.index, "share": {}, "moved": {}}
        size = float(torch.linalg.vector_norm(step.eps_hat.double()))
        for name, denoiser in self.others.items():
            eps = denoiser(step.x_t, step.t)
            row["share"][name] = float(torch.linalg.vector_norm((eps - step.eps_hat).double())) / max(size, 1e-30)
            x0 = x0_from_eps(step.x_t, eps, step.signal_level, step.noise_level)
            x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
            if self.keep_bins:
                row["moved"][name] = (x0 - step.x0_hat)[0].to(torch.float16).cpu().numpy()
        self.rows.append(row)


def probed_steps(n_calls: int, keep: int = PROBE_STEPS) -> np.ndarray:
    """Which calls of a walk a :class:`Probe` looks at: all, or ``keep`` of them by ``selection.select_steps``."""
    if n_calls <= max(keep, 2):
        return np.arange(n_calls)
    return select_steps(np.arange(n_calls)[:, None], max(keep, 2))


def probe_calls(n_calls: int, n_factors: int, keep: int = PROBE_STEPS) -> int:
    """Calls of the network that probing adds: one per factor and probed step."""
    return n_factors * len(probed_steps(n_calls, keep))


@dataclasses.dataclass(frozen=True, eq=False)
class Influence:
    """What each factor does at each probed step, at the same ``x_t``.

    Attributes:
        index: Calls of the walk that were probed, ``[P]``.
        share: ``|eps with the factor replaced - eps| / |eps|`` by factor, ``[P]``.
        bins_db: How far the guess moves in every bin, by factor, float16 ``[P, mels, frames]``, in dB with its sign.
    """

    index: np.ndarray
    share: dict[str, np.ndarray]
    bins_db: dict[str, np.ndarray]

    def mean_db(self, name: str) -> np.ndarray:
        """Mean absolute movement of the guess in dB, ``[P]``."""
        return np.abs(self.bins_db[name].astype(np.float32)).mean(axis=(1, 2))


def influence(probe: Probe, trace: Trace) -> Influence:
    """What a probe found, in dB of the trace's mels."""
    index = np.array([row["index"] for row in probe.rows], np.int64)
    share = {name: np.array([row["share"][name] for row in probe.rows]) for name in probe.others}
    unit_db = (trace.level_db(np.ones_like(trace.result)) - trace.level_db(np.zeros_like(trace.result)))[:, :1]
    bins = {
        name: np.stack([(row["moved"][name] * unit_db).astype(np.float16) for row in probe.rows])
        for name in (probe.others if probe.keep_bins else ())
    }
    return Influence(index, share, bins)


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """One run of a study.

    Attributes:
        label: What it is, in words.
        trace: What happened.
        asked: What was asked for before any change.
        changes: What was changed.
        influence: From a probe, or None.
        notice: What to keep in mind, or "".
    """

    label: str
    trace: Trace
    asked: Excerpt
    changes: tuple[Intervention, ...] = ()
    influence: Influence | None = None
    notice: str = ""


def run(
    model: Any,
    asked: Excerpt,
    changes: Sequence[Intervention] = (),
    method: str | None = None,
    steps: int | None = None,
    shallow: int | None = None,
    seed: int = 0,
    singer: Mapping[str, int | float] | str | None = None,
    probe: Sequence[Intervention] = (),
    probe_steps: int = PROBE_STEPS,
    features: bool = True,
    keep: int | None = None,
    max_bytes: int = recorder.MAX_BYTES,
    precision: str = "auto",
    label: str = "",
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    watch: Callable[[object, SamplerStep], None] | None = None,
) -> RunResult:
    """Let a diffusion model sing a stretch and keep what happened.

    Runs with equal ``seed``, length, ``method`` and ``steps`` begin with the same noise, whatever is changed.

    Args:
        model: A ``diffusion.DiffusionModel``.
        asked: From ``stretches.stretch``.
        changes: What to ask for differently; at most one ``scale``, which doubles the calls of the network.
        method: One of ``samplers.METHODS``; the model's own if None.
        steps: Of the sampler; the model's own number if None.
        shallow: Step 1 .. ``n_steps`` to which the coarse mel is noised to start from, not with a ``scale``; None
            starts from pure noise.
        seed: Of the first noise and, for ``ddpm``, of the walk.
        singer: Who sings, unless that is changed: a name, or names with weights; the model's first if None.
        probe: Changes whose local influence is measured on the way; see :func:`probe_calls` for what it costs.
        probe_steps: Most steps to probe.
        features: Whether to keep what all layers say, pooled; not possible with a ``scale``.
        keep: Most steps to keep, at least 2; all if None.
        max_bytes: Most memory for states, whatever ``keep`` says.
        precision: One of ``denoiser.PRECISIONS``.
        label: A name; otherwise the changes in words.
        progress: Called with a fraction and a text at every step.
        cancelled: Asked at every call of the network.
        watch: Sees the model and every step, after the probe.

    Returns:
        The run, with its influence where something was probed.

    Raises:
        ConversionError, ConversionError, ModelError: for what cannot be done.
        Cancelled: if ``cancelled`` says so.
    """
    report = progress or (lambda fraction, text: None)
    report(0.0, "conditions")
    scaled = [change for change in changes if change.how == "scale"]
    if len(scaled) > 1 or any(change.how == "scale" for change in probe):
        raise ConversionError("One factor can be scaled in a run, and none in a probe; leave the others as they are.")
    raise_if_cancelled(cancelled)
    condition = build_condition(model, asked, changes, singer)

    def prepare(condition: Tensor):
        return model.prepare(condition, precision, cancelled=cancelled)

    prepared = prepare(condition)
    if scaled:
        off = [*changes, Intervention(scaled[0].factor)]
        prepared = Scaled(prepared, prepare(build_condition(model, asked, off, singer)), scaled[0].amount)
    others = {c.text: prepare(build_condition(model, asked, [*changes, c], singer)) for c in probe}
    asking = Probe(others, probe_steps)

    def step_done(step: SamplerStep) -> None:
        asking(step)
        if watch is not None:
            watch(model, step)
        report((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    said = (dropout_warning(model.settings, [*changes, *more]) for more in ([], *([c] for c in probe)))
    notice = " ".join(dict.fromkeys(filter(None, said)))
    label = label or ", ".join(change.text for change in changes) or "as asked"
    sounding = target_f0(asked, changes)
    trace = recorder.capture(
        model,
        condition,
        method,
        steps,
        shallow,
        seed,
        precision,
        keep,
        features and not scaled,
        max_bytes,
        {"f0_hz": sounding[0], "voiced": sounding[1], "loudness_db": asked.loudness_db},
        label,
        prepared,
        step_done,
        cancelled,
        blocks=range(model.settings.n_layers),
    )
    return RunResult(label, trace, asked, tuple(changes), influence(asking, trace) if others else None, notice)


def run_checkpoints(
    folder: str | Path,
    training_steps: Sequence[int],
    song_of: Callable[[object, dict], Excerpt],
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options,
) -> list[RunResult]:
    """The same stretch from the same noise by several checkpoints of one's own training.

    Args:
        folder: A run's folder.
        training_steps: Which checkpoints, from ``training.checkpoints``.
        song_of: ``(model, statistics) -> Excerpt``, what each is asked for.
        progress: Called with a fraction, of all of them together, and a text.
        cancelled: As :func:`run`.
        **options: Further arguments of :func:`run`, the same for each; not ``label``.

    Returns:
        One run for each checkpoint, in the order given, named by its training step.

    Raises:
        TrainingError: if there is no such checkpoint.
        ConversionError: if the run trains no diffusion model.
    """
    report, sung = progress or (lambda fraction, text: None), []
    for i, step in enumerate(training_steps):
        report(i / len(training_steps), f"opening training step {step}")
        model, record = training.load_model(folder, step)
        if model.settings.kind != "diffusion":
            raise ConversionError(
                f"'{Path(folder).name}' trains a '{model.settings.kind}' model; only diffusion has steps."
            )
        asked = song_of(model, record["statistics"])

        def share(fraction: float, text: str, i=i, step=step) -> None:
            report((i + fraction) / len(training_steps), f"training step {step}: {text}")

        name = f"training step {step}"
        sung.append(run(model, asked, label=name, progress=share, cancelled=cancelled, **options))
    return sung


def render_audio(
    model: Any,
    sung: RunResult,
    positions: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> player.StepAudio:
    """What the guesses of steps sound like through the model's vocoder, or phase reconstruction where it has none.

    Args:
        model: The ``diffusion.DiffusionModel`` that sang.
        sung: Its run, which has to keep ``f0_hz`` and ``voiced``.
        positions: Kept steps; all by default. The result is always heard too.
        seed: Of the vocoder's noise, or of the first phases.
        progress: Called with a fraction and a text.
        cancelled: Asked before every step.

    Returns:
        Sounds by position under one gain, steps louder than the result turned down; the last entry of ``audio`` is
        the result, at ``len(trace)``.

    Raises:
        Cancelled: if ``cancelled`` says so.
    """
    trace = sung.trace
    f0_hz, voiced = (np.asarray(trace.conditions[name]) for name in ("f0_hz", "voiced"))
    wanted = sorted({int(i) for i in (range(len(trace)) if positions is None else positions)} | {len(trace)})
    made = {}
    for n, i in enumerate(wanted):
        raise_if_cancelled(cancelled)
        mel = trace.log_mel(trace.result if i == len(trace) else trace.x0_hat[i]).T
        if model.vocoder is not None:
            made[i] = model.vocoder.render(mel, f0_hz, voiced, seed).audio
        else:
            rows = torch.from_numpy(np.ascontiguousarray(mel))[None]
            made[i] = griffin_lim.griffin_lim(rows, model.contract, seed=seed)[0].numpy()
        if progress:
            progress((n + 1) / len(wanted), f"sound {n + 1} of {len(wanted)}")
    audio, quieter = player.common_gain(made, made[len(trace)])
    return player.StepAudio(audio, trace.sample_rate_hz, quieter_db=quieter)
