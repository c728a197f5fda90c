"""What the products check before torch computes: kinds, sizes, dtypes and devices, no contents.

The texts are those of the compiled modules. Contents are not read, which would wait for the device;
`places` keeps whatever they are inside the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.backend.arrays import FLOATING, FLOATS, tensor_of
from gossamer.backend.composite import places
from gossamer.errors import DeviceError, DTypeError, ShapeError, StructureError


@dataclass
class Weight:
    """A weight whose arguments fit one another."""

    layout: Any
    indices: Tensor
    indptr: Tensor | None
    values: Tensor

    def at(self) -> Tensor:
        """Where each value lies in the flat dense matrix, int64 [nnz]."""
        return places.coordinates(self.layout, self.indices, self.indptr)

    def dense(self) -> Tensor:
        """The matrix [rows, cols]."""
        rows, cols = self.layout.rows, self.layout.cols
        flat = self.values.new_zeros(rows * cols)
        return flat.index_copy_(0, self.at(), self.values).view(rows, cols)


def structure(layout: Any, indices: Any, indptr: Any) -> None:
    """Raise unless indices and pointers have the kinds and sizes that the layout needs."""
    _vector(indices, "indices", torch.uint8)
    if layout.m:
        if indptr is not None:
            raise StructureError("indptr was given for an N:M layout; pass None")
        entries = layout.panels * (layout.cols // layout.m) * layout.n
        if len(indices) != entries:
            raise StructureError(
                f"indices has {len(indices)} elements; {entries} are needed: build the weight "
                "again from a mask"
            )
        return
    _vector(indptr, "indptr", torch.int32)
    needed = layout.blocks * layout.panels + 1
    if len(indptr) != needed:
        raise StructureError(
            f"indptr has {len(indptr)} elements; blocks * panels + 1 = {needed} are needed: build "
            "the weight again from a mask"
        )


def weight(layout: Any, indices: Any, indptr: Any, values: Any, who: str = "values") -> Weight:
    """Return the weight, or raise."""
    structure(layout, indices, indptr)
    v = tensor(values, who)
    nnz = len(indices) * layout.vector
    if v.dim() != 1 or not v.is_contiguous() or len(v) != nnz:
        raise ShapeError(
            f"{who} must be a contiguous vector of {nnz} elements (entries * vector), got "
            f"{v.numel()}"
        )
    ids, pointers = tensor_of(indices), None if indptr is None else tensor_of(indptr)
    _same_device(v, (ids, "indices"), (pointers, "indptr"))
    return Weight(layout, ids, pointers, v)


def transposed(w: Weight, layout: Any, indices: Any, indptr: Any, perm: Any) -> Weight:
    """Return W^T with the values that its permutation names, or raise."""
    structure(layout, indices, indptr)
    _vector(perm, "perm", torch.int32)
    nnz = len(indices) * layout.vector
    shape = (layout.rows, layout.cols)
    if shape != (w.layout.cols, w.layout.rows) or nnz > len(w.values) or len(perm) != nnz:
        raise StructureError(
            "the transposed structure does not belong to this weight: build it again"
        )
    order = tensor_of(perm)
    if nnz:
        order = order.clamp(0, len(w.values) - 1)
    return Weight(layout, tensor_of(indices), tensor_of(indptr), w.values.index_select(0, order))


def operand(x: Any, who: str, like: Tensor, rows: int, cols: int) -> Tensor:
    """Return a matrix of the dtype and device of `like`, or raise; rows of -1 are any number."""
    t = tensor(x, who)
    if t.dim() != 2:
        raise ShapeError(
            f"{who} has {t.dim()} dimensions; 2 are needed: reshape it to [batch, features]"
        )
    if t.dtype != like.dtype:
        raise DTypeError(
            f"{who} has dtype {_name(t)} and values {_name(like)}; one call uses one dtype: "
            "convert one of them"
        )
    if (rows >= 0 and len(t) != rows) or t.shape[1] != cols:
        raise ShapeError(
            f"{who} is {len(t)} x {t.shape[1]}; needed is {'batch' if rows < 0 else rows} x {cols}"
        )
    _same_device(like, (t, who))
    return t


def contiguous(x: Any, who: str, like: Tensor, layout: Any) -> Tensor:
    """Return the dense matrix of a copy between it and values, or raise."""
    t = alike(x, who, like)
    if t.shape != (layout.rows, layout.cols) or not t.is_contiguous():
        raise ShapeError(f"{who} must be a contiguous matrix of {layout.rows} x {layout.cols}")
    return t


def rows(x: Any, who: str, like: Tensor, layout: Any) -> Tensor:
    """Return a dense matrix of the layout's sizes, of the dtype and device of `like`, or raise."""
    t = alike(x, who, like)
    if t.shape != (layout.rows, layout.cols):
        raise ShapeError(
            f"{who} has shape {list(t.shape)}; the structure is of [{layout.rows}, {layout.cols}]"
        )
    return t


def bias(x: Any, like: Tensor, rows: int) -> Tensor:
    """Return the bias, or raise."""
    t = tensor_of(_vector(x, "bias", like.dtype))
    if len(t) != rows:
        raise ShapeError(f"bias has {len(t)} elements; the weight has {rows} rows")
    _same_device(like, (t, "bias"))
    return t


def tensor(x: Any, who: str) -> Tensor:
    """Return x as a tensor of a floating dtype without its graph, or raise."""
    t = tensor_of(x).detach()
    if t.is_meta:
        raise DeviceError(f"{who} is on device meta, which holds no data: move it to a device")
    possible = FLOATS if t.is_cpu else FLOATING
    if t.dtype not in possible:
        names = [str(dtype).removeprefix("torch.") for dtype in possible]
        raise DTypeError(
            f"{who} has dtype {_name(t)}; {', '.join(names[:-1])} or {names[-1]} is needed: "
            "convert it with .float()"
        )
    return t


def _vector(x: Any, who: str, dtype: torch.dtype) -> Any:
    t = None if x is None else tensor_of(x)
    if t is None or t.dtype != dtype:
        given = "None" if t is None else f"dtype {_name(t)}"
        raise DTypeError(f"{who} has {given}; {str(dtype).removeprefix('torch.')} is needed")
    if t.dim() != 1 or not t.is_contiguous():
        raise ShapeError(f"{who} must be one-dimensional and contiguous: call .contiguous()")
    return t.detach()


def alike(x: Any, who: str, like: Tensor) -> Tensor:
    """Return x of the dtype and device of `like`, or raise."""
    t = tensor(x, who)
    if t.dtype != like.dtype:
        raise DTypeError(
            f"{who} has dtype {_name(t)} and values {_name(like)}; they must be the same"
        )
    _same_device(like, (t, who))
    return t


def _same_device(like: Tensor, *others: tuple[Tensor | None, str]) -> None:
    for other, who in others:
        if other is not None and other.device != like.device:
            raise DeviceError(
                f"{who} is on {other.device} and values on {like.device}; one call runs on one "
                "device"
            )


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


__all__ = [
    "Weight",
    "alike",
    "bias",
    "contiguous",
    "operand",
    "rows",
    "structure",
    "tensor",
    "transposed",
    "weight",
]
