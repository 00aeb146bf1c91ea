"""One self-contained page about a conversion: listen, look, and what the numbers mean. No network, no script."""

from pathlib import Path
from typing import Any

import numpy as np

from svclib import __version__
from svclib.analysis import html as page
from svclib.analysis.plots import base as plots
from svclib.audio import io as audio
from svclib.audio import units
from svclib.conversion import metrics, pipeline
from svclib.features import extract
from svclib.training import api as training

_STYLE = """
:root { color-scheme: light dark; }
body { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; max-width: 960px; margin: 24px auto;
       padding: 0 16px; line-height: 1.5; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 28px 0 4px; } p { margin: 6px 0; }
"""


def measure(made: pipeline.Conversion, instrument: Any) -> dict[str, float | None]:
    """What came out against what was asked for: the result is measured like any recording.

    Args:
        made: The conversion; the gain that kept its peak below full scale is taken back.
        instrument: Who sang: the ``instrument.Instrument`` whose feature settings measure the result.

    Returns:
        ``raw_pitch_accuracy`` and ``voicing_f1`` (0..1), ``f0_error_cents`` (median), ``loudness_l1_db`` on frames that
        were asked above -60 dB; None where there was nothing to measure.
    """
    rate = instrument.features.sample_rate_hz
    samples = audio.resample(made.audio / units.db_to_amplitude(made.gain_db), made.sample_rate_hz, rate)
    heard = extract.extract(samples, instrument.features)
    n = min(len(heard.f0_hz), len(made.tracks.f0_hz))
    asked = made.tracks
    pitch = metrics.f0_accuracy(asked.f0_hz[:n], asked.voiced[:n], heard.f0_hz[:n], heard.voiced[:n])
    cents = metrics.f0_error_cents(asked.f0_hz[:n], asked.voiced[:n], heard.f0_hz[:n], heard.voiced[:n])
    loudness = metrics.loudness_l1_db(asked.loudness_db[:n], heard.loudness_db[:n])
    return {
        "raw_pitch_accuracy": _number(pitch["raw_pitch_accuracy"]),
        "voicing_f1": _number(pitch["voicing_f1"]),
        "f0_error_cents": _number(cents["median_absolute"]),
        "loudness_l1_db": _number(loudness),
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def build(
    instrument: Any, made: pipeline.Conversion, run: Path, shift_text: str, seconds: dict, truth: Any = None
) -> str:
    """Build the page.

    Args:
        instrument: Who sang, an ``instrument.Instrument``.
        made: The conversion.
        run: The training's folder, for its curves and previews.
        shift_text: Why the octave was chosen.
        seconds: Time of every stage by its name.
        truth: ``singers.SyntheticRecording``: how the target voice itself sings this song, if that is known.

    Returns:
        HTML with all sounds and pictures in it.
    """
    name, rate = page.text(instrument.name), made.sample_rate_hz
    song = made.song
    curves = training.curves(run)
    numbers = measure(made, instrument)
    players = [
        page.player(song.audio, song.features.settings.sample_rate_hz, "Original", song.path.name),
        page.player(made.audio, rate, "Result", f"{instrument.name}, {rate} Hz"),
        page.player(made.harmonic, rate, "Harmonic part", "the oscillators: vowels, melody"),
        page.player(made.noise, rate, "Noise part", "breath and consonants"),
    ]
    pictures = [("original", song.audio, song.features.settings.sample_rate_hz, song.features)]
    pictures.append(("result", made.audio, rate, None))
    if truth is not None:
        own = audio.resample(truth.audio, truth.sample_rate_hz, rate)
        players.append(
            page.player(own, rate, "What it should sound like", f"{truth.singer.name} sings the song herself")
        )
        pictures.append(("what it should sound like", own, rate, None))
    comparison = plots.png(plots.compare_spectrograms(pictures, columns=1))
    asked = plots.png(plots.conversion_plots(song.features, made.tracks, made.controls))
    loss = plots.png(plots.loss_curves(curves))
    parts = [
        f"<h1>{page.text(song.name)}, sung by {name}</h1>",
        page.notice(f"{instrument.info['consent']} The result is a synthetic voice: say so where you play it."),
        "<h2>Listen</h2>",
        page.flow(*players),
        f"<p>{page.text(shift_text)}</p>",
        "<h2>Look</h2>",
        page.picture(comparison, "spectrograms with the fundamental frequency of the original"),
        "<h2>How close it is to what was asked</h2>",
        _numbers(numbers),
        page.picture(asked, "loudness, pitch, confidence and note-on ratio of the song and what was asked"),
        "<h2>How it learned</h2>",
        page.picture(loss, "loss over training steps"),
        _learning(curves),
        _previews(run),
        "<h2>What took how long</h2>",
        page.table(["stage", ">seconds"], [[k, f"{v:.1f}"] for k, v in seconds.items()]),
        *(page.notice(w, "warning") for w in made.warnings),
        f"<p style='opacity:.7'>{page.text(made.settings_text)}<br>svclib {__version__}</p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>{page.text(song.name)}, sung by {name}</title>"
    body = "\n".join(parts)
    head += f"{title}<style>{_STYLE}</style>"
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>{body}</body></html>\n"


def _numbers(numbers: dict) -> str:
    def shown(key, form):
        value = numbers[key]
        return "nothing to measure" if value is None else form(value)

    rows = [
        [
            "Right notes",
            shown("raw_pitch_accuracy", lambda x: f"{100 * x:.1f} %"),
            "share of sung moments whose pitch, measured in the result, is within a quarter tone of what was asked; "
            "100 % is perfect, 95 % is good",
        ],
        [
            "Pitch error",
            shown("f0_error_cents", lambda x: f"{x:.1f} cents"),
            "typical distance; 100 cents are a semitone, below about 5 nobody hears it",
        ],
        [
            "Sung and unsung",
            shown("voicing_f1", lambda x: f"{100 * x:.1f} %"),
            "agreement on where there is a pitch at all",
        ],
        [
            "Loudness error",
            shown("loudness_l1_db", lambda x: f"{x:.1f} dB"),
            "mean distance between the loudness that was asked for and the one that came out; below 3 dB is good",
        ],
    ]
    return page.table(["", ">value", "what it means"], rows)


def _learning(curves: dict) -> str:
    held = curves["validation_loss"]
    value = "" if not len(held) else f" It ended at {held[-1]:.2f} on recordings that were kept out of the training."
    return page.paragraph(
        f"The loss is the distance between the spectrogram of a recording and of its imitation, summed over coarse and "
        f"fine time scales; 0 would be a perfect copy.{value} As a rule of thumb for this loss, above 6 there is room "
        "to improve, and well below 5 the model begins to learn its recordings by heart. A demo trains for a minute; "
        "a good instrument takes longer."
    )


def _previews(run: Path) -> str:
    found = training.previews(run)
    if not found:
        return ""
    last = [p for p in found if p.step == found[-1].step and p.original.is_file()][:2]
    players = []
    for preview in last:
        for path, label in (
            (preview.original, "Held-out recording"),
            (preview.path, f"Imitation, step {preview.step}"),
        ):
            sound = audio.read(path)
            note = f"loss {preview.score:.2f}" if path == preview.path else ""
            players.append(page.player(sound.samples, sound.sample_rate_hz, label, note))
    return page.flow(*players)
