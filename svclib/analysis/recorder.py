"""Watching a sampler walk: a :class:`Recorder` keeps what each step saw and guessed, and changes no bit of the result.

It is the ``callback`` of any sampler (``samplers.sample``, ``diffwave_process.sample``). With a prepared mel denoiser
it also listens at some of its layers, through forward hooks. Memory is bounded: where a walk has more steps than may
be kept, one step of each of equally many is chosen while it runs, by the rule of ``selection.select_steps``.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.analysis.step_selection import select_steps
from svclib.analysis.trace import Trace
from svclib.models.diffusion.samplers import SamplerStep
from svclib.utils.errors import ConversionError

TAPS = ("step", "noise", "condition")  # what is heard at a block: its input + step, and the same with the condition
MAX_BYTES = 256 << 20


class Recorder:
    """Callback that keeps copies in float16.

    Args:
        keep: Most steps to keep; all by default.
        max_bytes: Most memory for states, whatever ``keep`` says.
        prepared: A ``denoiser.Prepared`` to listen to; needs ``with recorder.hooked():`` around the walk.
        blocks: Which residual blocks to listen to, from 0; the first, the middle and the last by default.
    """

    def __init__(
        self,
        keep: int | None = None,
        max_bytes: int = MAX_BYTES,
        prepared: Any = None,
        blocks: Sequence[int] | None = None,
    ):
        if keep is not None and keep < 2:
            raise ConversionError(f"{keep} steps are to be kept; a trace needs at least 2, the first and the last.")
        self.keep, self.max_bytes, self.notice = keep, max_bytes, ""
        self.taps = None if prepared is None else _Taps(prepared, blocks)
        self.rows: list[dict] = []
        self.waiting: list[dict] = []  # steps of the interval that is going on
        self.edges: np.ndarray | None = None
        self.n_calls = 0

    def hooked(self):
        """Context in which hidden features are collected; does nothing without a prepared denoiser."""
        return contextlib.nullcontext() if self.taps is None else self.taps

    def discard(self) -> None:
        """Drop what the layers said since the last step: somebody else asked the network in between."""
        if self.taps is not None:
            self.taps.sums, self.taps.piece = {}, -1

    def __call__(self, step: SamplerStep) -> None:
        """Keep one step."""
        if step.x_t.ndim < 2 or step.x_t.shape[0] != 1:
            raise ConversionError(f"The signal has shape {tuple(step.x_t.shape)}; a trace follows a batch of one.")
        if self.edges is None:
            self._plan(step)
        row = {
            "index": step.index,
            "t": step.t,
            "alpha": step.signal_level,
            "sigma": step.noise_level,
            "x_t": _half(step.x_t),
            "x0_hat": _half(step.x0_hat),
            "features": {} if self.taps is None else self.taps.take(),
        }
        if len(self.edges) - 1 == self.n_calls:
            self.rows.append(row)
            return
        self.waiting.append({**row, "pooled": _pooled(row["x0_hat"])})
        if step.index + 1 in self.edges:
            self._close(first=len(self.rows) == 0, last=step.index + 1 == self.n_calls)

    def _plan(self, step: SamplerStep) -> None:
        self.n_calls = step.n_calls
        n, wanted = step.n_calls, min(step.n_calls, self.keep or step.n_calls)
        state_bytes = 4 * step.x_t[0].numel()
        room = self.max_bytes // state_bytes
        fitting = [k for k in range(2, min(wanted, n - 1) + 1) if k + -(-n // k) <= room]  # kept, and one interval
        k = n if wanted == n <= room else max(fitting, default=0)
        if not k:
            raise ConversionError(
                f"One step of this signal takes {state_bytes / 1e6:.1f} MB and a trace at most "
                f"{self.max_bytes / 1e6:.1f} MB; take a shorter stretch or fewer steps."
            )
        if k < wanted:
            limit = f"memory stays below {self.max_bytes / 1e6:.0f} MB"
            self.notice = f"{k} of {n} steps were kept, so that {limit}."
        self.edges = np.arange(k + 1) * step.n_calls // k

    def _close(self, first: bool, last: bool) -> None:
        pooled = np.stack([row.pop("pooled") for row in self.waiting])
        chosen = 0 if first else len(pooled) - 1 if last else select_steps(pooled, 1, ends=False)[0]
        self.rows.append(self.waiting[chosen])
        self.waiting = []

    def trace(
        self,
        result: Tensor,
        kind: str = "mel",
        low: Any = None,
        high: Any = None,
        conditions: Mapping | None = None,
        **info,
    ) -> Trace:
        """What was kept, with the result of the walk.

        Args:
            result: Where the walk ended, ``[1, mels, frames]`` or ``[1, samples]``, in the scale of the states.
            kind: ``mel`` or ``wave``: what the states are.
            low: Log-mels ``[mels]`` (tensor, array or list) that -1 of a mel state means; None only for ``wave``.
            high: The same of 1.
            conditions: What was asked for, by name, ``[frames]`` each; stored as bool or float32. None if nothing is
                to be kept of it.
            **info: Plain JSON values about the run; a ``mel`` trace needs ``mel`` (its contract as JSON), a ``wave``
                trace ``sample_rate_hz``.

        Returns:
            The kept steps, states and result as float16; the ``notice`` in its ``info`` says where memory left some
            out.

        Raises:
            ConversionError: if no step arrived, values were not finite, or scale, conditions and states do not fit together.
        """
        if not self.rows:
            raise ConversionError("No step was seen: the walk did not call the recorder.")
        stacked = {name: np.stack([row[name] for row in self.rows]) for name in ("x_t", "x0_hat")}
        numbers = {name: np.array([row[name] for row in self.rows], float) for name in ("t", "alpha", "sigma")}
        empty = np.zeros(0, np.float32)
        return Trace(
            kind,
            **stacked,
            **numbers,
            result=_half(result),
            n_calls=self.n_calls,
            index=np.array([row["index"] for row in self.rows], np.int64),
            features=_features([row["features"] for row in self.rows]),
            conditions={name: _numbers(value) for name, value in (conditions or {}).items()},
            low=empty if low is None else _numbers(low),
            high=empty if high is None else _numbers(high),
            info={**info, "notice": self.notice},
        )


def capture(
    model: Any,
    condition: Tensor,
    method: str | None = None,
    steps: int | None = None,
    shallow: int | None = None,
    seed: int = 0,
    precision: str = "auto",
    keep: int | None = None,
    features: bool = True,
    max_bytes: int = MAX_BYTES,
    conditions: Mapping | None = None,
    label: str = "",
    prepared: Any = None,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    blocks: Sequence[int] | None = None,
    temperature: int | float | None = None,
) -> Trace:
    """Let a diffusion model sing one song and keep what happened; the song is the same as without.

    Args:
        model: A ``diffusion.DiffusionModel``.
        condition: ``[1, dims, frames]`` from ``model.condition``.
        method: One of ``samplers.METHODS``; the model's own if None.
        steps: Of the sampler; the model's own number if None.
        shallow: Step 1 .. ``n_steps`` to which the coarse mel is noised to start from; None starts from pure noise.
        seed: Of the first noise and, for ``ddpm``, of the walk.
        precision: One of ``denoiser.PRECISIONS``; unread where ``prepared`` is given.
        keep: Most steps to keep, at least 2; all if None.
        features: Whether to listen at the layers too.
        max_bytes: Most memory for states; where it is not enough, fewer steps are kept than ``keep`` says.
        conditions: What to keep of what was asked: ``f0_hz``, ``voiced``, ``loudness_db``, each ``[frames]``.
        label: A name for the run.
        prepared: A ``denoiser.Prepared`` of this condition to use again; None prepares one.
        callback: Sees every step after it was kept. It may ask the same network itself; that is not listened to.
        cancelled: Asked before every call of the denoiser and each of its pieces; True raises ``Cancelled``.
        blocks: Which residual blocks to listen to, from 0; the first, the middle and the last if None.
        temperature: Factor 0 .. 2 of all noise of the walk; the model's own if None.

    Returns:
        A ``mel`` trace with the settings of the walk in its ``info``.

    Raises:
        ConversionError, ModelError, Cancelled: as those say.
    """
    prepared = prepared or model.prepare(condition, precision, cancelled=cancelled)
    recorder = Recorder(keep, max_bytes, prepared if features else None, blocks)

    def watch(step: SamplerStep) -> None:
        recorder(step)
        if callback is not None:
            callback(step)
            recorder.discard()

    with recorder.hooked():
        log_mel = model.sample(
            condition,
            method,
            steps,
            shallow,
            seed,
            precision,
            callback=watch,
            cancelled=cancelled,
            prepared=prepared,
            temperature=temperature,
        )
    return recorder.trace(
        model.scale(log_mel),
        low=model.mel_low,
        high=model.mel_high,
        conditions=conditions,
        label=label,
        method=method or model.settings.sampler,
        seed=seed,
        shallow=shallow,
        mel=model.contract.to_json(),
        precision=prepared.precision,
        prediction=model.settings.prediction,
        condition_dropout=float(model.settings.condition_dropout),
    )


class _Taps:
    """Forward hooks on a prepared denoiser: mean and standard deviation over time at a few places.

    A long song passes in pieces with a halo; the halo is left out, so the pooled values are those of the whole.
    """

    def __init__(self, prepared, blocks=None):
        self.denoiser, self.pieces = prepared.denoiser, prepared.pieces
        n = len(self.denoiser.stack.blocks)
        self.blocks = sorted({0, n // 2, n - 1} if blocks is None else set(blocks))
        if self.blocks and not 0 <= self.blocks[0] <= self.blocks[-1] < n:
            raise ConversionError(f"Blocks {self.blocks} are to be heard; this network has blocks 0 to {n - 1}.")
        self.piece, self.sums, self.handles = -1, {}, []

    def __enter__(self):
        add = self.handles.append
        add(self.denoiser.step.register_forward_hook(self._step))
        for i in self.blocks:
            block, seen = self.denoiser.stack.blocks[i], {}
            add(block.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0])))
            add(
                block.step.register_forward_hook(
                    lambda _, args, out, i=i, seen=seen: self._pool(f"noise {i + 1}", seen.pop("x"), out[0])
                )
            )
            add(block.dilated.register_forward_hook(lambda _, args, out, seen=seen: seen.update(y=out)))
            # The block adds the condition to what the convolution put out, in place; here it has just done so.
            add(
                block.out.register_forward_pre_hook(
                    lambda _, args, i=i, seen=seen: self._pool(f"condition {i + 1}", seen.pop("y"))
                )
            )
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _step(self, module, args, out) -> None:
        self.piece = (self.piece + 1) % len(self.pieces)
        self.sums["step"] = out[0]

    def _pool(self, tap: str, x: Tensor, added: Tensor | None = None) -> None:
        start, stop, low, _ = self.pieces[self.piece]
        x = x[0, :, start - low : stop - low].float()
        # Two plain passes: torch.var_mean takes many times as long on a CPU. The rest waits until the walk is over.
        self.sums.setdefault(tap, []).append((stop - start, x.sum(dim=1), torch.linalg.vector_norm(x, dim=1), added))

    def take(self) -> dict:
        """The sums of one call, for :func:`_features`, and begin anew."""
        found, self.sums, self.piece = self.sums, {}, -1
        return found


def _features(calls: list[dict]) -> dict[str, np.ndarray]:
    """What the layers said at every kept call, ``[calls, values]`` by tap, from sums over the pieces: of the step its
    embedding, elsewhere mean and standard deviation over time."""
    found = {}
    for tap, first in calls[0].items():
        if tap == "step":
            found[tap] = _double([call[tap] for call in calls]).astype(np.float32)
            continue
        pieces = range(len(first))
        total = sum(first[k][0] for k in pieces)
        mean = sum(_double([call[tap][k][1] for call in calls]) for k in pieces) / total
        power = sum(_double([call[tap][k][2] for call in calls]) ** 2 for k in pieces) / total
        spread = np.sqrt(np.maximum(power - mean**2, 0))
        if first[0][3] is not None:
            mean = mean + _double([call[tap][0][3] for call in calls])
        found[tap] = np.concatenate([mean, spread], axis=1).astype(np.float32)
    return found


def _double(rows: list[Tensor]) -> np.ndarray:
    return torch.stack(rows).float().cpu().numpy().astype(np.float64)


def _half(x: Tensor) -> np.ndarray:
    return x[0].detach().clamp(-60000, 60000).to(torch.float16).cpu().numpy()


def _pooled(state: np.ndarray) -> np.ndarray:
    """A state as one row: its mean over time by band; a waveform as the level of 256 stretches."""
    values = state.astype(np.float32)
    if values.ndim == 2:
        return values.mean(axis=1)
    return np.array([np.sqrt(np.square(part).mean()) for part in np.array_split(values, min(256, len(values)))])


def _numbers(value) -> np.ndarray:
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return value if value.dtype == bool else value.astype(np.float32)
