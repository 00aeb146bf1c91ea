"""Diffusion model of log-mel spectrograms."""

from svclib.models.diffusion.model import DiffusionSettings as DiffusionSettings
