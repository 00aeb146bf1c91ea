"""Vocoders: log-mel and F0 to audio."""

from svclib.models.vocoders.harmonic import HarmonicSettings as HarmonicSettings
