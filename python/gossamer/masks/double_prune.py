"""Double pruning: a weight that is N:M along its rows, pruned down its columns as well.

The product dX = dY W sums over the rows of W, so hardware and the packed transpose want groups of
rows. Of each m consecutive rows of a column the n entries of largest magnitude stay. The zeros of
the row mask go first: only where more than n of the m survive is anything lost, on a random
weight the share sum over j > n of C(m, j) s^j (1 - s)^(m - j) (j - n) / m of all entries, with
s = n / m.
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
    """Prune the kept entries down their columns, and lay out the transpose of what remains.

    No dense copy is made. Where the rows are no multiple of m, the last group of each column is
    shorter and keeps at most n as well.

    Args:
        values: [nnz], float32, float64 or bfloat16, in the order of `structure`. Of equal
            magnitudes the lower row's entry stays; NaN counts as the largest.
        structure: of W [rows, cols], any number of rows a panel.
        n: entries kept of each group of m consecutive rows of a column.
        m: rows in a group, 1 <= n <= m <= 64.

    Returns:
        The structure of the transpose [cols, rows] and where its values stand among `values`.

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
    # Beyond 64 bits is out of range all the same.
    bound = 2**62
    n, m = max(-bound, min(n, bound)), max(-bound, min(m, bound))
    return kernels.double_prune(values, structure, n, m)


def double_prune_mask(weight: Tensor, n: int, m: int, vector: int = 1) -> Tensor:
    """The mask of a dense weight pruned N:M by magnitude along its rows, then down its columns.

    Args:
        weight: [rows, cols], float32, float64 or bfloat16. One that is N:M along its rows already
            loses nothing to the first pruning.
        n: entries kept of each group.
        m: size of a group of columns, and of rows.
        vector: rows that share one list of columns in the first pruning, 1, 4 or 8.

    Returns:
        bool [rows, cols], True = kept.

    Raises:
        PatternError: the columns are no multiple of m, or n and m are no pattern.
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
    turned, _ = double_prune(backend.gather(weight, structure), structure, n, m)
    mask = rows.new_zeros(rows.numel())
    mask[backend.coordinates(turned)] = True
    return mask.view(rows.shape[1], rows.shape[0]).t().contiguous()
