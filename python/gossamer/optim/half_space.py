"""The half-space step: a second stage that sets whole groups to zero and keeps them there.

A group g that is not zero becomes zero when its trial point leaves the half-space around it:
<x~_g, x_g> < eps * |x_g|^2. Groups that are zero stay zero.
"""

from dataclasses import dataclass

from torch import Tensor

from gossamer.errors import ArgumentError
from gossamer.prox import Penalty
from gossamer.prox.checks import is_number
from gossamer.prox.groupings import resolve, spread
from gossamer.prox.reductions import sums


@dataclass(frozen=True)
class HalfSpace:
    """When a proximal optimizer turns to the half-space stage, and how eagerly it zeroes.

    Before `start` steps the optimizer finds its region by proximal steps; from then on each step
    also drops groups of the penalty whose trial point turned against them. The trial point is the
    gradient step plus a forward step on the penalty, x~ = v - (x - prox(x)); for the group lasso
    this is exactly the published x - s * (grad f + lam * x_g / |x_g|) while |x_g| > s * lam. Groups
    that stay take the proximal step. With groups of one entry and eps 0 it is an orthant step.

    Args:
        start: steps before the first half-space step, from 0.
        eps: in [0, 1); 0 drops groups that turned round, larger values more of them.

    Raises:
        ShapeError: a value is out of its range.

    Example:
        >>> HalfSpace(start=1000).eps
        0.0

    Reference:
        Chen, Ding, Ji, Zhu, Shi, Hong, Tu and others 2021, "Half-Space Proximal Stochastic Gradient
        Method for Group-Sparsity Regularized Problem", Half-Space Step; and the optimizer of "Only
        Train Once" (Chen et al. 2021), whose test this is.
    """

    start: int
    eps: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not (isinstance(self.start, int) and self.start >= 0):
            raise ArgumentError(
                f"HalfSpace got start={self.start!r:.40}; it is a number of steps, at least 0"
            )
        if not (is_number(self.eps) and 0 <= self.eps < 1):
            raise ArgumentError(f"HalfSpace got eps={self.eps!r:.40}; it is in [0, 1)")


def prox_step_(
    x: Tensor,
    penalty: Penalty,
    second: HalfSpace | None,
    before: Tensor | None,
    *,
    step: float = 1.0,
    metric: Tensor | None = None,
) -> None:
    """Apply a penalty to the gradient step's point; with `before`, as a half-space step.

    Args:
        x: the parameter after the gradient step; changed.
        penalty: its penalty.
        second: the second stage's settings.
        before: the parameter before the step, in the second stage only.
        step: of the proximal operator.
        metric: instead of the step, as large as ``x``.
    """
    if before is None or second is None:
        penalty.prox_(x, step, metric=metric)
        return
    trial = x - (before - penalty.prox_(before.clone(), step, metric=metric))
    penalty.prox_(x, step, metric=metric)
    groups = resolve(penalty.groups, x.shape)
    at = before.double().reshape(-1)
    square = sums(at.square(), groups)
    against = sums(trial.double().reshape(-1) * at, groups) < second.eps * square
    x.masked_fill_(spread(against | (square == 0), groups).view(x.shape), 0.0)


def group_count(penalty: Penalty, x: Tensor) -> int:
    """Number of groups that a penalty's grouping makes of a tensor."""
    return resolve(penalty.groups, x.shape).count


def zero_groups(penalty: Penalty, x: Tensor) -> Tensor:
    """Which groups hold nothing but zeros, bool [groups]."""
    alive = (x != 0).double().reshape(-1)
    return sums(alive, resolve(penalty.groups, x.shape)) == 0
