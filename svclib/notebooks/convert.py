"""The panel of notebook 03: an instrument, a song, the controls, Transfer; results append below."""

import dataclasses
from pathlib import Path

import ipywidgets as W
from IPython.display import HTML, display

from svclib.analysis import html as page
from svclib.analysis.ddsp_inspection import result_html
from svclib.audio import io as audio
from svclib.conversion import ab_compare, key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.models import instrument
from svclib.notebooks import base as widgets
from svclib.notebooks import first_run, microphone, train
from svclib.notebooks.ab_table import compare_panel
from svclib.notebooks.controls import ControlSliders, SamplingControls, controls_table
from svclib.notebooks.prepare import open_folder
from svclib.utils import atomic_store, filesystem, workspace

__all__ = [
    "ConvertPanel",
    "compare_panel",
    "controls_table",
    "convert_panel",
    "ensure_instruments_and_songs",
    "open_folder",
    "result_html",
    "show",
]


def ensure_instruments_and_songs(
    base: workspace.Base,
    preset: str = "ddsp_small",
    minutes: float | int = 1.0,
    singer_minutes: float | int = first_run.MINUTES,
) -> tuple[list[Path], list[Path]]:
    """Instruments and songs to begin with; where there are none, a quick instrument and a synthetic song are made."""
    songs, note = first_run.songs(base)
    if note:
        display(HTML(page.notice(note)))
    watch = train.LazyView(minutes)
    instruments, note = first_run.instruments(base, preset, minutes, singer_minutes, watch)
    if note:
        display(HTML(page.notice(note)))
    return instruments, songs


def convert_panel(base: workspace.Base) -> "ConvertPanel":
    """The conversion panel for a person's folder; a panel made earlier in this kernel is closed."""
    panel = ConvertPanel(base)
    widgets.only_one("convert", panel)
    return panel


class ConvertPanel(widgets.Panel):
    """Choose, adjust, transfer, listen. Nothing is computed before a button is pressed."""

    def __init__(self, base):
        self.base = base
        self.message, self.progress = widgets.Message(), widgets.ProgressBar()
        self.task = widgets.BackgroundTask(self.message, self._busy)
        self.instruments = widgets.Cache()
        self.n_results, self.listings = 0, {}
        self._guard = widgets.guarded(self.message)
        self._make_choices()
        self.sliders = ControlSliders(self._guard)
        self._make_output()
        self._make_actions()
        self.sampling, self.results = SamplingControls(), W.VBox([])
        groups = widgets.row(
            *self.sliders.columns,
            self.sampling,
            widgets.column("Output", self.full_output, self.keep_rate, self.format, self.own_keys),
        )
        groups.layout.align_items = "flex-start"
        super().__init__(
            [
                widgets.row(self.instrument, self.song),
                widgets.row(self.refresh_button, self.upload, self.record, self.suggest_button),
                self.sliders.suggestion,
                self.sliders.take_buttons,
                groups,
                widgets.row(
                    self.transfer_button,
                    self.all_button,
                    self.cancel_button,
                    self.reset_button,
                    self.sliders.preset,
                    self.progress.widget,
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
        self.record = microphone.recorder(self.message, self._guard(self._recorded))
        self.refresh_button = widgets.button(
            "Look again", self._guard(self.refresh), "t-refresh", hint="read the folders of instruments and songs again"
        )
        self.suggest_button = widgets.button(
            "Suggest key",
            self._guard(self.suggest),
            "t-suggest",
            hint="compares where the song and the instrument sing, and says which shift fits",
        )

    def _make_output(self):
        self.own_keys = widgets.control(
            W.Checkbox,
            "All songs: each in its suggested key",
            "t-own-keys",
            "for Transfer all songs: octave and semitones are suggested for every song by itself",
            value=True,
            indent=False,
        )
        self.full_output = widgets.control(
            W.Checkbox,
            "Full output",
            "t-full-output",
            "also original, harmonic and noise part, spectrograms and the four plots",
            value=True,
            indent=False,
        )
        self.keep_rate = widgets.control(
            W.Checkbox,
            "Keep the song's sample rate",
            "t-keep-rate",
            "otherwise the file has the instrument's rate",
            value=False,
            indent=False,
        )
        self.format = widgets.control(
            W.Dropdown, "File", "t-format", "format of the saved file", options=["wav", "flac", "mp3"]
        )

    def _make_actions(self):
        self.transfer_button = widgets.button(
            "Transfer", self._guard(self.transfer), "t-transfer", "primary", "sing the song with the instrument"
        )
        self.all_button = widgets.button(
            "Transfer all songs",
            self._guard(self.transfer_all),
            "t-transfer-all",
            hint="sing every song of the menu; one that fails does not stop the others",
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
        voices = [entry for entry in listed if entry.kind not in instrument.VOCODERS]
        self.listings = {entry.path: entry for entry in listed}
        named = [(str(e.path.relative_to(self.base.instruments)), e.path) for e in voices]
        widgets.fill(self.instrument, named, first=first_run.newest_first(e.path for e in voices))
        named = [(str(Path(p).relative_to(self.base.examples)), Path(p)) for p in songs]
        widgets.fill(self.song, named, song, first_run.newest_first(songs))
        self._choice_changed()
        missing = self._missing()
        if missing or not skipped:
            self.message.show(missing, "warning")
        else:
            self.message.show("These files cannot be used:\n" + "\n".join(skipped), "warning")

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
        self.sliders.suggest_nothing()
        self.task.show()
        listing = self.listings.get(self.instrument.value)
        kind = listing.kind if listing and listing.kind else self.sliders.kind
        self.sliders.for_kind(kind)
        self.sampling.show(listing if kind == "diffusion" else None, list(self.listings.values()))

    def _uploaded(self):
        files = widgets.uploads(self.upload)
        if not files:
            return
        last = None
        try:
            for name, data in files:
                target = self.base.examples / filesystem.safe_name(Path(name).name)
                last = atomic_store.commit_new(target, lambda path, data=data: path.write_bytes(data))
        finally:
            widgets.clear_uploads(self.upload)
        self.refresh(last)
        self._say_chosen(last)

    def _recorded(self, wav: bytes):
        last = atomic_store.commit_new(self.base.examples / "recording.wav", lambda path: path.write_bytes(wav))
        self.refresh(last)
        self._say_chosen(last)

    def _say_chosen(self, path):
        if self.song.value != path:
            self.message.show(f"{path.name} was stored, but it cannot be used as a song.", "error")
        elif not self._missing():
            self.message.show(f"{path.name} is stored in {path.parent} and chosen. Press Transfer.", "done")

    # ------------------------------------------------------------------------------------------------------- controls

    def controls(self) -> Controls:
        """The controls as they stand."""
        return self.sliders.controls(self.sampling.singer())

    def reset(self) -> None:
        """All controls back to where they began."""
        self.sliders.reset()
        self.sampling.reset()

    # -------------------------------------------------------------------------------------------------------- working

    def _busy(self, busy: bool) -> None:
        self.cancel_button.disabled = not busy
        self.suggest_button.disabled = busy
        for button in (self.transfer_button, self.all_button):
            button.disabled = busy or bool(self._missing())
        if not busy:
            self.progress.hide()

    def _cancel(self):
        self.task.cancel()

    def _start(self, task) -> None:
        missing = self._missing()
        if missing:
            self.message.show(missing, "warning")
        else:
            self.task.start(task)

    def _open(self, path):
        self.progress(0.0, f"opening {path.name}")
        return self.instruments.get(path, lambda: instrument.open(path))

    def _load(self):
        """The chosen instrument and song, opened or as opened before."""
        path, song_path = self.instrument.value, self.song.value
        loaded = self._open(path)
        song = songs.cached_song(song_path, loaded.features, progress=self.progress, cancelled=self.task.cancelled)
        return loaded, song

    def suggest(self) -> None:
        """Say which octave and semitones fit the instrument and why, with buttons that take them."""
        self._start(self._suggest)

    def _suggest(self):
        loaded, song = self._load()
        found = key_suggestion.suggest_shift(song.features, loaded.statistics, loaded.kind)
        self.sliders.suggest(found)
        self.message.show("")

    def transfer(self) -> None:
        """Convert the chosen song in the background and append the result."""
        controls, options, full = self.controls(), self._options(), self.full_output.value
        suffix, keep_rate = self.format.value, self.keep_rate.value

        def task():
            self.message.show("")
            voice, song = self._load()
            options_ = {**options, "progress": self.progress, "cancelled": self.task.cancelled}
            result = pipeline.convert(voice, song, controls, keep_rate=keep_rate, **options_)
            path = pipeline.save(result, self.base.output, suffix)
            self._append(result, path, full)
            found = key_suggestion.suggest_shift(song.features, voice.statistics, voice.kind)
            text = f"Result {self.n_results} is below, and in {path}. {found.reminder(controls)}"
            self.message.show(text.strip(), "done")

        self._start(task)

    def transfer_all(self) -> None:
        """Convert every song of the menu; each result appends as soon as it is there."""
        controls, options, path = self.controls(), self._options(), self.instrument.value
        paths, own_keys = [value for _, value in self.song.options], self.own_keys.value
        keep_rate, suffix = self.keep_rate.value, self.format.value

        def task():
            self.message.show("")
            voice = self._open(path)

            def controls_for(song):
                found = key_suggestion.suggest_shift(song.features, voice.statistics, voice.kind)
                return found.applied(controls) if own_keys else controls

            def done(result):
                self._append(result, pipeline.save(result, self.base.output, suffix), False)

            options_ = {**options, "progress": self.progress, "cancelled": self.task.cancelled}
            failed = pipeline.convert_songs(voice, paths, done, controls_for, keep_rate=keep_rate, **options_)
            self.message.show(pipeline.describe(len(paths), failed), "warning" if failed else "done")

        self._start(task)

    def _options(self) -> dict:
        return {"sampling": self.sampling.options(), "vocoder": self.sampling.chosen_vocoder()}

    def settings_of(self, paths: list[Path]) -> dict[Path, ab_compare.Settings]:
        """The settings of the panel for other instruments too: each gets what it has options for, the mix of singers
        only the chosen one."""
        found = {}
        for path in paths:
            controls = self.controls()
            if path != self.instrument.value:
                controls = dataclasses.replace(controls, singer=None)
            listing = self.listings.get(path)
            options = self._options() if listing is not None and listing.kind == "diffusion" else {}
            found[path] = ab_compare.Settings(controls, **options)
        return found

    def _append(self, result, path, full):
        self.progress(1.0, "drawing")
        self.n_results += 1
        shown = widgets.html(result_html(result, path, self.n_results, full), "t-result")
        self.results.children = (*self.results.children, shown)


def show(result: pipeline.Conversion, path: Path) -> HTML:
    """A conversion and the file it was saved in, as in the panel."""
    return HTML(result_html(result, path, 1))
