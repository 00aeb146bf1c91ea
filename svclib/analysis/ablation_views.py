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
from svclib.analysis.ablation import Sung
from svclib.analysis.interventions import StudyError
from svclib.analysis.plots import ablation


@dataclasses.dataclass(frozen=True, eq=False)
class Wish:
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

    runs: Mapping[str, Sung]
    a: str
    b: str | None = None
    step: int = 0
    pinned: Sequence[int] = ()
    state: str = "x0_hat"
    tolerance_db: float | int = 3.0
    heard: Mapping[str, Sequence[step_metrics.Metric]] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> Sung:
        """The run in question."""
        return self.runs[self.a]

    @property
    def other(self) -> Sung:
        """The run it is compared with."""
        if self.b is None or self.b == self.a or self.b not in self.runs:
            raise StudyError("This view compares two runs; sing a second one, and choose it as B.")
        return self.runs[self.b]


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture, its table and what it shows."""

    figure: Any
    head: list[str]
    rows: list[list]
    about: str


def _steps(wish: Wish) -> View:
    trace = wish.run.trace
    pinned = [min(max(int(s), 0), len(trace)) for s in (wish.pinned or (0, len(trace) // 2, len(trace)))]
    figure = ablation.cards(trace, pinned, wish.state, wish.a)
    levels = [compare.level_of(trace, None if s == len(trace) else s, wish.state) for s in pinned]
    names = [ablation.step_name(trace, s) for s in pinned]
    far = [[float(np.abs(a - b).mean(dtype=np.float64)) for b in levels] for a in levels]
    about = "Pinned steps on one colour scale; below, what changed: brown is louder, violet quieter."
    return View(figure, *compare.matrix_table(names, np.array(far)), about)


def _matrix(wish: Wish) -> View:
    trace = wish.run.trace
    values, names = compare.step_matrix(trace, wish.state), [str(i + 1) for i in trace.index]
    title = f"{wish.a}: {compare.STATES[wish.state]}, step against step"
    about = "How far any two steps are apart: mean absolute difference of their log-mels in dB, all mels and frames."
    return View(ablation.matrix(values, names, title), *compare.matrix_table(names, values), about)


def metrics_of(sung: Sung) -> list[step_metrics.Metric]:
    """Metrics of a run that need no sound, against its result and the source's own log-mel."""
    trace = sung.trace
    state = 2 * (sung.asked.log_mel.T - trace.low[:, None]) / (trace.high - trace.low)[:, None] - 1
    return step_metrics.mel_metrics(trace, trace.level_db(state))


def _metrics(wish: Wish) -> View:
    labels = [wish.a] + ([wish.b] if wish.b in wish.runs and wish.b != wish.a else [])
    found = {label: [*metrics_of(wish.runs[label]), *wish.heard.get(label, ())] for label in labels}
    figure = ablation.metric_curves({label: wish.runs[label].trace for label in labels}, found, wish.step)
    about = "; ".join(f"{m.name} ({m.unit}): {m.meaning}" for m in found[wish.a]) + "."
    return View(figure, *step_metrics.metric_table(wish.run.trace, found[wish.a]), about)


def _pair(wish: Wish) -> View:
    a, b = wish.run.trace, wish.other.trace
    found = compare.apart(a, b)
    curves = {"mean spectra apart (dB)": found.spectrum_db}
    if found.bins_db is not None:
        curves |= {"bins apart (dB)": found.bins_db, "noisy mels apart (share)": found.state_share}
    about = "Both runs begin with the same noise where their lengths agree; what differs later comes from what differs."
    figure = ablation.pair(a, b, (wish.a, wish.b), wish.step)
    return View(figure, *compare.curve_table(a, curves), about)


def _decision(wish: Wish) -> View:
    trace, found = wish.run.trace, compare.decision(wish.run.trace, wish.tolerance_db)
    about = (
        f"The first step from which on the guess of a bin stays within {wish.tolerance_db:g} dB of the result. Bright "
        "bins are decided late."
    )
    table = compare.curve_table(trace, {f"settled: {name}": share for name, share in found.settled.items()})
    return View(ablation.decision(trace, found, f"{wish.a}: when each bin settles"), *table, about)


def _influence(wish: Wish) -> View:
    sung, own = wish.run, wish.run.trace
    runs = {
        label: run.trace
        for label, run in wish.runs.items()
        if label != wish.a
        and np.array_equal(run.trace.t, own.t)
        and run.trace.result.shape == own.result.shape
        and np.array_equal(run.trace.x_t[0], own.x_t[0])
    }
    curves = {f"global: {label} (mean dB)": compare.apart(own, trace).bins_db for label, trace in runs.items()}
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


def _influence_bins(wish: Wish) -> View:
    local = wish.run.influence
    if local is None:
        raise StudyError("No influence was measured in this run; tick it before you press Run.")
    place = int(np.argmin(np.abs(local.index - wish.run.trace.index[min(wish.step, len(wish.run.trace) - 1)])))
    rows = [
        [name, int(local.index[place]), float(local.share[name][place]), float(local.mean_db(name)[place])]
        for name in local.bins_db
    ]
    about = "Where the guess moves when a factor is replaced at this very step: brown louder, violet quieter."
    head = ["factor", "call", "share of the noise", "guess moves by (mean dB)"]
    return View(ablation.influence_bins(wish.run.trace, local, place), head, rows, about)


def _layers(wish: Wish) -> View:
    trace, curves = wish.run.trace, {}
    for kind in ("noise", "condition"):
        for value in ("level", "change"):
            names, values = compare.layer_map(trace, kind, value)
            curves |= {f"{name}: {value}": row for name, row in zip(names, values, strict=True)}
    about = (
        "Residual blocks by steps, means and spreads over time of what they work on. Level: root mean square. New: how "
        "far they moved since the step before, as a share of their size."
    )
    return View(ablation.layers(trace, wish.a), *compare.curve_table(trace, curves), about)


def _map(wish: Wish) -> View:
    mels = {label: run.trace for label, run in wish.runs.items() if run.trace.contract == wish.run.trace.contract}
    made = projection.joint_map([projection.map_features(trace) for trace in mels.values()])
    rows = [
        [label, int(trace.index[i]), float(trace.t[i]), *map(float, path[i])]
        for (label, trace), path in zip(mels.items(), made.paths, strict=True)
        for i in range(len(trace))
    ]
    about = "Every dot is one step's guess, averaged over time; the directions are those in which all runs move most."
    return View(ablation.trajectories(mels), ["run", "call", "diffusion time", "first", "second"], rows, about)


def _runs(wish: Wish) -> View:
    labels = list(wish.runs)
    values = compare.run_matrix([run.trace for run in wish.runs.values()])
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


def look(name: str, wish: Wish) -> View:
    """Draw one of ``VIEWS``; StudyError if there is no such view or run, or it needs what the run did not keep."""
    if name not in VIEWS:
        raise StudyError(f"There is no view '{name}'; there are {', '.join(VIEWS)}.")
    if wish.a not in wish.runs:
        raise StudyError("There is no run yet; press Run.")
    return VIEWS[name](wish)
