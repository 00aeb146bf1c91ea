"""Sounds that a DiffWave generates, denoises or interpolates, as files, each written as soon as it is made.

Beside it lies ``<file>.json`` with everything that makes it again; where that very sound is already there it is not
made twice. A name that is taken by anything else gets a number: nothing is ever overwritten.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion.pipeline import limiter_gain, write_with_settings
from svclib.models import instrument
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave import inference
from svclib.models.instrument import Instrument
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ModelError, raise_if_cancelled, reporter
from svclib.utils.serialization import Settings, control

MAX_COUNT, MAX_SEED = 100_000, 2**31 - 1
_step = partial(control, low=1, high=MAX_COUNT, metavar="T")
_seed = partial(control, 0, 0, MAX_SEED, metavar="S")
_label = partial(control, None, metavar="L", help="what is spoken, for a model with labels")


@dataclasses.dataclass(frozen=True)
class Generation(Settings):
    """Options of :func:`generate`; ``labels`` are those of the model, ``(None,)`` for a model without."""

    count: int | float = control(1, 1, MAX_COUNT, metavar="N", help="sounds per label")
    seed: int | float = _seed(help="of the first sound of each label; sound i has seed + i")
    seconds: float | int | None = control(None, 1e-3, 3600.0, metavar="S", help="length of each (default: the model's)")
    fast: bool = control(False, help="use the model's few-step schedule instead of every step")
    labels: tuple[str | None, ...] = (None,)


@dataclasses.dataclass(frozen=True)
class Denoising(Settings):
    """Options of :func:`denoise`."""

    step: int | float = _step(25, help="diffusion step to start from: higher removes more")
    reading: str = control(
        "as_is", choices=inference.READINGS, help="start from the recording as it is, or scaled with that step's noise"
    )
    label: str | None = _label()
    seed: int | float = _seed(help="of the noise, the same for every recording")


@dataclasses.dataclass(frozen=True)
class Interpolation(Settings):
    """Options of :func:`interpolate`."""

    step: int | float = _step(50, help="diffusion step at which the two are mixed")
    count: int | float = control(5, 2, MAX_COUNT, metavar="N", help="number of sounds, both ends included")
    independent_noise: bool = control(
        False, help="separate noise for each end, as in the paper, instead of shared noise"
    )
    label: str | None = _label()
    seed: int | float = _seed(help="of the noise, the same for every sound")


OPTIONS = {"generate": Generation, "denoise": Denoising, "interpolate": Interpolation}


def load_model(path: str | Path) -> Instrument:
    """Load a DiffWave that was trained without a mel; ModelError for any other instrument."""
    opened = instrument.open(path)
    if opened.kind != "diffwave" or opened.model.contract is not None:
        hint = "Use one such as those of diffwave_digits; svclib vocode resynthesizes songs with a vocoder."
        raise ModelError(f"'{opened.name}' ({opened.kind}) is no 'diffwave' trained without a mel.", hint=hint)
    return opened


def generate(opened: Instrument, folder: str | Path, options: Generation | None = None, **watch) -> list[Path]:
    """Generate sounds as ``7_003_seed12.wav``: label, number, and the seed that makes it again alone.

    ``opened`` is from :func:`load_model`; ``watch`` are ``progress`` and ``cancelled``. Returns the files, label by
    label, with those that were already there; ModelError for an unknown label before anything is made.
    """
    model, o = opened.model, options or Generation()
    seconds = model.settings.sound_s if o.seconds is None else o.seconds
    n_samples = max(1, round(seconds * opened.features.sample_rate_hz))
    for label in o.labels:
        inference.condition(model, label, 1)
    jobs = []
    for label, i in itertools.product(o.labels, range(o.count)):
        seed, prefix = o.seed + i, "" if label is None else f"{filesystem.safe_name(label, n_bytes=80)}_"
        record = {"use": "generate", "label": label, "seed": seed, "seconds": seconds, "fast": o.fast}
        make = partial(inference.generate, model, n_samples, 1, label, SamplingOptions(seed=seed), o.fast)
        jobs.append((f"{prefix}{i:03d}_seed{seed}", record, make))
    return _write_all(opened, folder, jobs, **watch)


def denoise(
    opened: Instrument,
    inputs: Sequence[str | Path],
    folder: str | Path,
    name: str | None = None,
    options: Denoising | None = None,
    **watch,
) -> list[Path]:
    """As :func:`generate`: recordings denoised as ``<recording> denoised.wav``, the only one as ``name``."""
    model, o = opened.model, options or Denoising()
    inference.check_denoise(model, o.step, o.reading, o.label)

    def make(path, **watch):
        samples = audio.read(path, opened.features.sample_rate_hz).samples
        return inference.denoise(model, samples, o.step, o.reading, o.label, SamplingOptions(seed=o.seed), **watch)

    jobs = []
    for path in inputs:
        record = {"use": "denoise", **dataclasses.asdict(o), "input": _identity(path)}
        stem = filesystem.safe_name(Path(path).stem, n_bytes=100)
        jobs.append((name or f"{stem} denoised", record, partial(make, path)))
    return _write_all(opened, folder, jobs, **watch)


def interpolate(
    opened: Instrument,
    ends: tuple[str | Path, str | Path],
    folder: str | Path,
    options: Interpolation | None = None,
    **watch,
) -> list[Path]:
    """As :func:`generate`: sounds between two recordings in equal shares, as ``A to B 2 of 5.wav``."""
    model, o = opened.model, options or Interpolation()
    inference.check_denoise(model, o.step, "as_is", o.label)
    a, b = (audio.read(path, opened.features.sample_rate_hz).samples for path in ends)
    shared = {"use": "interpolate", **dataclasses.asdict(o), "first": _identity(ends[0]), "second": _identity(ends[1])}
    stems, jobs = " to ".join(filesystem.safe_name(Path(path).stem, n_bytes=48) for path in ends), []
    for i in range(o.count):  # one at a time: the same noise as all at once
        share = i / (o.count - 1)
        how = (share, o.step, not o.independent_noise, o.label, SamplingOptions(seed=o.seed))
        make = partial(inference.interpolate, model, (a, b), *how)
        name = f"{stems} {i + 1:0{len(str(o.count))}d} of {o.count}"
        jobs.append((name, {**shared, "share_of_second": share}, make))
    return _write_all(opened, folder, jobs, **watch)


def _identity(path: str | Path) -> dict:
    return {"name": Path(path).name, "sha256": filesystem.sha256_file(path)}


def _write_all(opened: Instrument, folder, jobs: Sequence[tuple[str, dict, Callable]], progress=None, cancelled=None):
    """Make and write the sound of each job (file name, settings that make it again, function) that is not there yet."""
    written, progress = [], reporter(progress)
    for i, (name, record, make) in enumerate(jobs):
        raise_if_cancelled(cancelled)
        settings = {
            "tag": audio.SYNTHETIC_TAG,
            "svclib": __version__,
            **record,
            "sample_rate_hz": opened.features.sample_rate_hz,
            "instrument": {"name": opened.name, "kind": opened.kind, "sha256": opened.sha256},
        }
        name = name if Path(name).suffix.lower() in audio.WRITABLE else f"{name}.wav"
        target = Path(folder) / filesystem.safe_path((name,))

        def report(fraction, text, i=i, target=target):
            progress((i + fraction) / len(jobs), f"{i + 1} of {len(jobs)}: {target.stem}, {text}")

        report(0.0, "starting")
        there = _find_made(target, settings)
        if there is None:
            sound = make(callback=inference.step_progress(report), cancelled=cancelled).reshape(-1)
            if not np.isfinite(sound).all():
                raise ModelError("The model produced NaN or infinity: export it again from an earlier checkpoint.")
            there = write_with_settings(target, sound * limiter_gain(sound), settings["sample_rate_hz"], settings)
        written.append(there)
    progress(1.0, "done")
    return written


def _find_made(target: Path, settings: dict) -> Path | None:
    """The sound with these settings among those of this name and number, or None."""
    for path in atomic_store.numbered(target):
        beside = atomic_store.settings_path(path)
        try:
            known = filesystem.read_json(beside)
            if known == {**settings, "sound_sha256": filesystem.sha256_file(path)}:
                return path
        except (ValueError, OSError):  # one of the two is missing or damaged
            if not path.exists() and not beside.exists():
                return None
    return None
