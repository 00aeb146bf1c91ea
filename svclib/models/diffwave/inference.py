"""What one does with a trained DiffWave: vocode, generate, denoise, interpolate.

Denoising and interpolation are the paper's (Kong et al. 2021, section 5.4): neither was trained for. Steps are counted
from 1 here, as in the paper: ``t = 25`` is the 25th trained step.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from svclib.audio.mel import MelConfig
from svclib.models.diffusion.samplers import SamplerStep
from svclib.models.diffwave import sampler as diffwave_process
from svclib.models.diffwave.model import DiffWaveModel
from svclib.utils.errors import ModelError

READINGS = ("as_is", "scaled")


def _watch(progress, callback):
    """One callback of both."""
    if progress is None:
        return callback

    def both(step: SamplerStep) -> None:
        if callback is not None:
            callback(step)
        progress((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    return both


def _start(model: DiffWaveModel, t: int) -> int:
    if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= model.schedule.n_steps:
        raise ModelError(f"The step is {t!r}; this model's steps are whole numbers from 1 to {model.schedule.n_steps}.")
    return t - 1


def _signal(audio: np.ndarray, what: str) -> Tensor:
    samples = np.asarray(audio, dtype=np.float32)
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise ModelError(f"{what} has shape {samples.shape}; expected one channel of finite samples, at least one.")
    return torch.from_numpy(samples)


def _whole(model: DiffWaveModel, n_samples: int) -> int:
    """The next number of samples that the network can take."""
    return n_samples + -n_samples % model.net.squeeze


def condition(model: DiffWaveModel, label: str | None, batch: int) -> dict:
    """What steers generation, denoising and interpolation.

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
    contract: MelConfig,
    seed: int = 0,
    fast: bool = True,
    precision: str = "fp32",
    callback: Callable[[SamplerStep], None] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    f0_hz: np.ndarray | None = None,
    voiced: np.ndarray | None = None,
) -> np.ndarray:
    """Sound of a log-mel spectrogram.

    Args:
        model: Trained with ``condition = 'mel'``.
        log_mel: ``[frames, mels]``.
        contract: How it was measured; another one than the model's is refused.
        seed: Of all noise.
        fast: By the model's fast schedule, else by every trained step.
        precision: ``fp32`` or ``bf16``.
        callback: Sees every step.
        progress: Called with a fraction and a text.
        cancelled: Asked before each step.
        f0_hz: Pitch ``[frames]``, Hz, for a vocoder that hears it besides the mel; others leave it unread.
        voiced: Which frames have that pitch, bool ``[frames]``; needed and left unread like it.

    Returns:
        float32 ``[frames * hop]``, full scale 1, not limited.

    Raises:
        ModelError: if model and mel do not belong together.
        Cancelled: when ``cancelled()`` returns True.
    """
    if model.contract is None:
        raise ModelError("This model takes no mel, so it cannot vocode; train one with condition = 'mel'.")
    model.contract.require(contract, "the vocoder", "the spectrogram")
    values = np.asarray(log_mel, dtype=np.float32)
    if values.ndim != 2 or not len(values) or values.shape[1] != contract.n_mels or not np.isfinite(values).all():
        raise ModelError(
            f"The spectrogram has shape {values.shape}; expected finite numbers, frames by {contract.n_mels} bands."
        )
    with torch.no_grad():
        prepared = model.prepare(precision, **model.song_conditions(values, f0_hz, voiced))
    shape = (1, len(values) * contract.hop_samples)
    made = model.sample(prepared, shape, seed, fast, callback=_watch(progress, callback), cancelled=cancelled)
    return made[0].cpu().numpy()


def generate(
    model: DiffWaveModel,
    n_samples: int,
    count: int = 1,
    label: str | None = None,
    seed: int = 0,
    fast: bool = False,
    precision: str = "fp32",
    callback: Callable[[SamplerStep], None] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Sounds out of nothing but noise, and a label where the model takes one.

    Args:
        model: Trained without a mel.
        n_samples: Length of each sound.
        count: How many, made together.
        label: One of the model's labels, for all of them; None where it takes none.
        seed: Of all noise.
        fast: By the model's fast schedule, where it has one, else by every trained step.
        precision: ``fp32`` or ``bf16``.
        callback: Sees every step.
        progress: Called with a fraction and a text after each step.
        cancelled: Asked before each step.

    Returns:
        float32 ``[count, n_samples]``, not limited.

    Raises:
        ModelError: for a vocoder, a label the model does not know, or no samples.
        Cancelled: when ``cancelled()`` returns True.
    """
    if count < 1 or n_samples < 1:
        raise ModelError(f"{count} sounds of {n_samples} samples were asked for; ask for at least one of each.")
    length = _whole(model, n_samples)
    prepared = model.prepare(precision, n_samples=length, **condition(model, label, count))
    watch = _watch(progress, callback)
    made = model.sample(prepared, (count, length), seed, fast, callback=watch, cancelled=cancelled)
    return made[:, :n_samples].cpu().numpy()


def denoise_checked(model: DiffWaveModel, t: int, reading: str, label: str | None) -> int:
    """The diffusion time a walk from step ``t`` starts at, counted from 0; refuses what :func:`denoise` would."""
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
    seed: int = 0,
    precision: str = "fp32",
    callback: Callable[[SamplerStep], None] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Take noise out of a recording by walking back from step ``t`` as if the recording were the signal there.

    The paper does not say what is fed in, so both readings are offered:

    - ``as_is``: the recording itself, its noise taken for the noise of that step;
    - ``scaled``: ``sqrt(abar_t)`` of the recording, plus the Gaussian noise of that step.

    Where the model was trained at one level (``peak``), the recording is brought to it before and back afterwards.

    Args:
        model: Trained without a mel.
        audio: ``[samples]`` at the model's sample rate.
        t: Step from 1 to ``n_steps``; 25 of 200 in the paper.
        reading: One of ``READINGS``.
        label: Where the model takes one.
        seed: Of the noise of the walk, and of that of ``scaled``.
        precision: ``fp32`` or ``bf16``.
        callback: Sees every step of the walk, ``t`` of them.
        progress: Called with a fraction and a text after each.
        cancelled: Asked before each.

    Returns:
        float32 ``[samples]``, not limited.

    Raises:
        ModelError: for a vocoder, another reading, a step out of range, or audio that is none.
        Cancelled: when ``cancelled()`` returns True.
    """
    start, x = denoise_checked(model, t, reading, label), _signal(audio, "The recording")[None]
    n, gain = x.shape[1], model.gain(x)
    x = torch.nn.functional.pad(x * gain, (0, _whole(model, n) - n))
    prepared = model.prepare(precision, n_samples=x.shape[1], **condition(model, label, 1))
    generator = torch.Generator().manual_seed(seed)
    if reading == "scaled":
        x = model.schedule.diffuse(x, torch.tensor([start]), torch.randn(x.shape, generator=generator))
    made = diffwave_process.sample(
        prepared,
        model.schedule,
        x.to(model.device),
        start_t=start,
        generator=generator,
        callback=_watch(progress, callback),
        cancelled=cancelled,
    )
    return (made[0, :n].cpu() / gain[0]).numpy()


def interpolate(
    model: DiffWaveModel,
    first: np.ndarray,
    second: np.ndarray,
    lambdas: Sequence[int | float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    t: int = 50,
    shared_noise: bool = True,
    label: str | None = None,
    seed: int = 0,
    precision: str = "fp32",
    callback: Callable[[SamplerStep], None] | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Sounds between two recordings: both are noised to step ``t``, mixed there, and walked back.

    Args:
        model: Trained without a mel.
        first: ``[samples]`` at the model's sample rate.
        second: The same; the shorter one of both is followed by silence.
        lambdas: Shares of the second, 0 to 1.
        t: Step from 1 to ``n_steps``; 50 of 200 in the paper.
        shared_noise: One noise for both ends. With independent noises, as in the paper, the mix has less noise than its
            step calls for (0.245 instead of 0.346 in the middle, at step 50 of 200).
        label: Where the model takes one.
        seed: Of the noise of both ends and of the walk, which is the same for all lambdas.
        precision: ``fp32`` or ``bf16``.
        callback: Sees every step of the walk, ``t`` of them; all lambdas take it together.
        progress: Called with a fraction and a text after each.
        cancelled: Asked before each.

    Returns:
        float32 ``[lambdas, samples]``, as long as the longer recording, not limited.

    Raises:
        ModelError: for a vocoder, a step or share out of range, or audio that is none.
        Cancelled: when ``cancelled()`` returns True.
    """
    shares = torch.tensor(list(lambdas), dtype=torch.float32)[:, None]
    if not len(shares) or not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ModelError(f"The shares are {list(lambdas)}; expected numbers from 0 to 1, at least one.")
    start, ends = _start(model, t), [_signal(first, "The first sound"), _signal(second, "The second sound")]
    longest = max(map(len, ends))
    n = _whole(model, longest)
    x0 = torch.stack([torch.nn.functional.pad(end, (0, n - len(end))) for end in ends])
    gain = model.gain(x0)
    x0 = x0 * gain
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1 if shared_noise else 2, n, generator=generator).expand(2, -1)
    noisy = model.schedule.diffuse(x0, torch.tensor([start, start]), noise)
    mixed = (1 - shares) * noisy[:1] + shares * noisy[1:]
    prepared = model.prepare(precision, n_samples=n, **condition(model, label, len(mixed)))
    made = diffwave_process.sample(
        prepared,
        model.schedule,
        mixed.to(model.device),
        start_t=start,
        generator=generator,
        shared=True,
        callback=_watch(progress, callback),
        cancelled=cancelled,
    )
    level = (1 - shares) / gain[0] + shares / gain[1]
    return (made.cpu() * level)[:, :longest].numpy()
