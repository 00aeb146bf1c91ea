"""Audio of sampling steps: rendering with one common gain, and metrics of it with their units and references."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from svclib.analysis.compare import Metric
from svclib.analysis.trace import Trace
from svclib.audio import io as audio
from svclib.audio import mel
from svclib.conversion import metrics, speaker_similarity
from svclib.conversion.recognition import SAMPLE_RATE_HZ, intelligibility
from svclib.features import extract
from svclib.utils.errors import ConversionError, reporter

GUARD_DB, MIN_FRAMES = 12.0, 10  # values of fewer frames are NaN
_BOTH = "over frames voiced in both"
AUDIO_METRICS = {  # name: (unit, meaning, reference)
    "F0 RMSE": ("cents", f"root mean square {_BOTH}", "the target F0"),
    "F0 RMSE, offset removed": ("cents", f"root mean square about its own median, {_BOTH}", "the target F0"),
    "F0 correlation": ("-1 to 1", f"Pearson, of log F0, {_BOTH}", "the target F0"),
    "voicing F1": ("0 to 1", "harmonic mean of precision and recall, all frames", "the target voicing"),
    "loudness correlation": ("-1 to 1", "Pearson, of dB, over frames with target above -60 dB", "the target loudness"),
    "speaker similarity": ("0 to 1", "cosine of GE2E embeddings, 5 s windows without pauses", "the source singer"),
    "character error rate": ("0 to 1", "edit distance of transcripts over the length of the source's", "the source"),
}


@dataclasses.dataclass(frozen=True)
class StepAudio:
    """Audio of steps, float32 ``[samples]`` by position (the number of steps stands for the result), what it is of
    (``kind``), and the attenuation of the steps that were louder than the result."""

    audio: Mapping[int, np.ndarray]
    sample_rate_hz: int
    kind: str = "the guess"
    attenuated_db: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def at(self, positions: Sequence[int] | np.ndarray) -> "StepAudio":
        """The audio of some positions, numbered anew."""
        places = {int(i): k for k, i in enumerate(positions)}
        kept, quieter = ({places[i]: x[i] for i in places if i in x} for x in (self.audio, self.attenuated_db))
        return dataclasses.replace(self, audio=kept, attenuated_db=quieter)


def render_audio(model, trace: Trace, positions=None, seed=0, progress=None, cancelled=None, mel_only=False):
    """:func:`render_steps` by the vocoder of the model, or by Griffin-Lim: without a vocoder, or ``mel_only``.

    A vocoder receives the target F0, Griffin-Lim the mel alone; ``seed`` is that of its noise or initial phases.
    """

    def vocode(log_mel: np.ndarray) -> np.ndarray:
        if model.vocoder is not None and not mel_only:
            return model.vocoder.render(log_mel, *trace.target_f0, seed).audio
        rows = torch.from_numpy(np.ascontiguousarray(log_mel))[None]
        return mel.griffin_lim(rows, model.contract, seed=seed)[0].numpy()

    found = render_steps(trace, vocode, positions, progress, cancelled)
    return dataclasses.replace(found, kind="the guess, from its picture alone,") if mel_only else found


def render_steps(trace: Trace, vocode: Callable, positions=None, progress=None, cancelled=None) -> StepAudio:
    """Render x0 predictions (all by default) and the result by ``vocode``: ``log_mel [frames, mels] -> samples``."""
    report, n = reporter(progress, cancelled), len(trace)
    steps, rendered = sorted({*map(int, range(n) if positions is None else positions), n}), {}
    for k, i in enumerate(steps):
        state = trace.result if i == n else trace.x0_hat[i]
        rendered[i] = np.asarray(vocode(trace.log_mel(state).T), np.float32)
        report((k + 1) / len(steps), f"audio {k + 1} of {len(steps)}")
    return common_gain(rendered, rendered[n], trace.sample_rate_hz)


def common_gain(rendered: Mapping[int, np.ndarray], end: np.ndarray, rate_hz: int) -> StepAudio:
    """Apply the gain that brings the peak of the result ``end`` to 0.7; louder steps, such as noise, to 12 dB below."""

    def rms(samples: np.ndarray) -> float:
        return math.sqrt(np.square(samples, dtype=np.float64).mean()) if len(samples) else 0.0

    gain = 0.7 / max(float(np.abs(end).max(initial=0.0)), 1e-4)
    limit = max(rms(end), 1e-6)
    found, attenuated_db = {}, {}
    for i, samples in rendered.items():
        level, factor = rms(samples), 1.0
        if level > 1.06 * limit:
            factor = limit / level * 10 ** (-GUARD_DB / 20)
            attenuated_db[i] = round(-20 * math.log10(factor), 1)
        found[i] = np.clip(samples * (gain * factor), -1, 1)
    return StepAudio(found, rate_hz, attenuated_db=attenuated_db)


def measure_f0(trace: Trace, rendered: StepAudio, method: str = "swift") -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """F0 in Hz and voicing ``[frames]`` of the audio of each step, by position; audio that is too short is skipped."""
    hop, n_frames = trace.contract.hop_samples, trace.n_frames
    settings = extract.FeatureSettings(sample_rate_hz=rendered.sample_rate_hz, hop_samples=hop, f0_method=method)
    found = {}
    for i, samples in sorted(rendered.audio.items()):
        if len(samples) >= n_frames * hop:
            found[i] = extract.track_f0(samples[: n_frames * hop], rendered.sample_rate_hz, settings)[:2]
    return found


def f0_error(trace: Trace, f0_hz: np.ndarray, voiced: np.ndarray) -> tuple[dict[str, float], int]:
    """``metrics.f0_error_cents`` against the target F0, NaN below 10 frames, and the number of voiced frames."""
    target_hz, on = trace.target_f0
    n = int((on & voiced & (target_hz > 0) & (f0_hz > 0)).sum())
    found = metrics.f0_error_cents(target_hz, on, f0_hz, voiced)
    return found if n >= MIN_FRAMES else dict.fromkeys(found, math.nan), n


def audio_metrics(
    trace: Trace, rendered: Mapping, settings, source=None, progress=None, cancelled=None, recognizer=None
) -> list[Metric]:
    """Metrics of the audio of steps against the target curves of the trace, one curve per entry of ``AUDIO_METRICS``.

    A vocoder receives the target F0: F0 errors measure its output, not the x0 prediction alone. ``rendered`` is by
    position, ``settings`` are those of the instrument's features. With the audio of the ``source``: speaker similarity,
    where it can be computed, and by a ``SpeechRecognizer`` the character error rate, which takes seconds per step.
    """
    missing = {"f0_hz", "voiced", "loudness_db"} - set(trace.conditions)
    if missing or not rendered:
        raise ConversionError(f"There is no audio, or the run has no target curves ({', '.join(sorted(missing))}).")
    report, rate_hz, rows = reporter(progress, cancelled), settings.sample_rate_hz, {}
    embedding = words = None
    if source is not None:
        with contextlib.suppress(ConversionError):  # without a voice, or without the encoder
            embedding = speaker_similarity.speaker_embedding([_at_16k(source, rate_hz)])
        words = None if recognizer is None else recognizer.transcribe(_at_16k(source, rate_hz))
    for k, position in enumerate(sorted(rendered)):
        report(k / len(rendered), f"metrics of {k + 1} of {len(rendered)}")
        samples = np.asarray(rendered[position], np.float32)
        measured = extract.extract(samples, dataclasses.replace(settings, mel=None, units=None))
        rows[position] = _target_metrics(trace, measured)
        with contextlib.suppress(ConversionError):  # silence has no voice
            if embedding is not None:
                found = speaker_similarity.similarity(_at_16k(samples, rate_hz), embedding)
                rows[position]["speaker similarity"] = found, measured.n_frames
        if words is not None:
            cer = intelligibility(recognizer, _at_16k(samples, rate_hz), words).cer
            rows[position]["character error rate"] = cer, measured.n_frames
    curves = []
    for name, about in AUDIO_METRICS.items():
        values, frames = np.array([row.get(name, (math.nan, 0)) for row in rows.values()]).T
        if np.isfinite(values).any() or name not in ("speaker similarity", "character error rate"):
            curves.append(Metric(name, *about, np.array(list(rows)), values, frames.astype(int)))
    return curves


def character_error_rates(recognizer, rendered: StepAudio, positions, source, source_rate_hz, progress=None) -> dict:
    """Character error rate of the audio at some positions against the recognizer's transcript of the source."""
    words, found, report = recognizer.transcribe(_at_16k(source, source_rate_hz)), {}, reporter(progress)
    for k, position in enumerate(positions.tolist()):
        report(k / len(positions), f"transcript {k + 1} of {len(positions)}")
        samples = _at_16k(rendered.audio[position], rendered.sample_rate_hz)
        found[position] = intelligibility(recognizer, samples, words).cer
    return found


def _target_metrics(trace: Trace, measured: extract.Features) -> dict[str, tuple[float, int]]:
    """Metrics against the target curves: name -> (value, number of frames)."""
    target_hz, voiced = trace.target_f0
    error, n = f0_error(trace, measured.f0_hz, measured.voiced)
    centred_hz = (measured.f0_hz * 2.0 ** (-error["median"] / 1200)).astype(measured.f0_hz.dtype)
    accuracy = metrics.f0_accuracy(target_hz, voiced, measured.f0_hz, measured.voiced)
    target_db = trace.conditions["loudness_db"]
    loud = target_db > -60.0
    a, b = target_db[loud].astype(float), measured.loudness_db[loud].astype(float)
    defined = loud.sum() >= MIN_FRAMES and a.std() > 0 and b.std() > 0
    return {
        "F0 RMSE": (error["rmse"], n),
        "F0 RMSE, offset removed": (f0_error(trace, centred_hz, measured.voiced)[0]["rmse"], n),
        "F0 correlation": (error["correlation"], n),
        "voicing F1": (accuracy["voicing_f1"], len(voiced)),
        "loudness correlation": (float(np.corrcoef(a, b)[0, 1]) if defined else math.nan, int(loud.sum())),
    }


def _at_16k(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    return audio.resample(np.asarray(samples, np.float32), rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
