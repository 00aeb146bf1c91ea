"""A trace of a sampling run with a known denoiser."""

import numpy as np
import torch
from diffusion_models import CONTRACT

from svclib.analysis.recorder import Recorder
from svclib.models.diffusion import samplers
from svclib.models.diffusion.schedule import Schedule

SCHEDULE = Schedule()
MEAN, SPREAD = torch.linspace(-0.8, 0.4, 40)[:, None], 0.2


def gaussian(x_t, t):
    """The best denoiser for frames drawn from N(MEAN, SPREAD^2)."""
    alpha, sigma = SCHEDULE.alpha_sigma(t)
    return sigma * (x_t - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)


def recorded(keep=None, steps=20, method="ddim", frames=12, **options):
    recorder, seen = Recorder(keep, **options), []
    noise = torch.randn((1, 40, frames), generator=torch.Generator().manual_seed(3))

    def watch(step):
        recorder(step)
        seen.append((step.t, step.x_t.clone(), step.x0_hat.clone(), step.eps_hat.clone()))

    result = samplers.sample(
        gaussian,
        SCHEDULE,
        noise,
        samplers.SamplingOptions(method, steps),
        generator=torch.Generator().manual_seed(4),
        callback=watch,
    )
    low, high = np.full(40, -11.5), np.full(40, 1.5)
    made = recorder.trace(result, low=low, high=high, mel=CONTRACT.to_json(), label="gauß", seed=3)
    return made, seen, result
