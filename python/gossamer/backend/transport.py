"""Optimal transport: the solvers in float64, on contiguous tensors.

A cost is ("dense", C [rows, cols]) or (metric, x [rows, d], y^T [d, cols]); potentials are in units
of the regularisation (u = f / reg). The names follow `gossamer.ot`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.backend.arrays import tensor_of
from gossamer.backend.registry import module_of

CostArguments = tuple[Any, ...]
SolveReport = tuple[str, str, int, int, int, float, float, list[float]]
ColumnPlan = tuple[Tensor, Tensor, Tensor]


def solve(
    cost: CostArguments,
    items: int,
    a: Tensor,
    b: Tensor,
    regs: Tensor,
    scales: Tensor,
    rho: tuple[float, float],
    method: str,
    tol: float,
    max_iter: int,
    omega: float,
    warm: bool,
    u: Tensor,
    v: Tensor,
) -> list[SolveReport]:
    """Solve entropic problems of one size.

    Args:
        cost: The cost; the rows of a batch of dense costs are stacked.
        items: Number of problems.
        a: [items * rows], row marginals.
        b: [items * cols], column marginals.
        regs: [items], strengths of the entropy.
        scales: [items], ranges of the costs, where annealing starts.
        rho: Strengths of the marginal penalties; infinite for exact marginals.
        method: "auto", "sinkhorn", "newton" or "published".
        tol: L1 error of both marginals at which to stop; 0 with "sinkhorn": after max_iter sweeps.
        max_iter: Cap on sweeps and Newton steps together.
        omega: Over-relaxation of Sinkhorn's updates.
        warm: Whether u and v hold a start.
        u: [items * rows], row potentials; overwritten.
        v: [items * cols], column potentials; overwritten.

    Returns:
        Per problem: status, method that ended, sweeps, Newton steps, conjugate-gradient
        iterations, passes, error, and the errors of at most 64 evenly spaced iterations.
    """
    reports: list[SolveReport] = module_of(a).transport.solve(
        cost, items, a, b, regs, scales, *rho, method, tol, max_iter, omega, warm, u, v
    )
    return reports


def plan(cost: CostArguments, reg: float, u: Tensor, v: Tensor) -> Tensor:
    """Return the plan [rows, cols] at the potentials u [rows] and v [cols]."""
    out = u.new_empty(len(u), len(v))
    module_of(u).transport.plan(cost, reg, u, v, out)
    return out


def sums(cost: CostArguments, reg: float, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plan's sums [rows] and [cols] and the costs per row [rows]; it is never stored."""
    rows, row_cost = u.new_empty(2, len(u))
    cols = v.new_empty(len(v))
    module_of(u).transport.sums(cost, reg, u, v, rows, cols, row_cost)
    return rows, cols, row_cost


def entries(
    cost: CostArguments, reg: float, u: Tensor, v: Tensor, sqrt_b: Tensor, relative: float
) -> ColumnPlan:
    """Return the plan's large entries in CSR form: indptr int64, indices int32 and values."""
    indptr, indices, values = module_of(u).transport.entries(cost, reg, u, v, sqrt_b, relative)
    return tensor_of(indptr), tensor_of(indices), tensor_of(values)


def schur_solve(
    indptr: Tensor,
    cols: Tensor,
    values: Tensor,
    rest: Tensor,
    column: Tensor,
    singular: bool,
    rhs: Tensor,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, tuple[bool, int, float]]:
    """Solve the system of the row potentials after elimination of the columns.

    Args:
        indptr: int64 [rows + 1], rows of the plan in CSR form.
        cols: int32 [entries].
        values: float64 [entries].
        rest: float64 [rows], added to the diagonal.
        column: float64 [cols], diagonal of the columns.
        singular: Whether the constant vector is in the null space.
        rhs: float64 [rows].
        tol: Relative L1 residual at which to stop.
        max_iter: Cap on conjugate-gradient iterations.

    Returns:
        The solution [rows], and whether it converged, its iterations and its residual.
    """
    z = torch.empty_like(rhs)
    report = module_of(rhs).transport.schur_solve(
        indptr, cols, values, rest, column, singular, rhs, tol, max_iter, z
    )
    return z, report


def sinkhorn_small(scores: Tensor, a: Tensor, b: Tensor, iterations: int) -> Tensor:
    """Return the plans [problems, rows, cols] of scores of that shape, float32 or float64."""
    plan = torch.empty_like(scores)
    module_of(scores).transport.sinkhorn_small(scores, a, b, iterations, plan)
    return plan


def sinkhorn_small_backward(
    scores: Tensor, a: Tensor, b: Tensor, iterations: int, grad: Tensor
) -> Tensor:
    """Return the gradient for the scores, of that for the plans; both [problems, rows, cols]."""
    out = torch.empty_like(scores)
    module_of(scores).transport.sinkhorn_small_backward(scores, a, b, iterations, grad, out)
    return out


def semidual_solve(
    cost_t: Tensor,
    a: Tensor,
    b: Tensor,
    k: int,
    gamma: float,
    f: Tensor,
    newton: bool,
    tol: float,
    max_iter: int,
) -> tuple[str, int, int, int, float, float, Tensor, Tensor, ColumnPlan]:
    """Maximise the semi-dual of transport with at most k entries per column.

    Args:
        cost_t: [cols, rows], float32 or float64: the transposed cost.
        a: float64 [rows].
        b: float64 [cols].
        k: Entries that a column may have.
        gamma: Strength of the quadratic term.
        f: float64 [rows], where to start.
        newton: Whether Newton steps are taken, instead of L-BFGS.
        tol: Absolute L1 error of the rows at which to stop.
        max_iter: Cap on steps.

    Returns:
        Status, iterations, Newton steps, evaluations, value, error, f, g, and the plan by columns
        (indptr int64 [cols + 1], row int32, mass float64).
    """
    *report, f, g, columns = module_of(cost_t).transport.semidual_solve(
        cost_t, a, b, k, gamma, f, newton, tol, max_iter
    )
    return (*report, tensor_of(f), tensor_of(g), _columns(columns))


def semidual_evaluate(
    cost_t: Tensor, a: Tensor, b: Tensor, k: int, gamma: float, f: Tensor
) -> tuple[float, Tensor, Tensor, ColumnPlan]:
    """Return the semi-dual at f, its gradient [rows], g [cols], and the plan by columns."""
    value, gradient, g, columns = module_of(cost_t).transport.semidual_evaluate(
        cost_t, a, b, k, gamma, f
    )
    return value, tensor_of(gradient), tensor_of(g), _columns(columns)


def _columns(arrays: tuple[Any, Any, Any]) -> ColumnPlan:
    indptr, row, mass = arrays
    return tensor_of(indptr), tensor_of(row), tensor_of(mass)


__all__ = ["entries", "plan", "schur_solve", "semidual_evaluate", "semidual_solve", "solve", "sums"]
