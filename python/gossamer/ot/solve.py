"""gossamer.ot.solve and its kin: entropic optimal transport with the argument names of POT."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ProblemError
from gossamer.ot import value as value_op  # noqa: F401  (registers torch.ops.gossamer.ot_value)
from gossamer.ot.plans import pairwise
from gossamer.ot.problem import (
    Problem,
    Settings,
    from_cost,
    from_points,
    settings,
)
from gossamer.ot.result import OTResult

# Entries of a cost matrix above which points stay lazy: 32 MiB.
DENSE_ENTRIES = 2**22


def solve(
    M: Any,
    a: Any = None,
    b: Any = None,
    reg: Any = 1e-2,
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    method: str = "auto",
    max_iter: int | None = None,
    tol: float = 1e-9,
    potentials_init: Any = None,
    *,
    grad: str = "implicit",
    omega: float = 1.0,
    ridge: float = 0.0,
) -> OTResult:
    """Solve min_P <M, P> + reg R(P) with P 1 = a, P' 1 = b, P >= 0.

    Args:
        M: cost matrix [n, m] or a batch [B, n, m], float32 or float64, torch or NumPy.
        a: weights of the rows [n] or [B, n], >= 0; None: 1/n each. Rows of weight 0 get no plan.
        b: weights of the columns [m] or [B, m], of the same mass as a; None: 1/m each.
        reg: regularization > 0 in the unit of M, a number or a tensor [B].
        reg_type: "KL" for KL(P | a b'), or "entropy" for sum P (log P - 1). The plan is the same;
            the value and its gradients by a and b are not.
        unbalanced: None for exact marginals, or the penalty rho > 0 of KL(P 1 | a) and
            KL(P' 1 | b), in the unit of M, or a pair of them, None for an exact side.
        unbalanced_type: "KL".
        method: "auto", "sinkhorn", "newton" (sparse Newton), or "published" (as first published).
        max_iter: sweeps plus Newton steps; None: 10,000.
        tol: L1 error of the marginals at which it stops.
        potentials_init: a pair (f, g) to start from, e.g. another result's `potentials`.
        grad: "implicit" (gradients of any order, by implicit differentiation) or "detach" (none).
        omega: over-relaxation in [1, 2) of method="sinkhorn".
        ridge: added to the diagonal of the gradient's linear system, for plans that nearly fall
            apart into pieces; relative to the masses.

    Returns:
        An `OTResult`; a solve that did not converge says so in `status` and by a
        `ConvergenceWarning`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Cuturi (2013), Sinkhorn distances; Tang et al. (2024), Accelerating Sinkhorn algorithm with
        sparse Newton iterations.

    Example:
        >>> import numpy as np, gossamer
        >>> result = gossamer.ot.solve(np.array([[0.0, 1.0], [1.0, 0.0]]), reg=1.0)
        >>> result.status, result.plan.round(4).tolist()
        ('converged', [[0.3655, 0.1345], [0.1345, 0.3655]])
    """
    problem = from_cost(M, a, b, reg, reg_type, unbalanced, unbalanced_type)
    how = settings(problem, method, tol, max_iter, potentials_init, grad, omega, ridge)
    return run(problem, how)


def solve_sample(
    x: Any,
    y: Any,
    a: Any = None,
    b: Any = None,
    reg: Any = 1e-2,
    metric: str = "sqeuclidean",
    reg_type: str = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    method: str = "auto",
    max_iter: int | None = None,
    tol: float = 1e-9,
    potentials_init: Any = None,
    *,
    grad: str = "implicit",
    omega: float = 1.0,
    ridge: float = 0.0,
    lazy: bool | None = None,
) -> OTResult:
    """`solve` for the cost c(x_i, y_j) between points.

    Args:
        x: points [n, d] or [B, n, d], float32 or float64, torch or NumPy.
        y: points [m, d] or [B, m, d].
        a: weights of x, as in `solve`.
        b: weights of y.
        reg: regularization > 0 in the unit of the metric.
        metric: "sqeuclidean", "l1" ("cityblock") or "cosine".
        reg_type: see `solve`, as for all that follow up to `ridge`.
        unbalanced: penalty of the marginals, or None for exact ones.
        unbalanced_type: "KL".
        method: the algorithm.
        max_iter: sweeps plus Newton steps.
        tol: L1 error of the marginals at which it stops.
        potentials_init: a pair (f, g) to start from.
        grad: "implicit" or "detach".
        omega: over-relaxation of Sinkhorn's sweeps.
        ridge: added to the diagonal of the gradient's linear system.
        lazy: True never holds the whole matrix, and then only `value` is differentiable, and
            once. False computes the cost matrix. None: lazy above four million entries.

    Returns:
        An `OTResult`, differentiable in x, y, a and b.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Example:
        >>> import torch, gossamer
        >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
        >>> y = torch.tensor([[0.5], [1.5]])
        >>> gossamer.ot.solve_sample(x, y, reg=0.01).value.backward()
        >>> x.grad
        tensor([[-0.5000],
                [-0.5000]])
    """
    problem = from_points(x, y, a, b, reg, metric, reg_type, unbalanced, unbalanced_type)
    how = settings(problem, method, tol, max_iter, potentials_init, grad, omega, ridge)
    return run(as_dense(problem, lazy), how)


def sinkhorn(M: Any, a: Any = None, b: Any = None, reg: Any = 1e-2, **options: Any) -> OTResult:
    """`solve` by Sinkhorn's sweeps, over-relaxed with omega=1.5, say.

    Args:
        M: as in `solve`.
        a: as in `solve`.
        b: as in `solve`.
        reg: as in `solve`.
        options: any other argument of `solve` but method.

    Reference:
        Thibault, Chizat, Dossal, Papadakis (2021), Overrelaxed Sinkhorn-Knopp.

    Example:
        >>> import torch, gossamer
        >>> gossamer.ot.sinkhorn(torch.eye(3), reg=0.1).status
        'converged'
    """
    return solve(M, a, b, reg, method="sinkhorn", **options)


def sinkhorn_newton_sparse(
    M: Any,
    a: Any = None,
    b: Any = None,
    reg: Any = 1e-2,
    *,
    method: str = "newton",
    **options: Any,
) -> OTResult:
    """`solve` by sparse Newton steps after a few sweeps.

    Args:
        M: as in `solve`.
        a: as in `solve`.
        b: as in `solve`.
        reg: as in `solve`.
        method: "newton" (annealed, relative threshold, column rescaling), or "published" (the
            algorithm of the paper, for comparison).
        options: any other argument of `solve` but method.

    Reference:
        Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying (2024), Accelerating
        Sinkhorn algorithm with sparse Newton iterations.

    Example:
        >>> import torch, gossamer
        >>> gossamer.ot.sinkhorn_newton_sparse(torch.eye(3), reg=0.1).status
        'converged'
    """
    if method not in ("newton", "published"):
        raise ProblemError(f"method is {method!r:.80}; choose newton or published")
    return solve(M, a, b, reg, method=method, **options)


def as_dense(problem: Problem, lazy: bool | None) -> Problem:
    """The problem of points with its cost matrix computed, unless it is to stay lazy."""
    x, y = problem.cost, problem.y
    if y is None:
        return problem
    width = x.shape[2] if problem.metric == "l1" else 1  # what `pairwise` holds for an entry
    if lazy is None:
        lazy = x.shape[0] * x.shape[1] * y.shape[1] * width > DENSE_ENTRIES
    return problem if lazy else replace(problem, cost=pairwise(x, y, problem.metric), y=None)


def run(problem: Problem, how: Settings) -> OTResult:
    """Solve a checked problem."""
    if not how.implicit:
        problem = problem.detached()
    f, g, stats = potentials(problem, how)
    return OTResult(problem, f, g, stats, lambda: optimal_value(problem, f, g))


def potentials(problem: Problem, how: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """(f [B, n], g [B, m], statistics), differentiable; at entries without mass a c-transform."""
    a, b = problem.solver_weights
    f0, g0 = how.warm or (None, None)
    f, g, stats = torch.ops.gossamer.ot_potentials(
        problem.cost, problem.y, problem.metric, a, b, problem.reg, f0, g0, *problem.rho,
        how.method, how.tol, how.max_iter, how.omega, how.ridge,
    )  # fmt: skip
    if problem.rho == (math.inf, math.inf):
        shift = (_mean(g, b) - _mean(f, a)) / 2
        f, g = f + shift, g - shift
    return f, g, stats


def optimal_value(problem: Problem, f: Tensor, g: Tensor) -> Tensor:
    """The value [B] of the problem whose `potentials` are given, by the envelope theorem."""
    p = problem
    value: Tensor = torch.ops.gossamer.ot_value(
        p.cost, p.y, p.metric, p.a, p.b, p.reg, f, g, *p.rho, p.kl
    )
    return value


def _mean(potential: Tensor, weights: Tensor) -> Tensor:
    """The mean [B, 1] over entries with mass."""
    here = (weights > 0).double()
    return (potential * here).sum(1, keepdim=True) / here.sum(1, keepdim=True)
