"""Static: random masks that never move.

Every layer keeps the entries that a seed picks, at the density that its place in a distribution
gives it, and trains those alone. On wide networks this comes close to dense training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from types import UnionType

from torch import nn

from gossamer.errors import PatternError, RecipeError
from gossamer.masks import random_mask
from gossamer.nn import SparseLinear
from gossamer.nn.layers.linear import dense_weight
from gossamer.patterns import NM, GroupedNM, Pattern, as_integer
from gossamer.recipes.recipe import Recipe

DISTRIBUTIONS = ("uniform", "erk")


@dataclass(eq=False)
class Static(Recipe):
    """Random masks that never move; `SparseLinear` layers.

    Args:
        pattern: of the kept entries, or its text.
        distribution: "uniform": the same density in every layer. "erk": eps * (rows + cols) /
            (rows * cols), so that small layers stay denser (Evci et al. 2020). An N:M pattern has
            but one density, so that only "uniform" goes with it. None is "uniform".
        seed: of the masks, at least 0.

    Raises:
        PatternError: no such pattern, or "erk" for an N:M pattern.
        RecipeError: no such distribution, or a negative seed.

    Reference:
        Liu et al. 2022, "The Unreasonable Effectiveness of Random Pruning".

    Example:
        >>> import torch
        >>> model = Static("75%").prepare(torch.nn.Sequential(torch.nn.Linear(8, 4)))
        >>> model[0].weight.nnz
        8
    """

    pattern: str | Pattern = "90%"
    distribution: str | None = None
    seed: int = 0

    # What None stands for where densities may differ.
    preferred = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        fixed = isinstance(self.pattern, NM | GroupedNM)
        if self.distribution is None:
            self.distribution = "uniform" if fixed else self.preferred
        if self.distribution not in DISTRIBUTIONS:
            raise RecipeError(
                f"{who} got distribution={self.distribution!r}; it must be a known one: choose "
                "'uniform' or 'erk'"
            )
        if fixed and self.distribution != "uniform":
            raise PatternError(
                f"{who} got distribution={self.distribution!r} with pattern {self.pattern}, whose "
                "density is the same everywhere: choose 'uniform', or a pattern such as '90%'"
            )
        self.seed = as_integer(self.seed, f"{who} got seed")
        if self.seed < 0:
            raise RecipeError(f"{who} got seed={self.seed}; it must be at least 0: pass 0")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer of the entries that seed and number pick."""
        rows, cols = dense_weight(linear).shape
        mask = random_mask((rows, cols), pattern, self.mask_seed(index))
        return SparseLinear.from_dense(linear, pattern, mask)

    def mask_seed(self, index: int) -> int:
        """The seed of a layer's first mask."""
        return self.generator(0, index, self.seed).initial_seed()


def check_kind(
    pattern: str | Pattern, refused: type[Pattern] | UnionType, why: str, fitting: str
) -> None:
    """Raise PatternError when the pattern is of a kind that a recipe cannot move."""
    if isinstance(pattern, refused):
        raise PatternError(f"pattern {pattern} was given; {why}: choose {fitting}, or 'static'")


def check_share(value: object, what: str) -> float:
    """The value as a float in [0, 1]; RecipeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:
        raise RecipeError(f"{what}={value!r:.80}; it must be a share in [0, 1]: pass, say, 0.5")
    return float(value)


def check_count(value: object, what: str, least: int = 1) -> int:
    """The value as an int of at least so much; RecipeError, or DTypeError for what is no int."""
    number = as_integer(value, what)
    if number < least:
        raise RecipeError(f"{what}={number}; it must be at least {least}: pass a larger number")
    return number


def steps_between(every: int | None, steps: int, updates: int = 10) -> int:
    """Steps from one update to the next: as told, else 100, fewer where few updates would fit."""
    return every or max(1, min(100, steps // updates))


def steps_needed(every: int | None, share: float) -> int:
    """The fewest steps of a training in whose share an update of this distance falls."""
    return 1 if every is None or share <= 0.0 else math.ceil((every + 1) / share)
