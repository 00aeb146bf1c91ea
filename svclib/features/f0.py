"""F0 trackers: their registry, tracking in chunks, and interpolation onto the frame grid.

A tracker works at 16 kHz and gives, for its own evenly spaced times, a frequency and a confidence whose voicing
threshold is 0.5. Long recordings are tracked in chunks with a halo; chunk borders lie on multiples of 2 s, where the
sample grids of all rates and the trackers' own frames (16 ms and 10 ms) coincide.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import librosa
import numpy as np
import scipy.ndimage

from svclib.audio import io as audio
from svclib.audio import units
from svclib.utils.errors import ModelError, ProgressCallback

SAMPLE_RATE_HZ = 16000
STEP_SAMPLES = 160  # 10 ms: CREPE's and pyin's step at 16 kHz
CHUNK_S, HALO_S = 60, 2  # multiples of 2 s
SILENCE_PEAK = 1e-3  # swift's own gate, used for all: -60 dB of full scale
QUIET_PEAK = 0.1  # -20 dB, to which quieter recordings are amplified, because trackers lose voicing in them
_JUMP = np.log(2.0) * 3 / 12  # 3 semitones within one step is a leap from one estimate to another, not a glide


class Track(NamedTuple):
    """A tracker's estimates: ``times_s`` increasing, ``f0_hz`` (0 where there is none), ``confidence`` 0..1."""

    times_s: np.ndarray
    f0_hz: np.ndarray
    confidence: np.ndarray


Tracker = Callable[[np.ndarray, float, float], Track]  # of float32 samples at 16 kHz, lowest and highest F0 in Hz


class F0Method(NamedTuple):
    """A registered tracker and the package that it needs."""

    track: Tracker
    package: str


F0_METHODS: dict[str, F0Method] = {}


def register(name: str, package: str) -> Callable[[Tracker], Tracker]:
    """Decorator that offers a tracker under a name, a value of ``FeatureSettings.f0_method``."""

    def add(tracker: Tracker) -> Tracker:
        F0_METHODS[name] = F0Method(tracker, package)
        return tracker

    return add


@register("swift", package="swift-f0")
def swift(samples: np.ndarray, f0_min_hz: float, f0_max_hz: float) -> Track:
    """SwiftF0, a small spectral network (Nieradzik 2025, arXiv:2508.18440); steps of 16 ms."""
    found = _swift_model().detect(samples, SAMPLE_RATE_HZ, f0_min_hz, f0_max_hz)
    return Track(found.timestamps, found.pitch_hz, found.confidence)


@functools.lru_cache(maxsize=1)
def _swift_model():
    try:
        import swift_f0
    except ImportError:
        hint = "Run `pip install swift-f0`, or choose the method 'pyin'."
        raise ModelError("F0 method 'swift' needs the package swift-f0.", hint=hint) from None
    return swift_f0.SwiftF0(threads=1, spin=False)  # more threads gain nothing on a model this small


@register("pyin", package="librosa")
def pyin(samples: np.ndarray, f0_min_hz: float, f0_max_hz: float) -> Track:
    """Probabilistic YIN (Mauch and Dixon 2014) as in librosa; steps of 10 ms."""
    window = 1024 if f0_min_hz >= 40 else 2048  # the longest period must fit twice
    steps: dict[str, Any] = {"sr": SAMPLE_RATE_HZ, "frame_length": window, "hop_length": STEP_SAMPLES}
    f0_hz, voiced, probability = librosa.pyin(samples, fmin=f0_min_hz, fmax=f0_max_hz, fill_na=None, **steps)
    confidence = np.where(voiced, 0.5 + 0.5 * probability, 0.49 * probability)  # the Viterbi path decides on voicing
    return Track(step_times_s(len(f0_hz)), f0_hz, gate_silence(samples, confidence))


def step_times_s(n: int) -> np.ndarray:
    """Times of ``n`` estimates every 10 ms, the first at 0."""
    return np.arange(n) * (STEP_SAMPLES / SAMPLE_RATE_HZ)


def gate_silence(samples: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Confidence 0 where the 30 ms around an estimate (one every 10 ms) stay below -60 dB of full scale."""
    padded = np.pad(np.abs(samples), (0, STEP_SAMPLES))
    peaks = scipy.ndimage.maximum_filter1d(padded, 3 * STEP_SAMPLES, mode="constant")[::STEP_SAMPLES]
    return np.where(peaks[: len(confidence)] < SILENCE_PEAK, 0.0, confidence)


def track_in_chunks(
    tracker: Tracker,
    samples: np.ndarray,
    sample_rate_hz: int,
    f0_min_hz: float,
    f0_max_hz: float,
    progress: ProgressCallback | None = None,
) -> Track:
    """Track a recording of any length in chunks; ``samples`` are float32, or int16 with full scale 32768.

    A quiet recording, with a peak of -60 to -20 dB of full scale, is amplified to a peak of -20 dB.
    """
    n, chunk, halo = len(samples), CHUNK_S * sample_rate_hz, HALO_S * sample_rate_hz
    peaks = [float(np.abs(audio.as_float(samples[i : i + (1 << 20)])).max()) for i in range(0, n, 1 << 20)]
    peak, found = max(peaks, default=0.0), []
    gain = np.float32(QUIET_PEAK / peak if SILENCE_PEAK <= peak < QUIET_PEAK else 1.0)
    for start in range(0, n, chunk):
        low, high = max(0, start - halo), min(n, start + chunk + halo)
        at_16k = audio.resample(gain * audio.as_float(samples[low:high]), sample_rate_hz, SAMPLE_RATE_HZ)
        if len(at_16k):
            track = tracker(at_16k, f0_min_hz, f0_max_hz)
            times_s = track.times_s + low / sample_rate_hz
            keep = times_s > start / sample_rate_hz - 1e-6
            if start + chunk < n:
                keep &= times_s < (start + chunk) / sample_rate_hz - 1e-6
            found.append(Track(times_s[keep], track.f0_hz[keep], track.confidence[keep]))
        if progress:
            progress(min(1.0, (start + chunk) / n), "tracking the pitch")
    return Track(*map(np.concatenate, zip(*found, strict=True))) if found else Track(*np.zeros((3, 0)))


def to_grid(
    track: Track, n_frames: int, hop_samples: int, sample_rate_hz: int, voicing_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """A track interpolated to the frame centres: ``(f0_hz, confidence)``, float32 ``[n_frames]``.

    Confidence is interpolated linearly, F0 in log-frequency. At a border of voicing the voiced estimate is held, and
    over a leap (an octave error) the nearer estimate is taken: no frequency appears that was not estimated.
    """
    if not len(track.times_s) or not n_frames:
        return np.zeros(n_frames, np.float32), np.zeros(n_frames, np.float32)
    centers_s = units.frame_centers_s(n_frames, hop_samples, sample_rate_hz)
    right = np.clip(np.searchsorted(track.times_s, centers_s), 1, max(1, len(track.times_s) - 1))
    left = right - 1
    right = np.minimum(right, len(track.times_s) - 1)
    step_s = np.maximum(track.times_s[right] - track.times_s[left], 1e-9)
    share = np.clip((centers_s - track.times_s[left]) / step_s, 0.0, 1.0)
    confidence = (1 - share) * track.confidence[left] + share * track.confidence[right]
    log_f0 = np.log(np.maximum(track.f0_hz, 1e-3))
    voiced = (track.confidence >= voicing_threshold) & (track.f0_hz > 0)
    same = (voiced[left] == voiced[right]) & (np.abs(log_f0[left] - log_f0[right]) < _JUMP)
    nearer = np.where(share < 0.5, left, right)
    held = np.where(voiced[left] == voiced[right], nearer, np.where(voiced[left], left, right))
    f0_hz = np.exp(np.where(same, (1 - share) * log_f0[left] + share * log_f0[right], log_f0[held]))
    f0_hz[(confidence <= 0) | (track.f0_hz[held] <= 0)] = 0.0
    return f0_hz.astype(np.float32), confidence.astype(np.float32)


def fill_unvoiced(f0_hz: np.ndarray, voiced: np.ndarray) -> np.ndarray:
    """F0 ``[..., frames]`` interpolated in log-frequency over unvoiced frames, held at the ends; 0 if none is voiced.

    For networks, which need a number everywhere; never for a synthesiser. The one place where F0 is made continuous.
    """
    f0_hz, voiced = np.asarray(f0_hz), np.asarray(voiced, bool)
    if f0_hz.ndim > 1:
        return np.stack([fill_unvoiced(*row) for row in zip(f0_hz, voiced, strict=True)])
    known = voiced & (f0_hz > 0)
    if not known.any():
        return np.zeros_like(f0_hz)
    frames = np.arange(len(f0_hz))
    filled = np.exp(np.interp(frames, frames[known], np.log(f0_hz[known].astype(np.float64)))).astype(f0_hz.dtype)
    return np.where(known, f0_hz, filled)
