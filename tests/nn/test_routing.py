"""Routers: capacity, balance, gradients, what evaluation may look at, and clear errors."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.nn import SinkhornRouter, TopKRouter, sparsify
from gossamer.nn.routing import Solver
from gossamer.ot import constrained

SOLVERS: tuple[Solver, ...] = ("sinkhorn", "sparse")


def lopsided(tokens: int, width: int = 16, seed: int = 0) -> Tensor:
    """Tokens that all lean the same way: alone they would crowd into a few experts."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=random) + 2 * torch.randn(width, generator=random)


def scores(router: TopKRouter, x: Tensor) -> Tensor:
    return (x.float() @ router.weight.T).detach()


# ---- what each router decides --------------------------------------------------------------------
def test_top_k_takes_the_highest_scores_and_weighs_by_softmax() -> None:
    router = TopKRouter(16, experts=6, k=2)
    x = torch.randn(40, 16)
    routing = router(x)
    s = scores(router, x)
    for token in range(40):
        best = set(s[token].argsort(descending=True)[:2].tolist())
        assert set(routing.assigned[token].nonzero().flatten().tolist()) == best
    expected = (s.double().softmax(-1) * routing.assigned).float()
    torch.testing.assert_close(routing.gates, expected)
    assert routing.load.tolist() == routing.assigned.sum(0).tolist()
    assert int(routing.load.sum()) == 80


@given(
    tokens=st.integers(0, 70),
    experts=st.integers(1, 9),
    k=st.integers(1, 3),
    capacity=st.sampled_from([1.0, 1.25, 4.0]),
    solver=st.sampled_from(SOLVERS),
    same=st.booleans(),
)
def test_no_expert_takes_more_than_its_capacity_and_no_token_more_than_k(
    tokens: int, experts: int, k: int, capacity: float, solver: Solver, same: bool
) -> None:
    k = min(k, experts)
    router = SinkhornRouter(16, experts, capacity, k, solver=solver)
    x = lopsided(tokens)
    routing = router(x[:1].expand(tokens, 16) if same else x)
    limit = min(tokens, math.ceil(capacity * k * tokens / experts))
    assert routing.gates.shape == routing.assigned.shape == (tokens, experts)
    assert int(routing.load.max()) <= limit
    assert bool((routing.assigned.sum(1) <= k).all())
    assert bool(((routing.gates > 0) == routing.assigned).all())
    assert bool(torch.isfinite(router.balance).all())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("k", [1, 2])
def test_the_plan_fills_all_experts_where_top_k_does_not(solver: Solver, k: int) -> None:
    router = SinkhornRouter(16, 8, k=k, solver=solver)
    x = lopsided(512)
    even = 512 * k / 8
    plain = TopKRouter.assign(router, scores(router, x)).sum(0)
    assert int(plain.max()) > 3 * even
    routing = router(x)
    assert int(routing.load.max()) <= math.ceil(1.25 * even)
    assert int(routing.load.min()) >= 0.6 * even
    assert int((routing.assigned.sum(1) == 0).sum()) <= 5
    assert float((routing.assigned.sum(1) == k).float().mean()) > 0.7


@pytest.mark.parametrize("solver", SOLVERS)
def test_tokens_go_where_the_total_score_is_nearly_the_best(solver: Solver) -> None:
    router = SinkhornRouter(16, 4, reg=0.01, solver=solver)
    x = lopsided(200)
    s = scores(router, x)
    places = s.repeat_interleave(50, dim=1)
    rows, cols = linear_sum_assignment(places, maximize=True)
    best = float(places[rows, cols].sum())
    routing = router(x)
    unrouted = int((routing.assigned.sum(1) == 0).sum())
    assert unrouted <= 4
    got = float((s * routing.assigned).sum())
    even = float(s.mean(1).sum())  # each token split over all experts alike
    assert got - even > 0.95 * (best - even)


def test_the_capacity_reaches_the_constrained_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    solve = constrained.solve

    def recorded(cost: Tensor, a: Tensor, b: Tensor, k: int, *args: Any, **kwargs: Any) -> Any:
        seen.append((cost.clone(), a, b, k))
        return solve(cost, a, b, k, *args, **kwargs)

    monkeypatch.setattr(constrained, "solve", recorded)
    router = SinkhornRouter(16, 5, capacity=1.5, k=2, solver="sparse")
    x = lopsided(33)
    router(x)
    ((cost, a, b, k),) = seen
    torch.testing.assert_close(cost, -scores(router, x).double())
    assert (a == 1).all()
    assert (b == 33 / 5).all()
    assert k == math.ceil(1.5 * 2 * 33 / 5) == 20


def test_the_scale_of_the_scores_does_not_matter() -> None:
    router = SinkhornRouter(16, 4)
    x = lopsided(64)
    before = router(x).assigned
    with torch.no_grad():
        router.weight.mul_(64)
    assert torch.equal(router(x).assigned, before)


# ---- evaluation ----------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", SOLVERS)
def test_in_evaluation_a_token_decides_alone_and_the_load_stays_even(solver: Solver) -> None:
    router = SinkhornRouter(16, 8, solver=solver)
    for seed in range(30):
        router(lopsided(256, seed=0)[torch.randperm(256)] + 0.1 * lopsided(256, seed=seed))
    router.eval()
    balance = router.balance.clone()
    x = lopsided(256)
    together = router(x)
    alone = torch.cat([router(x[i : i + 1]).assigned for i in range(256)])
    assert torch.equal(together.assigned, alone)
    assert torch.equal(router.balance, balance)
    assert int(together.load.max()) < 2 * 32
    assert int(TopKRouter.assign(router, scores(router, x)).sum(0).max()) > 4 * 32
    assert bool((together.assigned.sum(1) == 1).all())


def test_balance_is_the_mean_of_the_potentials_and_is_saved() -> None:
    router = SinkhornRouter(16, 4, solver="sparse")
    x = lopsided(64)
    router(x)
    one = router.balance.clone()
    assert abs(float(one.mean())) < 1e-6
    for _ in range(200):
        router(x)
    torch.testing.assert_close(router.balance, 10 * one, rtol=1e-4, atol=1e-6)
    crowded = scores(router, x).mean(0).argmax()
    assert router.balance.argmin() == crowded
    other = SinkhornRouter(16, 4)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.balance, router.balance)


# ---- gradients and shapes ------------------------------------------------------------------------
@pytest.mark.parametrize("make", [TopKRouter, SinkhornRouter])
def test_gates_are_differentiable(make: type[TopKRouter]) -> None:
    router = make(6, 3).double()
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    router.eval()  # the decision itself must not move between two calls
    assert torch.autograd.gradcheck(lambda x, w: router(x).gates, (x, router.weight))
    router.train()
    gates = router(x).gates
    (gates * torch.randn_like(gates)).sum().backward()
    assert x.grad is not None
    assert router.weight.grad is not None
    assert bool((x.grad != 0).any(1).all())
    assert bool((router.weight.grad != 0).any(1).all())
    assert not router(x).assigned.requires_grad


def test_a_routed_mixture_learns() -> None:
    # Two kinds of tokens, two linear experts, each right for one kind.
    torch.manual_seed(1)
    router = SinkhornRouter(4, 2)
    experts = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
    optimizer = torch.optim.Adam([*router.parameters(), *experts.parameters()], 0.02)
    first = last = math.nan
    for step in range(300):
        x = torch.randn(64, 4)
        x[:, 0] = torch.where(torch.arange(64) % 2 == 0, 3.0, -3.0)
        target = torch.where(x[:, :1] > 0, x.flip(1), -x)
        routing = router(x)
        y = sum(routing.gates[:, i, None] * e(x) for i, e in enumerate(experts))
        loss = (y - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < 0.05 * first
    router.eval()
    assert torch.equal(router(x).assigned[:, 0], router(x[:1]).assigned[0, 0] == (x[:, 0] > 0))


@pytest.mark.parametrize("make", [TopKRouter, SinkhornRouter])
def test_batches_and_empty_batches(make: type[TopKRouter]) -> None:
    router, x = make(16, 4), lopsided(24)
    batched, flat = router(x.view(2, 3, 4, 16)), router(x)
    assert batched.gates.shape == (2, 3, 4, 4)
    assert torch.equal(batched.assigned.view(24, 4), flat.assigned)
    assert torch.equal(batched.gates.view(24, 4), flat.gates)
    for shape in ((0, 16), (2, 0, 16)):
        empty = router(torch.zeros(shape, requires_grad=True))
        assert empty.gates.shape == (*shape[:-1], 4)
        assert empty.load.tolist() == [0, 0, 0, 0]
        empty.gates.sum().backward()


@pytest.mark.parametrize("make", [TopKRouter, SinkhornRouter])
def test_scores_are_float32_whatever_autocast_says(make: type[TopKRouter]) -> None:
    router, x = make(16, 4), lopsided(32)
    want = router(x)
    if isinstance(router, SinkhornRouter):
        router.balance.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        got = router(x)
    assert torch.equal(got.gates, want.gates)
    assert router(x.bfloat16()).gates.dtype == torch.float32


def test_the_state_is_that_of_a_module() -> None:
    router = SinkhornRouter(16, 4)
    assert set(router.state_dict()) == {"weight", "balance"}
    assert "capacity=1.25, solver=sinkhorn" in repr(router)
    model = nn.Sequential(nn.Linear(16, 16), router)
    assert sparsify(model, "2:4")[1] is router


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"d_model": 0}, ArgumentError, "d_model=0; it must be at least 1"),
        ({"experts": 0}, ArgumentError, "experts=0"),
        ({"experts": 2.0}, DTypeError, "experts=2.0; it must be an integer"),
        ({"k": 0}, ArgumentError, "k=0"),
        ({"k": True}, DTypeError, "k=True"),
        ({"k": 5}, ArgumentError, "k=5 with experts=4; .* lower k or add experts"),
        ({"capacity": 0.5}, ArgumentError, "capacity=0.5; it must be at least 1"),
        ({"capacity": math.nan}, ArgumentError, "capacity=nan"),
        ({"reg": 0.0}, ArgumentError, "reg=0.0; a positive"),
        ({"solver": "auction"}, ArgumentError, "solver='auction'; choose sinkhorn or sparse"),
    ],
)
def test_options_are_checked(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        SinkhornRouter(**({"d_model": 16, "experts": 4} | change))
    assert raised.type is kind  # not ShapeError: no shape was given


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(3, 15), ShapeError, r"shape \[3, 15\]; \[..., 16\]"),
        (torch.zeros(16), ShapeError, "at least two dimensions"),
        (torch.zeros(3, 16, dtype=torch.int64), DTypeError, "torch.int64; a floating tensor"),
        ([[0.0] * 16], DTypeError, "list; a floating tensor"),
        (torch.full((3, 16), math.nan), ArgumentError, "scores are not finite"),
        (torch.full((3, 16), math.inf), ArgumentError, "scores are not finite"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_tokens_are_an_error(
    x: Any, kind: type[Exception], message: str, training: bool
) -> None:
    router = SinkhornRouter(16, 4).train(training)
    before = router.balance.clone()
    with pytest.raises(kind, match=message) as raised:
        router(x)
    assert raised.type is kind
    assert torch.equal(router.balance, before)
