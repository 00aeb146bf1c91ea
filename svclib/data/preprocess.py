"""Build the shards and the manifest of a dataset from recordings, incrementally.

Recordings are decoded once in sorted order, stored as 16-bit audio, and cut into segments of a few minutes (constant
memory), whose features are extracted with context on both sides of each cut. Shards are committed as they fill; the
manifest is committed last and alone defines the dataset. A recording is identified by the SHA-256 of its file, a
segment by its index: a run after an interruption reuses the committed segments and gives the same bytes as an
uninterrupted one, and a changed file is processed alone.

After the manifest is committed, shards it does not refer to are deleted. Shards less than half in use, and small ones
when there are more than 16, are merged first.
"""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.audio.decode import low_rate_warning
from svclib.data import executors, manifest, segments, shards
from svclib.data.recordings import Recording
from svclib.data.segments import ResampledStream
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import Cancelled, DatasetError

MIN_DURATION_S = 0.1
SILENT_PEAK = 1e-4  # -80 dB
SMALL_SHARDS = 16
UNCHANGED = "Nothing changed."  # a message
ProgressCallback = Callable[[float, str], None] | None


class DatasetBuilder:
    """State of one preparation: stored segments, remaining work, progress."""

    def __init__(self, sources, out: Path, settings, progress: ProgressCallback, cancelled):
        self.out, self.settings, self.key = out, settings, manifest.settings_key(settings)
        self.progress, self.cancelled = progress, cancelled
        self.skipped = [{"name": r.name, "reason": r.problem} for r in sources if r.problem]
        self.duplicates, self.messages, self.failed = [], [], set()
        self.old = manifest.read(self.out) if filesystem.exists(self.out / manifest.NAME) else None
        self.done_s = self.total_s = 0.0
        self.started = None  # when the first recording is decoded

    def report(self, fraction: float, text: str) -> None:
        """Report progress; raises Cancelled on request."""
        if self.cancelled and self.cancelled():
            raise Cancelled("Preparation was stopped. What is finished is kept: start it again and it goes on.")
        if self.progress:
            self.progress(min(1.0, fraction), text)

    # Planning -----------------------------------------------------------------------------------------------------

    def hash_files(self, sources: list[Recording]) -> list[tuple[Recording, str]]:
        """Every usable file with its SHA-256, without duplicates."""
        hashed, seen = [], {}
        known = {d["sha256"]: d["same_as_sha256"] for d in (self.old or {}).get("duplicates", [])}
        usable = [r for r in sources if not r.problem]
        for n, recording in enumerate(usable):
            self.report(0.03 * n / len(usable), f"reading recording {n + 1} of {len(usable)}")
            try:
                digest = _twice(lambda path=recording.path: filesystem.sha256_file(path))
            except OSError as error:
                self.skipped.append({"name": recording.name, "reason": f"it cannot be read: {error}"})
                continue
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
        """Index the committed segments, and the shards to merge."""
        whole = shards.committed(self.out, self.key)
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

    # Extraction ---------------------------------------------------------------------------------------------------

    def segments_to_write(self, hashed, pool) -> Iterator[tuple[Recording, shards.Item, Callable[[], dict], float]]:
        """Segments for new shards, in order: item, a function that returns its arrays, length in seconds."""
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
                stream = self.open(recording)
                seconds = stream.n_samples / self.settings.sample_rate_hz
                self.total_s += seconds - estimate
                self.started = self.started or time.monotonic()
                if any(n == stream.n_samples for n, _ in sounds):  # decode twice only if the length has occurred
                    same = sounds.get((stream.n_samples, stream.hash()), digest)
                    if same != digest and same in names:
                        self._duplicate(recording, digest, names[same], same)
                        self.done_s += seconds
                        continue
                yield from self.measured_segments(recording, digest, stream, pool)
                sounds[stream.n_samples, stream.digest] = digest
            except ValueError as error:
                if isinstance(error, (OSError, Cancelled)):
                    raise
                self.failed.add(digest)
                self.skip(recording, error, estimate)

    def measured_segments(self, recording: Recording, digest: str, stream: ResampledStream, pool):
        """The segments of one recording that are not stored yet, decoded one after the other."""
        rate, hop = self.settings.sample_rate_hz, self.settings.hop_samples
        pieces = segments.cuts(stream.n_samples, self.settings)
        for i, cut in enumerate(pieces):
            samples, n = stream.take(cut[2], cut[3]), cut[1] - cut[0]
            item = shards.Item(digest, i, len(pieces), n, n // hop)
            if i == 0:
                item = dataclasses.replace(item, notes=tuple(stream.notes))
            if i == len(pieces) - 1:
                item = dataclasses.replace(item, audio_sha256=stream.digest, n_total=stream.n_samples)
            if (digest, i) in self.stored:
                self.done_s += n / rate
                continue
            yield recording, item, pool.submit(samples, cut, self.settings), n / rate

    def estimate_s(self, recording: Recording) -> float:
        """Length of a recording by its header; 0 if it has none."""
        try:
            return float(min(audio.probe(recording.path).duration_s, 1e5))
        except (ValueError, OSError):
            return 0.0

    def open(self, recording: Recording) -> ResampledStream:
        """A recording at the dataset's rate as a stream; ValueError if it cannot be used."""
        share = min(0.97, 0.03 + 0.94 * self.done_s / self.total_s) if self.total_s > 0 else 0.03
        found = audio.survey(recording.path, lambda f, text: self.report(share, f"{text}, {100 * f:.0f} %"))
        info = found.info
        lost = info.sample_rate_hz < self.settings.sample_rate_hz
        low_rate = low_rate_warning(info.path.name, info.sample_rate_hz)
        notes = [w for w in info.warnings if lost or w != low_rate]
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

        return ResampledStream(n, info.sample_rate_hz, self.settings.sample_rate_hz, blocks, notes)

    def copy(self, segment: shards.Segment) -> dict:
        """The stored arrays of a segment."""
        reader = shards.Reader(self.out / segment.shard)
        try:
            s, f = segment.sample_start, segment.frame_start
            ends = {"audio": (s, s + segment.n_samples)}
            return {n: reader.read(n, *ends.get(n, (f, f + segment.n_frames))) for n in reader.names}
        finally:
            reader.close()

    def skip(self, recording: Recording, error: Exception, seconds: float) -> None:
        """Leave out a recording, with the reason."""
        self.total_s -= seconds
        self.skipped.append({"name": recording.name, "reason": str(error)})

    def write(self, hashed, pool) -> dict[tuple[str, int], shards.Segment]:
        """Extract missing segments; returns the location of every segment of the dataset."""
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
                if isinstance(error, (OSError, Cancelled)):
                    raise
                if item.sha256 not in self.failed:
                    self.skip(recording, error, 0.0)
                self.failed.add(item.sha256)
            self.done_s += seconds
            self.report_remaining(recording)

        for entry in self.segments_to_write(hashed, pool):
            waiting.append(entry)
            while len(waiting) > pool.pending:
                finish()
        while waiting:
            finish()
        writer.flush()
        self.items = items
        return {k: s for k, s in {**self.stored, **writer.placed}.items() if k[0] not in self.failed}

    def report_remaining(self, recording: Recording) -> None:
        """Report the progress and the remaining time."""
        spent = time.monotonic() - (self.started or time.monotonic())
        left = ""
        if self.done_s > 0 and spent > 1:
            left = f", {units.duration_text(spent / self.done_s * max(0.0, self.total_s - self.done_s))} left"
        of = f"{units.duration_text(self.done_s)} of {units.duration_text(self.total_s)} measured{left}"
        self.report(self.share, f"{recording.name}: {of}")

    @property
    def share(self) -> float:
        """Fraction of the work that is done."""
        return 0.03 + 0.94 * min(1.0, self.done_s / self.total_s) if self.total_s > 0 else 0.97

    def pool(self, executor: str | None = None):
        """The executor; see ``executors.opened``."""
        return executors.opened(executor, lambda text: self.report(self.share if self.started else 0.03, text))


def run(
    sources,
    out,
    settings,
    validation=None,
    progress: ProgressCallback = None,
    cancelled=None,
    executor: str | None = None,
) -> list[str]:
    """Build or update the dataset in ``out``; returns messages. See ``dataset.prepare``."""
    sources = sorted(sources, key=lambda r: (r.singer, r.name, str(r.path)))
    builder = DatasetBuilder(sources, Path(out), settings, progress, cancelled)
    if any(Path(r.path).resolve().parent == builder.out.resolve() for r in sources):
        raise DatasetError(f"'{builder.out}' is the folder of the recordings; choose another one for the dataset.")
    with builder.pool(executor) as pool:
        hashed = builder.hash_files(sources)
        _require_some(hashed, builder)
        atomic_store.remove_parts(builder.out)
        builder.find_stored({digest for _, digest in hashed})
        placed = builder.write(hashed, pool)
    entries = []
    for recording, digest in hashed:
        first = builder.items.get((digest, 0))
        if first and all((digest, i) in placed for i in range(first.count)):  # else skipped or a duplicate
            where = [placed[digest, i] for i in range(first.count)]
            entries.append(manifest.entry_of(recording, digest, where, list(first.notes)))
    _require_some(entries, builder)
    entries = manifest.split_entries(entries, validation, settings, builder.messages)
    new = manifest.build(builder.out, settings, entries, builder.skipped, builder.duplicates, builder.old)
    if not new["statistics"]:
        builder.report(0.97, "statistics")
        new["statistics"] = manifest.compute_statistics(builder.out, new, settings)
    if builder.old is None or manifest.without_versions(builder.old) != manifest.without_versions(new):
        manifest.write(builder.out, new)
    builder.messages += _changes(builder.old, new)
    for marked in atomic_store.find_marked(builder.out, shards.PATTERN):
        if marked.path.name not in new["shards"]:
            atomic_store.remove_marked(marked)
    builder.report(1.0, f"{len(entries)} recordings are ready")
    return builder.messages


def _twice(call: Callable[[], str]) -> str:
    """Retry once: a mounted Drive sometimes fails to read a file."""
    try:
        return call()
    except OSError:
        return call()


def _require_some(found: list, builder: DatasetBuilder) -> None:
    if found:
        return
    reasons = "; ".join(f"'{s['name']}': {s['reason']}" for s in builder.skipped[:3])
    raise DatasetError(
        f"There is no usable recording{' (' + reasons + ')' if reasons else ''}. "
        f"Give a folder with recordings of one voice: {', '.join(sorted(s.lstrip('.') for s in audio.SUFFIXES))}."
    )


def _changes(old: dict | None, new: dict) -> list[str]:
    """Messages: changes since before, skipped files, duplicates, and warnings of the decoder."""
    messages = []
    now = {e["sha256"] for e in new["recordings"]}
    if old is not None:
        before = {e["sha256"] for e in old["recordings"]}
        if old["settings_key"] != new["settings_key"]:
            changed = [k for k, v in new["settings"].items() if old["settings"].get(k) != v]
            what = ", ".join(changed) or "The feature extraction"
            messages.append(f"{what} changed, so every recording was measured again.")
        fresh, gone = len(now - before), len(before - now)
        if fresh or gone:
            messages.append(f"{fresh} recordings are new or changed, {gone} gone, {len(now) - fresh} as before.")
        elif old["settings_key"] == new["settings_key"]:
            messages.append(UNCHANGED)
    others = [s["name"] for s in new["skipped"] if Path(s["name"]).suffix.lower() not in audio.SUFFIXES]
    if others:
        more = " and so on" if len(others) > 5 else ""
        messages.append(f"{len(others)} files are no recordings and were left out: {', '.join(others[:5])}{more}.")
    messages += [f"Skipped {_described(s)}" for s in new["skipped"] if s["name"] not in others]
    messages += [f"'{d['name']}' is the same audio as '{d['same_as']}': used once." for d in new["duplicates"]]
    alike = {}
    for entry in new["recordings"]:
        for note in entry["notes"] if not entry["name"].endswith(" (end)") else ():
            alike.setdefault(note.removeprefix(entry["name"]), []).append(note)
    for notes in alike.values():
        messages += notes if len(notes) <= 5 else [f"{notes[0]} The same goes for {len(notes) - 1} more recordings."]
    return messages


def _described(skipped: dict) -> str:
    """Name and reason; the reason may begin with the name already."""
    name, reason = skipped["name"], skipped["reason"]
    return reason if reason.startswith(Path(name).name) else f"'{name}': {reason}."
