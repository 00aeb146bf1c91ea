"""One session of a training run: settings, options, device, status, result, and the conditions that stop it."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svclib.models.layers import PRECISIONS, resolve_precision
from svclib.utils.errors import TrainingError
from svclib.utils.serialization import Settings, setting

DEVICES = ("auto", "cpu", "cuda", "mps")
BASE = "base"


@dataclasses.dataclass(frozen=True)
class TrainingSettings(Settings):
    """Hyperparameters of a training run."""

    batch_size: int = setting(16, 1, 4096)  # segments per step, over all GPUs together
    segment_s: float = setting(4.0, 0.1, 60.0)  # length of a segment
    steps: int = setting(40000, 1, 10_000_000)  # of the run, over all its sessions
    # Adam's rate is learning_rate * learning_rate_decay ** (step / decay_steps).
    learning_rate: float = setting(3e-4, 1e-8, 0.1)
    learning_rate_decay: float = setting(0.98, 0.01, 1.0)
    decay_steps: int = setting(10000, 1, 10_000_000)
    adam_eps: float = setting(1e-7, 1e-12, 1e-2)
    clip_norm: float = setting(3.0, 1e-3, 1e4)  # largest global norm of the gradient
    # Of the moving average of the weights, which is exported; early steps use (1 + n) / (10 + n).
    ema_decay: float = setting(0.999, 0.0, 0.99999)
    # A run from an instrument averages all its steps until ema_decay forgets faster (Izmailov et al. 2018,
    # arXiv:1803.05407); the instrument's weights, which know words that a few minutes of one voice unlearn, count as
    # so many (Wortsman et al. 2022, arXiv:2109.01903).
    init_average_steps: int = setting(200, 0, 1_000_000)
    save_every_steps: int = setting(500, 1, 1_000_000)  # a checkpoint is due after these steps or minutes
    save_every_minutes: float = setting(5.0, 0.01, 240.0)
    validate_every_steps: int = setting(500, 1, 1_000_000)  # interval of held-out loss and previews
    keep_checkpoints: int = setting(3, 2, 100)  # the newest
    # auto: bf16 where the hardware computes in it, else fp16 with loss scaling on a GPU and fp32 on a CPU.
    precision: str = setting("auto", choices=PRECISIONS)
    seed: int = setting(0, 0, 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """Options of one session of a run."""

    steps: int | None = None  # instead of the preset's
    minutes: float | None = None  # stop and save after so many minutes of this session
    seed: int | None = None  # instead of the preset's
    device: str = "auto"  # or cpu, cuda, mps (Apple's GPUs)
    # An instrument whose weights a new run starts from, None for fresh weights; the shipped base model is one where the
    # preset builds the same network, else fresh weights are taken.
    init: str | Path | None = BASE
    from_step: int | None = None  # resume from the checkpoint of this step; later checkpoints no longer count
    allow_changed_dataset: bool = False  # resume although the dataset has changed since the last session
    allow_unpitched: bool = False  # begin although no recording of the dataset, or of one of its singers, has a note
    take_over: bool = False  # train although another machine trains this run; that one then saves and stops
    # Figures of the EMA model at every validation (conversion.evaluate). With one called "score" the best checkpoint is
    # that of the highest instead of the lowest loss.
    score: Callable[[nn.Module], dict[str, float]] | None = None

    def __post_init__(self):
        if self.device not in DEVICES:
            raise TrainingError(f"device is {self.device!r}; expected one of {', '.join(DEVICES)}.")


@dataclasses.dataclass(frozen=True)
class Status:
    """Progress of a session; ``message`` is the newest message, or empty."""

    step: int
    steps: int
    loss: float | int | None = None
    validation_loss: float | int | None = None
    steps_per_s: float | int | None = None
    remaining_s: float | int | None = None
    last_saved_step: int | None = None
    last_saved_at: float | int | None = None
    message: str = ""

    @property
    def last_saved_age_s(self) -> float | None:
        """Seconds since the last checkpoint of this session, or None."""
        return None if self.last_saved_at is None else time.time() - self.last_saved_at


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Result of a session: step reached, newest losses, reason and message of its end, all messages.

    ``reason``: ``finished``, ``minutes``, ``interrupted``, ``cancelled`` or ``elsewhere`` (another machine took over).
    """

    run: Path
    step: int
    steps: int
    loss: float | int | None
    validation_loss: float | int | None
    reason: str
    message: str
    messages: list[str]


class StopRequest:
    """Reason to end the training loop: SIGINT or SIGTERM while the ``with`` block lasts, or one of named conditions.

    The first signal finishes the step, with a message to ``announce``; the second raises KeyboardInterrupt.
    """

    def __init__(self, announce: Callable[[str], None], conditions: dict[str, Callable[[], bool]]):
        self.announce, self.conditions = announce, conditions
        self.interrupted, self.old_handlers, self.why = False, dict[int, Any](), ""

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.old_handlers = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, frame) -> None:
        if self.interrupted:
            raise KeyboardInterrupt("Stopped at once; what was saved before is complete.")
        self.interrupted = True
        self.announce("Finishing this step, then saving; interrupt again to stop at once.")

    def reason(self) -> str:
        """Empty while training should go on; the first reason stays."""
        conditions = {"interrupted": lambda: self.interrupted, **self.conditions}
        self.why = self.why or next((name for name, holds in conditions.items() if holds()), "")
        return self.why


# Device ---------------------------------------------------------------------------------------------------------------


def gpu() -> str | None:
    """The kind of GPU of this machine, as a device of torch: ``cuda``, ``mps``, or None."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


def device_summary() -> str:
    """The GPU or its absence, and what that means for training time."""
    if gpu() == "mps":
        return (
            "GPU: Apple's (MPS), computing in fp32; svclib was not tried on one yet. Where training fails or is slow, "
            "choose the device cpu: ddsp_small has a first voice there after about 15 minutes."
        )
    if gpu() is None:
        return (
            "No GPU here, so training is on the CPU: ddsp_small and diffusion_small need about 15 minutes for a first "
            "voice; ddsp and diffusion would take days. On Colab, choose Runtime > Change runtime type > T4 GPU."
        )
    card, precision = torch.cuda.get_device_properties(0), resolve_precision("cuda")
    return (
        f"GPU: {card.name} with {card.total_memory / 2**30:.0f} GB, computing in {precision}: the full presets "
        "(ddsp, diffusion) fit; the remaining time is shown after the first steps."
    )


def make_accelerator(device: str, precision: str):
    """An ``accelerate.Accelerator`` for this session."""
    device = gpu() or "cpu" if device == "auto" else device
    if device not in ("cpu", gpu()):
        raise TrainingError(f"Device {device} is not available. {device_summary()}")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    precision = resolve_precision(device, precision)
    if precision == "fp16" and device != "cuda":
        raise TrainingError("Precision fp16 needs a GPU of NVIDIA or AMD; choose auto.")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier session of a notebook may use another
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=device == "cpu", mixed_precision={"fp32": "no"}.get(precision, precision), kwargs_handlers=[unused]
    )


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


@torch.no_grad()
def all_finite(tensor: torch.Tensor) -> bool:
    """False if a tensor holds NaN or infinity: either reaches its minimum or maximum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(tensor))
