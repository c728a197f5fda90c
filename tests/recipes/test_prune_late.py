"""Recipes that train densely, prune once and hold; what ISSP and Lobster do before."""

import copy

import pytest
import torch
from torch.nn import functional as F

from gossamer.masks import check_mask, magnitude_mask
from gossamer.recipes.hypersparse import HyperSparse
from gossamer.recipes.issp import ISSP
from gossamer.recipes.lobster import Lobster, insensitivity
from gossamer.recipes.prune_late import PruneLate
from support.learned_course import PATTERNS, batch, masters, net, run, start

KINDS = [HyperSparse, ISSP, Lobster]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_issp_shrinks_only_the_smallest(pattern: str) -> None:
    recipe = ISSP(pattern, prune_share=1.0)
    model, optimizer = start(recipe, 50, torch.optim.SGD, lr=0.0)
    start_weights = [m.weight.detach().clone() for m in masters(model)]
    run(recipe, model, optimizer, 0, 3)
    for layer, w in zip(masters(model), start_weights, strict=True):
        kept = magnitude_mask(w, pattern)
        assert torch.equal(layer.weight[kept], w[kept])
        torch.testing.assert_close(layer.weight[~kept], w[~kept] * 0.95**3)


def test_issp_of_zero_is_hard_thresholding() -> None:
    recipe = ISSP("75%", shrink=0.0)
    model, optimizer = start(recipe, 10)
    run(recipe, model, optimizer, 0, 2)
    for layer in masters(model):
        assert int(layer.weight.count_nonzero()) == layer.target.count(*layer.weight.shape)


def test_lobster_decay() -> None:
    recipe = Lobster("75%", strength=0.7, prune_share=0.7, rescaled=False)
    model, optimizer = start(recipe, 10, torch.optim.SGD, lr=0.1)
    layer = masters(model)[0]
    before = layer.weight.detach().clone()
    with torch.no_grad():
        x, y = batch(0)
    F.mse_loss(model(x), y).backward()
    layer.weight.grad[0] = 7.0
    layer.weight.grad[1] = -0.25
    g = layer.weight.grad.clone()
    optimizer.step()
    moved = torch.add(before, g, alpha=-0.1)
    want = moved - 0.1 * moved * (1 - g.abs()).clamp_min(0)  # 0.7 over 7 steps
    torch.testing.assert_close(layer.weight.detach(), want)
    assert torch.equal(layer.weight[0], moved[0])  # a large gradient: not touched
    torch.testing.assert_close(layer.weight[1].detach(), moved[1] * (1 - 0.1 * 0.75))


def test_lobster_rescaled_spares_the_most_sensitive() -> None:
    g = torch.tensor([[0.01, -0.02], [0.0, 0.005]])
    torch.testing.assert_close(insensitivity(g, True), torch.tensor([[0.5, 0.0], [1.0, 0.75]]))
    assert torch.equal(insensitivity(torch.zeros(3), True), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dense_then_pruned_then_held(kind: type[PruneLate], pattern: str) -> None:
    recipe = kind(pattern)
    model, optimizer = start(recipe, 20)
    moved = copy.deepcopy(model)
    run(recipe, model, optimizer, 0, 13)
    assert not recipe.pruned
    assert all(m.masked_weight_share == 1.0 for m in masters(model))
    assert all(
        (m.weight != o.weight).all() for m, o in zip(*map(masters, (model, moved)), strict=True)
    )
    expected = []

    def watch(when: str, t: int) -> None:
        if when == "before":
            expected[:] = [m.weight.detach().clone() for m in masters(model)]

    run(recipe, model, optimizer, 13, 14, watch)
    assert recipe.pruned
    held = [m.mask() for m in masters(model)]
    run(recipe, model, optimizer, 14, 20, watch)
    for layer, mask, before in zip(masters(model), held, expected, strict=True):
        check_mask(mask, pattern)
        assert torch.equal(layer.mask(), mask)
        assert not layer.weight[~mask].any()
        assert not layer.weight.grad[~mask].any()
        assert (layer.weight[mask] != before[mask]).all()
    x = batch(0)[0]
    y = model(x)
    torch.testing.assert_close(recipe.finish(model)(x), y)


@pytest.mark.parametrize("kind", KINDS)
def test_without_pressure_the_dense_phase_is_plain_training(kind: type[PruneLate]) -> None:
    off = {"shrink": 1.0} if kind is ISSP else {"lam" if kind is HyperSparse else "strength": 0.0}
    recipe = kind("1:4", **off)
    model, optimizer = start(recipe, 20)
    run(recipe, model, optimizer, 0, 10)
    plain = net()
    twin = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    run(recipe, plain, twin, 0, 10)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_finish_before_the_pruning_keeps_the_largest() -> None:
    recipe = ISSP("1:4")
    model, optimizer = start(recipe, 100)
    run(recipe, model, optimizer, 0, 30)
    weight = masters(model)[0].weight.detach().clone()
    layer = recipe.finish(model)[0]
    assert torch.equal(layer.weight.mask(), magnitude_mask(weight, "1:4"))


def test_pruning_when_the_subclass_says_so() -> None:
    class Early(ISSP):
        def is_ready(self, t: int) -> bool:
            return t == 2

    recipe = Early("1:4")
    model, optimizer = start(recipe, 100)
    run(recipe, model, optimizer, 0, 2)
    assert not recipe.pruned
    run(recipe, model, optimizer, 2, 3)
    assert recipe.pruned
