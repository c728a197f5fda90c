"""Checks of an operator's input: dense memory in which no two entries overlap.

Every check raises before the operator changes anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossamer.arguments import is_number as is_number
from gossamer.backend import check_array
from gossamer.backend.arrays import WIDE_FLOATS
from gossamer.errors import DTypeError, PenaltyError, ShapeError


def check_plain(x: object, who: str = "x", **more: Any) -> None:
    """Raise unless `x` is a dense tensor of real numbers on a supported device, or such an array.

    Args:
        x: the argument.
        who: the argument's name in the error.
        more: what else `check_array` checks.

    Raises:
        DTypeError: `x` has another type, is masked, sparse or nested, or holds complex numbers or
            text.
        DeviceError: `x` is a tensor without memory, or on a device without kernels.
    """
    if isinstance(x, nn.Module):
        raise DTypeError(
            f"{who} is a {type(x).__name__}; pass its values: "
            "penalty.on(weight).prox_(weight.values)"
        )
    check_array(x, who, numpy=True, device=True, **more)


def share_memory(sizes: Sequence[int], strides: Sequence[int], width: int = 1) -> bool:
    """Whether two entries overlap in memory, fully or in part, which forbids in-place operators.

    Args:
        sizes: size of each axis.
        strides: stride of each axis, in any unit.
        width: width of an entry in the same unit.

    Returns:
        True if any two entries overlap.

    Example:
        >>> share_memory((3, 3), (1, 1)), share_memory((3, 3), (1, 3))
        (True, False)
    """
    axes = sorted((abs(stride), n) for stride, n in zip(strides, sizes, strict=True) if n > 1)
    reach = width - 1
    for stride, n in axes:
        if stride <= reach:
            break
        reach += stride * (n - 1)
    else:
        return False
    if axes[0][0] == 0:
        return True
    places = np.zeros(1, dtype=np.int64)  # rare: axes that interleave need all offsets
    for stride, n in axes:
        places = np.add.outer(places, stride * np.arange(n)).reshape(-1)
    return bool((np.diff(np.sort(places)) < width).any())


def check_own_places(x: Tensor | np.ndarray[Any, Any], who: str = "x") -> None:
    """Raise if entries of `x` share memory, as in expanded tensors and sliding windows.

    Args:
        x: a tensor or an array.
        who: the argument's name in the error.

    Raises:
        ShapeError: two entries share memory.
    """
    width = 1 if isinstance(x, Tensor) else x.itemsize
    strides = x.stride() if isinstance(x, Tensor) else x.strides
    if share_memory(x.shape, strides, width):
        raise ShapeError(
            f"{who} is expanded or has overlapping strides; its entries share memory and cannot be "
            "changed in place: call .clone() or .copy() first"
        )


def check_entries(x: object) -> None:
    """Raise unless `x` is a tensor or array that can be changed in place.

    Raises:
        DTypeError: `x` is not a float32 or float64 tensor or array.
        DeviceError: `x` is a tensor without memory, or on a device without kernels.
        ShapeError: `x` is empty.
        ArgumentError: `x` is read-only.
    """
    check_plain(x, dtypes=WIDE_FLOATS, filled=True, writable=True)


def check_metric(metric: Any, x: Any) -> None:
    """Raise unless `metric` has one positive number per entry of `x`, in x's library and dtype.

    Raises:
        DTypeError: the libraries or dtypes differ.
        ShapeError: the shapes differ.
        PenaltyError: an entry is not positive.
    """
    if type(metric) is not type(x) and not (isinstance(metric, Tensor) and isinstance(x, Tensor)):
        raise DTypeError(
            f"metric is a {type(metric).__name__} and x a {type(x).__name__}; the same library is "
            "needed for both"
        )
    check_plain(metric, "metric")
    if metric.dtype != x.dtype:
        raise DTypeError(f"metric is {metric.dtype} and x {x.dtype}; convert it to x's dtype")
    if tuple(metric.shape) != tuple(x.shape):
        raise ShapeError(
            f"metric has shape {tuple(metric.shape)} and x {tuple(x.shape)}; one number per entry "
            "of x is needed"
        )
    if not (metric > 0).all():
        raise PenaltyError("metric has an entry that is not positive; all must be > 0")


def spread_weights(weights: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weights of entries as a vector in row-major order; a copy or a view.

    Args:
        weights: one per entry, in any shape, or of a shape that broadcasts to `shape`.
        shape: the shape of the entries.

    Returns:
        [numel], in the dtype of the weights.

    Raises:
        ShapeError: the weights fit neither way.

    Example:
        >>> spread_weights(torch.tensor([[1.0], [2.0]]), (2, 2))
        tensor([1., 1., 2., 2.])
    """
    if weights.numel() != math.prod(shape):
        try:
            weights = weights.broadcast_to(shape)
        except RuntimeError:
            raise ShapeError(
                f"weights have shape {list(weights.shape)} and the entries {list(shape)}; give one "
                "per entry, or a shape that broadcasts to theirs"
            ) from None
    return weights.reshape(-1)


def flat64(x: Any) -> Tensor:
    """The entries as a float64 vector in row-major order; a copy or a view."""
    if isinstance(x, Tensor):
        return x.detach().double().reshape(-1)
    return torch.from_numpy(np.array(x, dtype=np.float64)).reshape(-1)
