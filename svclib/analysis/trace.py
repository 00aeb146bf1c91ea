"""What happened at every step of a walk from noise to sound: one :class:`Trace`, kept, saved and read again.

A trace holds the noisy signal and the clean guess of every kept step, the schedule's factors there, what the model was
told, what some of its layers answered (pooled over time) and the seed. The noise it named follows from the first two.
Stored as ``.npz`` without pickle; reading one checks everything and believes nothing.
"""

import dataclasses
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from svclib.audio.mel import MelConfig
from svclib.utils import atomic_store, serialization
from svclib.utils.errors import ConfigError, ConversionError

SCHEMA = 1
KINDS = ("mel", "wave")
MAX_FILE_BYTES, MAX_MEMBERS, MAX_LOG_MEL = 1 << 30, 500, 1000.0
_STATES = ("x_t", "x0_hat", "result")
_SCALARS = ("t", "alpha", "sigma", "index")
_DECIBELS_PER_NEPER = 20 / math.log(10)


@dataclasses.dataclass(frozen=True)
class Trace:
    """One walk. ``S`` kept steps, in the order of the walk: noise first.

    Attributes:
        kind: ``mel`` (states ``[S, mels, frames]``, scaled to about -1 .. 1) or ``wave`` (``[S, samples]``).
        x_t: The noisy signal each step saw, float16.
        x0_hat: The clean signal it guessed, float16.
        result: Where the walk ended, float16, as one state.
        t: Diffusion time of each step, float64 ``[S]``.
        alpha, sigma: Factors of signal and noise there, float64 ``[S]``.
        index: Which call of the denoiser it was, int64 ``[S]``.
        n_calls: How many there were; more than ``S`` where steps were thinned out.
        features: Pooled hidden features by tap, float32 ``[S, dims]``; see ``capture.TAPS``.
        conditions: What was asked for, by name, such as ``f0_hz``, ``voiced``, ``loudness_db``: ``[frames]``.
        low, high: What -1 and 1 of a mel state mean, log-mel float32 ``[mels]``; empty for ``wave``.
        info: Plain JSON: ``label``, ``method``, ``seed``, ``notice``, ``mel`` (a mel contract) or ``sample_rate_hz``.
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
        _check(self)

    def __len__(self) -> int:
        return len(self.t)

    @property
    def log_snr(self) -> np.ndarray:
        """``ln(alpha^2 / sigma^2)`` of each step, float64 ``[S]``; infinite where there is no noise."""
        with np.errstate(divide="ignore"):
            return 2 * (np.log(self.alpha) - np.log(self.sigma))

    @property
    def contract(self) -> MelConfig:
        """The mel contract of a ``mel`` trace."""
        return MelConfig.from_json(self.info["mel"])

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the audio that states are, or stand for."""
        return self.contract.sample_rate_hz if self.kind == "mel" else self.info["sample_rate_hz"]

    @property
    def n_bytes(self) -> int:
        """Memory of the states."""
        return sum(getattr(self, name).nbytes for name in _STATES)

    def eps_hat(self, i: int) -> np.ndarray:
        """The noise of step ``i`` that explains ``x_t`` with ``x0_hat``, float32: ``x_t = alpha x0 + sigma eps``.

        It is what the network named, to the rounding of the states, wherever the guess was not limited.
        """
        if self.sigma[i] == 0:
            return np.zeros_like(self.x_t[i], dtype=np.float32)
        x_t, x0 = self.x_t[i].astype(np.float32), self.x0_hat[i].astype(np.float32)
        return ((x_t - self.alpha[i] * x0) / self.sigma[i]).astype(np.float32)

    def log_mel(self, states: np.ndarray) -> np.ndarray:
        """States ``[..., mels, frames]`` in units of the contract's logarithm, float32; noise is mapped the same way.

        A waveform has none: ConversionError.
        """
        if self.kind != "mel":
            raise ConversionError("This trace holds waveforms; it has no log-mels.")
        low, high = self.low[:, None], self.high[:, None]
        return ((np.asarray(states, np.float32) + 1) / 2 * (high - low) + low).astype(np.float32)

    def level_db(self, states: np.ndarray) -> np.ndarray:
        """:meth:`log_mel` in dB: 20 log10 of the mel magnitude, full scale unwindowed."""
        return self.contract.to_db(self.log_mel(states))

    def steps(self, chosen) -> "Trace":
        """The trace with some of its steps only, by position."""
        chosen = np.asarray(chosen, dtype=int)
        cut = {name: getattr(self, name)[chosen] for name in ("x_t", "x0_hat", *_SCALARS)}
        return dataclasses.replace(self, **cut, features={k: v[chosen] for k, v in self.features.items()})

    def save(self, path: str | Path) -> Path:
        """Write ``.npz``, replacing nothing half: the file is whole or not there.

        Args:
            path: Where to; another suffix is replaced by ``.npz``.

        Returns:
            The file that was written.

        Raises:
            StorageError: if it cannot be written.
        """
        head = {"schema": SCHEMA, "kind": self.kind, "n_calls": self.n_calls, "info": self.info}
        text = json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
        arrays = {name: getattr(self, name) for name in (*_STATES, *_SCALARS, "low", "high")}
        arrays |= {f"feature {name}": value for name, value in self.features.items()}
        arrays |= {f"condition {name}": value for name, value in self.conditions.items()}

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, head=np.frombuffer(text, np.uint8), **arrays)

        return atomic_store.commit_file(Path(path).with_suffix(".npz"), write)


def load(path: str | Path) -> Trace:
    """Read a trace that :meth:`Trace.save` wrote. Nothing in the file is run.

    ConversionError if there is none, it is damaged, of another version, or not what it says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                total = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_MEMBERS or total > 4 * size:
                raise ConversionError(f"it holds {len(entries)} arrays that unpack to {total} bytes, as no trace does.")
            if total > MAX_FILE_BYTES:
                raise ConversionError(
                    f"it would take {total / 1e6:.0f} MB; at most {MAX_FILE_BYTES / 1e6:.0f} MB are read."
                )
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
        return _from_arrays(arrays)
    except (ConversionError, ConfigError) as error:
        raise ConversionError(f"'{path.name}' cannot be read as a trace: {error}") from None
    except FileNotFoundError:
        raise ConversionError(f"There is no trace '{path}'.") from None
    except Exception as error:  # zipfile and numpy let through what a broken file provokes
        why = "".join(c if c.isprintable() else " " for c in str(error)[:150]) or type(error).__name__
        raise ConversionError(f"'{path.name}' is no trace, or it is damaged ({why}).") from None


def _from_arrays(arrays: dict[str, np.ndarray]) -> Trace:
    if "head" not in arrays:
        raise ConversionError("it is an archive of arrays without a head.")
    head = serialization.strict_json(arrays.pop("head").tobytes(), "its head")
    serialization.check_plain(head, "its head", items=10_000)
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        version = head.get("schema") if isinstance(head, dict) else None
        raise ConversionError(f"it has version {str(version)[:20]}, this program reads {SCHEMA}; make the trace again.")
    serialization.check_fields(head, {"schema": int, "kind": str, "n_calls": int, "info": dict}, "its head")
    fixed = {}
    for name in (*_STATES, *_SCALARS, "low", "high"):
        if name not in arrays:
            raise ConversionError(f"'{name}' is missing.")
        fixed[name] = arrays.pop(name)
    groups: dict[str, dict] = {"feature": {}, "condition": {}}
    for name, value in arrays.items():
        group, _, rest = name.partition(" ")
        if group not in groups or not rest.isprintable() or not 0 < len(rest) <= 100:
            raise ConversionError(f"it holds {name[:60]!r}, which no trace has.")
        groups[group][rest] = value
    return Trace(
        head["kind"],
        n_calls=head["n_calls"],
        info=head["info"],
        features=groups["feature"],
        conditions=groups["condition"],
        **fixed,
    )


def _check(trace: Trace) -> None:
    if trace.kind not in KINDS:
        raise ConversionError(f"its kind is '{str(trace.kind)[:20]}'; there are {' and '.join(KINDS)}.")
    for name in (*_STATES, *_SCALARS, "low", "high"):
        wanted = np.float16 if name in _STATES else np.int64 if name == "index" else None
        value = getattr(trace, name)
        if wanted is not None and value.dtype != wanted or value.dtype.kind not in "fi":
            raise ConversionError(f"{name} is an array of {value.dtype}.")
        if not np.isfinite(value).all():
            raise ConversionError(f"{name} holds values that are not finite.")
    n_steps, dims = len(trace.t), trace.result.ndim
    if n_steps < 1 or dims != (2 if trace.kind == "mel" else 1) or 0 in trace.result.shape:
        raise ConversionError(f"{n_steps} steps with a result of shape {trace.result.shape} are no {trace.kind} trace.")
    for name in ("x_t", "x0_hat"):
        if getattr(trace, name).shape != (n_steps, *trace.result.shape):
            raise ConversionError(f"{name} has shape {getattr(trace, name).shape}, which does not fit {n_steps} steps.")
    for name in _SCALARS:
        if getattr(trace, name).shape != (n_steps,):
            raise ConversionError(f"{name} has shape {getattr(trace, name).shape}; there are {n_steps} steps.")
    if not (np.diff(trace.index) > 0).all() or trace.index[0] < 0 or trace.index[-1] >= trace.n_calls:
        raise ConversionError("its steps are not in order.")
    if np.abs(trace.alpha**2 + trace.sigma**2 - 1).max() > 1e-6 or min(trace.alpha.min(), trace.sigma.min()) < 0:
        raise ConversionError("alpha^2 + sigma^2 is not 1.")
    for name, value in trace.features.items():
        if value.dtype != np.float32 or value.ndim != 2 or len(value) != n_steps or not np.isfinite(value).all():
            raise ConversionError(f"feature '{name}' is not one finite float32 row for each of the {n_steps} steps.")
    if trace.kind == "mel":
        _check_mel(trace)
    elif type(trace.info.get("sample_rate_hz")) is not int or not 1000 <= trace.info["sample_rate_hz"] <= 400_000:
        raise ConversionError("its sample rate is missing.")


def _check_mel(trace: Trace) -> None:
    try:
        contract = trace.contract
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConversionError(f"its mel contract is missing or wrong ({error}).") from None
    n_mels, n_frames = trace.result.shape
    if contract.n_mels != n_mels or trace.low.shape != (n_mels,) or trace.high.shape != (n_mels,):
        raise ConversionError(f"its mel contract has {contract.n_mels} mels, its states {n_mels}, its scale others.")
    if not (trace.high > trace.low).all():
        raise ConversionError("its scale is upside down.")
    if trace.low.min() < -MAX_LOG_MEL or trace.high.max() > MAX_LOG_MEL:
        raise ConversionError(f"its scale goes beyond +-{MAX_LOG_MEL:.0f}, which no log-mel reaches.")
    for name, value in trace.conditions.items():
        if value.shape != (n_frames,) or value.dtype.kind not in "fb" or not np.isfinite(value).all():
            raise ConversionError(f"condition '{name}' is not one finite number for each of the {n_frames} frames.")
