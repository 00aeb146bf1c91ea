"""The panels of notebook 03: conversion, whose results append below, and the A/B table of one clip in variants."""

import dataclasses
import functools
import itertools
import shutil
from pathlib import Path
from typing import NamedTuple

import ipywidgets as W
from IPython.display import HTML

from svclib.analysis import compare as tables
from svclib.analysis import html as page
from svclib.analysis.ddsp_inspection import result_html
from svclib.audio import io as audio
from svclib.conversion import ab_compare, cover, f0_edit, key_suggestion, pipeline
from svclib.conversion import song as songs
from svclib.conversion.controls import Controls
from svclib.features import f0
from svclib.models import instrument
from svclib.models.instrument import InstrumentEntry
from svclib.notebooks import base as widgets
from svclib.notebooks.controls import OWN, SHIFTS, ControlSliders, SamplingControls, sampling_menu, vocoder_menu
from svclib.notebooks.panel import TaskPanel, close
from svclib.notebooks.pitch_lane import PitchLane
from svclib.utils import atomic_store, download, filesystem, workspace
from svclib.utils.errors import Cancelled, ModelError, StorageError

_LEGEND = (
    "Seconds: of the conversion alone. Real-time factor (RTF): these over the seconds of sound; below 1 is faster than "
    "it plays. F0 RMSE, F0 corr.: measured against target F0, where "
    "both are voiced; below 20 cents hardly anybody hears it. Voicing F1: tone where tone was the target, breath where "
    "breath; 1 is all right. Loudness: mean distance from the target."
)
FETCHED = "fetch"
SEPARATED = (("taken out of the song", "separate"), ("taken out of the song, separator fetched if needed", FETCHED))
MIX_SHARE = 0.25  # of the steady notes with a second pitch in them; reverberation may give less
MENU = {"width": "min(430px, 98%)", "label_width": "120px"}


def show(result: pipeline.Conversion, path: Path) -> HTML:
    """A conversion and the file it was saved in, as in the panel."""
    return HTML(result_html(result, path, 1))


class ConvertPanel(TaskPanel):
    """Choose, adjust, transfer, listen. Nothing is computed before a button is pressed."""

    BRING = "Press Upload a song or Record, or put a recording there"

    def __init__(self, base: workspace.Base):
        super().__init__(base)
        self.n_results, self.shown, self._taken_apart = 0, dict[W.VBox, list[Path]](), dict[tuple, _Parts]()
        self._make_choices()
        self.on_change(self._choice_changed, self.instrument, self.song, self.is_mix, self.is_blend)
        face = {"label": "Upload a song or instrument", "hint": f"they are stored in {base.root}"}
        face["accept"] = ",".join([*sorted(audio.SUFFIXES), ".zip"])
        self.upload = widgets.Uploader(self.message, self._keep, self._kept, face, microphone=True)
        self.listen_button = self.button("Play song", self.listen, "listen", hint="a player of the chosen song")
        self.player = widgets.html(css_class="t-song-player")
        self.sliders, self.sampling, self.results = ControlSliders(self), SamplingControls(), W.VBox([])
        self.lane = PitchLane(self.message)
        self._make_controls()
        self.lay_out(
            widgets.row(self.instrument, self.song),
            widgets.row(self.is_mix, self.is_blend),
            self.mix_row,
            self.blend_row,
            widgets.row(self.refresh_button, self.upload, self.listen_button, self.suggest_button, self.lane_button),
            self.player,
            self.lane,
            widgets.row(self.link, self.fetch_button),
            self.sliders.suggestion,
            self.sliders.take_buttons,
            widgets.row(*self.sliders.columns, self.sampling, align="flex-start"),
            widgets.row(*self.buttons, self.sliders.preset, self.progress.widget),
            self.message.widget,
            widgets.row(self.download_button),
            self.results,
        )
        self.add_class("svclib-convert")
        self.refresh_button.click()

    def _make_choices(self):
        hint = "a finished song: its voice is converted, its accompaniment kept, and both are mixed again"
        self.is_mix = self.checkbox("This is a mix", "is-mix", hint, width="auto")
        self.is_mix.layout.margin = "2px 24px 2px 2px"
        hint = "where the accompaniment comes from: out of the song, or the file of it if the song is the voice alone"
        self.accompaniment = self.dropdown("Accompaniment", "accompaniment", hint, list(SEPARATED), **MENU)
        limits, size = (-12.0, 12.0), {"width": "min(360px, 98%)", "label_width": "120px"}
        hint = "level of the voice in the mix; 0: that of the voice it replaces"
        self.voice_db = self.slider("Voice (dB)", "voice-db", hint, 0.0, limits, step=0.5, readout_format=".1f", **size)
        self.mix_row = widgets.row(self.accompaniment, self.voice_db)
        hint = "a voice between two instruments that were trained from the same base"
        self.is_blend = self.checkbox("Blend with a second instrument", "is-blend", hint, width="auto")
        hint = "of the same kind, and from the same base"
        self.second = self.dropdown("Second instrument", "second", hint, **MENU)
        hint = "of the second instrument: 0 is the first one alone, 1 the second one"
        self.share = self.slider("Its share", "share", hint, 0.5, (0.0, 1.0), step=0.05, readout_format=".2f", **size)
        self.blend_row = widgets.row(self.second, self.share)

    def _make_controls(self):
        hint = "also original, harmonic and noise part, spectrograms and the four plots"
        self.full_output = self.checkbox("Full output", "full-output", hint, True)
        hint = "otherwise the file has the instrument's rate"
        self.keep_rate = self.checkbox("Keep the song's sample rate", "keep-rate", hint)
        self.format = self.dropdown("File", "format", "format of the saved file", ["wav", "flac", "mp3"])
        trackers = [OWN, *((name, name) for name in f0.F0_METHODS)]
        self.f0_method = self.dropdown("Pitch tracker", "f0-method", "measures F0 in the song", trackers)
        pitch, *_ = self.sliders.columns
        hint = "where Edit pitch has left edits beside a song"
        self.edited = self.checkbox("Sing the edited pitch", "edited", hint, True)
        rows = (self.full_output, self.keep_rate, self.format, self.f0_method, self.edited)
        output = widgets.column("Output", *rows)
        hint = "Transfer moves octave and semitones to what fits instrument and song; moving one of them turns it off"
        self.auto_key = self.checkbox("Automatic key", "auto-key", hint, True)
        pitch.children = (pitch.children[0], self.auto_key, *pitch.children[1:], *output.children)
        choices = (self.is_mix, self.accompaniment, self.voice_db, self.is_blend, self.share)
        self._initial = {control: control.value for control in (*rows, self.auto_key, *choices)}
        self.on_change(self._key_moved, *(self.sliders.widgets[name] for name in SHIFTS))
        hint = "compares where the song and the instrument sing, and says which shift fits"
        self.suggest_button = self.button("Suggest key", self.suggest, "suggest", hint=hint)
        hint = "the song's pitch over its spectrogram: move notes, draw, snap to a key; kept in a file beside the song"
        self.lane_button = self.button("Edit pitch", self.edit_pitch, "edit-pitch", hint=hint)
        hint, width = "Google Drive or web address of an instrument (.zip) or a song", "min(430px, 98%)"
        self.link = self.control(W.Text, "Link", "link", hint, width=width, label_width="80px")
        self.fetch_button = self.button("Fetch", self.fetch, "fetch", hint="bring what the link gives into the menus")
        self.download_button = self.button("Download all", self.download_all, "download-all", hint="as one zip")
        self.download_button.layout.display = "none"
        hint = "sing the song with the instrument"
        self.transfer_button = self.button("Transfer", self.transfer, "transfer", "primary", hint)
        hint = "sing every song of the menu; one that fails does not stop the others"
        self.all_button = self.button("Transfer all songs", self.transfer_all, "transfer-all", hint=hint)
        self.reset_button = self.button("Reset", self.reset, "reset", hint="all controls back to where they began")
        self.work_buttons = (self.transfer_button, self.all_button)
        self.buttons = (*self.work_buttons, self.cancel_button, self.reset_button)

    def read_folders(self) -> None:
        """Fill the menus."""
        super().read_folders()
        self._choice_changed()

    def _choice_changed(self):
        self.player.value = ""
        self.mix_row.layout.display = "" if self.is_mix.value else "none"
        self.blend_row.layout.display = "" if self.is_blend.value else "none"
        widgets.fill(self.accompaniment, [*SEPARATED, *((n, p) for n, p in self.song.options if p != self.song.value)])
        self.sliders.suggest_nothing()
        self.lane.hide()
        self.task.show()
        entry = self.entries.get(self.instrument.value)
        kind = entry.kind if entry and entry.kind else self.sliders.kind
        alike = [path for _, path in self.instrument.options if path and self.entries[path].kind == kind]
        others = [path for path in alike if path != self.instrument.value]
        widgets.fill_files(self.second, self.base.instruments, others)
        self.sliders.for_kind(kind)
        self.sampling.show(entry if kind == "diffusion" else None, list(self.entries.values()))
        compared = self._living.get(ComparePanel)
        if isinstance(compared, ComparePanel) and compared.convert is self:
            compared.follow(self.song.value)

    def _keep(self, path: Path) -> Path:
        """Store an uploaded song or instrument under a free name, if it is one."""
        folder = self.base.examples
        if path.suffix.lower() == ".zip":
            folder = self.base.instruments
            instrument.open(path)
        else:
            audio.probe(path)
        return atomic_store.commit_new(folder / path.name, functools.partial(shutil.copyfile, path))

    def _kept(self, paths: list[Path]) -> str:
        """Choose the last one of the stored songs or instruments."""
        self.refresh()
        menu = self.instrument if paths[-1].parent == self.base.instruments else self.song
        ready = ""
        if paths[-1] in [path for _, path in menu.options]:  # not a vocoder
            menu.value = paths[-1]
            ready = "" if self.missing() else " and chosen. Press Transfer"
        return f"{paths[-1].name} is stored in {paths[-1].parent}{ready}."

    def controls(self) -> Controls:
        """The controls as they stand."""
        return self.sliders.controls(self.sampling.singer())

    def reset(self) -> None:
        """All controls back to where they began."""
        self.sliders.reset()
        self.sampling.reset()
        for control, value in self._initial.items():
            control.value = value

    def _key_moved(self):
        self.auto_key.value = False

    def listen(self) -> None:
        """Show a player of the chosen song."""
        if self.song.value is not None:
            found = audio.read(self.song.value)
            self.player.value = page.player(found.samples, found.sample_rate_hz, self.song.value.name)

    def fetch(self) -> None:
        """Bring the instrument or song that the link gives into the person's folder, and choose it."""

        def work():
            found = download.fetch_file(self.link.value.strip(), filesystem.cache_folder() / "links", self.progress)
            self.message.show(self._kept([self._keep(found)]), "done")

        self.start(work, "" if self.link.value.strip() else "Paste a link first.")

    def download_all(self) -> None:
        """Give all results that are shown as one zip."""
        self.offer(*itertools.chain(*self.shown.values()))

    def _options(self) -> dict:
        return {"sampling": self.sampling.options(), "vocoder": self.sampling.chosen_vocoder()}

    def settings_for(self, entry: InstrumentEntry) -> ab_compare.Settings:
        """The settings of the panel for an instrument: what it has options for, the singers only for the chosen one."""
        singer = self.sampling.singer() if entry.path == self.instrument.value else None
        options = self._options() if entry.kind == "diffusion" else {}
        return ab_compare.Settings(self.sliders.controls(singer), **options, suggested_key=self.auto_key.value)

    def _request(self) -> "_Request":
        shares = {self.instrument.value: 1.0}
        if self.is_blend.value:
            if self.second.value is None:
                hint = "Bring one, or take the tick from Blend with a second instrument."
                raise ModelError(f"There is no second instrument of this kind in {self.base.instruments}.", hint=hint)
            shares = {self.instrument.value: 1.0 - self.share.value, self.second.value: self.share.value}
        source = self.accompaniment.value if self.is_mix.value else None
        adjusted = (self.f0_method.value or None, self.controls(), self.auto_key.value, self.edited.value)
        return _Request(shares, self.song.value, source, self.voice_db.value, *adjusted, self.format.value)

    def _open(self, shares: dict[Path, float]):
        """The instrument, or the blend of two."""
        opened = [(self.open_instrument(path), share) for path, share in shares.items()]
        return opened[0][0] if len(opened) == 1 else instrument.blend(opened)

    def _parts(self, path: Path, source: Path | str | None) -> "_Parts":
        """The voice of a song and its accompaniment; a song is taken apart once."""
        if source is None or isinstance(source, Path):
            return _Parts(path, source)
        key = (path, path.stat().st_mtime_ns)
        if key not in self._taken_apart or not self._taken_apart[key].voice.exists():
            stems = cover.separate(path, cover.DemucsSeparator(download=source == FETCHED), **self.callbacks)
            saved = cover.save_stems(stems, self.base.output, path.stem)
            self._taken_apart[key] = _Parts(*saved, cover.harmony_warning(saved[0]))
        return self._taken_apart[key]

    def _load(self, asked: "_Request"):
        """The chosen instrument, the parts of the song and its voice, opened or as opened before."""
        voice, parts = self._open(asked.shares), self._parts(asked.song, asked.source)
        song = songs.cached_song(parts.voice, voice.features, asked.f0_method, **self.callbacks)
        return voice, parts, song

    def suggest(self) -> None:
        """Show which octave and semitones fit the instrument and why, with buttons that take them."""
        asked = self._request()

        def work():
            voice, _, song = self._load(asked)
            self.sliders.suggest(asked.suggested(voice, song))

        self.start(work)

    def edit_pitch(self) -> None:
        """Show the pitch lane of the chosen song."""
        asked = self._request()
        self.start(lambda: self.lane.show(self._load(asked)[2]))

    def transfer(self) -> None:
        """Convert the chosen song in the background and append the result."""
        asked, options, full = self._request(), self._options(), self.full_output.value
        options["keep_rate"] = self.keep_rate.value

        def work():
            voice, parts, song = self._load(asked)
            hint = "" if parts.accompaniment else _mix_hint(song.path, song.path.stat().st_mtime_ns)
            found = asked.suggested(voice, song)
            controls = asked.adjusted(song, found)
            if asked.auto_key:
                automatic = self.auto_key.value
                for name in SHIFTS:
                    self.sliders.widgets[name].value = getattr(controls, name)
                self.auto_key.value = automatic  # it was not the person who moved them
            result = pipeline.convert(voice, song, controls, **options, **self.callbacks)
            path = self._keep_result(result, parts, asked, full)
            text = f"Result {self.n_results} is below, and in {path}."
            report = " ".join(filter(None, (text, found.reminder(controls), hint)))
            self.message.show(report, "warning" if hint else "done")

        self.start(work)

    def transfer_all(self) -> None:
        """Convert every song of the menu; each result appends as soon as it is there."""
        asked, paths = self._request(), [value for _, value in self.song.options]
        options = self._options() | {"keep_rate": self.keep_rate.value, "f0_method": asked.f0_method}

        def work():
            voice, parts, failed = self._open(asked.shares), dict[Path, _Parts](), dict[Path, Exception]()
            for path in paths:
                try:
                    found = self._parts(path, asked.source)
                    parts[found.voice] = found
                except Cancelled:
                    raise
                except (ValueError, OSError) as error:
                    failed[path] = error

            def controls_for(song):
                return asked.adjusted(song, asked.suggested(voice, song))

            def done(result):
                self._keep_result(result, parts[result.song.path], asked, False)

            failed |= pipeline.convert_songs(voice, list(parts), done, controls_for, **options, **self.callbacks)
            self.message.show(pipeline.describe(len(paths), failed), "warning" if failed else "done")

        several = isinstance(asked.source, Path) and len(paths) > 1
        self.start(work, self.missing() or several * "One accompaniment is of one song: press Transfer.")

    def show_busy(self, busy: bool) -> None:
        """Turn the buttons on and off."""
        super().show_busy(busy)
        self.suggest_button.disabled = self.lane_button.disabled = busy

    def _keep_result(self, result, parts: "_Parts", asked: "_Request", full: bool) -> Path:
        """Save and show a result, and its mix with the accompaniment if there is one; the path of the last of them."""
        paths, mixed = [pipeline.save(result, self.base.output, asked.suffix)], ""
        if parts.accompaniment is not None:
            stems = cover.open_stems(parts.voice, parts.accompaniment)
            path, warnings = cover.save_mix(result, stems, self.base.output, asked.suffix, asked.voice_db)
            paths.insert(0, path)
            sound = (cover.read_stereo(path, stems.sample_rate_hz), stems.sample_rate_hz)
            player = page.player(*sound, "Voice and accompaniment", f"Saved as {path}")
            notices = [page.notice(text, "warning") for text in (parts.warning, *warnings) if text]
            mixed = "".join([page.heading(f"{self.n_results + 1}. The mix"), *notices, page.flow(player)])
        self.progress(1.0, "drawing")
        self.n_results += 1
        shown = widgets.html(mixed + result_html(result, paths[-1], self.n_results, full), "t-result")
        path, box = paths[0], W.VBox()
        keep = self.button("Download", lambda: self.offer(path), "download", hint=f"{path.name}, from {path.parent}")
        hint = "from this page; its file stays where it is"
        remove = self.button("Remove", lambda: self._remove(box), "remove", hint=hint)
        box.children = (shown, widgets.row(keep, remove))
        self.shown[box] = paths
        self._show_results()
        return path

    def _remove(self, box: W.VBox) -> None:
        if self.shown.pop(box, None) is not None:  # a second click may be on its way
            self._show_results()
            close(box)

    def _show_results(self):
        self.results.children = tuple(reversed(self.shown))  # the newest on top
        self.download_button.layout.display = "" if len(self.shown) > 1 else "none"


class _Request(NamedTuple):
    """The choices when a button was pressed: shares by instrument, the song, the accompaniment of a mix and the
    level of its voice, how the song is measured and adjusted, and the format of the file."""

    shares: dict[Path, float]
    song: Path
    source: Path | str | None
    voice_db: float
    f0_method: str | None
    controls: Controls
    auto_key: bool
    edited: bool
    suffix: str

    def suggested(self, voice, song) -> key_suggestion.Suggestion:
        """The suggested shift: whole octaves in a mix, whose accompaniment keeps its key."""
        found = key_suggestion.suggest_shift(song.features, voice.statistics, voice.kind)
        return found if self.source is None else dataclasses.replace(found, shift_semitones=12 * found.octaves)

    def adjusted(self, song, found: key_suggestion.Suggestion) -> Controls:
        """The controls with the suggested shift and the edits beside the song, each if it is wanted."""
        controls = found.applied(self.controls) if self.auto_key else self.controls
        return dataclasses.replace(controls, f0_edit=f0_edit.of_song(song.path) if self.edited else None)


class _Parts(NamedTuple):
    """The voice that is converted, its accompaniment if it is one of a mix, and a warning about the voice."""

    voice: Path
    accompaniment: Path | None = None
    warning: str = ""


@functools.lru_cache(64)
def _mix_hint(path: Path, mtime_ns: int) -> str:
    """A sentence if a song that is converted as a voice alone holds more than that; measured once for each song."""
    share = cover.mixture_share(path)
    if share < MIX_SHARE:
        return ""
    return f"In {100 * share:.0f} % of its notes another pitch sounds: if it is a finished song, tick This is a mix."


class ComparePanel(TaskPanel):
    """Choose variants, press Compare; a row appears whenever one is converted and measured. Nothing is written.

    Song, controls and diffusion settings are those of the panel ``convert``; without it every instrument's own.
    """

    PREFIX = "t-ab-"
    STOPPING = "Stopping; the rows so far stay."
    SIZE = {}

    def __init__(self, base: workspace.Base, convert: ConvertPanel | None = None):
        super().__init__(base)
        self._convert, self.rows, self._cells, self._about = convert, [], [], ""
        starts = [OWN, ("pure noise", ab_compare.PURE_NOISE), *sampling_menu("shallow")[1:]]
        self.instruments = self.several("Instruments", "instruments", "several with Ctrl or Shift", [OWN])
        found = sampling_menu("sampler")[1:]
        names = [OWN, *((name, name) for _, name in found)]
        self.samplers = self.several("Samplers", "samplers", "; ".join(label for label, _ in found), names)
        self.steps = self.several("Steps", "steps", "of diffusion instruments", sampling_menu("steps"))
        self.starts = self.several("Shallow start", "shallow", "of diffusion instruments", starts)
        self.vocoders = self.several("Vocoders", "vocoders", "of diffusion instruments", [OWN])
        self.sampling = widgets.column("Sampling", self.samplers, self.steps, self.starts)
        self.start_s = self.number("Start (s)", "start", "where the clip begins", 0.0, widgets.START_S)
        self.seconds = self.number("Length (s)", "seconds", "of the clip", 6.0, (0.5, 60.0))
        hint = "key, loudness, singers, seed and whatever is not chosen here as the panel has it; otherwise every "
        hint += "instrument's own"
        self.as_set = self.checkbox("As set in the panel above", "as-set", hint, convert is not None)
        self.as_set.layout.display = "none" if convert is None else ""
        hint = "convert the clip in every chosen combination"
        self.compare_button = self.button("Compare", self.compare, "compare", "primary", hint)
        self.work_buttons = (self.compare_button,)
        self.csv_button = self.button("Save CSV", self.save, "csv", hint=f"the numbers, into {base.output}")
        self.on_change(self._show_relevant, self.instruments)
        self.table = widgets.html(css_class="t-ab-table")
        self.lay_out(
            widgets.row(
                widgets.column("Voice", self.instruments, self.vocoders),
                self.sampling,
                widgets.column("Clip", self.song, self.start_s, self.seconds, self.as_set),
                align="flex-start",
            ),
            widgets.row(
                self.compare_button, self.cancel_button, self.refresh_button, self.csv_button, self.progress.widget
            ),
            self.message.widget,
            self.table,
        )
        self.add_class("svclib-compare")
        self.refresh_button.click()

    def read_folders(self) -> None:
        """Fill the menus; the song is at first that of the panel above."""
        before = self.song.value or (self.convert and self.convert.song.value)
        super().read_folders()
        _fill(self.instruments, [(path.stem, entry) for path, entry in self.entries.items() if entry.converts])
        _fill(self.vocoders, vocoder_menu(list(self.entries.values())))
        self.follow(before)
        self._show_relevant()

    @property
    def convert(self) -> ConvertPanel | None:
        """The panel above, also after its cell was run again; None if this one goes without."""
        return self._convert and self._living.get(ConvertPanel, self._convert)

    def follow(self, song: Path | None) -> None:
        """Choose a song if it is in the menu."""
        if song in [value for _, value in self.song.options]:
            self.song.value = song

    def _show_relevant(self):
        """Hide what means nothing to the chosen instruments."""
        shown = "" if any(entry.kind == "diffusion" for entry in self.instruments.value) else "none"
        self.sampling.layout.display = self.vocoders.layout.display = shown

    def compare(self) -> None:
        """Convert the clip in every chosen combination, in the background."""
        menus = (self.instruments, self.samplers, self.steps, self.starts, self.vocoders)
        chosen = ab_compare.variants(*(menu.value for menu in menus))
        clip = (self.song.value, self.start_s.value, self.seconds.value)
        settings, about = {}, ""
        if self.convert is not None and self.as_set.value:
            settings = {entry.path: self.convert.settings_for(entry) for entry in self.instruments.value}
            texts = [settings[entry.path].text(entry.kind) for entry in self.instruments.value]
            about = f"Set in the panel: {'; '.join(dict.fromkeys(filter(None, texts))) or 'only the defaults'}. "

        def work():
            self.rows, self._cells, self._about = [], [], about
            given = (chosen, *clip, settings, widgets.open_instrument)
            for made in ab_compare.compare(*given, **self.callbacks):
                self.append(made)
            count = "One variant was" if len(chosen) == 1 else f"{len(chosen)} variants were"
            self.message.show(f"{count} compared.", "done")

        problem = "" if chosen else "Choose at least one instrument, sampler, number of steps, start and vocoder."
        self.start(work, self.missing() or problem)

    def save(self) -> None:
        """Write the numbers of the table as CSV."""
        head, rows = ab_compare.table(self.rows)
        if not rows:
            raise StorageError("There are no numbers to save yet; press Compare first.")
        path = tables.save_csv(self.base.output, f"compared {self.song.value.stem}", head, rows)
        self.written(path, f"Saved as {path}.")

    def append(self, made: ab_compare.Row) -> None:
        """Show another row."""
        sound = made.problem if made.audio is None else page.small_player(made.audio, made.sample_rate_hz, made.label)
        self.rows.append(made)
        self._cells.append([made.label, sound, *made.cells()])
        marks = ["error" if row.problem else "" for row in self.rows]
        table = page.table(list(ab_compare.HEADINGS), self._cells, marks)
        self.table.value = table + page.paragraph(self._about + _LEGEND)


def _fill(menu: W.SelectMultiple, options: list[tuple]) -> None:
    chosen = [label for label, value in menu.options if value in menu.value]
    menu.options = options
    kept = [i for i, (label, _) in enumerate(options) if label in chosen]
    menu.index = tuple(kept) or ((0,) if options else ())
