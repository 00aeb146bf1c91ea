"""Inspection of conversions and models: results as HTML, reconstructions, synthesiser controls, z, curves of runs."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.analysis import html as page
from svclib.analysis.plots import base as plots
from svclib.audio import units
from svclib.conversion import pipeline
from svclib.data import dataset
from svclib.features.extract import Features
from svclib.training import api as training
from svclib.utils.errors import DatasetError


def result_html(result: pipeline.Conversion, path: Path, number: int, full: bool = True) -> str:
    """A conversion as HTML: settings, players, a download link; ``full``: original, parts and plots as well."""
    rate_hz, song = result.sample_rate_hz, result.song
    title, *settings = result.settings_text.splitlines()
    parts = [
        '<hr style="opacity:.3">',
        page.heading(f"{number}. {title}"),
        *(page.paragraph(line) for line in settings),
        *(page.notice(warning, "warning") for warning in result.warnings),
    ]
    sounds = [(result.audio, rate_hz, "Result")]
    if full:
        sounds = [(song.original(), song.sample_rate_hz, "Original"), *sounds]
        harmonic, noise = result.stems
        sounds += [(harmonic, rate_hz, "Harmonic part"), (noise, rate_hz, "Noise part")]
    parts.append(page.flow(*(page.player(*sound) for sound in sounds)))
    if full:
        measured = song.features
        target = dataclasses.replace(measured, f0_hz=result.tracks.f0_hz, voiced=result.tracks.voiced)
        items = [
            ("Original", song.audio, measured.settings.sample_rate_hz, measured),
            ("Result, with the target F0", result.audio, rate_hz, target),
        ]
        drawing = plots.png(plots.compare_spectrograms(items))
        parts.append(page.picture(drawing, "spectrograms of the original and the result with their F0"))
        drawing = plots.png(plots.conversion_plots(measured, result.tracks, result.controls))
        parts.append(page.picture(drawing, "loudness, pitch, confidence and note-on ratio before and after"))
    return "".join([*parts, page.paragraph(f"Saved as {path}"), page.download_link(path)])


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A held-out excerpt beside its reconstruction from pitch, loudness and other conditions.

    Attributes:
        name: Of the recording.
        start_s: Start of the excerpt in it.
        original, reconstructed: float32 ``[samples]`` at ``features.settings.sample_rate_hz``.
        features: Of the original.
        loss: The model's validation loss on the excerpt.
    """

    name: str
    start_s: float
    original: np.ndarray
    reconstructed: np.ndarray
    features: Features
    loss: float


def reconstruct(
    model: Any, data: dataset.Dataset, seconds: float | int = 4.0, number: int = 0, seed: int = 0
) -> Reconstruction:
    """Reconstruct excerpt ``number`` (modulo their number) of the held-out recordings, cut into ``seconds`` each.

    ``model`` is from ``training.load_model``, ``data`` the dataset it was trained on.
    """
    hop, rate_hz = data.hop_samples, data.settings.sample_rate_hz
    length = max(1, units.frame_count(round(seconds * rate_hz), hop))
    places = [
        (index, start)
        for index in data.indices("validation")
        for start in range(0, data.recordings[index]["n_frames"], length)
    ]
    if not places:
        raise DatasetError("No recording is held out; prepare the dataset with at least two recordings.")
    index, start = places[number % len(places)]
    n_frames = min(length, data.recordings[index]["n_frames"] - start)
    measured = data.features(index, start, n_frames)
    original = data.audio(index, start * hop, n_frames * hop)
    batch = data.window(index, start, n_frames)
    reconstructed = model.reconstruct(batch, seed=seed)[0].numpy()
    loss = float(model.validation_loss(batch))
    name = data.recordings[index]["name"]
    return Reconstruction(name, start * hop / rate_hz, original, reconstructed, measured, loss)


@dataclasses.dataclass(frozen=True)
class SynthControls:
    """Controls of the synthesiser of a DDSP instrument over frames.

    Attributes:
        frame_s: Seconds per frame.
        f0_hz, voiced, amplitude: ``[frames]``.
        distribution: ``[frames, harmonics]``, rows sum to 1.
        noise_magnitudes: ``[frames, bands]``.
        z: ``[frames, dims]`` or None.
    """

    frame_s: float
    f0_hz: np.ndarray
    voiced: np.ndarray
    amplitude: np.ndarray
    distribution: np.ndarray
    noise_magnitudes: np.ndarray
    z: np.ndarray | None


@torch.no_grad()
def synth_controls(instrument, result: pipeline.Conversion, start_s=0.0, seconds=10.0) -> SynthControls:
    """Synthesiser controls of an excerpt of a conversion, computed again from the beginning of the song."""
    settings, tracks, model = instrument.features, result.tracks, instrument.model
    hop, rate_hz = settings.hop_samples, settings.sample_rate_hz
    first = min(units.frame_of_time(float(start_s), hop, rate_hz), max(0, len(tracks.f0_hz) - 1))
    last = min(len(tracks.f0_hz), first + max(1, units.frame_of_time(float(seconds), hop, rate_hz)))
    z = None
    if model.settings.z_dims:
        z = model.z_encoder.at_frames(model.encode_z(result.song.audio), 0, last, hop)
    inputs = (torch.from_numpy(np.array(x[:last]))[None] for x in (tracks.f0_hz, tracks.voiced, tracks.loudness_db))
    controls = model.controls(*inputs, z=z)

    def cut(x):
        return None if x is None else x[0, first:last].numpy()

    return SynthControls(
        hop / rate_hz,
        tracks.f0_hz[first:last],
        tracks.voiced[first:last],
        cut(controls.amplitude),
        cut(controls.distribution),
        cut(controls.noise_magnitudes),
        cut(z),
    )


@torch.no_grad()
def z_paths(model, data: dataset.Dataset, n_recordings: int = 6, seconds=8.0) -> dict[str, np.ndarray]:
    """z trajectories of recordings of all singers in turn, name -> ``[frames, dims]``; {} for a model without z."""
    if not getattr(model.settings, "z_dims", 0):
        return {}
    by_singer = [[i for i, r in enumerate(data.recordings) if r["singer"] == singer] for singer in data.singers]
    order = [i for turn in itertools.zip_longest(*by_singer) for i in turn if i is not None]
    paths = {}
    for index in order[:n_recordings]:
        recording = data.recordings[index]
        n_samples = min(recording["n_samples"], round(seconds * data.settings.sample_rate_hz))
        z = model.encode_z(data.audio(index, 0, n_samples))
        paths[f"{recording['singer']}: {recording['name']}"] = z[0].numpy()
    return paths


def runs_by_loss(folder: str | Path) -> tuple[dict[str, dict[str, dict]], list[str]]:
    """Curves of all runs in a folder by loss definition, ``{loss text: {run: curves}}``, and a message for each folder
    without curves. Only losses of one definition are comparable."""
    groups: dict[str, dict[str, dict]] = {}
    problems = []
    for run in sorted((p for p in Path(folder).iterdir() if p.is_dir()), key=lambda p: p.name.lower()):
        try:
            curves = training.curves(run)
        except ValueError as error:
            problems.append(str(error))
            continue
        groups.setdefault(loss_text(curves["loss_definition"]), {})[run.name] = curves
    return groups, problems


def loss_text(definition: dict | None) -> str:
    """A loss definition as text, equal for comparable losses."""
    if not definition:
        return "loss of unknown definition"
    rest = dict(definition)
    words = [str(rest.pop("kind", ""))]
    if "fft_sizes" in rest:
        sizes = rest.pop("fft_sizes")
        words.append(f"spectral loss, {len(sizes)} FFT sizes ({', '.join(map(str, sizes))})")
    if "log_rule" in rest:
        words.append(f"log rule {rest.pop('log_rule')}")
    return ", ".join([*words, json.dumps(rest, sort_keys=True)] if rest else words)
