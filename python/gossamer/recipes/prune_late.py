"""PruneLate: train dense with a regulariser, prune once, fine-tune. The base of several recipes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.arguments import check
from gossamer.nn import MaskedLinear
from gossamer.patterns import Pattern
from gossamer.recipes.base.checks import check_share
from gossamer.recipes.base.fixed import fixed_mask, prune_to
from gossamer.recipes.base.recipe import Recipe


@dataclass(eq=False)
class PruneLate(Recipe):
    """Train dense for a share of the steps, prune by magnitude, fine-tune.

    A subclass adds a regulariser in `before_step` (on the gradients; check `self.pruned` there) or
    in `regularise` (on the weights). The papers end the dense phase by a measured accuracy; here
    it is a share of the steps, unless a subclass overrides `is_ready`.

    Args:
        pattern: which entries are kept by the pruning.
        distribution: how layers share the sparsity: "uniform" or "erk".
        prune_share: share of the steps before the pruning, in [0, 1].

    Raises:
        RecipeError: a share outside [0, 1].
    """

    prune_share: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.prune_share, f"{type(self).__name__} got prune_share")

    @property
    def pruned(self) -> bool:
        """Whether the masks are set."""
        return bool(self.state.get("pruned", False))

    @property
    def prune_step(self) -> int:
        """Number of dense steps: at least one, at most all."""
        return min(max(round(self.prune_share * self.total_steps), 1), self.total_steps)

    def takes_convolutions(self) -> bool:
        """Yes: their weight is dense too."""
        return True

    def layer(self, name: str, linear: nn.Module, pattern: Pattern, index: int) -> nn.Module:
        """A layer that computes densely until it is pruned."""
        layer = fixed_mask(linear, pattern, pattern)
        layer.set_dense()
        return layer

    def is_ready(self, t: int) -> bool:
        """Whether to prune after step t."""
        check(PruneLate.is_ready, locals())
        return t + 1 >= self.prune_step

    def regularise(self, t: int) -> None:
        """Called after each step of the dense phase, before the pruning."""

    def after_step(self, t: int) -> None:
        """Regularise, and prune at the end of the dense phase."""
        if self.pruned:
            return
        self.regularise(t)
        if self.is_ready(t):
            self.state["pruned"] = True
            for _, _, layer in self.of_type(MaskedLinear):
                prune_to(layer, layer.target, self.optimizer)


__all__ = ["PruneLate"]
