"""Diffusion voice conversion on log-mels: content encoder, conditions, denoiser, coarse mel, training losses.

Content, F0 with voicing, loudness and singer become one condition per frame. A denoiser predicts the noise in a log-mel
scaled to -1 .. 1 (Ho et al. 2020, Eq. 14). A small regression head beside it predicts the *coarse* mel, where shallow
diffusion starts. In training each condition is replaced by a learned null vector now and then (classifier-free
guidance, Ho and Salimans 2021), so that it may be switched off at inference.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio.mel import griffin_lim
from svclib.features.extract import ConditionInputs, FeatureSettings
from svclib.models import layers
from svclib.models.content import base as content_base
from svclib.models.ddsp.model import Synthesis
from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import (
    CONDITIONS,
    DENOISERS,
    DISTILLED_LEVELS,
    PREDICTIONS,
    CachedDenoiser,
    Conditions,
    Distillation,
    GuidedDenoiser,
    Parameterization,
)
from svclib.models.diffusion.samplers import CHUNK_FRAMES, SamplerStep, SamplingOptions
from svclib.models.diffusion.schedule import Schedule
from svclib.models.layers import Condition, Frames, LogMels, Mels, Samples
from svclib.models.vocoders.harmonic import HarmonicSettings, HarmonicVocoder, Vocoder, render_batch
from svclib.utils import budget, rng
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ModelError
from svclib.utils.serialization import Settings, setting

COARSE_STD = (0.02, 1.0)  # range of the coarse head's expected error, in units of the scaled mel
COARSE_STD_WEIGHT = 0.1
WEIGHTS_PER_SQUARE = 10  # about, for layers times channels squared


@dataclasses.dataclass(frozen=True)
class DiffusionSettings(Settings):
    """Everything that defines a diffusion model apart from its features and its training data.

    Attributes:
        content: A key of ``content.base.CONTENT_ENCODERS``. Encoders that read cached content features need
            ``FeatureSettings.units``.
        code_dims, code_noise, warp_range, equaliser_db: The bottleneck and its perturbation, see
            ``content.bottleneck.Bottleneck``; ``content_channels`` and ``content_layers`` are its size.
        channels, n_layers, dilation_cycle: Size of the denoiser; 384, 20, 4 is Diff-SVC's.
        condition_dims: Size of the condition per frame.
        prediction: What the denoiser's output means, see ``denoiser.Parameterization``.
        coarse_channels, coarse_layers, coarse_weight: The coarse mel head and the weight of its loss.
        n_steps, beta_first, beta_last: The noise schedule.
        condition_dropout: Probability with which each condition is replaced by its null in training.
        sampler, sampler_steps, temperature: Defaults of sampling.
        temperature_tilt: How much of the temperature is gone at the highest mel band, falling linearly from the lowest.
        vocoder: Settings of a vocoder that is trained beside the model and stored with it; None for none. It shares no
            parameters, only the gradient clipping.
        vocoder_weight, vocoder_rows: Weight of its loss (0: it stays as it is, such as the base model's), and excerpts
            of a batch that it is trained on.
        denoiser: A key of ``denoiser.DENOISERS``.
        retrieval_size: Content vectors of each singer in the retrieval codebook; 0 for none. Export sets it.
    """

    kind: str = setting("diffusion", choices=("diffusion",))
    content: str = setting("bottleneck", choices=content_base.CONTENT_ENCODERS)
    code_dims: int = setting(16, 1, 4096)
    code_noise: float = setting(0.25, 0.0, 100.0)
    warp_range: float = setting(0.2, 0.0, 0.9)
    equaliser_db: float = setting(6.0, 0.0, 60.0)
    content_channels: int = setting(192, 1, 4096)
    content_layers: int = setting(3, 1, 100)
    channels: int = setting(384, 1, 4096)
    n_layers: int = setting(20, 1, 200)
    dilation_cycle: int = setting(4, 1, 14)
    condition_dims: int = setting(256, 1, 4096)
    prediction: str = setting("residual", choices=PREDICTIONS)
    coarse_channels: int = setting(256, 1, 4096)
    coarse_layers: int = setting(4, 1, 100)
    coarse_weight: float = setting(0.5, 0.0, 1000.0)
    n_steps: int = setting(1000, 2, 100_000)
    beta_first: float = 1e-4
    beta_last: float = 0.02
    condition_dropout: float = setting(0.1, 0.0, 0.99)
    sampler: str = "dpmpp"
    sampler_steps: int = setting(20, 1, 1000)
    temperature: float = setting(1.0, 0.0, 2.0)
    temperature_tilt: float = setting(0.0, 0.0, 1.0)
    vocoder: HarmonicSettings | None = None
    vocoder_weight: float = setting(0.1, 0.0, 1000.0)
    vocoder_rows: int = setting(2, 1, 4096)
    denoiser: str = setting("wavenet", choices=DENOISERS)
    retrieval_size: int = setting(0, 0, 65536)

    def __post_init__(self):
        super().__post_init__()
        size = self.n_layers * self.channels**2 + self.content_layers * self.content_channels**2
        name = f"A denoiser of {self.n_layers} layers of {self.channels} channels with its content encoder"
        budget.require("network", name, Cost(values=WEIGHTS_PER_SQUARE * size), error=ConfigError)
        samplers.sampling_times(self.schedule, self.sampler, self.sampler_steps)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return Schedule(self.n_steps, self.beta_first, self.beta_last)

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "DiffusionModel":
        """A model with fresh weights from ``seed`` for features with a mel.

        Of the dataset's statistics ``log_mel`` (``min`` and ``max``) sets the scale, ``loudness_db`` the loudness range
        and ``singers``, sorted, the singer table.
        """
        with layers.seeded(seed):
            return DiffusionModel(self, features, statistics)


class DiffusionModel(layers.MelScaled):
    """Content encoder, conditions, denoiser and coarse head, trained jointly."""

    def __init__(self, settings: DiffusionSettings, features: FeatureSettings, statistics: Mapping | None = None):
        super().__init__()
        if features.mel is None:
            raise ModelError("A diffusion model works on log-mels, but these features have no mel.")
        s = settings
        self.settings, self.features, self.contract, self.schedule = s, features, features.mel, s.schedule
        self.parameterization = Parameterization(s.schedule, s.prediction)
        self.singers = tuple(sorted((statistics or {}).get("singers") or ("voice",)))  # the order of a dataset
        self.set_mel_range(features.mel, statistics)
        known = (statistics or {}).get("loudness_db") or {}
        self.loudness_range_db = (known.get("min"), known.get("max"))
        self.content = content_base.build(s, features)
        self.conditions = Conditions(self.contract, self.content.dims, len(self.singers), s.condition_dims)
        self.denoiser = DENOISERS[s.denoiser].from_settings(s, self.contract.n_mels)
        self.coarse = layers.ConvStack(s.condition_dims, s.coarse_channels, self.contract.n_mels, s.coarse_layers)
        self.distillation: Distillation | None = None
        self.doubt = nn.Conv1d(s.condition_dims, self.contract.n_mels, 1)  # log standard deviation of the coarse mel
        nn.init.zeros_(self.doubt.weight)
        nn.init.constant_(self.doubt.bias, math.log(0.3))
        self.vocoder = HarmonicVocoder(s.vocoder, features) if s.vocoder else None
        size = s.retrieval_size
        self.codebook = content_base.ContentCodebook(len(self.singers), size, self.content.dims) if size else None

    @property
    def loss_name(self) -> str:
        """The loss in words, for curves and tables."""
        if self.settings.prediction == "consistency":
            return "mean square of a jump against the teacher's step and a shorter jump (in expected errors of the mel)"
        what = f"mean square noise + {self.settings.coarse_weight:g} mean absolute coarse mel (mels scaled to -1 .. 1)"
        weight = self.settings.vocoder_weight
        return f"{what} + {weight:g} {self.vocoder.loss_name}" if self.vocoder and weight else what

    def singer_weights(self, weights: Mapping[str, int | float] | str | None = None) -> Float[Tensor, "1 singers"]:
        """Names with weights, one name, or None (the first singer) -> weights that add to 1."""
        target = {weights: 1.0} if isinstance(weights, str) else dict(weights or {self.singers[0]: 1.0})
        unknown = sorted(set(target) - set(self.singers))
        if unknown:
            raise ModelError(f"This model has no singer '{unknown[0]}'; it knows {', '.join(self.singers)}.")
        total = sum(target.values())
        if min(target.values()) < 0 or not 0 < total < math.inf:
            raise ModelError("Singer weights must be 0 or more, and not all 0.")
        return torch.tensor([[target.get(name, 0.0) / total for name in self.singers]]).to(self.mel_low)

    # Training ---------------------------------------------------------------------------------------------------------

    def loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Noise error plus coarse error on a batch of the dataset, both on mels scaled to -1 .. 1, and the parts.

        The parts are ``noise`` (mean square), ``coarse`` (mean absolute), ``spread`` (negative log-likelihood of the
        coarse error) and with a vocoder ``vocoder``, its spectral loss. Gradients are those of the network's own output
        error (``Parameterization.loss``) in place of the noise error, and of ``spread`` besides. The generator draws
        times, noise, perturbation and condition dropout. A student's loss is ``Distillation.loss``, without parts.
        """
        size = batch["log_mel"].shape[0]
        dropped = rng.uniform((size, len(CONDITIONS)), generator)
        dropped = (dropped < self.settings.condition_dropout).to(batch["log_mel"].device)
        return self._loss(batch, generator, generator, dropped)

    @torch.no_grad()
    def validation_loss(self, batch: Mapping[str, Tensor], seed: int = 0) -> Float[Tensor, ""]:
        """As :meth:`loss` without perturbation and dropout, on noise and times that depend on ``seed`` alone.

        Of a student ``Distillation.one_step_error``.
        """
        return self._loss(batch, torch.Generator().manual_seed(seed), None, None)[0]

    def _loss(self, batch, generator, perturbation, dropped):
        inputs = ConditionInputs.from_batch(batch)
        singer = F.one_hot(batch["singer"].long(), len(self.singers)).to(inputs.log_mel)
        code = self.content(inputs, perturbation)
        condition = self.conditions(code, inputs.f0_hz, inputs.voiced, inputs.loudness_db, singer, dropped)
        x0 = self.scale(inputs.log_mel)
        size, n_steps = x0.shape[0], self.schedule.n_steps
        if self.settings.prediction == "consistency":
            return self._distillation_loss(x0, condition, generator, dropped is not None), {}
        t = (rng.stratified_uniform(size, generator) * n_steps).long().clamp_max(n_steps - 1).to(x0.device)
        noise = rng.normal(tuple(x0.shape), generator).to(x0)
        coarse, std = self.coarse_and_std(condition)
        # The coarse mel is detached here: the denoiser's error must not train the coarse head.
        output_loss, noise_loss = self.parameterization.loss(
            self.denoiser, x0, t.float(), noise, self.denoiser.precompute(condition), coarse.detach(), std.detach()
        )
        parts = {
            "noise": noise_loss,
            "coarse": F.l1_loss(coarse, x0),
            # -log p of a Laplace distribution; its scale is 0.8 std, the mean absolute error of a normal one
            "spread": ((x0 - coarse.detach()).abs() / (0.8 * std) + std.log()).mean(),
        }
        total = noise_loss + self.settings.coarse_weight * parts["coarse"]
        # The value stays the noise loss (comparable curves); the gradient is that of the output loss.
        correction = output_loss + COARSE_STD_WEIGHT * parts["spread"] - noise_loss
        total = total + (correction - correction.detach())
        if self.vocoder is not None and self.settings.vocoder_weight:
            rows, factor = rng.first_rows(generator, size, size if dropped is None else self.settings.vocoder_rows)
            excerpts = {name: batch[name][:rows] for name in ("audio", "log_mel", "f0_hz", "voiced")}
            parts["vocoder"] = factor * self.vocoder.loss(excerpts, generator)[0]
            total = total + self.settings.vocoder_weight * parts["vocoder"]
        return total, {name: value.detach() for name, value in parts.items()}

    def distil(self, teacher: "DiffusionModel", average: "DiffusionModel") -> None:
        """Make this model the student of another, whose other parts it shares: only its denoiser takes gradients."""
        self.requires_grad_(False).denoiser.requires_grad_(self.training)
        levels = map(self.schedule.level, samplers.sampling_times(self.schedule, "consistency", DISTILLED_LEVELS))
        self.distillation = Distillation(teacher.denoiser, average.denoiser, list(levels))

    def _distillation_loss(self, x0, condition, generator, training) -> Float[Tensor, ""]:
        size, distillation = len(x0), self.distillation
        mean, std = (x.detach() for x in self.coarse_and_std(condition))
        noise, temperature = rng.normal(tuple(x0.shape), generator).to(x0), self.settings.temperature
        temperature = temperature * self.noise_std.to(x0)
        if training:  # around the temperature of sampling: noise and residual shrink together along the flow
            temperature = temperature * (0.5 + rng.uniform((size, 1, 1), generator).to(x0))
        residual, noise = temperature * (x0 - mean) / std, temperature * noise
        if not training:
            return distillation.one_step_error(self.denoiser, residual, noise, condition, std)
        index = (rng.stratified_uniform(size, generator) * DISTILLED_LEVELS).long().clamp_max(DISTILLED_LEVELS - 1)
        return distillation.loss(self.denoiser, residual, noise, index.to(x0.device), condition, std)

    # Conditions and coarse mel ----------------------------------------------------------------------------------------

    def coarse_and_std(self, condition: Condition) -> tuple[Mels, Mels]:
        """The coarse mel, scaled to about -1 .. 1, and its expected error in every bin."""
        # Detached: learning the error must not change the condition.
        log_std = self.doubt(condition.detach()).float()
        return self.coarse(condition).float(), log_std.clamp(*map(math.log, COARSE_STD)).exp()

    @torch.no_grad()
    def condition(
        self,
        source: ConditionInputs,
        target: ConditionInputs | None = None,
        singer: Tensor | None = None,
        without: Sequence[str] = (),
        retrieval: float | int = 0.0,
        chunk_frames: int = CHUNK_FRAMES,
    ) -> Condition:
        """The condition of a song, computed once, in chunks that equal the whole: 1 kB a frame in the full model.

        The content encoder reads ``source``; F0, voicing and loudness come from ``target``, by default the same.
        Loudness is clamped to the range of training, see :meth:`loudness_excess`. ``singer`` comes from
        :meth:`singer_weights`; ``without`` names ``CONDITIONS`` to replace by their null; ``retrieval`` is the share
        of the content that is taken from the codebook.
        """
        unknown = sorted(set(without) - set(CONDITIONS))
        if unknown:
            raise ModelError(f"There is no condition '{unknown[0]}'; there are {', '.join(CONDITIONS)}.")
        target = source if target is None else target
        code = self.content.encode(source, chunk_frames)
        singer = (self.singer_weights() if singer is None else singer).expand(len(code), -1)
        if retrieval:
            if self.codebook is None:
                raise ModelError("This model has no codebook for retrieval; export it again with its dataset.")
            code = torch.lerp(code, self.codebook.nearest(code, singer), float(retrieval))
        dropped = torch.tensor([[name in without for name in CONDITIONS]], device=code.device).expand(len(code), -1)
        tracks = (code, target.f0_hz, target.voiced, self._clamp_loudness(target.loudness_db))

        def encode_chunk(low, high):
            return (self.conditions(*(x[:, low:high] for x in tracks), singer, dropped if without else None),)

        return layers.run_in_chunks(encode_chunk, code.shape[1], chunk_frames, self.conditions.halo)[0]

    def loudness_excess(self, loudness_db: Frames) -> Frames:
        """Loudness outside the training range, as an offset of the log-mel in its own log base.

        The network does not extrapolate, so its condition is clamped and the remainder applied as gain.
        """
        return (loudness_db - self._clamp_loudness(loudness_db)) / self.contract.to_db(1.0)

    def _clamp_loudness(self, loudness_db: Tensor) -> Tensor:
        low, high = self.loudness_range_db
        return loudness_db if low is None or high is None else loudness_db.clamp(low, high)

    # Sampling ---------------------------------------------------------------------------------------------------------

    def resolve_sampling(self, options: SamplingOptions | None = None) -> SamplingOptions:
        """The options with None replaced by the settings' values, and ``auto`` precision resolved."""
        o, own = options or SamplingOptions(), self.settings
        settings = {"sampler": own.sampler, "steps": own.sampler_steps, "temperature": own.temperature}
        settings = {name: value for name, value in settings.items() if getattr(o, name) is None}
        precision = layers.resolve_precision(self.device, o.precision)
        resolved = dataclasses.replace(o, **settings, precision=precision)
        if own.prediction == "consistency" and not samplers.SAMPLERS[resolved.sampler].jumps:
            raise ModelError(
                f"A distilled model knows jumps only; '{resolved.sampler}' cannot use it. Take consistency."
            )
        return resolved

    @torch.no_grad()
    def prepare(
        self, condition: Condition, options: SamplingOptions | None = None, cancelled: Callable[[], bool] | None = None
    ) -> CachedDenoiser:
        """The denoiser bound to a condition, for samplers; everything independent of ``x_t`` is precomputed."""
        o, n_frames = options or SamplingOptions(), condition.shape[-1]

        def coarse_chunk(low: int, high: int) -> tuple[Mels, Mels]:
            return self.coarse_and_std(condition[..., low:high])

        coarse = layers.run_in_chunks(coarse_chunk, n_frames, o.chunk_frames, self.coarse.halo)
        noise_std = self.noise_std.to(condition.device)
        return CachedDenoiser(self.denoiser, self.parameterization, condition, coarse, o, noise_std, cancelled)

    def guided(
        self,
        source: ConditionInputs,
        target: ConditionInputs | None,
        singer: Tensor,
        options: SamplingOptions,
        cancelled: Callable[[], bool] | None = None,
    ) -> tuple[Condition, CachedDenoiser | GuidedDenoiser]:
        """The condition of a song with the options' retrieval, and a denoiser with their guidance."""

        def bound(*without: str) -> tuple[Condition, CachedDenoiser]:
            made = self.condition(source, target, singer, without, options.retrieval, options.chunk_frames)
            return made, self.prepare(made, options, cancelled)

        condition, full = bound()
        weights = {"content": options.words_guidance, "singer": options.voice_guidance}
        without = [(float(weight), bound(name)[1]) for name, weight in weights.items() if weight]
        return condition, GuidedDenoiser(full, without) if without else full

    def add_codebook(self, content: Sequence[np.ndarray], size: int = 512) -> None:
        """Build the retrieval codebook from content vectors ``[frames, dims]`` of each singer's recordings."""
        self.codebook = content_base.ContentCodebook(len(self.singers), size, self.content.dims).to(self.device)
        self.codebook.fit(content)
        self.settings = dataclasses.replace(self.settings, retrieval_size=size)

    def initial_noise(
        self, n_frames: int, seed: int | torch.Generator = 0, temperature: int | float | None = None, batch: int = 1
    ) -> Mels:
        """The noise that a sampling run of so many frames starts with."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        temperature = self.settings.temperature if temperature is None else temperature
        noise = torch.randn((batch, self.contract.n_mels, n_frames), generator=generator)
        return temperature * self.noise_std * noise

    @property
    def noise_std(self) -> Float[Tensor, "mels 1"]:
        """Standard deviation of the sampling noise in each mel band at a temperature of 1."""
        return torch.linspace(1.0, 1.0 - self.settings.temperature_tilt, self.contract.n_mels)[:, None]

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        options: SamplingOptions | None = None,
        denoiser: CachedDenoiser | Callable[[Tensor, float], Tensor] | None = None,
        callback: Callable[[SamplerStep], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> LogMels:
        """Sample a log-mel (in its own log base, within the range of training) from noise or the noised coarse mel.

        ``condition`` comes from :meth:`condition`; ``denoiser`` from :meth:`prepare`, to use it again, or it is another
        ``(x_t, t) -> eps``. ``callback`` is called with every ``SamplerStep`` and does not affect the result.
        """
        o = self.resolve_sampling(options)
        generator = torch.Generator().manual_seed(o.seed)
        x_t = self.initial_noise(condition.shape[-1], generator, o.temperature, len(condition)).to(condition)
        denoiser = denoiser or self.prepare(condition, o, cancelled)
        if o.shallow is not None:
            if not 1 <= o.shallow <= self.schedule.n_steps:
                raise ModelError(f"The shallow start is {o.shallow}; it runs from 1 to {self.schedule.n_steps}.")
            coarse = getattr(denoiser, "coarse", None)
            if coarse is None:
                raise ModelError("A shallow start needs a denoiser from model.prepare(), which has the coarse mel.")
            t = torch.full((len(condition),), o.shallow - 1, device=condition.device)
            x_t = self.schedule.diffuse(coarse.clamp(-1, 1), t, x_t)
        return self.unscale(samplers.sample(denoiser, self.schedule, x_t, o, 1.0, generator, callback, cancelled))

    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Samples:
        """Audio of a batch of the dataset sampled from its own conditions, by Griffin-Lim where there is no vocoder."""
        singer = F.one_hot(batch["singer"].long(), len(self.singers)).to(self.mel_low)
        condition = self.condition(ConditionInputs.from_batch(batch), singer=singer)
        log_mel = self.sample(condition, SamplingOptions(seed=seed))
        if self.vocoder is not None:
            return render_batch(self.vocoder, log_mel, batch["f0_hz"], batch["voiced"], seed)
        return griffin_lim(log_mel, self.contract, seed=seed)

    @torch.no_grad()
    def render(
        self,
        source: ConditionInputs,
        target: ConditionInputs | None = None,
        singer: Mapping[str, int | float] | str | None = None,
        options: SamplingOptions | None = None,
        vocoder: Vocoder | None = None,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """Render a song: conditions, one sampling run over the whole of it, vocoder; float32 ``[frames * hop]``.

        ``source`` are measurements of the source recording, a batch of one; F0, voicing and loudness come from
        ``target``, by default the same. The options' seed is the vocoder's too; another ``vocoder`` than the model's
        own has to have its mel.
        """
        if vocoder is not None:
            vocoder.contract.require(self.contract, f"the vocoder '{vocoder.name}'", "this instrument")
        vocoder = vocoder or self.vocoder
        if vocoder is None:
            raise ModelError("This model was trained without a vocoder; choose one, or train again with one.")
        report = progress or (lambda fraction, text: None)
        target, options = source if target is None else target, options or SamplingOptions()
        report(0.0, "conditions")
        condition, denoiser = self.guided(source, target, self.singer_weights(singer), options, cancelled)

        def step_done(step: SamplerStep) -> None:
            report(0.8 * (step.index + 1) / step.n_calls, f"step {step.index + 1}")

        log_mel = self.sample(condition, options, denoiser, step_done, cancelled)
        log_mel = (log_mel + self.loudness_excess(target.loudness_db)[..., None]).clamp_min(self.contract.log_floor)
        return vocoder.render(
            *(x[0].cpu().numpy() for x in (log_mel, target.f0_hz, target.voiced)),
            seed=options.seed,
            cancelled=cancelled,
            progress=lambda fraction, text: report(0.8 + 0.2 * fraction, text),
        )
