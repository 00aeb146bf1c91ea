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
