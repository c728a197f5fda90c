"""The optimal value by the envelope theorem: torch.ops.gossamer.{ot_value, ot_lazy_gradient}.

    KL        V = <C, P> + reg KL(P | a b') + rho_a KL(P 1 | a) + rho_b KL(P' 1 | b)
    entropy   V = <C, P> + reg sum P (log P - 1) + the same penalties

The value is the dual's, whose error is of second order in the error of the potentials. Let
phi(f) = rho (1 - exp(-f / rho)), or f if the marginal is exact. Let f and g denote the potentials
themselves (entropy), or f - reg log a and g - reg log b (KL). Then:

    V = <a, phi(f)> + <b, phi(g)> - reg (sum P - [KL] sum a sum b)
    dV/dC = P      dV/da = phi(f) + [KL] reg (sum b - exp(-f / rho))
    dV/dreg = (<f, P 1> + <g, P' 1> - <C, P>) / reg - (sum P - [KL] sum a sum b)

The gradients use the potentials as differentiable inputs: second derivatives pass through
ot_potentials. A lazy cost is differentiated in tiles, and only once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.ot import core
from gossamer.ot.plans import (
    core_cost,
    linear_cost,
    log_plan,
    masked,
    pairwise,
    register,
    unit,
    wide,
)

# Entries of a tile of a lazy cost: 8 MiB.
_TILE = 2**20


def _value_cpu(
    cost: Tensor,
    y: Tensor | None,
    metric: str,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    f: Tensor,
    g: Tensor,
    rho_a: float,
    rho_b: float,
    kl: bool,
) -> Tensor:
    total = torch.empty_like(reg)
    for i, r in enumerate(reg.tolist()):
        item = core_cost(cost, y, metric, i)
        rows, _, _ = core.reduce_plan(item, masked(f[i], a[i]), masked(g[i], b[i]), r)
        total[i] = rows.sum()
    gain_a = (a * _phi(_reference(f, a, reg, kl), rho_a)).sum(1)
    gain_b = (b * _phi(_reference(g, b, reg, kl), rho_b)).sum(1)
    return gain_a + gain_b - reg * (total - _product(a, b, kl))


def _phi(potential: Tensor, rho: float) -> Tensor:
    return potential if rho == math.inf else -rho * torch.expm1(-potential / rho)


def _reference(potential: Tensor, weights: Tensor, reg: Tensor, kl: bool) -> Tensor:
    """The potential in the objective's own form; at weight 0 it already has the KL form."""
    if not kl:
        return potential
    return potential - reg[:, None] * torch.where(weights > 0, weights, 1.0).log()


def _product(a: Tensor, b: Tensor, kl: bool) -> Tensor | float:
    return a.sum(1) * b.sum(1) if kl else 0.0


def _value_fake(cost: Tensor, *rest: Any) -> Tensor:
    reg: Tensor = rest[4]
    return torch.empty_like(reg)


def _value_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cost, y, ctx.metric, a, b, reg, f, g, rho_a, rho_b, ctx.kl = inputs
    ctx.rho = (rho_a, rho_b)
    ctx.save_for_backward(cost, y, a, b, reg, f, g)


def _value_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cost, y, a, b, reg, f, g = ctx.saved_tensors
    f_plan, g_plan = masked(f, a), masked(g, b)
    need_cost, need_y, _, need_a, need_b, need_reg = ctx.needs_input_grad[:6]
    grad_cost = grad_y = grad_a = grad_b = grad_reg = None
    sums: Any = None
    if need_cost or need_y or need_reg:
        if y is None:
            plan = log_plan(cost, reg, f_plan, g_plan).exp()
            grad_cost = grad[:, None, None] * plan
            if need_reg:
                sums = (plan.sum(2), plan.sum(1), linear_cost(plan, cost))
        else:
            by_x, by_y, *sums = torch.ops.gossamer.ot_lazy_gradient(
                cost, y, ctx.metric, reg, f_plan, g_plan
            )
            grad_cost, grad_y = (grad[:, None, None] * by for by in (by_x, by_y))
    refs = [_reference(p, w, reg, ctx.kl) for p, w in ((f, a), (g, b))]
    if need_a:
        grad_a = grad[:, None] * _by_weight(refs[0], ctx.rho[0], reg, b, ctx.kl)
    if need_b:
        grad_b = grad[:, None] * _by_weight(refs[1], ctx.rho[1], reg, a, ctx.kl)
    if need_reg:
        rows, cols, linear = sums
        pairing = (refs[0] * rows).sum(1) + (refs[1] * cols).sum(1) - linear
        grad_reg = grad * (pairing / reg - rows.sum(1) + _product(a, b, ctx.kl))
    if grad_cost is not None:
        grad_cost = grad_cost.to(cost.dtype)
    return grad_cost, grad_y, None, grad_a, grad_b, grad_reg, *(None,) * 5


def _by_weight(potential: Tensor, rho: float, reg: Tensor, other: Tensor, kl: bool) -> Tensor:
    grad = _phi(potential, rho)
    if not kl:
        return grad
    return grad + reg[:, None] * (other.sum(1, keepdim=True) - (-potential / rho).exp())


# ot_lazy_gradient: sum_j P_ij dc(x_i, y_j)/dx_i, the same for y, the plan's sums and <C, P>


def _lazy_cpu(
    x: Tensor, y: Tensor, metric: str, reg: Tensor, f: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    by_x, by_y = torch.empty_like(x), torch.zeros_like(y)
    rows, cols, linear = torch.empty_like(f), torch.zeros_like(g), torch.zeros_like(reg)
    for i in range(len(x)):
        for tile in _tiles(x.shape[1], y.shape[1] * (x.shape[2] if wide(metric) else 1)):
            cost = pairwise(x[i, tile], y[i], metric)
            plan = ((f[i, tile, None] + g[i] - cost) / reg[i]).exp()
            rows[i, tile] = plan.sum(1)
            cols[i] += plan.sum(0)
            linear[i] += (plan * cost).sum()
            pulled_x, pulled_y = _pull(plan, x[i, tile], y[i], metric)
            by_x[i, tile] = pulled_x
            by_y[i] += pulled_y
    return by_x, by_y, rows, cols, linear


def _tiles(rows: int, width: int) -> Iterator[slice]:
    height = max(1, _TILE // width)
    return (slice(start, start + height) for start in range(0, rows, height))


def _pull(plan: Tensor, x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Pull the cotangent `plan` of the cost matrix back to x and y."""
    if metric == "l1":
        signs = (x[:, None] - y).sign() * plan[:, :, None]
        return signs.sum(1), -signs.sum(0)
    if metric == "euclidean":
        gaps = x[:, None] - y
        far = torch.linalg.vector_norm(gaps, dim=-1)
        pulled = gaps * torch.where(far > 0, plan / torch.where(far > 0, far, 1.0), 0.0)[:, :, None]
        return pulled.sum(1), -pulled.sum(0)
    if metric == "cosine":
        ux, uy = unit(x), unit(y)
        by_x, by_y = -(plan @ uy), -(plan.T @ ux)
        return _across(by_x, ux, x), _across(by_y, uy, y)
    return (
        2 * (plan.sum(1, keepdim=True) * x - plan @ y),
        2 * (plan.sum(0)[:, None] * y - plan.T @ x),
    )


def _across(grad: Tensor, direction: Tensor, x: Tensor) -> Tensor:
    """The backward of x / |x|: the part of grad orthogonal to the direction, over the length."""
    along = (grad * direction).sum(1, keepdim=True) * direction
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return (grad - along) / length


def _lazy_fake(
    x: Tensor, y: Tensor, metric: str, reg: Tensor, f: Tensor, g: Tensor
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, y, f, g, reg))


def _lazy_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save nothing: the backward raises."""


def _lazy_backward(ctx: Any, *grads: Any) -> Any:
    raise GossamerError(
        "a second derivative was requested of a lazy cost, which has only the first: pass "
        "lazy=False, or solve the cost matrix"
    )


register(
    "ot_value(Tensor cost, Tensor? y, str metric, Tensor a, Tensor b, Tensor reg, Tensor f, "
    "Tensor g, float rho_a, float rho_b, bool kl) -> Tensor",
    _value_cpu,
    _value_fake,
    _value_context,
    _value_backward,
)
register(
    "ot_lazy_gradient(Tensor x, Tensor y, str metric, Tensor reg, Tensor f, Tensor g) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    _lazy_cpu,
    _lazy_fake,
    _lazy_context,
    _lazy_backward,
)
