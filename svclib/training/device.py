"""Device, precision, and the split of a batch over processes and micro-batches."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from svclib.models.layers import resolve_precision
from svclib.utils.errors import TrainingError


def device_summary() -> str:
    """The GPU or its absence, and what that means for training time."""
    if not torch.cuda.is_available():
        return (
            "No GPU here: ddsp_small trains on the CPU, with a first voice after about 15 minutes; the full preset "
            "ddsp would take days. On Colab, choose Runtime > Change runtime type > T4 GPU."
        )
    card = torch.cuda.get_device_properties(0)
    precision = resolve_precision("cuda", "training")
    return (
        f"GPU: {card.name} with {card.total_memory / 2**30:.0f} GB, computing in {precision}: the full preset ddsp is "
        "the one to train; the remaining time is shown after the first steps."
    )


def make_accelerator(device: str, precision: str):
    """An ``accelerate.Accelerator`` for this session."""
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"Device cuda is not available. {device_summary()}")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    precision = resolve_precision("cpu" if on_cpu else "cuda", "training", precision)
    if precision == "fp16" and on_cpu:
        raise TrainingError("Precision fp16 needs a GPU; choose auto.")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier session of a notebook may use another
    return Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class LossModule(nn.Module):
    """A model's loss as a forward pass, so that accelerate can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict, generator: torch.Generator):
        """The loss and its parts."""
        return self.model.loss(batch, generator)


@torch.no_grad()
def all_finite(tensor: torch.Tensor) -> bool:
    """False if a tensor holds NaN or infinity: either reaches its minimum or maximum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor))


def micro_batches(batch: dict, accelerator: Any, size: int) -> Iterator[tuple[dict, list[int], float]]:
    """This process's rows of a batch, at most ``size`` at a time: the micro-batch, its rows, and its weight.

    Weighted so and averaged over the processes, the losses add up to the mean over the whole batch.
    """
    n_rows, n = len(batch["audio"]), accelerator.num_processes
    rows = range(n_rows)[accelerator.process_index :: n]
    for start in range(0, len(rows), size):
        chosen = list(rows[start : start + size])
        piece = batch if len(chosen) == n_rows else {k: v[chosen] for k, v in batch.items()}
        yield piece, chosen, n * len(chosen) / n_rows


def broadcast_flag(reason: str, accelerator: Any) -> str:
    """The main process's reason to stop, in every process: all end after the same step."""
    if accelerator.num_processes == 1:
        return reason
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([reason])[0]
