"""From a log-mel and a pitch to sound: the vocoder protocol, and the one that every machine can train.

``harmonic`` writes the spectral envelope that the mel already holds onto harmonics of the pitch and onto noise
(``synthesis``; after Engel et al. 2020). A short calculation on the mel filters gives first amplitudes
(:meth:`HarmonicVocoder.controls`), a small frame-rate network corrects them: it works untrained; trained it
knows how much of a band is breath. Frames without pitch get no harmonics at all, so breaths and sibilants cannot buzz.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from svclib.audio import spectral_loss, synthesis, units
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import layers
from svclib.models.ddsp.model import Controls, SpectralLossModel, Synthesis, render_controls
from svclib.models.layers import Frames, LogMels, Samples, Voiced
from svclib.utils.errors import ModelError
from svclib.utils.serialization import Settings, setting

N_ABOVE = 8  # bands above the mel's highest frequency, of which only the network knows anything
VOICED_NOISE = -3.0  # how much quieter the noise of a voiced frame starts, nepers
REACH = 8.0  # greatest correction of an amplitude, nepers
LOCK_S = 0.03  # of a recording are looked at to find the phase of its fundamental
LOCK_HARMONICS = 12  # that say where in the period the pulse lies
LOCK_POWER = 0.25  # of their correlations counts: weak harmonics show the pulse better than the fundamental
LOCK_SHIFTS = 128  # of the pulse within the period that are compared
N_ENVELOPE = 257  # frequencies of the envelope whose minimum phase is taken
BLOCK_ELEMENTS = 2**22  # sines at once


@runtime_checkable
class Vocoder(Protocol):
    """Interface of vocoders: the mel ``contract`` is the only one it understands."""

    name: str
    contract: MelConfig
    sample_rate_hz: int

    def render(
        self,
        log_mel: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        seed: int = 0,
        *,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """Sound of a song: log-mel ``[frames, mels]``, pitch and voicing ``[frames]`` -> ``[frames * hop]`` float32.

        Equal seeds give equal sound. A vocoder without separate parts gives all of it as ``harmonic``.
        """
        ...


def render_batch(
    vocoder: Vocoder, log_mel: LogMels, f0_hz: Frames, voiced: Voiced, seed: int = 0, part: str = "audio"
) -> Samples:
    """``render`` of each row of a batch, every one with the noise of ``seed``."""
    rows = zip(*(x.cpu().numpy() for x in (log_mel, f0_hz, voiced)), strict=True)
    return torch.from_numpy(np.stack([getattr(vocoder.render(*row, seed=seed), part) for row in rows])).to(log_mel)


@dataclasses.dataclass(frozen=True)
class HarmonicSettings(Settings):
    """Everything that defines a harmonic vocoder apart from its features.

    Attributes:
        n_harmonics: Sines at multiples of the pitch; only those below the mel's highest frequency sound.
        n_noise_bands: Noise magnitudes from 0 Hz to half the sample rate.
        excitation: ``sines``: all harmonics in phase, steady noise. ``pulses``: minimum phase of the envelope plus a
            learned phase per band, from the fundamental's on, and noise that follows the pitch period with a learned
            depth per band.
        channels, n_layers: The network: convolutions over 5 frames.
        fft_sizes, log_rule: Of the spectral loss, see ``spectral_loss``.
    """

    kind: str = setting("harmonic", choices=("harmonic",))
    n_harmonics: int = setting(160, 1, 1000)
    n_noise_bands: int = setting(65, 2, 1025)
    excitation: str = setting("sines", choices=("sines", "pulses"))
    channels: int = setting(192, 1, 2048)
    n_layers: int = setting(4, 1, 20)
    fft_sizes: tuple[int, ...] | list[int] = setting(spectral_loss.FFT_SIZES, 16)
    log_rule: str = setting("v1", choices=spectral_loss.LOG_RULES)

    def __post_init__(self):
        super().__post_init__()
        spectral_loss.check_fft_sizes(self.fft_sizes)

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "HarmonicVocoder":
        """A vocoder for mels of ``features.mel``; equal seeds give equal weights, statistics are not needed.

        Raises :class:`ModelError` if the features have no mel contract.
        """
        if features.mel is None:
            raise ModelError("A vocoder needs log-mels, but these features have no mel.")
        with layers.seeded(seed):
            return HarmonicVocoder(self, features)


class HarmonicVocoder(SpectralLossModel):
    """Log-mel, pitch and voicing -> harmonics and noise -> sound. Make one with ``HarmonicSettings.build``."""

    name = "harmonic"

    def __init__(self, settings: HarmonicSettings, features: FeatureSettings):
        super().__init__()
        contract = features.mel
        self.settings, self.features, self.contract = settings, features, contract
        self.sample_rate_hz, nyquist = contract.sample_rate_hz, contract.sample_rate_hz / 2
        corners = contract.edges_hz()
        above = np.linspace(contract.fmax_hz, nyquist, N_ABOVE + 1)[1:] if contract.fmax_hz < nyquist - 1 else []
        centres, widths = corners[1:-1], np.maximum(corners[2:] - corners[:-2], 1e-3)
        area = np.ones_like(widths) if contract.norm == "slaney" else widths / 2  # of a filter, Hz
        # Expected STFT magnitude of white noise in -1 .. 1 under a Hann window, and the sum of a filter's weights.
        noise = math.sqrt(math.pi) / 2 * math.sqrt(contract.window_samples / 8)
        noise_base = -np.log(noise * area * contract.n_fft / contract.sample_rate_hz)
        self.n_above = len(above)
        self._constant("centres", np.concatenate([centres, above]))
        self._constant("widths", self._extended(widths))
        self._constant("height_base", self._extended(np.log(widths / area / contract.window_samples)))
        self._constant("noise_base", self._extended(noise_base))
        self._constant("noise_hz", np.linspace(0, nyquist, settings.n_noise_bands))
        self._constant("envelope_hz", np.linspace(0, nyquist, N_ENVELOPE))
        self.pulses = settings.excitation == "pulses"
        outs = (5 if self.pulses else 2) * (contract.n_mels + self.n_above)
        self.network = layers.ConvStack(contract.n_mels + 2, settings.channels, outs, settings.n_layers)
        nn.init.zeros_(self.network.last.weight)
        nn.init.zeros_(self.network.last.bias)

    def _constant(self, name: str, values: np.ndarray) -> None:
        self.register_buffer(name, torch.tensor(np.asarray(values, dtype=np.float32)), persistent=False)

    def _extended(self, x):
        """Values per mel, the last one held over the bands above."""
        if isinstance(x, Tensor):
            return torch.cat([x, x[..., -1:].expand(*x.shape[:-1], self.n_above)], dim=-1)
        return np.concatenate([x, np.full(self.n_above, x[-1])])

    def _at(self, envelope: Tensor, f_hz: Tensor) -> Tensor:
        """A log envelope ``[batch, frames, bands]`` read at frequencies, on straight lines, ends held."""
        return layers.interpolate(envelope, self.centres, f_hz.expand(*envelope.shape[:2], f_hz.shape[-1]))

    def controls(
        self, log_mel: LogMels, f0_hz: Frames, voiced: Voiced
    ) -> tuple[Shaped[Tensor, "batch frames harmonics"], Float[Tensor, "batch frames *parts bands"]]:
        """Amplitudes of the harmonics (0 in frames without pitch) and magnitudes of the noise, per frame.

        A sine of amplitude ``a`` under a Hann window of ``N`` samples adds ``a N / 2`` to the two filters of height 1
        it lies between, together, wherever it lies; where they are wide, ``width / f0`` harmonics share them. The
        first guess is the inverse. Noise likewise, from the mean of a Rayleigh distribution. The network adds to the
        logarithm of both. With ``pulses`` amplitudes are complex and the noise has three parts (``synthesis``).
        """
        voiced = voiced & (f0_hz > 0)
        on = voiced.to(log_mel)[..., None]
        mel = self.contract.to_nepers(log_mel)
        octaves = torch.log2(torch.where(voiced, f0_hz, torch.full_like(f0_hz, 220.0)) / 220.0)[..., None]
        seen = torch.cat([(mel + 5.0) / 4.0, on, octaves.to(mel)], dim=-1)
        change = self.network(seen.transpose(1, 2)).transpose(1, 2)
        with torch.autocast(mel.device.type, enabled=False):
            bands = len(self.centres)
            tone, noise, *rest = (REACH * torch.tanh(change.to(mel) / REACH)).split(bands, dim=-1)
            mel = self._extended(mel)
            noise = self._at(mel + self.noise_base + noise + VOICED_NOISE * on, self.noise_hz).exp()
            f0 = torch.where(voiced, f0_hz, torch.ones_like(f0_hz))[..., None]
            harmonic_hz = f0 * torch.arange(1, self.settings.n_harmonics + 1, device=mel.device)
            heights, (left, right, _) = mel + self.height_base, layers.brackets(self.centres, harmonic_hz)
            change = self._at(tone - (self.widths / f0).clamp_min(1).log(), harmonic_hz)
            levels = torch.logaddexp(heights.gather(2, left), heights.gather(2, right)) + change
            amplitudes = levels.exp() * (on * (harmonic_hz < self.contract.fmax_hz))
            if not self.pulses:
                return amplitudes, noise
            phase, cosine, sine = rest
            angle = self._minimum_phase(levels, f0) + self._at(phase, harmonic_hz)
            angle = angle - angle[..., :1] + math.pi / 2  # a phase of the fundamental that moved would move the pitch
            # Depth below 1 in any direction v: v / sqrt(1 + |v|^2); the mean power over a period stays m^2.
            cosine, sine = (self._at(x, self.noise_hz) * on for x in (cosine, sine))
            square = cosine.square() + sine.square()
            cosine, sine, square = cosine * (1 + square).rsqrt(), sine * (1 + square).rsqrt(), square / (1 + square)
            noise = noise * (1 + square / 2).rsqrt()
        return torch.polar(amplitudes, angle), torch.stack([noise, noise * cosine, noise * sine], dim=2)

    def _minimum_phase(self, levels: Tensor, f0: Tensor) -> Tensor:
        """Minimum phase of the envelope on straight lines through the log amplitudes of the harmonics, read at them."""
        highest = (self.contract.fmax_hz / f0).floor().clamp(1, levels.shape[-1])
        number = torch.minimum((self.envelope_hz / f0).clamp_min(1), highest) - 1
        left = number.floor().long()
        right = (left + 1).clamp_max(levels.shape[-1] - 1)
        envelope = torch.lerp(levels.gather(2, left), levels.gather(2, right), number - left)
        phase = synthesis.minimum_phase(envelope)
        at_hz = f0 * torch.arange(1, levels.shape[-1] + 1, device=levels.device)
        return layers.interpolate(phase, self.envelope_hz, at_hz)

    def n_sounding(self, f0_hz: Tensor, voiced: Tensor) -> int:
        """Harmonics that can sound at the lowest pitch: the others are not computed."""
        lowest = f0_hz[voiced & (f0_hz > 0)]
        if not len(lowest):
            return 1
        return max(1, min(self.settings.n_harmonics, math.ceil(self.contract.fmax_hz / float(lowest.min()))))

    def loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """As of every :class:`SpectralLossModel`; ``pulses`` lie where the recording has them (:meth:`locked`)."""
        return super().loss(self.locked(batch) if self.pulses else batch, generator)

    @torch.no_grad()
    def locked(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch with the F0 ``line_hz`` and ``initial_phase`` that put its pulses where the recordings have them.

        With the running phase ``p`` of the F0 and this vocoder's harmonics ``h_k``, a recording holds
        ``Re h_k exp(i k (p + u))``. Demodulated by ``exp(-i k p)`` under 30 ms it is ``z_k``; ``c_k = z_k conj(h_k)``:

        1. ``u = angle(c_1)``, unwrapped over frames; its slope is added to the F0.
        2. A pulse need not lie where the fundamental has its. The shift ``d`` within the period and the polarity that
           make ``|Re sum_k c_k |c_k|^(-3/4) exp(-i k (u + d))|`` largest, the sum over frames too, are those of the
           whole row; ``audio`` of negative polarity is turned over.
        """
        audio, log_mel, f0_hz = batch["audio"], batch["log_mel"], batch["f0_hz"]
        rate, hop, on = self.sample_rate_hz, self.contract.hop_samples, batch["voiced"] & (f0_hz > 0)
        with torch.autocast(audio.device.type, enabled=False):
            line = units.double(synthesis.hold_f0(f0_hz * on))
            found, _ = demodulated(audio, line, rate, hop, min(LOCK_HARMONICS, self.settings.n_harmonics))
            expected, _ = self.controls(log_mel.float(), f0_hz.float(), on)
            # The synthesizer's sine of a complex amplitude A is Re(-i A exp(i k p)): h = -i A.
            found = found * (1j * expected[..., : found.shape[-1]].conj()) * on[..., None]
            found = found * found.abs().clamp_min(1e-20) ** (LOCK_POWER - 1)
            slip = unwrapped(found[..., 0], on)
            slope = torch.gradient(slip, dim=1)[0] if slip.shape[1] > 1 else torch.zeros_like(slip)
            drift = nn.functional.pad((slope[:, 1:] + slope[:, :-1]) / 2, (1, 0)).cumsum(1)  # as frame_phase adds it up
            start = (found[..., 0].abs() * unit(slip - drift)).sum(1).angle() / (2 * math.pi)
            number = torch.arange(1, found.shape[-1] + 1, device=found.device)
            sums = (found * unit(-(start[:, None] + drift)[..., None] * number)).sum(1)
            shifts = torch.arange(LOCK_SHIFTS, device=found.device).to(slip) / LOCK_SHIFTS
            match = (sums[:, None] * unit(-shifts[:, None] * number)).real.sum(-1)
            best = match.abs().argmax(1)
            sign = torch.where(match.gather(1, best[:, None]) < 0, -1.0, 1.0)
        made = {"line_hz": line + slope * (rate / hop), "initial_phase": start + shifts[best]}
        return {**batch, "audio": audio * sign.to(audio), **made}

    def resynthesize(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Samples:
        """Audio of the batch's recordings from their mel and F0, differentiable; for songs see :meth:`render`.

        ``line_hz`` and ``initial_phase`` of the batch are those of the excitation (:meth:`locked`), if it has them.
        """
        log_mel, f0_hz, voiced = batch["log_mel"], batch["f0_hz"], batch["voiced"]
        amplitudes, magnitudes = self.controls(log_mel, f0_hz, voiced)
        rate, hop = self.sample_rate_hz, self.contract.hop_samples
        amplitudes = amplitudes[..., : self.n_sounding(f0_hz, voiced)]
        with torch.autocast(log_mel.device.type, enabled=False):
            line = batch.get("line_hz", synthesis.hold_f0(f0_hz * voiced))
            phase, level = batch.get("initial_phase"), torch.ones_like(f0_hz)
            harmonic = synthesis.harmonic_synthesis(line, level, amplitudes, rate, hop, voiced, phase)
            period = (synthesis.frame_phase(line, rate, hop, phase), line / rate) if self.pulses else None
            return harmonic + synthesis.filtered_noise(magnitudes, hop, generator, period=period)

    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Samples:
        """The batch's recordings resynthesized from their mel and F0."""
        return render_batch(self, batch["log_mel"], batch["f0_hz"], batch["voiced"], seed)

    @torch.no_grad()
    def render(
        self,
        log_mel: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        seed: int = 0,
        chunk_frames: int = 1000,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """The vocoder protocol, in chunks of frames that equal the whole; memory grows with them."""
        place = self.network.first.weight.device
        log_mel, f0_hz = (torch.as_tensor(np.asarray(x), dtype=torch.float32)[None] for x in (log_mel, f0_hz))
        voiced = torch.as_tensor(np.asarray(voiced), dtype=torch.bool)[None] & (f0_hz > 0)
        held, bound = synthesis.hold_f0(f0_hz * voiced), self.n_sounding(f0_hz, voiced)

        def controls(start: int, stop: int, low: int, high: int) -> Controls:
            inputs = (x[:, low:high].to(place) for x in (log_mel, f0_hz, voiced))
            amplitudes, magnitudes = (x[:, start - low : stop - low] for x in self.controls(*inputs))
            line, on = (x[:, start:stop].to(place) for x in (held, voiced))
            return Controls(torch.ones_like(line), amplitudes[..., :bound], magnitudes, line, on)

        chunks = layers.chunks(f0_hz.shape[1], max(1, chunk_frames), self.network.halo)
        made, hop = (controls(*chunk) for chunk in chunks), self.contract.hop_samples
        return render_controls(made, held, self.sample_rate_hz, hop, seed, progress, cancelled)


def demodulated(audio: Samples, line_hz: Frames, rate_hz: int, hop_samples: int, n: int = 1) -> tuple[Tensor, Tensor]:
    """The first ``n`` harmonics of an F0, demodulated and smoothed over 30 ms: complex ``[batch, frames, n]``.

    The second result is ``exp(i p)`` of the F0's running phase ``p``, per sample.
    """
    cycles = (synthesis.upsample_linear(line_hz, hop_samples) / rate_hz).cumsum(dim=1)
    phase = 2 * math.pi * torch.remainder(cycles, 1.0)
    turn = torch.polar(torch.ones_like(phase), phase)
    size = 2 * round(LOCK_S * rate_hz / 2)
    window = torch.hann_window(size, dtype=line_hz.dtype, device=audio.device)[None, None].expand(2, -1, -1)
    found, still = [], units.double(audio)
    for _ in range(n):
        still = still * turn.conj()
        parts = torch.view_as_real(still).movedim(-1, 1)
        padded = nn.functional.pad(parts, (size // 2 - hop_samples // 2, size // 2))
        centres = nn.functional.conv1d(padded, window, stride=hop_samples, groups=2)
        found.append(torch.complex(*centres[..., : line_hz.shape[1]].unbind(1)))
    return torch.stack(found, dim=-1), turn


def unit(cycles: Tensor) -> Tensor:
    """``exp(2 pi i x)``."""
    return torch.polar(torch.ones_like(cycles), 2 * math.pi * cycles)


def unwrapped(found: Shaped[Tensor, "batch frames"], on: Voiced) -> Frames:
    """Angles in cycles, continued over frames by the nearest multiple; straight lines where not ``on``."""
    rows = []
    for values, known in zip(found.cpu().numpy(), on.cpu().numpy(), strict=True):
        at = np.flatnonzero(known)
        angles = np.unwrap(np.angle(values[at])) / (2 * np.pi)
        rows.append(np.interp(np.arange(len(values)), at, angles) if len(at) else np.zeros(len(values)))
    return torch.from_numpy(np.stack(rows)).to(found.real)


class HarmonicSource:
    """Source signal of a DiffWave vocoder: harmonics of the F0 with amplitudes computed from the mel.

    A mel of 80 bands does not determine F0 to a cent, and a short training does not learn it. Given a periodic signal
    (as in PeriodGrad, Hono et al. 2024, https://arxiv.org/abs/2402.14692), the network need only learn the difference
    between that signal and a voice. The signal is the harmonic part of an untrained :class:`HarmonicVocoder`.

    In training its fundamental is locked to the phase of the recording's own, so that the network learns the phases of
    a voice relative to it; at inference, it follows the phase it is given.
    """

    def __init__(self, features: FeatureSettings):
        self.vocoder = HarmonicVocoder(HarmonicSettings(channels=1, n_layers=1), features).requires_grad_(False)

    def songs(self, log_mel: LogMels, f0_hz: Frames, voiced: Voiced) -> Samples:
        """The signal of songs of any length, by their pitch alone."""
        return render_batch(self.vocoder, log_mel, f0_hz, voiced, part="harmonic")

    @torch.no_grad()
    def locked(self, audio: Samples, log_mel: LogMels, f0_hz: Frames, voiced: Voiced) -> Samples:
        """The signal of training pieces, its fundamental in phase with the recording's.

        The recording is turned by the running phase of its F0; what then stands still over 30 ms is the fundamental,
        and its angle is what the signal is turned by. Every harmonic turns with its number.
        """
        vocoder, hop = self.vocoder.to(log_mel.device), self.vocoder.contract.hop_samples
        f0_hz, on = f0_hz.float(), voiced & (f0_hz > 0)
        with torch.autocast(audio.device.type, enabled=False):  # phases need full precision
            amplitudes, _ = vocoder.controls(log_mel.float(), f0_hz, on)
            amplitudes = amplitudes[..., : vocoder.n_sounding(f0_hz, on)]
            line = units.double(synthesis.hold_f0(f0_hz * on))
            found, turn = demodulated(audio.float(), line, vocoder.sample_rate_hz, hop)
            found = found[..., 0] / found[..., 0].abs().clamp_min(1e-12)
            angle = torch.view_as_complex(synthesis.upsample_linear(torch.view_as_real(found), hop).contiguous())
            angle = (angle * turn * 1j).angle().to(amplitudes)  # a sine in phase with the recording
            number = torch.arange(1, amplitudes.shape[-1] + 1, device=audio.device).to(amplitudes)
            rows = max(1, BLOCK_ELEMENTS // (audio.shape[1] * len(number)))
            made = [
                (torch.sin(a[..., None] * number) * synthesis.upsample_hann(h, hop)).sum(dim=-1)
                for a, h in zip(angle.split(rows), amplitudes.split(rows), strict=True)
            ]
            return torch.cat(made) * synthesis.upsample_gate(on, hop, amplitudes.dtype)
