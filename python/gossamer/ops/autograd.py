"""spmm, spmm_t and sddmm as autograd functions, for eager calls on plain tensors.

    spmm     Y = X W^T + b         dX = spmm_t(dY)    dvalues = sddmm(dY, X)   db = sum of dY
    spmm_t   G' = G W              dG = spmm(dG')     dvalues = sddmm(G, dG')
    sddmm    u = (G^T X) at kept   dG = spmm_du(X)    dX = spmm_t_du(G)

The gradients of each verb are the other two verbs, so derivatives of any order exist. A transpose
that lacks entries (of a double-pruned weight) serves only dX = dY W^{R,C} of spmm. Calls under
torch.compile take the registered ops of `gossamer.ops.library` instead. The leading dimensions are
flattened inside the node, so each call makes one autograd node; its output is made in its last
shape, because autograd forbids in-place operations on a view that a node returns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.backend import Structure, Transposed, products
from gossamer.errors import GossamerError

# Private, but what torch.autograd.Function.apply itself asks on every call.
transforming = torch._C._are_functorch_transforms_active


def spmm(
    x: Tensor,
    values: Tensor,
    structure: Structure,
    bias: Tensor | None = None,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map x [..., cols] to [..., rows]; make an autograd node only if an input needs a gradient."""
    if transforming():
        return _apply(_SpmmTransformed, x, values, structure, bias, transposed)
    if torch.is_grad_enabled() and (
        values.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _apply(_Spmm, x, values, structure, bias, transposed)
    return run_spmm(x, values, structure, bias)


def spmm_t(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output [..., rows] to [..., cols]."""
    if transforming():
        return _apply(_SpmmTTransformed, grad_output, values, structure, transposed)
    if torch.is_grad_enabled() and (values.requires_grad or grad_output.requires_grad):
        return _apply(_SpmmT, grad_output, values, structure, transposed)
    return run_spmm_t(grad_output, values, structure, transposed)


def sddmm(
    grad_output: Tensor,
    x: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output [..., rows] and x [..., cols] to [nnz]."""
    if transforming():
        return _apply(_SddmmTransformed, grad_output, x, structure, transposed)
    if torch.is_grad_enabled() and (grad_output.requires_grad or x.requires_grad):
        return _apply(_Sddmm, grad_output, x, structure, transposed)
    return run_sddmm(grad_output, x, structure)


# The kernels with leading dimensions, without autograd. Matrices are passed with their own strides.
# Vectors must be contiguous: an upstream gradient of sddmm may have stride 0.


def run_spmm(x: Tensor, values: Tensor, structure: Structure, bias: Tensor | None = None) -> Tensor:
    """Y = X W^T + b of x [..., cols]."""
    b = None if bias is None else bias.contiguous()
    y = x.new_empty((*x.shape[:-1], structure.layout.rows))
    products.spmm(flatten(x), values.contiguous(), structure, b, flatten(y))
    return y


def run_spmm_t(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """G W of grad_output [..., rows]."""
    y = grad_output.new_empty((*grad_output.shape[:-1], structure.layout.cols))
    products.spmm_t(flatten(grad_output), values.contiguous(), structure, transposed, flatten(y))
    return y


def run_sddmm(grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
    """G^T X at the kept entries."""
    grad: Tensor = products.sddmm(flatten(grad_output), flatten(x), structure)
    return grad


def is_pruned(transposed: Transposed | None, nnz: int) -> bool:
    """Whether the transpose lacks entries of the weight."""
    return transposed is not None and len(transposed.perm) < nnz


def pruned_values(values: Tensor, perm: Tensor) -> Tensor:
    """The values with zeros where a pruned transpose has no entry; differentiable."""
    kept = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    return torch.where(kept.index_fill(0, perm.long(), True), values, values.new_zeros(()))


def flatten(x: Tensor) -> Tensor:
    """[..., n] to [batch, n]; a view where the strides allow one, and right for empty sizes."""
    if x.dim() == 2:
        return x
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)


def unflatten(y: Tensor, like: Tensor) -> Tensor:
    """[batch, n] to [..., n] with the leading dimensions of `like`."""
    return y if like.dim() == 2 else y.view(*like.shape[:-1], y.shape[1])


def refuse_vmap(name: str) -> GossamerError:
    """The error of a call under vmap."""
    return GossamerError(
        f"gossamer.{name} was called under vmap, for which it has no rule; every leading "
        "dimension is a batch already: call it on the whole tensor, or loop"
    )


def _apply(function: type[Function], *args: Any) -> Tensor:
    y: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return y


# A tensor is saved only if a gradient needs it. The indices are always saved: if the mask changes
# between forward and backward, their version has changed and autograd raises an error.


def _save(
    ctx: Any, a: Tensor, b: Tensor, structure: Structure, transposed: Transposed | None
) -> None:
    """Keep what the gradients of `a` and `b` need: each needs the other."""
    need_a, need_b = ctx.needs_input_grad[:2]
    ctx.save_for_backward(a if need_b else None, b if need_a else None, structure.indices)
    ctx.structure = structure
    ctx.transposed = transposed


class _Spmm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        structure: Structure,
        bias: Tensor | None,
        transposed: Transposed | None,
    ) -> Tensor:
        _save(ctx, x, values, structure, transposed)
        return run_spmm(x, values, structure, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, values, _ = ctx.saved_tensors
        need_x, need_values, _, need_bias, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        exact = transposed
        if is_pruned(transposed, structure.nnz):
            exact = None
            if need_x and torch.is_grad_enabled():
                # dX is differentiated too: use the weight that dX is computed from.
                values, transposed = pruned_values(values, transposed.perm), None
        return (
            spmm_t(g, values, structure, transposed) if need_x else None,
            sddmm(g, x, structure, exact) if need_values else None,
            None,
            flatten(g).sum(0) if need_bias else None,
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
        _save(ctx, g, values, structure, transposed)
        return run_spmm_t(g, values, structure, transposed)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, values, _ = ctx.saved_tensors
        need_g, need_values, _, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        return (
            spmm(u, values, structure, None, transposed) if need_g else None,
            sddmm(g, u, structure, transposed) if need_values else None,
            None,
            None,
        )


class _Sddmm(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, structure: Structure, transposed: Transposed | None
    ) -> Tensor:
        _save(ctx, g, x, structure, transposed)
        return run_sddmm(g, x, structure)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, x, _ = ctx.saved_tensors
        need_g, need_x, _, _ = ctx.needs_input_grad
        structure, transposed = ctx.structure, ctx.transposed
        return (
            spmm(x, u, structure, None, transposed) if need_g else None,
            spmm_t(g, u, structure, transposed) if need_x else None,
            None,
            None,
        )


# torch.func (grad, vjp, jacrev) needs a separate setup_context, which costs several microseconds
# per call, so only calls under a transform use these classes.


class _SpmmTransformed(_Spmm):
    forward = staticmethod(  # type: ignore[assignment]
        lambda x, values, structure, bias, transposed: run_spmm(x, values, structure, bias)
    )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, structure, _, transposed = inputs
        _save(ctx, x, values, structure, transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise refuse_vmap("spmm")


class _SpmmTTransformed(_SpmmT):
    forward = staticmethod(run_spmm_t)  # type: ignore[assignment]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise refuse_vmap("spmm_t")


class _SddmmTransformed(_Sddmm):
    forward = staticmethod(  # type: ignore[assignment]
        lambda g, x, structure, transposed: run_sddmm(g, x, structure)
    )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise refuse_vmap("sddmm")
