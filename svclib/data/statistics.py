"""Statistics of a dataset, stored in instruments: pitch, loudness, durations per singer. Plain JSON, None if empty.

Notes are frames with a note-on ratio of at least 1 (``loudness.note_mask``); pitch statistics use their voiced frames.
"""

from collections.abc import Iterable

import numpy as np

from svclib.audio import units
from svclib.audio.loudness import note_mask, note_on_ratio
from svclib.features import extract

HISTOGRAM_EDGES_MIDI = [n - 0.5 for n in range(24, 110)]
N_QUANTILES = 1000


class _Collector:
    """Running statistics of the recordings of one singer, or of all."""

    def __init__(self):
        self.n_recordings, self.duration_s = 0, 0.0
        self.midi, self.loudness_notes = [], []
        self.seconds = np.zeros(len(HISTOGRAM_EDGES_MIDI) - 1)
        self.loudness_sum = self.n_frames = 0
        self.loudness_min, self.loudness_max = np.inf, -np.inf

    def add(self, item: extract.Features) -> None:
        loudness = item.loudness_db
        hop_s = item.settings.hop_samples / item.settings.sample_rate_hz
        self.n_recordings += 1
        self.duration_s += item.n_samples / item.settings.sample_rate_hz
        if not len(loudness):
            return
        note = np.asarray(note_mask(note_on_ratio(loudness, item.confidence), 1.0))
        midi = units.hz_to_midi(item.f0_hz[note & item.voiced & (item.f0_hz > 0)].astype(np.float64))
        inside = np.clip(midi, HISTOGRAM_EDGES_MIDI[0], HISTOGRAM_EDGES_MIDI[-1])
        self.seconds += np.histogram(inside, HISTOGRAM_EDGES_MIDI)[0] * hop_s
        self.midi.append(midi.astype(np.float32))
        self.loudness_notes.append(loudness[note].astype(np.float32))
        self.loudness_sum += float(loudness.sum(dtype=np.float64))
        self.n_frames += len(loudness)
        self.loudness_min = min(self.loudness_min, float(loudness.min()))
        self.loudness_max = max(self.loudness_max, float(loudness.max()))

    def result(self) -> dict:
        midi, loud = (np.concatenate([np.zeros(0), *x]) for x in (self.midi, self.loudness_notes))
        some = self.n_frames > 0
        quantiles = np.quantile(loud, np.linspace(0, 1, N_QUANTILES)) if len(loud) else []
        seconds = [round(float(s), 6) for s in self.seconds]
        return {
            "n_recordings": self.n_recordings,
            "duration_s": self.duration_s,
            "f0_midi": {
                "mean_note": _value(np.mean, midi),
                "std_note": _value(np.std, midi),
                "min_note": _value(np.min, midi),
                "max_note": _value(np.max, midi),
                "histogram": {"edges_midi": HISTOGRAM_EDGES_MIDI, "seconds": seconds},
            },
            "loudness_db": {
                "mean_note": _value(np.mean, loud),
                "std_note": _value(np.std, loud),
                "min": self.loudness_min if some else None,
                "max": self.loudness_max if some else None,
                "mean": self.loudness_sum / self.n_frames if some else None,
            },
            "loudness_quantiles_db": [round(float(q), 4) for q in quantiles],
        }


def compute(recordings: Iterable[tuple[str, extract.Features]]) -> dict:
    """Statistics over recordings.

    Args:
        recordings: Singer and features of each; iterated once.

    Returns:
        ``n_recordings``; ``duration_s``; ``f0_midi`` {mean_note, std_note, min_note, max_note, histogram {edges_midi,
        seconds}}, in MIDI notes over voiced note frames (notes outside the histogram count at its ends);
        ``loudness_db`` {mean_note, std_note over note frames; min, max, mean over all}; ``loudness_quantiles_db``:
        1000 values from minimum to maximum over note frames, [] without any; ``singers``: the same for each;
        ``log_mel`` {min, max} or None. Values without any frames are None.
    """
    everything, singers, extremes = _Collector(), {}, []
    for singer, item in recordings:
        everything.add(item)
        singers.setdefault(singer, _Collector()).add(item)
        if item.log_mel is not None and item.log_mel.size:
            extremes.append(np.array([item.log_mel.min(), item.log_mel.max()]))
    singers = {singer: collector.result() for singer, collector in sorted(singers.items())}
    return {**everything.result(), "singers": singers, "log_mel": value_range(extremes)}


def value_range(arrays: Iterable[np.ndarray]) -> dict | None:
    """{min, max} over arrays; None if they are empty."""
    found = [(float(a.min()), float(a.max())) for a in arrays if a.size]
    return {"min": min(low for low, _ in found), "max": max(high for _, high in found)} if found else None


def _value(function, values) -> float | None:
    return float(function(values)) if len(values) else None
