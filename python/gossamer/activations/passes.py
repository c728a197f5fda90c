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
Former: TypeAlias = Literal["silu", "gelu", "gelu_tanh"]
"""An activation from which a network goes over to ReLU."""
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
    softness: float = 0.0
    """The activation is (1 - softness) act + softness former. Above 0: the dense form only."""
    former: Former | None = None


class Weights(NamedTuple):
    """The weights [hidden, d] and biases; `up` is None without a second factor."""

    gate: Tensor
    up: Tensor | None
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


def former_activation(gate: Tensor, former: Former | None) -> Tensor:
    """Return the activation from which a network goes over to ReLU."""
    if former == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if former == "gelu_tanh" else "none")


def activate(gate: Tensor, options: Options) -> Tensor:
    """Return act(gate)."""
    positive = torch.relu(gate)
    if options.activation == "relu2":
        positive = positive.square()
    if options.softness:
        soft = former_activation(gate, options.former)
        return (1.0 - options.softness) * positive + options.softness * soft
    return positive


def _activation_gradient(grad: Tensor, gate: Tensor, options: Options) -> Tensor:
    """Return grad * act'(gate); torch's rule for what is not positive, and for NaN."""
    aten = torch.ops.aten
    outer = grad * 2 * gate if options.activation == "relu2" else grad
    hard: Tensor = aten.threshold_backward(outer, gate, 0)
    if not options.softness:
        return hard
    if options.former == "silu":
        soft = aten.silu_backward(grad, gate)
    else:
        approximate = "tanh" if options.former == "gelu_tanh" else "none"
        soft = aten.gelu_backward(grad, gate, approximate=approximate)
    return (1.0 - options.softness) * hard + options.softness * soft  # type: ignore[no-any-return]


def mean_of(x: Tensor) -> Tensor:
    """Return the mean token [d] of x [batch, d]; zeros of none."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.detach().sum(0, dtype=dtype) / max(1, len(x))


def pull_dead_(grads: Sequence[Tensor | None], mean: Tensor, dead: Tensor, strength: float) -> None:
    """Add the gradient of -strength * sum over dead neurons of the mean over tokens of the gate.

    Args:
        grads: of the gate's weight [hidden, d] and bias [hidden], or None; they change.
        mean: [d], the mean token.
        dead: int64 [dead neurons].
        strength: in units of the loss per unit of the gate.
    """
    of_weight, of_bias = grads
    if of_weight is not None:
        of_weight[dead] -= (strength * mean).to(of_weight.dtype)
    if of_bias is not None:
        of_bias[dead] -= strength


def _hidden_gradients(
    dh: Tensor, g: Tensor, u: Tensor | None, options: Options, batch: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return h and the gradients of g and u; dh is that of h without the penalty, and changes."""
    a = activate(g, options)
    h = a if u is None else a * u
    if options.penalty:
        dh.add_(h.sign(), alpha=options.penalty / max(1, batch))
    dg = _activation_gradient(dh if u is None else dh * u, g, options)
    return h, dg, None if u is None else dh * a


def sparse_forward(
    x: Tensor, weights: Weights, live: LiveGate, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Return y [batch, d], and u [nnz] at the live pairs; x is contiguous."""
    pairs = live.pairs
    h, u = activate(live.values, options), None
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
    h, u = activate(g, options), None
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
    "Former",
    "Gradients",
    "Options",
    "Weights",
    "activate",
    "cast",
    "dense_backward",
    "dense_forward",
    "former_activation",
    "mean_of",
    "pull_dead_",
    "sparse_backward",
    "sparse_forward",
]
