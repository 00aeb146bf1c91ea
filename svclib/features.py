"""Log-mel, loudness, F0 and voicing of a recording, all on the one centred frame grid of ``units``."""

import dataclasses

import numpy as np

F0_METHODS = ("swift", "crepe", "crepe_tiny", "pyin")


@dataclasses.dataclass(frozen=True)
class MelContract:
    """Everything that defines a log-mel spectrogram. The defaults are NSF-HiFiGAN's at 44.1 kHz.

    Two contracts are interchangeable only if every field is equal; datasets, checkpoints, instruments and vocoders
    carry theirs and refuse another (:meth:`require`).
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


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How recordings are measured.

    Attributes:
        sample_rate_hz: Rate of the stored audio and of the frame grid.
        hop_samples: Samples per frame.
        f0_method: One of ``F0_METHODS``.
        f0_min_hz, f0_max_hz: Search range of the tracker.
        voicing_threshold: Confidence from which a frame counts as voiced.
        loudness_n_fft: Window of the A-weighted loudness, samples.
        mel: The log-mel contract, or None where the model needs none; its rate and hop must equal the grid's.
    """

    sample_rate_hz: int = 16000
    hop_samples: int = 64
    f0_method: str = "swift"
    f0_min_hz: float = 50.0
    f0_max_hz: float = 1100.0
    voicing_threshold: float = 0.5
    loudness_n_fft: int = 512
    mel: MelContract | None = None


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
    """

    settings: FeatureSettings
    n_samples: int
    f0_hz: np.ndarray
    voiced: np.ndarray
    confidence: np.ndarray
    loudness_db: np.ndarray
    log_mel: np.ndarray | None = None
