"""ISSP: after every step, shrink the smallest weights slightly instead of zeroing them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gossamer.masks import magnitude_mask
from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_share
from gossamer.recipes.prune_late import PruneLate


@dataclass(eq=False)
class ISSP(PruneLate):
    """Iterative soft shrinkage: after each step, pruning candidates are multiplied by `shrink`.

    The candidates are chosen by magnitude after each step, so an entry that the loss needs can
    grow back. At the end of the phase they are pruned.

    Args:
        pattern: which entries are kept by the pruning.
        distribution: how layers share the sparsity: "uniform" or "erk".
        prune_share: share of the steps before the pruning, in [0, 1].
        shrink: factor in [0, 1]; 0 is iterative hard thresholding.

    Reference:
        Wang et al. 2023, "Iterative Soft Shrinkage Learning for Efficient Image
        Super-Resolution".
    """

    shrink: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.shrink, "ISSP got shrink")

    def regularise(self, t: int) -> None:
        """Shrink the smallest entries of each layer."""
        for _, _, layer in self.of_type(MaskedLinear):
            weight = layer.weight
            kept = magnitude_mask(weight, layer.target)
            weight.copy_(torch.where(kept, weight, weight * self.shrink))


__all__ = ["ISSP"]
