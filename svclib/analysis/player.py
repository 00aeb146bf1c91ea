"""Traces as one self-contained page: scrub from noise to singing, see and hear every kept step.

``player.html`` holds the page; this module fills it with data. The same text is a cell's output (:func:`frame`), an
exported file (:func:`export`) and what the browser test opens. Nothing in it asks the network for anything, and every
name that comes from outside stays text.
"""

import base64
import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from svclib.analysis import html as page
from svclib.analysis import projection, waveform_images
from svclib.analysis.step_audio import StepAudio, common_gain, measure_f0, render_steps, waveform_audio
from svclib.analysis.trace import Trace
from svclib.conversion import metrics
from svclib.utils import atomic_store
from svclib.utils.errors import ConversionError

__all__ = ["Run", "StepAudio", "common_gain", "document", "export", "frame", "predicted_bytes"]
__all__ += ["size_sentence", "render_steps", "measure_f0", "waveform_audio"]

CHANGE_DB = 30.0  # range of the difference colours
LARGE_BYTES = 10_000_000
MOST_RUNS = 4
_BOTTOM_DB = -100.0
_FIT = (  # asks the page in the frame for its height, now and whenever it changes
    "const f=this,ask=()=>f.contentWindow.postMessage('height?','*');if(f.asked)return ask();f.asked=1;"
    "window.addEventListener('message',function fit(e){"
    "if(!f.isConnected)return window.removeEventListener('message',fit);"
    "if(e.source!==f.contentWindow||!(e.data.height>0))return;const phone=f.clientWidth<600;"
    "f.style.height=Math.min(Math.ceil(e.data.height),phone?Math.max(480,.9*window.screen.height):3000)+'px'});ask()"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One trace and what belongs to it.

    Attributes:
        trace: What happened; a page shows mels or waveforms, not both.
        label: Its name; the trace's own label otherwise.
        sounds: Of the guesses, from :func:`sounds` or :func:`waveform_audio`, or None.
        sung: ``(f0_hz, voiced)`` measured on the sound of a step, by position, on the trace's frames.
        reference_db: ``[mels, frames]`` to compare with, such as the singer's own reading.
        tap: Whose features make the map: a tap's name or ``guess``; the same for all runs of a page.
        noisy: What the noisy signals sound like, where that is asked for.
        brief: Leave the noisy signals' pictures out, to save space.
    """

    trace: Trace
    label: str = ""
    sounds: StepAudio | None = None
    sung: Mapping[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    reference_db: np.ndarray | None = None
    tap: str = "guess"
    noisy: StepAudio | None = None
    brief: bool = False


def document(
    runs: Sequence[Run], title: str = "Watch it sing", more: Sequence[Sequence[Run]] = (), lesson: str = ""
) -> str:
    """Make the page.

    Args:
        runs: Of one stretch, shown beside each other; at most four, unless all but the first are ``brief``.
        title: Of the page.
        more: Further groups of runs with other grids, which a lesson may turn to.
        lesson: JSON text of a lesson's pages, from ``lesson``.

    Returns:
        HTML that needs nothing beside it.

    Raises:
        ConversionError: for no runs, too many, or runs of different kinds, mels, lengths or taps.
    """
    return fill(dumps({"title": title, **group(runs), "more": [group(part) for part in more]}), title, lesson)


def fill(data_text: str, title: str, lesson: str = "") -> str:
    """The page with its data, texts of :func:`dumps`."""
    text = Path(__file__).with_name("player.html").read_text(encoding="utf-8")
    pages = (Path(__file__).parent / "lesson" / "lesson.html").read_text(encoding="utf-8") if lesson else ""
    for mark, value in (("@TITLE@", page.text(title)), ("@LESSON@", pages), ("@PAGES@", lesson), ("@DATA@", data_text)):
        before, found, after = text.partition(mark)
        text = before + value + after if found else text
    return text


def dumps(value) -> str:
    """JSON that may stand inside a ``script`` element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # nothing in it may end the element it stands in
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def group(runs: Sequence[Run]) -> dict:
    """Runs that are shown beside each other, as the page's data."""
    _require_same(runs)
    first = runs[0].trace
    low, high = _range_db(runs)
    contract = waveform_images.contract(first)
    hz = contract.centers_hz()
    ends = [waveform_images.levels_db(run.trace, run.trace.result) for run in runs]
    paths = [_features(run) for run in runs]
    placed = projection.joint_map(paths)
    curves = [_curves(run) for run in runs]
    names = list(dict.fromkeys(name for found in curves for name in found if name != "distance to the result"))
    meanings = {name: about for found in curves for name, about in found.items()}
    return {
        "mels": ends[0].shape[0],
        "frames": ends[0].shape[1],
        "kind": first.kind,
        "frame_s": contract.hop_samples / contract.sample_rate_hz,
        "range_db": [low, high],
        "change_db": CHANGE_DB,
        "mel_hz": np.round(hz, 1).tolist(),
        "ticks": _ticks(hz),
        "pitch": _pitch_range(runs),
        "curves": [
            {"name": n, "unit": meanings[n]["unit"], "meaning": meanings[n]["meaning"], "zero": n != "signal to noise"}
            for n in names
        ],
        "map": {
            "explained": [round(100 * float(x)) for x in placed.explained],
            "text": f"{_tap_text(runs[0].tap)}; one principal component analysis over all runs shown",
        },
        "runs": [
            _run_data(run, number, low, high, path, {n: found[n]["values"] for n in names if n in found})
            for number, (run, path, found) in enumerate(zip(runs, placed.paths, curves, strict=True))
        ],
    }


def frame(document_text: str, height_px: int = 1100) -> str:
    """The page as a notebook cell's output: an isolated frame that holds it all and may only run its own script.

    The page tells the frame how high it is and the frame follows; on a phone only up to its screen, so that the bar
    with the steps stays in sight. Where a notebook runs no script of an output, it is ``height_px`` high.
    """
    return (
        f'<iframe title="Player" sandbox="allow-scripts" allow="autoplay" srcdoc="{page.text(document_text)}" '
        f'onload="{page.text(_FIT)}" '
        f'style="width:100%;height:{int(height_px)}px;border:0;border-radius:8px"></iframe>'
    )


def export(document_text: str, path: str | Path) -> Path:
    """Write the page as an HTML file of its own under a free name; nothing is overwritten. Returns the path used.

    Raises ``StorageError`` if it cannot be written.
    """
    data = document_text.encode("utf-8")
    return atomic_store.commit_new(Path(path).with_suffix(".html"), lambda part: part.write_bytes(data))


def predicted_bytes(runs: Sequence[Run]) -> int:
    """About how large :func:`document` will be, from a few steps and one sound of each run."""
    _require_same(runs)
    low, high = _range_db(runs)
    total = Path(__file__).with_name("player.html").stat().st_size
    for run in runs:
        trace, n = run.trace, len(run.trace)
        k = min(n, 3 + n // 8)
        probed = [int((j + 0.5) * n / k) for j in range(k)]
        seen = 0 if run.brief else np.mean([len(_packed(_seen(trace, i, low, high))) for i in probed])
        guesses = [
            _bytes_of(waveform_images.levels_db(trace, trace.x0_hat[[max(i - 1, 0), i]]), low, high) for i in probed
        ]
        changes = np.mean(
            [len(_packed(g[1] - g[0])) if i else len(_packed(g[1])) for i, g in zip(probed, guesses, strict=True)]
        )
        total += n * (seen + changes) + n * waveform_images.n_frames(trace) * 2 * bool(run.sung)
        for heard in (run.sounds, run.noisy):
            if heard and heard.audio:
                middle = sorted(heard.audio)[len(heard.audio) // 2]
                total += len(heard.audio) * len(page.encode(heard.audio[middle], heard.sample_rate_hz, True)[0]) * 4 / 3
        if trace.kind == "wave":
            total += 2 * (n + 1) * waveform_images.N_COLUMNS * 2
    return int(total)


def size_sentence(n_bytes: int) -> str:
    """A size for people, with a warning from 10 MB on."""
    text = f"The page will have about {n_bytes / 1e6:.1f} MB."
    if n_bytes > LARGE_BYTES:
        text += " That is much for a notebook or a mail; keep fewer steps, or a shorter stretch."
    return text


def _features(run: Run) -> np.ndarray:
    if run.tap == "guess":
        return waveform_images.levels_db(run.trace, run.trace.x0_hat).astype(np.float64).mean(axis=2)
    return projection.map_features(run.trace, run.tap)


def _curves(run: Run) -> dict[str, dict]:
    """Curves over the steps; with the pitch of each step's sound, how far it is from what was asked for."""
    trace = run.trace
    levels = waveform_images.levels_db(trace, trace.x0_hat), waveform_images.levels_db(trace, trace.result)
    found = projection.curves(trace, run.reference_db, levels)
    if run.sung and len(trace.conditions.get("f0_hz", ())) == levels[1].shape[1]:
        asked, on = trace.conditions["f0_hz"], trace.conditions.get("voiced", trace.conditions["f0_hz"] > 0)
        counts, values = [], np.full(len(trace), math.nan)
        for i, (f0_hz, voiced) in run.sung.items():
            counts.append(int((on & voiced & (asked > 0) & (f0_hz > 0)).sum()))
            if counts[-1] >= 10:
                values[i] = metrics.f0_error_cents(asked, on, f0_hz, voiced)["rmse"]
        found["pitch off what was asked"] = {
            "unit": "cents",
            "values": values,
            "meaning": f"root mean square over frames voiced in both, {min(counts)} to {max(counts)} of "
            f"{len(asked)} by step; not shown below 10",
        }
    return found


def _require_same(runs: Sequence[Run]) -> None:
    if not runs:
        raise ConversionError("There is no run to show.")
    if len(runs) > MOST_RUNS and not all(run.brief for run in runs[1:]):
        raise ConversionError(f"{len(runs)} runs are too many for one page; it shows up to {MOST_RUNS}.")
    first = runs[0].trace
    for run in runs:
        if run.trace.kind != first.kind:
            raise ConversionError(f"'{run.label}' is a trace of another kind than the first; show mels or waveforms.")
        if (
            waveform_images.contract(run.trace) != waveform_images.contract(first)
            or run.trace.result.shape != first.result.shape
        ):
            raise ConversionError(
                f"'{run.label or run.trace.info.get('label', '')}' has {run.trace.result.shape} values of "
                f"another grid than the first run's {first.result.shape}; show runs of the same stretch together."
            )
        if run.tap != runs[0].tap:
            raise ConversionError(
                f"The runs are to be mapped by '{runs[0].tap}' and '{run.tap}'; take one tap for all."
            )


def _range_db(runs: Sequence[Run]) -> tuple[float, float]:
    """One colour range for everything on a page: the contract's floor (at least -100 dB) to the loudest result."""
    low = float(max(_BOTTOM_DB, 10 * math.floor(2 * math.log10(waveform_images.contract(runs[0].trace).floor))))
    shown = [run.trace.result if run.trace.kind == "mel" else run.trace.x_t[0] for run in runs]  # noise is loud
    high = max(float(waveform_images.levels_db(run.trace, state).max()) for run, state in zip(runs, shown, strict=True))
    return low, float(max(10 * math.ceil(high / 10), low + 40))


def _bytes_of(level_db: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((level_db - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()


def _seen(trace: Trace, i: int, low: float, high: float) -> np.ndarray:
    """The noisy signal; where more than a quarter of its power is noise, 16 levels say all there is to see."""
    values = _bytes_of(waveform_images.levels_db(trace, trace.x_t[i]), low, high)
    return np.rint(values / 17).astype(np.uint8) * 17 if trace.sigma[i] > 0.5 else values


def _run_data(run: Run, number: int, low, high, path, values) -> dict:
    trace, info = run.trace, run.trace.info
    seen = np.stack([_seen(trace, i, low, high) for i in range(len(trace))]) if not run.brief else None
    guesses = _bytes_of(waveform_images.levels_db(trace, np.concatenate([trace.x0_hat, trace.result[None]])), low, high)
    guesses[1:] -= guesses[:-1].copy()  # steps resemble the one before; the page adds them up again
    asked = None
    if "f0_hz" in trace.conditions:
        voiced = trace.conditions.get("voiced", trace.conditions["f0_hz"] > 0)
        asked = _track(trace.conditions["f0_hz"], voiced)
    about = [f"{info['method']}" if info.get("method") else "", f"{trace.n_calls} calls of the network"]
    about += [f"noise of seed {info['seed']}"] if "seed" in info else []
    wave = {}
    if trace.kind == "wave":
        peak = max(float(np.abs(trace.result.astype(np.float32)).max()), 1e-3)
        shown = np.concatenate([trace.x0_hat, trace.result[None]])
        wave = {"columns": min(waveform_images.N_COLUMNS, trace.result.shape[-1]), "peak": round(1.25 * peak, 3)}
        wave |= {
            "seen": _packed(waveform_images.outline(trace.x_t, 4.0)),
            "guess": _packed(waveform_images.outline(shown, 1.25 * peak)),
        }
    return {
        "label": run.label or str(info.get("label") or f"run {number + 1}"),
        "about": ", ".join(filter(None, about)),
        "notice": str(info.get("notice") or ""),
        "t": trace.t.tolist(),
        "alpha": trace.alpha.tolist(),
        "sigma": trace.sigma.tolist(),
        "snr": np.clip(10 / math.log(10) * trace.log_snr, -100, 100).tolist(),
        "xt": "" if seen is None else _packed(seen),
        "wave": wave,
        "x0": _packed(guesses),
        "path": np.round(path, 5).tolist(),
        "values": {name: _finite(v) for name, v in values.items()},
        "ref": None if run.reference_db is None else _packed(_bytes_of(run.reference_db, low, high)),
        "asked": asked,
        "sung": [_track(*run.sung[i]) if i in run.sung else None for i in range(len(trace))],
        "audio": _audio(run.sounds),
        "sound": "" if run.sounds is None else run.sounds.kind,
        "quieter": {} if run.sounds is None else {str(i): v for i, v in run.sounds.quieter_db.items()},
        "noisy": _audio(run.noisy),
        "noisy_quieter": {} if run.noisy is None else {str(i): v for i, v in run.noisy.quieter_db.items()},
    }


def _audio(heard: StepAudio | None) -> dict[str, str]:
    if heard is None:
        return {}
    rate_hz = heard.sample_rate_hz
    return {str(int(i)): base64.b64encode(page.encode(x, rate_hz, True)[0]).decode() for i, x in heard.audio.items()}


def _finite(values) -> list:
    return [round(float(v), 4) if math.isfinite(v) else None for v in values]


def _track(f0_hz, voiced) -> list:
    return [round(float(f), 1) if v and f > 0 else 0 for f, v in zip(f0_hz, voiced, strict=True)]


def _pitch_range(runs: Sequence[Run]) -> list | None:
    """Notes that the melody panel shows: what is asked for, with half an octave around it."""
    tracks = [
        (r.trace.conditions["f0_hz"], r.trace.conditions.get("voiced", True))
        for r in runs
        if "f0_hz" in r.trace.conditions
    ]
    tracks = tracks or [track for run in runs for track in run.sung.values()]
    f0_hz = np.concatenate(
        [np.asarray(f)[np.broadcast_to(v, np.shape(f)) & (np.asarray(f) > 0)] for f, v in tracks] or [np.zeros(0)]
    )
    if not len(f0_hz):
        return None
    notes = 69 + 12 * np.log2(f0_hz / 440)
    return [math.floor(notes.min()) - 6, math.ceil(notes.max()) + 6]


def _ticks(mel_hz: np.ndarray) -> list:
    """Where round frequencies stand, from 0 (bottom) to 1."""
    wanted = [f for f in (250, 500, 1000, 2000, 4000, 8000, 16000) if mel_hz[0] < f < mel_hz[-1]]
    places = (np.interp(wanted, mel_hz, np.arange(len(mel_hz))) + 0.5) / len(mel_hz)
    ticks, before = [], -1.0
    for place, f in zip(places, wanted, strict=True):
        if place - before > 0.09:  # low frequencies crowd where there are few mels
            ticks.append([round(float(place), 4), f"{f // 1000} k" if f >= 1000 else str(f)])
            before = place
    return ticks


def _tap_text(tap: str) -> str:
    if tap == "guess":
        return "each point is one step's guess, averaged over time"
    kind, _, number = tap.partition(" ")
    meaning = {
        "step": "the embedding of the diffusion time",
        "noise": f"the input of layer {number} with the step",
        "condition": f"the gates of layer {number} with step and condition",
    }
    return f"each point is one step: {meaning.get(kind, tap)}, mean and spread over time"
