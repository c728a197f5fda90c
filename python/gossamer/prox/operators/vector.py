"""Compiled in-place operators on all entries of a tensor together: selections and projections.

A NaN in an input raises before anything is changed. So does an infinity, except in `top_k_`.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from gossamer.backend import prox as kernels
from gossamer.errors import DTypeError
from gossamer.prox.operators.elementwise import in_place

Array = TypeVar("Array", Tensor, np.ndarray)


def top_k_(x: Array, k: int) -> Array:
    """Keep the k entries of largest absolute value, in place; among equal entries the first.

    Args:
        x: float32 or float64, any shape and strides; the order is row-major.
        k: number of entries to keep, at least 0; if there are fewer, all are kept.

    Returns:
        `x`; the other entries are exactly +0.0.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64, or `k` is not an integer.
        ShapeError: `x` is empty.
        ArgumentError: `x` is read-only, has a NaN, or `k` is negative.

    Example:
        >>> import torch
        >>> top_k_(torch.tensor([1.0, -3.0, 1.0, 2.0]), 3)
        tensor([ 1., -3.,  0.,  2.])
    """
    if not isinstance(k, int | np.integer):
        raise DTypeError(f"got k={k!r}; an integer is needed")
    at_most = min(int(k), 2**62)
    return in_place(x, lambda v: kernels.top_k(v, max(at_most, -1)))


def l1_ball_(x: Array, radius: float) -> Array:
    """Project onto sum |x| <= radius, in place.

    Args:
        x: float32 or float64, any shape and strides.
        radius: finite, at least 0.

    Returns:
        `x`.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty.
        ArgumentError: `x` is read-only, has a NaN or an infinity, or the radius is out of range.

    Reference:
        Duchi, Shalev-Shwartz, Singer and Chandra 2008; Condat 2016, by Newton's iteration.

    Example:
        >>> import torch
        >>> l1_ball_(torch.tensor([3.0, -1.0, 0.5]), 2.0)
        tensor([2., 0., 0.])
    """
    return in_place(x, lambda v: kernels.l1_ball(v, float(radius)))


def simplex_(x: Array, radius: float) -> Array:
    """Project onto x >= 0, sum x = radius, in place.

    Args:
        x: float32 or float64, any shape and strides.
        radius: finite, at least 0.

    Returns:
        `x`.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty.
        ArgumentError: `x` is read-only, has a NaN or an infinity, or the radius is out of range.

    Reference:
        Duchi, Shalev-Shwartz, Singer and Chandra 2008; Condat 2016, by Newton's iteration.

    Example:
        >>> import torch
        >>> simplex_(torch.tensor([1.0, 0.5, -2.0]), 1.0)
        tensor([0.7500, 0.2500, 0.0000])
    """
    return in_place(x, lambda v: kernels.simplex(v, float(radius)))


def l1_minus_l2_(x: Array, lam: float, alpha: float) -> Array:
    """Apply the proximal operator of lam (|x|_1 - alpha |x|_2), in place: a global minimiser.

    Args:
        x: float32 or float64, any shape and strides.
        lam: finite, at least 0.
        alpha: in [0, 1].

    Returns:
        `x`. If only one entry stays, it is the first of the largest.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64.
        ShapeError: `x` is empty.
        ArgumentError: `x` is read-only, has a NaN or an infinity, or a parameter is out of range.

    Reference:
        Lou and Yan 2018, "Fast L1-L2 minimization via a proximal operator", lemma 1.

    Example:
        >>> import torch
        >>> l1_minus_l2_(torch.tensor([0.5, -2.0]), lam=1.0, alpha=1.0)
        tensor([ 0., -2.])
    """
    return in_place(x, lambda v: kernels.l1_minus_l2(v, float(lam), float(alpha)))
