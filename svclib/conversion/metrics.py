"""Metrics of a result against its reference, with definitions and units.

Reference and result must lie on the same grid; nothing is shifted, cut or scaled to fit.
"""

import librosa
import numpy as np
import scipy.fft
from jaxtyping import Bool, Float

from svclib.audio import units
from svclib.utils.errors import ModelError

STFT_SIZES = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # FFT, hop, window at 24 kHz; Yamamoto et al. 2020
Track = Float[np.ndarray, " _"]  # lengths are checked by _same_length, in a sentence
Flags = Bool[np.ndarray, " _"]


def f0_accuracy(reference_f0_hz: Track, reference_voiced: Flags, f0_hz: Track, voiced: Flags) -> dict[str, float]:
    """Pitch and voicing against a reference on the same frames, as in ``mir_eval.melody`` (Poliner et al. 2007).

    Frames of 0 Hz count as unvoiced; the estimate may be positive in frames that it calls unvoiced.

    Returns shares from 0 to 1 (NaN where there is nothing to divide by): ``raw_pitch_accuracy``, truly voiced frames
    whose estimate is within 50 cents, whatever its voicing; ``raw_chroma_accuracy``, the same with octaves forgiven;
    ``octave_error_rate``, truly voiced frames within 50 cents of a wrong octave; ``overall_accuracy``, all frames with
    right voicing and, where voiced, right pitch; ``voicing_precision``, ``voicing_recall``, ``voicing_f1``.
    """
    _same_length(reference_f0_hz, reference_voiced, f0_hz, voiced)
    truth, called = reference_voiced & (reference_f0_hz > 0), voiced & (f0_hz > 0)
    both = truth & (f0_hz > 0)
    error = np.full(len(truth), np.inf)
    error[both] = units.cents(f0_hz[both], reference_f0_hz[both])
    right, right_chroma = np.abs(error) < 50.0, np.zeros(len(truth), bool)
    right_chroma[both] = np.abs((error[both] + 600.0) % 1200.0 - 600.0) < 50.0
    hits = float((truth & called).sum())
    return {
        "raw_pitch_accuracy": _ratio((truth & right).sum(), truth.sum()),
        "raw_chroma_accuracy": _ratio((truth & right_chroma).sum(), truth.sum()),
        "octave_error_rate": _ratio((truth & right_chroma & ~right).sum(), truth.sum()),
        "overall_accuracy": _ratio((truth & called & right).sum() + (~truth & ~called).sum(), len(truth)),
        "voicing_precision": _ratio(hits, called.sum()),
        "voicing_recall": _ratio(hits, truth.sum()),
        "voicing_f1": _ratio(2.0 * hits, called.sum() + truth.sum()),
    }


def f0_error_cents(reference_f0_hz: Track, reference_voiced: Flags, f0_hz: Track, voiced: Flags) -> dict[str, float]:
    """Pitch error in cents over frames that both call voiced: ``median_absolute``, ``rmse``, ``median`` (signed: a
    detuned result) and ``correlation`` of log F0. NaN if there are no such frames.
    """
    _same_length(reference_f0_hz, reference_voiced, f0_hz, voiced)
    both = reference_voiced & voiced & (reference_f0_hz > 0) & (f0_hz > 0)
    if not both.any():
        return dict.fromkeys(("median_absolute", "rmse", "median", "correlation"), float("nan"))
    error = units.cents(f0_hz[both], reference_f0_hz[both])
    a, b = (np.log2(f0[both].astype(float)) for f0 in (reference_f0_hz, f0_hz))
    varies = a.std() * b.std() > 0
    return {
        "median_absolute": float(np.median(np.abs(error))),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "median": float(np.median(error)),
        "correlation": float(np.corrcoef(a, b)[0, 1]) if varies else float("nan"),
    }


def loudness_l1_db(reference_db: Track, measured_db: Track, above_db: float = -60.0) -> float:
    """Mean absolute difference of two loudness curves over frames whose reference is above ``above_db``, or NaN."""
    _same_length(reference_db, measured_db)
    counted = reference_db > above_db
    return float(np.abs(reference_db[counted] - measured_db[counted]).mean()) if counted.any() else float("nan")


def spectral_distance(
    reference: Float[np.ndarray, " _"], result: Float[np.ndarray, " _"], sample_rate_hz: int = 24000
) -> dict[str, float]:
    """Multi-resolution STFT distance of two signals of equal length (Yamamoto, Song, Kim 2020, arXiv:1910.11480).

    The mean over three resolutions of ``stft_convergence`` (norm of the difference of magnitudes over that of the
    reference) and of ``stft_log_magnitude`` (mean absolute difference of natural logarithms, power floored at 1e-8);
    ``stft_distance`` is their sum.
    """
    _same_length(reference, result)
    sizes = [tuple(2 * round(n * sample_rate_hz / 48000) for n in size) for size in STFT_SIZES]
    pair = reference.astype(float), result.astype(float)
    convergence, logs = [], []
    for n_fft, hop, window in sizes:
        transforms = (librosa.stft(x, n_fft=n_fft, hop_length=hop, win_length=window, pad_mode="reflect") for x in pair)
        a, b = (np.maximum(np.abs(transform), 1e-4) for transform in transforms)
        convergence.append(np.linalg.norm(a - b) / np.linalg.norm(a))
        logs.append(np.abs(np.log(a) - np.log(b)).mean())
    means = {"stft_convergence": float(np.mean(convergence)), "stft_log_magnitude": float(np.mean(logs))}
    return {**means, "stft_distance": sum(means.values())}


def mcd_db(
    reference: Float[np.ndarray, "_ mels"], result: Float[np.ndarray, "_ mels"], n_cepstra: int = 13, warped=False
) -> float:
    """Mel-cepstral distortion in dB of two natural-log amplitude mel spectrograms (Kubichek 1993), without the level.

    ``10 / ln 10 * sqrt(2 * sum_d (c_d - c'_d)^2)`` over d = 1 ... ``n_cepstra``, averaged over frames. ``c_d`` are the
    coefficients of the cosine series ``c_0 + sum_d c_d cos(d w)`` of the log-mel: the distortion is the root mean
    square difference in dB of the two smoothed spectra, whatever the number of mels. NaN without frames.
    ``warped``: along the path of dynamic time warping (MCD-DTW) instead of frame by frame; lengths may differ then.
    """
    if not warped:
        _same_length(reference, result)
    # scipy's DCT-II is 2 sum_j x_j cos(...): divided by the number of mels it is c_d
    a, b = (scipy.fft.dct(x.astype(float), axis=1)[:, 1 : n_cepstra + 1] / x.shape[1] for x in (reference, result))
    if not len(a) or not len(b):
        return float("nan")
    if warped:
        path = librosa.sequence.dtw(a.T, b.T)[1]
        a, b = a[path[:, 0]], b[path[:, 1]]
    return float(10.0 / np.log(10.0) * np.sqrt(2.0 * np.square(a - b).sum(axis=1)).mean())


def _ratio(part, whole) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _same_length(*arrays: np.ndarray) -> None:
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) > 1:
        raise ModelError(f"arrays of different lengths {lengths} cannot be compared; measure all on the same grid.")
