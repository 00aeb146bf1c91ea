"""The exceptions of svclib; progress and cancellation of long work.

A message states what arrived and what was expected, its hint the remedy; ``str(error)`` is both. Everywhere
``progress(fraction, text)`` receives 0..1 and a text for people, and ``cancelled()`` returns True to abort.
"""

import difflib
import os
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

ProgressCallback = Callable[[float, str], None]
# Control characters, which a terminal obeys, marks of direction, which reorder a line, other characters without a shape
# of their own but for joiners, which names have, and bytes that are no text.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: object, n: int | None = None, lines: bool = False) -> str:
    """Text that may come from a file or its name, for a terminal or a page: at most ``n`` characters.

    On one line unless ``lines``, with ``?`` for characters that are obeyed in place of being shown.
    """
    shown = _UNPRINTABLE.sub("?", str(text)[:n])
    return shown if lines else shown.replace("\n", "?").replace("\t", " ")


def first_line(error: object, n: int = 200) -> str:
    """The first line of an error for a sentence, see :func:`printable`; its type where it has no text."""
    lines = (line.strip() for line in str(error).splitlines())
    return printable(next(filter(None, lines), type(error).__name__), n)


class _Details:
    """Attributes of every error: ``path`` of the file or folder that it is about, or None; ``hint``, the remedy as a
    sentence, part of the text; ``code``, a short word for callers that treat one cause apart, such as ``"silent"``.
    """

    def __init__(self, message: str = "", *, path: str | Path | None = None, hint: str = "", code: str = ""):
        super().__init__(f"{message} {hint}".strip())  # type: ignore[call-arg]  # of the exception class beside it
        self.path = None if path is None else Path(path)
        self.hint, self.code = hint, code

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows: the text alone, unless ``SVCLIB_DEBUG`` is set."""
        details = bool(os.environ.get("SVCLIB_DEBUG"))
        return traceback.format_exception(self) if details else [printable(self, lines=True)]  # type: ignore


class AudioError(_Details, ValueError):
    """A sound file or signal that cannot be read, written or processed."""


class DatasetError(_Details, ValueError):
    """Recordings or a dataset that cannot be prepared or used."""


class ModelError(_Details, ValueError):
    """A model, its weights, its sampler or its inputs that cannot be used."""


class TrainingError(_Details, ValueError):
    """A training run or checkpoint that cannot be started, continued or read."""


class StorageError(_Details, OSError, ValueError):
    """A file, folder or worker process that cannot be used; ``errno`` is the system's error number, or None."""

    def __init__(self, message: str = "", number: int | None = None, **details):
        super().__init__(message, **details)
        self.errno = number


class ConfigError(_Details, ValueError):
    """A preset, setting or command-line argument that cannot be used."""


class ConversionError(_Details, ValueError):
    """A conversion, its evaluation or its analysis that cannot be made."""


class Cancelled(_Details, ValueError):
    """The work was stopped by its ``cancelled()`` callback; nothing unfinished is returned or written."""

    def __init__(self, message: str = "It was cancelled; nothing was written.", **details):
        super().__init__(message, **details)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean '{near[0]}'?" if near else ""


def raise_if_cancelled(cancelled: Callable[[], bool] | None) -> bool:
    """Raise :class:`Cancelled` if ``cancelled()`` returns True; else return False."""
    if cancelled is not None and cancelled():
        raise Cancelled
    return False


def reporter(progress: ProgressCallback | None, cancelled: Callable[[], bool] | None = None) -> ProgressCallback:
    """A progress callback that also raises :class:`Cancelled`; with neither it does nothing."""

    def report(fraction: float, text: str = "") -> None:
        raise_if_cancelled(cancelled)
        if progress is not None:
            progress(min(1.0, max(0.0, fraction)), text)

    return report
