"""A second recognizer, no relative of Whisper: hama's phoneme CTC Conformer (for measuring only)."""

import numpy as np

from svclib.conversion import recognition
from svclib.utils.errors import ConversionError


class PhonemeRecognizer:
    """Phonemes of any language as a string of IPA letters; ``language`` plays no part."""

    name = "hama phonemes"

    def __init__(self):
        try:
            from hama.asr import ASRModel
        except ImportError as error:
            raise ConversionError("Install the second recognizer: pip install --no-deps hama") from error
        self._model = ASRModel()

    def transcribe(self, samples: np.ndarray, language: str | None = None) -> recognition.Transcript:
        """The phonemes of a mono signal at 16 kHz."""
        found = self._model.transcribe_waveform(np.asarray(samples, np.float32), recognition.SAMPLE_RATE_HZ)
        return recognition.Transcript("".join(found.phonemes), language or "")
