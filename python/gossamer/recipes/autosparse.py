"""AutoSparse: each channel learns the threshold that prunes it.

    w~ = sign(w) max(|w| - sigmoid(s), 0),   dw = dw~ f,   ds = -sigmoid'(s) sum of dw~ sign(w) f

with f = 1 where w~ lives and f = alpha where it is pruned. Alpha is annealed to 0, after which
pruned weights get nothing and the mask settles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from gossamer.errors import RecipeError
from gossamer.nn.layers.threshold import ThresholdLinear
from gossamer.patterns import Pattern
from gossamer.recipes.prune_late import check_share, zero_outside
from gossamer.recipes.recipe import Recipe


@dataclass(eq=False)
class AutoSparse(Recipe):
    """Learnable thresholds with annealed gradients of what they prune.

    The pattern's sparsity is a target, not a constraint: the thresholds find their own. In the
    last steps (`finetune_share`) the weights are projected to the pattern and trained under its
    mask, which the paper does not do, so that the density is the one that was asked for.

    Args:
        pattern: of the projection in the end.
        alpha: alpha_0, the share of its gradient that a pruned weight gets at first.
        initial: s at the start (the paper's is -5, a threshold of 0.0067); None for the s with
            which each threshold drops the pattern's share of the first weights.
        per: "channel": one threshold an output, "layer": one for all.
        reset_share: share of the steps after which alpha is 0.
        finetune_share: share of the steps after the projection; 0 for none.

    Raises:
        RecipeError: a share, or alpha, outside [0, 1].

    Reference:
        Kundu et al. 2023, "AutoSparse: Towards Automated Sparse Training of Deep Neural
        Networks".
    """

    alpha: float = 0.75
    initial: float | None = -5.0
    per: Literal["channel", "layer"] = "channel"
    reset_share: float = 0.9
    finetune_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "reset_share", "finetune_share"):
            check_share(getattr(self, name), f"AutoSparse got {name}")
        if self.per not in ("channel", "layer"):
            raise RecipeError(f"AutoSparse got per={self.per!r}; choose 'channel' or 'layer'")

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with thresholds."""
        return ThresholdLinear.from_dense(linear, pattern, self.initial, self.per)

    def parameters(self, model: nn.Module) -> Iterable[Any]:
        """Two groups: the thresholds, without weight decay, and all others."""
        own = [m.threshold for m in model.modules() if isinstance(m, ThresholdLinear)]
        ids = {id(p) for p in own}
        rest = [p for p in model.parameters() if id(p) not in ids]
        return [{"params": rest}, {"params": own, "weight_decay": 0.0}]

    def alpha_at(self, t: int) -> float:
        """Alpha at step t: the slower of a cosine and a sigmoid, 0 from the reset on."""
        share = t / self.total_steps
        if share >= self.reset_share:
            return 0.0
        cosine = (1.0 + math.cos(math.pi * share)) / 2.0
        logistic = 1.0 - 1.0 / (1.0 + math.exp(6.0 - 12.0 * share))
        return self.alpha * max(cosine, logistic)

    @property
    def project_step(self) -> int | None:
        """How many steps come before the projection; None without one."""
        if not self.finetune_share:
            return None
        return max(self.total_steps - round(self.finetune_share * self.total_steps), 1)

    def start(self) -> None:
        """The first step has alpha_0."""
        self._set_alpha(0)

    def after_step(self, t: int) -> None:
        """Anneal; project when the time has come."""
        self._set_alpha(t + 1)
        if t + 1 == self.project_step:
            for _, _, layer in self.of_type(ThresholdLinear):
                zero_outside(layer.weight, layer.project(), self.optimizer)

    def _set_alpha(self, t: int) -> None:
        for _, _, layer in self.of_type(ThresholdLinear):
            layer.alpha.fill_(self.alpha_at(t))


__all__ = ["AutoSparse"]
