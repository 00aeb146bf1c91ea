"""The panel of notebook 03: an instrument, a song, the controls, Transfer; results append below."""

import collections
import dataclasses
from pathlib import Path

import ipywidgets as W
from IPython.display import HTML, display

from svclib import (
    audio,
    conversion,
    instrument,
    page,
    plots,
    start,
    store,
    tuning,
    widgets,
    widgets_record,
    widgets_train,
)
from svclib.controls import PRESETS, RANGES, Controls
from svclib.widgets_prepare import open_folder

__all__ = ["ConvertPanel", "convert_panel", "first_things", "open_folder", "result_html", "show"]

_HINTS = {
    "octave_shift": ("Octave", "octaves up or down"),
    "semitone_shift": ("Semitones", "semitones up or down, on top of the octaves"),
    "autotune": ("Autotune", "how far each note moves to the nearest note of the key: 0 not at all, 1 all the way"),
    "loudness_shift_db": ("Loudness (dB)", "makes the voice sing louder or softer; timbre follows"),
    "mask_threshold": ("Mask threshold", "from which note-on ratio a stretch counts as a note; 0 takes everything"),
    "attenuation_db": ("Attenuation (dB)", "how much quieter it becomes where no note sounds"),
}


class Cache:
    """Opened files by path, kept while they are unchanged on disk, the last few only. A failed load leaves nothing."""

    def __init__(self, n_kept: int = 4):
        self._n_kept, self._kept = n_kept, collections.OrderedDict()

    def get(self, path: Path, load, *more):
        """``load()``, or what it gave last time for this file (same size and time) and these further keys.

        Raises:
            OSError: if the file is gone; whatever ``load`` raises.
        """
        stat = Path(path).stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, *more)
        if key not in self._kept:
            self._kept[key] = load()
        self._kept.move_to_end(key)
        while len(self._kept) > self._n_kept:
            self._kept.popitem(last=False)
        return self._kept[key]


def first_things(
    base, preset: str = "ddsp_small", minutes: float | int = 1.0, singer_minutes: float | int = start.MINUTES
) -> tuple[list[Path], list[Path]]:
    """Instruments and songs to begin with; where there are none, a quick instrument and a synthetic song are made.

    Returns:
        ``(instruments, songs)``, paths.
    """
    songs, said = start.songs(base)
    if said:
        display(HTML(page.notice(said)))
    instruments, said = start.instruments(base, preset, minutes, singer_minutes, on_progress=widgets_train.LazyView())
    if said:
        display(HTML(page.notice(said)))
    return instruments, songs


def convert_panel(base) -> "ConvertPanel":
    """The conversion panel for a person's folder; a panel made earlier in this kernel is closed.

    Args:
        base: ``folders.Base``: instruments, examples and output are used.
    """
    panel = ConvertPanel(base)
    widgets.only_one("convert", panel)
    return panel


class ConvertPanel(W.VBox):
    """Choose, adjust, transfer, listen. Nothing is computed before a button is pressed."""

    def __init__(self, base):
        self.base = base
        self.message, self.progress = widgets.Message(), widgets.Progress()
        self.job = widgets.Job(self.message, self._busy)
        self.instruments = Cache()
        self.n_results = 0
        self._guard = widgets.guarded(self.message)
        self._make_choices()
        self._make_controls()
        self._make_actions()
        self.suggestion, self.results = widgets.html(css_class="t-suggestion"), W.VBox([])
        groups = widgets.row(
            widgets.column(
                "Pitch", *(self.numbers[n] for n in ("octave_shift", "semitone_shift", "autotune")), self.key
            ),
            widgets.column(
                "Loudness",
                self.use_statistics,
                *(self.numbers[n] for n in ("loudness_shift_db", "mask_threshold", "attenuation_db")),
            ),
            widgets.column("Output", self.full_output, self.keep_rate, self.format),
        )
        groups.layout.align_items = "flex-start"
        super().__init__(
            [
                widgets.row(self.instrument, self.song),
                widgets.row(self.refresh_button, self.upload, self.record, self.suggest_button),
                self.suggestion,
                groups,
                widgets.row(
                    self.transfer_button, self.cancel_button, self.reset_button, self.preset, self.progress.widget
                ),
                self.message.widget,
                self.results,
            ]
        )
        self.add_class("svclib-convert")
        self.refresh()

    # ------------------------------------------------------------------------------------------------ building blocks

    def _make_choices(self):
        menu = {"options": [("", None)]}
        self.instrument = widgets.control(
            W.Dropdown, "Instrument", "t-instrument", f"files in {self.base.instruments}", **menu
        )
        self.song = widgets.control(W.Dropdown, "Song", "t-song", f"recordings in {self.base.examples}", **menu)
        for choice in (self.instrument, self.song):
            choice.layout.width, choice.style.description_width = "min(430px, 98%)", "80px"
            choice.observe(self._guard(lambda _: self._choice_changed()), "value")
        self.upload = W.FileUpload(
            accept=",".join(sorted(audio.SUFFIXES)),
            multiple=True,
            description="Upload a song",
            layout=W.Layout(width="auto"),
        )
        self.upload.add_class("t-upload")
        self.upload.observe(self._guard(lambda _: self._uploaded()), "value")
        self.record = widgets_record.recorder(self.message, self._guard(self._recorded))
        self.refresh_button = widgets.button(
            "Look again", self._guard(self.refresh), "t-refresh", hint="read the folders of instruments and songs again"
        )
        self.suggest_button = widgets.button(
            "Suggest key", self._guard(self.suggest), "t-suggest",
            hint="compares where the song and the instrument sing, and sets octave and semitones",
        )  # fmt: skip

    def _make_controls(self):
        standard, self.numbers = Controls(), {}
        for name, (low, high, step) in RANGES.items():
            label, hint = _HINTS[name]
            kind = W.FloatSlider if isinstance(step, float) and step != int(step) else W.IntSlider
            number = float if kind is W.FloatSlider else int
            self.numbers[name] = widgets.control(
                kind, label, f"t-{name.replace('_', '-')}", hint,
                min=number(low), max=number(high), step=number(step), value=number(getattr(standard, name)),
                continuous_update=False, readout_format=".1f" if kind is W.FloatSlider else "d",
            )  # fmt: skip
        self.key = widgets.control(
            W.Dropdown, "Key", "t-key", "the notes autotune may move to; auto finds the key of the song",
            options=tuning.KEYS, value=standard.autotune_key,
        )  # fmt: skip
        self.use_statistics = widgets.control(
            W.Checkbox, "Loudness statistics", "t-use-statistics",
            "give the song's notes the loudness distribution of the instrument's recordings",
            value=standard.use_loudness_statistics, indent=False,
        )  # fmt: skip
        self.full_output = widgets.control(
            W.Checkbox, "Full output", "t-full-output",
            "also original, harmonic and noise part, spectrograms and the four plots", value=True, indent=False,
        )  # fmt: skip
        self.keep_rate = widgets.control(
            W.Checkbox, "Keep the song's sample rate", "t-keep-rate",
            "otherwise the file has the instrument's rate", value=False, indent=False,
        )  # fmt: skip
        self.format = widgets.control(
            W.Dropdown, "File", "t-format", "format of the saved file", options=["wav", "flac", "mp3"]
        )
        self.preset = widgets.control(
            W.Dropdown, "Preset", "t-preset", "starting points; the controls stay free",
            options=[("", None), *((name, name) for name in PRESETS)],
        )  # fmt: skip
        self.preset.layout.width, self.preset.style.description_width = "230px", "60px"
        self.preset.observe(self._guard(lambda change: self._set_preset(change["new"])), "value")

    def _make_actions(self):
        self.transfer_button = widgets.button(
            "Transfer", self._guard(self.transfer), "t-transfer", "primary", "sing the song with the instrument"
        )
        self.cancel_button = widgets.button(
            "Cancel", self._guard(self._cancel), "t-cancel", hint="stop the running work"
        )
        self.cancel_button.disabled = True
        self.reset_button = widgets.button(
            "Reset", self._guard(self.reset), "t-reset", hint="all controls back to where they began"
        )

    # -------------------------------------------------------------------------------------------------------- choices

    def refresh(self, song: Path | None = None) -> None:
        """Read the folders again; keeps the choices that still exist, or chooses ``song``."""
        skipped = []
        songs, unusable = audio.find(self.base.examples)
        skipped += [f"{Path(path).name}: {reason}" for path, reason in unusable]
        listed = instrument.list_folder(self.base.instruments)
        skipped += [f"{entry.path.name}: {entry.problem}" for entry in listed if entry.problem]
        self._fill(self.instrument, [entry.path for entry in listed], self.base.instruments)
        self._fill(self.song, songs, self.base.examples, song)
        missing = self._missing()
        self.transfer_button.disabled = self.job.busy or bool(missing)
        if missing or not skipped:
            self.message.say(missing, "warning")
        else:
            self.message.say("These files cannot be used:\n" + "\n".join(skipped), "warning")

    @staticmethod
    def _fill(menu, paths, folder, wanted=None):
        wanted = wanted or menu.value
        options = [(str(Path(path).relative_to(folder)), Path(path)) for path in paths]
        menu.options = options or [("(none yet)", None)]
        values = [value for _, value in menu.options]
        menu.value = wanted if wanted in values else values[0]

    def _missing(self) -> str:
        lines = []
        if self.instrument.value is None:
            lines.append(
                f"There is no instrument in {self.base.instruments}. Make one with notebook 02, or put an instrument's "
                "zip file there and press Look again."
            )
        if self.song.value is None:
            lines.append(
                f"There is no song in {self.base.examples}. Press Upload a song or Record, or put a recording there "
                "and press Look again."
            )
        return "\n".join(lines)

    def _choice_changed(self):
        self.suggestion.value = ""
        self.transfer_button.disabled = self.job.busy or bool(self._missing())

    def _uploaded(self):
        files = widgets.uploads(self.upload)
        if not files:
            return
        last = None
        for name, data in files:
            target = self.base.examples / store.safe_name(Path(name).name)
            last = store.commit_new(target, lambda path, data=data: path.write_bytes(data))
        widgets.clear_uploads(self.upload)
        self.refresh(last)
        self._say_chosen(last)

    def _recorded(self, wav: bytes):
        last = store.commit_new(self.base.examples / "recording.wav", lambda path: path.write_bytes(wav))
        self.refresh(last)
        self._say_chosen(last)

    def _say_chosen(self, path):
        if self.song.value != path:
            self.message.say(f"{path.name} was stored, but it cannot be used as a song.", "error")
        elif not self._missing():
            self.message.say(f"{path.name} is stored in {path.parent} and chosen. Press Transfer.", "done")

    # ------------------------------------------------------------------------------------------------------- controls

    def controls(self) -> Controls:
        """The controls as they stand."""
        numbers = {name: slider.value for name, slider in self.numbers.items()}
        return Controls(use_loudness_statistics=self.use_statistics.value, autotune_key=self.key.value, **numbers)

    def set_controls(self, controls: Controls) -> None:
        """Move every control to the given values."""
        for name, slider in self.numbers.items():
            slider.value = getattr(controls, name)
        self.key.value, self.use_statistics.value = controls.autotune_key, controls.use_loudness_statistics

    def _set_preset(self, name):
        if name is not None:
            self.set_controls(PRESETS[name])

    def reset(self) -> None:
        """All controls back to where they began."""
        self.set_controls(Controls())
        self.preset.value = None

    # -------------------------------------------------------------------------------------------------------- working

    def _busy(self, busy: bool) -> None:
        self.cancel_button.disabled = not busy
        self.suggest_button.disabled = busy
        self.transfer_button.disabled = busy or bool(self._missing())
        if not busy:
            self.progress.hide()

    def _cancel(self):
        if self.job.busy:
            self.job.cancel()
            self.message.say("Stopping; nothing unfinished is kept.", "warning")

    def _start(self, task) -> None:
        missing = self._missing()
        if missing:
            self.message.say(missing, "warning")
        elif not self.job.start(task):
            self.message.say("Still working on the one before; press Cancel to stop it.", "warning")

    def _load(self):
        """The chosen instrument and song, opened or as opened before."""
        path, song_path = self.instrument.value, self.song.value
        self.progress(0.0, f"opening {path.name}")
        loaded = self.instruments.get(path, lambda: instrument.open(path))
        song = conversion.cached_song(song_path, loaded.features, progress=self.progress, cancelled=self.job.cancelled)
        return loaded, song

    def suggest(self) -> None:
        """Set octave and semitones to what fits the instrument, and say why."""
        self._start(self._suggest)

    def _suggest(self):
        loaded, song = self._load()
        suggestion = conversion.suggest_shift(song.features, loaded.statistics)
        self.numbers["octave_shift"].value = suggestion.octaves
        self.suggestion.value = page.notice(suggestion.text)
        self.message.say("")

    def transfer(self) -> None:
        """Convert the chosen song in the background and append the result."""
        controls, keep_rate, full = self.controls(), self.keep_rate.value, self.full_output.value
        suffix = self.format.value

        def task():
            self.message.say("")
            loaded, song = self._load()
            result = conversion.convert(
                loaded, song, controls, keep_rate=keep_rate, progress=self.progress, cancelled=self.job.cancelled
            )
            path = conversion.save(result, self.base.output, suffix)
            self.progress(1.0, "drawing")
            self.n_results += 1
            shown = widgets.html(result_html(result, path, self.n_results, full), "t-result")
            self.results.children = (*self.results.children, shown)
            self.message.say(f"Result {self.n_results} is below, and in {path}.", "done")

        self._start(task)


def show(result: conversion.Conversion, path: Path) -> HTML:
    """A conversion and the file it was saved in, as in the panel."""
    return HTML(result_html(result, path, 1))


def result_html(result: conversion.Conversion, path: Path, number: int, full: bool = True) -> str:
    """One result as HTML: what was asked, players, spectrograms, the four plots, where the file lies."""
    rate_hz, song = result.sample_rate_hz, result.song
    first, *settings = result.settings_text.splitlines()
    parts = [
        '<hr style="opacity:.3">',
        page.heading(f"{number}. {first}"),
        *(page.paragraph(line) for line in settings),
        *(page.notice(warning, "warning") for warning in result.warnings),
    ]
    players = [page.player(result.audio, rate_hz, "Result")]
    if full:
        players = [
            page.player(song.original(), song.sample_rate_hz, "Original"),
            *players,
            page.player(result.harmonic, rate_hz, "Harmonic part"),
            page.player(result.noise, rate_hz, "Noise part"),
        ]
    parts.append(page.flow(*players))
    if full:
        measured = song.features
        asked = dataclasses.replace(measured, f0_hz=result.adjusted.f0_hz, voiced=result.adjusted.voiced)
        items = [
            ("Original", song.audio, measured.settings.sample_rate_hz, measured),
            ("Result, with the F0 it was asked for", result.audio, rate_hz, asked),
        ]
        drawing = plots.png(plots.compare_spectrograms(items))
        parts.append(page.picture(drawing, "spectrograms of the original and the result with their F0"))
        drawing = plots.png(plots.conversion_plots(measured, result.adjusted, result.controls))
        parts.append(page.picture(drawing, "loudness, pitch, confidence and note-on ratio before and after"))
    parts += [page.paragraph(f"Saved as {path}"), page.download_link(path)]
    return "".join(parts)
