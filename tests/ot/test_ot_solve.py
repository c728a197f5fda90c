"""gossamer.ot.solve against a long NumPy Sinkhorn, the assignment problem and identities."""

import functools
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import gossamer.ot as ot
from support import ot_oracle as oracle

INF = np.inf
METHODS = ["auto", "sinkhorn", "newton"]
SHAPES = [(5, 7), (7, 5), (30, 40), (1, 6), (6, 1), (1, 1)]
PENALTIES = [(INF, INF), (0.5, 0.5), (0.3, INF), (INF, 2.0)]


def gap(x: object, y: object) -> float:
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


@functools.cache
def long_sinkhorn(kind: str, reg: float) -> np.ndarray:
    return oracle.sinkhorn(*oracle.case(20, 30, seed=3, kind=kind), reg)[0]


@pytest.mark.parametrize("kind", ["points", "random"])
@pytest.mark.parametrize(
    ("method", "reg"),
    [(m, r) for m in METHODS for r in (1.0, 1e-1, 1e-2, 1e-3) if (m, r) != ("sinkhorn", 1e-3)],
)
def test_plan_is_that_of_a_long_sinkhorn(method: str, kind: str, reg: float) -> None:
    C, a, b = oracle.case(20, 30, seed=3, kind=kind)
    result = ot.solve(C, a, b, reg=reg, method=method, tol=1e-12)
    plan = long_sinkhorn(kind, reg)
    assert result.status == "converged"
    assert gap(result.plan, plan) < 1e-8
    assert result.value_linear == pytest.approx((C * plan).sum(), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [*METHODS, "published"])
def test_marginals_are_within_tol(method: str, shape: tuple[int, int]) -> None:
    C, a, b = oracle.case(*shape, seed=1)
    result = ot.solve(C, a, b, reg=0.05, method=method, tol=1e-9)
    error = np.abs(result.plan.sum(1) - a).sum() + np.abs(result.plan.sum(0) - b).sum()
    assert result.status == "converged"
    assert np.isfinite(result.plan).all()
    assert (result.plan >= 0).all()
    assert error <= 1.01e-9
    assert result.marginal_error == pytest.approx(error, abs=1e-12)
    assert gap(result.marginal_a, result.plan.sum(1)) < 1e-14
    assert gap(result.marginal_b, result.plan.sum(0)) < 1e-14


@pytest.mark.parametrize("rho", PENALTIES)
@pytest.mark.parametrize("reg_type", ["KL", "entropy"])
def test_value_is_the_objective_and_the_optimum(reg_type: str, rho: tuple[float, float]) -> None:
    """The value is the dual's; the objective of the plan is the primal's."""
    C, a, b = oracle.case(8, 6, seed=2)
    if rho != (INF, INF):
        b = b * 1.7
    result = ot.solve(C, a, b, reg=0.1, reg_type=reg_type, unbalanced=rho, tol=1e-12)
    primal = oracle.objective(result.plan, C, a, b, 0.1, reg_type, rho)
    assert result.value == pytest.approx(primal, abs=1e-10)
    truth = oracle.optimal(C, a, b, 0.1, reg_type=reg_type, rho=rho)
    assert result.value == pytest.approx(truth, abs=1e-10)


@pytest.mark.parametrize("rho", PENALTIES)
@pytest.mark.parametrize("method", METHODS)
def test_unbalanced_marginals_obey_their_condition(method: str, rho: tuple[float, float]) -> None:
    """P 1 = a exp(-f / rho) with f the potential of the a x b form; exact where rho is infinite."""
    C, a, b = oracle.case(9, 12, seed=4)
    reg, b = 0.05, b * (1.0 if rho == (INF, INF) else 2.5)
    result = ot.solve(C, a, b, reg=reg, unbalanced=rho, method=method, tol=1e-12)
    plan, _, _ = oracle.sinkhorn(C, a, b, reg, rho)
    assert gap(result.plan, plan) < 1e-9
    for k, (weights, r) in enumerate(zip((a, b), rho, strict=True)):
        reference = result.potentials[k] - reg * np.log(weights)
        assert gap(result.marginals[k], weights * np.exp(-reference / r)) < 1e-10


def test_a_strong_penalty_approaches_the_balanced_problem() -> None:
    """Like 1 / rho."""
    C, a, b = oracle.case(9, 12)
    exact = ot.solve(C, a, b, reg=0.05, tol=1e-12)
    near, nearer = (
        ot.solve(C, a, b, reg=0.05, unbalanced=rho, method="newton", tol=1e-11)
        for rho in (10.0, 100.0)
    )
    gaps = [gap(penalized.plan, exact.plan) for penalized in (near, nearer)]
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.05)


@pytest.mark.parametrize("reg", [1e-4, 1e-5])
def test_small_reg_gives_the_assignment_within_reg_log_n(reg: float) -> None:
    n = 40
    C = np.random.default_rng(5).uniform(size=(n, n))
    rows, cols = linear_sum_assignment(C)
    best = C[rows, cols].mean()
    result = ot.solve(C, reg=reg, tol=1e-9)
    assert result.status == "converged"
    assert best - 1e-8 <= result.value_linear <= best + reg * np.log(n)


@pytest.mark.parametrize("method", METHODS)
def test_symmetries_of_the_problem(method: str) -> None:
    C, a, b = oracle.case(11, 8, seed=6)
    rng = np.random.default_rng(0)
    rows, cols = rng.uniform(-1, 1, 11), rng.uniform(-1, 1, 8)
    p, q = rng.permutation(11), rng.permutation(8)

    def solve(C, a, b, reg=0.03):
        return ot.solve(C, a, b, reg=reg, tol=1e-12, method=method)

    base = solve(C, a, b)
    shifted = solve(C + rows[:, None] + cols, a, b)
    assert gap(shifted.plan, base.plan) < 1e-10
    moved = shifted.potentials[0] - base.potentials[0] - rows
    assert np.ptp(moved) < 1e-9
    scaled = solve(7 * C, a, b, 0.21)
    assert gap(scaled.plan, base.plan) < 1e-10
    assert gap(scaled.potentials[0], 7 * base.potentials[0]) < 1e-9
    permuted = solve(C[p][:, q], a[p], b[q])
    assert gap(permuted.plan, base.plan[p][:, q]) < 1e-10
    transposed = solve(C.T, b, a)
    assert gap(transposed.plan, base.plan.T) < 1e-10
    assert gap(transposed.potentials[0], base.potentials[1]) < 1e-9


def test_potentials_make_the_plan_and_have_equal_means() -> None:
    C, a, b = oracle.case(6, 9)
    result = ot.solve(C, a, b, reg=0.02)
    f, g = result.potentials
    assert gap(result.plan, np.exp((f[:, None] + g - C) / 0.02)) < 1e-14
    assert f.mean() == pytest.approx(g.mean(), abs=1e-12)
    part = ot.solve(C, np.append(a[:-1], 0) / a[:-1].sum(), b, reg=0.02)
    assert part.potential_a[:-1].mean() == pytest.approx(part.potential_b.mean(), abs=1e-12)
    assert result.potential_a is f
    assert result.potential_b is g


@pytest.mark.parametrize("rho", [(INF, INF), (0.4, 0.4)])
@pytest.mark.parametrize("method", METHODS)
def test_rows_without_mass_get_no_plan(method: str, rho: tuple[float, float]) -> None:
    C, a, b = oracle.case(7, 9, seed=8)
    a[[1, 4]], b[0] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    result = ot.solve(C, a, b, reg=0.05, unbalanced=rho, method=method, tol=1e-12)
    plan, _, _ = oracle.sinkhorn(C, a, b, 0.05, rho)
    assert result.status == "converged"
    assert (result.plan[[1, 4]] == 0).all()
    assert (result.plan[:, 0] == 0).all()
    assert (result.potentials[0][[1, 4]] == 0).all()
    assert result.potentials[1][0] == 0
    assert gap(result.plan, plan) < 1e-10
    assert result.value == pytest.approx(oracle.optimal(C, a, b, 0.05, rho=rho), abs=1e-10)
    sparse = result.sparse_plan(threshold=0.0).to_dense().numpy()
    assert gap(sparse, plan) < 1e-10
    assert np.isneginf(result.log_scalings[0][[1, 4]]).all()


def test_closed_forms() -> None:
    C, a, b = oracle.case(4, 6)
    one_row = ot.solve(C[:1], None, b, reg=0.01)
    assert gap(one_row.plan, b[None]) < 1e-12
    one_column = ot.solve(C[:, :1], a, None, reg=0.01)
    assert gap(one_column.plan, a[:, None]) < 1e-12
    constant = ot.solve(np.full((4, 6), 3.0), a, b, reg=0.01)
    assert gap(constant.plan, np.outer(a, b)) < 1e-12
    assert constant.value == pytest.approx(3.0)
    hot = ot.solve(C, a, b, reg=1e6)
    assert gap(hot.plan, np.outer(a, b)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_warm_start_at_the_solution(method: str) -> None:
    C, a, b = oracle.case(30, 25)
    cold = ot.solve(C, a, b, reg=1e-2, method=method, tol=1e-10)
    warm = ot.solve(C, a, b, reg=1e-2, method=method, tol=1e-9, potentials_init=cold.potentials)
    assert warm.status == "converged"
    assert warm.log["newton"] <= 1
    assert warm.iterations <= max(5, cold.iterations // 3)
    assert gap(warm.plan, cold.plan) < 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
def test_a_batch_is_a_loop(method: str, shape: tuple[int, int]) -> None:
    cases = [oracle.case(*shape, seed=s) for s in range(4)]
    C, a, b = (torch.tensor(np.stack(parts)) for parts in zip(*cases, strict=True))
    reg = torch.tensor([0.01, 0.1, 1.0, 0.03], dtype=torch.float64)
    batch = ot.solve(C, a, b, reg=reg, method=method)
    assert batch.status == ["converged"] * 4
    assert batch.plan.shape == (4, *shape)
    for i in range(4):
        single = ot.solve(C[i], a[i], b[i], reg=float(reg[i]), method=method)
        assert gap(batch.plan[i], single.plan) < 1e-12
        for k in (0, 1):
            assert gap(batch.potentials[k][i], single.potentials[k]) < 1e-12
        assert float(batch.value[i]) == pytest.approx(float(single.value), abs=1e-12)
        assert float(batch.value_linear[i]) == pytest.approx(float(single.value_linear), abs=1e-12)
        assert batch.iterations[i] == single.iterations
        assert batch.log[i]["method"] == single.log["method"]


def test_one_row_of_weights_serves_a_whole_batch() -> None:
    C = np.stack([oracle.case(5, 7, seed=s).C for s in range(3)])
    _, a, b = oracle.case(5, 7)
    batch = ot.solve(C, a, b, reg=0.1)
    for i in range(3):
        assert gap(batch.plan[i], ot.solve(C[i], a, b, reg=0.1).plan) < 1e-12


def test_a_failing_item_does_not_disturb_the_others() -> None:
    """Problem 1 cannot finish in its sweeps; the others are what they are alone, to the bit."""
    cases = [oracle.case(12, 15, seed=s) for s in range(3)]
    C, a, b = (np.stack(parts) for parts in zip(*cases, strict=True))
    reg = np.array([0.5, 1e-4, 0.5])
    with pytest.warns(ot.ConvergenceWarning, match=r"1 of 3 problems, .* number 1"):
        batch = ot.solve(C, a, b, reg=reg, method="sinkhorn", max_iter=60)
    assert batch.status == ["converged", "max_iter", "converged"]
    for i in (0, 2):
        single = ot.solve(C[i], a[i], b[i], reg=0.5, method="sinkhorn", max_iter=60)
        assert gap(batch.plan[i], single.plan) < 1e-15
        assert batch.marginal_error[i] <= 1e-9


def test_the_warning_names_the_worst_of_several() -> None:
    C, a, b = oracle.case(12, 15)
    with pytest.warns(ot.ConvergenceWarning, match="2 of 3 problems, the worst being number 2"):
        ot.solve(
            np.stack([C] * 3), a, b, np.array([2e-2, 0.5, 1e-4]), method="sinkhorn", max_iter=20
        )


def test_a_warm_batch_needs_few_steps() -> None:
    C, a, b = oracle.case(12, 15)
    cost = np.stack([C, 2 * C])
    cold = ot.solve(cost, a, b, reg=1e-2, method="sinkhorn", tol=1e-10)
    warm = ot.solve(
        cost, a, b, reg=1e-2, method="sinkhorn", tol=1e-9, potentials_init=cold.potentials
    )
    assert all(w <= c / 3 for w, c in zip(warm.iterations, cold.iterations, strict=True))


def test_a_batch_with_an_item_that_has_empty_rows() -> None:
    cases = [oracle.case(6, 8, seed=s) for s in range(3)]
    C, a, b = (np.stack(parts) for parts in zip(*cases, strict=True))
    a[1, 2] = 0
    a[1] /= a[1].sum()
    batch = ot.solve(C, a, b, reg=0.05, tol=1e-12)
    for i in range(3):
        assert gap(batch.plan[i], oracle.sinkhorn(C[i], a[i], b[i], 0.05)[0]) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_the_result(method: str) -> None:
    C, a, b = oracle.case(150, 130)
    plans = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        plans.append(ot.solve(C, a, b, reg=5e-3, method=method).plan)
    assert (plans[0] == plans[1]).all()
    assert (plans[1] == plans[2]).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_unfinished_solve_says_so(method: str) -> None:
    C, a, b = oracle.case(40, 40, kind="random")
    with pytest.warns(ot.ConvergenceWarning, match="max_iter=2 .*raise max_iter") as caught:
        result = ot.solve(C, a, b, reg=1e-3, method=method, max_iter=2)
    assert caught[0].filename == __file__
    assert result.status == "max_iter"
    assert result.iterations <= 5  # a round of sweeps that has begun is finished
    assert result.marginal_error > 1e-9
    assert np.isfinite(result.plan).all()
    assert np.isfinite(result.value)


@pytest.mark.timeout(60)
def test_a_tolerance_below_the_precision_ends_with_a_word() -> None:
    C, a, b = oracle.case(20, 20, kind="random")
    with pytest.warns(ot.ConvergenceWarning, match="did not converge") as caught:
        result = ot.solve(C, a, b, reg=1e-3, tol=1e-300)
    assert len(caught) == 1
    assert result.status in ("stalled", "max_iter")
    assert result.marginal_error < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_and_numpy_agree_and_keep_their_kind(dtype: torch.dtype) -> None:
    C, a, b = (torch.tensor(t, dtype=dtype) for t in oracle.case(6, 9))
    in_torch = ot.solve(C, a, b, reg=0.05)
    in_numpy = ot.solve(C.numpy(), a.numpy(), b.numpy(), reg=0.05)
    assert in_torch.plan.dtype == in_torch.value.dtype == in_torch.potentials[0].dtype == dtype
    assert isinstance(in_numpy.plan, np.ndarray)
    assert isinstance(in_numpy.value, np.floating)
    assert (in_torch.plan.numpy() == in_numpy.plan).all()
    assert float(in_torch.value) == float(in_numpy.value)
    assert in_numpy.plan.dtype == C.numpy().dtype
    assert in_numpy.marginal_error <= 1e-9


def test_memory_of_any_kind() -> None:
    C, a, b = oracle.case(6, 9)
    wanted = ot.solve(C, a, b, reg=0.1).plan
    wide = np.zeros((12, 18))
    wide[::2, ::2] = C
    frozen = C.copy()
    frozen.setflags(write=False)
    cost = torch.tensor(C)
    for other in (
        np.asfortranarray(C), C[::-1][::-1], wide[::2, ::2], frozen, cost.T.contiguous().T,
        cost.expand(1, 6, 9)[0], torch.tensor(wide)[::2, ::2],
    ):  # fmt: skip
        assert gap(ot.solve(other, a, b, reg=0.1).plan, wanted) < 1e-14
    assert gap(ot.solve(C, a[::-1][::-1], b, reg=0.1).plan, wanted) < 1e-14


def test_names_of_one_call() -> None:
    C, a, b = oracle.case(20, 20)
    base = ot.solve(C, a, b, 1e-2)
    assert gap(ot.solve(M=C, a=a, b=b, reg=1e-2).plan, base.plan) == 0
    by_sinkhorn = ot.sinkhorn(C, a, b, 1e-2)
    assert by_sinkhorn.log["method"] == "sinkhorn"
    assert by_sinkhorn.log["newton"] == 0
    by_newton = ot.sinkhorn_newton_sparse(C, a, b, 1e-2)
    assert by_newton.log["newton"] > 0
    published = ot.sinkhorn_newton_sparse(C, a, b, 1e-2, method="published")
    assert published.log["newton"] > 0
    assert published.iterations == published.log["sweeps"] + published.log["newton"]
    relaxed = ot.sinkhorn(C, a, b, 1e-2, omega=1.5)
    assert relaxed.iterations < by_sinkhorn.iterations
    for other in (by_sinkhorn, by_newton, published, relaxed):
        assert other.status == "converged"
        assert gap(other.plan, base.plan) < 1e-7
    assert "converged" in repr(base)


def test_the_sparse_plan_keeps_what_its_threshold_says() -> None:
    C, a, b = oracle.case(30, 20, kind="random")
    result = ot.solve(torch.tensor(C), a, b, reg=5e-3)
    dense = result.plan
    for threshold in (0.0, 1e-8, 1e-2):
        sparse = result.sparse_plan(threshold)
        assert sparse.layout == torch.sparse_csr
        bound = threshold * torch.sqrt(dense.sum(1)[:, None] * dense.sum(0))
        assert gap(sparse.to_dense(), torch.where(dense >= bound, dense, 0.0)) < 1e-15
    batch = ot.solve(np.stack([C, C]), a, b, reg=5e-3).sparse_plan(1e-2)
    assert [s.shape for s in batch] == [(30, 20)] * 2


def test_masses_other_than_one_and_nearly_equal() -> None:
    C, a, b = oracle.case(6, 9)
    result = ot.solve(C, 5 * a, 5 * b * (1 + 1e-7), reg=0.1, tol=1e-10)
    assert result.status == "converged"
    assert result.plan.sum() == pytest.approx(5.0, rel=1e-9)
    plan = ot.solve(C, 5 * a, 5 * b, reg=0.1, tol=1e-12)
    assert plan.value == pytest.approx(oracle.objective(plan.plan, C, 5 * a, 5 * b, 0.1), abs=1e-9)


def test_nothing_warns_or_is_written() -> None:
    C, a, b = oracle.case(6, 9)
    kept = [t.copy() for t in (C, a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ot.solve(C, a, b, reg=0.01, potentials_init=(np.zeros(6), np.zeros(9)))
        _ = result.plan, result.value, result.value_linear, result.marginals, result.sparse_plan()
    for before, after in zip(kept, (C, a, b), strict=True):
        assert (before == after).all()
