"""The compiled transport solvers against formulas written out in torch, and their own promises."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gossamer import backend
from gossamer.ot import core

METHODS = ["auto", "sinkhorn", "newton", "published"]


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    backend.use_isa(None)


def weights(n: int, seed: int) -> Tensor:
    """Far from uniform: a wrong formula often survives uniform marginals."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, generator=generator, dtype=torch.float64) + 0.05
    return x / x.sum()


def random_cost(n: int, m: int, seed: int = 0) -> Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clouds(n: int, m: int, d: int = 2) -> tuple[Tensor, Tensor]:
    return random_cost(n, d, 1), random_cost(m, d, 2)


def dense_cost(x: Tensor, y: Tensor, metric: str) -> Tensor:
    if metric == "sqeuclidean":
        return ((x[:, None] - y[None]) ** 2).sum(-1)
    if metric == "l1":
        return (x[:, None] - y[None]).abs().sum(-1)
    normal = torch.nn.functional.normalize
    return 1 - normal(x, dim=1) @ normal(y, dim=1).T


def oracle(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    reg: float,
    rho: tuple[float, float] = (math.inf, math.inf),
    sweeps: int = 20_000,
) -> Tensor:
    """The plan by plain log-domain Sinkhorn, in torch."""
    kappa = [1.0 if math.isinf(r) else r / (r + reg) for r in rho]
    u, v = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(sweeps):
        before = u
        u = a.log() - kappa[0] * torch.logsumexp(v - cost / reg, 1)
        v = b.log() - kappa[1] * torch.logsumexp(u[:, None] - cost / reg, 0)
        if float((u - before).abs().max()) < 1e-14:
            break
    return torch.exp(u[:, None] + v - cost / reg)


def plan_of(cost: Tensor, s: core.Solution, reg: float) -> Tensor:
    return torch.exp((s.f[:, None] + s.g - cost) / reg)


def residual(plan: Tensor, a: Tensor, b: Tensor) -> float:
    return float((plan.sum(1) - a).abs().sum() + (plan.sum(0) - b).abs().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), [(30, 50), (50, 30), (1, 7), (7, 1), (1, 1), (64, 64)])
def test_against_plain_sinkhorn(method: str, n: int, m: int) -> None:
    cost, a, b = random_cost(n, m), weights(n, 3), weights(m, 4)
    s = core.solve_dual(cost, a, b, 0.05, core.Options(method=method, tol=1e-11))
    assert s.status == "converged"
    torch.testing.assert_close(plan_of(cost, s, 0.05), oracle(cost, a, b, 0.05), rtol=0, atol=1e-10)


@pytest.mark.parametrize("reg", [1.0, 1e-1, 1e-2, 1e-3, 2e-4, 2e-5])
@pytest.mark.parametrize("kind", ["random", "points"])
def test_converges_at_any_reg_and_says_the_truth(kind: str, reg: float) -> None:
    n, m = 120, 150
    cost = random_cost(n, m) if kind == "random" else dense_cost(*clouds(n, m), "sqeuclidean")
    a, b = weights(n, 5), weights(m, 6)
    s = core.solve_dual(cost, a, b, reg)
    plan = plan_of(cost, s, reg)
    assert s.status == "converged"
    assert residual(plan, a, b) < 1.1e-9
    assert abs(residual(plan, a, b) - s.error) < 1e-12
    primal = (cost * plan).sum() + reg * (torch.xlogy(plan, plan) - plan).sum()
    dual = a @ s.f + b @ s.g - reg * plan.sum()
    assert abs(float(primal - dual)) < 1e-9 * max(1.0, 1 / reg * 1e-3)


@pytest.mark.parametrize("masses", [[0.3, 0.7], [1e-10, 1 - 1e-10], [0.5, 0.5]])
def test_two_islands(masses: list[float]) -> None:
    """Two pairs with next to no link: the system is singular beyond its gauge."""
    cost = torch.tensor([[0.0, 0.9], [1.0, 0.1]], dtype=torch.float64)
    a = torch.tensor(masses, dtype=torch.float64)
    b = torch.tensor([0.4, 0.6], dtype=torch.float64)
    for reg in (1e-1, 1e-2, 1e-3):
        s = core.solve_dual(cost, a, b, reg)
        assert s.status == "converged", reg
        assert residual(plan_of(cost, s, reg), a, b) < 1e-8


def test_small_reg_is_the_assignment() -> None:
    n, reg = 200, 1e-4
    cost = random_cost(n, n)
    a = torch.full((n,), 1 / n, dtype=torch.float64)
    s = core.solve_dual(cost, a, a, reg)
    _, _, value = core.reduce_plan(cost, s.f, s.g, reg)
    rows, cols = linear_sum_assignment(cost.numpy())
    best = float(cost[rows, cols].mean())
    assert -1e-9 <= float(value) - best <= reg * math.log(n)


@pytest.mark.parametrize("rho", [(0.5, 0.5), (0.05, math.inf), (math.inf, 0.2), (5.0, 0.5)])
@pytest.mark.parametrize("method", ["auto", "sinkhorn", "newton"])
def test_relaxed_marginals(method: str, rho: tuple[float, float]) -> None:
    """At the optimum P 1 = a exp(-f / rho), f with respect to a (x) b (Chizat et al., 2018)."""
    cost, a, b, reg = random_cost(30, 40), weights(30, 7), 1.3 * weights(40, 8), 0.02
    if math.isinf(rho[0]) or math.isinf(rho[1]):
        b = b / 1.3
    s = core.solve_dual(cost, a, b, reg, core.Options(method=method, tol=1e-11), rho=rho)
    plan = plan_of(cost, s, reg)
    f, g = s.f - reg * a.log(), s.g - reg * b.log()
    assert s.status == "converged"
    torch.testing.assert_close(plan.sum(1), a * torch.exp(-f / rho[0]), rtol=0, atol=1e-10)
    torch.testing.assert_close(plan.sum(0), b * torch.exp(-g / rho[1]), rtol=0, atol=1e-10)
    torch.testing.assert_close(plan, oracle(cost, a, b, reg, rho), rtol=0, atol=1e-9)


def test_symmetries() -> None:
    cost, a, b, reg = random_cost(40, 60), weights(40, 9), weights(60, 10), 0.01
    plan = plan_of(cost, core.solve_dual(cost, a, b, reg, core.Options(tol=1e-12)), reg)

    def again(c: Tensor, p: Tensor, q: Tensor, e: float = reg) -> Tensor:
        return plan_of(c, core.solve_dual(c, p, q, e, core.Options(tol=1e-12)), e)

    close = {"rtol": 0.0, "atol": 1e-11}
    shifts = random_cost(40, 1, 11) + random_cost(1, 60, 12)
    torch.testing.assert_close(again(cost + shifts, a, b), plan, **close)
    torch.testing.assert_close(again(7 * cost, a, b, 7 * reg), plan, **close)
    torch.testing.assert_close(again(cost.T, b, a).T, plan, **close)
    torch.testing.assert_close(again(cost.T.contiguous(), b, a).T, plan, **close)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(cost[:, order], a, b[order]), plan[:, order], **close)
    torch.testing.assert_close(
        again(cost[::2], *halves(a, b)), again(cost[::2].clone(), *halves(a, b))
    )
    constant = torch.full((40, 60), 3.0, dtype=torch.float64)
    torch.testing.assert_close(again(constant, a, b), torch.outer(a, b), **close)


def halves(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a[::2] / a[::2].sum(), b


@pytest.mark.parametrize("method", METHODS)
def test_threads_change_no_bit(method: str) -> None:
    cost, a, b = random_cost(300, 280), weights(300, 13), weights(280, 14)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(core.solve_dual(cost, a, b, 2e-3, core.Options(method=method, max_iter=300)))
    for other in found[1:]:
        assert torch.equal(found[0].f, other.f)
        assert torch.equal(found[0].g, other.g)
        assert found[0][2:] == other[2:]


@pytest.mark.parametrize("isa", backend.isas())
def test_every_isa(isa: str) -> None:
    backend.use_isa(isa)
    cost, a, b = random_cost(33, 61), weights(33, 15), weights(61, 16)
    s = core.solve_dual(cost, a, b, 3e-3)
    assert s.status == "converged"
    exact = plan_of(cost, s, 3e-3)
    torch.testing.assert_close(core.plan(cost, s.f, s.g, 3e-3), exact, rtol=1e-11, atol=1e-300)
    assert residual(exact, a, b) < 1.1e-9


def test_exp_over_its_whole_range() -> None:
    x = torch.linspace(-700, 700, 100_003, dtype=torch.float64)
    got = core.plan(-x[None], torch.zeros(1), torch.zeros(len(x)), 1.0)[0]
    torch.testing.assert_close(got, x.exp(), rtol=1e-15, atol=0)
    far = core.plan(torch.tensor([[1e6, 5000.0]]), torch.zeros(1), torch.zeros(2), 1.0)
    assert float(far.max()) < 1e-300


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
def test_points_are_their_cost_matrix(metric: str) -> None:
    x, y = clouds(70, 90, 3)
    cost, points = dense_cost(x, y, metric), core.Points(x, y, metric)
    a, b, reg = weights(70, 17), weights(90, 18), 2e-3
    s = core.solve_dual(points, a, b, reg)
    assert s.status == "converged"
    plan = plan_of(cost, s, reg)
    assert residual(plan, a, b) < 1.1e-9
    torch.testing.assert_close(core.plan(points, s.f, s.g, reg), plan, rtol=1e-9, atol=1e-300)
    rows, cols, value = core.reduce_plan(points, s.f, s.g, reg)
    torch.testing.assert_close(rows, plan.sum(1))
    torch.testing.assert_close(cols, plan.sum(0))
    torch.testing.assert_close(value, (cost * plan).sum())
    sparse = core.sparse_plan(points, s.f, s.g, reg, 1e-6).to_dense()
    kept = plan >= 1e-6 * rows.sqrt()[:, None] * cols.sqrt()
    torch.testing.assert_close(sparse, plan * kept, rtol=1e-9, atol=1e-300)
    swapped = core.solve_dual(core.Points(y, x, metric), b, a, reg)
    torch.testing.assert_close(plan_of(cost.T, swapped, reg).T, plan, rtol=0, atol=1e-8)


def test_float32_costs_are_computed_on_in_float64() -> None:
    cost = random_cost(50, 60).float()
    a, b = weights(50, 19), weights(60, 20)
    one, two = (core.solve_dual(c, a, b, 1e-3) for c in (cost, cost.double()))
    torch.testing.assert_close(
        plan_of(cost, one, 1e-3), plan_of(cost, two, 1e-3), rtol=0, atol=1e-9
    )


def test_nothing_without_mass() -> None:
    cost, a, b = random_cost(20, 30), weights(20, 21), weights(30, 22)
    a[3] = a[7] = b[0] = 0.0
    a, b = a / a.sum(), b / b.sum()
    s = core.solve_dual(cost, a, b, 0.01)
    assert s.status == "converged"
    assert s.f[3] == s.f[7] == s.g[0] == 0.0
    alive = core.solve_dual(cost[a > 0][:, b > 0], a[a > 0], b[b > 0], 0.01)
    assert torch.equal(s.f[a > 0], alive.f)
    assert torch.equal(s.g[b > 0], alive.g)


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1"])
def test_screening_lets_nothing_slip(metric: str) -> None:
    """With l1 costs the potentials move far, and the screen has to be given up on the way."""
    n = 400
    cost = dense_cost(*clouds(n, n), metric)
    a, b = weights(n, 23), weights(n, 24)
    s = core.solve_dual(cost, a, b, 1e-3, core.Options(method="newton"))
    assert s.status == "converged"
    assert s.passes % 1 > 0  # some passes went over a part of the entries
    assert residual(plan_of(cost, s, 1e-3), a, b) < 1.1e-9


def test_warm_start_at_the_solution() -> None:
    cost, a, b = random_cost(80, 90), weights(80, 25), weights(90, 26)
    cold = core.solve_dual(cost, a, b, 1e-3, core.Options(tol=1e-10))
    warm = core.solve_dual(cost, a, b, 1e-3, core.Options(method="newton"), warm=(cold.f, cold.g))
    assert warm.newton <= 1
    assert warm.status == "converged"


def test_the_cap_is_a_status() -> None:
    cost, a, b = random_cost(60, 60), weights(60, 27), weights(60, 28)
    for method in METHODS:
        s = core.solve_dual(cost, a, b, 1e-4, core.Options(method=method, max_iter=12))
        assert s.status in ("max_iter", "stalled")
        assert s.sweeps + s.newton <= 12 + 45  # an annealing stage begins with a few sweeps
        assert abs(s.error - residual(plan_of(cost, s, 1e-4), a, b)) < 1e-9 * (1 + s.error)


def test_over_relaxation_reaches_the_same_plan_sooner() -> None:
    cost, a, b = dense_cost(*clouds(60, 60), "sqeuclidean"), weights(60, 29), weights(60, 30)
    plain = core.solve_dual(cost, a, b, 1e-2, core.Options(method="sinkhorn"))
    faster = core.solve_dual(cost, a, b, 1e-2, core.Options(method="sinkhorn", omega=1.5))
    assert faster.status == "converged"
    assert faster.sweeps < 0.7 * plain.sweeps
    torch.testing.assert_close(
        plan_of(cost, faster, 1e-2), plan_of(cost, plain, 1e-2), rtol=0, atol=1e-8
    )


def test_a_batch_is_its_problems() -> None:
    costs = torch.stack([random_cost(12, 20, s) for s in range(5)])
    a = torch.stack([weights(12, s) for s in range(5)])
    b = torch.stack([weights(20, s + 50) for s in range(5)])
    regs = [1.0, 0.1, 0.01, 1e-3, 1e-4]
    batch = core.solve_dual_batch(costs, a, b, regs)
    for k, s in enumerate(batch):
        alone = core.solve_dual(costs[k], a[k], b[k], regs[k])
        assert torch.equal(s.f, alone.f)
        assert torch.equal(s.g, alone.g)
        assert s[2:] == alone[2:]


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("shifted", [False, True])
def test_laplacian_solve(layout: str, shifted: bool) -> None:
    n, m, reg = 30, 45, 0.02
    cost, a, b = random_cost(n, m), weights(n, 31), weights(m, 32)
    s = core.solve_dual(cost, a, b, reg, core.Options(tol=1e-12))
    plan = plan_of(cost, s, reg)
    given = plan if layout == "dense" else plan.to_sparse_csr()
    matrix = torch.cat(
        [torch.cat([plan.sum(1).diag(), plan], 1), torch.cat([plan.T, plan.sum(0).diag()], 1)]
    )
    shift = torch.rand(n + m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if shifted:
        matrix = matrix + shift.diag()
    q = matrix @ random_cost(n + m, 1, 33)[:, 0]
    z_f, z_g, report = core.laplacian_solve(
        given,
        q[:n],
        q[n:],
        shift_f=shift[:n] if shifted else None,
        shift_g=shift[n:] if shifted else None,
    )
    assert report.converged
    torch.testing.assert_close(matrix @ torch.cat([z_f, z_g]), q, rtol=0, atol=1e-11)
    if not shifted:
        assert abs(float(z_f.sum() - z_g.sum())) < 1e-10


# The same examples in every run: masses down to 1e-10 at reg 1e-4 still find a stall now and then
# (below), and a chance find belongs into that list, not into somebody else's build.
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    log_reg=st.floats(-4, 1),
    seed=st.integers(0, 2**16),
    concentrated=st.booleans(),
)
def test_any_problem_converges(
    n: int, m: int, log_reg: float, seed: int, concentrated: bool
) -> None:
    reg = 10.0**log_reg
    cost, a, b = random_cost(n, m, seed), weights(n, seed + 1), weights(m, seed + 2)
    if concentrated:
        a, b = a**8 / (a**8).sum(), b**8 / (b**8).sum()
    s = core.solve_dual(cost, a, b, reg)
    assert s.status == "converged"
    assert residual(plan_of(cost, s, reg), a, b) < 2e-9


@pytest.mark.xfail(strict=True, reason="known: stalls above the tolerance, and says so")
def test_known_stall() -> None:
    cost, a, b = random_cost(28, 17, 29), weights(28, 30), weights(17, 31)
    a, b = a**8 / (a**8).sum(), b**8 / (b**8).sum()
    assert core.solve_dual(cost, a, b, 1e-4).status == "converged"
