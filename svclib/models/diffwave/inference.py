"""DiffWave inference: vocoding, generation, zero-shot denoising and interpolation (Kong et al. 2021, section 5.4).

Steps are counted from 1 here, as in the paper: ``t = 25`` is the 25th trained step. Results are float32 and not limited
to -1 .. 1. Everywhere ``options`` are sampler, seed, temperature and precision, ``callback`` is called with each step,
and ``label`` is one of the model's labels, None where it takes none.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
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


def _signals(model: DiffWaveModel, **recordings: np.ndarray) -> tuple[Tensor, int]:
    """Recordings of one channel as rows, with silence up to a length the network takes, and the longest's length."""
    for name, audio in recordings.items():
        if np.ndim(audio) != 1 or not len(audio) or not np.isfinite(audio).all():
            raise ModelError(f"The {name} has shape {np.shape(audio)}; expected one channel of finite samples.")
    longest = max(map(len, recordings.values()))
    rows = np.zeros((len(recordings), _padded_length(model, longest)), np.float32)
    for row, audio in zip(rows, recordings.values(), strict=True):
        row[: len(audio)] = audio
    return torch.from_numpy(rows), longest


def _padded_length(model: DiffWaveModel, n_samples: int) -> int:
    """The next multiple of ``squeeze``."""
    return n_samples + -n_samples % model.net.squeeze


def condition(model: DiffWaveModel, label: str | None, batch: int) -> dict[str, Tensor]:
    """The conditions of generation, denoising and interpolation of ``batch`` signals, for ``DiffWaveModel.prepare``.

    Raises ModelError for a vocoder, a label the model does not know, one too many or none where it needs one.
    """
    if model.settings.condition == "mel":
        raise ModelError("This is a vocoder: it follows a mel. Use a model trained without one, or with labels.")
    if model.settings.condition == "none":
        if label is not None:
            raise ModelError(f"This model takes no label, but '{label}' was given; leave it out.")
        return {}
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
    """Audio ``[frames * hop]`` of a float32 log-mel ``[frames, mels]`` by a model with ``condition = 'mel'``.

    A model with a harmonic source needs ``f0_hz`` (float32) and ``voiced``, ``[frames]``. With ``fast`` by the model's
    fast schedule where the options name no steps.
    """
    tracks = {"log_mel": log_mel} | ({} if model.source is None else {"f0_hz": f0_hz, "voiced": voiced})
    with torch.no_grad():
        batch = {name: torch.from_numpy(track)[None].to(model.device) for name, track in tracks.items()}
        denoiser = model.prepare(options.precision, **model.conditions(batch))
    shape = (1, len(log_mel) * model.contract.hop_samples)
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
    """``count`` sounds ``[count, n_samples]`` from noise, one batch, by a model trained without a mel.

    With ``fast`` by the model's fast schedule where the options name no steps.
    """
    if count < 1 or n_samples < 1:
        raise ModelError(f"{count} sounds of {n_samples} samples; there must be at least one of each.")
    length = _padded_length(model, n_samples)
    denoiser = model.prepare(options.precision, **condition(model, label, count))
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
    """Denoise a recording ``[samples]`` by running the reverse process from step ``t``; 25 of 200 in the paper.

    The model is trained without a mel. The paper does not say what is fed in, so both readings are offered: ``as_is``
    takes the recording for the signal at step ``t``; ``scaled`` takes it for ``x_0`` and adds the noise of that step.
    Where the model was trained at one level (``peak``), the recording is normalised to it before and restored
    afterwards. Of the options' steps none count: every trained step from ``t`` down is taken.
    """
    start, (x, n) = check_denoise(model, t, reading, label), _signals(model, recording=audio)
    gain, generator = model.gain(x), torch.Generator().manual_seed(options.seed)
    x = x * gain
    if reading == "scaled":
        x = model.schedule.diffuse(x, torch.tensor([start]), torch.randn(x.shape, generator=generator))
    denoiser = model.prepare(options.precision, **condition(model, label, 1))
    levels = model.schedule.levels_from(start)
    made = model.run(denoiser, x.to(model.device), options, generator, levels, callback, cancelled)
    return (made[0, :n].cpu() / gain[0]).numpy()


def interpolate(
    model: DiffWaveModel,
    ends: tuple[np.ndarray, np.ndarray],
    share: float | int = 0.5,
    t: int = 50,
    shared_noise: bool = True,
    label: str | None = None,
    options: SamplingOptions = DEFAULTS,
    **watch: Callable | None,
) -> np.ndarray:
    """A sound ``[samples]`` between two recordings: both are noised to step ``t``, mixed there, and denoised.

    ``share`` (0 to 1) is that of the second; 50 of 200 steps in the paper. The recordings ``[samples]`` are at the rate
    of the model, which is trained without a mel; the shorter one is followed by silence. With independent noises, as
    in the paper, instead of ``shared_noise`` the mix has less noise than its step has (0.245 instead of 0.346 in the
    middle, at step 50 of 200). ``watch`` is ``callback`` and ``cancelled``.
    """
    if not 0 <= share <= 1:
        raise ModelError(f"The share is {share}; expected a number from 0 to 1.")
    start, (x0, longest) = _start(model, t), _signals(model, first=ends[0], second=ends[1])
    gain, generator = model.gain(x0), torch.Generator().manual_seed(options.seed)
    noise = torch.randn(1 if shared_noise else 2, x0.shape[1], generator=generator).expand(2, -1)
    noisy = model.schedule.diffuse(x0 * gain, torch.tensor([start, start]), noise)
    mixed = (1 - share) * noisy[:1] + share * noisy[1:]
    denoiser, levels = model.prepare(options.precision, **condition(model, label, 1)), model.schedule.levels_from(start)
    made = model.run(denoiser, mixed.to(model.device), options, generator, levels, **watch)
    level = (1 - share) / gain[0] + share / gain[1]
    return (made[0, :longest].cpu() * level).numpy()
