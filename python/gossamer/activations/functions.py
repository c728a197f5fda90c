"""A feed-forward network whose hidden activations are sparse, as an autograd function.

    h = act(x Wg^T + bg) * (x Wu^T + bu),   y = h Wd + bd        (gated; without Wu: h = act(...))

act is zero for what is not positive, so all products but the gate's visit the live pairs alone,
forward and backward. Only first derivatives exist; a second derivative raises an error.

That a ReLU gate with a small L1 penalty trains well with few live activations is shown, on GPUs, in
arXiv:2603.23198 (2026).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gossamer.activations.gate import GateForm, LiveGate, float_gate, int8_gate
from gossamer.activations.memory import GradientMemory
from gossamer.arguments import check
from gossamer.backend import activations as kernels
from gossamer.backend.activations import Pairs

Activation: TypeAlias = Literal["relu", "relu2"]


class Options(NamedTuple):
    """How a feed-forward network is computed."""

    activation: Activation = "relu"
    """"relu", or "relu2": its square."""
    gate: GateForm = "float32"
    slack: float = 1.0
    """Scales the bound of the int8 screen; 1 is rigorous."""
    penalty: float = 0.0
    """Strength of the L1 penalty: its gradient is that of penalty * mean over tokens of sum |h|."""
    expected: int = 0
    """About how many live pairs there will be."""
    memory: GradientMemory | None = None


class Counts(NamedTuple):
    """What a forward pass found."""

    pairs: Pairs
    screened: int
    """Pairs whose gate was computed after the int8 screen, 0 without it."""


class Weights(NamedTuple):
    """The weights [hidden, d] and biases; `up` is None without a second factor."""

    gate: Tensor
    up: Tensor | None
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


def activate(gate: Tensor, activation: Activation) -> Tensor:
    """Return act(gate)."""
    positive = torch.relu(gate)
    return positive.square() if activation == "relu2" else positive


def _activation_gradient(grad: Tensor, gate: Tensor, activation: Activation) -> Tensor:
    """Return grad * act'(gate); torch's rule for what is not positive, and for NaN."""
    if activation == "relu2":
        grad = grad * 2 * gate
    return torch.ops.aten.threshold_backward(grad, gate, 0)  # type: ignore[no-any-return]


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
    live = _find(x.detach().contiguous(), weights, options)
    return feed_forward_at(x, weights, live, options), Counts(live.pairs, live.screened)


def feed_forward_at(x: Tensor, weights: Weights, live: LiveGate, options: Options) -> Tensor:
    """Compute the network at given pairs, whose gates are known: y [batch, d]."""
    y: Tensor = _FeedForward.apply(x, *weights, live, options)  # type: ignore[no-untyped-call]
    return y


def dense_feed_forward(x: Tensor, weights: Weights, options: Options) -> tuple[Tensor, Tensor]:
    """Compute the same network by torch's products; returns y and h [batch, hidden]."""
    check(dense_feed_forward, locals())
    h = activate(
        functional.linear(x, weights.gate, _cast(weights.gate_bias, x)), options.activation
    )
    if weights.up is not None:
        h = h * functional.linear(x, weights.up, _cast(weights.up_bias, x))
    if options.penalty:
        h = _Penalized.apply(h, options.penalty)  # type: ignore[no-untyped-call]
    return functional.linear(h, weights.down.t(), _cast(weights.down_bias, x)), h


def _cast(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _find(x: Tensor, weights: Weights, options: Options) -> LiveGate:
    gate = weights.gate.detach().contiguous()
    bias = None if weights.gate_bias is None else weights.gate_bias.detach()
    if options.gate == "int8" and x.dtype != torch.float64:
        return int8_gate(x, gate, bias, options.slack)
    return float_gate(x, gate, bias, options.expected)


def _sums(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(kernels.sums_dtype(x.dtype))


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
        pairs, g = live.pairs, live.values
        x, down = x.contiguous(), down.contiguous()
        h = activate(g, options.activation)
        u = None
        if up is not None:
            up = up.contiguous()
            u = kernels.sample(pairs, x, up, _sums(up_bias, x))
            h = h * u
        y = kernels.scatter(pairs, down, h)
        if down_bias is not None:
            y += down_bias.to(y.dtype)
        ctx.save_for_backward(x, gate, up, down, pairs.indptr, pairs.tokens, g, u)
        ctx.pairs, ctx.options = pairs[2:], options
        ctx.bias_dtypes = [b if b is None else b.dtype for b in (gate_bias, up_bias, down_bias)]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, indptr, tokens, g, u = ctx.saved_tensors
        pairs, options = Pairs(indptr, tokens, *ctx.pairs), ctx.options
        need_x, *need = ctx.needs_input_grad[:7]
        dy = grad_output.contiguous()
        a = activate(g, options.activation)
        h = a if u is None else a * u
        dh = kernels.sample(pairs, dy, down)
        if options.penalty:
            dh.add_(h.sign(), alpha=options.penalty / pairs.batch)
        du = None if u is None else dh * a
        dg = _activation_gradient(dh if u is None else dh * u, g, options.activation)
        dx = kernels.scatter(pairs, gate.contiguous(), dg, up, du) if need_x else None
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if any(need[:3]):
            empty = torch.empty_like if options.memory is None else options.memory.empty_like
            out = (empty(gate), None if up is None else empty(up), empty(down))
            kernels.accumulate(pairs, x, dy, dg, du, h, out)
            grads = out
        sums = (
            kernels.sum_neurons(pairs, dg) if need[3] else None,
            kernels.sum_neurons(pairs, du) if need[4] and du is not None else None,
            dy.sum(0) if need[5] else None,
        )
        biases = [s if s is None else s.to(t) for s, t in zip(sums, ctx.bias_dtypes, strict=True)]
        return dx, *grads, *biases, None, None


class _Penalized(Function):
    """h, whose gradient gets that of strength * mean over rows of sum |h|."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(h)
        ctx.strength = strength / (h.numel() // h.shape[-1])
        return h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (h,) = ctx.saved_tensors
        return grad + ctx.strength * h.sign(), None


__all__ = [
    "Activation",
    "Counts",
    "Options",
    "Weights",
    "activate",
    "dense_feed_forward",
    "feed_forward_at",
    "sparse_feed_forward",
]
