"""DDSP autoencoder."""

from svclib.models.ddsp.model import DdspSettings as DdspSettings
