"""Preview of a sampling run: quick pictures of the states in one fixed colour scale, a few times per second."""

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
    """Shows the initial noise, then ``x_t`` and the x0 prediction; a ``callback`` of ``ablation.run``.

    The first and the last step are always shown.

    Args:
        show: Receives HTML.
        every_s: Shortest time between two pictures.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self, show: Callable[[str], None], every_s: float | int = EVERY_S, clock: Callable[[], float] = time.monotonic
    ):
        self._show, self._every_s, self._clock, self._shown_s = show, float(every_s), clock, None

    def begin(self, model, seconds: float | int, seed: int) -> None:
        """Show the initial noise before the features of the song are computed."""
        contract = model.contract
        n_frames = max(2, units.frame_of_time(float(seconds), contract.hop_samples, contract.sample_rate_hz))
        noise = model.initial_noise(n_frames, seed)
        self._shown_s = self._clock()
        self._show(_pictures(model, {"the noise it begins with": noise}, "the song is being read and measured"))

    def __call__(self, model, step: SamplerStep) -> None:
        """Show one step, if it is due."""
        now, last = self._clock(), step.index + 1 == step.n_calls
        if self._shown_s is not None and now - self._shown_s < self._every_s and step.index and not last:
            return
        self._shown_s = now
        about = f"step {step.index + 1} of {step.n_calls}, noise {step.sigma:.2f}, signal {step.alpha:.2f}"
        self._show(_pictures(model, {"noisy mel x_t": step.x_t, "x0 prediction": step.x0_hat}, about))


def level_db(model, state: Tensor) -> np.ndarray:
    """A state ``[1, mels, frames]`` as levels in dB, ``[mels, frames]``."""
    with torch.no_grad():
        log_mel = model.unscale(state.detach())[0].T.float().cpu().numpy()
    return model.contract.to_db(log_mel)


def range_db(model) -> tuple[float, float]:
    """Colour range: 80 dB below the highest level of the model's scale, rounded up to 10 dB."""
    high = 10.0 * np.ceil(float(level_db(model, torch.ones(1, model.contract.n_mels, 1)).max()) / 10)
    return high - RANGE_DB, high


def _pictures(model, states: dict[str, Tensor], about: str) -> str:
    low, high = range_db(model)
    parts = []
    for name, state in states.items():
        drawn = page.picture(plots.plain_levels(level_db(model, state), low, high), f"{name}, {about}", 560, HEIGHT_PX)
        parts.append(f'<div style="flex:1 1 260px;max-width:560px">{page.paragraph(name)}{drawn}</div>')
    return page.flow(*parts) + page.paragraph(f"{about} · colours from {low:g} dB (dark) to {high:g} dB (bright)")
