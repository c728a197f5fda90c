"""MaskDecay: masked entries fade out of the forward pass over training.

    W~ = W (E + (1 - E) D(t)),  D = max(0, 1 - c t)  or  exp(-c t)

t counts steps since the dense phase. While D is above 0 the products are dense: this recipe buys
gradient flow, not speed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gossamer.errors import RecipeError
from gossamer.nn import MaskedLinear
from gossamer.recipes.phases import Phases, check_choice, check_shares
from gossamer.recipes.recipe import Recipe

# exp(-10): what the paper's c = 1e-4 leaves after the 1e5 steps of its longest training.
_FADED = 10.0


@dataclass(eq=False)
class MaskDecay(Recipe):
    """A soft mask that hardens: dense at first, the pattern alone at last.

    Args:
        pattern: which entries take part fully.
        kind: "linear" or "exponential".
        rate: c, a step; None fits it to the transition, at whose end D is 0 (linear) or exp(-10).
        dense_share: share of the steps, at the beginning, with D = 1.
        finetune_share: share of the steps, at the end, with D = 0.

    Raises:
        PatternError: no such pattern.
        RecipeError: an unknown kind, a rate that is not above 0, or shares that leave no room.

    Reference:
        Bambhaniya et al. 2024, "Progressive gradient flow for robust N:M sparsity training in
        transformers" (MdGf).

    Example:
        >>> recipe = MaskDecay("1:8", kind="linear", rate=0.01)
        >>> [recipe.softness_at(t, total_steps=1000) for t in (0, 50, 200)]
        [1.0, 0.5, 0.0]
    """

    kind: Literal["linear", "exponential"] = "linear"
    rate: float | None = None
    dense_share: float = 0.0
    finetune_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("MaskDecay", self.kind, ("linear", "exponential"))
        check_shares("MaskDecay", self.dense_share, self.finetune_share)
        if self.rate is not None and not (
            isinstance(self.rate, int | float) and 0.0 < self.rate < math.inf
        ):
            raise RecipeError(
                f"MaskDecay got rate={self.rate!r:.80}; a number above 0 a step is needed, or "
                "None to fit it to the training"
            )

    def softness_at(self, t: int, total_steps: int) -> float:
        """D at step t of a training: the share with which a masked entry takes part."""
        phases = Phases.of_shares(self.dense_share, self.finetune_share, total_steps)
        if t >= phases.finetune:
            return 0.0
        since = max(t - phases.dense, 0)
        if self.kind == "linear":
            rate = 1.0 / max(phases.transition, 1) if self.rate is None else self.rate
            return max(0.0, 1.0 - rate * since)
        rate = _FADED / max(phases.transition, 1) if self.rate is None else self.rate
        return math.exp(-rate * since)

    def start(self) -> None:
        """The softness of the first step."""
        self._soften(0)

    def after_step(self, t: int) -> None:
        """The softness of the next step."""
        self._soften(t + 1)

    def _soften(self, t: int) -> None:
        softness = self.softness_at(t, self.total_steps)
        for _, _, layer in self.of_type(MaskedLinear):
            layer.softness.fill_(softness)


__all__ = ["MaskDecay"]
