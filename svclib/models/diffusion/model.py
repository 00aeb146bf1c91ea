"""Diffusion singing voice conversion on log-mels: conditions, mel denoiser, coarse mel, and how they are trained.

What is sung (content), how high (F0 and voicing), how loud and by whom (singer) become one condition per frame. A
denoiser learns to name the noise in a log-mel scaled to -1 .. 1 (Ho et al. 2020, Eq. 14; the network is Diff-SVC's:
DiffWave's without its mel upsampler, over frames). Beside it a small regression head guesses the mel at once: the
*coarse* mel, where a shallow walk may start. Each condition is left out on its own in training, with a learned null
vector in its place, so that one may be switched off afterwards and the model still knows what that means.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from svclib.audio import griffin_lim
from svclib.features.condition_inputs import ConditionInputs
from svclib.features.extract import FeatureSettings
from svclib.features.f0 import fill_unvoiced
from svclib.models import layers
from svclib.models.content import base as content_base
from svclib.models.ddsp.model import Synthesis
from svclib.models.diffusion import samplers
from svclib.models.diffusion.config import DiffusionChoices
from svclib.models.diffusion.denoiser import CONDITIONS, PIECE_FRAMES, Conditions, Denoiser, Prepared, best_precision
from svclib.models.diffusion.schedule import Schedule
from svclib.models.vocoders.harmonic import HarmonicVocoder
from svclib.utils import rng
from svclib.utils.errors import ModelError

SPREADS = (0.02, 1.0)  # least and greatest error the coarse head may admit to, in units of the scaled mel
SPREAD_WEIGHT = 0.1


@dataclasses.dataclass(frozen=True)
class DiffusionSettings(DiffusionChoices):
    """Everything that defines a diffusion model; its attributes are those of ``diffusion_settings``."""

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "DiffusionModel":
        """A model with fresh weights; equal seeds give equal weights, torch's own generator stays as it was.

        The features must carry a mel contract. Of the dataset's statistics ``log_mel`` (``min`` and ``max``, numbers or
        one per mel) sets the scale, ``loudness_db`` the range it sings in, and ``singers``, sorted, who can sing.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return DiffusionModel(self, features, statistics)


class DiffusionModel(nn.Module):
    """Content encoder, conditions, denoiser and coarse head, trained as one."""

    def __init__(self, settings: DiffusionSettings, features: FeatureSettings, statistics: Mapping | None = None):
        super().__init__()
        contract = features.mel
        if contract is None:
            raise ModelError("A diffusion model works on log-mels, but these features have no mel contract.")
        self.settings, self.features, self.contract = settings, features, contract
        self.schedule = Schedule(settings.n_steps, settings.beta_first, settings.beta_last)
        self.singers = tuple(sorted((statistics or {}).get("singers") or ("voice",)))  # the order of a dataset
        low, high = self._range(statistics)
        self.register_buffer("mel_low", low)
        self.register_buffer("mel_high", high)
        known = (statistics or {}).get("loudness_db") or {}
        self.loudness_range_db = (known.get("min"), known.get("max"))
        s = settings
        self.content = content_base.build(s, features)
        self.conditions = Conditions(contract, self.content.dims, len(self.singers), s.condition_dims)
        self.denoiser = Denoiser(
            contract.n_mels,
            s.channels,
            s.n_layers,
            s.dilation_cycle,
            s.condition_dims,
            self.schedule,
            s.prediction,
        )
        self.coarse = layers.ConvStack(s.condition_dims, s.coarse_channels, contract.n_mels, s.coarse_layers)
        self.doubt = nn.Conv1d(s.condition_dims, contract.n_mels, 1)
        nn.init.zeros_(self.doubt.weight)
        nn.init.constant_(self.doubt.bias, math.log(0.3))
        self.vocoder = HarmonicVocoder(s.vocoder, features) if s.vocoder else None

    def _range(self, statistics: Mapping | None) -> tuple[Tensor, Tensor]:
        """Lowest and highest log-mel, by mel: the dataset's, or floor .. 2 nepers where nothing is known."""
        default = {"min": self.contract.log_floor, "max": 2.0 / self.contract.nepers_per_unit}
        known = (statistics or {}).get("log_mel") or default
        # By numpy: on the meta device torch would load its compiler for this, which takes seconds.
        low, high = (np.full(self.contract.n_mels, known[k], dtype=np.float32) for k in ("min", "max"))
        # A band that never moves still needs a scale.
        return torch.tensor(low), torch.tensor(np.maximum(high, low + np.float32(1.0 / self.contract.nepers_per_unit)))

    @property
    def loss_name(self) -> str:
        """What the loss measures, for curves and tables."""
        what = f"mean square noise + {self.settings.coarse_weight:g} mean absolute coarse mel (mels scaled to -1 .. 1)"
        return f"{what} + {self.settings.vocoder_weight:g} {self.vocoder.loss_name}" if self.vocoder else what

    def guess(
        self, condition: Float[Tensor, "batch dims frames"]
    ) -> tuple[Float[Tensor, "batch mels frames"], Float[Tensor, "batch mels frames"]]:
        """The coarse mel, scaled to about -1 .. 1, and by how much it expects to be off, everywhere."""
        # Detached: learning to doubt must not disturb what is learned.
        spread = self.doubt(condition.detach()).float()
        return self.coarse(condition).float(), spread.clamp(math.log(SPREADS[0]), math.log(SPREADS[1])).exp()

    def scale(self, log_mel: Float[Tensor, "batch frames mels"]) -> Float[Tensor, "batch mels frames"]:
        """Log-mel -> -1 .. 1, channels first."""
        return (2 * (log_mel - self.mel_low) / (self.mel_high - self.mel_low) - 1).transpose(1, 2)

    def unscale(self, x0: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch frames mels"]:
        """The inverse of :meth:`scale`."""
        return (x0.transpose(1, 2) + 1) / 2 * (self.mel_high - self.mel_low) + self.mel_low

    def singer_weights(self, weights: Mapping[str, int | float] | str | None = None) -> Float[Tensor, "1 singers"]:
        """Names with weights, one name, or None (the first singer) -> weights that add to 1."""
        wanted = {weights: 1.0} if isinstance(weights, str) else dict(weights or {self.singers[0]: 1.0})
        unknown = sorted(set(wanted) - set(self.singers))
        if unknown:
            raise ModelError(f"This model has no singer '{unknown[0]}'; it knows {', '.join(self.singers)}.")
        total = sum(wanted.values())
        if min(wanted.values()) < 0 or not 0 < total < math.inf:
            raise ModelError("Singer weights must be 0 or more, and not all 0.")
        row = torch.tensor([[wanted.get(name, 0.0) / total for name in self.singers]])
        return row.to(self.mel_low)

    def loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Noise error plus coarse error on a batch of the dataset, both on mels scaled to -1 .. 1.

        Args:
            batch: As of ``dataset.Dataset.batch``; ``audio`` only for a vocoder, ``content`` only where it is read.
            generator: Of times, noise, perturbation and of what is left out.

        Returns:
            The loss, whose value compares steps, and its parts: ``noise`` (mean square), ``coarse`` (mean absolute) and
            with a vocoder ``vocoder``, its spectral loss on ``audio``. Its gradient is that of what is to be learnt:
            the network's own output (see ``denoiser.Denoiser.loss``) in place of the noise, and besides ``spread``, the
            coarse error's negative log-likelihood, at its best at 1.25 times the mean absolute error (as if normal).
        """
        size = batch["log_mel"].shape[0]
        dropped = rng.uniform((size, len(CONDITIONS)), generator)
        dropped = (dropped < self.settings.condition_dropout).to(batch["log_mel"].device)
        return self._loss(batch, generator, generator, dropped)

    @torch.no_grad()
    def validation_loss(self, batch: Mapping[str, Tensor], seed: int = 0) -> Float[Tensor, ""]:
        """As :meth:`loss` with nothing perturbed or left out, on noise and times that depend on ``seed`` alone."""
        return self._loss(batch, torch.Generator().manual_seed(seed), None, None)[0]

    def _loss(self, batch, generator, perturbation, dropped):
        log_mel = batch["log_mel"]
        code = self.content(ConditionInputs.from_batch(batch), perturbation)
        singer = F.one_hot(batch["singer"].long(), len(self.singers)).to(log_mel)
        condition = self.conditions(code, batch["f0_hz"], batch["voiced"], batch["loudness_db"], singer, dropped)
        x0 = self.scale(log_mel)
        size = x0.shape[0]
        n_steps = self.schedule.n_steps
        t = (rng.stratified_uniform(size, generator) * n_steps).long().clamp_max(n_steps - 1).to(x0.device)
        noise = rng.normal(tuple(x0.shape), generator).to(x0)
        guess, spread = self.guess(condition)
        projected = self.denoiser.stack.project(condition)
        own, of_noise = self.denoiser.loss(x0, t.float(), noise, projected, guess.detach(), spread.detach())
        parts = {
            "noise": of_noise,
            "coarse": F.l1_loss(guess, x0),
            "spread": ((x0 - guess.detach()).abs() / (0.8 * spread) + spread.log()).mean(),
        }
        total = of_noise + self.settings.coarse_weight * parts["coarse"]
        lesson = own + SPREAD_WEIGHT * parts["spread"] - of_noise
        total = total + (lesson - lesson.detach())  # a change of the gradient alone
        if self.vocoder is not None:
            rows, factor = rng.first_rows(generator, size, size if dropped is None else self.settings.vocoder_rows)
            pieces = {name: batch[name][:rows] for name in ("audio", "log_mel", "f0_hz", "voiced")}
            parts["vocoder"] = factor * self.vocoder.loss(pieces, generator)[0]
            total = total + self.settings.vocoder_weight * parts["vocoder"]
        return total, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def condition(
        self,
        log_mel: Tensor,
        source_f0_hz: Tensor,
        f0_hz: Tensor,
        voiced: Tensor,
        loudness_db: Tensor,
        singer: Tensor | None = None,
        without: Sequence[str] = (),
        piece_frames: int = PIECE_FRAMES,
        content: Tensor | None = None,
    ) -> Float[Tensor, "batch dims frames"]:
        """Everything the denoiser is told about a song, computed once, in pieces that equal the whole.

        Args:
            log_mel: ``[batch, frames, mels]`` of the source, for the content encoder.
            source_f0_hz: ``[batch, frames]`` of the source, filled over unvoiced frames.
            f0_hz: ``[batch, frames]``, what is to be sung; read only where voiced.
            voiced: ``[batch, frames]`` bool, where a pitch is to be sung.
            loudness_db: ``[batch, frames]``; held within the range of the model's recordings, see :meth:`beyond`.
            singer: From :meth:`singer_weights`; the first singer if None.
            without: Names of ``CONDITIONS`` to switch off: their learned null takes their place.
            piece_frames: Frames computed at once.
            content: ``[batch, frames, dims]``, cached content features of the source, where its encoder reads them.

        Returns:
            The condition. Only it and the content's cepstra and code are kept whole (1 kB a frame in the full model).
        """
        unknown = sorted(set(without) - set(CONDITIONS))
        if unknown:
            raise ModelError(f"There is no condition '{unknown[0]}'; there are {', '.join(CONDITIONS)}.")
        source = ConditionInputs(log_mel, source_f0_hz, voiced, loudness_db, content)
        code = self.content.encode(source, piece_frames)
        singer = (self.singer_weights() if singer is None else singer).expand(len(code), -1)
        dropped = torch.tensor([[name in without for name in CONDITIONS]], device=code.device).expand(len(code), -1)

        loudness_db = self._known(loudness_db)

        def told(low, high):
            tracks = (x[:, low:high] for x in (code, f0_hz, voiced, loudness_db))
            return (self.conditions(*tracks, singer, dropped if without else None),)

        return layers.in_pieces(told, code.shape[1], piece_frames, self.conditions.halo)[0]

    def beyond(self, loudness_db: Float[Tensor, "batch frames"]) -> Float[Tensor, "batch frames"]:
        """What loudness asks for outside the range of the recordings, as a change of the log-mel in its own log base.

        Asked for a level it never heard, a network answers anything: it sings at the nearest, and the rest is gain.
        """
        return (loudness_db - self._known(loudness_db)) / self.contract.to_db(1.0)

    def _known(self, loudness_db: Tensor) -> Tensor:
        low, high = self.loudness_range_db
        return loudness_db if low is None or high is None else loudness_db.clamp(low, high)

    @torch.no_grad()
    def song_guess(
        self, condition: Float[Tensor, "batch dims frames"], piece_frames: int = PIECE_FRAMES
    ) -> tuple[Float[Tensor, "batch mels frames"], Float[Tensor, "batch mels frames"]]:
        """:meth:`guess` of a song of any length, in pieces that equal the whole."""
        guess, spread = layers.in_pieces(
            lambda low, high: self.guess(condition[..., low:high]), condition.shape[-1], piece_frames, self.coarse.halo
        )
        return guess, spread

    def prepare(self, condition: Tensor, precision: str = "auto", **options) -> "Prepared":
        """A denoiser for the samplers, all that does not depend on ``x_t`` computed ahead: :class:`Prepared`."""
        guess, spread = self.song_guess(condition, options.get("piece_frames", PIECE_FRAMES))
        return Prepared(self.denoiser, condition, guess, spread, precision, **options)

    @torch.no_grad()
    def coarse_mel(self, condition: Float[Tensor, "batch dims frames"]) -> Float[Tensor, "batch frames mels"]:
        """The regression head's log-mel."""
        return self.unscale(self.song_guess(condition)[0].clamp(-1, 1))

    def walked(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """What a walk does that is told so much of it (``sampler``, ``steps``, ``temperature``, ``precision``, more):
        the settings' own where nothing is said, and the precision that ``auto`` is on this machine."""
        own = self.settings
        made = {"sampler": own.sampler, "steps": own.sampler_steps, "temperature": own.temperature, **sampling}
        if made.get("precision", "auto") == "auto":
            made["precision"] = best_precision(next(self.parameters()).device)
        return made

    def noise(
        self, n_frames: int, seed: int | torch.Generator = 0, temperature: int | float | None = None, batch: int = 1
    ) -> Float[Tensor, "batch mels frames"]:
        """What a walk over so many frames begins with; see :meth:`sample`."""
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        temperature = self.settings.temperature if temperature is None else temperature
        return temperature * torch.randn((batch, self.contract.n_mels, n_frames), generator=generator)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor,
        method: str | None = None,
        steps: int | None = None,
        shallow: int | None = None,
        seed: int = 0,
        precision: str = "auto",
        callback: Callable | None = None,
        cancelled: Callable | None = None,
        prepared: "Prepared | Callable[[Tensor, float], Tensor] | None" = None,
        temperature: int | float | None = None,
        **options,
    ) -> Float[Tensor, "batch frames mels"]:
        """Sing: walk from noise, or from the coarse mel noised to step ``shallow``, to a log-mel.

        Args:
            condition: From :meth:`condition`.
            method: One of ``samplers.METHODS``; the settings' own by default.
            steps: Of the sampler; the settings' own number by default.
            shallow: Start step 1 .. ``n_steps`` (Diff-SVC's k_step); None starts from pure noise.
            seed: Of the first noise and, for ``ddpm``, of the walk. The same on every device.
            precision: See :class:`Prepared`; unread where ``prepared`` is given.
            callback: Sees every ``samplers.SamplerStep``; changes no bit of the result.
            cancelled: Asked before each call of the denoiser and each of its pieces; True raises ``Cancelled``.
            prepared: To reuse, when the same song is sung again; or another function of ``x_t`` and time.
            temperature: Factor of all noise of the walk (as in Grad-TTS, Popov et al. 2021); below 1 the result comes
                nearer to what the model thinks likely: smoother, less varied. The settings' own by default.
            **options: ``piece_frames``, ``cache_bytes`` of :class:`Prepared`; the result does not depend on them.

        Returns:
            Log-mel in the contract's logarithm, within the range the model was scaled by.
        """
        generator = torch.Generator().manual_seed(seed)
        temperature = self.settings.temperature if temperature is None else temperature
        if not 0 <= temperature <= 2:
            raise ModelError(f"The temperature is {temperature}; it runs from 0 to 2, where 1 is as in training.")
        x_t = self.noise(condition.shape[-1], generator, temperature, len(condition)).to(condition)
        start_t = None
        prepared = prepared or self.prepare(condition, precision, cancelled=cancelled, **options)
        if shallow is not None:
            if not 1 <= shallow <= self.schedule.n_steps:
                raise ModelError(f"The shallow start is {shallow}; it runs from 1 to {self.schedule.n_steps}.")
            guess = getattr(prepared, "guess", None)
            if guess is None:
                raise ModelError("A shallow start needs a prepared song, which knows the coarse mel.")
            start_t = shallow - 1
            t = torch.full((len(condition),), start_t, device=condition.device)
            x_t = self.schedule.diffuse(guess.clamp(-1, 1), t, x_t)
        x0 = samplers.sample(
            prepared,
            self.schedule,
            x_t,
            method or self.settings.sampler,
            steps or self.settings.sampler_steps,
            start_t,
            clip=1.0,
            generator=generator,
            temperature=temperature,
            callback=callback,
            cancelled=cancelled,
        )
        return self.unscale(x0)

    def reconstruct_mel(
        self, batch: Mapping[str, Tensor], seed: int = 0, **options
    ) -> Float[Tensor, "batch frames mels"]:
        """Sing a batch of the dataset again from its own conditions: what previews show."""
        singer = F.one_hot(batch["singer"].long(), len(self.singers)).to(self.mel_low)
        f0_hz = batch["f0_hz"]
        told = f0_hz, batch["voiced"], batch["loudness_db"], singer
        condition = self.condition(batch["log_mel"], f0_hz, *told, content=batch.get("content"))
        return self.sample(condition, seed=seed, **options)

    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0, **options) -> Float[Tensor, "batch samples"]:
        """:meth:`reconstruct_mel` made audible by the vocoder, or by phase reconstruction where there is none."""
        log_mel = self.reconstruct_mel(batch, seed, **options)
        if self.vocoder is not None:
            return self.vocoder(log_mel, batch["f0_hz"], batch["voiced"], seed)
        return griffin_lim.griffin_lim(log_mel, self.contract, seed=seed)

    @torch.no_grad()
    def render(
        self,
        log_mel: np.ndarray,
        source_f0_hz: np.ndarray,
        source_voiced: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        loudness_db: np.ndarray,
        singer: Mapping[str, int | float] | str | None = None,
        seed: int = 0,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable | None = None,
        vocoder: Any = None,
        content: np.ndarray | None = None,
        **sampling,
    ) -> Synthesis:
        """Sing a song: conditions, one walk over the whole of it, vocoder.

        Args:
            log_mel: ``[frames, mels]`` of the source by this model's contract.
            source_f0_hz: ``[frames]`` of the source; filled where it is unvoiced.
            source_voiced: ``[frames]`` of the source.
            f0_hz: ``[frames]``, what is to be sung.
            voiced: ``[frames]``, where a pitch is to be sung.
            loudness_db: ``[frames]``, what is to be sung; beyond the model's range it is gain, see :meth:`beyond`.
            singer: See :meth:`singer_weights`.
            seed: Of the walk and of the vocoder's noise.
            progress: Called with a fraction and a text.
            cancelled: Asked at every sampler step and every piece of sound.
            vocoder: Another one than its own: what has ``contract`` and ``render`` (``vocoding.AnyVocoder``).
            content: ``[frames, dims]``, cached content features of the source, where its encoder reads them.
            **sampling: As of :meth:`sample`, all but ``callback``; ``piece_frames`` holds for the conditions too.

        Returns:
            float32 ``[frames * hop]`` each; a vocoder that knows no parts gives all of it as ``harmonic``.

        Raises:
            ModelError: if there is no vocoder, or for impossible sampling.
            ModelError: if the vocoder understands another mel only.
        """
        if vocoder is not None:
            vocoder.contract.require(self.contract, f"the vocoder '{vocoder.name}'", "this instrument")
        vocoder = vocoder or self.vocoder
        if vocoder is None:
            raise ModelError("This model was trained without a vocoder; choose one, or train again with one.")
        report = progress or (lambda fraction, text: None)
        place = self.mel_low.device
        pitches = fill_unvoiced(source_f0_hz, source_voiced), fill_unvoiced(f0_hz, voiced)
        source, wanted, mel, loudness = (
            torch.as_tensor(np.asarray(x), dtype=torch.float32, device=place)[None]
            for x in (*pitches, log_mel, loudness_db)
        )
        sounding = torch.as_tensor(np.asarray(voiced), dtype=torch.bool, device=place)[None]
        report(0.0, "conditions")
        piece_frames = sampling.get("piece_frames", PIECE_FRAMES)
        weights = self.singer_weights(singer)
        content = None if content is None else torch.as_tensor(np.asarray(content), device=place)[None]
        condition = self.condition(
            mel, source, wanted, sounding, loudness, weights, piece_frames=piece_frames, content=content
        )
        sung = self.sample(
            condition,
            seed=seed,
            cancelled=cancelled,
            **sampling,
            callback=lambda step: report(0.8 * (step.index + 1) / step.n_calls, f"step {step.index + 1}"),
        )
        floor = self.contract.log_floor
        sung = (sung + self.beyond(loudness)[..., None]).clamp_min(floor)
        return vocoder.render(
            sung[0].cpu().numpy(),
            f0_hz,
            voiced,
            seed,
            cancelled=cancelled,
            progress=lambda fraction, text: report(0.8 + 0.2 * fraction, text),
        )
