"""Top-k, projections, l1 - alpha l2 against sorted oracles; what group operators refuse."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.errors import ArgumentError, DTypeError, GossamerError, ShapeError, StructureError
from gossamer.prox import operators as ops
from gossamer.prox.groupings import Groups, partition
from support import prox_oracle_groups as oracle

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def vectors(dtype: type) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = [np.array([2.0]), np.zeros(5), -np.ones(9), 2.0 ** -np.arange(60.0)]
    for case in range(120):
        n = int(rng.integers(1, 60)) if case % 20 else int(rng.integers(9000, 60000))
        found.append(np.round(rng.standard_normal(n) * 3, int(rng.integers(0, 5))))
    found.append(10.0 ** rng.uniform(-30, 30, 20000))  # no step of Newton's settles many of these
    found.append(np.sort(rng.standard_normal(30000)))
    return [x.astype(dtype) for x in found]


@DTYPES
def test_top_k_is_that_of_a_stable_sort(dtype: type) -> None:
    rng = np.random.default_rng(1)
    for x in vectors(dtype):
        for k in {0, 1, len(x) // 2, int(rng.integers(0, len(x) + 1)), len(x), len(x) + 5}:
            y = ops.top_k_(x.copy(), k)
            np.testing.assert_array_equal(y, oracle.top_k(x, k))
            assert np.count_nonzero(y) == min(k, np.count_nonzero(x))
            assert not np.signbit(y[y == 0]).any()


@DTYPES
def test_ties_go_to_the_first(dtype: type) -> None:
    x = np.full(100_000, -1.0, dtype)
    x[50_000] = 2
    y = ops.top_k_(x, 40_001)
    assert np.count_nonzero(y) == 40_001
    assert (y[:40_000] == -1).all()
    assert y[50_000] == 2
    assert ops.top_k_(np.array([1, np.inf, -3], dtype), 1).tolist() == [0, np.inf, 0]


@DTYPES
def test_projections_are_those_of_a_sort(dtype: type) -> None:
    rng = np.random.default_rng(2)
    for x in vectors(dtype):
        wide = x.astype(np.float64)
        size = float(np.abs(wide).max()) or 1.0
        rtol = 1e-12 if dtype == np.float64 else 2e-7
        for radius in (10 ** rng.uniform(-2, 3), 1e-3 * size, 0.3 * np.abs(wide).sum(), 0.0):
            ball = ops.l1_ball_(x.copy(), radius)
            np.testing.assert_allclose(ball, oracle.l1_ball(wide, radius), rtol, rtol * size)
            if radius > 0:
                face = ops.simplex_(x.copy(), radius)
                expected = oracle.simplex(wide, radius)
                np.testing.assert_allclose(face, expected, rtol, rtol * (size + radius))
            assert not np.signbit(ball[ball == 0]).any()
    assert not ops.simplex_(np.array([3.0, -1.0]), 0.0).any()


@DTYPES
def test_a_radius_that_drowns_in_the_numbers_is_met(dtype: type) -> None:
    x = np.array([1e25, -3.0, 1e25], dtype)
    assert ops.simplex_(x.copy(), 1.0).tolist() == [0.5, 0, 0.5]
    assert ops.l1_ball_(-x, 1.0).tolist() == [-0.5, 0, -0.5]


@DTYPES
def test_l1_minus_l2_by_its_formula(dtype: type) -> None:
    rng = np.random.default_rng(3)
    for x in vectors(dtype):
        size = float(np.abs(x).max())
        for part in (0.0, 0.2, 0.9, 1.0, 1.3):
            alpha = float(rng.choice([0.0, rng.random(), 1.0]))
            found = ops.l1_minus_l2_(x.copy(), part * size, alpha)
            expected = oracle.l1_minus_l2(x.astype(np.float64), part * size, alpha)
            rtol = 1e-12 if dtype == np.float64 else 2e-7
            np.testing.assert_allclose(found, expected, rtol, rtol * size)


def test_the_one_that_survives_l1_minus_l2_is_the_first() -> None:
    x = ops.l1_minus_l2_(np.full(100_000, -1.0), 1.0, 0.25)
    assert x[0] == -0.25
    assert np.count_nonzero(x) == 1


def test_l1_minus_l2_is_not_beaten() -> None:
    rng = np.random.default_rng(4)
    grid = np.linspace(-3, 3, 241)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)

    for _ in range(40):
        v, lam, alpha = rng.uniform(-2.5, 2.5, 2), rng.uniform(0, 2), rng.random()

        def objective(z: np.ndarray) -> np.ndarray:
            penalty = np.abs(z).sum(-1) - alpha * np.linalg.norm(z, axis=-1)  # noqa: B023
            return 0.5 * ((z - v) ** 2).sum(-1) + lam * penalty  # noqa: B023

        found = ops.l1_minus_l2_(v.copy(), lam, alpha)
        assert objective(found) <= objective(points).min() + 1e-12


@DTYPES
def test_any_strides_torch_or_numpy(dtype: type) -> None:
    x = np.random.default_rng(5).standard_normal((6, 8)).astype(dtype)
    expected = ops.top_k_(x.copy(), 10)
    assert np.count_nonzero(expected) == 10
    assert np.array_equal(ops.top_k_(np.asfortranarray(x), 10), expected)
    big = np.zeros((12, 16), dtype)
    big[::2, ::2] = x
    ops.top_k_(big[::2, ::2], 10)
    assert np.array_equal(big[::2, ::2], expected)
    assert np.count_nonzero(big) == 10
    turned = torch.from_numpy(x.T.copy()).T
    assert ops.top_k_(turned, 10) is turned
    assert np.array_equal(turned.numpy(), expected)
    weight = torch.nn.Parameter(torch.from_numpy(x.copy()))
    assert np.array_equal(ops.top_k_(weight, 10).detach().numpy(), expected)


ONES, PAIR = np.ones(4), Groups(1, 2, 2)

# Every operator on a tensor, to be given a bad one.
ON_ENTRIES: dict[str, Callable[[Any], Any]] = {
    "group_norms": lambda x: ops.group_norms(x, PAIR),
    "scale_groups_": lambda x: ops.scale_groups_(x, np.ones(2), PAIR),
    "metric_group_l2_": lambda x: ops.metric_group_l2_(x, x, PAIR, 1.0),
    "top_k_": lambda x: ops.top_k_(x, 2),
    "l1_ball_": lambda x: ops.l1_ball_(x, 1.0),
    "simplex_": lambda x: ops.simplex_(x, 1.0),
    "l1_minus_l2_": lambda x: ops.l1_minus_l2_(x, 1.0, 0.5),
}


@pytest.mark.parametrize("name", ON_ENTRIES)
def test_bad_tensors(name: str) -> None:
    call = ON_ENTRIES[name]
    for bad in (np.ones(4, np.int64), torch.ones(4, dtype=torch.bfloat16), np.ones(4, complex)):
        with pytest.raises(DTypeError):
            call(bad)
    with pytest.raises(DTypeError):
        call([1.0, 2.0, 3.0, 4.0])
    for empty in (np.ones(0), torch.ones(0, 3)):
        with pytest.raises(ShapeError, match="empty"):
            call(empty)
    if name.endswith("_"):
        frozen = np.ones(4)
        frozen.setflags(write=False)
        with pytest.raises(ArgumentError, match="read-only"):
            call(frozen)
        with pytest.raises(ShapeError):
            call(torch.ones(1).expand(4))


@pytest.mark.parametrize("name", ["top_k_", "l1_ball_", "simplex_", "l1_minus_l2_"])
def test_selection_refuses_nan_and_leaves_the_tensor_alone(name: str) -> None:
    x = np.ones(40_000)
    x[30_000] = np.nan
    before = x.copy()
    with pytest.raises(ArgumentError, match="NaN"):
        ON_ENTRIES[name](x[:])
    with pytest.raises(ArgumentError, match="NaN"):
        ON_ENTRIES[name](x)
    np.testing.assert_array_equal(x, before)


BAD_CALLS: dict[str, tuple[type[GossamerError], Callable[[], Any]]] = {
    "NaN norm": (ArgumentError, lambda: ops.wgsef_gains(np.array([1.0, np.nan]), 1, 1.0)),
    "infinite norm": (ArgumentError, lambda: ops.wgsef_gains(np.array([1.0, np.inf]), 1, 1.0)),
    "negative norm": (ArgumentError, lambda: ops.wgsef_value(np.array([1.0, -1.0]), 1)),
    "no groups": (ShapeError, lambda: ops.wgsef_gains(np.ones(0), 1, 1.0)),
    "matrix of norms": (ShapeError, lambda: ops.wgsef_gains(np.ones((2, 2)), 1, 1.0)),
    "negative k": (ArgumentError, lambda: ops.wgsef_gains(ONES, -1, 1.0)),
    "infinite k": (ArgumentError, lambda: ops.wgsef_gains(ONES, np.inf, 1.0)),
    "NaN k": (ArgumentError, lambda: ops.wgsef_value(ONES, np.nan)),
    "negative lam": (ArgumentError, lambda: ops.wgsef_gains(ONES, 1, -1e-9)),
    "NaN lam": (ArgumentError, lambda: ops.wgsef_gains(ONES, 1, np.nan)),
    "zero d": (ArgumentError, lambda: ops.wgsef_gains(ONES, 1, 1.0, d=np.zeros(4))),
    "NaN c": (ArgumentError, lambda: ops.wgsef_gains(ONES, 1, 1.0, c=ONES * np.nan)),
    "short h": (ShapeError, lambda: ops.wgsef_gains(ONES, 1, 1.0, h=np.ones(3))),
    "overflow": (ArgumentError, lambda: ops.wgsef_gains(ONES, 1, 1e200, d=ONES * 1e200)),
    "wrong groups": (ShapeError, lambda: ops.group_norms(np.ones(5), PAIR)),
    "huge groups": (ShapeError, lambda: ops.group_norms(ONES, Groups(2**40, 2**3, 2**40))),
    "negative groups": (ShapeError, lambda: ops.group_norms(ONES, Groups(-1, -4, 1))),
    "short gains": (ShapeError, lambda: ops.scale_groups_(ONES, np.ones(3), PAIR)),
    "metric shape": (ShapeError, lambda: ops.metric_group_l2_(ONES, np.ones((2, 2)), PAIR, 1.0)),
    "metric dtype": (
        DTypeError,
        lambda: ops.metric_group_l2_(ONES, np.ones(4, np.float32), PAIR, 1.0),
    ),
    "zero metric": (ArgumentError, lambda: ops.metric_group_l2_(ONES, np.zeros(4), PAIR, 1.0)),
    "NaN metric": (ArgumentError, lambda: ops.metric_group_l2_(ONES, ONES * np.nan, PAIR, 1.0)),
    "metric lam": (ArgumentError, lambda: ops.metric_group_l2_(ONES, ONES, PAIR, -1.0)),
    "negative count": (ArgumentError, lambda: ops.top_k_(ONES, -1)),
    "half a count": (DTypeError, lambda: ops.top_k_(ONES, 1.5)),  # type: ignore[type-var]
    "negative radius": (ArgumentError, lambda: ops.l1_ball_(ONES, -1.0)),
    "NaN radius": (ArgumentError, lambda: ops.simplex_(ONES, np.nan)),
    "alpha": (ArgumentError, lambda: ops.l1_minus_l2_(ONES, 1.0, 1.5)),
    "l1 - l2 lam": (ArgumentError, lambda: ops.l1_minus_l2_(ONES, -1.0, 0.5)),
    "overlap": (StructureError, lambda: partition([[0, 1], [1, 2]], 3)),
    "incomplete": (StructureError, lambda: partition([[0], [2]], 3)),
    "outside": (StructureError, lambda: partition([[0, 3], [1, 2, 9]], 4)),
    "negative label": (StructureError, lambda: partition([0, -1, 1], 3)),
    "giant label": (StructureError, lambda: partition([0, 2**60, 1], 3)),
    "few labels": (ShapeError, lambda: partition([0, 1], 3)),
    "float labels": (DTypeError, lambda: partition(np.ones(3), 3)),
    "nothing": (ArgumentError, lambda: partition([], 0)),
    "no lists": (GossamerError, lambda: partition([], 3)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_raise(name: str) -> None:
    error, call = BAD_CALLS[name]
    with pytest.raises(error):
        call()
    assert (ONES == 1).all()


def test_a_partition_made_by_hand_cannot_leave_the_tensor() -> None:
    x = torch.ones(4)
    good = partition([0, 0, 1, 1], 4)
    gains = torch.ones(2)
    for indptr, indices in (
        ([0, 2, 4], [0, 1, 2, 4]),
        ([0, 2, 4], [0, 1, 2, -1]),
        ([0, 5, 4], [0, 1, 2, 3]),
        ([0, 2, 9], [0, 1, 2, 3]),
        ([-1, 2, 4], [0, 1, 2, 3]),
        ([0, 4], [0, 1, 2, 3]),
    ):
        bad = good._replace(indptr=torch.tensor(indptr), indices=torch.tensor(indices))
        with pytest.raises(StructureError):
            ops.scale_groups_(x, gains, bad)
        with pytest.raises(StructureError):
            ops.metric_group_l2_(x, x.clone(), bad, 1.0)
    with pytest.raises(ShapeError, match="partition"):
        ops.group_norms(torch.ones(5), good)
    with pytest.raises(DTypeError):
        ops.group_norms(x, good._replace(indptr=None, indices=None)._replace(indptr=gains))
