"""Runs of panels by matrix tiles: when they serve, and the ends of lists, of the batch and of
memory. test_kernels.py compares every kernel with the reference, V = 16 to 128 included."""

import pytest
import torch
from torch import Tensor

from gossamer import backend
from gossamer.backend import Layout, Structure
from support.kernel_cases import (
    VERBS,
    WIDE,
    Weight,
    check,
    expected_verb,
    make_mask,
    random,
    run_verb,
    vector_of,
    weight_of_mask,
)

TABLES = [isa for isa in backend.isas() if isa in ("amx", "emulated")]
INF = float("inf")
pytestmark = pytest.mark.usefixtures("one_thread")


def operands(weight: Weight, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    x = random(batch, weight.cols, dtype=torch.bfloat16, seed=batch)
    g = random(batch, weight.rows, dtype=torch.bfloat16, seed=batch + 1)
    return x, g, random(weight.rows, dtype=torch.bfloat16, seed=3)


def check_verbs(name: str, weight: Weight, batch: int, bias: bool = True) -> None:
    x, g, b = operands(weight, batch)
    for verb in VERBS:
        expected = expected_verb(verb, weight, x, g, b if bias else None)
        for way, result in run_verb(verb, weight, x, g, b if bias else None).items():
            check(f"{name} {way} batch {batch}", result, expected)


def sum_of_a_list(mask: Tensor, batch: int = 9) -> float:
    """2^30 in its first column and -2^30 in its 17th, and ones in 30 others, as emulated.

    A tile sums the even and the odd entries of its pairs apart, and a pair is an entry and the
    16th after it: each one is lost beside a 2^30. Pairs of neighbours keep those behind the 17th.
    """
    columns = mask[0].nonzero().flatten()
    x = torch.zeros(batch, mask.shape[1], dtype=torch.bfloat16)
    x[:, columns] = 1
    x[:, columns[0]], x[:, columns[16]] = 2.0**30, -(2.0**30)
    structure = backend.encode(mask, 8)
    values = torch.ones(structure.nnz, dtype=torch.bfloat16)
    backend.use_isa("emulated")
    y = backend.spmm(x, values, structure)
    assert (y[:, :8] == y[0, 0]).all()
    return float(y[0, 0])


def test_tiles_serve_runs_of_panels_and_no_others() -> None:
    row = torch.zeros(300, dtype=torch.bool)
    row[torch.arange(32) * 9 + 3] = True
    tiles, pairs = 0.0, 14.0
    for rows in (16, 32, 48, 64, 128, 256, 80):
        assert sum_of_a_list(row.expand(rows, -1).contiguous()) == tiles, rows
    assert sum_of_a_list(row.expand(8, -1).contiguous()) == pairs
    assert sum_of_a_list(row.expand(24, -1).contiguous()) == pairs, "an odd number of panels"
    for column in ([294], [295], [3], list(range(294, 300))):
        for panel in (1, 2, 3):  # more, fewer and other columns, before a list or behind it
            mask = row.repeat(32, 1)
            mask[8 * panel : 8 * panel + 8, column] ^= True
            assert sum_of_a_list(mask) == pairs, (column, panel)
    # A weight of several runs is taken by the shortest of them.
    for heights in ((16, 48), (32, 16, 16, 64)):
        other = row.roll(5)
        lists = torch.stack([row, other, row, other][: len(heights)])
        assert sum_of_a_list(lists.repeat_interleave(torch.tensor(heights), 0)) == tiles, heights
    # Up to eight rows have a kernel of their own, which no pairs have either.
    assert sum_of_a_list(row.repeat(16, 1), batch=8) != tiles


@pytest.mark.parametrize("isa", TABLES)
def test_runs_of_several_lengths(isa: str) -> None:
    # Lists of 16, 32 and 64 rows in one weight, which is then taken as runs of 16; and runs that
    # do not start at a multiple of their length.
    for heights in ([16, 64, 32, 16], [64, 32, 32, 128], [16, 32, 16], [8, 16, 8]):
        lists = make_mask(len(heights), 300, 1, "0.4", seed=len(heights))
        mask = lists.repeat_interleave(torch.tensor(heights), 0)
        weight = weight_of_mask(mask, 8, "0.4", torch.bfloat16, seed=1)
        backend.use_isa(isa)
        for batch in (9, 40):
            check_verbs(f"{heights}", weight, batch)


# A step of 32 entries, a tile of 16, and one more or fewer; several blocks; nothing.
COUNTS = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200]


@pytest.mark.parametrize("isa", TABLES)
@pytest.mark.parametrize("layout", WIDE)
def test_the_ends_of_lists(isa: str, layout: str) -> None:
    backend.use_isa(isa)
    vector, cols = vector_of(layout), 560
    generator = torch.Generator().manual_seed(5)
    order = torch.rand(len(COUNTS), cols, generator=generator).argsort(1).argsort(1)
    mask = (order < torch.tensor(COUNTS)[:, None]).repeat_interleave(vector, 0)
    weight = weight_of_mask(mask, vector, "0.1", torch.bfloat16, seed=2)
    for batch in (9, 33):
        check_verbs(layout, weight, batch, bias=batch == 9)


# Tiles of 16, two side by side, a task of 128, a chunk of 512, and chunks in two passes.
@pytest.mark.parametrize("isa", TABLES)
@pytest.mark.parametrize("layout", WIDE)
def test_the_ends_of_the_batch(isa: str, layout: str) -> None:
    backend.use_isa(isa)
    vector = vector_of(layout)
    mask = make_mask(2 * vector, 270, vector, "0.2", seed=4)
    weight = weight_of_mask(mask, vector, "0.2", torch.bfloat16, seed=2)
    for batch in (9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 128, 129, 161, 511, 513, 545, 1030):
        check_verbs(layout, weight, batch)


@pytest.mark.parametrize("isa", TABLES)
@pytest.mark.parametrize("kind", ["2:4", "1:8", "3:5", "16x16", "32x8", "64x1"])
def test_patterns(isa: str, kind: str) -> None:
    backend.use_isa(isa)
    if "x" in kind:
        high, wide = map(int, kind.split("x"))
        grid = make_mask(4, 560 // wide, 1, "0.3", seed=6)
        mask = grid.repeat_interleave(high, 0).repeat_interleave(wide, 1)
        weight = weight_of_mask(mask, high, "0.3", torch.bfloat16, seed=7)
    else:
        mask = make_mask(96, 560, 32, kind, seed=8)
        weight = weight_of_mask(mask, 32, kind, torch.bfloat16, seed=7)
    for batch in (9, 140):
        check_verbs(kind, weight, batch)


@pytest.mark.parametrize("isa", TABLES)
@pytest.mark.parametrize("layout", WIDE)
def test_zeros_that_fill_tiles_meet_no_infinity(isa: str, layout: str) -> None:
    # Every number of x and dY is infinite, so that a zero of padding beside one of them is a NaN.
    backend.use_isa(isa)
    vector = vector_of(layout)
    for count in (1, 15, 17, 33):
        mask = torch.zeros(3 * vector, 300, dtype=torch.bool)
        mask[:vector, :count] = mask[vector : 2 * vector, 299 - count : 299] = True
        structure = backend.encode(mask, 8)
        values = torch.ones(structure.nnz, dtype=torch.bfloat16)
        for batch in (9, 20, 130):
            x = torch.full((batch, 300), INF, dtype=torch.bfloat16)
            g = torch.full((batch, 3 * vector), INF, dtype=torch.bfloat16)
            rows, columns = torch.where(mask.any(1), INF, 0.0), torch.where(mask.any(0), INF, 0.0)
            y = backend.spmm(x, values, structure)
            assert torch.equal(y.float(), rows.expand(batch, -1))
            dx = backend.spmm_t(g, values, structure)
            assert torch.equal(dx.float(), columns.expand(batch, -1))
            assert (backend.sddmm(g, x, structure) == INF).all()


def test_lists_longer_than_a_block_are_refused_by_tiles() -> None:
    # Pointers that rise pass the check of a call: 2048 entries in a block of 256 columns, in eight
    # panels that agree. The kernels for V = 8 take them; tiles have no memory for so many.
    ids = torch.arange(8 * 2048).to(torch.uint8)
    indptr = torch.arange(9, dtype=torch.int32) * 2048
    structure = Structure(Layout(64, 256, 8, 256), ids, indptr)
    values = torch.ones(8 * 8 * 2048, dtype=torch.bfloat16)
    x = torch.randint(-2, 3, (40, 256), generator=torch.Generator().manual_seed(1)).bfloat16()
    g = torch.ones(40, 64, dtype=torch.bfloat16)
    backend.use_isa("emulated")
    y = (8 * x.double().sum(1, keepdim=True)).bfloat16()
    assert torch.equal(backend.spmm(x, values, structure), y.expand(-1, 64))
    assert (backend.spmm_t(g, values, structure) == 8 * 64).all()
    sums = x.double().sum(0).bfloat16()
    assert torch.equal(
        backend.sddmm(g, x, structure), sums.repeat(64)[:, None].expand(-1, 8).flatten()
    )
