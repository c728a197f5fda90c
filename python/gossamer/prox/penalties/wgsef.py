"""WGSEF: the weighted group sparse envelope function, the convex envelope of "k groups + ridge".

    GS(x) = 1/2 min_u { sum_j d_j ||x_j||^2 / u_j : 0 <= u_j <= 1, sum_j c_j u_j <= k }

For c = 1 and integer k it is the largest convex function below 1/2 sum_j d_j ||x_j||^2 on vectors
with at most k non-zero groups (and inf elsewhere). Its operator multiplies each group by the gain
u_j / (u_j + lam d_j), found in linear time (`gossamer.prox.operators.groupwise.wgsef_gains`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import PenaltyError
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.groupwise import wgsef_gains, wgsef_value
from gossamer.prox.operators.vector import top_k_
from gossamer.prox.penalties.base import Radial, resolved_budget
from gossamer.prox.penalties.fields import NOT_NEGATIVE, POSITIVE, Number, budget, number, per_group
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.penalties.separable import radial_distance
from gossamer.prox.reductions import check_count, norms

__all__ = ["WGSEF"]


@penalty
class WGSEF(Radial):
    """The penalty lam GS_k(x), which pulls a tensor towards k mildly shrunk non-zero groups.

    One step of the operator does not leave exactly k groups. Groups beyond the budget shrink faster
    than those within it, and vanish over many steps. Groups within the budget are divided by
    1 + lam s d. With `unbiased` the penalty is lam (GS_k(x) - 1/2 ||x||^2), which is 0 on vectors
    with k groups: they keep their size. For lam s >= 1 that problem is not convex; the operator
    then keeps the k largest groups and zeroes the others (k must be an integer, and c None).

    In a metric each group uses the mean over its entries, which is exact for single entries.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        k: the budget: a number >= 0, a share of the groups (or, with `c`, of their total cost) such
            as "25%", or a schedule. A share of the groups is rounded, and is at least one group.
        groups: see `Penalty`.
        d: weight of each group's energy, > 0; None is 1.
        c: cost of each group (such as its parameters or FLOPs), > 0; None is 1.
        unbiased: True selects the difference-of-convex form; d must be None.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Refael, Arbel and Huleihel 2022, "Sparse envelope functions" (arXiv 2212.12921); Beck and
        Refael 2022, "Sparse regularization via bidualization"; Argyriou, Foygel and Srebro 2012,
        "Sparse prediction with the k-support norm".

    Example:
        >>> import torch
        >>> WGSEF(3.0, k=1).prox_(torch.tensor([0.0, 5.0, 10.0, 15.0, 20.0]))
        tensor([0., 0., 0., 0., 5.])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    k: Any = budget()
    d: Any = per_group(POSITIVE, default=None)
    c: Any = per_group(POSITIVE, default=None)
    unbiased: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unbiased and self.d is not None:
            raise PenaltyError("WGSEF got unbiased=True and d; the unbiased form has d = 1: drop d")

    def weak_convexity(self) -> float:
        """The constant lam in the unbiased form, else 0."""
        self._resolved()
        return self._lam if self.unbiased else 0.0

    def _limits(self, count: int) -> tuple[float, Tensor | None, Tensor | None]:
        """The budget, and d and c; ShapeError unless they have one number per group."""
        d, c = (
            None if v is None else check_count(v, count, name)
            for name, v in (("d", self.d), ("c", self.c))
        )
        if c is None:
            return resolved_budget(self.k, count), d, c
        return resolved_budget(self.k, float(c.sum()), counts=False), d, c

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        return self._gains(sizes, step, metric) * sizes

    def _gains(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        k, d, c = self._limits(len(sizes))
        lam = self._lam * step
        if metric is not None:
            metric = metric.expand(len(sizes)).contiguous()
        if not self.unbiased:
            return wgsef_gains(sizes, k, lam, d, c, metric)[0]
        # The plain form of a stretched x, while the problem is convex.
        if metric is None:
            if lam >= 1.0:
                return self._largest(sizes, k, c)
            gains, _ = wgsef_gains(sizes / (1.0 - lam), k, lam / (1.0 - lam), d, c)
            return gains.div_(1.0 - lam)
        alive = sizes > 0
        convex = metric > lam
        if not convex[alive].any():
            return self._largest(metric.sqrt() * sizes, k, c)
        if not convex[alive].all():
            raise PenaltyError(
                f"WGSEF(unbiased=True) got lam * step = {lam:g} in a metric between "
                f"{float(metric[alive].min()):g} and {float(metric[alive].max()):g}; it must lie "
                "on one side of the whole metric: choose a smaller lam or step"
            )
        left = torch.where(alive, metric - lam, 1.0)
        stretch = torch.where(alive, metric / left, 1.0)
        return wgsef_gains(sizes * stretch, k, lam, d, c, left)[0].mul_(stretch)

    def _largest(self, sizes: Tensor, k: float, c: Tensor | None) -> Tensor:
        """Gains where the problem is not convex: the k largest groups stay as they are.

        At lam s = 1 they minimise the objective, which is lam GS(z) - <z, x> plus a constant. For a
        larger lam s the objective is larger, except for z with k groups, where it is equal.
        """
        if c is not None or k != int(k):
            raise PenaltyError(
                f"WGSEF(unbiased=True) got lam * step >= the metric with k={k:g} and "
                f"{'costs c' if c is not None else 'a fraction in it'}; this case needs an integer "
                "k and no costs: choose a smaller lam or step"
            )
        if k == 0:
            return torch.zeros_like(sizes)
        return (top_k_(sizes.clone(), min(int(k), len(sizes))) > 0).double()

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        # Saturated groups divide by 1 + lam d. The others share the budget: with
        # r = sqrt(lam d c) their Jacobian is I - r r' / (k - cost of the saturated + r'r).
        k, d, c = self._limits(len(sizes))
        lam = self._lam * step
        stretch = 1.0
        if self.unbiased:
            if lam >= 1.0:
                return torch.where(shrunk > 0, v, 0.0)
            stretch, lam = 1.0 / (1.0 - lam), lam / (1.0 - lam)
        ones = torch.ones_like(sizes)
        d, c = ones if d is None else d, ones if c is None else c
        kept = shrunk > 0
        full = kept & (shrunk >= stretch * sizes / (1.0 + lam * d) * (1.0 - 1e-12))
        r = torch.where(kept & ~full, (lam * d * c).sqrt(), 0.0)
        left = k - c[full].sum() + (r**2).sum()
        inner = (v - r * (r @ v) / left) if r.any() else v
        return stretch * torch.where(full, v / (1.0 + lam * d), torch.where(kept, inner, 0.0))

    def _value(self, x: Tensor, groups: Groups) -> float:
        sizes = norms(x, groups)
        if self._lam == 0:
            return 0.0
        value, _ = wgsef_value(sizes, *self._limits(groups.count))
        if self.unbiased:
            value -= 0.5 * float((sizes**2).sum())
        return float(self._lam * value)

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        sizes = norms(x, groups)
        if self._lam == 0:
            return (grad**2).sum()
        k, d, c = self._limits(groups.count)
        value, u = wgsef_value(sizes, k, d, c)
        if math.isinf(value):
            return math.inf
        ones = torch.ones_like(sizes)
        d, c = ones if d is None else d, ones if c is None else c
        kept = sizes > 0
        slope = torch.where(kept, d * sizes / u, (d * c).sqrt() * self._price(sizes, u, k, d, c))
        if self.unbiased:
            slope = slope - sizes
        return radial_distance(x, grad, groups, self._lam * slope)

    def _price(self, sizes: Tensor, u: Tensor, k: float, d: Tensor, c: Tensor) -> float:
        """The multiplier of the budget, which sets the slope of GS at zero groups."""
        if k == 0:
            return math.inf
        kept = sizes > 0
        if c[kept].sum() < k:
            return 0.0
        return float((sizes * (d / c).sqrt() / u)[kept].min())
