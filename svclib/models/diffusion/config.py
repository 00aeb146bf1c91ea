"""Settings of the diffusion model."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from svclib.features.extract import FeatureSettings
from svclib.models import layers
from svclib.models.content.base import CONTENT_ENCODERS
from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import DENOISERS, PREDICTIONS
from svclib.models.diffusion.schedule import Schedule
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.utils.errors import ConfigError
from svclib.utils.serialization import Settings, setting

if TYPE_CHECKING:
    from svclib.models.diffusion.model import DiffusionModel

MAX_SQUARES = 25_000_000  # about 250 million weights: what an instrument file may hold


@dataclasses.dataclass(frozen=True)
class DiffusionSettings(Settings):
    """Everything that defines a diffusion model apart from its features and its training data.

    Attributes:
        kind: Always ``diffusion``.
        content: A key of ``content.base.CONTENT_ENCODERS``. Encoders that read cached content features need
            ``FeatureSettings.units``.
        code_dims, code_noise, warp_range, equaliser_db: The bottleneck and its perturbation, see
            ``content.bottleneck.Bottleneck``.
        content_channels, content_layers: Size of the content encoder.
        channels, n_layers, dilation_cycle: Size of the denoiser; 384, 20, 4 is Diff-SVC's.
        condition_dims: Size of the condition per frame.
        prediction: What the denoiser's output means, see ``denoiser.Parameterization``.
        coarse_channels, coarse_layers: Size of the coarse mel head.
        coarse_weight: Weight of its loss.
        n_steps, beta_first, beta_last: The noise schedule.
        condition_dropout: Probability with which each condition is replaced by its null in training.
        sampler, sampler_steps, temperature: Defaults of sampling.
        vocoder: Settings of a vocoder that is trained beside the model and stored with it; None for none.
        vocoder_weight: Weight of its loss; it shares no parameters, only the gradient clipping.
        vocoder_rows: Excerpts of a batch that it is trained on.
        denoiser: A key of ``denoiser.DENOISERS``.
        retrieval_size: Content vectors of each singer in the retrieval codebook; 0 for none. Export sets it.
    """

    kind: str = setting("diffusion", choices=("diffusion",))
    content: str = setting("bottleneck", choices=CONTENT_ENCODERS)
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
    sampler_steps: int = setting(20, 1, 100_000)
    temperature: float = setting(1.0, 0.0, 2.0)
    vocoder: HarmonicSettings | None = None
    vocoder_weight: float = setting(0.1, 0.0, 1000.0)
    vocoder_rows: int = setting(2, 1, 4096)
    denoiser: str = setting("wavenet", choices=DENOISERS)
    retrieval_size: int = setting(0, 0, 65536)

    def __post_init__(self):
        super().__post_init__()
        size = self.n_layers * self.channels**2 + self.content_layers * self.content_channels**2
        if size > MAX_SQUARES:
            raise ConfigError(
                f"{self.n_layers} layers of {self.channels} channels are too large a network: layers times channels "
                f"squared are at most {MAX_SQUARES:,} with the content encoder's; the full model has 3 million."
            )
        samplers.sampling_times(self.schedule, self.sampler, self.sampler_steps)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return Schedule(self.n_steps, self.beta_first, self.beta_last)

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "DiffusionModel":
        """A model with fresh weights; equal seeds give equal weights, torch's global generator is untouched.

        The features must have a mel. Of the dataset's statistics ``log_mel`` (``min`` and ``max``, numbers or one per
        mel) sets the scale, ``loudness_db`` the loudness range and ``singers``, sorted, the singer table.
        """
        from svclib.models.diffusion.model import DiffusionModel

        with layers.seeded(seed):
            return DiffusionModel(self, features, statistics)
