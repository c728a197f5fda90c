"""Sparsifiers: pick the mask of a pattern from a score, and share a budget among layers."""

from gossamer.sparsifiers.double_prune import double_prune, double_prune_mask
from gossamer.sparsifiers.masks import (
    Distribution,
    allocate,
    check_mask,
    magnitude_mask,
    mask_from_score,
    random_mask,
)
from gossamer.sparsifiers.mvue import MvueMethod, mvue, mvue_product
from gossamer.sparsifiers.select import add_pruned_, mask_difference, select_nm
from gossamer.sparsifiers.transposable import TileMethod, is_transposable, transposable_mask

__all__ = [
    "Distribution",
    "MvueMethod",
    "TileMethod",
    "add_pruned_",
    "allocate",
    "check_mask",
    "double_prune",
    "double_prune_mask",
    "is_transposable",
    "magnitude_mask",
    "mask_difference",
    "mask_from_score",
    "mvue",
    "mvue_product",
    "random_mask",
    "select_nm",
    "transposable_mask",
]
