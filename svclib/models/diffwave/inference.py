"""DiffWave inference: vocoding, generation, zero-shot denoising and interpolation (Kong et al. 2021, section 5.4).

Steps are counted from 1 here, as in the paper: ``t = 25`` is the 25th trained step.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffwave import sampler
from svclib.models.diffwave.model import DiffWaveModel
from svclib.utils.errors import ModelError, ProgressCallback

READINGS = ("as_is", "scaled")
DEFAULTS = SamplingOptions()
Callback = Callable[[SamplerStep], None]


def step_progress(progress: ProgressCallback | None) -> Callback | None:
    """A step callback that reports to a progress callback."""
    if progress is None:
        return None
    return lambda step: progress((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")


def _start(model: DiffWaveModel, t: int) -> int:
    if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= model.schedule.n_steps:
        raise ModelError(f"The step is {t!r}; this model's steps are whole numbers from 1 to {model.schedule.n_steps}.")
    return t - 1


def _signal(audio: np.ndarray, what: str) -> Tensor:
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise ModelError(f"{what} has shape {samples.shape}; expected one channel of finite samples, at least one.")
    return torch.from_numpy(samples)


def _padded_length(model: DiffWaveModel, n_samples: int) -> int:
    """The next multiple of ``squeeze``."""
    return n_samples + -n_samples % model.net.squeeze


def condition(model: DiffWaveModel, label: str | None, batch: int) -> dict:
    """The conditions of generation, denoising and interpolation.

    Args:
        model: Trained without a mel.
        label: One of the model's labels, the same for all signals; None where it takes none.
        batch: Number of signals.

    Returns:
        What ``DiffWaveModel.prepare`` takes: ``batch`` without labels, else ``label``, their numbers ``[batch]``.

    Raises:
        ModelError: for a vocoder, a label the model does not know, one too many or none where it needs one.
    """
    if model.settings.condition == "mel":
        raise ModelError("This is a vocoder: it follows a mel. Use a model trained without one, or with labels.")
    if model.settings.condition == "none":
        if label is not None:
            raise ModelError(f"This model takes no label, but '{label}' was given; leave it out.")
        return {"batch": batch}
    if label is None:
        raise ModelError(f"This model needs a label: one of {', '.join(model.settings.labels)}.")
    return {"label": model.label_numbers([label] * batch)}


def vocode(
    model: DiffWaveModel,
    log_mel: np.ndarray,
    f0_hz: np.ndarray | None = None,
    voiced: np.ndarray | None = None,
    options: SamplingOptions = DEFAULTS,
    fast: bool = True,
    callback: Callback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Audio of a log-mel spectrogram by a model trained with ``condition = 'mel'``.

    Args:
        model: The vocoder.
        log_mel: ``[frames, mels]`` by ``model.contract``.
        f0_hz: F0 ``[frames]`` in Hz, for a model with a harmonic source; unused by others.
        voiced: Which frames have a pitch, ``[frames]``; as ``f0_hz``.
        options: Sampler, steps, seed, temperature and precision.
        fast: Use the model's fast schedule where the options name no steps.
        callback: Called with each step.
        cancelled: See ``utils.errors``.

    Returns:
        float32 ``[frames * hop]``, not limited.
    """
    if model.contract is None:
        raise ModelError("This model takes no mel, so it cannot vocode; train one with condition = 'mel'.")
    values, n_mels = np.asarray(log_mel, dtype=np.float32), model.contract.n_mels
    if values.ndim != 2 or not len(values) or values.shape[1] != n_mels or not np.isfinite(values).all():
        raise ModelError(
            f"The spectrogram has shape {values.shape}; expected finite numbers, frames by {n_mels} bands."
        )
    with torch.no_grad():
        denoiser = model.prepare(options.precision, **model.song_conditions(values, f0_hz, voiced))
    shape = (1, len(values) * model.contract.hop_samples)
    return model.sample(denoiser, shape, options, fast, callback, cancelled)[0].cpu().numpy()


def generate(
    model: DiffWaveModel,
    n_samples: int,
    count: int = 1,
    label: str | None = None,
    options: SamplingOptions = DEFAULTS,
    fast: bool = False,
    callback: Callback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Sounds from noise, and a label where the model takes one.

    Args:
        model: Trained without a mel.
        n_samples: Length of each sound.
        count: Number of sounds, one batch.
        label: One of the model's labels, for all of them.
        options: Sampler, steps, seed, temperature and precision.
        fast: Use the model's fast schedule where the options name no steps.
        callback: Called with each step.
        cancelled: See ``utils.errors``.

    Returns:
        float32 ``[count, n_samples]``, not limited.
    """
    if count < 1 or n_samples < 1:
        raise ModelError(f"{count} sounds of {n_samples} samples; there must be at least one of each.")
    length = _padded_length(model, n_samples)
    denoiser = model.prepare(options.precision, n_samples=length, **condition(model, label, count))
    return model.sample(denoiser, (count, length), options, fast, callback, cancelled)[:, :n_samples].cpu().numpy()


def check_denoise(model: DiffWaveModel, t: int, reading: str, label: str | None) -> int:
    """The diffusion time that step ``t`` starts at, from 0; ModelError for what :func:`denoise` would refuse."""
    if reading not in READINGS:
        raise ModelError(f"There is no reading '{reading}'; choose one of {', '.join(READINGS)}.")
    condition(model, label, 1)
    return _start(model, t)


def denoise(
    model: DiffWaveModel,
    audio: np.ndarray,
    t: int = 25,
    reading: str = "as_is",
    label: str | None = None,
    options: SamplingOptions = DEFAULTS,
    callback: Callback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Denoise a recording by running the reverse process from step ``t`` (Kong et al. 2021, section 5.4).

    The paper does not say what is fed in, so both readings are offered: ``as_is`` takes the recording for the signal
    at step ``t``; ``scaled`` takes it for ``x_0`` and adds the noise of that step. Where the model was trained at one
    level (``peak``), the recording is normalised to it before and restored afterwards.

    Args:
        model: Trained without a mel.
        audio: ``[samples]`` at the model's sample rate.
        t: Step from 1 to ``n_steps``; 25 of 200 in the paper.
        reading: One of ``READINGS``.
        label: Where the model takes one.
        options: Sampler, seed and precision; every trained step is taken.
        callback: Called with each step, ``t`` of them.
        cancelled: See ``utils.errors``.

    Returns:
        float32 ``[samples]``, not limited.
    """
    start, x = check_denoise(model, t, reading, label), _signal(audio, "The recording")[None]
    n, gain = x.shape[1], model.gain(x)
    x = torch.nn.functional.pad(x * gain, (0, _padded_length(model, n) - n))
    denoiser = model.prepare(options.precision, n_samples=x.shape[1], **condition(model, label, 1))
    generator = torch.Generator().manual_seed(options.seed)
    if reading == "scaled":
        x = model.schedule.diffuse(x, torch.tensor([start]), torch.randn(x.shape, generator=generator))
    levels, draw = sampler.trained_levels(model.schedule, start), sampler.draw_noise(generator)
    made = sampler.sample(denoiser, x.to(model.device), levels, draw, options, callback, cancelled)
    return (made[0, :n].cpu() / gain[0]).numpy()


@dataclasses.dataclass(frozen=True)
class Mix:
    """Options of :func:`interpolate`.

    Attributes:
        shares: Of the second sound, 0 to 1.
        t: Step from 1 to ``n_steps`` at which the sounds are mixed; 50 of 200 in the paper.
        shared_noise: One noise for both ends. With independent noises, as in the paper, the mix has less noise than its
            step has (0.245 instead of 0.346 in the middle, at step 50 of 200).
        label: Where the model takes one.
    """

    shares: Sequence[int | float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    t: int = 50
    shared_noise: bool = True
    label: str | None = None

    def __post_init__(self):
        if not len(self.shares) or not all(0 <= share <= 1 for share in self.shares):
            raise ModelError(f"The shares are {list(self.shares)}; expected numbers from 0 to 1, at least one.")


def interpolate(
    model: DiffWaveModel,
    first: np.ndarray,
    second: np.ndarray,
    mix: Mix = Mix(),  # noqa: B008  (frozen)
    options: SamplingOptions = DEFAULTS,
    callback: Callback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Sounds between two recordings: both are noised to a step, mixed there, and denoised.

    Args:
        model: Trained without a mel.
        first: ``[samples]`` at the model's sample rate.
        second: The same; the shorter one is followed by silence.
        mix: Shares, step, noise and label.
        options: Sampler, seed and precision; the seed's noise is the same for all shares.
        callback: Called with each step; all shares are one batch.
        cancelled: See ``utils.errors``.

    Returns:
        float32 ``[shares, samples]``, as long as the longer recording, not limited.
    """
    shares = torch.tensor(list(mix.shares), dtype=torch.float32)[:, None]
    start, ends = _start(model, mix.t), [_signal(first, "The first sound"), _signal(second, "The second sound")]
    longest = max(map(len, ends))
    n = _padded_length(model, longest)
    x0 = torch.stack([torch.nn.functional.pad(end, (0, n - len(end))) for end in ends])
    gain = model.gain(x0)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(1 if mix.shared_noise else 2, n, generator=generator).expand(2, -1)
    noisy = model.schedule.diffuse(x0 * gain, torch.tensor([start, start]), noise)
    mixed = (1 - shares) * noisy[:1] + shares * noisy[1:]
    denoiser = model.prepare(options.precision, n_samples=n, **condition(model, mix.label, len(mixed)))
    levels, draw = sampler.trained_levels(model.schedule, start), sampler.draw_noise(generator, shared=True)
    made = sampler.sample(denoiser, mixed.to(model.device), levels, draw, options, callback, cancelled)
    level = (1 - shares) / gain[0] + shares / gain[1]
    return (made.cpu() * level)[:, :longest].numpy()
