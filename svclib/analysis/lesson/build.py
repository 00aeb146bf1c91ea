"""A lesson of eight pages about one song: how a diffusion model makes it out of noise; and one about DiffWave.

:func:`make` lets a model sing a stretch several times from the same noise, :func:`document` puts it on one
self-contained page: ``player.html`` with ``lesson.html`` on top. :func:`example` is a lesson that comes with the
package (``benchmarks/example_lesson.py`` made it from the synthetic singers).
"""

import base64
import dataclasses
import gzip
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.analysis import ablation, interventions, player
from svclib.analysis import html as page
from svclib.analysis.lesson import diffwave
from svclib.analysis.lesson import text as lesson_pages
from svclib.analysis.player import Run, StepAudio
from svclib.audio import griffin_lim
from svclib.conversion.song import load_song
from svclib.utils.errors import ConversionError
from svclib.utils.progress import ProgressCallback, raise_if_cancelled, reporter

EXAMPLE = Path(__file__).with_name("lesson_example.json.gz")
COMPARED_STEPS = 8
GUESSED_STEPS = 12
MAX_BYTES = player.LARGE_BYTES
FEWER = (4, 10)
STEPS = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """What the pages show.

    Attributes:
        title: Of the page.
        facts: Names and numbers for the pages' texts, see ``lesson_pages.pages``.
        groups: Runs: the main one; ingredients switched; fewer steps; a few steps of the main one as they sound without
            a vocoder.
        sounds: ``source``, ``result``, perhaps ``target``: ``(samples, sample_rate_hz)``.
        wave: The DiffWave group, as ``player.group`` data.
    """

    title: str
    facts: dict
    groups: tuple[list[Run], ...]
    sounds: Mapping[str, tuple[np.ndarray, int]]
    wave: dict

    @property
    def predicted_bytes(self) -> int:
        """About how large the page will be."""
        runs = sum(player.predicted_bytes(group) for group in self.groups)
        heard = sum(len(page.encode(*sound)[0]) for sound in self.sounds.values()) * 4 / 3
        return int(runs + heard + len(player.dumps(self.wave)))


def make(
    instrument: Any,
    song: Any,
    start_s: float | int = 0.0,
    seconds: float | int = 5.0,
    steps: int = STEPS,
    seed: int = 0,
    method: str | None = None,
    singer: str | None = None,
    target: tuple[str, np.ndarray, int] | None = None,
    wave: dict | None = None,
    wave_facts: dict | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    watch: Callable | None = None,
) -> Lesson:
    """Let a diffusion instrument sing a stretch as often as the lesson needs, always from the same noise.

    Args:
        instrument: From ``instrument.open``, of kind ``diffusion``.
        song: From ``conversion.load_song`` with the instrument's features.
        start_s: Where the stretch begins in the song, in seconds.
        seconds: Its length; where the song ends before, it is shorter.
        steps: Of the main run, all of which are kept; 8 to 1000.
        seed: Of the noise.
        method: A sampler; the instrument's own if None.
        singer: Who sings; the instrument's first singer if None.
        target: ``(name, samples, sample_rate_hz)`` of the voice itself, to listen to.
        wave: A DiffWave group, from ``player.group``; the example's if None.
        wave_facts: Its ``wave_steps`` and ``wave_text``; needed with ``wave``, not read without.
        progress: Called with a fraction and a text, at every step.
        cancelled: Asked at every step.
        watch: See ``ablation.run``.

    Returns:
        What :func:`document` makes the page of.

    Raises:
        ConversionError: for an instrument of another kind, or too few or too many steps.
        ConversionError: if nothing of the song is left, or it is too long.
        Cancelled: if ``cancelled`` says so.
    """
    require_diffusion(instrument)
    if not COMPARED_STEPS <= steps <= 1000:
        raise ConversionError(
            f"The lesson is to have {steps} steps; take from {COMPARED_STEPS} to 1000, such as {STEPS}."
        )
    model = instrument.model
    asked = interventions.cut_excerpt(song, instrument.statistics, start_s, seconds)
    others = [name for name in model.singers if name != (singer or model.singers[0])]
    changed: list[tuple[str, tuple[interventions.Intervention, ...]]] = [("all three", ())]
    changed += [(f"{name} off", (interventions.Intervention(name),)) for name in ("content", "melody", "timbre")]
    changed += (
        [(f"timbre of {others[0]}", (interventions.Intervention("timbre", "swap", singer=others[0]),))]
        if others
        else []
    )
    fewer = [n for n in FEWER if n < steps]
    calls = [(changes, steps, label) for label, changes in changed[1:]]
    calls += [((), n, f"{n} steps") for n in fewer]
    n_sounds = steps + COMPARED_STEPS * len(calls) + 2 * GUESSED_STEPS
    share = 1 / (steps + sum(n for _, n, _ in calls) + 2 * n_sounds)  # a sound costs about as much as two steps
    done, report = [0.0], reporter(progress, cancelled)

    def part(weight, text):
        begin, done[0] = done[0], done[0] + weight * share
        return lambda fraction, more="": report(begin + fraction * weight * share, f"{text}: {more}" if more else text)

    def sing(changes, n, label):
        return ablation.run(
            model,
            asked,
            changes,
            method,
            n,
            seed=seed,
            singer=singer,
            features=False,
            label=label,
            progress=part(n, label),
            cancelled=cancelled,
            watch=watch,
        )

    def heard(sung, label, brief):
        trace = sung.trace
        positions = _few(len(trace)) if brief else np.arange(len(trace))
        progress = part(2 * len(positions), f"{label}: sound")
        if any(change.factor == "melody" for change in sung.changes):  # a vocoder would be told the melody all the same
            sounds = render_from_mel(trace, model.contract, positions, seed, progress, cancelled)
        else:
            sounds = ablation.render_audio(model, sung, positions, seed, progress, cancelled)
        kept = {k: sounds.audio[int(i)] for k, i in enumerate(positions)}
        quieter = {k: sounds.quieter_db[int(i)] for k, i in enumerate(positions) if int(i) in sounds.quieter_db}
        of_steps = StepAudio(kept, sounds.sample_rate_hz, sounds.kind, quieter)
        trace = trace.steps(positions)
        pitch = player.measure_f0(trace, of_steps, instrument.features.f0_method)
        return Run(trace, label, of_steps, pitch, brief=brief), sounds.audio.get(len(sung.trace))

    name = f"{steps} steps"
    main = sing((), steps, name)
    run, result = heard(main, name, brief=False)
    positions = _few(len(main.trace))
    brief = Run(
        main.trace.steps(positions),
        name,
        StepAudio({k: run.sounds.audio[int(i)] for k, i in enumerate(positions)}, run.sounds.sample_rate_hz),
        {k: run.sung[int(i)] for k, i in enumerate(positions) if int(i) in run.sung},
        brief=True,
    )
    unaided = main.trace.steps(_few(len(main.trace), GUESSED_STEPS))
    progress = part(4 * GUESSED_STEPS, "sound from pictures alone")
    plain = render_from_mel(unaided, model.contract, range(len(unaided)), seed, progress, cancelled)
    pitch = player.measure_f0(unaided, plain, instrument.features.f0_method)
    guessed = Run(unaided, name, plain, pitch, brief=True)
    compared = [heard(sing(*call), call[2], brief=True)[0] for call in calls]
    if wave is None:
        stored = _stored()
        wave, wave_facts = stored["groups"][3], stored["facts"]
    voice = singer or (model.singers[0] if len(model.singers) > 1 else instrument.name)
    facts = {
        "song": asked.name,
        "voice": voice,
        "steps": len(main.trace),
        "seed": seed,
        "target": target[0] if target else "",
        "without": [label for label, _ in changed],
        "fewer": [name, *(f"{n} steps" for n in fewer)],
        "caution": interventions.dropout_warning(model.settings, [interventions.Intervention("content")]),
        "method": main.trace.info["method"],
        **{k: wave_facts[k] for k in ("wave_steps", "wave_text")},
    }
    rate_hz = song.features.settings.sample_rate_hz
    sounds = {"source": (asked.audio, rate_hz), "result": (result, run.sounds.sample_rate_hz)}
    if target:
        sounds["target"] = target[1:]
    report(1.0, "done")
    without = [dataclasses.replace(brief, label="all three"), *compared[: len(changed) - 1]]
    groups = ([run], without, [brief, *compared[len(changed) - 1 :]], [guessed])
    return Lesson(f"How {voice} sings {asked.name}", facts, groups, sounds, wave)


def from_file(
    instrument: Any,
    path: str | Path,
    start_s: float | int = 0.0,
    seconds: float | int = 5.0,
    steps: int = STEPS,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
    watch: Callable | None = None,
) -> tuple[str, str]:
    """The page of an instrument and a song's file: a lesson for ``diffusion``, the steps of a sound for ``diffwave``.

    Args:
        instrument: From ``instrument.open``.
        path: The song's file; a DiffWave that takes no mel does not read it.
        start_s: Where the stretch begins in the song, in seconds.
        seconds: Its length; of a DiffWave's page at most 5.
        steps: Of the lesson's main run; a DiffWave takes its own.
        seed: Of the noise.
        progress: Called with a fraction and a text, at every step.
        cancelled: Asked at every step; True raises ``Cancelled``.
        note: Told the predicted size before anything is sung, and again before the page is made; of a DiffWave's page
            the size it has, once it is made.
        watch: See ``ablation.run``; of no use to a DiffWave.

    Returns:
        ``(page, what it is in words)``.

    Raises:
        ConversionError: for another kind of instrument, or a page above 10 MB; says what to do.
    """
    report, tell = reporter(progress, cancelled), note or (lambda text: None)
    if instrument.kind == "diffwave":
        needs_song = instrument.model.settings.condition == "mel"
        song = load_song(path, instrument.features) if needs_song else None
        seconds = min(seconds, diffwave.MAX_S)
        text = diffwave.document(instrument, song, start_s, seconds, seed, report, cancelled)
        tell(check_size(len(text.encode())))
        return text, f"a page of DiffWave's steps, {seconds:g} s"
    require_diffusion(instrument)
    contract = instrument.model.contract
    tell(check_size(estimate_bytes(seconds, steps, contract), max_seconds(steps, contract)))
    song = load_song(path, instrument.features, None, lambda f, text="": report(0.1 * f, text))
    made = make(
        instrument,
        song,
        start_s,
        seconds,
        steps,
        seed,
        cancelled=cancelled,
        watch=watch,
        progress=lambda f, text="": report(0.1 + 0.85 * f, text),
    )
    tell(check_size(made.predicted_bytes))
    return document(made), f"a lesson of eight pages, {made.title}"


def render_from_mel(trace, contract, positions, seed=0, progress=None, cancelled=None) -> StepAudio:
    """Guesses of steps made audible from their mels alone (phase reconstruction): nothing is told about the pitch."""

    def sound(log_mel):
        raise_if_cancelled(cancelled)
        return griffin_lim.griffin_lim(torch.from_numpy(np.ascontiguousarray(log_mel))[None], contract, seed=seed)[
            0
        ].numpy()

    made = player.render_steps(trace, sound, positions, progress)
    return dataclasses.replace(made, kind="the guess, from its picture alone,")


def require_diffusion(instrument) -> None:
    """Raise the sentence for an instrument that no lesson can be made with."""
    if instrument.kind != "diffusion":
        raise ConversionError(
            f"'{instrument.name}' is of kind '{instrument.kind}'; it does not sing step by step out of noise, so there "
            "are no steps to show. Take a diffusion or a DiffWave instrument."
        )


def document(lesson: Lesson) -> str:
    """The lesson as one self-contained page."""
    return _fill(data(lesson))


def data(lesson: Lesson) -> dict:
    """Everything the page shows, as plain JSON values."""
    encoded = {name: page.encode(*sound) for name, sound in lesson.sounds.items()}
    sounds = {name: [mime, base64.b64encode(bytes_).decode()] for name, (bytes_, mime) in encoded.items()}
    main, without, fewer, guessed = (player.group(group) for group in lesson.groups)
    groups = [main, without, fewer, lesson.wave, guessed]
    return {"title": lesson.title, "facts": lesson.facts, "groups": groups, "sounds": sounds}


def example() -> str:
    """The lesson that comes with the package, as a page. No training, no network."""
    return _fill(_stored())


def example_diffwave() -> str:
    """DiffWave at work, from the package: sounds out of noise, noise taken out, a sound between two sounds."""
    stored = _stored()["diffwave"]
    return player.fill(player.dumps({"title": stored["title"], **stored["group"], "more": []}), stored["title"])


def check_size(n_bytes: int, fits_s: float | int | None = None) -> str:
    """Refuse a page that is too large.

    Args:
        n_bytes: Of the page, predicted or counted.
        fits_s: The longest stretch that fits, where it is known, to be named where ``n_bytes`` are too many.

    Returns:
        The size in MB, as a sentence.

    Raises:
        ConversionError: if a lesson of that size would be refused.
    """
    if n_bytes > MAX_BYTES:
        advice = f"; up to {fits_s:g} s fit here" if fits_s else ""
        raise ConversionError(
            f"The lesson would have about {n_bytes / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} MB open everywhere. "
            f"Take a shorter stretch (--seconds, or the length in the panel{advice}) or fewer steps."
        )
    return f"The lesson will have about {n_bytes / 1e6:.1f} MB."


def estimate_bytes(seconds: float | int, steps: int, contract, n_compared: int = 6) -> int:
    """About how large a lesson will be, before anything is sung: 0.6 to 0.7 bytes a bin, 4 kB a second of sound."""
    bins = seconds * contract.sample_rate_hz / contract.hop_samples * contract.n_mels
    kept = steps + COMPARED_STEPS * (n_compared + 2) + GUESSED_STEPS
    return int(4 / 3 * (0.7 * bins * kept + 0.6 * bins * steps + 4000 * seconds * (kept + 3)) + 5e5)


def max_seconds(steps: int, contract) -> float:
    """The longest stretch of which a lesson stays below 10 MB by :func:`estimate_bytes`, in seconds, rounded down; a model
    of 128 mels at 44.1 kHz has less room than one of 80 mels at 22.05 kHz."""
    empty = estimate_bytes(0, steps, contract)
    return math.floor(10 * (MAX_BYTES - empty) / (estimate_bytes(1, steps, contract) - empty)) / 10


def _fill(stored: dict) -> str:
    lines = lesson_pages.pages(stored["facts"])
    group = stored["groups"][0]
    method = stored["facts"]["method"]
    pages = {
        "pages": lines,
        "words": lesson_pages.WORDS,
        "sounds": stored["sounds"],
        "bin": [group["mels"] // 5, group["frames"] // 2],
        "method_note": f"The sampler here is {method}: it also looks back at the step before, or adds fresh noise, as "
        "its rule says; the two lines above are what all of them share."
        if method != "ddim"
        else "",
    }
    text = {"title": stored["title"], **group, "more": stored["groups"][1:]}
    return player.fill(player.dumps(text), stored["title"], player.dumps(pages))


def _few(n: int, wanted: int = COMPARED_STEPS) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(wanted, n)).round().astype(int))


def _stored() -> dict:
    return json.loads(gzip.decompress(EXAMPLE.read_bytes()))
