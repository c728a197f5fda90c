"""Unfolded solvers against the iterations they unfold."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gossamer.codes import IHT, ISTA, LISTA, hard_top_k, soft_threshold
from gossamer.errors import ArgumentError, DTypeError, ShapeError

F64 = torch.float64


pytestmark = pytest.mark.usefixtures("one_thread")


def problem(m: int = 12, n: int = 30, batch: int = 7) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(m, n, dtype=F64), torch.randn(batch, m, dtype=F64)


def lipschitz(A: Tensor) -> float:
    return float(torch.linalg.matrix_norm(A, 2)) ** 2


def soft(x: Tensor, t: float) -> Tensor:
    return x.sign() * (x.abs() - t).clamp_min(0)


def ista_by_hand(A: Tensor, y: Tensor, lam: float, steps: int) -> list[Tensor]:
    """One row at a time, as the formula stands."""
    L, found = lipschitz(A), []
    x = torch.zeros(len(y), A.shape[1], dtype=F64)
    for _ in range(steps):
        x = torch.stack(
            [soft(row - A.T @ (A @ row - one) / L, lam / L) for row, one in zip(x, y, strict=True)]
        )
        found.append(x)
    return found  # fmt: skip


def test_soft_threshold() -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, -math.inf, math.nan])
    out = soft_threshold(x, 1.0)
    torch.testing.assert_close(out, soft(x, 1.0), equal_nan=True)
    assert not out[out == 0].signbit().any()
    leaf, t = torch.randn(50, dtype=F64, requires_grad=True), torch.tensor(0.4, dtype=F64)
    t.requires_grad_()
    soft_threshold(leaf, t).sum().backward()
    passed = leaf.abs() > 0.4
    assert torch.equal(leaf.grad, passed.double())
    torch.testing.assert_close(t.grad, -(leaf.sign() * passed).sum().detach())
    assert torch.autograd.gradcheck(soft_threshold, (leaf, t))


def test_hard_top_k() -> None:
    x = torch.tensor([[1.0, -3.0, 3.0, 0.5], [0.0, -0.0, 0.0, -0.0]], requires_grad=True)
    out = hard_top_k(x, 2)
    assert torch.equal(out, torch.tensor([[0.0, -3.0, 3.0, 0.0], [0.0] * 4]))
    assert not out[out == 0].signbit().any()
    out.sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]))
    assert torch.equal(hard_top_k(x, 4), x)
    with pytest.raises(ArgumentError):
        hard_top_k(x, 5)
    with pytest.raises(ArgumentError, match="NaN"):
        hard_top_k(torch.tensor([[1.0, math.nan]]), 1)


@pytest.mark.parametrize("lam", [0.0, 0.3, 5.0])
def test_untrained_nets_are_ista(lam: float) -> None:
    A, y = problem()
    by_hand = ista_by_hand(A, y, lam, 12)
    nets = [
        ISTA(A, lam, 12, step=1 / lipschitz(A)),
        LISTA(A, lam, 12),
        LISTA(A, lam, 12, tied=False),
    ]
    for net in nets:
        for mine, want in zip(net.iterates(y), by_hand, strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(net(y), by_hand[-1], rtol=1e-5, atol=1e-6)
    assert (nets[0](y) == 0).any() == (lam > 0)


def test_untrained_iht_is_iht() -> None:
    A, y = problem()
    L = lipschitz(A)
    x = torch.zeros(7, 30, dtype=F64)
    for mine in IHT(A, k=5, layers=9, step=1 / L).iterates(y):
        v = x - (x @ A.T - y) @ A / L
        kept = v.abs() >= v.abs().topk(5).values[:, -1:]
        x = v * kept
        torch.testing.assert_close(mine, x)
        assert (mine != 0).sum(1).max() <= 5


@pytest.mark.parametrize("share", [1.0, 0.7, 0.1])
def test_objectives_fall(share: float) -> None:
    A, y = problem()
    step = share / lipschitz(A)
    nets: list[ISTA | IHT] = [ISTA(A, 0.5, 60, step=step), IHT(A, 4, 60, step=step)]
    for net in nets:
        values = [net.objective(x, y).detach() for x in net.iterates(y)]
        assert all((b <= a + 1e-12).all() for a, b in pairwise(values))
        assert (values[-1] < values[0]).all()


def test_ista_converges_to_the_lasso() -> None:
    A, y = problem(20, 10)
    net = ISTA(A, 0.5, 4000)
    x = net(y).detach()
    correlation = (y - x @ A.T) @ A  # optimality: lam sign(x) where x != 0, at most lam elsewhere
    torch.testing.assert_close(correlation[x != 0], 0.5 * x[x != 0].sign(), rtol=1e-6, atol=1e-6)
    assert correlation.abs().max() <= 0.5 + 1e-6
    assert (x == 0).any()


def test_iht_recovers_a_sparse_vector() -> None:
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(60, 60, dtype=F64)).Q[:40] * 1.2
    truth = torch.zeros(3, 60, dtype=F64).scatter(1, torch.rand(3, 60).topk(3).indices, 2.0)
    torch.testing.assert_close(IHT(A, 3, 300)(truth @ A.T).detach(), truth, rtol=1e-4, atol=1e-4)


def test_layers_are_differentiable() -> None:
    A, y = problem(4, 6, 3)
    nets: list[torch.nn.Module] = [
        ISTA(A, 0.3, 4),
        LISTA(A, 0.3, 4),
        LISTA(A, 0.3, 4, tied=False),
        IHT(A, 2, 4),
    ]
    for net in nets:
        names = [name for name, _ in net.named_parameters()]
        values = [p.detach().clone().requires_grad_() for p in net.parameters()]

        def call(*tensors: Tensor, net: torch.nn.Module = net, names: list[str] = names) -> Tensor:
            given = dict(zip(names, tensors[1:], strict=True))
            return torch.func.functional_call(net, given, (tensors[0],))

        assert torch.autograd.gradcheck(call, (y.clone().requires_grad_(), *values))
    assert len(list(nets[2].parameters())[0]) == 4  # noqa: RUF015
    assert len(list(nets[1].parameters())[0]) == 1  # noqa: RUF015


def test_each_untied_layer_has_its_own_weights() -> None:
    A, y = problem()
    net = LISTA(A, 0.3, 4, tied=False)
    net(y).square().sum().backward()
    assert (net.W.grad.flatten(1).abs().amax(1) > 0).all()
    assert (net.S.grad.flatten(1).abs().amax(1) > 0).tolist() == [False, True, True, True]


@pytest.mark.slow
def test_lista_learns_what_takes_ista_many_steps() -> None:
    torch.manual_seed(0)
    A = torch.nn.functional.normalize(torch.randn(10, 20, dtype=F64), dim=0)
    x = torch.randn(512, 20, dtype=F64) * (torch.rand(512, 20) < 0.1)
    y, lam = x @ A.T, 0.1
    target = ISTA(A, lam, 2000)(y).detach()
    few = float((ISTA(A, lam, 5)(y) - target).square().mean().detach())
    net = LISTA(A, lam, 5)
    adam = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(200):
        adam.zero_grad()
        (net(y) - target).square().mean().backward()
        adam.step()
    assert float((net(y) - target).square().mean().detach()) < 0.3 * few


def test_bad_input() -> None:
    A, y = problem()
    too_long = 1.01 / lipschitz(A)
    values = [
        lambda: ISTA(A, -0.1), lambda: ISTA(A, math.nan), lambda: ISTA(A, 1.0, 0),
        lambda: ISTA(A, 1.0, step=too_long), lambda: ISTA(A, 1.0, step=0.0),
        lambda: ISTA(A, 1.0, step=math.nan),
        lambda: IHT(A, 0), lambda: IHT(A, 31), lambda: IHT(A, 3, step=too_long),
        lambda: LISTA(A, math.inf), lambda: LISTA(A, 1.0, 10**29), lambda: ISTA(0 * A, 1.0),
    ]  # fmt: skip
    shapes = [
        lambda: ISTA(A[0], 1.0), lambda: ISTA(A[:0], 1.0), lambda: ISTA(A, 1.0)(y[:, 1:]),
        lambda: LISTA(A, 1.0)(y[0]), lambda: IHT(A, 3)(y[:0]),
    ]  # fmt: skip
    for cases, error in ((values, ArgumentError), (shapes, ShapeError)):
        for case in cases:
            with pytest.raises(error) as caught:
                case()
            assert caught.type is error
    for make in (lambda d: ISTA(d, 1.0), lambda d: LISTA(d, 1.0), lambda d: IHT(d, 1)):
        with pytest.raises(DTypeError):
            make(torch.ones(3, 3, dtype=torch.long))
