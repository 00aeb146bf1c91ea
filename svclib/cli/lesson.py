"""Commands that show what a model does: ``svclib trace``.

Importing this module registers them in ``commands.HANDLERS``.
"""

from pathlib import Path

from svclib.cli.commands import HANDLERS, ProgressPrinter, warn_renamed
from svclib.utils.errors import ConfigError


def trace(a) -> int:
    """``svclib trace``."""
    from svclib.analysis import player
    from svclib.analysis.lesson import build as lesson
    from svclib.models import instrument

    out = Path(a.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is '{out}'; a lesson is a page, so give a name that ends in .html.")
    if a.example:
        text, said = lesson.example(), "The lesson that comes with svclib"
    elif a.input is None:
        raise ConfigError("--input is missing: the song that the instrument sings in the lesson.")
    else:
        opened = instrument.open(a.instrument)
        with ProgressPrinter(f"{opened.name}: lesson") as progress:
            text, said = lesson.from_file(
                opened, a.input, a.start, a.seconds, a.steps or lesson.STEPS, a.seed, progress, note=progress.note
            )
    path = player.export(text, out.with_suffix(".html"))
    warn_renamed(out, path)
    print(f"{path}\n{said} ({len(text.encode()) / 1e6:.1f} MB); open it in any browser, no network is needed")
    return 0


HANDLERS |= {f.__name__: f for f in (trace,)}
