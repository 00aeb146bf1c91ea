"""Controls without a model: the song in the wanted key, and that through an equalizer to the target's spectrum."""

import librosa
import numpy as np

N_FFT = 2048


def long_term_magnitude(samples: np.ndarray) -> np.ndarray:
    """Root mean square over time of the STFT magnitude, where there is sound, smoothed over a third of an octave."""
    power = np.square(np.abs(librosa.stft(samples.astype(np.float32), n_fft=N_FFT)))
    level = power.sum(axis=0)
    mean = power[:, level > 1e-4 * level.max()].mean(axis=1)
    bins = np.arange(len(mean))
    low, high = np.floor(bins * 2 ** (-1 / 6)).astype(int), np.ceil(bins * 2 ** (1 / 6)).astype(int) + 1
    area = np.concatenate([[0.0], np.cumsum(mean)])
    high = np.minimum(high, len(mean))
    return np.sqrt((area[high] - area[low]) / (high - low)) + 1e-9


def equalized(samples: np.ndarray, target_magnitude: np.ndarray) -> np.ndarray:
    """The sound through a fixed filter that gives it a long-term spectrum, by at most 30 dB."""
    gain = target_magnitude / long_term_magnitude(samples)
    gain = np.clip(gain / np.median(gain), 10 ** (-30 / 20), 10 ** (30 / 20))
    spectrum = librosa.stft(samples.astype(np.float32), n_fft=N_FFT) * gain[:, None]
    return librosa.istft(spectrum, n_fft=N_FFT, length=len(samples))


def shifted(samples: np.ndarray, rate_hz: int, semitones: float) -> np.ndarray:
    """The sound in another key, by resampling and time stretching."""
    return librosa.effects.pitch_shift(samples, sr=rate_hz, n_steps=semitones) if semitones else samples
