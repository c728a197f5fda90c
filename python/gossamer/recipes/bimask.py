"""Bi-Mask: one N:M mask for the forward product, another for the backward one.

    forward:   Y = X (M_f * W)^T,         M_f the n largest of every m columns of a row
    backward:  dX = dY (M_b * M_f * W),   M_b the n largest of every m rows of a column

The groups of M_b are of rows in another order, a permutation chosen so that as few entries as
possible are lost: every `every` steps the best of `candidates` random ones. The weight gradient is
dense (straight through); what M_f prunes decays through the gradient, as in `FST`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gossamer.masks import add_pruned_
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_count, check_number
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class BiMask(Recipe):
    """N:M along rows forward and along columns backward, over a dense weight.

    Args:
        pattern: N:M without shared rows.
        distribution: "uniform", because N:M patterns have a fixed density.
        gradient_decay: lambda; lambda (1 - M_f) W is added to the gradient.
        every: steps between two choices of the permutation.
        candidates: random permutations that each choice tries.
        seed: seed of the permutations.

    Raises:
        PatternError: the pattern is not plain N:M.
        RecipeError: a number is out of range.

    Reference:
        Zhang et al. 2023, "Bi-directional Masks for Efficient N:M Sparse Training",
        arXiv 2302.06058. Here the present permutation is a candidate too, so no choice is worse.

    Example:
        >>> import torch
        >>> layer = BiMask("1:4").prepare(torch.nn.Linear(8, 4))
        >>> layer.mask().sum(1).tolist()
        [2, 2, 2, 2]
    """

    gradient_decay: float = 2e-4
    every: int = 100
    candidates: int = 100
    seed: int = 0

    renamed: ClassVar[dict[str, str]] = {"decay": "gradient_decay", "choose_every": "every"}

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "BiMask")
        check_number(self.gradient_decay, "BiMask got gradient_decay")
        check_count(self.every, "BiMask got every")
        check_count(self.candidates, "BiMask got candidates", least=0)

    def takes_convolutions(self) -> bool:
        """Yes, without groups of channels."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with one mask per direction."""
        return BiMaskLinear.from_dense(linear, plain_groups(pattern, "BiMask"))

    def start(self) -> None:
        """Choose the first permutations."""
        self._choose(0)

    @property
    def overlaps(self) -> dict[str, float]:
        """Share of the forward mask that the last choice keeps backward, by layer."""
        shares = self.state.get("overlaps")
        return {} if shares is None else dict(zip(self.layers, shares.tolist(), strict=True))

    def before_step(self, t: int) -> None:
        """Add the decay of the pruned weights to the gradients."""
        for _, _, layer in self.of_type(BiMaskLinear):
            if self.gradient_decay and layer.weight.grad is not None:
                add_pruned_(layer.weight.grad, layer.weight, self.gradient_decay, layer.structure)

    def after_step(self, t: int) -> None:
        """Choose the permutations, every `every` steps."""
        if (t + 1) % self.every == 0:
            self._choose(t + 1)

    def _choose(self, t: int) -> None:
        shares = torch.zeros(len(self.layers), dtype=torch.float64)
        for index, _, layer in self.of_type(BiMaskLinear):
            shares[index] = layer.choose_order(self.candidates, self.generator(t, index, self.seed))
        self.state["overlaps"] = shares


__all__ = ["BiMask"]
