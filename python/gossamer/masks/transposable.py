"""Transposable masks: N:M along the rows and along the columns at once.

The weight is cut into m x m tiles, sub-matrices of m rows and m columns. A tile keeps at most n
entries of each of its rows and of each of its columns, so that one mask makes both the weight and
its transpose N:M. Of equal magnitudes the entry with the lower row-major index of its tile is kept.
A tile's mask depends on the entries of that tile alone, not on the number of threads.
"""

from typing import Literal, get_args

import torch

from gossamer.backend import check_array
from gossamer.backend import masks as kernels
from gossamer.backend.arrays import FLOATS
from gossamer.errors import ArgumentError, PatternError, ShapeError
from gossamer.patterns import MAX_M, NM

__all__ = ["TileMethod", "is_transposable", "transposable_mask"]

TileMethod = Literal["auto", "exact", "greedy", "two_approximation", "entropy"]

_CODES = {"exact": 0, "greedy": 1, "two_approximation": 2, "entropy": 3}

# Of the entropy method. Sharpness: the exponent at an entry of typical size.
_SHARPNESS = 20.0
_ITERATIONS = 100


def transposable_mask(
    weight: torch.Tensor, n: int, m: int, method: TileMethod = "auto"
) -> torch.Tensor:
    """Keep at most n entries of large magnitude in each row and column of every m x m tile.

    - "exact": the largest possible kept magnitude of a tile, found among all tile masks with row
      and column sums n (90 for 2:4, 24 for 1:4 and 3:4). m = 4 only.
    - "entropy": the entropic relaxation of the problem, a transport between rows and columns with
      entries in [0, 1], solved by scalings in log space; it is rounded, largest entry first, and
      entries are swapped until every row and column keeps exactly n. Any m.
    - "greedy": largest entry first, while row and column have room. May keep fewer than n.
    - "two_approximation": prunes the smallest entry first, while its row or column has more than
      n: it keeps the entries among the n largest of both their row and their column. The pruned
      magnitude is less than twice that of the best mask; it keeps fewer entries than "greedy".
    - "auto": "exact" if m = 4, otherwise "entropy".

    The mask of the transposed weight is the transposed mask for "greedy" and "two_approximation"
    if all magnitudes differ, and for "exact" if the best tile is unique as well; for "entropy" the
    two may differ. Infinities and NaN are equal, and larger than every number.

    Args:
        weight: float32, float64 or bfloat16 `[rows, cols]` on the CPU, any strides; rows and cols
            are multiples of m.
        n: entries kept per row and per column of a tile, 1 <= n <= m.
        m: rows and columns of a tile, at most 64.
        method: how tiles are chosen, see above.

    Returns:
        bool `[rows, cols]`, True = kept. Row and column sums of every tile are n with "exact" and
        "entropy", at most n otherwise.

    Raises:
        DTypeError: not a torch tensor, or of another dtype.
        DeviceError: not on the CPU.
        ShapeError: not of rank 2, or a size is not a multiple of m.
        PatternError: n or m out of range, or "exact" with m other than 4.
        ArgumentError: an unknown method.

    Reference:
        Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to
        Find N:M Transposable Masks" (two_approximation); "TSENOR: Highly-Efficient Algorithm for
        Finding Transposable N:M Sparse Masks", arXiv 2505.23949 (entropy).

    Example:
        >>> transposable_mask(torch.arange(16.0).reshape(4, 4), 2, 4).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0],
                [0, 0, 1, 1],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    pattern = NM(n, m)
    if method not in get_args(TileMethod):
        raise ArgumentError(
            f"transposable_mask got method={method!r}; it must be a known one: choose "
            + ", ".join(f'"{name}"' for name in get_args(TileMethod))
        )
    name = "transposable_mask: weight"
    weight = check_array(weight, name, rank=2, dtypes=FLOATS, device=True)
    _check_tiles(weight, pattern, name)
    if method == "auto":
        method = "exact" if pattern.m == 4 else "entropy"
    if method == "exact" and pattern.m != 4:
        raise PatternError(
            f'transposable_mask got method="exact" with m={pattern.m}; every tile can be tried '
            'only for m=4: choose method="entropy", a few percent from the best'
        )
    if pattern.n == pattern.m:
        return torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return kernels.tiles_mask(weight, pattern.n, pattern.m, _CODES[method], _SHARPNESS, _ITERATIONS)


def is_transposable(mask: torch.Tensor, n: int, m: int) -> bool:
    """Return whether every m x m tile keeps at most n entries per row and per column.

    Args:
        mask: bool `[rows, cols]`, True = kept; rows and cols are multiples of m.
        n: entries allowed, 1 <= n <= m.
        m: rows and columns of a tile, at most 64.

    Returns:
        True if every tile does.

    Raises:
        DTypeError: not a bool torch tensor.
        ShapeError: not of rank 2, or a size is not a multiple of m.
        PatternError: n or m out of range.

    Example:
        >>> is_transposable(torch.eye(4, dtype=torch.bool), 1, 4)
        True
    """
    pattern = NM(n, m)
    check_array(mask, "is_transposable: mask", rank=2, dtypes=(torch.bool,))
    _check_tiles(mask, pattern, "is_transposable: mask")
    rows, cols = mask.shape
    tiles = mask.reshape(rows // m, m, cols // m, m)
    return all(not bool((tiles.sum(dim=dim) > n).any()) for dim in (1, 3))


def _check_tiles(tensor: torch.Tensor, pattern: NM, name: str) -> None:
    rows, cols = tensor.shape
    if rows % pattern.m or cols % pattern.m:
        fits = [m for m in range(2, MAX_M + 1) if rows % m == 0 and cols % m == 0]
        hint = f"choose m from {fits}" if fits else "pad it"
        raise ShapeError(
            f"{name} has shape [{rows}, {cols}] with m={pattern.m}; rows and cols must be "
            f"multiples of m, because a tile has m of each: {hint}"
        )
