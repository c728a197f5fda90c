"""ProxLinear against closed forms, and its model against perturbations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DTypeError, PenaltyError
from gossamer.optim import ProxLinear
from gossamer.prox import L0, L1, SLOPE, ElasticNet, Huber, Penalty

OUTERS = [L1(0.25), ElasticNet(0.25, rho=0.0), Huber(0.5, delta=0.3), SLOPE(0.4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("lr", [0.01, 1.0, 100.0])
def test_squares_are_gauss_newton(lr: float) -> None:
    x = nn.Parameter(normal(5))
    start, a = x.detach().clone(), normal(4, 5, seed=1)

    def residuals() -> Tensor:
        return torch.sin(a @ x) - 0.3

    jacobian = torch.autograd.functional.jacobian(lambda z: torch.sin(a @ z) - 0.3, start)
    expected = start - torch.linalg.solve(
        jacobian.T @ jacobian / 4 + torch.eye(5).double() / lr,
        jacobian.T @ (torch.sin(a @ start) - 0.3) / 4,
    )
    loss = ProxLinear([x], lr=lr, outer=ElasticNet(0.25, rho=0.0)).step(residuals)
    assert loss == pytest.approx(float((torch.sin(a @ start) - 0.3).square().mean() / 2))
    assert torch.allclose(x.detach(), expected, atol=1e-8)


@pytest.mark.parametrize("lr", [0.01, 0.3, 10.0])
def test_one_absolute_residual_has_a_closed_form(lr: float) -> None:
    """Onto the hyperplane a x = b, by at most lr: the proximal point of |a x - b|."""
    x, a = nn.Parameter(normal(6)), normal(6, seed=1)
    start = x.detach().clone()
    r = float(a @ start - 2)
    expected = start - max(-lr, min(lr, r / float(a @ a))) * a
    for rounds in (1, 3):  # linear: further linearisations change nothing
        x.data.copy_(start)
        ProxLinear([x], lr=lr, outer=L1(1.0), rounds=rounds).step(lambda: (a @ x - 2).view(1))
        assert torch.allclose(x.detach(), expected, atol=1e-9)


@pytest.mark.parametrize("outer", OUTERS, ids=lambda p: type(p).__name__)
def test_the_model_is_not_beaten(outer: Penalty) -> None:
    lr = 0.7
    w, v = nn.Parameter(normal(3, 2)), nn.Parameter(normal(3, seed=1))
    start = torch.cat([w.detach().reshape(-1), v.detach()])
    x, y = normal(4, 2, seed=2), normal(4, seed=3)

    def at(theta: Tensor) -> Tensor:
        return torch.tanh(x @ theta[:6].view(3, 2).T) @ theta[6:] - y

    base, jacobian = at(start), torch.autograd.functional.jacobian(at, start)

    def total(theta: Tensor) -> float:
        model = base + jacobian @ (theta - start)
        return outer.value(model) + float((theta - start).square().sum()) / (2 * lr)

    ProxLinear([w, v], lr=lr, outer=outer).step(lambda: torch.tanh(x @ w.T) @ v - y)
    found = torch.cat([w.detach().reshape(-1), v.detach()])
    generator = torch.Generator().manual_seed(5)
    for scale in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(20):
            push = scale * torch.randn(9, generator=generator).double()
            assert total(found) <= total(found + push) + 1e-9


def test_more_rounds_come_to_the_proximal_point() -> None:
    a, b, lr = normal(3, 4, seed=1), torch.tensor([1.0, 0.5, 2.0]).double(), 0.1
    start = normal(4)

    def residuals(z: Tensor) -> Tensor:
        return (a @ z).square() - b

    totals = []
    for rounds in (1, 2, 20):
        x = nn.Parameter(start.clone())
        optimizer = ProxLinear([x], lr=lr, outer=ElasticNet(1 / 3, rho=0.0), rounds=rounds)
        optimizer.step(lambda x=x: residuals(x))
        z = x.detach()
        totals.append(
            float(residuals(z).square().mean() / 2 + (z - start).square().sum() / (2 * lr))
        )
    assert totals[2] <= totals[1] <= totals[0]
    # The gradient of the proximal point's objective is zero.
    z = z.clone().requires_grad_()
    whole = residuals(z).square().mean() / 2 + (z - start).square().sum() / (2 * lr)
    assert float(torch.autograd.grad(whole, z)[0].norm()) < 1e-6


def test_large_rates_do_no_harm_where_gradient_steps_diverge() -> None:
    """Robust phase retrieval, |(a x)^2 - b| per sample, as in the paper's experiments."""
    truth = normal(8)
    far = []
    for kind in ("model", "gradient"):
        generator = torch.Generator().manual_seed(1)
        x = nn.Parameter(truth + 0.5 * normal(8, seed=2))
        optimizer: Any = (
            ProxLinear([x], lr=1.0, outer=L1(0.25))
            if kind == "model"
            else torch.optim.SGD([x], 1.0)
        )
        for _ in range(150):
            a = torch.randn(4, 8, generator=generator).double()

            def residuals(a: Tensor = a, x: Tensor = x) -> Tensor:
                return (a @ x).square() - (a @ truth).square()

            if kind == "gradient":
                optimizer.zero_grad()
                residuals().abs().mean().backward()
                optimizer.step()
            else:
                optimizer.step(residuals)
        z = x.detach()
        far.append(float(min((z - truth).norm(), (z + truth).norm())))
    assert far[0] < 1e-6
    assert not far[1] < 1


def test_groups_have_their_own_rates_and_float32_stays() -> None:
    x, y = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = ProxLinear([{"params": [x], "lr": 3.0}, {"params": [y]}], lr=1.0, outer=L1(100.0))
    optimizer.step(lambda: x + y - 4)
    assert x.dtype == torch.float32
    assert (round(x.item(), 5), round(y.item(), 5)) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: ProxLinear([x], outer=L0(1.0)), PenaltyError, "not convex"),
        (lambda x: ProxLinear([x], outer=1.0), DTypeError, "outer=1.0"),
        (lambda x: ProxLinear([x], lr=0.0, outer=L1(1.0)), ArgumentError, "lr"),
        (lambda x: ProxLinear([x], outer=L1(1.0), rounds=0), ArgumentError, "rounds"),
        (lambda x: ProxLinear([x], outer=L1(1.0)).step(), DTypeError, "no closure"),
        (lambda x: ProxLinear([x], outer=L1(1.0)).step(lambda: 1.0), DTypeError, "residuals"),
        (lambda x: ProxLinear([x], outer=L1(1.0)).step(lambda: x.sum()), ArgumentError, "vector"),
        (
            lambda x: ProxLinear([x], outer=L1(1.0)).step(lambda: torch.ones(2)),
            ArgumentError,
            "depends",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, error: type[Exception], text: str) -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(error, match=text):
        call(x)
    assert x.tolist() == [1.0, 1.0]
