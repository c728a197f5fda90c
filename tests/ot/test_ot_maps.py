"""The Monge gap against the oracle's value, and the hard c-transform against the dense minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gossamer.ot as ot
from gossamer.errors import DTypeError, ProblemError, ShapeError
from gossamer.ot import maps
from support import ot_oracle as oracle

METRICS = ["sqeuclidean", "euclidean", "l1", "cosine"]


def clouds(n: int = 7, m: int = 7, d: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.2, 2.0, n)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5, a / a.sum()


def costs(x: np.ndarray, y: np.ndarray, metric: str) -> np.ndarray:
    gaps = x[:, None] - y[None]
    if metric == "cosine":
        unit_x, unit_y = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in (x, y))
        return 1 - unit_x @ unit_y.T
    if metric == "l1":
        return np.abs(gaps).sum(-1)
    squares = (gaps**2).sum(-1)
    return squares if metric == "sqeuclidean" else np.sqrt(squares)


def gap(x: np.ndarray, y: np.ndarray, a: np.ndarray, reg: float, metric: str) -> float:
    """The definition: the cost of the map, minus <C, P> + reg sum P (log P - 1) at the optimum."""
    cost = costs(x, y, metric)
    plan, _, _ = oracle.sinkhorn(cost, a, a, reg)
    return float(a @ np.diag(cost) - (plan * cost).sum() - reg * (plan * (np.log(plan) - 1)).sum())


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_the_gap_and_its_gradients_are_the_oracles(metric: str, lazy: bool) -> None:
    x, y, a = clouds()
    expected = gap(x, y, a, 0.5, metric)
    assert float(ot.monge_gap(x, y, a, 0.5, metric, lazy=lazy)) == pytest.approx(expected, abs=1e-8)
    leaf = [torch.tensor(t, requires_grad=True) for t in (x, y, a)]
    value = ot.monge_gap(*leaf, 0.5, metric, lazy=lazy, tol=1e-12)
    grads = [g.numpy() for g in torch.autograd.grad(value, leaf)]
    rng = np.random.default_rng(2)
    for k in range(3):
        step = rng.normal(size=leaf[k].shape)
        step = 0.1 * (step - step.mean()) if k == 2 else step

        def at(t: float, k: int = k, step: np.ndarray = step) -> float:
            moved = [z + t * step if i == k else z for i, z in enumerate((x, y, a))]
            return gap(*moved, 0.5, metric)

        assert float((grads[k] * step).sum()) == pytest.approx(oracle.slope(at), abs=1e-6)


def test_optimal_maps_have_the_smallest_gap() -> None:
    """A gradient of a convex function is optimal for the squared distance; its mirror is not."""
    x = torch.randn(30, 2, dtype=torch.float64)
    stretch = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    for reg in (1e-1, 1e-3):
        best, worst = (float(ot.monge_gap(x, x @ t, reg=reg)) for t in (stretch, -stretch))
        # The pairs themselves are a plan, and no plan of 30 rows and columns has more entropy.
        least, most = reg * (np.log(30) + 1), reg * (2 * np.log(30) + 1)
        assert least * (1 - 1e-6) <= best <= most * (1 + 1e-6)
        assert worst > best + 1
    assert float(ot.monge_gap(x, x @ stretch, reg=1e-3, reg_type="KL")) <= 1e-9
    perm = torch.randperm(30)
    assert float(ot.monge_gap(x, x[perm], reg=1e-3)) > 0.1


def test_descent_on_the_gap_straightens_a_map() -> None:
    torch.manual_seed(1)
    x = torch.randn(40, 2, dtype=torch.float64)
    angle = torch.tensor(2.5, dtype=torch.float64)  # x -> R x is optimal only up to a right angle
    y = (
        x
        @ torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
    ).requires_grad_()
    first = float(ot.monge_gap(x, y.detach(), reg=0.05))
    for _ in range(30):
        (g,) = torch.autograd.grad(ot.monge_gap(x, y, reg=0.05), y)
        y = (y - 8.0 * g).detach().requires_grad_()
    assert float(ot.monge_gap(x, y.detach(), reg=0.05)) < 0.3 * first


def test_batches_dtypes_and_second_derivatives() -> None:
    parts = [clouds(5, 5, seed=s) for s in range(3)]
    x, y, a = (torch.tensor(np.stack(p)) for p in zip(*parts, strict=True))
    batch = ot.monge_gap(x, y, a, 0.3)
    singles = [ot.monge_gap(x[i], y[i], a[i], 0.3) for i in range(3)]
    assert torch.allclose(batch, torch.stack(singles), atol=1e-12)
    assert ot.monge_gap(x.float(), y.float(), reg=0.3).dtype == torch.float32
    leaf = x[0, :3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda t: ot.monge_gap(t, y[0, :3], reg=0.5, tol=1e-13), leaf, atol=1e-5
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(7, 9), (3, 7, 9), (60, 31)])
def test_the_c_transform_is_the_dense_minimum(
    metric: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_TILE", 200)
    *batch, n, m = shape
    x, y = torch.randn(*batch, n, 3).double(), torch.randn(*batch, m, 3).double()
    g = torch.randn(*batch, m).double()
    leaf = [t.requires_grad_() for t in (x, y, g)]
    f = ot.c_transform(x, y, g, metric)
    gaps = x.unsqueeze(-2) - y.unsqueeze(-3)
    dense = {
        "sqeuclidean": lambda: gaps.square().sum(-1),
        "euclidean": lambda: gaps.norm(dim=-1),
        "l1": lambda: gaps.abs().sum(-1),
        "cosine": lambda: (
            1 - torch.nn.functional.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), dim=-1)
        ),
    }[metric]() - g.unsqueeze(-2)
    expected = dense.min(-1).values
    assert torch.allclose(f, expected, atol=1e-13)
    w = torch.randn_like(f)
    for mine, other in zip(
        torch.autograd.grad((f * w).sum(), leaf),
        torch.autograd.grad((expected * w).sum(), leaf),
        strict=True,
    ):
        assert torch.allclose(mine, other, atol=1e-12)


def test_the_soft_transform_tends_to_the_hard_one_and_twice_is_a_fixed_point() -> None:
    x, y, a = clouds(12, 12, seed=3)
    result = ot.solve_sample(x, y, a, reg=1e-3, tol=1e-10)
    f, g = result.potentials
    assert np.allclose(ot.c_transform(x, y, g), f, atol=1e-3 * 12)
    # (g^c)^c >= g, and a third transform changes nothing.
    once = ot.c_transform(x, y, g)
    twice = ot.c_transform(y, x, once)
    assert (twice >= g - 1e-12).all()
    assert np.allclose(ot.c_transform(x, y, twice), once, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: ot.monge_gap(x, x[:3]), ShapeError, "y holds the image of each point"),
        (lambda x: ot.monge_gap(x, x, reg=0.0), ProblemError, "reg is 0"),
        (lambda x: ot.monge_gap(x, x, metric="l2"), ProblemError, "metric is 'l2'"),
        (lambda x: ot.monge_gap(x, x, reg_type="L2"), ProblemError, "reg_type"),
        (lambda x: ot.monge_gap(x, x * torch.nan), ProblemError, "y"),
        (lambda x: ot.monge_gap(x.long(), x), DTypeError, "int64"),
        (lambda x: ot.c_transform(x, x, x[:3, 0]), ShapeError, r"g has shape \[3\]"),
        (lambda x: ot.c_transform(x, x, x[:, 0] * torch.inf), ProblemError, "g"),
        (lambda x: ot.c_transform(x, x, None), DTypeError, "g"),
        (lambda x: ot.c_transform(x * torch.nan, x, x[:, 0]), ProblemError, "x"),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(torch.randn(5, 2))
