"""Penalties on the order of entries or magnitudes, and on singular values.

`SLOPE` sorts the magnitudes, `TotalVariation` acts on neighbours, `NuclearNorm` on the singular
values of a matrix. Their operators are exact. A derivative of the first two is an average over each
piece that the operator makes equal.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import PenaltyError, ShapeError
from gossamer.prox.groupings import Groups, spread
from gossamer.prox.operators.chains import (
    from_groups,
    in_groups,
    isotonic_,
    pieces,
    total_variation_,
)
from gossamer.prox.operators.elementwise import in_place
from gossamer.prox.penalties.base import Penalty, Radial
from gossamer.prox.penalties.fields import NOT_NEGATIVE, Number, Range, number, per_rank
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.reductions import check_finite, magnitudes, single_entries, sums

__all__ = ["SLOPE", "NuclearNorm", "TotalVariation"]

# Relative distance of magnitudes, or of singular values to 0, that count as equal.
_TIE = 1e-6


@penalty
class SLOPE(Radial):
    """The sorted l1 norm lam sum_i a_i |x|_(i), with |x|_(1) >= |x|_(2) >= ... and a falling.

    The largest magnitude has the largest weight, and magnitudes that are close become equal. With
    groups, the magnitudes are norms (group SLOPE). In a metric the operator uses the metric's mean.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        q: the rate of false discoveries, in (0, 1), of the Benjamini-Hochberg sequence
            a_i = Phi^-1(1 - q i / (2 m)) for m magnitudes.
        sequence: a_1 >= a_2 >= ... >= 0, at least as many as magnitudes, instead of `q`.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`; the sequence rises.

    Reference:
        Bogdan, van den Berg, Sabatti, Su and Candès 2015, "SLOPE: adaptive variable selection via
        convex optimization", equation 1.7 and algorithm 4; Brzyski et al. 2019, "Group SLOPE".

    Example:
        >>> import torch
        >>> SLOPE(1.0, sequence=[2.0, 1.0, 0.5]).prox_(torch.tensor([3.0, -2.5, 0.25]))
        tensor([ 1.2500, -1.2500,  0.0000])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    q: float = number(Range(lambda v: 0 < v < 1, "in (0, 1)"), default=0.1)
    sequence: Any = per_rank(default=None)

    def _ranks(self, count: int) -> Tensor:
        """a_i for `count` magnitudes."""
        if self.sequence is None:
            share = torch.arange(1, count + 1, dtype=torch.float64) * (self.q / (2 * count))
            ranks: Tensor = torch.special.ndtri(1.0 - share)
            return ranks.clamp(min=0.0)
        found: Tensor = self.sequence
        if len(found) < count:
            raise ShapeError(
                f"sequence has {len(found)} numbers for {count} magnitudes; give one per magnitude"
            )
        return found[:count]

    def _sorted(self, sizes: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """The order of falling magnitudes, and the pooled differences to the sequence in it."""
        top, order = sizes.sort(descending=True, stable=True)
        left = top - (self._lam * step) * self._ranks(len(sizes))
        return order, isotonic_(left, Groups(1, 1, len(left)), falling=True)

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        if not single_entries(groups):
            super()._prox_(x, step, metric)
            return
        check_finite(torch.as_tensor(x).detach())
        h = None if metric is None else torch.as_tensor(metric).double()

        def operate(entries: Any) -> None:
            shared = torch.as_tensor(entries)
            shrunk = self._shrunk(shared.double().abs(), step, h)
            shared.copy_(torch.where(shrunk == 0, 0.0, shrunk.copysign(shared)))

        in_place(x, operate)

    def _shrunk(self, sizes: Tensor, step: float, metric: Tensor | None) -> Tensor:
        order, pooled = self._sorted(sizes, step if metric is None else step / float(metric.mean()))
        return torch.empty_like(sizes).index_copy_(0, order, pooled.clamp(min=0.0))

    def _tangent(self, sizes: Tensor, shrunk: Tensor, step: float, v: Tensor) -> Tensor:
        order, pooled = self._sorted(sizes, step)
        averaged = torch.where(pooled > 0, _averages(v[order], pooled), 0.0)
        return torch.empty_like(v).index_copy_(0, order, averaged)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        sizes = magnitudes(x, groups).sort(descending=True).values
        return self._lam * (self._ranks(len(sizes)) * sizes).sum()

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        # Along each magnitude -grad must lie in the permutahedron of the ranks that its ties share;
        # at 0 in the dual ball. Both distances are those of a pooled difference.
        sizes = magnitudes(x, groups)
        kept = sizes > 0
        unit = x * spread(torch.where(kept, 1.0 / sizes, 0.0), groups)
        along = -sums(grad * unit, groups)
        across = torch.where(spread(kept, groups), grad + spread(along, groups) * unit, 0.0)
        pull = torch.where(kept, along, magnitudes(grad, groups))
        order = pull.argsort(descending=True)
        order = order[sizes[order].argsort(descending=True, stable=True)]
        top = sizes[order]
        left = pull[order] - self._lam * self._ranks(len(top))
        ties = pieces(-top.diff(prepend=top[:1]) > _TIE * top.roll(1))
        isotonic_(left, ties, falling=True)
        left = torch.where(top > 0, left, left.clamp(min=0.0))
        return (across**2).sum() + (left**2).sum()


@penalty
class TotalVariation(Penalty):
    """The total variation lam sum_i |x_{i+1} - x_i| along each group: pieces become constant.

    Neighbours are consecutive entries of a group: in memory's order, or in that of its indices. By
    default the tensor is one row; groups="neuron" takes each row, "input" each column. The operator
    is exact in any metric.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Rudin, Osher and Fatemi 1992, "Nonlinear total variation based noise removal algorithms";
        Johnson 2013, "A dynamic programming algorithm for the fused lasso and L0-segmentation".

    Example:
        >>> import torch
        >>> TotalVariation(1.0).prox_(torch.tensor([0.0, 1.0, 5.0, 5.0]))
        tensor([1.0000, 1.0000, 4.5000, 4.5000])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    groups: Any = field(default="layer", kw_only=True)

    def on(self, weight: Any) -> Any:
        """Raise PenaltyError: kept entries of a sparse weight are not neighbours."""
        raise PenaltyError(
            "TotalVariation got a sparse weight, whose entries are not neighbours; use it on a "
            "dense tensor"
        )

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        check_finite(torch.as_tensor(x))
        total_variation_(x, self._groups(x), self._lam * step, metric=metric)

    def _steps(self, x: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """The entries group after group, and x_i - x_{i-1} before each; 0 where a group begins."""
        rows = in_groups(x, groups)
        steps = rows.diff(prepend=rows[:1])
        steps[_starts(groups)] = 0.0
        return rows, steps

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        return self._lam * self._steps(x, groups)[1].abs().sum()

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        # Between pieces the slope is +-lam. Within one, -grad is balanced up to the operator of
        # what is left, by duality.
        _, steps = self._steps(x, groups)
        push = self._lam * steps.sign()
        left = -in_groups(grad, groups) - push
        left[:-1] += push[1:]
        return (total_variation_(left, self._constant(steps, groups), self._lam) ** 2).sum()

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        constant = self._constant(self._steps(z, groups)[1], groups)
        rows = in_groups(grad, groups)
        averaged = spread(sums(rows, constant) / _lengths(constant), constant)
        return from_groups(averaged, groups)

    def _constant(self, steps: Tensor, groups: Groups) -> Groups:
        """The pieces without a step."""
        new = steps != 0
        new[_starts(groups)] = True
        return pieces(new)


@penalty
class NuclearNorm(Penalty):
    """The nuclear norm lam sum_i sigma_i of the matrix [O, everything else]: few singular values.

    The operator soft-thresholds the singular values. In a metric it uses the metric's mean.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        groups: only "neuron": the rows of the matrix.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Cai, Candès and Shen 2010, "A singular value thresholding algorithm for matrix completion",
        theorem 2.1; Lewis and Sendov 2001 for the derivative of a spectral function.

    Example:
        >>> import torch
        >>> NuclearNorm(1.0).prox_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        tensor([[2., 0.],
                [0., 0.]])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    groups: Any = field(default="neuron", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups != "neuron":
            raise PenaltyError(
                f"NuclearNorm got groups={self.groups!r:.80}; it takes the tensor as a matrix of "
                "rows: use groups='neuron'"
            )

    def _prox_(self, x: Any, step: float, metric: Any) -> None:
        groups = self._groups(x)
        check_finite(torch.as_tensor(x).detach())
        scale = 1.0 if metric is None else float(metric.mean())

        def operate(entries: Any) -> None:
            shared = torch.as_tensor(entries)
            u, s, v = _svd(shared.view(groups.count, -1))
            shrunk = (s - self._lam * step / scale).clamp(min=0.0)
            rank = int((shrunk > 0).sum())
            shared.copy_(((u[:, :rank] * shrunk[:rank]) @ v[:rank]).view(-1)).add_(0.0)

        in_place(x, operate)

    def _value(self, x: Tensor, groups: Groups) -> Tensor:
        check_finite(x)
        values: Tensor = torch.linalg.svdvals(x.view(groups.count, -1))
        return self._lam * values.sum()

    def _distance(self, x: Tensor, grad: Tensor, groups: Groups) -> Tensor:
        check_finite(x)
        u, s, v = _svd(x.view(groups.count, -1))
        rank = int((s > _TIE * s[:1]).sum())
        u, v = u[:, :rank], v[:rank]
        left = -grad.view(groups.count, -1) - self._lam * (u @ v)
        free = left - u @ (u.T @ left)
        free = free - (free @ v.T) @ v
        values: Tensor = torch.linalg.svdvals(free)
        over = (values - self._lam).clamp(min=0.0)
        return ((left - free) ** 2).sum() + (over**2).sum()

    def _pullback(self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups) -> Tensor:
        u, s, v = _svd(x.view(groups.count, -1))
        g, lam = grad.view(groups.count, -1), self._lam * step
        f = (s - lam).clamp(min=0.0)
        inner = u.T @ g @ v.T
        gap, total = s[:, None] - s, s[:, None] + s
        slope = (s > lam).double().expand_as(gap)
        minus = torch.where(gap.abs() > _TIE * total, (f[:, None] - f) / gap, slope)
        gain = torch.where(s > 0, f / s, 0.0)
        plus = torch.where(total > 0, (f[:, None] + f) / total, 0.0)
        middle = minus * (inner + inner.T) / 2.0 + plus * (inner - inner.T) / 2.0
        # Across: the parts of grad outside of both spaces' products shrink by the gain.
        left = (g @ v.T - u @ inner) * gain
        right = gain[:, None] * (u.T @ g - inner @ v)
        return (u @ middle @ v + left @ v + u @ right).reshape(-1)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, v


def _averages(v: Tensor, pooled: Tensor) -> Tensor:
    """Average v over runs of equal numbers in `pooled`."""
    runs = pieces(pooled.diff(prepend=pooled[:1]) != 0)
    return spread(sums(v, runs) / _lengths(runs), runs)


def _lengths(groups: Groups) -> Tensor:
    starts: Any = groups.indptr  # of irregular groups
    lengths: Tensor = starts.diff()
    return lengths


def _starts(groups: Groups) -> Tensor:
    """Where each group begins among the entries of `in_groups`."""
    if groups.indptr is not None:
        return groups.indptr[:-1][_lengths(groups) > 0]
    return torch.arange(groups.count) * (groups.outer * groups.inner)
