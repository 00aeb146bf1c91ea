"""Log-mel, loudness, F0 and voicing of a recording, all on the one centred frame grid of ``units``.

Frame i covers samples [i * hop, (i + 1) * hop); every analysis window is centred in the middle of them, and every
extractor gives exactly ``n_samples // hop`` frames. Long recordings are measured in chunks that see their neighbours:
chunks make no difference, and memory is bounded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svclib.audio import units
from svclib.audio.loudness import a_weighting_db, loudness_db, loudness_of_padded, note_mask, note_on_ratio
from svclib.audio.mel import log_mel, log_mel_of_padded, reflected
from svclib.features import content_features, crepe, f0  # noqa: F401  (crepe registers its trackers)
from svclib.features.f0 import F0_METHODS, fill_unvoiced
from svclib.utils import validation
from svclib.utils.errors import ModelError

__all__ = [
    "F0_METHODS",
    "FeatureSettings",
    "Features",
    "MelContract",
    "a_weighting_db",
    "extract",
    "fill_unvoiced",
    "log_mel",
    "loudness_db",
    "note_mask",
    "note_on_ratio",
    "track_f0",
]


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What MelContract and FeatureSettings share: a JSON form that is checked when it is read."""

    def to_json(self) -> dict:
        """The fields as a dict of plain JSON values; ``units`` only where there are any."""
        record = dataclasses.asdict(self)
        if record.get("units"):
            record["units"] = self.units.to_json()
        return {name: value for name, value in record.items() if name != "units" or value is not None}

    @classmethod
    def from_json(cls, record: Any):
        """The settings of a dict made by :meth:`to_json`; ModelError for missing, unknown or wrong fields."""
        names = {f.name for f in dataclasses.fields(cls)}
        if isinstance(record, dict) and "units" in names:
            record = {"units": None, **record}
        if not isinstance(record, dict) or set(record) != names:
            got = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ModelError(f"{cls.__name__} has the fields {', '.join(sorted(names))}; these arrived: {got}.")
        values = {}
        for field in dataclasses.fields(cls):
            value = record[field.name]
            if field.name == "mel":
                values["mel"] = None if value is None else MelContract.from_json(value)
                continue
            if field.name == "units":
                values["units"] = None if value is None else content_features.UnitSettings.from_json(value)
                continue
            allowed = (int, float) if field.type is float else field.type
            if not isinstance(value, allowed) or isinstance(value, bool):
                raise ModelError(f"{cls.__name__}.{field.name} is {value!r}; it must be {field.type.__name__}.")
            values[field.name] = field.type(value)
        return cls(**values)

    def _check(self, numbers: dict[str, tuple], choices: dict[str, tuple | dict]) -> None:
        name = type(self).__name__
        validation.check(self, numbers, ModelError, f"{name}.")
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ModelError(f"{name}.{field} is {getattr(self, field)!r}; choose one of {', '.join(allowed)}.")


@dataclasses.dataclass(frozen=True)
class MelContract(_Settings):
    """Everything that defines a log-mel spectrogram. The defaults are NSF-HiFiGAN's at 44.1 kHz.

    Two contracts are interchangeable only if every field is equal; datasets, checkpoints, instruments and vocoders
    carry theirs and refuse another (:meth:`require`).

    Attributes:
        sample_rate_hz: Rate of the audio.
        n_fft, window_samples: Transform and periodic Hann window, samples.
        hop_samples: Samples per frame; the audio is padded by reflection with (n_fft - hop) / 2 on each side.
        n_mels, fmin_hz, fmax_hz: Number and range of the filters.
        scale: ``slaney`` or ``htk``, the mel scale.
        norm: ``slaney`` (filters of equal area) or ``none``.
        log_base: ``e`` or ``10``.
        floor: Smallest magnitude before the logarithm.
    """

    sample_rate_hz: int = 44100
    n_fft: int = 2048
    window_samples: int = 2048
    hop_samples: int = 512
    n_mels: int = 128
    fmin_hz: float = 40.0
    fmax_hz: float = 16000.0
    scale: str = "slaney"
    norm: str = "slaney"
    log_base: str = "e"
    floor: float = 1e-5

    def __post_init__(self):
        self._check(
            {
                "sample_rate_hz": (2000, 384000),
                "n_fft": (16, 65536),
                "window_samples": (16, 65536),
                "hop_samples": (2, 65536),
                "n_mels": (1, 1024),
                "fmin_hz": (0.0, 192000.0),
                "fmax_hz": (1.0, 192000.0),
                "floor": (1e-12, 1.0),
            },
            {"scale": ("slaney", "htk"), "norm": ("slaney", "none"), "log_base": ("e", "10")},
        )
        if self.hop_samples % 2 or self.n_fft % 2 or not self.hop_samples <= self.window_samples <= self.n_fft:
            raise ModelError(
                f"a mel contract needs even hop and FFT with hop <= window <= FFT; these are {self.hop_samples}, "
                f"{self.window_samples} and {self.n_fft} samples."
            )
        if not self.fmin_hz < self.fmax_hz <= self.sample_rate_hz / 2:
            raise ModelError(
                f"mel filters from {self.fmin_hz:g} to {self.fmax_hz:g} Hz do not fit below "
                f"{self.sample_rate_hz / 2:g} Hz, half the sample rate."
            )

    def require(self, other: "MelContract", mine: str = "this", theirs: str = "the other") -> None:
        """Refuse another contract.

        Args:
            other: The contract that must be equal.
            mine: What this one belongs to, for the message.
            theirs: The same of the other.

        Raises:
            ModelError: naming both sides and every field that differs.
        """
        if self == other:
            return
        names = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        fields = ", ".join(f"{n} {getattr(self, n)} against {getattr(other, n)}" for n in names)
        raise ModelError(
            f"The mel of {mine} and of {theirs} differ: {fields}. They cannot be used together; prepare or train one "
            "of them with the other's settings."
        )


@dataclasses.dataclass(frozen=True)
class FeatureSettings(_Settings):
    """How recordings are measured.

    Attributes:
        sample_rate_hz: Rate of the stored audio and of the frame grid.
        hop_samples: Samples per frame.
        f0_method: One of ``F0_METHODS``.
        f0_min_hz, f0_max_hz: Search range of the tracker.
        voicing_threshold: Confidence from which a frame counts as voiced.
        loudness_n_fft: Window of the A-weighted loudness, samples.
        mel: The log-mel contract, or None where the model needs none; its rate and hop must equal the grid's.
        units: Which encoder's content units, or None where the model needs none.
    """

    sample_rate_hz: int = 16000
    hop_samples: int = 64
    f0_method: str = "swift"
    f0_min_hz: float = 50.0
    f0_max_hz: float = 1100.0
    voicing_threshold: float = 0.5
    loudness_n_fft: int = 512
    mel: MelContract | None = None
    units: content_features.UnitSettings | None = None

    def __post_init__(self):
        self._check(
            {
                "sample_rate_hz": (2000, 384000),
                "hop_samples": (2, 65536),
                "f0_min_hz": (20.0, 2000.0),
                "f0_max_hz": (50.0, 5000.0),
                "voicing_threshold": (0.0, 1.0),
                "loudness_n_fft": (16, 65536),
            },
            {"f0_method": F0_METHODS},
        )
        if self.hop_samples % 2 or self.loudness_n_fft % 2:
            raise ModelError(
                f"hop_samples and loudness_n_fft must be even, so that windows have a middle; they are "
                f"{self.hop_samples} and {self.loudness_n_fft}."
            )
        if self.f0_max_hz < 1.5 * self.f0_min_hz:
            raise ModelError(f"no pitch fits between f0_min_hz {self.f0_min_hz:g} and f0_max_hz {self.f0_max_hz:g}.")
        if not isinstance(self.units, content_features.UnitSettings | None):
            raise ModelError(f"FeatureSettings.units is {self.units!r}; it must be UnitSettings or None.")
        if self.mel is None:
            return
        if not isinstance(self.mel, MelContract):
            raise ModelError(f"FeatureSettings.mel is {self.mel!r}; it must be a MelContract or None.")
        if (self.mel.sample_rate_hz, self.mel.hop_samples) != (self.sample_rate_hz, self.hop_samples):
            raise ModelError(
                f"The mel is made for {self.mel.sample_rate_hz} Hz and a hop of {self.mel.hop_samples}, the frame "
                f"grid for {self.sample_rate_hz} Hz and {self.hop_samples}. Give both the same."
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
    progress: Callable[[float, str], None] | None = None,
    chunk_s: int = f0.PIECE_S,
) -> Features:
    """Measure a recording of any length; besides the result, memory is that of one chunk.

    Args:
        samples: ``[n]`` at ``settings.sample_rate_hz``: float with full scale 1, or int16 with full scale 32768.
        settings: What to measure and how.
        progress: Called with a fraction and a text.
        chunk_s: Length of a chunk, an even number of seconds.

    Returns:
        Everything, on ``n // hop_samples`` frames; ``log_mel`` and ``content`` only where the settings ask for them.

    Raises:
        ModelError: if the samples are not one finite channel, or the F0 method is not installed.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise ModelError(f"samples are {samples.dtype} of shape {samples.shape}; expected one channel, float or int16.")
    if samples.dtype != np.int16 and not _all_finite(samples):
        raise ModelError(
            "the samples hold NaN or infinity; read the recording again with audio.read, which says where."
        )
    tell = progress or (lambda fraction, text: None)
    f0_hz, voiced, confidence = track_f0(
        samples, settings.sample_rate_hz, settings, lambda fraction, text: tell(0.8 * fraction, text), chunk_s
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
        tell(0.8 + 0.2 * last / n_frames, "measuring loudness")
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
    progress: Callable[[float, str], None] | None = None,
    chunk_s: int = f0.PIECE_S,
) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"], Float[np.ndarray, " frames"]]:
    """Track F0, voicing and confidence, by ``settings.f0_method``.

    Args:
        samples: ``[n]`` float or int16 at ``sample_rate_hz``, which must be the settings' rate.
        sample_rate_hz: The rate of the samples.
        settings: Frame grid, method, range and threshold.
        progress: Called with a fraction and a text.
        chunk_s: Length of the pieces a long recording is tracked in, an even number of seconds.

    Returns:
        F0 in Hz (0 where the tracker gives none), whether it is voiced, and the confidence (0..1) of each frame.

    Raises:
        ModelError: if the rates differ, or the method's package is not installed.
    """
    if sample_rate_hz != settings.sample_rate_hz:
        raise ModelError(
            f"the samples have {sample_rate_hz} Hz, the settings say {settings.sample_rate_hz} Hz; resample them first."
        )
    method, low_hz, high_hz = F0_METHODS[settings.f0_method], settings.f0_min_hz, settings.f0_max_hz
    track = f0.in_pieces(method.track, samples, sample_rate_hz, low_hz, high_hz, chunk_s, progress)
    n_frames = units.frame_count(len(samples), settings.hop_samples)
    f0_hz, confidence = f0.to_grid(track, n_frames, settings.hop_samples, sample_rate_hz, settings.voicing_threshold)
    return f0_hz, (confidence >= settings.voicing_threshold) & (f0_hz > 0), confidence
