"""ProxSGD and ProxAdamW: equal to torch without a penalty, to the formulas with one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gossamer.optim import ProxAdamW, ProxSGD
from gossamer.prox import (
    L0,
    L1,
    MCP,
    SCAD,
    WGSEF,
    Box,
    ElasticNet,
    Lp,
    Penalty,
    PenaltyError,
    SparseGroupLasso,
)
from support import optim_oracle as oracle

SGD_OPTIONS: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"momentum": 0.5, "dampening": 0.3, "maximize": True},
    {"momentum": 0.9, "foreach": True},
    {"momentum": 0.9, "fused": True},
]
ADAMW_OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-4},
    {"amsgrad": True},
    {"maximize": True},
    {"foreach": True},
    {"fused": True},
]
OFF: list[Penalty | None] = [None, L1(0.0), WGSEF(k=2, lam=0.0, groups="neuron"), Lp(0.0, 0.5)]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)).to(dtype)


def gradients(count: int, *shape: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def follow(optimizer: torch.optim.Optimizer, parameter: Tensor, grads: list[Tensor]) -> Tensor:
    for grad in grads:
        parameter.grad = grad.to(parameter.dtype)
        optimizer.step()
    return parameter.detach()


# ---- without a penalty, torch's own step ---------------------------------------------------------
@pytest.mark.parametrize("penalty", OFF, ids=str)
@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(ProxSGD, torch.optim.SGD, o) for o in SGD_OPTIONS]
    + [(ProxAdamW, torch.optim.AdamW, o) for o in ADAMW_OPTIONS],
)
@pytest.mark.slow
def test_no_penalty_is_torch_bit_for_bit(
    ours: Any, theirs: Any, options: dict[str, Any], penalty: Penalty | None
) -> None:
    models = network(), network()
    weights = [model[0].weight for model in models]
    groups = [
        [
            {"params": [model[0].weight], "lr": 0.02},
            {"params": [model[0].bias, *model[2].parameters()]},
        ]
        for model in models
    ]
    groups[0][0]["penalty"] = penalty
    optimizers = ours(groups[0], lr=0.01, **options), theirs(groups[1], lr=0.01, **options)
    data = gradients(50, 5, 7)
    for x in data:
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert torch.equal(*weights)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_a_penalised_group_leaves_the_others_to_torch(kind: Any) -> None:
    models = network(), network()
    first = kind(
        [
            {"params": [models[0][0].weight], "penalty": L1(0.01)},
            {"params": [models[0][2].weight], "penalty": L1(0.01, groups="neuron")},
            {"params": [models[0][0].bias, models[0][2].bias]},
        ],
        lr=0.01,
    )
    second = kind.__mro__[2]([models[1][0].bias, models[1][2].bias], lr=0.01)
    for gradient in gradients(10, 9):
        for model, optimizer in zip(models, (first, second), strict=True):
            model[0].bias.grad = gradient
            model[2].bias.grad = gradient[:4]
            if model is models[0]:
                model[0].weight.grad, model[2].weight.grad = torch.ones(9, 7), torch.ones(4, 9)
            optimizer.step()
    for at in (0, 2):
        assert torch.equal(models[0][at].bias, models[1][at].bias)
        assert not torch.equal(models[0][at].weight, models[1][at].weight)


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_step_hooks_run_once_and_closures_are_called_once(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    assert torch.optim.SGD([weight])  # an instance makes torch wrap the class's step
    assert torch.optim.AdamW([weight])
    optimizer = kind([weight], lr=0.1, penalty=L1(0.1))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        calls.append("closure")
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert calls == ["before", "closure", "after"]


# ---- with one, the formulas ----------------------------------------------------------------------
PROXES: list[tuple[Penalty, oracle.Prox]] = [
    (L1(0.3), oracle.soft(0.3)),
    (L0(0.02), oracle.hard(0.02)),
    (Lp(0.05, 0.5), oracle.half(0.05)),
]
WEIGHTS = torch.linspace(0, 2, 6)[:, None].double()
WEIGHTED: list[tuple[Penalty, oracle.Prox]] = [
    (L1(0.3, weights=WEIGHTS), lambda v, s: oracle.soft(0.3)(v, WEIGHTS * s)),
    (L1(0.3, positive=True), lambda v, s: oracle.soft(0.3)(v.clamp(min=0), s)),
    (
        Lp(0.05, 0.5, weights=WEIGHTS, positive=True),
        lambda v, s: oracle.half(0.05)(v.clamp(min=0), WEIGHTS * s),
    ),
    (Box(-0.2, 0.3), lambda v, s: v.clamp(-0.2, 0.3)),
    (Box(), lambda v, s: v.clamp(min=0)),
]


@pytest.mark.parametrize("amsgrad", [False, True])  # one compiled pass, or the composition
@pytest.mark.parametrize(("penalty", "prox"), PROXES + WEIGHTED, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_equals_its_formula(
    penalty: Penalty, prox: oracle.Prox, dtype: torch.dtype, amsgrad: bool
) -> None:
    start = gradients(1, 6, 11, seed=5)[0]
    grads = gradients(25, 6, 11)
    options = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-3, "weight_decay": 0.1}
    weight = nn.Parameter(start.to(dtype, copy=True))
    got = follow(ProxAdamW([weight], penalty=penalty, amsgrad=amsgrad, **options), weight, grads)
    expected = oracle.adamw(start, grads, prox, amsgrad=amsgrad, **options)
    assert isinstance(penalty, Box) or 0 < (expected == 0).sum() < expected.numel()
    error = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize(("penalty", "prox"), PROXES, ids=lambda p: type(p).__name__)
def test_the_threshold_has_the_step_of_the_gradient(penalty: Penalty, prox: oracle.Prox) -> None:
    start, grads = gradients(1, 400, seed=5)[0], gradients(1, 400)
    options: dict[str, Any] = {"lr": 0.03, "eps": 1e-3, "weight_decay": 0.0}
    for amsgrad in (False, True):  # one pass; composition
        weight = nn.Parameter(start.clone())
        optimizer = ProxAdamW([weight], penalty=penalty, amsgrad=amsgrad, **options)
        zeros = follow(optimizer, weight, grads) == 0
        assert torch.equal(zeros, oracle.adamw(start, grads, prox, **options) == 0)
        longer = oracle.adamw(start, grads, prox, once=False, **options) == 0
        assert (longer & ~zeros).sum() > 10


def test_ascent_is_descent_on_the_negative() -> None:
    start, grads = gradients(1, 30, seed=5)[0], gradients(20, 30)
    for kind in (ProxSGD, ProxAdamW):
        up, down = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        got = follow(kind([up], lr=0.05, penalty=L1(0.9), maximize=True), up, grads)
        expected = follow(
            kind([down], lr=0.05, penalty=L1(0.9)), down, [-gradient for gradient in grads]
        )
        assert torch.equal(got, expected)
        assert (got == 0).any()


MOMENTA: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.5, "dampening": 0.3},
]


@pytest.mark.parametrize("options", MOMENTA)
@pytest.mark.parametrize(("penalty", "prox"), PROXES[:2], ids=lambda p: type(p).__name__)
def test_sgd_equals_its_formula(
    penalty: Penalty, prox: oracle.Prox, options: dict[str, Any]
) -> None:
    start, grads = gradients(1, 8, 9, seed=5)[0], gradients(30, 8, 9)
    weight = nn.Parameter(start.double().clone())
    got = follow(ProxSGD([weight], lr=0.02, penalty=penalty, **options), weight, grads)
    expected = oracle.sgd(start, grads, prox, lr=0.02, **options)
    assert 0 < (expected == 0).sum() < expected.numel()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", MOMENTA)
def test_the_threshold_of_sgd_is_the_move_of_a_constant_gradient(options: dict[str, Any]) -> None:
    moved, shrunk = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.full((1,), 100.0))
    theirs = torch.optim.SGD([moved], lr=0.1, **options)
    ours = ProxSGD([shrunk], lr=0.1, penalty=L1(1.0), **options)
    for _ in range(20):
        follow(theirs, moved, [torch.ones(1)])
        follow(ours, shrunk, [torch.zeros(1)])
        torch.testing.assert_close(shrunk - 100, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", [
    L1(0.3), L0(0.02), MCP(0.2, 3.0), SCAD(0.2, 3.7), ElasticNet(0.3, 0.5),
    L1(0.3, groups="neuron"), Lp(0.1, 0.5, groups="neuron"),
    SparseGroupLasso(0.1, 0.1, groups="neuron"),
], ids=str)  # fmt: skip
def test_a_constant_metric_is_the_euclidean_operator(penalty: Penalty) -> None:
    """After one step from the same |gradient| everywhere, Adam's metric is one number."""
    start = gradients(1, 8, 9, seed=5)[0].double() * torch.linspace(0.02, 1, 8)[:, None]
    gradient = gradients(1, 8, 9)[0].double().sign() * 0.05
    weight = nn.Parameter(start.clone())
    optimizer = ProxAdamW([weight], lr=0.04, eps=1e-8, weight_decay=0, penalty=penalty)
    got = follow(optimizer, weight, [gradient])
    step = 0.04 / (0.05 + 1e-8)
    expected = penalty.prox(start - step * gradient, step)
    assert (expected == 0).any()
    assert torch.equal(got == 0, expected == 0)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_group_operator_is_optimal_in_the_metric() -> None:
    """h (z - v) + lam z / |z| = 0 where a group lives, |h v| <= lam where it is zero."""
    start = gradients(1, 12, 6, seed=5)[0].double() * torch.linspace(0.01, 1, 12)[:, None]
    grads = gradients(4, 12, 6)
    weight = nn.Parameter(start.clone())
    optimizer = ProxAdamW(
        [weight], lr=0.05, weight_decay=0, penalty=L1(3.0, groups="neuron"), betas=(0.5, 0.9)
    )
    follow(optimizer, weight, grads[:-1])
    before, state = weight.detach().clone(), optimizer.state[weight]
    z = follow(optimizer, weight, grads[-1:])
    h = ((state["exp_avg_sq"] / (1 - 0.9**4)).sqrt() + 1e-8) / 0.05
    pull = h * (before - z) - state["exp_avg"] / (1 - 0.5**4)
    norms = z.norm(dim=1)
    alive = norms > 0
    assert 0 < alive.sum() < 12
    direction = 3.0 * z[alive] / norms[alive, None]
    torch.testing.assert_close(pull[alive], direction, rtol=1e-8, atol=1e-8)
    assert (pull[~alive].norm(dim=1) <= 3.0).all()


# ---- zeros and what is not a number --------------------------------------------------------------
@pytest.mark.parametrize(
    "penalty", [L1(0.5), L0(0.1), Lp(0.2, 0.5), L1(0.8, groups="neuron")], ids=str
)
@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_zeros_are_exact_positive_and_stay(kind: Any, penalty: Penalty) -> None:
    weight = nn.Parameter(gradients(1, 20, 10)[0] * 0.1)
    with torch.no_grad():
        weight[0] = -0.0
    optimizer = kind([weight], lr=0.05, penalty=penalty)
    target = torch.zeros(20, 10)
    target[:5] = 3.0 * gradients(1, 5, 10, seed=9)[0]
    masks = []
    for _ in range(200):
        weight.grad = (weight - target).detach() + 1e-6
        optimizer.step()
        zero = weight == 0
        assert not torch.signbit(weight[zero]).any()
        masks.append(zero)
    assert masks[-1][5:].all()
    assert not masks[-1][:5].all()
    assert all(torch.equal(mask, masks[-1]) for mask in masks[-50:])


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_nan_gradients_reach_the_parameter_or_are_refused(kind: Any) -> None:
    gradient = torch.zeros(4, 3)
    gradient[2, 1] = torch.nan
    for penalty in (L1(0.5), Lp(0.2, 0.5)):
        weight = nn.Parameter(torch.ones(4, 3))
        got = follow(kind([weight], lr=0.1, penalty=penalty), weight, [gradient])
        assert torch.equal(got.isnan(), gradient.isnan())
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = kind([weight], lr=0.1, penalty=L1(0.8, groups="neuron"))
    with pytest.raises(PenaltyError):
        follow(optimizer, weight, [gradient])
    assert weight[2, 1].isnan()


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
@pytest.mark.parametrize("groups", ["element", "neuron"])
def test_shapes_strides_and_missing_gradients(kind: Any, groups: str) -> None:
    wide = nn.Parameter(gradients(1, 6, 4)[0].t().contiguous().t())
    plain = nn.Parameter(wide.detach().contiguous())
    idle = nn.Parameter(torch.ones(3, 3))
    penalty = L1(0.2, groups=groups)
    optimizer = kind([wide, plain, idle], lr=0.1, penalty=penalty)
    for gradient in gradients(3, 6, 4, seed=2):
        wide.grad = plain.grad = gradient
        optimizer.step()
    assert torch.equal(wide, plain)
    assert torch.equal(idle, torch.ones(3, 3))
    assert not optimizer.state.get(idle)


# ---- groups --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_wgsef_keeps_k_groups(kind: Any) -> None:
    """On a regression that five rows explain, the groups that are left are those."""
    torch.manual_seed(1)
    x, truth = torch.randn(200, 12), torch.zeros(20, 12)
    truth[[1, 4, 9, 10, 17]] = torch.randn(5, 12)
    weight = nn.Parameter(0.1 * torch.randn(20, 12))
    noise = 0.05 * torch.randn(200, 20)
    lr = 0.05 if kind is ProxSGD else 0.01
    optimizer = kind([weight], lr=lr, penalty=WGSEF(k=5, lam=0.1, groups="neuron"))
    for _ in range(400):
        optimizer.zero_grad()
        (x @ (weight - truth).t() + noise).square().sum(1).mean().div(2).backward()
        optimizer.step()
    sparsity = optimizer.sparsity()["0.0"]
    assert (sparsity.groups, sparsity.zero_groups) == (20, 15)
    kept = weight.norm(dim=1).nonzero().flatten()
    assert kept.tolist() == [1, 4, 9, 10, 17]


def test_schedules_go_by_the_steps_taken() -> None:
    lams = []

    def schedule(step: int) -> float:
        lams.append(step)
        return 0.0 if step < 3 else 1.0

    weight = nn.Parameter(torch.full((1,), 10.0))
    optimizer = ProxSGD([weight], lr=0.5, penalty=L1(schedule))
    got = [follow(optimizer, weight, [torch.zeros(1)]).item() for _ in range(5)]
    assert got == [10.0, 10.0, 10.0, 9.5, 9.0]
    assert sorted(set(lams)) == [0, 1, 2, 3, 4]


def test_a_scheduler_of_the_rate_changes_the_threshold() -> None:
    weight = nn.Parameter(torch.full((1,), 10.0))
    optimizer = ProxSGD([weight], lr=1.0, penalty=L1(1.0))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [0.0, 0.5, 0.25][step])
    seen = []
    for _ in range(2):
        seen.append(follow(optimizer, weight, [torch.zeros(1)]).item())
        scheduler.step()
    seen.append(follow(optimizer, weight, [torch.zeros(1)]).item())
    assert seen == [10.0, 9.5, 9.25]


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_a_penalty_of_two_parts_acts_when_one_part_is_zero(kind: Any) -> None:
    for lam, group_lam in ((0.0, 1.0), (1.0, 0.0)):
        weight = nn.Parameter(torch.ones(3, 2))
        optimizer = kind(
            [weight], lr=0.1, penalty=SparseGroupLasso(lam, group_lam, groups="neuron")
        )
        assert (follow(optimizer, weight, [torch.full((3, 2), -1e-3)]) < 1).all()


def test_an_added_group_is_stepped_and_deep_copies_are_their_own() -> None:
    one, two = nn.Parameter(torch.full((2,), 5.0)), nn.Parameter(torch.full((2,), 5.0))
    optimizer = ProxSGD([one], lr=1.0, penalty=L1(1.0))
    optimizer.add_param_group({"params": [two], "lr": 2.0})
    one.grad, two.grad = torch.zeros(2), torch.zeros(2)
    twin = copy.deepcopy(optimizer)
    optimizer.step()
    assert (one.tolist(), two.tolist()) == ([4.0, 4.0], [3.0, 3.0])
    (copied,) = twin.param_groups[1]["params"]
    assert copied.tolist() == [5.0, 5.0]
    copied.grad = torch.zeros(2)
    twin.step()
    assert copied.tolist() == [3.0, 3.0]
    twin.add_param_group({"params": torch.zeros(1), "lr": 1.0})
    assert twin.param_groups[2]["penalty"].lam == 1.0
