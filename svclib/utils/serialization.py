"""Settings classes, their plain JSON form, and strict reading of untrusted JSON.

A settings class is a frozen dataclass that inherits from :class:`Settings`. Each field states its range or choices with
:func:`setting`; the same check serves presets, checkpoints, instruments and the command line.
"""

import dataclasses
import difflib
import functools
import json
import math
import types
import typing
from typing import Any

from svclib.utils.errors import ConfigError

MAX_KEYS, MAX_ITEMS = 100_000, 2_000_000  # of untrusted JSON, counted before it is parsed
MAX_TEXT = 200  # characters of a setting


# Settings -------------------------------------------------------------------------------------------------------------


def setting(
    default: Any,
    low: float | int | None = None,
    high: float | int | None = None,
    choices: Any = None,
    optional: bool = False,
) -> Any:
    """A field of a settings dataclass.

    A number (of a tuple, each element) lies from ``low`` to ``high``, both allowed. ``choices`` are the allowed values:
    a tuple, a registry, or a function that lists them. An ``optional`` field is left out of :meth:`Settings.to_json`
    while it has its default, so that the JSON (and its hash) of versions before the field stays the same.
    """
    limits = {"low": low, "high": high, "choices": choices, "optional": optional}
    return dataclasses.field(default=default, metadata=limits)


class Settings:
    """Base of frozen settings dataclasses: every field is converted to its type and checked when an instance is made.

    40 and 40.0 are the same setting and are kept as the same number, so that they make the same JSON.

    Raises:
        ConfigError: naming the class, the field, its value and what was expected.
    """

    def __post_init__(self):
        check(self)

    def to_json(self) -> dict:
        """The fields as plain JSON values."""
        return to_dict(self, omit_defaults=True)

    @classmethod
    def from_json(cls, record: Any):
        """The settings of a dict made by :meth:`to_json`; ConfigError for missing, unknown or wrong fields."""
        return from_dict(cls, record, cls.__name__, complete=True)


def check(settings: Any, names: typing.Collection[str] | None = None) -> None:
    """Convert the fields (those of ``names``) of a dataclass instance to their types and check their limits.

    See :class:`Settings`.
    """
    fields = _fields(type(settings))
    for name, (hint, limits) in fields.items() if names is None else [(name, fields[name]) for name in names]:
        value = _convert(hint, getattr(settings, name), f"{type(settings).__name__}.{name}", limits)
        object.__setattr__(settings, name, value)


def to_dict(value: Any, omit_defaults: bool = False) -> Any:
    """Settings as plain JSON values: dataclasses become dictionaries, tuples lists.

    ``omit_defaults`` leaves out ``optional`` fields that have their default.
    """
    if dataclasses.is_dataclass(value):
        kept = [
            field.name
            for field in dataclasses.fields(value)
            if not (omit_defaults and field.metadata.get("optional") and getattr(value, field.name) == field.default)
        ]
        return {name: to_dict(getattr(value, name), omit_defaults) for name in kept}
    if isinstance(value, (list, tuple)):
        return [to_dict(v, omit_defaults) for v in value]
    return value


def from_dict(cls: type, data: Any, where: str, complete: bool = False) -> Any:
    """Build a settings dataclass from parsed JSON, as :func:`to_dict` makes it.

    Absent keys keep their defaults; ``complete`` refuses absent keys that are not optional. A ConfigError names
    ``where``, the key, its value and what was expected.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {_short_repr(data)}; expected a table of settings.")
    fields = _fields(cls)
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            raise ConfigError(
                f"{where}: unknown setting '{key[:60]}'.", hint=f"Did you mean '{near[0]}'?" if near else ""
            )
    absent = [name for name, (_, limits) in fields.items() if name not in data and not limits.get("optional")]
    if complete and absent:
        raise ConfigError(f"{where}: '{absent[0]}' is missing.")
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
        return value if isinstance(value, typing.cast(type, hint)) else from_dict(hint, value, where, complete)
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
        text = isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()
        if text and (choices is None or value in choices):
            return value
        expected = f"a text of at most {MAX_TEXT} characters"
    if choices is not None:
        expected = f"one of {', '.join(map(str, choices))}"
    raise ConfigError(f"{where} is {_short_repr(value)}; expected {expected}.")


def _short_repr(value: Any) -> str:
    return ascii(value)[:60] if isinstance(value, (int, float, str, bytes, type(None))) else type(value).__name__


# Untrusted JSON -------------------------------------------------------------------------------------------------------


def strict_json(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8; a ConfigError refuses many values, duplicate keys, NaN, huge numbers and deep nesting."""
    if data.count(b":") > MAX_KEYS or data.count(b",") > MAX_ITEMS:
        raise ConfigError(f"{where} has more than {MAX_KEYS} keys or {MAX_ITEMS} values.")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_number,
            parse_float=_finite,
            parse_int=_short,
        )
    except (ValueError, RecursionError) as error:
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise ConfigError(f"{where} is not plain JSON ({text}).") from None


def _unique_keys(pairs: list) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("duplicate key")
    return made


def _refuse_number(text: str):
    raise ValueError(f"{text[:20]} is not a finite number of ordinary length")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 40 else math.inf
    return value if math.isfinite(value) else _refuse_number(text)


def _short(text: str) -> int:
    return int(text) if len(text) <= 18 else _refuse_number(text)


def check_fields(value: Any, fields: dict[str, Any], where: str) -> None:
    """Refuse a dictionary that has not exactly these keys with values of these types; a bool has none of them."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a table of values.")
    for key in value.keys() ^ fields.keys():
        raise ConfigError(f"{where}: unknown key '{key[:60]}'." if key in value else f"{where}: '{key}' is missing.")
    for key, kinds in fields.items():
        if not isinstance(value[key], kinds) or isinstance(value[key], bool):
            raise ConfigError(f"{where}: '{key}' has the type {type(value[key]).__name__}, which is not allowed there.")


def check_plain(value: Any, where: str, items: int, depth: int = 6) -> int:
    """Refuse JSON with more than ``items`` values or ``depth`` levels, long text or odd keys; returns the count."""
    count = 1
    if depth == 0:
        raise ConfigError(f"{where} is nested too deeply.")
    if isinstance(value, str) and len(value) > 20000:
        raise ConfigError(f"{where} holds a text of {len(value)} characters.")
    if isinstance(value, dict):
        if any(len(k) > MAX_TEXT or not k.isprintable() for k in value):
            raise ConfigError(f"{where} has a key that is not a name.")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            count += check_plain(item, where, items, depth - 1)
            if count > items:
                raise ConfigError(f"{where} holds more than {items} values.")
    return count


def check_statistics(value: Any, where: str = "statistics", singers: bool = True) -> None:
    """Refuse dataset statistics that conversion could not use, with those of every voice if ``singers``."""
    check_plain(value, where, items=MAX_ITEMS, depth=7)
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a table of values.")
    for table in ("f0_midi", "loudness_db"):
        _check_numbers(value.get(table), f"{where}.{table}")
    quantiles = value.get("loudness_quantiles_db")
    if not _are_numbers(quantiles) or quantiles != sorted(quantiles):
        raise ConfigError(f"{where}.loudness_quantiles_db is not a list of rising numbers.")
    if singers:
        if not isinstance(value.get("singers"), dict):
            raise ConfigError(f"{where}.singers is missing.")
        for name, one in value["singers"].items():
            check_statistics(one, f"{where}.singers.{name[:40]}", singers=False)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) in (int, float) for x in value)


def _check_numbers(table: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is missing.")
    for key, value in table.items():
        if key == "histogram":
            edges, seconds = (value.get("edges_midi"), value.get("seconds")) if isinstance(value, dict) else (0, 0)
            if not _are_numbers(edges) or not _are_numbers(seconds):
                raise ConfigError(f"{where}.histogram is not two lists of numbers.")
            if len(edges) != len(seconds) + 1 and edges + seconds:
                raise ConfigError(f"{where}.histogram: {len(edges)} edges do not fit {len(seconds)} values.")
        elif value is not None and type(value) not in (int, float):
            raise ConfigError(f"{where}.{key} is not a number.")
