"""Runs of panels: how storage holds N:M rows that share their columns beyond a panel.

A panel has at most 8 rows, so V > 8 rows are a run of V / 8 panels with equal lists of columns.
"""

import torch

from gossamer.backend import Layout, Structure
from gossamer.errors import ShapeError
from gossamer.patterns import NM

__all__ = ["repeat_lists"]


def repeat_lists(lists: Structure, pattern: NM) -> Structure:
    """Write each list of columns once for every panel of its V rows.

    Args:
        lists: n of every m columns, one list for V rows each.
        pattern: the pattern with these n, m and V.

    Returns:
        The structure of all rows. Time and memory are those of its entries.

    Raises:
        ShapeError: 2**31 kept entries or more.

    Example:
        >>> import gossamer
        >>> lists = gossamer.backend.encode(torch.tensor([[False, True]]), 1, 1, 2)
        >>> repeat_lists(lists, NM(1, 2, vector=16)).indices.tolist()
        [1, 1]
    """
    given, indices, _ = lists
    if len(indices) * pattern.vector >= 2**31:
        raise ShapeError("the weight keeps 2^31 entries or more; split the layer")
    rows, n, m = given.rows * pattern.vector, pattern.n, pattern.m
    layout = Layout(rows, given.cols, pattern.panel, given.block_cols, n, m)
    widths = [min(given.block_cols, given.cols - k * given.block_cols) for k in range(given.blocks)]
    # In a block each list follows the other.
    blocks = indices.split([given.rows * (width // m * n) for width in widths])
    times = pattern.vector // pattern.panel
    runs = [
        block.view(given.rows, width // m * n).repeat_interleave(times, 0).flatten()
        for block, width in zip(blocks, widths, strict=True)
    ]
    return Structure(layout, torch.cat([indices[:0], *runs]), None)
