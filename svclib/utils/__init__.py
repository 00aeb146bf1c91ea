"""Files, presets, progress, random numbers: nothing about sound."""
