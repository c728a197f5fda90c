"""pyproximal and skglm: the same numbers where they are right; where not, a grid says who is."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import numpy as np
import pytest

from gossamer.prox import (
    L0,
    L1,
    MCP,
    SCAD,
    ElasticNet,
    L1Ball,
    LogSum,
    Lp,
    Penalty,
    Simplex,
    SparseGroupLasso,
)
from support.prox_oracle import Vector, grid_best, objective


def quiet_import(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their own imports
        return pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture(scope="module")
def x() -> Vector:
    rng = np.random.default_rng(0)
    return rng.normal(size=400) * 10.0 ** rng.uniform(-1, 1, 400)


def same(mine: Vector, theirs: Vector) -> None:
    assert np.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


# pyproximal


@pytest.mark.parametrize("tau", [0.3, 0.9])
def test_pyproximal_agrees(tau: float, x: Vector) -> None:
    them = quiet_import("pyproximal")
    rows = x.reshape(4, 100)
    same(L1(0.8).prox(x, tau), them.L1(0.8).prox(x, tau))
    same(SCAD(0.8, 3.7).prox(x, tau), them.SCAD(0.8, 3.7).prox(x, tau))
    same(
        L1(0.8, groups="input").prox(rows, tau), them.L21(4, sigma=0.8).prox(x, tau).reshape(4, -1)
    )
    # Theirs bisect for the multiplier, to a tolerance.
    ball, simplex = them.L1Ball(x.size, 5.0), them.Simplex(x.size, 5.0)
    assert np.allclose(L1Ball(5.0).prox(x), ball.prox(x, tau), atol=1e-4)
    assert np.allclose(Simplex(5.0).prox(x), simplex.prox(x, tau), atol=1e-4)
    # sqrt(2 mu) is the slope of this envelope at zero: MCP with gamma = 1.
    same(MCP(math.sqrt(1.6), 1.0).prox(x, tau), them.QuadraticEnvelopeCard(0.8).prox(x, tau))


def test_pyproximal_keeps_the_threshold_of_the_cardinality_envelope_beyond_tau_1(x: Vector) -> None:
    them = quiet_import("pyproximal")
    mine = MCP(math.sqrt(1.6), 1.0).prox(x, 2.0)
    theirs = them.QuadraticEnvelopeCard(0.8).prox(x, 2.0)
    wrong = the_grid_decides("mcp", {"lam": math.sqrt(1.6), "gamma": 1.0}, 2.0, x, mine, theirs)
    # Only between their threshold sqrt(2 mu) and the true one, sqrt(2 mu tau).
    assert ((np.abs(x) > math.sqrt(1.6)) & (np.abs(x) < math.sqrt(3.2)))[wrong].all()


def test_pyproximal_takes_the_weight_of_l0_for_its_threshold(x: Vector) -> None:
    them = quiet_import("pyproximal")
    theirs = them.L0(0.8).prox(x, 0.9)
    same(L0(0.5 * 0.72**2).prox(x), theirs)  # threshold 0.72 = 0.8 * 0.9, not sqrt(2 * 0.72)
    the_grid_decides("l0", {"lam": 0.8}, 0.9, x, L0(0.8).prox(x, 0.9), theirs)


# skglm


@pytest.mark.parametrize("step", [0.3, 0.9])
def test_skglm_agrees(step: float, x: Vector) -> None:
    them = quiet_import("skglm.penalties")
    theirs: dict[Penalty, Any] = {
        L1(0.8): them.L1(0.8),
        ElasticNet(0.8, rho=0.6): them.L1_plus_L2(0.8, 0.6),
        MCP(0.8, gamma=3.0): them.MCPenalty(0.8, 3.0),
        SCAD(0.8, gamma=3.7): them.SCAD(0.8, 3.7),
        Lp(lam=0.8, p=0.5): them.L0_5(0.8),
        Lp(lam=0.8, p=2 / 3): them.L2_3(0.8),
        LogSum(0.8, eps=0.5): them.LogSumPenalty(0.8, 0.5),
        L1(0.8, weights=np.linspace(0, 2, x.size)): them.WeightedL1(0.8, np.linspace(0, 2, x.size)),
    }
    grad = np.roll(x, 1)
    columns = np.arange(x.size)
    for mine, penalty in theirs.items():
        z = np.array([penalty.prox_1d(v, step, j) for j, v in enumerate(x)])
        same(mine.prox(x, step), z)
        assert mine.value(x) == pytest.approx(penalty.value(x), rel=1e-10)
        if hasattr(penalty, "subdiff_distance") and not isinstance(mine, Lp | LogSum):
            far = np.linalg.norm(penalty.subdiff_distance(z, grad, columns))
            assert mine.subdiff_distance(z, grad) == pytest.approx(far, rel=1e-9)


def test_skglm_agrees_on_groups(x: Vector) -> None:
    funcs = quiet_import("skglm.utils.prox_funcs")
    rows = x.reshape(100, 4)
    same(L1(0.8, groups="neuron").prox(rows), np.stack([funcs.BST(row, 0.8) for row in rows]))
    soft = np.stack([funcs.BST(funcs.ST_vec(row, 0.5), 0.8) for row in rows])
    same(SparseGroupLasso(0.5, 0.8, groups="neuron").prox(rows), soft)


def test_skglm_takes_mcp_for_convex_beyond_its_range(x: Vector) -> None:
    funcs = quiet_import("skglm.utils.prox_funcs")
    mine = MCP(1.0, gamma=1.5).prox(x, 3.0)
    theirs = np.array([funcs.prox_MCP(v, 3.0, 1.0, 1.5) for v in x])
    the_grid_decides("mcp", {"lam": 1.0, "gamma": 1.5}, 3.0, x, mine, theirs)


def test_skglm_divides_by_the_norm_of_a_zero_group() -> None:
    funcs = quiet_import("skglm.utils.prox_funcs")
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    mine = Lp(lam=1.0, p=0.5, groups="neuron").prox(rows)
    same(mine[0], funcs.prox_block_2_05(rows[0], 1.0))
    assert np.array_equal(mine[1], [0.0, 0.0])
    with contextlib.suppress(ZeroDivisionError):
        assert np.isnan(funcs.prox_block_2_05(rows[1], 1.0)).all()


def the_grid_decides(
    kind: str, parameters: dict[str, float], step: float, x: Vector, mine: Vector, theirs: Vector
) -> Any:
    """Where the two differ, mine is as good as the grid's best point and theirs is worse."""
    differ = np.abs(mine - theirs) > 1e-9
    assert differ.any()
    best = grid_best(kind, parameters, step, x)
    assert (objective(kind, parameters, step, x, mine) <= best + 1e-12).all()
    assert (objective(kind, parameters, step, x, theirs)[differ] > best[differ] + 1e-9).all()
    return differ
