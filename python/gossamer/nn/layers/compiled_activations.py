"""torch.ops.gossamer.activation_ffn: `ActivationSparseFFN` as torch.compile sees it.

The layer chooses its form while it runs, and the number of live pairs is known afterwards, so a
graph holds the whole layer as one operator, which looks the layer up by its number. The operator
returns what the backward pass needs of this call:

    indptr, tokens, g, u             of the live pairs
    dense_g, dense_u                 [batch * hidden], where the call was dense
    dead                             neurons whose gates are pulled
    fixed                            the tokens of a tile, the penalty, the strength of the pull,
                                     and the softness of the activation

What a call does not have is an empty tensor; a call without a backward pass has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.activations import LiveGate, Options, Weights
from gossamer.activations.functions import find_live
from gossamer.activations.passes import (
    dense_backward,
    dense_forward,
    mean_of,
    pull_dead_,
    sparse_backward,
    sparse_forward,
)
from gossamer.backend.activations import Pairs, sums_dtype
from gossamer.nn.layers import activation_calls as calls
from gossamer.nn.layers.numbered import layer_of, refuse_export

if TYPE_CHECKING:
    from gossamer.nn.layers.activation_sparse import ActivationSparseFFN

_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_MATRICES = "Tensor gate, Tensor? up, Tensor down"
_KEPT = (
    "Tensor indptr, Tensor tokens, Tensor g, Tensor u, Tensor dense_g, Tensor dense_u, "
    "Tensor dead, Tensor fixed"
)
_define(
    f"activation_ffn(Tensor x, {_MATRICES}, Tensor? gate_bias, Tensor? up_bias, "
    "Tensor? down_bias, Tensor layer, str activation, str former, bool learns) -> "
    f"(Tensor y, {_KEPT})"
)
_define(
    f"activation_ffn_backward(Tensor grad_output, Tensor x, {_MATRICES}, {_KEPT}, Tensor layer, "
    "str activation, str former, bool[] needs) -> Tensor[]"
)


def compiled_feed_forward(
    layer: ActivationSparseFFN, x: Tensor, weights: Weights, learns: bool
) -> Tensor:
    """Call a layer through the operator.

    Args:
        layer: which one.
        x: [batch, d].
        weights: in the dtype of x.
        learns: whether a backward pass follows.

    Raises:
        GossamerError: by torch.export.
    """
    refuse_export(layer, "how many activations are alive", "use gossamer.densify(model)")
    y: Tensor = torch.ops.gossamer.activation_ffn(
        x, *weights, layer.number, layer.activation, layer.former or "", learns
    )[0]
    return y


def _forward(
    x: Tensor,
    gate: Tensor,
    up: Tensor | None,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    layer: Tensor,
    activation: str,
    former: str,
    learns: bool,
) -> tuple[Tensor, ...]:
    own: ActivationSparseFFN = layer_of(layer)
    weights = Weights(gate, up, down, gate_bias, up_bias, down_bias)
    kept, tile = _nothing(x), 0
    with torch.no_grad():
        kept[6], pull = calls.pull_of(own)
        options = calls.plan(own, x, weights, learns)
        if options is None:
            options = calls.options_of(own, "float32", len(x))
            y, h, *dense = dense_forward(x, weights, options)
            calls.count_dense(own, h, learns)
            kept[4:6] = [
                empty if t is None else t.flatten()
                for t, empty in zip(dense, kept[4:6], strict=True)
            ]
        elif not learns:
            y = calls.infer(own, x, weights, options)
        else:
            x = x.contiguous()
            live = find_live(x, weights, options)
            y, u = sparse_forward(x, weights, live, options)
            calls.count(own, live.pairs, live.screened, learns)
            tile = live.pairs.tile
            kept[:3] = [live.pairs.indptr, live.pairs.tokens, live.values]
            kept[3] = kept[3] if u is None else u
    fixed = torch.tensor([tile, options.penalty, pull, options.softness], dtype=torch.float64)
    return (y, *(kept if learns else _nothing(x)), fixed)


def _nothing(x: Tensor) -> list[Tensor]:
    """What stands for the kept tensors of a call that has none; an operator cannot return None."""
    return [x.new_empty(0, dtype=dtype) for dtype in _kept_dtypes(x)]


def _kept_dtypes(x: Tensor) -> tuple[torch.dtype, ...]:
    sums = sums_dtype(x.dtype)
    return torch.int64, torch.int32, sums, sums, x.dtype, x.dtype, torch.int64


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    size = torch.library.get_ctx().new_dynamic_size
    kept = (x.new_empty(size(), dtype=dtype) for dtype in _kept_dtypes(x))
    return (x.new_empty(x.shape), *kept, x.new_empty(4, dtype=torch.float64))


def _backward(
    grad_output: Tensor,
    x: Tensor,
    gate: Tensor,
    up: Tensor | None,
    down: Tensor,
    indptr: Tensor,
    tokens: Tensor,
    g: Tensor,
    u: Tensor,
    dense_g: Tensor,
    dense_u: Tensor,
    dead: Tensor,
    fixed: Tensor,
    layer: Tensor,
    activation: str,
    former: str,
    needs: list[bool],
) -> list[Tensor]:
    own: ActivationSparseFFN | None = layer_of(layer)
    tile, penalty, pull, softness = fixed.tolist()
    options = Options(
        activation,  # type: ignore[arg-type]
        penalty=penalty,
        memory=None if own is None else own.memory,
        softness=softness,
        former=former or None,  # type: ignore[arg-type]
    )
    weights, batch, hidden = Weights(gate, up, down), len(x), len(gate)
    with torch.no_grad():
        if tile:
            live = LiveGate(Pairs(indptr, tokens, hidden, batch, int(tile)), g, 0)
            factor = None if up is None else u
            found = sparse_backward(
                grad_output, x.contiguous(), weights, live, factor, options, needs
            )
        else:
            shape = (batch, hidden)
            factor = None if up is None else dense_u.view(shape)
            found = dense_backward(
                grad_output, x, weights, dense_g.view(shape), factor, options, needs
            )
        if len(dead):
            pull_dead_((found[1], found[4]), mean_of(x), dead, pull)
    return [
        like if grad is None or not need else grad.contiguous()
        for grad, need, like in zip(found, needs, _no_gradients(x), strict=True)
    ]


def _backward_fake(
    grad_output: Tensor, x: Tensor, gate: Tensor, up: Tensor | None, down: Tensor, *rest: Any
) -> list[Tensor]:
    matrix, vector = gate.shape, gate.shape[:1]
    shapes = (x.shape, matrix, matrix, matrix, vector, vector, gate.shape[1:])
    return [
        like.new_empty(shape) if need else like
        for shape, need, like in zip(shapes, rest[-1], _no_gradients(x), strict=True)
    ]


def _no_gradients(x: Tensor) -> list[Tensor]:
    dtypes = [x.dtype] * 4 + [sums_dtype(x.dtype)] * 3
    return [x.new_empty(0, dtype=dtype) for dtype in dtypes]


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, gate, up, down, _, _, _, layer, *ctx.names, _ = inputs
    ctx.save_for_backward(x, gate, up, down, *output[1:], layer)
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:7])
    found = torch.ops.gossamer.activation_ffn_backward(
        grad_output, *ctx.saved_tensors, *ctx.names, needs
    )
    grads = (grad if need else None for grad, need in zip(found, needs, strict=True))
    return *grads, None, None, None, None


def _register() -> None:
    impl: Callable[..., object] = _LIBRARY.impl
    impl("activation_ffn", _forward, "CompositeExplicitAutograd")
    impl("activation_ffn_backward", _backward, "CompositeExplicitAutograd")
    op = "gossamer::activation_ffn"
    torch.library.register_fake(op, _forward_fake, lib=_LIBRARY)
    torch.library.register_fake(f"{op}_backward", _backward_fake, lib=_LIBRARY)
    torch.library.register_autograd(op, _gradients, setup_context=_context, lib=_LIBRARY)


_register()

__all__ = ["compiled_feed_forward"]
