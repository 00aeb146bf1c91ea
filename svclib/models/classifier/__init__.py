"""Classifier of short clips, for benchmarks."""
