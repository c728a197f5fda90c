"""Thinning: a sparse layer loses its smallest entries, and stores fewer.

There is no dense weight: values, gradient, optimizer state and structure become shorter. Fixed
masks over dense weights are in `fixed`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.backend import Layout, Structure
from gossamer.backend.growth import drop
from gossamer.masks import mask_from_score
from gossamer.masks.selection import is_own
from gossamer.patterns import NM, Pattern
from gossamer.recipes.base.slots import Slots
from gossamer.weight import SparseWeight

__all__ = ["thin"]


def thin(weight: SparseWeight, pattern: Pattern, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the largest kept entries, as many as a sparser pattern has.

    Args:
        weight: the weight; unchanged if it is sparser already.
        pattern: a pattern of the class of the weight's own, with the same slots.
        optimizer: the optimizer that holds the values, or None.
    """
    rows, cols = weight.shape
    if pattern == weight.pattern or pattern.count(rows, cols) > weight.nnz:
        return
    if not is_own(pattern):
        # What is dropped already is 0, and of equal scores a kept one must win.
        score = weight.to_dense().detach().abs().double() + weight.mask() * 1e-300
        weight.set_mask(mask_from_score(score, pattern), optimizer, pattern)
        return
    slots = Slots(rows, cols, weight.pattern)
    entries, values = slots.entries(weight.values.detach(), weight.structure)
    if isinstance(pattern, NM):
        kept = _largest_of_groups(entries, values, pattern.n)
    else:
        count = pattern.count(rows, cols) // (slots.height * slots.width)
        stays = drop(entries, values, len(entries.indices) - count)
        kept = _staying(entries, stays)
    structure = Slots(rows, cols, pattern).spread(kept, weight.structure)
    weight.set_mask(structure, optimizer, pattern)


def _staying(entries: Structure, stays: Tensor) -> Structure:
    before = torch.cat([stays.new_zeros(1, dtype=torch.int32), stays.cumsum(0, dtype=torch.int32)])
    pointers = None if entries.indptr is None else before[entries.indptr.long()]
    return Structure(entries.layout, entries.indices[stays], pointers)


def _largest_of_groups(entries: Structure, values: Tensor, n: int) -> Structure:
    """Keep n of each group; the entries of a group follow one another."""
    given = entries.layout
    size = values.abs().double().view(-1, given.vector).sum(1).view(-1, given.n)
    # A NaN is the largest, and of equal entries the first stays.
    order = size.argsort(dim=1, descending=True, stable=True)[:, :n]
    stays = torch.zeros(size.shape, dtype=torch.bool).scatter_(1, order, value=True)
    layout = Layout(given.rows, given.cols, given.vector, given.block_cols, n, given.m)
    return Structure(layout, entries.indices[stays.flatten()], None)
