"""PruneLate: train dense under a pressure, prune once, tune what is left. The base of several."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gossamer.errors import RecipeError
from gossamer.masks import Distribution, magnitude_mask
from gossamer.nn import MaskedLinear
from gossamer.nn.layers.dense_first import DenseLinear
from gossamer.patterns import Pattern
from gossamer.recipes.recipe import Recipe


@dataclass(eq=False)
class PruneLate(Recipe):
    """Train dense for a share of the steps, prune by magnitude, tune what is left.

    A subclass adds a pressure in `before_step` (on the gradients) or in `press` (on the weights),
    both of which it asks `self.pruned` first. The papers stop their dense phase by an accuracy
    that they watch; here it is a share of the steps, unless a subclass overrides `is_ready`.

    Args:
        pattern: which entries live after the pruning.
        prune_share: share of the steps that are trained dense, in [0, 1].
        distribution: how layers share the sparsity, "uniform" or "erk".

    Raises:
        RecipeError: a share outside [0, 1].
    """

    prune_share: float = 0.7
    distribution: Distribution = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.prune_share, f"{type(self).__name__} got prune_share")

    @property
    def pruned(self) -> bool:
        """Whether the masks are set."""
        return bool(self.state.get("pruned", False))

    @property
    def prune_step(self) -> int:
        """How many steps are trained dense: at least one, at most all."""
        return min(max(round(self.prune_share * self.total_steps), 1), self.total_steps)

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that computes densely until it is pruned."""
        layer = DenseLinear.from_dense(linear, pattern, moving=False, gradient="kept")
        layer.softness.fill_(1.0)
        return layer

    def is_ready(self, t: int) -> bool:
        """Whether to prune after step t."""
        return t + 1 >= self.prune_step

    def press(self, t: int) -> None:
        """Called after each step of the dense phase, before the pruning."""

    def after_step(self, t: int) -> None:
        """Press, and prune when the time has come."""
        if self.pruned:
            return
        self.press(t)
        if self.is_ready(t):
            self.state["pruned"] = True
            for _, _, layer in self.of_type(MaskedLinear):
                mask = magnitude_mask(layer.weight, layer.pattern)
                layer.set_mask(mask)
                layer.softness.zero_()
                zero_outside(layer.weight, mask, self.optimizer)


def zero_outside(
    weight: nn.Parameter, mask: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Zero what a mask drops: of a weight, its gradient and the optimizer's state of it.

    With momentum left over, an optimizer would move the dropped entries away from zero again.
    """
    states = optimizer.state.get(weight, {}).values() if optimizer is not None else ()
    for tensor in (weight.data, weight.grad, *states):
        if isinstance(tensor, Tensor) and tensor.shape == mask.shape:
            tensor.masked_fill_(~mask, 0.0)


def check_share(share: float, what: str) -> None:
    """Raise RecipeError unless a share of the steps is in [0, 1]."""
    if not 0.0 <= share <= 1.0:
        raise RecipeError(f"{what}={share}; give a share of the steps, between 0 and 1")


def check_positive(number: float, what: str) -> None:
    """Raise RecipeError unless a number is finite and not negative."""
    if not 0.0 <= number < float("inf"):
        raise RecipeError(f"{what}={number}; give a finite number, 0 or above")


__all__ = ["PruneLate", "check_positive", "check_share", "zero_outside"]
