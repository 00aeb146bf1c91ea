"""Views of an ablation study: each is a picture, the table behind it, and an explanation.

They cover the five modes of SingVisio (Xue et al. 2024): *step comparison* is ``steps side by side`` and ``step
matrix``, *metric comparison* is ``metrics per step``; *source singer*, *song* and *target singer comparison* are ``two
runs`` of which one has another recording or singer. Levels have one fixed colour scale in dB, differences a symmetric
one, both readable for the colour-blind.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svclib.analysis import compare, plot_data, projection, step_metrics
from svclib.analysis.ablation import RunResult
from svclib.analysis.plots.base import BLUE, CYCLE, F0_COLOUR, GREY, INK, ORANGE, styled_figure
from svclib.analysis.trace import Trace
from svclib.utils.errors import ConversionError

LEVELS, CHANGES, TIMES = "viridis", "PuOr_r", "cividis"
CHANGE_DB = 30.0
_CHANGE_SCALE = {"cmap": CHANGES, "vmin": -CHANGE_DB, "vmax": CHANGE_DB}
_STEP_LABEL = "step; below it the share of noise"


@dataclasses.dataclass(frozen=True, eq=False)
class ViewRequest:
    """The choice of a view and its parameters.

    Attributes:
        runs: All runs, by label.
        a, b: Labels of the shown run and of the one it is compared with.
        step: A kept step of ``a``; the number of steps is the result.
        pinned: Steps to show side by side.
        state: ``x0_hat`` or ``x_t``.
        tolerance_db: Of the decision times.
        audio_metrics: Of runs whose audio was rendered, by label.
    """

    runs: Mapping[str, RunResult]
    a: str
    b: str | None = None
    step: int = 0
    pinned: Sequence[int] = ()
    state: str = "x0_hat"
    tolerance_db: float | int = 3.0
    audio_metrics: Mapping[str, Sequence[step_metrics.Metric]] = dataclasses.field(default_factory=dict)

    @property
    def run(self) -> RunResult:
        """The shown run."""
        return self.runs[self.a]

    @property
    def has_other(self) -> bool:
        """True if there is another run to compare with."""
        return self.b in self.runs and self.b != self.a

    def colour_range(self, *labels: str) -> dict:
        """One colour scale for runs: 80 dB below the loudest result, in tens."""
        traces = [self.runs[label].trace for label in labels or [self.a]]
        high = 10.0 * np.ceil(max(float(t.level_db(t.result).max()) for t in traces) / 10)
        return {"cmap": LEVELS, "vmin": high - 80.0, "vmax": high}


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture, its table and an explanation."""

    figure: Any
    head: list[str]
    rows: list[list]
    about: str


# Axes -----------------------------------------------------------------------------------------------------------------


def _mel(axis, trace: Trace, picture, title: str = "", f0: bool = False, **options):
    """Draw a mel picture over seconds and mel bands labelled in Hz, with the target F0 if ``f0``."""
    n_mels, n_frames = picture.shape
    frame_s = trace.contract.hop_samples / trace.contract.sample_rate_hz
    extent = (0, n_frames * frame_s, 0, n_mels)
    drawn = axis.imshow(picture, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **options)
    hz = trace.contract.centers_hz()
    ticks = plot_data.frequency_ticks(hz, 0.12)
    axis.set_yticks([place * n_mels for place, _ in ticks], [label for _, label in ticks])
    axis.grid(False)
    axis.set_title(title, fontsize=9)
    if f0 and "f0_hz" in trace.conditions:
        f0_hz = np.where(trace.conditions.get("voiced", True), trace.conditions["f0_hz"], np.nan)
        f0_hz = np.where((f0_hz > hz[0]) & (f0_hz < hz[-1]), f0_hz, np.nan)
        places = np.interp(f0_hz, hz, np.arange(n_mels)) + 0.5
        axis.plot((np.arange(len(f0_hz)) + 0.5) * frame_s, places, color=F0_COLOUR, linewidth=0.9)
    return drawn


def _step_axis(axis, trace: Trace, label: str = _STEP_LABEL) -> None:
    """Label a step axis with the positions and the noise level below them."""
    places = sorted({int(i) for i in np.linspace(0, len(trace) - 1, min(5, len(trace)))})
    axis.set_xticks(places, [f"{i + 1}\n{trace.sigma[i]:.2f}" for i in places])
    axis.set_xlabel(label)


def _curves(axis, trace: Trace, curves: Mapping, title: str, ylabel: str, **limits) -> None:
    """Draw ``name -> values`` or ``(positions, values)`` over the steps; without curves "not measured"."""
    for k, (name, values) in enumerate(curves.items()):
        points = values if isinstance(values, tuple) else (values,)
        axis.plot(*points, "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=name)
    axis.set(title=title, ylabel=ylabel, **limits)
    _step_axis(axis, trace)
    if curves:
        axis.legend(loc="best", fontsize=7)
    else:
        axis.text(0.05, 0.5, "not measured", transform=axis.transAxes, color=GREY)


def _step_name(trace: Trace, step: int | None) -> str:
    """A kept step as text, with its diffusion time and noise level."""
    if step is None or step >= len(trace):
        return "result"
    return f"step {trace.index[step] + 1} of {trace.n_calls}: t {trace.t[step]:.0f}, noise {trace.sigma[step]:.2f}"


def _matrix(values: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """A symmetric matrix of distances in dB; numbers are written where there is room."""
    n, top = len(values), float(np.nanmax(values, initial=0)) or 1.0
    with styled_figure(size=(6.4, 5.2)) as (figure, axes):
        axis = axes[0, 0]
        drawn = axis.imshow(values, cmap=TIMES, vmin=0, vmax=top, interpolation="nearest")
        every = max(1, n // 12)
        axis.set_xticks(range(0, n, every), names[::every], rotation=45, ha="right")
        axis.set_yticks(range(0, n, every), names[::every])
        for i, j in np.ndindex(n, n) if n <= 12 else ():
            if np.isfinite(values[i, j]):
                colour = "white" if values[i, j] < 0.5 * top else INK
                axis.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=7, color=colour)
        axis.grid(False)
        axis.set_title(title)
        figure.colorbar(drawn, ax=axis, label="mean difference (dB)", pad=0.01)
        return figure


# Views ----------------------------------------------------------------------------------------------------------------


def _steps_side_by_side(request: ViewRequest) -> View:
    trace, state = request.run.trace, request.state
    pinned = [min(max(int(s), 0), len(trace)) for s in (request.pinned or (0, len(trace) // 2, len(trace)))]
    levels = [compare.level_of(trace, None if s == len(trace) else s, state) for s in pinned]
    n = min(len(pinned), 6)
    with styled_figure(2, n, size=(2.2 + 2.6 * n, 4.6), sharex=True, sharey=True) as (figure, axes):
        for i, (step, level) in enumerate(zip(pinned[:n], levels, strict=False)):
            title = _step_name(trace, step).replace(": ", "\n")
            drawn = _mel(axes[0, i], trace, level, title, f0=True, **request.colour_range())
            if i:
                moved = compare.difference_db(levels[i - 1], level)
                title = f"minus the one before:\nmean {np.abs(moved).mean():.1f} dB"
                changed = _mel(axes[1, i], trace, moved, title, **_CHANGE_SCALE)
            axes[1, i].set_xlabel("time (s)")
        axes[1, 0].axis("off")
        figure.colorbar(drawn, ax=list(axes[0]), label=f"{compare.STATES[state]} (dB)", pad=0.01)
        if n > 1:
            figure.colorbar(changed, ax=list(axes[1]), label="change (dB)", pad=0.01)
        axes[0, 0].set_ylabel("Hz")
        figure.suptitle(request.a, x=0.01, ha="left", fontsize=11)
    names = [_step_name(trace, s) for s in pinned]
    far = [[float(np.abs(a - b).mean(dtype=np.float64)) for b in levels] for a in levels]
    about = "Pinned steps on one colour scale; below, the change: brown is louder, violet softer."
    return View(figure, *compare.matrix_table(names, np.array(far)), about)


def _step_matrix(request: ViewRequest) -> View:
    trace = request.run.trace
    values, names = compare.step_matrix(trace, request.state), [str(i + 1) for i in trace.index]
    title = f"{request.a}: {compare.STATES[request.state]}, step against step"
    about = "Distance of any two steps: mean absolute difference of their log-mels in dB, all mels and frames."
    return View(_matrix(values, names, title), *compare.matrix_table(names, values), about)


def _metrics(request: ViewRequest) -> View:
    labels = [request.a] + ([request.b] if request.has_other else [])
    found = {label: [*request.runs[label].mel_metrics, *request.audio_metrics.get(label, ())] for label in labels}
    names = list(dict.fromkeys(m.name for run in found.values() for m in run))
    columns = min(3, max(1, len(names)))
    rows = -(-len(names) // columns)
    with styled_figure(rows, columns, size=(3.7 * columns + 0.4, 2.5 * rows + 0.4)) as (figure, axes):
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            shown = {label: m for label, run in found.items() for m in run if m.name == name}
            for k, label in enumerate(found):
                if label in shown:
                    points = shown[label].positions, shown[label].values
                    axis.plot(*points, "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=label)
            axis.axvline(request.step, color=GREY, linestyle=":")
            counts = sorted(n for m in shown.values() for n in m.frames[np.isfinite(m.values)]) or [0]
            frames = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
            metric = next(iter(shown.values()))
            axis.set_title(f"{name}\nagainst {metric.reference}; {frames} frames", fontsize=8)
            axis.set_ylabel(metric.unit)
            _step_axis(axis, request.run.trace, "")
        figure.supxlabel(_STEP_LABEL, fontsize=9)
        if len(found) > 1:
            axes[0, 0].legend(loc="best", fontsize=7)
    about = "; ".join(f"{m.name} ({m.unit}): {m.meaning}" for m in found[request.a]) + "."
    return View(figure, *step_metrics.metric_table(request.run.trace, found[request.a]), about)


def _two_runs(request: ViewRequest) -> View:
    if not request.has_other:
        raise ConversionError("This view compares two runs; make a second one, and choose it as B.")
    names = (request.a, request.b)
    a, b = (request.runs[name].trace for name in names)
    found = compare.run_distance(a, b)
    chosen = None if request.step >= len(a) else request.step
    levels = [compare.level_of(trace, chosen) for trace in (a, b)]
    with styled_figure(2, 2, size=(9.4, 5.4)) as (figure, axes):
        for axis, trace, level, name in zip(axes[0], (a, b), levels, names, strict=True):
            title = f"{name}: {_step_name(trace, chosen)}"
            drawn = _mel(axis, trace, level, title, f0=True, **request.colour_range(*names))
        figure.colorbar(drawn, ax=list(axes[0]), label="dB", pad=0.01)
        left, right = axes[1]
        if found.result_db is not None:
            moved = compare.difference_db(*levels)
            title = f"{names[1]} minus {names[0]}: mean {np.abs(moved).mean():.1f} dB"
            changed = _mel(left, a, moved, title, **_CHANGE_SCALE)
            left.set_xlabel("time (s)")
            figure.colorbar(changed, ax=left, label="difference (dB)", pad=0.01)
        else:
            left.axis("off")
            left.text(0, 0.5, "Two lengths: there is no difference bin by bin.")
        if found.bins_db is not None:
            right.plot(found.bins_db, "o-", color=BLUE, markersize=3, label="bin by bin")
        right.plot(found.spectrum_db, "s--", color=ORANGE, markersize=3, label="mean over time")
        right.set(ylabel="distance (dB)", title="distance of the guesses", ylim=(0, None))
        _step_axis(right, a)
        right.legend(loc="best")
    curves = {"mean spectra apart (dB)": found.spectrum_db}
    if found.bins_db is not None:
        curves |= {"bins apart (dB)": found.bins_db, "noisy mels apart (share)": found.state_share}
    about = "Runs of equal length begin with the same noise; later differences come from what differs between them."
    return View(figure, *compare.curve_table(a, curves), about)


def _all_runs(request: ViewRequest) -> View:
    labels = list(request.runs)
    values = compare.run_matrix([run.trace for run in request.runs.values()])
    about = "Distance of the results of the runs: mean absolute difference of their log-mels in dB."
    figure = _matrix(values, labels, "results of the runs")
    return View(figure, *compare.matrix_table(labels, values), about)


def _decision(request: ViewRequest) -> View:
    trace, found = request.run.trace, compare.decision(request.run.trace, request.tolerance_db)
    with styled_figure(1, 2, size=(9.4, 3.2), width_ratios=(1.7, 1)) as (figure, axes):
        left, right = axes[0]
        title = f"{request.a}: when each bin settles"
        drawn = _mel(left, trace, found.step + 1, title, cmap=TIMES, vmin=1, vmax=len(trace) + 1)
        left.set(xlabel="time (s)", ylabel="Hz")
        bar = figure.colorbar(drawn, ax=left, label=f"step from which it stays within {found.tolerance_db:g} dB")
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        percent = {name: 100 * share for name, share in found.settled.items()}
        _curves(right, trace, percent, "", "settled (% of bins)", ylim=(-2, 102))
    about = (
        f"The first step from which on the guess of a bin stays within {request.tolerance_db:g} dB of the result. "
        "Bright bins are decided late."
    )
    table = compare.curve_table(trace, {f"settled: {name}": share for name, share in found.settled.items()})
    return View(figure, *table, about)


def _influence(request: ViewRequest) -> View:
    own, local = request.run.trace, request.run.influence
    others = {
        label: run.trace
        for label, run in request.runs.items()
        if label != request.a
        and np.array_equal(run.trace.t, own.t)
        and run.trace.result.shape == own.result.shape
        and np.array_equal(run.trace.x_t[0], own.x_t[0])
    }
    distances = {label: compare.run_distance(own, trace).bins_db for label, trace in others.items()}
    share, mean_db = {}, {}
    if local:
        places = np.searchsorted(own.index, local.index)
        share = {name: (places, 100 * values) for name, values in local.share.items()}
        mean_db = {name: (places, local.mean_db(name)) for name in local.share}
    with styled_figure(1, 3, size=(9.8, 3.1)) as (figure, axes):
        left, middle, right = axes[0]
        _curves(left, own, share, "local: change of the noise estimate", "% of its size", ylim=(0, None))
        _curves(middle, own, mean_db, "local: change of the guess", "mean |dB|", ylim=(0, None))
        _curves(right, own, distances, "global: guesses of a whole other run", "mean |dB|", ylim=(0, None))
    curves = {f"global: {label} (mean dB)": values for label, values in distances.items()}
    for name in local.share if local else ():
        place = {int(i): k for k, i in enumerate(local.index)}
        for unit, values in (("share of the noise", local.share[name]), ("mean dB", local.mean_db(name))):
            curves[f"local: {name} ({unit})"] = [values[place[i]] if i in place else np.nan for i in own.index]
    about = (
        "Local: at the same noisy mel, how much the noise estimate changes when one factor is replaced, and how much "
        "the guess. Global: distance to the guesses of a whole other run from the same noise. The two answer different "
        "questions."
    )
    return View(figure, *compare.curve_table(own, curves), about)


def _influence_bins(request: ViewRequest) -> View:
    trace, local = request.run.trace, request.run.influence
    if local is None:
        raise ConversionError("No influence was measured in this run; tick it before you press Run.")
    place = int(np.argmin(np.abs(local.index - trace.index[min(request.step, len(trace) - 1)])))
    names = list(local.bins_db)
    with styled_figure(1, len(names), size=(3.2 * len(names) + 1, 2.9), sharey=True) as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            moved = local.bins_db[name][place].astype(np.float32)
            drawn = _mel(axis, trace, moved, f"{name}, step {local.index[place] + 1}", **_CHANGE_SCALE)
            axis.set_xlabel("time (s)")
        axes[0, 0].set_ylabel("Hz")
        figure.colorbar(drawn, ax=list(axes[0]), label="change of the guess (dB)", pad=0.01)
    rows = [
        [name, int(local.index[place]), float(local.share[name][place]), float(local.mean_db(name)[place])]
        for name in names
    ]
    about = "Change of the guess when a factor is replaced at this very step: brown louder, violet softer."
    head = ["factor", "call", "share of the noise", "guess moves by (mean dB)"]
    return View(figure, head, rows, about)


def _layers(request: ViewRequest) -> View:
    trace, curves = request.run.trace, {}
    words = {
        "noise": "input + step",
        "condition": "gates with the condition",
        "level": "level (RMS)",
        "change": "new since the step before",
    }
    cells = [(kind, value) for kind in ("noise", "condition") for value in ("level", "change")]
    with styled_figure(2, 2, size=(9.4, 4.8)) as (figure, axes):
        for axis, (kind, value) in zip(axes.flat, cells, strict=True):
            names, values = compare.layer_map(trace, kind, value)
            curves |= {f"{name}: {value}": row for name, row in zip(names, values, strict=True)}
            drawn = axis.imshow(values, aspect="auto", cmap=TIMES, vmin=0, interpolation="nearest")
            axis.set_yticks(range(len(names)), [name.split()[-1] for name in names])
            axis.set(title=f"{words[kind]}: {words[value]}", ylabel="block")
            axis.grid(False)
            _step_axis(axis, trace, _STEP_LABEL if kind == "condition" else "")
            figure.colorbar(drawn, ax=axis, pad=0.01, label="" if value == "level" else "share")
        figure.suptitle(request.a, x=0.01, ha="left", fontsize=11)
    about = (
        "Residual blocks by steps, mean and spread over time of their hidden features. Level: root mean square. New: "
        "change since the step before, as a share of their size."
    )
    return View(figure, *compare.curve_table(trace, curves), about)


def _map(request: ViewRequest) -> View:
    contract = request.run.trace.contract
    traces = {label: run.trace for label, run in request.runs.items() if run.trace.contract == contract}
    made = projection.joint_map([projection.map_features(trace) for trace in traces.values()])
    with styled_figure(size=(6.6, 4.6)) as (figure, axes):
        axis, most = axes[0, 0], max(len(t) for t in traces.values())
        for k, (label, path) in enumerate(zip(traces, made.paths, strict=True)):
            colour = CYCLE[k % len(CYCLE)]
            axis.plot(*path.T, color=colour, linewidth=1, label=label)
            for p, q in zip(path[:-1:2], path[1::2], strict=False):
                axis.annotate("", q, p, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})
            scale = {"c": np.arange(1, len(path) + 1), "cmap": TIMES, "vmin": 1, "vmax": most}
            dots = axis.scatter(*path.T, s=18, edgecolors=colour, linewidths=1, zorder=3, **scale)
        first, second = (f"{100 * e:.0f} % of the variance" for e in made.explained)
        axis.set(xlabel=f"first component ({first})", ylabel=f"second component ({second})")
        axis.set_title("the mean guess, step by step")
        axis.legend(loc="best", fontsize=7)
        figure.colorbar(dots, ax=axis, label="step", pad=0.01)
    rows = [
        [label, int(trace.index[i]), float(trace.t[i]), *map(float, path[i])]
        for (label, trace), path in zip(traces.items(), made.paths, strict=True)
        for i in range(len(trace))
    ]
    about = "Each dot is one step's guess, averaged over time, on the principal components of all runs together."
    return View(figure, ["run", "call", "diffusion time", "first", "second"], rows, about)


VIEWS = {
    "steps side by side": _steps_side_by_side,
    "step matrix": _step_matrix,
    "metrics per step": _metrics,
    "two runs": _two_runs,
    "all runs": _all_runs,
    "decision times": _decision,
    "influence over the steps": _influence,
    "influence at one step": _influence_bins,
    "layers by steps": _layers,
    "map of the steps": _map,
}


def draw_view(name: str, request: ViewRequest) -> View:
    """Draw one of ``VIEWS``; ConversionError if there is no such view or run, or the run lacks the data for it."""
    if name not in VIEWS:
        raise ConversionError(f"Unknown view '{name}'; choose one of {', '.join(VIEWS)}.")
    if request.a not in request.runs:
        raise ConversionError("There is no run yet; press Run.")
    return VIEWS[name](request)
