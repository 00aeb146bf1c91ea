"""Descriptions of controls from which panels and the command line are generated."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from svclib.utils.errors import ConfigError
from svclib.utils.serialization import check, setting


@dataclasses.dataclass(frozen=True)
class ControlSpec:
    """One control of a settings dataclass; panels, command line and documentation are generated from it.

    Attributes:
        name: Of the field.
        default: None stands for a value that the model or instrument chooses.
        low, high: Range of a number, both allowed; whole numbers where ``low`` is an int. None for anything else.
        step: Of a slider.
        choices: The allowed texts, or a function that lists them (a registry).
        label: In panels.
        help: One phrase for tooltips, ``--help`` and tables.
        group: Heading under which panels show it.
        flags: Of the command line: the first is documented, the others are older spellings.
        metavar: Of the command line.
    """

    name: str
    default: Any
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None
    label: str = ""
    help: str = ""
    group: str = ""
    flags: tuple[str, ...] = ()
    metavar: str = "X"

    @property
    def options(self) -> tuple[str, ...]:
        """The allowed texts; empty where any value of the type is allowed."""
        return tuple(self.choices() if callable(self.choices) else self.choices or ())

    @property
    def range_text(self) -> str:
        """Such as ``-3 to 3``; empty without a range."""
        return "" if self.low is None else f"{self.low:g} to {self.high:g}"


def control(
    default: Any, low: float | int | None = None, high: float | int | None = None, choices: Any = None, **described: Any
) -> Any:
    """A field of a settings dataclass with a :class:`ControlSpec`; ``described`` are its remaining attributes."""
    metadata = {**setting(default, low, high, choices).metadata, "control": described}
    return dataclasses.field(default=default, metadata=metadata)


def control_specs(settings: Any) -> list[ControlSpec]:
    """The controls of a dataclass (or an instance) in the order of its fields."""
    fields = [field for field in dataclasses.fields(settings) if "control" in field.metadata]
    limits = ("low", "high", "choices")
    return [
        ControlSpec(f.name, f.default, **{n: f.metadata[n] for n in limits}, **f.metadata["control"]) for f in fields
    ]


def check_controls(settings: Any, error: type[ValueError]) -> None:
    """Refuse values that their :class:`ControlSpec` does not allow."""
    try:
        check(settings)
    except ConfigError as found:
        raise error(str(found)) from None
