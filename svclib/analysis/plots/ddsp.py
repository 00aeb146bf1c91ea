"""Pictures of what a DDSP instrument plays: its harmonics, its noise filter, one moment, its z."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from svclib.analysis import plot_data
from svclib.analysis.plots.base import BLUE, CYCLE, ORANGE, styled_figure


def harmonics_over_time(
    amplitude: np.ndarray, distribution: np.ndarray, frame_s: float | int, title: str = "Harmonics"
) -> Figure:
    """Draw the oscillators of a DDSP instrument: level of each harmonic over time, dB.

    Args:
        amplitude: Overall amplitude ``[frames]``, linear.
        distribution: Share of each harmonic ``[frames, harmonics]``, rows sum to 1.
        frame_s: Seconds per frame.
        title: Heading.

    Returns:
        Colours over the 70 dB below the loudest.
    """
    level = np.asarray(amplitude, float)[:, None] * np.asarray(distribution, float)
    return _over_time(_db(level), frame_s, title, "harmonic number", 0.5, level.shape[1] + 0.5)


def noise_over_time(magnitudes, frame_s, sample_rate_hz, title="Noise") -> Figure:
    """The noise filter of a DDSP instrument: gain of each band ``[frames, bands]`` over time, dB; bands in kHz."""
    magnitudes = np.asarray(magnitudes, float)
    return _over_time(_db(magnitudes), frame_s, title, "frequency (kHz)", 0.0, sample_rate_hz / 2000)


def _db(level: np.ndarray) -> np.ndarray:
    return 20.0 * np.log10(np.maximum(level, 1e-5))


def _over_time(level_db, frame_s, title, ylabel, bottom, top) -> Figure:
    with styled_figure(size=(9, 2.8)) as (figure, axes):
        axis = axes[0, 0]
        peak = float(level_db.max()) if level_db.size else 0.0
        drawn = axis.imshow(
            level_db.T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=peak - 70,
            vmax=peak,
            extent=(0, len(level_db) * frame_s, bottom, top),
            interpolation="nearest",
        )
        axis.grid(False)
        axis.set(title=title, xlabel="time (s)", ylabel=ylabel)
        figure.colorbar(drawn, ax=axis, label="dB", pad=0.01)
        return figure


def spectrum_at(amplitude, distribution, noise_magnitudes, f0_hz, sample_rate_hz, title="") -> Figure:
    """One frame of a DDSP instrument: its harmonics as stems at their frequencies, the noise filter as a curve.

    ``distribution`` is ``[harmonics]``, ``noise_magnitudes`` ``[bands]``; harmonics above Nyquist are left out.
    """
    harmonic_hz = f0_hz * np.arange(1, len(distribution) + 1)
    heard = (harmonic_hz < sample_rate_hz / 2) & (f0_hz > 0)
    band_hz = np.linspace(0, sample_rate_hz / 2, len(noise_magnitudes))
    with styled_figure(size=(9, 2.6)) as (figure, axes):
        axis = axes[0, 0]
        level_db = _db(float(amplitude) * np.asarray(distribution, float))[heard]
        axis.vlines(harmonic_hz[heard] / 1000, -100, level_db, color=BLUE, linewidth=1.6, label="harmonics")
        axis.plot(band_hz / 1000, _db(np.asarray(noise_magnitudes, float)), color=ORANGE, label="noise filter")
        axis.set(
            title=title, xlabel="frequency (kHz)", ylabel="level (dB)", ylim=(-100, 10), xlim=(0, sample_rate_hz / 2000)
        )
        axis.legend(loc="upper right")
        return figure


def z_map(trajectories: Mapping[str, np.ndarray], title="") -> Figure:
    """Paths through a model's z space, ``name -> [frames, dims]``, on the two main axes of all of them together."""
    mean, axes_z, share = plot_data.principal_axes(np.concatenate(list(trajectories.values())))
    with styled_figure(size=(6.4, 5)) as (figure, axes):
        axis = axes[0, 0]
        for index, (name, z) in enumerate(trajectories.items()):
            x, y = ((np.asarray(z, float) - mean) @ axes_z.T).T
            axis.plot(x, y, color=CYCLE[index % len(CYCLE)], alpha=0.55, linewidth=0.8)
            axis.plot(x[:1], y[:1], "o", color=CYCLE[index % len(CYCLE)], markersize=5, label=name)
        axis.set(
            title=title, xlabel=f"first axis ({share[0]:.0%} of the movement)", ylabel=f"second axis ({share[1]:.0%})"
        )
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title="dot: beginning")
        return figure


def z_over_time(z, frame_s, title="z") -> Figure:
    """The z trajectories of one song ``[frames, dims]`` as a picture over time."""
    z = np.asarray(z, float)
    with styled_figure(size=(9, 2.4)) as (figure, axes):
        axis, limit = axes[0, 0], max(float(np.abs(z).max(initial=0)), 1e-6)
        axis.imshow(
            z.T,
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            interpolation="nearest",
            extent=(0, len(z) * frame_s, 0.5, z.shape[1] + 0.5),
        )
        axis.grid(False)
        axis.set(title=title, xlabel="time (s)", ylabel="dimension")
        return figure
