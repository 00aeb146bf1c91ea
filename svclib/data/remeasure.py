"""A dataset made from the audio that another one stores: other features of the same recordings, measured anew."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from svclib.audio import units
from svclib.data import shards
from svclib.data.preprocess import Job, ProgressCallback, carry_out
from svclib.data.recordings import Recording
from svclib.data.segments import Sound
from svclib.utils.errors import DatasetError


class _StoredJob(Job):
    """A preparation whose recordings are those of another dataset; a path is a position in it."""

    def __init__(self, data, out: Path, settings, progress: ProgressCallback, cancelled):
        super().__init__([], out, settings, progress, cancelled)
        self.data = data

    def estimate_s(self, recording: Recording) -> float:
        return self.data.recordings[int(recording.path.name)]["n_samples"] / self.data.settings.sample_rate_hz

    def open(self, recording: Recording) -> Sound:
        index, rate = int(recording.path.name), self.data.settings.sample_rate_hz
        n, step = self.data.recordings[index]["n_samples"], 1 << 20

        def blocks() -> Iterator[np.ndarray]:
            starts = range(0, n, step)
            return (self.data.audio(index, a, min(step, n - a)) * np.float32(shards.FULL_SCALE) for a in starts)

        length = units.resampled_length(n, rate, self.settings.sample_rate_hz)
        return Sound(length, rate, self.settings.sample_rate_hz, blocks, list(self.data.recordings[index]["notes"]))


def run(data, out, settings, progress: ProgressCallback = None, cancelled=None) -> list[str]:
    """Make a dataset from the audio stored in another; see ``dataset.remeasure``."""
    rate = data.settings.sample_rate_hz
    if settings.sample_rate_hz > rate:
        raise DatasetError(
            f"'{data.path}' holds audio at {rate} Hz, and {settings.sample_rate_hz} Hz are needed: what is above "
            f"{rate / 2000:g} kHz is not in it. Prepare the original recordings with the other settings."
        )
    if Path(out).resolve() == data.path.resolve():
        raise DatasetError(f"'{out}' is the dataset itself; choose another folder.")
    job = _StoredJob(data, Path(out), settings, progress, cancelled)
    hashed, splits, seen = [], {}, set()
    for index, r in enumerate(data.recordings):
        key = r["sha256"] if r["sha256"] not in seen else f"{r['sha256']}-{index}"  # the end of a lone recording
        seen.add(key)
        splits[key] = r["split"]
        hashed.append((Recording(Path(str(index)), r["singer"], r["label"], r["name"]), key))

    def split(entries: list[dict]) -> list[dict]:
        return [{**e, "split": splits[e["sha256"]]} for e in entries]

    with job.pool() as pool:
        return carry_out(job, hashed, split, pool)
