"""Views of an ablation study: each is a picture, the table behind it, and an explanation.

They cover the five modes of SingVisio (Xue et al. 2024): *step comparison* is ``steps side by side`` and ``step
matrix``, *metric comparison* is ``metrics per step``; *source singer*, *song* and *target singer comparison* are ``two
runs`` of which one has another recording or singer. The colour scales are readable for the colour-blind.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svclib.analysis import compare
from svclib.analysis.ablation import RunResult
from svclib.analysis.plots import CYCLE, F0_COLOUR, GREY, INK, draw_image, styled_axis, styled_figure
from svclib.analysis.trace import Trace
from svclib.utils.errors import ConversionError

CHANGES, TIMES = "PuOr_r", "cividis"
_CHANGE = {"cmap": CHANGES, "vmin": -30.0, "vmax": 30.0}
_STEP_LABEL = "step; below it the share of noise"


@dataclasses.dataclass(frozen=True, eq=False)
class ViewRequest:
    """The runs by label, the shown one ``a`` and the one it is compared with ``b``, and the parameters of the views.

    ``step`` is a kept step of ``a``, the number of steps its result; ``pinned`` are steps to show side by side;
    ``state`` is one of ``compare.STATES``; ``audio_metrics`` are of runs whose audio was rendered, by label.
    """

    runs: Mapping[str, RunResult]
    a: str
    b: str | None = None
    step: int = 0
    pinned: Sequence[int] = ()
    state: str = "x0_hat"
    tolerance_db: float | int = 3.0
    audio_metrics: Mapping[str, Sequence[compare.Metric]] = dataclasses.field(default_factory=dict)

    @property
    def trace(self) -> Trace:
        """The trace of the shown run."""
        return self.runs[self.a].trace

    @property
    def labels(self) -> list[str]:
        """The shown run and, if there is another one, the run it is compared with."""
        return [self.a, self.b] if self.b in self.runs and self.b != self.a else [self.a]

    def levels(self, labels: Sequence[str]) -> dict:
        """One colour scale for runs: 80 dB below the loudest result, in tens."""
        traces = [self.runs[label].trace for label in labels]
        high = 10.0 * np.ceil(max(float(t.level_db(t.result).max()) for t in traces) / 10)
        return {"cmap": "magma", "vmin": high - 80.0, "vmax": high}


class View(NamedTuple):
    """A picture, its table and an explanation."""

    figure: Figure
    head: list[str]
    rows: list[list]
    about: str


def _mel(axis, trace: Trace, picture, title: str = "", f0: bool = False, **scale):
    """Draw a mel picture over seconds and mel bands labelled in Hz, with the target F0 if ``f0``."""
    n_mels, contract = len(picture), trace.contract
    frame_s, hz = contract.hop_samples / contract.sample_rate_hz, contract.centers_hz()
    drawn = draw_image(axis, picture, (0, picture.shape[1] * frame_s, 0, n_mels), **scale)
    ticks = trace.frequency_ticks(0.12)
    axis.set_yticks([place * n_mels for place, _ in ticks], [label for _, label in ticks])
    _title(axis, title)
    axis.set(xlabel="time (s)", ylabel="Hz")
    if f0 and trace.target_f0 is not None:
        f0_hz, voiced = trace.target_f0
        f0_hz = np.where(voiced & (f0_hz > hz[0]) & (f0_hz < hz[-1]), f0_hz, np.nan)
        places = np.interp(f0_hz, hz, np.arange(n_mels)) + 0.5
        axis.plot((np.arange(len(f0_hz)) + 0.5) * frame_s, places, color=F0_COLOUR, linewidth=0.9)
    return drawn


def _title(axis, text: str) -> None:
    """A title above an axis, in lines that are not wider than its column of the figure."""
    n_columns = axis.get_subplotspec().get_gridspec().ncols
    width = int(12 * axis.figure.get_figwidth() / n_columns)  # letters
    axis.set_title("\n".join(textwrap.fill(line, width) for line in text.split("\n")), fontsize=9)


def _short(name: str, most: int = 30) -> str:
    """The beginning of a name that is too long for a legend."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _bar(figure, drawn, axes, label: str):
    return figure.colorbar(drawn, ax=list(np.ravel(axes)), label=label, pad=0.01)


def _step_axis(axis, trace: Trace, label: str = _STEP_LABEL) -> None:
    """Label a step axis with the positions and the noise level below them."""
    places = sorted({int(i) for i in np.linspace(0, len(trace) - 1, min(5, len(trace)))})
    axis.set_xticks(places, [f"{i + 1}\n{trace.sigma[i]:.2f}" for i in places])
    axis.set_xlabel(label)


def _lines(axis, trace: Trace, curves: Mapping, label: str = _STEP_LABEL, title: str = "", **labels) -> None:
    """Draw ``name -> values`` or ``(positions, values)`` over the steps; without curves "not measured"."""
    for k, (name, values) in enumerate(curves.items()):
        points = values if isinstance(values, tuple) else (values,)
        axis.plot(*points, "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=_short(name))
    axis.set(**labels)
    _title(axis, title)
    _step_axis(axis, trace, label)
    if curves:
        axis.legend(loc="best", fontsize=7)
    else:
        axis.text(0.05, 0.5, "not measured", transform=axis.transAxes, color=GREY)


def _step_name(trace: Trace, step: int) -> str:
    """A kept step as text, with its diffusion time and noise level."""
    if step >= len(trace):
        return "result"
    return f"step {trace.index[step] + 1} of {trace.n_calls}: t {trace.t[step]:.0f}, noise {trace.sigma[step]:.2f}"


def _matrix(values: np.ndarray, names: Sequence[str], title: str, about: str) -> View:
    """A symmetric matrix of distances in dB; numbers are written where there is room."""
    n, top = len(values), float(np.nanmax(values, initial=0)) or 1.0
    with styled_axis((6.4, 5.2)) as (figure, axis):
        _title(axis, title)
        drawn = draw_image(axis, values, origin="upper", aspect="equal", cmap=TIMES, vmin=0, vmax=top)
        every = max(1, n // 12)
        labels = [_short(name) for name in names[::every]]
        axis.set_xticks(range(0, n, every), labels, rotation=45, ha="right")
        axis.set_yticks(range(0, n, every), labels)
        for i, j in np.argwhere(np.isfinite(values)) if n <= 12 else ():
            colour = "white" if values[i, j] < 0.5 * top else INK
            axis.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=7, color=colour)
        _bar(figure, drawn, axis, "mean difference (dB)")
    return View(figure, *compare.matrix_table(names, values), about)


def _steps_side_by_side(request: ViewRequest) -> View:
    trace, state = request.trace, request.state
    pinned = [min(max(int(s), 0), len(trace)) for s in (request.pinned or (0, len(trace) // 2, len(trace)))]
    levels, names = [compare.level_of(trace, s, state) for s in pinned], [_step_name(trace, s) for s in pinned]
    n = min(len(pinned), 6)
    with styled_figure(2, n, size=(2.2 + 2.6 * n, 4.6), sharex=True, sharey=True) as (figure, axes):
        axes[1, 0].axis("off")
        for i in range(n):
            title = names[i].replace(": ", "\n")
            drawn = _mel(axes[0, i], trace, levels[i], title, f0=True, **request.levels([request.a]))
            if i:
                moved = levels[i] - levels[i - 1]
                title = f"minus the one before:\nmean {np.abs(moved).mean():.1f} dB"
                changed = _mel(axes[1, i], trace, moved, title, **_CHANGE)
        for axis in axes.flat:
            axis.label_outer()
        _bar(figure, drawn, axes[0], f"{compare.STATES[state]} (dB)")
        if n > 1:
            _bar(figure, changed, axes[1], "change (dB)")
        figure.suptitle(request.a, x=0.01, ha="left", fontsize=11)
    far = np.array([[compare.distance(a, b) for b in levels] for a in levels])
    about = "Pinned steps on one colour scale; below, the change: brown is louder, violet softer."
    return View(figure, *compare.matrix_table(names, far), about)


def _step_matrix(request: ViewRequest) -> View:
    title = f"{request.a}: {compare.STATES[request.state]}, step against step"
    about = "Distance of any two steps: mean absolute difference of their log-mels in dB, all mels and frames."
    names = [str(i + 1) for i in request.trace.index]
    return _matrix(compare.step_matrix(request.trace, request.state), names, title, about)


def _all_runs(request: ViewRequest) -> View:
    values = compare.run_matrix([run.trace for run in request.runs.values()])
    about = "Distance of the results of the runs: mean absolute difference of their log-mels in dB."
    return _matrix(values, list(request.runs), "results of the runs", about)


def _metrics_per_step(request: ViewRequest) -> View:
    found = {
        label: {m.name: m for m in [*request.runs[label].mel_metrics, *request.audio_metrics.get(label, ())]}
        for label in request.labels
    }
    names = list(dict.fromkeys(name for run in found.values() for name in run))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with styled_figure(rows, columns, size=(3.7 * columns + 0.4, 2.5 * rows + 0.4)) as (figure, axes):
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            shown = {label: run[name] for label, run in found.items() if name in run}
            counts = [n for m in shown.values() for n in m.frames[np.isfinite(m.values)]] or [0]
            frames = " to ".join(str(n) for n in sorted({min(counts), max(counts)}))
            metric = next(iter(shown.values()))
            _lines(axis, request.trace, {k: (m.positions, m.values) for k, m in shown.items()}, "", ylabel=metric.unit)
            axis.axvline(request.step, color=GREY, linestyle=":")
            _title(axis, f"{name}\nagainst {metric.reference}; {frames} frames")
            if len(found) == 1 or axis is not axes[0, 0]:
                axis.get_legend().remove()
        figure.supxlabel(_STEP_LABEL, fontsize=9)
    own = list(found[request.a].values())
    about = "; ".join(f"{m.name} ({m.unit}): {m.meaning}" for m in own) + "."
    return View(figure, *compare.metric_table(request.trace, own), about)


def _two_runs(request: ViewRequest) -> View:
    if len(request.labels) < 2:
        raise ConversionError("This view compares two runs; make a second one, and choose it as B.")
    labels = request.labels
    traces = a, b = [request.runs[label].trace for label in labels]
    found, step = compare.run_distance(a, b), request.step
    levels = [compare.level_of(trace, step) for trace in traces]
    with styled_figure(2, 2, size=(9.4, 5.4)) as (figure, axes):
        left, right = axes[1]
        for axis, trace, level, label in zip(axes[0], traces, levels, labels, strict=True):
            drawn = _mel(axis, trace, level, f"{label}\n{_step_name(trace, step)}", True, **request.levels(labels))
        _bar(figure, drawn, axes[0], "dB")
        if found.bins_db is None:
            left.axis("off")
            left.text(0, 0.5, "Two lengths: there is no difference bin by bin.")
        else:
            moved = levels[1] - levels[0]
            title = f"the second minus the first: mean {np.abs(moved).mean():.1f} dB"
            _bar(figure, _mel(left, a, moved, title, **_CHANGE), left, "difference (dB)")
        curves = {"bin by bin": found.bins_db, "mean over time": found.spectrum_db}
        curves = {name: values for name, values in curves.items() if values is not None}
        _lines(right, a, curves, title="distance of the x0 predictions", ylabel="distance (dB)", ylim=(0, None))
    names = ("mean spectra apart (dB)", "bins apart (dB)", "noisy mels apart (share)")
    columns = {name: values for name, values in zip(names, found, strict=False) if values is not None}
    about = "Runs of equal length begin with the same noise; later differences come from what differs between them."
    return View(figure, *compare.curve_table(a, columns), about)


def _decision_times(request: ViewRequest) -> View:
    trace, tolerance = request.trace, f"{request.tolerance_db:g} dB"
    step, settled = compare.decision(trace, request.tolerance_db)
    with styled_figure(1, 2, size=(9.4, 3.2), width_ratios=(1.7, 1)) as (figure, axes):
        left, right = axes[0]
        title = f"{request.a}: when each bin settles"
        drawn = _mel(left, trace, step + 1, title, cmap=TIMES, vmin=1, vmax=len(trace) + 1)
        bar = _bar(figure, drawn, left, f"step from which it stays within {tolerance}")
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        percent = {name: 100 * share for name, share in settled.items()}
        _lines(right, trace, percent, ylabel="settled (% of bins)", ylim=(-2, 102))
    about = f"The first step from which on the x0 prediction of a bin stays within {tolerance} of the result. "
    about += "Bright bins are decided late."
    return View(figure, *compare.curve_table(trace, {f"settled: {k}": share for k, share in settled.items()}), about)


def _influence_over_the_steps(request: ViewRequest) -> View:
    own, local = request.trace, request.runs[request.a].influence
    others = {label: run.trace for label, run in request.runs.items() if label != request.a}
    distances = {
        label: compare.run_distance(own, trace).bins_db
        for label, trace in others.items()
        if np.array_equal(trace.t, own.t) and np.array_equal(trace.x_t[0], own.x_t[0])
    }
    curves = {f"global: {label} (mean dB)": values for label, values in distances.items()}
    share, mean_db = {}, {}
    for name in local.share if local else ():
        places = np.searchsorted(own.index, local.index)
        share[name], mean_db[name] = (places, 100 * local.share[name]), (places, local.mean_db(name))
        columns = np.full((2, len(own)), np.nan)
        columns[:, places] = local.share[name], local.mean_db(name)
        curves[f"local: {name} (share of the noise)"], curves[f"local: {name} (mean dB)"] = columns
    with styled_figure(1, 3, size=(9.8, 3.1)) as (figure, axes):
        left, middle, right = axes[0]
        _lines(left, own, share, title="local: change of the predicted noise", ylabel="% of its size", ylim=(0, None))
        _lines(middle, own, mean_db, title="local: change of the x0 prediction", ylabel="mean |dB|", ylim=(0, None))
        title = "global: x0 predictions of another run"
        _lines(right, own, distances, title=title, ylabel="mean |dB|", ylim=(0, None))
    about = "Local: at the same noisy mel, how much the predicted noise changes when one factor is replaced, and how "
    about += "much the x0 prediction. Global: distance to the x0 predictions of a whole other run from the same noise. "
    about += "The two answer different questions."
    return View(figure, *compare.curve_table(own, curves), about)


def _influence_at_one_step(request: ViewRequest) -> View:
    trace, local = request.trace, request.runs[request.a].influence
    if local is None:
        raise ConversionError("No influence was measured in this run; tick it before you press Run.")
    place = int(np.argmin(np.abs(local.index - trace.index[min(request.step, len(trace) - 1)])))
    names, call = list(local.bins_db), int(local.index[place])
    with styled_figure(1, len(names), size=(3.2 * len(names) + 1, 2.9), sharey=True) as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            moved = local.bins_db[name][place].astype(np.float32)
            drawn = _mel(axis, trace, moved, f"{name}, step {call + 1}", **_CHANGE)
            axis.label_outer()
        _bar(figure, drawn, axes, "change of the x0 prediction (dB)")
    rows = [[name, call, float(local.share[name][place]), float(local.mean_db(name)[place])] for name in names]
    head = ["factor", "call", "share of the noise", "x0 prediction moves by (mean dB)"]
    about = "Change of the x0 prediction when a factor is replaced at this very step: brown louder, violet softer."
    return View(figure, head, rows, about)


def _layers_by_steps(request: ViewRequest) -> View:
    trace, curves = request.trace, {}
    kinds = {"noise": ("input + step", ""), "condition": ("gates with the condition", _STEP_LABEL)}
    values = {"level": ("level (RMS)", ""), "change": ("new since the step before", "share")}
    with styled_figure(2, 2, size=(9.4, 4.8)) as (figure, axes):
        for axis, (kind, value) in zip(axes.flat, itertools.product(kinds, values), strict=True):
            (what, label), (title, unit) = kinds[kind], values[value]
            names, rows = compare.layer_map(trace, kind, value)
            curves |= {f"{name}: {value}": row for name, row in zip(names, rows, strict=True)}
            _bar(figure, draw_image(axis, rows, origin="upper", cmap=TIMES, vmin=0), axis, unit)
            axis.set_yticks(range(len(names)), [name.split()[-1] for name in names])
            axis.set(ylabel="block")
            _title(axis, f"{what}: {title}")
            _step_axis(axis, trace, label)
        figure.suptitle(request.a, x=0.01, ha="left", fontsize=11)
    about = "Residual blocks by steps, mean and spread over time of their hidden features. Level: root mean square. "
    about += "New: change since the step before, as a share of their size."
    return View(figure, *compare.curve_table(trace, curves), about)


def _map_of_the_steps(request: ViewRequest) -> View:
    own = request.trace.contract
    traces = {label: run.trace for label, run in request.runs.items() if run.trace.contract == own}
    paths, explained, _ = compare.joint_map([compare.map_features(trace) for trace in traces.values()])
    scale = {"cmap": TIMES, "vmin": 1, "vmax": max(len(t) for t in traces.values()), "zorder": 3}
    rows = []
    with styled_axis((6.6, 4.6), title="the mean x0 prediction, step by step") as (figure, axis):
        for k, ((label, trace), path) in enumerate(zip(traces.items(), paths, strict=True)):
            colour, steps = CYCLE[k % len(CYCLE)], np.arange(1, len(path) + 1)
            axis.plot(*path.T, color=colour, linewidth=1, label=_short(label, 80))
            for p, q in zip(path[:-1:2], path[1::2], strict=False):
                axis.annotate("", q, p, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})
            dots = axis.scatter(*path.T, s=18, c=steps, edgecolors=colour, linewidths=1, **scale)
            places = zip(trace.index.tolist(), trace.t.tolist(), path.tolist(), strict=True)
            rows += [[label, call, t, *place] for call, t, place in places]
        first, second = (f"{100 * e:.0f} % of the variance" for e in explained)
        axis.set(xlabel=f"PC 1 ({first})", ylabel=f"PC 2 ({second})")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower left", fontsize=7)
        _bar(figure, dots, axis, "step")
    about = "Each dot is one step's x0 prediction, averaged over time, on the principal components of all the runs."
    return View(figure, ["run", "call", "diffusion time", "first", "second"], rows, about)


_VIEWS = (_steps_side_by_side, _step_matrix, _metrics_per_step, _two_runs, _all_runs, _decision_times)
_VIEWS += (_influence_over_the_steps, _influence_at_one_step, _layers_by_steps, _map_of_the_steps)
VIEWS = {view.__name__[1:].replace("_", " "): view for view in _VIEWS}


def draw_view(name: str, request: ViewRequest) -> View:
    """Draw one of ``VIEWS``; ConversionError if there is no such run, or the run lacks the data for the view."""
    if request.a not in request.runs:
        raise ConversionError("There is no run yet; press Run.")
    return VIEWS[name](request)
