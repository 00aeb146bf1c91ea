"""What long work calls now and then: how far it is, and whether to stop.

Everywhere ``progress(fraction, text)`` takes 0..1 and words for a person, and ``cancelled()`` says True once to stop.
"""

from collections.abc import Callable

from svclib.utils.errors import Cancelled

ProgressCallback = Callable[[float, str], None]


def raise_if_cancelled(cancelled: Callable[[], bool] | None) -> bool:
    """End the work (:class:`Cancelled`) when ``cancelled`` says so; False otherwise."""
    if cancelled is not None and cancelled():
        raise Cancelled
    return False


def reporter(progress: ProgressCallback | None, cancelled: Callable[[], bool] | None) -> ProgressCallback:
    """A progress function that also ends the work when ``cancelled`` says so."""

    def report(fraction: float, text: str = "") -> None:
        raise_if_cancelled(cancelled)
        if progress is not None:
            progress(min(1.0, max(0.0, fraction)), text)

    return report
