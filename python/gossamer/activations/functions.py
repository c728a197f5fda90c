"""A feed-forward network whose hidden activations are sparse, as an autograd function.

    h = act(x Wg^T + bg) * (x Wu^T + bu),   y = h Wd + bd        (gated; without Wu: h = act(...))

act is zero for what is not positive, so all products but the gate's visit the live pairs alone,
forward and backward. Only first derivatives exist; a second derivative raises an error.

That a ReLU gate with a small L1 penalty trains well with few live activations is shown, on GPUs, in
arXiv:2603.23198 (2026).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gossamer.activations.gate import LiveGate, float_gate, int8_gate
from gossamer.activations.passes import (
    Options,
    Weights,
    activate,
    cast,
    mean_of,
    pull_dead_,
    sparse_backward,
    sparse_forward,
)
from gossamer.arguments import check
from gossamer.backend.activations import Pairs


class Counts(NamedTuple):
    """What a forward pass found."""

    pairs: Pairs
    screened: int
    """Pairs whose gate was computed after the int8 screen, 0 without it."""


def sparse_feed_forward(x: Tensor, weights: Weights, options: Options) -> tuple[Tensor, Counts]:
    """Compute the network at its live pairs.

    Args:
        x: [batch, d] in the dtype of the weights: float32, float64 or bfloat16.
        weights: Weights and biases.
        options: See `Options`.

    Returns:
        y [batch, d], and the live pairs.
    """
    check(sparse_feed_forward, locals())
    live = find_live(x.detach().contiguous(), weights, options)
    return feed_forward_at(x, weights, live, options), Counts(live.pairs, live.screened)


def feed_forward_at(x: Tensor, weights: Weights, live: LiveGate, options: Options) -> Tensor:
    """Compute the network at given pairs, whose gates are known: y [batch, d]."""
    y: Tensor = _FeedForward.apply(x, *weights, live, options)  # type: ignore[no-untyped-call]
    return y


def dense_feed_forward(x: Tensor, weights: Weights, options: Options) -> tuple[Tensor, Tensor]:
    """Compute the same network by torch's products; returns y and h [batch, hidden]."""
    check(dense_feed_forward, locals())
    h = activate(functional.linear(x, weights.gate, cast(weights.gate_bias, x)), options)
    if weights.up is not None:
        h = h * functional.linear(x, weights.up, cast(weights.up_bias, x))
    if options.penalty:
        h = _Penalized.apply(h, options.penalty)  # type: ignore[no-untyped-call]
    return functional.linear(h, weights.down.t(), cast(weights.down_bias, x)), h


def pulled(weights: Weights, x: Tensor, dead: Tensor, strength: float) -> Weights:
    """Return the weights, whose gate gets the gradient of `pull_dead_` too.

    Args:
        weights: of a network.
        x: [batch, d], its input.
        dead: int64 [dead neurons].
        strength: of the pull.
    """
    mean = mean_of(x)

    def hooked(part: Tensor | None, index: int) -> Tensor | None:
        if part is None or not part.requires_grad:
            return part

        def pull(grad: Tensor) -> Tensor:
            grads: list[Tensor | None] = [None, None]
            grads[index] = grad = grad.clone()
            pull_dead_(grads, mean, dead, strength)
            return grad

        alias = part.view_as(part)
        alias.register_hook(pull)  # type: ignore[no-untyped-call]
        return alias

    gate, bias = hooked(weights.gate, 0), hooked(weights.gate_bias, 1)
    return weights._replace(gate=gate, gate_bias=bias)  # type: ignore[arg-type]


def find_live(x: Tensor, weights: Weights, options: Options) -> LiveGate:
    """Return the live pairs of x, [batch, d] and contiguous, by the gate that the options name."""
    gate = weights.gate.detach().contiguous()
    bias = None if weights.gate_bias is None else weights.gate_bias.detach()
    if options.gate == "int8" and x.dtype != torch.float64:
        return int8_gate(x, gate, bias, options.slack)
    return float_gate(x, gate, bias, options.expected)


class _FeedForward(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor,
        up: Tensor | None,
        down: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        live: LiveGate,
        options: Options,
    ) -> Tensor:
        x = x.contiguous()
        weights = Weights(gate, up, down, gate_bias, up_bias, down_bias)
        y, u = sparse_forward(x, weights, live, options)
        pairs, g = live.pairs, live.values
        ctx.save_for_backward(x, *weights[:3], pairs.indptr, pairs.tokens, g, u)
        ctx.pairs, ctx.options = pairs[2:], options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, indptr, tokens, g, u = ctx.saved_tensors
        live = LiveGate(Pairs(indptr, tokens, *ctx.pairs), g, 0)
        needs = ctx.needs_input_grad[:7]
        weights = Weights(gate, up, down)
        grads = sparse_backward(grad_output, x, weights, live, u, ctx.options, needs)
        return *grads, None, None


class _Penalized(Function):
    """h, whose gradient gets that of strength * mean over rows of sum |h|."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.strength = strength / max(1, h.numel() // h.shape[-1])
        return h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return grad + ctx.strength * h.sign(), None


__all__ = [
    "Counts",
    "dense_feed_forward",
    "feed_forward_at",
    "find_live",
    "pulled",
    "sparse_feed_forward",
]
