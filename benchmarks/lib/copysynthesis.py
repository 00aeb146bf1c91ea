"""Copy synthesis: recordings measured, made again by a vocoder, and compared; above all, whether it buzzes.

A vocoder that puts harmonics where there is no pitch turns breaths and sibilants into buzz. That is looked for in two
places: the level of the harmonic part in unvoiced frames (which has to be silence), and how periodic the sound is
there, beside how periodic the recording was.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.conversion import metrics, recognition, speaker_similarity
from svclib.data.dataset import Dataset
from svclib.features import extract
from svclib.features.extract import Features
from svclib.models.vocoders.auto import LoadedVocoder

LAGS_S = (1 / 600, 1 / 80)  # pitches a buzz may have
WINDOW_S = 0.04
EDGE_FRAMES = 3  # so far from voiced frames the sound of a note has died away
SILENCE_DB = -65.0  # A-weighted; in silence there is nothing to buzz
HEADINGS = {
    "log_mel_l1": "mean |difference of log-mels|, nepers",
    "stft_distance": "multi-resolution STFT distance",
    "f0_error_cents": "median |F0 error|, cents",
    "f0_rmse_cents": "F0 RMSE, cents",
    "voicing_f1": "voicing F1",
    "periodicity_error": "periodicity of voiced frames, RMS difference",
    "pulse_error_db": "level within 30 ms of voiced frames, in windows of 3 ms: difference of deviations, dB",
    "harmonic_unvoiced_db": "harmonic part in unvoiced frames, dB of full scale (loudest sample)",
    "periodicity_unvoiced": "periodicity of unvoiced frames",
    "periodicity_unvoiced_original": "the same of the recording",
    "buzz": "difference of the two; above 0 it buzzes",
    "real_time_factor": "CPU seconds of the vocoder for a second",
    "likeness": "GE2E cosine of copy and recording",
    "cer": "character error rate against the recording's transcript",
}
OPTIONAL = ("likeness", "cer")  # with a recognizer


def periodicity(samples: np.ndarray, centres: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """Periodicity of the sound around each centre: 1 for a repeating wave, near 0 for noise, NaN for silence.

    The highest normalised autocorrelation over lags of 80 to 600 Hz, of the first difference of 40 ms.

    Args:
        samples: ``[n]``.
        centres: Positions in samples; fractions are cut off.
        sample_rate_hz: Of the samples.

    Returns:
        float64, one value for each centre.
    """
    low, high = (round(lag * sample_rate_hz) for lag in LAGS_S)
    n = round(WINDOW_S * sample_rate_hz)
    padded = np.pad(np.diff(samples.astype(np.float64), prepend=0.0), (n, n + high))
    result = np.full(len(centres), np.nan)
    for i, centre in enumerate(centres):
        start = int(centre) - n // 2 + n
        x, y = padded[start : start + n], padded[start : start + n + high]
        size = 1 << (n + high + n).bit_length()
        products = np.fft.irfft(np.fft.rfft(y, size) * np.fft.rfft(x, size).conj(), size)[low : high + 1]
        energies = np.cumsum(np.pad(y**2, (1, 0)))
        energy = x @ x * (energies[low + n : high + n + 1] - energies[low : high + 1])
        if energy.max() > 1e-16:
            result[i] = max(0.0, float((products / np.sqrt(np.maximum(energy, 1e-16))).max()))
    return result


def pulse_deviation_db(samples: np.ndarray, centres: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """How far the level rises and falls within the pitch period: per centre and band, dB.

    The standard deviation, over 30 ms around it, of the level in windows of 3 ms; bands of 1/3 kHz. It depends on the
    phases of the harmonics and on when in the period the noise comes, which magnitudes over many periods do not show.
    """
    size, step, span = round(0.003 * sample_rate_hz), round(0.0005 * sample_rate_hz), round(0.03 * sample_rate_hz)
    padded = np.pad(samples.astype(np.float64), span)
    pieces = np.stack([padded[int(c) + span - span // 2 :][:span] for c in centres])
    frames = np.lib.stride_tricks.sliding_window_view(pieces, size, axis=1)[:, ::step] * np.hanning(size)
    return (20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-5)).std(axis=1)


def unvoiced_frames(measured: Features) -> np.ndarray:
    """Frames that sound, have no pitch and are not next to one that has."""
    near = np.convolve(measured.voiced.astype(int), np.ones(2 * EDGE_FRAMES + 1, int), mode="same") > 0
    return np.flatnonzero(~near & (measured.loudness_db > SILENCE_DB))


def words_and_voice(recognizer, samples: np.ndarray, made: np.ndarray, rate: int, language: str | None) -> dict:
    """``cer`` and ``likeness`` of a copy to its recording; see ``recognition`` and ``speaker_similarity``."""
    copy, original = (audio.resample(x, rate, recognition.SAMPLE_RATE_HZ) for x in (made, samples))
    prints = [speaker_similarity.embed(speaker_similarity.trim_pauses(x)) for x in (copy, original)]
    found = recognition.intelligibility(recognizer, copy, original, language)
    return {"cer": found.cer, "likeness": float(prints[0] @ prints[1])}


def measure(vocoder: LoadedVocoder, samples: np.ndarray, seed: int = 0, cancelled: Callable | None = None) -> dict:
    """Figures of one recording made again; keys and units as in ``HEADINGS``, NaN where there is nothing to measure.

    Args:
        vocoder: Of any kind; ``harmonic_unvoiced_db`` is known only where it has parts.
        samples: ``[n]`` float at the vocoder's rate, full scale 1; a last incomplete frame is left out.
        seed: Of the vocoder's noise.
        cancelled: Asked by the vocoder while it renders; True raises ``Cancelled``.

    Returns:
        The figures, ``frames`` and ``frames_unvoiced`` that they stand on, and the sound itself as ``audio``.
    """
    hop, rate = vocoder.contract.hop_samples, vocoder.sample_rate_hz
    samples = np.ascontiguousarray(samples[: len(samples) // hop * hop], dtype=np.float32)
    original = extract.extract(samples, vocoder.features)
    spent = time.process_time()
    made = vocoder.resynthesize(original, seed, cancelled=cancelled)
    spent = time.process_time() - spent
    again = extract.extract(made.audio, vocoder.features)
    cents = metrics.f0_error_cents(original.f0_hz, original.voiced, again.f0_hz, again.voiced)
    quiet = unvoiced_frames(original)
    centres = (quiet + 0.5) * hop
    periodic_made, true = (periodicity(x, centres, rate) for x in (made.audio, samples))
    both = ~(np.isnan(periodic_made) | np.isnan(true))
    periodic, original_periodic = (float(x[both].mean()) if both.any() else float("nan") for x in (periodic_made, true))
    inside = np.flatnonzero(original.voiced)[::4]
    periods = [periodicity(x, (inside + 0.5) * hop, rate) for x in (made.audio, samples)]
    rms, pulses = float("nan"), float("nan")
    if len(inside):
        rms = float(np.sqrt(np.nanmean((periods[0] - periods[1]) ** 2)))
        deviations = [pulse_deviation_db(x, (inside + 0.5) * hop, rate) for x in (made.audio, samples)]
        pulses = float(np.abs(deviations[0] - deviations[1]).mean())
    level = float("nan")
    if vocoder.kind == "harmonic" and len(quiet):
        peak = np.abs(made.harmonic.reshape(-1, hop)[quiet]).max()
        level = 20 * float(np.log10(max(peak, 1e-10)))
    return {
        "log_mel_l1": float(np.abs(again.log_mel - original.log_mel).mean()),
        "stft_distance": metrics.spectral_distance(samples, made.audio, rate)["stft_distance"],
        "f0_error_cents": cents["median_absolute"],
        "f0_rmse_cents": cents["rmse"],
        "voicing_f1": metrics.f0_accuracy(original.f0_hz, original.voiced, again.f0_hz, again.voiced)["voicing_f1"],
        "periodicity_error": rms,
        "pulse_error_db": pulses,
        "harmonic_unvoiced_db": level,
        "periodicity_unvoiced": periodic,
        "periodicity_unvoiced_original": original_periodic,
        "buzz": periodic - original_periodic,
        "real_time_factor": spent * rate / len(samples),
        "frames": original.n_frames,
        "frames_unvoiced": int(both.sum()),
        "audio": made.audio,
    }


def recordings(where: str | Path | list[Path], vocoder: LoadedVocoder) -> Iterable[tuple[str, np.ndarray]]:
    """Names and sounds at the vocoder's rate: what a prepared dataset holds out, all of a folder, or these files."""
    where = where if isinstance(where, list) else Path(where)
    if isinstance(where, list) or not (where / "manifest.json").exists():
        for path in where if isinstance(where, list) else audio.find(where)[0]:
            yield Path(path).name, audio.read(path, sample_rate_hz=vocoder.sample_rate_hz).samples
        return
    data = Dataset.open(where)
    for index in data.indices("validation"):
        samples = data.audio(index)
        yield (
            data.recordings[index]["name"],
            audio.resample(samples, data.settings.sample_rate_hz, vocoder.sample_rate_hz),
        )


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over recordings, each weighted by its frames (unvoiced ones for what is about them); NaN where none has it.

    The loudest harmonic is the loudest of all.
    """
    result = {}
    for name in HEADINGS:
        weights = "frames_unvoiced" if "unvoiced" in name or name == "buzz" else "frames"
        known = [(row[name], row[weights]) for row in rows if np.isfinite(row.get(name, float("nan")))]
        if name == "harmonic_unvoiced_db":
            result[name] = max((value for value, _ in known), default=float("nan"))
        else:
            total = sum(weight for _, weight in known)
            result[name] = sum(v * w for v, w in known) / total if total else float("nan")
    return result


def table(figures: dict[str, float]) -> str:
    """Figures as plain text, one line each."""
    width, lines = max(map(len, HEADINGS.values())), []
    for name, text in HEADINGS.items():
        if name in OPTIONAL and not np.isfinite(figures[name]):
            continue
        value = f"{figures[name]:.4f}" if np.isfinite(figures[name]) else "nothing to measure"
        lines.append(f"{text:<{width}}  {value}")
    return "\n".join(lines)
