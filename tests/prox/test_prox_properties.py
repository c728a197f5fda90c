"""Every operator against a grid, perturbations, SLSQP and Fenchel's equality: 5,000 cases."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gossamer import prox
from gossamer.prox import (
    MCP,
    SCAD,
    WGSEF,
    Box,
    ElasticNet,
    L1Ball,
    L1MinusL2,
    L2Ball,
    Lp,
    Penalty,
    Simplex,
    SparseGroupLasso,
)
from gossamer.prox.groupings import Groups
from gossamer.prox.operators.groupwise import scale_groups_, wgsef_gains
from support.prox_oracle import PHI, ROWS, Vector, envelope, grid_best, not_worse, objective

pytestmark = pytest.mark.slow


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers spread evenly over the orders of magnitude from 10^low to 10^high."""
    return st.floats(low, high).map(lambda e: float(10.0**e))


PARAMETERS: dict[str, dict[str, st.SearchStrategy[float]]] = {
    kind: {
        name: powers(*span[:2]) if span[2:] else st.floats(*span[:2])
        for name, span in row.spans.items()
    }
    for kind, row in ROWS.items()
}
CONCAVE = [kind for kind, row in ROWS.items() if row.concave]

seeds = st.integers(0, 2**32 - 1)
lams = powers(-3, 1.5)
steps = powers(-1.5, 1)


@st.composite
def chosen(draw: st.DrawFn, kind: str) -> tuple[dict[str, float], float]:
    """The parameters of a penalty, and a step."""
    parameters = {"lam": draw(lams)}
    parameters |= {name: draw(values) for name, values in PARAMETERS[kind].items()}
    return parameters, draw(steps)


def entries(seed: int, n: int, scale: float = 1.0) -> tuple[Vector, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) * 10.0 ** rng.uniform(-1.5, 1.5, n) * scale, rng


@pytest.mark.parametrize("kind", PHI)
@settings(max_examples=300, derandomize=True)
@given(data=st.data(), seed=seeds)
def test_an_entry_is_never_worse_than_the_grid(kind: str, data: Any, seed: int) -> None:
    parameters, step = data.draw(chosen(kind))
    penalty = prox.parse_penalty(kind, **parameters)
    x, _ = entries(seed, 4, scale=1 + parameters["lam"] * step)
    z = penalty.prox_(x.copy(), step)
    mine = objective(kind, parameters, step, x, z)
    best = grid_best(kind, parameters, step, x)
    assert (mine <= best + 1e-12 * (1 + best)).all()

    # Odd and monotone; zeros are +0.0; no output inside the gap; the value is the oracle's.
    assert np.array_equal(penalty.prox_(-x, step), -z)
    assert (np.diff(penalty.prox_(np.sort(x), step)) >= 0).all()
    assert not np.signbit(z[z == 0]).any()
    assert (np.abs(z[z != 0]) >= penalty.gap(step) * (1 - 1e-9)).all()
    assert penalty.value(z) == pytest.approx(PHI[kind](np.abs(z), **parameters).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", PHI)
@settings(max_examples=60, derandomize=True)
@given(data=st.data(), seed=seeds, positive=st.booleans())
def test_weights_and_a_sign_against_the_grid(
    kind: str, data: Any, seed: int, positive: bool
) -> None:
    parameters, step = data.draw(chosen(kind))
    x, rng = entries(seed, 6, scale=1 + parameters["lam"] * step)
    w = 10.0 ** rng.uniform(-1, 1, 6) * (rng.random(6) < 0.9)
    penalty = prox.parse_penalty(kind, **parameters, weights=w, positive=positive)
    z = penalty.prox_(x.copy(), step)
    if positive:
        assert (z >= 0).all()
        assert penalty.value(-np.abs(x)) == np.inf
        x = np.maximum(x, 0)
    mine = objective(kind, parameters, step * w, x, z)
    best = grid_best(kind, parameters, (step * w)[:, None], x)
    assert (mine <= best + 1e-12 * (1 + best)).all()
    assert (np.abs(z[z != 0]) >= penalty.gap(step) * (1 - 1e-9)).all()
    value = (w * PHI[kind](np.abs(z), **parameters)).sum()
    assert penalty.value(z) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("kind", PHI)
@settings(max_examples=60, derandomize=True)
@given(data=st.data(), seed=seeds, positive=st.booleans())
def test_a_group_is_never_worse_than_its_neighbours(
    kind: str, data: Any, seed: int, positive: bool
) -> None:
    parameters, step = data.draw(chosen(kind))
    w = np.array([1.0, 0.3, 2.0]) if positive else np.ones(3)
    more: Any = {"weights": w, "positive": True} if positive else {}
    penalty = prox.parse_penalty(kind, **parameters, groups="neuron", **more)
    x, rng = entries(seed, 12, scale=1 + parameters["lam"] * step)
    x = x.reshape(3, 4)
    z = penalty.prox_(x.copy(), step).ravel()

    def total(points: Vector) -> Vector:
        sizes = np.linalg.norm(points.reshape(-1, 3, 4), axis=-1)
        g = (w * PHI[kind](sizes, **parameters)).sum(-1)
        g[positive & (points < 0).any(-1)] = np.inf
        return 0.5 * ((points - x.ravel()) ** 2).sum(-1) + step * g

    not_worse(total, z, rng, also=np.stack([x.ravel(), np.zeros(12)]))
    assert penalty.value(z.reshape(3, 4)) * step == pytest.approx(
        total(z[None])[0] - 0.5 * ((z - x.ravel()) ** 2).sum(), rel=1e-9, abs=1e-9
    )


@settings(max_examples=150, derandomize=True)
@given(lam=lams, group_lam=lams, step=steps, seed=seeds, in_metric=st.booleans())
def test_group_penalties_in_a_metric(
    lam: float, group_lam: float, step: float, seed: int, in_metric: bool
) -> None:
    x, rng = entries(seed, 12, scale=1 + lam + group_lam)
    h = 10.0 ** rng.uniform(-1, 1, 12) if in_metric else np.ones(12)
    penalty = SparseGroupLasso(lam, group_lam, groups="input")
    z = penalty.prox_(x.reshape(3, 4).copy(), step, metric=h.reshape(3, 4)).ravel()

    def total(points: Vector) -> Vector:
        sizes = np.linalg.norm(points.reshape(-1, 3, 4), axis=1)
        g = lam * np.abs(points).sum(-1) + group_lam * sizes.sum(-1)
        return 0.5 * (h * (points - x) ** 2).sum(-1) + step * g

    not_worse(total, z, rng, also=np.stack([x, np.zeros(12)]))


@settings(max_examples=150, derandomize=True)
@given(lam=lams, alpha=st.floats(0, 1), seed=seeds)
def test_l1_minus_l2(lam: float, alpha: float, seed: int) -> None:
    x, rng = entries(seed, 6, scale=lam)
    z = L1MinusL2(lam, alpha).prox_(x.copy())

    def total(points: Vector) -> Vector:
        g = np.abs(points).sum(-1) - alpha * np.linalg.norm(points, axis=-1)
        return 0.5 * ((points - x) ** 2).sum(-1) + lam * g

    single = np.diag(np.sign(x) * np.maximum(np.abs(x) - (1 - alpha) * lam, 0))
    not_worse(total, z, rng, also=np.concatenate([single, x[None], np.zeros((1, 6))]))


@settings(max_examples=150, derandomize=True)
@given(lam=powers(-2, 1), k=st.integers(1, 6), seed=seeds, unbiased=st.booleans())
def test_wgsef_is_never_worse_than_its_neighbours(
    lam: float, k: int, seed: int, unbiased: bool
) -> None:
    x, rng = entries(seed, 12)
    penalty = WGSEF(lam, k, groups="neuron", unbiased=unbiased)
    z = penalty.prox_(x.reshape(6, 2).copy()).ravel()

    def total(points: Vector) -> Vector:
        sizes = np.linalg.norm(points.reshape(-1, 6, 2), axis=-1)
        g = envelope(sizes, k) - 0.5 * unbiased * (sizes**2).sum(-1)
        return 0.5 * ((points - x) ** 2).sum(-1) + lam * g

    # From lam = 1 on the unbiased problem is not convex: any k groups may be the best.
    subsets = [np.isin(np.arange(12) // 2, kept) * x for kept in combinations(range(6), k)]
    not_worse(total, z, rng, also=np.stack([x, np.zeros(12), *subsets]))
    assert lam * penalty.value(z.reshape(6, 2)) / lam == pytest.approx(
        (total(z[None])[0] - 0.5 * ((z - x) ** 2).sum()), rel=1e-9, abs=1e-9
    )


@settings(max_examples=30, derandomize=True)
@given(lam=powers(-1, 1), k=st.floats(0.5, 4), seed=seeds)
def test_wgsef_with_weights_and_costs_against_slsqp(lam: float, k: float, seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.3, 3, 5)
    d, c, h = rng.uniform(0.5, 2, (3, 5))
    gains, _ = wgsef_gains(
        *(
            torch.from_numpy(v) if i in (0, 3, 4, 5) else v
            for i, v in enumerate((a, k, lam, d, c, h))
        )
    )

    def reduced(u: Vector) -> float:  # the objective at the best x for this u
        return float((0.5 * lam * d * a**2 / (u + lam * d / h)).sum())

    budget = {"type": "ineq", "fun": lambda u: k - c @ u}
    found = optimize.minimize(
        reduced,
        np.full(5, k / c.sum() / 2),
        bounds=[(0, 1)] * 5,
        constraints=budget,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    off = lam * d / h
    t = np.asarray(gains)
    u = np.minimum(t * off / (1 - t), 1.0)  # t = u / (u + off)
    assert c @ u <= k * (1 + 1e-12)
    assert reduced(u) <= found.fun * (1 + 1e-9)


def fenchel(f: float, conjugate: float, z: Vector, y: Vector) -> None:
    """f(z) + f*(y) = <z, y>, which holds only where y is a subgradient of f at z."""
    size = np.abs(z * y).sum() + abs(f) + abs(conjugate)
    rounding = 2**-50 * (np.abs(z) * np.abs(z + y)).sum()  # of y, a difference of x and z
    assert abs(f + conjugate - z @ y) <= 1e-12 * size + rounding


@settings(max_examples=150, derandomize=True)
@given(lam=lams, rho=st.floats(0, 0.99), seed=seeds)
def test_fenchel_of_elastic_net_and_l1(lam: float, rho: float, seed: int) -> None:
    x, _ = entries(seed, 8, scale=lam)
    penalty = ElasticNet(lam, rho)
    z = penalty.prox_(x.copy())
    over = np.maximum(np.abs(x - z) - lam * rho, 0)
    fenchel(penalty.value(z), (over**2).sum() / (2 * lam * (1 - rho)), z, x - z)
    z = prox.L1(lam).prox_(x.copy())
    assert np.abs(x - z).max() <= lam * (1 + 1e-12) + 1e-15 * np.abs(x).max()
    fenchel(prox.L1(lam).value(z), 0.0, z, x - z)


@settings(max_examples=150, derandomize=True)
@given(lam=lams, group_lam=lams, seed=seeds)
def test_fenchel_of_group_lasso_and_sparse_group_lasso(
    lam: float, group_lam: float, seed: int
) -> None:
    x, _ = entries(seed, 12, scale=lam + group_lam)
    x, rounding = x.reshape(4, 3), 1e-15 * np.abs(x).max()
    lasso = prox.L1(group_lam, groups="neuron")
    z = lasso.prox_(x.copy())
    assert np.linalg.norm(x - z, axis=1).max() <= group_lam * (1 + 1e-12) + rounding
    fenchel(lasso.value(z), 0.0, z.ravel(), (x - z).ravel())

    both = SparseGroupLasso(lam, group_lam, groups="neuron")
    z = both.prox_(x.copy())
    left = np.maximum(np.abs(x - z) - lam, 0)
    assert np.linalg.norm(left, axis=1).max() <= group_lam * (1 + 1e-12) + rounding
    fenchel(both.value(z), 0.0, z.ravel(), (x - z).ravel())


@settings(max_examples=300, derandomize=True)
@given(lam=powers(-3, 2), k=st.integers(1, 12), seed=seeds, weighted=st.booleans())
def test_fenchel_of_wgsef(lam: float, k: int, seed: int, weighted: bool) -> None:
    x, rng = entries(seed, 20)
    x = x.reshape(10, 2) * (rng.random((10, 1)) < 0.9)
    d = rng.uniform(0.3, 3, 10) if weighted else None
    penalty = WGSEF(lam, k, groups="neuron", d=d)
    z = penalty.prox_(x.copy())
    y = x - z
    squares = (y**2).sum(-1) / (1.0 if d is None else d)
    conjugate = np.sort(squares)[::-1][:k].sum() / (2 * lam)
    fenchel(penalty.value(z), conjugate, z.ravel(), y.ravel())
    kept = (np.abs(z).max(axis=1) > 0).sum()
    assert kept >= min(k, (np.abs(x).max(axis=1) > 0).sum())


@settings(max_examples=150, derandomize=True)
@given(radius=powers(-1, 1), seed=seeds)
def test_fenchel_of_projections(radius: float, seed: int) -> None:
    x, _ = entries(seed, 9)
    z = L1Ball(radius).prox_(x.copy())
    assert np.abs(z).sum() <= radius * (1 + 1e-12)
    fenchel(0.0, radius * np.abs(x - z).max(), z, x - z)
    for groups in ("layer", "neuron"):
        z = L2Ball(radius, groups=groups).prox_(x.reshape(3, 3).copy())
        assert L2Ball(radius, groups=groups).value(z) == 0.0
        y = (x.reshape(3, 3) - z).reshape(
            -1 if groups == "neuron" else 1, 3 if groups == "neuron" else 9
        )
        fenchel(0.0, radius * np.linalg.norm(y, axis=1).sum(), z.ravel(), y.ravel())
    z = Box(-radius, 0.5).prox_(x.copy())
    y = x - z
    assert ((z >= -radius) & (z <= 0.5)).all()
    fenchel(0.0, np.maximum(-radius * y, 0.5 * y).sum(), z, y)
    z = Simplex(radius).prox_(x.copy())
    assert z.min() >= 0
    assert z.sum() == pytest.approx(radius, rel=1e-12)
    fenchel(0.0, radius * (x - z).max(), z, x - z)
    z = L1Ball(radius, groups="neuron").prox_(x.reshape(3, 3).copy())
    y = x.reshape(3, 3) - z
    fenchel(0.0, radius * np.linalg.norm(y, axis=1).max(), z.ravel(), y.ravel())


@settings(max_examples=400, derandomize=True)
@given(p=st.floats(0.05, 0.95), lam=powers(-12, 2), seed=seeds)
def test_lp_in_float32_is_near_float64(p: float, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    penalty = Lp(lam, p)
    threshold = penalty.gap() * (2 - p) / (2 - 2 * p)
    x = (threshold * 10.0 ** rng.uniform(-0.5, 4, 16) * rng.choice([-1, 1], 16)).astype(np.float32)
    x[:4] = (threshold * (1 + 10.0 ** rng.uniform(-6, -1, 4))).astype(np.float32)
    single = penalty.prox_(x.copy()).astype(np.float64)
    double = penalty.prox_(x.astype(np.float64))
    # At the threshold itself, rounding decides between two points that are equally good.
    at_jump = np.abs(np.abs(x) / threshold - 1) < 1e-6
    assert ((single == 0) == (double == 0))[~at_jump].all()
    both = (single != 0) & (double != 0)
    assert (np.abs(single - double)[both] <= 3e-5 * np.abs(double)[both]).all()


@settings(max_examples=100, derandomize=True)
@given(lam=lams, step=steps, seed=seeds)
def test_limits_are_soft_thresholding(lam: float, step: float, seed: int) -> None:
    x, _ = entries(seed, 8, scale=1 + lam * step)
    soft = prox.L1(lam).prox_(x.copy(), step)
    tolerance = 1e-5 * (1 + np.abs(x).max() + lam * step)
    for penalty in (Lp(lam, 1 - 1e-9), MCP(lam, 1e9), SCAD(lam, 1e9)):
        assert np.abs(penalty.prox_(x.copy(), step) - soft).max() <= tolerance
    assert np.array_equal(Lp(lam, 1.0).prox_(x.copy(), step), soft)


@pytest.mark.parametrize("kind", CONCAVE)
@settings(max_examples=60, derandomize=True)
@given(data=st.data())
def test_the_gap_is_where_the_operator_jumps(kind: str, data: Any) -> None:
    parameters, step = data.draw(chosen(kind))
    penalty = prox.parse_penalty(kind, **parameters)
    assume(abs(step * penalty.weak_convexity() - 1) > 1e-3)  # else as steep as a jump
    low, high = 0.0, 1.0
    while penalty.prox_(np.array([high]), step)[0] == 0:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if penalty.prox_(np.array([middle]), step)[0] else (middle, high)
    jump = penalty.prox_(np.array([high]), step)[0]
    assert jump == pytest.approx(penalty.gap(step), rel=1e-5, abs=1e-6 * high)


@pytest.mark.parametrize("kind", PHI)
@settings(max_examples=60, derandomize=True)
@given(data=st.data(), seed=seeds)
def test_libraries_strides_and_metrics_agree(kind: str, data: Any, seed: int) -> None:
    parameters, step = data.draw(chosen(kind))
    grouped = data.draw(st.booleans())
    penalty = prox.parse_penalty(kind, **parameters, groups="neuron" if grouped else "element")
    x, rng = entries(seed, 24, scale=1 + parameters["lam"] * step)
    x = x.reshape(4, 6)
    z = penalty.prox_(x.copy(), step)
    assert np.array_equal(penalty.prox_(torch.from_numpy(x.copy()), step).numpy(), z)

    around = rng.normal(size=(6, 12))
    kept = around.copy()
    view = around.T[1:9:2]
    view[...] = x
    assert penalty.prox_(view, step) is view
    assert np.array_equal(view, z)
    view[...] = kept.T[1:9:2]
    assert np.array_equal(around, kept)

    constant = penalty.prox_(x.copy(), step, metric=np.full_like(x, 4.0))
    assert np.allclose(constant, penalty.prox_(x.copy(), step / 4), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", PHI)
@settings(max_examples=40, derandomize=True)
@given(data=st.data(), seed=seeds)
def test_a_proximal_point_is_stationary(kind: str, data: Any, seed: int) -> None:
    parameters, step = data.draw(chosen(kind))
    groups = data.draw(st.sampled_from(["element", "neuron", "input"]))
    penalty: Penalty = prox.parse_penalty(kind, **parameters, groups=groups)
    x, rng = entries(seed, 12, scale=1 + parameters["lam"] * step)
    x = x.reshape(3, 4)
    z = penalty.prox_(x.copy(), step)
    grad = (z - x) / step
    size = np.linalg.norm(grad) + parameters["lam"] / step + np.linalg.norm(x) / step
    assert penalty.subdiff_distance(z, grad) <= 1e-8 * size
    # Away from zero the penalty is smooth: there the distance is that of the gradients.
    push = rng.normal(size=(3, 4)) * (z != 0)
    assert penalty.subdiff_distance(z, grad + push) == pytest.approx(
        np.linalg.norm(push), abs=1e-7 * size
    )


def test_scaling_by_gains_writes_positive_zeros() -> None:
    x = torch.tensor([[-1.0, -2.0], [3.0, -4.0]])
    scale_groups_(x, torch.tensor([0.0, 1.0], dtype=torch.float64), Groups(1, 2, 2, None, None))
    assert not torch.signbit(x[0]).any()
