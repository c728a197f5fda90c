"""Exact transport, without an entropy, by SciPy's linear program solver (HiGHS).

    min_P <M, P>     P 1 = a, P' 1 = b, P >= 0          max <a, f> + <b, g>    f_i + g_j <= M_ij

Gossamer has no linear program solver of its own; without SciPy the problem is refused. Masses and
costs are scaled to about 1 for the program: its tolerances are absolute.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import ConvergenceWarning, NotOffered, ProblemError
from gossamer.ot.plans import linear_cost
from gossamer.ot.pot_backend.result import PotResult
from gossamer.ot.problem import Problem, check_values, from_cost

_TOLERANCE = 1e-10  # the program's smallest


def solve_exact(M: Any, a: Any, b: Any, max_iter: int | None) -> PotResult:
    """Solve one problem exactly.

    Args:
        M: cost [rows, cols]; an infinite one forbids a pair.
        a: weights [rows], or None.
        b: weights [cols], or None.
        max_iter: cap on the program's steps.

    Returns:
        The solution. `value` is differentiable: the gradient in M is the plan, those in a and b are
        the centred potentials, as in POT.

    Raises:
        NotOffered: SciPy is not installed.
        ProblemError: an argument is out of range, or no plan avoids the infinite costs.
    """
    try:
        from scipy.optimize import linprog
        from scipy.sparse import csr_matrix
    except ModuleNotFoundError as error:
        raise NotOffered(
            "reg was not given: POT then solves exact transport, for which Gossamer needs SciPy: "
            "give reg, or pip install scipy"
        ) from error
    problem = from_cost(M, a, b, 1.0)
    if problem.batched:
        raise ProblemError("M is a batch; POT's functions take one cost matrix [rows, cols]")
    plain = problem.detached()
    check_values(plain.cost, None, "", plain.a, plain.b, plain.reg, plain.rho)
    cost = plain.cost[0].double().numpy()
    mass_a, mass_b = plain.a[0].numpy(), plain.b[0].numpy()
    rows, cols = np.nonzero(np.isfinite(cost))
    count, (n, m) = len(rows), cost.shape
    order = np.arange(count)
    sums = csr_matrix(
        (
            np.ones(2 * count),
            (np.concatenate([rows, n + cols]), np.concatenate([order, order])),
        ),
        shape=(n + m, count),
    )
    paid = cost[rows, cols]
    mass, price = mass_a.sum() / n, np.abs(paid).max() or 1.0
    wanted = np.concatenate([mass_a, mass_b * (mass_a.sum() / mass_b.sum())]) / mass
    options = {"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE}
    if max_iter is not None:
        options["maxiter"] = max_iter
    found = linprog(paid / price, A_eq=sums, b_eq=wanted, method="highs", options=options)
    if found.status == 2:
        raise ProblemError(
            "no plan with these marginals avoids the infinite costs of M: make fewer of them "
            "infinite, or penalise the marginals"
        )
    if found.x is None:
        raise ProblemError(
            f"the linear program of exact transport ended without a plan ({found.message}): raise "
            "max_iter, or give reg"
        )
    if found.status != 0:
        warnings.warn(
            f"exact transport did not converge ({found.message}): raise max_iter, or give reg",
            ConvergenceWarning,
            stacklevel=4,
        )
    plan = np.zeros((n, m))
    plan[rows, cols] = np.maximum(found.x, 0.0) * mass
    duals = found.eqlin.marginals * price
    potentials = (torch.from_numpy(duals[:n].copy()), torch.from_numpy(duals[n:].copy()))
    return _result(problem, torch.from_numpy(plan), *potentials, found.status)


def _result(problem: Problem, plan: Tensor, f: Tensor, g: Tensor, status: int) -> PotResult:
    value = linear_cost(plan[None], problem.cost)[0]
    for potential, w in ((f, problem.a[0]), (g, problem.b[0])):
        value = value + ((potential - potential.mean()) * (w - w.detach())).sum()

    def out(x: Tensor) -> Any:
        x = x.to(problem.dtype)
        return x.detach().numpy()[()] if problem.numpy else x

    return PotResult(
        out(value),
        out(value),
        lambda: out(plan),
        lambda: (out(f), out(g)),
        "converged" if status == 0 else "max_iter",
    )
