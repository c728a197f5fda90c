"""Weights of a penalty's groups, and the constraint x >= 0: one mechanism for every class.

A weight multiplies the penalty of its group, and so the step of its operator. The operator with the
constraint is the operator of max(x, 0), for penalties whose value never falls with a magnitude.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gossamer.prox.checks import flat64, spread_weights
from gossamer.prox.groupings import resolve
from gossamer.prox.penalties.base import Penalty
from gossamer.prox.penalties.fields import FLAG, WEIGHTS
from gossamer.prox.reductions import check_count, single_entries


@dataclass(frozen=True, eq=False)
class Weighted(Penalty):
    """A penalty sum_j w_j g_j(x_j) over groups, with x >= 0 if `positive`.

    Args:
        weights: w >= 0: one per group, a number for all, or, if each entry is a group, of a shape
            that broadcasts to x's. None is 1.
        positive: True adds the constraint x >= 0.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.
    """

    weights: Any = field(default=None, kw_only=True, metadata=WEIGHTS)
    positive: bool = field(default=False, kw_only=True, metadata=FLAG)

    def _fitted(self, shape: tuple[int, ...]) -> Self:
        if self.weights is None:
            return self
        groups, w = resolve(self.groups, shape), self.weights
        if single_entries(groups):
            w = spread_weights(w, shape)
        else:
            w = check_count(
                w.reshape(-1).expand(groups.count if w.numel() == 1 else w.numel()),
                groups.count,
                "weights",
            )
        fitted = copy.copy(self)
        object.__setattr__(fitted, "weights", w)
        return fitted

    def _weighted(self, per_group: Tensor) -> Tensor:
        """The weights of a fitted penalty times numbers per group; 0 * inf is 0."""
        if self.weights is None:
            return per_group
        return torch.where(self.weights == 0, 0.0, self.weights * per_group)

    def _heaviest(self, number: float) -> float:
        """A number >= 0 times the largest weight."""
        most = (
            1.0 if self.weights is None or not self.weights.numel() else float(self.weights.max())
        )
        return number * most if most > 0 else 0.0

    def _lightest(self, number: float) -> float:
        """A number >= 0 times the smallest weight."""
        return number if self.weights is None else number * float(self.weights.min())

    def _steps(self, like: Any, step: float, metric: Any) -> Any:
        """The step of the operator: a number, or one per entry in the library of `like`."""
        if self.weights is None:
            return step if metric is None else inverse(step, metric)
        # In float64: a large weight and a small step must not overflow or underflow.
        wide = step * self.weights
        if metric is not None:
            wide = wide / flat64(metric)
        wide = wide.clamp(max=largest_of(like)).view(tuple(like.shape))
        return wide.to(like.dtype) if isinstance(like, Tensor) else wide.numpy().astype(like.dtype)


def largest_of(x: Any) -> float:
    """The largest finite number of x's dtype."""
    return float(np.finfo(str(x.dtype).removeprefix("torch.")).max)


def inverse(step: float, metric: Any) -> Any:
    """The steps of a metric; an overflow becomes the largest finite number, whose 0-fold is 0."""
    largest = largest_of(metric)
    if isinstance(metric, Tensor):
        # Not step / metric, which torch computes as step * (1 / metric): 0 * inf is NaN.
        return torch.tensor(min(step, largest), dtype=metric.dtype).div(metric).clamp(max=largest)
    with np.errstate(over="ignore"):
        return np.minimum(min(step, largest) / metric, metric.dtype.type(largest))
