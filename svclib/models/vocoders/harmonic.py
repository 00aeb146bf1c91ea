"""From a log-mel and a pitch to sound: the vocoder protocol, and the one that every machine can train.

``harmonic`` writes the spectral envelope that the mel already holds onto harmonics of the pitch and onto noise
(``synthesis``; after Engel et al. 2020). A short calculation on the mel filters gives first amplitudes
(:meth:`HarmonicVocoder.controls`), a small frame-rate network corrects them: it works untrained; trained it
knows how much of a band is breath. Frames without pitch get no harmonics at all, so breaths and sibilants cannot buzz.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from svclib.audio import spectral_loss, synthesis, units
from svclib.audio.mel import MelConfig
from svclib.features.extract import FeatureSettings
from svclib.models import layers
from svclib.models.ddsp.model import SpectralLossModel, Synthesis
from svclib.utils.errors import ModelError, raise_if_cancelled
from svclib.utils.serialization import Settings, setting

N_ABOVE = 8  # bands above the mel's highest frequency, of which only the network knows anything
VOICED_NOISE = -3.0  # how much quieter the noise of a voiced frame starts, nepers
REACH = 8.0  # greatest correction of an amplitude, nepers


@runtime_checkable
class Vocoder(Protocol):
    """Interface of vocoders.

    Attributes:
        name: For people and messages.
        contract: The only mel it understands.
        sample_rate_hz: Of its sound, the contract's.
    """

    name: str
    contract: MelConfig
    sample_rate_hz: int

    def __call__(
        self,
        log_mel: Float[Tensor, "batch frames mels"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
        seed: int = 0,
    ) -> Float[Tensor, "batch samples"]:
        """Sound of ``frames * hop_samples`` samples; equal seeds give equal sound."""
        ...


def check_shapes(log_mel: Tensor, f0_hz: Tensor, voiced: Tensor, contract: MelConfig) -> None:
    """Refuse frames that do not belong together, with a :class:`ModelError` that names the shapes."""
    shape = tuple(log_mel.shape)
    good = shape[-1] == contract.n_mels and shape[:-1] == tuple(f0_hz.shape) == tuple(voiced.shape) and 0 not in shape
    if not good:
        raise ModelError(
            f"log_mel {shape}, f0_hz {tuple(f0_hz.shape)} and voiced {tuple(voiced.shape)} do not fit; expected "
            f"[batch, frames, {contract.n_mels}] and [batch, frames] twice, with at least one frame."
        )


def render_batch(vocoder: Any, log_mel: Tensor, f0_hz: Tensor, voiced: Tensor, seed: int) -> Tensor:
    """``render`` of each row of a batch, every one with the noise of ``seed``: ``[batch, samples]``."""
    check_shapes(log_mel, f0_hz, voiced, vocoder.contract)
    each = zip(*(x.cpu().numpy() for x in (log_mel, f0_hz, voiced)), strict=True)
    return torch.from_numpy(np.stack([vocoder.render(*row, seed=seed).audio for row in each])).to(log_mel)


@dataclasses.dataclass(frozen=True)
class HarmonicSettings(Settings):
    """Everything that defines a harmonic vocoder apart from its features.

    Attributes:
        kind: Always ``harmonic``.
        n_harmonics: Sines at multiples of the pitch; only those below the mel's highest frequency sound.
        n_noise_bands: Noise magnitudes from 0 Hz to half the sample rate.
        channels, n_layers: The network: convolutions over 5 frames.
        fft_sizes, log_rule: Of the spectral loss, see ``losses.spectral_loss``.
    """

    kind: str = setting("harmonic", choices=("harmonic",))
    n_harmonics: int = setting(160, 1, 1000)
    n_noise_bands: int = setting(65, 2, 1025)
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
        outs = 2 * (contract.n_mels + self.n_above)
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

    def _around(self, envelope: Tensor, f_hz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A log envelope ``[batch, frames, bands]`` at the bands left and right of frequencies, and where between."""
        f_hz = f_hz.expand(*envelope.shape[:2], f_hz.shape[-1])
        right = torch.searchsorted(self.centres, f_hz.contiguous()).clamp(1, len(self.centres) - 1)
        low, high = self.centres[right - 1], self.centres[right]
        weight = ((f_hz - low) / (high - low)).clamp(0, 1)
        return envelope.gather(2, right - 1), envelope.gather(2, right), weight

    def _at(self, envelope: Tensor, f_hz: Tensor) -> Tensor:
        """A log envelope read at frequencies, on straight lines, ends held."""
        return torch.lerp(*self._around(envelope, f_hz))

    def controls(
        self,
        log_mel: Float[Tensor, "batch frames mels"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
    ) -> tuple[Float[Tensor, "batch frames harmonics"], Float[Tensor, "batch frames bands"]]:
        """Amplitudes of the harmonics (0 in frames without pitch) and magnitudes of the noise, per frame.

        A sine of amplitude ``a`` under a Hann window of ``N`` samples adds ``a N / 2`` to the two filters of height 1
        it lies between, together, wherever it lies; where they are wide, ``width / f0`` harmonics share them. The
        first guess is the inverse. Noise likewise, from the mean of a Rayleigh distribution. The network adds to the
        logarithm of both.
        """
        voiced = voiced & (f0_hz > 0)
        on = voiced.to(log_mel)[..., None]
        mel = self.contract.to_nepers(log_mel)
        octaves = torch.log2(torch.where(voiced, f0_hz, torch.full_like(f0_hz, 220.0)) / 220.0)[..., None]
        seen = torch.cat([(mel + 5.0) / 4.0, on, octaves.to(mel)], dim=-1)
        change = self.network(seen.transpose(1, 2)).transpose(1, 2)
        with torch.autocast(mel.device.type, enabled=False):
            tone, noise = (REACH * torch.tanh(change.to(mel) / REACH)).chunk(2, dim=-1)
            mel = self._extended(mel)
            noise = self._at(mel + self.noise_base + noise + VOICED_NOISE * on, self.noise_hz).exp()
            f0 = torch.where(voiced, f0_hz, torch.ones_like(f0_hz))[..., None]
            number = torch.arange(1, self.settings.n_harmonics + 1, device=mel.device)
            left, right, _ = self._around(mel + self.height_base, f0 * number)
            change = self._at(tone - (self.widths / f0).clamp_min(1).log(), f0 * number)
            amplitudes = (torch.logaddexp(left, right) + change).exp()
            amplitudes = amplitudes * (on * (f0 * number < self.contract.fmax_hz))
        return amplitudes, noise

    def n_sounding(self, f0_hz: Tensor, voiced: Tensor) -> int:
        """Harmonics that can sound at the lowest pitch: the others are not computed."""
        lowest = f0_hz[voiced & (f0_hz > 0)]
        if not len(lowest):
            return 1
        return max(1, min(self.settings.n_harmonics, math.ceil(self.contract.fmax_hz / float(lowest.min()))))

    def synthesize(
        self, log_mel: Tensor, f0_hz: Tensor, voiced: Tensor, generator: torch.Generator
    ) -> Float[Tensor, "batch samples"]:
        """Sound of a whole batch at once, differentiable; for songs see :meth:`render`."""
        check_shapes(log_mel, f0_hz, voiced, self.contract)
        amplitudes, magnitudes = self.controls(log_mel, f0_hz, voiced)
        rate, hop = self.sample_rate_hz, self.contract.hop_samples
        amplitudes = amplitudes[..., : self.n_sounding(f0_hz, voiced)]
        with torch.autocast(log_mel.device.type, enabled=False):
            line = synthesis.hold_f0(f0_hz * voiced)
            harmonic, _ = synthesis.harmonic_synthesis(line, torch.ones_like(line), amplitudes, rate, hop, voiced)
            return harmonic + synthesis.filtered_noise(magnitudes, hop, generator)

    def resynthesize(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Audio of the batch's recordings from their mel and F0, differentiable."""
        return self.synthesize(batch["log_mel"], batch["f0_hz"], batch["voiced"], generator)

    @torch.no_grad()
    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Float[Tensor, "batch samples"]:
        """The batch's recordings resynthesized from their mel and F0."""
        return self(batch["log_mel"], batch["f0_hz"], batch["voiced"], seed)

    @torch.no_grad()
    def forward(
        self,
        log_mel: Float[Tensor, "batch frames mels"],
        f0_hz: Float[Tensor, "batch frames"],
        voiced: Bool[Tensor, "batch frames"],
        seed: int = 0,
    ) -> Float[Tensor, "batch samples"]:
        """The vocoder protocol."""
        return render_batch(self, log_mel, f0_hz, voiced, seed)

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
        """Render a song of any length in chunks that equal the whole.

        Args:
            log_mel: ``[frames, mels]``.
            f0_hz: Pitch ``[frames]``, Hz; unvoiced frames get none.
            voiced: ``[frames]``.
            seed: Of the noise.
            chunk_frames: Frames per piece; memory grows with it, the sound does not change.
            progress: See ``utils.errors``.
            cancelled: See ``utils.errors``.

        Returns:
            float32 arrays of ``frames * hop`` samples: the sound and its two parts.
        """
        place = self.network.first.weight
        log_mel, f0_hz = (torch.as_tensor(np.asarray(x), dtype=torch.float32)[None] for x in (log_mel, f0_hz))
        voiced = torch.as_tensor(np.asarray(voiced), dtype=torch.bool)[None] & (f0_hz > 0)
        check_shapes(log_mel, f0_hz, voiced, self.contract)
        held = synthesis.hold_f0(f0_hz * voiced)
        rate, hop, n_frames = self.sample_rate_hz, self.contract.hop_samples, f0_hz.shape[1]
        phases, _ = synthesis.frame_phase(held, rate, hop)
        begins = phases - held.double() * (hop // 2 / rate)  # cycles before each frame's first sample, were it held
        ring = 2 * (self.settings.n_noise_bands - 1) - 1
        harmonic, noise = np.zeros(n_frames * hop, np.float32), np.zeros(n_frames * hop + ring, np.float32)
        generator, bound = torch.Generator().manual_seed(seed), self.n_sounding(f0_hz, voiced)
        # One frame more on either side, because sound is drawn between frame centres.
        for start, stop, low, high in layers.chunks(n_frames, max(1, chunk_frames), self.network.halo + 1):
            raise_if_cancelled(cancelled)
            mel, pitch, on, line = (x[:, low:high].to(place.device) for x in (log_mel, f0_hz, voiced, held))
            amplitudes, magnitudes = self.controls(mel, pitch, on)
            filtered = synthesis.filtered_noise(magnitudes[:, start - low : stop - low], hop, generator, full=True)
            noise[start * hop : stop * hop + ring] += filtered[0].cpu().numpy()
            first, last = max(0, start - 1), min(n_frames, stop + 1)
            near = slice(first - low, last - low)
            sound, _ = synthesis.harmonic_synthesis(
                line[:, near],
                torch.ones_like(line[:, near]),
                amplitudes[:, near, :bound],
                rate,
                hop,
                on[:, near],
                begins[:, first].to(place.device),
            )
            kept = sound[0, (start - first) * hop : (stop - first) * hop]
            harmonic[start * hop : stop * hop] = kept.cpu().numpy()
            if progress is not None:
                progress(stop / n_frames, f"rendered {units.duration_text(stop * hop / rate)}")
        noise = noise[self.settings.n_noise_bands - 1 :][: n_frames * hop]
        return Synthesis(harmonic + noise, harmonic, noise)
