"""From recordings to the shards and the manifest of a dataset. What is finished is never done twice.

Recordings are taken in sorted order, decoded once, kept as 16-bit audio, cut into segments of a few minutes (so a long
file needs no more memory than a short one) and measured with some context on both sides of each cut. Shards are
committed as they fill; the manifest is committed last and alone decides what the dataset is. Because a recording is
known by the SHA-256 of its file and a segment by its place in it, a run after an interruption finds the committed
segments again and goes on, with the same bytes as if it had never stopped, and a changed file is measured alone.

What is thrown away: after the manifest is committed, shards it does not point to are deleted. Shards of which less than
half is still in use are copied together first, and so are small ones when more than 16 have gathered.
"""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.data import executors, manifest, segments, shards
from svclib.data.recordings import Recording
from svclib.data.segments import Sound
from svclib.utils import atomic_store
from svclib.utils.errors import Cancelled, DatasetError

MIN_DURATION_S = 0.1
SILENT_PEAK = 1e-4  # -80 dB
SMALL_SHARDS = 16
ProgressCallback = Callable[[float, str], None] | None


class Job:
    """One preparation: what is there already, what is left to do, and how far it is."""

    def __init__(self, sources, out: Path, settings, progress: ProgressCallback, cancelled):
        self.out, self.settings, self.key = out, settings, manifest.settings_key(settings)
        self.progress, self.cancelled = progress, cancelled
        self.skipped = [{"name": r.name, "reason": r.problem} for r in sources if r.problem]
        self.duplicates, self.messages, self.failed = [], [], set()
        self.old = manifest.read(self.out) if atomic_store.exists(self.out / manifest.NAME) else None
        self.done_s = self.total_s = 0.0
        self.started = None  # when the first recording is decoded: then a rate can be told

    def tell(self, fraction: float, text: str) -> None:
        """Report progress, and stop here if that was asked for."""
        if self.cancelled and self.cancelled():
            raise Cancelled("Preparation was stopped. What is finished is kept: start it again and it goes on.")
        if self.progress:
            self.progress(min(1.0, fraction), text)

    # What there is to do ------------------------------------------------------------------------------------------

    def hash_files(self, sources: list[Recording]) -> list[tuple[Recording, str]]:
        """Every usable file with its SHA-256, the same contents once."""
        hashed, seen = [], {}
        usable = [r for r in sources if not r.problem]
        for n, recording in enumerate(usable):
            self.tell(0.03 * n / len(usable), f"reading recording {n + 1} of {len(usable)}")
            try:
                digest = _twice(lambda path=recording.path: atomic_store.sha256_file(path))
            except OSError as error:
                self.skipped.append({"name": recording.name, "reason": f"it cannot be read: {error}"})
                continue
            known = {d["sha256"]: d["same_as_sha256"] for d in (self.old or {}).get("duplicates", [])}
            first = seen.get(digest) or seen.get(known.get(digest, ""))
            if first:
                self._duplicate(recording, digest, *first)
            else:
                seen[digest] = (recording.name, digest)
                hashed.append((recording, digest))
        return hashed

    def _duplicate(self, recording: Recording, digest: str, name: str, of: str) -> None:
        self.duplicates.append({"name": recording.name, "sha256": digest, "same_as": name, "same_as_sha256": of})

    def find_stored(self, wanted: set[str]) -> None:
        """Index the committed segments; pick out shards that are better copied together."""
        whole, _ = shards.committed(self.out, self.key)
        live = {c.marked.path.name: [i for i in c.items if i.sha256 in wanted] for c in whole}
        self.stored, self.items = {}, {}
        for shard in sorted(whole, key=lambda c: (-len(live[c.marked.path.name]), c.marked.path.name)):
            for item in live[shard.marked.path.name]:
                if item.key not in self.stored:
                    self.stored[item.key] = shard.segments[item.key]
                    self.items[item.key] = item
        used = dict.fromkeys(live, 0)
        for key, segment in self.stored.items():
            used[segment.shard] += self.items[key].n_samples
        total = {c.marked.path.name: sum(i.n_samples for i in c.items) for c in whole}
        small = [c.marked.path.name for c in whole if c.marked.info["bytes"] < shards.CAP_BYTES / 4]
        self.stale = {name for name in used if 0 < used[name] < total[name] / 2}
        self.stale |= set(small) if len(small) > SMALL_SHARDS else set()

    def n_segments(self, digest: str) -> int:
        """Segments of a recording, if all of them are stored, else 0."""
        first = self.items.get((digest, 0))
        return first.count if first and all((digest, i) in self.stored for i in range(first.count)) else 0

    # Doing it -----------------------------------------------------------------------------------------------------

    def segments_to_write(self, hashed, pool) -> Iterator[tuple[Recording, shards.Item, Callable[[], dict], float]]:
        """What belongs into new shards, in order: its item, a call that gives its arrays, its length in seconds."""
        sounds = {(i.n_total, i.audio_sha256): i.sha256 for i in self.items.values() if i.audio_sha256}
        names = {digest: r.name for r, digest in hashed}
        for recording, digest in hashed:
            count = self.n_segments(digest)
            if count:
                for i in range(count):
                    segment = self.stored[digest, i]
                    if segment.shard in self.stale:
                        yield recording, self.items[digest, i], lambda s=segment: self.copy(s), 0.0
                continue
            estimate = self.estimate_s(recording)
            try:
                sound = self.open(recording)
                seconds = sound.n_samples / self.settings.sample_rate_hz
                self.total_s += seconds - estimate
                self.started = self.started or time.monotonic()
                if any(n == sound.n_samples for n, _ in sounds):  # then it is worth decoding it once more
                    same = sounds.get((sound.n_samples, sound.hash()), digest)
                    if same != digest and same in names:
                        self._duplicate(recording, digest, names[same], same)
                        self.done_s += seconds
                        continue
                yield from self.measured_segments(recording, digest, sound, pool)
                sounds[sound.n_samples, sound.digest] = digest
            except ValueError as error:
                if isinstance(error, (OSError, Cancelled)):  # no fault of the recording
                    raise
                self.failed.add(digest)
                self.skip(recording, error, estimate)

    def measured_segments(self, recording: Recording, digest: str, sound: Sound, pool):
        """The segments of one recording that are not stored yet, decoded as they are asked for."""
        rate, hop = self.settings.sample_rate_hz, self.settings.hop_samples
        pieces = segments.cuts(sound.n_samples, self.settings)
        for i, cut in enumerate(pieces):
            samples, n = sound.take(cut[2], cut[3]), cut[1] - cut[0]
            item = shards.Item(digest, i, len(pieces), n, n // hop)
            if i == 0:
                item = dataclasses.replace(item, notes=tuple(sound.notes))
            if i == len(pieces) - 1:
                item = dataclasses.replace(item, audio_sha256=sound.digest, n_total=sound.n_samples)
            if (digest, i) in self.stored:
                self.done_s += n / rate
                continue
            yield recording, item, pool.submit(samples, cut, self.settings), n / rate

    def estimate_s(self, recording: Recording) -> float:
        """Length of a recording as its header claims it; 0 where it claims none."""
        try:
            return float(min(audio.probe(recording.path).duration_s, 1e5))
        except (ValueError, OSError):
            return 0.0

    def open(self, recording: Recording) -> Sound:
        """A recording at the dataset's rate, read as it is asked for; ValueError if there is nothing to use."""
        share = min(0.97, 0.03 + 0.94 * self.done_s / self.total_s) if self.total_s > 0 else 0.03
        found = audio.survey(recording.path, lambda f, text: self.tell(share, f"{text}, {100 * f:.0f} %"))
        info = found.info
        lost = info.sample_rate_hz < self.settings.sample_rate_hz  # a low rate is told where it leaves a gap
        notes = [w for w in info.warnings if lost or "holds nothing above" not in w]
        if found.peak > 1.0:
            notes.append(f"{recording.name} peaks {20 * math.log10(found.peak):.1f} dB over full scale; turned down.")
        n = units.resampled_length(info.n_samples, info.sample_rate_hz, self.settings.sample_rate_hz)
        seconds = n / self.settings.sample_rate_hz
        if seconds < MIN_DURATION_S or n < self.settings.hop_samples:
            raise DatasetError(f"it is too short ({1000 * seconds:.0f} ms; at least {1000 * MIN_DURATION_S:.0f} ms)")
        if found.peak < SILENT_PEAK:
            raise DatasetError("it is silent")
        scale = shards.FULL_SCALE / max(1.0, found.peak)

        def blocks() -> Iterator[np.ndarray]:
            return (found.mono(block) * np.float32(scale) for block in audio.blocks(recording.path))

        return Sound(n, info.sample_rate_hz, self.settings.sample_rate_hz, blocks, notes)

    def copy(self, segment: shards.Segment) -> dict:
        """The arrays of a segment that an earlier run stored."""
        reader = shards.Reader(self.out / segment.shard)
        try:
            s, f = segment.sample_start, segment.frame_start
            ends = {"audio": (s, s + segment.n_samples)}
            return {n: reader.read(n, *ends.get(n, (f, f + segment.n_frames))) for n in reader.names}
        finally:
            reader.close()

    def skip(self, recording: Recording, error: Exception, seconds: float) -> None:
        """Leave a recording out, with the reason."""
        self.total_s -= seconds
        self.skipped.append({"name": recording.name, "reason": str(error)})

    def write(self, hashed, pool) -> dict[tuple[str, int], shards.Segment]:
        """Extract what is missing; returns where every segment of the dataset lies."""
        todo = [r for r, digest in hashed if not self.n_segments(digest)]
        self.total_s = sum(self.estimate_s(r) for r in todo)
        writer = shards.Writer(self.out, self.key, shards.CAP_BYTES)
        waiting, items = deque(), dict(self.items)

        def finish() -> None:
            recording, item, arrays, seconds = waiting.popleft()
            try:
                writer.add(item, arrays())
                items[item.key] = item
            except ValueError as error:
                if isinstance(error, (OSError, Cancelled)):  # not the recording's fault
                    raise
                if item.sha256 not in self.failed:
                    self.skip(recording, error, 0.0)
                self.failed.add(item.sha256)
            self.done_s += seconds
            self.tell_remaining(recording)

        for entry in self.segments_to_write(hashed, pool):
            waiting.append(entry)
            while len(waiting) > pool.ahead:
                finish()
        while waiting:
            finish()
        writer.flush()
        self.items = items
        return {k: s for k, s in {**self.stored, **writer.placed}.items() if k[0] not in self.failed}

    def tell_remaining(self, recording: Recording) -> None:
        """Report how much is measured and how long the rest will take."""
        spent = time.monotonic() - (self.started or time.monotonic())
        left = ""
        if self.done_s > 0 and spent > 1:
            left = f", {units.duration_text(spent / self.done_s * max(0.0, self.total_s - self.done_s))} left"
        of = f"{units.duration_text(self.done_s)} of {units.duration_text(self.total_s)} measured{left}"
        self.tell(self.share, f"{recording.name}: {of}")

    @property
    def share(self) -> float:
        """The part of all work that is done."""
        return 0.03 + 0.94 * min(1.0, self.done_s / self.total_s) if self.total_s > 0 else 0.97

    def pool(self, executor: str | None = None):
        """What measures the segments; see ``cluster.opened``."""
        return executors.opened(executor, lambda text: self.tell(self.share if self.started else 0.03, text))


def run(
    sources,
    out,
    settings,
    validation=None,
    progress: ProgressCallback = None,
    cancelled=None,
    executor: str | None = None,
) -> list[str]:
    """Make or bring up to date the dataset in ``out``; returns what is to be told. See ``dataset.prepare``."""
    sources = sorted(sources, key=lambda r: (r.singer, r.name, str(r.path)))
    job = Job(sources, Path(out), settings, progress, cancelled)
    if any(Path(r.path).resolve().parent == job.out.resolve() for r in sources):
        raise DatasetError(f"'{job.out}' is the folder of the recordings; choose another one for the dataset.")

    def split(entries: list[dict]) -> list[dict]:
        return manifest.split_entries(entries, validation, settings, job.messages)

    with job.pool(executor) as pool:
        return carry_out(job, job.hash_files(sources), split, pool)


def carry_out(job: Job, hashed: list, split: Callable[[list[dict]], list[dict]], pool: Any) -> list[str]:
    """Measure what is missing, commit shards and manifest.

    Args:
        job: What is there and what is left to do.
        hashed: ``(recording, key)`` of everything that the dataset is to hold.
        split: Entries of the manifest -> the same with their ``split``.
        pool: From ``job.pool()``.

    Returns:
        What is to be told, as sentences: what changed, what was skipped, used once, or noticed while reading.
    """
    settings = job.settings
    _require_some(hashed, job)
    atomic_store.remove_parts(job.out)
    job.find_stored({digest for _, digest in hashed})
    placed = job.write(hashed, pool)
    entries = []
    for recording, digest in hashed:
        first = job.items.get((digest, 0))
        if first and all((digest, i) in placed for i in range(first.count)):  # else skipped or a duplicate
            where = [placed[digest, i] for i in range(first.count)]
            entries.append(manifest.entry_of(recording, digest, where, list(first.notes)))
    _require_some(entries, job)
    entries = split(entries)
    new = manifest.build(job.out, settings, entries, job.skipped, job.duplicates, job.old)
    if not new["statistics"]:
        job.tell(0.97, "statistics")
        new["statistics"] = manifest.compute_statistics(job.out, new, settings)
    if job.old is None or manifest.without_versions(job.old) != manifest.without_versions(new):
        manifest.write(job.out, new)
    job.messages += _changes(job.old, new)
    for marked in atomic_store.find_marked(job.out, shards.PATTERN):
        if marked.path.name not in new["shards"]:
            atomic_store.remove_marked(marked)
    job.tell(1.0, f"{len(entries)} recordings are ready")
    return job.messages


def _twice(call: Callable[[], str]) -> str:
    """A mounted Drive sometimes fails to read a file once."""
    try:
        return call()
    except OSError:
        return call()


def _require_some(found: list, job: Job) -> None:
    if found:
        return
    reasons = "; ".join(f"'{s['name']}': {s['reason']}" for s in job.skipped[:3])
    raise DatasetError(
        f"There is no usable recording{' (' + reasons + ')' if reasons else ''}. "
        f"Give a folder with recordings of one voice: {', '.join(sorted(s.lstrip('.') for s in audio.SUFFIXES))}."
    )


def _changes(old: dict | None, new: dict) -> list[str]:
    """What is to be told: what differs from before, what was skipped, used once, or noticed while reading."""
    messages = []
    now = {e["sha256"] for e in new["recordings"]}
    if old is not None:
        before = {e["sha256"] for e in old["recordings"]}
        if old["settings_key"] != new["settings_key"]:
            changed = [k for k, v in new["settings"].items() if old["settings"].get(k) != v]
            what = ", ".join(changed) or "the way of measuring"
            messages.append(f"{what} changed, so every recording was measured again.")
        fresh, gone = len(now - before), len(before - now)
        if fresh or gone:
            messages.append(f"{fresh} recordings are new or changed, {gone} gone, {len(now) - fresh} as before.")
        elif old["settings_key"] == new["settings_key"]:
            messages.append("Nothing changed.")
    others = [s["name"] for s in new["skipped"] if Path(s["name"]).suffix.lower() not in audio.SUFFIXES]
    if others:
        more = " and so on" if len(others) > 5 else ""
        messages.append(f"{len(others)} files are no recordings and were left out: {', '.join(others[:5])}{more}.")
    messages += [f"Skipped {_told(s)}" for s in new["skipped"] if s["name"] not in others]
    messages += [f"'{d['name']}' is the same audio as '{d['same_as']}': used once." for d in new["duplicates"]]
    alike = {}
    for entry in new["recordings"]:
        for note in entry["notes"] if not entry["name"].endswith(" (end)") else ():
            alike.setdefault(note.removeprefix(entry["name"]), []).append(note)
    for notes in alike.values():
        messages += notes if len(notes) <= 5 else [f"{notes[0]} The same goes for {len(notes) - 1} more recordings."]
    return messages


def _told(skipped: dict) -> str:
    """Name and reason, where the reason may begin with the name already."""
    name, reason = skipped["name"], skipped["reason"]
    return reason if reason.startswith(Path(name).name) else f"'{name}': {reason}."
