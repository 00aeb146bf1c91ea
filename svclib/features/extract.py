"""Log-mel, loudness, F0 and voicing of a recording, all on the one centred frame grid of ``units``.

Frame i covers samples [i * hop, (i + 1) * hop); every analysis window is centred in the middle of them, and every
extractor gives exactly ``n_samples // hop`` frames. Long recordings are measured in chunks that see their neighbours:
chunks make no difference, and memory is bounded.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svclib.audio import units
from svclib.audio.loudness import loudness_of_padded
from svclib.audio.mel import MelConfig, log_mel_of_padded, reflected
from svclib.features import content_features, crepe, f0  # noqa: F401  (crepe registers its trackers)
from svclib.features.f0 import F0_METHODS
from svclib.utils.errors import AudioError, ConfigError, ModelError, ProgressCallback, reporter
from svclib.utils.serialization import Settings, setting


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Settings):
    """Settings of the feature extraction.

    Attributes:
        sample_rate_hz: Rate of the stored audio and of the frame grid.
        hop_samples: Samples per frame.
        f0_method: One of ``f0.F0_METHODS``.
        f0_min_hz, f0_max_hz: Search range of the tracker.
        voicing_threshold: Confidence from which a frame counts as voiced.
        loudness_n_fft: Window of the A-weighted loudness, samples.
        mel: Log-mel definition, or None where the model needs none; its rate and hop must equal the grid's.
        units: Content encoder whose features are extracted, or None where the model needs none.
    """

    sample_rate_hz: int = setting(16000, 2000, 384000)
    hop_samples: int = setting(64, 2, 65536)
    f0_method: str = setting("swift", choices=F0_METHODS)
    f0_min_hz: float = setting(50.0, 20, 2000)
    f0_max_hz: float = setting(1100.0, 50, 5000)
    voicing_threshold: float = setting(0.5, 0, 1)
    loudness_n_fft: int = setting(512, 16, 65536)
    mel: MelConfig | None = None
    units: content_features.UnitSettings | None = setting(None, optional=True)

    def __post_init__(self):
        super().__post_init__()
        if self.hop_samples % 2 or self.loudness_n_fft % 2:
            raise ConfigError(
                f"hop_samples {self.hop_samples} and loudness_n_fft {self.loudness_n_fft} must be even, so that "
                "windows have a middle."
            )
        if self.f0_max_hz < 1.5 * self.f0_min_hz:
            raise ConfigError(f"f0_max_hz {self.f0_max_hz:g} must be at least 1.5 times f0_min_hz {self.f0_min_hz:g}.")
        if self.mel and (self.mel.sample_rate_hz, self.mel.hop_samples) != (self.sample_rate_hz, self.hop_samples):
            raise ConfigError(
                f"The mel has {self.mel.sample_rate_hz} Hz and a hop of {self.mel.hop_samples}, the frame grid "
                f"{self.sample_rate_hz} Hz and {self.hop_samples}. Give both the same."
            )


@dataclasses.dataclass(frozen=True)
class Features:
    """Measurements of one recording (or a piece of it); every array has ``n_samples // hop_samples`` frames.

    Attributes:
        settings: How they were measured.
        n_samples: Length of the audio at ``settings.sample_rate_hz``.
        f0_hz: float32 ``[frames]``; the tracker's estimate where it gives one, else 0. Unvoiced frames may carry an
            estimate too: always read it together with ``voiced``.
        voiced: bool ``[frames]``.
        confidence: float32 ``[frames]``, 0..1; 0 where there is no estimate.
        loudness_db: float32 ``[frames]``, A-weighted, floor -80.
        log_mel: float32 ``[frames, mels]`` or None.
        content: Content features of a pretrained network, float16 ``[frames, dims]`` or None.
    """

    settings: FeatureSettings
    n_samples: int
    f0_hz: np.ndarray
    voiced: np.ndarray
    confidence: np.ndarray
    loudness_db: np.ndarray
    log_mel: np.ndarray | None = None
    content: np.ndarray | None = None

    def __post_init__(self):
        n_frames = units.frame_count(self.n_samples, self.settings.hop_samples)
        for name in ("f0_hz", "voiced", "confidence", "loudness_db", "log_mel", "content"):
            values = getattr(self, name)
            if values is not None and len(values) != n_frames:
                raise ModelError(
                    f"{name} has {len(values)} frames where {self.n_samples} samples at a hop of "
                    f"{self.settings.hop_samples} make {n_frames}; measure all with features.extract."
                )

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.f0_hz)


# Everything at once ---------------------------------------------------------------------------------------------------


def extract(
    samples: np.ndarray,
    settings: FeatureSettings,
    progress: ProgressCallback | None = None,
    chunk_s: int = f0.CHUNK_S,
) -> Features:
    """Measure a recording of any length on ``n // hop_samples`` frames, in memory of one chunk besides the result.

    ``samples`` are float with full scale 1, or int16 with full scale 32768, at ``settings.sample_rate_hz``; ``chunk_s``
    is an even number of seconds. Raises AudioError if they are not one finite channel, and ModelError if the package of
    the F0 method or the content encoder is missing.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise AudioError(f"samples are {samples.dtype} of shape {samples.shape}; expected one channel, float or int16.")
    if samples.dtype != np.int16 and not _all_finite(samples):
        raise AudioError(
            "the samples hold NaN or infinity; read the recording again with audio.read, which says where."
        )
    report = reporter(progress)
    f0_hz, voiced, confidence = track_f0(
        samples, settings.sample_rate_hz, settings, lambda fraction, text: report(0.8 * fraction, text), chunk_s
    )
    n_frames = len(f0_hz)
    loudness = np.empty(n_frames, np.float32)
    mels = None if settings.mel is None else np.empty((n_frames, settings.mel.n_mels), np.float32)
    chunk_frames = max(1, chunk_s * settings.sample_rate_hz // settings.hop_samples)
    for first in range(0, n_frames, chunk_frames):
        last = min(n_frames, first + chunk_frames)
        window = _samples_around(samples, first, last, settings.hop_samples, settings.loudness_n_fft, reflect=False)
        loudness[first:last] = loudness_of_padded(
            window, settings.sample_rate_hz, settings.hop_samples, settings.loudness_n_fft
        )
        if mels is not None:
            window = _samples_around(samples, first, last, settings.hop_samples, settings.mel.n_fft, reflect=True)
            mels[first:last] = log_mel_of_padded(window, settings.mel)[0]
        report(0.8 + 0.2 * last / n_frames, "measuring loudness")
    content = None
    if settings.units is not None:
        content = content_features.extract(samples, settings.sample_rate_hz, settings.hop_samples, settings.units)
    return Features(settings, len(samples), f0_hz, voiced, confidence, loudness, mels, content)


def _all_finite(samples: np.ndarray) -> bool:
    return all(np.isfinite(samples[i : i + (1 << 20)]).all() for i in range(0, len(samples), 1 << 20))


def _samples_around(samples: np.ndarray, first: int, last: int, hop: int, n_fft: int, reflect: bool) -> Tensor:
    """The samples that the windows of frames [first, last) see, ``[1, m]``; zeros or a reflection beyond the ends."""
    low = first * hop + hop // 2 - n_fft // 2
    index = np.arange(low, low + (last - first - 1) * hop + n_fft)
    inside = (index >= 0) & (index < len(samples))
    if inside.all():
        return torch.from_numpy(f0.as_float(samples[index[0] : index[-1] + 1]))[None]
    found = f0.as_float(samples[reflected(index, len(samples))])
    return torch.from_numpy(found if reflect else np.where(inside, found, np.float32(0)))[None]


# F0 ---------------------------------------------------------------------------------------------------------


def track_f0(
    samples: np.ndarray,
    sample_rate_hz: int,
    settings: FeatureSettings,
    progress: ProgressCallback | None = None,
    chunk_s: int = f0.CHUNK_S,
) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
    """F0 in Hz (0 without an estimate), voicing and confidence (0..1) of each frame, by ``settings.f0_method``.

    See :func:`f0.track_in_chunks`. Raises ModelError if the rates differ, or the method's package is not installed.
    """
    if sample_rate_hz != settings.sample_rate_hz:
        raise ModelError(
            f"the samples have {sample_rate_hz} Hz, the settings say {settings.sample_rate_hz} Hz; resample them first."
        )
    method, low_hz, high_hz = F0_METHODS[settings.f0_method], settings.f0_min_hz, settings.f0_max_hz
    track = f0.track_in_chunks(method.track, samples, sample_rate_hz, low_hz, high_hz, chunk_s, progress)
    n_frames = units.frame_count(len(samples), settings.hop_samples)
    f0_hz, confidence = f0.to_grid(track, n_frames, settings.hop_samples, sample_rate_hz, settings.voicing_threshold)
    return f0_hz, (confidence >= settings.voicing_threshold) & (f0_hz > 0), confidence
