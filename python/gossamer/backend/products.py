"""The compiled kernels as functions on torch CPU tensors and NumPy arrays. No autograd here.

This is the only module that imports ``gossamer._core``. Outputs are allocated here, in the library
of the inputs; every size, dtype and pointer is checked in C++ before a kernel runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gossamer import _core
from gossamer._core.products import Layout
from gossamer.errors import DTypeError, ShapeError, StructureError

Array = Any
"""A torch CPU tensor or a NumPy array."""


class Structure(NamedTuple):
    """Where the kept entries of a weight lie: the layout and its integer arrays.

    Attributes:
        layout: sizes; ``vector`` rows (a panel) share one list of kept columns.
        indices: uint8 [entries], the column of each entry inside its block of columns.
        indptr: int32 [blocks * panels + 1], the first entry of each (block, panel); None for N:M.
    """

    layout: Layout
    indices: Array
    indptr: Array | None

    @property
    def nnz(self) -> int:
        """Number of stored values: entries times vector."""
        return int(self.indices.shape[0]) * int(self.layout.vector)


class Transposed(NamedTuple):
    """The structure of W^T (one row a panel) and where its values stand among those of W.

    Attributes:
        structure: structure of the transpose.
        perm: int32; value ``i`` of the transpose is value ``perm[i]`` of the weight. Shorter than
            the weight's values where the transpose is pruned once more.
    """

    structure: Structure
    perm: Array


def _empty(shape: tuple[int, ...], like: Array) -> Array:
    if isinstance(like, torch.Tensor):
        return torch.empty(shape, dtype=like.dtype, device="cpu")
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype)
    raise DTypeError(
        f"got {type(like).__name__}; a torch CPU tensor or a NumPy array is needed: "
        "convert it with torch.as_tensor"
    )


def _rows(x: Array) -> int:
    # What is no array, of the wrong rank, or nested, is refused later with its name.
    try:
        return int(x.shape[0]) if getattr(x, "ndim", 0) else 0
    except RuntimeError:
        return 0


def _checked(structure: Structure) -> Structure:
    if type(structure) is not Structure or not isinstance(structure.layout, Layout):
        raise DTypeError(
            f"structure is a {type(structure).__name__}; a gossamer.backend.Structure is needed: "
            "build it with gossamer.backend.encode"
        )
    return structure


def _small_int(value: int, name: str) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise ShapeError(f"{name} is {value!r:.80}; a small integer is needed")
    return value


def encode(mask: Array, vector: int, n: int = 0, m: int = 0) -> Structure:
    """Builds the structure of a mask.

    Args:
        mask: bool [rows, cols], True = kept.
        vector: rows in a panel, 1, 4 or 8; the rows of a panel must have the same mask.
        n: kept entries in each group of ``m`` columns, or 0 for any mask.
        m: group size, or 0.

    Returns:
        The structure, with torch tensors.

    Raises:
        StructureError: the mask does not obey vector or n:m.
        ShapeError, DTypeError: not a bool matrix, or sizes that do not fit.

    Example:
        >>> import torch
        >>> encode(torch.tensor([[True, False], [False, True]]), vector=1).indices.tolist()
        [0, 1]
    """
    if isinstance(mask, torch.Tensor) and mask.layout is torch.strided:
        mask = mask.contiguous()
    elif isinstance(mask, np.ndarray):
        mask = np.ascontiguousarray(mask)
    layout, indices, indptr = _core.products.encode(
        mask, _small_int(vector, "vector"), _small_int(n, "n"), _small_int(m, "m")
    )
    pointers = None if indptr is None else torch.from_numpy(indptr)
    return Structure(layout, torch.from_numpy(indices), pointers)


def validate(structure: Structure, nvalues: int | None = None) -> None:
    """Checks every index and pointer of a structure.

    Args:
        structure: what to check.
        nvalues: number of values that belong to it, if they are at hand.

    Raises:
        StructureError: an index is out of range, out of order or in the wrong group, or a pointer
            or a count is wrong.
    """
    _core.products.check_structure(*_checked(structure))
    if nvalues is not None and nvalues != structure.nnz:
        raise StructureError(
            f"got {nvalues} values for a structure of {structure.nnz}; "
            "values, indices and indptr must come from the same weight"
        )


def gather(dense: Array, structure: Structure) -> Array:
    """The kept entries of a dense matrix [rows, cols], in the order of the layout: [nnz]."""
    _checked(structure)
    if isinstance(dense, torch.Tensor) and dense.layout is torch.strided:
        dense = dense.detach().contiguous()
    values = _empty((structure.nnz,), dense)
    _core.products.gather(dense, *structure, values)
    return values


def scatter(values: Array, structure: Structure) -> Array:
    """The dense matrix [rows, cols] of values [nnz]; zero where nothing is kept."""
    layout = _checked(structure).layout
    dense = _empty((layout.rows, layout.cols), values)
    dense[...] = 0
    _core.products.scatter(values, *structure, dense)
    return dense


def coordinates(structure: Structure) -> torch.Tensor:
    """``row * cols + col`` of each value, int64 [nnz], in the order of the values."""
    return torch.from_numpy(_core.products.coordinates(*_checked(structure)))


def transpose(structure: Structure) -> Transposed:
    """The structure of the transpose, one row a panel. See `Transposed`."""
    layout, indices, indptr, perm = _core.products.transpose(*_checked(structure))
    turned = Structure(layout, torch.from_numpy(indices), torch.from_numpy(indptr))
    return Transposed(turned, torch.from_numpy(perm))


def spmm(x: Array, values: Array, structure: Structure, bias: Array | None = None) -> Array:
    """``Y = X W^T + bias``.

    Args:
        x: [batch, cols], any strides; float32, float64 or bfloat16 (summed in float32).
        values: [nnz], contiguous, dtype of x.
        structure: structure of W.
        bias: [rows] or None.

    Returns:
        [batch, rows], dtype and library of x.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: an argument does not fit; its name and
            what is needed stand in the message.
    """
    y = _empty((_rows(x), _checked(structure).layout.rows), x)
    _core.products.spmm(x, values, *structure, bias, y)
    return y


def spmm_t(
    grad_output: Array, values: Array, structure: Structure, transposed: Transposed | None = None
) -> Array:
    """``dX = dY W``.

    Args:
        grad_output: [batch, rows], any strides.
        values: [nnz] of W.
        structure: structure of W.
        transposed: `transpose` of the structure, to run as a product with a packed transpose; None
            scatters from the structure itself. One that lacks entries multiplies without them.

    Returns:
        [batch, cols].

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: as `spmm`.
    """
    grad_input = _empty((_rows(grad_output), _checked(structure).layout.cols), grad_output)
    if transposed is None:
        _core.products.spmm_t(grad_output, values, *structure, grad_input)
    else:
        if type(transposed) is not Transposed:
            raise DTypeError(
                f"transposed is a {type(transposed).__name__}; a gossamer.backend.Transposed is "
                "needed: build it with gossamer.backend.transpose"
            )
        turned, perm = _checked(transposed.structure), transposed.perm
        _core.products.spmm_t_packed(grad_output, values, *structure, *turned, perm, grad_input)
    return grad_input


def sddmm(grad_output: Array, x: Array, structure: Structure) -> Array:
    """``dW = dY^T X`` at the kept entries only.

    Args:
        grad_output: [batch, rows], any strides.
        x: [batch, cols], any strides, same dtype.
        structure: structure of W.

    Returns:
        [nnz], in the order of the values.

    Raises:
        ShapeError, DTypeError, DeviceError, StructureError: as `spmm`.
    """
    grad_values = _empty((_checked(structure).nnz,), x)
    _core.products.sddmm(grad_output, x, *structure, grad_values)
    return grad_values


def isas() -> list[str]:
    """Kernel tables that this processor can run, best first."""
    return list(_core.isas())


def isa() -> str:
    """The kernel table in use."""
    return str(_core.isa())


def use_isa(name: str | None) -> None:
    """Forces a kernel table by name (see `isas`); None gives the choice back.

    Raises:
        ShapeError: this build or this processor has no such table.
    """
    if name is not None and not isinstance(name, str):
        raise DTypeError(f"name is {name!r:.80}; one of {', '.join(isas())} or None is needed")
    _core.use_isa(name or "")


def info() -> dict[str, Any]:
    """Version, tables, threads and their library, which table serves each (verb, layout, dtype)."""
    return {
        "version": _core.version,
        "isa": isa(),
        "isas": isas(),
        "threads": _core.threads(),
        "pool": _core.pool_library(),
        "serving": dict(_core.serving()),
        "cuda": f"compiler {'' if _core.cuda_found else 'not '}found at build; CPU kernels only",
    }


__all__ = [
    "Layout",
    "Structure",
    "Transposed",
    "coordinates",
    "encode",
    "gather",
    "info",
    "isa",
    "isas",
    "scatter",
    "sddmm",
    "spmm",
    "spmm_t",
    "transpose",
    "use_isa",
    "validate",
]
