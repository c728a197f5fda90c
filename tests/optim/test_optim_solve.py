"""Proximal optimizers reach solutions: optimality, convergence, the half-space stage."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.optim import AcceleratedProxGradient, HalfSpace, ProxAdamW, ProxSGD
from gossamer.prox import L1, MCP, Penalty


class Regression:
    """1/2 |A x - b|^2 with a spread of eigenvalues; its gradient is L-Lipschitz."""

    def __init__(self, rows: int, cols: int, condition: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        a = torch.randn(rows, cols, dtype=torch.float64)
        u, _, vt = torch.linalg.svd(a, full_matrices=False)
        self.a = (
            u
            @ torch.diag(torch.logspace(0, -math.log10(condition) / 2, cols, dtype=torch.float64))
            @ vt
        )
        truth = torch.zeros(cols, dtype=torch.float64)
        truth[: cols // 4] = torch.randn(cols // 4, dtype=torch.float64)
        self.b = self.a @ truth + 0.01 * torch.randn(rows, dtype=torch.float64)
        self.lipschitz = 1.0

    def loss(self, x: Tensor) -> Tensor:
        return (self.a @ x - self.b).square().sum() / 2

    def grad(self, x: Tensor) -> Tensor:
        return (self.a.t() @ (self.a @ x - self.b)).detach()

    def closure(self, x: nn.Parameter) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            x.grad = None
            loss = self.loss(x)
            loss.backward()
            return loss

        return closure


def parameter(cols: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(cols, dtype=torch.float64))


# ---- lasso ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProxAdamW, {"lr": 0.02, "weight_decay": 0.0}),
        (ProxSGD, {"lr": 1.0}),
        (ProxSGD, {"lr": 0.1, "momentum": 0.9}),
        (ProxSGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (ProxSGD, {"lr": 0.3, "momentum": 0.8, "dampening": 0.5}),
    ],
)
@pytest.mark.slow
def test_the_solution_of_a_lasso_is_reached(kind: Any, options: dict[str, Any]) -> None:
    problem, penalty = Regression(60, 20, 30.0), L1(0.02)
    x = parameter(20)
    optimizer = kind([x], penalty=penalty, **options)
    steps = 1500
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.99 ** max(0, step - 500) if kind is ProxAdamW else 1.0
    )
    for _ in range(steps):
        optimizer.step(problem.closure(x))
        decay.step()
    assert penalty.subdiff_distance(x.detach(), problem.grad(x.detach())) < 1e-6
    assert 4 <= (x != 0).sum() < 20
    x.grad = problem.grad(x)
    assert optimizer.stationarity()["0.0"] < 1e-6


def test_the_residual_falls_on_a_quadratic() -> None:
    problem = Regression(60, 20, 30.0)
    for penalty in (L1(0.02), L1(0.02, groups="layer"), MCP(0.02, 3.0)):
        x = parameter(20)
        optimizer = ProxSGD([x], lr=1.0, penalty=penalty)
        residuals = []
        for _ in range(150):
            x.grad = problem.grad(x)
            residuals.append(optimizer.stationarity()["0.0"])
            optimizer.step()
        if penalty.weak_convexity() == 0:  # the step is non-expansive
            pairs = itertools.pairwise(residuals)
            assert all(later <= sooner * (1 + 1e-9) for sooner, later in pairs), penalty
        assert residuals[-1] < 1e-3 * residuals[0]


def test_stationarity_is_the_norm_of_the_gradient_without_a_penalty() -> None:
    x, idle = parameter(2), parameter(2)
    x.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = ProxSGD([("x", x), ("idle", idle)], lr=0.1)
    assert optimizer.stationarity() == {"x": 5.0}
    optimizer.param_groups[0]["penalty"] = L1(1.0)
    assert optimizer.stationarity()["x"] == pytest.approx(13**0.5)
    x.grad = torch.tensor([0.5, -0.2], dtype=torch.float64)
    assert optimizer.stationarity() == {"x": 0.0}


# ---- acceleration --------------------------------------------------------------------------------
def iterations(optimizer: Any, x: nn.Parameter, problem: Regression, penalty: Penalty) -> int:
    for iteration in range(1, 20001):
        optimizer.step(problem.closure(x))
        if penalty.subdiff_distance(x.detach(), problem.grad(x.detach())) < 1e-7:
            return iteration
    return 20001


@pytest.mark.slow
def test_restarts_beat_plain_acceleration_and_plain_steps() -> None:
    problem, penalty = Regression(80, 40, 3000.0), L1(1e-4)
    taken = {}
    for restart in ("gradient", "objective", None, "plain"):
        x = parameter(40)
        optimizer: Any = (
            ProxSGD([x], lr=1.0, penalty=penalty)
            if restart == "plain"
            else AcceleratedProxGradient([x], lr=1.0, restart=restart, penalty=penalty)
        )
        taken[restart] = iterations(optimizer, x, problem, penalty)
    assert taken["gradient"] < taken[None] / 1.5 < taken["plain"] / 3
    assert taken["objective"] < taken[None] / 1.5


def test_the_objective_never_rises_with_its_restart() -> None:
    problem = Regression(80, 40, 3000.0)
    for penalty in (L1(1e-4), MCP(1e-3, 3.0)):
        rises = {}
        for restart in ("objective", None):
            x = parameter(40)
            optimizer = AcceleratedProxGradient([x], lr=1.0, restart=restart, penalty=penalty)
            values = []
            for _ in range(400):
                optimizer.step(problem.closure(x))
                values.append(float(problem.loss(x.detach())) + penalty.value(x.detach()))
            pairs = itertools.pairwise(values)
            rises[restart] = sum(later > sooner + 1e-15 for sooner, later in pairs)
        assert rises["objective"] == 0
        assert rises[None] > 0


def test_fista_without_restart_is_its_recurrence() -> None:
    problem, lam, step = Regression(60, 20, 300.0), 0.01, 0.7
    x = parameter(20)
    optimizer = AcceleratedProxGradient([x], lr=step, restart=None, penalty=L1(lam))
    now = before = x.detach().clone()
    t = 1.0
    for _ in range(60):
        after = (1 + (1 + 4 * t * t) ** 0.5) / 2
        y = now + (t - 1) / after * (now - before)
        v = y - step * problem.grad(y)
        before, now, t = now, v.sign() * (v.abs() - step * lam).clamp_min(0), after
        loss = optimizer.step(problem.closure(x))
        torch.testing.assert_close(loss.detach(), problem.loss(y))
        torch.testing.assert_close(x.detach(), now, rtol=1e-12, atol=1e-12)


def test_several_groups_accelerate_together() -> None:
    """Each parameter's own penalty, one without any; the joint problem's optimality holds."""
    problem = Regression(60, 20, 300.0)
    left, right = parameter(12), parameter(8)
    optimizer = AcceleratedProxGradient(
        [{"params": [left], "penalty": L1(0.01)}, {"params": [right]}], lr=1.0
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss(torch.cat([left, right]))
        loss.backward()
        return loss

    for _ in range(600):
        optimizer.step(closure)
    gradient = problem.grad(torch.cat([left, right]).detach())
    assert L1(0.01).subdiff_distance(left.detach(), gradient[:12]) < 1e-8
    assert gradient[12:].norm() < 1e-8


# ---- half-space ----------------------------------------------------------------------------------
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_half_space_test_is_the_published_one(eps: float) -> None:
    """x - s (grad + lam x_g / |x_g|), and out when <., x_g> < eps |x_g|^2."""
    torch.manual_seed(0)
    lam, step = 0.5, 0.1
    dropped = checked = 0
    for _ in range(40):
        x, gradient = torch.randn(2, 30, 3, dtype=torch.float64)
        x *= torch.rand(30, 1)
        gradient *= 4
        x[:4] = 0
        norms = x.norm(dim=1, keepdim=True)
        trial = x - step * (gradient + lam * x / norms)
        out = (trial * x).sum(1) < eps * norms[:, 0].square()
        weight = nn.Parameter(x.clone())
        weight.grad = gradient
        optimizer = ProxSGD(
            [weight], lr=step, penalty=L1(lam, groups="neuron"), half_space=HalfSpace(0, eps)
        )
        optimizer.step()
        zero = (weight == 0).all(1)
        assert not torch.signbit(weight[zero]).any()
        assert zero[:4].all()
        far = norms[:, 0] > step * lam
        v = x - step * gradient
        alone = L1(lam, groups="neuron").prox(v, step)
        assert torch.equal(zero[far], (out | (alone == 0).all(1))[far])
        torch.testing.assert_close(weight[~zero], alone[~zero], rtol=1e-12, atol=1e-12)
        dropped, checked = dropped + int(out[far].sum()), checked + int(far.sum())
    assert 100 < dropped < checked - 100


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
@pytest.mark.parametrize("groups", ["neuron", "element"])
def test_the_second_stage_begins_at_its_step_and_only_adds_zeros(kind: Any, groups: str) -> None:
    torch.manual_seed(0)
    noise = torch.randn(80, 30, 4)
    target = torch.zeros(30, 4)
    target[:6] = 5.0 * torch.randn(6, 4).sign()
    weights = nn.Parameter(torch.randn(30, 4)), nn.Parameter(torch.zeros(0))
    weights[1].data = weights[0].detach().clone()
    penalty = L1(0.05, groups=groups)
    options: dict[str, Any] = {"lr": 0.3, "penalty": penalty}
    plain = kind([weights[0]], **options)
    staged = kind([weights[1]], half_space=HalfSpace(start=60, eps=0.5), **options)
    counts = []
    for step in range(80):
        for weight, optimizer in zip(weights, (plain, staged), strict=True):
            weight.grad = (weight - target + noise[step]).detach()
            optimizer.step()
        if step < 60:
            torch.testing.assert_close(*weights)
        elif step == 60 and (kind is ProxSGD or groups == "element"):  # Adam's steps are short
            assert staged.sparsity()["0.0"].zero_groups > plain.sparsity()["0.0"].zero_groups
        counts.append(staged.sparsity()["0.0"].zero_groups)
    second = counts[60:]
    assert second == sorted(second)
    assert second[-1] > plain.sparsity()["0.0"].zero_groups
    assert (weights[1][:6] != 0).all()


def test_the_half_space_stage_keeps_nan() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([torch.nan, 100.0, 0.0])
    ProxSGD([weight], lr=0.1, penalty=L1(0.1), half_space=HalfSpace(0)).step()
    assert weight[0].isnan()
    assert weight[1] == 0
    assert weight[2] == torch.tensor(1.0) - torch.tensor(0.1) * 0.1
