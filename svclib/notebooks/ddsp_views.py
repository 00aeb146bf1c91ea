"""The panels of notebook 04: what an instrument plays, over time and at one moment."""

from pathlib import Path

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import ddsp_inspection, plots
from svclib.analysis import html as page
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run, train
from svclib.notebooks.convert import ensure_instruments_and_songs
from svclib.notebooks.prepare import open_folder

__all__ = [
    "ensure_ddsp_instrument",
    "ensure_instruments_and_songs",
    "harmonics",
    "moment_panel",
    "noise",
    "open_folder",
    "players",
    "z",
]


def ensure_ddsp_instrument(base, preset: str, minutes: float | int, singer_minutes: float | int) -> tuple[Path, Path]:
    """The first DDSP instrument and the first song, paths; made shortly where there is none."""
    songs, song_note = first_run.songs(base)
    made, note = first_run.instruments(base, preset, minutes, singer_minutes, train.LazyView(minutes), "ddsp")
    for sentence in filter(None, (song_note, note)):
        display(HTML(page.notice(sentence)))
    return made[0], songs[0]


def players(result) -> HTML:
    """The conversion and its two parts, to listen to."""
    rate_hz = result.sample_rate_hz
    harmonic, noise = result.stems
    parts = (("Result", result.audio), ("Harmonic part", harmonic), ("Noise part", noise))
    title = page.heading(f"{result.song.name} by {result.instrument_name}")
    return HTML(title + page.flow(*(page.player(samples, rate_hz, label) for label, samples in parts)))


def harmonics(played: ddsp_inspection.SynthControls) -> HTML:
    """The level of every harmonic over time."""
    drawing = plots.png(plots.harmonics_over_time(played.amplitude, played.distribution, played.frame_s))
    return HTML(page.picture(drawing, "level of each harmonic over time"))


def noise(played: ddsp_inspection.SynthControls, sample_rate_hz: int) -> HTML:
    """The noise filter over time."""
    drawing = plots.png(plots.noise_over_time(played.noise_magnitudes, played.frame_s, sample_rate_hz))
    return HTML(page.picture(drawing, "gain of each noise band over time"))


def z(played: ddsp_inspection.SynthControls) -> HTML:
    """The z path of the song, or the sentence that there is none."""
    if played.z is None:
        return HTML(page.notice("This instrument has no z: it follows pitch and loudness only."))
    first = page.picture(plots.png(plots.z_over_time(played.z, played.frame_s)), "z over time")
    path = plots.png(plots.z_map({"this song": played.z}, "The same path, seen from above"))
    return HTML(first + page.picture(path, "map of z", 760))


class MomentPanel(widgets.Panel):
    """One frame: its harmonics as stems, its noise filter as a curve; a slider moves through time."""

    def __init__(self, played: ddsp_inspection.SynthControls, sample_rate_hz: int):
        self.played, self.rate_hz = played, sample_rate_hz
        self.message, self.view = widgets.Message(), widgets.html(css_class="t-moment-view")
        self.frame = widgets.control(
            W.IntSlider,
            "Frame",
            "t-moment",
            "which moment; arrow keys move it by one frame",
            min=0,
            max=len(played.f0_hz) - 1,
            value=len(played.f0_hz) // 2,
            continuous_update=False,
        )
        self.frame.layout.width = "min(640px, 98%)"
        guard = widgets.guarded(self.message)
        self.frame.observe(guard(lambda _: self.show()), "value")
        super().__init__([self.frame, self.message.widget, self.view])
        guard(self.show)()

    def show(self) -> None:
        """Draw the chosen frame."""
        p, i = self.played, self.frame.value
        pitch = f"F0 {p.f0_hz[i]:.0f} Hz" if p.voiced[i] else "unvoiced: harmonics are silent"
        drawing = plots.spectrum_at(
            p.amplitude[i],
            p.distribution[i],
            p.noise_magnitudes[i],
            p.f0_hz[i] if p.voiced[i] else 0.0,
            self.rate_hz,
            f"{i * p.frame_s:.3f} s, {pitch}",
        )
        self.view.value = page.picture(plots.png(drawing), "harmonics and noise filter of one frame")
        self.message.show("")


def moment_panel(played: ddsp_inspection.SynthControls, sample_rate_hz: int) -> MomentPanel:
    """The panel for one moment of what was played."""
    panel = MomentPanel(played, sample_rate_hz)
    widgets.only_one("moment", panel)
    return panel
