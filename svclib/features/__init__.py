"""Frame-wise features of a recording: log-mel, loudness, F0, voicing, content."""

from svclib.features.extract import FeatureSettings as FeatureSettings
from svclib.features.extract import MelContract as MelContract
