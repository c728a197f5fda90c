"""GroupedNM: N:M in which every choice of columns occurs equally often in a chunk of rows."""

from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gossamer
from gossamer import backend
from gossamer.errors import PatternError, StructureError
from gossamer.masks import check_mask, magnitude_mask, mask_from_score, random_mask
from gossamer.patterns import NM, GroupedNM, parse_pattern

SIZES = [(2, 4), (1, 4), (2, 8), (3, 5)]


def uses(mask: torch.Tensor, pattern: GroupedNM) -> list[dict[tuple[int, ...], int]]:
    """How often each choice of columns occurs, for each chunk and group, counted one by one."""
    rows, cols = mask.shape
    counted = []
    for start in range(0, rows, pattern.chunk):
        for left in range(0, cols, pattern.m):
            used = dict.fromkeys(combinations(range(pattern.m), pattern.n), 0)
            for row in mask[start : start + pattern.chunk, left : left + pattern.m].tolist():
                used[tuple(i for i, kept in enumerate(row) if kept)] += 1
            counted.append(used)
    return counted


def greedy(score: torch.Tensor, pattern: GroupedNM) -> torch.Tensor:
    """The greedy selection of one whole chunk and one group, pair by pair."""
    table = sorted(combinations(range(pattern.m), pattern.n), key=lambda c: c[::-1])
    pairs = sorted(
        ((-sum(score[r, c].item() for c in choice), r, k) for r in range(len(score))
         for k, choice in enumerate(table))
    )  # fmt: skip
    mask, done, room = torch.zeros(score.shape, dtype=torch.bool), set(), [pattern.g] * len(table)
    for _, row, k in pairs:
        if row not in done and room[k]:
            mask[row, list(table[k])] = True
            done.add(row)
            room[k] -= 1
    return mask


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("g", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_every_choice_occurs_equally_often(n: int, m: int, g: int, whole: bool) -> None:
    pattern = GroupedNM(n, m, g)
    rows = 2 * pattern.chunk + (0 if whole else 7)
    torch.manual_seed(rows)
    weight = torch.randn(rows, 3 * m)
    for mask in (magnitude_mask(weight, pattern), random_mask(weight.shape, pattern, seed=3)):
        check_mask(mask, pattern)
        check_mask(mask, NM(n, m))
        counted = uses(mask, pattern)
        assert {v for used in counted[:6] for v in used.values()} == {g}
        last = (rows - 1) % pattern.chunk + 1
        floor = last // comb(m, n)
        assert {v for u in counted[-3:] for v in u.values()} <= {floor, -(-last // comb(m, n))}
        assert int(mask.sum()) == pattern.count(rows, 3 * m)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 3), st.integers(0, 2**31), st.booleans())
def test_selection_is_the_greedy_one(
    size: tuple[int, int], g: int, seed: int, with_ties: bool
) -> None:
    pattern = GroupedNM(*size, g)
    score = torch.randn(pattern.chunk, pattern.m, generator=torch.Generator().manual_seed(seed))
    score = score.abs().double()
    if with_ties:
        score = (score * 2).round()
    assert torch.equal(mask_from_score(score, pattern), greedy(score, pattern))


@pytest.mark.parametrize(
    ("n", "m", "shares"), [(2, 4, (0.921, 0.968, 0.987)), (1, 4, (0.874, 0.950, 0.981))]
)
def test_magnitude_kept_against_plain(n: int, m: int, shares: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(960, 256)
    plain = weight[magnitude_mask(weight, NM(n, m))].abs().sum()
    for g, share in zip((1, 4, 16), shares, strict=True):
        mine = weight[magnitude_mask(weight, GroupedNM(n, m, g))].abs().sum()
        assert float(mine / plain) == pytest.approx(share, abs=0.003)


def test_text_and_back() -> None:
    pattern = parse_pattern(" 2:4 : G8 ")
    assert pattern == GroupedNM(2, 4, 8)
    assert parse_pattern(str(pattern)) is not pattern
    assert parse_pattern(str(pattern)) == pattern
    assert (pattern.density, pattern.sparsity, pattern.panel) == (0.5, 0.5, 1)
    assert GroupedNM(1, 8, 2).sparsity == 0.875


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GroupedNM(2, 4, 0), ["g=0", "1 <= g"]),
        (lambda: GroupedNM(16, 32, 1), ["16:32", "32768"]),
        (lambda: parse_pattern("5:4:g2"), ["n=5", "m=4"]),
        (lambda: GroupedNM(2, 4, 1).check_shape(8, 6, "layer 'a'"), ["layer 'a'", "multiple of 4"]),
    ],
)
def test_bad_numbers(make: object, words: list[str]) -> None:
    with pytest.raises(PatternError) as caught:
        make()  # type: ignore[operator]
    assert all(word in str(caught.value) for word in words)


def test_unbalanced_mask_is_refused() -> None:
    mask = torch.tensor([[True, True, False, False]] * 6)
    check_mask(mask, "2:4")
    with pytest.raises(StructureError, match=r"takes columns \[0, 1\] 6 times in rows 0 to 5"):
        check_mask(mask, "2:4:g1")


def test_an_unbalanced_structure_is_refused_where_it_comes_in() -> None:
    layer = gossamer.SparseLinear(4, 12, pattern="2:4:g1")
    before = layer.weight.mask()
    lopsided = backend.encode(torch.tensor([[True, True, False, False]] * 12), 1, 2, 4)
    with pytest.raises(StructureError, match="times in rows"):
        gossamer.SparseWeight(torch.ones(24), lopsided, "2:4:g1")
    state = layer.state_dict() | {"weight.indices": lopsided.indices}
    for strict in (True, False):
        with pytest.raises(StructureError, match="times in rows"):
            layer.load_state_dict(state, strict=strict)
    with pytest.raises(StructureError, match="times in rows"):
        layer.weight.set_mask(lopsided)
    assert torch.equal(layer.weight.mask(), before)


def test_infinite_scores_are_ranked() -> None:
    score = torch.tensor([[float("inf"), -float("inf"), 0.0, 1.0]] * 6)
    check_mask(mask_from_score(score, "2:4:g1"), "2:4:g1")


@pytest.mark.parametrize("rows", [24, 30])
def test_layer_state_and_mask(rows: int) -> None:
    torch.manual_seed(0)
    dense = torch.nn.Linear(16, rows)
    model = gossamer.sparsify(torch.nn.Sequential(dense), "1:4:g3")
    layer = model[0]
    x = torch.randn(5, 16, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, x @ layer.weight.to_dense().t() + layer.bias)
    y.square().sum().backward()
    torch.testing.assert_close(x.grad, (2 * y @ layer.weight.to_dense()).detach())

    other = gossamer.SparseLinear(16, rows, pattern="1:4:g3")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), y)
    assert other.weight.pattern == GroupedNM(1, 4, 3)
    kept = layer.weight.mask()
    target = random_mask((rows, 16), "1:4:g3", seed=5)
    before = layer.weight.to_dense().detach()
    layer.weight.set_mask(target)
    assert torch.equal(layer.weight.mask(), target)
    assert torch.equal(layer.weight.to_dense().detach(), before * (kept & target))
    with pytest.raises(StructureError):
        layer.weight.set_mask(magnitude_mask(torch.arange(16.0).repeat(rows, 1), "1:4"))
    with pytest.raises(gossamer.GossamerError):
        gossamer.SparseLinear(16, rows, pattern="1:4").load_state_dict(layer.state_dict())


def test_random_mask_is_uniform() -> None:
    """Two rows, 1:2, g = 1: both orders of the two choices, about equally often."""
    first = sum(bool(random_mask((2, 2), "1:2:g1", seed)[0, 0]) for seed in range(400))
    assert 150 < first < 250
