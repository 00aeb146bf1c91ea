"""Metrics of every step of a run, each with its unit, what it is measured against and how many frames it rests on.

Where fewer than ``LEAST_FRAMES`` frames carry a value, there is none (NaN).
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
from svclib.utils.errors import ConversionError
from svclib.utils.progress import ProgressCallback, raise_if_cancelled

LEAST_FRAMES = 10
_NEPER = np.log(10) / 20


@dataclasses.dataclass(frozen=True)
class Metric:
    """One curve over the steps.

    Attributes:
        name, unit, meaning: What it is; ``meaning`` is the definition in words.
        reference: What it is measured against.
        positions: Kept steps that have a value, ``[P]``; the number of steps stands for the result.
        values: ``[P]``, NaN where it is not defined.
        frames: How many frames each value rests on, ``[P]``.
    """

    name: str
    unit: str
    meaning: str
    reference: str
    positions: np.ndarray
    values: np.ndarray
    frames: np.ndarray


def mel_metrics(trace: Trace, reference_db: np.ndarray | None = None) -> list[Metric]:
    """Metrics of every step's guess that need no sound: log-mel and mel-cepstral distances, signal to noise.

    Args:
        trace: A ``mel`` trace.
        reference_db: ``[mels, frames]`` of the source to compare with as well, its log-mel in dB; None leaves it out.

    Returns:
        One curve for each metric, with a value at every kept step and none for the result.
    """
    n, frames, found = len(trace), trace.result.shape[1], []
    places, count = np.arange(n), np.full(n, frames)
    for name, about in projection.curves(trace, reference_db).items():
        against = "the source" if "reference" in name else "this run's result" if "result" in name else "none: analytic"
        shown = name.replace("reference", "source")
        found.append(Metric(shown, about["unit"], about["meaning"], against, places, about["values"], count))
    end = trace.level_db(trace.result).T * _NEPER
    warped = [
        metrics.mel_cepstral_distance_db(end, guess.T * _NEPER, warped=True) for guess in trace.level_db(trace.x0_hat)
    ]
    meaning = f"mel-cepstral distance without level, 13 cepstra, along the path of time warping, {frames} frames"
    found.append(
        Metric(
            "warped timbre distance to the result", "dB", meaning, "this run's result", places, np.array(warped), count
        )
    )
    return found


def audio_metrics(
    trace: Trace,
    sounds: Mapping[int, np.ndarray],
    settings: extract.FeatureSettings,
    source: np.ndarray | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    recognizer: SpeechRecognizer | None = None,
) -> list[Metric]:
    """Metrics of what steps sound like, against what was asked: pitch, voicing, loudness; likeness to the source.

    The vocoder is told the pitch that was asked for, so pitch says what it makes of a guess, not what a guess holds.

    Args:
        trace: With the conditions ``f0_hz``, ``voiced`` and ``loudness_db``.
        sounds: float32 ``[samples]`` by position, at the contract's rate; ``len(trace)`` stands for the result.
        settings: How the instrument measures songs.
        source: The source's own sound, for the speaker similarity; left out where that has no weights or no voice.
        progress: Called with a fraction and a text.
        cancelled: Asked before every sound; True raises ``Cancelled``.
        recognizer: Adds the character error rate against the source's transcript; takes seconds for every sound.

    Returns:
        One curve for each entry of ``AUDIO_METRICS``, at every position of ``sounds``; those of the speaker similarity
        and the character error rate only if they have a value.

    Raises:
        ConversionError: if there is no sound, a condition is missing, or a sound has another number of frames.
    """
    missing = {"f0_hz", "voiced", "loudness_db"} - set(trace.conditions)
    if missing or not sounds:
        raise ConversionError(
            f"There is no sound, or the run did not keep what was asked ({', '.join(sorted(missing))})."
        )
    asked_hz, asked = trace.conditions["f0_hz"], np.asarray(trace.conditions["voiced"], bool)
    asked_db, n = trace.conditions["loudness_db"], trace.result.shape[1]
    plain, rows = dataclasses.replace(settings, mel=None), {}
    print_of = _voice_print(source, settings.sample_rate_hz)
    words = None
    if recognizer is not None and source is not None:
        words = recognizer.transcribe(_at_16k(source, settings.sample_rate_hz))
    for k, position in enumerate(sorted(sounds)):
        raise_if_cancelled(cancelled)
        if progress:
            progress(k / len(sounds), f"measuring sound {k + 1} of {len(sounds)}")
        heard = extract.extract(np.asarray(sounds[position], np.float32), plain)
        if len(heard.f0_hz) != n:
            raise ConversionError(f"The sound of step {position} has {len(heard.f0_hz)} frames, the run {n}.")
        rows[position] = _against(asked_hz, asked, asked_db, heard) | _likeness(print_of, sounds[position], settings)
        if words is not None:
            cer = intelligibility(recognizer, _at_16k(sounds[position], settings.sample_rate_hz), words).cer
            rows[position]["character error rate"] = (cer, n)
    places = np.array(sorted(rows))
    found = []
    for name, (unit, meaning, reference) in AUDIO_METRICS.items():
        pairs = [rows[p].get(name, (np.nan, 0)) for p in places]
        if any(np.isfinite(value) for value, _ in pairs) or name not in ("speaker similarity", "character error rate"):
            values, frames = (np.array(x) for x in zip(*pairs, strict=True))
            found.append(Metric(name, unit, meaning, reference, places, values.astype(float), frames.astype(int)))
    return found


AUDIO_METRICS = {
    "F0 error": ("cents", "root mean square over frames voiced in both", "the F0 asked for"),
    "F0 error, offset removed": (
        "cents",
        "root mean square about its own median, over frames voiced in both",
        "the F0 asked for",
    ),
    "F0 correlation": ("-1 to 1", "Pearson, of log F0, over frames voiced in both", "the F0 asked for"),
    "voicing F1": ("0 to 1", "harmonic mean of precision and recall, all frames", "the voicing asked for"),
    "loudness correlation": ("-1 to 1", "Pearson, of dB, over frames asked above -60 dB", "the loudness asked for"),
    "speaker similarity": (
        "0 to 1",
        "cosine of GE2E speaker encodings, 5 s windows of sound without pauses",
        "the source singer",
    ),
    "character error rate": ("0 to 1", "edit distance of transcripts over the length of the source's", "the source"),
}


def _against(asked_hz, asked, asked_db, heard) -> dict[str, tuple[float, int]]:
    both = asked & heard.voiced & (asked_hz > 0) & (heard.f0_hz > 0)
    n = int(both.sum())
    found = dict.fromkeys(("F0 error", "F0 error, offset removed", "F0 correlation"), (np.nan, n))
    if n >= LEAST_FRAMES:
        pitch = metrics.f0_error_cents(asked_hz, asked, heard.f0_hz, heard.voiced)
        moved_hz = (heard.f0_hz * 2.0 ** (-pitch["median"] / 1200)).astype(heard.f0_hz.dtype)
        centred = metrics.f0_error_cents(asked_hz, asked, moved_hz, heard.voiced)
        found |= {
            "F0 error": (pitch["rmse"], n),
            "F0 error, offset removed": (centred["rmse"], n),
            "F0 correlation": (pitch["correlation"], n),
        }
    accuracy = metrics.f0_accuracy(asked_hz, asked, heard.f0_hz, heard.voiced)
    found["voicing F1"] = (accuracy["voicing_f1"], len(asked))
    loud = asked_db > -60.0
    a, b = asked_db[loud].astype(float), heard.loudness_db[loud].astype(float)
    defined = loud.sum() >= LEAST_FRAMES and a.std() > 0 and b.std() > 0
    value = float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())) if defined else np.nan
    found["loudness correlation"] = (value, int(loud.sum()))
    return found


def _voice_print(source, rate_hz: int):
    if source is None:
        return None
    try:
        return speaker_similarity.speaker_embedding([_at_16k(source, rate_hz)])
    except ConversionError:
        return None


def _likeness(print_of, samples, settings) -> dict:
    if print_of is None:
        return {}
    try:
        found = speaker_similarity.similarity(_at_16k(samples, settings.sample_rate_hz), print_of)
    except ConversionError:
        return {}
    return {"speaker similarity": (found["speaker_similarity"], len(samples) // settings.hop_samples)}


def _at_16k(samples, rate_hz: int) -> np.ndarray:
    return audio.resample(np.asarray(samples, np.float32), rate_hz, SAMPLE_RATE_HZ).astype(np.float32)


def metric_table(trace: Trace, found: Sequence[Metric]) -> tuple[list[str], list[list]]:
    """Headings and rows of a table: position, diffusion time, log-SNR, then each metric and its frame count."""
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
