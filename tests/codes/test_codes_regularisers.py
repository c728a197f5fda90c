"""The FLOPs and Cauchy-Schwarz regularisers of sparse representations."""

import math

import pytest
import torch
from torch import Tensor

from gossamer.codes import activation_imbalance, cauchy_schwarz, flops_penalty
from gossamer.errors import ArgumentError, DTypeError, ShapeError

F64 = torch.float64


def test_flops_penalty() -> None:
    a = torch.randn(7, 5, dtype=F64).relu().requires_grad_()
    loss = flops_penalty(a)
    want = sum(float(a[:, j].detach().abs().mean()) ** 2 for j in range(5))
    assert float(loss.detach()) == pytest.approx(want)
    (grad,) = torch.autograd.grad(loss, a)
    torch.testing.assert_close(grad, (2 * a.abs().mean(0) * a.sign() / 7).detach())
    assert (grad[a == 0] == 0).all()
    assert torch.autograd.gradcheck(flops_penalty, (torch.randn(4, 3).double().requires_grad_(),))


def test_flops_penalty_is_least_for_equal_columns() -> None:
    equal = torch.ones(6, 4, dtype=F64)
    least = float(flops_penalty(equal))
    for _ in range(100):
        other = torch.rand(6, 4, dtype=F64)
        other *= equal.sum() / other.sum()
        assert float(flops_penalty(other)) > least
    assert activation_imbalance(equal) == 1.0
    lone = torch.zeros(6, 4)
    lone[:, 2] = 1.0
    assert activation_imbalance(lone) == 4.0
    assert math.isnan(activation_imbalance(torch.zeros(3, 2)))
    share = torch.tensor([0.5, 0.25])
    x = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert activation_imbalance(x) == pytest.approx(
        float(2 * share.square().sum() / share.sum() ** 2)
    )


SETS = {"binary": (-1.0, 1.0), "zero_one": (0.0, 1.0), "ternary": (-1.0, 0.0, 1.0)}


def published_gap(x: Tensor, target: str) -> Tensor:
    def s(power: int) -> Tensor:
        return (x**power).sum()

    if target == "binary":
        return x.numel() * s(4) - s(2) ** 2
    return s(2) * s(4) - s(3) ** 2 if target == "zero_one" else s(2) * s(6) - s(4) ** 2


@pytest.mark.parametrize("target", SETS)
def test_cauchy_schwarz(target: str) -> None:
    for scale in (1.0, 0.37, -1e-20, 1e20):
        members = torch.tensor(SETS[target], dtype=F64)[torch.randint(len(SETS[target]), (50,))]
        members[:2] = torch.tensor(SETS[target], dtype=F64)[[0, -1]]
        x = (scale * members).requires_grad_()
        gap = cauchy_schwarz(x, target)
        assert float(gap.detach()) < 1e-28
        assert torch.autograd.grad(gap, x)[0].abs().max() * abs(scale) < 1e-13
    x = torch.randn(40, dtype=F64)
    torch.testing.assert_close(
        cauchy_schwarz(x, target, normalised=False), published_gap(x, target)
    )
    size = {"binary": 40 * (x**4).sum(), "zero_one": (x**2).sum() * (x**4).sum(),
            "ternary": (x**2).sum() * (x**6).sum()}[target]  # fmt: skip
    torch.testing.assert_close(cauchy_schwarz(x, target), published_gap(x, target) / size)
    assert 0.05 < float(cauchy_schwarz(x, target)) <= 1.0
    torch.testing.assert_close(cauchy_schwarz(1e-30 * x, target), cauchy_schwarz(x, target))
    for normalised in (True, False):
        leaf = torch.randn(3, 4, dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda v, n=normalised: cauchy_schwarz(v, target, normalised=n), (leaf,)
        )


@pytest.mark.parametrize("target", SETS)
def test_cauchy_schwarz_at_zero_and_downhill(target: str) -> None:
    zero = torch.zeros(5, requires_grad=True)
    cauchy_schwarz(zero, target).backward()
    assert torch.equal(zero.grad, torch.zeros(5))
    x = torch.randn(200, dtype=F64).requires_grad_()
    start = float(cauchy_schwarz(x, target).detach())
    adam = torch.optim.Adam([x], lr=0.02)
    for _ in range(400):
        adam.zero_grad()
        cauchy_schwarz(x, target).backward()
        adam.step()
    assert float(cauchy_schwarz(x, target).detach()) < 0.02 * start


def test_bad_regulariser_input() -> None:
    for bad in (torch.ones(3), torch.ones(0, 3), torch.ones(3, 0)):
        with pytest.raises(ShapeError):
            flops_penalty(bad)
    with pytest.raises(DTypeError):
        flops_penalty(torch.ones(3, 3, dtype=torch.long))
    with pytest.raises(DTypeError):
        cauchy_schwarz(torch.ones(3, dtype=torch.long))
    with pytest.raises(ArgumentError, match="binary"):
        cauchy_schwarz(torch.ones(3), "quaternary")
    with pytest.raises(ShapeError):
        cauchy_schwarz(torch.ones(0))


def test_nan_reaches_the_regularisers() -> None:
    x = torch.tensor([[1.0, math.nan]])
    assert flops_penalty(x).isnan()
    assert all(cauchy_schwarz(x, target).isnan() for target in SETS)
