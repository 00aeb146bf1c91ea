"""Many songs in one go: one that fails does not stop the others, and is named in the end."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from svclib.conversion import pipeline
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import Conversion
from svclib.conversion.song import Song, load_song
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled
from svclib.utils.progress import ProgressCallback


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one song.

    Attributes:
        path: The song.
        saved: The file that was written; None if it failed.
        conversion: What it holds; drop it when it was shown, a song's sound is large.
        error: Why it failed; its text is for the person.
    """

    path: Path
    saved: Path | None = None
    conversion: Conversion | None = None
    error: Exception | None = None


def convert_songs(
    instrument: Any,
    paths: Sequence[str | Path],
    folder: str | Path,
    controls: Controls | Callable[[Song], Controls] | None = None,
    *,
    form: str = "wav",
    name: str | None = None,
    f0_method: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Convert and save one song after the other; each outcome arrives as soon as it is there.

    Args:
        instrument: From ``instrument.open``.
        paths: The songs, in the order they are sung in.
        folder: Where the results go; nothing is overwritten.
        controls: The knobs, or what gives them for a measured song (a key that fits each); None as in
            ``conversion.convert``.
        form: One of ``conversion.FORMATS``.
        name: Of every result, without suffix; made of song and instrument if None.
        f0_method: Another pitch tracker than the instrument's, one of ``f0.F0_METHODS``.
        progress: Called with a fraction of all songs and a text that names the song.
        cancelled: True ends the work (``Cancelled``); what was saved stays.
        **options: ``seed``, ``keep_rate``, ``vocoder`` and the sampling of ``conversion.convert``.

    Yields:
        One outcome for each song; a ValueError or OSError is kept in it, anything else is raised.
    """
    for i, path in enumerate(map(Path, paths)):

        def tell(begin, share, i=i, path=path):
            def report(fraction, text=""):
                if progress is not None:
                    progress((i + begin + share * fraction) / len(paths), f"{path.name}: {text}")

            return report

        try:
            song = load_song(path, instrument.features, f0_method, tell(0.0, 0.4), cancelled)
            chosen = controls(song) if callable(controls) else controls
            made = pipeline.convert(instrument, song, chosen, progress=tell(0.4, 0.6), cancelled=cancelled, **options)
            outcome = Outcome(path, pipeline.save(made, folder, form, name), made)
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            outcome = Outcome(path, error=error)
        yield outcome


def describe(outcomes: Sequence[Outcome]) -> str:
    """How many songs were sung, and which were not and why."""
    failed = [o for o in outcomes if o.error is not None]
    text = f"{len(outcomes) - len(failed)} of {len(outcomes)} songs were sung."
    lines = [f"{o.path.name}: {' '.join(filesystem.error_text(o.error).split())}" for o in failed]
    return "\n".join([text + (" These were not:" if failed else ""), *lines])
