"""The compiled transport solvers on torch CPU tensors, without value checks and autograd.

The solvers compute in float64; a dense cost may be float32 and is converted on reading. The plan is

    P[i, j] = exp((f[i] + g[j] - C[i, j]) / reg)

A solver leaves out rows and columns without mass and returns potential 0 for them. Code that builds
a plan must set their entries to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.backend import transport as kernels


class Points(NamedTuple):
    """A cost between two clouds of points, computed row by row on demand.

    Attributes:
        x: float64 [rows, d].
        y: float64 [cols, d].
        metric: "sqeuclidean", "euclidean", "l1" or "cosine" (one minus the cosine of the angle).
    """

    x: Tensor
    y: Tensor
    metric: str


Cost = Tensor | Points
EXACT = (math.inf, math.inf)


@dataclass(frozen=True)
class Options:
    """How a problem is solved.

    Attributes:
        method: "auto", "sinkhorn", "newton", or "published" (the algorithm of Tang et al. 2024).
        tol: L1 error of both marginals at which the solver stops; 0 for "sinkhorn" alone: after
            exactly max_iter sweeps.
        max_iter: cap on sweeps plus Newton steps.
        omega: over-relaxation of Sinkhorn's updates, in (0, 2).
    """

    method: str = "auto"
    tol: float = 1e-9
    max_iter: int = 10_000
    omega: float = 1.0


DEFAULT = Options()
HISTORY = 65  # most entries of `Solution.errors`


class Solution(NamedTuple):
    """Potentials, and statistics of the solve.

    Attributes:
        f: row potentials, float64 [rows].
        g: column potentials, float64 [cols].
        status: "converged", "max_iter" or "stalled".
        sweeps: number of Sinkhorn iterations.
        newton: number of Newton steps.
        cg: number of conjugate-gradient iterations in the Newton steps.
        passes: number of exponentials computed, in units of rows * cols.
        error: L1 error of both marginals.
        method: "sinkhorn" or "newton", the one that ran last.
        errors: the error of up to 64 evenly spaced iterations, then `error`.
    """

    f: Tensor
    g: Tensor
    status: str
    sweeps: int
    newton: int
    cg: int
    passes: float
    error: float
    method: str
    errors: Sequence[float] = ()


class LinearReport(NamedTuple):
    """The outcome of a linear solve; `residual` is relative, in L1."""

    converged: bool
    iterations: int
    residual: float


def _size(cost: Cost) -> tuple[int, int]:
    if isinstance(cost, Points):
        return cost.x.shape[0], cost.y.shape[0]
    return cost.shape[0], cost.shape[1]


def _transposed(cost: Cost) -> Cost:
    if isinstance(cost, Points):
        return Points(cost.y, cost.x, cost.metric)
    return cost.mT


def _restricted(cost: Cost, rows: Tensor | None, cols: Tensor | None) -> Cost:
    if isinstance(cost, Points):
        x = cost.x if rows is None else cost.x[rows]
        y = cost.y if cols is None else cost.y[cols]
        return Points(x, y, cost.metric)
    cost = cost if rows is None else cost[rows]
    return cost if cols is None else cost[:, cols]


def _spec(cost: Cost) -> tuple[Any, ...]:
    """The cost as the compiled core takes it; its tensors must outlive the call."""
    if isinstance(cost, Points):
        x, y = cost.x.detach().double(), cost.y.detach().double()
        if cost.metric == "cosine":
            x, y = (torch.nn.functional.normalize(p, dim=-1, eps=1e-300) for p in (x, y))
        return cost.metric, x.contiguous(), y.mT.contiguous()
    dense = cost.detach()
    if dense.dtype not in (torch.float32, torch.float64):
        dense = dense.double()
    return "dense", dense if dense.stride(1) == 1 or dense.shape[1] == 1 else dense.contiguous()


def _spread(cost: Cost) -> float:
    """An upper bound of the range of the costs, at which annealing starts."""
    if not isinstance(cost, Points):
        return finite_spread(cost)
    if cost.metric == "cosine":
        return 2.0
    points = torch.cat([cost.x.detach(), cost.y.detach()])
    ranges = points.amax(0) - points.amin(0)
    if cost.metric == "l1":
        return float(ranges.sum())
    return float((ranges**2).sum() if cost.metric == "sqeuclidean" else ranges.norm())


def finite_spread(cost: Tensor) -> float:
    """The range max - min of the costs that are not infinite."""
    low, high = (float(v) for v in torch.aminmax(cost.detach()))
    if high < math.inf:
        return high - low
    finite = cost.detach()[cost < math.inf]
    return float(finite.max()) - low if len(finite) else 0.0


def solve_dual(
    cost: Cost,
    a: Tensor,
    b: Tensor,
    reg: float,
    options: Options = DEFAULT,
    *,
    rho: tuple[float, float] = EXACT,
    warm: tuple[Tensor, Tensor] | None = None,
) -> Solution:
    """Solve one problem.

    Args:
        cost: [rows, cols], or points.
        a: float64 [rows], >= 0.
        b: float64 [cols], >= 0; of the same mass as `a` if both marginals are exact.
        reg: strength of the entropy, in units of the cost.
        options: the algorithm, and when it stops.
        rho: strength of the Kullback-Leibler penalty of each marginal; infinite makes it exact.
        warm: potentials (f, g) to start from.

    Returns:
        The solution; `status` says whether it converged.
    """
    rows = None if bool((a > 0).all()) else (a > 0).nonzero().flatten()
    cols = None if bool((b > 0).all()) else (b > 0).nonzero().flatten()
    kept = _restricted(cost, rows, cols)
    alive_a = a if rows is None else a[rows]
    alive_b = b if cols is None else b[cols]
    start = None
    if warm is not None:
        start = tuple(
            p if keep is None else p[keep] for p, keep in zip(warm, (rows, cols), strict=True)
        )
    # Newton eliminates the columns and solves for the rows: the rows are the smaller side.
    # Sinkhorn's sweeps begin with the rows: a caller may count on it.
    swapped = alive_a.shape[0] > alive_b.shape[0] and options.method != "sinkhorn"
    if swapped:
        kept, alive_a, alive_b = _transposed(kept), alive_b, alive_a
        start = None if start is None else (start[1], start[0])
        rho = (rho[1], rho[0])
    if alive_a.shape[0] == 0 or alive_b.shape[0] == 0:
        zero_f, zero_g = torch.zeros_like(a), torch.zeros_like(b)
        return Solution(zero_f, zero_g, "converged", 0, 0, 0, 0.0, 0.0, "sinkhorn")
    (solution,) = _solve(kept, 1, alive_a, alive_b, [reg], [_spread(kept)], options, rho, start)
    f, g = (solution.g, solution.f) if swapped else (solution.f, solution.g)
    if rows is not None:
        f = f.new_zeros(len(a)).index_copy(0, rows, f)
    if cols is not None:
        g = g.new_zeros(len(b)).index_copy(0, cols, g)
    return solution._replace(f=f, g=g)


def solve_dual_batch(
    costs: Tensor,
    a: Tensor,
    b: Tensor,
    reg: Sequence[float],
    options: Options = DEFAULT,
    *,
    rho: tuple[float, float] = EXACT,
    warm: tuple[Tensor, Tensor] | None = None,
) -> list[Solution]:
    """Solve independent problems of one size in parallel.

    Args:
        costs: [B, rows, cols].
        a: float64 [B, rows].
        b: float64 [B, cols].
        reg: B strengths.
        options: the algorithm, and when it stops, per problem.
        rho: strength of the Kullback-Leibler penalty of each marginal.
        warm: potentials ([B, rows], [B, cols]) to start from.

    Returns:
        B solutions.
    """
    size, rows, cols = costs.shape
    alive = bool((a > 0).all()) and bool((b > 0).all())
    if not alive or size <= 1 or (rows > cols and options.method != "sinkhorn"):
        return [
            solve_dual(
                costs[k],
                a[k],
                b[k],
                reg[k],
                options,
                rho=rho,
                warm=None if warm is None else (warm[0][k], warm[1][k]),
            )
            for k in range(size)
        ]
    flat = costs.detach().reshape(size * rows, cols)
    # aminmax along dimensions is several times slower than amin plus amax.
    low, high = costs.detach().amin((1, 2)), costs.detach().amax((1, 2))
    spreads = (high.double() - low.double()).tolist()
    if math.inf in spreads:
        spreads = [finite_spread(cost) for cost in costs]
    return _solve(flat, size, a, b, reg, spreads, options, rho, warm)


def _solve(
    cost: Cost,
    items: int,
    a: Tensor,
    b: Tensor,
    regs: Sequence[float],
    spreads: Sequence[float],
    options: Options,
    rho: tuple[float, float],
    warm: Sequence[Tensor] | None,
) -> list[Solution]:
    reg = torch.tensor(regs, dtype=torch.float64)
    rows, cols = _size(cost)
    u = torch.zeros(items, rows // items, dtype=torch.float64)
    v = torch.zeros(items, cols, dtype=torch.float64)
    if warm is not None:
        u.copy_(warm[0].detach().reshape(u.shape) / reg[:, None])
        v.copy_(warm[1].detach().reshape(v.shape) / reg[:, None])
    reports = kernels.solve(
        _spec(cost),
        items,
        a.detach().double().contiguous().reshape(-1),
        b.detach().double().contiguous().reshape(-1),
        reg,
        torch.tensor(spreads, dtype=torch.float64),
        rho,
        options.method,
        options.tol,
        options.max_iter,
        options.omega,
        warm is not None,
        u.reshape(-1),
        v.reshape(-1),
    )
    f, g = u * reg[:, None], v * reg[:, None]
    return [
        Solution(f[k], g[k], status, sweeps, newton, cg, passes, error, ended, [*errors, error])
        for k, (status, ended, sweeps, newton, cg, passes, error, errors) in enumerate(reports)
    ]


def plan(cost: Cost, f: Tensor, g: Tensor, reg: float) -> Tensor:
    """The plan at potentials f [rows] and g [cols]: float64 [rows, cols]."""
    return kernels.plan(_spec(cost), reg, _over(f, reg), _over(g, reg))


def reduce_plan(cost: Cost, f: Tensor, g: Tensor, reg: float) -> tuple[Tensor, Tensor, Tensor]:
    """The plan's row sums [rows], column sums [cols] and <C, P>; the plan is never stored."""
    rows, cols, row_cost = kernels.sums(_spec(cost), reg, _over(f, reg), _over(g, reg))
    return rows, cols, row_cost.sum()


def sparse_plan(cost: Cost, f: Tensor, g: Tensor, reg: float, threshold: float) -> Tensor:
    """The entries P[i, j] >= threshold * sqrt(r[i] c[j]), as a CSR tensor [rows, cols]."""
    _, cols, _ = reduce_plan(cost, f, g, reg)
    indptr, indices, values = kernels.entries(
        _spec(cost), reg, _over(f, reg), _over(g, reg), cols.sqrt(), threshold
    )
    return torch.sparse_csr_tensor(
        indptr,
        indices.long(),
        values,
        size=_size(cost),
        check_invariants=False,
    )


def _over(potential: Tensor, reg: float) -> Tensor:
    return (potential.detach().double() / reg).contiguous()


def laplacian_solve(
    plan: Tensor,
    q_f: Tensor,
    q_g: Tensor,
    *,
    shift_f: Tensor | None = None,
    shift_g: Tensor | None = None,
    ridge: float = 0.0,
    tol: float = 1e-12,
    max_iter: int | None = None,
) -> tuple[Tensor, Tensor, LinearReport]:
    """Solve [[diag(P 1) + shift_f, P], [P', diag(P' 1) + shift_g]] z = q.

    Without shifts and ridge the matrix has the null vector (1, -1). Then the sums of q_f and q_g
    must be equal, and the solution with equal sums of z_f and z_g is returned.

    Args:
        plan: float64 [rows, cols], dense or CSR; of a dense plan, entries P[i, j] below
            1e-13 * sqrt(r[i] c[j]) are dropped.
        q_f: float64 [rows].
        q_g: float64 [cols].
        shift_f: float64 [rows], >= 0.
        shift_g: float64 [cols], >= 0.
        ridge: added to the diagonal, relative to the mass of each row and column.
        tol: relative L1 residual at which the conjugate gradients stop.
        max_iter: cap on conjugate-gradient iterations; None is 10 * rows + 1000.

    Returns:
        z_f [rows], z_g [cols], and the outcome of the solve.
    """
    rows, cols = plan.shape
    if plan.layout is torch.strided:
        dense = plan.detach().double()
        row_sums, column_sums = dense.sum(1), dense.sum(0)
        kept = dense >= 1e-13 * row_sums.sqrt()[:, None] * column_sums.sqrt()
        plan = (dense * kept).to_sparse_csr()
    else:
        plan = plan.detach()
        ones = torch.ones(max(rows, cols), dtype=torch.float64)
        row_sums, column_sums = plan @ ones[:cols], plan.mT @ ones[:rows]
    indptr, indices, values = plan.crow_indices(), plan.col_indices(), plan.values()
    singular = shift_f is None and shift_g is None and ridge == 0.0
    rest = ridge * row_sums if shift_f is None else ridge * row_sums + shift_f
    column = (1.0 + ridge) * column_sums
    column = column if shift_g is None else column + shift_g
    # Columns without mass do not contribute: 0 / 0 becomes 0.
    column = torch.where(column > 0, column, torch.inf)
    q_f, q_g = q_f.detach().double(), q_g.detach().double()
    rhs = q_f - plan @ (q_g / column)
    z_f, report = kernels.schur_solve(
        indptr,
        indices.int(),
        values,
        rest.contiguous(),
        column,
        singular,
        rhs,
        tol,
        10 * rows + 1000 if max_iter is None else max_iter,
    )
    z_g = (q_g - plan.mT @ z_f) / column
    if singular:
        shift = (z_f.sum() - z_g.sum()) / (rows + cols)
        z_f, z_g = z_f - shift, z_g + shift
    return z_f, z_g, LinearReport(*report)
