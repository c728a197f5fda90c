"""Penalties that are not sums over magnitudes: sparse group lasso and l1 - alpha l2."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.errors import PenaltyError
from gossamer.prox.groupings import Groups, spread
from gossamer.prox.operators.vector import l1_minus_l2_
from gossamer.prox.penalties.base import Penalty
from gossamer.prox.penalties.fields import NOT_NEGATIVE, SHARE, Number, number
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.penalties.separable import L1
from gossamer.prox.penalties.weighted import Weighted
from gossamer.prox.reductions import norms

__all__ = ["L1MinusL2", "SparseGroupLasso"]


@penalty
class SparseGroupLasso(Weighted):
    """The sparse group lasso sum_j w_j (lam ||x_j||_1 + group_lam ||x_j||): groups and entries.

    The operator soft-thresholds the entries and then shrinks the groups; it is exact in any metric.

    Args:
        lam: weight of the entries, >= 0, or a schedule.
        group_lam: weight of the groups, >= 0, or a schedule.
        weights: see `Weighted`; the weight of a group multiplies both of its terms.
        positive: see `Weighted`.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Simon, Friedman, Hastie and Tibshirani 2013, "A sparse-group lasso".

    Example:
        >>> import torch
        >>> penalty = SparseGroupLasso(1.0, group_lam=2.5, groups="neuron")
        >>> penalty.prox_(torch.tensor([[4.0, 5.0], [1.5, 0.5]]))
        tensor([[1.5000, 2.0000],
                [0.0000, 0.0000]])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    group_lam: Number = number(NOT_NEGATIVE, scheduled=True)
    groups: Any = field(default="neuron", kw_only=True)

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        norms(x, groups)  # raises on NaN before anything changes
        self._on_entries(groups)._prox_(x, step, metric)
        self._on_groups()._prox_(x, step, metric)

    def _on_entries(self, groups: Groups) -> L1:
        w = None if self.weights is None else spread(self.weights, groups)
        return L1(self.lam, weights=w, positive=self.positive)

    def _on_groups(self) -> L1:
        return L1(self.group_lam, groups=self.groups, weights=self.weights)

    def _lams(self, groups: Groups) -> float | Tensor:
        """The weight of each entry's magnitude."""
        return self._lam if self.weights is None else self._lam * spread(self.weights, groups)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        return (self._lams(groups) * x.abs()).sum() + self._on_groups()._value(x, groups)

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        # The gradient that the l1 part does not balance: at x_i = 0 it balances up to lam.
        lam, lasso = self._lams(groups), self._on_groups()
        soft = grad.sign() * (grad.abs() - lam).clamp(min=0.0)
        left = torch.where(x == 0, soft, grad + lam * x.sign())
        return lasso._distance(x, left, groups)

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        soft = x.sign() * (x.abs() - step * self._lams(groups)).clamp(min=0.0)
        return torch.where(soft != 0, self._on_groups()._pullback(soft, z, step, grad, groups), 0.0)


@penalty
class L1MinusL2(Penalty):
    """The penalty lam (||x||_1 - alpha ||x||_2) of the whole tensor; alpha = 1 is 0 for one entry.

    In a metric the operator uses the metric's mean.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        alpha: share of the l2 norm, in [0, 1]; 0 is l1.
        groups: only "layer".

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Lou and Yan 2018, "Fast L1-L2 minimization via a proximal operator", lemma 1.

    Example:
        >>> import torch
        >>> L1MinusL2(1.0, alpha=1.0).prox_(torch.tensor([3.0, 0.5]))
        tensor([3., 0.])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    alpha: float = number(SHARE, default=1.0)
    groups: Any = field(default="layer", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        only(self, "layer")

    def gap(self, step: float = 1.0) -> float:
        """The jump alpha lam s: the smallest magnitude of a single non-zero entry."""
        check(L1MinusL2.gap, locals())
        self._resolved()
        return float(self.alpha * self._lam * step)

    def weak_convexity(self) -> float:
        """Infinite, because of a concave kink at 0; 0 for alpha = 0."""
        return math.inf if self.alpha > 0 else 0.0

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        norms(x, self._groups(x))
        scale = 1.0 if metric is None else float(metric.mean())
        l1_minus_l2_(x, self._lam * step / scale, self.alpha)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        return self._lam * (x.abs().sum() - self.alpha * norms(x, groups).sum())

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        size = float(norms(x, groups))
        if size == 0.0:  # the l2 ball of radius alpha lam around -grad must fit into the box of lam
            return ((grad.abs() - self._lam * (1.0 - self.alpha)).clamp(min=0.0) ** 2).sum()
        pull = grad - self._lam * self.alpha * x / size
        soft = (pull.abs() - self._lam).clamp(min=0.0)
        return (torch.where(x == 0, soft, pull + self._lam * x.sign()) ** 2).sum()

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        lam = step * self._lam
        soft = x.sign() * (x.abs() - lam).clamp(min=0.0)
        size = float((soft**2).sum().sqrt())
        inside = torch.where(z != 0, grad, 0.0)
        if size == 0.0:  # one entry stays, moved by a constant
            return inside
        gain = 1.0 + self.alpha * lam / size
        along = (inside * soft).sum() / size**2
        return gain * inside + (1.0 - gain) * along * soft


def only(given: Penalty, groups: str) -> None:
    """Raise PenaltyError unless the grouping is `groups`."""
    if given.groups != groups:
        raise PenaltyError(
            f"{type(given).__name__} got groups={given.groups!r:.80}; it takes a tensor as a "
            f"whole: use groups={groups!r}"
        )
