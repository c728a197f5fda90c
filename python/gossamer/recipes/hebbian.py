"""HebbianGrowth: SET that grows where input and output of a layer are most correlated.

    score_ij = | corr(y_i, x_j) |   over the rows of the batch,   y = W x + b

What fires together is wired together. No gradient is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gossamer.nn.layers.sparse import SparseLayer
from gossamer.recipes.base.slots import RowScores, Slots
from gossamer.recipes.rigl import RigL


@dataclass(eq=False)
class HebbianGrowth(RigL):
    """Drop the smallest kept entries at intervals, and grow those with the largest correlation.

    Like `RigL`, with the layer's output in the place of its output gradient, and both centred and
    scaled feature by feature. The output is that of the layer itself, before any activation. It is
    computed once more, at updates only. Over several calls or processes the mean of their
    correlations counts. The rewiring rule of G2GNet, which also uses correlations, could not be
    obtained: this is not it.

    Args:
        pattern: pattern of the kept entries, or its text.
        distribution: "uniform" or "erk"; None is "erk" unless the pattern is N:M.
        seed: seed of the first masks.
        fraction: share of the kept entries that the first update drops; 0 moves nothing.
        every: steps between two updates; None is 100, or fewer so that 10 updates fit.
        end_share: point of the training, as a share of the steps, after which masks are fixed.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: a number out of range.

    Reference:
        The rule is derived from Hebb 1949, "The organization of behavior".

    Example:
        >>> HebbianGrowth("90%").distribution
        'erk'
    """

    def works_sharded(self) -> bool:
        """No: it calls the layers between the steps."""
        return False

    def scores(self, t: int, index: int, name: str, slots: Slots) -> RowScores | None:
        """Return the magnitudes of the correlations; None if the layer had no gradient."""
        capture, layer = self.captures[name], cast(SparseLayer, self.layers[name])
        features = -1 - int(getattr(layer, "dims", 0))  # those of images stand before their sizes
        pairs = []
        for x, _ in capture.pairs:
            x = x.to(layer.weight.dtype)
            # Not the layer itself: its hooks are for calls of the model.
            pairs.append((_standard(x, features), _standard(layer.forward(x), features)))
        capture.pairs = pairs
        return super().scores(t, index, name, slots)


def _standard(x: Tensor, features: int) -> Tensor:
    """Return x with mean 0 and sum of squares 1 of each feature; a constant one is 0."""
    over = [d for d in range(x.dim()) if d != features % x.dim()]
    x = x.double()  # the mean of equal numbers is that number
    x = x - x.mean(over, keepdim=True)
    norm = x.square().sum(over, keepdim=True).sqrt_()
    return x / norm.clamp_min(torch.finfo(x.dtype).tiny)


__all__ = ["HebbianGrowth"]
