"""Inspection of conversions and models: results as HTML, reconstructions, synthesiser controls, z, curves of runs."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from svclib.analysis import html as page
from svclib.analysis import plots
from svclib.audio import units
from svclib.conversion import pipeline
from svclib.conversion.song import require_sound
from svclib.data import dataset
from svclib.features.extract import Features
from svclib.training import api as training
from svclib.utils.errors import DatasetError


def result_html(result: pipeline.Conversion, path: Path, number: int, full: bool = True) -> str:
    """A conversion as HTML: settings, players, where it is; ``full``: original, parts and plots as well."""
    rate_hz, song, measured, tracks = result.sample_rate_hz, result.song, result.song.features, result.tracks
    title, *settings = result.settings_text.splitlines()
    sounds, drawings = [(result.audio, rate_hz, "Result")], {}
    if full:
        sounds = [(song.original(), song.sample_rate_hz, "Original"), *sounds]
        sounds += [(x, rate_hz, name) for x, name in zip(result.stems, ("Harmonic part", "Noise part"), strict=True)]
        target = dataclasses.replace(measured, f0_hz=tracks.f0_hz, voiced=tracks.voiced)
        original = ("Original", song.audio, measured.settings.sample_rate_hz, measured)
        compared = plots.compare_spectrograms([original, ("Result, with the target F0", result.audio, rate_hz, target)])
        drawings["spectrograms of the original and the result with their F0"] = compared
        drawn = plots.conversion_plots(measured, tracks, result.controls)
        drawings["loudness, pitch, confidence and note-on ratio before and after"] = drawn
    parts = [
        '<hr style="opacity:.3">',
        page.heading(f"{number}. {title}"),
        *(page.paragraph(line) for line in settings),
        *(page.notice(warning, "warning") for warning in result.warnings),
        page.flow(*(page.player(*sound) for sound in sounds)),
        *(page.picture(plots.png(figure), alt) for alt, figure in drawings.items()),
        page.paragraph(f"Saved as {path}"),
    ]
    return "".join(parts)


class Reconstruction(NamedTuple):
    """The beginning of a held-out recording, float32 ``[samples]``, its reconstruction from its features, the loss."""

    name: str
    original: np.ndarray
    reconstructed: np.ndarray
    features: Features
    loss: float


def reconstruct(model, data: dataset.Dataset, seconds=4.0) -> Reconstruction:
    """Reconstruct the beginning of the first held-out recording."""
    held_out = data.indices("validation")
    if not held_out:
        raise DatasetError("No recording is held out; prepare the dataset with at least two recordings.")
    index, recording = held_out[0], data.recordings[held_out[0]]
    length = units.frame_count(round(seconds * data.settings.sample_rate_hz), data.hop_samples)
    n_frames = min(length, recording["n_frames"])
    batch, original = data.window(index, 0, n_frames), data.audio(index, 0, n_frames * data.hop_samples)
    made, measured = model.reconstruct(batch, seed=0)[0].numpy(), data.features(index, 0, n_frames)
    return Reconstruction(recording["name"], original, made, measured, float(model.validation_loss(batch)))


class SynthControls(NamedTuple):
    """Controls of the synthesiser of a DDSP instrument over frames: ``f0_hz``, ``voiced``, ``amplitude [frames]``;
    ``distribution [frames, harmonics]``, rows sum to 1; ``noise_magnitudes [frames, bands]``; ``z [frames, dims]``."""

    frame_s: float
    f0_hz: np.ndarray
    voiced: np.ndarray
    amplitude: np.ndarray
    distribution: np.ndarray
    noise_magnitudes: np.ndarray
    z: np.ndarray | None


@torch.no_grad()
def synth_controls(instrument, result: pipeline.Conversion, start_s=0.0, seconds=10.0) -> SynthControls:
    """Synthesiser controls of an excerpt of a conversion, computed again from the beginning of the song.

    ConversionError where the song ends before the excerpt begins.
    """
    settings, tracks, model = instrument.features, result.tracks, instrument.model
    hop, rate_hz = settings.hop_samples, settings.sample_rate_hz
    first = units.frame_of_time(float(start_s), hop, rate_hz)
    last = min(len(tracks.f0_hz), first + max(1, units.frame_of_time(float(seconds), hop, rate_hz)))
    require_sound(result.song, start_s, first, last)
    z = None
    if model.settings.z_dims:
        z = model.z_encoder.at_frames(model.encode_z(result.song.audio), 0, last, hop)
    inputs = (torch.from_numpy(np.array(x[:last]))[None] for x in (tracks.f0_hz, tracks.voiced, tracks.loudness_db))
    made = model.controls(*inputs, z=z)
    curves = (made.amplitude, made.distribution, made.noise_magnitudes, z)
    cut = (None if x is None else x[0, first:last].numpy() for x in curves)
    return SynthControls(hop / rate_hz, tracks.f0_hz[first:last], tracks.voiced[first:last], *cut)


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
        else:
            groups.setdefault(loss_text(curves["loss_definition"]), {})[run.name] = curves
    return groups, problems


def loss_text(definition: dict | None) -> str:
    """A loss definition as text, equal for comparable losses."""
    rest = dict(definition or {"kind": "loss of unknown definition"})
    words = [str(rest.pop("kind", ""))]
    if sizes := rest.pop("fft_sizes", None):
        words.append(f"spectral loss, {len(sizes)} FFT sizes ({', '.join(map(str, sizes))})")
    if rule := rest.pop("log_rule", None):
        words.append(f"log rule {rule}")
    return ", ".join([*words, json.dumps(rest, sort_keys=True)] if rest else words)
