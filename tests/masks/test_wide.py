"""Patterns of 16 to 128 rows that share their columns, against sums over those rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer import backend
from gossamer.backend import masks as kernels
from gossamer.errors import ArgumentError, StructureError
from gossamer.masks import (
    check_mask,
    check_structure,
    magnitude_mask,
    mask_from_score,
    random_structure,
    select_nm,
)
from gossamer.masks.runs import repeat_lists
from gossamer.patterns import NM, Block, Pattern, Unstructured
from support.grids import covering

VECTORS = [16, 32, 64, 128]


def oracle(score: Tensor, pattern: Pattern) -> Tensor:
    """The mask of the largest sums: a stable sort in each group, or of the whole."""
    high, wide = (pattern.rows, pattern.cols) if isinstance(pattern, Block) else (pattern.vector, 1)
    rows, cols = score.shape
    sums = torch.zeros(rows // high, cols // wide, dtype=torch.float64)
    for down in range(high):
        for right in range(wide):
            sums += score[down::high, right::wide].double()
    if isinstance(pattern, NM):
        lines, count = sums.view(-1, pattern.m), pattern.n
    else:
        lines, count = sums.view(1, -1), round(sums.numel() * (1 - pattern.sparsity))
    order = lines.argsort(dim=1, descending=True, stable=True)[:, :count]
    kept = torch.zeros_like(lines, dtype=torch.bool).scatter_(1, order, value=True)
    return kept.view(sums.shape).repeat_interleave(high, 0).repeat_interleave(wide, 1)


def whole_numbers(rows: int, cols: int, seed: int = 0) -> Tensor:
    """Sums of these are exact in any order, and tie."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, (rows, cols), generator=generator).float()


def of(vector: int, kind: str) -> Pattern:
    kinds: dict[str, Pattern] = {
        "2:4": NM(2, 4, vector),
        "3:7": NM(3, 7, vector),
        "90%": Unstructured(0.9, vector),
        "tiles": Block(vector, 4, 0.6),
        "columns": Block(vector, 1, 0.75),
    }
    return kinds[kind]


@pytest.mark.parametrize(
    ("vector", "kind"), covering(VECTORS, ["2:4", "3:7", "90%", "tiles", "columns"])
)
def test_a_selection_ranks_sums_over_all_rows(vector: int, kind: str) -> None:
    pattern = of(vector, kind)
    score = whole_numbers(3 * vector, 308)
    for mask, expected in (
        (mask_from_score(score, pattern), oracle(score, pattern)),
        (magnitude_mask(score, str(pattern)), oracle(score.abs(), pattern)),
    ):
        assert torch.equal(mask, expected)
        check_mask(mask, pattern)
        n, m = (pattern.n, pattern.m) if isinstance(pattern, NM) else (0, 0)
        check_structure(backend.encode(mask, pattern.panel, n, m), pattern)


@pytest.mark.parametrize(
    ("vector", "nm"), covering(VECTORS, [(2, 4), (1, 16), (3, 7), (5, 64), (4, 4)])
)
def test_lists_are_repeated_for_each_panel(vector: int, nm: tuple[int, int]) -> None:
    n, m = nm
    pattern = NM(n, m, vector)
    for groups in (1, 256 // m, 700 // m):
        for rows in (0, 1, 3):
            lists = random_structure((rows, groups * m), NM(n, m), seed=1)
            got = repeat_lists(lists, pattern)
            backend.validate(got)
            mask = backend.mask(lists).repeat_interleave(vector, 0)
            assert torch.equal(backend.mask(got), mask)
            assert got.layout == backend.encode(mask, 8, n, m).layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_packed_selection_overwrites_what_it_is_given(dtype: torch.dtype) -> None:
    first, second = (torch.randn(64, 512).to(dtype) for _ in range(2))
    out = select_nm(first, "2:4:v32")
    values, indices = out[0], out[1].indices
    version = values._version
    again = select_nm(second, "2:4:v32", out)
    assert again[0] is values
    assert again[1].indices is indices
    assert values._version > version
    mask = magnitude_mask(second, "2:4:v32")
    assert torch.equal(backend.mask(again[1]), mask)
    assert torch.equal(backend.scatter(values, again[1]), second * mask)


def test_threads_do_not_change_a_packed_selection() -> None:
    for shape in ((1024, 1040), (16, 70_000), (2048, 16)):
        weight = torch.randn(shape)
        mask = magnitude_mask(weight, "1:4:v16")
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values, structure = select_nm(weight, "1:4:v16")
            assert torch.equal(backend.mask(structure), mask)
            assert torch.equal(backend.scatter(values, structure), weight * mask)


@pytest.mark.parametrize(("shared", "vector"), [(0, 8), (-1, 8), (3, 8), (16, 8), (2, 4), (2, 1)])
def test_panels_that_cannot_share_are_refused(shared: int, vector: int) -> None:
    layout = backend.Layout(64, 16, vector, 256, 2, 4)
    with pytest.raises(ArgumentError, match="a divisor of the panels of 8 rows"):
        kernels.select_nm(torch.randn(64, 16), layout, None, shared)


@given(
    st.sampled_from(VECTORS), st.integers(1, 2), st.integers(1, 70), st.booleans(), st.integers(0)
)
def test_one_panel_that_differs_is_found(
    vector: int, tiles: int, groups: int, grouped: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**60)
    pattern = NM(2, 4, vector) if grouped else Unstructured(0.5, vector)
    good = random_structure((tiles * vector, 4 * groups), pattern, seed % 2**60)
    check_structure(good, pattern)
    panel = int(torch.randint(0, tiles * vector // 8, (1,), generator=generator))
    mask = backend.mask(good)
    rows = slice(8 * panel, 8 * panel + 8)
    mask[rows] = mask[rows].view(8, -1, 4).flip(2).view(8, -1)
    n, m = (2, 4) if grouped else (0, 0)
    changed = backend.encode(mask, 8, n, m)
    if torch.equal(mask, backend.mask(good)):
        return
    with pytest.raises(StructureError, match=rf"a part of the {vector}x1 tile") as caught:
        check_structure(changed, pattern)
    # "… tile at [top, left] is kept, [a, c] and not [b, c]; …"
    _, kept, dropped = (
        tuple(map(int, part.split("]")[0].split(","))) for part in str(caught.value).split("[")[1:]
    )
    assert mask[kept]
    assert not mask[dropped]
    assert kept[0] // vector == dropped[0] // vector == 8 * panel // vector
    assert kept[1] == dropped[1]
