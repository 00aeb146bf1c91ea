"""Plots as ``matplotlib`` figures, imported only in this folder.

No pyplot is involved, so that no figure stays open and no backend is chosen; :func:`png` turns a figure into bytes.
"""

import contextlib
import io
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import image, patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import ndimage, signal
from torch import Tensor

from svclib.analysis import html as page
from svclib.analysis.compare import joint_map
from svclib.audio import units
from svclib.models.diffusion.samplers import SamplerStep

INK, GREY, BLUE, ORANGE, GREEN, RED = "#23272e", "#8a929c", "#2f6fab", "#d9780f", "#2e8b57", "#c0392b"
F0_COLOUR = "#63f0ff"
CYCLE = (BLUE, ORANGE, GREEN, "#8e5bb5", "#b5485d", "#4a9aa8", "#7d7320", GREY)  # as in the style
FLOOR_DB, RANGE_DB = -80.0, 80.0
_OUTLINE = [patheffects.withStroke(linewidth=2.8, foreground="#001018")]
_BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}  # a legend at the right of its axis
_lock = threading.RLock()  # matplotlib's settings are global, and panels draw in threads
_STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("svclib.mplstyle"), use_default_template=False)


@contextlib.contextmanager
def styled_figure(rows: int = 1, columns: int = 1, size=(9.0, 3.0), **layout):
    """A styled figure and its axes, ``[rows, columns]``; the style applies only inside the block."""
    with _lock, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **layout)


@contextlib.contextmanager
def styled_axis(size=(9.0, 3.0), **labels):
    """A styled figure and its only axis with ``labels``, see :func:`styled_figure`."""
    with styled_figure(size=size) as (figure, axes):
        axes[0, 0].set(**labels)
        yield figure, axes[0, 0]


def png(figure: Figure, dpi: int = 110, kind: str = "png", **options) -> bytes:
    """The figure as PNG bytes, or as another ``kind`` of file."""
    buffer = io.BytesIO()
    with _lock, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # an emoji in a file name may be a box
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as SVG bytes with texts as text."""
    return png(figure, 72, "svg", metadata={"Date": None})


def draw_image(axis, values: np.ndarray, extent=None, **scale):
    """Draw ``values [rows, columns]`` as an image without smoothing, the first row at the bottom."""
    axis.grid(False)
    options = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", **scale}
    return axis.imshow(values, extent=extent, **options)


def log_spectrogram(samples: np.ndarray, sample_rate_hz: float | int, n_rows: int = 240, fmin_hz: float | int = 60.0):
    """Spectrogram with a logarithmic frequency axis: ``(level_db [rows, columns], frequency_hz, time_s)``.

    A full-scale sine is at 0 dB, the floor at -80 dB. Rows are equally spaced in log frequency up to the Nyquist
    frequency and hold the maximum of their FFT bins; there are at most about 1200 columns, whatever the length.
    """
    samples = np.asarray(samples, dtype=np.float32).ravel()
    n_fft = 1 << max(6, int(np.ceil(np.log2(0.064 * sample_rate_hz))))
    hop = max(n_fft // 8, samples.size // 1200)
    starts = np.arange(0, samples.size + hop, hop)  # column c is centred on sample c * hop
    samples = np.pad(samples, (n_fft // 2, n_fft // 2 + 2 * hop))
    window = signal.get_window("hann", n_fft).astype(np.float32)
    spectrum = np.fft.rfft(samples[starts[:, None] + np.arange(n_fft)] * window, axis=1)
    bins_db = units.amplitude_to_db(2.0 / window.sum() * spectrum.T, FLOOR_DB).astype(np.float32)
    frequency_hz = np.geomspace(fmin_hz, sample_rate_hz / 2, n_rows)
    position = frequency_hz * n_fft / sample_rate_hz
    half_row = np.sqrt(frequency_hz[1] / frequency_hz[0])
    low, high = (np.floor(edge).astype(int) + 1 for edge in (position / half_row, position * half_row))
    left = np.minimum(position.astype(int), n_fft // 2 - 1)
    share = (position - left)[:, None].astype(np.float32)
    level_db = (1 - share) * bins_db[left] + share * bins_db[left + 1]  # where several rows share one bin
    for row in np.flatnonzero(high > low):
        level_db[row] = bins_db[low[row] : high[row]].max(axis=0)
    return level_db, frequency_hz, starts / sample_rate_hz


def draw_spectrogram(axis, samples, sample_rate_hz, features=None, start_s=0.0) -> None:
    """Draw a spectrogram (log frequency, dB re full scale) with the F0 of ``features`` (of the same span) if given."""
    level_db, frequency_hz, time_s = log_spectrogram(samples, sample_rate_hz)
    bottom, top = np.log2(frequency_hz[0]), np.log2(frequency_hz[-1])
    half_s = (time_s[1] - time_s[0]) / 2
    extent = (start_s - half_s, start_s + time_s[-1] + half_s, bottom, top)
    scale = {"cmap": "magma", "vmin": FLOOR_DB, "vmax": max(-20.0, level_db.max())}
    draw_image(axis, level_db, extent, interpolation="bilinear", **scale)
    ticks = [f for f in (125, 250, 500, 1000, 2000, 4000, 8000, 16000) if f <= frequency_hz[-1]]
    axis.set_yticks(np.log2(ticks), [f"{f // 1000} k" if f >= 1000 else str(f) for f in ticks])
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
        for axis, (title, *sound) in zip(axes.flat, items, strict=False):
            draw_spectrogram(axis, *sound)
            axis.set(title=title, xlabel="time (s)")
            axis.label_outer()
        axes[0, 0].set_ylim(np.log2(60.0), np.log2(max(item[2] for item in items) / 2))
        axes[0, 0].set_xlim(0, max(len(item[1]) / item[2] for item in items))
        return figure


def features_overview(samples, features, start_s=0.0) -> Figure:
    """Features of an excerpt that begins at ``start_s``: spectrogram with F0, confidence of the tracker, loudness."""
    rate_hz, hop = features.settings.sample_rate_hz, features.settings.hop_samples
    time_s = start_s + units.frame_centers_s(len(features.f0_hz), hop, rate_hz)
    with styled_figure(3, 1, size=(9, 5.2), sharex=True, height_ratios=(3, 1, 1.2)) as (figure, axes):
        top, middle, low = axes[:, 0]
        draw_spectrogram(top, samples, rate_hz, features, start_s)
        top.legend(loc="upper right", labelcolor="white")
        middle.fill_between(time_s, features.confidence, color=BLUE, alpha=0.25, linewidth=0)
        middle.plot(time_s, features.confidence, color=BLUE)
        middle.set(ylim=(0, 1.03), ylabel="confidence")
        middle.axhline(features.settings.voicing_threshold, color=GREY, linestyle=":")
        low.plot(time_s, features.loudness_db, color=ORANGE)
        top_db = 3.0 + float(features.loudness_db.max(initial=0.0))  # A-weighting lifts the loudest above 0 dB
        low.set(ylim=(FLOOR_DB - 2, top_db), ylabel="loudness (dB)", xlabel="time (s)")
        return figure


def doctor_picture(report) -> Figure:
    """A quality report as bars for the 40 longest usable files: length, F0 range, level, noise; orange: warned."""
    usable = [f for f in report.files if f.usable]
    files = sorted(usable, key=lambda f: -f.duration_s)[:40]
    names = [f.name if len(f.name) <= 28 else f"{f.name[:13]}…{f.name[-14:]}" for f in files]
    position = np.arange(len(files))
    colours = [ORANGE if any(x.severity != "note" for x in f.findings) else BLUE for f in files]
    with styled_figure(1, 3, size=(9, 1.1 + 0.24 * max(3, len(files))), sharey=True) as (figure, axes):
        length, pitch, level = axes[0]
        length.barh(position, [f.duration_s for f in files], color=colours, height=0.6)
        length.set(xlabel="length (s)", title="How long" if len(usable) <= 40 else f"The longest 40 of {len(usable)}")
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
        pitch.set(title="How high", xlabel="note (C4: middle C)")
        octaves = range(24, 109, 12)
        near = [n for n in octaves if pitch.get_xlim()[0] - 6 <= n <= pitch.get_xlim()[1] + 6]
        pitch.set_xticks(near, [units.note_name(n) for n in near])
        floors = any(f.noise_floor_db is not None for f in files)
        level.set(
            title="How loud", xlabel=f"loud parts{', down to the noise floor' if floors else ''} (dB)", xlim=(-90, 0)
        )
        for axis in axes[0]:
            axis.grid(False, axis="y")
        return figure


def sorted_curve(curves: Mapping, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one curve of ``run_log.curves``, sorted by step, float64; empty if there is none."""
    step = np.asarray(curves.get("validation_step" if key.startswith("validation") else "step", []), float)
    value = np.asarray(curves.get(key, []), float)
    order = np.argsort(step, kind="stable")
    order = order[np.isfinite(value[order])]
    return step[order], value[order]


def loss_curves(curves: Mapping, title: str = "") -> Figure:
    """Training loss (thin: every record; bold: running mean) and validation loss (dots)."""
    with styled_axis((9, 2.8), title=title, xlabel="step", ylabel="loss") as (figure, axis):
        step, loss = sorted_curve(curves, "loss")
        if step.size:
            axis.plot(step, loss, color=BLUE, alpha=0.3, linewidth=0.9)
            mean = ndimage.uniform_filter1d(loss, max(1, step.size // 30), mode="nearest")
            axis.plot(step, mean, color=BLUE, label="training")
        step, loss = sorted_curve(curves, "validation_loss")
        if step.size:
            axis.plot(step, loss, "o-", color=ORANGE, markersize=4, label="held-out recordings")
        handles = axis.get_legend_handles_labels()
        figures = {k: v for k, v in curves.get("figures", {}).items() if k != "score"}
        if figures:
            right = axis.twinx()
            right.set(ylabel="0 to 1", ylim=(0, 1))
            for color, (name, values) in zip(CYCLE[2:], figures.items(), strict=False):
                label = f"{name} of songs"
                right.plot(curves["validation_step"], values, "s--", color=color, markersize=4, label=label)
            handles = [a + b for a, b in zip(handles, right.get_legend_handles_labels(), strict=True)]
        if handles[0]:
            axis.legend(*handles, loc="upper right")
        axis.xaxis.get_major_locator().set_params(integer=True)
        return figure


def compare_runs(runs: Mapping[str, Mapping], key="validation_loss", title="", ylabel="loss") -> Figure:
    """Curves of runs with the same loss definition on one axis, best last value first."""
    lines = [(name, *sorted_curve(curves, key)) for name, curves in runs.items()]
    lines.sort(key=lambda line: line[2][-1] if line[2].size else np.inf)
    with styled_axis((9, 3.2), title=title, xlabel="step", ylabel=ylabel) as (figure, axis):
        for index, (name, step, value) in enumerate(lines):
            label = f"{name}: {value[-1]:.3f} at step {int(step[-1])}" if step.size else f"{name}: no value yet"
            style = "-" if index < len(CYCLE) else "--"
            axis.plot(step, value, style, marker=".", color=CYCLE[index % len(CYCLE)], label=label)
        axis.legend(**_BESIDE)
        return figure


def conversion_plots(song, tracks, controls) -> Figure:
    """Loudness, pitch, F0 confidence and note mask of a song (``Features``), and what ``controls`` made of them."""
    time_s = units.frame_centers_s(len(song.f0_hz), song.settings.hop_samples, song.settings.sample_rate_hz)
    before, after = (  # lines break in unvoiced frames
        np.where(np.asarray(x.voiced, bool) & (x.f0_hz > 0), units.hz_to_midi(x.f0_hz), np.nan) for x in (song, tracks)
    )
    with styled_figure(4, 1, size=(9, 7.6), sharex=True, height_ratios=(1.1, 1.6, 0.7, 0.9)) as (figure, axes):
        loudness, pitch, confidence, note = axes[:, 0]
        loudness.plot(time_s, song.loudness_db, color=GREY, label="song")
        loudness.plot(time_s, tracks.loudness_db, color=BLUE, label="target")
        top_db = 3.0 + max(float(x.loudness_db.max(initial=0.0)) for x in (song, tracks))
        loudness.set(ylim=(-90, top_db), ylabel="dB", title="Loudness")
        pitch.plot(time_s, before, color=GREY, label="song")
        if controls.autotune:
            pitch.plot(time_s, tracks.autotuned_midi, color=GREEN, linewidth=1, label=f"autotuned ({tracks.key})")
        pitch.plot(time_s, after, color=BLUE, label="target")
        means = {"song": (tracks.song_mean_midi, GREY), "instrument": (tracks.instrument_mean_midi, ORANGE)}
        for name, (mean_midi, colour) in means.items():
            if mean_midi is not None:
                pitch.axhline(mean_midi, color=colour, linestyle=":", label=f"mean of the {name}")
        pitch.set(ylabel="note", title="Pitch")
        pitch.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        pitch.yaxis.set_major_formatter(lambda midi, _: units.note_name(midi))
        confidence.fill_between(time_s, song.confidence, color=BLUE, alpha=0.25, linewidth=0)
        confidence.set(ylim=(0, 1.03), ylabel="0..1", title="Confidence of the F0 tracker")
        note.plot(time_s, tracks.note_on_ratio, color=INK, linewidth=1, label="note-on ratio")
        top = max(2.1, float(np.max(tracks.note_on_ratio, initial=0.0)) * 1.05)
        note.fill_between(time_s, 0, top, where=tracks.mask, color=GREEN, alpha=0.15, linewidth=0, label="note")
        note.axhline(controls.mask_threshold, color=RED, linestyle=":", label=f"threshold {controls.mask_threshold:g}")
        note.set(ylim=(0, top), ylabel="ratio", title="Where a note sounds", xlabel="time (s)")
        note.set_xlim(0, max(time_s[-1] if len(time_s) else 0.0, 0.01))
        for axis in (loudness, pitch, note):
            axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=5)
        return figure


def harmonics_over_time(amplitude, distribution, frame_s) -> Figure:
    """Level of each harmonic over time in dB, from ``amplitude [frames]`` and ``distribution [frames, harmonics]``."""
    level_db = units.amplitude_to_db(np.asarray(amplitude)[:, None] * distribution, -100)
    sounding = np.flatnonzero((level_db > level_db.max(initial=-100.0) - 70).any(axis=0))
    level_db = level_db[:, : max(10, sounding.max(initial=0) + 1)]  # without the silent rows above
    rows = (0.5, level_db.shape[1] + 0.5)
    return _over_time(level_db, frame_s, rows, "dB", title="Harmonics", ylabel="harmonic number")


def noise_over_time(magnitudes, frame_s, sample_rate_hz) -> Figure:
    """Gain of each band of the noise filter ``[frames, bands]`` over time in dB."""
    level_db = units.amplitude_to_db(magnitudes, -100)
    return _over_time(level_db, frame_s, (0.0, sample_rate_hz / 2000), "dB", title="Noise", ylabel="frequency (kHz)")


def z_over_time(z, frame_s) -> Figure:
    """The z trajectory of a song ``[frames, dims]`` over time."""
    return _over_time(np.asarray(z, float), frame_s, (0.5, z.shape[1] + 0.5), "z", title="z", ylabel="dimension")


def _over_time(values: np.ndarray, frame_s: float, rows: tuple[float, float], unit: str, **labels) -> Figure:
    """An image of ``values [frames, rows]``: dB in the 70 dB below the maximum, other units symmetric about 0."""
    top = float(values.max(initial=-100.0)) if unit == "dB" else max(float(np.abs(values).max(initial=0)), 1e-6)
    cmap, low = ("magma", top - 70) if unit == "dB" else ("RdBu_r", -top)
    with styled_axis((9, 2.8), xlabel="time (s)", **labels) as (figure, axis):
        drawn = draw_image(axis, values.T, (0, len(values) * frame_s, *rows), cmap=cmap, vmin=low, vmax=top)
        figure.colorbar(drawn, ax=axis, label=unit, pad=0.01)
        return figure


def spectrum_at(amplitude, distribution, noise_magnitudes, f0_hz, sample_rate_hz, title="") -> Figure:
    """One frame: harmonics below the Nyquist frequency as stems, the noise filter as a curve."""
    harmonic_hz = f0_hz * np.arange(1, len(distribution) + 1)
    audible = (harmonic_hz < sample_rate_hz / 2) & (f0_hz > 0)
    band_hz = np.linspace(0, sample_rate_hz / 2, len(noise_magnitudes))
    level_db = units.amplitude_to_db(amplitude * distribution, -100)[audible]
    with styled_axis((9, 2.6), title=title, xlabel="frequency (kHz)", ylabel="level (dB)") as (figure, axis):
        axis.vlines(harmonic_hz[audible] / 1000, -100, level_db, color=BLUE, linewidth=1.6, label="harmonics")
        axis.plot(band_hz / 1000, units.amplitude_to_db(noise_magnitudes, -100), color=ORANGE, label="noise filter")
        axis.set(ylim=(-100, 10), xlim=(0, sample_rate_hz / 2000))
        axis.legend(loc="upper right")
        return figure


def z_map(trajectories: Mapping[str, np.ndarray], title="") -> Figure:
    """z trajectories, ``name -> [frames, dims]``, on the two principal components of all of them together."""
    paths, explained, _ = joint_map(list(trajectories.values()))
    first, second = (f"{share:.0%}" for share in explained)
    labels = {"xlabel": f"PC 1 ({first} of variance)", "ylabel": f"PC 2 ({second} of variance)"}
    with styled_axis((6.4, 5), title=title, **labels) as (figure, axis):
        for index, (name, path) in enumerate(zip(trajectories, paths, strict=True)):
            colour = CYCLE[index % len(CYCLE)]
            axis.plot(*path.T, color=colour, alpha=0.55, linewidth=0.8)
            axis.plot(*path[:1].T, "o", color=colour, markersize=5, label=name)
        handles = axis.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower left", ncols=2, title="the dot is the beginning")
        return figure


class LivePreview:
    """Shows the initial noise, then ``x_t`` and the x0 prediction; a ``callback`` of ``ablation.run``.

    ``show`` receives HTML, of the first and the last step, and at most every ``every_s`` seconds of ``clock``.
    """

    def __init__(self, show: Callable[[str], None], every_s: float | int = 0.3, clock=time.monotonic):
        self._show, self._every_s, self._clock, self._shown_s = show, every_s, clock, -np.inf

    def begin(self, model, seconds: float | int, seed: int) -> None:
        """Show the initial noise before the features of the song are computed."""
        contract = model.contract
        n_frames = max(2, units.frame_of_time(float(seconds), contract.hop_samples, contract.sample_rate_hz))
        noise = {"the noise it begins with": model.initial_noise(n_frames, seed)}
        self._draw(model, noise, "the song is being read and measured")

    def __call__(self, model, step: SamplerStep) -> None:
        """Show one step, if it is due."""
        if self._clock() - self._shown_s >= self._every_s or step.index in (0, step.n_calls - 1):
            about = f"step {step.index + 1} of {step.n_calls}, noise {step.sigma:.2f}, signal {step.alpha:.2f}"
            self._draw(model, {"noisy mel x_t": step.x_t, "x0 prediction": step.x0_hat}, about)

    def _draw(self, model, states: dict[str, Tensor], about: str) -> None:
        self._shown_s, parts, to_db = self._clock(), [], model.contract.to_db
        high = 10.0 * np.ceil(to_db(float(model.mel_high.max())) / 10)  # of the model's scale, in tens
        low = high - RANGE_DB
        for name, state in states.items():
            level_db = to_db(model.unscale(state)[0].detach().T.float().cpu().numpy())
            drawn = page.picture(plain_levels(level_db, low, high), f"{name}, {about}", 560, 130)
            parts.append(f'<div style="flex:1 1 260px;max-width:560px">{page.paragraph(name)}{drawn}</div>')
        contract, n_frames = model.contract, next(iter(states.values())).shape[-1]
        axes = f"across 0 to {n_frames * contract.hop_samples / contract.sample_rate_hz:.1f} s, up from "
        axes += f"{contract.fmin_hz:g} to {contract.fmax_hz:g} Hz"
        scale = page.paragraph(f"{about} · {axes} · colours from {low:g} dB (dark) to {high:g} dB (bright)")
        self._show(page.flow(*parts) + scale)


def plain_levels(level_db: np.ndarray, low_db: float | int, high_db: float | int) -> bytes:
    """Levels ``[bands, frames]`` as a PNG with one pixel each, low bands at the bottom; drawn in milliseconds."""
    file = io.BytesIO()
    image.imsave(file, level_db, vmin=low_db, vmax=high_db, cmap="magma", format="png", origin="lower")
    return file.getvalue()
