"""Plots as ``matplotlib`` figures, imported only in this folder.

No pyplot is involved, so that no figure stays open and no backend is chosen; :func:`png` turns a figure into bytes.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import image, patheffects
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from svclib.analysis import plot_data
from svclib.audio import units

INK, GREY, BLUE, ORANGE, GREEN, RED = "#23272e", "#8a929c", "#2f6fab", "#d9780f", "#2e8b57", "#c0392b"
_lock = threading.RLock()  # matplotlib's settings are global, and panels draw in threads
F0_COLOUR = "#63f0ff"
_OUTLINE = [patheffects.withStroke(linewidth=2.8, foreground="#001018")]
CYCLE = (BLUE, ORANGE, GREEN, "#8e5bb5", "#b5485d", "#4a9aa8", "#7d7320", GREY)
_STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#b8bec6",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#5b636d",
    "ytick.color": "#5b636d",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.4,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "svclib",  # equal figures, equal bytes
    "text.parse_math": False,  # a "$" in a file name is a dollar
}


@contextlib.contextmanager
def styled_figure(rows: int = 1, columns: int = 1, size=(9.0, 3.0), **layout):
    """A styled figure and its axes, ``[rows, columns]``; the style applies only inside the block."""
    with _lock, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **layout)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG bytes."""
    return _saved(figure, format="png", dpi=dpi)


def svg(figure: Figure) -> bytes:
    """The figure as SVG bytes with texts as text."""
    return _saved(figure, format="svg", metadata={"Date": None})


def _saved(figure: Figure, **options) -> bytes:
    buffer = io.BytesIO()
    with _lock, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # an emoji in a file name may be a box
        figure.savefig(buffer, **options)
    return buffer.getvalue()


# Spectrograms ---------------------------------------------------------------------------------------------------------


def draw_spectrogram(axis, samples, sample_rate_hz, features=None, start_s=0.0) -> None:
    """Draw a spectrogram (log frequency, dB re full scale) with the F0 of ``features`` (of the same span) if given."""
    level_db, frequency_hz, time_s = plot_data.log_spectrogram(samples, sample_rate_hz)
    bottom, top = np.log2(frequency_hz[0]), np.log2(frequency_hz[-1])
    half_s = (time_s[1] - time_s[0]) / 2
    axis.imshow(
        level_db,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=plot_data.FLOOR_DB,
        vmax=max(-20.0, level_db.max()),
        extent=(start_s - half_s, start_s + time_s[-1] + half_s, bottom, top),
        interpolation="bilinear",
    )
    ticks = [f for f in (125, 250, 500, 1000, 2000, 4000, 8000, 16000) if f <= frequency_hz[-1]]
    axis.set_yticks(np.log2(ticks), [f"{f // 1000} k" if f >= 1000 else str(f) for f in ticks])
    axis.grid(False)
    if features is not None:
        f0_hz, settings = np.asarray(features.f0_hz), features.settings
        drawn_hz = np.where(np.asarray(features.voiced, bool) & (f0_hz > 0), f0_hz, np.nan).astype(float)
        frame_s = start_s + units.frame_centers_s(len(drawn_hz), settings.hop_samples, settings.sample_rate_hz)
        axis.plot(frame_s, np.log2(drawn_hz), color=F0_COLOUR, linewidth=1.4, label="F0", path_effects=_OUTLINE)
    axis.set(ylim=(bottom, top), xlim=(start_s, start_s + len(samples) / sample_rate_hz), ylabel="Hz")


def compare_spectrograms(items: Sequence[tuple], columns: int = 2) -> Figure:
    """Spectrograms of ``(title, samples, sample_rate_hz, features or None)`` side by side on the same axes."""
    columns = max(1, min(columns, len(items)))
    rows = -(-len(items) // columns)
    with styled_figure(rows, columns, size=(9, 0.4 + 2.1 * rows), sharex=True, sharey=True) as (figure, axes):
        for axis in axes.flat[len(items) :]:
            axis.set_visible(False)
        for axis, (title, *signal) in zip(axes.flat, items, strict=False):
            draw_spectrogram(axis, *signal)
            axis.set_title(title)
        nyquist_hz = max(item[2] for item in items) / 2
        axes[0, 0].set_ylim(np.log2(60.0), np.log2(nyquist_hz))
        axes[0, 0].set_xlim(0, max(len(item[1]) / item[2] for item in items))
        for axis in axes[-1]:
            axis.set_xlabel("time (s)")
        for axis in axes[:, 1:].flat:
            axis.set_ylabel("")
        return figure


def plain_levels(level_db: np.ndarray, low_db: float | int, high_db: float | int) -> bytes:
    """Levels ``[bands, frames]`` as a PNG with one pixel each, low bands at the bottom; drawn in milliseconds."""
    file = io.BytesIO()
    image.imsave(file, level_db[::-1], vmin=low_db, vmax=high_db, cmap="viridis", format="png")
    return file.getvalue()


# Recordings -----------------------------------------------------------------------------------------------------------


def features_overview(samples, features, start_s=0.0, title="") -> Figure:
    """Features of an excerpt that begins at ``start_s``: spectrogram with F0, confidence of the tracker, loudness."""
    rate_hz, hop = features.settings.sample_rate_hz, features.settings.hop_samples
    time_s = start_s + units.frame_centers_s(len(features.f0_hz), hop, rate_hz)
    with styled_figure(3, 1, size=(9, 5.2), sharex=True, height_ratios=(3, 1, 1.2)) as (figure, axes):
        top, middle, low = axes[:, 0]
        draw_spectrogram(top, samples, rate_hz, features, start_s)
        top.set_title(title)
        top.legend(loc="upper right", labelcolor="white")
        _confidence(middle, time_s, features.confidence, ylabel="confidence")
        middle.plot(time_s, features.confidence, color=BLUE)
        middle.axhline(features.settings.voicing_threshold, color=GREY, linestyle=":")
        low.plot(time_s, features.loudness_db, color=ORANGE)
        low.set(ylim=(plot_data.FLOOR_DB - 2, _top_db(features.loudness_db)), ylabel="loudness (dB)", xlabel="time (s)")
        return figure


def _confidence(axis, time_s, confidence, **labels) -> None:
    axis.fill_between(time_s, confidence, color=BLUE, alpha=0.25, linewidth=0)
    axis.set(ylim=(0, 1.03), **labels)


def _top_db(*loudness_db) -> float:
    """Upper end of a loudness axis: A-weighting lifts the loudest notes above 0 dB."""
    return max(3.0, *(float(np.max(x, initial=0.0)) + 3.0 for x in loudness_db))


def doctor_picture(report) -> Figure:
    """A quality report as bars for the 40 longest usable files: length, F0 range, level and noise floor; warnings in
    orange."""
    files = sorted((f for f in report.files if f.usable), key=lambda f: -f.duration_s)[:40]
    names = [f.name if len(f.name) <= 28 else f"{f.name[:13]}…{f.name[-14:]}" for f in files]
    position = np.arange(len(files))
    colours = [ORANGE if any(x.severity != "note" for x in f.findings) else BLUE for f in files]
    with styled_figure(1, 3, size=(9, 1.1 + 0.24 * max(3, len(files))), sharey=True) as (figure, axes):
        length, pitch, level = axes[0]
        length.barh(position, [f.duration_s for f in files], color=colours, height=0.6)
        length.set(xlabel="length (s)", title="How much")
        length.set_yticks(position, names)
        length.set_ylim(len(files) - 0.4, -0.6)
        for y, file, colour in zip(position, files, colours, strict=True):
            if file.f0_low_hz and file.f0_high_hz:
                low, high = units.hz_to_midi(file.f0_low_hz), units.hz_to_midi(file.f0_high_hz)
                pitch.barh(y, max(high - low, 0.2), left=low, color=colour, height=0.6)
            if file.level_db is not None:
                floor_db = file.level_db if file.noise_floor_db is None else file.noise_floor_db
                level.barh(y, file.level_db - floor_db, left=floor_db, color=colour, height=0.6, alpha=0.55)
                level.plot([file.level_db], [y], "o", color=colour, markersize=5)
        pitch.set(title="How high", xlabel="MIDI note (60: middle C)")
        level.set(title="How loud", xlabel="noise floor to singing (dB)", xlim=(-90, 0))
        for axis in axes[0]:
            axis.grid(False, axis="y")
        return figure


# Training -------------------------------------------------------------------------------------------------------------


def loss_curves(curves: Mapping, title: str = "", goal: tuple | None = None) -> Figure:
    """Training loss (thin: every record; bold: running mean), validation loss (dots) and a ``goal`` ``(low, high)``."""
    with styled_figure(size=(9, 2.8)) as (figure, axes):
        axis = axes[0, 0]
        step, loss = plot_data.sorted_curve(curves, "loss")
        if step.size:
            axis.plot(step, loss, color=BLUE, alpha=0.3, linewidth=0.9)
            axis.plot(step, plot_data.running_mean(loss, max(1, step.size // 30)), color=BLUE, label="training")
        step, loss = plot_data.sorted_curve(curves, "validation_loss")
        if step.size:
            axis.plot(step, loss, "o-", color=ORANGE, markersize=4, label="held-out recordings")
        if goal:
            axis.axhspan(*goal, color=GREEN, alpha=0.12, linewidth=0, label=f"aim: {goal[0]:g} to {goal[1]:g}")
        axis.set(title=title, xlabel="step", ylabel="loss")
        handles = axis.get_legend_handles_labels()
        figures = {k: v for k, v in curves.get("figures", {}).items() if k != "score"}
        if figures:
            right = axis.twinx()
            for color, (name, values) in zip(CYCLE[2:], figures.items(), strict=False):
                right.plot(
                    curves["validation_step"], values, "s--", color=color, markersize=4, label=f"{name} of songs"
                )
            right.set(ylabel="0 to 1", ylim=(0, 1))
            handles = [a + b for a, b in zip(handles, right.get_legend_handles_labels(), strict=True)]
        if handles[0]:
            axis.legend(*handles, loc="upper right")
        return figure


def compare_runs(runs: Mapping[str, Mapping], key="validation_loss", title="", ylabel="loss") -> Figure:
    """Curves of runs with the same loss definition on one axis, best last value first."""
    lines = []
    for name, curves in runs.items():
        step, value = plot_data.sorted_curve(curves, key)
        lines.append((value[-1] if value.size else np.inf, name, step, value))
    lines.sort(key=lambda line: line[0])
    with styled_figure(size=(9, 3.2)) as (figure, axes):
        axis = axes[0, 0]
        for index, (last, name, step, value) in enumerate(lines):
            label = f"{name}: {last:.3f} at step {int(step[-1])}" if step.size else f"{name}: no value yet"
            style = "-" if index < len(CYCLE) else "--"
            axis.plot(step, value, style, marker=".", color=CYCLE[index % len(CYCLE)], label=label)
        axis.set(title=title, xlabel="step", ylabel=ylabel)
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        return figure


# Conversion -----------------------------------------------------------------------------------------------------------


def conversion_plots(song: Any, tracks: Any, controls: Any) -> Figure:
    """Loudness, pitch, confidence of the F0 tracker and note mask of a conversion over time.

    ``song`` are its ``Features``, ``tracks`` the ``controls.ConditioningTracks`` that ``controls`` made of them.
    """
    time_s = units.frame_centers_s(len(song.f0_hz), song.settings.hop_samples, song.settings.sample_rate_hz)
    before, after = plot_data.notes_midi(song.f0_hz, song.voiced), plot_data.notes_midi(tracks.f0_hz, tracks.voiced)
    with styled_figure(4, 1, size=(9, 7.6), sharex=True, height_ratios=(1.1, 1.6, 0.7, 0.9)) as (figure, axes):
        loudness, pitch, confidence, note = axes[:, 0]
        loudness.plot(time_s, song.loudness_db, color=GREY, label="song")
        loudness.plot(time_s, tracks.loudness_db, color=BLUE, label="target")
        loudness.set(ylim=(-90, _top_db(song.loudness_db, tracks.loudness_db)), ylabel="dB", title="Loudness")
        pitch.plot(time_s, before, color=GREY, label="song")
        if controls.autotune:
            pitch.plot(time_s, tracks.autotuned_midi, color=GREEN, linewidth=1, label=f"autotuned ({tracks.key})")
        pitch.plot(time_s, after, color=BLUE, label="target")
        if tracks.song_mean_midi is not None:
            pitch.axhline(tracks.song_mean_midi, color=GREY, linestyle=":", label="mean of the song")
        if tracks.instrument_mean_midi is not None:
            pitch.axhline(tracks.instrument_mean_midi, color=ORANGE, linestyle=":", label="mean of the instrument")
        pitch.set(ylabel="MIDI note", title="Pitch")
        _confidence(confidence, time_s, song.confidence, ylabel="0..1", title="Confidence of the F0 tracker")
        note.plot(time_s, tracks.note_on_ratio, color=INK, linewidth=1, label="note-on ratio")
        top = max(2.1, float(np.max(tracks.note_on_ratio, initial=0.0)) * 1.05)
        note.fill_between(time_s, 0, top, where=tracks.mask, color=GREEN, alpha=0.15, linewidth=0, label="note")
        note.axhline(controls.mask_threshold, color=RED, linestyle=":", label=f"threshold {controls.mask_threshold:g}")
        note.set(ylim=(0, top), ylabel="ratio", title="Where a note sounds", xlabel="time (s)")
        note.set_xlim(0, max(time_s[-1] if len(time_s) else 0.0, 0.01))
        for axis in (loudness, pitch, note):
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=5)
        return figure
