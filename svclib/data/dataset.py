"""Datasets: audio and features of recordings, extracted once, with random access.

:func:`prepare` makes or updates a dataset, :meth:`Dataset.open` reads one. A batch is a pure function of the dataset's
contents, the seed and the step, so training can resume at any step without the state of a loader.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.audio import units
from svclib.data import manifest, preprocess, shards
from svclib.data.batches import ValidationBatches
from svclib.data.recordings import Recording
from svclib.features import extract
from svclib.features.f0 import fill_unvoiced
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import DatasetError, StorageError

SILENT_DB = -80.0


def prepare(
    sources: Sequence[Recording],
    out: str | Path,
    settings: extract.FeatureSettings,
    validation: str | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: str | None = None,
) -> "Dataset":
    """Make the dataset of these recordings in ``out``, or update the one that is there.

    Incremental: only new or changed files are processed, and an interrupted run continues. Unusable files are listed in
    ``skipped``, repeated audio in ``duplicates``, and all messages in ``messages``.

    Args:
        sources: From :func:`find_recordings`.
        out: Folder of the dataset; only ``shard-*`` and ``manifest.json`` in it are touched.
        settings: Features to extract; changed settings extract everything again.
        validation: Pattern of held-out file names, e.g. ``*_[0-4].wav``; None holds out about 7.5 % of the recordings
            by their contents, at least one of two (and the end of a single one).
        progress: Called with a fraction and a text with the remaining time.
        cancelled: Called between segments; True stops with ``Cancelled``, and a later run continues.
        executor: ``dask://HOST:PORT`` of a dask.distributed cluster; None for processes of this machine. The bytes are
            the same.

    Returns:
        The dataset, open.

    Raises:
        DatasetError: if nothing can be used, or ``out`` or ``validation`` do not fit.
        StorageError: if the cluster cannot be used or is lost; what was committed stays.
        StorageError: if the disk fails; what was committed stays.
    """
    settings = manifest.pin_content_encoder(Path(out), settings)
    return Dataset.open(out, preprocess.run(sources, out, settings, validation, progress, cancelled, executor))


def local_copy(data: Any, log_message: Callable[[str], None]) -> Any:
    """A copy on the local disk of a dataset on Drive: faster, and independent of the connection.

    Any other dataset is returned unchanged; so is this one, with a message, if it cannot be copied.
    """
    if not isinstance(data, Dataset) or not filesystem.on_drive(data.path):
        return data
    here = Path(tempfile.gettempdir()) / f"svclib-dataset-{data.fingerprint[:16]}"
    try:
        missing = {n: e["bytes"] for n, e in data._shards.items() if filesystem.size_of(here / n) != e["bytes"]}
        filesystem.free_space_check(here, sum(missing.values()) + (1 << 29))
        for name in (*missing, manifest.NAME):
            atomic_store.copy_file(data.path / name, here / name)
        copy = Dataset.open(here)
        if problems := copy.verify():
            raise StorageError(problems[0])
    except (OSError, DatasetError) as error:
        log_message(f"The dataset is read from Drive directly: {error}")
        return data
    if missing:
        log_message(f"The dataset was copied to this machine, {sum(missing.values()) / 1e6:.0f} MB.")
    return copy


class Dataset:
    """A prepared dataset, open for reading; :meth:`open` makes one.

    Args:
        path: Its folder.
        contents: Of its manifest.
        messages: Of the preparation.

    Attributes:
        path: Its folder.
        settings: Of the feature extraction.
        recordings: One dict each: ``name``, ``singer``, ``label``, ``split`` ("train" or "validation"), ``n_samples``,
            ``n_frames``, ``sha256`` of the source file, ``notes``.
        singers, labels: Sorted names; batches hold indices into them.
        statistics: See ``statistics.compute``; of the train split.
        fingerprint: Hash of the contents; equal fingerprints give equal batches.
        skipped, duplicates: Files left out: dicts with ``name`` and ``reason``, or ``same_as``.
        messages: Of the preparation, if it was just made.
    """

    thread_safe = True

    def __init__(self, path: Path, contents: dict, messages: Sequence[str] = ()):
        self.path = Path(path)
        self.settings = extract.FeatureSettings.from_json(contents["settings"])
        self._entries = contents["recordings"]
        self.recordings = [{k: v for k, v in e.items() if k != "segments"} for e in self._entries]
        self.singers, self.labels = contents["singers"], contents["labels"]
        self.statistics, self.fingerprint = contents["statistics"], contents["fingerprint"]
        self.skipped, self.duplicates = contents["skipped"], contents["duplicates"]
        self.messages = list(messages)
        self.versions = contents["versions"]
        self._shards = contents["shards"]
        self._readers = {name: shards.Reader(self.path / name) for name in self._shards}
        self._filled: dict[int, np.ndarray] = {}
        self._n_frames = np.array([r["n_frames"] for r in self.recordings], np.int64)
        splits = np.array([r["split"] for r in self.recordings])
        self._splits = {s: _Split(np.flatnonzero(splits == s), self._n_frames) for s in ("train", "validation")}
        singers, labels = ({n: i for i, n in enumerate(names)} for names in (self.singers, self.labels))
        self._singer = np.array([singers[r["singer"]] for r in self.recordings], np.int64)
        self._label = np.array([labels.get(r["label"], -1) for r in self.recordings], np.int64)

    @classmethod
    def open(cls, path: str | Path, messages: Sequence[str] = ()) -> "Dataset":
        """Open a dataset. Sizes of shards are checked, contents by :meth:`verify`; DatasetError if any is missing."""
        path = Path(path)
        contents = manifest.read(path)
        for name, expected in contents["shards"].items():
            size = filesystem.size_of(path / name)
            if size != expected["bytes"]:
                state = "is missing" if size is None else f"has {size} bytes instead of {expected['bytes']}"
                raise DatasetError(
                    f"'{path / name}' {state}. Prepare the dataset again: only what is lost is measured again."
                )
        return cls(path, contents, messages)

    @property
    def hop_samples(self) -> int:
        """Samples per frame."""
        return self.settings.hop_samples

    def duration_s(self, split: str | None = None) -> float:
        """Seconds of audio, of one split or of all."""
        n = sum(r["n_samples"] for r in self.recordings if split in (None, r["split"]))
        return n / self.settings.sample_rate_hz

    def indices(self, split: str) -> list[int]:
        """Positions of the recordings of a split."""
        return self._splits[split].indices.tolist()

    def verify(self) -> list[str]:
        """Check the contents against their SHA-256; returns a sentence for each damaged shard."""
        problems = []
        for name, expected in self._shards.items():
            problem = atomic_store.verify(atomic_store.Marked(self.path / name, expected))
            if problem:
                problems.append(f"'{self.path / name}': {problem}. Prepare the dataset again to repair it.")
        return problems

    # Reading -----------------------------------------------------------------------------------------------------

    def audio(self, index: int, start_sample: int = 0, n_samples: int | None = None) -> np.ndarray:
        """Audio of a recording, float32 ``[n_samples]``, full scale 1; to its end by default. Raises IndexError
        outside the recording."""
        entry = self._entries[index]
        stop = entry["n_samples"] if n_samples is None else start_sample + n_samples
        if not 0 <= start_sample <= stop <= entry["n_samples"]:
            raise IndexError(f"samples {start_sample} to {stop} of the {entry['n_samples']} of '{entry['name']}'")
        out, position = np.zeros(stop - start_sample, np.float32), 0
        for shard, s0, n, _, _ in entry["segments"]:
            a, b = max(start_sample, position), min(stop, position + n)
            if a < b:
                piece = self._readers[shard].read("audio", s0 + a - position, s0 + b - position)
                np.divide(piece, shards.FULL_SCALE, out=out[a - start_sample : b - start_sample], casting="unsafe")
            position += n
        return out

    def features(self, index: int, start_frame: int = 0, n_frames: int | None = None) -> extract.Features:
        """Features of a recording or a range of its frames; raises IndexError outside the recording."""
        entry = self._entries[index]
        stop = entry["n_frames"] if n_frames is None else start_frame + n_frames
        if not 0 <= start_frame <= stop <= entry["n_frames"]:
            raise IndexError(f"frames {start_frame} to {stop} of the {entry['n_frames']} of '{entry['name']}'")
        return manifest.read_features(self._readers, entry, self.settings, start_frame, stop)

    def random_chunk(self, seed: int, seconds: float = 5.0) -> tuple[int, int, int]:
        """A random excerpt: index, start_frame, n_frames; uniform over the time of all recordings."""
        n_frames = max(1, round(seconds * self.settings.sample_rate_hz / self.hop_samples))
        everything = _Split(np.arange(len(self.recordings)), self._n_frames)
        index, start = everything.draw(np.random.default_rng([seed, 1]), n_frames)
        return index, start, min(n_frames, self.recordings[index]["n_frames"] - start)

    # Batches -----------------------------------------------------------------------------------------------------

    def batch(
        self,
        seed: int,
        step: int,
        batch_size: int,
        n_frames: int,
        split: str = "train",
        device: str | torch.device = "cpu",
    ) -> dict[str, torch.Tensor]:
        """Random segments, uniform over the time of a split: a function of (seed, step) and the contents.

        Args:
            seed: Of the training.
            step: From 0; every step draws anew.
            batch_size: Number of segments.
            n_frames: Length of each.
            split: ``train`` or ``validation``.
            device: Where the tensors go.

        Returns:
            ``audio`` ``[batch, n_frames * hop]``; ``f0_hz`` (unvoiced gaps filled from their neighbours in the whole
            recording, 0 where it has no pitch at all), ``confidence``, ``loudness_db`` ``[batch, n_frames]`` float32;
            ``voiced`` bool; ``log_mel`` ``[batch, n_frames, mels]`` and ``content`` ``[batch, n_frames, dims]`` if the
            settings have them; ``singer``, ``label`` ``[batch]`` int64, positions in ``singers`` and ``labels`` (-1
            without label); ``recording``, ``start_frame`` ``[batch]`` int64, where the segments lie. A recording that
            is too short is followed by silence: loudness -80 dB, unvoiced.

        Raises:
            DatasetError: if the split is empty.
        """
        chosen = self._splits[split]
        if not len(chosen.indices):
            raise DatasetError(f"The dataset '{self.path}' has no recordings for {split}. Prepare it with more.")
        rng = np.random.default_rng([seed, step, 0])
        return self._collect([chosen.draw(rng, n_frames) for _ in range(batch_size)], n_frames, device)

    def validation_batches(
        self, batch_size: int, n_frames: int, device: str | torch.device = "cpu"
    ) -> ValidationBatches:
        """The validation split in adjacent segments, as a fixed sequence of batches that are read on access.

        The last segment of a recording ends with the recording and overlaps the one before it; only recordings shorter
        than a segment are padded with silence.
        """
        return ValidationBatches(self, batch_size, n_frames, device)

    def window(self, index: int, start_frame: int, n_frames: int) -> dict[str, torch.Tensor]:
        """One segment as a batch of one, see :meth:`batch`."""
        return self._collect([(index, start_frame)], n_frames, "cpu")

    def _collect(self, windows: Sequence[tuple[int, int]], n_frames: int, device) -> dict[str, torch.Tensor]:
        hop, mel = self.hop_samples, self.settings.mel
        shape = (len(windows), n_frames)
        out = {
            "audio": np.zeros((len(windows), n_frames * hop), np.float32),
            "f0_hz": np.zeros(shape, np.float32),
            "voiced": np.zeros(shape, bool),
            "confidence": np.zeros(shape, np.float32),
            "loudness_db": np.full(shape, SILENT_DB, np.float32),
        }
        large = manifest.large_features(self.settings)
        for name, width in large.items():
            out[name] = np.full((*shape, width), mel.log_floor if name == "log_mel" else 0.0, np.float32)
        for row, (index, start) in enumerate(windows):
            n = min(n_frames, self.recordings[index]["n_frames"] - start)
            piece = self.features(index, start, n)
            out["audio"][row, : n * hop] = self.audio(index, start * hop, n * hop)
            f0_hz = self._filled_f0(index)[start : start + n]
            out["f0_hz"][row, :n] = f0_hz
            out["f0_hz"][row, n:] = f0_hz[-1] if n else 0.0
            for name in ("voiced", "confidence", "loudness_db", *large):
                out[name][row, :n] = getattr(piece, name)
        rows = [index for index, _ in windows]
        out["singer"], out["label"] = self._singer[rows], self._label[rows]
        out["recording"], out["start_frame"] = np.array(windows, np.int64).reshape(-1, 2).T
        return {name: torch.from_numpy(value).to(device) for name, value in out.items()}

    def _filled_f0(self, index: int) -> np.ndarray:
        if index not in self._filled:
            whole = manifest.read_features(self._readers, self._entries[index], self.settings, large=False)
            self._filled[index] = np.asarray(fill_unvoiced(whole.f0_hz, whole.voiced), np.float32)
        return self._filled[index]


class _Split:
    """The recordings of a split with the cumulative sum of their lengths, for draws uniform over time."""

    def __init__(self, indices: np.ndarray, n_frames: np.ndarray):
        self.indices, self.n_frames = indices, n_frames[indices]
        self.ends = np.cumsum(self.n_frames)

    def draw(self, rng: np.random.Generator, n_frames: int) -> tuple[int, int]:
        """A random window: index of the recording and first frame."""
        position = int(np.searchsorted(self.ends, rng.integers(self.ends[-1]), side="right"))
        start = rng.integers(max(0, int(self.n_frames[position]) - n_frames) + 1)
        return int(self.indices[position]), int(start)


def describe(dataset: Dataset) -> str:
    """Summary of a dataset in a few lines of text."""
    s, pitch = dataset.settings, dataset.statistics["f0_midi"]
    held = dataset.duration_s("validation")
    lines = [
        f"{len(dataset.recordings)} recordings, {units.duration_text(dataset.duration_s())} "
        f"({units.duration_text(held)} held out for validation)",
        f"singers: {', '.join(dataset.singers)}",
        f"{s.sample_rate_hz} Hz, a frame every {1000 * s.hop_samples / s.sample_rate_hz:.3g} ms, F0 by {s.f0_method}"
        + (f", {s.mel.n_mels} mel bands" if s.mel else ""),
    ]
    if dataset.labels:
        lines.append(f"labels: {', '.join(dataset.labels)}")
    if pitch["mean_note"] is not None:
        low, high = (units.midi_to_hz(pitch[k]) for k in ("min_note", "max_note"))
        lines.append(f"notes from {low:.0f} to {high:.0f} Hz, {units.midi_to_hz(pitch['mean_note']):.0f} Hz on average")
    if dataset.skipped or dataset.duplicates:
        lines.append(f"{len(dataset.skipped)} files skipped, {len(dataset.duplicates)} duplicates left out")
    return "\n".join(lines)
