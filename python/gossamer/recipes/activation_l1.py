"""ActivationL1: a penalty on the hidden activations that leaves few of them alive.

    loss + s(t) * sum over layers of the mean over tokens of sum |h|

The layers add its gradient in their backward pass, so the loss and the training loop stay as they
are. Either the strength s is given and rises along a ramp, or a target for the share of live
activations is given, which falls along the ramp, and log s is controlled so that the share follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gossamer.arguments import check
from gossamer.errors import RecipeError
from gossamer.nn import ActivationSparseFFN
from gossamer.recipes.base.attached import Attached
from gossamer.recipes.base.checks import check_number, check_share
from gossamer.schedules import Linear

# The share answers to the strength like about 1 / s, some 20 steps late. With these gains it
# follows a ramp of 60 steps and does not overshoot.
_PROPORTIONAL = 3.0
_INTEGRAL = 0.1
_KEPT = 0.8  # of the mean of the shares, per step
_LARGEST_ERROR = 2.0  # in log(share / target)
# The strength at which the control begins, times the hidden size: about what halves the share.
_FIRST_STRENGTH = 0.02


@dataclass(eq=False)
class ActivationL1(Attached):
    """An L1 penalty on the hidden activations of the `ActivationSparseFFN` layers of a model.

    Give the strength or the target. The strength that leads to a share depends on the hidden size,
    the width and the loss; the target does not. The ramp lets the network learn before it becomes
    sparse.

    Args:
        strength: strength of the penalty in each layer, in units of the loss per unit of
            mean over tokens of sum |h|; 0 is off.
        target_share: share of live activations to reach, the mean over the layers, in (0, 1).
        begin_share: share of the steps before the ramp, without a penalty.
        end_share: share of the steps at which the ramp ends.
        relufy_share: share of the steps over which networks whose activation
            `sparsify_activations(relufy=True)` has replaced go over from SiLU or GELU to ReLU, on a
            straight line; at most begin_share. Meanwhile they are dense. 0 begins with ReLU.
        revival: strength of a pull on dead neurons (without a live token for 50 steps): the loss
            gets -revival * sum over them of the mean over tokens of their gate. 0 is off.

    Attributes:
        loss_scale: what each loss is multiplied by before `backward`, a number or a function that
            is called in each forward pass. 1 / k where the losses of k micro-batches are divided by
            k; `scaler.get_scale` with a GradScaler.

    Raises:
        RecipeError: not exactly one of strength and target_share, or a value is out of range.
        DTypeError: a value has another type.

    Reference:
        arXiv:2603.23198 (2026) for the penalty. The ramp and the control of the share are ours.

    Example:
        >>> import torch
        >>> from gossamer.nn import ActivationSparseFFN
        >>> model = torch.nn.Sequential(ActivationSparseFFN(16, 64), torch.nn.Linear(16, 4))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> recipe = ActivationL1(target_share=0.05)
        >>> recipe.attach(model, optimizer, total_steps=1000)
        >>> list(recipe.layers)
        ['0']
    """

    strength: float | None = None
    target_share: float | None = None
    begin_share: float = 0.1
    end_share: float = 0.4
    relufy_share: float = 0.0
    revival: float = 0.0

    id: ClassVar[str] = "activation-l1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_scale: float | Callable[[], float] = 1.0
        if (self.strength is None) == (self.target_share is None):
            raise RecipeError(
                f"ActivationL1 got strength={self.strength}, target_share={self.target_share}; it "
                "needs one of them: pass target_share=0.05"
            )
        if self.strength is not None:
            check_number(self.strength, "ActivationL1 got strength")
        elif not 0.0 < self.target_share < 1.0:  # type: ignore[operator]
            raise RecipeError(
                f"ActivationL1 got target_share={self.target_share}; it must lie between 0 and 1: "
                "pass 0.05"
            )
        check_share(self.begin_share, "ActivationL1 got begin_share")
        check_share(self.end_share, "ActivationL1 got end_share")
        if self.end_share < self.begin_share:
            raise RecipeError(
                f"ActivationL1 got begin_share={self.begin_share}, end_share={self.end_share}; the "
                "ramp ends at or after its beginning: swap them"
            )

        check_share(self.relufy_share, "ActivationL1 got relufy_share")
        if self.relufy_share > self.begin_share:
            raise RecipeError(
                f"ActivationL1 got relufy_share={self.relufy_share}, "
                f"begin_share={self.begin_share}; a network is ReLU before the ramp begins: lower "
                "relufy_share, or raise begin_share"
            )
        check_number(self.revival, "ActivationL1 got revival")

    def find(self, model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
        """Return the `ActivationSparseFFN` layers of a model.

        Raises:
            RecipeError: there are none, or none that can go over to ReLU.
        """
        found = ActivationSparseFFN.find_in(model)
        if not found:
            raise RecipeError(
                "ActivationL1.attach got a model without ActivationSparseFFN; replace its "
                "feed-forward networks first"
            )
        if self.relufy_share and all(layer.former is None for layer in found.values()):
            raise RecipeError(
                f"ActivationL1.attach got relufy_share={self.relufy_share} and a model whose "
                "networks had no SiLU or GELU: convert it with sparsify_activations(relufy=True), "
                "or drop relufy_share"
            )
        return found.items()

    def start(self) -> None:
        """Hand each layer the strength."""
        size = len(self.layers)
        self.state["shares"] = torch.full((size,), math.nan, dtype=torch.float64)
        self.state["first_share"] = 0.0  # the share where the ramp begins, once it is known
        hidden = max(layer.hidden for layer in self._ffns)
        self.state["log_strength"] = math.log(_FIRST_STRENGTH / hidden)
        self.state["integral"] = self.state["log_strength"]
        for layer in self._ffns:
            layer.take_counts()
            layer.penalty = _Scaled(self, "strength_now")
            layer.revival = _Scaled(self, "revival") if self.revival else 0.0
            if layer.former is not None:
                layer.softness = _Current(self, "softness_now")

    def detach(self) -> None:
        """Remove the hooks from the optimizer and the penalty from the layers.

        A network that has not become ReLU yet keeps the activation that it has now.
        """
        for layer in self._ffns:
            layer.penalty = layer.revival = 0.0
            layer.softness = float(layer.softness)
        super().detach()

    def after_step(self, t: int) -> None:
        """Measure the shares of the step and control the strength of the next."""
        self._measure()
        if self.softness_now > 0.0:  # every activation was alive
            self.state["shares"].fill_(math.nan)
        share = self.live_share
        if self.target_share is None or math.isnan(share) or t + 1 < self._begin:
            return
        self.state["first_share"] = self.state["first_share"] or share
        # No share is above 0 by less than one live pair; 1e-6 stands for none.
        error = math.log(max(share, 1e-6) / self.target_at(t + 1))
        error = min(max(error, -_LARGEST_ERROR), _LARGEST_ERROR)
        self.state["integral"] += _INTEGRAL * error
        self.state["log_strength"] = self.state["integral"] + _PROPORTIONAL * error

    def target_at(self, t: int) -> float:
        """Return the target of a step: a straight line in log(share) along the ramp."""
        check(ActivationL1.target_at, locals())
        if self.target_share is None:
            return math.nan
        if "first_share" not in self.state:
            raise RecipeError("ActivationL1 measures its ramp in attach: attach it first")
        first = max(self.state["first_share"], self.target_share)
        ramp = Linear(math.log(first), math.log(self.target_share), self._begin, self._end)
        return math.exp(ramp(t))

    def mean_share(self, first: float) -> float:
        """Return the mean share of a whole training that follows the ramp.

        Args:
            first: share before the ramp, above the target.

        Raises:
            RecipeError: the recipe has no target.
        """
        check(ActivationL1.mean_share, locals())
        if self.target_share is None:
            raise RecipeError("ActivationL1 has a strength and no target_share: give the target")
        ramp = self.end_share - self.begin_share
        on_ramp = (first - self.target_share) / math.log(first / self.target_share)
        before, after = self.begin_share * first, (1.0 - self.end_share) * self.target_share
        return before + ramp * on_ramp + after

    @property
    def strength_now(self) -> float:
        """Strength of the penalty at this step."""
        if self.strength is not None:
            return Linear(0.0, self.strength, self._begin, self._end)(self.step)
        return math.exp(self.state["log_strength"]) if self.step >= self._begin else 0.0

    @property
    def softness_now(self) -> float:
        """The share of SiLU or GELU in the activation at this step."""
        end = int(self.relufy_share * self.total_steps)
        return Linear(1.0, 0.0, 0, end)(self.step) if end else 0.0

    @property
    def live_shares(self) -> dict[str, float]:
        """The running share of live activations of each layer, in training; NaN before a step."""
        shares: list[float] = self.state["shares"].tolist() if self.layers else []
        return dict(zip(self.layers, shares, strict=True))

    @property
    def live_share(self) -> float:
        """The mean of the shares of the layers; NaN before a step."""
        shares = list(self.live_shares.values())
        return sum(shares) / len(shares) if shares else math.nan

    @property
    def _ffns(self) -> list[ActivationSparseFFN]:
        return [layer for _, _, layer in self.of_type(ActivationSparseFFN)]

    @property
    def _begin(self) -> int:
        return int(self.begin_share * self.total_steps)

    @property
    def _end(self) -> int:
        return int(self.end_share * self.total_steps)

    def _measure(self) -> None:
        counts = [layer.take_counts() for layer in self._ffns]
        live, pairs = self.average(torch.tensor(counts, dtype=torch.float64)).unbind(1)
        shares: Tensor = self.state["shares"]
        seen = live / pairs  # NaN for a layer without a pass in this step
        mean = torch.where(shares.isnan(), seen, _KEPT * shares + (1 - _KEPT) * seen)
        self.state["shares"] = torch.where(seen.isnan(), shares, mean)


class _Current:
    """A number of the step, which a layer holds while a recipe is attached; a copy is a float."""

    def __init__(self, recipe: ActivationL1, name: str) -> None:
        self._recipe, self._name = recipe, name

    def __float__(self) -> float:
        return float(getattr(self._recipe, self._name))

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


class _Scaled(_Current):
    """A strength in units of the loss, multiplied as the losses are."""

    def __float__(self) -> float:
        scale = self._recipe.loss_scale
        return super().__float__() * float(scale() if callable(scale) else scale)


__all__ = ["ActivationL1"]
