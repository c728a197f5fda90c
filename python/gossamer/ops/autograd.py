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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gossamer.backend import Structure, Transposed, products
from gossamer.ops.batching import batched
from gossamer.ops.recording import differentiating_forward, recorded, transforming


def spmm(
    x: Tensor,
    values: Tensor,
    structure: Structure,
    bias: Tensor | None = None,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map x [..., cols] to [..., rows]; make an autograd node only if an input needs a gradient."""
    if recorded(x):
        return _recorded_spmm(x, values, structure, bias, transposed)
    if transforming() or differentiating_forward():
        return _apply(_SpmmTransformed, x, values, structure, bias, transposed)
    if torch.is_grad_enabled() and (
        values.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _apply(_Spmm, x, values, structure, bias, transposed)
    return _run_spmm(x, values, structure, bias)


def spmm_t(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output [..., rows] to [..., cols]."""
    if recorded(grad_output):
        return _recorded_spmm_t(grad_output, values, structure, transposed)
    if transforming() or differentiating_forward():
        return _apply(_SpmmTTransformed, grad_output, values, structure, transposed)
    if torch.is_grad_enabled() and (values.requires_grad or grad_output.requires_grad):
        return _apply(_SpmmT, grad_output, values, structure, transposed)
    return _run_spmm_t(grad_output, values, structure, transposed)


def sddmm(
    grad_output: Tensor,
    x: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """Map grad_output [..., rows] and x [..., cols] to [nnz]."""
    if recorded(grad_output) or recorded(x):
        return _recorded_sddmm(grad_output, x, structure, transposed)
    if transforming() or differentiating_forward():
        return _apply(_SddmmTransformed, grad_output, x, structure, transposed)
    if torch.is_grad_enabled() and (grad_output.requires_grad or x.requires_grad):
        return _apply(_Sddmm, grad_output, x, structure, transposed)
    return _run_sddmm(grad_output, x, structure)


# The products with leading dimensions, without autograd.


def run_spmm(x: Tensor, values: Tensor, structure: Structure, bias: Tensor | None = None) -> Tensor:
    """Y = X W^T + b of x [..., cols]."""
    if recorded(x):
        return _recorded_spmm(x, values, structure, bias, None)
    return _run_spmm(x, values, structure, bias)


def run_spmm_t(
    grad_output: Tensor,
    values: Tensor,
    structure: Structure,
    transposed: Transposed | None = None,
) -> Tensor:
    """G W of grad_output [..., rows]."""
    if recorded(grad_output):
        return _recorded_spmm_t(grad_output, values, structure, transposed)
    return _run_spmm_t(grad_output, values, structure, transposed)


def run_sddmm(grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
    """G^T X at the kept entries."""
    if recorded(grad_output):
        return _recorded_sddmm(grad_output, x, structure, None)
    return _run_sddmm(grad_output, x, structure)


# By the kernels. Matrices are passed with their own strides. Vectors must be contiguous: an
# upstream gradient of sddmm may have stride 0.


def _run_spmm(x: Tensor, values: Tensor, structure: Structure, bias: Tensor | None) -> Tensor:
    b = None if bias is None else bias.contiguous()
    y = x.new_empty((*x.shape[:-1], structure.layout.rows))
    products.spmm(flatten(x), values.contiguous(), structure, b, flatten(y))
    return y


def _run_spmm_t(
    grad_output: Tensor, values: Tensor, structure: Structure, transposed: Transposed | None
) -> Tensor:
    y = grad_output.new_empty((*grad_output.shape[:-1], structure.layout.cols))
    products.spmm_t(flatten(grad_output), values.contiguous(), structure, transposed, flatten(y))
    return y


def _run_sddmm(grad_output: Tensor, x: Tensor, structure: Structure) -> Tensor:
    grad: Tensor = products.sddmm(flatten(grad_output), flatten(x), structure)
    return grad


# By the registered operators, while somebody looks on.


def _recorded_spmm(
    x: Tensor,
    values: Tensor,
    structure: Structure,
    bias: Tensor | None,
    transposed: Transposed | None,
) -> Tensor:
    parts = parts_of(structure, transposed)
    return unflatten(torch.ops.gossamer.spmm(flatten(x), values, *parts, bias), x)


def _recorded_spmm_t(
    grad_output: Tensor, values: Tensor, structure: Structure, transposed: Transposed | None
) -> Tensor:
    parts = parts_of(structure, transposed)
    y = torch.ops.gossamer.spmm_t(flatten(grad_output), values, *parts)
    return unflatten(y, grad_output)


def _recorded_sddmm(
    grad_output: Tensor, x: Tensor, structure: Structure, transposed: Transposed | None
) -> Tensor:
    parts = parts_of(structure, transposed)
    grad: Tensor = torch.ops.gossamer.sddmm(flatten(grad_output), flatten(x), *parts)
    return grad


def parts_of(structure: Structure, transposed: Transposed | None) -> tuple[Any, ...]:
    """The structure as the registered operators take it."""
    own = (structure.indices, structure.indptr, structure.layout.as_ints())
    if transposed is None:
        return (*own, None, None, (), None)
    turned, perm = transposed
    return (*own, turned.indices, turned.indptr, turned.layout.as_ints(), perm)


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
        return _run_spmm(x, values, structure, bias)

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
        return _run_spmm_t(g, values, structure, transposed)

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
        return _run_sddmm(g, x, structure)

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


# torch.func and forward-mode derivatives need a separate setup_context, which costs several
# microseconds per call, so only calls under a transform use these classes. A verb is linear in each
# operand: its forward derivative is a sum of the same verb.


def _sum(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there."""
    there = [term for term in terms if term is not None]
    return sum(there[1:], there[0]) if there else None


class _SpmmTransformed(_Spmm):
    forward = staticmethod(  # type: ignore[assignment]
        lambda x, values, structure, bias, transposed: _run_spmm(x, values, structure, bias)
    )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, structure, _, transposed = inputs
        _save(ctx, x, values, structure, transposed)
        ctx.save_for_forward(x, values)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        x, values, structure, bias, transposed = args
        return batched(
            "spmm",
            lambda x, values, bias: spmm(x, values, structure, bias, transposed),
            info.batch_size,
            (x, values, bias),
            (in_dims[0], in_dims[1], in_dims[3]),
            (in_dims[2], in_dims[4]),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (x, values), (dx, dvalues, _, dbias, _) = ctx.saved_tensors, tangents
        structure, transposed = ctx.structure, ctx.transposed
        by_x = None if dx is None else spmm(dx, values, structure, None, transposed)
        by_values = None if dvalues is None else spmm(x, dvalues, structure, None, transposed)
        product = _sum(by_x, by_values)
        if dbias is not None and product is None:
            return dbias.expand(*x.shape[:-1], -1).clone()
        return _sum(product, dbias)


def _pair_rules(name: str, verb: Callable[..., Tensor]) -> tuple[Any, Any]:
    """The vmap and jvp rules of a verb of two tensors, a structure and its transpose."""

    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        a, b, structure, transposed = args
        return batched(
            name,
            lambda a, b, _: verb(a, b, structure, transposed),
            info.batch_size,
            (a, b, None),
            (*in_dims[:2], None),
            in_dims[2:],
        )

    def jvp(ctx: Any, *tangents: Any) -> Any:
        (a, b), (da, db, _, _) = ctx.saved_tensors, tangents
        return _sum(
            None if da is None else verb(da, b, ctx.structure, ctx.transposed),
            None if db is None else verb(a, db, ctx.structure, ctx.transposed),
        )

    return staticmethod(vmap), staticmethod(jvp)


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save(ctx, *inputs)
    ctx.save_for_forward(*inputs[:2])


class _SpmmTTransformed(_SpmmT):
    forward = staticmethod(_run_spmm_t)  # type: ignore[assignment]
    setup_context = staticmethod(_save_pair)
    vmap, jvp = _pair_rules("spmm_t", spmm_t)


class _SddmmTransformed(_Sddmm):
    forward = staticmethod(  # type: ignore[assignment]
        lambda g, x, structure, transposed: _run_sddmm(g, x, structure)
    )
    setup_context = staticmethod(_save_pair)
    vmap, jvp = _pair_rules("sddmm", sddmm)
