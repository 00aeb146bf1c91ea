"""Traces as one self-contained HTML page: scrub through the steps, from noise to signal, in pictures and sound.

``player.html`` is the template. The text is the output of a notebook cell (``html.frame``) and a file (:func:`export`).
"""

import base64
import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from svclib.analysis import compare, step_audio
from svclib.analysis import html as page
from svclib.analysis.step_audio import StepAudio
from svclib.analysis.trace import Trace
from svclib.audio import units
from svclib.utils import atomic_store
from svclib.utils.errors import ConversionError

CHANGE_DB, MAX_RUNS = 30.0, 4  # range of the difference colours
_BOTTOM_DB, _N_COLUMNS = -100.0, 600
_MAP_TEXT = (
    "each point is one step's guess (x0 prediction), averaged over time; one principal component analysis of all runs"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One trace, audio of its x0 predictions and noisy states, ``(f0_hz, voiced)`` of the audio by position, character
    error rates by position (``words``); ``compact`` leaves out the pictures of the noisy states."""

    trace: Trace
    label: str = ""
    audio: StepAudio | None = None
    f0: Mapping[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    noisy_audio: StepAudio | None = None
    compact: bool = False
    words: Mapping[int, float] = dataclasses.field(default_factory=dict)


def document(runs: Sequence[Run], title: str = "Watch it sing") -> str:
    """The page of up to four runs of one excerpt side by side, or more ``compact`` ones, as self-contained HTML."""
    return fill({"title": title, **group(runs), "more": []})


def fill(data: dict, pages: dict | None = None) -> str:
    """The page of :func:`group` data with ``title`` and ``more`` (other groups), and the pages of a lesson if given."""
    return page.TEMPLATES.get_template("player.html").render(title=data["title"], data=data, pages=pages)


def group(runs: Sequence[Run]) -> dict:
    """Runs to be shown side by side, as JSON data of the page."""
    if not runs:
        raise ConversionError("There is no run to show.")
    if len(runs) > MAX_RUNS and not all(run.compact for run in runs[1:]):
        raise ConversionError(f"{len(runs)} runs are too many for one page; it shows up to {MAX_RUNS}.")
    if len({(run.trace.kind, run.trace.result.shape, run.trace.contract) for run in runs}) > 1:
        shapes = ", ".join(f"{run.trace.kind} {run.trace.result.shape}" for run in runs)
        raise ConversionError(f"Show runs of the same excerpt and mel together; these have results of {shapes}.")
    first, contract = runs[0].trace, runs[0].trace.contract
    low, high = _range_db(runs)
    found = [_curves(run) for run in runs]
    curves = {
        c.name: {"name": c.name, "unit": c.unit, "meaning": c.meaning, "zero": c.name != "signal to noise"}
        for c in itertools.chain(*found)
    }
    paths, explained, _ = compare.joint_map([compare.map_features(run.trace) for run in runs])
    return {
        "mels": contract.n_mels,
        "frames": first.n_frames,
        "kind": first.kind,
        "frame_s": contract.hop_samples / contract.sample_rate_hz,
        "range_db": [low, high],
        "change_db": CHANGE_DB,
        "mel_hz": np.round(contract.centers_hz(), 1).tolist(),
        "ticks": [[round(place, 4), label] for place, label in first.frequency_ticks(0.09)],
        "pitch": _pitch_range(runs),
        "curves": list(curves.values()),
        "map": {"explained": [round(100 * float(x)) for x in explained], "text": _MAP_TEXT},
        "runs": [
            {"path": np.round(path, 5).tolist(), **_run_data(run, number, low, high, curves)}
            for number, (run, path, curves) in enumerate(zip(runs, paths, found, strict=True))
        ],
    }


def export(document_text: str, path: str | Path) -> Path:
    """Write the page as an HTML file under a free name and return its path; StorageError if it cannot be written."""
    data = document_text.encode("utf-8")
    return atomic_store.commit_new(Path(path).with_suffix(".html"), lambda part: part.write_bytes(data))


def _curves(run: Run) -> list[compare.Metric]:
    """Curves over the steps, and the F0 error if F0 was measured; the page itself draws the distance to the result."""
    trace, (_, *found) = run.trace, compare.mel_metrics(run.trace, warped=False)
    n = len(trace)
    if run.f0 and trace.target_f0 is not None:
        errors = {i: step_audio.f0_error(trace, *track) for i, track in run.f0.items()}
        counts = {i: count for i, (_, count) in errors.items()}
        meaning = f"root mean square over frames voiced in both, {min(counts.values())} to {max(counts.values())} of "
        meaning += f"{trace.n_frames} by step; not shown below {step_audio.MIN_FRAMES}"
        values = np.array([errors[i][0]["rmse"] if i in errors else math.nan for i in range(n)])
        frames = np.array([counts.get(i, 0) for i in range(n)])
        found.append(compare.Metric("F0 RMSE", "cents", meaning, "the target F0", np.arange(n), values, frames))
    if run.words:
        values = np.array([run.words.get(i, math.nan) for i in range(n)])
        about = ("character error rate", *step_audio.AUDIO_METRICS["character error rate"])
        found.append(compare.Metric(*about, np.arange(n), values, np.isfinite(values).astype(int)))
    return found


def _range_db(runs: Sequence[Run]) -> tuple[float, float]:
    """One colour range for a page: the floor of the mels (at least -100 dB) to the loudest result."""
    low = float(max(_BOTTOM_DB, 10 * math.floor(2 * math.log10(runs[0].trace.contract.floor))))
    shown = [run.trace.result if run.trace.kind == "mel" else run.trace.x_t[0] for run in runs]  # noise is loud
    high = max(float(run.trace.level_db(state).max()) for run, state in zip(runs, shown, strict=True))
    return low, float(max(10 * math.ceil(high / 10), low + 40))


def _bytes_of(level_db: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((level_db - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()


def outline(states: np.ndarray, limit: float | int, columns: int = _N_COLUMNS) -> np.ndarray:
    """Minimum and maximum of the samples in each column, int8 ``[states, 2, columns]``; +-127 stands for +-limit."""
    n = states.shape[-1]
    columns = min(columns, n)
    starts = np.arange(columns) * n // columns
    values = np.asarray(states, np.float32)
    ends = np.stack([np.minimum.reduceat(values, starts, axis=-1), np.maximum.reduceat(values, starts, axis=-1)], 1)
    return np.clip(np.rint(ends / limit * 127), -127, 127).astype(np.int8)


def _run_data(run: Run, number: int, low: float, high: float, curves: Sequence[compare.Metric]) -> dict:
    trace, info = run.trace, run.trace.info
    states = np.concatenate([trace.x0_hat, trace.result[None]])
    guesses, seen = (_bytes_of(trace.level_db(x), low, high) for x in (states, trace.x_t))
    guesses[1:] -= guesses[:-1].copy()  # differences of similar steps compress better; the page adds them up
    loud = trace.sigma > 0.5  # 16 levels do where more than a quarter of the power is noise
    seen[loud] = np.rint(seen[loud] / 17).astype(np.uint8) * 17
    about = [str(info.get("method") or ""), f"{trace.n_calls} calls of the network (NFE)"]
    about += [f"noise of seed {info['seed']}"] if "seed" in info else []
    (audio, quieter), (noisy, noisy_quieter) = (_audio(x, len(trace)) for x in (run.audio, run.noisy_audio))
    wave = {}
    if trace.kind == "wave":
        limit = 1.25 * max(float(np.abs(trace.result.astype(np.float32)).max()), 1e-3)
        wave = {"columns": min(_N_COLUMNS, trace.result.shape[-1]), "peak": round(limit, 3)}
        wave |= {"seen": _packed(outline(trace.x_t, 4.0)), "guess": _packed(outline(states, limit))}
    return {
        "label": str(run.label or info.get("label") or f"run {number + 1}"),
        "about": ", ".join(filter(None, about)),
        "notice": str(info.get("notice") or ""),
        **{name: getattr(trace, name).tolist() for name in ("t", "alpha", "sigma")},
        "snr": np.clip(10 / math.log(10) * trace.log_snr, -100, 100).tolist(),
        "xt": "" if run.compact else _packed(seen),
        "wave": wave,
        "x0": _packed(guesses),
        "values": {c.name: [round(float(v), 4) if math.isfinite(v) else None for v in c.values] for c in curves},
        "asked": None if trace.target_f0 is None else _track(*trace.target_f0),
        "sung": [_track(*run.f0[i]) if i in run.f0 else None for i in range(len(trace))],
        "audio": audio,
        "sound": "" if run.audio is None else run.audio.kind,
        "quieter": quieter,
        "noisy": noisy,
        "noisy_quieter": noisy_quieter,
    }


def _audio(rendered: StepAudio | None, n_steps: int) -> tuple[dict[int, str], dict[int, float]]:
    """The sounds of the steps, encoded, and their attenuation in dB."""
    if rendered is None:
        return {}, {}
    sounds = {i: page.encode(x, rendered.sample_rate_hz, True)[0] for i, x in rendered.audio.items() if i < n_steps}
    return {i: base64.b64encode(data).decode() for i, data in sounds.items()}, dict(rendered.attenuated_db)


def _track(f0_hz, voiced) -> list:
    return [round(float(f), 1) if v and f > 0 else 0 for f, v in zip(f0_hz, voiced, strict=True)]


def _pitch_range(runs: Sequence[Run]) -> list | None:
    """Range of the melody panel in MIDI notes: the target F0 (else the measured), and half an octave around it."""
    tracks = [run.trace.target_f0 for run in runs if run.trace.target_f0 is not None]
    tracks = tracks or [track for run in runs for track in run.f0.values()]
    f0_hz = np.concatenate([f0_hz[np.asarray(voiced, bool) & (f0_hz > 0)] for f0_hz, voiced in tracks] or [np.zeros(0)])
    notes = units.hz_to_midi(f0_hz)
    return [math.floor(notes.min()) - 6, math.ceil(notes.max()) + 6] if len(notes) else None
