"""Operators on ordered values against brute force, dual problems, threads and bad input."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.errors import ArgumentError, DTypeError, GossamerError, ShapeError, StructureError
from gossamer.prox import SLOPE, NuclearNorm, Simplex, TotalVariation
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.chains import isotonic_, simplices_, total_variation_
from support.prox_oracle import Vector, not_worse


def one(n: int) -> Groups:
    return Groups(1, 1, n)


def best_cut(x: Vector, h: Vector, cost: Any, move: Any) -> tuple[Vector, float]:
    """The best of all cuts into constant pieces; `move` says where a piece goes, `cost` all."""
    found, least = x, np.inf
    for cuts in product([False, True], repeat=len(x) - 1):
        labels = np.cumsum([False, *cuts])
        for z in move(x, h, labels):
            if cost(z) < least:
                found, least = z, cost(z)
    return found, least


def means(x: Vector, h: Vector, labels: Vector) -> Vector:
    return (np.bincount(labels, h * x) / np.bincount(labels, h))[labels]


@pytest.mark.parametrize("falling", [False, True])
def test_isotonic_is_the_best_of_all_poolings(falling: bool) -> None:
    rng = np.random.default_rng(4)
    for n in (1, 2, 3, 5, 8):
        for weighted in (False, True):
            x = rng.integers(-3, 4, n) * 1.0 if weighted else rng.normal(size=n)
            h = rng.uniform(0.2, 3, n) if weighted else np.ones(n)
            sign = -1 if falling else 1

            def cost(z: Vector, x: Vector = x, h: Vector = h, sign: int = sign) -> float:
                return np.inf if (sign * np.diff(z) < 0).any() else float((h * (z - x) ** 2).sum())

            best, least = best_cut(x, h, cost, lambda *given: [means(*given)])
            z = isotonic_(x.copy(), one(n), falling=falling, metric=h if weighted else None)
            assert cost(z) <= least + 1e-12
            assert np.allclose(z, best, atol=1e-12)


def test_total_variation_is_the_best_of_all_cuts() -> None:
    """A piece lies at its mean, moved by lam towards each neighbour: all signs of all cuts."""
    rng = np.random.default_rng(5)
    for n, lam in product((1, 2, 3, 6), (0.0, 0.05, 0.4, 3.0)):
        for weighted in (False, True):
            x, h = rng.normal(size=n), rng.uniform(0.2, 3, n) if weighted else np.ones(n)

            def cost(z: Vector, x: Vector = x, h: Vector = h, lam: float = lam) -> float:
                return float((h * (z - x) ** 2).sum() / 2 + lam * np.abs(np.diff(z)).sum())

            def move(x: Vector, h: Vector, labels: Vector, lam: float = lam) -> list[Vector]:
                count, weight = labels[-1] + 1, np.bincount(labels, h)
                found = []
                for signs in product([-1, 1], repeat=count - 1):
                    pull = np.zeros(count)
                    pull[:-1] += signs
                    pull[1:] -= np.array(signs, dtype=float)
                    found.append(means(x, h, labels) + (lam * pull / weight)[labels])
                return found

            best, least = best_cut(x, h, cost, move)
            z = total_variation_(x.copy(), one(n), lam, metric=h if weighted else None)
            assert cost(z) <= least + 1e-12
            assert np.allclose(z, best, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_total_variation_of_long_rows_has_a_dual_point(weighted: bool, scale: float) -> None:
    """Optimal iff the sums u of h (x - z) stay in [-lam, lam], and at the ends where z moves."""
    rng = np.random.default_rng(6)
    for n in (50, 3000):
        x = (np.cumsum(rng.normal(size=n)) + rng.normal(size=n)) * scale
        h = 10.0 ** rng.uniform(-1, 1, n) if weighted else np.ones(n)
        for lam in (0.1, 2.0, 50.0, 1e9):
            z = total_variation_(x.copy(), one(n), lam * scale, metric=h if weighted else None)
            u = np.cumsum(h * (x - z))
            slack = 1e-10 * scale * n
            assert abs(u[-1]) <= slack
            assert np.abs(u).max() <= lam * scale + slack
            assert (
                np.abs(u[:-1] + lam * scale * np.sign(np.diff(z)))[np.diff(z) != 0].max(initial=0)
                <= slack
            )


@pytest.mark.parametrize("n", [2, 7, 40])
def test_slope_is_not_beaten_and_equals_its_dual(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        x = rng.normal(size=n) * 2
        a = np.sort(rng.uniform(0, 2, n))[::-1]
        penalty = SLOPE(0.7, sequence=a.copy())
        z = penalty.prox_(x.copy())

        def total(points: Vector, x: Vector = x, a: Vector = a) -> Vector:
            sizes = -np.sort(-np.abs(points), axis=-1)
            return 0.5 * ((points - x) ** 2).sum(-1) + 0.7 * (sizes * a).sum(-1)

        not_worse(total, z, rng, also=np.stack([x, np.zeros(n)]))
        y = x - z  # in the dual ball, with <y, z> = g(z): Fenchel's equality
        partial = np.cumsum(-np.sort(-np.abs(y))) - 0.7 * np.cumsum(a)
        assert partial.max() <= 1e-12 * n
        assert penalty.value(z) == pytest.approx(float(y @ z), rel=1e-12)
    flat = SLOPE(0.7, sequence=np.ones(n)).prox_(x.copy())
    assert np.allclose(flat, np.sign(x) * np.maximum(np.abs(x) - 0.7, 0), atol=1e-14)


def test_slope_of_benjamini_and_hochberg() -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = [float(normal.icdf(torch.tensor(1 - 0.2 * i / 8).double())) for i in (1, 2, 3, 4)]
    x = torch.tensor([9.0, -7.0, 5.0, 1.0], dtype=torch.float64)
    assert SLOPE(1.0, q=0.2).value(x) == pytest.approx(
        sum(a * v for a, v in zip(expected, (9, 7, 5, 1), strict=True))
    )
    groups = torch.eye(2, dtype=torch.float64) * x[:2]
    by_row = SLOPE(1.0, sequence=[3.0, 1.0], groups="neuron").prox(groups)
    assert torch.allclose(by_row.diagonal(), torch.tensor([6.0, -6.0], dtype=torch.float64))


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3)])
def test_nuclear_norm(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    penalty = NuclearNorm(0.8)
    z = penalty.prox(x)
    y = (x - z).reshape(shape[0], -1)
    assert float(torch.linalg.matrix_norm(y, 2)) <= 0.8 * (1 + 1e-12)
    assert penalty.value(z) == pytest.approx(float((y * z.reshape(y.shape)).sum()), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda t: penalty.prox(t, 0.7), x.requires_grad_(), eps=1e-7, atol=1e-5
    )


def test_rows_columns_and_lists_are_rows_of_their_own() -> None:
    x = torch.randn(6, 9, dtype=torch.float64)
    h = torch.rand_like(x) + 0.5
    lists = [[5, 0, 17], [1, 2, 3, 4], list(range(6, 17)), list(range(18, 54))]
    for groups, rows in [
        ("neuron", [slice(9 * i, 9 * i + 9) for i in range(6)]),
        ("input", [slice(i, None, 9) for i in range(9)]),
        (lists, lists),
    ]:
        for penalty, single in [
            (TotalVariation(0.4, groups=groups), TotalVariation(0.4)),
            (Simplex(1.5, groups=groups), Simplex(1.5)),
        ]:
            z = penalty.prox_(x.clone(), metric=h).view(-1)
            for row in rows:
                part = single.prox_(x.view(-1)[row].clone(), metric=h.view(-1)[row].clone())
                assert torch.allclose(z[row], part, atol=1e-14)
            assert penalty.value(z.view(6, 9)) < np.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_are_equal_for_any_thread_count(dtype: torch.dtype) -> None:
    x, h = torch.randn(300, 301).to(dtype), torch.rand(300, 301).to(dtype) + 0.1
    groups = Groups(1, 300, 301)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            [
                isotonic_(x.clone(), groups, metric=h),
                total_variation_(x.clone(), groups, 0.7, metric=h),
                simplices_(x.clone(), Groups(300, 301, 1), 1.0),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("size", [1e-308, 1e-40, 1e300, 1.7e308])
@pytest.mark.parametrize("weight", [None, 1e-320, 1e-160, 1e160, 1.7e308])
def test_ends_of_the_floating_range(size: float, weight: float | None) -> None:
    x = torch.tensor([1.0, -1.0, 0.5, 0.5, -0.25, 0.0], dtype=torch.float64) * size
    h = None if weight is None else torch.tensor([1.0, weight] * 3, dtype=torch.float64)
    for lam in (0.0, 5e-324, 1e-300, 1.0, 1e300):
        z = total_variation_(x.clone(), one(6), lam, metric=h)
        assert z.isfinite().all()
        assert z.max() <= x.max() * (1 + 1e-9)
        assert z.min() >= x.min() * (1 + 1e-9)
    z = isotonic_(x.clone(), one(6), metric=h)
    assert z.isfinite().all()
    assert (z.diff() >= 0).all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: isotonic_(x, one(5)), ShapeError, "do not fit"),
        (lambda x: isotonic_(x, one(4), metric=torch.ones(3)), ShapeError, "metric"),
        (lambda x: isotonic_(x, one(4), metric=torch.ones(4).double()), DTypeError, "metric"),
        (lambda x: isotonic_(x, one(4), metric=torch.zeros(4)), ArgumentError, "not positive"),
        (lambda x: total_variation_(x, one(4), -1.0), ArgumentError, "lam"),
        (lambda x: total_variation_(x, one(4), float("nan")), ArgumentError, "lam"),
        (lambda x: total_variation_(x / 0, one(4), 1.0), ArgumentError, "NaN or infinity at entry"),
        (lambda x: total_variation_(x.long(), one(4), 1.0), DTypeError, "int64"),
        (lambda x: total_variation_(x.expand(2, 4), Groups(1, 2, 4), 1.0), ShapeError, "expanded"),
        (lambda x: simplices_(x, one(4), float("inf")), ArgumentError, "radius"),
        (
            lambda x: isotonic_(
                x, Groups(1, 1, 1, torch.tensor([0, 4]), torch.tensor([0, 1, 2, 9]))
            ),
            StructureError,
            "indices",
        ),
        (
            lambda x: isotonic_(x, Groups(1, 2, 1, torch.tensor([0, 5, 4]), torch.arange(4))),
            StructureError,
            "indptr",
        ),
    ],
)
def test_bad_input_is_one_clear_error(call: Any, error: type[GossamerError], text: str) -> None:
    x = torch.arange(4.0)
    with pytest.raises(error, match=text):
        call(x)
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]
