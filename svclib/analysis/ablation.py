"""Ablation of a diffusion model: sampling runs from the same noise with one factor changed, and its influence.

An :class:`Intervention` replaces one factor of an :class:`Excerpt` by its learned null embedding, by that of another
recording, or by another strength (classifier-free guidance, Ho and Salimans 2022, Eq. 6, for one factor). Two effects
are measured. *Global*: the result of a whole run without the factor. *Local*: the change of the noise estimate at the
same ``x_t``, measured by a :class:`Probe` during the run.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.analysis import compare
from svclib.analysis.recorder import capture, select_steps
from svclib.analysis.trace import Trace
from svclib.audio import units
from svclib.conversion import key_suggestion
from svclib.conversion.controls import adjust
from svclib.conversion.song import Song
from svclib.features.extract import ConditionInputs
from svclib.models.diffusion.denoiser import GuidedDenoiser
from svclib.models.diffusion.samplers import SamplerStep, SamplingOptions
from svclib.models.diffusion.schedule import x0_from_eps
from svclib.training import api as training
from svclib.utils.errors import ConversionError, reporter

PROBE_STEPS = 24
FACTORS = {"content": "content", "melody": "f0", "timbre": "singer", "loudness": "loudness"}  # -> model condition
KINDS = ("null", "swap", "scale")
_TRACKS = {  # fields of an excerpt that a swap takes from another one
    "content": ("log_mel", "source_f0_hz", "source_voiced", "content"),
    "melody": ("f0_hz", "voiced"),
    "loudness": ("loudness_db",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Excerpt:
    """An excerpt of a song, from ``start_s`` on, with the target curves of its conversion.

    Of the source: ``log_mel [frames, mels]``, ``source_f0_hz`` and ``source_voiced [frames]``, ``audio [samples]``,
    and ``content [frames, dims]``, cached features that some instruments use. Other curves ``[frames]`` are targets.
    """

    name: str
    start_s: float
    log_mel: np.ndarray
    source_f0_hz: np.ndarray
    source_voiced: np.ndarray
    f0_hz: np.ndarray
    voiced: np.ndarray
    loudness_db: np.ndarray
    audio: np.ndarray
    content: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.f0_hz)


def cut_excerpt(song: Song, statistics: dict | None, start_s=0.0, seconds=5.0, controls=None) -> Excerpt:
    """Cut an excerpt out of a song, on whole frames, and adjust it for an instrument as a conversion does.

    The song was measured with the features of the instrument, ``statistics`` are the instrument's. The excerpt has at
    least two frames and ends with the song. ``controls``: by default the suggested pitch shift alone.
    """
    measured = song.features
    if measured.log_mel is None:
        raise ConversionError(f"'{song.name}' was measured without a log-mel; use the features of a diffusion model.")
    hop, rate_hz = measured.settings.hop_samples, measured.settings.sample_rate_hz
    first, n_frames = (units.frame_of_time(max(float(x), 0.0), hop, rate_hz) for x in (start_s, seconds))
    last = min(measured.n_frames, first + max(2, n_frames))
    if start_s < 0 or last - first < 2:
        raise ConversionError(
            f"'{song.name}' has {song.duration_s:.1f} s; an excerpt from {start_s:g} s on holds nothing of it."
        )
    if controls is None:
        controls = key_suggestion.suggest_shift(measured, statistics, "diffusion").applied()
    target = adjust(measured, statistics, controls)
    source, curves = (measured.log_mel, measured.f0_hz, measured.voiced), (target.f0_hz, target.voiced)
    tracks = (*source, *curves, target.loudness_db, measured.content)
    *cut, content = (None if track is None else np.array(track[first:last]) for track in tracks)
    audio = song.audio[first * hop : last * hop]
    return Excerpt(song.name, first * hop / rate_hz, *cut, audio=audio, content=content)


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One factor of ``FACTORS`` changed, everything else as it was; ``timbre`` is the singer.

    ``null``: replaced by its learned null embedding. ``swap``: taken from an ``other`` excerpt, at least as long, or
    ``singer``, a name or names with weights; a melody without ``other`` is transposed by ``amount`` semitones.
    ``scale``: guidance with ``noise(off) + amount (noise(on) - noise(off))``; 0 equals ``null``, 1 changes nothing.
    """

    factor: str
    kind: str = "null"
    amount: float | int = 0.0
    other: Excerpt | None = dataclasses.field(default=None, compare=False)
    singer: Mapping[str, int | float] | str | None = None

    def __post_init__(self):
        if self.factor not in FACTORS or self.kind not in KINDS:
            known = f"{', '.join(KINDS)} of {', '.join(FACTORS)}"
            raise ConversionError(f"Unknown intervention '{self.kind}' of '{self.factor}'; choose one of {known}.")
        if not np.isfinite(self.amount) or abs(self.amount) > 100:
            raise ConversionError(f"The amount is {self.amount}; it must be a number from -100 to 100.")
        needed = {"timbre": self.singer, "melody": self.amount, "content": self.other, "loudness": self.other}
        if self.kind == "swap" and needed[self.factor] is None:
            what = "another singer of the instrument" if self.factor == "timbre" else "another excerpt to take it from"
            raise ConversionError(f"Swapping {self.factor} needs {what}.")

    @property
    def text(self) -> str:
        """The intervention as a label."""
        if self.kind != "swap":
            return f"{self.factor} off" if self.kind == "null" else f"{self.factor} x {self.amount:g}"
        if self.factor == "timbre":
            weights = self.singer if isinstance(self.singer, Mapping) else {self.singer: 1}
            return "timbre of " + " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in weights.items())
        if self.other is None:
            return f"melody {self.amount:+g} semitones"
        return f"{self.factor} of {self.other.name}"


CHOICES = {
    "nothing": None,
    **{f"{factor} off": (factor, "null") for factor in FACTORS},
    **{f"{factor} of the other song": (factor, "swap") for factor in _TRACKS},
    "melody transposed": ("melody", "swap"),
    "timbre of the other singer": ("timbre", "swap"),
    **{f"{factor} by strength": (factor, "scale") for factor in ("content", "melody", "timbre")},
}


def from_choice(choice: str, other=None, semitones=0, strength=1, singer=None) -> list[Intervention]:
    """The intervention for a menu entry of ``CHOICES``; each uses the arguments that it needs."""
    if CHOICES[choice] is None:
        return []
    factor, kind = CHOICES[choice]
    amount = {"scale": strength, "swap": semitones, "null": 0.0}[kind]
    return [Intervention(factor, kind, amount, other if "song" in choice else None, singer)]


def dropout_warning(settings: Any, interventions: Sequence[Intervention]) -> str:
    """Warning if the model rarely or never saw these conditions dropped (or scaled) in training; "" if all is well."""
    off = {change.factor for change in interventions if change.kind in ("null", "scale")}
    p = settings.condition_dropout
    if off and p == 0:
        return "Out of distribution: this model was trained without condition dropout; its nulls mean nothing."
    if len(off) > 1:
        share = p ** len(off) * (1 - p) ** (len(FACTORS) - len(off))
        return f"{len(off)} conditions are dropped at once, as in {share:.2%} of the training examples: take care."
    return ""


def swapped(excerpt: Excerpt, interventions: Sequence[Intervention]) -> Excerpt:
    """The excerpt with the tracks of swaps; ConversionError if another excerpt is shorter or has other mels."""
    n, n_mels = excerpt.log_mel.shape
    for change in interventions:
        other = change.other
        if change.kind != "swap" or change.factor == "timbre":
            continue
        if other is None:
            excerpt = dataclasses.replace(excerpt, f0_hz=excerpt.f0_hz * np.float32(2 ** (change.amount / 12)))
            continue
        if len(other) < n or other.log_mel.shape[1] != n_mels:
            raise ConversionError(
                f"The excerpt of '{other.name}' has {len(other)} frames of {other.log_mel.shape[1]} mels, that of "
                f"'{excerpt.name}' {n} of {n_mels}; choose one that is at least as long."
            )
        tracks = {name: getattr(other, name) for name in _TRACKS[change.factor]}
        excerpt = dataclasses.replace(excerpt, **{k: None if v is None else v[:n] for k, v in tracks.items()})
    return excerpt


def build_condition(model, excerpt: Excerpt, interventions: Sequence[Intervention] = (), singer=None) -> torch.Tensor:
    """The condition ``[1, dims, frames]`` of a diffusion model for an excerpt with interventions other than ``scale``.

    ``singer`` is one of the model, or names with weights, by default the first one; a swap of the timbre wins.
    """
    parts = swapped(excerpt, interventions)
    content = parts.content if model.features.units is not None else None
    if model.features.units is not None and content is None:
        sources = [excerpt, *(c.other for c in interventions if c.factor == "content" and c.other is not None)]
        raise ConversionError(f"'{sources[-1].name}' has no content features for this instrument. Load it again.")
    source, target = (
        ConditionInputs.from_arrays(parts.log_mel, f0_hz, voiced, parts.loudness_db, content, model.device)
        for f0_hz, voiced in ((parts.source_f0_hz, parts.source_voiced), (parts.f0_hz, parts.voiced))
    )
    swaps = [change.singer for change in interventions if (change.factor, change.kind) == ("timbre", "swap")]
    off = [FACTORS[change.factor] for change in interventions if change.kind == "null"]
    return model.condition(source, target, model.singer_weights([singer, *swaps][-1]), off)


class Probe:
    """Sampler callback that evaluates other denoisers at the same ``x_t``; it does not affect the sampling run.

    ``others`` are ``name -> (x_t, t) -> eps`` under other conditions, ``clip`` is the sampler's limit of ``|x0_hat|``.
    """

    def __init__(self, others: Mapping[str, Callable], keep: int = PROBE_STEPS, clip: float | int | None = 1.0):
        self.others, self.keep, self.clip = dict(others), keep, clip
        self.rows: list[dict] = []

    def __call__(self, step: SamplerStep) -> None:
        """Probe one step, if it is selected."""
        if step.index not in probed_steps(step.n_calls, self.keep):
            return
        row = {"index": step.index, "share": {}, "moved": {}}
        size = float(torch.linalg.vector_norm(step.eps_hat.double()))
        for name, denoiser in self.others.items():
            eps = denoiser(step.x_t, step.t)
            row["share"][name] = float(torch.linalg.vector_norm((eps - step.eps_hat).double())) / max(size, 1e-30)
            x0 = x0_from_eps(step.x_t, eps, step.alpha, step.sigma)
            x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
            row["moved"][name] = (x0 - step.x0_hat)[0].to(torch.float16).cpu().numpy()
        self.rows.append(row)

    def influence(self, trace: Trace) -> "Influence":
        """The measurements, in dB of the mels of the trace."""
        unit_db = trace.contract.to_db(trace.high - trace.low)[:, None] / 2
        share = {name: np.array([row["share"][name] for row in self.rows]) for name in self.others}
        moved = {name: np.stack([row["moved"][name] for row in self.rows]) for name in self.others}
        bins_db = {name: (rows * unit_db).astype(np.float16) for name, rows in moved.items()}
        return Influence(np.array([row["index"] for row in self.rows]), share, bins_db)


def probed_steps(n_calls: int, keep: int = PROBE_STEPS) -> np.ndarray:
    """Indices of the denoiser calls that a :class:`Probe` evaluates: all, or ``keep`` of them, evenly spaced."""
    return select_steps(np.arange(n_calls)[:, None], min(keep, n_calls))


@dataclasses.dataclass(frozen=True, eq=False)
class Influence:
    """Local influence of each factor at the probed denoiser calls ``index [P]``, at the same ``x_t``.

    By factor: ``share [P]``, ``|eps with the factor replaced - eps| / |eps|``, and ``bins_db [P, mels, frames]``, the
    signed change of the x0 prediction in dB, float16.
    """

    index: np.ndarray
    share: dict[str, np.ndarray]
    bins_db: dict[str, np.ndarray]

    def mean_db(self, name: str) -> np.ndarray:
        """Mean absolute change of the x0 prediction in dB, ``[P]``."""
        return np.abs(self.bins_db[name].astype(np.float32)).mean(axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of an ablation run: ``features`` records hidden features, ``singer`` is a name or names with weights, of
    ``probe``, interventions other than ``scale``, the local influence is measured."""

    sampling: SamplingOptions = SamplingOptions()
    features: bool = True
    singer: Mapping[str, int | float] | str | None = None
    probe: Sequence[Intervention] = ()


DEFAULTS = RunOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class RunResult:
    """One recorded run, its input before the interventions, the influence of probed factors, and a warning or ""."""

    label: str
    trace: Trace
    excerpt: Excerpt
    interventions: tuple[Intervention, ...] = ()
    influence: Influence | None = None
    notice: str = ""

    @functools.cached_property
    def mel_metrics(self) -> list[compare.Metric]:
        """Metrics of every step against the result and the source, computed once (time warping is slow)."""
        return compare.mel_metrics(self.trace, self.trace.contract.to_db(self.excerpt.log_mel.T))


def run(
    model, excerpt: Excerpt, interventions=(), options=DEFAULTS, label="", progress=None, cancelled=None, callback=None
) -> RunResult:
    """Sample an excerpt with a diffusion model and record the run.

    Runs with equal seed, length, sampler and steps start from the same noise, whatever the interventions. Each
    ``scale`` among them adds a denoiser call to every step and excludes hidden features. ``label`` is the name of the
    run, by default the text of its interventions. ``callback`` is called with the model and each step, after the probe.
    """
    report = reporter(progress, cancelled)
    report(0.0, "conditions")
    label = label or ", ".join(change.text for change in interventions) or "as asked"
    asked = tuple(interventions)
    changes = [dataclasses.replace(c, kind="null") if (c.kind, c.amount) == ("scale", 0) else c for c in asked]

    def prepare(*more: Intervention):
        condition = build_condition(model, excerpt, [*changes, *more], options.singer)
        return condition, model.prepare(condition, options.sampling, cancelled)

    condition, denoiser = prepare()
    scaled = [(float(c.amount) - 1, prepare(Intervention(c.factor))[1]) for c in changes if c.kind == "scale"]
    probe = Probe({change.text: prepare(change)[1] for change in options.probe})

    def on_step(step: SamplerStep) -> None:
        probe(step)
        if callback is not None:
            callback(model, step)
        report((step.index + 1) / step.n_calls, f"step {step.index + 1} of {step.n_calls}")

    target, features = swapped(excerpt, asked), options.features and not scaled
    curves = {name: getattr(target, name) for name in ("f0_hz", "voiced", "loudness_db")}
    guided = GuidedDenoiser(denoiser, scaled) if scaled else denoiser
    trace = capture(model, condition, options.sampling, curves, label, guided, on_step, features)
    warnings = (dropout_warning(model.settings, [*asked, *more]) for more in ([], *([c] for c in options.probe)))
    notice = " ".join(dict.fromkeys(filter(None, warnings)))
    return RunResult(label, trace, excerpt, asked, probe.influence(trace) if options.probe else None, notice)


def run_checkpoints(
    folder, training_steps, make_excerpt: Callable, options=DEFAULTS, progress=None, cancelled=None, callback=None
) -> list[RunResult]:
    """:func:`run` by several checkpoints of a training run; ``make_excerpt`` is ``(model, statistics) -> Excerpt``."""
    report, runs = reporter(progress), []
    for i, step in enumerate(training_steps):
        name = f"training step {step}"
        report(i / len(training_steps), f"loading {name}")
        model, record = training.load_model(folder, step)
        if (kind := model.settings.kind) != "diffusion":
            raise ConversionError(f"'{Path(folder).name}' trains a '{kind}' model; only diffusion has steps.")

        def share(fraction: float, text: str, i=i, name=name) -> None:
            report((i + fraction) / len(training_steps), f"{name}: {text}")

        excerpt = make_excerpt(model, record["statistics"])
        runs.append(run(model, excerpt, (), options, name, share, cancelled, callback))
    return runs
