"""The autograd functions of masked layers: the gradient of the weight ignores the mask."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.backend import Structure
from gossamer.ops import autograd


class _Gradients(Protocol):
    """A layer's own rules for its two gradients."""

    def input_gradient(
        self, grad_output: Tensor, values: Tensor, structure: Structure
    ) -> Tensor: ...

    def weight_gradient(self, grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor: ...


class Masked(Function):
    """Products on the kept entries, with gradients by the layer's own rules."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Tensor,
        structure: Structure,
        layer: _Gradients,
    ) -> Tensor:
        """Y = X W~^T + b on the sparse kernels."""
        needs = ctx.needs_input_grad
        # Indices are saved too: autograd then detects that they were overwritten.
        ctx.save_for_backward(
            x if needs[1] else None, values if needs[0] else None, structure.indices
        )
        ctx.structure, ctx.layer = structure, layer
        return autograd.run_spmm(x, values, structure, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by the layer's own rules."""
        x, values, _ = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        structure, layer = ctx.structure, ctx.layer
        flat = autograd.flatten(grad_output)
        return (
            layer.input_gradient(grad_output, values, structure) if need_x else None,
            layer.weight_gradient(flat, autograd.flatten(x), structure) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
            None,
            None,
        )


class SoftlyMasked(Function):
    """Dense products with the softly masked weight; its gradient is that of the whole weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, used: Tensor) -> Tensor:
        """Y = X W~^T + b, dense."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, used)
        # F.linear may return a view, and autograd forbids in-place operations on one.
        y = x.new_empty((*x.shape[:-1], used.shape[0]))
        flat, weight, out = autograd.flatten(x), used.to(x.dtype).t(), autograd.flatten(y)
        torch.mm(flat, weight, out=out) if bias is None else torch.addmm(
            bias, flat, weight, out=out
        )
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return dX by the used weight, and dW for the whole weight."""
        x, used = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        flat = autograd.flatten(grad_output)
        return (
            grad_output @ used.to(grad_output.dtype) if need_x else None,
            flat.t() @ autograd.flatten(x) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
        )


__all__ = ["Masked", "SoftlyMasked"]
