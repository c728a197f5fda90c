"""HyperSparse: a regulariser that presses the weights that will be pruned, and spares the others.

    dR/dw = sign(w) s sech^2(s |w|) sum|w| / sum tanh(s |w|),   s = atanh(1 / sqrt 3) / kappa

where kappa is the largest magnitude that will be pruned. It is the gradient of
sum tanh(s |w|) * sg(sum|w| / sum tanh(s |w|)), with s held too (sg: no gradient through it). The
steepest fall of tanh's slope stands at kappa: below it the pressure is that of an L1 norm, above
it dies out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.nn import MaskedLinear
from gossamer.recipes.prune_late import PruneLate, check_positive, check_share

ALIGNMENT = math.atanh(1.0 / math.sqrt(3.0))


def hypersparse_gradient(weight: Tensor, kept: int) -> Tensor:
    """The gradient of the regulariser.

    Args:
        weight: any shape, floating.
        kept: how many entries will not be pruned.

    Returns:
        Like `weight`; zero where nothing is to be pruned, or only zeros.

    Reference:
        Glandorf et al. 2023, "HyperSparse Neural Networks: Shifting Exploration to Exploitation
        through Adaptive Regularization".

    Example:
        >>> hypersparse_gradient(torch.tensor([0.1, -0.1, 3.0]), kept=1).round(decimals=2)
        tensor([ 6.5200, -6.5200,  0.0000])
    """
    size = weight.detach().abs()
    flat = size.flatten()
    if kept >= flat.numel():
        return torch.zeros_like(size)
    kappa = torch.topk(flat, kept + 1, sorted=False).values.min()
    if not kappa > 0:
        return torch.zeros_like(size)
    slope = torch.tanh(ALIGNMENT / kappa * size)
    scale = ALIGNMENT / kappa * flat.sum() / slope.sum()
    return weight.detach().sign() * scale * (1.0 - slope.square())


@dataclass(eq=False)
class HyperSparse(PruneLate):
    """Adaptive regularised training: a growing pressure on what will be pruned, then prune, tune.

    The weight of the regulariser grows by a constant factor a step between the warm-up and the
    pruning: from `strength` to `strength * growth`. The paper grows it by 1.05 an epoch until the
    pruned network is as good as the dense one; here its end is a share of the steps (`is_ready`
    can be overridden). The quantile kappa is of each layer's own weights.

    Args:
        pattern: which entries live after the pruning.
        prune_share: share of the steps before the pruning, in [0, 1].
        distribution: how layers share the sparsity, "uniform" or "erk".
        warmup_share: share of the steps without pressure.
        strength: weight of the regulariser at its start; it is added to the gradients, so an
            optimizer that normalises them asks for another than SGD does.
        growth: by what the weight has grown at the end.

    Reference:
        Glandorf et al. 2023, "HyperSparse Neural Networks: Shifting Exploration to Exploitation
        through Adaptive Regularization".
    """

    warmup_share: float = 0.2
    strength: float = 5e-6
    growth: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.warmup_share, "HyperSparse got warmup_share")
        check_positive(self.strength, "HyperSparse got strength")
        check_positive(self.growth, "HyperSparse got growth")

    def weight_at(self, t: int) -> float:
        """The weight of the regulariser at step t."""
        begin = round(self.warmup_share * self.total_steps)
        if t < begin:
            return 0.0
        share = (t - begin) / max(self.prune_step - 1 - begin, 1)
        return self.strength * math.pow(self.growth, min(share, 1.0))

    def before_step(self, t: int) -> None:
        """Add the regulariser's gradient."""
        if self.pruned or not (factor := self.weight_at(t)):
            return
        for _, _, layer in self.of_type(MaskedLinear):
            if layer.weight.grad is not None:
                kept = layer.pattern.count(*layer.weight.shape)
                layer.weight.grad.add_(hypersparse_gradient(layer.weight, kept), alpha=factor)


__all__ = ["HyperSparse", "hypersparse_gradient"]
