"""Selection of N:M masks and what recipes compute from masks. No checks of patterns here."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.backend.arrays import tensor_of
from gossamer.backend.registry import module_of
from gossamer.backend.structure import Layout, Structure, Transposed, transposed_of


def draw_groups(rows: int, cols: int, vector: int, n: int, m: int, seed: int) -> Structure:
    """Draw n of every m columns of each panel, uniformly.

    Args:
        rows: Rows of the weight.
        cols: Columns of the weight.
        vector: Rows in a panel.
        n: Entries kept of a group.
        m: Columns in a group.
        seed: Names the random numbers, in [0, 2**64).

    Returns:
        The structure, on the CPU.
    """
    layout, indices, _ = module_of(None).masks.draw_groups(rows, cols, vector, n, m, seed)
    return Structure(layout, tensor_of(indices), None)


def draw_entries(rows: int, cols: int, vector: int, entries: int, seed: int) -> Structure:
    """Draw kept columns of panels out of all of them, uniformly.

    Args:
        rows: Rows of the weight.
        cols: Columns of the weight.
        vector: Rows in a panel.
        entries: Columns of panels to keep, of rows / vector * cols.
        seed: Names the random numbers, in [0, 2**64).

    Returns:
        The structure, on the CPU.
    """
    drawn = module_of(None).masks.draw_entries(rows, cols, vector, entries, seed)
    layout, indices, indptr = drawn
    return Structure(layout, tensor_of(indices), tensor_of(indptr))


def draw_tiles(
    rows: int, cols: int, vector: int, high: int, wide: int, tiles: int, seed: int
) -> Structure:
    """Draw kept tiles out of all of them, uniformly.

    Args:
        rows: Rows of the weight.
        cols: Columns of the weight.
        vector: Rows in a panel; it divides `high`.
        high: Rows of a tile; they divide those of the weight.
        wide: Columns of a tile; they divide those of the weight.
        tiles: Tiles to keep.
        seed: Names the random numbers, in [0, 2**64).

    Returns:
        The structure, on the CPU.
    """
    drawn = module_of(None).masks.draw_tiles(rows, cols, vector, high, wide, tiles, seed)
    layout, indices, indptr = drawn
    return Structure(layout, tensor_of(indices), tensor_of(indptr))


def select_nm(
    weight: Tensor,
    layout: Layout,
    out: tuple[Tensor, Structure] | None = None,
    shared: int = 1,
) -> tuple[Tensor, Structure]:
    """Keep the n largest of each m entries of a weight, packed.

    Args:
        weight: [rows, cols], float32, float64 or bfloat16; the entries of a row are contiguous.
        layout: The N:M layout of the result.
        out: Values and structure of this layout to overwrite, or None.
        shared: Consecutive panels of 8 rows that keep the same columns; they divide all panels.

    Returns:
        Values [nnz] and their structure, on the device of the weight.
    """
    if out is None:
        groups = layout.cols // layout.m
        entries = layout.panels * groups * layout.n
        values = weight.new_empty(entries * layout.vector)
        out = values, Structure(layout, weight.new_empty(entries, dtype=torch.uint8), None)
    values, structure = out
    module_of(weight).masks.select(layout, shared, weight, values.detach(), structure.indices)
    return out


def add_pruned(out: Tensor, source: Tensor, alpha: float, structure: Structure) -> None:
    """Add `alpha * source` to `out` at the entries that a structure does not keep.

    Args:
        out: [rows, cols], contiguous rows; overwritten.
        source: [rows, cols], dtype of `out`.
        alpha: The factor.
        structure: The kept entries.
    """
    module_of(out).masks.add_pruned(*structure, out, source, alpha)


def mask_difference(a: Structure, b: Structure) -> int:
    """Count the entries that one of two structures keeps and the other does not."""
    return int(module_of(a.indices).masks.difference(*a, *b))


def double_prune(values: Tensor, structure: Structure, n: int, m: int) -> Transposed:
    """Keep the n largest of each m rows of every column, as a transpose.

    Args:
        values: [nnz], in the order of the structure.
        structure: Structure of W.
        n: Entries kept of a group of rows.
        m: Rows in a group.

    Returns:
        The structure of the transpose and its permutation.
    """
    return transposed_of(module_of(values).masks.double_prune(*structure, values, n, m))


def tiles_mask(
    weight: Tensor, n: int, m: int, method: int, sharpness: float, iterations: int
) -> Tensor:
    """Keep at most n entries in each row and column of every m x m tile.

    Args:
        weight: [rows, cols], float32, float64 or bfloat16, any strides.
        n: Entries kept in a row and in a column of a tile.
        m: Rows and columns of a tile.
        method: 0 exact, 1 greedy, 2 two-approximation, 3 entropy.
        sharpness: Exponent of the entropy method at an entry of typical size.
        iterations: Scalings of the entropy method.

    Returns:
        bool [rows, cols], True = kept.
    """
    mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    module_of(weight).masks.transposable(weight, n, m, method, sharpness, iterations, mask)
    return mask


def mvue_sample(
    x: Tensor, layout: Layout, approximate: bool, seed: int, step: int, layer: int
) -> tuple[Tensor, Structure]:
    """Sample n of each m rows of x [tokens, features] so that the mean is x.

    Args:
        x: float32, float64 or bfloat16, any strides.
        layout: N:M layout of the sampled x^T.
        approximate: Whether two draws without replacement are used.
        seed: Names the random numbers, together with `step` and `layer`; each in [0, 2**64).
        step: Training step.
        layer: Index of the layer.

    Returns:
        Values [nnz] in the dtype of x, and their structure.
    """
    kept = layout.rows * (layout.cols // layout.m) * layout.n
    values, indices = x.new_empty(kept), x.new_empty(kept, dtype=torch.uint8)
    module_of(x).masks.sample(x, layout, approximate, seed, step, layer, values, indices)
    return values, Structure(layout, indices, None)


__all__ = [
    "add_pruned",
    "double_prune",
    "draw_entries",
    "draw_groups",
    "draw_tiles",
    "mask_difference",
    "mvue_sample",
    "select_nm",
    "tiles_mask",
]
