"""Assertions on the explanation that an error gives, independent of its wording."""

from pathlib import Path


def assert_explains(error: BaseException, *, path: str | Path | None = None, remedy: str = "") -> None:
    """The error names its file and a remedy.

    Args:
        error: An exception of ``svclib.utils.errors``.
        path: The file or folder that the error is about.
        remedy: A word that the remedy has to contain, such as the name of an option or of a package.
    """
    text = str(error)
    assert text and text[0] == text[0].strip() and "Traceback" not in text
    if path is not None:
        named = getattr(error, "path", None)
        assert named == Path(path) or Path(path).name in text, f"'{path}' is not named: {text}"
    if remedy:
        assert remedy.lower() in (getattr(error, "hint", "") or text).lower() or remedy.lower() in text.lower(), text
