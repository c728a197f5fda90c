"""Transposable masks against enumeration, literal algorithms and a linear program."""

import functools
import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch

from gossamer import _core, backend
from gossamer.errors import ArgumentError, DTypeError, PatternError, ShapeError
from gossamer.masks import (
    check_mask,
    is_transposable,
    magnitude_mask,
    transposable_mask,
)
from gossamer.patterns import NM
from support.grids import covering

METHODS = ("greedy", "two_approximation", "entropy")
SIZES = [(1, 4), (2, 4), (3, 4), (1, 2), (2, 8), (4, 8), (3, 7), (8, 16), (4, 32), (40, 64)]


def tiles_of(x: torch.Tensor, m: int) -> torch.Tensor:
    rows, cols = x.shape
    return x.reshape(rows // m, m, cols // m, m).transpose(1, 2).reshape(-1, m, m)


def kept_sum(weight: torch.Tensor, mask: torch.Tensor) -> float:
    return float((weight.double().abs() * mask).sum())


def sums_of(mask: torch.Tensor, m: int) -> torch.Tensor:
    """Row and column sums of all tiles, [2, tiles, m]."""
    tiles = tiles_of(mask, m)
    return torch.stack([tiles.sum(dim=2), tiles.sum(dim=1)])


@functools.cache
def all_tiles(n: int) -> torch.Tensor:
    """Every 4x4 tile with sums n, flat; the ones that keep lower indices first."""
    rows = [row for row in itertools.product([1, 0], repeat=4) if sum(row) == n]
    tiles = [
        t
        for t in itertools.product(rows, repeat=4)
        if all(sum(c) == n for c in zip(*t, strict=True))
    ]
    return torch.tensor(tiles, dtype=torch.float64).reshape(-1, 16)


def optimum(tile: np.ndarray, n: int) -> float:
    """Largest kept sum: the vertices of this linear program are 0/1."""
    m = tile.shape[0]
    ones, unit = np.ones((1, m)), scipy.sparse.eye(m)
    sums = scipy.sparse.vstack([scipy.sparse.kron(unit, ones), scipy.sparse.kron(ones, unit)])
    solved = scipy.optimize.linprog(
        -tile.ravel(), A_eq=sums.tocsr(), b_eq=np.full(2 * m, n), bounds=(0, 1), method="highs"
    )
    assert solved.status == 0
    return -float(solved.fun)


def by_order(tile: torch.Tensor, descending: bool) -> list[tuple[int, int]]:
    """Places by magnitude; among equal ones the lower index counts as the heavier."""
    m = tile.shape[0]
    places = sorted(itertools.product(range(m), range(m)), key=lambda p: (-float(tile[p]), p))
    return places if descending else places[::-1]


def greedy(order: list[tuple[int, int]], n: int, m: int) -> torch.Tensor:
    mask = torch.zeros(m, m, dtype=torch.bool)
    for i, j in order:
        if mask[i].sum() < n and mask[:, j].sum() < n:
            mask[i, j] = True
    return mask


def prune_light(tile: torch.Tensor, n: int) -> torch.Tensor:
    mask = torch.ones(tile.shape, dtype=torch.bool)
    for i, j in by_order(tile, descending=False):
        if mask[i].sum() > n or mask[:, j].sum() > n:
            mask[i, j] = False
    return mask


@pytest.mark.parametrize(("n", "count"), [(1, 24), (2, 90), (3, 24)])
@pytest.mark.parametrize("ties", [False, True])
def test_exact_is_the_best_of_all_tiles(n: int, count: int, ties: bool) -> None:
    oracle = all_tiles(n)
    assert len(oracle) == count
    weight = torch.randn(84, 76)
    if ties:
        weight = (weight * 2).round()
    score = tiles_of(weight, 4).reshape(-1, 16).abs().double() @ oracle.T
    # argmax takes the first of equal scores.
    wanted = oracle[score.argmax(dim=1)].reshape(-1, 4, 4).bool()
    assert torch.equal(tiles_of(transposable_mask(weight, n, 4, "exact"), 4), wanted)
    assert torch.equal(transposable_mask(weight, n, 4), transposable_mask(weight, n, 4, "exact"))


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (2, 8), (3, 7), (8, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
def test_greedy_and_two_approximation_are_their_algorithms(
    n: int, m: int, dtype: torch.dtype, ties: bool
) -> None:
    weight = torch.randn(2 * m, 3 * m, dtype=torch.float64)
    weight = ((weight * 2).round() if ties else weight).to(dtype)
    for method, oracle in (
        ("greedy", lambda tile: greedy(by_order(tile, descending=True), n, m)),
        ("two_approximation", lambda tile: prune_light(tile, n)),
    ):
        got = tiles_of(transposable_mask(weight, n, m, method), m)
        wanted = torch.stack([oracle(tile) for tile in tiles_of(weight, m).abs().double()])
        assert torch.equal(got, wanted), method


def test_two_approximation_is_the_meet_of_row_and_column_masks() -> None:
    weight = torch.randn(64, 96)
    rows, cols = magnitude_mask(weight, "2:8"), magnitude_mask(weight.T, "2:8").T
    assert torch.equal(transposable_mask(weight, 2, 8, "two_approximation"), rows & cols)


def test_what_gaussian_2_4_keeps() -> None:
    weight = torch.randn(2000, 2000, generator=torch.Generator().manual_seed(5))
    best = kept_sum(weight, transposable_mask(weight, 2, 4, "exact"))
    greedy_mask = transposable_mask(weight, 2, 4, "greedy")
    assert best / kept_sum(weight, magnitude_mask(weight, "2:4")) == pytest.approx(0.945, abs=2e-3)
    assert kept_sum(weight, greedy_mask) / best == pytest.approx(0.985, abs=2e-3)
    short = (tiles_of(greedy_mask, 4).sum(dim=(1, 2)) < 8).double().mean()
    assert float(short) == pytest.approx(0.155, abs=5e-3)


@pytest.mark.parametrize(
    ("n", "m", "least"), [(4, 8, 0.998), (2, 8, 0.996), (1, 8, 0.99), (8, 16, 0.997), (3, 7, 0.997)]
)
def test_entropy_is_close_to_the_optimum(n: int, m: int, least: float) -> None:
    weight = torch.randn(6 * m, 6 * m, generator=torch.Generator().manual_seed(m))
    best = sum(optimum(tile.double().abs().numpy(), n) for tile in tiles_of(weight, m))
    share = {x: kept_sum(weight, transposable_mask(weight, n, m, x)) / best for x in METHODS}
    assert least <= share["entropy"] <= 1 + 1e-9
    assert share["two_approximation"] < share["greedy"] < share["entropy"]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (2, 8), (6, 8)])
def test_two_approximation_prunes_less_than_twice_the_optimum(n: int, m: int) -> None:
    # Heavy tails: where choices by magnitude go wrong most.
    weight = torch.randn(6 * m, 6 * m) ** 3
    mask = tiles_of(transposable_mask(weight, n, m, "two_approximation"), m)
    for tile, kept in zip(tiles_of(weight, m).double().abs(), mask, strict=True):
        least = float(tile.sum()) - optimum(tile.numpy(), n)
        assert float(tile[~kept].sum()) < 2 * least * (1 + 1e-9)


def entropy_oracle(tile: torch.Tensor, n: int, sharpness: float, steps: int) -> torch.Tensor:
    """The method as published, in log space and float64, a tile at a time."""
    m = tile.shape[0]
    start = tile * sharpness / tile.sqrt().mean() ** 2
    log_s, log_q = start.clone(), torch.zeros_like(tile)
    for _ in range(steps):
        log_s = log_s + math.log(n) - log_s.logsumexp(dim=1, keepdim=True)
        log_s = log_s + math.log(n) - log_s.logsumexp(dim=0, keepdim=True)
        capped = (log_s + log_q).clamp(max=0)
        log_q, log_s = log_q + log_s - capped, capped
    # log S, and log Q where S is 1, order the entries.
    mask = greedy(by_order(log_s + log_q, descending=True), n, m)
    while (mask.sum(dim=1) < n).any():
        i = int((mask.sum(dim=1) < n).int().argmax())
        j = int((mask.sum(dim=0) < n).int().argmax())
        swaps = [
            (float(tile[i, q] + tile[p, j] - tile[p, q]), -p, -q)
            for p, q in itertools.product(range(m), range(m))
            if mask[p, q] and not mask[i, q] and not mask[p, j]
        ]
        _, p, q = max(swaps)
        mask[-p, -q], mask[i, -q], mask[-p, j] = False, True, True
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 8)])
@pytest.mark.slow
def test_entropy_is_the_published_method(n: int, m: int) -> None:
    weight = torch.randn(8 * m, 8 * m, dtype=torch.float64)
    got = torch.empty(weight.shape, dtype=torch.bool)
    # Enough steps that both are at the fixed point, whatever they started from.
    _core.masks.transposable(weight, n, m, 3, 4.0, 300, got)
    wanted = [entropy_oracle(tile, n, 4.0, 300) for tile in tiles_of(weight, m).abs()]
    same = (tiles_of(got, m) == torch.stack(wanted)).all(dim=2).all(dim=1)
    assert same.double().mean() >= 0.95


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_sums_never_exceed_n_and_are_n_where_promised(n: int, m: int, method: str) -> None:
    # 17 tiles across: a batch of sixteen and one that is nearly empty.
    weight = torch.randn(2 * m, 17 * m)
    mask = transposable_mask(weight, n, m, method)
    sums = sums_of(mask, m)
    assert int(sums.max()) == n
    assert is_transposable(mask, n, m)
    if method == "entropy":
        assert int(sums.min()) == n
        check_mask(mask, NM(n, m))
        check_mask(mask.T.contiguous(), NM(n, m))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fill",
    [
        lambda w: w.zero_(),
        lambda w: w.fill_(3.0),
        lambda w: w.fill_(math.nan),
        lambda w: w.fill_(math.inf),
        lambda w: w.mul_(torch.rand_like(w) < 0.1),
        lambda w: w.masked_fill_(torch.rand_like(w) < 0.3, math.nan),
        lambda w: w.masked_fill_(torch.rand_like(w) < 0.7, -math.inf),
        lambda w: w.mul_(torch.finfo(w.dtype).tiny),
        lambda w: w.mul_(torch.finfo(w.dtype).max / 8),
        lambda w: w.pow_(31),
        lambda w: w.triu_(),
        lambda w: w[:, 0].fill_(1e30),
    ],
)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8), (8, 16)])
def test_any_weight_gives_a_mask(fill, dtype: torch.dtype, n: int, m: int) -> None:
    weight = torch.randn(3 * m, 5 * m, dtype=dtype)
    fill(weight)
    for method in (*METHODS, "auto"):
        mask = transposable_mask(weight, n, m, method)
        sums = sums_of(mask, m)
        assert int(sums.max()) <= n
        if method in ("entropy", "auto"):
            assert int(sums.min()) == n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_entries_are_kept_first(bad: float, dtype: torch.dtype) -> None:
    weight = torch.rand(8, 8, dtype=torch.float64).mul(100).to(dtype)
    places = [(0, 3), (5, 2), (5, 7), (7, 2)]
    for place in places:
        weight[place] = bad
    for n, m in ((2, 4), (2, 8)):
        for method in (*METHODS, "auto"):
            mask = transposable_mask(weight, n, m, method)
            assert all(mask[place] for place in places), (method, n, m)
    # One such entry against two heavy ones that stand in its way.
    weight = torch.zeros(4, 4, dtype=dtype)
    weight[0, 1], weight[1, 0], weight[0, 0] = 100, 100, bad
    assert all(transposable_mask(weight, 1, 4, method)[0, 0] for method in (*METHODS, "exact"))


def test_huge_float64_entries_are_told_apart() -> None:
    weight = torch.rand(32, 32, dtype=torch.float64) + 0.5
    for method in (*METHODS, "exact"):
        wanted = transposable_mask(weight, 2, 4, method)
        # Powers of two change no bit of the mantissa.
        assert torch.equal(transposable_mask(weight * 2.0**1022, 2, 4, method), wanted), method


@pytest.mark.parametrize(("n", "m", "method"), [
    (2, 4, "exact"), (1, 4, "exact"), (2, 8, "greedy"), (8, 16, "greedy"),
    (2, 4, "two_approximation"), (4, 8, "two_approximation"),
])  # fmt: skip
def test_the_transpose_has_the_transposed_mask(n: int, m: int, method: str) -> None:
    weight = torch.randn(4 * m, 9 * m, dtype=torch.float64)
    mask = transposable_mask(weight, n, m, method)
    assert torch.equal(transposable_mask(weight.T, n, m, method), mask.T)
    assert torch.equal(transposable_mask(weight.T.contiguous(), n, m, method), mask.T)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (8, 16)])
def test_strides_do_not_matter(n: int, m: int) -> None:
    whole = torch.randn(6 * m, 40 * m)
    views = [whole[m:, ::2][:, : 17 * m], whole.T[: 2 * m], whole[:1].expand(m, 40 * m)]
    for view in views:
        for method in (*METHODS, "auto"):
            wanted = transposable_mask(view.contiguous(), n, m, method)
            assert torch.equal(transposable_mask(view, n, m, method), wanted)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_a_tile_is_a_sub_matrix_and_stands_alone(n: int, m: int, method: str) -> None:
    weight = torch.randn(5 * m, 200 * m) * torch.logspace(-3, 3, 200 * m)
    mask = transposable_mask(weight, n, m, method)
    # In another order every tile has other neighbours in its batch.
    places = torch.randperm(200)[:, None].mul(m).add(torch.arange(m)).flatten()
    assert torch.equal(transposable_mask(weight[:, places], n, m, method), mask[:, places])
    alone = transposable_mask(weight[m : 2 * m, 3 * m : 4 * m].clone(), n, m, method)
    assert torch.equal(mask[m : 2 * m, 3 * m : 4 * m], alone)


@pytest.mark.parametrize(
    ("method", "dtype"),
    covering([*METHODS, "exact"], [torch.float32, torch.float64, torch.bfloat16]),
)
def test_threads_and_instruction_sets_do_not_matter(method: str, dtype: torch.dtype) -> None:
    weight = torch.randn(256, 520).to(dtype)
    first = None
    for isa in backend.isas():
        backend.use_isa(isa)
        masks = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            masks.append(transposable_mask(weight, 2, 4, method))
        assert all(torch.equal(mask, masks[0]) for mask in masks), isa
        first = masks[0] if first is None else first
        if method == "entropy":
            # Exponentials are rounded otherwise; choices that hang on the last bit may differ.
            assert (masks[0] != first).double().mean() < 1e-3, isa
        else:
            assert torch.equal(masks[0], first), isa


def test_bfloat16_is_read_as_float32() -> None:
    weight = torch.randn(64, 64).bfloat16()
    for method in (*METHODS, "exact"):
        wanted = transposable_mask(weight.float(), 2, 4, method)
        assert torch.equal(transposable_mask(weight, 2, 4, method), wanted)


def test_n_equal_to_m_keeps_all_and_no_entry_is_no_error() -> None:
    assert transposable_mask(torch.randn(8, 8), 8, 8, "entropy").all()
    assert transposable_mask(torch.randn(0, 8), 2, 8).shape == (0, 8)
    assert transposable_mask(torch.randn(8, 0), 2, 8).shape == (8, 0)


def test_the_weight_is_left_alone_and_may_require_a_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(16, 16))
    before = weight.detach().clone()
    mask = transposable_mask(weight, 2, 8)
    assert torch.equal(weight, before)
    assert not mask.requires_grad


def test_is_transposable_looks_at_rows_and_at_columns() -> None:
    eye = torch.eye(8, dtype=torch.bool)
    assert is_transposable(eye, 1, 4)
    for place in ((0, 1), (1, 0)):
        more = eye.clone()
        more[place] = True
        assert not is_transposable(more, 1, 4)
    rows = torch.zeros(4, 8, dtype=torch.bool)
    rows[:, ::4] = True
    assert not is_transposable(rows, 1, 4)
    assert not is_transposable(rows.T, 1, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: transposable_mask(torch.ones(6, 8), 2, 4), ShapeError, "choose m from [2]"),
        (lambda: transposable_mask(torch.ones(8, 7), 2, 4), ShapeError, "multiples of m"),
        (lambda: transposable_mask(torch.ones(8), 2, 4), ShapeError, "2 dimensions"),
        (lambda: transposable_mask(torch.ones(8, 8), 5, 4), PatternError, "n=5, m=4"),
        (lambda: transposable_mask(torch.ones(8, 8), 0, 4), PatternError, "n=0"),
        (lambda: transposable_mask(torch.ones(130, 130), 2, 65), PatternError, "64"),
        (lambda: transposable_mask(torch.ones(8, 8), 2.5, 4), DTypeError, "2.5"),
        (lambda: transposable_mask(torch.ones(8, 8), 2, 8, "exact"), PatternError, "entropy"),
        (lambda: transposable_mask(torch.ones(8, 8), 2, 4, "best"), ArgumentError, "greedy"),
        (lambda: transposable_mask(torch.ones(8, 8).int(), 2, 4), DTypeError, "int32"),
        (lambda: transposable_mask(torch.ones(8, 8).half(), 2, 4), DTypeError, "to(torch.float"),
        (lambda: transposable_mask([[1.0]], 2, 4), DTypeError, "list"),
        (lambda: transposable_mask(torch.ones(8, 8).to_sparse(), 2, 4), DTypeError, "to_dense"),
        (lambda: is_transposable(torch.ones(8, 8), 2, 4), DTypeError, "bool"),
        (lambda: is_transposable(torch.ones(8, 6) > 0, 2, 4), ShapeError, "choose m from [2]"),
    ],
)
def test_bad_input_is_named(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)


def test_the_binding_checks_what_memory_safety_needs() -> None:
    weight, mask = torch.ones(8, 8), torch.empty(8, 8, dtype=torch.bool)
    good = [weight, 2, 8, 1, 20.0, 10, mask]
    _core.masks.transposable(*good)
    for at, value in (
        (0, torch.ones(8, 7)), (0, torch.ones(16, 8)), (1, 0), (1, 9), (2, 0), (2, -8), (2, 65),
        (3, -1), (3, 4), (3, 0), (4, math.nan), (4, -1.0), (5, -1), (6, torch.empty(8, 8)),
        (6, torch.empty(8, 16, dtype=torch.bool)[:, ::2]), (6, mask[:4]),
    ):  # fmt: skip
        with pytest.raises(ArgumentError if 1 <= at <= 5 else (ShapeError, DTypeError)):
            _core.masks.transposable(*good[:at], value, *good[at + 1 :])
