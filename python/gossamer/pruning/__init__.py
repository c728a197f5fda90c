"""Pruning that ends in a smaller network, and post-training passes on calibration data."""

from gossamer.pruning.attention import HeadAttention
from gossamer.pruning.report import LayerChange, ShrinkReport
from gossamer.pruning.shrinking import shrink

__all__ = ["HeadAttention", "LayerChange", "ShrinkReport", "shrink"]
