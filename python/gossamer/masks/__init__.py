"""Masks: scores and selections that choose the mask of a pattern, and sparsity per layer."""

from gossamer.masks.butterfly import flat_butterfly as flat_butterfly
from gossamer.masks.double_prune import double_prune, double_prune_mask
from gossamer.masks.draw import random_mask, random_structure
from gossamer.masks.n_of_m import add_pruned_, mask_difference, select_nm
from gossamer.masks.obey import check_structure
from gossamer.masks.row_groups import group_rows
from gossamer.masks.score import (
    Distribution,
    allocate,
    check_mask,
    magnitude_mask,
    mask_from_score,
)
from gossamer.masks.selection import top
from gossamer.masks.transposable import TileMethod, is_transposable, transposable_mask

__all__ = [
    "Distribution",
    "TileMethod",
    "add_pruned_",
    "allocate",
    "check_mask",
    "check_structure",
    "double_prune",
    "double_prune_mask",
    "group_rows",
    "is_transposable",
    "magnitude_mask",
    "mask_difference",
    "mask_from_score",
    "random_mask",
    "random_structure",
    "select_nm",
    "top",
    "transposable_mask",
]
