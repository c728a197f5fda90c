"""Slots: what dies and what grows, by the whole and by slabs."""

import pytest
import torch

from gossamer.masks import check_mask, random_mask
from gossamer.patterns import parse_pattern
from gossamer.recipes.base.slots import Best, Slots, drop, grow

PATTERNS = ["90%", "75%:v4", "2:4", "1:4", "2:8:v4", "block 4x4 75%", "1:4:v16", "75%:v16"]


def random_ids(slots, seed):
    mask = random_mask((slots.rows, slots.cols), slots.pattern, seed)
    corner = mask[:: slots.height, :: slots.width]
    return corner.flatten().nonzero().flatten()


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
    ids = random_ids(slots, 7)
    stays = drop(torch.rand(len(ids), generator=torch.Generator().manual_seed(3)), len(ids) // 3)
    stay, dropped = ids[stays], ids[~stays]
    shapes = []

    def rows(begin, end):
        shapes.append(end - begin)
        return score[begin:end].clone()

    grown = grow(slots, stay, dropped, rows, slab)
    assert sum(shapes) == 16
    assert max(shapes) * 32 <= max(slab, 32 * slots.height)
    whole = torch.cat([stay, grown])
    check_mask(slots.mask(whole), pattern)
    assert len(grown) == len(dropped)
    assert not set(grown.tolist()) & set(stay.tolist())
    # The oracle: those that stay have infinite scores, and the pattern's own selection picks.
    free = score.nan_to_num(nan=-1e300).masked_fill(slots.mask(stay), 1e200)
    tiles = free.view(16 // slots.height, slots.height, 32 // slots.width, slots.width).sum((1, 3))
    oracle = tiles.flatten()
    if hasattr(pattern, "m"):
        picked = oracle.view(-1, pattern.m).topk(pattern.n, dim=1).indices
        picked += torch.arange(0, slots.count, pattern.m)[:, None]
    else:
        picked = oracle.topk(len(ids)).indices
    assert sorted(whole.tolist()) == sorted(picked.flatten().tolist())
