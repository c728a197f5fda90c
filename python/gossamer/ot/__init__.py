"""Differentiable entropic optimal transport: sparse Newton and Sinkhorn solvers.

    solve(M, a, b, reg)              a cost matrix, or a batch of them
    solve_sample(x, y, a, b, reg)    points; a large cost matrix is never stored
    loss(x, y, reg=...)              a debiased training loss between point clouds
    sparsity_constrained(M, a, b, k=...)    at most k non-zeros per column
    monge_gap(x, y, a, reg)          what a map costs beyond an optimal plan
    c_transform(x, y, g)             the hard c-transform of a potential, tile by tile
    sinkhorn_small(scores)           many matrices up to 16 x 16 inside a model
    pot_backend                      POT's functions, with POT's names and arguments

All but the last compute in float64 on the CPU. They take torch tensors and NumPy arrays, batches,
and exact or penalised marginals.
"""

from gossamer.errors import ConvergenceWarning, ProblemError
from gossamer.ot import pot_backend
from gossamer.ot.constrained import ConstrainedResult, sparsity_constrained
from gossamer.ot.loss import loss
from gossamer.ot.maps import c_transform, monge_gap
from gossamer.ot.result import OTResult
from gossamer.ot.small import permutation_mixture, sinkhorn_small
from gossamer.ot.solve import sinkhorn, sinkhorn_newton_sparse, solve, solve_sample

__all__ = [
    "ConstrainedResult",
    "ConvergenceWarning",
    "OTResult",
    "ProblemError",
    "c_transform",
    "loss",
    "monge_gap",
    "permutation_mixture",
    "pot_backend",
    "sinkhorn",
    "sinkhorn_newton_sparse",
    "sinkhorn_small",
    "solve",
    "solve_sample",
    "sparsity_constrained",
]
