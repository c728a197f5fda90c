"""SRSTE: the straight-through estimator, with masked weights drawn to zero.

    W <- W - lr (dL/dW~ + lambda (1 - E) W)

The pull is on the weights and not on the gradients: an optimizer that divides by the gradient's
size (Adam) would divide the pull as well. `FST` is the recipe that decays gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gossamer.errors import RecipeError
from gossamer.masks.n_of_m import add_pruned_
from gossamer.nn import MaskedLinear
from gossamer.recipes.recipe import Recipe


@dataclass(eq=False)
class SRSTE(Recipe):
    """A moving mask over a dense weight whose masked entries decay.

    A decayed entry needs a stronger gradient to come back, so fewer entries change places than
    with `STE`, which this is at decay=0.

    Args:
        pattern: which entries take part.
        decay: lambda; a masked entry loses lr * lambda of itself a step. At least 0.

    Raises:
        PatternError: no such pattern.
        RecipeError: a negative decay, or one that is no number.

    Reference:
        Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
        scratch", equation 9.

    Example:
        >>> SRSTE("2:4").decay
        0.0002
    """

    decay: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decay, int | float) or not 0.0 <= self.decay < math.inf:
            raise RecipeError(
                f"SRSTE got decay={self.decay!r:.80}; a number of at least 0 is needed: "
                "the paper's is 2e-4, and 0 is plain STE"
            )

    def before_step(self, t: int) -> None:
        """Shrink what the last forward pass left out."""
        if not self.decay:
            return
        for _, _, layer in self.of_type(MaskedLinear):
            weight = layer.weight
            if weight.grad is not None:
                rate = self.lr_of(weight) * self.decay
                add_pruned_(weight.detach(), weight.detach(), -rate, layer.structure)


__all__ = ["SRSTE"]
