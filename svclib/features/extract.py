"""Log-mel, loudness, F0 and voicing of a recording, all on the one centred frame grid of ``units``.

Frame i covers samples [i * hop, (i + 1) * hop); every analysis window is centred in the middle of them, and every
extractor gives exactly ``n_samples // hop`` frames. Long recordings are measured in chunks that see their neighbours:
chunks make no difference, and memory is bounded.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svclib.audio import io as audio
from svclib.audio import units
from svclib.audio.loudness import loudness_db
from svclib.audio.mel import MelConfig, log_mel_of_padded, reflected
from svclib.features import content_features, crepe, f0  # noqa: F401  (crepe registers its trackers)
from svclib.features.f0 import F0_METHODS, fill_unvoiced
from svclib.utils.errors import AudioError, ConfigError, ModelError, ProgressCallback, reporter
from svclib.utils.serialization import Settings, setting

F0_MAX_HZ = 2100.0
MAX_CHUNK_VALUES = 1 << 25  # of a spectrogram that is computed at a time


@dataclasses.dataclass(frozen=True)
class FeatureSettings(Settings):
    """Settings of the feature extraction."""

    sample_rate_hz: int = setting(16000, 2000, 384000)  # of the stored audio and of the frame grid
    hop_samples: int = setting(64, 2, 65536)  # per frame
    f0_method: str = setting("swift", choices=F0_METHODS)
    f0_min_hz: float = setting(50.0, 20, 2000)  # search range of the tracker
    f0_max_hz: float = setting(F0_MAX_HZ, 50, 5000)  # the default is above C7: sopranos, and most whistle notes
    voicing_threshold: float = setting(0.5, 0, 1)  # confidence from which a frame counts as voiced
    loudness_n_fft: int = setting(512, 16, 65536)  # window of the A-weighted loudness, samples
    mel: MelConfig | None = None  # where the model needs it; its rate and hop must equal the grid's
    units: content_features.UnitSettings | None = setting(None, optional=True)  # where the model needs them

    def __post_init__(self):
        super().__post_init__()
        if self.hop_samples % 2 or self.loudness_n_fft % 2:
            sizes = f"hop_samples {self.hop_samples} and loudness_n_fft {self.loudness_n_fft}"
            raise ConfigError(f"{sizes} must be even, so that windows have a middle.")
        if self.f0_max_hz < 1.5 * self.f0_min_hz:
            raise ConfigError(f"f0_max_hz {self.f0_max_hz:g} must be at least 1.5 times f0_min_hz {self.f0_min_hz:g}.")
        units.check_budget(self.sample_rate_hz, self.hop_samples, self.loudness_n_fft)
        grid, mel = (self.sample_rate_hz, self.hop_samples), self.mel
        if mel and (mel.sample_rate_hz, mel.hop_samples) != grid:
            theirs = f"{mel.sample_rate_hz} Hz and a hop of {mel.hop_samples}"
            raise ConfigError(f"The mel has {theirs}, the frame grid {grid[0]} Hz and {grid[1]}. Give both the same.")


@dataclasses.dataclass(frozen=True)
class Features:
    """Measurements of one recording (or a piece of it); every array has ``n_samples // hop_samples`` frames.

    Unvoiced frames may carry an estimate of F0 too: always read it together with ``voiced``.
    """

    settings: FeatureSettings
    n_samples: int  # at ``settings.sample_rate_hz``
    f0_hz: np.ndarray  # float32; 0 where the tracker gives no estimate
    voiced: np.ndarray  # bool
    confidence: np.ndarray  # float32, 0..1; 0 where there is no estimate
    loudness_db: np.ndarray  # float32, A-weighted, floor -80
    log_mel: np.ndarray | None = None  # float32 ``[frames, mels]``
    content: np.ndarray | None = None  # of a pretrained network, float16 ``[frames, dims]``

    def __post_init__(self):
        n, hop = self.n_samples, self.settings.hop_samples
        for name in ("f0_hz", "voiced", "confidence", "loudness_db", "log_mel", "content"):
            values = getattr(self, name)
            if values is not None and len(values) != units.frame_count(n, hop):
                expected = f"{n} samples at a hop of {hop} make {units.frame_count(n, hop)}"
                raise ModelError(f"{name} has {len(values)} frames where {expected}; measure all with extract.")

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.f0_hz)


@dataclasses.dataclass(frozen=True, eq=False)
class ConditionInputs:
    """Frame-wise tensors of recordings on one frame grid and one device."""

    log_mel: Float[Tensor, "batch frames mels"]  # in the log base of its mel configuration
    f0_hz: Float[Tensor, "batch frames"]  # interpolated over unvoiced frames; 0 only where nothing has a pitch
    voiced: Bool[Tensor, "batch frames"]
    loudness_db: Float[Tensor, "batch frames"]  # A-weighted, -80 .. 0
    content: Float[Tensor, "batch frames dims"] | None = None  # ``FeatureSettings.units``, where they were measured

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> "ConditionInputs":
        """The inputs in a batch of ``Dataset.batch``, whose F0 is continuous already."""
        return cls(batch["log_mel"], batch["f0_hz"], batch["voiced"], batch["loudness_db"], batch.get("content"))

    @classmethod
    def from_arrays(cls, log_mel, f0_hz, voiced, loudness_db, content=None, device="cpu") -> "ConditionInputs":
        """A batch of one from arrays ``[frames, ...]``; fills the F0 over unvoiced frames."""

        def batch(x, dtype: torch.dtype | None = torch.float32) -> Tensor:
            return torch.as_tensor(np.asarray(x), dtype=dtype, device=device)[None]

        f0, vectors = batch(fill_unvoiced(f0_hz, voiced)), None if content is None else batch(content, None)
        return cls(batch(log_mel), f0, batch(voiced, torch.bool), batch(loudness_db), vectors)

    def frames(self, start: int, stop: int) -> "ConditionInputs":
        """The frames ``start:stop`` of every recording."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return ConditionInputs(*(None if x is None else x[:, start:stop] for x in values))

    def __len__(self) -> int:
        """Number of frames."""
        return self.log_mel.shape[1]


def extract(samples: np.ndarray, settings: FeatureSettings, progress: ProgressCallback | None = None) -> Features:
    """Measure a recording of any length on ``n // hop_samples`` frames, in memory of one chunk besides the result.

    ``samples`` are float with full scale 1, or int16 with full scale 32768, at ``settings.sample_rate_hz``. Raises
    AudioError if they are not one finite channel, and ModelError if the package of the F0 method or the content encoder
    is missing.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise AudioError(f"samples are {samples.dtype} of shape {samples.shape}; expected one channel, float or int16.")
    if not all(np.isfinite(samples[i : i + (1 << 20)]).all() for i in range(0, len(samples), 1 << 20)):
        hint = "Read the recording again with audio.read, which names the place."
        raise AudioError("the samples hold NaN or infinity.", hint=hint)
    report, rate, hop, mel = reporter(progress), settings.sample_rate_hz, settings.hop_samples, settings.mel
    f0_hz, voiced, confidence = track_f0(samples, rate, settings, lambda f, text: report(0.8 * f, text))
    n_frames = len(f0_hz)
    loudness = np.empty(n_frames, np.float32)
    mels = None if mel is None else np.empty((n_frames, mel.n_mels), np.float32)
    n_fft = max(settings.loudness_n_fft, 0 if mel is None else mel.n_fft)
    chunk_frames = max(1, min(f0.CHUNK_S * rate // hop, MAX_CHUNK_VALUES // n_fft))
    for first in range(0, n_frames, chunk_frames):
        last = min(n_frames, first + chunk_frames)
        window = _samples_around(samples, first, last, hop, settings.loudness_n_fft, reflect=False)
        loudness[first:last] = loudness_db(window, rate, hop, settings.loudness_n_fft)
        if mels is not None:
            mels[first:last] = log_mel_of_padded(_samples_around(samples, first, last, hop, mel.n_fft, True), mel)[0]
        report(0.8 + 0.2 * last / n_frames, "measuring loudness")
    content = None if settings.units is None else content_features.extract(samples, rate, hop, settings.units)
    return Features(settings, len(samples), f0_hz, voiced, confidence, loudness, mels, content)


def _samples_around(samples: np.ndarray, first: int, last: int, hop: int, n_fft: int, reflect: bool) -> Tensor:
    """The samples that the windows of frames [first, last) see, ``[1, m]``; zeros or a reflection beyond the ends."""
    low = first * hop + hop // 2 - n_fft // 2
    index = np.arange(low, low + (last - first - 1) * hop + n_fft)
    inside = (index >= 0) & (index < len(samples))
    if inside.all():
        return torch.from_numpy(audio.as_float(samples[index[0] : index[-1] + 1]))[None]
    found = audio.as_float(samples[reflected(index, len(samples))])
    return torch.from_numpy(found if reflect else np.where(inside, found, np.float32(0)))[None]


def track_f0(
    samples: np.ndarray,
    sample_rate_hz: int,
    settings: FeatureSettings,
    progress: ProgressCallback | None = None,
) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
    """F0 in Hz (0 without an estimate), voicing and confidence (0..1) of each frame, by ``settings.f0_method``.

    Raises ModelError if the rates differ, or the method's package is not installed.
    """
    if sample_rate_hz != settings.sample_rate_hz:
        rates = f"the samples have {sample_rate_hz} Hz, the settings say {settings.sample_rate_hz} Hz"
        raise ModelError(f"{rates}; resample them first.")
    method, low_hz, high_hz = F0_METHODS[settings.f0_method], settings.f0_min_hz, settings.f0_max_hz
    track = f0.track_in_chunks(method.track, samples, sample_rate_hz, low_hz, high_hz, progress)
    n_frames = units.frame_count(len(samples), settings.hop_samples)
    f0_hz, confidence = f0.to_grid(track, n_frames, settings.hop_samples, sample_rate_hz, settings.voicing_threshold)
    return f0_hz, (confidence >= settings.voicing_threshold) & (f0_hz > 0), confidence
