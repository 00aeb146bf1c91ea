"""Ranges of settings, and descriptions of controls from which panels and the command line are generated."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check(settings: Any, ranges: Mapping[str, tuple], error: type[ValueError], owner: str = "") -> None:
    """Refuse settings that are no numbers or out of range.

    A setting is a whole number where its lowest value is an ``int``. 40 and 40.0 are the same setting and are kept as
    the same number, so that they make the same JSON.

    Args:
        settings: A dataclass, frozen or not.
        ranges: The lowest and the highest value of each field, both allowed.
        error: What to raise.
        owner: Put in front of the field's name in the message.

    Raises:
        ValueError: of the class ``error``: the field, its value and its range.
    """
    for name, (low, high) in ranges.items():
        value, whole = getattr(settings, name), isinstance(low, int)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (whole and value != int(value)):
            span = f"whole number from {low} to {high}" if whole else f"number from {low:g} to {high:g}"
            raise error(f"{owner}{name} is {value!r}; expected a {span}.")
        object.__setattr__(settings, name, type(low)(value))


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


def control(default: Any, low: float | int | None = None, high: float | int | None = None, **described: Any) -> Any:
    """A dataclass field with a :class:`ControlSpec`; ``described`` are its remaining attributes."""
    return dataclasses.field(default=default, metadata={"control": {"low": low, "high": high, **described}})


def control_specs(settings: Any) -> list[ControlSpec]:
    """The controls of a dataclass (or an instance) in the order of its fields."""
    fields = [field for field in dataclasses.fields(settings) if "control" in field.metadata]
    return [ControlSpec(field.name, field.default, **field.metadata["control"]) for field in fields]


def check_controls(settings: Any, error: type[ValueError]) -> None:
    """Refuse values that their :class:`ControlSpec` does not allow; None is allowed where it is the default."""
    specs = {spec.name: spec for spec in control_specs(settings)}
    given = {name: spec for name, spec in specs.items() if not (getattr(settings, name) is spec.default is None)}
    check(settings, {name: (spec.low, spec.high) for name, spec in given.items() if spec.low is not None}, error)
    for name, spec in given.items():
        value = getattr(settings, name)
        if isinstance(spec.default, bool) and not isinstance(value, bool):
            raise error(f"{name} is {value!r}; expected True or False.")
        if spec.choices is not None and value not in spec.options:
            raise error(f"{name} is {value!r}; expected one of {', '.join(spec.options)}.")
