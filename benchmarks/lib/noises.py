"""Five noises made in code, mixed in at a share of a signal's level, and how much of them was taken out again.

The set of Kong et al. (*DiffWave*, section 5.4) cannot be shipped; these stand in for it. The paper adds each noise "at
10 %" and does not define of what: here a share is the noise's root mean square over the signal's, so that 10 % is a
signal-to-noise ratio of 20 dB and 30 % one of 10.5 dB.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from svclib.utils.errors import ConversionError

KINDS = ("white", "pink", "brown", "hum", "babble")
SHARES = (0.1, 0.3)
LOWEST_HZ = 20.0
MAINS_HZ = (50.0, 60.0)
N_VOICES = 6

Signal = Float[np.ndarray, " _"]  # lengths are checked in sentences


def rms(x: Signal) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if len(x) else 0.0


def make(
    kind: str,
    n_samples: int,
    sample_rate_hz: int,
    seed: int = 0,
    voices: Sequence[Signal] = (),
    mains_hz: int | float | None = None,
) -> Signal:
    """Noise of one kind; equal seeds give equal noise.

    - ``white``: equal power at all frequencies; ``pink``: -3 dB, ``brown``: -6 dB per octave from 20 Hz on, nothing
      below;
    - ``hum``: the mains and its harmonics up to half the sample rate, the k-th with amplitude 1 / k;
    - ``babble``: up to six other recordings at once, each at the same level, from a place in it on, in circles.

    Args:
        kind: One of ``KINDS``.
        n_samples: Length, at least 2.
        sample_rate_hz: Its rate, above 120 Hz.
        seed: Of everything random.
        voices: Recordings for ``babble`` at the same rate; silent ones are left out.
        mains_hz: Of ``hum``, 50 or 60; drawn from the seed if None.

    Returns:
        float32 ``[n_samples]`` with root mean square 1.

    Raises:
        ConversionError: for another kind, too few samples or too low a rate, other mains, or babble without voices.
    """
    if kind not in KINDS:
        raise ConversionError(f"There is no noise '{kind}'; choose one of {', '.join(KINDS)}.")
    if n_samples < 2 or sample_rate_hz <= 2 * max(MAINS_HZ):
        raise ConversionError(
            f"{n_samples} samples at {sample_rate_hz} Hz were asked for; give at least 2, above 120 Hz."
        )
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    if kind == "hum":
        made = _hum(n_samples, sample_rate_hz, rng, mains_hz)
    elif kind == "babble":
        made = _babble(n_samples, rng, voices)
    else:
        made = _coloured(n_samples, sample_rate_hz, rng, {"white": 0.0, "pink": 1.0, "brown": 2.0}[kind])
    return (made / rms(made)).astype(np.float32)


def _coloured(n: int, rate: int, rng: np.random.Generator, exponent: float) -> Signal:
    """Power falling with ``frequency ** -exponent``."""
    size = max(n, rate)  # long enough to have frequencies near the lowest
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hz = np.fft.rfftfreq(size, 1 / rate)
    if exponent:
        audible = hz >= LOWEST_HZ
        spectrum = np.where(audible, spectrum * np.where(audible, hz, 1.0) ** (-exponent / 2), 0)
    return np.fft.irfft(spectrum, size)[:n]


def _hum(n: int, rate: int, rng: np.random.Generator, mains_hz: int | float | None) -> Signal:
    if mains_hz is not None and mains_hz not in MAINS_HZ:
        raise ConversionError(f"mains_hz is {mains_hz!r}; it is 50 or 60.")
    drawn = float(rng.choice(MAINS_HZ))
    base = drawn if mains_hz is None else float(mains_hz)
    k = np.arange(1, int(np.ceil(rate / 2 / base)))
    phases = rng.uniform(0, 2 * np.pi, len(k))
    turns = np.outer(np.arange(n) / rate, base * k)
    return np.sin(2 * np.pi * turns + phases) @ (1.0 / k)


def _babble(n: int, rng: np.random.Generator, voices: Sequence[Signal]) -> Signal:
    sounding = [v for v in voices if rms(v) > 0]
    if not sounding:
        raise ConversionError("Babble is made of other recordings; give some that are not silent.")
    picked = rng.choice(len(sounding), min(N_VOICES, len(sounding)), replace=False)
    total = np.zeros(n)
    for i in picked:
        voice = np.asarray(sounding[i], np.float64)
        places = (int(rng.integers(len(voice))) + np.arange(n)) % len(voice)
        total += voice[places] / rms(voice)
    return total


def mix(signal: Signal, noise: Signal, share: int | float) -> Signal:
    """``signal + share * rms(signal) / rms(noise) * noise``; the signal itself stays as it is.

    Raises ConversionError for another length, a share below 0, or silence on either side.
    """
    if len(signal) != len(noise) or not 0 <= share < float("inf"):
        raise ConversionError(
            f"A signal of {len(signal)} samples, a noise of {len(noise)} and a share of {share:g} arrived; lengths "
            "have to be equal and the share 0 or more."
        )
    if not rms(signal) or not rms(noise):
        raise ConversionError("The signal or the noise is silent, so that a share of its level means nothing.")
    return (signal + share * rms(signal) / rms(noise) * noise).astype(np.float32)


def si_sdr_db(reference: Signal, estimate: Signal) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, https://arxiv.org/abs/1811.02508, Eq. 3).

    ``10 log10(|a s|^2 / |a s - e|^2)`` with ``a = <e, s> / <s, s>``: a gain of the estimate is forgiven, nothing else.
    Raises ConversionError for other lengths, or a silent reference.
    """
    s, e = np.asarray(reference, np.float64), np.asarray(estimate, np.float64)
    if s.shape != e.shape or not rms(s):
        raise ConversionError(
            f"{len(s)} samples of the reference and {len(e)} others arrived; lengths have to be equal, and sound to be "
            "in the reference."
        )
    target = (e @ s) / (s @ s) * s
    if not rms(e):
        return -np.inf
    with np.errstate(divide="ignore"):
        return float(10 * (np.log10(target @ target) - np.log10((target - e) @ (target - e))))


def si_sdr_gain_db(reference: Signal, noisy: Signal, cleaned: Signal) -> float:
    """Rise of :func:`si_sdr_db` in dB by the cleaning; negative where it did harm."""
    return si_sdr_db(reference, cleaned) - si_sdr_db(reference, noisy)
