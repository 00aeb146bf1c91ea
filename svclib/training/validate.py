"""What was learnt, on what is held out: the loss of a fixed choice of pieces, and a few of them to listen to."""

from typing import Any

import numpy as np
import torch
from torch import nn

N_PREVIEWS = 3
MAX_BATCHES, BATCH_SIZE = 8, 8
QUIETEST = 0.01  # peak of a piece that is worth listening to


def held_out(dataset: Any, n_frames: int, device: torch.device) -> list[dict]:
    """A fixed choice of held-out pieces of ``n_frames``, spread over all of them; empty where nothing is held out."""
    every = dataset.validation_batches(BATCH_SIZE, n_frames)
    spread = np.linspace(0, len(every) - 1, min(len(every), MAX_BATCHES)).round().astype(int)
    return [{k: v.to(device) for k, v in every[i].items()} for i in spread]


@torch.no_grad()
def loss(model: nn.Module, batches: list[dict]) -> float:
    """Mean of the model's validation loss over all pieces."""
    losses = [(float(model.validation_loss(b)), len(b["audio"])) for b in batches]
    return sum(v * n for v, n in losses) / sum(n for _, n in losses)


@torch.no_grad()
def previews(model: nn.Module, batches: list[dict]) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """Up to ``N_PREVIEWS`` pieces in which something sounds, always the same ones, and what the model makes of them.

    Args:
        model: Has ``reconstruct`` and ``validation_loss``.
        batches: From :func:`held_out`.

    Returns:
        ``(originals, made, scores)``: audio ``[samples]``, and the loss of each piece.
    """
    rows = [(b, i) for b in batches for i in range(len(b["audio"])) if float(b["audio"][i].abs().max()) > QUIETEST]
    picked = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), N_PREVIEWS)).astype(int))]
    pieces = [{k: v[i : i + 1] for k, v in b.items()} for b, i in picked]
    originals = [p["audio"][0].float().cpu().numpy() for p in pieces]
    made = [model.reconstruct(p, seed=0)[0].float().cpu().numpy() for p in pieces]
    return originals, made, [float(model.validation_loss(p)) for p in pieces]
