"""The autograd functions of masked layers: the gradient of the weight passes by the mask."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from gossamer.backend import Structure
from gossamer.ops import autograd


class _Gradients(Protocol):
    """The layer's own rules for its two gradients."""

    def input_gradient(self, g: Tensor, values: Tensor, structure: Structure) -> Tensor: ...

    def weight_gradient(self, g: Tensor, x: Tensor, structure: Structure) -> Tensor: ...


class Masked(Function):
    """The products on the kept entries; the gradients are the layer's."""

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
        # The indices too: autograd refuses if they are overwritten before the backward.
        ctx.save_for_backward(
            x if needs[1] else None, values if needs[0] else None, structure.indices
        )
        ctx.structure, ctx.layer = structure, layer
        return autograd.run_spmm(x, values, structure, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by the layer's own rules."""
        x, values, _ = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        structure, layer = ctx.structure, ctx.layer
        flat = autograd.flatten(g)
        return (
            layer.input_gradient(g, values, structure) if need_x else None,
            layer.weight_gradient(flat, autograd.flatten(x), structure) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
            None,
            None,
        )


class SoftlyMasked(Function):
    """Dense products with the softly masked weight; its gradient goes straight to the master."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, used: Tensor) -> Tensor:
        """Y = X W~^T + b, dense."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, used)
        return F.linear(x, used.to(x.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """DX by the weight that was used, dW for the whole weight."""
        x, used = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        flat = autograd.flatten(g)
        return (
            g @ used.to(g.dtype) if need_x else None,
            flat.t() @ autograd.flatten(x) if need_weight else None,
            flat.sum(0) if need_bias else None,
            None,
        )


__all__ = ["Masked", "SoftlyMasked"]
