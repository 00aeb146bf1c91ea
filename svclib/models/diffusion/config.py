"""What defines a diffusion model apart from its features and its training data."""

import dataclasses

from svclib.models.content.base import CONTENT_ENCODERS
from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import PREDICTIONS
from svclib.models.diffusion.schedule import Schedule
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils import validation
from svclib.utils.errors import ModelError

_RANGES = {
    "code_dims": (1, 4096),
    "code_noise": (0.0, 100.0),
    "warp_range": (0.0, 0.9),
    "equaliser_db": (0.0, 60.0),
    "content_channels": (1, 4096),
    "content_layers": (1, 100),
    "channels": (1, 4096),
    "n_layers": (1, 200),
    "dilation_cycle": (1, 14),
    "condition_dims": (1, 4096),
    "coarse_channels": (1, 4096),
    "coarse_layers": (1, 100),
    "coarse_weight": (0.0, 1000.0),
    "condition_dropout": (0.0, 0.99),
    "vocoder_weight": (0.0, 1000.0),
    "vocoder_rows": (1, 4096),
    "n_steps": (2, 100_000),
    "sampler_steps": (1, 100_000),
    "temperature": (0.0, 2.0),
}

MAX_SQUARES = 100_000_000  # about a billion weights


@dataclasses.dataclass(frozen=True)
class DiffusionChoices:
    """Everything that defines a diffusion model apart from its features and its training data.

    Attributes:
        kind: Always ``diffusion``.
        content: A key of ``content.base.CONTENT_ENCODERS``; part of the model. Encoders that read cached content
            features need ``FeatureSettings.units``.
        code_dims, code_noise, warp_range, equaliser_db: The bottleneck and its perturbation, see
        ``content.Bottleneck``.
        content_channels, content_layers: Size of the content encoder.
        channels, n_layers, dilation_cycle: The denoiser; 384, 20, 4 is Diff-SVC's.
        condition_dims: Size of the condition per frame.
        prediction: What the network puts out; outside it is always the noise. See ``denoiser.Denoiser``.
        coarse_channels, coarse_layers: The coarse head.
        coarse_weight: Its share in the loss.
        n_steps, beta_first, beta_last: The noise schedule.
        condition_dropout: Probability with which each condition is left out in training.
        sampler, sampler_steps, temperature: What previews and conversions use unless told otherwise.
        vocoder: Of the vocoder that is trained beside it, on the recordings' own mels, and goes into the same
            instrument; None for none.
        vocoder_weight: Its share in the loss; its weights are its own, so only the clipped gradient is shared.
        vocoder_rows: Pieces of a batch that it is trained on.
    """

    kind: str = "diffusion"
    content: str = "bottleneck"
    code_dims: int = 16
    code_noise: float = 0.25
    warp_range: float = 0.2
    equaliser_db: float = 6.0
    content_channels: int = 192
    content_layers: int = 3
    channels: int = 384
    n_layers: int = 20
    dilation_cycle: int = 4
    condition_dims: int = 256
    prediction: str = "residual"
    coarse_channels: int = 256
    coarse_layers: int = 4
    coarse_weight: float = 0.5
    n_steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    condition_dropout: float = 0.1
    sampler: str = "dpmpp"
    sampler_steps: int = 20
    temperature: float = 1.0
    vocoder: HarmonicSettings | None = None
    vocoder_weight: float = 0.1
    vocoder_rows: int = 2

    def __post_init__(self):
        if self.kind != "diffusion":
            raise ModelError(f"These are settings of a '{self.kind}' model; DiffusionSettings are for 'diffusion'.")
        if self.content not in CONTENT_ENCODERS:
            known = ", ".join(CONTENT_ENCODERS)
            raise ModelError(f"There is no content encoder '{self.content}'; choose one of: {known}.")
        validation.check(self, _RANGES, ModelError)
        size = self.n_layers * self.channels**2 + self.content_layers * self.content_channels**2
        if size > MAX_SQUARES:
            raise ModelError(
                f"{self.n_layers} layers of {self.channels} channels are too large a network: layers times channels "
                f"squared are at most {MAX_SQUARES:,} with the content encoder's; the full model has 3 million."
            )
        if self.prediction not in PREDICTIONS:
            raise ModelError(f"prediction is '{self.prediction}'; choose one of {', '.join(PREDICTIONS)}.")
        Schedule(self.n_steps, self.beta_first, self.beta_last)
        samplers.times(Schedule(self.n_steps), self.sampler, self.sampler_steps)
