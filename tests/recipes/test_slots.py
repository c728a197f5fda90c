"""Slots: what dies and what grows, by the whole and by slabs."""

import pytest
import torch

from gossamer import backend
from gossamer.backend.growth import drop as drop_entries
from gossamer.backend.growth import grow_largest
from gossamer.masks import check_mask, mask_from_score, random_mask, random_structure
from gossamer.patterns import parse_pattern
from gossamer.recipes.base.slots import Best, Slots, drop

PATTERNS = ["90%", "75%:v4", "2:4", "1:4", "2:8:v4", "block 4x4 75%", "1:4:v16", "75%:v16"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kept_slots_carry_the_magnitude_of_their_entries(pattern):
    weight = torch.randn(16, 32, dtype=torch.float64)
    pattern = parse_pattern(pattern)
    mask = random_mask((16, 32), pattern, 3)
    slots = Slots(16, 32, pattern)
    at = mask.flatten().nonzero().flatten()
    at = at[torch.randperm(len(at), generator=torch.Generator().manual_seed(1))]
    ids, size = slots.kept(weight.flatten()[at], at)
    assert torch.equal(slots.mask(ids), mask)
    assert ids.tolist() == sorted(set(ids.tolist()))
    tiles = (
        (weight * mask).abs().view(16 // slots.height, slots.height, 32 // slots.width, slots.width)
    )
    torch.testing.assert_close(size, tiles.sum((1, 3)).flatten()[ids], rtol=1e-14, atol=0)


def test_of_equal_scores_the_lower_slot_stays_and_grows():
    assert drop(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [True, True, False, False]
    best = Best(3)
    for first, scores in ((0, [1.0, 5.0]), (2, [1.0, 1.0, 5.0]), (5, [5.0, 0.0])):
        best.offer(torch.tensor(scores), first)
    assert best.ids.tolist() == [1, 4, 5]
    best = Best(2)
    best.offer(torch.tensor([3.0, 3.0, 3.0, 3.0]), 0)
    best.offer(torch.tensor([3.0]), 4)
    assert best.ids.tolist() == [0, 1]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("slab", [1, 100, 10**6])
def test_growth_by_slabs_is_growth_by_the_whole_and_obeys_the_pattern(pattern, slab):
    pattern = parse_pattern(pattern)
    slots = Slots(16, 32, pattern)
    score = torch.rand(16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    score[3, 5] = torch.nan
    structure = random_structure((16, 32), pattern, 7)
    values = torch.randn(structure.nnz, generator=torch.Generator().manual_seed(3))
    entries, of = slots.entries(values, structure)
    stays = drop_entries(entries, of, len(entries.indices) // 3)
    shapes = []

    def slabs():
        for begin, end in slots.slabs(slab):
            shapes.append(end - begin)
            yield slots.scores(score[begin:end].clone(), entries)

    grown = slots.spread(grow_largest(entries, stays, slabs()), structure)
    assert sum(shapes) == 16
    assert max(shapes) * 32 <= max(slab, 32 * slots.height)
    whole = backend.mask(grown)
    check_mask(whole, pattern)
    # Which slots stay, by a sort of all.
    ids, size = slots.kept(values, backend.coordinates(structure))
    stay = slots.mask(ids[drop(size, len(ids) // 3)])
    assert whole[stay].all()
    # The oracle: those that stay have infinite scores, and the pattern's own selection picks.
    free = score.nan_to_num(nan=-1e300).masked_fill(stay, 1e200)
    oracle = mask_from_score(free, pattern)
    assert torch.equal(whole, oracle)
