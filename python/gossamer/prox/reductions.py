"""Sums, means and norms per group of entries, and checks of numbers per group.

All are float64 vectors with one number per group, in the order of the groups.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import PenaltyError, ShapeError
from gossamer.prox.groupings import Groups, size
from gossamer.prox.operators.groupwise import group_norms


def sums(entries: Tensor, groups: Groups) -> Tensor:
    """The sum of the entries [numel] of each group [count]."""
    if groups.indices is None or groups.indptr is None:
        return entries.view(groups.outer, groups.count, groups.inner).sum((0, 2))
    where = torch.arange(groups.count).repeat_interleave(groups.indptr.diff())
    total = entries.new_zeros(groups.count)
    return total.index_add_(0, where, entries[groups.indices])


def means(positive: Any, groups: Groups) -> Tensor:
    """The mean over each group of positive entries of any shape, float64 [count]."""
    squares = norms(positive**0.5, groups) ** 2
    return squares / sums(torch.ones(size(groups), dtype=torch.float64), groups)


def norms(x: Any, groups: Groups) -> Tensor:
    """The L2 norm of each group, float64 [count]; PenaltyError if one is not finite."""
    found = torch.as_tensor(group_norms(x, groups))
    check_finite(found)
    return found


def check_finite(found: Tensor) -> None:
    """Raise on NaN or infinity, which an operator would spread; a finite sum rules both out."""
    if not math.isfinite(float(found.sum())) and not torch.isfinite(found).all():
        raise PenaltyError(
            "a group has NaN or infinity, which would spread over all of its entries; nothing was "
            "changed: find the step that diverged"
        )


def magnitudes(x: Tensor, groups: Groups) -> Tensor:
    """Absolute values if each entry is a group (NaN stays NaN), else the norms of the groups."""
    return x.abs() if single_entries(groups) else norms(x, groups)


def single_entries(groups: Groups) -> bool:
    """Whether each entry is a group."""
    return groups.indices is None and groups.outer == groups.inner == 1


def check_count(per_group: Tensor, count: int, name: str) -> Tensor:
    """Return `per_group`; ShapeError unless it has one number per group."""
    if len(per_group) != count:
        raise ShapeError(
            f"{name} has {len(per_group)} numbers for {count} groups; give one number per group"
        )
    return per_group
