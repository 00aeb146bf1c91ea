"""The record of one sampling run: a :class:`Trace` holds states, x0 predictions, schedule, conditions and features.

Stored as ``.npz`` without pickle; files are untrusted and checked completely when they are read.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.audio.mel import MelConfig, log_mel
from svclib.utils import atomic_store, budget, serialization
from svclib.utils.budget import Cost
from svclib.utils.errors import ConfigError, ConversionError, first_line

SCHEMA = 1
KINDS = {"mel": 2, "wave": 1}  # dimensions of a state
MAX_LOG_MEL = 1000.0
_STATES = ("x_t", "x0_hat", "result")
_SCALARS = ("t", "alpha", "sigma", "index")
_ARRAYS = (*_STATES, *_SCALARS, "low", "high")


@dataclasses.dataclass(frozen=True)
class Trace:
    """One sampling run of ``S`` kept steps, from noise to signal.

    Attributes:
        kind: ``mel`` (states ``[S, mels, frames]``, scaled to about -1 .. 1) or ``wave`` (``[S, samples]``).
        x_t, x0_hat, result: Noisy states, x0 predictions and the final state, float16.
        t, alpha, sigma: Diffusion times, signal and noise level at them, float64 ``[S]``.
        index, n_calls: Index of the denoiser call, int64 ``[S]``, and number of calls; some may be left out.
        features: Pooled hidden features by tap, float32 ``[S, dims]``; see ``Denoiser.named_taps``.
        conditions: Target curves by name, such as ``f0_hz``, ``voiced``, ``loudness_db``: ``[frames]``.
        low, high: Log-mels ``[mels]`` that -1 and 1 of a mel state stand for, float32; empty for ``wave``.
        info: JSON values: ``label``, ``method`` (the sampler), ``seed``, ``notice``, ``mel`` or ``sample_rate_hz``.
    """

    kind: str
    x_t: np.ndarray
    x0_hat: np.ndarray
    result: np.ndarray
    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    index: np.ndarray
    n_calls: int
    features: dict[str, np.ndarray]
    conditions: dict[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    info: dict

    def __post_init__(self):
        for holds, message in _rules(self):
            if not holds:
                raise ConversionError(message)

    def __len__(self) -> int:
        return len(self.t)

    @property
    def log_snr(self) -> np.ndarray:
        """``ln(alpha^2 / sigma^2)`` of each step, float64 ``[S]``; infinite without noise."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha) - np.log(self.sigma))

    @property
    def contract(self) -> MelConfig:
        """The mel settings; of a ``wave`` for its pictures: 64 mels, hops of about 8 ms (longer above 800 frames)."""
        if self.kind == "mel":
            return MelConfig.from_json(self.info["mel"])
        rate_hz = self.info["sample_rate_hz"]
        hop = 1 << max(4, round(np.log2(max(0.008 * rate_hz, len(self.result) / 800))))
        return MelConfig(rate_hz, 4 * hop, 4 * hop, hop, 64, 0.0, rate_hz / 2)

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the audio."""
        return self.contract.sample_rate_hz

    @property
    def n_frames(self) -> int:
        """Number of mel frames, with the hop of :attr:`contract`."""
        size = self.result.shape[-1]
        return size if self.kind == "mel" else size // self.contract.hop_samples

    @property
    def n_bytes(self) -> int:
        """Memory of the states."""
        return sum(getattr(self, name).nbytes for name in _STATES)

    @property
    def target_f0(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Target F0 in Hz and voicing, ``[frames]`` each, or None."""
        f0_hz = self.conditions.get("f0_hz")
        return None if f0_hz is None else (f0_hz, self.conditions.get("voiced", f0_hz > 0))

    def log_mel(self, states: np.ndarray) -> np.ndarray:
        """States ``[..., mels, frames]`` as log-mels, float32; ConversionError for a waveform trace."""
        if self.kind != "mel":
            raise ConversionError("This trace holds waveforms; it has no log-mels.")
        low, high = self.low[:, None], self.high[:, None]
        return ((np.asarray(states, np.float32) + 1) / 2 * (high - low) + low).astype(np.float32)

    def level_db(self, states: np.ndarray) -> np.ndarray:
        """Mel levels of states in dB, ``[..., mels, frames]``: 20 log10 of the magnitude, by :attr:`contract`."""
        contract = self.contract
        if self.kind == "mel":
            return contract.to_db(self.log_mel(states))
        rows = torch.from_numpy(np.asarray(states, np.float32).reshape(-1, states.shape[-1]))
        level_db = contract.to_db(log_mel(rows, contract).transpose(1, 2).numpy())
        return level_db.reshape(*states.shape[:-1], *level_db.shape[1:])

    def frequency_ticks(self, distance: float) -> list[tuple[float, str]]:
        """Round frequencies on the mel axis, ``(position from 0 to 1, label)``, at least ``distance`` apart."""
        hz, ticks = self.contract.centers_hz(), [(-np.inf, "")]
        for f in (250, 500, 1000, 2000, 4000, 8000, 16000):
            place = float(np.interp(f, hz, np.arange(len(hz))) + 0.5) / len(hz)
            if hz[0] < f < hz[-1] and place - ticks[-1][0] > distance:
                ticks.append((place, f"{f // 1000} k" if f >= 1000 else str(f)))
        return ticks[1:]

    def steps(self, positions) -> "Trace":
        """The trace with a subset of its steps."""
        positions = np.asarray(positions, dtype=int)
        kept = {name: getattr(self, name)[positions] for name in ("x_t", "x0_hat", *_SCALARS)}
        return dataclasses.replace(self, **kept, features={k: v[positions] for k, v in self.features.items()})

    def save(self, path: str | Path) -> Path:
        """Write the trace atomically as ``path`` with suffix ``.npz``; returns that path. StorageError on failure."""
        head = {"schema": SCHEMA, "kind": self.kind, "n_calls": self.n_calls, "info": self.info}
        text = json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"feature {name}": value for name, value in self.features.items()}
        arrays |= {f"condition {name}": value for name, value in self.conditions.items()}

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, head=np.frombuffer(text, np.uint8), **arrays)

        return atomic_store.commit_file(Path(path).with_suffix(".npz"), write)


def load(path: str | Path) -> Trace:
    """Read a trace written by :meth:`Trace.save`; ConversionError if it is missing, damaged or of another version."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                total = sum(entry.file_size for entry in entries)
            budget.require("trace", "it", Cost(memory_bytes=total, values=len(entries)), error=ConversionError)
            if total > 4 * size:
                raise ConversionError(f"it would unpack to {total / 1e6:.0f} MB, more than four times its size.")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                return _from_arrays({name: found[name] for name in found.files})
    except (ConversionError, ConfigError) as error:
        raise ConversionError(f"'{path.name}' cannot be read as a trace: {error}", path=path) from None
    except FileNotFoundError:
        raise ConversionError(f"There is no trace '{path}'.", path=path) from None
    except Exception as error:  # zipfile and numpy raise many types on damaged files
        why = first_line(error, 150)
        raise ConversionError(f"'{path.name}' is not a trace, or it is damaged ({why}).", path=path) from None


def _from_arrays(arrays: dict[str, np.ndarray]) -> Trace:
    missing = [name for name in ("head", *_ARRAYS) if name not in arrays]
    if missing:
        raise ConversionError(f"'{missing[0]}' is missing.")
    head = serialization.strict_json(arrays.pop("head").tobytes(), "its head")
    serialization.check_plain(head, "its head", items=10_000)
    version = head.get("schema") if isinstance(head, dict) else None
    if version != SCHEMA:
        raise ConversionError(f"it has version {str(version)[:20]}; this program reads {SCHEMA}. Make the trace again.")
    serialization.check_fields(head, {"schema": int, "kind": str, "n_calls": int, "info": dict}, "its head")
    fixed: dict[str, Any] = {name: arrays.pop(name) for name in _ARRAYS}
    groups: dict[str, dict] = {"feature": {}, "condition": {}}
    for name, value in arrays.items():
        group, _, rest = name.partition(" ")
        if group not in groups or not rest.isprintable() or not 0 < len(rest) <= 100:
            raise ConversionError(f"it holds an unknown array {name[:60]!r}.")
        groups[group][rest] = value
    del head["schema"]
    return Trace(**head, **fixed, features=groups["feature"], conditions=groups["condition"])


def _rules(trace: Trace) -> Iterator[tuple[Any, str]]:
    """Conditions that must hold, and the message if one does not. A rule may rely on those before it."""
    yield trace.kind in KINDS, f"its kind is '{str(trace.kind)[:20]}'; expected one of {', '.join(KINDS)}."
    n_steps, state = len(trace.t), trace.result.shape
    shapes = {"x_t": (n_steps, *state), "x0_hat": (n_steps, *state), **dict.fromkeys(_SCALARS, (n_steps,))}
    usable = n_steps and len(state) == KINDS[trace.kind] and 0 not in state
    yield usable, f"{n_steps} steps with a result of shape {state} are not a {trace.kind} trace."
    for name in _ARRAYS:
        value = getattr(trace, name)
        dtype = np.float16 if name in _STATES else np.int64 if name == "index" else value.dtype
        yield value.dtype == dtype and value.dtype.kind in "fi", f"{name} is an array of {value.dtype}."
        yield np.isfinite(value).all(), f"{name} holds values that are not finite."
        fits = value.shape == shapes.get(name, value.shape)
        yield fits, f"{name} has shape {value.shape}, which does not fit {n_steps} steps of {state}."
    rising = (np.diff(trace.index) > 0).all() and trace.index[0] >= 0 and trace.index[-1] < trace.n_calls
    yield rising, "its steps are not in order."
    unit = np.abs(trace.alpha**2 + trace.sigma**2 - 1).max() <= 1e-6 and min(trace.alpha.min(), trace.sigma.min()) >= 0
    yield unit, "alpha^2 + sigma^2 is not 1."
    for name, value in trace.features.items():
        usable = value.dtype == np.float32 and value.ndim == 2 and len(value) == n_steps and np.isfinite(value).all()
        yield usable, f"feature '{name}' is not one finite float32 row for each of the {n_steps} steps."
    if trace.kind == "wave":
        rate_hz = trace.info.get("sample_rate_hz")
        yield type(rate_hz) is int and 1000 <= rate_hz <= 400_000, "its sample rate is missing or out of range."
        return
    try:
        contract, (n_mels, n_frames) = trace.contract, state
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConversionError(f"its mel settings are missing or wrong ({error}).") from None
    fits = contract.n_mels == n_mels and trace.low.shape == trace.high.shape == (n_mels,)
    yield fits, f"its mel settings have {contract.n_mels} mels, its states {n_mels}, its scale {trace.low.shape}."
    yield (trace.high > trace.low).all(), "its scale is invalid: low is not below high."
    limited = trace.low.min() >= -MAX_LOG_MEL and trace.high.max() <= MAX_LOG_MEL
    yield limited, f"its scale goes beyond +-{MAX_LOG_MEL:.0f}."
    for name, value in trace.conditions.items():
        usable = value.shape == (n_frames,) and value.dtype.kind in "fb" and np.isfinite(value).all()
        yield usable, f"condition '{name}' is not one finite number for each of the {n_frames} frames."
