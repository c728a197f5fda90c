"""STE: train a dense weight, compute with its largest entries, pass the gradient straight through.

W~ = E W,  E picked from |W| in every forward pass;  W <- W - lr dL/dW~
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class STE(Recipe):
    """A mask that follows the magnitudes of a dense weight; masked entries keep training.

    An entry outside the mask gets the gradient that it would have inside; when it grows larger
    than an entry inside, the two change places. `SRSTE` slows that exchange down.

    Args:
        pattern: which entries take part: any pattern or its text.
        distribution: how layers share the sparsity: "uniform" or "erk".

    Raises:
        PatternError: an unknown pattern.

    Reference:
        Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".

    Example:
        >>> STE("2:4:v4").prepare(nn.Linear(8, 4)).density
        0.5
    """

    def takes_convolutions(self) -> bool:
        """Yes: their weight is dense too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that picks its mask in every forward pass."""
        return MaskedLinear.from_dense(linear, pattern)


__all__ = ["STE"]
