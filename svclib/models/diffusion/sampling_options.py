"""Options of one sampling run of a diffusion model."""

import dataclasses

from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import PRECISIONS
from svclib.utils.control_spec import check_controls, control
from svclib.utils.errors import ConversionError

MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Options of one sampling run; None stands for the model's own setting (``DiffusionSettings``)."""

    sampler: str | None = control(
        None, choices=lambda: tuple(samplers.METHODS), metavar="NAME", help="sampling algorithm"
    )
    steps: int | float | None = control(
        None,
        1,
        100_000,
        metavar="N",
        suggestions=(5, 10, 20, 50, 100, 200, 1000),
        help="sampling steps: more take longer and follow the model more closely",
    )
    shallow: int | float | None = control(
        None,
        1,
        100_000,
        metavar="N",
        label="Shallow start",
        suggestions=(50, 100, 150, 200, 300, 400, 500, 600, 700, 800, 900),
        help="start from the model's coarse mel, noised to this diffusion step of 1000, instead of from pure noise",
    )
    temperature: float | int | None = control(
        None,
        0.0,
        2.0,
        suggestions=(0.5, 0.7, 0.85, 1.0, 1.2),
        help="factor of the sampling noise: 0.7 smoother and steadier, 1 as varied as the recordings",
    )
    seed: int | float = control(0, 0, MAX_SEED, metavar="S", help="of all noise: the same number, the same sound")
    precision: str = control(
        "auto",
        choices=PRECISIONS,
        metavar="NAME",
        help="auto is the fastest that this machine computes well, fp32 is exact",
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
