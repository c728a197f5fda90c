"""Unbiased N:M samples: exact counts, exact probabilities, and one result for one key."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import backend
from gossamer.errors import DTypeError, GossamerError, PatternError, ShapeError
from gossamer.ops import mvue, mvue_product
from support.grids import covering

PATTERNS = [(1, 2), (2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (3, 7), (16, 32), (5, 64), (4, 4)]
EXAMPLE = (1.0, -2.0, 0.5, 4.0)


def dense(x, n, m, **key):
    values, structure = mvue(x, n, m, **key)
    backend.validate(structure, values.numel())
    return backend.scatter(values, structure).t()


def water_filling(a, n):
    """p_i = min(1, c |a_i|), sum p = n: the oracle, by bisection on c."""
    a = a.double().abs()
    if int((a > 0).sum()) <= n:
        return (a > 0).double()
    low, high = 0.0, n / float(a[a > 0].min())
    for _ in range(200):
        c = (low + high) / 2
        low, high = (low, c) if float((c * a).clamp(max=1).sum()) > n else (c, high)
    return (low * a).clamp(max=1)


def two_draws(a):
    share = a.double().abs() / a.double().abs().sum()
    p = torch.zeros_like(share)
    for i in range(len(share)):
        for j in range(len(share)):
            if i != j:
                p[i] += share[i] * share[j] * (1 / (1 - share[i]) + 1 / (1 - share[j]))
    return p


def variance(a, p):
    a = a.double()
    return float(torch.where(a == 0, 0.0, a.square() * (1 / p - 1)).sum())


def copies(a, count):
    """The group a down each of `count` columns: as many independent samples."""
    return torch.as_tensor(a)[:, None].expand(-1, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_exactly_n_of_each_group_stay(n, m, dtype):
    tokens, features = 5 * m + (m > 2), 37
    x = torch.randn(tokens, features).to(dtype)
    for method in ("exact", "approximate") if n <= 2 else ("exact",):
        values, structure = mvue(x, n, m, seed=1, method=method)
        layout = structure.layout
        up = math.ceil(tokens / m) * m
        assert (layout.rows, layout.cols, layout.vector) == (features, up, 1)
        assert (layout.n, layout.m) == (n, m)
        assert values.dtype == dtype
        assert values.numel() == features * up // m * n
        backend.validate(structure, values.numel())  # n of every group, ids rising
        sampled = backend.scatter(values, structure).t()
        assert not sampled[tokens:].any()
        sampled = sampled[:tokens]
        assert torch.equal(torch.sign(sampled), torch.where(sampled != 0, torch.sign(x), 0))
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert bool((sampled.abs() >= x.abs() * (1 - tolerance) * (sampled != 0)).all())


def test_whole_groups_are_the_input():
    x = torch.randn(8, 5)
    assert torch.equal(dense(x, 4, 4, seed=3), x)


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_example_of_the_paper_has_its_probabilities_and_variance(method):
    a = torch.tensor(EXAMPLE)
    count = 200_000
    sampled = dense(copies(a, count), 2, 4, seed=5, method=method).double()
    if method == "exact":
        p, least = water_filling(a, 2), 7.0
        assert torch.allclose(p, torch.tensor([2.0, 4.0, 1.0, 7.0]).double() / 7)
    else:
        p, least = two_draws(a), 8.28
        assert torch.allclose(p, torch.tensor([0.344, 0.632, 0.177, 0.847]).double(), atol=5e-4)
    assert variance(a, p) == pytest.approx(least, abs=5e-3)
    chosen = (sampled != 0).double().mean(1)
    assert bool(((chosen - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all())
    for i in range(4):  # a chosen entry is divided by the probability of its choice
        assert torch.allclose(sampled[i][sampled[i] != 0], (a[i] / p[i]).double(), rtol=1e-5)
    spread = (a.double().square() * (1 / p - 1) / count).sqrt()
    assert bool(((sampled.mean(1) - a).abs() <= 5 * spread + 1e-12).all())
    measured = float((sampled - a[:, None]).square().sum(0).mean())
    assert measured == pytest.approx(least, rel=0.02)


EXACT = [(*p, "exact") for p in [(1, 2), (2, 4), (1, 4), (2, 8), (4, 8), (3, 7), (16, 32)]]
APPROXIMATE = [(*p, "approximate") for p in [(1, 2), (2, 4), (1, 4), (2, 8)]]


@pytest.mark.parametrize(("n", "m", "method"), EXACT + APPROXIMATE)
def test_mean_is_the_input(n, m, method):
    a = torch.randn(m, dtype=torch.float64)
    a[m // 2] = 0.0
    count = 40_000
    sampled = dense(copies(a, count), n, m, seed=8, method=method)
    p = two_draws(a) if (n, method) == (2, "approximate") else water_filling(a, n)
    assert float(p.sum()) == pytest.approx(n)
    error = (sampled.mean(1) - a).abs()
    spread = torch.where(a == 0, 0.0, a.square() * (1 / p - 1) / count).clamp(min=0).sqrt()
    assert bool((error <= 5 * spread + 1e-7 * a.abs()).all())
    # Sure entries are there in every sample, untouched but for the last digits of p.
    assert bool((sampled[p >= 1 - 1e-12] != 0).all())


def test_water_is_filled_in_several_rounds():
    """100 is sure at once, 10 only when 100 is out of the way, and one of the rest is left."""
    a = torch.tensor([1.0, 100.0, 1.0, -10.0, 1.0, 1.0])
    sampled = dense(copies(a, 20_000), 3, 6, seed=1)
    assert torch.equal(sampled[1], torch.full((20_000,), 100.0))
    assert torch.equal(sampled[3], torch.full((20_000,), -10.0))
    rest = sampled[[0, 2, 4, 5]]
    assert torch.allclose(rest[rest != 0], torch.tensor(4.0), rtol=1e-6)
    assert torch.allclose((rest != 0).float().mean(1), torch.tensor(0.25), atol=0.02)


@pytest.mark.slow
def test_exact_is_never_above_approximate_in_variance():
    groups = torch.randn(4, 500, dtype=torch.float64)
    exact = [variance(a, water_filling(a, 2)) for a in groups.t()]
    approximate = [variance(a, two_draws(a)) for a in groups.t()]
    assert all(e <= a + 1e-9 for e, a in zip(exact, approximate, strict=True))
    assert sum(approximate) / sum(exact) == pytest.approx(1.062, abs=0.02)


def test_key_decides():
    x = torch.randn(64, 48)
    base = dense(x, 2, 4, seed=1, step=2, layer=3)
    assert torch.equal(base, dense(x, 2, 4, seed=1, step=2, layer=3))
    keys = [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1), (2**64 - 1, 2, 3)]
    others = [dense(x, 2, 4, seed=s, step=t, layer=k) for s, t, k in keys]
    for i, other in enumerate([base, *others]):
        for later in others[i:]:
            assert not torch.equal(other, later)
    # Each group draws for itself: equal columns, and equal groups of a column, differ.
    same = dense(copies(torch.tensor(EXAMPLE * 2), 64), 2, 4, seed=1)
    assert len({tuple(column) for column in same[:4].t().tolist()}) > 2
    assert not torch.equal(same[:4], same[4:])


@pytest.mark.parametrize(
    ("case", "dtype"),
    covering(
        [(2, 4, "exact"), (2, 4, "approximate"), (1, 4, "exact"), (5, 64, "exact")],
        [torch.float32, torch.float64, torch.bfloat16],
    ),
)
def test_same_bits_for_any_threads_and_isa(case, dtype):
    n, m, method = case
    x = (torch.randn(517, 301) * torch.randn(517, 301).exp()).to(dtype)
    results = []
    for isa in backend.isas():
        backend.use_isa(isa)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(mvue(x, n, m, seed=4, method=method))
    for values, structure in results[1:]:
        assert torch.equal(values, results[0][0])
        assert torch.equal(structure.indices, results[0][1].indices)


def test_strides_do_not_matter():
    x = torch.randn(40, 70)
    wanted = dense(x, 2, 8, seed=4)
    wide = torch.zeros(80, 140)
    wide[::2, ::2] = x
    for view in (x.t().contiguous().t(), wide[::2, ::2]):
        assert torch.equal(dense(view, 2, 8, seed=4), wanted)
    assert torch.equal(dense(torch.ones(()).expand(8, 9), 8, 8, seed=0), torch.ones(8, 9))


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_few_nonzeros_stay_bit_for_bit_and_zeros_fill_the_lowest_rows(method):
    x = torch.zeros(8, 4)
    x[6, 1] = 0.1
    x[3, 2], x[5, 2] = 1e-30, -3e30
    x[0, 3], x[1, 3] = 1e-45, 3e38
    values, structure = mvue(x, 2, 8, seed=9, method=method)
    assert structure.indices.tolist() == [0, 1, 0, 6, 3, 5, 0, 1]
    assert torch.equal(backend.scatter(values, structure).t(), x)
    values, structure = mvue(x[:, :2], 1, 8, seed=9, method=method)
    assert (structure.indices.tolist(), values.tolist()) == ([0, 6], [0.0, x[6, 1].item()])


@pytest.mark.parametrize("method", ["exact", "approximate"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_infinity_and_nan_survive(odd, method):
    x = torch.randn(8, 600)
    x[3, ::2] = odd
    x[5, ::5] = odd
    x[6, ::7] = odd
    x[7, ::7] = odd
    sampled = dense(x, 2, 8, seed=2, method=method)
    assert torch.equal((~sampled.isfinite()).any(0), (~x.isfinite()).any(0))
    finite = x.isfinite().all(0)
    assert torch.equal(sampled[:, finite], dense(x, 2, 8, seed=2, method=method)[:, finite])


@pytest.mark.parametrize("method", ["exact", "approximate"])
def test_extreme_sizes(method):
    for size in (1e-44, 1e-30, 1.0, 1e30, 1e38):
        a = torch.tensor([1.0, 0.5, 0.25, 0.125]) * size
        sampled = dense(copies(a, 1000), 2, 4, seed=3, method=method)
        assert bool(sampled.isfinite().all())
        assert bool(((sampled != 0).sum(0) == 2).all())
    # An entry far below the rest is worth c^-1 when it comes, and hides nobody.
    a = torch.tensor([1.0, 1.0, 1.0, 1e-12])
    sampled = dense(copies(a, 30_000), 2, 4, seed=3, method=method)
    assert torch.allclose(sampled.mean(1)[:3], torch.ones(3), atol=0.03)


@settings(derandomize=True, max_examples=60)
@given(
    st.integers(1, 20).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))),
    st.integers(0, 50),
    st.integers(0, 70),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.0, 1.0, 1e-40, 1e30, math.inf, math.nan]),
)
def test_any_shape(pattern, tokens, features, seed, scale):
    n, m = pattern
    generator = torch.Generator().manual_seed(seed % 2**32)
    x = torch.randn(tokens, features, generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x * scale, x)
    sampled = dense(x, n, m, seed=seed)
    assert sampled.shape == (-(-tokens // m) * m, features)
    assert not sampled[tokens:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tokens", [256, 261, 3, 0])
def test_product_is_the_product_of_the_sample(tokens, dtype):
    grad_output, x = torch.randn(tokens, 24).to(dtype), torch.randn(tokens, 40).to(dtype)
    product = mvue_product(grad_output, x, 2, 4, seed=6, step=1, layer=2)
    sampled = dense(grad_output, 2, 4, seed=6, step=1, layer=2)[:tokens]
    assert product.shape == (24, 40)
    assert product.is_contiguous()
    assert product.dtype == dtype
    wanted = sampled.double().t() @ x.double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert torch.allclose(product.double(), wanted, rtol=tolerance, atol=tolerance * 30)


def test_product_is_unbiased():
    grad_output, x = torch.randn(12, 5).double(), torch.randn(12, 7).double()
    exact = grad_output.t() @ x
    samples = torch.stack(
        [mvue_product(grad_output, x, 1, 4, seed=0, step=step) for step in range(4000)]
    )
    spread = samples.std(0) / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - exact).abs() <= 5 * spread).all())


def test_bad_input_names_what_is_wrong():
    x = torch.randn(8, 4)
    for call, error in [
        (lambda: mvue(x, 3, 2, seed=0), PatternError),
        (lambda: mvue(x, 2, 65, seed=0), PatternError),
        (lambda: mvue(x, 2, 4, seed=-1), PatternError),
        (lambda: mvue(x, 2, 4, seed=2**64), PatternError),
        (lambda: mvue(x, 2, 4, seed=0, step=-1), PatternError),
        (lambda: mvue(x, 2, 4, seed=1.5), DTypeError),
        (lambda: mvue(x, 3, 4, seed=0, method="approximate"), PatternError),
        (lambda: mvue(x, 2, 4, seed=0, method="best"), PatternError),
        (lambda: mvue(x.half(), 2, 4, seed=0), DTypeError),
        (lambda: mvue(x.numpy(), 2, 4, seed=0), DTypeError),
        (lambda: mvue(x[0], 2, 4, seed=0), ShapeError),
        (lambda: mvue(x.to("meta"), 2, 4, seed=0), GossamerError),
        (lambda: mvue_product(x, x[:4], 2, 4, seed=0), ShapeError),
        (lambda: mvue_product(x, x.double(), 2, 4, seed=0), DTypeError),
    ]:
        with pytest.raises(error):
            call()
