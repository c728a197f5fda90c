"""What every penalty does: parameters that are checked, schedules, groups, metric, both libraries.

A penalty g has a value and a proximal operator

    prox_{s g}(x) = argmin_z  1/2 ||z - x||^2 + s g(z)          in a metric h > 0:
                    argmin_z  1/2 sum_i h_i (z_i - x_i)^2 + s g(z)

`Radial` composes a penalty on magnitudes with a grouping: the magnitudes are the norms of the
groups, and each group is scaled by what the operator makes of its norm.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import PenaltyError, ShapeError
from gossamer.prox import autograd
from gossamer.prox.checks import check_entries, check_metric, check_plain, flat64
from gossamer.prox.groupings import Groups, check_grouping, on_weight, resolve, spread
from gossamer.prox.operators.groupwise import scale_groups_
from gossamer.prox.penalties.fields import NOT_NEGATIVE, Kind, checked_number, kinds
from gossamer.prox.reductions import means, norms, sums

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True, eq=False)
class Penalty(ABC):
    """A regulariser with a value and a proximal operator.

    Args:
        groups: "element", "neuron" (row), "input" (column), "filter", "channel", "filter_shape",
            "kernel", "block(r, c)", "layer", or a partition of your own: integer labels of the
            entries, or lists of indices.

    Raises:
        PenaltyError: A parameter is out of its range, or the name of the groups is unknown.
        DTypeError: A parameter is not a number.
        StructureError: A partition overlaps or leaves entries out.
    """

    groups: Any = field(default="element", kw_only=True)

    # The name in `gossamer.prox.parse_penalty`, set when the class is registered.
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", check_grouping(self.groups))
        who = type(self).__name__
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            if not (kind.scheduled and callable(value)):
                object.__setattr__(self, name, kind.check(value, who, name))

    def at(self, t: int) -> Self:
        """The penalty at training step `t`: every schedule replaced by its number.

        >>> from gossamer.prox import L1
        >>> from gossamer.schedules import Linear
        >>> L1(Linear(0, 1, begin_step=0, end_step=10)).at(5).lam
        0.5
        """
        now = {name: getattr(self, name)(t) for name in self._schedules()}
        return dataclasses.replace(self, **now) if now else self

    def on(self, weight: Any) -> Self:
        """The penalty on the values of a `gossamer.SparseWeight`, grouped as in its matrix.

        Groups without a kept entry are left out: a share such as k="25%" is one of the others.

        Args:
            weight: the sparse weight; the result holds until its mask moves.

        >>> import torch
        >>> from gossamer.weight import SparseWeight
        >>> from gossamer.prox import L1
        >>> weight = SparseWeight.from_dense(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "0%")
        >>> with torch.no_grad():
        ...     _ = L1(1.0, groups="neuron").on(weight).prox_(weight.values)
        >>> weight.to_dense().detach()
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])
        """
        groups, kept = on_weight(self.groups, weight)
        given = {name: getattr(self, name) for name, kind in self._kinds() if kind.per_group}
        chosen = {name: v[kept] for name, v in given.items() if v is not None and kept is not None}
        return dataclasses.replace(self, groups=groups, **chosen)

    def value(self, x: Tensor | np.ndarray) -> float:
        """g(x), computed in float64."""
        self._resolved()
        check_plain(x)
        return float(self._value(flat64(x), self._groups(x)))

    def prox_(self, x: Array, step: float = 1.0, *, metric: Array | None = None) -> Array:
        """The proximal operator, in place; a global minimiser also where the problem is not convex.

        Args:
            x: float32 or float64, any strides. A parameter that requires a gradient may be given
                as it is: autograd does not record the change, only that there was one.
            step: the number s >= 0 before the penalty.
            metric: the numbers h > 0 before the squares, in `x`'s library, shape and dtype; None is
                all ones.

        Returns:
            `x`. Zeros are exactly +0.0.

        Raises:
            PenaltyError: A negative step, a metric that is not positive, a schedule that `at` has
                not resolved, or NaN in a group of several entries (single entries keep theirs).
            ShapeError: An empty or read-only `x`, or a shape that the groups do not fit.
            DTypeError: `x` is no float32 or float64 tensor or array.
        """
        self._resolved()
        step = checked_number(step, type(self).__name__, "step", NOT_NEGATIVE)
        check_entries(x)
        if metric is not None:
            check_metric(metric, x)
        with torch.no_grad():
            self._prox_(x, step, metric)
        return x

    def prox(self, x: Array, step: float = 1.0) -> Array:
        """The proximal operator as a new tensor, differentiable in `x` by autograd.

        The derivative is the operator's own, 1 / (1 + s g''(z)) where z is not zero and 0 where it
        is; it holds wherever the operator is smooth, so almost everywhere.

        Args:
            x: float32 or float64.
            step: the number s >= 0 before the penalty.

        Raises:
            PenaltyError, ShapeError, DTypeError: As `prox_`.

        >>> import torch
        >>> from gossamer.prox import L1
        >>> x = torch.tensor([3.0, 0.5], requires_grad=True)
        >>> L1(1.0).prox(x).sum().backward()
        >>> x.grad
        tensor([1., 0.])
        """
        if isinstance(x, Tensor):
            check_plain(x)
            return autograd.prox(self, x, step)
        return self.prox_(np.array(x), step)

    def subdiff_distance(self, x: Tensor | np.ndarray, grad: Tensor | np.ndarray) -> float:
        """The Euclidean distance from -grad to the subdifferential of g at x: 0 if stationary.

        Where g is not convex this is the regular (Fréchet) subdifferential: at zero it is all that
        a step away from zero does not undo, so the whole line for lp and l0. A concave kink, which
        has none, counts with the slope on its left.

        Args:
            x: where.
            grad: the gradient of the smooth part, in `x`'s shape.

        Raises:
            ShapeError: The shapes differ.
        """
        self._resolved()
        check_plain(x)
        check_plain(grad, "grad")
        if tuple(x.shape) != tuple(grad.shape):
            raise ShapeError(
                f"grad has shape {tuple(grad.shape)}, x {tuple(x.shape)}; they must be the same"
            )
        squared = self._distance(flat64(x), flat64(grad), self._groups(x))
        return math.sqrt(float(squared))

    def gap(self, step: float = 1.0) -> float:
        """No magnitude of an output of `prox_` lies in (0, gap): the jump at the threshold."""
        return 0.0

    def weak_convexity(self) -> float:
        """The least rho for which g + rho/2 ||x||^2 is convex; inf if there is none.

        A step below 1 / rho makes the operator's problem convex. Beyond it `prox_` still returns a
        global minimiser, by comparing the local ones.
        """
        return 0.0

    def element_op(self) -> tuple[str, tuple[float, ...]] | None:
        """The kind and parameters of the entry-by-entry operator, None if it is not one."""
        return None

    @abstractmethod
    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        """`x` becomes its proximal point."""

    @abstractmethod
    def _value(self, x: Tensor, groups: Groups) -> Tensor | float:
        """G of the float64 entries."""

    @abstractmethod
    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        """The squared distance from -grad to the subdifferential."""

    @abstractmethod
    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        """The (symmetric) Jacobian of the operator at `x`, where it gave `z`, times `grad`."""

    @property
    def _lam(self) -> float:
        """`lam`, which is a number once `at` has resolved it."""
        lam: float = vars(self)["lam"]
        return lam

    def _groups(self, x: Any) -> Groups:
        return resolve(self.groups, tuple(x.shape))

    def _schedules(self) -> list[str]:
        kinds = self._kinds()
        return [name for name, kind in kinds if kind.scheduled and callable(getattr(self, name))]

    def _kinds(self) -> list[tuple[str, Kind]]:
        return list(kinds(type(self)).items())

    def _resolved(self) -> None:
        if waiting := self._schedules():
            raise PenaltyError(
                f"{type(self).__name__} has a schedule for {', '.join(waiting)}; the step is "
                "needed: call penalty.at(step) first, as the optimizers do"
            )


@dataclass(frozen=True, eq=False)
class Radial(Penalty):
    """A penalty on the magnitudes of groups: g(x) = phi(||x_1||, ..., ||x_m||)."""

    @abstractmethod
    def _shrunk(self, magnitudes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        """The proximal point of the magnitudes float64 [count] >= 0; h a group or None."""

    def _gains(self, magnitudes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        """What each group is multiplied by, float64 [count]."""
        shrunk = self._shrunk(magnitudes, step, metric)
        return torch.where(magnitudes > 0, shrunk / magnitudes, 0.0)

    @abstractmethod
    def _tangent(self, magnitudes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        """The Jacobian of `_shrunk` times v, all [count]."""

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        magnitudes = norms(x, groups)
        h = None if metric is None else means(metric, groups)
        scale_groups_(x, self._gains(magnitudes, step, h), groups)

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        # z = gain x: along x the tangent of the magnitudes, across it the gain.
        before, after = norms(x, groups), norms(z, groups)
        inverse = torch.where(before > 0, 1.0 / before, 0.0)
        along = sums(grad * x, groups) * inverse
        gain = after * inverse
        turned = (self._tangent(before, after, step, along) - gain * along) * inverse
        return spread(gain, groups) * grad + spread(turned, groups) * x


def resolved_budget(k: Any, whole: float, *, counts: bool = True) -> float:
    """A number as it is; a share of `whole`, which is at least one group if `whole` counts them."""
    if not isinstance(k, str):
        return float(k)
    share = float(k.removesuffix("%")) / 100.0
    return float(max(1, math.floor(share * whole + 0.5))) if counts and share else share * whole
