"""The sparse envelope and operators on groups: optimality, and oracles that sort."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import optimize

from gossamer.prox import operators as ops
from gossamer.prox.groupings import Groups, partition
from support import prox_oracle_groups as oracle

Vector = np.ndarray


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def prox(v: Vector, k: float, lam: float, **weights: Vector) -> Vector:
    """Of groups [m, size]."""
    gains, _ = ops.wgsef_gains(np.linalg.norm(v, axis=1), k, lam, **weights)
    return gains.numpy()[:, None] * v


def value(x: Vector, k: float, **weights: Vector) -> float:
    return ops.wgsef_value(np.linalg.norm(x, axis=1), k, **weights)[0]


def random_weights(rng: np.random.Generator, m: int, names: str) -> dict[str, Vector]:
    return {name: np.exp(rng.uniform(-1, 1, m)) for name in names if rng.random() < 0.5}


# ---- the sparse envelope -----------------------------------------------------------------------


def test_the_documented_value() -> None:
    a = np.array([0.0, 5.0, 10.0, 15.0, 20.0])
    gains, _ = ops.wgsef_gains(a, 1, 3.0)
    assert (gains.numpy() * a).tolist() == [0, 0, 0, 0, 5]


@pytest.mark.parametrize("seed", range(8))
def test_gains_and_value_are_those_of_a_sort(seed: int) -> None:
    rng = rng_of(1, seed)
    for case in range(150):
        m = int(rng.integers(1, 60)) if case % 30 else int(rng.integers(5000, 20000))
        a = np.round(rng.random(m) * 10, int(rng.integers(0, 4))) * (rng.random(m) < 0.8)
        weights = random_weights(rng, m, "dc")
        metric = random_weights(rng, m, "h")
        lam = 10 ** rng.uniform(-3, 2)
        k = float(rng.integers(0, m + 2)) if rng.random() < 0.5 else rng.random() * m
        gains, _ = ops.wgsef_gains(a, k, lam, **weights, **metric)
        expected = oracle.wgsef_gains(a, k, lam, **weights, **metric)
        np.testing.assert_allclose(gains.numpy(), expected, rtol=0, atol=1e-12)
        assert not np.signbit(gains.numpy()).any()
        if k > 0:
            found, shares = ops.wgsef_value(a, k, **weights)
            assert found == pytest.approx(oracle.wgsef_value(a, k, **weights), rel=1e-12)
            assert (weights.get("c", np.ones(m)) * shares.numpy()).sum() <= k * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_fenchel_equality(seed: int) -> None:
    rng = rng_of(2, seed)
    for _ in range(100):
        m, size = int(rng.integers(1, 30)), int(rng.integers(1, 5))
        v = rng.standard_normal((m, size)) * rng.choice([0.0, 1.0, 5.0], (m, 1))
        d = np.exp(rng.uniform(-1, 1, m)) if rng.random() < 0.5 else np.ones(m)
        k, lam = int(rng.integers(1, m + 1)), 10 ** rng.uniform(-3, 2)
        x = prox(v, k, lam, d=d)
        y = (v - x) / lam
        conjugate = 0.5 * np.sort((y**2).sum(1) / d)[::-1][:k].sum()
        assert value(x, k, d=d) + conjugate == pytest.approx((x * y).sum(), rel=1e-12, abs=1e-290)


def test_no_point_nearby_is_better() -> None:
    rng = rng_of(3)
    for _ in range(60):
        m = int(rng.integers(2, 8))
        v = rng.standard_normal((m, 2))
        weights = random_weights(rng, m, "dc")
        h = np.exp(rng.uniform(-1, 1, m)) if rng.random() < 0.5 else np.ones(m)
        k, lam = rng.uniform(0.3, m), 10 ** rng.uniform(-2, 1)

        def objective(x: Vector) -> float:
            fit = 0.5 * (h[:, None] * (x - v) ** 2).sum()  # noqa: B023
            return float(fit + lam * value(x, k, **weights))  # noqa: B023

        x = prox(v, k, lam, h=h, **weights)
        best = objective(x)
        for size in (1e-1, 1e-3, 1e-5):
            for _ in range(20):
                assert objective(x + size * rng.standard_normal(x.shape)) >= best * (1 - 1e-13)


def test_slsqp_finds_no_better_shares() -> None:
    rng = rng_of(4)
    for _ in range(15):
        m = int(rng.integers(2, 7))
        a, d, c = rng.random(m) + 0.05, np.exp(rng.uniform(-1, 1, m)), rng.random(m) + 0.2
        k = float(c.sum() * rng.uniform(0.2, 0.9))
        found, _ = ops.wgsef_value(a, k, d, c)
        start = np.full(m, k / c.sum())
        budget = {"type": "ineq", "fun": lambda u, c=c, k=k: k - c @ u}
        rival = optimize.minimize(
            lambda u, a=a, d=d: 0.5 * (d * a**2 / u).sum(),
            start,
            bounds=[(1e-9, 1)] * m,
            constraints=[budget],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert found <= rival.fun * (1 + 1e-12)
        assert found == pytest.approx(rival.fun, rel=1e-5)


def test_facts_about_the_value() -> None:
    a = rng_of(5).random(9) * (np.arange(9) != 4)
    assert ops.wgsef_value(a, 9)[0] == pytest.approx(0.5 * (a**2).sum(), rel=1e-14)
    assert ops.wgsef_value(a, 1)[0] == pytest.approx(0.5 * a.sum() ** 2, rel=1e-14)
    assert ops.wgsef_value(a, 0)[0] == math.inf
    assert ops.wgsef_value(np.zeros(3), 0)[0] == 0.0
    assert ops.wgsef_value(np.zeros(3), 2)[0] == 0.0
    values = [ops.wgsef_value(a, k)[0] for k in np.linspace(0.5, 9, 40)]
    assert all(one >= two for one, two in itertools.pairwise(values))


def test_exactly_k_groups_survive_where_the_gap_is_wide() -> None:
    rng = rng_of(6)
    survived = 0
    for _ in range(400):
        m = int(rng.integers(2, 40))
        k, lam = int(rng.integers(1, m)), 10 ** rng.uniform(-1, 2)
        a = np.exp(rng.standard_normal(m) * 2)
        top = np.sort(a)[::-1]
        wide, need = lam * top[k - 1], (1 + lam) * top[k]
        if abs(wide - need) < 1e-12 * need:
            continue
        gains = ops.wgsef_gains(a, k, lam)[0].numpy()
        assert (np.count_nonzero(gains) == k) == (wide >= need)
        assert np.count_nonzero(gains) >= k
        if wide >= need:
            survived += 1
            np.testing.assert_allclose(gains[a >= top[k - 1]], 1 / (1 + lam), rtol=1e-15)
    assert survived > 40
    # On the edge of the plateau, in numbers that binary fractions hold.
    a = np.array([4.0, 2.0, 1.0, 1.0])
    assert np.count_nonzero(ops.wgsef_gains(a, 2, 1.0)[0]) == 2


def test_ties_share_and_zeros_take_nothing() -> None:
    gains, _ = ops.wgsef_gains(np.ones(6), 2, 0.5)
    np.testing.assert_allclose(gains.numpy(), 0.4, rtol=1e-15)
    a = np.array([0.0, 3.0, 0.0, 4.0])
    np.testing.assert_array_equal(ops.wgsef_gains(a, 2, 1.0)[0].numpy(), [0, 0.5, 0, 0.5])
    assert not ops.wgsef_gains(np.zeros(4), 2, 1.0)[0].any()
    assert not ops.wgsef_gains(a, 0, 1.0)[0].any()
    assert (ops.wgsef_gains(a, 0, 0.0)[0] == 1).all()
    np.testing.assert_array_equal(ops.wgsef_gains(a, 100, 3.0)[0].numpy(), [0, 0.25, 0, 0.25])


def test_the_operator_is_firmly_non_expansive() -> None:
    rng = rng_of(7)
    for _ in range(200):
        m = int(rng.integers(1, 20))
        v, w = rng.standard_normal((2, m, 3))
        k, lam = rng.uniform(0.1, m), 10 ** rng.uniform(-2, 2)
        p, q = prox(v, k, lam), prox(w, k, lam)
        assert ((p - q) * (v - w)).sum() >= ((p - q) ** 2).sum() - 1e-12


def test_difference_of_convex_form_leaves_survivors_unshrunk() -> None:
    rng = rng_of(8)
    lam, k = 0.5, 4
    v = rng.standard_normal((12, 3)) * np.where(np.arange(12) < k, 10.0, 0.1)[:, None]
    x = prox(v / (1 - lam), k, lam / (1 - lam))
    np.testing.assert_allclose(x[:k], v[:k], rtol=1e-15)
    assert not x[k:].any()


ADVERSARIES = {
    "uniform": lambda m, r: r.random(m),
    "normal groups": lambda m, r: np.sqrt(r.chisquare(16, m)),
    "heavy tails": lambda m, r: 10.0 ** r.uniform(-300, 300, m),
    "heavier than floats": lambda m, r: np.maximum(10.0 ** r.uniform(-320, 308, m), 5e-324),
    "all equal": lambda m, r: np.full(m, 0.1),
    "two values": lambda m, r: np.where(r.random(m) < 0.5, 2.0, 1.0),
    "many ties": lambda m, r: np.round(r.random(m) * 12),
    "geometric": lambda m, r: 0.9995 ** np.arange(m) + 1e-300,
    "sorted": lambda m, r: np.sort(r.random(m)),
    "periodic": lambda m, r: np.tile([1.0, 100.0, 3.0, 0.01], m // 4 + 1)[:m],
    "blocks": lambda m, r: np.repeat([1.0, 1e-6, 1e6, 5.0], m // 4 + 1)[:m],
    "mostly zeros": lambda m, r: r.random(m) * (r.random(m) < 0.004),
    "one large": lambda m, r: np.where(np.arange(m) == m // 2, 1e6, r.random(m)),
}


@pytest.mark.parametrize("name", ADVERSARIES)
@pytest.mark.slow
def test_few_passes_over_a_million_groups(name: str) -> None:
    m = 1_000_000
    a = ADVERSARIES[name](m, rng_of(9))
    live = np.count_nonzero(a)
    top = np.count_nonzero(a == a.max())  # of two values: a plateau
    for k, lam in ((live / 4, 1e-3), (float(top), 3.0), (live * 0.9, 50.0)):
        gains, passes = ops.wgsef_gains(a, k, lam)
        assert passes <= 12
        u = np.where(gains == 1 / (1 + lam), 1.0, gains * lam / (1 - gains))
        if k < live and name != "heavier than floats":
            assert u.sum() == pytest.approx(k, rel=1e-9)
    if name != "heavier than floats":
        expected = oracle.wgsef_gains(a, live * 0.3, 0.2)
        found = ops.wgsef_gains(a, live * 0.3, 0.2)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("spread", [0.5, 30.0, 200.0])
def test_few_passes_with_weights_of_any_spread(spread: float) -> None:
    """A sample says nothing about costs that a handful of groups dominate."""
    m, rng = 300_000, rng_of(10)
    a, d = rng.random(m), np.exp(rng.uniform(-1, 1, m))
    c = np.exp(rng.uniform(-spread, spread, m))
    for part in (1e-6, 0.1, 0.9):
        gains, passes = ops.wgsef_gains(a, part * c.sum(), 0.3, d, c)
        assert passes <= 12
        expected = oracle.wgsef_gains(a, part * c.sum(), 0.3, d, c)
        np.testing.assert_allclose(gains.numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [0.2, 5.0])
def test_a_sample_that_misses_what_matters_is_found_out(size: float) -> None:
    rng = rng_of(14)
    a, c = rng.random(200_000) + 0.5, np.ones(200_000)
    rare = rng.choice(200_000, 15, replace=False)
    a[rare], c[rare] = size, 1e6 * (rng.random(15) + 0.5)
    a[rare] *= np.sqrt(c[rare])
    for k in (20_000.0, 5e6):
        gains, passes = ops.wgsef_gains(a, k, 0.3, c=c)
        expected = oracle.wgsef_gains(a, k, 0.3, c=c)
        np.testing.assert_allclose(gains.numpy(), expected, rtol=0, atol=1e-11)
        assert passes <= 12


def test_a_sample_that_sees_no_small_group_is_found_out() -> None:
    a = np.ones(200_000)
    a[rng_of(15).choice(200_000, 20, replace=False)] = 1e-3
    gains, _ = ops.wgsef_gains(a, 199_990, 0.5)
    np.testing.assert_allclose(gains.numpy(), oracle.wgsef_gains(a, 199_990, 0.5), atol=1e-12)
    assert 0.2 < gains.min() < gains.max()


# ---- norms, scaling ----------------------------------------------------------------------------

SHAPES = [
    ((4, 3, 5), (1, 4, 15), (1, 2)),
    ((4, 3, 5), (4, 3, 5), (0, 2)),
    ((4, 3, 5), (12, 5, 1), (0, 1)),
    ((4, 3, 5), (1, 1, 60), (0, 1, 2)),
    ((4, 3, 5), (1, 60, 1), ()),
    ((1, 2, 70_001), (1, 2, 70_001), (0, 2)),
    ((300, 7, 41), (300, 7, 41), (0, 2)),
    ((5000, 3, 7), (15_000, 7, 1), (0, 1)),
    ((2, 90_000, 1), (2, 90_000, 1), (0, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "view", "axes"), SHAPES)
def test_norms_and_scaling_of_regular_groups(
    shape: tuple[int, ...], view: tuple[int, int, int], axes: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, dtype=dtype)
    groups = Groups(*view)
    exact = (x.double().numpy() ** 2).sum(axis=axes, keepdims=True) ** 0.5
    norms = ops.group_norms(x, groups)
    np.testing.assert_allclose(norms.numpy(), exact.reshape(-1), rtol=1e-13)
    gains = torch.rand(groups.count, dtype=torch.float64) * (torch.arange(groups.count) % 3 > 0)
    expected = (x.double().numpy() * gains.numpy().reshape(exact.shape)).astype(x.numpy().dtype)
    assert ops.scale_groups_(x, gains, groups) is x
    np.testing.assert_array_equal(x.numpy(), expected)
    assert not torch.signbit(x[x == 0]).any()


def test_a_partition_agrees_with_the_regular_groups_it_equals() -> None:
    x = torch.randn(40, 30)
    labels = torch.arange(30).repeat(40)
    regular, own = Groups(40, 30, 1), partition(labels, 1200)
    lists = [list(range(j, 1200, 30)) for j in range(30)]
    for a, b in zip(own, partition(lists, 1200), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    torch.testing.assert_close(
        ops.group_norms(x, own), ops.group_norms(x, regular), rtol=1e-14, atol=0
    )
    gains = torch.rand(30, dtype=torch.float64)
    one, two = ops.scale_groups_(x.clone(), gains, own), ops.scale_groups_(x, gains, regular)
    assert torch.equal(one, two)
    with_empty = partition([[1, 0], [], [2]], 3)
    assert ops.group_norms(torch.tensor([3.0, 4.0, 2.0]), with_empty).tolist() == [5, 0, 2]


def test_norms_where_squares_overflow_or_vanish() -> None:
    x = np.array([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0], [np.nan, 1e300], [np.inf, 1.0]])
    norms = ops.group_norms(x, Groups(1, 5, 2)).numpy()
    np.testing.assert_allclose(norms[:3], [5e200, 5e-200, 0], rtol=1e-15)
    assert np.isnan(norms[3])
    assert norms[4] == np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaling_keeps_nan_and_has_one_zero(dtype: type) -> None:
    tiny = np.finfo(dtype).tiny
    x = np.array([-1.0, np.nan, -tiny, -0.0, np.inf], dtype)
    for groups, gains in (
        (Groups(1, 5, 1), [0.0, 0.0, 1e-30, 1.0, 0.0]),
        (partition([0, 1, 2, 3, 4], 5), [0.0, 0.0, 1e-30, 1.0, 0.0]),
    ):
        y = ops.scale_groups_(x.copy(), np.array(gains), groups)
        np.testing.assert_array_equal(np.isnan(y), [False, True, False, False, True])
        np.testing.assert_array_equal(y[[0, 2, 3]], 0)
        assert not np.signbit(y[[0, 2, 3]]).any()


# ---- the group operator in a metric ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metric_operator_against_bisection(dtype: type) -> None:
    rng = rng_of(11)
    tolerance = 1e-12 if dtype == np.float64 else 2e-7
    for _ in range(300):
        n = int(rng.integers(1, 40))
        scale = 10 ** rng.uniform(-5, 5)
        x = (scale * rng.standard_normal(n)).astype(dtype)
        h = np.exp(rng.uniform(-6, 6, n)).astype(dtype)
        lam = 10 ** rng.uniform(-4, 4) * scale
        found = ops.metric_group_l2_(x.copy(), h, Groups(1, 1, n), lam)
        expected = oracle.metric_group_l2(x.astype(np.float64), h.astype(np.float64), lam)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)
        assert not np.signbit(found[found == 0]).any()


def test_metric_operator_of_many_groups() -> None:
    rng = rng_of(12)
    x, h = rng.standard_normal((6, 50)), np.exp(rng.uniform(-2, 2, (6, 50)))
    lam = rng.uniform(0, 8, 50) * (np.arange(50) % 5 > 0)
    by_hand = np.stack(
        [oracle.metric_group_l2(x[:, j], h[:, j], lam[j]) for j in range(50)], axis=1
    )
    by_hand[:, lam == 0] = x[:, lam == 0]
    own = partition(np.tile(np.arange(50), 6), 300)
    for groups in (Groups(6, 50, 1), own):
        found = ops.metric_group_l2_(x.copy(), h, groups, lam)
        np.testing.assert_allclose(found, by_hand, rtol=1e-12, atol=1e-15)
    turned = ops.metric_group_l2_(np.asfortranarray(x), h, own, lam)
    np.testing.assert_allclose(turned, by_hand, rtol=1e-12, atol=1e-15)


def test_metric_operator_with_one_step_is_the_euclidean_one() -> None:
    x = torch.randn(20, 5, dtype=torch.float64)
    norms = x.norm(dim=1, keepdim=True)
    found = ops.metric_group_l2_(x.clone(), torch.full_like(x, 4.0), Groups(1, 20, 5), 6.0)
    torch.testing.assert_close(found, (1 - 1.5 / norms).clamp(min=0) * x, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("size", "step", "lam"), [(1e200, 1e-150, 1e60), (1e-200, 1e100, 1e-90)])
def test_metric_operator_far_from_one(size: float, step: float, lam: float) -> None:
    x = np.array([3.0, 4.0]) * size
    shrunk = max(0.0, 1 - lam * step / (5 * size))
    found = ops.metric_group_l2_(x.copy(), np.full(2, 1 / step), Groups(1, 1, 2), lam)
    np.testing.assert_allclose(found, shrunk * x, rtol=1e-14)


def test_metric_operator_passes_nan_on() -> None:
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    found = ops.metric_group_l2_(x, np.ones((2, 2)), Groups(1, 2, 2), 100.0)
    assert np.isnan(found[0]).all()
    assert not found[1].any()
