"""What DiffWave generated, denoised or interpolated, as files: one sound after the other, each with how it was made.

Every sound is written as soon as it is made, so that whatever ends the work keeps the finished ones. Beside it lies
``<file>.json``, which makes it again; where the very same sound already lies there it is not made twice. A name that is
taken by anything else gets a number: nothing is ever overwritten.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from svclib import __version__
from svclib.audio import io as audio
from svclib.conversion.pipeline import PEAK_LIMIT
from svclib.models import instrument
from svclib.models.diffwave import inference as diffwave_uses
from svclib.models.instrument import Instrument
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ModelError
from svclib.utils.progress import ProgressCallback, raise_if_cancelled


def open_model(path: str | Path) -> Instrument:
    """Open an instrument file of a DiffWave that makes sound of noise or labels.

    Args:
        path: The zip.

    Returns:
        The instrument, as what the functions below take.

    Raises:
        ModelError: for any other kind of instrument, or a DiffWave that follows a mel.
        ModelError: as ``instrument.open``.
    """
    opened = instrument.open(path)
    if opened.kind != "diffwave":
        raise ModelError(
            f"'{opened.name}' is an instrument of kind '{opened.kind}'; this needs a 'diffwave' trained without a mel, "
            "such as one of diffwave_digits."
        )
    if opened.model.contract is not None:
        raise ModelError(f"'{opened.name}' is a vocoder: it follows a mel. svclib vocode plays songs through it.")
    return opened


def generate(
    opened: Instrument,
    folder: str | Path,
    count: int = 1,
    labels: Sequence[str | None] = (None,),
    seed: int = 0,
    seconds: float | None = None,
    fast: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """``count`` sounds of every label as ``7_003_seed12.wav``: label, number, and the seed that makes it again alone.

    Args:
        opened: From :func:`open_model`.
        folder: Where they go.
        count: Sounds per label; the number ``i`` has the seed ``seed + i``.
        labels: What to ask for; ``(None,)`` for a model without labels.
        seed: Of the first of every label, number 0.
        seconds: Length of each; the model's own if None.
        fast: By the model's fast schedule.
        progress: Called with a fraction of all sounds and a text.
        cancelled: Asked before every step of a walk.

    Returns:
        Their files, label by label; those that lay there already are among them.

    Raises:
        ModelError: before anything is made, where a label or a number cannot be.
        Cancelled: the finished ones stay.
    """
    model, rate = opened.model, opened.features.sample_rate_hz
    seconds = model.settings.sound_s if seconds is None else seconds
    n = round(seconds * rate)
    if count < 1 or n < 1 or seed < 0:
        raise ModelError(
            f"{count} sounds of {seconds:g} s from seed {seed} were asked for; ask for at least one, of some length, "
            "from a seed of 0 or more."
        )
    for label in labels:
        diffwave_uses.condition(model, label, 1)
    jobs = []
    for label in labels:
        for i in range(count):
            name = f"{'' if label is None else label + '_'}{i:03d}_seed{seed + i}"
            said = {"label": label, "seed": seed + i, "seconds": seconds, "fast": fast}
            jobs.append((name, {"use": "generate", **said}, {"label": label, "seed": seed + i}))

    def made(job: dict, report) -> np.ndarray:
        return diffwave_uses.generate(model, n, fast=fast, progress=report, cancelled=cancelled, **job)[0]

    return _write_all(opened, folder, jobs, made, progress, cancelled)


def denoise(
    opened: Instrument,
    inputs: Sequence[str | Path],
    folder: str | Path,
    t: int = 25,
    reading: str = "as_is",
    label: str | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """Recordings, denoised, as ``<recording> denoised.wav``; ``name`` (with an ending) names the only one otherwise.

    Args:
        opened: From :func:`open_model`.
        inputs: Recordings of any rate and number of channels.
        folder: Where the results go.
        t: Step to walk back from, 1 to the model's last; the higher, the more is taken out and made up.
        reading: What is walked back: the recording ``as_is``, or ``scaled`` with noise of that step added.
        label: What to ask for; None for a model without labels.
        seed: Of all noise, the same for every recording.
        name: File name of the result, ``.wav`` added where it has no ending of a sound file.
        progress: Called with a fraction of all recordings and a text.
        cancelled: Asked before every step of a walk.

    Returns:
        A file for each recording, in their order; those that lay there already are among them.

    Raises:
        ModelError: as ``diffwave_uses.denoise``, before anything is read.
        StorageError, AudioError: for a file that is missing, or cannot be read as sound.
        Cancelled: the finished ones stay.
    """
    model = opened.model
    diffwave_uses.denoise_checked(model, t, reading, label)
    said = {"use": "denoise", "step": t, "reading": reading, "label": label, "seed": seed}
    jobs = [(name or f"{Path(p).stem} denoised", {**said, "input": _known(p)}, p) for p in inputs]

    def made(path: Path, report) -> np.ndarray:
        recording = audio.read(path, opened.features.sample_rate_hz).samples
        return diffwave_uses.denoise(model, recording, t, reading, label, seed, progress=report, cancelled=cancelled)

    return _write_all(opened, folder, jobs, made, progress, cancelled)


def interpolate(
    opened: Instrument,
    first: str | Path,
    second: str | Path,
    folder: str | Path,
    count: int = 5,
    t: int = 50,
    shared_noise: bool = True,
    label: str | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Path]:
    """``count`` sounds from ``first`` to ``second`` in equal shares, as ``A to B 2 of 5.wav``.

    Args:
        opened: From :func:`open_model`.
        first: A recording of any rate and number of channels.
        second: The other one; the shorter of both is followed by silence.
        folder: Where the sounds go.
        count: At least 2, the ends among them.
        t: Step at which the two are mixed, 1 to the model's last.
        shared_noise: One noise for both ends; else one for each, see ``diffwave_uses.interpolate``.
        label: What to ask for; None for a model without labels.
        seed: Of all noise, the same for every sound.
        progress: Called with a fraction of all sounds and a text.
        cancelled: Asked before every step of a walk.

    Returns:
        Their files, from ``first`` to ``second``; those that lay there already are among them.

    Raises:
        ModelError: as ``diffwave_uses.interpolate``.
        AudioError: for a file that cannot be read.
        Cancelled: the finished ones stay.
    """
    model, rate = opened.model, opened.features.sample_rate_hz
    diffwave_uses.denoise_checked(model, t, "as_is", label)
    if count < 2:
        raise ModelError(f"{count} sounds between two were asked for; ask for at least 2, the ends among them.")
    a, b = (audio.read(p, rate).samples for p in (first, second))
    said = {"use": "interpolate", "step": t, "shared_noise": shared_noise, "label": label, "seed": seed}
    said |= {"first": _known(first), "second": _known(second)}
    digits, jobs = len(str(count)), []
    for i in range(count):
        share = i / (count - 1)
        name = f"{Path(first).stem} to {Path(second).stem} {i + 1:0{digits}d} of {count}"
        jobs.append((name, {**said, "share_of_second": share}, share))

    def made(share: float, report) -> np.ndarray:  # one at a time: the same walk and noise as all at once
        return diffwave_uses.interpolate(
            model, a, b, (share,), t, shared_noise, label, seed, progress=report, cancelled=cancelled
        )[0]

    return _write_all(opened, folder, jobs, made, progress, cancelled)


# Inside ---------------------------------------------------------------------------------------------------------------


def _known(path: str | Path) -> dict:
    return {"name": Path(path).name, "sha256": filesystem.sha256_file(path)}


def _write_all(opened: Instrument, folder, jobs, make, progress, cancelled) -> list[Path]:
    written = []
    for i, (name, said, job) in enumerate(jobs):
        raise_if_cancelled(cancelled)
        settings = {
            "tag": audio.SYNTHETIC_TAG,
            "svclib": __version__,
            **said,
            "sample_rate_hz": opened.features.sample_rate_hz,
            "instrument": {"name": opened.name, "kind": opened.kind, "sha256": opened.sha256},
        }
        target = Path(folder) / filesystem.safe_name(name if Path(name).suffix in audio.WRITABLE else f"{name}.wav")
        if progress is not None:
            progress(i / len(jobs), target.stem)
        if not _lies_there(target, settings):

            def report(fraction, text, i=i, target=target):
                if progress is not None:
                    progress((i + fraction) / len(jobs), f"{i + 1} of {len(jobs)}: {target.stem}, {text}")

            target = _save(target, make(job, report), settings)
        written.append(target)
    if progress is not None:
        progress(1.0, "done")
    return written


def _lies_there(target: Path, settings: dict) -> bool:
    beside = target.with_name(target.name + ".json")
    if not target.exists() or not beside.exists():
        return False
    try:
        return filesystem.read_json(beside) == settings
    except (ValueError, OSError):
        return False


def _save(target: Path, sound: np.ndarray, settings: dict) -> Path:
    if not np.isfinite(sound).all():
        raise ModelError("The model made values that are no numbers: export it again from an earlier checkpoint.")
    peak = float(np.abs(sound).max())
    sound = sound * np.float32(min(1.0, PEAK_LIMIT / max(peak, 1e-9)))
    tags = {"comment": f"{audio.SYNTHETIC_TAG}; {json.dumps(settings, ensure_ascii=False)}"}
    path = audio.write(target, sound, settings["sample_rate_hz"], tags, new_name=True).path
    text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
    atomic_store.commit_new(path.with_name(path.name + ".json"), lambda part: part.write_text(text, encoding="utf-8"))
    return path
