"""Settings: values within their ranges, one spelling of a number, the same settings back from JSON; controls: their
descriptions, and which values are refused."""

import dataclasses
import json
import math

import pytest

from svclib.utils import serialization
from svclib.utils.errors import ConfigError
from svclib.utils.serialization import Settings, setting


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    name: str = setting("a", choices=("a", "b"))


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    count: int = setting(3, 1, 4)
    rate: float = setting(0.5, 0, 1)
    on: bool = True
    sizes: tuple[int, ...] = setting((), 16, 4096)
    labels: tuple[str, ...] = ()
    inner: Inner | None = None


BAD_NUMBERS = [0, 5, 2.5, True, "3", None, math.nan, math.inf, -math.inf, 10**400]


@pytest.mark.case("D3")
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_a_value_outside_its_range_is_refused_with_name_value_and_range(value):
    with pytest.raises(ConfigError, match=r"Outer.count is .*; expected a whole number from 1 to 4"):
        Outer(count=value)
    with pytest.raises(ConfigError, match=r"Outer.rate is .*; expected a number from 0 to 1"):
        Outer(rate=value if value not in (0, True) else -1)


@pytest.mark.parametrize(
    "wrong", [{"on": 1}, {"sizes": 16}, {"sizes": (8,)}, {"labels": (1,)}, {"labels": ("\n",)}, {"inner": 3}]
)
def test_a_value_of_another_type_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"Outer.{next(iter(wrong))}"):
        Outer(**wrong)
    with pytest.raises(ConfigError, match="Inner.name is 'c'; expected one of a, b"):
        Inner("c")


@pytest.mark.parametrize("count, rate", [(1, 0), (4, 1), (4.0, 1.0), (2, 0.25)])
def test_the_ends_belong_to_the_range_and_equal_numbers_are_the_same_setting(count, rate):
    settings = Outer(count, rate)
    assert (type(settings.count), type(settings.rate)) == (int, float)
    assert (settings.count, settings.rate) == (count, rate)


@pytest.mark.parametrize("n", [0, 1, 64, 65, 1000])
def test_settings_survive_json_with_lists_of_any_length(n):
    settings = Outer(sizes=tuple(range(16, 16 + n)), labels=tuple(f"label {i}" for i in range(n)), inner=Inner("b"))
    record = serialization.strict_json(json.dumps(settings.to_json()).encode(), "x")
    assert Outer.from_json(record) == settings == serialization.from_dict(Outer, record, "x")


def test_absent_keys_keep_defaults_only_where_that_is_allowed_and_unknown_ones_are_refused():
    assert serialization.from_dict(Outer, {"count": 2}, "x") == Outer(2)
    with pytest.raises(ConfigError, match="'rate' is missing"):
        Outer.from_json({"count": 2})
    with pytest.raises(ConfigError, match="unknown setting 'cuont'") as caught:
        serialization.from_dict(Outer, {"cuont": 2}, "x")
    assert "'count'" in caught.value.hint
    for data in (None, [], 3, "text"):
        with pytest.raises(ConfigError):
            serialization.from_dict(Outer, data, "x")


# Controls -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel(serialization.Settings):
    octave: int = serialization.control(
        0, -3, 3, step=1, label="Octave", help="octaves up or down", flags=("--octave",)
    )
    key: str = serialization.control("auto", choices=lambda: ("auto", "C"))
    repair: bool = serialization.control(False)
    steps: int | None = serialization.control(None, 1, 100)
    other: str = "no control"


def test_controls_are_described_in_the_order_of_the_fields():
    specs = serialization.control_specs(Panel)
    assert [spec.name for spec in specs] == ["octave", "key", "repair", "steps"]
    assert (specs[0].range_text, specs[0].flags, specs[1].options) == ("-3 to 3", ("--octave",), ("auto", "C"))
    assert serialization.control_specs(Panel(2)) == specs


@pytest.mark.parametrize(
    "name, value",
    [("octave", 4), ("octave", 0.5), ("octave", None), ("key", "D"), ("key", None), ("repair", 1), ("steps", 0)],
)
def test_a_control_outside_its_description_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        Panel(**{name: value})


def test_none_is_allowed_where_it_is_the_default():
    assert Panel(steps=None).steps is None and Panel(steps=100.0).steps == 100
