"""The views of a study: each is a picture, the table behind it, and a sentence on what it shows.

They hold the five modes of SingVisio (Xue et al. 2024) on one's own material: *step comparison* is ``steps side by
side`` and ``step matrix``, *metric comparison* is ``metrics per step``; *source singer*, *song* and *target singer
comparison* are ``two runs`` of which one has another recording or another singer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svclib.analysis import compare, projection, step_metrics
from svclib.analysis.ablation import RunResult
from svclib.analysis.plots import ablation
from svclib.utils.errors import ConversionError


@dataclasses.dataclass(frozen=True, eq=False)
class ViewRequest:
    """What is to be looked at.

    Attributes:
        runs: All runs, by label.
        a, b: Labels of the run in question and of the one it is compared with.
        step: A kept step of ``a``; the number of steps is the result.
        pinned: Steps to see side by side.
        state: ``x0_hat`` or ``x_t``.
        tolerance_db: Of the decision times.
        heard: Metrics of what runs sound like, by label.
    """

    runs: Mapping[str, RunResult]
    a: str
    b: str | None = None
    step: int = 0
    pinned: Sequence[int] = ()
    state: str = "x0_hat"
    tolerance_db: float | int = 3.0
    heard: Mapping[str, Sequence[step_metrics.Metric]] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> RunResult:
        """The run in question."""
        return self.runs[self.a]

    @property
    def other(self) -> RunResult:
        """The run it is compared with."""
        if self.b is None or self.b == self.a or self.b not in self.runs:
            raise ConversionError("This view compares two runs; sing a second one, and choose it as B.")
        return self.runs[self.b]


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture, its table and what it shows."""

    figure: Any
    head: list[str]
    rows: list[list]
    about: str


def _steps(request: ViewRequest) -> View:
    trace = request.run.trace
    pinned = [min(max(int(s), 0), len(trace)) for s in (request.pinned or (0, len(trace) // 2, len(trace)))]
    figure = ablation.cards(trace, pinned, request.state, request.a)
    levels = [compare.level_of(trace, None if s == len(trace) else s, request.state) for s in pinned]
    names = [ablation.step_name(trace, s) for s in pinned]
    far = [[float(np.abs(a - b).mean(dtype=np.float64)) for b in levels] for a in levels]
    about = "Pinned steps on one colour scale; below, what changed: brown is louder, violet quieter."
    return View(figure, *compare.matrix_table(names, np.array(far)), about)


def _matrix(request: ViewRequest) -> View:
    trace = request.run.trace
    values, names = compare.step_matrix(trace, request.state), [str(i + 1) for i in trace.index]
    title = f"{request.a}: {compare.STATES[request.state]}, step against step"
    about = "How far any two steps are apart: mean absolute difference of their log-mels in dB, all mels and frames."
    return View(ablation.matrix(values, names, title), *compare.matrix_table(names, values), about)


def metrics_of(sung: RunResult) -> list[step_metrics.Metric]:
    """Metrics of a run that need no sound, against its result and the source's own log-mel."""
    trace = sung.trace
    state = 2 * (sung.asked.log_mel.T - trace.low[:, None]) / (trace.high - trace.low)[:, None] - 1
    return step_metrics.mel_metrics(trace, trace.level_db(state))


def _metrics(request: ViewRequest) -> View:
    labels = [request.a] + ([request.b] if request.b in request.runs and request.b != request.a else [])
    found = {label: [*metrics_of(request.runs[label]), *request.heard.get(label, ())] for label in labels}
    figure = ablation.metric_curves({label: request.runs[label].trace for label in labels}, found, request.step)
    about = "; ".join(f"{m.name} ({m.unit}): {m.meaning}" for m in found[request.a]) + "."
    return View(figure, *step_metrics.metric_table(request.run.trace, found[request.a]), about)


def _pair(request: ViewRequest) -> View:
    a, b = request.run.trace, request.other.trace
    found = compare.run_distance(a, b)
    curves = {"mean spectra apart (dB)": found.spectrum_db}
    if found.bins_db is not None:
        curves |= {"bins apart (dB)": found.bins_db, "noisy mels apart (share)": found.state_share}
    about = "Both runs begin with the same noise where their lengths agree; what differs later comes from what differs."
    figure = ablation.pair(a, b, (request.a, request.b), request.step)
    return View(figure, *compare.curve_table(a, curves), about)


def _decision(request: ViewRequest) -> View:
    trace, found = request.run.trace, compare.decision(request.run.trace, request.tolerance_db)
    about = (
        f"The first step from which on the guess of a bin stays within {request.tolerance_db:g} dB of the result. Bright "
        "bins are decided late."
    )
    table = compare.curve_table(trace, {f"settled: {name}": share for name, share in found.settled.items()})
    return View(ablation.decision(trace, found, f"{request.a}: when each bin settles"), *table, about)


def _influence(request: ViewRequest) -> View:
    sung, own = request.run, request.run.trace
    runs = {
        label: run.trace
        for label, run in request.runs.items()
        if label != request.a
        and np.array_equal(run.trace.t, own.t)
        and run.trace.result.shape == own.result.shape
        and np.array_equal(run.trace.x_t[0], own.x_t[0])
    }
    curves = {f"global: {label} (mean dB)": compare.run_distance(own, trace).bins_db for label, trace in runs.items()}
    local = sung.influence
    for name in local.share if local else ():
        place = {int(i): k for k, i in enumerate(local.index)}
        for unit, values in (("share of the noise", local.share[name]), ("mean dB", local.mean_db(name))):
            curves[f"local: {name} ({unit})"] = [values[place[i]] if i in place else np.nan for i in own.index]
    about = (
        "Local: at the same noisy mel, how much of the noise that the network names changes when one factor is "
        "replaced, and by how much its guess moves. Global: how far the guesses of a whole other run from the same "
        "noise are. "
        "They answer different questions."
    )
    return View(ablation.influence(own, local, runs), *compare.curve_table(own, curves), about)


def _influence_bins(request: ViewRequest) -> View:
    local = request.run.influence
    if local is None:
        raise ConversionError("No influence was measured in this run; tick it before you press Run.")
    place = int(np.argmin(np.abs(local.index - request.run.trace.index[min(request.step, len(request.run.trace) - 1)])))
    rows = [
        [name, int(local.index[place]), float(local.share[name][place]), float(local.mean_db(name)[place])]
        for name in local.bins_db
    ]
    about = "Where the guess moves when a factor is replaced at this very step: brown louder, violet quieter."
    head = ["factor", "call", "share of the noise", "guess moves by (mean dB)"]
    return View(ablation.influence_bins(request.run.trace, local, place), head, rows, about)


def _layers(request: ViewRequest) -> View:
    trace, curves = request.run.trace, {}
    for kind in ("noise", "condition"):
        for value in ("level", "change"):
            names, values = compare.layer_map(trace, kind, value)
            curves |= {f"{name}: {value}": row for name, row in zip(names, values, strict=True)}
    about = (
        "Residual blocks by steps, means and spreads over time of what they work on. Level: root mean square. New: how "
        "far they moved since the step before, as a share of their size."
    )
    return View(ablation.layers(trace, request.a), *compare.curve_table(trace, curves), about)


def _map(request: ViewRequest) -> View:
    mels = {label: run.trace for label, run in request.runs.items() if run.trace.contract == request.run.trace.contract}
    made = projection.joint_map([projection.map_features(trace) for trace in mels.values()])
    rows = [
        [label, int(trace.index[i]), float(trace.t[i]), *map(float, path[i])]
        for (label, trace), path in zip(mels.items(), made.paths, strict=True)
        for i in range(len(trace))
    ]
    about = "Every dot is one step's guess, averaged over time; the directions are those in which all runs move most."
    return View(ablation.trajectories(mels), ["run", "call", "diffusion time", "first", "second"], rows, about)


def _runs(request: ViewRequest) -> View:
    labels = list(request.runs)
    values = compare.run_matrix([run.trace for run in request.runs.values()])
    about = "How far the results of the runs are apart: mean absolute difference of their log-mels in dB."
    figure = ablation.matrix(values, labels, "results of the runs")
    return View(figure, *compare.matrix_table(labels, values), about)


VIEWS = {
    "steps side by side": _steps,
    "step matrix": _matrix,
    "metrics per step": _metrics,
    "two runs": _pair,
    "all runs": _runs,
    "decision times": _decision,
    "influence over the steps": _influence,
    "influence at one step": _influence_bins,
    "layers by steps": _layers,
    "map of the way": _map,
}


def draw_view(name: str, request: ViewRequest) -> View:
    """Draw one of ``VIEWS``; ConversionError if there is no such view or run, or it needs what the run did not keep."""
    if name not in VIEWS:
        raise ConversionError(f"There is no view '{name}'; there are {', '.join(VIEWS)}.")
    if request.a not in request.runs:
        raise ConversionError("There is no run yet; press Run.")
    return VIEWS[name](request)
