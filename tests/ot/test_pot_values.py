"""gossamer.ot.pot_backend: POT's conventions for values, potentials and gradients."""

import itertools
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from gossamer.ot import pot_backend as pot
from support import ot_oracle as oracle

INF = np.inf


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """POT's: sum p log(p / q), without the masses."""
    return float(xlogy(p, p).sum() - xlogy(p, q).sum())


@pytest.mark.parametrize("mass", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["KL", "entropy"])
def test_exact_marginals(mass: float, kind: str) -> None:
    C, a, b = oracle.case(6, 9)
    a, b = mass * a, mass * b
    plan, _, _ = oracle.sinkhorn(C, a, b, 0.1)
    got = pot.solve(C, a, b, 0.1, reg_type=kind)
    reference = np.outer(a, b) if kind == "KL" else np.ones_like(C)
    wanted = (C * plan).sum() + 0.1 * divergence(plan, reference)
    assert float(got.value) == pytest.approx(wanted, abs=1e-7)
    assert float(got.value_linear) == pytest.approx((C * plan).sum(), abs=1e-7)
    u, v = (np.exp(p) for p in got.potentials)
    assert np.abs(u[:, None] * np.exp(-C / 0.1) * v - plan).max() < 1e-8
    assert np.abs(got.marginal_a - a).max() < 1e-8
    assert np.abs(got.sparse_plan.toarray() - plan).max() < 1e-8
    again = pot.solve(C, a, b, 0.1, potentials_init=got.potentials)
    assert again.log["niter"] <= 2


@pytest.mark.parametrize("rho", [(0.7, 0.7), (0.7, INF)])
@pytest.mark.parametrize("kind", ["kl", "entropy"])
@pytest.mark.parametrize("own", [False, True])
def test_penalised_marginals(rho: tuple[float, float], kind: str, own: bool) -> None:
    C, a, b = oracle.case(6, 9)
    b = b if INF in rho else 2 * b
    rng = np.random.default_rng(0)
    c = rng.uniform(size=C.shape) * (rng.uniform(size=C.shape) > 0.2) if own else None
    reference = np.ones_like(C) if kind == "entropy" else np.outer(a, b) if c is None else c
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # entropy has no reference to choose
        plan, log = pot.sinkhorn_unbalanced(
            a, b, C, 0.1, rho, reg_type=kind, c=c, stopThr=1e-12, log=True
        )
    u, v = np.exp(log["logu"]), np.exp(log["logv"])
    assert np.abs(u[:, None] * np.exp(-C / 0.1) * reference * v - plan).max() < 1e-9
    wanted = (C * plan).sum() + 0.1 * divergence(plan, reference)
    for r, sums, weights in zip(rho, (plan.sum(1), plan.sum(0)), (a, b), strict=True):
        wanted += 0.0 if r == INF else r * divergence(sums, weights)
        # Optimal: u = (a / K v)^(rho / (rho + reg)).
    kernel = np.exp(-C / 0.1) * reference
    exponent = [1.0 if r == INF else r / (r + 0.1) for r in rho]
    assert np.abs(u - (a / (kernel @ v)) ** exponent[0]).max() < 1e-7 * u.max()
    assert np.abs(v - (b / (kernel.T @ u)) ** exponent[1]).max() < 1e-7 * v.max()
    assert float(log["cost"]) == pytest.approx((C * plan).sum(), abs=1e-9)
    assert float(log["total_cost"]) == pytest.approx(wanted, abs=1e-8)
    if not (own and kind == "entropy"):
        total = pot.sinkhorn_unbalanced2(
            a, b, C, 0.1, rho, reg_type=kind, c=c, stopThr=1e-12, returnCost="total"
        )
        assert float(total) == pytest.approx(wanted, abs=1e-8)
    if kind == "kl":
        solved = pot.solve(C, a, b, 0.1, c=c, unbalanced=rho, tol=1e-12)
        assert float(solved.value) == pytest.approx(wanted, abs=1e-8)
        assert np.abs(solved.potential_a - log["logu"]).max() < 1e-6


def test_pots_general_solver_has_the_masses() -> None:
    """reg_type "entropy" with penalised marginals is another solver in POT: other terms."""
    C, a, b = oracle.case(6, 9)
    got = pot.solve(C, a, 2 * b, 0.1, reg_type="entropy", unbalanced=0.7, tol=1e-12)
    wanted = oracle.objective(got.plan, C, a, 2 * b, 0.1, "entropy", (0.7, 0.7))
    assert float(got.value) == pytest.approx(wanted, abs=1e-9)


def test_several_unbalanced_problems_are_solved_with_entropy() -> None:
    C, a, b = oracle.case(6, 9)
    hists = np.stack([b, 2 * b], 1)
    with pytest.warns(UserWarning, match="solved as entropy, as in POT"):
        costs, log = pot.sinkhorn_unbalanced(a, hists, C, 0.1, 0.7, log=True)
    assert log["logu"].shape == (6, 2)
    for k in range(2):
        one = pot.sinkhorn_unbalanced2(a, hists[:, k], C, 0.1, 0.7, reg_type="entropy")
        assert float(costs[k]) == pytest.approx(float(one), abs=1e-6)


@pytest.mark.parametrize("grad", ["autodiff", "last_step", "envelope", "detach"])
@pytest.mark.parametrize("kind", ["KL", "entropy"])
def test_gradients_by_name(grad: str, kind: str) -> None:
    C, a, b = (torch.tensor(x, requires_grad=True) for x in oracle.case(5, 4))
    got = pot.solve(C, a, b, 0.2, reg_type=kind, grad=grad, tol=1e-12)
    assert got.value.requires_grad == (grad != "detach")
    rest = (got.value_linear, got.plan, *got.potentials, *got.marginals)
    assert {x.requires_grad for x in rest} == {grad in ("autodiff", "last_step")}
    if grad == "detach":
        return
    grads = torch.autograd.grad(got.value, (C, a, b))
    assert float((grads[0] - got.plan.detach()).abs().max()) < 1e-8
    for k, (x, g) in enumerate(zip((C, a, b), grads, strict=True)):
        rng = torch.Generator().manual_seed(k)
        way = torch.rand(x.shape, generator=rng, dtype=torch.float64)
        way = way - way.mean()  # the masses stay equal

        def moved(t: float, k: int = k, way: torch.Tensor = way) -> float:
            args = [y.detach() + (t * way if j == k else 0) for j, y in enumerate((C, a, b))]
            return float(pot.solve(*args, 0.2, reg_type=kind, tol=1e-13).value)

        assert float((g * way).sum()) == pytest.approx(oracle.slope(moved), abs=1e-6)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_points_lazy_or_not(metric: str, library: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = (library(rng.uniform(size=(n, 3))) for n in (6, 8))
    gaps = np.asarray(x)[:, None] - np.asarray(y)
    cost = {"sqeuclidean": (gaps**2).sum(-1), "euclidean": np.sqrt((gaps**2).sum(-1)),
            "cityblock": np.abs(gaps).sum(-1)}.get(metric)  # fmt: skip
    if cost is None:
        ux, uy = (np.asarray(p) / np.linalg.norm(p, axis=1, keepdims=True) for p in (x, y))
        cost = 1 - ux @ uy.T
    wanted, _, _ = oracle.sinkhorn(cost, np.full(6, 1 / 6), np.full(8, 1 / 8), 0.1)
    near = pot.solve_sample(x, y, metric=metric, reg=0.1)
    lazy = pot.solve_sample(x, y, metric=metric, reg=0.1, lazy=True, batch_size=3, n_threads=2)
    assert np.abs(np.asarray(near.plan) - wanted).max() < 1e-8
    assert isinstance(near.plan, torch.Tensor) == (library is torch.tensor)
    assert float(lazy.value) == pytest.approx(float(near.value), abs=1e-8)
    assert near.lazy_plan is None
    plan = lazy.lazy_plan
    assert plan.shape == (6, 8)
    parts: list[tuple[Any, np.ndarray]] = [
        (slice(None), wanted), (2, wanted[2:3]), ((-1, slice(1, 4)), wanted[-1:, 1:4]),
        ((slice(None), 3), wanted[:, 3:4]), ((1, 1), wanted[1:2, 1:2]),
    ]  # fmt: skip
    for key, part in parts:
        assert np.abs(np.asarray(plan[key]) - part).max() < 1e-8
    with pytest.raises(IndexError):
        plan[6]
    f, g = pot.bregman.empirical_sinkhorn(x, y, 0.1, metric=metric, isLazy=True, batchSize=(1, 3))
    assert np.abs(np.exp(np.asarray(f)[:, None] + np.asarray(g) - cost / 0.1) - wanted).max() < 1e-8
    loss, log = pot.bregman.empirical_sinkhorn2(x, y, 0.1, metric=metric, isLazy=True, log=True)
    assert float(loss) == pytest.approx((wanted * cost).sum(), abs=1e-8)
    _, _, again = pot.bregman.empirical_sinkhorn(
        x, y, 0.1, metric=metric, isLazy=True, warmstart=log["warmstart"], log=True
    )
    assert again["niter"] <= 2


def test_debiased_values() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(2, 6, 2))
    got = pot.solve_sample(x, y, reg=0.1, debias=True)
    parts = [pot.solve_sample(p, q, reg=0.1) for p, q in ((x, y), (x, x), (y, y))]
    for field in ("value", "value_linear"):
        between, first, second = (float(getattr(part, field)) for part in parts)
        assert float(getattr(got, field)) == pytest.approx(between - (first + second) / 2)
    divergence, log = pot.bregman.empirical_sinkhorn_divergence(x, y, 0.1, log=True)
    assert float(divergence) == pytest.approx(float(got.value_linear), abs=1e-7)
    assert {"sinkhorn_loss_ab", "log_sinkhorn_b"} <= set(log)


# ---- exact transport -----------------------------------------------------------------------------
@pytest.mark.parametrize("reg", [None, 0])
def test_without_reg_transport_is_exact(reg: float | None) -> None:
    rng = np.random.default_rng(0)
    for scale in (1.0, 1e-4, 1e5):
        M = scale * rng.uniform(size=(5, 5))
        best = min(M[np.arange(5), list(p)].mean() for p in itertools.permutations(range(5)))
        got = pot.solve(M, reg=reg)
        assert float(got.value) == pytest.approx(best, rel=1e-9)
        assert (got.plan > 0).sum() == 5
    C, a, b = oracle.case(7, 9)
    C[0, :4] = INF
    got = pot.solve(3 * C, a, b, reg)
    f, g = got.potentials
    here = np.isfinite(C)
    assert (f[:, None] + g - 3 * C)[here].max() < 1e-9  # feasible, and
    assert np.abs((f[:, None] + g - 3 * C)[got.plan > 0]).max() < 1e-9  # complementary: optimal
    assert np.abs(got.marginal_a - a).max() < 1e-12
    assert (got.plan[~here] == 0).all()
    x, y = rng.uniform(size=(2, 6, 2))
    cost = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
    for lazy in (True, False):
        found = pot.solve_sample(x, y, metric="euclidean", lazy=lazy)
        assert float(found.value) == pytest.approx(float(pot.solve(cost).value), abs=1e-12)


def test_exact_values_are_differentiable() -> None:
    C, a, b = (torch.tensor(x, requires_grad=True) for x in oracle.case(5, 4))
    got = pot.solve(C, a, b)
    got.value.backward()
    assert torch.equal(C.grad, got.plan)
    way = torch.tensor([0.3, -0.1, -0.2, 0.0, 0.0], dtype=torch.float64)

    def moved(t: float) -> float:
        return float(pot.solve(C.detach(), a.detach() + t * way, b.detach()).value)

    assert float((a.grad * way).sum()) == pytest.approx(oracle.slope(moved), abs=1e-8)


def test_exact_transport_is_refused_where_it_cannot_be_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    C, a, b = oracle.case(5, 4)
    blocked = np.array([[0.0, INF], [1.0, INF]])
    with pytest.raises(ValueError, match="every cost of that column"):
        pot.solve(blocked)
    tight = np.array([[0.0, INF, INF], [0.0, INF, INF], [0.0, 1.0, 1.0]])
    with pytest.raises(ValueError, match="avoids the infinite costs"):
        pot.solve(tight)
    for name in list(sys.modules):
        if name.partition(".")[0] == "scipy":
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotImplementedError, match="give reg, or pip install scipy"):
        pot.solve(C, a, b)


# ---- barycenters ---------------------------------------------------------------------------------
def bregman(A: np.ndarray, K: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """Benamou et al. 2015, written out."""
    v = np.ones_like(A)
    for _ in range(steps):
        reached = K.T @ (A / (K @ v))
        q = np.exp((weights * np.log(reached)).sum(1))
        v = q[:, None] / reached
    return q


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_log", "sinkhorn_stabilized"])
@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
def test_barycenters(method: str, library: Any) -> None:
    rng = np.random.default_rng(0)
    A = rng.uniform(0.1, 1.0, (12, 3))
    A /= A.sum(0)
    M = rng.uniform(size=(12, 12))
    weights = np.array([0.2, 0.5, 0.3])
    wanted = bregman(A, np.exp(-M / 0.1), weights, 3000)
    args = [library(x) for x in (A, M)]
    got, log = pot.barycenter(*args, 0.1, library(weights), method=method, stopThr=1e-12, log=True)
    assert np.abs(np.asarray(got) - wanted).max() < 1e-9
    assert log["err"][-1] < 1e-12
    assert isinstance(got, torch.Tensor) == (library is torch.tensor)
    same = pot.barycenter(np.stack([A[:, 0]] * 2, 1), M + M.T, 1e-3, stopThr=1e-12, warn=False)
    assert same.sum() == pytest.approx(1.0)


def test_unbalanced_and_debiased_barycenters() -> None:
    rng = np.random.default_rng(0)
    A = rng.uniform(0.1, 1.0, (10, 2)) * np.array([1.0, 2.0])
    places = np.linspace(0, 1, 10)
    M = (places[:, None] - places) ** 2
    q, log = pot.barycenter_unbalanced(A, M, 0.1, 0.8, stopThr=1e-12, log=True)
    K, s = np.exp(-M / 0.1), 0.8 / 0.9
    u, v = np.exp(log["logu"]), np.exp(log["logv"])
    assert np.abs(u - (A / (K @ v)) ** s).max() < 1e-9
    assert np.abs(v - (q[:, None] / (K.T @ u)) ** s).max() < 1e-9
    # Of one histogram, and of equal ones, the debiased barycenter is the histogram itself.
    one = np.exp(-((places - 0.5) ** 2) / 0.05)
    one /= one.sum()
    blurred = pot.barycenter(one[:, None], M, 0.02, stopThr=1e-10)
    sharp = pot.bregman.barycenter_debiased(np.stack([one] * 2, 1), M, 0.02, stopThr=1e-12)
    assert np.abs(sharp - one).max() < 1e-4
    assert np.abs(blurred - one).max() > 1e-2
    with pytest.warns(UserWarning, match="the barycenter did not converge"):
        pot.barycenter(A, M, 0.1, numItermax=1)


def test_a_barycenter_of_points() -> None:
    clouds = [np.array([[-1.0]]), np.array([[1.0]])]
    masses = [np.array([1.0])] * 2
    found = pot.bregman.free_support_sinkhorn_barycenter(
        clouds, masses, np.array([[-12.0]]), 1.0, weights=np.array([0.25, 0.75])
    )
    assert found == pytest.approx(0.5)
