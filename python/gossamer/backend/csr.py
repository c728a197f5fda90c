"""Between compressed sparse rows (CSR) and the structure of a weight, without a dense matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.backend.arrays import tensor_of
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, check_structure
from gossamer.errors import ArgumentError, StructureError


class Csr(NamedTuple):
    """The positions of a CSR matrix.

    Attributes:
        indptr: int64 [rows + 1], the first entry of each row.
        indices: int64 [nnz], the column of each entry; ascending in a row.
        perm: int32 [nnz], the permutation of the values. From `decode_csr`, value `i` of the CSR
            matrix is value `perm[i]` of the weight.
    """

    indptr: Tensor
    indices: Tensor
    perm: Tensor


def encode_csr(
    shape: tuple[int, int],
    indptr: Tensor,
    indices: Tensor,
    vector: int = 1,
    n: int = 0,
    m: int = 0,
    *,
    csc: bool = False,
) -> tuple[Structure, Tensor]:
    """Build the structure of a CSR matrix.

    Args:
        shape: (rows, cols).
        indptr: int64 [rows + 1], the first entry of each row.
        indices: int64 [nnz], the column of each entry; ascending in a row.
        vector: Rows in a panel, 1, 4 or 8; the rows of a panel have the same columns.
        n: Kept entries in each group of `m` columns, or 0 for any.
        m: Columns in a group, or 0.
        csc: Whether it is the transpose of a matrix given by columns, whose coordinates the errors
            then name.

    Returns:
        The structure, and int32 [nnz]: value `i` of the weight is value `perm[i]` of the matrix.

    Raises:
        StructureError: The arrays are no CSR matrix, or do not obey vector or n:m; the message
            names the first entry at fault.
        ArgumentError, ShapeError, DTypeError: A number is out of range, or an array is no int64
            vector.

    Example:
        >>> structure, _ = encode_csr((2, 3), torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]))
        >>> structure.indices.tolist()
        [2, 0, 1]
    """
    check(encode_csr, locals())
    layout, ids, pointers, perm = module_of(indices).products.encode_csr(
        *shape, indptr.contiguous(), indices.contiguous(), vector, n, m, csc
    )
    structure = Structure(layout, tensor_of(ids), None if pointers is None else tensor_of(pointers))
    return structure, tensor_of(perm)


def decode_csr(structure: Structure) -> Csr:
    """Return the positions of a structure as CSR.

    Example:
        >>> structure, _ = encode_csr((2, 3), torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]))
        >>> decode_csr(structure).indptr.tolist()
        [0, 1, 3]
    """
    check(decode_csr, locals())
    layout, ids, pointers = check_structure(structure)
    arrays = module_of(ids).products.decode_csr(layout, ids, pointers)
    return Csr(*map(tensor_of, arrays))


def expand_tiles(indptr: Tensor, indices: Tensor, high: int, wide: int) -> Csr:
    """Write each row of a matrix of tiles as `high` rows, and each of its entries as a run.

    Args:
        indptr: int64 [rows + 1] of the matrix of tiles.
        indices: int64 [tiles], the column of each tile; ascending in a row.
        high: Rows per tile.
        wide: Columns per tile.

    Returns:
        The CSR matrix of the entries. Entry `i` is in column `perm[i] % wide` of tile
        `perm[i] // wide`; perm is int64.

    Example:
        >>> tiles = torch.tensor([0, 1]), torch.tensor([1])
        >>> expand_tiles(*tiles, high=2, wide=3).indices.tolist()
        [3, 4, 5, 3, 4, 5]
    """
    check(expand_tiles, locals())
    ends = indptr[:1].tolist() + indptr[-1:].tolist()
    if ends != [0, len(indices)] or indices.dim() != 1 or bool((indptr.diff() < 0).any()):
        raise StructureError(
            f"expand_tiles got pointers from {ends[:1]} to {ends[1:]} of {len(indices)} tiles; "
            "they must rise from 0 to the number of tiles"
        )
    if min(high, wide) < 1 or max(high, wide) >= 2**31:
        raise ArgumentError(f"expand_tiles got tiles of {high}x{wide}; sizes of 1 and more fit")
    counts = indptr.diff().repeat_interleave(high) * wide
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    shift = indptr[:-1].repeat_interleave(high) * wide - pointers[:-1]
    at = torch.arange(int(pointers[-1]), device=pointers.device) + shift.repeat_interleave(counts)
    return Csr(pointers, indices[at // wide] * wide + at % wide, at)


__all__ = ["Csr", "decode_csr", "encode_csr", "expand_tiles"]
