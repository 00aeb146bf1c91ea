"""Songs to convert: found, read, measured, and remembered while one tries instruments on them."""

import collections
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from svclib.audio import io as audio
from svclib.audio import units
from svclib.features import extract as features_
from svclib.features.extract import Features, FeatureSettings
from svclib.utils.errors import ConversionError, ProgressCallback, reporter

CACHED_SONGS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Song:
    """A song, measured.

    Attributes:
        path: The file.
        name: Its name without suffix.
        sample_rate_hz: Its own rate.
        n_samples: Its length at its own rate.
        audio: float32 mono ``[samples]`` at ``features.settings.sample_rate_hz``.
        features: On the grid of ``features.settings``.
        warnings: What was noticed while reading it, as sentences.
        whole: Not an :func:`excerpt`.
    """

    path: Path
    name: str
    sample_rate_hz: int
    n_samples: int
    audio: np.ndarray
    features: Features
    warnings: tuple[str, ...] = ()
    whole: bool = True

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.n_samples / self.sample_rate_hz

    def original(self) -> np.ndarray:
        """The song at its own rate, float32 mono ``[n_samples]``, read from its file again; of an excerpt its audio."""
        return fit_length(audio.read(self.path).samples if self.whole else self.audio, self.n_samples)


def find_songs(folder: str | Path) -> list[Path]:
    """The songs in a folder and its sub-folders, sorted by path.

    Raises ConversionError if there is none, with the skipped files and the remedy.
    """
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
    """Read a song and measure it on an instrument's grid.

    Args:
        path: An audio file.
        settings: Of the instrument; its log-mel is measured only if it asks for one.
        f0_method: Another pitch tracker than the instrument's, one of ``f0.F0_METHODS``.
        progress: Called with a fraction 0..1 and a text.
        cancelled: Asked now and then; True ends the work.

    Returns:
        The song at the settings' rate and on their grid, with what was noticed while reading it.

    Raises:
        ConversionError: if the song is shorter than one frame.
        AudioError: if it cannot be read.
        Cancelled: if ``cancelled()`` returns True.
    """
    path = Path(path)
    if f0_method is not None:
        settings = dataclasses.replace(settings, f0_method=f0_method)
    report = reporter(progress, cancelled)
    report(0.0, f"reading {path.name}")
    found = audio.survey(path)
    n_samples, sample_rate_hz = found.info.n_samples, found.info.sample_rate_hz
    report(0.05, f"reading {path.name}")
    samples = audio.read(path, settings.sample_rate_hz, found).samples
    if units.frame_count(len(samples), settings.hop_samples) < 1:
        raise ConversionError(
            f"'{path.name}' holds {1000 * n_samples / sample_rate_hz:.1f} ms of sound, less than one frame "
            f"({1000 * settings.hop_samples / settings.sample_rate_hz:.1f} ms). Choose a longer song."
        )
    report(0.1, "measuring pitch and loudness")
    measured = features_.extract(samples, settings, progress=lambda f, text: report(0.1 + 0.9 * f, text))
    report(1.0, "measured")
    return Song(path, path.stem, sample_rate_hz, n_samples, samples, measured, tuple(found.info.warnings))


_songs: collections.OrderedDict[tuple, Song] = collections.OrderedDict()
_songs_lock = threading.Lock()


def cached_song(
    path: str | Path,
    settings: FeatureSettings,
    f0_method: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Song:
    """``load_song``, remembering the last few songs: another instrument with the same settings costs nothing.

    A song is remembered by path, size, time of change and settings, and only once it was measured successfully.
    """
    path = Path(path)
    method = f0_method or settings.f0_method
    try:
        stat = path.stat()
    except OSError:
        return load_song(path, settings, f0_method, progress, cancelled)  # says what is wrong
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns, dataclasses.replace(settings, f0_method=method))
    with _songs_lock:
        if key in _songs:
            _songs.move_to_end(key)
            return _songs[key]
    song = load_song(path, settings, f0_method, progress, cancelled)
    with _songs_lock:
        _songs[key] = song
        while len(_songs) > CACHED_SONGS:
            _songs.popitem(last=False)
    return song


def clear_song_cache() -> None:
    """Free the memory of :func:`cached_song`."""
    with _songs_lock:
        _songs.clear()


def excerpt(song: Song, start_s: float | int, seconds: float | int) -> Song:
    """A piece of a measured song, cut at whole frames of its grid; nothing is measured again.

    Args:
        song: The whole.
        start_s: Where the piece begins; what lies before 0 counts as 0.
        seconds: Its length: at least one frame, at most what is left of the song.

    Returns:
        The piece as a song of the same name; its ``sample_rate_hz`` is the instrument's.

    Raises:
        ConversionError: if the song has less than a frame from ``start_s`` on.
    """
    settings, measured = song.features.settings, song.features
    hop, rate = settings.hop_samples, settings.sample_rate_hz
    first = max(0, round(start_s * rate / hop))
    last = min(measured.n_frames, first + max(1, round(seconds * rate / hop)))
    if first >= last:
        raise ConversionError(f"'{song.name}' is {song.duration_s:.1f} s long and has no sound from {start_s:g} s on.")
    arrays = {f.name: getattr(measured, f.name) for f in dataclasses.fields(measured)}
    cut = {name: x[first:last] for name, x in arrays.items() if isinstance(x, np.ndarray)}
    n_samples = (last - first) * hop
    audio_ = song.audio[first * hop : last * hop]
    features = dataclasses.replace(measured, n_samples=n_samples, **cut)
    return dataclasses.replace(
        song, sample_rate_hz=rate, n_samples=n_samples, audio=audio_, features=features, whole=False
    )


def fit_length(samples: np.ndarray, n_samples: int) -> np.ndarray:
    """The first ``n_samples``, with silence added where there are fewer."""
    missing = n_samples - len(samples)
    return np.pad(samples, (0, missing)) if missing > 0 else samples[:n_samples]
