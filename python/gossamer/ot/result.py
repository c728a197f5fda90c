"""The result of a solve: the fields of POT's OTResult, computed on first access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DTypeError, ProblemError, ShapeError
from gossamer.ot import core
from gossamer.ot.gradients import STATUSES, solve_laplacian
from gossamer.ot.plans import core_cost, linear_cost, log_plan, masked, pairwise
from gossamer.ot.problem import Problem, checked_real


class OTResult:
    """The solution of one problem, or of a batch, whose fields have a leading dimension [B].

    Fields have the library and dtype of the cost or points; they are computed in float64. Torch
    fields are differentiable in the cost or points, a, b and a tensor reg.
    """

    def __init__(self, problem: Problem, f: Tensor, g: Tensor, stats: Tensor, value: Any) -> None:
        self._problem = problem
        self._f, self._g = f, g
        self._stats = stats
        self._value: Callable[[], Tensor] = value
        self._known: dict[str, Any] = {}

    def __repr__(self) -> str:
        return (
            f"OTResult(status={self.status!r}, iterations={self.iterations!r}, "
            f"marginal_error={self.marginal_error!r})"
        )

    @property
    def value(self) -> Any:
        """The optimal value, including regularisation and penalties."""
        return self._once("value", lambda: self._out(self._value()))

    @property
    def value_linear(self) -> Any:
        """The transport cost <M, P> without regularisation; a lazy cost is never stored whole."""
        return self._once("value_linear", self._linear)

    def _linear(self) -> Any:
        if self._f.requires_grad and self._problem.y is None:
            return self._out(linear_cost(self._plan, self._problem.cost))
        linear = torch.stack([part[2] for part in self._sums])
        if self._f.requires_grad:
            # A backward must raise the lazy cost's error, not silently return zeros.
            linear = linear + 0.0 * self._f.sum(1)
        return self._out(linear)

    @property
    def plan(self) -> Any:
        """The transport plan P [rows, cols], computed on first access."""
        return self._once("plan", lambda: self._out(self._plan))

    def sparse_plan(self, threshold: float = 1e-5) -> Any:
        """The plan as a torch CSR tensor [rows, cols] in float64, without autograd.

        Args:
            threshold: an entry is kept if P_ij >= threshold * sqrt((P 1)_i (P' 1)_j); in [0, 1).

        Returns:
            A CSR tensor, or a list of them for a batch. The dense plan is never stored.

        Raises:
            ProblemError: threshold is outside [0, 1).
            DTypeError: threshold is not a number.
        """
        least = checked_real(threshold, "threshold")
        if not 0 <= least < 1:
            raise ProblemError(f"threshold is {least}; 0 <= threshold < 1 is needed")
        plans = [core.sparse_plan(*item, least) for item in self._items]
        return plans if self._problem.batched else plans[0]

    def cost_gradient(self, grad_plan: Any, threshold: float = 1e-8) -> Any:
        """The gradient dL/dM as a torch CSR tensor, for a loss L(P) of one problem's plan.

        Args:
            grad_plan: dL/dP as a tensor [rows, cols]; or a function of the row and column indices
                of the entries, int64 [nnz] each, that returns their dL/dP [nnz], so that no dense
                matrix is stored.
            threshold: threshold of the kept entries, as in `sparse_plan`; it bounds the error.

        Returns:
            -(P * (grad_plan - w_i - w_j)) / reg on the plan's support, float64.

        Raises:
            ShapeError: the result is a batch, or grad_plan has the wrong shape.
            ProblemError: the problem is unbalanced, or threshold is outside [0, 1).
            DTypeError: grad_plan is not a tensor and does not return one.

        Example:
            >>> import torch, gossamer
            >>> result = gossamer.ot.solve(torch.eye(2, dtype=torch.float64), reg=0.1)
            >>> result.cost_gradient(lambda rows, cols: (rows == cols).double()).layout
            torch.sparse_csr
        """
        problem = self._problem
        if problem.batched:
            raise ShapeError("cost_gradient was asked of a batch; solve each problem on its own")
        if any(rho != float("inf") for rho in problem.rho):
            raise ProblemError(
                "cost_gradient was asked of an unbalanced problem; differentiate `plan` instead"
            )
        plan = self.sparse_plan(threshold)
        rows = torch.arange(plan.shape[0]).repeat_interleave(plan.crow_indices().diff())
        cols = plan.col_indices()
        grad = grad_plan(rows, cols) if callable(grad_plan) else grad_plan
        if not isinstance(grad, Tensor):
            raise DTypeError(
                f"grad_plan is a {type(grad).__name__}; a tensor is needed, or a function of row "
                "and column indices that returns one"
            )
        wanted = rows.shape if callable(grad_plan) else plan.shape
        if grad.shape != wanted:
            raise ShapeError(f"grad_plan has shape {list(grad.shape)}; {list(wanted)} is needed")
        if not callable(grad_plan):
            grad = grad[rows, cols]
        values = plan.values()
        weighted = values * grad.detach().double()
        q_f = values.new_zeros(plan.shape[0]).index_add_(0, rows, weighted)
        q_g = values.new_zeros(plan.shape[1]).index_add_(0, cols, weighted)
        w_f, w_g = solve_laplacian(plan, q_f, q_g)
        gradient = values * (w_f[rows] + w_g[cols]) - weighted
        return torch.sparse_csr_tensor(
            plan.crow_indices(),
            cols,
            gradient / float(problem.reg),
            plan.shape,
            check_invariants=False,
        )

    @property
    def potentials(self) -> tuple[Any, Any]:
        """The dual potentials (f [rows], g [cols]) of P = exp((f + g - M) / reg); 0 without mass.

        If both marginals are exact, f + t and g - t give the same plan for every t. The returned
        pair has equal means of f and g over the entries with mass.
        """
        return (self.potential_a, self.potential_b)

    @property
    def log_scalings(self) -> tuple[Any, Any]:
        """(log u, log v) of P = diag(u) exp(-M / reg) diag(v); -infinity without mass."""
        p = self._problem
        pairs = ((self._f, p.a), (self._g, p.b))
        u, v = (self._out(torch.where(w > 0, x / p.reg[:, None], -torch.inf)) for x, w in pairs)
        return u, v

    @property
    def potential_a(self) -> Any:
        """The potential f of the rows."""
        p = self._problem
        return self._once("f", lambda: self._out(torch.where(p.a > 0, self._f, 0.0)))

    @property
    def potential_b(self) -> Any:
        """The potential g of the columns."""
        p = self._problem
        return self._once("g", lambda: self._out(torch.where(p.b > 0, self._g, 0.0)))

    @property
    def marginals(self) -> tuple[Any, Any]:
        """The sums (P 1 [rows], P' 1 [cols]), without autograd; a lazy cost is not stored whole."""
        rows, cols = (torch.stack([part[k] for part in self._sums]) for k in (0, 1))
        return self._out(rows), self._out(cols)

    @property
    def marginal_a(self) -> Any:
        """The plan's row sums."""
        return self.marginals[0]

    @property
    def marginal_b(self) -> Any:
        """The plan's column sums."""
        return self.marginals[1]

    @property
    def status(self) -> Any:
        """The solver's status: "converged", "max_iter" or "stalled"; a list for a batch."""
        return self._each(0, lambda code: STATUSES[int(code)])

    @property
    def iterations(self) -> Any:
        """The number of Sinkhorn sweeps plus Newton steps."""
        return self._each(slice(1, 3), lambda counts: int(sum(counts)))

    @property
    def marginal_error(self) -> Any:
        """|P 1 - a|_1 + |P' 1 - b|_1; unbalanced: the residual of the optimality conditions."""
        return self._each(5, float)

    @property
    def errors(self) -> Any:
        """The error of up to 64 evenly spaced iterations, then `marginal_error`; a list."""
        return self._each(slice(7, None), lambda row: [error for error in row if error != -1.0])

    @property
    def log(self) -> Any:
        """The solver's statistics: method, sweeps, newton, cg and passes over the cost matrix."""
        names = ("sweeps", "newton", "cg", "passes")
        return self._each(
            slice(1, 7),
            lambda row: {
                "method": "newton" if row[5] else "sinkhorn",
                **{name: int(count) for name, count in zip(names, row, strict=False)},
            },
        )

    @property
    def _plan(self) -> Tensor:
        p = self._problem
        inputs = (p.cost, p.y, p.reg, self._f, self._g)
        differentiable = torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in inputs
        )
        # The core is many times faster, but supports neither gradients nor rows without mass.
        if not (differentiable or torch.compiler.is_compiling()) and _all_present(p.a, p.b):
            return torch.stack([core.plan(*item) for item in self._items])
        cost = p.cost if p.y is None else pairwise(p.cost, p.y, p.metric)
        return log_plan(cost, p.reg, masked(self._f, p.a), masked(self._g, p.b)).exp()

    @property
    def _items(self) -> list[tuple[core.Cost, Tensor, Tensor, float]]:
        """(cost, f, g, reg) per problem, for `core`."""
        p = self._problem.detached()
        f, g = masked(self._f.detach(), p.a), masked(self._g.detach(), p.b)
        return [
            (core_cost(p.cost, p.y, p.metric, i), f[i], g[i], reg)
            for i, reg in enumerate(p.reg.tolist())
        ]

    @property
    def _sums(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        sums: list[tuple[Tensor, Tensor, Tensor]] = self._once(
            "sums", lambda: [core.reduce_plan(*item) for item in self._items]
        )
        return sums

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Cache `make()` under `name`; dynamo cannot trace the lock in cached_property."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def _each(self, columns: int | slice, make: Callable[[Any], Any]) -> Any:
        values = [make(row) for row in self._stats[:, columns].tolist()]
        return values if self._problem.batched else values[0]

    def _out(self, t: Tensor) -> Any:
        """A tensor [B, ...] in the caller's library, dtype and batching."""
        return returned(self._problem, t)


def returned(problem: Problem, t: Tensor) -> Any:
    """A tensor [B, ...] in the caller's library, dtype and batching."""
    t = t.to(problem.dtype)
    if not problem.batched:
        t = t.squeeze(0)
    if not problem.numpy:
        return t
    array = t.detach().numpy()
    return array if array.ndim else array[()]


def _all_present(a: Tensor, b: Tensor) -> bool:
    return bool((a > 0).all()) and bool((b > 0).all())
