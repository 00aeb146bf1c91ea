"""What a trained model does, as plain arrays to look at and listen to: reconstructions, controls, z; runs compared."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.audio import units
from svclib.conversion import pipeline
from svclib.data import dataset
from svclib.features.extract import Features
from svclib.training import api as training
from svclib.utils.errors import DatasetError


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A held-out stretch beside what the model makes of its pitch and loudness.

    Attributes:
        name: Of the recording.
        start_s: Where the stretch begins in it.
        original, made: float32 ``[samples]`` at ``features.settings.sample_rate_hz``.
        features: Of the original.
        loss: The model's loss on this stretch.
    """

    name: str
    start_s: float
    original: np.ndarray
    made: np.ndarray
    features: Features
    loss: float


def reconstruct(
    model: Any, data: dataset.Dataset, seconds: float | int = 4.0, number: int = 0, seed: int = 0
) -> Reconstruction:
    """Let a model sing a stretch of the validation split again.

    Args:
        model: From ``training.load_model``.
        data: The dataset it was trained on.
        seconds: Length of the stretch, in whole frames; less at the end of a recording.
        number: Which stretch; they lie side by side in the held-out recordings and are counted round.
        seed: Of the noise.

    Returns:
        The stretch, what the model makes of it, and its validation loss there.

    Raises:
        DatasetError: if nothing is held out.
    """
    hop, rate_hz = data.hop_samples, data.settings.sample_rate_hz
    wanted = max(1, units.frame_count(round(seconds * rate_hz), hop))
    places = [
        (index, start)
        for index in data.indices("validation")
        for start in range(0, data.recordings[index]["n_frames"], wanted)
    ]
    if not places:
        raise DatasetError("No recording is held out; prepare the dataset with at least two recordings.")
    index, start = places[number % len(places)]
    n_frames = min(wanted, data.recordings[index]["n_frames"] - start)
    measured = data.features(index, start, n_frames)
    original = data.audio(index, start * hop, n_frames * hop)
    batch = data.window(index, start, n_frames)
    made = model.reconstruct(batch, seed=seed)[0].numpy()
    loss = float(model.validation_loss(batch))
    return Reconstruction(data.recordings[index]["name"], start * hop / rate_hz, original, made, measured, loss)


@dataclasses.dataclass(frozen=True)
class SynthControls:
    """What a DDSP instrument asks its synthesiser to play, as arrays over frames.

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
    """The controls behind a stretch of a conversion, computed again with the same instrument.

    The network hears the song from its beginning up to the end of the stretch, as it did in the conversion.
    """
    settings, adjusted = instrument.features, result.tracks
    hop, rate_hz = settings.hop_samples, settings.sample_rate_hz
    first = min(units.frame_of_time(float(start_s), hop, rate_hz), max(0, len(adjusted.f0_hz) - 1))
    last = min(len(adjusted.f0_hz), first + max(1, units.frame_of_time(float(seconds), hop, rate_hz)))
    model = instrument.model

    def row(x):
        return torch.from_numpy(np.array(x[:last]))[None]

    z = None
    if model.settings.z_dims:
        z = model.z_encoder.at_frames(model.encode_z(result.song.audio), 0, last, hop)
    made = model.controls(row(adjusted.f0_hz), row(adjusted.voiced), row(adjusted.loudness_db), z=z)
    cut = slice(first, last)
    return SynthControls(
        hop / rate_hz,
        adjusted.f0_hz[cut],
        adjusted.voiced[cut],
        made.amplitude[0, cut].numpy(),
        made.distribution[0, cut].numpy(),
        made.noise_magnitudes[0, cut].numpy(),
        None if made.z is None else made.z[0, cut].numpy(),
    )


@torch.no_grad()
def z_paths(model, data: dataset.Dataset, n_recordings: int = 6, seconds=8.0) -> dict[str, np.ndarray]:
    """Paths of some recordings through a model's z space, name -> ``[frames, dims]``; {} for a model without z.

    Recordings are taken from all singers in turn, so that one can see whether voices share the space.
    """
    if not getattr(model.settings, "z_dims", 0):
        return {}
    by_singer = [[i for i, r in enumerate(data.recordings) if r["singer"] == singer] for singer in data.singers]
    turns = [i for turn in itertools.zip_longest(*by_singer) for i in turn if i is not None]
    paths = {}
    for index in turns[:n_recordings]:
        recording = data.recordings[index]
        n_samples = min(recording["n_samples"], round(seconds * data.settings.sample_rate_hz))
        z = model.encode_z(data.audio(index, 0, n_samples))
        paths[f"{recording['singer']}: {recording['name']}"] = z[0].numpy()
    return paths


def runs_by_loss(folder: str | Path) -> tuple[dict[str, dict[str, dict]], list[str]]:
    """The curves of all runs in a folder, kept apart by what their loss means: only within a group do they compare.

    Args:
        folder: Of the runs; each folder in it is one.

    Returns:
        ``({loss in words: {run: curves}}, [sentence for each folder without curves])``.
    """
    groups, problems = {}, []
    for run in sorted((p for p in Path(folder).iterdir() if p.is_dir()), key=lambda p: p.name.lower()):
        try:
            curves = training.curves(run)
        except ValueError as error:
            problems.append(str(error))
            continue
        groups.setdefault(loss_text(curves["loss_definition"]), {})[run.name] = curves
    return groups, problems


def loss_text(definition: dict | None) -> str:
    """A loss definition in words, equal where losses compare."""
    if not definition:
        return "loss of unknown definition"
    rest = {name: value for name, value in definition.items() if name not in ("kind", "fft_sizes", "log_rule")}
    words = [str(definition.get("kind", ""))]
    if "fft_sizes" in definition:
        sizes = definition["fft_sizes"]
        words.append(f"spectral loss, {len(sizes)} FFT sizes ({', '.join(map(str, sizes))})")
    if "log_rule" in definition:
        words.append(f"log rule {definition['log_rule']}")
    if rest:
        words.append(json.dumps(rest, sort_keys=True))
    return ", ".join(words)
