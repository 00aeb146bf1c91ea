"""The machine a training runs on: device and precision, a batch in pieces, its status, and who asks it to stop."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from svclib.utils.errors import TrainingError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def precision_for(device: str) -> str:
    """bf16 on GPUs that compute it (compute capability 8 and newer), fp16 on older ones, fp32 on the CPU."""
    if device != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"


def device_sentence() -> str:
    """Which GPU there is and what it means for the time."""
    if not torch.cuda.is_available():
        return (
            "No GPU here: ddsp_small trains on the CPU, with a first voice after about 15 minutes; the full preset "
            "ddsp would take days. On Colab, choose Runtime > Change runtime type > T4 GPU."
        )
    card = torch.cuda.get_device_properties(0)
    return (
        f"GPU: {card.name} with {card.total_memory / 2**30:.0f} GB, computing in {precision_for('cuda')}: the full "
        "preset ddsp is the one to train; the remaining time is shown after the first steps."
    )


def accelerator(device: str, precision: str):
    """Accelerate's view of the machine, made anew for each session of a notebook."""
    if device not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"device is '{device}'; it has to be auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError(f"cuda was asked for, but: {device_sentence()}")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    precision = precision_for("cpu" if on_cpu else "cuda") if precision == "auto" else precision
    if precision == "fp16" and on_cpu:
        raise TrainingError("precision fp16 needs a GPU; choose auto.")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # a notebook's earlier training may have used another
    return Accelerator(
        cpu=on_cpu,
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


class LossOf(nn.Module):
    """A model's loss as a forward pass, so that accelerate can wrap it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict, generator: torch.Generator):
        """The loss and its parts."""
        return self.model.loss(batch, generator)


@torch.no_grad()
def is_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in a tensor: both reach its extremes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor))


def pieces(batch: dict, accelerator: Any, size: int):
    """This process's rows of a batch, at most ``size`` at a time: the piece, which rows it holds, and its weight.

    Losses weighted so and meaned over the processes add to the mean over the whole batch.
    """
    whole, n = len(batch["audio"]), accelerator.num_processes
    rows = range(whole)[accelerator.process_index :: n]
    for start in range(0, len(rows), size):
        chosen = list(rows[start : start + size])
        piece = batch if len(chosen) == whole else {k: v[chosen] for k, v in batch.items()}
        yield piece, chosen, n * len(chosen) / whole


def mean_of(figures: list[float], accelerator: Any) -> list[float]:
    """Mean of every process's figures, in every process."""
    if accelerator.num_processes == 1:
        return figures
    mine = torch.tensor(figures, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(mine, "mean").tolist()


def agreed(reason: str, accelerator: Any) -> str:
    """The main process's reason to stop, in every process: all end after the same step."""
    if accelerator.num_processes == 1:
        return reason
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([reason])[0]


@dataclasses.dataclass(frozen=True)
class Status:
    """Where a training stands, for a screen. ``message`` is the newest thing worth telling, or empty."""

    step: int
    steps: int
    loss: float | None
    validation_loss: float | None
    steps_per_s: float | None
    remaining_s: float | None
    last_saved_step: int | None
    last_saved_at: float | None
    message: str

    @property
    def last_saved_age_s(self) -> float | None:
        """Seconds since the last checkpoint of this session, or None."""
        return None if self.last_saved_at is None else time.time() - self.last_saved_at


class StopRequest:
    """Why the loop should end: interrupt, time, cancel, or another machine that took over (``elsewhere()``).

    Holds the signal handlers while the loop runs.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        deadline: float,
        cancelled: Callable[[], bool] | None,
        elsewhere: Callable[[], bool] = lambda: False,
    ):
        self.tell, self.deadline, self.cancelled, self.elsewhere = tell, deadline, cancelled, elsewhere
        self.interrupted, self.old, self.why = False, {}, ""

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self.interrupted:
            raise KeyboardInterrupt("stopped at once; what was saved before is whole")
        self.interrupted = True
        self.tell("Finishing this step, then saving; interrupt again to stop at once.")

    def reason(self) -> str:
        """Empty while training should go on."""
        if not self.why:
            self.why = self._look()
        return self.why

    def _look(self) -> str:
        if self.interrupted:
            return "interrupted"
        if time.monotonic() > self.deadline:
            return "minutes"
        if self.elsewhere():
            return "elsewhere"
        return "cancelled" if self.cancelled is not None and self.cancelled() else ""
