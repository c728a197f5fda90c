"""torch.ops.gossamer.masked: the forward pass of a masked layer as torch.compile sees it.

A masked layer selects its mask while it runs, so a graph holds the whole layer as one operator,
which looks the layer up by its number. The operator returns what the backward pass needs of this
call, because the mask may have changed by then:

    values, indices, indptr, layout     of the kept entries under a hard mask
    the used weight, three empty        under a soft mask, or none

A graph is of this process: torch.export is refused, because the number means nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.backend import Layout, Structure
from gossamer.nn.layers.known_numbers import number_in
from gossamer.nn.layers.numbered import layer_of, refuse_export
from gossamer.nn.layers.products import output_like
from gossamer.nn.layers.straight_through import dense_gradients
from gossamer.ops.autocast import autocast, is_autocast

if TYPE_CHECKING:
    from gossamer.nn.layers.masked import MaskedLinear

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_KEPT = "Tensor values, Tensor indices, Tensor indptr, Tensor layout"
_define(
    "masked(Tensor x, Tensor weight, Tensor? extra, Tensor? bias, Tensor layer, bool mixed, "
    "int[] window) -> "
    f"(Tensor y, {_KEPT})"
)
_define(
    "masked_backward(Tensor grad_output, Tensor x, Tensor weight, Tensor? extra, "
    f"{_KEPT}, Tensor layer, bool[] needs) -> Tensor[]"
)


def masked(layer: MaskedLinear, x: Tensor) -> Tensor:
    """Call a layer through the operator; x [..., in_features].

    Raises:
        GossamerError: by torch.export.
        ShapeError, DTypeError: x does not fit; torch.compile wraps them.
    """
    refuse_export(
        layer,
        "how it selects its mask",
        "use to_sparse(), or the model that recipe.finish gives, or gossamer.densify(model)",
    )
    layer.check_fits(x)
    weight, *extra = layer.trained()
    product, given = layer.product, x
    x, bias, mixed = product.enter(x), layer.bias, is_autocast(x)
    if mixed:
        x, bias = autocast(x, bias, device=x.device.type)
    y: Tensor = torch.ops.gossamer.masked(
        x, weight, extra[0] if extra else None, bias, layer.number, mixed, product.ints
    )[0]
    return product.leave(y, given)


def _forward(
    x: Tensor,
    weight: Tensor,
    extra: Tensor | None,
    bias: Tensor | None,
    layer: Tensor,
    mixed: bool,
    window: list[int],
) -> tuple[Tensor, ...]:
    own = layer_of(layer)
    with torch.no_grad():
        if number_in(own, "masked_weight_share") > 0.0:
            used = own.used_weight().detach()
            y = own.product.multiply_dense(x, used.to(x.dtype), bias)
            empty = (_empty(torch.uint8), _empty(torch.int32), _empty(torch.int64))
            return y, used.clone().flatten(), *empty
        values, structure = own.pack()
        if mixed:
            values = values.to(x.dtype)
        y = own.product.multiply(x, values, structure, bias)
    indptr = _empty(torch.int32) if structure.indptr is None else structure.indptr.clone()
    # An operator must not return a buffer of the layer itself.
    return y, values, structure.indices.clone(), indptr, torch.tensor(structure.layout.as_ints())


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    extra: Tensor | None,
    bias: Tensor | None,
    layer: Tensor,
    mixed: bool,
    window: list[int],
) -> tuple[Tensor, ...]:
    size = torch.library.get_ctx().new_dynamic_size
    return (
        output_like(x, weight.shape[0], window),
        x.new_empty(size(), dtype=x.dtype if mixed else weight.dtype),
        x.new_empty(size(), dtype=torch.uint8),
        x.new_empty(size(), dtype=torch.int32),
        x.new_empty(size(), dtype=torch.int64),
    )


def _backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    extra: Tensor | None,
    values: Tensor,
    indices: Tensor,
    indptr: Tensor,
    layout: Tensor,
    layer: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    own = layer_of(layer)
    parameters = (weight,) if extra is None else (weight, extra)
    wanted = needs[0], needs[1] or needs[2], needs[3]
    if len(layout):
        structure = Structure(Layout(*layout.tolist()), indices, indptr if len(indptr) else None)
        grad_x, of_parameters, grad_bias = own.gradients(
            grad_output, x, parameters, values, structure, wanted, x.shape
        )
    else:
        used = values.view(weight.shape)
        grad_x, grad_weight, grad_bias = dense_gradients(
            own.product, grad_output, x, used, wanted, x.shape
        )
        of_parameters = (grad_weight, *map(torch.zeros_like, parameters[1:]))
    found = (grad_x, *of_parameters, *[None] * (2 - len(parameters)), grad_bias)
    empty = _none(grad_output, x, weight)
    return [
        none if grad is None or not need else grad.to(none.dtype).contiguous()
        for grad, none, need in zip(found, empty, needs, strict=True)
    ]


def _backward_fake(
    grad_output: Tensor, x: Tensor, weight: Tensor, extra: Tensor | None, *rest: Any
) -> list[Tensor]:
    shapes = (x.shape, weight.shape, None if extra is None else extra.shape, weight.shape[:1])
    return [
        none.new_empty(shape) if need and shape is not None else none
        for none, shape, need in zip(_none(grad_output, x, weight), shapes, rest[-1], strict=True)
    ]


def _none(grad_output: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
    """What stands for a gradient that is not needed: an operator cannot return None."""
    return [t.new_empty(0) for t in (x, weight, weight, grad_output)]


def _empty(dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, extra, _, layer, *_ = inputs
    ctx.save_for_backward(x, weight, extra, *output[1:], layer)
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    found = torch.ops.gossamer.masked_backward(grad_output, *ctx.saved_tensors, needs)
    grads = (grad if need else None for grad, need in zip(found, needs, strict=True))
    return *grads, None, None, None


def _register() -> None:
    impl: Callable[..., object] = _LIBRARY.impl
    impl("masked", _forward, "CompositeExplicitAutograd")
    impl("masked_backward", _backward, "CompositeExplicitAutograd")
    op = "gossamer::masked"
    torch.library.register_fake(op, _forward_fake, lib=_LIBRARY)
    torch.library.register_fake(f"{op}_backward", _backward_fake, lib=_LIBRARY)
    torch.library.register_autograd(op, _gradients, setup_context=_context, lib=_LIBRARY)


_register()
