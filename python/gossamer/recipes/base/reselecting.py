"""Masks of patterns from outside the package, moved by their own selection.

What stays outranks what may grow, and the selection keeps what its pattern allows. It needs dense
scores; the package's own patterns move by their entries, see `slots`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.masks.selection import select, spread
from gossamer.recipes.base.slots import Slots, drop
from gossamer.weight import SparseWeight
from gossamer.weight.positions import structure_of

__all__ = ["reselect"]


def reselect(weight: SparseWeight, slots: Slots, share: float, growth: Tensor) -> Structure | None:
    """Return the structure without the smallest slots and with others in their place.

    Args:
        weight: the weight; it does not change.
        slots: its slots.
        share: share of the kept slots that lose their rank.
        growth: [slots], finite; of the slots without a rank the largest grow.

    Returns:
        The structure; None if the mask stays what it is.

    Raises:
        PatternError: the selection fails, or returns no mask of its pattern.
    """
    before = weight.structure
    values = weight.values.detach()
    ids, size = slots.kept(values, backend.coordinates(before))
    stays = drop(size, int(share * len(ids)))
    # Growth in [0, 1], what stays above it, by its size: float64, so that no rank is lost.
    score = growth.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    score = (score - score.min()) / (score.max() - score.min()).clamp_min(1e-300)
    kept = size[stays].nan_to_num(nan=torch.inf).clamp_max(1e300)
    score[ids[stays]] = 2.0 + kept / kept.max().clamp_min(1e-300) if len(kept) else kept
    shape = slots.rows // slots.height, slots.cols // slots.width
    mask = spread(select(score.view(shape), slots.pattern), slots.height, slots.width)
    new = structure_of(mask, slots.pattern, weight.shape)
    same = torch.equal(new.indices, before.indices)
    if new.indptr is not None and before.indptr is not None:
        same = same and torch.equal(new.indptr, before.indptr)
    return None if same else new
