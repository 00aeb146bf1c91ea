"""Recording of sampling runs: a sampler callback that keeps steps and pooled hidden features, and the choice of steps.

Recording changes no bit of the result. Memory is bounded: a long run is thinned out while it is recorded, one step per
interval, by :func:`select_steps`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.analysis.trace import Trace
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.utils.errors import ConversionError

MAX_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class CaptureOptions:
    """Options of a recorded sampling run.

    Attributes:
        sampling: Of the sampler.
        keep: Most steps to keep, at least 2; all if None.
        features: Whether to record hidden features.
        blocks: Blocks to record, from 0, or ``"all"``; the first, the middle and the last if None.
        max_bytes: Memory limit for states; takes precedence over ``keep``.
    """

    sampling: SamplingOptions = SamplingOptions()
    keep: int | None = None
    features: bool = True
    blocks: Sequence[int] | str | None = None
    max_bytes: int = MAX_BYTES


DEFAULTS = CaptureOptions()


class Recorder:
    """Sampler callback that keeps copies of the states in float16.

    Args:
        keep: Most steps to keep, at least 2; all by default.
        max_bytes: Memory limit for states; takes precedence over ``keep``.
        denoiser: A ``denoiser.CachedDenoiser`` whose hidden features are recorded inside ``with recorder.hooked():``.
        blocks: Blocks to record, from 0, or ``"all"``; the first, the middle and the last by default.
    """

    def __init__(
        self,
        keep: int | None = None,
        max_bytes: int = MAX_BYTES,
        denoiser: Any = None,
        blocks: Sequence[int] | str | None = None,
    ):
        if keep is not None and keep < 2:
            raise ConversionError(f"keep is {keep}; a trace needs at least 2 steps, the first and the last.")
        self.keep, self.max_bytes, self.notice = keep, max_bytes, ""
        self.taps = None if denoiser is None else _Taps(denoiser, blocks)
        self.rows: list[dict] = []
        self.pending: list[dict] = []  # steps of the current interval
        self.edges: np.ndarray | None = None
        self.n_calls = 0

    def hooked(self):
        """Context manager in which hidden features are recorded; does nothing without a denoiser."""
        return contextlib.nullcontext() if self.taps is None else self.taps

    def discard(self) -> None:
        """Drop features of denoiser calls since the last step that were not made by the sampler."""
        if self.taps is not None:
            self.taps.take()

    def __call__(self, step: SamplerStep) -> None:
        """Record one step."""
        if step.x_t.ndim < 2 or step.x_t.shape[0] != 1:
            raise ConversionError(f"The signal has shape {tuple(step.x_t.shape)}; expected a batch of one.")
        if self.edges is None:
            self._plan(step)
        row = {
            "index": step.index,
            "t": step.t,
            "alpha": step.alpha,
            "sigma": step.sigma,
            "x_t": _half(step.x_t),
            "x0_hat": _half(step.x0_hat),
            "features": {} if self.taps is None else self.taps.take(),
        }
        if len(self.edges) - 1 == self.n_calls:
            self.rows.append(row)
            return
        self.pending.append({**row, "pooled": _pooled(row["x0_hat"])})
        if step.index + 1 in self.edges:
            self._close(first=len(self.rows) == 0, last=step.index + 1 == self.n_calls)

    def _plan(self, step: SamplerStep) -> None:
        self.n_calls = n = step.n_calls
        most = min(n, self.keep or n)
        state_bytes = 4 * step.x_t[0].numel()
        room = self.max_bytes // state_bytes
        fitting = [k for k in range(2, min(most, n - 1) + 1) if k + -(-n // k) <= room]  # kept, and one interval
        k = n if most == n <= room else max(fitting, default=0)
        if not k:
            raise ConversionError(
                f"One step of this signal takes {state_bytes / 1e6:.1f} MB, of at most {self.max_bytes / 1e6:.1f} MB.",
                hint="Take a shorter excerpt or fewer steps.",
            )
        if k < most:
            self.notice = f"{k} of {n} steps were kept, so that memory stays below {self.max_bytes / 1e6:.0f} MB."
        self.edges = np.arange(k + 1) * n // k

    def _close(self, first: bool, last: bool) -> None:
        pooled = np.stack([row.pop("pooled") for row in self.pending])
        chosen = 0 if first else len(pooled) - 1 if last else select_steps(pooled, 1, ends=False)[0]
        self.rows.append(self.pending[chosen])
        self.pending = []

    def trace(
        self,
        result: Tensor,
        kind: str = "mel",
        low: Any = None,
        high: Any = None,
        conditions: Mapping | None = None,
        **info,
    ) -> Trace:
        """The recorded steps with the ``result`` of the sampling run, ``[1, mels, frames]`` or ``[1, samples]``.

        ``low`` and ``high``, ``conditions`` and ``info`` are those of :class:`Trace`; a notice about steps that were
        left out to save memory is added.
        """
        if not self.rows:
            raise ConversionError("No step was recorded: the sampler did not call the recorder.")
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
    options: CaptureOptions = DEFAULTS,
    conditions: Mapping | None = None,
    label: str = "",
    denoiser: Any = None,
    callback: Callable[[SamplerStep], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Trace:
    """Sample a log-mel with a diffusion model and record the run; the result is the same as without recording.

    Args:
        model: A ``diffusion.DiffusionModel``.
        condition: ``[1, dims, frames]`` from ``model.condition``.
        options: Of the sampler and the recorder.
        conditions: Target curves to store: ``f0_hz``, ``voiced``, ``loudness_db``, each ``[frames]``.
        label: Name of the run.
        denoiser: A ``denoiser.CachedDenoiser`` for this condition to reuse.
        callback: Called with each step after it was recorded. Denoiser calls inside it are not recorded.
        cancelled: Checked before each call of the denoiser.

    Returns:
        A ``mel`` trace with the sampling settings in ``info``.
    """
    sampling = options.sampling
    denoiser = denoiser or model.prepare(condition, sampling.precision, cancelled=cancelled)
    recorder = Recorder(options.keep, options.max_bytes, denoiser if options.features else None, options.blocks)

    def on_step(step: SamplerStep) -> None:
        recorder(step)
        if callback is not None:
            callback(step)
            recorder.discard()

    with recorder.hooked():
        log_mel = model.sample(condition, sampling, denoiser, on_step, cancelled)
    return recorder.trace(
        model.scale(log_mel),
        low=model.mel_low,
        high=model.mel_high,
        conditions=conditions,
        label=label,
        method=sampling.sampler or model.settings.sampler,
        seed=sampling.seed,
        shallow=sampling.shallow,
        mel=model.contract.to_json(),
        precision=denoiser.precision,
        prediction=model.settings.prediction,
        condition_dropout=float(model.settings.condition_dropout),
    )


class _Taps:
    """Forward hooks on the named taps of a denoiser that pool hidden features over time (sum and norm).

    Long songs pass in chunks with a halo; the halo is cut off, so that the result equals that of the whole.
    """

    def __init__(self, cached, blocks=None):
        self.denoiser, self.chunks = cached.denoiser, cached.chunks
        taps = self.denoiser.named_taps()
        block_of = {name: int(name.split()[-1]) - 1 for name in taps if name.split()[-1].isdigit()}
        numbers = sorted(set(block_of.values()))
        if blocks is None:
            blocks = [numbers[i] for i in (0, len(numbers) // 2, -1)] if numbers else []
        unknown = [] if blocks == "all" else sorted(set(blocks) - set(numbers))
        if unknown:
            raise ConversionError(f"Unknown blocks {unknown}; this network has blocks 0 to {len(numbers) - 1}.")
        self.taps = {n: tap for n, tap in taps.items() if blocks == "all" or n not in block_of or block_of[n] in blocks}
        self.chunk, self.sums, self.handles = -1, {}, []

    def __enter__(self):
        self.handles.append(self.denoiser.register_forward_pre_hook(self._next_chunk))
        for name, (module, side) in self.taps.items():
            if side == "input":
                hook = module.register_forward_pre_hook(lambda _, args, name=name: self._pool(name, args[0]))
            else:
                hook = module.register_forward_hook(lambda _, args, out, name=name: self._pool(name, out))
            self.handles.append(hook)
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _next_chunk(self, module, args) -> None:
        self.chunk = (self.chunk + 1) % len(self.chunks)

    def _pool(self, tap: str, x: Tensor) -> None:
        if x.ndim < 3:  # without a time axis: the step embedding
            self.sums[tap] = x[0]
            return
        start, stop, low, _ = self.chunks[self.chunk]
        x = x[0, :, start - low : stop - low].float()
        # Two plain passes: torch.var_mean takes many times as long on a CPU. The rest is computed after the run.
        self.sums.setdefault(tap, []).append((stop - start, x.sum(dim=1), torch.linalg.vector_norm(x, dim=1)))

    def take(self) -> dict:
        """Return the sums of one call for :func:`_features` and reset them."""
        found, self.sums, self.chunk = self.sums, {}, -1
        return found


def _features(calls: list[dict]) -> dict[str, np.ndarray]:
    """Features ``[calls, dims]`` by tap: mean and standard deviation over time, or the value if it has no time axis."""
    found = {}
    for tap, first in calls[0].items():
        if isinstance(first, Tensor):
            found[tap] = _double([call[tap] for call in calls]).astype(np.float32)
            continue
        chunks = range(len(first))
        total = sum(first[k][0] for k in chunks)
        mean = sum(_double([call[tap][k][1] for call in calls]) for k in chunks) / total
        power = sum(_double([call[tap][k][2] for call in calls]) ** 2 for k in chunks) / total
        std = np.sqrt(np.maximum(power - mean**2, 0))
        found[tap] = np.concatenate([mean, std], axis=1).astype(np.float32)
    return found


def _double(rows: list[Tensor]) -> np.ndarray:
    return torch.stack(rows).float().cpu().numpy().astype(np.float64)


def _half(x: Tensor) -> np.ndarray:
    return x[0].detach().clamp(-60000, 60000).to(torch.float16).cpu().numpy()


def _pooled(state: np.ndarray) -> np.ndarray:
    """Mean of a mel state over time; RMS of a waveform in 256 segments."""
    values = state.astype(np.float32)
    if values.ndim == 2:
        return values.mean(axis=1)
    return np.array([np.sqrt(np.square(part).mean()) for part in np.array_split(values, min(256, len(values)))])


def _numbers(value) -> np.ndarray:
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    return value if value.dtype == bool else value.astype(np.float32)


# Choice of steps: interval clustering with centre sampling (SingVisio, Xue et al. 2024) ------------------------------


def select_steps(features: np.ndarray, k: int, ends: bool = True) -> np.ndarray:
    """Select ``k`` of ``N`` steps: of each of ``k`` intervals the step nearest to the mean of its features.

    Args:
        features: ``[N, dims]``, one row per step, pooled over time. Concatenate two runs along ``dims`` to select
            steps for both.
        k: Number of steps, ``1 .. N``. Interval ``i`` are the steps from ``i N // k`` on, in integers.
        ends: Take the first and the last step instead of those of the outer intervals.

    Returns:
        Increasing indices ``[k]``. Ties go to the lower index.

    Raises:
        ConversionError: for ``k`` out of range, or features of another shape or with values that are not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not len(features):
        raise ConversionError(f"Features have shape {features.shape}; expected [steps, dims], pooled over time.")
    n = len(features)
    if not 1 <= k <= n:
        raise ConversionError(f"Cannot select {k} of {n} steps; choose 1 to {n}.")
    if ends and k == 1 and n > 1:
        raise ConversionError("One step cannot be both the first and the last; take ends=False, or at least 2 steps.")
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ConversionError("The features hold values that are not finite (NaN or infinity).")
    centred = features - features.mean(axis=0)  # for the precision of the squares
    edges = np.arange(k + 1) * n // k
    chosen = edges[:-1].copy()
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if high - low > 2:  # two rows are equally far from their mean, whatever rounding says
            away = centred[low:high] - centred[low:high].mean(axis=0)
            chosen[i] += int(np.argmin(np.einsum("nd,nd->n", away, away)))
    if ends:
        chosen[0], chosen[-1] = 0, n - 1
    return chosen
