"""The autograd functions of masked layers: the gradient of the weight ignores the mask."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.backend import Structure
from gossamer.nn.layers.products import RowProduct

Parameters = tuple[Tensor, ...]
Wanted = tuple[bool, bool, bool]
"""Whether the gradients of the input, of the layer's weights, and of the bias are needed."""


class Rule(Protocol):
    """What `Masked` asks of a layer: its product, and its gradients."""

    product: RowProduct

    def gradients(
        self,
        grad_output: Tensor,
        x: Tensor,
        parameters: Parameters,
        values: Tensor,
        structure: Structure,
        wanted: Wanted,
        size: torch.Size,
    ) -> tuple[Tensor | None, tuple[Tensor | None, ...], Tensor | None]:
        """Return the gradients of the input, of the parameters, and of the bias, where wanted."""


class Masked(Function):
    """Products on the kept entries, with gradients by the layer's own rules."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        values: Tensor,
        structure: Structure,
        layer: Rule,
        *parameters: Tensor,
    ) -> Tensor:
        """Y = X W~^T + b on the sparse kernels."""
        need_x, *_ = needs = ctx.needs_input_grad
        # Indices are saved too: autograd then detects that they were overwritten.
        # A weight alone decides nothing of its gradient, and may change before.
        ctx.save_for_backward(
            x if any(needs[5:]) else None, values if need_x else None, structure.indices,
            *(parameters if len(parameters) > 1 else ()),
        )  # fmt: skip
        ctx.structure, ctx.layer, ctx.size = structure, layer, x.shape
        return layer.product.multiply(x, values, structure, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by the layer's own rules."""
        x, values, _, *parameters = ctx.saved_tensors
        need_x, need_bias, _, _, _, *need_parameters = ctx.needs_input_grad
        wanted = need_x, any(need_parameters), need_bias
        grad_x, of_parameters, grad_bias = ctx.layer.gradients(
            grad_output, x, tuple(parameters), values, ctx.structure, wanted, ctx.size
        )
        return grad_x, grad_bias, None, None, None, *of_parameters


class SoftlyMasked(Function):
    """Dense products with the softly masked weight; its gradient is that of the whole weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        used: Tensor,
        product: RowProduct,
    ) -> Tensor:
        """Y = X W~^T + b, dense."""
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, used)
        ctx.product, ctx.size = product, x.shape
        return product.multiply_dense(x, used.to(x.dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Return dX by the used weight, and dW for the whole weight."""
        x, used = ctx.saved_tensors
        grads = dense_gradients(
            ctx.product, grad_output, x, used, ctx.needs_input_grad[:3], ctx.size
        )
        return *grads, None, None


def dense_gradients(
    product: RowProduct,
    grad_output: Tensor,
    x: Tensor | None,
    used: Tensor,
    wanted: Wanted,
    size: torch.Size,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dX of a size, dW and db, or None where one is not wanted."""
    need_x, need_weight, need_bias = wanted
    flat = product.flat(grad_output)
    matrix = used.to(grad_output.dtype)
    return (
        product.dense_input_gradient(grad_output, matrix, size) if need_x else None,
        product.gradient(flat, product.flat(x)) if need_weight and x is not None else None,
        product.bias_gradient(flat) if need_bias else None,
    )


__all__ = ["Masked", "Parameters", "Rule", "SoftlyMasked", "Wanted", "dense_gradients"]
