"""DSL, a stand-in: kept entries also move between layers, and their total never changes.

An update drops the n smallest kept entries of all layers together and grows the n candidates with
the largest gradient of all layers together: n = f(t) times the total, f as in `RigL`. So layers
whose entries matter less become sparser.

From the abstract and summaries of Wang et al. 2024 (not their algorithm) are the fixed total, the
sparsity per layer that follows the weights, growth by gradient, and the cosine. Ranking over all
layers at once and the floor are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.masks import random_mask
from gossamer.nn import MaskedLinear
from gossamer.patterns import NM, GroupedNM, Pattern
from gossamer.recipes.base.checks import check_share, refuse_own, refuse_patterns
from gossamer.recipes.base.fixed import apply_mask, fixed_mask, zero_outside
from gossamer.recipes.base.slots import Best, RowScores, Slots, candidates, drop
from gossamer.recipes.rigl import SLAB, RigL


@dataclass(eq=False)
class DSL(RigL):
    """Not the published rule, which could not be obtained: RigL that ranks all layers together.

    It drops the smallest kept entries of all layers, and grows those with the largest gradient.
    Layers are `MaskedLinear` with a dense weight that is 0 outside the mask, because the number of
    kept entries of a layer changes. A dropped entry may grow back, and then keeps its value; other
    new entries start at 0. The gradient is computed as in `RigL`, a slab of rows at a time.

    Args:
        pattern: an unstructured or block pattern, or its text; its sparsity is that of all layers
            together.
        distribution: "uniform" or "erk", for the first masks; None is "erk".
        seed: seed of the first masks.
        fraction: share of all kept entries that the first update drops; 0 moves nothing.
        every: steps between two updates; None is 100, or fewer so that 10 updates fit.
        end_share: point of the training, as a share of the steps, after which masks are fixed.
        floor: share of its first kept entries that a layer always keeps.

    Raises:
        PatternError: an unknown pattern, or N:M, which gives all layers one density.
        RecipeError: a number out of range.

    Reference:
        Wang et al. 2024, "Dynamic Sparse Learning: A Novel Paradigm for Efficient Recommendation";
        Mostafa and Wang 2019, "Parameter Efficient Training of Deep Convolutional Neural Networks
        by Dynamic Sparse Reparameterization" (entries that move between layers).

    Example:
        >>> DSL("90%").floor
        0.1
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_patterns(
            self.pattern,
            NM | GroupedNM,
            "its layers all keep the same share, and DSL moves entries between layers",
            "a pattern such as '90%' or 'block 16x16 90%'",
        )
        refuse_own(self.pattern, "DSL", "moves entries between layers")
        check_share(self.floor, "DSL got floor")

    def works_sharded(self) -> bool:
        """No: its weights are dense."""
        return False

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A dense weight under a random mask."""
        layer = fixed_mask(linear, pattern, pattern)
        shape = layer.out_features, layer.in_features
        layer.set_mask(random_mask(shape, pattern, self.mask_seed(index)))
        return layer

    def start(self) -> None:
        """Zero what the first masks drop, and note how much each layer always keeps."""
        super().start()
        for _, name, layer in self.of_type(MaskedLinear):
            zero_outside(layer.weight, layer.mask(), self.optimizer)
            slots = _slots(layer)
            first = layer.nnz // (slots.height * slots.width)
            self.state[f"floor/{name}"] = min(first, max(1, int(self.floor * first)))

    def watched(self) -> Iterator[tuple[str, nn.Module, nn.Parameter, tuple[int, int]]]:
        """Yield the (name, layer, parameter, shape) of each layer whose gradient is needed."""
        for _, name, layer in self.of_type(MaskedLinear):
            yield name, layer, layer.weight, (layer.out_features, layer.in_features)

    def update(self, t: int, share: float) -> None:
        """Drop a share of all kept entries, and grow as many in any layer."""
        movable: list[tuple[MaskedLinear, Slots, Tensor, RowScores]] = []
        sizes = []
        for index, name, layer in self.of_type(MaskedLinear):
            slots = _slots(layer)
            if not layer.weight.requires_grad:
                continue
            if (scores := self.scores(t, index, name, slots)) is None:
                continue
            values = backend.gather(layer.weight.detach(), layer.structure)
            ids, size = slots.kept(values, backend.coordinates(layer.structure))
            safe = size.argsort(descending=True, stable=True)[: self.state[f"floor/{name}"]]
            sizes.append(size.index_fill(0, safe, torch.inf))
            movable.append((layer, slots, ids, scores))
        if movable:
            self._reallocate(movable, torch.cat(sizes), share)

    def _reallocate(
        self,
        movable: list[tuple[MaskedLinear, Slots, Tensor, RowScores]],
        sizes: Tensor,
        share: float,
    ) -> None:
        count = min(int(share * len(sizes)), int(sizes.isfinite().sum()))
        stays = torch.split(drop(sizes, count), [len(ids) for _, _, ids, _ in movable])
        best = Best(count)
        base = 0
        for (_, slots, ids, scores), stay in zip(movable, stays, strict=True):
            for begin, end in slots.slabs(SLAB):
                first = slots.number(begin)
                best.offer(candidates(slots, ids[stay], scores(begin, end), first), base + first)
            base += slots.count
        base = 0
        for (layer, slots, ids, _), stay in zip(movable, stays, strict=True):
            here = (best.ids >= base) & (best.ids < base + slots.count)
            kept = torch.cat([ids[stay], best.ids[here] - base])
            apply_mask(layer, slots.mask(kept), _of_count(slots, len(kept)), self.optimizer)
            base += slots.count


def _slots(layer: MaskedLinear) -> Slots:
    return Slots(layer.out_features, layer.in_features, layer.pattern)


def _of_count(slots: Slots, kept: int) -> Pattern:
    """The pattern that keeps exactly so many slots."""
    pattern = slots.pattern
    if not pattern.adjustable:
        return pattern
    return pattern.at_sparsity(1.0 - kept / slots.count)
