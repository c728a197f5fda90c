"""Slots of a weight: what lives or dies as one, and which of them die and grow.

A slot is an entry, a column of V rows, or a tile; it has a number, row-major. The score of a slot
is the sum over its entries. Of equal scores the slot with the lower number is kept, or grown.
Nothing here is as large as the weight, masks apart: kept slots are lists of numbers, and the
scores of the others come a slab of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.patterns import NM, Block, Pattern

# Maps (first row, row behind the last) to the scores [rows, cols] of those rows.
RowScores = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Slots:
    """The slots of a weight [rows, cols] of a pattern.

    Args:
        rows: of the weight.
        cols: of the weight.
        pattern: that the weight obeys.

    Example:
        >>> slots = Slots(4, 8, NM(2, 4, vector=4))
        >>> slots.count, slots.high, slots.wide
        (8, 4, 1)
    """

    rows: int
    cols: int
    pattern: Pattern

    @property
    def high(self) -> int:
        """Rows of a slot."""
        return self.pattern.rows if isinstance(self.pattern, Block) else self.pattern.vector

    @property
    def wide(self) -> int:
        """Columns of a slot."""
        return self.pattern.cols if isinstance(self.pattern, Block) else 1

    @property
    def count(self) -> int:
        """The number of slots of the weight."""
        return self.rows * self.cols // (self.high * self.wide)

    def kept(self, values: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """The kept slots, ascending, and the magnitude of each in float64.

        Args:
            values: [nnz], the kept entries.
            coordinates: int64 [nnz], row-major, where each stands.
        """
        size = values.abs().double().nan_to_num(nan=torch.inf)
        row = coordinates // (self.cols * self.high)
        slot = row * (self.cols // self.wide) + coordinates % self.cols // self.wide
        ids, order = slot.sort(stable=True)
        if self.high * self.wide > 1:
            # A slot lives as a whole: as many entries each, which the sort has put together.
            ids = ids[:: self.high * self.wide]
            return ids, size[order].view(-1, self.high * self.wide).sum(1)
        return ids, size[order]

    def mask(self, ids: Tensor) -> Tensor:
        """The bool mask [rows, cols] that keeps these slots."""
        flat = torch.zeros(self.count, dtype=torch.bool)
        flat[ids] = True
        tiles = flat.view(self.rows // self.high, 1, self.cols // self.wide, 1)
        shape = (self.rows // self.high, self.high, self.cols // self.wide, self.wide)
        return tiles.expand(shape).reshape(self.rows, self.cols)

    def slabs(self, entries: int) -> list[tuple[int, int]]:
        """Ranges of rows, of about so many entries, that cut no slot."""
        step = max(entries // max(self.cols * self.high, 1), 1) * self.high
        return [(row, min(row + step, self.rows)) for row in range(0, self.rows, step)]

    def sums(self, scores: Tensor) -> Tensor:
        """The scores of the slots of a slab, flat, from those of its entries [rows, cols]."""
        if self.high * self.wide == 1:
            return scores.reshape(-1)
        tiles = scores.view(-1, self.high, self.cols // self.wide, self.wide)
        return tiles.sum((1, 3), dtype=torch.float64).view(-1)

    def number(self, row: int) -> int:
        """The number of the first slot of a row that begins slots."""
        return row // self.high * (self.cols // self.wide)


class Best:
    """The slots of highest score among those that were offered, at most `room` of them.

    Slots are offered in ascending order, so that of equal scores the lower number stays.

    Args:
        room: how many are kept.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.ids = torch.empty(0, dtype=torch.int64)
        self.scores = torch.empty(0)

    def offer(self, scores: Tensor, first: int) -> None:
        """Offer the slots from a number on; those of score -inf are no candidates.

        Args:
            scores: [slots], without NaN.
            first: the number of the first of them; above all that were offered before.
        """
        if not self.room or not scores.numel():
            return
        least = torch.tensor(-torch.inf, dtype=scores.dtype)
        if len(self.ids) == self.room:
            least = self.scores[-1]
        fresh = (scores > least).nonzero().flatten()
        if len(fresh) > self.room:
            bar = scores[fresh].topk(self.room, sorted=False).values.min()
            fresh = fresh[scores[fresh] >= bar]
        every = torch.cat([self.scores.to(scores.dtype), scores[fresh]])
        top = every.argsort(descending=True, stable=True)[: self.room]
        self.scores, self.ids = every[top], torch.cat([self.ids, fresh + first])[top]


def drop(size: Tensor, count: int) -> Tensor:
    """Which slots stay, as a bool tensor, when the `count` smallest are dropped.

    Args:
        size: [slots]; without NaN.
        count: how many are dropped; of equal ones the later first.
    """
    stays = torch.ones(len(size), dtype=torch.bool)
    stays[size.argsort(descending=True, stable=True)[len(size) - count :]] = False
    return stays


def grow(slots: Slots, stay: Tensor, dropped: Tensor, scores: RowScores, slab: int) -> Tensor:
    """As many slots as were dropped, those of the highest scores: their numbers.

    Candidates are all slots that do not stay, so that a dropped one may come back. An N:M pattern
    grows in each group of m as many as were dropped there, another anywhere in the weight.

    Args:
        slots: of the weight.
        stay: int64, ascending: the slots that stay.
        dropped: int64: the slots that were dropped.
        scores: of a slab of rows; NaN is never better than a number.
        slab: entries of a slab.
    """
    pattern = slots.pattern
    best = Best(len(dropped))
    found = []
    if isinstance(pattern, NM):
        lost = torch.bincount(dropped // pattern.m, minlength=slots.count // pattern.m)
    for begin, end in slots.slabs(slab):
        first, behind = slots.number(begin), slots.number(end)
        score = candidates(slots, stay, scores(begin, end), first)
        if not isinstance(pattern, NM):
            best.offer(score, first)
            continue
        order = score.view(-1, pattern.m).argsort(dim=1, descending=True, stable=True)
        takes = torch.arange(pattern.m) < lost[first // pattern.m : behind // pattern.m, None]
        base = torch.arange(first, behind, pattern.m)[:, None]
        found.append((order + base)[takes])
    return torch.cat(found) if found else best.ids


def candidates(slots: Slots, stay: Tensor, scores: Tensor, first: int) -> Tensor:
    """The scores of a slab's slots, -inf where a slot stays, and no NaN."""
    lowest = torch.finfo(scores.dtype).min
    score = slots.sums(scores.nan_to_num(nan=lowest, posinf=torch.inf, neginf=lowest))
    begin, end = torch.searchsorted(stay, torch.tensor([first, first + len(score)])).tolist()
    score[stay[begin:end] - first] = -torch.inf
    return score
