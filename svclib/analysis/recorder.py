"""Recording of sampling runs: a sampler callback that keeps steps and pooled hidden features, and the choice of steps.

Recording changes no bit of the result. Of a long run one step per interval is kept, chosen by :func:`select_steps`.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.analysis.trace import Trace
from svclib.models.diffusion.samplers import SamplerStep
from svclib.utils.errors import ConversionError

MAX_BYTES = 256 << 20
_COLUMNS = {"index": np.int64, "t": float, "alpha": float, "sigma": float, "x_t": np.float16, "x0_hat": np.float16}


class Recorder:
    """Sampler callback that keeps copies of the states in float16.

    At most ``keep`` steps, 2 or more, and ``max_bytes`` of states are kept. The hidden features of ``denoiser``, a
    ``denoiser.CachedDenoiser``, are recorded inside ``with recorder.hooked():``.
    """

    def __init__(self, keep: int | None = None, max_bytes: int = MAX_BYTES, denoiser: Any = None):
        if keep is not None and keep < 2:
            raise ConversionError(f"keep is {keep}; a trace needs at least 2 steps, the first and the last.")
        self.keep, self.max_bytes, self.notice = keep, max_bytes, ""
        self.taps = _Taps(denoiser)
        self.hooked = contextlib.nullcontext if denoiser is None else self.taps.hooked
        self.rows: list[dict] = []
        self.pending: list[dict] = []  # steps of the current interval
        self.edges: np.ndarray | None = None
        self.n_calls = 0

    def __call__(self, step: SamplerStep) -> None:
        """Record one step."""
        if step.x_t.ndim < 2 or step.x_t.shape[0] != 1:
            raise ConversionError(f"The signal has shape {tuple(step.x_t.shape)}; expected a batch of one.")
        if self.edges is None:
            self._plan(step)
        scalars = {"index": step.index, "t": step.t, "alpha": step.alpha, "sigma": step.sigma}
        states = {"x_t": _half(step.x_t), "x0_hat": _half(step.x0_hat), "features": self.taps.take()}
        self.pending.append({**scalars, **states})
        if step.index + 1 in self.edges:
            chosen = 0 if not self.rows else -1
            if self.rows and step.index + 1 < self.n_calls:
                chosen = select_steps(np.stack([_pooled(row["x0_hat"]) for row in self.pending]), 1, ends=False)[0]
            self.rows.append(self.pending[chosen])
            self.pending = []

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

    def trace(self, result: Tensor, kind="mel", low=(), high=(), conditions: Mapping | None = None, **info) -> Trace:
        """The recorded steps with the ``result``, ``[1, mels, frames]`` or ``[1, samples]``, as a :class:`Trace`."""
        if not self.rows:
            raise ConversionError("No step was recorded: the sampler did not call the recorder.")
        columns = {name: np.array([row[name] for row in self.rows], dtype) for name, dtype in _COLUMNS.items()}
        return Trace(
            kind,
            **columns,
            result=_half(result),
            n_calls=self.n_calls,
            features={tap: np.stack([row["features"][tap] for row in self.rows]) for tap in self.rows[0]["features"]},
            conditions={name: _numbers(value) for name, value in (conditions or {}).items()},
            low=_numbers(low),
            high=_numbers(high),
            info={**info, "notice": self.notice},
        )


def capture(
    model, condition: Tensor, sampling, conditions=None, label="", denoiser=None, callback=None, features=True
) -> Trace:
    """Sample a log-mel with a diffusion model and record the run; the result is the same as without recording.

    ``condition`` is from ``model.condition``, ``denoiser`` from ``model.prepare`` for it, to reuse. ``conditions`` are
    target curves to store: ``f0_hz``, ``voiced``, ``loudness_db``, each ``[frames]``. ``callback`` is called with each
    recorded step; denoiser calls inside it are not recorded. Without ``features`` no hidden features are.
    """
    denoiser, settings = denoiser or model.prepare(condition, sampling), model.settings
    recorder = Recorder(denoiser=denoiser if features else None)

    def on_step(step: SamplerStep) -> None:
        recorder(step)
        if callback is not None:
            callback(step)
            recorder.taps.take()

    with recorder.hooked():
        log_mel = model.sample(condition, sampling, denoiser, on_step)
    info = {"label": label, "method": sampling.sampler or settings.sampler, "seed": sampling.seed}
    info |= {"shallow": sampling.shallow, "mel": model.contract.to_json(), "precision": denoiser.precision}
    info |= {"prediction": settings.prediction, "condition_dropout": float(settings.condition_dropout)}
    return recorder.trace(model.scale(log_mel), "mel", model.mel_low, model.mel_high, conditions, **info)


class _Taps:
    """Forward hooks on the named taps of a denoiser that sum hidden features over time, without the halo of chunks."""

    def __init__(self, cached):
        self.cached, self.chunk, self.sums = cached, -1, {}

    @contextlib.contextmanager
    def hooked(self):
        with contextlib.ExitStack() as handles:
            handles.enter_context(self.cached.denoiser.register_forward_pre_hook(self._next_chunk))
            for name, (module, side) in self.cached.denoiser.named_taps().items():
                if side == "input":
                    handle = module.register_forward_pre_hook(lambda _, args, name=name: self._pool(name, args[0]))
                else:
                    handle = module.register_forward_hook(lambda _, args, out, name=name: self._pool(name, out))
                handles.enter_context(handle)
            yield

    def _next_chunk(self, module, args) -> None:
        self.chunk = (self.chunk + 1) % len(self.cached.chunks)

    def _pool(self, tap: str, x: Tensor) -> None:
        if x.ndim < 3:  # without a time axis: the step embedding
            self.sums[tap] = x[0]
            return
        start, stop, low, _ = self.cached.chunks[self.chunk]
        x = x[0, :, start - low : stop - low].float()
        # Two plain passes: torch.var_mean takes many times as long on a CPU.
        sums = torch.stack([x.sum(dim=1), torch.linalg.vector_norm(x, dim=1) ** 2]).double()
        self.sums[tap] = self.sums[tap] + sums if tap in self.sums else sums

    def take(self) -> dict[str, np.ndarray]:
        """Mean and standard deviation over time by tap, float32, of the calls since the last time."""
        found = {}
        for tap, sums in self.sums.items():
            if sums.ndim == 2:
                mean, power = sums / self.cached.chunks[-1][1]
                sums = torch.cat([mean, (power - mean**2).clamp_min(0).sqrt()])
            found[tap] = sums.float().cpu().numpy()
        self.sums, self.chunk = {}, -1
        return found


def _half(x: Tensor) -> np.ndarray:
    return x[0].detach().clamp(-60000, 60000).to(torch.float16).cpu().numpy()


def _numbers(value) -> np.ndarray:
    value = torch.as_tensor(value).detach().cpu().numpy()
    return value if value.dtype == bool else value.astype(np.float32)


def _pooled(state: np.ndarray) -> np.ndarray:
    """Mean of a mel state over time; RMS of a waveform in 256 segments."""
    values = state.astype(np.float32)
    if values.ndim == 2:
        return values.mean(axis=1)
    return np.array([np.sqrt(np.square(part).mean()) for part in np.array_split(values, min(256, len(values)))])


def select_steps(features: np.ndarray, k: int, ends: bool = True) -> np.ndarray:
    """Increasing indices of ``k`` of ``N`` steps, by interval clustering (SingVisio, Xue et al. 2024).

    Of each of ``k`` intervals the step nearest to the mean of its features ``[N, dims]`` is taken, at a tie the first;
    interval ``i`` are the steps from ``i N // k`` on. ``ends``: of the outer intervals the first and the last step.
    """
    features = np.asarray(features, np.float64)
    n = len(features)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ConversionError(f"Features have shape {features.shape}; expected finite [steps, dims], pooled over time.")
    if not (2 if ends and n > 1 else 1) <= k <= n:
        raise ConversionError(f"Cannot select {k} of {n} steps; choose 1 to {n}, or 2 to {n} with both ends.")
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
