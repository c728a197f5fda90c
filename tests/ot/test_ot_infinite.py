"""Infinite costs forbid pairs: no mass, no NaN, and the answer of the problem without them."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import gossamer.ot as ot
from support import ot_oracle as oracle

INF = math.inf


def forbidden(n: int, m: int, share: float = 0.4, seed: int = 0) -> tuple[np.ndarray, ...]:
    """A cost with infinite entries, and the marginals of a plan that avoids them."""
    rng = np.random.default_rng(seed)
    cost = rng.uniform(size=(n, m))
    allowed = rng.uniform(size=(n, m)) > share
    allowed[np.arange(n), np.arange(n) % m] = allowed[np.arange(m) % n, np.arange(m)] = True
    plan = np.where(allowed, rng.uniform(0.1, 1.0, (n, m)), 0.0)
    plan /= plan.sum()
    return np.where(allowed, cost, INF), plan.sum(1), plan.sum(0)


@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
@pytest.mark.parametrize(("n", "m"), [(6, 9), (9, 6), (40, 50)])
@pytest.mark.parametrize("reg", [0.3, 0.02])
@pytest.mark.parametrize("rho", [None, (0.5, 0.5), (INF, 0.7)])
def test_no_mass_where_the_cost_is_infinite(
    method: str, n: int, m: int, reg: float, rho: tuple[float, float] | None
) -> None:
    C, a, b = forbidden(n, m)
    got = ot.solve(C, a, b, reg, unbalanced=rho, method=method, max_iter=100_000, tol=1e-10)
    assert got.status == "converged"
    plan, _, _ = oracle.sinkhorn(C, a, b, reg, rho or (INF, INF))
    assert np.abs(got.plan - plan).max() < 1e-8
    assert (got.plan[np.isinf(C)] == 0).all()
    here = np.isfinite(C)
    wanted = oracle.objective(np.where(here, plan, 0.0), np.where(here, C, 0.0), a, b, reg, "KL",
                              rho or (INF, INF))  # fmt: skip
    assert float(got.value) == pytest.approx(wanted, abs=1e-8)
    assert float(got.value_linear) == pytest.approx((plan * np.where(here, C, 0.0)).sum(), abs=1e-8)
    assert np.abs(got.marginals[0] - plan.sum(1)).max() < 1e-8
    assert got.sparse_plan(0.0).to_dense().numpy()[~here].sum() == 0
    assert all(np.isfinite(p).all() for p in got.potentials)


def test_batches_and_weights_of_zero() -> None:
    problems = [forbidden(5, 7, seed=k) for k in range(3)]
    C, a, b = (np.stack(parts) for parts in zip(*problems, strict=True))
    C[1] = np.where(np.isinf(C[1]), 1.0, C[1])  # one problem without
    a[2], C[2, 3] = np.where(np.arange(5) == 3, 0.0, a[2]), INF  # nobody is there
    a[2] *= b[2].sum() / a[2].sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last one may have no plan
        got = ot.solve(C, a, b, 0.1)
        for k in range(3):
            alone = ot.solve(C[k], a[k], b[k], 0.1)
            assert np.abs(got.plan[k] - alone.plan).max() < 1e-9
    assert np.isfinite(got.plan).all()
    assert np.isfinite(got.value).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_ignore_forbidden_pairs(dtype: torch.dtype) -> None:
    C, a, b = (torch.tensor(x, dtype=dtype) for x in forbidden(4, 5))
    b = b * (a.sum() / b.sum())
    reg = torch.tensor(0.2, dtype=dtype, requires_grad=True)
    for x in (C, a, b):
        x.requires_grad_()
    result = ot.solve(C, a, b, reg)
    weight = torch.linspace(0, 1, 20, dtype=dtype).view(4, 5)
    loss = result.value + result.value_linear + (result.plan * weight).sum()
    grads = torch.autograd.grad(loss, (C, a, b, reg), create_graph=True)
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert bool((grads[0][torch.isinf(C)] == 0).all())
    assert bool((grads[0][torch.isfinite(C)] != 0).all())
    again = torch.autograd.grad(grads[0].sum() + grads[3], (C, a, b, reg))
    assert all(bool(torch.isfinite(g).all()) for g in again)
    # The same with a cost so high that nothing goes there.
    high = torch.where(torch.isinf(C), 60.0, C).detach().requires_grad_()
    other = ot.solve(high, a, b, reg)
    loss = other.value + other.value_linear + (other.plan * weight).sum()
    for got, wanted in zip(grads, torch.autograd.grad(loss, (high, a, b, reg)), strict=True):
        assert float((got - wanted).detach().abs().max()) < 1e-4


def test_a_cost_that_leaves_no_plan_is_said() -> None:
    C = np.array([[0.0, INF, INF], [0.0, INF, INF], [0.0, 1.0, 1.0]])  # two thirds into one third
    with pytest.warns(ot.ConvergenceWarning, match="did not converge"):
        ot.solve(C, reg=0.1, max_iter=2000)


def test_the_history_of_the_error() -> None:
    C, a, b = oracle.case(30, 40, kind="random")
    for method, cap in itertools.product(("sinkhorn", "newton", "auto"), (3, 1000)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ot.ConvergenceWarning)
            got = ot.solve(C, a, b, 0.01, method=method, max_iter=cap)
        assert got.errors[-1] == got.marginal_error
        assert 1 < len(got.errors) <= 65
    steps = ot.solve(C, a, b, 0.05, method="sinkhorn").errors
    assert steps[:-1] == sorted(steps[:-1], reverse=True)
    many = ot.solve(np.stack([C, C]), a, b, 0.05).errors
    assert many[0] == many[1] == ot.solve(C, a, b, 0.05).errors


@pytest.mark.parametrize(("n", "m"), [(5, 8), (8, 5), (7, 7)])
@pytest.mark.parametrize("sweeps", [1, 2, 7, 300])
@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.3)])
def test_tolerance_zero_takes_exactly_that_many_sweeps(
    n: int, m: int, sweeps: int, rho: tuple[float, float]
) -> None:
    C, a, b = oracle.case(n, m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ot.ConvergenceWarning)
        got = ot.solve(C, a, b, 0.05, unbalanced=rho, method="sinkhorn", tol=0.0, max_iter=sweeps)
    plan, _, _ = oracle.sinkhorn(C, a, b, 0.05, rho, tol=0.0, sweeps=sweeps)
    assert got.iterations == sweeps
    assert np.abs(got.plan - plan).max() < 1e-12
