"""Gossamer: a sparse-training engine for PyTorch."""

from importlib.metadata import version

__version__ = version("gossamer")
