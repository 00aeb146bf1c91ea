"""Conversion of many songs: one that fails does not stop the others, and is named in the summary."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from svclib.conversion import pipeline
from svclib.conversion.controls import Controls
from svclib.conversion.pipeline import Conversion
from svclib.conversion.song import Song, load_song
from svclib.utils import filesystem
from svclib.utils.errors import Cancelled, ProgressCallback


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The result of one song.

    Attributes:
        path: The song.
        saved: The file that was written; None if it failed.
        conversion: Its contents; drop it once it was shown, for it is large.
        error: Why it failed.
    """

    path: Path
    saved: Path | None = None
    conversion: Conversion | None = None
    error: Exception | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """Folder and format of the results, see ``pipeline.save``; ``keep_rate`` as in ``pipeline.convert``."""

    folder: Path
    format: str = "wav"
    name: str | None = None
    keep_rate: bool = False


def convert_songs(
    instrument: Any,
    paths: Sequence[str | Path],
    output: Output,
    controls: Controls | Callable[[Song], Controls] | None = None,
    f0_method: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[Outcome]:
    """Convert and save one song after the other.

    Args:
        instrument: From ``load_instrument``.
        paths: The songs, in this order.
        output: Where the results go; nothing is overwritten.
        controls: As in ``pipeline.convert``, or a function of the loaded song (a key that fits each).
        f0_method: Another F0 tracker than the instrument's, one of ``f0.F0_METHODS``.
        progress: See ``utils.errors``; the text names the song.
        cancelled: See ``utils.errors``; what was saved stays.
        **options: ``sampling`` and ``vocoder`` of ``pipeline.convert``.

    Yields:
        One outcome per song; a ValueError or OSError is kept in it, anything else is raised.
    """
    for i, path in enumerate(map(Path, paths)):

        def part(begin, share, i=i, path=path):
            def report(fraction, text=""):
                if progress is not None:
                    progress((i + begin + share * fraction) / len(paths), f"{path.name}: {text}")

            return report

        try:
            song = load_song(path, instrument.features, f0_method, part(0.0, 0.4), cancelled)
            chosen = controls(song) if callable(controls) else controls
            options |= {"keep_rate": output.keep_rate, "progress": part(0.4, 0.6), "cancelled": cancelled}
            made = pipeline.convert(instrument, song, chosen, **options)
            outcome = Outcome(path, pipeline.save(made, output.folder, output.format, output.name), made)
        except Cancelled:
            raise
        except (ValueError, OSError) as error:
            outcome = Outcome(path, error=error)
        yield outcome


def describe(outcomes: Sequence[Outcome]) -> str:
    """Summary of a batch: the number of converted songs, and each failure with its reason."""
    failed = [o for o in outcomes if o.error is not None]
    text = f"{len(outcomes) - len(failed)} of {len(outcomes)} songs were converted."
    lines = [f"{o.path.name}: {' '.join(filesystem.error_text(o.error).split())}" for o in failed]
    return "\n".join([text + (" These were not:" if failed else ""), *lines])
