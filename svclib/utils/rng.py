"""Random draws of a training batch that do not depend on how the batch is divided among processes.

A plain ``torch.Generator`` draws for the batch it is given. A :class:`RowGenerator` draws for the whole batch and
returns the rows of the part that is computed here: training on two processes, or in two micro-batches, uses the same
noise as on the whole.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class RowGenerator(torch.Generator):
    """A generator with the rows of the whole batch that are computed here, made by :func:`for_rows`."""

    rows: list[int]
    of: int


def seed_of(seed: int, step: int) -> int:
    """The seed of one step's noise, 63 bits; neighbouring steps and seeds have nothing in common."""
    return int(np.random.SeedSequence([seed, step, 0]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def for_rows(seed: int, rows: Sequence[int], of: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for rows ``rows`` of a batch of ``of`` rows; a plain one where that is the whole batch in order."""
    if list(rows) == list(range(of)):
        return torch.Generator(device).manual_seed(seed)
    generator = RowGenerator(device)
    generator.manual_seed(seed)
    generator.rows, generator.of = list(rows), of
    return generator


def first_rows(generator: torch.Generator, batch: int, wanted: int) -> tuple[int, float]:
    """Narrow a generator of ``batch`` rows to the first ``wanted`` rows of the whole batch, for a part of the loss.

    Returns the number of rows computed here to take, at least one, and a factor: the mean over them, weighted by the
    share of the rows here and by the factor, is the mean over the wanted rows of the whole batch (0 if none is here).
    """
    if not isinstance(generator, RowGenerator):
        return min(batch, wanted), 1.0
    wanted = min(generator.of, wanted)
    here = [row for row in generator.rows if row < wanted]
    factor = len(here) / wanted * generator.of / len(generator.rows)
    generator.rows, generator.of = here or [0], wanted
    return max(1, len(here)), factor


def uniform(shape: tuple[int, ...], generator: torch.Generator, dim: int = 0) -> Tensor:
    """Uniform on 0 .. 1, float32 on the generator's device; ``dim`` is the batch's."""
    return _draw(torch.rand, shape, generator, dim)


def normal(shape: tuple[int, ...], generator: torch.Generator, dim: int = 0) -> Tensor:
    """Standard normal, float32 on the generator's device; ``dim`` is the batch's."""
    return _draw(torch.randn, shape, generator, dim)


def stratified_uniform(batch: int, generator: torch.Generator) -> Tensor:
    """One number from each of ``batch`` equal parts of 0 .. 1, in random order: less variance than free draws."""
    whole = getattr(generator, "of", batch)
    order = torch.randperm(whole, generator=generator, device=generator.device)
    drawn = (order + torch.rand(whole, generator=generator, device=generator.device)) / whole
    return drawn[generator.rows] if isinstance(generator, RowGenerator) else drawn


def _draw(kind: Callable, shape: tuple[int, ...], generator: torch.Generator, dim: int) -> Tensor:
    if not isinstance(generator, RowGenerator):
        return kind(shape, generator=generator, device=generator.device)
    if shape[dim] != len(generator.rows):
        raise ValueError(f"{shape[dim]} rows are drawn, but the generator is for {len(generator.rows)}.")
    whole = kind((*shape[:dim], generator.of, *shape[dim + 1 :]), generator=generator, device=generator.device)
    return whole.index_select(dim, torch.tensor(generator.rows, device=whole.device))
