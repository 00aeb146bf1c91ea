"""Codes of a frozen content encoder, computed once per recording and cut to the windows of a batch."""

import numpy as np
import torch
from torch import Tensor

from svclib.features.condition_inputs import ConditionInputs

N_VARIANTS = 4
MAX_BYTES = 10**9  # of codes in memory; beyond it recordings get fewer variants


class ContentCache:
    """Fills ``batch["content"]`` for encoders that have ``variants``: the recording's own code in validation, in
    training also codes of augmentations of it, while the target stays the recording.

    Args:
        dataset: A ``Dataset``.
        encoder: A content encoder with ``dims`` and ``variants``.
        seed: Of the augmentations, and of which one a window gets.
    """

    def __init__(self, dataset, encoder, seed: int):
        self.dataset, self.encoder, self.seed, self.codes = dataset, encoder, seed, {}
        frame_bytes = 2 * encoder.dims * sum(r["n_frames"] for r in dataset.recordings)
        self.n_variants = max(1, min(N_VARIANTS, MAX_BYTES // max(1, frame_bytes)))

    def fill(self, batch: dict[str, Tensor], step: int | None = None) -> dict[str, Tensor]:
        """The batch with its content; ``step`` None takes the plain codes."""
        n_frames = batch["f0_hz"].shape[1]
        rows = list(zip(batch["recording"].tolist(), batch["start_frame"].tolist(), strict=True))
        which = np.zeros(len(rows), int)
        if step is not None:
            which = np.random.default_rng([self.seed, step, 2]).integers(self.n_variants, size=len(rows))
        content = torch.zeros(len(rows), n_frames, self.encoder.dims)
        for row, ((recording, start), variant) in enumerate(zip(rows, which, strict=True)):
            code = self._codes(recording)[variant, start : start + n_frames]
            content[row, : len(code)] = code
        return {**batch, "content": content.to(batch["f0_hz"].device)}

    def _codes(self, recording: int) -> Tensor:
        """Every variant of a recording, float16 ``[variants, frames, dims]``."""
        if recording not in self.codes:
            found = self.dataset.features(recording)
            device = self.encoder.basis.device
            inputs = ConditionInputs.from_arrays(
                found.log_mel, found.f0_hz, found.voiced, found.loudness_db, device=device
            )
            seed = int(np.random.SeedSequence([self.seed, recording]).generate_state(1)[0])
            self.codes[recording] = self.encoder.variants(inputs, self.n_variants, seed).half().cpu()
        return self.codes[recording]
