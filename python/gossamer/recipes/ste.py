"""STE: train a dense weight, compute with its largest entries, send the gradient straight through.

W~ = E W,  E picked anew from |W| in every forward pass;  W <- W - lr dL/dW~
"""

from __future__ import annotations

from dataclasses import dataclass

from gossamer.recipes.recipe import Recipe


@dataclass(eq=False)
class STE(Recipe):
    """A moving mask over a dense weight whose masked entries train on.

    An entry outside the mask gets the gradient it would have if it took part; when it grows larger
    than one inside, the two change places. Nothing holds that exchange back: see `SRSTE`.

    Args:
        pattern: which entries take part: N:M, with a vector or not, unstructured or blocks.

    Raises:
        PatternError: no such pattern.

    Reference:
        Bengio et al. 2013, "Estimating or propagating gradients through stochastic neurons".

    Example:
        >>> STE("2:4:v4")
        STE(pattern=NM(n=2, m=4, vector=4))
    """


__all__ = ["STE"]
