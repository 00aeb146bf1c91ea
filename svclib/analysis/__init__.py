"""Traces of sampling runs, comparisons, plots and pages."""
