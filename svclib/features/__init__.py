"""Frame-wise features of a recording: log-mel, loudness, F0, voicing, content."""

from svclib.audio.mel import MelConfig as MelConfig
from svclib.features import whisper_features as whisper_features
from svclib.features.extract import FeatureSettings as FeatureSettings
