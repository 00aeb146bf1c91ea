"""Defaults and ranges of all settings and controls, as they were promised.

A file of an earlier version leaves out what has its default and may hold any value of the range. Who changes one
changes ``settings.json`` too (``python tests/test_settings.py``) and asks what becomes of those files.
"""

import dataclasses
import json
from pathlib import Path

from svclib.analysis.lesson import LessonOptions
from svclib.audio.mel import MelConfig
from svclib.conversion.controls import Controls
from svclib.conversion.diffwave_files import Denoising, Generation, Interpolation
from svclib.features.content_features import UnitSettings
from svclib.features.extract import FeatureSettings
from svclib.models.ddsp.model import DdspSettings
from svclib.models.diffusion.model import DiffusionSettings
from svclib.models.diffusion.samplers import SamplingOptions
from svclib.models.diffwave.model import DiffWaveSettings
from svclib.models.vocoders.harmonic import HarmonicSettings
from svclib.models.vocoders.nsf_hifigan import NsfSettings
from svclib.training.session import SessionOptions, TrainingSettings

FILE = Path(__file__).with_name("settings.json")
CLASSES = (FeatureSettings, DdspSettings, DiffusionSettings, HarmonicSettings, DiffWaveSettings, TrainingSettings)
CLASSES += (SessionOptions, SamplingOptions, Controls, Generation, Denoising, Interpolation, LessonOptions)
CLASSES += (MelConfig, UnitSettings, NsfSettings)


def described(field: dataclasses.Field) -> str:
    """Default and range of a field, and of a control the step of its slider and its menu."""
    default = "needed" if field.default is dataclasses.MISSING else repr(field.default)
    low, high = field.metadata.get("low"), field.metadata.get("high")
    shown = {k: v for k, v in field.metadata.get("control", {}).items() if k in ("step", "suggestions", "flags")}
    more = [f"{low!r} to {high!r}"] * (low is not None) + [f"{k} {v!r}" for k, v in shown.items()]
    return "; ".join([default, *more])


def all_settings() -> dict[str, dict[str, str]]:
    """Class -> field -> what is promised of it."""
    return {cls.__name__: {f.name: described(f) for f in dataclasses.fields(cls)} for cls in CLASSES}


def test_defaults_and_ranges_are_as_promised():
    assert all_settings() == json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(json.dumps(all_settings(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
