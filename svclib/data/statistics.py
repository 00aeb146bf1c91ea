"""Statistics of a dataset, stored in instruments: pitch, loudness, durations per singer. Plain JSON, None if empty.

Notes are frames with a ``loudness.note_on_ratio`` of at least 1; pitch statistics use their voiced frames.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from svclib.audio import units
from svclib.audio.loudness import note_on_ratio
from svclib.features import extract

HISTOGRAM_EDGES_MIDI = [n - 0.5 for n in range(24, 110)]
N_QUANTILES = 1000


def compute(recordings: Iterable[tuple[str, extract.Features]]) -> dict:
    """Statistics over recordings, given as singer and features of each; iterated once.

    ``n_recordings``; ``duration_s``; ``f0_midi`` {mean_note, std_note, min_note, max_note, histogram {edges_midi,
    seconds}}, in MIDI notes over voiced note frames (notes outside the histogram count at its ends); ``loudness_db``
    {mean_note, std_note over note frames; min, max, mean over all}; ``loudness_quantiles_db``: 1000 values from minimum
    to maximum over note frames, [] without any; ``singers``: the same for each; ``log_mel`` {min, max} or None. Values
    without any frames are None.
    """
    found, extremes = [], []
    for singer, item in recordings:
        found.append((singer, _measure(item)))
        if item.log_mel is not None and item.log_mel.size:
            extremes.append(np.array([item.log_mel.min(), item.log_mel.max()]))
    names = sorted({singer for singer, _ in found})
    singers = {name: _summary([m for singer, m in found if singer == name]) for name in names}
    return {**_summary([m for _, m in found]), "singers": singers, "log_mel": value_range(extremes)}


def _measure(item: extract.Features) -> dict:
    """Measurements of one recording that the statistics keep."""
    loudness, rate_hz = item.loudness_db, item.settings.sample_rate_hz
    note = note_on_ratio(loudness, item.confidence) >= 1.0
    midi = units.hz_to_midi(item.f0_hz[note & item.voiced & (item.f0_hz > 0)].astype(np.float64))
    inside = np.clip(midi, HISTOGRAM_EDGES_MIDI[0], HISTOGRAM_EDGES_MIDI[-1])
    return {
        "duration_s": item.n_samples / rate_hz,
        "seconds": np.histogram(inside, HISTOGRAM_EDGES_MIDI)[0] * (item.settings.hop_samples / rate_hz),
        "midi": midi.astype(np.float32),
        "notes_db": loudness[note].astype(np.float32),
        "n_frames": len(loudness),
        "sum_db": float(loudness.sum(dtype=np.float64)),
        "range_db": (float(loudness.min()), float(loudness.max())) if len(loudness) else (),
    }


def _summary(found: list[dict]) -> dict:
    midi, loud = (np.concatenate([np.zeros(0), *(m[k] for m in found)]) for k in ("midi", "notes_db"))
    n_frames, extremes = sum(m["n_frames"] for m in found), [v for m in found for v in m["range_db"]]
    quantiles = np.quantile(loud, np.linspace(0, 1, N_QUANTILES)) if len(loud) else []
    seconds = sum((m["seconds"] for m in found), np.zeros(len(HISTOGRAM_EDGES_MIDI) - 1))
    histogram = {"edges_midi": HISTOGRAM_EDGES_MIDI, "seconds": [round(float(s), 6) for s in seconds]}
    over_notes: dict[str, Any] = {"mean_note": np.mean, "std_note": np.std, "min_note": np.min, "max_note": np.max}
    f0_midi = {name: float(function(midi)) if len(midi) else None for name, function in over_notes.items()}
    return {
        "n_recordings": len(found),
        "duration_s": sum((m["duration_s"] for m in found), 0.0),
        "f0_midi": {**f0_midi, "histogram": histogram},
        "loudness_db": {
            "mean_note": float(loud.mean()) if len(loud) else None,
            "std_note": float(loud.std()) if len(loud) else None,
            "min": min(extremes, default=None),
            "max": max(extremes, default=None),
            "mean": sum(m["sum_db"] for m in found) / n_frames if n_frames else None,
        },
        "loudness_quantiles_db": [round(float(q), 4) for q in quantiles],
    }


def lacks_notes(found: dict) -> bool:
    """True if the statistics of a dataset or a singer hold no notes, or in less than 2 % of the time."""
    pitch = found.get("f0_midi") or {}
    seconds = (pitch.get("histogram") or {}).get("seconds")
    few = seconds is not None and sum(seconds) < 0.02 * found["duration_s"]
    return few or pitch.get("mean_note", 0.0) is None


def note_range_midi(pitch: dict) -> tuple[float, float]:
    """Lowest and highest note of ``f0_midi`` that is held for more than half a percent of the time.

    Single frames beyond are mostly octave errors of the tracker.
    """
    edges, seconds = (np.array(pitch.get("histogram", {}).get(k, [])) for k in ("edges_midi", "seconds"))
    share = np.cumsum(seconds) / max(seconds.sum(), 1e-9)
    inside = np.flatnonzero((share > 0.005) & (share - seconds / max(seconds.sum(), 1e-9) < 0.995))
    if not len(inside):
        return pitch["min_note"], pitch["max_note"]
    low, high = float(edges[inside[0]]) + 0.5, float(edges[inside[-1] + 1]) - 0.5
    return max(low, pitch["min_note"]), min(high, pitch["max_note"])


def value_range(arrays: Iterable[np.ndarray]) -> dict | None:
    """{min, max} over arrays; None if they are empty."""
    found = [(float(a.min()), float(a.max())) for a in arrays if a.size]
    return {"min": min(low for low, _ in found), "max": max(high for _, high in found)} if found else None
