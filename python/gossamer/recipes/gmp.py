"""GMP: gradual magnitude pruning. The sparsity rises along a cubic, and the smallest go.

    s(t) = s_end + (s_start - s_end) (1 - (t - t0) / (t1 - t0))^3,  from t0 to t1

Zhu and Gupta 2017, equation 1. Training starts dense, so it costs more than training sparse.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.errors import RecipeError
from gossamer.masks import magnitude_mask
from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.recipes.held import check_thins, held_layer, hold, target_of, thinner
from gossamer.recipes.recipe import Recipe
from gossamer.recipes.static import check_count, check_share, steps_between, steps_needed
from gossamer.schedules import Cubic


@dataclass(eq=False)
class GMP(Recipe):
    """Prune gradually by magnitude, from an initial sparsity to the pattern's.

    At each update the entries of a layer are ranked anew by magnitude. What is pruned is exactly 0
    and has no gradient, so that it does not come back. An N:M pattern goes from m:m to n:m, an
    entry a group at a time.

    Args:
        pattern: of the end, or its text.
        initial: sparsity at first; a layer never has more than in the end.
        begin: share of the training at which the sparsity begins to rise.
        end: share of the training from which on the sparsity is the pattern's.
        every: steps from one update to the next; None is 100, or a twentieth of the steps from
            begin to end where that is less. The last update is at `end` in any case.
        distribution: how layers share the sparsity in the end: "uniform" or "erk".

    Raises:
        PatternError: no such pattern.
        RecipeError: a share outside [0, 1], or the end before the beginning.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> recipe = GMP("90%")
        >>> recipe.total_steps = 100
        >>> [round(recipe.sparsity(t, 0.9), 3) for t in (0, 30, 74, 75)]
        [0.0, 0.706, 0.9, 0.9]
    """

    pattern: str | Pattern = "90%"
    initial: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    every: int | None = None
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_thins(self.pattern, "GMP")
        for name in ("initial", "begin", "end"):
            setattr(self, name, check_share(getattr(self, name), f"GMP got {name}"))
        if self.end < self.begin:
            raise RecipeError(
                f"GMP got begin={self.begin}, end={self.end}; it must end at or after its "
                "beginning: swap the shares"
            )
        if self.every is not None:
            self.every = check_count(self.every, "GMP got every")

    def minimum_steps(self) -> int:
        """So many that an update falls between beginning and end."""
        return steps_needed(self.every, self.end - self.begin)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A dense weight under a mask of the initial sparsity."""
        return held_layer(linear, thinner(pattern, self.initial), pattern)

    def start(self) -> None:
        """Set to 0 what the initial mask leaves out."""
        self._prune(0)

    def after_step(self, t: int) -> None:
        """Prune, when the next step is one of an update."""
        first, last = self._span()
        updates = steps_between(self.every, last - first, 20)
        if t + 1 == last or (first <= t + 1 < last and (t + 1 - first) % updates == 0):
            self._prune(t + 1)

    def sparsity(self, t: int, final: float) -> float:
        """The sparsity at step t of a layer that ends with a given one."""
        return Cubic(min(self.initial, final), final, *self._span())(t)

    def _span(self) -> tuple[int, int]:
        return int(self.begin * self.total_steps), int(self.end * self.total_steps)

    def _prune(self, t: int) -> None:
        for _, _, layer in self.of_type(MaskedLinear):
            target = target_of(layer)
            pattern = thinner(target, self.sparsity(t, target.sparsity))
            hold(layer, magnitude_mask(layer.weight, pattern), pattern, self.optimizer)
