"""Sparsifiers: pick the mask of a pattern from a score, and share a budget among layers."""

from gossamer.sparsifiers.masks import (
    Distribution,
    allocate,
    check_mask,
    magnitude_mask,
    mask_from_score,
    random_mask,
)

__all__ = [
    "Distribution",
    "allocate",
    "check_mask",
    "magnitude_mask",
    "mask_from_score",
    "random_mask",
]
