"""Entropic optimal transport with POT's argument names: `solve`, `solve_sample` and variants."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import ProblemError
from gossamer.ot import value as value_op  # noqa: F401  (registers torch.ops.gossamer.ot_value)
from gossamer.ot.plans import pairwise, wide
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
        M: cost matrix [rows, cols] or a batch [B, rows, cols], float32 or float64, torch or NumPy.
            An infinite cost forbids a pair: the plan has no mass there.
        a: weights of the rows, >= 0, [rows] or [B, rows]; None is uniform with sum 1. The plan is
            0 in rows of weight 0.
        b: weights of the columns, of the same mass as a, [cols] or [B, cols]; None is uniform with
            sum 1.
        reg: regularisation strength > 0 in the unit of M, a number or a tensor [B].
        reg_type: "KL" for KL(P | a b'), or "entropy" for sum P (log P - 1). The plan is the same;
            the value and its gradients with respect to a and b differ.
        unbalanced: None for exact marginals, or the weight rho > 0 of the penalties KL(P 1 | a) and
            KL(P' 1 | b), in the unit of M; a pair sets each side, with None for an exact one.
        unbalanced_type: "KL".
        method: "auto", "sinkhorn", "newton" (sparse Newton), or "published" (as first published).
        max_iter: cap on sweeps plus Newton steps; None is 10,000.
        tol: L1 error of the marginals at which the solver stops. With method="sinkhorn" it may be
            0: the solver stops after exactly max_iter sweeps, each the rows first.
        potentials_init: a pair (f, g) to start from, such as another result's `potentials`.
        grad: "implicit" (gradients of any order, by implicit differentiation) or "detach" (none).
        omega: over-relaxation in [1, 2), for method="sinkhorn" only.
        ridge: added to the diagonal of the gradient's linear system, relative to the masses; it
            helps when the plan nearly splits into independent blocks.

    Returns:
        An `OTResult`. If the solver does not converge, `status` says so and a
        `ConvergenceWarning` is issued.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Cuturi 2013, "Sinkhorn Distances", Algorithm 1; Tang, Shavlovsky, Rahmanian, Tardini,
        Thekumparampil, Xiao & Ying 2024, "Accelerating Sinkhorn Algorithm with Sparse Newton
        Iterations".

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
    """Solve the problem of `solve` for the cost c(x_i, y_j) between points.

    Args:
        x: points [rows, d] or [B, rows, d], float32 or float64, torch or NumPy.
        y: points [cols, d] or [B, cols, d].
        a: weights of x, as in `solve`.
        b: weights of y, as in `solve`.
        reg: regularisation strength > 0 in the unit of the metric.
        metric: "sqeuclidean", "euclidean", "l1" ("cityblock") or "cosine".
        reg_type: as in `solve`, and so are the arguments up to `ridge`.
        unbalanced: weight of the marginals' penalty, or None for exact marginals.
        unbalanced_type: "KL".
        method: the algorithm.
        max_iter: cap on sweeps plus Newton steps.
        tol: L1 error of the marginals at which the solver stops.
        potentials_init: a pair (f, g) to start from.
        grad: "implicit" or "detach".
        omega: over-relaxation of Sinkhorn's sweeps.
        ridge: added to the diagonal of the gradient's linear system.
        lazy: True never stores the cost matrix; then only `value` is differentiable, and only
            once. False computes the cost matrix. None is lazy above four million entries.

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
    """Solve the problem of `solve` by Sinkhorn's sweeps, over-relaxed if omega > 1.

    Args:
        M: as in `solve`.
        a: as in `solve`.
        b: as in `solve`.
        reg: as in `solve`.
        options: the other arguments of `solve`, except `method`.

    Returns:
        An `OTResult`, as in `solve`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Thibault, Chizat, Dossal & Papadakis 2021, "Overrelaxed Sinkhorn-Knopp Algorithm for
        Regularized Optimal Transport".

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
    """Solve the problem of `solve` by a few Sinkhorn sweeps, then sparse Newton steps.

    Args:
        M: as in `solve`.
        a: as in `solve`.
        b: as in `solve`.
        reg: as in `solve`.
        method: "newton" (annealed, relative threshold, column rescaling), or "published" (the
            algorithm of the paper, for comparison).
        options: the other arguments of `solve`, except `method`.

    Returns:
        An `OTResult`, as in `solve`.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao & Ying 2024, "Accelerating
        Sinkhorn Algorithm with Sparse Newton Iterations", Algorithm 1 for method="published".

    Example:
        >>> import torch, gossamer
        >>> gossamer.ot.sinkhorn_newton_sparse(torch.eye(3), reg=0.1).status
        'converged'
    """
    if method not in ("newton", "published"):
        raise ProblemError(f"method is {method!r:.80}; choose newton or published")
    return solve(M, a, b, reg, method=method, **options)


def as_dense(problem: Problem, lazy: bool | None) -> Problem:
    """The problem with the cost matrix of its points computed, unless the cost stays lazy."""
    x, y = problem.cost, problem.y
    if y is None:
        return problem
    width = x.shape[2] if wide(problem.metric) else 1  # what `pairwise` stores per entry
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
    """(f [B, rows], g [B, cols], statistics), differentiable; c-transforms where mass is 0."""
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
    """The optimal value [B], differentiable by the envelope theorem; f, g are from `potentials`."""
    p = problem
    value: Tensor = torch.ops.gossamer.ot_value(
        p.cost, p.y, p.metric, p.a, p.b, p.reg, f, g, *p.rho, p.kl
    )
    return value


def _mean(potential: Tensor, weights: Tensor) -> Tensor:
    """The mean [B, 1] of a potential over the entries with mass."""
    here = (weights > 0).double()
    return (potential * here).sum(1, keepdim=True) / here.sum(1, keepdim=True)
