"""Audio of sampling steps: rendering with one common gain, and F0 measured on it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from svclib.analysis import plot_data
from svclib.analysis.trace import Trace
from svclib.features import extract
from svclib.utils.errors import ProgressCallback

GUARD_DB = 12.0
_PEAK = 0.7


@dataclasses.dataclass(frozen=True)
class StepAudio:
    """Audio of the steps of a trace.

    Attributes:
        audio: float32 ``[samples]`` by step position.
        sample_rate_hz: Of all of them.
        kind: Description of the signal, for the player.
        attenuated_db: Attenuation of steps that were louder than the result, by position.
    """

    audio: Mapping[int, np.ndarray]
    sample_rate_hz: int
    kind: str = "the guess"
    attenuated_db: Mapping[int, float] = dataclasses.field(default_factory=dict)


def render_steps(
    trace: Trace,
    vocode: Callable[[np.ndarray], np.ndarray],
    steps: Sequence[int] | np.ndarray | None = None,
    progress: ProgressCallback | None = None,
) -> StepAudio:
    """Render the x0 predictions of a ``mel`` trace by ``vocode``: ``log_mel [frames, mels] -> samples``.

    ``steps`` are positions, all by default. One gain for all, see :func:`common_gain`.
    """
    positions = range(len(trace)) if steps is None else sorted({int(i) for i in steps})
    rendered = {}
    for n, i in enumerate(positions):
        rendered[i] = np.asarray(vocode(trace.log_mel(trace.x0_hat[i]).T), np.float32)
        if progress:
            progress((n + 1) / (len(positions) + 1), f"step {i + 1} rendered")
    audio, attenuated_db = common_gain(rendered, np.asarray(vocode(trace.log_mel(trace.result).T), np.float32))
    return StepAudio(audio, trace.sample_rate_hz, attenuated_db=attenuated_db)


def waveform_audio(trace: Trace) -> tuple[StepAudio, StepAudio]:
    """x0 predictions and noisy states of a ``wave`` trace, with the gain of :func:`common_gain`."""
    end = trace.result.astype(np.float32)
    found = []
    for states, kind in ((trace.x0_hat, "the guess"), (trace.x_t, "the noisy signal")):
        audio, attenuated_db = common_gain({i: states[i].astype(np.float32) for i in range(len(trace))}, end)
        found.append(StepAudio(audio, trace.sample_rate_hz, kind, attenuated_db))
    return found[0], found[1]


def measure_f0(
    trace: Trace, rendered: StepAudio, method: str = "swift", progress: ProgressCallback | None = None
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """F0 in Hz and voicing ``[frames]`` of the audio of each step, by position; audio that is too short is skipped."""
    hop, n_frames = plot_data.contract(trace).hop_samples, plot_data.n_frames(trace)
    settings = extract.FeatureSettings(sample_rate_hz=rendered.sample_rate_hz, hop_samples=hop, f0_method=method)
    found = {}
    for k, (i, samples) in enumerate(sorted(rendered.audio.items())):
        f0_hz, voiced, _ = extract.track_f0(samples[: n_frames * hop], rendered.sample_rate_hz, settings)
        if len(f0_hz) == n_frames and i < len(trace):
            found[i] = (f0_hz, voiced)
        if progress:
            progress((k + 1) / len(rendered.audio), f"F0 of {k + 1} of {len(rendered.audio)}")
    return found


def common_gain(rendered: Mapping[int, np.ndarray], end: np.ndarray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """Apply the gain that brings the peak of the result ``end`` to 0.7: ``(audio, {position: attenuation in dB})``.

    Steps louder than the result, such as noise, are attenuated to 12 dB below it.
    """
    gain = _PEAK / max(float(np.abs(end).max(initial=0.0)), 1e-4)
    limit = max(_rms(end), 1e-6)
    audio, attenuated_db = {}, {}
    for i, samples in rendered.items():
        level, factor = _rms(samples), 1.0
        if level > 1.06 * limit:
            factor = limit / level * 10 ** (-GUARD_DB / 20)
            attenuated_db[i] = round(-20 * math.log10(factor), 1)
        audio[i] = np.clip(samples * (gain * factor), -1, 1)
    return audio, attenuated_db


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean())) if len(samples) else 0.0
