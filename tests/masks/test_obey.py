"""Whole tiles and balanced choices of a structure, beside the same rules on dense masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import backend
from gossamer.errors import ArgumentError, StructureError
from gossamer.masks import check_mask, check_structure, random_mask
from gossamer.patterns import Block, GroupedNM


def refused_at(mask: torch.Tensor, pattern: Block) -> list[int] | None:
    """The top left of the first tile in row-major order that is kept in part, or None."""
    high, wide = pattern.rows, pattern.cols
    tiles = mask.view(mask.shape[0] // high, high, -1, wide).sum(dim=(1, 3))
    partial = ((tiles > 0) & (tiles < high * wide)).nonzero()
    return [int(partial[0, 0]) * high, int(partial[0, 1]) * wide] if len(partial) else None


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_part_of_a_tile_is_found_wherever_it_is(data: st.DataObject) -> None:
    high = data.draw(st.sampled_from([1, 2, 4, 8, 12, 16, 64]))
    wide = data.draw(st.sampled_from([1, 3, 5, 100, 300]))
    rows = high * data.draw(st.integers(1, 3))
    cols = wide * data.draw(st.integers(1, max(600 // wide, 1)))
    pattern = Block(high, wide, data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])))
    mask = random_mask((rows, cols), pattern, data.draw(st.integers(0, 99)))
    vector = pattern.panel
    for _ in range(data.draw(st.integers(0, 2))):
        row = data.draw(st.integers(0, rows // vector - 1)) * vector
        col = data.draw(st.integers(0, cols - 1))
        mask[row : row + vector, col] ^= True
    structure = backend.encode(mask, vector)
    at = refused_at(mask, pattern)
    if at is None:
        check_structure(structure, pattern)
        return
    with pytest.raises(StructureError, match=f"a part of the {high}x{wide} tile at") as caught:
        check_structure(structure, pattern)
    row, col = map(int, str(caught.value).split("[")[1].split("]")[0].split(","))
    part = mask[row : row + high, col : col + wide]
    assert row % high == col % wide == 0
    assert 0 < int(part.sum()) < part.numel()
    assert row == at[0]


@pytest.mark.parametrize("pattern", [GroupedNM(2, 4, 1), GroupedNM(1, 3, 2)])
def test_choices_must_be_balanced(pattern: GroupedNM) -> None:
    rows, cols = 2 * pattern.chunk + 1, 2 * pattern.m
    mask = random_mask((rows, cols), pattern, seed=1)
    check_structure(backend.encode(mask, 1, pattern.n, pattern.m), pattern)
    mask[0] = mask[1]
    with pytest.raises(StructureError, match="check_mask got a mask that takes columns"):
        check_mask(mask, pattern)
    with pytest.raises(StructureError, match="the structure takes columns"):
        check_structure(backend.encode(mask, 1, pattern.n, pattern.m), pattern)


def test_a_tile_must_fit_the_panels() -> None:
    structure = backend.encode(torch.ones(8, 4, dtype=torch.bool), vector=4)
    for rows, cols in ((2, 1), (3, 1), (0, 1), (4, 0), (-4, 1), (16, 1)):
        with pytest.raises(ArgumentError, match="do not fit"):
            backend.structure.check_tiles(structure, rows, cols)
