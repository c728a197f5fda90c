"""Masks of what a training changed, their overlaps, and ranks of updates."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import ArgumentError
from gossamer.pruning import changed, chosen, overlap, stable_ranks


def models() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(8, 6), nn.Conv2d(2, 4, 3), nn.Linear(6, 6))
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight[0, :3] += 1e-3
        second[0].weight[1, 0] += 1e-7
        second[1].weight[2] += torch.randn(2, 3, 3)
    return first, second


def test_changes_are_counted_with_a_tolerance_and_after_rounding() -> None:
    first, second = models()
    assert [int(m.sum()) for m in changed(first, second).values()] == [4, 18, 0]
    assert [int(m.sum()) for m in changed(first, second, 1e-5).values()] == [3, 18, 0]
    rounded = changed(first, second, dtype=torch.bfloat16)
    assert int(rounded["0"][1, 0]) == 0
    assert rounded["1"].shape == (4, 2, 3, 3)


def test_ranks_of_updates() -> None:
    first, second = models()
    assert stable_ranks(first, second) == pytest.approx({"0": 1.0, "1": 1.0, "2": 0.0}, abs=1e-4)
    with torch.no_grad():
        second[2].weight += torch.eye(6)
    assert stable_ranks(first, second)["2"] == pytest.approx(6.0, rel=1e-4)


def test_the_best_of_all_layers_are_chosen() -> None:
    scores = {"a": torch.rand(4, 5), "b": torch.rand(3, 2, 3, 3) + 0.5, "c": torch.zeros(2, 2)}
    masks = chosen(scores, 0.25)
    assert "c" not in masks
    total = sum(s.numel() for s in scores.values())
    assert sum(int(m.sum()) for m in masks.values()) == round(0.25 * total)
    least = min(float(scores[n][m].min()) for n, m in masks.items())
    rest = torch.cat([scores[n][~m] for n, m in masks.items()])
    assert least >= float(rest.max())
    assert chosen(scores, 0.0) == {}


def test_overlap_beside_chance() -> None:
    torch.manual_seed(0)
    a, b = ({"x": torch.rand(200, 200) < share} for share in (0.2, 0.1))
    found = overlap(a, b)
    assert found.first == pytest.approx(found.chance[0], abs=0.02)
    assert found.second == pytest.approx(found.chance[1], abs=0.02)
    assert found.chance == pytest.approx((0.1, 0.2), abs=0.01)
    assert overlap(a, a).first == 1.0
    assert overlap(a, b, total=80_000).chance[1] == pytest.approx(found.chance[1] / 2)


def test_refusals() -> None:
    first, _ = models()
    with pytest.raises(ArgumentError, match="different layers"):
        changed(first, nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="no scores"):
        chosen({}, 0.1)
    with pytest.raises(ArgumentError, match="set without an entry"):
        overlap({"a": torch.zeros(2).bool()}, {"a": torch.ones(2).bool()})
    with pytest.raises(ArgumentError, match="of shapes"):
        overlap({"a": torch.ones(2).bool()}, {"a": torch.ones(3).bool()})
