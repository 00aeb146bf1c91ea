"""The exceptions of svclib.

A message states what arrived and what was expected, its hint the remedy; ``str(error)`` is both.
"""

from pathlib import Path


class _Details:
    """Attributes of every error: ``path`` of the file or folder that it is about, or None; ``hint``, the remedy as a
    sentence, part of the text; ``code``, a short word for callers that treat one cause apart, such as ``"silent"``.
    """

    def __init__(self, message: str = "", *, path: str | Path | None = None, hint: str = "", code: str = ""):
        super().__init__(f"{message} {hint}".strip())  # type: ignore[call-arg]  # of the exception class beside it
        self.path = None if path is None else Path(path)
        self.hint, self.code = hint, code


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
