"""SRSTE: the straight-through estimator, with decay of the masked weights in the gradient.

    g = dL/dW~ + lambda (1 - E) W,   then the optimizer's own step with g

The published rule and code: the decay is a part of the gradient, so momentum sums it, to
lambda / (1 - momentum), and Adam normalises it. It is added after clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gossamer.masks.n_of_m import add_pruned_
from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_number
from gossamer.recipes.ste import STE


# --8<-- [start:recipe]
@dataclass(eq=False)
class SRSTE(STE):
    """`STE` with decay of the masked entries, added to the gradient as published.

    A decayed entry needs a stronger gradient to come back, so fewer entries change places than
    with `STE`. With gradient_decay=0 it is `STE`.

    Args:
        pattern: which entries take part.
        distribution: how layers share the sparsity: "uniform" or "erk".
        gradient_decay: lambda, at least 0; lambda (1 - E) W is added to the gradient.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: a negative or infinite decay.

    Reference:
        Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from
        scratch", equation 9.

    Example:
        >>> SRSTE("2:4").gradient_decay
        0.0002
    """

    gradient_decay: float = 2e-4

    renamed: ClassVar[dict[str, str]] = {"decay": "gradient_decay"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.gradient_decay, "SRSTE got gradient_decay")

    def before_step(self, t: int) -> None:
        """Add the decay of the entries that the last forward pass masked to their gradients."""
        for _, _, layer in self.of_type(MaskedLinear):
            weight = layer.weight
            if self.gradient_decay and weight.grad is not None:
                add_pruned_(weight.grad, weight.detach(), self.gradient_decay, layer.structure)

    # --8<-- [end:recipe]


__all__ = ["SRSTE"]
