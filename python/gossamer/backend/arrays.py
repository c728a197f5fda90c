"""Arrays as the compiled modules take them: one check of arguments, and memory for outputs.

An array is a torch tensor or a NumPy array. The compiled modules check sizes, dtypes and pointers
once more; `check_array` is for what must hold before, and for errors that name the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gossamer.backend.registry import devices, is_registered
from gossamer.errors import DeviceError, DTypeError, ShapeError

Array = Any
"""A torch tensor or a NumPy array."""

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
"""The dtypes of the products and of the mask kernels."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return uninitialised memory of the dtype, device and library of `like`.

    Raises:
        DTypeError: `like` is neither a tensor nor an array.
    """
    if type(like) in _PLAIN and like.layout is torch.strided and not like.is_nested:
        return like.new_empty(shape)
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype)
    raise DTypeError(
        f"got {type(like).__name__}; a torch CPU tensor or a NumPy array is needed: "
        "convert it with torch.as_tensor"
    )


def rows_of(x: Array) -> int:
    """Return the first size of x, or 0. The compiled module rejects invalid x and names it."""
    try:
        return int(x.shape[0]) if getattr(x, "ndim", 0) else 0
    except RuntimeError:
        return 0


def tensor_of(x: Array) -> torch.Tensor:
    """Return the tensor, or a tensor that shares the memory of a NumPy array."""
    return x if isinstance(x, torch.Tensor) else torch.from_numpy(x)


def check_array(
    x: object,
    name: str,
    *,
    rank: int | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    contiguous: bool = False,
    numpy: bool = False,
    device: bool = False,
) -> Any:
    """Return x without its graph if it is what a kernel can take.

    Args:
        x: The argument.
        name: Its name in the error.
        rank: Dimensions that it must have; None allows any.
        dtypes: Dtypes that it may have; None allows all real ones for an array, and any for a
            tensor.
        contiguous: Whether it must be contiguous.
        numpy: Whether a NumPy array is allowed beside a torch tensor.
        device: Whether it must have memory on a device that a module is registered for; without,
            the compiled module checks that.

    Returns:
        `x.detach()` for a tensor, x itself for an array.

    Raises:
        DTypeError: x has another type, layout or dtype.
        ShapeError: x has another rank, or is not contiguous.
        DeviceError: x is on a device without a module, or its memory was freed.

    Example:
        >>> check_array(torch.ones(2, 3), "weight", rank=2).shape
        torch.Size([2, 3])
        >>> check_array(torch.ones(2), "weight", rank=2)
        Traceback (most recent call last):
        gossamer.errors.ShapeError: weight has shape [2]; 2 dimensions are needed: reshape it
    """
    if isinstance(x, torch.Tensor):
        if x.layout is not torch.strided or x.is_nested or x.is_quantized:
            raise DTypeError(
                f"{name} has layout {x.layout} and dtype {x.dtype}; a dense tensor is needed: call "
                ".to_dense() (or .dequantize())"
            )
        ndim, own = x.dim(), x.is_contiguous() if contiguous else True
    elif numpy and isinstance(x, np.ndarray | np.generic):
        _check_numpy(x, name)
        ndim, own = x.ndim, x.flags.c_contiguous if contiguous else True
    else:
        kinds = "a torch tensor or a NumPy array" if numpy else "a torch tensor"
        raise DTypeError(
            f"{name} is a {type(x).__name__}; {kinds} is needed: convert it with torch.as_tensor"
        )
    if dtypes is not None and x.dtype not in dtypes and str(x.dtype) not in _names(dtypes):
        raise DTypeError(
            f"{name} has dtype {x.dtype}; {' or '.join(_names(dtypes))} is needed: convert it, for "
            f"example with .{_names(dtypes)[0].removesuffix('32')}()"
        )
    if rank is not None and ndim != rank:
        raise ShapeError(
            f"{name} has shape {list(x.shape)}; {rank} dimensions are needed: reshape it"
        )
    if not own:
        raise ShapeError(f"{name} has gaps in memory; it must be contiguous: call .contiguous()")
    if not isinstance(x, torch.Tensor):
        return x
    if device:
        _check_device(x, name)
    return x.detach()


def _names(dtypes: Sequence[torch.dtype]) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


def _check_numpy(x: Any, name: str) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(
            f"{name} is a masked array, whose mask the kernels do not read: pass "
            "array[~array.mask] or array.filled(0)"
        )
    if x.dtype.kind not in "fiub":
        raise DTypeError(f"{name} has dtype {x.dtype}; real numbers are needed: convert it first")


def _check_device(x: torch.Tensor, name: str) -> None:
    if not is_registered(x):
        raise DeviceError(
            f"{name} is on {x.device}; the kernels run on {' and '.join(devices())}: move it, for "
            "example with .cpu()"
        )
    if x.is_cpu and x.numel() and not x.untyped_storage().nbytes():
        raise DeviceError(f"{name} has sizes but no memory: its storage was freed; restore it")


__all__ = ["FLOATS", "Array", "check_array", "empty", "rows_of", "tensor_of"]
