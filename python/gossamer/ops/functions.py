"""The verbs as autograd functions, for eager calls on plain CPU tensors.

    spmm     Y = X W^T + b         dX = spmm_t(dY)    dvalues = sddmm(dY, X)   db = sum of dY
    spmm_t   G' = G W              dG = spmm(dG')     dvalues = sddmm(G, dG')
    sddmm    u = (G^T X) at kept   dG = spmm_du(X)    dX = spmm_t_du(G)

Each one's gradients are the other two, so that any order of derivative is built from them. Under
torch.compile the ops of `gossamer.ops.library` are used instead. Leading dimensions are flattened
here, inside the node: one autograd node a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer import kernels
from gossamer.errors import DTypeError
from gossamer.kernels import Structure, Transposed


def spmm(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    structure: Structure,
    transposed: Transposed | None,
) -> Tensor:
    """Map x [..., cols] to [..., rows]; the autograd node is skipped when nothing asks for one."""
    if torch.is_grad_enabled() and (
        values.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    ):
        y: Tensor = _Spmm.apply(x, values, bias, structure, transposed)  # type: ignore[no-untyped-call]
        return y
    return unflatten(kernels.spmm(flatten(x), values, structure, bias), x)


def spmm_t(
    g: Tensor, values: Tensor, structure: Structure, transposed: Transposed | None
) -> Tensor:
    """Map g [..., rows] to [..., cols]."""
    if torch.is_grad_enabled() and (values.requires_grad or g.requires_grad):
        y: Tensor = _SpmmT.apply(g, values, structure, transposed)  # type: ignore[no-untyped-call]
        return y
    return unflatten(kernels.spmm_t(flatten(g), values, structure, transposed), g)


def sddmm(g: Tensor, x: Tensor, structure: Structure, transposed: Transposed | None) -> Tensor:
    """Map g [..., rows] and x [..., cols] to [nnz]."""
    if torch.is_grad_enabled() and (g.requires_grad or x.requires_grad):
        u: Tensor = _Sddmm.apply(g, x, structure, transposed)  # type: ignore[no-untyped-call]
        return u
    grad: Tensor = kernels.sddmm(flatten(g), flatten(x), structure)
    return grad


def flatten(x: Tensor) -> Tensor:
    """[..., n] to [batch, n]; a view where the strides allow one, and right for empty sizes."""
    if x.dim() == 2:
        return x
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def unflatten(y: Tensor, like: Tensor) -> Tensor:
    """[batch, n] to [..., n] with the leading dimensions of `like`."""
    return y if like.dim() == 2 else y.view(*like.shape[:-1], y.shape[1])


def autocast(*tensors: Tensor | None) -> Any:
    """The tensors as the active CPU autocast wants them: float32 becomes bfloat16.

    float64 stays, as in every torch op under autocast.

    Raises:
        DTypeError: autocast is to float16, which has no kernel.
    """
    dtype = torch.get_autocast_dtype("cpu")
    if dtype == torch.float16:
        raise DTypeError(
            "autocast to float16 was asked for; the kernels have bfloat16: use "
            "torch.autocast('cpu', dtype=torch.bfloat16)"
        )
    return [
        t if t is None or t.dtype == torch.float64 or not t.is_floating_point() else t.to(dtype)
        for t in tensors
    ]


# The nodes save a tensor only for a gradient that is asked for, and the indices always: when the
# mask moves between forward and backward, the indices' version has changed and autograd says so.


class _Spmm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        structure: Structure,
        transposed: Transposed | None,
    ) -> Tensor:
        need_x, need_values = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            x if need_values else None, values if need_x else None, structure.indices
        )
        ctx.structure = structure
        ctx.transposed = transposed
        return unflatten(kernels.spmm(flatten(x), values, structure, bias), x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, _ = ctx.saved_tensors
        need_x, need_values, need_bias, _, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        return (
            spmm_t(g, values, structure, transposed) if need_x else None,
            sddmm(g, x, structure, transposed) if need_values else None,
            flatten(g).sum(0) if need_bias else None,
            None,
            None,
        )


class _SpmmT(Function):
    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        values: Tensor,
        structure: Structure,
        transposed: Transposed | None,
    ) -> Tensor:
        need_g, need_values = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            g if need_values else None, values if need_g else None, structure.indices
        )
        ctx.structure = structure
        ctx.transposed = transposed
        return unflatten(kernels.spmm_t(flatten(g), values, structure, transposed), g)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, values, _ = ctx.saved_tensors
        need_g, need_values, _, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        return (
            spmm(u, values, None, structure, transposed) if need_g else None,
            sddmm(g, u, structure, transposed) if need_values else None,
            None,
            None,
        )


class _Sddmm(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, structure: Structure, transposed: Transposed | None
    ) -> Tensor:
        need_g, need_x = ctx.needs_input_grad[:2]
        ctx.save_for_backward(g if need_x else None, x if need_g else None, structure.indices)
        ctx.structure = structure
        ctx.transposed = transposed
        grad: Tensor = kernels.sddmm(flatten(g), flatten(x), structure)
        return grad

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x, _ = ctx.saved_tensors
        need_g, need_x, _, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        return (
            spmm(x, u, None, structure, transposed) if need_g else None,
            spmm_t(g, u, structure, transposed) if need_x else None,
            None,
            None,
        )
