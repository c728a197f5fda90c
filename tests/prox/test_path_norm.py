"""The lp path norm: its joint prox against a fine grid, and the reweighted split."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ArgumentError, DTypeError, ShapeError
from gossamer.prox.path_norm import (
    balance_,
    joint_prox_,
    path_norm,
    path_thresholds,
    reweighted_split_,
)

NAN, INF = float("nan"), float("inf")
Array = np.ndarray


def objective(x: float, y: Array, v: float, w: Array, c: Array) -> float:
    taken = np.where(y == 0, 0.0, np.where(y == 0, 0.0, c) * abs(y)).sum() if x else 0.0
    return float(0.5 * (x - v) ** 2 + 0.5 * ((y - w) ** 2).sum() + abs(x) * taken)


def grid_minimum(v: float, w: Array, c: Array, points: int = 20_001) -> float:
    """The best objective over a grid of x in [0, |v|], with the best y for each."""
    a, b = abs(v), abs(w)
    x = np.linspace(0, a, points)[1:, None]
    finite = np.where(np.isinf(c), 0.0, c)
    y = np.where(np.isinf(c), 0.0, np.maximum(b - finite * x, 0))
    values = 0.5 * (x[:, 0] - a) ** 2 + 0.5 * ((y - b) ** 2).sum(1) + (x * finite * y).sum(1)
    return float(min(values.min(), 0.5 * a * a)) if a else 0.0


def neuron(rng: np.random.Generator, case: int) -> tuple[Array, Array, Array]:
    """One neuron; the cases are of all sizes, with zeros, infinite and reweighted thresholds."""
    inputs = int(rng.integers(1, 9 if case % 4 else 60))
    v = rng.normal(size=1) * 10 ** rng.uniform(-1, 1.5)
    w = rng.normal(size=(1, inputs)) * 10 ** rng.uniform(-1, 1)
    c = abs(rng.normal(size=(1, inputs))) * 10 ** rng.uniform(-2, 1)
    if case % 3 == 0:
        c *= abs(w) ** -0.6
    if case % 5 == 0:
        c[0, 0] = INF
    if case % 7 == 0:
        c[0, -1] = 0.0
    if case % 11 == 0:
        w[0, 0] = 0.0
    return v, w, c


@pytest.mark.slow
def test_not_beaten_by_a_grid() -> None:
    rng, zeros, steep = np.random.default_rng(0), 0, 0
    for case in range(400):
        v, w, c = neuron(rng, case)
        x, y = v.copy(), w.copy()
        joint_prox_(x, y, c)
        found = objective(x[0], y[0], v[0], w[0], c[0])
        best = grid_minimum(v[0], w[0], c[0])
        assert found <= best * (1 + 1e-12), case
        # And it is a stationary point: the grid comes as close as its spacing allows.
        assert found >= best - (abs(v[0]) / 20_000) ** 2 * (1 + (c[np.isfinite(c)] ** 2).sum())
        zeros += x[0] == 0
        active = (abs(w) > 0) & np.isfinite(c)
        steep += x[0] != 0 and (c[active] ** 2).sum() >= 1
    assert 50 < zeros < 350
    assert steep > 30  # the sum over all inputs is beyond 1, that over the active ones is not


def by_pieces(v: float, w: Array, c: Array) -> float:
    """The objective's minimum from every stationary point of every piece, maxima included."""
    a, b = abs(v), abs(w)
    ends = np.unique(np.concatenate([[0.0], b / c, [INF]]))
    best = 0.5 * a * a
    for low, high in pairwise(ends):
        active = b / c > low
        slope = 1 - (c[active] ** 2).sum()
        if slope == 0:
            continue
        x = (a - (c * b)[active].sum()) / slope
        if low <= x <= high and x > 0:
            best = min(best, objective(x, np.maximum(b - c * x, 0), a, b, c))
    return best


@settings(derandomize=True, max_examples=1500)
@given(
    st.floats(0.01, 30),
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 4)), min_size=1, max_size=8),
)
@pytest.mark.slow
def test_the_minimum_over_all_stationary_points(v: float, pairs: list[tuple[float, float]]) -> None:
    w, c = np.array(pairs).T
    x, y = np.array([v]), w[None].copy()
    joint_prox_(x, y, np.ascontiguousarray(c)[None])
    assert objective(x[0], y[0], v, w, c) == pytest.approx(by_pieces(v, w, c), rel=1e-12, abs=1e-14)
    if x[0] > 0:
        assert (c[y[0] > 0] ** 2).sum() < 1
        assert y[0] == pytest.approx(np.maximum(w - c * x[0], 0), abs=1e-12)
    else:
        assert (y[0] == w).all()


def test_a_stationary_point_on_a_concave_piece_is_a_maximum_and_not_taken() -> None:
    # One input: h(x) = x - 1 + 2 (1 - 2 x)_+ has its roots at 1/3, where the slope is -3, and 1.
    x, y = np.array([1.0]), np.array([[1.0]])
    joint_prox_(x, y, np.array([[2.0]]))
    assert (x[0], y[0, 0]) == (0.0, 1.0)  # 1/2 at (1, 0) and at (0, 1): the tie goes to x = 0
    x, y = np.array([1.0]), np.array([[-0.9]])
    joint_prox_(x, y, np.array([[2.0]]))
    assert (x[0], y[0, 0]) == (1.0, 0.0)
    assert objective(1 / 3, np.array([1 / 3]), 1.0, np.array([1.0]), np.array([2.0])) > 0.5


def staircase(steps: int) -> tuple[float, Array, Array]:
    """Breakpoints that lie, each, between two Newton steps: one input a pass becomes active."""
    a, b, c, x, products, squares, rise = 1.0, [], [], 1.0, 0.0, 0.0, 0.02
    for _ in range(steps):
        c.append(np.sqrt((1 - squares) / 2))
        b.append(c[-1] * (x + rise))
        products, squares = products + c[-1] * b[-1], squares + c[-1] ** 2
        before, x = x, (a - products) / (1 - squares)
        rise = 0.98 * (before - x)
    return a, np.array(b), np.array(c)


@pytest.mark.parametrize("steps", [3, 11, 12, 13, 22])
def test_a_staircase_takes_many_newton_steps(steps: int) -> None:
    # More passes than are made before what is left is sorted.
    a, b, c = staircase(steps)
    x, passes = a, 0
    while True:
        active = b > c * x
        if passes == active.sum():
            break
        assert active.sum() == passes + 1
        x, passes = (a - (c * b)[active].sum()) / (1 - (c[active] ** 2).sum()), passes + 1
    assert passes == steps
    v, w = np.array([a]), b[None, ::-1].copy()
    joint_prox_(v, w, c[None, ::-1].copy())
    assert v[0] == pytest.approx(x, rel=1e-9)
    assert (w > 0).all()
    extra = np.array([[*b, 1e-5]]), np.array([[*c, c[0]]])  # and one that stays at 0
    v, w = np.array([a]), extra[0].copy()
    joint_prox_(v, w, extra[1])
    assert v[0] == pytest.approx(x, rel=1e-9)
    assert w[0, -1] == 0


def test_signs_zeros_and_order() -> None:
    rng = np.random.default_rng(1)
    v, w, c = rng.normal(size=50), rng.normal(size=(50, 6)), abs(rng.normal(size=(50, 6))) * 0.4
    x, y = v.copy(), w.copy()
    joint_prox_(x, y, c)
    assert (x * v >= 0).all()
    assert (y * w >= 0).all()
    assert (abs(x) <= abs(v)).all()
    for values in (x, y):
        assert not np.signbit(values[values == 0]).any()
    mirrored, order = w[:, ::-1].copy() * -1, -v
    joint_prox_(order, mirrored, c[:, ::-1].copy())
    np.testing.assert_allclose(-order, x, rtol=1e-13)
    np.testing.assert_allclose(-mirrored[:, ::-1], y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_and_kinds_of_arrays_agree(dtype: torch.dtype) -> None:
    v, w = torch.randn(7, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    c = torch.rand(7, 5, dtype=dtype) * 0.5
    x, y = v.clone(), w.clone()
    joint_prox_(x, y, c)
    x2, y2 = v.repeat_interleave(2)[::2], w.t().contiguous().t()
    joint_prox_(x2, y2, c.t().contiguous().t())
    x3, y3 = v.numpy().copy(), w.numpy()[:, ::-1].copy()[:, ::-1]
    joint_prox_(x3, y3, c.numpy())
    for other_x, other_y in ((x2, y2), (torch.tensor(x3), torch.tensor(y3.copy()))):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
    parameter = torch.nn.Parameter(w.clone())
    joint_prox_(v.clone(), parameter, c)
    assert torch.equal(parameter, y)


def test_float32_is_float64_rounded() -> None:
    v, w, c = torch.randn(300), torch.randn(300, 20), torch.rand(300, 20) * 0.2
    x, y = v.double(), w.double()
    joint_prox_(x, y, c.double())
    joint_prox_(v, w, c)
    assert torch.equal(v, x.float())
    torch.testing.assert_close(w, y.float(), rtol=0, atol=0)


def test_bits_for_any_number_of_threads() -> None:
    start, results = (torch.randn(3000), torch.randn(3000, 40), torch.rand(3000, 40) * 0.2), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        v, w = start[0].clone(), start[1].clone()
        joint_prox_(v, w, start[2])
        results.append((v, w))
    assert all(torch.equal(v, results[0][0]) and torch.equal(w, results[0][1]) for v, w in results)


@pytest.mark.parametrize("place", ["v", "w", "c"])
def test_nan_makes_its_neuron_nan_and_no_other(place: str) -> None:
    arrays = {"v": torch.randn(3), "w": torch.randn(3, 4), "c": torch.rand(3, 4)}
    arrays[place][(1,) if place == "v" else (1, 2)] = NAN
    joint_prox_(arrays["v"], arrays["w"], arrays["c"])
    assert arrays["v"][1].isnan()
    assert arrays["w"][1].isnan().all()
    assert not arrays["v"][[0, 2]].isnan().any()
    assert not arrays["w"][[0, 2]].isnan().any()


def test_infinities() -> None:
    v, w = np.array([3.0, 0.0, INF, 1.0]), np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [INF, 1]])
    c = np.array([[INF, 0.1], [INF, 0.1], [0.1, 0.1], [0.0, 0.1]])
    joint_prox_(v, w, c)
    assert w[0, 0] == 0
    assert v[0] == pytest.approx((3 - 0.2) / (1 - 0.01))
    assert (v[1], *w[1]) == (0.0, 1.0, 2.0)
    assert (v[2], *w[2]) == (INF, 0.0, 0.0)
    assert w[3, 0] == INF
    assert v[3] == pytest.approx(0.9 / 0.99)


def test_empty() -> None:
    joint_prox_(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))
    v = torch.tensor([-1.5])
    joint_prox_(v, torch.zeros(1, 0), torch.zeros(1, 0))
    assert v[0] == -1.5


V, W = torch.ones(2), torch.ones(2, 3)
FIXED = np.ones(2, np.float32)
FIXED.flags.writeable = False


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: joint_prox_(V, W, -W), ArgumentError, r"thresholds\[0, 0\] is negative"),
        (lambda: joint_prox_(V, W, W[:, :2]), ShapeError, r"\[2, 2\] and w \[2, 3\]"),
        (lambda: joint_prox_(V[:1], W, W), ShapeError, r"v has shape \[1\]"),
        (lambda: joint_prox_(V[:, None], W, W), ShapeError, "one v for each row"),
        (lambda: joint_prox_(V, W[0], W), ShapeError, "2 are needed"),
        (lambda: joint_prox_(V.double(), W, W), DTypeError, "v has dtype float64"),
        (lambda: joint_prox_(V, W, W.double()), DTypeError, "thresholds has dtype"),
        (lambda: joint_prox_(V.int(), W.int(), W.int()), DTypeError, "float32 or float64"),
        (lambda: joint_prox_(V, torch.ones(3).expand(2, 3), W), ShapeError, "w is expanded"),
        (lambda: joint_prox_(torch.ones(1).expand(2), W, W), ShapeError, "v is expanded"),
        (lambda: joint_prox_(FIXED, W, W), ArgumentError, "read-only"),
        (lambda: joint_prox_([1.0, 2.0], W, W), DTypeError, "list"),
        (lambda: path_norm(V, W, 1.5), ArgumentError, r"p is 1.5; a number in \[0, 1\]"),
        (lambda: path_norm(V, V, 0.5), ShapeError, "neurons"),
        (lambda: path_thresholds(W, 0.0, 0.1), ArgumentError, r"p is 0.0; a number in \(0, 1\]"),
        (lambda: path_thresholds(W, NAN, 0.1), ArgumentError, "p is nan"),
        (lambda: path_thresholds(W, 0.5, -0.1), ArgumentError, "step is -0.1"),
        (lambda: path_thresholds(W, 0.5, 0.1, INF), ArgumentError, "eps is inf"),
        (lambda: reweighted_split_(V, W, W[:1]), ShapeError, "thresholds have shape"),
        (lambda: reweighted_split_(V, W, W, V), ShapeError, "put it inside w"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(call, error: type[Exception], words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        call()
    assert torch.equal(V, torch.ones(2))
    assert torch.equal(W, torch.ones(2, 3))


def test_the_split_shrinks_products_by_their_thresholds() -> None:
    v, w, c = torch.randn(20).double(), torch.randn(20, 4).double(), torch.rand(20, 4).double()
    before = v[:, None] * w
    x, y = v.clone(), w.clone()
    reweighted_split_(x, y, c)
    wanted = before.sign() * (before.abs() - c).clamp_min(0)
    torch.testing.assert_close(x[:, None] * y, wanted)
    torch.testing.assert_close(x.abs(), y.norm(dim=1))
    assert (x * v >= 0).all()
    assert (y * w >= 0).all()
    dead = (wanted == 0).all(1)
    assert dead.any()
    assert (x[dead] == 0).all()
    assert not torch.signbit(y[y == 0]).any()


def test_the_split_keeps_kinks_and_the_function() -> None:
    v, w, b = torch.randn(9).double(), torch.randn(9, 1).double(), torch.randn(9).double()
    x, y, bias = v.clone(), w.clone(), b.clone()
    reweighted_split_(x, y, torch.zeros(9, 1).double(), bias)
    torch.testing.assert_close(bias / y[:, 0], b / w[:, 0])
    at = torch.linspace(-3, 3, 31).double()[:, None]
    torch.testing.assert_close((at @ y.t() + bias).relu() @ x, (at @ w.t() + b).relu() @ v)
    reweighted_split_(x, y, torch.full((9, 1), 0.3).double(), bias)
    alive = x != 0
    assert 0 < alive.sum() < 9
    torch.testing.assert_close((bias / y[:, 0])[alive], (b / w[:, 0])[alive])
    assert (bias[~alive] == 0).all()


def test_the_split_propagates_nan_and_keeps_absorbed_zeros() -> None:
    v, w = torch.tensor([1.0, 1.0, NAN]), torch.tensor([[0.0, 2.0], [NAN, 1.0], [1.0, 1.0]])
    c = path_thresholds(torch.nan_to_num(v[:, None] * w), 0.5, 0.1)
    reweighted_split_(v, w, c)
    assert w[0, 0] == 0
    assert v[0] > 1
    assert v[1:].isnan().all()


def test_thresholds_majorise() -> None:
    products, p = torch.randn(50, 4).double(), 0.4
    other = torch.randn(50, 4).double()
    c = path_thresholds(products, p, 1.0)
    bound = (c * other.abs() + (1 - p) * products.abs() ** p).sum()
    assert float((other.abs() ** p).sum()) <= float(bound)
    touching = (c * products.abs() + (1 - p) * products.abs() ** p).sum()
    torch.testing.assert_close((products.abs() ** p).sum(), touching)
    assert torch.equal(path_thresholds(products, 1.0, 0.3), torch.full_like(products, 0.3))
    assert (path_thresholds(torch.zeros(1, 2), 0.5, 0.0) == 0).all()
    assert path_thresholds(torch.zeros(1, 1), 0.5, 2.0, eps=0.25) == 2.0


def test_path_norm_ignores_scale_and_counts_at_zero() -> None:
    v, w = torch.randn(6).double(), torch.randn(6, 3).double()
    w[0, 0] = v[5] = 0
    assert path_norm(v * 4, w / 4, 0.4) == pytest.approx(path_norm(v, w, 0.4), rel=1e-14)
    assert path_norm(v, w, 0) == 14
    assert np.isnan(path_norm(v * NAN, w, 0.4))


def test_balance_changes_no_product_and_no_kink() -> None:
    v, w, b = torch.randn(5).double(), torch.randn(5, 1).double(), torch.randn(5).double()
    v[3] = w[4] = 0
    x, y, bias = v.clone(), w.clone(), b.clone()
    balance_(x, y, bias)
    torch.testing.assert_close(x[:, None] * y, v[:, None] * w)
    torch.testing.assert_close((bias / y[:, 0])[:4], (b / w[:, 0])[:4])
    torch.testing.assert_close(x[:3].abs(), torch.hypot(y[:3, 0], bias[:3]))
    x, y = v.clone(), w.clone()
    balance_(x, y)
    torch.testing.assert_close(x[:3].abs(), y[:3].norm(dim=1))
    assert torch.equal(x[3:], v[3:])
    assert torch.equal(y[3:], w[3:])
