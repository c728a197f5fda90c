"""MaskDecay: masked entries fade out of the forward pass over training.

    W~ = W (E + (1 - E) D(t)),  D = max(0, 1 - c t)  or  exp(-c t)

t counts steps since the dense phase. While D is above 0 the products are dense: the recipe improves
the gradient flow, not the speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from gossamer.arguments import check
from gossamer.nn import MaskedLinear
from gossamer.recipes.base.checks import check_choice, check_number, check_phases
from gossamer.recipes.base.updates import Phases
from gossamer.recipes.ste import STE

# D ends at exp(-10): the paper's c = 1e-4 over the 1e5 steps of its longest training.
_FADED = 10.0


@dataclass(eq=False)
class MaskDecay(STE):
    """A soft mask that hardens: training starts dense and ends with the pattern.

    Args:
        pattern: which entries take part fully.
        distribution: how layers share the sparsity: "uniform" or "erk".
        method: how D falls: "linear" or "exponential".
        rate: c per step, above 0; None fits it to the transition, so that D ends at 0 (linear) or
            exp(-10).
        dense_share: share of the steps, at the beginning, with D = 1.
        finetune_share: share of the steps, at the end, with D = 0.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: an unknown method, a rate that is not above 0, or shares that leave no steps
            between them.

    Reference:
        Bambhaniya et al. 2024, "Progressive gradient flow for robust N:M sparsity training in
        transformers" (MdGf).

    Example:
        >>> recipe = MaskDecay("1:8", method="linear", rate=0.01)
        >>> [recipe.masked_weight_share_at(t, total_steps=1000) for t in (0, 50, 200)]
        [1.0, 0.5, 0.0]
    """

    method: Literal["linear", "exponential"] = "linear"
    rate: float | None = None
    dense_share: float = 0.0
    finetune_share: float = 0.1

    id = "mask-decay"
    renamed: ClassVar[dict[str, str]] = {"kind": "method"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.method, "MaskDecay got method", ("linear", "exponential"))
        check_phases("MaskDecay", self.dense_share, self.finetune_share)
        if self.rate is not None:
            check_number(self.rate, "MaskDecay got rate", positive=True)

    def masked_weight_share_at(self, t: int, total_steps: int) -> float:
        """Return D at step t: the share of itself with which a masked entry takes part."""
        check(MaskDecay.masked_weight_share_at, locals())
        phases = Phases.of_shares(self.dense_share, self.finetune_share, total_steps)
        if t >= phases.finetune:
            return 0.0
        since = max(t - phases.dense, 0)
        if self.method == "linear":
            rate = 1.0 / max(phases.transition, 1) if self.rate is None else self.rate
            return max(0.0, 1.0 - rate * since)
        rate = _FADED / max(phases.transition, 1) if self.rate is None else self.rate
        return math.exp(-rate * since)

    def start(self) -> None:
        """Set D for the first step."""
        self._soften(0)

    def after_step(self, t: int) -> None:
        """Set D for the next step."""
        self._soften(t + 1)

    def _soften(self, t: int) -> None:
        share = self.masked_weight_share_at(t, self.total_steps)
        for _, _, layer in self.of_type(MaskedLinear):
            layer.masked_weight_share.fill_(share)


__all__ = ["MaskDecay"]
