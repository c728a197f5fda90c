"""Where the kept entries of a weight lie: the structure, its checks, and copies to and from dense.

Outputs are allocated on the device and in the library of the input: a tensor for a tensor, a NumPy
array for an array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gossamer._core.products import Layout
from gossamer.backend.arrays import Array, empty, tensor_of
from gossamer.backend.registry import module_of
from gossamer.errors import ArgumentError, DTypeError, StructureError


class Structure(NamedTuple):
    """The layout of the kept entries and its integer arrays.

    Attributes:
        layout: The sizes; `vector` rows (a panel) share one list of kept columns.
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
    """The structure of W^T and the permutation that maps its values to those of W.

    Attributes:
        structure: Structure of the transpose, one row per panel.
        perm: int32; value `i` of the transpose is value `perm[i]` of W. It is shorter than the
            values of W if the transpose is pruned further.
    """

    structure: Structure
    perm: Array


def check_structure(structure: object, name: str = "structure") -> Structure:
    """Return the structure if it is one.

    Raises:
        DTypeError: It is not a `Structure` with a layout.
    """
    if type(structure) is not Structure or not isinstance(structure.layout, Layout):
        raise DTypeError(
            f"{name} is a {type(structure).__name__}; a gossamer.backend.Structure is needed: "
            "build it with gossamer.backend.encode"
        )
    return structure


def encode(mask: Array, vector: int, n: int = 0, m: int = 0) -> Structure:
    """Build the structure of a mask.

    Args:
        mask: bool [rows, cols], True = kept.
        vector: Rows in a panel, 1, 4 or 8; the rows of a panel have the same mask.
        n: Kept entries in each group of `m` columns, or 0 for any mask.
        m: Columns in a group, or 0.

    Returns:
        The structure, with torch tensors.

    Raises:
        StructureError: The mask does not obey vector or n:m.
        ArgumentError, ShapeError, DTypeError: vector, n or m is out of range, the mask is not a
            bool matrix, or sizes do not fit.

    Example:
        >>> import torch
        >>> encode(torch.tensor([[True, False], [False, True]]), vector=1).indices.tolist()
        [0, 1]
    """
    if isinstance(mask, torch.Tensor) and mask.layout is torch.strided:
        mask = mask.contiguous()
    elif isinstance(mask, np.ndarray):
        mask = np.ascontiguousarray(mask)
    layout, indices, indptr = module_of(mask).products.encode(
        mask, _small_int(vector, "vector"), _small_int(n, "n"), _small_int(m, "m")
    )
    pointers = None if indptr is None else tensor_of(indptr)
    return Structure(layout, tensor_of(indices), pointers)


def validate(structure: Structure, nvalues: int | None = None) -> None:
    """Check every index and pointer of a structure.

    Args:
        structure: The structure to check.
        nvalues: Number of values that belong to it, if known.

    Raises:
        StructureError: An index is out of range, out of order or in the wrong group, or a pointer
            or a count is wrong.
    """
    layout, indices, indptr = check_structure(structure)
    module_of(indices).products.check_structure(layout, indices, indptr)
    if nvalues is not None and nvalues != structure.nnz:
        raise StructureError(
            f"got {nvalues} values for a structure of {structure.nnz}; "
            "values, indices and indptr must come from the same weight"
        )


def check_tiles(structure: Structure, rows: int, cols: int) -> None:
    """Raise StructureError unless every tile of rows x cols entries is kept or dropped as one."""
    layout, indices, indptr = check_structure(structure)
    module_of(indices).products.check_tiles(layout, indices, indptr, rows, cols)


def gather(dense: Array, structure: Structure) -> Array:
    """Return the kept entries of a dense matrix [rows, cols], in the order of the layout: [nnz]."""
    check_structure(structure)
    if isinstance(dense, torch.Tensor) and dense.layout is torch.strided:
        dense = dense.detach().contiguous()
    values = empty((structure.nnz,), dense)
    module_of(dense).products.gather(dense, *structure, values)
    return values


def scatter(values: Array, structure: Structure) -> Array:
    """Return the dense matrix [rows, cols] of values [nnz], zero where no entry is kept."""
    layout = check_structure(structure).layout
    dense = empty((layout.rows, layout.cols), values)
    dense[...] = 0
    module_of(values).products.scatter(values, *structure, dense)
    return dense


def coordinates(structure: Structure) -> torch.Tensor:
    """Return `row * cols + col` of each value, int64 [nnz], in the order of the values."""
    layout, indices, indptr = check_structure(structure)
    return tensor_of(module_of(indices).products.coordinates(layout, indices, indptr))


def mask(structure: Structure) -> torch.Tensor:
    """Return the mask of a structure, bool [rows, cols], True = kept, on the structure's device.

    Example:
        >>> import torch
        >>> mask(encode(torch.tensor([[True, False], [False, True]]), vector=1))
        tensor([[ True, False],
                [False,  True]])
    """
    layout = check_structure(structure).layout
    at = coordinates(structure)
    kept = torch.zeros(layout.rows * layout.cols, dtype=torch.bool, device=at.device)
    kept[at] = True
    return kept.view(layout.rows, layout.cols)


def transpose(structure: Structure, out: Transposed | None = None) -> Transposed:
    """Return the structure of the transpose, one row per panel, and its permutation.

    Args:
        structure: Structure of W.
        out: A transpose of as many values, whose indices and permutation are overwritten; None
            makes new ones.
    """
    given, ids, pointers = check_structure(structure)
    arrays = (None, None) if out is None else (out.structure.indices, out.perm)
    return transposed_of(module_of(ids).products.transpose(given, ids, pointers, *arrays))


def transposed_of(arrays: tuple[Any, Any, Any, Any]) -> Transposed:
    """Return the `Transposed` of the layout, indices, pointers and permutation of a module."""
    layout, indices, indptr, perm = arrays
    return Transposed(Structure(layout, tensor_of(indices), tensor_of(indptr)), tensor_of(perm))


def _small_int(value: int, name: str) -> int:
    if type(value) is not int or abs(value) >= 2**31:
        raise ArgumentError(f"{name} is {value!r:.80}; a small integer is needed")
    return value


__all__ = [
    "Layout",
    "Structure",
    "Transposed",
    "check_structure",
    "check_tiles",
    "coordinates",
    "encode",
    "gather",
    "mask",
    "scatter",
    "transpose",
    "transposed_of",
    "validate",
]
