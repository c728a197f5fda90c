"""torch.ops.gossamer.{spmm, spmm_t, sddmm}: the verbs as torch.compile and torch.export see them.

The ops are declared with define/impl because the decorator form costs twice as much per call. The
structure is passed as plain tensors and integers, always in the order

    indices, indptr, layout, t_indices, t_indptr, t_layout, t_perm

Each op has one kernel for every device (the backend chooses the compiled module), a fake kernel
(shapes only), an autograd rule made of the other two ops, an autocast rule, a vmap rule, and a
formula for FLOP counters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gossamer.backend import Layout, Structure, Transposed, products
from gossamer.errors import DTypeError
from gossamer.ops.autocast import autocast, without_autocast
from gossamer.ops.autograd import flatten, pruned_values, unflatten
from gossamer.ops.batching import batched
from gossamer.weight import SparseWeight
from gossamer.weight.guard import check_written

STRUCTURE = (
    "Tensor indices, Tensor? indptr, int[] layout, "
    "Tensor? t_indices, Tensor? t_indptr, int[] t_layout, Tensor? t_perm"
)
LIBRARY = torch.library.Library("gossamer", "DEF")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = LIBRARY.define
_define(f"spmm(Tensor x, Tensor values, {STRUCTURE}, Tensor? bias) -> Tensor")
_define(f"spmm_t(Tensor grad_output, Tensor values, {STRUCTURE}) -> Tensor")
_define(f"sddmm(Tensor grad_output, Tensor x, {STRUCTURE}) -> Tensor")


_NO_LAYOUT = (0,)  # of a transpose that is not there; AOTInductor reads an empty list as None


class Parts(NamedTuple):
    """The structure as the ops take it."""

    indices: Tensor
    indptr: Tensor | None
    layout: Sequence[int]
    t_indices: Tensor | None
    t_indptr: Tensor | None
    t_layout: Sequence[int]
    t_perm: Tensor | None


def spmm(
    x: Tensor, weight: SparseWeight, bias: Tensor | None = None, values: Tensor | None = None
) -> Tensor:
    """`gossamer.spmm` through the registered op; x [..., cols]."""
    used = weight.values if values is None else values
    y = torch.ops.gossamer.spmm(flatten(x), used, *parts_of(weight), bias)
    return unflatten(y, x)


def spmm_t(grad_output: Tensor, weight: SparseWeight) -> Tensor:
    """`gossamer.spmm_t` through the registered op; grad_output [..., rows]."""
    y = torch.ops.gossamer.spmm_t(flatten(grad_output), weight.values, *_exact(weight))
    return unflatten(y, grad_output)


def sddmm(grad_output: Tensor, x: Tensor, weight: SparseWeight) -> Tensor:
    """`gossamer.sddmm` through the registered op; grad_output [..., rows], x [..., cols]."""
    y: Tensor = torch.ops.gossamer.sddmm(flatten(grad_output), flatten(x), *_exact(weight))
    return y


def parts_of(weight: SparseWeight) -> tuple[Any, ...]:
    """Return the structure of a weight as the ops take it."""
    return (
        weight.indices,
        weight.indptr,
        weight.layout_ints,
        weight.t_indices,
        weight.t_indptr,
        weight.t_layout_ints or _NO_LAYOUT,
        weight.t_perm,
    )


def _exact(weight: SparseWeight) -> tuple[Any, ...]:
    """The parts without a double-pruned transpose, which only the backward of spmm may use."""
    parts = Parts(*parts_of(weight))
    return _without_transpose(parts) if weight.backward == "double_pruned" else parts


def _without_transpose(p: Parts) -> Parts:
    return Parts(p.indices, p.indptr, p.layout, None, None, _NO_LAYOUT, None)


def structure_in(p: Parts) -> Structure:
    """Return the structure that an op was given."""
    check_written(p.indices)
    return Structure(Layout(*p.layout), p.indices, p.indptr)


def transposed_in(p: Parts) -> Transposed | None:
    """Return the transpose that an op was given, or None."""
    if p.t_indices is None or p.t_perm is None:
        return None
    check_written(p.t_indices)
    return Transposed(Structure(Layout(*p.t_layout), p.t_indices, p.t_indptr), p.t_perm)


# Kernels, for every device. Vectors must be contiguous.


def _spmm(x: Tensor, values: Tensor, *parts_and_bias: Any) -> Tensor:
    *parts, bias = parts_and_bias
    b = None if bias is None else bias.contiguous()
    y: Tensor = products.spmm(x, values.contiguous(), structure_in(Parts(*parts)), b)
    return y


def _spmm_t(grad_output: Tensor, values: Tensor, *parts: Any) -> Tensor:
    p = Parts(*parts)
    y: Tensor = products.spmm_t(grad_output, values.contiguous(), structure_in(p), transposed_in(p))
    return y


def _sddmm(grad_output: Tensor, x: Tensor, *parts: Any) -> Tensor:
    grad: Tensor = products.sddmm(grad_output, x, structure_in(Parts(*parts)))
    return grad


# Fakes. layout is (rows, cols, vector, block_cols, n, m); each index stores `vector` values.


def _spmm_fake(x: Tensor, values: Tensor, *parts_and_bias: Any) -> Tensor:
    *parts, bias = parts_and_bias
    same_dtype(x, values, bias)
    return x.new_empty(x.shape[0], Parts(*parts).layout[0])


def _spmm_t_fake(grad_output: Tensor, values: Tensor, *parts: Any) -> Tensor:
    same_dtype(grad_output, values)
    return grad_output.new_empty(grad_output.shape[0], Parts(*parts).layout[1])


def _sddmm_fake(grad_output: Tensor, x: Tensor, *parts: Any) -> Tensor:
    same_dtype(grad_output, x)
    p = Parts(*parts)
    return x.new_empty(p.indices.shape[0] * p.layout[2])


def same_dtype(first: Tensor, *others: Tensor | None) -> None:
    """Raise DTypeError unless all tensors have one dtype."""
    for other in others:
        if other is not None and other.dtype != first.dtype:
            raise DTypeError(
                f"{first.dtype} and {other.dtype} were given in one call; use one dtype"
            )


# Autograd rules. They disable autocast, as torch.amp.custom_bwd does: a gradient has the dtype of
# its forward pass, wherever backward() is called.


def _spmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *parts, _ = inputs
    need_x, need_values = ctx.needs_input_grad[:2]
    save(ctx, x if need_values else None, values if need_x else None, Parts(*parts))


def _spmm_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, parts = saved(ctx)
    need_x, need_values, *_, need_bias = ctx.needs_input_grad
    ops = torch.ops.gossamer
    exact = parts
    if parts.t_perm is not None and len(parts.t_perm) < len(parts.indices) * parts.layout[2]:
        exact = _without_transpose(parts)
        if need_x and torch.is_grad_enabled():
            values, parts = pruned_values(values, parts.t_perm), exact
    with without_autocast(g):
        grads = (
            ops.spmm_t(g, values, *parts) if need_x else None,
            ops.sddmm(g, x, *exact) if need_values else None,
        )
        grad_bias = g.sum(0) if need_bias else None
    return *grads, *NO_PARTS, grad_bias


def _spmm_t_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, values, *parts = inputs
    need_g, need_values = ctx.needs_input_grad[:2]
    save(ctx, g if need_values else None, values if need_g else None, Parts(*parts))


def _spmm_t_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    g, values, parts = saved(ctx)
    need_g, need_values = ctx.needs_input_grad[:2]
    ops = torch.ops.gossamer
    with without_autocast(g):
        grads = (
            ops.spmm(u, values, *parts, None) if need_g else None,
            ops.sddmm(g, u, *parts) if need_values else None,
        )
    return *grads, *NO_PARTS


def _sddmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, *parts = inputs
    need_g, need_x = ctx.needs_input_grad[:2]
    save(ctx, g if need_x else None, x if need_g else None, Parts(*parts))


def _sddmm_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    g, x, parts = saved(ctx)
    need_g, need_x = ctx.needs_input_grad[:2]
    ops = torch.ops.gossamer
    with without_autocast(g):
        grads = (
            ops.spmm(x, u, *parts, None) if need_g else None,
            ops.spmm_t(g, u, *parts) if need_x else None,
        )
    return *grads, *NO_PARTS


NO_PARTS = (None,) * len(Parts._fields)


def save(ctx: Any, first: Tensor | None, second: Tensor | None, p: Parts) -> None:
    """Keep two operands and the structure for the backward pass."""
    tensors = (p.indices, p.indptr, p.t_indices, p.t_indptr, p.t_perm)
    ctx.save_for_backward(first, second, *tensors)
    ctx.layouts = (p.layout, p.t_layout)


def saved(ctx: Any) -> tuple[Any, Any, Parts]:
    """Return what `save` has kept."""
    first, second, indices, indptr, t_indices, t_indptr, t_perm = ctx.saved_tensors
    layout, t_layout = ctx.layouts
    return (
        first,
        second,
        Parts(indices, indptr, layout, t_indices, t_indptr, t_layout, t_perm),
    )


def _autocast_rule(name: str, device: str) -> Callable[..., Tensor]:
    """Return the op with its floating arguments cast as eager calls cast them."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def rule(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        parts, bias = rest[: len(Parts._fields)], rest[len(Parts._fields) :]
        a, b, *bias = autocast(a, b, *bias, device=device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            out: Tensor = getattr(torch.ops.gossamer, name)(a, b, *parts, *bias)
        return out

    return rule


def _vmap_rule(name: str) -> Callable[..., Any]:
    """The rule of `batched` for an operator, whose operands are matrices."""
    at_bias = len(Parts._fields) + 2

    def rule(info: Any, in_dims: Any, a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, int]:
        parts, bias = rest[: len(Parts._fields)], rest[len(Parts._fields) :]
        op = getattr(torch.ops.gossamer, name)

        def call(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
            with_bias = (bias,) if name == "spmm" else ()
            if name == "sddmm":
                return op(a, b, *parts)  # type: ignore[no-any-return]
            return unflatten(op(flatten(a), b, *parts, *with_bias), a)

        operands = (a, b, bias[0] if bias else None)
        dims = (in_dims[0], in_dims[1], in_dims[at_bias] if bias else None)
        return batched(name, call, info.batch_size, operands, dims, in_dims[2:at_bias])

    return rule


# FLOPs by the convention of torch: two per multiply-add, none for the bias.


def _spmm_flops(x: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * x[0] * values[0]


def _spmm_t_flops(g: Sequence[int], values: Sequence[int], *parts: Any, **_: Any) -> int:
    perm = parts[-1]  # a pruned transpose has fewer entries than the weight
    return 2 * g[0] * (values[0] if perm is None else perm[0])


def _sddmm_flops(g: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any) -> int:
    return 2 * g[0] * out_shape[0]


def register_rules(
    rules: Mapping[str, tuple[Callable[..., Any], ...]],
    autocast_rule: Callable[[str, str], Callable[..., Any]],
    vmap_rule: Callable[[str], Callable[..., Any]],
) -> None:
    """Register what torch must know of operators.

    Args:
        rules: by name: kernel, fake kernel, context, backward pass and FLOP formula.
        autocast_rule: makes the rule of an operator and a kind of device.
        vmap_rule: makes the rule of an operator.
    """
    impl: Callable[..., object] = LIBRARY.impl
    for name, (kernel, fake, context, backward, flops) in rules.items():
        op = f"gossamer::{name}"
        impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(op, fake, lib=LIBRARY)
        torch.library.register_autograd(op, backward, setup_context=context, lib=LIBRARY)
        for device in ("cpu", "cuda"):
            impl(name, autocast_rule(name, device), f"Autocast{device.upper()}")
        torch.library.register_vmap(op, vmap_rule(name), lib=LIBRARY)
        register_flop_formula(getattr(torch.ops.gossamer, name))(flops)


def _register() -> None:
    rules: dict[str, tuple[Callable[..., Any], ...]] = {
        "spmm": (_spmm, _spmm_fake, _spmm_context, _spmm_backward, _spmm_flops),
        "spmm_t": (_spmm_t, _spmm_t_fake, _spmm_t_context, _spmm_t_backward, _spmm_t_flops),
        "sddmm": (_sddmm, _sddmm_fake, _sddmm_context, _sddmm_backward, _sddmm_flops),
    }
    register_rules(rules, _autocast_rule, _vmap_rule)


_register()
