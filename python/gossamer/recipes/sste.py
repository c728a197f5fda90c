"""S-STE: continuous N:M pruning by soft thresholds.

    S(w)_i = sign(w_i) max(|w_i| - t, 0),  t = the largest magnitude that its group prunes
    forward: beta S(W)       gradient of W: that of beta S(W), as it is

At the moment in which two entries change places both are zero: the weight that is used is a
continuous function of the weight that is trained, which a hard mask is not. beta restores the scale
once, <W, S(W)> / |S(W)|^2 when the layer is made, 1.48 for a Gaussian at 2:4, and is frozen:
computed anew each step it drifts upwards and the masks flip without end.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.errors import RecipeError
from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.patterns import NM, Pattern, as_integer
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.sampled import parse_sample


@dataclass(eq=False)
class SSTE(Recipe):
    """Soft-thresholded N:M weights over a dense master; no decay, no schedule.

    Args:
        pattern: N:M without shared rows.
        mvue: n:m of an unbiased sample of dY along the tokens, from which the weight gradient is
            taken; the published method uses 2:4. None takes the whole dY.
        seed: of the samples.

    Raises:
        PatternError: the pattern or the sample is not plain N:M.
        RecipeError: the seed is out of range.

    Reference:
        Hu et al. 2024, "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse
        Pre-training", arXiv 2409.09099.

    Example:
        >>> import torch
        >>> linear = torch.nn.Linear(4, 1)
        >>> _ = linear.weight.data.copy_(torch.tensor([[4.0, -3.0, 1.0, 0.0]]))
        >>> layer = SSTE("2:4").prepare(linear)
        >>> layer.beta.item(), layer.used_weight().tolist()
        (1.3846153846153846, [[4.153846263885498, -2.769230842590332, 0.0, 0.0]])
    """

    mvue: str | NM | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_groups(self.pattern, "SSTE")
        self.mvue: NM | None = parse_sample(self.mvue, "SSTE")
        self.seed = as_integer(self.seed, "SSTE got seed")
        if not 0 <= self.seed < 2**64:
            raise RecipeError(f"SSTE got seed={self.seed}; it must be in [0, 2**64)")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that multiplies by beta S(W), with the beta of its weight now."""
        kept = plain_groups(pattern, "SSTE")
        return SoftThresholdLinear.from_dense(linear, kept, True, self.mvue, self.seed, index)


__all__ = ["SSTE"]
