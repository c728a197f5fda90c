"""Checks of tensors from which a sparse weight is built or updated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DTypeError, ShapeError


def check_dtype(dtype: torch.dtype, who: str) -> None:
    """Raise DTypeError unless the kernels support this dtype."""
    if dtype not in FLOATS:
        raise DTypeError(
            f"{who}: {dtype} was given; use float32, float64 or bfloat16: convert with .to()"
        )


def check_dense(weight: Tensor, who: str = "weight") -> Tensor:
    """Return the detached matrix, after a check of its rank, dtype and device.

    Raises:
        DTypeError: the weight is not a dense tensor of a supported dtype.
        ShapeError: the weight is not a matrix.
        DeviceError: the weight is on a device without kernels.
    """
    if is_lazy(weight):
        raise ShapeError(f"{who} has no shape yet; run the model once, which gives it one")
    return check_array(weight, who, rank=2, dtypes=FLOATS, device=True)  # type: ignore[no-any-return]


def check_like(tensor: Tensor, who: str, shape: torch.Size) -> None:
    """Raise unless it is a dense tensor (DTypeError) of this shape (ShapeError)."""
    check_array(tensor, who)
    if tensor.shape != shape:
        raise ShapeError(
            f"{who} has shape {tuple(tensor.shape)}, the weight {tuple(shape)}; give one entry for "
            "each entry of the weight"
        )
