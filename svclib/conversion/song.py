"""Songs to convert: found, read, measured, and remembered while one tries instruments on them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.features import extract
from svclib.features.extract import Features, FeatureSettings
from svclib.utils import budget, filesystem
from svclib.utils.budget import Cost
from svclib.utils.errors import ConversionError, ProgressCallback, reporter

CACHED_SONGS = 4
HIGH_SHARE = 0.01  # of the frames: fewer above an instrument's range are errors of the tracker
_songs: dict[tuple, "Song"] = {}  # the newest last


@dataclasses.dataclass(frozen=True, eq=False)
class Song:
    """A song, measured: ``audio`` is float32 mono at ``features.settings.sample_rate_hz``, sizes are the file's."""

    path: Path
    name: str
    sample_rate_hz: int
    n_samples: int
    audio: np.ndarray
    features: Features
    warnings: tuple[str, ...] = ()
    whole: bool = True  # not an excerpt
    codes: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # content measured on demand, by encoder

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate_hz

    def original(self) -> np.ndarray:
        """The song at its own rate, float32 mono ``[n_samples]``, read from its file again; of an excerpt its audio."""
        return fit_length(audio.read(self.path).samples if self.whole else self.audio, self.n_samples)


def find_songs(folder: str | Path) -> list[Path]:
    """The songs in a folder and its sub-folders, sorted by path; a ConversionError where there is none."""
    usable, skipped = audio.find(folder)
    if not usable:
        seen = f" Skipped: {'; '.join(f'{Path(p).name} ({reason})' for p, reason in skipped[:3])}." if skipped else ""
        raise ConversionError(f"There is no song in '{folder}'. Put a WAV, FLAC, MP3 or OGG file there.{seen}")
    return sorted(Path(p) for p in usable)


def load_song(
    path: str | Path,
    settings: FeatureSettings,
    f0_method: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Song:
    """Read a song and measure it at an instrument's sample rate and on its grid.

    ``settings`` are those of the instrument; ``f0_method`` is another F0 tracker than theirs, of ``f0.F0_METHODS``.
    Raises ConversionError if the song is shorter than one frame or longer than two hours, AudioError if it cannot be
    read.
    """
    path, report = Path(path), reporter(progress, cancelled)
    name = filesystem.as_name(path.name)
    settings = dataclasses.replace(settings, f0_method=f0_method or settings.f0_method)
    report(0.0, f"reading {name}")
    found = audio.survey(path)
    require_song_length(found.info)
    n_samples, sample_rate_hz = found.info.n_samples, found.info.sample_rate_hz
    report(0.05, f"reading {name}")
    samples = audio.read(path, settings.sample_rate_hz, found).samples
    if units.frame_count(len(samples), settings.hop_samples) < 1:
        raise ConversionError(
            f"'{name}' holds {1000 * n_samples / sample_rate_hz:.1f} ms of sound, less than one frame "
            f"({1000 * settings.hop_samples / settings.sample_rate_hz:.1f} ms). Choose a longer song."
        )
    report(0.1, "measuring pitch and loudness")
    measured = extract.extract(samples, settings, progress=lambda f, text: report(0.1 + 0.9 * f, text))
    if settings.f0_max_hz < extract.F0_MAX_HZ:  # an instrument of an earlier version; a soprano's notes may be higher
        wide = dataclasses.replace(settings, f0_max_hz=extract.F0_MAX_HZ)
        f0_hz, voiced, confidence = extract.track_f0(samples, settings.sample_rate_hz, wide)
        if (f0_hz[voiced] > settings.f0_max_hz).sum() > HIGH_SHARE * len(f0_hz):
            found_f0 = {"f0_hz": f0_hz, "voiced": voiced, "confidence": confidence}
            measured = dataclasses.replace(measured, settings=wide, **found_f0)
    report(1.0, "measured")
    return Song(path, Path(name).stem, sample_rate_hz, n_samples, samples, measured, tuple(found.info.warnings))


def require_song_length(info: audio.AudioInfo) -> None:
    """Refuse a file that lasts longer than two hours, or than the free memory holds."""
    cost = Cost(memory_bytes=info.duration_s * budget.SONG_BYTES_PER_S, seconds=info.duration_s)
    budget.require("song", f"'{info.name}'", cost, hint="Cut it into parts.", error=ConversionError)


def cached_song(path: str | Path, settings: FeatureSettings, f0_method: str | None = None, **watch) -> Song:
    """:func:`load_song`, remembering the last few songs by path, size, time of change and settings."""
    path = Path(path)
    settings = dataclasses.replace(settings, f0_method=f0_method or settings.f0_method)
    stat = path.stat() if path.exists() else None
    key = (path.resolve(), stat and (stat.st_size, stat.st_mtime_ns), settings)
    song = _songs[key] = _songs.pop(key, None) or load_song(path, settings, **watch)
    for old in list(_songs)[:-CACHED_SONGS]:
        _songs.pop(old, None)
    return song


def excerpt(song: Song, start_s: float | int, seconds: float | int) -> Song:
    """A piece of a measured song at the instrument's rate, of one frame or more; ConversionError if nothing is left."""
    hop, rate = song.features.settings.hop_samples, song.features.settings.sample_rate_hz
    first = max(0, round(start_s * rate / hop))
    last = min(song.features.n_frames, first + max(1, round(seconds * rate / hop)))
    require_sound(song, start_s, first, last)
    n_samples, audio = (last - first) * hop, song.audio[first * hop : last * hop]
    piece = {"features": map_tracks(song.features, lambda x: x[first:last], n_samples), "audio": audio, "codes": {}}
    return dataclasses.replace(song, sample_rate_hz=rate, n_samples=n_samples, whole=False, **piece)


def require_sound(song: Song, start_s: float | int, first: int, last: int) -> None:
    """ConversionError if an excerpt from ``start_s`` has no frames (``first`` up to ``last``)."""
    if first >= last:
        raise ConversionError(f"'{song.name}' is {song.duration_s:.1f} s long and has no sound from {start_s:g} s on.")


def map_tracks(features: Features, change: Callable[[np.ndarray], np.ndarray], n_samples: int) -> Features:
    """Features with ``change`` applied to each array ``[frames, ...]``, and another length."""
    changed = {name: change(x) for name, x in vars(features).items() if isinstance(x, np.ndarray)}
    return dataclasses.replace(features, n_samples=n_samples, **changed)


def fit_length(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """The first ``n_samples`` of ``[samples, ...]``, with silence added where there are fewer."""
    missing = n_samples - len(samples)
    return np.pad(samples, [(0, missing)] + [(0, 0)] * (samples.ndim - 1)) if missing > 0 else samples[:n_samples]
