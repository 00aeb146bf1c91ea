"""A walk while it goes on: pictures that are quick to draw, in one fixed colour scale, shown a few times a second."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from svclib.analysis import html as page
from svclib.analysis.plots import base as plots
from svclib.audio import units
from svclib.models.diffusion.samplers import SamplerStep

EVERY_S = 0.3
RANGE_DB = 80.0
HEIGHT_PX = 130


class LivePreview:
    """Shows what a walk begins with, then what the network sees and what it takes the singing to be.

    An instance is the ``watch`` of ``ablation.run``. The first and the last step are always shown, the others at most
    every ``every_s`` seconds.

    Args:
        show: Receives a piece of HTML.
        every_s: Least time between two pictures.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, show: Callable[[str], None], every_s: float | int = EVERY_S, clock: Callable[[], float] = time.monotonic
    ):
        self._show, self._every_s, self._clock, self._shown_s = show, float(every_s), clock, None

    def begin(self, model, seconds: float | int, seed: int) -> None:
        """Show noise before anything is measured: what every walk over so many seconds begins with."""
        contract = model.contract
        n_frames = max(2, units.frame_of_time(float(seconds), contract.hop_samples, contract.sample_rate_hz))
        noise = model.noise(n_frames, seed)
        self._shown_s = self._clock()
        self._show(_pictures(model, {"the noise it begins with": noise}, "the song is being read and measured"))

    def __call__(self, model, step: SamplerStep) -> None:
        """Show one step, if it is time for it."""
        now, last = self._clock(), step.index + 1 == step.n_calls
        if self._shown_s is not None and now - self._shown_s < self._every_s and step.index and not last:
            return
        self._shown_s = now
        about = f"step {step.index + 1} of {step.n_calls}, noise {step.noise_level:.2f}, signal {step.signal_level:.2f}"
        shown = {"what the network sees": step.x_t, "what it takes the singing to be": step.x0_hat}
        self._show(_pictures(model, shown, about))


def level_db(model, state: Tensor) -> np.ndarray:
    """A state ``[1, mels, frames]`` in the scale of the network as levels in dB, ``[mels, frames]``."""
    with torch.no_grad():
        log_mel = model.unscale(state.detach())[0].T.float().cpu().numpy()
    return model.contract.to_db(log_mel)


def range_db(model) -> tuple[float, float]:
    """One colour range for a model: 80 dB below the loudest mel it was trained on, in tens."""
    high = 10.0 * np.ceil(float(level_db(model, torch.ones(1, model.contract.n_mels, 1)).max()) / 10)
    return high - RANGE_DB, high


def _pictures(model, states: dict[str, Tensor], about: str) -> str:
    low, high = range_db(model)
    parts = []
    for name, state in states.items():
        drawn = page.picture(plots.plain_levels(level_db(model, state), low, high), f"{name}, {about}", 560, HEIGHT_PX)
        parts.append(f'<div style="flex:1 1 260px;max-width:560px">{page.paragraph(name)}{drawn}</div>')
    scale = f"{about} · colours from {low:g} dB (dark) to {high:g} dB (bright), the same at every step"
    return page.flow(*parts) + page.paragraph(scale)
