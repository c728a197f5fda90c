"""Static: random masks that never move.

Every layer keeps random entries, at the density that the distribution gives it, and trains those
alone. On wide networks this comes close to dense training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from gossamer.masks import Distribution, random_mask
from gossamer.nn.layers.linear import dense_weight
from gossamer.nn.layers.replacing import sparse_from_dense
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_count
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class Static(Recipe):
    """Random masks that never move; layers store kept entries only, convolutions too.

    Args:
        pattern: pattern of the kept entries, or its text.
        distribution: "uniform" or "erk", see `Recipe`; None is "uniform".
        seed: seed of the masks, at least 0.

    Raises:
        PatternError: an unknown pattern, or "erk" for an N:M pattern.
        RecipeError: an unknown distribution, or a negative seed.

    Reference:
        Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning".

    Example:
        >>> import torch
        >>> model = Static("75%").prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> model[0].weight.nnz
        8
    """

    pattern: str | Pattern = "90%"
    distribution: Distribution | None = field(default=None, kw_only=True)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.seed, f"{type(self).__name__} got seed", least=0)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that keeps random entries."""
        rows, cols = dense_weight(linear).shape
        mask = random_mask((rows, cols), pattern, self.mask_seed(index))
        return sparse_from_dense(linear, pattern, mask)

    def takes_convolutions(self) -> bool:
        """Yes: a convolution stores its kept entries as a linear layer does."""
        return True

    def takes_scores(self) -> bool:
        """Yes: a score then takes the place of the random draw."""
        return True

    def works_sharded(self) -> bool:
        """Yes: layers store kept entries only, which are gathered one layer at a time."""
        return True

    def mask_seed(self, index: int) -> int:
        """Return the seed of a layer's first mask."""
        return self.generator(0, index, self.seed).initial_seed()


__all__ = ["Static"]
