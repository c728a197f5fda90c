"""DSL: kept entries move between layers, too, and their total never changes.

At an update the n smallest kept entries of all layers together are dropped and the n candidates of
largest gradient, of all layers together, grow: n = f(t) times the total, f as in `RigL`. So layers
whose entries matter less become sparser.

After Wang et al. 2024, whose abstract and summaries were at hand, not their algorithm: from there
are the fixed total, the sparsity of the layers that adjusts to the weights, growth by gradient,
and the cosine. That both rankings run over all layers at once, and the floor, are derived here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gossamer import backend
from gossamer.masks import random_mask
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.linear import dense_weight
from gossamer.patterns import NM, GroupedNM, Pattern
from gossamer.recipes.held import held_layer, hold
from gossamer.recipes.rigl import RigL
from gossamer.recipes.set import SLAB
from gossamer.recipes.slots import Best, RowScores, Slots, candidates, drop
from gossamer.recipes.static import check_kind, check_share


@dataclass(eq=False)
class DSL(RigL):
    """Drop the smallest kept entries of all layers, and grow those of the largest gradient.

    Layers are `MaskedLinear`: a dense weight that is 0 wherever it is masked, since the number of
    kept entries of a layer changes. Dropped entries may grow back and then keep their value; other
    new ones start at 0. The gradient is computed as in `RigL`, a slab of rows at a time.

    Args:
        pattern: unstructured or of blocks, or its text: the sparsity of all layers together.
        distribution: of the first masks, as in `SET`.
        seed: of the first masks.
        fraction: share of all kept entries that is dropped at first; 0 moves nothing.
        every: steps from one update to the next, as in `SET`.
        until: share of the training after which the masks rest.
        floor: share of its first kept entries that a layer keeps in any case, so that none dies.

    Raises:
        PatternError: no such pattern, or N:M, whose layers all have one density.
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
        check_kind(
            self.pattern,
            NM | GroupedNM,
            "its layers all keep the same share, and DSL moves entries between layers",
            "a pattern such as '90%' or 'block 16x16 90%'",
        )
        self.floor = check_share(self.floor, "DSL got floor")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A dense weight under a random mask."""
        rows, cols = dense_weight(linear).shape
        layer = held_layer(linear, pattern, pattern)
        layer.set_mask(random_mask((rows, cols), pattern, self.mask_seed(index)))
        return layer

    def start(self) -> None:
        """Set to 0 what the first masks leave out; note how much each layer keeps in any case."""
        super().start()
        for _, name, layer in self.of_type(MaskedLinear):
            hold(layer, layer.mask(), layer.pattern, self.optimizer)
            slots = _slots(layer)
            first = layer.nnz // (slots.high * slots.wide)
            self.state[f"floor/{name}"] = min(first, max(1, int(self.floor * first)))

    def watched(self) -> Iterator[tuple[str, nn.Module, nn.Parameter, tuple[int, int]]]:
        """The (name, layer, parameter, shape) of each layer whose gradient is needed."""
        for _, name, layer in self.of_type(MaskedLinear):
            yield name, layer, layer.weight, (layer.out_features, layer.in_features)

    def update(self, t: int, share: float) -> None:
        """Drop a share of all kept entries and grow as many, within and between layers."""
        moving: list[tuple[MaskedLinear, Slots, Tensor, RowScores]] = []
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
            moving.append((layer, slots, ids, scores))
        if moving:
            self._reallocate(moving, torch.cat(sizes), share)

    def _reallocate(
        self,
        moving: list[tuple[MaskedLinear, Slots, Tensor, RowScores]],
        sizes: Tensor,
        share: float,
    ) -> None:
        count = min(int(share * len(sizes)), int(sizes.isfinite().sum()))
        stays = torch.split(drop(sizes, count), [len(ids) for _, _, ids, _ in moving])
        best = Best(count)
        base = 0
        for (_, slots, ids, scores), stay in zip(moving, stays, strict=True):
            for begin, end in slots.slabs(SLAB):
                first = slots.number(begin)
                best.offer(candidates(slots, ids[stay], scores(begin, end), first), base + first)
            base += slots.count
        base = 0
        for (layer, slots, ids, _), stay in zip(moving, stays, strict=True):
            here = (best.ids >= base) & (best.ids < base + slots.count)
            kept = torch.cat([ids[stay], best.ids[here] - base])
            hold(layer, slots.mask(kept), _of_count(slots, len(kept)), self.optimizer)
            base += slots.count


def _slots(layer: MaskedLinear) -> Slots:
    return Slots(layer.out_features, layer.in_features, layer.pattern)


def _of_count(slots: Slots, kept: int) -> Pattern:
    """The pattern of a kind that keeps just so many slots."""
    pattern = slots.pattern
    if isinstance(pattern, NM | GroupedNM):
        return pattern
    return replace(pattern, sparsity=1.0 - kept / slots.count)
