"""ConditionInputs: the per-frame measurements that travel from features through the dataset to the model.

A module of its own because every folder from features on passes it along.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svclib.features.f0 import fill_unvoiced


@dataclasses.dataclass(frozen=True, eq=False)
class ConditionInputs:
    """Frame-wise tensors of recordings on one frame grid and one device.

    Attributes:
        log_mel: In the log base of its mel configuration.
        f0_hz: Continuous: interpolated over unvoiced frames; 0 only where a recording has no pitch at all.
        voiced: Whether a frame has a pitch.
        loudness_db: A-weighted, -80 .. 0.
        content: Cached content features (``FeatureSettings.units``), or None where they were not measured.
    """

    log_mel: Float[Tensor, "batch frames mels"]
    f0_hz: Float[Tensor, "batch frames"]
    voiced: Bool[Tensor, "batch frames"]
    loudness_db: Float[Tensor, "batch frames"]
    content: Float[Tensor, "batch frames dims"] | None = None

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> "ConditionInputs":
        """The inputs in a batch of ``Dataset.batch``, whose F0 is continuous already."""
        fields = {name: batch[name] for name in ("log_mel", "f0_hz", "voiced", "loudness_db")}
        return cls(**fields, content=batch.get("content"))

    @classmethod
    def from_arrays(
        cls,
        log_mel: np.ndarray,
        f0_hz: np.ndarray,
        voiced: np.ndarray,
        loudness_db: np.ndarray,
        content: np.ndarray | None = None,
        device: str | torch.device = "cpu",
    ) -> "ConditionInputs":
        """A batch of one from arrays ``[frames, ...]``; fills the F0 over unvoiced frames."""
        filled = fill_unvoiced(np.asarray(f0_hz), np.asarray(voiced))
        mel, f0, level = (
            torch.as_tensor(np.asarray(x), dtype=torch.float32, device=device)[None]
            for x in (log_mel, filled, loudness_db)
        )
        on = torch.as_tensor(np.asarray(voiced), dtype=torch.bool, device=device)[None]
        vectors = None if content is None else torch.as_tensor(np.asarray(content), device=device)[None]
        return cls(mel, f0, on, level, vectors)

    def frames(self, start: int, stop: int) -> "ConditionInputs":
        """The frames ``start:stop`` of every recording."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return ConditionInputs(*(None if x is None else x[:, start:stop] for x in values))

    def __len__(self) -> int:
        """Number of frames."""
        return self.log_mel.shape[1]
