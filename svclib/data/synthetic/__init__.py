"""Synthetic singers with known F0, loudness and phonemes."""
