"""Convolutions as autograd functions, for eager calls on plain tensors.

    convolve         Y = conv(X, W) + b   dX = convolve_input(dY)  dvalues = convolve_weight(dY, X)
    convolve_input   G' = conv^T(G, W)    dG = convolve(dG')       dvalues = convolve_weight(G, dG')
    convolve_weight  u = dW at the kept   dG = convolve_u(X)       dX = convolve_input_u(G)

The gradients of each are the other two, as those of the verbs (`gossamer.ops.autograd`) are. Calls
that somebody traces, records or transforms take the registered operators instead
(`gossamer.ops.convolutions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.backend import Structure, Transposed
from gossamer.backend import convolutions as kernels
from gossamer.backend.convolutions import Window
from gossamer.ops.autograd import parts_of
from gossamer.ops.recording import recorded


def convolve(
    x: Tensor,
    values: Tensor,
    structure: Structure,
    window: Window,
    bias: Tensor | None = None,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map images [images, channels, *size] to [images, out, *output size]."""
    if recorded(x):
        parts = parts_of(structure, transposed)
        y: Tensor = torch.ops.gossamer.convolve(x, values, *parts, window.as_ints(), bias)
        return y
    wanted = values.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and wanted:
        return _Convolve.apply(x, values, structure, window, bias, transposed)  # type: ignore[no-any-return, no-untyped-call]
    return _run(x, values, structure, window, bias)


def convolve_input(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    window: Window,
    size: Sequence[int],
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output [images, out, *output size] to the gradient of the images."""
    if recorded(grad_output):
        parts = parts_of(structure, transposed)
        y: Tensor = torch.ops.gossamer.convolve_input(
            grad_output, values, *parts, window.as_ints(), size
        )
        return y
    if torch.is_grad_enabled() and (values.requires_grad or grad_output.requires_grad):
        return _Input.apply(grad_output, values, structure, window, size, transposed)  # type: ignore[no-any-return, no-untyped-call]
    values = values.contiguous()
    return kernels.convolve_input(grad_output, values, structure, window, size, transposed)


def convolve_weight(
    grad_output: Tensor,
    x: Tensor,
    structure: Structure,
    window: Window,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output and images to the gradient of the values [nnz]."""
    if recorded(grad_output):
        parts = parts_of(structure, transposed)
        y: Tensor = torch.ops.gossamer.convolve_weight(grad_output, x, *parts, window.as_ints())
        return y
    if torch.is_grad_enabled() and (grad_output.requires_grad or x.requires_grad):
        return _Weight.apply(grad_output, x, structure, window, transposed)  # type: ignore[no-any-return, no-untyped-call]
    return kernels.convolve_weight(grad_output, x, structure, window)


def _run(
    x: Tensor, values: Tensor, structure: Structure, window: Window, bias: Tensor | None
) -> Tensor:
    b = None if bias is None else bias.contiguous()
    return kernels.convolve(x, values.contiguous(), structure, window, b)


class _Convolve(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        structure: Structure,
        window: Window,
        bias: Tensor | None,
        transposed: Transposed | None,
    ) -> Tensor:
        _save(ctx, x, values, structure, window, transposed)
        ctx.size = tuple(x.shape[2:])
        return _run(x, values, structure, window, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, _ = ctx.saved_tensors
        need_x, need_values, _, _, need_bias, _ = ctx.needs_input_grad
        how = ctx.structure, ctx.window
        return (
            convolve_input(g, values, *how, ctx.size, ctx.transposed) if need_x else None,
            convolve_weight(g, x, *how, ctx.transposed) if need_values else None,
            None,
            None,
            g.sum([0, *range(2, g.dim())]) if need_bias else None,
            None,
        )


class _Input(Function):
    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        values: Tensor,
        structure: Structure,
        window: Window,
        size: Sequence[int],
        transposed: Transposed | None,
    ) -> Tensor:
        _save(ctx, g, values, structure, window, transposed)
        return kernels.convolve_input(g, values.contiguous(), structure, window, size, transposed)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, values, _ = ctx.saved_tensors
        need_g, need_values = ctx.needs_input_grad[:2]
        how = ctx.structure, ctx.window
        return (
            convolve(u, values, *how, None, ctx.transposed) if need_g else None,
            convolve_weight(g, u, *how, ctx.transposed) if need_values else None,
            *_NONE,
            None,
        )


class _Weight(Function):
    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        structure: Structure,
        window: Window,
        transposed: Transposed | None,
    ) -> Tensor:
        _save(ctx, g, x, structure, window, transposed)
        ctx.size = tuple(x.shape[2:])
        return kernels.convolve_weight(g, x, structure, window)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x, _ = ctx.saved_tensors
        need_g, need_x = ctx.needs_input_grad[:2]
        how = ctx.structure, ctx.window
        return (
            convolve(x, u, *how, None, ctx.transposed) if need_g else None,
            convolve_input(g, u, *how, ctx.size, ctx.transposed) if need_x else None,
            *_NONE,
        )


_NONE = (None, None, None)


def _save(
    ctx: Any,
    a: Tensor,
    b: Tensor,
    structure: Structure,
    window: Window,
    transposed: Transposed | None,
) -> None:
    """Keep what the gradients of `a` and `b` need (each the other), and the indices' version."""
    need_a, need_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(a if need_b else None, b if need_a else None, structure.indices)
    ctx.structure, ctx.window, ctx.transposed = structure, window, transposed


__all__ = ["convolve", "convolve_input", "convolve_weight"]
