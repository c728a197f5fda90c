"""Exchange: a sparse weight from and to the sparse matrices of torch and SciPy.

No dense matrix is made: time and memory are those of the entries and pointers. Values are copied,
and no gradient flows through the copy. SciPy is imported only where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.errors import DTypeError
from gossamer.masks.score import as_shape
from gossamer.patterns import Nonzeros, Pattern, Unstructured, parse_pattern
from gossamer.weight.checks import check_dtype
from gossamer.weight.formats import SparseMatrix, csr_of_scipy, csr_of_torch, read_csr, refusals
from gossamer.weight.transpose import Backward, Transpose


class Exchange:
    """Other forms of a sparse weight: CSR arrays, torch's sparse tensors, SciPy's matrices.

    Each entry that the given matrix stores is kept and trained, also one with the value 0.
    """

    if TYPE_CHECKING:
        values: torch.nn.Parameter
        shape: torch.Size
        pattern: Pattern

        @property
        def structure(self) -> Structure: ...  # noqa: D102 - declared here, described there

        def __init__(
            self,
            values: Tensor,
            structure: Structure,
            pattern: str | Pattern,
            transpose: Transpose = "packed",
            backward: Backward = "exact",
        ) -> None: ...

    @classmethod
    def from_csr(
        cls,
        indptr: Any,
        indices: Any,
        values: Any,
        shape: tuple[int, int],
        pattern: str | Pattern | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> Self:
        """Make a weight of the three arrays of a CSR matrix.

        Args:
            indptr: int32 or int64 [rows + 1], the first entry of each row; tensor or NumPy array.
            indices: int32 or int64 [nnz], the column of each entry, ascending in a row.
            values: [nnz], float32, float64 or bfloat16.
            shape: (rows, cols).
            pattern: pattern that the entries must obey, or its text; None is `Unstructured` of
                exactly these entries.
            transpose: see `SparseWeight`.
            backward: see `SparseWeight`.

        Returns:
            A weight that owns a copy of the values; without a graph.

        Raises:
            StructureError: pointers do not rise from 0 to nnz, or an entry is out of range,
                repeated, unsorted or against the pattern; the message names the first one.
            PatternError: the shape does not fit the pattern.
            DTypeError, ShapeError, DeviceError: an array is not what is listed above.

        Example:
            >>> import gossamer, torch
            >>> weight = gossamer.SparseWeight.from_csr(
            ...     torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]), torch.ones(3), (2, 3)
            ... )
            >>> weight.to_dense().tolist()
            [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
        """
        matrix = read_csr(indptr, indices, values, as_shape(shape, "from_csr"))
        return cls._of_csr(matrix, pattern, transpose, backward, "from_csr")

    @classmethod
    def from_torch_sparse(
        cls,
        matrix: Tensor,
        pattern: str | Pattern | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> Self:
        """Make a weight of a sparse tensor.

        Args:
            matrix: [rows, cols] of layout sparse_csr, sparse_csc, sparse_coo or sparse_bsr;
                float32, float64 or bfloat16, on the CPU. Repeated entries of a COO tensor are
                added up, as `coalesce()` does.
            pattern: pattern that the entries must obey, or its text; None is `Block` for BSR, and
                `Unstructured` of exactly these entries for the others.
            transpose: see `SparseWeight`.
            backward: see `SparseWeight`.

        Returns:
            A weight that owns a copy of the values; without a graph.

        Raises:
            StructureError: the tensor's indices are damaged, or do not obey the pattern; the
                message names the first entry at fault. torch itself does not check them.
            PatternError: the shape does not fit the pattern.
            DTypeError, ShapeError, DeviceError: `matrix` is not such a tensor.

        Example:
            >>> import gossamer, torch
            >>> weight = gossamer.SparseWeight.from_torch_sparse(torch.eye(4).to_sparse())
            >>> str(weight.pattern), weight.nnz
            ('75%', 4)
        """
        return cls._of_csr(*csr_of_torch(matrix, pattern), transpose, backward, "from_torch_sparse")

    @classmethod
    def from_scipy(
        cls,
        matrix: Any,
        pattern: str | Pattern | None = None,
        transpose: Transpose = "packed",
        backward: Backward = "exact",
    ) -> Self:
        """Make a weight of a SciPy sparse matrix or array.

        Args:
            matrix: [rows, cols] of any format; float32 or float64. Unsorted indices are sorted and
                repeated entries added up, as SciPy does; in a BSR matrix they are refused.
            pattern: as in `from_torch_sparse`.
            transpose: see `SparseWeight`.
            backward: see `SparseWeight`.

        Returns:
            A weight that owns a copy of the values.

        Raises:
            StructureError, PatternError, DTypeError, ShapeError: as in `from_torch_sparse`.
            ImportError: SciPy is not installed.

        Example:
            >>> import gossamer, scipy.sparse
            >>> gossamer.SparseWeight.from_scipy(scipy.sparse.eye_array(8)).density
            0.125
        """
        return cls._of_csr(*csr_of_scipy(matrix, pattern), transpose, backward, "from_scipy")

    def to_torch_sparse(self, layout: torch.layout = torch.sparse_csr) -> Tensor:
        """Return a sparse tensor [rows, cols]; a copy, without a graph.

        Args:
            layout: torch.sparse_csr, sparse_csc, sparse_coo (coalesced) or sparse_bsr. The blocks
                of BSR are the pattern's tiles: those of `Block`, else one column of the rows that
                share their columns.

        Raises:
            DTypeError: another layout.

        Example:
            >>> import gossamer, torch
            >>> weight = gossamer.SparseWeight.from_dense(torch.eye(2), "50%")
            >>> weight.to_torch_sparse(torch.sparse_coo).indices().tolist()
            [[0, 1], [0, 1]]
        """
        values, size = self.values.detach(), self.shape
        if layout is torch.sparse_csc:
            structure, order = backend.transpose(self.structure)
            indptr, rows, perm = backend.decode_csr(structure)
            values = values[order[perm]]
            return torch.sparse_csc_tensor(indptr, rows, values, size, check_invariants=False)
        indptr, columns, perm = backend.decode_csr(self.structure)
        if layout is torch.sparse_csr:
            values = values[perm]
            return torch.sparse_csr_tensor(indptr, columns, values, size, check_invariants=False)
        if layout is torch.sparse_coo:
            rows = torch.arange(size[0], device=indptr.device).repeat_interleave(indptr.diff())
            return torch.sparse_coo_tensor(
                torch.stack([rows, columns]),
                values[perm],
                size,
                check_invariants=False,
                is_coalesced=True,
            )
        if layout is not torch.sparse_bsr:
            raise DTypeError(
                f"to_torch_sparse got layout={layout!r}; use torch.sparse_csr, sparse_csc, "
                "sparse_coo or sparse_bsr, or to_dense() for a dense tensor"
            )
        high, wide = self.pattern.tile
        # The rows of a row of tiles have the same columns, and follow one another.
        starts, lengths = indptr[:-1:high], indptr.diff()[::high]
        counts = lengths // wide
        tiles = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        first = torch.arange(int(tiles[-1]), device=tiles.device) * wide
        first += (starts - tiles[:-1] * wide).repeat_interleave(counts)
        down = torch.arange(high, device=tiles.device)[:, None]
        across = torch.arange(wide, device=tiles.device)
        at = first[:, None, None] + lengths.repeat_interleave(counts)[:, None, None] * down + across
        columns = columns[first] // wide
        blocks = values[perm[at]]
        return torch.sparse_bsr_tensor(tiles, columns, blocks, size, check_invariants=False)

    def to_scipy(self) -> Any:
        """Return a `scipy.sparse.csr_array` [rows, cols]; a copy.

        Raises:
            DTypeError: the values are bfloat16, which NumPy does not have.
            ImportError: SciPy is not installed.

        Example:
            >>> import gossamer, torch
            >>> gossamer.SparseWeight.from_dense(torch.eye(2), "50%").to_scipy().indices.tolist()
            [0, 1]
        """
        with refusals("to_scipy"):
            from scipy.sparse import csr_array
        if self.values.dtype is torch.bfloat16:
            raise DTypeError(
                "to_scipy got bfloat16 values, which NumPy does not have: call weight.float() first"
            )
        indptr, columns, perm = backend.decode_csr(self.structure)
        values = self.values.detach()[perm].numpy()
        return csr_array((values, columns.numpy(), indptr.numpy()), shape=tuple(self.shape))

    @classmethod
    def _of_csr(
        cls,
        matrix: SparseMatrix,
        pattern: str | Pattern | None,
        transpose: Transpose,
        backward: Backward,
        who: str,
    ) -> Self:
        rows, cols = matrix.shape
        pattern = parse_pattern("nonzeros" if pattern is None else pattern)
        pattern.check_shape(rows, cols, who)
        if isinstance(pattern, Nonzeros):
            pattern = Unstructured.keeping(matrix.values.numel(), rows * cols, pattern.vector)
        check_dtype(matrix.values.dtype, f"{who}: values")
        with refusals(who):
            structure, perm = backend.encode_csr(
                (rows, cols), matrix.indptr, matrix.indices, pattern.panel, *pattern.group
            )
            return cls(matrix.values[perm], structure, pattern, transpose, backward)
