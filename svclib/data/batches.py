"""Batches for training and validation: prefetching, held-out segments, cached codes of a frozen content encoder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.features.extract import ConditionInputs

PREFETCHED = 2  # batches
N_VARIANTS = 4
MAX_BYTES = 10**9  # of codes in memory; beyond it recordings get fewer variants


class BatchLoader:
    """Loads the batches of a training; those of the next steps are prefetched by a thread.

    A dataset without a true attribute ``thread_safe`` is read synchronously. Copies to a GPU are asynchronous, from
    pinned memory.
    """

    def __init__(self, dataset: Any, seed: int, batch_size: int, n_frames: int, device: torch.device):
        self._dataset, self._arguments, self._device = dataset, (seed, batch_size, n_frames), device
        self._pool = ThreadPoolExecutor(1, "svclib-batches") if getattr(dataset, "thread_safe", False) else None
        self._waiting: dict[int, Future] = {}

    def batch(self, step: int, last: int) -> dict[str, torch.Tensor]:
        """The batch of a step; up to ``last``, the next ones are prefetched."""
        if self._pool is None:
            return self._move(self._read(step))
        for ahead in range(step, min(step + PREFETCHED, last) + 1):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._pool.submit(self._read, ahead)
        return self._move(self._waiting.pop(step).result())

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> dict[str, torch.Tensor]:
        seed, batch_size, n_frames = self._arguments
        batch = self._dataset.batch(seed, step, batch_size, n_frames)
        return {k: v.pin_memory() for k, v in batch.items()} if self._device.type == "cuda" else batch

    def _move(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(self._device, non_blocking=True) for k, v in batch.items()}


class ValidationBatches(Sequence):
    """The validation split in segments; each batch is read on access."""

    def __init__(self, dataset: Any, batch_size: int, n_frames: int, device="cpu"):
        self._dataset, self._batch_size, self._n_frames, self._device = dataset, batch_size, n_frames, device
        self._windows = [
            (index, max(0, min(start, dataset.recordings[index]["n_frames"] - n_frames)))
            for index in dataset.indices("validation")
            for start in range(0, dataset.recordings[index]["n_frames"], n_frames)
        ]

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"batch {position} of {len(self)}")
        start = position % len(self) * self._batch_size
        windows = self._windows[start : start + self._batch_size]
        return self._dataset._collect(windows, self._n_frames, self._device)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[i] for i in range(len(self)))


class ContentCache:
    """Fills ``batch["content"]`` for encoders that have ``variants``: the recording's own code in validation, in
    training also codes of augmentations of it, while the target stays the recording.

    Args:
        dataset: A ``Dataset``.
        encoder: A content encoder with ``dims`` and ``variants``.
        seed: Of the augmentations, and of which one a window gets.
    """

    def __init__(self, dataset: Any, encoder: Any, seed: int):
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
