"""Hz, MIDI and cents; decibels; samples, frames and seconds. All frame arithmetic of the project lives here.

The frame rule: frame ``i`` covers samples ``[i * hop, (i + 1) * hop)`` and everything measured for it is centred in the
middle of them, at sample ``i * hop + hop / 2``. A signal of ``n_samples`` has ``n_samples // hop`` frames.

The pitch and level functions take numpy arrays, plain numbers or torch tensors and return the same kind.
"""

import math

import numpy as np
import torch

from svclib.utils.errors import ConfigError

A4_HZ = 440.0
A4_MIDI = 69.0
NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MAX_FRAMES_PER_S, MAX_BINS_PER_S, MAX_MELS_PER_S = 2000, 1 << 24, 1 << 18


def check_budget(sample_rate_hz: int, hop_samples: int, n_fft: int, n_mels: int = 0) -> None:
    """Refuse a frame grid (ConfigError) on which each value is in range and their product is not: a second of sound
    would take gigabytes. The usual 44.1 kHz, hop 512, FFT 2048 and 128 mels need a hundredth of what is allowed.
    """
    rate = sample_rate_hz / hop_samples
    if rate > MAX_FRAMES_PER_S or rate * n_fft > MAX_BINS_PER_S or rate * n_mels > MAX_MELS_PER_S:
        raise ConfigError(
            f"A hop of {hop_samples} samples at {sample_rate_hz} Hz makes {rate:.0f} frames a second, each of an FFT "
            f"of {n_fft}{f' and {n_mels} mels' if n_mels else ''}: too much. Choose a longer hop or a shorter FFT."
        )


def hz_to_midi(f0_hz):
    """MIDI note number (69 = 440 Hz, fractional); 0 Hz, meaning no pitch, gives 0."""
    if isinstance(f0_hz, torch.Tensor):
        safe = torch.where(f0_hz > 0, f0_hz, 1.0)
        return torch.where(f0_hz > 0, 12.0 * torch.log2(safe / A4_HZ) + A4_MIDI, 0.0)
    f0_hz = np.asarray(f0_hz)
    safe = np.where(f0_hz > 0, f0_hz, 1.0)
    return np.where(f0_hz > 0, 12.0 * np.log2(safe / A4_HZ) + A4_MIDI, 0.0)[()]


def midi_to_hz(midi):
    """Frequency in Hz of a (fractional) MIDI note number. MIDI 0 is a pitch here (8.18 Hz), not silence."""
    midi = midi if isinstance(midi, torch.Tensor) else np.asarray(midi, dtype=float)
    return (A4_HZ * 2.0 ** ((midi - A4_MIDI) / 12.0))[()]


def note_name(midi: float | int) -> str:
    """``69`` -> ``A4``; rounds to the nearest note."""
    note = int(math.floor(midi + 0.5))
    return f"{NOTE_NAMES[note % 12]}{note // 12 - 1}"


def range_text(low_hz: float | int, high_hz: float | int) -> str:
    """A range of pitch in notes and in Hz: ``A3 to D5 (215 to 606 Hz)``."""
    low, high = (note_name(float(hz_to_midi(hz))) for hz in (low_hz, high_hz))
    return f"{low} to {high} ({low_hz:.0f} to {high_hz:.0f} Hz)"


def cents(f0_hz, reference_hz):
    """Interval from ``reference_hz`` to ``f0_hz`` in cents; both must be positive."""
    return 1200.0 * np.log2(np.asarray(f0_hz, dtype=float) / np.asarray(reference_hz, dtype=float))[()]


def amplitude_to_db(amplitude, floor_db: float | int = -120.0):
    """20 log10 of an amplitude, not below ``floor_db``."""
    lowest = 10.0 ** (floor_db / 20.0)
    if isinstance(amplitude, torch.Tensor):
        return 20.0 * amplitude.abs().clamp_min(lowest).log10()
    return (20.0 * np.log10(np.maximum(np.abs(amplitude), lowest)))[()]


def db_to_amplitude(level_db):
    """Amplitude factor of a level in dB."""
    return 10.0 ** (level_db / 20.0)


def double(x: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """A tensor (on another device) in float64; in float32 on Apple's GPUs (``mps``), which have no float64."""
    device = device or x.device
    return x.to(device, torch.float32 if device.type == "mps" else torch.float64)


def frame_count(n_samples: int, hop_samples: int) -> int:
    """Frames of a signal: ``n_samples // hop_samples``; a last incomplete hop has no frame."""
    return n_samples // hop_samples


def frame_centers_s(n_frames: int, hop_samples: int, sample_rate_hz: float | int) -> np.ndarray:
    """Times in seconds of the frame centres, float64 ``[frames]``."""
    return (np.arange(n_frames) + 0.5) * hop_samples / sample_rate_hz


def frame_of_time(time_s: float | int, hop_samples: int, sample_rate_hz: float | int) -> int:
    """The frame that holds a point in time."""
    return int(math.floor(time_s * sample_rate_hz / hop_samples))


def resampled_length(n_samples: int, rate_in_hz: float | int, rate_out_hz: float | int) -> int:
    """Samples after resampling: ``round(n_samples * rate_out / rate_in)``, halves rounded up."""
    return int(math.floor(n_samples * rate_out_hz / rate_in_hz + 0.5))


def duration_text(seconds) -> str:
    """A duration for people: ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    seconds = max(0.0, float(seconds))
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(round(seconds)), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
