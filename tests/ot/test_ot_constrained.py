"""Sparsity-constrained transport: the semi-dual against enumeration, the solution against scipy."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from gossamer.ot import ConvergenceWarning
from gossamer.ot.constrained import METHODS, ConstrainedResult, semi_dual, sparsity_constrained
from support.ot_problems import points, problem


def best_column(s: Tensor, b: float, k: int, gamma: float) -> tuple[float, Tensor]:
    """The maximum of <s, t> - gamma/2 |t|^2 over k-sparse t of mass b, by trying every support."""
    found = (-np.inf, torch.zeros_like(s))
    for size in range(1, k + 1):
        for support in map(list, combinations(range(len(s)), size)):
            t = torch.zeros_like(s)
            t[support] = (s[support] - (s[support].sum() - gamma * b) / size) / gamma
            if bool((t >= 0).all()):
                value = float(s @ t - gamma / 2 * t @ t)
                found = max(found, (value, t), key=lambda pair: pair[0])
    return found


def cost_of(result: ConstrainedResult, cost: Tensor, gamma: float) -> Tensor:
    return (cost * result.plan).sum() + gamma / 2 * result.plan.square().sum()


# ---- the semi-dual -------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("gamma", [0.02, 0.5, 20.0])
def test_value_and_plan_are_the_best_over_all_supports(k: int, gamma: float) -> None:
    cost, a, b = problem(6, 4)
    b[1] = 0.0
    f = torch.randn(6, dtype=torch.float64)
    got = semi_dual(f, cost, a, b, k, gamma)
    value, plan = f @ a, torch.zeros(6, 4, dtype=torch.float64)
    for j in range(4):
        best, plan[:, j] = best_column(f - cost[:, j], float(b[j]), k, gamma)
        value = value - best
    torch.testing.assert_close(got.plan.dense(), plan, rtol=0, atol=1e-14)
    assert got.value == pytest.approx(float(value), abs=1e-13)
    torch.testing.assert_close(got.gradient, a - plan.sum(1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("gamma", [0.1, 10.0])
def test_the_gradient_is_that_of_finite_differences(k: int, gamma: float) -> None:
    cost, a, b = problem(50, 20)
    f = torch.randn(50, dtype=torch.float64) / 10
    gradient = semi_dual(f, cost, a, b, k, gamma).gradient
    h = 1e-6
    for i in range(50):
        up, down = f.clone(), f.clone()
        up[i] += h
        down[i] -= h
        slope = (
            semi_dual(up, cost, a, b, k, gamma).value - semi_dual(down, cost, a, b, k, gamma).value
        )
        assert slope / (2 * h) == pytest.approx(float(gradient[i]), abs=1e-8)


def test_the_semi_dual_is_concave_and_below_every_plan() -> None:
    cost, a, b = problem(12, 12, uniform=True)
    gamma, k = 2.0, 3
    permutation = torch.randperm(12)
    plan = torch.zeros(12, 12, dtype=torch.float64)
    plan[permutation, torch.arange(12)] = b
    bound = float((cost * plan).sum() + gamma / 2 * plan.square().sum())
    draws = [torch.randn(12, dtype=torch.float64) for _ in range(40)]
    for f, g in pairwise(draws):
        one, two, middle = (semi_dual(x, cost, a, b, k, gamma).value for x in (f, g, (f + g) / 2))
        assert middle >= (one + two) / 2 - 1e-12
        assert max(one, two) <= bound + 1e-12


def test_of_entries_that_tie_the_lower_rows_are_kept() -> None:
    a, b = torch.full((7,), 1 / 7).double(), torch.full((3,), 1 / 3).double()
    cost = torch.zeros(7, 3, dtype=torch.float64)
    cost[0] = 1.0  # not among the best
    plan = semi_dual(torch.zeros(7).double(), cost, a, b, 2, 1.0).plan
    assert plan.row.tolist() == [1, 2] * 3
    torch.testing.assert_close(plan.mass, torch.full((6,), 1 / 6).double())


def test_one_point_has_the_same_bits_for_any_number_of_threads() -> None:
    cost, a, b = points(300, 257)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        one = semi_dual(cost.amin(1), cost, a, b, 5, 3.0)
        solved = sparsity_constrained(cost, a, b, k=300, gamma=3.0)
        results.append((one, solved))
    for one, solved in results[1:]:
        assert one.value == results[0][0].value
        assert torch.equal(one.gradient, results[0][0].gradient)
        assert solved.iterations == results[0][1].iterations
        assert torch.equal(solved.plan, results[0][1].plan)
        assert torch.equal(solved.potentials[0], results[0][1].potentials[0])


# ---- the solution --------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize(("n", "m"), [(5, 4), (3, 6)])
def test_without_a_bound_it_is_quadratic_transport(
    n: int, m: int, gamma: float, method: str
) -> None:
    cost, a, b = problem(n, m)
    got = sparsity_constrained(cost, a, b, k=n, gamma=gamma, method=method, tol=1e-12)
    c, plan = cost.numpy().ravel(), np.outer(a, b)
    both = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))[: m - 1]])
    masses = np.concatenate([a, b[: m - 1]])
    best = minimize(
        lambda t: c @ t + gamma / 2 * t @ t,
        plan.ravel(),
        jac=lambda t: c + gamma * t,
        bounds=[(0, None)] * (n * m),
        constraints={"type": "eq", "fun": lambda t: both @ t - masses, "jac": lambda t: both},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert got.status == "converged"
    assert float(got.value) == pytest.approx(best.fun, abs=1e-9)
    np.testing.assert_allclose(got.plan, best.x.reshape(n, m), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [problem, points])
@pytest.mark.parametrize("gamma", [0.5, 20.0])
def test_where_the_rows_hold_primal_equals_dual(make: Any, gamma: float, method: str) -> None:
    cost, a, b = make(60, 90)
    got = sparsity_constrained(cost, a, b, k=60, gamma=gamma, method=method)
    assert got.status == "converged"
    assert got.marginal_error <= 1e-9
    assert float((got.plan.sum(1) - a).abs().sum()) == pytest.approx(got.marginal_error, abs=1e-14)
    assert float(got.value) == pytest.approx(float(cost_of(got, cost, gamma)), abs=1e-9)
    assert float(got.value_linear) == pytest.approx(float((cost * got.plan).sum()), abs=1e-14)
    f, g = got.potentials
    assert float(f @ a + g @ b - gamma / 2 * got.plan.square().sum()) == pytest.approx(
        float(got.value), abs=1e-13
    )
    assert abs(float(f.mean())) < 1e-12


def test_a_bound_that_does_not_bind_changes_nothing() -> None:
    cost, a, b = problem(60, 12)
    free = sparsity_constrained(cost, a, b, k=60, gamma=0.1)
    most = int((free.plan > 0).sum(0).max())
    assert most < 60
    bound = sparsity_constrained(cost, a, b, k=most, gamma=0.1)
    assert bound.status == "converged"
    torch.testing.assert_close(bound.plan, free.plan, rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_that_binds_leaves_rows_off_and_says_so(method: str) -> None:
    cost, a, b = problem(60, 12, uniform=True)
    free = sparsity_constrained(cost, a, b, k=60, gamma=1.0)
    with pytest.warns(ConvergenceWarning, match="rows are off by 0.0.* raise k or lower gamma"):
        got = sparsity_constrained(cost, a, b, k=6, gamma=1.0, method=method)
    assert got.status != "converged"
    assert float((got.plan.sum(1) - a).abs().sum()) == pytest.approx(got.marginal_error, abs=1e-14)
    assert 1e-3 < got.marginal_error < 0.1
    # The relaxation costs more than without a bound, and no more than a plan that obeys it.
    assert float(free.value) < float(got.value)


@pytest.mark.parametrize("method", METHODS)
def test_at_a_kink_the_solver_sees_that_nothing_leads_up(method: str) -> None:
    cost, a, b = problem(20, 15)
    with pytest.warns(ConvergenceWarning, match="ended as 'stalled'"):
        got = sparsity_constrained(cost, a, b, k=4, method=method, max_iter=100_000)
    assert got.status == "stalled"
    assert got.iterations < 300


def test_newton_needs_fewer_steps() -> None:
    cost, a, b = points(100, 100)
    newton, lbfgs = (
        sparsity_constrained(cost, a, b, k=100, gamma=1.0, method=method) for method in METHODS
    )
    assert newton.status == lbfgs.status == "converged"
    assert 3 * newton.iterations < lbfgs.iterations
    torch.testing.assert_close(newton.value, lbfgs.value, rtol=0, atol=1e-11)


def test_a_step_limit_is_kept_and_named() -> None:
    cost, a, b = points(60, 60)
    for method in METHODS:
        with pytest.warns(ConvergenceWarning, match="'max_iter' after 2 steps: .* raise max_iter"):
            got = sparsity_constrained(cost, a, b, k=60, method=method, max_iter=2)
        assert (got.status, got.iterations) == ("max_iter", 2)
        torch.testing.assert_close(got.plan.sum(0), b, rtol=1e-13, atol=0)


# ---- what holds for every input ------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::gossamer.ot.ConvergenceWarning")
@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    k=st.integers(1, 35),
    gamma=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 9),
    tied=st.booleans(),
    empty=st.booleans(),
)
def test_columns_are_exact_and_have_at_most_k_entries(
    n: int, m: int, k: int, gamma: float, method: str, seed: int, tied: bool, empty: bool
) -> None:
    cost, a, b = problem(n, m, seed)
    if tied:
        cost = (4 * cost).round()
    if empty:
        a[0], b[-1] = a[0] * (n == 1), b[-1] * (m == 1)
        a, b = a / a.sum(), b / b.sum()
    got = sparsity_constrained(cost, a, b, k=k, gamma=gamma, method=method, max_iter=60)
    plan = got.plan
    assert bool((plan >= 0).all())
    assert int((plan > 0).sum(0).max()) <= k
    torch.testing.assert_close(plan.sum(0), b, rtol=1e-12, atol=0)
    assert all(bool(torch.isfinite(x).all()) for x in (*got.potentials, got.value))
    torch.testing.assert_close(got.sparse_plan().to_dense(), plan, rtol=0, atol=0)


def test_columns_stay_exact_far_from_zero() -> None:
    cost, a, b = points(40, 30)
    far = sparsity_constrained(cost + 1e6, a, b, k=40, gamma=1e-3, tol=1e-5)
    torch.testing.assert_close(far.plan.sum(0), b, rtol=1e-13, atol=0)
    near = sparsity_constrained(cost, a, b, k=40, gamma=1.0)
    shifted = sparsity_constrained(
        cost + torch.rand(40, 1).double() + torch.rand(30).double(), a, b, k=40, gamma=1.0
    )
    torch.testing.assert_close(shifted.plan, near.plan, rtol=0, atol=1e-8)


def test_the_order_of_rows_and_columns_does_not_matter() -> None:
    cost, a, b = problem(30, 20)
    rows, cols = torch.randperm(30), torch.randperm(20)
    one = sparsity_constrained(cost, a, b, k=30, gamma=1.0)
    two = sparsity_constrained(cost[rows][:, cols], a[rows], b[cols], k=30, gamma=1.0)
    torch.testing.assert_close(two.plan, one.plan[rows][:, cols], rtol=0, atol=1e-8)


def test_empty_rows_and_columns_stay_empty() -> None:
    cost, a, b = problem(8, 6)
    a[2] = b[3] = 0.0
    a, b = a / a.sum(), b / b.sum()
    got = sparsity_constrained(cost, a, b, k=8, gamma=1.0)
    assert got.status == "converged"
    assert float(got.plan[2].sum()) < 1e-9
    assert float(got.plan[:, 3].sum()) == 0.0
    kept = sparsity_constrained(
        cost[[0, 1, 3, 4, 5, 6, 7]][:, [0, 1, 2, 4, 5]], a[a > 0], b[b > 0], k=8, gamma=1.0
    )
    assert float(got.value) == pytest.approx(float(kept.value), abs=1e-9)


def test_single_rows_and_columns_have_their_closed_forms() -> None:
    cost, a, b = problem(1, 5)
    torch.testing.assert_close(sparsity_constrained(cost, a, b, k=3).plan[0], b)
    got = sparsity_constrained(cost.T, b, a, k=5, gamma=0.1)
    torch.testing.assert_close(got.plan[:, 0], b, rtol=0, atol=1e-9)
