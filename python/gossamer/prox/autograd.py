"""The proximal operator as a differentiable function of its argument.

Each penalty implements the product with its operator's Jacobian. The Jacobian is symmetric where it
exists, because the operator is the gradient of a convex function. The backward pass multiplies by
it in float64.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gossamer.prox.groupings import Groups


class Operator(Protocol):
    """The part of a penalty that autograd uses."""

    def prox_(self, x: Tensor, step: float = 1.0) -> Tensor:
        """Apply the operator in place."""

    @property
    def _positive(self) -> bool: ...

    def _fitted(self, shape: tuple[int, ...]) -> Self: ...

    def _groups(self, x: Tensor) -> Groups: ...

    def _pullback(
        self, x: Tensor, z: Tensor, step: float, grad: Tensor, groups: Groups
    ) -> Tensor: ...


def prox(penalty: Operator, x: Tensor, step: float) -> Tensor:
    """`penalty.prox_` on a copy of `x`, recorded by autograd if `x` requires a gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        z: Tensor = _Prox.apply(x, penalty, step)  # type: ignore[no-untyped-call]
        return z
    return penalty.prox_(x.detach().clone(), step)


class _Prox(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Operator, step: float) -> Tensor:
        z = penalty.prox_(x.detach().clone(), step)
        ctx.save_for_backward(x, z)
        ctx.penalty, ctx.step = penalty, step
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        x, z = ctx.saved_tensors
        flat = [tensor.double().reshape(-1) for tensor in (x, z, grad_output)]
        penalty = ctx.penalty._fitted(tuple(x.shape))
        if penalty._positive:  # the operator of max(x, 0)
            flat[0] = flat[0].clamp(min=0.0)
        pulled = penalty._pullback(flat[0], flat[1], ctx.step, flat[2], penalty._groups(x))
        if penalty._positive:
            pulled = torch.where(flat[0] > 0, pulled, 0.0)
        return pulled.view(x.shape).to(x.dtype), None, None
