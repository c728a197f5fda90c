"""HyperSparse: a regulariser that shrinks the weights that will be pruned, and spares the others.

    dR/dw = sign(w) s sech^2(s |w|) sum|w| / sum tanh(s |w|),   s = atanh(1 / sqrt 3) / kappa

where kappa is the largest magnitude that will be pruned. It is the gradient of
sum tanh(s |w|) * sg(sum|w| / sum tanh(s |w|)) with s constant (sg: no gradient). The slope of tanh
falls fastest at kappa: below kappa the regulariser acts like an L1 norm, above it vanishes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_number, check_share
from gossamer.recipes.prune_late import PruneLate

ALIGNMENT = math.atanh(1.0 / math.sqrt(3.0))


def hypersparse_gradient(weight: Tensor, kept: int) -> Tensor:
    """Return the gradient of the regulariser.

    Args:
        weight: floating-point, any shape.
        kept: number of entries that will be kept.

    Returns:
        A tensor like `weight`; zero if nothing, or only zeros, will be pruned.

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
    """Adaptive regularised training: a growing regulariser, then pruning and fine-tuning.

    The coefficient of the regulariser grows by a constant factor per step between the warm-up and
    the pruning: from `lam` to `lam * growth`. The paper lets it grow by 1.05 per epoch until the
    pruned network is as good as the dense one; here it ends at a share of the steps (`is_ready`
    can be overridden). kappa is computed per layer.

    Args:
        pattern: which entries are kept by the pruning.
        distribution: how layers share the sparsity: "uniform" or "erk".
        prune_share: share of the steps before the pruning, in [0, 1].
        warmup_share: share of the steps, at the beginning, without the regulariser.
        lam: coefficient of the regulariser at its start, at least 0. The regulariser is added to
            the gradients, so optimizers that normalise gradients need another value than SGD.
        growth: factor by which the coefficient has grown at the end.

    Reference:
        Glandorf et al. 2023, "HyperSparse Neural Networks: Shifting Exploration to Exploitation
        through Adaptive Regularization".
    """

    warmup_share: float = 0.2
    lam: float = 5e-6
    growth: float = 1000.0

    renamed: ClassVar[dict[str, str]] = {"strength": "lam"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.warmup_share, "HyperSparse got warmup_share")
        check_number(self.lam, "HyperSparse got lam")
        check_number(self.growth, "HyperSparse got growth")

    def weight_at(self, t: int) -> float:
        """Return the coefficient of the regulariser at step t."""
        check(HyperSparse.weight_at, locals())
        begin = round(self.warmup_share * self.total_steps)
        if t < begin:
            return 0.0
        share = (t - begin) / max(self.prune_step - 1 - begin, 1)
        return self.lam * math.pow(self.growth, min(share, 1.0))

    def before_step(self, t: int) -> None:
        """Add the regulariser's gradient."""
        if self.pruned or not (factor := self.weight_at(t)):
            return
        for _, _, layer in self.of_type(MaskedLinear):
            if layer.weight.grad is not None:
                kept = layer.target.count(*layer.weight.shape)
                layer.weight.grad.add_(hypersparse_gradient(layer.weight, kept), alpha=factor)


__all__ = ["HyperSparse", "hypersparse_gradient"]
