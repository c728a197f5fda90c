"""Parameters at the ends of the floating range: the limit that a penalty tends to, never NaN."""

import math

import pytest
import torch

from gossamer.prox import L1, MCP, SCAD, CappedL1, LogSum, TransformedL1

X = [-3.0, -0.5, 0.0, 0.2, 1.5, 4.0, 1e3]
SHAPES = {MCP: "gamma", SCAD: "gamma", CappedL1: "t", TransformedL1: "a", LogSum: "eps"}
ENDS = [5e-324, 1e-308, 1e-300, 1e-40, 1e-10, 1e10, 1e40, 1e155, 1e300, 1e308, 1.7e308]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", SHAPES)
def test_everything_is_a_number(kind: type, end: float, dtype: torch.dtype) -> None:
    if kind is SCAD and end < 2:
        pytest.skip("out of range")
    x = torch.tensor(X, dtype=dtype)
    for lam in (1e-3, 0.5, 100.0):
        penalty = kind(lam, **{SHAPES[kind]: end})
        moved = penalty.prox_(x.clone())
        assert moved.isfinite().all()
        assert (moved.abs() <= x.abs()).all()
        assert math.isfinite(penalty.value(x))
        assert not math.isnan(penalty.weak_convexity())
        assert 0.0 <= penalty.gap() < math.inf


@pytest.mark.parametrize("end", [1e40, 1e155, 1e308, 1.7e308])
@pytest.mark.parametrize("kind", [MCP, SCAD, TransformedL1])
def test_the_limit_is_l1(kind: type, end: float) -> None:
    x = torch.tensor(X, dtype=torch.float64)
    for lam in (0.5, 100.0):
        penalty, limit = kind(lam, **{SHAPES[kind]: end}), L1(lam)
        torch.testing.assert_close(penalty.prox_(x.clone()), limit.prox_(x.clone()))
        assert penalty.value(x) == pytest.approx(limit.value(x))
