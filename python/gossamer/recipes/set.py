"""SET: sparse evolutionary training. Small weights are dropped, others grow at random.

Every `every` steps each layer drops the share f(t) of its kept entries with the smallest magnitude
and grows as many: f(t) = fraction (1 + cos(pi t / T)) / 2. The number of kept entries of a layer
never changes. Mocanu et al. 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.backend import Structure
from gossamer.backend.growth import drop, grow_random
from gossamer.masks import Distribution
from gossamer.masks.selection import is_own
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.patterns import parse_pattern
from gossamer.recipes.base.checks import check_count, check_share, refuse_unmovable
from gossamer.recipes.base.reselecting import reselect
from gossamer.recipes.base.slots import Slots
from gossamer.recipes.base.updates import steps_between, steps_needed
from gossamer.recipes.static import Static
from gossamer.schedules import Cosine


@dataclass(eq=False)
class SET(Static):
    """Drop the smallest kept entries at intervals, and grow as many at random.

    Any pattern whose `moves` is True, so not N:M:gK; one from outside the package moves by its own
    selection. An entry of V > 1 rows, or a tile, moves as one, ranked by the sum of its magnitudes.
    With N:M the smallest entries of the whole layer are dropped, and each group
    of m grows as many as it lost. A dropped entry may grow back at once, and then keeps its value
    and its optimizer state; any other new entry starts at 0, with state 0. The mask moves after
    the optimizer's step.

    Args:
        pattern: pattern of the kept entries, or its text.
        distribution: "uniform" or "erk", see `Recipe`; None is "erk" unless the pattern is N:M.
        seed: seed of the masks and of the growth.
        fraction: share of the kept entries that the first update drops; 0 moves nothing.
        every: steps between two updates; None is 100, or fewer so that 10 updates fit.
        end_share: point of the training, as a share of the steps, after which masks are fixed.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: a number out of range.

    Reference:
        Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse
        connectivity", algorithm 1; the cosine and its end are from Evci et al. 2020.

    Example:
        >>> SET("90%").distribution, SET("2:4").distribution
        ('erk', 'uniform')
    """

    distribution: Distribution | None = field(default=None, kw_only=True)
    fraction: float = 0.3
    every: int | None = None
    end_share: float = 0.75

    renamed: ClassVar[dict[str, str]] = {"until": "end_share"}

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        refuse_unmovable(self.pattern, who)
        check_share(self.fraction, f"{who} got fraction")
        check_share(self.end_share, f"{who} got end_share")
        if self.every is not None:
            check_count(self.every, f"{who} got every")

    def usual_distribution(self) -> Distribution:
        """Return "erk" where layers may have different densities."""
        return "erk" if parse_pattern(self.pattern).adjustable else "uniform"

    def minimum_steps(self) -> int:
        """Smallest number of steps that contains an update."""
        return steps_needed(self.every, self.end_share) if self.fraction else 1

    def share(self, t: int) -> float:
        """Share of the kept entries that a layer drops at step t; 0 between updates."""
        check(SET.share, locals())
        last = int(self.end_share * self.total_steps)
        if not 0 < t < last or t % steps_between(self.every, last):
            return 0.0
        return Cosine(self.fraction, 0.0, 0, last)(t)

    def after_step(self, t: int) -> None:
        """Move the masks if step t has an update."""
        if share := self.share(t):
            self.update(t, share)

    def update(self, t: int, share: float) -> None:
        """Drop a share of the kept entries of each layer, and grow as many.

        All masks are chosen before the first moves: an error leaves the model as it was.
        """
        moves = [
            (layer.weight, new)
            for index, name, layer in self.of_type(SparseLayer)
            if layer.weight.values.requires_grad
            and (new := self.moved(t, index, name, layer, share)) is not None
        ]
        for weight, new in moves:
            weight.set_mask(new, self.optimizer)

    def moved(
        self, t: int, index: int, name: str, layer: SparseLayer, share: float
    ) -> Structure | None:
        """Return a layer's structure after its drop and growth; None if it stays."""
        weight = layer.weight
        slots = Slots(weight.shape[0], weight.shape[1], weight.pattern)
        if not is_own(weight.pattern):
            growth = self.growth(t, index, name, slots)
            return None if growth is None else reselect(weight, slots, share, growth)
        old, values = slots.entries(layer.kept_values(), weight.structure)
        strength = self.strength(t, index, values)
        stays = drop(old, strength, int(share * len(old.indices)))
        new = self.grown(t, index, name, slots, old, stays)
        if new is None or _equal(new, old):
            return None
        return slots.spread(new, weight.structure)

    def strength(self, t: int, index: int, values: Tensor) -> Tensor:
        """Return what the kept values are worth [nnz]: the smallest magnitudes are dropped."""
        return values

    def growth(self, t: int, index: int, name: str, slots: Slots) -> Tensor | None:
        """Return the rank of each slot to grow [slots]; None changes nothing."""
        return torch.rand(slots.count, generator=self.generator(t, index, self.seed))

    def grown(
        self, t: int, index: int, name: str, slots: Slots, old: Structure, stays: Tensor
    ) -> Structure | None:
        """Return the structure with as many grown slots as were dropped; None changes nothing.

        Args:
            t: the step.
            index: number of the layer.
            name: name of the layer.
            slots: the slots of its weight.
            old: a structure whose entries are the kept slots.
            stays: bool [entries], the slots that stay.
        """
        return grow_random(old, stays, self.generator(t, index, self.seed).initial_seed())


def _equal(a: Structure, b: Structure) -> bool:
    if a.indptr is not None and b.indptr is not None and not torch.equal(a.indptr, b.indptr):
        return False
    return torch.equal(a.indices, b.indices)
