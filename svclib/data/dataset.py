"""Prepared recordings: audio and features, stored once, read at random places.

:func:`prepare` makes or updates a dataset, :meth:`Dataset.open` reads one. A batch is a pure function of the dataset's
contents, the seed and the step, so that training can stop and go on anywhere without remembering where it was.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svclib.audio import units
from svclib.data import manifest, preprocess, shards
from svclib.data import remeasure as remeasuring
from svclib.data.recordings import Recording, recordings
from svclib.features import extract
from svclib.features.f0 import fill_unvoiced
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import DatasetError, StorageError

__all__ = [
    "Dataset",
    "Recording",
    "ValidationBatches",
    "describe",
    "nearby",
    "prepare",
    "recordings",
    "remeasure",
]

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
    """Make the dataset of these recordings in ``out``, or bring the one there up to date.

    Only what is not stored yet is measured: a second run does nothing, a changed or added file is measured alone, an
    interrupted run goes on. Files that cannot be used are skipped and told (``skipped``), the same audio twice is used
    once (``duplicates``); everything to tell stands in ``messages``.

    Args:
        sources: From :func:`recordings`.
        out: Folder of the dataset; only ``shard-*`` and ``manifest.json`` in it are touched.
        settings: How to measure; another setting measures everything again.
        validation: File name pattern of what is held out, e.g. ``*_[0-4].wav``; None holds out about 7.5 % of the
            recordings by their contents, at least one of two (and the end of a lone one).
        progress: Called with a fraction and a text with the remaining time.
        cancelled: Asked between segments; preparation stops with ``Cancelled`` and can be continued.
        executor: ``dask://HOST:PORT`` measures on a dask.distributed cluster; None in processes of this machine. Same
            bytes; recordings are read here in both cases.

    Returns:
        The dataset, open.

    Raises:
        DatasetError: if nothing can be used, or ``out`` or ``validation`` do not fit.
        StorageError: if the cluster cannot be used or is lost; what was committed stays.
        StorageError: if the disk fails; what was committed stays.
    """
    settings = manifest.pinned(Path(out), settings)
    return Dataset.open(out, preprocess.run(sources, out, settings, validation, progress, cancelled, executor))


def remeasure(
    data: "Dataset",
    out: str | Path,
    settings: extract.FeatureSettings,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> "Dataset":
    """Make a dataset with other settings from the audio stored in a dataset, with the same split; else as
    :func:`prepare`. Raises DatasetError where the settings need a higher sample rate than is stored."""
    settings = manifest.pinned(Path(out), settings)
    return Dataset.open(out, remeasuring.run(data, out, settings, progress, cancelled))


def nearby(data: Any, tell: Callable[[str], None]) -> Any:
    """A dataset that lies on Drive, copied to this machine's own disk: faster, and Drive may drop while it is read.

    Any other dataset comes back as it is; so does this one, with a sentence to ``tell``, where that is not possible.
    """
    if not isinstance(data, Dataset) or not filesystem.on_drive(data.path):
        return data
    here = Path(tempfile.gettempdir()) / f"svclib-dataset-{data.fingerprint[:16]}"
    try:
        missing = {n: e["bytes"] for n, e in data._shards.items() if atomic_store.size_of(here / n) != e["bytes"]}
        atomic_store.free_space_check(here, sum(missing.values()) + (1 << 29))
        for name in (*missing, manifest.NAME):
            atomic_store.copy_file(data.path / name, here / name)
        copy = Dataset.open(here)
        if problems := copy.verify():
            raise StorageError(problems[0])
    except (OSError, DatasetError) as error:
        tell(f"The dataset is read from Drive directly: {error}")
        return data
    if missing:
        tell(f"The dataset was copied to this machine, {sum(missing.values()) / 1e6:.0f} MB.")
    return copy


class Dataset:
    """A prepared dataset, open for reading; :meth:`open` makes one.

    Args:
        path: Its folder.
        contents: Of its manifest.
        messages: What the preparation had to tell.

    Attributes:
        path: Its folder.
        settings: How everything was measured.
        recordings: One dict each: ``name``, ``singer``, ``label``, ``split`` ("train" or "validation"), ``n_samples``,
            ``n_frames``, ``sha256`` of the source file, ``notes``.
        singers, labels: Sorted names; batches hold positions in them.
        statistics: See ``statistics.compute``; of the train split.
        fingerprint: Hash of the contents; the same batches come from the same fingerprint.
        skipped, duplicates: What was left out: dicts with ``name`` and ``reason``, or ``same_as``.
        messages: What the preparation had to tell, if it was just made.
    """

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

    @classmethod
    def open(cls, path: str | Path, messages: Sequence[str] = ()) -> "Dataset":
        """Open a dataset; sizes of all shards are checked, contents by :meth:`verify`. Raises DatasetError if there is
        none, it is unfinished, or a shard is missing or has another size."""
        path = Path(path)
        contents = manifest.read(path)
        for name, expected in contents["shards"].items():
            size = atomic_store.size_of(path / name)
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
        return [i for i, r in enumerate(self.recordings) if r["split"] == split]

    def verify(self) -> list[str]:
        """Check the whole contents against their SHA-256; returns what is wrong, a sentence for each shard."""
        problems = []
        for name, expected in self._shards.items():
            problem = atomic_store.verify(atomic_store.Marked(self.path / name, expected))
            if problem:
                problems.append(f"'{self.path / name}': {problem}. Prepare the dataset again to mend it.")
        return problems

    # Reading -----------------------------------------------------------------------------------------------------

    def audio(self, index: int, start_sample: int = 0, n_samples: int | None = None) -> np.ndarray:
        """Audio of a recording, float32 ``[n_samples]``, full scale 1; to its end by default. Raises IndexError if the
        stretch is not inside the recording."""
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
        """Features of a recording or of a stretch of it; raises IndexError if that is not inside the recording."""
        entry = self._entries[index]
        stop = entry["n_frames"] if n_frames is None else start_frame + n_frames
        if not 0 <= start_frame <= stop <= entry["n_frames"]:
            raise IndexError(f"frames {start_frame} to {stop} of the {entry['n_frames']} of '{entry['name']}'")
        return manifest.read_features(self._readers, entry, self.settings, start_frame, stop)

    def random_chunk(self, seed: int, seconds: float = 5.0) -> tuple[int, int, int]:
        """A place to look at: index, start_frame, n_frames; uniform over the time of all recordings."""
        n_frames = max(1, round(seconds * self.settings.sample_rate_hz / self.hop_samples))
        index, start = self._draw(np.random.default_rng([seed, 1]), range(len(self.recordings)), n_frames)
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
        """Windows at random places, uniform over the time of a split: the same for the same (seed, step) and contents.

        Args:
            seed: Of the training.
            step: From 0; every step draws anew.
            batch_size: Windows.
            n_frames: Length of each.
            split: ``train`` or ``validation``.
            device: Where the tensors go.

        Returns:
            ``audio`` ``[batch, n_frames * hop]``; ``f0_hz`` (unvoiced gaps filled from their neighbours in the whole
            recording, 0 where it has no pitch at all), ``confidence``, ``loudness_db`` ``[batch, n_frames]`` float32;
            ``voiced`` bool; ``log_mel`` ``[batch, n_frames, mels]`` and ``content`` ``[batch, n_frames, dims]`` if the
            settings have them; ``singer``, ``label``
            ``[batch]`` int64, positions in ``singers`` and ``labels`` (-1 without label). A recording that is too short
            is followed by silence: loudness -80 dB, unvoiced.

        Raises:
            DatasetError: if the split is empty.
        """
        indices = self.indices(split)
        if not indices:
            raise DatasetError(f"The dataset '{self.path}' has no recordings for {split}. Prepare it with more.")
        rng = np.random.default_rng([seed, step, 0])
        return self._collect([self._draw(rng, indices, n_frames) for _ in range(batch_size)], n_frames, device)

    def validation_batches(
        self, batch_size: int, n_frames: int, device: str | torch.device = "cpu"
    ) -> "ValidationBatches":
        """All of the validation split in windows side by side, as a fixed sequence of batches read when asked for.

        The last window of a recording ends where the recording ends, overlapping the one before it; only a recording
        shorter than a window is followed by silence. So the held-out loss is of singing, not of padding.
        """
        return ValidationBatches(self, batch_size, n_frames, device)

    def window(self, index: int, start_frame: int, n_frames: int) -> dict[str, torch.Tensor]:
        """One stretch of a recording as a batch of one, see :meth:`batch`."""
        return self._collect([(index, start_frame)], n_frames, "cpu")

    def _draw(self, rng: np.random.Generator, indices: Sequence[int], n_frames: int) -> tuple[int, int]:
        lengths = np.array([self.recordings[i]["n_frames"] for i in indices])
        ends = np.cumsum(lengths)
        position = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        return indices[position], int(rng.integers(max(0, int(lengths[position]) - n_frames) + 1))

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
        rows = [self.recordings[index] for index, _ in windows]
        out["singer"] = np.array([self.singers.index(r["singer"]) for r in rows], np.int64)
        out["label"] = np.array([-1 if r["label"] is None else self.labels.index(r["label"]) for r in rows], np.int64)
        return {name: torch.from_numpy(value).to(device) for name, value in out.items()}

    def _filled_f0(self, index: int) -> np.ndarray:
        if index not in self._filled:
            whole = manifest.read_features(self._readers, self._entries[index], self.settings, large=False)
            self._filled[index] = np.asarray(fill_unvoiced(whole.f0_hz, whole.voiced), np.float32)
        return self._filled[index]


class ValidationBatches(Sequence):
    """The validation split in windows; each batch is read when it is asked for."""

    def __init__(self, dataset: Dataset, batch_size: int, n_frames: int, device="cpu"):
        self._dataset, self._batch_size, self._n_frames, self._device = dataset, batch_size, n_frames, device
        self._windows = [
            (index, max(0, min(start, dataset.recordings[index]["n_frames"] - n_frames)))
            for index in dataset.indices("validation")
            for start in range(0, dataset.recordings[index]["n_frames"], n_frames)
        ]

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, position):
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(f"batch {position} of {len(self)}")
        start = position % len(self) * self._batch_size
        windows = self._windows[start : start + self._batch_size]
        return self._dataset._collect(windows, self._n_frames, self._device)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[i] for i in range(len(self)))


def describe(dataset: Dataset) -> str:
    """What a dataset is, in a few lines for people."""
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
