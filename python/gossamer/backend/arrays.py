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
from gossamer.errors import ArgumentError, DeviceError, DTypeError, ShapeError

Array = Any
"""A torch tensor or a NumPy array."""

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
"""The dtypes of the products and of the mask kernels."""

FLOATING = (*FLOATS, torch.float16)
"""The dtypes of what torch itself computes."""

WIDE_FLOATS = (torch.float32, torch.float64)
"""The dtypes of proximal operators, codes and transport."""

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
    filled: bool = False,
    contiguous: bool = False,
    writable: bool = False,
    numpy: bool = False,
    device: bool = False,
) -> Any:
    """Return x without its graph if it is what a kernel can take.

    Args:
        x: The argument.
        name: Its name in the error.
        rank: Dimensions that it must have; None allows any.
        dtypes: Dtypes that it may have; None allows all real ones.
        filled: Whether it must have an entry.
        contiguous: Whether it must be contiguous.
        writable: Whether it is changed in place, which a read-only array forbids.
        numpy: Whether a NumPy array is allowed beside a torch tensor.
        device: Whether it must have memory on a device that a module is registered for; without,
            the compiled module checks that.

    Returns:
        `x.detach()` for a tensor, x itself for an array.

    Raises:
        DTypeError: x has another type, layout or dtype.
        ShapeError: x has another rank, is empty, or is not contiguous.
        ArgumentError: x is read-only.
        DeviceError: x is on a device without a module, or its memory was freed.

    Example:
        >>> check_array(torch.ones(2, 3), "weight", rank=2).shape
        torch.Size([2, 3])
        >>> check_array(torch.ones(2), "weight", rank=2)
        Traceback (most recent call last):
        gossamer.errors.ShapeError: weight has shape [2]; 2 dimensions are needed: add some, for
        example with [None]
    """
    if isinstance(x, torch.Tensor):
        if x.layout is not torch.strided or x.is_nested or x.is_quantized:
            raise DTypeError(
                f"{name} has layout {x.layout} and dtype {x.dtype}; a dense tensor is needed: call "
                ".to_dense() (or .dequantize())"
            )
        real, ndim, size = not x.is_complex(), x.dim(), x.numel()
        own = x.is_contiguous() if contiguous else True
    elif numpy and isinstance(x, np.ndarray if writable else np.ndarray | np.generic):
        if isinstance(x, np.ma.MaskedArray):
            raise DTypeError(
                f"{name} is a masked array, whose mask the kernels do not read: pass "
                "array[~array.mask] or array.filled(0)"
            )
        real, ndim, size = x.dtype.kind in "fiub", x.ndim, x.size
        own = x.flags.c_contiguous if contiguous else True
    else:
        kinds = "a torch tensor or a NumPy array" if numpy else "a torch tensor"
        raise DTypeError(
            f"{name} is a {type(x).__name__}; {kinds} is needed: convert it with torch.as_tensor"
        )
    if dtypes is None and not real:
        raise DTypeError(
            f"{name} has dtype {x.dtype}; real numbers are needed: convert it first (complex ones "
            "with torch.view_as_real)"
        )
    if dtypes is not None and x.dtype not in dtypes and str(x.dtype) not in _names(dtypes):
        *others, last = _names(dtypes)
        raise DTypeError(
            f"{name} has dtype {x.dtype}; {', '.join(others) + ' or ' if others else ''}{last} is "
            f"needed: convert it, for example with {_conversion(x, dtypes[0])}"
        )
    if rank is not None and ndim != rank:
        fit = f"merge some, for example with .flatten({rank - 1})"
        raise ShapeError(
            f"{name} has shape {list(x.shape)}; {rank} dimensions are needed: "
            f"{fit if ndim > rank else 'add some, for example with [None]'}"
        )
    if filled and not size:
        raise ShapeError(f"{name} is empty, of shape {list(x.shape)}; give at least one entry")
    if not own:
        raise ShapeError(f"{name} has gaps in memory; it must be contiguous: call .contiguous()")
    if not isinstance(x, torch.Tensor):
        if writable and not x.flags.writeable:
            raise ArgumentError(f"{name} is read-only; it is changed in place: pass a .copy()")
        return x
    if device:
        _check_device(x, name)
    return x.detach()


def _names(dtypes: Sequence[torch.dtype]) -> list[str]:
    return [str(dtype).removeprefix("torch.") for dtype in dtypes]


def _conversion(x: Array, dtype: torch.dtype) -> str:
    if isinstance(x, torch.Tensor):
        return f".to({dtype})"
    return f'.astype("{_names([dtype])[0]}")'


def _check_device(x: torch.Tensor, name: str) -> None:
    if not is_registered(x):
        raise DeviceError(
            f"{name} is on {x.device}; the kernels run on {' and '.join(devices())}: move it, for "
            "example with .cpu()"
        )
    if x.is_cpu and x.numel() and not torch.compiler.is_compiling() and not _bytes_of(x):
        raise DeviceError(f"{name} has sizes but no memory: its storage was freed; restore it")


def _bytes_of(x: torch.Tensor) -> int:
    try:
        return x.untyped_storage().nbytes()
    except NotImplementedError:  # under vmap a tensor has no storage of its own
        return 1


__all__ = [
    "FLOATING",
    "FLOATS",
    "WIDE_FLOATS",
    "Array",
    "check_array",
    "empty",
    "rows_of",
    "tensor_of",
]
