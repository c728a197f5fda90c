"""Where the entries of a structure lie, in torch operators on the structure's device.

Nothing waits for the device, and whatever bytes a structure holds, no place is outside the matrix:
an index beyond it would end a process on a GPU. Views are made by methods, because indexing asks
for a device even where torch only traces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def places(layout: Any, indices: Tensor, indptr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the panel and the column of each entry, int64 [entries]."""
    entry = torch.arange(len(indices), device=indices.device)
    if indptr is None:
        block, panel = _of_fixed_counts(layout, entry)
    else:
        lists = layout.blocks * layout.panels
        at = torch.searchsorted(indptr.narrow(0, 1, lists), entry.int(), right=True).clamp_(
            max=max(lists - 1, 0)
        )
        block, panel = at // max(layout.panels, 1), at % max(layout.panels, 1)
    cols = (block * layout.block_cols + indices).clamp_(max=max(layout.cols - 1, 0))
    return panel, cols


def coordinates(layout: Any, indices: Tensor, indptr: Tensor | None) -> Tensor:
    """Return `row * cols + col` of each value, int64 [nnz]."""
    panel, cols = places(layout, indices, indptr)
    row = torch.arange(layout.vector, device=indices.device)
    at: Tensor = (
        (panel * layout.vector).unsqueeze(1).add(row).mul_(layout.cols).add_(cols.unsqueeze(1))
    )
    return at.flatten()


def _of_fixed_counts(layout: Any, entry: Tensor) -> tuple[Tensor, Tensor]:
    full = layout.block_cols // layout.m * layout.n
    rest = layout.cols % layout.block_cols // layout.m * layout.n
    whole = layout.cols // layout.block_cols
    block = (entry // max(full * layout.panels, 1)).clamp_(max=max(layout.blocks - 1, 0))
    inside = entry - block * (full * layout.panels)
    count = torch.where(block < whole, full, max(rest, 1))
    return block, (inside // count).clamp_(max=max(layout.panels - 1, 0))


__all__ = ["coordinates", "places"]
