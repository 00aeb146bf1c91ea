"""The pictures of a study. Levels have one fixed colour scale in dB for a whole picture; differences have a sign and a
scale that is the same on both sides; both are told apart without telling red from green. Axes are monotone: diffusion
time falls from left to right everywhere, or the steps rise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from svclib.analysis import compare, projection
from svclib.analysis.plots.base import BLUE, CYCLE, F0_COLOUR, GREY, INK, ORANGE, styled_figure
from svclib.analysis.trace import Trace

LEVELS, CHANGES, TIMES = "viridis", "PuOr_r", "cividis"
CHANGE_DB = 30.0


def range_db(traces: Sequence[Trace]) -> tuple[float, float]:
    """One colour range for several runs: 80 dB below the loudest result, in tens."""
    high = 10.0 * np.ceil(max(float(t.level_db(t.result).max()) for t in traces) / 10)
    return high - 80.0, high


def _mel(axis, trace: Trace, picture, **options):
    """A mel picture on a time axis in seconds and a frequency axis in mel bands, labelled in Hz."""
    n_mels, n_frames = picture.shape
    seconds = n_frames * trace.contract.hop_samples / trace.contract.sample_rate_hz
    drawn = axis.imshow(
        picture, origin="lower", aspect="auto", extent=(0, seconds, 0, n_mels), interpolation="nearest", **options
    )
    hz = trace.contract.centers_hz()
    wanted = [f for f in (250, 500, 1000, 2000, 4000, 8000) if hz[0] < f < hz[-1]]
    places, kept = np.interp(wanted, hz, np.arange(n_mels)) + 0.5, []
    for place, f in zip(places, wanted, strict=True):
        if not kept or place - kept[-1][0] > 0.12 * n_mels:
            kept.append((place, f"{f // 1000} k" if f >= 1000 else str(f)))
    axis.set_yticks([k[0] for k in kept], [k[1] for k in kept])
    axis.grid(False)
    return drawn


def _pitch(axis, trace: Trace) -> None:
    """The F0 asked for, as a line over the mel picture."""
    if "f0_hz" not in trace.conditions:
        return
    hz = trace.contract.centers_hz()
    f0_hz = np.where(trace.conditions.get("voiced", True), trace.conditions["f0_hz"], np.nan)
    f0_hz = np.where((f0_hz > hz[0]) & (f0_hz < hz[-1]), f0_hz, np.nan)
    frame_s = trace.contract.hop_samples / trace.contract.sample_rate_hz
    time_s = (np.arange(len(f0_hz)) + 0.5) * frame_s
    axis.plot(time_s, np.interp(f0_hz, hz, np.arange(len(hz))) + 0.5, color=F0_COLOUR, linewidth=0.9)


def step_name(trace: Trace, step: int | None) -> str:
    """A kept step in words, with its diffusion time and noise."""
    if step is None or step >= len(trace):
        return "result"
    return f"step {trace.index[step] + 1} of {trace.n_calls}: t {trace.t[step]:.0f}, noise {trace.sigma[step]:.2f}"


def cards(trace: Trace, steps: Sequence[int], state: str = "x0_hat", title: str = "") -> Figure:
    """Pinned steps side by side with the F0 asked for, and below each what changed since the one before, with its sign.

    Args:
        trace: The run.
        steps: Positions, of which the first six are shown; ``len(trace)`` is the result.
        state: ``x0_hat`` or ``x_t``.
        title: Of the whole picture.

    Returns:
        The picture, a column for each step; levels in dB share one colour scale.
    """
    steps = list(steps)[:6] or [0]
    levels = [compare.level_of(trace, None if s >= len(trace) else s, state) for s in steps]
    low, high = range_db([trace])
    size = (2.2 + 2.6 * len(steps), 4.6)
    with styled_figure(2, len(steps), size=size, sharex=True, sharey=True) as (figure, axes):
        for i, (step, level) in enumerate(zip(steps, levels, strict=True)):
            drawn = _mel(axes[0, i], trace, level, cmap=LEVELS, vmin=low, vmax=high)
            _pitch(axes[0, i], trace)
            axes[0, i].set_title(step_name(trace, step).replace(": ", "\n"))
            if i:
                moved = compare.difference_db(levels[i - 1], level)
                changed = _mel(axes[1, i], trace, moved, cmap=CHANGES, vmin=-CHANGE_DB, vmax=CHANGE_DB)
                axes[1, i].set_title(f"minus the one before:\nmean {np.abs(moved).mean():.1f} dB")
            axes[1, i].set_xlabel("time (s)")
        axes[1, 0].axis("off")
        figure.colorbar(drawn, ax=list(axes[0]), label=f"{compare.STATES[state]} (dB)", pad=0.01)
        if len(steps) > 1:
            figure.colorbar(changed, ax=list(axes[1]), label="change (dB)", pad=0.01)
        axes[0, 0].set_ylabel("Hz")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        return figure


def matrix(values: np.ndarray, names: Sequence[str], title: str = "", label: str = "mean difference (dB)") -> Figure:
    """A symmetric matrix of distances in dB, from 0 to its largest entry; numbers are written where there is room."""
    n = len(values)
    top = float(np.nanmax(values, initial=0)) or 1.0
    with styled_figure(size=(6.4, 5.2)) as (figure, axes):
        axis = axes[0, 0]
        drawn = axis.imshow(values, cmap=TIMES, vmin=0, vmax=top, interpolation="nearest")
        every = max(1, n // 12)
        axis.set_xticks(range(0, n, every), names[::every], rotation=45, ha="right")
        axis.set_yticks(range(0, n, every), names[::every])
        if n <= 12:
            for i, j in np.ndindex(n, n):
                text = "" if np.isnan(values[i, j]) else f"{values[i, j]:.1f}"
                axis.text(
                    j, i, text, ha="center", va="center", fontsize=7, color="white" if values[i, j] < 0.5 * top else INK
                )
        axis.grid(False)
        axis.set_title(title)
        figure.colorbar(drawn, ax=axis, label=label, pad=0.01)
        return figure


def _steps(axis, trace: Trace, last: bool = True) -> None:
    """Label a step axis: positions rise; beside them stands how noisy the mel still is."""
    places = sorted({int(i) for i in np.linspace(0, len(trace) - 1, min(5, len(trace)))})
    axis.set_xticks(places, [f"{i + 1}\n{trace.sigma[i]:.2f}" for i in places])
    if last:
        axis.set_xlabel("step; below it the share of noise")


def metric_curves(traces: Mapping[str, Trace], found: Mapping[str, Sequence], mark: int | None = None) -> Figure:
    """Small curves of metrics over the steps, each with its own linear axis, unit, reference and frame count.

    Args:
        traces: Runs by label.
        found: ``step_metrics.Metric`` of each run, by the same labels.
        mark: Position of a step to mark with a line; None marks none.

    Returns:
        The picture, one curve plot for each name that any run has, up to three in a row.
    """
    names = list(dict.fromkeys(m.name for run in found.values() for m in run))
    columns = min(3, max(1, len(names)))
    rows = -(-len(names) // columns)
    with styled_figure(rows, columns, size=(3.7 * columns + 0.4, 2.5 * rows + 0.4)) as (figure, axes):
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes.flat, names, strict=False):
            counts, about = [], None
            for k, (label, run) in enumerate(found.items()):
                for metric in (m for m in run if m.name == name):
                    axis.plot(
                        metric.positions, metric.values, "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=label
                    )
                    counts += metric.frames[np.isfinite(metric.values)].tolist()
                    about = metric
            if mark is not None:
                axis.axvline(mark, color=GREY, linestyle=":")
            few, many = (min(counts), max(counts)) if counts else (0, 0)
            frames = f"{few}" if few == many else f"{few} to {many}"
            axis.set_title(f"{name}\nagainst {about.reference}; {frames} frames", fontsize=8)
            axis.set_ylabel(about.unit)
            _steps(axis, next(iter(traces.values())), last=False)
        figure.supxlabel("step; below it the share of noise", fontsize=9)
        if len(found) > 1:
            axes[0, 0].legend(loc="best", fontsize=7)
        return figure


def pair(a: Trace, b: Trace, names: tuple[str, str], step: int | None = None) -> Figure:
    """Two runs: their guesses at one step (the result with None), the signed difference where there is one, and how
    they move apart over the steps."""
    low, high = range_db([a, b])
    found = compare.run_distance(a, b)
    chosen = None if step is None or step >= len(a) else step
    one, two = compare.level_of(a, chosen), compare.level_of(b, chosen)
    with styled_figure(2, 2, size=(9.4, 5.4)) as (figure, axes):
        for axis, trace, level, name in zip(axes[0], (a, b), (one, two), names, strict=True):
            drawn = _mel(axis, trace, level, cmap=LEVELS, vmin=low, vmax=high)
            _pitch(axis, trace)
            axis.set_title(f"{name}: {step_name(trace, chosen)}", fontsize=9)
        figure.colorbar(drawn, ax=list(axes[0]), label="dB", pad=0.01)
        left, right = axes[1]
        if one.shape == two.shape:
            moved = compare.difference_db(one, two)
            changed = _mel(left, a, moved, cmap=CHANGES, vmin=-CHANGE_DB, vmax=CHANGE_DB)
            left.set(title=f"{names[1]} minus {names[0]}: mean {np.abs(moved).mean():.1f} dB", xlabel="time (s)")
            figure.colorbar(changed, ax=left, label="difference (dB)", pad=0.01)
        else:
            left.axis("off")
            left.text(0, 0.5, "Two lengths: there is no difference bin by bin.")
        if found.bins_db is not None:
            right.plot(found.bins_db, "o-", color=BLUE, markersize=3, label="bin by bin")
        right.plot(found.spectrum_db, "s--", color=ORANGE, markersize=3, label="mean over time")
        right.set(ylabel="apart (dB)", title="how far the guesses are apart", ylim=(0, None))
        _steps(right, a)
        right.legend(loc="best")
        return figure


def decision(trace: Trace, found: compare.Decision, title: str = "") -> Figure:
    """When each time-mel bin settles, and the share of each band that has settled by each step."""
    n = len(trace)
    with styled_figure(1, 2, size=(9.4, 3.2), width_ratios=(1.7, 1)) as (figure, axes):
        left, right = axes[0]
        drawn = _mel(left, trace, found.step + 1, cmap=TIMES, vmin=1, vmax=n + 1)
        left.set(title=title or "when each bin settles", xlabel="time (s)", ylabel="Hz")
        bar = figure.colorbar(drawn, ax=left, label=f"step from which it stays within {found.tolerance_db:g} dB")
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
        for k, (name, share) in enumerate(found.settled.items()):
            right.plot(share * 100, "o-", color=CYCLE[k], markersize=3, label=name)
        right.set(ylabel="settled (% of bins)", ylim=(-2, 102))
        _steps(right, trace)
        right.legend(loc="best", fontsize=7)
        return figure


def influence(trace: Trace, local: Any, runs: Mapping[str, Trace] | None = None) -> Figure:
    """What each factor does: at the same noisy mel (local: relative change of the noise named, and of the guess in dB),
    and by going the whole way without it (global).

    Args:
        trace: The run as asked.
        local: ``study.Influence``, or None.
        runs: Runs with one thing changed, by label, from the same noise; those of another length are left out.

    Returns:
        The picture, two local plots and a global one; what was not measured says so.
    """
    runs = {name: run for name, run in (runs or {}).items() if run.result.shape == trace.result.shape}
    with styled_figure(1, 3, size=(9.8, 3.1)) as (figure, axes):
        left, middle, right = axes[0]
        for k, (name, share) in enumerate((local.share if local else {}).items()):
            places = np.searchsorted(trace.index, local.index)
            left.plot(places, 100 * share, "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=name)
            middle.plot(places, local.mean_db(name), "o-", color=CYCLE[k % len(CYCLE)], markersize=3, label=name)
        for k, (name, run) in enumerate(runs.items()):
            moved = compare.run_distance(trace, run).bins_db
            right.plot(moved, "s-", color=CYCLE[k % len(CYCLE)], markersize=3, label=name)
        left.set(title="local: change of the noise named", ylabel="% of its size", ylim=(0, None))
        middle.set(title="local: change of the guess", ylabel="mean |dB|", ylim=(0, None))
        right.set(title="global: guesses of a whole other run", ylabel="mean |dB|", ylim=(0, None))
        for axis, empty in ((left, not local), (middle, not local), (right, not runs)):
            _steps(axis, trace)
            if empty:
                axis.text(0.05, 0.5, "not measured", transform=axis.transAxes, color=GREY)
            else:
                axis.legend(loc="best", fontsize=7)
        return figure


def influence_bins(trace: Trace, local, place: int) -> Figure:
    """Where in time and pitch each factor moves the guess at one probed step, with its sign."""
    names = list(local.bins_db)
    with styled_figure(1, len(names), size=(3.2 * len(names) + 1, 2.9), sharey=True) as (figure, axes):
        for axis, name in zip(axes[0], names, strict=True):
            moved = local.bins_db[name][place].astype(np.float32)
            drawn = _mel(axis, trace, moved, cmap=CHANGES, vmin=-CHANGE_DB, vmax=CHANGE_DB)
            axis.set(title=f"{name}, step {local.index[place] + 1}", xlabel="time (s)")
        axes[0, 0].set_ylabel("Hz")
        figure.colorbar(drawn, ax=list(axes[0]), label="guess moves by (dB)", pad=0.01)
        return figure


def layers(trace: Trace, title: str = "") -> Figure:
    """Layers by steps: how strong their signals are, and how much of them is new at each step."""
    cells = [(kind, value) for kind in ("noise", "condition") for value in ("level", "change")]
    words = {
        "noise": "input + step",
        "condition": "gates with the condition",
        "level": "level (RMS)",
        "change": "new since the step before",
    }
    with styled_figure(2, 2, size=(9.4, 4.8)) as (figure, axes):
        for axis, (kind, value) in zip(axes.flat, cells, strict=True):
            names, values = compare.layer_map(trace, kind, value)
            drawn = axis.imshow(values, aspect="auto", cmap=TIMES, vmin=0, interpolation="nearest")
            axis.set_yticks(range(len(names)), [name.split()[-1] for name in names])
            axis.set(title=f"{words[kind]}: {words[value]}", ylabel="block")
            axis.grid(False)
            _steps(axis, trace, last=kind == "condition")
            figure.colorbar(drawn, ax=axis, pad=0.01, label="" if value == "level" else "share")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        return figure


def trajectories(runs: Mapping[str, Trace], tap: str = "guess") -> Figure:
    """The ways of the runs through the two main directions of all of them together; arrows say where they go."""
    made = projection.joint_map([projection.map_features(trace, tap) for trace in runs.values()])
    with styled_figure(size=(6.6, 4.6)) as (figure, axes):
        axis, most = axes[0, 0], max(len(t) for t in runs.values())
        for k, (label, path) in enumerate(zip(runs, made.paths, strict=True)):
            colour = CYCLE[k % len(CYCLE)]
            axis.plot(*path.T, color=colour, linewidth=1, label=label)
            for p, q in zip(path[:-1:2], path[1::2], strict=False):
                axis.annotate("", q, p, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})
            dots = axis.scatter(
                *path.T,
                c=np.arange(1, len(path) + 1),
                cmap=TIMES,
                vmin=1,
                vmax=most,
                s=18,
                edgecolors=colour,
                linewidths=1,
                zorder=3,
            )
        share = [f"{100 * e:.0f} % of the movement" for e in made.explained]
        axis.set(
            xlabel=f"first direction ({share[0]})",
            ylabel=f"second direction ({share[1]})",
            title="the mean guess, step by step" if tap == "guess" else tap,
        )
        axis.legend(loc="best", fontsize=7)
        figure.colorbar(dots, ax=axis, label="step", pad=0.01)
        return figure
