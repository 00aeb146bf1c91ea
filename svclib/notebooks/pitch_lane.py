"""The pitch lane of notebook 03: the F0 of a song over its spectrogram, edited by hand."""

import json
from pathlib import Path

import ipywidgets as W
import numpy as np

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import units
from svclib.conversion import autotune, f0_edit
from svclib.conversion.song import Song
from svclib.notebooks import base as widgets

LANE_STEP_S = 0.01  # of the F0 that is sent to the browser; the edits are in seconds


class PitchLane(W.VBox):
    """Drag notes, draw curves, snap a section to a key, undo; every change is kept in the file beside the song.

    It is empty until :meth:`show`. The browser sends the whole list of edits through a hidden text area.
    """

    def __init__(self, message: widgets.Message):
        self._message, self._song = message, None
        self._face, self._inbox = widgets.html(), widgets.Inbox(layout=W.Layout(display="none"))
        super().__init__([self._face, self._inbox])
        self.add_class("svclib-lane")
        self._inbox.observe(message.guard(self._received), "value")

    def show(self, song: Song) -> None:
        """Show a measured song with the edits beside it; ConfigError where their file is damaged: it stays as it is."""
        self._song, edit = song.path, f0_edit.of_song(song.path) or f0_edit.F0Edit()
        template, script = (Path(__file__).with_name(f"pitch_lane.{end}").read_text("utf-8") for end in ("html", "js"))
        data, level_db = _lane(song, edit), plots.log_spectrogram(song.audio, song.features.settings.sample_rate_hz)[0]
        # from 60 Hz to half the sample rate, rows equally spaced in cents
        picture = plots.plain_levels(level_db, plots.FLOOR_DB, max(-20.0, float(level_db.max())))
        filled = {"data": json.dumps(data), "picture": page.data_uri(picture, "image/png"), "script": script}
        keys = {"keys": list(data["keys"]), "key": data["key"]}
        self._face.value = page.TEMPLATES.from_string(template).render(filled, **keys)

    def hide(self) -> None:
        """Show nothing: another song was chosen."""
        self._song, self._face.value = None, ""

    def _received(self, change) -> None:
        text, self._inbox.value = change["new"], ""
        if not text or self._song is None:
            return
        edit = f0_edit.parse(text.encode(), "the pitch lane's message")
        if edit.song != self._song.name:
            return
        path = f0_edit.beside(self._song)
        f0_edit.write(path, edit)
        count = "1 edit" if len(edit.edits) == 1 else f"{len(edit.edits)} edits"
        self._message.show(f"The pitch is kept in {path.name} ({count}). Press Transfer.", "done")


def _lane(song: Song, edit: f0_edit.F0Edit) -> dict:
    """The data of ``pitch_lane.js``: F0 in cents above MIDI 0 (0 where unvoiced), notes in seconds, keys, edits."""
    measured = song.features
    hop, rate = measured.settings.hop_samples, measured.settings.sample_rate_hz
    frame_s = hop / rate
    every = max(1, round(LANE_STEP_S / frame_s))
    midi = units.hz_to_midi(measured.f0_hz.astype(np.float64))
    voiced = np.asarray(measured.voiced, dtype=bool) & (midi > 0)
    tuning = autotune.tuning_offset(midi[voiced], measured.confidence[voiced])
    keys = [key for key in autotune.KEYS if key != "auto"]
    scales = {key: np.unique(autotune.scale_notes(key) % 12).astype(int).tolist() for key in keys}
    return {
        "name": song.path.name,
        "seconds": len(song.audio) / rate,
        "first_s": 0.5 * frame_s,
        "step_s": every * frame_s,
        "cents": np.where(voiced, np.round(100 * midi, 1), 0)[::every].tolist(),
        "notes": [[round(a * frame_s, 3), round(b * frame_s, 3)] for a, b in f0_edit.notes(measured)],
        "keys": scales,
        "key": autotune.suggest_key(midi[voiced], measured.confidence[voiced], tuning),
        "tuning": round(100 * tuning),
        "edits": [one.to_json() for one in edit.edits],
        "bottom": 100 * float(units.hz_to_midi(60.0)),
        "top": 100 * float(units.hz_to_midi(rate / 2)),
    }
