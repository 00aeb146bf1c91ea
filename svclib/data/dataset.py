"""Datasets: audio and features of recordings, extracted once, with random access.

:func:`prepare` makes or updates a dataset, :meth:`Dataset.open` reads one. A batch is a pure function of the dataset's
contents, the seed and the step, so training can resume at any step without the state of a loader.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svclib.audio import units
from svclib.data import manifest, preprocess, shards, statistics
from svclib.data.recordings import Recording
from svclib.features import extract
from svclib.features.extract import ConditionInputs
from svclib.features.f0 import fill_unvoiced
from svclib.utils import atomic_store, budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import DatasetError, StorageError

SILENT_DB = -80.0
PREFETCHED = 2  # batches
N_VARIANTS = 4
MAX_CODE_BYTES = 10**9  # of codes in memory; beyond it recordings get fewer variants


def prepare(
    sources: Sequence[Recording],
    out: str | Path,
    settings: extract.FeatureSettings,
    validation: str | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    executor: str | None = None,
) -> "Dataset":
    """Make the dataset of these recordings (:func:`find_recordings`) in the folder ``out``, or update the one there.

    Incremental: only new or changed files are processed, everything where the settings changed; an interrupted or
    cancelled run continues. Only ``shard-*`` and ``manifest.json`` in the folder are touched. DatasetError or
    StorageError if nothing can be used, ``out`` or ``validation`` do not fit, or the disk or the cluster fails; what
    was committed stays.

    ``validation`` is a pattern of held-out file names, e.g. ``*_[0-4].wav``; None holds out about 7.5 % of the
    recordings by their contents, at least one of two (and the end of a single one). ``executor`` is
    ``dask://HOST:PORT`` of a dask.distributed cluster, None for threads of this process: the same bytes.
    """
    settings = manifest.pin_settings(Path(out), settings)
    return Dataset.open(out, preprocess.run(sources, out, settings, validation, progress, cancelled, executor))


def local_copy(data: Any, log_message: Callable[[str], None]) -> Any:
    """A copy on the local disk of a dataset on Drive; any other, or one that cannot be copied, is returned as it is."""
    if not isinstance(data, Dataset) or not filesystem.on_drive(data.path):
        return data
    here = filesystem.cache_folder() / "datasets" / filesystem.safe_name(data.fingerprint[:16])
    try:
        filesystem.make_own_folder(here)
        missing = {n: e["bytes"] for n, e in data._shards.items() if filesystem.size_of(here / n) != e["bytes"]}
        n_bytes = sum(missing.values()) + budget.SPARE_BYTES
        budget.require("copy of a dataset", data.path.name, Cost(disk_bytes=n_bytes), here)
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

    ``recordings`` are dicts with ``name``, ``singer``, ``label``, ``split`` ("train" or "validation"), ``n_samples``,
    ``n_frames``, ``sha256`` of the source file, ``notes``; files left out are in ``skipped`` (``name``, ``reason``) and
    ``duplicates`` (``name``, ``same_as``). Batches hold indices into ``singers`` and ``labels``, which are sorted.
    ``statistics`` (``statistics.compute``) are of the train split; equal ``fingerprint`` gives equal batches.
    """

    thread_safe = True

    def __init__(self, path: Path, contents: dict, messages: Sequence[str] = ()):
        self.path = Path(path)
        self.settings = extract.FeatureSettings.from_json(contents["settings"])
        self.hop_samples = self.settings.hop_samples
        self._entries = contents["recordings"]
        self.recordings = [{k: v for k, v in e.items() if k != "segments"} for e in self._entries]
        self.singers, self.labels = contents["singers"], contents["labels"]
        self.statistics, self.fingerprint = contents["statistics"], contents["fingerprint"]
        self.skipped, self.duplicates = contents["skipped"], contents["duplicates"]
        self.messages, self.versions, self._shards = list(messages), contents["versions"], contents["shards"]
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
                hint = "Prepare the dataset again: only what is lost is measured again."
                raise DatasetError(f"'{path / name}' {state}.", path=path / name, hint=hint)
        return cls(path, contents, messages)

    def duration_s(self, split: str | None = None) -> float:
        """Seconds of audio, of one split or of all."""
        n = sum(r["n_samples"] for r in self.recordings if split in (None, r["split"]))
        return n / self.settings.sample_rate_hz

    def indices(self, split: str) -> list[int]:
        """Positions of the recordings of a split."""
        return self._splits[split].indices.tolist()

    def verify(self) -> list[str]:
        """Check the contents against their SHA-256; returns a sentence for each damaged shard."""
        marked = [atomic_store.Marked(self.path / name, expected) for name, expected in self._shards.items()]
        found = [(m.path, problem) for m in marked if (problem := atomic_store.verify(m))]
        return [f"'{path}': {problem}. Prepare the dataset again to repair it." for path, problem in found]

    def audio(self, index: int, start_sample: int = 0, n_samples: int | None = None) -> np.ndarray:
        """Audio of a recording from a sample on, float32 ``[n_samples]``, full scale 1; IndexError outside of it."""
        entry, stop = self._range(index, "samples", start_sample, n_samples)
        out, position = np.zeros(stop - start_sample, np.float32), 0
        for shard, s0, n, _, _ in entry["segments"]:
            a, b = max(start_sample, position), min(stop, position + n)
            if a < b:
                piece = self._readers[shard].read("audio", s0 + a - position, s0 + b - position)
                np.divide(piece, shards.FULL_SCALE, out=out[a - start_sample : b - start_sample], casting="unsafe")
            position += n
        return out

    def features(self, index: int, start_frame: int = 0, n_frames: int | None = None) -> extract.Features:
        """Features of a recording or a range of its frames; IndexError outside of it."""
        entry, stop = self._range(index, "frames", start_frame, n_frames)
        return manifest.read_features(self._readers, entry, self.settings, start_frame, stop)

    def _range(self, index: int, unit: str, start: int, n: int | None) -> tuple[dict, int]:
        entry = self._entries[index]
        total = entry[f"n_{unit}"]
        stop = total if n is None else start + n
        if not 0 <= start <= stop <= total:
            raise IndexError(f"{unit} {start} to {stop} of the {total} of '{entry['name']}'")
        return entry, stop

    def random_chunk(self, seed: int, seconds: float = 5.0) -> tuple[int, int, int]:
        """A random excerpt: index, start_frame, n_frames; uniform over the time of all recordings."""
        n_frames = max(1, round(seconds * self.settings.sample_rate_hz / self.hop_samples))
        everything = _Split(np.arange(len(self.recordings)), self._n_frames)
        index, start = everything.draw(np.random.default_rng([seed, 1]), n_frames)
        return index, start, min(n_frames, self.recordings[index]["n_frames"] - start)

    def batch(self, seed: int, step: int, batch_size: int, n_frames: int, split="train", device="cpu") -> dict:
        """Random segments, uniform over the time of a split: a function of (seed, step) and the contents.

        They are ``audio`` ``[batch, n_frames * hop]``; ``f0_hz`` (unvoiced gaps filled from their neighbours in the
        whole recording, 0 where it has no pitch at all), ``confidence``, ``loudness_db`` ``[batch, n_frames]`` float32;
        ``voiced`` bool; ``log_mel`` ``[batch, n_frames, mels]`` and ``content`` ``[batch, n_frames, dims]`` if the
        settings have them; ``singer``, ``label`` ``[batch]`` int64 (-1 without label); ``recording``, ``start_frame``
        ``[batch]`` int64, where the segments lie. A recording that is too short is followed by silence: loudness
        -80 dB, unvoiced. DatasetError if the split is empty.
        """
        chosen = self._splits[split]
        if not len(chosen.indices):
            raise DatasetError(f"The dataset '{self.path}' has no recordings for {split}. Prepare it with more.")
        rng = np.random.default_rng([seed, step, 0])
        return self._collect([chosen.draw(rng, n_frames) for _ in range(batch_size)], n_frames, device)

    def validation_batches(self, batch_size: int, n_frames: int, device="cpu") -> "ValidationBatches":
        """The validation split in adjacent segments, as a fixed sequence of batches that are read on access.

        The last segment of a recording ends with it and overlaps the one before; only shorter recordings are padded.
        """
        return ValidationBatches(self, batch_size, n_frames, device)

    def window(self, index: int, start_frame: int, n_frames: int) -> dict[str, Tensor]:
        """One segment as a batch of one, see :meth:`batch`."""
        return self._collect([(index, start_frame)], n_frames, "cpu")

    def _collect(self, windows: Sequence[tuple[int, int]], n_frames: int, device) -> dict[str, Tensor]:
        hop, mel, shape = self.hop_samples, self.settings.mel, (len(windows), n_frames)
        out = {"audio": np.zeros((len(windows), n_frames * hop), np.float32), "voiced": np.zeros(shape, bool)}
        silent = {"f0_hz": 0.0, "confidence": 0.0, "loudness_db": SILENT_DB}
        out |= {name: np.full(shape, value, np.float32) for name, value in silent.items()}
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


def describe(dataset: Dataset) -> str:
    """Summary of a dataset in a few lines of text."""
    s, pitch = dataset.settings, dataset.statistics["f0_midi"]
    total, held = (units.duration_text(dataset.duration_s(split)) for split in (None, "validation"))
    held = held if len(dataset.indices("validation")) else "nothing"
    n_files = len({r["sha256"] for r in dataset.recordings})  # a lone one is two entries
    lines = [
        f"{n_files} recording{'s' * (n_files != 1)}, {total} ({held} held out for validation)",
        f"singer{'s' * (len(dataset.singers) != 1)}: {', '.join(dataset.singers)}",
        f"{s.sample_rate_hz} Hz, a frame every {1000 * s.hop_samples / s.sample_rate_hz:.3g} ms, "
        f"F0 by {s.f0_method}" + (f", {s.mel.n_mels} mel bands" if s.mel else ""),
    ]
    if dataset.labels:
        lines.append(f"labels: {', '.join(dataset.labels)}")
    if pitch["mean_note"] is not None:
        low, high = statistics.note_range_midi(pitch)
        notes = units.range_text(units.midi_to_hz(low), units.midi_to_hz(high))
        lines.append(f"notes from {notes}, {units.note_name(pitch['mean_note'])} on average")
    if dataset.skipped or dataset.duplicates:
        left = ((len(dataset.skipped), "file", "skipped"), (len(dataset.duplicates), "duplicate", "left out"))
        lines.append(", ".join(f"{n} {what}{'' if n == 1 else 's'} {how}" for n, what, how in left))
    return "\n".join(lines)


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


class ValidationBatches(Sequence):
    """The validation split in segments; each batch is read on access."""

    def __init__(self, dataset: Dataset, batch_size: int, n_frames: int, device="cpu"):
        self._read = lambda windows: dataset._collect(windows, n_frames, device)
        lengths = {index: dataset.recordings[index]["n_frames"] for index in dataset.indices("validation")}
        windows = [
            (index, max(0, min(start, length - n_frames)))
            for index, length in lengths.items()
            for start in range(0, length, n_frames)
        ]
        self._batches = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, position):
        return self._read(self._batches[position])


class BatchLoader:
    """Loads the batches of a training; those of the next steps are prefetched by a thread if it is ``thread_safe``.

    Copies to a GPU are asynchronous, from pinned memory.
    """

    def __init__(self, dataset: Any, seed: int, batch_size: int, n_frames: int, device: torch.device):
        self._dataset, self._arguments, self._device = dataset, (seed, batch_size, n_frames), device
        self._pool = ThreadPoolExecutor(1, "svclib-batches") if getattr(dataset, "thread_safe", False) else None
        self._waiting: dict[int, Future] = {}

    def batch(self, step: int, last: int) -> dict[str, Tensor]:
        """The batch of a step; up to ``last``, the next ones are prefetched."""
        if self._pool is None:
            batch = self._read(step)
        else:
            for ahead in range(step, min(step + PREFETCHED, last) + 1):
                if ahead not in self._waiting:
                    self._waiting[ahead] = self._pool.submit(self._read, ahead)
            batch = self._waiting.pop(step).result()
        return {k: v.to(self._device, non_blocking=True) for k, v in batch.items()}

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> dict[str, Tensor]:
        seed, batch_size, n_frames = self._arguments
        batch = self._dataset.batch(seed, step, batch_size, n_frames)
        return {k: v.pin_memory() for k, v in batch.items()} if self._device.type == "cuda" else batch


class ContentCache:
    """Fills ``batch["content"]`` for encoders that have ``variants``: the recording's own code in validation, in
    training also codes of augmentations of it (drawn by ``seed``), while the target stays the recording.
    """

    def __init__(self, dataset: Any, encoder: Any, seed: int):
        self.dataset, self.encoder, self.seed = dataset, encoder, seed
        self.codes = dict[int, Tensor]()
        frame_bytes = 2 * encoder.dims * sum(r["n_frames"] for r in dataset.recordings)
        self.n_variants = max(1, min(N_VARIANTS, MAX_CODE_BYTES // max(1, frame_bytes)))

    def fill(self, batch: dict[str, Tensor], step: int | None = None) -> dict[str, Tensor]:
        """The batch with its content; ``step`` None takes the plain codes."""
        n_frames = batch["f0_hz"].shape[1]
        rows = list(zip(batch["recording"].tolist(), batch["start_frame"].tolist(), strict=True))
        which = np.zeros(len(rows), int)
        if step is not None:
            which = np.random.default_rng([self.seed, step, 2]).integers(self.n_variants, size=len(rows))
        content = torch.zeros(len(rows), n_frames, self.encoder.dims)
        for row, ((recording, start), variant) in enumerate(zip(rows, which, strict=True)):
            code = self._codes(recording)[variant, start : start + n_frames]
            content[row, : len(code)] = code
        return {**batch, "content": content.to(batch["f0_hz"].device)}

    def _codes(self, recording: int) -> Tensor:
        """Every variant of a recording, float16 ``[variants, frames, dims]``."""
        if recording not in self.codes:
            found, device = self.dataset.features(recording), self.encoder.basis.device
            arrays = (found.log_mel, found.f0_hz, found.voiced, found.loudness_db)
            inputs = ConditionInputs.from_arrays(*arrays, device=device)
            seed = int(np.random.SeedSequence([self.seed, recording]).generate_state(1)[0])
            self.codes[recording] = self.encoder.variants(inputs, self.n_variants, seed).half().cpu()
        return self.codes[recording]
