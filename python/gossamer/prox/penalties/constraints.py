"""Constraints as penalties: 0 inside a set, inf outside; the operator is the projection.

The projection is Euclidean: it does not depend on the step or the metric. With groups the set
constrains the groups' norms: at most k non-zero groups, or the l2,1 ball.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import PenaltyError
from gossamer.prox.groupings import Groups, spread
from gossamer.prox.operators.chains import simplices_
from gossamer.prox.operators.elementwise import ElementOp, elementwise_
from gossamer.prox.operators.vector import l1_ball_, simplex_, top_k_
from gossamer.prox.penalties.base import Penalty, Radial, resolved_budget
from gossamer.prox.penalties.fields import BOUND, POSITIVE, budget, number
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.penalties.structured import only
from gossamer.prox.reductions import check_finite, magnitudes, norms, single_entries, sums

__all__ = ["Box", "L1Ball", "L2Ball", "Simplex", "TopK"]

# Tolerance, relative to the radius, for a projected point rounded in float32.
_SLACK = 1e-5


@penalty
class TopK(Radial):
    """The constraint of at most k non-zero entries, or groups.

    The operator keeps the k largest unchanged; among equal ones the first.

    Args:
        k: number of entries or groups to keep: a number >= 0 (rounded down), a share such as "25%",
            or a schedule.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Blumensath and Davies 2009, "Iterative hard thresholding for compressed sensing".

    Example:
        >>> import torch
        >>> TopK(2).prox_(torch.tensor([1.0, -3.0, 2.0]))
        tensor([ 0., -3.,  2.])
    """

    k: Any = budget()

    def weak_convexity(self) -> float:
        """Infinite: the set is not convex."""
        return math.inf

    def _count(self, groups: Groups) -> int:
        return int(resolved_budget(self.k, groups.count))

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        if single_entries(groups):
            check_finite(torch.as_tensor(x))
            top_k_(x, self._count(groups))
        else:
            super()._prox_(x, step, metric)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        count = min(int(resolved_budget(self.k, len(sizes))), len(sizes))
        return top_k_(sizes.clone(), count) if count else torch.zeros_like(sizes)

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        return torch.where(shrunk > 0, v, 0.0)

    def _value(self, x: Tensor, groups: Groups) -> float:
        kept = int((magnitudes(x, groups) != 0).sum())
        return 0.0 if kept <= self._count(groups) else math.inf

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        kept = magnitudes(x, groups) != 0
        if (count := int(kept.sum())) > self._count(groups):
            return math.inf
        if count < self._count(groups):
            return (grad**2).sum()
        return torch.where(spread(kept, groups), grad**2, 0.0).sum()


@penalty
class L1Ball(Radial):
    """The constraint sum_j ||x_j|| <= radius: the l1 ball, or with groups the l2,1 ball.

    Args:
        radius: the radius, > 0.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Duchi, Shalev-Shwartz, Singer and Chandra 2008, "Efficient projections onto the l1-ball";
        Condat 2016, "Fast projection onto the simplex and the l1 ball".

    Example:
        >>> import torch
        >>> L1Ball(2.0).prox_(torch.tensor([3.0, -2.0, 0.5]))
        tensor([ 1.5000, -0.5000,  0.0000])
    """

    radius: float = number(POSITIVE)

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        if single_entries(self._groups(x)):
            check_finite(torch.as_tensor(x))
            l1_ball_(x, self.radius)
        else:
            super()._prox_(x, step, metric)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        return l1_ball_(sizes.clone(), self.radius)

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        if sizes.sum() <= self.radius:
            return v
        face = shrunk > 0
        return torch.where(face, v - v[face].mean(), 0.0)

    def _value(self, x: Tensor, groups: Groups) -> float:
        total = float(magnitudes(x, groups).sum())
        return 0.0 if total <= self.radius * (1.0 + _SLACK) else math.inf

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        sizes = norms(x, groups)
        total = float(sizes.sum())
        if total > self.radius * (1.0 + _SLACK):
            return math.inf
        if total < self.radius * (1.0 - _SLACK):
            return (grad**2).sum()
        # The normal cone is t times the subdifferential of the norm, t >= 0: the nearest t.
        unit = x * spread(torch.where(sizes > 0, 1.0 / sizes, 0.0), groups)
        kept, pull = spread(sizes > 0, groups), (grad * unit).sum()
        idle = torch.where(sizes > 0, 0.0, norms(grad, groups))
        count = int((sizes > 0).sum())
        t = _root(lambda t: count * t + pull - (idle - t).clamp(min=0.0).sum(), 0.0, grad)
        return (torch.where(kept, grad + t * unit, 0.0) ** 2).sum() + (
            torch.where(sizes > 0, 0.0, (idle - t).clamp(min=0.0)) ** 2
        ).sum()


@penalty
class L2Ball(Radial):
    """The constraint ||x_j|| <= radius for each group: by default, for the whole tensor.

    Args:
        radius: the radius, > 0.
        groups: see `Penalty`; "neuron" bounds the norm of each row.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Example:
        >>> import torch
        >>> L2Ball(1.0).prox_(torch.tensor([3.0, -4.0]))
        tensor([ 0.6000, -0.8000])
    """

    radius: float = number(POSITIVE)
    groups: Any = field(default="layer", kw_only=True)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        return sizes.clamp(max=self.radius)

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        return torch.where(sizes <= self.radius, v, 0.0)

    def _value(self, x: Tensor, groups: Groups) -> float:
        inside = (norms(x, groups) <= self.radius * (1.0 + _SLACK)).all()
        return 0.0 if bool(inside) else math.inf

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        sizes = norms(x, groups)
        if self._value(x, groups) > 0:
            return math.inf
        # On the sphere -grad may point outwards by any length.
        on_sphere = sizes >= self.radius * (1.0 - _SLACK)
        outwards = (-sums(grad * x, groups) / sizes**2).clamp(min=0.0)
        return ((grad + spread(torch.where(on_sphere, outwards, 0.0), groups) * x) ** 2).sum()


@penalty
class Box(Penalty):
    """The constraint low <= x <= high for each entry; the default is x >= 0.

    Args:
        low: the lower bound, or -inf.
        high: the upper bound, or inf; not below `low`.
        groups: only "element".

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Example:
        >>> import torch
        >>> Box(-1.0, 2.0).prox_(torch.tensor([-3.0, 0.5, 4.0]))
        tensor([-1.0000,  0.5000,  2.0000])
        >>> Box().prox_(torch.tensor([-3.0, 0.5]))
        tensor([0.0000, 0.5000])
    """

    low: float = number(BOUND, default=0.0)
    high: float = number(BOUND, default=math.inf)

    def __post_init__(self) -> None:
        super().__post_init__()
        only(self, "element")
        if not self.low <= self.high:
            raise PenaltyError(
                f"Box got low={self.low:g} and high={self.high:g}; swap them: low <= high is needed"
            )

    def element_op(self) -> ElementOp:
        """The compiled operator per entry."""
        return ElementOp(self.name, (self.low, self.high))

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        elementwise_(x, self.name, (self.low, self.high))

    def _value(self, x: Tensor, groups: Groups) -> float:
        low, high = self._reach
        return 0.0 if bool(((x >= low) & (x <= high)).all()) else math.inf

    @property
    def _reach(self) -> tuple[float, float]:
        """The bounds, with room for a point rounded in float32."""
        return self.low - abs(self.low) * _SLACK, self.high + abs(self.high) * _SLACK

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        if self._value(x, groups) > 0:
            return math.inf
        # A bound balances what pushes against it.
        left = torch.where(x <= self.low + abs(self.low) * _SLACK, grad.clamp(max=0.0), grad)
        left = torch.where(x >= self.high - abs(self.high) * _SLACK, left.clamp(min=0.0), left)
        return (left**2).sum()

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        return torch.where((x > self.low) & (x < self.high), grad, 0.0)


@penalty
class Simplex(Penalty):
    """The constraint x >= 0, sum x = radius: a simplex for the tensor, or for each group.

    Args:
        radius: the sum, > 0.
        groups: see `Penalty`; "element" and "layer" both take the tensor as one.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Held, Wolfe and Crowder 1974, "Validation of subgradient optimization"; Condat 2016, "Fast
        projection onto the simplex and the l1 ball".

    Example:
        >>> import torch
        >>> Simplex(1.0).prox_(torch.tensor([0.75, 0.5, -1.0]))
        tensor([0.6250, 0.3750, 0.0000])
    """

    radius: float = number(POSITIVE, default=1.0)

    def _groups(self, x: Any) -> Groups:
        one = self.groups in ("element", "layer")
        return Groups(1, 1, math.prod(x.shape)) if one else super()._groups(x)

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        check_finite(torch.as_tensor(x))
        groups = self._groups(x)
        if groups.count == 1:
            simplex_(x, self.radius)
        else:
            simplices_(x, groups, self.radius)

    def _value(self, x: Tensor, groups: Groups) -> float:
        off = (sums(x, groups) - self.radius).abs()
        inside = bool((x >= 0).all()) and bool((off <= self.radius * _SLACK).all())
        return 0.0 if inside else math.inf

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        if self._value(x, groups) > 0:
            return math.inf
        # The normal cone: any t on a support, at most t off it.
        total = torch.zeros((), dtype=torch.float64)
        own = spread(torch.arange(groups.count), groups)
        for j in range(groups.count):
            kept, g = x[own == j] > 0, grad[own == j]

            def left(t: float, kept: Tensor = kept, g: Tensor = g) -> Tensor:
                return torch.where(kept, g + t, (g + t).clamp(max=0.0))

            t = _root(lambda t: left(t).sum(), -math.inf, g)
            total += (left(t) ** 2).sum()
        return total

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        face = (z > 0).double()
        mean = sums(grad * face, groups) / sums(face, groups)
        return (grad - spread(mean, groups)) * face


def _root(rising: Callable[[float], Tensor], floor: float, grad: Tensor) -> float:
    """The root t >= floor of a non-decreasing function; |t| is at most sum |grad|."""
    high = float(grad.abs().sum()) + 1.0
    low = max(floor, -high)
    if rising(low) >= 0:
        return low
    for _ in range(200):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return (low + high) / 2.0
