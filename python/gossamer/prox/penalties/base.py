"""The base of all penalties: checked parameters, schedules, groups, metrics, torch and NumPy.

A penalty g has a value and a proximal operator

    prox_{s g}(x) = argmin_z  1/2 ||z - x||^2 + s g(z)          in a metric h > 0:
                    argmin_z  1/2 sum_i h_i (z_i - x_i)^2 + s g(z)

`Radial` composes a penalty on magnitudes with a grouping: the operator maps the norm of each group
to a new norm, and the group is scaled to it.
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

from gossamer.arguments import check
from gossamer.errors import PenaltyError, ShapeError
from gossamer.prox import autograd
from gossamer.prox.checks import check_entries, check_metric, check_plain, flat64
from gossamer.prox.groupings import Groups, check_grouping, on_weight, resolve, spread
from gossamer.prox.operators.elementwise import ElementOp
from gossamer.prox.operators.groupwise import scale_groups_
from gossamer.prox.penalties.fields import NOT_NEGATIVE, Kind, checked_number, kinds
from gossamer.prox.reductions import means, norms, sums

Array = TypeVar("Array", Tensor, np.ndarray)


@dataclass(frozen=True, eq=False)
class Penalty(ABC):
    """A regulariser with a value and a proximal operator.

    Args:
        groups: "element", "neuron" (row), "input" (column), "filter", "channel", "filter_shape",
            "kernel", "block(r, c)", "layer", or a custom partition: integer labels of the
            entries, or lists of indices.

    Raises:
        PenaltyError: a parameter is out of its range, or the name of the groups is unknown.
        DTypeError: a parameter is not a number.
        StructureError: a partition overlaps or leaves entries out.
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
        """The penalty at training step `t`, with each schedule replaced by its value.

        Args:
            t: the training step, from 0.

        Returns:
            A penalty without schedules; the same object if there are none.

        Example:
            >>> from gossamer.prox import L1
            >>> from gossamer.schedules import Linear
            >>> L1(Linear(0, 1, begin_step=0, end_step=10)).at(5).lam
            0.5
        """
        now = {name: getattr(self, name)(t) for name in self._schedules()}
        return dataclasses.replace(self, **now) if now else self

    def on(self, weight: Any) -> Self:
        """The penalty on the values of a `gossamer.SparseWeight`, grouped as in its matrix.

        Groups without a kept entry are left out: a share such as k="25%" counts the other groups.

        Args:
            weight: the sparse weight.

        Returns:
            A penalty for `weight.values`, valid until the weight's mask changes.

        Raises:
            ShapeError: the groups do not fit the weight's shape.

        Example:
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
        fitted = self._fitted(tuple(weight.shape))
        given = {name: getattr(fitted, name) for name, kind in self._kinds() if kind.per_group}
        chosen = {name: v[kept] for name, v in given.items() if v is not None and kept is not None}
        return dataclasses.replace(self, groups=groups, **chosen)

    def value(self, x: Tensor | np.ndarray) -> float:
        """Compute g(x) in float64.

        Args:
            x: a dense tensor or array of real numbers, any strides.

        Returns:
            The value; inf outside a constraint's set.

        Raises:
            PenaltyError: a schedule is unresolved, or a group norm is not finite.
            ShapeError: the groups do not fit x's shape.
            DTypeError, DeviceError: `x` is not a dense CPU tensor or array of real numbers.
        """
        self._resolved()
        check_plain(x)
        entries = flat64(x)
        if self._positive and bool((entries < 0).any()):
            return math.inf
        return float(self._fitted(tuple(x.shape))._value(entries, self._groups(x)))

    def prox_(self, x: Array, step: float = 1.0, *, metric: Array | None = None) -> Array:
        """Apply the proximal operator in place; the result is a global minimiser.

        Args:
            x: float32 or float64, any strides. It may require a gradient: autograd does not record
                the operation, and only increments x's version.
            step: the factor s >= 0 of the penalty.
            metric: the factors h > 0 of the squares, in x's library, shape and dtype; None is all
                ones.

        Returns:
            `x`. Zeros are exactly +0.0.

        Raises:
            PenaltyError: the step is negative, the metric is not positive, a schedule is
                unresolved, or a group of several entries has a NaN (single entries keep theirs).
            ShapeError: `x` is empty, or the groups or the metric do not fit its shape.
            ArgumentError: `x` is read-only.
            DTypeError: `x` is not a float32 or float64 tensor or array, or the metric has another
                dtype.
        """
        self._resolved()
        step = checked_number(step, type(self).__name__, "step", NOT_NEGATIVE)
        check_entries(x)
        if metric is not None:
            check_metric(metric, x)
        with torch.no_grad():
            self._fitted(tuple(x.shape))._prox_(x, step, metric)
        return x

    def prox(self, x: Array, step: float = 1.0) -> Array:
        """Apply the proximal operator to a copy, differentiable in `x` by autograd.

        The gradient uses the operator's derivative, which exists almost everywhere; for a single
        entry it is 1 / (1 + s g''(z)) if z is not 0, and 0 if it is.

        Args:
            x: float32 or float64.
            step: the factor s >= 0 of the penalty.

        Returns:
            A new tensor or array in x's shape and dtype.

        Raises:
            PenaltyError, ShapeError, DTypeError: as in `prox_`.

        Example:
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
        """The Euclidean distance from -grad to the subdifferential of g at x; 0 if stationary.

        If g is not convex, the subdifferential is the regular (Fréchet) one; at zero it is the
        whole line for lp and l0. At a concave kink it is empty, and the slope on the left is used.

        Args:
            x: the point.
            grad: the gradient of the smooth part at x, in x's shape.

        Returns:
            The distance; inf outside a constraint's set.

        Raises:
            ShapeError: the shapes differ.
        """
        self._resolved()
        check_plain(x)
        check_plain(grad, "grad")
        if tuple(x.shape) != tuple(grad.shape):
            raise ShapeError(
                f"grad has shape {tuple(grad.shape)} and x {tuple(x.shape)}; they must be the same"
            )
        entries, slopes = flat64(x), flat64(grad)
        if self._positive:  # at 0 the constraint balances any gradient that pushes below
            if bool((entries < 0).any()):
                return math.inf
            slopes = torch.where(entries == 0, slopes.clamp(max=0.0), slopes)
        fitted = self._fitted(tuple(x.shape))
        return math.sqrt(float(fitted._distance(entries, slopes, self._groups(x))))

    def gap(self, step: float = 1.0) -> float:
        """The jump at the threshold: no magnitude of an output of `prox_` lies in (0, gap)."""
        check(Penalty.gap, locals())
        return 0.0

    def weak_convexity(self) -> float:
        """The smallest rho for which g + rho/2 ||x||^2 is convex; inf if there is none.

        With a step below 1 / rho the operator's problem is convex. With a larger step `prox_` still
        returns a global minimiser, by comparing the local ones.
        """
        return 0.0

    def element_op(self) -> ElementOp | None:
        """The compiled operator per entry, or None without one."""
        return None

    @abstractmethod
    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        """Replace `x` by its proximal point."""

    @abstractmethod
    def _value(self, x: Tensor, groups: Groups) -> Tensor | float:
        """The penalty's value at float64 entries."""

    @abstractmethod
    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor | float:
        """The squared distance from -grad to the subdifferential."""

    @abstractmethod
    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        """The operator's symmetric Jacobian at `x`, with output `z`, times `grad`."""

    @property
    def _positive(self) -> bool:
        """Whether the penalty includes the constraint x >= 0."""
        return bool(vars(self).get("positive", False))

    def _fitted(self, shape: tuple[int, ...]) -> Self:
        """The penalty for entries of a shape, with one weight per group."""
        return self

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
        """The proximal point of magnitudes >= 0, float64 [count]; the metric is per group."""

    def _gains(self, magnitudes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        """The factor that each group is multiplied by, float64 [count]."""
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
    """A budget as a number; a share is of `whole`, and is at least 1 if `whole` is a count."""
    if not isinstance(k, str):
        return float(k)
    share = float(k.removesuffix("%")) / 100.0
    return float(max(1, math.floor(share * whole + 0.5))) if counts and share else share * whole
