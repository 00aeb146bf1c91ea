"""Recordings, their quality, and the prepared dataset."""
