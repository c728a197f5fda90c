"""GMP: gradual magnitude pruning. The sparsity rises along a cubic; the smallest entries go.

    s(t) = s_end + (s_start - s_end) (1 - (t - t0) / (t1 - t0))^3,  from t0 to t1

Zhu and Gupta 2017, equation 1. Training starts dense, so it costs more than training sparse. What
is pruned never comes back, so layers may as well store the kept entries only (`dense_weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from gossamer.arguments import check
from gossamer.errors import RecipeError
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.replacing import sparse_from_dense
from gossamer.nn.layers.sparse import SparseLayer
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_count, check_share, refuse_unprunable
from gossamer.recipes.base.fixed import fixed_mask, prune_to, with_sparsity, zero_outside
from gossamer.recipes.base.recipe import Recipe
from gossamer.recipes.base.thinning import thin
from gossamer.recipes.base.updates import steps_between, steps_needed
from gossamer.schedules import Cubic

# The final pattern of a sparse layer, kept in copies of it as `MaskedLinear.target` is.
_TARGET = "_gossamer_target"


@dataclass(eq=False)
class GMP(Recipe):
    """Prune gradually by magnitude, from an initial sparsity to the pattern's.

    Each update ranks the entries of a layer by magnitude. Pruned entries are exactly 0 and have no
    gradient, so they do not come back. An N:M pattern goes from m:m to n:m, one entry per group at
    a time.

    Args:
        pattern: the final pattern, or its text.
        distribution: how layers share the final sparsity: "uniform" or "erk".
        initial_sparsity: sparsity at the start, at most the final one of each layer.
        begin_share: point, as a share of the steps, at which the sparsity begins to rise.
        end_share: point, as a share of the steps, at which the sparsity is the final one.
        every: steps between two updates; None is 100, or fewer so that 20 updates fit. The last
            update is always at `end_share`.
        dense_weight: whether layers keep a dense weight under a mask; False makes `SparseLinear`
            layers that lose entries at each update, optimizer state included. Both train the same;
            the latter is smaller from the start, and faster where the initial sparsity is high. It
            does not run under DistributedDataParallel.

    Raises:
        PatternError: an unknown pattern.
        RecipeError: a share outside [0, 1], or an end before the beginning.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune", equation 1.

    Example:
        >>> recipe = GMP("90%")
        >>> recipe.total_steps = 100
        >>> [round(recipe.sparsity(t, 0.9), 3) for t in (0, 30, 74, 75)]
        [0.0, 0.706, 0.9, 0.9]
    """

    pattern: str | Pattern = "90%"
    initial_sparsity: float = 0.0
    begin_share: float = 0.0
    end_share: float = 0.75
    every: int | None = None
    dense_weight: bool = True

    renamed: ClassVar[dict[str, str]] = {
        "initial": "initial_sparsity",
        "begin": "begin_share",
        "end": "end_share",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unprunable(self.pattern, "GMP")
        for name in ("initial_sparsity", "begin_share", "end_share"):
            check_share(getattr(self, name), f"GMP got {name}")
        if self.end_share < self.begin_share:
            raise RecipeError(
                f"GMP got begin_share={self.begin_share}, end_share={self.end_share}; it must end "
                "at or after its beginning: swap the shares"
            )
        if self.every is not None:
            check_count(self.every, "GMP got every")

    def minimum_steps(self) -> int:
        """Smallest number of steps that contains an update between beginning and end."""
        return steps_needed(self.every, self.end_share - self.begin_share)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer of the initial sparsity, with a dense weight under a mask or without."""
        first = with_sparsity(pattern, self.initial_sparsity)
        if self.dense_weight:
            return fixed_mask(linear, first, pattern)
        layer = sparse_from_dense(linear, first)
        object.__setattr__(layer, _TARGET, pattern)
        return layer

    def takes_convolutions(self) -> bool:
        """Yes, with dense weights or without."""
        return True

    def takes_scores(self) -> bool:
        """Whether it starts sparse; what is pruned later is chosen by magnitude."""
        return self.initial_sparsity > 0.0

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        """Follow the optimizer's steps, see `Recipe.attach`."""
        check(GMP.attach, {"model": model})
        if not self.dense_weight and isinstance(model, nn.parallel.DistributedDataParallel):
            raise RecipeError(
                "GMP.attach got dense_weight=False and a model in DistributedDataParallel, which "
                "fixes the number of values that GMP changes: use dense_weight=True"
            )
        super().attach(model, optimizer, total_steps)

    def start(self) -> None:
        """Zero what the initial mask drops."""
        self._prune(0)

    def after_step(self, t: int) -> None:
        """Prune if the next step has an update."""
        first, last = self._span()
        updates = steps_between(self.every, last - first, 20)
        if t + 1 == last or (first <= t + 1 < last and (t + 1 - first) % updates == 0):
            self._prune(t + 1)

    def sparsity(self, t: int, final: float) -> float:
        """Return the sparsity at step t of a layer whose final sparsity is `final`."""
        check(GMP.sparsity, locals())
        return Cubic(min(self.initial_sparsity, final), final, *self._span())(t)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume, with sparse layers of as many entries as the saved model has."""
        super().load_state_dict(state)
        first, last = self._span()
        updates = steps_between(self.every, last - first, 20)
        done = min(self.step, last)
        if first <= done < last:
            done -= (done - first) % updates
        with torch.no_grad():
            self._thin(done)

    def _span(self) -> tuple[int, int]:
        return int(self.begin_share * self.total_steps), int(self.end_share * self.total_steps)

    def _prune(self, t: int) -> None:
        for _, _, layer in self.of_type(MaskedLinear):
            pattern = with_sparsity(layer.target, self.sparsity(t, layer.target.sparsity))
            if t == 0 and pattern == layer.pattern and pattern.density < 1.0:
                # The first mask may have been chosen by scores.
                zero_outside(layer.weight, layer.mask(), self.optimizer)
            else:
                prune_to(layer, pattern, self.optimizer)
        self._thin(t)

    def _thin(self, t: int) -> None:
        for _, _, layer in self.of_type(SparseLayer):
            target: Pattern = getattr(layer, _TARGET)
            pattern = with_sparsity(target, self.sparsity(t, target.sparsity))
            thin(layer.weight, pattern, self.optimizer)
