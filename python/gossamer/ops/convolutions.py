"""Sparse convolutions: torch.ops.gossamer.{convolve, convolve_input, convolve_weight}.

A plain tensor in eager mode takes the autograd functions (`gossamer.ops.convolution_autograd`), and
everything that traces, records or transforms takes these operators. Structure and transpose are
passed as in `gossamer.ops.library`, the window as `Window.as_ints`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gossamer.backend import convolutions as kernels
from gossamer.backend.convolutions import Window, new_images
from gossamer.errors import DTypeError, GossamerError, ShapeError
from gossamer.ops.autocast import autocast, is_autocast, without_autocast
from gossamer.ops.convolution_autograd import convolve as eager
from gossamer.ops.library import (
    LIBRARY,
    NO_PARTS,
    STRUCTURE,
    Parts,
    parts_of,
    register_rules,
    same_dtype,
    save,
    saved,
    structure_in,
    transposed_in,
)
from gossamer.ops.recording import differentiating_forward, refuse_onnx, transforming
from gossamer.ops.verbs import is_plain
from gossamer.weight import SparseWeight
from gossamer.weight.naming import describe
from gossamer.weight.sharding import is_sharded

_define: Callable[[str], object] = LIBRARY.define
_define(f"convolve(Tensor x, Tensor values, {STRUCTURE}, int[] window, Tensor? bias) -> Tensor")
_define(
    f"convolve_input(Tensor grad_output, Tensor values, {STRUCTURE}, int[] window, SymInt[] size) "
    "-> Tensor"
)
_define(f"convolve_weight(Tensor grad_output, Tensor x, {STRUCTURE}, int[] window) -> Tensor")

_COUNT = len(Parts._fields)


def convolve(x: Tensor, weight: SparseWeight, window: Window, bias: Tensor | None = None) -> Tensor:
    """Compute the convolution of images with a sparse weight.

    Args:
        x: [images, channels, *size] of the values' dtype, one to three dimensions, any strides.
        weight: the matrix [out, taps * channels / groups], columns ordered (taps, channel).
        window: how the taps lie.
        bias: [out] of the same dtype, or None.

    Returns:
        [images, out, *output size], in the memory format of x.

    Raises:
        ShapeError, DTypeError: an argument does not fit the weight.

    Example:
        >>> weight = SparseWeight.from_dense(torch.tensor([[1.0, -3.0, 2.0, 0.5]]), "2:4")
        >>> window = Window((1,), (1,), (0,), (0,), (1,))
        >>> convolve(torch.ones(1, 4, 2), weight, window)
        tensor([[[-1., -1.]]], grad_fn=<_ConvolveBackward>)
    """
    _check(x, weight, window)
    if is_plain(x) and not (transforming() or differentiating_forward()):
        values = weight.values
        if is_autocast(x):
            x, values, bias = autocast(x, values, bias, device=x.device.type)
        return eager(x, values, weight.structure, window, bias, weight.transposed)
    ints = window.as_ints()
    y: Tensor = torch.ops.gossamer.convolve(x, weight.values, *parts_of(weight), ints, bias)
    return y


def _check(x: Any, weight: SparseWeight, window: Window) -> None:
    refuse_onnx(weight)
    if not isinstance(x, Tensor):
        raise DTypeError(f"x is {type(x).__name__}; a convolution takes torch tensors")
    if is_sharded(x) or is_sharded(weight.values):
        raise DTypeError(
            f"x or the values of {describe(weight)} are DTensors, and a convolution takes ordinary "
            "tensors: call the module that fully_shard was applied to, or use gossamer.densify()"
        )
    if x.layout is not torch.strided:
        raise DTypeError(f"x has layout {x.layout}; use x.to_dense()")
    dims = len(window.kernel)
    channels = kernels.channels(weight.shape[1], window)
    if x.dim() != dims + 2 or x.shape[1] != channels:
        raise ShapeError(
            f"x has shape {tuple(x.shape)}; {describe(weight)} takes [images, {channels} channels, "
            f"*size] with {dims} sizes"
        )


def _last(args: Sequence[Any]) -> tuple[Parts, tuple[Any, ...]]:
    return Parts(*args[:_COUNT]), tuple(args[_COUNT:])


# Kernels, for every device. Vectors must be contiguous.


def _convolve(x: Tensor, values: Tensor, *rest: Any) -> Tensor:
    parts, (window, bias) = _last(rest)
    b = None if bias is None else bias.contiguous()
    structure = structure_in(parts)
    return kernels.convolve(x, values.contiguous(), structure, Window.of_ints(window), b)


def _convolve_input(g: Tensor, values: Tensor, *rest: Any) -> Tensor:
    parts, (window, size) = _last(rest)
    structure, transposed = structure_in(parts), transposed_in(parts)
    window = Window.of_ints(window)
    return kernels.convolve_input(g, values.contiguous(), structure, window, size, transposed)


def _convolve_weight(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    parts, (window,) = _last(rest)
    return kernels.convolve_weight(g, x, structure_in(parts), Window.of_ints(window))


def _convolve_fake(x: Tensor, values: Tensor, *rest: Any) -> Tensor:
    parts, (window, bias) = _last(rest)
    same_dtype(x, values, bias)
    size = Window.of_ints(window).output_size(x.shape[2:])
    return new_images(x, (x.shape[0], parts.layout[0], *size))


def _convolve_input_fake(g: Tensor, values: Tensor, *rest: Any) -> Tensor:
    parts, (window, size) = _last(rest)
    same_dtype(g, values)
    return new_images(
        g, (g.shape[0], kernels.channels(parts.layout[1], Window.of_ints(window)), *size)
    )


def _convolve_weight_fake(g: Tensor, x: Tensor, *rest: Any) -> Tensor:
    parts, _ = _last(rest)
    same_dtype(g, x)
    return x.new_empty(parts.indices.shape[0] * parts.layout[2])


# Autograd rules, without autocast as in `gossamer.ops.library`.


def _convolve_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, *rest = inputs
    parts, (ctx.window, _) = _last(rest)
    need_x, need_values = ctx.needs_input_grad[:2]
    ctx.size = x.shape[2:]
    save(ctx, x if need_values else None, values if need_x else None, parts)


def _convolve_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, values, parts = saved(ctx)
    need_x, need_values, *_, need_bias = ctx.needs_input_grad
    ops = torch.ops.gossamer
    with without_autocast(g):
        return (
            ops.convolve_input(g, values, *parts, ctx.window, ctx.size) if need_x else None,
            ops.convolve_weight(g, x, *parts, ctx.window) if need_values else None,
            *NO_PARTS,
            None,
            g.sum([0, *range(2, g.dim())]) if need_bias else None,
        )


def _convolve_input_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, values, *rest = inputs
    parts, (ctx.window, _) = _last(rest)
    need_g, need_values = ctx.needs_input_grad[:2]
    save(ctx, g if need_values else None, values if need_g else None, parts)


def _convolve_input_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    g, values, parts = saved(ctx)
    need_g, need_values = ctx.needs_input_grad[:2]
    ops = torch.ops.gossamer
    with without_autocast(u):
        return (
            ops.convolve(u, values, *parts, ctx.window, None) if need_g else None,
            ops.convolve_weight(g, u, *parts, ctx.window) if need_values else None,
            *NO_PARTS,
            None,
            None,
        )


def _convolve_weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, *rest = inputs
    parts, (ctx.window,) = _last(rest)
    need_g, need_x = ctx.needs_input_grad[:2]
    ctx.size = x.shape[2:]
    save(ctx, g if need_x else None, x if need_g else None, parts)


def _convolve_weight_backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    g, x, parts = saved(ctx)
    need_g, need_x = ctx.needs_input_grad[:2]
    ops = torch.ops.gossamer
    with without_autocast(u):
        return (
            ops.convolve(x, u, *parts, ctx.window, None) if need_g else None,
            ops.convolve_input(g, u, *parts, ctx.window, ctx.size) if need_x else None,
            *NO_PARTS,
            None,
        )


def _autocast_rule(name: str, device: str) -> Callable[..., Tensor]:
    """Return the op with its floating arguments cast as the verbs cast theirs."""
    key = getattr(torch._C.DispatchKey, f"Autocast{device.upper()}")

    def rule(a: Tensor, b: Tensor, *rest: Any) -> Tensor:
        others, bias = (rest[:-1], rest[-1:]) if name == "convolve" else (rest, ())
        a, b, *bias = autocast(a, b, *bias, device=device)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            out: Tensor = getattr(torch.ops.gossamer, name)(a, b, *others, *bias)
        return out

    return rule


def _vmap_rule(name: str) -> Callable[..., Any]:
    """Images alone may have a batch: it joins the images."""

    def rule(info: Any, in_dims: Any, a: Tensor, *rest: Any) -> tuple[Tensor, int]:
        dim, *others = in_dims
        if (
            name == "convolve_weight"
            or dim is None
            or any(d is not None for d in tree_leaves(others))
        ):
            raise GossamerError(
                f"gossamer.{name} was called under vmap with a batch of weights or gradients; it "
                "takes a batch of images alone: loop over the weights"
            )
        a = a.movedim(dim, 0)
        y = getattr(torch.ops.gossamer, name)(a.flatten(0, 1), *rest)
        return y.unflatten(0, a.shape[:2]), 0

    return rule


# FLOPs by the convention of torch: two per multiply-add, none for the bias.


def _convolve_flops(
    x: Sequence[int], values: Sequence[int], *rest: Any, out_shape: Sequence[int], **_: Any
) -> int:
    return 2 * values[0] * _pixels(out_shape)


def _convolve_input_flops(g: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * values[0] * _pixels(g)


def _convolve_weight_flops(g: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * out_shape[0] * _pixels(g)


def _pixels(shape: Sequence[int]) -> int:
    count = shape[0]
    for n in shape[2:]:
        count *= n
    return count


def _register() -> None:
    rules: dict[str, tuple[Callable[..., Any], ...]] = {
        "convolve": (
            _convolve, _convolve_fake, _convolve_context, _convolve_backward, _convolve_flops
        ),
        "convolve_input": (
            _convolve_input, _convolve_input_fake, _convolve_input_context,
            _convolve_input_backward, _convolve_input_flops
        ),
        "convolve_weight": (
            _convolve_weight, _convolve_weight_fake, _convolve_weight_context,
            _convolve_weight_backward, _convolve_weight_flops
        ),
    }  # fmt: skip
    register_rules(rules, _autocast_rule, _vmap_rule)


_register()

__all__ = ["Window", "convolve"]
