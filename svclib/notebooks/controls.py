"""Widgets of the conversion controls and the sampling options, generated from their ``ControlSpec``."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as W
from IPython.display import HTML

from svclib.analysis import html as page
from svclib.conversion.controls import PRESETS, Controls, defaults, preset
from svclib.conversion.key_suggestion import Suggestion
from svclib.models.diffusion import samplers
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.instrument import InstrumentEntry
from svclib.models.vocoders import auto as vocoders
from svclib.notebooks import base as widgets
from svclib.notebooks.panel import Panel
from svclib.utils.serialization import ControlSpec, control_specs

SHIFTS = ("octave_shift", "semitone_shift")
OWN = ("the instrument's own", "")  # not None: a menu shows that as nothing chosen


_OWN_SETTINGS = {"sampler": "sampler", "steps": "sampler_steps", "temperature": "temperature"}  # of DiffusionSettings


def widget_of(spec: ControlSpec) -> W.Widget:
    """The widget of a control: checkbox, menu, slider or number box; its class is ``t-`` and the control's name."""
    settings: dict[str, Any] = {"options": menu_options(spec)}
    kind: type[W.Widget] = W.Dropdown
    if isinstance(spec.default, bool):
        kind, settings = W.Checkbox, {"value": spec.default, "indent": False}
    elif spec.step is not None:
        whole = spec.step == int(spec.step)
        kind, number = (W.IntSlider, int) if whole else (W.FloatSlider, float)
        settings = {"min": spec.low, "max": spec.high, "step": spec.step, "value": spec.default}
        settings = {name: number(value) for name, value in settings.items()}
        settings |= {"continuous_update": False, "readout_format": "d" if whole else ".1f"}
    elif spec.low is not None and spec.default is not None:
        kind, settings = W.BoundedIntText, {"min": spec.low, "max": spec.high, "value": spec.default}
    elif spec.default is not None:
        settings["value"] = spec.default
    return widgets.control(kind, spec.label, f"t-{spec.name.replace('_', '-')}", spec.help, **settings)


def menu_options(spec: ControlSpec) -> list[tuple[str, Any]]:
    """``(label, value)`` of a menu: the allowed texts or usual numbers; :data:`OWN` first where None is the default."""
    if spec.name == "sampler":  # with one's own samplers, registered by now
        found = [(f"{name}: {samplers.SAMPLERS[name].label}", name) for name in reversed(spec.options)]
    else:
        found = [(f"{value:g}" if spec.suggestions else value, value) for value in spec.suggestions or spec.options]
    return [(spec.unset, OWN[1]), *found] if spec.default is None else found


def sampling_menu(name: str) -> list[tuple[str, Any]]:
    """The menu of one of the ``SamplingOptions``."""
    return menu_options(next(spec for spec in control_specs(SamplingOptions) if spec.name == name))


def vocoder_menu(listed: Sequence[InstrumentEntry]) -> list[tuple[str, Path | str]]:
    """The vocoders among listed files, and those registered under a name of their own."""
    files = [(entry.path.stem, entry.path) for entry in listed if entry.is_vocoder]
    return [OWN, *files, *((name, name) for name in vocoders.VOCODERS)]


def controls_table() -> HTML:
    """All controls with their ranges, as a table for the notebook."""
    rows = [[spec.label, spec.range_text, spec.help] for spec in control_specs(Controls)]
    rows += [[f"{spec.label} (diffusion)", spec.range_text, spec.help] for spec in control_specs(SamplingOptions)]
    return HTML(page.fold("All controls, their ranges and effects", page.table(["control", "range", "effect"], rows)))


class ControlSliders:
    """``Controls`` as ``widgets`` by name, to lay out in ``columns``; their errors are shown by the panel.

    Beside them: ``preset``, a menu of starting points; ``suggestion`` and ``take_buttons``, a suggested shift as text
    and buttons that apply it. ``kind`` is that of the instrument: the defaults depend on it.
    """

    def __init__(self, panel: Panel):
        self._panel, self.kind, specs = panel, "ddsp", control_specs(Controls)
        self.widgets = {spec.name: widget_of(spec) for spec in specs}
        names, size = [("", None), *((name, name) for name in PRESETS)], {"width": "230px", "label_width": "60px"}
        hint = "starting points; the controls stay free"
        self.preset = panel.dropdown("Preset", "preset", hint, names, **size)
        panel.on_change(self._preset_chosen, self.preset)
        self.suggestion, self.take_buttons = widgets.html(css_class="t-suggestion"), widgets.row()
        self.columns = tuple(
            widgets.column(group, *(self.widgets[spec.name] for spec in specs if spec.group == group))
            for group in dict.fromkeys(spec.group for spec in specs)
        )

    def controls(self, singer: Mapping[str, float] | str | None = None) -> Controls:
        """The controls as they stand, for this singer."""
        values = {name: widget.value for name, widget in self.widgets.items()}
        return Controls(**{name: value for name, value in values.items() if value != OWN[1]}, singer=singer)

    def set(self, controls: Controls) -> None:
        """Move every control to the given values."""
        for name, widget in self.widgets.items():
            widget.value = OWN[1] if getattr(controls, name) is None else getattr(controls, name)

    def for_kind(self, kind: str) -> None:
        """Another kind of instrument was chosen: each control that nobody moved goes to its default or the preset's."""
        before, usual = (preset(self.preset.value or "Everyday", one) for one in (self.kind, kind))
        now = self.controls()
        moved = {name: getattr(now, name) for name in self.widgets if getattr(now, name) != getattr(before, name)}
        if kind != self.kind:
            self.set(dataclasses.replace(usual, **moved))
        self.kind = kind

    def reset(self) -> None:
        """All controls to their defaults."""
        self.set(defaults(self.kind))
        self.preset.value = None

    def _preset_chosen(self):
        if (name := self.preset.value) is not None:  # only those about the octave move it
            kept = {shift: self.widgets[shift].value for shift in SHIFTS if shift not in PRESETS[name]}
            self.set(dataclasses.replace(preset(name, self.kind), **kept))

    def suggest(self, found: Suggestion) -> None:
        """Show which octave and semitones fit the instrument and why, with buttons that move the two sliders there."""
        self.suggestion.value = page.notice(found.text)
        best = "fit" if found.extra_semitones else "octave"
        buttons = [self._take_button("octave", found.octaves, 0, best)]
        if found.semitones:
            buttons.append(self._take_button("fit", found.octaves, found.semitones, best))
        self.take_buttons.children = tuple(buttons)

    def _take_button(self, name, octaves, semitones, best):
        def take():
            self.widgets["octave_shift"].value, self.widgets["semitone_shift"].value = octaves, semitones

        label = f"Take octave {octaves:+d}" + (f", semitones {semitones:+d}" if semitones else "")
        style, hint = "success" if name == best else "", "move the two sliders there"
        return self._panel.button(label, take, f"take-{name}", style, hint)

    def suggest_nothing(self) -> None:
        """Another song or instrument was chosen."""
        self.suggestion.value, self.take_buttons.children = "", ()


class SamplingControls(W.VBox):
    """``SamplingOptions`` as ``widgets`` by name, ``singers`` as sliders where there are several, and the ``vocoder``
    of a diffusion instrument; hidden until one is chosen."""

    def __init__(self):
        self.widgets = {spec.name: widget_of(spec) for spec in control_specs(SamplingOptions)}
        self._initial = {name: widget.value for name, widget in self.widgets.items()}
        hint = "makes the sound of the mel; another of the same mel"
        self.vocoder = widgets.control(W.Dropdown, "Vocoder", "t-vocoder", hint, options=[OWN])
        self.singers, self._mix = {}, W.VBox([])
        group = widgets.column("Diffusion", *self.widgets.values(), self._mix, self.vocoder)
        super().__init__(group.children, layout=group.layout)
        self.add_class("t-diffusion")
        self.show(None)

    def show(self, entry: InstrumentEntry | None, listed: Sequence[InstrumentEntry] = ()) -> None:
        """Show the options of this instrument, with the vocoders among ``listed``; None hides the group."""
        self.layout.display = "none" if entry is None else ""
        names = sorted(entry.info.get("singers", ())) if entry else []
        names = names if len(names) > 1 else []
        if names != list(self.singers):
            limits = {"min": 0.0, "max": 1.0, "step": 0.05, "readout_format": ".2f", "continuous_update": False}
            hint = "share of this singer's voice"
            self.singers = {
                name: widgets.control(W.FloatSlider, name, "t-singer", hint, value=float(name == names[0]), **limits)
                for name in names
            }
            self._mix.children = tuple(self.singers.values())
        widgets.fill(self.vocoder, vocoder_menu(listed))
        for name, setting in _OWN_SETTINGS.items():
            value = getattr(entry.settings, setting, None) if entry else None
            label = OWN[0] if value is None else f"{OWN[0]} ({value})"
            widgets.fill(self.widgets[name], [(label, OWN[1]), *self.widgets[name].options[1:]])

    def reset(self) -> None:
        """Everything back to the instrument's own."""
        for name, value in self._initial.items():
            self.widgets[name].value = value
        self.vocoder.value = OWN[1]
        for i, slider in enumerate(self.singers.values()):
            slider.value = float(i == 0)

    @property
    def hidden(self) -> bool:
        """True if the chosen instrument has no such options."""
        return self.layout.display == "none"

    def options(self) -> SamplingOptions:
        """The options as they stand; the defaults while the group is hidden."""
        values = {} if self.hidden else {name: widget.value for name, widget in self.widgets.items()}
        return SamplingOptions(**{name: value for name, value in values.items() if value != OWN[1]})

    def chosen_vocoder(self) -> Path | str | None:
        """The chosen vocoder; None for the instrument's own."""
        return None if self.hidden else self.vocoder.value or None

    def singer(self) -> dict[str, float] | str | None:
        """The chosen singer, or the mix; None for the instrument's own."""
        mix = {} if self.hidden else {name: slider.value for name, slider in self.singers.items() if slider.value}
        return next(iter(mix)) if len(mix) == 1 else mix or None
