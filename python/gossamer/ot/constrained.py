"""Transport with at most k non-zeros per column, by the semi-dual in the row potentials.

    min_T  <M, T> + gamma/2 |T|^2     T >= 0, T 1 = a, T' 1 = b, at most k non-zeros per column

The column sums are always exact. The row sums are exact where the semi-dual is smooth. Where the
constraint k is active, the semi-dual may attain its maximum at a kink; the row sums are then off by
`ConstrainedResult.marginal_error`.

Reference:
    Liu, Puigcerver & Blondel 2023, "Sparsity-Constrained Optimal Transport" (ICLR).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gossamer.backend import transport as kernels
from gossamer.errors import ProblemError
from gossamer.ot.gradients import warn
from gossamer.ot.problem import Problem, check_values, from_cost

METHODS = ("newton", "lbfgs")


class Columns(NamedTuple):
    """A sparse plan, stored by columns.

    Attributes:
        indptr: int64 [cols + 1]; column j has the entries from indptr[j] up to indptr[j + 1].
        row: row of each entry, int32 [entries], ascending within a column.
        mass: mass of each entry, float64 [entries], positive.
        rows: number of rows.
    """

    indptr: Tensor
    row: Tensor
    mass: Tensor
    rows: int

    @property
    def column(self) -> Tensor:
        """The column of each entry, int64 [entries]."""
        return torch.repeat_interleave(self.indptr.diff())

    def dense(self) -> Tensor:
        """The plan as a dense float64 tensor [rows, cols]."""
        plan = torch.zeros(self.rows, len(self.indptr) - 1, dtype=torch.float64)
        plan[self.row.long(), self.column] = self.mass
        return plan


class SemiDual(NamedTuple):
    """The semi-dual D evaluated at f.

    Attributes:
        value: D(f), a lower bound of the objective of every plan.
        gradient: a - T 1, float64 [rows].
        g: column potentials, float64 [cols].
        plan: the maximiser T.
    """

    value: float
    gradient: Tensor
    g: Tensor
    plan: Columns


class Solution(NamedTuple):
    """The solver's final state.

    Attributes:
        status: "converged", "max_iter", or "stalled" if no step increases the semi-dual.
        iterations: number of steps.
        newton: number of Newton steps among them.
        evaluations: number of evaluations of the semi-dual.
        value: D(f).
        error: |a - T 1|_1.
        f: row potentials, float64 [rows].
        g: column potentials, float64 [cols].
        plan: the plan T.
    """

    status: str
    iterations: int
    newton: int
    evaluations: int
    value: float
    error: float
    f: Tensor
    g: Tensor
    plan: Columns


@dataclass(frozen=True)
class ConstrainedResult:
    """The result of `sparsity_constrained`; arrays have the library and dtype of its cost.

    Args:
        value: the dual value, a lower bound of <M, T> + gamma/2 |T|^2, equal to it if the row sums
            are exact. Differentiable in M, a and b.
        value_linear: <M, T>, without a gradient.
        potentials: (f [rows], g [cols]), the gradients of the value with respect to a and b.
        columns: the plan stored by columns, in float64.
        status: "converged", "max_iter" or "stalled".
        iterations: number of solver steps.
        marginal_error: |a - T 1|_1; the column sums are exact.
    """

    value: Any
    value_linear: Any
    potentials: tuple[Any, Any]
    columns: Columns
    status: str
    iterations: int
    marginal_error: float
    _problem: Problem

    @cached_property
    def plan(self) -> Any:
        """The plan T [rows, cols], dense, without a gradient."""
        return _give(self._problem, self.columns.dense())

    def sparse_plan(self) -> Tensor:
        """The plan T [rows, cols] as a torch COO tensor."""
        c = self.columns
        index = torch.stack([c.row.long(), c.column])
        mass = c.mass.to(self._problem.dtype)
        size = (c.rows, len(c.indptr) - 1)
        return torch.sparse_coo_tensor(index, mass, size, check_invariants=True).coalesce()


def sparsity_constrained(
    M: Any,
    a: Any = None,
    b: Any = None,
    k: int = 1,
    gamma: float = 1.0,
    method: str = "newton",
    max_iter: int = 1000,
    tol: float = 1e-9,
) -> ConstrainedResult:
    """Solve quadratically regularised transport with at most k non-zeros per column.

    Args:
        M: cost matrix [rows, cols], float32 or float64, torch or NumPy; the solver uses float64.
        a: mass of each row [rows]; None is uniform with sum 1.
        b: mass of each column [cols], of the same sum as a; None is uniform with sum 1.
        k: largest number of non-zeros per column; at the number of rows or above it has no effect.
        gamma: weight of |T|^2 / 2, in units of cost per mass. A smaller value is closer to
            unregularised transport and spreads a column over fewer rows: if k is active, lower
            gamma or raise k.
        method: "newton" (semismooth; few iterations) or "lbfgs".
        max_iter: largest number of steps.
        tol: L1 error of the row sums at which the solver stops, relative to the total mass.

    Returns:
        The result. If its status is not "converged", a `gossamer.ot.ConvergenceWarning` gives the
        error of the row sums; with an active k this is not a failure of the solver.

    Raises:
        ProblemError, ShapeError, DTypeError, DeviceError: the message names the argument.

    Reference:
        Liu, Puigcerver & Blondel 2023, "Sparsity-Constrained Optimal Transport", for the semi-dual;
        Lorenz, Manns & Meyer 2021, "Quadratically Regularized Optimal Transport", for Newton's
        method.

    Example:
        >>> import torch
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
        >>> result = sparsity_constrained(M, k=2)
        >>> result.plan.sum(0), (result.plan > 0).sum(0)
        (tensor([0.5000, 0.5000]), tensor([2, 2]))
    """
    k, max_iter = _positive_int(k, "k"), _positive_int(max_iter, "max_iter")
    gamma, tol = _positive(gamma, "gamma"), _positive(tol, "tol")
    if method not in METHODS:
        raise ProblemError(f"method is {method!r:.80}; choose one of {', '.join(METHODS)}")
    problem = from_cost(M, a, b, 1.0)
    if problem.batched:
        raise ProblemError(
            f"M has shape {list(problem.cost.shape)}; one cost matrix [rows, cols] is needed: "
            "call once per problem of a batch"
        )
    check_values(
        problem.cost, None, "", problem.a, problem.b, problem.reg, problem.rho, infinite=False
    )
    cost, rows, cols = problem.cost[0], problem.a[0], problem.b[0]
    solution = solve(cost, rows, cols, k, gamma, method=method, max_iter=max_iter, tol=tol)
    plan = solution.plan
    if solution.status != "converged":
        binds = k < len(cost) and bool((plan.indptr.diff() == k).any())
        cure = "raise k or lower gamma" if binds else "raise max_iter or tol"
        warn(
            f"sparsity_constrained ended as {solution.status!r} after {solution.iterations} steps: "
            f"the rows are off by {solution.error:.3g} in all, the columns are exact; {cure}"
        )
    linear = (cost.detach()[plan.row.long(), plan.column].double() * plan.mass).sum()
    return ConstrainedResult(
        _give(problem, _Value.apply(cost, rows, cols, solution)),  # type: ignore[no-untyped-call]
        _give(problem, linear),
        (_give(problem, solution.f), _give(problem, solution.g)),
        plan,
        solution.status,
        solution.iterations,
        solution.error,
        problem,
    )


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    k: int,
    gamma: float,
    *,
    method: str = "newton",
    max_iter: int = 1000,
    tol: float = 1e-9,
) -> Solution:
    """Run `sparsity_constrained`'s solver on checked tensors, without gradients or value checks.

    Args:
        cost: [rows, cols], float32 or float64.
        a: float64 [rows].
        b: float64 [cols], of the same sum as a.
        k: at least 1.
        gamma: positive.
        method: "newton" or "lbfgs".
        max_iter: at least 1.
        tol: positive, relative to the total mass.

    Returns:
        The solver's final state. f has mean 0: the semi-dual is invariant to a constant shift.
    """
    # Each row starts at the potential where it just reaches its cheapest column.
    start = cost.detach().amin(1).double()
    status, iterations, newton, evaluations, value, error, f, g, plan = kernels.semidual_solve(
        *_arguments(cost, a, b, k, gamma),
        start,
        method == "newton",
        tol * float(a.detach().sum()),
        max_iter,
    )
    middle = f.mean()
    columns = Columns(*plan, len(f))
    return Solution(
        status, iterations, newton, evaluations, value, error, f - middle, g + middle, columns
    )


def semi_dual(f: Tensor, cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float) -> SemiDual:
    """Evaluate D(f) = <f, a> - sum_j max_t <f - c_j, t> - gamma/2 |t|^2 and its gradient.

    Args:
        f: row potentials, float64 [rows].
        cost: [rows, cols], float32 or float64.
        a: float64 [rows].
        b: float64 [cols].
        k: largest number of non-zeros per column.
        gamma: positive.

    Returns:
        The value, the gradient and the maximisers t_j, which are the columns of the plan. Among
        entries that tie at the k-th place the lower rows are kept; the gradient is then one of
        several supergradients.
    """
    value, gradient, g, plan = kernels.semidual_evaluate(
        *_arguments(cost, a, b, k, gamma), f.detach().contiguous()
    )
    return SemiDual(value, gradient, g, Columns(*plan, len(f)))


class _Value(torch.autograd.Function):
    """The value; by the envelope theorem its gradients are T (cost), f (a) and g (b)."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, a: Tensor, b: Tensor, solution: Solution) -> Tensor:
        ctx.solution, ctx.dtype = solution, cost.dtype
        return torch.tensor(solution.value, dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        need_cost, need_a, need_b, _ = ctx.needs_input_grad
        s: Solution = ctx.solution
        return (
            (grad_output * s.plan.dense()).to(ctx.dtype) if need_cost else None,
            grad_output * s.f if need_a else None,
            grad_output * s.g if need_b else None,
            None,
        )


def _arguments(
    cost: Tensor, a: Tensor, b: Tensor, k: int, gamma: float
) -> tuple[Tensor, Tensor, Tensor, int, float]:
    # Transposed, so that the kernel reads each column contiguously.
    by_column = cost.detach().t().contiguous()
    return by_column, a.detach().contiguous(), b.detach().contiguous(), min(k, len(cost)), gamma


def _give(problem: Problem, x: Tensor) -> Any:
    """`x` in the caller's dtype and library; a NumPy scalar becomes a number."""
    x = x.to(problem.dtype)
    if not problem.numpy:
        return x
    x = x.detach()
    return x.item() if x.dim() == 0 else x.numpy()


def _positive_int(value: Any, name: str) -> int:
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number < 2**31:
        raise ProblemError(f"{name} is {value!r:.80}; an integer of at least 1 is needed")
    return number


def _positive(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ProblemError(f"{name} is {value!r:.80}; a positive finite number is needed")
    return number
