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
        label: In panels; made of the name if empty.
        help: One phrase for tooltips, ``--help`` and tables.
        group: Heading under which panels show it.
        flags: Of the command line: the first is documented, the others are older spellings. Made of the name if empty.
        metavar: Of the command line; words after ``|`` are allowed in place of a number.
        suggestions: Usual values of a number whose default is None, for a menu.
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
    suggestions: tuple = ()

    def __post_init__(self):
        words = self.name.removesuffix("_db").split("_")
        unit = " (dB)" if self.name.endswith("_db") else ""
        object.__setattr__(self, "label", self.label or " ".join(words).capitalize() + unit)
        object.__setattr__(self, "flags", self.flags or (f"--{'-'.join(words)}",))

    @property
    def options(self) -> tuple[str, ...]:
        """The allowed texts; empty where any value of the type is allowed."""
        return tuple(self.choices() if callable(self.choices) else self.choices or ())

    @property
    def range_text(self) -> str:
        """Such as ``-3 to 3`` or ``1 or more``; empty without a range."""
        if self.low is None:
            return ""
        return f"{self.low:g} or more" if self.high >= 100_000 else f"{self.low:g} to {self.high:g}"


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
    """Refuse values that their :class:`ControlSpec` does not allow; fields without one are left as they are."""
    try:
        check(settings, [spec.name for spec in control_specs(settings)])
    except ConfigError as found:
        raise error(str(found)) from None
