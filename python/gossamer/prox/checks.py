"""What an operator can work on: plain memory, each entry at a place of its own.

Every check raises before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import DeviceError, DTypeError, ShapeError


def check_plain(x: object, who: str = "x") -> None:
    """Raise unless `x` is a dense tensor on the CPU, or an array, of real numbers.

    Args:
        x: what was given.
        who: its name in the error.

    Raises:
        DTypeError: Another type, a masked array, a sparse or nested tensor, complex numbers, text.
        DeviceError: A tensor without memory that the CPU can read.
    """
    if isinstance(x, Tensor):
        if x.is_nested or x.layout != torch.strided or x.is_quantized:
            raise DTypeError(
                f"{who} is a tensor of layout {x.layout} and {x.dtype}; a dense one is needed: "
                "call .to_dense(), or .dequantize()"
            )
        if x.is_complex():
            raise DTypeError(f"{who} is {x.dtype}; real numbers are needed: torch.view_as_real")
        if x.device.type != "cpu":
            raise DeviceError(f"{who} is on {x.device}; the CPU is needed: move it with .cpu()")
        if x.numel() and not x.untyped_storage().nbytes():
            raise DeviceError(f"{who} has sizes but no memory, its storage was freed: restore it")
    elif not isinstance(x, np.ndarray | np.generic):
        raise DTypeError(
            f"{who} is a {type(x).__name__}; a torch tensor or a NumPy array is needed (of a "
            "sparse weight, its values: penalty.on(weight).prox_(weight.values))"
        )
    elif isinstance(x, np.ma.MaskedArray):
        raise DTypeError(
            f"{who} is a masked array, whose mask the operators do not see: give them "
            "array[~array.mask], or array.filled(0)"
        )
    elif x.dtype.kind not in "fiub":
        raise DTypeError(f"{who} has dtype {x.dtype}; real numbers are needed: convert it first")


def is_number(value: object) -> bool:
    """Whether `value` is one real number, and not True or False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def share_memory(sizes: Sequence[int], strides: Sequence[int], width: int = 1) -> bool:
    """Whether two entries lie, fully or in part, at one place: not to be changed in place.

    Args:
        sizes: of the axes.
        strides: of the axes, in any unit.
        width: of an entry, in that unit.

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
    places = np.zeros(1, dtype=np.int64)  # axes that interleave: rare, and looked at one by one
    for stride, n in axes:
        places = np.add.outer(places, stride * np.arange(n)).reshape(-1)
    return bool((np.diff(np.sort(places)) < width).any())


def check_own_places(x: Tensor | np.ndarray[Any, Any], who: str = "x") -> None:
    """Raise if entries of `x` share memory, as those of expanded tensors and sliding windows do.

    Raises:
        ShapeError: They do.
    """
    width = 1 if isinstance(x, Tensor) else x.itemsize
    strides = x.stride() if isinstance(x, Tensor) else x.strides
    if share_memory(x.shape, strides, width):
        raise ShapeError(
            f"{who} is expanded, or has overlapping strides: its entries share memory and cannot "
            "be changed in place: call .clone() or .copy() first"
        )


__all__ = ["check_own_places", "check_plain", "is_number", "share_memory"]
