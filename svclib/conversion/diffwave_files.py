"""Sounds that a DiffWave generates, denoises or interpolates, as files.

Every sound is written as soon as it is made, so that an interruption keeps the finished ones. Beside it lies
``<file>.json`` with everything that makes it again; where that very sound is already there it is not made twice. A name
that is taken by anything else gets a number: nothing is ever overwritten.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion.pipeline import PEAK_LIMIT, write_with_settings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference
from svclib.models.instrument import Instrument
from svclib.utils import filesystem
from svclib.utils.errors import ConversionError, ModelError, ProgressCallback, raise_if_cancelled
from svclib.utils.serialization import check_controls, control

MAX_COUNT, MAX_SEED = 100_000, 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Generation:
    """Options of :func:`generate`; ``labels`` are those of the model, ``(None,)`` for a model without."""

    count: int | float = control(1, 1, MAX_COUNT, metavar="N", help="sounds per label")
    seed: int | float = control(
        0, 0, MAX_SEED, metavar="S", help="of the first sound of each label; sound i has seed + i"
    )
    seconds: float | int | None = control(None, 1e-3, 3600.0, metavar="S", help="length of each (default: the model's)")
    fast: bool = control(False, help="use the model's few-step schedule instead of every step")
    labels: tuple[str | None, ...] = (None,)

    def __post_init__(self):
        check_controls(self, ConversionError)


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Options of :func:`denoise`."""

    step: int | float = control(25, 1, MAX_COUNT, metavar="T", help="diffusion step to start from: higher removes more")
    reading: str = control(
        "as_is",
        choices=inference.READINGS,
        help="start from the recording as it is, or scaled and with the noise of that step added",
    )
    label: str | None = control(None, metavar="L", help="what is spoken, for a model with labels")
    seed: int | float = control(0, 0, MAX_SEED, metavar="S", help="of the noise, the same for every recording")

    def __post_init__(self):
        check_controls(self, ConversionError)


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """Options of :func:`interpolate`."""

    step: int | float = control(50, 1, MAX_COUNT, metavar="T", help="diffusion step at which the two are mixed")
    count: int | float = control(5, 2, MAX_COUNT, metavar="N", help="number of sounds, both ends included")
    independent_noise: bool = control(
        False, help="separate noise for each end, as in the paper, instead of shared noise"
    )
    label: str | None = control(None, metavar="L", help="what is spoken, for a model with labels")
    seed: int | float = control(0, 0, MAX_SEED, metavar="S", help="of the noise, the same for every sound")

    def __post_init__(self):
        check_controls(self, ConversionError)


OPTIONS = {"generate": Generation, "denoise": Denoising, "interpolate": Interpolation}


def load_model(path: str | Path) -> Instrument:
    """Load a DiffWave that was trained without a mel; ModelError for any other instrument."""
    opened = instrument.open(path)
    if opened.kind != "diffwave":
        raise ModelError(
            f"'{opened.name}' is an instrument of kind '{opened.kind}'; this needs a 'diffwave' trained without a mel, "
            "such as one of diffwave_digits."
        )
    if opened.model.contract is not None:
        raise ModelError(f"'{opened.name}' is a vocoder: it needs a mel. svclib vocode resynthesizes songs with it.")
    return opened


def generate(
    opened: Instrument,
    folder: str | Path,
    options: Generation | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """Generate sounds as ``7_003_seed12.wav``: label, number, and the seed that makes it again alone.

    Args:
        opened: From :func:`load_model`.
        folder: Where they go.
        options: The defaults if None.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; finished sounds stay.

    Returns:
        Their files, label by label, with those that were already there.

    Raises:
        ModelError: for a label that the model does not have, before anything is made.
    """
    model, rate, o = opened.model, opened.features.sample_rate_hz, options or Generation()
    seconds = model.settings.sound_s if o.seconds is None else o.seconds
    for label in o.labels:
        inference.condition(model, label, 1)
    jobs = []
    for label in o.labels:
        for i in range(o.count):
            name = f"{'' if label is None else label + '_'}{i:03d}_seed{o.seed + i}"
            record = {"use": "generate", "label": label, "seed": o.seed + i, "seconds": seconds, "fast": o.fast}
            jobs.append(_Job(name, record, (label, SamplingOptions(seed=o.seed + i))))

    def make(job: tuple[str | None, SamplingOptions], report) -> np.ndarray:
        n_samples, callback = max(1, round(seconds * rate)), inference.step_progress(report)
        return inference.generate(model, n_samples, 1, *job, o.fast, callback, cancelled)[0]

    return _write_all(opened, folder, jobs, make, progress, cancelled)


def denoise(
    opened: Instrument,
    inputs: Sequence[str | Path],
    folder: str | Path,
    options: Denoising | None = None,
    name: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """Denoise recordings, as ``<recording> denoised.wav``; ``name`` (with an ending) names the only one otherwise.

    Args:
        opened: From :func:`load_model`.
        inputs: Recordings of any rate and number of channels.
        folder: Where the results go.
        options: The defaults if None.
        name: File name of the result, ``.wav`` added where it has no ending of a sound file.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; finished sounds stay.

    Returns:
        A file for each recording, in their order, with those that were already there.

    Raises:
        ModelError: for options that the model cannot use, before anything is read.
        StorageError, AudioError: for a file that is missing, or cannot be read as sound.
    """
    model, o = opened.model, options or Denoising()
    inference.check_denoise(model, o.step, o.reading, o.label)
    record = {"use": "denoise", "step": o.step, "reading": o.reading, "label": o.label, "seed": o.seed}
    jobs = [_Job(name or f"{Path(p).stem} denoised", {**record, "input": _identity(p)}, p) for p in inputs]

    def make(path: Path, report) -> np.ndarray:
        samples = audio.read(path, opened.features.sample_rate_hz).samples
        options, callback = SamplingOptions(seed=o.seed), inference.step_progress(report)
        return inference.denoise(model, samples, o.step, o.reading, o.label, options, callback, cancelled)

    return _write_all(opened, folder, jobs, make, progress, cancelled)


def interpolate(
    opened: Instrument,
    ends: tuple[str | Path, str | Path],
    folder: str | Path,
    options: Interpolation | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """Sounds between two recordings in equal shares, as ``A to B 2 of 5.wav``.

    Args:
        opened: From :func:`load_model`.
        ends: Two recordings of any rate and number of channels; the shorter one is followed by silence.
        folder: Where the sounds go.
        options: The defaults if None.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``; finished sounds stay.

    Returns:
        Their files, from the first recording to the second, with those that were already there.

    Raises:
        ModelError: for options that the model cannot use.
        AudioError: for a file that cannot be read.
    """
    model, rate, o = opened.model, opened.features.sample_rate_hz, options or Interpolation()
    inference.check_denoise(model, o.step, "as_is", o.label)
    (first, second), digits = map(Path, ends), len(str(o.count))
    a, b = (audio.read(p, rate).samples for p in (first, second))
    record: dict = {"use": "interpolate", "step": o.step, "shared_noise": not o.independent_noise, "label": o.label}
    record |= {"seed": o.seed, "first": _identity(first), "second": _identity(second)}
    shares = [i / (o.count - 1) for i in range(o.count)]
    jobs = [
        _Job(
            f"{first.stem} to {second.stem} {i + 1:0{digits}d} of {o.count}",
            {**record, "share_of_second": share},
            share,
        )
        for i, share in enumerate(shares)
    ]

    def make(share: float, report) -> np.ndarray:  # one at a time: the same noise as all at once
        mix = inference.Mix((share,), o.step, not o.independent_noise, o.label)
        options, callback = SamplingOptions(seed=o.seed), inference.step_progress(report)
        return inference.interpolate(model, a, b, mix, options, callback, cancelled)[0]

    return _write_all(opened, folder, jobs, make, progress, cancelled)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One sound: its file name, the settings that make it again, and the argument of the function that makes it."""

    name: str
    record: dict[str, Any]
    argument: Any


def _identity(path: str | Path) -> dict:
    return {"name": Path(path).name, "sha256": filesystem.sha256_file(path)}


def _write_all(opened: Instrument, folder, jobs: list[_Job], make, progress, cancelled) -> list[Path]:
    written = []
    for i, job in enumerate(jobs):
        raise_if_cancelled(cancelled)
        settings = {
            "tag": audio.SYNTHETIC_TAG,
            "svclib": __version__,
            **job.record,
            "sample_rate_hz": opened.features.sample_rate_hz,
            "instrument": {"name": opened.name, "kind": opened.kind, "sha256": opened.sha256},
        }
        name = job.name if Path(job.name).suffix in audio.WRITABLE else f"{job.name}.wav"
        target = Path(folder) / filesystem.safe_name(name)

        def report(fraction, text, i=i, target=target):
            if progress is not None:
                progress((i + fraction) / len(jobs), f"{i + 1} of {len(jobs)}: {target.stem}, {text}")

        report(0.0, "starting")
        if not _is_done(target, settings):
            target = _save(target, make(job.argument, report), settings)
        written.append(target)
    if progress is not None:
        progress(1.0, "done")
    return written


def _is_done(target: Path, settings: dict) -> bool:
    beside = target.with_name(target.name + ".json")
    if not target.exists() or not beside.exists():
        return False
    try:
        return filesystem.read_json(beside) == settings
    except (ValueError, OSError):
        return False


def _save(target: Path, samples: np.ndarray, settings: dict) -> Path:
    if not np.isfinite(samples).all():
        raise ModelError("The model produced NaN or infinity: export it again from an earlier checkpoint.")
    peak = float(np.abs(samples).max())
    return write_with_settings(
        target, samples * np.float32(min(1.0, PEAK_LIMIT / max(peak, 1e-9))), settings["sample_rate_hz"], settings
    )
