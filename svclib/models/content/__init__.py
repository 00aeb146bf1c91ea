"""Content encoders: features independent of speaker and pitch. A new one is a file here and a line below."""

from svclib.models.content import bottleneck as bottleneck
from svclib.models.content import words as words
