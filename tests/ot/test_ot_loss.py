"""gossamer.ot.loss against the NumPy oracle's three values, and as a training loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer.ot as ot
from gossamer.ot.gradients import STATUSES
from gossamer.ot.plans import log_plan, masked, pairwise
from gossamer.ot.problem import from_points, settings
from gossamer.ot.solve import potentials
from support import ot_oracle as oracle


def clouds(n: int = 6, m: int = 9, d: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(0.2, 2.0, k) for k in (n, m))
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5, a / a.sum(), b / b.sum()


def costs(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    gaps = x[:, None] - y[None]
    if metric == "cosine":
        unit_x, unit_y = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in (x, y))
        return 1 - unit_x @ unit_y.T
    return (gaps**2).sum(-1) if metric == "sqeuclidean" else np.abs(gaps).sum(-1)


def divergence(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, reg: float, metric: str
) -> float:
    values = [
        oracle.optimal(costs(p, q, metric), v, w, reg)
        for p, q, v, w in ((x, y, a, b), (x, x, a, a), (y, y, b, b))
    ]
    return values[0] - 0.5 * (values[1] + values[2])


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
def test_the_value_is_the_oracles(metric: str, lazy: bool) -> None:
    x, y, a, b = clouds()
    got = ot.loss(x, y, a, b, reg=0.3, metric=metric, lazy=lazy)
    assert isinstance(got, np.floating)
    assert float(got) == pytest.approx(divergence(x, y, a, b, 0.3, metric), abs=1e-8)
    biased = ot.loss(x, y, a, b, reg=0.3, metric=metric, lazy=lazy, debias=False)
    assert float(biased) == pytest.approx(oracle.optimal(costs(x, y, metric), a, b, 0.3), abs=1e-8)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
def test_gradients_against_differences_of_the_oracle(metric: str, lazy: bool) -> None:
    x, y, a, b = clouds()
    leaf = [torch.tensor(t, requires_grad=True) for t in (x, y, a, b)]
    value = ot.loss(*leaf, reg=1.0, metric=metric, lazy=lazy, tol=1e-12)
    grads = [g.numpy() for g in torch.autograd.grad(value, leaf)]
    rng = np.random.default_rng(2)
    for k in range(4):
        step = rng.normal(size=leaf[k].shape)
        if k >= 2:
            step = 0.1 * (step - step.mean())

        def at(t: float, k: int = k, step: np.ndarray = step) -> float:
            moved = [z + t * step if i == k else z for i, z in enumerate((x, y, a, b))]
            return divergence(*moved, 1.0, metric)

        assert float((grads[k] * step).sum()) == pytest.approx(oracle.slope(at), abs=1e-7)


def test_it_is_zero_for_equal_clouds_and_positive_for_others() -> None:
    x, y, a, b = (torch.tensor(t) for t in clouds())
    x.requires_grad_()
    same = ot.loss(x, x.detach(), a, a, reg=0.2)
    assert abs(same.item()) < 1e-12
    assert float(torch.autograd.grad(same, x)[0].abs().max()) < 1e-8
    assert ot.loss(x, y, a, b, reg=0.2).item() > 0.01
    assert ot.loss(x, x.detach(), a, a, reg=0.2, debias=False).abs().item() > 0.01
    moved = ot.loss(x, x.detach() + torch.tensor([3.0, 4.0]), a, a, reg=0.2)
    assert moved.item() == pytest.approx(25.0, abs=1e-8)


def test_a_batch_is_a_loop() -> None:
    parts = [clouds(seed=s) for s in range(3)]
    x, y, a, b = (torch.tensor(np.stack(p), requires_grad=True) for p in zip(*parts, strict=True))
    weights = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    for lazy in (True, False):
        batch = ot.loss(x, y, a, b, reg=0.2, lazy=lazy)
        assert batch.shape == (3,)
        grads = torch.autograd.grad((batch * weights).sum(), (x, y, a, b))
        for i in range(3):
            leaf = [t[i].detach().requires_grad_() for t in (x, y, a, b)]
            single = ot.loss(*leaf, reg=0.2, lazy=lazy)
            assert single.item() == pytest.approx(batch[i].item(), abs=1e-12)
            for whole, one in zip(grads, torch.autograd.grad(single, leaf), strict=True):
                assert float((whole[i] - weights[i] * one).abs().max()) < 1e-10


def test_reg_of_each_problem_of_a_batch() -> None:
    x, y, _, _ = clouds()
    xs, ys, reg = np.stack([x, x]), np.stack([y, y]), np.array([0.1, 1.0])
    batch = ot.loss(xs, ys, reg=reg)
    for i in range(2):
        assert batch[i].item() == pytest.approx(float(ot.loss(x, y, reg=float(reg[i]))), abs=1e-12)


def test_float32_in_float32_out() -> None:
    x, y, a, b = (torch.tensor(t, dtype=torch.float32) for t in clouds())
    x.requires_grad_()
    value = ot.loss(x, y, a, b, reg=0.2)
    value.backward()
    assert value.dtype == x.grad.dtype == torch.float32
    wide = ot.loss(*(t.detach().double() for t in (x, y, a, b)), reg=0.2)
    assert value.item() == pytest.approx(float(wide), rel=1e-6)


def test_second_derivatives() -> None:
    x, y, a, b = (torch.tensor(t) for t in clouds(3, 4))

    def call(x: Tensor, y: Tensor) -> Tensor:
        return ot.loss(x, y, a, b, reg=0.5, tol=1e-14)

    assert torch.autograd.gradgradcheck(call, (x.requires_grad_(), y.requires_grad_()), atol=1e-6)


def test_weights_of_zero_can_be_learned() -> None:
    """The gradient at an empty weight is that of the divergence, one-sided."""
    x, y, a, b = clouds()
    a[1] = 0
    a /= a.sum()
    leaf = torch.tensor(a, requires_grad=True)
    value = ot.loss(torch.tensor(x), torch.tensor(y), leaf, torch.tensor(b), reg=0.3, tol=1e-12)
    grad = torch.autograd.grad(value, leaf)[0].numpy()
    step = -a.copy()
    step[1] = 1.0
    h = 1e-5
    one, two = (
        divergence(x, y, a + k * h * step, b, 0.3, "sqeuclidean") - value.item() for k in (1, 2)
    )
    assert float(grad @ step) == pytest.approx((4 * one - two) / (2 * h), abs=1e-4)


def test_descent_moves_a_cloud_onto_another() -> None:
    torch.manual_seed(0)
    y = torch.randn(40, 2) + torch.tensor([4.0, 0.0])
    x = torch.randn(40, 2, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.3)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = ot.loss(x, y, reg=0.05, tol=1e-6)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[0] > 10
    assert values[-1] < 0.05
    gaps = torch.cdist(x.detach(), y).min(1).values
    assert float(gaps.mean()) < 0.2


@pytest.mark.slow
def test_compiled_training_equals_eager() -> None:
    torch.compiler.reset()
    x, y, a, b = (torch.tensor(t) for t in clouds())
    weight = torch.eye(2, dtype=torch.float64).requires_grad_()

    def step(weight: Tensor) -> Tensor:
        return ot.loss(x @ weight, y, a, b, reg=0.3)

    function = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, wanted = (torch.autograd.grad(f(weight), weight)[0] for f in (function, step))
    assert float((got - wanted).abs().max()) < 1e-12


@pytest.mark.parametrize("method", ["sinkhorn", "newton"])
def test_how_to_solve_is_passed_on(method: str) -> None:
    x, y, a, b = clouds(30, 30)
    with pytest.warns(ot.ConvergenceWarning, match="max_iter=1 "):
        ot.loss(x, y, a, b, reg=0.01, method=method, max_iter=1, debias=False)
    wanted = float(ot.loss(x, y, a, b, reg=1.0))
    assert float(ot.loss(x, y, a, b, reg=1.0, method=method)) == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-5])
def test_a_cloud_against_itself_is_solved_in_few_sweeps(reg: float, metric: str) -> None:
    """Where the plan is all but diagonal and other sweeps stand still."""
    x, _, a, _ = (torch.tensor(t) for t in clouds(40, 9))
    a[3] = 0
    a /= a.sum()
    problem = from_points(x, x, a, a, reg, metric)
    how = replace(settings(problem, tol=1e-12), method="symmetric")
    f, g, stats = potentials(problem, how)
    assert (f == g).all()
    assert STATUSES[int(stats[0, 0])] == "converged"
    assert stats[0, 1] <= 60
    plan = log_plan(pairwise(x, x, metric)[None], problem.reg, masked(f, a), masked(g, a)).exp()
    assert float((plan[0].sum(1) - a).abs().sum()) < 1e-11
