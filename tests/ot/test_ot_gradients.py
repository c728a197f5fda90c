"""Gradients of transport: finite differences of the NumPy oracle, gradcheck, closed formulas.

Weights are never uniform and n is never m: errors in the weights' terms cancel there.
"""

import functools

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer.ot as ot
from gossamer.errors import GossamerError
from gossamer.ot import core
from support import ot_oracle as oracle
from support.grids import covering

INF = np.inf
FORMS = [
    {},
    {"reg_type": "entropy"},
    {"unbalanced": 0.5},
    {"unbalanced": (0.7, None)},
    {"unbalanced": 0.5, "reg_type": "entropy"},
]


def leaves(n: int = 5, m: int = 7, seed: int = 0, mass_b: float = 1.0) -> list[Tensor]:
    C, a, b = oracle.case(n, m, seed)
    return [torch.tensor(t).requires_grad_() for t in (C, a, mass_b * b)]


def close(x: object, y: object, tol: float) -> None:
    got, wanted = (t.detach().numpy() if isinstance(t, Tensor) else np.asarray(t) for t in (x, y))
    assert np.abs(got - wanted).max() < tol


# The value


def test_the_gradient_by_the_cost_is_the_plan() -> None:
    C, a, b = leaves()
    result = ot.solve(C, a, b, reg=0.05, tol=1e-12)
    result.value.backward()
    close(C.grad, result.plan, 1e-14)
    close(C.grad, oracle.sinkhorn(*(t.detach().numpy() for t in (C, a, b)), 0.05)[0], 1e-10)


@pytest.mark.parametrize("reg_type", ["KL", "entropy"])
@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.5), (0.7, INF)])
def test_the_value_against_differences_of_the_oracle(
    reg_type: str, rho: tuple[float, float]
) -> None:
    """In random directions that keep the two masses equal where they have to be."""
    reg, rng = 0.1, np.random.default_rng(1)
    C, a, b = oracle.case(5, 7)
    leaf = [torch.tensor(t, requires_grad=True) for t in (C, a, b, np.array(reg))]
    result = ot.solve(*leaf[:3], reg=leaf[3], reg_type=reg_type, unbalanced=rho, tol=1e-13)
    grads = [g.numpy() for g in torch.autograd.grad(result.value, leaf)]
    for which in ("C", "a", "b", "mass", "reg"):
        step = [np.zeros_like(t) for t in (C, a, b)] + [0.0]
        if which == "C":
            step[0] = rng.normal(size=C.shape)
        elif which == "reg":
            step[3] = 1.0
        elif which == "mass":  # both grow together
            step[1], step[2] = a * 1.0, b * 1.0
        else:
            k = 1 + (which == "b")
            step[k] = rng.normal(size=step[k].shape) * 0.3
            if rho == (INF, INF):
                step[k] -= step[k].mean()

        def at(t: float, step: list = step) -> float:
            moved = [x + t * d for x, d in zip((C, a, b, reg), step, strict=True)]
            return oracle.optimal(*moved, reg_type=reg_type, rho=rho)

        wanted = oracle.slope(at)
        got = sum(float((g * d).sum()) for g, d in zip(grads, step, strict=True))
        assert got == pytest.approx(wanted, abs=2e-8), which


def test_kl_and_entropy_differ_by_the_weights_terms() -> None:
    """dV/da is f under the entropy and f - reg log a under KL, at mass 1."""
    C, a, b = leaves()
    entropy = ot.solve(C, a, b, reg=0.1, reg_type="entropy", tol=1e-12)
    f, g = entropy.potentials
    close(torch.autograd.grad(entropy.value, a)[0], f, 1e-12)
    kl = ot.solve(C, a, b, reg=0.1, tol=1e-12)
    by_a, by_b = torch.autograd.grad(kl.value, (a, b))
    close(by_a, f - 0.1 * a.log(), 1e-10)
    close(by_b, g - 0.1 * b.log(), 1e-10)


# Everything, of both orders


@pytest.mark.parametrize(
    ("form", "field"), covering(FORMS, ["value", "value_linear", "plan", "potentials"])
)
def test_gradcheck_of_both_orders(field: str, form: dict) -> None:
    C, a, b = leaves(3, 4)
    reg = torch.tensor(0.15, dtype=torch.float64, requires_grad=True)

    def call(C: Tensor, log_a: Tensor, log_b: Tensor, reg: Tensor) -> Tensor:
        # softmax keeps the masses equal; its inverse gives back the weights
        result = ot.solve(C, log_a.softmax(0), log_b.softmax(0), reg=reg, tol=1e-14, **form)
        return getattr(result, field)

    args = (C, a.detach().log().requires_grad_(), b.detach().log().requires_grad_(), reg)
    assert torch.autograd.gradcheck(call, args, atol=1e-7)
    assert torch.autograd.gradgradcheck(call, args, atol=1e-6)


def test_plan_losses_follow_the_written_formula() -> None:
    """With the pseudo-inverse of the whole matrix, not our solver."""
    C, a, b = leaves(6, 4)
    G = torch.randn(6, 4, dtype=torch.float64)
    result = ot.solve(C, a, b, reg=0.07, tol=1e-13)
    grads = torch.autograd.grad((result.plan * G).sum(), (C, a, b))
    P = result.plan.detach()
    H = torch.cat([torch.cat([P.sum(1).diag(), P], 1), torch.cat([P.T, P.sum(0).diag()], 1)])
    w = torch.linalg.pinv(H) @ torch.cat([(G * P).sum(1), (G * P).sum(0)])
    w_x, w_y = w[:6], w[6:]
    close(grads[0], -P * (G - w_x[:, None] - w_y) / 0.07, 1e-9)
    for got, wanted in ((grads[1], w_x), (grads[2], w_y)):  # up to a constant
        close(got - got.mean(), wanted - wanted.mean(), 1e-9)


def test_the_sparse_gradient_is_the_dense_one() -> None:
    C, a, b = leaves(40, 30)
    G = torch.randn(40, 30, dtype=torch.float64)
    result = ot.solve(C, a, b, reg=2e-3, tol=1e-12)
    dense = torch.autograd.grad((result.plan * G).sum(), C)[0]
    for given in (G, lambda i, j: G[i, j]):
        sparse = result.cost_gradient(given, threshold=1e-12)
        assert sparse.layout == torch.sparse_csr
        assert sparse.values().numel() < 0.9 * dense.numel()
        assert float((sparse.to_dense() - dense).norm() / dense.norm()) < 1e-8
    coarse = result.cost_gradient(G)
    assert coarse.values().numel() < sparse.values().numel()
    assert float((coarse.to_dense() - dense).norm() / dense.norm()) < 1e-5


def test_the_sparse_gradient_with_empty_rows_and_lazy_points() -> None:
    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(15, 2, dtype=torch.float64)
    a = torch.rand(20, dtype=torch.float64)
    a[[0, 3]] = 0
    a /= a.sum()
    G = torch.randn(20, 15, dtype=torch.float64)
    lazy = ot.solve_sample(x, y, a, reg=0.1, lazy=True, tol=1e-12)
    C = torch.cdist(x, y).square().requires_grad_()
    dense = ot.solve(C, a, reg=0.1, tol=1e-12)
    wanted = torch.autograd.grad((dense.plan * G).sum(), C)[0]
    got = lazy.cost_gradient(G, threshold=1e-13).to_dense()
    close(got, wanted, 1e-8)
    assert (got[[0, 3]] == 0).all()


# Rows without mass


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_mass_have_finite_gradients(form: dict) -> None:
    C, a, b = leaves(6, 5)
    with torch.no_grad():
        a[2], b[0] = 0, 0
        a /= a.sum()
        b /= b.sum()
    reg = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    result = ot.solve(C, a, b, reg=reg, tol=1e-12, **form)
    f, _ = result.potentials
    for field in (result.value, result.value_linear, result.plan.square().sum(), f.square().sum()):
        grads = torch.autograd.grad(field, (C, a, b, reg), create_graph=True, retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in grads)
        assert (grads[0][2] == 0).all()
        squares = sum(g.square().sum() for g in grads)
        second = torch.autograd.grad(squares, (C, a, b, reg), retain_graph=True)
        assert all(bool(g.isfinite().all()) for g in second)


@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.5)])
def test_mass_moved_to_an_empty_row_changes_the_value_as_predicted(
    rho: tuple[float, float],
) -> None:
    """The one-sided derivative of the KL value, which is finite."""
    C, a, b = oracle.case(6, 5, seed=4)
    a[2] = 0
    a /= a.sum()
    leaf = torch.tensor(a, requires_grad=True)
    result = ot.solve(torch.tensor(C), leaf, torch.tensor(b), reg=0.1, unbalanced=rho, tol=1e-13)
    grad = torch.autograd.grad(result.value, leaf)[0].numpy()
    step = -a.copy()
    step[2] = 1.0
    base = oracle.optimal(C, a, b, 0.1, rho=rho)
    h = 1e-5
    one, two = (oracle.optimal(C, a + k * h * step, b, 0.1, rho=rho) - base for k in (1, 2))
    assert float(grad @ step) == pytest.approx((4 * one - two) / (2 * h), abs=1e-5)


# Points


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
def test_a_lazy_cost_has_the_gradients_of_its_matrix(metric: str) -> None:
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    y = (torch.randn(2, 4, 3, dtype=torch.float64) + 2).requires_grad_()
    _, a, b = leaves(6, 4)
    reg = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, -3.0], dtype=torch.float64)
    grads = []
    for lazy in (True, False):
        result = ot.solve_sample(x, y, a, b, reg, metric, lazy=lazy, tol=1e-13)
        grads.append(torch.autograd.grad((result.value * weights).sum(), (x, y, a, b, reg)))
    for lazy_grad, dense_grad in zip(*grads, strict=True):
        close(lazy_grad, dense_grad, 1e-10)


def test_tiles_of_a_lazy_gradient_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(9, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    reg = torch.ones(1, dtype=torch.float64)
    args = (x[None], y[None], "l1", reg, x[None, :, 0], y[None, :, 0])
    whole = torch.ops.gossamer.ot_lazy_gradient(*args)
    monkeypatch.setattr("gossamer.ot.value._TILE", 20)  # two rows
    for tiled, one in zip(torch.ops.gossamer.ot_lazy_gradient(*args), whole, strict=True):
        close(tiled, one, 1e-12)


def test_a_lazy_cost_refuses_what_it_cannot_differentiate() -> None:
    x = torch.randn(6, 3, requires_grad=True)
    y = torch.randn(4, 3)
    result = ot.solve_sample(x, y, reg=0.5, lazy=True)
    for field in (result.plan.sum(), result.value_linear, result.potentials[0].sum()):
        with pytest.raises(GossamerError, match="lazy=False"):
            field.backward(retain_graph=True)
    grad = torch.autograd.grad(result.value, x, create_graph=True)[0]
    with pytest.raises(GossamerError, match="lazy=False"):
        grad.sum().backward()


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cosine"])
def test_gradcheck_of_points(metric: str) -> None:
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = (torch.randn(4, 2, dtype=torch.float64) + 1).requires_grad_()

    def call(x: Tensor, y: Tensor) -> Tensor:
        return ot.solve_sample(x, y, reg=0.7, metric=metric, tol=1e-14).plan

    assert torch.autograd.gradcheck(call, (x, y), atol=1e-7)
    assert torch.autograd.gradgradcheck(call, (x, y), atol=1e-6)


# Batches, dtypes, modes


def test_gradients_of_a_batch_are_a_loops() -> None:
    cases = [leaves(5, 7, seed=s) for s in range(3)]
    C, a, b = (torch.stack([c[k] for c in cases]).detach().requires_grad_() for k in range(3))
    reg = torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)

    def loss(result: ot.OTResult) -> Tensor:
        return result.plan.square().sum() + result.value.sum() + result.potentials[1].cos().sum()

    batch = torch.autograd.grad(loss(ot.solve(C, a, b, reg=reg, tol=1e-12)), (C, a, b))
    for i, leaf in enumerate(cases):
        single = loss(ot.solve(*leaf, reg=float(reg[i]), tol=1e-12))
        for whole, grad in zip(batch, torch.autograd.grad(single, leaf), strict=True):
            close(whole[i], grad, 1e-11)


def test_float32_gradients_are_those_of_float64() -> None:
    double = leaves(6, 8)
    single = [t.detach().float().requires_grad_() for t in double]
    result = ot.solve(*single, reg=0.05)
    grads = torch.autograd.grad(result.value + result.plan.square().sum(), single)
    wide = ot.solve(*double, reg=0.05)
    wanted = torch.autograd.grad(wide.value + wide.plan.square().sum(), double)
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == torch.float32
        close(got - got.mean(), (want - want.mean()).float(), 2e-5)


def test_detach_has_no_gradient_and_no_grad_is_obeyed() -> None:
    C, a, b = leaves()
    result = ot.solve(C, a, b, reg=0.1, grad="detach")
    assert not any(t.requires_grad for t in (result.value, result.value_linear, result.plan))
    with torch.no_grad():
        quiet = ot.solve(C, a, b, reg=0.1)
        assert not quiet.value.requires_grad


def test_only_what_asks_gets_a_gradient() -> None:
    C, a, b = leaves()
    result = ot.solve(C.detach(), a, b.detach(), reg=0.1)
    (result.value + result.plan.square().sum()).backward()
    assert C.grad is None
    assert a.grad is not None


def test_a_linear_system_that_is_not_solved_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    C, a, b = leaves()
    result = ot.solve(C, a, b, reg=0.1)
    limited = functools.partial(core.laplacian_solve, max_iter=1, tol=1e-300)
    monkeypatch.setattr(core, "laplacian_solve", limited)
    monkeypatch.setattr("gossamer.ot.gradients._DIRECT", 0)
    with pytest.warns(ot.ConvergenceWarning, match="gradient's linear system .* ridge="):
        result.plan.square().sum().backward()


@pytest.mark.parametrize("form", [{}, {"unbalanced": 0.5}, {"ridge": 0.1}])
def test_a_small_system_that_is_not_solved_is_solved_directly(
    monkeypatch: pytest.MonkeyPatch, form: dict
) -> None:
    C, a, b = leaves()
    result = ot.solve(C, a, b, reg=0.1, tol=1e-12, **form)
    wanted = torch.autograd.grad(result.plan.square().sum(), C, retain_graph=True)[0]
    limited = functools.partial(core.laplacian_solve, max_iter=1, tol=1e-300)
    monkeypatch.setattr(core, "laplacian_solve", limited)
    close(torch.autograd.grad(result.plan.square().sum(), C)[0], wanted, 1e-10)


def test_the_gradient_of_a_plan_that_is_all_but_a_permutation() -> None:
    """Where H is singular to the last digit beyond its gauge; by differences of new solves."""
    n, reg = 40, 1e-3
    C, G, step = torch.rand(3, n, n, dtype=torch.float64)
    C.requires_grad_()

    def loss(cost: Tensor) -> Tensor:
        return (ot.solve(cost, reg=reg, tol=1e-12, method="newton").plan * G).sum()

    got = float((torch.autograd.grad(loss(C), C)[0] * step).sum())
    with torch.no_grad():
        wanted = oracle.slope(lambda t: loss(C + t * step).item(), 1e-2 * reg)
    assert got == pytest.approx(wanted, rel=1e-6)


def test_a_ridge_changes_little_and_something() -> None:
    grads = []
    for ridge in (0.0, 1e-7, 1e-1):
        C, a, b = leaves()
        ot.solve(C, a, b, reg=0.05, ridge=ridge, tol=1e-12).plan.square().sum().backward()
        grads.append(C.grad)
    close(grads[0], grads[1], 1e-5)
    assert float((grads[0] - grads[2]).abs().max()) > 1e-4
