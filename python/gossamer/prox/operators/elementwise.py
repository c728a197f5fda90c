"""Compiled in-place proximal operators per entry, for torch CPU tensors and NumPy arrays.

Each operator finds, per entry, the global minimiser of

    1/2 (z - x)^2 + step * g(z)

for any step. Where the problem is not convex, it takes the better of the two local minimisers, and
the smaller one if both are equal. These functions take numbers only; penalties with names, groups
and schedules are in `gossamer.prox`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from gossamer.backend import check_array
from gossamer.backend import prox as kernels
from gossamer.backend.arrays import WIDE_FLOATS
from gossamer.errors import ShapeError
from gossamer.prox.checks import check_own_places, spread_weights

Array = TypeVar("Array", Tensor, np.ndarray)


class ElementOp(NamedTuple):
    """A compiled operator per entry.

    Attributes:
        kind: the name of a separable penalty, or "box".
        params: its parameters in the order of its class's fields.
        weights: a factor of the penalty per entry, that broadcasts to the entries, or None.
        positive: whether the constraint x >= 0 is added.
    """

    kind: str
    params: tuple[float, ...]
    weights: Tensor | None = None
    positive: bool = False


def in_place(x: Array, operate: Callable[[Array], None]) -> Array:
    """Run `operate` on the entries of `x` as a contiguous vector, and write them back.

    Args:
        x: float32 or float64, any shape and strides.
        operate: changes a contiguous vector in x's dtype in place.

    Returns:
        `x`, with its autograd version incremented, as after any in-place operation of torch.

    Raises:
        DTypeError: `x` is not a float32 or float64 tensor or array.
        ShapeError: `x` is empty, or its entries share memory.
        ArgumentError: `x` is read-only.
    """
    check_array(x, "x", dtypes=WIDE_FLOATS, filled=True, writable=True, numpy=True)
    if isinstance(x, Tensor):
        entries = x.detach()
        if entries.is_contiguous():
            operate(entries.view(-1))
        else:
            check_own_places(x)
            copy = entries.contiguous()
            operate(copy.view(-1))
            entries.copy_(copy)
        torch.autograd.graph.increment_version(x)
        return x
    if not x.flags.c_contiguous:
        check_own_places(x)
    vector = np.ascontiguousarray(x).reshape(-1)
    operate(vector)
    if not x.flags.c_contiguous:
        x[...] = vector.reshape(x.shape)
    return x


def elementwise_(
    x: Array,
    kind: str,
    params: tuple[float, ...],
    step: float | Tensor | np.ndarray = 1.0,
    *,
    positive: bool = False,
) -> Array:
    """Apply the proximal operator of a separable penalty, in place.

    Args:
        x: float32 or float64, any shape and strides.
        kind: the name of a separable penalty, such as "mcp".
        params: the penalty's parameters in the order of its class's fields, `lam` first.
        step: a number, or one per entry in x's shape and dtype (the inverse of a diagonal metric).
        positive: whether the constraint z >= 0 is added.

    Returns:
        `x`. Entries that become zero are exactly +0.0; NaN stays NaN.

    Raises:
        DTypeError: the dtype of `x` is not float32 or float64, or the steps have another dtype.
        ShapeError: `x` is empty, or the steps have another shape.
        ArgumentError: `x` is read-only, the name is unknown, or a parameter or the step is out of
            range.

    Example:
        >>> elementwise_(torch.tensor([3.0, -0.5, 1.0]), "l1", (1.0,))
        tensor([2., 0., 0.])
    """
    if isinstance(step, Tensor | np.ndarray):
        if tuple(step.shape) != tuple(x.shape):
            raise ShapeError(
                f"got steps of shape {tuple(step.shape)} for entries of shape {tuple(x.shape)}; "
                "they must be the same"
            )
        steps: Any = _vector(step)
        return in_place(x, lambda v: kernels.elements(v, kind, params, steps, positive))
    return in_place(x, lambda v: kernels.elements(v, kind, params, float(step), positive))


def _vector(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    if isinstance(x, Tensor):
        return x.detach().contiguous().view(-1)
    return np.ascontiguousarray(x).reshape(-1)


def adamw_step_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    kind: str,
    params: tuple[float, ...],
    weights: Tensor | None = None,
    positive: bool = False,
) -> None:
    """Apply AdamW and the proximal operator in AdamW's metric, in one pass over memory.

    With `D = sqrt(v / (1 - beta2^step)) + eps` each entry has the step size `s = lr / D`. It moves
    by `s` times the gradient estimate `m / (1 - beta1^step)`, and is then shrunk with the same `s`.

    Args:
        param: float32 or float64, any shape; changed in place.
        grad: in param's shape and dtype.
        exp_avg: in param's shape and dtype; changed in place.
        exp_avg_sq: in param's shape and dtype; changed in place.
        lr: the learning rate.
        beta1: decay of `exp_avg`.
        beta2: decay of `exp_avg_sq`.
        eps: added to the root.
        weight_decay: decoupled: the parameter is first scaled by `1 - lr * weight_decay`.
        step: the step's number, from 1.
        kind: the name of a separable penalty, such as "mcp".
        params: the penalty's parameters.
        weights: factors >= 0 of the penalty, one per entry or of a shape that broadcasts.
        positive: whether the constraint param >= 0 is added.

    Raises:
        DTypeError: a dtype is not float32 or float64, or the dtypes differ.
        ShapeError: the shapes differ.

    Reference:
        Loshchilov and Hutter 2019, Algorithm 2; Yun, Lozano and Yang 2021 (ProxGen).
    """
    if not (param.shape == grad.shape == exp_avg.shape == exp_avg_sq.shape):
        raise ShapeError(
            f"got a parameter of shape {tuple(param.shape)}, a gradient {tuple(grad.shape)} and "
            f"moments {tuple(exp_avg.shape)}, {tuple(exp_avg_sq.shape)}; they must be the same"
        )
    factors = None
    if weights is not None:
        largest = torch.finfo(param.dtype).max
        spread = spread_weights(weights, tuple(param.shape)).clamp(max=largest)
        factors = spread.to(param.dtype).contiguous()
    changed = (param, exp_avg, exp_avg_sq)
    inside = [t if t.is_contiguous() else t.detach().contiguous() for t in changed]
    kernels.adamw(
        inside[0].detach().view(-1),
        _vector(grad),
        inside[1].view(-1),
        inside[2].view(-1),
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        lr=lr,
        bias1=1.0 - beta1**step,
        root_bias2=(1.0 - beta2**step) ** 0.5,
        shrink=1.0 - lr * weight_decay,
        kind=kind,
        params=params,
        weights=factors,
        positive=positive,
    )
    for tensor, result in zip(changed, inside, strict=True):
        if result is not tensor:
            tensor.detach().copy_(result)
    torch.autograd.graph.increment_version(changed)
