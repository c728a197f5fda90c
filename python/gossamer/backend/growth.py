"""Dropping the kept entries of the smallest magnitude, and growing others in their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gossamer.backend.arrays import tensor_of
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Structure, check_structure


def drop(structure: Structure, values: Tensor, count: int) -> Tensor:
    """Return which entries stay when those of the smallest magnitude are dropped.

    Args:
        structure: The structure of the weight.
        values: [nnz], float32, float64 or bfloat16. The magnitude of an entry is the sum over its
            values, in double; NaN is larger than infinity. Of equal ones the later is dropped, in
            the order of panels and then columns.
        count: Entries to drop.

    Returns:
        bool [entries], in the order of the structure.

    Raises:
        ArgumentError: More entries are to be dropped than there are.
        ShapeError, DTypeError, StructureError: The arrays do not fit.

    Example:
        >>> from gossamer.backend import encode
        >>> structure = encode(torch.ones(1, 3, dtype=torch.bool), vector=1)
        >>> drop(structure, torch.tensor([3.0, -1.0, 2.0]), 1).tolist()
        [True, False, True]
    """
    check_structure(structure)
    stays = torch.empty(len(structure.indices), dtype=torch.bool, device=values.device)
    module_of(values).masks.drop(*structure, values.detach().contiguous(), count, stays)
    return stays


def grow_random(structure: Structure, stays: Tensor, seed: int) -> Structure:
    """Grow as many entries as were dropped, uniformly among all places that are not kept.

    N:M grows in each group of m as many as were dropped there.

    Args:
        structure: The structure before.
        stays: bool [entries], the entries that stay.
        seed: Names the random numbers, in [0, 2**64).

    Returns:
        The structure with the grown entries; a dropped entry may have come back.

    Raises:
        ShapeError, DTypeError, StructureError: The arrays do not fit.

    Example:
        >>> from gossamer.backend import encode
        >>> structure = encode(torch.ones(1, 3, dtype=torch.bool), vector=1)
        >>> grow_random(structure, torch.tensor([True, False, True]), 0).indices.tolist()
        [0, 1, 2]
    """
    check_structure(structure)
    return _structure(module_of(stays).masks.grow_random(*structure, stays, seed))


def grow_largest(structure: Structure, stays: Tensor, slabs: Iterable[Tensor]) -> Structure:
    """Grow as many entries as were dropped, those with the largest scores.

    A running selection: no slab is kept, and nothing is sorted. N:M grows in each group of m as
    many as were dropped there.

    Args:
        structure: The structure before.
        stays: bool [entries], the entries that stay.
        slabs: scores [rows, cols] of rows that follow one another, float32 or float64, whole
            panels. The score of an entry is the sum of their magnitudes; a NaN grows last, and of
            equal scores the one of the lower panel, then column, grows.

    Returns:
        The structure with the grown entries; a dropped entry may have come back.

    Raises:
        ArgumentError: The slabs do not have all rows.
        ShapeError, DTypeError, StructureError: The arrays do not fit.

    Example:
        >>> from gossamer.backend import encode
        >>> structure = encode(torch.tensor([[True, True, False, False]]), vector=1)
        >>> scores = torch.tensor([[0.0, 1.0, 5.0, 7.0]])
        >>> grow_largest(structure, torch.tensor([True, False]), [scores]).indices.tolist()
        [0, 3]
    """
    check_structure(structure)
    growth = module_of(stays).masks.GrowLargest(*structure, stays)
    for slab in slabs:
        growth.offer(slab if slab.stride(-1) == 1 else slab.contiguous())
    return _structure(growth.finish())


def spread_tiles(grid: Structure, vector: int, high: int, wide: int) -> Structure:
    """Return the structure of the weight whose tiles are the entries of a smaller matrix.

    Args:
        grid: Structure of the matrix of tiles, one row per panel.
        vector: Rows in a panel of the weight; it divides `high`.
        high: Rows of a tile.
        wide: Columns of a tile.

    Example:
        >>> from gossamer.backend import encode, mask
        >>> grid = encode(torch.tensor([[False, True]]), vector=1)
        >>> mask(spread_tiles(grid, 1, 1, 2)).tolist()
        [[False, False, True, True]]
    """
    check_structure(grid, "grid")
    return _structure(module_of(grid.indices).masks.spread_tiles(*grid, vector, high, wide))


def _structure(arrays: tuple[Any, Any, Any]) -> Structure:
    layout, indices, indptr = arrays
    return Structure(layout, tensor_of(indices), None if indptr is None else tensor_of(indptr))


__all__ = ["drop", "grow_largest", "grow_random", "spread_tiles"]
