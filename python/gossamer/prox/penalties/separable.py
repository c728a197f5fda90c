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
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossamer.arguments import check
from gossamer.prox.groupings import Groups, spread
from gossamer.prox.operators.elementwise import ElementOp, elementwise_
from gossamer.prox.operators.groupwise import metric_group_l2_
from gossamer.prox.penalties.base import Penalty, Radial
from gossamer.prox.penalties.fields import NOT_NEGATIVE, POSITIVE, SHARE, Number, Range, number
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.penalties.weighted import Weighted
from gossamer.prox.reductions import magnitudes, norms

__all__ = ["L0", "L1", "ElasticNet", "Huber", "Lp"]


@dataclass(frozen=True, eq=False)
class Separable(Weighted, Radial):
    """A sum of phi over magnitudes; a subclass implements phi for a float64 tensor a >= 0."""

    # Whether phi is lam times a function of the other parameters alone.
    _lam_is_factor: ClassVar[bool] = True

    @abstractmethod
    def _phi(self, a: Tensor) -> Tensor: ...

    @abstractmethod
    def _slope(self, a: Tensor) -> Tensor:
        """phi'(a); at a = 0 the slope on the right, which may be inf."""

    def _curvature(self, a: Tensor) -> Tensor:
        """phi''(a) for a > 0."""
        return torch.zeros_like(a)

    def _jump(self, step: float) -> float:
        """The jump of the operator at its threshold, without weights."""
        return 0.0

    def _bend(self) -> float:
        """The constant of weak convexity, without weights."""
        return 0.0

    def gap(self, step: float = 1.0) -> float:
        """The jump at the threshold: no magnitude of an output of `prox_` lies in (0, gap)."""
        check(Penalty.gap, locals())
        self._resolved()
        return self._jump(self._lightest(step))

    def weak_convexity(self) -> float:
        """The smallest rho for which g + rho/2 ||x||^2 is convex; inf if there is none."""
        self._resolved()
        return self._heaviest(self._bend())

    def _op(self) -> tuple[str, tuple[float, ...]]:
        numbers = [name for name, kind in self._kinds() if kind.operator]
        return self.name, tuple(getattr(self, name) for name in numbers)

    def element_op(self) -> ElementOp | None:
        """The compiled operator per entry; None with groups."""
        self._resolved()
        if self.groups != "element":
            return None
        return ElementOp(*self._op(), self.weights, self.positive)

    def _operate_(self, x: Any, step: float, metric: Any) -> Any:
        """Apply the operator to the groups' magnitudes, or to the entries if each is a group."""
        kind, params = self._op()
        if self.weights is not None and self._lam_is_factor:  # they meet in float64
            step, params = step * params[0], (1.0, *params[1:])
        return elementwise_(x, kind, params, self._steps(x, step, metric), positive=self.positive)

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        if self.groups == "element":
            self._operate_(x, step, metric)
            return
        if self.positive:
            norms(x, self._groups(x))  # raises on NaN before anything changes
            elementwise_(x, "l1", (0.0,), positive=True)
        super()._prox_(x, step, metric)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        shrunk: Tensor = self._operate_(sizes.clone(), step, metric)
        return shrunk

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        bend = step * self._weighted(self._curvature(shrunk))
        return torch.where(shrunk > 0, v / (1.0 + bend), 0.0)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        return self._weighted(self._phi(magnitudes(x, groups))).sum()

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        slope = self._weighted(self._slope(magnitudes(x, groups)))
        return radial_distance(x, grad, groups, slope)


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
        weights: see `Weighted`.
        positive: see `Weighted`.
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

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        if self.groups == "element" or metric is None:
            super()._prox_(x, step, metric)
            return
        groups = self._groups(x)
        norms(x, groups)  # raises on NaN before anything changes
        if self.positive:
            elementwise_(x, "l1", (0.0,), positive=True)
        lam = self._lam * step * self._weighted(torch.ones(groups.count).double())
        metric_group_l2_(x, metric, groups, lam)

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * a

    def _slope(self, a: Tensor) -> Tensor:
        return torch.full_like(a, self._lam)


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

    def _jump(self, step: float) -> float:
        """The jump sqrt(2 lam s)."""
        return math.sqrt(2.0 * self._lam * step)

    def _bend(self) -> float:
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

    def _jump(self, step: float) -> float:
        """The smallest magnitude of a non-zero output."""
        return float((2.0 * self._lam * step * (1.0 - self.p)) ** (1.0 / (2.0 - self.p)))

    def _bend(self) -> float:
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


@penalty
class Huber(Separable):
    """The Huber penalty: lam x^2 / 2 up to delta, then the line lam delta (|x| - delta / 2).

    Its operator divides small entries and subtracts from large ones: nothing becomes zero.

    Args:
        lam: the curvature at zero, >= 0, or a schedule.
        delta: the magnitude from which the penalty is a line, > 0.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Huber 1964, "Robust estimation of a location parameter".

    Example:
        >>> import torch
        >>> Huber(1.0, delta=1.0).prox_(torch.tensor([1.0, -4.0]))
        tensor([ 0.5000, -3.0000])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    delta: float = number(POSITIVE)

    def _phi(self, a: Tensor) -> Tensor:
        inner = a.clamp(max=self.delta)
        return self._lam * inner * (a - inner / 2.0)

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * a.clamp(max=self.delta)

    def _curvature(self, a: Tensor) -> Tensor:
        return self._lam * (a < self.delta).double()
