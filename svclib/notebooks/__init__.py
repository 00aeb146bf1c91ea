"""Panels of the notebooks; the only importers of ipywidgets."""
