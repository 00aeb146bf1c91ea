"""DDSP decoder: F0 and loudness in, harmonic and noise controls out, trained through the synthesizer.

After Engel et al. (ICLR 2020) and the voices of Alonso & Erkut, *Latent Space Explorations of Singing Voice Synthesis
using DDSP* (2021, https://arxiv.org/abs/2103.07197). With ``z_dims`` the decoder also receives a latent z that an
encoder computes from the recording's MFCCs.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from svclib.audio import spectral_loss, synthesis, units
from svclib.features.extract import FeatureSettings
from svclib.features.f0 import fill_unvoiced
from svclib.models.ddsp.networks import Z_FMAX_HZ, Z_WINDOWS, Decoder, ZEncoder, initialize
from svclib.models.layers import Frames, Samples, Voiced
from svclib.utils.errors import ModelError, raise_if_cancelled
from svclib.utils.serialization import Settings, setting

NOISE_BIAS = -5.0  # an untrained network starts nearly without noise
AMPLITUDE_BIAS = -1.5  # and softly, at an amplitude of about 0.04


@dataclasses.dataclass(frozen=True)
class DdspSettings(Settings):
    """Settings of the DDSP instrument and its loss.

    Attributes:
        n_harmonics: Sines at multiples of the pitch; those at or above half the sample rate are silent.
        n_noise_bands: Noise magnitudes from 0 Hz to half the sample rate.
        rnn_channels, mlp_channels, layers_per_stack: The GRU, and the dense stacks around it; 0 layers for none.
        z_dims: Size of the latent z; 0 for none.
        z_hop_samples: Samples per z frame: 512 is 125 frames in 4 s at 16 kHz.
        z_rnn_channels: Width of the z encoder's GRU.
        reverb_samples: Length of a trained room response; 0 for none.
        fft_sizes: Scales of the spectral loss; add 4096 in front for the seven-scale variant.
        log_rule: ``v1`` or ``v2``, see ``spectral_loss``. Losses compare only if both are equal.
    """

    kind: str = setting("ddsp", choices=("ddsp",))
    n_harmonics: int = setting(100, 1, 1000)
    n_noise_bands: int = setting(65, 2, 1025)
    rnn_channels: int = setting(512, 1, 4096)
    mlp_channels: int = setting(512, 1, 4096)
    layers_per_stack: int = setting(3, 0, 10)
    z_dims: int = setting(0, 0, 512)
    z_hop_samples: int = setting(512, choices=tuple(Z_WINDOWS))
    z_rnn_channels: int = setting(512, 1, 4096)
    reverb_samples: int = setting(0, 0, 480_000)
    fft_sizes: tuple[int, ...] | list[int] = setting(spectral_loss.FFT_SIZES, 16)
    log_rule: str = setting("v1", choices=spectral_loss.LOG_RULES)

    def __post_init__(self):
        super().__post_init__()
        spectral_loss.check_fft_sizes(self.fft_sizes)

    def build(self, features: FeatureSettings, statistics: Mapping | None = None, seed: int = 0) -> "DdspModel":
        """An untrained model on the CPU; equal seeds give equal weights, statistics are not needed.

        Raises ModelError if the sample rate is too low for ``z_dims``.
        """
        if self.z_dims and features.sample_rate_hz < 2 * Z_FMAX_HZ:
            raise ModelError(
                f"The z encoder reaches up to {Z_FMAX_HZ:.0f} Hz; sample_rate_hz is {features.sample_rate_hz}: "
                f"use at least {2 * Z_FMAX_HZ:.0f}, or z_dims=0."
            )
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, replaced below, draws from it
            model = DdspModel(self, features)
        for module in model.modules():
            initialize(module, generator)
        if model.room is not None:
            nn.init.normal_(model.room, std=1e-6, generator=generator)
        with torch.no_grad():
            model.decoder.out.bias[: 1 + self.n_harmonics] = self._voice_like_bias()
        return model

    def _voice_like_bias(self) -> Float[Tensor, " amplitude_and_harmonics"]:
        """Bias for which an untrained network outputs a soft tone whose k-th harmonic has the share 1 / k.

        From zero biases all harmonics start equally loud; training silences them, the noise imitates the spectrum
        alone, and returning to a tone takes thousands of steps.
        """
        half_share = 0.5 / np.arange(1, self.n_harmonics + 1)
        sigmoid = half_share ** (1.0 / math.log(10.0))  # exp_sigmoid(x) is 2 sigmoid(x) ^ ln 10
        bias = np.append(AMPLITUDE_BIAS, np.log(sigmoid / (1.0 - sigmoid)))
        return torch.from_numpy(bias.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Controls:
    """Synthesizer controls, per frame: linear amplitudes and magnitudes, silent where not voiced.

    The ``distribution`` over harmonics sums to 1, or to 0 where none fits below half the sample rate. It may be complex
    (:func:`synthesis.harmonic_synthesis`), and the noise have parts that follow the period
    (:func:`synthesis.filtered_noise`).
    """

    amplitude: Frames
    distribution: Shaped[Tensor, "batch frames harmonics"]
    noise_magnitudes: Float[Tensor, "batch frames *parts bands"]
    f0_hz: Frames
    voiced: Voiced


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """Sound and its two parts; ``audio`` is their sum, plus the room where there is one. Peaks may exceed 1."""

    audio: Tensor | np.ndarray
    harmonic: Tensor | np.ndarray
    noise: Tensor | np.ndarray


class ControlRenderer:
    """Renders consecutive chunks of controls, equal to the whole at once: phase, noise and harmonics carry on.

    ``margin`` samples before the end of the frames that were added may still change; ``seed`` is that of the noise.
    """

    def __init__(self, n_noise_bands: int, sample_rate_hz: int, hop_samples: int, seed: int = 0):
        self.rate, self.hop, self.ring = sample_rate_hz, hop_samples, n_noise_bands - 1
        self.margin = max(hop_samples - hop_samples // 2, self.ring)
        self.generator = torch.Generator().manual_seed(seed)
        self.last: Controls | None = None  # the last frame: sound is drawn between frame centres
        self.n_frames, self.begin = 0, 0  # frames added; first sample of the buffers
        self.harmonic, self.noise = (np.zeros(0, np.float32) for _ in range(2))

    def add(self, now: Controls, phase: Float[Tensor, " 1"]) -> tuple[np.ndarray, np.ndarray]:
        """Add frames; the samples of harmonic and noise part that became final.

        ``phase`` is that of :func:`synthesis.frame_phase` at the centre of the last frame before, at the very first
        chunk of its first frame.
        """
        hop, half = self.hop, self.hop // 2
        first, self.n_frames = self.n_frames, self.n_frames + now.f0_hz.shape[1]
        grown = self.n_frames * hop + self.ring - self.begin - len(self.noise)
        self.harmonic, self.noise = (np.pad(x, (0, grown)) for x in (self.harmonic, self.noise))
        known, start, origin = now, 0, first * hop
        if self.last is not None:
            pairs = zip(_fields(self.last), _fields(now), strict=True)
            known, start, origin = Controls(*(torch.cat(pair, dim=1) for pair in pairs)), half, (first - 1) * hop
        self.last = Controls(*(x[:, -1:] for x in _fields(now)))
        phase = units.double(phase, known.f0_hz.device) - units.double(known.f0_hz[:, 0]) * (half / self.rate)
        period = None
        if now.noise_magnitudes.ndim == 4:
            centres = synthesis.frame_phase(known.f0_hz, self.rate, hop, phase)
            period = centres[:, -now.f0_hz.shape[1] :], now.f0_hz / self.rate
        filtered = synthesis.filtered_noise(now.noise_magnitudes, hop, self.generator, full=True, period=period)
        filtered, at = filtered[0].cpu().numpy(), first * hop - self.ring - self.begin
        filtered, at = filtered[max(0, -at) :], max(0, at)  # it rings before its first sample and after its last
        self.noise[at : at + len(filtered)] += filtered[: len(self.noise) - at]
        sound = synthesis.harmonic_synthesis(
            known.f0_hz, known.amplitude, known.distribution, self.rate, hop, known.voiced, phase
        )
        at = origin + start - self.begin
        self.harmonic[at : at + sound.shape[1] - start] = sound[0, start:].cpu().numpy()
        return self._take(self.n_frames * hop - self.margin)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The rest, up to the end of the last frame."""
        return self._take(self.n_frames * self.hop)

    def _take(self, end: int) -> tuple[np.ndarray, np.ndarray]:
        n = max(0, end - self.begin)
        taken = self.harmonic[:n], self.noise[:n]
        self.harmonic, self.noise, self.begin = self.harmonic[n:], self.noise[n:], self.begin + n
        return taken


def render_controls(
    chunks: Iterable[Controls],
    held_hz: Float[Tensor, "1 frames"],
    sample_rate_hz: int,
    hop_samples: int,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Synthesis:
    """Render consecutive chunks of controls of one song by :class:`ControlRenderer`.

    ``held_hz`` is the F0 of all frames, without gaps; ``seed`` that of the noise.
    """
    n_frames, parts, renderer = held_hz.shape[1], [], None
    phases = synthesis.frame_phase(held_hz, sample_rate_hz, hop_samples)
    for now in chunks:
        raise_if_cancelled(cancelled)
        bands = now.noise_magnitudes.shape[-1]
        renderer = renderer or ControlRenderer(bands, sample_rate_hz, hop_samples, seed)
        parts.append(renderer.add(now, phases[:, max(0, renderer.n_frames - 1)]))
        if progress is not None:
            done = renderer.n_frames
            progress(done / n_frames, f"rendered {units.duration_text(done * hop_samples / sample_rate_hz)}")
    harmonic, noise = (np.concatenate(part) for part in zip(*parts, renderer.finish(), strict=True))
    return Synthesis(harmonic + noise, harmonic, noise)


def _fields(controls: Controls) -> list[Tensor]:
    return [getattr(controls, field.name) for field in dataclasses.fields(controls)]


class SpectralLossModel(nn.Module):
    """A model that is trained by the spectral loss of its resynthesis; ``settings`` has ``fft_sizes`` and ``log_rule``.

    A subclass implements :meth:`resynthesize`.
    """

    def resynthesize(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Audio of the batch's recordings ``[batch, samples]`` from their features, differentiable."""
        raise NotImplementedError

    @property
    def loss_name(self) -> str:
        """The loss in words: curves are comparable only where this is equal."""
        sizes = ", ".join(map(str, self.settings.fft_sizes))
        return f"spectral loss over {len(self.settings.fft_sizes)} scales ({sizes}), log rule {self.settings.log_rule}"

    def loss(
        self, batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Spectral loss of the resynthesized batch with noise of a generator, and its parts ``linear`` and ``log``."""
        made = self.resynthesize(batch, generator)
        with torch.autocast(made.device.type, enabled=False):
            linear, log = spectral_loss.spectral_loss(
                made, batch["audio"].to(made), self.settings.fft_sizes, self.settings.log_rule
            )
        return linear + log, {"linear": linear.detach(), "log": log.detach()}

    @torch.no_grad()
    def validation_loss(self, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The same loss with the same noise every time."""
        return self.loss(batch, torch.Generator().manual_seed(0))[0]

    @torch.no_grad()
    def reconstruct(self, batch: Mapping[str, Tensor], seed: int = 0) -> Samples:
        """The batch's recordings resynthesized from their features."""
        return self.resynthesize(batch, torch.Generator().manual_seed(seed))


class DdspModel(SpectralLossModel):
    """The decoder with its synthesiser; see :class:`DdspSettings`. Make one with ``settings.build(features)``."""

    def __init__(self, settings: DdspSettings, features: FeatureSettings):
        super().__init__()
        self.settings, self.features = settings, features
        inputs = {"loudness": 1, "f0": 1} | ({"z": settings.z_dims} if settings.z_dims else {})
        sizes = (settings.rnn_channels, settings.mlp_channels, settings.layers_per_stack)
        self.decoder = Decoder(inputs, *sizes, 1 + settings.n_harmonics + settings.n_noise_bands)
        z = (features.sample_rate_hz, settings.z_hop_samples, settings.z_rnn_channels, settings.z_dims)
        self.z_encoder = ZEncoder(*z) if settings.z_dims else None
        self.room = nn.Parameter(torch.zeros(settings.reverb_samples)) if settings.reverb_samples else None

    def controls(
        self,
        f0_hz: Frames,
        voiced: Voiced,
        loudness_db: Frames,
        audio: Samples | None = None,
        z: Float[Tensor, "batch frames z"] | None = None,
    ) -> Controls:
        """Synthesizer controls for this F0 (filled over unvoiced frames) and loudness.

        With ``z_dims`` the network also needs ``audio`` (the whole clip, whose words are taken) or its ``z`` per frame.
        """
        if self.z_encoder is not None and z is None:
            z = self.z_encoder.at_frames(self.z_encoder(audio), 0, f0_hz.shape[1], self.features.hop_samples)
        return self._controls(f0_hz, voiced, loudness_db, z, None)[0]

    def _controls(self, f0_hz, voiced, loudness_db, z, state) -> tuple[Controls, Tensor]:
        inputs = {"loudness": (loudness_db / 80.0 + 1.0)[..., None], "f0": (units.hz_to_midi(f0_hz) / 127.0)[..., None]}
        if self.z_encoder is not None:
            inputs["z"] = z
        out, state = self.decoder(inputs, state)
        with torch.autocast(out.device.type, enabled=False):
            amplitude, distribution, noise = out.to(f0_hz.dtype).split(
                [1, self.settings.n_harmonics, self.settings.n_noise_bands], dim=-1
            )
            distribution = synthesis.exp_sigmoid(distribution)
            distribution = synthesis.normalize_harmonics(distribution, f0_hz, self.features.sample_rate_hz)
            noise = synthesis.exp_sigmoid(noise + NOISE_BIAS)
            amplitude = synthesis.exp_sigmoid(amplitude)[..., 0]
        return Controls(amplitude, distribution, noise, f0_hz, voiced), state

    def synthesize(self, controls: Controls, generator: torch.Generator) -> Synthesis:
        """Sound of ``frames * hop`` samples; each part ``[batch, samples]``."""
        c, rate, hop = controls, self.features.sample_rate_hz, self.features.hop_samples
        with torch.autocast(c.amplitude.device.type, enabled=False):
            harmonic = synthesis.harmonic_synthesis(c.f0_hz, c.amplitude, c.distribution, rate, hop, c.voiced)
            noise = synthesis.filtered_noise(c.noise_magnitudes, hop, generator)
            audio = harmonic + noise
            if self.room is not None:
                audio = audio + synthesis.reverb(audio, self.room)
        return Synthesis(audio, harmonic, noise)

    def resynthesize(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Audio of the batch's recordings from their F0 and loudness, differentiable."""
        audio = batch["audio"] if self.z_encoder is not None else None
        controls = self.controls(batch["f0_hz"], batch["voiced"], batch["loudness_db"], audio)
        return torch.as_tensor(self.synthesize(controls, generator).audio)

    @torch.no_grad()
    def encode_z(
        self, audio: np.ndarray, cancelled: Callable[[], bool] | None = None, block_frames: int = 2000
    ) -> Float[Tensor, "1 z_frames z"]:
        """z of a whole recording ``[samples]`` of any length: measured in pieces, normalised over the whole."""
        samples = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))[None].to(self.decoder.out.weight)
        n_frames, pieces = -(-samples.shape[1] // self.z_encoder.hop_samples), []
        for first in range(0, n_frames, block_frames):
            raise_if_cancelled(cancelled)
            pieces.append(self.z_encoder.mfcc(samples, first, min(block_frames, n_frames - first)))
        return self.z_encoder.encode(torch.cat(pieces, dim=1))

    @torch.no_grad()
    def render(
        self,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        loudness_db: np.ndarray,
        audio: np.ndarray | None = None,
        seed: int = 0,
        chunk_frames: int = 1000,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Synthesis:
        """Render a song of any length, in chunks that equal the whole: float32 arrays of ``frames * hop`` samples.

        F0, voicing and loudness are ``[frames]``; unvoiced gaps are filled for the network and stay silent. With
        ``z_dims`` the source's ``audio`` is needed: z follows its words. ``seed`` is that of the noise.
        """
        n_frames, hop, rate = len(f0_hz), self.features.hop_samples, self.features.sample_rate_hz
        if not len(voiced) == len(loudness_db) == n_frames or n_frames == 0 or chunk_frames < 1:
            raise ModelError(
                f"Pitch, voicing and loudness have {n_frames}, {len(voiced)} and {len(loudness_db)} frames; "
                "they must have the same number, at least one."
            )
        if self.z_encoder is not None and audio is None:
            raise ModelError("This instrument has a z encoder: give the source audio too.")
        z = None if self.z_encoder is None else self.encode_z(audio, cancelled)
        place = self.decoder.out.weight
        voiced = np.asarray(voiced, dtype=bool) & (np.asarray(f0_hz) > 0)
        tracks = (fill_unvoiced(np.asarray(f0_hz), voiced), voiced, np.asarray(loudness_db))
        pitch, on, level = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in tracks)

        def chunks():
            state = None
            for first in range(0, n_frames, chunk_frames):
                last = min(n_frames, first + chunk_frames)
                z_piece = None if z is None else self.z_encoder.at_frames(z, first, last - first, hop)
                f0, db = (x[:, first:last].to(place) for x in (pitch, level))
                controls, state = self._controls(f0, on[:, first:last].to(place.device), db, z_piece, state)
                yield controls

        sound = render_controls(chunks(), pitch.float(), rate, hop, seed, progress, cancelled)
        return dataclasses.replace(sound, audio=self._in_room(sound.audio))

    def reflections(self) -> Float[np.ndarray, " taps"]:
        """The trained room's response without the direct sound."""
        taps = self.room.detach().cpu().numpy().copy()
        taps[0] = 0.0
        return taps

    def _in_room(self, dry: np.ndarray) -> np.ndarray:
        """The dry sound with the trained room added, block by block."""
        if self.room is None:
            return dry
        import scipy.signal

        return dry + scipy.signal.oaconvolve(dry, self.reflections())[: len(dry)]
