"""Traces as one self-contained HTML page: scrub through the steps, from noise to signal, in pictures and sound.

``player.html`` is the template. The same text is the output of a notebook cell (:func:`frame`) and an exported file
(:func:`export`). The page makes no network requests, and text from outside is escaped.
"""

import base64
import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from svclib.analysis import html as page
from svclib.analysis import plot_data, projection
from svclib.analysis.step_audio import StepAudio
from svclib.analysis.trace import Trace
from svclib.conversion import metrics
from svclib.utils import atomic_store
from svclib.utils.errors import ConversionError

CHANGE_DB = 30.0  # range of the difference colours
LARGE_BYTES = 10_000_000
MAX_RUNS = 4
_BOTTOM_DB = -100.0
_FIT = (  # asks the page in the frame for its height, now and whenever it changes
    "const f=this,ask=()=>f.contentWindow.postMessage('height?','*');if(f.asked)return ask();f.asked=1;"
    "window.addEventListener('message',function fit(e){"
    "if(!f.isConnected)return window.removeEventListener('message',fit);"
    "if(e.source!==f.contentWindow||!(e.data.height>0))return;const phone=f.clientWidth<600;"
    "f.style.height=Math.min(Math.ceil(e.data.height),phone?Math.max(480,.9*window.screen.height):3000)+'px'});ask()"
)
_TAP_TEXT = {
    "guess": "each point is one step's guess, averaged over time",
    "step": "each point is one step: the embedding of the diffusion time",
    "noise": "each point is one step: the input of layer {} with the step, mean and spread over time",
    "condition": "each point is one step: the gates of layer {} with step and condition, mean and spread over time",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One trace and what is shown with it.

    Attributes:
        trace: A page shows mels or waveforms, not both.
        label: Its name; the label of the trace by default.
        audio: Of the x0 predictions, from ``step_audio``.
        f0: ``(f0_hz, voiced)`` measured on the audio by step position, on the frames of the trace.
        reference_db: ``[mels, frames]`` to compare with.
        tap: Features of the map: a tap or ``guess``; the same for all runs of a page.
        noisy_audio: Of the noisy states.
        compact: Leave out the pictures of the noisy states, to save space.
    """

    trace: Trace
    label: str = ""
    audio: StepAudio | None = None
    f0: Mapping[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    reference_db: np.ndarray | None = None
    tap: str = "guess"
    noisy_audio: StepAudio | None = None
    compact: bool = False


def document(runs: Sequence[Run], title: str = "Watch it sing") -> str:
    """The page of runs of one excerpt side by side, as self-contained HTML.

    ConversionError for no runs, more than four (unless all but the first are ``compact``), or runs of different kinds,
    mel settings, lengths or taps.
    """
    return fill({"title": title, **group(runs), "more": []})


def fill(data: dict, pages: dict | None = None) -> str:
    """The page of :func:`group` data with ``title`` and ``more`` (other groups), and the pages of a lesson if given."""
    return page.TEMPLATES.get_template("player.html").render(title=data["title"], data=data, pages=pages)


def group(runs: Sequence[Run]) -> dict:
    """Runs to be shown side by side, as JSON data of the page."""
    _require_same(runs)
    first = runs[0].trace
    low, high = _range_db(runs)
    contract = plot_data.contract(first)
    hz = contract.centers_hz()
    n_mels, n_frames = plot_data.levels_db(first, first.result).shape
    placed = projection.joint_map([_features(run) for run in runs])
    curves = [_curves(run) for run in runs]
    names = list(dict.fromkeys(name for found in curves for name in found if name != "distance to the result"))
    about = {name: curve for found in curves for name, curve in found.items()}
    tap, _, number = runs[0].tap.partition(" ")
    return {
        "mels": n_mels,
        "frames": n_frames,
        "kind": first.kind,
        "frame_s": contract.hop_samples / contract.sample_rate_hz,
        "range_db": [low, high],
        "change_db": CHANGE_DB,
        "mel_hz": np.round(hz, 1).tolist(),
        "ticks": [[round(place, 4), label] for place, label in plot_data.frequency_ticks(hz, 0.09)],
        "pitch": _pitch_range(runs),
        "curves": [
            {"name": n, "unit": about[n]["unit"], "meaning": about[n]["meaning"], "zero": n != "signal to noise"}
            for n in names
        ],
        "map": {
            "explained": [round(100 * float(x)) for x in placed.explained],
            "text": f"{_TAP_TEXT.get(tap, tap).format(number)}; one principal component analysis over all runs shown",
        },
        "runs": [
            _run_data(run, number, low, high, path, {n: found[n]["values"] for n in names if n in found})
            for number, (run, path, found) in enumerate(zip(runs, placed.paths, curves, strict=True))
        ],
    }


def frame(document_text: str, height_px: int = 1100) -> str:
    """The page as the output of a notebook cell: an isolated iframe that may run only its own script.

    It takes the height of the page, on a phone at most that of the screen; ``height_px`` where scripts do not run.
    """
    return (
        f'<iframe title="Player" sandbox="allow-scripts" allow="autoplay" srcdoc="{page.text(document_text)}" '
        f'onload="{page.text(_FIT)}" '
        f'style="width:100%;height:{int(height_px)}px;border:0;border-radius:8px"></iframe>'
    )


def export(document_text: str, path: str | Path) -> Path:
    """Write the page as an HTML file under a free name and return its path; StorageError if it cannot be written."""
    data = document_text.encode("utf-8")
    return atomic_store.commit_new(Path(path).with_suffix(".html"), lambda part: part.write_bytes(data))


def _features(run: Run) -> np.ndarray:
    if run.tap == "guess":
        return plot_data.levels_db(run.trace, run.trace.x0_hat).astype(np.float64).mean(axis=2)
    return projection.map_features(run.trace, run.tap)


def _curves(run: Run) -> dict[str, dict]:
    """Curves over the steps, and the F0 error if F0 was measured."""
    trace = run.trace
    levels = plot_data.levels_db(trace, trace.x0_hat), plot_data.levels_db(trace, trace.result)
    found = projection.curves(trace, run.reference_db, levels)
    if run.f0 and len(trace.conditions.get("f0_hz", ())) == levels[1].shape[1]:
        target_hz, on = trace.conditions["f0_hz"], _voiced(trace)
        counts, values = [], np.full(len(trace), math.nan)
        for i, (f0_hz, voiced) in run.f0.items():
            counts.append(int((on & voiced & (target_hz > 0) & (f0_hz > 0)).sum()))
            if counts[-1] >= 10:
                values[i] = metrics.f0_error_cents(target_hz, on, f0_hz, voiced)["rmse"]
        found["pitch off what was asked"] = {
            "unit": "cents",
            "values": values,
            "meaning": f"root mean square over frames voiced in both, {min(counts)} to {max(counts)} of "
            f"{len(target_hz)} by step; not shown below 10",
        }
    return found


def _voiced(trace: Trace) -> np.ndarray:
    return trace.conditions.get("voiced", trace.conditions["f0_hz"] > 0)


def _require_same(runs: Sequence[Run]) -> None:
    if not runs:
        raise ConversionError("There is no run to show.")
    if len(runs) > MAX_RUNS and not all(run.compact for run in runs[1:]):
        raise ConversionError(f"{len(runs)} runs are too many for one page; it shows up to {MAX_RUNS}.")
    first = runs[0]
    for run in runs:
        name, shape = run.label or run.trace.info.get("label", ""), run.trace.result.shape
        if run.trace.kind != first.trace.kind:
            raise ConversionError(f"'{name}' is a {run.trace.kind} trace, the first run a {first.trace.kind} trace.")
        if plot_data.contract(run.trace) != plot_data.contract(first.trace) or shape != first.trace.result.shape:
            raise ConversionError(
                f"'{name}' has states of {shape}, the first run of {first.trace.result.shape} or other mel settings; "
                "show runs of the same excerpt together."
            )
        if run.tap != first.tap:
            raise ConversionError(f"The runs have the taps '{first.tap}' and '{run.tap}'; choose one tap for all.")


def _range_db(runs: Sequence[Run]) -> tuple[float, float]:
    """One colour range for a page: the floor of the mels (at least -100 dB) to the loudest result."""
    low = float(max(_BOTTOM_DB, 10 * math.floor(2 * math.log10(plot_data.contract(runs[0].trace).floor))))
    shown = [run.trace.result if run.trace.kind == "mel" else run.trace.x_t[0] for run in runs]  # noise is loud
    high = max(float(plot_data.levels_db(run.trace, state).max()) for run, state in zip(runs, shown, strict=True))
    return low, float(max(10 * math.ceil(high / 10), low + 40))


def _bytes_of(level_db: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((level_db - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()


def _noisy(trace: Trace, i: int, low: float, high: float) -> np.ndarray:
    """Levels of a noisy state as bytes; in 16 levels where more than a quarter of its power is noise."""
    values = _bytes_of(plot_data.levels_db(trace, trace.x_t[i]), low, high)
    return np.rint(values / 17).astype(np.uint8) * 17 if trace.sigma[i] > 0.5 else values


def _run_data(run: Run, number: int, low, high, path, values) -> dict:
    trace, info, steps = run.trace, run.trace.info, range(len(run.trace))
    guesses = _bytes_of(plot_data.levels_db(trace, np.concatenate([trace.x0_hat, trace.result[None]])), low, high)
    guesses[1:] -= guesses[:-1].copy()  # differences of similar steps compress better; the page adds them up
    about = [str(info.get("method") or ""), f"{trace.n_calls} calls of the network"]
    about += [f"noise of seed {info['seed']}"] if "seed" in info else []
    wave = {}
    if trace.kind == "wave":
        peak = max(float(np.abs(trace.result.astype(np.float32)).max()), 1e-3)
        shown = np.concatenate([trace.x0_hat, trace.result[None]])
        wave = {"columns": min(plot_data.N_COLUMNS, trace.result.shape[-1]), "peak": round(1.25 * peak, 3)}
        wave |= {
            "seen": _packed(plot_data.outline(trace.x_t, 4.0)),
            "guess": _packed(plot_data.outline(shown, 1.25 * peak)),
        }
    return {
        "label": str(run.label or info.get("label") or f"run {number + 1}"),
        "about": ", ".join(filter(None, about)),
        "notice": str(info.get("notice") or ""),
        "t": trace.t.tolist(),
        "alpha": trace.alpha.tolist(),
        "sigma": trace.sigma.tolist(),
        "snr": np.clip(10 / math.log(10) * trace.log_snr, -100, 100).tolist(),
        "xt": "" if run.compact else _packed(np.stack([_noisy(trace, i, low, high) for i in steps])),
        "wave": wave,
        "x0": _packed(guesses),
        "path": np.round(path, 5).tolist(),
        "values": {n: [round(float(v), 4) if math.isfinite(v) else None for v in vs] for n, vs in values.items()},
        "ref": None if run.reference_db is None else _packed(_bytes_of(run.reference_db, low, high)),
        "asked": _track(trace.conditions["f0_hz"], _voiced(trace)) if "f0_hz" in trace.conditions else None,
        "sung": [_track(*run.f0[i]) if i in run.f0 else None for i in steps],
        "audio": _audio(run.audio),
        "sound": "" if run.audio is None else run.audio.kind,
        "quieter": _attenuated(run.audio),
        "noisy": _audio(run.noisy_audio),
        "noisy_quieter": _attenuated(run.noisy_audio),
    }


def _audio(rendered: StepAudio | None) -> dict[str, str]:
    if rendered is None:
        return {}
    encoded = {i: page.encode(samples, rendered.sample_rate_hz, True)[0] for i, samples in rendered.audio.items()}
    return {str(int(i)): base64.b64encode(data).decode() for i, data in encoded.items()}


def _attenuated(rendered: StepAudio | None) -> dict[str, float]:
    return {} if rendered is None else {str(i): db for i, db in rendered.attenuated_db.items()}


def _track(f0_hz, voiced) -> list:
    return [round(float(f), 1) if v and f > 0 else 0 for f, v in zip(f0_hz, voiced, strict=True)]


def _pitch_range(runs: Sequence[Run]) -> list | None:
    """Range of the melody panel in MIDI notes: the target F0 (else the measured), and half an octave around it."""
    tracks = [(r.trace.conditions["f0_hz"], _voiced(r.trace)) for r in runs if "f0_hz" in r.trace.conditions]
    tracks = tracks or [track for run in runs for track in run.f0.values()]
    notes = [plot_data.notes_midi(f0_hz, voiced) for f0_hz, voiced in tracks]
    notes = np.concatenate([n[np.isfinite(n)] for n in notes] or [np.zeros(0)])
    return [math.floor(notes.min()) - 6, math.ceil(notes.max()) + 6] if len(notes) else None
