"""What `ot.solve` and `ot.solve_sample` return: the fields of POT's OTResult."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.ot.plans import pairwise
from gossamer.ot.problem import METRICS

Field = Callable[[], Any]


class LazyPlan:
    """The entropic plan of points, of which any part is computed when it is indexed.

    Args:
        x: points [rows, d].
        y: points [cols, d].
        log_u: [rows].
        log_v: [cols], of P = diag(u) exp(-M / reg) diag(v).
        metric: metric of the cost M.
        reg: strength of the entropy.

    Example:
        >>> import numpy as np
        >>> from gossamer.ot import pot_backend as ot
        >>> x = np.array([[0.0], [1.0]])
        >>> ot.solve_sample(x, x, reg=1.0, lazy=True).lazy_plan[0].round(4).tolist()
        [[0.3655, 0.1345]]
    """

    def __init__(self, x: Any, y: Any, log_u: Any, log_v: Any, metric: str, reg: float) -> None:
        self._points, self._logs = (x, y), (log_u, log_v)
        self._metric, self._reg = METRICS[metric], reg
        self.shape = (len(x), len(y))
        self.ndim = 2

    def __getitem__(self, key: Any) -> Any:
        """Return a part as a matrix: a whole number picks one row or column, as in POT."""
        keys = key if isinstance(key, tuple) else (key,)
        picks = [
            _part(keys[k] if k < len(keys) else slice(None), size)
            for k, size in enumerate(self.shape)
        ]
        x, y = (torch.as_tensor(p)[pick] for p, pick in zip(self._points, picks, strict=True))
        u, v = (torch.as_tensor(w)[pick] for w, pick in zip(self._logs, picks, strict=True))
        cost = pairwise(x, y, self._metric)
        plan = (u[:, None] + v - cost / self._reg).exp()
        return plan if isinstance(self._points[0], Tensor) else plan.numpy()

    def __repr__(self) -> str:
        return f"LazyPlan(shape={self.shape})"


def _part(key: Any, size: int) -> Any:
    if isinstance(key, int | np.integer):
        place = range(size)[int(key)]  # raises IndexError as an array does
        return slice(place, place + 1)
    return key


@dataclass(frozen=True)
class PotResult:
    """The solution, with the fields, shapes and units of POT's OTResult.

    Args:
        value: the whole objective, in POT's convention.
        value_linear: the transport cost <M, P>.
        make_plan: function that returns the plan [rows, cols].
        make_potentials: function that returns the dual potentials: (log u, log v) with an entropy
            (against the reference a b' if marginals are penalised), those of the cost without.
        status: "converged", "max_iter" or "stalled".
        log: the solver's statistics.
        lazy_plan: the plan of `lazy=True`, which can be indexed.
    """

    value: Any
    value_linear: Any
    make_plan: Field
    make_potentials: Field
    status: Any
    log: Any = None
    lazy_plan: LazyPlan | None = None

    value_quad = None
    _backend = None  # POT's own functions ask a result for it

    @property
    def plan(self) -> Any:
        """The plan [rows, cols]."""
        return self.make_plan()

    @property
    def sparse_plan(self) -> Any:
        """The plan as a CSR matrix: torch's, or SciPy's for NumPy arrays."""
        plan = self.plan
        if isinstance(plan, Tensor):
            return plan.to_sparse_csr()
        from scipy.sparse import csr_matrix

        return csr_matrix(plan)

    @property
    def potentials(self) -> tuple[Any, Any]:
        """The dual potentials (potential_a [rows], potential_b [cols])."""
        found: tuple[Any, Any] = self.make_potentials()
        return found

    @property
    def potential_a(self) -> Any:
        """The potential of the rows."""
        return self.potentials[0]

    @property
    def potential_b(self) -> Any:
        """The potential of the columns."""
        return self.potentials[1]

    @property
    def marginals(self) -> tuple[Any, Any]:
        """The sums of the plan's rows and columns."""
        return self.marginal_a, self.marginal_b

    @property
    def marginal_a(self) -> Any:
        """The sums of the plan's rows."""
        return self.plan.sum(1)

    @property
    def marginal_b(self) -> Any:
        """The sums of the plan's columns."""
        return self.plan.sum(0)
