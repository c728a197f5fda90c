"""Drop-in functions for users of POT: `from gossamer.ot import pot_backend as ot`.

    ot.sinkhorn(a, b, M, reg)      ot.sinkhorn2(...)      ot.barycenter(A, M, reg)
    ot.sinkhorn_unbalanced(a, b, M, reg, reg_m)           ot.sinkhorn_unbalanced2(...)
    ot.solve(M, a, b, reg)         ot.solve_sample(X_a, X_b, a, b, reg=reg)

Names, order and defaults of the arguments and the returned values are POT 0.9.7's, also in
`ot.bregman`, `ot.unbalanced` and `ot.solvers`. docs/guides/pot.md lists what differs.
"""

from gossamer.ot.pot_backend import bregman, solvers, unbalanced
from gossamer.ot.pot_backend.barycenters import barycenter
from gossamer.ot.pot_backend.solvers import solve, solve_sample
from gossamer.ot.pot_backend.sweeps import sinkhorn, sinkhorn2
from gossamer.ot.pot_backend.unbalanced import (
    barycenter_unbalanced,
    sinkhorn_unbalanced,
    sinkhorn_unbalanced2,
)

__all__ = [
    "barycenter",
    "barycenter_unbalanced",
    "bregman",
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_unbalanced",
    "sinkhorn_unbalanced2",
    "solve",
    "solve_sample",
    "solvers",
    "unbalanced",
]
