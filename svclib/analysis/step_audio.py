"""What the steps of a walk sound like: one gain for all, and the pitch that is heard in each."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from svclib.analysis import waveform_images
from svclib.analysis.trace import Trace
from svclib.features import extract
from svclib.features.extract import FeatureSettings

GUARD_DB = 12.0
_PEAK = 0.7


@dataclasses.dataclass(frozen=True)
class StepAudio:
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


def render_steps(
    trace: Trace,
    vocode: Callable[[np.ndarray], np.ndarray],
    steps: Sequence[int] | np.ndarray | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> StepAudio:
    """Make the guesses of steps audible with one gain for all.

    The gain is the one that brings the result's peak to 0.7. A step louder than the result is turned down to 12 dB
    below it instead, and says so: a vocoder may answer to noise with more noise than ears like.

    Args:
        trace: A ``mel`` trace.
        vocode: ``log_mel [frames, mels] -> samples`` at the contract's rate.
        steps: Positions to make audible; all by default.
        progress: Called with (fraction, text).

    Returns:
        The sounds of the steps asked for, float32 within +-1 at the contract's rate, and which were turned down.
    """
    wanted = range(len(trace)) if steps is None else sorted({int(i) for i in steps})
    made = {}
    for n, i in enumerate(wanted):
        made[i] = np.asarray(vocode(trace.log_mel(trace.x0_hat[i]).T), np.float32)
        if progress:
            progress((n + 1) / (len(wanted) + 1), f"step {i + 1} made audible")
    end = np.asarray(vocode(trace.log_mel(trace.result).T), np.float32)
    made, quieter = common_gain(made, end)
    return StepAudio(made, trace.sample_rate_hz, quieter_db=quieter)


def waveform_audio(trace: Trace) -> tuple[StepAudio, StepAudio]:
    """Guesses and noisy signals of a ``wave`` trace, with one gain for all, as in :func:`sounds`."""
    end = trace.result.astype(np.float32)
    found = []
    for states, kind in ((trace.x0_hat, "the guess"), (trace.x_t, "the noisy signal")):
        made, quieter = common_gain({i: states[i].astype(np.float32) for i in range(len(trace))}, end)
        found.append(StepAudio(made, trace.sample_rate_hz, kind, quieter))
    return found[0], found[1]


def measure_f0(
    trace: Trace, heard: StepAudio, method: str = "swift", progress: Callable[[float, str], None] | None = None
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The pitch that is heard in each step's sound, on the frames of the pictures.

    Args:
        trace: The walk that the sounds are of.
        heard: Sounds of its steps.
        method: One of ``f0.F0_METHODS``.
        progress: Called with (fraction, text).

    Returns:
        F0 in Hz and voicing, each ``[frames]``, by position; sounds that are too short for the pictures are left out.

    Raises:
        ModelError: if the method is not installed.
    """
    hop = waveform_images.contract(trace).hop_samples
    settings = FeatureSettings(sample_rate_hz=heard.sample_rate_hz, hop_samples=hop, f0_method=method)
    found, n = {}, waveform_images.n_frames(trace)
    for k, (i, samples) in enumerate(sorted(heard.audio.items())):
        f0_hz, voiced, _ = extract.track_f0(samples[: n * hop], heard.sample_rate_hz, settings)
        if len(f0_hz) == n and i < len(trace):
            found[i] = (f0_hz, voiced)
        if progress:
            progress((k + 1) / len(heard.audio), f"pitch of sound {k + 1} of {len(heard.audio)}")
    return found


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
