"""Options of one sampling run of a diffusion model."""

import dataclasses

from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import PRECISIONS
from svclib.utils.errors import ConversionError
from svclib.utils.validation import check_controls, control

MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of one sampling run; None stands for the model's own setting (``DiffusionSettings``)."""

    sampler: str | None = control(
        None,
        choices=lambda: tuple(samplers.METHODS),
        label="Sampler",
        help="sampling algorithm",
        flags=("--sampler",),
        metavar="NAME",
    )
    steps: int | None = control(
        None,
        1,
        100_000,
        label="Steps",
        help="sampling steps: more take longer and follow the model more closely",
        flags=("--steps",),
        metavar="N",
    )
    shallow: int | None = control(
        None,
        1,
        100_000,
        label="Shallow start",
        help="start from the coarse mel with the noise of this diffusion step instead of from pure noise",
        flags=("--shallow",),
        metavar="N",
    )
    temperature: float | None = control(
        None,
        0.0,
        2.0,
        label="Temperature",
        help="factor of the sampling noise: below 1 smoother and less varied",
        flags=("--temperature",),
    )
    seed: int = control(
        0,
        0,
        MAX_SEED,
        label="Seed",
        help="of all noise: the same number gives the same sound",
        flags=("--seed",),
        metavar="S",
    )
    precision: str = control(
        "auto",
        choices=PRECISIONS,
        label="Precision",
        help="auto is the fastest that this machine computes well, fp32 is exact",
        flags=("--precision",),
        metavar="NAME",
    )

    def __post_init__(self):
        check_controls(self, ConversionError)

    def given(self) -> dict[str, str | int | float]:
        """The options that differ from their defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
