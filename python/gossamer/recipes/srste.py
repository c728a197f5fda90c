"""SRSTE: the straight-through estimator, with decay of the masked weights.

    W <- W - lr (dL/dW~ + lambda (1 - E) W)

The decay acts on the weights, not on the gradients: an optimizer that divides by the gradient's
size (Adam) would also divide the decay. `FST` adds it to the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.masks.n_of_m import add_pruned_
from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_number
from gossamer.recipes.ste import STE


# --8<-- [start:recipe]
@dataclass(eq=False)
class SRSTE(STE):
    """`STE` with decoupled decay of the masked entries.

    A decayed entry needs a stronger gradient to come back, so fewer entries change places than
    with `STE`. With decay=0 it is `STE`.

    Args:
        pattern: which entries take part.
        distribution: how layers share the sparsity: "uniform" or "erk".
        decay: lambda, at least 0; a masked entry loses the share lr * lambda of itself per step.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: a negative or infinite decay.

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
        check_number(self.decay, "SRSTE got decay")

    def before_step(self, t: int) -> None:
        """Decay the entries that the last forward pass masked, once per step."""
        if not self.decay or self.evaluation:
            return
        for _, _, layer in self.of_type(MaskedLinear):
            weight = layer.weight
            if weight.grad is not None:
                rate = self.lr_of(weight) * self.decay
                add_pruned_(weight.detach(), weight.detach(), -rate, layer.structure)

    # --8<-- [end:recipe]


__all__ = ["SRSTE"]
