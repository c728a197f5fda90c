"""gossamer.ot.solve_sample: points are their cost matrix, lazy or not."""

import sys

import numpy as np
import pytest

import gossamer.ot as ot
from support import ot_oracle as oracle


def gap(x: object, y: object) -> float:
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())


@pytest.mark.parametrize("metric", ["sqeuclidean", "l1", "cityblock", "cosine"])
@pytest.mark.parametrize("lazy", [True, False, None])
def test_points_are_their_cost_matrix(metric: str, lazy: bool | None) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 6, 3)) + 10
    _, a, b = oracle.case(9, 6)
    if metric == "cosine":
        unit_x, unit_y = (p / np.linalg.norm(p, axis=-1, keepdims=True) for p in (x, y))
        cost = 1 - np.einsum("bik,bjk->bij", unit_x, unit_y)
    else:
        gaps = x[:, :, None] - y[:, None]
        cost = (gaps**2).sum(-1) if metric == "sqeuclidean" else np.abs(gaps).sum(-1)
    reg = float(np.ptp(cost)) / 20
    got = ot.solve_sample(x, y, a, b, reg=reg, metric=metric, lazy=lazy, tol=1e-11)
    wanted = ot.solve(cost, a, b, reg=reg, tol=1e-11)
    assert got.status == ["converged"] * 2
    assert gap(got.plan, wanted.plan) < 1e-9
    assert gap(got.value, wanted.value) < 1e-9
    assert gap(got.value_linear, wanted.value_linear) < 1e-9
    assert gap(got.marginals[0], np.stack([a, a])) < 1e-10
    single = ot.solve_sample(x[0], y[0], a, b, reg=reg, metric=metric, lazy=lazy, tol=1e-11)
    assert gap(single.plan, wanted.plan[0]) < 1e-9


@pytest.mark.parametrize("lazy", [True, False])
def test_clouds_far_from_the_origin_keep_their_digits(lazy: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 1024, (2, 8, 2)) / 1024  # exact when moved
    near = ot.solve_sample(x, y, reg=0.05, lazy=lazy)
    far = ot.solve_sample(x + 2.0**24, y + 2.0**24, reg=0.05, lazy=lazy)
    assert far.value == pytest.approx(near.value, abs=1e-12)
    assert gap(far.plan, near.plan) < 1e-12


def test_a_large_cost_stays_lazy_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above DENSE_ENTRIES nothing n x m is made: neither for the value nor for its gradient."""
    module = sys.modules["gossamer.ot.solve"]  # gossamer.ot.solve itself is the function
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(2, 30, 2))
    wanted = ot.solve_sample(x, y, reg=0.05, lazy=False)
    monkeypatch.setattr(module, "DENSE_ENTRIES", 30 * 30 - 1)
    lazy = ot.solve_sample(x, y, reg=0.05)
    assert lazy._problem.y is not None
    assert gap(lazy.plan, wanted.plan) < 1e-8
    monkeypatch.setattr(module, "DENSE_ENTRIES", 30 * 30)
    assert ot.solve_sample(x, y, reg=0.05)._problem.y is None
    assert ot.solve_sample(x, y, reg=0.05, metric="l1")._problem.y is not None  # two coordinates
