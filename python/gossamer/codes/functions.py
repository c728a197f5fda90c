"""Differentiable sparse codes: selection, encoding, decoding and prefix errors.

The gradients of an encoder and of a dictionary visit only the k active latents of each row. Only
first derivatives exist; a second derivative raises an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from gossamer.codes import core
from gossamer.codes.core import Code
from gossamer.errors import DTypeError, ShapeError

_Grads = tuple[Tensor | None, ...]


class _TopK(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = core.top_k(x, k)
        ctx.save_for_backward(indices)
        ctx.mark_non_differentiable(indices)
        ctx.shape = x.shape
        return values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> _Grads:
        (indices,) = ctx.saved_tensors
        return grad_output.new_zeros(ctx.shape).scatter_(1, indices, grad_output), None


class _Selected(Function):
    """values[b, j] = <x[b], weight[indices[b, j]]> + bias[indices[b, j]], computed earlier."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        # A copy: autograd forbids in-place operations on a view that a node returns.
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> _Grads:
        x, weight, indices = ctx.saved_tensors
        code = Code(grad_output, indices)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_bias = None
        if need_bias:
            flat = indices.reshape(-1).long()
            grad_bias = grad_output.new_zeros(len(weight)).index_add_(
                0, flat, grad_output.reshape(-1)
            )
        return (
            core.decode(code, weight) if need_x else None,
            core.scatter(code, x, len(weight)) if need_weight else None,
            grad_bias,
            None,
            None,
        )


class _Decode(Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, dictionary: Tensor, bias: Tensor | None, indices: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, dictionary, indices)
        return core.decode(Code(values, indices), dictionary, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> _Grads:
        values, dictionary, indices = ctx.saved_tensors
        need_values, need_dictionary, need_bias = ctx.needs_input_grad[:3]
        code = Code(values, indices)
        return (
            core.dots(indices, dictionary, grad_output) if need_values else None,
            core.scatter(code, grad_output, len(dictionary)) if need_dictionary else None,
            grad_output.sum(0) if need_bias else None,
            None,
        )


class _PrefixErrors(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        dictionary: Tensor,
        bias: Tensor | None,
        indices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        errors, residual = core.prefix_errors(x, Code(values, indices), dictionary, bias)
        ctx.save_for_backward(values, dictionary, indices, residual)
        ctx.mark_non_differentiable(residual)
        return errors, residual

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> _Grads:
        values, dictionary, indices, residual = ctx.saved_tensors
        grad_values, grad_dictionary, rows = core.prefix_gradients(
            grad_output, residual, Code(values, indices), dictionary
        )
        return (
            -rows if ctx.needs_input_grad[0] else None,
            grad_values,
            grad_dictionary,
            rows.sum(0) if ctx.needs_input_grad[3] else None,
            None,
        )


def top_k(x: Tensor, k: int) -> Code:
    """Return the k largest entries of each row, differentiable in the selected entries.

    Args:
        x: float32 or float64 [batch, entries].
        k: number of entries per row, in [1, entries].

    Returns:
        Values and int64 indices in descending order; equal values by ascending index.

    Raises:
        ShapeError: x is empty or not a matrix.
        ArgumentError: k is outside [1, entries], or x holds a NaN.
        DTypeError: x is not float32 or float64.

    Example:
        >>> x = torch.tensor([[1.0, 5.0, 3.0]], requires_grad=True)
        >>> top_k(x, 2).values.sum().backward()
        >>> x.grad
        tensor([[0., 1., 1.]])
    """
    return Code(*_TopK.apply(x, k))  # type: ignore[no-untyped-call]


def selected(x: Tensor, weight: Tensor, bias: Tensor, code: Code) -> Code:
    """Make selected entries of x @ weight.T + bias differentiable.

    Args:
        x: [batch, d].
        weight: [latents, d].
        bias: [latents].
        code: selected entries of that product, computed without gradients.

    Returns:
        The same code, with values that are differentiable in x, weight and bias. The backward pass
        costs O(k d) per row.

    Raises:
        ShapeError: the sizes do not fit.
        StructureError: an index is outside the latents.
        DTypeError: x, weight and bias are not dense tensors of one dtype.
    """
    _check_encoder(x, weight, bias, "selected")
    core.check_code(code, len(weight))
    if len(code.indices) != len(x):
        raise ShapeError(
            f"selected got a code of {len(code.indices)} rows for {len(x)} rows of x; as many are "
            "needed"
        )
    values = _Selected.apply(x, weight, bias, code.values.detach(), code.indices)  # type: ignore[no-untyped-call]
    return Code(values, code.indices)


def encode(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Code:
    """Return the k largest entries per row of x @ weight.T + bias; the backward pass is sparse.

    Args:
        x: float32 or float64 [batch, d].
        weight: [latents, d].
        bias: [latents].
        k: number of entries per row, in [1, latents].

    Returns:
        Values and indices in descending order, differentiable in x, weight and bias.

    Raises:
        ShapeError: the sizes do not fit.
        ArgumentError: k is outside [1, latents], or the product holds a NaN.
        DTypeError: x, weight and bias are not dense tensors of one dtype.

    Example:
        >>> encode(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2), 1).values
        tensor([[3.],
                [2.]])
    """
    _check_encoder(x, weight, bias, "encode")
    with torch.no_grad():
        code = core.top_k(torch.addmm(bias, x, weight.T), k)
    return selected(x, weight, bias, code)


def decode(code: Code, dictionary: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return sum_j values[b, j] dictionary[indices[b, j]] + bias, differentiable but in indices.

    Args:
        code: [batch, k].
        dictionary: float32 or float64 [latents, d], one row per latent.
        bias: [d], or None.

    Returns:
        [batch, d].

    Raises:
        StructureError: an index is outside the dictionary.
        ShapeError: the sizes do not fit.
        DTypeError: the dtypes differ, or are not supported.

    Example:
        >>> decode(Code(torch.tensor([[2.0]]), torch.tensor([[1]])), torch.eye(3))
        tensor([[0., 2., 0.]])
    """
    core.check_code(code)
    return _Decode.apply(code.values, dictionary, bias, code.indices)  # type: ignore[no-any-return, no-untyped-call]


def prefix_errors(
    x: Tensor, code: Code, dictionary: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the squared errors of the reconstructions from the first 1, 2, ..., k latents.

    Args:
        x: [batch, d].
        code: [batch, k].
        dictionary: [latents, d].
        bias: [d], or None.

    Returns:
        Differentiable errors [batch, k], and the detached residual [batch, d] of the whole code.

    Reference:
        Balagansky et al. 2025, "Train One Sparse Autoencoder Across Multiple Sparsity
        Budgets" (HierarchicalTopK).

    Example:
        >>> code = Code(torch.tensor([[3.0, 2.0]]), torch.tensor([[0, 1]]))
        >>> prefix_errors(torch.tensor([[3.0, 2.0]]), code, torch.eye(2))[0]
        tensor([[4., 0.]])
    """
    core.check_code(code)
    return _PrefixErrors.apply(x, code.values, dictionary, bias, code.indices)  # type: ignore[no-any-return, no-untyped-call]


def _check_encoder(x: Tensor, weight: Tensor, bias: Tensor, name: str) -> None:
    for given, who in ((x, "x"), (weight, "weight"), (bias, "bias")):
        if (
            not isinstance(given, Tensor)
            or given.dtype != getattr(x, "dtype", None)
            or (given.layout is not torch.strided)
        ):
            raise DTypeError(
                f"{name} got {who} that is not a dense tensor of x's dtype; x, weight and bias "
                "must be dense and have one dtype: convert them with .to()"
            )
    if (
        x.dim() != 2
        or weight.dim() != 2
        or bias.shape != weight.shape[:1]
        or (x.shape[1] != weight.shape[1])
    ):
        raise ShapeError(
            f"{name} got x {list(x.shape)}, weight {list(weight.shape)}, bias {list(bias.shape)}; "
            "[batch, d], [latents, d] and [latents] are needed"
        )
