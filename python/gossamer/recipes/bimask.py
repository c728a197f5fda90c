"""Bi-Mask: one N:M mask for the forward product, another for the backward one.

    forward:   Y = X (M_f * W)^T,         M_f the n largest of every m columns of a row
    backward:  dX = dY (M_b * M_f * W),   M_b the n largest of every m rows of a column

The groups of M_b are of rows in another order, a permutation chosen so that as few entries as
possible are lost: of `candidates` random ones the best every `choose_every` steps. The weight
gradient is dense (straight through) and what M_f prunes decays as in SR-STE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from gossamer.errors import RecipeError
from gossamer.masks import add_pruned_
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.bimask import BiMaskLinear
from gossamer.patterns import Pattern, as_integer
from gossamer.recipes.recipe import Recipe


@dataclass(eq=False)
class BiMask(Recipe):
    """N:M forward, column N:M backward under a chosen permutation of rows, over a dense master.

    Args:
        pattern: N:M without shared rows.
        decay: lambda of SR-STE: decay (1 - M_f) W is added to the gradient.
        choose_every: steps between two choices of the permutation.
        candidates: random permutations that each choice tries.
        seed: of the permutations.

    Raises:
        PatternError: the pattern is not plain N:M.
        RecipeError: a number is out of range.

    Reference:
        Zhang et al. 2023, "Bi-directional Masks for Efficient N:M Sparse Training",
        arXiv 2302.06058; the permutation in use is a candidate too, so that a choice never loses.

    Example:
        >>> import torch
        >>> layer = BiMask("1:4").prepare(torch.nn.Linear(8, 4))
        >>> layer.mask().sum(1).tolist()
        [2, 2, 2, 2]
    """

    decay: float = 2e-4
    choose_every: int = 100
    candidates: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "BiMask")
        for name in ("choose_every", "candidates", "seed"):
            setattr(self, name, as_integer(getattr(self, name), f"BiMask got {name}"))
        for name, good, needed in (
            ("decay", 0 <= self.decay < math.inf, "a number that is not negative"),
            ("choose_every", self.choose_every >= 1, "at least 1"),
            ("candidates", self.candidates >= 0, "at least 0"),
        ):
            if not good:
                raise RecipeError(f"BiMask got {name}={getattr(self, name)}; it must be {needed}")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with a mask for each direction."""
        return BiMaskLinear.from_dense(linear, plain_groups(pattern, "BiMask"))

    def start(self) -> None:
        """The first choice of permutations."""
        self._choose(0)

    @property
    def overlaps(self) -> dict[str, float]:
        """By layer, the share of the forward mask that the last choice kept backward."""
        shares = self.state.get("overlaps")
        return {} if shares is None else dict(zip(self.layers, shares.tolist(), strict=True))

    def before_step(self, t: int) -> None:
        """Add the decay of what the forward mask prunes to the gradients."""
        for _, _, layer in self.of_type(BiMaskLinear):
            if self.decay and layer.weight.grad is not None:
                add_pruned_(layer.weight.grad, layer.weight, self.decay, layer.structure)

    def after_step(self, t: int) -> None:
        """Choose permutations anew."""
        if (t + 1) % self.choose_every == 0:
            self._choose(t + 1)

    def _choose(self, t: int) -> None:
        shares = torch.zeros(len(self.layers), dtype=torch.float64)
        for index, _, layer in self.of_type(BiMaskLinear):
            shares[index] = layer.choose_order(self.candidates, self.generator(t, index, self.seed))
        self.state["overlaps"] = shares


__all__ = ["BiMask"]
