"""What only a diffusion instrument can be asked: how it walks from noise to a song, and in whose voice."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as W

from svclib.models.diffusion import samplers
from svclib.models.diffusion.denoiser import PRECISIONS
from svclib.models.instrument import Listing
from svclib.models.vocoders import auto as vocoding
from svclib.notebooks import base as widgets

OWN = ("the instrument's own", "")  # not None: a menu shows that as nothing chosen
TEMPERATURES = [OWN, ("0.7: smoother", 0.7), ("0.85", 0.85), ("1: as lively as the recordings", 1.0)]
STEPS = [OWN, *((str(n), n) for n in (5, 10, 20, 50, 100, 200, 1000))]


def sampler_options() -> list[tuple[str, str]]:
    """For a menu: every sampler registered by now, one's own among them."""
    return [OWN, *((f"{name}: {samplers.METHODS[name].words}", name) for name in reversed(samplers.METHODS))]


def vocoder_options(listed: Sequence[Listing]) -> list[tuple[str, Path | str]]:
    """For a menu: the vocoders among listed files, and those registered under a name of their own."""
    files = [(entry.path.stem, entry.path) for entry in listed if entry.vocodes]
    return [OWN, *files, *((name, name) for name in vocoding.NAMED)]


class SamplingControls(W.VBox):
    """A group of controls, hidden until a diffusion instrument is chosen."""

    def __init__(self):
        self.sampler = widgets.control(
            W.Dropdown, "Sampler", "t-sampler", "the way from noise to singing", options=sampler_options()
        )
        self.steps = widgets.control(
            W.Dropdown,
            "Steps",
            "t-steps",
            "more steps take longer and come nearer to what the model means",
            options=STEPS,
        )
        self.rough = widgets.control(
            W.Checkbox,
            "Start from a rough guess",
            "t-rough",
            "the walk begins at the model's first guess of the song instead of pure noise",
            value=False,
            indent=False,
        )
        self.shallow = widgets.control(
            W.IntSlider,
            "Noise on it",
            "t-shallow",
            "how much of the walk is left: 1 is nearly the guess itself, 1000 nearly pure noise",
            min=1,
            max=1000,
            step=1,
            value=200,
            continuous_update=False,
        )
        self.temperature = widgets.control(
            W.Dropdown,
            "Temperature",
            "t-temperature",
            "how much chance there is in the walk: less is smoother and nearer to the voice, more is livelier",
            options=TEMPERATURES,
        )
        self.vocoder = widgets.control(
            W.Dropdown,
            "Vocoder",
            "t-vocoder",
            "what makes sound of the picture that the walk paints",
            options=[OWN],
        )
        self.seed = widgets.control(
            W.BoundedIntText,
            "Seed",
            "t-seed",
            "another number, another take; the same number, the same sound",
            min=0,
            max=2**31 - 1,
            value=0,
        )
        self.precision = widgets.control(
            W.Dropdown,
            "Precision",
            "t-precision",
            "auto is the fastest that this machine computes well; fp32 is exact",
            options=PRECISIONS,
        )
        self.singers, self._mix = {}, W.VBox([])
        self.rough.observe(lambda _: self._show_noise(), "value")
        group = widgets.column(
            "Diffusion",
            self.sampler,
            self.steps,
            self.rough,
            self.shallow,
            self.temperature,
            self._mix,
            self.vocoder,
            self.seed,
            self.precision,
        )
        super().__init__(group.children, layout=group.layout)
        self.add_class("t-diffusion")
        self._show_noise()
        self.show(None)

    def _show_noise(self):
        self.shallow.layout.display = "" if self.rough.value else "none"

    def show(self, listing: Listing | None, listed: Sequence[Listing] = ()) -> None:
        """Show what this instrument can be asked, with the vocoders among ``listed``; None hides the group."""
        self.layout.display = "none" if listing is None else ""
        names = tuple(listing.info.get("singers", ())) if listing else ()
        names = names if len(names) > 1 else ()
        if names != tuple(self.singers):
            self.singers = {
                name: widgets.control(
                    W.FloatSlider,
                    name,
                    "t-singer",
                    "how much of this singer's voice",
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    value=1.0 if i == 0 else 0.0,
                    readout_format=".2f",
                    continuous_update=False,
                )
                for i, name in enumerate(sorted(names))
            }
            self._mix.children = tuple(self.singers.values())
        chosen = self.vocoder.value
        self.vocoder.options = vocoder_options(listed)
        self.vocoder.value = chosen if chosen in [value for _, value in self.vocoder.options] else ""

    def reset(self) -> None:
        """Everything back to the instrument's own."""
        for menu in (self.sampler, self.steps, self.temperature, self.vocoder):
            menu.value = ""
        self.rough.value, self.shallow.value, self.seed.value, self.precision.value = False, 200, 0, "auto"
        for i, slider in enumerate(self.singers.values()):
            slider.value = 1.0 if i == 0 else 0.0

    def options(self) -> dict:
        """What ``conversion.convert`` is given on top of the controls; nothing while the group is hidden."""
        if self.layout.display == "none":
            return {}
        mix = {name: slider.value for name, slider in self.singers.items() if slider.value}
        return {
            "sampler": self.sampler.value or None,
            "steps": self.steps.value or None,
            "shallow": self.shallow.value if self.rough.value else None,
            "temperature": self.temperature.value or None,
            "vocoder": self.vocoder.value or None,
            "seed": self.seed.value,
            "precision": None if self.precision.value == "auto" else self.precision.value,
            "singer": next(iter(mix)) if len(mix) == 1 else mix or None,
        }
