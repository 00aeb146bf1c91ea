"""DiffWave: diffusion model of waveforms. Settings, model, training loss.

After Kong et al., *DiffWave* (ICLR 2021, https://arxiv.org/abs/2009.09761). Steered by a mel spectrogram it is a
vocoder, by a label a speaker of digits, by nothing a source of sound; ``diffwave_uses`` holds what one does with it.
The network learns to predict the noise in ``sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` (Eq. 7).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from svclib.audio import synthesis
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import layers
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions, sampling_times
from svclib.models.diffusion.schedule import NoiseLevel, Schedule
from svclib.models.diffwave import sampler
from svclib.models.diffwave.cached_inference import CachedDenoiser
from svclib.models.diffwave.harmonic_source import HarmonicSource
from svclib.models.diffwave.network import CONDITIONERS, STEP_RULES, DiffWaveNet, parameter_count, strides
from svclib.utils import rng
from svclib.utils.errors import ConfigError, ModelError
from svclib.utils.serialization import Settings, setting

CONDITIONS = ("mel", "label", "none")
PRIORS = ("standard", "energy", "level")
SOURCES = ("none", "harmonic")
LEAST_SPREAD, LEAST_PEAK = 0.1, 1e-3
LEAST_LEVEL, LEVEL = 1e-3, 0.4  # of ``level``: the quietest sound it follows, and RMS over spread
LOSSES = ("l2", "l1")
MAX_PARAMETERS = 200_000_000


@dataclasses.dataclass(frozen=True)
class DiffWaveSettings(Settings):
    """Everything that defines a DiffWave apart from its features and its training data.

    Attributes:
        kind: Always ``diffwave``.
        condition: What steers it: ``mel`` (a vocoder), ``label`` (a class) or ``none``.
        channels, n_layers, dilation_cycle: The network: BASE 64, 30, 10; LARGE 128, 30, 10; unconditional 256, 36, 12;
            deep and thin 128, 48, 12.
        conditioner: How the mel steers it: ``frames`` (made for speed) or ``samples`` (the paper's).
        condition_dims: Channels of the condition at frame rate, for ``frames``.
        labels: Names of the labels in sorted order, as a dataset has them; empty unless ``condition`` is ``label``.
        n_steps, beta_first, beta_last: The noise schedule.
        fast_etas: Fast schedule for previews and everyday use; empty for every trained step.
        loss: ``l2``, the paper's, or ``l1``.
        step_rule: ``exact``; ``table`` for converted weights, see ``network.table_embedding``.
        squeeze: Neighbouring samples that make one position of the network; 1 is the paper's.
        peak: Level every training sound is brought to, so that quiet speakers do not drown in the noise of the first
            steps; 0 leaves levels as they are. Not for ``mel``, which determines the level.
        sound_s: Default length of a generated sound, in seconds.
        prior: ``standard``, or the noise follows the mel, in training and sampling: ``energy`` as in PriorGrad (Lee
            et al. 2022); ``level`` down to silence, and the network sees every moment at one level.
        source: ``none``, the paper's, or ``harmonic``: F0 as a second input; see ``harmonic_source``.
    """

    kind: str = setting("diffwave", choices=("diffwave",))
    condition: str = setting("mel", choices=CONDITIONS)
    channels: int = setting(64, 1, 1024)
    n_layers: int = setting(30, 1, 128)
    dilation_cycle: int = setting(10, 1, 14)
    conditioner: str = setting("frames", choices=CONDITIONERS)
    condition_dims: int = setting(128, 1, 1024)
    labels: tuple[str, ...] | list[str] = ()
    n_steps: int = setting(50, 2, 1000)
    beta_first: float = setting(1e-4, 1e-8, 0.5)
    beta_last: float = setting(0.05, 1e-8, 0.99)
    fast_etas: tuple[float, ...] | list[float] = sampler.FAST["base"]
    loss: str = setting("l2", choices=LOSSES)
    step_rule: str = setting("exact", choices=STEP_RULES)
    squeeze: int = setting(1, 1, 64)
    peak: float = setting(0.0, 0.0, 1.0)
    sound_s: float = setting(1.0, 0.01, 60.0)
    prior: str = setting("standard", choices=PRIORS)
    source: str = setting("none", choices=SOURCES)

    def __post_init__(self):
        super().__post_init__()
        if bool(self.labels) != (self.condition == "label"):
            raise ConfigError("labels lists the classes of a 'label' model, and is empty for any other.")
        known = sorted({label for label in self.labels if label})
        if list(self.labels) != known or len(known) > 64:
            raise ConfigError("labels has to be at most 64 different names in sorted order, as a dataset has them.")
        if self.prior != "standard" and self.condition != "mel":
            raise ConfigError(f"prior '{self.prior}' follows a mel; with another condition leave it 'standard'.")
        if self.source != "none" and self.condition != "mel":
            raise ConfigError("source 'harmonic' is for a vocoder; with another condition leave it 'none'.")
        if self.peak and self.condition == "mel":
            raise ConfigError("peak is for models without a mel: a mel determines the level. Leave it 0.")
        if len(self.fast_etas) > 64:
            raise ConfigError(f"fast_etas has {len(self.fast_etas)} steps; a fast schedule has at most 64.")
        if self.fast_etas:
            sampler.align(self.schedule, self.fast_etas)
        mels = {"n_mels": 128, "conditioner": "frames"} if self.condition == "mel" else {}
        size = parameter_count(
            self.channels,
            self.n_layers,
            **mels,
            condition_dims=self.condition_dims,
            squeeze=self.squeeze,
            sourced=self.source != "none",
        )
        if size > MAX_PARAMETERS:
            raise ConfigError(f"This network would have {size} weights; at most {MAX_PARAMETERS} are built.")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return Schedule(self.n_steps, self.beta_first, self.beta_last)

    @property
    def prediction(self) -> str:
        """Definition of the target: losses compare only where this is equal."""
        text = f"noise, {self.loss}, {self.n_steps} steps from beta {self.beta_first:g} to {self.beta_last:g}"
        text += f", sounds of peak {self.peak:g}" if self.peak else ""
        text += f", prior by {self.prior}" if self.prior != "standard" else ""
        return text + (f", {self.source} source" if self.source != "none" else "")

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "DiffWaveModel":
        """A model with these settings; raises ModelError if the features do not suit.

        Args:
            features: How the recordings are measured; a ``mel`` model needs a mel contract.
            statistics: The dataset's: ``log_mel`` (``min`` and ``max``) sets the scale of the mel; from the contract's
                floor to e^2 if None.
            seed: Of the weights; torch's own generator stays as it was.

        Returns:
            With fresh weights; equal seeds give equal ones.
        """
        with layers.seeded(seed):
            return DiffWaveModel(self, features, statistics)


def power_shares(mel: MelConfig) -> np.ndarray:
    """Weights of squared mels whose sum is the mean square of white noise of any level: float32 ``[n_mels]``.

    White noise of standard deviation s has a mean STFT magnitude of ``s sqrt(pi)/2 sqrt(3/8 window)`` (Rayleigh, Hann
    window); a filter adds up its weights, and stands for half of its width in Hz.
    """
    corners = mel.edges_hz()
    widths = (corners[2:] - corners[:-2]) / 2
    sums = (np.ones_like(widths) if mel.norm == "slaney" else widths) * mel.n_fft / mel.sample_rate_hz
    mean_magnitude = math.sqrt(math.pi) / 2 * math.sqrt(3 / 8 * mel.window_samples) * sums
    return (widths / widths.sum() / mean_magnitude**2).astype(np.float32)


class DiffWaveModel(nn.Module):
    """A network with its schedule, its mel contract and its loss."""

    def __init__(self, settings: DiffWaveSettings, features: FeatureSettings, statistics: Mapping | None = None):
        super().__init__()
        s, mel = settings, features.mel
        if s.condition == "mel" and mel is None:
            raise ModelError("A vocoder is steered by a mel, but these features have no mel contract.")
        self.settings, self.features, self.schedule = s, features, s.schedule
        self.contract = mel if s.condition == "mel" else None
        if self.contract is not None and s.conditioner == "samples":
            strides(features.hop_samples)
        if features.hop_samples % s.squeeze:
            raise ModelError(f"squeeze is {s.squeeze}; it has to divide the hop of {features.hop_samples} samples.")
        self.net = DiffWaveNet(
            s.channels,
            s.n_layers,
            s.dilation_cycle,
            0 if self.contract is None else mel.n_mels,
            features.hop_samples,
            s.conditioner,
            s.condition_dims,
            len(s.labels),
            s.step_rule,
            s.n_steps,
            s.squeeze,
            s.source != "none",
        )
        self.source = HarmonicSource(features) if s.source == "harmonic" else None
        if self.contract is not None:
            low, high = layers.mel_range(mel, statistics)
            self.register_buffer("power_share", torch.tensor(power_shares(mel)), persistent=False)
            self.register_buffer("mel_low", low)
            self.register_buffer("mel_high", high)

    @property
    def loss_name(self) -> str:
        """The loss in words, for curves and tables."""
        return f"mean {'square' if self.settings.loss == 'l2' else 'absolute'} error of the {self.settings.prediction}"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.net.input.weight.device

    def scale(self, log_mel: Float[Tensor, "batch frames mels"]) -> Float[Tensor, "batch mels frames"]:
        """Log-mel -> about -1 .. 1, channels first."""
        return (2 * (log_mel - self.mel_low) / (self.mel_high - self.mel_low) - 1).transpose(1, 2)

    def prior_std(self, mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch samples"] | None:
        """Standard deviation of the noise at every sample: 1 (None), or of a prior that follows the mel's energy.

        PriorGrad (Lee et al. 2022, https://arxiv.org/abs/2106.06406, section 4.1): the root of a frame's summed mel
        amplitudes over the largest that training knew, not below 0.1, held for the samples of the frame. ``level`` is
        2.5 times the RMS that the mel implies, on straight lines between frames; -60 dB at least.
        """
        if self.settings.prior == "standard":
            return None
        base = math.exp(self.contract.nepers_per_unit)
        log_mel = (mel.transpose(1, 2) + 1) / 2 * (self.mel_high - self.mel_low) + self.mel_low
        if self.settings.prior == "level":
            level = (self.power_share * (base**log_mel).square()).sum(dim=2).sqrt()
            level = synthesis.upsample_linear(level, self.contract.hop_samples)
            return (level / LEVEL).clamp_min(LEAST_LEVEL / LEVEL)
        energy = (base**log_mel).sum(dim=2) / (base**self.mel_high).sum()
        return energy.sqrt().clamp(LEAST_SPREAD, 1.0).repeat_interleave(self.contract.hop_samples, dim=1)

    def gain(self, x: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 1"]:
        """Gain that brings signals to the training level; at most 60 dB, so silence stays silent."""
        if not self.settings.peak:
            return torch.ones_like(x[:, :1])
        return self.settings.peak / x.abs().amax(dim=1, keepdim=True).clamp_min(LEAST_PEAK)

    def label_numbers(self, labels: str | Sequence[str]) -> Int[Tensor, " batch"]:
        """Names of labels as the network's numbers; raises ModelError for a name it was not trained with."""
        names = [labels] if isinstance(labels, str) else list(labels)
        for name in names:
            if name not in self.settings.labels:
                known = ", ".join(self.settings.labels) or "no labels"
                raise ModelError(f"This model was not trained with the label '{name}'; it knows {known}.")
        return torch.tensor([self.settings.labels.index(name) for name in names], device=self.device)

    def song_conditions(
        self, log_mel: np.ndarray, f0_hz: np.ndarray | None = None, voiced: np.ndarray | None = None
    ) -> dict[str, Tensor]:
        """A song's conditions for a vocoder: mel ``[frames, mels]``, and F0 ``[frames]`` for a harmonic source.

        Raises ModelError if the F0 is needed and missing.
        """
        conditions = {"mel": self.scale(torch.from_numpy(log_mel)[None].to(self.device))}
        if self.source is not None:
            if f0_hz is None or voiced is None:
                raise ModelError("This vocoder has a harmonic source; give f0_hz and voiced too.")
            conditions["source"] = torch.from_numpy(self.source.song(log_mel, f0_hz, voiced))[None].to(self.device)
        return conditions

    def conditions(self, batch: Mapping[str, Tensor], locked: bool = False) -> dict[str, Tensor]:
        """The conditions of a dataset's batch.

        Args:
            batch: ``log_mel`` (with ``audio``, ``f0_hz`` and ``voiced`` for a harmonic source) or ``label``.
            locked: With the phase of the batch's own sound, as training needs it; else by the pitch alone.

        Returns:
            By the network's names: ``mel``, scaled, with ``source`` for a harmonic source; ``label``; or nothing.

        Raises:
            ModelError: if the batch has recordings without a label the model knows.
        """
        if self.settings.condition == "mel":
            conditions = {"mel": self.scale(batch["log_mel"])}
            if self.source is not None and locked:
                names = ("audio", "log_mel", "f0_hz", "voiced")
                conditions["source"] = self.source.locked(*(batch[name] for name in names))
            elif self.source is not None:
                rows = zip(*(batch[name].cpu().numpy() for name in ("log_mel", "f0_hz", "voiced")), strict=True)
                source = np.stack([self.source.song(*row) for row in rows])
                conditions["source"] = torch.from_numpy(source).to(self.device)
            return conditions
        if self.settings.condition == "none":
            return {}
        low, high = int(batch["label"].min()), int(batch["label"].max())
        if low < 0 or high >= len(self.settings.labels):
            which = "a recording without label" if low < 0 else f"label number {high}"
            raise ModelError(
                f"The dataset has {which}; this model knows {len(self.settings.labels)} labels "
                f"({', '.join(self.settings.labels)}). Prepare the recordings with a pattern for their labels."
            )
        return {"label": batch["label"]}

    def loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean error of the predicted noise at random diffusion times (Kong et al. 2021, Eq. 7), and its two halves."""
        x0, steps = batch["audio"] * self.gain(batch["audio"]), self.schedule.n_steps
        t = (rng.stratified_uniform(len(x0), generator) * steps).long().clamp_max(steps - 1).to(x0.device)
        noise = rng.normal(tuple(x0.shape), generator).to(x0)
        conditions = self.conditions(batch, locked=True)
        std = self.prior_std(conditions["mel"]) if "mel" in conditions else None
        if self.settings.prior == "level":  # everything in units of the prior's standard deviation
            if "source" in conditions:
                conditions["source"] = conditions["source"] / std
            x0, std = x0 / std, None
        scaled = noise if std is None else noise * std
        predicted = self.net(self.schedule.diffuse(x0, t, scaled), t.float(), **conditions).float()
        if std is not None:  # PriorGrad (Lee et al. 2022, Eq. 3): the error in standard deviations of the prior
            predicted = predicted / std
        error = (predicted - noise).square() if self.settings.loss == "l2" else (predicted - noise).abs()
        each, late = error.mean(dim=1), (t >= steps // 2).float()
        halves = {"little_noise": 1 - late, "much_noise": late}
        parts = {k: ((each * w).sum() / w.sum().clamp_min(1)).detach() for k, w in halves.items()}
        return each.mean(), parts

    @torch.no_grad()
    def validation_loss(self, batch: Mapping[str, Tensor], seed: int = 0) -> Float[Tensor, ""]:
        """The same loss on noise and times that depend on ``seed`` alone."""
        return self.loss(batch, torch.Generator().manual_seed(seed))[0]

    @torch.no_grad()
    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Float[Tensor, "batch samples"]:
        """Audio from the batch's mels or labels, or unconditional, by the fast schedule."""
        batch = {k: v.to(self.device) for k, v in batch.items()}
        shape = tuple(batch["audio"].shape)
        prepared = self.prepare(**self.conditions(batch), n_samples=shape[1], batch=shape[0])
        return self.sample(prepared, shape, SamplingOptions(seed=seed))

    def prepare(self, precision: str = "auto", **conditions) -> CachedDenoiser:
        """The network bound to its conditions; ``auto`` precision is fp32 here. See ``CachedDenoiser``."""
        std = self.prior_std(conditions["mel"]) if "mel" in conditions else None
        precision = "fp32" if precision == "auto" else precision
        unit = std if self.settings.prior == "level" else None
        denoiser = CachedDenoiser(self.net, precision=precision, unit=unit, **conditions)
        denoiser.prior_std = std
        return denoiser

    def noise_levels(self, options: SamplingOptions, fast: bool) -> list[NoiseLevel]:
        """The levels of a sampling run: of the options' steps, else of the fast schedule, else every trained step."""
        if options.steps is None and fast and self.settings.fast_etas:
            return sampler.fast_levels(self.schedule, self.settings.fast_etas)
        if options.steps is None:
            return sampler.trained_levels(self.schedule)
        return [self.schedule.level(t) for t in sampling_times(self.schedule, options.sampler or "ddpm", options.steps)]

    def sample(
        self,
        denoiser: Any,
        shape: tuple[int, int],
        options: SamplingOptions | None = None,
        fast: bool = True,
        callback: Callable[[SamplerStep], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Float[Tensor, "batch samples"]:
        """Sample audio from noise.

        Args:
            denoiser: From :meth:`prepare`, or any ``(x_t, t) -> eps``.
            shape: Number of signals and samples.
            options: Sampler (``ddpm``), steps, temperature and seed; equal seeds give equal noise on every device.
            fast: Use ``settings.fast_etas``, where there are any and the options name no steps.
            callback: Called with each step.
            cancelled: See ``utils.errors``.

        Returns:
            Audio of ``shape``; it may exceed -1 .. 1.
        """
        o, std = options or SamplingOptions(), getattr(denoiser, "prior_std", None)
        generator = torch.Generator().manual_seed(o.seed)
        noise = torch.randn(shape, generator=generator).to(self.device)
        noise = noise if std is None else noise * std
        noise = noise if o.temperature is None else noise * o.temperature
        draw = sampler.draw_noise(generator, std=std)
        return sampler.sample(denoiser, noise, self.noise_levels(o, fast), draw, o, callback, cancelled)
