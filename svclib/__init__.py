"""Turn recordings of a voice into an instrument, convert songs with it, and see how it works.

The public names below are imported when they are first used; importing ``svclib`` itself loads nothing::

    import svclib

    voice = svclib.load_instrument("voice.zip")
    song = svclib.load_song("song.wav", voice.features)
    suggestion = svclib.suggest_shift(song.features, voice.statistics, voice.kind)
    result = svclib.convert(voice, song, suggestion.applied(), svclib.SamplingOptions(steps=20))
    svclib.save(result, "output")

Everything else is in ten folders; a folder imports only folders before it (``tests/test_import_order.py``)::

    utils < audio < features < data < models < training < conversion < analysis < notebooks, cli
"""

import importlib
import os

__version__ = "0.1.0"

# public name: module that defines it (and the name there, if it is another one)
_PUBLIC = {
    "find_recordings": "data.recordings",
    "prepare_dataset": "data.dataset:prepare",
    "load_preset": "utils.config:load",
    "train": "training.api",
    "export_instrument": "training.api:export",
    "load_instrument": "models.instrument:open",
    "load_vocoder": "models.vocoders.auto",
    "load_song": "conversion.song",
    "suggest_shift": "conversion.key_suggestion",
    "Controls": "conversion.controls",
    "SamplingOptions": "models.diffusion.samplers",
    "convert": "conversion.pipeline",
    "save": "conversion.pipeline",
    "vocode": "conversion.pipeline",
}
__all__ = [*_PUBLIC, "__version__"]

# onnxruntime (from 1.29 on) and huggingface_hub send usage reports to their makers unless this is set before.
# What torch cannot compute on Apple's GPUs is computed on the CPU.
for _switch in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "PYTORCH_ENABLE_MPS_FALLBACK"):
    os.environ.setdefault(_switch, "1")
# Threads that wait spin for a moment, then sleep. To sleep at once made a training step on two cores take 1.5 times as
# long; to spin as long as is the default 13 times as long beside six busy programs (benchmarks/README.md).
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'svclib' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(f"svclib.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
