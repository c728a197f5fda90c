"""Pruning to a smaller dense network, and post-training pruning on calibration data."""

from gossamer.pruning.attention import HeadAttention
from gossamer.pruning.merging import Merged, MergedLayer, merge_scales, optimal_prune
from gossamer.pruning.multihead import FewerHeads
from gossamer.pruning.nettrim import Trimmed, TrimmedLayer, net_trim, net_trim_layer
from gossamer.pruning.report import LayerChange, ShrinkReport
from gossamer.pruning.resizing import resize_like
from gossamer.pruning.row_groups import group_hidden
from gossamer.pruning.scores import drawn, fisher, grasp, snip, wanda
from gossamer.pruning.shrinking import shrink
from gossamer.pruning.structured import prune

__all__ = [
    "FewerHeads",
    "HeadAttention",
    "LayerChange",
    "Merged",
    "MergedLayer",
    "ShrinkReport",
    "Trimmed",
    "TrimmedLayer",
    "drawn",
    "fisher",
    "grasp",
    "group_hidden",
    "merge_scales",
    "net_trim",
    "net_trim_layer",
    "optimal_prune",
    "prune",
    "resize_like",
    "shrink",
    "snip",
    "wanda",
]
