"""Settings checked by the same rule everywhere: which numbers they may be."""

from collections.abc import Mapping
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
