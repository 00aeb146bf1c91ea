"""Plots of the controls of a DDSP instrument: harmonics, noise filter, one frame, z."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from svclib.analysis.plots.base import BLUE, CYCLE, ORANGE, styled_figure
from svclib.analysis.projection import joint_map


def harmonics_over_time(
    amplitude: np.ndarray, distribution: np.ndarray, frame_s: float | int, title: str = "Harmonics"
) -> Figure:
    """Level of each harmonic over time in dB, from ``amplitude [frames]`` and ``distribution [frames, harmonics]``."""
    level_db = _db(np.asarray(amplitude, float)[:, None] * np.asarray(distribution, float))
    extent = (0, len(level_db) * frame_s, 0.5, level_db.shape[1] + 0.5)
    return _over_time(level_db, extent, title, "harmonic number", **_scale_db(level_db))


def noise_over_time(magnitudes, frame_s, sample_rate_hz, title="Noise") -> Figure:
    """Gain of each band of the noise filter ``[frames, bands]`` over time in dB."""
    level_db = _db(magnitudes)
    extent = (0, len(level_db) * frame_s, 0.0, sample_rate_hz / 2000)
    return _over_time(level_db, extent, title, "frequency (kHz)", **_scale_db(level_db))


def z_over_time(z, frame_s, title="z") -> Figure:
    """The z trajectory of a song ``[frames, dims]`` over time."""
    z = np.asarray(z, float)
    limit = max(float(np.abs(z).max(initial=0)), 1e-6)
    extent = (0, len(z) * frame_s, 0.5, z.shape[1] + 0.5)
    return _over_time(z, extent, title, "dimension", "z", cmap="RdBu_r", vmin=-limit, vmax=limit)


def _db(level) -> np.ndarray:
    return 20.0 * np.log10(np.maximum(np.asarray(level, float), 1e-5))


def _scale_db(level_db: np.ndarray) -> dict:
    """Colours over the 70 dB below the maximum."""
    peak = float(level_db.max()) if level_db.size else 0.0
    return {"label": "dB", "cmap": "magma", "vmin": peak - 70, "vmax": peak}


def _over_time(values, extent, title, ylabel, label, **scale) -> Figure:
    with styled_figure(size=(9, 2.8)) as (figure, axes):
        axis = axes[0, 0]
        drawn = axis.imshow(values.T, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **scale)
        axis.grid(False)
        axis.set(title=title, xlabel="time (s)", ylabel=ylabel)
        figure.colorbar(drawn, ax=axis, label=label, pad=0.01)
        return figure


def spectrum_at(amplitude, distribution, noise_magnitudes, f0_hz, sample_rate_hz, title="") -> Figure:
    """One frame: harmonics below the Nyquist frequency as stems, the noise filter as a curve."""
    harmonic_hz = f0_hz * np.arange(1, len(distribution) + 1)
    audible = (harmonic_hz < sample_rate_hz / 2) & (f0_hz > 0)
    band_hz = np.linspace(0, sample_rate_hz / 2, len(noise_magnitudes))
    with styled_figure(size=(9, 2.6)) as (figure, axes):
        axis = axes[0, 0]
        level_db = _db(float(amplitude) * np.asarray(distribution, float))[audible]
        axis.vlines(harmonic_hz[audible] / 1000, -100, level_db, color=BLUE, linewidth=1.6, label="harmonics")
        axis.plot(band_hz / 1000, _db(noise_magnitudes), color=ORANGE, label="noise filter")
        axis.set(title=title, xlabel="frequency (kHz)", ylabel="level (dB)")
        axis.set(ylim=(-100, 10), xlim=(0, sample_rate_hz / 2000))
        axis.legend(loc="upper right")
        return figure


def z_map(trajectories: Mapping[str, np.ndarray], title="") -> Figure:
    """z trajectories, ``name -> [frames, dims]``, on the two principal components of all of them together."""
    made = joint_map(list(trajectories.values()))
    with styled_figure(size=(6.4, 5)) as (figure, axes):
        axis = axes[0, 0]
        for index, (name, path) in enumerate(zip(trajectories, made.paths, strict=True)):
            colour = CYCLE[index % len(CYCLE)]
            axis.plot(*path.T, color=colour, alpha=0.55, linewidth=0.8)
            axis.plot(*path[:1].T, "o", color=colour, markersize=5, label=name)
        first, second = made.explained
        axis.set(title=title, xlabel=f"first axis ({first:.0%} of the variance)", ylabel=f"second axis ({second:.0%})")
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title="dot: beginning")
        return figure
