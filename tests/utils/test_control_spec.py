"""Controls: their descriptions, and which values are refused."""

import dataclasses

import pytest

from svclib.utils import control_spec


class SettingsError(ValueError):
    pass


@dataclasses.dataclass(frozen=True)
class Panel:
    octave: int = control_spec.control(0, -3, 3, step=1, label="Octave", help="octaves up or down", flags=("--octave",))
    key: str = control_spec.control("auto", choices=lambda: ("auto", "C"))
    repair: bool = control_spec.control(False)
    steps: int | None = control_spec.control(None, 1, 100)
    other: str = "no control"

    def __post_init__(self):
        control_spec.check_controls(self, SettingsError)


def test_controls_are_described_in_the_order_of_the_fields():
    specs = control_spec.control_specs(Panel)
    assert [spec.name for spec in specs] == ["octave", "key", "repair", "steps"]
    assert (specs[0].range_text, specs[0].flags, specs[1].options) == ("-3 to 3", ("--octave",), ("auto", "C"))
    assert control_spec.control_specs(Panel(2)) == specs


@pytest.mark.parametrize(
    "name, value",
    [("octave", 4), ("octave", 0.5), ("octave", None), ("key", "D"), ("key", None), ("repair", 1), ("steps", 0)],
)
def test_a_control_outside_its_description_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        Panel(**{name: value})


def test_none_is_allowed_where_it_is_the_default():
    assert Panel(steps=None).steps is None and Panel(steps=100.0).steps == 100
