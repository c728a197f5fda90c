"""The half-space step: a second stage that sets whole groups to zero and keeps them there.

A non-zero group g becomes zero when its trial point x~_g leaves the half-space around x_g, that is
when <x~_g, x_g> < eps * |x_g|^2. Groups that are zero stay zero.
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
    """Settings of the half-space stage of a proximal optimizer: its first step and its threshold.

    The first `start` steps are proximal steps only. From then on each step also zeroes the groups
    of the penalty whose trial point left their half-space. The trial point is the gradient step v
    plus a forward step on the penalty, x~ = v - (x - prox(x)). For the group lasso this equals the
    published x - s * (grad f + lam * x_g / |x_g|) while |x_g| > s * lam. The other groups take the
    proximal step. With groups of one entry and eps = 0 it is an orthant step.

    Args:
        start: number of steps before the first half-space step, at least 0.
        eps: threshold in [0, 1); 0 zeroes only groups that changed direction by more than 90
            degrees, larger values zero more groups.

    Raises:
        ArgumentError: a value is out of its range.

    Reference:
        Chen et al. 2021, "A Half-Space Stochastic Projected Gradient Method for Group Sparsity
        Regularization", Half-Space Step; Chen et al. 2021, "Only Train Once", for the test with
        eps.

    Example:
        >>> HalfSpace(start=1000).eps
        0.0
    """

    start: int
    eps: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not (isinstance(self.start, int) and self.start >= 0):
            raise ArgumentError(
                f"HalfSpace got start={self.start!r:.40}; a number of steps >= 0 is needed"
            )
        if not (is_number(self.eps) and 0 <= self.eps < 1):
            raise ArgumentError(f"HalfSpace got eps={self.eps!r:.40}; a number in [0, 1) is needed")


def prox_step_(
    x: Tensor,
    penalty: Penalty,
    second: HalfSpace | None,
    before: Tensor | None,
    *,
    step: float = 1.0,
    metric: Tensor | None = None,
) -> None:
    """Apply the penalty's operator after a gradient step; with `before`, take a half-space step.

    Args:
        x: the parameter after the gradient step; changed in place.
        penalty: the parameter's penalty.
        second: settings of the second stage, or None.
        before: the parameter before the gradient step in the second stage, else None.
        step: step size of the proximal operator.
        metric: replaces the step; in the shape of `x`.
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
    """The number of groups of a tensor under a penalty's grouping."""
    return resolve(penalty.groups, x.shape).count


def zero_groups(penalty: Penalty, x: Tensor) -> Tensor:
    """Whether each group is all zeros, bool [groups]."""
    alive = (x != 0).double().reshape(-1)
    return sums(alive, resolve(penalty.groups, x.shape)) == 0
