"""Double pruning: a weight that is N:M along its rows, pruned along its columns as well.

The product dX = dY W sums over the rows of W, so hardware and the packed transpose need groups of
rows. Of each m consecutive rows of a column the n entries with the largest magnitude are kept.
Entries that the row mask dropped are pruned first, so something is lost only where more than n of
the m survive: on a random weight the share sum over j > n of
C(m, j) s^j (1 - s)^(m - j) (j - n) / m of all entries, with s = n / m.
"""

from __future__ import annotations

from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure, Transposed
from gossamer.backend import masks as kernels
from gossamer.backend.structure import check_structure
from gossamer.masks.score import magnitude_mask
from gossamer.patterns import NM, as_integer

__all__ = ["double_prune", "double_prune_mask"]


def double_prune(values: Tensor, structure: Structure, n: int, m: int) -> Transposed:
    """Prune the kept entries along their columns, and build the transpose of the rest.

    No dense copy is made. If the number of rows is not a multiple of m, the last group of each
    column is shorter and also keeps at most n.

    Args:
        values: [nnz], float32, float64 or bfloat16, in the order of `structure`. Of equal
            magnitudes the entry of the lower row is kept; NaN ranks above infinity.
        structure: structure of W [rows, cols], with any number of rows per panel.
        n: entries kept per group of m consecutive rows of a column.
        m: rows of a group, 1 <= n <= m <= 64.

    Returns:
        The structure of the transpose [cols, rows], and the permutation that maps its values to
        positions in `values`.

    Raises:
        ShapeError, DTypeError, StructureError: an argument does not fit.

    Reference:
        Mozaffari et al. 2025, "SLoPe: Double-Pruned Sparse Plus Lazy Low-Rank Adapter
        Pretraining of LLMs", section 2.1.

    Example:
        >>> import torch
        >>> from gossamer import backend
        >>> structure = backend.encode(torch.tensor([[True, False], [True, False]]), 1, 1, 2)
        >>> double_prune(torch.tensor([1.0, -3.0]), structure, 1, 2).perm.tolist()
        [1]
    """
    check_structure(structure)
    n = as_integer(n, "double_prune got n")
    m = as_integer(m, "double_prune got m")
    if isinstance(values, Tensor):
        values = values.detach()
    # Integers beyond 64 bits are out of range as well.
    bound = 2**62
    n, m = max(-bound, min(n, bound)), max(-bound, min(m, bound))
    return kernels.double_prune(values, structure, n, m)


def double_prune_mask(weight: Tensor, n: int, m: int, vector: int = 1) -> Tensor:
    """Return the mask of a weight pruned N:M by magnitude along rows, then along columns.

    Args:
        weight: [rows, cols], float32, float64 or bfloat16. If it is N:M along its rows already,
            the first pruning drops nothing.
        n: entries kept per group.
        m: size of a group of columns, and of rows.
        vector: rows that share one list of columns in the first pruning, see `NM`.

    Returns:
        bool [rows, cols], True = kept.

    Raises:
        PatternError: the number of columns is not a multiple of m, or n and m are out of range.
        ShapeError, DTypeError: not a matrix of those dtypes.

    Reference:
        See `double_prune`.

    Example:
        >>> import torch
        >>> double_prune_mask(torch.tensor([[3.0, 1.0], [4.0, 2.0], [1.0, 5.0]]), 1, 2).int()
        tensor([[0, 0],
                [1, 0],
                [0, 1]], dtype=torch.int32)
    """
    pattern = NM(n, m, vector)
    rows = magnitude_mask(weight, pattern)
    structure = backend.encode(rows, pattern.panel, n, m)
    transposed, _ = double_prune(backend.gather(weight, structure), structure, n, m)
    return backend.mask(transposed).t().contiguous()
