"""Settings within their ranges: what is refused, and that one number has one spelling."""

import dataclasses
import math

import pytest

from svclib.utils import validation


@dataclasses.dataclass(frozen=True)
class Settings:
    count: object = 3
    rate: object = 0.5


class SettingsError(ValueError):
    pass


RANGES = {"count": (1, 4), "rate": (0.0, 1.0)}


@pytest.mark.parametrize("value", [0, 5, 2.5, True, "3", None, math.nan, math.inf, -math.inf, 10**400])
def test_what_is_no_number_of_the_range_is_refused_with_value_and_range(value):
    with pytest.raises(SettingsError) as caught:
        validation.check(Settings(count=value), RANGES, SettingsError, "Settings.")
    assert str(caught.value) == f"Settings.count is {value!r}; expected a whole number from 1 to 4."
    with pytest.raises(SettingsError, match="rate is .*; expected a number from 0 to 1"):
        validation.check(Settings(rate=value if value not in (0, True) else -1), RANGES, SettingsError)


@pytest.mark.parametrize("count, rate", [(1, 0), (4, 1), (4.0, 1.0), (2, 0.25)])
def test_the_ends_belong_to_the_range_and_equal_numbers_are_the_same_setting(count, rate):
    settings = Settings(count, rate)
    validation.check(settings, RANGES, SettingsError)
    assert (type(settings.count), type(settings.rate)) == (int, float)
    assert dataclasses.astuple(settings) == (count, rate)


@dataclasses.dataclass(frozen=True)
class Panel:
    octave: int = validation.control(0, -3, 3, step=1, label="Octave", help="octaves up or down", flags=("--octave",))
    key: str = validation.control("auto", choices=lambda: ("auto", "C"))
    repair: bool = validation.control(False)
    steps: int | None = validation.control(None, 1, 100)
    other: str = "no control"

    def __post_init__(self):
        validation.check_controls(self, SettingsError)


def test_controls_are_described_in_the_order_of_the_fields():
    specs = validation.control_specs(Panel)
    assert [spec.name for spec in specs] == ["octave", "key", "repair", "steps"]
    assert (specs[0].range_text, specs[0].flags, specs[1].options) == ("-3 to 3", ("--octave",), ("auto", "C"))
    assert validation.control_specs(Panel(2)) == specs


@pytest.mark.parametrize(
    "name, value",
    [("octave", 4), ("octave", 0.5), ("octave", None), ("key", "D"), ("key", None), ("repair", 1), ("steps", 0)],
)
def test_a_control_outside_its_description_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        Panel(**{name: value})


def test_none_is_allowed_where_it_is_the_default():
    assert Panel(steps=None).steps is None and Panel(steps=100.0).steps == 100
