"""Metrics of every step of a run, each with its unit, its reference and the number of frames it rests on.

A value that rests on fewer than ``MIN_FRAMES`` frames is NaN.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from svclib.analysis import projection
from svclib.analysis.trace import Trace
from svclib.audio import io as audio
from svclib.conversion import metrics, speaker_similarity
from svclib.conversion.recognition import SAMPLE_RATE_HZ, SpeechRecognizer, intelligibility
from svclib.features import extract
from svclib.utils.errors import ConversionError, ProgressCallback, raise_if_cancelled

MIN_FRAMES = 10
_OPTIONAL = ("speaker similarity", "character error rate")
_NEPER = np.log(10) / 20
AUDIO_METRICS = {  # name: (unit, meaning, reference)
    "F0 error": ("cents", "root mean square over frames voiced in both", "the target F0"),
    "F0 error, offset removed": (
        "cents",
        "root mean square about its own median, over frames voiced in both",
        "the target F0",
    ),
    "F0 correlation": ("-1 to 1", "Pearson, of log F0, over frames voiced in both", "the target F0"),
    "voicing F1": ("0 to 1", "harmonic mean of precision and recall, all frames", "the target voicing"),
    "loudness correlation": (
        "-1 to 1",
        "Pearson, of dB, over frames with target above -60 dB",
        "the target loudness",
    ),
    "speaker similarity": ("0 to 1", "cosine of GE2E embeddings, 5 s windows without pauses", "the source singer"),
    "character error rate": ("0 to 1", "edit distance of transcripts over the length of the source's", "the source"),
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """One curve over the steps.

    Attributes:
        name, unit, meaning: ``meaning`` is the definition.
        reference: What it is measured against.
        positions: Kept steps, ``[P]``; the number of steps stands for the result.
        values: ``[P]``, NaN where undefined.
        frames: Number of frames behind each value, ``[P]``.
    """

    name: str
    unit: str
    meaning: str
    reference: str
    positions: np.ndarray
    values: np.ndarray
    frames: np.ndarray


def mel_metrics(trace: Trace, reference_db: np.ndarray | None = None) -> list[Metric]:
    """Metrics of every x0 prediction that need no audio: log-mel and mel-cepstral distances, signal-to-noise ratio.

    ``reference_db`` is the log-mel ``[mels, frames]`` of the source in dB, to compare with as well.
    """
    n, n_frames = len(trace), trace.result.shape[1]
    found = []

    def add(name: str, meaning: str, reference: str, values: np.ndarray) -> None:
        found.append(Metric(name, "dB", meaning, reference, np.arange(n), values, np.full(n, n_frames)))

    for name, curve in projection.curves(trace, reference_db).items():
        against = "the source" if "reference" in name else "this run's result" if "result" in name else "none: analytic"
        add(name.replace("reference", "source"), curve["meaning"], against, curve["values"])
    end = trace.level_db(trace.result).T * _NEPER
    warped = [metrics.mcd_db(end, guess.T * _NEPER, warped=True) for guess in trace.level_db(trace.x0_hat)]
    meaning = f"mel-cepstral distance without level, 13 cepstra, along the path of time warping, {n_frames} frames"
    add("warped timbre distance to the result", meaning, "this run's result", np.array(warped))
    return found


def audio_metrics(
    trace: Trace,
    rendered: Mapping[int, np.ndarray],
    settings: extract.FeatureSettings,
    source: np.ndarray | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    recognizer: SpeechRecognizer | None = None,
) -> list[Metric]:
    """Metrics of the audio of steps against the target curves, and speaker similarity to the source.

    The vocoder receives the target F0, so F0 errors measure its output, not the x0 prediction alone.

    Args:
        trace: With the conditions ``f0_hz``, ``voiced`` and ``loudness_db``.
        rendered: Audio ``[samples]`` by position; ``len(trace)`` stands for the result.
        settings: Feature settings of the instrument.
        source: Audio of the source, for speaker similarity; skipped where it cannot be computed.
        progress: See ``utils.errors``.
        cancelled: See ``utils.errors``.
        recognizer: For the character error rate against the transcript of the source; takes seconds per step.

    Returns:
        One curve per entry of ``AUDIO_METRICS``; those of ``_OPTIONAL`` only if they have a value.

    """
    missing = {"f0_hz", "voiced", "loudness_db"} - set(trace.conditions)
    if missing or not rendered:
        raise ConversionError(f"There is no audio, or the run has no target curves ({', '.join(sorted(missing))}).")
    without_mel, rows = dataclasses.replace(settings, mel=None), {}
    embedding = None if source is None else _embedding(source, settings.sample_rate_hz)
    words = None
    if recognizer is not None and source is not None:
        words = recognizer.transcribe(_at_16k(source, settings.sample_rate_hz))
    for k, position in enumerate(sorted(rendered)):
        raise_if_cancelled(cancelled)
        if progress:
            progress(k / len(rendered), f"metrics of {k + 1} of {len(rendered)}")
        samples = np.asarray(rendered[position], np.float32)
        measured = extract.extract(samples, without_mel)
        if len(measured.f0_hz) != trace.result.shape[1]:
            n = trace.result.shape[1]
            raise ConversionError(f"The audio of step {position} has {len(measured.f0_hz)} frames, the run {n}.")
        rows[position] = _target_metrics(trace.conditions, measured)
        if embedding is not None:
            rows[position] |= _similarity(embedding, samples, settings)
        if words is not None:
            cer = intelligibility(recognizer, _at_16k(samples, settings.sample_rate_hz), words).cer
            rows[position]["character error rate"] = (cer, len(measured.f0_hz))
    places = np.array(sorted(rows))
    found = []
    for name, (unit, meaning, reference) in AUDIO_METRICS.items():
        pairs = [rows[p].get(name, (np.nan, 0)) for p in places]
        if any(np.isfinite(value) for value, _ in pairs) or name not in _OPTIONAL:
            values, frames = (np.array(x) for x in zip(*pairs, strict=True))
            found.append(Metric(name, unit, meaning, reference, places, values.astype(float), frames.astype(int)))
    return found


def _target_metrics(conditions: Mapping[str, np.ndarray], measured: extract.Features) -> dict[str, tuple[float, int]]:
    """Metrics against the target curves: name -> (value, number of frames)."""
    target_hz, voiced = conditions["f0_hz"], np.asarray(conditions["voiced"], bool)
    n = int((voiced & measured.voiced & (target_hz > 0) & (measured.f0_hz > 0)).sum())
    names = ("F0 error", "F0 error, offset removed", "F0 correlation")
    found = dict.fromkeys(names, (np.nan, n))
    if n >= MIN_FRAMES:
        error = metrics.f0_error_cents(target_hz, voiced, measured.f0_hz, measured.voiced)
        shifted_hz = (measured.f0_hz * 2.0 ** (-error["median"] / 1200)).astype(measured.f0_hz.dtype)
        centred = metrics.f0_error_cents(target_hz, voiced, shifted_hz, measured.voiced)
        values = (error["rmse"], centred["rmse"], error["correlation"])
        found |= {name: (value, n) for name, value in zip(names, values, strict=True)}
    accuracy = metrics.f0_accuracy(target_hz, voiced, measured.f0_hz, measured.voiced)
    found["voicing F1"] = (accuracy["voicing_f1"], len(voiced))
    loud = conditions["loudness_db"] > -60.0
    a, b = conditions["loudness_db"][loud].astype(float), measured.loudness_db[loud].astype(float)
    defined = loud.sum() >= MIN_FRAMES and a.std() > 0 and b.std() > 0
    found["loudness correlation"] = (float(np.corrcoef(a, b)[0, 1]) if defined else np.nan, int(loud.sum()))
    return found


def _at_16k(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    samples = audio.resample(np.asarray(samples, np.float32), rate_hz, SAMPLE_RATE_HZ)
    return samples.astype(np.float32)


def _embedding(source: np.ndarray, rate_hz: int):
    try:
        return speaker_similarity.speaker_embedding([_at_16k(source, rate_hz)])
    except ConversionError:
        return None


def _similarity(embedding, samples: np.ndarray, settings: extract.FeatureSettings) -> dict[str, tuple[float, int]]:
    try:
        found = speaker_similarity.similarity(_at_16k(samples, settings.sample_rate_hz), embedding)
    except ConversionError:
        return {}
    return {"speaker similarity": (found, len(samples) // settings.hop_samples)}


def metric_table(trace: Trace, found: Sequence[Metric]) -> tuple[list[str], list[list]]:
    """Headings and rows of a table: position, diffusion time, log-SNR, then each metric and its number of frames."""
    head = ["position", "diffusion time", "log-SNR"]
    for metric in found:
        head += [f"{metric.name} ({metric.unit}; against {metric.reference})", f"{metric.name}: frames"]
    rows = []
    for i in sorted({int(p) for metric in found for p in metric.positions}):
        row = [i, float(trace.t[i]), float(trace.log_snr[i])] if i < len(trace) else [i, "result", ""]
        for metric in found:
            at = np.flatnonzero(metric.positions == i)
            row += [float(metric.values[at[0]]), int(metric.frames[at[0]])] if len(at) else ["", ""]
        rows.append(row)
    return head, rows
