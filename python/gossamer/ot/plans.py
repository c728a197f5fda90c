"""Plans P = exp((f + g - C) / reg) and costs C of points in torch arithmetic, and op registration.

Every tensor has a leading batch dimension.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.ot import core

# The potential used for a row without mass: its plan is exactly 0, without NaN.
_ABSENT = -1e280
_LIBRARY = torch.library.Library("gossamer", "FRAGMENT")  # type: ignore[no-untyped-call]
_define: Callable[[str], object] = _LIBRARY.define
_impl: Callable[..., object] = _LIBRARY.impl

# torch warns once per process that CSR tensors are beta; a caller cannot act on that.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


def masked(potential: Tensor, weights: Tensor) -> Tensor:
    """The potential; at entries without mass, a value whose plan is exactly 0."""
    return torch.where(weights > 0, potential, _ABSENT)


def log_plan(cost: Tensor, reg: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """(f + g - C) / reg [B, rows, cols], the logarithm of the plan; f and g come from `masked`.

    At infinite costs it is a number whose exponential is exactly 0: 0 * infinity would be NaN.
    """
    forbidden = cost == math.inf
    logs = (f[:, :, None] + g[:, None, :] - cost.masked_fill(forbidden, 0.0)) / reg[:, None, None]
    return logs.masked_fill(forbidden, _ABSENT)


def linear_cost(plan: Tensor, cost: Tensor) -> Tensor:
    """The sum of plan * cost [B]; a pair of infinite cost has no mass and costs nothing."""
    return (plan * cost.masked_fill(cost == math.inf, 0.0)).sum((1, 2))


def pairwise(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The cost matrix of points [..., rows, d] and [..., cols, d], twice differentiable."""
    if metric == "l1":
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).abs().sum(-1)
    if metric == "euclidean":
        # By differences: a distance has half the digits of its square. Its gradient at 0 is 0.
        far = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
        return torch.where(far > 0, torch.where(far > 0, far, 1.0).sqrt(), 0.0)
    if metric == "cosine":
        return 1 - unit(x) @ unit(y).mT
    # Centre first: the squares cancel least for points around 0.
    centre = y.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    return squares - 2 * (x @ y.mT)


def wide(metric: str) -> bool:
    """Whether `pairwise` stores a number per pair and coordinate."""
    return metric in ("l1", "euclidean")


def unit(x: Tensor) -> Tensor:
    """Points scaled to length 1."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length


def core_cost(cost: Tensor, y: Tensor | None, metric: str, item: int) -> core.Cost:
    """The cost of one problem of the batch, in the form that `core` takes."""
    if y is None:
        return cost[item].contiguous()
    return core.Points(cost[item].contiguous(), y[item].contiguous(), metric)


def register(
    schema: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Declare torch.ops.gossamer.<name>: CPU and fake kernels, autograd rule, error under vmap."""
    name = schema.partition("(")[0]
    op = f"gossamer::{name}"
    _define(schema)
    _impl(name, cpu, "CPU")
    torch.library.register_fake(op, fake, lib=_LIBRARY)
    torch.library.register_autograd(op, backward, setup_context=context, lib=_LIBRARY)

    def refuse(info: Any, in_dims: Any, *args: Any) -> Any:
        raise GossamerError(
            "gossamer.ot was called under vmap, which it does not support; give the whole batch "
            "[B, rows, cols] in one call"
        )

    torch.library.register_vmap(op, refuse, lib=_LIBRARY)
