"""Sound from frames: harmonic oscillators, filtered noise, reverb. Plain functions of tensors.

After Engel et al., *DDSP: Differentiable Digital Signal Processing* (ICLR 2020, https://arxiv.org/abs/2001.04643), on
this project's frame grid: a value of frame ``i`` is reached at sample ``i * hop + hop // 2``, the middle of the frame,
and the first and last values are held to the ends. Everything here is differentiable and works in float32 and float64.

Oscillators accumulate only the phase of the fundamental, in float64 and in closed form per frame, and multiply it by
the harmonic's number: a harmonic stays exact for hours, and one phase per sample serves any number of harmonics.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from svclib.audio import units
from svclib.utils import rng
from svclib.utils.errors import AudioError

BLOCK_ELEMENTS = {"cpu": 2**19, "other": 2**25}  # sines computed at once, by the size of caches


def exp_sigmoid(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``2 * sigmoid(x) ** ln(10) + 1e-7``: a positive amplitude between 1e-7 and 2 (Engel et al. 2020, section B.5)."""
    return 2.0 * torch.exp(math.log(10.0) * F.logsigmoid(x)) + 1e-7


def upsample_linear(x: Float[Tensor, "batch frames *rest"], hop_samples: int) -> Float[Tensor, "batch samples *rest"]:
    """Frames to samples by straight lines between frame centres: ``y[i * hop + hop // 2] == x[i]``, ends held."""
    return _upsample(x, hop_samples, _ramp(hop_samples, x))


def upsample_hann(x: Float[Tensor, "batch frames *rest"], hop_samples: int) -> Float[Tensor, "batch samples *rest"]:
    """Frames to samples along raised cosines between frame centres: no corner, no overshoot, ends held.

    Equal to overlapping periodic Hann windows of two hops: ``x[i] + (x[i+1] - x[i]) * (1 - cos(pi * j / hop)) / 2``.
    """
    return _upsample(x, hop_samples, _raised_cosine(_ramp(hop_samples, x)))


def upsample_gate(on: Bool[Tensor, "batch frames"], hop_samples: int, dtype=torch.float32) -> Float[Tensor, "batch n"]:
    """Per-sample 0..1 of a per-frame switch: exactly 0 in every frame that is off, raised cosines of half a hop.

    The ramps lie inside the neighbouring frames that are on: nothing sounds where it is off, and nothing clicks.
    """
    start, end = (s.to(dtype).unsqueeze(2) for s in _segments(on))
    position = _ramp(hop_samples, start)
    early, late = _raised_cosine(2 * position), _raised_cosine(2 * position - 1)
    return _crop(start * (1 - early) + end * late + start * end * (early - late), hop_samples)


def _upsample(x: Tensor, hop_samples: int, weight: Tensor) -> Tensor:
    if hop_samples < 1 or x.shape[1] < 1:
        raise AudioError(f"Upsampling needs at least one frame and a hop of 1; got {x.shape[1]} and {hop_samples}.")
    start, end = _segments(x)
    weight = weight.view(1, 1, hop_samples, *[1] * (x.ndim - 2))
    return _crop(torch.lerp(start.unsqueeze(2), end.unsqueeze(2), weight), hop_samples)


def _segments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values at both ends of every segment between frame centres: ``[B, T, ...]`` -> two ``[B, T + 1, ...]``."""
    padded = torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
    return padded[:, :-1], padded[:, 1:]


def _crop(segments: Tensor, hop_samples: int) -> Tensor:
    """Segments between frame centres ``[B, T + 1, hop, ...]`` -> samples ``[B, T * hop, ...]``."""
    first = hop_samples - hop_samples // 2
    return segments.flatten(1, 2)[:, first : first + (segments.shape[1] - 1) * hop_samples]


def _ramp(hop_samples: int, like: Tensor) -> Tensor:
    return torch.arange(hop_samples, dtype=like.dtype, device=like.device) / hop_samples


def _raised_cosine(position: Tensor) -> Tensor:
    return 0.5 - 0.5 * torch.cos(math.pi * position.clamp(0, 1))


# Harmonics ------------------------------------------------------------------------------------------------------------


def hold_f0(f0_hz: Float[Tensor, "batch frames"]) -> Float[Tensor, "batch frames"]:
    """Frames without pitch (0 Hz) take the last pitch before them, leading ones the first after; all zero stays zero.

    It keeps an oscillator from sweeping to 0 Hz while it fades out.
    """
    has = f0_hz > 0
    index = torch.arange(f0_hz.shape[1], device=f0_hz.device).expand_as(f0_hz)
    last = torch.where(has, index, 0).cummax(dim=1).values
    first = has.to(torch.int8).argmax(dim=1, keepdim=True)
    return f0_hz.gather(1, torch.maximum(last, first))


def frame_phase(
    f0_hz: Float[Tensor, "batch frames"],
    sample_rate_hz: float | int,
    hop_samples: int,
    initial_phase: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch frames"]:
    """Phase of the fundamental just before each frame's centre sample, in float64 cycles, counted on past 1 from those
    before sample 0 (``initial_phase``, 0 if None).

    The frequency moves on straight lines between frame centres (:func:`upsample_linear`); its running sum over samples
    is added up per frame in closed form.
    """
    f = units.double(f0_hz) / sample_rate_hz
    begin = f[:, :1] * (hop_samples // 2)
    if initial_phase is not None:
        begin = begin + initial_phase.to(f)[:, None]
    steps = hop_samples * f[:, :-1] + (f[:, 1:] - f[:, :-1]) * ((hop_samples - 1) / 2)
    return torch.cat([begin, begin + steps.cumsum(dim=1)], dim=1)


def harmonics_below_nyquist(f0_hz: Shaped[Tensor, "*shape"], n_harmonics: int, sample_rate_hz: float | int) -> Tensor:
    """Number of harmonics below half the sample rate, at most ``n_harmonics``: integers ``[*shape]``; 0 without f0."""
    count = torch.ceil(sample_rate_hz / 2 / units.double(f0_hz).clamp_min(1e-9)) - 1
    return torch.where(f0_hz > 0, count.clamp(0, n_harmonics), 0).long()


def normalize_harmonics(
    distribution: Float[Tensor, "batch frames harmonics"],
    f0_hz: Float[Tensor, "batch frames"],
    sample_rate_hz: float | int,
) -> Float[Tensor, "batch frames harmonics"]:
    """Harmonics at or above half the sample rate become 0 and the rest sum to 1; all 0 where none is left."""
    n = distribution.shape[-1]
    number = torch.arange(1, n + 1, device=distribution.device)
    kept = number <= harmonics_below_nyquist(f0_hz, n, sample_rate_hz)[..., None]
    kept = distribution * kept.to(distribution.dtype)
    return kept / kept.sum(dim=-1, keepdim=True).clamp_min(1e-20)


def harmonic_synthesis(
    f0_hz: Float[Tensor, "batch frames"],
    amplitude: Float[Tensor, "batch frames"],
    distribution: Shaped[Tensor, "batch frames harmonics"],
    sample_rate_hz: float | int,
    hop_samples: int,
    voiced: Bool[Tensor, "batch frames"] | None = None,
    initial_phase: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch samples"]:
    """A bank of sines at whole multiples of one fundamental: ``sum_k |a_k(n)| sin(k * phase(n) + angle(a_k(n)))``.

    The phase is the inclusive running sum of the frequency, so sample 0 already stands at one sample's advance. A
    harmonic is silent at every sample where it would be at or above half the sample rate, and everything is silent in
    frames that are unvoiced (``voiced``, all with f0 > 0 if None) or have f0 = 0. Only frames that sound are computed,
    each with the harmonics it has room for. ``distribution`` is real (:func:`normalize_harmonics`), or complex: then
    each harmonic is ahead of the fundamental's multiple by its angle.
    """
    on = f0_hz > 0 if voiced is None else voiced & (f0_hz > 0)
    f0_hz = hold_f0(f0_hz)
    phase = frame_phase(f0_hz, sample_rate_hz, hop_samples, initial_phase)
    # the segment before the first centre is held: it begins one hop earlier
    phase = torch.cat([phase[:, :1] - units.double(f0_hz[:, :1]) * (hop_samples / sample_rate_hz), phase], dim=1)
    gate = upsample_gate(on, hop_samples, amplitude.dtype)
    segments = _harmonic_segments(phase, f0_hz, on, amplitude[..., None] * distribution, sample_rate_hz, hop_samples)
    return _crop(segments, hop_samples) * gate


def _harmonic_segments(phase, f0_hz, on, amplitudes, sample_rate_hz, hop_samples) -> Tensor:
    """Sum of sines of every segment between frame centres: ``[batch, frames + 1, hop]``; zeros where none sounds."""
    batch, frames, n_harmonics = amplitudes.shape
    f_start, f_end = (f.flatten() for f in _segments(units.double(f0_hz)))
    on_start, on_end = (o.flatten() for o in _segments(on))
    room = harmonics_below_nyquist(torch.minimum(f_start, f_end), n_harmonics, sample_rate_hz)
    room = torch.where(on_start | on_end, room, 0)
    # rows of `amplitudes` at the two ends of every segment
    row = torch.arange(batch * frames, device=f0_hz.device).view(batch, frames)
    row_start, row_end = (r.flatten() for r in _segments(row))
    amplitudes, phase = amplitudes.flatten(0, 1), phase.flatten()
    room_sorted, order = room.sort(descending=True)
    counts = room_sorted.tolist()
    n_active = sum(count > 0 for count in counts)
    limit = BLOCK_ELEMENTS["cpu" if f0_hz.device.type == "cpu" else "other"]
    pieces, begin = [amplitudes.real[:0, :1].expand(0, hop_samples)], 0  # an empty piece keeps silence differentiable
    while begin < n_active:
        end = min(n_active, begin + max(1, limit // (hop_samples * counts[begin])))
        which = order[begin:end]
        a = torch.stack([amplitudes[row_start[which]], amplitudes[row_end[which]]], dim=2)[:, : counts[begin]]
        pieces.append(_sines(phase[which], f_start[which], f_end[which], a, sample_rate_hz, hop_samples))
        begin = end
    segments = amplitudes.real.new_zeros(batch * (frames + 1), hop_samples)
    segments = segments.index_copy(0, order[:n_active], torch.cat(pieces))
    return segments.view(batch, frames + 1, hop_samples)


def _sines(phase, f_start, f_end, amplitudes, sample_rate_hz, hop_samples) -> Tensor:
    """``[rows, hop]`` from start phases and frequencies ``[rows]`` and amplitudes ``[rows, harmonics, 2 ends]``."""
    dtype = amplitudes.real.dtype
    j = torch.arange(hop_samples, dtype=phase.dtype, device=phase.device)
    f_start, slope = f_start[:, None] / sample_rate_hz, (f_end - f_start)[:, None] / (sample_rate_hz * hop_samples)
    cycles = phase[:, None] + (j + 1) * f_start + (j * (j + 1) / 2) * slope
    angle = (2 * math.pi * (cycles - cycles.round())).to(dtype)
    number = torch.arange(1, amplitudes.shape[1] + 1, dtype=dtype, device=phase.device)
    angles = angle[..., None] * number  # [rows, hop, harmonics]: the one large tensor
    safe = int(harmonics_below_nyquist(torch.maximum(f_start, f_start + slope * hop_samples).max(), len(number), 1.0))
    if safe < len(number):  # the rest cross half the sample rate somewhere in these rows: mask per sample
        fits = ((f_start + j * slope)[..., None] * units.double(number[safe:]) < 0.5).to(dtype)

    def bank(wave: Callable[[Tensor], Tensor], amplitudes: Tensor) -> Tensor:
        waves = wave(angles)
        if safe < len(number):
            waves = torch.cat([waves[..., :safe], waves[..., safe:] * fits], dim=2)
        return waves @ amplitudes

    ends = bank(torch.sin, amplitudes.real)  # a sin(k p + t) = a cos(t) sin(k p) + a sin(t) cos(k p)
    if amplitudes.is_complex():
        ends = ends + bank(torch.cos, amplitudes.imag)
    return torch.lerp(ends[..., 0], ends[..., 1], _raised_cosine(_ramp(hop_samples, ends)))


def minimum_phase(log_magnitude: Float[Tensor, "*shape bins"]) -> Float[Tensor, "*shape bins"]:
    """Phase of the minimum-phase filter of these natural log magnitudes, evenly spaced from 0 Hz to half the rate.

    The real cepstrum ``c`` of ``n`` samples folded onto its causal half (Oppenheim & Schafer, *Discrete-Time Signal
    Processing*, section 13.4): ``phase = Im DFT(c * [1, 2, ..., 2, 1, 0, ..., 0])``.
    """
    half = log_magnitude.shape[-1] - 1
    fold = torch.zeros(2 * half, dtype=log_magnitude.dtype, device=log_magnitude.device)
    fold[0] = fold[half] = 1.0
    fold[1:half] = 2.0
    return torch.fft.rfft(torch.fft.irfft(log_magnitude, n=2 * half) * fold).imag


# Noise and reverb -----------------------------------------------------------------------------------------------------


def filtered_noise(
    magnitudes: Float[Tensor, "batch frames *parts bands"],
    hop_samples: int,
    generator: torch.Generator,
    full: bool = False,
    period: tuple[Float[Tensor, "batch frames"], Float[Tensor, "batch frames"]] | None = None,
) -> Float[Tensor, "batch out"]:
    """White noise in -1..1 through a filter per frame, aligned with its input (no residual delay).

    ``magnitudes`` are linear, evenly spaced from 0 Hz to half the sample rate. If ``full``, the ``bands - 1`` samples
    that ring before the first and those after the last are returned too, ``frames * hop + 2 (bands - 1) - 1`` in all.

    With three ``parts`` the noise follows the pitch period. ``period`` is the phase at the frame centres
    (:func:`frame_phase`) and its advance per sample, in cycles; in frame ``i`` at the phase ``p`` the noise is filtered
    with the magnitudes ``m_0 + m_1 cos(2 pi p) + m_2 sin(2 pi p)``.
    """
    batch, frames, bands = *magnitudes.shape[:2], magnitudes.shape[-1]
    noise = uniform_noise((batch, frames * hop_samples), generator, magnitudes)
    if period is None:
        return fft_convolve(noise, noise_impulse(magnitudes), delay=bands - 1, full=full)
    centre, advance = (units.double(x)[..., None] for x in period)
    steps = torch.arange(hop_samples, device=magnitudes.device) - hop_samples // 2 + 1  # the phase counts up to before
    angle = (2 * math.pi * torch.remainder(centre + advance * steps, 1.0)).to(noise).flatten(1)
    waves = (noise, noise * angle.cos(), noise * angle.sin())
    steady, cosine, sine = (
        fft_convolve(wave, noise_impulse(part), delay=bands - 1, full=full)
        for wave, part in zip(waves, magnitudes.unbind(2), strict=True)
    )
    return steady + cosine + sine


def uniform_noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """White noise in -1..1 drawn on the generator's device, as ``like``'s type and place.

    A CPU generator gives the same samples in one draw as in many, so that sound made in pieces equals the whole.
    """
    return (rng.uniform(shape, generator) * 2 - 1).to(like)


def noise_impulse(magnitudes: Float[Tensor, "*shape bands"]) -> Float[Tensor, "*shape taps"]:
    """Impulse response of ``2 * (bands - 1)`` taps with these magnitudes from 0 Hz to half the rate; middle peak.

    A periodic Hann window shortens it: the effective response is ``0.25 m[k-1] + 0.5 m[k] + 0.25 m[k+1]``.
    """
    taps = 2 * (magnitudes.shape[-1] - 1)
    window = torch.hann_window(taps, dtype=magnitudes.dtype, device=magnitudes.device)
    return torch.fft.irfft(magnitudes, n=taps).roll(taps // 2, dims=-1) * window


def fft_convolve(
    audio: Float[Tensor, "batch samples"],
    impulse: Float[Tensor, "impulse_batch frames taps"],
    delay: int = 0,
    full: bool = False,
) -> Float[Tensor, "batch out"]:
    """Filter with an impulse response that may change from frame to frame.

    The audio is cut into as many equal frames as there are responses (else AudioError); each frame is filtered with its
    own and the results overlap, so a change of the filter switches its input and never its output: it does not click.
    The result has as many samples as the audio, after ``delay`` samples (the group delay of the responses) were cut off
    at its beginning; if ``full`` it is uncropped, ``samples + taps - 1``.
    """
    (batch, n), (impulse_batch, frames, taps) = audio.shape, impulse.shape
    if batch != impulse_batch:
        raise AudioError(f"{batch} signals cannot be filtered with {impulse_batch} sets of responses.")
    if frames < 1 or n % frames or n == 0:
        raise AudioError(f"{n} samples do not divide into {frames} frames of equal length.")
    hop = n // frames
    size = 1 << (hop + taps - 2).bit_length()
    spectrum = torch.fft.rfft(audio.view(batch, frames, hop), n=size) * torch.fft.rfft(impulse, n=size)
    filtered = torch.fft.irfft(spectrum, n=size)[..., : hop + taps - 1]
    pieces = -(-(hop + taps - 1) // hop)  # every filtered frame reaches over this many frames
    filtered = F.pad(filtered, (0, pieces * hop - (hop + taps - 1))).view(batch, frames, pieces, hop)
    shifted = [F.pad(filtered[:, :, p], (0, 0, p, pieces - 1 - p)) for p in range(pieces)]
    out = sum(shifted[1:], shifted[0]).flatten(1)
    return out[:, : n + taps - 1] if full else F.pad(out, (0, max(0, delay - taps + 1)))[:, delay : delay + n]


def reverb(audio: Float[Tensor, "batch samples"], impulse: Float[Tensor, " taps"]) -> Float[Tensor, "batch samples"]:
    """Reverberation without the dry sound: convolution with a room's response, its direct sound (tap 0) left out."""
    taps = torch.cat([torch.zeros_like(impulse[:1]), impulse[1:]])
    return fft_convolve(audio, taps.expand(audio.shape[0], 1, -1))


# Formants -------------------------------------------------------------------------------------------------------------

FORMANT_GAIN_DB = 30.0  # at most, where a band is moved to a place that was silent


def shift_formants(
    parts: Sequence[Float[np.ndarray, " samples"]],
    f0_hz: Float[np.ndarray, " frames"],
    sample_rate_hz: int,
    hop_samples: int,
    semitones: float | int,
    chunk_frames: int = 1000,
) -> list[np.ndarray]:
    """Move the spectral envelope of a sound by semitones and keep its F0 and phases: float32, as long as before.

    Every part is filtered, frame by frame, by the moved over the present envelope of the first one. The envelope is the
    mean power over one F0 around every harmonic, joined on straight lines in decibels (as in CheapTrick, Morise 2015).
    ``f0_hz`` is filled over unvoiced frames; where it is 0 the mean is over 200 Hz.
    """
    n_fft, n = 1 << (round(0.04 * sample_rate_hz) - 1).bit_length(), len(parts[0])
    step, n_bins, factor = n_fft // 4, n_fft // 2 + 1, 2.0 ** (semitones / 12.0)
    window, frequency = torch.hann_window(n_fft), torch.arange(n_bins, dtype=torch.float64)
    n_frames = -(-n // step) + 3  # every sample lies in four
    out = [np.zeros((n_frames + 3) * step, np.float32) for _ in parts]
    padded = [np.pad(np.asarray(part, np.float32), (3 * step, n_frames * step - n)) for part in parts]
    for first in range(0, n_frames, chunk_frames):
        last = min(n_frames, first + chunk_frames)
        at = slice(first * step, (last + 3) * step)
        spectra = [torch.fft.rfft(torch.from_numpy(x[at]).unfold(0, n_fft, step) * window) for x in padded]
        centre = (np.arange(first, last) * step - step) // hop_samples  # of the frame's middle
        f0 = torch.from_numpy(np.asarray(f0_hz, np.float64)[centre.clip(0, len(f0_hz) - 1)])
        width = (torch.where(f0 > 0, f0, 200.0) * (n_fft / sample_rate_hz))[:, None]  # of one F0, in bins
        power = spectra[0].abs().double().square()
        moved, present = (_log_envelope(power, width, f) for f in (frequency / factor, frequency))
        limit = FORMANT_GAIN_DB / 20.0 * math.log(10.0)
        gain = ((moved - present) / 2).clamp(-limit, limit).exp().float()
        for spectrum, into in zip(spectra, out, strict=True):
            pieces = torch.fft.irfft(spectrum * gain, n=n_fft) * (window / 1.5)
            for k, quarter in enumerate(pieces.split(step, dim=1)):
                into[(first + k) * step : (last + k) * step] += quarter.flatten().numpy()
    return [x[3 * step : 3 * step + n] for x in out]


def _log_envelope(power: Tensor, width: Tensor, frequency: Tensor) -> Tensor:
    """Natural logarithm of the envelope ``[frames, n]`` of a power spectrum ``[frames, bins]`` at frequencies ``[n]``;
    ``width`` ``[frames, 1]`` is one F0. All in bins; below the first harmonic and above the last it stays level."""
    n_bins, area = power.shape[-1], F.pad(power.cumsum(-1), (1, 0))

    def log_mean_around(harmonic: Tensor) -> Tensor:
        edges = [((harmonic + offset) * width + 0.5).clamp(0, n_bins) for offset in (-0.5, 0.5)]
        index = [edge.long().clamp_max(n_bins - 1) for edge in edges]
        low, high = (
            torch.lerp(area.gather(-1, i), area.gather(-1, i + 1), edge - i)
            for i, edge in zip(index, edges, strict=True)
        )
        return ((high - low) / (edges[1] - edges[0]).clamp_min(1e-9) + 1e-12).log()

    harmonic = (frequency / width).clamp(torch.ones_like(width), ((n_bins - 1) / width - 0.5).clamp_min(1))
    return torch.lerp(log_mean_around(harmonic.floor()), log_mean_around(harmonic.floor() + 1), harmonic.frac())
