"""What the doctor hears: how much of a recording has a pitch, how it moves, whether something else sounds with it."""

from collections.abc import Sequence

import numpy as np

from svclib.audio import io as audio
from svclib.features import extract

RATE_HZ, HOP, WINDOW = 16000, 256, 2048
MIXTURE_NOTE, MIXTURE_WARNING = 0.06, 0.25
_SETTINGS = extract.FeatureSettings(sample_rate_hz=RATE_HZ, hop_samples=HOP)
_FOREIGN = 0.01  # share of the energy, -20 dB: from here on another pitch counts as sounding
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 2500.0


def pitch_of(stretches: Sequence[np.ndarray], sample_rate_hz: int, level_db: float) -> dict:
    """Pitch measurements over stretches of a recording.

    Args:
        stretches: Mono audio ``[n]`` each.
        sample_rate_hz: Its rate.
        level_db: Level of the loud parts; what is 40 dB softer counts as silence.

    Returns:
        ``noise_floor_db``, ``f0_low_hz``, ``f0_high_hz``, ``voiced_share``, ``octave_jumps_per_min``,
        ``mixture_share``; None where there is too little to say.
    """
    pitches, foreign, pauses, n_sounding, n_voiced, jumps = [], [], [], 0, 0, 0
    for stretch in stretches:
        samples = audio.resample(stretch, sample_rate_hz, RATE_HZ)
        if len(samples) < WINDOW:
            continue
        samples = samples / max(1.0, float(np.abs(samples).max()))
        f0_hz, voiced, confidence = extract.track_f0(samples, RATE_HZ, _SETTINGS)
        frames = samples[: len(f0_hz) * HOP].reshape(-1, HOP)
        levels_db = 10 * np.log10((frames.astype(np.float64) ** 2).mean(axis=1) + 1e-12)
        sounding = levels_db > level_db - 40
        pauses.append(pause_levels_db(levels_db, voiced, level_db))
        n_sounding += int(sounding.sum())
        n_voiced += int((voiced & sounding).sum())
        pitches.append(f0_hz[voiced])
        jumps += count_octave_jumps(f0_hz, voiced)
        foreign.append(foreign_shares(samples, f0_hz, voiced, confidence))
    f0_hz, foreign, pauses = (np.concatenate(x) if x else np.zeros(0) for x in (pitches, foreign, pauses))
    voiced_min = len(f0_hz) * HOP / RATE_HZ / 60
    return {
        "noise_floor_db": float(np.percentile(pauses, 10)) if len(pauses) >= 4 else None,
        "f0_low_hz": float(np.percentile(f0_hz, 2)) if len(f0_hz) >= 10 else None,
        "f0_high_hz": float(np.percentile(f0_hz, 98)) if len(f0_hz) >= 10 else None,
        "voiced_share": n_voiced / n_sounding if n_sounding else None,
        "octave_jumps_per_min": jumps / voiced_min if voiced_min > 0.03 else None,
        "mixture_share": float((foreign > _FOREIGN).mean()) if len(foreign) >= 20 else None,
    }


def pause_levels_db(levels_db: np.ndarray, voiced: np.ndarray, level_db: float) -> np.ndarray:
    """Levels of the pauses: stretches of 0.3 s without pitch, 12 dB below the loud parts, that stay within 8 dB.

    Consonants change faster than the noise of a room, soft notes have a pitch. Exact zeros (an edited pause) say
    nothing.

    Args:
        levels_db: Mean square of each frame of 16 ms, in dB, ``[frames]``.
        voiced: Whether the frame has a pitch, ``[frames]``.
        level_db: Level of the loud parts.

    Returns:
        Mean level of each, dB; one may begin at every frame. Empty if there is none.
    """
    n = 19
    if len(levels_db) < n:
        return np.zeros(0)
    levels = np.lib.stride_tricks.sliding_window_view(levels_db, n)
    pitched = np.lib.stride_tricks.sliding_window_view(voiced, n).any(axis=1)
    quiet = (levels.max(axis=1) < level_db - 12) & (levels.min(axis=1) > -100)
    return levels[(np.ptp(levels, axis=1) < 8) & quiet & ~pitched].mean(axis=1)


def count_octave_jumps(f0_hz: np.ndarray, voiced: np.ndarray) -> int:
    """Leaps by one octave (give or take a semitone) between voiced frames at most three frames (48 ms) apart."""
    known = np.flatnonzero(voiced)
    if len(known) < 2:
        return 0
    semitones = np.abs(12 * np.diff(np.log2(f0_hz[known])))
    return int(((np.diff(known) <= 3) & (np.abs(semitones - 12) < 1)).sum())


def foreign_shares(samples: np.ndarray, f0_hz: np.ndarray, voiced: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Beside each steady sung note: the share of the energy in tones that are no harmonics of it.

    In windows of 128 ms with a pitch that moves by less than 0.6 semitones, spectral peaks that lie more than 0.22 F0
    from every harmonic and stand out 15 dB from their surroundings are summed. Nearer to the harmonics lie the voice's
    own side tones (vibrato, beats), and noise makes no such peaks.

    Args:
        samples: ``[n]`` at 16 kHz.
        f0_hz: ``[frames]`` of 256 samples.
        voiced: ``[frames]``; a window has to be voiced all through.
        confidence: ``[frames]``, 0..1; below 0.6 a window is left out.

    Returns:
        float64 ``[steady windows]``, 0..1; one window may begin every 48 ms.
    """
    window = np.hanning(WINDOW + 1)[:WINDOW]
    freqs_hz = np.arange(WINDOW // 2 + 1) * RATE_HZ / WINDOW
    band = (freqs_hz >= _LOWEST_HZ) & (freqs_hz <= _HIGHEST_HZ)
    per_window = WINDOW // HOP
    shares = []
    for frame in range(0, len(f0_hz) - per_window + 1, 3):
        around = slice(frame, frame + per_window)
        if not voiced[around].all() or confidence[around].min() < 0.6:
            continue
        lowest, highest = f0_hz[around].min(), f0_hz[around].max()
        spread = np.log(highest / lowest)
        if spread > np.log(2) * 0.6 / 12:
            continue
        f0 = float(np.median(f0_hz[around]))
        power = np.abs(np.fft.rfft(samples[frame * HOP : frame * HOP + WINDOW] * window)) ** 2
        nearest = np.maximum(np.round(freqs_hz / f0), 1) * f0
        width = np.maximum(0.22 * f0, 2.6 * RATE_HZ / WINDOW + nearest * (0.5 * spread + 0.004))
        usable = band & (2 * width < 0.7 * f0)
        between = usable & (np.abs(freqs_hz - nearest) > width)
        if usable.sum() < 10 or between.sum() < 8 or power[usable].sum() <= 0:
            continue
        peaks = np.zeros(len(power), bool)
        peaks[1:-1] = (power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:])
        energy, total = 0.0, power[usable].sum()
        for k in np.flatnonzero(peaks & between & (power > 1e-4 * total)):
            near = slice(max(0, k - 24), k + 25)
            if power[k] > 30 * np.median(power[near][between[near]]):
                energy += power[k - 2 : k + 3].sum()
        shares.append(min(1.0, energy / total))
    return np.array(shares)
