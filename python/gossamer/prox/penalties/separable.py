"""Separable penalties: a function of one magnitude, summed over the entries or over the groups.

    g(x) = sum_j phi(||x_j||)       groups="element": phi(|x_i|)

`L1(lam, groups="neuron")` is the group lasso, and `Lp(lam, p, groups="filter")` is group l2^p. Each
class implements phi, its slope and curvature on magnitudes, and the jump of its operator. The
operator is compiled (`gossamer.prox.operators.elementwise`); with groups it acts on their norms. In
a metric it is exact for single entries, and for `L1` also for groups; the other penalties use the
mean of each group's metric.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.prox.checks import flat64
from gossamer.prox.groupings import Groups, spread
from gossamer.prox.operators.elementwise import elementwise_
from gossamer.prox.operators.groupwise import metric_group_l2_
from gossamer.prox.penalties.base import Radial
from gossamer.prox.penalties.fields import NOT_NEGATIVE, SHARE, Number, Range, number, per_group
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.reductions import check_count, magnitudes, norms

__all__ = ["L0", "L1", "ElasticNet", "Lp"]


@dataclass(frozen=True, eq=False)
class Separable(Radial):
    """A sum of phi over magnitudes; a subclass implements phi for a float64 tensor a >= 0."""

    @abstractmethod
    def _phi(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, a: Tensor) -> Tensor:
        """phi'(a); at a = 0 the slope on the right, which may be inf."""

    def _curvature(self, a: Tensor) -> Tensor:
        """phi''(a) for a > 0."""
        return torch.zeros_like(a)

    def _op(self) -> tuple[str, tuple[float, ...]]:
        numbers = [name for name, kind in self._kinds() if kind.operator]
        return self.name, tuple(getattr(self, name) for name in numbers)

    def element_op(self) -> tuple[str, tuple[float, ...]] | None:
        """The kind and parameters of the compiled operator per entry; None with groups."""
        self._resolved()
        return self._op() if self.groups == "element" else None

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        if self.groups == "element":
            elementwise_(x, *self._op(), step if metric is None else inverse(step, metric))
        else:
            super()._prox_(x, step, metric)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        steps = step if metric is None else inverse(step, metric)
        return elementwise_(sizes.clone(), *self._op(), steps)

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        return torch.where(shrunk > 0, v / (1.0 + step * self._curvature(shrunk)), 0.0)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        return self._phi(magnitudes(x, groups)).sum()

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        return radial_distance(x, grad, groups, self._slope(magnitudes(x, groups)))


def inverse(step: float, metric: Any) -> Any:
    """The steps of a metric; an overflow becomes the largest finite number, whose 0-fold is 0."""
    largest = float(np.finfo(str(metric.dtype).removeprefix("torch.")).max)
    if isinstance(metric, Tensor):
        # Not step / metric, which torch computes as step * (1 / metric): 0 * inf is NaN.
        return torch.tensor(min(step, largest), dtype=metric.dtype).div(metric).clamp(max=largest)
    with np.errstate(over="ignore"):
        return np.minimum(min(step, largest) / metric, metric.dtype.type(largest))


def radial_distance(x: Tensor, grad: Tensor, groups: Groups, slope: Tensor) -> Tensor:
    """The squared distance from -grad to slope x_j / ||x_j||, or to the slope's ball at x_j = 0."""
    sizes = magnitudes(x, groups)
    along = spread(torch.where(sizes == 0, 0.0, slope / sizes), groups) * x
    moved = torch.where(spread(sizes, groups) == 0, 0.0, grad + along)
    lengths = magnitudes(grad, groups)
    still = torch.where(sizes == 0, (lengths - slope).clamp(min=0.0), 0.0)
    return (moved**2).sum() + (still**2).sum()


@penalty
class L1(Separable):
    """The l1 norm lam sum_j w_j ||x_j||; with groups, the group lasso.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        weights: w >= 0, one per entry (in the tensor's shape) or per group; None is 1.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Tibshirani 1996, "Regression shrinkage and selection via the lasso"; Yuan and Lin 2006,
        "Model selection and estimation in regression with grouped variables".

    Example:
        >>> import torch
        >>> L1(1.0).prox_(torch.tensor([3.0, -0.5, -2.0]))
        tensor([ 2.,  0., -1.])
        >>> L1(5.0, groups="neuron").prox_(torch.tensor([[6.0, 8.0], [3.0, 4.0]]))
        tensor([[3., 4.],
                [0., 0.]])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    weights: Any = per_group(NOT_NEGATIVE, default=None)

    def element_op(self) -> tuple[str, tuple[float, ...]] | None:
        """The kind and parameters of the compiled operator per entry; None with groups, weights."""
        return None if self.weights is not None else super().element_op()

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        if self.groups != "element":
            if metric is None:
                super()._prox_(x, step, None)
            else:
                norms(x, groups)  # raises on NaN before anything changes
                lam = self._lam * step * self._weighted(torch.ones(groups.count).double())
                metric_group_l2_(x, metric, groups, lam)
        elif self.weights is None:
            super()._prox_(x, step, metric)
        else:
            # Multiply in float64: a large weight and a small lam must not overflow or underflow.
            wide = (self._lam * step) * self._weighted(torch.ones(groups.count).double())
            if metric is not None:
                wide = wide / flat64(metric)
            wide = wide.clamp(max=float(np.finfo(str(x.dtype).removeprefix("torch.")).max))
            wide = wide.view(tuple(x.shape))
            steps: Any = wide.to(x.dtype) if isinstance(x, Tensor) else wide.numpy().astype(x.dtype)
            elementwise_(x, "l1", (1.0,), steps)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        steps = self._weighted(torch.full_like(sizes, step))
        return elementwise_(sizes.clone(), *self._op(), steps)

    def _weighted(self, per_group: Tensor) -> Tensor:
        if self.weights is None:
            return per_group
        return per_group * check_count(self.weights, len(per_group), "weights")

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * self._weighted(a)

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * self._weighted(torch.ones_like(a))


@penalty
class ElasticNet(Separable):
    """The elastic net lam sum_j (rho |x_j| + (1 - rho) x_j^2 / 2).

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        rho: share of the l1 part, in [0, 1]: 1 is l1, 0 is ridge.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Zou and Hastie 2005, "Regularization and variable selection via the elastic net".

    Example:
        >>> import torch
        >>> ElasticNet(1.0, rho=0.5).prox_(torch.tensor([2.0, -0.25]))
        tensor([1., 0.])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    rho: float = number(SHARE)

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * (self.rho * a + (1.0 - self.rho) * a**2 / 2.0)

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * (self.rho + (1.0 - self.rho) * a)

    def _curvature(self, a: Tensor) -> Tensor:
        return torch.full_like(a, self._lam * (1.0 - self.rho))


@penalty
class L0(Separable):
    """The l0 penalty: lam times the number of non-zero entries, or groups.

    The operator keeps magnitudes above sqrt(2 lam s) unchanged, and zeroes the others.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Blumensath and Davies 2008, "Iterative thresholding for sparse approximations".

    Example:
        >>> import torch
        >>> L0(2.0).prox_(torch.tensor([3.0, -2.0, 1.0]))
        tensor([3., 0., 0.])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)

    def gap(self, step: float = 1.0) -> float:
        """The jump sqrt(2 lam s)."""
        check(L0.gap, locals())
        self._resolved()
        return math.sqrt(2.0 * self._lam * step)

    def weak_convexity(self) -> float:
        """Infinite: the penalty has a jump."""
        return math.inf

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * (a != 0).double()

    def _slope(self, a: Tensor) -> Tensor:
        return torch.where((a == 0) & (self._lam > 0), torch.inf, 0.0).double()


@penalty
class Lp(Separable):
    """The lp penalty lam sum_j |x_j|^p for 0 < p <= 1; p = 1 is l1.

    An output of the operator is 0 or at least `gap(s)` = (2 lam s (1 - p))^(1 / (2 - p)).

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        p: the power, in (0, 1].
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Marjanovic and Solo 2012, "On lq optimization and matrix completion"; Xu, Chang, Xu and
        Zhang 2012, "L1/2 regularization: a thresholding representation theory", for p = 1/2.

    Example:
        >>> import torch
        >>> Lp(1.0, p=0.5).prox_(torch.tensor([1.4, 1.6, 5.0]))
        tensor([0.0000, 1.1295, 4.7711])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    p: float = number(Range(lambda v: 0 < v <= 1, "in (0, 1]"))

    def gap(self, step: float = 1.0) -> float:
        """The smallest magnitude of a non-zero output."""
        check(Lp.gap, locals())
        self._resolved()
        return float((2.0 * self._lam * step * (1.0 - self.p)) ** (1.0 / (2.0 - self.p)))

    def weak_convexity(self) -> float:
        """Infinite for p < 1, because the slope at zero is infinite; 0 for p = 1."""
        return math.inf if self.p < 1 else 0.0

    def _op(self) -> tuple[str, tuple[float, ...]]:
        return super()._op() if self.p < 1 else ("l1", (self._lam,))

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * a**self.p

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * self.p * a ** (self.p - 1.0) if self._lam > 0 else torch.zeros_like(a)

    def _curvature(self, a: Tensor) -> Tensor:
        return self._lam * self.p * (self.p - 1.0) * a ** (self.p - 2.0)
