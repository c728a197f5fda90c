"""Selections of masks that run in every step, in torch operators; the others run on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer import _core
from gossamer.backend.composite import checks, places
from gossamer.backend.composite.host import Host
from gossamer.errors import ArgumentError, ShapeError

_host = Host(_core.masks)


def __getattr__(name: str) -> Any:
    """What runs when a mask changes alone."""
    return getattr(_host, name)


@torch.no_grad()
def select(layout: Any, shared: int, weight: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the n largest of each m entries, packed: the bits of the CPU's selection."""
    _check_selection(layout, shared)
    w = checks.weight(layout, indices, None, values)
    weight = checks.rows(weight, "weight", values, layout)
    rows, cols, n, m = layout.rows, layout.cols, layout.n, layout.m
    high = layout.vector * shared
    score = weight.double().abs()
    total = _sum_rows(score.view(layout.panels * layout.vector // high, high, cols))
    total = total.repeat_interleave(shared, 0)
    # A stable descending sort puts NaN first, and the lower of equal columns first.
    order = (
        total.view(layout.panels, cols // m, m).sort(dim=-1, descending=True, stable=True).indices
    )
    group = torch.arange(0, cols, m, device=weight.device).unsqueeze(1)
    kept = order.narrow(-1, 0, n).sort(-1).values + group
    groups, wide = cols // m, layout.block_cols // m
    ids = [
        (kept.narrow(1, at, min(wide, groups - at)) - at * m).flatten()
        for at in range(0, groups, wide)
    ]
    if ids:
        torch.cat(ids, out=indices)
    torch.index_select(weight.reshape(rows * cols), 0, w.at(), out=w.values)


@torch.no_grad()
def add_pruned(
    layout: Any, indices: Tensor, indptr: Tensor | None, out: Tensor, source: Tensor, alpha: float
) -> None:
    """Add `alpha * source` to out at the entries that the structure does not keep."""
    checks.structure(layout, indices, indptr)
    out = checks.rows(out, "out", out, layout)
    source = checks.rows(source, "source", out, layout)
    kept = torch.zeros(layout.rows * layout.cols, dtype=torch.bool, device=out.device)
    kept.index_fill_(0, places.coordinates(layout, indices, indptr), True)
    wide = torch.float32 if out.dtype in (torch.bfloat16, torch.float16) else out.dtype
    total = torch.add(out.to(wide), source.to(wide), alpha=alpha)
    torch.where(kept.view(out.shape), out, total.to(out.dtype), out=out)


def _sum_rows(score: Tensor) -> Tensor:
    """Return the sums [runs, cols] of [runs, rows, cols], one row after another as the CPU sums."""
    first, *others = score.unbind(1)
    total = first.clone()
    for row in others:
        total += row
    return total


def _check_selection(layout: Any, shared: int) -> None:
    if not layout.m:
        raise ArgumentError("the layout has no n:m; a selection needs one")
    if shared != 1 and not (shared > 1 and layout.vector == 8 and layout.panels % shared == 0):
        raise ArgumentError(
            f"shared is {shared}; 1 is needed, or a divisor of the panels of 8 rows"
        )
    if layout.rows * (layout.cols // layout.m) * layout.n >= 2**31:
        raise ShapeError("the pattern keeps 2^31 entries or more; split the layer")
