"""Ground truth of a synthetic singer's recording on any frame grid, in closed form."""

import dataclasses

import numpy as np

from svclib.audio import units
from svclib.audio.loudness import a_weighting_db
from svclib.data.singers import SyntheticRecording

STEP_S = 0.002  # time grid of the loudness
N_BANDS = 129


@dataclasses.dataclass(frozen=True)
class Truth:
    """Ground truth at the frame centres.

    Attributes:
        f0_hz: float32 ``[frames]``, 0 where unvoiced.
        voiced: bool ``[frames]``: the centre lies in a vowel or a voiced consonant.
        loudness_db: float32 ``[frames]``, comparable with ``features.loudness_db``.
        formants_hz: float32 ``[frames, 5]``.
        phones: One per frame.
    """

    sample_rate_hz: int
    hop_samples: int
    f0_hz: np.ndarray
    voiced: np.ndarray
    loudness_db: np.ndarray
    formants_hz: np.ndarray
    phones: list[str]


def truth(made: SyntheticRecording, rate_hz: int | None = None, hop_samples: int = 64, n_fft: int = 512) -> Truth:
    """Ground truth on a frame grid of any rate; harmonics above its Nyquist frequency are left out."""
    rate_hz = rate_hz or made.sample_rate_hz
    limit_hz = min(rate_hz, made.sample_rate_hz) / 2
    curves = made.curves
    n_samples = units.resampled_length(len(made.audio), made.sample_rate_hz, rate_hz)
    centers = units.frame_centers_s(units.frame_count(n_samples, hop_samples), hop_samples, rate_hz)
    f0_hz = curves.f0_hz(centers)
    starts_s = [p.start_s for p in curves.phones[1:]]
    phones = [curves.phones[i].phone for i in np.searchsorted(starts_s, centers, side="right")]
    voiced = np.array([p in curves.singer.formants_hz for p in phones], dtype=bool)
    # loudness: A-weighted power, averaged with the squared Hann window of the analysis
    t = np.arange(0, curves.phones[-1].end_s + STEP_S, STEP_S)
    fine_f0 = curves.f0_hz(t)
    partials = curves.harmonics(t, fine_f0, limit_hz)
    power = 0.5 * np.sum(partials**2 * _a_weight(fine_f0[:, None] * np.arange(1, partials.shape[1] + 1)), axis=1)
    bands_hz = np.linspace(0, limit_hz, N_BANDS)
    power += np.trapezoid(curves.noise_power(t, bands_hz, limit_hz) * _a_weight(bands_hz), bands_hz, axis=1)
    window_s = n_fft / rate_hz
    half = int(window_s / 2 / STEP_S)
    window = np.cos(np.pi * STEP_S * np.arange(-half, half + 1) / window_s) ** 4
    smoothed = np.convolve(np.pad(power, half), window / window.sum(), mode="valid")
    # a Hann window of N points turns mean square p into the mean over N/2+1 bins of p * 3 N^2 / 16
    scale = 3 * n_fft**2 / 16 / (n_fft // 2 + 1)
    loudness = 10 * np.log10(np.maximum(np.interp(centers, t, smoothed) * scale, 1e-8))
    arrays = (np.where(voiced, f0_hz, 0), loudness, curves.formants_hz(centers, f0_hz))
    masked, loudness, formants = (a.astype(np.float32) for a in arrays)
    return Truth(rate_hz, hop_samples, masked, voiced, loudness, formants, phones)


def _a_weight(f_hz: np.ndarray) -> np.ndarray:
    """A-weighting as a power ratio."""
    return 10 ** (np.asarray(a_weighting_db(np.maximum(f_hz, 1.0)), dtype=float) / 10)
