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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from svclib import page, projection, store
from svclib.trace import Trace

CHANGE_DB = 30.0  # range of the difference colours
LARGE_BYTES = 10_000_000
GUARD_DB = 12.0
_BOTTOM_DB = -100.0
_PEAK = 0.7


class PlayerError(ValueError):
    """Traces that cannot be shown together; the message says why."""


@dataclasses.dataclass(frozen=True)
class Sounds:
    """What steps sound like.

    Attributes:
        audio: float32 ``[samples]`` by step position.
        sample_rate_hz: Of all of them.
        kind: What is heard of a step, in words.
        quieter_db: By how much steps were turned down, by position; others have the common gain.
    """

    audio: Mapping[int, np.ndarray]
    sample_rate_hz: int
    kind: str = "the guess"
    quieter_db: Mapping[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """One trace and what belongs to it.

    Attributes:
        trace: A ``mel`` trace.
        label: Its name; the trace's own label otherwise.
        sounds: From :func:`sounds`, or None.
        sung: ``(f0_hz, voiced)`` measured on the sound of a step, by position, on the trace's frames.
        reference_db: ``[mels, frames]`` to compare with, such as the singer's own reading.
        tap: Whose features make the map: a tap's name or ``guess``; the same for all runs of a page.
    """

    trace: Trace
    label: str = ""
    sounds: Sounds | None = None
    sung: Mapping[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    reference_db: np.ndarray | None = None
    tap: str = "guess"


def sounds(
    trace: Trace, vocode: Callable[[np.ndarray], np.ndarray], steps: Sequence[int] | np.ndarray | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> Sounds:  # fmt: skip
    """Make the guesses of steps audible with one gain for all.

    The gain is the one that brings the result's peak to 0.7. A step louder than the result is turned down to 12 dB
    below it instead, and says so: a vocoder may answer to noise with more noise than ears like.

    Args:
        trace: A ``mel`` trace.
        vocode: ``log_mel [frames, mels] -> samples`` at the contract's rate.
        steps: Positions to make audible; all by default.
        progress: Called with (fraction, text).
    """
    wanted = range(len(trace)) if steps is None else sorted({int(i) for i in steps})
    made = {}
    for n, i in enumerate(wanted):
        made[i] = np.asarray(vocode(trace.log_mel(trace.x0_hat[i]).T), np.float32)
        if progress:
            progress((n + 1) / (len(wanted) + 1), f"step {i + 1} made audible")
    end = np.asarray(vocode(trace.log_mel(trace.result).T), np.float32)
    made, quieter = common_gain(made, end)
    return Sounds(made, trace.sample_rate_hz, quieter_db=quieter)


def common_gain(made: Mapping[int, np.ndarray], end: np.ndarray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """The gain of the result ``end`` for all; those louder than it 12 dB below it: ``(audio, {position: dB})``."""
    gain = _PEAK / max(float(np.abs(end).max(initial=0.0)), 1e-4)
    limit = max(float(np.sqrt(np.square(end, dtype=np.float64).mean())) if len(end) else 0.0, 1e-6)
    audio, quieter = {}, {}
    for i, samples in made.items():
        level = float(np.sqrt(np.square(samples, dtype=np.float64).mean())) if len(samples) else 0.0
        down = 1.0
        if level > 1.06 * limit:
            down = limit / level * 10 ** (-GUARD_DB / 20)
            quieter[i] = round(-20 * math.log10(down), 1)
        audio[i] = np.clip(samples * (gain * down), -1, 1)
    return audio, quieter


def document(runs: Sequence[Run], title: str = "Watch it sing") -> str:
    """The page as one text.

    Raises:
        PlayerError: for no runs, waveforms, or runs of different mels or lengths.
    """
    _require_same(runs)
    first = runs[0].trace
    low, high = _range_db(runs)
    hz = _mel_hz(first.contract)
    contract = first.contract
    placed = projection.joint_map([projection.map_features(run.trace, run.tap) for run in runs])
    curves = [projection.curves(run.trace, run.reference_db) for run in runs]
    names = list(dict.fromkeys(name for found in curves for name in found if name != "distance to the result"))
    meanings = {name: about for found in curves for name, about in found.items()}
    data = {
        "title": title, "mels": first.result.shape[0], "frames": first.result.shape[1],
        "frame_s": contract.hop_samples / contract.sample_rate_hz, "range_db": [low, high], "change_db": CHANGE_DB,
        "mel_hz": np.round(hz, 1).tolist(), "ticks": _ticks(hz), "pitch": _pitch_range(runs),
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
    }  # fmt: skip
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # nothing in it may end the element it stands in
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = Path(__file__).with_name("player.html").read_text(encoding="utf-8")
    before, _, rest = template.partition("@TITLE@")
    middle, _, after = rest.partition("@DATA@")
    return before + page.text(title) + middle + text + after


def frame(document_text: str, height_px: int = 980) -> str:
    """The page as a notebook cell's output: an isolated frame that holds it all and may only run its own script."""
    return (
        f'<iframe title="Player" sandbox="allow-scripts" allow="autoplay" srcdoc="{page.text(document_text)}" '
        f'style="width:100%;height:{int(height_px)}px;border:0;border-radius:8px"></iframe>'
    )


def export(document_text: str, path: str | Path) -> Path:
    """Write the page as an HTML file of its own under a free name; nothing is overwritten. Returns the path used.

    Raises:
        store.StoreError: if it cannot be written.
    """
    data = document_text.encode("utf-8")
    return store.commit_new(Path(path).with_suffix(".html"), lambda part: part.write_bytes(data))


def predicted_bytes(runs: Sequence[Run]) -> int:
    """About how large :func:`document` will be, from a few steps and one sound of each run."""
    _require_same(runs)
    low, high = _range_db(runs)
    total = Path(__file__).with_name("player.html").stat().st_size
    for run in runs:
        trace, n = run.trace, len(run.trace)
        k = min(n, 3 + n // 8)
        probed = [int((j + 0.5) * n / k) for j in range(k)]
        seen = np.mean([len(_packed(_seen(trace, i, low, high))) for i in probed])
        guesses = [_bytes_of(trace.level_db(trace.x0_hat[[max(i - 1, 0), i]]), low, high) for i in probed]
        changes = np.mean([len(_packed(g[1] - g[0])) if i else len(_packed(g[1]))
                           for i, g in zip(probed, guesses, strict=True)])  # fmt: skip
        total += n * (seen + changes) + n * trace.result.shape[1] * 2 * bool(run.sung)
        if run.sounds and run.sounds.audio:
            middle = sorted(run.sounds.audio)[len(run.sounds.audio) // 2]
            encoded, _ = page.encode(run.sounds.audio[middle], run.sounds.sample_rate_hz)
            total += len(run.sounds.audio) * len(encoded) * 4 / 3
    return int(total)


def size_sentence(n_bytes: int) -> str:
    """A size for people, with a warning from 10 MB on."""
    text = f"The page will have about {n_bytes / 1e6:.1f} MB."
    if n_bytes > LARGE_BYTES:
        text += " That is much for a notebook or a mail; keep fewer steps, or a shorter stretch."
    return text


def _require_same(runs: Sequence[Run]) -> None:
    if not runs:
        raise PlayerError("There is no run to show.")
    if len(runs) > 4:
        raise PlayerError(f"{len(runs)} runs are too many for one page; it shows up to 4.")
    first = runs[0].trace
    for run in runs:
        if run.trace.kind != "mel":
            raise PlayerError(f"'{run.label}' is a trace of a waveform; this page shows log-mels.")
        if run.trace.contract != first.contract or run.trace.result.shape != first.result.shape:
            raise PlayerError(
                f"'{run.label or run.trace.info.get('label', '')}' has {run.trace.result.shape} mels and frames of "
                f"another grid than the first run's {first.result.shape}; show runs of the same stretch together."
            )
        if run.tap != runs[0].tap:
            raise PlayerError(f"The runs are to be mapped by '{runs[0].tap}' and '{run.tap}'; take one tap for all.")


def _range_db(runs: Sequence[Run]) -> tuple[float, float]:
    """One colour range for everything on the page: the floor of the contract (at least -100 dB) to the loudest end."""
    low = max(_BOTTOM_DB, 10 * math.floor(2 * math.log10(runs[0].trace.contract.floor)))
    high = max(float(run.trace.level_db(run.trace.result).max()) for run in runs)
    return low, float(max(10 * math.ceil(high / 10), low + 40))


def _bytes_of(level_db: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip(np.rint((level_db - low) / (high - low) * 255), 0, 255).astype(np.uint8)


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()


def _seen(trace: Trace, i: int, low: float, high: float) -> np.ndarray:
    """The noisy signal; where more than a quarter of its power is noise, 16 levels say all there is to see."""
    values = _bytes_of(trace.level_db(trace.x_t[i]), low, high)
    return np.rint(values / 17).astype(np.uint8) * 17 if trace.sigma[i] > 0.5 else values


def _run_data(run: Run, number: int, low, high, path, values) -> dict:
    trace, info = run.trace, run.trace.info
    seen = np.stack([_seen(trace, i, low, high) for i in range(len(trace))])
    guesses = _bytes_of(trace.level_db(np.concatenate([trace.x0_hat, trace.result[None]])), low, high)
    guesses[1:] -= guesses[:-1].copy()  # steps resemble the one before; the page adds them up again
    heard = {} if run.sounds is None else run.sounds.audio
    audio = {
        str(int(i)): base64.b64encode(page.encode(x, run.sounds.sample_rate_hz)[0]).decode() for i, x in heard.items()
    }
    asked = None
    if "f0_hz" in trace.conditions:
        voiced = trace.conditions.get("voiced", trace.conditions["f0_hz"] > 0)
        asked = _track(trace.conditions["f0_hz"], voiced)
    about = [f"{info['method']}" if info.get("method") else "", f"{trace.n_calls} calls of the network"]
    about += [f"noise of seed {info['seed']}"] if "seed" in info else []
    return {
        "label": run.label or str(info.get("label") or f"run {number + 1}"),
        "about": ", ".join(filter(None, about)), "notice": str(info.get("notice") or ""),
        "t": trace.t.tolist(), "alpha": trace.alpha.tolist(), "sigma": trace.sigma.tolist(),
        "snr": np.clip(10 / math.log(10) * trace.log_snr, -100, 100).tolist(),
        "xt": _packed(seen), "x0": _packed(guesses), "path": np.round(path, 5).tolist(),
        "values": {name: _finite(v) for name, v in values.items()},
        "ref": None if run.reference_db is None else _packed(_bytes_of(run.reference_db, low, high)),
        "asked": asked, "sung": [_track(*run.sung[i]) if i in run.sung else None for i in range(len(trace))],
        "audio": audio, "sound": "" if run.sounds is None else run.sounds.kind,
        "quieter": {} if run.sounds is None else {str(i): v for i, v in run.sounds.quieter_db.items()},
    }  # fmt: skip


def _finite(values) -> list:
    return [round(float(v), 4) if math.isfinite(v) else None for v in values]


def _track(f0_hz, voiced) -> list:
    return [round(float(f), 1) if v and f > 0 else 0 for f, v in zip(f0_hz, voiced, strict=True)]


def _pitch_range(runs: Sequence[Run]) -> list | None:
    """Notes that the melody panel shows: what is asked for, with half an octave around it."""
    tracks = [(r.trace.conditions["f0_hz"], r.trace.conditions.get("voiced", True)) for r in runs
              if "f0_hz" in r.trace.conditions]  # fmt: skip
    tracks = tracks or [track for run in runs for track in run.sung.values()]
    f0_hz = np.concatenate([np.asarray(f)[np.broadcast_to(v, np.shape(f)) & (np.asarray(f) > 0)] for f, v in tracks] or
                           [np.zeros(0)])  # fmt: skip
    if not len(f0_hz):
        return None
    notes = 69 + 12 * np.log2(f0_hz / 440)
    return [math.floor(notes.min()) - 6, math.ceil(notes.max()) + 6]


def _mel_hz(contract) -> np.ndarray:
    import librosa

    return librosa.mel_frequencies(
        n_mels=contract.n_mels + 2, fmin=contract.fmin_hz, fmax=contract.fmax_hz, htk=contract.scale == "htk"
    )[1:-1]


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
    meaning = {"step": "the embedding of the diffusion time", "noise": f"the input of layer {number} with the step",
               "condition": f"the gates of layer {number} with step and condition"}  # fmt: skip
    return f"each point is one step: {meaning.get(kind, tap)}, mean and spread over time"
