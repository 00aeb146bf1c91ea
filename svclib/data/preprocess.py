"""Build the shards and the manifest of a dataset from recordings, incrementally.

Recordings are decoded once in sorted order and cut into segments (constant memory), whose features are extracted with
context on both sides. Shards are committed as they fill, the manifest last. A recording is identified by the SHA-256 of
its file, a segment by its index: a run after an interruption reuses the committed segments and gives the same bytes as
an uninterrupted one, and a changed file is processed alone. Shards that are not referred to are deleted; those less
than half in use, and small ones when there are more than 16, are merged.
"""

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from svclib.audio import io as audio
from svclib.audio import units
from svclib.audio.decode import low_rate_warning
from svclib.data import executors, manifest, quality, segments, shards, statistics
from svclib.data.recordings import Recording
from svclib.data.segments import ResampledStream
from svclib.features import extract
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import Cancelled, DatasetError

MIN_DURATION_S = 0.1
SILENT_PEAK = 1e-4  # -80 dB
SMALL_SHARDS = 16
LOCK_NAME = ".preparing.lock"
TWIN_S = 0.15  # recordings of lengths that differ by less may be one in two formats
UNCHANGED = "Nothing changed."  # a message


class DatasetBuilder:
    """State of one preparation: stored segments, remaining work, progress."""

    def __init__(self, sources: list[Recording], out: Path, settings, progress, cancelled):
        self.out, self.settings, self.key = out, settings, manifest.settings_key(settings)
        self.progress, self.cancelled = progress, cancelled
        self.skipped = [{"name": r.name, "reason": r.problem} for r in sources if r.problem]
        self.duplicates, self.messages, self.failed = list[dict](), list[str](), set[str]()
        self.old = manifest.read(self.out) if filesystem.exists(self.out / manifest.NAME) else None
        self.done_s = self.total_s = 0.0
        self.started = False  # from the first recording that is decoded

    def report(self, fraction: float, text: str) -> None:
        """Report progress; raises Cancelled on request."""
        if self.cancelled and self.cancelled():
            raise Cancelled("Preparation was stopped. What is finished is kept: start it again and it goes on.")
        if self.progress:
            self.progress(min(1.0, fraction), text)

    def hash_files(self, sources: list[Recording]) -> list[tuple[Recording, str]]:
        """Every usable file with its SHA-256, without duplicates."""
        hashed, seen = [], dict[str, tuple[str, str]]()
        known = {d["sha256"]: d["same_as_sha256"] for d in (self.old or {}).get("duplicates", [])}
        usable = [r for r in sources if not r.problem]
        for n, recording in enumerate(usable):
            self.report(0.03 * n / len(usable), f"reading recording {n + 1} of {len(usable)}")
            try:
                digest = _sha256(recording.path)
            except OSError as error:
                self.skipped.append({"name": recording.name, "reason": f"it cannot be read: {error}"})
                continue
            first = seen.get(digest) or seen.get(known.get(digest, ""))
            if first:
                self._duplicate(recording.name, digest, *first)
            else:
                seen[digest] = (recording.name, digest)
                hashed.append((recording, digest))
        return hashed

    def _duplicate(self, repeated: str, digest: str, name: str, of: str) -> None:
        self.duplicates.append({"name": repeated, "sha256": digest, "same_as": name, "same_as_sha256": of})

    def find_stored(self, wanted: set[str]) -> None:
        """Index the committed segments of these recordings, and the shards to merge."""
        self.stored, self.stale, small = shards.Stored(), set[str](), set[str]()
        whole = [
            (marked, stored, {k: v for k, v in stored.items() if k[0] in wanted})
            for marked, stored in shards.committed(self.out, self.key)
        ]
        for marked, stored, live in sorted(whole, key=lambda s: (-len(s[2]), s[0].path.name)):
            new = {k: v for k, v in live.items() if k not in self.stored}
            used, total = (sum(item.n_samples for item, _ in found.values()) for found in (new, stored))
            if 0 < used < total / 2:
                self.stale.add(marked.path.name)
            if marked.info["bytes"] < shards.CAP_BYTES / 4:
                small.add(marked.path.name)
            self.stored |= new
        self.stale |= small if len(small) > SMALL_SHARDS else set()

    def segments_of(self, digest: str) -> list[tuple[shards.Item, shards.Segment]]:
        """The segments of a recording, if all of them are stored."""
        first = self.stored.get((digest, 0))
        found = [self.stored.get((digest, i)) for i in range(first[0].count)] if first else []
        return found if all(found) else []

    def segments_to_write(self, hashed, pool) -> Iterator[tuple[Recording, shards.Item, Callable[[], dict], float]]:
        """Segments for new shards, in order: item, a function that returns its arrays, length in seconds."""
        for recording, digest in hashed:
            for item, segment in self.segments_of(digest):
                if segment.shard in self.stale:
                    yield recording, item, partial(self.copy, segment), 0.0
            if digest in self.estimates_s:
                try:
                    yield from self.measured_segments(recording, digest, pool)
                except ValueError as error:
                    self.skip(recording, digest, error, self.estimates_s[digest])

    def measured_segments(self, recording: Recording, digest: str, pool):
        """The segments of one recording that are not stored yet, decoded one after the other."""
        rate, hop = self.settings.sample_rate_hz, self.settings.hop_samples
        stream = self.open(recording)
        self.total_s += stream.n_samples / rate - self.estimates_s[digest]
        self.started = True
        pieces = segments.cuts(stream.n_samples, self.settings)
        for i, cut in enumerate(pieces):
            samples, n = stream.take(cut[2], cut[3]), cut[1] - cut[0]
            if (digest, i) in self.stored:
                self.done_s += n / rate
                continue
            item = shards.Item(digest, i, len(pieces), n, n // hop, stream.notes if i == 0 else ())
            yield recording, item, pool.submit(samples, cut, self.settings), n / rate

    def open(self, recording: Recording) -> ResampledStream:
        """A recording at the dataset's rate as a stream; ValueError if it cannot be used."""
        share, rate = self.share if self.total_s > 0 else 0.03, self.settings.sample_rate_hz
        found = audio.survey(recording.path, lambda f, text: self.report(share, f"{text}, {100 * f:.0f} %"))
        info = found.info
        low_rate = low_rate_warning(info.name, info.sample_rate_hz)
        notes = [w for w in info.warnings if info.sample_rate_hz < rate or w != low_rate]
        if found.peak > 1.0:
            notes.append(f"{recording.name} peaks {20 * math.log10(found.peak):.1f} dB over full scale; turned down.")
        n = units.resampled_length(info.n_samples, info.sample_rate_hz, rate)
        if n / rate < MIN_DURATION_S or n < self.settings.hop_samples:
            raise DatasetError(f"it is too short ({1000 * n / rate:.0f} ms; at least {1000 * MIN_DURATION_S:.0f} ms)")
        if found.peak < SILENT_PEAK:
            raise DatasetError("it is silent")
        scale = np.float32(shards.FULL_SCALE / max(1.0, found.peak))
        blocks = (found.mono(block) * scale for block in audio.blocks(recording.path))
        return ResampledStream(n, info.sample_rate_hz, rate, blocks, notes)

    def copy(self, segment: shards.Segment) -> dict:
        """The stored arrays of a segment."""
        s, f = segment.sample_start, segment.frame_start
        with contextlib.closing(shards.Reader(self.out / segment.shard)) as reader:
            ends = {"audio": (s, s + segment.n_samples)}
            return {n: reader.read(n, *ends.get(n, (f, f + segment.n_frames))) for n in reader.tensors}

    def skip(self, recording: Recording, digest: str, error: ValueError, seconds: float) -> None:
        """Leave out a recording, with the reason; an error of the disk, or that it was cancelled, is raised."""
        if isinstance(error, (OSError, Cancelled)):
            raise error
        self.total_s -= seconds
        if digest not in self.failed:
            self.skipped.append({"name": recording.name, "reason": str(error)})
        self.failed.add(digest)

    def without_twins(self, entries: list[dict]) -> list[dict]:
        """The entries but those with the sound of an earlier one in another format, which are listed as duplicates."""
        if self.old and {e["sha256"] for e in entries} <= {e["sha256"] for e in self.old["recordings"]}:
            return entries
        rate, n_samples = self.settings.sample_rate_hz, np.array([e["n_samples"] for e in entries])
        order = np.argsort(n_samples, kind="stable")
        close = np.diff(n_samples[order]) <= TWIN_S * rate
        candidates = set(order[1:][close]) | set(order[:-1][close])
        prints = [self._fingerprint(e) if i in candidates else None for i, e in enumerate(entries)]
        kept = []
        for entry, twin in zip(entries, quality.twins(prints), strict=True):
            if twin is None:
                kept.append(entry)
            else:
                self._duplicate(entry["name"], entry["sha256"], entries[twin]["name"], entries[twin]["sha256"])
        return kept

    def _fingerprint(self, entry: dict):
        """Of the stored audio of an entry."""

        def blocks() -> Iterator[np.ndarray]:
            for name, start, n, *_ in entry["segments"]:
                with contextlib.closing(shards.Reader(self.out / name)) as reader:
                    yield reader.read("audio", start, start + n) / np.float32(shards.FULL_SCALE)

        return quality.fingerprint(blocks(), self.settings.sample_rate_hz)

    def write(self, hashed, pool) -> None:
        """Extract the missing segments and add them to ``stored``."""
        self.estimates_s = {digest: _estimate_s(r) for r, digest in hashed if not self.segments_of(digest)}
        self.total_s = sum(self.estimates_s.values())
        writer, waiting = shards.Writer(self.out, self.key), deque[tuple]()

        def finish() -> None:
            recording, item, arrays, seconds = waiting.popleft()
            try:
                writer.add(item, arrays())
            except ValueError as error:
                self.skip(recording, item.sha256, error, 0.0)
            self.done_s += seconds
            of = f"{units.duration_text(self.done_s)} of {units.duration_text(self.total_s)} measured"
            self.report(self.share, f"{recording.name}: {of}")  # what shows it estimates the time left

        for entry in self.segments_to_write(hashed, pool):
            waiting.append(entry)
            while len(waiting) > pool.pending:
                finish()
        while waiting:
            finish()
        writer.flush()
        self.stored = {k: v for k, v in {**self.stored, **writer.stored}.items() if k[0] not in self.failed}

    @property
    def share(self) -> float:
        """Fraction of the work that is done."""
        return 0.03 + 0.94 * min(1.0, self.done_s / self.total_s) if self.total_s > 0 else 0.97


def run(sources, out, settings, validation=None, progress=None, cancelled=None, executor=None) -> list[str]:
    """Build or update the dataset in ``out``; returns messages. See ``dataset.prepare``."""
    sources = sorted(sources, key=lambda r: (r.singer, r.name, str(r.path)))
    builder = DatasetBuilder(sources, Path(out), settings, progress, cancelled)
    if any(Path(r.path).resolve().parent == builder.out.resolve() for r in sources):
        raise DatasetError(f"'{builder.out}' is the folder of the recordings; choose another one for the dataset.")
    waiting = lambda text: builder.report(builder.share if builder.started else 0.03, text)  # noqa: E731
    with executors.opened(executor, waiting) as pool:
        hashed = builder.hash_files(sources)
        _require_some(hashed, builder)
        with _alone(builder.out):
            atomic_store.remove_parts(builder.out)
            builder.find_stored({digest for _, digest in hashed})
            builder.write(hashed, pool)
            return _commit(builder, hashed, validation)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other preparations on this machine out of a folder; DatasetError if one is writing there."""
    with filesystem.translate_os_errors(out):
        filesystem.make_folder(out)
    lock = FileLock(out / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        text = f"Another preparation is writing into '{out}'."
        raise DatasetError(text, path=out, hint="Wait until it is ready, or choose another folder.") from None
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(lock.lock_file)  # before it is released: whoever opened it meanwhile did not get it
        lock.release()


def _commit(builder: DatasetBuilder, hashed: list, validation: str | None) -> list[str]:
    """Commit the manifest of the stored segments, and delete what is not referred to; returns messages."""
    entries = []
    for recording, digest in hashed:
        if stored := builder.segments_of(digest):  # else skipped or a duplicate
            entries.append(manifest.entry_of(recording, digest, stored))
    _require_some(entries, builder)
    settings, entries = builder.settings, builder.without_twins(entries)
    entries = manifest.split_entries(entries, validation, settings, builder.messages)
    new = manifest.build(builder.out, settings, entries, builder.skipped, builder.duplicates, builder.old)
    if not new["statistics"]:
        builder.report(0.97, "statistics")
        new["statistics"] = manifest.compute_statistics(builder.out, new, settings)
    if builder.old != {**new, "versions": (builder.old or {}).get("versions")}:  # not for new libraries alone
        manifest.write(builder.out, new)
    builder.messages += _changes(builder.old, new) + _without_notes(new, settings)
    for marked in atomic_store.find_marked(builder.out, shards.PATTERN):
        if marked.path.name not in new["shards"]:
            atomic_store.remove_marked(marked)
    builder.report(1.0, f"{len(entries)} recordings are ready")
    return builder.messages


def _without_notes(new: dict, settings) -> list[str]:
    """A message if a singer's recordings have no pitch, or notes reach a limit that is lower than the default."""
    singers, pitch = new["statistics"]["singers"], new["statistics"]["f0_midi"]
    lost = [name for name, found in singers.items() if statistics.lacks_notes(found)]
    if not lost:
        highest = 0.0 if pitch["mean_note"] is None else units.midi_to_hz(statistics.note_range_midi(pitch)[1] + 1)
        limit = f"Notes reach the limit of the pitch tracker, {settings.f0_max_hz:.0f} Hz; higher ones are unvoiced. "
        limit += f"To measure up to {extract.F0_MAX_HZ:.0f} Hz, prepare into another folder."
        return [limit] if settings.f0_max_hz < min(highest, extract.F0_MAX_HZ) else []
    whose = f" of {', '.join(lost)}" if len(lost) < len(singers) else ""
    limits = f"{settings.f0_min_hz:.0f} to {settings.f0_max_hz:.0f} Hz"
    return [
        f"No notes were found in the recordings{whose}: they are whispered, spoken without voice, or outside {limits}. "
        "An instrument made of them cannot sing a melody."
    ]


def _sha256(path: Path) -> str:
    """Of a file, tried twice: a mounted Drive sometimes fails to read one."""
    with contextlib.suppress(OSError):
        return filesystem.sha256_file(path)
    return filesystem.sha256_file(path)


def _estimate_s(recording: Recording) -> float:
    """Length of a recording by its header; 0 if it has none."""
    with contextlib.suppress(ValueError, OSError):
        return float(min(audio.probe(recording.path).duration_s, 1e5))
    return 0.0


def _require_some(found: list, builder: DatasetBuilder) -> None:
    if not found:
        reasons = "; ".join(f"'{s['name']}': {s['reason']}" for s in builder.skipped[:3])
        kinds = ", ".join(sorted(s.lstrip(".") for s in audio.SUFFIXES))
        hint = f"Give a folder with recordings of one voice: {kinds}."
        raise DatasetError(f"There is no usable recording{' (' + reasons + ')' if reasons else ''}.", hint=hint)


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
        n, more = len(others), " and so on" if len(others) > 5 else ""
        what = "1 file is no recording and was" if n == 1 else f"{n} files are no recordings and were"
        messages.append(f"{what} left out: {', '.join(others[:5])}{more}.")
    for name, reason in ((s["name"], s["reason"]) for s in new["skipped"] if s["name"] not in others):
        named = reason.startswith(Path(name).name)
        messages.append(f"Skipped {reason}" if named else f"Skipped '{name}': {reason}.")
    messages += [f"'{d['name']}' is the same audio as '{d['same_as']}': used once." for d in new["duplicates"]]
    alike = dict[str, list[str]]()
    for entry in new["recordings"]:
        for note in entry["notes"] if not entry["name"].endswith(" (end)") else ():
            alike.setdefault(note.removeprefix(entry["name"]), []).append(note)
    for notes in alike.values():
        messages += notes if len(notes) <= 5 else [f"{notes[0]} The same goes for {len(notes) - 1} more recordings."]
    return messages
