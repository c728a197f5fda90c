"""AutoSparse: each channel learns the threshold that prunes it.

    w~ = sign(w) max(|w| - sigmoid(s), 0),   dw = dw~ f,   ds = -sigmoid'(s) sum of dw~ sign(w) f

with f = 1 where w~ is kept and f = alpha where it is pruned. Alpha is annealed to 0; from then on
pruned weights have no gradient and the mask settles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from gossamer.arguments import check
from gossamer.nn.layers.threshold import ThresholdLinear, thresholds
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_choice, check_share
from gossamer.recipes.base.fixed import zero_outside
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class AutoSparse(Recipe):
    """AutoSparse's thresholds and annealed gradients, then a projection that the paper has not.

    The pattern's sparsity is a target, not a constraint: training finds the thresholds. For the
    last steps (`finetune_share`) the weights are projected onto the pattern and trained under its
    mask, so that the density is the requested one; with finetune_share=0 nothing is added. The
    annealing and its reset are those of a re-implementation of the paper.

    Args:
        pattern: the pattern of the final projection.
        distribution: how layers share the sparsity of the final projection: "uniform" or "erk".
        alpha: alpha_0 in [0, 1], the share of its gradient that a pruned weight gets at the start.
        initial_threshold: s at the start (paper: -5, a threshold of 0.0067); None takes the s at
            which each threshold drops the pattern's share of the initial weights.
        scope: "channel": one threshold per output; "layer": one per layer.
        reset_share: share of the steps after which alpha is 0.
        finetune_share: share of the steps, at the end, after the projection; 0 for none.

    Raises:
        RecipeError: a share, or alpha, outside [0, 1].

    Reference:
        Kundu et al. 2023, "AutoSparse: Towards Automated Sparse Training of Deep Neural
        Networks".
    """

    alpha: float = 0.75
    initial_threshold: float | None = -5.0
    scope: Literal["channel", "layer"] = "channel"
    reset_share: float = 0.9
    finetune_share: float = 0.1

    renamed: ClassVar[dict[str, str]] = {"initial": "initial_threshold", "per": "scope"}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "reset_share", "finetune_share"):
            check_share(getattr(self, name), f"AutoSparse got {name}")
        check_choice(self.scope, "AutoSparse got scope", ("channel", "layer"))

    def takes_convolutions(self) -> bool:
        """Yes: their filters have thresholds too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer with learnable thresholds."""
        return ThresholdLinear.from_dense(linear, pattern, self.initial_threshold, self.scope)

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Two groups: all other parameters, and the thresholds without weight decay."""
        check(AutoSparse.groups, locals())
        own = thresholds(model)
        ids = {id(p) for p in own}
        rest = [p for p in model.parameters() if id(p) not in ids]
        return [{"params": rest}, {"params": own, "weight_decay": 0.0}]

    def alpha_at(self, t: int) -> float:
        """Return alpha at step t: the slower of a cosine and a sigmoid, 0 from the reset on."""
        check(AutoSparse.alpha_at, locals())
        share = t / max(self.total_steps, 1)
        if share >= self.reset_share:
            return 0.0
        cosine = (1.0 + math.cos(math.pi * share)) / 2.0
        logistic = 1.0 - 1.0 / (1.0 + math.exp(6.0 - 12.0 * share))
        return self.alpha * max(cosine, logistic)

    @property
    def project_step(self) -> int | None:
        """Number of steps before the projection; None without one."""
        if not self.finetune_share:
            return None
        return max(self.total_steps - round(self.finetune_share * self.total_steps), 1)

    def start(self) -> None:
        """Set alpha for the first step."""
        self._set_alpha(0)

    def after_step(self, t: int) -> None:
        """Anneal alpha, and project at `project_step`."""
        self._set_alpha(t + 1)
        if t + 1 == self.project_step:
            for _, _, layer in self.of_type(ThresholdLinear):
                zero_outside(layer.weight, layer.project(), self.optimizer)

    def _set_alpha(self, t: int) -> None:
        for _, _, layer in self.of_type(ThresholdLinear):
            layer.alpha.fill_(self.alpha_at(t))


__all__ = ["AutoSparse"]
