"""Optimal transport with entropy: sparse Newton and Sinkhorn solvers, differentiable.

    solve(M, a, b, reg)              a cost matrix, or a batch of them
    solve_sample(x, y, a, b, reg)    points; the cost matrix is never made when it would be large
    loss(x, y, reg=...)              a debiased training loss between point clouds
    sparsity_constrained(M, a, b, k=...)    at most k entries a column
    pot_backend                      the functions of POT, by their names and arguments

Everything is computed in float64 on the CPU; torch and NumPy, batches, exact or penalized
marginals.
"""

from gossamer.errors import ConvergenceWarning, ProblemError
from gossamer.ot import pot_backend
from gossamer.ot.constrained import ConstrainedResult, sparsity_constrained
from gossamer.ot.loss import loss
from gossamer.ot.result import OTResult
from gossamer.ot.solve import sinkhorn, sinkhorn_newton_sparse, solve, solve_sample

__all__ = [
    "ConstrainedResult",
    "ConvergenceWarning",
    "OTResult",
    "ProblemError",
    "loss",
    "pot_backend",
    "sinkhorn",
    "sinkhorn_newton_sparse",
    "solve",
    "solve_sample",
    "sparsity_constrained",
]
