"""Pruning to a smaller dense network, post-training pruning on data, scores, and what cuts cost."""

from gossamer.pruning.attention import HeadAttention
from gossamer.pruning.essential import PATTERNS, Essential, Point, essential
from gossamer.pruning.merging import Merged, MergedLayer, merge_scales, optimal_prune
from gossamer.pruning.multihead import FewerHeads
from gossamer.pruning.nettrim import Trimmed, TrimmedLayer, net_trim, net_trim_layer
from gossamer.pruning.ranking import by_row, global_shares
from gossamer.pruning.report import LayerChange, ShrinkReport
from gossamer.pruning.resizing import resize_like
from gossamer.pruning.row_groups import group_hidden
from gossamer.pruning.scores import drawn, fisher, grasp, snip, wanda
from gossamer.pruning.searching import RandomSearch, random_scores, random_search
from gossamer.pruning.shrinking import shrink
from gossamer.pruning.structured import prune
from gossamer.pruning.synflow import synflow
from gossamer.pruning.tracking import SmallWeights
from gossamer.pruning.updates import Overlap, changed, chosen, overlap, stable_ranks

__all__ = [
    "PATTERNS",
    "Essential",
    "FewerHeads",
    "HeadAttention",
    "LayerChange",
    "Merged",
    "MergedLayer",
    "Overlap",
    "Point",
    "RandomSearch",
    "ShrinkReport",
    "SmallWeights",
    "Trimmed",
    "TrimmedLayer",
    "by_row",
    "changed",
    "chosen",
    "drawn",
    "essential",
    "fisher",
    "global_shares",
    "grasp",
    "group_hidden",
    "merge_scales",
    "net_trim",
    "net_trim_layer",
    "optimal_prune",
    "overlap",
    "prune",
    "random_scores",
    "random_search",
    "resize_like",
    "shrink",
    "snip",
    "stable_ranks",
    "synflow",
    "wanda",
]
