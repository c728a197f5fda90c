"""SET: sparse evolutionary training. Small weights go, others grow at random in their place.

Every `every` steps, in each layer: the share f(t) of its kept entries that is smallest in
magnitude is dropped, and as many grow, f(t) = fraction (1 + cos(pi t / T)) / 2. Mocanu et al.
2018. The number of kept entries of a layer never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer import backend
from gossamer.nn import SparseLinear
from gossamer.patterns import GroupedNM
from gossamer.recipes.slots import RowScores, Slots, drop, grow
from gossamer.recipes.static import (
    Static,
    check_count,
    check_kind,
    check_share,
    steps_between,
    steps_needed,
)
from gossamer.schedules import Cosine

# Entries of the rows whose scores are in memory at a time: 4 MB in float32.
SLAB = 1 << 20


@dataclass(eq=False)
class SET(Static):
    """Drop the smallest kept entries now and then, and grow as many at random.

    Works for every pattern. An entry of V > 1 rows, or a tile, moves as one, by the sum of its
    magnitudes. With N:M, the smallest of the whole layer are dropped, and each group of m grows as
    many as it lost. What was dropped may grow back at once, and then keeps its value and its
    optimizer state; any other new entry starts at 0, with state 0. The mask moves behind the
    optimizer's step, which is taken as ever.

    Args:
        pattern: of the kept entries, or its text.
        distribution: as in `Static`; None is "erk" where densities may differ.
        seed: of the masks, and of what grows.
        fraction: share of the kept entries that is dropped at first; 0 moves nothing.
        every: steps from one update to the next; None is 100, or a tenth of the steps with updates
            where that is less.
        until: share of the training after which the masks rest.

    Raises:
        PatternError: as `Static`.
        RecipeError: a number out of range.

    Reference:
        Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
        connectivity", algorithm 1; the cosine and the share are of Evci et al. 2020.

    Example:
        >>> SET("90%").distribution, SET("2:4").distribution
        ('erk', 'uniform')
    """

    fraction: float = 0.3
    every: int | None = None
    until: float = 0.75

    preferred = "erk"

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        check_kind(
            self.pattern,
            GroupedNM,
            f"{who} would upset the balance of its choices",
            "a pattern such as '2:4' or '50%'",
        )
        self.fraction = check_share(self.fraction, f"{who} got fraction")
        self.until = check_share(self.until, f"{who} got until")
        if self.every is not None:
            self.every = check_count(self.every, f"{who} got every")

    def minimum_steps(self) -> int:
        """So many that one update falls into them."""
        return steps_needed(self.every, self.until) if self.fraction else 1

    def share(self, t: int) -> float:
        """The share of its kept entries that a layer drops at step t; 0 between updates."""
        last = int(self.until * self.total_steps)
        if not 0 < t < last or t % steps_between(self.every, last):
            return 0.0
        return Cosine(self.fraction, 0.0, 0, last)(t)

    def after_step(self, t: int) -> None:
        """Move the masks, when this is a step to do so."""
        if share := self.share(t):
            self.update(t, share)

    def update(self, t: int, share: float) -> None:
        """Drop a share and grow as many, in each layer."""
        for index, name, layer in self.of_type(SparseLinear):
            if layer.weight.values.requires_grad:
                self.move(t, index, name, layer, share)

    def move(self, t: int, index: int, name: str, layer: SparseLinear, share: float) -> None:
        """Drop and grow in one layer."""
        weight = layer.weight
        slots = Slots(weight.shape[0], weight.shape[1], weight.pattern)
        if (scores := self.scores(t, index, name, slots)) is None:
            return
        ids, size = slots.kept(weight.values, backend.coordinates(weight.structure))
        stays = drop(size, int(share * len(ids)))
        stay, dropped = ids[stays], ids[~stays]
        grown = grow(slots, stay, dropped, scores, SLAB)
        if not torch.equal(grown.sort().values, dropped):
            weight.set_mask(slots.mask(torch.cat([stay, grown])), self.optimizer)

    def scores(self, t: int, index: int, name: str, slots: Slots) -> RowScores | None:
        """What a layer grows by, a slab of rows at a time from above; None to leave it alone."""
        generator = self.generator(t, index, self.seed)

        def random(begin: int, end: int) -> Tensor:
            # One number for a slot, at its first entry: of a sum, the middling would be likely.
            drawn = torch.zeros(end - begin, slots.cols, dtype=torch.float64)
            corner = drawn[:: slots.high, :: slots.wide]
            corner.copy_(torch.rand(corner.shape, generator=generator, dtype=torch.float64))
            return drawn

        return random
