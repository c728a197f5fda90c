"""Implicit differentiation of transport: torch.ops.gossamer.{ot_potentials, ot_laplacian}.

    ot_potentials   (C, a, b, reg) -> (f, g), of the plan P = exp((f + g - C) / reg)
    ot_laplacian    (P, q, s, t) -> z, H z = q with H = [[diag(P 1) + s, P], [P', diag(P' 1) + t]]

With cotangents q = (q_f, q_g) of the potentials: dL/dC = P (z_i + z_j), dL/da = reg z. The backward
of ot_laplacian is ot_laplacian again; the rest is torch arithmetic on P. Derivatives of any order
follow. Every tensor has a leading batch dimension.

Reference:
    Luise, Rudi, Pontil & Ciliberto 2018, "Differential Properties of Sinkhorn Approximation for
    Learning with Wasserstein Distance".
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ConvergenceWarning, GossamerError
from gossamer.ot import core
from gossamer.ot.plans import core_cost, log_plan, masked, pairwise, register
from gossamer.ot.problem import check_values

_PATIENCE = 20  # sweeps without progress
_DIRECT = 1024  # most unknowns for the direct solver
STATUSES = ("converged", "max_iter", "stalled")
_PACKAGE = Path(__file__).parents[1]
Grads = tuple[Tensor | None, ...]


def warn(message: str) -> None:
    """Issue a ConvergenceWarning at the line that called the library."""
    inside = tuple(f"{folder}{os.sep}" for folder in (_PACKAGE, Path(torch.__file__).parent))
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ConvergenceWarning, stacklevel=level)


# ot_potentials


def _potentials_cpu(
    cost: Tensor,
    y: Tensor | None,
    metric: str,
    a: Tensor,
    b: Tensor,
    reg: Tensor,
    f0: Tensor | None,
    g0: Tensor | None,
    rho_a: float,
    rho_b: float,
    method: str,
    tol: float,
    max_iter: int,
    omega: float,
    ridge: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rho = (rho_a, rho_b)
    check_values(cost, y, metric, a, b, reg, rho, (f0, g0))
    if rho == (math.inf, math.inf):
        b = b * (a.sum(1) / b.sum(1))[:, None]  # equal masses to rounding, not to the tolerance
    a, b = a.contiguous(), b.contiguous()
    options = core.Options(method, tol, max_iter, omega)
    if method == "symmetric":
        items = ((core_cost(cost, y, metric, i), a[i], r) for i, r in enumerate(reg.tolist()))
        solved = [_solve_symmetric(*item, options) for item in items]
    elif y is None and len(a) > 1:
        warm = None if f0 is None or g0 is None else (f0.contiguous(), g0.contiguous())
        whole = cost.contiguous()
        solved = core.solve_dual_batch(whole, a, b, reg.tolist(), options, rho=rho, warm=warm)
    else:
        solved = []
        for i, r in enumerate(reg.tolist()):
            warm = None if f0 is None or g0 is None else (f0[i].contiguous(), g0[i].contiguous())
            item = core_cost(cost, y, metric, i)
            solved.append(core.solve_dual(item, a[i], b[i], r, options, rho=rho, warm=warm))
    f, g = torch.stack([s.f for s in solved]), torch.stack([s.g for s in solved])
    f = _fill(f, g, a, b, cost, y, metric, reg, rho_a)
    g = _fill(g, f, b, a, cost if y is not None else cost.mT, y, metric, reg, rho_b, swap=True)
    _report(solved, options)
    stats = [
        (
            STATUSES.index(s.status),
            s.sweeps,
            s.newton,
            s.cg,
            s.passes,
            s.error,
            s.method == "newton",
            *s.errors,
            *[-1.0] * (core.HISTORY - len(s.errors)),  # no error: a NaN equals nothing
        )
        for s in solved
    ]
    return f, g, torch.tensor(stats, dtype=torch.float64)


def _solve_symmetric(
    cost: core.Cost, a: Tensor, reg: float, options: core.Options
) -> core.Solution:
    """Solve a cloud against itself, f = g, by f <- (f + reg log a - reg LSE((f - C) / reg)) / 2.

    Each sweep halves the error if exp(-C / reg) is positive definite, as for the metrics here
    (Feydy et al. 2019). Other sweeps barely progress once the plan is nearly diagonal.
    """
    full = a > 0
    f, best, since = torch.zeros_like(a), math.inf, 0
    status, sweeps, error = "max_iter", 0, math.inf
    while sweeps < options.max_iter:
        sweeps += 1
        rows, _, _ = core.reduce_plan(cost, masked(f, a), masked(f, a), reg)
        error = 2 * float((rows - a).abs().sum())
        since = 0 if error < best else since + 1
        best = min(best, error)
        if error <= options.tol or since == _PATIENCE:
            status = "converged" if error <= options.tol else "stalled"
            break
        ratio = torch.where(full, a, 1.0) / torch.where(full, rows, 1.0)
        f = f + 0.5 * reg * ratio.log()
    return core.Solution(f, f.clone(), status, sweeps, 0, 0, sweeps, error, "sinkhorn")


def _fill(
    f: Tensor,
    g: Tensor,
    a: Tensor,
    b: Tensor,
    cost: Tensor,
    y: Tensor | None,
    metric: str,
    reg: Tensor,
    rho: float,
    swap: bool = False,
) -> Tensor:
    """The potential f with the c-transform of g at entries without mass: dV/d(mass) there."""
    f = f.clone()
    for i in (a == 0).any(1).nonzero().flatten().tolist():
        empty, full = a[i] == 0, b[i] > 0
        if y is None:
            c = cost[i][empty][:, full].double()
        else:
            left, right = (y[i], cost[i]) if swap else (cost[i], y[i])
            c = pairwise(left[empty], right[full], metric)
        r = float(reg[i])
        damp = 1.0 if rho == math.inf else rho / (rho + r)
        log_sum = torch.logsumexp((g[i, full] - c) / r, 1)
        f[i, empty] = torch.where(log_sum > -math.inf, -damp * r * log_sum, 0.0)
    return f


def _report(solved: list[core.Solution], options: core.Options) -> None:
    failed = [(i, s) for i, s in enumerate(solved) if s.status != "converged"]
    if not failed:
        return
    i, worst = max(failed, key=lambda pair: pair[1].error)
    many = f"{len(failed)} of {len(solved)} problems, the worst being number {i}: "
    if len(solved) == 1:
        many = ""
    if worst.status == "max_iter":
        what = f"max_iter={options.max_iter} was reached"
        advice = "raise max_iter, use method='newton', raise reg or loosen tol"
    else:
        what = "the error stopped falling (the limit of float64's precision)"
        advice = "loosen tol, raise reg, rescale the cost, or make fewer costs infinite"
    warn(
        f"transport did not converge: {many}marginal error {worst.error:.3g}, tol is "
        f"{options.tol:g}; "
        f"{what}: {advice}. The best result found is returned."
    )


def _potentials_fake(
    cost: Tensor, y: Tensor | None, metric: str, a: Tensor, b: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), a.new_empty(a.shape[0], 7 + core.HISTORY)


def _potentials_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cost, y, _, a, b, reg, _, _, *ctx.rho, _, _, _, _, ctx.ridge = inputs
    f, g, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(cost, y, a, b, reg, f, g)


def _potentials_backward(ctx: Any, q_f: Tensor | None, q_g: Tensor | None, _: Any) -> Grads:
    if q_f is None and q_g is None:
        return (None,) * 15
    cost, y, a, b, reg, f, g = ctx.saved_tensors
    if y is not None:
        raise GossamerError(
            "a gradient was requested of the potentials or the plan of a lazy cost; only the value "
            "is differentiable, and only once: pass lazy=False, or solve the cost matrix"
        )
    masses, potentials = (a, b), (masked(f, a), masked(g, b))
    q = [
        torch.zeros_like(w) if c is None else torch.where(w > 0, c, 0.0)
        for c, w in zip((q_f, q_g), masses, strict=True)
    ]
    logs = log_plan(cost, reg, *potentials)
    plan = logs.exp()
    sums = (plan.sum(2), plan.sum(1))
    shifts = [
        None if rho == math.inf else s * (reg / rho)[:, None]
        for s, rho in zip(sums, ctx.rho, strict=True)
    ]
    z_f, z_g = torch.ops.gossamer.ot_laplacian(plan, *q, *shifts, ctx.ridge)
    grad_cost = grad_reg = None
    if ctx.needs_input_grad[0]:
        grad_cost = (plan * (z_f[:, :, None] + z_g[:, None, :])).to(cost.dtype)
    grad_a, grad_b = (
        _grad_mass(z, w, s, reg, rho)
        for z, w, s, rho in zip((z_f, z_g), masses, sums, ctx.rho, strict=True)
    )
    if ctx.needs_input_grad[5]:
        entropy = plan * logs
        grad_reg = (z_f * entropy.sum(2)).sum(1) + (z_g * entropy.sum(1)).sum(1)
        for z, w, shift in zip((z_f, z_g), masses, shifts, strict=True):
            if shift is not None:
                grad_reg = grad_reg + (z * shift * torch.where(w > 0, w, 1.0).log()).sum(1)
    return grad_cost, None, None, grad_a, grad_b, grad_reg, *(None,) * 9


def _grad_mass(z: Tensor, weights: Tensor, sums: Tensor, reg: Tensor, rho: float) -> Tensor:
    """dL/da of (P 1)_i = a_i (balanced), or log (P 1)_i = (1 + reg/rho) log a_i - f_i / rho.

    It is 0 at entries without mass, because z is 0 there.
    """
    grad = z * reg[:, None]
    if rho != math.inf:
        ratio = sums / torch.where(weights > 0, weights, 1.0)
        grad = grad * (1 + reg / rho)[:, None] * ratio
    return grad


# ot_laplacian


def _laplacian_cpu(
    plan: Tensor,
    q_f: Tensor,
    q_g: Tensor,
    shift_f: Tensor | None,
    shift_g: Tensor | None,
    ridge: float,
) -> tuple[Tensor, Tensor]:
    z_f, z_g = torch.zeros_like(q_f), torch.zeros_like(q_g)
    for i in range(len(plan)):
        s, t = (shift if shift is None else shift[i] for shift in (shift_f, shift_g))
        z_f[i], z_g[i] = solve_laplacian(plan[i], q_f[i], q_g[i], s, t, ridge)
    return z_f, z_g


def solve_laplacian(
    plan: Tensor,
    q_f: Tensor,
    q_g: Tensor,
    shift_f: Tensor | None = None,
    shift_g: Tensor | None = None,
    ridge: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The minimum-norm z of H z = q for one plan, dense or CSR; 0 at empty rows and columns.

    Without shifts H has the null vector (1, -1); q is projected onto its complement.
    """
    if plan.layout == torch.sparse_csr:
        columns = plan.col_indices()
        rows = plan.crow_indices().diff() > 0
        cols = torch.zeros(plan.shape[1], dtype=torch.bool).index_fill_(0, columns, True)
        pointers = torch.cat([plan.crow_indices()[:1], plan.crow_indices()[1:][rows]])
        packed = torch.sparse_csr_tensor(
            pointers,
            (cols.cumsum(0) - 1)[columns],
            plan.values(),
            (int(rows.sum()), int(cols.sum())),
            check_invariants=False,
        )
    else:
        rows, cols = plan.sum(1) > 0, plan.sum(0) > 0
        packed = plan if bool(rows.all()) and bool(cols.all()) else plan[rows][:, cols]
        packed = packed.contiguous()
    p, q = q_f[rows], q_g[cols]
    if shift_f is None and shift_g is None:
        off = (p.sum() - q.sum()) / (len(p) + len(q))
        p, q = p - off, q + off
    s, t = (
        None if w is None else w[keep].contiguous()
        for w, keep in ((shift_f, rows), (shift_g, cols))
    )
    x, y, report = core.laplacian_solve(packed, p, q, shift_f=s, shift_g=t, ridge=ridge)
    if not report.converged and len(p) + len(q) <= _DIRECT:
        x, y = _solve_direct(packed, p, q, s, t, ridge)
    elif not report.converged:
        warn(
            f"the gradient's linear system has a relative residual of {report.residual:.3g} after "
            f"{report.iterations} iterations, and is not converged: raise reg, or set ridge=, "
            "such as 1e-10"
        )
    return torch.zeros_like(q_f).masked_scatter(rows, x), torch.zeros_like(q_g).masked_scatter(
        cols, y
    )


def _solve_direct(
    plan: Tensor, p: Tensor, q: Tensor, s: Tensor | None, t: Tensor | None, ridge: float
) -> tuple[Tensor, Tensor]:
    """Solve by eigenvectors when conjugate gradients fail on a plan that nearly splits into blocks.

    Directions below the precision are dropped: they shift whole blocks, which barely changes
    P (z_i + z_j).
    """
    dense = plan if plan.layout == torch.strided else plan.to_dense()
    diagonals = [(1 + ridge) * sums + (0 if w is None else w) for sums, w in (
        (dense.sum(1), s), (dense.sum(0), t)
    )]  # fmt: skip
    scale = torch.cat(diagonals).rsqrt()
    upper = dense * scale[: len(p), None] * scale[len(p) :]
    zero = upper.new_zeros
    rows, cols = upper.shape
    size = rows + cols
    left, right = torch.cat([zero(rows, rows), upper.T]), torch.cat([upper, zero(cols, cols)])
    matrix = torch.cat([left, right], 1)
    values, vectors = torch.linalg.eigh(matrix + torch.eye(size, dtype=torch.float64))
    weights = torch.where(values > 1e-14 * size, 1 / values, 0.0)
    z = scale * (vectors @ (weights * (vectors.T @ (scale * torch.cat([p, q])))))
    x, y = z[:rows], z[rows:]
    if s is None and t is None and ridge == 0:
        off = (x.sum() - y.sum()) / size
        x, y = x - off, y + off
    return x, y


def _laplacian_fake(plan: Tensor, q_f: Tensor, q_g: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_f), torch.empty_like(q_g)


def _laplacian_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    plan, _, _, shift_f, shift_g, ctx.ridge = inputs
    ctx.save_for_backward(plan, shift_f, shift_g, *output)


def _laplacian_backward(ctx: Any, w_f: Tensor, w_g: Tensor) -> Grads:
    plan, shift_f, shift_g, z_f, z_g = ctx.saved_tensors
    u_f, u_g = torch.ops.gossamer.ot_laplacian(plan, w_f, w_g, shift_f, shift_g, ctx.ridge)
    grad_plan = None
    if ctx.needs_input_grad[0]:
        grad_plan = -(u_f[:, :, None] + u_g[:, None, :]) * (z_f[:, :, None] + z_g[:, None, :])
    grad_shift_f = None if shift_f is None else -u_f * z_f
    grad_shift_g = None if shift_g is None else -u_g * z_g
    return grad_plan, u_f, u_g, grad_shift_f, grad_shift_g, None


register(
    "ot_potentials(Tensor cost, Tensor? y, str metric, Tensor a, Tensor b, Tensor reg, Tensor? f0, "
    "Tensor? g0, float rho_a, float rho_b, str method, float tol, int max_iter, float omega, "
    "float ridge) -> (Tensor, Tensor, Tensor)",
    _potentials_cpu,
    _potentials_fake,
    _potentials_context,
    _potentials_backward,
)
register(
    "ot_laplacian(Tensor plan, Tensor q_f, Tensor q_g, Tensor? shift_f, Tensor? shift_g, "
    "float ridge) -> (Tensor, Tensor)",
    _laplacian_cpu,
    _laplacian_fake,
    _laplacian_context,
    _laplacian_backward,
)
