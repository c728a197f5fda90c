"""Rows grouped by similarity, so that V rows that share their columns lose little by it.

A panel keeps the columns that its rows want together. Rows are first collected around seeds, then
exchanged between panels as long as the kept score grows. Scores are rounded to integers whose sums
float32 holds exactly, so the order is the same for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.arguments import Count, check
from gossamer.backend import check_array
from gossamer.backend.arrays import FLOATING
from gossamer.errors import PatternError
from gossamer.masks.selection import select
from gossamer.patterns import Nonzeros, Pattern, parse_pattern

__all__ = ["group_rows"]

ROUNDS = 100
# Integers up to this are exact in float32.
EXACT = 2**24


def group_rows(score: Tensor, pattern: str | Pattern, rounds: Count = ROUNDS) -> Tensor:
    """Return an order of the rows in which rows that want the same columns are neighbours.

    `score[order]` then has a mask with at least the kept score of `score` itself.

    Args:
        score: float16, bfloat16, float32 or float64 [rows, cols]; larger scores are kept, as in
            `mask_from_score`: the magnitudes of a weight.
        pattern: the pattern or its text, whose tiles have V rows. If V is 1 the order is 0, 1, 2, …
        rounds: at most so many rounds of exchanges.

    Returns:
        int64 [rows], a permutation: row i of the grouped weight is row `order[i]`.

    Raises:
        PatternError: the shape does not fit the pattern, or it takes the zeros of a weight.
        DTypeError, ShapeError: not such a tensor.

    Example:
        >>> weight = torch.tensor([[9.0, 0.0], [0.0, 9.0], [8.0, 1.0], [1.0, 8.0]])
        >>> group_rows(torch.cat([weight, weight]), "1:2:v4").tolist()
        [0, 2, 4, 6, 1, 3, 5, 7]
    """
    check(group_rows, locals())
    check_array(score, "group_rows: score", rank=2, dtypes=FLOATING)
    pattern = parse_pattern(pattern)
    rows, cols = score.shape
    pattern.check_shape(rows, cols, "group_rows")
    if isinstance(pattern, Nonzeros):
        raise PatternError(f"group_rows got pattern {pattern}, which keeps every nonzero: no order")
    high, wide = pattern.tile
    order = torch.arange(rows)
    if high == 1 or rows <= high or not cols:
        return order
    numbers = _integers(score.detach().cpu().double(), wide)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):  # which would round the products
        best, kept = order, _kept(numbers, order, pattern)[1]
        # Either start may win: rows that stand in a good order already, or those around seeds.
        for start in (order, _around_seeds(numbers, pattern)):
            found, share = _exchanged(numbers, start, pattern, rounds)
            if share > kept:
                best, kept = found, share
    panels = best.view(-1, high).sort(dim=1).values
    return panels[panels[:, 0].argsort()].flatten()


def _integers(score: Tensor, wide: int) -> Tensor:
    """Return the scores of tiles of one row as integers, in float32: sums of a row are exact."""
    finite = score.nan_to_num(nan=torch.inf).clamp(-1e300, 1e300)
    tiles = finite.view(len(score), -1, wide).sum(2)
    tiles = tiles - tiles.min()
    levels = EXACT // (2 * tiles.shape[1])
    return (tiles * (levels / tiles.max().clamp_min(1e-300))).round().float()


def _kept(numbers: Tensor, order: Tensor, pattern: Pattern) -> tuple[Tensor, float]:
    """Return what each panel keeps [panels, columns], 0 or 1, and the kept score."""
    sums = numbers[order].view(-1, pattern.tile[0], numbers.shape[1]).sum(1, dtype=torch.float64)
    mask = select(sums, pattern)
    return mask.float(), float(sums[mask].sum())


def _around_seeds(numbers: Tensor, pattern: Pattern) -> Tensor:
    """Collect panels greedily: a seed, and the rows that lose least by its columns."""
    high, (rows, cols) = pattern.tile[0], numbers.shape
    each = max(round(cols * _kept(numbers, torch.arange(rows), pattern)[0].mean().item()), 1)
    total = numbers.sum(1, dtype=torch.float64)
    left = total.argsort(descending=True, stable=True)
    panels = []
    while len(left):
        wanted = torch.zeros(cols).index_fill(0, numbers[left[0]].topk(each).indices, 1.0)
        # Of all rows: a copy of those that are left would take longer than their products.
        share = numbers.mv(wanted)[left].double() / total[left].clamp_min(1.0)
        share[0] = 2.0  # the seed itself
        chosen = share.argsort(descending=True, stable=True)[:high]
        panels.append(left[chosen])
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[chosen] = False
        left = left[stays]
    return torch.cat(panels)


def _exchanged(
    numbers: Tensor, order: Tensor, pattern: Pattern, rounds: int
) -> tuple[Tensor, float]:
    """Exchange rows between pairs of panels while the kept score grows."""
    high = pattern.tile[0]
    count = len(order) // high
    order = order.clone()
    masks, kept = _kept(numbers, order, pattern)
    worth = numbers @ masks.t()  # [rows, panels], exact
    for _ in range(rounds):
        here = worth[order].view(count, high, count)
        own = here.diagonal(dim1=0, dim2=2).t()  # [panels, rows of each]
        # What the best row of a panel gains in another one, and which row that is.
        gain, row = (here - own[:, :, None]).max(dim=1)
        both = (gain + gain.t()).triu(1)
        moved = _pairs(both)
        if not moved:
            break
        trial = order.clone()
        for a, b in moved:
            i, j = a * high + int(row[a, b]), b * high + int(row[b, a])
            trial[i], trial[j] = order[j], order[i]
        after, score = _kept(numbers, trial, pattern)
        if score <= kept:
            break
        changed = (after != masks).any(1).nonzero().flatten()
        worth[:, changed] = numbers @ after[changed].t()
        order, masks, kept = trial, after, score
    return order, kept


def _pairs(gains: Tensor) -> list[tuple[int, int]]:
    """Return pairs of panels with a gain, the best first, each panel once."""
    found = (gains > 0).nonzero()
    ranked = found[gains[found[:, 0], found[:, 1]].argsort(descending=True, stable=True)]
    free = [True] * len(gains)
    pairs = []
    for a, b in ranked[: 64 * len(gains)].tolist():
        if free[a] and free[b]:
            free[a] = free[b] = False
            pairs.append((a, b))
    return pairs
