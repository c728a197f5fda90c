"""The two passes of a feed-forward network as plain functions: at live pairs, and dense.

Each forward pass returns what its backward pass needs; autograd is around them, in `functions` for
eager calls and in an operator for compiled ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from gossamer.activations.gate import GateForm, LiveGate
from gossamer.activations.memory import GradientMemory
from gossamer.backend import activations as kernels

Activation: TypeAlias = Literal["relu", "relu2"]
Gradients: TypeAlias = tuple[Tensor | None, ...]
"""Of x and of the six `Weights`, None where one is not wanted; those of biases are sums."""


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


def _hidden_gradients(
    dh: Tensor, g: Tensor, u: Tensor | None, options: Options, batch: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return h and the gradients of g and u; dh is that of h without the penalty, and changes."""
    a = activate(g, options.activation)
    h = a if u is None else a * u
    if options.penalty:
        dh.add_(h.sign(), alpha=options.penalty / max(1, batch))
    dg = _activation_gradient(dh if u is None else dh * u, g, options.activation)
    return h, dg, None if u is None else dh * a


def sparse_forward(
    x: Tensor, weights: Weights, live: LiveGate, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Return y [batch, d], and u [nnz] at the live pairs; x is contiguous."""
    pairs = live.pairs
    h, u = activate(live.values, options.activation), None
    if weights.up is not None:
        bias = weights.up_bias
        sums = None if bias is None else bias.to(kernels.sums_dtype(x.dtype))
        u = kernels.sample(pairs, x, weights.up.contiguous(), sums)
        h = h * u
    y = kernels.scatter(pairs, weights.down.contiguous(), h)
    if weights.down_bias is not None:
        y += weights.down_bias.to(y.dtype)
    return y, u


def sparse_backward(
    grad_output: Tensor,
    x: Tensor,
    weights: Weights,
    live: LiveGate,
    u: Tensor | None,
    options: Options,
    needs: Sequence[bool],
) -> Gradients:
    """Return the gradients; `needs` says which of x and the weights want one."""
    pairs, need_x, need = live.pairs, needs[0], needs[1:]
    dy, down = grad_output.contiguous(), weights.down.contiguous()
    gate = weights.gate.contiguous()
    up = None if weights.up is None else weights.up.contiguous()
    dh = kernels.sample(pairs, dy, down)
    h, dg, du = _hidden_gradients(dh, live.values, u, options, pairs.batch)
    dx = kernels.scatter(pairs, gate, dg, up, du) if need_x else None
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if any(need[:3]):
        empty = torch.empty_like if options.memory is None else options.memory.empty_like
        out = (empty(gate), None if up is None else empty(up), empty(down))
        kernels.accumulate(pairs, x, dy, dg, du, h, out)
        grads = out
    sums = (
        kernels.sum_neurons(pairs, dg) if need[3] else None,
        kernels.sum_neurons(pairs, du) if need[4] and du is not None else None,
        dy.sum(0, dtype=dh.dtype) if need[5] else None,
    )
    return dx, *grads, *sums


def dense_forward(
    x: Tensor, weights: Weights, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return y [batch, d], and h, g and u [batch, hidden]."""
    g = functional.linear(x, weights.gate, cast(weights.gate_bias, x))
    h, u = activate(g, options.activation), None
    if weights.up is not None:
        u = functional.linear(x, weights.up, cast(weights.up_bias, x))
        h = h * u
    return functional.linear(h, weights.down.t(), cast(weights.down_bias, x)), h, g, u


def dense_backward(
    grad_output: Tensor,
    x: Tensor,
    weights: Weights,
    g: Tensor,
    u: Tensor | None,
    options: Options,
    needs: Sequence[bool],
) -> Gradients:
    """Return the gradients by torch's products; `needs` as in `sparse_backward`."""
    need_x, *need = needs
    dy = grad_output
    h, dg, du = _hidden_gradients(dy @ weights.down.t(), g, u, options, len(x))
    dx = None
    if need_x:
        dx = dg @ weights.gate
        if weights.up is not None and du is not None:
            dx.addmm_(du, weights.up)
    grads = (
        dg.t() @ x if need[0] else None,
        du.t() @ x if need[1] and du is not None else None,
        h.t() @ dy if need[2] else None,
    )
    dtype = kernels.sums_dtype(x.dtype)
    sums = (
        dg.sum(0, dtype=dtype) if need[3] else None,
        du.sum(0, dtype=dtype) if need[4] and du is not None else None,
        dy.sum(0, dtype=dtype) if need[5] else None,
    )
    return dx, *grads, *sums


def cast(bias: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a bias in the dtype of x."""
    return None if bias is None else bias.to(x.dtype)


__all__ = [
    "Activation",
    "Gradients",
    "Options",
    "Weights",
    "activate",
    "cast",
    "dense_backward",
    "dense_forward",
    "sparse_backward",
    "sparse_forward",
]
