"""Reads the sparse matrices of torch and SciPy as CSR. Their indices may hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATS
from gossamer.errors import DeviceError, DTypeError, ShapeError, StructureError
from gossamer.patterns import Block, Pattern, check_sizes

Shape = tuple[int, int]
Read = tuple["SparseMatrix", str | Pattern | None]
"""A matrix, and the pattern that was asked for or follows from the format."""


class SparseMatrix(NamedTuple):
    """A matrix in CSR, whose indices are not checked yet.

    Attributes:
        indptr: int64 [rows + 1].
        indices: int64 [nnz].
        values: [nnz].
        shape: (rows, cols).
    """

    indptr: Tensor
    indices: Tensor
    values: Tensor
    shape: Shape


@contextmanager
def refusals(who: str) -> Iterator[None]:
    """Begin the errors of a structure, and of SciPy's absence, with this name."""
    try:
        yield
    except StructureError as error:
        raise StructureError(f"{who}: {error}") from None
    except ModuleNotFoundError as error:
        raise ImportError(f"{who} needs SciPy: pip install scipy") from error


def read_csr(indptr: Any, indices: Any, values: Any, shape: Shape) -> SparseMatrix:
    """Return the arrays of a CSR matrix as tensors, after a check of their kinds."""
    ids, entries = _integers(indices, "indices"), _values(values)
    _check_lengths("indices", ids, entries)
    return SparseMatrix(_integers(indptr, "indptr"), ids, entries, shape)


def csr_of_torch(matrix: Tensor, pattern: str | Pattern | None) -> Read:
    """Return the CSR form of a sparse tensor, and the pattern that a weight of it has."""
    who = "from_torch_sparse"
    if not isinstance(matrix, Tensor) or matrix.layout is torch.strided:
        kind = "a dense tensor" if isinstance(matrix, Tensor) else type(matrix).__name__
        raise DTypeError(
            f"{who} got {kind}; a sparse tensor is needed: call .to_sparse(), or use from_dense "
            "for a dense one"
        )
    if matrix.dim() != 2:
        raise ShapeError(f"{who} got shape {list(matrix.shape)}; it must be [rows, cols]")
    if matrix.device.type != "cpu":
        raise DeviceError(f"{who} got a tensor on {matrix.device}; move it with .cpu()")
    matrix = matrix.detach()
    rows, cols = shape = (matrix.shape[0], matrix.shape[1])
    with refusals(who):
        if matrix.layout is torch.sparse_csr:
            arrays = matrix.crow_indices(), matrix.col_indices(), matrix.values()
            return read_csr(*arrays, shape), pattern
        if matrix.layout is torch.sparse_csc:
            arrays = matrix.ccol_indices(), matrix.row_indices(), matrix.values()
            return _transposed(read_csr(*arrays, (cols, rows))), pattern
        if matrix.layout is torch.sparse_bsr:
            arrays = matrix.crow_indices(), matrix.col_indices(), matrix.values()
            return _of_tiles(*arrays, shape, pattern)
        if matrix.layout is torch.sparse_coo and matrix.sparse_dim() == 2:
            at, values = matrix._indices(), matrix._values()
            return _of_coordinates(at[0], at[1], values, shape), pattern
    raise DTypeError(
        f"{who} got layout {matrix.layout} with {matrix.sparse_dim()} sparse dimensions; use "
        "sparse_csr, sparse_csc, sparse_coo or sparse_bsr, without dense dimensions"
    )


def csr_of_scipy(matrix: Any, pattern: str | Pattern | None) -> Read:
    """Return the CSR form of a SciPy matrix, and the pattern that a weight of it has."""
    who = "from_scipy"
    with refusals(who):
        from scipy.sparse import issparse
    if not issparse(matrix):
        raise DTypeError(
            f"{who} got {type(matrix).__name__}; a SciPy sparse matrix is needed: use "
            "from_torch_sparse for a tensor, or from_dense for a dense one"
        )
    if len(matrix.shape) != 2:
        raise ShapeError(f"{who} got shape {list(matrix.shape)}; it must be [rows, cols]")
    rows, cols = shape = check_sizes(matrix.shape[0], matrix.shape[1], who)
    if matrix.format not in ("csr", "csc", "coo", "bsr"):
        matrix = matrix.tocsr()
    with refusals(who):
        if matrix.format == "coo":
            return _of_coordinates(matrix.row, matrix.col, matrix.data, shape), pattern
        if matrix.format == "bsr":
            return _of_tiles(matrix.indptr, matrix.indices, matrix.data, shape, pattern)
        by_columns = matrix.format == "csc"
        arrays = matrix.indptr, matrix.indices, matrix.data
        given = read_csr(*arrays, (cols, rows) if by_columns else shape)
        try:
            _check(given, by_columns)
        except StructureError:
            # SciPy allows unsorted and repeated entries; wrong pointers nobody allows.
            if not _rises(given.indptr, given.indices.numel()):
                raise
            lines = torch.arange(given.shape[0], device="cpu").repeat_interleave(
                given.indptr.diff()
            )
            at = (given.indices, lines) if by_columns else (lines, given.indices)
            return _of_coordinates(*at, given.values, shape), pattern
        return _transposed(given) if by_columns else given, pattern


def csr_of_positions(rows: Any, cols: Any, shape: Shape) -> tuple[Tensor, Tensor]:
    """Return indptr and indices of entries given by their coordinates, each once, in any order."""
    row, col = _integers(rows, "rows"), _integers(cols, "cols")
    if row.numel() != col.numel():
        raise ShapeError(
            f"rows: {row.numel()} were given for {col.numel()} cols; give both for each entry"
        )
    _check_inside(row, col, shape)
    at, order = (row * shape[1] + col).sort(stable=True)
    again = (at[1:] == at[:-1]).nonzero().flatten()
    if again.numel():
        a, b = order[int(again[0])], order[int(again[0]) + 1]
        raise StructureError(
            f"entries {int(a)} and {int(b)} are both at [{int(row[a])}, {int(col[a])}]; give each "
            "entry once"
        )
    width = max(shape[1], 1)
    return _pointers(at // width, shape[0]), at % width


def _check(matrix: SparseMatrix, by_columns: bool = False) -> tuple[backend.Structure, Tensor]:
    return backend.encode_csr(matrix.shape, matrix.indptr, matrix.indices, csc=by_columns)


def _rises(indptr: Tensor, entries: int) -> bool:
    return bool(
        indptr.numel() and indptr[0] == 0 and indptr[-1] == entries and (indptr.diff() >= 0).all()
    )


def _transposed(matrix: SparseMatrix) -> SparseMatrix:
    """Return the CSR form of a matrix from that of its transpose, its CSC form."""
    structure, perm = _check(matrix, by_columns=True)
    transposed, order = backend.transpose(structure)
    indptr, indices, back = backend.decode_csr(transposed)
    values = matrix.values[perm[order[back]]]
    return SparseMatrix(indptr, indices, values, (matrix.shape[1], matrix.shape[0]))


def _of_coordinates(rows: Any, cols: Any, values: Any, shape: Shape) -> SparseMatrix:
    """Return the CSR form of a COO matrix; repeated entries are added up."""
    row, col = _integers(rows, "row indices"), _integers(cols, "column indices")
    values = _values(values)
    _check_lengths("row indices", row, values)
    _check_lengths("column indices", col, values)
    _check_inside(row, col, shape)
    at = torch.stack([row, col])
    merged = torch.sparse_coo_tensor(
        at, values, shape, device="cpu", check_invariants=False
    ).coalesce()
    row, col = merged.indices()
    return SparseMatrix(_pointers(row, shape[0]), col, merged.values(), shape)


def _check_inside(row: Tensor, col: Tensor, shape: Shape) -> None:
    outside = (row < 0) | (row >= shape[0]) | (col < 0) | (col >= shape[1])
    if bool(outside.any()):
        first = int(outside.to(torch.uint8).argmax())
        raise StructureError(
            f"entry {first} is at [{int(row[first])}, {int(col[first])}], outside a matrix of "
            f"shape {list(shape)}"
        )


def _pointers(row: Tensor, rows: int) -> Tensor:
    """Return the row pointers of entries whose rows do not fall."""
    counts = torch.bincount(row, minlength=rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _of_tiles(
    indptr: Any, indices: Any, blocks: Any, shape: Shape, pattern: str | Pattern | None
) -> Read:
    """Return the CSR form of a BSR matrix, and its `Block` pattern if none was asked for."""
    blocks = _values(blocks, rank=3)
    count, high, wide = blocks.shape
    if not high or not wide or shape[0] % high or shape[1] % wide:
        raise StructureError(f"blocks of {high}x{wide} do not fit a matrix of shape {list(shape)}")
    tiles = (shape[0] // high, shape[1] // wide)
    one = read_csr(indptr, indices, blocks.new_empty(count), tiles)
    try:
        _check(one)
    except StructureError as error:
        raise StructureError(f"blocks of {high}x{wide}, counted as entries: {error}") from None
    pointers, columns, at = backend.expand_tiles(one.indptr, one.indices, high, wide)
    row = torch.arange(shape[0], device="cpu").repeat_interleave(pointers.diff()) % high
    values = blocks[at // wide, row, at % wide]
    if pattern is None:
        pattern = Block(high, wide, 1 - count / max(tiles[0] * tiles[1], 1))
    return SparseMatrix(pointers, columns, values, shape), pattern


def _integers(x: Any, name: str) -> Tensor:
    dtypes = (torch.int64, torch.int32)
    return _tensor(check_array(x, name, rank=1, dtypes=dtypes, numpy=True, device=True)).long()


def _values(x: Any, rank: int = 1) -> Tensor:
    return _tensor(check_array(x, "values", rank=rank, dtypes=FLOATS, numpy=True, device=True))


def _check_lengths(name: str, indices: Tensor, values: Tensor) -> None:
    if indices.numel() != values.numel():
        raise ShapeError(
            f"{name}: {indices.numel()} were given for {values.numel()} values; give one index for "
            "each value"
        )


def _tensor(x: Any) -> Tensor:
    """Return a tensor; one of a NumPy array may share its memory and is only read."""
    if isinstance(x, Tensor):
        return x
    return torch.from_numpy(np.require(x, requirements=["C", "W"]))
