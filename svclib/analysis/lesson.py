"""A lesson of eight or nine pages about a song: how a diffusion model makes it out of noise; pages about DiffWave.

:func:`make` samples an excerpt several times from the same noise, :func:`document` puts it on one page: ``player.html``
with ``lesson.html`` and ``lesson_pages.json``. :func:`example` is a lesson made by ``benchmarks/example_lesson.py``.
"""

import base64
import dataclasses
import functools
import gzip
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from svclib.analysis import ablation, player, step_audio
from svclib.analysis import html as page
from svclib.analysis.ablation import Intervention
from svclib.analysis.player import Run
from svclib.analysis.recorder import Recorder
from svclib.analysis.trace import Trace
from svclib.audio import io as audio_files
from svclib.conversion import recognition
from svclib.conversion.controls import Controls
from svclib.conversion.song import load_song
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffusion.schedule import x0_from_eps
from svclib.models.diffwave import inference
from svclib.utils.errors import ConversionError, reporter

EXAMPLE = Path(__file__).with_name("lesson_example.json.gz")
MAX_BYTES, WAVE_S = 10_000_000, 5.0
STEPS, COMPARED_STEPS, GUESSED_STEPS, WAVE_STEPS = 50, 8, 12, 12
FEWER, JUMPS = (4, 10), (1, 2, 4)
_MARKED = re.compile(r"(\[\[.*?\]\]|\*[^*]+\*)")  # a word of the glossary, an emphasis
_METHOD_NOTE = "It also uses the step before, or adds fresh noise; the two lines above are what all samplers share."


@dataclasses.dataclass(frozen=True)
class LessonOptions:
    """Excerpt and sampling of the main run, of which all 8 to 1000 steps are kept; the first singer if None.

    With ``words`` the character error rate of the compared steps of the main run, by Whisper: seconds for each. A
    ``student`` that was distilled from the instrument (an ``Instrument``) adds the ninth page.
    """

    start_s: float | int = 0.0
    seconds: float | int = 5.0
    steps: int = STEPS
    seed: int = 0
    singer: str | None = None
    words: bool = False
    student: Any = None


DEFAULTS = LessonOptions()


class Lesson(NamedTuple):
    """Values for the texts (see :func:`pages`), runs, sounds ``(samples, sample_rate_hz)``, and the DiffWave group.

    The groups of runs: the main one; interventions; fewer steps; steps of the main one rendered without a vocoder; with
    a student the main one, the student's jumps from its states, and the student's own runs.
    """

    title: str
    facts: dict
    groups: tuple[list[Run], ...]
    sounds: dict[str, tuple[np.ndarray, int]]
    wave: dict


def make(
    instrument, song, options=DEFAULTS, target=None, wave=None, progress=None, cancelled=None, callback=None
) -> Lesson:
    """Make all runs of a lesson with a diffusion instrument, from the same noise.

    ``target``, to listen to, is ``(name, samples, sample_rate_hz)`` of the target voice. ``wave`` is a DiffWave group
    from ``player.group`` with its facts, by default those of the example. ``callback``: see ``ablation.run``.
    """
    o, model = options, instrument.model
    if not COMPARED_STEPS <= o.steps <= 1000:
        raise ConversionError(f"The lesson has {o.steps} steps; choose {COMPARED_STEPS} to 1000, such as {STEPS}.")
    student = _student(o.student, instrument)
    excerpt = ablation.cut_excerpt(song, instrument.statistics, o.start_s, o.seconds)
    others = [name for name in model.singers if name != (o.singer or model.singers[0])]
    changes = [Intervention(factor) for factor in ("content", "melody", "timbre")]
    changes += [Intervention("timbre", "swap", singer=others[0])] if others else []
    fewer = [n for n in FEWER if n < o.steps]
    compared = [((change,), o.steps, change.text) for change in changes] + [((), n, f"{n} steps") for n in fewer]
    jumps = JUMPS if student else ()
    n_sounds = o.steps + COMPARED_STEPS * (len(compared) + bool(student)) + GUESSED_STEPS + sum(jumps)
    n_steps = o.steps + sum(n for _, n, _ in compared) + sum(jumps)
    share = 1 / (n_steps + 2 * n_sounds)  # rendering costs about as much as two steps
    done, report = [0.0], reporter(progress, cancelled)

    def part(weight: int, text: str):
        begin, done[0] = done[0], done[0] + weight * share
        return lambda fraction, more="": report(begin + fraction * weight * share, f"{text}: {more}" if more else text)

    def sample(changes, n: int, label: str, model=model) -> ablation.RunResult:
        run_options = ablation.RunOptions(SamplingOptions(steps=n, seed=o.seed), features=False, singer=o.singer)
        return ablation.run(model, excerpt, changes, run_options, label, part(n, label), cancelled, callback)

    def render(result: ablation.RunResult, positions, compact: bool = True, mel_only: bool = False):
        """The run at some steps, and the sound of its result."""
        # a vocoder would receive the melody that was switched off
        mel_only = mel_only or any(change.factor == "melody" for change in result.interventions)
        trace, watch = result.trace, part(2 * len(positions), f"{result.label}: sound")
        audio = step_audio.render_audio(model, trace, positions, o.seed, watch, cancelled, mel_only)
        kept, sounds = trace.steps(positions), audio.at(positions)
        f0 = step_audio.measure_f0(kept, sounds, instrument.features.f0_method)
        return Run(kept, result.label, sounds, f0, compact=compact), audio.audio[len(trace)]

    main = sample((), o.steps, f"{o.steps} steps")
    n, rate_hz = len(main.trace), song.features.settings.sample_rate_hz
    run, result_audio = render(main, np.arange(n), compact=False)
    positions = _evenly(n)
    if o.words:
        source, watch = (excerpt.audio, rate_hz), part(0, "words")
        words = step_audio.character_error_rates(recognition.WhisperRecognizer(), run.audio, positions, *source, watch)
        run = dataclasses.replace(run, words=words)
    guessed, _ = render(main, _evenly(n, GUESSED_STEPS), mel_only=True)
    f0 = {k: run.f0[i] for k, i in enumerate(positions.tolist()) if i in run.f0}
    brief = Run(main.trace.steps(positions), main.label, run.audio.at(positions), f0, compact=True)
    results = [sample(*call) for call in compared]
    runs = [render(result, _evenly(len(result.trace)))[0] for result in results]
    jumped = []
    if student:
        landed = ablation.RunResult("the student's jump from there", _jumps(student, main, positions, o), excerpt)
        results = [sample((), n, f"the student: {n} step{'s' * (n > 1)}", student) for n in jumps]
        jumped = [brief, *(render(result, np.arange(len(result.trace)))[0] for result in (landed, *results))]
    if wave is None:
        stored = example_data()
        wave = stored["groups"][3], stored["facts"]
    voice = o.singer or (model.singers[0] if len(model.singers) > 1 else instrument.name)
    without = [dataclasses.replace(brief, label="all three"), *runs[: len(changes)]]
    fewer = [brief, *runs[len(changes) :]]
    facts = {"song": excerpt.name, "voice": voice, "steps": n, "seed": o.seed, "target": target[0] if target else ""}
    facts |= {name: wave[1][name] for name in ("wave_steps", "wave_text")}
    facts |= {"method": main.trace.info["method"], "caution": ablation.dropout_warning(model.settings, changes[:1])}
    facts |= {"without": [run.label for run in without], "fewer": [run.label for run in fewer]}
    facts |= {"jumps": [f"the teacher: {main.label}", *(run.label for run in jumped[1:])]} if jumped else {}
    sounds = {"source": (excerpt.audio, rate_hz), "result": (result_audio, main.trace.sample_rate_hz)}
    sounds |= {"target": target[1:]} if target else {}
    report(1.0, "done")
    groups = ([run], without, fewer, [guessed], *([jumped] if jumped else []))
    return Lesson(f"How {voice} sings {excerpt.name}", facts, groups, sounds, wave[0])


def _student(student, teacher):
    """The model of an instrument that was distilled from another, None for None."""
    if teacher.model.settings.prediction == "consistency":
        raise ConversionError(f"'{teacher.name}' is a student, which has no steps to show; give its teacher as well.")
    if student is None:
        return None
    if student.kind != "diffusion" or student.model.settings.prediction != "consistency":
        raise ConversionError(f"'{student.name}' was not distilled; make a student of '{teacher.name}' (distill).")
    if student.features != teacher.features:
        raise ConversionError(f"'{student.name}' has other features than '{teacher.name}'; it is no student of it.")
    return student.model


def _jumps(student, main: ablation.RunResult, positions: np.ndarray, options: LessonOptions) -> Trace:
    """The states of a run at some positions, each with the student's estimate of the clean mel from there."""
    kept = main.trace.steps(positions)
    denoiser = student.prepare(ablation.build_condition(student, main.excerpt, (), options.singer))
    guesses = []
    for x_t, t, alpha, sigma in zip(kept.x_t, kept.t, kept.alpha, kept.sigma, strict=True):
        x_t = torch.from_numpy(x_t.astype(np.float32))[None].to(student.device)
        x0 = x0_from_eps(x_t, denoiser(x_t, float(t)), float(alpha), float(sigma)).clamp(-1, 1)
        guesses.append(x0[0].cpu().numpy().astype(kept.x0_hat.dtype))
    return dataclasses.replace(kept, x0_hat=np.stack(guesses))


def from_file(
    instrument, path: str | Path, options=DEFAULTS, progress=None, cancelled=None, note=None, callback=None, voice=None
) -> tuple[str, str]:
    """The page of an instrument and a song file, and its description: a lesson, or the sampling steps of a DiffWave.

    A DiffWave that is not a vocoder does not read the song; its page holds at most 5 s. ``note`` receives the size of
    the page, estimated and in the end. ``callback``: see ``ablation.run``, not for a DiffWave. ``voice`` is a folder
    with recordings of the target voice to listen to. ConversionError for another kind, or a page above 10 MB.
    """
    report, note = reporter(progress, cancelled), note or (lambda text: None)
    if instrument.kind == "diffwave":
        song = load_song(path, instrument.features) if instrument.model.settings.condition == "mel" else None
        seconds = min(options.seconds, WAVE_S)
        text = diffwave_document(instrument, song, options.start_s, seconds, options.seed, report)
        about = f"a page of DiffWave's steps, {seconds:g} s"
    elif instrument.kind == "diffusion":
        contract = instrument.model.contract
        size = estimate_bytes(options.seconds, options.steps, contract, 9 if options.student else 6)
        note(check_size(size, max_seconds(options.steps, contract)))
        song = load_song(path, instrument.features, None, lambda f, text="": report(0.1 * f, text))

        recordings = audio_files.find(voice)[0] if voice is not None and voice.is_dir() else []
        target = None
        if recordings:
            target = (f"{voice.name}, recorded", *audio_files.beginning(recordings[0], options.seconds))
        watch = {"progress": lambda f, text="": report(0.1 + 0.85 * f, text), "cancelled": cancelled}
        made = make(instrument, song, options, target, **watch, callback=callback)
        about = f"a lesson of {'nine' if options.student else 'eight'} pages, {made.title}"
        text = document(data(made))
    else:
        raise ConversionError(
            f"'{instrument.name}' is of kind '{instrument.kind}', which has no sampling steps to show.",
            hint="Take a diffusion or a DiffWave instrument.",
        )
    note(check_size(len(text.encode())))
    return text, about


def document(stored: dict) -> str:
    """The lesson as one self-contained page, from its :func:`data`."""
    group, method = stored["groups"][0], stored["facts"]["method"]
    lesson = {
        **pages(stored["facts"]),
        "sounds": stored["sounds"],
        "bin": [group["mels"] // 5, group["frames"] // 2],
        "method_note": "" if method == "ddim" else f"The sampler here is {method}. {_METHOD_NOTE}",
    }
    return player.fill({"title": stored["title"], **group, "more": stored["groups"][1:]}, lesson)


def data(lesson: Lesson) -> dict:
    """A lesson as JSON values."""
    encoded = {name: page.encode(*sound) for name, sound in lesson.sounds.items()}
    sounds = {name: [mime, base64.b64encode(bytes_).decode()] for name, (bytes_, mime) in encoded.items()}
    main, without, fewer, guessed, *jumped = (player.group(group) for group in lesson.groups)
    groups = [main, without, fewer, lesson.wave, guessed, *jumped]
    return {"title": lesson.title, "facts": lesson.facts, "groups": groups, "sounds": sounds}


def example_data() -> dict:
    """:func:`data` of the lesson that comes with the package, and of its DiffWave page."""
    return json.loads(gzip.decompress(EXAMPLE.read_bytes()))


def example() -> str:
    """The lesson that comes with the package, as a page."""
    return document(example_data())


def example_diffwave() -> str:
    """The DiffWave page that comes with the package: generation, denoising and interpolation."""
    stored = example_data()["diffwave"]
    return player.fill({"title": stored["title"], **stored["group"], "more": []})


def check_size(n_bytes: int, fits_s: float | int | None = None) -> str:
    """The size of a page as a sentence; ConversionError above 10 MB, naming the length ``fits_s`` that fits."""
    if n_bytes > MAX_BYTES:
        advice = f" (up to {fits_s:g} s fit here)" if fits_s else ""
        raise ConversionError(
            f"The lesson would have about {n_bytes / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:.0f} MB open everywhere.",
            hint=f"Take a shorter excerpt{advice} or fewer steps.",
        )
    return f"The lesson will have about {n_bytes / 1e6:.1f} MB."


def estimate_bytes(seconds: float | int, steps: int, contract, n_compared: int = 6) -> int:
    """Rough size of a lesson before sampling: 0.6 to 0.7 bytes per bin, 4 kB per second of sound."""
    bins = seconds * contract.sample_rate_hz / contract.hop_samples * contract.n_mels
    kept = steps + COMPARED_STEPS * (n_compared + 2) + GUESSED_STEPS
    return int(4 / 3 * (0.7 * bins * kept + 0.6 * bins * steps + 4000 * seconds * (kept + 3)) + 5e5)


def max_seconds(steps: int, contract) -> float:
    """The longest excerpt of which a lesson stays below 10 MB by :func:`estimate_bytes`, in seconds, rounded down."""
    empty = estimate_bytes(0, steps, contract)
    return math.floor(10 * (MAX_BYTES - empty) / (estimate_bytes(1, steps, contract) - empty)) / 10


def pages(facts: dict) -> dict:
    """Texts of the lesson for ``lesson.html``: ``pages`` and the glossary ``words``.

    ``lesson_pages.json`` has for each page ``title``, ``text`` with placeholders (``[[word]]`` is one of ``words``),
    ``cards`` of the player, ``acts`` (buttons, or the name of a list of them that depends on the facts) and ``todo`` (a
    sentence and the events that tick it off).
    """
    book = json.loads(Path(__file__).with_name("lesson_pages.json").read_text(encoding="utf-8"))
    sounds = {"source": f"the song: {facts['song']}", "target": f"the voice: {facts['target']}"}
    sounds["result"] = f"the result: {facts['voice']} sings it"
    if not facts["target"]:
        del sounds["target"]
    acts: dict = {"sounds": [{"kind": "sound", "name": name, "text": text} for name, text in sounds.items()]}
    todo = {"sounds": [(f"you heard {text.split(':')[0]}", f"heard:{name}") for name, text in sounds.items()]}
    book["pages"] = [entry for entry in book["pages"] if entry["acts"] != "jumps" or "jumps" in facts]
    for name in {"without", "fewer", "jumps"} & facts.keys():
        acts[name] = [{"kind": "run", "run": i, "text": label} for i, label in enumerate(facts[name])]
        todo[name] = [(f"you heard: {label}", f"heardrun:{i}") for i, label in enumerate(facts[name])]
    acts["without"] += [{"kind": "note", "text": facts["caution"]}] if facts["caution"] else []
    n, values = facts["steps"], {**facts, "six": min(6, facts["wave_steps"])}
    starts = {"last": n - 1, "third": n // 3, "half": n // 2}
    for entry in book["pages"]:
        named = entry["acts"] if isinstance(entry["acts"], str) else None
        entry["acts"] = acts.get(named, entry["acts"])
        tasks = todo[named] if named else [(text.format_map(values), *when) for text, *when in entry["todo"]]
        entry["todo"] = [{"text": text, "when": when} for text, *when in tasks]
        # at odd places what is marked: names, filled in afterwards, hold no marks
        entry["text"] = [[part.format_map(values) for part in _MARKED.split(text)] for text in entry["text"]]
        entry["step"] = starts.get(entry["step"], entry["step"])
    return book


def _evenly(n: int, most: int = COMPARED_STEPS) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))


# DiffWave: its sampling steps as audio, denoising, interpolation -----------------------------------------------------


def record(model, sample: Callable, label: str, seed: int = 0, progress=None) -> Run:
    """Record ``sample(callback=...)``, a call of ``diffwave.inference``, with audio of states and predictions."""
    recorder, report = Recorder(WAVE_STEPS), reporter(progress)

    def watch(step: SamplerStep) -> None:
        recorder(step)
        report((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    result = torch.from_numpy(np.asarray(sample(callback=watch), np.float32).reshape(1, -1))
    rate_hz = model.features.sample_rate_hz
    trace = recorder.trace(result, "wave", sample_rate_hz=rate_hz, label=label, method="DiffWave", seed=seed)
    end, *states = (x.astype(np.float32) for x in (trace.result, trace.x0_hat, trace.x_t))
    guesses, noisy = (step_audio.common_gain(dict(enumerate(x)), end, rate_hz) for x in states)
    return Run(trace, label, guesses, noisy_audio=noisy)


def fast_and_full(
    model, n_samples: int, label=None, excerpt=None, seed=0, every_step=True, progress=None, cancelled=None
) -> list[Run]:
    """One sound by the fast schedule of the model (six steps in the paper), if it has one, and by all trained steps.

    A vocoder needs the ``excerpt``, other models ``n_samples`` and, if class-conditional, a ``label``. Without
    ``every_step`` the slow run is made only if there is no fast one.
    """
    n_fast, options, report = len(model.settings.fast_etas), SamplingOptions(seed=seed), reporter(progress, cancelled)
    schedules = [True] * bool(n_fast) + [False] * (every_step or not n_fast)
    sample = functools.partial(inference.generate, model, n_samples, label=label, options=options)
    if model.settings.condition == "mel":
        source = (excerpt.log_mel, excerpt.source_f0_hz, excerpt.source_voiced)
        sample = functools.partial(inference.vocode, model, *source, options=options)
    runs = []
    for k, fast in enumerate(schedules):
        name = f"{n_fast if fast else model.settings.n_steps} steps"
        part = functools.partial(lambda k, f, text: report((k + f) / len(schedules), text), k)
        runs.append(record(model, functools.partial(sample, fast=fast), name, seed, part))
    return runs


def four_examples(model, first: np.ndarray, second: np.ndarray, label: str | None, seed: int = 0) -> list[Run]:
    """Generation; denoising of the first of two equally long recordings; interpolation with 0 and 50 % of the other."""
    level = max(float(np.sqrt(np.square(first, dtype=np.float64).mean())), 1e-4)
    noise = np.random.default_rng(seed).standard_normal(len(first)).astype(np.float32)
    noisy, options = first + np.float32(0.5 * level) * noise, SamplingOptions(seed=seed)
    quarter, half = max(2, model.settings.n_steps // 8), max(2, model.settings.n_steps // 4)
    made = fast_and_full(model, len(first), label, seed=seed, every_step=False)[0]
    runs = [dataclasses.replace(made, label=f"generate, {made.label}")]
    cleaned = functools.partial(inference.denoise, model, noisy, quarter, label=label, options=options)
    runs.append(record(model, cleaned, f"denoise, from step {quarter}", seed))
    for share in (0.0, 0.5):
        how = ((first, second), share, half)
        between = functools.partial(inference.interpolate, model, *how, label=label, options=options)
        runs.append(record(model, between, f"interpolate {100 * share:.0f} %, from step {half}", seed))
    return runs


def demonstrate(instrument, seconds: float | int = 1.0, seed: int = 0) -> str:
    """The page of an instrument without mel: :func:`four_examples` on two of its own sounds."""
    model = instrument.model
    if model.settings.condition == "mel":
        raise ConversionError(f"'{instrument.name}' is a vocoder: it needs a mel. Show it with a song instead.")
    labels = model.settings.labels or (None, None)
    n = int(seconds * instrument.features.sample_rate_hz) // 64 * 64
    first = inference.generate(model, n, 1, labels[0], SamplingOptions(seed=seed))[0]
    second = inference.generate(model, n, 1, labels[-1], SamplingOptions(seed=seed + 1))[0]
    return player.document(four_examples(model, first, second, labels[0], seed), f"{instrument.name} at work")


def diffwave_document(instrument, song=None, start_s=0.0, seconds=2.0, seed=0, progress=None, cancelled=None) -> str:
    """The page of a DiffWave instrument: a vocoder resynthesises an excerpt of at most 5 s, others generate a sound."""
    model, excerpt = instrument.model, None
    if not 0 < seconds <= WAVE_S:
        raise ConversionError(f"The length is {seconds:g} s; a page of DiffWave's steps holds up to {WAVE_S:g} s.")
    if model.settings.condition == "mel":
        if song is None:
            raise ConversionError(f"'{instrument.name}' is a vocoder: it needs a song.")
        excerpt = ablation.cut_excerpt(song, None, start_s, seconds, Controls())
    label = model.settings.labels[0] if model.settings.condition == "label" else None
    n_samples = int(seconds * instrument.features.sample_rate_hz)
    runs = fast_and_full(model, n_samples, label, excerpt, seed, progress=progress, cancelled=cancelled)
    what = f"sings {excerpt.name} again" if excerpt else f"says '{label}'" if label else "makes a sound"
    return player.document(runs, f"{instrument.name}: {what}, out of noise")
