"""Compiled in-place operators on the ordered entries of each group, and simplices of groups.

The order is that of the entries in memory, or of the indices of an irregular group. A NaN or an
infinity in an input raises before anything is changed.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gossamer.backend import prox as kernels
from gossamer.errors import ShapeError
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.elementwise import in_place

Array = TypeVar("Array", Tensor, np.ndarray)


def isotonic_(
    x: Array, groups: Groups, *, falling: bool = False, metric: Array | None = None
) -> Array:
    """Replace each group by the nearest sequence that never falls, in place.

    Args:
        x: float32 or float64, any shape and strides.
        groups: groups of as many entries as `x` has.
        falling: True asks for a sequence that never rises.
        metric: a factor h > 0 of each square, in x's shape and dtype; None is 1.

    Returns:
        `x`.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64, or the metric has another dtype.
        ShapeError: `x` is empty, or the groups or the metric have another size.
        ArgumentError: `x` is read-only, or has a NaN or an infinity, or the metric is not positive.
        StructureError: pointers or indices are out of range.

    Reference:
        Ayer, Brunk, Ewing, Reid and Silverman 1955; Best and Chakravarti 1990, by pooling adjacent
        violators.

    Example:
        >>> isotonic_(torch.tensor([1.0, 3.0, 2.0, 4.0]), Groups(1, 1, 4))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    h = _like(metric, x)
    return in_place(x, lambda v: kernels.isotonic(v, h, groups, falling))


def total_variation_(x: Array, groups: Groups, lam: float, *, metric: Array | None = None) -> Array:
    """Apply the operator of lam sum |x_{i+1} - x_i| within each group, in place.

    Args:
        x: float32 or float64, any shape and strides.
        groups: groups of as many entries as `x` has.
        lam: finite, at least 0.
        metric: a factor h > 0 of each square, in x's shape and dtype; None is 1.

    Returns:
        `x`; entries of one piece are equal.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64, or the metric has another dtype.
        ShapeError: `x` is empty, or the groups or the metric have another size.
        ArgumentError: `x` is read-only, has a NaN or an infinity, the metric is not positive, or
            `lam` is out of range.
        StructureError: pointers or indices are out of range.

    Reference:
        Johnson 2013, "A dynamic programming algorithm for the fused lasso and L0-segmentation".

    Example:
        >>> total_variation_(torch.tensor([0.0, 1.0, 5.0, 5.0]), Groups(1, 1, 4), 1.0)
        tensor([1.0000, 1.0000, 4.5000, 4.5000])
    """
    h = _like(metric, x)
    return in_place(x, lambda v: kernels.total_variation(v, h, groups, float(lam)))


def simplices_(x: Array, groups: Groups, radius: float) -> Array:
    """Project each group onto x >= 0, sum x = radius, in place.

    Args:
        x: float32 or float64, any shape and strides.
        groups: groups of as many entries as `x` has.
        radius: finite, at least 0.

    Returns:
        `x`.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty, or the groups have another size.
        ArgumentError: `x` is read-only, has a NaN or an infinity, or the radius is out of range.
        StructureError: pointers or indices are out of range.

    Reference:
        Held, Wolfe and Crowder 1974, "Validation of subgradient optimization".

    Example:
        >>> simplices_(torch.tensor([[1.0, 0.5], [3.0, 0.0]]), Groups(1, 2, 2), 1.0)
        tensor([[0.7500, 0.2500],
                [1.0000, 0.0000]])
    """
    return in_place(x, lambda v: kernels.simplices(v, groups, float(radius)))


def in_groups(entries: Tensor, groups: Groups) -> Tensor:
    """The entries [numel], group after group; a copy or a view."""
    if groups.indices is not None:
        return entries[groups.indices]
    return entries.view(groups.outer, groups.count, groups.inner).transpose(0, 1).reshape(-1)


def from_groups(entries: Tensor, groups: Groups) -> Tensor:
    """The inverse of `in_groups`."""
    if groups.indices is not None:
        flat = torch.empty_like(entries)
        flat[groups.indices] = entries
        return flat
    return entries.view(groups.count, groups.outer, groups.inner).transpose(0, 1).reshape(-1)


def pieces(new: Tensor) -> Groups:
    """Consecutive entries as groups: `new` [numel] says where one begins; the first always does."""
    new = new.clone()
    new[:1] = True
    starts = torch.cat([new.nonzero().view(-1), torch.tensor([len(new)])])
    return Groups(1, len(starts) - 1, 1, starts, torch.arange(len(new)))


def _like(metric: Tensor | np.ndarray | None, x: Tensor | np.ndarray) -> Tensor | np.ndarray | None:
    if metric is None:
        return None
    if tuple(metric.shape) != tuple(x.shape):
        raise ShapeError(
            f"got a metric of shape {tuple(metric.shape)} for entries of shape {tuple(x.shape)}; "
            "they must be the same"
        )
    if isinstance(metric, Tensor):
        return metric.detach().contiguous().view(-1)
    return np.ascontiguousarray(metric).reshape(-1)
