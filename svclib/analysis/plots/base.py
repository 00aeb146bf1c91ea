"""Every picture of the project. Only modules named ``plots*`` import matplotlib.

Each function returns a finished ``matplotlib.figure.Figure``. No pyplot is involved, so no figure stays open and no
backend is touched; :func:`png` turns a figure into bytes. Time axes are in seconds, from the rate that is given.
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
    "svg.hashsalt": "svclib",  # the same figure, the same bytes
    "text.parse_math": False,  # names of people's files stand in titles: a "$" in one is a dollar
}


@contextlib.contextmanager
def styled_figure(rows: int = 1, columns: int = 1, size=(9.0, 3.0), **layout):
    """A styled figure and its axes, ``[rows, columns]``; the style holds only inside the block."""
    with _lock, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **layout)


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG bytes."""
    return _saved(figure, format="png", dpi=dpi)


def svg(figure: Figure) -> bytes:
    """The figure as SVG bytes: texts stay text, pictures in it are embedded."""
    return _saved(figure, format="svg", metadata={"Date": None})


def _saved(figure: Figure, **options) -> bytes:
    buffer = io.BytesIO()
    with _lock, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # an emoji in a file's name may be a box
        figure.savefig(buffer, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------- spectrograms


def _draw_spectrogram(axis, samples, sample_rate_hz, f0_hz=None, voiced=None, frame_s=None, start_s=0.0):
    level_db, frequency_hz, time_s = plot_data.log_spectrogram(samples, sample_rate_hz)
    duration_s = len(samples) / sample_rate_hz
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
    axis.set(ylim=(bottom, top), xlim=(start_s, start_s + duration_s), ylabel="Hz")
    axis.grid(False)
    if f0_hz is not None:
        drawn_hz = np.where(np.asarray(voiced, bool) & (np.asarray(f0_hz) > 0), f0_hz, np.nan).astype(float)
        frame_s = start_s + (np.arange(len(drawn_hz)) + 0.5) * frame_s
        axis.plot(frame_s, np.log2(drawn_hz), color=F0_COLOUR, linewidth=1.4, label="F0", path_effects=_OUTLINE)
        axis.set(ylim=(bottom, top), xlim=(start_s, start_s + duration_s))


def spectrogram(samples, sample_rate_hz, title="", features=None, start_s=0.0) -> Figure:
    """One spectrogram (log frequency, dB re full scale), with the F0 of ``features`` (same span) on it if given."""
    with styled_figure(size=(9, 2.8)) as (figure, axes):
        _spectrogram_of(axes[0, 0], samples, sample_rate_hz, features, start_s)
        axes[0, 0].set(title=title, xlabel="time (s)")
        return figure


def spectrogram_with_f0(samples, features, start_s=0.0, title="") -> Figure:
    """The spectrogram of a stretch of audio with its F0 on it; rate and frame grid come from ``features``."""
    return spectrogram(samples, features.settings.sample_rate_hz, title, features, start_s)


def _spectrogram_of(axis, samples, sample_rate_hz, features, start_s=0.0):
    if features is None:
        return _draw_spectrogram(axis, samples, sample_rate_hz, start_s=start_s)
    frame_s = features.settings.hop_samples / features.settings.sample_rate_hz
    return _draw_spectrogram(axis, samples, sample_rate_hz, features.f0_hz, features.voiced, frame_s, start_s)


def compare_spectrograms(items: Sequence[tuple], columns: int = 2) -> Figure:
    """Spectrograms beside each other on the same axes.

    Args:
        items: ``(title, samples, sample_rate_hz, features or None)`` each.
        columns: How many beside each other.

    Returns:
        The figure; the colours of each reach up to its own highest level, -20 dB at least.
    """
    columns = max(1, min(columns, len(items)))
    rows = -(-len(items) // columns)
    with styled_figure(rows, columns, size=(9, 0.4 + 2.1 * rows), sharex=True, sharey=True) as (figure, axes):
        for axis in axes.flat[len(items) :]:
            axis.set_visible(False)
        for axis, (title, samples, sample_rate_hz, features) in zip(axes.flat, items, strict=False):
            _spectrogram_of(axis, samples, sample_rate_hz, features)
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
    """Levels ``[bands, frames]`` as a PNG of one pixel each, low bands at the bottom; drawn in milliseconds."""
    file = io.BytesIO()
    image.imsave(file, level_db[::-1], vmin=low_db, vmax=high_db, cmap="viridis", format="png")
    return file.getvalue()


def spectrogram_grid(rows: Mapping[str, Sequence], columns: Sequence[str], sample_rate_hz: int) -> Figure:
    """Small spectrograms in rows and columns, all on the same axes.

    Args:
        rows: Sounds ``[samples]`` of each named row, one for each column; None leaves a place empty.
        columns: Headings.
        sample_rate_hz: Of all sounds.

    Returns:
        The figure; shorter sounds are followed by silence, colours are as in :func:`compare_spectrograms`.
    """
    size = (0.5 + 1.1 * len(columns), 0.4 + 0.85 * len(rows))
    longest = max((len(x) for sounds in rows.values() for x in sounds if x is not None), default=1)
    with styled_figure(len(rows), len(columns), size=size, sharex=True, sharey=True) as (figure, axes):
        for place, (name, sounds) in zip(axes, rows.items(), strict=True):
            for axis, samples in zip(place, sounds, strict=True):
                if samples is not None:
                    padded = np.pad(samples, (0, longest - len(samples)))
                    _draw_spectrogram(axis, padded, sample_rate_hz)
                axis.set(xticks=[], yticks=[], ylabel="")
            place[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, heading in zip(axes[0], columns, strict=True):
            axis.set_title(heading, fontsize=8)
        return figure


# ------------------------------------------------------------------------------------------------------- recordings


def features_overview(samples, features, start_s=0.0, title="") -> Figure:
    """What the models read of a stretch of audio: spectrogram with F0, confidence of the tracker, loudness.

    ``samples`` are at ``features.settings.sample_rate_hz``; times count from ``start_s`` in seconds.
    """
    rate_hz, hop = features.settings.sample_rate_hz, features.settings.hop_samples
    time_s = start_s + units.frame_centers_s(len(features.f0_hz), hop, rate_hz)
    with styled_figure(3, 1, size=(9, 5.2), sharex=True, height_ratios=(3, 1, 1.2)) as (figure, axes):
        top, middle, low = axes[:, 0]
        _spectrogram_of(top, samples, rate_hz, features, start_s)
        top.set_title(title)
        top.legend(loc="upper right", labelcolor="white")
        middle.fill_between(time_s, features.confidence, color=BLUE, alpha=0.25, linewidth=0)
        middle.plot(time_s, features.confidence, color=BLUE)
        middle.axhline(features.settings.voicing_threshold, color=GREY, linestyle=":")
        middle.set(ylim=(0, 1.03), ylabel="confidence")
        low.plot(time_s, features.loudness_db, color=ORANGE)
        low.set(ylim=(plot_data.FLOOR_DB - 2, _top_db(features.loudness_db)), ylabel="loudness (dB)", xlabel="time (s)")
        return figure


def _top_db(*loudness_db) -> float:
    """Upper end of a loudness axis: A-weighting lifts the loudest notes above 0 dB."""
    return max(3.0, *(float(np.max(x, initial=0.0)) + 3.0 for x in loudness_db))


def doctor_picture(report) -> Figure:
    """The doctor's report as bars per usable file: length, F0 range, level and noise floor; files to look at in orange.

    At most the 40 longest files are drawn.
    """
    files = sorted((f for f in report.files if f.usable), key=lambda f: -f.duration_s)[:40]
    names = [_short(f.name) for f in files]
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


def _short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"


# --------------------------------------------------------------------------------------------------------- training


def loss_curves(curves: Mapping, title: str = "", goal: tuple | None = None) -> Figure:
    """Training loss (thin: every record; bold: running mean) and validation loss (dots) over optimiser steps.

    Args:
        curves: From ``runlog.curves``.
        title: Heading.
        goal: ``(low, high)``, a band of values to draw as the aim.

    Returns:
        The figure; what has no values is left out.
    """
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
    """Curves of several runs on one axis, sorted by step, with the value at the last step in the legend.

    Only runs with the same loss belong into one figure; the caller groups them and names the loss in ``ylabel``.
    Best last value first.
    """
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


# ------------------------------------------------------------------------------------------------------- conversion


def conversion_plots(song: Any, adjusted: Any, controls: Any) -> Figure:
    """What was asked of the instrument.

    Loudness before and after; pitch before and after with the mean pitch of song and instrument, and the autotuned
    pitch where it differs; confidence of the pitch tracker; how clearly a note sounds, with the threshold and the notes
    it leaves.

    Args:
        song: ``Features`` of the song.
        adjusted: ``controls.ConditioningTracks`` on the same frames.
        controls: The ``controls.Controls`` that made it.

    Returns:
        The figure, four rows over time in seconds.
    """
    time_s = units.frame_centers_s(len(song.f0_hz), song.settings.hop_samples, song.settings.sample_rate_hz)
    before, after = plot_data.notes_midi(song.f0_hz, song.voiced), plot_data.notes_midi(adjusted.f0_hz, adjusted.voiced)
    with styled_figure(4, 1, size=(9, 7.6), sharex=True, height_ratios=(1.1, 1.6, 0.7, 0.9)) as (figure, axes):
        loudness, pitch, confidence, note = axes[:, 0]
        loudness.plot(time_s, song.loudness_db, color=GREY, label="song")
        loudness.plot(time_s, adjusted.loudness_db, color=BLUE, label="asked of the instrument")
        loudness.set(ylim=(-90, _top_db(song.loudness_db, adjusted.loudness_db)), ylabel="dB", title="Loudness")
        pitch.plot(time_s, before, color=GREY, label="song")
        if controls.autotune:
            pitch.plot(time_s, adjusted.autotuned_midi, color=GREEN, linewidth=1, label=f"autotuned ({adjusted.key})")
        pitch.plot(time_s, after, color=BLUE, label="asked")
        if adjusted.song_mean_midi is not None:
            pitch.axhline(adjusted.song_mean_midi, color=GREY, linestyle=":", label="mean of the song")
        if adjusted.instrument_mean_midi is not None:
            pitch.axhline(adjusted.instrument_mean_midi, color=ORANGE, linestyle=":", label="mean of the instrument")
        pitch.set(ylabel="MIDI note", title="Pitch")
        confidence.fill_between(time_s, song.confidence, color=BLUE, alpha=0.25, linewidth=0)
        confidence.set(ylim=(0, 1.03), ylabel="0..1", title="Confidence of the pitch tracker")
        note.plot(time_s, adjusted.note_on_ratio, color=INK, linewidth=1, label="note-on ratio")
        top = max(2.1, float(np.max(adjusted.note_on_ratio, initial=0.0)) * 1.05)
        note.fill_between(time_s, 0, top, where=adjusted.mask, color=GREEN, alpha=0.15, linewidth=0, label="note")
        note.axhline(controls.mask_threshold, color=RED, linestyle=":", label=f"threshold {controls.mask_threshold:g}")
        note.set(ylim=(0, top), ylabel="ratio", title="Where a note sounds", xlabel="time (s)")
        note.set_xlim(0, max(time_s[-1] if len(time_s) else 0.0, 0.01))
        for axis in (loudness, pitch, note):
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=5)
        return figure
