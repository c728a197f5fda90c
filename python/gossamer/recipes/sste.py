"""S-STE: continuous N:M pruning by soft thresholds.

    S(w)_i = sign(w_i) max(|w_i| - t, 0),  t = the largest magnitude that its group prunes
    forward: beta S(W)       gradient of W: that of beta S(W), as it is

Two entries that change places are both zero at that moment: the used weight is a continuous
function of the trained one, unlike under a hard mask. beta restores the scale: it is
<W, S(W)> / |S(W)|^2 when the layer is built (1.48 for a Gaussian at 2:4), and is then frozen,
because with a new beta per step the scale drifts upwards and the masks never settle.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.nn.layers.base import plain_groups
from gossamer.nn.layers.soft_threshold import SoftThresholdLinear
from gossamer.patterns import NM, Pattern
from gossamer.recipes.base.checks import check_seed, parse_sample
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class SSTE(Recipe):
    """Soft-thresholded N:M weights over a dense weight; no decay, no schedule.

    Args:
        pattern: N:M without shared rows.
        distribution: "uniform", because N:M patterns have a fixed density.
        mvue: n:m of an unbiased sample of dY along the tokens, for the weight gradient; published:
            2:4. None takes the whole dY.
        seed: seed of the samples, in [0, 2**64).

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
        check_seed(self.seed, "SSTE got seed")

    def takes_convolutions(self) -> bool:
        """Where no gradient is sampled."""
        return self.mvue is None

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that multiplies by beta S(W), with beta of the present weight."""
        kept = plain_groups(pattern, "SSTE")
        return SoftThresholdLinear.from_dense(linear, kept, True, self.mvue, self.seed, index)


__all__ = ["SSTE"]
