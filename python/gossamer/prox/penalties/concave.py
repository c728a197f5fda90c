"""Separable concave penalties: large entries are shrunk little or not at all.

All are concave in the magnitude. For a step above 1 / weak_convexity the operator's problem may
have two local minimisers; the operator takes the better one, and zero if both are equal.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.prox.penalties.fields import NOT_NEGATIVE, POSITIVE, Number, Range, number
from gossamer.prox.penalties.registry import penalty
from gossamer.prox.penalties.separable import Separable

__all__ = ["MCP", "SCAD", "CappedL1", "LogSum", "TransformedL1"]


@penalty
class MCP(Separable):
    """The minimax concave penalty: lam |x| - x^2 / (2 gamma) up to gamma lam, then constant.

    For a step s >= gamma the operator is hard thresholding at lam sqrt(s gamma).

    Args:
        lam: the slope at zero, >= 0, or a schedule.
        gamma: the penalty is constant from gamma lam on; > 0. The limit inf is l1.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Zhang 2010, "Nearly unbiased variable selection under minimax concave penalty".

    Example:
        >>> import torch
        >>> MCP(1.0, gamma=3.0).prox_(torch.tensor([0.5, 2.0, 4.0]))
        tensor([0.0000, 1.5000, 4.0000])
    """

    _lam_is_factor: ClassVar[bool] = False
    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    gamma: float = number(POSITIVE)

    def _jump(self, step: float) -> float:
        """The jump lam sqrt(s gamma) for a step s >= gamma, else 0."""
        return self._lam * math.sqrt(step * self.gamma) if step >= self.gamma else 0.0

    def _bend(self) -> float:
        """The constant 1 / gamma."""
        return 1.0 / self.gamma

    def _phi(self, a: Tensor) -> Tensor:
        inner = a.clamp(max=self.gamma * self._lam)
        return self._lam * inner - inner**2 / (2.0 * self.gamma)

    def _slope(self, a: Tensor) -> Tensor:
        return (self._lam - a / self.gamma).clamp(min=0.0)

    def _curvature(self, a: Tensor) -> Tensor:
        return (a < self.gamma * self._lam).double() / -self.gamma


@penalty
class SCAD(Separable):
    """Smoothly clipped absolute deviation: lam |x| up to lam, a parabola, constant from gamma lam.

    Args:
        lam: the slope at zero, >= 0, or a schedule.
        gamma: the penalty is constant from gamma lam on; > 2.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Fan and Li 2001, "Variable selection via nonconcave penalized likelihood".

    Example:
        >>> import torch
        >>> SCAD(1.0, gamma=3.0).prox_(torch.tensor([1.5, 2.5, 4.0]))
        tensor([0.5000, 2.0000, 4.0000])
    """

    _lam_is_factor: ClassVar[bool] = False
    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    gamma: float = number(Range(lambda v: v > 2, "> 2"))

    def _jump(self, step: float) -> float:
        """The jump lam sqrt(s (gamma + 1)) for a step s > gamma + 1, else 0."""
        jump = self._lam * math.sqrt(step * (self.gamma + 1.0))
        return jump if step > self.gamma + 1.0 else 0.0

    def _bend(self) -> float:
        """The constant 1 / (gamma - 1)."""
        return 1.0 / (self.gamma - 1.0)

    def _phi(self, a: Tensor) -> Tensor:
        lam, rate = self._lam, 1.0 / (self.gamma - 1.0)
        inner = a.clamp(max=self.gamma * lam)
        bent = (1.0 + rate) * lam * inner - rate * (inner**2 + lam**2) / 2.0
        return torch.where(a <= lam, lam * a, bent)

    def _slope(self, a: Tensor) -> Tensor:
        rate = 1.0 / (self.gamma - 1.0)
        bent = ((1.0 + rate) * self._lam - rate * a).clamp(min=0.0)
        return torch.where(a <= self._lam, self._lam, bent)

    def _curvature(self, a: Tensor) -> Tensor:
        bent = (a > self._lam) & (a < self.gamma * self._lam)
        return bent.double() / (1.0 - self.gamma)


# --8<-- [start:penalty]
@penalty
class CappedL1(Separable):
    """The capped l1 norm lam sum_j min(|x_j|, t).

    Args:
        lam: the slope at zero, >= 0, or a schedule.
        t: the magnitude from which the penalty is constant, > 0.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Zhang 2010, "Analysis of multi-stage convex relaxation for sparse regularization".

    Example:
        >>> import torch
        >>> CappedL1(1.0, t=2.0).prox_(torch.tensor([0.5, 2.0, 4.0]))
        tensor([0., 1., 4.])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    t: float = number(POSITIVE)

    def _jump(self, step: float) -> float:
        """The jump sqrt(2 s lam t) if s lam > 2 t, else 0."""
        reach = step * self._lam
        return math.sqrt(2.0 * reach * self.t) if reach > 2.0 * self.t else 0.0

    def _bend(self) -> float:
        """Infinite: the penalty has a concave kink at t."""
        return math.inf

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * a.clamp(max=self.t)

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * (a <= self.t).double()

    # --8<-- [end:penalty]


@penalty
class TransformedL1(Separable):
    """The transformed l1 norm lam sum_j (a + 1) |x_j| / (a + |x_j|), between l0 and l1.

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        a: the shape, > 0; the penalty tends to l0 for a to 0, and to l1 for a to infinity.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Zhang and Xin 2018, "Minimization of transformed l1 penalty", theorem 3.1.

    Example:
        >>> import torch
        >>> TransformedL1(1.0, a=1.0).prox_(torch.tensor([1.0, 3.0]))
        tensor([0.0000, 2.8662])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    a: float = number(POSITIVE)

    def _jump(self, step: float) -> float:
        """The jump sqrt(2 s lam (a + 1)) - a if that is positive, else 0."""
        reach = math.sqrt(2.0 * step * self._lam) * math.sqrt(self.a + 1.0)
        return max(0.0, reach - self.a)

    def _bend(self) -> float:
        """The constant 2 lam (a + 1) / a^2."""
        return 2.0 * self._lam * ((self.a + 1.0) / self.a) / self.a

    def _phi(self, a: Tensor) -> Tensor:
        return self._lam * ((self.a + 1.0) * (a / (self.a + a)))

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam * ((self.a + 1.0) / (self.a + a)) * (self.a / (self.a + a))

    def _curvature(self, a: Tensor) -> Tensor:
        return -2.0 * self._slope(a) / (self.a + a)


@penalty
class LogSum(Separable):
    """The log-sum penalty lam sum_j log(1 + |x_j| / eps).

    Args:
        lam: weight of the penalty, >= 0, or a schedule.
        eps: the scale of |x| below which the penalty is nearly l1, > 0.
        groups: see `Penalty`.

    Raises:
        PenaltyError, DTypeError: see `Penalty`.

    Reference:
        Candès, Wakin and Boyd 2008, "Enhancing sparsity by reweighted l1 minimization";
        Prater-Bennette, Shen and Tripp 2022, for the operator.

    Example:
        >>> import torch
        >>> LogSum(1.0, eps=0.5).prox_(torch.tensor([1.0, 3.0]))
        tensor([0.0000, 2.6861])
    """

    lam: Number = number(NOT_NEGATIVE, scheduled=True)
    eps: float = number(POSITIVE)

    def _jump(self, step: float) -> float:
        """The jump at the threshold if lam s > eps^2, else 0.

        It is the root x of s (phi(x) - x phi'(x)) = x^2 / 2, where x and 0 are equally good.
        """
        lam = step * self._lam
        if lam / self.eps <= self.eps:
            return 0.0
        low = math.sqrt(lam) - self.eps  # the difference of both sides rises up to here, then falls
        high = low + math.sqrt(2.0 * lam) + self.eps
        while self._surplus(high, lam) > 0:
            high *= 2.0
        for _ in range(200):
            middle = (low + high) / 2.0
            if middle in (low, high):
                break
            low, high = (middle, high) if self._surplus(middle, lam) > 0 else (low, middle)
        return low

    def _bend(self) -> float:
        """The constant lam / eps^2."""
        return self._lam / self.eps / self.eps

    def _surplus(self, x: float, lam: float) -> float:
        share = x / self.eps
        log = math.log1p(share) if share < math.inf else math.log(x) - math.log(self.eps)
        return lam * (log - x / (self.eps + x)) - x * x / 2.0

    def _phi(self, a: Tensor) -> Tensor:
        share = a / self.eps
        log = torch.where(share.isinf() & a.isfinite(), a.log() - math.log(self.eps), share.log1p())
        return self._lam * log

    def _slope(self, a: Tensor) -> Tensor:
        return self._lam / (self.eps + a)

    def _curvature(self, a: Tensor) -> Tensor:
        return -self._lam / (self.eps + a) / (self.eps + a)
