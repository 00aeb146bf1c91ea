"""DiffWave: diffusion model of waveforms (Kong et al., ICLR 2021, https://arxiv.org/abs/2009.09761).

Steered by a mel spectrogram it is a vocoder, by a label a speaker of digits, by nothing a source of sound; see
``inference``. The network learns to predict the noise in ``sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`` (Eq. 7).
Diffusion time counts from 0 here: the paper's step 25 is 24.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from svclib.audio import synthesis
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import layers
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.models.diffwave.cached_inference import CachedDenoiser
from svclib.models.diffwave.network import CONDITIONERS, STEP_DIMS, STEP_RULES, DiffWaveNet
from svclib.models.layers import Mels, Samples
from svclib.models.vocoders.harmonic import HarmonicSource
from svclib.utils import budget, rng
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ModelError
from svclib.utils.serialization import Settings, setting

FAST_ETAS = (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.5)  # the paper's six steps for BASE; LARGE ends with 0.7
LEAST_SPREAD, LEAST_PEAK = 0.1, 1e-3
LEAST_LEVEL, LEVEL = 1e-3, 0.4  # of ``level``: the quietest sound it follows, and RMS over spread


@dataclasses.dataclass(frozen=True)
class DiffWaveSettings(Settings):
    """Everything that defines a DiffWave apart from its features and its training data.

    Attributes:
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
        source: ``none``, the paper's, or ``harmonic``: F0 as a second input, see ``harmonic.HarmonicSource``.
    """

    kind: str = setting("diffwave", choices=("diffwave",))
    condition: str = setting("mel", choices=("mel", "label", "none"))
    channels: int = setting(64, 1, 1024)
    n_layers: int = setting(30, 1, 128)
    dilation_cycle: int = setting(10, 1, 14)
    conditioner: str = setting("frames", choices=CONDITIONERS)
    condition_dims: int = setting(128, 1, 1024)
    labels: tuple[str, ...] | list[str] = ()
    n_steps: int = setting(50, 2, 1000)
    beta_first: float = setting(1e-4, 1e-8, 0.5)
    beta_last: float = setting(0.05, 1e-8, 0.99)
    fast_etas: tuple[float, ...] | list[float] = FAST_ETAS
    loss: str = setting("l2", choices=("l2", "l1"))
    step_rule: str = setting("exact", choices=STEP_RULES)
    squeeze: int = setting(1, 1, 64)
    peak: float = setting(0.0, 0.0, 1.0)
    sound_s: float = setting(1.0, 0.01, 60.0)
    prior: str = setting("standard", choices=("standard", "energy", "level"))
    source: str = setting("none", choices=("none", "harmonic"))

    def __post_init__(self):
        super().__post_init__()
        if bool(self.labels) != (self.condition == "label"):
            raise ConfigError("labels lists the classes of a 'label' model, and is empty for any other.")
        known = sorted({label for label in self.labels if label})
        if list(self.labels) != known or len(known) > 64:
            raise ConfigError("labels has to be at most 64 different names in sorted order, as a dataset has them.")
        if self.condition != "mel" and (self.prior, self.source) != ("standard", "none"):
            raise ConfigError("prior and source are for a vocoder, which follows a mel: leave 'standard' and 'none'.")
        if self.peak and self.condition == "mel":
            raise ConfigError("peak is for models without a mel: a mel determines the level. Leave it 0.")
        if len(self.fast_etas) > 64:
            raise ConfigError(f"fast_etas has {len(self.fast_etas)} steps; a fast schedule has at most 64.")
        if self.fast_etas:
            self.schedule.aligned_levels(self.fast_etas)
        size = self.n_layers * self.channels * (8 * self.channels + STEP_DIMS + 2 * self.condition_dims)
        name = f"A DiffWave of {self.n_layers} layers of {self.channels} channels"
        budget.require("network", name, Cost(values=size), error=ConfigError)

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
        """A model with fresh weights from ``seed``; raises ModelError if the features do not suit.

        Of the dataset's statistics ``log_mel`` (``min`` and ``max``) sets the scale of the mel.
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


class DiffWaveModel(layers.MelScaled):
    """A network with its schedule, its mel contract and its loss."""

    def __init__(self, settings: DiffWaveSettings, features: FeatureSettings, statistics: Mapping | None = None):
        super().__init__()
        s, mel = settings, features.mel
        if s.condition == "mel" and mel is None:
            raise ModelError("A vocoder is steered by a mel, but these features have no mel contract.")
        if features.hop_samples % s.squeeze:
            raise ModelError(f"squeeze is {s.squeeze}; it has to divide the hop of {features.hop_samples} samples.")
        self.settings, self.features, self.schedule = s, features, s.schedule
        self.contract = mel if s.condition == "mel" else None
        self.net = DiffWaveNet(
            **{name: getattr(s, name) for name in ("channels", "n_layers", "dilation_cycle", "conditioner")},
            **{name: getattr(s, name) for name in ("condition_dims", "step_rule", "n_steps", "squeeze")},
            n_mels=0 if self.contract is None else mel.n_mels,
            hop_samples=features.hop_samples,
            n_labels=len(s.labels),
            sourced=s.source != "none",
        )
        self.source = HarmonicSource(features) if s.source == "harmonic" else None
        if self.contract is not None:
            self.set_mel_range(mel, statistics)
            self.register_buffer("power_share", torch.tensor(power_shares(mel)), persistent=False)

    @property
    def loss_name(self) -> str:
        """The loss in words, for curves and tables."""
        return f"mean {'square' if self.settings.loss == 'l2' else 'absolute'} error of the {self.settings.prediction}"

    def prior_std(self, mel: Mels) -> Samples | None:
        """Standard deviation of the noise at every sample: 1 (None), or of a prior that follows the mel's energy.

        PriorGrad (Lee et al. 2022, https://arxiv.org/abs/2106.06406, section 4.1): the root of a frame's summed mel
        amplitudes over the largest that training knew, not below 0.1, held for the samples of the frame. ``level`` is
        2.5 times the RMS that the mel implies, on straight lines between frames; -60 dB at least.
        """
        if self.settings.prior == "standard":
            return None
        base, log_mel = math.exp(self.contract.nepers_per_unit), self.unscale(mel)
        if self.settings.prior == "level":
            level = (self.power_share * (base**log_mel).square()).sum(dim=2).sqrt()
            level = synthesis.upsample_linear(level, self.contract.hop_samples)
            return (level / LEVEL).clamp_min(LEAST_LEVEL / LEVEL)
        energy = (base**log_mel).sum(dim=2) / (base**self.mel_high).sum()
        return energy.sqrt().clamp(LEAST_SPREAD, 1.0).repeat_interleave(self.contract.hop_samples, dim=1)

    def gain(self, x: Samples) -> Float[Tensor, "batch 1"]:
        """Gain that brings signals to the training level; at most 60 dB, so silence stays silent."""
        if not self.settings.peak:
            return torch.ones_like(x[:, :1])
        return self.settings.peak / x.abs().amax(dim=1, keepdim=True).clamp_min(LEAST_PEAK)

    def label_numbers(self, labels: Sequence[str]) -> Int[Tensor, " batch"]:
        """Names of labels as the network's numbers; raises ModelError for a name it was not trained with."""
        known = list(self.settings.labels)
        for name in labels:
            if name not in known:
                raise ModelError(f"This model was not trained with the label '{name}'; it knows {', '.join(known)}.")
        return torch.tensor([known.index(name) for name in labels], device=self.device)

    def conditions(self, batch: Mapping[str, Tensor], locked: bool = False) -> dict[str, Tensor]:
        """The conditions of a dataset's batch, by the network's names: ``mel`` (scaled) with ``source``, or ``label``.

        A harmonic source has the phase of the batch's own sound if ``locked``, as training needs it. ModelError if the
        batch has recordings without a label the model knows.
        """
        if self.settings.condition == "none":
            return {}
        if self.settings.condition == "mel":
            conditions = {"mel": self.scale(batch["log_mel"])}
            if self.source is not None:
                inputs = [batch[name] for name in ("log_mel", "f0_hz", "voiced")]
                source = self.source.locked(batch["audio"], *inputs) if locked else self.source.songs(*inputs)
                conditions["source"] = source.to(self.device)
            return conditions
        known = self.settings.labels
        if wrong := [i for i in batch["label"].tolist() if not 0 <= i < len(known)]:
            which = "a recording without label" if wrong[0] < 0 else f"label number {wrong[0]}"
            raise ModelError(
                f"The dataset has {which}; this model knows {len(known)} labels ({', '.join(known)}). Prepare the "
                "recordings with a pattern for their labels."
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
    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Samples:
        """Audio from the batch's mels or labels, or unconditional, by the fast schedule."""
        batch = {k: v.to(self.device) for k, v in batch.items()}
        denoiser = self.prepare(**self.conditions(batch))
        return self.sample(denoiser, tuple(batch["audio"].shape), SamplingOptions(seed=seed))

    def prepare(self, precision: str = "auto", **conditions: Tensor) -> CachedDenoiser:
        """The network bound to its :meth:`conditions`; ``auto`` precision is fp32 here."""
        std = self.prior_std(conditions["mel"]) if "mel" in conditions else None
        precision = "fp32" if precision == "auto" else precision
        unit = std if self.settings.prior == "level" else None
        prior_std = 1.0 if std is None else std
        return CachedDenoiser(self.net, precision=precision, unit=unit, prior_std=prior_std, **conditions)

    @torch.no_grad()
    def sample(
        self,
        denoiser: Any,
        shape: tuple[int, int],
        options: SamplingOptions | None = None,
        fast: bool = True,
        callback: Callable[[SamplerStep], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Samples:
        """Audio of ``shape`` (signals, samples) from noise; it may exceed -1 .. 1.

        ``denoiser`` is from :meth:`prepare`, or any ``(x_t, t) -> eps``. Of the options sampler (``ddpm``), steps,
        temperature and seed count; without steps every trained one is taken, or with ``fast`` those of
        ``settings.fast_etas``, where there are any. Equal seeds give equal noise on every device.
        """
        o, levels = options or SamplingOptions(), None
        generator = torch.Generator().manual_seed(o.seed)
        noise = torch.randn(shape, generator=generator).to(self.device) * getattr(denoiser, "prior_std", 1.0)
        noise = noise if o.temperature is None else noise * o.temperature
        if o.steps is None and fast and self.settings.fast_etas:
            levels = self.schedule.aligned_levels(self.settings.fast_etas)
        elif o.steps is None:
            levels = self.schedule.levels_from(self.schedule.n_steps - 1)
        return self.run(denoiser, noise, o, generator, levels, callback, cancelled)

    def run(self, denoiser, x_t, options, generator, levels, callback=None, cancelled=None) -> Samples:
        """``samplers.sample`` from ``x_t``, by ``ddpm``, the paper's, where the options name no sampler."""
        o = dataclasses.replace(options, sampler=options.sampler or "ddpm")
        return samplers.sample(denoiser, levels or self.schedule, x_t, o, None, generator, callback, cancelled)
