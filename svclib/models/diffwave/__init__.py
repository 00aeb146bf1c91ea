"""Waveform diffusion (DiffWave)."""

from svclib.models.diffwave.model import DiffWaveSettings as DiffWaveSettings
