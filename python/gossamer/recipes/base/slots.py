"""Slots of a weight: the units that are dropped and grown as one.

A slot is an entry, a column of V rows, or a tile; slots are numbered row-major. The score of a slot
is the sum over its entries. Of equal scores the slot with the lower number is kept or grown. Apart
from masks nothing here is as large as the weight: kept slots are lists of numbers, and scores come
by slabs of rows. A kept slot whose magnitude is NaN is never dropped, and a candidate whose score
is NaN grows last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.growth import spread_tiles
from gossamer.masks.runs import repeat_lists
from gossamer.patterns import NM, Pattern

# Maps (first row, row after the last) to the scores [rows, cols] of those rows.
RowScores = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Slots:
    """The slots of a weight [rows, cols] of a pattern.

    Args:
        rows: rows of the weight.
        cols: columns of the weight.
        pattern: the pattern of the weight.

    Example:
        >>> slots = Slots(4, 8, NM(2, 4, vector=4))
        >>> slots.count, slots.height, slots.width
        (8, 4, 1)
    """

    rows: int
    cols: int
    pattern: Pattern

    @property
    def height(self) -> int:
        """Rows of a slot."""
        return self.pattern.tile[0]

    @property
    def width(self) -> int:
        """Columns of a slot."""
        return self.pattern.tile[1]

    @property
    def count(self) -> int:
        """Number of slots of the weight."""
        return self.rows * self.cols // (self.height * self.width)

    def kept(self, values: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept slots, ascending, and the magnitude of each in float64; NaN stays NaN.

        Args:
            values: [nnz], the kept entries.
            coordinates: int64 [nnz], the row-major position of each.
        """
        size = values.abs().double()
        row = coordinates // (self.cols * self.height)
        slot = row * (self.cols // self.width) + coordinates % self.cols // self.width
        ids, order = slot.sort(stable=True)
        if self.height * self.width > 1:
            # A kept slot has all its entries, which the sort has put side by side.
            ids = ids[:: self.height * self.width]
            return ids, size[order].view(-1, self.height * self.width).sum(1)
        return ids, size[order]

    def entries(self, values: Tensor, structure: Structure) -> tuple[Structure, Tensor]:
        """Return a structure whose entries are the kept slots, and what their magnitudes are of.

        Args:
            values: [nnz], the kept entries.
            structure: their positions.
        """
        if not self._are_tiles(structure):
            return structure, values
        ids, size = self.kept(values, backend.coordinates(structure))
        across = self.cols // self.width
        counts = torch.bincount(ids // across, minlength=self.rows // self.height)
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        group = (self.pattern.n, self.pattern.m) if isinstance(self.pattern, NM) else (0, 0)
        grid, perm = backend.encode_csr((len(counts), across), indptr, ids % across, 1, *group)
        return grid, size[perm]

    def spread(self, entries: Structure, like: Structure) -> Structure:
        """Return the structure of the weight from that of its slots.

        Args:
            entries: a structure whose entries are the kept slots.
            like: a structure of the weight.
        """
        if not self._are_tiles(like):
            return entries
        if isinstance(self.pattern, NM):
            return repeat_lists(entries, self.pattern)
        return spread_tiles(entries, like.layout.vector, self.height, self.width)

    def scores(self, slab: Tensor, entries: Structure) -> Tensor:
        """Return the scores of a slab [rows, cols] in the rows and columns of `entries`."""
        if (entries.layout.rows, entries.layout.cols) == (self.rows, self.cols):
            return slab
        return self.sums(slab).view(-1, entries.layout.cols)

    def _are_tiles(self, structure: Structure) -> bool:
        return (self.height, self.width) != (structure.layout.vector, 1)

    def mask(self, ids: Tensor) -> Tensor:
        """Return the bool mask [rows, cols] that keeps these slots."""
        flat = torch.zeros(self.count, dtype=torch.bool)
        flat[ids] = True
        tiles = flat.view(self.rows // self.height, 1, self.cols // self.width, 1)
        shape = (self.rows // self.height, self.height, self.cols // self.width, self.width)
        return tiles.expand(shape).reshape(self.rows, self.cols)

    def slabs(self, entries: int) -> list[tuple[int, int]]:
        """Return ranges of rows with about `entries` entries each that cut no slot."""
        step = max(entries // max(self.cols * self.height, 1), 1) * self.height
        return [(row, min(row + step, self.rows)) for row in range(0, self.rows, step)]

    def sums(self, scores: Tensor) -> Tensor:
        """Return the scores of a slab's slots, flat, from those of its entries [rows, cols]."""
        if self.height * self.width == 1:
            return scores.reshape(-1)
        tiles = scores.view(-1, self.height, self.cols // self.width, self.width)
        return tiles.sum((1, 3), dtype=torch.float64).view(-1)

    def number(self, row: int) -> int:
        """Return the number of the first slot that begins in a row."""
        return row // self.height * (self.cols // self.width)


class Best:
    """The slots with the highest scores of all that were offered, at most `capacity`.

    Slots are offered in ascending order, so that of equal scores the lower number is kept.

    Args:
        capacity: number of slots to keep.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids = torch.empty(0, dtype=torch.int64)
        self.scores = torch.empty(0)

    def offer(self, scores: Tensor, first: int) -> None:
        """Offer consecutive slots; a score of -inf excludes a slot.

        Args:
            scores: [slots], without NaN.
            first: number of the first slot; larger than all numbers offered before.
        """
        if not self.capacity or not scores.numel():
            return
        least = torch.tensor(-torch.inf, dtype=scores.dtype)
        if len(self.ids) == self.capacity:
            least = self.scores[-1]
        fresh = (scores > least).nonzero().flatten()
        if len(fresh) > self.capacity:
            bar = scores[fresh].topk(self.capacity, sorted=False).values.min()
            fresh = fresh[scores[fresh] >= bar]
        every = torch.cat([self.scores.to(scores.dtype), scores[fresh]])
        top = every.argsort(descending=True, stable=True)[: self.capacity]
        self.scores, self.ids = every[top], torch.cat([self.ids, fresh + first])[top]


def drop(size: Tensor, count: int) -> Tensor:
    """Return which slots are kept, as a bool tensor, when the `count` smallest are dropped.

    Args:
        size: [slots]; a NaN is the largest.
        count: number of slots to drop; of equal ones the later is dropped first.
    """
    stays = torch.ones(len(size), dtype=torch.bool)
    stays[size.argsort(descending=True, stable=True)[len(size) - count :]] = False
    return stays


def candidates(slots: Slots, stay: Tensor, scores: Tensor, first: int) -> Tensor:
    """Return the scores of a slab's slots, without NaN; -inf where a slot is kept."""
    lowest = torch.finfo(scores.dtype).min
    score = slots.sums(scores.nan_to_num(nan=lowest, posinf=torch.inf, neginf=lowest))
    begin, end = torch.searchsorted(stay, torch.tensor([first, first + len(score)])).tolist()
    score[stay[begin:end] - first] = -torch.inf
    return score
