"""The choice of the groups to keep within a budget."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from gossamer.errors import ArgumentError
from gossamer.nn.globs import listed
from gossamer.pruning.groups import Family, Groups


def chosen(
    groups: Groups,
    sizes: Tensor,
    target: float,
    who: str,
    notes: list[str],
) -> Tensor:
    """Choose the largest groups of each family, the same share of each, within a budget.

    Every family keeps at least one group. What the rounding leaves of the budget goes to the
    families that it has cut most.

    Args:
        groups: the groups of a model.
        sizes: float64 [groups]; larger ones are kept first.
        target: largest cost.
        who: the function that a user has called, for errors.
        notes: what keeps its features, for errors.

    Returns:
        The kept groups, bool [groups].

    Raises:
        ArgumentError: even the smallest choice costs more.
    """
    orders = [_order(family, sizes) for family in groups.families]

    def kept(counts: list[int]) -> Tensor:
        found = ~groups.free
        for order, count in zip(orders, counts, strict=True):
            found[order[:count]] = True
        return found

    def at(share: float) -> list[int]:
        return [_rounded(family, share * len(family.groups)) for family in groups.families]

    least = groups.cost(kept(at(0.0)))
    if least > target:
        why = f", because these stay: {listed(notes)}" if notes else ""
        raise ArgumentError(
            f"{who} cannot reach {target:,.0f} {groups.budget}; the least of this model is "
            f"{least:,.0f}{why}; choose a larger keep, a smaller round_to, or exclude less"
        )
    low, high = 0.0, 1.0
    if groups.cost(kept(at(1.0))) <= target:
        return kept(at(1.0))
    for _ in range(30):
        middle = (low + high) / 2
        if groups.cost(kept(at(middle))) <= target:
            low = middle
        else:
            high = middle
    counts = at(low)
    missing = [
        low * len(family.groups) - count
        for family, count in zip(groups.families, counts, strict=True)
    ]
    for place in sorted(range(len(counts)), key=lambda i: (-missing[i], i)):
        allowed = groups.families[place].allowed
        more = bisect.bisect_right(allowed, counts[place])
        if more < len(allowed):
            grown = [*counts[:place], allowed[more], *counts[place + 1 :]]
            if groups.cost(kept(grown)) <= target:
                counts = grown
    return kept(counts)


def _order(family: Family, sizes: Tensor) -> Tensor:
    """Return the groups of a family, largest first; ties in their own order."""
    own = sizes[family.groups]
    return family.groups[torch.sort(own, descending=True, stable=True).indices]


def _rounded(family: Family, most: float) -> int:
    """Return the largest allowed count up to a number, or the smallest there is."""
    most = int(most + 1e-9)
    place = bisect.bisect_right(family.allowed, most)
    return family.allowed[max(place - 1, 0)]
