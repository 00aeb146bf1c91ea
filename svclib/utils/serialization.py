"""JSON of a stranger, read strictly, and settings classes as plain JSON values and back.

Nothing is believed: too much of anything, other types, unknown keys and numbers out of range are refused in a sentence.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from typing import Any

from svclib.utils.errors import ModelError

MAX_KEYS, MAX_ITEMS = 100_000, 2_000_000  # of untrusted JSON, counted before it is parsed


def strict_json(data: bytes, where: str) -> Any:
    """Parse JSON in UTF-8 and refuse too many values, duplicate keys, NaN and infinities, huge numbers, deep nesting.

    An ModelError names ``where``.
    """
    if data.count(b":") > MAX_KEYS or data.count(b",") > MAX_ITEMS:
        raise ModelError(f"{where} holds more values than anything of svclib's.")
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
        raise ModelError(f"{where} is not plain JSON ({text}).") from None


def _unique_keys(pairs: list) -> dict:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made


def _refuse_number(text: str):
    raise ValueError(f"{text[:20]} is not a finite number of ordinary length")


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 40 else math.inf
    return value if math.isfinite(value) else _refuse_number(text)


def _short(text: str) -> int:
    return int(text) if len(text) <= 18 else _refuse_number(text)


def check_fields(value: Any, fields: dict[str, Any], where: str) -> None:
    """Refuse a dictionary that has not exactly these keys with values of these types.

    Args:
        value: What was parsed.
        fields: The type, or tuple of types, of every key; a bool is refused whatever they are.
        where: What it is part of, for the message.

    Raises:
        ModelError: naming the key.
    """
    if not isinstance(value, dict):
        raise ModelError(f"{where} is not a table of values.")
    for key in value.keys() - fields.keys():
        raise ModelError(f"{where}: unknown key '{key[:60]}'.")
    for key, kinds in fields.items():
        if key not in value:
            raise ModelError(f"{where}: '{key}' is missing.")
        if not isinstance(value[key], kinds) or isinstance(value[key], bool):
            raise ModelError(f"{where}: '{key}' is a {type(value[key]).__name__}, which does not belong there.")


def check_plain(value: Any, where: str, items: int, depth: int = 6) -> int:
    """Refuse JSON that holds too much, is nested too deeply, or has very long text or odd keys.

    Args:
        value: What was parsed.
        where: What it is, for the message.
        items: Most values; dictionaries and lists count as one, besides what they hold.
        depth: Most levels; a bare number has one.

    Returns:
        How many values there are.

    Raises:
        ModelError: naming ``where``.
    """
    count = 1
    if depth == 0:
        raise ModelError(f"{where} is nested too deeply.")
    if isinstance(value, str) and len(value) > 20000:
        raise ModelError(f"{where} holds a text of {len(value)} characters.")
    if isinstance(value, dict):
        if any(len(k) > 200 or not k.isprintable() for k in value):
            raise ModelError(f"{where} has a key that is not a name.")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            count += check_plain(item, where, items, depth - 1)
            if count > items:
                raise ModelError(f"{where} holds more than {items} values.")
    return count


def check_statistics(value: Any, where: str = "statistics", singers: bool = True) -> None:
    """Refuse statistics of a dataset that conversion could not work with.

    Args:
        value: What was parsed.
        where: What it is, for the message.
        singers: Whether ``singers`` has to hold such statistics of every voice.

    Raises:
        ModelError: naming the key.
    """
    check_plain(value, where, items=MAX_ITEMS, depth=7)
    if not isinstance(value, dict):
        raise ModelError(f"{where} is not a table of values.")
    for table in ("f0_midi", "loudness_db"):
        _check_numbers(value.get(table), f"{where}.{table}")
    quantiles = value.get("loudness_quantiles_db")
    if not isinstance(quantiles, list) or not all(type(q) in (int, float) for q in quantiles):
        raise ModelError(f"{where}.loudness_quantiles_db is not a list of numbers.")
    if quantiles != sorted(quantiles):
        raise ModelError(f"{where}.loudness_quantiles_db does not rise.")
    if singers:
        if not isinstance(value.get("singers"), dict):
            raise ModelError(f"{where}.singers is missing.")
        for name, one in value["singers"].items():
            check_statistics(one, f"{where}.singers.{name[:40]}", singers=False)


def _check_numbers(table: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise ModelError(f"{where} is missing.")
    for key, value in table.items():
        if key == "histogram":
            edges, seconds = (value.get("edges_midi"), value.get("seconds")) if isinstance(value, dict) else (0, 0)
            lists = isinstance(edges, list) and isinstance(seconds, list)
            if not lists or not all(type(x) in (int, float) for x in edges + seconds):
                raise ModelError(f"{where}.histogram is not two lists of numbers.")
            if len(edges) != len(seconds) + 1 and edges + seconds:
                raise ModelError(f"{where}.histogram: {len(edges)} edges do not fit {len(seconds)} values.")
        elif value is not None and type(value) not in (int, float):
            raise ModelError(f"{where}.{key} is no number.")


def to_dict(value: Any) -> Any:
    """Settings as plain JSON values: dataclasses become dictionaries, tuples lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def from_dict(cls: type, data: Any, where: str) -> Any:
    """Build a settings dataclass from JSON. Unknown keys and other types are refused; absent keys keep defaults.

    Args:
        cls: The dataclass; its fields may be settings classes, tuples and lists too.
        data: What was parsed, as :func:`to_dict` made it.
        where: What it is, for the message.

    Returns:
        An instance of ``cls``.

    Raises:
        ModelError: naming the key, what it is and what it has to be, or with the class's own sentence on ranges.
    """
    if not isinstance(data, dict):
        raise ModelError(f"{where} is not a table of settings.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ModelError(f"{where}: unknown setting '{key[:60]}'.{hint}")
    values = {key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ModelError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _typed(next(o for o in options if o is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    if origin in (tuple, list) and isinstance(value, list) and len(value) <= 64:
        return origin(_typed(options[0], v, where) for v in value)
    if hint is float and type(value) in (int, float) and abs(value) <= 1e12:
        return float(value)
    if hint is int and type(value) is int and abs(value) < 2**31:
        return value
    if hint is bool and type(value) is bool:
        return value
    if hint is str and type(value) is str and len(value) <= 200 and value.isprintable():
        return value
    raise ModelError(f"{where} is {str(value)[:40]!r}, which is no {getattr(hint, '__name__', hint)} in range.")
