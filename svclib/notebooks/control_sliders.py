"""The controls that every instrument has, as sliders and menus; they do not know what converts."""

from collections.abc import Callable

import ipywidgets as W

from svclib.analysis import html as page
from svclib.conversion import autotune
from svclib.conversion.controls import PRESETS, RANGES, Controls, defaults, preset
from svclib.conversion.key_suggestion import Suggestion
from svclib.notebooks import base as widgets

_HINTS = {
    "octave_shift": ("Octave", "octaves up or down"),
    "semitone_shift": ("Semitones", "semitones up or down, on top of the octaves"),
    "autotune": ("Autotune", "how far each note moves to the nearest note of the key: 0 not at all, 1 all the way"),
    "loudness_follow": ("Dynamics", "1 follows the song's loud and soft; 0 sings every note at the instrument's level"),
    "loudness_shift_db": ("Loudness (dB)", "makes the voice sing louder or softer; timbre follows"),
    "mask_threshold": ("Mask threshold", "from which note-on ratio a stretch counts as a note; 0 takes everything"),
    "attenuation_db": ("Attenuation (dB)", "how much quieter it becomes where no note sounds"),
}


class ControlSliders:
    """``controls.Controls`` as widgets.

    Args:
        guard: Decorator for their handlers, from ``widgets.guarded``: what fails in one is shown.

    Attributes:
        numbers: Sliders by the names of ``RANGES``.
        columns: The groups to lay out.
        suggestion, take_buttons: Where a suggested shift is said, and buttons that take it.
        kind: Of the instrument they are for: where they begin depends on it.
    """

    def __init__(self, guard: Callable[[Callable], Callable]):
        self._guard, self.kind = guard, "ddsp"
        standard, self.numbers = Controls(), {}
        for name, (low, high, step) in RANGES.items():
            label, hint = _HINTS[name]
            kind = W.FloatSlider if isinstance(step, float) and step != int(step) else W.IntSlider
            number = float if kind is W.FloatSlider else int
            self.numbers[name] = widgets.control(
                kind,
                label,
                f"t-{name.replace('_', '-')}",
                hint,
                min=number(low),
                max=number(high),
                step=number(step),
                value=number(getattr(standard, name)),
                continuous_update=False,
                readout_format=".1f" if kind is W.FloatSlider else "d",
            )
        self.key = widgets.control(
            W.Dropdown,
            "Autotune key",
            "t-key",
            "the notes autotune may move to; auto finds the key of the song",
            options=autotune.KEYS,
            value=standard.autotune_key,
        )
        self.use_statistics = widgets.control(
            W.Checkbox,
            "Loudness statistics",
            "t-use-statistics",
            "give the song's notes the loudness distribution of the instrument's recordings",
            value=standard.use_loudness_statistics,
            indent=False,
        )
        self.repair_octaves = widgets.control(
            W.Checkbox,
            "Repair octave jumps",
            "t-repair-octaves",
            "mend the places where the pitch tracker jumped an octave and the sound did not; a result says where",
            value=standard.repair_octaves,
            indent=False,
        )
        self.preset = widgets.control(
            W.Dropdown,
            "Preset",
            "t-preset",
            "starting points; the controls stay free",
            options=[("", None), *((name, name) for name in PRESETS)],
        )
        self.preset.layout.width, self.preset.style.description_width = "230px", "60px"
        self.preset.observe(self._guard(lambda change: self._set_preset(change["new"])), "value")
        self.suggestion, self.take_buttons = widgets.html(css_class="t-suggestion"), widgets.row()
        pitch = ("octave_shift", "semitone_shift", "autotune")
        loudness = ("loudness_follow", "loudness_shift_db", "mask_threshold", "attenuation_db")
        self.columns = (
            widgets.column("Pitch", *(self.numbers[n] for n in pitch), self.key, self.repair_octaves),
            widgets.column("Loudness", self.use_statistics, *(self.numbers[n] for n in loudness)),
        )

    def controls(self) -> Controls:
        """The controls as they stand."""
        numbers = {name: slider.value for name, slider in self.numbers.items()}
        return Controls(
            use_loudness_statistics=self.use_statistics.value,
            autotune_key=self.key.value,
            repair_octaves=self.repair_octaves.value,
            **numbers,
        )

    def set(self, controls: Controls) -> None:
        """Move every control to the given values."""
        for name, slider in self.numbers.items():
            slider.value = getattr(controls, name)
        self.key.value, self.use_statistics.value = controls.autotune_key, controls.use_loudness_statistics
        self.repair_octaves.value = controls.repair_octaves

    def for_kind(self, kind: str) -> None:
        """Another kind of instrument was chosen: controls that nobody moved go to where that kind begins."""
        if kind != self.kind and self.controls() == defaults(self.kind):
            self.set(defaults(kind))
        self.kind = kind

    def reset(self) -> None:
        """All controls back to where they began."""
        self.set(defaults(self.kind))
        self.preset.value = None

    def suggest(self, found: Suggestion) -> None:
        """Say which octave and semitones fit the instrument and why, with buttons that move the two sliders there."""
        self.suggestion.value = page.notice(found.text)
        shifts = {"octave": (found.octaves, 0), "fit": (found.octaves, found.semitones)}
        suggested = "fit" if found.extra_semitones else "octave"
        buttons = []
        for name, (octaves, semitones) in shifts.items():
            if name == "fit" and not semitones:
                continue
            label = f"Take octave {octaves:+d}" + (f", semitones {semitones:+d}" if semitones else "")
            style = "success" if name == suggested else ""
            take = self._guard(lambda octaves=octaves, semitones=semitones: self._take(octaves, semitones))
            buttons.append(widgets.button(label, take, f"t-take-{name}", style, "move the two sliders there"))
        self.take_buttons.children = tuple(buttons)

    def suggest_nothing(self) -> None:
        """Another song or instrument was chosen."""
        self.suggestion.value, self.take_buttons.children = "", ()

    def _take(self, octaves, semitones):
        self.numbers["octave_shift"].value, self.numbers["semitone_shift"].value = octaves, semitones

    def _set_preset(self, name):
        if name is not None:
            self.set(preset(name, self.kind))
