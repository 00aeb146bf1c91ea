"""A trace of a sampling run with a known denoiser."""

import numpy as np
import torch
from browsing import NAME
from diffusion_models import CONTRACT
from scipy.ndimage import gaussian_filter
from singer_truth import truth as truth_of

from svclib.analysis.recorder import Recorder
from svclib.audio import mel
from svclib.data import singers
from svclib.models.diffusion import samplers
from svclib.models.diffusion.schedule import Schedule

SCHEDULE = Schedule()
MELS = mel.MelConfig(22050, 1024, 1024, 256, 80, 0.0, 8000.0)
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


def sharpening(steps=24, seconds=3.0, method="dpmpp", seed=1, transpose=1.0):
    """A sampling run to a synthetic singer's mel whose denoiser sees it the more blurred the more noise there is."""
    sung = singers.render("aria", singers.demo_song(), 22050, seed=1)
    n = int(seconds * 22050)
    samples = sung.audio[3300 : 3300 + n]
    truth = truth_of(sung, 22050, 256)
    frames = n // 256
    first = round(3300 / 256)
    f0_hz, voiced = (np.asarray(x)[first : first + frames] for x in (truth.f0_hz, truth.voiced))
    log_mel = mel.log_mel(torch.from_numpy(samples)[None], MELS)[0, :frames].T
    low, high = np.full(80, -11.6), np.full(80, 2.0)
    target = torch.from_numpy(2 * (log_mel.numpy() + 11.6) / 13.6 - 1).float()
    if transpose != 1.0:
        target = torch.roll(target, int(transpose), 0)

    def denoiser(x, t):
        alpha, sigma = SCHEDULE.alpha_sigma(t)
        width = 6 * sigma**2
        blurred = torch.from_numpy(gaussian_filter(target.numpy(), (width, 2 * width)))
        return (x - alpha * (blurred + 0.05 * sigma * x[0])) / sigma

    recorder, options = Recorder(), samplers.SamplingOptions(method, steps)
    noise = torch.randn((1, 80, frames), generator=torch.Generator().manual_seed(seed))
    result = samplers.sample(denoiser, SCHEDULE, noise, options, clip=1.0, callback=recorder)
    conditions = {"f0_hz": np.where(voiced, f0_hz, 0), "voiced": voiced.astype(bool)}
    return recorder.trace(
        result, low=low, high=high, conditions=conditions, mel=MELS.to_json(), label=NAME, method=method, seed=seed
    )
