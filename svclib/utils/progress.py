"""Progress and cancellation of long work.

Everywhere ``progress(fraction, text)`` receives 0..1 and a text for people, and ``cancelled()`` returns True to abort.
"""

from collections.abc import Callable

from svclib.utils.errors import Cancelled

ProgressCallback = Callable[[float, str], None]


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
