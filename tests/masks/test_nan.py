"""NaN and infinity in every selection: numbers < infinity < NaN, and nothing raises."""

import math

import pytest
import torch
from torch import nn

from gossamer import backend
from gossamer.backend.growth import drop, grow_largest
from gossamer.errors import GossamerError
from gossamer.masks import (
    check_mask,
    double_prune,
    double_prune_mask,
    is_transposable,
    magnitude_mask,
    mask_from_score,
    select_nm,
    transposable_mask,
)
from gossamer.masks.ranks import rank_keys
from gossamer.masks.together import top_masks
from gossamer.nn import SparseLinear
from gossamer.patterns import parse_pattern
from gossamer.recipes import DSL, ISSP, RECIPES, SET, STE, make
from gossamer.recipes.base.slots import Slots
from gossamer.weight import SparseWeight

NAN, INF = math.nan, math.inf
PATTERNS = ["2:4", "1:4", "2:4:v4", "75%", "75%:v4", "block 4x4 75%", "2:4:g1"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def weight_with(value: float, rows: int = 8, cols: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight, and where a few of its entries are `value`."""
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(1))
    at = torch.zeros(rows, cols, dtype=torch.bool)
    at[0, 5] = at[3, 17] = at[7, 31] = True
    return weight.masked_fill(at, value), at


def test_keys_have_the_order_of_the_scores_with_nan_on_top() -> None:
    numbers = [-INF, -3e38, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38, INF]
    for dtype in (torch.float32, torch.float64):
        score = torch.tensor([*numbers, NAN, -NAN], dtype=dtype)
        keys = rank_keys(score)
        assert keys.dtype == torch.int64
        assert (keys[1:-1] > keys[:-2]).all()
        assert keys[-1] == keys[-2]
        zeros = rank_keys(torch.tensor([0.0, -0.0, NAN], dtype=dtype))
        assert zeros[0] == zeros[1]
        plain = torch.tensor(numbers, dtype=dtype)
        assert rank_keys(plain) is plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF])
def test_a_mask_by_magnitude_keeps_nan_and_infinity(
    pattern: str, value: float, dtype: torch.dtype
) -> None:
    weight, at = weight_with(value)
    mask = magnitude_mask(weight.to(dtype), pattern)
    check_mask(mask, pattern)
    assert mask[at].all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_score_of_nan_is_kept_before_infinity(pattern: str) -> None:
    score, at = weight_with(NAN)
    mask = mask_from_score(score, pattern)
    check_mask(mask, pattern)
    assert mask[at].all()
    assert mask_from_score(-score, pattern)[at].all()
    row = torch.tensor([[INF, 1.0, NAN, -INF]])
    if pattern in ("1:4", "75%"):
        assert mask_from_score(row, pattern).tolist() == [[False, False, True, False]]
        assert magnitude_mask(row, pattern).tolist() == [[False, False, True, False]]


def test_of_many_nan_the_lower_index_is_kept() -> None:
    for pattern in ("2:4", "50%"):
        mask = magnitude_mask(torch.full((2, 8), NAN), pattern)
        check_mask(mask, pattern)
    assert mask.flatten().tolist() == [True] * 8 + [False] * 8
    assert magnitude_mask(torch.full((1, 4), NAN), "2:4").tolist() == [[True, True, False, False]]


def test_a_tile_with_nan_and_both_infinities_counts_as_nan() -> None:
    score = torch.zeros(4, 8)
    score[0, 6], score[1, 6], score[2, 6], score[0, 1] = INF, -INF, NAN, INF
    assert mask_from_score(score, "1:4:v4")[0].nonzero().flatten().tolist() == [1, 6]


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:8", "2:4:v4", "4:8:v8", "2:4:v16"])
def test_packed_selection_is_the_mask_by_magnitude(pattern: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 64, generator=generator)
    for value in (NAN, INF, -INF):
        weight[torch.rand(16, 64, generator=generator) < 0.1] = value
    weight = weight.to(dtype)
    values, structure = select_nm(weight, pattern)
    mask = magnitude_mask(weight, pattern)
    kept = torch.zeros(weight.numel(), dtype=torch.bool)
    kept[backend.coordinates(structure)] = True
    assert torch.equal(kept.view(16, 64), mask)
    again = backend.encode(mask, parse_pattern(pattern).panel, *nm(pattern))
    torch.testing.assert_close(
        values, backend.gather(weight, again), rtol=0, atol=0, equal_nan=True
    )


def nm(pattern: str) -> tuple[int, int]:
    parsed = parse_pattern(pattern)
    return parsed.n, parsed.m  # type: ignore[union-attr]


def test_double_pruning_keeps_nan_before_infinity() -> None:
    column = torch.tensor([[INF], [NAN], [1.0], [NAN]])
    structure = backend.encode(torch.ones(4, 1, dtype=torch.bool), 1)
    for n, kept in ((1, [1]), (2, [1, 3]), (3, [0, 1, 3])):
        found = double_prune(backend.gather(column, structure), structure, n, 4)
        assert sorted(found.perm.tolist()) == kept
    weight, at = weight_with(NAN)
    assert double_prune_mask(weight, 2, 4)[at].all()


@pytest.mark.parametrize("method", ["exact", "entropy", "greedy", "two_approximation"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_transposable_masks_keep_nan_and_infinity(method: str, value: float) -> None:
    weight, at = weight_with(value)
    mask = transposable_mask(weight, 2, 4, method)  # type: ignore[arg-type]
    assert is_transposable(mask, 2, 4)
    assert mask[at].all()


@pytest.mark.parametrize("pattern", ["75%", "75%:v4", "2:4", "block 4x4 75%"])
def test_a_kept_nan_is_never_dropped_and_a_candidate_of_nan_grows_last(pattern: str) -> None:
    parsed = parse_pattern(pattern)
    weight, at = weight_with(NAN)
    slots = Slots(8, 32, parsed)
    sparse = SparseWeight.from_dense(weight, parsed)
    entries, values = slots.entries(sparse.values.detach(), sparse.structure)
    stays = drop(entries, values, len(entries.indices) // 4)
    left = backend.scatter(stays.float().repeat_interleave(entries.layout.vector), entries) > 0
    left = left.repeat_interleave(8 // left.shape[0], 0).repeat_interleave(32 // left.shape[1], 1)
    assert left[at].all()
    score = torch.rand(8, 32, generator=torch.Generator().manual_seed(3))
    score[~sparse.mask()] = NAN  # all but what was dropped: that grows back
    grown = grow_largest(entries, stays, [slots.scores(score, entries)])
    assert torch.equal(backend.mask(slots.spread(grown, sparse.structure)), sparse.mask())


def test_the_largest_of_several_weights_keep_nan() -> None:
    first, at = weight_with(NAN)
    second = 100.0 * torch.ones(8, 32)
    masks = top_masks([first, second], parse_pattern("75%"))  # type: ignore[arg-type]
    assert masks[0][at].all()
    assert sum(int(mask.sum()) for mask in masks) == 128


@pytest.mark.parametrize("pattern", ["2:4", "75%", "2:4:v4", "block 4x4 75%", "2:4:g1"])
def test_every_pattern_trains_on_and_shows_the_nan(pattern: str) -> None:
    recipe = STE(pattern)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 8)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.1)
    recipe.attach(model, optimizer, total_steps=4)
    with torch.no_grad():
        model[0].weight[3, 17] = NAN
    for _ in range(2):
        out = model(torch.ones(2, 32))
        assert out[:, 3].isnan().all()
        assert model[0].mask()[3].any()
        out.square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", list(RECIPES))
def test_no_recipe_stops_at_a_nan_and_none_hides_it(name: str) -> None:
    recipe = make(name, RECIPES[name].patterns[75])
    torch.manual_seed(0)
    model = recipe.prepare(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)))
    optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.01)
    steps = max(recipe.minimum_steps(), 12)
    recipe.attach(model, optimizer, total_steps=steps)
    for _ in range(3):
        model(torch.randn(4, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() >= 32 * 8:
                parameter.view(-1)[parameter.flatten().abs().argmax()] = NAN
                break
    for _ in range(3, steps):
        out = model(torch.randn(4, 32))
        # Rewinding brings the weights back from before; the NaN of EdgePopup is a score, which
        # keeps its weight, and the weight is a number.
        assert out.isnan().any() or name in ("imp", "edge-popup")
        out.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_set_and_dsl_keep_a_nan_through_their_updates() -> None:
    for recipe in (SET("75%", every=1), DSL("75%", every=1), ISSP("75%")):
        model = recipe.prepare(nn.Sequential(nn.Linear(32, 8)))
        optimizer = torch.optim.SGD(recipe.parameters(model), lr=0.0)
        recipe.attach(model, optimizer, total_steps=10)
        layer = model[0]
        values = layer.weight.values if isinstance(layer, SparseLinear) else layer.weight
        at = int(values.detach().flatten().abs().argmax())
        with torch.no_grad():
            values.view(-1)[at] = NAN
        for _ in range(8):
            model(torch.randn(4, 32)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert values.isnan().any()


def test_growth_and_masks_of_empty_weights_do_not_raise() -> None:
    assert not magnitude_mask(torch.empty(0, 4), "2:4").numel()
    with pytest.raises(GossamerError):
        magnitude_mask(torch.tensor([[1.0, NAN, 2.0]]), "2:4")
