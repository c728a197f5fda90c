"""Dropping and growing entries: dense oracles with sorts, the uniform law, threads, refusals."""

import math
from collections import Counter
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from gossamer import backend
from gossamer.backend import Structure
from gossamer.backend.growth import drop, grow_largest, grow_random, spread_tiles
from gossamer.errors import ArgumentError, DTypeError, ShapeError, StructureError
from gossamer.masks import check_mask, random_structure
from support.grids import covering

PATTERNS = ["90%", "40%", "75%:v4", "50%:v8", "2:4", "1:4:v4", "3:5", "5:8:v8"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
RARE = 1e-4  # of an honest generator, once and for all: the seeds are fixed


def sizes(pattern: str) -> tuple[int, int]:
    return (16, 525) if pattern == "3:5" else (16, 520)


def slots(structure: Structure, entries: Tensor) -> Tensor:
    """Write a number per entry into a dense matrix [panels, cols], zero elsewhere."""
    layout = structure.layout
    at = backend.coordinates(structure)[:: layout.vector]
    dense = torch.zeros(layout.panels * layout.cols, dtype=entries.dtype)
    dense[at // (layout.cols * layout.vector) * layout.cols + at % layout.cols] = entries
    return dense.view(layout.panels, layout.cols)


def kept(structure: Structure) -> Tensor:
    return slots(structure, torch.ones(len(structure.indices), dtype=torch.bool))


def rough(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers with many ties, zeros of both signs, infinities and NaN."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(-6, 7, count) * 0.5).to(dtype)
    for value in (torch.inf, -torch.inf, torch.nan, -torch.nan, -0.0):
        x[torch.from_numpy(rng.integers(0, count, max(count // 50, 1)))] = value
    return x


def neighbours(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers from 1 of which each is the next after another: one bit off is another choice."""
    bits = torch.int64 if dtype == torch.float64 else torch.int32
    one = torch.ones(count, dtype=dtype).view(bits)
    steps = torch.from_numpy(np.random.default_rng(seed).integers(0, 30, count)).to(bits)
    return (one + steps).view(dtype)


def row_sums(x: Tensor) -> Tensor:
    """Sum over dimension 1 in its order: torch's sum takes another, whose last bit differs."""
    return reduce(torch.add, x.unbind(1))


def dense_drop(structure: Structure, values: Tensor, count: int) -> Tensor:
    """The oracle of `drop` as a dense mask: a stable sort of the magnitudes."""
    size = row_sums(values.abs().double().view(-1, structure.layout.vector))
    size = slots(structure, size.nan_to_num(nan=1e300, posinf=1e299))
    alive = kept(structure)
    order = torch.where(alive, size, torch.inf).flatten().flip(0).argsort(stable=True)
    out = alive.flatten().flip(0)
    out[order[:count]] = False
    return out.flip(0).view(alive.shape)


def dense_growth(structure: Structure, stays: Tensor, scores: Tensor) -> Tensor:
    """The oracle of `grow_largest` as a dense mask: stable sorts of the whole."""
    layout, stay = structure.layout, slots(structure, stays)
    score = row_sums(scores.abs().double().view(layout.panels, layout.vector, layout.cols))
    score = score.nan_to_num(nan=-1.0, posinf=1e300).masked_fill(stay, -2.0)
    groups = layout.cols // layout.m * layout.panels if layout.m else 1
    order = score.view(groups, -1).argsort(dim=1, descending=True, stable=True)
    lost = (kept(structure).view(groups, -1).sum(1) - stay.view(groups, -1).sum(1))[:, None]
    takes = torch.arange(order.shape[1]) < lost
    grown = stay.view(groups, -1).clone()
    return grown.scatter_(1, order, grown.gather(1, order) | takes).view(stay.shape)


@pytest.mark.parametrize(("pattern", "dtype"), covering(PATTERNS, DTYPES))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.97, 1.0])
def test_the_smallest_are_dropped(pattern: str, dtype: torch.dtype, share: float) -> None:
    structure = random_structure(sizes(pattern), pattern, 1)
    count = int(share * len(structure.indices))
    for values in (torch.randn(structure.nnz).to(dtype), rough(structure.nnz, 2, dtype)):
        stays = drop(structure, values, count)
        assert int((~stays).sum()) == count
        assert torch.equal(slots(structure, stays), dense_drop(structure, values, count))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slab", [1, 2, 99])
def test_the_largest_of_all_slabs_grow(pattern: str, dtype: torch.dtype, slab: int) -> None:
    structure = random_structure(sizes(pattern), pattern, 1)
    rows, cols = sizes(pattern)
    step = slab * structure.layout.vector
    for share in (0.0, 0.02, 0.4, 1.0):
        stays = drop(structure, torch.randn(structure.nnz), int(share * len(structure.indices)))
        for draw in (rough, neighbours):
            scores = draw(rows * cols, 3, dtype).view(rows, cols)
            slabs = (scores[row : row + step].clone() for row in range(0, rows, step))
            new = grow_largest(structure, stays, slabs)
            backend.validate(new, structure.nnz)
            assert new.layout == structure.layout
            assert torch.equal(kept(new), dense_growth(structure, stays, scores))


@given(
    st.integers(1, 4),
    st.integers(1, 300),
    st.sampled_from([1, 4, 8]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_any_structure_drops_and_grows_as_by_sorts(
    panels: int, cols: int, vector: int, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    chosen = torch.from_numpy(rng.random((panels, cols)) < density)
    structure = backend.encode(chosen.repeat_interleave(vector, 0), vector)
    values = rough(structure.nnz, seed) if structure.nnz else torch.empty(0)
    count = int(rng.integers(0, len(structure.indices) + 1))
    stays = drop(structure, values, count)
    assert torch.equal(slots(structure, stays), dense_drop(structure, values, count))
    scores = rough(panels * vector * cols, seed + 1).view(-1, cols)
    cut = int(rng.integers(0, panels + 1)) * vector
    new = grow_largest(structure, stays, [scores[:cut], scores[cut:]])
    assert torch.equal(kept(new), dense_growth(structure, stays, scores))
    random = grow_random(structure, stays, seed)
    backend.validate(random, structure.nnz)
    assert bool((kept(random) | ~slots(structure, stays)).all())


@pytest.mark.parametrize("pattern", [*PATTERNS, "0%", "100%", "3%"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_random_growth_keeps_what_stays_and_the_pattern(pattern: str, share: float) -> None:
    structure = random_structure(sizes(pattern), pattern, 1)
    stays = drop(structure, torch.randn(structure.nnz), int(share * len(structure.indices)))
    moved = False
    for seed in range(4):
        new = grow_random(structure, stays, seed)
        check_mask(backend.mask(new), pattern)
        assert bool((kept(new) | ~slots(structure, stays)).all())
        moved |= not torch.equal(kept(new), kept(structure))
    assert moved == (share > 0 and pattern not in ("0%", "100%"))


CHOICES = [
    # (pattern, shape, kept entries that are dropped): few enough choices to count each.
    ("50%", (2, 4), 2),
    ("25%", (1, 8), 3),
    ("60%", (1, 260), 1),
    ("50%:v4", (8, 3), 1),
    ("2:4", (2, 4), 2),
    ("3:4", (1, 8), 3),
]


@pytest.mark.parametrize(("pattern", "shape", "count"), CHOICES)
def test_every_choice_grows_as_often(pattern: str, shape: tuple[int, int], count: int) -> None:
    structure = random_structure(shape, pattern, 3)
    stays = drop(structure, torch.arange(structure.nnz) + 1.0, count)
    stay, draws = slots(structure, stays), 6000
    seen = Counter(
        kept(grow_random(structure, stays, seed)).numpy().tobytes() for seed in range(draws)
    )
    m = structure.layout.m
    groups = stay.view(-1, m) if m else stay.view(1, -1)
    lost = kept(structure).view(groups.shape).sum(1) - groups.sum(1)
    free = (~groups).sum(1)
    choices = math.prod(math.comb(int(f), int(n)) for f, n in zip(free, lost, strict=True))
    assert choices > 1
    assert len(seen) <= choices
    counts = np.array([*seen.values(), *[0] * (choices - len(seen))])
    statistic = float(((counts - draws / choices) ** 2).sum() / (draws / choices))
    assert chi2.sf(statistic, choices - 1) > RARE, statistic


@pytest.mark.parametrize("pattern", ["90%", "50%:v4", "2:4"])
def test_any_number_of_threads_gives_the_same_bits(pattern: str) -> None:
    structure = random_structure((512, 1024), pattern, 1)
    values, scores = rough(structure.nnz, 1), rough(512 * 1024, 2).view(512, 1024)
    threads, runs = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            stays = drop(structure, values, len(structure.indices) // 3)
            halves = (scores[:256], scores[256:])
            new = (grow_random(structure, stays, 7), grow_largest(structure, stays, halves))
            runs.append([stays, *(t for s in new for t in s[1:] if t is not None)])
    finally:
        torch.set_num_threads(threads)
    for a, b in pairwise(runs):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("vector", [1, 4])
def test_tiles_are_the_entries_of_a_grid(vector: int) -> None:
    grid = random_structure((6, 150), "70%", 1)
    spread = spread_tiles(grid, vector, 8, 4)
    mask = backend.mask(grid).repeat_interleave(8, 0).repeat_interleave(4, 1)
    assert torch.equal(backend.mask(spread), mask)
    backend.validate(spread, 32 * grid.nnz)
    with pytest.raises(ArgumentError, match="divide the height"):
        spread_tiles(grid, 8, 4, 4)


def bad() -> dict[str, tuple[type[Exception], str, Any]]:
    structure = random_structure((8, 16), "50%:v4", 1)
    stays, values = torch.ones(16, dtype=torch.bool), torch.randn(64)
    scores = torch.randn(8, 16)
    damaged = structure._replace(indices=structure.indices.flip(0))
    return {
        "too many": (ArgumentError, "got 17 entries", lambda: drop(structure, values, 17)),
        "negative": (ArgumentError, "got -1 entries", lambda: drop(structure, values, -1)),
        "values": (ShapeError, "of 64 elements", lambda: drop(structure, values[1:], 1)),
        "integers": (DTypeError, "int64", lambda: drop(structure, values.long(), 1)),
        "damaged": (StructureError, "rise", lambda: drop(damaged, values, 1)),
        "stays": (ShapeError, "has 16", lambda: grow_random(structure, stays[1:], 1)),
        "bytes": (DTypeError, "bool", lambda: grow_random(structure, stays.byte(), 1)),
        "rows missing": (
            ArgumentError,
            "scores of 4 of 8 rows",
            lambda: grow_largest(structure, stays, [scores[:4]]),
        ),
        "rows too many": (
            ShapeError,
            "at most 4 rows",
            lambda: grow_largest(structure, stays, [scores[:4], scores]),
        ),
        "torn panel": (
            ShapeError,
            "multiple of 4",
            lambda: grow_largest(structure, stays, [scores[:2]]),
        ),
        "bfloat16": (
            DTypeError,
            r"\.float\(\)",
            lambda: grow_largest(structure, stays, [scores.bfloat16()]),
        ),
    }


@pytest.mark.parametrize("case", bad())
def test_what_does_not_fit_is_refused(case: str) -> None:
    error, words, call = bad()[case]
    with pytest.raises(error, match=words):
        call()
