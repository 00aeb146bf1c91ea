"""Settings classes, the controls that panels and the command line make of them, and strict reading of untrusted JSON.

A settings class is a frozen dataclass that inherits from :class:`Settings`. Each field states its range or choices with
:func:`setting`; the same check serves presets, checkpoints, instruments and the command line.
"""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any

from svclib.utils.errors import ConfigError, did_you_mean
from svclib.utils.filesystem import MAX_NAME, is_name

MAX_KEYS, MAX_ITEMS = 100_000, 2_000_000  # of untrusted JSON, counted before it is parsed
Number = float | int | None


def setting(default: Any, low: Number = None, high: Number = None, choices: Any = None, optional: bool = False) -> Any:
    """A field of a settings dataclass.

    A number (of a tuple, each element) lies from ``low`` to ``high``, both allowed. ``choices`` are the allowed values:
    a tuple, a registry, or a function that lists them. An ``optional`` field is left out of :meth:`Settings.to_json`
    while it has its default, so that the JSON (and its hash) of versions before the field stays the same.
    """
    limits = {"low": low, "high": high, "choices": choices, "optional": optional}
    return dataclasses.field(default=default, metadata=limits)


class Settings:
    """Base of frozen settings dataclasses: every field is converted to its type and checked when an instance is made.

    40 and 40.0 are the same setting and are kept as the same number, so that they make the same JSON. A ConfigError
    names the class, the field, its value and what was expected.
    """

    def __post_init__(self):
        check(self, _fields(type(self)))

    def to_json(self) -> dict:
        """The fields as plain JSON values."""
        return to_dict(self, omit_defaults=True)

    @classmethod
    def from_json(cls, record: Any):
        """The settings of a dict made by :meth:`to_json`; ConfigError for missing, unknown or wrong fields."""
        return from_dict(cls, record, cls.__name__, complete=True)


def check(settings: Any, names: Collection[str]) -> None:
    """Convert fields of a dataclass instance to their types and check their limits, see :class:`Settings`."""
    for name in names:
        hint, limits = _fields(typing.cast(typing.Hashable, type(settings)))[name]
        value = _convert(hint, getattr(settings, name), f"{type(settings).__name__}.{name}", limits)
        object.__setattr__(settings, name, value)


def to_dict(value: Any, omit_defaults: bool = False) -> Any:
    """Settings as plain JSON values: dataclasses become dictionaries, tuples lists.

    ``omit_defaults`` leaves out ``optional`` fields that have their default.
    """
    if dataclasses.is_dataclass(value):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        kept = [(f, x) for f, x in fields if not (omit_defaults and f.metadata.get("optional") and x == f.default)]
        return {f.name: to_dict(x, omit_defaults) for f, x in kept}
    if isinstance(value, (list, tuple)):
        return [to_dict(v, omit_defaults) for v in value]
    return value


def from_dict(cls: type, data: Any, where: str, complete: bool = False) -> Any:
    """Build a settings dataclass from parsed JSON, as :func:`to_dict` makes it.

    Absent keys keep their defaults; ``complete`` refuses absent keys that are not optional. A ConfigError names
    ``where``, the key, its value and what was expected.
    """
    _require(isinstance(data, dict), f"{where} is {_short_repr(data)}; expected a table of settings.")
    fields = _fields(cls)
    for key in data.keys() - fields.keys():
        raise ConfigError(f"{where}: unknown setting '{key[:60]}'.", hint=did_you_mean(key, fields))
    absent = [name for name, (_, limits) in fields.items() if name not in data and not limits.get("optional")]
    _require(not (complete and absent), f"{where}: '{absent[0] if absent else ''}' is missing.")
    values = {k: _convert(fields[k][0], v, f"{where}.{k}", fields[k][1], complete) for k, v in data.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: {error}") from None


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, Any]]:
    hints = typing.get_type_hints(cls)
    return {f.name: (hints[f.name], f.metadata) for f in dataclasses.fields(cls) if f.init}


def _convert(hint: Any, value: Any, where: str, limits: typing.Mapping, complete: bool = False) -> Any:
    """``value`` as an instance of ``hint`` within its limits."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(o for o in options if o is not type(None)), value, where, limits, complete)
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        return value if isinstance(value, cls) else from_dict(cls, value, where, complete)
    choices: Any = limits.get("choices")
    choices = choices() if callable(choices) else choices
    if origin in (tuple, list):
        if isinstance(value, (list, tuple)):
            return origin(_convert(options[0], v, f"{where}[{i}]", limits, complete) for i, v in enumerate(value))
        expected = "a list"
    elif hint in (int, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        low, high, bound = limits.get("low"), limits.get("high"), 2**31 - 1 if hint is int else 1e12
        low, high = -bound if low is None else low, bound if high is None else high
        in_range = number and low <= value <= high and (hint is float or value == int(value))
        if in_range and (choices is None or value in choices):
            return hint(value)
        expected = f"a whole number from {low} to {high}" if hint is int else f"a number from {low:g} to {high:g}"
    elif hint is bool:
        if isinstance(value, bool):
            return value
        expected = "True or False"
    else:
        if (value == "" or is_name(value)) and (choices is None or value in choices):
            return value
        expected = f"a text of at most {MAX_NAME} characters on one line"
    if choices is not None:
        expected = f"one of {', '.join(map(str, choices))}"
    raise ConfigError(f"{where} is {_short_repr(value)}; expected {expected}.")


def _short_repr(value: Any) -> str:
    return ascii(value)[:60] if isinstance(value, (int, float, str, bytes, type(None))) else type(value).__name__


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ConfigError(text)


# Controls -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ControlSpec:
    """One control of a settings dataclass; panels, command line and documentation are generated from it.

    Label and flags are made of the name where they are empty.
    """

    name: str
    default: Any  # None stands for a value that the model or instrument chooses
    low: Number = None  # to high, both allowed; whole numbers where it is an int, None for anything but a number
    high: Number = None
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None  # a function lists those of a registry
    step: Number = None  # of a slider
    label: str = ""  # in panels
    help: str = ""  # one phrase for tooltips, ``--help`` and tables
    group: str = ""  # heading under which panels show it
    flags: tuple[str, ...] = ()  # of the command line: the first is documented, the others are older spellings
    metavar: str = "X"  # of the command line; words after ``|`` are allowed in place of a number
    suggestions: tuple = ()  # usual values of a number whose default is None, for a menu
    unset: str = "the instrument's own"  # what None stands for, in that menu

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


def control(default: Any, low: Number = None, high: Number = None, choices: Any = None, **described: Any) -> Any:
    """A field of a settings dataclass with a :class:`ControlSpec`; ``described`` are its remaining attributes."""
    metadata = {"low": low, "high": high, "choices": choices, "control": described}
    return dataclasses.field(default=default, metadata=metadata)


def control_specs(settings: Any) -> list[ControlSpec]:
    """The controls of a dataclass (or an instance) in the order of its fields."""
    found = [(f, dict(f.metadata)) for f in dataclasses.fields(settings) if "control" in f.metadata]
    return [ControlSpec(f.name, f.default, **limits.pop("control"), **limits) for f, limits in found]


# Untrusted JSON -------------------------------------------------------------------------------------------------------


def strict_json(data: bytes, where: str, keys: int = MAX_KEYS) -> Any:
    """Parse JSON in UTF-8; a ConfigError refuses many values, duplicate keys, NaN, huge numbers and deep nesting."""

    def table(pairs: list) -> dict:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def number(text: str, kind: type = float, longest: int = 40):
        if len(text) > longest or not math.isfinite(value := kind(text)):
            raise ValueError(f"{text[:20]} is not a finite number of ordinary length")
        return value

    few = data.count(b":") <= keys and data.count(b",") <= MAX_ITEMS
    _require(few, f"{where} has more than {keys} keys or {MAX_ITEMS} values.")
    hooks: dict[str, Any] = {"parse_constant": number, "parse_float": number}
    hooks["parse_int"] = lambda text: number(text, int, 18)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=table, **hooks)
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise ConfigError(f"{where} is not plain JSON ({text}).") from None


def check_fields(value: Any, fields: dict[str, Any], where: str, others: bool = False) -> None:
    """Refuse a dictionary that has not exactly these keys (``others``: at least these) with values of these types; a
    bool has none of them. In place of a type may stand such a dictionary of fields.
    """
    _require(isinstance(value, dict), f"{where} is not a table of values.")
    for key in fields.keys() - value.keys() if others else value.keys() ^ fields.keys():
        raise ConfigError(f"{where}: unknown key '{key[:60]}'." if key in value else f"{where}: '{key}' is missing.")
    for key, kinds in fields.items():
        if isinstance(kinds, dict):
            check_fields(value[key], kinds, f"{where}.{key}", others)
            continue
        fits = isinstance(value[key], kinds) and not isinstance(value[key], bool)
        _require(fits, f"{where}: '{key}' has the type {type(value[key]).__name__}, which is not allowed there.")


def check_plain(value: Any, where: str, items: int, depth: int = 6) -> int:
    """Refuse JSON with more than ``items`` values or ``depth`` levels, long text or odd keys; returns the count."""
    count = 1
    _require(depth > 0, f"{where} is nested too deeply.")
    _require(not isinstance(value, str) or len(value) <= 20000, f"{where} holds a text of more than 20000 characters.")
    if isinstance(value, dict):
        _require(all(map(is_name, value)), f"{where} has a key that is not a name.")
        value = list(value.values())
    for item in value if isinstance(value, list) else ():
        leaf = depth > 1 and not isinstance(item, (dict, list, str))  # most of what large datasets hold
        count += 1 if leaf else check_plain(item, where, items, depth - 1)
        if count > items:
            raise ConfigError(f"{where} holds more than {items} values.")
    return count


def check_statistics(value: Any, where: str = "statistics") -> None:
    """Refuse dataset statistics that conversion could not use, with those of every voice."""
    check_plain(value, where, items=MAX_ITEMS, depth=7)
    check_fields(value, {"singers": dict}, where, others=True)
    _check_statistics(value, where)
    for name, one in value["singers"].items():
        _check_statistics(one, f"{where}.singers.{name[:40]}")


def _check_statistics(value: Any, where: str) -> None:
    check_fields(value, {"f0_midi": dict, "loudness_db": dict, "loudness_quantiles_db": list}, where, others=True)
    for name in ("f0_midi", "loudness_db"):
        table = value[name]
        for key in table.keys() - {"histogram"}:
            _require(table[key] is None or _are_numbers([table[key]]), f"{where}.{name}.{key} is not a number.")
        if "histogram" in table:
            bins = table["histogram"] if isinstance(table["histogram"], dict) else {}
            edges, seconds = bins.get("edges_midi"), bins.get("seconds")
            numbers = _are_numbers(edges) and _are_numbers(seconds)
            _require(numbers, f"{where}.{name}.histogram is not two lists of numbers.")
            fit = len(edges) == len(seconds) + 1 or not edges + seconds
            _require(fit, f"{where}.{name}.histogram: {len(edges)} edges do not fit {len(seconds)} values.")
    quantiles = value["loudness_quantiles_db"]
    rising = _are_numbers(quantiles) and quantiles == sorted(quantiles)
    _require(rising, f"{where}.loudness_quantiles_db is not a list of rising numbers.")


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) in (int, float) for x in value)
